"""A node's side of secure aggregation: its client, from process to process, stage by stage."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app import Context as FlowerContext
from torch import Tensor

from ..checks import check
from ..partition.files import place
from ..privacy.secure_aggregation import Client, Refused, Vote
from ..privacy.secure_aggregation.messages import Keys, Sealed
from ..privacy.secure_aggregation.round import mask_with
from ..privacy.secure_aggregation.stages import Desk
from ..recipe import Recipe
from ..transform import Context, Memory
from .text import directory_of, from_text, to_text
from .wire import pack

SPOT = "secure-aggregation"  # of the open attempt, in Flower's state of the node


def unmasked(recipe: Recipe, desk: Desk) -> Recipe:
    """The recipe with plain residues: the node's client masks them itself."""

    def residues(d: Tensor, n: Tensor, memory: Memory, ctx: Context) -> tuple[Tensor, Memory]:
        rows = [torch.from_numpy(x.view(np.int32)) for x in desk.residues(d, n, ctx).values()]
        return torch.stack(rows), memory

    stages = tuple(
        s._replace(apply=residues) if getattr(s.apply, "__self__", None) is desk else s
        for s in recipe.pipeline.on_client
    )
    return replace(recipe, pipeline=recipe.pipeline._replace(on_client=stages))


def answer(msg: Message, context: FlowerContext, me: int, desk: Desk) -> RecordDict:
    """What the client says at every stage but ``masked``."""
    config: Any = msg.content["secure"]
    stage, sent = config["stage"], from_text(config["sent"])
    if stage == "keys":
        t, own = config["threshold"], desk.threshold
        check("client_app", "threshold", t, own in (None, t), "the recipe's", own)
        client = _client(context, me, config)
        said: list[Any] = [client.advertise()]
    else:
        client = _recalled(context, me, config)
        if stage == "shares":
            said = [*client.share([Keys(*m) for m in sent])]
        elif stage == "votes":
            said = [client.vote(sent)]
        else:
            said = [client.open([Vote(*m) for m in sent])]
    _keep(context, client, config)
    if stage == "opened":
        del context.state[SPOT]  # its secrets with it
    return RecordDict({"secure": ConfigRecord({"said": to_text(said)})})


def masked(msg: Message, context: FlowerContext, me: int, x: np.ndarray) -> RecordDict:
    """Stage ``masked``: y_u of x (d + 1,) uint32."""
    config: Any = msg.content["secure"]
    client, refused = _recalled(context, me, config), list[Refused]()
    letters = [Sealed(*m) for m in from_text(config["sent"])]
    m = mask_with(client, x, letters, refused)
    _keep(context, client, config)
    text = to_text([(m.client, m.round, m.mark, m.signature)])
    own = ConfigRecord({"said": text, "refused": to_text([str(e)[:300] for e in refused])})
    return RecordDict({"secure": own, "reply": pack({"y": torch.from_numpy(m.y.view(np.int32))})})


def _client(context: FlowerContext, me: int, config: Any) -> Client:
    """The client of an attempt, by the keys that the node's operator names."""
    told: Any = {k: context.node_config.get(k) for k in ("identity", "directory")}
    there, rule = None not in told.values(), "files that the node is told, for the recipe masks"
    example = '--node-config \'identity="identity-0" directory="directory.json"\''
    check("client_app", "identity and directory", told, there, rule, example)
    identity = Ed25519PrivateKey.from_private_bytes(place(told["identity"]).read_bytes())
    book = directory_of(told["directory"])
    return Client(me, config["round"], identity, book, config["threshold"])


def _keep(context: FlowerContext, client: Client, config: Any) -> None:
    kept = {"attempt": config["attempt"], "client": to_text(client.keep())}
    context.state[SPOT] = ConfigRecord(kept)


def _recalled(context: FlowerContext, me: int, config: Any) -> Client:
    there: Any = context.state.get(SPOT, {"attempt": "none"})
    same, rule = there["attempt"] == config["attempt"], "the one that this node takes part in"
    check("client_app", "the attempt", config["attempt"], same, rule, there["attempt"])
    return _client(context, me, config).resume(from_text(there["client"]))
