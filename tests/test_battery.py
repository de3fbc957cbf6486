"""The battery every method passes. A new method: a line in METHODS."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import (
    METHODS,
    Wire,
    autograd,
    gradient_descent,
    plain_fedavg,
    problem,
    quadratics,
    relu_net,
    run,
    vector,
)
from torch import nn

from fedlearn import Recipe, Simulated, algorithms, federate, partition
from fedlearn.aggregate import mean
from fedlearn.batches import Shards
from fedlearn.descend import descend
from fedlearn.model import from_module, mlp, softmax_regression, squared_error
from fedlearn.optim import sgd
from fedlearn.rng import Use, numpy_rng
from fedlearn.transform import Reduce, chain, clip, noise

close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-10)  # float64


# -- 1. four ways to compute the same run ---------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_closed_form_is_stacked_is_sequential_is_the_wire(method):
    p = problem()
    make, tasks = METHODS[method], {}
    tasks["closed form"] = p.closed_form
    tasks["stacked"] = autograd(p.net, stacked=True)
    tasks["sequential"] = autograd(p.net, stacked=False)
    thetas = {name: run(make(t), t.theta0, p)[-1].theta for name, t in tasks.items()}

    recipe = Recipe(make(p.closed_form), p.closed_form.theta0, batch=16, epochs=2, seed=3)
    wire = Wire(recipe, p.x, p.y, p.parts)
    thetas["wire"] = list(federate(wire, rounds=4, cohort=5))[-1].theta

    assert (thetas["closed form"] - p.closed_form.theta0).norm() > 0.05  # there was something to do
    for name in thetas:
        close(thetas[name], thetas["closed form"])


@pytest.mark.parametrize("method", [m for m in METHODS if m != "feddyn"])  # it wants none of them
def test_the_wire_is_the_simulation_with_stages_in_between(method):
    p = problem()
    pipeline = chain(clip(0.05), mean(), noise(1e-3))
    algorithm = METHODS[method](p.closed_form)
    here = run(algorithm, p.closed_form.theta0, p, pipeline=pipeline)[-1].theta
    recipe = Recipe(algorithm, p.closed_form.theta0, pipeline, batch=16, epochs=2, seed=3)
    there = list(federate(Wire(recipe, p.x, p.y, p.parts), rounds=4, cohort=5))[-1].theta
    close(here, there)
    plain = run(algorithm, p.closed_form.theta0, p)[-1].theta
    assert (here - plain).norm() > 1e-2  # the stages did something


@pytest.mark.parametrize("method", METHODS)
def test_the_training_loss_falls(method):
    p = problem()
    rounds = run(METHODS[method](p.closed_form), p.closed_form.theta0, p, rounds=40, cohort=8)
    assert rounds[-1].loss < 0.6 * rounds[0].loss


@pytest.mark.parametrize("dims", [(6, 3), (6, 16, 3), (6, 8, 9, 3)])
def test_closed_form_gradient_is_autograd(dims):
    """Four clients, a batch padded in four ways: full, one example short, one left, none."""
    closed, net = mlp(*dims), relu_net(*dims)
    g = torch.Generator().manual_seed(1)
    theta = torch.randn(4, closed.theta0.numel(), generator=g, dtype=torch.float64)
    x = torch.randn(4, 5, 6, generator=g, dtype=torch.float64)
    y = torch.randint(0, 3, (4, 5), generator=g)
    kept = [5, 4, 1, 0]
    mask = torch.tensor([[1.0] * n + [0.0] * (5 - n) for n in kept], dtype=torch.float64)

    gradients, objectives = torch.zeros_like(theta), torch.zeros(4, dtype=torch.float64)
    for k, n in enumerate(kept[:3]):  # independent: one client, its own net, ordinary backward
        nn.utils.vector_to_parameters(theta[k], net.parameters())
        net.zero_grad()
        loss = nn.functional.cross_entropy(net(x[k, :n]), y[k, :n])
        loss.backward()
        gradients[k] = torch.cat([q.grad.flatten() for q in net.parameters()])
        objectives[k] = loss.detach()

    for task in (closed, autograd(net, stacked=True), autograd(net, stacked=False)):
        got = task.grad(theta, x, y, mask)
        close(got[0], gradients)
        close(got[1], objectives)
        moved = theta.clone()
        close(task.step(moved, x, y, mask, 0.25), objectives)
        close(moved, theta - 0.25 * gradients)


MODULES = {
    "linear without bias": nn.Linear(12, 3, bias=False),
    "convolution": nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(),
        nn.Linear(24, 3),
    ),
    "group norm": nn.Sequential(nn.Linear(12, 4), nn.GroupNorm(2, 4), nn.ReLU(), nn.Linear(4, 3)),
    "one layer frozen": nn.Sequential(
        nn.Linear(12, 4).requires_grad_(False), nn.Tanh(), nn.Linear(4, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("stacked", [True, False])
def test_any_module_takes_the_steps_of_torch_optim(name, stacked):
    net = MODULES[name].double()
    task = from_module(net, stacked=stacked)
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, 6, 12, generator=g, dtype=torch.float64)
    y = torch.randint(0, 3, (2, 6), generator=g)
    mask = torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2], dtype=torch.float64)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    theta = task.theta0.expand(2, -1).clone()
    for _ in range(3):
        task.step(theta, x, y, mask, 0.2)
    for k, n in enumerate((6, 4)):
        copy = type(net)(*net) if isinstance(net, nn.Sequential) else net
        copy.load_state_dict(before)
        opt = torch.optim.SGD([q for q in copy.parameters() if q.requires_grad], lr=0.2)
        for _ in range(3):
            opt.zero_grad()
            nn.functional.cross_entropy(copy(x[k, :n]), y[k, :n]).backward()
            opt.step()
        want = nn.utils.parameters_to_vector(q for q in copy.parameters() if q.requires_grad)
        close(theta[k], want.detach())
        net.load_state_dict(before)


def test_a_recurrent_module_trains_one_client_after_the_other():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.out = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.gru(x)[0][:, -1])

    net = Last().double()
    task = from_module(net)  # chooses by itself
    x = torch.randn(8, 5, 2, dtype=torch.float64)
    y = torch.arange(8) % 3
    theta = task.theta0[None].clone()
    task.step(theta, x[None], y[None], torch.ones(1, 8, dtype=torch.float64), 0.1)
    close(theta[0], gradient_descent(net, x, y, lr=0.1, steps=1))


def test_from_module_leaves_the_module_alone():
    net = nn.Linear(6, 3).double()
    before = vector(net)
    p = problem()
    task = from_module(net)
    run(algorithms.fedavg(task, 0.1), task.theta0, p)
    assert torch.equal(vector(net), before)
    assert torch.equal(task.theta0, before)


def test_what_stands_in_the_padding_does_not_matter():
    task = mlp(6, 7, 3)
    theta = task.theta0.expand(2, -1).clone()
    x, y = torch.randn(2, 4, 6), torch.zeros(2, 4, dtype=torch.int64)
    mask = torch.tensor([[1.0, 1, 0, 0], [1.0, 0, 0, 0]])
    other = x.clone()
    other[mask == 0] = 1e3
    for t in (task, from_module(relu_net(6, 7, 3).float(), stacked=True)):
        for a, b in zip(t.grad(theta, x, y, mask), t.grad(theta, other, y, mask)):
            torch.testing.assert_close(a, b)


def test_squared_error_is_least_squares():
    """Gradient descent on 1/2 (x w + b - y)^2, federated, reaches numpy's least-squares answer."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=g, dtype=torch.float64)
    y = x @ torch.tensor([2.0, -1.0], dtype=torch.float64) + 0.5
    y = y + 0.1 * torch.randn(60, generator=g, dtype=torch.float64)
    task = from_module(nn.Linear(2, 1).double(), squared_error)
    recipe = Recipe(algorithms.fedsgd(task, 0.5), task.theta0, batch=None)
    parts = partition.quantity(y.numpy(), 6, numpy_rng(0), alpha=0.5)
    *_, last = federate(Simulated(recipe, x, y, parts), rounds=200)
    A = np.concatenate([x.numpy(), np.ones((60, 1))], 1)
    close(last.theta, torch.from_numpy(np.linalg.lstsq(A, y.numpy(), rcond=None)[0]))


