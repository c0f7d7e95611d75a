"""The locator: what it reads from heat maps, where it places windows, how it learns, and inference around it."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.utils import manual_seed
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientation

from plugins.config.signatures import signature
from plugins.config.values import value_fault
from plugins.data import read_windows, voxel_box, write_datalist
from plugins.data.windows import Window
from plugins.errors import InputError, find_input_error
from plugins.files import read_json, write_json
from plugins.segmentation import (
    CoarseScand,
    FoldEnsemble,
    HeatMapLoss,
    LocateWindowd,
    Locator,
    LocatorNetwork,
    RandomContrastd,
    RandomFieldd,
    RandomMirrord,
    SaveLocator,
    SegmentationModel,
    locate_scans,
    read_locator,
    write_windows,
)
from plugins.segmentation.locator import coarse, normalised, read_heat_map

from .test_ensemble import FLAT

CONFIGS = Path(__file__).parents[2] / "bundles" / "vs_cochlea_seg" / "configs"
OBLIQUE = np.array([[0.94, -0.30, 0.12], [0.32, 0.93, -0.15], [-0.07, 0.18, 0.98]])
OBLIQUE = np.linalg.svd(OBLIQUE)[0] @ np.linalg.svd(OBLIQUE)[2]  # the nearest rotation
DIRECTIONS = {
    "LPS": np.diag([-1.0, -1, 1]),
    "RAS": np.eye(3),
    "PIR": np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    "oblique LPS": OBLIQUE @ np.diag([-1, -1, 1]),
}
MM = (4.0, 4.0, 5.0)


def heat_map(right=None, left=None, shape=(40, 30, 12), floor=1e-6):
    """Two maps that add up to 1, each nearly all heat at one voxel, or the same everywhere."""
    heat = np.full((2, *shape), floor)
    for side, place in enumerate((right, left)):
        if place is not None:
            heat[side][place] = 1
    return heat / heat.sum((1, 2, 3), keepdims=True)


def test_the_middle_between_two_ears_is_found():
    place = read_heat_map(heat_map((10, 12, 5), (28, 14, 6)), MM, 0.2)
    assert place.how == "two ears"
    assert place.centre == pytest.approx([19, 13, 5.5], abs=0.01)
    assert 0.95 < place.score <= 1


def test_the_score_is_the_heat_within_ten_millimetres():
    heat = heat_map((10, 12, 5), (28, 12, 5))
    heat[0] *= 0.5
    heat[0, 35, 3, 10] += 0.5
    heat[1] *= 0.8
    heat[1, 1, 25, 10] += 0.2
    assert read_heat_map(heat, MM, 0.2).score == pytest.approx(np.sqrt(0.5 * 0.8), abs=0.02)


@pytest.mark.parametrize(
    "left", [(14, 12, 5), (38, 12, 5), (28, 20, 5), (28, 12, 10), (2, 12, 5)],
    ids=["too near", "too far", "behind", "above", "on the wrong side"],
)  # fmt: skip
def test_pairs_that_no_head_has_are_not_taken(left):
    """The window lies beside the one that is surer."""
    heat = heat_map((10, 12, 5), left)
    heat[1] = 0.9 * heat[1] + 0.1 * heat_map(left=(35, 27, 11))[1]
    place = read_heat_map(heat, MM, 0.4)
    assert place.how == "one ear"
    assert place.centre == pytest.approx([10 + 35 / 4, 12, 5], abs=0.05)


def test_a_left_ear_alone_has_the_window_on_its_right():
    place = read_heat_map(heat_map(None, (28, 14, 6)), MM, 0.3)
    assert place.centre == pytest.approx([28 - 35 / 4, 14, 6], abs=0.05)


def test_a_flat_map_has_no_place():
    assert read_heat_map(heat_map(), MM, 0.2) is None


def test_a_plausible_pair_wins_over_a_surer_stray_place():
    heat = heat_map((10, 12, 5), (28, 12, 5))
    heat[1] = 0.4 * heat[1] + 0.6 * heat_map(left=(35, 27, 11))[1]
    assert read_heat_map(heat, MM, 0.2).centre == pytest.approx([19, 12, 5], abs=0.05)


def test_coarse_voxels_are_means_and_span_the_same_field():
    volume = torch.rand(2, 12, 9, 4)
    small = coarse(volume, (1.0, 1.0, 4.0), 3.0)
    assert small.shape == (2, 4, 3, 5)
    expected = volume.reshape(2, 4, 3, 3, 3, 4).mean((2, 4))
    torch.testing.assert_close(coarse(volume, (1.0, 1.0, 3.0), 3.0), expected)


def test_normalisation_leaves_zeros_out_and_survives_degenerate_scans():
    volume = torch.zeros(1, 10, 10, 10)
    volume[0, 5:] = torch.linspace(100, 300, 500).reshape(5, 10, 10)
    values = normalised(volume, (0, 100))
    assert values[0, 5:].flatten().tolist() == pytest.approx(np.linspace(0, 1, 500).tolist(), abs=1e-5)
    assert normalised(torch.zeros(1, 2, 2, 2), (1, 99)).sum() == 0
    assert torch.isfinite(normalised(torch.full((1, 2, 2, 2), 7.0), (1, 99))).all()


@pytest.mark.parametrize("size", [(17, 9, 5), (8, 8, 4), (1, 3, 1), (30, 21, 12)])
def test_the_network_takes_scans_of_any_size(size):
    network = LocatorNetwork((2, 4, 4, 4)).eval()
    assert network(torch.rand(2, 1, *size)).shape == (2, 2, *size)


class Spots(torch.nn.Module):
    """Gives the bright spot that lies farther right, and the one farther left."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        ramp = torch.linspace(0, 1, x.shape[2])[:, None, None]
        return torch.cat([60 * x - 20 * ramp, 60 * x + 20 * ramp], 1) * self.one


