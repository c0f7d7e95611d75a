"""Which scans of a list still have to be done, and one that fails does not stop the others."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import Dataset

from plugins.data.checks import check_scan
from plugins.errors import InputError, sentence_of
from plugins.locks import hold
from plugins.progress import Progress
from plugins.store import Store, check_output_dir, digest_of

StrPath = str | os.PathLike[str]
FAILED = "failed"
_logger = logging.getLogger(__name__)


class ScansToDo:
    """Those scans of a list that can be used and have no output that was made from the same, see :mod:`plugins.store`.

    The output folder is held until the process ends.

    Args:
        items: ``{"case", "image", optional "label"}`` each.
        output_dir: of the outputs.
        weights: file of the network's weights.
        settings: other values on which an output depends.
        name: of an output, with ``{case}``.
        done: what happens to a scan, for messages.
        others: further files on which an output depends; those that are not there are left out.

    Attributes:
        all: the scans, each with ``made_from``, see :func:`plugins.store.digest_of`.
        items: those of them that are left to do.
        refused: a sentence for each scan that cannot be done.

    Raises:
        InputError: if scans lie in the output folder, nothing can be written there, or another run is at work there.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        output_dir: StrPath,
        weights: StrPath,
        settings: Any = None,
        name: str = "{case}.nii.gz",
        done: str = "translated",
        others: Sequence[StrPath] = (),
    ):
        check_output_dir(output_dir, [item["image"] for item in items])
        hold(output_dir)
        self.store, self._done, self._name = Store(output_dir), done, name
        self.all: list[dict[str, Any]] = [{**item, "case": str(item["case"])} for item in items]
        self.items: list[dict[str, Any]] = []
        self.refused: list[str] = []
        shared = [path for path in (weights, *others) if Path(path).exists()]
        with Progress(total=len(self.all), description="checking scans") as progress:
            for item in self.all:
                try:
                    files = [item[key] for key in ("image", "label") if key in item]
                    item["made_from"] = digest_of([*files, *shared], settings)
                    if not self.store.is_current(self.output(item), item["made_from"]):
                        check_scan(item)
                        self.items.append(item)
                except InputError as error:  # one bad scan must not cost the others
                    self.refused.append(str(error))
                    _logger.error(f"left out: {error}")
                progress.advance()
        before = len(self.all) - len(self.items) - len(self.refused)
        if before:
            _logger.info(f"{before} of {len(self.all)} scans are {done} already in {output_dir}.")

    def output(self, item: Mapping[str, Any]) -> Path:
        """Where the output of a scan lies."""
        return self.store.folder / self._name.format(case=item["case"])

    def finish(self, failed: Sequence[str] = ()) -> None:
        """Say which scans were left out.

        Args:
            failed: a sentence for each scan that failed since.

        Raises:
            InputError: if there are any.
        """
        sentences = [*self.refused, *failed]
        if sentences:
            counts = f"{len(sentences)} of {len(self.all)} scans were not {self._done}"
            raise InputError(f"{counts}: {' '.join(sentences)}")


class ScanDataset(Dataset):
    """MONAI's ``Dataset``; a scan whose transform fails becomes ``{"case", "failed": sentence}``."""

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:
            case = self.data[index]["case"]
            return {"case": case, FAILED: sentence_of(error, case)}
