import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization

from plugins.segmentation import KeepLargestComponentsd, SaveLabelMapd, SaveProbabilitiesd, ZScored
from plugins.segmentation.transforms import keep_largest_component


@pytest.mark.parametrize("nonzero", [False, True])
def test_z_scores_are_those_of_nnunet(nonzero):
    image = np.random.default_rng(0).normal(100, 20, (1, 8, 9, 7)).astype(np.float32)
    image[:, :2], image[:, :, -1], image[0, 5, 4, 3] = 0, 0, 0
    image[0, 0, 0, 0] = image[0, -1, -1, -1] = 1  # nothing is cropped
    data, seg, _ = crop_to_nonzero(image)
    assert data.shape == image.shape
    expected = ZScoreNormalization(use_mask_for_norm=nonzero, intensityproperties={}).run(data[0].copy(), seg[0])
    ours = ZScored("image", nonzero)({"image": torch.from_numpy(image)})["image"]
    np.testing.assert_allclose(ours[0], expected, atol=2e-5)
    assert nonzero == bool(ours[0, 1, 4, 3] == 0)


def test_a_constant_image_does_not_become_nan():
    assert torch.equal(ZScored("image")({"image": torch.full((1, 3, 3, 3), 7.0)})["image"], torch.zeros(1, 3, 3, 3))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("of", [[1], [2], [1, 2]])
def test_the_largest_component_is_the_one_nnunet_keeps(seed, of):
    labels = np.random.default_rng(seed).choice([0, 1, 2], (7, 8, 6), p=[0.86, 0.07, 0.07]).astype(np.uint8)
    expected = remove_all_but_largest_component_from_segmentation(labels, [of] if len(of) == 1 else [tuple(of)])
    ours = keep_largest_component(labels, of)
    assert np.array_equal(ours, expected)
    assert (ours > 0).sum() < (labels > 0).sum()


def test_equally_large_components_stay_and_steps_follow_one_another():
    labels = np.zeros((9, 3, 3), dtype=np.uint8)
    labels[0, 0, :2], labels[4, 0, :2], labels[8, 0, 0], labels[8, 2, :] = 1, 1, 1, 2
    cleaned = KeepLargestComponentsd("pred", [[1], [2]])({"pred": torch.from_numpy(labels)[None]})["pred"][0]
    expected = labels.copy()
    expected[8, 0, 0] = 0
    assert np.array_equal(cleaned, expected)
    nothing = torch.zeros(1, 3, 3, 3)
    assert torch.equal(KeepLargestComponentsd("pred", [[1, 2]])({"pred": nothing})["pred"], nothing)


def scan(tmp_path):
    affine = np.array([[0, 2.0, 0, -5], [-1.0, 0, 0, 4], [0, 0, 1.5, 3], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.ones((4, 5, 6), dtype=np.int16), affine)
    image.header.set_slope_inter(2, 7)
    image.header["cal_max"] = 900
    nib.save(image, tmp_path / "a.nii.gz")
    meta = {"filename_or_obj": str(tmp_path / "a.nii.gz")}
    return affine, MetaTensor(torch.ones(1, 4, 5, 6), affine=affine, meta=meta)


def test_a_label_map_has_the_scans_grid_and_plain_integers(tmp_path):
    affine, image = scan(tmp_path)
    labels = torch.randint(0, 3, (1, 4, 5, 6)).float()
    SaveLabelMapd("pred", tmp_path)({"case": "a", "image": image, "pred": MetaTensor(labels, affine=affine)})
    saved = nib.load(tmp_path / "a_Label.nii.gz")
    assert np.array_equal(np.asarray(saved.dataobj), labels[0])
    assert np.array_equal(saved.affine, nib.load(tmp_path / "a.nii.gz").affine)
    assert saved.get_data_dtype() == np.uint8
    assert float(saved.header["cal_max"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "a_Label.nii.gz"]


@pytest.mark.parametrize(("shape", "shift"), [((1, 5, 4, 6), 0), ((1, 4, 5, 6), 1)])
def test_a_label_map_elsewhere_is_an_error(tmp_path, shape, shift):
    affine, image = scan(tmp_path)
    affine = affine + shift * np.eye(4)
    with pytest.raises(ValueError, match="left the scan's grid"):
        SaveLabelMapd("pred", tmp_path)(
            {"case": "a", "image": image, "pred": MetaTensor(torch.zeros(shape), affine=affine)}
        )
    assert not (tmp_path / "a_Label.nii.gz").exists()


def test_outside_the_crop_it_is_background(tmp_path):
    affine, image = scan(tmp_path)
    values = torch.rand(3, 4, 5, 6).softmax(0)
    values[:, 0] = 0
    SaveProbabilitiesd("p", tmp_path)({"case": "a", "image": image, "p": MetaTensor(values, affine=affine)})
    saved = np.asarray(nib.load(tmp_path / "a_Probabilities.nii.gz").dataobj)
    assert saved.dtype == np.float32
    assert np.all(saved[0] == [1, 0, 0])
    np.testing.assert_allclose(saved[1:], values.permute(1, 2, 3, 0)[1:])
