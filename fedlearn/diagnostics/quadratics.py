"""Clients whose loss is a quadratic: all of federated averaging in closed form.

Client k minimises L_k(theta) = (theta - b_k)ᵀ A_k (theta - b_k) / 2. E steps of gradient descent
take it from theta to b_k + (I - lr A_k)^E (theta - b_k): no simulation is needed, every trajectory
and every fixed point is exact. Lesson 7 is built on it, and other methods are tested against it.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..task import Task


class Quadratics(NamedTuple):
    """K quadratic clients in d dimensions.

    Attributes:
        A: (K, d, d) curvatures, symmetric, positive semi-definite.
        b: (K, d) the clients' minima.
        p: (K,) their weights.

    Example:
        >>> q = of([1.0, 4.0], [0.0, 1.0])
        >>> q.optimum()
        array([0.8])
        >>> q.fixed_point(lr=0.1, E=20).round(10)
        array([0.53235225])
    """

    A: np.ndarray
    b: np.ndarray
    p: np.ndarray

    def optimum(self) -> np.ndarray:
        """The minimum of L = Σ_k p_k L_k: (Σ p_k A_k)⁻¹ Σ p_k A_k b_k. (d,)"""
        return _mean_of_minima(self.p[:, None, None] * self.A, self.b)

    def contraction(self, lr: float, E: int) -> np.ndarray:
        """M_k = (I - lr A_k)^E: what E local steps leave of the distance to b_k. (K, d, d)"""
        eye = np.eye(self.b.shape[1])
        return np.stack([np.linalg.matrix_power(eye - lr * A, E) for A in self.A])

    def local_path(self, theta: np.ndarray, lr: float, E: int) -> np.ndarray:
        """Every client's way from theta through E local steps. (K, E + 1, d)"""
        away = np.broadcast_to(theta, self.b.shape) - self.b
        path = [away]
        for _ in range(E):
            away = away - lr * np.einsum("kij,kj->ki", self.A, away)
            path.append(away)
        return np.stack(path, 1) + self.b[:, None]

    def fedavg(self, theta: np.ndarray, lr: float, E: int, rounds: int) -> np.ndarray:
        """FedAvg's trajectory, everyone taking part. (rounds + 1, d)

        theta_{t+1} = Σ_k p_k (b_k + M_k (theta_t - b_k)).
        """
        M, path = self.contraction(lr, E), [np.asarray(theta, float)]
        for _ in range(rounds):
            arrived = self.b + np.einsum("kij,kj->ki", M, path[-1] - self.b)
            path.append(self.p @ arrived)
        return np.stack(path)

    def fixed_point(self, lr: float, E: int) -> np.ndarray:
        """Where FedAvg ends: (Σ p_k Ψ_k)⁻¹ Σ p_k Ψ_k b_k with Ψ_k = I - (I - lr A_k)^E. (d,)

        E = 1 gives the optimum; E to infinity the mean Σ p_k b_k of the clients' minima.
        """
        W = np.eye(self.b.shape[1]) - self.contraction(lr, E)
        return _mean_of_minima(self.p[:, None, None] * W, self.b)

    def loss(self, theta: np.ndarray) -> np.ndarray:
        """L(theta), for theta (..., d). -> (...)"""
        away = np.asarray(theta)[..., None, :] - self.b
        return np.einsum("k,...ki,kij,...kj->...", self.p, away, self.A, away) / 2

    def task(self) -> tuple[Task, Tensor, Tensor, list[np.ndarray]]:
        """The same clients for ``federate``: (task, x, y, parts), one example a client.

        x holds a client's A and b in one row. Weights other than equal ones need sizes: see
        ``Round.p``, which is n_k / n.
        """
        K, d = self.b.shape
        rows = np.concatenate([self.A.reshape(K, -1), self.b], 1)
        x = torch.from_numpy(rows.astype(np.float64))
        return _task(d), x, torch.zeros(K), [np.array([k]) for k in range(K)]


def of(A, b, p=None) -> Quadratics:  # type: ignore[no-untyped-def]
    """Quadratics from numbers, diagonals or matrices.

    Args:
        A: (K,) curvatures in one dimension, (K, d) diagonals, or (K, d, d) matrices, symmetric and
            positive semi-definite, else ValueError.
        b: (K,) or (K, d) minima.
        p: (K,) weights > 0, else ValueError; None for 1/K each. They are scaled to sum 1.

    Example:
        >>> of([1.0, 4.0], [0.0, 1.0]).A.shape
        (2, 1, 1)
    """
    A, b = np.asarray(A, float), np.asarray(b, float)
    b = b[:, None] if b.ndim == 1 else b
    K, d = b.shape
    if A.ndim == 1:
        A = A[:, None, None] * np.eye(d)
    elif A.ndim == 2:
        A = A[:, :, None] * np.eye(d)
    p = np.full(K, 1 / K) if p is None else np.asarray(p, float)
    fits = A.shape == (K, d, d) and p.shape == (K,)
    if not fits or not np.allclose(A, A.transpose(0, 2, 1)) or np.linalg.eigvalsh(A).min() < -1e-9:
        raise ValueError(
            f"quadratics.of: needs A (K, d, d) symmetric and >= 0, b (K, d), p (K,), got "
            f"{A.shape}, {b.shape}, {p.shape}, e.g. of([1.0, 4.0], [0.0, 1.0])"
        )
    if not (p > 0).all():
        raise ValueError(f"quadratics.of: weights must be > 0, got {p}, e.g. p=[0.75, 0.25]")
    return Quadratics(A, b, p / p.sum())


def random(
    K: int, d: int, rng: np.random.Generator, *, low: float = 0.5, high: float = 4.0
) -> Quadratics:
    """K random quadratics in d dimensions, equally weighted, curvatures from ``low`` to ``high``.

    Args:
        K: Clients.
        d: Dimensions.
        rng: Source of the draws.
        low, high: Smallest and largest curvature.

    Example:
        >>> random(3, 2, np.random.default_rng(0)).b.shape
        (3, 2)
    """
    turn = np.linalg.qr(rng.normal(size=(K, d, d)))[0]
    bend = rng.uniform(low, high, (K, d))
    return of(np.einsum("kij,kj,klj->kil", turn, bend, turn), rng.normal(size=(K, d)))


def _mean_of_minima(W: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(Σ W_k)⁻¹ Σ W_k b_k."""
    return np.linalg.solve(W.sum(0), np.einsum("kij,kj->i", W, b))


def _task(d: int) -> Task:
    def grad(theta, x, y, mask):  # type: ignore[no-untyped-def]
        w = mask / mask.sum(-1, keepdim=True).clamp(min=1)
        A, b = x[..., : d * d].unflatten(-1, (d, d)), x[..., d * d :]
        away = theta[:, None] - b
        g = torch.einsum("kbij,kbj->kbi", A, away)
        return (w[..., None] * g).sum(1), (w * (away * g).sum(-1) / 2).sum(1)

    return Task(torch.zeros(d, dtype=torch.float64), lambda theta, x: x, lambda s, y: y, grad)