SPOTS = Locator(Spots(), 4.0, (60.0, 40.0, 30.0), percentiles=(1, 100))
SHAPE, SPACING = (130, 100, 40), np.array((1.1, 1.2, 1.6))  # along L, P, S
RIGHT, LEFT = (30, 60, 15), (92, 60, 19)


def head(direction=DIRECTIONS["LPS"], field=None, at=(0, 0, 0)):
    """A dim noisy scan with two bright cubes, as a tensor with its affine, maybe in a field of zeros."""
    voxels = np.random.default_rng(0).uniform(1, 20, SHAPE).astype(np.float32)
    for place in (RIGHT, LEFT):
        voxels[tuple(slice(c - 4, c + 5) for c in place)] = 900
    affine = np.eye(4)
    affine[:3, :3] = (OBLIQUE if "obl" in str(direction) else np.eye(3)) @ np.diag([-1, -1, 1]) * SPACING
    affine[:3, 3] = [40, 30, -20]
    if field is not None:
        whole = np.zeros(field, np.float32)
        whole[tuple(slice(a, a + n) for a, n in zip(at, SHAPE, strict=True))] = voxels
        affine[:3, 3] -= affine[:3, :3] @ at
        voxels = whole
    return MetaTensor(torch.from_numpy(voxels)[None], affine=affine)


def true_centre(image, at=(0, 0, 0)):
    return np.asarray(image.affine)[:3, :3] @ (np.add(RIGHT, LEFT) / 2 + at) + np.asarray(image.affine)[:3, 3]


@pytest.mark.parametrize("tilt", ["straight", "oblique"])
@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SLA"])
def test_the_window_lies_at_the_same_place_in_any_orientation(tilt, codes):
    image = head(tilt)
    window = SPOTS(Orientation(axcodes=codes, labels=None)(image))
    assert np.linalg.norm(np.subtract(window.centre, true_centre(image))) < 2.5
    assert window.size == (60, 40, 30)
    assert (window.found, window.score > 0.9) == ("locator", True)


