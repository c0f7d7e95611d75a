"""Which positions the contrastive loss attends to, by a trained translator (Fig. 5 of the paper)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray

from plugins.data import read_datalist
from plugins.errors import InputError
from plugins.evaluation.metrics import STRUCTURE_TITLES, STRUCTURES
from plugins.evaluation.pictures import slice_with_both
from plugins.report.figures import data_uri, draw_points
from plugins.report.tables import Table, table
from plugins.state import read_state, read_tensors

CURE, RECORD = "Train again", "models/training.json"
ATTENTION = "attention"
SHARED_SCANS = 4
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """Positions that a translator chooses in one source slice, in the axes of the pictures.

    Attributes:
        case: name of the scan.
        slice: number of the slice, from 1.
        image: the slice :math:`(R, A)`, as the network sees it.
        label: its label map :math:`(R, A)`.
        layers: title, such as ``layer 4, attention``, to positions :math:`(n, 2)` in pixels.
    """

    case: str
    slice: int
    image: NDArray[Any]
    label: NDArray[Any]
    layers: Mapping[str, NDArray[Any]]

    def shares(self) -> dict[str, dict[str, float]]:
        """Of each layer, and of all pixels of the slice, the share that lies on each structure."""
        found = {"all pixels": self.label.ravel()}
        last = np.asarray(self.label.shape) - 1
        for title, places in self.layers.items():
            rows, columns = np.clip(np.rint(places).astype(int), 0, last).T
            found[title] = self.label[rows, columns]
        return {
            title: {name: round(float(np.mean(values == value)), 6) for name, value in STRUCTURES.items()}
            for title, values in found.items()
        }


def translations_in(
    run: Path, stages: Collection[str] | None = None, given: Mapping[str, str] | None = None
) -> dict[str, Path]:
    """View of each translator of a run to the folder of its translations; its training ``<view>_training`` lies beside.

    Args:
        run: folder of the run.
        stages: names of the run's stages; ``None`` takes all that lie there.
        given: view to the folder that the report of the run was given, as seen from the run; others have theirs in
            ``<view>_translation``.
    """
    found = {}
    for record in sorted(run.glob(f"*_training/{RECORD}")):
        training = record.parents[1].name
        if stages is None or training in stages:
            view = training.removesuffix("_training")
            own = f"{view}_translation"
            folder = run / (given or {}).get(view, own)
            found[view] = folder if (folder.parent / training / RECORD).is_file() else run / own
    return found


def run_positions(
    run: Path,
    source: Sequence[Mapping[str, Any]],
    stages: Collection[str] | None = None,
    given: Mapping[str, str] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """For each translator of a run that has a contrastive loss, the positions that it chooses.

    Args:
        run: folder of the run.
        source: its source scans; the first is shown, shares are means over the first :data:`SHARED_SCANS`.
        stages: as in :func:`translations_in`.
        given: as in :func:`translations_in`; the positions are those of the training beside.

    Returns:
        numbers: ``view`` and what :func:`numbers_of` gives; and pictures: ``view``, ``case``, ``picture``.
    """
    numbers, pictures = [], []
    for view, folder in translations_in(run, stages, given).items():
        chosen = chosen_positions(folder.parent, view, source)
        if chosen:
            numbers.append({"view": view, **numbers_of(chosen)})
            row = ("", chosen[0].image, chosen[0].label, attended(chosen[0].layers))
            pictures.append({"view": view, "case": chosen[0].case, "picture": data_uri(draw_points([row]))})
    return numbers, pictures


def chosen_positions(folder: Path, view: str, source: Sequence[Mapping[str, Any]]) -> list[Chosen]:
    """What a translator chooses in the first :data:`SHARED_SCANS` source scans; empty without a contrastive loss.

    The folder, of a run or of one of its rounds, holds ``<view>_training`` and ``<view>_translation``.
    """
    record = folder / f"{view}_training" / RECORD
    settings = read_state(record, dict[str, Any], CURE).get("settings", {})
    if "selections" not in settings:
        return []
    try:
        choose = _chooser(record.parent, settings)
        return [choose(_as_trained_on(folder, view, scan)) for scan in source[:SHARED_SCANS]]
    except (InputError, KeyError, RuntimeError, TypeError, ValueError) as error:
        _logger.warning(f"{record.parent}: the positions of the contrastive loss cannot be shown ({error}).")
        return []


def numbers_of(chosen: Sequence[Chosen]) -> dict[str, Any]:
    """``case``, ``slice`` and ``layers`` of the first scan, and ``shares``, means over ``scans`` of them."""
    shares = [each.shares() for each in chosen]
    means = {
        title: {name: float(np.mean([share[title][name] for share in shares])) for name in STRUCTURES}
        for title in shares[0]
    }
    layers = {title: np.round(places, 1).tolist() for title, places in chosen[0].layers.items()}
    first = {"case": chosen[0].case, "slice": chosen[0].slice, "layers": layers}
    return {**first, "scans": len(chosen), "shares": means}


def shares_table(numbers: Sequence[Mapping[str, Any]]) -> Table:
    """The shares of each translator and layer, beside those of all pixels: what chance would choose."""
    rows = [
        [each["view"], title, *(f"{share[name]:.2%}" for name in STRUCTURES)]
        for each in numbers
        for title, share in each["shares"].items()
    ]
    counts = " or ".join(str(count) for count in sorted({each["scans"] for each in numbers}))
    caption = f"Share of the chosen positions that lies on each structure; mean over slices of scans (n = {counts})."
    return table(caption, ["translator", "positions of", *STRUCTURE_TITLES.values()], rows)


def attended(layers: Mapping[str, NDArray[Any]], titles: Container[str] = ()) -> dict[str, NDArray[Any]]:
    """The layers that choose by attention, and those of ``titles``; all of them where there are none."""
    found = {title: places for title, places in layers.items() if title in titles or title.endswith(ATTENTION)}
    return found or dict(layers)


def _as_trained_on(folder: Path, view: str, scan: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scan in the form that the translator takes, redrawn or not."""
    overrides = read_state(folder / f"{view}_translation" / "overrides.json", dict[str, Any], CURE)
    return {each["case"]: each for each in read_datalist(overrides["datalist"])}[scan["case"]]


