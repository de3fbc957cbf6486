"""Any ``nn.Module`` as a task, its gradient by autograd."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .data import check_module
from .task import Loss, Task, cross_entropy, views

_STACK_MAX = 30_000  # parameters; above this, stacking loses to one client after the other


def from_module(
    module: nn.Module, loss: Loss = cross_entropy, *, stacked: bool | None = None
) -> Task:
    """Any ``nn.Module`` as a :class:`Task`, its gradient by autograd.

    ValueError, with the layer and a fix, if the module keeps batch statistics or draws random
    numbers (BatchNorm, Dropout in training mode), has nothing to train, or, with ``stacked=True``,
    holds layers that ``vmap`` can't take (recurrent ones).

    Args:
        module: Maps x (B, ...) to scores (B, C). Its parameters that require a gradient become
            theta, in the order of ``module.named_parameters()``; the module itself isn't changed.
        loss: Loss of every example, :func:`cross_entropy` or :func:`squared_error`, say.
        stacked: True: all K clients in one pass (``vmap`` forward, ordinary backward). False: one
            client after the other. None: stacked for small models without convolutions, where it is
            faster.

    Example:
        >>> task = from_module(nn.Linear(784, 10))
        >>> task.theta0.numel(), task.predict(task.theta0, torch.zeros(2, 784)).shape
        (7850, torch.Size([2, 10]))
    """
    named = {k: p.detach().clone() for k, p in module.named_parameters() if p.requires_grad}
    fixed = {k: p.detach() for k, p in module.named_parameters() if not p.requires_grad}
    fixed |= dict(module.named_buffers())
    check_module("from_module", module, stacked)
    shapes = [tuple(p.shape) for p in named.values()]
    theta0 = torch.cat([p.reshape(-1) for p in named.values()])

    def scores(layers: Sequence[Tensor], x: Tensor) -> Tensor:
        rest = {k: v.to(x.device) for k, v in fixed.items()}
        return functional_call(module, {**dict(zip(named, layers)), **rest}, (x,))

    if stacked is None:
        slow = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)
        small = theta0.numel() <= _STACK_MAX
        stacked = small and not any(isinstance(m, slow) for m in module.modules())
    backward = partial(_stacked if stacked else _sequential, scores, loss, shapes)

    def grad(theta: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        g = torch.zeros(theta.shape, dtype=theta.dtype, device=theta.device)

        def store(rows, layers, grads):  # type: ignore[no-untyped-def]
            for out, part in zip(views(g[rows], shapes), grads, strict=True):
                out.copy_(part)

        return g, backward(theta, x, y, mask, store)

    def step(theta: Tensor, x: Tensor, y: Tensor, mask: Tensor, lr: float) -> Tensor:
        def apply(rows, layers, grads):  # type: ignore[no-untyped-def]
            torch._foreach_add_(layers, grads, alpha=-lr)  # views: theta moves

        return backward(theta, x, y, mask, apply)

    predict = lambda theta, x: scores(views(theta, shapes), x)
    return Task(theta0, predict, loss, grad, step)


def _stacked(scores, loss, shapes, theta, x, y, mask, receive):  # type: ignore[no-untyped-def]
    """All clients in one forward and one backward pass."""
    w = mask / mask.sum(-1, keepdim=True).clamp(min=1)
    with torch.enable_grad():
        layers = [v.detach().requires_grad_() for v in views(theta, shapes)]
        try:
            z = vmap(lambda own, xk: scores(own, xk))(layers, x)
        except RuntimeError as e:
            raise ValueError(
                f"from_module: vmap can't run this module for K clients at once "
                f"({str(e).splitlines()[0]}); use from_module(module, stacked=False)"
            ) from e
        objective = (vmap(loss)(z, y) * w).sum(-1)
        grads = torch.autograd.grad(objective.sum(), layers, materialize_grads=True)
    with torch.no_grad():
        receive(slice(None), [v.detach() for v in layers], grads)
    return objective.detach()


def _sequential(scores, loss, shapes, theta, x, y, mask, receive):  # type: ignore[no-untyped-def]
    """One client after the other; each layer is a view of its row of theta: nothing is copied."""
    objectives = torch.zeros(len(theta), dtype=theta.dtype, device=theta.device)
    full = bool(mask.all())  # no padding anywhere: nothing to pick
    for k in range(len(theta)):
        xk, yk = (x[k], y[k]) if full else (x[k][mask[k] > 0], y[k][mask[k] > 0])
        if not len(yk):
            continue
        with torch.enable_grad():
            layers = [v.detach().requires_grad_() for v in views(theta[k], shapes)]
            objective = loss(scores(layers, xk), yk).mean()
            grads = torch.autograd.grad(objective, layers, materialize_grads=True)
        with torch.no_grad():
            receive(k, [v.detach() for v in layers], grads)
        objectives[k] = objective.detach()
    return objectives
