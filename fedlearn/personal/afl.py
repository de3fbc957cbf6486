"""Agnostic federated learning: Mohri, Sivek, Suresh, 2019. https://arxiv.org/abs/1902.00146"""

import torch
from torch import Tensor

from ..algorithms.base import Algorithm, Kept, Message, Reply, State, descend, theta_alone
from ..batches import Shards
from ..checks import check, positive, whole
from ..task import Task
from .base import objective


def afl(task: Task, lr: float, gamma: float, N: int) -> Algorithm:
    r"""The best model for the worst mix of clients: min_theta max_lam Σ_k lam_k L_k(theta).

    The server keeps weights lam on the simplex (lam_k >= 0, Σ lam_k = 1), from 1/N each. A round:
    theta <- theta + Σ_k lam_k delta_k, then lam <- project(lam + gamma L(theta)) with the losses
    that the clients had on arrival: whoever does badly gains weight. gamma -> 0 is FedAvg with
    equal weights.

    Args:
        task, lr: As in :func:`~fedlearn.algorithms.fedavg`.
        gamma: Learning rate of lam, > 0.
        N: Number of clients; all of them answer in every round, for lam has a place for each.
            ValueError for a number out of range; from the run, if another number answers.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> method = afl(softmax_regression(2, 2), lr=0.1, gamma=0.1, N=2)
        >>> state = method.init(torch.zeros(1))
        >>> reply = {"delta": torch.tensor([[1.0], [3.0]]), "arrival": torch.tensor([2.0, 0.0])}
        >>> method.server(state, None, reply, torch.tensor([0.5, 0.5]))
        {'theta': tensor([2.]), 'lam': tensor([0.6000, 0.4000])}

    Reference: Mohri, Sivek, Suresh, 2019, "Agnostic federated learning", Algorithm 1
    (Stochastic-AFL).

    Differs from the paper: E epochs of local steps instead of one gradient. The server weighs the
    rows itself, so no rule or noise between them would act, and a ``Recipe`` takes the mean alone.
    """
    positive("afl", "lr", lr)
    positive("afl", "gamma", gamma, 0.01)
    whole("afl", "N", N, example=20)
    init = lambda theta: {"theta": theta, "lam": torch.full_like(theta[:1], 1 / N).repeat(N)}

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        theta = message["theta"]
        arrival = objective(task, theta, shards).to(theta)
        theta_k, _, loss = descend(task, theta, shards, lr)
        return {"delta": theta_k - theta, "arrival": arrival, "loss": loss}, memory

    def server(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        rows, lam = reply["delta"], state["lam"]
        K, rule = len(rows), f"all N = {N}"
        check("afl", "the clients that answer", K, K == N, rule, f"cohort={N}")
        theta = state["theta"] + lam @ rows
        return {"theta": theta, "lam": to_simplex(lam + gamma * reply["arrival"])}

    return Algorithm(init, client, server, theta_alone, task=task, plain=True)


def to_simplex(v: Tensor) -> Tensor:
    """The point of the simplex {w >= 0, Σ w = 1} nearest to v (N,): max(v - s, 0) with the right s.

    Example:
        >>> to_simplex(torch.tensor([0.6, 0.6, -1.0]))
        tensor([0.5000, 0.5000, 0.0000])

    Reference: Duchi, Shalev-Shwartz, Singer, Chandra, 2008, "Efficient projections onto the
    l1-ball for learning in high dimensions", Figure 1.
    """
    u = v.sort(descending=True).values
    excess = (u.cumsum(0) - 1) / torch.arange(1, len(u) + 1, device=v.device)
    last = int((u > excess).nonzero().max())
    return (v - excess[last]).clamp(min=0)
