"""FedNova: Wang et al., 2020. https://arxiv.org/abs/2007.07481"""

import torch

from ..checks import below_one, check, not_negative, positive
from .base import Algorithm, Kept, Message, Reply, Shards, State, Task, Tensor, descend
from .fedavg import fedavg


def fednova(
    task: Task, lr: float, server_lr: float = 1.0, beta: float = 0.0, mu: float = 0.0
) -> Algorithm:
    r"""Normalised averaging: a client that took more steps doesn't count more.

    theta <- theta + server_lr tau_eff Σ_k p_k delta_k / a_k, with tau_eff = Σ_k p_k a_k. For plain
    local SGD a_k = tau_k, the steps that client k took. With momentum beta or a pull mu, a_k is
    ‖a_k‖₁ of the paper, the sum of what its gradients weigh in delta_k, see :func:`accumulated`.
    What travels as ``delta`` is delta_k / a_k; a_k travels beside it.

    Args:
        task, lr, server_lr, beta: As in :func:`~fedlearn.algorithms.fedavg`.
        mu: Strength of FedProx's pull towards theta, from 0 to below 1 / lr; else ValueError.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> method, p = fednova(softmax_regression(2, 2), lr=0.1), torch.tensor([0.5, 0.5])
        >>> per_step, a = torch.tensor([1.0]), torch.tensor([[1.0], [3.0]])  # 1 step and 3: 2
        >>> method.server({"theta": torch.zeros(1)}, per_step, {"a": a}, p)
        {'theta': tensor([2.])}

    Reference: Wang, Liu, Liang, Joshi, Poor, 2020, "Tackling the objective inconsistency problem in
    heterogeneous federated optimization", eq. 8 and §4 with tau_eff = Σ p_k a_k. Derived in
    lesson 8.
    """
    positive("fednova", "lr", lr)
    below_one("fednova", "beta", beta)
    not_negative("fednova", "mu", mu)
    check("fednova", "mu", mu, lr * mu < 1, f"< 1 / lr = {1 / lr:g}", 0.1)

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        theta = message["theta"]
        theta_k, tau, loss = descend(task, theta, shards, lr, mu=mu, beta=beta)
        a = accumulated(tau, lr, beta, mu)
        per_step = ((theta_k - theta) / torch.where(tau > 0, a, 1)).to(theta)
        return {"delta": per_step, "a": a, "loss": loss}, memory

    def server(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        tau_eff = p @ reply["a"]  # (1,)
        return {"theta": state["theta"] + (server_lr * tau_eff * delta).to(delta)}

    return fedavg(task, lr, server_lr)._replace(client=client, server=server, folds=server)


def accumulated(tau: Tensor, lr: float, beta: float = 0.0, mu: float = 0.0) -> Tensor:
    r"""‖a_k‖₁ (K, 1) with delta_k = -eta Σ_i a_{k,i} g_i over its tau_k (K, 1) gradients.

    What a gradient weighs j steps later: u = v = 1, then j times v <- beta v - lr mu u, u <- u + v.
    With momentum and a pull it swings, so a_k is Σ_j |u_j| and not the sum. For beta = mu = 0 it is
    tau_k; for momentum alone (tau - beta (1 - beta^tau) / (1 - beta)) / (1 - beta); for the pull
    alone (1 - (1 - lr mu)^tau) / (lr mu).

    Example:
        >>> accumulated(torch.tensor([[1.0], [2.0]]), lr=0.1, beta=0.5)
        tensor([[1.0000],
                [2.5000]])
    """
    way, u, v, lr, beta, mu = [0.0], 1.0, 1.0, float(lr), float(beta), float(mu)
    for _ in range(int(tau.max()) if len(tau) else 0):
        way.append(way[-1] + abs(u))
        v = beta * v - lr * mu * u
        u = u + v
    return torch.tensor(way, dtype=tau.dtype, device=tau.device)[tau.long()]
