"""Each measure on cases whose value is known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedlearn import Recipe, Simulated, algorithms, federate, model
from fedlearn.aggregate import mean
from fedlearn.diagnostics import (
    client_gradients,
    client_metrics,
    cosines,
    drift,
    effective_classes,
    gini,
    gradient_dissimilarity,
    jensen_shannon,
    label_distance,
    quadratics,
    tail,
    updates,
    weight_divergence,
)
from fedlearn.transform import chain, clip


def held(labels_each: int, classes: int = 10) -> np.ndarray:
    """Every client has ``labels_each`` of the classes, each label equally often overall."""
    return np.stack([np.roll(np.arange(classes) < labels_each, k) for k in range(classes)]) * 30


@pytest.mark.parametrize("m, distance", [(1, 1.8), (2, 1.6), (5, 1.0), (10, 0.0)])
def test_label_distance_is_two_times_the_share_of_missing_labels(m, distance):
    np.testing.assert_allclose(label_distance(held(m)), distance, atol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 5, 10])
def test_jensen_shannon_and_effective_classes_of_m_labels_each(m):
    assert jensen_shannon(held(m)) == pytest.approx(np.log2(10 / m), abs=1e-12)
    np.testing.assert_allclose(effective_classes(held(m)), m)


def test_jensen_shannon_is_the_mutual_information_of_client_and_label():
    counts = np.random.default_rng(0).integers(1, 50, (7, 4))
    joint = counts / counts.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    assert jensen_shannon(counts) == pytest.approx((joint * np.log2(joint / independent)).sum())


def test_gini_is_the_mean_difference_over_twice_the_mean():
    n = np.random.default_rng(1).integers(0, 100, 23)
    plain = np.abs(n[:, None] - n[None]).mean() / (2 * n.mean())
    assert gini(n) == pytest.approx(plain)
    assert gini(n[::-1]) == pytest.approx(plain)
    assert gini([0] * 9 + [5]) == pytest.approx(0.9)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.3, 0.5, 0.77, 1.0, 1])
def test_tail_is_the_mean_below_the_quantile(share):
    """Rockafellar and Uryasev: the highest of z - E[max(z - v, 0)] / share, at a value."""
    for N in (1, 7, 10, 23):
        v = np.random.default_rng(N).normal(size=N)
        best = max(z - np.maximum(z - v, 0).mean() / share for z in v)
        assert tail(v, share) == pytest.approx(best)
        assert tail(v[::-1], share) == pytest.approx(best)


def test_tail_of_a_whole_tenth_is_the_plain_mean_of_the_worst():
    v = np.random.default_rng(0).uniform(size=40)
    assert tail(v) == pytest.approx(np.sort(v)[:4].mean())
    assert tail(v, 1e-9) == v.min() and tail(v, 1.0) == pytest.approx(v.mean())
    assert tail(torch.tensor([0.5, 1.0]), 0.5) == 0.5


def test_tail_leaves_out_clients_without_a_test_example():
    v = np.ma.masked_array([0.9, 0.0, 0.7, np.nan], [False, True, False, True])
    assert tail(v, 0.5) == 0.7 and tail(v, 1.0) == pytest.approx(0.8)


def test_gradient_dissimilarity_of_two_quadratics_is_the_formula():
    a, b, p, theta = np.array([1.0, 4.0]), np.array([0.0, 1.0]), np.array([0.75, 0.25]), 2.0
    g = a * (theta - b)
    out = gradient_dissimilarity(torch.tensor(g)[:, None], torch.tensor(p))
    assert out.B2 == pytest.approx((p @ g**2) / (p @ g) ** 2)
    assert out.G2 == pytest.approx(p @ g**2 - (p @ g) ** 2)


def test_equal_gradients_give_one_and_the_optimum_infinity():
    same = gradient_dissimilarity(torch.ones(3, 4), torch.full((3,), 1 / 3))
    assert same.B2 == pytest.approx(1.0, abs=1e-5) and same.G2 == pytest.approx(0.0, abs=1e-10)
    apart = gradient_dissimilarity(torch.tensor([[1.0], [-1.0]]), torch.tensor([0.5, 0.5]))
    assert apart.B2 == float("inf") and apart.G2 == 1.0


def test_with_equal_curvature_g2_is_the_same_everywhere():
    """So the bound G² + ‖∇L‖² of SCAFFOLD's assumption is met with equality, at every theta."""
    b, p = torch.tensor([[0.0, 0.0], [2.0, 1.0], [1.0, 3.0]]), torch.tensor([0.5, 0.3, 0.2])
    spread = {
        round(gradient_dissimilarity(3.0 * (theta - b), p).G2, 4)
        for theta in (torch.zeros(2), torch.tensor([5.0, -2.0]), torch.tensor([1.0, 1.0]))
    }
    expected = 9 * float(p @ (b - p @ b).square().sum(1))
    assert len(spread) == 1 and spread.pop() == pytest.approx(expected, abs=1e-3)


