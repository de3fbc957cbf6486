"""FedSAM: Qu et al., 2022, Algorithm 1. https://arxiv.org/abs/2206.02618"""

from ..checks import not_negative
from .base import Algorithm, Kept, Message, Reply, Shards, Task, Tensor, descend
from .fedavg import fedavg


def fedsam(task: Task, lr: float, rho: float, server_lr: float = 1.0) -> Algorithm:
    r"""FedAvg whose clients look for flat minima: each minimises max_{‖e‖ <= rho} L_k(w + e).

    Local step, to first order of that: w <- w - lr ∇L_k(w + rho g / ‖g‖) with g = ∇L_k(w), both on
    the same minibatch: two gradients a step. Server: theta <- theta + server_lr Σ_k p_k delta_k.
    With rho = 0 this is FedAvg.

    Args:
        task, lr, server_lr: As in :func:`~fedlearn.algorithms.fedavg`.
        rho: Radius of the ascent, >= 0 and finite; else ValueError. 0.01 to 0.5 in the paper.

    Example:
        >>> import torch
        >>> from fedlearn.model import softmax_regression
        >>> task, x, y = softmax_regression(1, 2), torch.ones(1, 1), torch.tensor([0])
        >>> one = Shards(x, y, torch.zeros(1, 1, 1).long(), torch.ones(1, 1, 1), torch.ones(1))
        >>> for rho in 0.0, 1.0:  # g = (-1, 1, -1, 1)/2, so the step is (1 - p) at p = σ(-2 rho)
        ...     method = fedsam(task, lr=1.0, rho=rho)
        ...     print(method.client({"theta": task.theta0}, one, {})[0]["delta"][0, 0])
        tensor(0.5000)
        tensor(0.8808)

    Reference: Qu, Li, Duan, Liu, Tang, Lu, 2022, "Generalized federated learning via sharpness
    aware minimization", Algorithm 1; Caldarola, Caputo, Ciccone, 2022, "Improving generalization in
    federated learning by seeking flat minima", §4.

    Differs from the paper: the server's mean is weighted by p_k, as in FedAvg; there all clients
    weigh the same. The loss reported is L_k(w), as FedAvg's.
    """
    not_negative("fedsam", "rho", rho)

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        def sharp(w: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            g, loss = task.grad(w, x, y, mask)
            length = g.norm(dim=1, keepdim=True)
            up = (rho / length).where(length > 0, 0.0)  # no gradient, no direction
            return task.grad(w + up * g, x, y, mask)[0], loss

        theta = message["theta"]
        theta_k, _, loss = descend(task, theta, shards, lr, grad=sharp)
        return {"delta": theta_k.sub_(theta), "loss": loss}, memory

    return fedavg(task, lr, server_lr)._replace(client=client)