@pytest.mark.parametrize("at", [(0, 0, 0), (36, 5, 3), (70, 60, 9)])
def test_a_larger_field_of_zeros_changes_no_voxel_of_the_window(at):
    alone, within = head(), head(field=(210, 170, 51), at=at)
    windows = [SPOTS(image) for image in (alone, within)]
    boxes = [
        voxel_box(w, image.shape[1:], np.asarray(image.affine))
        for w, image in zip(windows, (alone, within), strict=True)
    ]
    assert [edge.start + by for edge, by in zip(boxes[0], at, strict=True)] == [edge.start for edge in boxes[1]]
    assert [edge.stop + by for edge, by in zip(boxes[0], at, strict=True)] == [edge.stop for edge in boxes[1]]


def test_where_nothing_is_found_the_whole_scan_is_taken_and_the_log_says_so(caplog):
    flat = Locator(LocatorNetwork((2, 2, 2, 2)), threshold=0.9)
    with caplog.at_level(logging.WARNING):
        window = flat(head(), "case_7")
        empty = flat(MetaTensor(torch.zeros(1, 5, 6, 7), affine=torch.eye(4)), "case_8")
    assert window.found == empty.found == "whole scan"
    assert "case_7: the inner ears could not be located; the whole scan is taken." in caplog.text
    assert "case_8: is empty" in caplog.text
    box = voxel_box(window, SHAPE, np.asarray(head().affine))
    assert [(edge.start, edge.stop) for edge in box] == [(0, n) for n in SHAPE]


def test_what_is_predicted_in_the_window_is_pasted_back():
    image = head()
    image.meta["filename_or_obj"] = "scan.nii.gz"
    transform = Compose([LocateWindowd("image", SPOTS)])
    item = transform({"image": image})
    record = json.loads(item["image"].meta["window"])
    box = voxel_box(Window.from_record(record), SHAPE, np.asarray(image.affine))
    assert record["box"] == [[edge.start, edge.stop] for edge in box]
    assert torch.equal(item["image"].as_tensor(), image.as_tensor()[(slice(None), *box)])
    item["pred"] = MetaTensor(torch.ones_like(item["image"].as_tensor()), meta=item["image"].meta)
    back = Invertd("pred", transform, orig_keys="image", nearest_interp=True)(item)["pred"]
    expected = torch.zeros(1, *SHAPE)
    expected[(slice(None), *box)] = 1
    assert torch.equal(back.as_tensor(), expected)
    assert torch.equal(LocateWindowd("image", None)({"image": image})["image"], image)


def save(folder, network=None, **settings):
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(0.5)})
    locator = Locator(network or LocatorNetwork((2, 3, 3, 4)), **settings)
    SaveLocator(locator, folder, [{"case": "b"}, {"case": "a"}]).attach(engine)
    engine.run([0, 0], max_epochs=3)
    return locator


def test_a_locator_is_read_as_it_was_written(tmp_path):
    written = save(tmp_path, spacing=5.0, window_size=(50, 40, 30), threshold=0.1)
    read = read_locator(tmp_path)
    assert read.description() == written.description()
    x = torch.rand(1, 1, 9, 8, 7)
    torch.testing.assert_close(read.network(x), written.network.eval()(x))
    assert read_json(tmp_path / "locator.json")["training"] == {"epochs": 3, "iterations": 6, "cases": ["a", "b"]}
    assert read_locator(tmp_path, enabled=False) is None
    assert read_locator(tmp_path / "nowhere") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["locator.json", "locator.pt", "locator.pt.sha256"]


