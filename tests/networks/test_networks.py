import pytest
import torch
from torch.export import Dim, export

from plugins.networks import RAIN, FeatureProjector, PatchDiscriminator, RegionNorm, ResnetGenerator, initialise

INSTANCE = {"encoder_norm": "instance", "decoder_norm": "instance", "seg_classes": 0}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def small(**settings):
    torch.manual_seed(0)
    return ResnetGenerator(channels=4, num_res_blocks=2, feature_blocks=(0, 1), init="normal", **settings)


def example():
    torch.manual_seed(1)
    label = torch.zeros(2, 1, 16, 24)
    label[0, :, 2:6, 3:8], label[0, :, 10:12, 12:14] = 1, 2
    return torch.rand(2, 1, 16, 24) * 2 - 1, label


@pytest.mark.parametrize(
    ("network", "millions"),
    [
        (ResnetGenerator, 8.219),
        (PatchDiscriminator, 2.763),
        (lambda: FeatureProjector(ResnetGenerator().feature_channels), 0.560),
        (lambda: ResnetGenerator(num_res_blocks=9, anti_aliased=False, **INSTANCE), 11.366),
    ],
    ids=["TANQ", "PatchGAN", "projector", "CycleGAN"],
)
def test_parameters_are_the_papers(network, millions):
    assert round(parameters(network()) / 1e6, 3) == millions


def test_encoder_normalises_cochlea_and_decoder_restyles_vs():
    network = ResnetGenerator(channels=4, num_res_blocks=1, feature_blocks=(0,))
    norms = {name: module for name, module in network.named_modules() if isinstance(module, RegionNorm)}
    decoder = {name for name in norms if name.startswith("decoder")}
    assert {type(norms[name]) for name in decoder} == {RAIN}
    assert {type(norms[name]) for name in set(norms) - decoder} == {RegionNorm}
    assert {norms[name].num_regions for name in decoder} == {3}
    assert {norms[name].num_regions for name in set(norms) - decoder} == {2}
    assert not any(name.startswith("seg_decoder") for name in norms)


def test_label_changes_the_translation_and_its_absence_is_others():
    network, (x, label) = small(), example()
    assert not torch.allclose(network(x, label)[0], network(x)[0])
    torch.testing.assert_close(network(x, label)[1], network(x)[1], rtol=1e-4, atol=1e-5)


def test_samples_of_a_batch_do_not_mix():
    network, (x, label) = small(), example()
    torch.testing.assert_close(network(x, label)[:1], network(x[:1], label[:1]))


def test_encoder_takes_vs_for_others():
    network, (x, label) = small(decoder_norm="instance"), example()
    without_vs = torch.where(label == 1, 0, label)
    torch.testing.assert_close(network(x, label), network(x, without_vs))


@pytest.mark.parametrize("anti_aliased", [True, False])
def test_scripted_equals_eager_with_and_without_label(anti_aliased):
    network, (x, label) = small(anti_aliased=anti_aliased), example()
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(x, label), network(x, label), rtol=0, atol=1e-6)
    torch.testing.assert_close(scripted(x), network(x), rtol=0, atol=1e-6)


def labelled(samples, *size):
    """Noise with a VS and, in the last sample, a cochlea."""
    label = torch.zeros(samples, 1, *size)
    label[..., 2:7, 3:9], label[-1, ..., 10:12, 12:15] = 1, 2
    return torch.rand(samples, 1, *size) * 2 - 1, label


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"region_reduction": "nearest", "encoder_separates_vs": True},
        {"region_statistics": "batch"},
        {"min_region_pixels": 7, "residual": True, "anti_aliased": False},
        {"spatial_dims": 3},
        {"anti_aliased": False, **INSTANCE},
    ],
    ids=str,
)
@pytest.mark.parametrize("step", [4, None], ids=["named", "dynamic"])
def test_an_exported_program_is_the_network_at_every_size(settings, step):
    network, dims = small(**settings).eval(), settings.get("spatial_dims", 2)
    for name, weight in network.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, -1.0, 1.0)
    depth = [] if dims == 2 else [8]
    axes = {axis: Dim.DYNAMIC if step is None else step * Dim(f"axis_{axis}") for axis in range(2, 2 + dims)}
    sizes = {0: Dim.DYNAMIC if step is None else Dim("batch"), **axes}
    with_label = settings.get("encoder_norm") != "instance"
    inputs = labelled(2, *depth, 16, 24)[: 2 if with_label else 1]
    program = export(network, inputs, dynamic_shapes=(sizes,) * len(inputs)).module()
    for samples, size in ((1, [*depth, 40, 20]), (3, [12 for _ in depth] + [20, 64])):
        x, label = labelled(samples, *size)
        for condition in (label, 0 * label)[: 2 if with_label else 1]:
            given = (x, condition)[: len(inputs)]
            with torch.no_grad():
                expected = network(*given)
                torch.testing.assert_close(program(*given), expected, atol=1e-5, rtol=0)
        if with_label:
            assert (network(x, label) - expected).abs().max() > 0.01


