"""A run that a panel shows: settings in, a frame a round out. No widgets here.

The one file of the panels that calls the federated loop.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import algorithms, data, model, partition, privacy, skew
from ...aggregate import mean
from ...algorithms import Algorithm
from ...checks import check
from ...diagnostics import client_metrics
from ...history import Diverged, Round
from ...loop import Run, federate
from ...participation import poisson
from ...recipe import Recipe
from ...rng import Use, numpy_rng
from ...simulated import Simulated, centralised
from ...transform import chain
from ..parts.lines import boundary_scene
from ..words import words
from .settings import METHODS, OWN, PARTITIONS, Settings, load, make_task

WEIGHS = ("scaffold", "feddyn")  # methods that need the population's size
_AS = {"feddyn": {"mu": "alpha"}}  # what a method calls a setting


@dataclass
class Setup:
    """The run's objects, made from the settings as the code of :func:`code` makes them.

    ``x`` and ``y`` are the training examples as their clients see and name them.
    """

    data: data.Dataset
    x: Tensor
    y: Tensor
    parts: partition.Parts
    task: model.Task
    recipe: Recipe
    test: Callable[[Tensor], dict[str, float]]


def setup(s: Settings) -> Setup:
    """Data, split, model and recipe of the settings."""
    d = load(s.dataset)
    split = getattr(partition, s.partition)
    draw = numpy_rng(s.seed, Use.PARTITION)
    by = _groups(s, d) if s.partition == "by_attribute" else d.y.numpy()
    parts = split(by, s.clients, draw, **split_arguments(s))
    task = make_task(s.dataset, s.model, s.seed)
    method = make_method(s, task, len(d.y))
    batch, epochs = (s.batch, s.epochs) if s.applies("epochs") else (None, 1)
    pipeline = chain(mean()) if isinstance(s.pipeline, str) else s.pipeline
    if s.private:
        pipeline = privacy.private_mean(s.clip, s.noise, expected=s.rate * s.clients)
    recipe = Recipe(method, task.theta0, pipeline, batch=batch, epochs=epochs, seed=s.seed)
    x, y = _as_seen(s, d, parts)
    return Setup(d, x, y, parts, task, recipe, model.evaluator(task, d.x_test, d.y_test))


def _groups(s: Settings, d: data.Dataset) -> np.ndarray:
    known = d.group is not None
    check("panel", "dataset", words(s.dataset), known, "one with natural clients", "'digits'")
    return d.group.numpy()  # type: ignore[union-attr]


def _as_seen(s: Settings, d: data.Dataset, parts: partition.Parts) -> tuple[Tensor, Tensor]:
    """The examples, changed client by client."""
    N, a = s.clients, s.amount
    unit = s.feature not in ("noise", "brightness") or bool(d.x.min() >= 0 and d.x.max() <= 1)
    check("panel", "dataset", words(s.dataset), unit, f"from 0 to 1 for {s.feature}", "'digits'")
    if s.feature == "rotation":
        return skew.rotate(d.x, parts, np.linspace(-90 * a, 90 * a, N).tolist(), d.shape), d.y
    if s.feature == "noise":
        return skew.add_noise(d.x, parts, np.linspace(0, a, N).tolist(), seed=s.seed), d.y
    if s.feature == "brightness":
        return skew.brighten(d.x, parts, np.linspace(1, 1 - a, N).tolist()), d.y
    if s.feature == "label_swap":
        return d.x, skew.swap_labels(d.y, parts, [(0, 1) if k < a * N else None for k in range(N)])
    return d.x, d.y


def make_method(s: Settings, task: model.Task, n_total: int) -> Algorithm:
    """The settings' method for a task, over a population of ``n_total`` examples."""
    if isinstance(s.method, str):
        more = {"n_total": n_total} if s.method in WEIGHS else {}
        name = "fedavg" if s.private else s.method
        made: Any = getattr(algorithms, name)(task, lr=s.lr, **own_settings(s), **more)
    else:
        made = s.method(task, s.lr)
    if not isinstance(made, Algorithm):
        raise ValueError(
            f"panel: method must make an Algorithm of (task, lr), got {type(made).__name__} "
            f"from {words(s.method)}, e.g. lambda task, lr: algorithms.fedavg(task, lr)"
        )
    return made


