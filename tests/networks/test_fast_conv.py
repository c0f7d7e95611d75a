from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from plugins.networks import BlurUp, Conv3x3, DoubledConv3x3, HeadConv, fast_conv
from plugins.networks.fast_conv import (
    one_channel_conv2d,
    winograd_conv2d,
    winograd_doubled_conv2d,
    winograd_weight_gradient,
)

SIZES = [(3, 3), (6, 6), (7, 9), (18, 30), (16, 21)]


def close(ours, theirs):
    error = (ours.double() - theirs).abs().max() / theirs.abs().max()
    assert error < 2e-5, f"relative error {error:.1e}"


@pytest.fixture(autouse=True)
def capability(monkeypatch):
    """Names the instructions that torch uses; AVX2 on any machine, unless a test says otherwise."""

    def use(name):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)

    use("AVX2")
    return use


@pytest.fixture
def ways(monkeypatch):
    """Names of the fast ways that were taken."""
    taken = []
    for name in ("winograd_conv2d", "winograd_weight_gradient", "winograd_doubled_conv2d", "one_channel_conv2d"):
        way = getattr(fast_conv, name)
        monkeypatch.setattr(fast_conv, name, lambda *given, n=name, way=way: taken.append(n) or way(*given))
    return taken


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("band", [1, 10**9])
def test_it_is_the_convolution_in_float64(size, band, monkeypatch):
    monkeypatch.setattr("plugins.networks.fast_conv.BAND_ELEMENTS", band)
    x, weight = torch.randn(2, 5, *size), torch.randn(7, 5, 3, 3)
    close(winograd_conv2d(x, weight), F.conv2d(x.double(), weight.double()))


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (10, 16)])
@pytest.mark.parametrize("band", [1, 10**9])
def test_doubling_and_convolution_in_one_go_are_both_in_float64(size, band, monkeypatch):
    monkeypatch.setattr("plugins.networks.fast_conv.BAND_ELEMENTS", band)
    x, weight = torch.randn(2, 5, *size), torch.randn(7, 5, 3, 3)
    close(winograd_doubled_conv2d(x, weight), F.conv2d(BlurUp()(x.double()), weight.double(), padding=1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("band", [1, 2000, 10**9])
def test_the_gradient_by_the_weight_is_that_in_float64(size, band, monkeypatch):
    monkeypatch.setattr("plugins.networks.fast_conv.BAND_ELEMENTS", band)
    x, weight = torch.randn(2, 5, *size), torch.randn(7, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    output = F.conv2d(x.double(), weight)
    outward = torch.randn(output.shape)
    output.backward(outward.double())
    close(winograd_weight_gradient(x, outward), weight.grad)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [(10, 13), (3, 4)])
def test_layer_and_its_gradients_are_those_in_float64(padding, size, ways):
    layer, x = Conv3x3(64, 128, padding), torch.randn(2, 64, *size, requires_grad=True)
    exact, exact_x = deepcopy(layer).double(), x.detach().double().requires_grad_()
    expected = F.conv2d(exact_x, exact.weight, exact.bias, padding=padding)
    with torch.no_grad():
        close(layer(x), expected)
    output, outward = layer(x), torch.randn(expected.shape)
    close(output.detach(), expected)
    output.backward(outward)
    expected.backward(outward.double())
    assert ways == ["winograd_conv2d"] * 3 + ["winograd_weight_gradient"]
    for ours, theirs in ((x, exact_x), (layer.weight, exact.weight), (layer.bias, exact.bias)):
        close(ours.grad, theirs.grad)


def test_frozen_weights_and_inputs_get_no_gradient(ways):
    layer, x = Conv3x3(64, 128), torch.randn(1, 64, 6, 6)
    layer(x).sum().backward()
    assert ways == ["winograd_conv2d", "winograd_weight_gradient"]
    layer = Conv3x3(64, 128).requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert ways[2:] == ["winograd_conv2d"] * 2
    assert layer.weight.grad is None
    assert layer.bias.grad is None


def test_few_channels_and_other_types_are_torchs_own():
    for layer, x in (
        (Conv3x3(8, 8, 1), torch.randn(1, 8, 6, 6)),
        (Conv3x3(64, 64, 1).double(), torch.randn(1, 64, 6, 6).double()),
    ):
        expected = F.conv2d(x, layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(8, 12), (7, 12)])
def test_doubled_layer_is_the_same_with_and_without_gradient(size):
    layer, x = DoubledConv3x3(64, 128), torch.randn(1, 64, *size)
    with torch.no_grad():
        fast = layer(x)
    expected = F.conv2d(BlurUp()(x.double()), layer.conv.weight.double(), layer.conv.bias.double(), padding=1)
    close(fast, expected)
    close(layer(x).detach(), expected)


def test_scripted_layers_are_torchs_own():
    x = torch.randn(1, 64, 8, 8)
    for layer in (Conv3x3(64, 64, 1), DoubledConv3x3(64, 64)):
        close(torch.jit.script(layer)(x).detach(), layer.double()(x.double()).detach())


def test_layers_made_in_inference_mode_work():
    with torch.inference_mode():
        layer, x = Conv3x3(64, 128), torch.randn(1, 64, 8, 8)
        close(layer(x), F.conv2d(x.double(), layer.weight.double(), layer.bias.double()))


def test_autocast_takes_torchs_way():
    layer, x = Conv3x3(64, 128), torch.randn(1, 64, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_the_default_type_does_not_matter():
    layer, head, x = Conv3x3(64, 128), HeadConv(64, 1, 7), torch.randn(1, 64, 8, 8)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            assert layer(x).dtype == head(x).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_changed_weights_are_transformed_anew():
    layer, x = Conv3x3(64, 128), torch.randn(1, 64, 8, 8)
    with torch.no_grad():
        layer(x)
        layer.weight.data.mul_(2)
        close(layer(x), F.conv2d(x.double(), layer.weight.double(), layer.bias.double()))
        layer.load_state_dict(Conv3x3(64, 128).state_dict())
        close(layer(x), F.conv2d(x.double(), layer.weight.double(), layer.bias.double()))


@pytest.mark.parametrize("kernel", [(7, 7), (3, 5)])
def test_one_channel_is_the_convolution_in_float64(kernel):
    x, weight = torch.randn(2, 6, 11, 14), torch.randn(1, 6, *kernel)
    close(one_channel_conv2d(x, weight), F.conv2d(x.double(), weight.double()))


@pytest.mark.parametrize("out_channels", [1, 3])
def test_head_is_the_same_with_and_without_gradient(out_channels):
    layer, x = HeadConv(6, out_channels, 7), torch.randn(2, 6, 11, 14)
    with torch.no_grad():
        fast = layer(x)
    for ours in (fast, layer(x).detach(), torch.jit.script(layer)(x).detach()):
        close(ours, F.conv2d(x.double(), layer.weight.double(), layer.bias.double()))


@pytest.mark.parametrize(
    ("channels", "fast"),
    [((64, 128), True), ((128, 64), True), ((63, 128), False), ((64, 127), False), ((64, 64), False)],
)
def test_winograds_way_begins_at_64_channels_on_one_side_and_128_on_the_other(ways, channels, fast):
    x = torch.randn(1, channels[0], 6, 6)
    with torch.no_grad():
        Conv3x3(*channels)(x)
        DoubledConv3x3(*channels)(x)
    assert ways == (["winograd_conv2d", "winograd_doubled_conv2d"] if fast else [])


@pytest.mark.parametrize("name", ["AVX512", "DEFAULT"])
def test_without_avx2_alone_convolutions_are_torchs_own_but_doubled_maps_and_heads_are_not(ways, capability, name):
    capability(name)
    layer, x = Conv3x3(64, 128), torch.randn(1, 64, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias), rtol=0, atol=0)
        DoubledConv3x3(64, 128)(x)
        HeadConv(64, 1, 3)(x)
    assert ways == ["winograd_doubled_conv2d", "one_channel_conv2d"]


@pytest.mark.parametrize(("size", "fast"), [((4, 6), True), ((5, 6), False), ((4, 7), False), ((5, 7), False)])
def test_only_maps_of_even_axes_are_doubled_and_convolved_in_one_go(ways, size, fast):
    with torch.no_grad():
        DoubledConv3x3(64, 128)(torch.randn(1, 64, *size))
    assert ways == ["winograd_doubled_conv2d" if fast else "winograd_conv2d"]


@pytest.mark.parametrize("out_channels", [1, 2])
def test_only_a_head_of_one_channel_without_gradient_is_a_matrix_product(ways, out_channels):
    layer, x = HeadConv(6, out_channels, 3), torch.randn(1, 6, 8, 8)
    layer(x)
    layer.double()(x.double())
    assert ways == []
    with torch.no_grad():
        layer.double()(x.double())
        assert ways == []
        layer.float()(x)
    assert ways == (["one_channel_conv2d"] if out_channels == 1 else [])


@pytest.mark.parametrize("bias", [False, True])
def test_a_bias_is_added_once_in_both_ways(bias):
    x, weight = torch.randn(2, 5, 8, 10), torch.randn(7, 5, 3, 3)
    shift = 100 * torch.randn(7) if bias else None
    wide = None if shift is None else shift.double()
    close(winograd_conv2d(x, weight, shift), F.conv2d(x.double(), weight.double(), wide))
    expected = F.conv2d(BlurUp()(x.double()), weight.double(), wide, padding=1)
    close(winograd_doubled_conv2d(x, weight, shift), expected)


@pytest.mark.parametrize(
    ("limit", "bands"), [(1, [1] * 6), (36 * 5 * 2 * 4 * 2, [2] * 3), (36 * 5 * 2 * 4 * 5, [5, 1]), (10**9, [6])]
)
def test_a_band_keeps_to_its_limit(monkeypatch, limit, bands):
    monkeypatch.setattr(fast_conv, "BAND_ELEMENTS", limit)
    x, weight, sizes, product = torch.randn(2, 5, 26, 18), torch.randn(7, 5, 3, 3), [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *given, **how: sizes.append(given[1].shape) or product(*given, **how))
    winograd_conv2d(x, weight)
    assert sizes == [(36, 5, 2 * band * 4) for band in bands]
