"""FedSGD: McMahan et al., 2017, §2, the baseline of FedAvg. https://arxiv.org/abs/1602.05629"""

import torch

from ..checks import below_one, positive
from ..task import wide
from .base import Algorithm, Kept, Message, Reply, Shards, State, Task, Tensor, theta_alone


def fedsgd(task: Task, lr: float, beta: float = 0.0) -> Algorithm:
    r"""One gradient a round: theta <- theta - lr * Σ_k p_k ∇L_k(theta).

    Client k sends delta_k = -lr ∇L_k(theta), the gradient taken at theta over the round's examples.
    With everyone in the cohort and p_k = n_k / n this is gradient descent on the pooled data, to
    float error, for any number of clients and any skew.

    The ``Recipe`` wants ``epochs=1, batch=None`` for gradients over all of a client's examples;
    with a smaller batch the gradient at theta is averaged over the batches: the same number.

    Args:
        task: What the clients minimise.
        lr: Learning rate eta, > 0 and finite.
        beta: Momentum on the server, in [0, 1): v <- beta v + Σ_k p_k delta_k; theta <- theta + v.
            ValueError for a number out of range.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> method = fedsgd(softmax_regression(2, 2), lr=0.1, beta=0.5)
        >>> state = method.init(torch.zeros(6))
        >>> for _ in range(2):  # the same update twice: 1, then 1.5
        ...     state = method.server(state, torch.ones(6), {}, torch.ones(1))
        >>> state["theta"][0].item()
        2.5

    Reference: McMahan et al., 2017, §2 ("FederatedSGD"). Derived in lesson 2.
    """
    positive("fedsgd", "lr", lr)
    below_one("fedsgd", "beta", beta)
    init = lambda theta: {"theta": theta, "v": torch.zeros_like(wide(theta))}

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        g, loss = gradients(task, message["theta"], shards)
        return {"delta": (-lr * g).to(message["theta"]), "loss": loss}, memory

    def server(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        v = beta * state["v"] + delta
        return {"theta": (state["theta"] + v).to(delta), "v": v}

    return Algorithm(init, client, server, theta_alone, task=task, folds=server)


def gradients(task: Task, theta: Tensor, shards: Shards) -> tuple[Tensor, Tensor]:
    """∇L_k (K, d) and L_k (K,) over the round's examples, at theta (d,) or each one's own (K, d).

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> task = softmax_regression(2, 2)
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> one = Shards(x, y, torch.tensor([[[0, 1]]]), torch.ones(1, 1, 2), torch.tensor([2.0]))
        >>> gradients(task, task.theta0, one)[0]
        tensor([[-0.2500,  0.2500,  0.2500, -0.2500,  0.0000,  0.0000]])
    """
    theta_k = theta.expand(len(shards.n), -1)
    seen = shards.mask.sum((1, 2)).clamp(min=1)  # examples of all batches: n_k, E times
    total, loss = torch.zeros_like(wide(theta_k)), torch.zeros_like(seen)
    for x, y, mask in shards.batches():
        g, objective = task.grad(theta_k, x, y, mask)
        share = mask.sum(1) / seen
        total += share[:, None] * g
        loss += share * objective
    return total, loss
