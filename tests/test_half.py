"""Half precision: what counts, weighs, adds and squares has 32 bits or more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import METHODS, problem, relu_net
from torch import nn

from fedlearn import Recipe, Simulated, algorithms, federate, optim
from fedlearn import aggregate as A
from fedlearn.attacks import byzantine
from fedlearn.descend import descend
from fedlearn.diagnostics import cosines, drift, gradient_dissimilarity, weight_divergence
from fedlearn.diagnostics.evaluation import evaluator
from fedlearn.diagnostics.recipes import describe
from fedlearn.federated_optimizer import SGD
from fedlearn.model import from_module, mlp, softmax_regression
from fedlearn.privacy import adaptive_clip, secure_mean
from fedlearn.recipe import shards_of
from fedlearn.task import Task, weighted, wide
from fedlearn.transform import Context, chain, clip, noise

HALVES = [torch.float16, torch.bfloat16]
# what a parameter of 1 is rounded by in a step
ULP = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
ALL = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
RULES = {
    "mean": A.mean(),
    "total": A.total(5.0),
    "clipped mean": A.clipped_mean(0.2),
    "median": A.median(),
    "trimmed mean": A.trimmed_mean(0.2),
    "krum": A.krum(1),
    "multi-krum": A.multi_krum(1, 2),
    "geometric median": A.geometric_median(),
    "bulyan": A.bulyan(0),
}


# -- the case of the issue: many examples --------------------------------------------------------


def large(dtype: torch.dtype, n: int = 35_000, epochs: int = 1, **how: object):  # type: ignore[no-untyped-def]
    """Two clients of n examples each."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2 * n, 3, generator=g)
    y = (x @ torch.tensor([[1.0, -1.0], [0.5, 0.2], [-1.0, 1.0]])).argmax(1)
    task = softmax_regression(3, 2)
    recipe = Recipe(algorithms.fedavg(task, 0.5), task.theta0.to(dtype), epochs=epochs, **how)
    return Simulated(recipe, x.to(dtype), y, [np.arange(n), np.arange(n, 2 * n)])


@pytest.mark.parametrize("dtype", HALVES)
def test_two_clients_of_35_000_weigh_a_half_each_and_the_model_moves(dtype):
    *_, got = federate(large(dtype, batch=None, epochs=5), rounds=1)
    *_, want = federate(large(torch.float32, batch=None, epochs=5), rounds=1)
    assert got.p.tolist() == [0.5, 0.5] and got.p.dtype == torch.float32
    assert got.theta.dtype == got.deltas.dtype == dtype
    assert want.theta.abs().max() > 0.3
    torch.testing.assert_close(got.theta.float(), want.theta, atol=10 * ULP[dtype], rtol=0)
    assert got.loss == pytest.approx(want.loss, abs=4 * ULP[dtype])


@pytest.mark.parametrize("dtype", ALL)
def test_weights_sum_to_one(dtype):
    """bfloat16 made 0.9976 of it."""
    sizes = [1, 7, 300, 257, 1001, 3]
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    task = softmax_regression(1, 2)
    recipe = Recipe(algorithms.fedavg(task, 0.1), task.theta0.to(dtype))
    x, y = torch.ones(sum(sizes), 1, dtype=dtype), torch.zeros(sum(sizes), dtype=torch.int64)
    if dtype == torch.float64:
        task = task._replace(theta0=task.theta0.double())
        recipe = Recipe(algorithms.fedavg(task, 0.1), task.theta0)
    r = next(federate(Simulated(recipe, x, y, rows), rounds=1))
    wide_type = torch.float64 if dtype == torch.float64 else torch.float32
    assert r.p.dtype == wide_type
    assert float(r.p.double().sum()) == pytest.approx(1, abs=1e-6)
    want = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    torch.testing.assert_close(r.p.double(), want, atol=1e-7, rtol=1e-7)


