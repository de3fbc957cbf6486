"""Who holds what."""

from typing import Any

import numpy as np
import traitlets as T

from ...plots import BLUE
from ..engine import Snapshot
from .base import Part, corner, packed, script


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
        table = self.found(snapshot, self._key, np.zeros((0, 0)))
        if table is None or (table is self.table and snapshot.gen == self.gen):
            return
        self.table = np.asarray(table)
        N, C = self.table.shape
        sizes, kinds = self.table.sum(1), (self.table > 0).sum(1)
        with self.hold_sync():
            self.gen, self.clients, self.counts = snapshot.gen, N, packed(self.table)
            self.names = [self.say(str(v)) for v in snapshot.latest.get("labels", range(C))][:C]
            self.note = self.say.note(str(snapshot.latest.get("note", "")))
            if not N:
                self.note = self.say("no split: see the message below")
                self.label = f"{self.title}: {self.note}"
                return
            self.label = self.say(
                "{title}: {n} clients, half of them hold {half:.0f} or fewer of {labels} labels; "
                "{low:.0f} to {high:.0f} examples",
                **{"title": self.title, "n": N, "half": np.median(kinds), "labels": C},
                **{"low": sizes.min(), "high": sizes.max()},
            )

    def paint(self, axes: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.ticker import MaxNLocator

        axes.set(xlabel=self.colname, ylabel=self.rowname)
        table = np.asarray(self.table, float)
        if not table.size:
            return
        N, C = table.shape
        blues = LinearSegmentedColormap.from_list("blue", ["#FFFFFF", BLUE])
        axes.grid(False)
        axes.imshow(table, cmap=blues, aspect="auto", vmin=0, interpolation="nearest")
        every = max(1, C // 12)
        axes.set_xticks(range(0, C, every), self.names[::every])
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        bars = axes.inset_axes((1.03, 0, 0.14, 1), sharey=axes)
        bars.barh(range(N), table.sum(1), color="#666666", height=0.85)
        bars.set_axis_off()
        sizes = self.say("examples\n(most {n:.0f})", n=table.sum(1).max())
        bars.text(0, -0.05, sizes, fontsize=9, transform=bars.transAxes, va="top")
        corner(axes, self.say("darkest: {n:.0f} examples", n=table.max()))
        if self.note:
            axes.set_xlabel(f"{self.colname}\n{self.note}")
