"""One VS and two cochleae by place and score, in any orientation; what makes a label map plausible."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from scipy.ndimage import label

from plugins.errors import InputError
from plugins.segmentation import (
    AnatomySettings,
    PlausibleComponentsd,
    SourceStatistics,
    choose,
    choose_components,
    find_components,
    plausibility,
    read_model,
)
from plugins.segmentation.model import NOMINAL

INFERENCE = Path(__file__).parents[2] / "bundles" / "vs_cochlea_seg" / "configs" / "inference.json"
SHAPE = (100, 60, 24)
SPACING = np.array([1.1, 1.2, 2.0])
AXIAL = np.diag([*SPACING, 1.0])
AXIAL[:3, 3] = -60, -40, -20
TILT = nib.eulerangles.euler2mat(z=0.15, y=0.1, x=-0.1)
VS, RIGHT, LEFT = (-22, -7, 1), (34, 0, 0), (-33, 2, 3)


def ball(labels, affine, centre, radius, value):
    """Write a ball, in mm of the world, into a label map."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in labels.shape), indexing="ij"), -1)
    world = grid @ affine[:3, :3].T + affine[:3, 3]
    labels[np.linalg.norm(world - centre, axis=-1) <= radius] = value


def head(affine=AXIAL, shape=SHAPE, vs=VS, right=RIGHT, left=LEFT):
    labels = np.zeros(shape, dtype=np.uint8)
    for centre, radius, value in ((vs, 6.5, 1), (right, 3, 2), (left, 3, 2)):
        if centre is not None:
            ball(labels, affine, centre, radius, value)
    return labels


def oblique():
    """A grid that is turned against the world, through the same centre."""
    affine = AXIAL.copy()
    affine[:3, :3] = TILT @ AXIAL[:3, :3]
    middle = (np.array(SHAPE) - 1) / 2
    affine[:3, 3] = AXIAL[:3, :3] @ middle + AXIAL[:3, 3] - affine[:3, :3] @ middle
    return affine


def statistics(**changes):
    return replace(SourceStatistics.measure([(head(), AXIAL)]), **changes)


GRIDS = {"axial": AXIAL, "oblique": oblique()}


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS)
def test_components_have_the_volume_place_and_probability_of_plain_code(affine):
    labels = head(affine)
    chances = np.random.default_rng(0).random((3, *SHAPE))
    for found in find_components(labels, affine, chances):
        value = {"VS": 1, "cochlea": 2}[found.structure]
        parts, _ = label(labels == value, np.ones((3, 3, 3)))
        voxels = np.argwhere(parts == found.numbers[0])
        world = [affine[:3, :3] @ voxel + affine[:3, 3] for voxel in voxels]
        volume = abs(np.linalg.det(affine[:3, :3])) * len(voxels)
        assert found.volume_mm3 == pytest.approx(volume)
        assert found.centroid == pytest.approx(tuple(np.mean(world, axis=0)))
        mean = np.mean([chances[(value, *voxel)] for voxel in voxels])
        assert found.mean_probability == pytest.approx(mean)
        assert found.mass_mm3 == pytest.approx(volume * mean)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_sides_and_choice_follow_the_world_and_not_the_index(order, flips):
    affine = oblique()
    labels = head(affine)
    extra = labels.copy()
    ball(extra, affine, (20, -10, -14), 7, 1)
    ornt = np.stack([np.argsort(order), flips], -1)
    turned = nib.orientations.apply_orientation(extra, ornt)
    other = affine @ nib.orientations.inv_ornt_aff(ornt, extra.shape)
    found = choose(turned, other)
    assert np.array_equal(found.labels, nib.orientations.apply_orientation(choose(extra, affine).labels, ornt))
    assert [part.side for part in found.cochleae] == ["right", "left"]
    assert found.cochleae[0].centroid == pytest.approx(RIGHT, abs=0.7)
    assert found.vs.side == "left"
    assert found.vs.centroid == pytest.approx(VS, abs=0.7)


def test_sides_are_those_of_the_midline_between_the_cochleae_where_a_head_is_off_centre():
    labels = head(vs=(18, -12, 1), right=(45, 0, 0), left=(-10, 0, 0))
    assert choose(labels, AXIAL).vs.side == "right"
    assert choose(head(vs=(16, -12, 1), right=(45, 0, 0), left=(-10, 0, 0)), AXIAL).vs.side == "left"
    assert find_components(labels, AXIAL, midline_mm=50)[0].side == "left"


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("settings", [AnatomySettings(), statistics().settings()], ids=["default", "source"])
def test_a_true_label_map_stays(affine, settings):
    labels = head(affine)
    assert np.array_equal(choose_components(labels, affine, settings=settings), labels)


