"""What no stage could follow is refused before the first one begins."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plugins.config.command import COMPLETE, read_configs
from plugins.config.names import refuse_unknown, refuse_unknown_ids
from plugins.errors import InputError
from plugins.workflow.functions import UNTRANSLATED
from plugins.workflow.gate import Thresholds
from plugins.workflow.plan import (
    EVALUATE,
    INFERENCE,
    LABELLED_TARGET,
    MADE_HERE,
    REDRAWN,
    REVERSE_CONFIG,
    SEGMENTATION,
    TANQ,
    TRAIN,
    TRANSLATION,
    TRUE_SOURCE,
    Plan,
)

GIVEN = frozenset(
    ("bundle_root", "dataset_dir", "datalist", "output_dir", "ckpt_dir", "cache_dir", "model_dir", "locator_dir",
     "plans_from", "init_weights", "pred_dir", "label_dir")
)  # fmt: skip
"""Settings of a stage that say where things lie."""


def check_plan(plan: Plan) -> None:
    """Refuse what no stage could follow.

    Raises:
        InputError: naming the setting, what is wrong with it, and what to do.
    """
    bundles = [path.parent.parent for path in sorted(plan.bundles_dir.glob(f"*/configs/{TRAIN}"))]
    translators = [path.name.removesuffix(TRANSLATION) for path in bundles if path.name.endswith(TRANSLATION)]
    _check_views(plan, translators)
    _check_overlays(plan, bundles)
    _check_settings(plan, [path.name for path in bundles])
    _check_rounds(plan)
    if plan.gate is not None:
        Thresholds.of(plan.gate)
    _check_reverse_view(plan, translators)
    _check_folds(plan)


def _check_views(plan: Plan, translators: Sequence[str]) -> None:
    refuse_unknown(plan.views, [*translators, *MADE_HERE], "views")
    refuse_unknown([plan.translate], [UNTRANSLATED, REDRAWN], "translate")
    bounds = ((TRUE_SOURCE, "source", plan.source_truth), (LABELLED_TARGET, "target", plan.target_truth))
    for view, scans, truth in bounds:
        if view in plan.views and not plan.all_have(truth, scans):
            raise InputError(f"views names {view!r}, but the data set has no truth for it. Choose other views.")
    if LABELLED_TARGET in plan.views and len(plan.views) > 1:
        raise InputError(f"views names {LABELLED_TARGET!r} beside others, but it is a bound. Give it alone.")
    if plan.calibrated and not plan.translators:
        raise InputError(f"calibrated is true, but views is {list(plan.views)}. Name a translator among them.")
    if not plan.views or len(set(plan.views)) != len(plan.views):
        raise InputError(f"views is {list(plan.views)}. Name at least one view, and each once.")


def _check_overlays(plan: Plan, bundles: Sequence[Path]) -> None:
    known = {path.name for root in bundles for path in root.glob("configs/*.json")}
    refuse_unknown(plan.overlays, known - {*COMPLETE, REVERSE_CONFIG, "metadata.json"}, f"{plan.bundles_dir}")


def _check_settings(plan: Plan, bundles: Sequence[str]) -> None:
    refuse_unknown(plan.settings, bundles, "settings")
    for bundle, settings in plan.settings.items():
        files = [plan.bundles_dir / bundle / "configs" / name for name in (EVALUATE, INFERENCE, TRAIN)]
        known = {name: value for file in files if file.is_file() for name, value in read_configs([file]).items()}
        refuse_unknown_ids(known, settings, f"settings of {bundle}")
        for name, value in settings.items():
            if name.lstrip("+") in GIVEN:
                raise InputError(f"settings::{bundle}::{name} is given by the driver itself. Remove it.")
            if not _is_plain(value):
                fault = f"settings::{bundle}::{name} holds an object that is built already"
                raise InputError(f"{fault}. Put it into a config file of {bundle}, and name that in overlays.")


def _check_rounds(plan: Plan) -> None:
    if plan.last_round_on_target and plan.rounds == 0:
        raise InputError("last_round_on_target is true, but rounds is 0. Set rounds to 1 or more.")
    if LABELLED_TARGET in plan.views and plan.rounds > 0:
        fault = f"views names {LABELLED_TARGET!r}, a bound without self-training, but rounds is {plan.rounds}"
        raise InputError(f"{fault}. Set rounds to 0.")
    if not plan.interaction:
        return
    trained_on = [view for view in plan.translators if view.startswith(TANQ)]
    if not trained_on:
        raise InputError(f"interaction is true, but views is {list(plan.views)}. Name {TANQ!r} among them.")
    if plan.translated_in(plan.rounds) == 0:
        least = 2 if plan.last_round_on_target else 1
        raise InputError(f"interaction is true, but rounds is {plan.rounds}. Set rounds to {least} or more.")
    for view in trained_on:
        _refuse_without_checkpoint(plan, view, "interaction")


def _check_reverse_view(plan: Plan, translators: Sequence[str]) -> None:
    if plan.reverse_view is None:
        return
    able = [name for name in translators if plan.reverse_config(name).is_file()]
    refuse_unknown([plan.reverse_view], able, "reverse_view")
    if plan.gate is None or plan.rounds == 0:
        raise InputError("reverse_view is for gated pseudo-labels. Set gate, and rounds to 1 or more.")
    _refuse_without_checkpoint(plan, plan.reverse_view, "reverse_view")


def _check_folds(plan: Plan) -> None:
    """Every segmentation of the run has to have a patient for each fold."""
    trained_on = {"target" if LABELLED_TARGET in plan.views else "source"}
    patients, folds = min(len(plan.scans[name]) for name in trained_on), plan.config(SEGMENTATION)["num_folds"]
    if isinstance(folds, int) and folds > patients:
        raise InputError(f"num_folds is {folds}, but there are {patients} patients. Give at most {patients}.")
    if plan.last_round_on_target and isinstance(folds, int):
        scans = len(plan.scans["target"])
        kept = scans if plan.gate is None else max(1, math.ceil(Thresholds.of(plan.gate).keep_share * scans))
        if folds > kept:
            why = f"num_folds is {folds}, but the last round may have {kept} of {scans} target scans only"
            cure = f"Set keep_share of the gate to {math.ceil(100 * folds / scans) / 100:g} or more"
            raise InputError(f"{why}. {cure if folds <= scans else f'Give at most {scans} folds'}.")


def _refuse_without_checkpoint(plan: Plan, view: str, why: str) -> None:
    if plan.config(f"{view}{TRANSLATION}").get("resume") is False:
        raise InputError(f"settings::{view}{TRANSLATION}::resume is false. With {why} it must be true.")


def _is_plain(value: Any) -> bool:
    """Whether a value can be handed to another process as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
