"""What a federated method is: what a client does, what the server keeps, sends and does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ..data import Shards
from ..model import Task
from ..transform import NOT_SENT

State = dict[str, Any]  # of the server: "theta" (d,), and whatever else the method keeps
Message = dict[str, Tensor]  # server -> client: "theta" (d,), and whatever else the method sends
Reply = dict[str, Tensor]  # clients -> server, stacked: "delta" (K, d), "loss" (K,), and extras
Kept = dict[str, Tensor]  # what a client keeps between rounds, stacked: (K, ...)


class Algorithm(NamedTuple):
    """Five pure functions. ``client`` trains K clients at once, a row each: one formula.

    Attributes:
        init: theta0 (d,) -> state.
        client: (message, shards, memory {name: (K, ...)}) -> (reply {name: (K, ...)}, memory).
        server: (state, delta (d,), reply {name: (K, ...)}, p (K,)) -> state.
        message: state -> what is broadcast.
        memory: theta0 (d,) -> what one client keeps between rounds.
        task: What the clients minimise: lets data be checked against the model before round 0.
    """

    init: Callable[[Tensor], State]
    client: Callable[[Message, Shards, Kept], tuple[Reply, Kept]]
    server: Callable[[State, Tensor, Reply, Tensor], State]
    message: Callable[[State], Message] = lambda state: state
    memory: Callable[[Tensor], Kept] = lambda theta0: {}
    task: Task | None = None


def nbytes(tensors: dict[str, Tensor]) -> int:
    """Size of a message: numbers times bytes each.

    Example:
        >>> import torch
        >>> nbytes({"theta": torch.zeros(7850)})
        31400
    """
    return sum(v.numel() * v.element_size() for v in tensors.values())


def payload(reply: Reply) -> int:
    """Bytes that ONE client sends: without n_k, known to the server, and what only the plot wants.

    Example:
        >>> import torch
        >>> payload({"delta": torch.zeros(3, 7850), "n": torch.ones(3)})
        31400
    """
    K = len(reply["delta"])
    return nbytes({k: v for k, v in reply.items() if k not in NOT_SENT}) // max(K, 1)


def check_total(name: str, n_total: float, n: Tensor | None = None) -> float:
    """The population's Σ n_k, checked: > 0 and finite, and no less than the cohort's.

    Args:
        name: The method, for the error.
        n_total: Σ n_k over all clients.
        n: (K,) what the cohort's clients count for.

    Returns:
        ``n_total``.

    Raises:
        ValueError: If it can't be the population's.

    Example:
        >>> check_total("scaffold", 1437)
        1437
    """
    if not 0 < n_total < math.inf:
        raise ValueError(
            f"{name}: n_total must be the number of the population's examples, > 0, got {n_total}, "
            f"e.g. n_total=len(y)"
        )
    if n is not None and n.sum() > n_total * (1 + 1e-6):
        raise ValueError(
            f"{name}: n_total must be the number of all clients' examples, got {n_total}, but "
            f"this round's {len(n)} clients hold {float(n.sum()):g}, e.g. n_total=len(y) (or N, if "
            f"every client counts 1)"
        )
    return n_total
