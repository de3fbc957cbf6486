"""Bad input is refused early: the message names the function, the rule, what it got, an example."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from problems import problem
from torch import nn

from fedlearn import (
    Diverged,
    Recipe,
    Simulated,
    algorithms,
    centralised,
    collect,
    data,
    federate,
    partition,
)
from fedlearn.aggregate import mean
from fedlearn.federated_optimizer import SGD
from fedlearn.model import (
    Task,
    evaluator,
    from_module,
    mlp,
    softmax_regression,
    squared_error,
)
from fedlearn.optim import sgd
from fedlearn.rng import numpy_rng
from fedlearn.transform import Context, Rowwise, chain, clip, noise

Y = np.repeat(np.arange(3), 10)  # thirty examples of three classes
X = torch.rand(30, 4)
PARTS = [np.arange(15), np.arange(15, 30)]
TASK = softmax_regression(4, 3)


def recipe(**kw):
    return Recipe(algorithms.fedavg(TASK, lr=0.1), TASK.theta0, **kw)


def simulated(x=X, y=None, parts=PARTS, task=TASK, **kw):
    r = Recipe(algorithms.fedavg(task, lr=0.1), task.theta0)
    return Simulated(r, x, torch.from_numpy(Y) if y is None else y, parts, **kw)


def rounds(**kw):
    r = recipe()
    clients = Simulated(r, X, torch.from_numpy(Y), PARTS)
    return federate(clients, **{"rounds": 1, **kw})


class GRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 3, batch_first=True)

    def forward(self, x):
        return self.gru(x)[0][:, -1]


class LooksAtValues(nn.Module):
    """Python that depends on numbers: vmap can't follow it."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(x) if x.sum().item() > 0 else self.out(-x)


def one_round(module, **kw):
    task = from_module(module, **kw)
    r = Recipe(algorithms.fedavg(task, 0.1), task.theta0)
    next(federate(Simulated(r, X, torch.from_numpy(Y), PARTS), rounds=1))


rng = lambda: numpy_rng(0)
nan, inf = math.nan, math.inf

