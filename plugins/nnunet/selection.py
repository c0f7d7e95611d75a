"""nnU-Net's own choice between configurations and their ensembles, and the folder prediction needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, load_summary_json
from nnunetv2.evaluation.find_best_configuration import find_best_configuration
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string, get_ensemble_name

from plugins.errors import InputError
from plugins.files import write_json
from plugins.finite import refuse_broken_weights
from plugins.nnunet.augmentation import Structure
from plugins.nnunet.checkpoints import FINAL
from plugins.nnunet.dataset import IGNORE
from plugins.nnunet.planning import FINGERPRINT
from plugins.nnunet.processes import pools_on
from plugins.nnunet.trainer import Configuration
from plugins.nnunet.training import DONE
from plugins.nnunet.workspace import ANEW, DATASET, PLANS, TRAINER, Workspace
from plugins.segmentation import LABELS, EnsembleMember, FoldEnsemble, SegmentationModel, combine
from plugins.segmentation.model import DESCRIPTION, WEIGHTS
from plugins.segmentation.networks import UNet
from plugins.state import read_state, read_tensors, write_weights

STRUCTURES = get_args(Structure)
ChosenMembers = Sequence[Configuration] | Mapping[Structure, Sequence[Configuration]]


def select(
    workspace: Workspace,
    configurations: Sequence[str],
    folds: Sequence[int],
    executor: Executor,
    members: ChosenMembers | None = None,
    per_structure: bool = False,
) -> dict[str, Any]:
    """Choose by cross-validation, with nnU-Net's own code; must run inside ``workspace.active``.

    ``configurations`` may be chosen alone or in pairs, for both structures together or ``per_structure``; ``members``
    are used whatever the cross-validation says.

    Returns:
        ``folds``, ``members_of`` (structure to configurations), ``keep_largest_component_of`` (label lists, in order)
        and ``results``: ``cross_validation`` (Dice per candidate and structure) and ``dice_after_postprocessing``.
    """
    models = [{"plans": PLANS, "configuration": name, "trainer": TRAINER} for name in configurations]
    shutil.rmtree(workspace.results / "ensembles", ignore_errors=True)
    candidates = [[name] for name in configurations] + [list(pair) for pair in combinations(configurations, 2)]
    with pools_on(executor):
        found = find_best_configuration(DATASET, models, num_processes=1, folds=tuple(folds))
        dice = {"+".join(names): _dice(_predictions(workspace, names, folds) / "summary.json") for names in candidates}
        best = [model["configuration"] for model in found["best_model_or_ensemble"]["selected_model_or_models"]]
        chosen = _chosen(members, best, dice if per_structure else None, configurations)
        sets = {tuple(names) for names in chosen.values()}
        if len(sets) > 1:
            source = _predict_by_structure(workspace, chosen, folds)
        else:
            source = _predictions(workspace, [*sets.pop()], folds)
        if not (source / "postprocessing.json").is_file():
            determine_postprocessing(
                str(source), str(workspace.labels), str(source / "plans.json"), str(source / "dataset.json"), 1
            )
    postprocessing = read_state(source / "postprocessing.json", dict[str, Any], ANEW)
    keep = [step["labels_or_regions"] for step in postprocessing["postprocessing_kwargs"]]
    return {
        "folds": list(folds),
        "members_of": chosen,
        "keep_largest_component_of": [labels if isinstance(labels, list) else [labels] for labels in keep],
        "results": {
            "cross_validation": dice,
            "dice_before_postprocessing": _dice(source / "summary.json"),
            "dice_after_postprocessing": _dice(source / "postprocessed" / "summary.json"),
        },
    }


def _chosen(
    members: ChosenMembers | None,
    best: Sequence[str],
    dice: Mapping[str, Mapping[str, float | None]] | None,
    configurations: Sequence[str],
) -> dict[str, list[str]]:
    """The configurations of every structure, in the order in which nnU-Net names its ensembles."""
    if isinstance(members, Mapping):
        return {name: [each for each in configurations if each in members[name]] for name in STRUCTURES}
    if members is not None or dice is None:
        return {name: [each for each in configurations if each in (members or best)] for name in STRUCTURES}
    return {name: max(dice, key=lambda each: dice[each][name] or 0).split("+") for name in STRUCTURES}


def check_members(members: ChosenMembers | None, configurations: Sequence[str]) -> None:
    """Refuse members that will not be trained.

    Raises:
        InputError: naming them.
    """
    sets = members if isinstance(members, Mapping) else dict.fromkeys(STRUCTURES, members or configurations[:1])
    if set(sets) != set(STRUCTURES):
        raise InputError(f"members is given for {', '.join(sets)}. Give them for {' and '.join(STRUCTURES)}.")
    for names in sets.values():
        if not names or not set(names) <= set(configurations):
            raise InputError(f"members is {list(names)}. Choose from {list(configurations)}.")


def _predictions(workspace: Workspace, names: Sequence[str], folds: Sequence[int]) -> Path:
    """Where nnU-Net gathers the validation predictions of one configuration or of a pair."""
    folders = [str(workspace.configuration(name)) for name in names]
    if len(folders) == 1:
        return Path(folders[0]) / f"crossval_results_folds_{folds_tuple_to_string(tuple(folds))}"
    return workspace.results / "ensembles" / str(get_ensemble_name(*folders, tuple(folds)))


def _predict_by_structure(workspace: Workspace, chosen: Mapping[str, Sequence[str]], folds: Sequence[int]) -> Path:
    """The validation predictions of structures with members of their own, from the probabilities of all members."""
    names = sorted({name for names in chosen.values() for name in names})
    folder = workspace.results / "ensembles" / "by_structure"
    folder.mkdir(parents=True)
    writer = NibabelIOWithReorient()
    for fold in folds:
        folders = {name: workspace.fold(name, fold) / "validation" for name in names}
        for file in sorted(folders[names[0]].glob("*.npz")):
            probabilities = {}
            for name, place in folders.items():
                with np.load(place / file.name) as content:
                    probabilities[name] = torch.from_numpy(content["probabilities"])
            labels = combine(probabilities, chosen).argmax(0).numpy().astype(np.uint8)
            writer.write_seg(labels, str(folder / f"{file.stem}.nii.gz"), load_pickle(str(file.with_suffix(".pkl"))))
    for name in ("plans.json", "dataset.json"):
        shutil.copyfile(workspace.configuration(names[0]) / name, folder / name)
    foreground = [LABELS[name] for name in STRUCTURES]
    ignored = read_state(folder / "dataset.json", dict[str, Any], ANEW)["labels"].get(IGNORE)
    compute_metrics_on_folder(
        str(workspace.labels), str(folder), str(folder / "summary.json"), writer, ".nii.gz", foreground, ignored
    )
    return folder


def _dice(summary_file: Path) -> dict[str, float | None]:
    summary = load_summary_json(str(summary_file))
    values = {name: summary["mean"][LABELS[name]]["Dice"] for name in STRUCTURES}
    values["mean"] = summary["foreground_mean"]["Dice"]
    return {name: None if value != value else float(value) for name, value in values.items()}


def describe(workspace: Workspace, selection: Mapping[str, Any]) -> SegmentationModel:
    """What prediction needs to know of the chosen configurations.

    Raises:
        InputError: if the plans want something that prediction does not offer.
    """
    plans = workspace.plans()
    names = sorted({name for names in selection["members_of"].values() for name in names})
    members, nonzero = {}, set()
    for name in names:
        configuration = plans.get_configuration(name)
        if configuration.normalization_schemes != ["ZScoreNormalization"]:
            schemes = configuration.normalization_schemes
            raise InputError(f"the plans normalise {name} by {schemes}, but only z-score is known. Make new plans.")
        nonzero |= set(configuration.use_mask_for_norm)
        arguments = configuration.network_arch_init_kwargs
        file = workspace.fold(name, selection["folds"][0]) / FINAL
        mirror_axes = read_tensors(file, ANEW)["inference_allowed_mirroring_axes"]
        members[name] = EnsembleMember(
            spacing=[None] * (3 - len(configuration.spacing)) + list(configuration.spacing),
            patch_size=[*configuration.patch_size],
            mirror_axes=[*(mirror_axes or ())],
            architecture=configuration.network_arch_class_name.rpartition(".")[2],
            arguments={
                key: value
                for key, value in arguments.items()
                if key.startswith(("n_", "features_", "kernel_", "strides"))
            },
        )
    if len(nonzero) > 1:
        raise InputError("the plans mask the normalisation of some configurations only. Train them apart.")
    return SegmentationModel(
        members=members,
        folds=selection["folds"],
        members_of=selection["members_of"],
        axes=[(2, 1, 0)[axis] for axis in plans.transpose_forward],
        nonzero=bool(nonzero.pop()),
        keep_largest_component_of=selection["keep_largest_component_of"],
        anatomy=selection.get("anatomy"),
        results=selection["results"],
    )


def export(workspace: Workspace, selection: Mapping[str, Any], model_dir: Path) -> None:
    """Write what prediction needs to ``model_dir``: plans, ``model.pt`` with all weights, and last ``model.json``."""
    model_dir.mkdir(parents=True, exist_ok=True)
    (model_dir / DESCRIPTION).unlink(missing_ok=True)
    model = describe(workspace, selection)
    plans = workspace.plans()
    ensemble = FoldEnsemble(model)
    for name, member in model.members.items():
        networks = ensemble.folds_2d if len(member.patch_size) == 2 else ensemble.folds_3d
        for fold in model.folds:
            checkpoint = read_tensors(workspace.fold(name, fold) / FINAL, ANEW)
            trained = nnUNetTrainer.build_network_architecture(
                plans, plans.get_configuration(name), 1, len(LABELS), False
            )
            trained.load_state_dict(checkpoint["network_weights"])
            networks[f"fold_{fold}"].load_state_dict(UNet(trained).state_dict())
    refuse_broken_weights(ensemble.state_dict(), f"{model_dir / WEIGHTS} is not written")
    write_weights(ensemble.state_dict(), model_dir / WEIGHTS)
    for name in (f"{PLANS}.json", FINGERPRINT):
        write_json(model_dir / name, read_state(workspace.preprocessed / name, dict[str, Any], ANEW))
    model.write(model_dir)


def drop_probabilities(workspace: Workspace, configurations: Sequence[str]) -> None:
    """Remove the validation probabilities, which only the selection reads and which fill most of the disk.

    The folds then count as not validated, should another selection be asked for.
    """
    for name in configurations:
        for fold in workspace.configuration(name).glob("fold_*"):
            (fold / DONE).unlink(missing_ok=True)
            for file in (fold / "validation").glob("*.npz"):
                file.unlink()
