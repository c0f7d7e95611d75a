"""A training of vs_cochlea_seg against nnU-Net's own command on the same data, plans and seed: Dice, weights and time.

python -m benchmarks.nnunet_training path/to/training --output training.json

``path/to/training`` is the output_dir of a training of vs_cochlea_seg, whose data and plans are used.
nnU-Net's command has no setting for the length of a training: a process calls it that sets its attributes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from plugins.files import read_json, write_json
from plugins.nnunet.trainer import TrainerSettings
from plugins.nnunet.training import train_fold
from plugins.nnunet.workspace import DATASET, Workspace
from plugins.segmentation import SlidingWindow

FOLD = 0
VAL_ITERATIONS = 5


def nnunet_command(root: Path, configuration: str, given: argparse.Namespace, seed: int) -> None:
    """``nnUNetv2_train`` in this process; nnU-Net seeds nothing itself."""
    os.environ.update({f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")})
    os.environ.update({"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"})
    from nnunetv2.run.run_training import run_training_entry
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    construct = nnUNetTrainer.__init__

    def shortened(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        self.num_epochs, self.num_iterations_per_epoch = given.epochs, given.iterations
        self.num_val_iterations_per_epoch, self.initial_lr = VAL_ITERATIONS, given.initial_lr

    shortened.__signature__ = __import__("inspect").signature(construct)  # type: ignore[attr-defined]
    nnUNetTrainer.__init__ = shortened
    torch.set_num_threads(1)
    torch.set_num_threads = lambda number: None  # the command takes all cores on the CPU
    random.seed(seed + FOLD)
    np.random.seed(seed + FOLD)
    torch.manual_seed(seed + FOLD)
    sys.argv = ["nnUNetv2_train", DATASET, configuration, str(FOLD), "-device", "cpu"]
    run_training_entry()


def ours(root: Path, configuration: str, given: argparse.Namespace, seed: int) -> None:
    """The same training by the adapter, with nnU-Net's default settings."""
    settings = TrainerSettings(
        max_epochs=given.epochs,
        iterations_per_epoch=given.iterations,
        val_iterations_per_epoch=VAL_ITERATIONS,
        initial_lr=given.initial_lr,
        num_workers=0,
        num_threads=1,
        seed=seed,
        device="cpu",
    )
    window = SlidingWindow()
    train_fold(Workspace(root), configuration, FOLD, settings, window, save_probabilities=False)


def measured(kind: str, training: Path, configuration: str, given: argparse.Namespace, seed: int, folder: Path) -> Any:
    """Run one training in a process of its own."""
    root = folder / f"{kind}_{configuration}_{seed}"
    root.mkdir()
    for name in ("raw", "preprocessed"):
        (root / name).symlink_to(training / "nnunet" / name)
    command = [sys.executable, __file__, str(root), "--kind", kind, "--configurations", configuration]
    command += ["--seeds", str(seed), "--epochs", str(given.epochs), "--iterations", str(given.iterations)]
    command += ["--initial_lr", str(given.initial_lr)]
    before, start = os.times(), time.monotonic()
    with (folder / f"{root.name}.log").open("w") as output:
        subprocess.run(command, check=True, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after, end = os.times(), time.monotonic()
    fold = Workspace(root).fold(configuration, FOLD)
    mean = read_json(fold / "validation" / "summary.json")["mean"]
    weights = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=kind == "ours")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    log = weights["logging"]
    epochs = [
        stop - begin for begin, stop in zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=True)
    ]
    result = {"VS": mean["1"]["Dice"], "cochlea": mean["2"]["Dice"], "median_epoch_seconds": median(epochs)}
    result |= {"wall_seconds": end - start, "cpu_seconds": cpu}
    print(configuration, "seed", seed, kind, json.dumps(result), flush=True)
    return result, weights["network_weights"]


def main() -> None:
    """Train in turn and write JSON."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("training", type=Path)
    arguments.add_argument("--configurations", nargs="+", default=["2d", "3d_fullres"])
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--epochs", type=int, default=5)
    arguments.add_argument("--iterations", type=int, default=60)
    arguments.add_argument("--initial_lr", type=float, default=0.01)
    arguments.add_argument("--output", type=Path, default=Path("training.json"))
    arguments.add_argument("--kind", choices=["ours", "nnunet"], help="run only this, in this process")
    given = arguments.parse_args()
    if given.kind:
        train = ours if given.kind == "ours" else nnunet_command
        train(given.training, given.configurations[0], given, given.seeds[0])
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for configuration in given.configurations:
            runs = {}
            for seed in given.seeds:
                pair = {
                    kind: measured(kind, given.training.absolute(), configuration, given, seed, Path(folder))
                    for kind in ("nnunet", "ours")
                }
                (theirs, a), (mine, b) = pair["nnunet"], pair["ours"]
                same = all(torch.equal(value, b[key]) for key, value in a.items())
                print(configuration, "seed", seed, "weights are identical:", same, flush=True)
                runs[f"seed {seed}"] = {"nnunet": theirs, "ours": mine, "weights_are_identical": same}
            total = {
                (kind, clock): sum(run[kind][f"{clock}_seconds"] for run in runs.values())
                for kind in ("nnunet", "ours")
                for clock in ("cpu", "wall", "median_epoch")
            }
            ratios = {
                f"ratio_of_{clock}_time": total["ours", clock] / total["nnunet", clock]
                for clock in ("cpu", "wall", "median_epoch")
            }
            results[configuration] = {**ratios, **runs}
            print(configuration, json.dumps(ratios), flush=True)
    write_json(given.output, results)


if __name__ == "__main__":
    main()
