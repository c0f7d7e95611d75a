"""VS-SEG (TCIA, doi 10.7937/TCIA.9YTJ-5Q73): who has which series and which contours; needs the extra ``dicom``."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from plugins.data.dicom import needed
from plugins.data.layout import Entry
from plugins.data.names import natural
from plugins.data.rtstruct import referenced_series
from plugins.errors import InputError

Found = tuple[list[Entry], list[tuple[str, str]]]
_TAGS = [
    "Modality", "PatientID", "SeriesDescription", "SeriesInstanceUID", "ReferencedFrameOfReferenceSequence",
]  # fmt: skip


@dataclass
class _Patient:
    series: dict[str, tuple[Path, str]] = field(default_factory=dict)  # uid: folder, description
    contours: dict[str, list[Path]] = field(default_factory=dict)  # uid of the series: structure sets


def vs_seg_entries(
    folder: Path,
    contrasts: tuple[str, str] = ("t1", "t2"),
    shares: tuple[float, float] = (0.43, 0.14),
    same_patients: bool = False,
) -> Found:
    """The first patients give their ceT1 and contours, the next their hrT2, the last an hrT2 to be segmented.

    Args:
        folder: of the download, however deeply nested.
        contrasts: what the descriptions of ceT1 and of hrT2 series hold; capitals do not matter.
        shares: of the patients whose hrT2 is a target, and of those for validation.
        same_patients: patients give both their ceT1 and their hrT2, but for those for validation.

    Returns:
        The scans, and what was left out and why. Contours of hrT2 come along, for evaluation.

    Raises:
        InputError: if the folder holds no patient, or the shares leave no source.
    """
    if min(shares) < 0 or sum(shares) >= 1:
        raise InputError(
            f"--target and --validation are {shares[0]:g} and {shares[1]:g}. Give two shares whose sum is below 1."
        )
    patients, left_out = _patients(folder)
    if not patients:
        raise InputError(f"{folder}: holds no MR series in DICOM. Name the folder with the patients of VS-SEG.")
    names = sorted(patients, key=natural)
    last, middle = round(shares[1] * len(names)), round(shares[0] * len(names))
    validation = names[len(names) - last :]
    target = names[len(names) - last - middle : len(names) - last]
    entries: list[Entry] = []
    for name in names:
        first = "validation" if name in validation else "training_target" if name in target else "training_source"
        splits = ["training_source", "training_target"] if same_patients and first != "validation" else [first]
        for split in splits:
            contrast = contrasts[0] if split == "training_source" else contrasts[1]
            try:
                entries.append(_entry(name, patients[name], split, contrast))
            except InputError as error:
                left_out.append((f"{folder / name}", str(error)))
    return entries, left_out


def _entry(name: str, patient: _Patient, split: str, contrast: str) -> Entry:
    wanted = [uid for uid, (_, text) in patient.series.items() if contrast.lower() in text.lower()]
    if len(wanted) != 1:
        texts = ", ".join(sorted(text for _, text in patient.series.values()))
        cure = "Give --ceT1 or --hrT2 a text that is in one of them only"
        raise InputError(f"has {len(wanted)} series with {contrast!r} in their description ({texts}). {cure}.")
    contours = patient.contours.get(wanted[0], [])
    if split == "training_source" and not contours:
        raise InputError("has no structure set of its ceT1. Download RTSTRUCT too.")
    if len(contours) > 1:
        raise InputError(
            f"has {len(contours)} structure sets of one series. Keep one of {', '.join(map(str, contours))}."
        )
    return Entry(name, split, patient.series[wanted[0]][0], contours[0] if contours else None, "ldn")


def _patients(folder: Path) -> tuple[dict[str, _Patient], list[tuple[str, str]]]:
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder. Name the folder with the patients of VS-SEG.")
    pydicom = needed("pydicom", folder)
    patients: dict[str, _Patient] = {}
    left_out = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for path in (Path(parent, file) for file in sorted(files) if not file.startswith(".")):
            try:
                if not pydicom.misc.is_dicom(path):
                    continue
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            except Exception as error:
                left_out.append((str(path), f"cannot be read as DICOM ({error}); copy or export it again"))
                continue
            patient = patients.setdefault(str(header.get("PatientID") or Path(parent).name), _Patient())
            if header.get("Modality") == "MR":
                uid = str(header.get("SeriesInstanceUID"))
                patient.series.setdefault(uid, (Path(parent), str(header.get("SeriesDescription") or "")))
            elif header.get("Modality") == "RTSTRUCT":
                patient.contours.setdefault(referenced_series(header), []).append(path)
    return {name: patient for name, patient in patients.items() if patient.series}, left_out
