"""Compression: stages that send fewer bits, a memory for what they leave out, and the way down.

A stage is Rowwise, x -> C(x), for :func:`~fedlearn.transform.chain`, before the rule:

    stage                         bits of a row (d numbers)     E[C(x)] = x
    quantise(b)                   b d + 32                      yes
    quantise(b, stochastic=False) b d + 32                      no
    random_k(k)                   32 k (the seed says which)    yes
    top_k(k)                      (32 + ceil(log2 d)) k         no
    sign()                        d + 32                        no
    error_feedback(stage)         those of the stage            in the long run

The rows stay float vectors, what the receiver decodes; what they would take is what the books count
(``Round.received``, a history's bytes, the clock). Over Flower the vectors travel as they are.

What may stand beside a stage. Before ``clip``, not behind it: a compressed row may be longer than
the row, so differential privacy takes a clip as the last stage only. Before ``secure_mean``, whose
masks are dense: each number is then sent in full again. Any rule of :mod:`fedlearn.aggregate`
behind it, and methods that send ``delta`` alone; what else a method sends is counted in full.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .algorithms import Algorithm, Message, Reply
from .algorithms.base import State
from .checks import check, is_whole, number, positive, whole
from .rng import Use, numpy_rng
from .task import wide
from .transform import Context, Memory, Reduce, Rowwise, Wire


def quantise(bits: int, *, stochastic: bool = True, scale: str | float = "max") -> Rowwise:
    """Round every number to one of 2^bits - 1 steps from -r to r, 0 among them.

    With s = 2^(bits-1) - 1 and z = s x / r: C(x) = r/s floor(z + u), u uniform in [0, 1), so that
    E[C(x)] = x; or r/s times the whole number nearest to z. r is sent beside, 32 bits.

    Args:
        bits: From 2 (-r, 0, r) to 16; one bit is :func:`sign`.
        stochastic: False: the nearest step, with half the largest error and a bias.
        scale: r: ``"max"``, the row's largest |number|; ``"norm"``, its length; or one number for
            all rows and rounds, beyond which is cut, with nothing sent beside.

    Raises:
        ValueError: If one of them is something else.

    Example:
        >>> nearest = quantise(3, stochastic=False, scale=3.0)
        >>> nearest.apply(torch.tensor([[0.4, -1.7, 9.0]]), None, {}, None)[0]
        tensor([[ 0., -2.,  3.]])

    Reference:
        Alistarh, Grubic, Li, Tomioka, Vojnovic, 2017, "QSGD: communication-efficient SGD via
        gradient quantization and encoding", §3.1 (``"norm"``).

    Differs from the paper: no Elias code, every number takes the same bits; the sign is one of the
    steps.
    """
    whole("quantise", "bits", bits, 2, 16, 4)
    named = scale in ("max", "norm")
    check("quantise", "scale", scale, named or 0 < number(scale) < math.inf,
          "'max', 'norm' or a number > 0", "max")  # fmt: skip
    steps = 2 ** (bits - 1) - 1

    def apply(delta: Tensor, n: Tensor, memory: Memory, ctx: Context) -> tuple[Tensor, Memory]:
        _real("quantise", delta)
        x = wide(delta)
        if scale == "norm":
            r = x.norm(dim=1, keepdim=True)
        else:
            r = x.abs().amax(1, keepdim=True) if named else torch.full_like(x[:, :1], number(scale))
        z = x / torch.where(r == 0, 1, r) * steps
        z = (z + _uniform(ctx, x)).floor() if stochastic else z.round()
        return (z.clamp(-steps, steps) * (r / steps)).to(delta), memory

    said = "" if stochastic else ", stochastic=False"
    said += "" if scale == "max" else f", scale={scale!r}"
    wire = lambda w: w._replace(width=bits, side=w.side + 32 * named)
    fair = stochastic and named
    return Rowwise(f"quantise({bits}{said})", apply, wire=wire, unbiased=fair, draws=stochastic)


def random_k(k: float, *, scaled: bool = True, shared: bool = False) -> Rowwise:
    """Send k of the d numbers, drawn anew each round, the others count as 0.

    C(x)_i = d/k x_i where i is drawn, so that E[C(x)] = x and E‖C(x) - x‖² = (d/k - 1) ‖x‖². Which
    were drawn follows from seed, round and client, so the server knows without being told.

    Args:
        k: How many, a whole number >= 1; or their share, below 1. ValueError otherwise.
        scaled: False: without the factor d/k, so that ``error_feedback`` can pay the rest later.
        shared: All clients of a round send the same ones.

    Example:
        >>> S = np.arange(1)
        >>> random_k(2).apply(torch.ones(1, 8), None, {}, Context(0, 0, S, S))[0]
        tensor([[0., 0., 0., 0., 4., 4., 0., 0.]])

    Reference:
        Konečný, McMahan, Yu, Richtárik, Suresh, Bacon, 2016, "Federated learning: strategies for
        improving communication efficiency", §3 (subsampling).
    """
    _check_k("random_k", k)

    def apply(delta: Tensor, n: Tensor, memory: Memory, ctx: Context) -> tuple[Tensor, Memory]:
        _real("random_k", delta)
        d = delta.shape[1]
        m = _count(k, d)
        kept = _uniform(ctx, delta[:1] if shared else delta, shared).argsort(1)[:, :m]
        out = _only(delta, kept.expand(len(delta), -1))
        return (out * (d / m) if scaled else out), memory

    said = f"random_k({k:g}{'' if scaled else ', scaled=False'}{', shared=True' * shared})"
    wire = lambda w: w._replace(numbers=min(w.numbers, _count(k, w.d)))
    return Rowwise(said, apply, wire=wire, unbiased=scaled, draws=True)


def top_k(k: float) -> Rowwise:
    """Send the k numbers of largest size and where they stand, the others count as 0.

    ‖C(x) - x‖² <= (1 - k/d) ‖x‖², and what is small is left out round after round: without
    :func:`error_feedback` it never arrives.

    Args:
        k: How many, a whole number >= 1; or their share, below 1. ValueError otherwise.

    Example:
        >>> top_k(2).apply(torch.tensor([[3.0, -1.0, -4.0, 2.0]]), None, {}, None)[0]
        tensor([[ 3.,  0., -4.,  0.]])

    Reference:
        Stich, Cordonnier, Jaggi, 2018, "Sparsified SGD with memory", Definition 2.2.
    """
    _check_k("top_k", k)

    def apply(delta: Tensor, n: Tensor, memory: Memory, ctx: Context) -> tuple[Tensor, Memory]:
        _real("top_k", delta)
        kept = delta.abs().topk(_count(k, delta.shape[1]), dim=1).indices
        return _only(delta, kept), memory

    def wire(w: Wire) -> Wire:
        m = min(w.numbers, _count(k, w.d))
        return w._replace(numbers=m, side=w.side + m * math.ceil(math.log2(max(w.d, 2))))

    return Rowwise(f"top_k({k:g})", apply, wire=wire)


def sign(step: float | None = None) -> Rowwise:
    """Send the signs alone, one bit a number: C(x) = r sign(x), with sign(0) = 1.

    Args:
        step: r > 0, the same in all rows and rounds, with nothing sent beside; None: the row's mean
            of |x|, for which ‖C(x) - x‖ is least, 32 bits. ValueError otherwise.

    Example:
        >>> sign().apply(torch.tensor([[3.0, -1.0]]), None, {}, None)[0]
        tensor([[ 2., -2.]])

    Reference:
        Karimireddy, Rebjock, Stich, Jaggi, 2019, "Error feedback fixes SignSGD and other gradient
        compression schemes", §3 (scaled sign).
    """
    if step is not None:
        positive("sign", "step", step, 0.01)

    def apply(delta: Tensor, n: Tensor, memory: Memory, ctx: Context) -> tuple[Tensor, Memory]:
        _real("sign", delta)
        x = wide(delta)
        r = x.abs().mean(1, keepdim=True) if step is None else torch.full_like(x[:, :1], step)
        plus = torch.where(x < 0, -r, r)
        return torch.where(x.isnan(), x, plus).to(delta), memory

    wire = lambda w: w._replace(width=1, side=w.side + 32 * (step is None))
    return Rowwise(f"sign({'' if step is None else step})", apply, wire=wire)


def error_feedback(stage: Rowwise) -> Rowwise:
    """A memory for what a stage leaves out: it is added to the next update.

    C(x + e) is sent, e <- x + e - C(x + e) stays on the client. So all that was sent and what is
    still owed are together all updates, Σ_t C_t + e = Σ_t x_t: nothing is lost, it comes later. A
    client that isn't called keeps its e.

    Args:
        stage: That compresses, without a memory and not unbiased: a row that is d/k times too long
            would be owed back, and the debt grows. ValueError otherwise.

    Example:
        >>> owing = error_feedback(top_k(1))
        >>> e = {"error": torch.zeros(1, 2)}
        >>> sent, e = owing.apply(torch.tensor([[3.0, 2.0]]), None, e, None)
        >>> sent, e["error"]
        (tensor([[3., 0.]]), tensor([[0., 2.]]))
        >>> owing.apply(torch.tensor([[3.0, 2.0]]), None, e, None)[0]
        tensor([[0., 4.]])

    Reference:
        Seide, Fu, Droppo, Li, Yu, 2014, "1-bit stochastic gradient descent"; Karimireddy et al.,
        2019, Algorithm 2.

    Differs from the papers: what is compressed is the update of a whole round, not one step.
    """
    _check_stage("error_feedback", stage)

    def apply(delta: Tensor, n: Tensor, memory: Memory, ctx: Context) -> tuple[Tensor, Memory]:
        owed = delta + memory["error"]
        sent, _ = stage.apply(owed, n, {}, ctx)
        return sent, {"error": owed - sent}

    own = lambda theta: {"error": torch.zeros_like(theta)}
    name = f"error_feedback({stage.name})"
    return Rowwise(name, apply, own, wire=stage.wire, draws=stage.draws)


def majority_vote(step: float) -> Reduce:
    """Each number moves by ``step`` the way most clients voted: step sign(Σ_k sign(delta_k)).

    One client, one vote, whatever its size and its weight; a tie moves nothing. Behind ``sign()``
    an update takes d bits up, and the step takes d bits down. Breakdown point: 1/2 of the votes.

    Args:
        step: > 0 and finite, else ValueError.

    Example:
        >>> majority_vote(0.1).apply(torch.tensor([[3.0], [-0.1], [-0.2]]), torch.ones(3) / 3)
        tensor([-0.1000])

    Reference:
        Bernstein, Zhao, Azizzadenesheli, Anandkumar, 2018, "signSGD with majority vote is
        communication efficient and fault tolerant", Algorithm 1.
    """
    positive("majority_vote", "step", step, 0.01)
    rule = lambda delta, p: step * wide(delta).sign().sum(0).sign()
    return Reduce(f"majority_vote({step})", lambda delta, p: rule(delta, p).to(delta))


def downlink(algorithm: Algorithm, stage: Rowwise) -> Algorithm:
    """The same method with a compressed broadcast: theta moves by C(step + e), the server keeps e.

    The server's step is computed as ever, theta_new - theta; what of it isn't sent is owed, as in
    :func:`error_feedback`. A client knows theta from the rounds before and adds what it hears: that
    is right only if every client hears every round, so a run that calls fewer is refused. The
    first round sends theta whole.

    Args:
        algorithm: Any method whose theta is one vector.
        stage: That compresses, without a draw. ValueError otherwise.

    Example:
        >>> from fedlearn import algorithms, model
        >>> task = model.softmax_regression(64, 10)
        >>> method = downlink(algorithms.fedavg(task, lr=0.5), top_k(0.05))
        >>> sorted(method.init(task.theta0))
        ['owed', 'theta']

    Reference:
        Tang, Yu, Lian, Zhang, Liu, 2019, "DoubleSqueeze: parallel stochastic gradient descent with
        double-pass error-compensated compression", Algorithm 1.
    """
    _check_stage("downlink", stage)
    rule, so = "one without a draw: the server's step knows no round", "top_k(0.05)"
    check("downlink", "stage", stage.name, not stage.draws, rule, so)
    rule = "a method that is not compressed already, and owes nothing of its own"
    owes = algorithm.down is not None
    check("downlink", "algorithm", "downlink(...)", not owes, rule, "fedavg(task, lr=0.5)")
    nobody = Context(0, 0, np.zeros(1, int), np.zeros(1, int))

    def init(theta: Tensor) -> State:
        state = algorithm.init(theta)
        flat = state["theta"].dim() == 1 and "owed" not in state
        check("downlink", "theta", tuple(state["theta"].shape), flat, "one vector (d,)", "(650,)")
        return {**state, "owed": torch.zeros_like(state["theta"])}

    def own(state: State) -> State:
        return {k: v for k, v in state.items() if k != "owed"}

    def server(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        new, theta = algorithm.server(own(state), delta, reply, p), state["theta"]
        step = new["theta"] - theta + state["owed"]
        sent = stage.apply(step[None], step.new_ones(1), {}, nobody)[0][0]
        return {**new, "theta": theta + sent, "owed": step - sent}

    def idle(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        return {**algorithm.idle(own(state), delta, reply, p), "owed": state["owed"]}

    def message(state: State) -> Message:
        return algorithm.message(own(state))

    down, folds = stage.wire or (lambda w: w), server if algorithm.folding else None
    return algorithm._replace(
        init=init, server=server, idle=idle, message=message, folds=folds, down=down
    )


def _uniform(ctx: Context, like: Tensor, shared: bool = False) -> Tensor:
    """Numbers in [0, 1), (R, d), each client's row its own: a function of seed, round and client.

    ``shared``: one row (1, d) for all of a round.
    """
    path = (Use.COMPRESS, ctx.round, ctx.stage)
    turns = () if ctx.turns is None or shared else (ctx.turns,)
    rows = [()] if shared else [*zip(ctx.answered, ctx.earlier(), *turns)]
    draws = [numpy_rng(ctx.seed, *path, *row).random(like.shape[1]) for row in rows]
    out = np.reshape(draws, (len(rows), like.shape[1]))
    return torch.from_numpy(out).to(like.device, wide(like[:0]).dtype)


def _check_k(name: str, k: float) -> None:
    ok = is_whole(k) or 0 < number(k) < 1
    check(name, "k", k, ok, "a whole number >= 1, or a share above 0 and below 1", 0.01)


def _count(k: float, d: int) -> int:
    """How many of d: k of them, or that share, at least one and at most all."""
    return min(d, max(1, round(k if k >= 1 else k * d)))


def _only(delta: Tensor, kept: Tensor) -> Tensor:
    """The numbers at ``kept`` (R, k), 0 elsewhere; a row with a NaN stays one to be seen."""
    out = torch.zeros_like(delta).scatter(1, kept, delta.gather(1, kept))
    sane = delta.isfinite().all(1, keepdim=True)
    return out if bool(sane.all()) else torch.where(sane, out, torch.nan)


def _check_stage(name: str, stage: Rowwise) -> None:
    """That its error is shorter than the row, so that what is owed doesn't grow."""
    got = getattr(stage, "name", stage)
    ok = isinstance(stage, Rowwise) and not stage.private and not stage.memory(torch.zeros(1))
    check(name, "stage", got, ok, "one on the client, without a memory or a secret", "top_k(0.01)")
    rule = "one that shrinks what is left; an unbiased one may leave more than it was given"
    so = "top_k(0.01), quantise(2, stochastic=False) or random_k(65, scaled=False)"
    check(name, "stage", got, not stage.unbiased, rule, so)


def _real(name: str, delta: Tensor) -> None:
    rule, so = "real numbers, not masked ones", "chain(top_k(0.01), *secure_mean(1.0, 1437))"
    check(name, "delta", delta.dtype, delta.is_floating_point(), rule, so)