@pytest.mark.parametrize(
    ("centre", "radius", "value"),
    [
        ((20, -30, -6), 9, 1),  # larger than the true VS, and further than 30 mm from a cochlea
        ((-8, 18, 12), 9, 1),  # within 30 mm, but further off than the true one
        ((34, 15, 0), 5, 2),  # larger than a cochlea
        ((20, 0, 0), 3, 2),
        ((0, 0, 10), 6, 2),
    ],
)
@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS)
def test_false_parts_become_background_and_the_true_ones_stay(affine, centre, radius, value):
    labels = head(affine)
    false = labels.copy()
    ball(false, affine, centre, radius, value)
    assert np.count_nonzero(false == value) > np.count_nonzero(labels == value)
    assert np.array_equal(choose_components(false, affine, settings=statistics().settings()), labels)


def test_what_is_sure_beats_what_is_large():
    labels = np.zeros(SHAPE, dtype=np.uint8)
    ball(labels, AXIAL, VS, 4, 1)
    true = labels.copy()
    ball(labels, AXIAL, (20, -10, 1), 7, 1)
    chances = np.zeros((3, *SHAPE))
    chances[1] = np.where(true == 1, 0.95, 0.1)
    assert np.array_equal(choose_components(labels, AXIAL, chances), true)
    assert np.array_equal(choose_components(labels, AXIAL) + true, labels)


@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf, -1.0])
def test_degenerate_probabilities_leave_the_choice_to_size(fill):
    labels = head()
    ball(labels, AXIAL, (34, 15, 0), 2, 2)
    chances = np.full((3, *SHAPE), fill)
    assert np.array_equal(choose_components(labels, AXIAL, chances), choose_components(labels, AXIAL))
    assert all(np.isfinite(part.mass_mm3) for part in find_components(labels, AXIAL, chances))


@pytest.mark.parametrize("missing", [{"vs"}, {"right"}, {"left"}, {"right", "left"}, {"vs", "right"}])
def test_what_is_missing_removes_nothing_else(missing):
    labels = head(**dict.fromkeys(missing))
    assert np.array_equal(choose_components(labels, AXIAL), labels)


def test_a_structure_far_from_the_other_is_not_removed():
    labels = head(vs=(20, -30, 20), right=None)
    assert np.array_equal(choose_components(labels, AXIAL), labels)


def test_an_empty_map_stays_empty():
    empty = np.zeros(SHAPE, dtype=np.uint8)
    assert not choose_components(empty, AXIAL).any()
    assert find_components(empty, AXIAL) == []
    assert plausibility(empty, AXIAL, statistics())["score"] == 0


def test_two_parts_on_one_side_are_no_pair():
    labels = head(left=None)
    ball(labels, AXIAL, (14, 0, 0), 2, 2)
    found = choose(labels, AXIAL)
    assert [part.centroid for part in found.cochleae] == [pytest.approx(RIGHT, abs=0.7)]
    assert np.array_equal(found.labels, head(left=None))


@pytest.mark.parametrize(
    ("second", "pair"),
    [
        ((-2.5, 0, 0), True),  # equal parts, just within each limit and just beyond
        ((3, 0, 0), False),
        ((-48.5, 0, 0), True),
        ((-53, 0, 0), False),
        ((-33, 0, 13), True),
        ((-33, 0, 17), False),
        ((-33, 20, 0), True),
        ((-33, 27, 0), False),
    ],
)
def test_cochleae_are_a_pair_within_the_limits_only(second, pair):
    labels = head(vs=None, right=RIGHT, left=second)
    assert len(choose(labels, AXIAL).cochleae) == 1 + pair


@pytest.mark.parametrize("off", [(16, 0, 0), (0, 16, 0), (0, 0, 11)])
def test_of_two_cochleae_on_a_side_the_one_in_place_stays(off):
    true = head(vs=None, right=(30, 0, -2), left=(-30, 0, -2))
    labels = true.copy()
    ball(labels, AXIAL, np.add((-30, 0, -2), off), 3.2, 2)
    assert np.array_equal(choose_components(labels, AXIAL), true)


