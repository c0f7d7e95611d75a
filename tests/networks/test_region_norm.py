import onnxruntime
import pytest
import torch
from monai.networks.layers.factories import Norm
from monai.networks.nets import BasicUNet
from torch import nn
from torch.nn import functional as F

from plugins.networks import (
    RAIN,
    RegionNorm,
    Regions,
    list_regions,
    one_hot_regions,
    over_batch,
    region_norm,
    register_norms,
)
from plugins.networks.region_norm import _padded_blocks, _whole_blocks
from plugins.networks.regions import _pooled_evenly

EPS = 1e-5


def naive(x, masks, weight, bias, styled):
    """Eq. (1)-(7), one sample, channel and region at a time, in float64."""
    y = torch.zeros_like(x)
    for n in range(x.shape[0]):
        others = ~masks[n].any(dim=0)
        for c in range(x.shape[1]):
            for r in range(weight.shape[0]):
                mask = others if r == 0 else masks[n, r - 1]
                if not mask.any():
                    continue
                values = x[n, c][mask]
                values = (values - values.mean()) / torch.sqrt(values.var(correction=0) + EPS)
                if styled and r == styled and others.any():
                    rest = x[n, c][others]
                    values = values * torch.sqrt(rest.var(correction=0) + EPS) + rest.mean()
                y[n, c] = y[n, c].masked_scatter(mask, values * weight[r, c] + bias[r, c])
    return y


def masks_of(label, num_targets):
    targets = one_hot_regions(label)[:, 1:]
    return targets if num_targets == 2 else targets[:, 1:]


def example(label, num_targets, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = label.repeat(2, 1, 1, 1) if label.shape[0] == 1 else label
    shape = (label.shape[0], 3, *label.shape[2:])
    x = 5 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(2, num_targets + 1, 3, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), masks_of(label, num_targets)


def labels():
    mixed = torch.zeros(2, 1, 5, 7)
    mixed[0, 0, 1:3, 1:4], mixed[0, 0, 4, 2:6] = 1, 2
    mixed[1, 0, 0, :], mixed[1, 0, 4, 6] = 1, 2
    one_pixel = torch.zeros(1, 1, 5, 7)
    one_pixel[..., 2, 3] = 2
    one_rest = torch.ones(1, 1, 5, 7)
    one_rest[..., 1, 1], one_rest[..., 4, :] = 0, 2
    return {
        "mixed": mixed,
        "absent in one sample": torch.cat([mixed[:1], torch.zeros(1, 1, 5, 7)]),
        "one pixel": one_pixel,
        "covers everything": torch.full((1, 1, 5, 7), 2.0),
        "VS covers everything": torch.ones(1, 1, 5, 7),
        "others is one pixel": one_rest,
        "no region": torch.zeros(1, 1, 5, 7),
    }


@pytest.mark.parametrize("case", labels())
@pytest.mark.parametrize(("num_targets", "styled"), [(1, 0), (2, 0), (2, 1)], ids=["RN", "RN of three", "RAIN"])
class TestAgainstTheNaiveLoop:
    def test_forward_equals_the_equations(self, case, num_targets, styled):
        x, weight, bias, masks = example(labels()[case], num_targets)
        y = region_norm(x, weight, bias, list_regions(masks, [5, 7]), EPS, styled)
        torch.testing.assert_close(y, naive(x, masks, weight, bias, styled), rtol=0, atol=1e-10)

    def test_gradients_are_those_of_the_equations(self, case, num_targets, styled):
        x, weight, bias, masks = example(labels()[case], num_targets)
        regions = list_regions(masks, [5, 7])
        y, expected = region_norm(x, weight, bias, regions, EPS, styled), naive(x, masks, weight, bias, styled)
        outward = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        ours = torch.autograd.grad(y, (x, weight, bias), outward)
        theirs = torch.autograd.grad(expected, (x, weight, bias), outward)
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)

    def test_gradcheck(self, case, num_targets, styled):
        x, weight, bias, masks = example(labels()[case], num_targets)
        regions = list_regions(masks, [5, 7])
        call = lambda *tensors: region_norm(*tensors, regions, EPS, styled)  # noqa: E731
        assert torch.autograd.gradcheck(call, (x, weight, bias))


@pytest.mark.parametrize("kind", [RegionNorm, RAIN])
def test_without_regions_it_is_instance_norm(kind):
    norm, x = kind(4), torch.randn(2, 4, 5, 7)
    torch.testing.assert_close(norm(x), F.instance_norm(x), rtol=0, atol=1e-6)
    nothing = list_regions(torch.zeros(2, norm.num_regions - 1, 5, 7), [5, 7])
    torch.testing.assert_close(norm(x, nothing), F.instance_norm(x), rtol=1e-5, atol=1e-5)


