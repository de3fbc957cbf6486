"""Gradient inversion: the messages against closed forms, the searches against the truth."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedlearn import attacks, data
from fedlearn.attacks import best, dlg, gradient, idlg, invert_cosine, match, update
from fedlearn.batches import Shards
from fedlearn.descend import descend
from fedlearn.model import from_module, mlp, softmax_regression

DIGITS = data.load("digits")


def smooth(n_in=64, hidden=32, act=nn.Tanh, seed=0):
    """A network as the papers want it, its start drawn from a seed."""
    task = from_module(nn.Sequential(nn.Linear(n_in, hidden), act(), nn.Linear(hidden, 10)))
    return task._replace(theta0=mlp(n_in, hidden, 10, seed=seed).theta0)


def sent(task, x, y, **local):
    send = update(task, task.theta0, **local) if local else gradient(task, task.theta0)
    return send, send(x, y)


def one(i=0, n=1):
    return DIGITS.x[i : i + n], DIGITS.y[i : i + n]


# -- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda: softmax_regression(64, 10), lambda: mlp(64, 16, 10), smooth]
)
def test_the_gradient_is_the_tasks_own(make):
    task, (x, y) = make(), one(0, 5)
    closed, _ = task.grad(task.theta0[None], x[None], y[None], torch.ones(1, 5))
    assert torch.allclose(gradient(task, task.theta0)(x, y), closed[0], atol=1e-6)
    soft = gradient(task, task.theta0)(x, F.one_hot(y, 10).float())
    assert torch.allclose(soft, closed[0], atol=1e-6)


def test_a_soft_label_is_the_mean_of_its_labels():
    task, (x, _) = smooth(), one()
    send = gradient(task, task.theta0)
    mixed = send(x, torch.tensor([[0.25, 0.75] + [0.0] * 8]))
    parts = [send(x, torch.tensor([c])) for c in (0, 1)]
    assert torch.allclose(mixed, 0.25 * parts[0] + 0.75 * parts[1], atol=1e-7)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_update_is_that_of_a_client(steps):
    """The loop's own local descent, full batches."""
    task, (x, y) = smooth(), one(0, 4)
    batches = torch.arange(4).expand(1, steps, 4)
    shards = Shards(x, y, batches, torch.ones(1, steps, 4), torch.tensor([4.0]))
    theta_k, *_ = descend(task, task.theta0, shards, lr=0.5)
    delta = update(task, task.theta0, 0.5, steps)(x, y)
    assert torch.allclose(delta, (theta_k - task.theta0)[0], atol=1e-6)


@pytest.mark.parametrize("local", [{}, {"lr": 0.5, "steps": 3}])
def test_messages_can_be_differentiated(local):
    """Against finite differences in double precision."""
    task = smooth(6, 4)
    task = task._replace(theta0=task.theta0.double())
    send = sent(task, torch.rand(2, 6).double(), torch.tensor([1, 2]), **local)[0]
    x = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)
    y = torch.rand(2, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: send(a, b.softmax(-1)), (x, y))


def test_a_message_leaves_theta_alone():
    task, (x, y) = smooth(), one()
    before = task.theta0.clone()
    assert not gradient(task, task.theta0)(x, y).requires_grad, "a client sends plain numbers"
    update(task, task.theta0, 0.5, 3)(x, y)
    assert torch.equal(task.theta0, before) and not task.theta0.requires_grad


# -- pictures come back ----------------------------------------------------------------------------


@pytest.mark.parametrize("act", [nn.Sigmoid, nn.Tanh])
@pytest.mark.parametrize("i", [0, 7, 100])
def test_dlg_finds_picture_and_label(act, i):
    task, (x, y) = smooth(act=act, seed=i), one(i)
    send, g = sent(task, x, y)
    found = best(lambda r: dlg(send, g, (1, 64), 10, restart=r), restarts=3)
    assert match(found.x, x)[0].item() < 1e-4
    assert found.y.argmax() == y


