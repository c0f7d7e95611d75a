import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from monai.data import MetaTensor
from torch.export import Dim, export

from plugins.errors import InputError
from plugins.files import read_json, write_json
from plugins.segmentation import EnsembleInferer, EnsembleMember, FoldEnsemble, SegmentationModel, combine, read_model
from plugins.segmentation.model import NOMINAL
from plugins.segmentation.networks import UNet, make_unet

STAGES = {"n_stages": 3, "features_per_stage": [4, 8, 8], "n_conv_per_stage_decoder": [1, 1]}
PLAIN = {**STAGES, "n_conv_per_stage": [1, 2, 1]}
CUBES = {"kernel_sizes": [3] * 3, "strides": [1, 2, 2]}
FLAT = EnsembleMember((None, 1.0, 1.0), (8, 8), (0, 1), "PlainConvUNet", {**PLAIN, **CUBES})
SOLID = EnsembleMember(
    (2.0, 1.0, 1.0),
    (4, 8, 8),
    (0, 1, 2),
    "PlainConvUNet",
    {**PLAIN, "kernel_sizes": [[1, 3, 3], 3, 3], "strides": [1, [1, 2, 2], 2]},
)
RESIDUAL = replace(
    SOLID, architecture="ResidualEncoderUNet", arguments={**STAGES, "n_blocks_per_stage": [1, 2, 2], **CUBES}
)
BOTH = SegmentationModel(
    {"2d": FLAT, "3d_fullres": SOLID}, (0, 1), {"VS": ("2d", "3d_fullres"), "cochlea": ("2d", "3d_fullres")}
)


@pytest.mark.parametrize(
    ("member", "kind"), [(FLAT, PlainConvUNet), (SOLID, PlainConvUNet), (RESIDUAL, ResidualEncoderUNet)]
)
def test_a_network_equals_nnunets_also_as_torchscript(member, kind):
    network = make_unet(member).eval()
    assert type(network) is kind
    image = torch.randn(2, 1, *(2 * extent for extent in member.patch_size))
    with torch.no_grad():
        expected = network(image)
        ours = UNet(network)
        assert torch.equal(ours(image), expected)
        torch.testing.assert_close(torch.jit.script(ours)(image), expected, atol=1e-5, rtol=0)


def test_logits_are_averaged_over_folds_also_as_torchscript():
    torch.manual_seed(0)
    ensemble = FoldEnsemble(BOTH).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(ensemble), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for folds, image in ((ensemble.folds_2d, torch.randn(3, 1, 8, 8)), (ensemble.folds_3d, torch.randn(2, 1, 4, 8, 8))):
        with torch.no_grad():
            expected = (folds["fold_0"](image) + folds["fold_1"](image)) / 2
            torch.testing.assert_close(ensemble(image), expected)
            torch.testing.assert_close(loaded(image), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dims", "strides"), [(2, (4, 4)), (3, (2, 4, 4))])
def test_an_exported_program_is_the_ensemble_at_every_size_that_its_strides_allow(dims, strides):
    ensemble = FoldEnsemble(BOTH).eval()
    sizes = {0: Dim("batch")} | {axis: step * Dim(f"axis_{axis}") for axis, step in enumerate(strides, start=2)}
    image = torch.randn(2, 1, *(4 * step for step in strides))
    program = export(ensemble, (image,), dynamic_shapes=(sizes,)).module()
    for samples, steps in ((1, (3, 5, 2)), (3, (5, 2, 6))):
        image = torch.randn(samples, 1, *(step * times for step, times in zip(strides, steps, strict=False)))
        with torch.no_grad():
            torch.testing.assert_close(program(image), ensemble(image), atol=1e-5, rtol=0)


def test_weights_of_other_folds_are_left_and_missing_ones_are_errors():
    both, second = FoldEnsemble(BOTH), FoldEnsemble(replace(BOTH, folds=(1,)))
    second.load_state_dict(both.state_dict())
    weights = second.state_dict()
    assert all(torch.equal(both.state_dict()[key], value) for key, value in weights.items())
    assert not any("fold_0" in key for key in weights)
    with pytest.raises(RuntimeError, match="Missing"):
        both.load_state_dict(weights)


def test_a_patch_without_a_network_is_an_error():
    model = replace(BOTH, members={"3d": BOTH.members["3d_fullres"]}, members_of={"VS": ("3d",), "cochlea": ("3d",)})
    with pytest.raises(ValueError, match="no network"):
        FoldEnsemble(model)(torch.zeros(1, 1, 8, 8))


def test_without_3d_networks_a_patch_goes_through_the_2d_networks_slice_by_slice():
    model = replace(BOTH, members={"2d": FLAT}, members_of={"VS": ("2d",), "cochlea": ("2d",)})
    ensemble = FoldEnsemble(model).eval()
    patches = torch.randn(2, 1, 3, 8, 16)
    with torch.no_grad():
        expected = torch.stack([ensemble(patches[:, :, index]) for index in range(3)], 2)
        torch.testing.assert_close(ensemble(patches), expected)
        torch.testing.assert_close(torch.jit.script(ensemble)(patches), expected)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a": FLAT, "b": FLAT}, "second 2D"),
        ({"a": replace(FLAT, architecture="os.system")}, "os.system"),
        ({"a": replace(FLAT, arguments={"n_stages": 3})}, "do not fit"),
    ],
)
def test_networks_that_cannot_be_built_are_named(members, words):
    with pytest.raises(InputError, match=words):
        FoldEnsemble(SegmentationModel(members, (0,), {"VS": ("a",), "cochlea": ("a",)}))


