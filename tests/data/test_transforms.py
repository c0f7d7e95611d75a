import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Invertd

from plugins.data.transforms import translation_transforms
from plugins.errors import InputError, find_input_error

OBLIQUE = np.array([[0.94, -0.30, 0.12], [0.32, 0.93, -0.15], [-0.07, 0.18, 0.98]])
OBLIQUE = np.linalg.svd(OBLIQUE)[0] @ np.linalg.svd(OBLIQUE)[2]  # the nearest rotation
DIRECTIONS = {
    "RAS": np.eye(3),
    "LAS": np.diag([-1.0, 1, 1]),
    "PIR": np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    "oblique": OBLIQUE,
    "oblique LPI": OBLIQUE @ np.diag([-1, -1, -1]),
}
VOXELS = {"thin": ((26, 21, 17), (1.1, 0.9, 0.8)), "thick": ((26, 21, 7), (0.9, 1.1, 5.5))}


def brightness(world):
    """A smooth function of the place in mm, without any symmetry."""
    x, y, z = world
    return 50 + 3 * x + 5 * y - 2 * z + 20 * np.sin(x / 9) * np.cos(y / 11 + 0.3)


def world_of(shape, affine):
    grid = np.stack([*np.meshgrid(*map(np.arange, shape), indexing="ij"), np.ones(shape)])
    return np.einsum("ij,jxyz->ixyz", affine, grid)[:3]


def write_scan(
    folder, direction=OBLIQUE, shape=(26, 21, 17), spacing=(1.1, 0.9, 0.8), label=None, label_dtype=np.uint8
):
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = [-7, 11, 5] - affine[:3, :3] @ (np.array(shape) / 2)
    nib.save(nib.Nifti1Image(brightness(world_of(shape, affine)).astype(np.float32), affine), folder / "a.nii.gz")
    item = {"case": "a", "image": str(folder / "a.nii.gz")}
    if label is not None:
        nib.save(nib.Nifti1Image(label.astype(label_dtype), affine), folder / "a_Label.nii.gz")
        item["label"] = str(folder / "a_Label.nii.gz")
    return item


def scaled(values, item, percentiles):
    low, high = np.percentile(nib.load(item["image"]).get_fdata(), percentiles)
    return np.clip((values - low) / (high - low) * 2 - 1, -1, 1)


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize(("shape", "spacing"), VOXELS.values(), ids=VOXELS)
@pytest.mark.parametrize("patch_size", [(16, 14), (12, 15)], ids=["crop", "crop and resize"])
def test_every_voxel_shows_what_lies_at_its_place_in_the_world(tmp_path, direction, shape, spacing, patch_size):
    item = write_scan(tmp_path, direction, shape, spacing)
    image = translation_transforms((0.9, 1.0, 1.5), (16, 14), patch_size, (0, 100))(item)["image"]
    assert image.shape[:3] == (1, *patch_size)
    assert image.dtype == torch.float32
    expected = scaled(brightness(world_of(image.shape[1:], np.asarray(image.affine))), item, (0, 100))
    inside = np.s_[1:-1, 1:-1, 1:-2]  # at the ends of the volume, resampling repeats its last slice
    assert np.abs(np.asarray(image[0]) - expected)[inside].max() < 0.03
    axes = np.asarray(image.affine)[:3, :3]
    assert axes[0, 0] < 0
    assert axes[1, 1] < 0
    assert axes[2, 2] > 0


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize(
    ("shape", "spacing"), [*VOXELS.values(), ((26, 21, 1), (0.9, 1.1, 5.5))], ids=[*VOXELS, "one slice"]
)
@pytest.mark.parametrize("patch_size", [(16, 40), (11, 40)])
def test_invertd_returns_to_the_shape_and_affine_of_the_file(tmp_path, direction, shape, spacing, patch_size):
    item = write_scan(tmp_path, direction, shape, spacing)
    transforms = translation_transforms((0.8, 1.0, 1.5), (16, 40), patch_size)
    item = transforms(item)
    item["pred"] = item["image"].clone()
    volume = Invertd("pred", transforms, orig_keys="image", nearest_interp=False)(item)["pred"]
    scan = nib.load(item["image"].meta["filename_or_obj"])
    assert volume.shape[1:] == scan.shape
    shift = np.abs(world_of(scan.shape, np.asarray(volume.affine)) - world_of(scan.shape, scan.affine))
    assert shift.max() < 1e-4


def test_percentiles_become_the_ends_of_the_range_and_the_rest_is_clipped(tmp_path):
    item = write_scan(tmp_path, np.diag([-1.0, -1, 1]))
    image = translation_transforms(None, (26, 21), (26, 21), (5, 90))(item)["image"]
    expected = scaled(nib.load(item["image"]).get_fdata(), item, (5, 90))
    assert np.allclose(image[0], expected, atol=1e-5)
    assert image.min() == -1
    assert image.max() == 1


