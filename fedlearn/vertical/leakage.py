"""What crosses the line all the same: labels go one way, columns the other; and what is done."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..checks import check, not_negative, positive
from ..rng import Use, numpy_rng
from ..transform import Context


def direction(gradients: Tensor) -> Tensor:
    """A label for every row of G (n, h), from the gradients alone: the first singular vector (n,).

    With one score an example ∂L/∂h is the residual σ(z) - y times a vector of the top layer, so
    rows with y = 1 point one way and rows with y = 0 the other: its sign is the label, up to one
    flip for all. For residuals r (n,) themselves -r does.

    Args:
        gradients: (n, h) ``Step.down`` of a split network; finite, else ValueError.

    Example:
        >>> direction(torch.tensor([[-0.5, -0.5], [0.5, 0.5], [-0.4, -0.4]])).sign().tolist()
        [-1.0, 1.0, -1.0]

    Reference: Li, Sun, Yang, Gao, Smith, et al., 2022, "Label leakage and protection in two-party
    split learning", §3 (direction-based attack).
    """
    good = gradients.dim() == 2 and len(gradients) > 0 and bool(gradients.isfinite().all())
    check("direction", "gradients", tuple(gradients.shape), good, "finite, (n, h)", "step.down")
    first = torch.linalg.svd(gradients, full_matrices=False)[0][:, 0]
    return first * (gradients.sum(1) @ first).sign()  # one polarity, whatever the solver's


def columns_from_scores(scores: Tensor, known: np.ndarray, columns: Tensor) -> Tensor:
    """The other owner's columns for everybody, from its scores and a few people it knows.

    Every step's u = x_other w_other is another combination of the same columns; b steps that differ
    span them all. Those of a few people whose columns are known tell which combination is which:
    least squares, columns = scores A.

    Args:
        scores: (n, T) ``Step.up`` of T steps, one a column.
        known: (m,) rows of the people whose columns are known.
        columns: (m, b) theirs.

    Returns:
        (n, b), what the label's owner now knows of everybody. ValueError if shapes don't fit.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
        >>> seen = x @ torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
        >>> columns_from_scores(seen, np.array([0, 1]), x[:2])[2].round(decimals=6)
        tensor([2., 2.], dtype=torch.float64)

    Reference: Luo, Wu, Xiao, Ooi, 2021, "Feature inference attack on model predictions in vertical
    federated learning", for the idea; the combination is read off known rows here.
    """
    rows = np.asarray(known)
    good = scores.dim() == 2 and columns.dim() == 2 and len(rows) == len(columns) > 0
    rule = "scores (n, T), m known rows and their columns (m, b)"
    got = [tuple(scores.shape), len(rows), tuple(columns.shape)]
    check("columns_from_scores", "what is known", got, good, rule, "scores[:, :300], rows, x[rows]")
    Q, S, _ = torch.linalg.svd(scores, full_matrices=False)
    floor = S[0] * 10 * torch.finfo(scores.dtype).eps * math.sqrt(len(scores))
    rank = min(int((S > floor).sum()), columns.shape[1], len(rows))
    base = Q[:, :rank].double()
    A = torch.linalg.lstsq(base[rows], columns.double(), driver="gelsd").solution
    return (base @ A).to(columns)


def rows_given_away(own_columns: Tensor, half: Tensor) -> Tensor:
    """Scores (n,) of the other owner's people by its half of the finished model: x_other w_other.

    Nothing on the wire is needed: a half that was trained on somebody's labels knows them.
    ValueError if shapes don't fit.

    Example:
        >>> rows_given_away(torch.eye(2), torch.tensor([3.0, -1.0]))
        tensor([ 3., -1.])
    """
    good = own_columns.dim() == 2 and half.shape == own_columns.shape[1:]
    got = [tuple(own_columns.shape), tuple(half.shape)]
    check(
        "rows_given_away", "columns and half", got, good, "(n, b) and (b,)", "last.theta['other']"
    )
    return own_columns @ half


def residual_noise(std: float, seed: int = 0) -> Callable[[Tensor, int], Tensor]:
    """A defence: Gaussian noise of standard deviation ``std`` on every number that goes back.

    Args:
        std: >= 0 and finite, else ValueError.
        seed: The draw is a function of (seed, step, std), for teaching: who knows it subtracts it.

    Example:
        >>> residual_noise(0.5)(torch.zeros(10_000), 3).std()
        tensor(0.5...)
    """
    not_negative("residual_noise", "std", std, 0.5)
    nobody = np.zeros(0, int)

    def protect(down: Tensor, t: int) -> Tensor:
        flat = down.flatten()
        noise = Context(seed, t, nobody, nobody).noise(Use.LOCAL_NOISE, std, flat)
        return down + noise.view_as(down)

    return protect


def randomised_response(y: Tensor, epsilon: float, seed: int = 0) -> Tensor:
    """A defence: labels that are told wrong with probability 1 / (1 + e^epsilon): label privacy.

    Whatever is computed from them is (epsilon, 0)-differentially private in the labels, so it holds
    back what the finished model tells, too.

    Args:
        y: (n,) 0 or 1.
        epsilon: > 0 and finite. ValueError if a number is out of range.
        seed: Of the draw, for teaching.

    Example:
        >>> flipped = randomised_response(torch.zeros(100_000), epsilon=1.0)
        >>> abs(flipped.mean().item() - 1 / (1 + math.e)) < 0.005
        True

    Reference: Warner, 1965, "Randomized response: a survey technique for eliminating evasive answer
    bias"; for labels: Ghazi, Golowich, Kumar, Manurangsi, Zhang, 2021, "Deep learning with label
    differential privacy".
    """
    positive("randomised_response", "epsilon", epsilon, 2.0)
    both = bool(((y == 0) | (y == 1)).all()) and y.dim() == 1
    check("randomised_response", "y", tuple(y.shape), both, "(n,) 0 or 1", "(y > 0).float()")
    draw = numpy_rng(seed, Use.LOCAL_NOISE).uniform(size=len(y)) < 1 / (1 + math.exp(epsilon))
    return torch.where(torch.from_numpy(draw).to(y.device), 1 - y, y)
