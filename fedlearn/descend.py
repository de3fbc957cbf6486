"""Local training of K clients at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from .batches import Shards
from .task import Task, wide

Grad = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # as Task.grad


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
    grad: Grad | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Local SGD of K clients from one theta, a step a minibatch, w = theta_k.

    g = grad L_k(w; batch) + mu (w - theta) + shift + weight_decay w;  w <- w - lr g, T times.
    With momentum, v <- beta v + g from v = 0 each round, and w <- w - lr v.

    Most methods are this with a *correction*, which is affine in w: ``mu=mu`` is FedProx,
    ``shift=c - c_k`` SCAFFOLD, ``mu=alpha, shift=-h_k`` FedDyn. It costs one pass over (K, d).
    What is no such correction takes the gradient's place: ``grad``, as in FedSAM and MOON.

    Args:
        task: What the clients minimise.
        theta: (d,) the broadcast parameters; (K, d) if every client starts elsewhere.
        shards: The round's minibatches.
        lr: Learning rate eta.
        mu: Strength of the pull towards theta.
        shift: (d,) or (K, d), added to every gradient.
        beta: Momentum; 0 for plain SGD, which is faster.
        weight_decay: Strength of the pull towards 0.
        grad: Taken for grad L_k: w (K, d), x, y, mask -> gradients (K, d), objectives (K,), as
            ``task.grad``, which is meant by None. Clients run under ``torch.no_grad``: what is
            differentiated in it stands in a ``with torch.enable_grad():``.

    Returns ``theta_k`` (K, d); ``tau`` (K, 1), steps each client took (one without a batch left
    stands still); ``loss`` (K,), mean over those steps, without the correction.

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
    w = theta.expand(len(shards.n), -1).clone()
    taken = wide((shards.mask.sum(-1) > 0).to(theta.dtype))  # (K, T)
    total = torch.zeros(len(w), dtype=taken.dtype, device=theta.device)
    pull, target = mu + weight_decay, None  # the correction is  pull w - target
    if mu or shift is not None:
        target = mu * theta - (0.0 if shift is None else shift)
    a, v = 1 - lr * pull, None
    in_place = task.step if grad is None and not beta and abs(a) > 0.01 else None
    push = lr * target if in_place and target is not None else None

    for t, batch in enumerate(shards.batches()):
        if in_place:  # w <- a (w - lr/a g) + lr target: one pass behind the fused step
            total += in_place(w, *batch, lr / a)
            if a == 1 and push is None:
                continue
        live = taken[:, t, None]  # (K, 1), 0 for a client that has no batch left: it stands still
        if push is not None and bool(live.all()):
            torch.add(push, w, alpha=a, out=w)
        elif in_place:
            w.mul_(1 - lr * pull * live)
            if push is not None:
                w.addcmul_(push.expand_as(w), live)
        else:  # the same with g stored: momentum, a gradient alone, a near 0
            g, loss = (grad or task.grad)(w, *batch)
            total += loss
            if pull:
                g = g + pull * live * w
            if target is not None:
                g = g - live * target
            if beta:
                v = g if v is None else v * (1 + (beta - 1) * live) + g
                g = live * v
            w.sub_(g, alpha=lr)
    tau = taken.sum(1, keepdim=True)
    return w, tau, total / tau[:, 0].clamp(min=1)
