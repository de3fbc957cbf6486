"""Aggregation rules against brute force, SciPy and attackers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from problems import problem, run

from fedlearn import aggregate as A
from fedlearn import algorithms
from fedlearn.transform import chain

close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)

# name: the rule, and how many of eleven clients it withstands
RULES = {
    "median": (A.median(), 5),
    "trimmed mean": (A.trimmed_mean(0.3), 3),
    "krum": (A.krum(4), 4),
    "multi-krum": (A.multi_krum(4), 4),
    "geometric median": (A.geometric_median(), 5),
    "bulyan": (A.bulyan(2), 2),
}
ALL = {**{k: r for k, (r, _) in RULES.items()}, "mean": A.mean(), "clipped": A.clipped_mean(1e3)}


def updates(K: int = 11, d: int = 6, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(K, d, generator=g, dtype=torch.float64) + torch.arange(d)


def weights(K: int = 11) -> torch.Tensor:
    return torch.full((K,), 1 / K, dtype=torch.float64)


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_clients_is_no_matter(name):
    delta = updates()
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    close(ALL[name].apply(delta, weights()), ALL[name].apply(delta[order], weights()))


@pytest.mark.parametrize("name", ALL)
def test_what_all_agree_on_is_returned(name):
    row = updates()[:1]
    close(ALL[name].apply(row.expand(11, -1), weights()), row[0])


ATTACKS = {
    "far away": lambda honest: torch.full_like(honest, 1e9),
    "far away, each elsewhere": lambda honest: 1e7 * torch.randn(
        honest.shape, generator=torch.Generator().manual_seed(2), dtype=honest.dtype
    ),
    "sign flip": lambda honest: -20 * honest,
    "one huge number": lambda honest: honest.mean(0) + 1e9 * torch.eye(*honest.shape)[0],
    "inf": lambda honest: torch.full_like(honest, torch.inf),
    "nan": lambda honest: torch.full_like(honest, torch.nan),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", RULES)
def test_as_many_attackers_as_it_withstands_stay_bounded(name, attack):
    rule, f = RULES[name]
    delta = updates()
    honest = delta[f:].clone()
    delta[:f] = ATTACKS[attack](delta[:f].clone())
    out = rule.apply(delta, weights())
    radius = (honest - honest.mean(0)).norm(dim=1).max()
    assert (out - honest.mean(0)).norm() < 3 * radius
    if name in ("median", "trimmed mean", "bulyan"):  # between honest numbers, one by one
        assert ((honest.amin(0) <= out) & (out <= honest.amax(0))).all()


@pytest.mark.parametrize("name, f", [("median", 6), ("trimmed mean", 4), ("geometric median", 6)])
def test_one_attacker_more_breaks_it(name, f):
    """The stated breakdown point is the true one."""
    delta = updates()
    delta[:f] = 1e9
    assert ALL[name].apply(delta, weights()).norm() > 1e8


def test_the_mean_falls_to_one():
    delta = updates()
    delta[0] = 1e9
    assert A.mean().apply(delta, weights()).norm() > 1e7


# -- against brute force and other libraries ------------------------------------------------------


@pytest.mark.parametrize("K", [1, 2, 5, 8])
def test_median_is_numpys(K):
    delta = updates(K)
    close(A.median().apply(delta, weights(K)), torch.from_numpy(np.median(delta.numpy(), 0)))


@pytest.mark.parametrize("trim", [0.0, 0.1, 0.25, 0.4])
@pytest.mark.parametrize("K", [5, 10, 11])
def test_trimmed_mean_is_scipys(trim, K):
    stats = pytest.importorskip("scipy.stats")
    delta = updates(K)
    want = stats.trim_mean(delta.numpy(), trim, axis=0)
    close(A.trimmed_mean(trim).apply(delta, weights(K)), torch.from_numpy(want))


@pytest.mark.parametrize("f", [0, 1, 3, 4])
def test_krum_by_brute_force(f):
    """The least, over clients and over all sets of K - f - 2 others, sum of squared distances."""
    delta = updates()
    scores = []
    for k in range(11):
        far = [float((delta[k] - delta[j]) @ (delta[k] - delta[j])) for j in range(11) if j != k]
        scores.append(min(map(sum, itertools.combinations(far, 11 - f - 2))))
    close(A.krum(f).apply(delta, weights()), delta[int(np.argmin(scores))])
    best = np.argsort(scores)[:3]
    close(A.multi_krum(f, 3).apply(delta, weights()), delta[best].mean(0))


def test_geometric_median_is_the_minimum():
    """Against SciPy's minimiser, weights and all."""
    optimize = pytest.importorskip("scipy.optimize")
    delta, p = updates(7), torch.arange(1, 8, dtype=torch.float64) / 28
    cost = lambda z: float(p @ (delta - torch.from_numpy(z)).norm(dim=1))
    how = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 20_000, "maxfev": 20_000}
    best = optimize.minimize(cost, delta.mean(0).numpy(), method="Nelder-Mead", options=how)
    got = A.geometric_median(1000, 1e-12).apply(delta, p)
    assert cost(got.numpy()) <= best.fun + 1e-9
    heavy = torch.tensor([0.6] + [0.4 / 6] * 6, dtype=torch.float64)  # more than half: it is there
    torch.testing.assert_close(
        A.geometric_median(2000, 1e-12).apply(delta, heavy), delta[0], atol=1e-4, rtol=0
    )


