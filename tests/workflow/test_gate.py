"""Which pseudo-labels are trusted, against plain code; the best stay; no worse model is handed over."""

from itertools import combinations

import nibabel as nib
import numpy as np
import pytest

from plugins.errors import InputError
from plugins.files import read_json, write_json
from plugins.segmentation import SourceStatistics
from plugins.workflow.gate import OF_VOXELS, Thresholds, accept_round, gate_pseudo_labels, score_model, write_regions
from plugins.workflow.scoring import pairwise_dice

AFFINE = np.array([[-2.0, 0.125, 0, 60], [0.125, 2.0, 0, -40], [0, 0, 2.0, -16], [0, 0, 0, 1]])
SHAPE = (60, 40, 16)


def ball(labels, centre, radius, value):
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in labels.shape), indexing="ij"), -1)
    world = grid @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    labels[np.linalg.norm(world - centre, axis=-1) <= radius] = value


def head(shift=0.0, vs=True, cochleae=(34, -33)):
    labels = np.zeros(SHAPE, dtype=np.uint8)
    if vs:
        ball(labels, (-22, -7 + shift, 1), 7, 1)
    for x in cochleae:
        ball(labels, (x, shift, 1), 4, 2)
    return labels


def dice(a, b):
    a, b = {tuple(p) for p in np.argwhere(a)}, {tuple(p) for p in np.argwhere(b)}
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 0.0


class Run:
    """The files of a round: an ensemble, its members, and the source's statistics."""

    def __init__(self, folder):
        self.folder, self.cases = folder, []
        write_json(folder / "statistics.json", SourceStatistics.measure([(head(), AFFINE)]).to_json())

    def save(self, name, array):
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), self.folder / name)

    def add(self, case, ensemble, members=(), probabilities=None):
        self.cases.append(case)
        self.save(f"scans/{case}.nii.gz", np.zeros(SHAPE, dtype=np.float32))
        self.save(f"ensemble/{case}_Label.nii.gz", ensemble)
        for number, member in enumerate(members):
            self.save(f"member_{number}/{case}_Label.nii.gz", member)
        if probabilities is not None:
            self.save(f"ensemble/{case}_Probabilities.nii.gz", np.moveaxis(probabilities, 0, -1).astype(np.float32))
        items = [{"case": name, "image": str(self.folder / "scans" / f"{name}.nii.gz")} for name in self.cases]
        write_json(self.folder / "target.json", {"training": items})
        self.members = [str(self.folder / f"member_{number}") for number in range(len(members))]

    @property
    def arguments(self):
        files = [str(self.folder / name) for name in ("target.json", "ensemble", "statistics.json", "out")]
        return [files[0], files[1], self.members, files[2], files[3]]

    def gate(self, **settings):
        content = gate_pseudo_labels(*self.arguments, thresholds=settings)
        assert content == read_json(self.folder / "out" / "gate.json")
        return {row["case"]: row for row in content["cases"]}

    def label(self, case):
        file = self.folder / "out" / f"{case}_Label.nii.gz"
        if not file.is_file():
            return None
        image = nib.load(file)
        assert np.array_equal(image.affine, AFFINE)
        return np.asarray(image.dataobj)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_agreement_is_the_mean_dice_of_all_pairs(count):
    masks = [np.random.default_rng(seed).random((5, 6, 7)) > 0.6 for seed in range(count)]
    assert pairwise_dice(masks) == pytest.approx(np.mean([dice(a, b) for a, b in combinations(masks, 2)]))


def test_agreement_of_nothing_and_of_too_few():
    empty, full = np.zeros((2, 2, 2), dtype=bool), np.ones((2, 2, 2), dtype=bool)
    assert pairwise_dice([empty, empty]) == 0
    assert pairwise_dice([empty, full]) == 0
    assert pairwise_dice([full, full]) == 1
    assert pairwise_dice([full]) is None
    assert pairwise_dice([]) is None


def test_members_that_agree_give_the_label_as_it_is_and_full_weight(run):
    run.add("a", head(), [head(), head()])
    row = run.gate()["a"]
    assert np.array_equal(run.label("a"), head())
    assert (row["kept"], row["weight"], row["ignored_voxels"], row["reasons"]) == (True, 1, 0, [])
    assert row["agreement"] == {"VS": 1, "cochlea": 1}
    assert row["complete"]
    voxel = abs(np.linalg.det(AFFINE[:3, :3]))
    assert row["volumes_mm3"]["VS"] == pytest.approx(voxel * (head() == 1).sum(), abs=1e-3)


