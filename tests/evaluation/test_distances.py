"""All measures against other libraries and against slow float64 code, on a hundred pairs with uneven voxels."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from plugins.evaluation import case_metrics

from .mask_pairs import mask_pairs

EXACT = 1e-6
GIVEN = json.loads(Path(__file__).with_name("reference_distances.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pairs():
    return list(mask_pairs())


@pytest.fixture(scope="module")
def found(pairs):
    return [
        case_metrics(pred.astype(np.uint8), truth.astype(np.uint8), spacing)["vs"] for pred, truth, spacing in pairs
    ]


def column(found, name):
    return np.array([row[name] for row in found])


@pytest.mark.parametrize("measure", GIVEN["measures"])
def test_measures_equal_what_medpy_and_surface_distance_gave(found, measure):
    given = np.array(GIVEN["rows"])[:, GIVEN["measures"].index(measure)]
    assert len(given) == 100
    np.testing.assert_allclose(column(found, measure), given, rtol=0, atol=EXACT)


def directed(pred, truth, spacing):
    """From each surface voxel to the other surface, by the distance transform."""
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (pred, truth)]
    maps = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return maps[1][edges[0]], maps[0][edges[1]]


def test_both_definitions_of_assd_and_hd95_equal_their_formulas(pairs, found):
    for pair, row in zip(pairs, found, strict=True):
        there, back = directed(*pair)
        both = np.sort(np.concatenate([there, back]))
        assert row["assd_medpy_0_4_mm"] == pytest.approx(
            (there.sum() / there.size + back.sum() / back.size) / 2, abs=EXACT
        )
        assert row["assd_mm"] == pytest.approx(both.sum() / both.size, abs=EXACT)
        assert row["hd95_mm"] == pytest.approx(max(percentile_95(there), percentile_95(back)), abs=EXACT)
        assert row["hd95_medpy_mm"] == pytest.approx(percentile_95(both), abs=EXACT)


def percentile_95(values):
    """Between the two nearest of the sorted values, in proportion."""
    ordered = np.sort(values)
    place = 0.95 * (ordered.size - 1)
    low = int(place)
    high = min(low + 1, ordered.size - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def test_hd95_equals_simpleitk(pairs, found):
    """Contours and distances by SimpleITK, which computes them in float32."""
    for (pred, truth, spacing), row in zip(pairs, found, strict=True):
        contours, maps = [], []
        for mask in (pred, truth):
            image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8).transpose())
            image.SetSpacing(spacing)
            contour = sitk.LabelContour(image, False)
            distance = sitk.SignedMaurerDistanceMap(contour, squaredDistance=True, useImageSpacing=True)
            contours.append(sitk.GetArrayFromImage(contour) > 0)
            maps.append(np.sqrt(np.abs(sitk.GetArrayFromImage(distance).astype(np.float64))))
        expected = max(np.percentile(maps[1][contours[0]], 95), np.percentile(maps[0][contours[1]], 95))
        assert row["hd95_mm"] == pytest.approx(expected, rel=2e-7, abs=EXACT)


def test_the_two_definitions_differ(found):
    assert np.abs(column(found, "assd_mm") - column(found, "assd_medpy_0_4_mm")).max() > 0.5
    assert np.abs(column(found, "hd95_mm") - column(found, "hd95_medpy_mm")).max() > 0.5


def test_swapping_prediction_and_reference_changes_nothing(pairs, found):
    for (pred, truth, spacing), row in zip(pairs[:20], found, strict=False):
        swapped = case_metrics(truth.astype(np.uint8), pred.astype(np.uint8), spacing)["vs"]
        assert swapped == pytest.approx(row, abs=EXACT)


def test_what_surrounds_the_masks_changes_nothing(pairs, found):
    """The crop to both masks leaves every measure as it is."""
    for (pred, truth, spacing), row in zip(pairs[:20], found, strict=False):
        wide = [np.pad(mask, ((3, 1), (2, 5), (0, 4))).astype(np.uint8) for mask in (pred, truth)]
        assert case_metrics(*wide, spacing)["vs"] == pytest.approx(row, abs=EXACT)


def test_two_voxels_by_hand():
    """3 voxels of 0.5 mm apart: all distances are 1.5 mm.

    The surface of the NSD lies between voxels. Its near halves are 2 steps (1 mm) apart, its far ones 3.
    """
    pred, truth = np.zeros((2, 7, 5, 4), dtype=np.uint8)
    pred[1, 2, 2], truth[4, 2, 2] = 2, 2
    found = case_metrics(pred, truth, (0.5, 1.0, 2.0))["cochlea"]
    assert {name: found[name] for name in ("dice", "assd_mm", "assd_medpy_0_4_mm", "hd95_mm", "hd95_medpy_mm")} == {
        "dice": 0.0,
        "assd_mm": 1.5,
        "assd_medpy_0_4_mm": 1.5,
        "hd95_mm": 1.5,
        "hd95_medpy_mm": 1.5,
    }
    assert found["nsd_1mm"] == pytest.approx(0.5)


def test_a_surface_at_the_tolerance_counts():
    pred, truth = np.zeros((2, 7, 5, 4), dtype=np.uint8)
    pred[1, 2, 2], truth[3, 2, 2] = 1, 1
    assert case_metrics(pred, truth, (0.5, 1.0, 2.0))["vs"]["nsd_1mm"] == 1
    assert case_metrics(pred, truth, (0.51, 1.0, 2.0))["vs"]["nsd_1mm"] < 1
