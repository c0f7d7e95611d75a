"""Speed and memory of the translators, built from the bundles' own configs; ratios first.

python -m benchmarks.translation --output benchmarks/results/translation.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from monai.bundle import ConfigParser
from rich.progress import track

from plugins.files import read_json, write_json
from plugins.networks import RAIN, RegionNorm, list_regions
from plugins.runtime import keep_freed_memory

ROOT = Path(__file__).parents[1]
RANDOM = {"selections": ["@random_queries"] * 5}
INSTANCE = {"network_def::encoder_norm": "instance", "network_def::decoder_norm": "instance"}
PUBLISHED = {"_target_": "benchmarks.published.CycleGanGenerator"}
METHODS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "TANQ": ("tanq_translation", [], {}),
    "TANQ, instance norm": ("tanq_translation", [], INSTANCE),
    "TANQ, random queries": ("tanq_translation", [], RANDOM),
    "QS-Attn": ("tanq_translation", ["qs_attn.json"], {}),
    "CycleGAN": ("cyclegan_translation", [], {}),
    "published CycleGAN": (
        "cyclegan_translation",
        [],
        {name: PUBLISHED for name in ("network_def", "generator_ts_def")},
    ),
}
GENERATORS = ("TANQ", "TANQ, instance norm", "CycleGAN", "published CycleGAN")
NORM_SHAPES = [(64, 256), (128, 256), (256, 128), (128, 128), (256, 64)]
MEMORY = [
    ("TANQ", 256, 4),
    ("TANQ, random queries", 256, 4),
    ("CycleGAN", 256, 4),
    ("published CycleGAN", 256, 4),
    ("TANQ", 256, 1),
    ("CycleGAN", 256, 1),
    ("published CycleGAN", 256, 1),
    ("TANQ", 512, 1),
    ("CycleGAN", 512, 1),
    ("published CycleGAN", 512, 1),
    ("TANQ, random queries", 512, 1),
]


def config_of(method: str, **others: Any) -> ConfigParser:
    """The training config of a method with other values of some ids, without data and handlers."""
    bundle, overlays, changes = METHODS[method]
    folder = ROOT / "bundles" / bundle / "configs"
    parser = ConfigParser()
    parser.read_config([str(folder / name) for name in ("train.json", *overlays)])
    parser.update({"bundle_root": str(folder.parent), "device": "$torch.device('cpu')", **changes, **others})
    parser.update({"train::dataloader": "$[0]", "train::handlers": []})
    return parser


def example(size: int, batch_size: int) -> dict[str, torch.Tensor]:
    """Slices with a tumour of 400 and two cochleas of 36 pixels at 256 x 256."""
    generator = torch.Generator().manual_seed(0)
    image, reals = torch.rand(2, batch_size, 1, size, size, generator=generator) * 2 - 1
    label = torch.zeros(batch_size, 1, size, size)
    unit = size / 256
    for value, row, column, side in ((1, 120, 80, 20), (2, 118, 70, 6), (2, 118, 180, 6)):
        top, left, end = round(row * unit), round(column * unit), round(side * unit)
        label[:, :, top : top + end, left : left + end] = value
    return {"image": image, "label": label, "reals": reals, "reals_label": torch.zeros_like(label)}


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int, what: str) -> dict[str, list[float]]:
    """CPU seconds of each call, all of them taken in turn; a round of warming up is left out."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in track(range(rounds + 1), description=what):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if number > 0:
                times[name].append(time.process_time() - start)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": median(values), "least": min(values), "most": max(values)}


def ratio(times: dict[str, list[float]], name: str, to: str) -> dict[str, float]:
    """:func:`spread` over the rounds of :func:`interleaved` of one call's time by that of another."""
    return spread([one / other for one, other in zip(times[name], times[to], strict=True)])