def test_parts_that_are_removed_are_ignored_and_members_compared_without_theirs(run):
    false = head()
    ball(false, (15, -25, -8), 8, 1)
    run.add("a", false, [head(), false])
    row = run.gate()["a"]
    removed = (false == 1) & (head() == 0)
    assert np.array_equal(run.label("a"), np.where(removed, 3, head()))
    assert row["ignored_voxels"] == removed.sum()
    assert row["agreement"]["VS"] == 1
    assert 0 < row["plausibility"] < row["plausibility_chosen"] == 1
    assert not row["complete"]


def test_voxels_that_too_few_members_see_are_ignored(run):
    members = [head(), head(2.0), head(4.0)]
    run.add("a", head(2.0), members)
    row = run.gate(min_vote=0.6, min_agreement=0.0)["a"]
    votes = np.mean([member == head(2.0) for member in members], axis=0)
    expected = np.where(votes < 0.6, 3, head(2.0))
    assert np.array_equal(run.label("a"), expected)
    assert row["ignored_voxels"] == (votes < 0.6).sum() > 0
    assert row["weight"] == 0.5
    for name, value in (("VS", 1), ("cochlea", 2)):
        pairs = [dice(a == value, b == value) for a, b in combinations(members, 2)]
        assert row["agreement"][name] == pytest.approx(np.mean(pairs))


def test_voxels_of_which_the_ensemble_is_unsure_are_ignored_near_the_structures_only(run):
    labels = head()
    chances = np.zeros((3, *SHAPE))
    np.put_along_axis(chances, labels[None].astype(int), 0.9, axis=0)
    unsure = np.argwhere(labels == 1)[::3]
    beside = np.argwhere(labels == 1)[-1] + [2, 0, 0]
    far = np.array([2, 2, 2])
    for voxel in (*unsure, beside, far):
        chances[(slice(None), *voxel)] = np.where(chances[(slice(None), *voxel)] > 0, 0.55, 0.45)
    run.add("a", labels, probabilities=chances)
    row = run.gate(near_mm=10)["a"]
    expected = labels.copy()
    expected[tuple(unsure.T)] = 3
    expected[tuple(beside)] = 3
    assert np.array_equal(run.label("a"), expected)
    assert row["agreement"] == {"VS": None, "cochlea": None}
    assert row["confidence"]["VS"] == pytest.approx(chances[1][labels == 1].mean())


def test_a_part_that_only_the_probabilities_show_is_ignored(run):
    chances = np.zeros((3, *SHAPE))
    lost = head()
    ball(lost, (15, -25, -8), 8, 1)
    np.put_along_axis(chances, lost[None].astype(int), 1.0, axis=0)
    run.add("a", head(), probabilities=chances)
    run.gate()
    assert np.array_equal(run.label("a"), np.where(lost != head(), 3, head()))


def test_a_structure_without_agreement_is_ignored_wherever_a_member_sees_it(run):
    members = [head(), head(cochleae=(46, -20)), head(cochleae=(20, -45))]
    run.add("a", head(), members)
    row = run.gate()["a"]
    assert row["kept"]
    assert "agreement on the cochlea is 0.00" in row["reasons"]
    seen = np.any([member == 2 for member in members], axis=0)
    assert np.array_equal(run.label("a"), np.where(seen, 3, head()))


def test_doubtful_scans_are_left_out_and_the_best_third_stays(run):
    for number in range(4):
        run.add(f"good_{number}", head(), [head(), head()])
    run.add("apart", head(), [head(), head(20.0)])
    run.add("no_vs", head(vs=False), [head(vs=False), head(vs=False)])
    rows = run.gate()
    assert [case for case, row in rows.items() if not row["kept"]] == ["apart", "no_vs"]
    assert run.label("apart") is None
    assert run.label("no_vs") is None
    assert "no VS" in rows["no_vs"]["reasons"]


def test_where_all_scans_are_doubtful_the_best_third_stays_with_less_weight(run):
    for number, shift in enumerate((6.0, 20.0, 8.0, 22.0)):
        run.add(f"case_{number}", head(), [head(), head(shift)])
    run.add("empty", head() * 0, [head() * 0, head() * 0])
    rows = run.gate(min_agreement=0.99)
    kept = {case for case, row in rows.items() if row["kept"]}
    assert kept == {"case_0", "case_2"}
    assert {rows[case]["weight"] for case in kept} == {0.5}
    assert "kept all the same, as one of the best" in rows["case_0"]["reasons"]
    assert {1, 2} <= set(np.unique(run.label("case_0")))
    assert run.label("empty") is None