def test_client_gradients_are_autograds():
    torch.manual_seed(0)
    task = model.mlp(5, 4, 3)
    x, y = torch.randn(12, 5), torch.randint(0, 3, (12,))
    parts = [np.arange(7), np.arange(7, 12)]
    got = client_gradients(task, task.theta0, x, y, parts)
    for row, own in zip(got, parts, strict=True):
        theta = task.theta0.clone().requires_grad_()
        with torch.enable_grad():
            loss = torch.nn.functional.cross_entropy(task.predict(theta, x[own]), y[own])
        torch.testing.assert_close(row, torch.autograd.grad(loss, theta)[0])


def test_drift_of_a_right_angle_and_of_opposites():
    p = torch.tensor([0.5, 0.5])
    right = drift(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), p)
    assert right.together == pytest.approx(0.5**0.5) and right.lost == pytest.approx(0.5)
    assert drift(torch.tensor([[1.0], [-1.0]]), p).lost == 1.0
    assert drift(torch.ones(2, 3), p).lost == pytest.approx(0.0, abs=1e-6)
    assert cosines(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), p).tolist() == pytest.approx(
        [0.5**0.5] * 2
    )
    assert cosines(torch.tensor([[1.0], [-1.0]]), p).tolist() == [0.0, 0.0]


def test_client_metrics_are_those_of_each_client_alone():
    torch.manual_seed(1)
    task = model.softmax_regression(4, 3)
    theta, x, y = torch.randn(15), torch.randn(20, 4), torch.randint(0, 3, (20,))
    parts = [np.arange(3), np.arange(3, 20)]
    got = client_metrics(task, theta, x, y, parts)
    for k, own in enumerate(parts):
        alone = model.evaluator(task, x[own], y[own])(theta)
        assert got["loss"][k] == pytest.approx(alone["loss"], rel=1e-5)
        assert got["accuracy"][k] == pytest.approx(alone["accuracy"])


def test_weight_divergence():
    assert weight_divergence(torch.ones(4), torch.ones(4)) == 0
    assert weight_divergence(2 * torch.ones(4), torch.ones(4)) == pytest.approx(1.0)


FIXED = {1: 0.8, 2: 0.7710843373, 5: 0.6925023465, 20: 0.5323522541, 100: 0.5000066404}


@pytest.mark.parametrize("E, where", FIXED.items())
def test_the_oracles_fixed_points(E, where):
    q = quadratics.of([1.0, 4.0], [0.0, 1.0])
    assert q.fixed_point(0.1, E)[0] == pytest.approx(where, abs=1e-9)
    assert q.fedavg(np.zeros(1), 0.1, E, 400)[-1, 0] == pytest.approx(where, abs=1e-9)


def test_weights_three_to_one():
    q = quadratics.of([1.0, 4.0], [0.0, 1.0], p=[3, 1])
    assert q.optimum()[0] == pytest.approx(4 / 7)
    assert q.fixed_point(0.1, 5)[0] == pytest.approx(0.428795, abs=1e-6)
    assert q.fixed_point(0.1, 20)[0] == pytest.approx(0.275075, abs=1e-6)


@pytest.mark.parametrize("d, K, E", [(1, 2, 3), (2, 3, 7), (5, 8, 20)])
def test_the_closed_form_is_the_federated_loop(d, K, E):
    q = quadratics.random(K, d, np.random.default_rng(d))
    task, x, y, parts = q.task()
    recipe = Recipe(algorithms.fedavg(task, lr=0.1), task.theta0, batch=1, epochs=E)
    run = [r.theta.numpy() for r in federate(Simulated(recipe, x, y, parts), rounds=6)]
    np.testing.assert_allclose(run, q.fedavg(np.zeros(d), 0.1, E, 6)[1:], atol=1e-9)


