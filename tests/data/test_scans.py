"""One rule each for place, units, values and labels: every part sees the same of a file."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine, voxel_sizes
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

import plugins
from plugins.data import (
    LoadScand,
    UnpairedSlices,
    Window,
    check_scan,
    check_scans,
    checks,
    names,
    nifti,
    read_grid,
    read_label,
    read_scan,
    scans,
    translation_transforms,
    write_crop,
)
from plugins.data.scans import PLACE_MM
from plugins.errors import InputError
from plugins.evaluation import evaluate_folder, evaluate_translations
from plugins.evaluation.labels import in_lps
from plugins.evaluation.pictures import read_axial
from plugins.files import read_json
from plugins.nnunet.dataset import label_of, write_dataset
from plugins.nnunet.workspace import Workspace

from .odd_files import GOOD, SHAPE, SPACING, Maker, box, placed, voxels

FILES = [case for case in GOOD if case != "DICOM series"]
READERS = {
    "nibabel": {"load", "from_filename", "from_file_map", "from_stream", "from_bytes", "as_closest_canonical"},
    "monai": {"LoadImage", "LoadImaged", "LoadImageD", "LoadImageDict", "ITKReader", "NibabelReader", "NrrdReader",
              "NumpyReader", "PILReader", "PydicomReader", "ImageDataset", "SupervisedDataset"},
}  # fmt: skip
FOREIGN = {"itk", "SimpleITK", "pydicom", "nrrd", "medpy", "skimage.io", "imageio", "PIL", "cv2", "torchio"}
ONE_READER = {"data/nifti.py", "data/scans.py"}
MAY_READ = {
    "data/dicom.py": {"ITKReader"},  # which the one reader calls for folders
    "data/transforms.py": {"LoadImaged"},  # of which its transform is a kind, for tools that look for it
    "data/rtstruct.py": {"pydicom"},  # which holds contours, no voxels
    "data/vs_seg.py": {"pydicom"},  # what series are, by their headers
    "data/windows.py": {"from_bytes"},  # of what it has made itself
    "nnunet/selection.py": {"NibabelIOWithReorient"},  # to write
}


def readings(tree: ast.AST) -> set[str]:
    """What a module uses to read images by itself."""
    words = READERS["nibabel"] - {"load"} | READERS["monai"] | {"NibabelIOWithReorient", "NibabelIO", "SimpleITKIO"}
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & words
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("load", "imread"):
            if ast.unparse(node.value) in ("nib", "nibabel", "nib.nifti1", "nib.Nifti1Image", "nib.Nifti2Image"):
                found.add("load")
            if node.attr == "imread":
                found.add("imread")
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            found |= names & words
            if (node.module or "").split(".")[0] == "nibabel":
                found |= names & {"load"}
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found |= {name for name in modules if name in FOREIGN or name.split(".")[0] in FOREIGN}
    return found


def test_every_reading_of_an_image_goes_through_the_one_reader():
    package = Path(plugins.__file__).parent
    found = {
        path.relative_to(package).as_posix(): readings(ast.parse(path.read_text(encoding="utf-8")))
        for path in package.rglob("*.py")
    }
    assert all(found[name] for name in ONE_READER), "the check sees the reader itself"
    strays = {name: words - MAY_READ.get(name, set()) for name, words in found.items() if name not in ONE_READER}
    assert {name: words for name, words in strays.items() if words} == {}
    for config in (package.parent / "bundles").rglob("configs/*.json"):
        assert not any(f'"{name}"' in config.read_text(encoding="utf-8") for name in READERS["monai"]), config


@pytest.mark.parametrize(
    "code",
    [
        "import nibabel as nib\nnib.load(a)",
        "from nibabel import load",
        "import nibabel as nib\nnib.Nifti1Image.from_filename(a)",
        "from monai.transforms import LoadImaged",
        "import monai\nmonai.transforms.LoadImage()(a)",
        "import itk\nitk.imread(a)",
        "import SimpleITK as sitk",
        "from skimage.io import imread",
        "import pydicom",
    ],
)
def test_the_check_sees_other_readers(code):
    assert readings(ast.parse(code))


@pytest.mark.parametrize("case", FILES)
def test_every_part_sees_a_file_at_the_same_place(tmp_path, case):
    """What the reader says, MONAI's transforms, nnU-Net's own reader, pictures, crops and saved results agree on."""
    odd = GOOD[case](Maker(tmp_path, case))
    scan = read_scan(odd.path)
    assert scan.shape == odd.shape
    assert np.allclose(scan.affine, odd.affine, rtol=1e-5, atol=1e-4)
    assert scan.voxels.dtype == np.float32
    assert np.array_equal(read_grid(odd.path).affine, scan.affine)
    loaded = LoadScand("image")({"image": str(odd.path)})["image"]
    assert np.array_equal(loaded.affine.numpy(), scan.affine)
    assert torch.equal(loaded.as_tensor(), torch.from_numpy(scan.voxels))

    labels = np.zeros(odd.shape, np.uint8)
    labels[box(odd.shape)] = 1
    nib.save(nib.Nifti1Image(labels, odd.affine), tmp_path / "label.nii.gz")
    item = {
        "case": "a",
        "patient": "a",
        "origin": "real",
        "image": str(odd.path),
        "label": str(tmp_path / "label.nii.gz"),
    }
    workspace = Workspace(tmp_path / "nnunet")
    write_dataset([item], workspace)
    entry = read_json(workspace.raw / "dataset.json")["dataset"]["a"]
    (seen,), properties = NibabelIOWithReorient().read_images(entry["images"])
    assert np.allclose(sorted(properties["spacing"]), sorted(voxel_sizes(odd.affine)), rtol=1e-4)
    original = properties["nibabel_stuff"]["original_affine"]
    assert np.allclose(original, odd.affine, rtol=1e-4, atol=1e-3)
    turned, _ = NibabelIOWithReorient().read_seg(str(workspace.labels / "a.nii.gz"))
    assert turned.shape[1:] == seen.shape

    volume, spacing = read_axial(odd.path)
    assert np.allclose(sorted(spacing), sorted(voxel_sizes(odd.affine)), rtol=1e-4)
    assert volume.size == scan.voxels.size

    middle = [(edge.start + edge.stop - 1) / 2 for edge in box(odd.shape)]
    size = tuple(6 * max(voxel_sizes(odd.affine)) for _ in range(3))
    write_crop(odd.path, Window(tuple(apply_affine(odd.affine, middle)), size), tmp_path / "crop.nii.gz")
    part = read_scan(tmp_path / "crop.nii.gz")
    start = np.rint(apply_affine(np.linalg.inv(scan.affine), part.affine[:3, 3])).astype(int)
    assert np.allclose(apply_affine(scan.affine, start), part.affine[:3, 3], atol=1e-3)
    inside = tuple(slice(low, low + length) for low, length in zip(start, part.shape, strict=True))
    assert np.array_equal(part.voxels, scan.voxels[inside])


@pytest.mark.parametrize("sform", [[1, 1, 1], [1.001, 1, 1], [1, 0.9, 1], [1.1, 1.1, 1.1], [1, 1, 2], [10, 10, 10]])
def test_a_misplaced_label_is_seen_by_translators_and_segmentation_alike(tmp_path, sform):
    """The scan's pixdim says otherwise than its sform; the label map is whole."""
    factors = np.array(sform, float)
    affine = placed(spacing=np.array(SPACING) * factors)
    image = nib.Nifti1Image(voxels(), affine)
    image.header["pixdim"][1:4] = SPACING
    nib.save(image, tmp_path / "a_ceT1.nii.gz")
    labels = np.zeros(SHAPE, np.uint8)
    labels[box(SHAPE)] = 2
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "a_Label.nii.gz")
    item = {"image": str(tmp_path / "a_ceT1.nii.gz"), "label": str(tmp_path / "a_Label.nii.gz")}
    check_scan(item)
    size = [64, 64]
    tensors = translation_transforms(None, size, size, (0, 100))(item)
    bright, drawn = np.asarray(tensors["image"][0] > 0.9), np.asarray(tensors["label"][0] == 2)
    assert bright.any()
    assert np.array_equal(bright, drawn)
    assert np.allclose(voxel_sizes(tensors["image"].affine.numpy()), np.array(SPACING) * factors, rtol=1e-5)
    assert label_of({**item, "origin": "real"}).spacing == pytest.approx(np.array(SPACING) * factors, rel=1e-5)


