"""The federated loop: broadcast, train locally, send, aggregate, repeat; and the run it makes."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from . import checkpoint as disk
from .algorithms.base import Message, Reply, State, broadcast, payload
from .checks import RoundFailed, check, whole
from .diagnostics import describe
from .history import RESERVED, Diverged, History, Round
from .participation import Call, asked, uniform
from .partition.files import place, put_aside, write_whole
from .recipe import Memories, Recipe, no_reply
from .transform import Context

Evaluate = Callable[[Tensor], dict[str, float]]  # theta -> metrics
Place = str | Path | None  # of a file


class Clients(Protocol):
    """Whoever answers a broadcast. Replies come back stacked, in the order of ``ctx.answered``.

    Where some don't, ``reply["came"]`` holds the places in ``ctx.answered`` of those who do.
    """

    recipe: Recipe
    count: int
    device: torch.device

    def memory(self) -> Memories:
        """What the clients of a new run remember, {name: (N, ...)} each; the run keeps it."""

    def run(self, message: Message, ctx: Context, memory: Memories) -> tuple[Reply, Memories]:
        """Train ``ctx.answered`` from ``message``. -> {name: (K, ...)}, what they remember now."""


class Account(NamedTuple):
    """What a run may spend: epsilon of differential privacy."""

    budget: float
    ledger: dict[str, float]  # what decides the sum
    spent: Callable[[int], float]  # rounds -> the sum after them


def loop(run: "Run") -> Iterator[Round]:
    """The federated loop. What it knows between two rounds is the run's: it may begin anew."""
    clients, recipe = run.clients, run.recipe
    algorithm, pipeline = recipe.algorithm, recipe.pipeline
    for t in range(run.t, run.rounds):
        # fmt: off
        ctx     = run.cohort(t)                                 # cohort C_t; some or all answer
        message = algorithm.message(run.state)                  # theta_t goes out
        reply, memory = clients.run(message, ctx, run.memory)   # Delta_k and n_k come back
        ctx     = ctx.heard(reply)                              # of those who are heard
        p       = reply["n"] / reply["n"].sum()                 # p_k = n_k / sum_j n_j
        delta   = pipeline.combine(reply, p, ctx)               # sum_k p_k Delta_k, or another rule
        server  = algorithm.server if len(p) or pipeline.on_server else algorithm.idle
        state   = server(run.state, delta, reply, p)            # theta_{t+1}
        # fmt: on
        yield run.keep(ctx, message, reply, p, state, memory)


