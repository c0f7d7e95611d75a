"""What MONAI's tools ask a bundle for, from a foreign working directory."""

import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, create_workflow

from plugins.data import write_phantom
from plugins.export import export

ROOT = Path(__file__).parents[1] / "bundles"
BUNDLES = sorted(path.name for path in ROOT.iterdir() if path.is_dir())
DRIVER = "vs_cochlea_uda"
OF_A_NETWORK = {"train": {"train_dataset", "train_inferer"}, "inference": {"inferer"}}
"""What the driver has no use for: the bundles that it runs have networks, it hands on the model of one of them."""
SMALL = {
    "device": "cpu", "spacing": [2.2, 2.2, 1.5], "crop_size": [48, 48], "patch_size": [48, 48], "channels": 4,
    "roi_size": [32, 32], "discriminator_channels": 4, "num_res_blocks": 2, "feature_blocks": [0, 1],
    "bundles_dir": str(ROOT),
}  # fmt: skip


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("data"), num_source=2, num_target=2, num_validation=1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Configs of exported bundles change ``sys.path``."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("kind", ["train", "inference"])
@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("place", ["repository", "export"])
def test_no_property_of_a_workflow_is_missing_that_it_has_a_use_for(phantom, tmp_path, place, bundle, kind):
    if place == "export":
        export(ROOT / bundle, tmp_path)
    root = (ROOT if place == "repository" else tmp_path) / bundle
    config = str(root / "configs" / f"{kind}.json")
    known = ConfigParser.load_config_file(config)
    outside = {"ckpt_dir": tmp_path / "models", "output_dir": tmp_path / "out", "dataset_dir": phantom}
    settings = {name: str(path) for name, path in outside.items()} | SMALL
    if bundle == "vs_cochlea_seg":
        del settings["patch_size"]  # one for each configuration there
    settings = {name: value for name, value in settings.items() if name in known}
    workflow = create_workflow(config_file=config, workflow_type=kind, bundle_root=str(root), **settings)
    lacking = OF_A_NETWORK[kind] if bundle == DRIVER else set()
    asked = {name: each["id"] for name, each in workflow.properties.items() if each["required"]}
    assert {name for name, id in asked.items() if id not in workflow.parser} == lacking
    if not lacking:
        assert workflow.check_properties() == []
    assert all(hasattr(workflow, name) for name in asked.keys() - lacking)
    if (bundle, kind) == (DRIVER, "train"):
        return
    network = workflow.network_def if kind == "inference" else workflow.parser.get_parsed_content("network_def")
    assert isinstance(network, torch.nn.Module)
