"""The same run over Flower: clients in their own process or machine, reached through a Grid.

The loop, the method and the pipeline stay as they are: :class:`GridClients` takes the place of
``Simulated``, and :func:`client_app` is what runs beside the data. A message holds what its
receiver needs and no more: no seed, no cohort. What comes from outside is checked before use.
"""

import io
import secrets
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
    from flwr.app import Context as FlowerContext
    from flwr.clientapp import ClientApp
except ImportError as e:
    raise ImportError(f"fedlearn.flower needs flwr ({e}): pip install 'fedlearn[flower]'") from e

from .algorithms import Message as Broadcast
from .algorithms import Reply
from .checks import RoundFailed, check, is_whole, whole
from .data import fit, like, tensor
from .partition.base import rows as rows_of
from .privacy.dp import blind
from .recipe import Memories, Recipe, client_step, no_reply, shards_of
from .transform import Context

__all__ = ["GridClients", "client_app"]

Load = Callable[[FlowerContext], tuple[Recipe, Tensor, Tensor, np.ndarray]]
Look = tuple[str, tuple[int, ...]]  # of a tensor: its type and shape
MOST = 2**24  # examples that a client may claim: all that float32 counts one by one


def pack(tensors: dict[str, Tensor]) -> ArrayRecord:
    """Named tensors as Flower sends them: a record of NumPy arrays."""
    return ArrayRecord({k: Array(v.detach().cpu().numpy()) for k, v in tensors.items()})


def unpack(record: ArrayRecord) -> dict[str, Tensor]:
    """The tensors that :func:`pack` packed, on the CPU."""
    return {k: torch.from_numpy(np.array(v.numpy())) for k, v in record.items()}


def checked(name: str, record: Any, looks: Mapping[str, Look | None]) -> dict[str, Tensor]:
    """The tensors of a record from outside: of these names and looks, and finite; else ValueError.

    Type and shape are read off each array's header first, so that nothing is unpickled and no more
    is allocated than was agreed on. A look of None lets any numbers through.
    """
    ok = isinstance(record, ArrayRecord)
    check(name, "what it sends", type(record).__name__, ok, "an ArrayRecord", "pack(reply)")
    names, rule = [str(k)[:40] for k in sorted(record)][:9], f"exactly {sorted(looks)}"
    check(name, "its names", names, set(record) == set(looks), rule, sorted(looks))
    for k, look in looks.items():
        header = io.BytesIO(record[k].data)
        plain = np.lib.format.read_magic(header) == (1, 0)
        check(name, k, "another format", plain, "an array as np.save writes it", "Array(ndarray)")
        shape, _, dtype = np.lib.format.read_array_header_1_0(header)
        ok = (str(dtype), shape) == look if look else dtype.kind in "biuf"
        check(name, k, f"{dtype} {shape}", ok, " ".join(map(str, look or ["numbers"])), "delta")
    tensors = unpack(record)
    for k, v in tensors.items():
        bad = int((~v.isfinite()).sum())
        check(name, k, f"{bad} of {v.numel()} inf or NaN", not bad, "finite", "a smaller lr")
    return tensors


def _look(v: Tensor, rows: int = 0) -> Look:
    return str(v.dtype).removeprefix("torch."), tuple(v.shape[rows:])


def _hides(recipe: Recipe) -> bool:
    """Whether a stage on the client hides its update: then it sends that and no other number."""
    return any(s.private for s in recipe.pipeline.on_client)


def _warn_of_the_seed(name: str, stds: list[float]) -> None:
    if any(stds):
        warnings.warn(
            f"{name}: seeded=True is for teaching: the noise is a function of the recipe's seed, "
            f"and whoever knows the seed, as every client does, can subtract it. Leave it out, and "
            f"the noise comes from the operating system",
            RuntimeWarning,
            stacklevel=3,
        )