@dataclass(eq=False, repr=False)
class Run:
    """A run under way: an iterator of :class:`Round` that owns all that it is.

    Two runs over the same clients don't know of each other. A run outlives what ends a round:
    ``next`` repeats the round that was interrupted, and begins the one after a round that failed.
    Made by :func:`federate`.

    Attributes:
        name: Of the function that makes it, for errors.
        recipe: The clients'; for a private run with nothing of a client on the way to theta.
        loop: What makes its rounds.
        account: What ``dp_federate`` may spend; else None.
        t: Rounds done.
        state: The server's: ``theta``, and what else the method keeps.
        memory: What the clients remember, {name: (N, ...)}: the method's part, then each stage's.
        history: :class:`History` of all rounds so far, those before a resume included.

    Example:
        >>> from fedlearn import Simulated, algorithms, model
        >>> task = model.softmax_regression(2, 2)
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0)
        >>> two = Simulated(recipe, torch.eye(2), torch.tensor([0, 1]), [np.arange(2)] * 2)
        >>> run = federate(two, rounds=9)
        >>> next(run).t, run.t, len(run.history)
        (0, 1, 1)
        >>> more = federate(two, rounds=9, resume=run)  # goes on at round 1; run stays where it is
        >>> next(more).t, next(run).t
        (1, 1)
    """

    name: str
    clients: Clients
    recipe: Recipe
    call: Call
    rounds: int
    evaluate: Evaluate | None
    every: int
    skip: int = 0
    deltas: bool = False
    loop: Callable[["Run"], Iterator[Round]] = loop
    account: Account | None = None

    def __post_init__(self) -> None:
        whole(self.name, "rounds", self.rounds)
        whole(self.name, "every", self.every)
        whole(self.name, "skip", self.skip, 0, example=3)
        theta, method = self.recipe.theta.detach().clone(), self.recipe.algorithm
        self.t, self.state = 0, method.init(theta.to(self.clients.device))
        self.memory, self.history = self.clients.memory(), History(theta=theta.clone())
        rule = self.recipe.pipeline.reduce
        if not rule.plain and rule.share is None:  # what it can't guard is refused before round 0
            none = np.zeros(0, int)
            nobody = Context(self.recipe.seed, 0, none, none)
            reply, _ = no_reply(self.recipe, method.message(self.state), nobody)
            self.recipe.pipeline.fits(reply)
        self._rounds: Iterator[Round] | None = None  # None: to begin anew from what the run is
        self._done: tuple[Round, State, Memories] | None = None  # computed, not yet written down
        self._cohort: tuple[int, Context] | None = None  # the last round that called one
        self._path: Path | None = None
        self._save_every = 1

    def __iter__(self) -> "Run":
        return self

    def __next__(self) -> Round:
        try:
            self._settle()
            if self.ends(self.t):
                self.history.stopped = "the budget is spent" if self.t < self.rounds else ""
                raise StopIteration
            rounds, self._rounds = self._rounds or self.loop(self), None
            self.history.failed.pop(self.t, None)  # of a try that was interrupted
            try:
                r = next(rounds)
                self._rounds = rounds
            except RoundFailed as e:
                r = self._give_up(e)
            if self._path and (self.t % self._save_every == 0 or self.ends(self.t)):
                self.save()
            return r
        except StopIteration:
            raise
        except BaseException as e:  # Ctrl-C, too
            self._leave(e)
            raise

    def ends(self, t: int) -> bool:
        """Whether no round follows after t of them: all are done, or the budget allows none."""
        account = self.account
        return t >= self.rounds or (account is not None and account.spent(t + 1) > account.budget)

    def cohort(self, t: int) -> Context:
        """Whom round t calls; the same ones if it is begun again."""
        if self._cohort is None or self._cohort[0] != t:
            of = self.clients.count, self.recipe.seed, t
            self._cohort = t, asked(self.call, of)
            if self.recipe.algorithm.down:
                called, N = len(np.unique(self._cohort[1].called)), self.clients.count
                rule = "every client: a compressed broadcast tells only what is new, round by round"
                what = f"the cohort of round {t}"
                check(self.name, what, called, called == N, rule, "cohort=None")
        return self._cohort[1]._replace(secret=self.recipe.secret, rows=self.deltas)

    def keep(
        self,
        ctx: Context,
        message: Message,
        reply: Reply,
        p: Tensor,
        state: State,
        memory: Memories = (),
        **metrics: float,
    ) -> Round:
        """The books of a round, the same for each: check theta, evaluate, write it down.

        Diverged if theta is no longer finite; nothing of the round is kept then.
        """
        t, theta, heard = self.t, state["theta"], len(p) > 0
        if not bool(theta.isfinite().all()):
            bad = ~reply.get("sane", reply["delta"].isfinite().all(1)).cpu().numpy()
            raise Diverged(t, ctx.answered[bad].tolist(), self.history)
        if self.evaluate and ((t + 1) % self.every == 0 or self.ends(t + 1)):
            metrics |= self.history.check(self.evaluate(theta.clone()), RESERVED)
        if self.account:
            metrics["epsilon"] = self.account.spent(t + 1)
        loss = float(p @ reply["loss"].to(p)) / float(p.sum()) if heard else math.nan
        clock = float(reply["seconds"].max()) if heard and "seconds" in reply else math.nan
        moved = broadcast(self.recipe.algorithm, message, t), payload(reply, self.recipe.pipeline)
        who, rows = ctx.answered, None if "each" in reply else reply["delta"]
        p = reply["each"] / reply["each"].sum() if "each" in reply else p
        r = Round(t, theta.clone(), who, rows, p, loss, *moved, metrics, ctx.called, clock)
        self._done = r, state, memory  # from here on the round has happened, whatever comes
        self._settle()
        return r

    def _settle(self) -> None:
        """Write a round down; each line may be done twice, so Ctrl-C between two does no harm."""
        if self._done is None:
            return
        r, state, memory = self._done
        if len(self.history) == r.t:
            self.history.add(r)
        for mine, now in zip(self.memory, memory):
            for name, rows in now.items():
                mine[name][torch.from_numpy(r.answered)] = rows
        self.history.stopped = ""
        self.state, self.t, self._done = state, r.t + 1, None

    def _give_up(self, why: RoundFailed) -> Round:
        """A round that failed is on the books as if nobody had answered; ``skip`` of them may."""
        nobody = self.cohort(self.t).keep(np.zeros(0, int))
        message = self.recipe.algorithm.message(self.state)
        reply, _ = no_reply(self.recipe, message, nobody)
        state = self.recipe.algorithm.idle(self.state, reply["delta"], reply, reply["n"])
        self.history.failed[self.t] = str(why)
        r = self.keep(nobody, message, reply, reply["n"], state)  # no client remembers anything new
        if len(self.history.failed) > self.skip:
            raise why
        return r

    def _leave(self, e: BaseException) -> None:
        """Nothing is lost: the history goes with the error, the last whole round to the disk."""
        self._settle()
        setattr(e, "history", self.history)  # noqa: B010 (no attribute that errors declare)
        self.history.stopped = "" if isinstance(e, RoundFailed) else str(e) or type(e).__name__
        try:
            if self._path and self.t:
                self.save()
        except Exception as why:  # what ended the round is still the one to know
            self.history.stopped += (said := f"; the checkpoint could not be written: {why}")
            e.add_note(said[2:])

    # -- to the disk and back ----------------------------------------------------------------------

    def save(self, path: Place = None) -> Path:
        """Write all that the run is, to ``path`` or to its ``checkpoint``; whole or not at all."""
        to = self._path if path is None and self._path else disk.claim(path)
        return write_whole(to, disk.encode(self.value()))

    @cached_property
    def made(self) -> dict[str, Any]:
        """What the run is made of, flat: what a checkpoint of it must find again."""
        how = {"recipe": self.recipe, "cohort": self.call, "loop": self.loop, "data": self.clients}
        how |= {"privacy": self.account and self.account.ledger, "clients": self.clients.count}
        return describe(how, "run")

    def value(self) -> dict[str, Any]:
        """All that the run is, in plain values and tensors."""
        now = {"t": self.t, "state": self.state, "memory": self.memory}
        return {"made": self.made, "history": self.history.plain(), **now}

    def begin(self, checkpoint: Place, save_every: int, resume: "Place | Run | bool") -> "Run":
        """Go on where another run was, and write checkpoints, if asked for. -> self

        ValueError if a file is damaged or of another recipe, or the state can't be written.
        """
        whole("checkpoint", "save_every", save_every)
        if checkpoint is not None or resume is True:
            self._path, self._save_every = disk.claim(checkpoint), save_every
            disk.encode(self.value())  # what can't be written is refused now
            if resume is True:
                resume = self._path if self._path.exists() else None
            elif resume in (None, False):  # what is there is another run's, not to go on with
                put_aside(self._path)
        if resume is None or resume is False:
            return self
        if isinstance(resume, Run):
            content, where = disk.encode(resume.value()), "of another run"
        else:
            content, where = place(resume).read_bytes(), str(resume)
        then = disk.decode(content, where, self.clients.device)
        disk.check_same(then["made"], self.made)
        self.t, self.state, self.memory = then["t"], then["state"], tuple(then["memory"])
        self.history = History(**then["history"], theta=self.state["theta"].clone())
        return self


