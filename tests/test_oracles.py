"""Numbers known beforehand that must come out, counted on the models themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedlearn import Recipe, Simulated, algorithms, collect, federate
from fedlearn.algorithms.base import nbytes
from fedlearn.model import from_module, mlp, softmax_regression


def mcmahan_cnn() -> nn.Module:
    """5x5 padded convolutions of 32 and 64 channels, 2x2 pools, 512 units, 10 scores."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


SIZES = {
    "Linear(784, 10)": (lambda: softmax_regression(784, 10), 7_850),
    "Linear(784, 10) as a module": (lambda: from_module(nn.Linear(784, 10)), 7_850),
    "2NN": (lambda: mlp(784, 200, 200, 10), 199_210),
    "McMahan's CNN": (lambda: from_module(mcmahan_cnn()), 1_663_370),
}


@pytest.mark.parametrize("name", SIZES)
def test_number_of_parameters(name):
    make, d = SIZES[name]
    task = make()
    assert task.theta0.shape == (d,) and task.theta0.dtype == torch.float32
    assert nbytes({"theta": task.theta0}) == 4 * d
    assert task.predict(task.theta0, torch.rand(2, 784)).shape == (2, 10)


def test_mcmahans_cnn_takes_a_step():
    """One federated step of two clients equals torch.optim on each alone, then the mean."""
    net = mcmahan_cnn()
    task = from_module(net)
    x, y = torch.rand(6, 784), torch.arange(6)
    recipe = Recipe(algorithms.fedavg(task, lr=0.1), task.theta0, batch=None)
    parts = [np.arange(4), np.arange(4, 6)]
    r = next(federate(Simulated(recipe, x, y, parts), rounds=1))
    assert (r.sent, r.received) == (4 * 1_663_370, 4 * 1_663_370)
    want = 0
    for rows in parts:
        net.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        g = torch.cat([q.grad.flatten() for q in net.parameters()])
        want = want + len(rows) / 6 * (task.theta0 - 0.1 * g)
    torch.testing.assert_close(r.theta, want, atol=1e-6, rtol=1e-5)


def test_bytes_of_a_round():
    """Linear(784, 10): 31,400 bytes to each participant and 31,400 back."""
    task = softmax_regression(784, 10)
    recipe = Recipe(algorithms.fedavg(task, lr=0.1), task.theta0)
    x, y = torch.rand(30, 784), torch.arange(30) % 10
    clients = Simulated(recipe, x, y, np.split(np.arange(30), 10))
    rounds = list(federate(clients, rounds=3, cohort=4))
    assert {(r.sent, r.received) for r in rounds} == {(31_400, 31_400)}
    assert collect(rounds)["bytes"].tolist() == [251_200, 502_400, 753_600]  # 4 x 62,800 a round


def test_initial_weights_are_uniform_within_one_over_the_root_of_fan_in():
    """PyTorch's own rule for nn.Linear: U(±1/√n_in) for weights and biases, variance a²/3."""
    task = mlp(784, 200, 200, 10)
    sizes = [784 * 200, 200, 200 * 200, 200, 200 * 10, 10]
    layers = task.theta0.split(sizes)
    for layer, n_in in zip(layers, (784, 784, 200, 200, 200, 200), strict=True):
        a = n_in**-0.5
        assert layer.abs().max() <= a
        if len(layer) > 1000:
            assert layer.var().item() == pytest.approx(a * a / 3, rel=0.05)
            assert abs(layer.mean()) < 5 * a / (3 * len(layer)) ** 0.5
    assert not torch.equal(mlp(4, 3, seed=0).theta0, mlp(4, 3, seed=1).theta0)


def test_softmax_regression_on_digits_learns():
    """The number that lesson 1 shows: above 90 % after ten rounds."""
    from fedlearn import data, partition
    from fedlearn.model import evaluator
    from fedlearn.rng import Use, numpy_rng

    digits, task = data.load("digits"), softmax_regression(64, 10)
    parts = partition.dirichlet_label(digits.y, 20, numpy_rng(0, Use.PARTITION), 100.0)
    recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, epochs=5)
    clients = Simulated(recipe, digits.x, digits.y, parts)
    test = evaluator(task, digits.x_test, digits.y_test)
    *_, last = federate(clients, rounds=10, cohort=10, evaluate=test)
    assert last.metrics["accuracy"] > 0.9
