"""The folder of a stage, and ``stage.json`` in it: what it was made from, and what it holds when it is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict

from plugins.files import PART, write_json
from plugins.locks import LOCK
from plugins.progress import FILE_NAME
from plugins.report.facts import versions
from plugins.state import StrPath, read_state
from plugins.store import Mark, is_as_marked, mark_of

RECORD, LOG, OVERRIDES, TRACKING = "stage.json", "log.txt", "overrides.json", "tracking.json"
LOCKS = ".locks"  # folder of a run; a stage's own folder moves when it is complete
REMAKE = "Remove its folder, and give the command again to make it anew"
_NO_RESULTS = {RECORD, LOG, OVERRIDES, TRACKING, LOCK, FILE_NAME}
_WORKSHOPS = {"cache", "nnunet"}  # folders that nothing reads any more once a stage is complete


class StageRecord(TypedDict):
    """``stage.json``; ``results``, by path in the folder, and ``peak_mib`` are added when the stage is complete.

    ``versions`` are those of the packages that worked on it last.
    """

    fingerprint: str
    command: list[str]
    seconds: float
    versions: NotRequired[dict[str, str]]
    peak_mib: NotRequired[float | None]
    results: NotRequired[dict[str, Mark]]


def complete_folder(name: str, run_dir: StrPath) -> Path:
    """Where a stage lies when it is complete."""
    return Path(run_dir, name)


def working_folder(name: str, run_dir: StrPath) -> Path:
    """Where a stage lies while it is being made."""
    return Path(run_dir, f"{name}.partial")


def read_record(folder: Path) -> StageRecord | None:
    """The record in a stage's folder, ``None`` if there is none.

    Raises:
        InputError: if it is damaged.
    """
    if not os.path.lexists(folder / RECORD):
        return None
    return read_state(folder / RECORD, StageRecord, f"Restore it, or remove {folder} to make this stage anew")


def write_record(
    folder: Path,
    fingerprint: str,
    command: Sequence[str],
    seconds: float,
    results: dict[str, Mark] | None = None,
    peak_mib: float | None = None,
) -> None:
    """Write the record of a stage; with ``results`` it is complete."""
    record: StageRecord = {
        "fingerprint": fingerprint,
        "command": [*command],
        "seconds": seconds,
        "versions": versions(),
    }
    if results is not None:
        record |= {"peak_mib": peak_mib and round(peak_mib, 1), "results": results}
    write_json(folder / RECORD, record)


def recorded_fingerprint(folder: Path) -> str | None:
    """The fingerprint in a stage's folder, ``None`` if there is none.

    Raises:
        InputError: if its record is damaged.
    """
    record = read_record(folder)
    return None if record is None else record["fingerprint"]


def results_in(folder: Path) -> dict[str, Mark]:
    """All results in a stage's folder, by path within it."""
    return {path.relative_to(folder).as_posix(): mark_of(path) for path in _results(folder)}


def lost_results(folder: Path) -> list[str]:
    """Results of a complete stage that are gone or not as they were written, by path in its folder."""
    record = read_record(folder)
    known = {} if record is None else record.get("results", {})
    return [name for name, result in known.items() if not is_as_marked(folder / name, result)]


def _results(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _WORKSHOPS)
        for name in sorted(files):
            path = Path(place, name)
            passing = name in _NO_RESULTS or name.startswith("events.out.") or PART.match(name)
            if not passing and not path.is_symlink():
                yield path
