"""Do the figures of the papers come out? McMahan 2017, Li 2020 (FedProx), Karimireddy 2020.

    FEDLEARN_DATA=folder python benchmarks/papers.py            # every experiment, hours
    FEDLEARN_DATA=folder python benchmarks/papers.py 2nn fedprox
    FEDLEARN_DATA=folder python benchmarks/papers.py --fast     # three rounds each: does it run?
    python benchmarks/papers.py --report                        # only fills the tables of papers.md

Every finished run is kept (``--cache``, by default in the user's cache folder), so that a stopped
benchmark goes on where it was. The tables in papers.md are made of all the runs there are, its
words by hand.

A run is a row of numbers, one an evaluated round. *Rounds to a target* is read off its monotone
curve, the best accuracy so far, where the line between two evaluations crosses the target (McMahan
et al., §3). The learning rate is the best of a grid for every cell, as there; once a rate has
reached the target, the others stop at its rounds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor, nn
from tqdm import tqdm

from fedlearn import (
    Diverged,
    Recipe,
    Simulated,
    algorithms,
    data,
    federate,
    model,
    participation,
    partition,
)
from fedlearn.partition.files import write_whole
from fedlearn.rng import Use, numpy_rng

BAND = 1.35  # ours may take this many times the paper's rounds


# -- finished runs --------------------------------------------------------------------------------


class Store:
    """Results by run, in a JSON-lines file: rewritten whole."""

    def __init__(self, path: Path):
        self.path, self.runs = path, {}
        if path.exists():
            lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            self.runs = {line["run"]: line["result"] for line in lines}

    def get(self, run: object) -> dict[str, list[float]] | None:
        return self.runs.get(repr(run))

    def put(self, run: object, result: dict[str, list[float]]) -> None:
        self.runs[repr(run)] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"run": k, "result": v}) for k, v in self.runs.items()]
        write_whole(self.path, ("\n".join(lines) + "\n").encode())


# -- one run on MNIST -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One training of one method at one learning rate, until the target or the last round."""

    model: str
    split: str
    cohort: int
    epochs: int
    batch: int
    target: float
    rounds: int
    lr: float = 0.0
    method: str = "fedavg"
    pixels: str = "0..1"
    every: int = 1
    seed: int = 0
    steady: int = 1  # rounds whose mean accuracy has to reach the target


def glorot(*dims: int) -> Tensor:
    """TensorFlow's default: W ~ U(±√(6 / (inputs + outputs))), b = 0."""
    return drawn(dims, lambda rng, i, o: rng.uniform(-1, 1, (o, i)) * math.sqrt(6 / (i + o)), 0.0)


def tutorial(*dims: int) -> Tensor:
    """TensorFlow's MNIST tutorial of 2016: W ~ N(0, 0.1²) within two sigmas, b = 0.1."""

    def normal(rng: np.random.Generator, i: int, o: int) -> np.ndarray:
        z = rng.normal(size=(o, i))
        while (far := abs(z) > 2).any():
            z[far] = rng.normal(size=far.sum())
        return 0.1 * z

    return drawn(dims, normal, 0.1)


def drawn(dims: tuple[int, ...], weights: Callable[..., np.ndarray], bias: float) -> Tensor:
    parts = []
    for layer, (i, o) in enumerate(itertools.pairwise(dims)):
        W = weights(numpy_rng(0, Use.INIT, layer), i, o)
        parts += [W.ravel(), np.full(o, bias)]
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))