def test_a_client_of_more_examples_than_float32_counts_is_counted_in_float64():
    rows = {0: np.zeros(2**24 + 1, np.int64), 1: np.zeros(1, np.int64)}
    task = softmax_regression(1, 2)
    theta = task.theta0.double()
    recipe = Recipe(algorithms.fedavg(task, 0.1), theta, batch=2**24 + 1)
    ctx = Context(0, 0, np.arange(2), np.arange(2))
    n = shards_of(recipe, torch.zeros(1, 1), torch.zeros(1), rows, ctx).n
    assert n.tolist() == [2**24 + 1, 1]


@pytest.mark.parametrize("dtype", HALVES)
def test_steps_are_counted_beyond_what_a_half_can_count(dtype):
    """In bfloat16 256 + 1 is 256, in float16 2048 + 1 is 2048."""
    steps = 2051
    task = softmax_regression(1, 2)
    recipe = Recipe(algorithms.fedavg(task, 0.1), task.theta0.to(dtype), batch=1)
    ctx = Context(0, 0, np.arange(1), np.arange(1))
    x, y = torch.zeros(steps, 1, dtype=dtype), torch.zeros(steps, dtype=torch.int64)
    shards = shards_of(recipe, x, y, [np.arange(steps)], ctx)
    _, tau, loss = descend(task, recipe.theta, shards, 1e-6)
    assert tau.item() == steps
    assert loss.item() == pytest.approx(np.log(2), rel=1e-3)


# -- every method and every rule: the run in float32, within what a half rounds --------------------


def ends(dtype: torch.dtype, make, rule=None, task: Task | None = None, stages=()):  # type: ignore[no-untyped-def]
    p = problem()
    task = task or p.closed_form
    pipeline = chain(*stages, rule or A.mean())
    recipe = Recipe(make(task), task.theta0.to(dtype), pipeline, batch=16, epochs=2, seed=3)
    clients = Simulated(recipe, p.x.to(dtype), p.y, p.parts)
    test = evaluator(task, p.x.to(dtype), p.y)
    return list(federate(clients, rounds=4, cohort=5, evaluate=test))


def compare(dtype, *args, **how):  # type: ignore[no-untyped-def]
    half, full = ends(dtype, *args, **how), ends(torch.float32, *args, **how)
    for a, b in zip(half, full):
        assert (a.theta.dtype, a.deltas.dtype, a.p.dtype) == (dtype, dtype, torch.float32)
        torch.testing.assert_close(a.p, b.p)
    # four rounds of up to 20 steps, each rounding what it reaches
    torch.testing.assert_close(half[-1].theta.float(), full[-1].theta, atol=16 * ULP[dtype], rtol=0)
    assert half[-1].loss == pytest.approx(full[-1].loss, abs=4 * ULP[dtype])
    loss = full[-1].metrics["loss"]
    assert half[-1].metrics["loss"] == pytest.approx(loss, abs=8 * ULP[dtype])
    assert (full[-1].theta - full[0].theta).abs().max() > 16 * ULP[dtype]  # it did move


def single(task: Task) -> Task:
    return task._replace(theta0=task.theta0.float())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_in_half_precision_is_the_same_method(name, dtype):
    compare(dtype, METHODS[name], task=single(problem().closed_form))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", RULES)
def test_a_rule_in_half_precision_is_the_same_rule(name, dtype):
    compare(dtype, METHODS["fedavg"], RULES[name], task=single(problem().closed_form))


