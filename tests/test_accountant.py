"""The accountant answers within seconds, never too low, whatever is in range."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest
import torch
from problems import problem

from fedlearn import Recipe, Simulated, algorithms, privacy
from fedlearn.privacy import accounting

pytest.importorskip("dp_accounting", reason="needs fedlearn[privacy]")
SECONDS = 60  # of processor time that no answer may take on a slow machine; the truth is below 6


def timed(f, *args):  # type: ignore[no-untyped-def]
    start = time.process_time()
    out = f(*args)
    assert time.process_time() - start < SECONDS, args
    return out


def sampled_delta(e: float, z: float, q: float) -> float:
    """delta(e) of one sampled Gaussian, both directions, in closed form."""
    phi = lambda v: 0.5 * math.erfc(-v / math.sqrt(2))
    # P = (1 - q) N(0, z²) + q N(1, z²) against Q = N(0, z²): the loss exceeds e beyond x
    inside = math.expm1(e) / q + 1
    x = z * z * math.log(inside) + 0.5
    tail0, tail1 = phi(-x / z), phi(-(x - 1) / z)
    return (1 - q) * tail0 + q * tail1 - math.exp(e) * tail0


@pytest.mark.parametrize("z, q, delta", [(0.3, 0.1, 1e-3), (1.0, 0.1, 1e-3), (2.0, 0.5, 1e-4)])
def test_one_round_is_the_closed_form(z, q, delta):
    got = privacy.epsilon(z, q, 1, delta)
    assert sampled_delta(got, z, q) <= delta * (1 + 1e-6)
    assert sampled_delta(got - 0.01, z, q) > delta


@pytest.mark.parametrize("z, q, T", [(0.3, 0.1, 1), (1.0, 0.1, 1), (2.0, 0.5, 1), (1.0, 0.2, 60)])
def test_delta_is_epsilon_read_the_other_way(z, q, T):
    for e in (0.0, 0.1, 1.0, 3.0, 9.0):
        d = privacy.delta(z, q, T, e)
        if T == 1:  # the closed form, or what the grid adds to it
            exact = sampled_delta(e, z, q) if e else max(sampled_delta(1e-9, z, q), 0)
            assert exact * (1 - 1e-9) - 1e-12 <= d <= exact * (1 + 1e-4) + 1e-12
        if 1e-11 < d < 0.99 * (1 - (1 - q) ** T):
            assert privacy.epsilon(z, q, T, d) == pytest.approx(e, abs=2e-3)
    assert 0 <= privacy.delta(z, q, T, 1e3) <= 1e-9


def phi(v: float) -> float:
    return 0.5 * math.erfc(-v / math.sqrt(2))


@pytest.mark.parametrize("z", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("T", [1, 9])
def test_without_sampling_delta_is_the_gaussians(z, T):
    """Balle, Wang, 2018, Theorem 8; and the loss is N(T / 2 z², T / z²)."""
    s = z / math.sqrt(T)
    for e in (0.0, 0.5, 2.0, 5.0):
        exact = phi(0.5 / s - e * s) - math.exp(e) * phi(-0.5 / s - e * s)
        assert privacy.delta(z, 1.0, T, e) == pytest.approx(exact, rel=1e-9, abs=1e-14)
    values, chances = privacy.losses(z, 1.0, T)
    assert values[-1] == math.inf and chances[-1] < 1e-9 and sum(chances) == pytest.approx(1)
    mean = values[:-1] @ chances[:-1]
    assert mean == pytest.approx(0.5 / s / s, rel=1e-3)
    assert (values[:-1] - mean) ** 2 @ chances[:-1] == pytest.approx(1 / s / s, rel=1e-3)
    far = 0.5 / s / s + 1 / s
    assert chances[values > far].sum() == pytest.approx(phi(-1), abs=1e-2)


@pytest.mark.parametrize("z, q, T", [(1.0, 0.2, 1), (0.7, 0.05, 10), (3.0, 1.0, 4)])
def test_the_losses_tell_delta_in_both_directions(z, q, T):
    both = [privacy.losses(z, q, T, swapped=swapped) for swapped in (False, True)]
    for e in (0.0, 0.3, 2.0):
        sums = [p @ np.clip(-np.expm1(np.minimum(e - v, 0)), 0, 1) for v, p in both]
        assert max(sums) == pytest.approx(privacy.delta(z, q, T, e), rel=1e-5, abs=1e-9)
    if q < 1:  # without the client a loss of the swapped worlds is at most log 1 / (1 - q) a round
        (v, p) = both[1]
        assert p[v > -T * math.log1p(-q) + 0.01].sum() < 1e-9


def test_the_losses_of_two_rounds_are_a_convolution():
    one, two = privacy.losses(1.0, 0.2, 1), privacy.losses(1.0, 0.2, 2)
    by_hand = np.convolve(one[1][:-1], one[1][:-1])
    values = 2 * one[0][0] + 1e-3 * np.arange(len(by_hand))
    for e in (0.0, 0.5, 2.0):
        above = lambda v, p, e=e: p[:-1][v[:-1] > e].sum()  # of a distribution cut off at 1e-15
        assert by_hand[values > e + 1e-9].sum() == pytest.approx(above(*two), abs=1e-3)


@pytest.mark.parametrize("z, K, N, T", [(1.0, 20, 100, 60), (2.0, 1, 10, 5), (0.5, 9, 10, 3)])
def test_a_fixed_cohort_costs_at_least_half_the_noise(z, K, N, T):
    low, high = privacy.fixed_cohort(z, K, N, T, 1e-4)
    half = privacy.epsilon(z / 2, K / N, T, 1e-4)
    assert half - 0.1 * T**0.5 < low <= half < high  # rounded down, and up
    assert high <= privacy.epsilon(z / 2, 1.0, T, 1e-4) and low > privacy.epsilon(z, K / N, T, 1e-4)
    more = privacy.fixed_cohort(1.5 * z, K, N, T, 1e-4)
    assert more[0] < low and more[1] < high


def test_a_fixed_cohort_of_everybody_is_a_gaussian_of_half_the_noise():
    assert privacy.fixed_cohort(2.0, 5, 5, 3, 1e-3) == (privacy.epsilon(1.0, 1.0, 3, 1e-3),) * 2
    assert privacy.fixed_cohort(2.0, 1, 5, 0, 1e-3) == (0.0, 0.0)
    for z, K, N, T in ((1e-6, 1, 3, 5), (1e9, 1, 3, 5), (0.05, 3, 10**6, 1000), (1, 1, 2, 10**9)):
        low, high = timed(privacy.fixed_cohort, z, K, N, T, 1e-6)
        assert 0 <= low <= high


@pytest.mark.parametrize("z, q, T, e", [
    (0.0, 0.1, 5, 1.0), (1e-300, 1.0, 3, 2.0), (1e300, 0.5, 3, 0.0), (1e-5, 0.2, 5, 1e9),
    (1.0, 1e-12, 10, 1.0), (1.0, 0.1, 10**12, 3.0), (0.02, 0.5, 10**5, 1e4), (3.0, 1.0, 1, 1e300),
])  # fmt: skip
def test_any_epsilon_in_range_has_its_delta(z, q, T, e):
    d = timed(privacy.delta, z, q, T, e)
    assert 0 <= d <= 1 and d <= accounting._chance(q, T)


def test_losses_that_are_too_many_are_refused():
    for z, T in ((1e-4, 1), (0.0, 1), (0.02, 10**9)):
        with pytest.raises(ValueError, match=r"losses: z must be .* too many values"):
            timed(privacy.losses, z, 0.1, T)
    with pytest.raises(ValueError, match="losses: rounds"):
        privacy.losses(1.0, 0.1, 0)


def test_the_two_questions_that_hung():
    with pytest.raises(ValueError, match="the chance that a client is called at all"):
        timed(privacy.calibrate, 8.0, 1e-4, 10, 1e-3)
    got = timed(privacy.epsilon, 0.01, 0.1, 1, 1e-3)
    # the loss is close to log q + (2 x - 1) / 2 z² with x ~ N(1, z²), called with chance q
    assert 5000 < got < 5300
    mass = 1e-3 / 0.1  # delta / q: the quantile of the loss at that is close to epsilon
    x = 1 + 0.01 * 2.326  # Phi^-1(0.99)
    assert got == pytest.approx((2 * x - 1) / (2 * 0.01**2) + math.log(0.1), rel=2e-3) and mass


def test_who_is_hardly_ever_called_is_promised_by_that_alone():
    """delta >= 1 - (1 - q)^T: (0, delta) holds for what adds no noise at all."""
    chance = -math.expm1(10 * math.log1p(-1e-4))
    for z in (0.0, 1e-6, 1.0):
        assert privacy.epsilon(z, 1e-4, 10, 1e-3) == 0 and chance < 1e-3
        assert privacy.epsilons(z, 1e-4, 10, 1e-3) == [0.0] * 10
    assert privacy.epsilon(0.0, 1e-4, 11, 1e-3) == math.inf


def test_what_every_lesson_reads_is_what_it_was():
    assert privacy.epsilon(1.0, 0.1, 100, 1e-3) == pytest.approx(4.784372878901937, rel=1e-12)
    assert privacy.calibrate(8.0, 0.1, 100, 1e-3) == pytest.approx(0.778505293544713, rel=1e-12)
    strict = privacy.calibrate(2.0, 0.1, 100, 1 / 200**2)  # 6e-12 more on another processor
    assert strict == pytest.approx(2.142314209686915, rel=1e-10)


EXTREMES = [
    (1e-3, 0.1, 1000, 1e-3), (1e-8, 0.1, 1000, 1e-3), (1e-200, 0.5, 10, 1e-5),
    (1e8, 0.1, 1000, 1e-3), (1e3, 1e-6, 10**9, 1e-15), (1.0, 0.5, 10**12, 1e-300),
    (0.1, 1e-9, 10, 1e-11), (30.0, 0.999, 5, 1e-5), (1.0, 1e-300, 5, 1e-306),
    (1e300, 0.5, 5, 1e-305), (20.0, 0.5, 10**6, 1e-3), (0.05, 0.01, 10**4, 1e-5),
    (0.02, 0.9999999, 3, 0.5), (1.0, 0.1, 10**30, 1e-3), (1.0, 1.0, 10**30, 1e-300),
    (1e-300, 1.0, 1, 0.999), (1e300, 1.0, 1, 1e-300),
]  # fmt: skip


@pytest.mark.parametrize("z, q, T, delta", EXTREMES)
def test_any_number_in_range_has_an_answer(z, q, T, delta):
    got = timed(privacy.epsilon, z, q, T, delta)
    assert got >= 0 and not math.isnan(got)
    more = privacy.epsilons(z, q, 2, delta)
    assert more == sorted(more)


@pytest.mark.parametrize(
    "target, q, T, delta",
    [
        (1e6, 0.1, 1000, 1e-3), (1e-6, 0.1, 1000, 1e-5), (1e3, 0.5, 10, 0.2),
        (0.1, 0.01, 10**7, 1e-5), (1e300, 0.5, 10, 1e-5), (5.0, 1e-4, 10, 1e-300),
        (0.2, 8.7e-7, 4_138_994, 0.05), (3.0, 1.0, 10**9, 1e-12),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_any_target_in_range_has_its_noise(target, q, T, delta):
    z = timed(privacy.calibrate, target, q, T, delta)
    assert privacy.epsilon(z, q, T, delta) <= target
    assert z < 1e-3 or privacy.epsilon(z - 2e-4, q, T, delta) > target * (1 - 1e-3)


def test_a_target_beyond_all_noise_is_refused():
    with pytest.raises(ValueError, match=r"calibrate: target must be >= .* z = 2\*\*30.*got 1e-09"):
        privacy.calibrate(1e-9, 0.1, 10**6, 1e-9)


@pytest.mark.slow
def test_epsilon_is_bounded_and_monotone_over_eight_decades():
    """Log-uniform settings: below two independent bounds, and each number pulls its own way."""
    r, e = random.Random(0), privacy.epsilon
    draw = lambda low, high: math.exp(r.uniform(math.log(low), math.log(high)))
    for _ in range(25):
        z, q = draw(1e-4, 1e4), min(draw(1e-8, 3.0), 1.0)
        T, delta = int(draw(1, 1e7)), min(draw(1e-16, 2.0), 0.999)
        here = timed(e, z, q, T, delta)
        most = here * 1.002 + 1e-4  # what grids of two settings may differ by
        fewer, larger = max(1, int(0.7 * T)), min(0.9999, 2 * delta)
        less = (1.3 * z, q, T, delta), (z, 0.7 * q, T, delta), (z, q, fewer, delta)
        for other in (*less, (z, q, T, larger)):
            assert e(*other) <= most, (z, q, T, delta, other)
        everyone = e(z, 1.0, T, delta)  # nobody is hidden by sampling
        assert here <= everyone * 1.001 + 1e-3
        if q < 1:
            assert here <= accounting._bound(z, q, T, delta) * 1.001 + 1e-3


@pytest.mark.parametrize(
    "z, q, T", [(1.0, 0.1, 100), (0.7, 0.02, 500), (5.0, 0.5, 50), (1, 0.9, 3)]
)
def test_the_bound_is_above_the_distribution_and_near_it(z, q, T):
    """Two computations that share nothing."""
    exact, bound = privacy.epsilon(z, q, T, 1e-4), accounting._bound(z, q, T, 1e-4)
    assert exact < bound < 1.6 * exact + 0.1


def test_a_run_with_hardly_any_noise_knows_what_it_costs():
    p = problem()
    task = p.closed_form
    pipeline = privacy.private_mean(0.5, 0.01, 4.0)
    recipe = Recipe(algorithms.fedavg(task, 0.1), task.theta0, pipeline)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    run = timed(lambda: privacy.dp_federate(clients, rounds=2, q=0.5, delta=1e-3, budget=1e5))
    spent = [r.metrics["epsilon"] for r in run]
    assert len(spent) == 2 and 4000 < spent[0] < spent[1] < 1e5
    assert torch.isfinite(run.state["theta"]).all()
    assert timed(privacy.local_epsilon, 0.01, 1.0, 5, 1e-3) > 1e4
