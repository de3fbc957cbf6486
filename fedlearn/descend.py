"""Local training of K clients at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from .batches import Shards
from .task import Task


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
    lr, mu, beta, weight_decay = map(float, (lr, mu, beta, weight_decay))  # not NumPy's 32 bits
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
