"""Recorded runs of a panel: its own engine computes a set of settings, each part keeps its traits.

What is kept is what the parts sent to the browser; on a page the very same views draw it, without
Python. So no formula of the course stands in JavaScript.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as W
import numpy as np

from fedlearn.panels import kernel
from fedlearn.panels.controls import has_value, value_of
from fedlearn.panels.engine import Engine
from fedlearn.panels.explorable import Explorable
from fedlearn.panels.federated import workers
from fedlearn.panels.words import words

from .pack import Pool

FRAMES = 31  # moments of a run that are kept; curves keep every round
MAIN = ("alpha", "E", "epochs", "lr")  # without a grid: the first of these moves with all others
STOPS = 5  # of each slider then
NOT_SENT = {
    "layout",
    "tabbable",
    "tooltip",
    "gen",
    "round",
}  # ipywidgets', and what a player counts
LAST = {"said", "news", "error"}  # of the whole run, kept once
Grid = Mapping[str, Sequence[Any]]  # control: its values; what is recorded are such products


@dataclass
class Run:
    """One recorded run: the rounds of its frames, what each view was sent, its Python."""

    at: list[int] = field(default_factory=list)
    frames: list[list[dict[str, Any] | None]] = field(default_factory=list)
    code: str = ""


@dataclass
class Setting:
    """How the controls stood: 1 is switched off, 2 out of sight; what they were called; its run."""

    off: list[int]
    names: list[str]
    run: int


@dataclass
class Recording:
    """All settings of a panel that were reached, by the controls' values."""

    controls: dict[str, W.Widget]
    runs: list[Run] = field(default_factory=list)
    seen: dict[tuple[Any, ...], Setting] = field(default_factory=dict)


def record(panel: Explorable, grids: Sequence[Grid] | None = None) -> dict[str, Any]:
    """Run the panel's engine at every setting of the grids; the panel is left as it was.

    Each setting is reached as a reader would reach it: from the start, one control after the other,
    so that controls which follow others end where they end in the notebook.

    Args:
        panel: Any panel, built.
        grids: Products of values by control; None for :func:`default_grids`, empty for the start.

    Returns:
        ``{"data": what player.js reads, "settings": how many, "runs": how many}``.

    Raises:
        ValueError: If a grid names a control that there isn't, or a value that it can't have.
    """
    named = {k: c for k, c in panel.controls.items() if not _alias(panel, k)}
    made = Recording({k: c for k, c in named.items() if has_value(c)})
    chosen = (
        default_grids(made.controls)
        if grids is None
        else [checked(g, made.controls) for g in grids]
    )
    engine = panel.engine
    with _unheard(panel):
        start = {k: (c.value, getattr(c, "max", None)) for k, c in made.controls.items()}
        for moves in ({}, *itertools.chain.from_iterable(map(_products, chosen))):
            _move(panel, start, moves)
            _reached(panel, made)
        _move(panel, start, {})
        panel.engine = engine
        panel._frame(engine.snapshot())
    data = _packed(panel, named, made)
    return {"data": data, "settings": len(made.seen), "runs": len(made.runs)}


def default_grids(controls: Mapping[str, W.Widget]) -> list[Grid]:
    """The main slider against each other control: five values of it, all options of a menu."""
    stops = {k: _stops(c) for k, c in controls.items()}
    main = next((k for k in (*MAIN, *stops) if k in stops), None)
    if main is None:
        return []
    others = [k for k in stops if k != main]
    return [{main: stops[main], k: stops[k]} for k in others] or [{main: stops[main]}]


def quick_grid(controls: Mapping[str, W.Widget]) -> list[Grid]:
    """One move: the first control that has another value goes to its last."""
    for name, c in controls.items():
        other = [v for v in _stops(c) if v != value_of(c)] if has_value(c) else []
        if other:
            return [{name: other[-1:]}]
    return []


# -- settings -------------------------------------------------------------------------------------


def _alias(panel: Explorable, name: str) -> bool:
    """Compare calls the controls of what differs ``a`` and ``b`` as well."""
    return name in ("a", "b") and "vary" in panel.controls


def _products(grid: Grid) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values))


def checked(grid: Grid, controls: Mapping[str, W.Widget]) -> Grid:
    """A declared grid, its values as the controls have them: an option may stand by its label."""
    if unknown := sorted(set(grid) - set(controls)):
        known = ", ".join(controls)
        raise ValueError(f"record: a grid has {unknown[0]!r}; the panel's controls are {known}")
    return {k: [_value(k, controls[k], v) for v in values] for k, values in grid.items()}