# -- 2. an independent loop -----------------------------------------------------------------------


@pytest.mark.parametrize("batch, epochs", [(16, 2), (7, 3), (None, 1), (None, 4), (1000, 1)])
@pytest.mark.parametrize("server_lr", [1.0, 0.6])
def test_fedavg_is_a_plain_torch_loop(batch, epochs, server_lr):
    p = problem()
    assert len({len(rows) for rows in p.parts}) > 4  # sizes differ: weights matter
    how = {"rounds": 3, "cohort": 5, "batch": batch, "epochs": epochs, "seed": 3}
    want = plain_fedavg(p.net, p, lr=0.3, server_lr=server_lr, **how)
    task = p.closed_form
    close(run(algorithms.fedavg(task, 0.3, server_lr), task.theta0, p, **how)[-1].theta, want)


def test_the_same_in_single_precision():
    """The type that lessons run in: equal within float32's own error."""
    p = problem()
    p32 = p._replace(x=p.x.float(), net=p.net.float())
    how = {"rounds": 3, "cohort": 5, "batch": 16, "epochs": 2, "seed": 3}
    want = plain_fedavg(p32.net, p32, lr=0.3, **how)
    for task in (p32.closed_form, autograd(p32.net, stacked=True)):
        got = run(algorithms.fedavg(task, 0.3), task.theta0, p32, **how)[-1].theta
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_a_round_reports_what_happened():
    p = problem()
    for t, r in enumerate(run(METHODS["fedavg"](p.closed_form), p.closed_form.theta0, p)):
        sizes = np.array([len(p.parts[k]) for k in r.answered], dtype=float)
        d = p.closed_form.theta0.numel()
        assert (r.t, len(set(r.answered)), r.deltas.shape) == (t, 5, (5, d))
        close(r.p, torch.from_numpy(sizes / sizes.sum()))
        assert (r.sent, r.received) == (8 * d, 8 * d)  # float64
        assert r.metrics == {}


