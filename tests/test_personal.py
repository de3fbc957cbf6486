"""Personal and fair methods against closed forms, plain loops and their known limits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from problems import gradient_descent, problem, quadratics, run
from torch import nn

from fedlearn import Recipe, Simulated, algorithms, federate
from fedlearn.batches import schedule
from fedlearn.model import mlp, softmax_regression
from fedlearn.personal import afl, alone, ditto, fedper, fedrep, fine_tune, ifca, models, qfedavg
from fedlearn.personal.afl import to_simplex

close = lambda a, b, tol=1e-11: torch.testing.assert_close(a, b, atol=tol, rtol=tol)
HEAD = 24  # of 6 -> 7 -> 3: the last layer's 7 * 3 + 3 numbers


def last_run(method, theta, p, rounds=4, cohort=None, epochs=2, batch=16, **more):
    recipe = Recipe(method, theta, batch=batch, epochs=epochs, seed=3, **more)
    going = federate(Simulated(recipe, p.x, p.y, p.parts), rounds=rounds, cohort=cohort)
    for _ in going:
        pass
    return going


def plain_sgd(net, p, rows, lr, pull=0.0, to=None):
    """One client's minibatches by torch.optim, with a pull towards ``to``; net is changed."""
    opt = torch.optim.SGD(net.parameters(), lr=lr)
    for at in rows:
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(p.x[at]), p.y[at])
        if pull:
            loss = (
                loss
                + pull / 2 * (nn.utils.parameters_to_vector(net.parameters()) - to).square().sum()
            )
        loss.backward()
        opt.step()


def batches_of(p, k, t, batch=16, epochs=2, seed=3):
    index, mask, _ = schedule(
        p.parts, np.array([k]), batch=batch, epochs=epochs, seed=seed, round=t
    )
    return [rows[real > 0] for rows, real in zip(index[0], mask[0]) if real.any()]


def net_at(net, theta):
    net = copy.deepcopy(net)
    nn.utils.vector_to_parameters(theta.clone(), net.parameters())
    return net


vec = lambda net: nn.utils.parameters_to_vector(net.parameters()).detach().clone()


# -- a model of one's own -------------------------------------------------------------------------


def test_alone_is_every_client_by_itself():
    p = problem()
    task = p.closed_form
    going = last_run(alone(task, lr=0.3), task.theta0, p)
    assert torch.equal(going.state["theta"], task.theta0), "nothing is sent"
    for k in range(len(p.parts)):
        net = copy.deepcopy(p.net)
        for t in range(4):
            plain_sgd(net, p, batches_of(p, k, t), 0.3)
        close(models(going)[k], vec(net))


def test_ditto_is_fedavg_and_a_pulled_model_beside_it():
    p = problem()
    task, N = p.closed_form, len(p.parts)
    going = last_run(ditto(task, lr=0.3, lam=0.7, own_lr=0.2), task.theta0, p)
    plain = last_run(algorithms.fedavg(task, lr=0.3), task.theta0, p)
    assert torch.equal(going.state["theta"], plain.state["theta"])
    own, thetas = [copy.deepcopy(p.net) for _ in range(N)], [task.theta0]
    thetas += [r.theta for r in run(algorithms.fedavg(task, lr=0.3), task.theta0, p, cohort=N)]
    for k in range(N):
        for t in range(4):
            plain_sgd(own[k], p, batches_of(p, k, t), 0.2, 0.7, thetas[t])
        close(models(going)[k], vec(own[k]))


def test_ditto_without_a_pull_is_alone_and_with_a_huge_one_global():
    p = problem()
    task = p.closed_form
    free = models(last_run(ditto(task, lr=0.3, lam=0.0), task.theta0, p))
    close(free, models(last_run(alone(task, lr=0.3), task.theta0, p)))
    many = {"rounds": 30, "epochs": 1}
    tied = last_run(ditto(task, lr=0.05, lam=1e4, own_lr=0.999e-4), task.theta0, p, **many)
    before = last_run(algorithms.fedavg(task, lr=0.05), task.theta0, p, rounds=29, epochs=1)
    assert (models(tied) - before.state["theta"]).abs().max() < 1e-3  # theta as it was broadcast


