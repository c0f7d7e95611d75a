import sys
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from pydicom.uid import RTStructureSetStorage

from plugins.data import check_scan, inference_datalist, scan_datalist
from plugins.data.dicom import headers, read_series, write_segmentation
from plugins.errors import InputError
from plugins.segmentation import SaveLabelMapd, SaveProbabilitiesd, ScansToSegment

from ..dicom_series import slices, write_series

INFERENCE = Path(__file__).parents[2] / "bundles" / "vs_cochlea_seg" / "configs" / "inference.json"
SHAPE = (14, 12, 6)
OBLIQUE = np.array([[-0.8, 0, 0, 30], [0, -0.88, -0.27, 20], [0, -0.24, 1.48, -10], [0, 0, 0, 1]], dtype=float)
FEET_FIRST = np.array([[-0.8, 0, 0, 30], [0, -0.9, 0, 20], [0, 0, -1.5, 40], [0, 0, 0, 1]], dtype=float)
SAGITTAL = np.array([[0, 0, 1.5, -4], [-0.8, 0, 0, 30], [0, -0.9, 0, 20], [0, 0, 0, 1]], dtype=float)


def voxels():
    return np.random.default_rng(1).integers(1, 900, SHAPE).astype(np.uint16)


def turned(affine):
    """The oblique affine made exactly orthogonal, as scanners' are."""
    u, _, v = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    result = affine.copy()
    result[:3, :3] = (u @ v) * np.linalg.norm(affine[:3, :3], axis=0)
    return result


def world_of(values, affine):
    """Every voxel's place in mm and its value, in an order that does not depend on the storage."""
    index = np.argwhere(np.ones(values.shape, dtype=bool))
    places = np.round(nib.affines.apply_affine(affine, index), 2) + 0.0
    order = np.lexsort(places.T)
    return places[order], values[tuple(index[order].T)]


@pytest.mark.parametrize("affine", [turned(OBLIQUE), FEET_FIRST, SAGITTAL], ids=["oblique", "feet first", "sagittal"])
def test_a_series_is_read_where_it_lies(tmp_path: Path, affine):
    read, found = read_series(write_series(tmp_path / "s", voxels(), affine))
    for ours, expected in zip(world_of(read, found), world_of(voxels(), affine), strict=True):
        np.testing.assert_allclose(ours, expected, atol=0.011)


@pytest.mark.parametrize("affine", [turned(OBLIQUE), FEET_FIRST, SAGITTAL], ids=["oblique", "feet first", "sagittal"])
def test_a_segmentation_lies_on_its_series(tmp_path: Path, affine):
    folder = write_series(tmp_path / "s", voxels(), affine)
    _, found = read_series(folder)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[3:7, 2:5, 1:4], labels[9:11, 8, 4] = 1, 2
    write_segmentation(labels, found, folder, tmp_path / "seg.dcm")

    segmentation = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert pydicom.dcmread(tmp_path / "seg.dcm").Modality == "SEG"
    assert segmentation.segment_numbers == [1, 2]
    assert [segmentation.get_segment_description(n).segment_label for n in (1, 2)] == [
        "vestibular schwannoma",
        "cochlea",
    ]
    series = slices(folder)
    assert segmentation.FrameOfReferenceUID == series[0].FrameOfReferenceUID
    assert segmentation.StudyInstanceUID == series[0].StudyInstanceUID
    volume = segmentation.get_volume(combine_segments=True, rescale_fractional=False)
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    places, values = world_of(volume.array, lps_to_ras @ volume.affine)
    expected_places, expected = world_of(labels, found)
    for value in (1, 2):
        np.testing.assert_allclose(places[values == value], expected_places[expected == value], atol=0.011)


def test_an_anonymised_series_gets_a_segmentation(tmp_path: Path):
    folder = write_series(tmp_path / "s", voxels(), FEET_FIRST)
    for slice_ in slices(folder):
        for keyword in ("StudyID", "AccessionNumber", "PatientSex", "PatientBirthDate", "StudyDate"):
            delattr(slice_, keyword)
        slice_.save_as(slice_.filename)
    labels = np.ones(SHAPE, dtype=np.uint8)
    write_segmentation(labels, read_series(folder)[1], folder, tmp_path / "seg.dcm")
    assert highdicom.seg.segread(tmp_path / "seg.dcm").number_of_segments == 2


