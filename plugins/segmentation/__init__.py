"""Inference with trained networks by MONAI and torch alone: what nnU-Net would give, without nnU-Net."""

from plugins.segmentation.inferer import EnsembleInferer, combine
from plugins.segmentation.model import LABELS, Member, SegmentationModel, read_model
from plugins.segmentation.networks import FoldEnsemble
from plugins.segmentation.outputs import ScansToSegment, write_volumes
from plugins.segmentation.transforms import KeepLargestComponentsd, SaveLabelMapd, SaveProbabilitiesd, ZScored
from plugins.segmentation.window import SlidingWindow

__all__ = [
    "LABELS",
    "EnsembleInferer",
    "FoldEnsemble",
    "KeepLargestComponentsd",
    "Member",
    "SaveLabelMapd",
    "SaveProbabilitiesd",
    "ScansToSegment",
    "SegmentationModel",
    "SlidingWindow",
    "ZScored",
    "combine",
    "read_model",
    "write_volumes",
]
