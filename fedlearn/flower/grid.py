"""The server's side: clients that are reached through a Flower Grid."""

import secrets
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from ..algorithms import Message as Broadcast
from ..algorithms import Reply
from ..checks import RoundFailed, check, is_whole, positive, whole
from ..privacy.dp import blind
from ..privacy.secure_aggregation.stages import desk_of
from ..recipe import Memories, Recipe, no_reply
from ..transform import Context
from .lookup import find_nodes
from .secure_grid import Exchange
from .text import directory_of
from .wire import Look, ask, checked, hides, look, pack, warn_of_the_seed

MOST = 2**24  # examples that a client may claim: all that float32 counts one by one


class GridClients:
    """Clients reached through a Flower Grid: takes the place of ``Simulated`` in ``federate``.

    A reply must be what the method sends, of its names, types and shapes, finite, no longer than a
    clip at the end of the client's stages lets it be, with a whole 0 < n <= what the client has
    declared. One that is not, an error among them, is left out: the client is named in a
    RuntimeWarning and in ``refused``, and the round goes on with the others. What is fit may still
    be an attack; for that there are robust rules.

    Noise comes from the operating system, ``dp_federate``'s cohorts, too, as if the recipe were
    ``secret``. The other cohorts are a function of the recipe's seed, which nodes know unless they
    load the recipe with another: that changes their shuffles, and nothing else.

    Behind a stage that hides the update (``private_mean``, ``local_noise``) nodes send neither loss
    nor n: ``Round.loss`` is NaN, and n is what ``sizes`` says, or 1.

    Args:
        recipe: The run's recipe, the same that the nodes load.
        grid: Flower's Grid, as ``ServerApp`` hands it over.
        node_of: Client number 0..N-1 -> Flower's node id; or N, and the nodes are asked which
            client each holds, until all N are there.
        timeout: Seconds to wait for a round's replies at each try, and as many times as there are
            ``tries`` for the nodes; None waits for ever.
        sizes: Client number -> the most examples that it may claim to hold, known beforehand. None:
            its first claim is its word, up to 2**24. A mean weighted by n then trusts every client
            with that: where it mustn't, give ``sizes``, or ``Recipe(equal=True)``.
        minimum: Fit replies without which a round fails; fewer are enough where fewer were asked.
            None: one, but every node must have answered in time.
        tries: How often a round is tried before it fails: whose answer is missing is asked again,
            the others' replies are kept. Behind a stage that hides the update it is tried once: a
            second reply of the same round would tell more than one.
        directory: For ``secure_mean``: public identity keys by client, or the ``directory.json`` of
            ``make_keys``. What then comes from a node is masked, and the protocol opens the sum.
        seeded: For teaching: noise from the recipe's seed, the bits of the simulation. Whoever
            knows the seed can subtract it, and a RuntimeWarning says so.

    Attributes:
        refused: Round t -> {client: why its reply is missing or was left out}.

    Raises:
        TimeoutError: At once, if one of the N clients isn't there in time.
        ValueError: At once, if ``node_of`` or ``sizes`` doesn't number the clients, the pipeline
            masks and there is no directory of them all, or it hides the update while the server
            needs n. From the run, if all nodes have forgotten it.
        RoundFailed: From the run, if fewer than ``minimum`` replies are fit; it names the clients.
            Behind ``secure_mean`` also if fewer than its threshold answer at a stage.

    Example:
        >>> from fedlearn import algorithms, model
        >>> task = model.softmax_regression(2, 2)
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0)
        >>> clients = GridClients(recipe, None, {0: 100, 1: 101}, sizes={0: 30, 1: 50})
        >>> clients.count, clients.recipe.secret
        (2, True)
    """

    device = torch.device("cpu")

    def __init__(
        self,
        recipe: Recipe,
        grid: Any,
        node_of: dict[int, int] | int,
        timeout: float | None = None,
        *,
        sizes: dict[int, int] | None = None,
        minimum: int | None = None,
        tries: int = 2,
        directory: Mapping[int, bytes] | str | Path | None = None,
        seeded: bool = False,
    ):
        N = node_of if isinstance(node_of, int) else len(node_of)
        good, rule = is_whole(node_of), "a node for each client 0..N-1, or N"
        if not isinstance(node_of, int):
            good = {*node_of} == {*range(N)} and len({*node_of.values()}) == N > 0
        check("GridClients", "node_of", node_of, good, rule, "{0: 100, 1: 101}")
        good = sizes is None or ({*sizes} == {*range(N)} and all(map(is_whole, sizes.values())))
        rule = f"an integer >= 1 for each client 0..{N - 1}"
        check("GridClients", "sizes", sizes, good, rule, "{0: 30, 1: 50}")
        if minimum is not None:
            whole("GridClients", "minimum", minimum, 1, N, example=1)
        whole("GridClients", "tries", tries, example=2)
        if timeout is not None:
            positive("GridClients", "timeout", timeout, 600)
        self.recipe = recipe if seeded else replace(recipe, secret=True)
        _check_recipe(recipe, sizes is not None)
        self._secure: Exchange | None = None
        desk = desk_of(recipe.pipeline)
        if desk is not None:
            book = directory_of(directory) if isinstance(directory, (str, Path)) else directory
            rule = f"an identity key for each client 0..{N - 1}: secure_mean's masks need them"
            there = book is not None and {*range(N)} <= {*book}
            check("GridClients", "directory", book and [*book], there, rule, "'directory.json'")
            self._secure = Exchange(self.recipe, desk, book or {})
            self.recipe = self._secure.recipe
        if not self.recipe.secret:
            stds = [s.std for s in recipe.pipeline.on_client]
            warn_of_the_seed("GridClients", stds + [s.std for s in recipe.pipeline.on_server])
        self.grid, self.timeout, self.tries = grid, timeout, 1 if hides(recipe) else tries
        self.count, self.minimum, self.sizes = N, minimum, dict(sizes or {})
        if isinstance(node_of, int):
            node_of = find_nodes(grid, N, timeout and timeout * tries)
        self.node_of = node_of
        self.refused: dict[int, dict[int, str]] = {}

    def memory(self) -> Memories:
        """Nodes keep their own: here a new run's name, and the round since which each does."""
        name, wide = secrets.randbits(62), torch.ones(self.count, dtype=torch.int64)
        return ({"run": name * wide, "since": -wide},)

    def run(self, message: Broadcast, ctx: Context, memory: Memories) -> tuple[Reply, Memories]:
        """Send the message to the nodes of ``ctx.answered`` and wait. -> {name: (K, ...)}"""
        none, who = no_reply(self.recipe, message, ctx)[0], ctx.answered
        if not len(who):
            return none, ()
        once = not any(self.recipe.memory()) or len(np.unique(who)) == len(who)
        rule = "without a client twice, for they remember something: draw without replacement"
        check("GridClients", "the cohort", who, once, rule, "weighted(k, sizes, replace=False)")
        if self._secure:
            rows = self._aggregate(self._secure, message, ctx, memory)
        else:
            looks = {k: look(v, 1) for k, v in none.items()}
            looks = {"delta": looks["delta"]} if hides(self.recipe) else looks
            rows = self._collect(message, ctx, memory, looks)
        places = torch.tensor([*rows])
        kept = {name: v[torch.from_numpy(who)][places] for name, v in memory[0].items()}
        kept["since"] = torch.full_like(kept["since"], ctx.round)
        reply = {k: torch.stack([r[k] for r in rows.values()]) for k in rows[int(places[0])]}
        return {**reply, "came": places} if len(rows) < len(who) else reply, (kept,)

    def _collect(
        self, message: Broadcast, ctx: Context, memory: Memories, looks: dict[str, Look]
    ) -> dict[int, Reply]:
        """Fit replies by their place in ``ctx.answered``; RoundFailed if they are too few."""
        rows: dict[int, Reply] = {}
        why: dict[int, str] = {}
        silent = [*range(len(ctx.answered))]
        under_way: dict[str, int] = {}
        for left in reversed(range(self.tries)):
            letters, began = self._letters(message, ctx, memory, silent), time.monotonic()
            came = ask(self.grid, letters, self.timeout, under_way)
            for i in silent:
                try:
                    rows[i] = self._read(int(ctx.answered[i]), came.get(i), looks)
                except Exception as e:  # whatever somebody sends: the others go on
                    why[i] = (str(e) or type(e).__name__)[:500]
            silent = [i for i in silent if not self._spoke(int(ctx.answered[i]), came.get(i))]
            if not silent or self._enough(len(rows), len(silent), ctx):
                break
            if left and self.timeout:  # the SuperLink gave up on a node early: it may come back
                time.sleep(max(0.0, began + self.timeout - time.monotonic()))
        bad = {int(ctx.answered[i]): why[i] for i in sorted({*why} - {*rows})}
        self._judge(bad, len(rows), len(silent), ctx)
        return dict(sorted(rows.items()))

    def _aggregate(
        self, secure: Exchange, message: Broadcast, ctx: Context, memory: Memories
    ) -> dict[int, Reply]:
        """The round by the protocol of secure aggregation: what comes of each client is masked."""
        at = {int(k): i for i, k in enumerate(ctx.answered)}
        letters = self._letters(message, ctx, memory, [*at.values()])

        def send(kind: str, contents: dict[int, RecordDict]) -> dict[int, RecordDict | str]:
            some = {k: self._letter(k, c, kind, ctx.round) for k, c in contents.items()}
            came = ask(self.grid, some, self.timeout).items()
            said = lambda m: str(m.error.reason)[:300] if m.has_error() else m.content
            return {k: said(m) for k, m in came if m.has_error() or self._spoke(k, m)}

        broadcast = {k: letters[i].content for k, i in at.items()}
        masked, lacking = secure.round(ctx, send, broadcast)
        self._judge(lacking, len(masked), 0, ctx)
        one = self.recipe.theta.new_ones(())
        rows = {at[k]: {"delta": y, "loss": torch.nan * one, "n": one} for k, y in masked.items()}
        return dict(sorted(rows.items()))

    def _letter(self, k: int, content: RecordDict, kind: str, round: int) -> Message:
        late = None if self.timeout is None else self.timeout + 60  # clocks differ
        to: Any = {"dst_node_id": self.node_of[k], "ttl": late, "group_id": str(round)}
        return Message(content=content, message_type=kind, **to)

    def _spoke(self, k: int, answer: Message | None) -> bool:
        """Whether the client's node answered, be it an error: not the SuperLink in its stead."""
        return answer is not None and answer.metadata.src_node_id == self.node_of[k]

    def _enough(self, fit: int, silent: int, ctx: Context) -> bool:
        few = min(self.minimum or 1, len(ctx.answered))
        return fit >= few and not (silent and self.minimum is None)

    def _letters(
        self, message: Broadcast, ctx: Context, memory: Memories, some: list[int]
    ) -> dict[int, Message]:
        """What each node needs: the broadcast, the round, its work, and what it goes on from."""
        packed, out = pack(message), {}
        for i in some:
            k = int(ctx.answered[i])
            own: Any = {name: int(v[k]) for name, v in memory[0].items()}
            own["round"] = int(ctx.round)
            if ctx.work is not None:
                own["work"] = float(ctx.work[i])
            if not self.recipe.secret and ctx.earlier()[i]:
                own["again"] = int(ctx.earlier()[i])
            content = RecordDict({"message": packed, "config": ConfigRecord(own)})
            out[i] = self._letter(k, content, "train", ctx.round)
        return out

    def _read(self, k: int, answer: Message | None, looks: dict[str, Look]) -> Reply:
        """One client's reply, if it is fit to be used; else an exception that says why not."""
        if answer is None:
            raise ValueError("no answer in time")
        if answer.has_error() or not self._spoke(k, answer):
            raise ValueError(answer.error.reason if answer.has_error() else "another's answer")
        records = [str(name)[:40] for name in sorted(answer.content)][:9]
        check("its answer", "its records", records, records == ["reply"], "['reply']", ["reply"])
        reply = checked("its reply", answer.content["reply"], looks)
        stages, norm = self.recipe.pipeline.on_client, reply["delta"].norm().item()
        if stages and (bound := stages[-1].bound) is not None:
            rule = f"of a norm up to {bound:g}, as {stages[-1].name} leaves it"
            check("its reply", "delta", f"norm {norm:g}", norm <= bound * 1.001, rule, "delta")
        like, equal = self.recipe.theta.new_ones(()), self.recipe.equal
        if "n" not in reply:
            n = 1 if equal else self.sizes.get(k, 1)
            return {**reply, "loss": torch.nan * like, "n": n * like}
        claim, most = reply["n"].item(), 1 if equal else self.sizes.get(k, MOST)
        rule = f"a whole number from 1 to {most}, which it may claim"
        check("its reply", "n", claim, claim == int(claim) and 1 <= claim <= most, rule, most)
        if not equal:
            self.sizes.setdefault(k, int(claim))
        return reply

    def _judge(self, bad: dict[int, str], fit: int, silent: int, ctx: Context) -> None:
        """Name those whose reply is missing or unfit; RoundFailed if too few are left."""
        self.refused.pop(ctx.round, None)
        if not bad:
            return
        self.refused[ctx.round] = bad
        named = [f"client {k} (node {self.node_of[k]})" for k in bad]
        forgot = [
            f"{n}: {why}" for n, why in zip(named, bad.values()) if "client_app: this node" in why
        ]
        if forgot and not fit:  # what they have forgotten, no later round brings
            raise ValueError(f"GridClients: {forgot[0]}")
        t = ctx.round
        if not self._enough(fit, silent, ctx):
            said = [f"{n} failed in round {t}: {why}" for n, why in zip(named, bad.values())]
            more = f"; and {len(said) - 5} more" * (len(said) > 5)
            raise RoundFailed(
                f"GridClients: {'; '.join(said[:5])}{more}; go on without, e.g. "
                f"federate(..., skip=3) or GridClients(..., minimum=1), or raise timeout"
            )
        said = [f"{n}, left out of round {t}: {why}" for n, why in zip(named, bad.values())]
        warnings.warn(f"GridClients: {'; '.join(said)}", RuntimeWarning, stacklevel=4)


