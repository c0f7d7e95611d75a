import dataclasses

import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from plugins.errors import InputError
from plugins.nnunet import training
from plugins.nnunet.appearance import TargetAppearance
from plugins.nnunet.augmentation import make_augmentation
from plugins.nnunet.brightness import TargetBrightness
from plugins.nnunet.checkpoints import newest_checkpoint
from plugins.nnunet.contrast import ClusterRedraw, RandomConvolutions, RandomCurves
from plugins.nnunet.trainer import TrainerSettings, make_trainer
from plugins.segmentation import SlidingWindow

from .test_training import copy_of

ALL = {
    "convolutions": {"probability": 0.25},
    "curves": {"per_structure": True},
    "brightness": {"factors": {"VS": [0.4, 0.6], "cochlea": [1, 1.5]}, "stretch": 0.2},
    "appearance": {"levels": {"VS": [0.2, 0.7]}, "probability": 0.75, "texture": [0.3, 1.0], "cysts": 0.5},
    "clusters": {"number": 4},
}


def test_a_killed_training_ends_with_the_same_weights(trained, tmp_path, monkeypatch):
    settings = dataclasses.replace(trained.settings, augmentation=ALL, max_epochs=2)
    results = {}
    for killed in (False, True):
        workspace = copy_of(trained.workspace, tmp_path / str(killed))
        arguments = (workspace, "2d", 0, settings, SlidingWindow(), False)
        if killed:
            with monkeypatch.context() as patch:
                patch.setattr(training, "_report", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    training.train_fold(*arguments)
            assert newest_checkpoint(workspace.fold("2d", 0))["current_epoch"] == 1
        training.train_fold(*arguments)
        results[killed] = newest_checkpoint(workspace.fold("2d", 0))["network_weights"]
    assert all(torch.equal(results[False][key], results[True][key]) for key in results[False])


def interrupt(_, **shown):
    if shown:  # an epoch has ended
        raise KeyboardInterrupt


def kinds(transforms):
    return [type(each.transform if isinstance(each, RandomTransform) else each) for each in transforms]


def test_the_order_does_not_depend_on_the_config():
    order = [ClusterRedraw, TargetAppearance, TargetBrightness, RandomCurves, RandomConvolutions]
    made = make_augmentation(ALL)
    assert kinds(made) == order
    assert kinds(make_augmentation(dict(reversed(ALL.items())))) == order
    assert [made[index].apply_probability for index in (0, 3, 4)] == [0.5, 0.5, 0.25]
    assert make_augmentation(None) == make_augmentation({}) == []


def test_it_acts_in_front_of_nnunets_own(trained, tmp_path):
    with trained.workspace.active(num_workers=0):
        lists = []
        for augmentation in (None, ALL):
            trainer = make_trainer(trained.workspace, "2d", 0, TrainerSettings(device="cpu", augmentation=augmentation))
            lists.append(trainer.get_training_transforms((16, 16), (0, 1), None, (0, 1), False).transforms)
    assert isinstance(lists[0][0], SpatialTransform)
    assert kinds(lists[1][5:]) == kinds(lists[0])
    assert kinds(lists[1][:5]) == kinds(make_augmentation(ALL))


@pytest.mark.parametrize("size", [(20, 22), (8, 20, 22)])
def test_all_together_leave_labels_and_shapes_and_give_finite_numbers(size):
    torch.manual_seed(0)
    segmentation = torch.zeros(1, *size, dtype=torch.int16)
    segmentation[(0, *[slice(2, 6)] * len(size))] = 1
    image = torch.randn(1, *size)
    everything = {name: {**settings, "probability": 1} for name, settings in ALL.items()}
    for _ in range(10):
        data = {"image": image.clone(), "segmentation": segmentation.clone()}
        for transform in make_augmentation(everything):
            data = transform(**data)
        assert data["image"].shape == image.shape
        assert data["image"].isfinite().all()
        assert not torch.equal(data["image"], image)
        assert torch.equal(data["segmentation"], segmentation)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curve": {}}, "Did you mean 'curves'"),
        ({"curves": {"probabilty": 1}}, "Did you mean 'probability'"),
        ({"curves": {"probability": 2}}, "curves::probability is 2. It must be at most 1"),
        ({"curves": {"inverted": 1.5}}, "curves::inverted is 1.5. It must be at most 1"),
        ({"curves": {"monotone": "half"}}, "curves::monotone is 'half'. Give a number"),
        ({"convolutions": {"kernel_sizes": [1, 2]}}, r"kernel_sizes is \[1, 2\]. Give odd numbers"),
        ({"convolutions": {"kernel_sizes": []}}, "kernel_sizes is empty"),
        ({"convolutions": {"layers": 0}}, "convolutions::layers is 0. It must be more than 0"),
        ({"convolutions": {"blend": [0.5, 0.2]}}, r"convolutions::blend is \[0.5, 0.2\]. Give two numbers in order"),
        ({"clusters": {"number": 1}}, "clusters::number is 1. It must be 2 or more"),
        ({"clusters": {"targets": []}}, "clusters::targets is empty"),
        ({"clusters": {"targets": [float("nan")]}}, "clusters::targets::0 is nan. Give a number"),
        ({"clusters": {"jitter": -1}}, "clusters::jitter is -1. It must be 0 or more"),
        ({"appearance": {"probability": 1}}, "appearance has no levels"),
        ({"brightness": {"stretch": 0.1}}, r"brightness has no factors. Give some, e.g. {\"VS\": \[0.5, 0.5\]}"),
        ({"brightness": {"factors": {"VS": [1, 0.5]}}}, r"factors::VS is \[1, 0.5\]. Give two numbers in order"),
        ({"brightness": {"factors": {"VS": [-1, 0.5]}}}, "factors::VS::0 is -1. It must be 0 or more"),
        ({"brightness": {"factors": {"VS": [1, 1]}, "stretch": 0.5}}, "stretch is 0.5. It must be less than 0.5"),
        ({"appearance": {"levels": {"tumour": [0, 1]}}}, "appearance::levels has no 'tumour'"),
        ({"appearance": {"levels": {"VS": [0.5, 0.2]}}}, r"levels::VS is \[0.5, 0.2\]. Give two numbers in order"),
        ({"appearance": {"levels": {"VS": [0, 2]}}}, "levels::VS::1 is 2. It must be at most 1"),
        ({"appearance": {"levels": {"VS": [0, 1]}, "texture": [1, 0]}}, "appearance::texture is .* in order"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        make_augmentation(settings)
