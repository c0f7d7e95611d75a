"""A thin adapter over nnU-Net v2: train, select and predict from lists of scans, in one process or several."""

from plugins.nnunet.pipeline import NnUNetPrediction, NnUNetTraining
from plugins.nnunet.prediction import Ensemble, predict_scans
from plugins.nnunet.processes import InlineExecutor
from plugins.nnunet.sliding_window import SlidingWindow
from plugins.nnunet.trainer import TrainerSettings
from plugins.nnunet.training import NnUNetEngine
from plugins.nnunet.workers import exit_with_parent, process_pool

__all__ = [
    "Ensemble",
    "InlineExecutor",
    "NnUNetEngine",
    "NnUNetPrediction",
    "NnUNetTraining",
    "SlidingWindow",
    "TrainerSettings",
    "exit_with_parent",
    "predict_scans",
    "process_pool",
]