def test_idlg_finds_it_in_fewer_steps():
    task, (x, y) = smooth(), one(3)
    send, g = sent(task, x, y)
    label = attacks.reveal_label(g[-10:])
    (*_, known), (*_, searched) = (
        idlg(send, g, (1, 64), torch.tensor([label])),
        dlg(send, g, (1, 64), 10),
    )
    assert match(known.x, x)[0].item() < 1e-6
    assert known.step < searched.step


def test_a_batch_comes_back_in_some_order():
    task, (x, y) = smooth(), one(20, 4)
    send, g = sent(task, x, y)
    found = best(lambda r: idlg(send, g, (4, 64), y.sort().values, restart=r, steps=200))
    errors, order = match(found.x, x)
    assert errors.max() < 1e-3
    assert torch.equal(found.y[order], y), "each picture with its label"


def test_a_convolution_where_no_ratio_helps():
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 12, 5, stride=2, padding=2), nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(192, 10),
    )  # fmt: skip
    task = from_module(net)
    draw = np.random.default_rng(0).uniform(-0.5, 0.5, task.theta0.numel())  # the paper's start
    task = task._replace(theta0=torch.from_numpy(draw).float())
    x, y = one(11)
    send, g = sent(task, x, y)
    found = best(lambda r: dlg(send, g, (1, 64), 10, restart=r, steps=150), restarts=3)
    assert match(found.x, x)[0].item() < 1e-4 and found.y.argmax() == y


def big(i):
    return F.interpolate(DIGITS.x[i : i + 1].view(1, 1, 8, 8), size=28, mode="bilinear").flatten(1)


def test_28_x_28_comes_back():
    task, x, y = smooth(784, 32), big(5), DIGITS.y[5:6]
    send, g = sent(task, x, y)
    found = best(lambda r: dlg(send, g, (1, 784), 10, restart=r), restarts=3)
    assert match(found.x, x)[0].item() < 1e-4 and found.y.argmax() == y


@pytest.mark.skipif(not os.environ.get("FEDLEARN_DATA"), reason="needs MNIST: set FEDLEARN_DATA")
def test_mnist_comes_back():
    mnist, task = data.load("mnist"), smooth(784, 32)
    for i in range(3):
        x, y = mnist.x[i : i + 1], mnist.y[i : i + 1]
        send, g = sent(task, x, y)
        found = best(lambda r, s=send, g=g: dlg(s, g, (1, 784), 10, restart=r), restarts=3)
        assert match(found.x, x)[0].item() < 1e-4 and found.y.argmax() == y


def test_an_update_of_several_steps_needs_to_be_searched_as_one():
    """Who takes five local steps for one finds a worse picture."""
    task, (x, y) = smooth(), one(2)
    send, delta = sent(task, x, y, lr=1.0, steps=5)
    (*_, aware) = idlg(send, delta, (1, 64), y)
    (*_, naive) = idlg(gradient(task, task.theta0), -delta / 5, (1, 64), y)
    assert match(aware.x, x)[0].item() < 1e-4
    assert match(naive.x, x)[0].item() > 20 * match(aware.x, x)[0].item()


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_cosine_finds_it_whatever_the_norm(scale):
    """A clipped update keeps its direction."""
    task, (x, y) = smooth(), one(8)
    send, g = sent(task, x, y)
    (*_, last) = invert_cosine(send, scale * g, (1, 64), y, tv=1e-4, picture=(8, 8))
    assert match(last.x, x)[0].item() < 1e-3
    assert last.x.min() >= 0 and last.x.max() <= 1


def test_the_search_follows_signs_at_a_rate_that_falls():
    """Adam of a constant sign moves by lr: so do most pixels, then by lr / 10."""
    task, (x, y) = smooth(), one(8)
    send, g = sent(task, x, y)
    guesses = [q.x for q in invert_cosine(send, g, (1, 64), y, steps=80, lr=0.01)]
    moved = [(b - a).abs() for a, b in itertools.pairwise(guesses)]
    for step in (0, 1, 2, 3):
        full = (moved[step] - 0.01).abs() < 1e-5
        assert full.float().mean() > 0.6, f"step {step}: {full.float().mean()}"
    assert moved[20].max() > 0.005 > 0.0011 > moved[40].max() and moved[60].max() < 2e-4


def noised(g, share):
    draw = torch.from_numpy(np.random.default_rng(0).standard_normal(len(g))).to(g)
    return g + share * g.norm() / draw.norm() * draw