def convolutional() -> nn.Module:
    """McMahan's CNN: 1,663,370 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def task_of(name: str, seed: int) -> model.Task:
    kind, _, start = name.partition(" ")
    if kind == "cnn":
        return model.from_module(convolutional())
    if kind == "softmax":
        return model.softmax_regression(784, 10)
    dims = (784, 200, 200, 10)
    task = model.mlp(*dims, seed=seed)
    starts = {"glorot": glorot, "tutorial": tutorial}
    return task._replace(theta0=starts[start](*dims)) if start else task


@functools.cache
def mnist(pixels: str) -> data.Dataset:
    d = data.load("mnist")
    if pixels == "0..1":
        return d
    mean, scale = {"standardised": (d.x.mean(), d.x.std()), "-0.5..0.5": (0.5, 1.0)}[pixels]
    return d._replace(x=(d.x - mean) / scale, x_test=(d.x_test - mean) / scale)


def split_of(name: str, y: np.ndarray, seed: int) -> list[np.ndarray]:
    """100 clients x 600: "iid", "shards", or "similarity s": s % shuffled, the rest by label."""
    rng = numpy_rng(seed, Use.PARTITION)
    if name == "iid":
        return partition.iid(y, 100, rng)
    if name == "shards":
        return partition.shards(y, 100, rng)
    order = rng.permutation(len(y))
    mixed, rest = np.split(order, [int(name.split()[1]) * len(y) // 100])
    by_label = rest[np.argsort(y[rest], kind="stable")]
    pieces = zip(np.array_split(mixed, 100), np.array_split(by_label, 100), strict=True)
    return [np.concatenate(two) for two in pieces]


def method_of(run: Run, task: model.Task, n_total: int) -> algorithms.Algorithm:
    if run.method == "scaffold":
        return algorithms.scaffold(task, run.lr, n_total)
    if run.method == "fedprox":
        return algorithms.fedprox(task, run.lr, mu=1.0)
    return algorithms.fedavg(task, run.lr)


def train(run: Run, limit: int) -> dict[str, list[float]]:
    """Test accuracy of every evaluated round, up to the target or ``limit`` rounds."""
    d, task = mnist(run.pixels), task_of(run.model, run.seed)
    parts = split_of(run.split, d.y.numpy(), run.seed)
    recipe = Recipe(
        method_of(run, task, len(d.y)),
        task.theta0,
        batch=run.batch,
        epochs=run.epochs,
        seed=run.seed,
    )
    clients, accuracy, seconds = Simulated(recipe, d.x, d.y, parts), [], time.perf_counter()
    test = model.evaluator(task, d.x_test, d.y_test)
    rounds = federate(clients, rounds=limit, cohort=run.cohort, evaluate=test, every=run.every)
    label = f"{run.model} {run.split} {run.method} K={run.cohort} E={run.epochs} lr={run.lr:g}"
    try:
        for r in tqdm(rounds, total=limit, desc=label, unit="round", leave=False):
            if "accuracy" in r.metrics:
                accuracy.append(r.metrics["accuracy"])
                if rounds_to(accuracy, run.target, steady=run.steady) < math.inf:
                    break
    except Diverged as e:
        return {"accuracy": accuracy, "diverged": [e.round]}
    return {"accuracy": accuracy, "seconds": [time.perf_counter() - seconds]}


def rounds_to(accuracy: list[float], target: float, every: int = 1, steady: int = 1) -> float:
    """Where the monotone curve crosses the target; inf if it doesn't. It starts at (0, 0).

    With ``steady`` > 1 the curve is the running mean of so many evaluations.
    """
    curve = np.convolve([0.0] * (steady - 1) + accuracy, np.full(steady, 1 / steady), "valid")
    best = np.maximum.accumulate([0.0, *curve])
    if best[-1] < target:
        return math.inf
    i = int(np.argmax(best >= target))
    return float(every * (i - 1 + (target - best[i - 1]) / (best[i] - best[i - 1])))


# -- a cell: the best learning rate of a grid -----------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A figure of a paper: a run without its learning rate, the grid, and what the paper has."""

    run: Run
    grid: tuple[float, ...]  # the likely best first: it shortens the others
    paper: float = math.nan

    def compute(self, store: Store, fast: int | None = None) -> None:
        best = math.inf
        for lr in self.grid[:1] if fast else self.grid:
            run = replace(self.run, lr=lr)
            if store.get(run) is None:
                most = run.every * math.ceil(min(run.rounds, best) / run.every)
                store.put(run, train(run, fast or most))
            best = min(best, self.rounds(store, lr))

    def rounds(self, store: Store, lr: float, steady: int | None = None) -> float:
        run = replace(self.run, lr=lr)
        result = store.get(run)
        if result is None:
            return math.nan
        return rounds_to(result["accuracy"], run.target, run.every, steady or run.steady)

    def best(self, store: Store, steady: int | None = None) -> tuple[float, float]:
        """(rounds, learning rate); NaN where nothing was run."""
        every_rate = {lr: self.rounds(store, lr, steady) for lr in self.grid}
        done = {lr: r for lr, r in every_rate.items() if not math.isnan(r)}
        lr = min(done, key=lambda lr: done[lr], default=math.nan)
        return done.get(lr, math.nan), lr


