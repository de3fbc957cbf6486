"""Asynchronous rounds, event by event on the simulated clock: FedBuff and FedAsync."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .algorithms import Reply
from .algorithms.base import nbytes, payload
from .federate import Diverged, Evaluate, Round, _not_finite
from .history import History
from .optim import check
from .recipe import Recipe, _at_least, _same_recipe
from .rng import Use, hashed
from .simulated import Simulated
from .transform import Context


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
    check("polynomial", "a", a, 0 <= a < float("inf"), ">= 0 and finite", 0.5)
    return lambda s: (1 + s) ** -a


def asynchronous(
    recipe: Recipe,
    clients: Simulated,
    *,
    rounds: int,
    concurrency: int,
    buffer: int = 10,
    staleness: Callable[[Tensor], Tensor] = polynomial(0.5),  # noqa: B008 (a pure function)
    rebase: bool = False,
    evaluate: Evaluate | None = None,
    every: int = 1,
) -> Iterator[Round]:
    """Nobody waits: the server steps whenever ``buffer`` updates have come in.

    ``concurrency`` clients train at any time. One that is done sends delta_k, made from the theta
    that it was sent s_k server steps ago, and another idle client starts from today's theta. The
    server's step combines the buffer, weight p_k staleness(s_k) each, and a server_lr:

    - FedBuff: buffer > 1. theta <- theta + server_lr Σ_k p_k (1 + s_k)^-a delta_k.
    - FedAsync: buffer = 1, rebase. theta <- (1 - w) theta + w theta_k with w = server_lr
      (1 + s_k)^-a: a step towards what the client found, and not along what it did.

    Args:
        recipe: Its method must send theta alone and remember nothing: fedavg, fedprox, fedopt.
        clients: Made with ``fleet=...``: the clock.
        rounds: Steps of the server.
        concurrency: Clients that train at the same time, 1 to N.
        buffer: Updates a step.
        staleness: (K,) ages s_k in server steps -> (K,) weights.
        rebase: Measure delta_k from today's theta instead of from where client k started.
        evaluate, every: As for ``federate``.

    Returns:
        An iterator of :class:`~fedlearn.federate.Round`, one a server step: ``cohort`` is who sent
        in the buffer, ``p`` the weights with staleness, ``seconds`` the time since the last step;
        ``metrics["staleness"]`` is the mean of s_k.

    Raises:
        ValueError: At once, if a number is out of range, the clients have no fleet, or the method
            sends or remembers more than theta.
        Diverged: From the iterator.

    Example:
        >>> from fedlearn import algorithms, data, fleet, model, partition
        >>> digits, task = data.load("digits"), model.softmax_regression(64, 10)
        >>> parts = partition.iid(digits.y, 50, np.random.default_rng(0))
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, epochs=5)
        >>> clients = Simulated(recipe, digits.x, digits.y, parts, fleet=fleet.fleet(50))
        >>> *_, last = asynchronous(recipe, clients, rounds=20, concurrency=20, buffer=5)
        >>> len(last.cohort), last.seconds > 0
        (5, True)

    Reference:
        Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, 2022, "Federated learning with
        buffered asynchronous aggregation", Algorithm 1. Xie, Koyejo, Gupta, 2019, "Asynchronous
        federated optimization", Algorithm 1.

    Differs from the paper: p_k are the recipe's weights, n_k over the buffer;
    ``Recipe(equal=True)`` is the papers' 1/K.
    """
    _check(recipe, clients, rounds, concurrency, buffer, every)
    return _loop(recipe, clients, rounds, concurrency, buffer, staleness, rebase, evaluate, every)


class _Flight(NamedTuple):
    """A client at work."""

    theta: Tensor  # (d,) where it started
    version: int  # of that theta, in server steps
    number: int  # how many were sent off before it: its shuffle depends on this


class _Air:
    """Clients at work, in the order in which they will be done.

    A client's answer is known from where it started, so all that are in the air are trained
    together when the first of their answers is due: the order of events stays what it is.
    """

    def __init__(self, recipe: Recipe, clients: Simulated, sent: int):
        self.recipe, self.clients = recipe, clients
        self.now, self.launched = 0.0, 0
        self.idle = list(range(clients.count))
        self.flights: dict[int, _Flight] = {}
        self.trained: dict[int, dict[str, Tensor]] = {}
        self.queue: list[tuple[float, int, int]] = []
        assert clients.fleet
        sizes = np.array([len(rows) for rows in clients.parts])
        everyone = np.arange(clients.count)
        self.takes = clients.fleet.seconds(everyone, sizes * recipe.epochs, sent, sent)

    def launch(self, theta: Tensor, version: int) -> None:
        """Send theta to a client that is idle, each as likely as any other."""
        draw = hashed(np.array([self.launched]), self.recipe.seed, Use.SAMPLE)[0]
        at = int(draw % np.uint64(len(self.idle)))
        self.idle[at], self.idle[-1] = self.idle[-1], self.idle[at]
        k = self.idle.pop()
        self.flights[k] = _Flight(theta, version, self.launched)
        heapq.heappush(self.queue, (self.now + self.takes[k], self.launched, k))
        self.launched += 1

    def land(self) -> tuple[int, _Flight, dict[str, Tensor]]:
        """The next client that is done, and its answer."""
        self.now, _, k = heapq.heappop(self.queue)
        if k not in self.trained:
            self._train([j for j in self.flights if j not in self.trained])
        self.idle.append(k)
        return k, self.flights.pop(k), self.trained.pop(k)

    def _train(self, who: list[int]) -> None:
        size = self.clients.chunk
        for some in (who[i : i + size] for i in range(0, len(who), size)):
            starts = torch.stack([self.flights[k].theta for k in some])
            numbers = np.array([self.flights[k].number for k in some])
            S = np.array(some)
            ctx = Context(self.recipe.seed, 0, S, S, turns=numbers)
            reply = self.clients.run({"theta": starts}, ctx)
            columns = {name: rows.unbind(0) for name, rows in reply.items()}
            for i, k in enumerate(some):
                self.trained[k] = {name: rows[i] for name, rows in columns.items()}


def _loop(  # type: ignore[no-untyped-def]
    recipe, clients, rounds, concurrency, buffer, staleness, rebase, evaluate, every
) -> Iterator[Round]:
    algorithm, seed = recipe.algorithm, recipe.seed
    state, history = algorithm.init(recipe.theta.to(clients.device)), History({}, recipe.theta)
    air = _Air(recipe, clients, nbytes({"theta": recipe.theta}))
    for _ in range(concurrency):
        air.launch(state["theta"], 0)
    for t in range(rounds):
        theta, before = state["theta"], air.now
        came: list[tuple[int, _Flight, dict[str, Tensor]]] = []
        while len(came) < buffer:
            came.append(air.land())
            if len(came) < buffer:
                air.launch(
                    theta, t
                )  # somebody else starts at once; behind the last, after the step
        S = np.array([k for k, *_ in came])
        reply: Reply = {name: torch.stack([r[name] for *_, r in came]) for name in came[0][2]}
        ages = torch.tensor([t - f.version for _, f, _ in came], dtype=theta.dtype)
        if rebase:
            reply["delta"] = reply["delta"] + torch.stack([f.theta for _, f, _ in came]) - theta
        share = reply["n"] / reply["n"].sum()
        p = share * staleness(ages).to(share)
        delta = recipe.pipeline.combine(reply, p, Context(seed, t, S, S))
        state = algorithm.server(state, delta, reply, p)

        theta = state["theta"]
        air.launch(theta, t + 1)
        if not bool(theta.isfinite().all()):
            raise Diverged(t, _not_finite(reply["delta"], S), history)
        due = evaluate and ((t + 1) % every == 0 or t == rounds - 1)
        r = Round(
            t=t,
            theta=theta,
            cohort=S,
            deltas=reply["delta"],
            p=p,
            loss=float(share @ reply["loss"]),
            sent=nbytes({"theta": theta}),
            received=payload(reply),
            metrics={"staleness": float(ages.mean()), **(evaluate(theta) if due else {})},
            called=len(S),
            seconds=float(air.now - before),
        )
        history.add(r)
        yield r


def _check(
    recipe: Recipe, clients: Simulated, rounds: int, concurrency: int, buffer: int, every: int
) -> None:
    name, N = "asynchronous", clients.count
    for argument, value in (("rounds", rounds), ("buffer", buffer), ("every", every)):
        check(name, argument, value, _at_least(value, 1), "an integer >= 1", 10)
    ok = _at_least(concurrency, 1) and concurrency <= N
    check(name, "concurrency", concurrency, ok, f"an integer from 1 to N = {N}", max(1, N // 2))
    if clients.fleet is None:
        raise ValueError(
            "asynchronous: the clients need a clock, got none, e.g. "
            "Simulated(recipe, x, y, parts, fleet=fleet(len(parts)))"
        )
    _same_recipe(recipe, clients.recipe)
    more = set(recipe.algorithm.message(recipe.algorithm.init(recipe.theta))) - {"theta"}
    if more or clients.memory:
        raise ValueError(
            f"asynchronous: needs a method that sends theta alone and remembers nothing, got one "
            f"with {sorted(more | set(clients.memory))}, e.g. fedavg(task, lr=0.1)"
        )
