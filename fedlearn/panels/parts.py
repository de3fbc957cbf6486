"""What a panel is made of: small live pictures, drawn by the browser, nodes reused.

Each part has ``show(snapshot)``, which sends what the snapshot holds, and ``paint(axes)``, which
draws the same with Matplotlib for places without a kernel. A part can be displayed alone, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import numpy as np
import traitlets as T

from . import static
from .engine import Snapshot
from .scales import changed, linear_range, log_range, round_up

_WEB = Path(__file__).with_name("web")


def script(name: str) -> str:
    """The JavaScript of a part, as text (a path would be watched): the helpers and its own.

    Example:
        >>> "export default" in script("curve")
        True
    """
    both = [(_WEB / f"{n}.js").read_text(encoding="utf-8") for n in ("common", name)]
    return "\n".join(both)


def _is_bytes(column: str) -> bool:
    return column == "bytes" or column.startswith("bytes_")


def _bytes(values: Any) -> bytes:
    return np.ascontiguousarray(values, np.float32).tobytes()


class Part(anywidget.AnyWidget):
    """Base of all parts: a title, a spoken label, and the number of the run it shows.

    Example:
        >>> Part(title="test loss").title
        'test loss'
    """

    _css = (_WEB / "style.css").read_text(encoding="utf-8")
    title = T.Unicode("").tag(sync=True)
    label = T.Unicode("").tag(sync=True)
    gen = T.Int(0).tag(sync=True)

    def show(self, snapshot: Snapshot) -> None:
        """Send what the snapshot holds to the browser. Only a panel's worker calls it."""
        raise NotImplementedError

    def paint(self, axes: Any) -> None:
        """Draw what is shown now onto Matplotlib axes."""
        raise NotImplementedError


