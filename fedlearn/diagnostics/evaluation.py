"""How well a model does, on one test set or client by client; and when an answer is right."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..checks import check
from ..data import check_population, fit, like
from ..task import Task, cross_entropy, squared_error, wide
from .measures import each_model


def evaluator(task: Task, x: Tensor, y: Tensor) -> Callable[[Tensor], dict[str, float]]:
    """A function of theta alone: mean loss and accuracy on x, y. Give it to ``federate``.

    It is theta (d,) -> {"loss": mean, "accuracy": share of answers that are right, 0 to 1}.

    There is an accuracy where an answer can be right: the class with the highest of scores
    (B, C, ...), where y holds classes (words: each counts, those with -100, which PyTorch's losses
    ignore, don't), and the sign of one score where y is 0 or 1 (a loss that takes probabilities:
    above a half). Not for regression, and not for several labels an example.

    Args:
        task: The model and its loss.
        x: (m, ...), m >= 1.
        y: (m, ...) classes or targets. ValueError if x and y don't fit the model and its loss, as
            for ``Simulated``. Both are copied.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> task = softmax_regression(2, 3)
        >>> evaluator(task, torch.zeros(4, 2), torch.tensor([0, 0, 1, 2]))(task.theta0)
        {'loss': 1.098612..., 'accuracy': 0.5}
    """
    _whole_task("evaluator", task)
    x, y = (v.clone() for v in fit("evaluator", task, x, y))
    decide = decision(task, x, y)

    @torch.no_grad()
    def evaluate(theta: Tensor) -> dict[str, float]:
        target = like(y, theta)
        scores = torch.cat([task.predict(theta, like(part, theta)) for part in x.split(10_000)])
        out = {"loss": wide(task.loss(wide(scores), wide(target))).mean().item()}
        if decide:
            right, asked = decide(scores, target)
            out["accuracy"] = int(right.sum()) / int(asked.sum())  # 342/360 is 0.95
        return out

    return evaluate


def _whole_task(name: str, task: Task) -> None:
    ok = task.predict is not None and task.loss is not None
    rule, so = "a model and its loss", "softmax_regression(64, 10)"
    check(name, "task", "its gradient alone", ok, rule, so)


def client_metrics(
    task: Task, theta: Tensor, x: Tensor, y: Tensor, parts: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """Loss and accuracy of one model on every client's own examples, by name, (N,) each.

    Their spread is ``result["accuracy"].std()``, the worst client ``.min()``. Accuracy as for
    :func:`evaluator`. A client without an example, a hospital that the test set lacks, has no
    number: the arrays are masked ones then (``numpy.ma``), whose means leave it out, and client k
    stays at place k.

    Args:
        task: The model and its loss.
        theta: (d,); or (N, d), a model a client, judged on that client's examples.
        x: (n, ...).
        y: (n, ...). ValueError if x, y and parts don't fit, as for ``Simulated``.
        parts: N index arrays; not all empty, else ValueError.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> task, x, y = softmax_regression(2, 2), torch.eye(2), torch.tensor([0, 1])
        >>> client_metrics(task, task.theta0, x, y, [[0], [1]])["accuracy"]
        array([1., 0.])
        >>> third = client_metrics(task, task.theta0, x, y, [[0], [], [1]])["accuracy"]
        >>> third.mask.tolist(), float(third.mean())
        ([False, True, False], 0.5)
    """
    name = "client_metrics"
    _whole_task(name, task)
    own = check_population(name, task, x, y, parts, theta, empty=True)
    x, y, held = like(own.x, theta), like(own.y, theta), own.parts
    models = each_model(name, theta, len(held))
    sizes = np.array([len(rows) for rows in held])
    check(name, "parts", sizes.tolist(), bool(sizes.any()), "not all empty", [[0, 2], [1]])
    rows, owner = np.concatenate(held), np.repeat(np.arange(len(held)), sizes)
    with torch.no_grad():
        if theta.dim() == 1:
            scores = torch.cat([task.predict(theta, part) for part in x.split(10_000)])[rows]
        else:
            of = lambda k: [task.predict(models[k], part) for part in x[held[k]].split(10_000)]
            scores = torch.cat([part for k in np.flatnonzero(sizes) for part in of(k)])
        counts = {"loss": (task.loss(wide(scores), wide(y[rows])), torch.ones(len(rows)))}
        if decide := decision(task, own.x, own.y):
            counts["accuracy"] = decide(scores, y[rows])
    add = lambda v: np.bincount(owner, v.double().cpu().numpy(), minlength=len(sizes))
    return {k: _share(*map(add, parts_of)) for k, parts_of in counts.items()}


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; masked where there is nothing to share."""
    if whole.all():
        return part / whole
    return np.ma.masked_array(np.where(whole > 0, part / np.maximum(whole, 1), np.nan), whole == 0)


# -- when an answer is right -----------------------------------------------------------------------

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
