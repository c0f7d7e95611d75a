"""Region normalisation and region-aware adaptive instance normalisation."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from monai.networks.layers.factories import Norm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from plugins.networks.regions import Regions, over_batch

Statistics = Literal["sample", "batch"]


def _blocks(x: Tensor) -> Tensor:
    """``(N, C, L)`` as ``(N, C, L / B, B)``: torch's norms and other runtimes' sums add one by one, and 65536 terms in
    float32 leave an error of 1e-4.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _whole_blocks(x)
    else:
        return _padded_blocks(x) if torch.compiler.is_exporting() else _whole_blocks(x)


def _whole_blocks(x: Tensor, block: int = 256) -> Tensor:
    while x.shape[2] % block != 0:
        block -= 1
    return x.view(x.shape[0], x.shape[1], x.shape[2] // block, block)


def _padded_blocks(x: Tensor, block: int = 256) -> Tensor:
    """Blocks with zeros behind the last terms: their number follows the size of ``x`` in an exported program."""
    number = x.shape[2] // block + 2  # never 1, which would be frozen
    return F.pad(x, [0, number * block - x.shape[2]]).view(x.shape[0], x.shape[1], number, block)


def _centred_rest(x: Tensor, regions: Regions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Deviation from a provisional mean of "others" (0 at target pixels), that mean, its correction, and the variance.

    Two passes: a provisional mean, then the deviations, whose own mean corrects it however few pixels "others" has.
    """
    num_samples, num_channels = x.shape[0], x.shape[1]
    count = regions.rest_count.to(x.dtype).clamp_min(1).unsqueeze(1)
    listed = x.transpose(1, 2)[regions.sample, regions.position]
    listed_sum = torch.zeros([num_samples, num_channels], dtype=x.dtype, device=x.device)
    listed_sum = listed_sum.index_add(0, regions.sample, listed)
    mean = (_blocks(x).sum(dim=3).sum(dim=2) - listed_sum) / count
    mean = mean * (regions.rest_count > 0).to(x.dtype).unsqueeze(1)
    deviation = x - mean.unsqueeze(2)
    deviation.transpose(1, 2)[regions.sample, regions.position] = torch.zeros_like(listed)
    correction = _blocks(deviation).sum(dim=3).sum(dim=2) / count
    norm = torch.linalg.vector_norm(torch.linalg.vector_norm(_blocks(deviation), dim=3), dim=2)
    variance = (norm * norm / count - correction * correction).clamp_min(0)
    return deviation, mean, correction, variance


def _sums_with(grad: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Sums ``(N, C)`` of the gradient, in float64, and of its product with the deviation, in one pass over both.

    They are the gradients of shift and scale of a batch normalisation, of which every block is a channel.
    """
    blocks = _whole_blocks(grad, 1024)
    number, channels = blocks.shape[:3], (1, -1, blocks.shape[3])
    zeros = grad.new_zeros(number.numel())
    _, products, sums = torch.ops.aten.native_batch_norm_backward(
        blocks.reshape(channels), deviation.reshape(channels), None, None, None, zeros, zeros + 1, True, 0.0,
        (False, True, True),
    )  # fmt: skip
    return sums.view(number).sum(dim=2, dtype=torch.float64), products.view(number).sum(dim=2)


def _normalised(listed: Tensor, regions: Regions, eps: float) -> tuple[Tensor, Tensor]:
    """Listed pixels ``(P, C)`` by mean and deviation of their region, and the inverse of that deviation, in float64."""
    group, values = regions.group, listed.to(torch.float64)  # index_add adds one by one
    count = regions.target_count.to(values.dtype).clamp_min(1).unsqueeze(1)
    zeros = torch.zeros([regions.target_count.shape[0], values.shape[1]], dtype=values.dtype, device=values.device)
    mean = zeros.index_add(0, group, values) / count
    deviation = values - mean[group]
    variance = zeros.index_add(0, group, deviation * deviation) / count
    inverse_std = torch.rsqrt(variance + eps)[group]
    return deviation * inverse_std, inverse_std


def _styled(regions: Regions, num_targets: int, styled_region: int) -> Tensor:
    """Listed pixels ``(P, 1)`` that take the style of "others"."""
    styled = regions.group % num_targets == styled_region - 1
    return (styled & (regions.rest_count > 0)[regions.sample]).unsqueeze(1)


def _targets(
    listed: Tensor,
    rest_mean: Tensor,
    rest_variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    regions: Regions,
    eps: float,
    styled_region: int,
) -> Tensor:
    """Normalised (and, in the styled region, restyled) values of the listed pixels: ``(P, C)``."""
    normalised = _normalised(listed, regions, eps)[0].to(listed.dtype)
    region = regions.group % weight.shape[0]
    if styled_region > 0:
        restyled = normalised * torch.sqrt(rest_variance + eps)[regions.sample] + rest_mean[regions.sample]
        normalised = torch.where(_styled(regions, weight.shape[0], styled_region), restyled, normalised)
    return normalised * weight[region] + bias[region]


def _target_gradients(
    grad: Tensor,
    listed: Tensor,
    rest_mean: Tensor,
    rest_variance: Tensor,
    weight: Tensor,
    regions: Regions,
    eps: float,
    styled_region: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of :func:`_targets`, from the gradient ``(P, C)`` of its result: those of its first five arguments."""
    normalised, inverse_std = _normalised(listed, regions, eps)
    grad, region, double = grad.to(normalised.dtype), regions.group % weight.shape[0], normalised.dtype
    inner, value = grad * weight.to(double)[region], normalised
    of_rest = torch.zeros(rest_mean.shape, dtype=double, device=grad.device)
    of_variance = of_rest
    if styled_region > 0:
        styled, std = _styled(regions, weight.shape[0], styled_region), torch.sqrt(rest_variance.to(double) + eps)
        shift = torch.where(styled, inner, 0)
        of_variance = of_rest.index_add(0, regions.sample, shift * normalised) / (2 * std)
        of_rest = of_rest.index_add(0, regions.sample, shift)
        restyled = normalised * std[regions.sample] + rest_mean[regions.sample]
        value, inner = torch.where(styled, restyled, value), torch.where(styled, inner * std[regions.sample], inner)
    of_weight = torch.zeros(weight.shape, dtype=double, device=grad.device)
    of_bias = of_weight.index_add(0, region, grad)
    of_weight = of_weight.index_add(0, region, grad * value)
    count = regions.target_count.to(double).clamp_min(1).unsqueeze(1)
    sums = torch.zeros([count.shape[0], grad.shape[1]], dtype=double, device=grad.device)
    mean = (sums.index_add(0, regions.group, inner) / count)[regions.group]
    along = (sums.index_add(0, regions.group, inner * normalised) / count)[regions.group]
    of_listed = (inner - mean - normalised * along) * inverse_std
    found = (of_listed, of_rest, of_variance, of_weight, of_bias)
    return tuple(each.to(listed.dtype) for each in found)  # type: ignore[return-value]


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, regions: Regions, eps: float, styled_region: int, in_place: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output ``(N, C, L)`` and the listed pixels ``(P, C)``; of "others" what :func:`_centred_rest` gives.

    ``in_place`` the output takes the memory of the deviation, which is lost then; there is no gradient of that.
    """
    deviation, mean, correction, variance = _centred_rest(x, regions)
    scale = torch.rsqrt(variance + eps) * weight[0]
    shift = bias[0] - correction * scale
    if in_place:
        y = torch.addcmul(shift.unsqueeze(2), deviation, scale.unsqueeze(2), out=deviation)
    else:
        y = torch.addcmul(shift.unsqueeze(2), deviation, scale.unsqueeze(2))
    listed = x.transpose(1, 2)[regions.sample, regions.position]
    y.transpose(1, 2)[regions.sample, regions.position] = _targets(
        listed, mean + correction, variance, weight[1:], bias[1:], regions, eps, styled_region
    )
    return y, listed, deviation, mean, correction, variance


class _RegionNorm(torch.autograd.Function):
    """:func:`_forward` with its gradient written out."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, regions: Regions, eps: float, styled_region: int
    ) -> Tensor:
        y, *kept = _forward(x, weight, bias, regions, eps, styled_region, in_place=False)
        ctx.save_for_backward(weight, *kept, *regions)
        ctx.eps, ctx.styled_region = eps, styled_region
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        weight, listed, deviation, mean, correction, variance, *listing = ctx.saved_tensors
        regions, grad = Regions(*listing), grads[0]
        pixels = (regions.sample, regions.position)
        listed_grad = grad.transpose(1, 2)[pixels]
        grad_listed, grad_mean, grad_variance, grad_weight, grad_bias = _target_gradients(
            listed_grad, listed, mean + correction, variance, weight[1:], regions, ctx.eps, ctx.styled_region
        )

        inverse_std = torch.rsqrt(variance + ctx.eps)
        count = regions.rest_count.to(grad.dtype).clamp_min(1).unsqueeze(1)
        grad_sum, product_sum = _sums_with(grad, deviation)
        total = grad_sum.index_add(0, regions.sample, -listed_grad.to(grad_sum.dtype)).to(grad.dtype)
        along = (product_sum - correction * total) * inverse_std

        scale = inverse_std * weight[0]
        slope = (2 * grad_variance - scale * along * inverse_std) / count
        shift = (grad_mean - scale * total) / count - slope * correction
        grad_x = torch.addcmul(shift.unsqueeze(2), deviation, slope.unsqueeze(2))
        grad_x.addcmul_(grad, scale.unsqueeze(2))
        grad_x.transpose(1, 2)[pixels] = grad_listed
        grad_weight = torch.cat([along.sum(dim=0, keepdim=True), grad_weight])
        grad_bias = torch.cat([total.sum(dim=0, keepdim=True), grad_bias])
        return grad_x, grad_weight, grad_bias, None, None, None


def region_norm(
    x: Tensor, weight: Tensor, bias: Tensor, regions: Regions, eps: float = 1e-5, styled_region: int = 0
) -> Tensor:
    r"""Normalise every region of every sample and channel by its own mean and standard deviation.

    With regions :math:`r`, their pixels' mean :math:`\mu^r` and standard deviation :math:`\sigma^r`,

    .. math::
        y^r = w_r \frac{x^r - \mu^r}{\sigma^r} + b_r, \qquad
        y^{styled} = w \left( \frac{x - \mu^{styled}}{\sigma^{styled}} \sigma^{others} + \mu^{others} \right) + b

    where :math:`\sigma^2` is the biased variance plus ``eps``. A region without pixels contributes nothing; a styled
    region in a sample without "others" is normalised only.

    Source: Kang et al., Scientific Reports 14:27883 (2024), eq. (1)-(3) and, with a styled region, (4)-(7).

    Args:
        x: features.
        weight: scale of each region and channel.
        bias: shift of each region and channel.
        regions: from :func:`plugins.networks.list_regions` at the resolution of ``x``.
        eps: added to each variance.
        styled_region: target region that takes the style of "others"; 0 for none.

    Shape:
        - x: :math:`(N, C, ...)`, any float dtype; statistics are at least float32.
        - weight, bias: :math:`(R, C)`.
        - output: shape and dtype of ``x``.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    flat = x.flatten(2).to(dtype)
    weight, bias = weight.to(dtype), bias.to(dtype)
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        y = _forward(flat, weight, bias, regions, eps, styled_region, in_place=False)[0]
    elif torch.is_grad_enabled() and any(each.requires_grad for each in (flat, weight, bias)):
        y = _RegionNorm.apply(flat, weight, bias, regions, eps, styled_region)
    else:
        in_place = not torch.compiler.is_exporting()
        y = _forward(flat, weight, bias, regions, eps, styled_region, in_place)[0]
    return y.reshape(x.shape).to(x.dtype)


class RegionNorm(nn.Module):
    r"""Region normalisation (RN): instance normalisation inside each region of a map.

    Source: Kang et al., Scientific Reports 14:27883 (2024), eq. (1)-(3), after Yu et al., AAAI 2020.

    Args:
        num_features: channels :math:`C`.
        num_regions: regions :math:`R`; region 0 is "others".
        eps: added to each variance.
        affine: learn a scale and a shift for each region and channel.
        statistics: ``"sample"``, or ``"batch"`` for those of all samples together, in inference too.

    Shape:
        - x: :math:`(N, C, ...)`.
        - output: shape and dtype of ``x``.

    Raises:
        ValueError: if there is no region, or ``statistics`` is unknown.

    Example:
        >>> from plugins.networks import list_regions
        >>> norm = RegionNorm(num_features=8)
        >>> cochlea = torch.rand(2, 1, 16, 16) > 0.9
        >>> norm(torch.randn(2, 8, 16, 16), list_regions(cochlea, [16, 16])).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(
        self,
        num_features: int,
        num_regions: int = 2,
        eps: float = 1e-5,
        affine: bool = True,
        statistics: Statistics = "sample",
    ):
        super().__init__()
        if num_regions < 1:
            raise ValueError(f"The number of regions must be at least 1, not {num_regions}.")
        if statistics not in get_args(Statistics):
            raise ValueError(f"Statistics must be {' or '.join(get_args(Statistics))}, not {statistics!r}.")
        self.num_regions, self.eps, self.styled_region = num_regions, eps, 0
        self.over_batch = statistics == "batch"
        self.weight = nn.Parameter(torch.ones(num_regions, num_features), requires_grad=affine)
        self.bias = nn.Parameter(torch.zeros(num_regions, num_features), requires_grad=affine)

    def forward(self, x: Tensor, regions: Regions | None = None) -> Tensor:
        """Normalise ``x``; without ``regions`` all of it is "others" and this is instance normalisation."""
        if self.over_batch:
            return self._over_batch(x, regions)
        if regions is None:
            return F.instance_norm(x, weight=self.weight[0], bias=self.bias[0], eps=self.eps)
        return region_norm(x, self.weight, self.bias, regions, self.eps, self.styled_region)

    def _over_batch(self, x: Tensor, regions: Regions | None) -> Tensor:
        if regions is None:
            return F.batch_norm(x, None, None, self.weight[0], self.bias[0], training=True, eps=self.eps)
        flat = x.flatten(2)
        joined = flat.transpose(0, 1).reshape(1, x.shape[1], -1)
        regions = over_batch(regions, flat.shape[2])
        y = region_norm(joined, self.weight, self.bias, regions, self.eps, self.styled_region)
        return y.reshape(x.shape[1], x.shape[0], -1).transpose(0, 1).reshape(x.shape)


class RAIN(RegionNorm):
    r"""Region-aware adaptive instance normalisation: RN whose region 1 takes the style of "others".

    Source: Kang et al., Scientific Reports 14:27883 (2024), eq. (4)-(7), after Ling et al., CVPR 2021.

    Args:
        num_features: channels :math:`C`.
        num_regions: regions :math:`R`: "others", the styled region, and any further ones.
        eps: added to each variance.
        affine: learn a scale and a shift for each region and channel.
        statistics: see :class:`RegionNorm`.
    """

    def __init__(
        self,
        num_features: int,
        num_regions: int = 3,
        eps: float = 1e-5,
        affine: bool = True,
        statistics: Statistics = "sample",
    ):
        super().__init__(num_features, num_regions, eps, affine, statistics)
        self.styled_region = 1


def register_norms() -> None:
    """Make ``"region"`` and ``"rain"`` names of MONAI's ``Norm`` factory; registering twice is harmless."""
    for name, kind in (("region", RegionNorm), ("rain", RAIN)):
        if name.upper() not in Norm.names:
            Norm.add_factory_callable(name, lambda _dim, kind=kind: kind)


register_norms()
