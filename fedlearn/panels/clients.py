"""One small picture a client: curves over rounds, bars."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets as T

from .engine import Snapshot
from .parts import Part, _bytes, script
from .scales import linear_range
from .static import BLUE, INK, VERMILION

PANES = 24  # more clients share one pane


class ClientCurves(Part):
    """A curve a client: small panes on one scale, the worst marked, the mean dotted in each.

    More than 24 clients share one pane of thin lines.

    Args:
        title: Above the picture.
        ylim: The common range; None for one that fits.
        key: Of the frame's (T + 1, N) array: a row a round so far, a column a client.
        better: ``"high"`` or ``"low"``: which end is good; the worst client is at the other.

    Example:
        >>> from fedlearn.panels import Engine
        >>> picture, rows = ClientCurves(), np.array([[0.1, 0.1], [0.9, 0.4]])
        >>> picture.show(Engine(lambda: [{"client_curves": rows}], {}, rounds=1).compute())
        >>> picture.worst, picture.label
        (1, 'by client: 2 clients, mean 0.65, worst client 1 with 0.4 after 1 rounds')
    """

    _esm = script("clientcurves")
    values = T.Bytes(b"").tag(sync=True)
    clients = T.Int(0).tag(sync=True)
    worst = T.Int(-1).tag(sync=True)
    rounds = T.Int(1).tag(sync=True)
    ylim = T.List([0.0, 1.0]).tag(sync=True)
    panes = T.Int(PANES).tag(sync=True)

    def __init__(
        self,
        *,
        title: str = "by client",
        ylim: tuple[float, float] | None = (0, 1),
        key: str = "client_curves",
        better: str = "high",
    ):
        if better not in ("high", "low"):
            raise ValueError(
                f"ClientCurves: better must be 'high' or 'low', got {better!r}, e.g. 'low'"
            )
        super().__init__(title=title, ylim=list(map(float, ylim or (0, 1))))
        self._key, self._low, self._fixed = key, better == "low", ylim is not None
        self.table = np.zeros((0, 0))

    def show(self, snapshot: Snapshot) -> None:
        table = snapshot.latest.get(self._key)
        if table is None:
            if snapshot.state != "error":
                return
            table = np.zeros((0, 0))
        self.table = np.asarray(table, float)
        end = self.table[-1] if len(self.table) else np.empty(0)
        some = np.isfinite(end).any()
        with self.hold_sync():
            self.gen, self.rounds = snapshot.gen, max(snapshot.rounds, len(self.table) - 1, 1)
            self.clients, self.values = len(end), _bytes(self.table.T)
            self.worst = int((np.nanargmax if self._low else np.nanargmin)(end)) if some else -1
            if some and not self._fixed:
                self.ylim = list(linear_range(self.table[np.isfinite(self.table)]))
            self.label = f"{self.title}: {len(end)} clients"
            if some:
                self.label += (
                    f", mean {np.nanmean(end):.3g}, worst client {self.worst} with "
                    f"{end[self.worst]:.3g} after {len(self.table) - 1} rounds"
                )

    def paint(self, axes: Any) -> None:
        axes.set(xlim=(0, self.rounds), ylim=self.ylim, xlabel="round")
        N = self.clients
        if not N:
            return
        mean = np.nanmean(self.table, axis=1)
        if N > PANES:
            axes.plot(self.table, color=BLUE, lw=0.6, alpha=0.6)
            axes.plot(mean, color=INK, ls=":", lw=2)
            axes.plot(self.table[:, self.worst], color=VERMILION, lw=2)
            axes.set_title(f"worst: client {self.worst}", loc="right", fontsize=9, color=VERMILION)
            return
        axes.axis("off")
        columns = int(np.ceil(np.sqrt(N * 1.3)))
        rows = int(np.ceil(N / columns))
        for k in range(N):
            i, j = divmod(k, columns)
            spot = (j / columns, 1 - (i + 1) / rows, 0.92 / columns, 0.9 / rows)
            small = axes.inset_axes(spot)
            color = VERMILION if k == self.worst else BLUE
            small.plot(mean, color=INK, ls=":", lw=1)
            small.plot(self.table[:, k], color=color, lw=1.8)
            small.set(xlim=(0, self.rounds), ylim=self.ylim, xticks=[], yticks=[])
            small.text(0.04, 0.04, str(k), fontsize=9, color=color, transform=small.transAxes)
        axes.set_title(
            f"y: {self.ylim[0]:g} to {self.ylim[1]:g}, dotted: mean", loc="right", fontsize=9
        )


class Bars(Part):
    """A bar a client, up or down from zero; the mean dashed, the lowest named.

    Args:
        title: Above the picture.
        xlabel: Under the bars.
        ylabel: Name of the height.
        key: Of the frame's (N,) array.
        ylim: Fixed range; None for one that fits.

    Example:
        >>> from fedlearn.panels import Engine
        >>> bars = Bars(title="cosine to the mean update", ylim=(-1, 1))
        >>> bars.show(Engine(lambda: [{"bars": [0.9, -0.2]}], {}, rounds=1).compute())
        >>> bars.label
        'cosine to the mean update: 2 clients, mean 0.35, lowest client 1 with -0.2'
    """

    _esm = script("bars")
    values = T.Bytes(b"").tag(sync=True)
    xlabel = T.Unicode("").tag(sync=True)
    ylabel = T.Unicode("").tag(sync=True)
    ylim = T.List([0.0, 1.0]).tag(sync=True)

    def __init__(
        self,
        *,
        title: str = "by client",
        xlabel: str = "client",
        ylabel: str = "",
        key: str = "bars",
        ylim: tuple[float, float] | None = None,
    ):
        super().__init__(title=title, xlabel=xlabel, ylabel=ylabel)
        self.ylim, self._key, self._fixed = [*map(float, ylim or (0, 1))], key, ylim is not None
        self.each = np.zeros(0)

    def show(self, snapshot: Snapshot) -> None:
        values = snapshot.latest.get(self._key)
        if values is None:
            if snapshot.state != "error":
                return
            values = []
        self.each = np.asarray(values, float)
        known = self.each[np.isfinite(self.each)]
        with self.hold_sync():
            self.gen, self.values = snapshot.gen, _bytes(self.each)
            self.label = f"{self.title}: {len(self.each)} clients"
            if len(known):
                k = int(np.nanargmin(self.each))
                self.label += (
                    f", mean {known.mean():.3g}, lowest client {k} with {self.each[k]:.3g}"
                )
                if not self._fixed:
                    self.ylim = list(linear_range(known))

    def paint(self, axes: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.set(ylim=self.ylim, xlabel=self.xlabel, ylabel=self.ylabel)
        known = self.each[np.isfinite(self.each)]
        if not len(known):
            return
        low = int(np.nanargmin(self.each))
        colors = [VERMILION if k == low else BLUE for k in range(len(self.each))]
        axes.bar(range(len(self.each)), np.nan_to_num(self.each), color=colors)
        axes.axhline(known.mean(), color=INK, lw=1.3, ls="--")
        axes.axhline(0, color=INK, lw=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        remark = f"mean {known.mean():.3g}   lowest: client {low}, {self.each[low]:.3g}"
        axes.set_title(remark, loc="right", fontsize=9, color="#444444")