def test_bulyan_by_hand_in_one_dimension():
    """f = 1, K = 7: Krum keeps five, of which the three nearest to their median are averaged."""
    delta = torch.tensor([[0.0], [1.0], [1.1], [1.3], [1.6], [2.0], [100.0]], dtype=torch.float64)
    left, kept = delta[:, 0].tolist(), []
    while len(kept) < 5:
        near = max(len(left) - 1 - 2, 1)
        scores = [sum(sorted((v - w) ** 2 for w in left)[1 : near + 1]) for v in left]
        kept.append(left.pop(int(np.argmin(scores))))
    middle = sorted(kept)[2]
    want = np.mean(sorted(kept, key=lambda v: abs(v - middle))[:3])
    assert A.bulyan(1).apply(delta, weights(7)).item() == pytest.approx(want)


def test_clipped_mean_bounds_one_client():
    delta, p = updates(), weights()
    moved = delta.clone()
    moved[0] = 1e9
    rule = A.clipped_mean(2.0).apply
    assert (rule(moved, p) - rule(delta, p)).norm() <= 2 * 2.0 / 11 + 1e-9
    close(A.clipped_mean(1e6).apply(delta, p), A.mean().apply(delta, p))  # nobody is that long


def test_trimming_nothing_is_the_unweighted_mean():
    delta = updates()
    close(A.trimmed_mean(0.0).apply(delta, weights()), delta.mean(0))


def test_rules_run_in_the_loop():
    p = problem()
    task = p.closed_form
    for rule in (A.median(), A.trimmed_mean(0.2), A.geometric_median(), A.krum(1)):
        rounds = run(
            algorithms.fedavg(task, 0.3), task.theta0, p, pipeline=chain(rule), cohort=8, rounds=30
        )
        assert rounds[-1].loss < 0.9 * rounds[0].loss


BAD = {
    "trimmed_mean: trim must be >= 0 and < 1/2": lambda: A.trimmed_mean(0.5),
    "clipped_mean: max_norm must be > 0": lambda: A.clipped_mean(0.0),
    "krum: f must be an integer >= 0": lambda: A.krum(-1),
    "krum: f=5 attackers need a cohort of at least 13": lambda: A.krum(5).apply(
        updates(), weights()
    ),
    "krum: f=1 attackers need a cohort of at least 12, got 11": lambda: A.multi_krum(1, 11).apply(
        updates(), weights()
    ),
    "bulyan: f=3 attackers need a cohort of at least 15": lambda: A.bulyan(3).apply(
        updates(), weights()
    ),
    "geometric_median: iterations must": lambda: A.geometric_median(0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_numbers_are_refused_in_words(message):
    with pytest.raises(ValueError, match=message) as e:
        BAD[message]()
    assert "got" in str(e.value) and "e.g." in str(e.value)
