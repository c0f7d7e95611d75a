"""Progress of long work: a bar on the terminal, and a file for whoever supervises the process."""

from __future__ import annotations

import os
import time
from types import TracebackType

from tqdm import tqdm

from plugins.files import write_json
from plugins.interrupts import check

FILE_NAME = "progress.json"


class Progress:
    """A tqdm bar (on terminals only) that also keeps ``<folder>/progress.json`` up to date.

    The file holds ``description``, ``done``, ``total``, ``seconds_left`` (``null`` before the first step) and ``shown``
    (the latest values); it is written at most once a second.

    Args:
        total: number of steps of the whole work.
        description: shown before the bar.
        folder: where ``progress.json`` goes; none is written if omitted.
        initial: steps that an earlier process has done.

    Example:
        >>> with Progress(total=2, description="slices") as progress:
        ...     for _ in range(2):
        ...         progress.advance(loss=0.5)
    """

    def __init__(self, total: int, description: str, folder: str | os.PathLike[str] | None = None, initial: int = 0):
        self._bar = tqdm(total=total, desc=description, initial=initial, disable=None, dynamic_ncols=True)
        self._folder = folder
        self._done, self._total, self._description = initial, total, description
        self._initial, self._start = initial, time.monotonic()
        self._shown: dict[str, float | str] = {}
        self._written = 0.0
        self._write()

    def advance(self, steps: int = 1, **shown: float | str) -> None:
        """Count ``steps`` as done and show the latest values.

        Raises:
            KeyboardInterrupt: if Ctrl-C was pressed, and something has swallowed it.
        """
        check()
        self._done += steps
        self._shown.update(shown)
        if shown:
            self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(steps)
        if time.monotonic() - self._written >= 1 or self._done >= self._total:
            self._write()

    @property
    def total(self) -> int:
        """Number of steps of the whole work; it may change."""
        return self._total

    @total.setter
    def total(self, steps: int) -> None:
        self._total = self._bar.total = steps

    @property
    def seconds_left(self) -> int | None:
        """Estimate from the steps of this process; ``None`` before the first."""
        steps = self._done - self._initial
        return round((time.monotonic() - self._start) / steps * (self._total - self._done)) if steps > 0 else None

    def _write(self) -> None:
        self._written = time.monotonic()
        if self._folder is not None:
            state = {
                "description": self._description,
                "done": self._done,
                "total": self._total,
                "seconds_left": self.seconds_left,
                "shown": self._shown,
            }
            write_json(os.path.join(self._folder, FILE_NAME), state)

    def close(self) -> None:
        """Close the bar and write the file a last time."""
        self._write()
        self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
