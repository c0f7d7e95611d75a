import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import label as components

from plugins.data import phantom
from plugins.data.checks import check_scans
from plugins.data.crossmoda import crossmoda_datalist, heldout_labels
from plugins.data.phantom import write_phantom
from plugins.data.phantom_anatomy import Head, lps_affine, paint
from plugins.data.phantom_signal import PROTOCOLS, TISSUES, acquire, smooth_noise, with_contrast_agent
from plugins.errors import InputError

GRID: Any = ((72, 72, 15), (1.4, 1.4, 1.6))
FINE_GRID: Any = ((84, 60, 15), (1.0, 1.1, 1.2))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", num_source=3, num_target=2, num_validation=2)


@pytest.fixture
def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom, "GRIDS", dict.fromkeys(phantom.GRIDS, ((26, 24, 9), (4.0, 4.2, 2.6))))


def voxels(path: str | Path) -> Any:
    return nib.load(path).get_fdata()


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def head(seed: int, koos: int = 3) -> Head:
    drawn = Head.draw(np.random.default_rng(seed))
    return Head(drawn.tilt, drawn.size, drawn.side, koos, False, drawn.canals, drawn.view)


def test_layout_is_that_of_crossmoda_2022(root: Path) -> None:
    expected = {
        "training_source": ["crossmoda2021_ldn_1", "crossmoda2021_ldn_2", "crossmoda2022_etz_0"],
        "training_target": ["crossmoda2021_ldn_106", "crossmoda2022_etz_105"],
        "validation": ["crossmoda2021_ldn_211", "crossmoda2022_etz_210"],
    }
    for split, cases in expected.items():
        assert [item["case"] for item in crossmoda_datalist(root, split)] == cases


def test_every_scan_passes_the_checks(root: Path) -> None:
    for split in ("training_source", "training_target", "validation"):
        items = crossmoda_datalist(root, split)
        check_scans(
            [item | {"label": heldout_labels(root, split).get(item["case"], item.get("label"))} for item in items]
        )


def test_truth_of_the_targets_lies_in_no_training_folder(root: Path) -> None:
    labels = {path.parent.name for path in root.rglob("*_Label.nii.gz")}
    assert labels == {"training_source", "validation_labels", "training_target_labels"}
    assert {path.parent.name for path in root.rglob("*_hrT2.nii.gz")} == {
        "training_target",
        "validation",
        "source_hrT2",
    }
    for split in ("training_target", "validation"):
        assert list(heldout_labels(root, split)) == [item["case"] for item in crossmoda_datalist(root, split)]


def test_storage_has_the_traps_of_the_real_data(root: Path) -> None:
    for item in crossmoda_datalist(root, "training_source"):
        image = nib.load(item["image"])
        assert image.get_data_dtype() == np.int16
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert int(image.header["sform_code"]) == 2
    folder = root / "crossmoda2022_training" / "training_source"
    assert nib.load(folder / "crossmoda2021_ldn_1_Label.nii.gz").get_data_dtype() == np.float64
    tilburg = voxels(folder / "crossmoda2022_etz_0_Label.nii.gz")
    assert not np.any(tilburg == 1)
    assert set(np.unique(np.rint(tilburg))) == {0, 1, 2}


def test_table_of_the_source_lists_every_case(root: Path) -> None:
    with (root / "crossmoda2022_training" / "infos_source_training.csv").open() as file:
        rows = {row["crossmoda_name"]: row for row in csv.DictReader(file)}
    assert set(rows) == {item["case"] for item in crossmoda_datalist(root, "training_source")}
    assert rows["crossmoda2022_etz_0"]["center"] == "Tilburg"
    assert all(row["koos"] in "1234" and row["group"] == "training_source" for row in rows.values())


def test_same_arguments_give_the_same_bytes_and_another_seed_others(tmp_path: Path, small_grids: None) -> None:
    sizes = {"num_source": 1, "num_target": 1, "num_validation": 0}
    first, again = (content(write_phantom(tmp_path / name, **sizes, seed=5)) for name in ("a", "b"))
    assert first == again
    other = content(write_phantom(tmp_path / "c", **sizes, seed=6))
    assert first.keys() == other.keys()
    assert not [name for name in first if name.endswith(".gz") and first[name] == other[name]]


def test_heads_are_all_different(root: Path) -> None:
    labels = [voxels(path).tobytes() for path in sorted(root.rglob("*_Label.nii.gz"))]
    assert len(set(labels)) == len(labels) == 7


def test_more_cases_leave_the_others_as_they_are(tmp_path: Path, small_grids: None) -> None:
    few = content(write_phantom(tmp_path / "few", num_source=1, num_target=0, num_validation=1))
    many = content(write_phantom(tmp_path / "many", num_source=2, num_target=1, num_validation=2))
    assert all(many[name] == few[name] for name in few if name.endswith(".gz"))


def test_complete_phantom_is_left_alone_and_another_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_grids: None
) -> None:
    sizes = {"num_source": 0, "num_target": 1, "num_validation": 0}
    folder = write_phantom(tmp_path / "data", **sizes)
    (folder / "mark").touch()
    with monkeypatch.context() as patch:
        patch.setattr(phantom, "_write_all", None)
        assert write_phantom(folder, **sizes) == folder
    assert (folder / "mark").exists()
    write_phantom(folder, **(sizes | {"num_target": 2}))
    assert not (folder / "mark").exists()
    assert len(crossmoda_datalist(folder, "training_target")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_grids: None) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom, "_write_infos", fail)
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "data", num_source=0, num_target=1, num_validation=0)
    assert list(tmp_path.iterdir()) == []