def test_structures_with_the_same_members_get_the_plain_mean():
    a, b = torch.rand(2, 3, 2, 2, 2).softmax(1)
    both = combine({"a": a, "b": b}, {"VS": ("a", "b"), "cochlea": ("b", "a")})
    torch.testing.assert_close(both, (a + b) / 2)


def test_each_structure_gets_the_probability_of_its_own_members():
    a, b = torch.rand(2, 3, 2, 2, 2).softmax(1)
    result = combine({"a": a, "b": b}, {"VS": ("a",), "cochlea": ("a", "b")})
    mean = (a + b) / 2
    expected = torch.stack([(a[0] + mean[0]) / 2, a[1], mean[2]])
    torch.testing.assert_close(result, expected / expected.sum(0))
    torch.testing.assert_close(result.sum(0), torch.ones(2, 2, 2))


def test_members_that_contradict_each_other_leave_background():
    a, b = torch.tensor([0.0, 0, 1]).reshape(3, 1, 1, 1), torch.tensor([0.0, 1, 0]).reshape(3, 1, 1, 1)
    result = combine({"a": a, "b": b}, {"VS": ("a",), "cochlea": ("b",)})
    assert result.isfinite().all()
    assert int(result.argmax(0)) == 0


def test_a_model_is_read_as_it_was_written(tmp_path):
    BOTH.write(tmp_path)
    read = read_model(tmp_path)
    assert read_model(tmp_path, [1]).folds == [1]
    assert {name: list(m.patch_size) for name, m in read.members.items()} == {"2d": [8, 8], "3d_fullres": [4, 8, 8]}
    FoldEnsemble(read).load_state_dict(FoldEnsemble(BOTH).state_dict())


