"""Random contrasts against float64 computations that know nothing of tables, boxes or torch."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.signal import correlate

from plugins.nnunet.contrast import ClusterRedraw, RandomConvolutions, RandomCurves, cluster_means, on_curve
from plugins.nnunet.patches import around, soft, through

SIZES = [(20, 23), (9, 14, 16)]


def example(*size, seed=0):
    torch.manual_seed(seed)
    segmentation = torch.zeros(1, *size, dtype=torch.int16)
    segmentation[(0, *[slice(3, 7)] * len(size))] = 1
    segmentation[(0, -1, -1)] = 2
    segmentation[(0, 0, 0)] = -1
    segmentation[(0, 0, 1)] = 3
    return {"image": torch.randn(1, *size) ** 3, "segmentation": segmentation}


def casteljau(points, t):
    points = [list(map(float, point)) for point in points]
    while len(points) > 1:
        points = [[(1 - t) * p + t * q for p, q in zip(*pair, strict=True)] for pair in pairwise(points)]
    return points[0]


def height(points, x):
    """Ordinate of the curve at an abscissa, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if casteljau(points, middle)[0] < x else (low, middle)
    return casteljau(points, (low + high) / 2)[1]


@pytest.mark.parametrize("settings", [{"inverted": 0}, {"inverted": 1}, {"monotone": 0}])
def test_a_curve_is_the_bezier_curve_of_its_points(settings):
    torch.manual_seed(1)
    for _ in range(20):
        points = RandomCurves(**settings).get_parameters()["curves"][0]
        x = torch.linspace(0.02, 0.98, 25)
        expected = [height(points.tolist(), float(each)) for each in x]
        np.testing.assert_allclose(on_curve(x, points).numpy(), expected, atol=4e-3)
        sign = 1 if points[3, 1] >= points[0, 1] else -1
        beyond = on_curve(torch.tensor([-2.0, 3.0]), points).tolist()
        assert beyond == pytest.approx([float(points[0, 1]) - 2 * sign, float(points[3, 1]) + 2 * sign], abs=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_mean_spread_and_labels_stay_and_the_order_stays_or_turns(size):
    before = example(*size)
    for inverted in (0, 1):
        labels = before["segmentation"].clone()
        after = RandomCurves(inverted=inverted)(**before)
        values, changed = before["image"].flatten(), after["image"].flatten()
        assert float(changed.mean()) == pytest.approx(float(values.mean()), abs=1e-5)
        assert float(changed.std()) == pytest.approx(float(values.std()), rel=1e-4)
        steps = changed[values.argsort()].diff()
        assert (steps * (-1 if inverted else 1)).min() > -1e-5
        assert not torch.equal(changed, values)
        assert torch.equal(after["segmentation"], labels)


@pytest.mark.parametrize("size", SIZES)
def test_the_straight_curve_changes_nothing(size):
    before = example(*size)
    straight = torch.tensor([[0, 0], [0.3, 0.3], [0.6, 0.6], [1, 1]])
    curves = {0: straight, 1: straight, 2: straight}
    after = RandomCurves().apply(before, curves=curves)
    torch.testing.assert_close(after["image"], before["image"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_structures_follow_their_own_curves_and_nothing_else_does(size):
    before = example(*size)
    torch.manual_seed(2)
    augment = RandomCurves(per_structure=True)
    curves = augment.get_parameters()["curves"]
    assert sorted(curves) == [0, 1, 2]
    image, labels = before["image"][0].double(), before["segmentation"][0].numpy()
    values = np.sort(image.numpy().ravel())
    low, high = values[int(0.005 * (len(values) - 1))], values[int(0.995 * (len(values) - 1))]
    scaled = (image - low) / (high - low)
    expected = on_curve(scaled, curves[0]).numpy()
    for label in (1, 2):
        own, weight = on_curve(scaled, curves[label]).numpy(), naive_soft(labels == label)
        expected = (1 - weight) * expected + weight * own
    expected = (expected - expected.mean()) / expected.std() * image.numpy().std() + image.numpy().mean()
    after = augment.apply(before, curves=curves)["image"][0]
    np.testing.assert_allclose(after.numpy(), expected, atol=2e-5)


def naive_soft(inside):
    weight = np.zeros(inside.shape)
    for place in np.ndindex(inside.shape):
        window = inside[tuple(slice(max(0, at - 1), at + 2) for at in place)]
        weight[place] = max(window.mean(), 0.5) if inside[place] else window.mean()
    return weight


@pytest.mark.parametrize("size", SIZES)
def test_a_soft_mask_fades_over_one_voxel_and_its_box_holds_it_all(size):
    labels = example(*size)["segmentation"][0]
    for label in (1, 2, 3):
        inside, box = labels == label, around(labels == label)
        expected = naive_soft(inside.numpy())
        np.testing.assert_allclose(soft(inside, torch.float64).numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(soft(inside[box], torch.float64).numpy(), expected[box], atol=1e-12)
        outside = expected.copy()
        outside[box] = 0
        assert not outside.any()


def test_shares_of_inverted_and_falling_curves_are_as_asked():
    torch.manual_seed(0)
    augment = RandomCurves(inverted=0.25, monotone=0.6)
    drawn = [augment.get_parameters()["curves"][0][:, 1] for _ in range(1000)]
    ends = [sorted((float(y[0]), float(y[3]))) == [0, 1] for y in drawn]
    assert 540 < sum(ends) < 660
    inverted = [float(y[0]) == 1 for y, end in zip(drawn, ends, strict=True) if end]
    assert 0.19 < sum(inverted) / len(inverted) < 0.31


@pytest.mark.parametrize("size", SIZES)
def test_random_convolutions_are_those_of_scipy_at_the_same_norm(size):
    before = example(*size)
    torch.manual_seed(3)
    augment = RandomConvolutions(layers=3, channels=2, kernel_sizes=(1, 3))
    for _ in range(4):
        drawn = augment.get_parameters(**before)
        margin = sum(weight.shape[-1] // 2 for weight, _ in drawn["kernels"])
        channels = [np.pad(before["image"][0].double().numpy(), margin, mode="edge")]
        for number, (weight, shift) in enumerate(drawn["kernels"]):
            if number:
                channels = [np.where(channel > 0, channel, 0.01 * channel) for channel in channels]
            kernels = weight.double().numpy()
            channels = [
                float(move)
                + sum(correlate(x, k, mode="valid", method="direct") for x, k in zip(channels, each, strict=True))
                for each, move in zip(kernels, shift, strict=True)
            ]
        image = before["image"][0].double().numpy()
        mixed = drawn["share"] * channels[0] + (1 - drawn["share"]) * image
        expected = mixed * math.sqrt((image**2).sum() / (mixed**2).sum())
        after = augment.apply(dict(before), **drawn)
        np.testing.assert_allclose(after["image"][0].numpy(), expected, atol=2e-5)
        assert float(after["image"].norm()) == pytest.approx(float(before["image"].norm()), rel=1e-5)
        assert torch.equal(after["segmentation"], example(*size)["segmentation"])


def test_without_a_share_of_the_network_nothing_changes():
    before = example(12, 14)
    after = RandomConvolutions(blend=(0, 0))(**dict(before))
    torch.testing.assert_close(after["image"], before["image"])


def naive_means(values, number):
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    means = sorted({ordered[int((k + 0.5) / number * len(ordered))] for k in range(number)})
    for _ in range(20):
        groups = [[] for _ in means]
        for value in ordered:
            groups[min(range(len(means)), key=lambda k, v=value: (abs(means[k] - v), -k))].append(value)
        means = [float(np.mean(group)) if group else mean for group, mean in zip(groups, means, strict=True)]
    return sorted(set(means))


def test_cluster_means_are_those_of_lloyds_algorithm():
    for seed in range(5):
        random = np.random.default_rng(seed)
        values = np.concatenate([random.normal(centre, 0.2, 40) for centre in (-2, 0, 1, 4)]).astype(np.float32)
        found = cluster_means(torch.from_numpy(random.permutation(values)), 4)
        np.testing.assert_allclose(found.numpy(), naive_means(values, 4), rtol=1e-5)
    assert cluster_means(torch.tensor([1.0, 1, 1, 3]), 6).tolist() == [1, 3]


@pytest.mark.parametrize("size", SIZES)
def test_clusters_get_the_means_of_the_target(size):
    before = example(*size)
    augment = ClusterRedraw(number=3, targets=[-1.0, 0.5, 4.0], jitter=0)
    heights = augment.get_parameters()["heights"]
    assert set(heights.tolist()) <= {-1.0, 0.5, 4.0}
    means = naive_means(before["image"].flatten().tolist(), 3)
    after = augment.apply(dict(before), heights=torch.tensor([4.0, -1.0, 0.5]))["image"].flatten()
    for value, changed in zip(before["image"].flatten().tolist(), after.tolist(), strict=True):
        inner = min(max(value, means[0]), means[-1])
        assert changed == pytest.approx(np.interp(inner, means, [4, -1, 0.5]) + value - inner, abs=2e-4)


@pytest.mark.parametrize("size", SIZES)
def test_clusters_with_random_means_keep_mean_and_spread_of_the_patch(size):
    before = example(*size)
    after = ClusterRedraw(number=4)(**dict(before))
    assert not torch.equal(after["image"], before["image"])
    assert float(after["image"].mean()) == pytest.approx(float(before["image"].mean()), abs=1e-5)
    assert float(after["image"].std()) == pytest.approx(float(before["image"].std()), rel=1e-4)


def test_a_line_through_knots_with_a_step_is_finite():
    values = torch.tensor([-1.0, 0, 0.5, 1, 2])
    result = through(values, torch.tensor([0.0, 0.5, 0.5, 1]), torch.tensor([0.0, 1, 3, 3]))
    assert result.isfinite().all()
    assert result[[0, 1, 3, 4]].tolist() == [-1, 0, 3, 4]


@pytest.mark.parametrize("transform", [RandomCurves(per_structure=True), RandomConvolutions(), ClusterRedraw()])
@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_constant_patch_stays_finite(transform, value):
    torch.manual_seed(0)
    image = torch.full((1, 8, 9), value)
    after = transform(image=image.clone(), segmentation=example(8, 9)["segmentation"])
    assert after["image"].isfinite().all()
    assert float(after["image"].std()) < (1e-5 if not isinstance(transform, RandomConvolutions) else 10)


@pytest.mark.parametrize("transform", [RandomCurves(per_structure=True), RandomConvolutions(), ClusterRedraw()])
def test_the_same_seed_gives_the_same_patch(transform):
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(transform(**example(12, 13, seed=4))["image"])
    assert torch.equal(*results)
