"""Same seed, same bits, in another process too; what must not matter doesn't."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import METHODS, problem, run

from fedlearn import Recipe, Simulated, algorithms, centralised, collect, data, federate, partition
from fedlearn.batches import schedule
from fedlearn.model import evaluator, mlp, softmax_regression
from fedlearn.participation import sample
from fedlearn.rng import Use, numpy_rng
from fedlearn.transform import Context

close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-11)


def digest(seed: int = 7) -> str:
    """Split, partition, initialise, sample, shuffle, train, add noise, evaluate. -> SHA-256"""
    from fedlearn.aggregate import mean
    from fedlearn.transform import chain, clip, noise

    torch.set_num_threads(1)
    d = data.load("digits", seed=seed)
    bits = hashlib.sha256()
    for name in ("dirichlet_label", "dirichlet_client"):
        parts = getattr(partition, name)(d.y.numpy(), 12, numpy_rng(seed, Use.PARTITION), 0.3)
        task = mlp(64, 16, 10, seed=seed)
        algorithm = algorithms.fedavg(task, lr=0.1)
        pipeline = chain(clip(1.0), mean(), noise(1e-3))
        r = Recipe(algorithm, task.theta0, pipeline, batch=20, epochs=2, seed=seed)
        test = evaluator(task, d.x_test, d.y_test)
        run = federate(Simulated(r, d.x, d.y, parts), rounds=4, cohort=5, evaluate=test)
        history = collect(run)
        bits.update(history.theta.numpy().tobytes())
        for column in ("train_loss", "loss", "accuracy", "bytes"):
            bits.update(history[column].astype(np.float64).tobytes())
    return bits.hexdigest()


@pytest.mark.slow
def test_the_same_bits_in_another_process():
    other = subprocess.Popen(
        [sys.executable, "-c", "import test_reproducible as t; print(t.digest())"],
        # sets and dicts in another order, if anything depended on it
        env={**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    np.random.seed(5)  # noqa: NPY002 (the global generators: nothing may read them)
    torch.manual_seed(5)
    here = digest()
    assert other.communicate()[0].strip() == here
    assert digest(seed=8) != here


def test_the_global_generators_are_left_alone():
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    p = problem()
    run(METHODS["fedavg"](p.closed_form), p.closed_form.theta0, p)
    softmax_regression(64, 10), mlp(64, 32, 10)
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_the_chunk_size_changes_nothing(method, chunk):
    p = problem()
    algorithm = METHODS[method](p.closed_form)
    a = run(algorithm, p.closed_form.theta0, p)
    b = run(algorithm, p.closed_form.theta0, p, chunk=chunk)
    for r, s in zip(a, b, strict=True):
        close(r.theta, s.theta)
        close(r.deltas, s.deltas)
        assert r.loss == pytest.approx(s.loss, rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_cohort_changes_nothing(method):
    """Asked in another order, every client answers the same."""
    p = problem()
    algorithm = METHODS[method](p.closed_form)
    recipe = Recipe(algorithm, p.closed_form.theta0, batch=16, epochs=2)
    message = algorithm.message(algorithm.init(recipe.theta))
    S = np.array([6, 1, 4, 0, 7])
    order = np.argsort(S)

    def asked(S):  # by clients that remember nothing yet
        clients = Simulated(recipe, p.x, p.y, p.parts, chunk=2)
        return clients.run(message, Context(0, 3, S, S), clients.memory())[0]

    there, here = asked(S), asked(S[order])
    assert {"delta", "n", "loss"} <= set(there)
    for name in there:
        close(there[name][torch.from_numpy(order)], here[name])
    assert there["n"].tolist() == [len(p.parts[k]) for k in S]


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_changes_nothing_but_the_metrics(method):
    p = problem()
    algorithm, theta = METHODS[method](p.closed_form), p.closed_form.theta0
    test = evaluator(p.closed_form, p.x, p.y)
    plain = run(algorithm, theta, p, rounds=7)
    for every in (1, 3, 50):
        got = run(algorithm, theta, p, rounds=7, evaluate=test, every=every)
        for a, b in zip(plain, got, strict=True):
            assert torch.equal(a.theta, b.theta) and a.loss == b.loss
        when = [r.t + 1 for r in got if r.metrics]
        assert when == [t for t in range(1, 8) if t % every == 0 or t == 7]


def test_stopping_early_changes_nothing():
    """A run is an iterator: its first rounds are those of the shorter run."""
    p = problem()
    algorithm, theta = METHODS["fedavg"](p.closed_form), p.closed_form.theta0
    long, short = (run(algorithm, theta, p, rounds=t) for t in (6, 2))
    assert torch.equal(long[1].theta, short[1].theta)


def test_a_round_keeps_its_theta():
    """What was yielded isn't overwritten by later rounds."""
    p = problem()
    rounds = run(METHODS["fedavg"](p.closed_form), p.closed_form.theta0, p, rounds=3)
    assert len({r.theta.numpy().tobytes() for r in rounds}) == 3


