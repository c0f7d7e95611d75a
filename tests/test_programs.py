"""Every line of the table in docs/exports.md: a network, a format, the largest difference, the sizes that are free."""

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.transforms import KeepLargestConnectedComponent
from nibabel.orientations import axcodes2ornt

from plugins.files import read_json, write_json
from plugins.programs import DESCRIPTIONS, programs, write_programs
from plugins.segmentation import (
    EnsembleMember,
    FoldEnsemble,
    Locator,
    LocatorNetwork,
    SaveLocator,
    SegmentationModel,
    read_model,
)

ROOT = Path(__file__).parents[1]
TABLE = re.findall(
    r"^\| ([\w' ,-]+) \| `\w+\.(ts|pt2|onnx)` \| ([\d.e-]+) \| batch, ([\w, ]+) \|$",
    (ROOT / "docs" / "exports.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)
STAGES = {"n_stages": 2, "features_per_stage": [2, 3], "n_conv_per_stage_decoder": [1]}
PLAIN = {**STAGES, "n_conv_per_stage": [1, 1]}
FLAT = {"kernel_sizes": [3, 3], "strides": [1, 2]}
DEEP = {"kernel_sizes": [[1, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 4, 4]]}
MEMBERS = {
    "2d": EnsembleMember((None, 1.0, 1.0), (32, 32), (0, 1), "PlainConvUNet", PLAIN | FLAT),
    "3d_fullres": EnsembleMember((1.5, 1.0, 1.0), (8, 32, 32), (0, 1, 2), "PlainConvUNet", PLAIN | DEEP),
}
RESIDUAL = {
    name: replace(
        member,
        architecture="ResidualEncoderUNet",
        arguments={**STAGES, "n_blocks_per_stage": [1, 2], **(FLAT if name == "2d" else DEEP)},
    )
    for name, member in MEMBERS.items()
}
SOURCES = {
    "TANQ": ("tanq_translation", "model"),
    "CycleGAN": ("cyclegan_translation", "model"),
    "nnU-Net, 2D": (MEMBERS, "model_2d"),
    "nnU-Net, 3D": (MEMBERS, "model_3d"),
    "nnU-Net with residual encoder, 2D": (RESIDUAL, "model_2d"),
    "nnU-Net with residual encoder, 3D": (RESIDUAL, "model_3d"),
    "locator": (MEMBERS, "locator"),
}


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory):
    """A bundle with weights for each network of the table, and its programs."""

    def translator(name, folder):
        small = read_json(ROOT / "bundles" / name / "configs" / "cpu.json")
        sizes = {key: small[key] for key in ("channels", "num_res_blocks", "feature_blocks") if key in small}
        config = read_json(ROOT / "bundles" / name / "configs" / "inference.json")
        write_json(folder / "configs" / "inference.json", config | sizes | {"num_res_blocks": 1, "feature_blocks": [0]})
        parser = ConfigParser(read_json(folder / "configs" / "inference.json"))
        network = parser.get_parsed_content("network_def")
        for place, weight in network.named_parameters():
            if "norm" in place:
                torch.nn.init.uniform_(weight, -1.0, 1.0)
        torch.save(network.state_dict(), folder / "models" / "model.pt")

    def segmentation(members, folder):
        every = tuple(members)
        model = SegmentationModel(members, (0, 1), {"VS": every, "cochlea": every}, keep_largest_component_of=[[2]])
        torch.save(FoldEnsemble(model).state_dict(), folder / "models" / "model.pt")
        engine = Engine(lambda engine, batch: None)
        SaveLocator(
            Locator(LocatorNetwork((2, 3, 3, 4)), window_size=(60, 40, 30), threshold=0.0), folder / "models"
        ).attach(engine)
        engine.run([0], max_epochs=1)
        model.write(folder / "models")

    @cache
    def make(network):
        source = SOURCES[network][0]
        if source is MEMBERS and network != "nnU-Net, 2D":
            return make("nnU-Net, 2D")
        if source is RESIDUAL and network != "nnU-Net with residual encoder, 2D":
            return make("nnU-Net with residual encoder, 2D")
        folder = tmp_path_factory.mktemp("bundle")
        bundle = source if isinstance(source, str) else "vs_cochlea_seg"
        (folder / "models").mkdir()
        (folder / "configs").mkdir()
        shutil.copy(ROOT / "bundles" / bundle / "configs" / "metadata.json", folder / "configs")
        torch.manual_seed(0)
        (translator if isinstance(source, str) else segmentation)(source, folder)
        write_programs(folder, ["pt2", "onnx"])
        return folder

    return make


def inputs_of(program, samples, multiples):
    """An image, and where one is asked for a label map of VS and cochlea."""
    image, *condition = program.example(samples, multiples)
    label = torch.zeros_like(image)
    label[..., 2:7, 3:9], label[-1:, ..., 10:12, 12:15] = 1, 2
    return torch.rand_like(image) * 2 - 1, *(label for _ in condition)


def opened(file, program, kind):
    """What a program without this package calls."""
    if kind == "onnx":
        session = onnxruntime.InferenceSession(file)
        assert [each.name for each in session.get_inputs()] == [*program.inputs]
        names = [[*each.shape[:1], *each.shape[2:]] for each in session.get_inputs()]
        assert all(isinstance(size, str) for sizes in names for size in sizes)
        return lambda *given: torch.from_numpy(
            session.run(None, dict(zip(program.inputs, (each.numpy() for each in given), strict=True)))[0]
        )
    if kind == "pt2":
        return torch.export.load(file).module()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(program.network), buffer)
    return torch.jit.load(io.BytesIO(buffer.getvalue()))


