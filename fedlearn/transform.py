"""Stages between a client's update and the server's step, and :func:`chain` to join them.

A stage acts on the matrix of updates, a row per client. It is one of

    Rowwise    (K, d) -> (K, d)   each row from that row alone: runs on the client
    Reduce     (K, d) -> (d,)     sees every row: runs on the server
    After      (d,)   -> (d,)     runs on the server
"""

import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .checks import check, not_negative, positive
from .rng import Use, numpy_rng
from .task import wide

Memory = dict[str, Tensor]  # what one client keeps between rounds; stacked: (K, ...)
NOT_SENT = {"n", "loss", "seconds", "came", "each", "sane"}  # of a reply: known, or for the books


class Context(NamedTuple):
    """Which round, whom the server called, and whose rows are at hand.

    Attributes:
        seed: The run's seed.
        round: t.
        called: (K,) numbers of the clients that the server sent to: the cohort.
        answered: (R,) numbers of those whose rows are at hand: all that answer on a server, one on
            a client.
        work: (R,) the fraction of its local steps that each of them does; None for all of them.
        turns: (R,) the number that each one's shuffle depends on where clients have no common
            round, as in an asynchronous run; None for the round t.
        secret: Whether noise comes from the operating system; else it is a function of the seed.
        stage: Stages that draw before the one that runs, on the clients or on the server.
        again: (R,) how often each one stands before itself in the cohort, if ``answered`` is a part
            of it; None to count them there.
        rows: Whether every client's row is wanted, however many; else their mean may be all.
    """

    seed: int
    round: int
    called: np.ndarray
    answered: np.ndarray
    work: np.ndarray | None = None
    turns: np.ndarray | None = None
    secret: bool = False
    stage: int = 0
    again: np.ndarray | None = None
    rows: bool = False

    def keep(self, some: np.ndarray) -> "Context":
        """The same round with the rows at ``some`` alone: a mask (R,), or places in 0..R-1."""
        work, turns = (v if v is None else v[some] for v in (self.work, self.turns))
        who, again = self.answered[some], self.earlier()[some]
        return self._replace(answered=who, work=work, turns=turns, again=again)

    def earlier(self) -> np.ndarray:
        """(R,) how often each one stands before itself in the cohort: 0 unless drawn twice."""
        if self.again is not None:
            return self.again
        order = np.argsort(self.answered, kind="stable")
        ranks, ordered = np.empty_like(order), self.answered[order]
        ranks[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        return ranks

    def heard(self, reply: dict[str, Tensor]) -> "Context":
        """The round of those whose rows came back: all, or those at the places ``reply["came"]``.

        ValueError unless there is a row for each, or a few for all and ``reply["each"]``, their n;
        with n > 0.
        """
        ctx = self.keep(reply["came"].numpy()) if "came" in reply else self
        K, n = len(ctx.answered), reply.get("each", reply.get("n", torch.empty(0)))
        if "each" in reply:  # added up: a row for all, and the books' numbers of each
            check("clients.run", "reply['each']", tuple(n.shape), n.shape == (K,), f"({K},)", "n")
            rows = {k: reply[k] for k in reply.keys() - {"each", "sane"}}
            check_rows("clients.run", rows, rows.get("n", n[:0]).numel(), "loss", "n")
        else:
            check_rows("clients.run", reply, K, "loss", "n")
        good = bool(((n > 0) & (n < torch.inf)).all())  # NaN is neither
        check("clients.run", "reply['n']", n.tolist(), good, "> 0 and finite", "shards.n")
        return ctx

    def noise(self, use: Use, std: float, like: Tensor) -> Tensor:
        """N(0, std²) in the shape of ``like``: (d,), or (R, d) with each client's row its own.

        No two draws of a run have the same path: seed, use, round, stage and std to nine digits,
        with the client, its ``again`` and its turn. So neither two stages nor two runs with other
        noise share numbers, and a last digit that depends on the machine changes no draw. If
        ``secret``, every draw is seeded by the operating system instead.
        """
        turns = () if self.turns is None else (self.turns,)
        rows = zip(self.answered, self.earlier(), *turns) if like.dim() > 1 else [()]
        bits = int(np.float64(f"{float(std):.9g}").view(np.uint64))
        path = (use, self.round, self.stage, bits)
        new = lambda: np.random.default_rng(secrets.randbits(256))
        rngs = [new() if self.secret else numpy_rng(self.seed, *path, *row) for row in rows]
        draws = [rng.standard_normal(like.shape[-1]) for rng in rngs]
        return float(std) * torch.from_numpy(np.reshape(draws, like.shape)).to(like)


def check_rows(name: str, reply: dict[str, Tensor], K: int, *numbers: str) -> None:
    """Raise the ``ValueError`` of ``name`` unless all of a reply has a row for each of K clients.

    Of ``delta`` (K, d), and of ``numbers`` (K,): one vector for all would broadcast without a word.

    Example:
        >>> check_rows("my_method", {"delta": torch.zeros(5)}, 2)
        Traceback (most recent call last):
        ...
        ValueError: my_method: reply['delta'] must be (K, d), a row for each of K = 2, got (5,), ...
    """
    look = lambda v: tuple(v.shape) if isinstance(v, Tensor) else (type(v).__name__,)
    got = {k: look(v) for k, v in reply.items()}
    want = dict.fromkeys(got, "(K, ...)") | dict.fromkeys(numbers, "(K,)") | {"delta": "(K, d)"}
    for k, like in want.items():
        has = got.get(k, ("missing",))
        ok = has[:1] == (K,) and (like == "(K, ...)" or len(has) == len(like.split()))
        check(name, f"reply[{k!r}]", has, ok, f"{like}, a row for each of K = {K}", like)


class Wire(NamedTuple):
    """What one client's update costs on the wire: ``numbers`` of ``width`` bits, and ``side`` bits.

    Attributes:
        d: Length of the update.
        numbers: How many of them are sent.
        width: Bits of each.
        side: Bits beside them: a scale, or which numbers they are.

    Example:
        >>> Wire(650, numbers=6, width=32, side=6 * 10).bits  # six of 650, with their places
        252
    """

    d: int
    numbers: int
    width: int
    side: int = 0

    @property
    def bits(self) -> int:
        """All of it: numbers * width + side."""
        return self.numbers * self.width + self.side

    @classmethod
    def of(cls, v: Tensor) -> "Wire":
        """A vector (..., d) in full: each of d numbers in all its bits."""
        return cls(v.shape[-1], v.shape[-1], 8 * v.element_size())


class Rowwise(NamedTuple):
    """A stage that runs on each client.

    Attributes:
        name: Shown in errors and pictures.
        apply: (rows (R, d), n (R,), memory {name: (R, ...)}, ctx) -> (rows (R, d), memory).
        memory: theta (d,) -> what one client keeps between rounds.
        private: Whether it exists to hide the update from the server.
        bound: The norm that no row exceeds behind it; None if it sets none.
        plain: Whether the weighted mean behind it is that of the rows before it, up to rounding.
        std: Of the Gaussian noise that it adds to every number.
        wire: What a row costs behind it, of what it cost before; None: every number in full.
        unbiased: Whether the mean of its draws is the row it was given: E[C(x)] = x.
        draws: Whether it draws, other than Gaussian noise.
    """

    name: str
    apply: Callable[[Tensor, Tensor, Memory, Context], tuple[Tensor, Memory]]
    memory: Callable[[Tensor], Memory] = lambda theta: {}
    private: bool = False
    bound: float | None = None
    plain: bool = False
    std: float = 0.0
    wire: Callable[[Wire], Wire] | None = None
    unbiased: bool = False
    draws: bool = False


class Reduce(NamedTuple):
    """The stage that makes one vector of K rows.

    Attributes:
        name: Shown in errors and pictures.
        apply: (rows (K, d), p (K,)) -> (d,).
        share: How far one row of norm 1 more or less moves the result, whoever else takes part;
            None where there is no such share: in a mean it depends on the others.
        plain: Whether it is the weighted mean Σ_k p_k delta_k, up to rounding, as what a method
            sends beside ``delta`` is combined.
        fold: As apply, of some of the rows: one that may stand for them, with all their weight, so
            that not all rows need be there at once. None where the rule must see each of them.
    """

    name: str
    apply: Callable[[Tensor, Tensor], Tensor]
    share: float | None = None
    plain: bool = False
    fold: Callable[[Tensor, Tensor], Tensor] | None = None


class After(NamedTuple):
    """A stage on the server behind the Reduce.

    Attributes:
        name: Shown in errors and pictures.
        apply: ((d,), ctx) -> (d,).
        std: Of the Gaussian noise that it adds to every number.
        plain: Whether it leaves the mean what it is, up to rounding.
    """

    name: str
    apply: Callable[[Tensor, Context], Tensor]
    std: float = 0.0
    plain: bool = False


class Pipeline(NamedTuple):
    """What :func:`chain` makes: stages on the client, one Reduce, stages on the server."""

    on_client: tuple[Rowwise, ...]
    reduce: Reduce
    on_server: tuple[After, ...]

    @property
    def bent(self) -> list[str]:
        """Names of the stages that make something else than the weighted mean of the updates."""
        stages: list[Rowwise | Reduce | After] = [*self.on_client, self.reduce, *self.on_server]
        return [s.name for s in stages if not s.plain]

    def memory(self, theta: Tensor) -> tuple[Memory, ...]:
        """What a client keeps before its first round, for each of its stages."""
        return tuple(s.memory(theta) for s in self.on_client)

    def encode(
        self, delta: Tensor, n: Tensor, memory: Sequence[Memory], ctx: Context
    ) -> tuple[Tensor, tuple[Memory, ...]]:
        """Run the client's stages on rows (R, d). -> rows (R, d), what each stage keeps."""
        kept, memory = [], memory or [{}] * len(self.on_client)
        for stage, own, i in zip(self.on_client, memory, _noises(self.on_client), strict=True):
            delta, own = stage.apply(delta, n, own, ctx._replace(stage=i))
            kept.append(own)
        return delta, tuple(kept)

    def wire(self, delta: Tensor) -> Wire:
        """What one row of ``delta`` (R, d) costs behind the client's stages."""
        out = in_full = Wire.of(delta)
        for stage in self.on_client:
            out = stage.wire(out) if stage.wire else in_full
        return out

    def fits(self, reply: dict[str, Tensor]) -> None:
        """ValueError if the method sends more than the ``delta`` that a stage hides or guards."""
        hidden = [s.name for s in self.on_client if s.private]
        bare = sorted(set(reply) - {"delta"} - NOT_SENT)
        if bare and hidden:
            raise ValueError(
                f"{' and '.join(hidden)} protects only 'delta', but this method also sends {bare} "
                f"in the clear; use a method that sends delta alone, e.g. fedavg"
            )
        if bare and not self.reduce.plain:
            raise ValueError(
                f"{self.reduce.name} combines only 'delta', but this method also sends {bare}, of "
                f"which its server takes the weighted mean: one client may move that anywhere; use "
                f"a method that sends delta alone, e.g. fedavg, or the rule mean()"
            )

    def combine(self, reply: dict[str, Tensor], p: Tensor, ctx: Context) -> Tensor:
        """Run the server's stages: sum_k p_k delta_k or another rule (d,); 0 where nobody answered.

        ValueError as in ``fits``.
        """
        self.fits(reply)
        out = self.reduce.apply(reply["delta"], p) if len(p) else reply["delta"].sum(0)
        for s, i in zip(self.on_server, _noises(self.on_server), strict=True):
            out = s.apply(out, ctx._replace(stage=i))
        return out


def _noises(stages: Sequence[Rowwise | After]) -> list[int]:
    """How many stages before each one draw: two of them never draw the same."""
    draws = [s.std > 0 or (isinstance(s, Rowwise) and s.draws) for s in stages]
    return [sum(draws[:i]) for i in range(len(stages))]


def chain(*stages: Rowwise | Reduce | After) -> Pipeline:
    """Join stages: any number of Rowwise, exactly one Reduce, any number of After, in that order.

    ValueError if the order is another; the message shows it, and a right one.

    Example:
        >>> from fedlearn.aggregate import mean
        >>> ctx = Context(seed=0, round=0, called=np.arange(2), answered=np.arange(2))
        >>> pipeline = chain(clip(1.0), mean())
        >>> delta, n = torch.tensor([[3.0, 4.0], [0.0, 0.5]]), torch.ones(2)
        >>> rows, kept = pipeline.encode(delta, n, (), ctx)
        >>> rows
        tensor([[0.6000, 0.8000],
                [0.0000, 0.5000]])
        >>> pipeline.combine({"delta": rows}, torch.tensor([0.5, 0.5]), ctx)
        tensor([0.3000, 0.6500])
    """
    rank = {Rowwise: 0, Reduce: 1, After: 2}
    kinds = [rank.get(type(s), -1) for s in stages]
    if kinds.count(1) != 1 or kinds != sorted(kinds) or -1 in kinds:
        got = " -> ".join(f"{getattr(s, 'name', s)} ({type(s).__name__})" for s in stages)
        raise ValueError(
            "chain: needs Rowwise stages, then exactly one Reduce, then After stages.\n"
            f"  got:  {got or 'nothing'}\n"
            "  e.g.  chain(clip(1.0), mean(), noise(0.1))"
        )
    i = kinds.index(1)
    return Pipeline(stages[:i], stages[i], stages[i + 1 :])  # type: ignore[arg-type]


def clip(max_norm: float) -> Rowwise:
    """Shorten every update to at most ``max_norm``: delta_k * min(1, S / ||delta_k||).

    An update that has no finite norm becomes 0, so that no row behind the stage exceeds S, in
    whatever type: a product that is rounded beyond S is made shorter by the next few digits.
    ValueError if ``max_norm`` = S is not > 0 and finite.

    Example:
        >>> clip(1.0).apply(torch.tensor([[3.0, 4.0], [0.0, 0.5]]), None, {}, None)[0]
        tensor([[0.6000, 0.8000],
                [0.0000, 0.5000]])

    Reference: McMahan, Ramage, Talwar, Zhang, 2018, "Learning differentially private recurrent
    language models", Algorithm 1 (FlatClip).
    """
    positive("clip", "max_norm", max_norm, 1.0)

    def apply(delta: Tensor, n: Tensor, memory: Memory, ctx: Context) -> tuple[Tensor, Memory]:
        factor = reach(delta, max_norm)
        short, sane = (wide(delta) * factor).to(delta), factor > 0
        return short if sane.all() else torch.where(sane, short, 0.0), memory

    return Rowwise(f"clip({max_norm})", apply, bound=max_norm, wire=lambda before: before)


def reach(rows: Tensor, max_norm: float) -> Tensor:
    """(K, 1) factors min(1, S / ||row||), rounded so that no row times its own exceeds S.

    0 for a row that has no finite norm.

    Example:
        >>> reach(torch.tensor([[3.0, 4.0], [0.0, 0.5], [torch.nan, 0.0]]), 1.0)[:, 0]
        tensor([0.2000, 1.0000, 0.0000])
    """
    many, S, least = wide(rows), float(max_norm), torch.finfo(rows.dtype).eps / 8
    norm = many.norm(dim=-1, keepdim=True)
    factor = torch.where(norm.isfinite(), (S / norm).clamp(max=1), 0.0)
    exact = lambda: torch.linalg.vector_norm(
        (many * factor).to(rows).double(), dim=-1, keepdim=True
    )
    less = max(least, torch.finfo(many.dtype).eps, 2e-13)  # 1e-13: what the order of a sum changes
    while (over := (now := exact()) > S * (1 - 1e-13 * (factor < 1).double())).any():
        cut = factor * (S / now).to(factor) * (1 - less)
        factor, less = torch.where(over, cut, factor), 2 * less
    return factor


def noise(std: float) -> After:
    """Add Gaussian noise of standard deviation ``std`` to every number of the combined update.

    The draw is a function of seed, round, earlier noises and ``std``, so whoever knows the seed can
    subtract it, unless ``Recipe(secret=True)``. ValueError if ``std`` is negative or not finite.

    Example:
        >>> ctx = Context(seed=0, round=3, called=np.arange(2), answered=np.arange(2))
        >>> noise(0.5).apply(torch.zeros(10_000), ctx).std()
        tensor(0.4947)
    """
    not_negative("noise", "std", std)

    def apply(delta: Tensor, ctx: Context) -> Tensor:
        return delta + ctx.noise(Use.NOISE, std, delta)

    return After(f"noise({std})", apply, std)
