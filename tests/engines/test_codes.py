"""Training with a code of the target, and with an encoder that both directions of CycleGAN share."""

import pytest
import torch
from torch.utils.data import default_collate

from plugins.errors import InputError
from plugins.networks import SiteCode, StyleCode

CODES = {"site": lambda: SiteCode(["etz", "ldn"]), "style": lambda: StyleCode(channels=3, width=2)}


@pytest.fixture(params=CODES.values(), ids=CODES)
def coded(request, trainer):
    """A trainer whose code has an effect."""
    engine = trainer(code=request.param)
    for affine in (engine.network.decoder.affine1, engine.network.decoder.affine2):
        torch.nn.init.uniform_(affine.weight, -1, 1)
    engine.state.output = {}
    return engine


@pytest.fixture
def batch(pairs):
    source = pairs()
    return default_collate([source[index] for index in (3, 0, 5)])


def test_a_source_is_translated_to_the_code_of_the_real_image_beside_it(coded, batch):
    made, network = coded._translate(batch), coded.network
    code = network.target_code.of(batch["reals"], batch["reals_site"])
    if isinstance(network.target_code, SiteCode):
        assert code.tolist() == [[0, 1], [1, 0], [0, 1]]
    torch.testing.assert_close(made["code"], code)
    expected = network(batch["image"], batch["label"], code)
    torch.testing.assert_close(made["pred"], expected, rtol=1e-4, atol=1e-5)
    identity = made["identity"] if "identity" in made else made["identity_t"]
    expected = network(batch["reals"], torch.zeros_like(batch["label"]), code)
    torch.testing.assert_close(identity, expected, rtol=1e-4, atol=1e-5)
    if "cycled_t" in made:
        torch.testing.assert_close(made["cycled_t"], network(made["fake_s"], None, code), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made["pred"], network(batch["image"], batch["label"]), atol=1e-4)


def test_the_discriminator_of_the_target_sees_the_code_of_each_image_as_channels(coded, batch):
    seen = []
    for network in coded.discriminators:
        network.register_forward_hook(lambda _, inputs, __, own=network: seen.append((own, inputs[0])))
    coded._iteration(coded, batch)
    code = coded.network.target_code.channels
    of_target = [images for network, images in seen if network is coded.discriminators[0]]
    assert sorted(len(images) for images in of_target) == [3, 6]
    for images in of_target:
        assert images.shape[1] == 1 + code
        maps = images[:, 1:]
        assert torch.equal(maps, maps[..., :1, :1].expand_as(maps))
        assert torch.equal(maps[:3], maps[-3:])  # real and translated
        assert not torch.equal(maps[0], maps[1])
    assert all(images.shape[1] == 1 for network, images in seen if network is not coded.discriminators[0])


def test_what_a_discriminator_is_told_gives_the_code_no_gradient(coded):
    code = torch.rand(2, 3, requires_grad=True)
    told = coded._told(torch.rand(2, 1, 4, 4, requires_grad=True), code)
    told.sum().backward()
    assert code.grad is None
    volumes = torch.rand(2, 1, 4, 6, 8)
    assert torch.equal(coded._told(volumes, code)[1, 1:, 2, 3, 4], code[1])
    assert coded._told(volumes, None) is volumes


def test_an_image_of_the_pool_keeps_its_code(cyclegan_trainer, batch):
    engine = cyclegan_trainer(code=CODES["site"])
    engine.state.output = {}
    for _ in range(2):
        engine._iteration(engine, batch)
    kept = torch.stack(engine.pool_t.state_dict()["images"])
    assert kept.shape[1:] == (3, 32, 32)
    assert {tuple(image[1:, 0, 0].tolist()) for image in kept} <= {(1.0, 0.0), (0.0, 1.0)}
    assert engine.pool_s.state_dict()["images"][0].shape == (1, 32, 32)


def test_without_the_names_of_sites_a_training_says_so(trainer, batch):
    engine = trainer(code=CODES["site"])
    del batch["reals_site"]
    with pytest.raises(InputError, match="of the site 'unknown', which has no code"):
        engine._translate(batch)


def test_directions_that_share_an_encoder_continue_exactly_and_learn_together(cyclegan_trainer, tmp_path):
    whole = cyclegan_trainer(tmp_path / "whole", max_epochs=2, shared_encoder=True)
    before = whole.network.stem.weight.clone()
    whole.run()
    assert not torch.equal(whole.network.stem.weight, before)
    halted = cyclegan_trainer(tmp_path / "halted", max_epochs=1, shared_encoder=True)
    halted.run()
    torch.manual_seed(99)
    resumed = cyclegan_trainer(tmp_path / "halted", max_epochs=2, shared_encoder=True)
    resumed.run()
    for network in ("network", "generator_ts"):
        expected = getattr(whole, network).state_dict()
        found = getattr(resumed, network).state_dict()
        assert {name for name, value in found.items() if not torch.equal(value, expected[name])} == set()
    assert resumed.network.stem is resumed.generator_ts.stem
