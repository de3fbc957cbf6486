"""FedProx: Li et al., 2020, Algorithm 2. https://arxiv.org/abs/1812.06127"""

from ..batches import Shards
from ..checks import not_negative
from ..descend import descend
from ..task import Task
from .base import Algorithm, Kept, Message, Reply
from .fedavg import fedavg


def fedprox(task: Task, lr: float, mu: float, server_lr: float = 1.0) -> Algorithm:
    r"""FedAvg whose clients are held back: each minimises L_k(w) + mu/2 ‖w - theta‖².

    Local step: w <- w - lr (∇L_k(w) + mu (w - theta)). Server: theta <- theta + server_lr
    Σ_k p_k delta_k. The pull buys stability, not speed: with mu = 0 this is FedAvg.

    Args:
        task: What the clients minimise.
        lr: Learning rate eta of the clients.
        mu: Strength of the pull towards the broadcast theta, >= 0.
        server_lr: eta_s, 1 in the paper.

    Returns:
        An :class:`~fedlearn.algorithms.Algorithm`.

    Raises:
        ValueError: If a learning rate is not > 0 and finite, or ``mu`` not >= 0 and finite.

    Reference:
        Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, 2020, "Federated optimization in heterogeneous
        networks", Algorithm 2. Derived in lesson 8.

    Differs from the paper: it draws devices with probability p_k and averages them equally; here
    the cohort is the loop's and the mean is weighted by p_k, as in FedAvg. The paper's own scheme
    is ``federate(..., cohort=weighted(10, sizes))`` with ``Recipe(..., equal=True)``. A client that
    is short of time does fewer steps: :func:`~fedlearn.participation.stragglers`.
    """
    not_negative("fedprox", "mu", mu)

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        theta = message["theta"]
        theta_k, _, loss = descend(task, theta, shards, lr, mu=mu)
        return {"delta": theta_k - theta, "loss": loss}, memory

    return fedavg(task, lr, server_lr)._replace(client=client)