@pytest.mark.parametrize("left", ["locator.json", "locator.pt.sha256"])
def test_half_a_locator_is_not_taken_for_none(tmp_path, left):
    save(tmp_path)
    for path in tmp_path.iterdir():
        if path.name != left:
            path.unlink()
    with pytest.raises(InputError, match=r"locator\.pt is missing, but files of a locator are there"):
        read_locator(tmp_path)
    assert read_locator(tmp_path, enabled=False) is None


@pytest.mark.parametrize("broken", ["locator.pt", "locator.json"])
def test_a_broken_locator_is_refused_in_a_sentence(tmp_path, broken):
    save(tmp_path)
    (tmp_path / broken).write_text("{}")
    with pytest.raises(InputError, match=r"(holds no locator|is damaged)"):
        read_locator(tmp_path)
    with pytest.raises(InputError, match=r"Train the locator first"):
        locate_scans([], tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [("spacing", 0, "spacing"), ("window_size", [1, 2, -3], "window_size.2"), ("threshold", 2, "threshold")],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, key, value, place):
    save(tmp_path)
    write_json(tmp_path / "locator.json", {**read_json(tmp_path / "locator.json"), key: value})
    with pytest.raises(InputError, match=rf"locator\.json is damaged \({place}: input should be"):
        read_locator(tmp_path)
    assert value_fault(value, signature(Locator).parameters[key].annotation, key).startswith(key)


def test_the_loss_is_the_divergence_of_the_sides_that_are_known():
    torch.manual_seed(0)
    logits, heat = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64), torch.rand(2, 2, 3, 4, 5, dtype=torch.float64)
    heat[0, 1] = 0
    values = []
    for sample, side in ((0, 0), (1, 0), (1, 1)):
        p = np.exp(logits[sample, side].numpy())
        p, q = p / p.sum(), heat[sample, side].numpy() / heat[sample, side].numpy().sum()
        values.append((q * np.log(q / p)).sum())
    loss = HeatMapLoss()
    assert float(loss(logits, heat)) == pytest.approx(np.mean(values))
    assert float(loss(heat[1:].log(), heat[1:])) == pytest.approx(0, abs=1e-12)
    assert float(loss(logits, torch.zeros_like(heat))) == 0
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, heat), logits)


def ears(shape=(60, 41, 22), spacing=(1.5, 1.4, 2.2), places=((8, 20, 9), (52, 24, 11)), tumour=None):
    label = torch.zeros(1, *shape)
    for x, y, z in places:
        label[0, x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = 2
    if tumour:
        label[(0, *tumour)] = 1
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1])
    image = torch.rand(1, *shape) * 100 + 1
    return {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)}


COARSE = CoarseScand(Locator(Spots(), spacing=3.0), sigma=6.0)


def test_heat_lies_where_the_cochleae_are():
    item = COARSE(ears())
    assert item["image"].shape == (1, 30, 19, 16)
    ratio = np.array((60, 41, 22)) / item["image"].shape[1:]
    mm = ratio * (1.5, 1.4, 2.2)
    grid = np.stack(np.meshgrid(*map(np.arange, item["image"].shape[1:]), indexing="ij"), -1)
    for side, place in enumerate(((8, 20, 9), (52, 24, 11))):
        apart = (((grid - ((np.array(place) + 0.5) / ratio - 0.5)) * mm) ** 2).sum(-1)
        np.testing.assert_allclose(item["heat"][side], np.exp(-apart / 72), atol=1e-5)
    assert item["parts"][1].sum() * np.prod(ratio) == pytest.approx(54, rel=0.3)
    assert item["parts"][0].sum() == 0


def test_one_cochlea_alone_belongs_to_its_half():
    for place, side in (((8, 20, 9), 0), ((52, 24, 11), 1)):
        heat = COARSE(ears(places=[place]))["heat"]
        assert [bool(each.any()) for each in heat] == [side == 0, side == 1]
    assert not COARSE(ears(places=()))["heat"].any()


