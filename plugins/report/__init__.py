"""Pages to look at: of a run, a study of several, a folder of label maps. One file each, the worst scan first."""

from plugins.report.inference import InferenceReport, write_inference_report
from plugins.report.live import LivePage
from plugins.report.run import write_report
from plugins.report.study import write_study_report

__all__ = ["InferenceReport", "LivePage", "write_inference_report", "write_report", "write_study_report"]