def test_a_vs_further_than_the_limit_loses_against_any_nearer_one():
    labels = head()
    false = labels.copy()
    ball(false, AXIAL, (0, -30, 1), 9, 1)
    settings = AnatomySettings(vs_gap_mm=1e6)
    assert np.array_equal(choose_components(false, AXIAL, settings=settings), labels)
    wider = choose_components(false, AXIAL, settings=replace(settings, vs_distance_mm=60))
    assert np.array_equal(wider == 1, (false == 1) & (labels != 1))


def test_a_pair_of_specks_does_not_beat_a_cochlea():
    labels = head(left=None)
    specks = labels.copy()
    for x in (-32, 20):
        ball(specks, AXIAL, (x, 27, 0), 1.2, 2)
    assert np.array_equal(choose_components(specks, AXIAL) == 2, labels == 2)


def test_small_fragments_nearby_belong_to_their_structure():
    labels = head()
    expected = labels.copy()
    for centre, value in (((34, 6.5, 0), 2), ((-22, -17, 1), 1)):
        ball(expected, AXIAL, centre, 1.3, value)
    assert label(expected == 2, np.ones((3, 3, 3)))[1] == 3
    assert label(expected == 1, np.ones((3, 3, 3)))[1] == 2
    far = expected.copy()
    ball(far, AXIAL, (34, 16, 0), 1.3, 2)
    assert np.array_equal(choose_components(far, AXIAL), expected)
    large = expected.copy()
    ball(large, AXIAL, (34, -8, 0), 2.8, 2)
    assert np.array_equal(choose_components(large, AXIAL), expected)
    alone = choose_components(far, AXIAL, settings=AnatomySettings(fragment_mm=0.5))
    assert np.array_equal(alone, labels)


@pytest.mark.parametrize(
    "settings", [{"cochlea_distance_mm": (80, 40)}, {"level_mm": 0}, {"vs_gap_mm": float("nan")}, {"levl_mm": 3}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError, match="anatomy is"):
        PlausibleComponentsd("pred", settings)


def test_the_transform_cleans_on_the_maps_own_affine_and_is_off_by_default():
    affine = oblique()
    labels = head(affine)
    false = labels.copy()
    ball(false, affine, (20, -30, -6), 9, 1)
    item = {"pred": MetaTensor(torch.from_numpy(false)[None].float(), affine=affine), "case": "a"}
    assert torch.equal(PlausibleComponentsd("pred")(item)["pred"], item["pred"])
    cleaned = PlausibleComponentsd("pred", {})(item)
    assert np.array_equal(cleaned["pred"][0], labels)
    assert cleaned["pred"].dtype == torch.float32
    assert np.array_equal(cleaned["pred"].affine, affine)
    chances = np.zeros((3, *SHAPE))
    chances[1] = (labels == 0) & (false == 1)
    item["probabilities"] = MetaTensor(torch.from_numpy(chances), affine=affine)
    assert np.array_equal(
        PlausibleComponentsd("pred", {"vs_distance_mm": 200, "vs_gap_mm": 999})(item)["pred"][0] == 1, chances[1]
    )


def test_the_settings_travel_in_the_description_of_a_model(tmp_path):
    replace(NOMINAL, anatomy={"level_mm": 20.0}).write(tmp_path)
    assert read_model(tmp_path).anatomy == {"level_mm": 20.0}
    NOMINAL.write(tmp_path)
    assert read_model(tmp_path).anatomy is None


def test_statistics_are_the_ranges_of_plain_code_and_survive_json():
    heads = [head(), head(vs=(-12, -14, 2)), head(right=(30, 4, 1), vs=(14, -10, 0))]
    ball(heads[2], AXIAL, (14, -20, 0), 1.3, 1)
    found = SourceStatistics.measure([(labels, AXIAL) for labels in heads], volume_factor=3.0)
    voxel = np.prod(SPACING)
    sizes = [voxel * (labels == 1).sum() for labels in heads]
    assert found.volume_mm3["VS"] == pytest.approx([min(sizes), max(sizes)])
    cochleae = [(np.argwhere(label(labels == 2)[0] == n) * SPACING).tolist() for labels in heads for n in (1, 2)]
    assert found.volume_mm3["cochlea"] == pytest.approx(
        [voxel * min(map(len, cochleae)), voxel * max(map(len, cochleae))]
    )
    apart = [np.linalg.norm(np.mean(a, 0) - np.mean(b, 0)) for a, b in zip(cochleae[::2], cochleae[1::2], strict=True)]
    assert found.cochlea_cochlea_mm == pytest.approx([min(apart), max(apart)])
    tumours = [np.mean(np.argwhere(labels == 1) * SPACING, 0) for labels in heads]
    near = [
        min(np.linalg.norm(np.mean(side, 0) - tumour) for side in pair)
        for tumour, pair in zip(tumours, zip(cochleae[::2], cochleae[1::2], strict=True), strict=True)
    ]
    assert found.vs_cochlea_mm == pytest.approx([min(near), max(near)])
    assert found.components == {"VS": [1, 2], "cochlea": [2, 2]}
    assert SourceStatistics.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"mean": 3},
        {**statistics().to_json(), "vs_cochlea_mm": [9, 3]},
        {**statistics().to_json(), "components": {}},
    ],
)
def test_other_files_are_no_statistics(content):
    with pytest.raises(InputError, match="no statistics"):
        SourceStatistics.from_json(content)