def test_noise_and_a_bigger_batch_make_it_fail():
    """The mean of all digits is 0.073 away: an attack that is no better has found nothing."""
    nothing = DIGITS.x.var(0, unbiased=False).mean().item()
    assert nothing == pytest.approx(0.073, abs=1e-3)
    task, (x, y) = smooth(), one(8)
    send, g = sent(task, x, y)
    errors = []
    for share in (0.0, 0.1, 1.0, 10.0):  # the noise's norm over the gradient's
        (*_, last) = idlg(send, noised(g, share), (1, 64), y)
        errors.append(match(last.x.clamp(0, 1), x)[0].item())
    assert errors == sorted(errors)
    assert errors[0] < 1e-6 and errors[1] < 1e-3 and errors[3] > 2 * nothing
    x, y = one(0, 64)
    send, g = sent(task, x, y)
    (*_, last) = idlg(send, g, (64, 64), y, steps=60)
    assert match(last.x.clamp(0, 1), x)[0].median() > 0.5 * nothing


def test_the_error_grows_with_the_square_of_the_noise():
    """Least squares: ten times the noise, a hundred times the error."""
    task, (x, y) = smooth(), one(8)
    send, g = sent(task, x, y)
    error = {}
    for share in (0.01, 0.1):
        (*_, last) = idlg(send, noised(g, share), (1, 64), y)
        error[share] = match(last.x, x)[0].item()
    assert error[0.1] / error[0.01] == pytest.approx(100, rel=0.1)


def test_total_variation_helps_where_the_gradient_leaves_it_open():
    """16 pictures of 28 x 28 from 8 units: 12,544 unknown pixels, 6,370 numbers."""
    for i in range(2):
        task, y = smooth(784, 8, seed=i), DIGITS.y[20 * i : 20 * i + 16]
        x = torch.cat([big(20 * i + j) for j in range(16)])
        send, g = sent(task, x, y)
        error = {}
        for tv in (0.0, 0.03):
            search = invert_cosine(send, g, (16, 784), y, tv=tv, picture=(28, 28), steps=200)
            (*_, last) = search
            error[tv] = match(last.x, x)[0].mean().item()
        assert error[0.03] < 0.8 * error[0.0], error


# -- the iterators ---------------------------------------------------------------------------------


def test_a_search_shows_every_step_from_the_start():
    task, (x, y) = smooth(), one()
    send, g = sent(task, x, y)
    for search in (
        dlg(send, g, (1, 64), 10, steps=5),
        idlg(send, g, (1, 64), y, steps=5),
        invert_cosine(send, g, (1, 64), y, steps=5),
    ):
        guesses = list(search)
        assert [q.step for q in guesses] == list(range(6))
        assert guesses[-1].loss < guesses[0].loss
        assert len({q.x.sum().item() for q in guesses}) == 6, "a guess is a copy, not a view"


def test_the_loss_is_that_of_the_guess_beside_it():
    task, (x, y) = smooth(), one()
    send, g = sent(task, x, y)
    for guess in dlg(send, g, (1, 64), 10, steps=4):
        by_hand = (send(guess.x, guess.y) - g).pow(2).sum() / g.pow(2).sum()
        assert guess.loss == pytest.approx(by_hand.item(), rel=1e-4)
    for guess in invert_cosine(send, g, (1, 64), y, steps=4, tv=0.5, picture=(8, 8)):
        v, h = guess.x.view(8, 8), send(guess.x, y)
        tv = (v[1:] - v[:-1]).abs().mean() + (v[:, 1:] - v[:, :-1]).abs().mean()
        assert guess.loss == pytest.approx(
            (1 - h @ g / h.norm() / g.norm() + 0.5 * tv).item(), rel=1e-4
        )


def test_the_same_seed_the_same_search_and_another_restart_another():
    task, (x, y) = smooth(), one()
    send, g = sent(task, x, y)
    run = lambda **kw: [q.x for q in dlg(send, g, (1, 64), 10, steps=3, **kw)]
    a, b, c, d = run(), run(), run(restart=1), run(seed=1)
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0]) and not torch.equal(a[0], d[0])
    before = torch.get_rng_state()
    run()
    assert torch.equal(before, torch.get_rng_state()), "no global generator is advanced"


