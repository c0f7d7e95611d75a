"""Two processes that share a batch against one with all of it; this file is also what those processes run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from torch.utils.data import DataLoader

from plugins.errors import find_input_error

STEPS, BATCH = 3, 4
BUNDLES = Path(__file__).parents[2] / "bundles"


def own_batch_size(method, **changes):
    """What the configs give to this process."""
    parser = ConfigParser()
    folder = BUNDLES / f"{method}_translation" / "configs"
    parser.read_config([str(folder / name) for name in ("train.json", "multi_gpu_train.json")])
    parser.update({"batch_size": BATCH, **changes})
    return parser.get_parsed_content("train::dataloader::batch_size")


def train(method, out, rank=0, ranks=1):
    """A few steps in float64 on every ``ranks``-th pair; rank 0 writes the weights."""
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest

    pairs = conftest.Pairs()
    keys = ("image", "label", "reals", "reals_label")
    items = [{key: pairs[index][key].double() for key in keys} for index in range(BATCH)] * STEPS
    torch.set_default_dtype(torch.float64)
    loader = DataLoader(items[rank::ranks], batch_size=own_batch_size(method))
    assert len(loader) == STEPS
    settings = {"train_data_loader": loader, "max_epochs": 1}
    engine = conftest.tanq(**settings) if method == "tanq" else conftest.cyclegan(**settings, pool_size=0)
    if rank == 1:  # what rank 0 begins with must win
        for parameter in engine.network.parameters():
            parameter.data.zero_()
    torch.manual_seed(7)
    engine.run()
    if rank == 0:
        networks = [engine.network, *engine.discriminators]
        torch.save({f"{i} {k}": v for i, n in enumerate(networks) for k, v in n.state_dict().items()}, out)


METHODS = ("tanq", "cyclegan")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes and what one have trained."""
    folder = tmp_path_factory.mktemp("distributed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    subprocess.run([*command, str(folder / "two")], check=True, capture_output=True)
    subprocess.run([sys.executable, __file__, str(folder / "one")], check=True)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_reach_the_weights_of_one_process_with_the_whole_batch(method, folder):
    two, one = (torch.load(folder / f"{name}_{method}.pt", weights_only=True) for name in ("two", "one"))
    assert max((two[name] - one[name]).abs().max().item() for name in one if one[name].is_floating_point()) < 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("batch_size", "processes", "share"), [(4, 1, 4), (4, 2, 2), (4, 4, 1), (4, 3, None), (2, 4, None)]
)
def test_a_batch_is_divided_or_refused(method, batch_size, processes, share, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
    if share is not None:
        assert own_batch_size(method, batch_size=batch_size) == share
        return
    with pytest.raises(RuntimeError) as caught:
        own_batch_size(method, batch_size=batch_size)
    words = f"batch_size is {batch_size}, but there are {processes} processes. Give a multiple of that."
    assert str(find_input_error(caught.value)) == words


if __name__ == "__main__":
    distributed = torch.distributed.is_torchelastic_launched()
    if distributed:
        torch.distributed.init_process_group("gloo")
    place = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else ()
    for each in METHODS:
        train(each, f"{sys.argv[1]}_{each}.pt", *place)
    if distributed:
        torch.distributed.destroy_process_group()
