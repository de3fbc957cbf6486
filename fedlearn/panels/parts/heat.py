"""A map of numbers that fills cell by cell."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import traitlets as T

from ...plots import BLUE
from ..engine import Snapshot
from .base import Part, packed, script


class Heat(Part):
    """A cell for each pair of two settings; a number and a shade of blue in each that is known.

    Reads ``heat`` (R, C) from the frame: NaN is not known yet, -inf is a run that failed; and
    ``spread`` (R, C), if it is there: how far the runs of a cell lie apart.

    Args:
        title: Above the picture.
        rows: Names of the rows, top to bottom.
        columns: Names of the columns.
        xlabel: What the columns are.
        ylabel: What the rows are.

    Example:
        >>> from fedlearn.panels import Engine
        >>> heat = Heat(title="accuracy", rows=["0.1"], columns=["1", "5"], xlabel="E", ylabel="α")
        >>> heat.show(Engine(lambda: [{"heat": [[0.9, np.nan]]}], {}, rounds=1).compute())
        >>> heat.label
        'accuracy: 1 of 2 cells, from 0.9 (α 0.1, E 1) to 0.9 (α 0.1, E 1)'
    """

    _esm = script("heat")
    values = T.Bytes(b"").tag(sync=True)
    spreads = T.Bytes(b"").tag(sync=True)
    rows: Any = T.List().tag(sync=True)
    columns: Any = T.List().tag(sync=True)
    xlabel = T.Unicode("").tag(sync=True)
    ylabel = T.Unicode("").tag(sync=True)

    def __init__(
        self,
        *,
        title: str = "sweep",
        rows: Sequence[str],
        columns: Sequence[str],
        xlabel: str = "",
        ylabel: str = "",
    ):
        super().__init__(
            title=title, rows=list(rows), columns=list(columns), xlabel=xlabel, ylabel=ylabel
        )
        self.table = self.spread = np.full((len(rows), len(columns)), np.nan)

    def show(self, snapshot: Snapshot) -> None:
        table = snapshot.latest.get("heat")
        if table is None:
            return
        self.table, spread = np.asarray(table, float), snapshot.latest.get("spread")
        self.spread = np.full(self.table.shape, np.nan) if spread is None else np.asarray(spread)
        with self.hold_sync():
            self.gen, self.values = snapshot.gen, packed(self.table)
            self.spreads = b"" if spread is None else packed(spread)
            n = {"title": self.title, "n": np.isfinite(self.table).sum(), "of": self.table.size}
            self.label = self.say("{title}: {n} of {of} cells", **n)
            if np.isfinite(self.table).any():
                low, high = np.nanargmin(self._finite()), np.nanargmax(self._finite())
                ends = {"low": self._said(low), "high": self._said(high)}
                self.label += self.say(", from {low} to {high}", **ends)

    def _finite(self) -> np.ndarray:
        return np.where(np.isfinite(self.table), self.table, np.nan)

    def _said(self, at: Any) -> str:
        i, j = divmod(int(at), self.table.shape[1])
        where = f"{self.ylabel} {self.rows[i]}", f"{self.xlabel} {self.columns[j]}"
        about = f" ± {self.spread[i, j]:.2g}" if np.isfinite(self.spread[i, j]) else ""
        return f"{self.table[i, j]:.3g}{about}" + self.say(
            " ({what})", what=self.say(", ").join(where)
        )

    def paint(self, axes: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        R, C = self.table.shape
        blues = LinearSegmentedColormap.from_list("blue", ["#E3EEF6", BLUE])
        values = self._finite()
        axes.grid(False)  # a notebook's own style would draw lines through the numbers
        axes.imshow(values, cmap=blues, aspect="auto", interpolation="nearest")
        known = values[np.isfinite(values)]
        dark = known.min() + 0.85 * np.ptp(known) if len(known) else 0.0  # white reads better there
        for i in range(R):
            for j in range(C):
                v = self.table[i, j]
                text = f"{v:.3f}" if np.isfinite(v) else "·" if np.isnan(v) else self.say("failed")
                text += f"\n± {self.spread[i, j]:.3f}" if np.isfinite(self.spread[i, j]) else ""
                color = "white" if np.isfinite(v) and v > dark else "#111111"
                axes.text(j, i, text, ha="center", va="center", fontsize=10, color=color)
        axes.set_xticks(range(C), self.columns)
        axes.set_yticks(range(R), self.rows)
        axes.set(xlim=(-0.5, C - 0.5), ylim=(R - 0.5, -0.5), xlabel=self.xlabel, ylabel=self.ylabel)