# what is done: (how, words that its message must hold)
BAD = {
    # data
    "unknown data set": (lambda: data.load("minst"), ["load", "'minst'", "mnist", "e.g. 'digits'"]),
    "unknown fallback": (
        lambda: data.load("mnist", fallback="digit"), ["load", "'digit'", "e.g. 'digits'"],
    ),
    # partition
    "alpha 0": (
        lambda: partition.dirichlet_label(Y, 3, rng(), 0.0),
        ["dirichlet_label", "alpha must be > 0", "got 0.0", "e.g. alpha=0.1"],
    ),
    "alpha negative": (
        lambda: partition.dirichlet_client(Y, 3, rng(), -1.0),
        ["dirichlet_client", "alpha must be > 0", "got -1.0", "e.g. alpha=0.1"],
    ),
    "alpha nan": (
        lambda: partition.quantity(Y, 3, rng(), nan),
        ["quantity", "alpha must be > 0", "got nan", "e.g. alpha=0.1"],
    ),
    "alpha inf": (
        lambda: partition.client_mixes(3, 3, rng(), inf),
        ["client_mixes", "alpha must be > 0 and finite", "got inf", "e.g. alpha=0.1"],
    ),
    "more clients than examples": (
        lambda: partition.iid(Y, 31, rng()), ["iid", "31 clients", "got 30", "e.g. n_clients=15"],
    ),
    "more shards than examples": (
        lambda: partition.shards(Y, 16, rng()), ["shards", "16 clients", "got 30", "e.g. n_clients"]
    ),
    "minimum size too large": (
        lambda: partition.dirichlet_label(Y, 3, rng(), 1.0, min_size=11),
        ["dirichlet_label", "at least 11 each", "got 30", "e.g."],
    ),
    "minimum size 0": (
        lambda: partition.dirichlet_label(Y, 3, rng(), 1.0, min_size=0),
        ["dirichlet_label", "min_size must be an integer >= 1", "got 0", "e.g."],
    ),
    "no client": (
        lambda: partition.iid(Y, 0, rng()), ["iid", "n_clients", ">= 1", "got 0", "e.g."],
    ),
    "half a client": (
        lambda: partition.iid(Y, 2.5, rng()), ["iid", "n_clients", "integer", "got 2.5", "e.g."],
    ),
    "labels without owner": (
        lambda: partition.labels_per_client(np.arange(9), 2, rng(), 2),
        ["labels_per_client", "labels_each", "N=2", "C=9", "e.g. labels_each=5"],
    ),
    "more labels than there are": (
        lambda: partition.labels_per_client(Y, 5, rng(), 4),
        ["labels_per_client", "labels_each=4", "C=3", "e.g. labels_each="],
    ),
    "label shared too thin": (
        lambda: partition.labels_per_client(np.repeat([0, 1], [28, 2]), 6, rng(), 1),
        ["labels_per_client", "label 1 has 2 examples for 3 owners", "e.g. n_clients=3"],
    ),
    "labels of a regression": (
        lambda: partition.dirichlet_label(Y / 7, 3, rng(), 1.0),
        ["dirichlet_label", "integer classes", "float64", "use iid or quantity"],
    ),
    "one-hot labels": (
        lambda: partition.dirichlet_label(np.eye(3, dtype=int)[Y], 3, rng(), 1.0),
        ["dirichlet_label", "(n,)", "(30, 3)", "e.g."],
    ),
    "counted labels outside the classes": (
        lambda: partition.counts(PARTS, Y, 2), ["counts", "0..1", "got 0..2", "e.g. classes=3"],
    ),
    # models
    "labels outside the classes": (
        lambda: simulated(y=torch.from_numpy(Y + 1)),
        ["Simulated", "labels must be 0..2", "got 1..3", "e.g."],
    ),
    "labels below 0": (
        lambda: simulated(y=torch.from_numpy(Y - 1)),
        ["Simulated", "labels must be 0..2", "got -1..1", "e.g."],
    ),
    "labels of a regression for a classifier": (
        lambda: simulated(y=torch.rand(30)),
        ["Simulated", "integer classes", "torch.float32", "e.g."],
    ),
    "evaluated labels outside the classes": (
        lambda: evaluator(TASK, X, torch.from_numpy(Y + 5)),
        ["evaluator", "labels must be 0..2", "got 5..7", "e.g."],
    ),
    "nothing to evaluate on": (
        lambda: evaluator(TASK, X[:0], torch.from_numpy(Y[:0])),
        ["evaluator", "at least one example", "got none", "e.g."],
    ),
    "evaluated x and y differ": (
        lambda: evaluator(TASK, X, torch.from_numpy(Y[:7])), ["evaluator", "got 30 and 7", "e.g."],
    ),
    "model of another width": (
        lambda: simulated(x=torch.rand(30, 5)),
        ["Simulated", "can't take examples of shape (5,)", "e.g. softmax_regression(5, 10)"],
    ),
    "regression model of another width": (
        lambda: simulated(y=torch.rand(30), task=from_module(nn.Linear(5, 1), squared_error)),
        ["Simulated", "can't take examples of shape (4,)", "e.g."],
    ),
    "regression with two outputs": (
        lambda: simulated(y=torch.rand(30), task=from_module(nn.Linear(4, 2), squared_error)),
        ["Simulated", "one loss an example", "e.g."],
    ),
    "model without inputs": (
        lambda: softmax_regression(0, 10), ["softmax_regression", ">= 1", "got (0, 10)", "e.g."],
    ),
    "network of one size": (lambda: mlp(64), ["mlp", "two or more", "got (64,)", "e.g. mlp(64"]),
    "network of half a neuron": (lambda: mlp(64, 2.5, 10), ["mlp", ">= 1", "2.5", "e.g. mlp(64"]),
    "nothing to train": (
        lambda: from_module(nn.ReLU()), ["from_module", "no parameter", "e.g. nn.Linear"],
    ),
    "vmap can't take a GRU": (
        lambda: from_module(GRU(), stacked=True),
        ["from_module", "gru (GRU)", "vmap", "stacked=False"],
    ),
    "vmap can't follow Python": (
        lambda: one_round(LooksAtValues(), stacked=True),
        ["from_module", "vmap can't run this module", ".item()", "stacked=False"],
    ),
    "batch norm": (
        lambda: from_module(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))),
        ["from_module", "layer 1 (BatchNorm1d)", "batch statistics", "nn.GroupNorm"],
    ),
    "batch norm without memory": (
        lambda: from_module(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)).eval()),
        ["from_module", "layer 0 (BatchNorm1d)", "batch statistics", "nn.GroupNorm"],
    ),
    "dropout": (
        lambda: from_module(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))),
        ["from_module", "layer 1 (Dropout)", "global generator", "module.eval()"],
    ),
    # recipe, clients, loop
    "theta no vector": (
        lambda: Recipe(algorithms.fedavg(TASK, 0.1), torch.zeros(3, 5)),
        ["Recipe", "theta", "[3, 5]", "e.g. theta=task.theta0"],
    ),
    "theta not finite": (
        lambda: Recipe(algorithms.fedavg(TASK, 0.1), TASK.theta0 + nan),
        ["Recipe", "theta must be a finite vector", "e.g. theta=task.theta0"],
    ),
    "batch 0": (lambda: recipe(batch=0), ["Recipe", "batch", ">= 1", "got 0", "e.g. batch=32"]),
    "epochs 0": (lambda: recipe(epochs=0), ["Recipe", "epochs", ">= 1", "got 0", "e.g. epochs=5"]),
    "half an epoch": (lambda: recipe(epochs=0.5), ["Recipe", "epochs", "integer", "got 0.5"]),
    "negative seed": (
        lambda: recipe(seed=-1),
        ["Recipe", "seed", "an integer from 0 to 9223372036854775807", "got -1", "e.g. seed=0"],
    ),
    "huge seed": (
        lambda: recipe(seed=2**63),
        ["Recipe", "seed", f"from 0 to {2**63 - 1}", f"got {2**63}", "e.g. seed=0"],
    ),
    "x and y of different length": (
        lambda: simulated(x=X[:7]), ["Simulated", "one row an example", "got 7 and 30"],
    ),
    "x with a hole": (
        lambda: simulated(x=X.index_fill(0, torch.tensor([3]), nan)),
        ["Simulated", "x holds inf or NaN", "e.g. with x.nan_to_num()"],
    ),
    "no clients": (lambda: simulated(parts=[]), ["Simulated", "at least one client", "e.g."]),
    "empty client": (
        lambda: simulated(parts=[np.arange(30), np.array([], int)]),
        ["Simulated", "every client needs rows", "got none for client 1", "e.g. partition.iid"],
    ),
    "rows that don't exist": (
        lambda: simulated(parts=[np.arange(31)]),
        ["Simulated", "rows from 0..29", "got 0..30 for client 0", "e.g. partition.iid"],
    ),
    "rows as a mask": (
        lambda: simulated(parts=[np.arange(30) < 9]),
        ["Simulated", "integer rows", "got bool for client 0", "e.g."],
    ),
    "rows as fractions": (
        lambda: simulated(parts=[np.arange(15.0)]),
        ["Simulated", "integer rows", "got float64 for client 0", "e.g."],
    ),
    "chunk 0": (
        lambda: simulated(chunk=0), ["Simulated", "chunk", ">= 1", "got 0", "e.g. chunk=10"],
    ),
    "empty cohort": (
        lambda: rounds(cohort=0), ["federate", "cohort", "from 1", "got 0", "e.g. cohort=1"],
    ),
    "cohort larger than the population": (
        lambda: rounds(cohort=3), ["federate", "cohort", "from 1 to 2", "got 3", "e.g. cohort=1"],
    ),
    "cohort as a fraction": (
        lambda: rounds(cohort=0.5), ["federate", "cohort", "integer", "got 0.5", "e.g. cohort=1"],
    ),
    "no rounds": (
        lambda: rounds(rounds=0), ["federate", "rounds", ">= 1", "got 0", "e.g. rounds=10"],
    ),
    "never evaluated": (
        lambda: rounds(every=0), ["federate", "every", ">= 1", "got 0", "e.g. every=10"],
    ),
    "centralised without clients": (
        lambda: centralised(recipe(), X, torch.from_numpy(Y), 0),
        ["centralised", "n_clients", ">= 1", "got 0", "e.g. n_clients=20"],
    ),
    "no such column": (
        lambda: collect(rounds())["accuracy"],
        ["History", "'accuracy'", "train_loss", "e.g. history['round']"],
    ),
    # stages
    "clip at 0": (
        lambda: clip(0.0), ["clip", "max_norm must be > 0", "got 0.0", "e.g. max_norm=1.0"],
    ),
    "negative noise": (lambda: noise(-1.0), ["noise", "std", ">= 0", "got -1.0", "e.g. std=0.1"]),
    "two means": (
        lambda: chain(mean(), mean()), ["chain", "exactly one Reduce", "got:", "mean()", "e.g."],
    ),
    "no mean": (lambda: chain(clip(1.0)), ["chain", "exactly one Reduce", "clip(1.0)", "e.g."]),
    "nothing": (lambda: chain(), ["chain", "exactly one Reduce", "nothing", "e.g."]),
    "clip behind the mean": (
        lambda: chain(mean(), clip(1.0)),
        ["chain", "mean() (Reduce) -> clip(1.0) (Rowwise)", "e.g.  chain(clip(1.0), mean()"],
    ),
    "noise before the mean": (
        lambda: chain(noise(1.0), mean()), ["chain", "noise(1.0) (After) -> mean()", "e.g."],
    ),
    "no stage at all": (lambda: chain(mean(), 3), ["chain", "3 (int)", "e.g."]),
    # seeds
    "seed no number": (lambda: numpy_rng("0"), ["numpy_rng", "integers >= 0", "got '0'", "e.g."]),
    "path negative": (lambda: numpy_rng(0, -1), ["numpy_rng", "integers >= 0", "got -1", "e.g."]),
}  # fmt: skip

