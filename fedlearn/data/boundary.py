"""The boundary at which a user's examples come in: one check for all that take x and y.

What can be converted without a doubt is: NumPy arrays, DataFrames, any width of integers, y of
shape (n, 1). The rest is refused, in one sentence with the cure. Which x and y are right is decided
by the model, which must take x, and by the loss, which must give one number an example.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..partition.base import names_of, rows
from ..task import Task, binary_cross_entropy, cross_entropy, squared_error
from .arrays import check_finite, tensor

_WIDE = (torch.int32, torch.int64)  # what tokens come in, and counts; a picture's bytes do not


class Population(NamedTuple):
    """What :func:`check_population` returns.

    Attributes:
        x: (n, ...) in a type that the model takes.
        y: (n, ...) in a type that the loss takes.
        parts: N index arrays, int64.
        names: What the clients are called, or None.
    """

    x: Tensor
    y: Tensor
    parts: list[np.ndarray]
    names: tuple[str, ...] | None


def check_population(
    name: str,
    task: Task | None,
    x: Any,
    y: Any,
    parts: Any,
    theta: Tensor | None = None,
    *,
    empty: bool = False,
) -> Population:
    """The examples and who holds them; the ``ValueError`` of ``name`` for what can't be right.

    Args:
        name: Of the function that was given them.
        task: What is minimised; None, or without ``predict``, if only the gradient is known.
        x, y: As for :func:`fit`.
        parts: Rows of every client, as for ``Simulated``.
        theta: (d,) parameters, whose type x and y will have; None for ``task.theta0``.
        empty: Whether a client may have no example.

    Example:
        >>> check_population("Simulated", None, torch.ones(3, 2), torch.ones(3), [np.array([3])])
        Traceback (most recent call last):
        ...
        ValueError: Simulated: every client needs rows from 0..2, got 3..3 for client 0; ...
    """
    x, y = fit(name, task, x, y, theta)
    return Population(x, y, rows(name, parts, len(y), empty=empty), names_of(parts))


def fit(
    name: str, task: Task | None, x: Any, y: Any, theta: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x and y as tensors that the model and its loss take; the ``ValueError`` of ``name`` if none.

    Integers stay integers where the model takes them (tokens), else they become real numbers of
    the same values. Real numbers keep their precision: who computes gives them theta's.

    Args:
        name: Of the function that was given them.
        task: As for :func:`check_population`.
        x: (n, ...) examples: a tensor, an array, a DataFrame, nested lists.
        y: (n, ...) what the loss compares with the scores.
        theta: (d,), or (N, d), parameters; None for ``task.theta0``.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> pictures, labels = np.zeros((2, 8, 8), np.uint8), np.array([3, 7], np.int32)
        >>> x, y = fit("evaluator", softmax_regression(64, 10), pictures, labels)
        >>> x.dtype, y.dtype
        (torch.float32, torch.int64)
    """
    x, y = tensor(name, "x", x), tensor(name, "y", y)
    if len(x) != len(y):
        raise ValueError(
            f"{name}: x and y must have one row an example, got {len(x)} and {len(y)}, e.g. "
            f"data.x_test and data.y_test"
        )
    if not len(x):
        raise ValueError(f"{name}: needs at least one example, got none, e.g. data.load('digits')")
    theta = task.theta0 if theta is None and task is not None else theta
    theta = theta.detach().reshape(-1, theta.shape[-1])[0] if theta is not None else None
    real = torch.get_default_dtype() if theta is None else theta.dtype
    check_finite(name, "x", x, real)
    check_finite(name, "y", y, real)
    if task is None or theta is None or task.predict is None or task.loss is None:
        return x, y  # a Task from a notebook cell may have its gradient alone
    few = _few(x, y)
    with torch.no_grad():
        x, scores = _examples(name, task, theta, x, few)
        y = _targets(name, task, scores, y, few, real)
    return x, y


