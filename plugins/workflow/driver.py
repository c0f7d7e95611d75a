"""Unsupervised domain adaptation as one command."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt
from rich.console import Console

from plugins.config.command import tracking_settings
from plugins.config.ranges import NotEmpty
from plugins.data import crossmoda_datalist, dataset_or_phantom, heldout_labels, heldout_scans, scan_datalist
from plugins.errors import InputError
from plugins.evaluation import results_table
from plugins.evaluation.labels import labels_in
from plugins.interrupts import SENTENCE
from plugins.locks import sole_owner
from plugins.report.live import LIVE_PAGE
from plugins.state import read_state
from plugins.workflow.beforehand import check_crops
from plugins.workflow.functions import SPLITS
from plugins.workflow.gate import ACCEPTED, decisions_in
from plugins.workflow.graph import check_stages, run_stages
from plugins.workflow.plan import StagePlan, find_bundles
from plugins.workflow.process import CommandError
from plugins.workflow.records import REMAKE
from plugins.workflow.segment import final_model
from plugins.workflow.tracking import DriverRun

REPORT_METRICS = "report/metrics.json"
TESTS = "paired_t_test"

StrPath = str | os.PathLike[str]


class UdaWorkflow:
    """Translate, segment, train on pseudo-labels, evaluate and report; what is done already is never repeated.

    Calling :meth:`run` again with the same settings continues where the last call ended, however it ended.

    Args:
        bundle_root: root of this bundle; the phantom lies below it.
        bundles_dir: folder of the bundles that the stages run; ``None`` looks around ``bundle_root``.
        executor: of ``concurrent.futures``; runs independent stages side by side.
        dataset_dir: data set in the layout of CrossMoDA; ``None`` is the phantom.
        output_dir: folder of the run; ``None`` is ``<runs_dir>/<run_name><run_suffix>``.
        runs_dir: folder of all runs.
        run_name: ``None`` is the name of the data set's folder.
        run_suffix: appended to the name.
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
        overlays: config files, such as ``cpu.json``, that are merged over those of every bundle that has them.
        settings: bundle to config ids to values.
        source_truth_dir: true hrT2 scans ``<case>_hrT2.nii.gz`` of source patients; ``None`` looks for those that
            simulated data sets keep. For the bound ``true_hrT2`` only.
        target_truth_dir: likewise, true label maps of the target scans, for the bound ``labelled_hrT2`` only.
        truth_dir: reference label maps ``<case>_Label.nii.gz`` of validation scans; ``None`` looks for those that
            simulated data sets keep beside the scans.
        device: torch device of all stages.
        seed: of all stages.
        num_threads: of each stage; ``None`` leaves each bundle's own.
        max_epochs: of every training; ``None`` leaves each bundle's own.
        train_handlers: told of every evaluated round, see :class:`plugins.workflow.tracking.DriverRun`.
    """

    def __init__(
        self,
        bundle_root: StrPath,
        bundles_dir: StrPath | None,
        executor: Executor,
        dataset_dir: StrPath | None = None,
        output_dir: StrPath | None = None,
        runs_dir: StrPath = "runs",
        run_name: str | None = None,
        run_suffix: str = "",
        views: NotEmpty[str] = ("tanq", "cyclegan"),
        rounds: NonNegativeInt = 1,
        overlays: Sequence[str] = (),
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        truth_dir: StrPath | None = None,
        device: Any = "cpu",
        seed: NonNegativeInt = 0,
        num_threads: PositiveInt | None = None,
        max_epochs: PositiveInt | None = None,
        window: Sequence[float] | None = None,
        translate: str = "ceT1",
        calibrated: bool = False,
        weigh_views: bool = False,
        gate: Mapping[str, Any] | None = None,
        continue_rounds: bool = False,
        source_truth_dir: StrPath | None = None,
        target_truth_dir: StrPath | None = None,
        train_handlers: Sequence[Any] = (),
    ):
        self.bundle_root = Path(os.path.abspath(bundle_root))
        self.bundles_dir = find_bundles(self.bundle_root, bundles_dir)
        self.executor, self.dataset_dir, self.truth_dir = executor, dataset_dir, truth_dir
        self.output_dir, self.runs_dir, self.run_name, self.run_suffix = output_dir, runs_dir, run_name, run_suffix
        self.views = [views] if isinstance(views, str) else [*views]
        self.overlays = [overlays] if isinstance(overlays, str) else [*overlays]
        self.settings = {} if settings is None else settings
        self.rounds, self.max_epochs = rounds, max_epochs
        self.device, self.seed, self.num_threads = device, seed, num_threads
        self.window, self.translate, self.calibrated, self.weigh_views = window, translate, calibrated, weigh_views
        self.gate, self.continue_rounds = gate, continue_rounds
        self.source_truth_dir, self.target_truth_dir = source_truth_dir, target_truth_dir
        self.train_handlers = list(train_handlers)

    @property
    def run_dir(self) -> Path:
        """Folder of the run.

        Raises:
            InputError: if the run's name is no plain name.
        """
        name = self.run_name
        if name is None:
            name = "phantom" if self.dataset_dir is None else Path(self.dataset_dir).absolute().name
        name = f"{name}{self.run_suffix}"
        if name in ("", ".", "..") or Path(name).name != name:
            raise InputError(f"run_name is {name!r}. Give a plain folder name, and runs_dir for the place.")
        if self.output_dir is not None:
            return Path(self.output_dir).absolute()
        return Path(self.runs_dir).absolute() / name

    def plan(self) -> StagePlan:
        """What is to be done; writes the phantom if it is needed and missing.

        Raises:
            InputError: if a setting or the data set's layout is wrong; the scans are not read yet.
        """
        if not isinstance(self.rounds, int) or self.rounds < 0:
            raise InputError(f"rounds is {self.rounds!r}. Give a whole number, 0 for no self-training.")
        if not isinstance(self.settings, Mapping) or not all(isinstance(s, Mapping) for s in self.settings.values()):
            raise InputError(
                'settings is no dictionary of dictionaries. Give some such as {"tanq_translation": {"max_epochs": 3}}.'
            )
        dataset_dir = dataset_or_phantom(self.dataset_dir, self.bundle_root).absolute()
        if self.run_dir.is_relative_to(dataset_dir) or dataset_dir.is_relative_to(self.run_dir):
            raise InputError(f"the run folder {self.run_dir} and {dataset_dir} overlap. Choose another runs_dir.")
        scans = {name: crossmoda_datalist(dataset_dir, split) for name, split in SPLITS.items()}
        common = {"device": f"$torch.device({str(self.device)!r})", "seed": self.seed}
        if self.num_threads is not None:
            common["num_threads"] = self.num_threads
        return StagePlan(
            bundles_dir=self.bundles_dir,
            dataset_dir=dataset_dir,
            scans=scans,
            truth=self._truth(dataset_dir, {scan["case"] for scan in scans["validation"]}),
            views=self.views,
            rounds=self.rounds,
            overlays=self.overlays,
            settings=self.settings,
            common=common,
            max_epochs=self.max_epochs,
            window=None if self.window is None else [float(mm) for mm in self.window],
            translate=self.translate,
            calibrated=self.calibrated,
            weigh_views=self.weigh_views,
            gate=self.gate,
            continue_rounds=self.continue_rounds,
            source_truth=self._bound(dataset_dir, "source", self.source_truth_dir, scans["source"]),
            target_truth=self._bound(dataset_dir, "training_target", self.target_truth_dir, scans["target"]),
        )

    def _bound(
        self, dataset_dir: Path, split: str, folder: StrPath | None, scans: Sequence[Mapping[str, str]]
    ) -> dict[str, str]:
        """Truth that only a bound is trained on."""
        if folder is None:
            found = heldout_labels(dataset_dir, split) if split != "source" else heldout_scans(dataset_dir)
        elif split == "source":
            found = {scan["case"]: scan["image"] for scan in scan_datalist(folder, "hrT2")}
        else:
            found = {case: os.path.abspath(path) for case, path in labels_in(folder).items()}
        cases = [scan["case"] for scan in scans]
        return {case: found[case] for case in cases if case in found} if {*cases} <= {*found} else {}

    def run(self) -> None:
        """Bring the run to its end and print its results.

        Raises:
            InputError: if a setting or a scan is wrong; no training has begun then.
            SystemExit: if a stage fails in another way; the message names its log.
        """
        plan = self.plan()
        stages = plan.stages()
        check_stages(stages, self.run_dir)
        check_crops(stages, [str(scan["label"]) for scan in plan.scans["source"] if "label" in scan])
        print(f"run folder: {self.run_dir}", flush=True)
        print(f"report, while it runs too: {self.run_dir / LIVE_PAGE}", flush=True)
        try:
            with sole_owner(self.run_dir, "driver"), self._tracked(plan) as tracked:
                run_stages(stages, self.run_dir, self.executor, tracked.stages, tracked.finished)
        except KeyboardInterrupt:
            print(SENTENCE, flush=True)
            raise SystemExit(130) from None
        except CommandError as error:
            raise SystemExit(str(error)) from None
        self._print_results(has_truth=bool(plan.truth))

    def _tracked(self, plan: StagePlan) -> DriverRun:
        return DriverRun(self.train_handlers, self.run_dir, self._parameters(plan), self.rounds, tracking_settings())

    def _parameters(self, plan: StagePlan) -> dict[str, Any]:
        """What the results depend on, by name."""
        settings = {
            f"{bundle}.{name.lstrip('+').replace('#', '::')}": value
            for bundle, values in self.settings.items()
            for name, value in values.items()
        }
        return {
            "dataset": plan.dataset_dir.name,
            "views": ", ".join(self.views),
            "window": self.window,
            "translate": self.translate,
            "calibrated": self.calibrated,
            "weigh_views": self.weigh_views,
            "gate": self.gate,
            "continue_rounds": self.continue_rounds,
            "rounds": self.rounds,
            "overlays": ", ".join(self.overlays),
            "seed": self.seed,
            "max_epochs": self.max_epochs,
            **settings,
        }

    def _truth(self, dataset_dir: Path, cases: set[str]) -> dict[str, str]:
        if self.truth_dir is None:
            found = heldout_labels(dataset_dir, "validation")
        else:
            found = {case: os.path.abspath(path) for case, path in labels_in(self.truth_dir).items()}
        truth = {case: path for case, path in sorted(found.items()) if case in cases}
        if self.truth_dir is not None and not truth:
            raise InputError(f"{self.truth_dir} has no label map of a validation scan. Give another truth_dir.")
        return truth

    def _decisions(self) -> dict[str, str]:
        files = {f"round_{n}": self.run_dir / f"round_{n}" / "acceptance" / ACCEPTED for n in range(1, self.rounds + 1)}
        return {} if self.gate is None else decisions_in(files)

    def _print_results(self, has_truth: bool) -> None:
        if has_truth:
            content = read_state(self.run_dir / REPORT_METRICS, dict[str, Any], REMAKE)
            metrics = {key: value for key, value in content.items() if key != TESTS}
            Console().print(results_table(metrics, self._decisions()))
        else:
            print("no reference label maps of the validation scans are known (truth_dir), so there are no metrics")
        print(f"label maps: {final_model(self.run_dir).parents[1] / 'validation'}")
        print(f"report: {self.run_dir / LIVE_PAGE}", flush=True)