def test_best_takes_the_smallest_loss_and_stops_when_it_is_enough():
    asked = []

    def search(losses):
        def attack(r):
            asked.append(r)
            return (
                attacks.Guess(torch.ones(1), torch.ones(1), v, t) for t, v in enumerate(losses[r])
            )

        return attack

    assert best(search([[3.0, 1.0, 2.0], [5.0, float("nan")], [0.5]]), 3).loss == 0.5
    assert best(search([[1e-9], [0.0]]), 2).loss == 1e-9 and asked == [0, 1, 2, 0]
    with pytest.raises(ValueError, match="best: no search gave a finite loss in 2 starts"):
        best(search([[float("nan")], []]), 2)


def test_match_is_the_best_of_all_orders():
    rng = np.random.default_rng(0)
    truth, guess = (torch.from_numpy(rng.random((4, 6))) for _ in range(2))
    errors, order = match(guess, truth)
    every = [
        sum(((guess[j] - truth[i]) ** 2).mean() for i, j in enumerate(way))
        for way in itertools.permutations(range(4))
    ]
    assert errors.sum().item() == pytest.approx(min(every).item())
    assert torch.allclose(((guess[order] - truth) ** 2).mean(1), errors)


# -- bad input ------------------------------------------------------------------------------------


def test_bad_arguments_are_refused_at_once_and_in_words():
    task, (x, y) = smooth(), one()
    send, g = sent(task, x, y)
    nothing = torch.zeros_like(g)
    for bad, rule in (
        (lambda: gradient(task, g[1:]), "gradient: theta must be of shape"),
        (lambda: update(task, task.theta0, 0.0, 1), "update: lr must be > 0"),
        (lambda: update(task, task.theta0, 0.1, 0), "update: steps must be an integer >= 1"),
        (lambda: dlg(send, nothing, (1, 64), 10), "dlg: target must be a finite vector"),
        (lambda: dlg(send, g * torch.nan, (1, 64), 10), "dlg: target must be a finite vector"),
        (lambda: dlg(send, g[None], (1, 64), 10), "dlg: target must be a finite vector"),
        (
            lambda: dlg(send, send(x.clone().requires_grad_(), y), (1, 64), 10),
            "dlg: target must be .* without a graph",
        ),
        (lambda: dlg(send, g, (64,), 10), r"dlg: shape must be \(B, ...\)"),
        (lambda: dlg(send, g, (0, 64), 10), r"dlg: shape must be \(B, ...\)"),
        (lambda: dlg(send, g, (1, 64), 1), "dlg: classes must be an integer >= 2"),
        (lambda: dlg(send, g, (1, 64), 10, steps=0), "dlg: steps must be an integer >= 1"),
        (lambda: idlg(send, g, (2, 64), y), "idlg: y must be 2 integer labels"),
        (lambda: idlg(send, g, (1, 64), torch.ones(1)), "idlg: y must be 1 integer labels"),
        (lambda: invert_cosine(send, g, (1, 64), y, tv=-1.0), "invert_cosine: tv must be >= 0"),
        (lambda: invert_cosine(send, g, (1, 64), y, lr=0), "invert_cosine: lr must be > 0"),
        (lambda: invert_cosine(send, g, (1, 64), y, tv=0.1), "total variation needs pictures"),
        (lambda: invert_cosine(send, g, (1, 64), y, tv=0.1, picture=(7, 8)), "needs pictures"),
        (lambda: best(lambda r: iter(()), 0), "best: restarts must be an integer >= 1"),
        (lambda: match(x, x[:, 1:]), r"match: wants two batches of one shape"),
        (lambda: next(dlg(send, g[1:], (1, 64), 10)), "^dlg: target must have the length"),
        (lambda: next(idlg(send, g[1:], (1, 64), y)), "^idlg: target must have the length"),
        (lambda: next(invert_cosine(send, g[1:], (1, 64), y)), "^invert_cosine: target must have"),
    ):
        with pytest.raises(ValueError, match=rule):
            bad()
