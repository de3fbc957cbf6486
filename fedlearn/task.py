"""What clients minimise: a model as a function of one parameter vector, and its loss.

Every gradient here is taken for K clients at once. Client k has its own parameters, so ``theta`` is
a (K, d) matrix and every batch carries a leading K: the mathematics of one client, written once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
            gradient is stored. None: :func:`fedlearn.descend.descend` uses ``grad``.
        module: What :func:`~fedlearn.model.from_module` made it of.

    ``mask`` is 1 for an example and 0 for padding; a row of zeros has gradient 0.
    """

    theta0: Tensor
    predict: Callable[[Tensor, Tensor], Tensor]
    loss: Loss
    grad: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    step: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor] | None = None
    module: nn.Module | None = None


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """-log softmax(scores)_y in nats: scores (B, C), classes y (B,) in 0..C-1 -> losses (B,).

    Example:
        >>> cross_entropy(torch.zeros(1, 10), torch.tensor([3]))
        tensor([2.3026])
    """
    return F.cross_entropy(scores, y, reduction="none")


def squared_error(scores: Tensor, y: Tensor) -> Tensor:
    """(score - y)² / 2: scores (B, 1), targets y (B,) -> losses (B,); its gradient is the residual.

    Example:
        >>> squared_error(torch.tensor([[3.0]]), torch.tensor([1.0]))
        tensor([2.])
    """
    return 0.5 * (scores.squeeze(-1) - y) ** 2


def views(theta: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The layers inside theta (..., d), one view (..., *shape) each: change one and theta changes.

    Example:
        >>> theta = torch.arange(6.0)
        >>> W, b = views(theta, [(2, 2), (2,)])
        >>> b.zero_(); theta
        tensor([0., 0.])
        tensor([0., 1., 2., 3., 0., 0.])
    """
    sizes = [torch.Size(s).numel() for s in shapes]
    return [
        v.view((*v.shape[:-1], *s)) for v, s in zip(theta.split(sizes, dim=-1), shapes, strict=True)
    ]
