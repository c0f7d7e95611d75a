"""The final model of a run, applied to other scans."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from plugins.data import dataset_or_phantom
from plugins.errors import InputError
from plugins.files import write_json
from plugins.workflow.execution import bundle_command, recorded_fingerprint
from plugins.workflow.plan import INFERENCE, MODELS, RUN_IDS, SEGMENTATION, find_bundles
from plugins.workflow.process import CommandError, run_command

StrPath = str | os.PathLike[str]


class RunInference:
    """Segment a folder of hrT2 scans with the last complete round of a run.

    Args:
        bundle_root: root of this bundle; the phantom lies below it.
        bundles_dir: folder of the bundles; ``None`` looks around ``bundle_root``.
        run_dir: folder of a run of :class:`UdaWorkflow`.
        output_dir: receives ``<case>_Label.nii.gz``.
        dataset_dir: folder of the scans; ``None`` is the phantom.
        device: torch device.
        seed: of the run.
        num_threads: ``None`` leaves the bundle's own.
    """

    def __init__(
        self,
        bundle_root: StrPath,
        bundles_dir: StrPath | None,
        run_dir: StrPath | None,
        output_dir: StrPath,
        dataset_dir: StrPath | None = None,
        device: Any = "cpu",
        seed: int = 0,
        num_threads: int | None = None,
    ):
        self.bundle_root = Path(os.path.abspath(bundle_root))
        self.bundles_dir = find_bundles(self.bundle_root, bundles_dir)
        self.run_dir, self.output_dir, self.dataset_dir = run_dir, Path(output_dir).absolute(), dataset_dir
        self.device, self.seed, self.num_threads = device, seed, num_threads

    def run(self) -> None:
        """Run the inference of the segmentation bundle; what it prints goes to the console.

        Raises:
            InputError: if the run has no complete round.
            SystemExit: if the inference fails.
        """
        model_dir = final_model(self.run_dir)
        overrides = {
            "dataset_dir": str(dataset_or_phantom(self.dataset_dir, self.bundle_root).absolute()),
            "model_dir": str(model_dir),
            "output_dir": str(self.output_dir),
            "device": f"$torch.device({str(self.device)!r})",
            "seed": self.seed,
        }
        if self.num_threads is not None:
            overrides["num_threads"] = self.num_threads
        bundle = self.bundles_dir / SEGMENTATION
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "overrides.json")
            write_json(file, overrides)
            command = bundle_command(str(bundle), RUN_IDS[INFERENCE], [str(bundle / "configs" / INFERENCE), str(file)])
            try:
                run_command(command, bundle, None, "inference")
            except CommandError as error:
                # its own words are on the console already
                raise SystemExit(str(error)) from None
        print(f"label maps: {self.output_dir}", flush=True)


def final_model(run_dir: StrPath | None) -> Path:
    """The model of the last complete round of a run.

    Raises:
        InputError: if there is none.
    """
    if run_dir is None:
        raise InputError("run_dir is not set: give the folder of a run that training has made.")
    rounds = {
        int(path.parent.name.removeprefix("round_")): path
        for path in Path(run_dir).absolute().glob("round_*/segmentation")
        if recorded_fingerprint(path) is not None and path.parent.name.removeprefix("round_").isdigit()
    }
    if not rounds:
        raise InputError(f"{run_dir} has no complete round of segmentation: give the folder of a complete run.")
    return rounds[max(rounds)] / MODELS
