"""The parts in one figure, for places without a kernel: Matplotlib, object-oriented, no pyplot.

Drawn on the main thread only: Matplotlib used from another thread breaks the reader's own plots.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from matplotlib import font_manager, rc_context, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .parts.base import Part


def figure(
    parts: Sequence[Part], *, title: str = "", size: tuple[float, float] | None = None
) -> Figure:
    """All parts in one figure, laid out as in the panel, in fonts that have its language."""
    more = _here(*parts[0].say.fonts)
    with rc_context({"font.family": [*rcParams["font.family"], *more]}), _without_warnings():
        return _laid_out(parts, title, size)


@lru_cache
def _here(*wanted: str) -> list[str]:
    """The fonts that this machine has; Matplotlib's list is as old as its cache."""
    if wanted and not {*wanted} & {*font_manager.get_font_names()}:
        for path in font_manager.findSystemFonts():
            with contextlib.suppress(Exception):  # not every file is a font that it can read
                font_manager.fontManager.addfont(path)
    return [f for f in wanted if f in font_manager.get_font_names()]


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Boxes where no font has the letter, plain where none is bold: not worth a warning each."""
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def _laid_out(parts: Sequence[Part], title: str, size: tuple[float, float] | None) -> Figure:
    n = len(parts)
    rows, columns = (2, 2) if n > 2 else (1, n)
    fig = Figure(figsize=size or (9.6, 2.9 * rows if n > 1 else 4.2), dpi=100, layout="constrained")
    fig.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    FigureCanvasAgg(fig)
    grid = fig.add_gridspec(rows, columns)
    places = [grid[i % rows, i // rows] for i in range(n)]
    if n == 3:
        places[2] = grid[:, 1]
    drawn = []
    for part, place in zip(parts, places, strict=True):
        axes = fig.add_subplot(place)
        axes.set_title(part.title, loc="left", fontsize=11, fontweight="bold")
        axes.tick_params(labelsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        part.paint(axes)
        axes.xaxis.label.set_fontsize(10)
        axes.yaxis.label.set_fontsize(10)
        drawn.append((part, axes))
    if title:
        fig.suptitle(title, x=0.01, ha="left", fontsize=11)
    fig.draw_without_rendering()  # where things lie is known only now
    for part, axes in drawn:
        part.finish(axes)
    return fig


def png(fig: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same picture: good for version control."""
    out = io.BytesIO()
    small: dict[str, Any] = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
    with _without_warnings():
        fig.savefig(out, format="png", facecolor="white", **small)
    return out.getvalue()
