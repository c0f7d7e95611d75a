"""What people have becomes the layout that the bundles read, at the right place, and nothing of theirs is changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from scipy.spatial.transform import Rotation

from plugins.data import crossmoda_datalist, heldout_labels, scan_datalist, segmentation_datalist
from plugins.data.layout import Entry, Rules, write_layout
from plugins.data.prepare import main
from plugins.data.rtstruct import draw_labels
from plugins.errors import InputError
from plugins.files import read_json, write_json

from ..dicom_series import write_series

SHAPE, SPACING = (40, 36, 14), (0.7, 0.6, 1.5)
VS, COCHLEA = ((14.3, 17.6), (5.2, 4.1), (3, 8)), ((28.4, 12.2), (2.3, 3.1), (6, 8))  # centre, radii, slices
SPLITS = ("training_source", "training_target", "validation")


def affine_of(angles: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag([-1, -1, 1]) * SPACING
    affine[:3, 3] = (31.5, -12.25, 40.75)
    return affine


AXIAL = affine_of()
OBLIQUE = affine_of((12, -9, 21))


def scan(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 900, SHAPE).astype(np.uint16)


def nifti(path: Path, voxels: np.ndarray, affine: np.ndarray = AXIAL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def label(values: tuple[int, ...]) -> np.ndarray:
    found = np.zeros(SHAPE, np.uint8)
    for index, value in enumerate(values):
        found[5 + 6 * index : 9 + 6 * index, 10:14, 4:7] = value
    return found


def ellipse(structure, height: float, affine: np.ndarray) -> np.ndarray:
    """Points in LPS mm of a contour in the plane of a slice."""
    (x, y), (a, b), _ = structure
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    points = np.stack([x + a * np.cos(angle), y + b * np.sin(angle), np.full(90, height)], axis=1)
    return nib.affines.apply_affine(affine, points) * (-1, -1, 1)


def write_contours(path: Path, structures: dict[str, list[np.ndarray]], patient: str = "1", series: str = "") -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    content.SOPClassUID, content.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    content.Modality, content.PatientID = "RTSTRUCT", patient
    frame, study, of = Dataset(), Dataset(), Dataset()
    of.SeriesInstanceUID = series
    study.RTReferencedSeriesSequence = [of]
    frame.RTReferencedStudySequence = [study]
    content.ReferencedFrameOfReferenceSequence = [frame]
    content.StructureSetROISequence, content.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber = number, name, number
        drawn.ContourSequence = []
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourData = [f"{value:.5f}" for value in points.ravel()]
            drawn.ContourSequence.append(contour)
        content.StructureSetROISequence.append(roi)
        content.ROIContourSequence.append(drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    content.save_as(path)
    return path


def drawn(affine: np.ndarray, shift: float = 0, names: tuple[str, str] = ("TV", "cochlea")) -> dict[str, list]:
    return {
        name: [ellipse(structure, height + shift, affine) for height in range(*structure[2])]
        for name, structure in zip(names, (VS, COCHLEA), strict=True)
    }


def write_patient(folder: Path, name: str, affine: np.ndarray, structures: dict | None = None) -> None:
    for contrast in ("t1_mpr", "t2_ci3d"):
        series = write_series(folder / name / "study" / contrast, scan(), affine)
        uid = generate_uid()
        for path in series.iterdir():
            slice_ = pydicom.dcmread(path)
            slice_.PatientID, slice_.SeriesDescription, slice_.SeriesInstanceUID = name, contrast, uid
            slice_.save_as(path)
        contours = drawn(affine) if structures is None else structures
        write_contours(folder / name / "study" / f"rt_{contrast}" / "1-1.dcm", contours, name, uid)


def state(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def centre_mm(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return nib.affines.apply_affine(affine, np.argwhere(voxels).mean(axis=0))


@pytest.fixture
def release_2023(tmp_path: Path) -> Path:
    root = tmp_path / "with space" / "crossmoda"
    source = root / "crossmoda23_training" / "TrainingSource"
    for index, site in enumerate(("etz", "ldn", "ukm")):
        nifti(source / f"crossmoda2023_{site}_1_ceT1.nii.gz", scan(index))
        nifti(source / f"crossmoda2023_{site}_1_Label.nii.gz", label((1, 2, 3)) * 0.9999999997)
        nifti(root / "crossmoda23_training" / "TrainingTarget" / f"crossmoda2023_{site}_9_T2.nii.gz", scan(index + 3))
        nifti(root / "crossmoda23_validation" / f"crossmoda2023_{site}_99_T2.nii.gz", scan(index + 6))
    return root


def test_the_release_of_2023_is_merged_and_linked(release_2023, tmp_path, capsys):
    before = state(release_2023)
    assert main(["crossmoda", str(release_2023), str(tmp_path / "data"), "--keep_labels"]) == 0
    assert state(release_2023) == before
    for split in SPLITS:
        items = crossmoda_datalist(tmp_path / "data", split)
        assert [item["site"] for item in items] == ["etz", "ldn", "ukm"]
        assert all(Path(item["image"]).is_symlink() for item in items)
    for item in crossmoda_datalist(tmp_path / "data", "training_source"):
        merged = nib.load(item["label"])
        assert np.array_equal(merged.dataobj, label((1, 1, 2)))
        assert np.array_equal(merged.affine, nib.load(item["image"]).affine)
        kept = tmp_path / "data" / "labels_as_released" / f"{item['case']}_Label.nii.gz"
        assert np.array_equal(np.rint(nib.load(kept).dataobj), label((1, 2, 3)))
    summary = read_json(tmp_path / "data" / "summary.json")
    voxel = np.prod(SPACING) / 1000
    assert summary["splits"]["training_source"]["sites"] == {"etz": 1, "ldn": 1, "ukm": 1}
    assert summary["splits"]["training_source"]["ml"]["VS"]["median"] == pytest.approx(96 * voxel, abs=1e-4)
    assert summary["splits"]["training_source"]["spacing_mm"]["smallest"] == pytest.approx(SPACING, abs=1e-3)
    assert "training_source: 3 scans, 3 with labels (etz 1, ldn 1, ukm 1)" in capsys.readouterr().out


def test_the_release_of_2023_as_unpacked_is_never_trained_on(release_2023):
    for read in (
        lambda: crossmoda_datalist(release_2023, "training_source"),
        lambda: crossmoda_datalist(release_2023, "training_target"),
        lambda: scan_datalist(release_2023 / "crossmoda23_training" / "TrainingSource", "ceT1"),
        lambda: segmentation_datalist(None, release_2023 / "crossmoda23_training" / "TrainingSource", "."),
    ):
        with pytest.raises(InputError, match=r"2023.*plugins\.data\.prepare crossmoda"):
            read()


@pytest.mark.parametrize("names", [("source_training", "target_training"), ("training_source", "training_target")])
def test_older_releases_keep_their_labels(tmp_path, names):
    source = tmp_path / "in" / names[0]
    nifti(source / "crossmoda_1_ceT1.nii.gz", scan())
    nifti(source / "crossmoda_1_Label.nii.gz", label((1, 2)))
    nifti(tmp_path / "in" / names[1] / "crossmoda_106_hrT2.nii.gz", scan(1))
    assert main(["crossmoda", str(tmp_path / "in"), str(tmp_path / "data")]) == 0
    (item,) = crossmoda_datalist(tmp_path / "data", "training_source")
    assert Path(item["label"]).resolve() == source / "crossmoda_1_Label.nii.gz"
    assert read_json(tmp_path / "data" / "summary.json")["left_out"][0]["file"] == "validation"


@pytest.mark.parametrize("affine", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_a_study_with_contours_becomes_scans_and_labels_at_the_right_place(tmp_path, affine):
    for number in range(1, 8):
        write_patient(tmp_path / "in", f"VS-SEG-{number:03d}", affine, {**drawn(affine), "*Skull": []})
    before = state(tmp_path / "in")
    assert main(["vs-seg", str(tmp_path / "in"), str(tmp_path / "data")]) == 0
    assert state(tmp_path / "in") == before
    found = {split: crossmoda_datalist(tmp_path / "data", split) for split in SPLITS}
    numbers = {split: [int(item["case"][-3:]) for item in items] for split, items in found.items()}
    assert numbers == {"training_source": [1, 2, 3], "training_target": [4, 5, 6], "validation": [7]}
    labels = [(item["image"], item["label"]) for item in found["training_source"]]
    labels += [
        (item["image"], heldout_labels(tmp_path / "data", split)[item["case"]])
        for split in SPLITS[1:]
        for item in found[split]
    ]
    for image, path in labels:
        scan_, made = nib.load(image), nib.load(path)
        assert scan_.shape == made.shape == SHAPE
        assert np.allclose(scan_.affine, made.affine, atol=1e-6)
        assert np.allclose(scan_.affine, affine, atol=1e-3)
        for value, structure in ((1, VS), (2, COCHLEA)):
            contours = np.concatenate([ellipse(structure, z, affine) for z in range(*structure[2])]) * (-1, -1, 1)
            off = np.linalg.inv(affine[:3, :3]) @ (centre_mm(made.get_fdata() == value, made.affine) - contours.mean(0))
            assert np.abs(off).max() < 0.5
            area = np.pi * np.prod(structure[1]) * (structure[2][1] - structure[2][0])
            assert np.count_nonzero(made.get_fdata() == value) == pytest.approx(area, rel=0.1)
    assert read_json(tmp_path / "data" / "summary.json")["unknown_structures"] == {"*Skull": 7}


def test_the_same_patient_is_in_source_and_target_only_if_asked(tmp_path):
    for number in range(1, 4):
        write_patient(tmp_path / "in", f"VS-SEG-{number:03d}", AXIAL)
    main(["vs-seg", str(tmp_path / "in"), str(tmp_path / "apart"), "--target", "0.5", "--validation", "0"])
    main(["vs-seg", str(tmp_path / "in"), str(tmp_path / "both"), "--same_patients", "--validation", "0"])
    cases = {
        (folder, split): {item["case"] for item in crossmoda_datalist(tmp_path / folder, split)}
        for folder in ("apart", "both")
        for split in SPLITS[:2]
    }
    assert not cases["apart", "training_source"] & cases["apart", "training_target"]
    assert cases["both", "training_source"] == cases["both", "training_target"]


@pytest.mark.parametrize("tumour", ["tv", "TV", "AN", "vs"])
def test_contours_go_by_many_names(tmp_path, tumour):
    path = write_contours(tmp_path / "rt.dcm", drawn(AXIAL, names=(tumour, "Cochlea_c")) | {"Brainstem": []})
    labels, unknown = draw_labels(path, SHAPE, AXIAL)
    assert set(np.unique(labels)) == {0, 1, 2}
    assert unknown == ["Brainstem"]


def test_names_of_contours_can_be_given(tmp_path):
    path = write_contours(tmp_path / "rt.dcm", drawn(AXIAL, names=("tumour", "left")))
    labels, _ = draw_labels(path, SHAPE, AXIAL, {1: ("Tumour",), 2: ("left", "right")})
    assert set(np.unique(labels)) == {0, 1, 2}


def test_a_contour_within_another_is_a_hole(tmp_path):
    outer, inner = (VS[0], (8, 8), (3, 4)), (VS[0], (3, 3), (3, 4))
    path = write_contours(tmp_path / "rt.dcm", {"TV": [ellipse(outer, 3, AXIAL), ellipse(inner, 3, AXIAL)]})
    labels, _ = draw_labels(path, SHAPE, AXIAL)
    assert labels[14, 17, 3] == 0
    assert labels.sum() == pytest.approx(np.pi * (64 - 9), rel=0.1)


def disc(centre: tuple[float, float], radius: float, height: int = 3) -> np.ndarray:
    return ellipse((centre, (radius, radius), None), height, AXIAL)


def area(path: Path, structures: dict[str, list]) -> np.ndarray:
    """The mask of the slice that :func:`disc` draws on."""
    return draw_labels(write_contours(path, structures), SHAPE, AXIAL)[0][:, :, 3] > 0


@pytest.mark.parametrize("again", [lambda points: points, lambda points: np.roll(points[::-1], 7, axis=0)])
def test_a_contour_that_is_drawn_twice_counts_once(tmp_path, again):
    once = disc((14, 17), 6)
    alone = area(tmp_path / "a.dcm", {"TV": [once]})
    assert np.array_equal(area(tmp_path / "b.dcm", {"TV": [once, again(once)]}), alone)
    assert np.array_equal(area(tmp_path / "c.dcm", {"TV": [once, again(once), once]}), alone)


def test_contours_that_overlap_are_united(tmp_path):
    first, second = disc((14, 17), 6), disc((18, 15), 5)
    both = area(tmp_path / "a.dcm", {"TV": [first]}) | area(tmp_path / "b.dcm", {"TV": [second]})
    assert np.array_equal(area(tmp_path / "c.dcm", {"TV": [first, second]}), both)
    hole = disc((15.5, 16.5), 2)  # within both
    without = both & ~area(tmp_path / "d.dcm", {"TV": [hole]})
    assert np.array_equal(area(tmp_path / "e.dcm", {"TV": [hole, first, second]}), without)


def test_an_island_in_a_hole_belongs_to_the_structure(tmp_path):
    outer, hole, island, beside = disc((16, 17), 12), disc((14, 17), 8), disc((12, 17), 2), disc((30, 17), 1)
    expected = area(tmp_path / "a.dcm", {"TV": [outer]}) & ~area(tmp_path / "b.dcm", {"TV": [hole]})
    expected |= area(tmp_path / "c.dcm", {"TV": [island]}) | area(tmp_path / "d.dcm", {"TV": [beside]})
    for order in ([outer, hole, island, beside], [island, beside, hole, outer], [hole, island, outer, beside]):
        assert np.array_equal(area(tmp_path / "e.dcm", {"TV": order}), expected)


@pytest.mark.parametrize("second", [disc((14, 17), 6), disc((14, 17), 3), disc((18, 15), 5)])
def test_structures_of_one_name_are_united(tmp_path, second):
    """Also where they are equal, or one lies within the other."""
    first = disc((14, 17), 6)
    both = area(tmp_path / "a.dcm", {"TV": [first]}) | area(tmp_path / "b.dcm", {"TV": [second]})
    path = write_contours(tmp_path / "c.dcm", {"TV": [first], "tv2": [second]})
    content = pydicom.dcmread(path)
    content.StructureSetROISequence[1].ROIName = "TV"
    content.save_as(path)
    labels, unknown = draw_labels(path, SHAPE, AXIAL)
    assert np.array_equal(labels[:, :, 3] > 0, both)
    assert unknown == []


@pytest.mark.parametrize("skipped", [[5], [4, 5]])
def test_slices_that_a_structure_skips_stay_empty_and_are_named(tmp_path, caplog, skipped):
    contours = drawn(AXIAL)
    contours["TV"] = [each for z, each in zip(range(3, 8), contours["TV"], strict=True) if z not in skipped]
    path = write_contours(tmp_path / "rt.dcm", contours)
    labels, _ = draw_labels(path, SHAPE, AXIAL)
    assert np.flatnonzero((labels == 1).any((0, 1))).tolist() == [z for z in range(3, 8) if z not in skipped]
    (record,) = caplog.records
    told = f"TV has no contour on some slices between others ({', '.join(map(str, skipped))}, counted from 0)"
    assert record.getMessage() == f"{path}: {told}. Draw what is missing."


@pytest.mark.parametrize(
    ("shift", "fault"), [(0.4, "do not lie in the slices"), (-0.4, "do not lie in the slices"), (9, "beyond the scan")]
)
def test_contours_of_another_scan_are_refused(tmp_path, shift, fault):
    with pytest.raises(InputError, match=fault):
        draw_labels(write_contours(tmp_path / "rt.dcm", drawn(AXIAL, shift)), SHAPE, AXIAL)


def drawn_every(distance: float) -> dict[str, list]:
    """A tumour over most of the scan, whose contours are so many slices apart."""
    return {"TV": [ellipse(VS, height, AXIAL) for height in np.arange(0, SHAPE[2] - 2, distance)]}


@pytest.mark.parametrize("distance", [0.25, 0.4, 0.5, 0.6, 2 / 3, 0.75, 0.8, 0.9, 1.1, 1.25, 4 / 3, 1.5, 1.75, 2, 3])
def test_contours_of_a_scan_with_other_slices_are_refused(tmp_path, distance):
    with pytest.raises(InputError, match=r"do not lie in the slices|slices of the scan apart"):
        draw_labels(write_contours(tmp_path / "rt.dcm", drawn_every(distance)), SHAPE, AXIAL)


@pytest.mark.parametrize("distance", [0.99, 0.999, 1, 1.001, 1.01])
def test_contours_on_slices_but_for_rounding_fill_every_slice(tmp_path, distance):
    contours = drawn_every(distance)
    labels, _ = draw_labels(write_contours(tmp_path / "rt.dcm", contours), SHAPE, AXIAL)
    assert np.array_equal(np.flatnonzero(labels.any((0, 1))), np.arange(len(contours["TV"])))


def test_two_structures_of_one_slice_each_may_be_slices_apart(tmp_path):
    both = {"cochlea": [ellipse(COCHLEA, height, AXIAL) for height in (3, 9)]}
    labels, _ = draw_labels(write_contours(tmp_path / "rt.dcm", both), SHAPE, AXIAL)
    assert np.flatnonzero(labels.any((0, 1))).tolist() == [3, 9]


@pytest.mark.parametrize("shift", [(-12, 0), (14, 0), (0, -16), (0, 17)])
def test_contours_that_reach_beyond_the_scan_are_refused(tmp_path, shift):
    moved = AXIAL.copy()
    moved[:3, 3] += AXIAL[:3, :2] @ shift
    with pytest.raises(InputError, match="beyond the scan"):
        draw_labels(write_contours(tmp_path / "rt.dcm", drawn(moved)), SHAPE, AXIAL)


def test_contours_that_are_not_finite_are_refused(tmp_path):
    points = np.full((5, 3), np.inf)
    with pytest.raises(InputError, match="not finite"):
        draw_labels(write_contours(tmp_path / "rt.dcm", {"TV": [points]}), SHAPE, AXIAL)


def test_a_patient_without_contours_or_with_a_broken_file_is_left_out_and_named(tmp_path, capsys):
    for number in range(1, 5):
        write_patient(tmp_path / "in", f"VS-SEG-{number:03d}", AXIAL)
    (tmp_path / "in" / "VS-SEG-001" / "study" / "rt_t1_mpr" / "1-1.dcm").write_bytes(
        b"\0" * 128 + b"DICM" + b"\xff" * 99
    )
    series = tmp_path / "in" / "VS-SEG-003" / "study" / "t2_ci3d"
    next(path for path in series.iterdir() if pydicom.dcmread(path).InstanceNumber == 7).unlink()
    extra = ["--target", "0.5", "--validation", "0"]
    assert main(["vs-seg", str(tmp_path / "in"), str(tmp_path / "data"), *extra]) == 1
    assert [item["case"] for item in crossmoda_datalist(tmp_path / "data", "training_source")] == ["VS-SEG-002"]
    assert [item["case"] for item in crossmoda_datalist(tmp_path / "data", "training_target")] == ["VS-SEG-004"]
    said = capsys.readouterr().out
    assert "VS-SEG-001: has no structure set of its ceT1" in said
    assert "VS-SEG-003/study/t2_ci3d: its 13 slices are 1.5 to 3 mm apart" in said


def test_contours_across_the_slices_are_refused(tmp_path):
    with pytest.raises(InputError, match="do not lie in the slices"):
        draw_labels(write_contours(tmp_path / "rt.dcm", drawn(OBLIQUE)), SHAPE, AXIAL)


@pytest.mark.parametrize("content", [b"", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\xff" * 99])
def test_a_broken_structure_set_is_named(tmp_path, content):
    path = tmp_path / "rt.dcm"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"rt\.dcm: .*RT Structure Set"):
        draw_labels(path, SHAPE, AXIAL)


def table(folder: Path, *lines: str, header: str = "file,what,case") -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join((header, *lines)) + "\n", encoding="utf-8-sig")
    return path


def test_a_table_says_what_is_what(tmp_path):
    write_series(tmp_path / "in" / "series", scan(), OBLIQUE)
    write_contours(tmp_path / "in" / "rt.dcm", drawn(OBLIQUE))
    nifti(tmp_path / "in" / "Ä b_hrT2.nii", scan(1))
    nifti(tmp_path / "in" / "tüv.nii.gz", scan(2)).rename(tmp_path / "in" / "content-addressed")
    nifti(tmp_path / "in" / "truth.nii.gz", label((1, 2)))
    rows = (
        "series,ceT1,p1",
        "rt.dcm,label,p1",
        "Ä b_hrT2.nii,hrT2,",
        "content-addressed,Validation,v",
        "truth.nii.gz,label,v",
    )
    assert main(["table", str(table(tmp_path / "in", *rows)), str(tmp_path / "data")]) == 0
    found = [crossmoda_datalist(tmp_path / "data", split)[0] for split in SPLITS]
    assert [item["case"] for item in found] == ["p1", "Ä b", "v"]
    assert [
        np.allclose(nib.load(item["image"]).affine, a, atol=1e-3)
        for item, a in zip(found, (OBLIQUE, AXIAL, AXIAL), strict=True)
    ]
    assert np.array_equal(nib.load(heldout_labels(tmp_path / "data", "validation")["v"]).dataobj, label((1, 2)))


@pytest.mark.parametrize(
    ("lines", "header", "fault"),
    [
        (["a_ceT1.nii.gz,T1"], "file,what", "line 2 says 'T1'"),
        (["gone.nii.gz,ceT1"], "file,what", "gone.nii.gz: does not exist, though line 2"),
        (["a_ceT1.nii.gz,ceT1", "b.nii.gz,label"], "file,what", "no scan in .* has its case b"),
        (["a_ceT1.nii.gz,ceT1", "a_ceT1.nii.gz,ceT1"], "file,what", "line 3 is a second ceT1 of case a"),
        (
            ["a_ceT1.nii.gz,ceT1", "b.nii.gz,hrT2,a"],
            "file,what,case",
            "case a is in training_source and training_target",
        ),
        (["a_ceT1.nii.gz,hrT2,../x"], "file,what,case", "no plain file name"),
        (["a_ceT1.nii.gz,ceT1"], "name,kind", "has no columns file and what"),
        ([], "", "has no columns file and what"),
        (["a_ceT1.nii.gz,ceT1,a"], "file,what,cases", "a column 'cases'. Call it case"),
        (["a_ceT1.nii.gz,ceT1"], "file,what", "no scan is left .*has no label"),
        (["a_ceT1.nii.gz,ceT1,a,b"], "file,what,case,Case", "more than one column 'case'. Keep the one"),
        (["a_ceT1.nii.gz,,ceT1"], "file,what,what", "more than one column 'what'. Keep the one"),
        (
            ["a_ceT1.nii.gz,ceT1,a", "a_ceT1.nii.gz,hrT2,b"],
            "file,what,case",
            r"is named by lines 2 and 3 of .*table\.csv",
        ),
        (["a_ceT1.nii.gz,ceT1,a", "b.nii.gz,label,a", "./b.nii.gz,hrT2,b"], "file,what,case", "named by lines 3 and 4"),
        (["b.nii.gz,hrT2,a", "b.nii.gz,hrT2,A"], "file,what,case", "named by lines 2 and 3"),
    ],
)
def test_a_faulty_table_is_refused_in_one_sentence(tmp_path, lines, header, fault):
    nifti(tmp_path / "a_ceT1.nii.gz", scan())
    nifti(tmp_path / "b.nii.gz", scan())
    before = state(tmp_path)
    with pytest.raises(InputError, match=fault):
        main(["table", str(table(tmp_path, *lines, header=header)), str(tmp_path / "data")])
    assert {*state(tmp_path)} - {*before} == {"table.csv"}
    assert before.items() <= state(tmp_path).items()


def entries_in(folder: Path) -> list[Entry]:
    image, drawn_ = nifti(folder / "a_ceT1.nii.gz", scan()), nifti(folder / "a_Label.nii.gz", label((1, 2)))
    target = nifti(folder / "b_hrT2.nii.gz", scan(1))
    return [Entry("a", "training_source", image, drawn_), Entry("b", "training_target", target)]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("break_it", "fault"),
    [
        (lambda folder: cut(folder / "c_ceT1.nii.gz"), "c_ceT1.nii.gz: cannot be read"),
        (lambda folder: nifti(folder / "c_ceT1.nii.gz", np.ones(SHAPE)), "c_ceT1.nii.gz: every voxel is 1"),
        (lambda folder: (folder / "c_ceT1.nii.gz").unlink(), "c_ceT1.nii.gz: does not exist"),
        (lambda folder: nifti(folder / "c_Label.nii.gz", label((1, 2, 3))), "c_Label.nii.gz: holds the label values 3"),
        (lambda folder: nifti(folder / "c_Label.nii.gz", label((1,))), "c_Label.nii.gz: shows no cochlea"),
        (
            lambda folder: nifti(folder / "c_Label.nii.gz", label((1, 2)), OBLIQUE),
            "c_Label.nii.gz: its affine places it",
        ),
    ],
)
def test_a_bad_scan_is_left_out_and_named_and_the_others_are_done(tmp_path, break_it, fault):
    entries = entries_in(tmp_path)
    entries.append(Entry("c", "training_source", *(tmp_path / f"c_{kind}.nii.gz" for kind in ("ceT1", "Label"))))
    nifti(entries[2].image, scan(2))
    nifti(entries[2].label, label((1, 2)))
    break_it(tmp_path)
    summary = write_layout(tmp_path / "data", entries, Rules())
    (named,) = summary["faults"]
    assert fault in named["why"]
    assert ".part-" not in named["why"]
    assert [item["case"] for item in crossmoda_datalist(tmp_path / "data", "training_source")] == ["a"]
    assert [item["case"] for item in crossmoda_datalist(tmp_path / "data", "training_target")] == ["b"]


def test_an_incomplete_label_is_taken_if_asked(tmp_path):
    entries = entries_in(tmp_path)
    nifti(entries[0].label, label((1,)))
    assert write_layout(tmp_path / "data", entries, Rules(need_all=False))["splits"]["training_source"]["scans"] == 1


def test_a_stopped_preparation_goes_on(tmp_path, monkeypatch):
    entries = entries_in(tmp_path)
    made = []

    def stop_at_the_second(item, *_):
        made.append(Path(item["image"]).name)
        if "b_hrT2" in made[-1]:
            raise KeyboardInterrupt

    monkeypatch.setattr("plugins.data.layout.check_scan", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_layout(tmp_path / "data", entries, Rules())
    assert not (tmp_path / "data").exists()
    made.clear()
    monkeypatch.setattr("plugins.data.layout.check_scan", lambda item, *_: made.append(Path(item["image"]).name))
    write_layout(tmp_path / "data", entries, Rules())
    assert set(made) == {"b_hrT2.nii.gz"}
    assert len(crossmoda_datalist(tmp_path / "data", "training_source")) == 1
    assert not [path for path in tmp_path.rglob("*") if ".part-" in path.name or path.name == ".lock"]


def test_a_table_may_name_an_hrt2_as_target_and_for_validation(tmp_path):
    nifti(tmp_path / "b_hrT2.nii.gz", scan())
    nifti(tmp_path / "b_Label.nii.gz", (scan() > 450).astype(np.uint8))
    lines = ("b_hrT2.nii.gz,hrT2", "b_hrT2.nii.gz,validation", "b_Label.nii.gz,label")
    path = str(table(tmp_path, *lines, header="file,what"))
    with pytest.raises(InputError, match="case b is in training_target and validation"):
        main(["table", path, str(tmp_path / "data")])
    assert main(["table", path, str(tmp_path / "data"), "--same_patients"]) == 0
    assert [*heldout_labels(tmp_path / "data", "training_target")] == ["b"]
    assert [*heldout_labels(tmp_path / "data", "validation")] == ["b"]  # or nothing would be measured


@pytest.fixture
def checked(monkeypatch) -> tuple[list[str], set[str]]:
    """The scans that a preparation checks, and those to refuse: as long as an extra is missing, say."""
    made: list[str] = []
    refused: set[str] = set()

    def check(item, *_):
        made.append(Path(item["image"]).name[0])
        if made[-1] in refused:
            raise InputError("an extra is missing. Install it.")

    monkeypatch.setattr("plugins.data.layout.check_scan", check)
    return made, refused


def test_a_scan_that_could_not_be_used_is_tried_again_by_the_same_command(tmp_path, checked):
    made, refused = checked
    entries = entries_in(tmp_path / "in")
    refused.add("b")
    first = write_layout(tmp_path / "data", entries, Rules())
    assert [fault["why"] for fault in first["faults"]] == ["an extra is missing. Install it."]
    made.clear()
    assert write_layout(tmp_path / "data", entries, Rules()) == first
    refused.clear()
    second = write_layout(tmp_path / "data", entries, Rules())
    assert made == ["b", "b"]
    assert second["faults"] == []
    assert second == read_json(tmp_path / "data" / "summary.json")
    assert [item["case"] for item in crossmoda_datalist(tmp_path / "data", "training_target")] == ["b"]
    before = state(tmp_path)
    assert write_layout(tmp_path / "data", entries, Rules()) == second
    assert state(tmp_path) == before
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"crossmoda2022_training", "summary.json"}


def test_a_stopped_preparation_tries_again_what_could_not_be_used(tmp_path, checked, monkeypatch):
    made, refused = checked
    entries = entries_in(tmp_path / "in")
    refused.add("b")
    with monkeypatch.context() as patch:
        patch.setattr("plugins.data.layout._finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_layout(tmp_path / "data", entries, Rules())
    made.clear()
    refused.clear()
    assert write_layout(tmp_path / "data", entries, Rules())["faults"] == []
    assert made == ["b"]


@pytest.mark.parametrize("copy", [False, True])
def test_files_that_are_gone_from_a_prepared_folder_are_made_again(tmp_path, checked, copy):
    made, _ = checked
    entries, rules = entries_in(tmp_path / "in"), Rules(copy=copy, merge={1: 1, 2: 2}, keep_labels=True)
    first = write_layout(tmp_path / "data", entries, rules)
    whole = state(tmp_path / "data")
    files = {"a_ceT1": {"a"}, "b_hrT2": {"b"}, "source/a_Label": {"a"}, "released/a_Label": {"a"}, "_": {"a", "b"}}
    for name, again in files.items():
        made.clear()
        for path in [path for path in (tmp_path / "data").rglob("*.nii.gz") if name in str(path)]:
            path.unlink()
        assert write_layout(tmp_path / "data", entries, rules) == first
        assert {*made} == again
        assert state(tmp_path / "data") == whole


def test_what_is_there_is_kept_and_never_replaced(tmp_path):
    entries = entries_in(tmp_path / "in")
    first = write_layout(tmp_path / "data", entries, Rules())
    before = state(tmp_path)
    assert write_layout(tmp_path / "data", entries, Rules()) == first
    for other in (entries[:1], [*entries, Entry("d", "validation", entries[1].image)]):
        with pytest.raises(InputError, match="made from other files"):
            write_layout(tmp_path / "data", other, Rules())
    nifti(tmp_path / "mine" / "notes.nii.gz", scan())
    with pytest.raises(InputError, match="holds something else"):
        write_layout(tmp_path / "mine", entries, Rules())
    assert before.items() <= state(tmp_path).items()


def test_scans_are_copied_where_there_are_no_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    write_layout(tmp_path / "data", entries_in(tmp_path / "in"), Rules())
    (item,) = crossmoda_datalist(tmp_path / "data", "training_source")
    assert Path(item["image"]).read_bytes() == (tmp_path / "in" / "a_ceT1.nii.gz").read_bytes()


def test_copies_are_files_of_their_own(tmp_path):
    write_layout(tmp_path / "data", entries_in(tmp_path / "in"), Rules(copy=True))
    (item,) = crossmoda_datalist(tmp_path / "data", "training_source")
    assert not Path(item["image"]).is_symlink()
    assert Path(item["image"]).read_bytes() == (tmp_path / "in" / "a_ceT1.nii.gz").read_bytes()


def test_one_that_was_stopped_with_other_input_is_begun_anew(tmp_path):
    entries = entries_in(tmp_path / "in")
    part = tmp_path / ".part-data"
    nifti(part / "crossmoda2022_training" / "training_source" / "old_ceT1.nii.gz", scan())
    with pytest.raises(InputError, match=r"holds something else\. Rename it"):
        write_layout(tmp_path / "data", entries, Rules())
    write_json(part / "made_from.json", {"version": "0", "files": "other"})
    (part / ".part-1-2-summary.json").touch()
    write_layout(tmp_path / "data", entries, Rules())
    assert [item["case"] for item in crossmoda_datalist(tmp_path / "data", "training_source")] == ["a"]
    assert not [path for path in tmp_path.rglob("*") if ".part-" in path.name]


def test_a_damaged_summary_is_named(tmp_path):
    entries = entries_in(tmp_path / "in")
    write_layout(tmp_path / "data", entries, Rules())
    (tmp_path / "data" / "summary.json").write_text("[")
    with pytest.raises(InputError, match=r"summary\.json is damaged"):
        write_layout(tmp_path / "data", entries, Rules())


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/data: cannot be made"):
        write_layout(tmp_path / "file" / "data", entries_in(tmp_path / "in"), Rules())
