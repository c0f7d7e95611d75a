"""Losses of contrastive translation."""

from plugins.losses.contrastive import ContrastiveLoss, patch_nce
from plugins.losses.queries import AttentionQueries, RandomQueries, attention_entropy

__all__ = ["AttentionQueries", "ContrastiveLoss", "RandomQueries", "attention_entropy", "patch_nce"]
