"""Asynchronous rounds, event by event on the simulated clock: FedBuff and FedAsync."""

import heapq
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .algorithms import Reply
from .algorithms.base import nbytes, payload
from .attacks.byzantine import Byzantine
from .checks import not_negative, whole
from .history import Round
from .loop import Clients, Evaluate, Place, Run
from .recipe import Recipe, no_reply
from .rng import Use, hashed
from .simulated import Simulated
from .transform import Context

Flight = tuple[Tensor, int, int]  # theta where it started, its version, how many left before it


def polynomial(a: float = 0.5) -> Callable[[Tensor], Tensor]:
    """Weight of an update that is s server steps old: (1 + s)^-a, as (K,) ages -> (K,) weights.

    Args:
        a: >= 0 and finite, else ValueError; 0 forgives everything.

    Example:
        >>> polynomial(0.5)(torch.tensor([0.0, 3.0]))
        tensor([1.0000, 0.5000])

    Reference:
        Xie, Koyejo, Gupta, 2019, "Asynchronous federated optimization", §5.2.
    """
    not_negative("polynomial", "a", a, 0.5)
    return lambda s: (1 + s) ** -a


def asynchronous(
    clients: Simulated | Byzantine,
    *,
    rounds: int,
    concurrency: int,
    buffer: int = 10,
    staleness: Callable[[Tensor], Tensor] = polynomial(0.5),  # noqa: B008 (a pure function)
    rebase: bool = False,
    evaluate: Evaluate | None = None,
    every: int = 1,
    checkpoint: Place = None,
    save_every: int = 1,
    resume: Place | Run | bool = None,
) -> Run:
    """Nobody waits: the server steps whenever ``buffer`` updates have come in.

    ``concurrency`` clients train at any time. One that is done sends delta_k, made from the theta
    that it was sent s_k server steps ago, and another idle client starts from today's theta. The
    server's step combines the buffer, weight p_k staleness(s_k) each, and a server_lr:

    - FedBuff: buffer > 1. theta <- theta + server_lr Σ_k p_k (1 + s_k)^-a delta_k.
    - FedAsync: buffer = 1, rebase. theta <- (1 - w) theta + w theta_k with w = server_lr
      (1 + s_k)^-a: a step towards what the client found, and not along what it did.

    Args:
        clients: ``Simulated``, made with ``fleet=...``: the clock. The method of their recipe must
            send theta alone and remember nothing: fedavg, fedprox, fedopt. ``Byzantine`` round them
            attacks behind the buffer: attackers see the updates with which theirs are combined.
        rounds: Steps of the server.
        concurrency: Clients that train at the same time, 1 to N.
        buffer: Updates a step.
        staleness: (K,) ages s_k in server steps -> (K,) weights.
        rebase: Measure delta_k from today's theta instead of from where client k started.
        evaluate, every, checkpoint, save_every, resume: As for ``federate``.

    Returns:
        A :class:`~fedlearn.loop.Run` of rounds, one a server step: ``answered`` is who sent in the
        buffer, ``p`` the weights with staleness, ``seconds`` the time since the last step;
        ``metrics["staleness"]`` is the mean of s_k.

    Raises:
        ValueError: At once, if a number is out of range, the clients live elsewhere or have no
            fleet, or the method sends or remembers more than theta.
        Diverged: From the iterator.

    Example:
        >>> from fedlearn import Recipe, algorithms, data, fleet, model, partition
        >>> digits, task = data.load("digits"), model.softmax_regression(64, 10)
        >>> parts = partition.iid(digits.y, 50, np.random.default_rng(0))
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, epochs=5)
        >>> clients = Simulated(recipe, digits.x, digits.y, parts, fleet=fleet.fleet(50))
        >>> *_, last = asynchronous(clients, rounds=20, concurrency=20, buffer=5)
        >>> len(last.answered), last.seconds > 0
        (5, True)

    Reference:
        Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, 2022, "Federated learning with
        buffered asynchronous aggregation", Algorithm 1. Xie, Koyejo, Gupta, 2019, "Asynchronous
        federated optimization", Algorithm 1.

    Differs from the paper: p_k are the recipe's weights, n_k over the buffer;
    ``Recipe(equal=True)`` is the papers' 1/K.
    """
    honest = _check(clients, concurrency, buffer)
    nobody = np.zeros(0, int)
    call = lambda n, seed, t: Context(seed, t, nobody, nobody)
    loop = lambda run: _loop(run, honest, concurrency, buffer, staleness, rebase)
    recipe = clients.recipe
    run = Run("asynchronous", clients, recipe, call, rounds, evaluate, every, loop=loop)
    return run.begin(checkpoint, save_every, resume)