def test_a_mirrored_head_has_its_sides_exchanged():
    item, mirror = COARSE(ears(tumour=(10, 20, 9))), RandomMirrord().set_random_state(0)
    seen = set()
    for _ in range(20):
        result = mirror(item)
        flipped = not torch.equal(result["image"], item["image"])
        seen.add(flipped)
        if flipped:
            assert torch.equal(result["image"], item["image"].flip(1))
            assert torch.equal(result["heat"][0], item["heat"][1].flip(0))
            assert torch.equal(result["parts"], item["parts"].flip(1))
        assert result["heat"][0].nonzero()[:, 0].float().mean() < result["heat"][1].nonzero()[:, 0].float().mean() + 30
    assert seen == {True, False}


def test_a_drawn_contrast_keeps_the_range_and_the_places():
    item, draw = COARSE(ears(tumour=(10, 20, 9))), RandomContrastd(convolution=0.5).set_random_state(1)
    images = [draw(item)["image"] for _ in range(30)]
    assert all(image.min() >= 0 and image.max() <= 1 and image.dtype == torch.float32 for image in images)
    assert len({float(image.sum()) for image in images}) == 30
    x, y = item["image"].flatten(), torch.stack([image.flatten() for image in images])
    correlations = [float(np.corrcoef(x, each)[0, 1]) for each in y.numpy()]
    assert min(correlations) < -0.3  # some are inverted
    assert max(correlations) > 0.9
    cochlea = item["parts"][1] > 0.5
    bright = RandomContrastd(1, 1, {"VS": (0, 0), "cochlea": (1, 1)}, 0, (0, 0)).set_random_state(0)(item)["image"]
    assert (bright[0][item["parts"][1] > 0.67] == 1).all()
    assert cochlea.any()


def test_a_drawn_field_keeps_both_ears():
    item, draw = COARSE(ears()), RandomFieldd(1.0, (3, 2, 1)).set_random_state(0)
    sizes = set()
    for _ in range(40):
        result = draw(item)
        assert result["heat"].amax((1, 2, 3)).min() > 0.5
        assert result["image"].shape[1:] == result["heat"].shape[1:]
        assert all(a <= b + 2 * c for a, b, c in zip(result["image"].shape[1:], (30, 19, 16), (3, 2, 1), strict=True))
        sizes.add(tuple(result["image"].shape))
    assert len(sizes) > 20
    whole = RandomFieldd(0.0, (0, 0, 0)).set_random_state(0)(item)
    assert torch.equal(whole["image"], item["image"])


def write_head(path, field=None, at=(0, 0, 0)):
    image = head(field=field, at=at)
    nib.save(nib.Nifti1Image(np.rint(np.asarray(image[0])).astype(np.int16), np.asarray(image.affine)), path)
    return str(path)


@pytest.fixture
def model_dir(tmp_path):
    """A segmentation and a locator with random weights, whose threshold lets any place pass."""
    folder = tmp_path / "models"
    member = replace(FLAT, patch_size=(32, 32))
    model = SegmentationModel({"2d": member}, (0,), {"VS": ("2d",), "cochlea": ("2d",)})
    torch.manual_seed(0)
    ensemble = FoldEnsemble(model)
    save(folder, window_size=(60, 40, 30), threshold=0.0)
    torch.save(ensemble.state_dict(), folder / "model.pt")
    model.write(folder)
    return folder


def segment(model_dir, scans, output_dir, **overrides):
    write_datalist(output_dir / "list.json", [{"case": case, "image": image} for case, image in scans.items()])
    config = ConfigParser()
    config.read_config(str(CONFIGS / "inference.json"))
    paths = {"datalist": str(output_dir / "list.json"), "model_dir": str(model_dir), "output_dir": str(output_dir)}
    config.update({"device": "cpu", "test_time_mirroring": False, **paths, **overrides})
    config.get_parsed_content("run")
    return {case: np.asarray(nib.load(output_dir / f"{case}_Label.nii.gz").dataobj) for case in scans}


