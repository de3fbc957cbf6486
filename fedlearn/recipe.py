"""The recipe of a run, and what a client does by it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .aggregate import mean
from .algorithms import Algorithm, Message, Reply
from .batches import Parts, Shards, schedule
from .checks import check, is_whole, whole
from .task import wide
from .transform import Context, Memory, Pipeline, chain, check_rows

Memories = tuple[Memory, ...]  # of clients: the method's, then each row stage's


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs but the data and the place where it runs.

    Attributes:
        algorithm: What clients and server do.
        theta: (d,) initial parameters; a copy is kept.
        pipeline: Stages between a client's update and the server's step.
        batch: B, examples of a local step; None for all of a client's (B = inf).
        epochs: E, local passes a round over a client's data.
        seed: Of the cohorts, the shuffles and the noise. A second run with the same seed draws the
            same numbers, whatever its theta: go on with ``federate(..., resume=...)``, or take
            another seed. Whoever knows the seed of a release can subtract its noise, and two
            releases of one seed and the same noise tell their difference exactly.
        equal: Every client counts 1 and not n_k: p_k = 1/K. For cohorts drawn in proportion to n_k,
            and where no client may count more than another.
        secret: For a release: noise, and the cohorts of ``dp_federate``, come from the operating
            system, new at every draw. No seed gives them again, so a run that is resumed or made
            again draws others. Floating-point noise of NumPy's generator is not hardened against
            attacks on its low bits (Mironov, 2012). False, for lessons and tests: from the seed.

    Raises:
        ValueError: If a number is out of range, ``secret`` no bool, ``theta`` not a vector, or the
            method right only behind a plain mean and the pipeline none.

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
    equal: bool = False
    secret: bool = False

    def __post_init__(self) -> None:
        theta, rule = self.theta, "a finite vector (d,), a tensor of real numbers"
        ok = isinstance(theta, Tensor) and theta.dim() == 1 and theta.is_floating_point()
        ok = ok and bool(theta.isfinite().all())
        check("Recipe", "theta", getattr(theta, "shape", theta), ok, rule, "task.theta0")
        object.__setattr__(self, "theta", theta.detach().clone())  # no graph, and nobody else's
        rule = "an integer >= 1, or None for all of a client's examples"
        check("Recipe", "batch", self.batch, self.batch is None or is_whole(self.batch), rule, 32)
        whole("Recipe", "epochs", self.epochs, example=5)
        whole("Recipe", "seed", self.seed, 0, 2**63 - 1, example=0)
        for name in ("batch", "epochs", "seed"):  # NumPy's small integers overflow
            object.__setattr__(self, name, getattr(self, name) and int(getattr(self, name)))
        known = isinstance(self.secret, bool)
        check("Recipe", "secret", self.secret, known, "True or False", True)
        name, bent = self.algorithm.client.__qualname__.split(".")[0], self.pipeline.bent
        rule = f"a weighted mean and nothing else, for {name}'s clients go on from what they sent"
        so = "chain(mean()); or a method without such a memory, e.g. fedavg or scaffold"
        check("Recipe", "pipeline", bent, not (bent and self.algorithm.plain), rule, so)

    def memory(self) -> Memories:
        """What a client keeps before its first round: the method's part, then each stage's."""
        return (self.algorithm.memory(self.theta), *self.pipeline.memory(self.theta))


def shards_of(recipe: Recipe, x: Tensor, y: Tensor, parts: Parts, ctx: Context) -> Shards:
    """The round's minibatches of the clients ``ctx.answered``.

    Mask and n are float32, or float64 where theta is: a count is right in no half precision.
    """
    B, E, t = recipe.batch, recipe.epochs, ctx.round if ctx.turns is None else ctx.turns
    index, mask, n = schedule(
        parts, ctx.answered, batch=B, epochs=E, seed=ctx.seed, round=t, work=ctx.work
    )
    n = torch.ones_like(n) if recipe.equal else n
    real = wide(recipe.theta[:0]).dtype
    return Shards(x, y, index.to(x.device), mask.to(x.device, real), n.to(x.device, real))


@torch.no_grad()
def client_step(
    recipe: Recipe, message: Message, shards: Shards, memory: Sequence[Memory], ctx: Context
) -> tuple[Reply, Memories]:
    """What clients do in a round, in this process or in their own: train, then their stages.

    Args:
        recipe: The run's recipe.
        message: What the server sent.
        shards: Their minibatches, of :func:`shards_of`; K = 0 clients give K = 0 rows.
        memory: What they remember, rows (K, ...).
        ctx: The round; ``ctx.answered`` are these clients.

    Returns:
        {"delta": (K, d), "n": (K,), "loss": (K,), ...}, and what they remember now.

    Raises:
        ValueError: If the method's reply has other rows, or it keeps what it didn't declare.
    """
    reply, own = recipe.algorithm.client(message, shards, memory[0])
    name = getattr(recipe.algorithm.client, "__qualname__", "client").split(".")[0]
    check_rows(name, reply, len(shards.n), "loss")
    theta, delta = message["theta"], reply["delta"]
    got, real = (delta.shape[1], delta.dtype), (theta.dtype, wide(theta[:0]).dtype)
    fits, rule = got[0] == theta.shape[-1] and got[1] in real, "as long as theta, and of its type"
    check(name, "reply['delta']", got, fits, rule, "theta_k - theta")
    known, rule = sorted(memory[0]), "what the method's memory(theta0) declares"
    check("client", "what is kept", sorted(own), set(own) <= set(known), rule, known)
    ctx = ctx._replace(secret=ctx.secret or recipe.secret)
    delta = delta.to(theta.dtype)  # a count beside it may have more digits
    delta, stages = recipe.pipeline.encode(delta, shards.n, memory[1:], ctx)
    return {**reply, "delta": delta, "n": shards.n}, (own, *stages)


def no_reply(recipe: Recipe, message: Message, ctx: Context) -> tuple[Reply, Memories]:
    """The reply of a cohort in which nobody answers: the method's keys, K = 0 rows each."""
    none = message["theta"][:0]
    nobody = ctx.keep(np.zeros(0, int))
    empty = lambda v: v.to(none.device).expand(0, *v.shape)
    memory = [{k: empty(v) for k, v in kept.items()} for kept in recipe.memory()]
    return client_step(recipe, message, shards_of(recipe, none, none, {}, nobody), memory, nobody)