RATES = {
    "fedavg": (lambda lr: algorithms.fedavg(TASK, lr), "lr"),
    "fedavg, server_lr": (lambda lr: algorithms.fedavg(TASK, 0.1, lr), "server_lr"),
    "fedsgd": (lambda lr: algorithms.fedsgd(TASK, lr), "lr"),
    "sgd": (sgd, "lr"),
    "federated_optimizer.SGD": (lambda lr: SGD(nn.Linear(1, 1).parameters(), lr), "lr"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_with_a_reason(what):
    do, words = BAD[what]
    with pytest.raises(ValueError) as e:
        do()
    missing = [w for w in words if w not in str(e.value)]
    assert not missing, f"{missing} not in: {e.value}"
    assert str(e.value).startswith(words[0] + ":")


@pytest.mark.parametrize("lr", [nan, inf, -inf, 0.0, -0.1])
@pytest.mark.parametrize("name", RATES)
def test_learning_rates_are_positive_and_finite(name, lr):
    make, argument = RATES[name]
    with pytest.raises(ValueError) as e:
        make(lr)
    function = name.split(",")[0]
    assert str(e.value).startswith(f"{function}: {argument} must be > 0 and finite, got {lr}, e.g.")


def test_an_error_of_federate_comes_at_once_not_at_the_first_round():
    with pytest.raises(ValueError, match="cohort"):
        rounds(cohort=3)  # no next()


@pytest.mark.parametrize("parts", [[list(range(15)), list(range(15, 30))], [range(30)]])
def test_rows_may_be_lists(parts):
    assert simulated(parts=parts).count == len(parts)


def test_a_parameter_that_the_module_never_uses_stands_still():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.spare, self.out = nn.Linear(2, 2), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(x)

    for stacked in (True, False):
        task = from_module(Spare(), stacked=stacked)
        theta = task.theta0[None].clone()
        task.step(theta, X[None], torch.from_numpy(Y)[None], torch.ones(1, 30), 0.1)
        assert torch.equal(theta[0, :6], task.theta0[:6])
        assert not torch.equal(theta[0, 6:], task.theta0[6:])


def test_a_private_stage_protects_everything_that_is_sent():
    """A method that sends more than delta can't hide behind a stage that hides delta."""
    hide = Rowwise("hide()", lambda delta, n, memory, ctx: (delta, memory), private=True)
    ctx, S = Context(0, 0, np.arange(2), np.arange(2)), torch.ones(2, 3)
    reply = {"delta": S, "n": torch.ones(2), "loss": torch.ones(2), "dc": S}
    with pytest.raises(ValueError, match=r"hide\(\).*'dc'.*in the clear"):
        chain(hide, mean()).combine(reply, torch.ones(2) / 2, ctx)
    chain(mean()).combine(reply, torch.ones(2) / 2, ctx)  # without the promise: fine


# -- divergence -----------------------------------------------------------------------------------


def diverging(lr=1e3, parts=None, x=None):
    """Least squares with a learning rate beyond 2/L: theta grows by a factor every step."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, generator=g) if x is None else x
    task = from_module(nn.Linear(2, 1), squared_error)
    task = task._replace(theta0=torch.zeros(3))
    r = Recipe(algorithms.fedavg(task, lr), task.theta0, batch=None)
    parts = parts or np.split(np.arange(40), 4)
    clients = Simulated(r, x, torch.ones(40), parts)
    test = evaluator(task, x, torch.ones(40))
    return federate(clients, rounds=100, evaluate=test)


def test_a_run_that_diverges_says_where_who_and_why():
    seen = []
    with pytest.raises(Diverged) as e:
        for r in diverging():
            seen.append(r)
    assert isinstance(e.value, FloatingPointError)
    assert 3 < len(seen) < 50
    assert (e.value.round, len(e.value.history)) == (len(seen), len(seen))
    assert e.value.clients and set(e.value.clients) <= {0, 1, 2, 3}
    message = str(e.value)
    for words in (f"round {len(seen)}", str(e.value.clients[0]), "learning rate", "are kept"):
        assert words in message
    assert torch.equal(e.value.history.theta, seen[-1].theta) and seen[-1].theta.isfinite().all()
    assert e.value.history["train_loss"].tolist() == [r.loss for r in seen]


def test_only_the_client_that_did_it_is_named():
    x = torch.full((40, 2), 1e-3)
    x[20:30] = 1e3  # client 2: its curvature is a trillion times the others'
    with pytest.raises(Diverged, match="client 2 ") as e:
        list(diverging(lr=0.1, x=x))
    assert e.value.clients == [2]


def test_a_server_that_diverges_is_named_too():
    """Every update is -1000, but the server makes 1e38 times that of it."""
    task = Task(torch.zeros(1), None, None, lambda w, x, y, m: (w * 0 + 1e4, w[:, 0]))
    r = Recipe(algorithms.fedavg(task, 0.1, server_lr=1e38), task.theta0, batch=None)
    clients = Simulated(r, X, torch.from_numpy(Y), PARTS)
    with pytest.raises(Diverged, match="round 0: the server's step") as e:
        list(federate(clients, rounds=50))
    assert e.value.clients == []


def test_collect_keeps_what_came_before():
    with pytest.raises(Diverged) as e:
        list(diverging())
    with pytest.warns(RuntimeWarning, match="learning rate"):
        history = collect(diverging())
    assert len(history) == e.value.round and history.stopped == str(e.value)
    assert len(history["loss"]) == len(history["train_loss"]) == len(history)
    assert np.isfinite(history["train_loss"][0]) and history.theta.isfinite().all()


def test_divergence_in_the_first_round_keeps_the_start():
    with pytest.warns(RuntimeWarning):
        history = collect(diverging(lr=1e38, x=torch.full((40, 2), 1e5)))
    assert len(history) == 0 and history.theta.tolist() == [0, 0, 0]
    assert history.stopped.startswith("round 0")


def test_a_run_that_converges_says_nothing():
    p = problem()
    task = p.closed_form
    r = Recipe(algorithms.fedavg(task, 0.1), task.theta0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = collect(federate(Simulated(r, p.x, p.y, p.parts), rounds=3))
    assert history.stopped == "" and len(history) == 3


def test_a_task_without_data_checks_is_still_a_task():
    """A Task from a notebook cell, without predict or loss: nothing to check it against."""
    task = Task(torch.zeros(1), None, None, lambda w, x, y, m: (w, (w**2).sum(-1)))
    simulated(task=task)
