"""FedSGD: McMahan et al., 2017, §2, the baseline of FedAvg. https://arxiv.org/abs/1602.05629"""

from __future__ import annotations

import torch

from ..data import Shards
from ..model import Task
from ..optim import check_lr
from .base import Algorithm, Kept, Message, Reply
from .fedavg import fedavg


def fedsgd(task: Task, lr: float) -> Algorithm:
    r"""One gradient a round: theta <- theta - lr * Σ_k p_k ∇L_k(theta).

    Client k sends delta_k = -lr ∇L_k(theta), the gradient taken at theta over the round's examples.
    With everyone in the cohort and p_k = n_k / n this is gradient descent on the pooled data, to
    float error, for any number of clients and any skew.

    Args:
        task: What the clients minimise.
        lr: Learning rate eta.

    Returns:
        An :class:`~fedlearn.algorithms.Algorithm`. The ``Recipe`` wants ``epochs=1, batch=None``
        for gradients over all of a client's examples; with a smaller batch the gradient at theta is
        averaged over the batches, which is the same number.

    Raises:
        ValueError: If ``lr`` is not > 0 and finite.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> fedsgd(softmax_regression(64, 10), lr=0.1).memory(None)
        {}

    Reference:
        McMahan et al., 2017, §2 ("FederatedSGD"). Derived in lesson 2.
    """
    check_lr("fedsgd", lr)

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        theta_k = message["theta"].expand(len(shards.n), -1)  # everyone at theta, no step taken
        seen = shards.mask.sum((1, 2))  # examples of all batches: n_k, E times
        delta, loss = torch.zeros_like(theta_k), torch.zeros_like(seen)
        for x, y, mask in shards.batches():
            g, objective = task.grad(theta_k, x, y, mask)
            share = mask.sum(1) / seen
            delta -= lr * share[:, None] * g
            loss += share * objective
        return {"delta": delta, "loss": loss}, memory

    return fedavg(task, lr)._replace(client=client)
