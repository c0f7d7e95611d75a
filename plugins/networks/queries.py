"""Which positions of a feature map enter the contrastive loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

Attention = Literal["global", "local", "local_global"]

Route = Callable[[Tensor], Tensor]
"""Takes features ``(N, C, ...)`` to the vectors of the selected queries ``(N, Q, C)``."""


class RandomQueries(nn.Module):
    """The same random positions in every sample and in both images of a pair.

    Source: Park et al., Contrastive learning for unpaired image-to-image translation, ECCV 2020.

    Args:
        num_queries: positions :math:`Q`; all of them where the map has fewer.
    """

    def __init__(self, num_queries: PositiveInt = 256):
        super().__init__()
        self.num_queries = num_queries

    def forward(self, source: Tensor) -> Route:
        """Draw positions for maps of the size of ``source``: ``(N, C, ...)``."""
        num_positions = source.shape[2:].numel()
        positions = torch.randperm(num_positions)[: self.num_queries].to(source.device)

        def route(features: Tensor) -> Tensor:
            return features.flatten(2)[:, :, positions].transpose(1, 2)

        return route


def attention_entropy(features: Tensor, rows_per_chunk: int = 512) -> Tensor:
    r"""Entropy of each row of the attention matrix :math:`A = \mathrm{softmax}(F F^T)`, a few rows at a time.

    .. math::
        H(i) = -\sum_{j=1}^{HW} A(i, j) \log A(i, j)

    Source: Kang et al., Scientific Reports 14:27883 (2024), eq. (9), after Hu et al., CVPR 2022.

    Args:
        features: :math:`(N, HW, C)`.
        rows_per_chunk: rows of :math:`A` held at once for each sample.

    Shape:
        - output: :math:`(N, HW)`, at least float32, without gradient.
    """
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        keys = features.transpose(1, 2)
        chunks = []
        for rows in features.split(rows_per_chunk, dim=1):
            scores = rows @ keys
            attention = torch.softmax(scores, dim=2)
            scores -= scores.amax(dim=2, keepdim=True)  # now log A but for the log of a row's largest weight
            chunks.append(-attention.amax(dim=2).log() - torch.linalg.vecdot(attention, scores))
        return torch.cat(chunks, dim=1)


def window_positions(size: Sequence[int], window: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Flat positions of the window around every position, and which of them lie inside the map.

    Args:
        size: of the map, :math:`(H, W)` or :math:`(H, W, D)`.
        window: odd side length of the window.
        device: of the results.

    Returns:
        Positions, clamped to the map, and their validity: both :math:`(HW, window^d)`.
    """
    reach = torch.arange(window, device=device) - window // 2
    offsets = torch.cartesian_prod(*[reach] * len(size)).reshape(-1, len(size))
    axes = [torch.arange(length, device=device) for length in size]
    centres = torch.cartesian_prod(*axes).reshape(-1, len(size))
    places = centres[:, None] + offsets[None]
    limits = torch.tensor(size, device=device)
    inside = ((places >= 0) & (places < limits)).all(dim=2)
    places = torch.minimum(places.clamp_min(0), limits - 1)
    flat = places[..., 0]
    for axis in range(1, len(size)):
        flat = flat * size[axis] + places[..., axis]
    return flat, inside


def local_attention(flat: Tensor, rows: Tensor, positions: Tensor, inside: Tensor) -> Tensor:
    """Rows of the attention matrix whose keys are the positions of a window; places outside the map get 0.

    Args:
        flat: features :math:`(N, C, HW)`.
        rows: positions :math:`(N, Q)` of the queries.
        positions: windows of all positions, :math:`(HW, K)`.
        inside: which of their places lie inside the map, :math:`(HW, K)`.

    Shape:
        - output: :math:`(N, Q, K)`.
    """
    queries = gather_positions(flat, rows)
    keys = gather_positions(flat, positions[rows].flatten(1)).unflatten(1, (rows.shape[1], -1))
    scores = torch.einsum("nqc,nqkc->nqk", queries, keys)
    return torch.softmax(scores.masked_fill(~inside[rows], -torch.inf), dim=2)