def test_a_four_pixel_cochlea_keeps_its_contrast():
    x = torch.randn(1, 2, 64, 64, dtype=torch.float64)
    x[..., 30:32, 30:32] = torch.tensor([[0.01, 0.02], [0.03, 0.04]], dtype=torch.float64)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 30:32, 30:32] = 1
    values = RegionNorm(2).double()(x, list_regions(mask, [64, 64]))[..., 30:32, 30:32]
    assert values.std(correction=0) > 0.9


def test_one_pixel_region_is_its_bias_and_finite():
    norm = RAIN(3)
    torch.nn.init.constant_(norm.bias[2].data, 0.5)
    masks = torch.zeros(1, 2, 8, 8)
    masks[0, 1, 3, 3] = 1
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    y = norm(x, list_regions(masks, [8, 8]))
    torch.testing.assert_close(y[0, :, 3, 3], torch.full((3,), 0.5))
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_styled_region_has_mean_and_deviation_of_others():
    x, masks = torch.randn(1, 2, 16, 16, dtype=torch.float64), torch.zeros(1, 2, 16, 16, dtype=torch.bool)
    x[..., :4, :4] += 100
    masks[:, 0, :4, :4] = True
    y = RAIN(2).double()(x, list_regions(masks, [16, 16]))
    others = x[0][:, ~masks[0, 0]]
    restyled = y[0][:, masks[0, 0]]
    torch.testing.assert_close(restyled.mean(1), others.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(restyled.std(1, correction=0), others.std(1, correction=0), atol=1e-4, rtol=0)


def test_statistics_of_half_precision_are_float32():
    x = (1000 + torch.randn(1, 2, 32, 32)).to(torch.bfloat16)
    masks = torch.zeros(1, 1, 32, 32)
    masks[..., :3, :3] = 1
    regions, norm = list_regions(masks, [32, 32]), RegionNorm(2)
    y = norm(x, regions)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), norm(x.float(), regions), rtol=1e-2, atol=1e-2)


def test_large_mean_does_not_eat_the_variance():
    x = 1e4 + torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    masks = torch.zeros(1, 1, 64, 64)
    masks[..., 5:9, 5:9] = 1
    regions, norm = list_regions(masks, [64, 64]), RegionNorm(1)
    single = norm(x.float(), regions).double()
    torch.testing.assert_close(single, norm.double()(x, regions), rtol=0, atol=5e-3)


def test_scripted_equals_eager():
    x, masks = torch.randn(2, 4, 6, 6), torch.rand(2, 2, 6, 6) > 0.8
    masks[:, 0] &= ~masks[:, 1]
    regions = list_regions(masks, [6, 6])
    norm = RAIN(4)
    torch.testing.assert_close(torch.jit.script(norm)(x, regions), norm(x, regions), rtol=0, atol=0)


def test_three_dimensions_are_normalised_alike():
    x, masks = torch.randn(1, 2, 4, 6, 8, dtype=torch.float64), torch.rand(1, 1, 4, 6, 8) > 0.7
    weight, bias = torch.ones(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    y = region_norm(x, weight, bias, list_regions(masks, [4, 6, 8]), EPS)
    torch.testing.assert_close(y, naive(x, masks, weight, bias, 0), rtol=0, atol=1e-10)


def test_names_are_known_to_the_norm_factory():
    assert Norm["region", 2] is RegionNorm
    assert Norm["rain", 3] is RAIN


@pytest.mark.parametrize("case", labels())
@pytest.mark.parametrize("kind", [RegionNorm, RAIN])
def test_batch_statistics_are_those_of_one_long_sample(case, kind):
    label = labels()[case]
    norm = kind(3, num_regions=3, statistics="batch").double()
    x, weight, bias, masks = example(label, 2)
    norm.weight.data, norm.bias.data = weight.data, bias.data
    y = norm(x, list_regions(masks, [5, 7]))
    joined, masks = (each.transpose(0, 1).flatten(1, 2)[None] for each in (x, masks))
    expected = naive(joined, masks, weight, bias, norm.styled_region)[0].unflatten(1, (len(x), 5)).transpose(0, 1)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)


