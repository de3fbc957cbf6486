"""The federated run behind the panel: settings in, frames out, and the Python that does the same.

No widgets here: :func:`frames` is what a panel's engine iterates, and what a test can iterate too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import data, model, partition, skew
from ..federate import Diverged, Recipe, Round, Simulated, centralised, federate
from ..rng import Use, numpy_rng
from .methods import METHODS, Method, make_method, method_code, uses
from .scene import boundary_scene

DATASETS = ("digits", "breast_cancer", "wine", "toy", "mnist", "fashion_mnist", "cifar10")
PARTITIONS = {
    "iid": None,
    "dirichlet_label": "alpha",
    "dirichlet_client": "alpha",
    "shards": "shards_each",
    "labels_per_client": "labels_each",
    "quantity": "alpha",
    "label_and_quantity": "alpha",
}
FEATURES = ("none", "rotation", "noise", "brightness", "label_swap")
MODELS = ("softmax", "mlp")
HIDDEN = 32  # units of the hidden layer of "mlp"


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run. Two equal settings give the same curve.

    ``feature`` changes what each client sees, ``amount`` (0 to 1) how much, evenly from the first
    client to the last; the test set stays as it is:

    - ``rotation``: pictures turned by -90 to 90 degrees times the amount;
    - ``noise``: Gaussian noise of standard deviation 0 to the amount;
    - ``brightness``: times 1 down to 1 - amount;
    - ``label_swap``: this share of the clients calls class 0 class 1, and 1 0 (concept shift).

    Example:
        >>> Settings(alpha=0.1).applies("alpha"), Settings(partition="iid").applies("alpha")
        (True, False)
    """

    dataset: str = "digits"
    model: str = "softmax"
    clients: int = 20
    partition: str = "dirichlet_label"
    alpha: float = 0.1
    labels_each: int = 2
    shards_each: int = 2
    size_alpha: float = 1.0
    feature: str = "none"
    amount: float = 0.5
    method: Method = "fedavg"
    mu: float = 0.1
    server_lr: float = 0.1
    beta: float = 0.9
    epochs: int = 5
    lr: float = 1.0
    batch: int | None = 32
    cohort: int | None = None
    rounds: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        self._one_of("dataset", DATASETS)
        self._one_of("model", MODELS)
        self._one_of("partition", tuple(PARTITIONS))
        self._one_of("feature", FEATURES)
        if not callable(self.method):
            self._one_of("method", tuple(METHODS))
        for name in ("clients", "labels_each", "shards_each", "epochs", "rounds"):
            self._whole(name, 1)
        self._whole("seed", 0)
        if self.batch is not None:
            self._whole("batch", 1, ", or None for all of a client's examples")
        if self.cohort is not None:
            self._whole("cohort", 1, ", or None for everybody")
            if self.cohort > self.clients:
                raise ValueError(
                    f"panel: cohort must be at most clients={self.clients}, got {self.cohort}, "
                    f"e.g. cohort={max(1, self.clients // 2)}"
                )
        for name in ("alpha", "size_alpha", "lr", "server_lr"):
            v = getattr(self, name)
            if isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 < v < float("inf"):
                raise ValueError(f"panel: {name} must be > 0 and finite, got {v!r}, e.g. 0.5")
        for name, top in (("amount", 1.0), ("mu", float("inf")), ("beta", 0.999)):
            v = getattr(self, name)
            if isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 <= v <= top:
                rule = f"from 0 to {top:g}" if top < 2 else ">= 0"
                raise ValueError(f"panel: {name} must be {rule}, got {v!r}, e.g. {name}=0.5")

    def _one_of(self, name: str, known: tuple[str, ...]) -> None:
        if getattr(self, name) not in known:
            raise ValueError(
                f"panel: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}, "
                f"e.g. {name}={known[0]!r}"
            )

    def _whole(self, name: str, low: int, more: str = "") -> None:
        v = getattr(self, name)
        if isinstance(v, bool) or not isinstance(v, (int, np.integer)) or v < low:
            raise ValueError(
                f"panel: {name} must be an integer >= {low}{more}, got {v!r}, e.g. {name}=5"
            )

    def applies(self, name: str) -> bool:
        """Whether a setting makes a difference to this run.

        Example:
            >>> Settings(method="fedsgd").applies("epochs")
            False
        """
        if name in ("alpha", "labels_each", "shards_each"):
            return PARTITIONS[self.partition] == name
        if name == "size_alpha":
            return self.partition == "label_and_quantity"
        if name == "amount":
            return self.feature != "none"
        if name in ("mu", "server_lr", "beta"):
            return uses(self.method, name)
        if name in ("epochs", "batch"):
            return self.method != "fedsgd"  # one gradient over everything
        return True


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


