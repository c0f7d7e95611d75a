import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from plugins.errors import InputError
from plugins.files import read_json, write_json
from plugins.nnunet import planning
from plugins.nnunet.planning import PLANNERS, change_configuration, make_plans
from plugins.nnunet.workspace import DATASET, PLANS, Workspace
from plugins.segmentation import LABELS
from plugins.segmentation.model import NOMINAL

TRAIN = Path(__file__).parents[2] / "bundles" / "vs_cochlea_seg" / "configs" / "train.json"


def workspace_of(folder: Path, shape: list[int]) -> Workspace:
    """The fingerprint of 210 scans of a shape in (S, A, R) order at 0.41 x 0.41 x 1.5 mm."""
    workspace = Workspace(folder)
    entries = {f"c{number}": {"images": ["i.nii.gz"], "label": "l.nii.gz"} for number in range(210)}
    dataset = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": 210, "file_ending": ".nii.gz"}
    reader = {"overwrite_image_reader_writer": "NibabelIOWithReorient"}
    write_json(workspace.raw / "dataset.json", {**dataset, **reader, "dataset": entries})
    fingerprint = {
        "spacings": [[1.5, 0.41, 0.41]] * 210,
        "shapes_after_crop": [shape] * 210,
        "foreground_intensity_properties_per_channel": {},
        "median_relative_size_after_cropping": 1.0,
    }
    write_json(workspace.preprocessed / "dataset_fingerprint.json", fingerprint)
    return workspace


@pytest.fixture(scope="module")
def paper_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Whole scans of 256 x 256 x 80 voxels."""
    return workspace_of(tmp_path_factory.mktemp("paper"), [80, 256, 256])


@pytest.fixture(scope="module")
def paper_plans(paper_workspace: Workspace) -> dict[str, Any]:
    """nnU-Net's plans for them."""
    with paper_workspace.active(num_workers=1):
        ExperimentPlanner(DATASET).plan_experiment()
    plans: dict[str, Any] = read_json(paper_workspace.preprocessed / f"{PLANS}.json")
    return plans["configurations"]


def test_the_default_3d_network_has_the_size_in_the_paper(paper_plans):
    network = paper_plans["3d_fullres"]["architecture"]["arch_kwargs"]
    kwargs = {key: value for key, value in network.items() if key not in ("conv_op", "norm_op", "nonlin")}
    ops = {"conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU}
    with torch.device("meta"):
        parameters = PlainConvUNet(input_channels=1, num_classes=3, **kwargs, **ops).parameters()
    assert sum(p.numel() for p in parameters) == pytest.approx(30.76e6, rel=0.005)
    assert paper_plans["3d_fullres"]["patch_size"] == [56, 192, 192]
    assert paper_plans["3d_fullres"]["batch_size"] == 2


def test_the_nominal_networks_are_those_planned_for_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    workspace = workspace_of(tmp_path, [40, 170, 256])
    published = read_json(TRAIN)
    keys = ("batch_size", "patch_size", "target_spacing", "gpu_memory_gb", "planner")
    monkeypatch.setattr(planning.DatasetFingerprintExtractor, "run", lambda self, **_: None)
    monkeypatch.setattr(Path, "unlink", lambda self, **_: None)  # the fingerprint is made up
    with workspace.active(num_workers=1):
        names = published["configurations"]
        make_plans(workspace, names, published["plan_changes"], **{key: published[key] for key in keys})
    plans = read_json(workspace.preprocessed / f"{PLANS}.json")["configurations"]
    assert (published["max_epochs"], published["initial_lr"], published["optimizer"]) == (1000, 0.01, None)
    for name, member in NOMINAL.members.items():
        plan, network = plans[name], plans[name]["architecture"]["arch_kwargs"]
        assert plan["batch_size"] == 8
        assert plan["patch_size"] == [*member.patch_size]
        assert plan["spacing"] == [each for each in member.spacing if each is not None]
        assert {key: network[key] for key in member.arguments} == member.arguments
        for bundle in ("vs_cochlea_seg", "vs_cochlea_uda"):
            formats = read_json(TRAIN.parents[2] / bundle / "configs" / "metadata.json")["network_data_format"]
            axes = formats["inputs"]["image"]["spatial_shape"][-len(plan["patch_size"]) :]
            for factor, size in zip(torch.tensor(network["strides"]).prod(0).tolist(), axes, strict=True):
                assert int(size.removesuffix("*n")) == 2 * factor  # one voxel alone has no spread to be normalised by


def test_the_presets_are_nnunets(paper_workspace):
    with paper_workspace.active(num_workers=1):
        PLANNERS["ResEncM"](DATASET, plans_name="ResEncM").plan_experiment()
    network = read_json(paper_workspace.preprocessed / "ResEncM.json")["configurations"]["3d_fullres"]["architecture"]
    assert network["network_class_name"].endswith("ResidualEncoderUNet")
    assert {name: kind.__name__ for name, kind in PLANNERS.items()} == {
        "default": "ExperimentPlanner",
        "ResEncM": "nnUNetPlannerResEncM",
        "ResEncL": "nnUNetPlannerResEncL",
        "ResEncXL": "nnUNetPlannerResEncXL",
    }
    with pytest.raises(InputError, match="Did you mean 'ResEncL'"):
        make_plans(paper_workspace, ["2d"], {}, planner="ResEnc_L")


def test_stages_are_cut_from_every_list(paper_plans):
    plan = copy.deepcopy(paper_plans["3d_fullres"])
    change_configuration(plan, {"n_stages": 3, "patch_size": [4, 32, 32], "batch_size": 8}, "3d_fullres")
    network = plan["architecture"]["arch_kwargs"]
    lengths = {len(network[key]) for key in ("kernel_sizes", "strides", "features_per_stage", "n_conv_per_stage")}
    assert lengths == {3}
    assert len(network["n_conv_per_stage_decoder"]) == 2
    assert (plan["batch_size"], plan["patch_size"]) == (8, [4, 32, 32])


def test_no_change_changes_nothing(paper_plans):
    plan = copy.deepcopy(paper_plans["2d"])
    change_configuration(plan, {"batch_size": None}, "2d")
    assert plan == paper_plans["2d"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feature_per_stage": [8]}, "feature_per_stage"),
        ({"features_per_stage": [8]}, "names 1 stages"),
        ({"n_stages": 2}, "Give 3 or more"),
        ({"patch_size": [56, 192, 190]}, "multiple of"),
        ({"patch_size": [192, 192]}, "multiple of"),
    ],
)
def test_what_does_not_fit_is_refused(paper_plans, changes, words):
    with pytest.raises(InputError, match=words):
        change_configuration(copy.deepcopy(paper_plans["3d_fullres"]), changes, "3d_fullres")