def _value(name: str, c: W.Widget, v: Any) -> Any:
    """A value as its control has it: at the slider's nearest step, or the option of this label."""
    if not hasattr(c, "options"):
        log = isinstance(c, W.FloatLogSlider)
        at = math.log(v, c.base) if log else v
        if not c.min - 1e-9 <= at <= c.max + 1e-9:
            low, high = (c.base**c.min, c.base**c.max) if log else (c.min, c.max)
            raise ValueError(f"record: {name} can't be {v!r}; it goes from {low:g} to {high:g}")
        at = min(c.max, c.min + round((at - c.min) / c.step) * c.step)
        return float(f"{c.base**at:.3g}") if log else type(c.value)(float(f"{at:.12g}"))
    for label, value in c.options:
        if v == label or (isinstance(v, bool) == isinstance(value, bool) and v == value):
            return value
    have = ", ".join(label for label, _ in c.options)
    raise ValueError(f"record: {name} can't be {v!r}; there are {have}")


def _stops(c: W.Widget) -> list[Any]:
    """A few values of a control, its own among them."""
    if hasattr(c, "options"):
        return [v for _, v in c.options]
    spread = np.linspace(c.min, c.max, STOPS).tolist()
    if isinstance(c, W.FloatLogSlider):
        found = [float(f"{c.base**v:.3g}") for v in spread]
    else:
        found = [float(f"{round((v - c.min) / c.step) * c.step + c.min:.12g}") for v in spread]
    return sorted({c.value, *(type(c.value)(v) for v in found)})


def _move(
    panel: Explorable, start: Mapping[str, tuple[Any, Any]], moves: Mapping[str, Any]
) -> None:
    """To the start, then one control after the other; those that follow do so."""
    panel._adjusting = True  # what observes the controls rests
    try:
        for k, (value, top) in start.items():
            if top is not None:
                panel.controls[k].max = max(top, panel.controls[k].value)
            panel.controls[k].value = value
            if top is not None:
                panel.controls[k].max = top
        panel._adjust()
        for k, v in moves.items():
            panel.controls[k].value = v
            panel._adjust()
    finally:
        panel._adjusting = False


def _reached(panel: Explorable, made: Recording) -> None:
    """Remember the setting that the controls are at, and run it unless an equal one was run."""
    controls = made.controls.values()
    values = tuple(value_of(c) for c in controls)
    if values in made.seen:
        return
    off = [2 if "fl-gone" in c._dom_classes else int(c.disabled) for c in controls]
    counts = lambda at: [None if o else v for o, v in zip(off, at)]
    same = (s.run for at, s in made.seen.items() if s.off == off and counts(at) == counts(values))
    run = next(same, len(made.runs))  # what is off makes no difference
    if run == len(made.runs):
        made.runs.append(_run(panel))
    made.seen[values] = Setting(off, [c.description for c in controls], run)


# -- runs -----------------------------------------------------------------------------------------


def views(panel: Explorable) -> list[Any]:
    """All that is sent anything: the pictures, the readout (or None) and the status."""
    return [*panel.parts, panel.readout, panel.status]


def _run(panel: Explorable) -> Run:
    """One run, frame by frame: what each view was sent."""
    rounds, run = panel.engine._rounds, Run()
    workers._KNOWN.clear()  # a map fills cell by cell
    panel.engine = engine = Engine(panel.engine._make, panel._adjust(), rounds=rounds)
    engine._state = "running"
    kept = {*np.linspace(0, rounds, min(rounds + 1, FRAMES)).round().astype(int).tolist()}
    for part in panel.parts:
        if hasattr(part, "_fitted"):
            part._fitted = False  # the axes of this run alone
    while engine.state == "running":
        engine._advance()
        done = max(len(engine._run.rows) - 1, 0)
        if done not in kept and engine.state == "running":
            continue
        with contextlib.suppress(Exception):  # a picture that fails is said in the panel
            panel._frame(engine.snapshot())
        if run.at and run.at[-1] == done:
            run.at.pop()
            run.frames.pop()
        run.at.append(done)
        run.frames.append([None if v is None else _state(v) for v in views(panel)])
    run.code = panel._code(engine.snapshot()) if panel._code else ""
    return run