@pytest.mark.parametrize("millimetres", [0, 0.01, 0.02, 0.035, 0.045, 0.3, 1, 10])
@pytest.mark.parametrize("axis", range(3))
def test_translators_segmentation_and_evaluation_have_one_tolerance(tmp_path, millimetres, axis):
    nib.save(nib.Nifti1Image(voxels(), placed()), tmp_path / "a_ceT1.nii.gz")
    labels, moved = np.zeros(SHAPE, np.uint8), placed()
    labels[box(SHAPE)] = 1
    moved[axis, 3] += millimetres
    for folder, affine in (("moved", moved), ("right", placed())):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(labels, affine), tmp_path / folder / "a_Label.nii.gz")
        nib.save(nib.Nifti1Image(labels.astype(np.float32), affine), tmp_path / folder / "a.nii.gz")
    image, label = str(tmp_path / "a_ceT1.nii.gz"), str(tmp_path / "moved" / "a_Label.nii.gz")
    item = {"case": "a", "patient": "a", "origin": "real", "image": image, "label": label}
    right = {**item, "label": str(tmp_path / "right" / "a_Label.nii.gz")}
    parts = {
        "checks": lambda: check_scans([item]),
        "translators": lambda: LoadScand(["image", "label"])(item),
        "segmentation": lambda: write_dataset([item], Workspace(tmp_path / "nnunet")),
        "evaluation": lambda: evaluate_folder(tmp_path / "moved", tmp_path / "right", tmp_path / "m.json"),
        "evaluation of translations": lambda: evaluate_translations([right], tmp_path / "moved", tmp_path / "t.json"),
    }
    for name, part in parts.items():
        if millimetres > PLACE_MM:
            with pytest.raises(InputError, match="mm away"):
                part()
        else:
            part()
            assert name