def _check_recipe(recipe: Recipe, sizes_known: bool) -> None:
    """Refuse what can't work between processes, before round 0."""
    method, pipeline, nobody = recipe.algorithm, recipe.pipeline, np.zeros(0, int)
    message = method.message(method.init(recipe.theta))
    reply, _ = no_reply(recipe, message, Context(0, 0, nobody, nobody))
    pipeline.fits(reply)
    masks = desk_of(pipeline) is not None
    if not masks and reply["delta"].dtype != recipe.theta.dtype:
        raise ValueError(
            f"GridClients: updates must travel in theta's type, got {reply['delta'].dtype}, e.g. "
            f"chain(clip(1.0), mean())"
        )
    if not hides(recipe) or recipe.equal or sizes_known:
        return
    if pipeline.reduce.share is None and not masks:
        raise ValueError(
            f"GridClients: {pipeline.reduce.name} weighs by n_k, and the client's number of "
            f"examples would be told in the clear beside an update that a stage hides; let every "
            f"client count 1, Recipe(..., equal=True), or tell the server beforehand, e.g. "
            f"GridClients(..., sizes={{0: 30, 1: 50}})"
        )
    theta = message["theta"]
    blind(method).server(method.init(recipe.theta), torch.zeros_like(theta), {}, theta[:0])
