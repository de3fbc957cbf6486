"""The same run over Flower: clients in their own process or machine, reached through a Grid.

The loop, the method and the pipeline stay as they are: :class:`GridClients` takes the place of
``Simulated``, and :func:`client_app` is what runs beside the data.
"""

from __future__ import annotations

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
from .data import Shards, schedule
from .federate import Recipe
from .simulated import no_reply
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

    What a method keeps between rounds lies in Flower's ``context.state``.

    Args:
        load: Flower's context -> (recipe, x, y, rows): the run's recipe, and which rows of x and y
            this node holds. Only those are read. ``context.node_config["partition-id"]`` must be
            the client's number. The numbers of the rows feed the shuffle: keep them as they are in
            the whole data set to get the bits of the simulation.

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
        cohort = np.array(list(config["cohort"]))
        asked, works = list(config["rows"]), list(config["work"])
        work = np.array([works[asked.index(me)]]) if works else None
        ctx = Context(int(config["seed"]), int(config["round"]), cohort, np.array([me]), work)
        message = unpack(content["message"])
        reply, kept = _train(recipe, x, y, rows, message, ctx, context)
        if kept:
            context.state["memory"] = pack(kept)
        return Message(content=RecordDict({"reply": pack(reply)}), reply_to=msg)

    return app


@torch.no_grad()
def _train(
    recipe: Recipe,
    x: Tensor,
    y: Tensor,
    rows: np.ndarray,
    message: Broadcast,
    ctx: Context,
    context: FlowerContext,
) -> tuple[Reply, dict[str, Tensor]]:
    """Simulated._train for a cohort of one, without the leading K in what goes out."""
    plan = schedule(
        {int(ctx.rows[0]): rows},
        ctx.rows,
        batch=recipe.batch,
        epochs=recipe.epochs,
        seed=ctx.seed,
        round=ctx.round,
        work=ctx.work,
    )
    mask, n = (v.to(message["theta"].dtype) for v in plan[1:])
    if recipe.equal:
        n = torch.ones_like(n)
    state: Any = context.state
    before = unpack(state["memory"]) if "memory" in state else recipe.memory()
    memory = {k: v[None] for k, v in before.items()}
    own = {k: v for k, v in memory.items() if not k[0].isdigit()}  # the rest: the pipeline's
    reply, own = recipe.algorithm.client(message, Shards(x, y, plan[0], mask, n), own)
    delta, stages = recipe.pipeline.encode(reply["delta"], n, memory, ctx)
    reply = {**reply, "delta": delta, "n": n}
    return {k: v[0] for k, v in reply.items()}, {k: v[0] for k, v in {**own, **stages}.items()}


class GridClients:
    """Clients reached through a Flower Grid: takes the place of ``Simulated`` in ``federate``.

    Args:
        recipe: The run's recipe, the same that the nodes load.
        grid: Flower's Grid, as ``ServerApp`` hands it over.
        node_of: Client number 0..N-1 -> Flower's node id.
        timeout: Seconds to wait for a round's replies; None waits for ever.

    Raises:
        ValueError: From the run, if a node doesn't answer or answers with an error; the message
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
        if sorted(node_of) != list(range(len(node_of))) or not node_of:
            raise ValueError(
                f"GridClients: node_of must number the clients 0..N-1, got {sorted(node_of)}, "
                f"e.g. dict(enumerate(grid.get_node_ids()))"
            )
        self.recipe, self.grid, self.node_of = recipe, grid, node_of
        self.timeout, self.count = timeout, len(node_of)

    def run(self, message: Broadcast, ctx: Context) -> Reply:
        """Send the message to the nodes of ``ctx.rows`` and wait. -> {name: (K, ...)}"""
        if not len(ctx.rows):
            return no_reply(message)
        cohort = [int(k) for k in ctx.cohort]
        answering = [int(k) for k in ctx.rows]
        work = [] if ctx.work is None else [float(w) for w in ctx.work]
        config = ConfigRecord({"seed": ctx.seed, "round": ctx.round, "cohort": cohort})
        config["rows"], config["work"] = answering, work
        content = RecordDict({"message": pack(message), "config": config})
        out = [
            Message(content=content, message_type="train", dst_node_id=self.node_of[int(k)])
            for k in ctx.rows
        ]
        back = {
            m.metadata.src_node_id: m for m in self.grid.send_and_receive(out, timeout=self.timeout)
        }
        rows = []
        for k in map(int, ctx.rows):
            answer = back.get(self.node_of[k])
            if answer is None or answer.has_error():
                why = "no answer in time" if answer is None else answer.error.reason
                raise ValueError(
                    f"GridClients: client {k} (node {self.node_of[k]}) failed in round "
                    f"{ctx.round}: {why}; run again without it, or raise timeout"
                )
            rows.append(unpack(answer.content["reply"]))
        return {name: torch.stack([r[name] for r in rows]) for name in rows[0]}