def confident(labels, low, high):
    """Probabilities of a label map that rise from ``low`` to ``high`` over the voxels of each structure."""
    chances = np.zeros((3, *labels.shape), np.float32)
    chances[0][labels == 0] = 1
    for value in (1, 2):
        steps = np.linspace(low, high, (labels == value).sum()).astype(np.float32)
        chances[value][labels == value] = steps
        chances[0][labels == value] = 1 - steps
    return chances


def test_of_each_structure_the_most_confident_share_over_all_scans_is_kept(run):
    chances = {"a": confident(head(), 0.7, 0.9), "b": confident(head(2.0), 0.8, 1.0)}
    for case, labels in (("a", head()), ("b", head(2.0))):
        run.add(case, labels, probabilities=chances[case])
    rows = run.gate(top_share=0.4)
    content = read_json(run.folder / "out" / "gate.json")
    assert content["thresholds"]["top_share"] == 0.4
    ignored = dict.fromkeys("ab", 0)
    for name, value in (("VS", 1), ("cochlea", 2)):
        drawn = {"a": head() == value, "b": head(2.0) == value}
        everything = sorted((p for case in "ab" for p in chances[case][value][drawn[case]]), reverse=True)
        last = everything[round(0.4 * len(everything)) - 1]
        told = content["top"][name]
        assert told["voxels"] == len(everything)
        assert told["kept"] == sum(p >= last for p in everything) < 0.5 * len(everything)
        assert told["lowest_probability"] == pytest.approx(last, abs=1e-3)
        for case in "ab":
            kept = drawn[case] & (chances[case][value] >= last)
            assert np.array_equal(run.label(case) == value, kept)
            assert (run.label(case)[drawn[case] & ~kept] == 3).all()
            left_out = int((drawn[case] & ~kept).sum())
            assert f"{left_out} voxels of the {name} are not among the most confident" in rows[case]["reasons"]
            ignored[case] += left_out
    assert {case: row["ignored_voxels"] for case, row in rows.items()} == ignored


def test_a_scan_without_any_of_the_most_confident_voxels_is_left_out(run):
    run.add("sure", head(), probabilities=confident(head(), 0.9, 1.0))
    run.add("unsure", head(), probabilities=confident(head(), 0.65, 0.7))
    rows = run.gate(top_share=0.5)
    assert {case: row["kept"] for case, row in rows.items()} == {"sure": True, "unsure": False}
    assert run.label("unsure") is None
    assert np.array_equal(run.label("sure"), head())
    assert read_json(run.folder / "out" / "gate.json")["kept"] == 1


def test_by_default_no_share_is_taken_and_a_share_needs_probabilities(run):
    run.add("a", head())
    run.gate()
    assert "top" not in read_json(run.folder / "out" / "gate.json")
    assert np.array_equal(run.label("a"), head())
    with pytest.raises(InputError, match="top_share needs it"):
        run.gate(top_share=0.5)


def test_nothing_but_empty_maps_is_an_error(run):
    run.add("a", head() * 0)
    with pytest.raises(InputError, match="Train longer"):
        run.gate()


def test_whole_scans_are_kept_without_a_doubt_or_left_out(run):
    run.add("sure", head(), [head(1.0), head(1.0)])
    run.add("doubtful", head(), [head(), head(20.0)])
    rows = run.gate(whole_scans=True, keep_share=0)
    assert (rows["sure"]["kept"], rows["doubtful"]["kept"]) == (True, False)
    assert np.array_equal(run.label("sure"), head())
    assert run.label("doubtful") is None


def test_by_default_voxels_that_members_see_otherwise_are_ignored_in_a_scan_that_is_kept(run):
    run.add("sure", head(), [head(1.0), head(1.0)])
    assert run.gate(keep_share=0)["sure"]["kept"]
    assert np.array_equal(run.label("sure"), np.where(head() == head(1.0), head(), 3))


def test_where_all_scans_are_doubtful_the_best_share_of_whole_scans_stays(run):
    for number, shift in enumerate((6.0, 20.0, 8.0, 22.0)):
        run.add(f"case_{number}", head(), [head(), head(shift)])
    rows = run.gate(whole_scans=True, min_agreement=0.99, keep_share=0.5)
    assert [case for case, row in rows.items() if row["kept"]] == ["case_0", "case_2"]
    for case in ("case_0", "case_2"):
        assert np.array_equal(run.label(case), head())
        assert rows[case]["ignored_voxels"] == 0


