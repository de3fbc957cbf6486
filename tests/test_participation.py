"""Who takes part, the simulated clock, and asynchronous runs, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import problem, quadratics

from fedlearn import Recipe, Simulated, algorithms, collect, federate
from fedlearn.asynchronous import asynchronous, polynomial
from fedlearn.batches import Shards, schedule
from fedlearn.descend import descend
from fedlearn.fleet import Fleet, fleet
from fedlearn.participation import (
    available,
    dropouts,
    poisson,
    sample,
    stragglers,
    uniform,
    weighted,
)

close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-10)  # float64


# -- who is called, who answers -------------------------------------------------------------------

CALLS = {
    "uniform": uniform(4),
    "weighted": weighted(4, np.arange(1, 11)),
    "with replacement": weighted(4, np.arange(1, 11), replace=True),
    "poisson": poisson(0.4),
    "available": available(4, lambda t: np.linspace(0, 1, 10)),
    "dropouts": dropouts(uniform(8), 0.4),
    "stragglers": stragglers(uniform(8), 0.5),
    "stragglers left out": stragglers(uniform(8), 0.5, drop=True),
    "both": stragglers(dropouts(poisson(0.8), 0.2), np.linspace(0, 1, 10)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_a_function_of_seed_and_round(name):
    call, seen = CALLS[name], set()
    for t in range(30):
        a, b = call(10, 1, t), call(10, 1, t)
        assert np.array_equal(a.called, b.called) and np.array_equal(a.answered, b.answered)
        assert (a.seed, a.round) == (1, t)
        assert set(a.answered) <= set(a.called) <= set(range(10))
        assert list(a.answered) == sorted(a.answered)
        assert a.work is None or (
            len(a.work) == len(a.answered) and ((0 < a.work) & (a.work <= 1)).all()
        )
        seen.add((tuple(a.answered), None if a.work is None else tuple(a.work)))
    assert len(seen) > 20
    assert any(
        not np.array_equal(call(10, 1, t).answered, call(10, 2, t).answered)
        or not np.array_equal(call(10, 1, t).work, call(10, 2, t).work)
        for t in range(5)
    )


def test_federates_number_is_uniform():
    p = problem()
    recipe = Recipe(algorithms.fedavg(p.closed_form, 0.3), p.closed_form.theta0, batch=16)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    a = list(federate(clients, rounds=3, cohort=5))
    b = list(federate(clients, rounds=3, cohort=uniform(5)))
    for r, s in zip(a, b, strict=True):
        assert np.array_equal(r.answered, s.answered) and torch.equal(r.theta, s.theta)
    assert np.array_equal(a[2].answered, sample(8, 5, 0, 2))


def counted(call, n=10, rounds=4000) -> np.ndarray:
    """How often each client answers, per round."""
    out = np.zeros(n)
    for t in range(rounds):
        np.add.at(out, call(n, 0, t).answered, 1)
    return out / rounds


def test_weights_rates_and_chances_come_out():
    """Frequencies over 4,000 rounds; four standard deviations are below 0.035."""
    w = np.arange(1, 11) / 55
    assert np.abs(counted(weighted(4, w, replace=True)) - 4 * w).max() < 0.06
    assert np.abs(counted(poisson(0.3)) - 0.3).max() < 0.035
    chance = np.linspace(0, 1, 10)
    assert np.abs(counted(available(10, lambda t: chance)) - chance).max() < 0.035
    assert np.abs(counted(dropouts(uniform(), chance)) - (1 - chance)).max() < 0.035
    assert np.abs(counted(stragglers(uniform(), chance, drop=True)) - (1 - chance)).max() < 0.035
    sizes = [len(poisson(0.3)(10, 0, t).answered) for t in range(4000)]
    assert np.var(sizes) == pytest.approx(10 * 0.3 * 0.7, rel=0.15)  # binomial


def test_with_replacement_and_equal_weights_the_update_is_unbiased():
    """The mean over many rounds of (1/K) sum delta_k is sum p_k delta_k (Li et al., Scheme I)."""
    p = problem()
    task, sizes = p.closed_form, np.array([len(rows) for rows in p.parts])
    recipe = Recipe(algorithms.fedsgd(task, 0.5), task.theta0, batch=None, equal=True)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    frozen = algorithms.fedsgd(task, 0.5)._replace(server=lambda state, *_: state)
    recipe = Recipe(frozen, task.theta0, batch=None, equal=True)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    call = weighted(3, sizes, replace=True)
    rounds = list(federate(clients, rounds=1500, cohort=call))
    assert all(torch.equal(r.p, torch.full_like(r.p, 1 / 3)) for r in rounds)
    updates = torch.stack([r.p @ r.deltas for r in rounds])
    (everybody,) = federate(clients, rounds=1)
    want = torch.from_numpy(sizes / sizes.sum()) @ everybody.deltas
    error = (updates.mean(0) - want).norm() / updates.std(0).norm()
    assert error < 4 / math.sqrt(1500)
    assert (everybody.deltas.mean(0) - want).norm() / updates.std(0).norm() > 0.2  # had it failed


def test_a_dropout_that_goes_with_the_data_moves_the_optimum():
    """Client 1 never answers: theta goes to client 0's minimum. Half the time for all: no bias."""
    task, x, y, parts = quadratics([1.0, 1.0], [0.0, 1.0], [1, 1])
    recipe = Recipe(algorithms.fedavg(task, 0.05), task.theta0 + 0.5, batch=None)
    clients = Simulated(recipe, x, y, parts)
    *_, gone = federate(clients, rounds=400, cohort=dropouts(uniform(), [0.0, 1.0]))
    assert gone.theta.item() == pytest.approx(0.0, abs=1e-6)
    thetas = [
        r.theta.item() for r in federate(clients, rounds=4000, cohort=dropouts(uniform(), 0.5))
    ]
    assert np.mean(thetas) == pytest.approx(0.5, abs=0.03) and np.std(thetas) > 0.05


