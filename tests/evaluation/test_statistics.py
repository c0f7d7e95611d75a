"""Tests, intervals, correction and power against formulas worked out apart from SciPy's own."""

import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from plugins.evaluation.statistics import (
    FEWEST,
    bootstrap_interval,
    compare_pair,
    holm,
    paired_t_test,
    power_of_t_test,
    smallest_difference,
    smallest_effect,
    wilcoxon_test,
)


def t_test(differences):
    """t, and p from the incomplete beta function."""
    n = len(differences)
    t = differences.mean() / math.sqrt(((differences - differences.mean()) ** 2).sum() / (n - 1) / n)
    return t, special.betainc((n - 1) / 2, 0.5, (n - 1) / (n - 1 + t * t))


def signed_rank_test(differences):
    """The smaller sum of signed ranks, and p: counted over all signs without ties, else by the normal law."""
    d = np.round(differences, 12)
    d = d[d != 0]
    n = len(d)
    ranks = np.array([(np.abs(d) < size).sum() + ((np.abs(d) == size).sum() + 1) / 2 for size in np.abs(d)])
    above, below = ranks[d > 0].sum(), ranks[d < 0].sum()
    w = min(above, below)
    if len(set(np.abs(d))) == n == len(differences):
        counts = [1]
        for rank in range(1, n + 1):
            longer = counts + [0] * rank
            for total, ways in enumerate(counts):
                longer[total + rank] += ways
            counts = longer
        return w, min(1.0, 2 * sum(counts[: int(w) + 1]) / 2**n)
    _, ties = np.unique(np.abs(d), return_counts=True)
    variance = n * (n + 1) * (2 * n + 1) / 24 - (ties**3 - ties).sum() / 48
    return w, math.erfc(abs(w - n * (n + 1) / 4) / math.sqrt(2 * variance))


def bca(values, resamples, seed):
    """Efron's interval in plain steps, with Hesterberg's tails."""
    rng = np.random.default_rng(seed)
    n = len(values)
    means = np.sort(values[rng.integers(0, n, (resamples, n))].mean(axis=1))
    bias = stats.norm.ppf(((means < values.mean()).mean() + (means <= values.mean()).mean()) / 2)
    apart = np.array([np.delete(values, k).mean() for k in range(n)])
    lean = apart.mean() - apart
    speed = (lean**3).sum() / (6 * (lean**2).sum() ** 1.5)
    ends = []
    for z in math.sqrt(n / (n - 1)) * stats.t.ppf([0.025, 0.975], n - 1):
        share = stats.norm.cdf(bias + (bias + z) / (1 - speed * (bias + z)))
        ends.append(np.percentile(means, 100 * share))
    return ends


def power(effect, n, alpha=0.05):
    """By integration over the chi law of the estimated deviation, without the noncentral t law."""
    limit = stats.t.ppf(1 - alpha / 2, n - 1)

    def beyond(s):
        scaled = limit * s
        return (
            stats.chi.pdf(s * math.sqrt(n - 1), n - 1)
            * math.sqrt(n - 1)
            * (stats.norm.sf(scaled - effect * math.sqrt(n)) + stats.norm.cdf(-scaled - effect * math.sqrt(n)))
        )

    return integrate.quad(beyond, 0, 8, limit=400, epsabs=1e-11)[0]


@pytest.mark.parametrize("n", [2, 3, 9, 40])
def test_t_and_p_equal_their_formulas(n):
    rng = np.random.default_rng(n)
    first, second = rng.random((2, n))
    found = paired_t_test(first, second)
    t, p = t_test(second - first)
    assert (found["n"], found["t"], found["p"]) == (n, pytest.approx(t), pytest.approx(p))
    assert found["difference"] == pytest.approx(second.mean() - first.mean())


@pytest.mark.parametrize("n", [3, 8, 40])
def test_signed_ranks_equal_the_count_of_all_signs(n):
    first, second = np.random.default_rng(n).random((2, n))
    w, p = signed_rank_test(second - first)
    found = wilcoxon_test(first, second)
    assert (found["w"], found["p"]) == (pytest.approx(w), pytest.approx(p))


def test_signed_ranks_with_ties_and_zeros_equal_the_normal_law():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 9, (2, 40)) / 10
    assert len(set(np.round(np.abs(second - first), 12))) < 12
    w, p = signed_rank_test(second - first)
    found = wilcoxon_test(first, second)
    assert (found["w"], found["p"]) == (pytest.approx(w), pytest.approx(p))


