"""PatchNCE and the contrastive loss over several layers of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F


def patch_nce(queries: Tensor, keys: Tensor, temperature: float = 0.07) -> Tensor:
    r"""Cross-entropy of finding each query's own key among all keys of the same image.

    .. math::
        -\frac{1}{NQ} \sum_{n,i} \log \frac{\exp(q_{ni} \cdot k_{ni} / \tau)}{\sum_j \exp(q_{ni} \cdot k_{nj} / \tau)}

    The keys get no gradient.

    Source: Park et al., ECCV 2020, eq. (3); in Kang et al. (2024) the terms :math:`L_{con}` of eq. (10).

    Args:
        queries: unit vectors of the translation, :math:`(N, Q, D)`.
        keys: unit vectors of the source at the same positions, :math:`(N, Q, D)`.
        temperature: :math:`\tau`.

    Shape:
        - output: a scalar, at least float32.
    """
    with torch.autocast(queries.device.type, enabled=False):
        dtype = torch.promote_types(queries.dtype, torch.float32)
        logits = queries.to(dtype) @ keys.detach().to(dtype).transpose(1, 2) / temperature
        own = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[0], -1)
        return F.cross_entropy(logits.flatten(0, 1), own.flatten())


class ContrastiveLoss(nn.Module):
    """PatchNCE averaged over layers of features, each with its own way of selecting queries.

    Args:
        selections: one for each layer, e.g. :class:`RandomQueries` or :class:`AttentionQueries`; called with the
            source's features they return the route that both images take.
        temperature: of :func:`patch_nce`.
    """

    def __init__(self, selections: Sequence[nn.Module], temperature: PositiveFloat = 0.07):
        super().__init__()
        self.selections = nn.ModuleList(selections)
        self.temperature = temperature

    def forward(
        self, source: Sequence[Tensor], translated: Sequence[Tensor], project: Callable[[list[Tensor]], list[Tensor]]
    ) -> Tensor:
        """Loss between the features of a source image and those of its translation.

        Args:
            source: features of each layer, :math:`(N, C_i, ...)`.
            translated: the same of the translation.
            project: takes one :math:`(N, Q, C_i)` for each layer to unit vectors, e.g. a ``FeatureProjector``.

        Raises:
            ValueError: if the numbers of layers and selections differ.
        """
        if not len(source) == len(translated) == len(self.selections):
            raise ValueError(
                f"There are {len(self.selections)} selections for {len(source)} and {len(translated)} layers."
            )
        routes = [select(features) for select, features in zip(self.selections, source, strict=True)]
        keys = project([route(features) for route, features in zip(routes, source, strict=True)])
        queries = project([route(features) for route, features in zip(routes, translated, strict=True)])
        losses = [patch_nce(q, k, self.temperature) for q, k in zip(queries, keys, strict=True)]
        return torch.stack(losses).mean()