def test_a_gate_that_keeps_no_scan_is_an_error(run):
    for number in range(3):
        run.add(f"apart_{number}", head(), [head(), head(20.0)])
    with pytest.raises(InputError, match=r"the gate keeps no scan\. Raise keep_share"):
        run.gate(min_agreement=0.99, keep_share=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"min_vote": 1.5},
        {"near_mm": -1},
        {"min_agrement": 0.5},
        {"top_share": 0},
        {"whole_scans": 0.5},
        {"consensus_weight": 0},
        {"keep_share": "a"},
        {"near_mm": True},
    ],
)
def test_impossible_thresholds_are_refused(run, settings):
    run.add("a", head())
    with pytest.raises(
        InputError, match=f"thresholds.*{next(iter(settings))} (must be|is no number)|thresholds.*unexpected"
    ):
        run.gate(**settings)


@pytest.mark.parametrize("name", OF_VOXELS)
def test_a_threshold_of_voxels_beside_whole_scans_is_refused(name):
    assert Thresholds.of({name: 0.5}).whole_scans is False
    assert Thresholds.of({name: 0.5, "whole_scans": False}) == Thresholds.of({name: 0.5})
    with pytest.raises(InputError, match=f"whole_scans is true, so {name} would have no effect"):
        Thresholds.of({name: 0.5, "whole_scans": True})


def test_missing_and_foreign_files_are_named(run):
    run.add("a", head(), [head()])
    (run.folder / "member_0" / "a_Label.nii.gz").unlink()
    with pytest.raises(InputError, match="member_0"):
        run.gate()
    run.save("member_0/a_Label.nii.gz", head()[:-1])
    with pytest.raises(InputError, match="has shape"):
        run.gate()
    run.save("member_0/a_Label.nii.gz", head())
    run.save("ensemble/a_Probabilities.nii.gz", np.zeros((4, 5, 6, 3), dtype=np.float32))
    with pytest.raises(InputError, match="Probabilities"):
        run.gate()


def test_statistics_may_be_a_datalist_with_labels(run):
    run.add("a", head())
    run.save("true.nii.gz", head())
    item = {"image": str(run.folder / "scans" / "a.nii.gz"), "label": str(run.folder / "true.nii.gz")}
    known = read_json(run.folder / "statistics.json")
    write_json(run.folder / "statistics.json", {"training": [item, item]})
    assert score_model(*run.arguments)["statistics"] == known


def test_a_score_is_the_mean_over_scans_and_equals_that_of_the_gate(run):
    run.add("a", head(), [head(), head()])
    run.add("b", head(vs=False), [head(2.0), head()])
    content = score_model(*run.arguments)
    assert content == read_json(run.folder / "out" / "score.json")
    assert content["mean"]["agreement"]["VS"] == pytest.approx((1 + dice(head(2.0) == 1, head() == 1)) / 2)
    assert content["mean"]["plausibility"] == 0.5
    assert (content["mean"]["complete"], content["mean"]["scans"]) == (0.5, 2)
    run.gate()
    assert read_json(run.folder / "out" / "gate.json")["mean"] == content["mean"]


def score(folder, name, vs, cochlea, plausible, cases=("a", "b")):
    rows = [
        {"case": case, "agreement": {"VS": vs, "cochlea": cochlea}, "plausibility": plausible, "complete": True}
        for case in cases
    ]
    write_json(folder / name, {"mean": {"plausibility": plausible}, "cases": rows})
    return str(folder / name)


@pytest.mark.parametrize(
    ("after", "accepted"),
    [
        ((0.6, 0.5, 0.8), True),
        ((0.591, 0.491, 0.791), True),
        ((0.9, 0.9, 0.9), True),
        ((0.58, 0.9, 0.9), False),
        ((0.9, 0.48, 0.9), False),
        ((0.9, 0.9, 0.78), False),
    ],
)
def test_a_round_is_accepted_only_if_nothing_falls(tmp_path, after, accepted):
    files = score(tmp_path, "before.json", 0.6, 0.5, 0.8), score(tmp_path, "after.json", *after)
    content = accept_round(*files, str(tmp_path), "round_0", "round_1")
    assert content == read_json(tmp_path / "accepted.json")
    assert content["accepted"] == accepted
    assert content["model"] == ("round_1" if accepted else "round_0")
    assert content["sentence"].startswith("accepted" if accepted else "refused")
    assert content["mean"]["plausibility"] == (after[2] if accepted else 0.8)
    wide = accept_round(*files, str(tmp_path), "round_0", "round_1", tolerance=0.5)
    assert wide["accepted"]