def federate(
    clients: Clients,
    *,
    rounds: int,
    cohort: int | Call | None = None,
    evaluate: Evaluate | None = None,
    every: int = 1,
    skip: int = 0,
    deltas: bool = False,
    checkpoint: Place = None,
    save_every: int = 1,
    resume: Place | Run | bool = None,
) -> Run:
    """Run federated rounds, yielding each as it ends. The loop itself is :func:`loop`.

    Args:
        clients: Where the clients are, with the run's recipe, e.g. :class:`Simulated`.
        rounds: How many, those before a resume included.
        cohort: K, clients drawn for each round, without replacement; None for all of them. Or
            another way to call them, from :mod:`fedlearn.participation`.
        evaluate: theta (d,) -> metrics, e.g. ``model.evaluator(task, data.x_test, data.y_test)``.
        every: Evaluate every so many rounds, and after the last.
        skip: Rounds of the run that may fail for a reason that the next may not have, a cohort too
            small for its rule, say. They change nothing, and ``history.failed`` lists them.
        deltas: Keep every client's update for :attr:`Round.deltas`, however many and large; else a
            rule that can adds them up as they come where they are more than 100 MB.
        checkpoint: A file for all that the run is, written after rounds and when anything ends it.
            What is there already, and isn't resumed, is kept under its name with ``.before``.
        save_every: Write it every so many rounds, and after the last.
        resume: Go on where another run is: the path of a checkpoint, or a :class:`Run`, which stays
            as it is; True for ``checkpoint``, if it is there. Same bits as in one go.

    Returns:
        A :class:`Run`, an iterator of :class:`Round`; nothing is trained before its first ``next``.

    Raises:
        ValueError: At once, if a number is out of range, a checkpoint damaged or of another recipe.
        FileNotFoundError: If there is no file to resume.
        Diverged: From the iterator, when a parameter becomes inf or NaN.
        RoundFailed: From the iterator, beyond ``skip``; ``next`` begins the next round. Whatever
            ends a round, the error carries ``history``.

    Example:
        >>> from fedlearn import Recipe, Simulated, algorithms, data, model, partition
        >>> from fedlearn.rng import Use, numpy_rng
        >>> digits = data.load("digits")
        >>> task = model.softmax_regression(64, 10)
        >>> parts = partition.iid(digits.y, 20, numpy_rng(0, Use.PARTITION))
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, epochs=5)
        >>> clients = Simulated(recipe, digits.x, digits.y, parts)
        >>> test = model.evaluator(task, digits.x_test, digits.y_test)
        >>> *_, last = federate(clients, rounds=10, cohort=10, evaluate=test)
        >>> last.metrics["accuracy"] > 0.9
        True
    """
    if cohort is not None and not callable(cohort):
        whole("federate", "cohort", cohort, 1, clients.count, max(1, clients.count // 2))
    call = cohort if callable(cohort) else uniform(cohort)
    run = Run("federate", clients, clients.recipe, call, rounds, evaluate, every, skip, deltas)
    return run.begin(checkpoint, save_every, resume)


def collect(rounds: Iterable[Round], *, progress: int | None = None) -> History:
    """Run to the end and keep the numbers. What came before Ctrl-C or a divergence is kept too.

    Args:
        rounds: What :func:`federate` returns, or any rounds.
        progress: How many rounds to expect: shows a progress bar. None: no bar.

    Returns:
        A :class:`History`. If the run was interrupted or diverged, ``stopped`` says why and a
        ``RuntimeWarning`` is given; ``collect(run)`` goes on with an interrupted one.

    Raises:
        Exception: Any other that ends the run, with the history so far as its ``history``.

    Example:
        >>> collect([]).columns
        {}
    """
    history, shown = rounds.history if isinstance(rounds, Run) else History(), rounds
    if progress is not None:
        from tqdm.auto import tqdm

        shown = tqdm(rounds, total=progress, unit="round")
    try:
        for r in shown:
            if not isinstance(rounds, Run):  # a run keeps its own
                history.add(r)
    except (Diverged, KeyboardInterrupt) as e:
        history.stopped = history.stopped or str(e) or type(e).__name__
        warnings.warn(history.stopped, RuntimeWarning, stacklevel=2)
    except Exception as e:
        setattr(e, "history", getattr(e, "history", history))  # noqa: B010
        e.add_note(f"The {len(history)} rounds before are kept, as the error's `history`.")
        raise
    return history
