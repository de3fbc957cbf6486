"""A bar a client."""

from typing import Any

import numpy as np
import traitlets as T

from ...plots import BLUE, INK, VERMILION
from ..engine import Snapshot
from .base import Part, corner, packed, script
from .ranges import linear_range


class Bars(Part):
    """A bar a client, up or down from zero; the mean dashed, the lowest named if they differ.

    Args:
        title: Above the picture.
        xlabel: Under the bars: what one of them is.
        ylabel: Name of the height.
        key: Of the frame's (N,) array.
        ylim: Fixed range; None for one that fits.

    Example:
        >>> from fedlearn.panels import Engine
        >>> bars = Bars(title="cosine to the mean update", ylim=(-1, 1))
        >>> bars.show(Engine(lambda: [{"bars": [0.9, -0.2]}], {}, rounds=1).compute())
        >>> bars.label
        'cosine to the mean update: 2 bars, mean 0.35, lowest client 1 with -0.2'
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
        if (values := self.found(snapshot, self._key, [])) is None:
            return
        self.each = np.asarray(values, float)
        known = self.each[np.isfinite(self.each)]
        with self.hold_sync():
            self.gen, self.values = snapshot.gen, packed(self.each)
            self.label = self.say("{title}: {n} bars", title=self.title, n=len(self.each))
            if len(known):
                self.label += self.say(", mean {mean:.3g}", mean=known.mean())
                if lowest := self._lowest():
                    self.label += self.say(", lowest {what} {k} with {low:.3g}", **lowest)
                if not self._fixed:
                    self.ylim = list(linear_range(known))

    def _lowest(self) -> dict[str, Any]:  # nothing if all are alike
        low, k = np.nanmin(self.each), int(np.nanargmin(self.each))
        return {"what": self.xlabel, "k": k, "low": low} if low < np.nanmax(self.each) else {}

    def paint(self, axes: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.set(ylim=self.ylim, xlabel=self.xlabel, ylabel=self.ylabel)
        known = self.each[np.isfinite(self.each)]
        if not len(known):
            return
        lowest = self._lowest()
        colors = [VERMILION if k == lowest.get("k") else BLUE for k in range(len(self.each))]
        axes.bar(range(len(self.each)), np.nan_to_num(self.each), color=colors)
        axes.axhline(known.mean(), color=INK, lw=1.3, ls="--")
        axes.axhline(0, color=INK, lw=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        said = self.say("mean {mean:.3g}", mean=known.mean())
        if lowest:
            said += "   " + self.say("lowest: {what} {k}, {low:.3g}", **lowest)
        corner(axes, said)