def test_local_paths_end_where_the_contraction_says_and_the_limits_hold():
    q = quadratics.random(4, 3, np.random.default_rng(0))
    start = np.array([1.0, -2.0, 0.5])
    path = q.local_path(start, 0.1, 9)
    M = q.contraction(0.1, 9)
    np.testing.assert_allclose(path[:, -1], q.b + np.einsum("kij,kj->ki", M, start - q.b))
    np.testing.assert_allclose(q.fixed_point(0.1, 1), q.optimum())
    np.testing.assert_allclose(q.fixed_point(0.1, 2000), q.p @ q.b, atol=1e-9)
    downhill = q.loss(q.optimum() + 1e-3 * np.eye(3)) - q.loss(q.optimum())
    assert (downhill > 0).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: label_distance(np.array([[0, 0], [1, 1]])),
        lambda: label_distance(np.array([1, 2])),
        lambda: gini([]),
        lambda: gini([0, 0]),
        lambda: tail([]),
        lambda: tail([0.5, math.nan]),
        lambda: tail(np.ma.masked_all(3)),
        lambda: tail([0.5], 0),
        lambda: tail([0.5], 1.01),
        lambda: tail([0.5], math.nan),
        lambda: drift(torch.ones(2, 3), torch.ones(2)),
        lambda: cosines(torch.ones(3), torch.ones(3) / 3),
        lambda: weight_divergence(torch.ones(2), torch.zeros(2)),
        lambda: quadratics.of([1.0, -1.0], [0.0, 1.0]),
        lambda: quadratics.of([1.0, 1.0], [0.0, 1.0], p=[1.0, 0.0]),
        lambda: quadratics.of([1.0], [0.0, 1.0]),
    ],
)
def test_bad_input_says_what_and_how(call):
    with pytest.raises(ValueError, match=r"\w+: .*got .*"):
        call()


# -- what a cohort sends --------------------------------------------------------------------------


def three(method=algorithms.fedavg, pipeline=None):
    """Three clients with 4, 2 and 6 examples in float64, full batches, three local steps."""
    torch.manual_seed(0)
    task = model.from_module(torch.nn.Linear(5, 3).double())
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    made = method(task, 0.3, *([12] if method is algorithms.scaffold else []))
    recipe = Recipe(made, task.theta0, pipeline or chain(mean()), batch=None, epochs=3)
    return Simulated(recipe, x, y, [np.arange(4), np.arange(4, 6), np.arange(6, 12)])


def by_hand(clients, theta, who):
    """A plain loop of gradient descent, client by client."""
    rows = []
    for k in who:
        W, b = theta[:15].view(3, 5).clone(), theta[15:].clone()
        for at in 3 * [torch.as_tensor(clients.parts[k])]:
            W, b = W.requires_grad_(), b.requires_grad_()
            loss = torch.nn.functional.cross_entropy(clients.x[at] @ W.T + b, clients.y[at])
            W, b = (
                (v - 0.3 * g).detach()
                for v, g in zip((W, b), torch.autograd.grad(loss, (W, b)), strict=True)
            )
        rows.append(torch.cat([W.flatten(), b]) - theta)
    return torch.stack(rows)


@pytest.mark.parametrize("who", [None, [2, 0], [1]])
@pytest.mark.parametrize("method", [algorithms.fedavg, algorithms.scaffold])
def test_updates_are_those_of_a_plain_loop(who, method):
    clients, elsewhere = three(method), torch.linspace(-1, 1, 18, dtype=torch.float64)
    for theta in (None, elsewhere):
        deltas, n = updates(clients, theta, who)
        start = clients.recipe.theta if theta is None else theta
        plain = by_hand(clients, start, who or [0, 1, 2])
        torch.testing.assert_close(deltas, plain, rtol=1e-12, atol=1e-12)
        assert n.tolist() == [[4.0, 2.0, 6.0][k] for k in who or [0, 1, 2]]


def test_updates_are_what_the_first_round_receives_and_change_nothing():
    for pipeline in (None, chain(clip(0.1), mean())):
        clients = three(algorithms.scaffold if pipeline is None else algorithms.fedavg, pipeline)
        run = federate(clients, rounds=2)
        deltas, n = updates(clients)
        first = next(run)
        assert torch.equal(deltas, first.deltas) and torch.equal(n / n.sum(), first.p)
        assert torch.equal(updates(clients)[0], deltas) and not torch.equal(
            next(run).deltas, deltas
        )
    assert deltas.norm(dim=1).max() <= 0.1


@pytest.mark.parametrize("who", [[3], [-1, 0]])
def test_updates_of_nobody_are_refused(who):
    with pytest.raises(
        ValueError, match=r"updates: cohort must be numbers of clients, 0 to 2, got"
    ):
        updates(three(), cohort=who)
