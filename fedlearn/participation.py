"""Who takes part in a round: who is called, who answers, and how much of the work is done.

A :data:`Call` is a function (N, seed, t) -> :class:`~fedlearn.transform.Context`. Give it to
``federate`` as ``cohort``; wrap one in another: ``stragglers(dropouts(uniform(10), 0.3), 0.5)``.
Every draw is a function of (seed, use, round, client). ValueError for a number out of range: at
once, or from the call where it needs N.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .checks import check, probability, whole
from .rng import Use, hashed, numpy_rng
from .transform import Context

Call = Callable[[int, int, int], Context]  # N clients, seed, round t -> who, and how much


def asked(call: Call, of: tuple[int, int, int]) -> Context:
    """Whom a call calls of (N, seed, t), if it is of that round and names clients of 0..N-1.

    ValueError otherwise: a call that said round 0 for ever would repeat the noise every round.

    Example:
        >>> asked(lambda n, seed, t: uniform(3)(n, seed, 0), (10, 0, 7))
        Traceback (most recent call last):
        ...
        ValueError: cohort: seed and round must be those of the call, (0, 7), got (0, 0), e.g. ...
    """
    (n, seed, t), ctx, example = of, call(*of), "Context(seed, t, S, S)"
    known, kind = isinstance(ctx, Context), type(ctx).__name__
    check("cohort", "what it returns", kind, known, "a Context", example)
    got, rule = (ctx.seed, ctx.round), f"those of the call, {(seed, t)}"
    check("cohort", "seed and round", got, got == (seed, t), rule, example)
    for name, S in {"called": ctx.called, "answered": ctx.answered}.items():
        ok = isinstance(S, np.ndarray) and S.ndim == 1 and S.dtype.kind == "i"
        ok = ok and bool(((S >= 0) & (S < n)).all())
        check("cohort", name, S, ok, f"an array of client numbers 0..{n - 1}", "np.array([0, 1])")
    some = ctx.answered is ctx.called or bool(np.isin(ctx.answered, ctx.called).all())
    check("cohort", "answered", ctx.answered, some, "among those called", "ctx.keep(there)")
    w, K = ctx.work, len(ctx.answered)
    ok = w is None or (np.shape(w) == (K,) and bool(((w >= 0) & (w <= 1)).all()))
    check("cohort", "work", w, ok, f"None, or {K} numbers from 0 to 1", "np.ones(K)")
    return ctx


def sample(n: int, k: int, seed: int, t: int) -> np.ndarray:
    """C_t (k,): k of n clients, uniformly, without replacement, ascending: from (seed, t) alone.

    Example:
        >>> sample(100, 5, seed=0, t=0)
        array([ 1, 54, 89, 90, 92])
    """
    whole("sample", "n", n, 0)
    whole("sample", "k", k, 0, n)
    if k == n:
        return np.arange(n)
    return np.sort(numpy_rng(seed, Use.SAMPLE, t).choice(n, size=k, replace=False))


def uniform(k: int | None = None) -> Call:
    """K clients, 1 to N, each set of K as likely as any other; None for everybody.

    Example:
        >>> uniform(3)(10, 0, 7).called
        array([1, 5, 9])
    """
    if k is not None:
        whole("uniform", "k", k)

    def call(n: int, seed: int, t: int) -> Context:
        check("uniform", "k", k, k is None or k <= n, f"at most N = {n}", max(1, n // 2))
        S = sample(n, k or n, seed, t)
        return Context(seed, t, S, S)

    return call


def weighted(k: int, weight: Sequence[float], *, replace: bool = False) -> Call:
    """K clients, drawn with probability in proportion to ``weight``: to n_k, say.

    Combine the replies with equal weights then, ``Recipe(..., equal=True)``: a client that is drawn
    more often needs no second advantage. With replacement Σ (1/K) delta_k is an unbiased estimate
    of Σ p_k delta_k; a client drawn twice stands in the cohort twice.

    Args:
        k: K, from 1 to N; with replacement any.
        weight: (N,) numbers >= 0, at least k of them > 0.
        replace: Whether a client may be drawn twice.

    Example:
        >>> weighted(2, [0, 5, 0, 5])(4, 0, 0).called
        array([1, 3])

    Reference: Li, Huang et al., 2020, "On the convergence of FedAvg on non-IID data", Scheme I,
    with replacement: their reading of Li, Sahu et al., 2020, FedProx, Algorithm 2.
    """
    whole("weighted", "k", k)
    w = np.array(weight)
    good = w.dtype.kind in "iufb" and w.ndim == 1 and np.isfinite(w).all() and (w >= 0).all()
    good = good and w.sum() > 0 and (replace or k <= np.count_nonzero(w))
    rule = "N finite numbers >= 0, at least k of them > 0"
    check("weighted", "weight", weight, bool(good), rule, [1, 2, 3])

    def call(n: int, seed: int, t: int) -> Context:
        _each("weighted", "weight", w, n)
        draw = numpy_rng(seed, Use.SAMPLE, t)
        S = np.sort(draw.choice(n, size=k, replace=replace, p=w / w.sum()))
        return Context(seed, t, S, S)

    return call


def poisson(q: float) -> Call:
    """Every client decides for itself, with probability 0 < q <= 1: the cohort may have any size.

    Privacy accounting by sampling needs this one. A round without a client leaves theta where it
    is, but for the noise that a private pipeline adds all the same.

    Example:
        >>> [len(poisson(0.3)(10, 0, t).called) for t in range(5)]
        [4, 3, 2, 4, 3]
    """
    probability("poisson", "q", q)

    def call(n: int, seed: int, t: int) -> Context:
        S = np.flatnonzero(_draws(n, seed, Use.SAMPLE, t) < q)
        return Context(seed, t, S, S)

    return call


def available(k: int, chance: Callable[[int], np.ndarray]) -> Call:
    """At most K of those that are there: client i is with probability chance(t)[i].

    Args:
        k: K, at most so many are called. A round in which nobody is there changes nothing.
        chance: Round t -> (N,) probabilities: phones that charge at night, say.

    Example:
        >>> shifts = available(2, lambda t: np.array([t % 2, t % 2, 1 - t % 2, 1 - t % 2]))
        >>> shifts(4, 0, 0).called, shifts(4, 0, 1).called
        (array([2, 3]), array([0, 1]))
    """
    whole("available", "k", k)

    def call(n: int, seed: int, t: int) -> Context:
        p = _chances("available", "chance", chance(t))
        there = np.flatnonzero(_happens("available", p, n, seed, Use.AVAILABLE, t))
        S = there[sample(len(there), min(k, len(there)), seed, t)]
        return Context(seed, t, S, S)

    return call


def dropouts(call: Call, rate: float | Sequence[float]) -> Call:
    """Some of the called never answer: client k drops out with probability rate[k].

    One rate for all is noise: fewer answers, the same mean. A rate that goes with the data is bias:
    the model is trained for those that stay.

    Args:
        call: Whom the server calls. The broadcast goes to all of them.
        rate: Probability of a dropout, one for all or (N,).

    Example:
        >>> ctx = dropouts(uniform(), [0, 1, 0, 1])(4, 0, 0)
        >>> ctx.called, ctx.answered
        (array([0, 1, 2, 3]), array([0, 2]))
    """
    r = _chances("dropouts", "rate", rate)

    def lossy(n: int, seed: int, t: int) -> Context:
        ctx = call(n, seed, t)
        lost = _happens("dropouts", r, n, seed, Use.DROPOUT, t)
        return ctx.keep(~lost[ctx.answered])

    return lossy


def stragglers(call: Call, share: float | Sequence[float], *, drop: bool = False) -> Call:
    """Some clients are slow and do part of their local steps: a fraction uniform in (0, 1).

    Args:
        call: Whom the server calls.
        share: Probability of being slow in a round, one for all or (N,).
        drop: Leave the slow ones out, as FedAvg does in FedProx's experiments. Otherwise ``work``
            is the fraction that each one does; at least one step is done.

    Example:
        >>> stragglers(uniform(), [0, 1, 0])(3, 0, 0).work.round(2)
        array([1.  , 0.66, 1.  ])
        >>> stragglers(uniform(), [0, 1, 0], drop=True)(3, 0, 0).answered
        array([0, 2])

    Reference: Li, Sahu et al., 2020, FedProx, §5.2 (there a whole number of epochs, uniform in
    1..E).
    """
    s = _chances("stragglers", "share", share)

    def slow(n: int, seed: int, t: int) -> Context:
        ctx = call(n, seed, t)
        late = _happens("stragglers", s, n, seed, Use.STRAGGLE, t)[ctx.answered]
        if drop:
            return ctx.keep(~late)
        done = np.where(late, _draws(n, seed, Use.STRAGGLE, t, 1)[ctx.answered], 1.0)
        return ctx._replace(work=done if ctx.work is None else ctx.work * done)

    return slow


def _draws(n: int, seed: int, *path: int) -> np.ndarray:
    """(N,) numbers in [0, 1), a client's whoever else takes part."""
    return hashed(np.arange(n), seed, *path) / 2.0**64


def _happens(name: str, p: np.ndarray, n: int, seed: int, use: Use, t: int) -> np.ndarray:
    """(N,) whether it happens to each client in round t, with probability p."""
    if p.ndim:
        _each(name, "chance", p, n)
    return _draws(n, seed, use, t) < p


def _chances(name: str, argument: str, values: Any) -> np.ndarray:
    """One probability, or one a client, as floats; no text."""
    p = np.array(values)
    kind = p.dtype.kind in ("iufb" if p.ndim else "iuf")  # a mask is 0 and 1
    ok = kind and p.ndim < 2 and bool(((p >= 0) & (p <= 1)).all())
    check(name, argument, values, ok, "one probability, or one a client", 0.3)
    return p.astype(float)


def _each(name: str, argument: str, values: np.ndarray, n: int) -> None:
    """Refuse what isn't (N,)."""
    ok = values.shape == (n,)
    check(name, argument, values.tolist(), ok, f"a number for each of the {n} clients", [0.1] * 3)
