"""Prediction by the networks a training has chosen, on the grid of the scan, whatever its orientation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from plugins.errors import InputError
from plugins.files import read_json, whole_file
from plugins.nnunet.sliding_window import SlidingWindow
from plugins.nnunet.workspace import LABELS, TRAINER
from plugins.progress import Progress

SELECTION = "selection.json"


class Ensemble:
    """The networks that a training has chosen, ready to predict.

    Args:
        model_dir: holds ``selection.json`` and one folder per configuration.
        window: how the networks are moved over a scan.
        device: torch device.

    Raises:
        InputError: if ``model_dir`` holds no finished training.
    """

    def __init__(self, model_dir: str | Path, window: SlidingWindow | None = None, device: str | torch.device = "cpu"):
        model_dir = Path(model_dir)
        if not (model_dir / SELECTION).is_file():
            raise InputError(f"{model_dir} holds no {SELECTION}: train first, or give the model_dir of a training.")
        selection = read_json(model_dir / SELECTION)
        self._keep_largest: list[list[int]] = selection["keep_largest_component_of"]
        self._reader = NibabelIOWithReorient()
        window = window or SlidingWindow()
        folders = [model_dir / member for member in selection["members"]]
        self._predictors = [_load(folder, selection["folds"], window, torch.device(device)) for folder in folders]

    def __call__(self, image: str | Path) -> nib.Nifti1Image:
        """Segment one scan.

        As nnU-Net does, logits are averaged over the folds, probabilities over the configurations.

        Returns:
            labels as ``uint8``, with the shape, affine and header codes of ``image``.
        """
        scan = nib.load(image)
        array, properties = self._reader.read_images([str(image)])
        if not np.isfinite(array).all():
            raise ValueError("it holds values that are not finite")
        predictions = [_predict(predictor, array, properties) for predictor in self._predictors]
        segmentation, total = predictions[0]
        if len(predictions) > 1:
            for _, probabilities in predictions[1:]:
                total += probabilities
            segmentation = (total / len(predictions)).argmax(0)
        for labels in self._keep_largest:
            segmentation = remove_all_but_largest_component_from_segmentation(segmentation, labels)
        return _on_grid_of(scan, np.asarray(segmentation, dtype=np.uint8).transpose(2, 1, 0))


def _load(folder: Path, folds: Sequence[int], window: SlidingWindow, device: torch.device) -> nnUNetPredictor:
    plans, dataset = PlansManager(read_json(folder / "plans.json")), read_json(folder / "dataset.json")
    files = [folder / f"fold_{fold}" / "checkpoint_final.pth" for fold in folds]
    checkpoints = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
    configuration = plans.get_configuration(checkpoints[0]["init_args"]["configuration"])
    network = nnUNetTrainer.build_network_architecture(
        plans, configuration, determine_num_input_channels(plans, configuration, dataset), len(LABELS), False
    )
    predictor = window.predictor(device)
    predictor.manual_initialization(
        network,
        plans,
        configuration,
        [checkpoint["network_weights"] for checkpoint in checkpoints],
        dataset,
        TRAINER,
        checkpoints[0]["inference_allowed_mirroring_axes"],
    )
    return predictor


def _predict(
    predictor: nnUNetPredictor, array: NDArray[np.float32], properties: Mapping[str, Any]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Labels (S, A, R) and probabilities (C, S, A, R) of one configuration for an array (1, S, A, R)."""
    configuration = predictor.configuration_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case_npy(
        array, None, copy.deepcopy(dict(properties)), predictor.plans_manager, configuration, predictor.dataset_json
    )
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).cpu()
    labels, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits,
        predictor.plans_manager,
        configuration,
        predictor.label_manager,
        properties,
        return_probabilities=True,
        num_threads_torch=torch.get_num_threads(),
    )
    return labels, probabilities


def _on_grid_of(scan: nib.Nifti1Image, canonical: NDArray[np.uint8]) -> nib.Nifti1Image:
    """An array with axes R, A, S as an image on the grid of ``scan``."""
    back = ornt_transform(axcodes2ornt("RAS"), io_orientation(scan.affine))
    header = scan.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    return nib.Nifti1Image(np.ascontiguousarray(apply_orientation(canonical, back)), scan.affine, header)


def predict_scans(
    items: Sequence[Mapping[str, Any]],
    model_dir: str | Path,
    output_dir: str | Path,
    window: SlidingWindow | None = None,
    device: str | torch.device = "cpu",
) -> list[Path]:
    """Segment scans into ``<output_dir>/<case>_Label.nii.gz``; those already there are kept.

    Args:
        items: dictionaries with ``case`` and ``image``.
        model_dir: of a finished training.
        output_dir: also gets ``progress.json``.
        window: how the networks are moved over a scan.
        device: torch device.

    Returns:
        the files, in the order of ``items``.

    Raises:
        InputError: after all others are done, naming the scans that could not be segmented.
    """
    output_dir = Path(output_dir)
    files = [output_dir / f"{item['case']}_Label.nii.gz" for item in items]
    todo = [(item, file) for item, file in zip(items, files, strict=True) if not file.exists()]
    failed = []
    ensemble = Ensemble(model_dir, window, device)
    output_dir.mkdir(parents=True, exist_ok=True)
    with Progress(len(files), "segmenting", output_dir, initial=len(files) - len(todo)) as progress:
        for item, file in todo:
            try:
                labels = ensemble(item["image"])
            except Exception as error:  # one bad scan must not cost the others
                failed.append(f"{item['image']} ({type(error).__name__}: {error})")
            else:
                with whole_file(file) as part:
                    nib.save(labels, part)
            progress.advance(case=str(item["case"]))
    if failed:
        raise InputError(f"{len(failed)} of {len(files)} scans were not segmented, replace them: {'; '.join(failed)}.")
    return files
