"""What the discriminators see: differentiable augmentation, the regions of their logits, the penalty of their slope."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plugins.errors import InputError


class DiscriminatorAugmentation:
    """Shifts images and blanks a box of each, differentiably; intensities stay as they are.

    Each image has its own draw from torch's global generator of the CPU. Shifted-in pixels repeat the edge. The box is
    set to 0; where its centre lies near an edge, it sticks out.

    Source: Zhao et al., NeurIPS 2020, "Differentiable Augmentation for Data-Efficient GAN Training", section 3.2.

    Args:
        translation: largest shift, as a share of each axis.
        cutout: side of the box, as a share of each axis; 0 leaves it out.

    Raises:
        InputError: if a share lies outside 0 to 1.
    """

    def __init__(self, translation: float = 0.125, cutout: float = 0.5):
        for name, share in (("translation", translation), ("cutout", cutout)):
            if not 0 <= share <= 1:
                raise InputError(f"discriminator_augmentation: {name} is {share}. Give a share from 0 to 1.")
        self._translation, self._cutout = translation, cutout

    def __call__(self, images: Tensor) -> Tensor:
        """Augment :math:`(N, C, ...)`, all channels of an image alike."""
        box = torch.zeros_like(images[:, :1], dtype=torch.bool)
        box = ~box if self._cutout else box
        for axis in range(2, images.ndim):
            size, shape = images.shape[axis], [-1 if each in (0, axis) else 1 for each in range(images.ndim)]
            shape[0] = images.shape[0]
            reach, side = round(self._translation * size), round(self._cutout * size)
            draws = torch.stack(
                [torch.randint(-reach, reach + 1, (len(images),)), torch.randint(size, (len(images),)) - side // 2]
            )
            shift, start = draws.to(images.device)[..., None]
            at = torch.arange(size, device=images.device)[None]
            images = images.gather(axis, (at - shift).clamp(0, size - 1).reshape(shape).expand_as(images))
            box = box & ((at >= start) & (at < start + side)).reshape(shape)
        return images.masked_fill(box, 0)


def regions_of_logits(label: Tensor, size: list[int], stride: int, num_regions: int = 3) -> Tensor:
    """Which region the receptive-field centre of each of a discriminator's logits lies in.

    The logits lie ``stride`` pixels apart, as many cut off on one side of the image as on the other. A logit belongs to
    the highest label within its block of ``stride`` pixels, so that tiny regions keep a logit.

    Args:
        label: :math:`(N, 1, ...)`, integers in any dtype.
        size: spatial size of the map of logits.
        stride: pixels from a logit to the next.
        num_regions: number of labels, background included.

    Shape:
        - output: :math:`(N, num_regions, *size)`, bool, disjoint.
    """
    pads = []
    for full, part in zip(reversed(label.shape[2:]), reversed(size), strict=True):
        missing = part * stride - full
        pads += [missing // 2, missing - missing // 2]
    pool = F.max_pool3d if label.ndim == 5 else F.max_pool2d
    highest = pool(F.pad(label.float(), pads), stride).round()
    return torch.cat([highest == region for region in range(num_regions)], dim=1)


def gradient_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    r"""R1: the mean squared length of a logit's gradient with respect to a real image.

    .. math::
        \frac{1}{N M} \sum_n \left\lVert \nabla_{x_n} \sum_m D_m(x_n) \right\rVert^2

    For one logit an image, :math:`M = 1`, that is the paper's; patches that do not overlap give the mean over them.

    Source: Mescheder et al., ICML 2018, eq. (9), without the factor :math:`\gamma / 2`.

    Args:
        discriminator: the last of its outputs holds the logits.
        real: :math:`(N, C, ...)`.

    Shape:
        - output: a scalar with a graph to the discriminator's weights.
    """
    real = real.detach().float().requires_grad_(True)
    with torch.autocast(real.device.type, enabled=False):
        logits = discriminator(real)[-1]
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return slope.square().sum() / logits.numel()
