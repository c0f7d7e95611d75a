"""Codes of the target: a site, or the style of an image."""

import pytest
import torch
from torch.export import Dim, export

from plugins.errors import InputError
from plugins.networks import CodeAffine, ResnetGenerator, SiteCode, StyleCode

CODES = {"site": lambda: SiteCode(["etz", "ldn", "ukm"]), "style": lambda: StyleCode(channels=3, width=2)}
codes = pytest.mark.parametrize("make", CODES.values(), ids=CODES)


def small(**settings):
    torch.manual_seed(0)
    return ResnetGenerator(channels=4, num_res_blocks=2, feature_blocks=(0, 1), init="normal", **settings)


def trained(**settings):
    """A generator whose code has an effect."""
    network = small(**settings)
    for affine in (network.decoder.affine1, network.decoder.affine2):
        torch.nn.init.uniform_(affine.weight, -1, 1)
    return network


def example(samples=2):
    torch.manual_seed(1)
    label = torch.zeros(samples, 1, 16, 24)
    label[0, :, 2:6, 3:8], label[0, :, 10:12, 12:14] = 1, 2
    return torch.rand(samples, 1, 16, 24) * 2 - 1, label


@pytest.mark.parametrize("size", [(5, 4), (3, 5, 4)])
def test_each_channel_is_scaled_and_shifted_by_its_own_row(size):
    torch.manual_seed(0)
    affine = CodeAffine(code_channels=3, channels=2)
    x, code = torch.rand(4, 2, *size), torch.rand(4, 3)
    assert torch.equal(affine(x, code), x)
    torch.nn.init.normal_(affine.weight)
    out = affine(x, code)
    for sample in range(4):
        for channel in range(2):
            scale = sum(float(affine.weight[channel, k] * code[sample, k]) for k in range(3))
            shift = sum(float(affine.weight[2 + channel, k] * code[sample, k]) for k in range(3))
            torch.testing.assert_close(out[sample, channel], (1 + scale) * x[sample, channel] + shift)


def test_a_site_is_one_hot_and_without_one_all_have_the_same_share():
    code = SiteCode(["etz", "ldn", "ukm"], "ukm")
    images = torch.zeros(3, 1, 4, 4)
    assert code.of(images, ["ldn", "etz", "ldn"]).tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert code(2).tolist() == [[0, 0, 1]] * 2
    torch.testing.assert_close(SiteCode(["etz", "ldn", "ukm"])(1), torch.full((1, 3), 1 / 3))
    assert code.state_dict() == {}  # so that the site is a setting of the use, not of the weights


@pytest.mark.parametrize(
    ("sites", "site", "words"),
    [([], None, r"sites is \[\]"), (["a", "a"], None, "each site of the target once"), (["a"], "b", "site is 'b'")],
)
def test_sites_that_cannot_be_are_refused(sites, site, words):
    with pytest.raises(InputError, match=words):
        SiteCode(sites, site)


@pytest.mark.parametrize("names", [["etz", "unknown"], None])
def test_a_real_scan_of_a_site_without_a_code_is_refused(names):
    with pytest.raises(InputError, match=r"site 'unknown', which has no code\. Its sites are etz, ldn"):
        SiteCode(["etz", "ldn"]).of(torch.zeros(2, 1, 4, 4), names)


def test_the_mean_style_is_that_of_the_first_batches_and_then_moves():
    torch.manual_seed(0)
    code, batches = StyleCode(channels=4, width=2).double(), torch.rand(130, 3, 1, 8, 8).double() * 20
    expected = torch.zeros(4, dtype=torch.float64)
    for index, images in enumerate(batches):
        found = code.of(images)
        own = torch.stack([code.read(image[None])[0] for image in images])
        torch.testing.assert_close(found, own)
        if index < 100:
            expected = (expected * index + own.mean(0)) / (index + 1)
        else:
            expected = 0.99 * expected + 0.01 * own.mean(0)
        torch.testing.assert_close(code(2), expected.expand(2, -1))
    assert found.std(0).min() > 1e-4
    assert code.mean.grad_fn is None
    code.eval()
    code.of(batches[0])
    torch.testing.assert_close(code.mean[0], expected)