@pytest.mark.parametrize("content", [{}, [], {"members": {}, "folds": [0], "members_of": {"VS": ["2d"]}}])
def test_another_file_is_no_model(tmp_path, content):
    write_json(tmp_path / "model.json", content)
    with pytest.raises(InputError, match=r"model\.json"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("members::2d::patch_size", [8]), ("members::2d::patch_size", [8, 0]), ("members::2d::patch_size", "88"),
        ("members::2d::patch_size", [8.5, 8]), ("members::2d::spacing", [None, 1]),
        ("members::2d::spacing", [1, 1, -1]),
        ("members::2d::spacing", [1, 1, "1"]), ("members::2d::mirror_axes", [2]), ("members::2d::mirror_axes", [True]),
        ("members::2d::architecture", 3), ("members::2d::arguments", []), ("members::2d", {}), ("members", {}),
        ("folds", []), ("folds", [-1]), ("folds", ["0"]), ("folds", [True]), ("folds", 0), ("axes", [0, 0, 1]),
        ("axes", "210"), ("nonzero", "false"), ("nonzero", 1), ("keep_largest_component_of", [["VS"]]),
        ("keep_largest_component_of", [[3]]), ("keep_largest_component_of", [[]]), ("anatomy", []), ("results", 1),
        ("members_of", {"VS": ["2d"]}), ("members_of", {"VS": ["2d"], "cochlea": ["4d"]}), ("surplus", 1),
        ("members::2d::surplus", 1),
    ],
)  # fmt: skip
def test_an_edited_model_is_refused_in_a_sentence(tmp_path, place, value):
    BOTH.write(tmp_path)
    content = read_json(tmp_path / "model.json")
    *path, last = place.split("::")
    level = content
    for key in path:
        level = level[key]
    level[last] = value
    write_json(tmp_path / "model.json", content)
    with pytest.raises(InputError, match=r"model\.json: describes no model \(.*\). Give the model_dir of a training"):
        read_model(tmp_path)


def test_weights_without_a_description_are_no_model(tmp_path):
    (tmp_path / "model.pt").touch()
    with pytest.raises(InputError, match=r"holds model\.pt, but no model\.json, so it is no model of a segmentation"):
        read_model(tmp_path)


def test_without_a_model_the_networks_have_the_size_in_the_paper(tmp_path):
    assert read_model(tmp_path) == NOMINAL
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in make_unet(m).parameters()) for name, m in NOMINAL.members.items()}
    assert sizes["3d_fullres"] == pytest.approx(30.76e6, rel=0.005)
    assert sizes["2d"] == pytest.approx(20.6e6, rel=0.01)


def test_the_inferer_refuses_what_has_no_grid():
    inferer = EnsembleInferer(BOTH)
    for wrong in (torch.zeros(1, 1, 8, 8, 8), MetaTensor(torch.zeros(2, 1, 8, 8, 8))):
        with pytest.raises(ValueError, match="one scan"):
            inferer(wrong, FoldEnsemble(BOTH))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_never_become_a_label_map(bad):
    scan = MetaTensor(torch.randn(1, 1, 12, 10, 6), meta={"filename_or_obj": "a_hrT2.nii.gz"})

    def broken(patches):
        logits = torch.zeros(patches.shape[0], 3, *patches.shape[2:])
        logits[0, 1].view(-1)[3] = bad
        return logits

    with pytest.raises(InputError, match=r"^a_hrT2\.nii\.gz: the networks of 2d give values that are not finite"):
        EnsembleInferer(BOTH)(scan, broken)


def test_new_weights_are_noticed():
    torch.manual_seed(0)
    ensemble, inferer = FoldEnsemble(BOTH).eval(), EnsembleInferer(BOTH)
    scan = MetaTensor(torch.randn(1, 1, 12, 10, 6), affine=torch.diag(torch.tensor([0.9, 1.1, 1.9, 1])))
    before = inferer(scan, ensemble)
    torch.testing.assert_close(before, EnsembleInferer(BOTH)(scan, lambda x: ensemble(x)), atol=1e-5, rtol=0)
    ensemble.load_state_dict({key: value * 0.5 for key, value in ensemble.state_dict().items()})
    after = inferer(scan, ensemble)
    torch.testing.assert_close(after, EnsembleInferer(BOTH)(scan, lambda x: ensemble(x)), atol=1e-5, rtol=0)
    assert (after - before).abs().max() > 1e-3


def test_inference_by_torchscript_is_inference_by_the_network():
    torch.manual_seed(0)
    ensemble = FoldEnsemble(BOTH).eval()
    scan = MetaTensor(torch.randn(1, 1, 12, 10, 6), affine=torch.diag(torch.tensor([0.9, 1.1, 1.9, 1])))
    inferer = EnsembleInferer(BOTH)
    expected = inferer(scan, ensemble)
    assert expected.shape == (1, 3, 12, 10, 6)
    np.testing.assert_allclose(expected.sum(1), 1, atol=1e-5)
    torch.testing.assert_close(inferer(scan, torch.jit.script(ensemble)), expected, atol=1e-5, rtol=0)
