import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch.nn import functional as F
from torch.utils.data import default_collate

from plugins.engines import DiscriminatorAugmentation, MovingAverage, Resume
from plugins.errors import InputError
from plugins.networks import ContrastiveLoss, RandomQueries, SiteCode, StyleCode


def one_batch(trainer):
    return next(iter(trainer.data_loader))


def weights(trainer):
    networks = [trainer.network, *trainer.discriminators]
    return {f"{i} {name}": v.clone() for i, net in enumerate(networks) for name, v in net.state_dict().items()}


def test_it_is_a_supervised_trainer_that_fires_monais_events(trainer):
    engine = trainer(max_epochs=1)
    fired = []
    for event in IterationEvents:
        engine.add_event_handler(event, lambda _, event=event: fired.append(event))
    engine.run()
    assert isinstance(engine, SupervisedTrainer)
    expected = {"FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED"}
    assert {event.name for event in fired} == expected
    assert len(fired) == 4 * engine.state.epoch_length


def test_output_holds_the_weighted_sum_and_every_term(trainer):
    engine = trainer(max_epochs=1)
    engine.run()
    output = engine.state.output
    terms = [name for name in engine.terms if name in output]
    total = sum(engine.loss_weights[name] * output[name] for name in terms)
    assert len(terms) == 4
    torch.testing.assert_close(output["loss"], total)
    assert output["pred"].shape == output["image"].shape


def test_discriminator_step_leaves_the_generator_alone_and_the_reverse(trainer):
    engine = trainer()
    engine.state.output = {}
    batch = one_batch(engine)
    made = engine._translate(batch)
    before = weights(engine)
    engine._discriminator_step(batch, made)
    middle = weights(engine)
    assert all(torch.equal(before[name], middle[name]) for name in before if name.startswith("0 "))
    assert any(not torch.equal(before[name], middle[name]) for name in before if not name.startswith("0 "))
    assert all(parameter.grad is None for parameter in engine.network.parameters())
    grads = [parameter.grad.clone() for d in engine.discriminators for parameter in d.parameters()]
    engine._generator_step(batch, engine._translate(batch))
    after = weights(engine)
    assert all(torch.equal(middle[name], after[name]) for name in before if not name.startswith("0 "))
    assert any(not torch.equal(middle[name], after[name]) for name in before if name.startswith("0 "))
    kept = [parameter.grad for d in engine.discriminators for parameter in d.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(grads, kept, strict=True))


def test_tanq_terms_equal_equation_10_computed_apart(tanq_trainer):
    engine = tanq_trainer()
    batch = one_batch(engine)
    source, target, label = batch["image"], batch["reals"], batch["label"]
    torch.manual_seed(5)
    losses = engine._generator_losses(batch, engine._translate(batch))

    net, nothing = engine.network, torch.zeros_like(label)
    translated, identity = net(source, label), net(target, nothing)

    def features(x, condition):
        return net.encode(x, net.regions(condition, [32, 32]))[1]

    torch.manual_seed(5)
    keys = features(torch.cat([source, target]), torch.cat([label, nothing]))
    contrast = [
        engine.contrastive_loss([k[half] for k in keys], features(out, condition), engine.projector)
        for half, out, condition in ((slice(0, 2), translated, label), (slice(2, 4), identity, nothing))
    ]
    logits = net.segment(net.encode(source, net.regions(label, [32, 32]))[0])
    one_hot = F.one_hot(label[:, 0].long(), 3).movedim(-1, 1)
    cross_entropy = -(one_hot * logits.softmax(1).log()).sum(1).mean()
    expected = {
        "adversarial": (engine.discriminators[0](translated)[-1] - 1).square().mean(),
        "contrastive_source": contrast[0],
        "contrastive_target": contrast[1],
        "segmentation": cross_entropy,
    }
    for name in expected:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_tanq_encodes_twice_and_the_second_time_only_to_the_deepest_feature(tanq_trainer):
    engine = tanq_trainer(max_epochs=1)
    stems, last_blocks, decoders = [], [], []
    engine.network.stem.register_forward_hook(lambda *_: stems.append(1))
    engine.network.decoder.register_forward_hook(lambda *_: decoders.append(1))
    engine.network.feature_blocks = [0]
    engine.contrastive_loss.selections = engine.contrastive_loss.selections[:4]
    engine.projector.layers = engine.projector.layers[:4]
    engine.network.blocks[1].register_forward_hook(lambda *_: last_blocks.append(1))
    engine.state.output = {}
    engine._iteration(engine, one_batch(engine))
    assert (len(stems), len(last_blocks), len(decoders)) == (2, 1, 1)


