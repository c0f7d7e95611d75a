"""Inference with trained networks by MONAI and torch alone: what nnU-Net would give, without nnU-Net."""

from plugins.segmentation.anatomy import AnatomySettings, Choice, Component, choose, choose_components, find_components
from plugins.segmentation.inferer import EnsembleInferer, combine
from plugins.segmentation.locator import LocateWindowd, Locator, LocatorNetwork, locate_scans, read_locator
from plugins.segmentation.locator_training import (
    CoarseScand,
    HeatMapLoss,
    RandomContrastd,
    RandomFieldd,
    RandomMirrord,
    SaveLocator,
)
from plugins.segmentation.model import LABELS, EnsembleMember, SegmentationModel, read_model
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
from plugins.segmentation.windowing import write_windows

__all__ = [
    "LABELS",
    "AnatomySettings",
    "Choice",
    "CoarseScand",
    "Component",
    "EnsembleInferer",
    "EnsembleMember",
    "FoldEnsemble",
    "HeatMapLoss",
    "KeepLargestComponentsd",
    "LocateWindowd",
    "Locator",
    "LocatorNetwork",
    "PlausibleComponentsd",
    "RandomContrastd",
    "RandomFieldd",
    "RandomMirrord",
    "SaveLabelMapd",
    "SaveLocator",
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
    "locate_scans",
    "plausibility",
    "read_locator",
    "read_model",
    "write_volumes",
    "write_windows",
]
