"""One model, cut by columns: each owner keeps its columns and its half of the parameters."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check, not_negative, positive, whole

Protect = Callable[[Tensor, int], Tensor]  # what goes back to the other owner, step -> what is sent


class Step(NamedTuple):
    """What happened in one step of gradient descent.

    Attributes:
        t: 0, 1, ...
        loss: Mean cross-entropy in nats BEFORE the step, as the label's owner sees it.
        up: What the other owner sent: scores u (n,), or its layer's output (n, h).
        down: What came back: residuals r (n,), or the gradient of that output (n, h).
        theta: Parameters after the step, by name: of the label's owner, of the other, of the top.
        sent: Bytes that crossed the line in this step, both ways.
    """

    t: int
    loss: float
    up: Tensor
    down: Tensor
    theta: dict[str, Tensor]
    sent: int


def split_logistic(
    x_label: Tensor,
    x_other: Tensor,
    y: Tensor,
    *,
    lr: float,
    steps: int,
    l2: float = 0.0,
    protect: Protect | None = None,
) -> Iterator[Step]:
    r"""Logistic regression of two owners: the joint one's gradient, and two vectors a step.

    The score of a person is a sum, z = x_label w_label + b + x_other w_other, so the other owner
    sends its summand u = x_other w_other. The label's owner forms the residual r = σ(z) - y and
    sends it back, since ∂L/∂w_other = x_otherᵀ r / n: that is all either of them needs. The result
    is that of one table with all columns, to the last bit but for the order of the sum.

    Args:
        x_label: (n, a) columns of the label's owner, row i the same person as in ``x_other``.
        x_other: (n, b) columns of the other owner.
        y: (n,) 0 or 1.
        lr: Learning rate eta, > 0 and finite.
        steps: How many, each over all n rows.
        l2: Strength of the pull towards 0 on both w, not on b; >= 0.
        protect: (r, t) -> what is sent instead, e.g. :func:`residual_noise`. The label's owner
            goes on with its own exact r.

    Raises:
        ValueError: At once, if rows don't match, y is not 0 and 1, or a number is out of range.

    Example:
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 0.0])
        >>> *_, last = split_logistic(x[:, :1], x[:, 1:], y, lr=1.0, steps=1)
        >>> last.down, last.theta["other"]
        (tensor([-0.5000,  0.5000]), tensor([-0.2500]))

    Reference: Hardy, Henecka, Ivey-Law, Nock, Patrini, Smith, Thorne, 2017, "Private federated
    learning on vertically partitioned data via entity resolution and additively homomorphic
    encryption", §3.

    Differs from the paper: u and r travel in the clear, where the paper encrypts them, and the
    logistic loss is exact, not a polynomial.
    """
    y = _checked("split_logistic", [x_label, x_other], y, lr, steps)
    not_negative("split_logistic", "l2", l2, 1e-3)
    return _logistic(x_label, x_other, y, lr, steps, l2, protect)


def _logistic(
    x_label: Tensor,
    x_other: Tensor,
    y: Tensor,
    lr: float,
    steps: int,
    l2: float,
    protect: Protect | None,
) -> Iterator[Step]:
    w_label, w_other, n = (
        x_label.new_zeros(x_label.shape[1]),
        x_other.new_zeros(x_other.shape[1]),
        len(y),
    )
    b = x_label.new_zeros(())
    for t in range(steps):
        u = x_other @ w_other  # the other owner -> the label's owner
        z = x_label @ w_label + u + b
        r = torch.sigmoid(z) - y
        back = protect(r, t) if protect else r  # and back
        w_label = w_label - lr * (x_label.T @ r / n + l2 * w_label)
        b = b - lr * r.mean()
        w_other = w_other - lr * (x_other.T @ back / n + l2 * w_other)
        loss = float(F.binary_cross_entropy_with_logits(z, y))
        theta = {"label": w_label, "other": w_other, "top": b}
        yield Step(t, loss, u, back, theta, _nbytes(u, back))


def split_network(
    bottom_label: nn.Module,
    bottom_other: nn.Module,
    top: nn.Module,
    x_label: Tensor,
    x_other: Tensor,
    y: Tensor,
    *,
    lr: float,
    steps: int,
    protect: Protect | None = None,
) -> Iterator[Step]:
    r"""A network cut between its layers: backpropagation that crosses the line twice a step.

    The other owner sends h = bottom_other(x_other). The label's owner computes
    z = top(concat(bottom_label(x_label), h)) and its loss, and sends G = ∂L/∂h back, from which the
    other owner goes on with the chain rule. Nobody's parameters or columns travel.

    Args:
        bottom_label: x_label (n, a) -> (n, g). Modules are copied, yours stay as they are.
        bottom_other: x_other (n, b) -> (n, h).
        top: (n, g + h) -> (n, 1) scores.
        x_label, x_other, y, lr, steps: As in :func:`split_logistic`, which also says what raises.
        protect: (G, t) -> what is sent instead.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([1.0, 0.0])
        >>> halves = nn.Linear(1, 2), nn.Linear(1, 2), nn.Linear(4, 1)
        >>> first = next(split_network(*halves, x[:, :1], x[:, 1:], y, lr=0.1, steps=1))
        >>> first.up.shape, first.down.shape, first.sent
        (torch.Size([2, 2]), torch.Size([2, 2]), 32)

    Reference: Vepakomma, Gupta, Swedish, Raskar, 2018, "Split learning for health: distributed deep
    learning without sharing raw patient data", the vertically partitioned configuration.
    """
    y = _checked("split_network", [x_label, x_other], y, lr, steps)
    nets = [copy.deepcopy(m) for m in (bottom_label, bottom_other, top)]
    return _network(nets, x_label, x_other, y, lr, steps, protect)


def _network(
    nets: list[nn.Module],
    x_label: Tensor,
    x_other: Tensor,
    y: Tensor,
    lr: float,
    steps: int,
    protect: Protect | None,
) -> Iterator[Step]:
    bottom_label, bottom_other, top = nets
    own = {name: [*net.parameters()] for name, net in zip(("label", "other", "top"), nets)}
    for t in range(steps):
        with torch.enable_grad():
            h = bottom_other(x_other)
            sent = h.detach().requires_grad_()  # the other owner -> the label's owner
            z = top(torch.cat([bottom_label(x_label), sent], 1))
            check(
                "split_network",
                "top's output",
                tuple(z.shape),
                z.shape == (len(y), 1),
                "(n, 1)",
                "nn.Linear(8, 1)",
            )
            loss = F.binary_cross_entropy_with_logits(z[:, 0], y)
            mine = [*own["label"], *own["top"]]
            *grads, G = torch.autograd.grad(loss, [*mine, sent])
            back = protect(G, t) if protect else G  # and back
            theirs = torch.autograd.grad(h, own["other"], back)
        with torch.no_grad():
            for p, g in zip([*mine, *own["other"]], [*grads, *theirs]):
                p.sub_(g, alpha=lr)
        theta = {k: nn.utils.parameters_to_vector(ps).detach() for k, ps in own.items()}
        yield Step(t, float(loss.detach()), sent.detach(), back, theta, _nbytes(sent, back))


def _checked(name: str, columns: Sequence[Tensor], y: Tensor, lr: float, steps: int) -> Tensor:
    """y in the columns' type."""
    shapes = [tuple(x.shape) for x in columns]
    same = all(x.dim() == 2 and len(x) == len(y) for x in columns) and y.dim() == 1 and len(y) > 0
    rule = "two tables (n, a) and (n, b) and a label (n,), a row a person"
    check(
        name,
        "the columns and y",
        [*shapes, tuple(y.shape)],
        same,
        rule,
        "align(ids_a, ids_b) first",
    )
    for side, x in zip(("x_label", "x_other"), columns):
        good = x.is_floating_point() and bool(x.isfinite().all())
        check(name, side, x.dtype, good, "finite floating-point numbers", "x.float()")
    check(
        name, "y", y.unique().tolist()[:5], bool(((y == 0) | (y == 1)).all()), "0 or 1", "(y > 0)"
    )
    positive(name, "lr", lr, 0.5)
    whole(name, "steps", steps, example=300)
    return y.to(columns[0])


def _nbytes(*tensors: Tensor) -> int:
    return sum(v.numel() * v.element_size() for v in tensors)