class Curve(Part):
    """Lines over rounds, or over another column: this run, the last one, and the reference.

    Args:
        column: Name of the history column; or ``{legend: column}`` for several lines of one run,
            drawn in the Okabe-Ito order, each with its own dash.
        title: Above the picture; by default the column's name.
        x: What the line is drawn against: ``"round"``, or the name of a column that grows, e.g.
            ``"seconds"``; ``"bytes"`` (and ``"bytes_…"``) is shown in megabytes. Where each line
            has its own, ``{legend: column}`` with the legends of ``column``.
        ylim: Fixed range; by default one that fits, and that grows but doesn't jump.
        log: Logarithmic y axis.
        ylabel: Name of the y axis.
        legend: ``"top"``, ``"bottom"`` (right corners) or ``""``.
        xlabel: Name of the x axis; by default what ``x`` says.

    A frame may hold ``"reference": {column: values}`` beside its scalars.

    Example:
        >>> from fedlearn.panels import Engine
        >>> curve = Curve("loss", title="test loss")
        >>> curve.show(Engine(lambda: [{"loss": 2.0}, {"loss": 1.0}], {}, rounds=1).compute())
        >>> curve.lines[-1]["n"], curve.ylim
        (2, [0.0, 2.0])
        >>> timed = Curve("loss", x="seconds", xlabel="simulated seconds")
        >>> rows = [{"loss": 2.0, "seconds": 0.0}, {"loss": 1.0, "seconds": 7.5}]
        >>> timed.show(Engine(lambda: rows, {}, rounds=1).compute())
        >>> timed.xmax, timed.xlabel
        (7.5, 'simulated seconds')
    """

    _esm = script("curve")
    lines: Any = T.List().tag(sync=True)
    x = T.Bytes(b"").tag(sync=True)
    y = T.Bytes(b"").tag(sync=True)
    xmax = T.Float(1.0).tag(sync=True)
    ylim = T.List([0.0, 1.0]).tag(sync=True)
    log = T.Bool(False).tag(sync=True)
    xlabel = T.Unicode("round").tag(sync=True)
    ylabel = T.Unicode("").tag(sync=True)
    legend = T.Unicode("top").tag(sync=True)

    def __init__(
        self,
        column: str | Mapping[str, str],
        *,
        title: str = "",
        x: str | Mapping[str, str] = "round",
        ylim: tuple[float, float] | None = None,
        log: bool = False,
        ylabel: str = "",
        legend: str = "top",
        xlabel: str = "",
    ):
        several = not isinstance(column, str)
        over = list(x) if isinstance(x, Mapping) else []
        if not x or (over and (isinstance(column, str) or over != list(column))):
            raise ValueError(
                f"Curve: x must be 'round', a column's name, or a column for each line, got {x!r}, "
                "e.g. x='seconds'"
            )
        said = x if isinstance(x, str) else ""
        super().__init__(
            title=title or (column if isinstance(column, str) else ""),
            ylim=list(ylim or ((0.1, 1.0) if log else (0.0, 1.0))),
            xlabel=xlabel or ("MB sent" if said == "bytes" else said),
            ylabel=ylabel,
            log=log,
            legend=legend,
        )
        columns = {"this run": column} if isinstance(column, str) else dict(column)
        self.columns: dict[str, str] = columns
        self._several, self._fixed, self._fitted = several, ylim is not None, False
        self._over = list(x.values()) if isinstance(x, Mapping) else [x] * len(columns)

    def show(self, snapshot: Snapshot) -> None:
        series = self._series(snapshot)
        xs = [x for *_, x, y in series]
        ys = [y for *_, y in series]
        self.set_state_together(
            gen=snapshot.gen,
            lines=[{"name": n, "role": r, "n": len(y)} for n, r, _, y in series],
            x=_bytes(np.concatenate(xs)) if xs else b"",
            y=_bytes(np.concatenate(ys)) if ys else b"",
            xmax=self._width(snapshot, xs),
            ylim=list(self.ylim) if self._fixed else self._fit(ys, snapshot.state == "done"),
            label=self._words(snapshot),
        )

    def set_state_together(self, **traits: Any) -> None:
        """Set several traits in one message, so that the browser never sees half a frame."""
        with self.hold_sync():
            for name, value in traits.items():
                setattr(self, name, value)

    def _series(self, s: Snapshot) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
        out = []
        if not self._several:
            (column,) = self.columns.values()
            reference = s.latest.get("reference") or {}
            if column in reference:
                y = np.asarray(reference[column], float)
                out.append(("all data in one place", "reference", self._as_sent(s, len(y)), y))
            if s.ghost and column in s.ghost.columns:
                y = s.ghost.columns[column]
                name = f"last run{changed(s.ghost.params, s.params)}"
                out.append((name, "ghost", self._axis(s.ghost.columns, len(y)), y))
        for i, (name, column) in enumerate(self.columns.items()):
            y = s.columns.get(column, np.empty(0))
            role = f"s{i % 8}" if self._several else "run"
            out.append((name, role, self._axis(s.columns, len(y), i), y))
        return out

    def _axis(self, columns: Mapping[str, np.ndarray], n: int, line: int = 0) -> np.ndarray:
        over = self._over[line]
        if over == "round" or not n:
            return np.arange(n, dtype=float)
        if over not in columns:
            raise ValueError(
                f"Curve: x={over!r} is no column of the frames, which have "
                f"{', '.join(columns)}, e.g. x={next(iter(columns))!r}"
            )
        return np.asarray(columns[over][:n], float) / (1e6 if _is_bytes(over) else 1.0)

    def _as_sent(self, s: Snapshot, n: int) -> np.ndarray:
        """The reference sends nothing: its rounds are laid where this run's rounds lie."""
        whole = s.rounds if set(self._over) == {"round"} else self._goal(s) or self.xmax
        return np.arange(n, dtype=float) * (whole / max(s.rounds, 1))

    def _goal(self, s: Snapshot) -> float:
        """Where this run will end, by its rounds so far; 0 if that can't be said."""
        ends = [0.0]
        for i, column in enumerate(self.columns.values()):
            x = self._axis(s.columns, len(s.columns.get(column, ())), i)
            if len(x) > 1 and np.isfinite(x[-1]):
                ends.append(float(x[-1]) * s.rounds / (len(x) - 1))
        return max(ends)

    def _width(self, s: Snapshot, xs: Sequence[np.ndarray]) -> float:
        """Where the axis ends: no line is cut off, and it doesn't jump while a run goes on."""
        if set(self._over) == {"round"}:
            return float(max(s.rounds, 1))
        ends = [float(x[np.isfinite(x)].max()) for x in xs if np.isfinite(x).any()]
        widest = max([0.0, *ends, self._goal(s) if s.state != "done" else 0.0])
        if widest <= 0:
            return self.xmax
        if s.state == "done" or all(map(_is_bytes, self._over)):  # all rounds send the same
            return widest
        return max(round_up(widest), self.xmax if self.gen == s.gen else 0.0)

    def _fit(self, ys: Sequence[np.ndarray], over: bool) -> list[float]:
        """The range that shows every line. It only grows during a run: axes must not jump."""
        v = np.concatenate([np.empty(0), *ys])
        v = v[np.isfinite(v) & ((v > 0) if self.log else True)]
        if not len(v):
            return list(self.ylim)
        lo, hi = (log_range if self.log else linear_range)(v)
        if self._fitted and not over:
            lo, hi = min(lo, self.ylim[0]), max(hi, self.ylim[1])
        self._fitted = True
        return [float(lo), float(hi)]

    def _words(self, s: Snapshot) -> str:
        said = []
        for name, column in self.columns.items():
            y = s.columns.get(column, np.empty(0))
            if len(y):
                said.append(f"{name}: {y[0]:.3g} at first, {y[-1]:.3g} after {s.round} rounds")
        return f"{self.title}, {'; '.join(said) or 'no rounds yet'}"

    def paint(self, axes: Any) -> None:
        static.curve(axes, self)


