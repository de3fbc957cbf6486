"""``federated_optimizer.SGD`` is fedsgd in the loop, and torch.optim on pooled data."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from problems import problem, relu_net, run, vector
from torch import nn

from fedlearn import algorithms
from fedlearn.federated_optimizer import SGD

STEPS = 6


def federated(make, p, net, steps=STEPS):
    """The loop of lesson 3: every client hands its gradient over, the server steps."""
    opt = make(net.parameters())
    for _ in range(steps):
        one_round(opt, p, net)
    return vector(net)


def one_round(opt, p, net, clients=None):
    for rows in p.parts if clients is None else [p.parts[k] for k in clients]:
        nn.functional.cross_entropy(net(p.x[rows]), p.y[rows]).backward()
        opt.receive(weight=len(rows))
    opt.step()


def pooled(make, p, net, steps=STEPS):
    """torch.optim with all data in one place."""
    opt = make(net.parameters())
    for _ in range(steps):
        opt.zero_grad()
        nn.functional.cross_entropy(net(p.x), p.y).backward()
        opt.step()
    return vector(net)


close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-10)


def test_sgd_is_fedsgd_in_the_loop():
    p = problem()
    got = federated(lambda q: SGD(q, lr=0.5), p, copy.deepcopy(p.net))
    task = p.closed_form
    rounds = run(
        algorithms.fedsgd(task, 0.5), task.theta0, p, rounds=STEPS, cohort=8, batch=None, epochs=1
    )
    close(got, rounds[-1].theta)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (lambda q: SGD(q, lr=0.5), lambda q: torch.optim.SGD(q, lr=0.5)),
        (lambda q: SGD(q, 0.2, momentum=0.9), lambda q: torch.optim.SGD(q, 0.2, momentum=0.9)),
    ],
    ids=["SGD", "SGD with momentum"],
)
def test_equal_to_torch_optim_on_pooled_data(ours, theirs):
    p = problem()
    nets = [copy.deepcopy(p.net) for _ in range(2)]
    a, b = federated(ours, p, nets[0]), pooled(theirs, p, nets[1])
    assert (a - vector(p.net)).norm() > 0.05
    close(a, b)


def test_weights_need_no_common_scale():
    """n_k, or n_k / n: the mean is the same."""
    p = problem()
    nets = [copy.deepcopy(p.net) for _ in range(2)]
    for net, scale in zip(nets, (1.0, 1 / 240), strict=True):
        opt = SGD(net.parameters(), lr=0.5)
        for rows in p.parts:
            nn.functional.cross_entropy(net(p.x[rows]), p.y[rows]).backward()
            opt.receive(weight=len(rows) * scale)
        opt.step()
    close(vector(nets[0]), vector(nets[1]))


def test_every_round_starts_anew():
    """The clients of round 1 aren't counted again in round 2."""
    p = problem()
    net, plain = copy.deepcopy(p.net), copy.deepcopy(p.net)
    opt, ref = SGD(net.parameters(), lr=0.5), torch.optim.SGD(plain.parameters(), lr=0.5)
    for k in (2, 5, 2):
        one_round(opt, p, net, clients=[k])
        ref.zero_grad()
        nn.functional.cross_entropy(plain(p.x[p.parts[k]]), p.y[p.parts[k]]).backward()
        ref.step()
    close(vector(net), vector(plain))


def test_a_gradient_is_handed_over_once():
    net = nn.Linear(2, 1)
    opt = SGD(net.parameters(), lr=0.1)
    net(torch.ones(1, 2)).sum().backward()
    opt.receive(weight=1)
    assert all(q.grad is None for q in net.parameters())  # the next client starts from nothing
    with pytest.raises(ValueError, match=r"no gradient.*loss.backward\(\)"):
        opt.receive(weight=1)
    opt.step()
    assert all(q.grad is None for q in net.parameters())


