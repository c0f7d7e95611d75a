"""Workers may start by spawn and forkserver: what goes to them can be pickled, in every config that ships."""

import pickle
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from torch.utils.data import DataLoader

from plugins.data import write_phantom

BUNDLES = Path(__file__).parents[1] / "bundles"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", num_source=2, num_target=2, num_validation=2)


@pytest.fixture
def parsed(phantom, tmp_path):
    def parse(bundle, *names, **settings):
        parser = ConfigParser()
        parser.read_config([str(BUNDLES / bundle / "configs" / name) for name in names])
        scans = next(phantom.rglob("validation"))
        folder = scans if "inference.json" in names else phantom
        places = {"bundle_root": str(tmp_path), "dataset_dir": str(folder), "device": "$torch.device('cpu')"}
        parser.update(places | settings)
        return parser

    return parse


def inference(parsed, bundle):
    settings = {"contrast": None} if bundle != "vs_cochlea_seg" else {}
    return parsed(bundle, "inference.json", **settings).get_parsed_content("dataset")


@pytest.mark.parametrize("bundle", ["tanq_translation", "cyclegan_translation", "vs_cochlea_seg"])
def test_data_sets_of_inference_can_be_pickled(parsed, bundle):
    assert len(pickle.loads(pickle.dumps(inference(parsed, bundle)))) == 2


@pytest.mark.parametrize("bundle", ["tanq_translation", "cyclegan_translation"])
def test_data_sets_of_training_can_be_pickled(parsed, bundle):
    parser = parsed(bundle, "train.json", "cpu.json")
    for name in ("train::dataset", "validate::dataset"):
        assert len(pickle.loads(pickle.dumps(parser.get_parsed_content(name)))) > 0


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_a_loader_works_with_workers_that_are_started_anew(parsed, start):
    dataset = inference(parsed, "vs_cochlea_seg")
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=start)
    assert sorted(item["case"] for item in loader) == sorted(item["case"] for item in dataset)


@pytest.mark.parametrize(("rank", "writers"), [(None, 2), (0, 2), (1, 0)])
@pytest.mark.parametrize("bundle", ["tanq_translation", "cyclegan_translation"])
def test_the_first_rank_alone_writes_for_tensorboard(parsed, monkeypatch, bundle, rank, writers):
    if rank is not None:
        monkeypatch.setattr("ignite.distributed.get_rank", lambda: rank)
    parser = parsed(bundle, "train.json", "cpu.json")
    handlers = [
        each
        for name in ("train::handlers", "validate::handlers")
        for index, each in enumerate(parser[name])
        if each["_target_"] == "TensorBoardStatsHandler"
        and parser.get_parsed_content(f"{name}::{index}", instantiate=True) is not None
    ]
    assert len(handlers) == writers