class Holdings(Part):
    """Who holds what: a row per client, a column per label, sizes as bars.

    Reads ``counts`` (N, C; another name by ``key``), and optionally ``labels`` (C names) and
    ``note``, from the frame.

    Example:
        >>> from fedlearn.panels import Engine
        >>> picture = Holdings()
        >>> picture.show(Engine(lambda: [{"counts": np.eye(3)}], {}, rounds=1).compute())
        >>> picture.clients, picture.names
        (3, ['0', '1', '2'])
    """

    _esm = script("holdings")
    counts = T.Bytes(b"").tag(sync=True)
    clients = T.Int(0).tag(sync=True)
    names: Any = T.List().tag(sync=True)
    note = T.Unicode("").tag(sync=True)
    rowname = T.Unicode("client").tag(sync=True)
    colname = T.Unicode("label").tag(sync=True)

    def __init__(
        self,
        *,
        title: str = "who holds what",
        rows: str = "client",
        columns: str = "label",
        key: str = "counts",
    ):
        super().__init__(title=title, rowname=rows, colname=columns)
        self.table, self._key = np.zeros((0, 0)), key

    def show(self, snapshot: Snapshot) -> None:
        table = snapshot.latest.get(self._key)
        if table is None and snapshot.state == "error":  # an old picture beside it would deceive
            table, note = np.zeros((0, 0)), "no split: see the message below"
        elif table is None or (table is self.table and snapshot.gen == self.gen):
            return
        else:
            note = str(snapshot.latest.get("note", ""))
        self.table = np.asarray(table)
        if not self.table.size:
            self._clear(snapshot.gen, note)
            return
        N, C = self.table.shape
        kinds = np.median((self.table > 0).sum(1))
        with self.hold_sync():
            self.gen, self.clients = snapshot.gen, N
            self.names = [str(v) for v in snapshot.latest.get("labels", range(C))]
            self.note = note
            self.counts = _bytes(self.table)
            self.label = (
                f"{self.title}: {N} clients, half of them hold {kinds:.0f} or fewer of {C} "
                f"labels; {self.table.sum(1).min():.0f} to {self.table.sum(1).max():.0f} examples"
            )

    def _clear(self, gen: int, note: str) -> None:
        with self.hold_sync():
            self.gen, self.clients, self.names, self.counts = gen, 0, [], b""
            self.note, self.label = note, f"{self.title}: {note}"

    def paint(self, axes: Any) -> None:
        static.holdings(axes, self)


class Dots(Part):
    """A dot a client on an axis from 0 to 1; the worst is named. Reads ``clients`` (N,), ``drift``.

    Example:
        >>> from fedlearn.panels import Engine
        >>> dots = Dots()
        >>> dots.show(Engine(lambda: [{"clients": np.array([0.9, 0.4])}], {}, rounds=1).compute())
        >>> dots.label
        'clients: accuracy of 2 clients, mean 0.65, worst client 1 with 0.40'
    """

    _esm = script("dots")
    values = T.Bytes(b"").tag(sync=True)
    drift = T.Unicode("").tag(sync=True)
    xlabel = T.Unicode("").tag(sync=True)

    def __init__(
        self,
        *,
        title: str = "clients",
        xlabel: str = "accuracy on the client's own data",
    ):
        super().__init__(title=title, xlabel=xlabel)
        self.each = np.zeros(0)

    def show(self, snapshot: Snapshot) -> None:
        values = snapshot.latest.get("clients")
        if values is None:
            if snapshot.state != "error":
                return
            values, self.label = [], f"{self.title}: none"
        self.each = np.asarray(values, float)
        drift = snapshot.columns.get("drift", np.full(1, np.nan))[-1]
        with self.hold_sync():
            self.gen, self.values = snapshot.gen, _bytes(self.each)
            self.drift = f"drift: mean ‖θₖ − θ‖ = {drift:.2g}" if np.isfinite(drift) else ""
            if np.isfinite(self.each).any():
                k = int(np.nanargmin(self.each))
                self.label = (
                    f"{self.title}: accuracy of {len(self.each)} clients, "
                    f"mean {np.nanmean(self.each):.2f}, worst client {k} with {self.each[k]:.2f}"
                )

    def paint(self, axes: Any) -> None:
        static.dots(axes, self)