def test_images_are_padded_with_air_and_labels_with_background(tmp_path):
    item = write_scan(tmp_path, np.diag([-1.0, -1, 1]), label=np.ones((26, 21, 17)))
    item = translation_transforms(None, (30, 24), (30, 24))(item)
    inner = torch.zeros(30, 24, dtype=torch.bool)
    inner[2:28, 1:22] = True
    assert (item["image"][0, ~inner] == -1).all()
    assert (item["label"][0, ~inner] == 0).all()
    assert (item["label"][0, inner] == 1).all()


def test_a_kept_spacing_leaves_that_axis_alone(tmp_path):
    item = write_scan(tmp_path, np.diag([-1.0, -1, 1]), spacing=(1.1, 0.9, 5.5))
    image = translation_transforms((0.55, None, None), (60, 60), (60, 60))(item)["image"]
    assert image.shape == (1, 60, 60, 17)
    assert np.allclose(image.pixdim, (0.55, 0.9, 5.5))


def test_label_values_are_rounded_and_not_truncated(tmp_path):
    label = np.zeros((26, 21, 17))
    label[12, 10, 8], label[13, 10, 8] = 0.9999, 1.9999
    item = write_scan(tmp_path, np.diag([-1.0, -1, 1]), label=label, label_dtype=np.float64)
    found = translation_transforms(None, (26, 21), (26, 21))(item)["label"]
    assert found[0, 12, 10, 8] == 1
    assert found[0, 13, 10, 8] == 2
    assert found.sum() == 3


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_labels_take_the_value_of_the_nearest_voxel_in_the_world(tmp_path, direction):
    label = np.random.default_rng(0).integers(3, size=(26, 21, 17))
    item = write_scan(tmp_path, direction, label=label)
    affine = nib.load(item["label"]).affine
    item = translation_transforms((0.8, 0.7, 1), (22, 20), (22, 20))(item | {"pseudo": True})
    assert np.allclose(item["label"].affine, item["image"].affine)
    places = world_of(item["label"].shape[1:], np.linalg.inv(affine) @ np.asarray(item["image"].affine))
    nearest = np.rint(places).astype(int)
    limits = np.array(label.shape)[:, None, None, None]
    certain = ((np.abs(places - nearest) < 0.49) & (nearest >= 0) & (nearest < limits)).all(0)
    assert certain.mean() > 0.5
    assert (np.asarray(item["label"][0])[certain] == label[tuple(nearest[:, certain])]).all()


def test_resized_labels_are_not_shifted_against_the_image(tmp_path):
    label = np.random.default_rng(0).integers(3, size=(27, 21, 5))
    item = write_scan(tmp_path, np.diag([-1.0, -1, 1]), shape=label.shape, label=label)
    item = translation_transforms(None, (27, 21), (9, 7))(item)
    assert (np.asarray(item["label"][0]) == label[1::3, 1::3]).all()  # the middle of every three


def test_a_missing_label_is_added_only_where_asked_for(tmp_path):
    item = write_scan(tmp_path)
    assert "label" not in translation_transforms((1, 1, 1), (16, 14), (8, 8))(item)
    added = translation_transforms((1, 1, 1), (16, 14), (8, 8), with_label=True)(item)
    assert added["label"].shape == added["image"].shape
    assert not added["label"].any()


def test_a_given_label_is_kept_where_empty_ones_are_added(tmp_path):
    label = np.zeros((26, 21, 17))
    label[13, 10, 8] = 2
    item = write_scan(tmp_path, label=label)
    assert translation_transforms((1, 1, 1), (16, 14), (16, 14), with_label=True)(item)["label"].max() == 2


def crop_of(tmp_path, label, crop, spacing=None, **item):
    """Image and label crops of a scan whose image is a ramp that tells every voxel apart."""
    scan = write_scan(tmp_path, np.diag([-1.0, -1, 1]), label=label)
    image = nib.load(scan["image"])
    ramp = np.arange(image.shape[0] * image.shape[1] * image.shape[2], dtype=np.float32).reshape(image.shape)
    nib.save(nib.Nifti1Image(ramp, image.affine), scan["image"])
    transform = translation_transforms(spacing, crop, crop, (0, 100))
    result = transform({**scan, **item})
    values = (np.asarray(result["image"][0], np.float64) + 1) / 2 * (ramp.size - 1)
    row, column, _ = np.unravel_index(round(values[0, 0, 0]), ramp.shape)
    return (int(row), int(column)), result, transform


def label_at(*places):
    label = np.zeros((26, 21, 17))
    for place in places:
        label[place] = 1
    return label


def test_a_label_that_lies_well_inside_leaves_the_crop_in_the_middle(tmp_path):
    corner, _, _ = crop_of(tmp_path, label_at((13, 10, 8)), (18, 16))
    assert corner == (13 - 9, 10 - 8)