@pytest.mark.parametrize("factor", [1 / 255, 2 / 255, 1 / 65535, 0.004, 0.009, 0.1, 0.5, 1.02, 128, 255])
def test_a_mask_in_other_units_is_refused_everywhere(tmp_path, factor):
    nib.save(nib.Nifti1Image(voxels(), placed()), tmp_path / "a_ceT1.nii.gz")
    labels = np.zeros(SHAPE)
    labels[box(SHAPE)] = factor
    nib.save(nib.Nifti1Image(labels, placed()), tmp_path / "a_Label.nii.gz")
    image, label = str(tmp_path / "a_ceT1.nii.gz"), str(tmp_path / "a_Label.nii.gz")
    item = {"case": "a", "patient": "a", "origin": "real", "image": image, "label": label}
    for part in (
        lambda: check_scans([item]),
        lambda: LoadScand(["image", "label"])(item),
        lambda: write_dataset([item], Workspace(tmp_path / "nnunet")),
        lambda: evaluate_folder(tmp_path, tmp_path, tmp_path / "m.json"),
    ):
        with pytest.raises(InputError, match="holds the label values"):
            part()


@pytest.mark.parametrize("off", [1e-10, 1e-6, 1e-3, 0.0099])
def test_a_label_within_a_hundredth_is_rounded(tmp_path, off):
    labels = np.zeros(SHAPE)
    labels[1, 2, 3], labels[4, 5, 6] = 1 - off, 2 + off
    nib.save(nib.Nifti1Image(labels, placed()), tmp_path / "a_Label.nii.gz")
    found = read_label(tmp_path / "a_Label.nii.gz").voxels
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.rint(labels))