def varied(folder, name, values):
    cases = [f"case_{number}" for number in range(len(values))]
    rows = read_json(score(folder, name, 0.8, 0.8, 0.8, cases))
    for row, value in zip(rows["cases"], values, strict=True):
        row["plausibility"] = value
    write_json(folder / name, rows)
    return str(folder / name)


@pytest.mark.parametrize(
    ("falls", "accepted"),
    [
        ([0.2, 0, 0, 0, 0, 0, 0, 0], True),
        ([0.025, 0.026, 0.025, 0.026, 0.025, 0.026, 0.025, 0.026], False),
        ([0.8, 0, 0, 0, 0, 0, 0, 0], False),
        ([0.009] * 8, True),
    ],
    ids=["one scan, by little: chance", "all scans alike: no chance", "one scan, by much", "all within the tolerance"],
)
def test_a_fall_that_may_be_chance_does_not_count_unless_it_is_large(tmp_path, falls, accepted):
    before = varied(tmp_path, "before.json", [0.9] * 8)
    after = varied(tmp_path, "after.json", [0.9 - fall for fall in falls])
    content = accept_round(before, after, str(tmp_path))
    assert content["accepted"] == accepted
    spread = np.std(falls, ddof=1) / np.sqrt(8)
    assert content["allowed"]["plausibility"] == pytest.approx(min(max(2 * spread, 0.01), 0.05))


def test_a_later_round_is_held_against_the_model_that_was_handed_over(tmp_path):
    first = score(tmp_path, "0.json", 0.8, 0.8, 0.8)
    accept_round(first, score(tmp_path, "1.json", 0.2, 0.2, 0.2), str(tmp_path / "1"), "round_0", "round_1")
    third = score(tmp_path, "2.json", 0.5, 0.5, 0.5)
    content = accept_round(str(tmp_path / "1" / "accepted.json"), third, str(tmp_path / "2"), after_model="round_2")
    assert (content["accepted"], content["model"]) == (False, "round_0")


def test_scans_that_one_model_lacks_do_not_count(tmp_path):
    before = score(tmp_path, "before.json", 0.5, 0.5, 0.5, ("a", "b"))
    rows = read_json(score(tmp_path, "after.json", 0.5, 0.5, 0.5, ("b", "c")))
    rows["cases"][1]["plausibility"] = 0.0
    write_json(tmp_path / "after.json", rows)
    assert accept_round(before, str(tmp_path / "after.json"), str(tmp_path))["accepted"]
    other = score(tmp_path, "other.json", 0.5, 0.5, 0.5, ("d",))
    with pytest.raises(InputError, match="no scan in common"):
        accept_round(before, other, str(tmp_path))


def test_unknown_agreement_leaves_the_decision_to_plausibility(tmp_path):
    before = score(tmp_path, "before.json", None, 0.5, 0.5)
    after = score(tmp_path, "after.json", 0.1, None, 0.5)
    content = accept_round(before, after, str(tmp_path))
    assert content["accepted"]
    assert content["measures"]["agreement on the VS"] == {"before": None, "after": 0.1}
    assert not accept_round(before, score(tmp_path, "after.json", None, None, 0.4), str(tmp_path))["accepted"]


def test_other_files_are_no_scores(tmp_path):
    write_json(tmp_path / "x.json", {"cases": [{"case": "a"}]})
    with pytest.raises(InputError, match="no score"):
        accept_round(str(tmp_path / "x.json"), str(tmp_path / "x.json"), str(tmp_path))


def test_regions_are_pseudo_labels_in_which_voxels_to_ignore_are_others(tmp_path):
    labels = head()
    ignored = labels.copy()
    ignored[labels == 2] = 3
    nib.save(nib.Nifti1Image(ignored, AFFINE), tmp_path / "a_Label.nii.gz")
    write_regions(str(tmp_path), str(tmp_path / "regions"))
    regions = nib.load(tmp_path / "regions" / "a_Label.nii.gz")
    np.testing.assert_array_equal(regions.dataobj, np.where(labels == 1, 1, 0))
    np.testing.assert_allclose(regions.affine, AFFINE)
