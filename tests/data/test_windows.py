"""One physical window, in scans of any orientation: sizes that all differ, oblique and flipped affines."""

import logging
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from plugins.data import (
    Window,
    check_scan,
    crossmoda_datalist,
    read_windows,
    voxel_box,
    whole_scan,
    window_of_labels,
    write_crop,
    write_windowed_dataset,
)
from plugins.errors import InputError
from plugins.workflow.windows import crop_to_windows

SHAPE, SPACING = (31, 22, 17), (1.1, 0.9, 1.7)
OBLIQUE = np.array([[0.94, -0.30, 0.12], [0.32, 0.93, -0.15], [-0.07, 0.18, 0.98]])
OBLIQUE = np.linalg.svd(OBLIQUE)[0] @ np.linalg.svd(OBLIQUE)[2]  # the nearest rotation
DIRECTIONS = {
    "".join(["LR", "PA", "IS"][axis][sign > 0] for axis, sign in zip(order, signs, strict=True)): (
        np.eye(3)[:, order] * signs
    )
    for order, signs in zip(permutations(range(3)), [*product((1, -1), repeat=3)], strict=False)
} | {"oblique": OBLIQUE, "oblique LPS": OBLIQUE @ np.diag([-1, -1, 1])}
all_directions = pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)


def affine_of(direction, spacing=SPACING, origin=(-7, 11, 5)):
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = origin
    return affine


def scan(direction, shape=SHAPE, dtype=np.int16, seed=0):
    voxels = np.random.default_rng(seed).integers(1, 900, shape).astype(dtype)
    return nib.Nifti1Image(voxels, affine_of(direction))


@all_directions
def test_a_window_holds_the_voxels_whose_centres_lie_in_it(direction):
    """Voxel by voxel, in the frame of the scan: the world is turned back by the direction of the axes."""
    affine = affine_of(direction)
    window = Window(tuple(affine[:3, :3] @ [12.3, 9.6, 7.1] + affine[:3, 3]), (14.0, 9.0, 12.0))
    axes = nib.io_orientation(affine)[:, 0].astype(int)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    apart = np.abs((grid - [12.3, 9.6, 7.1]) * SPACING)
    expected = (apart <= np.array([14.0, 9.0, 12.0])[axes] / 2).all(-1)
    found = np.zeros(SHAPE, bool)
    found[voxel_box(window, SHAPE, affine)] = True
    assert np.array_equal(found, expected)
    assert 0 < found.sum() < found.size


def test_a_mirrored_scan_has_the_same_window():
    """Even where the edge of the window runs through centres of voxels."""
    affine = affine_of(np.eye(3), (1, 1, 1), (0, 0, 0))
    window = Window((10.0, 9.0, 8.0), (6.0, 8.0, 4.0))
    box = voxel_box(window, SHAPE, affine)
    assert [(edge.start, edge.stop) for edge in box] == [(7, 14), (5, 14), (6, 11)]
    mirrored = affine @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    first = voxel_box(window, SHAPE, mirrored)[0]
    assert (SHAPE[0] - first.stop, SHAPE[0] - first.start) == (7, 14)


@pytest.mark.parametrize(("centre", "first"), [(-100, (0, 1)), (100, (30, 31)), (0, (0, 4)), (30, (27, 31))])
def test_a_window_is_clipped_to_the_scan_and_never_empty(centre, first):
    affine = affine_of(np.eye(3), (1, 1, 1), (0, 0, 0))
    box = voxel_box(Window((centre, 8.0, 8.0), (6.0, 6.0, 6.0)), SHAPE, affine)
    assert (box[0].start, box[0].stop) == first


@all_directions
def test_the_whole_scan_is_a_window(direction):
    affine = affine_of(direction)
    window = whole_scan(SHAPE, affine)
    assert [(edge.start, edge.stop) for edge in voxel_box(window, SHAPE, affine)] == [(0, n) for n in SHAPE]
    assert window.found == "whole scan"
    assert sorted(window.size) == pytest.approx(sorted(np.multiply(SHAPE, SPACING)), abs=1e-3)


