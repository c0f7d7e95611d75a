"""Stages, their fingerprints, their execution, and the driver of domain adaptation."""

from plugins.workflow.driver import UdaWorkflow
from plugins.workflow.execution import is_complete, run_stage
from plugins.workflow.graph import check_stages, run_stages, run_together
from plugins.workflow.plan import StagePlan
from plugins.workflow.segment import RunInference
from plugins.workflow.stage import Stage, fingerprint

__all__ = [
    "RunInference",
    "Stage",
    "StagePlan",
    "UdaWorkflow",
    "check_stages",
    "fingerprint",
    "is_complete",
    "run_stage",
    "run_stages",
    "run_together",
]
