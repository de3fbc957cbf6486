"""A dot a client."""

from typing import Any

import numpy as np
import traitlets as T

from ...plots import BLUE, INK, VERMILION
from ..engine import Snapshot
from .base import Part, corner, packed, script


class Dots(Part):
    """A dot a client on an axis from 0 to 1; the worst is named. Reads ``clients`` (N,), ``drift``.

    Args:
        title: Above the picture.
        xlabel: Under the axis.
        key: Of the frame's (N,) array, where one panel has several.

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
        key: str = "clients",
    ):
        super().__init__(title=title, xlabel=xlabel)
        self._key, self.each = key, np.zeros(0)

    def show(self, snapshot: Snapshot) -> None:
        if (values := self.found(snapshot, self._key, [])) is None:
            return
        self.each = np.asarray(values, float)
        drift = snapshot.columns.get("drift", np.full(1, np.nan))[-1]
        with self.hold_sync():
            self.gen, self.values = snapshot.gen, packed(self.each)
            said = self.say("drift: mean ‖θₖ − θ‖ = {drift:.2g}", drift=drift)
            self.drift = said if np.isfinite(drift) else ""
            self.label = self.say("{title}: none", title=self.title)
            if np.isfinite(self.each).any():
                k = int(np.nanargmin(self.each))
                self.label = self.say(
                    "{title}: accuracy of {n} clients, mean {mean:.2f}, "
                    "worst client {k} with {low:.2f}",
                    title=self.title,
                    n=len(self.each),
                    mean=np.nanmean(self.each),
                    k=k,
                    low=self.each[k],
                )

    def paint(self, axes: Any) -> None:
        axes.set(xlim=(-0.02, 1.02), xlabel=self.xlabel, yticks=[])
        axes.spines["left"].set_visible(False)
        each = self.each[np.isfinite(self.each)]
        if not len(each):
            axes.set_ylim(0, 1)
            return
        height: dict[int, int] = {}
        order = np.argsort(np.where(np.isfinite(self.each), self.each, np.inf))[: len(each)]
        xs, ys = [], []
        for k in order:
            column = round(float(self.each[k]) * 40)
            height[column] = height.get(column, 0) + 1
            xs.append(self.each[k])
            ys.append(height[column])
        top = max(max(height.values()) * 1.25, 6)
        axes.scatter(xs[1:], ys[1:], s=28, color=BLUE, alpha=0.75, linewidths=0)
        axes.scatter(xs[:1], ys[:1], s=70, color=VERMILION, edgecolors=VERMILION, marker="o")
        axes.axvline(each.mean(), color=INK, lw=1.3, ls="--")
        axes.set_ylim(1 - top * 0.06, top)
        k = int(order[0])
        right = xs[0] > 0.55
        axes.annotate(
            self.say("worst: client {k}, {low}", k=k, low=f"{self.each[k]:.2f}"),
            (xs[0], 1),
            xytext=(xs[0], top * 0.6),
            ha="right" if right else "left",
            color=VERMILION,
            fontsize=10,
            arrowprops={"arrowstyle": "-", "color": VERMILION},
        )
        mean = self.say("mean {mean}", mean=f"{each.mean():.2f}")
        k = "_k" if self.say.fonts else "$_k$"  # Matplotlib's formulas are in its own fonts
        corner(axes, f"{mean}   {self.drift}".replace("ₖ", k).rstrip())
