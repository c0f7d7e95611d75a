"""What the translators are made of, in the order of the paper (Kang et al., Scientific Reports 14:27883, 2024).

=============== ==================================== ==========================================================
equation        what                                 module
=============== ==================================== ==========================================================
eq. (1)-(3)     regions, region normalisation (RN)   ``regions``, ``region_norm``
eq. (4)-(7)     RN with a restyled VS (RAIN)         ``region_norm``
eq. (8)         SegDecoder                           ``generator``: ``segment``; its loss is torch's cross-entropy
eq. (9)         attention, entropy, query selection  ``queries``
eq. (10)        contrastive terms; the weighted sum  ``contrastive``; ``plugins.engines.contrastive`` sums
=============== ==================================== ==========================================================

``resample`` and ``fast_conv`` are layers of the generator, ``projector`` stands between its features and (9). ``codes``
are not the paper's: the site, or the style of an image, that a translation is to have.
"""

from plugins.networks.codes import CodeAffine, SiteCode, StyleCode
from plugins.networks.contrastive import ContrastiveLoss, patch_nce
from plugins.networks.discriminator import PatchDiscriminator
from plugins.networks.fast_conv import Conv3x3, DoubledConv3x3, HeadConv
from plugins.networks.generator import ResnetGenerator
from plugins.networks.initialisation import initialise
from plugins.networks.projector import FeatureProjector
from plugins.networks.queries import AttentionQueries, RandomQueries, attention_entropy
from plugins.networks.region_norm import RAIN, RegionNorm, Statistics, region_norm, register_norms
from plugins.networks.regions import Reduction, Regions, list_regions, one_hot_regions, over_batch
from plugins.networks.resample import BlurDown, BlurUp

__all__ = [
    "RAIN",
    "AttentionQueries",
    "BlurDown",
    "BlurUp",
    "CodeAffine",
    "ContrastiveLoss",
    "Conv3x3",
    "DoubledConv3x3",
    "FeatureProjector",
    "HeadConv",
    "PatchDiscriminator",
    "RandomQueries",
    "Reduction",
    "RegionNorm",
    "Regions",
    "ResnetGenerator",
    "SiteCode",
    "Statistics",
    "StyleCode",
    "attention_entropy",
    "initialise",
    "list_regions",
    "one_hot_regions",
    "over_batch",
    "patch_nce",
    "region_norm",
    "register_norms",
]