def test_a_style_tells_brightness_and_learns():
    torch.manual_seed(0)
    code = StyleCode(channels=1, width=4)
    optimizer = torch.optim.Adam(code.parameters(), 0.01)
    images = torch.rand(8, 1, 16, 16) + torch.arange(8).reshape(8, 1, 1, 1) / 4 - 1
    wanted = torch.linspace(-0.8, 0.8, 8)[:, None]
    for _ in range(100):
        loss = (code.of(images) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02


@codes
def test_a_network_with_a_code_begins_as_the_one_without(make):
    (x, label), plain, coded = example(), small(), small(code=make())
    own = coded.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in plain.state_dict().items())
    assert torch.equal(coded(x, label), plain(x, label))
    assert plain.code_of(x, ["etz", "ldn"]) is None


@codes
def test_the_code_acts_on_its_own_sample_and_the_one_in_use_where_none_is_given(make):
    (x, label), network = example(), trained(code=make()).train()
    given = network.code_of(x, ["ldn", "ukm"])
    together = network(x, label, given)
    alone = [network(x[[index]], label[[index]], given[[index]]) for index in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert (together - network(x, label, given.flip(0))).abs().amax((1, 2, 3)).min() > 1e-5
    assert torch.equal(network(x, label), network(x, label, network.target_code(2)))
    assert not torch.equal(network(x, label), together)


@codes
def test_a_code_gets_a_gradient_and_is_exported_as_the_one_in_use(make):
    (x, label), network = example(), trained(code=make(), residual=True)
    network(x, label, network.code_of(x, ["ldn", "etz"])).mean().backward()
    assert network.decoder.affine1.weight.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.target_code.parameters())
    network.eval()
    scripted = torch.jit.script(network)
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    program = export(network, (x, label), dynamic_shapes=(sizes, sizes)).module()
    with torch.no_grad():
        for inputs in ((x, label), (x[:1], 0 * label[:1])):
            torch.testing.assert_close(scripted(*inputs), network(*inputs), rtol=0, atol=1e-6)
            torch.testing.assert_close(program(*inputs), network(*inputs), rtol=0, atol=1e-5)


def test_weights_of_one_site_are_those_of_another():
    (x, label), network = example(), trained(code=SiteCode(["etz", "ldn"]))
    for index, site in enumerate(["etz", "ldn"]):
        used = small(code=SiteCode(["etz", "ldn"], site))
        used.load_state_dict(network.state_dict())
        one_hot = torch.eye(2)[[index, index]]
        assert torch.equal(used(x, label), network(x, label, one_hot))


def test_an_encoder_that_is_shared_is_one_and_keeps_its_weights():
    first = small()
    before = {name: value.clone() for name, value in first.state_dict().items()}
    second = ResnetGenerator(channels=4, num_res_blocks=2, feature_blocks=(0, 1), init="normal", encoder_of=first)
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    x = example()[0]
    regions = first.regions(None, [16, 24])
    assert torch.equal(first.encode(x, regions)[0], second.encode(x, regions)[0])
    assert not torch.equal(first(x), second(x))
    count = {name: sum(p.numel() for p in network.parameters()) for name, network in (("a", first), ("b", second))}
    both = sum(p.numel() for p in torch.nn.ModuleList([first, second]).parameters())
    decoders = sum(p.numel() for part in (second.decoder, second.seg_decoder) for p in part.parameters())
    assert both == count["a"] + decoders
    second(x).mean().backward()
    assert first.stem.weight.grad.abs().max() > 0
    assert first.decoder.head[1].weight.grad is None


OTHERS = [{"channels": 8}, {"num_res_blocks": 3}, {"anti_aliased": False}, {"encoder_separates_vs": True}]


@pytest.mark.parametrize("settings", OTHERS, ids=str)
def test_an_encoder_of_other_settings_is_not_shared(settings):
    own = {"channels": 4, "num_res_blocks": 2, "feature_blocks": (0,)} | settings
    with pytest.raises(InputError, match="encoder_of is a generator with another encoder"):
        ResnetGenerator(encoder_of=small(), **own)
