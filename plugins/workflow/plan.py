"""What an adaptation is asked to do: its scans and settings, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.config.command import read_configs
from plugins.errors import InputError
from plugins.state import StrPath
from plugins.workflow.functions import UNTRANSLATED

SEGMENTATION, TRANSLATION = "vs_cochlea_seg", "_translation"
"""The bundle that segments, and the end of the names of those that translate."""
TRAIN, INFERENCE, EVALUATE = "train.json", "inference.json", "evaluate.json"
LOCATOR = "locator.json"
RUN_IDS = {TRAIN: "training", INFERENCE: "inference", EVALUATE: "evaluate", LOCATOR: "training"}
MODELS, METRICS, EVALUATION = "models", "metrics.json", "evaluation"
REDRAWN, TRUE_SOURCE, LABELLED_TARGET = "redrawn", "true_hrT2", "labelled_hrT2"
REVERSE_CONFIG = "reverse.json"
"""The config of a translator that has a generator to show real hrT2 as source scans."""
TANQ = "tanq"
"""Views whose names begin so have an identity branch with regions."""
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
class Plan:
    """What is to be done with which scans.

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

    @property
    def translators(self) -> list[str]:
        """The views that a network makes."""
        return [view for view in self.views if view not in MADE_HERE]

    @property
    def data(self) -> str:
        """The stage whose lists of scans everything but the last segmentation works on."""
        return "dataset" if self.window is None else "windows"

    def translated_in(self, number: int) -> int:
        """The round, up to this one, in which TANQ was last trained on and translated anew; 0 is before all rounds."""
        if not self.interaction:
            return 0
        return min(number, self.rounds - 1) if self.last_round_on_target else number

    def prefix(self, view: str, number: int) -> str:
        """Of the stages of the translator that makes a view for a round."""
        number = self.translated_in(number) if view.startswith(TANQ) else 0
        return f"round_{number}/" if number else ""

    def folders(self, number: int) -> dict[str, str]:
        """The stage that makes each view's images for a round; views without one take images that are there."""
        ending = "calibrated" if self.calibrated else "translation"
        made = {view: f"{self.prefix(view, number)}{view}_{ending}" for view in self.translators}
        made |= {REDRAWN: REDRAWN, TRUE_SOURCE: TRUE_SOURCE}
        return {view: made[view] for view in self.views if view in made}

    def weighing_stage(self, number: int) -> str:
        """The stage that weighs the views of a round."""
        number = self.translated_in(number)
        return f"round_{number}/view_weights" if number else "view_weights"

    def all_have(self, truth: Mapping[str, str], scans: str) -> bool:
        """Whether each of the source, target or validation scans has a true one among these."""
        return truth.keys() >= {scan["case"] for scan in self.scans[scans]}

    def config(self, bundle: str) -> dict[str, Any]:
        """The config of a bundle's training, with overlays and settings."""
        folder = self.bundles_dir / bundle / "configs"
        overlays = [folder / name for name in self.overlays if (folder / name).is_file()]
        return {**read_configs([folder / TRAIN, *overlays]), **self.settings.get(bundle, {})}

    @property
    def folds(self) -> list[int]:
        """The folds that a segmentation has a network of."""
        config = self.config(SEGMENTATION)
        folds = config.get("folds")
        return [folds] if isinstance(folds, int) else list(range(config["num_folds"]) if folds is None else folds)

    @property
    def seed(self) -> int:
        """That of every stage that draws."""
        return int(self.common.get("seed") or 0)

    def lists(self, *names: str) -> dict[str, str]:
        """The lists of source, target or validation scans that stages work on."""
        return {name: f"{{run}}/{self.data}/{name}.json" for name in names}

    @property
    def windows_dir(self) -> str | None:
        """The stage with the windows of all scans; ``None`` takes whole scans."""
        return None if self.window is None else "{run}/windows"

    def reverse_config(self, view: str) -> Path:
        """Of a translator; only one that can show real hrT2 as source scans has the file."""
        return self.bundles_dir / f"{view}{TRANSLATION}" / "configs" / REVERSE_CONFIG
