"""FedPer: Arivazhagan et al., 2019 (1912.00818). FedRep: Collins et al., 2021 (2102.07078)."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..algorithms.base import Algorithm, Kept, Message, Reply, Shards, State, Task, descend
from ..algorithms.fedavg import fedavg
from ..checks import check, is_whole
from ..descend import Grad

Train = Callable[[Tensor, Shards], tuple[Tensor, Tensor]]  # start (K, d) -> theta_k, loss (K,)


def fedper(task: Task, lr: float, head: int | Tensor) -> Algorithm:
    r"""A shared body and a head of one's own, trained together: only the body is averaged.

    Client k starts from the server's body and its own last head, takes FedAvg's steps on both, and
    sends the body's change; the head's part of delta_k is 0. The model it uses is today's body with
    its own head.

    Args:
        task, lr: As in :func:`~fedlearn.algorithms.fedavg`.
        head: Which numbers of theta are the client's own: the last so many, or a mask (d,) of
            True. Neither none nor all of them; ValueError otherwise. ``mlp(64, 32, 10)``: 330.

    Example:
        >>> from fedlearn.model import mlp
        >>> method = fedper(mlp(64, 32, 10), lr=0.1, head=330)
        >>> list(method.memory(torch.zeros(2410)))
        ['head']

    Reference: Arivazhagan, Aggarwal, Singh, Choudhary, 2019, "Federated learning with
    personalization layers", Algorithms 1 and 2.

    Differs from the paper: ``Round.received`` counts the head's zeros, which needn't travel.
    """
    _mask("fedper", task, head)
    train = lambda start, shards: descend(task, start, shards, lr)[::2]
    return _shared_body(task, lr, _mask("fedper", task, head), train)


def fedrep(task: Task, lr: float, head: int | Tensor) -> Algorithm:
    r"""FedPer with the head first: all local steps on the head, then all of them on the body.

    Twice FedPer's gradients a round: the batches are walked through once for each.

    Args:
        task, lr, head: As in :func:`fedper`, which also says what raises.

    Example:
        >>> from fedlearn.model import mlp
        >>> method = fedrep(mlp(64, 32, 10), lr=0.1, head=330)
        >>> list(method.memory(torch.zeros(2410)))
        ['head']

    Reference: Collins, Hassani, Mokhtari, Shakkottai, 2021, "Exploiting shared representations for
    personalized federated learning", Algorithm 1.

    Differs from the paper: both parts walk through the same E epochs of batches; there the head
    takes several, the body one.
    """
    own = _mask("fedrep", task, head)

    def train(start: Tensor, shards: Shards) -> tuple[Tensor, Tensor]:
        half, _, _ = descend(task, start, shards, lr, grad=_only(task, own))
        theta_k, _, loss = descend(task, half, shards, lr, grad=_only(task, ~own))
        return theta_k, loss

    return _shared_body(task, lr, own, train)


def _shared_body(task: Task, lr: float, own: Tensor, train: Train) -> Algorithm:
    """delta is the body's; what a client keeps is its head, 0 elsewhere: body + head is a model."""
    memory = lambda theta0: {"head": theta0 * own.to(theta0)}

    def together(theta: Tensor, head: Tensor) -> Tensor:
        return torch.where(own.to(theta.device), head, theta)

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        start = together(message["theta"], memory["head"])
        theta_k, loss = train(start, shards)
        mine = own.to(start)
        return {"delta": (theta_k - start) * (1 - mine), "loss": loss}, {"head": theta_k * mine}

    def models(state: State, kept: Kept) -> Tensor:
        return together(state["theta"], kept["head"])

    return fedavg(task, lr)._replace(client=client, memory=memory, models=models)


def _only(task: Task, some: Tensor) -> Grad:
    """The task's gradient, 0 outside ``some`` (d,)."""

    def grad(theta: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        g, loss = task.grad(theta, x, y, mask)
        return g * some.to(g), loss

    return grad


def _mask(name: str, task: Task, head: int | Tensor) -> Tensor:
    """(d,) bool, True for the head."""
    d = task.theta0.numel()
    rule = f"an integer from 1 to {d - 1}, or a mask ({d},) with some True and some False"
    if isinstance(head, Tensor):
        good = (
            head.dtype == torch.bool and head.shape == (d,) and bool(head.any() and not head.all())
        )
        check(name, "head", tuple(head.shape), good, rule, max(1, d // 7))
        return head
    check(name, "head", head, is_whole(head, 1, d - 1), rule, max(1, d // 7))
    return torch.arange(d) >= d - head
