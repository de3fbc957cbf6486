"""Aggregation rules: the (K, d) matrix of updates and the weights p (K,) -> one vector (d,)."""

from __future__ import annotations

from .transform import Reduce


def mean() -> Reduce:
    """The weighted mean, sum_k p_k delta_k: one product of a row and a matrix, p @ Delta.

    Returns:
        A Reduce stage.

    Example:
        >>> import torch
        >>> mean().apply(torch.tensor([[0.0, 4.0], [4.0, 0.0]]), torch.tensor([0.75, 0.25]))
        tensor([1., 3.])

    Reference:
        McMahan et al., 2017, Algorithm 1, with p_k = n_k / n.
    """
    return Reduce("mean()", lambda delta, p: p @ delta)
