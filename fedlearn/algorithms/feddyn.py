"""FedDyn: Acar et al., 2021, Algorithm 1. https://arxiv.org/abs/2111.04263"""

import torch
from torch import Tensor

from ..checks import positive
from ..descend import descend
from .base import Algorithm, Kept, Message, Reply, Shards, State, Task, check_total, theta_alone


def feddyn(task: Task, lr: float, alpha: float, n_total: float) -> Algorithm:
    r"""Every client's objective is bent so that all agree where the whole one is least.

    Client k minimises L_k(w) - h_kᵀ w + alpha/2 ‖w - theta‖², by local steps
    w <- w - lr (∇L_k(w) - h_k + alpha (w - theta)), then h_k <- h_k - alpha delta_k: at the minimum
    h_k is its gradient ∇L_k(theta_k).

    Server: h <- h - alpha Σ_S (n_k / n_total) delta_k, so h = Σ_k (n_k / n_total) h_k over ALL
    clients, and theta <- theta + Σ_S p_k delta_k - h / alpha. Where theta rests, delta_k = 0 and
    h = 0: the gradient of the whole objective. One vector travels each way, as in FedAvg.

    Client k takes it for granted that its delta_k arrived and went into a weighted mean: h_k moves
    by it. So the ``Recipe`` refuses a pipeline that clips, adds noise or uses another rule, and
    takes masks of secure aggregation, which leave the mean as it is.

    ValueError for a number out of range; from the run, if the cohort holds more than ``n_total``.

    Args:
        task, lr: As in :func:`~fedlearn.algorithms.fedavg`.
        alpha: Strength of the pull, > 0 (0.001 to 0.1 in the paper). Not Dirichlet's alpha.
        n_total: Σ n_k over the whole population, e.g. ``len(y)``; with ``Recipe(equal=True)`` N.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> method = feddyn(softmax_regression(2, 2), lr=0.1, alpha=0.5, n_total=10)
        >>> reply, p = {"n": torch.tensor([4.0, 1.0])}, torch.tensor([0.8, 0.2])  # half of all
        >>> method.server(method.init(torch.zeros(1)), torch.ones(1), reply, p)
        {'theta': tensor([1.5000]), 'h': tensor([-0.2500])}

    Reference: Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, 2021, "Federated learning
    based on dynamic regularization", Algorithm 1. Lesson 8 writes it from this formula.

    Differs from the paper: there all clients weigh the same; here h and the mean carry n_k. The
    local minimum is approached by E epochs of SGD, as in the authors' code, and h_k follows the
    steps that were taken.
    """
    positive("feddyn", "lr", lr)
    positive("feddyn", "alpha", alpha)
    check_total("feddyn", n_total)
    init = lambda theta: {"theta": theta, "h": torch.zeros_like(theta)}
    memory = lambda theta0: {"h_k": torch.zeros_like(theta0)}

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        theta, h_k = message["theta"], memory["h_k"]
        theta_k, _, loss = descend(task, theta, shards, lr, mu=alpha, shift=-h_k)
        delta = theta_k - theta
        return {"delta": delta, "loss": loss}, {"h_k": h_k - alpha * delta}

    def server(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        share = reply["n"].sum() / check_total("feddyn", n_total, reply["n"])
        h = state["h"] - alpha * share * delta
        mean = state["theta"] + delta  # of theta_k; nobody's is no reason to move by h again
        return {"theta": mean - h / alpha if len(p) else mean, "h": h}

    return Algorithm(init, client, server, theta_alone, memory, task, plain=True, folds=server)