def test_theta_is_the_model_after_the_round():
    p = problem()
    rounds = run(METHODS["fedavg"](p.closed_form), p.closed_form.theta0, p)
    before = p.closed_form.theta0
    for r in rounds:
        close(r.theta, before + r.p @ r.deltas)
        before = r.theta


def test_the_loss_of_a_round_is_the_weighted_mean_over_clients():
    """One full-batch step: every client's loss is that of its data at the broadcast theta."""
    p = problem()
    r = run(METHODS["fedavg"](p.closed_form), p.closed_form.theta0, p, batch=None, epochs=1)[0]
    rows = np.concatenate([p.parts[k] for k in r.answered])
    assert r.loss == pytest.approx(nn.functional.cross_entropy(p.net(p.x[rows]), p.y[rows]).item())


# -- 3. limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 5])
def test_one_client_and_one_full_batch_is_gradient_descent(epochs):
    p = problem()
    one = p._replace(parts=partition.Parts([np.arange(len(p.y))]))
    how = {"rounds": 4, "cohort": 1, "batch": None, "epochs": epochs}
    got = run(algorithms.fedavg(p.closed_form, 0.3), p.closed_form.theta0, one, **how)[-1].theta
    close(got, gradient_descent(p.net, p.x, p.y, lr=0.3, steps=4 * epochs))


