"""Overlap and surface distances per case, comparison of methods, tables, pictures."""

from plugins.evaluation.compare import compare_rounds, results_table, show_metrics
from plugins.evaluation.evaluate import evaluate_cases, evaluate_folder, evaluate_segmentation, summarise
from plugins.evaluation.fidelity import evaluate_translations
from plugins.evaluation.methods import compare_methods
from plugins.evaluation.metrics import case_metrics
from plugins.evaluation.pictures import translation_picture
from plugins.evaluation.ranking import places_of, ranks_of_cases
from plugins.evaluation.statistics import bootstrap_interval, holm, paired_t_test, smallest_difference, wilcoxon_test
from plugins.evaluation.tables import show_comparison
from plugins.evaluation.translation import SliceSegmenter, TranslationQuality, slice_jump, structure_contrast

__all__ = [
    "SliceSegmenter",
    "TranslationQuality",
    "bootstrap_interval",
    "case_metrics",
    "compare_methods",
    "compare_rounds",
    "evaluate_cases",
    "evaluate_folder",
    "evaluate_segmentation",
    "evaluate_translations",
    "holm",
    "paired_t_test",
    "places_of",
    "ranks_of_cases",
    "results_table",
    "show_comparison",
    "show_metrics",
    "slice_jump",
    "smallest_difference",
    "structure_contrast",
    "summarise",
    "translation_picture",
    "wilcoxon_test",
]