def test_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="something else than a phantom"):
        write_phantom(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("wrong", [{"num_source": -1}, {"num_target": 211}, {"seed": -1}])
def test_numbers_out_of_range_are_named(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} of the phantom is"):
        write_phantom(tmp_path / "data", **wrong)


@pytest.mark.parametrize("koos", [1, 2, 3, 4])
def test_volumes_are_those_of_real_structures(koos: int) -> None:
    _, labels = paint(head(koos, koos), *GRID, np.random.default_rng(koos))
    voxel_mm3 = np.prod(GRID[1])
    low, high = {1: (60, 350), 2: (250, 1100), 3: (700, 3000), 4: (2000, 8000)}[koos]
    assert low < np.count_nonzero(labels == 1) * voxel_mm3 < high
    assert 70 < np.count_nonzero(labels == 2) * voxel_mm3 < 300


def test_one_tumour_and_a_cochlea_on_either_side() -> None:
    for seed in range(3):
        drawn = head(seed)
        _, labels = paint(drawn, *GRID, np.random.default_rng(seed))
        assert components(labels == 1)[1] == 1
        columns = [np.flatnonzero((labels == value).any((1, 2))) for value in (1, 2)]
        middle = GRID[0][0] / 2
        assert (columns[0].mean() < middle) == (drawn.side > 0), "LPS: the first column is the right side"
        assert columns[1].min() < middle < columns[1].max()


def test_fractions_sum_to_one_at_every_voxel() -> None:
    fractions, _ = paint(head(0), *GRID, np.random.default_rng(0))
    np.testing.assert_allclose(sum(fractions.values()), 1, atol=1e-5)
    assert min(fraction.min() for fraction in fractions.values()) >= 0
    assert fractions["schwannoma"].max() > 0.99
    assert fractions["cyst"].max() == 0


@pytest.mark.parametrize("site", ["ldn", "etz"])
def test_contrasts_are_those_of_the_two_scans(site: str) -> None:
    fractions, labels = paint(head(1), *FINE_GRID, np.random.default_rng(1))
    brain = fractions["white"] + fractions["grey"] > 0.95

    def relative(contrast: str) -> tuple[float, float, float]:
        image = acquire(fractions, site, contrast, FINE_GRID[1], np.random.default_rng(2)).astype(float)
        values = (image[region].mean() for region in (labels == 1, labels == 2, fractions["csf"] > 0.95))
        return tuple(value / image[brain].mean() for value in values)  # type: ignore[return-value]

    tumour, cochlea, fluid = relative("ceT1")
    assert tumour > 1.4
    assert cochlea < 0.6
    assert fluid < 0.6
    tumour, cochlea, fluid = relative("hrT2")
    assert 0.6 < tumour < 2.4
    assert cochlea > 1.5
    assert cochlea > tumour
    assert fluid > 2 * tumour


def test_contrast_agent_shortens_relaxation_by_the_relaxivity() -> None:
    tissue = with_contrast_agent(TISSUES["schwannoma"])
    assert tissue.t1 == pytest.approx(1 / (1 / 1250 + 4.5e-3 * 0.55))
    assert tissue.t2 == pytest.approx(1 / (1 / 105 + 5.5e-3 * 0.55))


def test_signal_equations_by_hand() -> None:
    white = TISSUES["white"]  # T1 850, T2 75, PD 0.70, no uptake
    assert PROTOCOLS["etz", "hrT2"](white) == pytest.approx(0.7 * (1 - np.exp(-2800 / 850)) * np.exp(-165 / 75))
    mprage = 0.7 * (1 - 2 * np.exp(-1100 / 850) + np.exp(-1900 / 850)) * np.sin(np.pi / 12) * np.exp(-3 / 75)
    assert PROTOCOLS["ldn", "ceT1"](white) == pytest.approx(mprage)
    e1 = np.exp(-25 / 850)
    spoiled = 0.7 * 0.5 * (1 - e1) / (1 - e1 * np.sqrt(3) / 2) * np.exp(-2 / 75)
    assert PROTOCOLS["etz", "ceT1"](white) == pytest.approx(spoiled)
    # for TR << T2 a balanced sequence tends to PD sin(a) / (1 + cos(a) + (1 - cos(a)) T1 / T2)
    alpha = np.radians(65)
    balanced = 0.7 * np.sin(alpha) / (1 + np.cos(alpha) + (1 - np.cos(alpha)) * 850 / 75)
    assert PROTOCOLS["ldn", "hrT2"](white) == pytest.approx(balanced, rel=0.1)


def test_noise_of_an_empty_scan_is_rayleigh() -> None:
    fractions = {"air": np.ones((40, 41, 42), np.float32), "csf": np.zeros((40, 41, 42), np.float32)}
    image = acquire(fractions, "ldn", "ceT1", (1.0, 1.1, 1.5), np.random.default_rng(0)).astype(float)
    assert image.mean() / image.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.03)


def test_smooth_noise_is_standardised_and_smooth_over_its_scale() -> None:
    fine, coarse = (
        smooth_noise(np.random.default_rng(0), (60, 50, 20), (1.0, 1.2, 1.5), scale) for scale in (4.0, 20.0)
    )
    for field in (fine, coarse):
        assert field.shape == (60, 50, 20)
        assert (field.mean(), field.std()) == pytest.approx((0, 1), abs=1e-4)
    assert np.abs(np.diff(fine, axis=0)).mean() > 3 * np.abs(np.diff(coarse, axis=0)).mean()


def test_affine_puts_the_middle_of_the_grid_at_the_centre() -> None:
    affine = lps_affine((7, 6, 5), (1.1, 1.2, 1.5), (3, -4, 5))
    np.testing.assert_allclose(affine @ [3, 2.5, 2, 1], [3, -4, 5, 1])
    assert nib.aff2axcodes(affine) == ("L", "P", "S")
