import logging
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor

from plugins.data.inference import SaveTranslationd, ScansToDo, translation_path
from plugins.errors import InputError, find_input_error
from plugins.files import read_json

BUNDLES = Path(__file__).parents[2] / "bundles"
TANQ, CYCLEGAN = "tanq_translation", "cyclegan_translation"
ROTATION = np.linalg.qr(np.array([[0.9, -0.3, 0.1], [0.3, 0.9, -0.2], [-0.1, 0.2, 1.0]]))[0]
GRIDS = {  # directions, shape, spacing; all different, and all cut by the crop in one axis at least
    "oblique": (ROTATION @ np.diag([-1, 1, -1]), (30, 25, 11), (1.0, 1.3, 1.7)),
    "flipped": (np.diag([1.0, -1, -1]), (23, 33, 9), (1.2, 0.9, 2.1)),
    "sagittal": (np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), (31, 12, 22), (1.1, 1.6, 1.2)),
    "thick": (np.diag([-1.0, -1, 1]), (27, 29, 5), (1.1, 1.0, 5.5)),
    "one slice": (np.diag([-1.0, 1, 1]), (27, 26, 1), (1.1, 1.0, 5.5)),
}


class Stub(torch.nn.Module):
    """Returns its input, and 1 where the condition is 2."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, x, condition=None):
        self.calls += 1
        x = x * self.scale
        return x if condition is None else torch.where(condition == 2, torch.ones_like(x), x)


def write_scan(folder, case, direction, shape, spacing, label=None):
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = [-7, 11, 5] - affine[:3, :3] @ (np.array(shape) / 2)
    grid = np.stack([*np.meshgrid(*map(np.arange, shape), indexing="ij"), np.ones(shape)])
    x, y, z = np.einsum("ij,jxyz->ixyz", affine, grid)[:3]
    scan = nib.Nifti1Image((400 + 9 * x + 5 * y - 3 * z + 60 * np.sin(x / 9) * np.cos(y / 11)).astype(np.int16), affine)
    scan.header.set_xyzt_units("mm", "sec")
    scan.set_sform(affine, code=2)
    scan.set_qform(affine, code=1)
    nib.save(scan, folder / f"{case}_ceT1.nii.gz")
    if label is not None:
        nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), folder / f"{case}_Label.nii.gz")


@pytest.fixture(autouse=True)
def console(monkeypatch):
    """Undo after each test what ``initialize`` does to uncaught errors."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for case, grid in GRIDS.items():
        write_scan(folder, case, *grid)
    return folder


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "models" / "model.pt"
    path.parent.mkdir()
    torch.save(Stub().state_dict(), path)
    os.utime(path, ns=(1, 1))
    return path


def workflow(bundle, tmp_path, **overrides):
    settings = {
        "bundle_root": str(tmp_path),
        "dataset_dir": str(tmp_path / "scans"),
        "output_dir": str(tmp_path / "out"),
        "device": "cpu",
        "num_threads": 1,
        "spacing": [0.9, 1.0, 1.5],
        "crop_size": [28, 26],
        "patch_size": [28, 26],
        "percentiles": [0, 100],
        "preprocessing::divisor": 1,
        "network": Stub(),
    }
    file = BUNDLES / bundle / "configs" / "inference.json"
    return ConfigWorkflow(str(file), logging_file=False, workflow_type="infer", **settings | overrides)


def run(bundle, tmp_path, **overrides):
    steps = workflow(bundle, tmp_path, **overrides)
    steps.initialize()
    steps.run()
    return steps.parser.get_parsed_content("network")


@pytest.mark.parametrize("bundle", [TANQ, CYCLEGAN])
def test_an_identity_network_gives_back_the_scans_on_their_own_grids(tmp_path, scans, weights, bundle):
    run(bundle, tmp_path)
    for case, (_, shape, spacing) in GRIDS.items():
        scan, translated = nib.load(scans / f"{case}_ceT1.nii.gz"), nib.load(tmp_path / "out" / f"{case}.nii.gz")
        assert translated.get_data_dtype() == np.float32
        assert np.isnan(translated.dataobj.slope) or translated.dataobj.slope == 1
        assert translated.shape == shape
        assert np.allclose(translated.header.get_zooms(), spacing)
        for form in ("get_sform", "get_qform"):
            (expected, code), (found, found_code) = (
                getattr(file.header, form)(coded=True) for file in (scan, translated)
            )
            assert found_code == code
            assert np.array_equal(found, expected)
        assert translated.header.get_xyzt_units() == ("mm", "sec")
        voxels, found = scan.get_fdata(), translated.get_fdata()
        voxels = (voxels - voxels.min()) / np.ptp(voxels)
        inner = inside_the_crop(found)
        assert inner.mean() > 0.4
        assert np.abs(found - voxels)[inner].max() < 0.02, case
        assert np.corrcoef(found[inner], voxels[inner])[0, 1] > 0.999, case