def client_app(load: Load, *, seeded: bool = False) -> ClientApp:
    """A Flower ClientApp that trains one client as ``Simulated`` would.

    The noise of ``local_noise`` is this node's own, from its operating system. Behind a stage that
    hides the update (``private_mean``, ``local_noise``) it sends the update alone: neither its loss
    nor n_k, the number of its examples.

    What clients remember lies in Flower's ``context.state``, by the run that it belongs to: of its
    last two rounds, and of the last nine runs. Of two runs forked from one, one can go on.

    Args:
        load: Flower's context -> (recipe, x, y, rows): the run's recipe, and which rows of x and y
            this node holds. Only those are read, and checked as by
            ``Simulated``. ``context.node_config["partition-id"]`` must be
            the client's number, an integer. The numbers of the rows and the recipe's seed feed the
            shuffle, and nothing else: keep them as they are in the simulation to get its bits.
        seeded: For teaching: noise from the recipe's seed, the bits of the simulation. Whoever
            knows the seed, the server too, can subtract it, and a RuntimeWarning says so.

    Raises:
        ValueError: From the app, if the broadcast is not a finite theta of the recipe's shape, or
            the node's number no integer.

    Example:
        >>> type(client_app(lambda context: None)).__name__
        'ClientApp'
    """
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: FlowerContext) -> Message:
        recipe, x, y, rows = load(context)
        me: Any = context.node_config.get("partition-id")
        whole("client_app", "partition-id", me, 0, example=0)
        message, config = _heard(msg, recipe)
        who, work = np.array([me]), config.get("work")
        ctx = Context(
            recipe.seed, config["round"], who, who, None if work is None else np.array([work]),
            secret=not seeded, again=np.array([config.get("again", 0)]),
        )  # fmt: skip
        if seeded:
            _warn_of_the_seed("client_app", [s.std for s in recipe.pipeline.on_client])
        before = _recall(context.state, recipe, config)
        task, theta = recipe.algorithm.task, recipe.theta
        x, y = tensor("client_app", "x", x), tensor("client_app", "y", y)
        mine = np.sort(rows_of("client_app", [rows], len(y))[0])
        x, y = (like(v, theta) for v in fit("client_app", task, x[mine], y[mine], theta))
        shards = shards_of(recipe, x, y, {me: mine}, ctx)  # shuffled by the numbers of the rows
        shards = shards._replace(index=torch.searchsorted(torch.from_numpy(mine), shards.index))
        reply, kept = client_step(recipe, message, shards, before, ctx)
        recipe.pipeline.fits(reply)
        _remember(context.state, config, kept)
        sent = {"delta": reply["delta"]} if _hides(recipe) else reply
        own = pack({k: v[0] for k, v in sent.items()})
        return Message(content=RecordDict({"reply": own}), reply_to=msg)

    return app


def _heard(msg: Message, recipe: Recipe) -> tuple[Broadcast, Any]:
    """The broadcast and its configuration, if they are of this recipe's kind."""
    content: Any = msg.content
    there = {"message", "config"} <= set(content)
    rule = "'message' and 'config', as GridClients sends them"
    check("client_app", "what arrives", sorted(content), there, rule, ["config", "message"])
    theta = recipe.algorithm.message(recipe.algorithm.init(recipe.theta))["theta"]
    record, config = content["message"], content["config"]
    looks = {**dict.fromkeys(record), "theta": _look(theta)}
    whole("client_app", "round", config.get("round"), 0, example=0)
    return checked("client_app: the broadcast", record, looks), config


_RUNS = 8  # that a node remembers at the same time


def _recall(state: Any, recipe: Recipe, config: Any) -> Memories:
    """What this node remembers of the run since its last round there: one row."""
    empty = recipe.memory()
    if config["since"] < 0 or not any(empty):
        return tuple({k: v[None] for k, v in kept.items()} for kept in empty)
    key = f"{config['run']} {config['since']}"
    if key not in state:
        raise ValueError(
            f"client_app: this node must remember the run after round {config['since']}, got "
            f"{[k for k in state if k.startswith(str(config['run']))] or 'nothing of it'}; begin "
            f"the run anew, or save it every round, e.g. federate(..., save_every=1)"
        )
    flat = unpack(state[key])
    return tuple({k: flat[f"{i}.{k}"] for k in kept} for i, kept in enumerate(empty))


