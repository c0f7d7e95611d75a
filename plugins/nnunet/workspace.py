"""The folders nnU-Net works in, and the one place where it is told about them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from plugins.state import read_state

DATASET = "Dataset001_VSCochlea"
PLANS = "nnUNetPlans"
TRAINER = "nnUNetTrainer"
WEIGHTS = "weights.json"
ANEW = "Restore it, or choose another output_dir to train anew"


@dataclass(frozen=True)
class Workspace:
    """Everything one training keeps on disk, below ``root``."""

    root: Path

    @property
    def raw(self) -> Path:
        """Holds ``dataset.json``, which points at the images."""
        return self.root / "raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        """Holds plans, splits and what nnU-Net's preprocessing makes."""
        return self.root / "preprocessed" / DATASET

    def plans(self) -> PlansManager:
        """nnU-Net's plans, as it reads them.

        Raises:
            InputError: if they are missing or damaged.
        """
        return PlansManager(read_state(self.preprocessed / f"{PLANS}.json", dict[str, Any], ANEW))

    @property
    def labels(self) -> Path:
        """Holds the integer copies of the labels, under nnU-Net's own name for them."""
        return self.preprocessed / "gt_segmentations"

    @property
    def results(self) -> Path:
        """Holds the trained networks, their validation predictions and the ensembles."""
        return self.root / "results" / DATASET

    def configuration(self, name: str) -> Path:
        """Where the folds of one configuration lie."""
        return self.results / f"{TRAINER}__{PLANS}__{name}"

    def fold(self, configuration: str, fold: int) -> Path:
        """Where one training lies."""
        return self.configuration(configuration) / f"fold_{fold}"

    @contextmanager
    def active(self, num_workers: int | None = None) -> Iterator[None]:
        """nnU-Net uses these folders inside the block, and its prints go to ``nnunet.log``.

        Args:
            num_workers: augmentation processes of a training, 0 for none; ``None`` leaves nnU-Net's own choice.
        """
        # nnU-Net takes these from the environment only; it looks them up at every use
        wanted = {
            "nnUNet_raw": str(self.root / "raw"),
            "nnUNet_preprocessed": str(self.root / "preprocessed"),
            "nnUNet_results": str(self.root / "results"),
        }
        if num_workers is not None:
            wanted["nnUNet_n_proc_DA"] = str(num_workers)
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            with (self.root / "nnunet.log").open("a", encoding="utf-8") as log, redirect_stdout(log):
                yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
