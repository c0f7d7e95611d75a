"""From a preprocessed scan to probabilities on its own grid, by all members of an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor

from plugins.errors import InputError
from plugins.finite import is_finite
from plugins.segmentation.model import LABELS, SegmentationModel
from plugins.segmentation.resample import resample_image, resample_logits, resampled_shape
from plugins.segmentation.window import SlidingWindow


def combine(probabilities: Mapping[str, Tensor], members_of: Mapping[str, Sequence[str]]) -> Tensor:
    """The ensemble's probabilities: each structure's is the mean over its own members.

    Where the structures have different members, the background's is the mean of what they leave to it, and the three
    are scaled to add up to 1; where they have the same, this is the mean over the members.

    Args:
        probabilities: member to :math:`(3, *)`; background, VS, cochlea.
        members_of: structure to its members.

    Returns:
        :math:`(3, *)`.
    """
    sets = {name: tuple(sorted(members_of[name])) for name in LABELS if LABELS[name]}
    means = {chosen: _mean([probabilities[name] for name in chosen]) for chosen in set(sets.values())}
    if len(means) == 1:
        return next(iter(means.values()))
    background = _mean([mean[0] for mean in means.values()])
    total = torch.stack([background, *(means[chosen][LABELS[name]] for name, chosen in sets.items())])
    return total / total.sum(0).clamp_min(1e-6)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total / len(tensors)


class EnsembleInferer(Inferer):
    """nnU-Net's ensemble: logits averaged over folds, probabilities over configurations.

    A scan is resampled once for all members that want the same spacing, and every member's logits are resampled once.

    Args:
        model: whose members predict.
        window: how they are moved over the scan.

    Shape:
        - input: a :class:`MetaTensor` :math:`(1, 1, X, Y, Z)` with axes R, A, S, cropped and z-scored.
        - output: probabilities :math:`(1, 3, X, Y, Z)`.
    """

    def __init__(self, model: SegmentationModel, window: SlidingWindow | None = None):
        super().__init__()
        self.model, self.window = model, window or SlidingWindow()

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Probabilities of one scan.

        Raises:
            InputError: if logits are not finite.
            ValueError: if ``inputs`` is not one scan with an affine.
        """
        if not isinstance(inputs, MetaTensor) or inputs.shape[:2] != (1, 1) or inputs.dim() != 5:
            raise ValueError(f"the inferer takes one scan (1, 1, X, Y, Z) with its affine, not {tuple(inputs.shape)}")
        axes = self.model.axes
        # in float32, as nnU-Net takes it from the header: half a voxel more or less decides on a resampled shape
        mm = affine_to_spacing(inputs.affine.reshape(-1, 4, 4)[0].double()).float().tolist()
        spacing = [mm[axis] for axis in axes]
        volume = inputs.as_tensor()[0].permute(0, *(axis + 1 for axis in axes))
        resampled: dict[tuple[float, ...], Tensor] = {}
        probabilities = {}
        for name, member in self.model.members.items():
            wanted = zip(spacing, member.spacing, strict=True)
            target = tuple(own if length is None else length for own, length in wanted)
            if target not in resampled:
                shape = resampled_shape(volume.shape[1:], spacing, target)
                resampled[target] = resample_image(volume, shape, spacing, target)
            logits = self.window(network, resampled[target], member.patch_size, member.mirror_axes)
            if not is_finite(logits):
                place = inputs.meta.get("filename_or_obj", "the scan")
                raise InputError(f"{place}: the networks of {name} give values that are not finite. Train them again.")
            probabilities[name] = resample_logits(logits, volume.shape[1:], target, spacing).softmax(0)
            del logits
        total = combine(probabilities, self.model.members_of)
        back = [0, *(axes.index(axis) + 1 for axis in range(3))]
        result: Tensor = convert_to_dst_type(total.permute(back)[None], inputs)[0]  # with its meta data
        return result