def test_inference_labels_the_same_head_alike_in_any_field(model_dir, tmp_path):
    places = {"a": (0, 0, 0), "b": (36, 5, 3), "c": (70, 60, 9)}
    scans = {"alone": write_head(tmp_path / "alone.nii.gz")}
    scans |= {case: write_head(tmp_path / f"{case}.nii.gz", (210, 170, 51), at) for case, at in places.items()}
    maps = segment(model_dir, scans, tmp_path / "out")
    assert len(np.unique(maps["alone"])) > 1
    for case, at in places.items():
        inside = tuple(slice(a, a + n) for a, n in zip(at, SHAPE, strict=True))
        assert np.array_equal(maps[case][inside], maps["alone"])
        assert maps[case].sum() == maps["alone"].sum()
    windows = read_windows(tmp_path / "out")
    assert set(windows) == set(scans)
    (first, *_) = windows.values()
    assert first.found == "locator"
    image = nib.load(scans["alone"])
    outside = np.ones(SHAPE, bool)
    outside[voxel_box(windows["alone"], SHAPE, image.affine)] = False
    assert outside.any()
    assert not maps["alone"][outside].any()


def test_without_a_locator_or_switched_off_the_whole_scan_is_segmented(model_dir, tmp_path):
    scans = {"a": write_head(tmp_path / "a.nii.gz")}
    located = segment(model_dir, scans, tmp_path / "out")["a"]
    off = segment(model_dir, scans, tmp_path / "out", locate=False)["a"]  # in the same folder: made again
    assert not np.array_equal(off, located)
    assert not read_json(tmp_path / "out" / "windows.json")
    for path in model_dir.glob("locator.*"):
        path.unlink()
    without = segment(model_dir, scans, tmp_path / "none")["a"]
    assert np.array_equal(without, off)
    assert not (tmp_path / "none" / "windows.json").exists()


def test_windows_of_a_data_set_come_from_labels_and_the_locator(model_dir, tmp_path):
    scans = {name: [{"case": name, "image": write_head(tmp_path / f"{name}.nii.gz")}] for name in ("s", "t", "v")}
    label = np.zeros(SHAPE, np.uint8)
    label[60, 40, 10:30] = 2
    affine = nib.load(scans["s"][0]["image"]).affine
    for name in ("s", "t"):
        nib.save(nib.Nifti1Image(label, affine), tmp_path / f"{name}_l.nii.gz")
        scans[name][0]["label"] = str(tmp_path / f"{name}_l.nii.gz")
    for name, items in scans.items():
        write_datalist(tmp_path / f"{name}.json", items)
    lists = [str(tmp_path / f"{name}.json") for name in scans]
    write_windows(*lists, str(model_dir), str(tmp_path / "out"))
    windows = read_windows(tmp_path / "out")
    assert {case: window.found for case, window in windows.items()} == {"s": "label", "t": "locator", "v": "locator"}
    assert np.linalg.inv(affine) @ [*windows["s"].centre, 1] == pytest.approx([60, 40, 19.5, 1], abs=1e-3)
    assert windows["t"].centre == windows["v"].centre == locate_scans(scans["v"], model_dir)["v"].centre
    write_windows(*lists, str(model_dir), str(tmp_path / "jittered"), jitter=6.0)
    moved = np.subtract(read_windows(tmp_path / "jittered")["s"].centre, windows["s"].centre)
    assert 0.1 < np.abs(moved).max() <= 6
    with pytest.raises(InputError, match="Train the locator first"):
        write_windows(*lists, str(tmp_path), str(tmp_path / "out"))


def locator_config(tmp_path, **overrides):
    config = ConfigParser()
    config.read_config([str(CONFIGS / name) for name in ("locator.json", "locator_cpu.json")])
    small = {"iterations_per_epoch": 3, "max_epochs": 2, "channels": [2, 2, 2, 2], "device": "cpu"}
    config.update({"bundle_root": str(tmp_path), **small, **overrides})
    return config