@lru_cache(maxsize=8)
def _load(name: str) -> data.Dataset:
    return data.load(name)


def setup(s: Settings) -> Setup:
    """Data, split, model and recipe of the settings.

    Example:
        >>> made = setup(Settings(clients=10))
        >>> len(made.parts), made.recipe.epochs
        (10, 5)
    """
    d = _load(s.dataset)
    split = getattr(partition, s.partition)
    draw = numpy_rng(s.seed, Use.PARTITION)
    parts = split(d.y.numpy(), s.clients, draw, **_split_arguments(s))
    n_in = d.x[0].numel()
    if s.model == "mlp":
        task = model.mlp(n_in, HIDDEN, d.classes, seed=s.seed)
    else:
        task = model.softmax_regression(n_in, d.classes)
    method = make_method(s, task, len(d.y))
    batch, epochs = (s.batch, s.epochs) if s.applies("epochs") else (None, 1)
    recipe = Recipe(method, task.theta0, batch=batch, epochs=epochs, seed=s.seed)
    x, y = _as_seen(s, d, parts)
    return Setup(d, x, y, parts, task, recipe, model.evaluator(task, d.x_test, d.y_test))


def _as_seen(s: Settings, d: data.Dataset, parts: partition.Parts) -> tuple[Tensor, Tensor]:
    """The examples, changed client by client."""
    N, a = s.clients, s.amount
    if s.feature in ("noise", "brightness") and (d.x.min() < 0 or d.x.max() > 1):
        raise ValueError(
            f"panel: feature={s.feature!r} needs features from 0 to 1, {s.dataset} has others, "
            "e.g. dataset='digits'"
        )
    if s.feature == "rotation":
        return skew.rotate(d.x, parts, np.linspace(-90 * a, 90 * a, N).tolist(), d.shape), d.y
    if s.feature == "noise":
        return skew.add_noise(d.x, parts, np.linspace(0, a, N).tolist(), seed=s.seed), d.y
    if s.feature == "brightness":
        return skew.brighten(d.x, parts, np.linspace(1, 1 - a, N).tolist()), d.y
    if s.feature == "label_swap":
        return d.x, skew.swap_labels(d.y, parts, [(0, 1) if k < a * N else None for k in range(N)])
    return d.x, d.y


def _split_arguments(s: Settings) -> dict[str, Any]:
    known: dict[str | None, dict[str, Any]] = {
        "alpha": {"alpha": s.alpha},
        "shards_each": {"per_client": s.shards_each},
        "labels_each": {"labels_each": s.labels_each},
        None: {},
    }
    sizes = {"size_alpha": s.size_alpha} if s.applies("size_alpha") else {}
    return known[PARTITIONS[s.partition]] | sizes


class References:
    """The same runs with all data in one place: advanced a round at a time, kept by settings.

    Example:
        >>> kept = References()
        >>> s = Settings(rounds=3)
        >>> len(kept.upto(s, setup(s), 2)["loss"])
        3
    """

    def __init__(self, keep: int = 32):
        self._keep = keep
        self._known: dict[Settings, tuple[Iterator[Any], dict[str, list[float]]]] = {}

    def upto(self, s: Settings, made: Setup, t: int) -> dict[str, list[float]]:
        """Columns of at least t rounds (t + 1 values), or as many as the run has."""
        plain = "fedsgd" if s.method == "fedsgd" else "fedavg"  # no method is needed in one place
        key = replace(s, cohort=None, method=plain, mu=0.0, server_lr=1.0, beta=0.0)
        if s.feature == "none":  # then who holds what is no matter where all is in one place
            key = replace(key, partition="iid", alpha=1.0, labels_each=1, shards_each=1)
            key = replace(key, size_alpha=1.0, amount=0.0)
        if key not in self._known:
            if len(self._known) >= self._keep:
                del self._known[next(iter(self._known))]
            method = make_method(key, made.task, len(made.y))
            recipe = replace(made.recipe, algorithm=method)
            recipe, everything = centralised(recipe, made.x, made.y, s.clients)
            run = federate(recipe, everything, rounds=s.rounds, evaluate=made.test)
            start = made.test(made.task.theta0)
            self._known[key] = run, {k: [v] for k, v in start.items()}
        run, columns = self._known[key]
        while len(columns["loss"]) <= t:
            try:
                metrics = next(run).metrics
            except (StopIteration, Diverged):
                break
            for k, v in metrics.items():
                columns[k].append(v)
        return columns


