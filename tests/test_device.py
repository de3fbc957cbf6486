"""All of a run on the GPU from one argument: every method, stage, rule and attack.

``FEDLEARN_DEVICE=cpu`` runs the same tests where there is no GPU, to see that they themselves work.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from problems import METHODS, autograd, problem, run

from fedlearn import Recipe, Simulated, aggregate, algorithms, centralised, data, federate, personal
from fedlearn import compress as C
from fedlearn import simulated as place
from fedlearn.aggregate import mean
from fedlearn.attacks import (
    Byzantine,
    dlg,
    gaussian,
    gradient,
    inner_product,
    invert_linear,
    label_counts,
    little_is_enough,
    reveal_label,
    sign_flip,
)
from fedlearn.model import evaluator, softmax_regression
from fedlearn.privacy import dp_federate, private_mean
from fedlearn.transform import chain, clip, noise

DEVICE = os.environ.get("FEDLEARN_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(),
        reason="needs a CUDA device; found none",
    ),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["closed form", "stacked", "sequential"])
def test_a_run_on_the_gpu_is_the_run_on_the_cpu(method, model):
    p = problem()
    task = {
        "closed form": lambda: p.closed_form,
        "stacked": lambda: autograd(p.net, stacked=True),
        "sequential": lambda: autograd(p.net, stacked=False),
    }[model]()
    test = evaluator(task, p.x, p.y)
    algorithm = METHODS[method](task)
    stages = (mean(),) if algorithm.plain else (clip(0.5), mean(), noise(1e-3))
    how = {"pipeline": chain(*stages), "evaluate": test}
    here = run(algorithm, task.theta0, p, **how)
    there = run(algorithm, task.theta0, p, device=DEVICE, **how)
    for a, b in zip(here, there, strict=True):
        assert {v.device.type for v in (b.theta, b.deltas, b.p)} == {DEVICE}
        torch.testing.assert_close(a.theta, b.theta.cpu(), atol=1e-10, rtol=1e-9)
        assert a.metrics == pytest.approx(b.metrics, abs=1e-9)


def test_data_may_be_there_already():
    p = problem()
    task = p.closed_form
    recipe = Recipe(METHODS["fedavg"](task), task.theta0)
    clients = Simulated(recipe, p.x.to(DEVICE), p.y.to(DEVICE), p.parts, device=DEVICE)
    r = next(federate(clients, rounds=1))
    assert r.theta.device.type == clients.x.device.type == DEVICE


def test_the_reference_runs_there_too():
    p = problem()
    task = p.closed_form
    recipe = Recipe(METHODS["fedavg"](task), task.theta0)
    pooled = centralised(recipe, p.x, p.y, n_clients=8, device=DEVICE)
    r = next(federate(pooled, rounds=1, cohort=1))
    assert r.theta.device.type == DEVICE and np.isfinite(r.loss)


# -- rules, stages, attackers: the run there is the run here --------------------------------------

RULES = {
    "total": aggregate.total(5.0),
    "clipped_mean": aggregate.clipped_mean(0.05),
    "median": aggregate.median(),
    "trimmed_mean": aggregate.trimmed_mean(0.2),
    "krum": aggregate.krum(1),
    "multi_krum": aggregate.multi_krum(1),
    "geometric_median": aggregate.geometric_median(),
    "bulyan": aggregate.bulyan(1),
    "majority_vote": C.majority_vote(0.01),
}
STAGES = {
    "quantise": C.quantise(4),
    "random_k": C.random_k(20),
    "top_k": C.top_k(20),
    "sign": C.sign(),
    "error_feedback": C.error_feedback(C.top_k(20)),
}
ATTACKS = {
    "sign_flip": sign_flip(),
    "gaussian": gaussian(0.1),
    "little_is_enough": little_is_enough(),
    "inner_product": inner_product(1.0),
}


def both(wrap=lambda c: c, fed=federate, **kw):  # type: ignore[no-untyped-def]
    """theta after four rounds, here and there."""
    p = problem()
    how = {"batch": 16, "epochs": 2, "seed": 3, **kw}
    method = how.pop("method", lambda task: algorithms.fedavg(task, lr=0.3))
    place_kw = {k: how.pop(k) for k in ("workers", "chunk") if k in how}
    recipe = Recipe(method(p.closed_form), p.closed_form.theta0, **how)
    ends = []
    for device in ("cpu", DEVICE):
        c = Simulated(recipe, p.x, p.y, p.parts, device=device, **place_kw)
        ends.append(list(fed(wrap(c)))[-1].theta)
    assert ends[1].device.type == DEVICE
    torch.testing.assert_close(ends[0], ends[1].cpu(), atol=1e-10, rtol=1e-9)


FOUR = lambda c: federate(c, rounds=4)


@pytest.mark.parametrize("rule", RULES)
def test_rules(rule):
    both(fed=FOUR, pipeline=chain(RULES[rule]))


@pytest.mark.parametrize("stage", STAGES)
def test_stages(stage):
    both(fed=FOUR, pipeline=chain(STAGES[stage], mean()))


@pytest.mark.parametrize("attack", ATTACKS)
def test_attackers(attack):
    both(lambda c: Byzantine(c, [1, 4], ATTACKS[attack]), FOUR)


def test_a_compressed_broadcast():
    both(fed=FOUR, method=lambda task: C.downlink(algorithms.fedavg(task, 0.3), C.top_k(9)))


def test_a_private_run():
    private = lambda c: dp_federate(c, rounds=4, q=0.5, delta=1e-3)
    both(fed=private, pipeline=private_mean(0.1, 1.0, 4.0))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folded_run(workers, monkeypatch):
    monkeypatch.setattr(place, "_KEPT", 0)
    both(fed=FOUR, chunk=3, workers=workers)


def test_personal_models():
    both(fed=FOUR, method=lambda task: personal.ditto(task, 0.3, 0.5))


# -- who listens ----------------------------------------------------------------------------------


def test_a_gradient_gives_the_picture_and_the_label_away_there_too():
    digits, task = data.load("digits"), softmax_regression(64, 10)
    x, y = digits.x[:1].to(DEVICE), digits.y[:1].to(DEVICE)
    theta = task.theta0.to(DEVICE)
    g = gradient(task, theta)(x, y)
    W, b = g[:640].reshape(10, 64), g[640:]
    assert torch.allclose(invert_linear(W, b).cpu().flatten(), digits.x[0], atol=1e-5)
    assert reveal_label(b) == int(digits.y[0])
    ten = gradient(task, theta)(digits.x[:10].to(DEVICE), digits.y[:10].to(DEVICE))[640:]
    counts = label_counts(ten, 10, torch.full((10,), 0.1, device=DEVICE))
    assert counts.tolist() == digits.y[:10].bincount(minlength=10).tolist()


def test_a_search_finds_the_picture_there_too():
    digits, task = data.load("digits"), softmax_regression(64, 10)
    x, y = digits.x[:1].to(DEVICE), digits.y[:1].to(DEVICE)
    send = gradient(task, task.theta0.to(DEVICE))
    *_, guess = dlg(send, send(x, y), (1, 64), 10, steps=60)
    assert guess.x.device.type == DEVICE and (guess.x - x).abs().max() < 0.1
