"""Real hrT2 seen as source scans by CycleGAN's reverse generator, as the driver plans it, on the phantom."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from plugins.data import crossmoda_datalist, read_datalist, write_datalist, write_phantom
from plugins.errors import InputError
from plugins.files import write_json
from plugins.state import read_tensors
from plugins.workflow import UdaWorkflow
from plugins.workflow.functions import SPLITS, write_view_list
from plugins.workflow.stage import fill_in

ROOT = Path(__file__).parents[2] / "bundles"
TINY = {
    "slices_per_epoch": 4, "channels": 4, "num_res_blocks": 2, "discriminator_channels": 4, "val_interval": 9,
    "val_scans": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("data") / "small", num_source=2, num_target=2, num_validation=1)


def planned(dataset, run, **settings):
    settings = {"views": ["tanq"], "gate": {}, "reverse_view": "cyclegan", **settings}
    own = {"vs_cochlea_seg": {"num_folds": 2}, "cyclegan_translation": TINY | settings.pop("of_cyclegan", {})}
    driver = UdaWorkflow(
        ROOT / "vs_cochlea_uda", None, ThreadPoolExecutor(1), run, dataset, max_epochs=1, settings=own,
        **{"overlays": ["cpu.json"], **settings},
    )  # fmt: skip
    return {stage.name: stage for stage in driver.adaptation().stages()}


def built(stage, run):
    """The config of a stage, as its process reads it."""
    folder = run / stage.name
    write_json(folder / "overrides.json", fill_in(stage.overrides, folder, run))
    parser = ConfigParser()
    parser.read_config([*map(str, stage.config_paths), str(folder / "overrides.json")])
    return parser


@pytest.mark.parametrize("settings", [
    {"of_cyclegan": {"generator_ts_def::num_res_blocks": 3}},
    {"overlays": ["cpu.json", "seg_decoder.json", "shared_encoder.json"]},
], ids=["own blocks", "shared encoder"])  # fmt: skip
def test_the_reverse_generator_translates_the_real_scans_with_the_settings_of_its_training(dataset, tmp_path, settings):
    stages = planned(dataset, tmp_path, **settings)
    for name, split in SPLITS.items():
        write_datalist(tmp_path / "dataset" / f"{name}.json", crossmoda_datalist(dataset, split))
    built(stages["cyclegan_training"], tmp_path).get_parsed_content("train::trainer").run()
    parser = built(stages["reverse/translation"], tmp_path)
    other = built(stages["reverse/translation"], tmp_path)
    other["percentiles"] = [5.0, 95.0]
    with pytest.raises(InputError, match=r"resume.pt: was trained with percentiles \[0.1, 99.9\], not \[5.0, 95.0\]"):
        other.get_parsed_content("evaluator").run()
    parser.get_parsed_content("evaluator").run()

    trained = read_tensors(tmp_path / "cyclegan_training" / "models" / "resume.pt", "")["objects"]
    network = parser.get_parsed_content("network")
    assert network.state_dict().keys() == trained["generator_ts"].keys()
    assert all(torch.equal(value, trained["generator_ts"][name]) for name, value in network.state_dict().items())
    targets = read_datalist(tmp_path / "dataset" / "target.json")
    seen = tmp_path / "reverse" / "target_list"
    folder = str(tmp_path / "reverse" / "translation")
    write_view_list(str(tmp_path / "dataset" / "target.json"), folder, str(seen), str(tmp_path))
    for scan, view in zip(targets, read_datalist(seen / "datalist.json"), strict=True):
        real, made = nib.load(scan["image"]), nib.load(view["image"])
        assert view.keys() == {"case", "image"}
        assert view["case"] == scan["case"]
        assert np.array_equal(real.affine, made.affine)
        assert real.shape == made.shape
        assert np.ptp(made.get_fdata()) > 0


def test_its_label_maps_are_one_more_member_of_every_gate(dataset, tmp_path):
    stages, off = planned(dataset, tmp_path, rounds=2), planned(dataset, tmp_path, rounds=2, reverse_view=None)
    for number in (1, 2):
        gate, before = (plan[f"round_{number}/pseudo_labels"] for plan in (stages, off))
        assert set(gate.needs) - set(before.needs) == {"reverse/target"}
        for name, model in gate.overrides["models"].items():
            assert model["member_dirs"] == [*before.overrides["models"][name]["member_dirs"], "{run}/reverse/target"]
    new = {f"reverse/{name}" for name in ("translation", "target_list", "datalist", "segmentation", "target")}
    assert stages.keys() - off.keys() == new | {"cyclegan_training"}
    gates = {f"round_{number}/pseudo_labels" for number in (1, 2)}
    assert {name for name in off if stages[name] != off[name]} == gates | {"report"}
    listed = [set(plan["report"].overrides["stages"]) for plan in (stages, off)]  # a page shows its plan's stages
    assert listed[0] - listed[1] == new | {"cyclegan_training"}


def test_a_translator_that_is_a_view_too_is_trained_once(dataset, tmp_path):
    settings = {"views": ["tanq", "cyclegan"], "window": [60.0, 60.0, 24.0], "translate": "redrawn"}
    stages, off = (planned(dataset, tmp_path, **settings, reverse_view=view) for view in ("cyclegan", None))
    assert stages["cyclegan_training"] == off["cyclegan_training"]
    assert stages["reverse/translation"].overrides["datalist"] == "{run}/redrawn_dataset/target.json"
    assert stages["reverse/datalist"].overrides["source"] == "{run}/redrawn_dataset/source.json"
    assert stages["reverse/target"].overrides["locate"] is False


@pytest.mark.parametrize(("settings", "message"), [
    ({"reverse_view": "tanq"}, "reverse_view.*'tanq'"),
    ({"gate": None}, "Set gate, and rounds to 1 or more"),
    ({"rounds": 0}, "Set gate, and rounds to 1 or more"),
    ({"of_cyclegan": {"resume": False}}, "resume is false. With reverse_view it must be true"),
    ({"overlays": ["reverse.json"]}, "has no 'reverse.json'"),
])  # fmt: skip
def test_what_has_no_reverse_generator_or_no_gate_is_refused(dataset, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        planned(dataset, tmp_path, **settings)
