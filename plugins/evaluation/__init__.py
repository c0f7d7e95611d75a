"""Dice and ASSD per case, tables, pictures and the report of a run."""

from plugins.evaluation.compare import compare_rounds, paired_t_test, results_table
from plugins.evaluation.evaluate import evaluate_folder, summarise
from plugins.evaluation.metrics import case_metrics
from plugins.evaluation.pictures import case_picture, translation_picture
from plugins.evaluation.report import write_report

__all__ = [
    "case_metrics",
    "case_picture",
    "compare_rounds",
    "evaluate_folder",
    "paired_t_test",
    "results_table",
    "summarise",
    "translation_picture",
    "write_report",
]