def test_batch_statistics_without_regions_are_batch_norm():
    x = torch.randn(2, 3, 5, 7)
    expected = torch.nn.BatchNorm2d(3, track_running_stats=False)(x)
    torch.testing.assert_close(RegionNorm(3, statistics="batch")(x), expected)


def test_any_monai_network_can_name_it():
    torch.manual_seed(0)
    settings = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "features": (4, 4, 4, 4, 4, 4)}
    network = BasicUNet(**settings, norm=("region", {"num_regions": 2}))
    torch.manual_seed(0)
    stock = BasicUNet(**settings, norm=("instance", {"affine": True}))
    x = torch.randn(2, 1, 32, 32)
    assert any(isinstance(module, RegionNorm) for module in network.modules())
    torch.testing.assert_close(network(x), stock(x))


@pytest.mark.parametrize("kind", [RegionNorm, RAIN])
def test_autocast_changes_nothing_but_the_output_type(kind):
    x, masks = torch.randn(2, 3, 8, 8), torch.rand(2, kind(3).num_regions - 1, 8, 8) > 0.8
    norm, regions = kind(3), list_regions(masks, [8, 8])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = norm(x, regions)
    torch.testing.assert_close(inside, norm(x, regions))


@pytest.mark.parametrize("kind", [RegionNorm, RAIN])
def test_compiled_equals_eager_forward_and_backward(kind):
    torch.manual_seed(0)
    x, masks = torch.randn(2, 3, 8, 8), torch.rand(2, kind(3).num_regions - 1, 8, 8) > 0.8
    norm, regions = kind(3), list_regions(masks, [8, 8])
    compiled = torch.compile(norm, backend="aot_eager")
    outward, results = torch.randn(x.shape), []
    for call in (norm, compiled):
        leaf = x.clone().requires_grad_()
        y = call(leaf, regions)
        results.append((y, *torch.autograd.grad(y, (leaf, norm.weight, norm.bias), outward)))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize(
    ("settings", "message"), [({"num_regions": 0}, "at least 1"), ({"statistics": "group"}, "group")]
)
def test_a_wrong_argument_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RegionNorm(4, **settings)


class TestListRegions:
    def test_labels_are_rounded_not_truncated(self):
        one_hot = one_hot_regions(torch.tensor([0.0, 0.9999999997, 2.0000001], dtype=torch.float64).view(1, 1, 1, 3))
        assert one_hot[0, :, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]

    def test_any_keeps_what_nearest_loses(self):
        masks = torch.zeros(1, 1, 16, 16)
        masks[0, 0, 5, 5] = 1
        assert list_regions(masks, [4, 4], "nearest").position.tolist() == []
        assert list_regions(masks, [4, 4], "any").position.tolist() == [5]

    def test_last_region_wins_a_shared_pixel(self):
        masks = torch.zeros(1, 2, 4, 4)
        masks[0, 0, 0, 0], masks[0, 1, 1, 1] = 1, 1
        regions = list_regions(masks, [2, 2], "any")
        assert regions.group.tolist() == [1]
        assert regions.rest_count.tolist() == [3]

    def test_small_regions_join_others(self):
        masks = torch.zeros(2, 1, 4, 4)
        masks[0, 0, 0, :3], masks[1, 0, 0, :2] = 1, 1
        regions = list_regions(masks, [4, 4], min_pixels=3)
        assert regions.sample.tolist() == [0, 0, 0]
        assert regions.rest_count.tolist() == [13, 16]

    def test_it_returns_regions(self):
        assert isinstance(list_regions(torch.zeros(1, 1, 4, 4), [4, 4]), Regions)

    def test_unknown_reduction_is_named(self):
        with pytest.raises(ValueError, match="'linear'"):
            list_regions(torch.zeros(1, 1, 4, 4), [2, 2], "linear")


class Normalised(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.norm, self.size = RAIN(3), size

    def forward(self, x, label):
        return self.norm(x, list_regions(one_hot_regions(label)[:, 1:], self.size))


def rectified(size):
    """Features as a network has them, most of them 0, and a label map with a large VS."""
    label = torch.zeros(1, 1, *size)
    label[..., 20:80, 20:80], label[..., 85:88, 85:88] = 1, 2
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).relu(), label


@pytest.mark.parametrize("size", [[256, 256], [251, 97]], ids=str)
def test_large_feature_maps_lose_no_digits_in_float32(size):
    x, label = rectified(size)
    network = Normalised(size).eval()
    with torch.no_grad():
        y = network(x, label)
        torch.testing.assert_close(y.double(), network.double()(x.double(), label), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [[256, 256], [251, 97]], ids=str)
