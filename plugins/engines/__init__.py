"""Trainers and their handlers."""

from plugins.engines.augmentation import DiscriminatorAugmentation
from plugins.engines.budget import TimeBudget
from plugins.engines.contrastive import ContrastiveTranslationTrainer
from plugins.engines.cyclegan import CycleGANTrainer
from plugins.engines.handlers import BeginFrom, MovingAverage, Resume, SaveBest, SaveWeights, SeedEpochs, ShowProgress
from plugins.engines.image_pool import ImagePool
from plugins.engines.record import TrainingRecord
from plugins.engines.scanwise import ScanwiseEvaluator
from plugins.engines.schedules import constant_then_linear
from plugins.engines.translation import TranslationTrainer

__all__ = [
    "BeginFrom",
    "ContrastiveTranslationTrainer",
    "CycleGANTrainer",
    "DiscriminatorAugmentation",
    "ImagePool",
    "MovingAverage",
    "Resume",
    "SaveBest",
    "SaveWeights",
    "ScanwiseEvaluator",
    "SeedEpochs",
    "ShowProgress",
    "TimeBudget",
    "TrainingRecord",
    "TranslationTrainer",
    "constant_then_linear",
]