def test_the_table_has_every_network_in_every_format():
    formats = {(network, kind) for network in SOURCES for kind in ("ts", "pt2", "onnx")} - {
        ("locator", "ts"),
        ("locator", "onnx"),
    }
    assert {(network, kind) for network, kind, *_ in TABLE} == formats
    assert len(TABLE) == len(formats)


@pytest.mark.parametrize(("network", "kind", "difference", "free"), TABLE, ids=[" as ".join(row[:2]) for row in TABLE])
def test_a_line_of_the_table(bundle_of, network, kind, difference, free):
    folder, name = bundle_of(network), SOURCES[network][1]
    (program,) = (each for each in programs(folder) if each.name == name)
    call, worst = opened(folder / "models" / f"{name}.{kind}", program, kind), 0.0
    axes = free.split(", ")
    assert len(axes) == len(program.steps)
    assert float(difference) <= 1e-5
    for samples, multiples in ((1, (6, 7, 5)), (3, (5, 4, 8)), (2, (4, 9, 6))):
        given = inputs_of(program, samples, multiples[-len(axes) :])
        with torch.no_grad():
            expected, found = program.network(*given), call(*given)
            worst = max(worst, (found - expected).abs().max().item())
            if len(given) > 1 and network == "TANQ":
                assert (program.network(given[0], 0 * given[1]) - expected).abs().max() > 0.01
                without = call(given[0], 0 * given[1]) - program.network(given[0])
                worst = max(worst, without.abs().max().item())
    assert worst <= float(difference)


def test_a_pt2_describes_itself(bundle_of):
    for network, present in (("CycleGAN", ["metadata.json"]), ("locator", [Path(name).name for name in DESCRIPTIONS])):
        texts = dict.fromkeys(present, "")
        folder = bundle_of(network)
        torch.export.load(folder / "models" / f"{SOURCES[network][1]}.pt2", extra_files=texts)
        places = {Path(name).name: folder / name for name in DESCRIPTIONS}
        assert {name: json.loads(text) for name, text in texts.items()} == {n: read_json(places[n]) for n in present}


def run(arguments):
    """Python with these arguments, in a process of its own."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("axes", ["LPS", "PIR"])
def test_the_example_without_this_package_gives_the_label_map_of_the_bundle(bundle_of, tmp_path, axes):
    folder = bundle_of("nnU-Net, 2D")
    model = read_model(folder / "models")
    replace(model, keep_largest_component_of=[]).write(folder / "models")
    scan = nib.Nifti1Image(np.zeros((90, 70, 24)), np.diag([-1.1, -1.2, 2.4, 1]))
    voxels = np.random.default_rng(0).uniform(1, 20, scan.shape).astype(np.float32)
    for place in ((20, 40, 9), (66, 40, 11)):
        voxels[tuple(slice(c - 3, c + 4) for c in place)] = 900
    voxels[:, :4] = 0
    scan = nib.Nifti1Image(voxels, scan.affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(scan.affine), axcodes2ornt(axes))
    nib.save(scan.as_reoriented(turn), tmp_path / "a_hrT2.nii.gz")
    bundle = ROOT / "bundles" / "vs_cochlea_seg"
    run([
        *("-m", "monai.bundle", "run", "inference", "--config_file", bundle / "configs" / "inference.json"),
        *("--bundle_root", bundle, "--device", "$torch.device('cpu')", "--report", "False", "--dataset_dir", tmp_path),
        *("--model_dir", folder / "models", "--output_dir", tmp_path / "out"),
    ])  # fmt: skip
    expected = nib.load(tmp_path / "out" / "a_Label.nii.gz")
    assert read_json(tmp_path / "out" / "windows.json")["a"]["found"] == "locator"
    script = bundle / "docs" / "segment.py"
    assert "plugins" not in script.read_text(encoding="utf-8")

    def segmented(output):
        run(["-I", script, folder / "models", tmp_path / "a_hrT2.nii.gz", tmp_path / output])
        return nib.load(tmp_path / output)

    every = segmented("every.nii.gz")
    np.testing.assert_allclose(every.affine, expected.affine, atol=1e-4)
    labels, parts = np.asarray(expected.dataobj), np.asarray(every.dataobj)
    assert np.unique(labels).tolist() == [0, 1, 2]
    assert (parts != labels).sum() <= 1e-5 * labels.size
    # One voxel that rounding turns may join two components, so the step is judged on the labels of the same program.
    model.write(folder / "models")
    largest = np.asarray(segmented("largest.nii.gz").dataobj)
    assert (largest != parts).any()
    np.testing.assert_array_equal(largest, KeepLargestConnectedComponent(applied_labels=[2])(parts[None])[0])