@pytest.mark.parametrize("offset", [0, 1e5])
def test_gradients_of_large_feature_maps_lose_no_digits_in_float32(size, offset):
    x, label = rectified(size)
    outward = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) + 0.1
    network, found = Normalised(size), []
    for dtype in (torch.float32, torch.float64):
        features = (x + offset).to(dtype).requires_grad_()
        y = network.to(dtype)(features, label)
        found.append(torch.autograd.grad(y, (features, network.norm.weight, network.norm.bias), outward.to(dtype)))
    for ours, exact, tolerance in zip(*found, (1e-5, 1e-3, 1e-3), strict=True):  # sums of up to 65536 terms
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("spread", [1, 1e4])
def test_gradients_of_few_others_lose_no_digits_in_float32(spread):
    size = [256, 256]
    label = torch.full((1, 1, *size), 2.0)
    label[..., 9, 7:9] = 0
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, *size, generator=draw)
    x = torch.where(label == 2, spread * x, x)
    outward = torch.randn(x.shape, generator=draw)
    network, found = Normalised(size), []
    for dtype in (torch.float32, torch.float64):
        y = network.to(dtype)(x.to(dtype), label)
        found.append(torch.autograd.grad(y, (network.norm.weight, network.norm.bias), outward.to(dtype)))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-3, atol=1e-4)


def test_without_gradient_the_output_takes_memory_that_is_at_hand():
    x, label = rectified([24, 40])
    network = Normalised([24, 40])
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profiled:
        network(x, label)
    scaled = [event for event in profiled.events() if event.name == "aten::addcmul"]
    assert [event.cpu_memory_usage for event in scaled] == [0]


def test_features_with_their_channels_last_are_normalised_alike():
    x, label = rectified([24, 40])
    outward = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    network = Normalised([24, 40])
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        features = x.clone().contiguous(memory_format=layout).requires_grad_()
        y = network(features, label)
        found.append(
            (y, *torch.autograd.grad(y, (features, network.norm.weight), outward.contiguous(memory_format=layout)))
        )
    torch.testing.assert_close(*found)


def test_large_feature_maps_lose_no_digits_in_an_exported_network(tmp_path):
    size = [256, 256]
    x, label = rectified(size)
    network, file = Normalised(size).eval(), tmp_path / "norm.onnx"
    torch.onnx.export(network, (x, label), file, input_names=["x", "label"], dynamo=True, verbose=False)
    (y,) = onnxruntime.InferenceSession(file).run(None, {"x": x.numpy(), "label": label.numpy()})
    with torch.no_grad():
        expected = network.double()(x.double(), label)
    torch.testing.assert_close(torch.from_numpy(y).double(), expected, rtol=0, atol=5e-5)