def labelled(*places, value=2):
    labels = np.zeros(SHAPE, np.uint8)
    for place in places:
        labels[place] = value
    return labels


@all_directions
def test_a_label_lies_in_the_middle_of_its_window(direction):
    affine = affine_of(direction)
    labels = labelled((8, 9, 7), (20, 12, 9))
    window = window_of_labels(labels, affine, (40, 40, 40), margin=2)
    assert window.centre == pytest.approx(affine[:3, :3] @ [14, 10.5, 8] + affine[:3, 3], abs=1e-3)
    assert window.size == (40, 40, 40)
    assert window.found == "label"


def test_the_cochleae_are_the_middle_as_long_as_all_else_fits():
    affine = affine_of(np.diag([-1, -1, 1]), (1, 1, 1))  # voxel axes are L, P, S
    labels = labelled((8, 9, 7), (20, 9, 7))
    labels[14, 12, 7] = 1
    window = window_of_labels(labels, affine, (20, 14, 8), margin=2)
    assert np.linalg.inv(affine) @ [*window.centre, 1] == pytest.approx([14, 9, 7, 1])
    labels[14, 16, 7] = 1  # 7.5 mm and a margin of 2 from the middle: half of 14 is 2.5 too few
    window = window_of_labels(labels, affine, (20, 14, 8), margin=2)
    assert np.linalg.inv(affine) @ [*window.centre, 1] == pytest.approx([14, 9 + 2.5, 7, 1])


def test_without_cochleae_the_middle_is_that_of_all_foreground():
    affine = affine_of(np.eye(3))
    window = window_of_labels(labelled((8, 9, 7), (21, 11, 8), value=1), affine, (40, 40, 40))
    assert np.linalg.inv(affine) @ [*window.centre, 1] == pytest.approx([14.5, 10, 7.5, 1], abs=1e-4)


@all_directions
@pytest.mark.parametrize("jitter", [(0, 0, 0), (30, -30, 30), (-4, 3, -2)])
def test_a_window_holds_all_foreground_with_its_margin(direction, jitter):
    affine = affine_of(direction)
    labels = labelled((8, 9, 7), (20, 12, 9))
    labels[15, 14, 8] = 1
    window = window_of_labels(labels, affine, (24, 24, 24), 2.0, jitter)
    inside = np.zeros(SHAPE, bool)
    inside[voxel_box(window, SHAPE, affine)] = True
    assert inside[labels > 0].all()
    for axis in range(3):
        line = np.flatnonzero((labels > 0).any(tuple({0, 1, 2} - {axis})))
        kept = voxel_box(window, SHAPE, affine)[axis]
        gap = np.floor(2.0 / SPACING[axis])
        assert kept.start <= max(0, line[0] - gap)
        assert kept.stop > min(SHAPE[axis] - 1, line[-1] + gap)


def test_jitter_goes_along_the_axes_of_the_patient():
    for direction in DIRECTIONS.values():
        affine = affine_of(direction)
        labels = labelled((14, 10, 8), (16, 11, 9))
        plain, moved = (window_of_labels(labels, affine, (30, 30, 30), 1, jitter) for jitter in ((0, 0, 0), (3, 2, 1)))
        codes = nib.aff2axcodes(affine)
        step = np.linalg.inv(affine[:3, :3]) @ np.subtract(moved.centre, plain.centre) * SPACING
        wanted = {"L": 3, "R": -3, "P": 2, "A": -2, "S": 1, "I": -1}
        assert step == pytest.approx([wanted[code] for code in codes], abs=1e-3)


def test_a_label_larger_than_the_window_makes_it_grow_and_says_so(caplog):
    affine = affine_of(np.diag([-1, -1, 1]), (1, 1, 1))
    labels = labelled((2, 9, 7), (28, 9, 7))
    with caplog.at_level(logging.WARNING):
        window = window_of_labels(labels, affine, (20, 14, 14), margin=2)
    assert "too small for a label: it is [31.0, 14.0, 14.0] mm here" in caplog.text
    assert window.size == (31, 14, 14)
    box = voxel_box(window, SHAPE, affine)
    assert (box[0].start, box[0].stop) == (0, 31)