# What else a picture wants: made once a run, then asked each round (None: the start).
Extra = Callable[[Setup], Callable[[Round | None], dict[str, Any]]]


def frames(
    s: Settings, references: References | None = None, extras: Sequence[Extra] = ()
) -> Iterator[dict[str, Any]]:
    """One frame a round; frame 0 is the start, with who holds what.

    Args:
        s: The settings.
        references: Where centralised runs are kept; None leaves the reference out.
        extras: What else the frames hold, e.g. :func:`client_curves`.

    Yields:
        ``loss``, ``accuracy`` (on the test set), ``bytes`` (all clients, both ways, so far),
        ``drift`` (mean over the cohort of the norm of delta_k), ``clients`` (a function: accuracy
        of the shared model on each client's own examples, as it sees and names them),
        ``reference``; in frame 0 also
        ``counts``, ``labels`` and ``note``.

    Example:
        >>> *_, last = frames(Settings(rounds=10, alpha=100.0, lr=0.5))
        >>> last["accuracy"] > 0.9, last["bytes"]
        (True, 1040000)
    """
    made = setup(s)
    d, more = made.data, [extra(made) for extra in extras]
    counts = partition.counts(made.parts, made.y.numpy(), d.classes)
    each = _each_client(made)
    first = {
        **made.test(made.task.theta0),
        "bytes": 0,
        "drift": float("nan"),
        "counts": counts,
        "labels": [str(c) for c in range(d.classes)],
        "note": made.parts.note,
        "clients": each(made.task.theta0),
    }
    if references:  # what is known already is shown whole; nothing is computed before this frame
        first["reference"] = dict(references.upto(s, made, 0))
    for each_round in more:
        first |= each_round(None)
    yield first
    clients, sent = Simulated(made.recipe, made.x, made.y, made.parts), 0
    run = federate(made.recipe, clients, rounds=s.rounds, cohort=s.cohort, evaluate=made.test)
    for r in run:
        sent += (r.sent + r.received) * len(r.cohort)
        frame: dict[str, Any] = {
            **r.metrics,
            "bytes": sent,
            "drift": float(r.deltas.norm(dim=1).mean()),
        }
        frame["clients"] = each(r.theta)
        if references:
            frame["reference"] = {k: list(v) for k, v in references.upto(s, made, r.t + 1).items()}
        for each_round in more:
            frame |= each_round(r)
        yield frame


def client_curves(made: Setup) -> Callable[[Round | None], dict[str, Any]]:
    """Accuracy of the shared model on each client's own examples, all rounds: (T + 1, N).

    Example:
        >>> *_, last = frames(Settings(rounds=3, clients=5), extras=[client_curves])
        >>> last["client_curves"]().shape
        (4, 5)
    """
    each, kept = _each_client(made), []

    def now(r: Round | None) -> dict[str, Any]:
        kept.append(each(r.theta if r else made.task.theta0)())
        n = len(kept)
        return {"client_curves": lambda: np.array(kept[:n])}

    return now