@pytest.mark.parametrize("dtype", HALVES)
def test_stages_in_half_precision_are_the_same_stages(dtype):
    task = single(problem().closed_form)
    compare(dtype, METHODS["fedavg"], task=task, stages=(clip(0.3),))
    mask, add, unmask = secure_mean(4.0, 240)
    p = problem()
    recipe = lambda d: Recipe(
        algorithms.fedavg(task, 0.3), task.theta0.to(d), chain(mask, add, unmask), seed=3
    )
    half, full = (
        next(federate(Simulated(recipe(d), p.x.to(d), p.y, p.parts), rounds=1))
        for d in (dtype, torch.float32)
    )
    torch.testing.assert_close(half.theta.float(), full.theta, atol=4 * ULP[dtype], rtol=0)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_module_in_half_precision(dtype, stacked):
    p = problem()
    run = lambda d: ends(
        d, METHODS["fedavg"], task=from_module(relu_net(6, 7, 3).to(d), stacked=stacked)
    )
    half, full = run(dtype)[-1], run(torch.float32)[-1]
    assert half.theta.dtype == dtype and half.p.dtype == torch.float32 and len(p.parts) == 8
    torch.testing.assert_close(half.theta.float(), full.theta, atol=16 * ULP[dtype], rtol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_adaptive_clipping_in_half_precision(dtype):
    task = single(problem().closed_form)
    p = problem()

    def last(d):  # type: ignore[no-untyped-def]
        method, pipeline = adaptive_clip(algorithms.fedavg(task, 0.3), 0.0, 8.0, start=0.5)
        recipe = Recipe(method, task.theta0.to(d), pipeline, seed=3)
        return list(federate(Simulated(recipe, p.x.to(d), p.y, p.parts), rounds=3))[-1]

    half, full = last(dtype), last(torch.float32)
    assert half.theta.dtype == dtype
    torch.testing.assert_close(half.theta.float(), full.theta, atol=16 * ULP[dtype], rtol=0)


# -- what only large or small numbers show ---------------------------------------------------------


@pytest.mark.parametrize("name", [k for k in RULES if k != "total"])
def test_rows_whose_squares_and_sums_exceed_float16_are_combined(name):
    """200,000 numbers of about 4: ‖row‖² is 3.2 million, and 65,504 is float16's largest."""
    g = torch.Generator().manual_seed(0)
    rows = (4 + 0.1 * torch.randn(7, 200_000, generator=g)).half()
    rows[1] *= 1.5
    p = torch.ones(7) / 7
    rule = RULES[name] if name != "clipped mean" else A.clipped_mean(1000.0)
    got = rule.apply(rows, p)
    want = rule.apply(rows.double(), p.double())
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.double(), want, atol=0, rtol=2e-3)


@pytest.mark.parametrize("rule", [A.mean(), A.median(), A.trimmed_mean(0.1), A.total(64.0)])
def test_a_mean_of_large_halves_does_not_overflow_on_the_way(rule):
    rows = torch.full((64, 2), 3e4, dtype=torch.float16)
    assert rule.apply(rows, torch.ones(64) / 64).tolist() == [3e4, 3e4]


def test_measures_of_halves_are_those_of_the_same_numbers():
    g = torch.Generator().manual_seed(0)
    rows = (2 + torch.randn(5, 100_000, generator=g)).half()
    p = torch.full((5,), 0.2)
    a, b = drift(rows, p), drift(rows.double(), p.double())
    torch.testing.assert_close(a.each.double(), b.each, rtol=1e-5, atol=0)
    assert (a.together, a.lost) == pytest.approx((b.together, b.lost), rel=1e-4)
    want = cosines(rows.double(), p.double())
    torch.testing.assert_close(cosines(rows, p).double(), want, rtol=1e-4, atol=0)
    got, want = (gradient_dissimilarity(r, p.to(r)) for r in (wide(rows), rows.double()))
    assert gradient_dissimilarity(rows, p) == pytest.approx(got)
    assert got == pytest.approx(want, rel=1e-4)
    want = weight_divergence(rows[0].double(), rows[1].double())
    assert weight_divergence(rows[0], rows[1]) == pytest.approx(want, rel=1e-5)


def test_measures_refuse_rows_that_are_masked():
    masked, p = torch.ones(2, 3, dtype=torch.int32), torch.tensor([0.5, 0.5])
    for measure in (drift, cosines, gradient_dissimilarity):
        with pytest.raises(ValueError, match="needs real rows"):
            measure(masked, p)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_learning_rate_is_broadcast_in_32_bits(dtype):
    task = softmax_regression(2, 2)
    method = algorithms.scheduled(lambda lr: algorithms.fedavg(task, lr), lambda t: 1e-8)
    sent = method.message(method.init(task.theta0.to(dtype)))
    assert float(sent["lr"]) == pytest.approx(1e-8, rel=1e-6)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("make", [optim.adam, optim.yogi, optim.adagrad, optim.momentum])