def test_an_empty_label_and_an_impossible_size_are_refused():
    with pytest.raises(InputError, match="no window"):
        window_of_labels(labelled(), np.eye(4))
    with pytest.raises(InputError, match="size of a window"):
        window_of_labels(labelled((1, 1, 1)), np.eye(4), (10, 0, 10))


def cropped_by(window, image, folder):
    nib.save(image, folder / "whole.nii.gz")
    write_crop(folder / "whole.nii.gz", window, folder / "part.nii.gz")
    return nib.load(folder / "part.nii.gz")


@all_directions
def test_a_crop_keeps_every_voxel_at_its_place_in_the_world(tmp_path, direction):
    image = scan(direction)
    window = Window(tuple(image.affine[:3, :3] @ [12, 9, 7] + image.affine[:3, 3]), (14.0, 9.0, 12.0))
    cropped = cropped_by(window, image, tmp_path)
    whole, part = np.asarray(image.dataobj), np.asarray(cropped.dataobj)
    assert part.size < whole.size
    for place in ((0, 0, 0), tuple(n - 1 for n in part.shape), (1, 2, 3)):
        world = cropped.affine @ [*place, 1]
        there = np.linalg.inv(image.affine) @ world
        assert there == pytest.approx(np.round(there), abs=1e-4)
        assert part[place] == whole[tuple(np.round(there[:3]).astype(int))]


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (2, 1), (0, 0)])
def test_a_crop_is_stored_as_the_scan_was(tmp_path, codes):
    """Type, scaling and codes; the stored numbers, not only what they are scaled to."""
    image = scan(OBLIQUE @ np.diag([-1, -1, 1]))
    image.set_sform(image.affine, codes[0])
    image.set_qform(image.affine, codes[1])
    image.header.set_slope_inter(2.5, -7)
    nib.save(image, tmp_path / "a.nii.gz")
    loaded = nib.load(tmp_path / "a.nii.gz")
    window = Window(tuple(loaded.affine[:3, :3] @ [12, 9, 7] + loaded.affine[:3, 3]), (14.0, 9.0, 12.0))
    box = voxel_box(window, SHAPE, loaded.affine)
    write_crop(tmp_path / "a.nii.gz", window, tmp_path / "part.nii.gz")
    cropped = nib.load(tmp_path / "part.nii.gz")
    assert cropped.get_data_dtype() == np.int16
    assert np.array_equal(cropped.dataobj.get_unscaled(), loaded.dataobj.get_unscaled()[box])
    assert np.array_equal(cropped.get_fdata(), loaded.get_fdata()[box])
    corner = loaded.affine @ [*(edge.start for edge in box), 1]
    assert cropped.affine[:3, 3] == pytest.approx(corner[:3], abs=1e-3)
    assert cropped.affine[:3, :3] == pytest.approx(loaded.affine[:3, :3], abs=1e-4)
    if any(codes):
        assert (int(cropped.header["sform_code"]), int(cropped.header["qform_code"])) == codes


def data_set(folder):
    parts = {"source": ["crossmoda2021_ldn_1"], "target": ["crossmoda2021_ldn_106"], "validation": ["b"]}
    scans = {part: [] for part in parts}
    for part, cases in parts.items():
        for number, case in enumerate(cases):
            image = scan(np.diag([-1, -1, 1]), seed=len(part) + number)
            nib.save(image, folder / f"{case}.nii.gz")
            item = {"case": case, "image": str(folder / f"{case}.nii.gz")}
            if part == "source":
                nib.save(nib.Nifti1Image(labelled((8, 9, 7)).astype(float), image.affine), folder / f"{case}_l.nii.gz")
                item["label"] = str(folder / f"{case}_l.nii.gz")
            scans[part].append(item)
    window = Window(tuple(image.affine[:3, :3] @ [8, 9, 7] + image.affine[:3, 3]), (14.0, 9.0, 12.0))
    return scans, {case: window for cases in parts.values() for case in cases}