def test_dittos_own_model_rests_where_the_formula_says():
    """min (v - 3)²/2 + lam/2 (v - theta)² with theta = 1, lam = 1/4 is (3 + 1/4) / (1 + 1/4)."""
    task, x, y, parts = quadratics([1.0, 1.0], [3.0, -1.0], [1, 1])  # the optimum of all is 1
    recipe = Recipe(ditto(task, lr=0.2, lam=0.25), torch.ones(1).double(), batch=None, epochs=5)
    going = federate(Simulated(recipe, x, y, parts), rounds=60)
    *_, last = going
    close(last.theta, torch.ones(1).double())
    close(models(going)[:, 0], torch.tensor([2.6, -0.6], dtype=torch.float64))


def by_hand_fedper(p, rounds, head, lr, first=False):
    """FedPer and FedRep with state dicts: a body that is averaged, heads that stay."""
    N, d = len(p.parts), vec(p.net).numel()
    body, heads = vec(p.net), [vec(p.net)[d - head :] for _ in range(N)]
    sizes = np.array([len(rows) for rows in p.parts])
    for t in range(rounds):
        new = torch.zeros_like(body)
        for k in range(N):
            net = net_at(p.net, torch.cat([body[: d - head], heads[k]]))
            rows = batches_of(p, k, t)
            inside = [*net.parameters()]
            for part in (inside[2:], inside[:2]) if first else (inside,):
                opt = torch.optim.SGD(part, lr=lr)
                for at in rows:
                    net.zero_grad()
                    nn.functional.cross_entropy(net(p.x[at]), p.y[at]).backward()
                    opt.step()
            new += sizes[k] / sizes.sum() * vec(net)
            heads[k] = vec(net)[d - head :]
        body = new
    return body[: d - head], torch.stack(heads)


@pytest.mark.parametrize(("make", "first"), [(fedper, False), (fedrep, True)])
def test_a_shared_body_with_own_heads_is_a_plain_loops(make, first):
    p = problem()
    task = p.closed_form
    going = last_run(make(task, 0.3, HEAD), task.theta0, p, rounds=3)
    body, heads = by_hand_fedper(p, 3, HEAD, 0.3, first)
    got = models(going)
    close(got[:, :-HEAD], body.expand(len(heads), -1))
    close(got[:, -HEAD:], heads)
    assert torch.equal(going.state["theta"][-HEAD:], task.theta0[-HEAD:]), "no head was averaged"


def test_a_head_may_be_a_mask_and_the_body_of_one_client_is_its_own_training():
    p = problem()
    task = p.closed_form
    mask = torch.arange(task.theta0.numel()) >= task.theta0.numel() - HEAD
    one = last_run(fedper(task, 0.3, mask), task.theta0, p)
    two = last_run(fedper(task, 0.3, HEAD), task.theta0, p)
    assert torch.equal(models(one), models(two))


def test_who_never_took_part_has_what_it_began_with():
    p = problem()
    task = p.closed_form
    for method in (alone(task, 0.3), ditto(task, 0.3, 0.1), fedper(task, 0.3, HEAD)):
        going = last_run(method, task.theta0, p, rounds=1, cohort=3)
        first = next(federate(going.clients, rounds=1, cohort=3))
        absent = np.setdiff1d(np.arange(8), first.answered)
        rows = models(going)[absent]
        assert torch.equal(rows[:, -HEAD:], task.theta0[-HEAD:].expand(5, -1))


def test_models_of_a_method_without_any_are_theta():
    p = problem()
    going = last_run(algorithms.fedavg(p.closed_form, 0.3), p.closed_form.theta0, p)
    assert torch.equal(models(going), going.state["theta"].expand(8, -1))


# -- clusters -------------------------------------------------------------------------------------


def test_one_cluster_is_fedavg():
    p = problem()
    task = p.closed_form
    one = last_run(ifca(task, lr=0.3, C=1), task.theta0, p, cohort=5)
    close(
        one.state["theta"],
        last_run(algorithms.fedavg(task, 0.3), task.theta0, p, cohort=5).state["theta"],
    )