def test_training_without_any_structure_is_refused(tmp_path):
    items = []
    for case in "ab":
        nib.save(nib.Nifti1Image(voxels(), placed()), tmp_path / f"{case}_ceT1.nii.gz")
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), placed()), tmp_path / f"{case}_Label.nii.gz")
        files = {"image": str(tmp_path / f"{case}_ceT1.nii.gz"), "label": str(tmp_path / f"{case}_Label.nii.gz")}
        items.append({"case": case, "patient": case, "origin": "real", **files})
    transform = translation_transforms(None, [16, 16], [16, 16])
    targets = [{"case": "t", "image": items[0]["image"]}]
    for part in (
        lambda: check_scans(items, foreground=True),
        lambda: UnpairedSlices({"source": items, "target": targets}, transform, tmp_path / "cache"),
        lambda: write_dataset(items, Workspace(tmp_path / "nnunet")),
    ):
        with pytest.raises(InputError, match="neither this label map nor another one"):
            part()
    labels = np.zeros(SHAPE, np.uint8)
    labels[11, 9, 7] = 2
    nib.save(nib.Nifti1Image(labels, placed()), tmp_path / "b_Label.nii.gz")
    check_scans(items, foreground=True)
    write_dataset(items, Workspace(tmp_path / "nnunet"))
    UnpairedSlices({"source": items, "target": targets}, transform, tmp_path / "cache")


def test_jumps_between_slices_are_measured_over_one_region(tmp_path):
    """Air that a translation fills, and a body that it leaves out, change neither region."""
    generator = np.random.default_rng(0)
    body = np.zeros((24, 20, 8), bool)
    body[4:20, 4:16] = True
    true = np.where(body, 0.2 + 0.6 * generator.random(body.shape), 0)
    true[4:6, 4:16] = 1  # so that the percentiles change nothing
    labels = np.zeros(body.shape, np.uint8)
    labels[8:11, 8:11, 2:5], labels[14:16, 8:10, 3:5] = 1, 2
    nib.save(nib.Nifti1Image(labels, placed()), tmp_path / "a_Label.nii.gz")
    (tmp_path / "true").mkdir()
    nib.save(nib.Nifti1Image(true.astype(np.float32), placed()), tmp_path / "true" / "a_hrT2.nii.gz")
    item = {"case": "a", "image": "", "label": str(tmp_path / "a_Label.nii.gz")}
    found = {}
    for name, volume in {
        "same": true,
        "air is filled": np.where(body, true, 0.4),
        "air is noise": np.where(body, true, generator.random(body.shape)),
    }.items():
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(volume.astype(np.float32), placed()), tmp_path / name / "a.nii.gz")
        content = evaluate_translations([item], tmp_path / name, tmp_path / "m.json", tmp_path / "true")["mean"]
        found[name] = (content["slice_jump"], content["true_slice_jump"])
    for name, (jump, true_jump) in found.items():
        assert jump == pytest.approx(true_jump, rel=0.01), name


def test_a_warning_about_voxel_sizes_comes_once(tmp_path, caplog):
    odd = GOOD["pixdim tenfold"](Maker(tmp_path, "a"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            read_scan(odd.path)
    assert caplog.text.count("the sform holds") == 1


def test_axes_are_turned_by_the_same_affine(tmp_path):
    odd = GOOD["sagittal"](Maker(tmp_path, "a"))
    scan = read_scan(odd.path)
    tensor = translation_transforms(None, [40, 40], [40, 40], (0, 100))({"image": str(odd.path)})["image"]
    assert in_lps(scan.voxels, scan.affine)[0].shape[2] == tensor.shape[-1]


def test_the_table_in_the_documentation_states_the_rules():
    table = (Path(plugins.__file__).parents[1] / "docs" / "files.md").read_text(encoding="utf-8")
    for rule in (
        f"more than {PLACE_MM} mm apart",
        f"rounded within {scans.ROUNDING}",
        f"beyond {scans.LARGEST:.0e}".replace("+", ""),
        f"more than {100 * nifti.SAME_SIZE:g} %",
        f"cosine of {nifti.MAX_SHEAR}",
        f"below {checks.VOXEL_MM[0]} mm or above {checks.VOXEL_MM[1]:g} mm",
        f"longer than {checks.MAX_EXTENT_MM / 1000:g} m or larger than {checks.MAX_VOLUME_MM3 / 1e9:g} m³",
        f"at most {names.MAX_NAME_BYTES} bytes",
    ):
        assert rule in table, rule
    assert nifti.MAX_VOXELS == 2**30
    assert "2³⁰ voxels" in table
