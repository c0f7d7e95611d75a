"""A thin adapter over nnU-Net v2: train and select from lists of scans, in one process or several."""

from plugins.nnunet.pipeline import NnUNetTraining
from plugins.nnunet.processes import InlineExecutor
from plugins.nnunet.trainer import TrainerSettings
from plugins.nnunet.training import NnUNetEngine
from plugins.nnunet.workers import exit_with_parent, process_pool

__all__ = ["InlineExecutor", "NnUNetEngine", "NnUNetTraining", "TrainerSettings", "exit_with_parent", "process_pool"]