def test_a_round_without_an_answer_changes_nothing_and_costs_the_broadcast():
    p = problem()
    recipe = Recipe(algorithms.fedavg(p.closed_form, 0.3), p.closed_form.theta0, batch=16)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    nobody = dropouts(uniform(5), 1.0)
    r = next(federate(clients, rounds=1, cohort=nobody))
    assert torch.equal(r.theta, recipe.theta) and len(r.answered) == 0 and math.isnan(r.loss)
    assert r.deltas.shape == (0, len(recipe.theta))
    history = collect(federate(clients, rounds=3, cohort=nobody))
    assert history["bytes"].tolist() == [5 * r.sent * t for t in (1, 2, 3)]
    some = collect(federate(clients, rounds=40, cohort=poisson(0.1)))
    assert len(some) == 40 and some.theta.isfinite().all()


@pytest.mark.parametrize("work", [0.01, 0.3, 0.5, 1.0])
def test_a_straggler_does_the_first_part_of_its_steps(work):
    p = problem()
    S = np.arange(8)
    full, mask, _ = schedule(p.parts, S, batch=16, epochs=3, seed=0, round=2)
    part = schedule(p.parts, S, batch=16, epochs=3, seed=0, round=2, work=np.full(8, work))
    assert torch.equal(full, part[0])
    for k in S:
        real = [t for t in range(len(mask[k])) if mask[k, t].any()]
        done = [t for t in range(len(mask[k])) if part[1][k, t].any()]
        assert done == real[: max(1, math.ceil(work * len(real)))]
        for t in done:
            assert torch.equal(mask[k, t], part[1][k, t])
    recipe = Recipe(algorithms.fedavg(p.closed_form, 0.3), p.closed_form.theta0, batch=16, epochs=3)
    slow = lambda n, seed, t: uniform()(n, seed, t)._replace(work=np.full(n, work))
    for chunk in (None, 3):
        clients = Simulated(recipe, p.x, p.y, p.parts, chunk=chunk)
        *_, r = federate(clients, rounds=1, cohort=slow)
        plan = schedule(p.parts, S, batch=16, epochs=3, seed=0, round=0, work=np.full(8, work))
        shards = Shards(p.x, p.y, plan[0], plan[1].double(), plan[2].double())
        close(r.deltas, descend(p.closed_form, recipe.theta, shards, 0.3)[0] - recipe.theta)