def inside_the_crop(found):
    """Two voxels away from what was cropped: interpolating back mixes the crop's border with the air outside."""
    seen = found > 0
    inner = seen.copy()
    for axis in range(3):
        for shift in (-2, -1, 1, 2):
            inner &= np.roll(seen, shift, axis)
    return inner


def test_outside_the_crop_is_air(tmp_path, scans, weights):
    run(CYCLEGAN, tmp_path, crop_size=[10, 10], patch_size=[10, 10], spacing=None)
    found = nib.load(tmp_path / "out" / "thick.nii.gz").get_fdata()
    assert (found > 0).sum() == 10 * 10 * 5
    assert found.min() == 0


def test_a_resized_crop_comes_back_in_place(tmp_path, scans, weights):
    run(TANQ, tmp_path, patch_size=[20, 21])
    for case in GRIDS:
        voxels = nib.load(scans / f"{case}_ceT1.nii.gz").get_fdata()
        found = nib.load(tmp_path / "out" / f"{case}.nii.gz").get_fdata()
        voxels = (voxels - voxels.min()) / np.ptp(voxels)
        inner = inside_the_crop(found)
        assert np.abs(found - voxels)[inner].max() < 0.06
        assert abs((found - voxels)[inner].mean()) < 0.005


@pytest.mark.parametrize("case", ["oblique", "sagittal"])
def test_tanq_sees_the_label_where_the_image_shows_it(tmp_path, weights, case):
    (tmp_path / "scans").mkdir()
    direction, shape, spacing = GRIDS[case]
    label = np.zeros(shape)
    middle = tuple(slice(size // 2 - 3, size // 2 + 3) for size in shape)
    label[middle] = 2
    write_scan(tmp_path / "scans", case, direction, shape, spacing, label)
    run(TANQ, tmp_path)
    found = nib.load(tmp_path / "out" / f"{case}.nii.gz").get_fdata()
    core = tuple(slice(size // 2 - 2, size // 2 + 2) for size in shape)
    assert found[core].min() > 0.999
    far = np.ones(shape, bool)
    far[tuple(slice(size // 2 - 5, size // 2 + 5) for size in shape)] = False
    assert (found[far] > 0.999).mean() < 0.01


def test_slices_are_translated_one_by_one(tmp_path, weights):
    """The inferer of the config against a loop."""
    steps = workflow(TANQ, tmp_path, patch_size=[8, 6])
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    image, label = torch.rand(1, 1, 8, 6, 5), torch.randint(3, (1, 1, 8, 6, 5)).float()
    found = steps.parser.get_parsed_content("inferer")(
        image, lambda x, condition: network(x) * condition, condition=label
    )
    expected = torch.stack([network(image[..., z]) * label[..., z] for z in range(5)], dim=-1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_second_run_translates_only_what_is_missing(tmp_path, scans, weights, caplog):
    assert run(CYCLEGAN, tmp_path).calls > 0
    assert read_json(tmp_path / "out" / "progress.json")["done"] == len(GRIDS)
    with caplog.at_level(logging.INFO):
        assert run(CYCLEGAN, tmp_path).calls == 0
    assert "5 of 5 scans are translated already" in caplog.text
    (tmp_path / "out" / "one slice.nii.gz").unlink()
    assert run(CYCLEGAN, tmp_path).calls == 1


@pytest.mark.parametrize("bundle", [TANQ, CYCLEGAN])
def test_all_properties_of_a_bundle_are_there(tmp_path, scans, bundle):
    steps = workflow(bundle, tmp_path)
    steps.initialize()
    assert steps.check_properties() == []


@pytest.mark.parametrize("bundle", [TANQ, CYCLEGAN])
def test_a_network_of_the_config_translates_from_its_weights(tmp_path, scans, bundle):
    small = {"network_def::channels": 4, "patch_size": [16, 16], "network": "$@network_def.to(@device)"}
    network = workflow(bundle, tmp_path, **small).parser.get_parsed_content("network")
    (tmp_path / "models").mkdir()
    torch.save(network.state_dict(), tmp_path / "models" / "model.pt")
    loaded = run(bundle, tmp_path, **small)
    assert loaded is not network
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {f"{case}.nii.gz" for case in GRIDS}


def test_missing_weights_are_one_sentence(tmp_path, scans):
    with pytest.raises(RuntimeError) as caught:
        run(CYCLEGAN, tmp_path)
    assert "model.pt: there are no weights. Train first or set ckpt_dir" in str(find_input_error(caught.value))


def test_weights_of_another_network_are_one_sentence(tmp_path, scans, weights):
    torch.save(torch.nn.Linear(2, 3).state_dict(), weights)
    with pytest.raises(RuntimeError) as caught:
        run(CYCLEGAN, tmp_path)
    assert "model.pt: the weights belong to a network of other settings" in str(find_input_error(caught.value))


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 half of a file"])
def test_broken_weights_are_one_sentence(tmp_path, scans, weights, content):
    weights.write_bytes(content)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        run(CYCLEGAN, tmp_path)
    assert "model.pt is damaged (no file of tensors). Copy it again" in str(find_input_error(caught.value))


def test_weights_that_are_not_finite_translate_nothing(tmp_path, scans, weights):
    content = torch.load(weights, weights_only=True)
    next(iter(content.values())).view(-1)[0] = float("nan")
    torch.save(content, weights)
    with pytest.raises(RuntimeError) as caught:
        run(CYCLEGAN, tmp_path)
    assert "holds values that are not finite. Train again" in str(find_input_error(caught.value))
    assert not [*tmp_path.glob("out/*.nii.gz")]


@pytest.fixture
def scan(tmp_path):
    write_scan(tmp_path, "a", *GRIDS["flipped"], label=np.zeros(GRIDS["flipped"][1]))
    return {"case": "a", "image": str(tmp_path / "a_ceT1.nii.gz"), "label": str(tmp_path / "a_Label.nii.gz")}


SCALES = [1.0, 2.0]


@pytest.fixture
def todo(tmp_path, scan, weights):
    """The scans that are left to do."""

    def make(item=scan, settings=SCALES, **given):
        return ScansToDo([item], tmp_path / "out", weights, settings, **given)

    return make


def translate(todo, value=0.5):
    for item in todo.items:
        SaveTranslationd("pred", todo.store.folder)(item | prediction(item, value))


@pytest.mark.parametrize("changed", ["image", "label", "weights", "settings", "version", None])
def test_a_translation_is_made_again_exactly_when_what_it_comes_from_has_changed(
    tmp_path, scan, weights, todo, monkeypatch, changed
):
    translate(todo())
    os.utime(scan["image"], ns=(9, 9))  # a time tells nothing
    if changed == "weights":
        weights.write_bytes(b"other")
    elif changed == "version":
        monkeypatch.setattr("plugins.__version__", "9.9")
    elif changed in ("image", "label"):
        image = nib.load(scan[changed])
        values = np.asarray(image.dataobj).copy()
        values.flat[0] = 1
        nib.save(nib.Nifti1Image(values, image.affine, image.header), scan[changed])
    again = todo(settings=[1.0, 3.0] if changed == "settings" else SCALES)
    assert [item["case"] for item in again.items] == (["a"] if changed else [])
    assert again.refused == {}
    translate(again)
    assert todo(settings=[1.0, 3.0] if changed == "settings" else SCALES).items == []


@pytest.mark.parametrize("kind", ["foreign", "changed"])
def test_a_file_that_we_did_not_write_is_never_replaced(tmp_path, scan, todo, kind):
    output = translation_path(tmp_path / "out", "a")
    if kind == "foreign":
        output.parent.mkdir()
        output.write_bytes(b"drawn by hand")
    else:
        translate(todo())
        output.write_bytes(b"drawn by hand")
    left = todo()
    assert left.items == []
    with pytest.raises(InputError, match=r"1 of 1 scans were not translated: .*a\.nii\.gz: was .*. Move it away"):
        left.finish()
    with pytest.raises(InputError, match="Move it away"):
        SaveTranslationd("pred", output.parent)(scan | prediction(scan) | {"made_from": "other"})
    assert output.read_bytes() == b"drawn by hand"


def test_a_write_that_is_killed_leaves_what_can_be_made_again(tmp_path, scan, todo, monkeypatch):
    translate(todo())
    output = translation_path(tmp_path / "out", "a")
    before = output.read_bytes()
    replace = Path.replace

    def killed(self, target):
        if Path(target) == output:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        other = todo(settings=[9.0])
        with pytest.raises(KeyboardInterrupt):
            translate(other, 0.25)
    assert output.read_bytes() == before
    left = todo(settings=[9.0])
    assert (len(left.items), left.refused) == (1, {})


def test_scans_that_cannot_be_used_are_left_out_and_named(scan, todo):
    Path(scan["label"]).write_bytes(b"no scan")
    left = todo()
    assert left.items == []
    with pytest.raises(InputError, match=r"1 of 1 scans were not translated: .*a_Label"):
        left.finish()


def test_scans_are_never_written_among_themselves(tmp_path, scan, weights):
    with pytest.raises(InputError, match=r"where a_ceT1\.nii\.gz lies. Choose another one"):
        ScansToDo([scan], tmp_path, weights)


@pytest.mark.parametrize("kind", ["a file", "a dangling link"])
def test_an_output_folder_that_cannot_be_is_refused_before_the_work(tmp_path, todo, kind):
    if kind == "a file":
        (tmp_path / "out").write_text("")
    else:
        (tmp_path / "out").symlink_to(tmp_path / "away" / "gone")
    with pytest.raises(InputError, match="out: nothing can be written there"):
        todo()


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, todo, scan):
    todo()
    code = "import sys; from plugins.locks import hold; hold(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "another run is at work there" in done.stderr


@pytest.mark.parametrize("step", ["reading", "network", "writing"])
def test_one_bad_scan_does_not_stop_the_others(tmp_path, scans, weights, monkeypatch, step):
    bad = "flipped"
    if step == "reading":
        file = scans / f"{bad}_ceT1.nii.gz"
        file.write_bytes(file.read_bytes()[:-40])
    save, forward = SaveTranslationd.__call__, Stub.forward
    if step == "writing":

        def spoilt(self, item):
            if item["case"] == bad:
                raise OSError("no space")
            return save(self, item)

        monkeypatch.setattr(SaveTranslationd, "__call__", spoilt)
    calls = []
    if step == "network":
        monkeypatch.setattr(
            Stub,
            "forward",
            lambda self, *x, **y: calls.append(1) or (1 / 0 if len(calls) == 2 else forward(self, *x, **y)),
        )
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        run(CYCLEGAN, tmp_path)
    sentence = str(find_input_error(caught.value))
    assert sentence.startswith(f"1 of {len(GRIDS)} scans were not translated: ")
    assert len([*(tmp_path / "out").glob("*.nii.gz")]) == len(GRIDS) - 1
    if step != "network":
        assert bad in sentence


def prediction(scan, value=0.5):
    image = nib.load(scan["image"])
    meta = {"filename_or_obj": scan["image"]}
    volume = MetaTensor(torch.full((1, *image.shape), value), affine=torch.as_tensor(image.affine), meta=meta)
    return {"case": "a", "image": volume, "pred": volume}


def test_values_that_are_not_finite_are_never_written(tmp_path, scan):
    with pytest.raises(InputError, match="a: the network gives values that are not finite"):
        SaveTranslationd("pred", tmp_path / "out")(prediction(scan, float("nan")))
    assert not (tmp_path / "out").exists()


def test_a_volume_on_another_grid_is_never_written(tmp_path, scan):
    for spoil in (lambda volume: volume[:, 1:], lambda volume: MetaTensor(volume, affine=torch.eye(4))):
        item = prediction(scan)
        item["pred"] = spoil(item["pred"])
        with pytest.raises(ValueError, match="left the scan's grid"):
            SaveTranslationd("pred", tmp_path / "out")(item)
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_the_earlier_translation(tmp_path, scan, monkeypatch):
    save = SaveTranslationd("pred", tmp_path / "out")
    save(prediction(scan, 0.25))

    def fail(image, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save(prediction(scan, 0.75))
    assert nib.load(tmp_path / "out" / "a.nii.gz").get_fdata().max() == 0.25
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.nii.gz"]
