"""From a list of scans to an nnU-Net dataset that refers to them in place, and to its splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from plugins.data import Grid, Scan, read_grid, read_label, read_scan
from plugins.errors import InputError
from plugins.files import whole_file, write_json
from plugins.nnunet.workspace import WEIGHTS, Workspace
from plugins.segmentation import LABELS

Item = Mapping[str, Any]

# reorients to RAS when reading and back when writing, so scans may be stored in any orientation
READER = "NibabelIOWithReorient"

# voxels of a pseudo-label that no loss and no score sees, under nnU-Net's name for them
IGNORE, IGNORED = "ignore", 3


def check_items(items: Sequence[Item]) -> None:
    """Refuse a list nnU-Net could not train on.

    Raises:
        InputError: if the list is empty, a key is missing, a case stands twice, an origin is unknown, or a weight is no
            number above 0.
    """
    if not items:
        raise InputError("the list of training scans is empty. Give a datalist or dataset_dir that holds some.")
    seen: set[str] = set()
    for item in items:
        missing = [key for key in ("case", "patient", "image", "label", "origin") if key not in item]
        if missing:
            raise InputError(f"training scan {item.get('case', item)} lacks {missing}. Add them to the datalist.")
        if item["origin"] not in ("translated", "real"):
            raise InputError(f"origin of {item['case']} is {item['origin']!r}. Write 'translated' or 'real'.")
        if item["case"] in seen:
            raise InputError(f"case {item['case']} is twice in the list of training scans. Rename one view of it.")
        seen.add(item["case"])
        weight_of(item)


def weight_of(item: Item) -> float:
    """How often a scan is drawn in training, as a multiple of how often one of weight 1 is.

    Raises:
        InputError: if that is no number above 0.
    """
    try:
        weight = float(item.get("weight", 1))
    except (TypeError, ValueError):
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise InputError(f"weight of {item['case']} is {item['weight']!r}. Give a number above 0.")
    return weight


def label_values(origin: str) -> list[int]:
    """What the label map of a scan may hold: that of a real scan also voxels to ignore."""
    return [*LABELS.values(), IGNORED] if origin == "real" else [*LABELS.values()]


def _trusted(items: Sequence[Item]) -> Sequence[Item]:
    """Those whose labels were drawn: of translated scans, or where no scan is translated, of all."""
    return [item for item in items if item["origin"] == "translated"] or items


def cochleae_volume(items: Sequence[Item]) -> float | None:
    """Median volume in mm3 of both cochleae together, over patients whose labels were drawn; ``None`` without any."""
    labels = {str(item["patient"]): item for item in _trusted(items)}
    volumes = []
    for item in labels.values():
        drawn = label_of(item)
        volumes.append(np.count_nonzero(drawn.voxels == LABELS["cochlea"]) * float(np.prod(drawn.spacing)))
    return round(float(np.median(volumes)), 3) or None


def label_of(item: Item) -> Scan:
    """The label map of a scan, on exactly the grid of its image."""
    return read_label(item["label"], label_values(item["origin"]), read_grid(item["image"]))


def _write(voxels: NDArray[Any], grid: Grid, file: Path) -> None:
    """An image that nnU-Net's reader, which takes voxel sizes from pixdim and knows mm only, sees as we do."""
    image = nib.Nifti1Image(voxels, grid.affine)
    image.header.set_xyzt_units("mm")
    with whole_file(file) as part:
        nib.save(image, part)


def write_dataset(items: Sequence[Item], workspace: Workspace) -> None:
    """Write ``dataset.json``, integer label copies and weights; images are referred to where they lie.

    An image that nnU-Net's reader would place or name otherwise than :func:`plugins.data.read_scan` is copied. nnU-Net
    is told of voxels to ignore only where a label map holds some.

    Raises:
        InputError: see :func:`plugins.data.read_label`, and if no label map holds a structure.
    """
    entries, ignores, foreground = {}, False, False
    for item in items:
        copy = workspace.labels / f"{item['case']}.nii.gz"
        drawn = label_of(item)
        ignores = ignores or bool((drawn.voxels == IGNORED).any())
        foreground = foreground or bool(np.isin(drawn.voxels, [*LABELS.values()][1:]).any())
        _write(drawn.voxels, drawn, copy)
        image = Path(item["image"]).absolute()
        if not read_grid(image).is_plain:
            scan, image = read_scan(image), (workspace.raw / "images" / f"{item['case']}.nii.gz").absolute()
            _write(scan.voxels, scan, image)
        entries[item["case"]] = {"images": [str(image)], "label": os.path.relpath(copy, workspace.raw)}
    if not foreground:
        raise InputError(
            f"{items[0]['label']}: neither this label map nor another one holds VS or cochlea. Label them."
        )
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {**LABELS, IGNORE: IGNORED} if ignores else LABELS,
        "numTraining": len(items),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": READER,
    }
    write_json(workspace.preprocessed / WEIGHTS, {str(item["case"]): weight_of(item) for item in items})
    # the copy that travels with the networks names no file of this machine
    write_json(workspace.preprocessed / "dataset.json", content)
    write_json(workspace.raw / "dataset.json", {**content, "dataset": entries})


