"""What a federated method is: what a client does, what the server keeps, sends and does."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ..batches import Shards
from ..checks import check, positive
from ..descend import descend as descend  # the local training of most methods
from ..task import Task
from ..transform import NOT_SENT, Pipeline, Wire

State = dict[str, Any]  # of the server: "theta" (d,), and whatever else the method keeps
Message = dict[str, Tensor]  # server -> client: "theta" (d,), and whatever else the method sends
Reply = dict[str, Tensor]  # clients -> server, stacked: "delta" (K, d), "loss" (K,), and extras
Kept = dict[str, Tensor]  # what a client keeps between rounds, stacked: (K, ...)


class Algorithm(NamedTuple):
    """Pure functions. ``client`` trains K clients at once, a row each: one formula.

    Attributes:
        init: theta0 (d,) -> state.
        client: (message, shards, memory {name: (K, ...)}) -> (reply {name: (K, ...)}, memory). In a
            round in which nobody answers K = 0, and shards hold no step. It runs under
            ``torch.no_grad``: ``task.grad`` is a gradient nevertheless; for one of your own write
            ``with torch.enable_grad():`` and hand it to ``descend(..., grad=...)``.
        server: (state, delta (d,), reply {name: (K, ...)}, p (K,)) -> state.
        message: state -> what is broadcast.
        memory: theta0 (d,) -> what one client keeps between rounds.
        task: What the clients minimise: lets data be checked against the model before round 0.
        idle: As ``server``, for a round in which nobody answers and no noise is added: theta stays.
        plain: Whether it is right only where the server gets the weighted mean of what was sent,
            because clients go on from that. Then a ``Recipe`` takes no other pipeline.
        folds: The server, if it is right, too, where it gets one row for several clients: the
            weighted mean of all that they sent, and their n together. One put in its place by
            ``_replace(server=...)`` is another, and gets every row.
        down: What theta's step costs on the way to a client that has heard of every step before, of
            its cost in full; None: theta is sent whole. Then every round calls every client.
        models: (state, memory {name: (N, ...)}) -> (N, d), the model that each client uses; None
            where all use theta. Read with :func:`fedlearn.personal.models`.
    """

    init: Callable[[Tensor], State]
    client: Callable[[Message, Shards, Kept], tuple[Reply, Kept]]
    server: Callable[[State, Tensor, Reply, Tensor], State]
    message: Callable[[State], Message] = lambda state: state
    memory: Callable[[Tensor], Kept] = lambda theta0: {}
    task: Task | None = None
    idle: Callable[[State, Tensor, Reply, Tensor], State] = lambda state, *nothing: state
    plain: bool = False
    models: Callable[[State, Kept], Tensor] | None = None
    folds: Callable[[State, Tensor, Reply, Tensor], State] | None = None
    down: Callable[[Wire], Wire] | None = None

    @property
    def folding(self) -> bool:
        """Whether ``folds`` speaks of this very server."""
        return self.folds is self.server


def theta_alone(state: State) -> Message:
    """What most methods broadcast: theta and nothing else of the server's state."""
    return {"theta": state["theta"]}


def nbytes(tensors: dict[str, Tensor]) -> int:
    """Size of a message in bytes: numbers times bytes each, 31,400 for 7,850 of float32."""
    return sum(v.numel() * v.element_size() for v in tensors.values())


def payload(reply: Reply, pipeline: Pipeline) -> int:
    """Bytes that ONE client sends, without n_k, which is known, and what only the plot wants.

    Of the update, what the pipeline's stages leave of it: whole bytes, the last one filled up.
    """
    K, more = len(reply["delta"]), {k: reply[k] for k in reply.keys() - NOT_SENT - {"delta"}}
    return nbytes(more) // K - -pipeline.wire(reply["delta"]).bits // 8 if K else 0


def broadcast(algorithm: Algorithm, message: Message, t: int) -> int:
    """Bytes that the server sends to ONE client in round t."""
    theta, whole = message["theta"], nbytes(message)
    if algorithm.down is None or t == 0:  # before round 0 nobody has a theta
        return whole
    in_full = Wire.of(theta)
    return whole - in_full.bits // 8 - -algorithm.down(in_full).bits // 8


def check_total(name: str, n_total: float, n: Tensor | None = None) -> float:
    """n_total, checked: > 0 and finite, and no less than what the clients of n (K,) hold."""
    positive(name, "n_total", n_total, "len(y), the number of the population's examples")
    if n is not None:
        rule = f"all clients' examples, and this round's {len(n)} alone hold {float(n.sum()):g}"
        enough = bool(n.sum() <= n_total * (1 + 1e-6))
        check(name, "n_total", n_total, enough, rule, "len(y) (or N, if every client counts 1)")
    return n_total
