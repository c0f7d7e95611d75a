"""Unsupervised domain adaptation as one command."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt
from rich.console import Console

from plugins.config.command import tracking_settings
from plugins.config.names import as_id
from plugins.config.ranges import NotEmpty
from plugins.data import crossmoda_datalist, dataset_or_phantom, heldout_labels, heldout_scans, scan_datalist
from plugins.errors import InputError
from plugins.evaluation import results_table
from plugins.evaluation.labels import labels_in
from plugins.interrupts import SENTENCE
from plugins.locks import sole_owner
from plugins.report.live import LIVE_PAGE
from plugins.state import StrPath, read_state
from plugins.workflow.adaptation import Adaptation
from plugins.workflow.beforehand import check_crops
from plugins.workflow.functions import SPLITS
from plugins.workflow.gate import ACCEPTED, decisions_in
from plugins.workflow.graph import check_stages, run_stages
from plugins.workflow.making import device_expression
from plugins.workflow.plan import find_bundles
from plugins.workflow.process import CommandError
from plugins.workflow.records import REMAKE
from plugins.workflow.segment import final_model
from plugins.workflow.stage import Stage
from plugins.workflow.tracking import DriverRun

REPORT_METRICS = "report/metrics.json"
TESTS = "paired_t_test"
PARAMETERS = (
    "window", "translate", "calibrated", "weigh_views", "gate", "continue_rounds", "last_round_on_target",
    "interaction", "interaction_epochs", "reverse_view", "rounds", "seed", "max_epochs",
)  # fmt: skip
"""Settings that results depend on, as MLflow shows them."""


def run_folder(runs_dir: StrPath, name: str | None, suffix: str, dataset_dir: StrPath | None) -> str:
    """Folder of a run: ``<runs_dir>/<name><suffix>``.

    Args:
        runs_dir: folder of all runs.
        name: ``None`` is the name of the data set's folder.
        suffix: appended to the name.
        dataset_dir: ``None`` is the phantom.

    Raises:
        InputError: if this is no plain name.
    """
    if name is None:
        name = "phantom" if dataset_dir is None else Path(dataset_dir).absolute().name
    name = f"{name}{suffix}"
    if name in ("", ".", "..") or Path(name).name != name:
        raise InputError(f"run_name is {name!r}. Give a plain folder name, and runs_dir for the place.")
    return os.path.join(runs_dir, name)


@dataclass
class UdaWorkflow:
    """Translate, segment, train on pseudo-labels, evaluate and report; what is done already is never repeated.

    Calling :meth:`run` again with the same settings continues where the last call ended, however it ended.

    Args:
        bundle_root: root of this bundle; the phantom lies below it.
        bundles_dir: folder of the bundles that the stages run; ``None`` looks around ``bundle_root``.
        executor: of ``concurrent.futures``; runs independent stages side by side.
        output_dir: folder of the run, see :func:`run_folder`.
        dataset_dir: data set in the layout of CrossMoDA; ``None`` is the phantom.
        views: what the first segmentation is trained on. Translators by name: ``tanq`` is the bundle
            ``tanq_translation``. ``redrawn`` are the scans in the contrast of hrT2, by rule and without a network;
            ``ceT1`` the scans as they are. The bounds are ``true_hrT2`` (of the source patients: a perfect translation)
            and ``labelled_hrT2`` (the target scans with their true labels).
        rounds: rounds of self-training.
        window: mm along L, P, S of the window around the inner ears that everything sees, found by a locator that is
            trained first; ``None`` takes whole scans.
        translate: what the translators take: ``ceT1``, or ``redrawn`` scans.
        calibrated: move brightness and spread of the structures in translations to those of hrT2.
        weigh_views: leave out translations whose structures miss the contrast of hrT2.
        gate: of pseudo-labels, see :class:`plugins.workflow.gate.Thresholds`: ``{}`` for its defaults. With a gate the
            run hands over the last round that was accepted; ``None`` trains on all pseudo-labels, as the paper does.
        continue_rounds: begin each round from the weights of the one before it.
        last_round_on_target: train the last round on real hrT2 and its pseudo-labels alone, without views.
        interaction: in each round, train TANQ on with the round's pseudo-labels, as regions of its identity branch and
            to choose slices with targets. The round's segmentation learns from its new images.
        interaction_epochs: of such a training; at most those of the first one.
        reverse_view: a translator, such as ``cyclegan``, whose reverse generator shows the real scans as source scans.
            A segmentation of source scans labels them, as one more member that a gate compares; ``None`` is without.
        overlays: config files, such as ``cpu.json``, that are merged over those of every bundle that has them.
        settings: bundle to config ids to values.
        source_truth_dir: true hrT2 scans ``<case>_hrT2.nii.gz`` of source patients; ``None`` looks for those that
            simulated data sets keep. For the bound ``true_hrT2`` only.
        target_truth_dir: likewise, true label maps of the target scans: for the bound ``labelled_hrT2``, and for
            audits of gated pseudo-labels.
        truth_dir: reference label maps ``<case>_Label.nii.gz`` of validation scans; ``None`` looks for those that
            simulated data sets keep beside the scans.
        device: torch device of all stages.
        seed: of all stages.
        num_threads: of each stage; ``None`` leaves each bundle's own.
        max_epochs: of every training but that of the locator; ``None`` leaves each bundle's own.
        train_handlers: told of every evaluated round, see :class:`plugins.workflow.tracking.DriverRun`.
    """

    bundle_root: StrPath
    bundles_dir: StrPath | None
    executor: Executor
    output_dir: StrPath
    dataset_dir: StrPath | None = None
    views: NotEmpty[str] = ("tanq", "cyclegan")
    rounds: NonNegativeInt = 1
    window: Sequence[float] | None = None
    translate: str = "ceT1"
    calibrated: bool = False
    weigh_views: bool = False
    gate: Mapping[str, Any] | None = None
    continue_rounds: bool = False
    last_round_on_target: bool = False
    interaction: bool = False
    interaction_epochs: PositiveInt = 40
    reverse_view: str | None = None
    overlays: Sequence[str] = ()
    settings: Mapping[str, Mapping[str, Any]] | None = None
    source_truth_dir: StrPath | None = None
    target_truth_dir: StrPath | None = None
    truth_dir: StrPath | None = None
    device: Any = "cpu"
    seed: NonNegativeInt = 0
    num_threads: PositiveInt | None = None
    max_epochs: PositiveInt | None = None
    train_handlers: Sequence[Any] = ()

    @property
    def run_dir(self) -> Path:
        """Folder of the run, absolute."""
        return Path(self.output_dir).absolute()

    def adaptation(self) -> Adaptation:
        """What is to be done; writes the phantom if it is needed and missing.

        Raises:
            InputError: if a setting or the data set's layout is wrong; the scans are not read yet.
        """
        if not isinstance(self.rounds, int) or self.rounds < 0:
            raise InputError(f"rounds is {self.rounds!r}. Give a whole number, 0 for no self-training.")
        settings = {} if self.settings is None else self.settings
        if not isinstance(settings, Mapping) or not all(isinstance(each, Mapping) for each in settings.values()):
            raise InputError(
                'settings is no dictionary of dictionaries. Give some such as {"tanq_translation": {"max_epochs": 3}}.'
            )
        root = Path(self.bundle_root).absolute()
        bundles_dir = find_bundles(root, self.bundles_dir)
        dataset_dir = dataset_or_phantom(self.dataset_dir, root).absolute()
        if self.run_dir.is_relative_to(dataset_dir) or dataset_dir.is_relative_to(self.run_dir):
            raise InputError(
                f"the run folder {self.run_dir} and {dataset_dir} overlap. Choose another output_dir or runs_dir."
            )
        scans = {name: crossmoda_datalist(dataset_dir, split) for name, split in SPLITS.items()}
        if self.source_truth_dir is None:
            source_truth = heldout_scans(dataset_dir)
        else:
            source_truth = {scan["case"]: scan["image"] for scan in scan_datalist(self.source_truth_dir, "hrT2")}
        truths = {
            "truth_dir": ("validation", _label_maps(self.truth_dir, dataset_dir, "validation")),
            "source_truth_dir": ("source", source_truth),
            "target_truth_dir": ("target", _label_maps(self.target_truth_dir, dataset_dir, "training_target")),
        }
        known = {name: _of(scans[split], files) for name, (split, files) in truths.items()}
        for name, (split, _) in truths.items():
            if getattr(self, name) is not None and not known[name]:
                raise InputError(f"{getattr(self, name)} has nothing of a {split} scan. Give another {name}.")
        common = {"device": device_expression(str(self.device)), "seed": self.seed}
        return Adaptation(
            bundles_dir=bundles_dir,
            dataset_dir=dataset_dir,
            scans=scans,
            truth=known["truth_dir"],
            source_truth=known["source_truth_dir"],
            target_truth=known["target_truth_dir"],
            common=common if self.num_threads is None else {**common, "num_threads": self.num_threads},
            views=[self.views] if isinstance(self.views, str) else [*self.views],
            rounds=self.rounds,
            window=None if self.window is None else [float(mm) for mm in self.window],
            translate=self.translate,
            calibrated=self.calibrated,
            weigh_views=self.weigh_views,
            gate=self.gate,
            continue_rounds=self.continue_rounds,
            last_round_on_target=self.last_round_on_target,
            interaction=self.interaction,
            interaction_epochs=self.interaction_epochs,
            reverse_view=self.reverse_view,
            overlays=[self.overlays] if isinstance(self.overlays, str) else [*self.overlays],
            settings=settings,
            max_epochs=self.max_epochs,
        )

    def checked(self) -> tuple[Adaptation, list[Stage]]:
        """What is to be done, and its stages, none of which has a fault that can be seen before it runs.

        Raises:
            InputError: if a setting or a scan is wrong.
        """
        adaptation = self.adaptation()
        stages = adaptation.stages()
        check_stages(stages, self.run_dir)
        check_crops(stages, [str(scan["label"]) for scan in adaptation.scans["source"] if "label" in scan])
        return adaptation, stages

    def run(self) -> None:
        """Bring the run to its end and print its results.

        Raises:
            InputError: if a setting or a scan is wrong; no training has begun then.
            SystemExit: if a stage fails in another way; the message names its log.
        """
        adaptation, stages = self.checked()
        print(f"run folder: {self.run_dir}", flush=True)
        print(f"report, while it runs too: {self.run_dir / LIVE_PAGE}", flush=True)
        for sentence in _on_truth(adaptation):
            print(sentence, flush=True)
        tracked = DriverRun(
            self.train_handlers, self.run_dir, self._parameters(adaptation), self.rounds, tracking_settings()
        )
        try:
            with sole_owner(self.run_dir, "driver"), tracked:
                run_stages(stages, self.run_dir, self.executor, tracked.stages, tracked.finished)
        except KeyboardInterrupt:
            print(SENTENCE, flush=True)
            raise SystemExit(130) from None
        except CommandError as error:
            raise SystemExit(str(error)) from None
        self._print_results(has_truth=bool(adaptation.truth))

    def _parameters(self, adaptation: Adaptation) -> dict[str, Any]:
        """What the results depend on, by name."""
        settings = {
            f"{bundle}.{as_id(name)}": value
            for bundle, values in adaptation.settings.items()
            for name, value in values.items()
        }
        return {
            "dataset": str(adaptation.dataset_dir),
            "views": ", ".join(adaptation.views),
            "overlays": ", ".join(adaptation.overlays),
            **{name: getattr(self, name) for name in PARAMETERS},
            **settings,
        }

    def _print_results(self, has_truth: bool) -> None:
        if has_truth:
            content = read_state(self.run_dir / REPORT_METRICS, dict[str, Any], REMAKE)
            metrics = {key: value for key, value in content.items() if key != TESTS}
            rounds = [] if self.gate is None else [f"round_{number}" for number in range(1, self.rounds + 1)]
            decisions = decisions_in({name: self.run_dir / name / "acceptance" / ACCEPTED for name in rounds})
            Console().print(results_table(metrics, decisions))
        else:
            print("no reference label maps of the validation scans are known (truth_dir), so there are no metrics")
        print(f"label maps: {final_model(self.run_dir).parents[1] / 'validation'}")
        print(f"report: {self.run_dir / LIVE_PAGE}", flush=True)


def _on_truth(adaptation: Adaptation) -> list[str]:
    """What the user should know where only some scans have a reference."""
    known, scans = len(adaptation.truth), len(adaptation.scans["validation"])
    told = []
    if 0 < known < scans:
        told.append(f"{known} of {scans} validation scans have a reference label map; metrics are of these")
    known, scans = len(adaptation.target_truth), len(adaptation.scans["target"])
    if 0 < known < scans and adaptation.gate is not None and adaptation.rounds > 0:
        told.append(f"{known} of {scans} target scans have a reference label map, so pseudo-labels are not audited")
    return told


def _label_maps(folder: StrPath | None, dataset_dir: Path, split: str) -> dict[str, str]:
    """Case to true label map: of a folder, or of those that simulated data sets keep."""
    if folder is None:
        return heldout_labels(dataset_dir, split)
    return {case: os.path.abspath(path) for case, path in labels_in(folder).items()}


def _of(scans: Sequence[Mapping[str, str]], files: Mapping[str, str]) -> dict[str, str]:
    """The files of these scans, by case."""
    return {scan["case"]: files[scan["case"]] for scan in scans if scan["case"] in files}
