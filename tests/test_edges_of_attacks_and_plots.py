"""Attacks, the optimiser, fleets and figures: what would give a wrong number, or an empty picture,
without a word is refused by name. What is right stays right beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from fedlearn import Recipe, Simulated, algorithms, attacks, plots
from fedlearn.attacks import byzantine
from fedlearn.federated_optimizer import SGD
from fedlearn.fleet import Fleet, fleet
from fedlearn.model import softmax_regression

NAN, INF = float("nan"), float("inf")
TASK = softmax_regression(4, 3)
X, Y = torch.rand(2, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0])
SEND = attacks.gradient(TASK, TASK.theta0)
G = SEND(X, Y)
W, B = torch.rand(3, 4), torch.tensor([0.2, -0.5, 0.3])
PARTS = [np.array([0, 1]), np.array([2, 3])]
STAMP = lambda x: attacks.stamp(x, (2, 2), 1)
FOUR, FOUR_Y = torch.zeros(4, 4), torch.tensor([0, 1, 2, 0])


def ax():
    return Figure().add_subplot()


def first(search):
    return next(iter(search))


def poisoned(x=FOUR, y=FOUR_Y, parts=PARTS, trigger=STAMP, target=1):
    return lambda: attacks.poison(x, y, parts, [1], trigger, target)


def rate(theta=TASK.theta0, x=FOUR, y=FOUR_Y, trigger=STAMP, target=1):
    return lambda: attacks.backdoor_rate(TASK, theta, x, y, trigger, target)


def trained(**kw):
    def act():
        recipe = Recipe(algorithms.fedavg(TASK, 0.1), TASK.theta0)
        return Simulated(recipe, FOUR, FOUR_Y, PARTS, **kw)

    return act


def machines(compute=(1.0, 1.0), down=(1.0, 1.0), up=(1.0, 1.0)):
    return trained(fleet=Fleet(np.array(compute), np.array(down), np.array(up)))


def optimiser(momentum=0.0):
    model = nn.Linear(2, 1)
    return model, SGD(model.parameters(), lr=1.0, momentum=momentum)


def receives(weight=1.0, x=1.0):
    def act():
        model, opt = optimiser()
        model(torch.full((1, 2), x)).sum().backward()
        opt.receive(weight=weight)

    return act


def steps_with_a_closure():
    model, opt = optimiser()

    def closure():
        opt.zero_grad()
        loss = model(torch.ones(1, 2)).sum()
        loss.backward()
        return loss.item()

    closure()
    opt.receive(weight=1)
    opt.step(closure)


def steps_with_a_gradient_that_nobody_handed_over():
    model, opt = optimiser()
    model.weight.sum().backward()
    opt.receive(weight=1)
    model.bias.sum().backward()
    opt.step()


REFUSED = {
    # labels that would pair with other examples
    "send: y must be 2 classes 0..2, int64, or .2, 3. prob.*got tensor...2": lambda: SEND(
        X, Y[:, None]),
    "send: y must be 2 classes": lambda: SEND(X, Y[:1]),
    "send: y must be 2 classes 0..2": lambda: SEND(X, torch.tensor([3, 0])),
    "send: y must be 2 classes 0..2, int64": lambda: SEND(X, torch.tensor([-1, 0])),
    "send: y must be 2 classes 0..2, int64, ": lambda: SEND(X, Y.float()),
    r"send: y must be .* or \(2, 3\) probabilities": lambda: SEND(X, torch.full((2, 3), 0.5)),
    "send: y must be .*nan": lambda: SEND(X, torch.full((2, 3), NAN)),
    "send: y must be 2 .* got": lambda: attacks.update(TASK, TASK.theta0, 0.1, 2)(X, Y[:, None]),
    "gradient: theta must be finite": lambda: attacks.gradient(TASK, TASK.theta0 + NAN),
    "update: theta must be finite": lambda: attacks.update(TASK, TASK.theta0 + INF, 0.1, 1),
    # searches
    "idlg: y must be 2 integer labels": lambda: attacks.idlg(SEND, G, (2, 4), Y[:, None]),
    "idlg: y must be 2 integer labels >= 0": lambda: attacks.idlg(SEND, G, (2, 4), -Y),
    "idlg: y must be 2 .* int64": lambda: attacks.idlg(SEND, G, (2, 4), Y > 0),
    "send: y must be 2 classes 0..2, .*got tensor": lambda: first(
        attacks.idlg(SEND, G, (2, 4), Y + 9)),
    "invert_cosine: y must be 2 integer": lambda: attacks.invert_cosine(SEND, G, (2, 4), Y.float()),
    "dlg: target must be a finite vector": lambda: attacks.dlg(SEND, G * NAN, (2, 4), 3),
    "dlg: shape must be .B, ....*got 4": lambda: attacks.dlg(SEND, G, 4, 3),
    "dlg: shape must be .B, ....*got .True, 4": lambda: attacks.dlg(SEND, G, (True, 4), 3),
    "dlg: enough must be >= 0 and finite, got nan": lambda: attacks.dlg(
        SEND, G, (2, 4), 3, enough=NAN),
    "idlg: enough must be": lambda: attacks.idlg(SEND, G, (2, 4), Y, enough=-1.0),
    "best: enough must be": lambda: attacks.best(lambda r: iter(()), enough=NAN),
    r"picture must be \(h, w\)": lambda: attacks.invert_cosine(
        SEND, G, (2, 4), Y, tv=0.1, picture=(2.0, 2.0)),
    "match: guess must be finite real": lambda: attacks.match(X * NAN, X),
    "match: truth must be finite real": lambda: attacks.match(X, X / 0),
    "match: wants two batches": lambda: attacks.match(X[:0], X[:0]),
    # leakage
    "invert_linear: weight_grad must be finite": lambda: attacks.invert_linear(W * NAN, B),
    "invert_linear: .*finite": lambda: attacks.invert_linear(W, B * NAN),
    "invert_linear: rows must be units 0..2, got .0.7": lambda: attacks.invert_linear(W, B, [0.7]),
    "invert_linear: rows must be units 0..2, got ..,": lambda: attacks.invert_linear(W, B, []),
    "invert_linear: wants weight_grad": lambda: attacks.invert_linear(W[:0], B[:0]),
    "reveal_label: grad must be finite real": lambda: attacks.reveal_label(B * NAN),
    "reveal_label: grad must be finite real numbers, got tensor": lambda: attacks.reveal_label(
        torch.tensor([1, -1, 1])),
    "label_counts: bias_grad must be finite": lambda: attacks.label_counts(B * NAN, 4),
    "label_counts: bias_grad must be finite real": lambda: attacks.label_counts(
        torch.tensor([0, 0, 0]), 4),
    "label_counts: bias_grad must be .C,., C >= 2": lambda: attacks.label_counts(B[:1], 4),
    "label_counts: expected must be": lambda: attacks.label_counts(B, 4, torch.full((3,), NAN)),
    r"membership: members must be losses \(n,\)": lambda: attacks.membership(W, B),
    r"membership: others must be losses \(n,\)": lambda: attacks.membership(B, B[:, None]),
    "membership: threshold must be a number, got nan": lambda: attacks.membership(B, B, NAN),
    "membership: threshold must be a number, got '1'": lambda: attacks.membership(B, B, "1"),
    # backdoors
    "stamp: x must be of real numbers, got torch.int64": lambda: attacks.stamp(
        torch.zeros(1, 9, dtype=torch.int64), (3, 3), value=0.5),
    "stamp: size must be an integer from 1 to 3, got True": lambda: attacks.stamp(
        torch.zeros(1, 9), (3, 3), True),
    "stamp: value must be finite, got 'white'": lambda: attacks.stamp(
        torch.zeros(1, 9), (3, 3), value="white"),
    r"poison: y must be a class for each of 4.*\(4, 1\)": poisoned(y=FOUR_Y[:, None]),
    "poison: y must be a class for each of 4 .*float32": poisoned(y=FOUR_Y.float()),
    r"poison: every client needs rows from 0..2, got 2..3": poisoned(y=FOUR_Y[:3]),
    "poison: every client needs rows": poisoned(FOUR[:0], FOUR_Y[:0]),
    r"poison: parts\[1\] must be rows, one at least, got array\(\[\]": poisoned(
        parts=[PARTS[0], PARTS[1][:0]]),
    "poison: every client needs rows from 0..3, got -1": poisoned(
        parts=[PARTS[0], np.array([-1])]),
    "poison: every client needs rows from 0..3, got 4": poisoned(parts=[PARTS[0], np.array([4])]),
    "poison: parts must be integer rows": poisoned(parts=[PARTS[0], np.array([1.0])]),
    r"poison: trigger must be .*same shape \(1, 4\), got \(4,\)": poisoned(trigger=lambda x: x[0]),
    "poison: trigger must be examples -> finite": poisoned(trigger=lambda x: x / 0),
    "backdoor_rate: a classifier needs integer classes": rate(y=FOUR_Y.float()),
    "backdoor_rate: needs at least one example": rate(x=FOUR[:0], y=FOUR_Y[:0]),
    "backdoor_rate: target must be a class 0..2, got 7": rate(target=7),
    "backdoor_rate: target must be an integer >= 0, got 1.5": rate(target=1.5),
    "backdoor_rate: theta must be finite": rate(theta=TASK.theta0 * NAN),
    r"backdoor_rate: trigger must be .*\(3, 4\)": rate(trigger=lambda x: x[:1]),
    # the optimiser
    "SGD: momentum must be >= 0 and < 1, got nan": lambda: optimiser(momentum=NAN),
    "SGD: momentum must be >= 0 and < 1, got 1": lambda: optimiser(momentum=1.0),
    "receive: weight must be > 0 and finite, got nan": receives(weight=NAN),
    "receive: weight must be > 0 and finite, got '7'": receives(weight="7"),
    "receive: weight must be > 0 and finite, got True": receives(weight=True),
    "receive: the gradient holds NaN or inf.*zero_grad": receives(x=INF),
    "step: a closure's gradient, .* is in no mean": steps_with_a_closure,
    "step: .*what lies in .grad, is in no mean": steps_with_a_gradient_that_nobody_handed_over,
    # fleets
    r"Simulated: fleet.compute must be \(2,\) numbers > 0": trained(fleet=fleet(3)),
    "Simulated: fleet.down must be .* > 0": machines(down=(1.0, 0.0)),
    "Simulated: fleet.up must be .* > 0, one a client, got .*nan": machines(up=(1.0, NAN)),
    "Simulated: fleet.compute must be .* finite": machines(compute=(1.0, np.inf)),
    r"Simulated: fleet.up must be \(2,\) numbers": machines(up=(1.0,)),
    "Simulated: fleet.compute must be .*-1": machines(compute=(-1.0, 1.0)),
    # figures
    "curves: histories must be label -> History": lambda: plots.curves(ax(), {}),
    "curves: histories must be label -> Hist": lambda: plots.curves(ax(), [1]),
    r"holdings: counts must be \(N, C\) whole": lambda: plots.holdings(ax(), np.ones(3, int)),
    r"holdings: counts must be \(N, C\) whole numbers": lambda: plots.holdings(
        ax(), np.full((2, 2), NAN)),
    "holdings: counts must be .*-1": lambda: plots.holdings(ax(), np.array([[-1, 2]])),
    "holdings: names must be 2 names": lambda: plots.holdings(
        ax(), np.eye(2, dtype=int), names="a"),
    "contours: span must be finite": lambda: plots.contours(
        ax(), lambda a, b: a, span=(0, NAN, 0, 1)),
    "contours: span must be": lambda: plots.contours(ax(), lambda a, b: a, span=(1, 0, 0, 1)),
    r"contours: f\(a, b\) must be values of shape \(120, 120\)": lambda: plots.contours(
        ax(), lambda a, b: a[0], span=(0, 1, 0, 1)),
    r"contours: f\(a, b\) must be .* not all NaN": lambda: plots.contours(
        ax(), lambda a, b: a * NAN, span=(0, 1, 0, 1)),
    r"digit: shape must be \(h, w\) or \(3, h, w\) of 9 numbers": lambda: plots.digit(
        ax(), np.zeros(9), (2, 4)),
    "digit: shape must be .h, w. or": lambda: plots.digit(ax(), np.zeros(9), (9,)),
    "digit: x must be finite": lambda: plots.digit(ax(), np.full(9, NAN), (3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_be_silently_wrong_is_refused_by_name(message):
    with pytest.raises(ValueError, match=message) as e:
        REFUSED[message]()
    assert any(cure in str(e.value) for cure in ("e.g.", "zero_grad()"))


def test_a_message_is_autograd_s_gradient_with_labels_and_with_probabilities():
    theta = torch.randn(15, generator=torch.Generator().manual_seed(1))
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(theta[:12].reshape(3, 4))
        model.bias.copy_(theta[12:])
    for y in (Y, nn.functional.one_hot(Y, 3).float(), torch.full((2, 3), 1 / 3)):
        model.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        expected = torch.cat([model.weight.grad.flatten(), model.bias.grad])
        assert torch.allclose(attacks.gradient(TASK, theta)(X, y), expected, atol=1e-6)


def test_numpy_s_integers_are_rows_sizes_and_targets():
    x = torch.rand(4)
    found = attacks.invert_linear(torch.outer(B, x), B, np.array([0, 2]))
    assert torch.allclose(found, x.expand(2, 4), atol=1e-6)
    assert attacks.stamp(torch.zeros(1, 9), (3, 3), np.int64(2)).sum() == 4
    assert attacks.membership(torch.tensor([0.1]), torch.tensor([0.9]), torch.tensor(0.5)).tpr == 1


def test_a_client_that_is_left_out_with_zero_grad_is_in_no_mean():
    model, opt = optimiser()
    start = model.weight.detach().clone()
    for k, x in enumerate((1.0, INF, 3.0)):
        model(torch.full((1, 2), x)).sum().backward()
        if k == 1:
            opt.zero_grad()
        else:
            opt.receive(weight=torch.tensor(1 + k))
    opt.step()
    assert torch.allclose(start - model.weight, torch.full((1, 2), (1 * 1.0 + 3 * 3.0) / 4))


def test_attackers_are_named_once_for_every_room():
    for act in (lambda: poisoned(parts=PARTS[:1])(), lambda: byzantine._attackers("B", [5], 2)):
        with pytest.raises(ValueError, match="attackers must be different client numbers"):
            act()