def test_two_groups_of_quadratics_get_their_own_means():
    """b = -2, -1 and 5, 7 with sizes 1, 3, 1, 1: the groups' optima are -5/4 and 6."""
    task, x, y, parts = quadratics([1.0] * 4, [-2.0, -1.0, 5.0, 7.0], [1, 3, 1, 1])

    def predict(theta, x):
        return theta - x[..., 1:]

    task = task._replace(predict=predict, loss=lambda scores, y: scores[:, 0].square() / 2)
    theta = torch.tensor([-0.1, 0.1], dtype=torch.float64)
    recipe = Recipe(ifca(task, lr=0.5, C=2), theta, batch=None, epochs=3)
    going = federate(Simulated(recipe, x, y, parts), rounds=60)
    for _ in going:
        pass
    close(going.state["theta"], torch.tensor([-1.25, 6.0], dtype=torch.float64))
    assert going.memory[0]["which"].tolist() == [0, 0, 1, 1]
    close(models(going)[:, 0], torch.tensor([-1.25, -1.25, 6.0, 6.0], dtype=torch.float64))


def test_a_model_that_nobody_chose_stays():
    p = problem()
    task = p.closed_form
    g = torch.Generator().manual_seed(0)
    far = 30 * torch.randn(len(task.theta0), generator=g, dtype=torch.float64)
    going = last_run(ifca(task, lr=0.3, C=2), torch.cat([task.theta0, far]), p)
    assert torch.equal(going.state["theta"][len(far) :], far)
    alone_ = last_run(algorithms.fedavg(task, 0.3), task.theta0, p)
    close(going.state["theta"][: len(far)], alone_.state["theta"])


# -- fairness -------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
def test_q_of_zero_is_fedavg(full):
    p = problem()
    task = p.closed_form
    fair = last_run(qfedavg(task, 0.3, 0.0, full_step=full), task.theta0, p, cohort=5)
    plain = last_run(algorithms.fedavg(task, 0.3), task.theta0, p, cohort=5)
    close(fair.state["theta"], plain.state["theta"])


@pytest.mark.parametrize("q", [0.5, 2.0])
def test_qfedavg_is_the_papers_round(q):
    p = problem()
    task, lip = p.closed_form, 1 / 0.3
    sizes = np.array([len(rows) for rows in p.parts])
    theta, up, down = task.theta0, 0.0, 0.0
    for k in range(len(p.parts)):
        net = net_at(p.net, theta)
        F = float(nn.functional.cross_entropy(net(p.x[p.parts[k]]), p.y[p.parts[k]]).detach())
        plain_sgd(net, p, batches_of(p, k, 0), 0.3)
        dw, share = lip * (theta - vec(net)), sizes[k] / sizes.sum()
        up = up + share * F**q * dw
        down += share * (q * F ** (q - 1) * float(dw.square().sum()) + lip * F**q)
    got = last_run(qfedavg(task, 0.3, q), task.theta0, p, rounds=1).state["theta"]
    close(got, theta - up / down, 1e-8)  # 1e-10 is added to F


def test_afl_finds_the_best_for_the_worst():
    """Two quadratics, 3 examples against 1: FedAvg leans to the many, AFL ends halfway."""
    task, x, y, parts = quadratics([1.0, 1.0], [0.0, 1.0], [3, 1])
    predict = lambda theta, x: theta - x[..., 1:]
    task = task._replace(predict=predict, loss=lambda scores, y: scores[:, 0].square() / 2)
    recipe = Recipe(afl(task, lr=0.1, gamma=0.05, N=2), torch.zeros(1).double(), batch=None)
    *_, last = federate(Simulated(recipe, x, y, parts), rounds=3000)
    close(last.theta, torch.tensor([0.5], dtype=torch.float64), 1e-3)
    recipe = Recipe(algorithms.fedavg(task, lr=0.1), torch.zeros(1).double(), batch=None)
    *_, last = federate(Simulated(recipe, x, y, parts), rounds=300)
    close(last.theta, torch.tensor([0.25], dtype=torch.float64))