def test_results_beside_the_series_are_no_scans(tmp_path: Path):
    folder = write_series(tmp_path / "scans" / "p", voxels(), FEET_FIRST)
    affine = read_series(folder)[1]
    write_segmentation(np.ones(SHAPE, dtype=np.uint8), affine, folder, tmp_path / "scans" / "out" / "p_Label.dcm")
    nib.save(nib.Nifti1Image(np.ones(SHAPE, dtype=np.uint8), affine), tmp_path / "scans" / "p_Label.nii.gz")
    assert [item["case"] for item in scan_datalist(tmp_path / "scans", "hrT2")] == ["p"]
    nib.save(nib.Nifti1Image(voxels().astype(np.float32), affine), tmp_path / "scans" / "p_hrT2.nii.gz")
    with pytest.raises(InputError, match="p is a file and a DICOM series"):
        scan_datalist(tmp_path / "scans", "hrT2")


@pytest.fixture
def todo(tmp_path):
    """The series that are left to segment."""
    folder = write_series(tmp_path / "scans" / "p", voxels(), FEET_FIRST)
    (tmp_path / "model.pt").write_bytes(b"weights")

    def make(**wanted):
        items = [{"case": "p", "image": str(folder)}]
        return ScansToSegment(items, tmp_path / "out", tmp_path / "model.pt", dicom_seg=True, **wanted)

    return make


def segmented(todo):
    """The sentences of the saver, after it has written what is left to do."""
    saver = SaveLabelMapd("pred", todo.store.folder)
    for item in todo.items:
        values, affine = read_series(item["image"])
        image = MetaTensor(values[None], affine=torch.as_tensor(affine), meta={"filename_or_obj": item["image"]})
        saver({**item, "image": image, "pred": MetaTensor(torch.ones(1, *SHAPE), affine=image.affine)})
        chances = {"image": image, "chances": MetaTensor(torch.ones(3, *SHAPE) / 3, affine=image.affine)}
        SaveProbabilitiesd("chances", todo.store.folder)({**item, **chances})
    return [*saver.refused.values()]


def left(todo):
    return [item["case"] for item in todo.items]


def test_a_segmentation_that_we_did_not_write_is_never_replaced(tmp_path: Path, todo):
    ours = todo()
    file = tmp_path / "out" / "p_Label.dcm"
    file.write_bytes(b"drawn by hand")
    (sentence,) = segmented(ours)
    assert "p_Label.dcm: was not made by this program. Move it away" in sentence
    again = todo()
    assert left(again) == []
    with pytest.raises(InputError, match=r"1 of 1 scans were not segmented: .*p_Label\.dcm: was not made by this"):
        again.finish()
    assert file.read_bytes() == b"drawn by hand"


def test_what_belongs_to_an_older_label_map_does_not_stay_beside_a_new_one(tmp_path: Path, todo):
    assert segmented(todo(probabilities=True)) == []
    names = ("p_Label.dcm", "p_Probabilities.nii.gz")
    first = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    (tmp_path / "model.pt").write_bytes(b"other weights")
    newer = todo()
    (item,) = newer.items
    values, affine = read_series(item["image"])
    image = MetaTensor(values[None], affine=torch.as_tensor(affine), meta={"filename_or_obj": item["image"]})
    saver = SaveLabelMapd("pred", newer.store.folder, dicom_seg=False)
    saver({**item, "image": image, "pred": MetaTensor(torch.zeros(1, *SHAPE), affine=image.affine)})
    assert [name for name in names if (tmp_path / "out" / name).exists()] == []
    assert [*newer.store.records()] == ["p_Label.nii.gz"]
    assert segmented(todo(probabilities=True)) == []  # of the same as the label map, so nothing is removed
    assert [name for name in names if (tmp_path / "out" / name).exists()] == [*first]


def test_a_segmentation_that_could_not_be_made_is_made_by_the_next_run(tmp_path: Path, todo, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "highdicom", None)
        (sentence,) = segmented(todo())
    assert "Install the extra" in sentence
    assert (tmp_path / "out" / "p_Label.nii.gz").is_file()
    again = todo()
    assert left(again) == ["p"]
    assert segmented(again) == []
    assert pydicom.dcmread(tmp_path / "out" / "p_Label.dcm").Modality == "SEG"
    assert left(todo()) == []


@pytest.mark.parametrize("lost", ["p_Label.nii.gz", "p_Label.dcm", "p_Probabilities.nii.gz"])
def test_whatever_is_missing_of_a_scan_is_made_again(tmp_path: Path, todo, lost):
    segmented(todo(probabilities=True))
    assert left(todo(probabilities=True)) == []
    (tmp_path / "out" / lost).unlink()
    assert left(todo()) == ([] if "Probabilities" in lost else ["p"])
    again = todo(probabilities=True)
    assert left(again) == ["p"]
    segmented(again)
    assert (tmp_path / "out" / lost).is_file()
    assert left(todo(probabilities=True)) == []


