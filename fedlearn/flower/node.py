"""What runs beside the data: a Flower ClientApp that trains one client."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app import Context as FlowerContext
from flwr.clientapp import ClientApp
from torch import Tensor

from ..algorithms import Message as Broadcast
from ..checkpoint import decode, encode
from ..checks import check, whole
from ..data import fit, like, tensor
from ..partition.base import rows as rows_of
from ..partition.files import place, write_whole
from ..privacy.secure_aggregation.stages import desk_of
from ..recipe import Memories, Recipe, client_step, shards_of
from ..transform import Context
from .secure_node import answer, masked, unmasked
from .wire import checked, hides, look, pack, unpack, warn_of_the_seed

Load = Callable[[FlowerContext], tuple[Recipe, Tensor, Tensor, np.ndarray]]


def client_app(load: Load, *, seeded: bool = False) -> ClientApp:
    """A Flower ClientApp that trains one client as ``Simulated`` would.

    The noise of ``local_noise`` is this node's own, from its operating system. Behind a stage that
    hides the update (``private_mean``, ``local_noise``) it sends the update alone: neither its loss
    nor n_k, the number of its examples.

    Behind ``secure_mean`` it takes part in the protocol of secure aggregation, and what it sends is
    masked. It is told its identity key and everybody's public ones, files of ``make_keys``:
    ``--node-config 'partition-id=0 identity="identity-0" directory="directory.json"'``.

    What clients remember lies in Flower's ``context.state``, by the run that it belongs to: of its
    last two rounds, and of the last nine runs. Of two runs forked from one, one can go on. That is
    lost with the SuperNode, and not there for the next ``flwr run``. Where the node is told a
    folder of its own, ``--node-config 'partition-id=0 keep="/var/lib/client-0"'``, it lies there as
    well, and a run goes on from its checkpoint after SuperNode or ServerApp were stopped.

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

    @app.query()
    def who(msg: Message, context: FlowerContext) -> Message:
        mine = ConfigRecord({"partition-id": _me(context)})
        return Message(content=RecordDict({"client": mine}), reply_to=msg)

    @app.query("secure")
    def speak(msg: Message, context: FlowerContext) -> Message:
        me, desk = _me(context), desk_of(load(context)[0].pipeline)
        check("client_app", "the pipeline", None, desk is not None, "one that masks", "secure_mean")
        assert desk
        return Message(content=answer(msg, context, me, desk), reply_to=msg)

    @app.train()
    def train(msg: Message, context: FlowerContext) -> Message:
        recipe, x, y, rows = load(context)
        me = _me(context)
        message, config = _heard(msg, recipe)
        who, work = np.array([me]), config.get("work")
        ctx = Context(
            recipe.seed, config["round"], who, who, None if work is None else np.array([work]),
            secret=not seeded, again=np.array([config.get("again", 0)]),
        )  # fmt: skip
        if seeded:
            warn_of_the_seed("client_app", [s.std for s in recipe.pipeline.on_client])
        before = _recall(notes := _notes(context, me), recipe, config)
        task, theta = recipe.algorithm.task, recipe.theta
        x, y = tensor("client_app", "x", x), tensor("client_app", "y", y)
        mine = np.sort(rows_of("client_app", [rows], len(y))[0])
        x, y = (like(v, theta) for v in fit("client_app", task, x[mine], y[mine], theta))
        shards = shards_of(recipe, x, y, {me: mine}, ctx)  # shuffled by the numbers of the rows
        shards = shards._replace(index=torch.searchsorted(torch.from_numpy(mine), shards.index))
        desk = desk_of(recipe.pipeline)
        plain = recipe if desk is None else unmasked(recipe, desk)
        reply, kept = client_step(plain, message, shards, before, ctx)
        recipe.pipeline.fits(reply)
        _remember(notes, config, kept)
        if (file := _file(context, me)) and any(kept):
            named = {k: unpack(v) for k, v in notes.items() if " " in k}
            write_whole(file, encode(named))
        if desk is not None:
            residues = reply["delta"][0].numpy().view(np.uint32)
            return Message(content=masked(msg, context, me, residues), reply_to=msg)
        sent = {"delta": reply["delta"]} if hides(recipe) else reply
        own = pack({k: v[0] for k, v in sent.items()})
        return Message(content=RecordDict({"reply": own}), reply_to=msg)

    return app


def _me(context: FlowerContext) -> int:
    """The number of this node's client."""
    me: Any = context.node_config.get("partition-id")
    whole("client_app", "partition-id", me, 0, example=0)
    return int(me)


def _heard(msg: Message, recipe: Recipe) -> tuple[Broadcast, Any]:
    """The broadcast and its configuration, if they are of this recipe's kind."""
    content: Any = msg.content
    there = {"message", "config"} <= set(content)
    rule = "'message' and 'config', as GridClients sends them"
    check("client_app", "what arrives", sorted(content), there, rule, ["config", "message"])
    theta = recipe.algorithm.message(recipe.algorithm.init(recipe.theta))["theta"]
    record, config = content["message"], content["config"]
    looks = {**dict.fromkeys(record), "theta": look(theta)}
    whole("client_app", "round", config.get("round"), 0, example=0)
    return checked("client_app: the broadcast", record, looks), config


def _file(context: FlowerContext, me: int) -> Path | None:
    """Where this node also writes down what its client remembers, if it was told to."""
    keep = context.node_config.get("keep")
    return None if keep is None else place(str(keep)) / f"client-{me}.memory"


def _notes(context: FlowerContext, me: int) -> Any:
    """Flower's state of this node, with what its file knows beside it."""
    file, state = _file(context, me), context.state
    if file and file.exists():
        for name, tensors in decode(file.read_bytes(), file).items():
            if name not in state:
                state[name] = pack(tensors)
    return state


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
    runs = list(dict.fromkeys(k.split()[0] for k in state if " " in k))
    for key in [k for k in state if k.split()[0] in [r for r in runs if r != run][:-_RUNS]]:
        del state[key]
