"""The gradients of K clients: all in one pass, or one client after the other.

Both take scores (layers, x) -> (B, ...), losses -> (B,), and hand receive(rows, layers, gradients)
what belongs to these rows of theta; they return the objectives (K,).
"""

import torch
from torch import Tensor
from torch.func import vmap

from ..task import views


def stack(scores, losses, shapes, theta, x, y, mask, receive) -> Tensor:  # type: ignore[no-untyped-def]
    """All clients in one forward and one backward pass."""
    w = mask / mask.sum(-1, keepdim=True).clamp(min=1)
    with torch.enable_grad():
        layers = [v.detach().requires_grad_() for v in views(theta, shapes)]
        z = vmap(lambda own, xk: scores(own, xk))(layers, x)
        each = losses(z.flatten(0, 1), y.flatten(0, 1)).unflatten(0, y.shape[:2])
        objective = (each * w).sum(-1)
        grads = torch.autograd.grad(objective.sum(), layers, materialize_grads=True)
    with torch.no_grad():
        receive(slice(None), [v.detach() for v in layers], grads)
    return objective.detach()


def sequential(scores, losses, shapes, theta, x, y, mask, receive) -> Tensor:  # type: ignore[no-untyped-def]
    """One client after the other; each layer is a view of its row of theta: nothing is copied."""
    objectives = torch.zeros(len(theta), dtype=theta.dtype, device=theta.device)
    full = bool(mask.all())  # no padding anywhere: nothing to pick
    for k in range(len(theta)):
        xk, yk = (x[k], y[k]) if full else (x[k][mask[k] > 0], y[k][mask[k] > 0])
        if not len(yk):
            continue
        with torch.enable_grad():
            layers = [v.detach().requires_grad_() for v in views(theta[k], shapes)]
            objective = losses(scores(layers, xk), yk).mean()
            grads = torch.autograd.grad(objective, layers, materialize_grads=True)
        with torch.no_grad():
            dense = [g.to_dense() if g.is_sparse else g for g in grads]
            receive(k, [v.detach() for v in layers], dense)
        objectives[k] = objective.detach()
    return objectives