@pytest.mark.parametrize("split", ["iid", "alpha 0.01", "alpha 100", "one label", "unequal sizes"])
@pytest.mark.parametrize("n_clients", [1, 2, 7, 30])
def test_fedsgd_is_gradient_descent_on_the_pooled_data(split, n_clients):
    p, rng = problem(), numpy_rng(1, Use.PARTITION)
    y = p.y.numpy()
    parts = {
        "iid": lambda: partition.iid(y, n_clients, rng),
        "alpha 0.01": lambda: partition.dirichlet_label(y, n_clients, rng, 0.01),
        "alpha 100": lambda: partition.dirichlet_client(y, n_clients, rng, 100.0),
        "one label": lambda: partition.shards(y, n_clients, rng, 1),
        "unequal sizes": lambda: partition.quantity(y, n_clients, rng, 0.2),
    }[split]()
    p = p._replace(parts=parts)
    task = p.closed_form
    how = {"rounds": 5, "cohort": n_clients, "batch": None, "epochs": 1}
    got = run(algorithms.fedsgd(task, 0.5), task.theta0, p, **how)[-1].theta
    close(got, gradient_descent(p.net, p.x, p.y, lr=0.5, steps=5))


@pytest.mark.parametrize("batch, epochs", [(1, 1), (7, 1), (16, 3), (None, 2)])
def test_fedsgd_does_not_depend_on_batch_or_epochs(batch, epochs):
    p = problem()
    algorithm = algorithms.fedsgd(p.closed_form, 0.5)
    got = run(algorithm, p.closed_form.theta0, p, cohort=8, batch=batch, epochs=epochs)[-1].theta
    close(got, gradient_descent(p.net, p.x, p.y, lr=0.5, steps=4))


def test_one_full_batch_step_of_fedavg_is_fedsgd():
    p = problem()
    how = {"batch": None, "epochs": 1, "rounds": 6}
    a, b = (
        run(make(p.closed_form, 0.4), p.closed_form.theta0, p, **how)[-1].theta
        for make in (algorithms.fedavg, algorithms.fedsgd)
    )
    close(a, b)


def test_a_client_without_a_step_stands_still():
    """A padded row: a client whose batches are all empty neither moves nor counts a step."""
    task, x, y, parts = quadratics([1.0, 4.0], [1.0, 1.0], [1, 1])
    index = torch.zeros(2, 3, 1, dtype=torch.int64)
    mask = torch.tensor([[[1.0]] * 3, [[0.0]] * 3], dtype=torch.float64)
    shards = Shards(x, y, index, mask, torch.ones(2, dtype=torch.float64))
    theta, tau, _ = descend(
        task, task.theta0, shards, 0.1, mu=1.0, shift=torch.tensor(-5.0)
    )  # pulls everyone
    assert tau.tolist() == [[3.0], [0.0]]
    assert theta[1].item() == 0.0 and theta[0].item() > 0.0


def test_a_correction_is_added_to_the_gradient():
    """theta <- theta - lr (a (theta - b) + mu theta), by hand for two steps."""
    task, x, y, _ = quadratics([2.0], [1.0], [1])
    one = torch.ones(1, 2, 1, dtype=torch.float64)
    shards = Shards(x, y, torch.zeros(1, 2, 1, dtype=torch.int64), one, one[0, 0])
    theta, tau, _ = descend(task, task.theta0, shards, 0.1, mu=3.0)
    first = 0.0 - 0.1 * (2 * (0.0 - 1) + 3 * 0.0)
    second = first - 0.1 * (2 * (first - 1) + 3 * first)
    assert theta.item() == pytest.approx(second, abs=1e-12)


def test_server_sgd_is_a_step_against_the_gradient():
    opt = sgd(0.5)
    theta, state = torch.tensor([1.0, 2.0]), opt.init(torch.zeros(2))
    theta, state = opt.step(torch.tensor([2.0, -2.0]), state, theta)
    assert theta.tolist() == [0.0, 3.0]


# -- 4. quadratics: exact fixed points -------------------------------------------------------------


