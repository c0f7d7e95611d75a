"""Methods side by side: each is a run of the driver, with every seed, and what they have in common is made once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from pydantic import NonNegativeInt

from plugins.config.names import refuse_unknown
from plugins.config.ranges import NotEmpty
from plugins.errors import InputError
from plugins.evaluation import compare_methods, show_comparison
from plugins.evaluation.cases import Methods, read_methods, write_cases, write_csv
from plugins.evaluation.metrics import CASE_MEASURES, FAILURE_DICE, STRUCTURES
from plugins.interrupts import SENTENCE
from plugins.locks import sole_owner
from plugins.report import write_study_report
from plugins.report.live import LIVE_PAGE
from plugins.state import StrPath, read_state
from plugins.workflow.audit import AUDIT, AUDITED, audit_line
from plugins.workflow.driver import UdaWorkflow
from plugins.workflow.gate import ACCEPTED, Decision
from plugins.workflow.graph import run_together
from plugins.workflow.plan import EVALUATION, METRICS
from plugins.workflow.process import CommandError
from plugins.workflow.records import REMAKE

CONFIGS, OVERLAYS, SUFFIX, RESULTS = "configs", "+overlays", "run_suffix", "results"
SELF_TRAINED = "{} + self-training"


@dataclass(frozen=True)
class Arm:
    """One method with one seed.

    Attributes:
        method: its title.
        seed: of all its stages.
        driver: that runs it.
    """

    method: str
    seed: int
    driver: UdaWorkflow

    def metrics(self) -> dict[str, Path]:
        """Title to ``metrics.json``: of the first segmentation, and of what self-training hands over."""
        run, rounds = self.driver.run_dir, self.driver.rounds
        found = {self.method: "round_0"}
        if rounds:
            last = f"round_{rounds}"
            if self.driver.gate is not None:
                last = read_state(run / last / "acceptance" / ACCEPTED, Decision, REMAKE)["model"]
            found[SELF_TRAINED.format(self.method)] = last
        return {title: run / name / EVALUATION / METRICS for title, name in found.items()}

    def audits(self) -> dict[str, Path]:
        """Round to its ``audit.json``, of those that were audited."""
        gated = self.driver.gate is not None
        rounds = [f"round_{number}" for number in range(1, self.driver.rounds + 1)] if gated else []
        files = {name: self.driver.run_dir / name / AUDITED / AUDIT for name in rounds}
        return {name: file for name, file in files.items() if file.is_file()}


@dataclass
class Study:
    """Runs every method with every seed, and writes what each scored, case by case.

    Args:
        driver: :class:`UdaWorkflow` with the settings that all methods share, still to be called with those of one.
        methods: title to settings of the driver. ``configs`` among them names overlays in the bundle's ``configs``;
            ``+overlays`` adds to the overlays of the stages.
        seeds: each method is run with every one.
        executor: runs stages that need not wait for each other; any of ``concurrent.futures``.
        output_dir: a folder ``<method>/seed_<n>`` for each run, and ``results/``.
        bundle_root: root of the driver's bundle.
        reference: title of the row that all others are tested against; ``None`` tests all pairs.
    """

    driver: Callable[..., UdaWorkflow]
    methods: Mapping[str, Mapping[str, Any]]
    executor: Executor
    output_dir: StrPath
    bundle_root: StrPath
    seeds: NotEmpty[NonNegativeInt] = (0, 1)
    reference: str | None = None

    @property
    def folder(self) -> Path:
        """Folder of the study, absolute."""
        return Path(self.output_dir).absolute()

    def arms(self) -> list[Arm]:
        """A driver for every method and seed.

        Raises:
            InputError: if there is no method, a setting does not exist, or two methods have the same folder.
        """
        if not self.methods:
            raise InputError("methods is empty. Name at least one method.")
        folders = [_folder(name) for name in self.methods]
        twice = [name for name in self.methods if folders.count(_folder(name)) > 1 or not _folder(name)]
        if twice:
            raise InputError(f"methods: {', '.join(map(repr, twice))} give no folder of their own. Rename them.")
        arms = []
        for method, settings in self.methods.items():
            given = self._settings(method, settings)
            for seed in self.seeds:
                run_dir = self.folder / _folder(method) / f"seed_{seed}"
                driver = self.driver(**{**given, "seed": seed, "output_dir": run_dir, "executor": self.executor})
                arms.append(Arm(method, seed, driver))
        return arms

    def run(self) -> None:
        """Bring all runs to their end and write the results.

        Raises:
            InputError: if a setting or a scan is wrong; no training has begun then.
            SystemExit: if a stage fails in another way; the message names its log.
        """
        arms = self.arms()
        stages = {}
        for arm in arms:
            adaptation, stages[arm.driver.run_dir] = arm.driver.checked()
            if not adaptation.truth:
                raise InputError("the data set has no reference label maps of its validation scans. Set truth_dir.")
        print(f"study folder: {self.folder}", flush=True)
        try:
            with sole_owner(self.folder, "study"):
                run_together(stages, self.folder, self.executor)
        except KeyboardInterrupt:
            print(SENTENCE, flush=True)
            raise SystemExit(130) from None
        except CommandError as error:
            raise SystemExit(str(error)) from None
        show_comparison(self.compare(arms), str(self.folder / RESULTS))
        print(f"report: {self.folder / LIVE_PAGE}", flush=True)

    def compare(self, arms: Sequence[Arm]) -> dict[str, Any]:
        """Write ``seeds.csv`` (each seed apart), what :func:`compare_methods` writes of means over seeds, and the page.

        Where pseudo-labels were audited, ``audit.csv`` has a line for each method, seed and round. The page is that of
        :func:`plugins.report.write_study_report`.
        """
        values: dict[str, list[dict[str, Any]]] = {}
        sites: dict[str, str] = {}
        lines = []
        for arm in arms:
            for title, file in arm.metrics().items():
                table = read_methods({title: file})
                sites |= table.sites
                values.setdefault(title, []).append(table.methods[title])
                means = read_state(file, dict[str, Any], REMAKE)["mean"]
                lines += [
                    (title, arm.seed, structure, *(means[structure][key] for key in ("dice", "assd_mm", "failures")))
                    for structure in STRUCTURES
                ]
        results = self.folder / RESULTS
        write_csv(results / "seeds.csv", ("method", "seed", "structure", "dice", "assd_mm", "failures"), lines)
        audits = [(arm, name, file) for arm in arms for name, file in arm.audits().items()]
        if audits:
            told = [{"method": arm.method, "seed": arm.seed, "round": name, **audit_line(f)} for arm, name, f in audits]
            write_csv(results / "audit.csv", [*told[0]], [[*line.values()] for line in told])
        means_of_seeds: Methods = {title: _mean_of(seeds) for title, seeds in values.items()}
        write_cases(results / "methods.csv", means_of_seeds, sites)
        comparison = compare_methods(results / "methods.csv", results, reference=self.reference)
        runs: dict[str, dict[int, StrPath]] = {}
        for arm in arms:
            runs.setdefault(arm.method, {})[arm.seed] = arm.driver.run_dir
        write_study_report(runs, self.folder, comparison, lines)
        return comparison

    def _settings(self, method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The driver's arguments of a method: its overlays in order, then its own."""
        base = self.driver.keywords if isinstance(self.driver, partial) else {}
        given: dict[str, Any] = {"overlays": [*base.get("overlays", ())]}
        folder = Path(self.bundle_root) / CONFIGS
        refuse_unknown(settings.get(CONFIGS, ()), [file.name for file in folder.glob("*.json")], f"{folder}")
        layers = [ConfigParser.load_config_file(folder / name) for name in settings.get(CONFIGS, ())]
        for layer in (*layers, {key: value for key, value in settings.items() if key != CONFIGS}):
            for key, value in layer.items():
                if key == OVERLAYS:
                    given["overlays"] += value
                elif key != SUFFIX:
                    given[key] = value
        known = [name for name in signature(UdaWorkflow).parameters if name not in ("executor", "output_dir", "seed")]
        refuse_unknown(given, known, f"methods::{method}")
        return given


def _mean_of(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every measure of every case and structure as its mean over seeds."""
    found: dict[str, Any] = {}
    for case in seeds[0]:
        for structure in STRUCTURES:
            rows = [cases[case][structure] for cases in seeds]
            measures = {
                name: None if None in (each := [row[name] for row in rows]) else float(np.mean(each))
                for name in CASE_MEASURES
                if all(name in row for row in rows)
            }
            failure = measures["dice"] is not None and measures["dice"] < FAILURE_DICE
            empty = rows[0].get("empty") if measures["dice"] is None else None
            found.setdefault(case, {})[structure] = {**measures, "failure": failure, "empty": empty}
    return found


def _folder(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_").lower()
