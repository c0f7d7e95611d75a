r"""Convolutions with fewer multiplications on CPUs; elsewhere they are torch's own.

Winograd: tiles of 4x4 outputs of a 3x3 kernel come from 6x6 inputs by 36 products instead of 144. With the matrices
below a tile is :math:`A^T [(G w G^T) \odot (B^T x B)] A`, summed over input channels between the transforms. In float32
results differ from torch's by some 1e-6 of their largest value. The gradients of weights and input go the same way. A
few rows of tiles are worked on at a time, so that they stay in cache. With AVX-512 torch's own convolutions are faster
than Winograd's way, but for doubled maps.

Source: Lavin & Gray, Fast algorithms for convolutional neural networks, CVPR 2016, F(4x4, 3x3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.jit import is_tracing  # type: ignore[attr-defined]
from torch.nn import functional as F

MIN_CHANNELS = 64
BAND_ELEMENTS = 700_000

_BT = [
    [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
    [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
    [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
    [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
    [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
    [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
]
_G = [[6.0, 0.0, 0.0], [-4.0, -4.0, -4.0], [-4.0, 4.0, -4.0], [1.0, 2.0, 4.0], [1.0, -2.0, 4.0], [0.0, 0.0, 24.0]]
_AT = [
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
    [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
    [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
    [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
]
# six neighbouring pixels of a doubled row, from the four they lie between
_UP = [
    [0.75, 0.25, 0.0, 0.0],
    [0.25, 0.75, 0.0, 0.0],
    [0.0, 0.75, 0.25, 0.0],
    [0.0, 0.25, 0.75, 0.0],
    [0.0, 0.0, 0.75, 0.25],
    [0.0, 0.0, 0.25, 0.75],
]
_TO_TILE = torch.kron(torch.tensor(_BT), torch.tensor(_BT))
_TO_TILE_DOUBLED = torch.kron(torch.tensor(_BT) @ torch.tensor(_UP), torch.tensor(_BT) @ torch.tensor(_UP))
_TO_WEIGHT = torch.kron(torch.tensor(_G, dtype=torch.float64) / 24, torch.tensor(_G, dtype=torch.float64) / 24).float()
_TO_OUTPUT = torch.kron(torch.tensor(_AT), torch.tensor(_AT))


def _transformed(weight: Tensor) -> Tensor:
    """:math:`G w G^T` of weights ``(O, C, 3, 3)`` as ``(36, O, C)``."""
    return (_TO_WEIGHT @ weight.reshape(-1, 9).t()).view(36, weight.shape[0], weight.shape[1])


def _band(rows: int, elements: int) -> int:
    """How many rows of tiles to work on at a time, if the tiles of one have so many elements."""
    return max(1, min(rows, BAND_ELEMENTS // elements))


def _tiles_to_output(tiles: Tensor, weight: Tensor, bias: Tensor | None, transform: Tensor) -> Tensor:
    """Outputs ``(N, O, 4 rows, 4 columns)`` of the tiles ``(k, k, C, N, rows, columns)``, a view of the input."""
    side, channels, num_samples, rows, columns = tiles.shape[1:]
    out_channels = weight.shape[0]
    weights = _transformed(weight)
    output = tiles.new_empty([num_samples, out_channels, rows, 4, columns, 4])
    shift = tiles.new_zeros(()) if bias is None else bias.view(1, -1, 1, 1, 1, 1)
    band = _band(rows, 36 * channels * num_samples * columns)
    most = num_samples * band * columns
    gathered = tiles.new_empty([side * side * channels * most])
    values = tiles.new_empty([36 * channels * most])
    products = tiles.new_empty([36 * out_channels * most])
    made = tiles.new_empty([16 * out_channels * most])
    for start in range(0, rows, band):
        part = tiles[:, :, :, :, start : start + band]
        num_tiles = part.shape[3:].numel()
        inputs = gathered[: side * side * channels * num_tiles].view(part.shape).copy_(part).view(side * side, -1)
        of_tiles = torch.mm(transform, inputs, out=values[: 36 * channels * num_tiles].view(36, -1))
        summed = products[: 36 * out_channels * num_tiles].view(36, out_channels, num_tiles)
        torch.bmm(weights, of_tiles.view(36, channels, num_tiles), out=summed)
        pixels = made[: 16 * out_channels * num_tiles].view(16, -1)
        torch.mm(_TO_OUTPUT, summed.view(36, -1), out=pixels)
        ordered = pixels.view(4, 4, out_channels, *part.shape[3:]).permute(3, 2, 4, 0, 5, 1)
        torch.add(ordered, shift, out=output[:, :, start : start + band])
    return output.view(num_samples, out_channels, 4 * rows, 4 * columns)


def _padded_to_tiles(x: Tensor) -> Tensor:
    """A map whose sides leave a multiple of 4 behind a kernel of 3."""
    missing = [-(x.shape[3] - 2) % 4, -(x.shape[2] - 2) % 4]
    return F.pad(x, [0, missing[0], 0, missing[1]]) if missing[0] + missing[1] > 0 else x


def _tiles(x: Tensor) -> Tensor:
    """Overlapping tiles ``(6, 6, C, N, rows, columns)`` of :func:`_padded_to_tiles`, a view."""
    return x.unfold(2, 6, 4).unfold(3, 6, 4).permute(4, 5, 1, 0, 2, 3)


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.conv2d` without padding, in float32 on the CPU; :class:`Conv3x3` adds the gradient.

    Args:
        x: :math:`(N, C, H, W)`, at least 3 pixels along each axis.
        weight: :math:`(O, C, 3, 3)`.
        bias: :math:`(O,)`.

    Shape:
        - output: :math:`(N, O, H - 2, W - 2)`.
    """
    output = _tiles_to_output(_tiles(_padded_to_tiles(x)), weight, bias, _TO_TILE)
    return output[:, :, : x.shape[2] - 2, : x.shape[3] - 2]


