"""Random recipes, and the plain loop that each must equal, or be refused in words.

A case is a short Python program: data, model, method, pipeline and cohort are drawn from a seed and
written out, so that what fails can be pasted. :func:`plain` computes the same run once more, and
slowly: one client after the other, ``torch.optim.SGD`` and autograd on a module in float64, methods
from their papers' formulas, rules in NumPy. Of the package it takes the draws alone: who is called
(``Call``), which examples make a batch (``schedule``), the initial numbers of ``mlp`` and noise.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import re
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedlearn import participation as pt
from fedlearn.batches import schedule
from fedlearn.rng import Use, numpy_rng

PANDAS = importlib.util.find_spec("pandas") is not None
HEAD = """\
import numpy as np
import torch
from torch import nn

import fuzz
from fedlearn import Recipe, Simulated, algorithms, federate, optim
from fedlearn.aggregate import *
from fedlearn.model import evaluator, from_module, mlp, softmax_regression, squared_error
from fedlearn.participation import *
from fedlearn.privacy import local_noise, private_mean
from fedlearn.privacy.secure_aggregation import secure_mean
from fedlearn.transform import chain, clip, noise
"""


# -- modules that a user may bring -----------------------------------------------------------------


class Tied(nn.Module):
    """Two layers that are one: its gradient is the sum of both places'."""

    def __init__(self, f: int, c: int):
        super().__init__()
        self.a = nn.Linear(f, f, bias=False)
        self.b = nn.Linear(f, f, bias=False)
        self.b.weight = self.a.weight
        self.out = nn.Linear(f, c)

    def forward(self, x):
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Words(nn.Module):
    """x (B, L) whole numbers: the mean of their vectors, then a layer."""

    def __init__(self, words: int, c: int):
        super().__init__()
        self.table, self.out = nn.Embedding(words, 3), nn.Linear(3, c)

    def forward(self, x):
        return self.out(self.table(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self, f: int, c: int):
        super().__init__()
        self.gru, self.out = nn.GRU(f, 3, batch_first=True), nn.Linear(3, c)

    def forward(self, x):
        return self.out(self.gru(x)[0][:, -1])


class Pair(nn.Module):
    """Scores, and what a user wanted to look at."""

    def __init__(self, f: int, c: int):
        super().__init__()
        self.hidden, self.out = nn.Linear(f, 4), nn.Linear(4, c)

    def forward(self, x):
        h = torch.tanh(self.hidden(x))
        return self.out(h), h


class Temperature(nn.Module):
    """A parameter without a dimension."""

    def __init__(self, f: int, c: int):
        super().__init__()
        self.out, self.scale = nn.Linear(f, c), nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.scale * self.out(x)


class Counting(nn.Module):
    """Changes a buffer as it runs: state beside theta, which no formula of a method knows."""

    def __init__(self, f: int, c: int):
        super().__init__()
        self.out = nn.Linear(f, c)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 0.1
        return self.out(x) * (1 + self.seen)


def frozen(module: nn.Module) -> nn.Module:
    """Its first layer stays as it is."""
    for p in next(module.children()).parameters():
        p.requires_grad_(False)
    return module


# name: (its source, the kind of x that it takes); f features, c scores
MODULES = {
    "softmax": ("softmax_regression({f}, {c})", "flat"),
    "mlp": ("mlp({f}, 5, {c}, seed={s})", "flat"),
    "linear": ("nn.Linear({f}, {c})", "flat"),
    "no bias": ("nn.Linear({f}, {c}, bias=False)", "flat"),
    "tanh": ("nn.Sequential(nn.Linear({f}, 4), nn.Tanh(), nn.Linear(4, {c}))", "flat"),
    "frozen": (
        "fuzz.frozen(nn.Sequential(nn.Linear({f}, 4), nn.Tanh(), nn.Linear(4, {c})))", "flat",
    ),
    "tied": ("fuzz.Tied({f}, {c})", "flat"),
    "temperature": ("fuzz.Temperature({f}, {c})", "flat"),
    "layer norm": (
        "nn.Sequential(nn.Linear({f}, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, {c}))", "flat",
    ),
    "group norm": (
        "nn.Sequential(nn.Linear({f}, 4), nn.GroupNorm(2, 4), nn.Linear(4, {c}))", "flat",
    ),
    "batch norm": (
        "nn.Sequential(nn.Linear({f}, 4), nn.BatchNorm1d(4), nn.Linear(4, {c}))", "flat",
    ),
    "batch norm, eval": (
        "nn.Sequential(nn.Linear({f}, 4), nn.BatchNorm1d(4), nn.Linear(4, {c})).eval()", "flat",
    ),
    "dropout": (
        "nn.Sequential(nn.Linear({f}, 4), nn.Dropout(0.5), nn.Linear(4, {c}))", "flat",
    ),
    "dropout, eval": (
        "nn.Sequential(nn.Linear({f}, 4), nn.Dropout(0.5), nn.Linear(4, {c})).eval()", "flat",
    ),
    "pair": ("fuzz.Pair({f}, {c})", "flat"),
    "counting": ("fuzz.Counting({f}, {c})", "flat"),
    "lazy": ("nn.LazyLinear({c})", "flat"),
    "words": ("fuzz.Words(7, {c})", "words"),
    "recurrent": ("fuzz.Recurrent({f}, {c})", "series"),
    "pictures": (
        "nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, {c}))", "pictures",
    ),
}  # fmt: skip
NO_RUN = {"batch norm", "dropout", "pair", "counting", "lazy"}  # nothing that a loop could equal


# -- a case ---------------------------------------------------------------------------------------


@dataclass
class Case:
    """One run. The words are what the program says; ``spec`` says the same to the plain loop."""

    data: str  # makes x, y and parts
    model: str  # makes module or task
    task: str  # makes task of module
    method: str
    pipeline: str
    cohort: str
    recipe: str  # B, E, seed, equal
    more: str  # of Simulated
    evaluate: str  # of federate
    rounds: int
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def program(self) -> str:
        return (
            f"{HEAD}\n{self.data}\n{self.model}\n{self.task}\n"
            f"method = {self.method}\n"
            f"recipe = Recipe(method, task.theta0, {self.pipeline}, {self.recipe})\n"
            f"clients = Simulated(recipe, x, y, parts{self.more})\n"
            f"how = {{'rounds': {self.rounds}, 'cohort': {self.cohort}{self.evaluate}}}\n"
            f"run = federate(clients, **how)\n"
            f"rounds = list(run)\n"
        )


def case(seed: int, i: int) -> Case:
    """The i-th case of a seed."""
    r = np.random.default_rng([seed, i])
    pick = lambda *some: some[int(r.integers(len(some)))]
    odd = lambda share, *some: pick(*some) if r.random() < share else None
    spec: dict[str, Any] = {"must": ""}

    # the model, and what it is trained on
    kind = pick(*sorted(NO_RUN)) if r.random() < 0.03 else pick(*sorted(set(MODULES) - NO_RUN))
    source, shape = MODULES[kind]
    own = kind in ("softmax", "mlp")
    regression = bool(not own and r.random() < 0.2)
    C, F, N = (1 if regression else pick(2, 3, 4)), pick(3, 4, 5), int(r.integers(1, 8))
    pipeline = _pipeline(r, pick, N, spec)
    wants = {"krum": 3, "multi_krum": 3, "bulyan": 3}.get(spec["rule"][0], 0)
    wants += wants and spec["rule"][1] * (4 if spec["rule"][0] == "bulyan" else 2)
    if everybody := bool(wants and r.random() < 0.8):
        N = max(N, wants)
    n, s = int(r.integers(max(2 * N, 6), 41)), int(r.integers(10_000))
    double = r.random() < 0.5
    if not own:
        half = odd(0.02, ".half()", ".bfloat16()")
        of = half or (".double()" if double else "")
        model = f"torch.manual_seed({s})\nmodule = {source.format(f=F, c=C, s=s)}{of}"
        stacked = pick("None", "None", "False", "True")
        loss = ", squared_error" if regression else ""
        task = f"task = from_module(module{loss}, stacked={stacked})"
        spec["eps"] = 0.1 if half else 1e-7 if double else 3e-5
    else:
        model = f"task = {source.format(f=F, c=C, s=s)}"
        task = "task = task._replace(theta0=task.theta0.double())" if double else ""
        spec["eps"] = 1e-7 if double else 3e-5
    if kind in NO_RUN:
        spec["must"] = f"a module with {kind}"
    data, labels = _data(r, pick, odd, shape, regression, double, n, F, C, s, spec)
    parts = _parts(r, pick, odd, n, N, s, spec)
    data = f"{data}\n{labels}\n{parts}"

    # method, pipeline, cohort
    B, E = pick("None", "1", "3", "1000"), int(r.integers(1, 4))
    equal = bool(r.random() < 0.3)
    total = "N" if equal else "sum(map(len, rows))"
    method = _method(r, pick, odd, total, spec)
    cohort = _cohort(r, pick, N, spec)
    if everybody:  # enough clients for the rule
        cohort = spec["cohort"] = "None"
    run_seed = int(r.integers(1000))
    spec |= {"kind": kind, "N": N, "C": C, "B": eval(B), "E": E, "equal": equal, "seed": run_seed}
    spec |= {"regression": regression, "rounds": int(r.integers(2, 4))}
    recipe = f"batch={B}, epochs={E}, seed={run_seed}, equal={equal}"
    chunk = odd(0.3, ", chunk=1", ", chunk=2") or ""
    data += f"\nN, rows = {N}, fuzz.rows_of(parts)" if "n_total" in method else ""
    rounds = spec["rounds"]
    look = odd(0.4, ", 'evaluate': evaluator(task, x, y)") or ""
    spec["look"] = bool(look)
    return Case(data, model, task, method, pipeline, cohort, recipe, chunk, look, rounds, spec)


def usual(method: str, lr: float = 0.2, decay: float | None = None, **h: Any) -> Case:
    """A method with these numbers, everything else as usual: five clients, float64, a mean."""
    said = "".join(f", {k}={v!r}" for k, v in h.items())
    if method in ("scaffold", "feddyn"):
        said += ", n_total=40"
    if method == "fedopt":
        said = f", optim.{h['server']}({h['server_lr']})"
    make = f"algorithms.{method}(task, {{}}{said})"
    if decay is not None:
        make = f"algorithms.scheduled(lambda lr: {make}, lambda t: {lr} * {decay} ** t)"
    rule = {"local": None, "rule": ("mean",), "noise": None, "cohort": "4"}
    spec = {"must": "", "kind": "tanh", "C": 3, "B": 3, "E": 2, "equal": False, "seed": 5, **rule}
    spec |= {"method": method, "lr": lr, "decay": decay, "h": h, "regression": False}
    spec |= {"rounds": 3, "eps": 1e-9, "look": False, "N": 5}
    data = """\
rng = np.random.default_rng(3)
x, y = torch.from_numpy(rng.normal(size=(40, 4))), torch.from_numpy(rng.integers(0, 3, size=40))
parts = np.split(rng.permutation(40), [2, 7, 14, 25])"""
    model = (
        "torch.manual_seed(3)\nmodule = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))"
    )
    task = "task = from_module(module)"
    how = "batch=3, epochs=2, seed=5, equal=False"
    made = make.format("lr" if decay is not None else lr)
    return Case(data, f"{model}.double()", task, made, "chain(mean())", "4", how, "", "", 3, spec)


def _data(r, pick, odd, shape, regression, double, n, F, C, s, spec) -> tuple[str, str]:  # type: ignore[no-untyped-def]
    lines = [f"rng = np.random.default_rng({s})"]
    as_x = "torch.from_numpy(x)"
    if shape == "words":
        lines.append(f"x = rng.integers(0, 7, size=({n}, 5))")
        kind = odd(0.25, "int32", "numpy", "list", "uint8") or "int64"
        as_x = {"int32": "torch.from_numpy(x).int()", "numpy": "x", "list": "x.tolist()",
                "uint8": "torch.from_numpy(x.astype(np.uint8))"}.get(kind, as_x)  # fmt: skip
    else:
        size = {"flat": f"({n}, {F})", "series": f"({n}, 3, {F})", "pictures": f"({n}, 1, 4, 4)"}
        lines.append(f"x = rng.normal(size={size[shape]}).round(2)")
        usual = "" if double else ".float()"
        as_x += usual
        other = odd(
            0.1, "other float", "half", "numpy", "numpy other", "list", "int", "bool", "frame",
            "nan", "inf", "flattened", "one too many", "uint8", "requires grad", "strided",
        )  # fmt: skip
        as_x = {
            "other float": "torch.from_numpy(x)" + (".float()" if double else ""),
            "half": "torch.from_numpy(x).half()",
            "numpy": "x" if double else "x.astype(np.float32)",
            "numpy other": "x.astype(np.float32)" if double else "x",
            "list": "x.tolist()",
            "int": "torch.from_numpy(np.rint(3 * x)).long()",
            "uint8": "torch.from_numpy(np.rint(9 * abs(x)).astype(np.uint8))",
            "bool": "torch.from_numpy(x > 0)",
            "frame": "__import__('pandas').DataFrame(x)" if PANDAS and shape == "flat" else as_x,
            "nan": f"torch.from_numpy(fuzz.with_one(np.nan, x)){usual}",
            "inf": f"torch.from_numpy(fuzz.with_one(np.inf, x)){usual}",
            "flattened": f"{as_x}.flatten()",
            "one too many": f"torch.cat([{as_x}, {as_x}[:1]])",
            "requires grad": f"{as_x}.requires_grad_()",
            "strided": f"torch.stack([{as_x}, {as_x}], -1)[..., 0]",
        }.get(other or "", as_x)  # fmt: skip
        if other in ("nan", "inf", "flattened", "one too many"):
            spec["must"] = f"x {other}"
        spec["x"] = other or "as the model"
    labels = _labels(r, pick, odd, regression, double, n, C, spec)
    lines.append(f"x = {as_x}")
    return "\n".join(lines), labels


def _labels(r, pick, odd, regression, double, n, C, spec) -> str:  # type: ignore[no-untyped-def]
    if regression:
        usual = "torch.from_numpy(y)" + ("" if double else ".float()")
        kind = odd(0.2, "column", "numpy", "int", "float64", "list", "two columns", "nan", "bool")
        as_y = {
            "column": f"{usual}[:, None]", "numpy": "y", "int": "torch.from_numpy(y).long()",
            "float64": "torch.from_numpy(y)", "list": "y.tolist()",
            "two columns": "torch.from_numpy(np.stack([y, y], 1))",
            "bool": "torch.from_numpy(y > 0)",
            "nan": "torch.from_numpy(fuzz.with_one(np.nan, y))",
        }.get(kind or "", usual)  # fmt: skip
        if kind in ("two columns", "nan"):
            spec["must"] = f"y {kind}"
        made = f"y = rng.normal(size={n}).round(2)"
    else:
        usual = "torch.from_numpy(y)"
        kind = odd(
            0.1, "int32", "uint8", "int16", "bool", "float", "column", "one-hot", "text", "numpy",
            "list", "too large", "negative", "half labels", "one-hot int", "float column", "nan",
        )  # fmt: skip
        as_y = {
            "int32": f"{usual}.int()", "uint8": f"{usual}.to(torch.uint8)",
            "int16": f"{usual}.short()", "bool": f"{usual} > 0", "float": f"{usual}.float()",
            "column": f"{usual}[:, None]", "one-hot": f"torch.eye({C}, dtype=torch.float64)[y]",
            "one-hot int": f"torch.eye({C})[y].long()", "text": "np.array(list('abcdef'))[y]",
            "numpy": "y", "list": "y.tolist()",
            "too large": f"torch.from_numpy(y + (y.max() == y) * {C})",
            "negative": f"{usual} - 1", "half labels": f"{usual} + 0.5",
            "float column": f"{usual}.double()[:, None]",
            "nan": "torch.from_numpy(fuzz.with_one(np.nan, y))",
        }.get(kind or "", usual)  # fmt: skip
        if kind in ("text", "too large", "negative", "half labels", "nan"):
            spec["must"] = f"y {kind}"
        made = f"y = np.r_[0, {C - 1}, rng.integers(0, {C}, size={n - 2})]"
    spec["y"] = kind or "as the loss"
    return f"{made}\ny = {as_y}"


def _parts(r, pick, odd, n, N, s, spec) -> str:  # type: ignore[no-untyped-def]
    cuts = f"np.sort(np.random.default_rng({s}).permutation(np.arange(1, {n}))[: {N - 1}])"
    lines = [f"parts = np.split(np.random.default_rng({s + 1}).permutation({n}), {cuts})"]
    kind = odd(
        0.1, "dict", "overlap", "twice", "empty", "lists", "tuple", "mask", "int32", "uint8",
        "float", "negative", "outside", "tensors", "one int", "none",
    )  # fmt: skip
    lines += {
        "dict": ["parts = dict(enumerate(parts))"],
        "overlap": ["parts = [np.union1d(p, [0, 1, 2]) for p in parts]"],
        "twice": ["parts = [np.append(p, p[:1]) for p in parts]"],
        "empty": ["parts[-1] = parts[-1][:0]"],
        "lists": ["parts = [p.tolist() for p in parts]"],
        "tuple": ["parts = tuple(parts)"],
        "mask": [f"parts = [np.isin(np.arange({n}), p) for p in parts]"],
        "int32": ["parts = [p.astype(np.int32) for p in parts]"],
        "uint8": ["parts = [p.astype(np.uint8) for p in parts]"],
        "float": ["parts = [p.astype(float) for p in parts]"],
        "negative": ["parts[0] = np.append(parts[0], -1)"],
        "outside": [f"parts[0] = np.append(parts[0], {n})"],
        "tensors": ["parts = [torch.from_numpy(p) for p in parts]"],
        "one int": ["parts[0] = 0"],
        "none": ["parts = []"],
    }.get(kind or "", [])  # fmt: skip
    if kind in ("outside", "one int", "none"):
        spec["must"] = f"parts {kind}"
    spec["parts"] = kind or "arrays"
    return "\n".join(lines)


def _method(r, pick, odd, total, spec) -> str:  # type: ignore[no-untyped-def]
    lr = pick(0.05, 0.1, 0.3)
    name = pick(
        "fedavg", "fedsgd", "fedprox", "scaffold", "fednova", "feddyn", "fedavgm", "fedadagrad",
        "fedadam", "fedyogi", "fedopt",
    )  # fmt: skip
    h: dict[str, Any] = {}
    if name in ("fedavg", "fedprox", "scaffold", "fednova"):
        h["server_lr"] = pick(1.0, 0.5, 1.5)
    if name in ("fedavg", "fednova", "fedsgd"):
        h["beta"] = pick(0.0, 0.0, 0.5, 0.9)
    if name == "fedavg":
        h["weight_decay"] = pick(0.0, 0.0, 0.1)
    if name == "fedprox":
        h["mu"] = pick(0.0, 0.1, 1.0, 1 / lr)
    if name == "fednova":
        h["mu"] = pick(0.0, 0.0, 0.1, 1.0)
    if name == "scaffold":
        h["option"] = pick(1, 2)
    if name == "feddyn":
        h["alpha"] = pick(0.1, 0.5, 1.0)
    if name == "fedavgm":
        h |= {"server_lr": pick(1.0, 0.5), "beta": pick(0.0, 0.6, 0.9)}
    if name in ("fedadagrad", "fedadam", "fedyogi"):
        h |= {"server_lr": pick(0.03, 0.1), "tau": pick(1e-2, 1e-1), "beta1": pick(0.0, 0.5, 0.9)}
    if name in ("fedadam", "fedyogi"):
        h["beta2"] = pick(0.5, 0.9, 0.99)
    spec |= {"method": name, "lr": lr, "decay": odd(0.15, 0.5, 0.9), "h": h}
    said = "".join(f", {k}={v!r}" for k, v in h.items())
    if name == "fedopt":
        h |= {"server": pick("sgd", "momentum", "adagrad", "adam", "yogi"), "server_lr": 0.1}
        said = f", optim.{h['server']}(0.1)"
        h |= {"beta": 0.9, "beta1": 0.0 if h["server"] == "adagrad" else 0.9, "beta2": 0.99}
        h["tau"] = 1e-3
    if name in ("scaffold", "feddyn"):
        said += f", n_total={total}"
    if spec["decay"] is None:
        return f"algorithms.{name}(task, {lr}{said})"
    make = f"lambda lr: algorithms.{name}(task, lr{said})"
    return f"algorithms.scheduled({make}, lambda t: {lr} * {spec['decay']} ** t)"


def _pipeline(r, pick, N, spec) -> str:  # type: ignore[no-untyped-def]
    S = pick(0.05, 0.3, 2.0)
    local = [
        None, None, None, ("clip", S), ("clip", S), ("local_noise", 0.0, S),
        ("local_noise", 0.2, S),
    ][int(r.integers(7))]  # fmt: skip
    f = int(r.integers(0, 2))
    rule = pick(
        ("mean",), ("mean",), ("mean",), ("total", float(pick(1, 3, N))), ("clipped_mean", S),
        ("median",), ("trimmed_mean", pick(0.0, 0.2, 0.34, 0.49)), ("krum", f),
        ("multi_krum", f, pick(None, 1, 2)), ("geometric_median",), ("bulyan", f), ("secure",),
        ("private_mean", S, float(pick(1, 3))),
    )  # fmt: skip
    after = [None, None, None, 0.0, 0.1][int(r.integers(5))]
    if rule[0] == "private_mean":
        local, after = None, None
    if rule[0] == "secure" and not local:
        local = ("clip", S)
    spec |= {"local": local, "rule": rule, "noise": after}
    if rule[0] == "private_mean":
        return f"private_mean({rule[1]}, 0.0, {rule[2]})"
    stages = []
    if local:
        stages.append(f"{local[0]}({', '.join(map(repr, local[1:]))})")
    if rule[0] == "secure":
        stages.append(f"*secure_mean({S + 2.0 * (local[0] == 'local_noise')}, 200)")
    else:
        stages.append(f"{rule[0]}({', '.join(map(repr, rule[1:]))})")
    if after is not None:
        stages.append(f"noise({after})")
    return f"chain({', '.join(stages)})"


def _cohort(r, pick, N, spec) -> str:  # type: ignore[no-untyped-def]
    K = int(r.integers(1, N + 1))
    rates = [round(float(v), 2) for v in r.random(N)]
    base = pick(
        "None", "None", f"{K}", f"uniform({K})", f"weighted({K}, {list(range(1, N + 1))})",
        f"weighted({K}, {list(range(1, N + 1))}, replace=True)", f"poisson({pick(0.2, 0.6, 1.0)})",
        f"available({K}, lambda t: np.array({rates}))",
    )  # fmt: skip
    late = pick("", "", "", "dropouts", "stragglers", "stragglers, drop", "both")
    if late:
        call = "uniform()" if base == "None" else f"uniform({base})" if base == f"{K}" else base
        if late in ("dropouts", "both"):
            call = f"dropouts({call}, {pick(0.3, rates)})"
        if late != "dropouts":
            drop = ", drop=True" if "drop" in late else ""
            call = f"stragglers({call}, {pick(0.5, rates)}{drop})"
        base = call
    spec["cohort"] = base
    return base


def with_one(value: float, a: np.ndarray) -> np.ndarray:
    """The same numbers but the third."""
    out = a.astype(float)
    out.flat[2] = value
    return out


def rows_of(parts: Any) -> list[np.ndarray]:
    """The rows of every client, of whatever parts are made."""
    some = [parts[k] for k in range(len(parts))] if isinstance(parts, dict) else parts
    of = lambda p: np.flatnonzero(p) if p.dtype == bool else p.astype(np.int64)
    return [of(np.atleast_1d(np.asarray(p))) for p in some]


# -- the package's run, and the plain one ----------------------------------------------------------


Rounds = list[tuple[np.ndarray, float, dict[str, Any]]]  # theta, training loss, metrics


def package(c: Case) -> Rounds:
    """What the program makes."""
    names: dict[str, Any] = {}
    exec(compile(c.program, "<case>", "exec"), names)
    return [(r.theta.double().numpy(), r.loss, r.metrics) for r in names["rounds"]]


class MustRefuse(Exception):
    """There is no run that would be right."""


class Ambiguous(Exception):
    """Two answers are right, to within rounding."""


@dataclass
class World:
    """What the plain loop trains on."""

    x: torch.Tensor
    y: torch.Tensor
    parts: list[np.ndarray]
    module: nn.Module  # in float64
    regression: bool

    def put(self, w: torch.Tensor) -> list[nn.Parameter]:
        own = [p for p in self.module.parameters() if p.requires_grad]
        with torch.no_grad():
            for p, part in zip(own, w.split([p.numel() for p in own])):
                p.copy_(part.view(p.shape))
        return own

    def loss(self, rows: np.ndarray) -> torch.Tensor:
        out, y = self.module(self.x[rows]), self.y[rows]
        if self.regression:
            return (0.5 * (out[:, 0] - y) ** 2).mean()
        return -torch.log_softmax(out, 1)[torch.arange(len(rows)), y].mean()

    @torch.no_grad()
    def look(self, w: np.ndarray) -> dict[str, Any]:
        """Loss and accuracy on all examples; accuracy from .. to, if two scores are one."""
        self.put(torch.from_numpy(w))
        loss = {"loss": self.loss(np.arange(len(self.x))).item()}
        if self.regression:
            return loss
        scores = self.module(self.x)
        own = scores.gather(1, self.y[:, None])
        others = scores.scatter(1, self.y[:, None], -torch.inf).amax(1, keepdim=True)
        low, high = (int((own > others + e).sum()) / len(self.x) for e in (1e-4, -1e-4))
        return {**loss, "accuracy": (low, high)}

    def gradient(self, w: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, float]:
        own = self.put(torch.from_numpy(w))
        loss = self.loss(rows)
        grads = torch.autograd.grad(loss, own, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(own, grads)]
        return torch.cat([g.reshape(-1) for g in flat]).numpy(), loss.item()


def world(c: Case) -> tuple[World, np.ndarray]:
    """What the program's first lines make, read as a person would. -> and theta0"""
    names: dict[str, Any] = {}
    exec(compile(f"{HEAD}\n{c.data}\n{c.model}", "<case>", "exec"), names)
    if c.spec["must"]:
        raise MustRefuse(c.spec["must"])
    s, x, y = c.spec, names["x"], names["y"]
    x = x.detach() if isinstance(x, torch.Tensor) else torch.as_tensor(np.asarray(x))
    y = torch.as_tensor(np.asarray(y))
    x = x.long() if s["kind"] == "words" else x.double()
    if not s["regression"] and y.dim() == 2 and y.shape[1] == s["C"] > 1:
        y = y.argmax(1)  # one-hot
    y = y.reshape(-1).double() if s["regression"] else y.reshape(-1).long()
    parts = [p % len(x) for p in rows_of(names["parts"])]  # -1 is the last
    if s["kind"] in ("softmax", "mlp"):
        theta0, C = names["task"].theta0.double().numpy(), s["C"]
        F = x[0].numel()
        layers = [nn.Linear(F, C)]
        if s["kind"] == "mlp":
            layers = [nn.Linear(F, 5), nn.ReLU(), nn.Linear(5, C)]  # type: ignore[list-item]
        module: nn.Module = nn.Sequential(nn.Flatten(), *layers).double()
    else:
        module = copy.deepcopy(names["module"]).double()
        own = [p for p in module.parameters() if p.requires_grad]
        theta0 = torch.cat([p.detach().reshape(-1) for p in own]).numpy().copy()
    return World(x, y, parts, module, s["regression"]), theta0


def plain(c: Case) -> Rounds:
    """The same rounds, one client after the other."""
    s = c.spec
    w, theta = world(c)
    state: dict[str, Any] = {}
    memory: list[dict[str, np.ndarray]] = [{} for _ in w.parts]
    call = eval(s["cohort"], {**vars(pt), "np": np})
    call = pt.uniform(call) if call is None or isinstance(call, int) else call
    out = []
    for t in range(s["rounds"]):
        ctx = call(len(w.parts), s["seed"], t)
        lr = s["lr"] * s["decay"] ** t if s["decay"] is not None else s["lr"]
        if s["decay"] is not None and s["eps"] > 1e-6:
            lr = float(np.float32(lr))  # what travels
        if len(set(ctx.answered)) < len(ctx.answered) and s["method"] in ("scaffold", "feddyn"):
            raise MustRefuse("a client twice, and it remembers something")
        replies = []
        for at, k in enumerate(ctx.answered):
            work = None if ctx.work is None else ctx.work[[at]]
            batches = _batches(w.parts, k, s, t, work)
            replies.append(_client(w, theta, batches, lr, s, state, memory[k]))
        n = np.array([1.0 if s["equal"] else len(w.parts[k]) for k in ctx.answered])
        p = n / n.sum() if len(n) else n
        for r in replies:
            r["raw"] = r["delta"]
        seen: dict[int, int] = {}
        for r, k in zip(replies, map(int, ctx.answered)):
            r["delta"] = _on_client(r["delta"], s, t, k, seen.get(k, 0))
            seen[k] = seen.get(k, 0) + 1
        rows = np.array([r["delta"] for r in replies]).reshape(len(n), len(theta))
        delta = _combine(rows, p, n, s) if len(n) else 0 * theta
        private = s["rule"][0] == "private_mean" or s["noise"] is not None
        if s["noise"] is not None:
            delta = delta + _normal(s, s["noise"], len(theta), Use.NOISE, t, 0)
        if s["rule"][0] == "secure" and not len(n):
            raise MustRefuse("nobody answers a secure sum")
        for r, k in zip(replies, ctx.answered):
            memory[k] |= r["kept"]
        if len(n) or private:
            theta = _server(theta, delta, replies, p, n, state, memory, w, lr, s)
        loss = float(p @ [r["loss"] for r in replies]) if len(n) else math.nan
        if loss > 20 or np.abs(theta).max() > 20:
            raise Ambiguous("it explodes, and each rounding with it")
        out.append((theta, loss, w.look(theta) if s["look"] else {}))
    return out


def _batches(parts, k, s, t, work):  # type: ignore[no-untyped-def]
    """The examples of every local step of client k."""
    if not len(parts[k]):
        return []
    how = {"batch": s["B"], "epochs": s["E"], "seed": s["seed"], "round": t, "work": work}
    index, mask, _ = schedule(parts, np.array([k]), **how)
    steps = [rows[real > 0].numpy() for rows, real in zip(index[0], mask[0], strict=True)]
    return [rows for rows in steps if len(rows)]


def _client(w: World, theta, batches, lr, s, state, kept):  # type: ignore[no-untyped-def]
    """delta_k as its paper has it, the mean loss of the way, and what else the method needs."""
    name, h = s["method"], s["h"]
    zero = np.zeros_like(theta)
    if name == "fedsgd":
        rows = np.concatenate(batches) if batches else np.zeros(0, int)
        g, loss = w.gradient(theta, rows) if len(rows) else (zero, 0.0)
        return {"delta": -lr * g, "loss": loss, "kept": {}}
    c, c_k, h_k = state.get("c", zero), kept.get("c_k", zero), kept.get("h_k", zero)
    pull = {"fedprox": h.get("mu", 0), "fednova": h.get("mu", 0), "feddyn": h.get("alpha", 0)}
    mu = pull.get(name, 0.0)
    shift = c - c_k if name == "scaffold" else -h_k if name == "feddyn" else zero
    beta = h.get("beta", 0.0) if name in ("fedavg", "fednova") else 0.0
    own = w.put(torch.from_numpy(theta))
    decay = h.get("weight_decay", 0.0) if name == "fedavg" else 0.0
    sgd = torch.optim.SGD(own, lr=lr, momentum=beta, weight_decay=decay)
    sizes, losses = [p.numel() for p in own], []
    at = torch.from_numpy(theta).split(sizes)
    move = torch.from_numpy(shift).split(sizes)
    for rows in batches:
        sgd.zero_grad(set_to_none=False)
        loss = w.loss(rows)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for p, start, v in zip(own, at, move):
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                p.grad += mu * (p - start.view(p.shape)) + v.view(p.shape)
        sgd.step()
    theta_k = torch.cat([p.detach().reshape(-1) for p in own]).numpy().copy()
    delta, tau = theta_k - theta, len(batches)
    r = {"delta": delta, "loss": float(np.mean(losses)) if losses else 0.0, "kept": {}}
    if name == "scaffold":
        new = c_k
        if tau and h["option"] == 1:
            new = w.gradient(theta, np.concatenate(batches))[0]
        elif tau:
            new = c_k - c - delta / (tau * lr)
        r |= {"kept": {"c_k": new}, "delta_c": new - c_k}
    if name == "feddyn":
        r["kept"] = {"h_k": h_k - h["alpha"] * delta}
    if name == "fednova":
        r["a"] = _unit_way(tau, lr, beta, mu)
        r["delta"] = delta / r["a"] if tau else delta
    return r


def _unit_way(tau: int, lr: float, beta: float, mu: float) -> float:
    """‖a‖₁: how many eta each of tau gradients of 1, alone, moves a number by PyTorch's SGD."""
    way = 0.0
    for i in range(tau):
        u = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        sgd = torch.optim.SGD([u], lr=lr, momentum=beta)
        for step in range(tau):
            u.grad = (torch.ones_like(u) if step == i else torch.zeros_like(u)) + mu * u.detach()
            sgd.step()
        way += abs(u.item()) / lr
    return way


def _normal(s, std, d, use, t, stage, *who):  # type: ignore[no-untyped-def]
    """Noise of a path of its own: which use, round, stage, how much, and whose."""
    bits = int(np.float64(f"{std:.9g}").view(np.uint64))
    return std * numpy_rng(s["seed"], use, t, stage, bits, *who).standard_normal(d)


def _on_client(delta, s, t, k, again):  # type: ignore[no-untyped-def]
    local = s["local"]
    if s["rule"][0] == "private_mean":
        local = ("clip", s["rule"][1])
    if not local:
        return delta
    norm = np.linalg.norm(delta)
    if not np.isfinite(norm):
        delta = np.zeros_like(delta)  # as clip says
    delta = delta * min(1.0, local[-1] / norm) if norm > 0 else delta
    if local[0] == "local_noise":
        delta = delta + _normal(s, local[1], len(delta), Use.LOCAL_NOISE, t, 0, k, again)
    return delta


def _combine(rows, p, n, s):  # type: ignore[no-untyped-def]
    """The rule, in NumPy."""
    name, *a = s["rule"]
    K = len(rows)
    if name not in ("mean", "total") and not np.isfinite(rows).all():
        raise Ambiguous("a client has left the numbers")
    if name == "mean" or name == "secure":
        if name == "secure" and (n != np.rint(n)).any():
            raise MustRefuse("a weight that is no whole number")
        return (p[:, None] * rows).sum(0)
    if name == "total":
        return rows.sum(0) / a[0]
    if name == "private_mean":
        return rows.sum(0) / a[1]
    if name == "clipped_mean":
        norms = np.maximum(np.linalg.norm(rows, axis=1), 1e-300)
        return ((p * np.minimum(1, a[0] / norms))[:, None] * rows).sum(0)
    if name == "median":
        return np.median(rows, 0)
    if name == "trimmed_mean":
        cut = math.floor(a[0] * K + 1e-9)
        return np.sort(rows, 0)[cut : K - cut].mean(0)
    if name == "geometric_median":
        return _weiszfeld(rows, p)
    if name == "bulyan":
        return _bulyan(rows, a[0])
    f, m = a[0], 1 if name == "krum" else a[1]
    if K < 2 * f + 3 or (m or 0) > K - f:
        raise MustRefuse("too few for Krum")
    best = _by_krum(rows, f, K - f - 2 if m is None else m)
    return rows[best].mean(0)


def _by_krum(rows, f, keep):  # type: ignore[no-untyped-def]
    """The ``keep`` best: least sums of squared distances to the K - f - 2 nearest."""
    K = len(rows)
    scores = []
    for i in range(K):
        far = sorted(((rows[i] - rows[j]) ** 2).sum() for j in range(K) if j != i)
        scores.append(sum(far[: max(K - f - 2, 1)]))
    order = sorted(range(K), key=lambda i: (scores[i], np.linalg.norm(rows[i])))
    if keep < K:
        a, b = order[keep - 1], order[keep]
        near = abs(scores[a] - scores[b]) <= 1e-4 * max(scores) + 1e-12
        same = np.abs(rows[a] - rows[b]).max() < 1e-9
        if near and not same:
            raise Ambiguous("two scores of Krum's are one")
    return order[:keep]


def _bulyan(rows, f):  # type: ignore[no-untyped-def]
    K = len(rows)
    if K < 4 * f + 3:
        raise MustRefuse("too few for Bulyan")
    left, kept = list(range(K)), []
    while len(kept) < K - 2 * f:
        kept.append(left.pop(_by_krum(rows[left], f, 1)[0]) if len(left) > 1 else left.pop())
    some = rows[kept]
    off = np.abs(some - np.median(some, 0))
    out = np.zeros(rows.shape[1])
    for j in range(rows.shape[1]):
        order = np.argsort(off[:, j], kind="stable")
        a, b = order[K - 4 * f - 1], order[min(K - 4 * f, len(order) - 1)]
        if a != b and abs(off[a, j] - off[b, j]) < 1e-6 and abs(some[a, j] - some[b, j]) > 1e-9:
            raise Ambiguous("two are as near to the median")
        out[j] = some[order[: K - 4 * f], j].mean()
    return out


def _middle(values, p):  # type: ignore[no-untyped-def]
    """The values, from below, at which half of the weight is reached, and is exceeded."""
    order = np.argsort(values)
    below = np.cumsum(p[order]) / p.sum()
    return [values[order][np.searchsorted(below, half)] for half in (0.5 - 1e-9, 0.5 + 1e-9)]


def _weiszfeld(rows, p):  # type: ignore[no-untyped-def]
    z = np.array([np.mean(_middle(column, p)) for column in rows.T])
    spread = _middle(np.linalg.norm(rows - z, axis=1), p)[0]
    if spread == 0:
        return z
    for _ in range(100):
        weight = p / np.maximum(np.linalg.norm(rows - z, axis=1), 1e-6 * spread)
        before, z = z, weight @ rows / weight.sum()
        if np.linalg.norm(z - before) <= 1e-7 * spread:
            break
    return z


def _server(theta, delta, replies, p, n, state, memory, w, lr, s):  # type: ignore[no-untyped-def]
    """theta after the round, by the paper's formula."""
    name, h = s["method"], s["h"]
    eta = h.get("server_lr", 1.0)
    zero = np.zeros_like(theta)
    sizes = [1.0 if s["equal"] else len(rows) for rows in w.parts]
    if name == "fedsgd":
        state["v"] = h["beta"] * state.get("v", zero) + delta
        return theta + state["v"]
    if name == "fednova":
        tau = sum((p_k * r["a"] for p_k, r in zip(p, replies)), 0.0)
        return theta + eta * tau * delta
    if name == "scaffold":  # c is everyone's c_k, weighted as the objective weighs them
        of = lambda k: memory[k].get("c_k", zero)
        state["c"] = sum(m * of(k) for k, m in enumerate(sizes)) / sum(sizes)
        return theta + eta * delta
    if name == "feddyn":  # and h everyone's h_k
        of = lambda k: memory[k].get("h_k", zero)
        state["h"] = sum(m * of(k) for k, m in enumerate(sizes)) / sum(sizes)
        return theta + delta - (state["h"] / h["alpha"] if len(p) else 0.0)
    kind = {"fedavgm": "momentum", "fedopt": h.get("server")}.get(name, name.removeprefix("fed"))
    if kind in ("momentum",):
        state["v"] = h["beta"] * state.get("v", zero) + delta
        return theta + eta * state["v"]
    if kind in ("adagrad", "adam", "yogi"):
        m = h["beta1"] * state.get("m", zero) + (1 - h["beta1"]) * delta
        v, dd = state.get("v", zero + h["tau"] ** 2), delta**2
        if kind == "adagrad":
            v = v + dd
        elif kind == "adam":
            v = h["beta2"] * v + (1 - h["beta2"]) * dd
        else:
            v = v - (1 - h["beta2"]) * dd * np.sign(v - dd)
        state |= {"m": m, "v": v}
        return theta + eta * m / (np.sqrt(v) + h["tau"])
    return theta + eta * delta


# -- the verdict ----------------------------------------------------------------------------------

NAME = re.compile(r"[\w., ±'-]{2,60}?: |\w+\(.*?\) ")
CURE = re.compile(r"\bgot\b|e\.g\.|\buse\b|\btry\b|\bclean\b|\bcall\b|pip install")


def verdict(c: Case) -> tuple[str, str]:
    """("equal" | "refused" | "ambiguous" | "failure", what it was)"""
    with np.errstate(all="ignore"):
        try:
            want: Any = plain(c)
        except (MustRefuse, Ambiguous) as e:
            want = e
    try:
        got = package(c)
    except (ValueError, FloatingPointError, ImportError) as e:
        return _refused(c, e, want)
    except Exception as e:
        return "failure", f"{type(e).__name__} {_where(e)}: {str(e).splitlines()[0][:150]}"
    if isinstance(want, MustRefuse):
        return "failure", f"computed, though {want}"
    if isinstance(want, Ambiguous):
        return "ambiguous", str(want)
    for t, (right, here) in enumerate(zip(want, got, strict=True)):
        if what := _differ(c, right, here):
            return "failure", f"round {t}: {what}"
    return "equal", ""


def _differ(c: Case, want: Any, got: Any) -> str:
    """What of a round isn't what it should be."""
    (theta, loss, seen), (theta_, loss_, seen_) = want, got
    eps = c.spec["eps"] if c.spec["rule"][0] != "secure" else max(c.spec["eps"], 1e-5)
    if theta.shape != theta_.shape:
        return f"theta is {theta_.shape}, should be {theta.shape}"
    off = np.abs(theta - theta_).max() / (1 + np.abs(theta).max())
    if not off <= eps:
        return f"theta is off by {off:.1e}"
    near = lambda a, b: (a != a and b != b) or abs(a - b) <= 10 * eps * (1 + abs(a))
    if not near(loss, loss_):
        return f"the training loss is {loss_:.6g}, should be {loss:.6g}"
    if set(seen) != set(seen_):
        return f"metrics are {sorted(seen_)}, should be {sorted(seen)}"
    if seen and not near(seen["loss"], seen_["loss"]):
        return f"evaluator's loss is {seen_['loss']:.6g}, should be {seen['loss']:.6g}"
    low, high = seen.get("accuracy", (0, 0))
    if not low <= seen_.get("accuracy", 0) <= high:
        return f"evaluator's accuracy is {seen_['accuracy']:.6g}, should be {low:.6g}"
    return ""


def _refused(c: Case, e: BaseException, want: Any) -> tuple[str, str]:
    last = traceback.extract_tb(e.__traceback__)[-1]
    ours = f"{Path('fedlearn')}" in last.filename and "site-packages" not in last.filename
    words = str(e)
    if not ours:
        return "failure", f"{type(e).__name__} from {_where(e)}: {words.splitlines()[0][:150]}"
    if isinstance(e, FloatingPointError):
        finite = isinstance(want, list) and all(np.abs(v[0]).max() < 1e20 for v in want)
        return ("failure", f"diverged: {words[:150]}") if finite else ("refused", "diverged")
    named = NAME.match(words)
    if not named or not CURE.search(words):
        return "failure", f"words without name or cure: {words[:200]}"
    return "refused", named[0] + words[len(named[0]) :][:150]


def _where(e: BaseException) -> str:
    last = traceback.extract_tb(e.__traceback__)[-1]
    inside = [f for f in traceback.extract_tb(e.__traceback__) if "/fedlearn/" in f.filename]
    ours = f" by {Path(inside[-1].filename).name}:{inside[-1].name}" if inside else ""
    return f"{Path(last.filename).name}:{last.name}{ours}"