def test_features_come_from_five_depths_and_the_rest_is_left_out():
    network = ResnetGenerator(channels=4, num_res_blocks=6)
    x = torch.rand(1, 1, 16, 16)
    calls = []
    for index, block in enumerate(network.blocks):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    _, features = network.encode(x, network.regions(None, [16, 16]), features_only=True)
    assert calls == [0, 1, 2, 3, 4]
    assert [feature.shape[1] for feature in features] == network.feature_channels == [1, 8, 16, 16, 16]
    assert [feature.shape[2] for feature in features] == [22, 16, 8, 4, 4]


def test_translation_needs_no_seg_decoder():
    network, (x, label) = small(), example()
    expected = network(x, label)
    network.seg_decoder.register_forward_hook(lambda *_: pytest.fail("the SegDecoder ran at inference"))
    torch.testing.assert_close(network(x, label), expected)


def test_seg_decoder_gives_a_logit_for_each_class_and_pixel():
    network, (x, _) = small(), example()
    deepest, _ = network.encode(x, network.regions(None, [16, 24]))
    assert network.segment(deepest).shape == (2, 3, 16, 24)
    with pytest.raises(ValueError, match="no SegDecoder"):
        small(**INSTANCE).segment(deepest)


def test_three_dimensions():
    network = small(spatial_dims=3)
    x = torch.rand(1, 1, 8, 8, 12)
    assert network(x, torch.randint(0, 3, x.shape).float()).shape == x.shape


def test_neighbouring_slices_may_be_channels():
    network, (_, label) = small(in_channels=3, out_channels=3), example()
    assert network.feature_channels == [3, 8, 16, 16, 16]
    assert network(torch.rand(2, 3, 16, 24), label).shape == (2, 3, 16, 24)


def test_encoder_can_separate_vs():
    network, (x, label) = small(decoder_norm="instance", encoder_separates_vs=True), example()
    assert network.stem_norm.norm.num_regions == 3
    assert not torch.allclose(network(x, label)[0], network(x, torch.where(label == 1, 0, label))[0])


def test_batch_statistics_mix_the_samples():
    network, (x, label) = small(region_statistics="batch"), example()
    assert not torch.allclose(network(x, label)[:1], network(x[:1], label[:1]))
    torch.testing.assert_close(network(x[:1], label[:1]), small()(x[:1], label[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"encoder_norm": "batch"}, "'batch'"), ({"num_res_blocks": 3}, "num_res_blocks 3"), ({"init": "zero"}, "'zero'")],
)
def test_a_wrong_argument_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ResnetGenerator(**({"channels": 2} | settings))


def test_odd_sizes_and_foreign_conditions_are_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        small()(torch.rand(1, 1, 18, 16))
    with pytest.raises(ValueError, match="must have the image's size"):
        small()(torch.rand(1, 1, 16, 16), torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("anti_aliased", [True, False])
def test_discriminator_sees_patches_of_70_pixels(anti_aliased):
    network = PatchDiscriminator(channels=2, norm="instance", anti_aliased=anti_aliased).eval()
    x = torch.rand(1, 1, 256, 256, requires_grad=True)
    logits = network.logits(x)
    assert logits.shape == (1, 1, 30, 30)
    for module in network.modules():
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.forward = lambda values: values
    seen = torch.autograd.grad(network.logits(x)[0, 0, 15, 15], x)[0][0, 0] != 0
    width = int(seen.any(0).sum())
    assert width == 70 if not anti_aliased else 70 <= width <= 90


def test_projected_vectors_have_length_one():
    out = FeatureProjector([2, 5], channels=7)([torch.randn(3, 4, 2), torch.randn(3, 4, 5)])
    assert [tuple(each.shape) for each in out] == [(3, 4, 7), (3, 4, 7)]
    torch.testing.assert_close(torch.cat(out).norm(dim=-1), torch.ones(6, 4))


def test_initial_weights_have_the_stated_spread_and_no_bias():
    layer = torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3))
    initialise(layer, "normal", 0.02)
    assert layer[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer[0].bias.abs().max() == 0
    initialise(layer, "xavier", 0.02)
    assert layer[0].weight.std().item() == pytest.approx(0.02 * (2 / (2 * 64 * 9)) ** 0.5, rel=0.05)


def test_a_residual_translation_whose_decoder_gives_nothing_is_the_image():
    network = ResnetGenerator(channels=4, num_res_blocks=1, feature_blocks=[0], residual=True).double()
    for parameter in network.decoder.head.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(1, 1, 16, 16)
    torch.testing.assert_close(network(x), 0.98 * x, rtol=0, atol=1e-12)


def test_a_residual_translation_adds_what_the_decoder_gives_before_tanh():
    torch.manual_seed(0)
    plain = ResnetGenerator(channels=4, num_res_blocks=1, feature_blocks=[0]).double()
    residual = ResnetGenerator(channels=4, num_res_blocks=1, feature_blocks=[0], residual=True).double()
    residual.load_state_dict(plain.state_dict())
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64) * 2 - 1
    expected = ((0.98 * x).atanh() + plain(x).atanh()).tanh()
    torch.testing.assert_close(residual(x), expected, rtol=0, atol=1e-9)
