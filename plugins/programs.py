"""The networks of an exported bundle as programs that need none of this code: ``.pt2`` of ``torch.export``, and ONNX.

A translator becomes ``model.pt2`` or ``model.onnx``. A segmentation becomes ``model_2d`` and ``model_3d``, each the
mean of its folds, and ``locator.pt2``, if it has one. The number of images and every side of them are free, as far as
the networks' strides allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from plugins.errors import InputError
from plugins.files import read_json, whole_file
from plugins.segmentation import EnsembleMember, FoldEnsemble, LocatorNetwork, read_locator, read_model
from plugins.segmentation.model import DESCRIPTION, WEIGHTS
from plugins.state import read_tensors

AXES = ("depth", "height", "width")
TRANSLATORS_STEPS = [4, 4]  # their networks halve their maps twice
DESCRIPTIONS = ("configs/metadata.json", f"models/{DESCRIPTION}", "models/locator.json")


@dataclass(frozen=True)
class Program:
    """A network and what it is given.

    Attributes:
        name: of its file, without the ending.
        network: in ``eval`` mode.
        inputs: name to channels of each input; all have the same size.
        steps: what the sides of its images must be multiples of.
        least: multiples of a step that a side has at least.
        formats: that it is written in.
    """

    name: str
    network: nn.Module
    inputs: Mapping[str, int]
    steps: Sequence[int]
    least: int = 1
    formats: Sequence[str] = ("pt2", "onnx")

    def example(self, samples: int, multiples: Sequence[int]) -> tuple[Tensor, ...]:
        """Inputs of zeros whose sides are so many times the steps."""
        sides = [step * count for step, count in zip(self.steps, multiples, strict=True)]
        return tuple(torch.zeros(samples, channels, *sides) for channels in self.inputs.values())

    @torch.no_grad()
    def exported(self) -> ExportedProgram:
        """The network as ``torch.export`` gives it, with all sizes free."""
        names = AXES[-len(self.steps) :]
        sides = {2 + axis: step * Dim(names[axis], min=self.least) for axis, step in enumerate(self.steps)}
        sizes = ({0: Dim("batch"), **sides},) * len(self.inputs)
        inputs = self.example(2, [4] * len(self.steps))
        return torch.export.export(self.network, inputs, dynamic_shapes=sizes)


def programs(folder: Path) -> Iterator[Program]:
    """The networks of an exported bundle with weights.

    Raises:
        InputError: if the weights cannot be read.
    """
    models = folder / "models"
    weights, steps = read_tensors(models / WEIGHTS, "Export again"), steps_of(folder)
    if not (models / DESCRIPTION).is_file():
        parser = ConfigParser()
        parser.read_config(str(folder / "configs" / "inference.json"))
        parser.update({"bundle_root": str(folder), "device": "$torch.device('cpu')"})
        network = parser.get_parsed_content("network_def").eval()
        network.load_state_dict(weights)
        tensors = read_json(folder / "configs" / "metadata.json")["network_data_format"]["inputs"]
        inputs = {name: tensor["num_channels"] for name, tensor in tensors.items()}
        yield Program("model", network, inputs, steps["model"])
        return
    model = read_model(models)
    for name, member in model.members.items():
        network = FoldEnsemble(replace(model, members={name: member})).eval()
        network.load_state_dict(weights)
        name = _name_of(member)
        yield Program(name, network, {"image": 1}, steps[name])
    locator = read_locator(models)
    if locator is not None:
        assert isinstance(locator.network, LocatorNetwork)
        yield Program(
            "locator", locator.network, {"image": 1}, locator.network.divisors, 2, ("pt2",)
        )  # as ONNX it takes minutes


def steps_of(folder: Path) -> dict[str, list[int]]:
    """Name of each program to the numbers that the sides of its images must be multiples of; not the locator's."""
    if not (folder / "models" / DESCRIPTION).is_file():
        return {"model": TRANSLATORS_STEPS}
    return {_name_of(member): _steps(member) for member in read_model(folder / "models").members.values()}


def _name_of(member: EnsembleMember) -> str:
    return f"model_{len(member.patch_size)}d"


def _steps(member: EnsembleMember) -> list[int]:
    """The product of a network's strides along each of its axes."""
    axes = len(member.patch_size)
    strides = [each if isinstance(each, Sequence) else [each] * axes for each in member.arguments["strides"]]
    return [math.prod(each[axis] for each in strides) for axis in range(axes)]


def write_programs(folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write every network as ``models/<name>.<format>``, the locator as ``.pt2`` only.

    A ``.pt2`` also holds ``metadata.json`` and, of a segmentation, ``model.json`` and ``locator.json``
    (``extra_files`` of ``torch.export.load``).

    Args:
        folder: of an exported bundle with weights.
        formats: of ``"pt2"`` and ``"onnx"``.

    Returns:
        the files.

    Raises:
        InputError: if onnx or onnxscript is not installed, or the weights cannot be read.
    """
    if "onnx" in formats and not (find_spec("onnx") and find_spec("onnxscript")):
        raise InputError("ONNX needs onnx and onnxscript. Install the extra, pip install 'tanq-bundles[onnx]'.")
    writers: dict[str, Callable[[Program, ExportedProgram, Path, Path], None]] = {"pt2": _save, "onnx": _save_onnx}
    files = []
    for program in programs(folder) if formats else ():
        wanted = [name for name in formats if name in program.formats]
        if not wanted:
            continue
        exported = program.exported()
        for name in wanted:
            file = folder / "models" / f"{program.name}.{name}"
            with whole_file(file) as part:
                writers[name](program, exported, folder, part)
            files.append(file)
    return files


def _save(program: Program, exported: ExportedProgram, folder: Path, part: Path) -> None:
    present = [folder / name for name in DESCRIPTIONS if (folder / name).is_file()]
    texts = {path.name: path.read_text(encoding="utf-8") for path in present}
    with part.open("wb") as file:
        torch.export.save(exported, file, extra_files=texts)


def _save_onnx(program: Program, exported: ExportedProgram, folder: Path, part: Path) -> None:
    torch.onnx.export(
        exported,
        (),
        str(part),
        input_names=[*program.inputs],
        output_names=["pred"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