def test_the_servers_optimiser_remembers_squares_that_a_half_has_not(make, dtype):
    """(1e-4)² is 0 in float16: Adam's step would be 0.1 / tau times too long."""
    opt, theta = make(0.1), torch.zeros(3, dtype=dtype)
    g = torch.tensor([1e-4, -3e-4, 300.0]).to(dtype)
    full, state, kept = theta.float(), opt.init(theta), opt.init(theta.float())
    for _ in range(3):
        theta, state = opt.step(g, state, theta)
        full, kept = opt.step(g.float(), kept, full)
    assert theta.dtype == dtype
    torch.testing.assert_close(theta.float(), full, rtol=8 * ULP[dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_optimiser_of_lesson_3_adds_up_gradients_with_large_weights(dtype):
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.zeros_(model.weight)
    opt = SGD(model.parameters(), lr=1.0)
    for x, n in ((1.0, 35_000), (3.0, 35_000)):
        model(torch.tensor([[x]], dtype=dtype)).sum().backward()
        opt.receive(weight=n)
    opt.step()
    assert model.weight.item() == -2 and model.weight.dtype == dtype


@pytest.mark.parametrize("attack", [byzantine.little_is_enough(1.0), byzantine.inner_product(1.0)])
def test_attackers_look_at_sums_that_a_half_has_not(attack):
    honest = torch.full((5, 2), 3e4, dtype=torch.float16)
    sent = attack(honest, honest[:1], Context(0, 0, np.arange(6), np.arange(1)))
    assert sent.dtype == torch.float16 and sent.abs().tolist() == [[3e4, 3e4]]


def test_the_evaluator_takes_its_mean_in_32_bits():
    task = softmax_regression(1, 2)
    x, y = torch.ones(3000, 1), torch.zeros(3000, dtype=torch.int64)
    theta = torch.tensor([0.1, -0.1, 0.0, 0.0])
    want = evaluator(task, x, y)(theta.half().float())["loss"]
    assert evaluator(task, x.half(), y)(theta.half())["loss"] == pytest.approx(want, rel=1e-5)


def test_a_module_s_mean_loss_in_half_is_taken_of_wide_numbers():
    task = from_module(nn.Linear(1, 2).half())
    x, y = torch.ones(3000, 1).half(), torch.zeros(3000, dtype=torch.int64)
    theta = torch.tensor([0.1, -0.1, 0.0, 0.0]).half()
    scores = theta[:2].double() + theta[2:].double()
    want = float(scores.logsumexp(0) - scores[0])
    assert evaluator(task, x, y)(theta)["loss"] == pytest.approx(want, rel=2e-3)


@pytest.mark.parametrize("dtype", ALL)
def test_weighted_is_the_sum_and_keeps_the_type(dtype):
    rows = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=dtype)
    got = weighted(torch.tensor([0.25, 0.75]), rows)
    assert got.dtype == dtype and got.tolist() == [2.5, 4.25]


def test_a_recipe_describes_bfloat16():
    a, b = (torch.tensor([v, 2.0], dtype=torch.bfloat16) for v in (1.0, 1.5))
    assert describe(a, "x") == describe(a.clone(), "x") != describe(b, "x")
    assert "bfloat16" in describe(a, "x")["x"]


def test_noise_and_total_keep_the_type_in_half():
    ctx = Context(0, 0, np.arange(2), np.arange(2))
    rows = torch.ones(2, 4).bfloat16()
    out = chain(A.total(2.0), noise(0.5)).combine({"delta": rows}, torch.ones(2) / 2, ctx)
    assert out.dtype == torch.bfloat16


def test_a_theta_of_whole_numbers_is_refused():
    task = mlp(2, 3, 2)
    with pytest.raises(ValueError, match=r"theta must be a finite vector .* of real numbers"):
        Recipe(algorithms.fedavg(task, 0.1), torch.zeros(17, dtype=torch.int64))
