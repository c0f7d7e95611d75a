import pytest
import torch
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator

from plugins.engines import ImagePool, SaveBest, SaveWeights, constant_then_linear
from plugins.engines.schedules import linear_factor
from plugins.errors import InputError
from plugins.files import read_json


class TestImagePool:
    def test_until_it_is_full_images_pass(self):
        pool, images = ImagePool(3), torch.rand(3, 1, 4, 4)
        assert torch.equal(pool.query(images), images)

    def test_then_half_are_swapped_for_stored_ones(self):
        pool = ImagePool(10)
        pool.query(torch.zeros(10, 1))
        seen = torch.cat([pool.query(torch.full((1, 1), float(number))) for number in range(1, 401)])
        swapped = (seen.flatten() != torch.arange(1.0, 401.0)).float().mean()
        assert 0.4 < swapped < 0.6
        assert len(seen.unique()) > 200

    def test_size_zero_returns_the_image_itself(self):
        images = torch.rand(2, 1)
        assert torch.equal(ImagePool(0).query(images), images)

    def test_images_leave_without_gradient(self):
        assert not ImagePool(1).query(torch.rand(1, 1, requires_grad=True)).requires_grad

    def test_its_state_can_be_taken_over(self):
        pool, other = ImagePool(2), ImagePool(2)
        pool.query(torch.rand(2, 3))
        other.load_state_dict(pool.state_dict())
        assert torch.equal(torch.stack(other.state_dict()["images"]), torch.stack(pool.state_dict()["images"]))


def test_rate_is_constant_for_half_the_epochs_then_falls_in_equal_steps():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = constant_then_linear(optimizer, 8), []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0


def test_exported_weights_are_a_plain_dictionary(tmp_path, tanq_trainer):
    engine = tanq_trainer(max_epochs=1)
    SaveWeights(tmp_path / "models" / "model.pt", engine.network).attach(engine)
    engine.run()
    content = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    engine.network.load_state_dict(content)
    assert all(isinstance(value, torch.Tensor) for value in content.values())


class Scores(Metric):
    """A metric that takes given values, one an evaluation."""

    def __init__(self, values):
        self.values = list(values)
        super().__init__()

    def reset(self):
        pass

    def update(self, output):
        pass

    def compute(self):
        return self.values.pop(0)


class TestSaveBest:
    @staticmethod
    def validate(folder, scores, epochs, first=1):
        """Validate a network whose weight is the epoch, as MONAI's ``ValidationHandler`` does."""
        network = torch.nn.Linear(1, 1, bias=False)
        evaluator = SupervisedEvaluator(
            device="cpu",
            val_data_loader=[{"image": torch.zeros(1, 1), "label": torch.zeros(1, 1)}],
            network=network,
            key_val_metric={"score": Scores(scores)},
            val_handlers=[SaveBest(folder / "best.pt", network)],
        )
        for epoch in range(first, first + epochs):
            torch.nn.init.constant_(network.weight, epoch)
            evaluator.run(epoch)
        return torch.load(folder / "best.pt", weights_only=True)["weight"].item()

    def test_the_best_epoch_is_kept_also_if_all_scores_are_negative(self, tmp_path):
        assert self.validate(tmp_path, [-9.0, -3.0, -5.0], epochs=3) == 2
        assert read_json(tmp_path / "best.json") == {"epoch": 2, "key_metric": -3.0, "metrics": {"score": -3.0}}

    def test_a_continued_training_remembers_the_best(self, tmp_path):
        self.validate(tmp_path, [-9.0, -3.0], epochs=2)
        assert self.validate(tmp_path, [-5.0], epochs=1, first=3) == 2
        assert self.validate(tmp_path, [-1.0], epochs=1, first=4) == 4

    @pytest.mark.parametrize("content", ["{oops", "{}", "[1]"])
    def test_a_broken_record_is_refused_by_name(self, tmp_path, content):
        (tmp_path / "best.json").write_text(content)
        with pytest.raises(InputError, match=r"best\.json is damaged \(.*\)\. Restore it, remove the folder"):
            self.validate(tmp_path, [1.0], epochs=1)

    def test_a_new_training_does_not_inherit_the_best_of_an_old_one(self, tmp_path):
        self.validate(tmp_path, [5.0], epochs=1, first=7)
        assert self.validate(tmp_path, [1.0], epochs=1, first=2) == 2


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_pool_hands_back_what_a_list_and_the_same_draws_do(size):
    pool, stored, images = ImagePool(size), [], torch.arange(60.0).view(20, 3, 1)
    torch.manual_seed(7)
    found = torch.cat([pool.query(batch) for batch in images.split(3, dim=0)])
    torch.manual_seed(7)
    for image, given in zip(images, found, strict=True):
        expected = image
        if len(stored) < size:
            stored.append(image)
        elif torch.rand(()) < 0.5:
            at = int(torch.randint(size, ()))
            expected, stored[at] = stored[at], image
        assert torch.equal(given, expected)
    assert torch.equal(torch.stack(pool.state_dict()["images"]), torch.stack(stored))


def test_stored_images_do_not_change_with_the_batch_they_came_from():
    pool, images = ImagePool(), torch.zeros(2, 3)
    pool.query(images)
    images += 1
    assert pool.size == 50
    assert torch.equal(torch.stack(pool.state_dict()["images"]), torch.zeros(2, 3))
    pool.state_dict()["images"].clear()
    assert len(pool.state_dict()["images"]) == 2


@pytest.mark.parametrize("epochs", [1, 2, 5, 8])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_the_rate_falls_by_equal_steps_to_0_one_epoch_after_the_last(epochs, fraction):
    factor, constant = linear_factor(epochs, fraction), int(epochs * fraction)
    rates = [factor(epoch) for epoch in range(epochs + 3)]
    step = 1 / (epochs - constant + 1)
    assert rates[:constant] == [1] * constant
    assert rates[constant:epochs] == pytest.approx([1 - step * n for n in range(1, epochs - constant + 1)])
    assert rates[epochs:] == pytest.approx([0] * 3)
    assert min(rates) >= 0


def test_half_of_the_epochs_are_at_the_first_rate_by_default():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    for schedule in (constant_then_linear(optimizer, 8).lr_lambdas[0], linear_factor(8)):
        assert [schedule(epoch) for epoch in range(8)] == [linear_factor(8, 0.5)(epoch) for epoch in range(8)]
    assert constant_then_linear(optimizer, 8, 0.25).lr_lambdas[0](3) == linear_factor(8, 0.25)(3) < 1
