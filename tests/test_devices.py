"""Layers, generator and contrastive loss on every device of this machine, in float32, against the CPU in float64."""

import copy

import pytest
import torch

from plugins.networks import RAIN, AttentionQueries, RegionNorm, ResnetGenerator, list_regions

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SIZE = 32


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device(request.param)


@pytest.fixture
def slices():
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.float64)
    label[:, :, 4:12, 6:14] = 1
    label[0, :, 20:23, 20:22] = 2
    return torch.rand(2, 1, SIZE, SIZE, generator=generator, dtype=torch.float64) * 2 - 1, label


def gradients(module, outputs, weights):
    sum((output * weight.to(output)).sum() for output, weight in zip(outputs, weights, strict=True)).backward()
    return [parameter.grad for parameter in module.parameters()]


def check(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        scale = max(1.0, float(other.abs().max()))
        assert float((one.detach().cpu().double() - other.detach()).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("kind", [RegionNorm, RAIN])
def test_region_norm_and_its_gradient_are_those_of_float64(device, slices, kind):
    label = slices[1]
    targets = torch.cat([label == 1, label == 2], dim=1)[:, -(2 if kind is RAIN else 1) :]
    generator = torch.Generator().manual_seed(1)
    features, outward = torch.randn(2, 2, 8, SIZE, SIZE, generator=generator, dtype=torch.float64)
    found = []
    for where, dtype in ((device, torch.float32), ("cpu", torch.float64)):
        norm = kind(8).to(where, dtype)
        x = features.to(where, dtype).requires_grad_()
        y = norm(x, list_regions(targets.to(where), [SIZE, SIZE]))
        found.append([y, *gradients(norm, [y], [outward]), x.grad])
    check(*found, tolerance=1e-4)


def test_the_generator_and_its_gradients_are_those_of_float64(device, slices):
    image, label = slices
    torch.manual_seed(0)
    network = ResnetGenerator(
        channels=8, num_res_blocks=2, feature_blocks=(0, 1), encoder_norm="region", decoder_norm="rain", seg_classes=3
    ).double()
    weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = []
    for where, dtype in ((device, torch.float32), ("cpu", torch.float64)):
        there = copy.deepcopy(network).to(where, dtype)
        y = there(image.to(where, dtype), label.to(where, dtype))
        found.append([y, *(grad for grad in gradients(there, [y], [weight]) if grad is not None)])
    check(*found, tolerance=2e-3)


def test_the_queries_that_attention_selects_are_those_of_float64(device):
    features = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    select = AttentionQueries(num_queries=8, attention="global")
    found = []
    for where, dtype in ((device, torch.float32), ("cpu", torch.float64)):
        there = features.to(where, dtype)
        found.append([select.rows(there), select(there)(there)])
    assert found[0][0].tolist() == found[1][0].tolist()
    check(*found, tolerance=1e-4)
