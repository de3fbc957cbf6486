"""q-FedAvg: Li, Sanjabi, Beirami, Smith, 2020, Algorithm 2. https://arxiv.org/abs/1905.10497"""

from ..algorithms.base import Algorithm, Kept, Message, Reply, Shards, State, Task, Tensor, descend
from ..algorithms.fedavg import fedavg
from ..checks import not_negative
from .base import objective


def qfedavg(task: Task, lr: float, q: float, *, full_step: bool = False) -> Algorithm:
    r"""Who does badly counts more: the objective Σ_k p_k L_k^(q + 1) / (q + 1).

    With F_k = L_k(theta), the loss on arrival, and Lip = 1 / lr the server takes
    theta <- theta + Σ_k p_k F_k^q Lip delta_k / Σ_k p_k h_k,
    h_k = q F_k^(q - 1) ‖Lip delta_k‖² + Lip F_k^q. The first part of h_k bounds how fast F^q itself
    changes: it makes steps short, the shorter the larger q. q = 0 is FedAvg.

    Args:
        task, lr: As in :func:`~fedlearn.algorithms.fedavg`.
        q: >= 0, how much a bad loss counts. ValueError for a number out of range.
        full_step: Divide by Σ_k p_k F_k^q alone: the same direction, a mean as long as FedAvg's.

    Example:
        >>> import torch
        >>> from fedlearn.model import softmax_regression
        >>> method = qfedavg(softmax_regression(2, 2), lr=0.1, q=2.0)
        >>> p, reply = torch.tensor([1.0]), {"h": torch.tensor([[4.0]])}
        >>> method.server({"theta": torch.zeros(1)}, torch.tensor([2.0]), reply, p)["theta"]
        tensor([0.5000])

    Reference: Li, Sanjabi, Beirami, Smith, 2020, "Fair resource allocation in federated learning",
    Algorithm 2 (q-FedAvg).

    Differs from the paper: there clients are drawn with probability p_k and count alike; here they
    carry their weights p_k, which ``Recipe(equal=True)`` makes alike.
    """
    not_negative("qfedavg", "q", q, 1.0)
    lip = 1 / lr

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        theta = message["theta"]
        loss0 = objective(task, theta, shards).to(theta)[:, None] + 1e-10  # 0^(q - 1) at q < 1
        theta_k, _, loss = descend(task, theta, shards, lr)
        delta, w = theta_k - theta, loss0**q
        h = lip * w
        if not full_step:
            h = h + q * loss0 ** (q - 1) * (lip * delta).square().sum(1, keepdim=True)
        return {"delta": lip * w * delta, "h": h, "loss": loss}, memory

    def server(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        if not len(p):
            return state
        return {"theta": state["theta"] + delta / (p.to(delta) @ reply["h"])}

    return fedavg(task, lr)._replace(client=client, server=server)
