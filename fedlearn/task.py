"""What clients minimise: a model as a function of one parameter vector, and its loss.

Every gradient here is taken for K clients at once. Client k has its own parameters, so ``theta`` is
a (K, d) matrix and every batch carries a leading K: the mathematics of one client, written once.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]  # scores (B, ...), y (B, ...) -> losses (B,)


class Task(NamedTuple):
    """What each client minimises: L_k(theta) = mean over its examples of loss(f(theta, x), y).

    Attributes:
        theta0: (d,) initial parameters.
        predict: (d,), x (B, ...) -> scores (B, C), or of any shape (B, ...).
        loss: scores (B, ...), y (B, ...) -> losses (B,), each of its own example alone.
        grad: theta (K, d), x (K, B, ...), y (K, B, ...), mask (K, B)
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

    __eq__, __ne__, __hash__ = object.__eq__, object.__ne__, object.__hash__  # type: ignore


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """-log softmax(scores)_y in nats: scores (B, C), classes y (B,) in 0..C-1 -> losses (B,).

    Of several in an example, the words of a text, the mean: scores (B, C, ...), y (B, ...).

    Example:
        >>> cross_entropy(torch.zeros(1, 10), torch.tensor([3]))
        tensor([2.3026])
    """
    losses = F.cross_entropy(scores, y, reduction="none")
    return losses if losses.dim() == 1 else losses.flatten(1).mean(1)


def squared_error(scores: Tensor, y: Tensor) -> Tensor:
    """‖scores - y‖² / 2: scores (B, ...), targets y (B, ...) -> losses (B,).

    Summed over the outputs of an example, so that its gradient is the residual. One score may be
    (B, 1) and its target (B,), or the other way round.

    Example:
        >>> squared_error(torch.tensor([[3.0]]), torch.tensor([1.0]))
        tensor([2.])
    """
    losses = 0.5 * (_beside(scores, y) - y) ** 2
    return losses if losses.dim() == 1 else losses.flatten(1).sum(1)


def binary_cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """log(1 + exp(±score)), - for label 1, in nats: scores (B, 1), y (B,) 0 or 1 -> losses (B,).

    Logistic regression's loss: P(1) = 1 / (1 + exp(-score)). Of several labels in an example, each
    there or not, the mean: scores (B, m), y (B, m).

    Example:
        >>> binary_cross_entropy(torch.tensor([[0.0]]), torch.tensor([1]))
        tensor([0.6931])
    """
    z = _beside(scores, y)
    losses = F.binary_cross_entropy_with_logits(z, y.to(z.dtype), reduction="none")
    return losses if losses.dim() == 1 else losses.flatten(1).mean(1)


def _beside(scores: Tensor, y: Tensor) -> Tensor:
    """The scores in the shape of y: (B,) and (B, 1) are the same; nothing is broadcast."""
    if scores.shape == y.shape:
        return scores
    if scores.numel() != y.numel() or max(scores.dim(), y.dim()) > 2:
        raise ValueError(
            f"loss: needs a target for each score, got shapes {tuple(scores.shape)} and "
            f"{tuple(y.shape)}, e.g. y.reshape(scores.shape)"
        )
    return scores.reshape(y.shape)


def wide(x: Tensor) -> Tensor:
    """The same numbers in 32 bits, if they have 16: to add, to square and to weigh.

    Half of the bits are enough to keep a parameter, not to count: in float16 nothing exceeds
    65,504, and in bfloat16 256 + 1 is 256.

    Example:
        >>> wide(torch.ones(1, dtype=torch.bfloat16)).dtype, wide(torch.ones(1).double()).dtype
        (torch.float32, torch.float64)
    """
    return x.float() if x.is_floating_point() and x.element_size() < 4 else x


def weighted(p: Tensor, rows: Tensor) -> Tensor:
    """Σ_k p_k row_k, (K,) and (K, d) -> (d,) in the rows' type, added up in 32 bits or more.

    Example:
        >>> weighted(torch.tensor([0.5, 0.5]), torch.tensor([[6e4], [6e4]], dtype=torch.float16))
        tensor([60000.], dtype=torch.float16)
    """
    many = wide(rows)
    return (p.to(many) @ many).to(rows.dtype)


def views(theta: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The layers inside theta (..., d), one view (..., *shape) each: change one and theta changes.

    Example:
        >>> theta = torch.arange(6.0)
        >>> W, b = views(theta, [(2, 2), (2,)])
        >>> b.zero_(); theta
        tensor([0., 0.])
        tensor([0., 1., 2., 3., 0., 0.])
    """
    rows, parts = theta.shape[:-1], torch.split_with_sizes(theta, [*map(math.prod, shapes)], -1)
    return [v.view((*rows, *s)) for v, s in zip(parts, shapes, strict=True)]
