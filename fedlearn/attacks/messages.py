"""What a client sends, as a function of its examples that can be differentiated.

The attacker's knowledge: the model, theta and the protocol are the server's own. What it doesn't
know are x and y.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import check, positive, whole
from ..task import Task, binary_cross_entropy, squared_error

Send = Callable[[Tensor, Tensor], Tensor]  # x (B, ...), y (B,) or (B, C) -> message (d,)


def gradient(task: Task, theta: Tensor) -> Send:
    """FedSGD's message: the gradient of the mean cross-entropy at theta.

    send(x (B, ...), y) -> (d,); y are labels (B,) or probabilities (B, C). Differentiable in both,
    so that it can be searched through.

    Args:
        task: A classifier. Its activations should be smooth (sigmoid, tanh): a ReLU's second
            derivative is 0, and L-BFGS often gets stuck. Signed Adam, ``invert_cosine``, works
            on ReLU networks, too.
        theta: (d,) the broadcast parameters; ValueError if they don't fit the task;
            later, too, if y are no such labels.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> task = softmax_regression(2, 2)
        >>> gradient(task, task.theta0)(torch.tensor([[1.0, 0.0]]), torch.tensor([1])).tolist()
        [0.5, 0.0, -0.5, -0.0, 0.5, -0.5]
    """
    _fits("gradient", task, theta)

    def send(x: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            at = theta.detach().requires_grad_()
            return _as_asked(_slope(task, at, x, y), x, y)

    return send


def update(task: Task, theta: Tensor, lr: float, steps: int) -> Send:
    """FedAvg's message, delta = theta_k - theta after local steps with the whole batch.

    theta_k <- theta_k - lr ∇L(theta_k; x, y), ``steps`` times; differentiable in x and y through
    all of them, as for :func:`gradient`.

    Args:
        task, theta: As for :func:`gradient`.
        lr: The clients' learning rate, > 0, else ValueError.
        steps: tau >= 1, local steps, else ValueError.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> task, x, y = softmax_regression(2, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([1])
        >>> delta = update(task, task.theta0, lr=0.1, steps=1)(x, y)
        >>> torch.allclose(delta, -0.1 * gradient(task, task.theta0)(x, y))
        True

    Reference:
        Geiping et al., 2020, "Inverting gradients", §6.
    """
    _fits("update", task, theta)
    positive("update", "lr", lr)
    whole("update", "steps", steps, example=5)

    def send(x: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            start = theta.detach().requires_grad_()
            at = start
            for _ in range(steps):
                at = at - lr * _slope(task, at, x, y)
            return _as_asked(at - start, x, y)

    return send


def _slope(task: Task, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    odds = task.predict(theta, x).log_softmax(-1)
    _are_labels(y, *odds.shape)
    if y.dim() == 1:
        loss = -odds.gather(-1, y[:, None]).mean()
    else:
        loss = -(y * odds).sum(-1).mean()
    (g,) = torch.autograd.grad(loss, theta, create_graph=True)
    return g


def _are_labels(y: Tensor, B: int, C: int) -> None:
    """(B,) classes or (B, C) probabilities: others would be paired with the wrong examples."""
    if y.dim() == 1:
        fine = len(y) == B and y.dtype == torch.int64 and bool(((y >= 0) & (y < C)).all())
    else:
        fine = y.shape == (B, C) and y.is_floating_point()
        rows = y.detach()
        fine = fine and bool((rows >= 0).all() and ((rows.sum(-1) - 1).abs() < 1e-3).all())
    rule = f"{B} classes 0..{C - 1}, int64, or ({B}, {C}) probabilities"
    check("send", "y", y, fine, rule, "torch.tensor([3])")


def _as_asked(message: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """With its graph for who searches, a plain vector for who sends."""
    return message if x.requires_grad or y.requires_grad else message.detach()


def _fits(name: str, task: Task, theta: Tensor) -> None:
    d = task.theta0.numel()
    ok = tuple(theta.shape) == (d,)
    check(name, "theta", tuple(theta.shape), ok, f"of shape ({d},) for this task", "task.theta0")
    check(name, "theta", theta, bool(theta.isfinite().all()), "finite", "task.theta0")
    other = task.loss in (squared_error, binary_cross_entropy)
    rule = "a classifier's: the message is a gradient of cross_entropy"
    check(name, "task", getattr(task.loss, "__name__", ""), not other, rule, "from_module(module)")