def test_cyclegan_terms_equal_equations_11_and_12_computed_apart(cyclegan_trainer):
    engine = cyclegan_trainer()
    batch = one_batch(engine)
    source, target = batch["image"], batch["reals"]
    losses = engine._generator_losses(batch, engine._translate(batch))
    forth, back = engine.network, engine.generator_ts
    of_target, of_source = engine.discriminators
    expected = {
        "adversarial_target": (of_target(forth(source))[-1] - 1).square().mean(),
        "adversarial_source": (of_source(back(target))[-1] - 1).square().mean(),
        "cycle": (back(forth(source)) - source).abs().mean() + (forth(back(target)) - target).abs().mean(),
        "identity": (forth(target) - target).abs().mean() + (back(source) - source).abs().mean(),
    }
    for name in expected:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


def batch_of(pairs, count):
    source = pairs()
    return default_collate([source[index] for index in range(count)])


@pytest.mark.parametrize("count", [1, 3])
def test_translations_of_a_batch_are_those_of_the_network_alone_whatever_its_size(trainer, pairs, count):
    engine, batch = trainer(), batch_of(pairs, count)
    label = batch["label"]
    made = engine._translate(batch)
    torch.testing.assert_close(made["pred"], engine.network(batch["image"], label), rtol=1e-4, atol=1e-5)
    identity = made["identity"] if "identity" in made else made["identity_t"]
    expected = engine.network(batch["reals"], torch.zeros_like(label))
    torch.testing.assert_close(identity, expected, rtol=1e-4, atol=1e-5)
    losses = engine._generator_losses(batch, made)
    assert all(torch.isfinite(value) for value in losses.values())
    assert len(losses) == 4


def test_the_backward_generator_of_cyclegan_gets_targets_then_sources(cyclegan_trainer, pairs):
    engine, batch = cyclegan_trainer(), batch_of(pairs, 3)
    made, back = engine._translate(batch), engine.generator_ts
    for name, images in (("fake_s", batch["reals"]), ("identity_s", batch["image"]), ("cycled_s", made["pred"])):
        torch.testing.assert_close(made[name], back(images), rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(made["cycled_t"], engine.network(made["fake_s"]), rtol=1e-4, atol=1e-5)
    assert len(made["deepest"]) == 3


@pytest.mark.parametrize("size", [(32, 24), (16, 32, 24)])
def test_regions_are_those_of_sources_and_then_of_targets_at_the_size_of_the_images(trainer, pairs, size):
    engine, batch, asked = trainer(), {key: torch.rand(1, 1, *size) for key in ("image", "label", "reals")}, []

    class Asked(Exception):
        pass

    def regions(label, found):
        asked.append((label, found))
        raise Asked

    engine.network.regions = regions
    with pytest.raises(Asked):
        engine._translate(batch)
    label, found = asked[0]
    assert found == list(size)
    assert torch.equal(label, torch.cat([batch["label"], torch.zeros_like(batch["label"])]))


def test_a_target_without_a_label_map_has_no_regions(tanq_trainer, pairs):
    engine, batch = tanq_trainer(), batch_of(pairs, 2)
    expected = engine._translate(batch)["identity"]
    other = engine._translate(batch | {"reals_label": batch["label"]})["identity"]
    del batch["reals_label"]
    assert torch.equal(engine._translate(batch)["identity"], expected)
    assert not torch.allclose(other, expected)


def test_cyclegan_trains_without_label_maps(cyclegan_trainer, pairs):
    engine, batch = cyclegan_trainer(), batch_of(pairs, 2)
    engine.state.output = {}
    output = engine._iteration(engine, {"image": batch["image"], "reals": batch["reals"], "case": ["a", "b"]})
    assert output["label"] is None
    assert torch.isfinite(output["loss"])


def test_a_segdecoder_of_cyclegan_learns_from_the_sources_and_their_labels(cyclegan_trainer, pairs):
    engine, batch, asked = cyclegan_trainer(), batch_of(pairs, 3), []
    batch["label"] = batch["label"] - 0.001
    engine.network.segment = lambda deepest: asked.append(deepest) or torch.zeros(3, 3, 32, 32)
    engine.segmentation_loss = lambda logits, labels: asked.append(labels) or logits.sum()
    made = engine._translate(batch)
    assert engine._generator_losses(batch, made)["segmentation"] == 0
    sources, _ = engine.network.encode(batch["image"], engine.network.regions(batch["label"], [32, 32]))
    torch.testing.assert_close(asked[0], sources, rtol=1e-4, atol=1e-5)
    assert torch.equal(asked[1], (batch["label"][:, 0] + 0.001).long())


def test_what_is_left_out_has_its_default(trainer, cyclegan_trainer):
    engine = trainer()
    found = (engine.clip_norm, engine.r1_weight, engine.r1_interval, engine.discriminator_augmentation)
    assert found == (None, 0, 16, None)
    assert engine.region_balanced is False
    assert trainer(r1_weight=0.0, r1_interval=1).r1_interval == 1
    assert (cyclegan_trainer().pool_t.size, cyclegan_trainer().pool_s.size) == (3, 3)


def test_a_step_trains_networks_that_an_evaluation_left_in_its_mode(trainer):
    engine = trainer()
    engine.state.output = {}
    engine.network.eval()
    engine._iteration(engine, one_batch(engine))
    assert engine.network.training


def test_without_a_penalty_the_slope_costs_nothing(trainer):
    engine = trainer(r1_weight=0.0, r1_interval=1)
    network, calls = engine.discriminators[0], []
    network.register_forward_hook(lambda *_: calls.append(1))
    engine._discriminator_loss(network, torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32))
    assert calls == [1]


