"""Which positions of a feature map enter the contrastive loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Route = Callable[[Tensor], Tensor]
"""Takes features ``(N, C, ...)`` to the vectors of the selected queries ``(N, Q, C)``."""


class RandomQueries(nn.Module):
    """The same random positions in every sample and in both images of a pair.

    Source: Park et al., Contrastive learning for unpaired image-to-image translation, ECCV 2020.

    Args:
        num_queries: positions :math:`Q`; all of them where the map has fewer.
    """

    def __init__(self, num_queries: int = 256):
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
            chunks.append(-(torch.softmax(scores, dim=2) * torch.log_softmax(scores, dim=2)).sum(dim=2))
        return torch.cat(chunks, dim=1)


class AttentionQueries(nn.Module):
    r"""QS-Attn with global attention: the rows of smallest entropy route the features of both images.

    The rows are taken from the source's attention matrix over all positions; each query is the row's weighted sum of
    features. Only the selected rows are ever held with their gradient.

    Source: Kang et al., Scientific Reports 14:27883 (2024), eq. (9), after Hu et al., CVPR 2022.

    Args:
        num_queries: rows :math:`Q`; all of them where the map has fewer positions.
        rows_per_chunk: see :func:`attention_entropy`.
    """

    def __init__(self, num_queries: int = 256, rows_per_chunk: int = 512):
        super().__init__()
        self.num_queries, self.rows_per_chunk = num_queries, rows_per_chunk

    def rows(self, source: Tensor) -> Tensor:
        """Indices ``(N, Q)`` of the rows of smallest entropy, smallest first; ``source`` is ``(N, C, ...)``."""
        entropy = attention_entropy(source.flatten(2).transpose(1, 2), self.rows_per_chunk)
        return entropy.argsort(dim=1, stable=True)[:, : self.num_queries]

    def forward(self, source: Tensor) -> Route:
        """Select rows by the features of the source: ``(N, C, ...)``."""
        rows = self.rows(source)
        with torch.autocast(source.device.type, enabled=False):
            flat = source.flatten(2).to(torch.promote_types(source.dtype, torch.float32))
            selected = flat.gather(2, rows.unsqueeze(1).expand(-1, flat.shape[1], -1))
            attention = torch.softmax(selected.transpose(1, 2) @ flat, dim=2)

        def route(features: Tensor) -> Tensor:
            return attention.to(features.dtype) @ features.flatten(2).transpose(1, 2)

        return route