def whole(rounds: float, limit: float = math.inf) -> str:
    if math.isnan(rounds):
        return "not run"
    return f"> {limit:g}" if math.isinf(rounds) else f"{rounds:.0f}"


# -- 1. McMahan et al., 2017 ----------------------------------------------------------------------

TWO_NN = Run("2nn", "iid", cohort=10, epochs=1, batch=10, target=0.97, rounds=500)
SKEWED = replace(TWO_NN, split="shards", rounds=1000)
MCMAHAN = [
    Cell(TWO_NN, (0.2, 0.4, 0.1, 0.05), 87),
    Cell(replace(TWO_NN, cohort=20), (0.2, 0.4, 0.1), 77),
    Cell(SKEWED, (0.2, 0.1, 0.4), 664),
    Cell(replace(TWO_NN, cohort=50), (0.2, 0.4, 0.1), 75),
    Cell(replace(TWO_NN, cohort=100), (0.2, 0.4, 0.1), 70),
    Cell(replace(SKEWED, cohort=100, every=2), (0.2, 0.1), 380),
]
CNN = [Cell(Run("cnn", "iid", 10, 5, 10, target=0.99, rounds=40), (0.1, 0.2), 20)]
MORE_WORK = [Cell(replace(TWO_NN, epochs=e, batch=b), (0.2, 0.4)) for e, b in ((5, 10), (1, 50))]


def mcmahan_table(store: Store, cells: list[Cell]) -> Iterator[str]:
    yield "| model | clients | C | E | B | paper | ours | lr | ours / paper | in the band |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---|"
    order = {"iid": 0, "shards": 1}
    for cell in sorted(cells, key=lambda c: (order[c.run.split], c.run.cohort)):
        run, (ours, lr) = cell.run, cell.best(store)
        ratio = ours / cell.paper
        good = "" if math.isnan(ratio) else "yes" if ratio <= BAND else "**no**"
        yield (
            f"| {run.model.upper()} | {clients_of(run)} | {run.cohort / 100:g} | {run.epochs} "
            f"| {run.batch} | {cell.paper:g} | {whole(ours, run.rounds)} | {lr:g} | {ratio:.2f} "
            f"| {good} |".replace(" nan ", "  ")
        )


def clients_of(run: Run) -> str:
    return {"iid": "IID", "shards": "two shards"}[run.split]


def rates_table(store: Store, named: dict[str, Cell]) -> Iterator[str]:
    """Rounds at every learning rate; > n: stopped at n, where another rate was there already."""
    grid = sorted({lr for cell in named.values() for lr in cell.grid})
    yield "| | " + " | ".join(f"lr {lr:g}" for lr in grid) + " | best | paper |"
    yield "|---|" + "---:|" * (len(grid) + 2)
    for name, cell in named.items():
        shown = " | ".join(at_rate(store, cell, lr) for lr in grid)
        best = whole(cell.best(store)[0], cell.run.rounds)
        yield f"| {name} | {shown} | {best} | {cell.paper:g} |"


def at_rate(store: Store, cell: Cell, lr: float) -> str:
    result = store.get(replace(cell.run, lr=lr))
    if result is None:
        return ""
    after = cell.run.every * len(result["accuracy"])
    if "diverged" in result:
        return f"diverged at {after}"
    return whole(cell.rounds(store, lr), after)


def named(cells: list[Cell]) -> dict[str, Cell]:
    label = lambda r: f"{r.model.upper()}, {clients_of(r)}, C = {r.cohort / 100:g}"
    return {label(cell.run): cell for cell in cells}