def gather_positions(flat: Tensor, positions: Tensor) -> Tensor:
    """Vectors :math:`(N, P, C)` of the features :math:`(N, C, HW)` at the positions :math:`(N, P)`."""
    return flat.gather(2, positions.unsqueeze(1).expand(-1, flat.shape[1], -1)).transpose(1, 2)


class AttentionQueries(nn.Module):
    r"""QS-Attn: the rows of smallest entropy of the source's attention matrix route the features of both images.

    Each query is the row's weighted sum of features. Only the selected rows are ever held with their gradient.

    - ``"global"``: rows over all positions are selected by their entropy, and route the features.
    - ``"local"``: the same with rows over the window around each position.
    - ``"local_global"``: rows over the window select positions; rows of these over all positions route.

    Windows end at the border of the map.

    Source: Kang et al., Scientific Reports 14:27883 (2024), eq. (9) (global), after Hu et al., CVPR 2022 (all three).

    Args:
        num_queries: rows :math:`Q`; all of them where the map has fewer positions.
        attention: ``"global"``, ``"local"`` or ``"local_global"``.
        window: odd side length of the local window.
        rows_per_chunk: rows of the attention matrix held at once for each sample, see :func:`attention_entropy`.

    Raises:
        ValueError: if ``attention`` is unknown or ``window`` is even.
    """

    def __init__(
        self,
        num_queries: PositiveInt = 256,
        attention: Attention = "global",
        window: int = 7,
        rows_per_chunk: int = 512,
    ):
        super().__init__()
        if attention not in get_args(Attention):
            raise ValueError(f"Attention must be one of {', '.join(get_args(Attention))}, not {attention!r}.")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"The window must be odd, not {window}.")
        self.num_queries, self.attention, self.window = num_queries, attention, window
        self.rows_per_chunk = rows_per_chunk

    def entropy(self, source: Tensor) -> Tensor:
        """Entropy ``(N, HW)`` by which rows are selected; ``source`` is ``(N, C, ...)``."""
        flat = source.flatten(2)
        if self.attention == "global":
            return attention_entropy(flat.transpose(1, 2), self.rows_per_chunk)
        with torch.no_grad(), torch.autocast(source.device.type, enabled=False):
            flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
            positions, inside = window_positions(source.shape[2:], self.window, source.device)
            chunks = []
            for rows in torch.arange(flat.shape[2], device=flat.device).split(self.rows_per_chunk):
                attention = local_attention(flat, rows.expand(flat.shape[0], -1), positions, inside)
                chunks.append(-torch.xlogy(attention, attention).sum(dim=2))
            return torch.cat(chunks, dim=1)

    def rows(self, source: Tensor) -> Tensor:
        """Indices ``(N, Q)`` of the rows of smallest entropy, smallest first; ``source`` is ``(N, C, ...)``."""
        return self.entropy(source).argsort(dim=1, stable=True)[:, : self.num_queries]

    def forward(self, source: Tensor) -> Route:
        """Select rows by the features of the source: ``(N, C, ...)``."""
        rows = self.rows(source)
        with torch.autocast(source.device.type, enabled=False):
            flat = source.flatten(2).to(torch.promote_types(source.dtype, torch.float32))
            if self.attention == "local":
                return self._local_route(flat, rows, source.shape[2:])
            attention = torch.softmax(gather_positions(flat, rows) @ flat, dim=2)

        def route(features: Tensor) -> Tensor:
            return attention.to(features.dtype) @ features.flatten(2).transpose(1, 2)

        return route

    def _local_route(self, flat: Tensor, rows: Tensor, size: Sequence[int]) -> Route:
        positions, inside = window_positions(size, self.window, flat.device)
        attention = local_attention(flat, rows, positions, inside)
        places = positions[rows].flatten(1)

        def route(features: Tensor) -> Tensor:
            values = gather_positions(features.flatten(2), places).unflatten(1, (rows.shape[1], -1))
            return torch.einsum("nqk,nqkc->nqc", attention.to(features.dtype), values)

        return route
