"""Secure aggregation as stages of the federated loop's pipeline."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checks import RoundFailed, check, is_whole
from ...transform import After, Context, Memory, Pipeline, Reduce, Rowwise
from . import primitives as prim
from .client import Client
from .fixed_point import FixedPoint
from .messages import Refused, Sealed, TooFew, check_threshold, default_threshold
from .round import enroll, exchange, unmask
from .server import Server


def secure_mean(
    bound: float, total: int, *, bits: int | None = None, threshold: int | None = None
) -> tuple[Rowwise, Reduce, After]:
    """mask -> sum mod 2**32 -> unmask: Σ_k n_k delta_k / Σ_k n_k, and no single one is seen.

    Client k sends n_k delta_k and n_k as residues mod 2**32, masked with everybody in the cohort.
    The server adds, has the masks of those who stayed silent opened, and divides: it learns
    Σ n_k delta_k and Σ n_k. With ``Recipe(equal=True)`` every n_k is 1. The three stages are for
    :func:`~fedlearn.transform.chain`: ``chain(clip(1.0), *secure_mean(1.0, len(y)))``.

    Args:
        bound: Largest |number| of an update that may be sent, > 0. After ``clip(S)`` S suffices.
        total: No less than Σ n_k of any cohort, e.g. ``len(y)``; with ``equal`` the cohort's size.
        bits: After the point; None takes the most with which ``total`` x ``bound`` stays below
            2**31. The mean is then off by at most K / Σ n_k 2**-(bits + 1).
        threshold: t, more than half of the cohort and at most all of it; None for ⌊2 K / 3⌋ + 1.

    Raises:
        ValueError: If a number is out of range; from a round, if the cohort is smaller than the
            threshold, an update goes beyond ``bound`` or Σ n_k beyond ``total``.
        TooFew: From a round in which fewer than t answer.
        Refused: From a round whose clients masked in other processes: their keys are not here.

    Example:
        >>> from fedlearn.transform import chain
        >>> pipeline = chain(*secure_mean(bound=8.0, total=1437))
        >>> ctx = Context(0, 0, np.arange(3), np.arange(3))
        >>> delta, n = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 1.0, 2.0])
        >>> rows, _ = pipeline.encode(delta, n, {}, ctx)
        >>> rows.dtype, rows.shape  # what the server sees: the update and n_k, masked
        (torch.int32, torch.Size([3, 2]))
        >>> pipeline.combine({"delta": rows}, n / n.sum(), ctx)
        tensor([2.2500])

    Reference:
        Bonawitz et al., 2017, "Practical secure aggregation for privacy-preserving machine
        learning", Figure 4; the weights as in its introduction: clients send (n_k delta_k, n_k).

    Differs from the paper: with ``Simulated`` all clients live in this process, so keys and shares
    are exchanged when the round's first client masks; bytes of keys and shares are not in
    ``Round.received``, see ``secure_sum``. Over Flower the messages travel. In this process the
    loop itself still holds n_k and the training loss of each client, for its own books.
    """
    code = FixedPoint(bound, total, bits)
    t = threshold
    check("secure_mean", "threshold", t, t is None or is_whole(t, 2), "an integer >= 2", 7)
    desk = Desk(code, t)
    add = lambda rows, p: rows.sum(0).to(torch.int32)  # int64, then wraps
    name = f"{bound:g}, {total}"
    return (
        Rowwise(f"mask({name})", desk.mask, private=True, plain=True),
        Reduce("sum mod 2**32", add, plain=True, fold=add),
        After("unmask()", desk.reveal, plain=True),
    )


def desk_of(pipeline: Pipeline) -> "Desk | None":
    """The desk of a pipeline's ``secure_mean``; None if it has none."""
    desks = (getattr(stage.apply, "__self__", None) for stage in pipeline.on_client)
    return next((desk for desk in desks if isinstance(desk, Desk)), None)


def _weighted(code: FixedPoint, k: int, x: np.ndarray, n: float) -> np.ndarray:
    """(d + 1,) residues of n x and of n itself, a whole number."""
    check("secure_mean", "n_k", n, n >= 1 and float(n).is_integer(), "a whole number >= 1", 600)
    rule = f"no less than any cohort's sum of n_k, and client {k} alone holds {n:g}"
    check("secure_mean", "total", code.clients, n <= code.clients, rule, "len(y)")
    try:
        return np.append(code.encode(x, times=int(n)), np.uint32(n))
    except ValueError as e:
        raise ValueError(f"secure_mean: the update of client {k} can't be sent. {e}") from None


