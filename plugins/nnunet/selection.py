"""nnU-Net's own choice between configurations and their ensembles, and the folder prediction needs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch
from nnunetv2.evaluation.evaluate_predictions import load_summary_json
from nnunetv2.evaluation.find_best_configuration import find_best_configuration
from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing
from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string, get_ensemble_name

from plugins.files import read_json, whole_file, write_json
from plugins.nnunet.checkpoints import FINAL
from plugins.nnunet.planning import FINGERPRINT
from plugins.nnunet.prediction import SELECTION
from plugins.nnunet.processes import pools_on
from plugins.nnunet.training import DONE
from plugins.nnunet.workspace import DATASET, LABELS, PLANS, TRAINER, Workspace


def select(
    workspace: Workspace,
    configurations: Sequence[str],
    folds: Sequence[int],
    executor: Executor,
    members: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Choose by cross-validation, with nnU-Net's own code; must run inside ``workspace.active``.

    Args:
        workspace: with all folds of all configurations trained and validated.
        configurations: that may be chosen, alone or in pairs.
        folds: that were trained.
        executor: does the work.
        members: the configurations to use whatever the cross-validation says; ``None`` lets it choose.

    Returns:
        ``members``, ``folds``, ``cross_validation`` (Dice per candidate and structure), ``keep_largest_component_of``
        (label lists, in order) and ``dice_after_postprocessing``.
    """
    models = [{"plans": PLANS, "configuration": name, "trainer": TRAINER} for name in configurations]
    shutil.rmtree(workspace.results / "ensembles", ignore_errors=True)
    with pools_on(executor):
        found = find_best_configuration(DATASET, models, num_processes=1, folds=tuple(folds))
        best = [model["configuration"] for model in found["best_model_or_ensemble"]["selected_model_or_models"]]
        chosen = list(members or best)
        source = _predictions(workspace, chosen, folds)
        if chosen != best:
            determine_postprocessing(
                str(source), str(workspace.labels), str(source / "plans.json"), str(source / "dataset.json"), 1
            )
    candidates = [[name] for name in configurations]
    candidates += [[a, b] for i, a in enumerate(configurations) for b in configurations[i + 1 :]]
    postprocessing = read_json(source / "postprocessing.json")
    keep = [step["labels_or_regions"] for step in postprocessing["postprocessing_kwargs"]]
    return {
        "members": chosen,
        "folds": list(folds),
        "cross_validation": {
            "+".join(names): _dice(_predictions(workspace, names, folds) / "summary.json") for names in candidates
        },
        "keep_largest_component_of": [labels if isinstance(labels, list) else [labels] for labels in keep],
        "dice_after_postprocessing": _dice(source / "postprocessed" / "summary.json"),
    }


def _predictions(workspace: Workspace, names: Sequence[str], folds: Sequence[int]) -> Path:
    """Where nnU-Net gathers the validation predictions of one configuration or of a pair."""
    folders = [str(workspace.configuration(name)) for name in names]
    if len(folders) == 1:
        return Path(folders[0]) / f"crossval_results_folds_{folds_tuple_to_string(tuple(folds))}"
    return workspace.results / "ensembles" / str(get_ensemble_name(*folders, tuple(folds)))


def _dice(summary_file: Path) -> dict[str, float | None]:
    summary = load_summary_json(str(summary_file))
    values = {name: summary["mean"][label]["Dice"] for name, label in LABELS.items() if label}
    values["mean"] = summary["foreground_mean"]["Dice"]
    return {name: None if value != value else float(value) for name, value in values.items()}


def export(workspace: Workspace, selection: dict[str, Any], model_dir: Path) -> None:
    """Write what prediction needs to ``model_dir``: weights without optimizer, plans, and last ``selection.json``.

    ``<model_dir>/<configuration>`` is a folder stock nnU-Net can predict from.
    """
    model_dir.mkdir(parents=True, exist_ok=True)
    (model_dir / SELECTION).unlink(missing_ok=True)
    for member in selection["members"]:
        source, target = workspace.configuration(member), model_dir / member
        shutil.rmtree(target, ignore_errors=True)
        for fold in selection["folds"]:
            checkpoint = torch.load(source / f"fold_{fold}" / FINAL, map_location="cpu", weights_only=True)
            needed = ("network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes")
            with whole_file(target / f"fold_{fold}" / FINAL) as part:
                torch.save({key: checkpoint[key] for key in needed}, part)
        for name in ("plans.json", "dataset.json"):
            write_json(target / name, read_json(source / name))
    for name in (f"{PLANS}.json", FINGERPRINT):
        write_json(model_dir / name, read_json(workspace.preprocessed / name))
    write_json(model_dir / SELECTION, selection)


def drop_probabilities(workspace: Workspace, configurations: Sequence[str]) -> None:
    """Remove the validation probabilities, which only the selection reads and which fill most of the disk.

    The folds then count as not validated, should another selection be asked for.
    """
    for name in configurations:
        for fold in workspace.configuration(name).glob("fold_*"):
            (fold / DONE).unlink(missing_ok=True)
            for file in (fold / "validation").glob("*.npz"):
                file.unlink()