@pytest.mark.parametrize(
    ("place", "corner"),
    [
        ((13, 10, 8), (13 - 4, 10 - 3)),  # too small for the margin: the label is in the middle
        ((3, 10, 3), (0, 10 - 3)),  # and never beyond the scan
        ((25, 20, 3), (26 - 8, 21 - 7)),
    ],
)
def test_a_crop_follows_its_label_and_stays_in_the_scan(tmp_path, place, corner):
    found, result, _ = crop_of(tmp_path, label_at(place), (8, 7))
    assert found == corner
    assert (result["label"] > 0).sum() == 1
    assert result["label"][0][place[0] - corner[0], place[1] - corner[1], place[2]] == 1


def test_a_crop_moves_no_further_than_the_label_and_its_margin_need(tmp_path):
    """Rows: 26 of which 20 are taken, from 3; a label at row 3 with a margin of 8 wants them from 0."""
    assert crop_of(tmp_path, label_at((3, 10, 3)), (20, 21))[0] == (0, 0)
    assert crop_of(tmp_path, label_at((10, 10, 3)), (20, 21))[0] == (2, 0)  # 10 - 8
    assert crop_of(tmp_path, label_at((15, 10, 3)), (20, 21))[0] == (4, 0)  # 15 + 1 + 8 - 20


def test_a_window_says_where_the_crop_lies(tmp_path):
    scan = write_scan(tmp_path, np.diag([-1.0, -1, 1]))
    place = nib.load(scan["image"]).affine @ [6, 12, 3, 1]
    corner, _, _ = crop_of(tmp_path, None, (9, 7), window=place[:3].tolist())
    assert corner == (6 - 4, 12 - 3)


def test_a_followed_crop_goes_back_to_its_place(tmp_path):
    label = label_at((3, 18, 3), (5, 15, 4))
    _, result, transform = crop_of(tmp_path, label, (8, 7))
    back = Invertd("label", transform, orig_keys="image", nearest_interp=True)(result)["label"]
    assert np.array_equal(np.asarray(back[0]), label)


@pytest.mark.parametrize(
    ("voxels", "needed"),
    [(((0, 10), (20, 12)), (22, 12)), (((13, 1), (13, 20)), (12, 20)), (((1, 1), (14, 3)), (14, 12))],
)
def test_a_label_larger_than_the_crop_is_refused_with_the_size_that_holds_it(tmp_path, voxels, needed):
    item = write_scan(tmp_path, np.diag([-1.0, -1, 1]), label=label_at(*((*voxel, 3) for voxel in voxels)))
    with pytest.raises(RuntimeError) as caught:
        translation_transforms(None, (12, 12), (12, 12))(item)
    error = find_input_error(caught.value)
    assert isinstance(error, InputError)
    assert "a_Label.nii.gz: " in str(error)
    assert f"labelled voxels lie outside the crop. Set crop_size to {list(needed)}" in str(error)
    assert (translation_transforms(None, needed, needed)(item)["label"] > 0).sum() == 2


def test_a_pseudo_label_larger_than_the_crop_is_cut_off(tmp_path):
    item = {**write_scan(tmp_path, label=label_at((1, 1, 3), (24, 1, 3))), "pseudo": True}
    assert translation_transforms((1, 1, 1), (8, 8), (8, 8))(item)["label"].sum() == 0


def test_shrinking_averages_and_does_not_pick(tmp_path):
    """A checkerboard becomes grey; without anti-aliasing it becomes stripes or one of its two colours."""
    item = write_scan(tmp_path, np.diag([-1.0, -1, 1]), shape=(32, 32, 3))
    board = np.indices((32, 32, 3))[:2].sum(0) % 2
    nib.save(nib.Nifti1Image(board.astype(np.float32), nib.load(item["image"]).affine), item["image"])
    image = translation_transforms(None, (32, 32), (11, 11), (0, 100))(item)["image"]
    assert image[:, 2:-2, 2:-2].abs().max() < 0.2


def test_settings_tell_transforms_apart():
    assert translation_transforms((1, 1, None)).settings == translation_transforms((1, 1, -1)).settings
    names = [
        translation_transforms(),
        translation_transforms((1, 1, 1)),
        translation_transforms(crop_size=(64, 64)),
        translation_transforms(patch_size=(64, 64)),
        translation_transforms(percentiles=(1, 99)),
    ]
    assert len({str(transforms.settings) for transforms in names}) == len(names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"percentiles": (99, 1)}, "percentiles is .99, 1.. Give two in order"),
        ({"percentiles": (0, 101)}, "from 0 to 100"),
        ({"patch_size": (96, 94), "divisor": 4}, "patch_size is .96, 94.. Give multiples of 4"),
    ],
)
def test_impossible_settings_are_refused_before_a_scan_is_read(settings, message):
    with pytest.raises(InputError, match=message):
        translation_transforms(**settings)
