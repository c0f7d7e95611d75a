"""Layers: normalisation by regions, anti-aliased resampling."""

from plugins.layers.fast_conv import Conv3x3, DoubledConv3x3, HeadConv
from plugins.layers.region_norm import RAIN, RegionNorm, Statistics, region_norm, register_norms
from plugins.layers.regions import Reduction, Regions, list_regions, one_hot_regions, over_batch
from plugins.layers.resample import BlurDown, BlurUp

__all__ = [
    "RAIN",
    "BlurDown",
    "BlurUp",
    "Conv3x3",
    "DoubledConv3x3",
    "HeadConv",
    "Reduction",
    "RegionNorm",
    "Regions",
    "Statistics",
    "list_regions",
    "one_hot_regions",
    "over_batch",
    "region_norm",
    "register_norms",
]
