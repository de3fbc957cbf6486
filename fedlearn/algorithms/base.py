"""What a federated method is: what a client does, what the server keeps, sends and does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ..data import Shards
from ..model import Task

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
