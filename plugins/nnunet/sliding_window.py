"""How networks are moved over a scan."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian


@dataclass(frozen=True)
class SlidingWindow:
    """How a network is moved over a scan; the defaults are nnU-Net's.

    Attributes:
        tile_step_size: distance of neighbouring tiles, in tiles.
        use_gaussian: weight the centre of a tile more than its border.
        mirroring: average over all mirrored inputs, as far as the network was trained with them.
        batch_size: tiles a forward pass; above 1, sums are float32 where nnU-Net's are float16.
    """

    tile_step_size: float = 0.5
    use_gaussian: bool = True
    mirroring: bool = True
    batch_size: int = 1

    def predictor(self, device: torch.device) -> nnUNetPredictor:
        """A predictor of nnU-Net that has no network yet."""
        kind = nnUNetPredictor if self.batch_size == 1 else _BatchPredictor
        with redirect_stdout(io.StringIO()):  # it says that a CPU is no GPU
            predictor = kind(
                self.tile_step_size, self.use_gaussian, self.mirroring, device.type == "cuda", device, allow_tqdm=False
            )
        predictor.batch_size = self.batch_size
        return predictor


class _BatchPredictor(nnUNetPredictor):
    """Several tiles a forward pass: far faster where one tile does not fill the device."""

    batch_size: int

    @torch.inference_mode()
    def _internal_predict_sliding_window_return_logits(
        self, data: torch.Tensor, slicers: Sequence[tuple[Any, ...]], do_on_device: bool = True
    ) -> torch.Tensor:
        place = self.device if do_on_device else torch.device("cpu")
        data = data.to(place)
        logits = torch.zeros((self.label_manager.num_segmentation_heads, *data.shape[1:]), device=place)
        weights = torch.zeros(data.shape[1:], device=place)
        weight = torch.ones((), device=place)
        if self.use_gaussian:
            patch = tuple(self.configuration_manager.patch_size)
            weight = compute_gaussian(patch, sigma_scale=1 / 8, value_scaling_factor=10, device=place).float()
        for start in range(0, len(slicers), self.batch_size):
            batch = slicers[start : start + self.batch_size]
            tiles = torch.stack([data[tile] for tile in batch]).to(self.device)
            for tile, predicted in zip(batch, self._internal_maybe_mirror_and_predict(tiles).to(place), strict=True):
                logits[tile] += predicted * weight
                weights[tile[1:]] += weight
        return logits / weights