def test_the_slope_is_that_at_the_augmented_real_images(trainer, monkeypatch):
    engine, asked = trainer(r1_weight=2.0, r1_interval=1, discriminator_augmentation=lambda images: images + 1), []
    monkeypatch.setattr(
        "plugins.engines.translation.gradient_penalty", lambda _, real: asked.append(real) or torch.tensor(5.0)
    )
    real, fake = torch.rand(3, 1, 32, 32), torch.rand(2, 1, 32, 32)
    loss = engine._discriminator_loss(engine.discriminators[0], real, fake)
    assert torch.equal(asked[0], real + 1)
    engine.r1_weight = 0.0
    assert (loss - engine._discriminator_loss(engine.discriminators[0], real, fake)).item() == pytest.approx(
        5, rel=1e-4
    )


def test_regions_move_with_the_augmented_image(tanq_trainer):
    def shifted(images):
        return images.roll(8, dims=-1)

    engine = tanq_trainer(region_balanced=True, discriminator_augmentation=shifted)
    batch, network = one_batch(engine), engine.discriminators[0]
    fake = torch.rand(2, 1, 32, 32)
    found = engine._fooling_loss(network, fake, batch["label"])
    unlabelled = engine._fooling_loss(network, fake)
    engine.discriminator_augmentation = None
    torch.testing.assert_close(found, engine._fooling_loss(network, shifted(fake), shifted(batch["label"])))
    engine.region_balanced = False
    torch.testing.assert_close(unlabelled, engine._fooling_loss(network, shifted(fake), batch["label"]))


class TestProcessGroup:
    @pytest.fixture
    def engine(self, trainer, monkeypatch):
        """A trainer on the first of three ranks, whose gradients add up to six times its own."""
        engine = trainer()
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(6))
        return engine

    def test_gradients_are_the_mean_over_the_ranks_and_missing_ones_stay_missing(self, engine):
        parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
        parameters[0].grad = torch.tensor([1.0, -3.0])
        engine._average_gradients(parameters)
        assert parameters[0].grad.tolist() == [2, -6]
        assert parameters[1].grad is None

    def test_all_that_is_trained_begins_as_on_the_first_rank(self, engine, monkeypatch):
        sent = []
        monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: sent.append((tensor.data_ptr(), src)))
        engine._equalise_ranks()
        parameters = [p for o in (engine.optimizer, engine.d_optimizer) for g in o.param_groups for p in g["params"]]
        assert sent == [(parameter.data_ptr(), 0) for parameter in parameters]