def check_extents(items: Sequence[Item], plans: Mapping[str, Any]) -> None:
    """Make sure that every scan keeps a voxel along each axis when nnU-Net resamples it.

    Raises:
        InputError: for the first scan that does not.
    """
    spacings = [each["spacing"] for each in plans["configurations"].values() if "spacing" in each]
    for item in items:
        grid = read_grid(item["image"])
        extent = np.empty(3)
        extent[io_orientation(grid.affine)[:, 0].astype(int)] = np.multiply(grid.shape, grid.spacing)
        extent = extent[::-1][list(plans["transpose_forward"])]  # S, A, R, then as planned
        if any((np.round(extent[-len(spacing) :] / spacing) < 1).any() for spacing in spacings):
            sizes = " x ".join(f"{length:.3g}" for length in np.multiply(grid.shape, grid.spacing))
            raise InputError(
                f"{item['image']}: spans {sizes} mm only, less than a voxel of the networks. Leave it out."
            )


def check_splits(items: Sequence[Item], splits: Sequence[Mapping[str, Sequence[str]]]) -> list[dict[str, Any]]:
    """Make sure that no patient's views straddle training and validation of a fold, and count what is in it.

    Returns:
        for each fold ``patients``, ``views`` and ``real`` (scans that are no translation) of ``train`` and ``val``, and
        the names of the patients that are validated on.

    Raises:
        InputError: naming the first fold and patient that straddle, or a case that is not among the items.
    """
    known = {str(item["case"]): item for item in items}
    report = []
    for number, split in enumerate(splits):
        strange = sorted({case for cases in split.values() for case in cases} - set(known))
        if strange:
            raise InputError(f"fold {number} names {strange[0]}, which is no training scan. Make the splits anew.")
        sides = {side: [known[case] for case in split[side]] for side in ("train", "val")}
        patients = {side: {str(item["patient"]) for item in cases} for side, cases in sides.items()}
        both = sorted(patients["train"] & patients["val"])
        if both:
            raise InputError(f"fold {number} trains and validates on views of {both[0]}. Make the splits anew.")
        fold: dict[str, Any] = {"fold": number, "validated_patients": sorted(patients["val"])}
        for side, cases in sides.items():
            real = sum(item["origin"] == "real" for item in cases)
            fold[side] = {"patients": len(patients[side]), "views": len(cases), "real": real}
        report.append(fold)
    return report


def make_splits(items: Sequence[Item], num_folds: int, seed: int) -> list[dict[str, list[str]]]:
    """Cross-validation splits by patient: all views of a patient lie on the same side.

    Translated scans are validated on; their patients fall into the same folds whatever real scans are added, and real
    scans train in every fold. Where no scan is translated, all are validated on.

    Returns:
        one ``{"train": [case, ...], "val": [case, ...]}`` per fold.

    Raises:
        InputError: if there are fewer patients than folds.
    """
    validated = _trusted(items)
    patients = sorted({str(item["patient"]) for item in validated})
    if not 2 <= num_folds <= len(patients):
        raise InputError(f"num_folds is {num_folds}: but there are {len(patients)} patients. Choose from 2 to that.")
    order = np.random.RandomState(seed).permutation(len(patients))
    splits = []
    for fold in range(num_folds):
        held_out = {patients[index] for index in order[fold::num_folds]}
        train = [item["case"] for item in items if str(item["patient"]) not in held_out]
        val = [item["case"] for item in validated if str(item["patient"]) in held_out]
        splits.append({"train": sorted(train), "val": sorted(val)})
    return splits