def plane(made: Setup) -> Callable[[Round | None], dict[str, Any]]:
    """The plane of a toy problem, for :class:`~fedlearn.panels.Boundary`.

    Example:
        >>> *_, last = frames(Settings(dataset="toy", model="mlp", rounds=2), extras=[plane])
        >>> sorted(last["boundary"]())
        ['lines', 'names', 'owner', 'points', 'regions', 'right']
    """
    rows = np.concatenate(made.parts)
    owner = np.repeat(np.arange(len(made.parts)), [len(p) for p in made.parts])
    x, y, before = made.x[rows], made.y[rows], made.task.theta0

    def now(r: Round | None) -> dict[str, Any]:
        nonlocal before
        theta, locals_ = made.task.theta0, made.task.theta0[None][:0]
        if r is not None:
            theta, locals_ = r.theta, torch.full((len(made.parts), theta.numel()), torch.nan)
            locals_[torch.from_numpy(r.cohort)] = before + r.deltas
        before = theta
        return {"boundary": lambda: boundary_scene(made.task, theta, locals_, x, y, owner)}

    return now


def _each_client(made: Setup) -> Callable[[Tensor], Callable[[], np.ndarray]]:
    """theta -> (a function that gives) the accuracy of theta on every client's own examples."""
    sizes = np.array([len(p) for p in made.parts])
    rows, owner = np.concatenate(made.parts), np.repeat(np.arange(len(sizes)), sizes)

    def later(theta: Tensor) -> Callable[[], np.ndarray]:
        @torch.no_grad()
        def now() -> np.ndarray:
            at = [made.task.predict(theta, x).argmax(-1) for x in made.x.split(10_000)]
            right = (torch.cat(at) == made.y).numpy()[rows]
            return np.bincount(owner, weights=right, minlength=len(sizes)) / sizes

        return now

    return later


_CODE = """\
{imports}from fedlearn import algorithms, data, model, partition{more}
from fedlearn.federate import Recipe, Simulated, collect, federate
from fedlearn.rng import Use, numpy_rng

d = data.load({dataset!r})
rng = numpy_rng({seed}, Use.PARTITION)
parts = partition.{partition}(d.y.numpy(), {clients}, rng{split})
{seen}task = model.{task}
method = {made}
recipe = Recipe(method, task.theta0, batch={batch}, epochs={epochs}, seed={seed})
clients = Simulated(recipe, {x}, {y}, parts)
test = model.evaluator(task, d.x_test, d.y_test)
history = collect(federate(recipe, clients, rounds={rounds}, cohort={cohort}, evaluate=test))
print(history["loss"][-1], history["accuracy"][-1])
"""


# Feature or concept skew: the line before ``task``, with x or y in place of d.x or d.y.
_SEEN = {
    "none": "",
    "rotation": "x = skew.rotate(d.x, parts, np.linspace({low!r}, {high!r}, {clients}), d.shape)\n",
    "noise": "x = skew.add_noise(d.x, parts, np.linspace(0, {amount!r}, {clients}), seed={seed})\n",
    "brightness": "x = skew.brighten(d.x, parts, np.linspace(1, {dark!r}, {clients}))\n",
    "label_swap": (
        "swaps = [(0, 1) if k < {amount!r} * {clients} else None for k in range({clients})]\n"
        "y = skew.swap_labels(d.y, parts, swaps)\n"
    ),
}


def code(s: Settings) -> str:
    """The Python that makes exactly this run.

    Example:
        >>> print(code(Settings(alpha=0.1)).splitlines()[6])
        parts = partition.dirichlet_label(d.y.numpy(), 20, rng, alpha=0.1)
    """
    d = _load(s.dataset)
    wide = [d.x[0].numel(), d.classes]
    layers = ", ".join(map(str, [wide[0], HIDDEN, wide[1]]))
    values = {f.name: getattr(s, f.name) for f in fields(s)}
    if not s.applies("epochs"):
        values.update(batch=None, epochs=1)
    split = "".join(f", {k}={v!r}" for k, v in _split_arguments(s).items())
    linear = f"softmax_regression({wide[0]}, {wide[1]})"
    task = linear if s.model == "softmax" else f"mlp({layers}, seed={s.seed})"
    a, changes = s.amount, s.feature != "none"
    numbers = s.feature in ("rotation", "noise", "brightness")
    seen = _SEEN[s.feature].format(**values, low=-90 * a, high=90 * a, dark=1 - a)
    return _CODE.format(
        **values, split=split, task=task, seen=seen, made=method_code(s),
        imports="import numpy as np\n\n" if numbers else "", more=", skew" if changes else "",
        x="x" if numbers else "d.x", y="y" if s.feature == "label_swap" else "d.y",
    )  # fmt: skip
