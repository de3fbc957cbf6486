"""Local training, and optimisers as pure functions on vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .data import Shards
from .model import Task


class Optimizer(NamedTuple):
    """An optimiser without hidden state.

    Attributes:
        init: theta (d,) -> state.
        step: (gradient (d,), state, theta (d,)) -> (theta (d,), state).
    """

    init: Callable[[Tensor], Any]
    step: Callable[[Tensor, Any, Tensor], tuple[Tensor, Any]]


def sgd(lr: float) -> Optimizer:
    """Gradient descent: theta <- theta - lr * g.

    Args:
        lr: Learning rate, > 0.

    Returns:
        An :class:`Optimizer`.

    Raises:
        ValueError: If ``lr`` is not > 0 and finite.

    Example:
        >>> opt = sgd(0.5)
        >>> opt.step(torch.tensor([2.0]), opt.init(torch.zeros(1)), torch.zeros(1))[0]
        tensor([-1.])
    """
    check_lr("sgd", lr)
    return Optimizer(lambda theta: (), lambda g, s, theta: (theta - lr * g, s))


def check_lr(name: str, lr: float, argument: str = "lr") -> None:
    """Raise the ``ValueError`` of function ``name`` unless the learning rate is > 0 and finite.

    Example:
        >>> check_lr("fedavg", float("nan"))
        Traceback (most recent call last):
        ...
        ValueError: fedavg: lr must be > 0 and finite, got nan, e.g. lr=0.1
    """
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(
            f"{name}: {argument} must be > 0 and finite, got {lr}, e.g. {argument}=0.1"
        )


def descend(
    task: Task,
    theta: Tensor,
    shards: Shards,
    lr: float,
    correction: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Local SGD of K clients from one theta, a step a minibatch.

    theta_k <- theta_k - lr * (grad L_k(theta_k; batch) + correction(theta_k)), T times.

    Args:
        task: What the clients minimise.
        theta: (d,) the broadcast parameters.
        shards: The round's minibatches.
        lr: Learning rate eta.
        correction: (K, d) -> (K, d), added to the gradient: ``lambda w: mu * (w - theta)`` is
            FedProx, ``lambda w: c - c_k`` SCAFFOLD.

    Returns:
        ``theta_k`` (K, d); ``tau`` (K, 1), steps each client took (one without a batch left stands
        still); ``loss`` (K,), mean over those steps.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> task = softmax_regression(2, 2)
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> one = Shards(x, y, torch.tensor([[[0, 1]]]), torch.ones(1, 1, 2), torch.tensor([2.0]))
        >>> theta_k, tau, loss = descend(task, task.theta0, one, lr=1.0)
        >>> theta_k.tolist(), tau.item()
        ([[0.25, -0.25, -0.25, 0.25, 0.0, 0.0]], 1.0)
    """
    K, device = len(shards.n), theta.device
    theta_k = theta.expand(K, -1).clone()
    taken = (shards.mask.sum(-1) > 0).to(theta.dtype)  # (K, T)
    total = torch.zeros(K, dtype=theta.dtype, device=device)
    for t, (x, y, mask) in enumerate(shards.batches()):
        push = correction(theta_k) * taken[:, t, None] if correction else None
        if task.step:
            loss = task.step(theta_k, x, y, mask, lr)
        else:
            g, loss = task.grad(theta_k, x, y, mask)
            theta_k.sub_(g, alpha=lr)
        if push is not None:
            theta_k.sub_(push, alpha=lr)
        total += loss
    tau = taken.sum(1, keepdim=True)
    return theta_k, tau, total / tau[:, 0].clamp(min=1)
