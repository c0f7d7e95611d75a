"""The final model of a run, applied to other scans."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt
from typing_extensions import TypedDict

from plugins.errors import InputError
from plugins.files import write_json
from plugins.report.live import FOLDER
from plugins.report.page import NUMBERS
from plugins.state import StrPath, read_state
from plugins.workflow.checks import GIVEN
from plugins.workflow.execution import bundle_command
from plugins.workflow.plan import INFERENCE, MODELS, RUN_IDS, SEGMENTATION, find_bundles
from plugins.workflow.process import CommandError, run_command
from plugins.workflow.records import OVERRIDES, REMAKE, recorded_fingerprint


class _ReportStage(TypedDict):
    name: str
    fingerprint: str


class _Report(TypedDict):
    """``report.json`` of a run, as far as it names the model."""

    model: str
    stages: list[_ReportStage]


@dataclass
class RunInference:
    """Segment hrT2 scans with the model that a run hands over, or with the weights that a bundle brings.

    Args:
        bundle_root: root of this bundle.
        bundles_dir: folder of the bundles; ``None`` looks around ``bundle_root``.
        run_dir: folder of a run of :class:`UdaWorkflow`; ``None`` takes the model in ``ckpt_dir``.
        output_dir: receives ``<case>_Label.nii.gz``.
        scans: ``{"case", "image"}`` each.
        ckpt_dir: in place of ``run_dir``, with ``model.pt`` and ``model.json``.
        device: torch device.
        seed: of the run.
        num_threads: ``None`` leaves the bundle's own.
    """

    bundle_root: StrPath
    bundles_dir: StrPath | None
    run_dir: StrPath | None
    output_dir: StrPath
    scans: Sequence[Mapping[str, Any]]
    ckpt_dir: StrPath | None = None
    device: Any = "cpu"
    seed: NonNegativeInt = 0
    num_threads: PositiveInt | None = None

    def run(self) -> None:
        """Run the inference of the segmentation bundle; what it prints goes to the console.

        Raises:
            InputError: if there is no model, or if two are named.
            SystemExit: if the inference fails.
        """
        output_dir = Path(self.output_dir).absolute()
        overrides: dict[str, Any] = {
            "model_dir": str(self._model_dir()),
            **self._settings(),
            "output_dir": str(output_dir),
            "device": f"$torch.device({str(self.device)!r})",
            "seed": self.seed,
        }
        if self.num_threads is not None:
            overrides["num_threads"] = self.num_threads
        bundle = find_bundles(Path(self.bundle_root).absolute(), self.bundles_dir) / SEGMENTATION
        scans = [{**scan, "image": os.path.abspath(scan["image"])} for scan in self.scans]
        with tempfile.TemporaryDirectory() as folder:
            file, datalist = Path(folder, "overrides.json"), Path(folder, "datalist.json")
            write_json(datalist, {"training": scans})
            write_json(file, {**overrides, "datalist": str(datalist)})
            command = bundle_command(str(bundle), RUN_IDS[INFERENCE], [str(bundle / "configs" / INFERENCE), str(file)])
            try:
                run_command(command, bundle, None, "inference")
            except CommandError as error:
                # its own words are on the console already
                raise SystemExit(str(error)) from None
        print(f"label maps: {output_dir}", flush=True)

    def _settings(self) -> dict[str, Any]:
        """What the run set for its own label maps of the model, such as mirroring, so that others are made alike."""
        if self.run_dir is None:
            return {}
        file = final_model(self.run_dir).parents[1] / "validation" / OVERRIDES
        left_out = {*GIVEN, "num_threads", "report"}
        return {name: value for name, value in read_state(file, dict[str, Any], REMAKE).items() if name not in left_out}

    def _model_dir(self) -> Path:
        if self.run_dir is not None:
            if self.ckpt_dir is not None:
                raise InputError(f"run_dir is {self.run_dir} and ckpt_dir is {self.ckpt_dir}. Give one of them.")
            return final_model(self.run_dir)
        if self.ckpt_dir is None or not Path(self.ckpt_dir, "model.json").is_file():
            raise InputError(
                f"run_dir is not set and ckpt_dir ({self.ckpt_dir}) holds no model. Give the folder of a run."
            )
        return Path(self.ckpt_dir).absolute()


def final_model(run_dir: StrPath) -> Path:
    """The model that a run hands over, as its report names it.

    Raises:
        InputError: if the run is not complete, or a stage was made anew since its report.
    """
    run = Path(run_dir).absolute()
    cure = "Complete the run by its command, or give the models of a round as ckpt_dir"
    if not Path(run, FOLDER, NUMBERS).is_file():
        raise InputError(f"{run_dir} has no report of a complete run. {cure}.")
    if "model" not in read_state(run / FOLDER / NUMBERS, dict[str, Any], cure):
        raise InputError(f"{run / FOLDER / NUMBERS} is not of a run, or of an earlier version. {cure}.")
    content = read_state(run / FOLDER / NUMBERS, _Report, cure)
    made = {stage["name"]: stage["fingerprint"] for stage in content["stages"]}
    name = f"{content['model']}/segmentation"
    if recorded_fingerprint(run / name) is None or recorded_fingerprint(run / name) != made.get(name):
        raise InputError(f"{run_dir}: {name} is not the one that the report is of. {cure}.")
    return run / name / MODELS