def test_discriminator_loss_is_half_least_squares_on_detached_images(trainer):
    engine = trainer()
    real, fake = torch.rand(2, 1, 32, 32), torch.rand(3, 1, 32, 32, requires_grad=True)
    network = engine.discriminators[0]
    loss = engine._discriminator_loss(network, real, fake)
    expected = 0.5 * ((network(real)[-1] - 1).square().mean() + network(fake)[-1].square().mean())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert fake.grad is None


@pytest.mark.parametrize(("slices", "spatial_dims"), [(3, 2), (1, 3)], ids=["neighbouring slices", "volumes"])
def test_tanq_trains_on(tanq_trainer, pairs, slices, spatial_dims):
    source = pairs(slices, (32, 32) if spatial_dims == 2 else (32, 32, 16))
    batch = default_collate([source[index] for index in range(2)])
    engine = tanq_trainer(slices=slices, spatial_dims=spatial_dims, train_data_loader=[batch], max_epochs=1)
    before = weights(engine)
    engine.run()
    assert torch.isfinite(engine.state.output["loss"])
    assert engine.state.output["pred"].shape == batch["image"].shape
    assert any(not torch.equal(value, before[name]) for name, value in weights(engine).items())


def test_clipping_bounds_the_gradient(tanq_trainer):
    engine = tanq_trainer(max_epochs=1, clip_norm=1e-6)
    engine.run()
    norms = [p.grad.norm() for p in engine.network.parameters() if p.grad is not None]
    assert torch.stack(norms).norm() <= 1.01e-6


def test_an_unknown_loss_weight_is_named(tanq_trainer):
    with pytest.raises(ValueError, match="segmentatoin"):
        tanq_trainer(loss_weights={"segmentatoin": 1.0})


@pytest.mark.parametrize(
    ("without", "loss"), [("cycle", None), ("identity", None), ("segmentation", torch.nn.L1Loss())]
)
def test_a_term_in_use_that_has_no_weight_is_named(cyclegan_trainer, without, loss):
    terms = ("adversarial_target", "adversarial_source", "cycle", "identity", "segmentation")
    weights = {name: 2.0 for name in terms if name != without}
    with pytest.raises(InputError, match=rf"loss_weights has no '{without}'\. Give each of adversarial_target, adv"):
        cyclegan_trainer(loss_weights=weights, segmentation_loss=loss)


def test_a_term_that_is_not_in_use_needs_no_weight_and_may_have_one(cyclegan_trainer):
    weights = cyclegan_trainer().loss_weights
    assert "segmentation" not in weights
    assert cyclegan_trainer(loss_weights={**weights, "segmentation": 3.0}).segmentation_loss is None