def _state(view: Any) -> dict[str, Any]:
    keys = [k for k in view.keys if k[0] != "_" and k not in NOT_SENT]
    return {k: _copied(getattr(view, k)) for k in keys}


def _copied(v: Any) -> Any:
    return list(v) if isinstance(v, (list, tuple)) else dict(v) if isinstance(v, dict) else v


@contextlib.contextmanager
def _unheard(panel: Explorable) -> Iterator[None]:
    """Nothing is sent meanwhile: a recording would be a hundred thousand messages."""
    tree = list({id(w): w for w in kernel.tree(panel.ui)}.values())
    comms = [w.comm for w in tree]
    for w in tree:
        w.comm = None
    try:
        yield
    finally:
        for w, comm in zip(tree, comms):
            w.comm = comm


# -- as a page holds it ---------------------------------------------------------------------------


def _packed(panel: Explorable, named: Mapping[str, W.Widget], made: Recording) -> str:
    """Everything as text, without the controls that are never seen."""
    pool, seen, order = Pool(), made.seen, list(made.controls)
    shown = [i for i in range(len(order)) if any(s.off[i] < 2 for s in seen.values())]
    stops = {order[i]: _ordered(made.controls[order[i]], [at[i] for at in seen]) for i in shown}
    names = {order[i]: list(dict.fromkeys(s.names[i] for s in seen.values())) for i in shown}
    rows: list[int] = []
    for at, s in seen.items():
        rows += [stops[order[i]].index(at[i]) for i in shown]
        rows += [s.off[i] for i in shown]
        rows += [names[order[i]].index(s.names[i]) for i in shown]
        rows.append(s.run)
    controls = [
        {**_control(c, stops[k]), "names": names[k]} if k in stops else {"heading": c.value}
        for k, c in named.items()
        if k in stops or (k not in made.controls and isinstance(getattr(c, "value", 0), str))
    ]
    header = {
        "rounds": panel.engine._rounds,
        "pace": panel.engine._pace,
        "unit": panel.readout.unit if panel.readout else "",
        "controls": controls,
        "settings": pool.ints(rows),
        "at": [run.at for run in made.runs],
        "codes": [run.code for run in made.runs] if made.runs[0].code else [],
        "predict": panel._predict,
        "views": [
            v and {"view": type(v).__name__.lower(), "traits": _columns(made.runs, i, pool)}
            for i, v in enumerate(views(panel))
        ],
    }
    return pool.packed(header)


def _ordered(c: W.Widget, values: Sequence[Any]) -> list[Any]:
    if hasattr(c, "options"):
        return [v for _, v in c.options if v in values]
    return sorted(set(values))


def _control(c: W.Widget, stops: Sequence[Any]) -> dict[str, Any]:
    labels = c.options if hasattr(c, "options") else [(words(v), v) for v in stops]
    said = [next(label for label, value in labels if value == v) for v in stops]
    tip = c.tooltip if c.tooltip != c.description else ""
    return {"tip": tip, "menu": isinstance(c, W.Dropdown), "stops": said}


def _columns(runs: Sequence[Run], i: int, pool: Pool) -> dict[str, Any]:
    """Trait of a view -> {c: its value} or {u: values, r: which by run, or f, s: by frame}."""
    out: dict[str, Any] = {}
    first = runs[0].frames[0][i] or {}
    grows = "xmax" in first  # a curve: its last frame holds the others
    for name in first:
        known: dict[str, int] = {}
        values: list[Any] = []
        rows: list[list[int]] = []
        for run in runs:
            whole = grows or name in LAST
            rows.append([])
            for frame in run.frames[-1:] if whole else run.frames:
                state = frame[i] or {}
                v = pool.trait(name, state[name], state)
                key = json.dumps(v, sort_keys=True)
                if key not in known:
                    known[key] = len(values)
                    values.append(v)
                rows[-1].append(known[key])
        if len(values) == 1:
            out[name] = {"c": values[0]}
        elif all(len(set(row)) == 1 for row in rows):
            out[name] = {"u": values, "r": pool.ints([row[0] for row in rows])}
        else:
            starts = np.cumsum([0, *map(len, rows)])[:-1].tolist()
            flat = pool.ints([n for row in rows for n in row])
            out[name] = {"u": values, "f": flat, "s": pool.ints(starts)}
    return out
