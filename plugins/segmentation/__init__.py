"""Inference with trained networks by MONAI and torch alone: what nnU-Net would give, without nnU-Net."""

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
from plugins.segmentation.model import LABELS, Member, SegmentationModel, read_model
from plugins.segmentation.networks import FoldEnsemble
from plugins.segmentation.outputs import ScansToSegment, write_volumes
from plugins.segmentation.transforms import KeepLargestComponentsd, SaveLabelMapd, SaveProbabilitiesd, ZScored
from plugins.segmentation.window import SlidingWindow
from plugins.segmentation.windowing import write_windows

__all__ = [
    "LABELS",
    "CoarseScand",
    "EnsembleInferer",
    "FoldEnsemble",
    "HeatMapLoss",
    "KeepLargestComponentsd",
    "LocateWindowd",
    "Locator",
    "LocatorNetwork",
    "Member",
    "RandomContrastd",
    "RandomFieldd",
    "RandomMirrord",
    "SaveLabelMapd",
    "SaveLocator",
    "SaveProbabilitiesd",
    "ScansToSegment",
    "SegmentationModel",
    "SlidingWindow",
    "ZScored",
    "combine",
    "locate_scans",
    "read_locator",
    "read_model",
    "write_volumes",
    "write_windows",
]