def _chooser(models: Path, settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Chosen]:
    """What finds the positions of a trained translator in a scan with ``case``, ``image`` and ``label``."""
    parser = ConfigParser(dict(settings))
    network = parser.get_parsed_content("network_def")
    selections = parser.get_parsed_content("selections")
    preprocessing = parser.get_parsed_content("train::preprocessing")
    network.load_state_dict(read_tensors(models / "model.pt", CURE))
    network.eval()

    def choose(scan: Mapping[str, Any]) -> Chosen:
        prepared = preprocessing({"image": scan["image"], "label": scan["label"]})
        image, label = (torch.as_tensor(np.asarray(prepared[key]))[0] for key in ("image", "label"))
        index = slice_with_both(label.numpy())
        x, regions = image[None, None, :, :, index], label[None, None, :, :, index]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            features = network.encode(x, network.regions(regions, list(x.shape[2:])), features_only=True)[1]
            layers = {
                f"layer {number}, {ATTENTION if hasattr(select, 'rows') else 'random'}": _pixels(
                    _indices(select, layer), layer.shape[2:], x.shape[2:]
                )
                for number, (select, layer) in enumerate(zip(selections, features, strict=True), start=1)
            }
        # from LPS to the axes of the pictures
        shown, drawn = (np.flip(each[:, :, index].numpy(), axis=(0, 1)) for each in (image, label))
        size = np.asarray(shown.shape) - 1
        turned = {title: size - places for title, places in layers.items()}
        return Chosen(str(scan["case"]), index + 1, shown, drawn, turned)

    return choose


def _indices(select: Any, layer: torch.Tensor) -> NDArray[np.int64]:
    """Places in the flat feature map: the rows that attention selects, or what is drawn at random."""
    if hasattr(select, "rows"):
        return np.asarray(select.rows(layer)[0].cpu())
    places = torch.arange(layer.shape[2:].numel(), dtype=torch.float64).reshape(1, 1, *layer.shape[2:])
    return np.asarray(select(layer)(places)[0, :, 0]).astype(np.int64)


def _pixels(indices: NDArray[np.int64], of: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
    """Centres of the positions of a feature map, in pixels of the image; a padded map counts as the image itself."""
    places = np.stack(np.unravel_index(indices, tuple(of)), axis=1)
    if of[0] > size[0]:
        return places - (np.asarray(of) - np.asarray(size)) / 2
    return (places + 0.5) * np.asarray(size) / np.asarray(of) - 0.5
