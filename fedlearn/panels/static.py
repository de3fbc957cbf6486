"""The same pictures for places without a kernel: Matplotlib, object-oriented, no pyplot.

Drawn on the main thread only: Matplotlib used from another thread breaks the reader's own plots.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .parts import Curve, Dots, Holdings, Part, Plane

# The palette and dashes of fedlearn.plots; its yellow can't be seen on white, so grey stands there.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7A7A7A", "#111111")
BLUE, VERMILION, GREY, INK = OKABE_ITO[0], OKABE_ITO[3], "#7A7A7A", "#111111"
DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), ":", "--", "-")
_LINES: dict[str, dict[str, Any]] = {
    "run": {"color": BLUE, "lw": 2.2, "zorder": 3},
    "ghost": {"color": GREY, "lw": 1.6, "ls": (0, (4, 2))},
    "reference": {"color": INK, "lw": 1.6, "ls": ":", "zorder": 4},
}


def figure(
    parts: list[Part], *, title: str = "", size: tuple[float, float] | None = None
) -> Figure:
    """All parts in one figure, laid out as in the panel.

    Example:
        >>> from fedlearn.panels import Curve, Dots
        >>> len(figure([Curve("loss"), Dots()]).axes)
        2
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = len(parts)
    rows, columns = (2, 2) if n > 2 else (1, n)
    fig = Figure(figsize=size or (9.6, 2.9 * rows if n > 1 else 4.2), dpi=100, layout="constrained")
    fig.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    FigureCanvasAgg(fig)
    grid = fig.add_gridspec(rows, columns)
    places = [grid[i % rows, i // rows] for i in range(n)]
    if n == 3:
        places[2] = grid[:, 1]
    for part, place in zip(parts, places, strict=True):
        axes = fig.add_subplot(place)
        axes.set_title(part.title, loc="left", fontsize=11, fontweight="bold")
        axes.tick_params(labelsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        part.paint(axes)
        axes.xaxis.label.set_fontsize(10)
        axes.yaxis.label.set_fontsize(10)
    if title:
        fig.suptitle(title, x=0.01, ha="left", fontsize=11)
    named = [(a, p.scene["points"]) for a, p in zip(fig.axes, parts) if "points" in _scene(p)]
    if named:
        fig.draw_without_rendering()  # where things lie is known only now
        for axes, points in named:
            _name(axes, points)
    return fig


def _scene(part: Any) -> dict[str, Any]:
    return getattr(part, "scene", {})


def _name(axes: Any, points: list[dict[str, Any]]) -> None:
    """Each name goes to the first place round its point that is free and inside, as in plane.js."""
    frame = axes.get_window_extent()
    spots: list[tuple[float, float, float]] = [(9, -4, 0), (-9, -4, 1), (0, 9, 0.5), (0, -18, 0.5)]
    spots += [(8, 9, 0), (8, -18, 0), (-8, 9, 1), (-8, -18, 1)]
    at = [axes.transData.transform(p["at"]) for p in points]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in at]
    for p, (x, y) in zip(points, at):
        name = p.get("name", "")
        if not name:
            continue
        wide, rects = len(name) * 7.4 + 4, []
        for dx, dy, share in spots:
            left = x + dx - share * wide
            rects.append((left, y + dy - 3, left + wide, y + dy + 12))
        free = [
            i
            for i, (l, b, r, t) in enumerate(rects)
            if frame.x0 < l and r < frame.x1 and frame.y0 < b and t < frame.y1
            and all(r < o[0] or l > o[2] or t < o[1] or b > o[3] for o in taken)
        ]  # fmt: skip
        i = free[0] if free else 0
        taken.append(rects[i])
        dx, dy, share = spots[i]
        points_per_pixel = 72 / axes.figure.dpi
        axes.annotate(
            name,
            p["at"],
            xytext=(dx * points_per_pixel, dy * points_per_pixel),
            textcoords="offset points",
            ha=("left", "center", "right")[int(share * 2)],
            fontsize=10,
            annotation_clip=True,
        ).set_in_layout(False)


def png(fig: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same picture: good for version control.

    Example:
        >>> from fedlearn.panels import Dots
        >>> png(figure([Dots()])) == png(figure([Dots()]))
        True
    """
    out = io.BytesIO()
    fig.savefig(out, format="png", metadata={"Software": None}, facecolor="white")
    return out.getvalue()


def base64_png(fig: Figure) -> str:
    """The PNG as notebooks hold it.

    Example:
        >>> from fedlearn.panels import Dots
        >>> base64_png(figure([Dots()]))[:8]
        'iVBORw0K'
    """
    return base64.b64encode(png(fig)).decode()


def curve(axes: Any, part: Curve) -> None:
    """Lines, legend, ranges as the live curve shows them.

    Example:
        >>> from fedlearn.panels import Curve
        >>> figure([Curve("loss", log=True)]).axes[0].get_yscale()
        'log'
    """
    from matplotlib.ticker import FuncFormatter

    x, y = np.frombuffer(part.x, np.float32), np.frombuffer(part.y, np.float32)
    at = 0
    for line in part.lines:
        now = slice(at, at + line["n"])
        at += line["n"]
        role = line["role"]
        look = _LINES.get(role) or {
            "color": OKABE_ITO[int(role[1:])],
            "lw": 2,
            "ls": DASHES[int(role[1:])],
        }
        axes.plot(x[now], y[now], label=line["name"], **look)
    if part.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        few = part.ylim[1] / part.ylim[0] < 1e3  # over more decades 2 and 5 would overlap
        axes.yaxis.set_minor_formatter(FuncFormatter(_two_and_five if few else _nothing))
        axes.tick_params(which="minor", labelsize=10)
    axes.set(xlim=(0, part.xmax), ylim=part.ylim, xlabel=part.xlabel, ylabel=part.ylabel)
    axes.grid(alpha=0.25)
    if part.lines and part.legend:
        where = "upper right" if part.legend == "top" else "lower right"
        rank = {"run": 0, "ghost": 1, "reference": 2}  # stable for several runs
        order = sorted(range(len(part.lines)), key=lambda i: rank.get(part.lines[i]["role"], 0))
        shown = [axes.lines[i] for i in order]
        axes.legend(handles=shown, loc=where, fontsize=10, framealpha=0.8, edgecolor="none")


def _nothing(v: float, _: Any) -> str:
    return ""


def _two_and_five(v: float, _: Any) -> str:
    lead = f"{v:e}"[0]
    return f"{v:g}" if lead in "25" else ""


def holdings(axes: Any, part: Holdings) -> None:
    """The client x label picture, sizes as bars at its right.

    Example:
        >>> from fedlearn.panels import Holdings
        >>> figure([Holdings()]).axes[0].get_xlabel()
        'label'
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=part.colname, ylabel=part.rowname)
    table = np.asarray(part.table, float)
    if not table.size:
        return
    N, C = table.shape
    blues = LinearSegmentedColormap.from_list("blue", ["#FFFFFF", BLUE])
    axes.grid(False)
    axes.imshow(table, cmap=blues, aspect="auto", vmin=0, interpolation="nearest")
    every = max(1, C // 12)
    axes.set_xticks(range(0, C, every), part.names[::every])
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    bars = axes.inset_axes((1.03, 0, 0.14, 1), sharey=axes)
    bars.barh(range(N), table.sum(1), color="#666666", height=0.85)
    bars.set_axis_off()
    sizes = f"examples\n(most {table.sum(1).max():.0f})"
    bars.text(0, -0.05, sizes, fontsize=9, transform=bars.transAxes, va="top")
    _corner(axes, f"darkest: {table.max():.0f} examples")
    if part.note:
        axes.set_xlabel(f"{part.colname}\n{part.note}")


def dots(axes: Any, part: Dots) -> None:
    """Each client's accuracy, stacked where they meet, the worst one named.

    Example:
        >>> from fedlearn.panels import Dots
        >>> figure([Dots()]).axes[0].get_xlabel()[:8]
        'accuracy'
    """
    axes.set(xlim=(-0.02, 1.02), xlabel=part.xlabel, yticks=[])
    axes.spines["left"].set_visible(False)
    each = part.each[np.isfinite(part.each)]
    if not len(each):
        axes.set_ylim(0, 1)
        return
    height: dict[int, int] = {}
    order = np.argsort(np.where(np.isfinite(part.each), part.each, np.inf))[: len(each)]
    xs, ys = [], []
    for k in order:
        column = round(float(part.each[k]) * 40)
        height[column] = height.get(column, 0) + 1
        xs.append(part.each[k])
        ys.append(height[column])
    top = max(max(height.values()) * 1.25, 6)
    axes.scatter(xs[1:], ys[1:], s=28, color=BLUE, alpha=0.75, linewidths=0)
    axes.scatter(xs[:1], ys[:1], s=70, color=VERMILION, edgecolors=VERMILION, marker="o")
    axes.axvline(each.mean(), color=INK, lw=1.3, ls="--")
    axes.set_ylim(1 - top * 0.06, top)
    k = int(order[0])
    right = xs[0] > 0.55
    axes.annotate(
        f"worst: client {k}, {part.each[k]:.2f}",
        (xs[0], 1),
        xytext=(xs[0], top * 0.6),
        ha="right" if right else "left",
        color=VERMILION,
        fontsize=10,
        arrowprops={"arrowstyle": "-", "color": VERMILION},
    )
    _corner(axes, f"mean {each.mean():.2f}   {part.drift}".replace("ₖ", "$_k$").rstrip())


def _corner(axes: Any, text: str) -> None:
    """A remark at the right above the picture, beside its title."""
    axes.set_title(text, loc="right", fontsize=9, color="#444444")


def plane(axes: Any, part: Plane) -> None:
    """Contours, points and paths with equal aspect.

    Example:
        >>> from fedlearn.panels import Plane
        >>> figure([Plane()]).axes[0].get_aspect()
        1.0
    """
    for e in part.scene.get("contours", ()):
        for level in e["levels"]:
            x, y = ellipse(e["center"], e["matrix"], level)
            style = "--" if e.get("dashed") else "-"
            axes.plot(x, y, style, color=OKABE_ITO[e.get("color", 0)], lw=1.2, alpha=0.7)
    for q in part.scene.get("paths", ()):
        xy, color = np.asarray(q["points"], float), OKABE_ITO[q.get("color", 0)]
        axes.plot(*xy.T, "--" if q.get("dashed") else "-", color=color, lw=2)
        if len(xy) > 1 and not np.allclose(xy[-1], xy[-2]):
            arrow = {"arrowstyle": "-|>", "color": color, "lw": 2}
            axes.annotate("", xy[-1], xytext=xy[-2], arrowprops=arrow)
    marks = {"dot": "o", "cross": "x", "star": "*", "square": "s", "diamond": "D"}
    for p in part.scene.get("points", ()):
        mark, color = p.get("mark", "dot"), OKABE_ITO[p.get("color", 0)]
        axes.plot(*p["at"], marks[mark], color=color, ms=13 if mark == "star" else 8, mew=2)
    axes.set(xlim=part.xlim, ylim=part.ylim, xlabel=part.xlabel, ylabel=part.ylabel)
    axes.set_aspect("equal", adjustable="box")
    axes.grid(alpha=0.2)


def ellipse(center: Any, matrix: Any, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of {theta: (theta - center)' A (theta - center) / 2 = level}.

    Example:
        >>> x, y = ellipse((0, 0), [[1, 0], [0, 4]], 0.5)
        >>> round(float(x.max()), 2), round(float(y.max()), 2)
        (1.0, 0.5)
    """
    values, vectors = np.linalg.eigh(np.asarray(matrix, float))
    if values[0] <= 0 or level <= 0:
        return np.empty(0), np.empty(0)
    t = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(t), np.sin(t)]) * np.sqrt(2 * level / values)[:, None]
    x, y = vectors @ circle + np.asarray(center, float)[:, None]
    return x, y