def test_the_discriminator_of_tanq_gets_hrt2_as_real_and_the_translation_as_fake(tanq_trainer):
    engine = tanq_trainer()
    engine.state.output = {}
    batch, seen = one_batch(engine), []
    made = engine._translate(batch)
    engine.discriminators[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    judged = []
    loss = engine.adversarial_loss
    engine.adversarial_loss = lambda logits, **how: judged.append((len(logits), how)) or loss(logits, **how)
    engine._discriminator_step(batch, made)
    assert torch.equal(seen[0], torch.cat([batch["reals"], made["pred"]]))
    assert [how["target_is_real"] for _, how in judged] == [True, False]
    assert not torch.equal(batch["reals"], batch["image"])


def test_each_discriminator_of_cyclegan_gets_its_own_domain_as_real_and_that_domains_translations_as_fake(
    cyclegan_trainer,
):
    engine = cyclegan_trainer(pool_size=0)
    engine.state.output = {}
    batch, seen = one_batch(engine), {}
    made = engine._translate(batch)
    for name, network in zip(("of target", "of source"), engine.discriminators, strict=True):
        network.register_forward_hook(lambda _, inputs, __, name=name: seen.update({name: inputs[0].detach()}))
    engine._discriminator_step(batch, made)
    with torch.no_grad():
        fake_t, fake_s = engine.network(batch["image"]), engine.generator_ts(batch["reals"])
    torch.testing.assert_close(seen["of target"], torch.cat([batch["reals"], fake_t]))
    torch.testing.assert_close(seen["of source"], torch.cat([batch["image"], fake_s]))
    assert not torch.equal(batch["reals"], batch["image"])


def test_the_discriminators_of_cyclegan_see_translations_from_their_image_pools(cyclegan_trainer):
    engine = cyclegan_trainer()
    batch, asked, seen = one_batch(engine), {}, {}

    class Pool:
        def __init__(self, name, value):
            self.name, self.value = name, value

        def query(self, images):
            asked[self.name] = images
            return torch.full_like(images, self.value)

    engine.pool_t, engine.pool_s = Pool("target", 0.25), Pool("source", -0.25)
    made = engine._translate(batch)
    for name, network in zip(("target", "source"), engine.discriminators, strict=True):
        network.register_forward_hook(lambda _, inputs, __, name=name: seen.update({name: inputs[0]}))
    engine._discriminator_losses(batch, made)
    assert torch.equal(asked["target"], made["pred"])
    assert torch.equal(asked["source"], made["fake_s"])
    assert (seen["target"][2:] == 0.25).all()
    assert (seen["source"][2:] == -0.25).all()


@pytest.mark.parametrize(
    ("method", "expected"),
    [("tanq", ["discriminators", "generators"]), ("cyclegan", ["generators", "discriminators"])],
    ids=["TANQ, as QS-Attn: the discriminator first", "CycleGAN: the generators first"],
)
def test_the_steps_of_an_iteration_come_in_the_order_of_the_method(request, method, expected):
    engine = request.getfixturevalue(f"{method}_trainer")()
    engine.state.output = {}
    stepped = []
    engine.optimizer.register_step_post_hook(lambda *_: stepped.append("generators"))
    engine.d_optimizer.register_step_post_hook(lambda *_: stepped.append("discriminators"))
    engine._iteration(engine, one_batch(engine))
    assert stepped == expected


def test_the_generator_of_tanq_is_judged_by_the_discriminator_after_its_step(tanq_trainer):
    engine = tanq_trainer()
    engine.state.output = {}
    batch, network = one_batch(engine), engine.discriminators[0]
    before = [parameter.detach().clone() for parameter in network.parameters()]
    judging = []
    network.register_forward_pre_hook(lambda *_: judging.append([p.detach().clone() for p in network.parameters()]))
    engine._iteration(engine, batch)
    assert len(judging) == 2
    assert all(torch.equal(a, b) for a, b in zip(judging[0], before, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(judging[1], before, strict=True))


def test_with_amp_the_networks_compute_in_bfloat16_and_without_in_float32(trainer):
    for amp, expected in ((False, torch.float32), (True, torch.bfloat16)):
        engine = trainer(max_epochs=1, amp=amp, amp_kwargs={"dtype": torch.bfloat16})
        kinds = {"network": set(), "discriminators": set()}
        convolutions = {
            name: [each for each in part.modules() if isinstance(each, torch.nn.Conv2d)]
            for name, part in (
                ("network", engine.network),
                ("discriminators", torch.nn.ModuleList(engine.discriminators)),
            )
        }
        for name, layers in convolutions.items():
            for layer in layers:
                layer.register_forward_hook(lambda _, __, out, seen=kinds[name]: seen.add(out.dtype))
        engine.state.output = {}
        engine._iteration(engine, one_batch(engine))
        assert kinds == {"network": {expected}, "discriminators": {expected}}, f"amp={amp}"
        assert all(parameter.dtype == torch.float32 for parameter in engine.network.parameters())
        assert torch.isfinite(engine.state.output["loss"])


class CountingScaler:
    """Scales by 4, as MONAI's trainer hands it over on a GPU; remembers what was asked of it."""

    def __init__(self):
        self.asked = []

    def scale(self, loss):
        self.asked.append("scale")
        return 4 * loss

    def unscale_(self, optimizer):
        self.asked.append("unscale")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad /= 4

    def step(self, optimizer):
        self.asked.append("step")
        optimizer.step()

    def update(self):
        self.asked.append("update")


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_a_scaled_step_is_the_step_without_scaling(trainer, clip_norm):
    plain, scaled = trainer(clip_norm=clip_norm), trainer(clip_norm=clip_norm)
    scaled.scaler = CountingScaler()
    for engine in (plain, scaled):
        engine.state.output = {}
        torch.manual_seed(3)
        engine._iteration(engine, one_batch(engine))
    assert scaled.scaler.asked == 2 * ["scale", "unscale", "step", "update"]
    expected = weights(plain)
    for name, value in weights(scaled).items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_discriminators_and_generators_see_augmented_images(trainer):
    engine = trainer(discriminator_augmentation=lambda images: 0 * images + 0.25)
    engine.state.output = {}
    batch, seen = one_batch(engine), []
    for network in engine.discriminators:
        network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    engine._steps(batch, engine._translate(batch))
    assert len(seen) == 2 * len(engine.discriminators)
    assert all((images == 0.25).all() for images in seen)


def test_the_penalty_of_the_slope_comes_at_every_kth_step_k_times(trainer):
    engine = trainer(r1_weight=3e6, r1_interval=4)
    network, real, fake = engine.discriminators[0], torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    values = []
    for step in range(1, 9):
        engine.state.iteration = step
        values.append(engine._discriminator_loss(network, real, fake).item())
    given = real.clone().requires_grad_(True)
    logits = network(given)[-1]
    (slope,) = torch.autograd.grad(logits.sum(), given)
    expected = 0.5 * 3e6 * 4 * float((slope.double() ** 2).sum()) / logits.numel()
    assert expected > 0.1
    assert [value - values[0] > 0.05 for value in values] == [step % 4 == 0 for step in range(1, 9)]
    assert values[3] - values[0] == pytest.approx(expected, rel=1e-3)


def test_balanced_regions_weigh_alike_and_absent_ones_nothing(tanq_trainer):
    engine = tanq_trainer(region_balanced=True)
    batch, network = one_batch(engine), engine.discriminators[0]
    fake = torch.rand(2, 1, 32, 32)
    logits = network(fake)[-1].detach().double()[:, 0].numpy()
    stride, rim = 4, (32 - 4 * logits.shape[1]) // 2
    for label in (batch["label"], batch["label"] * (batch["label"] != 2), 0 * batch["label"]):
        costs = {0: [], 1: [], 2: []}
        for n, row, column in np.ndindex(*logits.shape):
            top, left = rim + stride * row, rim + stride * column
            region = int(label[n, 0, top : top + stride, left : left + stride].max())
            costs[region].append((logits[n, row, column] - 1) ** 2)
        expected = np.mean([np.mean(each) for each in costs.values() if each])
        assert engine._fooling_loss(network, fake, label).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("settings", [{"r1_weight": -1.0}, {"r1_interval": 0}])
def test_a_penalty_out_of_its_range_is_refused(tanq_trainer, settings):
    with pytest.raises(InputError, match="r1_weight or r1_interval"):
        tanq_trainer(**settings)


def test_the_moving_average_warms_up(tanq_trainer):
    engine = tanq_trainer(max_epochs=2)
    average = MovingAverage(engine.network, decay=0.4)
    expected = engine.network.stem.weight.detach().double().clone()
    decays = []

    @engine.on(Events.ITERATION_COMPLETED)
    def follow(engine):
        n = engine.state.iteration
        decays.append(min(0.4, (1 + n) / (10 + n)))
        expected.mul_(decays[-1]).add_(engine.network.stem.weight.detach().double(), alpha=1 - decays[-1])

    average.attach(engine)
    engine.run()
    assert decays[0] < decays[3] < decays[-1] == 0.4
    torch.testing.assert_close(average.ema_model.stem.weight.double(), expected, rtol=1e-5, atol=1e-7)


class Killed(Exception):
    pass


EVERYTHING = {
    "r1_weight": 1.0,
    "r1_interval": 3,
    "discriminator_augmentation": DiscriminatorAugmentation(),
    "region_balanced": True,
}


SITES = {"code": lambda: SiteCode(["etz", "ldn"])}
STYLE = {"code": lambda: StyleCode(channels=2, width=2)}


@pytest.mark.parametrize(
    ("num_workers", "settings"), [(0, {}), (2, {}), (0, EVERYTHING), (0, SITES), (0, EVERYTHING | STYLE)]
)
def test_a_training_killed_at_any_step_ends_with_the_same_weights(trainer, tmp_path, num_workers, settings):
    def make(folder):
        return trainer(tmp_path / folder, num_workers=num_workers, **settings)

    whole = make("whole")
    whole.run()

    for step in (6, 11):
        halted = make("halted")

        @halted.on(Events.ITERATION_STARTED(once=step - halted.state.iteration))
        def kill(engine):
            raise Killed

        with pytest.raises(Killed):
            halted.run()
    torch.manual_seed(99)
    resumed = make("halted")
    resumed.run()
    expected = weights(whole)
    assert {name for name, value in weights(resumed).items() if not torch.equal(value, expected[name])} == set()
    assert resumed.state.iteration == whole.state.iteration == 16


def test_a_killed_training_continues_its_moving_average(trainer, tmp_path):
    def with_average(folder):
        engine = trainer()
        average = MovingAverage(engine.network, decay=0.9)
        optimizers = {"optimizer": engine.optimizer, "d_optimizer": engine.d_optimizer}
        networks = {
            "network": engine.network,
            "average": average.ema_model,
            "projector": getattr(engine, "projector", None),
        }
        networks |= {f"discriminator {i}": network for i, network in enumerate(engine.discriminators)}
        networks |= {"back": engine.generator_ts} if hasattr(engine, "generator_ts") else {}
        objects = {name: each for name, each in (networks | optimizers).items() if each is not None}
        pools = [name for name in ("pool_t", "pool_s") if hasattr(engine, name)]
        average.attach(engine)
        Resume(folder / "resume.pt", objects, pools).attach(engine)
        return engine, average.ema_model

    whole, expected = with_average(tmp_path / "whole")
    whole.run()
    halted, _ = with_average(tmp_path / "halted")

    @halted.on(Events.ITERATION_STARTED(once=11))
    def kill(engine):
        raise Killed

    with pytest.raises(Killed):
        halted.run()
    resumed, average = with_average(tmp_path / "halted")
    resumed.run()
    wanted = expected.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in average.state_dict().items())
    assert any(not torch.equal(value, wanted[name]) for name, value in whole.network.state_dict().items())


def test_a_finished_training_is_not_repeated(trainer, tmp_path):
    first = trainer(tmp_path, max_epochs=2)
    first.run()
    again = trainer(tmp_path, max_epochs=2)
    again.add_event_handler(Events.ITERATION_STARTED, lambda _: pytest.fail("an iteration was repeated"))
    again.run()
    expected = weights(first)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())


