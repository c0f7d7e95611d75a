"""What only a GPU can show, in under six minutes on one card: speed, memory, agreement with the CPU, DDP, resuming.

python -m benchmarks.gpu --output benchmarks/results/gpu.json
python -m benchmarks.gpu --device cpu --small --output runs/gpu.json

Each part is written to the JSON file as soon as it is done. The same command goes on with the parts that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from monai.utils import set_determinism
from torch import nn

from benchmarks.translation import ROOT, config_of, example, trainer_of
from plugins.files import read_json, write_json
from plugins.networks import RegionNorm
from plugins.segmentation import EnsembleInferer, FoldEnsemble, SlidingWindow
from plugins.segmentation.model import NOMINAL, EnsembleMember
from plugins.segmentation.networks import make_unet

TRANSLATORS = {"TANQ": "tanq_translation", "CycleGAN": "cyclegan_translation"}
TOLERANCES = {"float32": 1e-3, "bf16": 5e-2, "compiled": 1e-3}
"""Of the losses of three steps, relative to those of the CPU in float32."""

EQUAL = 1e-6
"""Of weights that two ways of training must share."""

TESTS = ["tests/test_devices.py", "tests/test_runtime.py", "tests/config/test_checking.py"]
SMALL = {"channels": 8, "num_res_blocks": 2, "feature_blocks": [0, 1], "discriminator_channels": 8}


class Bench:
    """Where and how large to measure.

    Args:
        device: a name that torch knows.
        small: tiny networks and scans, to try the script itself.
    """

    def __init__(self, device: str, small: bool):
        self.device, self.small = torch.device(device), small
        self.size, self.batch_size = (32, 2) if small else (256, 4)
        self.steps = 2 if small else 8

    def wait(self) -> None:
        """Wait until the device has done all that it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, call: Callable[[], Any], warm_up: int, rounds: int) -> dict[str, float]:
        """Median seconds of a call, and the most memory of the device that it held, in GiB."""
        for _ in range(warm_up):
            call()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = []
        for _ in range(rounds):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            seconds.append(time.perf_counter() - start)
        result = {"seconds": median(seconds), "fastest": min(seconds), "slowest": max(seconds)}
        if self.device.type == "cuda":
            result["peak_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return result


@contextmanager
def exact() -> Iterator[None]:
    """Float32 as the CPU has it, without TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def step_of(bench: Bench, method: str, way: str, device: torch.device, batch_size: int) -> Callable[[], Any]:
    """A training step of a translator from the same first weights, in one of the ways of :data:`TOLERANCES`."""
    torch.manual_seed(0)
    others: dict[str, Any] = {"device": device, "amp": way == "bf16", **(SMALL if bench.small else {})}
    others["train::trainer::amp_kwargs"] = {"dtype": torch.bfloat16}
    if method == "CycleGAN":
        others.pop("feature_blocks", None)
    trainer, batch = trainer_of(method, **others), example(bench.size, batch_size)
    if way == "compiled":
        for module in trainer.network.modules():
            if isinstance(module, RegionNorm):  # its shapes differ from batch to batch with the regions
                module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
        for part in trainer.network.children():
            for module in part if isinstance(part, nn.ModuleList) else [part]:
                module.compile(dynamic=False)
    torch.manual_seed(1)  # of the positions that are drawn, on the CPU
    return lambda: trainer._iteration(trainer, batch)


def losses(step: Callable[[], Any]) -> list[float]:
    """The loss of three steps."""
    return [float(step()[0]["loss"]) for _ in range(3)]  # of a batch of one, decollated


def translators(bench: Bench) -> dict[str, Any]:
    """A full-size step of each translator: float32, bf16."""
    return _steps(bench, ("float32", "bf16"))


def compiled(bench: Bench) -> dict[str, Any]:
    """The same, compiled; the last part, as compiling may take longer than all the others."""
    return _steps(bench, ("compiled",))


def _steps(bench: Bench, ways: Sequence[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for method in TRANSLATORS:
        expected = losses(step_of(bench, method, "float32", torch.device("cpu"), 1))
        for way in ways:
            tolerance = TOLERANCES[way]
            try:
                with exact():
                    found = losses(step_of(bench, method, way, bench.device, 1))
            except (torch._inductor.exc.InductorError, torch._dynamo.exc.TorchDynamoException) as error:
                results[f"{method}, {way}"] = {"equal": False, "does_not_compile": str(error)[:500]}
                continue
            apart = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
            step = step_of(bench, method, way, bench.device, bench.batch_size)
            results[f"{method}, {way}"] = {
                "losses": found,
                "losses_on_cpu": expected,
                "apart": apart,
                "tolerance": tolerance,
                "equal": apart <= tolerance,
                **bench.timed(step, 2, bench.steps),
            }
            del step
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
    return results


def inference(bench: Bench) -> dict[str, Any]:
    """A scan of 512 x 512 x 80 voxels through the translators and through one fold of the 2D and the 3D network."""
    shape = (64, 64, 4) if bench.small else (512, 512, 80)
    slices = example(shape[0], 1)
    image, label = (slices[name][..., None].expand(1, 1, *shape).to(bench.device) for name in ("image", "label"))
    results = {}
    for method in TRANSLATORS:
        others = {key: value for key, value in SMALL.items() if bench.small and key != "feature_blocks"}
        others |= {"feature_blocks": [0, 1]} if bench.small and method == "TANQ" else {}
        network = config_of(method, **others).get_parsed_content("network_def").to(bench.device).eval()
        inferer = SliceInferer(roi_size=shape[:2], spatial_dim=2, sw_batch_size=8)
        for way in ("float32", "bf16"):

            @torch.inference_mode()
            def translate(network: nn.Module = network, inferer: Any = inferer, way: str = way) -> None:
                with torch.autocast(bench.device.type, torch.bfloat16, enabled=way == "bf16"):
                    inferer(image, network, condition=label)

            results[f"{method}, {way}"] = bench.timed(translate, 1, 2)
    affine = torch.diag(torch.tensor([0.41, 0.41, 1.5, 1.0]))
    scan = MetaTensor(image.as_tensor() if isinstance(image, MetaTensor) else image, affine=affine)
    network = FoldEnsemble(NOMINAL).to(bench.device).eval()
    inferer = EnsembleInferer(NOMINAL, SlidingWindow(batch_size=8, mirroring=not bench.small))
    for way in ("float32", "half"):

        @torch.inference_mode()
        def segment(way: str = way) -> None:
            kind = torch.float16 if bench.device.type == "cuda" else torch.bfloat16
            with torch.autocast(bench.device.type, kind, enabled=way == "half"):
                inferer(scan, network)

        if not (bench.small and way == "half"):  # CPUs emulate it
            results[f"nnU-Net 2D + 3D, {way}"] = bench.timed(segment, 0 if bench.small else 1, 1)
    return results


def nnunet(bench: Bench) -> dict[str, Any]:
    """A step of nnU-Net's 2D and 3D network by its plan for windows: forward, cross-entropy, backward, SGD.

    Without nnU-Net's Dice loss, deep supervision and augmentation.
    """
    return {
        f"{name}, {way}": bench.timed(_unet_step(bench, member, way), 1 if bench.small else 2, bench.steps)
        for name, member in NOMINAL.members.items()
        for way in ("float32", "half")
        if not (bench.small and way == "half")
    }


def _unet_step(bench: Bench, member: EnsembleMember, way: str) -> Callable[[], Any]:
    torch.manual_seed(0)
    network = make_unet(member).to(bench.device)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    scaler = torch.amp.GradScaler(bench.device.type, enabled=way == "half" and bench.device.type == "cuda")
    patch = [max(64, side // 8) if bench.small else side for side in member.patch_size]
    image = torch.randn(8 if not bench.small else 1, 1, *patch, device=bench.device)
    label = torch.randint(3, (len(image), *patch), device=bench.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(bench.device.type, torch.float16, enabled=way == "half"):
            loss = nn.functional.cross_entropy(network(image), label)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _trained(bench: Bench, folder: Path, launcher: list[str], overlays: list[str], **settings: Any) -> Path:
    """Train TANQ's small config on the phantom that comes with it; returns its weights."""
    bundle = ROOT / "bundles" / "tanq_translation"
    files = [str(bundle / "configs" / name) for name in ("train.json", "cpu.json", *overlays)]
    ids = {"bundle_root": bundle, "output_dir": folder, "ckpt_dir": folder / "models", "config_file": files}
    ids |= {"slices_per_epoch": 4, "val_interval": 99, **settings}
    words = [str(word) for name, value in ids.items() for word in (f"--{name}", value)]
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [sys.executable, *launcher, "-m", "monai.bundle", "run", "training", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return folder / "models" / "model.pt"


def _apart(one: Path, other: Path) -> float:
    first, second = (torch.load(file, map_location="cpu", weights_only=True) for file in (one, other))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def _verdict(apart: float) -> dict[str, Any]:
    return {"weights_apart": apart, "tolerance": EQUAL, "equal": apart <= EQUAL}


def distributed(bench: Bench) -> dict[str, Any]:
    """One process of ``torchrun`` (NCCL on a GPU, else Gloo) against none: the same weights."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    device = {"device": f"$torch.device('{bench.device}')"}
    with TemporaryDirectory() as folder:
        cache = {"cache_dir": Path(folder) / "cache", "max_epochs": 1}
        alone = _trained(bench, Path(folder) / "alone", [], [], **cache, **device)
        joined = _trained(bench, Path(folder) / "joined", launcher, ["multi_gpu_train.json"], **cache)
        return _verdict(_apart(alone, joined))


def resume(bench: Bench) -> dict[str, Any]:
    """Two epochs at once, and one after the other by two commands: the same weights."""
    device = {"device": f"$torch.device('{bench.device}')"}
    with TemporaryDirectory() as folder:
        cache = {"cache_dir": Path(folder) / "cache", **device}
        cache |= {f"{name}::max_epochs": 2 for name in ("scheduler", "d_scheduler")}  # the first half is of the whole
        whole = _trained(bench, Path(folder) / "whole", [], [], max_epochs=2, **cache)
        _trained(bench, Path(folder) / "parts", [], [], max_epochs=1, **cache)
        parts = _trained(bench, Path(folder) / "parts", [], [], max_epochs=2, **cache)
        return _verdict(_apart(whole, parts))


def tests(bench: Bench) -> dict[str, Any]:
    """The quick tests of what touches a device."""
    chosen = TESTS[:1] if bench.small else TESTS
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return {"exit_code": done.returncode, "summary": (done.stdout.splitlines() or [""])[-1]}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "translators": translators,
    "inference": inference,
    "nnunet": nnunet,
    "distributed": distributed,
    "resume": resume,
    "tests": tests,
    "compiled": compiled,
}


def main() -> None:
    """Measure what is not there yet, and write it as JSON."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--output", type=Path, default=Path("gpu.json"))
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--small", action="store_true", help="tiny networks and scans")
    arguments.add_argument("--only", nargs="*", choices=[*PARTS], default=[*PARTS])
    given = arguments.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("error: this machine has no CUDA GPU. Give --device cpu --small to try the script.")
    bench = Bench(given.device, given.small)
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "cpu"
    settings = {"device": name, "small": given.small, "torch": torch.__version__}
    results = read_json(given.output) if given.output.is_file() else {"settings": settings}
    if results["settings"] != settings:
        sys.exit(f"error: {given.output} has results of {results['settings']}. Give another --output.")
    set_determinism(0, use_deterministic_algorithms=None)
    torch._dynamo.config.recompile_limit = 64  # blocks of many shapes share their code
    for part in given.only:
        if part not in results:
            start = time.perf_counter()
            results[part] = PARTS[part](bench)
            results[part]["part_seconds"] = round(time.perf_counter() - start, 1)
            write_json(given.output, results)
            print(part, json.dumps(results[part], indent=2), flush=True)


if __name__ == "__main__":
    main()
