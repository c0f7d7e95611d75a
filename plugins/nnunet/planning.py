"""Fingerprint, plans and preprocessing, by nnU-Net; a training may change the plans by a few named keys."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from pydantic import Field, PositiveInt

from plugins.config.names import refuse_unknown
from plugins.errors import InputError
from plugins.files import write_json
from plugins.nnunet.workers import exit_with_parent
from plugins.nnunet.workspace import ANEW, DATASET, PLANS, Workspace
from plugins.progress import Progress
from plugins.segmentation import LABELS
from plugins.state import read_state

FINGERPRINT = "dataset_fingerprint.json"
FEWEST_STAGES = 3  # nnU-Net gives the deepest of the supervised stages no weight
STAGE_KEYS = ("features_per_stage", "kernel_sizes", "strides")
Planner = Literal["default", "ResEncM", "ResEncL", "ResEncXL"]
PLANNERS: dict[Planner, Any] = {
    "default": ExperimentPlanner,
    "ResEncM": nnUNetPlannerResEncM,
    "ResEncL": nnUNetPlannerResEncL,
    "ResEncXL": nnUNetPlannerResEncXL,
}


class PlanChanges(TypedDict, total=False):
    """See :func:`change_configuration`."""

    batch_size: PositiveInt
    patch_size: Sequence[PositiveInt]
    n_stages: Annotated[int, Field(ge=FEWEST_STAGES)]
    n_conv_per_stage: PositiveInt
    features_per_stage: Sequence[PositiveInt]
    kernel_sizes: Sequence[Sequence[PositiveInt]]
    strides: Sequence[Sequence[PositiveInt]]


def check_changes(name: str, changes: Mapping[str, Any]) -> None:
    """Refuse changes of a configuration that no network could be built with, whatever nnU-Net plans.

    Raises:
        InputError: naming the change.
    """
    axes = 2 if name.startswith("2d") else 3
    for key, value in changes.items():
        place = f"plan_changes::{name}::{key}"
        lists = value if key in ("kernel_sizes", "strides") else [value] if key == "patch_size" else []
        if any(len(each) != axes for each in lists):
            raise InputError(f"{place} is {value}. Give {axes} numbers for each.")
        if key == "kernel_sizes" and not np.all(np.mod(value, 2)):
            raise InputError(f"{place} is {value}. Give odd numbers.")


def change_configuration(configuration: dict[str, Any], changes: Mapping[str, Any], name: str) -> None:
    """Change one configuration of the plans in place.

    Args:
        configuration: from ``plans["configurations"]``.
        changes: ``batch_size``; ``patch_size`` (slice axis first); ``n_stages``, an upper limit; ``n_conv_per_stage``,
            one number (of residual blocks in a residual encoder); ``features_per_stage``, ``kernel_sizes`` and
            ``strides``, at least as many as there are stages.
        name: of the configuration, for messages.

    Raises:
        InputError: for an unknown key, fewer than three stages, or a patch the network cannot halve as it wants to.
    """
    refuse_unknown(changes, PlanChanges.__annotations__, f"plan_changes of {name}")
    network = configuration["architecture"]["arch_kwargs"]
    stages = min(changes.get("n_stages") or network["n_stages"], network["n_stages"])
    if stages < FEWEST_STAGES:
        raise InputError(f"n_stages of {name} is {stages}, too few for nnU-Net's deep supervision. Give 3 or more.")
    network["n_stages"] = stages
    for key in STAGE_KEYS:
        values = changes.get(key) or network[key]
        if len(values) < stages:
            raise InputError(f"{key} of {name} names {len(values)} stages. Give one value for each of the {stages}.")
        network[key] = list(values[:stages])
    convs = changes.get("n_conv_per_stage")
    encoder = "n_blocks_per_stage" if "n_blocks_per_stage" in network else "n_conv_per_stage"
    for key, number in ((encoder, stages), ("n_conv_per_stage_decoder", stages - 1)):
        network[key] = list(network[key][:number]) if convs is None else [convs] * number
    for key in ("batch_size", "patch_size"):
        if changes.get(key) is not None:
            configuration[key] = changes[key]
    factor = np.prod(network["strides"], axis=0)
    if len(factor) != len(configuration["patch_size"]) or np.any(np.mod(configuration["patch_size"], factor)):
        raise InputError(
            f"patch_size of {name} is {configuration['patch_size']}. Give a multiple of {factor.tolist()}."
        )


def make_plans(
    workspace: Workspace,
    configurations: Sequence[str],
    changes: Mapping[Any, PlanChanges],
    batch_size: int | Mapping[Any, int] | None = None,
    patch_size: Mapping[Any, Sequence[int]] | None = None,
    target_spacing: Sequence[float] | None = None,
    gpu_memory_gb: float | None = None,
    planner: Planner = "default",
) -> None:
    """Let nnU-Net measure the dataset and plan, then change its plans; must run inside ``workspace.active``.

    For the arguments see :class:`plugins.nnunet.NnUNetTraining`, for ``changes`` :func:`change_configuration`.

    Raises:
        InputError: see :func:`change_configuration`; and if nnU-Net plans no such configuration.
    """
    sizes = batch_size if isinstance(batch_size, Mapping) else dict.fromkeys(configurations, batch_size)
    patches = patch_size or {}
    for key, given in (("plan_changes", changes), ("batch_size", sizes), ("patch_size", patches)):
        refuse_unknown(given, configurations, key)
    refuse_unknown([planner], PLANNERS, "planner")
    for old in (FINGERPRINT, f"{PLANS}.json"):
        (workspace.preprocessed / old).unlink(missing_ok=True)
    extractor = DatasetFingerprintExtractor(DATASET, 1)
    extractor.show_progress_bar = False
    # intensity statistics serve the normalisation of CT only; nnU-Net's 1e8 samples would take 0.8 GB
    extractor.num_foreground_voxels_for_intensitystats = 1e6
    extractor.run(overwrite_existing=True)
    spacing = None if target_spacing is None else [float(mm) for mm in target_spacing]
    memory = {} if gpu_memory_gb is None else {"gpu_memory_target_in_gb": gpu_memory_gb}
    experiment = PLANNERS[planner](DATASET, plans_name=PLANS, overwrite_target_spacing=spacing, **memory)
    experiment.dataset_json = {**experiment.dataset_json, "labels": LABELS}  # what is ignored needs no output
    experiment.plan_experiment()
    file = workspace.preprocessed / f"{PLANS}.json"
    plans = load_json(str(file))
    for name in configurations:
        if name not in plans["configurations"]:
            raise InputError(f"nnU-Net plans no configuration {name!r} for these scans. Take it out of configurations.")
        wanted = {"batch_size": sizes.get(name), "patch_size": patches.get(name), **changes.get(name, {})}
        change_configuration(plans["configurations"][name], wanted, name)
    write_json(file, plans)


def adopt_plans(model_dir: Path, workspace: Workspace) -> None:
    """Take plans and fingerprint of an earlier training, so that its networks fit this one.

    Raises:
        InputError: if ``model_dir`` is no finished training.
    """
    for name in (f"{PLANS}.json", FINGERPRINT):
        if not (model_dir / name).is_file():
            raise InputError(f"plans_from: {model_dir} has no {name}. Give the model_dir of a finished training.")
        whole = {"configurations", "dataset_name"} if name != FINGERPRINT else {"spacings", "shapes_after_crop"}
        cure = "Copy that model_dir, which plans_from names, again"
        if not whole <= {*read_state(model_dir / name, dict[str, Any], cure)}:
            raise InputError(f"{model_dir / name} is no plan of nnU-Net's. {cure}.")
        workspace.preprocessed.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model_dir / name, workspace.preprocessed / name)


def _preprocess_case(workspace: Workspace, configuration: str, case: str) -> None:
    """Preprocess one case; its three files appear in an order that leaves the properties for last."""
    exit_with_parent()
    plans = workspace.plans()
    manager = plans.get_configuration(configuration)
    folder = workspace.preprocessed / manager.data_identifier
    folder.mkdir(parents=True, exist_ok=True)
    dataset = read_state(workspace.raw / "dataset.json", dict[str, Any], ANEW)
    entry = dataset["dataset"][case]
    label = (workspace.raw / entry["label"]).resolve()
    part = folder / f".part-{case}"
    manager.preprocessor_class(verbose=False).run_case_save(
        str(part), entry["images"], str(label), plans, manager, dataset
    )
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        part.with_name(part.name + ending).replace(folder / f"{case}{ending}")


def preprocess(workspace: Workspace, configurations: Sequence[str], executor: Executor, output_dir: Path) -> None:
    """Preprocess what is not preprocessed yet, one case and configuration a job."""
    plans = workspace.plans()
    cases = sorted(read_state(workspace.raw / "dataset.json", dict[str, Any], ANEW)["dataset"])
    jobs = [(name, case) for name in configurations for case in cases]
    folders = {name: workspace.preprocessed / plans.get_configuration(name).data_identifier for name in configurations}
    missing = [(name, case) for name, case in jobs if not (folders[name] / f"{case}.pkl").exists()]
    for folder in folders.values():
        for stale in folder.glob(".part-*"):
            stale.unlink()
    turn = threading.Lock()

    def count(_: Future[None]) -> None:
        with turn:  # may be called in any thread
            progress.advance()

    with Progress(len(jobs), "preprocessing", output_dir, initial=len(jobs) - len(missing)) as progress:
        futures = []
        for job in missing:
            futures.append(executor.submit(_preprocess_case, workspace, *job))
            futures[-1].add_done_callback(count)
        for future in futures:
            future.result()
