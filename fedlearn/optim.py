"""Local training of K clients at once, and the server's optimisers as pure functions."""

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


def check(name: str, argument: str, value: Any, ok: bool, rule: str, example: Any) -> None:
    """Raise the ``ValueError`` of function ``name`` about one argument unless ``ok``.

    Example:
        >>> check("fedprox", "mu", -1.0, False, ">= 0 and finite", 0.1)
        Traceback (most recent call last):
        ...
        ValueError: fedprox: mu must be >= 0 and finite, got -1.0, e.g. mu=0.1
    """
    if not ok:
        raise ValueError(
            f"{name}: {argument} must be {rule}, got {value!r}, e.g. {argument}={example}"
        )


def check_local(name: str, beta: float = 0.0, mu: float = 0.0, weight_decay: float = 0.0) -> None:
    """Raise the ``ValueError`` of function ``name`` unless 0 <= beta < 1, mu, weight_decay >= 0.

    Example:
        >>> check_local("fedavg", beta=0.9, weight_decay=1e-4)
    """
    check(name, "beta", beta, 0 <= beta < 1, ">= 0 and < 1", 0.9)
    for argument, value in (("mu", mu), ("weight_decay", weight_decay)):
        check(name, argument, value, 0 <= value < math.inf, ">= 0 and finite", 0.1)


# -- the server's optimisers ----------------------------------------------------------------------


