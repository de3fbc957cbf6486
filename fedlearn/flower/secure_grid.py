"""The server's side of secure aggregation over Flower: it asks, passes on, adds up, and opens.

The five stages are those of ``fedlearn.privacy.secure_aggregation``, whose README has their order.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from ..checks import RoundFailed, check
from ..privacy.secure_aggregation import Refused, Server
from ..privacy.secure_aggregation.messages import KINDS, Masked, check_threshold
from ..privacy.secure_aggregation.round import taken
from ..privacy.secure_aggregation.stages import Desk
from ..recipe import Recipe
from ..transform import After, Context
from .text import from_text, to_text
from .wire import checked

# kind, {client: content} -> {client: what it answers, or its error in words}
Send = Callable[[str, dict[int, RecordDict]], dict[int, RecordDict | str]]


class Exchange:
    """The protocol's server of a run: one attempt a round, by messages that ``send`` carries.

    What it ever holds of a client is y_u, and of the sum what the protocol opens.

    Args:
        recipe: Whose pipeline ends in ``secure_mean``.
        desk: Its desk.
        directory: Public identity keys by client.
    """

    def __init__(self, recipe: Recipe, desk: Desk, directory: Mapping[int, bytes]):
        self.desk, self.directory, self._masks = desk, directory, np.zeros(0, np.uint32)
        own = recipe.pipeline.on_server
        ends = [After(s.name, self.reveal, plain=True) if self._opens(s) else s for s in own]
        self.recipe = replace(recipe, pipeline=recipe.pipeline._replace(on_server=tuple(ends)))

    def _opens(self, stage: After) -> bool:
        return getattr(stage.apply, "__self__", None) is self.desk

    def reveal(self, summed: Tensor, ctx: Context) -> Tensor:
        """The mean behind the sum: (d + 1,) int32, the masks are taken off -> (d,)"""
        total, self._masks = summed.numpy().view(np.uint32) - self._masks, np.zeros(0, np.uint32)
        return self.desk.mean(total)

    def round(
        self, ctx: Context, send: Send, broadcast: Mapping[int, RecordDict]
    ) -> tuple[dict[int, Tensor], dict[int, str]]:
        """One attempt. -> client: y_u (d + 1,) of those in the sum; why another isn't

        RoundFailed if fewer than the threshold answer at a stage, or one dealt false shares.
        """
        called = [int(k) for k in ctx.answered]
        once, rule = len({*called}) == len(called), "clients that are called once each"
        check("GridClients", "the cohort", called, once, rule, "weighted(k, n, replace=False)")
        try:
            t = check_threshold("secure_mean", self.desk.threshold, len(called))
            self.desk.check_cohort(len(called))
            server = Server(ctx.round, t, {k: self.directory[k] for k in called}, self._length)
            return self._stages(server, called, send, broadcast)
        except RoundFailed:
            raise
        except (ValueError, Refused) as e:  # the next round's cohort may be another
            raise RoundFailed(f"GridClients: round {ctx.round} opened nothing: {e}") from e

    @property
    def _length(self) -> int:
        return self.recipe.theta.numel() + 1

    def _stages(
        self, server: Server, called: list[int], send: Send, broadcast: Mapping[int, RecordDict]
    ) -> tuple[dict[int, Tensor], dict[int, str]]:
        head: Any = {"attempt": secrets.token_hex(8), "round": server.round}
        head["threshold"] = server.threshold

        def said(stage: str, sent: Mapping[int, Any]) -> dict[int, list[Any]]:
            own: dict[int, RecordDict] = {}
            for k, v in sent.items():
                config = ConfigRecord({**head, "stage": stage, "sent": to_text(v)})
                more = broadcast[k] if stage == "masked" else {}
                own[k] = RecordDict({"secure": config, **more})
            kind = "train" if stage == "masked" else "query.secure"
            return self._read(stage, send(kind, own), server)

        keys, good = taken(said("keys", dict.fromkeys(called, ())), "keys", server.keys, server)
        sent = dict.fromkeys(good, keys)
        letters, _ = taken(said("shares", sent), "shares", server.route, server)
        vectors = said("masked", letters)

        def add(own: list[Masked]) -> None:
            for m in own:
                server.add(m)

        for k, own in vectors.items():
            taken({k: own}, "masked", add, server)
        answered = server.answered()
        rows = {k: torch.from_numpy(vectors[k][0].y.view(np.int32)) for k in answered}
        votes, good = taken(said("votes", dict.fromkeys(answered, answered)), "votes",
                            server.votes, server)  # fmt: skip
        shares = said("opened", dict.fromkeys(good, votes))
        self._masks, _ = taken(shares, "opened", server.masks, server)
        why = {e.client: str(e) for e in reversed(server.refused) if e.client is not None}
        return rows, {k: why.get(k, "no answer in time") for k in called if k not in rows}

    def _read(
        self, stage: str, back: Mapping[int, RecordDict | str], server: Server
    ) -> dict[int, list[Any]]:
        """What each client said; who says nothing that can be read counts as silent."""
        out = {}
        for k, content in back.items():
            try:
                if isinstance(content, str):
                    raise ValueError(content)
                record: Any = content["secure"]
                fields = from_text(record["said"])
                if stage == "masked":
                    looks = {"y": ("int32", (self._length,))}
                    y = checked("its reply", content["reply"], looks)["y"].numpy()
                    (client, number, mark, signature), = fields  # fmt: skip
                    out[k] = [Masked(client, number, y.view(np.uint32), mark, signature)]
                    said = [f"client {k} refused: {w:.300}" for w in from_text(record["refused"])]
                    server.refused += [Refused(w, None, server.round, stage) for w in said[:9]]
                else:
                    out[k] = [KINDS[stage](*m) for m in fields]
            except Exception as e:  # whatever somebody sends: the others go on
                words = f"client {k} at stage '{stage}': {str(e) or repr(e):.400}"
                server.refused.append(Refused(words, k, server.round, stage))
        return out