class Plane(Part):
    """Two parameters, seen from above: contours of quadratics, points with names, paths.

    Reads ``plane`` from the frame, a dict with any of

    - ``contours``: ``[{"center": (x, y), "matrix": A (2, 2), "levels": [...]}]``, the ellipses
      {theta: (theta - center)' A (theta - center) / 2 = level}, drawn exactly;
    - ``points``: ``[{"at": (x, y), "name": "client 1", "mark": "dot"}]``; marks are dot, cross,
      star, square, diamond;
    - ``paths``: ``[{"points": (n, 2)}]``, with an arrow head at the end;

    each with an optional ``color`` (0..7, Okabe-Ito order; 7 is ink) and ``dashed``.

    Example:
        >>> from fedlearn.panels import Engine
        >>> scene = {"points": [{"at": (0.0, 1.0), "name": "optimum", "mark": "star"}]}
        >>> plane = Plane(xlim=(-1, 2), ylim=(-1, 2))
        >>> plane.show(Engine(lambda: [{"plane": scene}], {}, rounds=1).compute())
        >>> plane.label
        'plane: optimum at (0, 1)'

        A round's drift, two clients' local paths and the step that the server makes of them:

        >>> start, steps = np.zeros(2), np.arange(6)[:, None] / 5
        >>> local = [start + steps * np.array(end) for end in ((1.0, 0.2), (-0.2, 0.8))]
        >>> paths = [{"points": path, "color": k, "dashed": True} for k, path in enumerate(local)]
        >>> mean = {"points": [start, np.mean([path[-1] for path in local], 0)], "color": 7}
        >>> scene = {"paths": [*paths, mean], "points": [{"at": start, "name": "θ", "color": 7}]}
        >>> plane.show(Engine(lambda: [{"plane": scene}], {}, rounds=1).compute())
    """

    _esm = script("plane")
    scene = T.Dict().tag(sync=True)
    xlim = T.List([-1.0, 1.0]).tag(sync=True)
    ylim = T.List([-1.0, 1.0]).tag(sync=True)
    xlabel = T.Unicode("θ₁").tag(sync=True)
    ylabel = T.Unicode("θ₂").tag(sync=True)
    _known: ClassVar[tuple[str, ...]] = ("contours", "points", "paths")

    def __init__(
        self,
        *,
        title: str = "plane",
        xlim: tuple[float, float] = (-1, 1),
        ylim: tuple[float, float] = (-1, 1),
        xlabel: str = "θ₁",
        ylabel: str = "θ₂",
        key: str = "plane",
    ):
        super().__init__(title=title, xlabel=xlabel, ylabel=ylabel)
        self.xlim, self.ylim, self._key = [*map(float, xlim)], [*map(float, ylim)], key

    def show(self, snapshot: Snapshot) -> None:
        scene = snapshot.latest.get(self._key)
        if scene is None:
            return
        if unknown := set(scene) - set(self._known):
            raise ValueError(
                f"Plane: knows {', '.join(self._known)}, got {', '.join(sorted(unknown))}, "
                "e.g. {'points': [{'at': (0, 1), 'name': 'optimum'}]}"
            )
        named = [p for p in scene.get("points", ()) if p.get("name")]
        said = "; ".join("{} at ({:.3g}, {:.3g})".format(p["name"], *p["at"]) for p in named)
        with self.hold_sync():
            self.gen, self.scene = snapshot.gen, _plain(scene)
            self.label = f"{self.title}: {said}"

    def paint(self, axes: Any) -> None:
        static.plane(axes, self)


def _plain(v: Any) -> Any:
    """Arrays and tensors as nested lists of floats, for JSON."""
    if isinstance(v, Mapping):
        return {k: _plain(w) for k, w in v.items()}
    if hasattr(v, "tolist"):
        return v.tolist()
    return [_plain(w) for w in v] if isinstance(v, (list, tuple)) else v
