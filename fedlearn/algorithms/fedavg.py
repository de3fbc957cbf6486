"""FedAvg: McMahan et al., 2017, Algorithm 1. https://arxiv.org/abs/1602.05629"""

from ..checks import below_one, not_negative, positive
from .base import Algorithm, Kept, Message, Reply, Shards, State, Task, Tensor, descend


def fedavg(
    task: Task, lr: float, server_lr: float = 1.0, beta: float = 0.0, weight_decay: float = 0.0
) -> Algorithm:
    r"""Federated averaging: E local epochs, then theta <- theta + server_lr * Σ_k p_k delta_k.

    delta_k = theta_k - theta, with theta_k what client k's local SGD reaches from theta. With
    server_lr = 1 the new theta is the weighted mean Σ_k p_k theta_k. Epochs E and batch B belong to
    the ``Recipe``. ValueError for a number out of range.

    Args:
        task: What the clients minimise.
        lr: Learning rate eta of the clients, > 0 and finite.
        server_lr: eta_s, > 0 and finite; 1 in the paper.
        beta: Momentum of the clients' SGD, from 0 each round, in [0, 1); 0 in the paper.
        weight_decay: Pull towards 0 in the clients' SGD, >= 0 and finite; 0 in the paper.

    Example:
        >>> import torch
        >>> from fedlearn.model import softmax_regression
        >>> half = fedavg(softmax_regression(2, 2), lr=0.1, server_lr=0.5)
        >>> half.server({"theta": torch.ones(2)}, torch.tensor([1.0, -1.0]), {}, torch.ones(1))
        {'theta': tensor([1.5000, 0.5000])}

    Reference: McMahan, Moore, Ramage, Hampson, Agüera y Arcas, 2017, "Communication-efficient
    learning of deep networks from decentralized data", Algorithm 1. Derived in lesson 4.

    Differs from the paper: its first version divides by the whole population's n, which is no mean
    for a cohort; its later versions, and this, divide by the cohort's.
    """
    positive("fedavg", "lr", lr)
    positive("fedavg", "server_lr", server_lr)
    below_one("fedavg", "beta", beta)
    not_negative("fedavg", "weight_decay", weight_decay)

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        theta = message["theta"]
        theta_k, _, loss = descend(task, theta, shards, lr, beta=beta, weight_decay=weight_decay)
        return {"delta": theta_k.sub_(theta), "loss": loss}, memory

    def server(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        return {"theta": state["theta"] + server_lr * delta}

    return Algorithm(lambda theta: {"theta": theta}, client, server, task=task, folds=server)
