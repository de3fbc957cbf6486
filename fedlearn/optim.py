"""The server's optimisers as pure functions. Each raises ValueError for a number out of range.

What they keep is float32 or wider, whatever theta is: the square of a gradient is often none of
float16's numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import below_one, positive
from .task import wide


class Optimizer(NamedTuple):
    """An optimiser without hidden state.

    Attributes:
        init: theta (d,) -> state.
        step: (gradient (d,), state, theta (d,)) -> (theta (d,), state).
    """

    init: Callable[[Tensor], Any]
    step: Callable[[Tensor, Any, Tensor], tuple[Tensor, Any]]


def sgd(lr: float) -> Optimizer:
    """Gradient descent: theta <- theta - lr * g. ValueError if not ``lr`` > 0 and finite.

    Example:
        >>> opt = sgd(0.5)
        >>> opt.step(torch.tensor([2.0]), opt.init(torch.zeros(1)), torch.zeros(1))[0]
        tensor([-1.])
    """
    positive("sgd", "lr", lr)
    return Optimizer(lambda theta: (), lambda g, s, theta: (theta - lr * g, s))


def momentum(lr: float, beta: float = 0.9) -> Optimizer:
    """Heavy-ball momentum: v <- beta v + g; theta <- theta - lr v. torch.optim.SGD's own rule.

    Args:
        lr: Learning rate, > 0 and finite.
        beta: 0 <= beta < 1; 0 is :func:`sgd`. The state is v (d,).

    Example:
        >>> opt, theta = momentum(1.0, beta=0.5), torch.zeros(1)
        >>> theta, v = opt.step(torch.tensor([1.0]), opt.init(theta), theta)
        >>> theta, v = opt.step(torch.tensor([1.0]), v, theta)
        >>> theta.item()
        -2.5
    """
    positive("momentum", "lr", lr)
    below_one("momentum", "beta", beta)

    def step(g: Tensor, v: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        v = beta * v + g
        return (theta - lr * v).to(theta), v

    return Optimizer(lambda theta: torch.zeros_like(wide(theta)), step)


Second = Callable[[Tensor, Tensor], Tensor]  # v (d,), g² (d,) -> v (d,)


def _adaptive(name: str, lr: float, beta1: float, tau: float, second: Second) -> Optimizer:
    """m <- beta1 m + (1 - beta1) g; v <- second(v, g²); theta <- theta - lr m / (sqrt(v) + tau)."""
    positive(name, "lr", lr)
    below_one(name, "beta1", beta1)
    positive(name, "tau", tau, 0.001)

    def init(theta: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(wide(theta)), torch.full_like(wide(theta), tau**2)

    def step(g: Tensor, s: tuple[Tensor, Tensor], theta: Tensor) -> tuple[Tensor, Any]:
        g = wide(g)
        m, v = beta1 * s[0] + (1 - beta1) * g, second(s[1], g * g)
        return (theta - lr * m / (v.sqrt() + tau)).to(theta), (m, v)

    return Optimizer(init, step)


def adagrad(lr: float, beta1: float = 0.0, tau: float = 1e-3) -> Optimizer:
    """Adagrad: v <- v + g². Every number's step shrinks with all it has seen.

    m <- beta1 m + (1 - beta1) g;  theta <- theta - lr m / (sqrt(v) + tau), from m = 0, v = tau².

    Args:
        lr: Learning rate eta_s, > 0 and finite.
        beta1: 0 <= beta1 < 1, momentum; the paper's FedAdagrad has none.
        tau: > 0, adaptivity: the smaller, the more numbers with small gradients gain.

    Example:
        >>> opt, theta = adagrad(0.1), torch.zeros(2)
        >>> opt.step(torch.tensor([1.0, 100.0]), opt.init(theta), theta)[0]  # equal steps
        tensor([-0.0999, -0.1000])

    Reference: Reddi et al., 2021, "Adaptive federated optimization", Algorithm 2 (FedAdagrad).
    """
    return _adaptive("adagrad", lr, beta1, tau, lambda v, gg: v + gg)


def adam(lr: float, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> Optimizer:
    """Adam as federated learning uses it: v <- beta2 v + (1 - beta2) g², no bias correction.

    m, theta and the start are :func:`adagrad`'s.

    Args:
        lr, tau: As in :func:`adagrad`.
        beta1, beta2: Memory of m and of v, each from 0 to below 1.

    Example:
        >>> opt, theta = adam(0.1, beta2=0.0), torch.zeros(1)
        >>> opt.step(torch.tensor([3.0]), opt.init(theta), theta)[0]  # 0.1 * 0.1 * 3 / 3.001
        tensor([-0.0100])

    Reference: Reddi et al., 2021, Algorithm 2 (FedAdam).
    """
    below_one("adam", "beta2", beta2, 0.99)
    return _adaptive("adam", lr, beta1, tau, lambda v, gg: beta2 * v + (1 - beta2) * gg)


def yogi(lr: float, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> Optimizer:
    """Yogi: v <- v - (1 - beta2) g² sign(v - g²): moves at the pace of g², not of v.

    Everything else, and the arguments, as in :func:`adam`.

    Example:
        >>> opt, theta = yogi(0.1), torch.zeros(1)
        >>> _, (m, v) = opt.step(torch.tensor([3.0]), opt.init(theta), theta)
        >>> v
        tensor([0.0900])

    Reference: Reddi et al., 2021, Algorithm 2 (FedYogi).
    """
    below_one("yogi", "beta2", beta2, 0.99)
    move = lambda v, gg: v - (1 - beta2) * gg * (v - gg).sign()
    return _adaptive("yogi", lr, beta1, tau, move)