def momentum(lr: float, beta: float = 0.9) -> Optimizer:
    """Heavy-ball momentum: v <- beta v + g; theta <- theta - lr v. torch.optim.SGD's own rule.

    Args:
        lr: Learning rate, > 0.
        beta: 0 <= beta < 1; 0 is :func:`sgd`.

    Returns:
        An :class:`Optimizer`; its state is v (d,).

    Raises:
        ValueError: If ``lr`` or ``beta`` is out of range.

    Example:
        >>> opt, theta = momentum(1.0, beta=0.5), torch.zeros(1)
        >>> theta, v = opt.step(torch.tensor([1.0]), opt.init(theta), theta)
        >>> theta, v = opt.step(torch.tensor([1.0]), v, theta)
        >>> theta.item()
        -2.5
    """
    check_lr("momentum", lr)
    check_local("momentum", beta)

    def step(g: Tensor, v: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        v = beta * v + g
        return theta - lr * v, v

    return Optimizer(torch.zeros_like, step)


Second = Callable[[Tensor, Tensor], Tensor]  # v (d,), g² (d,) -> v (d,)


def _adaptive(name: str, lr: float, beta1: float, tau: float, second: Second) -> Optimizer:
    """m <- beta1 m + (1 - beta1) g; v <- second(v, g²); theta <- theta - lr m / (sqrt(v) + tau)."""
    check_lr(name, lr)
    check(name, "beta1", beta1, 0 <= beta1 < 1, ">= 0 and < 1", 0.9)
    check(name, "tau", tau, 0 < tau < math.inf, "> 0 and finite", 0.001)

    def init(theta: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(theta), torch.full_like(theta, tau**2)

    def step(g: Tensor, s: tuple[Tensor, Tensor], theta: Tensor) -> tuple[Tensor, Any]:
        m, v = beta1 * s[0] + (1 - beta1) * g, second(s[1], g * g)
        return theta - lr * m / (v.sqrt() + tau), (m, v)

    return Optimizer(init, step)


def adagrad(lr: float, beta1: float = 0.0, tau: float = 1e-3) -> Optimizer:
    """Adagrad: v <- v + g². Every number's step shrinks with all it has seen.

    m <- beta1 m + (1 - beta1) g;  theta <- theta - lr m / (sqrt(v) + tau), from m = 0, v = tau².

    Args:
        lr: Learning rate eta_s, > 0.
        beta1: 0 <= beta1 < 1, momentum; the paper's FedAdagrad has none.
        tau: > 0, adaptivity: the smaller, the more numbers with small gradients gain.

    Returns:
        An :class:`Optimizer`; its state is (m, v).

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> opt, theta = adagrad(0.1), torch.zeros(2)
        >>> opt.step(torch.tensor([1.0, 100.0]), opt.init(theta), theta)[0]  # equal steps
        tensor([-0.0999, -0.1000])

    Reference:
        Reddi et al., 2021, "Adaptive federated optimization", Algorithm 2 (FedAdagrad).
    """
    return _adaptive("adagrad", lr, beta1, tau, lambda v, gg: v + gg)


def adam(lr: float, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> Optimizer:
    """Adam as federated learning uses it: v <- beta2 v + (1 - beta2) g², no bias correction.

    m <- beta1 m + (1 - beta1) g;  theta <- theta - lr m / (sqrt(v) + tau), from m = 0, v = tau².

    Args:
        lr: Learning rate eta_s, > 0.
        beta1: 0 <= beta1 < 1, memory of m.
        beta2: 0 <= beta2 < 1, memory of v.
        tau: > 0, adaptivity.

    Returns:
        An :class:`Optimizer`; its state is (m, v).

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> opt, theta = adam(0.1, beta2=0.0), torch.zeros(1)
        >>> opt.step(torch.tensor([3.0]), opt.init(theta), theta)[0]  # 0.1 * 0.1 * 3 / 3.001
        tensor([-0.0100])

    Reference:
        Reddi et al., 2021, "Adaptive federated optimization", Algorithm 2 (FedAdam).
    """
    check("adam", "beta2", beta2, 0 <= beta2 < 1, ">= 0 and < 1", 0.99)
    return _adaptive("adam", lr, beta1, tau, lambda v, gg: beta2 * v + (1 - beta2) * gg)


def yogi(lr: float, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> Optimizer:
    """Yogi: v <- v - (1 - beta2) g² sign(v - g²): moves at the pace of g², not of v.

    m <- beta1 m + (1 - beta1) g;  theta <- theta - lr m / (sqrt(v) + tau), from m = 0, v = tau².

    Args:
        lr: Learning rate eta_s, > 0.
        beta1: 0 <= beta1 < 1, memory of m.
        beta2: 0 <= beta2 < 1, pace of v.
        tau: > 0, adaptivity.

    Returns:
        An :class:`Optimizer`; its state is (m, v).

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> opt, theta = yogi(0.1), torch.zeros(1)
        >>> _, (m, v) = opt.step(torch.tensor([3.0]), opt.init(theta), theta)
        >>> v
        tensor([0.0900])

    Reference:
        Reddi et al., 2021, "Adaptive federated optimization", Algorithm 2 (FedYogi).
    """
    check("yogi", "beta2", beta2, 0 <= beta2 < 1, ">= 0 and < 1", 0.99)
    move = lambda v, gg: v - (1 - beta2) * gg * (v - gg).sign()
    return _adaptive("yogi", lr, beta1, tau, move)


# -- the clients' descent -------------------------------------------------------------------------


def descend(
    task: Task,
    theta: Tensor,
    shards: Shards,
    lr: float,
    *,
    mu: float = 0.0,
    shift: Tensor | None = None,
    beta: float = 0.0,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Local SGD of K clients from one theta, a step a minibatch, w = theta_k.

    g = grad L_k(w; batch) + mu (w - theta) + shift + weight_decay w;  w <- w - lr g, T times.
    With momentum, v <- beta v + g from v = 0 each round, and w <- w - lr v.

    Most methods are this with a *correction*, which is affine in w: ``mu=mu`` is FedProx,
    ``shift=c - c_k`` SCAFFOLD, ``mu=alpha, shift=-h_k`` FedDyn. It costs one pass over (K, d).

    Args:
        task: What the clients minimise.
        theta: (d,) the broadcast parameters; (K, d) if every client starts elsewhere.
        shards: The round's minibatches.
        lr: Learning rate eta.
        mu: Strength of the pull towards theta.
        shift: (d,) or (K, d), added to every gradient.
        beta: Momentum; 0 for plain SGD, which is faster.
        weight_decay: Strength of the pull towards 0.

    Returns:
        ``theta_k`` (K, d); ``tau`` (K, 1), steps each client took (one without a batch left stands
        still); ``loss`` (K,), mean over those steps, without the correction.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> task = softmax_regression(2, 2)
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> one = Shards(x, y, torch.tensor([[[0, 1]]]), torch.ones(1, 1, 2), torch.tensor([2.0]))
        >>> theta_k, tau, loss = descend(task, task.theta0, one, lr=1.0)
        >>> theta_k.tolist(), tau.item()
        ([[0.25, -0.25, -0.25, 0.25, 0.0, 0.0]], 1.0)
    """
    theta_k = theta.expand(len(shards.n), -1).clone()
    taken = (shards.mask.sum(-1) > 0).to(theta.dtype)  # (K, T)
    total = torch.zeros(len(theta_k), dtype=theta.dtype, device=theta.device)
    pull, target = mu + weight_decay, None  # the correction is  pull w - target
    if mu or shift is not None:
        target = mu * theta - (0.0 if shift is None else shift)
    if task.step and not beta and abs(1 - lr * pull) > 0.01:
        step = _in_place(task, lr, pull, target)
    else:
        step = _with_gradient(task, lr, pull, target, beta)
    for t, batch in enumerate(shards.batches()):
        total += step(theta_k, batch, taken[:, t, None])
    tau = taken.sum(1, keepdim=True)
    return theta_k, tau, total / tau[:, 0].clamp(min=1)


Step = Callable[[Tensor, tuple[Tensor, Tensor, Tensor], Tensor], Tensor]  # w, batch, live -> loss


def _in_place(task: Task, lr: float, pull: float, target: Tensor | None) -> Step:
    """w <- a (w - lr/a g) + lr target, a = 1 - lr pull: one pass behind the fused step."""
    a, push = 1 - lr * pull, None if target is None else lr * target
    assert task.step
    move = task.step

    def step(w: Tensor, batch: tuple[Tensor, Tensor, Tensor], live: Tensor) -> Tensor:
        loss = move(w, *batch, lr / a)
        if push is not None and bool(live.all()):
            torch.add(push, w, alpha=a, out=w)
        elif pull or push is not None:  # a client that has no batch left stands still
            w.mul_(1 - lr * pull * live)
            if push is not None:
                w.addcmul_(push.expand_as(w), live)
        return loss

    return step


def _with_gradient(task: Task, lr: float, pull: float, target: Tensor | None, beta: float) -> Step:
    """The same with g stored: for momentum, for a task with a gradient alone, and for a near 0."""
    v: Tensor | None = None

    def step(w: Tensor, batch: tuple[Tensor, Tensor, Tensor], live: Tensor) -> Tensor:
        nonlocal v
        g, loss = task.grad(w, *batch)
        if pull:
            g = g + pull * live * w
        if target is not None:
            g = g - live * target
        if beta:
            v = g if v is None else v * (1 + (beta - 1) * live) + g
            g = live * v
        w.sub_(g, alpha=lr)
        return loss

    return step
