"""FedProx: Li et al., 2020, Algorithm 2. https://arxiv.org/abs/1812.06127"""

from ..checks import not_negative
from .base import Algorithm, Kept, Message, Reply, Shards, Task, descend
from .fedavg import fedavg


def fedprox(task: Task, lr: float, mu: float, server_lr: float = 1.0) -> Algorithm:
    r"""FedAvg whose clients are held back: each minimises L_k(w) + mu/2 ‖w - theta‖².

    Local step: w <- w - lr (∇L_k(w) + mu (w - theta)). Server: theta <- theta + server_lr
    Σ_k p_k delta_k. The pull buys stability, not speed: with mu = 0 this is FedAvg.

    Args:
        task, lr, server_lr: As in :func:`~fedlearn.algorithms.fedavg`.
        mu: Strength of the pull towards the broadcast theta, >= 0 and finite; else ValueError.

    Example:
        >>> import torch
        >>> from fedlearn.model import softmax_regression
        >>> task, x, y = softmax_regression(1, 2), torch.ones(1, 1), torch.tensor([0])
        >>> mask = torch.ones(1, 9, 1)  # nine steps on the one example
        >>> nine = Shards(x, y, torch.zeros(1, 9, 1, dtype=torch.int64), mask, torch.ones(1))
        >>> for method in fedavg(task, 1.0), fedprox(task, 1.0, mu=0.0), fedprox(task, 1.0, mu=0.5):
        ...     print(method.client({"theta": task.theta0}, nine, {})[0]["delta"][0, 0])
        tensor(0.9295)
        tensor(0.9295)
        tensor(0.3704)

    Reference: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, 2020, "Federated optimization in
    heterogeneous networks", Algorithm 2. Derived in lesson 8.

    Differs from the paper: it draws devices with probability p_k and averages them equally; here
    the cohort is the loop's and the mean is weighted by p_k, as in FedAvg. The paper's own scheme
    is ``federate(..., cohort=weighted(10, sizes))`` with ``Recipe(..., equal=True)``. A client that
    is short of time does fewer steps: :func:`~fedlearn.participation.stragglers`.
    """
    not_negative("fedprox", "mu", mu)

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        theta = message["theta"]
        theta_k, _, loss = descend(task, theta, shards, lr, mu=mu)
        return {"delta": theta_k.sub_(theta), "loss": loss}, memory

    return fedavg(task, lr, server_lr)._replace(client=client)