def _few(x: Tensor, y: Tensor) -> Tensor:
    """Two to five rows on which to try: the first, the last, another target, the ends of tokens."""
    other = (y != y[0]).flatten(1).any(1) if y.dim() > 1 else y != y[0]
    at = [0, int(other.int().argmax()), len(y) - 1]
    if x.dtype in _WIDE and x.numel():
        whole = x.reshape(len(x), -1)
        at += [int(whole.amax(1).argmax()), int(whole.amin(1).argmin())]
    at = list(dict.fromkeys(at))
    return torch.tensor(at if len(at) > 1 else [0, 0])


def _examples(
    name: str, task: Task, theta: Tensor, x: Tensor, few: Tensor
) -> tuple[Tensor, Tensor]:
    """x as the model takes it, and scores of a few: beside theta, for at 0 all are the same."""
    own, real = x[few.to(x.device)].to(theta.device), theta.dtype
    types = (real, torch.int64)
    off = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
    near = theta + 0.1 * off.to(theta)
    said: dict[torch.dtype, Exception] = {}
    for dtype in types[::-1] if x.dtype in _WIDE else types:
        try:
            scores = task.predict(near, own.to(dtype))
        except (RuntimeError, ValueError, IndexError, TypeError) as e:
            if str(e).startswith("from_module: "):  # of the module itself, with its cure
                raise
            said[dtype] = e
            continue
        if scores.dim() == 0 or len(scores) != len(few):
            raise ValueError(
                f"{name}: the model must give scores of each example, (B, ...), got shape "
                f"{tuple(scores.shape)} for {len(few)} examples, e.g. a module that leaves the "
                f"first dimension alone"
            )
        if x.is_floating_point() and dtype == torch.int64:
            break  # it may be meant, but not every real number is a whole one
        return (x if x.is_floating_point() else x.to(dtype)), scores
    cure, why = f"softmax_regression({x[0].numel()}, 10) for these", said[real]
    if "index out of range" in str(said.get(torch.int64)):
        cure, why = f"nn.Embedding({int(x.max()) + 1}, 32), numbers >= 0", said[torch.int64]
    elif torch.int64 not in said:
        cure = "x.long(), as this model takes integers"
    elif x.dim() == 1:
        cure = "x[:, None] for one feature"
    raise ValueError(
        f"{name}: the model can't take examples of shape {tuple(x.shape[1:])} ({why}), e.g. {cure}"
    ) from why


# -- targets --------------------------------------------------------------------------------------


def _targets(
    name: str, task: Task, scores: Tensor, y: Tensor, few: Tensor, real: torch.dtype
) -> Tensor:
    whole = not y.is_floating_point()
    if task.loss is cross_entropy:
        return _classes(name, scores, y)
    if task.loss in (squared_error, binary_cross_entropy):
        return _numbers(name, task.loss, scores, y.to(real) if whole else y)
    own = y[few.to(y.device)].to(scores.device)
    said = ""
    for dtype in (torch.int64, real) if whole else (real,):
        try:
            wrong = _wrong_loss(task, scores, own.to(dtype))
        except (RuntimeError, ValueError, IndexError, TypeError) as e:
            said = said or f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            continue
        if wrong:
            raise ValueError(f"{name}: {wrong}")
        return y.to(dtype) if whole else y
    raise ValueError(
        f"{name}: the loss can't compare scores {('n', *scores.shape[1:])} with y of shape "
        f"{tuple(y.shape)}, {y.dtype} ({said}); it must give one number an example, e.g. "
        f"nn.CrossEntropyLoss(reduction='none'), and y.long() for classes"
    )


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
        cure = f"softmax_regression(64, {high + 1})"
        if low < 0:
            cure = "np.unique(y, return_inverse=True)[1]"
        if low == -100:  # PyTorch's way to leave words out
            cure = "a loss of your own, (B,), that leaves these out"
        raise ValueError(
            f"{name}: labels must be 0..{classes - 1} for a model with {classes} scores, got "
            f"{low}..{high}, e.g. {cure}"
        )