# -- 5. why ours needs fewer rounds ---------------------------------------------------------------

GRID = (0.2, 0.1, 0.05, 0.4)
SHIFTED = replace(TWO_NN, pixels="-0.5..0.5")
ABLATION = {
    name: Cell(run, GRID, 87)
    for name, run in {
        "ours: uniform ±1/√inputs, pixels 0..1": TWO_NN,
        "another seed (split, start, cohorts)": replace(TWO_NN, seed=1),
        "Glorot uniform, b = 0": replace(TWO_NN, model="2nn glorot"),
        "TensorFlow's tutorial of 2016: N(0, 0.1²), b = 0.1": replace(TWO_NN, model="2nn tutorial"),
        "pixels standardised": replace(TWO_NN, pixels="standardised"),
        "pixels -0.5..0.5": SHIFTED,
        "pixels -0.5..0.5, Glorot, b = 0": replace(SHIFTED, model="2nn glorot"),
    }.items()
}
ELSEWHERE = [
    Cell(SHIFTED, GRID, 87),
    Cell(replace(SHIFTED, cohort=100), (0.2, 0.1), 70),
    Cell(replace(SHIFTED, split="shards", rounds=1000), (0.1, 0.2), 664),
]


def definitions(store: Store) -> Iterator[str]:
    """The same curve, read in other ways."""
    cell = ABLATION[next(iter(ABLATION))]
    _, lr = cell.best(store)
    result = store.get(replace(cell.run, lr=lr))
    if result is None or max(result["accuracy"]) < cell.run.target:
        return
    accuracy, target = result["accuracy"], cell.run.target
    crossing, first = rounds_to(accuracy, target), int(np.argmax(np.array(accuracy) >= target)) + 1
    yield (
        f"Read in another way, the best curve (lr {lr:g}) gives {crossing:.1f} by interpolating "
        f"the monotone curve and {first} for the first round at {100 * target:.0f} %."
    )


# -- 3. Karimireddy et al., 2020 ------------------------------------------------------------------

LOGISTIC = Run("softmax", "similarity 0", 20, 1, 120, target=0.88, rounds=300, steady=5)
METHODS = ("fedavg", "scaffold", "fedprox")
SIMILARITIES = ("similarity 0", "similarity 10")
RATES = {  # by epochs
    1: (1.0, 0.3, 3.0, 0.1),
    5: (0.3, 1.0, 0.1, 3.0, 0.03),
    10: (0.1, 0.3, 1.0, 0.03),
    20: (0.1, 0.03, 0.3, 0.01, 1.0),
}
TABLE_3 = {  # of the paper: rounds to 0.5 on EMNIST, at 1, 5, 10 and 20 epochs
    ("similarity 0", "fedavg"): ("258", "428", "711", "> 1000"),
    ("similarity 0", "scaffold"): ("77", "152", "286", "266"),
    ("similarity 0", "fedprox"): ("> 1000",) * 4,
    ("similarity 10", "fedavg"): ("74", "34", "25", "18"),
    ("similarity 10", "scaffold"): ("62", "20", "16", "11"),
    ("similarity 10", "fedprox"): ("979", "794", "894", "916"),
}


def logistic(split: str, epochs: int, method: str, target: float = 0.88) -> Cell:
    run = replace(LOGISTIC, split=split, epochs=epochs, method=method, target=target)
    return Cell(run, RATES[epochs])


KARIMIREDDY = [logistic(s, e, m) for e in RATES for s in SIMILARITIES for m in METHODS]
HARDER = [logistic("similarity 10", e, m, 0.91) for e in RATES for m in METHODS[:2]]