def spreads(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """:func:`spread` of each call."""
    return {name: spread(values) for name, values in times.items()}


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(**settings: Any) -> dict[str, Any]:
    """Where and when something was measured."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **settings,
    }


def norms(rounds: int) -> dict[str, Any]:
    """Forward and backward of RN and RAIN against instance norm."""
    results = {}
    for channels, size in NORM_SHAPES:
        label = example(256, 1)["label"]
        targets = torch.cat([label == 1, label == 2], dim=1)
        x = torch.randn(1, channels, size, size, requires_grad=True)
        outward = torch.randn_like(x)
        instance = torch.nn.InstanceNorm2d(channels, affine=True)
        rn, rain = RegionNorm(channels), RAIN(channels)
        cochlea, both = list_regions(targets[:, 1:], [size, size]), list_regions(targets, [size, size])

        def both_ways(call: Callable[[], torch.Tensor], outward: torch.Tensor = outward) -> Callable[[], Any]:
            return lambda: call().backward(outward)

        calls = {
            "instance norm": both_ways(lambda x=x, norm=instance: norm(x)),
            "RN": both_ways(lambda x=x, norm=rn, regions=cochlea: norm(x, regions)),
            "RAIN": both_ways(lambda x=x, norm=rain, regions=both: norm(x, regions)),
            "listing the regions": lambda targets=targets, size=size: list_regions(targets, [size, size]),
        }
        times = interleaved(calls, rounds, f"norms {channels} x {size} x {size}")
        ratios = {name: ratio(times, name, "instance norm") for name in times}
        results[f"{channels}x{size}x{size}"] = {"ratio_to_instance_norm": ratios, "cpu_seconds": spreads(times)}
    return results


def inference(rounds: int, size: int = 256) -> dict[str, Any]:
    """One slice through each generator; TANQ with its label map."""
    batch = example(size, 1)
    networks = {name: config_of(name).get_parsed_content("network_def").eval() for name in GENERATORS}
    calls: dict[str, Callable[[], Any]] = {
        name: lambda network=network: network(batch["image"], batch["label"]) for name, network in networks.items()
    }
    with torch.inference_mode():
        times = interleaved(calls, rounds, "inference")
    return {
        "ratio_tanq_to_same_with_instance_norm": ratio(times, "TANQ", "TANQ, instance norm"),
        "ratio_tanq_to_cyclegan": ratio(times, "TANQ", "CycleGAN"),
        "ratio_tanq_to_published_cyclegan": ratio(times, "TANQ", "published CycleGAN"),
        "ratio_cyclegan_to_published_cyclegan": ratio(times, "CycleGAN", "published CycleGAN"),
        "cpu_seconds": spreads(times),
    }


def convolutions(rounds: int, size: int = 256, compiled: bool = True) -> dict[str, Any]:
    """One slice through both generators: the ways of :mod:`plugins.networks.fast_conv` against torch's own."""
    batch = example(size, 1)
    results: dict[str, Any] = {}
    with torch.inference_mode():
        for method in ("TANQ", "CycleGAN"):
            network = config_of(method).get_parsed_content("network_def").eval()
            last = deepcopy(network).to(memory_format=torch.channels_last)
            ways = {"torch": network, "channels-last": last}
            if compiled:
                try:
                    ways["compiled"] = torch.compile(network)
                    with torchs_convolutions():
                        ways["compiled"](batch["image"], batch["label"])
                except torch._inductor.exc.InductorError as error:
                    results[f"{method}, compiled"] = f"does not compile: {error}"
                    del ways["compiled"]

            def by_torch(way: Callable[..., Any]) -> Any:
                with torchs_convolutions():
                    return way(batch["image"], batch["label"])

            calls: dict[str, Callable[[], Any]] = {name: partial(by_torch, way) for name, way in ways.items()}
            calls["fast_conv"] = partial(network, batch["image"], batch["label"])
            times = interleaved(calls, rounds, f"convolutions of {method}")
            results |= {f"{method}, {name}": ratio(times, name, "torch") for name in times}
    return {"ratio_to_torch": results}


def torchs_convolutions() -> AbstractContextManager[Any]:
    """Leave :mod:`plugins.networks.fast_conv` out."""
    return patch("plugins.networks.fast_conv._is_plain", return_value=False)


def trainer_of(method: str, **others: Any) -> Any:
    """The trainer of a method, see :func:`config_of`."""
    trainer = config_of(method, **others).get_parsed_content("train::trainer")
    trainer.state.output = {}
    return trainer


def train_step(method: str, size: int, batch_size: int) -> Callable[[], Any]:
    """One training step of a method, ready to be called again and again."""
    trainer, batch = trainer_of(method), example(size, batch_size)
    return lambda: trainer._iteration(trainer, batch)


def training(rounds: int, size: int = 256) -> dict[str, Any]:
    """A train step of each method, and what TANQ's costs in forward passes of generators."""
    batch = example(size, 1)
    methods = ("TANQ", "TANQ, instance norm", "CycleGAN", "published CycleGAN")
    calls: dict[str, Callable[[], Any]] = {name: train_step(name, size, 1) for name in methods}
    for name in ("TANQ", "published CycleGAN"):
        network = config_of(name).get_parsed_content("network_def")
        calls[f"{name}, forward"] = partial(torch.no_grad()(network.forward), batch["image"], batch["label"])
    times = interleaved(calls, rounds, "training")
    return {
        "ratio_tanq_to_cyclegan": ratio(times, "TANQ", "CycleGAN"),
        "ratio_tanq_to_same_with_instance_norm": ratio(times, "TANQ", "TANQ, instance norm"),
        "ratio_tanq_to_published_cyclegan": ratio(times, "TANQ", "published CycleGAN"),
        "ratio_cyclegan_to_published_cyclegan": ratio(times, "CycleGAN", "published CycleGAN"),
        "tanq_step_in_forward_passes_of_its_generator": ratio(times, "TANQ", "TANQ, forward"),
        "tanq_step_in_forward_passes_of_published_cyclegan": ratio(times, "TANQ", "published CycleGAN, forward"),
        "cpu_seconds": spreads(times),
    }


def peak_memory(method: str, size: int, batch_size: int) -> dict[str, float]:
    """Peak resident memory in GiB of a process that makes two train steps, and what it was before them."""
    step = train_step(method, size, batch_size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"before_gib": before / 2**20, "peak_gib": peak / 2**20}


def memory() -> dict[str, Any]:
    """:func:`peak_memory` of several sizes, each in a process of its own; random queries leave the attention out."""
    results = {}
    for method, size, batch_size in track(MEMORY, description="memory"):
        command = [sys.executable, "-m", "benchmarks.translation", "--memory", method, str(size), str(batch_size)]
        output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        results[f"{method}, {size} x {size}, batch {batch_size}"] = json.loads(output.splitlines()[-1])
    return results


def parameters() -> dict[str, float]:
    """Parameters of the networks in the bundles' configs, in millions."""
    tanq, cyclegan = config_of("TANQ"), config_of("CycleGAN")
    networks = {
        "TANQ generator": tanq.get_parsed_content("network_def"),
        "PatchGAN discriminator": tanq.get_parsed_content("discriminator_def"),
        "TANQ projector": tanq.get_parsed_content("projector_def"),
        "CycleGAN generator": cyclegan.get_parsed_content("network_def"),
        "CycleGAN discriminator": cyclegan.get_parsed_content("discriminator_def"),
    }
    return {name: sum(p.numel() for p in network.parameters()) / 1e6 for name, network in networks.items()}


def main() -> None:
    """Measure everything and write it as JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--output", default="translation.json", help="JSON file of the results")
    arguments.add_argument("--rounds", type=int, default=5, help="of each interleaved measurement")
    arguments.add_argument("--size", type=int, default=256, help="side of the slices, but for memory")
    arguments.add_argument("--only", nargs="*", help="keys of the JSON file to measure; all by default")
    arguments.add_argument("--threads", type=int, default=1, help="torch's threads")
    arguments.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments.add_argument("--memory", nargs=3, metavar=("METHOD", "SIZE", "BATCH"), help="only the peak of one step")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    if given.memory:
        method, size, batch_size = given.memory
        print(json.dumps(peak_memory(method, int(size), int(batch_size))))
        return
    parts: dict[str, Callable[[], Any]] = {
        "parameters_millions": parameters,
        "normalisation": lambda: norms(4 * given.rounds),
        "inference": lambda: inference(given.rounds, given.size),
        "convolutions": lambda: convolutions(given.rounds, given.size, not given.no_compile),
        "train_step": lambda: training(max(2, given.rounds // 2), given.size),
        "train_step_memory": memory,
    }
    where = machine(threads=given.threads, size=given.size)
    output = Path(given.output)
    results = read_json(output) if output.is_file() else {}
    for name, part in parts.items():
        if given.only is None or name in given.only:
            results[name] = {**part(), "machine": where}
            write_json(output, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
