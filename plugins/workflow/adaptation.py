"""The stages of unsupervised domain adaptation, from the data set to the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from plugins.config.command import COMPLETE, read_configs
from plugins.config.names import as_id, is_computed, known_settings, refuse_unknown, refuse_unknown_ids
from plugins.errors import InputError
from plugins.state import StrPath
from plugins.workflow.audit import AUDITED
from plugins.workflow.functions import UNTRANSLATED
from plugins.workflow.gate import ACCEPTED, GATE, SCORE
from plugins.workflow.stage import Stage

SEGMENTATION = "vs_cochlea_seg"
TRAIN, INFERENCE, EVALUATE = "train.json", "inference.json", "evaluate.json"
RUN_IDS = {TRAIN: "training", INFERENCE: "inference", EVALUATE: "evaluate", "locator.json": "training"}
MODELS, METRICS, EVALUATION = "models", "metrics.json", "evaluation"
LOCATOR = "locator.json"
REDRAWN, TRUE_SOURCE, LABELLED_TARGET = "redrawn", "true_hrT2", "labelled_hrT2"
TARGET_TRUTH, REGIONS = "target_truth", "regions"
REVERSE, REVERSE_CONFIG = "reverse", "reverse.json"
"""The stages that look at real hrT2 as source scans, and the config of a translator that has a generator for that."""
TANQ = "tanq"
"""Views whose names begin so have an identity branch with regions."""
TARGET_SHARE = 0.5
"""Of the slices that TANQ is trained on with pseudo-labels, those with a target; unless a config names a share."""
GIVEN = frozenset(
    ("bundle_root", "dataset_dir", "datalist", "output_dir", "ckpt_dir", "cache_dir", "model_dir", "locator_dir",
     "plans_from", "init_weights", "pred_dir", "label_dir")
)  # fmt: skip
"""Settings of a stage that say where things lie."""
MADE_HERE = (UNTRANSLATED, REDRAWN, TRUE_SOURCE, LABELLED_TARGET)


def find_bundles(bundle_root: Path, bundles_dir: StrPath | None) -> Path:
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
class Adaptation:
    """What is to be done with which scans, and the stages that do it.

    Args:
        bundles_dir: folder of the bundles.
        dataset_dir: folder of the data set.
        scans: its source, target and validation scans.
        truth: validation case to reference label map; may be empty.
        source_truth: source case to its true hrT2, for the view ``true_hrT2``.
        target_truth: target case to its true label map, for the view ``labelled_hrT2`` and the audits.
        common: config ids to values for all bundles.
        views: this and the others as in :class:`plugins.workflow.UdaWorkflow`.
    """

    bundles_dir: Path
    dataset_dir: Path
    scans: Mapping[str, Sequence[Mapping[str, str]]]
    truth: Mapping[str, str]
    source_truth: Mapping[str, str]
    target_truth: Mapping[str, str]
    common: Mapping[str, Any]
    views: Sequence[str]
    rounds: int
    window: Sequence[float] | None
    translate: str
    calibrated: bool
    weigh_views: bool
    gate: Mapping[str, Any] | None
    continue_rounds: bool
    last_round_on_target: bool
    interaction: bool
    interaction_epochs: int
    reverse_view: str | None
    overlays: Sequence[str]
    settings: Mapping[str, Mapping[str, Any]]
    max_epochs: int | None

    def stages(self) -> list[Stage]:
        """All stages.

        Raises:
            InputError: for a view, an overlay, a bundle or a setting that does not exist, with the nearest name.
        """
        self._check()
        stages = [self._dataset(), *self._windows(), *self._redrawn()]
        for view in self._translators:
            stages += self._translation(view)
        stages += self._reverse()
        stages += [*self._bounds(), *self._view_weights(0)]
        for number in range(self.rounds + 1):
            stages += self._round(number)
        audits = self._audits()
        return [*stages, *audits, self._report([stage.name for stage in audits])]

    @property
    def _translators(self) -> list[str]:
        return [view for view in self.views if view not in MADE_HERE]

    @property
    def _data(self) -> str:
        """The stage whose lists of scans everything but the last segmentation works on."""
        return "dataset" if self.window is None else "windows"

    def _translated_in(self, number: int) -> int:
        """The round, up to this one, in which TANQ was last trained on and translated anew; 0 is before all rounds."""
        if not self.interaction:
            return 0
        return min(number, self.rounds - 1) if self.last_round_on_target else number

    def _prefix(self, view: str, number: int) -> str:
        """Of the stages of the translator that makes a view for a round."""
        number = self._translated_in(number) if view.startswith(TANQ) else 0
        return f"round_{number}/" if number else ""

    def folders(self, number: int) -> dict[str, str]:
        """The stage that makes each view's images for a round; views without one take images that are there."""
        ending = "calibrated" if self.calibrated else "translation"
        made = {view: f"{self._prefix(view, number)}{view}_{ending}" for view in self._translators}
        made |= {REDRAWN: REDRAWN, TRUE_SOURCE: TRUE_SOURCE}
        return {view: made[view] for view in self.views if view in made}

    def _weights(self, number: int) -> str:
        """The stage that weighs the views of a round."""
        number = self._translated_in(number)
        return f"round_{number}/view_weights" if number else "view_weights"

    def _view_weights(self, number: int) -> list[Stage]:
        if not self.weigh_views:
            return []
        folders, name = self.folders(number), self._weights(number)
        views = {view: f"{{run}}/{folder}" for view, folder in folders.items()}
        needs = (self._data, *folders.values())
        return [_call(name, needs, "views.weigh_views", **self._lists("source"), views=views)]

    def _check(self) -> None:
        """Refuse what no stage could follow."""
        found = [path.parent.parent for path in sorted(self.bundles_dir.glob(f"*/configs/{TRAIN}"))]
        translators = [path.name.removesuffix("_translation") for path in found if path.name.endswith("_translation")]
        refuse_unknown(self.views, [*translators, *MADE_HERE], "views")
        refuse_unknown([self.translate], [UNTRANSLATED, REDRAWN], "translate")
        of_target = LABELLED_TARGET in self.views
        bounds = ((TRUE_SOURCE, "source", self.source_truth), (LABELLED_TARGET, "target", self.target_truth))
        for view, scans, truth in bounds:
            if view in self.views and not self._all_have(truth, scans):
                raise InputError(f"views names {view!r}, but the data set has no truth for it. Choose other views.")
        if of_target and len(self.views) > 1:
            raise InputError(f"views names {LABELLED_TARGET!r} beside others, but it is a bound. Give it alone.")
        if not self.views or len(set(self.views)) != len(self.views):
            raise InputError(f"views is {list(self.views)}. Name at least one view, and each once.")
        refuse_unknown(self.settings, [path.name for path in found], "settings")
        overlays = {path.name for root in found for path in root.glob("configs/*.json")}
        overlays -= {*COMPLETE, REVERSE_CONFIG, "metadata.json"}
        refuse_unknown(self.overlays, overlays, f"{self.bundles_dir}")
        for bundle, settings in self.settings.items():
            files = [self.bundles_dir / bundle / "configs" / name for name in (EVALUATE, INFERENCE, TRAIN)]
            known = {name: value for file in files if file.is_file() for name, value in read_configs([file]).items()}
            refuse_unknown_ids(known, settings, f"settings of {bundle}")
            for name, value in settings.items():
                if name.lstrip("+") in GIVEN:
                    raise InputError(f"settings::{bundle}::{name} is given by the driver itself. Remove it.")
                if not _is_plain(value):
                    fault = f"settings::{bundle}::{name} holds an object that is built already"
                    raise InputError(f"{fault}. Put it into a config file of {bundle}, and name that in overlays.")
        if self.last_round_on_target and self.rounds == 0:
            raise InputError("last_round_on_target is true, but rounds is 0. Set rounds to 1 or more.")
        trained_on = ["target" if of_target else "source", *(["target"] if self.last_round_on_target else [])]
        if self.interaction and not any(view.startswith(TANQ) for view in self._translators):
            raise InputError(f"interaction is true, but views is {list(self.views)}. Name {TANQ!r} among them.")
        if self.interaction and self._translated_in(self.rounds) == 0:
            least = 2 if self.last_round_on_target else 1
            raise InputError(f"interaction is true, but rounds is {self.rounds}. Set rounds to {least} or more.")
        for view in self._translators if self.interaction else ():
            if view.startswith(TANQ):
                self._refuse_without_checkpoint(view, "interaction")
        if self.reverse_view is not None:
            able = [name for name in translators if self._reverse_config(name).is_file()]
            refuse_unknown([self.reverse_view], able, "reverse_view")
            if self.gate is None or self.rounds == 0:
                raise InputError("reverse_view is for gated pseudo-labels. Set gate, and rounds to 1 or more.")
            self._refuse_without_checkpoint(self.reverse_view, "reverse_view")
            trained_on.append("source")
        patients, folds = min(len(self.scans[name]) for name in trained_on), self._config(SEGMENTATION)["num_folds"]
        if isinstance(folds, int) and folds > patients:
            raise InputError(f"num_folds is {folds}, but there are {patients} patients. Give at most {patients}.")

    def _refuse_without_checkpoint(self, view: str, why: str) -> None:
        if self._config(f"{view}_translation").get("resume") is False:
            raise InputError(f"settings::{view}_translation::resume is false. With {why} it must be true.")

    def _all_have(self, truth: Mapping[str, str], scans: str) -> bool:
        return truth.keys() >= {scan["case"] for scan in self.scans[scans]}

    def _config(self, bundle: str) -> dict[str, Any]:
        """Of the training of a bundle."""
        folder = self.bundles_dir / bundle / "configs"
        overlays = [folder / name for name in self.overlays if (folder / name).is_file()]
        return {**read_configs([folder / TRAIN, *overlays]), **self.settings.get(bundle, {})}

    @property
    def _folds(self) -> list[int]:
        """The folds that a segmentation has a network of."""
        config = self._config(SEGMENTATION)
        folds = config.get("folds")
        return [folds] if isinstance(folds, int) else list(range(config["num_folds"]) if folds is None else folds)

    @property
    def _seed(self) -> int:
        return int(self.common.get("seed") or 0)

    def _lists(self, *names: str) -> dict[str, str]:
        return {name: f"{{run}}/{self._data}/{name}.json" for name in names}

    def _dataset(self) -> Stage:
        scans = [scan for scans in self.scans.values() for scan in scans]
        inputs = [scan[key] for scan in scans for key in ("image", "label") if key in scan]
        function = "functions.write_dataset_lists"
        return _call("dataset", (), function, inputs, dataset_dir=str(self.dataset_dir))

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
        cut: dict[str, Any] = {**lists, "locator_dir": f"{{run}}/locator/{MODELS}", "seed": self._seed}
        return [
            self._bundle("locator", SEGMENTATION, LOCATOR, ["dataset"], training),
            _call("windows", ("dataset", "locator"), "windows.write_windows", **cut),
        ]

    @property
    def _windows_dir(self) -> str | None:
        return None if self.window is None else "{run}/windows"

    def _redrawn(self) -> list[Stage]:
        """The source as a view in the contrast of hrT2, and what the translators are trained on in place of ceT1."""
        stages = []
        if REDRAWN in self.views:
            arguments = self._lists("source", "target")
            stages.append(_call(REDRAWN, [self._data], "redrawing.write_redrawn", **arguments, seed=self._seed))
        if self.translate == REDRAWN and self._translators:
            name, function = "redrawn_dataset", "windows.write_redrawn_dataset"
            stages.append(_call(name, [self._data], function, dataset_dir=self._folder(self._data), seed=self._seed))
        return stages

    @property
    def _translated_data(self) -> str:
        """The stage whose data set the translators are trained on."""
        return "redrawn_dataset" if self.translate == REDRAWN else self._data

    def _folder(self, data: str) -> str:
        """The data set that a stage has made; that of the user where it has only listed the scans."""
        return str(self.dataset_dir) if data == "dataset" else f"{{run}}/{data}"

    def _translation(self, view: str, number: int = 0) -> list[Stage]:
        """A translator's training, which goes on from the last one in later rounds, and what it makes of the source."""
        bundle, prefix = f"{view}_translation", self._prefix(view, number)
        training, translation = f"{prefix}{view}_training", f"{prefix}{bundle}"
        data = self._translated_data
        needs = [data]
        trained = {"dataset_dir": self._folder(data), "ckpt_dir": f"{{stage}}/{MODELS}", "output_dir": "{stage}"}
        if number > 0:
            needs += [f"round_{number}/{REGIONS}", f"{self._prefix(view, number - 1)}{view}_training"]
            trained |= self._interacting(bundle, *needs[1:])
        inference = {"datalist": f"{{run}}/{data}/source.json", "ckpt_dir": f"{{run}}/{training}/{MODELS}"}
        stages = [
            self._bundle(training, bundle, TRAIN, needs, trained),
            self._bundle(translation, bundle, INFERENCE, [data, training], {**inference, "output_dir": "{stage}"}),
        ]
        if self.calibrated:
            arguments = {**self._lists("source", "target"), "translations_dir": f"{{run}}/{translation}"}
            function = "redrawing.write_calibrated"
            stages.append(_call(f"{prefix}{view}_calibrated", (self._data, translation), function, **arguments))
        return stages

    def _reverse_config(self, view: str) -> Path:
        return self.bundles_dir / f"{view}_translation" / "configs" / REVERSE_CONFIG

    def _reverse(self) -> list[Stage]:
        """Label maps of the real scans by a segmentation of source scans, which sees them as such."""
        if self.reverse_view is None:
            return []
        view, data = self.reverse_view, self._translated_data
        training, bundle = f"{view}_training", f"{view}_translation"
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
            self._bundle(translation, bundle, INFERENCE, [data, training], translated, also=(REVERSE_CONFIG,)),
            _call(target_list, [data, translation], "functions.write_view_list", **listed),
            _call(datalist, [data], "functions.write_training_list", **source),
            self._bundle(segmentation, SEGMENTATION, TRAIN, [datalist], trained),
            self._bundle(target, SEGMENTATION, INFERENCE, [target_list, segmentation], labelled),
        ]

    def _interacting(self, bundle: str, regions: str, before: str) -> dict[str, Any]:
        """Settings of a training that goes on with pseudo-labels: regions of real scans, and slices with targets."""
        config = self._config(bundle)
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
        if number == 0 or self._translated_in(number) != number:
            return []
        labels = f"round_{number}/pseudo_labels"
        folder = {"pseudo_labels": f"{{run}}/{labels}"}
        stages = [_call(f"round_{number}/{REGIONS}", (labels,), "gate.write_regions", **folder)]
        for view in self._translators:
            if view.startswith(TANQ):
                stages += self._translation(view, number)
        return [*stages, *self._view_weights(number)]

    def _bounds(self) -> list[Stage]:
        """True scans of the source and true labels of the target, as the windows show them."""
        wanted = {TRUE_SOURCE: (self.source_truth, ".nii.gz"), LABELLED_TARGET: (self.target_truth, "_Label.nii.gz")}
        return [
            _call(view, ("dataset", self._data), "windows.crop_to_windows", files.values(),
                  files=dict(files), ending=ending, windows_dir=self._windows_dir)
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
        return {fold: f"round_{number}/target_fold_{fold}" for fold in self._folds}

    def _score(self, number: int) -> list[Stage]:
        """Label maps of the target scans by a round's model and by each of its folds, and what they say of it."""
        name, members = f"round_{number}", self._member_stages(number)
        stages = [self._labels(f"{name}/target", "target", number, {"save_probabilities": True})]
        stages += [self._labels(stage, "target", number, {"folds": [fold]}) for fold, stage in members.items()]
        needs, score = (self._data, f"{name}/target", *members.values()), f"{name}/score"
        stages.append(_call(score, needs, "gate.score_model", **self._judged(number)))
        if number > 0:
            last = f"round_{number - 1}"
            before, file = (f"{last}/score", SCORE) if number == 1 else (f"{last}/acceptance", ACCEPTED)
            files = {"before": f"{{run}}/{before}/{file}", "after": f"{{run}}/{score}/{SCORE}"}
            models = {"before_model": last, "after_model": name}
            stages.append(_call(f"{name}/acceptance", (before, score), "gate.accept_round", **files, **models))
        return stages

    def _judged(self, number: int) -> dict[str, Any]:
        return {
            **self._lists("target"),
            "ensemble_dir": f"{{run}}/round_{number}/target",
            "member_dirs": [f"{{run}}/{stage}" for stage in self._member_stages(number).values()],
            "statistics": f"{{run}}/{self._data}/source.json",
        }

    def _gate(self, number: int, thresholds: Mapping[str, Any]) -> Stage:
        """Pseudo-labels by the model that has been accepted so far."""
        needs = [self._data]
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
        return _call(f"round_{number}/pseudo_labels", needs, "gate.gate_accepted", **arguments)

    def _audits(self) -> list[Stage]:
        """What the truth says of each round's pseudo-labels; of the other stages only the report reads these."""
        if self.gate is None or self.rounds == 0 or not self._all_have(self.target_truth, "target"):
            return []
        files = dict(self.target_truth)
        arguments: dict[str, Any] = {"files": files, "windows_dir": self._windows_dir, **self._lists("target")}
        stages = [_call(TARGET_TRUTH, ("dataset", self._data), "audit.write_truth", files.values(), **arguments)]
        for number in range(1, self.rounds + 1):
            labels = f"round_{number}/pseudo_labels"
            needs = (TARGET_TRUTH, labels, *(f"round_{before}/target" for before in range(number)))
            folders = {"pseudo_labels": f"{{run}}/{labels}", "truth_dir": f"{{run}}/{TARGET_TRUTH}"}
            stages.append(_call(f"round_{number}/{AUDITED}", needs, "audit.audit_pseudo_labels", **folders))
        return stages

    def _training_list(self, number: int) -> Stage:
        folders = self.folders(number)
        views = {view: f"{{run}}/{folders[view]}" if view in folders else None for view in self.views}
        needs = [self._data, *folders.values()]
        arguments: dict[str, Any] = {**self._lists("source"), "views": views, "run_dir": "{run}"}
        if self.weigh_views:
            needs.append(self._weights(number))
            arguments["weights"] = f"{{run}}/{needs[-1]}/views.json"
        if self.last_round_on_target and number == self.rounds:
            needs = [self._data]
            arguments = {**self._lists("source"), "views": {}, "run_dir": "{run}"}
        if LABELLED_TARGET in self.views:
            needs.append(LABELLED_TARGET)
            arguments |= {**self._lists("target"), "pseudo_labels": f"{{run}}/{LABELLED_TARGET}", "views": {}}
        if number > 0:
            labels = f"round_{number}/pseudo_labels"
            needs.append(labels)
            arguments |= {**self._lists("target"), "pseudo_labels": f"{{run}}/{labels}"}
            if self.gate is not None:
                arguments["gate"] = f"{{run}}/{labels}/{GATE}"
        return _call(f"round_{number}/datalist", needs, "functions.write_training_list", **arguments)

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
        return self._bundle(f"{name}/segmentation", SEGMENTATION, TRAIN, needs, overrides)

    def _labels(self, name: str, scans: str, number: int, settings: Mapping[str, Any] | None = None) -> Stage:
        """Label maps by the model of a round: of whole validation scans, or of the target scans in their windows."""
        training = f"round_{number}/segmentation"
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
        files = tuple(self.truth.values())
        label_dir = str(Path(files[0]).parent)
        overrides = {"pred_dir": f"{{run}}/{name}/validation", "label_dir": label_dir, "output_dir": "{stage}"}
        return self._bundle(f"{name}/{EVALUATION}", SEGMENTATION, EVALUATE, [f"{name}/validation"], overrides, files)

    def _report(self, audits: Sequence[str]) -> Stage:
        rounds, folders = [f"round_{number}" for number in range(self.rounds + 1)], self.folders(self.rounds)
        decided = rounds[1:] if self.gate is not None else []
        arguments = {
            "validation": "{run}/dataset/validation.json",
            "pred_dirs": {name: f"{{run}}/{name}/validation" for name in rounds},
            "metrics_files": {name: f"{{run}}/{name}/{EVALUATION}/{METRICS}" for name in rounds} if self.truth else {},
            "truth": dict(self.truth),
            **self._lists("source", "target"),
            "run_dir": "{run}",
            "translations": {view: f"{{run}}/{folder}" for view, folder in folders.items()},
            "accepted_files": {name: f"{{run}}/{name}/acceptance/{ACCEPTED}" for name in decided},
        }
        last = EVALUATION if self.truth else "validation"
        needs = [f"{name}/{stage}" for name in rounds for stage in ("validation", last)]
        needs += ["dataset", self._data, *folders.values(), *(f"{name}/acceptance" for name in decided), *audits]
        return _call("report", needs, "functions.write_run_report", **arguments)

    def _bundle(
        self,
        name: str,
        bundle: str,
        config: str,
        needs: Sequence[str],
        overrides: Mapping[str, Any],
        inputs: tuple[str, ...] = (),
        also: tuple[str, ...] = (),
    ) -> Stage:
        """A run of a bundle by a config, and further ones over it.

        Overlays are written for ``train.json``. The other configs take those of an overlay's settings that they have,
        such as the size of a network; so it is with the settings of the run.
        """
        folder = self.bundles_dir / bundle / "configs"
        prefix = "locator_" if config == LOCATOR else ""
        overlays = [prefix + name for name in self.overlays if (folder / (prefix + name)).is_file()]
        files = [config, *also]
        given: dict[str, Any] = {"report": False} if config == INFERENCE else {}
        if config in (TRAIN, LOCATOR):
            files += overlays
        else:
            for overlay in overlays:
                given |= ConfigParser.load_config_file(folder / overlay)
        given |= self.common
        if config == TRAIN and self.max_epochs is not None:
            given["max_epochs"] = self.max_epochs
        if config != LOCATOR:  # settings of the bundle are those of the segmentation
            given |= self.settings.get(bundle, {})
        if isinstance(given.get("device"), str) and not is_computed(given["device"]):
            given["device"] = device_expression(given["device"])
        if REVERSE_CONFIG in also:
            given = _of_reverse_generator(given)
        return Stage(
            name=name,
            needs=tuple(dict.fromkeys(needs)),
            bundle=str(self.bundles_dir / bundle),
            run_id=RUN_IDS[config],
            config_files=tuple(files),
            overrides={**known_settings(read_configs([folder / file for file in files]), given), **overrides},
            inputs=inputs,
        )


def device_expression(name: str) -> str:
    """A torch device as configs hold it."""
    return f"$torch.device({name!r})"


def _of_reverse_generator(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the reverse generator as those of the network; a shared encoder is in its weights already."""
    found = {}
    for name, value in settings.items():
        node, *argument = as_id(name).split("::")
        if node == "generator_ts_def" and argument != ["encoder_of"]:
            found["::".join(["network_def", *argument])] = value
        elif node not in ("network_def", "generator_ts_def"):
            found[name] = value
    return found


def _is_plain(value: Any) -> bool:
    """Whether a value can be handed to another process as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _call(name: str, needs: Iterable[str], function: str, inputs: Iterable[str] = (), **arguments: Any) -> Stage:
    """A call of a function of this package, which writes into the stage's folder."""
    return Stage(
        name=name,
        needs=tuple(dict.fromkeys(needs)),
        function=f"plugins.workflow.{function}",
        overrides={**arguments, "output_dir": "{stage}"},
        inputs=tuple(inputs),
    )
