"""Every client for itself: the line below which federation isn't worth it."""

import torch

from ..algorithms.base import Algorithm, Kept, Message, Reply, Shards, Task, descend
from ..algorithms.fedavg import fedavg


def alone(task: Task, lr: float) -> Algorithm:
    r"""Local SGD that goes on where it ended, and sends nothing: theta stays where it is.

    Client k keeps w_k and takes the round's steps from there, E T gradients a round as in FedAvg,
    so that both are compared at equal work. What is booked as sent is a row of zeros.

    Args:
        task, lr: As in :func:`~fedlearn.algorithms.fedavg`, which also says what raises.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> method = alone(softmax_regression(2, 2), lr=0.1)
        >>> list(method.memory(torch.zeros(6)))
        ['own']
    """
    memory = lambda theta0: {"own": theta0}

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        own, _, loss = descend(task, memory["own"], shards, lr)
        return {"delta": torch.zeros_like(own), "loss": loss}, {"own": own}

    models = lambda state, kept: kept["own"]
    return fedavg(task, lr)._replace(client=client, memory=memory, models=models)
