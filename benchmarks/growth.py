"""How time grows with the size and number of slices, with scans and with cores; JSON and one picture.

python -m benchmarks.growth --output benchmarks/results/growth.json --picture benchmarks/results/growth.png

Times are CPU seconds of one thread: of calls taken in turn, but for cores, where they are wall seconds.
Lines are medians, bands the least and the most.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import MaxNLocator
from monai.data import MetaTensor

from benchmarks.published import CycleGanGenerator
from benchmarks.translation import config_of, example, interleaved, machine, spread
from plugins.files import read_json, whole_file, write_json
from plugins.runtime import keep_freed_memory
from plugins.segmentation import EnsembleInferer, FoldEnsemble, SegmentationModel, SlidingWindow
from plugins.segmentation.model import NOMINAL

SIZES, SLICES, SCANS = (64, 128, 192, 256, 384, 512), (1, 2, 4, 8), (1, 2, 3)
NAMES = ("TANQ", "CycleGAN", "published CycleGAN")
Curves = dict[str, list[dict[str, float]]]


def networks() -> dict[str, torch.nn.Module]:
    """The generators, untrained, in full size."""
    ours = {name: config_of(name).get_parsed_content("network_def").eval() for name in NAMES[:2]}
    return {**ours, NAMES[2]: CycleGanGenerator().eval()}


def translating(sizes: Sequence[tuple[int, int]], rounds: int, what: str) -> Curves:
    """CPU seconds of each generator for batches of (side, slices)."""
    calls: dict[str, Callable[[], Any]] = {}
    for name, network in networks().items():
        for side, count in sizes:
            batch = example(side, count)
            calls[f"{name}|{side}|{count}"] = partial(network, batch["image"], batch["label"])
    with torch.inference_mode():
        times = interleaved(calls, rounds, what)
    return {name: [spread(times[f"{name}|{side}|{count}"]) for side, count in sizes] for name in NAMES}


def segmenting(scans: Sequence[int], rounds: int) -> Curves:
    """CPU seconds of the 2D network of the nominal plan for so many small scans."""
    model = SegmentationModel({"2d": NOMINAL.members["2d"]}, (0,), {"VS": ("2d",), "cochlea": ("2d",)})
    network, inferer = FoldEnsemble(model).eval(), EnsembleInferer(model, SlidingWindow(mirroring=False, batch_size=2))
    scan = MetaTensor(torch.randn(1, 1, 192, 192, 2), affine=torch.diag(torch.tensor([0.41, 0.41, 1.5, 1.0])))

    def segment(count: int) -> None:
        for _ in range(count):
            inferer(scan, network)

    with torch.inference_mode():
        times = interleaved({str(count): partial(segment, count) for count in scans}, rounds, "scans")
    return {"nnU-Net, 2D": [spread(times[str(count)]) for count in scans]}


def by_cores(cores: Sequence[int], rounds: int) -> Curves:
    """Wall seconds of a slice of 256 x 256 with so many threads, taken in turn."""
    batch, times = example(256, 1), {name: {count: [] for count in cores} for name in networks()}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, network in networks().items():
                for count in cores:
                    torch.set_num_threads(count)
                    start = time.perf_counter()
                    network(batch["image"], batch["label"])
                    times[name][count].append(time.perf_counter() - start)
    torch.set_num_threads(1)
    return {name: [spread(each[count][1:]) for count in cores] for name, each in times.items()}


def draw(results: dict[str, Any], file: Path) -> None:
    """One panel for each thing that grows."""
    figure, axes = plt.subplots(1, len(results["curves"]), figsize=(3.4 * len(results["curves"]), 3.2))
    for panel, (title, curve) in zip(axes, results["curves"].items(), strict=True):
        for name, values in curve["values"].items():
            middle, least, most = ([each[key] for each in values] for key in ("median", "least", "most"))
            panel.plot(curve["at"], middle, marker="o", label=name)
            panel.fill_between(curve["at"], least, most, alpha=0.25)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel(curve["along"], fontsize=8)
        panel.set_ylabel(curve["unit"], fontsize=8)
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=7)
    figure.tight_layout()
    with whole_file(file) as part:
        figure.savefig(part, format="png", dpi=100)


def main() -> None:
    """Measure, write JSON, draw."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--output", type=Path, default=Path("growth.json"))
    arguments.add_argument("--picture", type=Path, default=Path("growth.png"))
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--draw", action="store_true", help="only draw what the JSON file holds")
    given = arguments.parse_args()
    if given.draw:
        draw(read_json(given.output), given.picture)
        return
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    cores = [*range(1, len(os.sched_getaffinity(0)) + 1)]
    curves = {
        "one slice": ("side, pixels", SIZES, translating([(side, 1) for side in SIZES], given.rounds, "sizes")),
        "slices of 128 x 128": ("slices", SLICES, translating([(128, n) for n in SLICES], given.rounds, "slices")),
        "scans of 192 x 192 x 2": ("scans", SCANS, segmenting(SCANS, given.rounds)),
        "one slice of 256 x 256": ("threads", cores, by_cores(cores, given.rounds)),
    }
    results = {
        "curves": {
            title: {
                "along": along,
                "at": [*at],
                "unit": "wall seconds" if along == "threads" else "CPU seconds",
                "values": values,
            }
            for title, (along, at, values) in curves.items()
        },
        "machine": machine(threads=1, rounds=given.rounds),
    }
    write_json(given.output, results)
    draw(results, given.picture)


if __name__ == "__main__":
    main()