def test_ties_are_seen_although_floats_hide_them():
    """0.3 - 0.2 and 0.2 - 0.1 are not the same float, yet the same difference."""
    assert 0.3 - 0.2 != 0.2 - 0.1
    assert wilcoxon_test([0.2, 0.1, 0.5], [0.3, 0.2, 0.4])["w"] == 2


@pytest.mark.parametrize("law", ["normal", "exponential"])
@pytest.mark.parametrize("n", [9, 25])
def test_intervals_equal_efrons_steps(law, n):
    values = getattr(np.random.default_rng(5), law)(size=n)
    low, high = bootstrap_interval(values, resamples=99_999)
    spread = values.std() / math.sqrt(n)
    assert [low, high] == pytest.approx(bca(values, 200_000, 1), abs=0.05 * spread)
    assert low < values.mean() < high


def test_intervals_depend_on_the_seed_alone():
    values = np.random.default_rng(0).random(12)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


@pytest.mark.parametrize("n", [FEWEST, 8, 30])
def test_an_interval_covers_the_true_mean_as_often_as_it_says(n):
    rng = np.random.default_rng(11)
    ends = [bootstrap_interval(rng.normal(size=n), resamples=499) for _ in range(400)]
    assert 0.91 <= np.mean([low <= 0 <= high for low, high in ends]) <= 0.975


def test_too_few_cases_have_no_interval():
    assert bootstrap_interval(np.arange(FEWEST - 1.0)) is None
    assert bootstrap_interval(np.arange(float(FEWEST))) is not None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, None, 0.04], [0.02, None, 0.04]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([None], [None]),
        ([], []),
    ],
)
def test_holm_by_hand(given, expected):
    assert holm(given) == pytest.approx(expected)


def test_holm_is_no_stricter_than_bonferroni_and_keeps_the_order():
    given = np.random.default_rng(2).random(50) ** 4
    found = np.array(holm(given.tolist()))
    assert (found <= np.minimum(1, 50 * given) + 1e-15).all()
    assert (found >= given).all()
    assert (np.diff(found[np.argsort(given)]) >= 0).all()


@pytest.mark.parametrize("n", [2, 5, 34, 64])
@pytest.mark.parametrize("effect", [0.0, 0.3, 0.9])
def test_power_equals_its_integral(n, effect):
    assert power_of_t_test(effect, n) == pytest.approx(power(effect, n), abs=1e-7)


def test_power_without_an_effect_is_the_level():
    assert power_of_t_test(0, 20) == pytest.approx(0.05)
    assert power_of_t_test(0, 20, alpha=0.01) == pytest.approx(0.01)


@pytest.mark.parametrize("n", [2, 3, 10, 40, 64, 1000])
def test_the_smallest_effect_has_the_wanted_power(n):
    assert power(smallest_effect(n), n) == pytest.approx(0.8, abs=1e-6)


def test_the_smallest_difference_is_found_four_times_of_five():
    """Drawn anew 20,000 times, with that true difference."""
    rng = np.random.default_rng(4)
    noise = rng.normal(size=15)
    noise = (noise - noise.mean()) / noise.std(ddof=1) * 0.3
    true = smallest_difference(np.zeros(15), noise)
    drawn = rng.normal(true, 0.3, size=(20_000, 15))
    t = drawn.mean(axis=1) / (drawn.std(axis=1, ddof=1) / math.sqrt(15))
    assert np.mean(np.abs(t) > stats.t.ppf(0.975, 14)) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("values", [[], [0.4], [0.4, 0.4, 0.4], [0.4] * 6])
def test_nothing_is_claimed_where_nothing_varies(values):
    found = compare_pair(np.zeros(len(values)), values)
    assert (found["t"], found["p"], found["smallest_difference"]) == (None, None, None)
    assert found["interval"] == ([0.4, 0.4] if len(values) >= FEWEST else None)
    assert all(value is None or np.isfinite(value).all() for value in found.values())


def test_equal_methods_have_no_signed_ranks():
    assert wilcoxon_test([0.1, 0.2], [0.1, 0.2]) == {"w": None, "p": None}
    assert compare_pair([0.1, 0.2] * 3, [0.1, 0.2] * 3)["interval"] == [0, 0]


def test_a_swap_turns_the_signs_alone():
    first, second = np.random.default_rng(8).random((2, 10))
    there, back = compare_pair(first, second), compare_pair(second, first)
    assert (there["difference"], there["t"]) == (-back["difference"], pytest.approx(-back["t"]))
    same = ("p", "w", "p_wilcoxon", "smallest_difference")
    assert [there[name] for name in same] == pytest.approx([back[name] for name in same])
