"""Small multiples of grey pictures: an example, and what an attacker makes of its gradient."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import traitlets as T

from ...checks import check, is_whole
from ..engine import Snapshot
from ..words import Words
from .base import Part, packed, script

Named = tuple[str, np.ndarray, str]  # name, picture (h, w), remark


class Pictures(Part):
    """Grey pictures side by side, each with its name above: 0 is white, 1 ink, NaN left out.

    A picture of NaN alone is crossed out: an all-white one would look like it in a light theme.

    Reads a list of ``(name, (h, w) array)`` or ``(name, (h, w) array, remark)`` from the frame, or
    a dict ``{name: array}``. The remark is a second line, an error, say. Numbers outside 0..1 are
    shown as the nearer end. Every pixel is drawn for itself: up to about eight pictures of 28 x 28.

    Args:
        title: Above the pictures.
        key: Of the frame's pictures; on showing, ValueError if one isn't (h, w).
        columns: How many stand side by side, >= 1, else ValueError; None for the largest pictures.

    Example:
        >>> from fedlearn.panels import Engine
        >>> pictures, x = Pictures(title="one gradient"), np.eye(2)
        >>> frame = {"pictures": [("original", x), ("recovered", 0.9 * x, "error 0.005")]}
        >>> pictures.show(Engine(lambda: [frame], {}, rounds=1).compute())
        >>> pictures.label
        'one gradient: original, 2 × 2; recovered, 2 × 2, error 0.005'
    """

    _esm = script("pictures")
    values = T.Bytes(b"").tag(sync=True)
    shapes: Any = T.List().tag(sync=True)
    names: Any = T.List().tag(sync=True)
    remarks: Any = T.List().tag(sync=True)
    columns = T.Int(0).tag(sync=True)

    def __init__(
        self, *, title: str = "pictures", key: str = "pictures", columns: int | None = None
    ):
        good = columns is None or is_whole(columns)
        check("Pictures", "columns", columns, good, "an integer >= 1 or None", 2)
        super().__init__(title=title, columns=int(columns or 0))
        self._key = key
        self.each: list[Named] = []

    def show(self, snapshot: Snapshot) -> None:
        if (found := self.found(snapshot, self._key, [])) is None:
            return
        entries = found.items() if isinstance(found, Mapping) else found
        self.each = [_named(entry, self.say) for entry in entries]
        said = [
            self.say(", ").join(filter(None, (name, f"{x.shape[0]} × {x.shape[1]}", remark)))
            for name, x, remark in self.each
        ]
        with self.hold_sync():
            self.gen = snapshot.gen
            self.names = [name for name, *_ in self.each]
            self.remarks = [remark for *_, remark in self.each]
            self.shapes = [list(x.shape) for _, x, _ in self.each]
            pixels = (x.ravel() for _, x, _ in self.each)
            self.values = packed(np.concatenate([np.zeros(0), *pixels]))
            self.label = (
                self.title + self.say(": ") + (self.say("; ").join(said) or self.say("none"))
            )

    def paint(self, axes: Any) -> None:
        axes.axis("off")
        n = len(self.each)
        size = lambda c: min(2 / c, 1 / np.ceil(n / c) - 0.15)  # twice as wide as high, as a rule
        columns = self.columns or max(range(1, n + 1), key=size, default=1)
        rows = int(np.ceil(n / max(columns, 1)))
        lines = 2 if any(remark for *_, remark in self.each) else 1
        high = max(1 / max(rows, 1) - (0.03 + 0.07 * lines), 0.04)  # the rest is for names
        for k, (name, x, remark) in enumerate(self.each):
            i, j = divmod(k, columns)
            place = ((j + 0.04) / columns, 1 - (i + 1) / rows, 0.92 / columns, high)
            small = axes.inset_axes(place)
            small.imshow(x, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            small.set(xticks=[], yticks=[])
            small.grid(False)
            small.spines[:].set(visible=True, linewidth=0.6)
            if not np.isfinite(x).any():  # nothing there: crossed out
                look = {"color": "#888888", "lw": 0.8, "ls": "-", "transform": small.transAxes}
                for ends in ((0, 1), (1, 0)):
                    small.plot((0, 1), ends, **look)
            small.set_title(f"{name}\n{remark}" if remark else name, fontsize=10, pad=3)


def _named(entry: Any, say: Words) -> Named:
    name, x, *remark = entry
    x = np.asarray(x, float)
    if x.ndim != 2:
        raise ValueError(
            f"Pictures: a picture must be (h, w), got {x.shape} for {name!r}, e.g. x.reshape(8, 8)"
        )
    return say(str(name)), x, say(str(remark[0])) if remark else ""
