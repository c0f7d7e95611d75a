"""Which positions the contrastive loss attends to, by a trained translator (Fig. 5 of the paper)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray

from plugins.data import read_datalist
from plugins.errors import InputError
from plugins.evaluation.pictures import slice_with_both
from plugins.report.figures import points_figure
from plugins.state import read_state, read_tensors

CURE = "Train again"
_logger = logging.getLogger(__name__)


def positions_figures(
    run: Path, source: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """For each translator with a contrastive loss, the positions that its layers select in one source slice.

    Args:
        run: folder of the run; translators are trained in ``<view>_training``.
        source: its source scans; the first is shown.

    Returns:
        numbers: ``view``, ``case``, ``slice``, and ``layers``: title to pixels :math:`(n, 2)` of the slice as the
        network sees it; and pictures: ``view``, ``case``, ``picture``.
    """
    numbers, pictures = [], []
    for record in sorted(run.glob("*_training/models/training.json")):
        view = record.parents[1].name.removesuffix("_training")
        settings = read_state(record, dict[str, Any], CURE).get("settings", {})
        if "selections" not in settings or not source:
            continue
        try:
            case = _as_trained_on(run, view, source[0])
            image, index, layers = _positions(record.parent, settings, case)
        except (InputError, KeyError, RuntimeError, TypeError, ValueError) as error:
            _logger.warning(f"{record.parent}: the positions of the contrastive loss cannot be shown ({error}).")
            continue
        found = {title: np.round(places, 1).tolist() for title, places in layers.items()}
        numbers.append({"view": view, "case": case["case"], "slice": index + 1, "layers": found})
        pictures.append({"view": view, "case": case["case"], "picture": points_figure(image, layers)})
    return numbers, pictures


def _as_trained_on(run: Path, view: str, scan: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scan in the form that the translator takes, redrawn or not."""
    overrides = read_state(run / f"{view}_translation" / "overrides.json", dict[str, Any], CURE)
    return next(each for each in read_datalist(overrides["datalist"]) if each["case"] == scan["case"])


def _positions(
    models: Path, settings: Mapping[str, Any], scan: Mapping[str, Any]
) -> tuple[NDArray[Any], int, dict[str, NDArray[Any]]]:
    """The slice :math:`(R, A)`, its index, and the positions of each layer that selects by attention."""
    parser = ConfigParser(dict(settings))
    network = parser.get_parsed_content("network_def")
    selections = parser.get_parsed_content("selections")
    prepared = parser.get_parsed_content("train::preprocessing")({"image": scan["image"], "label": scan["label"]})
    image, label = (torch.as_tensor(np.asarray(prepared[key]))[0] for key in ("image", "label"))
    index = slice_with_both(label.numpy())
    x, regions = image[None, None, :, :, index], label[None, None, :, :, index]
    network.load_state_dict(read_tensors(models / "model.pt", CURE))
    with torch.no_grad():
        features = network.eval().encode(x, network.regions(regions, list(x.shape[2:])), features_only=True)[1]
        layers = {
            f"layer {number}, attention": _pixels(select.rows(layer), layer.shape[2:], x.shape[2:])
            for number, (select, layer) in enumerate(zip(selections, features, strict=True), start=1)
            if hasattr(select, "rows")
        }
    shown = np.flip(image[:, :, index].numpy(), axis=(0, 1))  # from LPS to the axes of the pictures
    size = np.asarray(shown.shape) - 1
    return shown, index, {title: size - places for title, places in layers.items()}


def _pixels(rows: torch.Tensor, of: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
    """Centres of the positions of a feature map, in pixels of the image; a padded map counts as the image itself."""
    places = np.stack(np.unravel_index(rows[0].cpu().numpy(), tuple(of)), axis=1)
    if of[0] > size[0]:
        return places - (np.asarray(of) - np.asarray(size)) / 2
    return (places + 0.5) * np.asarray(size) / np.asarray(of) - 0.5