@pytest.fixture
def two_heads(tmp_path):
    items = []
    for number in range(2):
        item = ears(tumour=(10, 20, 9))
        files = {name: str(tmp_path / f"{number}_{name}.nii.gz") for name in item}
        for name, volume in item.items():
            nib.save(nib.Nifti1Image(np.asarray(volume[0], np.float32), np.asarray(volume.affine)), files[name])
        items.append({"case": str(number), **files})
    write_datalist(tmp_path / "list.json", items)
    return items


def weights_of(folder):
    return torch.load(folder / "locator.pt", weights_only=True)


def test_a_locator_that_was_stopped_and_goes_on_is_that_of_a_training_never_stopped(tmp_path, two_heads):
    def stop():
        raise KeyboardInterrupt

    def config(name):
        manual_seed(0)
        return locator_config(tmp_path, datalist=str(tmp_path / "list.json"), ckpt_dir=str(tmp_path / name))

    config("whole").get_parsed_content("run")
    stopped = config("parts")
    stopped.get_parsed_content("train::trainer").add_event_handler(Events.EPOCH_COMPLETED(once=1), stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.get_parsed_content("train::trainer").run()
    config("parts").get_parsed_content("run")
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("change", "said"), [({}, "other scans"), ({"spacing": 5.0}, "spacing"), ({"max_epochs": 3}, "max_epochs 2, not 3")]
)
def test_a_locator_of_other_scans_or_settings_is_not_taken_for_this_one(tmp_path, two_heads, change, said):
    place = {"datalist": str(tmp_path / "list.json")}
    locator_config(tmp_path, **place).get_parsed_content("run")
    if not change:
        write_datalist(tmp_path / "list.json", two_heads[:1])
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI's, around the cause
        locator_config(tmp_path, **place, **change).get_parsed_content("run")
    assert said in str(find_input_error(caught.value))


def test_the_bundle_trains_a_locator_and_does_not_train_a_finished_one_again(tmp_path, two_heads):
    locator_config(tmp_path, datalist=str(tmp_path / "list.json")).get_parsed_content("run")
    models = tmp_path / "models"
    locator, first = read_locator(models), (models / "locator.pt").read_bytes()
    assert locator.network.arguments["channels"] == [2, 2, 2, 2]
    record = read_json(models / "locator.json")["training"]
    assert (record["epochs"], record["iterations"], record["cases"]) == (2, 6, ["0", "1"])
    again = locator_config(tmp_path, datalist=str(tmp_path / "list.json"))
    again.get_parsed_content("run")
    assert again.get_parsed_content("train::trainer").state.iteration == 6
    after = torch.load(models / "locator.pt", weights_only=True)
    (models / "locator.pt").write_bytes(first)
    before = torch.load(models / "locator.pt", weights_only=True)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_locator_is_not_put_beside_a_segmentation_of_whole_scans(tmp_path):
    def run():
        engine = Engine(lambda engine, batch: None)
        SaveLocator(Locator(LocatorNetwork((2, 2, 2, 2))), tmp_path).attach(engine)
        engine.run([0], max_epochs=1)

    run()
    (tmp_path / "model.json").touch()  # of a segmentation that has this locator
    run()
    (tmp_path / "locator.pt").unlink()
    with pytest.raises(InputError, match=r"model\.json is of a segmentation of whole scans\. Set another ckpt_dir"):
        run()
    assert not (tmp_path / "locator.pt").exists()


def test_a_training_without_labels_ends_in_a_sentence(tmp_path):
    write_json(tmp_path / "list.json", {"training": [{"image": write_head(tmp_path / "a.nii.gz")}]})
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI's, around the cause
        locator_config(tmp_path, datalist=str(tmp_path / "list.json")).get_parsed_content("run")
    assert "no scan has a label" in str(find_input_error(caught.value))
