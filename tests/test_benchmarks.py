"""The benchmarks' own settings and networks fit the trainers, on tiny slices."""

import pytest

from benchmarks.translation import METHODS, train_step, training


@pytest.mark.parametrize("method", [name for name, (_, _, changes) in METHODS.items() if changes])
def test_a_train_step_runs_with_what_a_benchmark_changes(method):
    train_step(method, 32, 1)()


def test_a_step_is_told_in_ratios_and_in_forward_passes():
    told = training(1, 32)
    assert told["tanq_step_in_forward_passes_of_published_cyclegan"]["median"] > 1
    assert {"TANQ", "TANQ, forward", "published CycleGAN, forward"} <= set(told["cpu_seconds"])
