"""A round in which nobody answers goes through the same books as any other."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import runs
import torch
from problems import METHODS, problem
from runs import KINDS, look, start

from fedlearn import Diverged, Recipe, Simulated, aggregate, collect, federate
from fedlearn.algorithms import fedavg, fedavgm, scheduled
from fedlearn.fleet import fleet
from fedlearn.participation import dropouts, uniform
from fedlearn.privacy import dp_federate, private_mean
from fedlearn.recipe import no_reply
from fedlearn.transform import Context, chain, clip, noise

RULES = {
    "mean": aggregate.mean(),
    "total": aggregate.total(3.0),
    "clipped_mean": aggregate.clipped_mean(1.0),
    "median": aggregate.median(),
    "trimmed_mean": aggregate.trimmed_mean(0.2),
    "krum": aggregate.krum(1),
    "multi_krum": aggregate.multi_krum(1, 2),
    "geometric_median": aggregate.geometric_median(),
    "bulyan": aggregate.bulyan(1),
}


def silent(*empty):
    """Six are called; in the rounds ``empty`` nobody answers, in the others five of them or so."""

    def call(n, seed, t):
        return dropouts(uniform(6), 1.0 if t in empty else 0.2)(n, seed, t)

    return call


def made(method, empty, pipeline=None, *, clock=False, **how):
    p, task = problem(), problem().closed_form
    algorithm = METHODS[method](task) if isinstance(method, str) else method(task)
    pipeline = pipeline or chain(aggregate.mean())
    recipe = Recipe(algorithm, task.theta0, pipeline, batch=16, epochs=2, seed=3)
    machines = fleet(len(p.parts)) if clock else None
    clients = Simulated(recipe, p.x, p.y, p.parts, fleet=machines)
    return federate(clients, **{"rounds": 5, "cohort": silent(*empty), "evaluate": look, **how})


def test_the_rules_are_all_of_them():
    here = {n for n, f in vars(aggregate).items() if inspect.isfunction(f)}
    own = {n for n in here if vars(aggregate)[n].__module__ == aggregate.__name__}
    assert {n for n in own if not n.startswith("_")} == set(RULES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_0_for_nobody(rule, dtype):
    delta, p = torch.zeros(0, 7, dtype=dtype), torch.zeros(0, dtype=dtype)
    got = RULES[rule].apply(delta, p)
    assert got.dtype == dtype and torch.equal(got, torch.zeros(7, dtype=dtype))
    ctx = Context(0, 0, np.arange(3), np.zeros(0, int))
    assert torch.equal(chain(RULES[rule]).combine({"delta": delta}, p, ctx), got)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_reply_has_the_methods_keys_types_and_shapes(method):
    run = made(method, (), rounds=1)
    clients, message = run.clients, run.recipe.algorithm.message(run.state)
    full, kept = clients.run(message, Context(3, 0, np.arange(4), np.arange(4)), run.memory)
    nobody = Context(3, 0, np.arange(4), np.zeros(0, int))
    for none, empty in (
        clients.run(message, nobody, run.memory),
        no_reply(run.recipe, message, nobody),
    ):
        assert list(none) == list(full)
        for name, rows in full.items():
            assert none[name].shape == (0, *rows.shape[1:]), name
            assert none[name].dtype == rows.dtype, name
        for own, mine in zip(kept, empty, strict=True):
            assert own.keys() == mine.keys()
            assert all(mine[k].shape == (0, *v.shape[1:]) for k, v in own.items())


@pytest.mark.parametrize("rule", ["mean", "median"])
@pytest.mark.parametrize("method", METHODS)
def test_theta_and_memories_stay_where_nobody_answers(method, rule):
    """Behind two full rounds: momentum has something to go on with."""
    pipeline = chain(clip(1.0), RULES[rule])
    if method == "feddyn":
        pipeline = chain(RULES["mean"])  # it refuses the others; so do these a rule but the mean
    elif rule == "median" and method.startswith(("scaffold", "fednova", "qfedavg")):
        pipeline = chain(clip(1.0), RULES["mean"])
    run = made(method, (2, 3), pipeline)
    for _ in range(2):
        before = next(run).theta
    memory = runs.bits(run.memory)
    for t in (2, 3):
        r = next(run)
        assert r.t == t and len(r.answered) == 0 and len(r.called) == 6
        assert runs.bits(r.theta) == runs.bits(before) and runs.bits(run.memory) == memory
        assert r.deltas.shape == (0, len(before)) and r.p.shape == (0,)
        assert np.isnan(r.loss) and r.received == 0 and r.sent > 0
        assert r.metrics == pytest.approx(look(before), nan_ok=True)
    assert not torch.equal(next(run).theta, before)


@pytest.mark.parametrize("method", METHODS)
def test_rounds_without_an_answer_are_as_if_they_had_not_been(method):
    """But for the numbers that rounds have: the state of the server is what it was."""
    run = made(method, (1, 2))
    next(run)
    before = runs.bits({k: v for k, v in run.state.items() if k != "t"})
    next(run), next(run)
    assert runs.bits({k: v for k, v in run.state.items() if k != "t"}) == before


def test_a_schedule_advances_where_nobody_answers():
    rates = []

    def rate(t):
        rates.append(t)
        return 0.5 / (1 + t)

    run = made(lambda task: scheduled(lambda lr: fedavg(task, lr), rate), (1, 2))
    for t in range(5):
        said = run.recipe.algorithm.message(run.state)["lr"]
        assert said.item() == pytest.approx(0.5 / (1 + t)), t
        next(run)
    assert run.state["t"] == 5 and set(rates) <= set(range(6))


@pytest.mark.parametrize("every, due", [(1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (10, [4])])
def test_empty_rounds_are_evaluated_when_due_and_when_last(every, due):
    seen = []

    def evaluate(theta):
        seen.append(theta.clone())
        return look(theta)

    got = list(made("fedavgm", (1, 3, 4), every=every, evaluate=evaluate))
    assert [r.t for r in got if r.metrics] == due
    assert len(seen) == len(due)
    for theta, t in zip(seen, due, strict=True):
        assert torch.equal(theta, got[t].theta)


def test_empty_rounds_are_on_the_books_and_cost_the_broadcast():
    run = made("scaffold", (0, 2, 3), clock=True)
    h = collect(run)
    assert h["round"].tolist() == [1, 2, 3, 4, 5]
    assert np.isnan(h["train_loss"]).tolist() == [True, False, True, True, False]
    down = 2 * 8 * 73  # theta and c
    steps = np.diff([0, *h["bytes"]])
    assert steps[[0, 2, 3]].tolist() == [6 * down] * 3 and (steps[[1, 4]] > 6 * down).all()
    took = np.diff(h["seconds"])
    assert (took[[1, 2]] == 0).all() and took[3] > 0  # from the second on
    assert h.failed == {} and h.stopped == ""


def test_empty_rounds_are_in_the_history_of_a_run_that_diverges():
    def blow(task):
        m = fedavg(task, lr=0.3)
        grow = lambda s, d, r, p: {"theta": s["theta"] + (d if s["theta"].norm() < 3.0 else 1e400)}
        return m._replace(server=grow)

    run = made(blow, (0, 1, 3), rounds=50)
    with pytest.raises(Diverged) as e:
        list(run)
    h = e.value.history
    assert h is run.history and len(h) == e.value.round == run.t
    assert h["round"].tolist() == list(range(1, len(h) + 1)) and len(h) >= 3
    assert np.isnan(h["train_loss"][[0, 1]]).all()


@pytest.mark.parametrize("every", [1, 3, 10])
def test_a_private_run_that_its_budget_ends_is_evaluated_in_its_last_round(every):
    p, task = problem(), problem().closed_form
    pipeline = private_mean(0.5, 1.0, 0.1 * len(p.parts))
    recipe = Recipe(fedavgm(task, lr=0.1), task.theta0, pipeline, seed=3)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    go = lambda **how: dp_federate(clients, rounds=100, q=0.1, delta=1e-2, evaluate=look, **how)
    free = go(budget=1e9)
    spent = [next(free).metrics["epsilon"] for _ in range(8)]
    run = go(budget=(spent[5] + spent[6]) / 2, every=every)
    got = list(run)
    assert len(got) == 6 and min(len(r.answered) for r in got) == 0
    assert "norm" in got[-1].metrics and len(got[-1].answered) in range(9)
    due = [t for t in range(6) if (t + 1) % every == 0 or t == 5]
    assert [r.t for r in got if "norm" in r.metrics] == due
    assert [r.metrics["epsilon"] for r in got] == spent[:6]
    assert run.ends(run.t) and "budget" in run.history.stopped


def test_a_private_run_without_a_round_in_its_budget_has_none():
    p, task = problem(), problem().closed_form
    recipe = Recipe(fedavg(task, 0.1), task.theta0, private_mean(0.5, 1.0, 0.8), seed=3)
    run = dp_federate(
        Simulated(recipe, p.x, p.y, p.parts), rounds=9, q=0.1, delta=1e-2, budget=1e-3
    )
    h = collect(run)
    assert len(h) == 0 and torch.equal(run.state["theta"], task.theta0) and "budget" in h.stopped


def test_server_noise_moves_theta_in_an_empty_round_and_is_not_repeated():
    run = made("fedavg", (1, 2), chain(clip(1.0), aggregate.mean(), noise(0.1)))
    theta = [next(run).theta for _ in range(3)]
    a, b = theta[1] - theta[0], theta[2] - theta[1]
    assert a.std() == pytest.approx(0.1, rel=0.3) and b.std() == pytest.approx(0.1, rel=0.3)
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.5


@pytest.mark.parametrize("kind", ["poisson, some rounds empty"])
def test_a_run_that_begins_with_empty_rounds_is_a_run(kind):
    run = start(kind)
    sizes = [len(r.answered) for r in run]
    assert sizes[0] == 0 < max(sizes) and kind in KINDS and len(run.history) == len(sizes)
