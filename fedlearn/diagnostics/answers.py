"""When an answer is right: what an accuracy counts, asked of the task's own loss."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..data import like
from ..task import Task, cross_entropy, squared_error

Decide = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # scores, y -> right (B,), asked (B,)
_IGNORED = -100  # PyTorch's ignore_index


def decision(task: Task, x: Tensor, y: Tensor) -> Decide | None:
    """How many answers of each example are right, and how many count; None where none can be.

    Which classes a user's own loss means is asked of the loss: the class with the higher score must
    have the lower loss.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> x, y = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> decide = decision(softmax_regression(3, 2), x, y)
        >>> decide(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), y)[0]
        tensor([1, 0])
    """
    with torch.no_grad():
        theta, at = task.theta0, [0, 0]
        z, few = task.predict(theta, like(x[at], theta)), like(y[at], theta)
    if task.loss is squared_error:
        return None
    many = lambda hit: hit.flatten(1).sum(1) if hit.dim() > 1 else hit.long()
    if z[0].numel() == 1 == few[0].numel() and bool(((y == 0) | (y == 1)).all()):
        middle = _middle(task, z, few)
        one = lambda z, y: many((z.reshape(y.shape) > middle) == (y > 0.5))
        return None if middle is None else lambda z, y: (one(z, y), many(torch.ones_like(y) > 0))
    classes = z.dim() > 1 and z.shape[1] > 1 and z.shape[2:] == y.shape[1:]
    if not classes or y.is_floating_point():
        return None
    asked = y != _IGNORED
    known = bool((((y >= 0) & (y < z.shape[1])) | ~asked).all()) and bool(asked.any())
    if not known or not _ranks(task, z, few):
        return None
    return lambda z, y: (many(z.argmax(1) == y), many(y != _IGNORED))


def _at(task: Task, z: Tensor, y: Tensor, label: int) -> float:
    """The loss of one label, NaN if the loss can't take the scores."""
    try:
        return float(task.loss(z, torch.full_like(y, label))[0])
    except (RuntimeError, ValueError):
        return math.nan


def _middle(task: Task, z: Tensor, y: Tensor) -> float | None:
    """Where one score says 1 instead of 0: 0, or 0.5 if the loss takes probabilities alone.

    There the loss of label 1 on one side is that of label 0 on the other, times a weight.
    """
    at = lambda score, label: _at(task, torch.full_like(z, score), y, label)
    weight = lambda middle, off: at(middle + off, 1) / max(at(middle - off, 0), 1e-30)
    even = lambda middle: math.isclose(weight(middle, 0.1), weight(middle, 0.4), rel_tol=1e-2)
    if even(0.0):
        return 0.0
    return 0.5 if even(0.5) and not math.isfinite(at(-0.5, 0)) else None


def _ranks(task: Task, z: Tensor, y: Tensor) -> bool:
    """Whether the loss of a class falls as its score rises above the others'."""
    if task.loss is cross_entropy:
        return True
    at = lambda high, label: _at(task, _high(z, high), y, label)
    return at(0, 0) < at(0, 1) and at(1, 1) < at(1, 0)


def _high(z: Tensor, c: int) -> Tensor:
    scores = torch.full_like(z, 0.1)
    scores[:, c] = 0.8
    return scores
