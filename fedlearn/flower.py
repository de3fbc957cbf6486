"""The same run over Flower: clients in their own process or machine, reached through a Grid.

The loop, the method and the pipeline stay as they are: :class:`GridClients` takes the place of
``Simulated``, and :func:`client_app` is what runs beside the data.
"""

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app import Context as FlowerContext
from flwr.clientapp import ClientApp
from torch import Tensor

from .algorithms import Message as Broadcast
from .algorithms import Reply
from .checks import RoundFailed, check
from .data import fit, like, tensor
from .partition.base import rows as rows_of
from .recipe import Memories, Recipe, client_step, no_reply, shards_of
from .transform import Context

__all__ = ["GridClients", "client_app"]

Load = Callable[[FlowerContext], tuple[Recipe, Tensor, Tensor, np.ndarray]]


def pack(tensors: dict[str, Tensor]) -> ArrayRecord:
    """Named tensors as Flower sends them: a record of NumPy arrays."""
    return ArrayRecord({k: Array(v.detach().cpu().numpy()) for k, v in tensors.items()})


def unpack(record: ArrayRecord) -> dict[str, Tensor]:
    """The tensors that :func:`pack` packed, on the CPU."""
    return {k: torch.from_numpy(np.array(v.numpy())) for k, v in record.items()}


def client_app(load: Load) -> ClientApp:
    """A Flower ClientApp that trains one client as ``Simulated`` would.

    What clients remember lies in Flower's ``context.state``, by the run that it belongs to: of its
    last two rounds, and of the last nine runs. Of two runs forked from one, one can go on.

    Args:
        load: Flower's context -> (recipe, x, y, rows): the run's recipe, and which rows of x and y
            this node holds. Only those are read, and checked as by ``Simulated``.
            ``context.node_config["partition-id"]`` must be the client's number. The numbers of the
            rows feed the shuffle: keep them as they are in the whole data set to get the bits of
            the simulation.

    Example:
        >>> type(client_app(lambda context: None)).__name__
        'ClientApp'
    """
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: FlowerContext) -> Message:
        recipe, x, y, rows = load(context)
        content: Any = msg.content  # of what GridClients.run packed
        config: Any = content["config"]
        me = int(context.node_config["partition-id"])
        called, answered = (np.array(list(config[k])) for k in ("called", "answered"))
        works = list(config["work"])
        work = np.array(works)[answered == me] if works else None
        ctx = Context(int(config["seed"]), int(config["round"]), called, np.array([me]), work)
        before = _recall(context.state, recipe, config)
        task, theta = recipe.algorithm.task, recipe.theta
        x, y = tensor("client_app", "x", x), tensor("client_app", "y", y)
        mine = np.sort(rows_of("client_app", [rows], len(y))[0])
        x, y = (like(v, theta) for v in fit("client_app", task, x[mine], y[mine], theta))
        shards = shards_of(recipe, x, y, {me: mine}, ctx)  # shuffled by the numbers of the rows
        shards = shards._replace(index=torch.searchsorted(torch.from_numpy(mine), shards.index))
        reply, kept = client_step(recipe, unpack(content["message"]), shards, before, ctx)
        _remember(context.state, config, kept)
        own = pack({k: v[0] for k, v in reply.items()})
        return Message(content=RecordDict({"reply": own}), reply_to=msg)

    return app


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

    Args:
        recipe: The run's recipe, the same that the nodes load.
        grid: Flower's Grid, as ``ServerApp`` hands it over.
        node_of: Client number 0..N-1 -> Flower's node id.
        timeout: Seconds to wait for a round's replies; None waits for ever.

    Raises:
        ValueError: If ``node_of`` doesn't number the clients.
        RoundFailed: From the run, if a node doesn't answer or answers with an error; the message
            names the client.

    Example:
        >>> from fedlearn import algorithms, model
        >>> task = model.softmax_regression(2, 2)
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0)
        >>> GridClients(recipe, None, {0: 100, 1: 101}).count
        2
    """

    device = torch.device("cpu")

    def __init__(
        self, recipe: Recipe, grid: Any, node_of: dict[int, int], timeout: float | None = None
    ):
        good, example = node_of and {*node_of} == {*range(len(node_of))}, "{0: 100, 1: 101}"
        rule = "one node for each client 0..N-1"
        check("GridClients", "node_of", sorted(node_of), bool(good), rule, example)
        self.recipe, self.grid, self.node_of = recipe, grid, node_of
        self.timeout, self.count = timeout, len(node_of)

    def memory(self) -> Memories:
        """Nodes keep their own: here a new run's name, and the round since which each does."""
        name, wide = secrets.randbits(62), torch.ones(self.count, dtype=torch.int64)
        return ({"run": name * wide, "since": -wide},)

    def run(self, message: Broadcast, ctx: Context, memory: Memories) -> tuple[Reply, Memories]:
        """Send the message to the nodes of ``ctx.answered`` and wait. -> {name: (K, ...)}"""
        who, packed = ctx.answered, pack(message)
        if not len(who):
            return no_reply(self.recipe, message, ctx)[0], ()
        kept = {k: v[torch.from_numpy(who)] for k, v in memory[0].items()}
        known = {k: v.tolist() for k, v in kept.items()}
        both = {"called": ctx.called.tolist(), "answered": who.tolist()}
        config = {"seed": ctx.seed, "round": ctx.round, **both, "work": []}
        if ctx.work is not None:
            config["work"] = [float(w) for w in ctx.work]
        out = []
        for i, k in enumerate(who):
            own: Any = {**config, "run": known["run"][i], "since": known["since"][i]}
            content = RecordDict({"message": packed, "config": ConfigRecord(own)})
            node = self.node_of[int(k)]
            out.append(Message(content=content, message_type="train", dst_node_id=node))
        came = self.grid.send_and_receive(out, timeout=self.timeout)
        back = {m.metadata.src_node_id: m for m in came}
        rows = []
        for k in map(int, who):
            answer = back.get(self.node_of[k])
            if answer is None or answer.has_error():
                why = "no answer in time" if answer is None else answer.error.reason
                if "client_app: this node" in why:  # what it has forgotten, no later round brings
                    raise ValueError(f"GridClients: client {k} (node {self.node_of[k]}): {why}")
                raise RoundFailed(
                    f"GridClients: client {k} (node {self.node_of[k]}) failed in round "
                    f"{ctx.round}: {why}; go on without it, e.g. federate(..., skip=3), or raise "
                    f"timeout"
                )
            rows.append(unpack(answer.content["reply"]))
        kept["since"] = torch.full_like(kept["since"], ctx.round)
        return {name: torch.stack([r[name] for r in rows]) for name in rows[0]}, (kept,)
