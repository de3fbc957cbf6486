"""Lines over rounds: this run, the last one, all data in one place."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import traitlets as T

from ...plots import BLUE, DASHES, GREY, INK, OKABE_ITO
from ..engine import Snapshot
from ..words import changed
from .base import Part, packed, script
from .ranges import linear_range, log_range, round_up

_LINES: dict[str, dict[str, Any]] = {
    "run": {"color": BLUE, "lw": 2.2, "zorder": 3},
    "ghost": {"color": GREY, "lw": 1.6, "ls": (0, (4, 2))},
    "reference": {"color": INK, "lw": 1.6, "ls": ":", "zorder": 4},
}


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
        legend: ``"top"``, ``"bottom"`` (right corners; the other where a line passes), or ``""``.
        xlabel: Name of the x axis; by default what ``x`` says.

    A frame may hold ``"reference": {column: values}`` beside its scalars, and ``reference_name``.

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
        self.columns = {self.say(name): c for name, c in columns.items()}
        self._several, self._fixed, self._fitted = several, ylim is not None, False
        self.over = list(x.values()) if isinstance(x, Mapping) else [x] * len(columns)

    def show(self, snapshot: Snapshot) -> None:
        series = self._series(snapshot)
        xs = [x for *_, x, y in series]
        ys = [y for *_, y in series]
        with self.hold_sync():  # one message: the browser never sees half a frame
            self.xmax = self._width(snapshot, xs)
            self.gen, self.label = snapshot.gen, self._words(snapshot)
            self.lines = [{"name": n, "role": r, "n": len(y)} for n, r, _, y in series]
            self.x = packed(np.concatenate(xs)) if xs else b""
            self.y = packed(np.concatenate(ys)) if ys else b""
            if not self._fixed:
                self.ylim = self._fit(ys, snapshot.state == "done")

    def _series(self, s: Snapshot) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
        out = []
        if not self._several:
            (column,) = self.columns.values()
            reference = s.latest.get("reference") or {}
            if column in reference and self.over != ["epsilon"]:  # it is without, or its ε is ∞
                y = np.asarray(reference[column], float)
                name = self.say(s.latest.get("reference_name", "all data in one place"))
                out.append((name, "reference", self._as_sent(s, len(y)), y))
            if s.ghost and column in s.ghost.columns:
                y = s.ghost.columns[column]
                name = self.say("last run") + changed(s.ghost.params, s.params, self.say)
                out.append((name, "ghost", self._axis(s.ghost.columns, len(y)), y))
        for i, (name, column) in enumerate(self.columns.items()):
            y = s.columns.get(column, np.empty(0))
            role = f"s{i % 8}" if self._several else "run"
            out.append((name, role, self._axis(s.columns, len(y), i), y))
        return out

    def _axis(self, columns: Mapping[str, np.ndarray], n: int, line: int = 0) -> np.ndarray:
        over = self.over[line]
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
        whole = s.rounds if set(self.over) == {"round"} else self._goal(s) or self.xmax
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
        if set(self.over) == {"round"}:
            return float(max(s.rounds, 1))
        ends = [float(x[np.isfinite(x)].max()) for x in xs if np.isfinite(x).any()]
        widest = max([0.0, *ends, self._goal(s) if s.state != "done" else 0.0])
        if widest <= 0:
            return self.xmax
        if s.state == "done" or all(map(_is_bytes, self.over)):  # all rounds send the same
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
            if len(y := y[np.isfinite(y)]):
                ends = {"name": name, "first": y[0], "last": y[-1], "n": s.round}
                said.append(
                    self.say("{name}: {first:.3g} at first, {last:.3g} after {n} rounds", **ends)
                )
        return (
            self.title + self.say(", ") + (self.say("; ").join(said) or self.say("no rounds yet"))
        )

    def paint(self, axes: Any) -> None:
        from matplotlib.ticker import FuncFormatter

        x, y = np.frombuffer(self.x, np.float32), np.frombuffer(self.y, np.float32)
        at = 0
        for line in self.lines:
            now = slice(at, at + line["n"])
            at += line["n"]
            if (look := _LINES.get(line["role"])) is None:
                k = int(line["role"][1:])
                look = {"color": OKABE_ITO[k], "lw": 2, "ls": DASHES[k % len(DASHES)]}
            axes.plot(x[now], y[now], label=line["name"], **look)
        if self.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            few = self.ylim[1] / self.ylim[0] < 1e3  # over more decades 2 and 5 would overlap
            minor = lambda v, _: f"{v:g}" if few and f"{v:e}"[0] in "25" else ""
            axes.yaxis.set_minor_formatter(FuncFormatter(minor))
            axes.tick_params(which="minor", labelsize=10)
        axes.set(xlim=(0, self.xmax), ylim=self.ylim, xlabel=self.xlabel, ylabel=self.ylabel)
        axes.grid(alpha=0.25)
        if self.lines and self.legend:
            rank = {"run": 0, "ghost": 1, "reference": 2}  # stable for several runs
            order = sorted(range(len(self.lines)), key=lambda i: rank.get(self.lines[i]["role"], 0))
            shown = [axes.lines[i] for i in order]
            axes.legend(handles=shown, loc="best", fontsize=10, framealpha=0.8, edgecolor="none")


def _is_bytes(column: str) -> bool:
    return column == "bytes" or column.startswith("bytes_")