@pytest.mark.parametrize("wanted", [True, False])
def test_the_bundle_says_what_it_wants_of_a_scan(tmp_path: Path, wanted):
    write_series(tmp_path / "scans" / "p", voxels(), FEET_FIRST)
    nib.save(nib.Nifti1Image(voxels().astype(np.float32), FEET_FIRST), tmp_path / "scans" / "q_hrT2.nii.gz")
    config = ConfigParser(ConfigParser.load_config_file(INFERENCE))
    config.update({"dataset_dir": str(tmp_path / "scans"), "output_dir": str(tmp_path / "out")})
    config.update({"save_probabilities": wanted, "save_dicom_seg": wanted})
    scans = config.get_parsed_content("scans")
    names = {item["case"]: [path.name for path in scans.outputs(item)] for item in scans.all}
    more = {"p": ["p_Label.dcm", "p_Probabilities.nii.gz"], "q": ["q_Probabilities.nii.gz"]}
    assert names == {case: [f"{case}_Label.nii.gz", *(more[case] if wanted else [])] for case in "pq"}


def test_an_empty_label_map_is_a_segmentation_too(tmp_path: Path):
    folder = write_series(tmp_path / "s", voxels(), FEET_FIRST)
    write_segmentation(np.zeros(SHAPE, dtype=np.uint8), read_series(folder)[1], folder, tmp_path / "seg.dcm")
    assert highdicom.seg.segread(tmp_path / "seg.dcm").pixel_array.max() == 0


