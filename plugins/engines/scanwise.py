"""An evaluator that one bad scan does not stop."""

from __future__ import annotations

from typing import Any

from monai.engines import SupervisedEvaluator

from plugins.config.signatures import passes_on
from plugins.errors import sentence_of


@passes_on(SupervisedEvaluator)
class ScanwiseEvaluator(SupervisedEvaluator):
    """MONAI's evaluator for one scan a batch; one that fails in any step is noted, and the next is done.

    A batch with ``failed``, a sentence, is a scan that could not be read or prepared.

    Args:
        **settings: of :class:`monai.engines.SupervisedEvaluator`.

    Attributes:
        failed: case to a sentence, of the scans that failed.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.failed: dict[str, str] = {}

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict[str, Any]:
        case = str(batchdata["case"][0])
        if "failed" in batchdata:
            self.failed[case] = str(batchdata["failed"][0])
        else:
            try:
                output: dict[str, Any] = super()._iteration(engine, batchdata)
                return output
            except Exception as error:
                self.failed[case] = sentence_of(error, case)
        self.logger.error(f"left out: {self.failed[case]}")
        return {}