class _Air:
    """Clients at work, in the order in which they will be done.

    A client's answer is known from where it started, so all that are in the air are trained
    together when the first of their answers is due: the order of events stays what it is. What is
    known between two rounds is plain, so that it can lie in the run's state and in a checkpoint.
    """

    def __init__(self, clients: Simulated, known: dict[str, Any] | None):
        self.clients = clients
        known = known or {"now": 0.0, "launched": 0, "idle": range(clients.count)}
        self.now, self.launched, self.idle = known["now"], known["launched"], list(known["idle"])
        self.flights: dict[int, Flight] = dict(known.get("flights", {}))
        self.trained: dict[int, dict[str, Tensor]] = dict(known.get("trained", {}))
        self.queue: list[tuple[float, int, int]] = list(known.get("queue", ()))
        assert clients.fleet
        sizes = np.array([len(rows) for rows in clients.parts])
        everyone, epochs = np.arange(clients.count), clients.recipe.epochs
        down, up = nbytes({"theta": clients.recipe.theta}), _up(clients.recipe)
        self.takes = clients.fleet.seconds(everyone, sizes * epochs, down, up)

    def known(self) -> dict[str, Any]:
        """All of it, plain, as it is now."""
        plain = {"idle": [*self.idle], "flights": {**self.flights}, "trained": {**self.trained}}
        return {"now": self.now, "launched": self.launched, "queue": [*self.queue], **plain}

    def launch(self, theta: Tensor, version: int) -> None:
        """Send theta to a client that is idle, each as likely as any other."""
        draw = hashed(np.array([self.launched]), self.clients.recipe.seed, Use.SAMPLE)[0]
        at = int(draw % np.uint64(len(self.idle)))
        self.idle[at], self.idle[-1] = self.idle[-1], self.idle[at]
        k = self.idle.pop()
        self.flights[k] = (theta, version, self.launched)
        heapq.heappush(self.queue, (self.now + float(self.takes[k]), self.launched, k))
        self.launched += 1

    def land(self) -> tuple[int, Flight, dict[str, Tensor]]:
        """The next client that is done, and its answer."""
        self.now, _, k = heapq.heappop(self.queue)
        if k not in self.trained:
            self._train([j for j in self.flights if j not in self.trained])
        self.idle.append(k)
        return k, self.flights.pop(k), self.trained.pop(k)

    def _train(self, who: list[int]) -> None:
        size = self.clients.chunk
        for some in (who[i : i + size] for i in range(0, len(who), size)):
            starts = torch.stack([self.flights[k][0] for k in some])
            numbers = np.array([self.flights[k][2] for k in some])
            S = np.array(some)
            ctx = Context(self.clients.recipe.seed, 0, S, S, turns=numbers, rows=True)
            reply, _ = self.clients.run({"theta": starts}, ctx, self.clients.memory())
            columns = {name: rows.unbind(0) for name, rows in reply.items()}
            for i, k in enumerate(some):
                self.trained[k] = {name: rows[i] for name, rows in columns.items()}


def _loop(
    run: Run,
    clients: Simulated,
    concurrency: int,
    buffer: int,
    staleness: Callable[[Tensor], Tensor],
    rebase: bool,
) -> Iterator[Round]:
    algorithm, pipeline, seed = run.recipe.algorithm, run.recipe.pipeline, run.recipe.seed
    air = _Air(clients, run.state.get("air"))
    for t in range(run.t, run.rounds):
        theta, before = run.state["theta"], air.now
        while len(air.flights) < concurrency:
            air.launch(theta, 0)
        came: list[tuple[int, Flight, dict[str, Tensor]]] = []
        while len(came) < buffer:
            came.append(air.land())
            if len(came) < buffer:  # somebody else starts at once; behind the last, after the step
                air.launch(theta, t)
        S, turns = np.array([k for k, *_ in came]), np.array([f[2] for _, f, _ in came])
        ctx = Context(seed, t, S, S, turns=turns, secret=run.recipe.secret)
        reply: Reply = {name: torch.stack([r[name] for *_, r in came]) for name in came[0][2]}
        reply = _struck(run.clients, reply, ctx)
        ages = torch.tensor([t - f[1] for _, f, _ in came], dtype=reply["n"].dtype)
        if rebase:
            reply["delta"] = reply["delta"] + torch.stack([f[0] for _, f, _ in came]) - theta
        share = reply["n"] / reply["n"].sum()
        p = share * staleness(ages).to(share)
        delta = pipeline.combine(reply, p, ctx)
        state = algorithm.server(run.state, delta, reply, p)
        air.launch(state["theta"], t + 1)
        reply["seconds"] = torch.tensor([air.now - before], dtype=torch.float64)
        state = {**state, "air": air.known()}
        yield run.keep(ctx, {"theta": theta}, reply, p, state, staleness=float(ages.mean()))


def _up(recipe: Recipe) -> int:
    """Bytes of an answer, known before any is there: the clock needs to know when it ends."""
    theta, nobody = recipe.theta, np.zeros(0, int)
    reply, _ = no_reply(recipe, {"theta": theta}, Context(recipe.seed, 0, nobody, nobody))
    return payload({k: v.new_zeros(1, *v.shape[1:]) for k, v in reply.items()}, recipe.pipeline)


def _struck(clients: Clients, reply: Reply, ctx: Context) -> Reply:
    """The buffer as the server gets it: attackers inside come first."""
    if not isinstance(clients, Byzantine):
        return reply
    return clients.strike(_struck(clients.clients, reply, ctx), ctx)


def _check(clients: Clients, concurrency: int, buffer: int) -> Simulated:
    """The clients that train, without the attackers round them."""
    name, recipe = "asynchronous", clients.recipe
    while isinstance(clients, Byzantine):
        clients = clients.clients
    if not isinstance(clients, Simulated):
        raise ValueError(
            f"asynchronous: the clients must live in this process, on a simulated clock, got "
            f"{type(clients).__name__}, e.g. Simulated(recipe, x, y, parts, fleet=fleet(N))"
        )
    whole(name, "buffer", buffer)
    whole(name, "concurrency", concurrency, 1, clients.count, example=max(1, clients.count // 2))
    if clients.fleet is None:
        raise ValueError(
            "asynchronous: the clients need a clock, got none, e.g. "
            "Simulated(recipe, x, y, parts, fleet=fleet(len(parts)))"
        )
    more = set(recipe.algorithm.message(recipe.algorithm.init(recipe.theta))) - {"theta"}
    kept = {k for own in recipe.memory() for k in own}
    more |= {"theta as it changed"} if recipe.algorithm.down else set()
    if more or kept:
        raise ValueError(
            f"asynchronous: needs a method that sends theta alone and remembers nothing, got one "
            f"with {sorted(more | kept)}, e.g. fedavg(task, lr=0.1)"
        )
    return clients
