"""The benchmarks' own settings and networks fit the trainers, on tiny slices."""

import pytest

from benchmarks.translation import METHODS, train_step


@pytest.mark.parametrize("method", [name for name, (_, _, changes) in METHODS.items() if changes])
def test_a_train_step_runs_with_what_a_benchmark_changes(method):
    train_step(method, 32, 1)()
