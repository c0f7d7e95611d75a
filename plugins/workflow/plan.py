"""The stages of unsupervised domain adaptation, from the data set to the report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from plugins.config.command import read_configs
from plugins.config.names import known_settings, refuse_unknown, refuse_unknown_ids
from plugins.errors import InputError
from plugins.workflow.functions import UNTRANSLATED
from plugins.workflow.gate import ACCEPTED, GATE, SCORE
from plugins.workflow.stage import Stage

SEGMENTATION = "vs_cochlea_seg"
TRAIN, INFERENCE, EVALUATE = "train.json", "inference.json", "evaluate.json"
FUNCTIONS = "plugins.workflow.functions"
RUN_IDS = {TRAIN: "training", INFERENCE: "inference", EVALUATE: "evaluate", "locator.json": "training"}
MODELS, METRICS, EVALUATION = "models", "metrics.json", "evaluation"
LOCATOR = "locator.json"
REDRAWN, TRUE_SOURCE, LABELLED_TARGET = "redrawn", "true_hrT2", "labelled_hrT2"
GIVEN = frozenset(
    ("bundle_root", "dataset_dir", "datalist", "output_dir", "ckpt_dir", "cache_dir", "model_dir", "locator_dir",
     "plans_from", "init_weights", "pred_dir", "label_dir")
)  # fmt: skip
"""Settings of a stage that say where things lie."""
MADE_HERE = (UNTRANSLATED, REDRAWN, TRUE_SOURCE, LABELLED_TARGET)


def find_bundles(bundle_root: Path, bundles_dir: str | os.PathLike[str] | None) -> Path:
    """Folder of the bundles: ``bundles_dir``, or the one around ``bundle_root``, or one just below it.

    Raises:
        InputError: if none of them holds the segmentation bundle.
    """
    if bundles_dir is None:
        places = [bundle_root.parent, *(path for path in sorted(bundle_root.glob("*")) if path.is_dir())]
    else:
        places = [Path(bundles_dir).absolute()]
    for place in places:
        if (place / SEGMENTATION / "configs").is_dir():
            return place
    raise InputError(f"there is no bundle {SEGMENTATION} around {places[0]}. Set bundle_root or bundles_dir.")


@dataclass(frozen=True)
class StagePlan:
    """What is to be done, and the stages that do it.

    Args:
        bundles_dir: folder of the bundles.
        dataset_dir: folder of the data set.
        scans: its source, target and validation scans.
        truth: validation case to reference label map; may be empty.
        views: what the first segmentation is trained on: names of translators, ``<view>_translation`` being the
            bundle; ``redrawn``, the source scans in the target's contrast by rule; ``ceT1``, the scans as they are;
            or, for the bounds, ``true_hrT2`` of the source patients and ``labelled_hrT2`` of the target patients.
        rounds: how often pseudo-labels of real hrT2 are made and trained on.
        window: mm along L, P, S of the window that everything sees; ``None`` for whole scans.
        translate: what the translators take: ``ceT1``, or ``redrawn`` scans.
        calibrated: move brightness and spread of the structures in translations to the target's.
        weigh_views: leave translations out, or weigh them down, whose structures miss the contrast of hrT2.
        gate: thresholds of :class:`plugins.workflow.gate.Thresholds` for pseudo-labels; ``None`` takes all as they are
            and hands over the last round.
        continue_rounds: begin a round from the weights of the one before it.
        source_truth: source case to its true hrT2, for the view ``true_hrT2``.
        target_truth: target case to its true label map, for the view ``labelled_hrT2``.
        overlays: config files that are merged over those of every bundle that has them.
        settings: bundle to config ids to values; every stage of the bundle takes those that its config has.
        common: config ids to values for all bundles.
        max_epochs: of every training; ``None`` leaves each bundle's own.
    """

    bundles_dir: Path
    dataset_dir: Path
    scans: Mapping[str, Sequence[Mapping[str, str]]]
    truth: Mapping[str, str]
    views: Sequence[str]
    rounds: int
    overlays: Sequence[str] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    common: Mapping[str, Any] = field(default_factory=dict)
    max_epochs: int | None = None
    window: Sequence[float] | None = None
    translate: str = UNTRANSLATED
    calibrated: bool = False
    weigh_views: bool = False
    gate: Mapping[str, Any] | None = None
    continue_rounds: bool = False
    source_truth: Mapping[str, str] = field(default_factory=dict)
    target_truth: Mapping[str, str] = field(default_factory=dict)

    def stages(self) -> list[Stage]:
        """All stages.

        Raises:
            InputError: for a view, an overlay, a bundle or a setting that does not exist, with the nearest name.
        """
        self._check()
        self._check_settings()
        stages = [self._dataset(), *self._windows()]
        if REDRAWN in self.views:
            stages.append(self._redrawn())
        if self.translate == REDRAWN and self._translators:
            stages.append(self._redrawn_dataset())
        for view in self._translators:
            stages += self._translation(view)
        stages += self._bounds()
        if self.weigh_views:
            stages.append(self._weights())
        for number in range(self.rounds + 1):
            stages += self._round(number)
        return [*stages, self._report()]

    @property
    def _translators(self) -> list[str]:
        return [view for view in self.views if view not in MADE_HERE]

    @property
    def _data(self) -> str:
        """The stage whose lists of scans everything but the last segmentation works on."""
        return "dataset" if self.window is None else "windows"

    @property
    def folders(self) -> dict[str, str]:
        """The stage that makes each view's images; views without one take images that are there."""
        made = {view: f"{view}_calibrated" if self.calibrated else f"{view}_translation" for view in self._translators}
        bounds = {view: view for view in (REDRAWN, TRUE_SOURCE) if view in self.views}
        return {view: (made | bounds)[view] for view in self.views if view in made | bounds}

    def _check(self) -> None:
        found = [path.parent.parent for path in sorted(self.bundles_dir.glob(f"*/configs/{TRAIN}"))]
        translators = [path.name.removesuffix("_translation") for path in found if path.name.endswith("_translation")]
        refuse_unknown(self.views, [*translators, *MADE_HERE], "views")
        refuse_unknown([self.translate], [UNTRANSLATED, REDRAWN], "translate")
        for view, truth in ((TRUE_SOURCE, self.source_truth), (LABELLED_TARGET, self.target_truth)):
            if view in self.views and not truth:
                raise InputError(f"views names {view!r}, but the data set has no truth for it. Choose other views.")
        if LABELLED_TARGET in self.views and len(self.views) > 1:
            raise InputError(f"views names {LABELLED_TARGET!r} beside others, but it is a bound. Give it alone.")
        if not self.views or len(set(self.views)) != len(self.views):
            raise InputError(f"views is {list(self.views)}. Name at least one view, and each once.")
        refuse_unknown(self.settings, [path.name for path in found], "settings")
        refuse_unknown(
            self.overlays, {p.name for root in found for p in root.glob("configs/*.json")}, f"{self.bundles_dir}"
        )
        for bundle, settings in self.settings.items():
            folder = self.bundles_dir / bundle / "configs"
            known = read_configs([folder / TRAIN])
            for other in (INFERENCE, EVALUATE):
                if (folder / other).is_file():
                    known = {**read_configs([folder / other]), **known}
            refuse_unknown_ids(known, settings, f"settings of {bundle}")

    def _dataset(self) -> Stage:
        files = [
            scan[key] for scans in self.scans.values() for scan in scans for key in ("image", "label") if key in scan
        ]
        return Stage(
            name="dataset",
            function=f"{FUNCTIONS}.write_dataset_lists",
            overrides={"dataset_dir": str(self.dataset_dir), "output_dir": "{stage}"},
            inputs=tuple(files),
        )

    def _windows(self) -> list[Stage]:
        """The locator, and what lies in the windows of all scans."""
        if self.window is None:
            return []
        training = {
            "datalist": "{run}/dataset/source.json",
            "ckpt_dir": f"{{stage}}/{MODELS}",
            "output_dir": "{stage}",
            "window_size": list(self.window),
        }
        lists = {name: f"{{run}}/dataset/{name}.json" for name in ("source", "target", "validation")}
        cut = {**lists, "locator_dir": f"{{run}}/locator/{MODELS}", "output_dir": "{stage}", "seed": self._seed}
        return [
            self._bundle("locator", SEGMENTATION, LOCATOR, ["dataset"], training),
            Stage("windows", ("dataset", "locator"), function="plugins.workflow.windows.write_windows", overrides=cut),
        ]

    @property
    def _seed(self) -> int:
        return int(self.common.get("seed") or 0)

    def _redrawn(self) -> Stage:
        arguments = {**self._lists("source", "target"), "output_dir": "{stage}", "seed": self._seed}
        return Stage(REDRAWN, (self._data,), function="plugins.workflow.redrawing.write_redrawn", overrides=arguments)

    def _redrawn_dataset(self) -> Stage:
        """What the translators are trained on in place of ceT1."""
        folder = str(self.dataset_dir) if self.window is None else f"{{run}}/{self._data}"
        arguments = {"dataset_dir": folder, "output_dir": "{stage}", "seed": self._seed}
        function = "plugins.workflow.windows.write_redrawn_dataset"
        return Stage("redrawn_dataset", (self._data,), function=function, overrides=arguments)

    def _lists(self, *names: str) -> dict[str, str]:
        return {name: f"{{run}}/{self._data}/{name}.json" for name in names}

    def _translation(self, view: str) -> list[Stage]:
        bundle, training = f"{view}_translation", f"{view}_training"
        data = "redrawn_dataset" if self.translate == REDRAWN else self._data
        dataset_dir = str(self.dataset_dir) if data == "dataset" else f"{{run}}/{data}"
        folders = {"dataset_dir": dataset_dir, "ckpt_dir": f"{{stage}}/{MODELS}", "output_dir": "{stage}"}
        inference = {"datalist": f"{{run}}/{data}/source.json", "ckpt_dir": f"{{run}}/{training}/{MODELS}"}
        stages = [
            self._bundle(training, bundle, TRAIN, [data], folders),
            self._bundle(bundle, bundle, INFERENCE, [data, training], {**inference, "output_dir": "{stage}"}),
        ]
        if self.calibrated:
            arguments = {
                **self._lists("source", "target"),
                "translations_dir": f"{{run}}/{bundle}",
                "output_dir": "{stage}",
            }
            function = "plugins.workflow.redrawing.write_calibrated"
            stages.append(Stage(f"{view}_calibrated", (self._data, bundle), function=function, overrides=arguments))
        return stages

    def _bounds(self) -> list[Stage]:
        """True scans of the source and true labels of the target, as the windows show them."""
        wanted = {TRUE_SOURCE: (self.source_truth, ".nii.gz"), LABELLED_TARGET: (self.target_truth, "_Label.nii.gz")}
        return [
            Stage(
                name=view,
                needs=tuple(dict.fromkeys(("dataset", self._data))),
                function="plugins.workflow.windows.crop_to_windows",
                overrides={
                    "files": dict(files),
                    "ending": ending,
                    "windows_dir": None if self.window is None else "{run}/windows",
                    "output_dir": "{stage}",
                },
                inputs=tuple(files.values()),
            )
            for view, (files, ending) in wanted.items()
            if view in self.views
        ]

    def _weights(self) -> Stage:
        arguments = {
            **self._lists("source"),
            "views": {view: f"{{run}}/{folder}" for view, folder in self.folders.items()},
            "output_dir": "{stage}",
        }
        function = "plugins.workflow.views.weigh_views"
        needs = (self._data, *self.folders.values())
        return Stage("view_weights", needs, function=function, overrides=arguments)

    def _round(self, number: int) -> list[Stage]:
        name = f"round_{number}"
        stages = []
        if number > 0 and self.gate is not None:
            stages.append(self._gate(number))
        elif number > 0:
            stages.append(self._labels(f"{name}/pseudo_labels", "target", number - 1))
        stages += [
            self._training_list(number),
            self._segmentation(number),
            self._labels(f"{name}/validation", "validation", number),
        ]
        if self.gate is not None and self.rounds > 0:
            stages += self._score(number)
        if self.truth:
            stages.append(self._evaluation(name))
        return stages

    def _check_settings(self) -> None:
        """Refuse settings of a bundle that the driver gives itself, and more folds than there are patients."""
        for bundle, values in self.settings.items():
            for name in values:
                if name.lstrip("+") in GIVEN:
                    raise InputError(f"settings::{bundle}::{name} is given by the driver itself. Remove it.")
        patients = len(self.scans["target" if LABELLED_TARGET in self.views else "source"])
        folds = self._config["num_folds"]
        if isinstance(folds, int) and folds > patients:
            raise InputError(f"num_folds is {folds}, but there are {patients} patients. Give at most {patients}.")

    @property
    def _config(self) -> dict[str, Any]:
        """Of the training of the segmentation."""
        folder = self.bundles_dir / SEGMENTATION / "configs"
        overlays = [folder / name for name in self.overlays if (folder / name).is_file()]
        return {**read_configs([folder / TRAIN, *overlays]), **self.settings.get(SEGMENTATION, {})}

    @property
    def _folds(self) -> list[int]:
        """The folds that a segmentation has a network of."""
        config = self._config
        folds = config.get("folds")
        return [folds] if isinstance(folds, int) else list(range(config["num_folds"]) if folds is None else folds)

    def _member_stages(self, number: int) -> dict[int, str]:
        return {fold: f"round_{number}/target_fold_{fold}" for fold in self._folds}

    def _score(self, number: int) -> list[Stage]:
        """Label maps of the target scans by a round's model and by each of its folds, and what they say of it."""
        name, members = f"round_{number}", self._member_stages(number)
        stages = [self._labels(f"{name}/target", "target", number, {"save_probabilities": True})]
        stages += [self._labels(stage, "target", number, {"folds": [fold]}) for fold, stage in members.items()]
        arguments = {**self._judged(number), "output_dir": "{stage}"}
        needs = (self._data, f"{name}/target", *members.values())
        score = f"{name}/score"
        stages.append(Stage(score, needs, function="plugins.workflow.gate.score_model", overrides=arguments))
        if number > 0:
            before = f"round_{number - 1}/" + ("score" if number == 1 else "acceptance")
            files = {
                "before": f"{{run}}/{before}/{SCORE if number == 1 else ACCEPTED}",
                "after": f"{{run}}/{score}/{SCORE}",
            }
            names = {"before_model": f"round_{number - 1}", "after_model": name, "output_dir": "{stage}"}
            function = "plugins.workflow.gate.accept_round"
            stages.append(Stage(f"{name}/acceptance", (before, score), function=function, overrides=files | names))
        return stages

    def _judged(self, number: int) -> dict[str, Any]:
        return {
            "target": f"{{run}}/{self._data}/target.json",
            "ensemble_dir": f"{{run}}/round_{number}/target",
            "member_dirs": [f"{{run}}/{stage}" for stage in self._member_stages(number).values()],
            "statistics": f"{{run}}/{self._data}/source.json",
        }

    def _gate(self, number: int) -> Stage:
        """Pseudo-labels by the model that has been accepted so far."""
        before = range(number)
        needs = [self._data]
        for each in before:
            needs += [f"round_{each}/target", *self._member_stages(each).values()]
        accepted = f"round_{number - 1}/acceptance" if number > 1 else None
        models = {f"round_{each}": self._judged(each) for each in before}
        arguments = {
            "models": models,
            "accepted": accepted and f"{{run}}/{accepted}/{ACCEPTED}",
            "thresholds": dict(self.gate or {}),
            "output_dir": "{stage}",
        }
        return Stage(
            name=f"round_{number}/pseudo_labels",
            needs=(*needs, *([accepted] if accepted else [])),
            function="plugins.workflow.gate.gate_accepted",
            overrides=arguments,
        )

    def _training_list(self, number: int) -> Stage:
        name = f"round_{number}"
        views = {view: f"{{run}}/{self.folders[view]}" if view in self.folders else None for view in self.views}
        needs = [self._data, *self.folders.values()]
        arguments: dict[str, Any] = {**self._lists("source"), "views": views, "output_dir": "{stage}"}
        arguments["run_dir"] = "{run}"
        if self.weigh_views:
            needs.append("view_weights")
            arguments["weights"] = "{run}/view_weights/views.json"
        if LABELLED_TARGET in self.views:
            needs.append(LABELLED_TARGET)
            arguments |= {**self._lists("target"), "pseudo_labels": f"{{run}}/{LABELLED_TARGET}", "views": {}}
        if number > 0:
            needs.append(f"{name}/pseudo_labels")
            arguments |= {**self._lists("target"), "pseudo_labels": f"{{run}}/{name}/pseudo_labels"}
            if self.gate is not None:
                arguments["gate"] = f"{{run}}/{name}/pseudo_labels/{GATE}"
        return Stage(
            name=f"{name}/datalist",
            needs=tuple(needs),
            function=f"{FUNCTIONS}.write_training_list",
            overrides=arguments,
        )

    def _segmentation(self, number: int) -> Stage:
        name = f"round_{number}"
        needs = [f"{name}/datalist"]
        overrides = {
            "datalist": f"{{run}}/{name}/datalist/datalist.json",
            "model_dir": f"{{stage}}/{MODELS}",
            "output_dir": "{stage}",
        }
        if self.window is not None:
            needs.append("locator")
            overrides["locator_dir"] = f"{{run}}/locator/{MODELS}"
        if number > 0:
            needs.append("round_0/segmentation")
            overrides["plans_from"] = f"{{run}}/round_0/segmentation/{MODELS}"
            if self.continue_rounds:
                needs.append(f"round_{number - 1}/segmentation")
                overrides["init_weights"] = f"{{run}}/round_{number - 1}/segmentation/{MODELS}"
        return self._bundle(f"{name}/segmentation", SEGMENTATION, TRAIN, [*dict.fromkeys(needs)], overrides)

    def _labels(self, name: str, scans: str, model: int, settings: Mapping[str, Any] | None = None) -> Stage:
        """Label maps by the model of a round: of whole validation scans, or of the target scans in their windows."""
        training = f"round_{model}/segmentation"
        data = self._data if scans == "target" else "dataset"
        overrides: dict[str, Any] = {
            "datalist": f"{{run}}/{data}/{scans}.json",
            "model_dir": f"{{run}}/{training}/{MODELS}",
            "output_dir": "{stage}",
            **(settings or {}),
        }
        if scans == "target" and self.window is not None:
            overrides["locate"] = False
        return self._bundle(name, SEGMENTATION, INFERENCE, [data, training], overrides)

    def _evaluation(self, name: str) -> Stage:
        overrides = {
            "pred_dir": f"{{run}}/{name}/validation",
            "label_dir": str(Path(next(iter(self.truth.values()))).parent),
            "output_dir": "{stage}",
        }
        files = tuple(self.truth.values())
        return self._bundle(f"{name}/{EVALUATION}", SEGMENTATION, EVALUATE, [f"{name}/validation"], overrides, files)

    def _report(self) -> Stage:
        rounds = [f"round_{number}" for number in range(self.rounds + 1)]
        arguments = {
            "validation": "{run}/dataset/validation.json",
            "pred_dirs": {name: f"{{run}}/{name}/validation" for name in rounds},
            "metrics_files": {name: f"{{run}}/{name}/{EVALUATION}/{METRICS}" for name in rounds} if self.truth else {},
            "output_dir": "{stage}",
            "truth": dict(self.truth),
            **self._lists("source", "target"),
            "run_dir": "{run}",
            "translations": {view: f"{{run}}/{folder}" for view, folder in self.folders.items()},
        }
        decided = [f"round_{n}/acceptance" for n in range(1, self.rounds + 1)] if self.gate is not None else []
        arguments["accepted_files"] = {name.split("/")[0]: f"{{run}}/{name}/{ACCEPTED}" for name in decided}
        last = EVALUATION if self.truth else "validation"
        needs = [f"{name}/{kind}" for name in rounds for kind in ("validation", last)]
        needs += ["dataset", self._data, *self.folders.values(), *decided]
        return Stage(
            name="report",
            needs=tuple(dict.fromkeys(needs)),
            function=f"{FUNCTIONS}.write_run_report",
            overrides=arguments,
        )

    def _bundle(
        self,
        name: str,
        bundle: str,
        config: str,
        needs: Sequence[str],
        overrides: Mapping[str, Any],
        inputs: tuple[str, ...] = (),
    ) -> Stage:
        """A run of a bundle.

        Overlays are written for ``train.json``. The other configs take those of an overlay's settings that they have,
        such as the size of a network; so it is with the settings of the run.
        """
        folder = self.bundles_dir / bundle / "configs"
        prefix = "locator_" if config == LOCATOR else ""
        overlays = [prefix + name for name in self.overlays if (folder / (prefix + name)).is_file()]
        files = [config, *overlays] if config in (TRAIN, LOCATOR) else [config]
        base = read_configs([folder / file for file in files])
        given: dict[str, Any] = {"report": False} if config == INFERENCE else {}
        if config not in (TRAIN, LOCATOR):
            for overlay in overlays:
                given |= ConfigParser.load_config_file(folder / overlay)
        given |= self.common
        if config == TRAIN and self.max_epochs is not None:
            given["max_epochs"] = self.max_epochs
        if config != LOCATOR:  # settings of the bundle are those of the segmentation
            given |= self.settings.get(bundle, {})
        return Stage(
            name=name,
            needs=tuple(needs),
            bundle=str(self.bundles_dir / bundle),
            run_id=RUN_IDS[config],
            config_files=tuple(files),
            overrides={**known_settings(base, given), **overrides},
            inputs=inputs,
        )
