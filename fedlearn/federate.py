"""The federated loop: broadcast, train locally, send, aggregate, repeat."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .algorithms import Message, Reply
from .algorithms.base import nbytes, payload
from .history import Diverged, History, Round, collect
from .participation import Call, sample, uniform
from .recipe import Recipe, _at_least, _same_recipe
from .simulated import Simulated, centralised
from .transform import Context

__all__ = [
    "Clients",
    "Diverged",
    "History",
    "Recipe",
    "Round",
    "Simulated",
    "centralised",
    "collect",
    "federate",
    "loop",
    "nbytes",
    "sample",
]

Evaluate = Callable[[Tensor], dict[str, float]]  # theta -> metrics


class Clients(Protocol):
    """Whoever answers a broadcast. Replies come back stacked, in the cohort's order."""

    count: int
    device: torch.device

    def run(self, message: Message, ctx: Context) -> Reply:
        """Train the clients ``ctx.rows`` from ``message``. -> {name: (K, ...)}"""


def federate(
    recipe: Recipe,
    clients: Clients,
    *,
    rounds: int,
    cohort: int | Call | None = None,
    evaluate: Evaluate | None = None,
    every: int = 1,
) -> Iterator[Round]:
    """Run federated rounds, yielding each as it ends. The loop itself is :func:`loop`.

    Args:
        recipe: Method, start, pipeline, batch, epochs, seed.
        clients: Where the clients are, e.g. :class:`Simulated`.
        rounds: How many.
        cohort: K, clients drawn for each round, without replacement; None for all of them. Or
            another way to call them, from :mod:`fedlearn.participation`.
        evaluate: theta (d,) -> metrics, e.g. ``model.evaluator(task, data.x_test, data.y_test)``.
        every: Evaluate every so many rounds, and after the last.

    Returns:
        An iterator of :class:`Round`; nothing runs before its first ``next``.

    Raises:
        ValueError: At once, if a number is out of range or the clients have another recipe.
        Diverged: From the iterator, when a parameter becomes inf or NaN.

    Example:
        >>> from fedlearn import algorithms, data, model, partition
        >>> from fedlearn.rng import Use, numpy_rng
        >>> digits = data.load("digits")
        >>> task = model.softmax_regression(64, 10)
        >>> parts = partition.iid(digits.y, 20, numpy_rng(0, Use.PARTITION))
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, epochs=5)
        >>> clients = Simulated(recipe, digits.x, digits.y, parts)
        >>> test = model.evaluator(task, digits.x_test, digits.y_test)
        >>> *_, last = federate(recipe, clients, rounds=10, cohort=10, evaluate=test)
        >>> last.metrics["accuracy"] > 0.9
        True
    """
    for name, value in (("rounds", rounds), ("every", every)):
        if not _at_least(value, 1):
            raise ValueError(f"federate: {name} must be an integer >= 1, got {value!r}, e.g. 10")
    if cohort is None or callable(cohort):
        call = cohort or uniform()
    elif _at_least(cohort, 1) and cohort <= clients.count:
        call = uniform(cohort)
    else:
        raise ValueError(
            f"federate: the cohort must be an integer from 1 to the population's {clients.count} "
            f"clients, got {cohort!r}, e.g. cohort={max(1, clients.count // 2)}"
        )
    _same_recipe(recipe, getattr(clients, "recipe", recipe))
    return loop(recipe, clients, rounds, call, evaluate, every)


def loop(
    recipe: Recipe,
    clients: Clients,
    rounds: int,
    call: Call,
    evaluate: Evaluate | None = None,
    every: int = 1,
) -> Iterator[Round]:
    """The federated loop: broadcast, train locally, send, aggregate, repeat.

    Example:
        >>> import inspect
        >>> "clients.run" in inspect.getsource(loop)
        True
    """
    algorithm, pipeline, seed = recipe.algorithm, recipe.pipeline, recipe.seed
    state, history = algorithm.init(recipe.theta.to(clients.device)), History({}, recipe.theta)
    for t in range(rounds):
        # fmt: off
        ctx     = call(clients.count, seed, t)             # S_t is called; some or all answer
        message = algorithm.message(state)                 # theta_t goes out
        if not (len(ctx.rows) or pipeline.on_server):      # nobody answers: theta stays
            yield _nobody(t, state["theta"], message, ctx)
            continue
        reply   = clients.run(message, ctx)                # Delta_k and n_k come back, k in S_t
        p       = reply["n"] / reply["n"].sum()            # p_k = n_k / sum_j n_j
        delta   = pipeline.combine(reply, p, ctx)          # sum_k p_k Delta_k, or another rule
        state   = algorithm.server(state, delta, reply, p) # theta_{t+1}
        # fmt: on

        theta = state["theta"]
        if not bool(theta.isfinite().all()):
            raise Diverged(t, _not_finite(reply["delta"], ctx.rows), history)
        due = evaluate and ((t + 1) % every == 0 or t == rounds - 1)
        metrics = evaluate(theta) if evaluate and due else {}
        r = Round(
            t=t,
            theta=theta,
            cohort=ctx.rows,
            deltas=reply["delta"],
            p=p,
            loss=float(p @ reply["loss"]) if len(p) else math.nan,
            sent=nbytes(message),
            received=payload(reply),
            metrics=metrics,
            called=len(ctx.cohort),
            seconds=float(reply["seconds"].max()) if "seconds" in reply else math.nan,
        )
        history.add(r)
        yield r


def _nobody(t: int, theta: Tensor, message: Message, ctx: Context) -> Round:
    """A round in which nobody was called, or nobody answered."""
    none = theta[:0]
    deltas = theta.expand(0, -1)
    return Round(
        t, theta, ctx.rows, deltas, none, math.nan, nbytes(message), 0, {}, len(ctx.cohort)
    )


def _not_finite(deltas: Tensor, cohort: np.ndarray) -> list[int]:
    bad = ~deltas.isfinite().all(1)
    return [int(k) for k in cohort[bad.cpu().numpy()]]
