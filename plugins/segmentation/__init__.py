"""Inference with trained networks by MONAI and torch alone: what nnU-Net would give, without nnU-Net."""

from plugins.segmentation.anatomy import AnatomySettings, Choice, Component, choose, choose_components, find_components
from plugins.segmentation.inferer import EnsembleInferer, combine
from plugins.segmentation.model import LABELS, Member, SegmentationModel, read_model
from plugins.segmentation.networks import FoldEnsemble
from plugins.segmentation.outputs import ScansToSegment, write_volumes
from plugins.segmentation.plausibility import SourceStatistics, plausibility
from plugins.segmentation.transforms import (
    KeepLargestComponentsd,
    PlausibleComponentsd,
    SaveLabelMapd,
    SaveProbabilitiesd,
    ZScored,
)
from plugins.segmentation.window import SlidingWindow

__all__ = [
    "LABELS",
    "AnatomySettings",
    "Choice",
    "Component",
    "EnsembleInferer",
    "FoldEnsemble",
    "KeepLargestComponentsd",
    "Member",
    "PlausibleComponentsd",
    "SaveLabelMapd",
    "SaveProbabilitiesd",
    "ScansToSegment",
    "SegmentationModel",
    "SlidingWindow",
    "SourceStatistics",
    "ZScored",
    "choose",
    "choose_components",
    "combine",
    "find_components",
    "plausibility",
    "read_model",
    "write_volumes",
]
