"""Stages, their fingerprints, their execution, and the driver of domain adaptation."""

from plugins.workflow.adaptation import Adaptation
from plugins.workflow.driver import UdaWorkflow, run_folder
from plugins.workflow.execution import is_complete, run_stage
from plugins.workflow.executors import dask_executor, submitit_executor
from plugins.workflow.graph import check_stages, run_stages, run_together
from plugins.workflow.segment import RunInference
from plugins.workflow.stage import Stage, fingerprint
from plugins.workflow.study import Study

__all__ = [
    "Adaptation",
    "RunInference",
    "Stage",
    "Study",
    "UdaWorkflow",
    "check_stages",
    "dask_executor",
    "fingerprint",
    "is_complete",
    "run_folder",
    "run_stage",
    "run_stages",
    "run_together",
    "submitit_executor",
]
