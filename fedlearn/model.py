"""The models of the course, with their gradients in closed form, and their evaluation.

A model is a function of one parameter vector, f(theta, x) with theta in R^d: see :class:`Task`.
:func:`from_module` makes one of any ``nn.Module``, :func:`to_module` gives it back.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import is_whole
from .data import check_labels
from .diagnostics.evaluation import evaluator
from .module import from_module, to_module, without_batch_norm
from .rng import Use, numpy_rng
from .task import Loss, Task, binary_cross_entropy, cross_entropy, squared_error, views, wide

__all__ = [
    "Loss", "Task", "binary_cross_entropy", "check_labels", "cross_entropy", "evaluator",
    "from_module", "mlp", "softmax_regression", "squared_error", "to_module", "views",
    "without_batch_norm",
]  # fmt: skip
_SMALL = 1000  # numbers of a layer up to which its gradient is stored: a call a client costs more


def softmax_regression(n_in: int, n_classes: int) -> Task:
    """Softmax (multinomial logistic) regression from theta = 0: scores W x + b.

    With p = softmax(W x + b): dL/dW = (p - onehot(y)) xᵀ and dL/db = p - onehot(y), averaged over
    the batch. Convex, so there is one best theta to compare with. theta holds
    d = n_classes * n_in + n_classes numbers, W by rows, then b. ValueError if a size is not an
    integer >= 1. Derived in lesson 2.

    Example:
        >>> softmax_regression(784, 10).theta0.numel()
        7850
    """
    _sizes("softmax_regression", "two sizes", (n_in, n_classes), "softmax_regression(64, 10)")
    task = mlp(n_in, n_classes)
    return task._replace(theta0=torch.zeros_like(task.theta0))


def mlp(*dims: int, seed: int = 0) -> Task:
    """Fully connected ReLU network with softmax cross-entropy and its closed-form gradient.

    Backpropagation written out: with delta_L = (softmax(z_L) - onehot(y)) / n,
    dL/dW_l = delta_lᵀ h_{l-1},
    dL/db_l = sum of delta_l,  delta_{l-1} = (delta_l W_l) * [h_{l-1} > 0].

    Args:
        *dims: Sizes of the layers, inputs first: ``mlp(784, 200, 200, 10)`` is McMahan's 2NN.
            ValueError if there are fewer than two, or one is not an integer >= 1.
        seed: Of the initial parameters, uniform in ±1/√(inputs of the layer), PyTorch's own rule.

    Example:
        >>> mlp(784, 200, 200, 10).theta0.numel()
        199210
    """
    _sizes("mlp", "two or more sizes", dims, "mlp(64, 32, 10)")
    shapes = [s for i, o in itertools.pairwise(dims) for s in ((o, i), (o,))]
    last = len(dims) - 2

    def forward(layers: list[Tensor], x: Tensor) -> list[Tensor]:
        hs = [x]
        for i in range(last + 1):
            W, b = layers[2 * i], layers[2 * i + 1]
            many = W.dim() == 3  # K clients at once
            z = torch.baddbmm(b.unsqueeze(-2), hs[-1], W.mT) if many else F.linear(hs[-1], W, b)
            hs.append(z.relu_() if i < last else z)
        return hs

    def backward(layers, x, y, mask, receive):  # type: ignore[no-untyped-def]
        """Hands receive(i, delta_i, h_{i-1}) each layer's factors of the gradient, last first."""
        layers = [wide(v) for v in layers]  # half precision keeps numbers and adds none
        *hs, scores = forward(layers, wide(x.flatten(2)))
        target = y.unsqueeze(-1)
        w = (mask / mask.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(-1)  # 1/n_k or 0
        scores -= scores.amax(-1, keepdim=True)  # softmax by hand: four times faster at C = 10
        right = scores.gather(-1, target)
        odds = scores.exp_()
        total = odds.sum(-1, keepdim=True)
        objective = ((total.log() - right) * w).sum((-2, -1))
        delta = odds.mul_(w / total).scatter_add_(-1, target, -w)  # (softmax - onehot) / n
        for i in range(last, -1, -1):
            below = torch.bmm(delta, layers[2 * i]).mul_(hs[i] > 0) if i else delta
            receive(i, delta, hs[i])
            delta = below
        return objective

    def grad(theta: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        g = torch.empty(theta.shape, dtype=theta.dtype, device=theta.device)
        out = views(g, shapes)

        def store(i: int, delta: Tensor, h: Tensor) -> None:
            out[2 * i].copy_(delta.mT @ h)
            out[2 * i + 1].copy_(delta.sum(-2))

        return g, backward(views(theta, shapes), x, y, mask, store)

    def step(theta: Tensor, x: Tensor, y: Tensor, mask: Tensor, lr: float) -> Tensor:
        layers = views(theta, shapes)

        def apply(i: int, delta: Tensor, h: Tensor) -> None:
            if theta.dtype == delta.dtype and delta.shape[-1] * h.shape[-1] > _SMALL:
                layers[2 * i].baddbmm_(delta.mT, h, alpha=-lr)
            else:
                layers[2 * i].sub_(torch.bmm(delta.mT, h), alpha=lr)
            layers[2 * i + 1].sub_(delta.sum(-2), alpha=lr)

        return backward(layers, x, y, mask, apply)

    def predict(theta: Tensor, x: Tensor) -> Tensor:
        return forward([wide(v) for v in views(theta, shapes)], wide(x.flatten(1)))[-1]

    return Task(_uniform(shapes, seed), predict, cross_entropy, grad, step)


def _sizes(name: str, how_many: str, dims: tuple[int, ...], example: str) -> None:
    if len(dims) < 2 or not all(map(is_whole, dims)):
        raise ValueError(f"{name}: needs {how_many} >= 1, got {dims}, e.g. {example}")


def _uniform(shapes: Sequence[tuple[int, ...]], seed: int) -> Tensor:
    """PyTorch's rule for nn.Linear, drawn from (seed, layer): W, b ~ U(±1/sqrt(fan-in))."""
    draws = [
        numpy_rng(seed, Use.INIT, i).uniform(-1, 1, np.prod(shape)) / shapes[i - i % 2][1] ** 0.5
        for i, shape in enumerate(shapes)  # a bias takes the fan-in of its W
    ]
    return torch.from_numpy(np.concatenate(draws).astype(np.float32))
