"""Clients that live in this process, and the reference with all data in one place."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .algorithms import Message, Reply
from .algorithms.base import broadcast, payload
from .checks import check, positive, whole
from .data import check_population, like
from .fleet import Fleet, check_fleet
from .fold import TOGETHER, Rule, join, rows
from .recipe import Memories, Recipe, client_step, shards_of
from .transform import Context
from .workers import Team, still

_CACHE = 2_000_000  # parameters of a chunk: 8 MB; fewer steps in Python, and in the cache of most
_PADDED = 100_000_000  # numbers that a chunk lays out, padding and all: 400 MB
_KEPT = 25_000_000  # numbers of a round's updates that are kept without being asked for: 100 MB


class Simulated:
    """Clients in this process, trained ``chunk`` at a time. They keep nothing of a run.

    Args:
        recipe: The run's recipe.
        x: (n, ...) every client's examples; tensors, arrays, DataFrames are copied, in the type of
            the parameters.
        y: (n, ...) what the loss compares with the scores: classes, targets, one or more each.
        parts: Rows of x and y each client holds, e.g. from :mod:`fedlearn.partition`, or a dict
            {client: rows}, whose keys become ``names``.
        chunk: Clients trained at once; None picks a number whose parameters stay in the cache. It
            changes nothing but speed, beyond float rounding.
        device: ``"cpu"`` or ``"cuda"``: where all of the run happens.
        fleet: The clients' machines; then every reply says how many ``seconds`` it took.
        workers: Processes that train chunks side by side, the same bits as one on one thread. They
            start in about three seconds and pay for long runs of large models; each takes a core.
        most_gb: Of updates that a rule must see all at once; more are refused.

    Updates of more than 100 MB in a round are added up chunk by chunk, where rule and method allow
    it and nobody asked for them, ``federate(..., deltas=True)``. What clients remember lies in a
    temporary file, mapped into memory, where it is more than 1 GB.

    Raises:
        ValueError: At once, if x and y differ in length, hold inf or NaN, a client is empty or
            holds rows that don't exist, a label lies outside the model's classes, the model can't
            take x, or the loss doesn't give one number for each y. From a round, if more than
            ``most_gb`` must be seen at once.

    Example:
        >>> from fedlearn import algorithms, model
        >>> task = model.softmax_regression(2, 2)
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0)
        >>> two = Simulated(recipe, torch.eye(2), torch.tensor([0, 1]), [np.array([0, 1])] * 2)
        >>> S = np.arange(2)
        >>> reply, memory = two.run({"theta": task.theta0}, Context(0, 0, S, S), two.memory())
        >>> reply["delta"].shape, two.count
        (torch.Size([2, 6]), 2)
    """

    def __init__(
        self,
        recipe: Recipe,
        x: Tensor,
        y: Tensor,
        parts: Sequence[np.ndarray] | Mapping[str, np.ndarray],
        *,
        chunk: int | None = None,
        device: str | torch.device = "cpu",
        fleet: Fleet | None = None,
        workers: int = 1,
        most_gb: float = 4.0,
    ):
        own = check_population("Simulated", recipe.algorithm.task, x, y, parts, recipe.theta)
        whole("Simulated", "chunk", 1 if chunk is None else chunk)
        whole("Simulated", "workers", workers, example=2)
        positive("Simulated", "most_gb", most_gb, 4.0)
        if fleet is not None:
            check_fleet("Simulated", fleet, len(own.parts))
        self.recipe, self.fleet, self.workers, self.most_gb = recipe, fleet, workers, most_gb
        self.parts, self.names, self.count = own.parts, own.names, len(own.parts)
        self.team: Team | None = None  # the workers, from the first round on
        self.device, theta = torch.device(device), recipe.theta.to(device)
        self.x, self.y = like(own.x, theta, copy=True), like(own.y, theta, copy=True)
        self.chunk = chunk or min(100, max(1, _CACHE // recipe.theta.numel()))

    def __getstate__(self) -> dict[str, Any]:  # a copy has workers of its own
        return self.__dict__ | {"team": None}

    def memory(self) -> Memories:
        """What the clients of a new run remember, {name: (N, ...)} each."""
        wide = lambda v: rows(v.to(self.device), self.count)
        return tuple({k: wide(v) for k, v in kept.items()} for kept in self.recipe.memory())

    def run(self, message: Message, ctx: Context, memory: Memories) -> tuple[Reply, Memories]:
        """Train the clients ``ctx.answered``; ``memory`` (N, ...) is read, not written.

        Returns:
            {"delta": (K, d), "n": (K,), "loss": (K,), ...}, and what they remember now (K, ...).
            Where the updates are added up, one row for all, and ``each`` (K,), their n.
        """
        who = ctx.answered
        once = not any(memory) or len(np.unique(who)) == len(who)
        must = "without a client twice, for they remember something: draw without replacement"
        check("Simulated", "the cohort", who, once, must, "weighted(k, sizes, replace=False)")
        n = np.array([len(self.parts[k]) for k in who.tolist()], np.int64)
        order = np.argsort(n, kind="stable")  # clients of like sizes together: little is padded
        rule, chunks = self._rule(message, ctx), range(self.chunk, len(order), self.chunk)
        many = self.workers if rule is None and ctx.work is None else 1
        cuts = np.split(order, chunks) if chunks else [order]
        cuts = [piece for c in cuts for piece in self._pieces(c, n, many)]
        if len(cuts) == 1:
            return self._train(message, ctx, self._own(memory, who))
        size = TOGETHER if rule else 1
        groups = [cuts[i : i + size] for i in range(0, len(cuts), size)]
        return join(self._side_by_side(groups, message, ctx, memory), len(who), rule)

    def _rule(self, message: Message, ctx: Context) -> Rule | None:
        """How to add up the rows as they come; None to keep them all, which may be refused."""
        K, d = len(ctx.answered), message["theta"].shape[-1]
        method, rule = self.recipe.algorithm, self.recipe.pipeline.reduce
        small = K * d <= _KEPT
        if small or (rule.fold and method.folding and not ctx.rows):
            return None if small else rule.fold
        server = method.server.__qualname__.split(".")[0]
        who = rule.name if rule.fold is None else "deltas=True" if ctx.rows else server
        gb = K * d * message["theta"].element_size() / 1e9
        got = f"{K:,} updates of {d:,} numbers, {gb:.1f} GB, for {who}"
        need = f"at most most_gb={self.most_gb:g} GB where each of them must be seen"
        check("Simulated", "a round's updates", got, gb <= self.most_gb, need, f"cohort={K // 2}")
        return None

    def _own(self, memory: Memories, who: np.ndarray) -> Memories:
        """What some clients remember, (K, ...)."""
        rows = torch.from_numpy(who).to(self.device)
        return tuple({k: v[rows] for k, v in kept.items()} for kept in memory)

    def _side_by_side(
        self, groups: list[list[np.ndarray]], message: Message, ctx: Context, memory: Memories
    ) -> Iterator[tuple[np.ndarray, Reply, Memories]]:
        """Train group after group of cuts, or as many at a time as there are workers; in order."""

        def jobs() -> Iterator[tuple[np.ndarray, tuple[Message, Context, Memories, list[int]]]]:
            for group in groups:
                at = np.concatenate(group)
                part = ctx.keep(at)
                yield at, (message, part, self._own(memory, part.answered), [*map(len, group)])

        if self.workers == 1 or self.device.type != "cpu":
            yield from ((at, *self.some(*job)) for at, job in jobs())
            return
        self.team = still(self.team, self, self.workers)
        yield from self.team.train(jobs())

    def some(
        self, message: Message, ctx: Context, own: Memories, sizes: Sequence[int]
    ) -> tuple[Reply, Memories]:
        """Train the clients ``ctx.answered``, who remember ``own``; several cuts are added up."""
        if len(sizes) == 1:
            return self._train(message, ctx, own)
        cuts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        mine = lambda c: tuple({k: v[c[0] : c[-1] + 1] for k, v in kept.items()} for kept in own)
        done = ((c, *self._train(message, ctx.keep(c), mine(c))) for c in cuts)
        return join(done, len(ctx.answered), self.recipe.pipeline.reduce.fold)

    def _pieces(self, cut: np.ndarray, n: np.ndarray, many: int) -> list[np.ndarray]:
        """A chunk, smallest client first; in pieces if a large one would pad the others beyond.

        Else ``many``, if no client waits for another: padding may change the last bit.
        """
        if len(cut) < 2:
            return [cut]
        least, largest = int(n[cut[0]]), int(n[cut[-1]])
        B = min(self.recipe.batch or largest, largest)
        one = B * self.x.shape[1:].numel() + 8 * self.recipe.epochs * largest  # what it lays out
        if one * len(cut) <= _PADDED:
            alike = least >= B and -(-least // B) == -(-largest // B)
            return np.array_split(cut, min(many, len(cut))) if alike and many > 1 else [cut]
        return [piece for half in np.array_split(cut, 2) for piece in self._pieces(half, n, many)]

    def _train(self, message: Message, ctx: Context, own: Memories) -> tuple[Reply, Memories]:
        shards = shards_of(self.recipe, self.x, self.y, self.parts, ctx)
        reply, kept = client_step(self.recipe, message, shards, own, ctx)
        if self.fleet:
            examples = shards.mask.sum((1, 2)).cpu().numpy()
            down = broadcast(self.recipe.algorithm, message, ctx.round)
            up = payload(reply, self.recipe.pipeline)
            took = self.fleet.seconds(ctx.answered, examples, down, up)
            reply["seconds"] = torch.from_numpy(took).to(self.device)
        return reply, kept


def centralised(
    recipe: Recipe, x: Tensor, y: Tensor, n_clients: int, *, device: str | torch.device = "cpu"
) -> Simulated:
    """The reference without federation: the same recipe with all data in one place.

    One client holds everything and takes batches of n_clients * B examples, so that a round has as
    many steps as an average client takes. What differs from the federated run is only where the
    data lies.

    Args:
        recipe: The federated run's recipe.
        x: (n, ...).
        y: (n, ...).
        n_clients: N of the federated run.
        device: As for :class:`Simulated`.

    Returns:
        The one client, for :func:`federate`.

    Raises:
        ValueError: If ``n_clients`` is not an integer >= 1.

    Example:
        >>> from fedlearn import algorithms, data, model
        >>> digits, task = data.load("digits"), model.softmax_regression(64, 10)
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, batch=32)
        >>> pooled = centralised(recipe, digits.x, digits.y, n_clients=20)
        >>> pooled.recipe.batch, pooled.count
        (640, 1)
    """
    whole("centralised", "n_clients", n_clients, example=20)
    pooled = replace(recipe, batch=recipe.batch and min(recipe.batch * int(n_clients), len(y)))
    return Simulated(pooled, x, y, [np.arange(len(y))], device=device)
