"""Methods side by side: each is a run of the driver, with every seed, and what they have in common is made once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.utils import ensure_tuple
from pydantic import NonNegativeInt

from plugins.config.names import refuse_unknown
from plugins.config.ranges import NotEmpty
from plugins.errors import InputError
from plugins.evaluation import compare_methods, show_comparison
from plugins.evaluation.cases import Seeds, mean_of_seeds, read_methods, write_cases, write_csv
from plugins.evaluation.metrics import STRUCTURES
from plugins.interrupts import SENTENCE
from plugins.locks import sole_owner
from plugins.report import write_study_report
from plugins.report.live import FOLDER, LIVE_PAGE
from plugins.report.page import NUMBERS
from plugins.state import StrPath, read_state
from plugins.workflow.audit import audit_line
from plugins.workflow.driver import UdaWorkflow
from plugins.workflow.graph import run_together
from plugins.workflow.plan import EVALUATION, METRICS
from plugins.workflow.process import CommandError
from plugins.workflow.records import REMAKE, recorded_fingerprint
from plugins.workflow.segment import final_model

CONFIGS, OVERLAYS, SUFFIX, SETTINGS, RESULTS = "configs", "+overlays", "run_suffix", "settings", "results"
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

    @property
    def titles(self) -> list[str]:
        """Of its rows: of the first segmentation, and of what self-training hands over."""
        return [self.method, *([SELF_TRAINED.format(self.method)] if self.driver.rounds else [])]

    def metrics(self) -> dict[str, Path]:
        """Title to ``metrics.json``."""
        run = self.driver.run_dir
        rounds = zip(self.titles, [run / "round_0", final_model(run).parents[1]], strict=False)
        return {title: folder / EVALUATION / METRICS for title, folder in rounds}

    def audits(self) -> dict[str, Any]:
        """Round to its ``audit.json``, of those that were audited, as the report of the run has it."""
        report = read_state(self.driver.run_dir / FOLDER / NUMBERS, dict[str, Any], REMAKE)
        return {each["round"]: each["audit"] for each in report["pseudo_labels"] if each.get("audit")}


@dataclass
class Study:
    """Runs every method with every seed, and writes what each scored, case by case.

    Args:
        driver: :class:`UdaWorkflow` with the settings that all methods share, still to be called with those of one.
        methods: title to settings of the driver. ``configs`` among them names overlays in the bundle's ``configs``;
            ``+overlays`` adds to the overlays of the stages, and ``settings`` to those that all methods share.
        seeds: each method is run with every one.
        executor: runs stages that need not wait for each other; any of ``concurrent.futures``.
        output_dir: a folder ``<method>/seed_<n>`` for each run, and ``results/``.
        bundle_root: root of the driver's bundle.
        reference: what all others are tested against: a method, of which each row before self-training is held against
            the one before, and each after it against the one after; or the title of one row; ``None`` tests all pairs.
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
            InputError: if there is no method, a setting does not exist, two methods have the same folder or row, or a
                seed stands twice.
        """
        if not self.methods:
            raise InputError("methods is empty. Name at least one method.")
        folders = [_folder(name) for name in self.methods]
        twice = [name for name in self.methods if folders.count(_folder(name)) > 1 or not _folder(name)]
        if twice:
            raise InputError(f"methods: {', '.join(map(repr, twice))} give no folder of their own. Rename them.")
        seeds = [*self.seeds]
        if len({*seeds}) < len(seeds):
            raise InputError(f"seeds is {seeds}. Name each seed once.")
        arms = []
        for method, settings in self.methods.items():
            given = self._settings(method, settings)
            for seed in self.seeds:
                run_dir = self.folder / _folder(method) / f"seed_{seed}"
                driver = self.driver(**{**given, "seed": seed, "output_dir": run_dir, "executor": self.executor})
                arms.append(Arm(method, seed, driver))
        owners: dict[str, str] = {}
        for arm in arms:
            for title in arm.titles:
                if owners.setdefault(title, arm.method) != arm.method:
                    raise InputError(f"methods: {title!r} is a row of {owners[title]!r} too. Rename {arm.method!r}.")
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
        self._references(dict.fromkeys(title for arm in arms for title in arm.titles), arms)
        print(f"study folder: {self.folder}\nreport: {self.folder / LIVE_PAGE}", flush=True)
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
        """Write the values of each seed, what :func:`compare_methods` makes of them, and the page.

        ``methods.csv`` has every case, ``seeds.csv`` the means. A model that several methods have in common, such as
        that before different ways of self-training, has one row.

        Where pseudo-labels were audited, ``audit.csv`` has a line for each method, seed and round. The page is that of
        :func:`plugins.report.write_study_report`.
        """
        files: dict[str, dict[int, Path]] = {}
        for arm in arms:
            for title, file in arm.metrics().items():
                files.setdefault(title, {})[arm.seed] = file
        owners: dict[tuple[str | None, ...], str] = {}
        for title in sorted({arm.method: 0 for arm in arms}, key=lambda title: title not in self._pair(arms)):
            made = tuple(recorded_fingerprint(file.parent) for file in files[title].values())
            if owners.setdefault(made, title) != title:
                print(f"{title}: its first model is that of {owners[made]}, so it has no row of its own", flush=True)
        values: Seeds = {}
        sites: dict[str, str] = {}
        lines = []
        merged = {arm.method for arm in arms} - {*owners.values()}
        merged = merged if len(files) - len(merged) > 1 else set()  # a comparison needs two rows
        for title in [title for title in files if title not in merged]:
            for seed, file in files[title].items():
                table = read_methods({title: file})
                sites |= table.sites
                values.setdefault(title, {})[str(seed)] = table.methods[title]
                means = read_state(file, dict[str, Any], REMAKE)["mean"]
                lines += [
                    (title, seed, structure, *(means[structure][key] for key in ("dice", "assd_mm", "failures")))
                    for structure in STRUCTURES
                ]
        results = self.folder / RESULTS
        write_csv(results / "seeds.csv", ("method", "seed", "structure", "dice", "assd_mm", "failures"), lines)
        audits = [(arm, name, audit) for arm in arms for name, audit in arm.audits().items()]
        if audits:
            told = [{"method": arm.method, "seed": arm.seed, "round": name, **audit_line(a)} for arm, name, a in audits]
            write_csv(results / "audit.csv", [*told[0]], [[*line.values()] for line in told])
        else:
            (results / "audit.csv").unlink(missing_ok=True)
        means = {title: mean_of_seeds([*seeds.values()]) for title, seeds in values.items()}
        write_cases(results / "methods.csv", means, sites, values)
        references = self._references(values, arms)
        comparison = compare_methods(results / "methods.csv", results, reference=references)
        runs: dict[str, dict[int, StrPath]] = {}
        for arm in arms:
            runs.setdefault(arm.titles[-1], {})[arm.seed] = arm.driver.run_dir
        write_study_report(runs, self.folder, comparison, lines)
        return comparison

    def _pair(self, arms: Sequence[Arm]) -> list[str]:
        """Titles of the rows that others are tested against: before and after self-training, or the only one."""
        single = [] if self.reference is None else [self.reference]
        return next((arm.titles for arm in arms if arm.method == self.reference), single)

    def _references(self, titles: Iterable[str], arms: Sequence[Arm]) -> str | dict[str, str] | None:
        """What each row is tested against.

        Raises:
            InputError: if there is no such row, or one row alone.
        """
        titles = [*titles]
        if len(titles) < 2:
            raise InputError(f"methods gives one row, {titles[0]}. Name two or more methods, or give one rounds.")
        if self.reference is None:
            return None
        pair = self._pair(arms)
        refuse_unknown(pair, titles, "reference")
        trained = {arm.titles[-1] for arm in arms if arm.driver.rounds}
        return pair[0] if len(pair) < 2 or titles == pair else {title: pair[title in trained] for title in titles}

    def _settings(self, method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The driver's arguments of a method: its overlays in order, then its own."""
        if not isinstance(settings, Mapping):
            raise InputError(
                f"methods::{method} is {settings!r}. Give a mapping of settings, or {{}} for those shared."
            )
        base = self.driver.keywords if isinstance(self.driver, partial) else {}
        given: dict[str, Any] = {"overlays": [*ensure_tuple(base.get("overlays") or ())]}
        shared: dict[str, dict[str, Any]] = {name: dict(ids) for name, ids in (base.get(SETTINGS) or {}).items()}
        folder = Path(self.bundle_root) / CONFIGS
        names = ensure_tuple(settings.get(CONFIGS) or ())
        refuse_unknown(names, [file.name for file in folder.glob("*.json")], f"{folder}")
        layers = [ConfigParser.load_config_file(folder / name) for name in names]
        for layer in (*layers, {key: value for key, value in settings.items() if key != CONFIGS}):
            for key, value in layer.items():
                if key == OVERLAYS:
                    given["overlays"] = [*given["overlays"], *ensure_tuple(value or ())]
                elif key == SETTINGS:
                    if not isinstance(value, Mapping) or not all(isinstance(each, Mapping) for each in value.values()):
                        fault = f"methods::{method}::{SETTINGS} is no mapping of bundles to mappings of settings"
                        raise InputError(f"{fault}. Write it so, as the driver's.")
                    for bundle, ids in value.items():
                        given.setdefault(SETTINGS, shared).setdefault(bundle, {}).update(ids)
                elif key != SUFFIX:
                    given[key] = value
        known = [name for name in signature(UdaWorkflow).parameters if name not in ("executor", "output_dir", "seed")]
        refuse_unknown(given, known, f"methods::{method}")
        return given


def _folder(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_").lower()
