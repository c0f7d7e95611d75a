"""Dice and ASSD per case, tables, pictures and the report of a run."""

from plugins.evaluation.compare import compare_rounds, paired_t_test, results_table, show_metrics
from plugins.evaluation.evaluate import evaluate_folder, summarise
from plugins.evaluation.fidelity import evaluate_translations
from plugins.evaluation.metrics import case_metrics
from plugins.evaluation.pictures import case_picture, translation_picture
from plugins.evaluation.translation import SliceSegmenter, TranslationQuality, slice_jump, structure_contrast

__all__ = [
    "SliceSegmenter",
    "TranslationQuality",
    "case_metrics",
    "case_picture",
    "compare_rounds",
    "evaluate_folder",
    "evaluate_translations",
    "paired_t_test",
    "results_table",
    "show_metrics",
    "slice_jump",
    "structure_contrast",
    "summarise",
    "translation_picture",
]