def test_theta0_and_data_are_left_alone():
    p = problem()
    task = p.closed_form
    before = task.theta0.clone(), p.x.clone(), p.y.clone()
    run(METHODS["fedavg"](task), task.theta0, p)
    assert all(torch.equal(a, b) for a, b in zip(before, (task.theta0, p.x, p.y), strict=True))


def test_cohorts_are_drawn_without_replacement_and_uniformly():
    """2000 cohorts of 3 out of 10: each client in 30 % of them, to five standard deviations."""
    cohorts = np.stack([sample(10, 3, seed=1, t=t) for t in range(2000)])
    assert all(len(set(S)) == 3 for S in cohorts.tolist())
    share = np.bincount(cohorts.flatten(), minlength=10) / 2000
    assert abs(share - 0.3).max() < 5 * (0.3 * 0.7 / 2000) ** 0.5
    assert np.array_equal(cohorts[5], sample(10, 3, seed=1, t=5))
    assert sample(10, 10, seed=1, t=5).tolist() == list(range(10))


def test_centralised_takes_the_steps_of_an_average_client():
    """240 examples, 8 clients, B = 10: a client of 30 takes 3 steps, and so does the pool."""
    p = problem()
    p = p._replace(parts=partition.iid(p.y.numpy(), 8, numpy_rng(0)))
    task = p.closed_form
    recipe = Recipe(algorithms.fedavg(task, 0.3), task.theta0, batch=10, epochs=1)
    everything = centralised(recipe, p.x, p.y, n_clients=8)
    index, _, n = schedule(everything.parts, np.array([0]), batch=everything.recipe.batch, epochs=1,
                                seed=0, round=0)  # fmt: skip
    assert (everything.count, n.tolist(), index.shape) == (1, [240.0], (1, 3, 80))


def test_centralised_full_batch_is_fedsgd():
    p = problem()
    task = p.closed_form
    recipe = Recipe(algorithms.fedavg(task, 0.3), task.theta0, batch=None)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    *_, apart = federate(clients, rounds=5)
    everything = centralised(recipe, p.x, p.y, n_clients=8)
    *_, together = federate(everything, rounds=5, cohort=1)
    close(apart.theta, together.theta)


def test_history_counts_rounds_and_bytes():
    p = problem()
    task = p.closed_form
    recipe = Recipe(algorithms.fedavg(task, 0.3), task.theta0)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    test = evaluator(task, p.x, p.y)
    h = collect(federate(clients, rounds=5, cohort=3, evaluate=test, every=2))
    d = task.theta0.numel()
    assert h["round"].tolist() == [1, 2, 3, 4, 5]
    assert h["bytes"].tolist() == [t * 3 * 2 * 8 * d for t in range(1, 6)]
    assert np.isnan(h["accuracy"]).tolist() == [True, False, True, False, False]
    scores = p.net.double()
    torch.nn.utils.vector_to_parameters(h.theta, scores.parameters())
    right = (scores(p.x).argmax(1) == p.y).double().mean().item()
    assert h["accuracy"][-1] == pytest.approx(right)
    loss = torch.nn.functional.cross_entropy(scores(p.x), p.y).item()
    assert h["loss"][-1] == pytest.approx(loss)


def test_what_clients_keep_belongs_to_them():
    """A method with memory: every client counts its own rounds, in any chunk or cohort."""

    def counting(task):
        plain = algorithms.fedavg(task, 0.1)

        def client(message, shards, memory):
            reply, _ = plain.client(message, shards, memory)
            return {**reply, "rounds": memory["rounds"]}, {"rounds": memory["rounds"] + 1}

        zero = {"rounds": torch.zeros((), dtype=torch.int64)}
        return plain._replace(client=client, memory=lambda theta: zero)

    p = problem()
    task = p.closed_form
    recipe = Recipe(counting(task), task.theta0)
    clients = Simulated(recipe, p.x, p.y, p.parts, chunk=2)
    seen = np.zeros(8, int)
    run_ = federate(clients, rounds=10, cohort=3)
    for r in run_:
        seen[r.answered] += 1
        assert r.received == 8 * task.theta0.numel() + 8  # delta, and the count
    assert run_.memory[0]["rounds"].tolist() == seen.tolist()
    assert seen.sum() == 30