def test_a_longer_training_is_not_taken_for_a_shorter_one(trainer, tmp_path):
    trainer(tmp_path, max_epochs=2).run()
    with pytest.raises(InputError, match=r"resume\.pt is of a training of 2 epochs, but max_epochs is 1"):
        trainer(tmp_path, max_epochs=1).run()


def test_checkpoint_loads_as_plain_tensors(trainer, tmp_path):
    trainer(tmp_path, max_epochs=1).run()
    content = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert content["epoch"] == 1


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 half of a file"])
def test_a_broken_checkpoint_is_refused_by_name(tanq_trainer, tmp_path, content):
    (tmp_path / "resume.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"resume\.pt is damaged \(no file of tensors\)\. Restore it"):
        tanq_trainer(tmp_path, max_epochs=1).run()


@pytest.mark.parametrize("content", [{"stem.weight": torch.zeros(1)}, [1, 2], torch.zeros(3)])
def test_another_file_in_place_of_a_checkpoint_is_refused_by_name(tanq_trainer, tmp_path, content):
    torch.save(content, tmp_path / "resume.pt")
    with pytest.raises(InputError, match=r"resume\.pt is no checkpoint of this program\. Restore it"):
        tanq_trainer(tmp_path, max_epochs=1).run()


def test_selections_that_are_not_as_many_as_the_features_are_refused(tanq_trainer):
    loss = ContrastiveLoss([RandomQueries(4)])
    with pytest.raises(InputError, match="selections has 1 entries, but the network has"):
        tanq_trainer(contrastive_loss=loss)


def test_an_epoch_without_a_batch_is_refused(tanq_trainer):
    with pytest.raises(InputError, match="slices_per_epoch to batch_size or more"):
        tanq_trainer(train_data_loader=[])


def test_a_checkpoint_of_other_networks_is_refused_by_name(tanq_trainer, cyclegan_trainer, tmp_path):
    tanq_trainer(tmp_path, max_epochs=1).run()
    with pytest.raises(InputError, match=r"resume\.pt belongs to a training with other networks"):
        cyclegan_trainer(tmp_path).run()