def test_statistics_need_a_whole_label_map():
    with pytest.raises(InputError, match="true label maps"):
        SourceStatistics.measure([(head(left=None), AXIAL)])


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS)
def test_true_label_maps_are_plausible(affine):
    assert plausibility(head(affine), affine, statistics()) == {"score": 1.0, "reasons": []}


@pytest.mark.parametrize(
    ("change", "score", "reason"),
    [
        ({"right": None}, 0.5, "one cochlea"),
        ({"vs": None}, 0, "no VS"),
        ({"left": None, "right": None}, 0, "no cochlea"),
        ({"vs": (0, -30, 1)}, None, "the distance of the VS"),
    ],
)
def test_what_is_wrong_lowers_the_score_and_is_named(change, score, reason):
    found = plausibility(head(**change), AXIAL, statistics())
    assert any(reason in sentence for sentence in found["reasons"])
    assert found["score"] < 1
    if score is not None:
        assert found["score"] == score


def test_volumes_and_parts_out_of_range_count_by_their_ratio():
    labels = head()
    voxels = int((labels == 1).sum())
    volume = voxels * np.prod(SPACING)
    bounds = statistics(volume_mm3={**statistics().volume_mm3, "VS": [10 * volume, 20 * volume]})
    assert plausibility(labels, AXIAL, bounds)["score"] == pytest.approx(1 / 5)
    bounds = statistics(volume_mm3={**statistics().volume_mm3, "VS": [volume / 20, volume / 10]})
    assert plausibility(labels, AXIAL, bounds)["score"] == pytest.approx(1 / 5)
    for centre in ((0, -20, -10), (0, 18, -10), (0, -20, 10)):
        ball(labels, AXIAL, centre, 1.3, 1)
    more = int((labels == 1).sum())
    found = plausibility(labels, AXIAL, statistics())
    assert found["score"] == pytest.approx(2 / 4 * voxels / more)
    assert len(found["reasons"]) == 2


def test_structures_that_changed_places_are_implausible():
    labels = head()
    assert plausibility(np.choose(labels, [0, 2, 1]).astype(np.uint8), AXIAL, statistics())["score"] < 0.3


@pytest.mark.parametrize("save_probabilities", [False, True])
@pytest.mark.parametrize("anatomy", [None, {}])
def test_inference_keeps_what_is_sure_if_the_model_says_so(tmp_path, save_probabilities, anatomy):
    affine, true = AXIAL, head()
    false = true.copy()
    ball(false, affine, (20, -8, 1), 8, 1)
    assert not np.array_equal(choose_components(false, affine), true)
    chances = np.zeros((3, *SHAPE), dtype=np.float32)
    np.put_along_axis(chances, false[None].astype(int), 0.9, axis=0)
    chances[1, (false == 1) & (true != 1)] = 0.2
    image = np.ones(SHAPE, dtype=np.float32)
    image[:5], image[:, -3:] = 0, 0
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "a.nii.gz")
    replace(NOMINAL, anatomy=anatomy).write(tmp_path)
    parser = ConfigParser(ConfigParser.load_config_file(INFERENCE))
    parser.update({"model_dir": str(tmp_path), "output_dir": str(tmp_path), "save_probabilities": save_probabilities})
    item = parser.get_parsed_content("preprocessing")({"case": "a", "image": str(tmp_path / "a.nii.gz")})
    cropped = MetaTensor(torch.from_numpy(chances[:, 5:, :-3]), meta=item["image"].meta)
    assert cropped.shape[1:] == item["image"].shape[1:]
    parser.get_parsed_content("postprocessing")({**item, "pred": cropped})
    saved = np.asarray(nib.load(tmp_path / "a_Label.nii.gz").dataobj)
    assert np.array_equal(saved, false if anatomy is None else true)
    assert (tmp_path / "a_Probabilities.nii.gz").is_file() == save_probabilities