def scaffold_table(store: Store, steady: int, target: float = 0.88) -> Iterator[str]:
    """A cell is the paper's rounds; ours at the best learning rate."""
    yield "| similarity | E | FedAvg | SCAFFOLD | FedProx | FedAvg / SCAFFOLD: paper | ours |"
    yield "|---:|---:|---|---|---|---:|---:|"
    for s, (i, e) in itertools.product(SIMILARITIES, enumerate(RATES)):
        found = {m: logistic(s, e, m, target).best(store, steady) for m in METHODS}
        if all(math.isnan(r) for r, _ in found.values()):
            continue
        shown = [
            f"{TABLE_3[s, m][i]}; " + whole(r, LOGISTIC.rounds) + f" (lr {lr:g})" * (r < math.inf)
            for m, (r, lr) in found.items()
        ]
        theirs = [TABLE_3[s, m][i] for m in METHODS[:2]]
        gap = float(theirs[0].strip("> ")) / float(theirs[1])
        ours = found["fedavg"][0] / found["scaffold"][0]
        yield (
            f"| {s.split()[1]} % | {e} | {' | '.join(shown)} "
            f"| {'> ' * theirs[0].startswith('>')}{gap:.1f} | {ours:.1f} |"
        )


# -- 2. Li et al., 2020 ---------------------------------------------------------------------------


PLAIN_MEAN, WEIGHTED_MEAN = "weighted draw, plain mean", "uniform draw, weighted mean"


@dataclass(frozen=True)
class Made:
    """One training on FedProx's synthetic(alpha, alpha)."""

    alpha: float
    slow: float
    method: str  # "fedavg": stragglers left out; "mu 0", "mu 1": their part of the work is kept
    rounds: int = 200
    scheme: str = PLAIN_MEAN
    seed: int = 4  # its 30 clients hold 4,738 training examples; the authors' data set 4,305


LI = [
    Made(alpha, slow, method)
    for slow in (0.9, 0.0, 0.5)
    for alpha in (1.0, 0.0, 0.5)
    for method in ("fedavg", "mu 0", "mu 1")
    if slow or method != "mu 0"  # without stragglers FedAvg and mu = 0 are the same
]
LI += [replace(run, scheme=WEIGHTED_MEAN) for run in LI if run.alpha == 1 and run.slow == 0.9]


def train_made(run: Made, limit: int) -> dict[str, list[float]]:
    d, parts = data.synthetic(run.alpha, run.alpha, seed=run.seed)
    task = model.softmax_regression(60, 10)
    mu, paper = 1.0 if run.method == "mu 1" else 0.0, run.scheme == PLAIN_MEAN
    method = algorithms.fedprox(task, lr=0.01, mu=mu)
    recipe = Recipe(method, task.theta0, batch=10, epochs=20, seed=run.seed, equal=paper)
    call = participation.weighted(10, list(map(len, parts))) if paper else participation.uniform(10)
    call = participation.stragglers(call, run.slow, drop=run.method == "fedavg")
    test = model.evaluator(task, d.x_test, d.y_test)
    everywhere = model.evaluator(task, d.x, d.y)
    out: dict[str, list[float]] = {"loss": [], "accuracy": []}
    rounds = federate(Simulated(recipe, d.x, d.y, parts), rounds=limit, cohort=call)
    label = f"synthetic({run.alpha:g}, {run.alpha:g}) {run.slow:.0%} slow {run.method}"
    for r in tqdm(rounds, total=limit, desc=label, unit="round", leave=False):
        out["loss"].append(everywhere(r.theta)["loss"])
        out["accuracy"].append(test(r.theta)["accuracy"])
    return out


def last(store: Store, run: Made) -> tuple[float, float, float]:
    """Training loss and test accuracy, means of the last 10 rounds; the loss's sd over 50."""
    if not run.slow and run.method == "mu 0":
        run = replace(run, method="fedavg")
    result = store.get(run)
    if result is None:
        return math.nan, math.nan, math.nan
    loss, accuracy = result["loss"], result["accuracy"]
    return float(np.mean(loss[-10:])), float(np.std(loss[-50:])), float(np.mean(accuracy[-10:]))


