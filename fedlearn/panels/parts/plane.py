"""Two parameters, seen from above."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import traitlets as T

from ...plots import HALO, OKABE_ITO
from ..engine import Snapshot
from ..words import length
from .base import Part, script

_SPOTS: tuple[tuple[float, float, float], ...] = (  # of a name: right, up, share of it at the left
    (9, -4, 0), (-9, -4, 1), (0, 9, 0.5), (0, -18, 0.5),
    (8, 9, 0), (8, -18, 0), (-8, 9, 1), (-8, -18, 1),
)  # fmt: skip


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
        at = [self.say("{name} at ({x:.3g}, {y:.3g})", **_where(p)) for p in named]
        with self.hold_sync():
            self.gen, self.scene = snapshot.gen, _plain(scene)
            self.label = self.title + self.say(": ") + self.say("; ").join(at)

    def paint(self, axes: Any) -> None:
        for e in self.scene.get("contours", ()):
            for level in e["levels"]:
                x, y = ellipse(e["center"], e["matrix"], level)
                style = "--" if e.get("dashed") else "-"
                axes.plot(x, y, style, color=OKABE_ITO[e.get("color", 0)], lw=1.2, alpha=0.7)
        for q in self.scene.get("paths", ()):
            xy, color = np.asarray(q["points"], float), OKABE_ITO[q.get("color", 0)]
            axes.plot(*xy.T, "--" if q.get("dashed") else "-", color=color, lw=2)
            if len(xy) > 1 and not np.allclose(xy[-1], xy[-2]):
                arrow = {"arrowstyle": "-|>", "color": color, "lw": 2}
                axes.annotate("", xy[-1], xytext=xy[-2], arrowprops=arrow)
        marks = {"dot": "o", "cross": "x", "star": "*", "square": "s", "diamond": "D"}
        for p in self.scene.get("points", ()):
            mark, color = p.get("mark", "dot"), OKABE_ITO[p.get("color", 0)]
            axes.plot(*p["at"], marks[mark], color=color, ms=13 if mark == "star" else 8, mew=2)
        axes.set(xlim=self.xlim, ylim=self.ylim, xlabel=self.xlabel, ylabel=self.ylabel)
        axes.set_aspect("equal", adjustable="box")
        axes.grid(alpha=0.2)

    def finish(self, axes: Any) -> None:
        """Each name goes to the first place round its point that is free and inside, as live."""
        points = self.scene.get("points", ())
        if not any(p.get("name") for p in points):
            return
        axes.figure.draw_without_rendering()  # where things lie is known only now
        frame, pixel = axes.get_window_extent(), 72 / axes.figure.dpi
        at = [axes.transData.transform(p["at"]) for p in points]
        taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in at]
        for p, (x, y) in zip(points, at):
            if not (name := p.get("name", "")):
                continue
            wide = length(name) * 7.4 + 4
            spots = []
            for dx, dy, share in _SPOTS:
                left = x + dx - share * wide
                spots.append((left, y + dy - 3, left + wide, y + dy + 12))
            free = (
                i
                for i, (l, b, r, t) in enumerate(spots)
                if frame.x0 < l and r < frame.x1 and frame.y0 < b and t < frame.y1
                and all(r < o[0] or l > o[2] or t < o[1] or b > o[3] for o in taken)
            )  # fmt: skip
            i = next(free, 0)
            taken.append(spots[i])
            dx, dy, share = _SPOTS[i]
            side = ("left", "center", "right")[int(share * 2)]
            away = {"xytext": (dx * pixel, dy * pixel), "textcoords": "offset points", "ha": side}
            axes.annotate(name, p["at"], size=10, path_effects=HALO, in_layout=False, **away)


def _where(p: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": p["name"], "x": p["at"][0], "y": p["at"][1]}


def _plain(v: Any) -> Any:
    """Arrays and tensors as nested lists of floats, for JSON."""
    if isinstance(v, Mapping):
        return {k: _plain(w) for k, w in v.items()}
    if hasattr(v, "tolist"):
        return v.tolist()
    return [_plain(w) for w in v] if isinstance(v, (list, tuple)) else v


def ellipse(center: Any, matrix: Any, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of {theta: (theta - center)' A (theta - center) / 2 = level}."""
    values, vectors = np.linalg.eigh(np.asarray(matrix, float))
    if values[0] <= 0 or level <= 0:
        return np.empty(0), np.empty(0)
    t = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(t), np.sin(t)]) * np.sqrt(2 * level / values)[:, None]
    x, y = vectors @ circle + np.asarray(center, float)[:, None]
    return x, y