def fixed_point(algorithm, problem, *, epochs, batch=None, pipeline=None):
    """Rounds until theta stands still."""
    task, x, y, parts = problem
    pipeline = pipeline or chain(mean())
    recipe = Recipe(algorithm(task), task.theta0 + 3.0, pipeline, batch=batch, epochs=epochs)
    before = np.inf
    for r in federate(Simulated(recipe, x, y, parts), rounds=1000):
        if abs(r.theta.item() - before) < 1e-15:
            return before
        before = r.theta.item()
    raise AssertionError(f"still moving after 1000 rounds, at {before}")


FEDAVG = lambda task: algorithms.fedavg(task, 0.1)
FEDSGD = lambda task: algorithms.fedsgd(task, 0.1)


@pytest.mark.parametrize(
    "epochs, expected",
    [(1, 0.8), (2, 0.7710843373), (5, 0.6925023465), (20, 0.5323522541), (100, 0.5000066404)],
)
def test_fedavg_drifts_to_its_exact_fixed_point(epochs, expected):
    two = quadratics([1.0, 4.0], [0.0, 1.0], [1, 1])
    assert fixed_point(FEDAVG, two, epochs=epochs) == pytest.approx(expected, abs=6e-11)


@pytest.mark.parametrize("epochs, expected", [(5, 0.428795), (20, 0.275075)])
def test_fedavg_with_sizes_three_and_one(epochs, expected):
    two = quadratics([1.0, 4.0], [0.0, 1.0], [3, 1])
    assert fixed_point(FEDAVG, two, epochs=epochs) == pytest.approx(expected, abs=6e-7)


def test_fedavg_with_unequal_steps():
    """tau = (1, 9) from sizes 1 and 9 in batches of one, averaged with equal weights."""
    uniform = chain(Reduce("uniform()", lambda delta, p: delta.mean(0)))
    two = quadratics([1.0, 1.0], [0.0, 1.0], [1, 9])
    got = fixed_point(FEDAVG, two, epochs=1, batch=1, pipeline=uniform)
    assert got == pytest.approx(0.859665, abs=6e-7)


@pytest.mark.parametrize("epochs", [1, 5, 20])
@pytest.mark.parametrize("sizes, optimum", [((1, 1), 0.8), ((3, 1), 4 / 7)])
def test_fedsgd_has_no_drift(epochs, sizes, optimum):
    two = quadratics([1.0, 4.0], [0.0, 1.0], sizes)
    assert fixed_point(FEDSGD, two, epochs=epochs) == pytest.approx(optimum, abs=1e-10)


@pytest.mark.parametrize("server_lr", [0.3, 1.0, 1.5])
def test_the_server_rate_moves_the_speed_not_the_fixed_point(server_lr):
    two = quadratics([1.0, 4.0], [0.0, 1.0], [1, 1])
    got = fixed_point(lambda task: algorithms.fedavg(task, 0.1, server_lr), two, epochs=5)
    assert got == pytest.approx(0.6925023465, abs=6e-11)


# -- the mean -------------------------------------------------------------------------------------


def test_the_mean_weights_ignores_order_and_returns_what_all_agree_on():
    g = torch.Generator().manual_seed(0)
    delta = torch.randn(7, 30, generator=g, dtype=torch.float64)
    p = torch.rand(7, generator=g, dtype=torch.float64)
    p, perm = p / p.sum(), torch.randperm(7, generator=g)
    rule = mean().apply
    close(rule(delta, p), sum(p[k] * delta[k] for k in range(7)))
    close(rule(delta, p), rule(delta[perm], p[perm]))
    close(rule(delta[:1].expand(7, 30), p), delta[0])


def test_softmax_regression_starts_at_log_c():
    task = softmax_regression(64, 10)
    assert not task.theta0.any()
    _, loss = task.grad(
        task.theta0[None], torch.rand(1, 8, 64), torch.arange(8)[None], torch.ones(1, 8)
    )
    assert loss.item() == pytest.approx(np.log(10), abs=1e-6)