def test_a_client_with_a_memory_cannot_be_drawn_twice():
    p = problem()
    recipe = Recipe(algorithms.scaffold(p.closed_form, 0.1, 240), p.closed_form.theta0)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    twice = weighted(8, np.ones(8), replace=True)
    with pytest.raises(ValueError, match="without a client twice"):
        list(federate(clients, rounds=3, cohort=twice))


BAD = {
    "uniform: k must be an integer": lambda: uniform(0),
    "uniform: k must be at most N = 3": lambda: uniform(4)(3, 0, 0),
    "weighted: weight must be N finite numbers": lambda: weighted(2, [0, 1, 0]),
    "weighted: weight must be a number for each": lambda: weighted(1, [1, 2])(3, 0, 0),
    "poisson: q must be > 0 and <= 1": lambda: poisson(0.0),
    "dropouts: rate must be one probability": lambda: dropouts(uniform(), 1.5),
    "dropouts: chance must be a number for each": lambda: dropouts(uniform(), [0.1])(3, 0, 0),
    "stragglers: share must be one probability": lambda: stragglers(uniform(), [-0.1, 0.2]),
    "available: chance must be one probability": lambda: available(1, lambda t: 2.0)(3, 0, 0),
    "fleet: spread must be >= 0": lambda: fleet(3, spread=-1),
    "fleet: up must be > 0": lambda: fleet(3, up=0),
    "polynomial: a must be >= 0": lambda: polynomial(-1),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_numbers_are_refused_in_words(message):
    with pytest.raises(ValueError, match=message) as e:
        BAD[message]()
    assert "got" in str(e.value) and "e.g." in str(e.value)


# -- the clock ------------------------------------------------------------------------------------


def test_a_synchronous_round_waits_for_the_slowest():
    p = problem()
    recipe = Recipe(algorithms.fedavg(p.closed_form, 0.3), p.closed_form.theta0, batch=16, epochs=2)
    speeds = fleet(8, seed=1)
    clients = Simulated(recipe, p.x, p.y, p.parts, fleet=speeds)
    history, total, d = collect(federate(clients, rounds=4, cohort=3)), [], 8 * 73
    for t in range(4):
        S = sample(8, 3, 0, t)
        took = [
            d / speeds.down[k] + d / speeds.up[k] + 2 * len(p.parts[k]) * speeds.compute[k]
            for k in S
        ]
        total.append(max(took))
    np.testing.assert_allclose(history["seconds"], np.cumsum(total), rtol=1e-12)
    plain = Simulated(recipe, p.x, p.y, p.parts)
    assert "seconds" not in collect(federate(plain, rounds=1)).columns
    assert torch.equal(history.theta, collect(federate(plain, rounds=4, cohort=3)).theta)


def test_rounds_without_an_answer_take_no_time_on_the_clock():
    """The first and later ones: the column neither fails nor turns to NaN for good."""
    p = problem()
    recipe = Recipe(algorithms.fedavg(p.closed_form, 0.3), p.closed_form.theta0, batch=16)
    clients = Simulated(recipe, p.x, p.y, p.parts, fleet=fleet(8))
    some = available(3, lambda t: np.full(8, float(t in (1, 3))))
    rounds = list(federate(clients, rounds=5, cohort=some))
    seconds = collect(rounds)["seconds"]
    a, b = rounds[1].seconds, rounds[3].seconds
    assert math.isnan(seconds[0])
    np.testing.assert_allclose(seconds[1:], [a, a, a + b, a + b])


def test_the_fleets_speeds_are_log_normal():
    many = fleet(20_000, compute=0.01, up=100.0, spread=0.7)
    for values, median in ((many.compute, 0.01), (many.down, 1e6), (many.up, 100.0)):
        logs = np.log(values / median)
        assert abs(logs.mean()) < 0.03 and logs.std() == pytest.approx(0.7, rel=0.03)
    assert np.corrcoef(np.log(many.compute), np.log(many.up))[0, 1] == pytest.approx(0, abs=0.03)


# -- nobody waits ---------------------------------------------------------------------------------


def equal_parts():
    p = problem()
    return p._replace(parts=[np.arange(k, 240, 8) for k in range(8)])


def test_all_alike_and_a_buffer_of_everybody_is_synchronous_fedavg():
    """Equal speeds, equal sizes, concurrency = buffer = N: each starts from the last step."""
    p = equal_parts()
    task = p.closed_form
    recipe = Recipe(algorithms.fedavg(task, 0.3), task.theta0, batch=None, epochs=2)
    clients = Simulated(recipe, p.x, p.y, p.parts, fleet=fleet(8, spread=0.0))
    first = next(asynchronous(clients, rounds=1, concurrency=8, buffer=8))
    (want,) = federate(clients, rounds=1)
    close(first.theta, want.theta)
    assert first.metrics["staleness"] == 0 and sorted(first.answered) == list(range(8))


def eager(p, task, recipe, speeds, *, rounds, concurrency, buffer, a, rebase, server_lr):
    """The same run, each client trained alone at the moment it is sent off, a plain list of events.

    Of the package it uses the draw of the next client, the batches and the local descent.
    """
    from fedlearn.rng import Use, hashed

    theta, version, now, events, idle = task.theta0, 0, 0.0, [], list(range(8))
    thetas, number = [], 0

    def send():
        nonlocal number
        at = int(hashed(np.array([number]), 0, Use.SAMPLE)[0] % np.uint64(len(idle)))
        idle[at], idle[-1] = idle[-1], idle[at]
        k = idle.pop()
        plan = schedule(p.parts, np.array([k]), batch=16, epochs=2, seed=0, round=number)
        shards = Shards(p.x, p.y, plan[0], plan[1].double(), plan[2].double())
        local = descend(task, theta, shards, 0.3)[0][0]
        d = 8 * len(theta)
        took = d / speeds.down[k] + d / speeds.up[k] + 2 * len(p.parts[k]) * speeds.compute[k]
        events.append((now + took, number, k, theta, local, version))
        number += 1

    for _ in range(concurrency):
        send()
    clock = []
    while version < rounds:
        came = []
        while len(came) < buffer:
            event = min(events)
            events.remove(event)
            now = event[0]
            idle.append(event[2])
            came.append(event)
            if len(came) < buffer:
                send()
        n = np.array([len(p.parts[e[2]]) for e in came])
        w = n / n.sum() * np.array([(1 + version - e[5]) ** -a for e in came])
        base = [theta if rebase else e[3] for e in came]
        theta = theta + server_lr * sum(
            float(wk) * (e[4] - b) for wk, e, b in zip(w, came, base, strict=True)
        )
        version += 1
        send()
        thetas.append(theta)
        clock.append(now)
    return thetas, clock


@pytest.mark.parametrize(
    "concurrency, buffer, rebase", [(5, 3, False), (6, 1, True), (8, 2, False)]
)
@pytest.mark.parametrize("chunk", [None, 2])
def test_asynchronous_is_a_plain_list_of_events(concurrency, buffer, rebase, chunk):
    p = problem()
    task, speeds = p.closed_form, fleet(8, seed=2)
    recipe = Recipe(algorithms.fedavg(task, 0.3, 0.6), task.theta0, batch=16, epochs=2)
    clients = Simulated(recipe, p.x, p.y, p.parts, chunk=chunk, fleet=speeds)
    how = {"rounds": 12, "concurrency": concurrency, "buffer": buffer, "rebase": rebase}
    got = list(asynchronous(clients, **how, staleness=polynomial(0.7)))
    thetas, clock = eager(p, task, recipe, speeds, **how, a=0.7, server_lr=0.6)
    for r, theta in zip(got, thetas, strict=True):
        close(r.theta, theta)
    np.testing.assert_allclose(np.cumsum([r.seconds for r in got]), clock, rtol=1e-12)
    assert max(r.metrics["staleness"] for r in got) >= 1


def test_fedasync_steps_towards_what_the_client_found():
    """buffer 1, rebase: theta <- (1 - w) theta + w theta_k."""
    task, x, y, parts = quadratics([1.0] * 4, [0.0, 1.0, 2.0, 3.0], [1] * 4)
    recipe = Recipe(algorithms.fedavg(task, 0.5, server_lr=0.4), task.theta0, batch=None)
    clients = Simulated(recipe, x, y, parts, fleet=fleet(4))
    run = asynchronous(clients, rounds=9, concurrency=3, buffer=1, rebase=True)
    theta = task.theta0
    for r in run:
        w = 0.4 * r.p  # p carries the staleness
        close(r.theta, (1 - w) * theta + w * (r.deltas[0] + theta))
        theta = r.theta


def test_slow_clients_hold_up_a_synchronous_round_and_not_the_others():
    p = equal_parts()
    task = p.closed_form
    recipe = Recipe(algorithms.fedavg(task, 0.3), task.theta0, batch=None)
    speeds = Fleet(np.array([0.01] * 7 + [1.0]), np.full(8, 1e9), np.full(8, 1e9))
    clients = Simulated(recipe, p.x, p.y, p.parts, fleet=speeds)
    waiting = collect(federate(clients, rounds=5))["seconds"]
    flowing = collect(asynchronous(clients, rounds=5, concurrency=8, buffer=7))["seconds"]
    np.testing.assert_allclose(waiting, 30 * np.arange(1, 6), rtol=1e-4)
    np.testing.assert_allclose(flowing, 0.3 * np.arange(1, 6), rtol=1e-2)


def test_one_client_at_a_time_is_never_stale():
    """concurrency 1, buffer 1: each starts from the step before, FedAvg with a cohort of one."""
    p = problem()
    task = p.closed_form
    recipe = Recipe(algorithms.fedavg(task, 0.3, 0.6), task.theta0, batch=None, epochs=3)
    clients = Simulated(recipe, p.x, p.y, p.parts, fleet=fleet(8))
    how = {"rounds": 10, "concurrency": 1, "buffer": 1}
    pair = [asynchronous(clients, **how, rebase=rebase) for rebase in (False, True)]
    theta = task.theta0
    for r, s in zip(*pair, strict=True):
        index, mask, n = schedule(p.parts, r.answered, batch=None, epochs=3, seed=0, round=r.t)
        shards = Shards(p.x, p.y, index, mask.double(), n.double())
        theta = theta + 0.6 * (descend(task, theta, shards, 0.3)[0][0] - theta)
        assert r.metrics["staleness"] == s.metrics["staleness"] == 0
        close(r.theta, theta)
        close(s.theta, theta)


def test_what_asynchronous_refuses():
    p = problem()
    task = p.closed_form

    clock = fleet(8)

    def go(method=None, speeds=clock, **how):
        recipe = Recipe(method or algorithms.fedavg(task, 0.3), task.theta0)
        clients = Simulated(recipe, p.x, p.y, p.parts, fleet=speeds)
        return asynchronous(clients, **{"rounds": 3, "concurrency": 4, **how})

    for how, words in (
        ({"speeds": None}, "need a clock"),
        (
            {"concurrency": 9},
            "concurrency must be an integer from 1 to 8, got 9, e.g. concurrency=4",
        ),
        ({"buffer": 0}, "buffer must be an integer >= 1"),
        ({"rounds": 0}, "rounds must be"),
        (
            {"method": algorithms.scaffold(task, 0.1, 240)},
            r"remembers nothing, got one with \['c', ",
        ),
        ({"method": algorithms.feddyn(task, 0.1, 0.1, 240)}, r"\['h_k'\]"),
    ):
        with pytest.raises(ValueError, match=words):
            go(**how)
    assert len(list(go(algorithms.fedadam(task, 0.3)))) == 3
