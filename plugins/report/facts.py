"""What was run: versions, machine, and every stage with its settings, hashes, time and memory."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import plugins
from plugins.data import read_datalist
from plugins.files import read_json

StrPath = str | os.PathLike[str]
Points = list[tuple[float, float]]

RECORD, OVERRIDES = "stage.json", "overrides.json"
PACKAGES = ("monai", "torch", "numpy", "nibabel", "scipy", "nnunetv2", "pytorch-ignite")
EVENTS = "events.out.tfevents.*"
_ALL = {"scalars": 0}


def versions() -> dict[str, str]:
    """This package, Python, and what the numbers may depend on."""
    found = {"tanq-bundles": plugins.__version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The computer that the report is made on."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "CPU cores": os.cpu_count(),
        "memory GiB": _memory_gib(),
        "GPUs": ", ".join(gpus) or "none",
    }


def head(kind: str, title: str, name: str) -> dict[str, Any]:
    """What every report begins with: ``kind``, ``title``, ``name`` of what it is about, ``versions``, ``machine``."""
    return {"kind": kind, "title": title, "name": name, "versions": versions(), "machine": machine()}


def stages_in(run_dir: StrPath, names: Collection[str] | None = None) -> list[dict[str, Any]]:
    """The stages of a run, in the order in which they began to be complete.

    Args:
        run_dir: folder of the run.
        names: of the complete stages that belong to it; ``None`` takes all that lie there, unfinished ones and those of
            earlier settings too.

    Returns:
        for each: ``name``, ``complete``, ``seconds``, ``peak_mib`` (``None`` where it was not recorded),
        ``fingerprint``, ``versions``, ``command``, ``settings`` and ``results`` (how many files).
    """
    found = []
    for record in sorted(Path(run_dir).glob(f"**/{RECORD}"), key=lambda path: path.stat().st_mtime_ns):
        content, folder = _json(record), record.parent
        name = folder.relative_to(run_dir).as_posix().removesuffix(".partial")
        unfinished = folder.name.endswith(".partial")
        if "fingerprint" not in content or (names is not None and (unfinished or name not in names)):
            continue
        results = content.get("results")
        found.append(
            {
                "name": name,
                "complete": results is not None,
                "seconds": content.get("seconds"),
                "peak_mib": content.get("peak_mib"),
                "fingerprint": content["fingerprint"],
                "versions": content.get("versions", {}),
                "command": " ".join(content.get("command", [])),
                "settings": _json(folder / OVERRIDES),
                "results": len(results or {}),
            }
        )
    return found


def other_versions(stages: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Packages that stages were made with in other versions than this report: name to version and how many stages."""
    now = versions()
    found: dict[str, Counter[str]] = {}
    for stage in stages:
        for name, each in stage.get("versions", {}).items():
            if each != now.get(name):
                found.setdefault(name, Counter())[each] += 1
    return {name: ", ".join(f"{each} ({count} stages)" for each, count in of.items()) for name, of in found.items()}


def source_in(run_dir: StrPath, stages: Collection[str] | None = None) -> list[dict[str, Any]]:
    """The source scans of a run, in their windows where it has some; empty before they are listed.

    Args:
        run_dir: folder of the run.
        stages: names of the run's stages; ``None`` takes windows that lie there, those of earlier settings too.
    """
    folders = ["windows", "dataset"] if stages is None or "windows" in stages else ["dataset"]
    files = [Path(run_dir, folder, "source.json") for folder in folders]
    return next((read_datalist(file) for file in files if file.is_file()), [])


def losses_in(folder: StrPath) -> dict[str, Points]:
    """All scalars that a training wrote for TensorBoard below a folder, by name: ``(step, value)`` each.

    Where several trainings lie in it, the names of their folders come first.
    """
    series: dict[str, Points] = {}
    files = sorted(Path(folder).glob(f"**/{EVENTS}"))
    for file in files:
        events = EventAccumulator(str(file), size_guidance=_ALL)
        events.Reload()
        where = _where(file, Path(folder))
        for tag in events.Tags()["scalars"]:
            found = [event for event in events.Scalars(tag) if isfinite(event.value)]
            points = [(float(event.step), float(event.value)) for event in found]
            series.setdefault(f"{where}{tag}", []).extend(points)
    return {name: sorted(points) for name, points in sorted(series.items())}


def _where(file: Path, folder: Path) -> str:
    """``2d, fold 1: `` for events of nnU-Net."""
    parts = file.relative_to(folder).parts
    folds = [part.replace("_", " ") for part in parts if part.startswith("fold_")]
    kinds = [part.split("__")[-1] for part in parts if "__" in part]
    return f"{', '.join([*kinds, *folds])}: " if folds else ""


def _json(path: Path) -> dict[str, Any]:
    """A file of the run, empty where it is missing or being written."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _memory_gib() -> float | None:
    names: Sequence[str] = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    try:
        size, pages = (os.sysconf(name) for name in names)
    except (AttributeError, ValueError, OSError):
        return None
    return round(size * pages / 2**30, 1)