def own_settings(s: Settings) -> dict[str, float]:
    """What the method is given beside lr, under its own names for it."""
    called, names = _AS.get(str(s.method), {}), METHODS[str(s.method)]
    return {called.get(k, k): getattr(s, k) for k in names if not s.private}  # the pipeline's


def split_arguments(s: Settings) -> dict[str, float]:
    """What the split is given beside the labels, N and the generator."""
    called = {"shards_each": "per_client"}
    kind = PARTITIONS[s.partition]
    out = {called.get(kind, kind): getattr(s, kind)} if kind else {}
    return out | ({"size_alpha": s.size_alpha} if s.applies("size_alpha") else {})


def start(s: Settings, made: Setup) -> Run:
    """The run itself, no round of it done."""
    clients = Simulated(made.recipe, made.x, made.y, made.parts)
    how: Any = {"rounds": s.rounds, "evaluate": made.test}
    if s.private:
        return privacy.dp_federate(clients, delta=1 / s.clients**2, budget=s.budget, **how)
    return federate(clients, cohort=s.cohort, **how)


class References:
    """The same runs with all data in one place, private ones without clip and noise.

    They are advanced a round at a time, and kept by settings.
    """

    def __init__(self, keep: int = 32):
        self._keep = keep
        self._known: dict[tuple[Any, ...], tuple[Iterator[Any], dict[str, list[float]]]] = {}

    def upto(self, s: Settings, made: Setup, t: int) -> dict[str, list[float]]:
        """Columns of at least t rounds (t + 1 values), or as many as the run has."""
        plain = "fedsgd" if s.method == "fedsgd" else "fedavg"  # no method is needed in one place
        apart = {"cohort", "method", "pipeline", "extras", *OWN}
        if s.private:
            apart -= {"method", "rate"}
        elif s.feature == "none":  # who holds what is no matter where all is in one place
            apart |= {"partition", "alpha", "labels_each", "shards_each", "size_alpha", "amount"}
        key = (plain, *(v for k, v in vars(s).items() if k not in apart))
        if key not in self._known:
            if len(self._known) >= self._keep:
                del self._known[next(iter(self._known))]
            method = getattr(algorithms, plain)(made.task, lr=s.lr)
            run = _reference(
                s, made, replace(made.recipe, algorithm=method, pipeline=chain(mean()))
            )
            self._known[key] = run, {k: [v] for k, v in made.test(made.task.theta0).items()}
        run, columns = self._known[key]
        while len(columns["loss"]) <= t:
            try:
                metrics = next(run).metrics
            except StopIteration:
                break
            except Diverged:  # it ends here: the same round again would, too
                self._known[key] = iter(()), columns
                break
            for k, v in metrics.items():
                columns[k].append(v)
        return columns


def _reference(s: Settings, made: Setup, recipe: Recipe) -> Iterator[Round]:
    if s.private:  # the same clients, called by the same coins
        clients = Simulated(recipe, made.x, made.y, made.parts)
        return federate(clients, rounds=s.rounds, cohort=poisson(s.rate), evaluate=made.test)
    pooled = centralised(recipe, made.x, made.y, s.clients)
    return federate(pooled, rounds=s.rounds, evaluate=made.test)