def winograd_weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    r"""Gradient of :func:`winograd_conv2d` by its weight, :math:`G^T [(A g A^T) \odot (B^T x B)] G` summed over tiles.

    Args:
        x: :math:`(N, C, H, W)`, the input.
        gradient: :math:`(N, O, H - 2, W - 2)`, that of the output.

    Shape:
        - output: :math:`(O, C, 3, 3)`.
    """
    tiles = _tiles(_padded_to_tiles(x))
    channels, num_samples, rows, columns = tiles.shape[2:]
    missing = [4 * columns - gradient.shape[3], 4 * rows - gradient.shape[2]]
    padded = F.pad(gradient, [0, missing[0], 0, missing[1]])
    outward = padded.unflatten(3, [columns, 4]).unflatten(2, [rows, 4]).permute(3, 5, 1, 0, 2, 4)
    out_channels = gradient.shape[1]
    products = x.new_zeros([36, out_channels, channels])
    band = _band(rows, 36 * max(channels, out_channels) * num_samples * columns)
    for start in range(0, rows, band):
        part = tiles[:, :, :, :, start : start + band].reshape(36, -1)
        of_tiles = (_TO_TILE @ part).view(36, channels, -1)
        part = outward[:, :, :, :, start : start + band].reshape(16, -1)
        of_outputs = (_TO_OUTPUT.t() @ part).view(36, out_channels, -1)
        products.baddbmm_(of_outputs, of_tiles.transpose(1, 2))
    return (_TO_WEIGHT.t() @ products.view(36, -1)).t().reshape(out_channels, channels, 3, 3)


class _Winograd(torch.autograd.Function):
    """:func:`winograd_conv2d` behind zero padding, with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return winograd_conv2d(F.pad(x, [padding] * 4), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            around = F.pad(gradient, [2 - ctx.padding] * 4)
            of_x = winograd_conv2d(around, weight.flip(2, 3).transpose(0, 1))
        if ctx.needs_input_grad[1]:
            of_weight = winograd_weight_gradient(F.pad(x, [ctx.padding] * 4), gradient)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(dim=[0, 2, 3])
        return of_x, of_weight, of_bias, None


def winograd_doubled_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Bilinear doubling followed by a convolution with padding 1, without ever holding the doubled map; no gradient.

    Args:
        x: :math:`(N, C, H, W)`, float32 on the CPU, even axes.
        weight: :math:`(O, C, 3, 3)`.
        bias: :math:`(O,)`.

    Shape:
        - output: :math:`(N, O, 2H, 2W)`.
    """
    padded = F.pad(x, [1, 1, 1, 1], mode="replicate")
    tiles = padded.unfold(2, 4, 2).unfold(3, 4, 2).permute(4, 5, 1, 0, 2, 3)
    output = _tiles_to_output(tiles, weight, bias, _TO_TILE_DOUBLED)
    # so far the doubled map goes on beyond its border, where padding has zeros
    for row, place in ((0, 0), (2, -1)):
        beyond = F.pad(_doubled_row(x[:, :, place]), [1, 1], mode="replicate")
        output[:, :, place] -= F.conv1d(beyond, weight[:, :, row])
        beyond = F.pad(_doubled_row(x[:, :, :, place]), [1, 1])
        output[:, :, :, place] -= F.conv1d(beyond, weight[:, :, :, row])
    return output


