"""One scan alone and inside a larger field, in its middle and off it: are the label maps the same, what do they cost?

python -m benchmarks.located path/to/scan.nii.gz --model_dir path/to/models --output runs/located
python -m benchmarks.located path/to/scan.nii.gz --bundle path/to/exported/bundle --output runs/located

``--model_dir`` is that of a training with a locator. The second form takes an exported bundle with its own code.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec
from numpy.typing import NDArray

from plugins.files import write_json
from plugins.segmentation import LABELS

ROOT = Path(__file__).parents[1]


def in_field(scan: nib.Nifti1Image, field_mm: float, shift_mm: float) -> tuple[nib.Nifti1Image, NDArray[np.int_]]:
    """A scan within zeros: a square field in the plane of its first two axes, the scan off its middle along the first.

    Returns:
        the larger scan and the index of the scan's first voxel in it.
    """
    values, spacing = scan.get_fdata(dtype=np.float32), np.array(scan.header.get_zooms()[:3])
    shape = np.array(values.shape)
    larger = np.array([*np.maximum(shape[:2], np.ceil(field_mm / spacing[:2]).astype(int)), shape[2]])
    start = (larger - shape) // 2
    start[0] = np.clip(start[0] + round(shift_mm / spacing[0]), 0, larger[0] - shape[0])
    field = np.zeros(larger, np.float32)
    field[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))] = values
    return nib.Nifti1Image(field, scan.affine @ from_matvec(np.eye(3), -start)), start


def segment(bundle: Path, image: Path, output_dir: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Run ``inference.json`` in a process of its own; return its seconds and its largest memory in MiB."""
    datalist = output_dir / "scans.json"
    write_json(datalist, {"training": [{"case": "scan", "site": "", "image": str(image)}]})
    overrides = output_dir / "settings.json"
    write_json(overrides, {"datalist": str(datalist), "output_dir": str(output_dir), **settings})
    config = f"['{bundle}/configs/inference.json','{overrides}']"
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(bundle), "--config_file", config]
    began = time.perf_counter()
    with (output_dir / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT if bundle.is_relative_to(ROOT) else bundle, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"inference failed, see {output_dir / 'log.txt'}")
    return {"seconds": time.perf_counter() - began, "memory_mib": usage.ru_maxrss / 1024}


def dice(found: NDArray[Any], wanted: NDArray[Any]) -> dict[str, float]:
    """Of each structure; two empty ones agree."""
    values = {}
    for name, value in LABELS.items():
        if value:
            both = np.count_nonzero((found == value) & (wanted == value))
            total = np.count_nonzero(found == value) + np.count_nonzero(wanted == value)
            values[name] = 2 * both / total if total else 1.0
    return values


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment the scan alone and in each field, and write ``located.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model_dir", type=Path)
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundles" / "vs_cochlea_seg")
    parser.add_argument("--field_mm", type=float, default=210.0)
    parser.add_argument("--shifts_mm", type=float, nargs="+", default=[0.0, 20.0, 40.0])
    options = parser.parse_args(arguments)
    scan = nib.load(options.scan)
    settings: dict[str, Any] = {} if options.model_dir is None else {"model_dir": str(options.model_dir.absolute())}
    alone, rows = None, []
    runs = [(None, True), *((shift, True) for shift in options.shifts_mm), (options.shifts_mm[0], False)]
    for shift, locate in runs:
        folder = options.output.absolute() / f"{'alone' if shift is None else f'shift_{shift:g}'}_{locate}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scan_Label.nii.gz").unlink(missing_ok=True)
        field, start = (scan, np.zeros(3, int)) if shift is None else in_field(scan, options.field_mm, shift)
        nib.save(field, folder / "scan.nii.gz")
        given = settings if locate else {**settings, "locate": False}
        cost = segment(options.bundle.absolute(), folder / "scan.nii.gz", folder, given)
        box = tuple(slice(s, s + n) for s, n in zip(start, scan.shape, strict=True))
        whole = np.asarray(nib.load(folder / "scan_Label.nii.gz").dataobj)
        found = whole[box]
        alone = found if alone is None else alone
        outside = int(np.count_nonzero(whole) - np.count_nonzero(found))
        rows.append({"shift_mm": shift, "locate": locate, "dice": dice(found, alone), "outside": outside, **cost})
        print(rows[-1], flush=True)
    write_json(options.output / "located.json", {"scan": options.scan.name, "runs": rows})


if __name__ == "__main__":
    main()