def test_a_client_that_uses_part_of_the_model_counts_as_zero_elsewhere():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    opt = SGD([a, b], lr=1.0)
    (a + b).sum().backward()
    opt.receive(weight=1)
    a.sum().backward()  # this client's loss doesn't touch b
    opt.receive(weight=3)
    opt.step()
    assert (a.item(), b.item()) == (-1.0, -0.25)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_are_positive_and_finite(weight):
    net = nn.Linear(2, 1)
    opt = SGD(net.parameters(), lr=0.1)
    net(torch.ones(1, 2)).sum().backward()
    with pytest.raises(ValueError, match=f"receive: weight must be > 0 and finite, got {weight}"):
        opt.receive(weight=weight)


def test_a_step_without_clients_is_refused():
    net = nn.Linear(2, 1)
    opt = SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"step: no client.*receive\(weight=n_k\)"):
        opt.step()
    net(torch.ones(1, 2)).sum().backward()
    with pytest.raises(ValueError, match="step: no client"):
        opt.step()  # a gradient is there, but nobody handed it over
    opt.receive(weight=1)
    opt.step()
    with pytest.raises(ValueError, match="step: no client"):
        opt.step()  # and it isn't applied twice


def through_state_dict(opt, net, make):
    file = io.BytesIO()
    torch.save({"opt": opt.state_dict(), "net": net.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file)
    new = relu_net(6, 7, 3, seed=9)
    new.load_state_dict(kept["net"])
    other = make(new.parameters())
    other.load_state_dict(kept["opt"])
    return other, new


def through_deepcopy(opt, net, make):
    return copy.deepcopy((opt, net))


def through_pickle(opt, net, make):
    return pickle.loads(pickle.dumps((opt, net)))


@pytest.mark.parametrize("through", [through_state_dict, through_deepcopy, through_pickle])
@pytest.mark.parametrize("handed_over", [0, 3])
def test_a_copy_goes_on_like_the_original(through, handed_over):
    """Saved between rounds, and in the middle of one, after three of eight clients."""
    make = lambda q: SGD(q, lr=0.2, momentum=0.9)
    p = problem()
    net = copy.deepcopy(p.net)
    opt = make(net.parameters())
    one_round(opt, p, net)
    half = [p.parts[k] for k in range(handed_over)]
    for rows in half:
        nn.functional.cross_entropy(net(p.x[rows]), p.y[rows]).backward()
        opt.receive(weight=len(rows))
    opt2, net2 = through(opt, net, make)
    for o, m in ((opt, net), (opt2, net2)):
        for rows in p.parts[handed_over:]:
            nn.functional.cross_entropy(m(p.x[rows]), p.y[rows]).backward()
            o.receive(weight=len(rows))
        o.step()
        one_round(o, p, m)
    assert torch.equal(vector(net), vector(net2))


def test_a_copy_is_a_copy():
    """What the original receives doesn't reach the copy."""
    net = nn.Linear(1, 1, bias=False)
    opt = SGD(net.parameters(), lr=1.0)
    net(torch.ones(1, 1)).sum().backward()
    opt.receive(weight=1)
    opt2, net2 = copy.deepcopy((opt, net))
    net(torch.full((1, 1), 7.0)).sum().backward()
    opt.receive(weight=1)
    before = net2.weight.item()
    opt2.step()
    assert net2.weight.item() == pytest.approx(before - 1.0)


def test_learning_rate_schedules_work():
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    opt = SGD(net.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.1)
    for _ in range(3):
        net(torch.ones(1, 1)).sum().backward()
        opt.receive(weight=1)
        opt.step()
        schedule.step()
    assert net.weight.item() == pytest.approx(-1.11)


def test_it_is_a_torch_optimizer():
    opt = SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    assert isinstance(opt, torch.optim.Optimizer)
    opt.param_groups[0]["lr"] = 0.2
    assert "lr: 0.2" in repr(opt)