def test_a_label_map_that_lies_elsewhere_is_an_error(tmp_path: Path):
    folder = write_series(tmp_path / "s", voxels(), FEET_FIRST)
    affine = read_series(folder)[1]
    affine[0, 3] += 5
    with pytest.raises(ValueError, match="a slice lies at"):
        write_segmentation(np.zeros(SHAPE, dtype=np.uint8), affine, folder, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_series_are_found_beside_files(tmp_path: Path):
    for name in ("patient_2", "patient_1"):
        write_series(tmp_path / "scans" / name, voxels(), FEET_FIRST)
    assert [item["case"] for item in scan_datalist(tmp_path / "scans", "hrT2")] == ["patient_1", "patient_2"]
    (alone,) = inference_datalist(None, tmp_path / "scans" / "patient_1", tmp_path)
    assert alone["case"] == "patient_1"
    nib.save(nib.Nifti1Image(voxels().astype(np.float32), FEET_FIRST), tmp_path / "scans" / "c_hrT2.nii.gz")
    assert [item["case"] for item in scan_datalist(tmp_path / "scans", "hrT2")] == ["c", "patient_1", "patient_2"]
    for item in scan_datalist(tmp_path / "scans"):
        check_scan(item)


def change(index, **values):
    def edit(folder):
        slice_ = slices(folder)[index]
        for key, value in values.items():
            setattr(slice_, key, value)
        slice_.save_as(slice_.filename)

    return edit


def remove(index):
    return lambda folder: Path(slices(folder)[index].filename).unlink()


def change_half(**values):
    def edit(folder):
        for index in range(0, 6, 2):
            change(index, **values)(folder)

    return edit


def without_preamble(*indices):
    """As some archives keep it: the data set alone, in little endian."""

    def edit(folder):
        for path in [Path(slices(folder)[index].filename) for index in indices]:
            path.write_bytes(path.read_bytes()[132:])

    return edit


def repeat(folder):
    slice_ = slices(folder)[2]
    slice_.save_as(folder / "again.dcm")


def last(edit):
    """A change of the file of the last slice, whose loss leaves an even series."""
    return lambda folder: edit(Path(slices(folder)[-1].filename))


def cut(length):
    return last(lambda path: path.write_bytes(path.read_bytes()[:length]))


def without(*keywords):
    def edit(path):
        slice_ = pydicom.dcmread(path)
        for keyword in keywords:
            delattr(slice_, keyword)
        slice_.save_as(path)

    return last(edit)


def dangle(path):
    path.unlink()
    path.symlink_to("nowhere")


def coloured(folder):
    for slice_ in slices(folder):
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PlanarConfiguration = 3, "RGB", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 8, 8, 7
        slice_.PixelData = bytes(slice_.Rows * slice_.Columns * 3)
        slice_.save_as(slice_.filename)


def renamed(pattern):
    """The names of archives without endings, and one slice that is no DICOM."""

    def edit(folder):
        for number, path in enumerate(sorted(folder.iterdir())):
            path.rename(folder / pattern.format(number))
        last(lambda path: path.write_text("version https://git-lfs"))(folder)

    return edit


SHIFTED = list(np.array([-1, -1, 1]) * (FEET_FIRST @ [0, 0, 2.4, 1])[:3])
FAULTS = {
    "a slice is missing": (remove(2), "Export the whole series"),
    "a slice is there twice": (repeat, "Export the whole series"),
    "two series in a folder": (change(0, SeriesInstanceUID="1.2.3"), "2 series"),
    "a slice of another size": (change(0, Rows=11), "2 heights"),
    "a scout": (change(0, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "not parallel"),
    "gantry tilt": (change(3, ImagePositionPatient=[30, 26, 35.5]), "shifted against one another"),
    "slices that do not belong together": (change(5, SliceThickness="2.5"), "only . of its 6 slices belong together"),
    "two echoes that take turns": (change_half(EchoTime="90", EchoNumbers=2), "2 echoes"),
    "two echoes without numbers": (change_half(EchoTime="90"), "several echo times"),
    "no pixel size": (change_half(PixelSpacing=None), "no PixelSpacing"),
    "an empty pixel size": (change_half(PixelSpacing=[]), "no PixelSpacing"),
    "a pixel size of zero": (change_half(PixelSpacing=[0, 0.5]), "no PixelSpacing"),
    "two pixel sizes": (change_half(PixelSpacing=[0.5, 0.5]), "several pixel sizes"),
    "slices a millimetre off": (change(2, ImagePositionPatient=SHIFTED), "Export the whole series"),
    "a slice without preamble": (without_preamble(1), "without its preamble"),
    "no slice with a preamble": (without_preamble(*range(6)), "without its preamble"),
    "a slice is cut off": (change(3, PixelData=b"\0" * 8), "is cut off"),
    "the last slice is empty": (cut(0), "is empty"),
    "the last slice is cut within its preamble": (cut(100), "is no DICOM, though it is named like a slice"),
    "the last slice is cut within its kind": (cut(181), "is cut off or no slice"),
    "the last slice is cut before its place": (cut(500), "lacks ImagePositionPatient, ImageOr"),
    "the last slice is cut within its place": (cut(850), "lacks ImagePositionPatient, ImageOr"),
    "the last slice is cut before its pixels": (cut(1100), "lacks PixelData"),
    "the last slice is cut within its pixels": (cut(1300), "is cut off, its pixels take 336 bytes"),
    "the last slice has no place": (without("ImagePositionPatient"), "as it lacks ImagePositionPatient. "),
    "the last slice has no pixels": (without("PixelData"), "as it lacks PixelData"),
    "the last slice is a link to nothing": (last(dangle), "is a link to a file that does not exist"),
    "the last slice is a text": (renamed("IM{:06}"), "is no DICOM, though it is named like a slice"),
    "the last slice is a text under a UID": (renamed("MR.1.2.{}"), "is no DICOM, though it is named like a slice"),
    "colours": (coloured, "holds colours"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_series_is_refused_in_one_sentence(tmp_path: Path, fault):
    edit, words = FAULTS[fault]
    folder = write_series(tmp_path / "s", voxels(), FEET_FIRST)
    edit(folder)
    with pytest.raises(InputError, match=words) as caught:
        check_scan({"image": str(folder)})
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_slice_may_lie_beside_the_slices(tmp_path: Path):
    folder = write_series(tmp_path / "s", voxels(), FEET_FIRST)
    contours = slices(folder)[0]
    write_segmentation(np.ones(SHAPE, dtype=np.uint8), read_series(folder)[1], folder, folder / "seg.dcm")
    contours.Modality, contours.file_meta.MediaStorageSOPClassUID = "RTSTRUCT", RTStructureSetStorage
    for keyword in ("PixelData", "ImagePositionPatient", "ImageOrientationPatient"):
        delattr(contours, keyword)
    contours.save_as(folder / "rt.dcm")
    for name in ("notes.txt", "README", "._0001.dcm", ".empty"):
        (folder / name).write_text("" if name == ".empty" else "no DICOM")
    read, _ = read_series(folder)
    assert sorted(read.ravel()) == sorted(voxels().ravel())


@pytest.mark.parametrize("first", range(SHAPE[2]))
def test_every_slice_has_its_own_scale(tmp_path: Path, first: int):
    """Whichever of them has a whole one."""
    folder = write_series(tmp_path / "s", voxels(), FEET_FIRST)
    scales = [2.0 if number == first else 1.37 for number in range(SHAPE[2])]
    for slice_, scale in zip(slices(folder), scales, strict=True):
        slice_.RescaleSlope, slice_.RescaleIntercept = scale, 0
        slice_.save_as(slice_.filename)
    read, affine = read_series(folder)
    for ours, expected in zip(world_of(read, affine), world_of(voxels() * scales, FEET_FIRST), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-3)


def test_a_folder_without_slices_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no DICOM")
    with pytest.raises(InputError, match="holds no DICOM slices"):
        headers(tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch):
    folder = write_series(tmp_path / "s", voxels(), FEET_FIRST)
    monkeypatch.setitem(__import__("sys").modules, "itk", None)
    with pytest.raises(InputError, match=r"itk is missing.*tanq-bundles\[dicom\]"):
        read_series(folder)