def test_a_windowed_data_set_is_one_of_crossmoda_with_a_record(tmp_path):
    scans, windows = data_set(tmp_path)
    windows["b"] = Window(windows["b"].centre, windows["b"].size, "locator", 0.7)
    write_windowed_dataset(scans, windows, tmp_path / "out")
    for part, split in (("source", "training_source"), ("target", "training_target"), ("validation", "validation")):
        (found,) = crossmoda_datalist(tmp_path / "out", split)
        assert found["case"] == scans[part][0]["case"]
        before, after = nib.load(scans[part][0]["image"]), nib.load(found["image"])
        box = voxel_box(windows[found["case"]], before.shape, before.affine)
        assert np.array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj)[box])
        assert ("label" in found) == (part == "source")
    (source,) = crossmoda_datalist(tmp_path / "out", "training_source")
    assert np.asarray(nib.load(source["label"]).dataobj).sum() == 2
    assert nib.load(source["label"]).get_data_dtype() == np.float64
    assert read_windows(tmp_path / "out") == windows
    assert not [path for path in (tmp_path / "out").rglob(".part*")]


LITTLE_OFF = {
    "shifted by 0.03 mm": lambda affine: affine + np.pad([[0.01], [0.02], [-0.02]], ((0, 1), (3, 0))),
    "of another spacing": lambda affine: affine @ np.diag([1 - 1e-6, 1 + 1e-6, 1 + 1e-6, 1]),
}


@pytest.mark.parametrize("off", LITTLE_OFF)
@pytest.mark.parametrize("place", [(8, 9, 7), (8.5, 9, 7), (9, 10.5, 8)])
def test_a_scan_and_all_that_lies_on_it_are_cut_at_the_same_voxels(tmp_path, off, place):
    """Though the edges of a window run through centres of voxels, and a label map lies a little off, as it may."""
    scans, windows = data_set(tmp_path)
    (item,) = scans["source"]
    image, drawn = nib.load(item["image"]), nib.load(item["label"])
    nib.save(nib.Nifti1Image(np.asarray(drawn.dataobj), LITTLE_OFF[off](image.affine)), tmp_path / "off.nii.gz")
    item["label"] = str(tmp_path / "off.nii.gz")
    check_scan(item)
    centre = image.affine[:3, :3] @ place + image.affine[:3, 3]
    windows[item["case"]] = Window(tuple(centre), tuple(6 * np.array(SPACING)))
    write_windowed_dataset(scans, windows, tmp_path / "out")
    (written,) = crossmoda_datalist(tmp_path / "out", "training_source")
    check_scan(written)
    crop_to_windows({item["case"]: item["label"]}, "_Label.nii.gz", str(tmp_path / "out"), str(tmp_path / "truth"))
    check_scan({**written, "label": tmp_path / "truth" / f"{item['case']}_Label.nii.gz"})


def test_a_label_that_does_not_lie_on_its_scan_is_not_cut(tmp_path):
    scans, windows = data_set(tmp_path)
    label = nib.load(scans["source"][0]["label"])
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[1:], label.affine), scans["source"][0]["label"])
    with pytest.raises(InputError, match="has shape"):
        write_windowed_dataset(scans, windows, tmp_path / "out")


@pytest.mark.parametrize("shift", np.linspace(0, 1e-4, 7))
def test_a_window_of_whole_voxels_is_the_same_box_wherever_the_scan_lies(shift):
    affine = affine_of(np.diag([-1, -1, 1]), (0.4, 0.4, 1.5), (11 + shift, 5 - shift, 7 + shift))
    window = window_of_labels(labelled((8, 9, 7), (20, 12, 9)), affine, (8, 4, 12), margin=0)
    box = voxel_box(window, SHAPE, affine)
    assert [(edge.start, edge.stop) for edge in box] == [(4, 25), (6, 16), (4, 13)]


def test_a_case_that_occurs_twice_is_refused(tmp_path):
    scans, windows = data_set(tmp_path)
    with pytest.raises(InputError, match="occurs twice"):
        write_windowed_dataset({**scans, "target": scans["source"]}, windows, tmp_path / "out")


def test_a_record_that_is_none_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"windows\.json is missing"):
        read_windows(tmp_path)
    (tmp_path / "windows.json").write_text('{"a": {"size": 3}}')
    with pytest.raises(InputError, match="holds no windows"):
        read_windows(tmp_path)
