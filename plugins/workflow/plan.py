"""The stages of unsupervised domain adaptation, from the data set to the report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from plugins.errors import InputError
from plugins.options import fitting, merged, refuse_unknown, refuse_unknown_ids
from plugins.workflow.functions import UNTRANSLATED
from plugins.workflow.stage import Stage

SEGMENTATION = "vs_cochlea_seg"
TRAIN, INFERENCE, EVALUATE = "train.json", "inference.json", "evaluate.json"
FUNCTIONS = "plugins.workflow.functions"
RUN_IDS = {TRAIN: "training", INFERENCE: "inference", EVALUATE: "evaluate"}
MODELS, METRICS, EVALUATION = "models", "metrics.json", "evaluation"


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
    raise InputError(f"there is no bundle {SEGMENTATION} around {places[0]}: set bundle_root or bundles_dir.")


@dataclass(frozen=True)
class Plan:
    """What is to be done, and the stages that do it.

    Args:
        bundles_dir: folder of the bundles.
        dataset_dir: folder of the data set.
        scans: its source, target and validation scans.
        truth: validation case to reference label map; may be empty.
        views: names of the translators, ``<view>_translation`` being the bundle; ``ceT1`` is no translation.
        rounds: how often pseudo-labels of real hrT2 are made and trained on.
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

    def stages(self) -> list[Stage]:
        """All stages.

        Raises:
            InputError: for a view, an overlay, a bundle or a setting that does not exist, with the nearest name.
        """
        self._check()
        stages = [self._dataset()]
        for view in self._translators:
            stages += self._translation(view)
        for number in range(self.rounds + 1):
            stages += self._round(number)
        return [*stages, self._report()]

    @property
    def _translators(self) -> list[str]:
        return [view for view in self.views if view != UNTRANSLATED]

    def _check(self) -> None:
        found = [path.parent.parent for path in sorted(self.bundles_dir.glob(f"*/configs/{TRAIN}"))]
        translators = [path.name.removesuffix("_translation") for path in found if path.name.endswith("_translation")]
        refuse_unknown(self.views, [*translators, UNTRANSLATED], "views")
        if not self.views or len(set(self.views)) != len(self.views):
            raise InputError(f"views is {list(self.views)}: name at least one view, and each once.")
        refuse_unknown(self.settings, [path.name for path in found], "settings")
        refuse_unknown(
            self.overlays, {p.name for root in found for p in root.glob("configs/*.json")}, f"{self.bundles_dir}"
        )
        for bundle, settings in self.settings.items():
            folder = self.bundles_dir / bundle / "configs"
            known = merged([folder / TRAIN])
            for other in (INFERENCE, EVALUATE):
                if (folder / other).is_file():
                    known = {**merged([folder / other]), **known}
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

    def _translation(self, view: str) -> list[Stage]:
        bundle, training = f"{view}_translation", f"{view}_training"
        folders = {"dataset_dir": str(self.dataset_dir), "ckpt_dir": f"{{stage}}/{MODELS}", "output_dir": "{stage}"}
        inference = {"datalist": "{run}/dataset/source.json", "ckpt_dir": f"{{run}}/{training}/{MODELS}"}
        return [
            self._bundle(training, bundle, TRAIN, ["dataset"], folders),
            self._bundle(bundle, bundle, INFERENCE, ["dataset", training], {**inference, "output_dir": "{stage}"}),
        ]

    def _round(self, number: int) -> list[Stage]:
        name = f"round_{number}"
        stages = [self._training_list(number), self._segmentation(number), self._labels(number, "validation", number)]
        if number > 0:
            stages.insert(0, self._labels(number, "pseudo_labels", number - 1))
        if self.truth:
            stages.append(self._evaluation(name))
        return stages

    def _training_list(self, number: int) -> Stage:
        name = f"round_{number}"
        views = {view: None if view == UNTRANSLATED else f"{{run}}/{view}_translation" for view in self.views}
        needs = ["dataset", *(f"{view}_translation" for view in self._translators)]
        arguments = {"source": "{run}/dataset/source.json", "views": views, "output_dir": "{stage}", "run_dir": "{run}"}
        if number > 0:
            needs.append(f"{name}/pseudo_labels")
            arguments |= {"target": "{run}/dataset/target.json", "pseudo_labels": f"{{run}}/{name}/pseudo_labels"}
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
        if number > 0:
            needs.append("round_0/segmentation")
            overrides["plans_from"] = f"{{run}}/round_0/segmentation/{MODELS}"
        return self._bundle(f"{name}/segmentation", SEGMENTATION, TRAIN, needs, overrides)

    def _labels(self, number: int, kind: str, model: int) -> Stage:
        """Label maps by the model of a round: of the validation scans, or the pseudo-labels of the target scans."""
        training = f"round_{model}/segmentation"
        scans = "target" if kind == "pseudo_labels" else "validation"
        overrides = {
            "datalist": f"{{run}}/dataset/{scans}.json",
            "model_dir": f"{{run}}/{training}/{MODELS}",
            "output_dir": "{stage}",
        }
        return self._bundle(f"round_{number}/{kind}", SEGMENTATION, INFERENCE, ["dataset", training], overrides)

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
            "source": "{run}/dataset/source.json",
            "translations": {view: f"{{run}}/{view}_translation" for view in self._translators},
        }
        last = EVALUATION if self.truth else "validation"
        needs = [f"{name}/{kind}" for name in rounds for kind in ("validation", last)]
        needs += ["dataset", *(f"{view}_translation" for view in self._translators)]
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
        overlays = [overlay for overlay in self.overlays if (folder / overlay).is_file()]
        files = [config, *overlays] if config == TRAIN else [config]
        base = merged([folder / file for file in files])
        given: dict[str, Any] = dict(self.common)
        if config == TRAIN and self.max_epochs is not None:
            given["max_epochs"] = self.max_epochs
        if config != TRAIN:
            for overlay in overlays:
                given |= ConfigParser.load_config_file(folder / overlay)
        given |= self.settings.get(bundle, {})
        return Stage(
            name=name,
            needs=tuple(needs),
            bundle=str(self.bundles_dir / bundle),
            run_id=RUN_IDS[config],
            config_files=tuple(files),
            overrides={**fitting(base, given), **overrides},
            inputs=inputs,
        )
