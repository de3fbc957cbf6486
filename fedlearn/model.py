"""A model as a function of one parameter vector: f(theta, x), theta in R^d.

Every gradient here is taken for K clients at once. Client k has its own parameters, so ``theta`` is
a (K, d) matrix and every batch carries a leading K: the mathematics of one client, written once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .rng import Use, numpy_rng

Loss = Callable[[Tensor, Tensor], Tensor]  # scores (B, C), y (B,) -> losses (B,)


class Task(NamedTuple):
    """What each client minimises: L_k(theta) = mean over its examples of loss(f(theta, x), y).

    Attributes:
        theta0: (d,) initial parameters.
        predict: (d,), x (B, ...) -> scores (B, C).
        loss: scores (B, C), y (B,) -> losses (B,).
        grad: theta (K, d), x (K, B, ...), y (K, B), mask (K, B)
            -> gradients (K, d), objectives (K,).
        step: as grad, and lr: moves theta (K, d) by -lr * gradient in place -> objectives (K,). No
            gradient is stored. None: :func:`fedlearn.optim.descend` uses ``grad``.

    ``mask`` is 1 for an example and 0 for padding; a row of zeros has gradient 0.
    """

    theta0: Tensor
    predict: Callable[[Tensor, Tensor], Tensor]
    loss: Loss
    grad: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    step: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor] | None = None


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """-log softmax(scores)_y of every example.

    Args:
        scores: (B, C).
        y: (B,) classes 0..C-1.

    Returns:
        (B,) losses, in nats.

    Example:
        >>> cross_entropy(torch.zeros(1, 10), torch.tensor([3]))
        tensor([2.3026])
    """
    return F.cross_entropy(scores, y, reduction="none")


def squared_error(scores: Tensor, y: Tensor) -> Tensor:
    """(score - y)² / 2 of every example; its gradient in the score is the residual.

    Args:
        scores: (B, 1).
        y: (B,) targets.

    Returns:
        (B,) losses.

    Example:
        >>> squared_error(torch.tensor([[3.0]]), torch.tensor([1.0]))
        tensor([2.])
    """
    return 0.5 * (scores.squeeze(-1) - y) ** 2


def softmax_regression(n_in: int, n_classes: int) -> Task:
    """Softmax (multinomial logistic) regression from theta = 0: scores W x + b.

    With p = softmax(W x + b): dL/dW = (p - onehot(y)) xᵀ and dL/db = p - onehot(y), averaged over
    the batch. Convex, so there is one best theta to compare with. Derived in lesson 2.

    Args:
        n_in: Features.
        n_classes: C.

    Returns:
        A :class:`Task` with d = C * n_in + C parameters: W by rows, then b.

    Raises:
        ValueError: If a size is not an integer >= 1.

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
        seed: Of the initial parameters, uniform in ±1/√(inputs of the layer), PyTorch's own rule.

    Returns:
        A :class:`Task`.

    Raises:
        ValueError: If there are fewer than two sizes, or one is not an integer >= 1.

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
            if W.dim() == 3:
                z = torch.baddbmm(b.unsqueeze(-2), hs[-1], W.mT)
            else:
                z = F.linear(hs[-1], W, b)
            hs.append(z.relu_() if i < last else z)
        return hs

    def backward(layers, x, y, mask, receive):  # type: ignore[no-untyped-def]
        """Hands receive(i, delta_i, h_{i-1}) each layer's factors of the gradient, last first."""
        *hs, scores = forward(layers, x.flatten(2))
        target = y.unsqueeze(-1)
        w = (mask / mask.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(-1)  # 1/n_k or 0
        scores -= scores.amax(-1, keepdim=True)  # softmax by hand: four times faster at C = 10
        right = scores.gather(-1, target)
        odds = scores.exp_()
        total = odds.sum(-1, keepdim=True)
        objective = ((total.log() - right) * w).sum((-2, -1))
        delta = odds.mul_(w / total).scatter_add_(-1, target, -w)  # (softmax - onehot) / n
        for i in range(last, -1, -1):
            below = (delta @ layers[2 * i]).mul_(hs[i] > 0) if i else delta
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
            layers[2 * i].baddbmm_(delta.mT, h, alpha=-lr)
            layers[2 * i + 1].sub_(delta.sum(-2), alpha=lr)

        return backward(layers, x, y, mask, apply)

    def predict(theta: Tensor, x: Tensor) -> Tensor:
        return forward(views(theta, shapes), x.flatten(1))[-1]

    return Task(_uniform(shapes, seed), predict, cross_entropy, grad, step)


def views(theta: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The layers inside theta (..., d), sharing its memory: change one and theta changes.

    Args:
        theta: (..., d).
        shapes: Shape of every layer, in order; their sizes sum to d.

    Returns:
        One view (..., *shape) a layer.

    Example:
        >>> theta = torch.arange(6.0)
        >>> W, b = views(theta, [(2, 2), (2,)])
        >>> b.zero_(); theta
        tensor([0., 0.])
        tensor([0., 1., 2., 3., 0., 0.])
    """
    sizes = [torch.Size(s).numel() for s in shapes]
    return [v.unflatten(-1, s) for v, s in zip(theta.split(sizes, dim=-1), shapes, strict=True)]


def _sizes(name: str, how_many: str, dims: tuple[int, ...], example: str) -> None:
    if len(dims) < 2 or any(not isinstance(n, (int, np.integer)) or n < 1 for n in dims):
        raise ValueError(f"{name}: needs {how_many} >= 1, got {dims}, e.g. {example}")


def _uniform(shapes: Sequence[tuple[int, ...]], seed: int) -> Tensor:
    """PyTorch's rule for nn.Linear, drawn from (seed, layer): W, b ~ U(±1/sqrt(fan-in))."""
    draws = [
        numpy_rng(seed, Use.INIT, i).uniform(-1, 1, np.prod(shape)) / shapes[i - i % 2][1] ** 0.5
        for i, shape in enumerate(shapes)  # a bias takes the fan-in of its W
    ]
    return torch.from_numpy(np.concatenate(draws).astype(np.float32))


# -- any module -----------------------------------------------------------------------------------

_STACK_MAX = 30_000  # parameters; above this, stacking loses to one client after the other


def from_module(
    module: nn.Module, loss: Loss = cross_entropy, *, stacked: bool | None = None
) -> Task:
    """Any ``nn.Module`` as a :class:`Task`, its gradient by autograd.

    Args:
        module: Maps x (B, ...) to scores (B, C). Its parameters that require a gradient become
            theta, in the order of ``module.named_parameters()``; the module itself isn't changed.
        loss: Loss of every example, :func:`cross_entropy` or :func:`squared_error`, say.
        stacked: True: all K clients in one pass (``vmap`` forward, ordinary backward). False: one
            client after the other. None: stacked for small models without convolutions, where it is
            faster.

    Returns:
        A :class:`Task`.

    Raises:
        ValueError: If the module keeps batch statistics or draws random numbers (BatchNorm,
            Dropout in training mode), has nothing to train, or, with ``stacked=True``, holds layers
            that ``vmap`` can't take (recurrent ones). The message names the layer and a fix.

    Example:
        >>> task = from_module(nn.Linear(784, 10))
        >>> task.theta0.numel(), task.predict(task.theta0, torch.zeros(2, 784)).shape
        (7850, torch.Size([2, 10]))
    """
    named = {k: p.detach().clone() for k, p in module.named_parameters() if p.requires_grad}
    fixed = {k: p.detach() for k, p in module.named_parameters() if not p.requires_grad}
    fixed |= dict(module.named_buffers())
    _refuse(module, named, stacked)
    shapes = [tuple(p.shape) for p in named.values()]
    theta0 = torch.cat([p.reshape(-1) for p in named.values()])

    def scores(layers: Sequence[Tensor], x: Tensor) -> Tensor:
        own = dict(zip(named, layers, strict=True))
        rest = {k: v.to(x.device) for k, v in fixed.items()}
        return functional_call(module, {**own, **rest}, (x,))

    def predict(theta: Tensor, x: Tensor) -> Tensor:
        return scores(views(theta, shapes), x)

    if stacked is None:
        stacked = theta0.numel() <= _STACK_MAX and not any(
            isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)) for m in module.modules()
        )
    backward = _stacked(scores, loss) if stacked else _sequential(scores, loss)

    def grad(theta: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        g = torch.zeros(theta.shape, dtype=theta.dtype, device=theta.device)

        def store(rows, layers, grads):  # type: ignore[no-untyped-def]
            for out, part in zip(views(g[rows], shapes), grads, strict=True):
                out.copy_(part)

        return g, backward(theta, shapes, x, y, mask, store)

    def step(theta: Tensor, x: Tensor, y: Tensor, mask: Tensor, lr: float) -> Tensor:
        def apply(rows, layers, grads):  # type: ignore[no-untyped-def]
            torch._foreach_add_(layers, grads, alpha=-lr)  # views: theta moves

        return backward(theta, shapes, x, y, mask, apply)

    return Task(theta0, predict, loss, grad, step)


def _stacked(scores, loss):  # type: ignore[no-untyped-def]
    """All clients in one forward and one backward pass."""

    def backward(theta, shapes, x, y, mask, receive):  # type: ignore[no-untyped-def]
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

    return backward


def _sequential(scores, loss):  # type: ignore[no-untyped-def]
    """One client after the other; each layer is a view of its row of theta: nothing is copied."""

    def backward(theta, shapes, x, y, mask, receive):  # type: ignore[no-untyped-def]
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

    return backward


def _refuse(module: nn.Module, named: dict[str, Tensor], stacked: bool | None) -> None:
    """Say early, by name and with a fix, what can't be trained federatedly."""
    if not named:
        raise ValueError(
            "from_module: no parameter of the module requires a gradient, e.g. nn.Linear(64, 10)"
        )
    for name, m in module.named_modules():
        at = f"layer {name or 'itself'} ({type(m).__name__})"
        norm = isinstance(m, nn.modules.batchnorm._NormBase)
        whole_batch = isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.track_running_stats
        if norm and (whole_batch or (m.training and m.track_running_stats)):
            raise ValueError(
                f"from_module: {at} keeps batch statistics, which belong to no client's theta and "
                f"would mix clients; use nn.GroupNorm(min(32, C), C) instead (Hsieh et al., 2020)"
            )
        if isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0:
            raise ValueError(
                f"from_module: {at} draws from the global generator, so no run could be repeated; "
                f"leave it out, or call module.eval() first"
            )
        if stacked and isinstance(m, nn.RNNBase):
            raise ValueError(
                f"from_module: {at} can't be run by vmap for K clients at once; "
                f"use from_module(module, stacked=False)"
            )


# -- evaluation -----------------------------------------------------------------------------------


def evaluator(task: Task, x: Tensor, y: Tensor) -> Callable[[Tensor], dict[str, float]]:
    """A function of theta alone: mean loss and accuracy on x, y. Give it to ``federate``.

    Args:
        task: The model and its loss.
        x: (m, ...).
        y: (m,) classes, or real targets (then there is no accuracy).

    Returns:
        theta (d,) -> {"loss": mean loss, "accuracy": share of examples classified right, 0 to 1}.

    Raises:
        ValueError: If there is no example, or a class lies outside the model's.

    Example:
        >>> task = softmax_regression(2, 3)
        >>> evaluator(task, torch.zeros(4, 2), torch.tensor([0, 0, 1, 2]))(task.theta0)
        {'loss': 1.098612..., 'accuracy': 0.5}
    """
    if not len(y):
        raise ValueError("evaluator: needs at least one example, got none, e.g. data.x_test")
    if len(x) != len(y):
        raise ValueError(
            f"evaluator: x and y must have one row an example, got {len(x)} and {len(y)}, "
            f"e.g. data.x_test and data.y_test"
        )
    classes = not y.is_floating_point()
    if classes:
        check_labels("evaluator", y, task.predict(task.theta0, x[:1].cpu()).shape[-1])

    @torch.no_grad()
    def evaluate(theta: Tensor) -> dict[str, float]:
        scores = torch.cat([task.predict(theta, part.to(theta.device)) for part in x.split(10_000)])
        y_ = y.to(theta.device)
        out = {"loss": task.loss(scores, y_).mean().item()}
        if classes:
            out["accuracy"] = int((scores.argmax(-1) == y_).sum()) / len(y_)  # 342/360 is 0.95
        return out

    return evaluate


def check_labels(name: str, y: Tensor, classes: int) -> None:
    """Raise the ``ValueError`` of function ``name`` if a label is outside 0..classes-1.

    Example:
        >>> check_labels("load", torch.tensor([0, 7]), 5)
        Traceback (most recent call last):
        ...
        ValueError: load: labels must be 0..4 for a model with 5 scores, got 0..7, ...
    """
    if y.is_floating_point():
        raise ValueError(
            f"{name}: a classifier needs integer classes, got {y.dtype}, e.g. y.long(); to predict "
            f"numbers use from_module(module, squared_error)"
        )
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name}: labels must be 0..{classes - 1} for a model with {classes} scores, got "
            f"{low}..{high}, e.g. softmax_regression(64, {high + 1})"
        )