class Desk:
    """What the stages know: the code, the threshold, and the one open round in this process.

    Of the round its clients with their secrets, and its server.
    """

    def __init__(self, code: FixedPoint, threshold: int | None):
        self.code, self.threshold = code, threshold
        self._identities: dict[int, Any] = {}
        self._round: tuple[int, tuple[int, ...]] | None = None
        self._masked: set[int] = set()
        self._clients: dict[int, Client] = {}
        self._letters: dict[int, list[Sealed]] = {}
        self._server: Server | None = None
        self.dtype = torch.float32

    def residues(self, delta: Tensor, n: Tensor, ctx: Context) -> dict[int, np.ndarray]:
        """client -> (d + 1,) uint32: n_k delta_k and n_k, not masked yet."""
        rows = zip(ctx.answered, delta.detach().cpu().double().numpy(), n.tolist(), strict=True)
        self.dtype = delta.dtype
        return {int(k): _weighted(self.code, int(k), x, w) for k, x, w in rows}

    def mask(self, delta: Tensor, n: Tensor, memory: Memory, ctx: Context) -> tuple[Tensor, Memory]:
        """The stage on the clients: residues (K, d + 1), masked."""
        plain = self.residues(delta, n, ctx)
        y = [torch.from_numpy(self._mask(k, x, ctx).view(np.int32)) for k, x in plain.items()]
        none = delta.new_zeros((0, delta.shape[1] + 1), dtype=torch.int32)
        return torch.stack(y).to(delta.device) if y else none, memory

    def reveal(self, masked: Tensor, ctx: Context) -> Tensor:
        """The stage on the server: the mean behind the sum of what was masked."""
        return self.mean(self._open(masked.cpu().numpy().view(np.uint32), ctx)).to(masked.device)

    def mean(self, total: np.ndarray) -> Tensor:
        """(d + 1,) uint32, Σ n_k delta_k and Σ n_k -> (d,) their quotient."""
        n = int(total[-1])
        rule = "no less than the cohort's sum of n_k, which may have overflowed"
        check("secure_mean", "total", self.code.clients, 1 <= n <= self.code.clients, rule, n)
        return torch.from_numpy(self.code.decode(total[:-1]) / n).to(self.dtype)

    def _mask(self, k: int, x: np.ndarray, ctx: Context) -> np.ndarray:
        here = (ctx.round, tuple(int(v) for v in ctx.called))
        if here != self._round or k in self._masked:  # again: the round was given up, begin anew
            self._begin(here, ctx, len(x))
        if k not in self._letters:
            raise ValueError(
                f"secure_mean: client {k} is not in the cohort {list(here[1])}: it has no keys, "
                "e.g. Context(seed, t, cohort, rows) with rows out of the cohort"
            )
        self._masked.add(k)
        return self._clients[k].mask(x, self._letters[k]).y

    def _open(self, total: np.ndarray, ctx: Context) -> np.ndarray:
        """The sum without the masks; the round's secrets are forgotten, whatever happens."""
        answered, masked, here = [int(k) for k in ctx.answered], self._masked, self._round
        clients, server = self._clients, self._server
        self._round, self._masked, self._clients, self._server = None, set(), {}, None
        t = self.threshold or max(2, default_threshold(len(ctx.called)))
        if len(answered) < t:
            raise TooFew(ctx.round, "masked", len(answered), t)
        same = here == (ctx.round, tuple(int(v) for v in ctx.called)) and masked == set(answered)
        if server is None or not same:
            raise Refused(
                f"secure_mean, round {ctx.round}: this pipeline, in this process, did not mask "
                "these vectors, so the keys to open the sum are not here; nothing was opened. "
                "Clients in other processes need the messages of "
                "fedlearn.privacy.secure_aggregation"
            )
        server.add_sum(answered, total)
        return server.sum - unmask(clients, server)

    def _begin(self, here: tuple[int, tuple[int, ...]], ctx: Context, d: int) -> None:
        if ctx.turns is not None:
            raise ValueError(
                "secure_mean: an asynchronous run has no common round in which masks could cancel; "
                "use federate(clients, ...), where the cohort answers together"
            )
        cohort, rule = list(here[1]), "clients that are called once each: draw without replacement"
        once, so = len(set(cohort)) == len(cohort), "weighted(k, n, replace=False)"
        check("secure_mean", "the cohort", cohort, once, rule, so)
        self.check_cohort(len(here[1]))
        try:
            t = check_threshold("secure_mean", self.threshold, len(here[1]))
        except ValueError as e:  # the next round's cohort may be another
            raise RoundFailed(str(e)) from None
        for k in here[1]:
            self._identities.setdefault(k, prim.identity())
        self._clients, self._server = enroll(here[1], ctx.round, t, self._identities, d)
        self._letters = exchange(self._clients, self._server)
        self._round, self._masked = here, set()

    def check_cohort(self, K: int) -> None:
        """Each n_k is at most total: their sum stays below 2**32, so one beyond total is seen."""
        good = K * self.code.clients < 2**32
        rule = f"below 2**32 / {K}: the n_k of {K} clients are added mod 2**32"
        check("secure_mean", "total", self.code.clients, good, rule, "len(y)")
