"""SCAFFOLD: Karimireddy et al., 2020, Algorithm 1. https://arxiv.org/abs/1910.06378"""

import torch

from ..checks import check, is_whole, positive
from ..task import weighted
from .base import Algorithm, Kept, Message, Reply, Shards, State, Task, Tensor, check_total, descend
from .fedsgd import gradients


def scaffold(
    task: Task, lr: float, n_total: float, server_lr: float = 1.0, option: int = 2
) -> Algorithm:
    r"""Local steps corrected by control variates: c_k, client k's gradient, and c, everyone's.

    Local step: w <- w - lr (∇L_k(w) - c_k + c). After tau_k steps, with delta_k = theta_k - theta:

    - option 1: c_k <- ∇L_k(theta), one more pass over the round's examples; with many local steps
      and clients of different curvature it can explode (lesson 8);
    - option 2: c_k <- c_k - c - delta_k / (tau_k lr), the mean gradient of the way.

    Server: theta <- theta + server_lr Σ_S p_k delta_k and c <- c + Σ_S (n_k / n_total) (change of
    c_k), so that c = Σ_k (n_k / n_total) c_k over ALL clients, whoever takes part. c and every c_k
    start at 0. Two vectors travel each way.

    ValueError for a number out of range; from the run, if the cohort holds more than ``n_total``.

    Args:
        task, server_lr: As in :func:`~fedlearn.algorithms.fedavg`.
        lr: Learning rate eta of the clients. SCAFFOLD wants a smaller one than FedAvg.
        n_total: Σ n_k over the whole population, e.g. ``len(y)``; with ``Recipe(equal=True)``,
            where every client counts 1, their number N.
        option: 1 or 2, how c_k is refreshed.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> method = scaffold(softmax_regression(2, 2), lr=0.1, n_total=10)
        >>> reply = {"n": torch.tensor([4.0, 1.0]), "delta_c": torch.tensor([[1.0], [3.0]])}
        >>> p = torch.tensor([0.8, 0.2])
        >>> method.server(method.init(torch.zeros(1)), torch.ones(1), reply, p)  # 0.4 * 1 + 0.1 * 3
        {'theta': tensor([1.]), 'c': tensor([0.7000])}

    Reference: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, 2020, "SCAFFOLD: stochastic
    controlled averaging for federated learning", Algorithm 1. Derived in lesson 8.

    Differs from the paper: there all clients weigh the same (c over N, updates over |S|). Here both
    c and the updates carry the weights n_k of the objective; with equal sizes it is the paper's. A
    uniform c beside weighted updates converges to the optimum of another objective. tau_k counts
    the steps that client k took, not those of the largest client.
    """
    positive("scaffold", "lr", lr)
    positive("scaffold", "server_lr", server_lr)
    check_total("scaffold", n_total)
    check("scaffold", "option", option, is_whole(option, 1, 2), "1 or 2", 2)
    init = lambda theta: {"theta": theta, "c": torch.zeros_like(theta)}
    memory = lambda theta0: {"c_k": torch.zeros_like(theta0)}

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        theta, c, c_k = message["theta"], message["c"], memory["c_k"]
        theta_k, tau, loss = descend(task, theta, shards, lr, shift=c - c_k)
        delta = theta_k - theta
        if option == 1:
            delta_c = gradients(task, theta, shards)[0] - c_k
        else:
            delta_c = -delta / (tau.clamp(min=1) * lr) - c
        delta_c = (delta_c * (tau > 0)).to(theta)  # who took no step has learnt nothing
        return {"delta": delta, "delta_c": delta_c, "loss": loss}, {"c_k": c_k + delta_c}

    def server(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        w = reply["n"] / check_total("scaffold", n_total, reply["n"])
        theta, c = state["theta"] + server_lr * delta, state["c"] + weighted(w, reply["delta_c"])
        return {"theta": theta, "c": c}

    return Algorithm(init, client, server, memory=memory, task=task, folds=server)
