"""Ditto: Li, Hu, Beirami, Smith, 2021, Algorithm 1. https://arxiv.org/abs/2012.04221"""

from ..algorithms.base import Algorithm, Kept, Message, Reply, Shards, Task, descend
from ..algorithms.fedavg import fedavg
from ..checks import check, not_negative, positive


def ditto(task: Task, lr: float, lam: float, own_lr: float | None = None) -> Algorithm:
    r"""FedAvg for all, and beside it a model of one's own that is pulled towards it.

    Client k takes FedAvg's steps for the global model, and in the same round as many for its own:
    v_k <- v_k - own_lr (∇L_k(v_k) + lam (v_k - theta)), towards the minimum of
    L_k(v) + lam/2 ‖v - theta‖². lam = 0: everybody alone. lam -> infinity: v_k = theta, which needs
    own_lr about 1 / lam.

    Args:
        task, lr: As in :func:`~fedlearn.algorithms.fedavg`.
        lam: lambda >= 0, strength of the pull.
        own_lr: Learning rate of v_k, > 0; None for ``lr``. own_lr lam < 1, or v_k overshoots theta.
            ValueError for a number out of range.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> method = ditto(softmax_regression(2, 2), lr=0.1, lam=0.5)
        >>> method.models is not None
        True

    Reference: Li, Hu, Beirami, Smith, 2021, "Ditto: fair and robust federated learning through
    personalization", Algorithm 1.
    """
    rate = lr if own_lr is None else own_lr
    positive("ditto", "own_lr", rate)
    not_negative("ditto", "lam", lam)
    rule = f"below 1 / own_lr = {1 / rate:g}, or take a smaller own_lr"
    check("ditto", "lam", lam, lam * rate < 1, rule, 0.5 / rate)
    base = fedavg(task, lr)
    memory = lambda theta0: {"own": theta0}

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        theta, v = message["theta"], memory["own"]
        reply, _ = base.client(message, shards, {})
        own, _, _ = descend(task, v, shards, rate, mu=lam, shift=lam * (v - theta))
        return reply, {"own": own}

    models = lambda state, kept: kept["own"]
    return base._replace(client=client, memory=memory, models=models)