def _classes(name: str, scores: Tensor, y: Tensor) -> Tensor:
    """For cross_entropy: (n, ...) integers below C, where the scores are (n, C, ...)."""
    C = scores.shape[1] if scores.dim() > 1 else 1
    if C == 1:
        raise ValueError(
            f"{name}: cross_entropy needs a score for each class, got one score, e.g. "
            f"nn.Linear(64, 2), or from_module(module, binary_cross_entropy) for labels 0 and 1"
        )
    if scores.dim() == 2 and y.dim() == 2 and y.shape[1] == 1:
        y = y[:, 0]  # a column: as pandas and scikit-learn have it
    if y.shape[1:] != scores.shape[2:]:
        onehot = y.shape[1:] == scores.shape[1:]
        cure = "y.argmax(1) for one-hot rows" if onehot else "y[:, 0] for the first of several"
        raise ValueError(
            f"{name}: cross_entropy compares scores {('n', *scores.shape[1:])} with classes "
            f"{('n', *scores.shape[2:])}, got y of shape {tuple(y.shape)}, e.g. {cure}"
        )
    y = y if y.is_floating_point() else y.long()
    check_labels(name, y, C)
    return y


def _numbers(name: str, loss: Any, scores: Tensor, y: Tensor) -> Tensor:
    """For squared_error and binary_cross_entropy: (n, ...) real numbers, one a score."""
    one = scores[0].numel() == 1 == y[0].numel() and max(scores.dim(), y.dim()) <= 2
    if not one and y.shape[1:] != scores.shape[1:]:
        each = ", ".join(map(str, y.shape[1:])) or "1"
        raise ValueError(
            f"{name}: {loss.__name__} needs a target for each score and gives one loss an example, "
            f"got scores {('n', *scores.shape[1:])} and y of shape {tuple(y.shape)}, e.g. a model "
            f"with scores (n, {each}): nn.Linear(64, {y[0].numel()})"
        )
    if loss is binary_cross_entropy and not bool(((y >= 0) & (y <= 1)).all()):
        raise ValueError(
            f"{name}: binary_cross_entropy needs labels 0 and 1, got {float(y.min()):g}.."
            f"{float(y.max()):g}, e.g. (y > 0).long()"
        )
    return y


def _wrong_loss(task: Task, scores: Tensor, y: Tensor) -> str:
    """What is wrong with a user's loss: it gives one number an example, which no other changes."""
    with torch.enable_grad(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        z = scores.detach().requires_grad_()
        losses = task.loss(z, y)
        if losses.requires_grad:
            torch.autograd.grad(losses.sum(), z, allow_unused=True)  # its type, too, must be right
        losses = losses.detach()
    pair = f"scores {('n', *scores.shape[1:])} and y {('n', *y.shape[1:])}"
    if losses.shape != y.shape[:1]:
        return (
            f"the loss must give one loss an example, (B,), got shape {tuple(losses.shape)} for "
            f"{len(y)} examples with {pair}, e.g. nn.CrossEntropyLoss(reduction='none'); where the "
            f"model has one score, y.reshape(scores.shape)"
        )
    with warnings.catch_warnings():  # beside itself alone, nothing else can enter an example's loss
        warnings.simplefilter("ignore")
        twice = [[i, i] for i in range(len(y))]
        alone = torch.stack([task.loss(scores[i], y[i])[0] for i in twice]).to(losses)
    close = 1e-2 if losses.dtype in (torch.float16, torch.bfloat16) else 1e-3
    far = close * float(losses.abs().nan_to_num().max())
    together = torch.allclose(losses, alone, rtol=close, atol=far, equal_nan=True)
    if together and not any("target size" in str(w.message) for w in told):
        return ""
    return (
        f"the loss of an example must not depend on the others, got one that does, with {pair}; "
        f"their shapes may broadcast, e.g. lambda scores, y: loss(scores, y.reshape(scores.shape))"
    )


def like(v: Tensor, theta: Tensor, *, copy: bool = False) -> Tensor:
    """Examples where theta is; real numbers of its type, too.

    Example:
        >>> like(torch.ones(2, dtype=torch.float64), torch.zeros(6)).dtype
        torch.float32
    """
    v = v.to(theta.device, theta.dtype if v.is_floating_point() else v.dtype)
    if not copy or v.device.type != "cpu":
        return v.clone() if copy else v
    # NumPy asks for large pages: a batch's rows lie anywhere, and each is found in less time
    room = np.empty(v.numel() * v.element_size(), np.uint8)
    return torch.from_numpy(room).view(v.dtype).view(v.shape).copy_(v)
