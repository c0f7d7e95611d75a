"""Exported bundles stand alone: own code, configs that find it, sums, and a zip that is always the same."""

import json
import logging
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser, load, load_bundle_config

from plugins.config.command import COMPLETE
from plugins.config.names import nodes
from plugins.errors import InputError
from plugins.export import MULTI_GPU, OF_THIS_MACHINE, check_sums, export
from plugins.files import read_json, write_json
from plugins.segmentation import EnsembleMember, FoldEnsemble, Locator, LocatorNetwork, SaveLocator, SegmentationModel

ROOT = Path(__file__).parents[1] / "bundles"
SMALL = ["cpu.json"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network of the small config, as a training leaves it."""
    folder = tmp_path_factory.mktemp("models")
    parser = ConfigParser()
    parser.read_config([str(ROOT / "tanq_translation" / "configs" / name) for name in ("train.json", "cpu.json")])
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    return export(ROOT / "tanq_translation", output, weights, SMALL)


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """Small weights of a network that adds its input, with the record of their training."""
    folder = tmp_path_factory.mktemp("residual")
    parser = ConfigParser()
    configs = ROOT / "tanq_translation" / "configs"
    parser.read_config([str(configs / name) for name in ("train.json", "cpu.json", "residual.json")])
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    parser["settings"] = {"_target_": "plugins.config.settings_behind", "ids": ["train::trainer"]}
    write_json(folder / "training.json", {"settings": parser.get_parsed_content("settings"), "data": ""})
    return folder


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """Two folds of a 2D and a 3D network, untrained, as a training of the segmentation leaves them."""
    folder = tmp_path_factory.mktemp("ensemble")
    settings = {
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "n_stages": 2,
        "features_per_stage": [2, 3],
    }
    flat = {**settings, "kernel_sizes": [3, 3], "strides": [1, 2]}
    deep = {**settings, "kernel_sizes": [[1, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 4, 4]]}
    members = {
        "2d": EnsembleMember((None, 1.0, 1.0), (8, 8), (0, 1), "PlainConvUNet", flat),
        "3d_fullres": EnsembleMember((1.5, 1.0, 1.0), (4, 8, 8), (0, 1, 2), "PlainConvUNet", deep),
    }
    model = SegmentationModel(members, (0, 1), dict.fromkeys(("VS", "cochlea"), ("2d", "3d_fullres")))
    model.write(folder)
    torch.manual_seed(0)
    torch.save(FoldEnsemble(model).state_dict(), folder / "model.pt")
    return folder


def test_the_zip_holds_one_folder_with_all_that_a_bundle_needs(exported):
    assert exported.name == "tanq_translation_v0.1.0.zip"
    with zipfile.ZipFile(exported) as content:
        names = content.namelist()
    assert {name.split("/")[0] for name in names} == {"tanq_translation"}
    wanted = ("LICENSE", "SHA256SUMS", "configs/metadata.json", "docs/README.md", "models/model.pt", "models/model.ts")
    assert {f"tanq_translation/{name}" for name in (*wanted, "plugins/networks/region_norm.py")} <= set(names)
    assert not [name for name in names if "__pycache__" in name or "/eval/" in name or "/." in name]


def test_the_locator_goes_along_with_a_segmentation(tmp_path):
    models = tmp_path / "models"
    member = EnsembleMember((None, 1.0, 1.0), (8, 8), (0, 1), "PlainConvUNet", {
        "n_stages": 2, "features_per_stage": [2, 2], "kernel_sizes": [3, 3], "strides": [1, 2],
        "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1],
    })  # fmt: skip
    model = SegmentationModel({"2d": member}, (0,), {"VS": ("2d",), "cochlea": ("2d",)})
    engine = Engine(lambda engine, batch: None)
    SaveLocator(Locator(LocatorNetwork((2, 2, 2, 2))), models).attach(engine)
    engine.run([0], max_epochs=1)
    model.write(models)
    torch.save(FoldEnsemble(model).state_dict(), models / "model.pt")
    archive = export(ROOT / "vs_cochlea_seg", tmp_path / "out", models, url="https://example.org/x")
    folder = tmp_path / "out" / "vs_cochlea_seg"
    for name in ("locator.pt", "locator.json"):
        assert (folder / "models" / name).read_bytes() == (models / name).read_bytes()
        assert f"models/{name}" in (folder / "SHA256SUMS").read_text()
        assert f'"models/{name}"' in (folder / "large_files.yml").read_text()
        with zipfile.ZipFile(archive) as content:
            assert f"vs_cochlea_seg/models/{name}" not in content.namelist()
    check_sums(folder)


def test_two_exports_are_the_same_zip_but_for_the_torchscript(exported, weights, tmp_path):
    again = export(ROOT / "tanq_translation", tmp_path, weights, SMALL)
    with zipfile.ZipFile(exported) as a, zipfile.ZipFile(again) as b:
        assert a.namelist() == b.namelist()
        different = [name for name in a.namelist() if a.read(name) != b.read(name)]
    assert set(different) <= {"tanq_translation/models/model.ts", "tanq_translation/SHA256SUMS"}
    without = [export(ROOT / "tanq_translation", tmp_path / name).read_bytes() for name in "ab"]
    assert without[0] == without[1]


def test_the_torchscript_is_the_network_with_and_without_regions(exported, weights):
    folder = exported.parent / "tanq_translation"
    script = torch.jit.load(folder / "models" / "model.ts")
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser["bundle_root"] = str(folder)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(weights / "model.pt", weights_only=True))
    torch.manual_seed(1)
    image, label = torch.rand(2, 1, 64, 64) * 2 - 1, torch.zeros(2, 1, 64, 64)
    label[:, :, 20:30, 20:30], label[:, :, 40:43, 40:43] = 1, 2
    with torch.no_grad():
        torch.testing.assert_close(script(image, label), network(image, label), atol=1e-5, rtol=0)
        torch.testing.assert_close(script(image), network(image), atol=1e-5, rtol=0)
        torch.testing.assert_close(network(image), network(image, label * 0), atol=1e-5, rtol=0)
        assert (network(image, label) - network(image)).abs().max() > 1e-3


def test_monai_tells_nothing_of_files_that_are_about_to_be_renamed(weights, tmp_path, monkeypatch):
    told, log = [], logging.getLogger("monai.bundle.scripts")
    monkeypatch.setattr(
        log, "handlers", [type("Told", (logging.Handler,), {"emit": lambda _, record: told.append(record)})()]
    )
    log.info("before")
    export(ROOT / "tanq_translation", tmp_path, weights, SMALL)
    log.info("after")
    assert [record.getMessage() for record in told] == ["before", "after"]


def test_programs_lie_beside_the_weights_where_they_are_wanted(ensemble, tmp_path):
    archive = export(ROOT / "vs_cochlea_seg", tmp_path, ensemble, onnx=True, pt2=True)
    names = {f"model_{axes}d.{kind}" for axes in (2, 3) for kind in ("onnx", "pt2")}
    with zipfile.ZipFile(archive) as content:
        assert {Path(name).name for name in content.namelist() if name.endswith((".onnx", ".pt2"))} == names
    check_sums(tmp_path / "vs_cochlea_seg")


def test_the_metadata_has_the_sizes_of_the_networks_that_are_exported(exported, ensemble, tmp_path):
    formats = read_json(exported.parent / "tanq_translation" / "configs" / "metadata.json")["network_data_format"]
    assert [each["spatial_shape"] for kind in formats.values() for each in kind.values()] == [[96, 96]] * 3
    export(ROOT / "vs_cochlea_seg", tmp_path, ensemble)
    formats = read_json(tmp_path / "vs_cochlea_seg" / "configs" / "metadata.json")["network_data_format"]
    assert [each["spatial_shape"] for kind in formats.values() for each in kind.values()] == [["1*n", "4*n", "4*n"]] * 2


def test_the_copy_takes_the_settings_of_its_training(exported):
    configs = exported.parent / "tanq_translation" / "configs"
    small = read_json(ROOT / "tanq_translation" / "configs" / "cpu.json")
    assert read_json(configs / "inference.json")["channels"] == small["channels"]
    assert read_json(configs / "train.json")["max_epochs"] == small["max_epochs"]
    for path in configs.glob("*.json"):
        text = path.read_text()
        assert text == json.dumps(json.loads(text), indent=4) + "\n"


def test_monais_load_and_the_torchscripts_archive_give_back_what_was_exported(exported, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    network = load("tanq_translation", bundle_dir=str(exported.parent), workflow_type="inference", device="cpu")
    expected = torch.load(weights / "model.pt", weights_only=True)
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    config = load_bundle_config(str(exported.parent / "tanq_translation" / "models" / "model.ts"), "inference.json")
    assert config["_meta_"]["version"] == "0.1.0"
    assert config["channels"] == 16
    assert list(tmp_path.iterdir()) == []


HIDDEN = """
import sys
sys.path = [path for path in sys.path if path not in ("", {root!r})]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
"""


def snippet(bundle, folder):
    """The Python lines of a README, for bundles in ``folder``."""
    text = (ROOT / bundle / "docs" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return code.replace("path/to/bundles", str(folder))


@pytest.mark.parametrize("with_line", [True, False])
def test_the_lines_of_the_readme_load_a_bundle_from_any_folder(exported, tmp_path, with_line):
    code = snippet("tanq_translation", exported.parent)
    if not with_line:
        code = "\n".join(line for line in code.splitlines() if "sys.path" not in line)
    program = HIDDEN.format(root=str(ROOT.parent)) + code + "\nimport plugins; print(plugins.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == with_line, done.stderr
    if with_line:
        place = exported.parent / "tanq_translation" / "plugins" / "__init__.py"
        assert done.stdout.splitlines()[-1].strip() == str(place)


def test_the_commands_of_the_readme_fetch_an_export_whose_large_files_lie_elsewhere(weights, tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    offered = tmp_path / "offered"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(offered))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        archive = export(ROOT / "tanq_translation", offered, weights, SMALL, url=f"{place}/tanq_translation")
        readme = (ROOT / "tanq_translation" / "docs" / "README.md").read_text(encoding="utf-8")
        lines = re.findall(r"^(?:python -m monai\.bundle download|\(cd ).*$", readme, flags=re.MULTILINE)
        assert len(lines) == 3
        for line in lines:
            command = line.replace("https://example.org/tanq_translation_v0.1.0.zip", f"{place}/{archive.name}")
            command = command.replace("path/to", str(tmp_path)).replace("python ", f"{sys.executable} ")
            subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True)
        server.shutdown()
    fetched = tmp_path / "bundles" / "tanq_translation" / "models" / "model.pt"
    assert fetched.read_bytes() == (weights / "model.pt").read_bytes()


def test_the_code_comes_from_the_copy_wherever_it_is_run(exported, tmp_path):
    folder = exported.parent / "tanq_translation"
    program = (
        "import sys; from monai.bundle import ConfigParser; p = ConfigParser(); "
        f"p.read_config({str(folder / 'configs' / 'inference.json')!r}); p['bundle_root'] = {str(folder)!r}; "
        "p.get_parsed_content('network_def'); import plugins; print(plugins.__file__)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(folder / "plugins" / "__init__.py")


def test_components_find_the_code_in_overlays_too(exported):
    configs = [*(exported.parent / "tanq_translation" / "configs").glob("*.json")]
    ours = [
        (path.name, place, node)
        for path in configs
        for place, node in nodes(read_json(path))
        if isinstance(node, dict) and str(node.get("_target_")).startswith("plugins.")
    ]
    assert "multi_gpu_train.json" in {name for name, _, _ in ours}
    assert [(name, place) for name, place, node in ours if node.get("_requires_") != "@code_path"] == []


def test_an_export_never_replaces_what_it_is_made_of(weights, tmp_path):
    for output, ckpt in (
        (ROOT, None),
        (ROOT / "tanq_translation", None),
        (tmp_path, tmp_path / "tanq_translation" / "m"),
    ):
        with pytest.raises(InputError, match="would replace or lie in"):
            export(ROOT / "tanq_translation", output, ckpt)
    assert (ROOT / "tanq_translation" / "LICENSE").is_file()


def test_nothing_but_an_older_export_is_replaced(weights, tmp_path, monkeypatch):
    source = tmp_path / "bundles" / "tanq_translation"
    shutil.copytree(ROOT / "tanq_translation", source)
    (tmp_path / "link").symlink_to(tmp_path / "bundles")
    monkeypatch.chdir(source)
    for bundle, output in (("../tanq_translation", ".."), (".", "../../link"), ("configs/..", "../")):
        with pytest.raises(InputError, match="would replace or lie in"):
            export(Path(bundle), Path(output))
    other = tmp_path / "out" / "tanq_translation"
    other.mkdir(parents=True)
    with pytest.raises(InputError, match="is no exported bundle, yet would be replaced"):
        export(source, tmp_path / "out")
    assert export(Path("configs/.."), tmp_path / "out2").parent == tmp_path / "out2"
    assert (tmp_path / "out2" / "tanq_translation" / "LICENSE").is_file()


def test_a_failed_export_leaves_the_older_one(weights, tmp_path):
    archive = export(ROOT / "tanq_translation", tmp_path, weights, SMALL)
    before = archive.read_bytes()
    with pytest.raises(InputError, match="and the overlays that they were trained with"):
        export(ROOT / "tanq_translation", tmp_path, weights)
    assert archive.read_bytes() == before
    check_sums(tmp_path / "tanq_translation")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tanq_translation", archive.name]


@pytest.mark.parametrize(
    ("bundle", "overlay"),
    [
        (path.parents[1].name, path.name)
        for path in sorted(ROOT.glob("*/configs/*.json"))
        # the last two are overlays of study.json and inference.json
        if path.name not in (*COMPLETE, "metadata.json", "study_beyond.json", "reverse.json")
    ],
)
def test_every_overlay_can_be_settled(tmp_path, bundle, overlay):
    export(ROOT / bundle, tmp_path, overlays=[overlay])
    settled, merged = ConfigParser(read_json(tmp_path / bundle / "configs" / "train.json")), ConfigParser()
    merged.read_config([str(ROOT / bundle / "configs" / name) for name in ("train.json", overlay)])
    plain = ConfigParser(read_json(ROOT / bundle / "configs" / "train.json"))
    for name in ConfigParser.load_config_file(ROOT / bundle / "configs" / overlay):
        name = name.removeprefix("+")
        here = overlay == MULTI_GPU or name.partition("::")[0] in OF_THIS_MACHINE
        if overlay == "locator_cpu.json":
            here, config = False, ConfigParser(read_json(tmp_path / bundle / "configs" / "locator.json"))
            assert config[name] == ConfigParser.load_config_file(ROOT / bundle / "configs" / overlay)[name]
        else:
            assert _without_requirements(settled.get(name)) == (plain if here else merged).get(name)


def test_nothing_of_this_machine_leaves_with_an_overlay(tmp_path, caplog):
    caplog.set_level("INFO")
    own = {name: "/mine" for name in ("ckpt_dir", "output_dir", "dataset_dir")} | {"device": "cpu", "max_epochs": 3}
    write_json(tmp_path / "own.json", own)
    export(ROOT / "tanq_translation", tmp_path, overlays=[MULTI_GPU, str(tmp_path / "own.json")])
    configs = tmp_path / "tanq_translation" / "configs"
    for path in (path for path in configs.glob("*.json") if path.name in COMPLETE):
        settled, plain = read_json(path), read_json(ROOT / "tanq_translation" / "configs" / path.name)
        for name in (*own, "initialize", "run"):
            expected = 3 if name == "max_epochs" and path.name == "train.json" else plain.get(name)
            assert _without_requirements(settled.get(name)) == expected, (path.name, name)
    assert "own.json: ckpt_dir, output_dir, dataset_dir, device hold for this machine only" in caplog.text


@pytest.mark.parametrize("name", ["train.json", "inference.json", "metadata.json", "reverse.json"])
def test_what_is_no_overlay_of_a_training_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name} is no overlay"):
        export(ROOT / "cyclegan_translation", tmp_path, overlays=[name])
    assert [*tmp_path.iterdir()] == []


def test_overlays_of_a_segmentation_leave_its_locator_and_the_other_way_round(tmp_path):
    export(ROOT / "vs_cochlea_seg", tmp_path, overlays=["cpu.json", "locator_cpu.json"])
    configs, plain = tmp_path / "vs_cochlea_seg" / "configs", ROOT / "vs_cochlea_seg" / "configs"
    for name, overlay in (("train.json", "cpu.json"), ("locator.json", "locator_cpu.json")):
        assert read_json(configs / name)["max_epochs"] == read_json(plain / overlay)["max_epochs"]
    assert (
        read_json(configs / "locator.json")["iterations_per_epoch"]
        == (read_json(plain / "locator_cpu.json") | read_json(plain / "locator.json"))["iterations_per_epoch"]
    )


def test_an_exported_driver_segments_as_its_run_did(tmp_path):
    write_json(tmp_path / "own.json", {"settings": {"vs_cochlea_seg": {"sw_batch_size": 3}}})
    export(ROOT / "vs_cochlea_uda", tmp_path, overlays=["cpu.json", str(tmp_path / "own.json")])
    settled = read_json(tmp_path / "vs_cochlea_uda" / "parts" / "vs_cochlea_seg" / "configs" / "inference.json")
    assert settled["test_time_mirroring"] is False
    assert settled["sw_batch_size"] == 3
    assert settled["device"] == read_json(ROOT / "vs_cochlea_seg" / "configs" / "inference.json")["device"]


def _without_requirements(node):
    if isinstance(node, list):
        return [_without_requirements(each) for each in node]
    if isinstance(node, dict):
        return {key: _without_requirements(value) for key, value in node.items() if key != "_requires_"}
    return node


@pytest.mark.parametrize("bundle", ["cyclegan_translation", "tanq_translation"])
def test_every_translators_network_is_torchscript(bundle):
    parser = ConfigParser()
    parser.read_config([str(ROOT / bundle / "configs" / name) for name in ("train.json", "cpu.json")])
    network = parser.get_parsed_content("network_def").eval()
    image = torch.rand(1, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(image), network(image), atol=1e-5, rtol=0)


def test_large_files_are_listed_with_their_hashes_and_left_out(weights, tmp_path):
    archive = export(ROOT / "tanq_translation", tmp_path, weights, SMALL, url="https://example.org/tanq/")
    text = (tmp_path / "tanq_translation" / "large_files.yml").read_text()
    assert 'url: "https://example.org/tanq/models/model.pt"' in text
    assert text.count('hash_type: "sha256"') == text.count("hash_val") == 2
    with zipfile.ZipFile(archive) as content:
        assert not [name for name in content.namelist() if "/models/" in name]


def test_a_changed_file_is_noticed(weights, tmp_path):
    export(ROOT / "tanq_translation", tmp_path)
    folder = tmp_path / "tanq_translation"
    check_sums(folder)
    (folder / "LICENSE").write_text("")
    with pytest.raises(InputError, match="LICENSE: is missing or differs"):
        check_sums(folder)


def test_the_driver_brings_the_bundles_that_it_runs(tmp_path):
    export(ROOT / "vs_cochlea_uda", tmp_path)
    folder = tmp_path / "vs_cochlea_uda" / "parts"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cyclegan_translation",
        "tanq_translation",
        "vs_cochlea_seg",
    ]
    assert all((path / "plugins" / "__init__.py").is_file() for path in folder.iterdir())


@pytest.mark.parametrize(
    ("bundle", "ckpt", "overlays", "words"),
    [
        ("nothing", None, [], "is no bundle"),
        ("tanq_translation", "empty", [], "holds no model.pt"),
        ("tanq_translation", None, ["gpu.json"], "gpu.json is no config"),
        ("cyclegan_translation", "weights", SMALL, "cannot be exported as TorchScript .*loading state_dict"),
    ],
)
def test_what_cannot_be_exported_is_named(weights, tmp_path, bundle, ckpt, overlays, words):
    ckpt_dir = {None: None, "empty": tmp_path, "weights": weights}[ckpt]
    with pytest.raises(InputError, match=words):
        export(ROOT / bundle, tmp_path / "out", ckpt_dir, overlays)


def test_weights_are_not_exported_with_other_settings_than_they_were_trained_with(residual, tmp_path):
    words = r"model\.pt: was trained with network_def::residual True, not False\. Name the config files .*--overlays"
    with pytest.raises(InputError, match=words):
        export(ROOT / "tanq_translation", tmp_path, residual, SMALL)
    assert [*tmp_path.iterdir()] == []
    export(ROOT / "tanq_translation", tmp_path, residual, [*SMALL, "residual.json"])
    settled = read_json(tmp_path / "tanq_translation" / "configs" / "inference.json")
    assert settled["network_def"]["residual"] is True


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_exported(weights, tmp_path, bad):
    content = torch.load(weights / "model.pt", weights_only=True)
    content[next(iter(content))].view(-1)[0] = bad
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: .* holds values that are not finite"):
        export(ROOT / "tanq_translation", tmp_path / "out", tmp_path, SMALL)
    assert not [*(tmp_path / "out").glob("*")]