def naive_any(masks, size):
    """Whether any pixel of a block is set, one block after the other; blocks are those of adaptive pooling."""
    blocks = [
        [(i * axis // n, -(-(i + 1) * axis // n)) for i in range(n)]
        for axis, n in zip(masks.shape[2:], size, strict=True)
    ]
    small = torch.zeros(*masks.shape[:2], *size, dtype=torch.bool)
    for at in torch.cartesian_prod(*[torch.arange(n) for n in size]).tolist():
        block = tuple(slice(*blocks[axis][i]) for axis, i in enumerate(at))
        small[(slice(None), slice(None), *at)] = masks[(slice(None), slice(None), *block)].flatten(2).any(2)
    return small


SHRUNK = [((8, 12), [4, 3]), ((8, 12), [2, 12]), ((7, 9), [3, 4]), ((4, 6, 8), [2, 3, 2]), ((4, 5, 8), [2, 3, 2])]


@pytest.mark.parametrize(("before", "after"), SHRUNK, ids=str)
class TestShrinking:
    def test_any_is_any_pixel_of_the_block(self, before, after):
        masks = torch.rand(2, 1, *before) > 0.9
        regions = list_regions(masks, after)
        found = torch.zeros(2, naive_any(masks, after)[0].numel(), dtype=torch.bool)
        found[regions.sample, regions.position] = True
        assert torch.equal(found, naive_any(masks, after).flatten(1))

    def test_an_exported_program_shrinks_alike(self, before, after):
        masks = torch.rand(2, 2, *before).gt(0.9).float()
        assert torch.equal(_pooled_evenly(masks, after), naive_any(masks, after).float())

    def test_nearest_is_the_first_pixel_of_the_block(self, before, after):
        masks = torch.rand(1, 1, *before) > 0.5
        places = [torch.arange(n) * axis // n for axis, n in zip(before, after, strict=True)]
        sampled = masks[0, 0][torch.meshgrid(*places, indexing="ij")]
        assert torch.equal(list_regions(masks, after, "nearest").position, sampled.flatten().nonzero()[:, 0])


def test_a_list_of_regions_is_that_of_counting_pixel_by_pixel():
    masks = torch.rand(3, 3, 4, 5) > 0.7
    regions = list_regions(masks, [4, 5], min_pixels=3)
    owner = torch.zeros(3, 20, dtype=torch.long)
    for n in range(3):
        for pixel in range(20):
            claims = [r for r in range(3) if masks[n, r].flatten()[pixel]]
            owner[n, pixel] = claims[-1] + 1 if claims else 0
        for r in range(3):
            if (owner[n] == r + 1).sum() < 3:
                owner[n][owner[n] == r + 1] = 0
    listed = {(n, p): 3 * n + owner[n, p].item() - 1 for n in range(3) for p in range(20) if owner[n, p] > 0}
    columns = (regions.sample.tolist(), regions.position.tolist(), regions.group.tolist())
    assert {(n, p): group for n, p, group in zip(*columns, strict=True)} == listed
    assert len(regions.sample) == len(listed)
    assert regions.target_count.tolist() == [(owner[n] == r + 1).sum().item() for n in range(3) for r in range(3)]
    assert regions.rest_count.tolist() == [(owner[n] == 0).sum().item() for n in range(3)]


def test_a_region_of_just_enough_pixels_stays_and_one_pixel_is_enough_by_default():
    masks = torch.zeros(1, 1, 4, 4)
    masks[0, 0, 1, :3] = 1
    assert list_regions(masks, [4, 4], min_pixels=3).target_count.tolist() == [3]
    assert list_regions(masks, [4, 4], min_pixels=4).target_count.tolist() == [0]
    masks[0, 0, 1, 1:] = 0
    assert list_regions(masks, [4, 4]).target_count.tolist() == [1]


def test_joined_samples_list_each_pixel_behind_those_of_the_samples_before():
    masks = torch.rand(3, 2, 4, 5) > 0.7
    regions = list_regions(masks, [4, 5])
    joined = over_batch(regions, 20)
    expected = list_regions(masks.transpose(0, 1).reshape(1, 2, 12, 5), [12, 5])
    key = lambda each: sorted(zip(each.position.tolist(), each.group.tolist(), each.sample.tolist(), strict=True))  # noqa: E731
    assert key(joined) == key(expected)
    assert joined.target_count.tolist() == expected.target_count.tolist()
    assert joined.rest_count.tolist() == expected.rest_count.tolist()


def test_the_map_of_labels_has_three_classes_by_default_and_others_are_none():
    label = torch.tensor([0.4, 0.6, 1.6, 2.6]).view(1, 1, 2, 2)
    assert one_hot_regions(label)[0].flatten(1).int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize(("kind", "num_regions", "styled"), [(RegionNorm, 2, 0), (RAIN, 3, 1)])
def test_the_defaults_are_those_of_the_paper(kind, num_regions, styled):
    norm = kind(3)
    assert norm.weight.shape == norm.bias.shape == (num_regions, 3)
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()
    assert norm.weight.requires_grad
    assert norm.bias.requires_grad
    assert (norm.eps, norm.styled_region, norm.over_batch) == (1e-5, styled, False)
    assert not kind(3, affine=False).weight.requires_grad
    assert not kind(3, affine=False).bias.requires_grad
    assert kind(3, statistics="batch").over_batch


def test_one_region_alone_is_instance_norm_of_everything():
    norm, x = RegionNorm(3, num_regions=1), torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(norm(x), F.instance_norm(x))


@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 512, 1000, 4099])
def test_blocks_hold_every_term_once_and_are_short(length):
    x = torch.arange(2 * 3 * length, dtype=torch.float64).view(2, 3, length)
    for blocks in (_whole_blocks(x), _padded_blocks(x)):
        assert blocks.shape[3] <= 256
        whole = blocks.flatten(2)
        assert torch.equal(whole[..., :length], x)
        assert (whole[..., length:] == 0).all()
    assert _padded_blocks(x).shape[2:] == (length // 256 + 2, 256)


def test_names_registered_twice_stay_those_they_were():
    before = list(Norm.names)
    register_norms()
    assert list(Norm.names) == before
    assert Norm["region", 2] is RegionNorm
    assert Norm["rain", 2] is RAIN
