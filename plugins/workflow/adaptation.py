"""The stages of unsupervised domain adaptation, from the data set to the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.workflow.audit import AUDITED
from plugins.workflow.checks import check_plan
from plugins.workflow.functions import UNTRANSLATED
from plugins.workflow.gate import ACCEPTED, GATE, SCORE
from plugins.workflow.making import bundle_stage, call_stage, dataset_stage
from plugins.workflow.plan import (
    EVALUATE,
    EVALUATION,
    INFERENCE,
    LABELLED_TARGET,
    LOCATOR,
    METRICS,
    MODELS,
    REDRAWN,
    REVERSE_CONFIG,
    SEGMENTATION,
    TANQ,
    TRAIN,
    TRANSLATION,
    TRUE_SOURCE,
    Plan,
)
from plugins.workflow.stage import Stage

TARGET_TRUTH, REGIONS, REVERSE = "target_truth", "regions", "reverse"
"""Stages: true label maps for the audits; regions for TANQ; what looks at real hrT2 as source scans."""
TARGET_SHARE = 0.5
"""Of the slices that TANQ is trained on with pseudo-labels, those with a target; unless a config names a share."""


@dataclass(frozen=True)
class Adaptation(Plan):
    """The stages of a plan."""

    def stages(self) -> list[Stage]:
        """All stages.

        Raises:
            InputError: for a view, an overlay, a bundle or a setting that does not exist, with the nearest name.
        """
        check_plan(self)
        stages = [dataset_stage(self.scans), *self._windows(), *self._redrawn()]
        for view in self.translators:
            stages += self._translation(view)
        stages += self._reverse()
        stages += [*self._bounds(), *self._view_weights(0)]
        for number in range(self.rounds + 1):
            stages += self._round(number)
        audits = self._audits()
        return [*stages, *audits, self._report([stage.name for stage in stages], [stage.name for stage in audits])]

    def _view_weights(self, number: int) -> list[Stage]:
        if not self.weigh_views:
            return []
        folders, name = self.folders(number), self.weighing_stage(number)
        views = {view: f"{{run}}/{folder}" for view, folder in folders.items()}
        needs = (self.data, *folders.values())
        return [call_stage(name, needs, "views.weigh_views", **self.lists("source"), views=views)]

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
        lists = {name: f"{{run}}/dataset/{name}.json" for name in self.scans}
        cut: dict[str, Any] = {**lists, "locator_dir": f"{{run}}/locator/{MODELS}", "seed": self.seed}
        return [
            bundle_stage(self, "locator", SEGMENTATION, LOCATOR, ["dataset"], training),
            call_stage("windows", ("dataset", "locator"), "windows.write_windows", **cut),
        ]

    def _redrawn(self) -> list[Stage]:
        """The source as a view in the contrast of hrT2, and what the translators are trained on in place of ceT1."""
        stages = []
        if REDRAWN in self.views:
            arguments = self.lists("source", "target")
            stages.append(call_stage(REDRAWN, [self.data], "redrawing.write_redrawn", **arguments, seed=self.seed))
        if self.translate == REDRAWN and self.translators:
            name, function = "redrawn_dataset", "windows.write_redrawn_dataset"
            stages.append(call_stage(name, [self.data], function, dataset_dir=self._folder(self.data), seed=self.seed))
        return stages

    @property
    def _translated_data(self) -> str:
        """The stage whose data set the translators are trained on."""
        return "redrawn_dataset" if self.translate == REDRAWN else self.data

    def _folder(self, data: str) -> str:
        """The data set that a stage has made; that of the user where it has only listed the scans."""
        return str(self.dataset_dir) if data == "dataset" else f"{{run}}/{data}"

    def _translation(self, view: str, number: int = 0) -> list[Stage]:
        """A translator's training, which goes on from the last one in later rounds, and what it makes of the source."""
        bundle, prefix = f"{view}{TRANSLATION}", self.prefix(view, number)
        training, translation = f"{prefix}{view}_training", f"{prefix}{bundle}"
        data = self._translated_data
        needs = [data]
        trained = {"dataset_dir": self._folder(data), "ckpt_dir": f"{{stage}}/{MODELS}", "output_dir": "{stage}"}
        if number > 0:
            needs += [f"round_{number}/{REGIONS}", f"{self.prefix(view, number - 1)}{view}_training"]
            trained |= self._interacting(bundle, *needs[1:])
        translated = {
            "datalist": f"{{run}}/{data}/source.json",
            "ckpt_dir": f"{{run}}/{training}/{MODELS}",
            "output_dir": "{stage}",
        }
        stages = [
            bundle_stage(self, training, bundle, TRAIN, needs, trained),
            bundle_stage(self, translation, bundle, INFERENCE, [data, training], translated),
        ]
        if self.calibrated:
            arguments = {**self.lists("source", "target"), "translations_dir": f"{{run}}/{translation}"}
            function = "redrawing.write_calibrated"
            stages.append(call_stage(f"{prefix}{view}_calibrated", (self.data, translation), function, **arguments))
        return stages

    def _reverse(self) -> list[Stage]:
        """Label maps of the real scans by a segmentation of source scans, which sees them as such."""
        if self.reverse_view is None:
            return []
        view, data = self.reverse_view, self._translated_data
        training, bundle = f"{view}_training", f"{view}{TRANSLATION}"
        names = ("translation", "target_list", "datalist", "segmentation", "target")
        translation, target_list, datalist, segmentation, target = (f"{REVERSE}/{name}" for name in names)

        translated = {
            "datalist": f"{{run}}/{data}/target.json",
            "ckpt_dir": f"{{run}}/{training}/{MODELS}",
            "output_dir": "{stage}",
        }
        listed = {"scans": f"{{run}}/{data}/target.json", "folder": f"{{run}}/{translation}", "run_dir": "{run}"}
        source = {"source": f"{{run}}/{data}/source.json", "views": {UNTRANSLATED: None}, "run_dir": "{run}"}
        trained = {
            "datalist": f"{{run}}/{datalist}/datalist.json",
            "model_dir": f"{{stage}}/{MODELS}",
            "output_dir": "{stage}",
        }
        labelled: dict[str, Any] = {
            "datalist": f"{{run}}/{target_list}/datalist.json",
            "model_dir": f"{{run}}/{segmentation}/{MODELS}",
            "output_dir": "{stage}",
        }
        if self.window is not None:
            labelled["locate"] = False
        return [
            *([] if view in self.views else self._translation(view)[:1]),
            bundle_stage(self, translation, bundle, INFERENCE, [data, training], translated, also=(REVERSE_CONFIG,)),
            call_stage(target_list, [data, translation], "functions.write_view_list", **listed),
            call_stage(datalist, [data], "functions.write_training_list", **source),
            bundle_stage(self, segmentation, SEGMENTATION, TRAIN, [datalist], trained),
            bundle_stage(self, target, SEGMENTATION, INFERENCE, [target_list, segmentation], labelled),
        ]

    def _interacting(self, bundle: str, regions: str, before: str) -> dict[str, Any]:
        """Settings of a training that goes on with pseudo-labels: regions of real scans, and slices with targets."""
        config = self.config(bundle)
        epochs = [each for each in (self.max_epochs, config.get("max_epochs")) if isinstance(each, int)]
        checkpoint, handlers = f"{{run}}/{before}/{MODELS}/resume.pt", "+train::handlers"
        begin = {"_target_": "plugins.engines.BeginFrom", "path": checkpoint, "objects": "@resumed"}
        given: dict[str, Any] = {
            "max_epochs": min([self.interaction_epochs, *epochs]),
            "train::dataset::data::label_dir": f"{{run}}/{regions}",
            handlers: [*self.settings.get(bundle, {}).get(handlers, ()), begin],
        }
        if config.get("foreground_probability") is None:
            given["foreground_probability"] = TARGET_SHARE
        if config.get("max_minutes") is not None:
            given["max_minutes"] = None
        return given

    def _interaction(self, number: int) -> list[Stage]:
        """TANQ trained on with a round's pseudo-labels, and its new images."""
        if number == 0 or self.translated_in(number) != number:
            return []
        labels = f"round_{number}/pseudo_labels"
        folder = {"pseudo_labels": f"{{run}}/{labels}"}
        stages = [call_stage(f"round_{number}/{REGIONS}", (labels,), "gate.write_regions", **folder)]
        for view in self.translators:
            if view.startswith(TANQ):
                stages += self._translation(view, number)
        return [*stages, *self._view_weights(number)]

    def _bounds(self) -> list[Stage]:
        """True scans of the source and true labels of the target, as the windows show them."""
        wanted = {TRUE_SOURCE: (self.source_truth, ".nii.gz"), LABELLED_TARGET: (self.target_truth, "_Label.nii.gz")}
        return [
            call_stage(view, ("dataset", self.data), "windows.crop_to_windows", files.values(),
                  files=dict(files), ending=ending, windows_dir=self.windows_dir)
            for view, (files, ending) in wanted.items()
            if view in self.views
        ]  # fmt: skip

    def _round(self, number: int) -> list[Stage]:
        name = f"round_{number}"
        stages = []
        if number > 0 and self.gate is not None:
            stages.append(self._gate(number, self.gate))
        elif number > 0:
            stages.append(self._labels(f"{name}/pseudo_labels", "target", number - 1))
        stages += [
            *self._interaction(number),
            self._training_list(number),
            self._segmentation(number),
            self._labels(f"{name}/validation", "validation", number),
        ]
        if self.gate is not None and self.rounds > 0:
            stages += self._score(number)
        if self.truth:
            stages.append(self._evaluation(name))
        return stages

    def _member_stages(self, number: int) -> dict[int, str]:
        return {fold: f"round_{number}/target_fold_{fold}" for fold in self.folds}

    def _score(self, number: int) -> list[Stage]:
        """Label maps of the target scans by a round's model and by each of its folds, and what they say of it."""
        name, members = f"round_{number}", self._member_stages(number)
        stages = [self._labels(f"{name}/target", "target", number, {"save_probabilities": True})]
        stages += [self._labels(stage, "target", number, {"folds": [fold]}) for fold, stage in members.items()]
        needs, score = (self.data, f"{name}/target", *members.values()), f"{name}/score"
        stages.append(call_stage(score, needs, "gate.score_model", **self._judged(number)))
        if number > 0:
            last = f"round_{number - 1}"
            before, file = (f"{last}/score", SCORE) if number == 1 else (f"{last}/acceptance", ACCEPTED)
            files = {"before": f"{{run}}/{before}/{file}", "after": f"{{run}}/{score}/{SCORE}"}
            models = {"before_model": last, "after_model": name}
            stages.append(call_stage(f"{name}/acceptance", (before, score), "gate.accept_round", **files, **models))
        return stages

    def _judged(self, number: int) -> dict[str, Any]:
        return {
            **self.lists("target"),
            "ensemble_dir": f"{{run}}/round_{number}/target",
            "member_dirs": [f"{{run}}/{stage}" for stage in self._member_stages(number).values()],
            "statistics": f"{{run}}/{self.data}/source.json",
        }

    def _gate(self, number: int, thresholds: Mapping[str, Any]) -> Stage:
        """Pseudo-labels by the model that has been accepted so far."""
        needs = [self.data]
        for before in range(number):
            needs += [f"round_{before}/target", *self._member_stages(before).values()]
        accepted = None
        if number > 1:
            needs.append(f"round_{number - 1}/acceptance")
            accepted = f"{{run}}/{needs[-1]}/{ACCEPTED}"
        models = {f"round_{before}": self._judged(before) for before in range(number)}
        if self.reverse_view is not None:
            needs.append(f"{REVERSE}/target")
            for model in models.values():
                model["member_dirs"].append(f"{{run}}/{REVERSE}/target")
        arguments: dict[str, Any] = {"models": models, "accepted": accepted, "thresholds": dict(thresholds)}
        return call_stage(f"round_{number}/pseudo_labels", needs, "gate.gate_accepted", **arguments)

    def _audits(self) -> list[Stage]:
        """What the truth says of each round's pseudo-labels; of the other stages only the report reads these."""
        if self.gate is None or self.rounds == 0 or not self.all_have(self.target_truth, "target"):
            return []
        files = dict(self.target_truth)
        arguments: dict[str, Any] = {"files": files, "windows_dir": self.windows_dir, **self.lists("target")}
        stages = [call_stage(TARGET_TRUTH, ("dataset", self.data), "audit.write_truth", files.values(), **arguments)]
        for number in range(1, self.rounds + 1):
            labels = f"round_{number}/pseudo_labels"
            needs = (TARGET_TRUTH, labels, *(f"round_{before}/target" for before in range(number)))
            folders = {"pseudo_labels": f"{{run}}/{labels}", "truth_dir": f"{{run}}/{TARGET_TRUTH}"}
            stages.append(call_stage(f"round_{number}/{AUDITED}", needs, "audit.audit_pseudo_labels", **folders))
        return stages

    def _training_list(self, number: int) -> Stage:
        folders = self.folders(number)
        views = {view: f"{{run}}/{folders[view]}" if view in folders else None for view in self.views}
        needs = [self.data, *folders.values()]
        arguments: dict[str, Any] = {**self.lists("source"), "views": views, "run_dir": "{run}"}
        if self.weigh_views:
            needs.append(self.weighing_stage(number))
            arguments["weights"] = f"{{run}}/{needs[-1]}/views.json"
        if self.last_round_on_target and number == self.rounds:
            needs = [self.data]
            arguments = {**self.lists("source"), "views": {}, "run_dir": "{run}"}
        if LABELLED_TARGET in self.views:
            needs.append(LABELLED_TARGET)
            arguments |= {**self.lists("target"), "pseudo_labels": f"{{run}}/{LABELLED_TARGET}", "views": {}}
        if number > 0:
            labels = f"round_{number}/pseudo_labels"
            needs.append(labels)
            arguments |= {**self.lists("target"), "pseudo_labels": f"{{run}}/{labels}"}
            if self.gate is not None:
                arguments["gate"] = f"{{run}}/{labels}/{GATE}"
        return call_stage(f"round_{number}/datalist", needs, "functions.write_training_list", **arguments)

    def _segmentation(self, number: int) -> Stage:
        name, last = f"round_{number}", f"round_{number - 1}/segmentation"
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
                needs.append(last)
                overrides["init_weights"] = f"{{run}}/{last}/{MODELS}"
        return bundle_stage(self, f"{name}/segmentation", SEGMENTATION, TRAIN, needs, overrides)

    def _labels(self, name: str, scans: str, number: int, settings: Mapping[str, Any] | None = None) -> Stage:
        """Label maps by the model of a round: of whole validation scans, or of the target scans in their windows."""
        training = f"round_{number}/segmentation"
        data = self.data if scans == "target" else "dataset"
        overrides: dict[str, Any] = {
            "datalist": f"{{run}}/{data}/{scans}.json",
            "model_dir": f"{{run}}/{training}/{MODELS}",
            "output_dir": "{stage}",
            **(settings or {}),
        }
        if scans == "target" and self.window is not None:
            overrides["locate"] = False
        return bundle_stage(self, name, SEGMENTATION, INFERENCE, [data, training], overrides)

    def _evaluation(self, name: str) -> Stage:
        files = tuple(self.truth.values())
        label_dir = str(Path(files[0]).parent)
        overrides = {"pred_dir": f"{{run}}/{name}/validation", "label_dir": label_dir, "output_dir": "{stage}"}
        return bundle_stage(
            self, f"{name}/{EVALUATION}", SEGMENTATION, EVALUATE, [f"{name}/validation"], overrides, files
        )

    def _report(self, stages: Sequence[str], audits: Sequence[str]) -> Stage:
        rounds, folders = [f"round_{number}" for number in range(self.rounds + 1)], self.folders(self.rounds)
        decided = rounds[1:] if self.gate is not None else []
        arguments = {
            "validation": "{run}/dataset/validation.json",
            "pred_dirs": {name: f"{{run}}/{name}/validation" for name in rounds},
            "metrics_files": {name: f"{{run}}/{name}/{EVALUATION}/{METRICS}" for name in rounds} if self.truth else {},
            "truth": dict(self.truth),
            **self.lists("source", "target"),
            "run_dir": "{run}",
            "translations": {view: f"{{run}}/{folder}" for view, folder in folders.items()},
            "accepted_files": {name: f"{{run}}/{name}/acceptance/{ACCEPTED}" for name in decided},
            "stages": [*stages, *audits],
        }
        last = EVALUATION if self.truth else "validation"
        needs = [f"{name}/{stage}" for name in rounds for stage in ("validation", last)]
        needs += ["dataset", self.data, *folders.values(), *(f"{name}/acceptance" for name in decided), *audits]
        return call_stage("report", needs, "functions.write_run_report", **arguments)
