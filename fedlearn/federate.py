"""The federated loop, and clients that live in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .aggregate import mean
from .algorithms import Algorithm, Message, Reply
from .data import Shards, schedule
from .history import Diverged, History, Round, collect
from .model import check_labels, cross_entropy
from .rng import Use, numpy_rng
from .transform import Context, Pipeline, chain

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


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs but the data and the place where it runs.

    Attributes:
        algorithm: What clients and server do.
        theta: (d,) initial parameters.
        pipeline: Stages between a client's update and the server's step.
        batch: B, examples of a local step; None for all of a client's (B = inf).
        epochs: E, local passes a round over a client's data.
        seed: Of the cohorts, the shuffles and the noise.

    Raises:
        ValueError: If ``batch``, ``epochs`` or ``seed`` is out of range, or ``theta`` not a vector.

    Example:
        >>> from fedlearn import algorithms, model
        >>> task = model.softmax_regression(64, 10)
        >>> Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, batch=32, epochs=5).epochs
        5
    """

    algorithm: Algorithm
    theta: Tensor
    pipeline: Pipeline = chain(mean())  # noqa: RUF009 (a tuple of functions: nothing to share)
    batch: int | None = 32
    epochs: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.theta.dim() != 1 or not self.theta.isfinite().all():
            raise ValueError(
                f"Recipe: theta must be a finite vector (d,), got shape {tuple(self.theta.shape)}, "
                f"e.g. task.theta0"
            )
        if self.batch is not None and not _at_least(self.batch, 1):
            raise ValueError(
                f"Recipe: batch must be an integer >= 1, or None for all of a client's examples, "
                f"got {self.batch!r}, e.g. batch=32"
            )
        if not _at_least(self.epochs, 1):
            raise ValueError(f"Recipe: epochs must be an integer >= 1, got {self.epochs!r}, e.g. 5")
        if not (_at_least(self.seed, 0) and self.seed < 2**63):
            raise ValueError(
                f"Recipe: seed must be an integer >= 0 and < 2**63, got {self.seed!r}, e.g. seed=0"
            )

    def memory(self) -> dict[str, Tensor]:
        """What a client keeps before its first round: the method's part and the pipeline's.

        Example:
            >>> from fedlearn import algorithms, model
            >>> task = model.softmax_regression(2, 2)
            >>> Recipe(algorithms.fedavg(task, lr=0.5), task.theta0).memory()
            {}
        """
        return {**self.algorithm.memory(self.theta), **self.pipeline.memory(self.theta)}


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
    cohort: int | None = None,
    evaluate: Evaluate | None = None,
    every: int = 1,
) -> Iterator[Round]:
    """Run federated rounds, yielding each as it ends. The loop itself is :func:`loop`.

    Args:
        recipe: Method, start, pipeline, batch, epochs, seed.
        clients: Where the clients are, e.g. :class:`Simulated`.
        rounds: How many.
        cohort: K, clients drawn for each round, without replacement; None for all of them.
        evaluate: theta (d,) -> metrics, e.g. ``model.evaluator(task, data.x_test, data.y_test)``.
        every: Evaluate every so many rounds, and after the last.

    Returns:
        An iterator of :class:`Round`; nothing runs before its first ``next``.

    Raises:
        ValueError: At once, if a number is out of range or the clients have another recipe.
        Diverged: From the iterator, when a parameter becomes inf or NaN.

    Example:
        >>> from fedlearn import algorithms, data, model, partition
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
    K = clients.count if cohort is None else cohort
    if not (_at_least(K, 1) and K <= clients.count):
        raise ValueError(
            f"federate: the cohort must be an integer from 1 to the population's {clients.count} "
            f"clients, got {cohort!r}, e.g. cohort={max(1, clients.count // 2)}"
        )
    _same_recipe(recipe, getattr(clients, "recipe", recipe))
    return loop(recipe, clients, rounds, K, evaluate, every)


def loop(
    recipe: Recipe,
    clients: Clients,
    rounds: int,
    cohort: int,
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
        S       = sample(clients.count, cohort, seed, t)   # S_t, K of the N clients
        ctx     = Context(seed, t, S, S)
        message = algorithm.message(state)                 # theta_t goes out
        reply   = clients.run(message, ctx)                # Delta_k and n_k come back, k in S_t
        p       = reply["n"] / reply["n"].sum()            # p_k = n_k / sum_j n_j
        delta   = pipeline.combine(reply, p, ctx)          # sum_k p_k Delta_k, or another rule
        state   = algorithm.server(state, delta, reply, p) # theta_{t+1}
        # fmt: on

        theta = state["theta"]
        if not bool(theta.isfinite().all()):
            raise Diverged(t, _not_finite(reply["delta"], S), history)
        due = evaluate and ((t + 1) % every == 0 or t == rounds - 1)
        metrics = evaluate(theta) if evaluate and due else {}
        loss = float(p @ reply["loss"])
        sent, received = nbytes(message), nbytes(_payload(reply)) // len(S)
        r = Round(t, theta, S, reply["delta"], p, loss, sent, received, metrics)
        history.add(r)
        yield r


def sample(n: int, k: int, seed: int, t: int) -> np.ndarray:
    """S_t: k of n clients, uniformly and without replacement. A function of (seed, t).

    Args:
        n: N, the population.
        k: K, the cohort.
        seed: The run's seed.
        t: The round.

    Returns:
        (k,) client numbers, ascending.

    Example:
        >>> sample(5, 5, seed=0, t=0)
        array([0, 1, 2, 3, 4])
    """
    if k == n:
        return np.arange(n)
    return np.sort(numpy_rng(seed, Use.SAMPLE, t).choice(n, size=k, replace=False))


def nbytes(tensors: dict[str, Tensor]) -> int:
    """Size of a message: numbers times bytes each.

    Example:
        >>> nbytes({"theta": torch.zeros(7850)})
        31400
    """
    return sum(v.numel() * v.element_size() for v in tensors.values())


class Simulated:
    """Clients in this process, trained ``chunk`` at a time.

    Args:
        recipe: The run's recipe.
        x: (n, ...) every client's examples.
        y: (n,) their labels or targets.
        parts: Rows of x and y each client holds, e.g. from :mod:`fedlearn.partition`.
        chunk: Clients trained at once; None picks a number whose parameters stay in the cache. It
            changes nothing but speed, beyond float rounding.
        device: ``"cpu"`` or ``"cuda"``: where all of the run happens.

    Raises:
        ValueError: If x and y differ in length, x holds inf or NaN, a client is empty or holds rows
            that don't exist, a label lies outside the model's classes, or the model can't take x.

    Example:
        >>> from fedlearn import algorithms, model
        >>> task = model.softmax_regression(2, 2)
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0)
        >>> Simulated(recipe, torch.eye(2), torch.tensor([0, 1]), [np.array([0, 1])]).count
        1
    """

    def __init__(
        self,
        recipe: Recipe,
        x: Tensor,
        y: Tensor,
        parts: list[np.ndarray],
        *,
        chunk: int | None = None,
        device: str | torch.device = "cpu",
    ):
        _check_data(recipe, x, y, parts)
        if chunk is not None and not _at_least(chunk, 1):
            raise ValueError(f"Simulated: chunk must be an integer >= 1, got {chunk!r}, e.g. 10")
        self.recipe, self.count = recipe, len(parts)
        self.parts = [np.asarray(rows) for rows in parts]
        self.device = torch.device(device)
        self.x, self.y = x.to(self.device), y.to(self.device)
        self.chunk = chunk or min(100, max(1, _CACHE // recipe.theta.numel()))
        self.memory = {
            k: v.to(self.device).expand(self.count, *v.shape).clone()
            for k, v in recipe.memory().items()
        }

    def run(self, message: Message, ctx: Context) -> Reply:
        """Train the clients ``ctx.rows``. -> {"delta": (K, d), "n": (K,), "loss": (K,), ...}

        Example:
            >>> from fedlearn import algorithms, model
            >>> task = model.softmax_regression(2, 2)
            >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0)
            >>> one = Simulated(recipe, torch.eye(2), torch.tensor([0, 1]), [np.array([0, 1])])
            >>> S = np.array([0])
            >>> one.run({"theta": task.theta0}, Context(0, 0, S, S))["delta"].shape
            torch.Size([1, 6])
        """
        if len(ctx.rows) <= self.chunk:
            return self._train(message, ctx)
        sizes = [len(self.parts[k]) for k in ctx.rows]
        order = np.argsort(sizes, kind="stable")  # like sizes share a chunk: little padding
        replies = [
            self._train(message, ctx._replace(rows=ctx.rows[at]))
            for at in np.split(order, range(self.chunk, len(order), self.chunk))
        ]
        back = torch.from_numpy(np.argsort(order)).to(self.device)
        return {k: torch.cat([r[k] for r in replies])[back] for k in replies[0]}

    @torch.no_grad()
    def _train(self, message: Message, ctx: Context) -> Reply:
        recipe, rows = self.recipe, torch.from_numpy(ctx.rows).to(self.device)
        plan = schedule(
            self.parts,
            ctx.rows,
            batch=recipe.batch,
            epochs=recipe.epochs,
            seed=recipe.seed,
            round=ctx.round,
        )
        index = plan[0].to(self.device)
        real = message["theta"].dtype  # float64 models too
        mask, n = (v.to(self.device, real) for v in plan[1:])
        memory = {k: v[rows] for k, v in self.memory.items()}
        own = {k: v for k, v in memory.items() if not k[0].isdigit()}  # the rest: the pipeline's
        shards = Shards(self.x, self.y, index, mask, n)
        reply, own = recipe.algorithm.client(message, shards, own)
        delta, stages = recipe.pipeline.encode(reply["delta"], n, memory, ctx)
        for k, v in {**own, **stages}.items():
            self.memory[k][rows] = v
        return {**reply, "delta": delta, "n": n}


def centralised(
    recipe: Recipe, x: Tensor, y: Tensor, n_clients: int, *, device: str | torch.device = "cpu"
) -> tuple[Recipe, Simulated]:
    """The reference without federation: the same recipe with all data in one place.

    One client holds everything and takes batches of n_clients * B examples, so that a round has as
    many steps as an average client takes. What differs from the federated run is only where the
    data lies.

    Args:
        recipe: The federated run's recipe.
        x: (n, ...).
        y: (n,).
        n_clients: N of the federated run.
        device: As for :class:`Simulated`.

    Returns:
        A recipe and its one client, for :func:`federate` with ``cohort=1``.

    Raises:
        ValueError: If ``n_clients`` is not an integer >= 1.

    Example:
        >>> from fedlearn import algorithms, data, model
        >>> digits, task = data.load("digits"), model.softmax_regression(64, 10)
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, batch=32)
        >>> pooled, everything = centralised(recipe, digits.x, digits.y, n_clients=20)
        >>> pooled.batch, everything.count
        (640, 1)
    """
    if not _at_least(n_clients, 1):
        raise ValueError(
            f"centralised: n_clients must be an integer >= 1, got {n_clients!r}, e.g. 20"
        )
    pooled = replace(recipe, batch=recipe.batch and min(recipe.batch * n_clients, len(y)))
    return pooled, Simulated(pooled, x, y, [np.arange(len(y))], device=device)


_CACHE = 1_000_000  # parameters of a chunk: 4 MB, about one core's share of the cache


def _at_least(value: object, low: int) -> bool:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and value >= low  # type: ignore[operator]


def _same_recipe(recipe: Recipe, theirs: Recipe) -> None:
    """Clients train by the recipe they were made with: they would ignore another one."""
    for name in ("batch", "epochs", "seed", "algorithm", "pipeline"):
        a, b = getattr(recipe, name), getattr(theirs, name)
        number = name in ("batch", "epochs", "seed")
        if (a != b) if number else (a is not b):
            got = f"got {a!r}, theirs is {b!r}" if number else "got another"
            raise ValueError(
                f"federate: the clients were made with another recipe, whose {name} must be the "
                f"same: {got}; make them anew, e.g. Simulated(recipe, ...)"
            )


def _payload(reply: Reply) -> Reply:
    """What the method needs: without n_k, known to the server, and the loss, kept for the plot."""
    return {k: v for k, v in reply.items() if k not in ("n", "loss")}


def _not_finite(deltas: Tensor, cohort: np.ndarray) -> list[int]:
    bad = ~deltas.isfinite().all(1)
    return [int(k) for k in cohort[bad.cpu().numpy()]]


def _check_data(recipe: Recipe, x: Tensor, y: Tensor, parts: list[np.ndarray]) -> None:
    """What can be known to be wrong before the first round."""
    if len(x) != len(y):
        raise ValueError(
            f"Simulated: x and y must have one row an example, got {len(x)} and {len(y)}"
        )
    if not all(part.isfinite().all() for part in x.split(10_000)):  # in parts: isfinite copies
        raise ValueError("Simulated: x holds inf or NaN; clean it, e.g. with x.nan_to_num()")
    if not len(parts):
        raise ValueError(
            "Simulated: needs at least one client, got no parts, e.g. [np.arange(100)]"
        )
    for k, rows in enumerate(map(np.asarray, parts)):
        if len(rows) and not np.issubdtype(rows.dtype, np.integer):
            raise ValueError(
                f"Simulated: parts must be integer rows of x and y, got {rows.dtype} for client "
                f"{k}, e.g. np.flatnonzero(mask) for a mask"
            )
        if not len(rows) or rows.min() < 0 or rows.max() >= len(y):
            got = f"{rows.min()}..{rows.max()}" if len(rows) else "none"
            raise ValueError(
                f"Simulated: every client needs rows from 0..{len(y) - 1}, got {got} for client "
                f"{k}; make parts with fedlearn.partition, e.g. partition.iid(y, 10, rng)"
            )
    task = recipe.algorithm.task
    if task is None or task.predict is None or task.loss is None:
        return  # a Task from a notebook cell may have its gradient alone
    few = x[:2].cpu()
    try:
        scores = task.predict(task.theta0, few)
    except (RuntimeError, ValueError, IndexError) as e:
        raise ValueError(
            f"Simulated: the model can't take examples of shape {tuple(x.shape[1:])} ({e}), "
            f"e.g. softmax_regression({x[0].numel()}, 10) for these"
        ) from e
    if task.loss is cross_entropy:
        check_labels("Simulated", y, scores.shape[-1])
    elif task.loss(scores, y[:2].cpu()).shape != (len(few),):
        raise ValueError(
            f"Simulated: the model's scores of shape {tuple(scores.shape)} don't give one loss an "
            f"example, e.g. one score, nn.Linear({x[0].numel()}, 1), for squared_error"
        )
