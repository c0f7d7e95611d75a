"""Ranks of methods, as the CrossMoDA challenge forms them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from plugins.evaluation.metrics import CASE_MEASURES


def ranks_of_cases(values: Mapping[tuple[str, str], NDArray[np.float64]]) -> NDArray[np.float64]:
    r"""The rank of every method in every case: the mean of its ranks in all structures and measures.

    .. math::
        r_{mc} = \frac{1}{|K|} \sum_{k \in K} \operatorname{rank}_m(v_{mck})

    where :math:`K` are the pairs of structure and measure, and rank 1 is the best. Equal values share the mean of their
    ranks. So all methods that found nothing share the last ranks. A method's score is the mean over cases (rank, then
    aggregate), as in CrossMoDA 2022 with Dice and ASSD of both structures: one rank for each method, case and metric,
    and then their mean.

    Source: Dorent et al., CrossMoDA 2021 challenge, Medical Image Analysis 83, 102628 (2023).

    Args:
        values: structure and measure to the values of :math:`M` methods in :math:`N` cases; NaN for all methods where a
            structure is undefined.

    Shape:
        - each of values: :math:`(M, N)`.
        - output: :math:`(M, N)`; NaN for a case without any value.

    Example:
        >>> ranks_of_cases({("vs", "dice"): np.array([[0.9, 0.5], [0.8, 0.5]])})
        array([[1. , 1.5],
               [2. , 1.5]])
    """
    ranks = []
    for (_, measure), table in values.items():
        badness = -table if CASE_MEASURES[measure].larger_is_better else table
        ranks.append(np.where(np.isnan(table), np.nan, rankdata(badness, axis=0)))
    known = np.sum(~np.isnan(ranks), axis=0)
    return np.where(known > 0, np.nansum(ranks, axis=0) / np.maximum(known, 1), np.nan)


def places_of(scores: NDArray[np.float64]) -> list[int]:
    """The place of every method by its mean rank; equal scores share the better place.

    Example:
        >>> places_of(np.array([2.5, 1.0, 2.5]))
        [2, 1, 2]
    """
    return [int(place) for place in rankdata(np.round(scores, 9), method="min")]
