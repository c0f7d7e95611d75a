import pytest
import torch

from plugins.engines import ImagePool, SaveWeights, constant_then_linear


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


def test_exported_weights_are_a_plain_dictionary(tmp_path, tanq_trainer):
    engine = tanq_trainer(max_epochs=1)
    SaveWeights(tmp_path / "models" / "model.pt", engine.network).attach(engine)
    engine.run()
    content = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    engine.network.load_state_dict(content)
    assert all(isinstance(value, torch.Tensor) for value in content.values())
