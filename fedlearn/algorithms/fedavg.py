"""FedAvg: McMahan et al., 2017, Algorithm 1. https://arxiv.org/abs/1602.05629"""

from torch import Tensor

from ..batches import Shards
from ..checks import below_one, not_negative, positive
from ..descend import descend
from ..task import Task
from .base import Algorithm, Kept, Message, Reply, State


def fedavg(
    task: Task,
    lr: float,
    server_lr: float = 1.0,
    beta: float = 0.0,
    weight_decay: float = 0.0,
) -> Algorithm:
    r"""Federated averaging: E local epochs, then theta <- theta + server_lr * Σ_k p_k delta_k.

    delta_k = theta_k - theta, with theta_k what client k's local SGD reaches from theta. With
    server_lr = 1 the new theta is the weighted mean Σ_k p_k theta_k.

    Args:
        task: What the clients minimise.
        lr: Learning rate eta of the clients.
        server_lr: eta_s, 1 in the paper.
        beta: Momentum of the clients' SGD, from 0 each round; 0 in the paper.
        weight_decay: Pull towards 0 in the clients' SGD; 0 in the paper.

    Returns:
        An :class:`~fedlearn.algorithms.Algorithm`. Epochs E and batch B belong to the ``Recipe``.

    Raises:
        ValueError: If a learning rate is not > 0 and finite, ``beta`` not in [0, 1), or
            ``weight_decay`` not >= 0 and finite.

    Reference:
        McMahan, Moore, Ramage, Hampson, Agüera y Arcas, 2017, "Communication-efficient learning of
        deep networks from decentralized data", Algorithm 1. Derived in lesson 4.

    Differs from the paper: its first version divides by the whole population's n, which is no mean
    for a cohort; its later versions, and this, divide by the cohort's.
    """
    positive("fedavg", "lr", lr)
    positive("fedavg", "server_lr", server_lr)
    below_one("fedavg", "beta", beta)
    not_negative("fedavg", "weight_decay", weight_decay)

    def init(theta: Tensor) -> State:
        return {"theta": theta}

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        theta = message["theta"]
        theta_k, _, loss = descend(task, theta, shards, lr, beta=beta, weight_decay=weight_decay)
        return {"delta": theta_k - theta, "loss": loss}, memory

    def server(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        return {"theta": state["theta"] + server_lr * delta}

    return Algorithm(init, client, server, task=task)
