"""All of a run on the GPU from one argument."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import METHODS, autograd, problem, run

from fedlearn import Recipe, Simulated, centralised, federate
from fedlearn.aggregate import mean
from fedlearn.model import evaluator
from fedlearn.transform import chain, clip, noise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; found none"),
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
    how = {"pipeline": chain(clip(0.5), mean(), noise(1e-3)), "evaluate": test}
    algorithm = METHODS[method](task)
    here = run(algorithm, task.theta0, p, **how)
    there = run(algorithm, task.theta0, p, device="cuda", **how)
    for a, b in zip(here, there, strict=True):
        assert {v.device.type for v in (b.theta, b.deltas, b.p)} == {"cuda"}
        torch.testing.assert_close(a.theta, b.theta.cpu(), atol=1e-10, rtol=1e-9)
        assert a.metrics == pytest.approx(b.metrics, abs=1e-9)


def test_data_may_be_there_already():
    p = problem()
    task = p.closed_form
    recipe = Recipe(METHODS["fedavg"](task), task.theta0)
    clients = Simulated(recipe, p.x.cuda(), p.y.cuda(), p.parts, device="cuda")
    r = next(federate(clients, rounds=1))
    assert r.theta.is_cuda and clients.x.is_cuda


def test_the_reference_runs_there_too():
    p = problem()
    task = p.closed_form
    recipe = Recipe(METHODS["fedavg"](task), task.theta0)
    pooled = centralised(recipe, p.x, p.y, n_clients=8, device="cuda")
    r = next(federate(pooled, rounds=1, cohort=1))
    assert r.theta.is_cuda and np.isfinite(r.loss)