def _remember(state: Any, config: Any, memory: Memories) -> None:
    """Keep what is new beside what it came from: the round may fail elsewhere and be lost."""
    flat = {f"{i}.{k}": v for i, m in enumerate(memory) for k, v in m.items()}
    if not flat:
        return
    run = str(config["run"])
    for key in [k for k in state if k.startswith(f"{run} ") and k != f"{run} {config['since']}"]:
        del state[key]
    state[f"{run} {config['round']}"] = pack(flat)
    runs = list(dict.fromkeys(k.split()[0] for k in state))
    for key in [k for k in state if k.split()[0] in [r for r in runs if r != run][:-_RUNS]]:
        del state[key]


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
        node_of: Client number 0..N-1 -> Flower's node id.
        timeout: Seconds to wait for a round's replies; None waits for ever.
        sizes: Client number -> the most examples that it may claim to hold, known beforehand. None:
            its first claim is its word, up to 2**24. A mean weighted by n then trusts every client
            with that: where it mustn't, give ``sizes``, or ``Recipe(equal=True)``.
        minimum: Fit replies without which a round fails; fewer are enough where fewer were asked.
            None: one, but every node must have answered in time.
        seeded: For teaching: noise from the recipe's seed, the bits of the simulation. Whoever
            knows the seed can subtract it, and a RuntimeWarning says so.

    Attributes:
        refused: Round t -> {client: why its reply is missing or was left out}.

    Raises:
        ValueError: At once, if ``node_of`` or ``sizes`` doesn't number the clients, the pipeline
            masks (keys of ``secure_mean`` live in one process), or it hides the update while the
            server needs n. From the run, if all nodes have forgotten it.
        RoundFailed: From the run, if fewer than ``minimum`` replies are fit; it names the clients.

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
        node_of: dict[int, int],
        timeout: float | None = None,
        *,
        sizes: dict[int, int] | None = None,
        minimum: int | None = None,
        seeded: bool = False,
    ):
        good, example = node_of and {*node_of} == {*range(len(node_of))}, "{0: 100, 1: 101}"
        good, rule = (
            good and len({*node_of.values()}) == len(node_of),
            "a node for each client 0..N-1",
        )
        check("GridClients", "node_of", node_of, bool(good), rule, example)
        good = sizes is None or ({*sizes} == {*node_of} and all(map(is_whole, sizes.values())))
        rule = f"an integer >= 1 for each client 0..{len(node_of) - 1}"
        check("GridClients", "sizes", sizes, good, rule, "{0: 30, 1: 50}")
        if minimum is not None:
            whole("GridClients", "minimum", minimum, 1, len(node_of), example=1)
        self.recipe = recipe if seeded else replace(recipe, secret=True)
        _check_recipe(recipe, sizes is not None)
        if not self.recipe.secret:
            stds = [s.std for s in recipe.pipeline.on_client]
            _warn_of_the_seed("GridClients", stds + [s.std for s in recipe.pipeline.on_server])
        self.grid, self.node_of, self.timeout = grid, node_of, timeout
        self.count, self.minimum, self.sizes = len(node_of), minimum, dict(sizes or {})
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
        looks = {k: _look(v, 1) for k, v in none.items()}
        looks = {"delta": looks["delta"]} if _hides(self.recipe) else looks
        came = self.grid.send_and_receive(self._letters(message, ctx, memory), timeout=self.timeout)
        back: dict[int, list[Message]] = {}
        for m in came:
            back.setdefault(m.metadata.src_node_id, []).append(m)
        rows, bad, silent = {}, {}, 0
        for i, k in enumerate(map(int, who)):
            answers = back.get(self.node_of[k])
            silent += not answers
            try:
                rows[i] = self._read(k, answers.pop(0) if answers else None, looks)
            except Exception as e:  # whatever somebody sends: the others go on
                bad[k] = (str(e) or type(e).__name__)[:500]
        self._judge(bad, len(rows), silent, ctx)
        places = torch.tensor([*rows])
        kept = {name: v[torch.from_numpy(who)][places] for name, v in memory[0].items()}
        kept["since"] = torch.full_like(kept["since"], ctx.round)
        reply = {k: torch.stack([r[k] for r in rows.values()]) for k in rows[int(places[0])]}
        return {**reply, "came": places} if len(rows) < len(who) else reply, (kept,)

    def _letters(self, message: Broadcast, ctx: Context, memory: Memories) -> list[Message]:
        """What each node needs: the broadcast, the round, its work, and what it goes on from."""
        packed, out = pack(message), []
        for i, k in enumerate(map(int, ctx.answered)):
            own: Any = {name: int(v[k]) for name, v in memory[0].items()}
            own["round"] = int(ctx.round)
            if ctx.work is not None:
                own["work"] = float(ctx.work[i])
            if not self.recipe.secret and ctx.earlier()[i]:
                own["again"] = int(ctx.earlier()[i])
            content = RecordDict({"message": packed, "config": ConfigRecord(own)})
            node = self.node_of[k]
            out.append(Message(content=content, message_type="train", dst_node_id=node))
        return out

    def _read(self, k: int, answer: Message | None, looks: dict[str, Look]) -> Reply:
        """One client's reply, if it is fit to be used; else an exception that says why not."""
        if answer is None or answer.has_error():
            raise ValueError(answer.error.reason if answer else "no answer in time")
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
        t, few = ctx.round, min(self.minimum or 1, len(ctx.answered))
        if fit < few or (silent and self.minimum is None):
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
    if reply["delta"].dtype != recipe.theta.dtype:
        raise ValueError(
            f"GridClients: updates must travel in theta's type, got {reply['delta'].dtype}: the "
            f"keys of secure_mean live in one process; between processes use the messages of "
            f"fedlearn.privacy.secure_aggregation, here e.g. chain(clip(1.0), mean())"
        )
    if not _hides(recipe) or recipe.equal or sizes_known:
        return
    if pipeline.reduce.share is None:
        raise ValueError(
            f"GridClients: {pipeline.reduce.name} weighs by n_k, and the client's number of "
            f"examples would be told in the clear beside an update that a stage hides; let every "
            f"client count 1, Recipe(..., equal=True), or tell the server beforehand, e.g. "
            f"GridClients(..., sizes={{0: 30, 1: 50}})"
        )
    theta = message["theta"]
    blind(method).server(method.init(recipe.theta), torch.zeros_like(theta), {}, theta[:0])