def frames(
    s: Settings, references: References | None = None, *, worst: bool = False
) -> Iterator[dict[str, Any]]:
    """One frame a round; frame 0 is the start, with who holds what.

    Args:
        s: The settings.
        references: Where centralised runs are kept; None leaves the reference out.
        worst: Whether to look for the worst of all clients after each round.

    Yields:
        ``loss``, ``accuracy`` (on the test set), ``bytes`` (all clients, both ways, so far),
        ``drift`` (mean over the cohort of the norm of delta_k), ``clients`` (a function: accuracy
        of the shared model on each client's own examples, as it sees and names them),
        ``reference``; on the toy plane ``boundary`` (a function, see :func:`boundary_scene`); in
        frame 0 also ``counts``, ``labels`` and ``note``. A private run: ``epsilon`` spent so far,
        ``budget``, and the norms of the mean update, ``updates``, and of its ``noise``. If asked
        for, ``worst``, the smallest of ``clients``; and the settings' extras.

    Example:
        >>> *_, last = frames(Settings(rounds=10, alpha=100.0, lr=0.5))
        >>> last["accuracy"] > 0.9, last["bytes"]
        (True, 1040000)
    """
    made = setup(s)
    theta, N, sent, look = made.task.theta0, s.clients, 0, _look(made, worst)
    C, y = made.data.classes, made.y.numpy()
    first: dict[str, Any] = {
        **made.test(theta),
        "bytes": 0,
        "drift": float("nan"),
        "counts": partition.counts(made.parts, y if C else np.zeros(len(y), int), C or 1),
        "labels": [str(c) for c in range(C)] or ["examples"],
        "note": made.parts.note,
        **look(theta, theta[None][:0]),
        **_private(s, theta.numel()),
    }
    if references:  # what is known already is shown whole; nothing is computed before this frame
        first["reference"] = dict(references.upto(s, made, 0))
    yield first
    for r in start(s, made):
        sent += (r.sent + r.received) * len(r.answered)
        local = torch.full((N, theta.numel()), torch.nan)  # NaN: not in the cohort
        local[torch.from_numpy(r.answered)] = theta + r.deltas
        theta, drift = r.theta, float(r.deltas.norm(dim=1).mean())
        frame = {**r.metrics, "bytes": sent, "drift": drift, **look(theta, local)}
        frame |= _private(s, theta.numel(), r) | {name: f(r) for name, f in s.extras}
        if references:
            frame["reference"] = {k: list(v) for k, v in references.upto(s, made, r.t + 1).items()}
        yield frame


def _private(s: Settings, d: int, r: Round | None = None) -> dict[str, Any]:
    """What a private run's frames hold beside those of the others."""
    if not s.private:
        return {}
    expected, nan = s.rate * s.clients, float("nan")
    signal = float(r.deltas.sum(0).norm()) / expected if r and len(r.deltas) else nan
    own = {"updates": signal, "noise": s.noise * s.clip * d**0.5 / expected, "budget": s.budget}
    return own if r else {**own, "epsilon": nan, "reference_name": "no clip, no noise"}


def final(s: Settings, stale: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Metrics after the last round; {} for a run that fails, None for one given up half way."""
    last: dict[str, float] = {}
    try:
        made = setup(s)
        for r in start(s, replace(made, test=lambda theta: {})):
            if stale():
                return None
            last, theta = r.metrics | {"t": r.t}, r.theta
        if last:  # once: a budget may end the run at any round
            last |= made.test(theta) | {name: f(r) for name, f in s.extras}
            last = {k: float(v) for k, v in last.items() if np.ndim(v) == 0}
            last["worst"] = _look(made, True)(theta, theta[None][:0]).get("worst", 0.0)
    except (ValueError, Diverged):
        return {}
    return last if all(map(np.isfinite, last.values())) else {}


def _look(made: Setup, worst: bool = False) -> Callable[[Tensor, Tensor], dict[str, Any]]:
    """What is costly, as functions, called only for a frame that is shown.

    Of the shared model (d,) and the clients' (N, d): how right the shared one is on every client's
    own examples; on a plane, where each draws the line.
    """
    sizes = np.array([len(p) for p in made.parts])
    rows, owner = np.concatenate(made.parts), np.repeat(np.arange(len(sizes)), sizes)

    def look(theta: Tensor, local: Tensor) -> dict[str, Any]:
        each = lambda: client_metrics(made.task, theta, made.x, made.y, made.parts)["accuracy"]
        out: dict[str, Any] = {"clients": each} if made.data.classes else {}
        if worst and out:
            out["worst"] = float(each().min())
        if made.x.shape[1:] == (2,):
            x, y = made.x[rows], made.y[rows]
            out["boundary"] = lambda: boundary_scene(made.task, theta, local, x, y, owner)
        return out

    return look