def test_a_small_gamma_is_fedavg_of_equals():
    p = problem()
    task = p.closed_form
    agnostic = last_run(afl(task, 0.3, 1e-12, 8), task.theta0, p).state["theta"]
    close(
        agnostic,
        last_run(algorithms.fedavg(task, 0.3), task.theta0, p, equal=True).state["theta"],
        1e-9,
    )


def test_the_simplex_is_reached_at_its_nearest_point():
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        v = torch.randn(5, generator=g).double()
        w = to_simplex(v)
        assert w.min() >= 0 and abs(w.sum() - 1) < 1e-12
        others = torch.distributions.Dirichlet(torch.full((5,), 0.5).double()).sample((2000,))
        assert (w - v).norm() <= (others - v).norm(dim=1).min() + 1e-12


# -- fine-tuning ----------------------------------------------------------------------------------


def test_fine_tuning_is_plain_sgd_from_theta():
    p = problem()
    task = p.closed_form
    recipe = Recipe(algorithms.fedavg(task, 0.3), task.theta0, batch=None, seed=3)
    clients = Simulated(recipe, p.x, p.y, p.parts, chunk=3)
    tuned = fine_tune(clients, task.theta0, lr=0.1, epochs=5)
    for k, rows in enumerate(p.parts):
        net = gradient_descent(p.net, p.x[rows], p.y[rows], lr=0.1, steps=5)
        close(tuned[k], net)
    twice = fine_tune(clients, fine_tune(clients, task.theta0, lr=0.1, epochs=2), lr=0.1, epochs=3)
    close(twice, tuned)


# -- refused --------------------------------------------------------------------------------------

small = softmax_regression(2, 2)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: alone(small, lr=0.0), "fedavg: lr must be"),
        (lambda: ditto(small, 0.1, -1.0), "ditto: lam must be"),
        (lambda: ditto(small, 0.1, 10.0), "ditto: lam must be below 1 / own_lr = 10"),
        (lambda: ditto(small, 0.1, 1.0, own_lr=0.0), "ditto: own_lr must be"),
        (lambda: fedper(small, 0.1, 0), "fedper: head must be"),
        (lambda: fedper(small, 0.1, 6), "fedper: head must be"),
        (lambda: fedrep(small, 0.1, torch.ones(6, dtype=torch.bool)), "fedrep: head must be"),
        (lambda: fedrep(small, 0.1, torch.ones(5, dtype=torch.bool)), "fedrep: head must be"),
        (lambda: ifca(small, 0.1, 0), "ifca: C must be"),
        (lambda: ifca(small, 0.1, 2).init(small.theta0), "ifca: theta must be 2 models of 6"),
        (lambda: qfedavg(small, 0.1, -1.0), "qfedavg: q must be"),
        (lambda: afl(small, 0.1, 0.0, 2), "afl: gamma must be"),
        (lambda: afl(small, 0.1, 0.1, 0), "afl: N must be"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(make, rule):
    with pytest.raises(ValueError, match=rule):
        make()


def test_afl_wants_everybody():
    p = problem()
    with pytest.raises(ValueError, match="afl: the clients that answer must be all N = 8, got 5"):
        last_run(afl(p.closed_form, 0.3, 0.1, 8), p.closed_form.theta0, p, cohort=5)


def test_fine_tuning_refuses_by_name():
    p = problem()
    task = p.closed_form
    clients = Simulated(Recipe(algorithms.fedavg(task, 0.3), task.theta0), p.x, p.y, p.parts)
    with pytest.raises(ValueError, match="fine_tune: theta must be"):
        fine_tune(clients, task.theta0[:-1], lr=0.1)
    with pytest.raises(ValueError, match="lr must be"):
        fine_tune(clients, task.theta0, lr=0.0)
    with pytest.raises(ValueError, match="epochs must be"):
        fine_tune(clients, task.theta0, lr=0.1, epochs=0)


def test_methods_of_the_lesson_have_the_sizes_that_it_names():
    task = mlp(64, 32, 10)
    assert 4 * (task.theta0.numel() - 330) == 8_320  # bytes up of FedPer's body