def fedprox_table(store: Store, scheme: str) -> Iterator[str]:
    yield "| data | slow | FedAvg | FedProx, μ = 0 | FedProx, μ = 1 | by loss |"
    yield "|---|---:|---:|---:|---:|---|"
    names = {"fedavg": "FedAvg", "mu 0": "μ = 0", "mu 1": "μ = 1"}
    for alpha, slow in itertools.product((0.0, 0.5, 1.0), (0.0, 0.5, 0.9)):
        got = {m: last(store, Made(alpha, slow, m, scheme=scheme)) for m in names}
        if all(math.isnan(loss) for loss, _, _ in got.values()):
            continue
        shown = [
            "not run" if math.isnan(loss) else f"{loss:.3f} ± {spread:.3f}, {100 * accuracy:.1f} %"
            for loss, spread, accuracy in got.values()
        ]
        kept = [m for m in names if slow or m != "mu 0"]  # equal without stragglers
        ranked = sorted(kept, key=lambda m: got[m][0])
        yield (
            f"| synthetic({alpha:g}, {alpha:g}) | {100 * slow:.0f} % | {' | '.join(shown)} "
            f"| {' < '.join(names[m] for m in ranked)} |"
        )


# -- all of it ------------------------------------------------------------------------------------


def of_made(runs: list[Made]) -> Callable[[Store, int | None], None]:
    def compute(store: Store, fast: int | None) -> None:
        for run in runs:
            if store.get(run) is None:
                store.put(run, train_made(run, fast or run.rounds))

    return compute


def of_cells(cells: list[Cell]) -> Callable[[Store, int | None], None]:
    def compute(store: Store, fast: int | None) -> None:
        for cell in cells:
            cell.compute(store, fast)

    return compute


EXPERIMENTS: dict[str, Callable[[Store, int | None], None]] = {
    "2nn": of_cells([*MCMAHAN, *MORE_WORK]),
    "fedprox": of_made(LI),
    "scaffold": of_cells([*KARIMIREDDY, *HARDER]),
    "ablation": of_cells([*ABLATION.values(), *ELSEWHERE]),
    "cnn": of_cells(CNN),
}


TABLES: dict[str, Callable[[Store], Iterator[str]]] = {
    "2nn": lambda store: mcmahan_table(store, [*MCMAHAN, *MORE_WORK, *CNN]),
    "rates": lambda store: rates_table(store, named([*MCMAHAN, *CNN])),
    "ablation": lambda store: rates_table(store, ABLATION),
    "elsewhere": lambda store: mcmahan_table(store, ELSEWHERE),
    "definitions": definitions,
    "fedprox": lambda store: fedprox_table(store, PLAIN_MEAN),
    "uniform": lambda store: fedprox_table(store, WEIGHTED_MEAN),
    "scaffold": lambda store: scaffold_table(store, steady=5),
    "harder": lambda store: scaffold_table(store, steady=5, target=0.91),
    "first": lambda store: scaffold_table(store, steady=1),
}


def filled(text: str, store: Store) -> str:
    """The words are written by hand; what stands between a table's two marks is replaced."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        _, found, tail = rest.partition(end)
        if not found:
            raise ValueError(f"papers.md has no marks {begin.strip()} and {end}")
        text = "".join([head, begin, *(line + "\n" for line in table(store)), end, tail])
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join(EXPERIMENTS)
    parser.add_argument("experiment", nargs="*", help=f"of {known}; all of them if none is named")
    parser.add_argument("--cache", type=Path, default=user_cache_path("fedlearn") / "papers.jsonl")
    parser.add_argument("--report", action="store_true", help="run nothing, fill the tables")
    parser.add_argument("--fast", action="store_true", help="two rounds each, nothing is kept")
    args = parser.parse_args()
    if unknown := set(args.experiment) - set(EXPERIMENTS):
        parser.error(f"unknown experiment {', '.join(sorted(unknown))}; known are {known}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "fast.jsonl" if args.fast else args.cache)
        for name in [] if args.report else args.experiment or EXPERIMENTS:
            EXPERIMENTS[name](store, 2 if args.fast else None)
        for name, table in TABLES.items():
            print(f"\n{name}\n", *table(store), sep="\n")
    if not args.fast:
        target = Path(__file__).with_suffix(".md")
        write_whole(target, filled(target.read_text(encoding="utf-8"), store).encode())


if __name__ == "__main__":
    main()