def one_channel_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution to one channel as one matrix product and a sum of its shifted rows; no gradient.

    Args:
        x: :math:`(N, C, H, W)`.
        weight: :math:`(1, C, K, L)`.

    Shape:
        - output: :math:`(N, 1, H - K + 1, W - L + 1)`.
    """
    rows, columns = weight.shape[2], weight.shape[3]
    height, width = x.shape[2] - rows + 1, x.shape[3] - columns + 1
    shifted = (weight[0].flatten(1).t() @ x.flatten(2)).view(-1, rows, columns, x.shape[2], x.shape[3])
    output = x.new_zeros([x.shape[0], height, width])
    for row in range(rows):
        for column in range(columns):
            output += shifted[:, row, column, row : row + height, column : column + width]
    return output.unsqueeze(1)


def _doubled_row(row: Tensor) -> Tensor:
    return F.interpolate(row, scale_factor=2.0, mode="linear", align_corners=False)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    if is_tracing() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


def _is_suited(x: Tensor, weight: Tensor) -> bool:
    narrow, wide = sorted(weight.shape[:2])
    return narrow >= MIN_CHANNELS and wide >= 2 * MIN_CHANNELS and _is_plain(x, weight)


def _winograd_pays() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


class Conv3x3(nn.Conv2d):
    """A :class:`torch.nn.Conv2d` of kernel 3 and stride 1 that takes Winograd's way where that is faster.

    That is on a CPU with AVX2 but not AVX-512, in float32, with at least 64 channels on one side and 128 on the other.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        padding: zeros around the input.
    """

    def __init__(self, in_channels: int, out_channels: int, padding: int = 0):
        super().__init__(in_channels, out_channels, 3, padding=padding)
        self.border = padding

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, C, H, W)``."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.conv2d(input, self.weight, self.bias, padding=self.border)
        else:
            if not (_winograd_pays() and _is_suited(input, self.weight)):
                return super().forward(input)
            convolved: Tensor = _Winograd.apply(input, self.weight, self.bias, self.border)
            return convolved


class DoubledConv3x3(nn.Module):
    """:class:`plugins.networks.BlurUp` and a :class:`Conv3x3` with padding 1, in one go where no gradient is wanted.

    Args:
        in_channels: of the input.
        out_channels: of the output.

    Shape:
        - x: :math:`(N, C, H, W)`.
        - output: :math:`(N, O, 2H, 2W)`.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv3x3(in_channels, out_channels, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Double and convolve ``x``."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))
        else:
            suited = not torch.is_grad_enabled() and _is_suited(x, self.conv.weight)
            if suited and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0:
                return winograd_doubled_conv2d(x, self.conv.weight, self.conv.bias)
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))


class HeadConv(nn.Conv2d):
    """A :class:`torch.nn.Conv2d` without padding; on the CPU, to one channel, without gradient it is a matrix product.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: side length of the kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(in_channels, out_channels, kernel_size)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, C, H, W)``."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.conv2d(input, self.weight, self.bias)
        else:
            wanted = self.weight.shape[0] == 1 and not torch.is_grad_enabled() and _is_plain(input, self.weight)
            return self._fast(input) if wanted else super().forward(input)

    def _fast(self, x: Tensor) -> Tensor:
        output = one_channel_conv2d(x, self.weight)
        return output if self.bias is None else output + self.bias
