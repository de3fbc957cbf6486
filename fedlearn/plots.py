"""Static figures: (axes, history) -> artists. Matplotlib; the live ones are in ``panels``.

One look for the whole course: this run blue and solid, the last run grey and dashed, all data in
one place black and dotted, clients in the Okabe-Ito order; no difference by colour alone.
"""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from .checks import check
from .history import History

# The one palette, of lessons, live panels and their style sheet. Okabe and Ito's yellow can't be
# seen on white: grey stands there. Text and what all data in one place gives are in ink.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#7A7A7A", "#111111"
BLACK = INK
OKABE_ITO = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY, INK)
HALO = [withStroke(linewidth=3, foreground="white")]  # path_effects of a text that lies on lines
DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), ":")

SHEET: Any = {
    "figure.figsize": (8.0, 4.0),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.titleweight": "regular",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 2.2,
    "legend.frameon": False,
    "axes.prop_cycle": cycler(color=OKABE_ITO[:6]) + cycler(linestyle=DASHES),
    "image.cmap": "Blues",
}


def style() -> AbstractContextManager[None]:
    """The course's style sheet, for a ``with`` block; a notebook sets it once with :func:`use`.

    Example:
        >>> with style():
        ...     mpl.rcParams["font.size"]
        13.0
    """
    return mpl.rc_context(SHEET)


def use() -> None:
    """Set the course's style sheet for the rest of this notebook.

    Example:
        >>> with mpl.rc_context():
        ...     use()
        ...     mpl.rcParams["axes.grid"]
        True
    """
    mpl.rcParams.update(SHEET)


def curves(
    ax: Axes, histories: Mapping[str, History], *, x: str = "round", y: str = "loss"
) -> list[Line2D]:
    """One line a run, labelled, each with its own dash. -> the lines

    Args:
        ax: Where to draw.
        histories: Label -> :class:`~fedlearn.history.History`.
        x: Column on the x axis: ``"round"`` or ``"bytes"`` (drawn in MB).
        y: Column on the y axis: ``"loss"``, ``"accuracy"``, ``"train_loss"``; ValueError if a
            history has none.

    Example:
        >>> from matplotlib.figure import Figure
        >>> h = History({"round": [1, 2], "loss": [2.3, 1.9]}, None)
        >>> line, = curves(Figure().add_subplot(), {"E = 1": h})
        >>> line.get_label()
        'E = 1'
    """
    good = isinstance(histories, Mapping) and len(histories) > 0
    check("curves", "histories", histories, good, "label -> History, at least one", "{'run': h}")
    names = {
        "round": "round",
        "bytes": "MB sent by all clients and the server",
        "loss": "test loss",
        "accuracy": "test accuracy",
        "train_loss": "training loss",
    }
    lines = []
    looks = itertools.cycle(zip(OKABE_ITO[:6], DASHES, strict=True))
    for (label, h), (color, dash) in zip(histories.items(), looks, strict=False):
        xs, ys = h[x] / (1e6 if x == "bytes" else 1), h[y]
        seen = np.isfinite(ys)
        lines += ax.plot(xs[seen], ys[seen], color=color, linestyle=dash, label=label)
    ax.set(xlabel=names.get(x, x), ylabel=names.get(y, y))
    if len(histories) > 1:
        ax.legend()
    return lines


def holdings(ax: Axes, counts: np.ndarray, *, names: Sequence[str] | None = None) -> list[Any]:
    """Who holds what: a row per client, a column per label, darker for more. -> image, sizes' texts

    Args:
        ax: Where to draw.
        counts: (N, C) from :func:`fedlearn.partition.counts`.
        names: C names of the labels; None for 0, 1, ...

    Example:
        >>> from matplotlib.figure import Figure
        >>> len(holdings(Figure().add_subplot(), np.array([[3, 0], [1, 2]])))
        3
    """
    counts = np.asarray(counts)
    good = counts.ndim == 2 and counts.size > 0 and counts.dtype.kind in "iu"
    good = good and bool((counts >= 0).all())
    rule = "(N, C) whole numbers >= 0"
    check("holdings", "counts", counts, good, rule, "partition.counts(y, parts)")
    N, C = counts.shape
    fits = names is None or len(names) == C
    check("holdings", "names", names, fits, f"{C} names, one a label", "['cat', 'dog']")
    image = ax.imshow(counts, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    artists: list[Any] = [image]
    for k, size in enumerate(counts.sum(1)):
        if N <= 30:
            artists.append(ax.text(C - 0.4, k, str(size), va="center", fontsize=10))
    ax.set(xlabel="label", ylabel="client")
    ax.set_xticks(range(C), names or [str(c) for c in range(C)])
    every = max(1, -(-N // 10))
    ax.set_yticks(range(0, N, every))
    ax.grid(False)
    return artists


def contours(
    ax: Axes,
    f: Any,
    *,
    span: tuple[float, float, float, float],
    color: str = BLUE,
    levels: Any = 8,
    linestyle: Any = "-",
) -> Any:
    """Contour lines of a function of two parameters. -> Matplotlib's contour set

    Args:
        ax: Where to draw.
        f: (theta_1 (m, m), theta_2 (m, m)) -> values (m, m).
        span: theta_1 from and to, theta_2 from and to.
        color: Of the lines.
        levels: As for Matplotlib's ``contour``.
        linestyle: A dash as for Matplotlib, so that two functions differ by more than a colour.

    Example:
        >>> from matplotlib.figure import Figure
        >>> c = contours(Figure().add_subplot(), lambda a, b: a**2 + b**2, span=(-1, 1, -1, 1))
        >>> len(c.levels) > 3
        True
    """
    good = len(span) == 4 and all(np.isfinite(span)) and span[0] < span[1] and span[2] < span[3]
    rule = "finite: theta_1 from and to, theta_2 from and to"
    check("contours", "span", span, good, rule, "(-2, 2, -1, 3)")
    a, b = np.meshgrid(np.linspace(*span[:2], 120), np.linspace(*span[2:], 120))
    look: Any = {"colors": color, "linestyles": [linestyle], "linewidths": 1, "alpha": 0.7}
    values = np.asarray(f(a, b))
    good = values.shape == a.shape and bool(np.isfinite(values).any())
    rule = f"values of shape {a.shape}, not all NaN, for parameters of that shape"
    check("contours", "f(a, b)", values.shape, good, rule, "lambda a, b: a**2 + b**2")
    out = ax.contour(a, b, values, levels=levels, **look)
    ax.set(xlabel=r"$\theta_1$", ylabel=r"$\theta_2$", aspect="equal")
    return out


def digit(ax: Axes, x: Any, shape: Sequence[int], title: str = "") -> Any:
    """One example as a picture, without axes. -> the image

    Args:
        ax: Where to draw.
        x: Its features, in [0, 1].
        shape: ``Dataset.shape``: (h, w) or (3, h, w).
        title: Above it.

    Example:
        >>> from matplotlib.figure import Figure
        >>> image = digit(Figure().add_subplot(), np.zeros(64), (8, 8), "0")
        >>> image.get_array().shape
        (8, 8)
    """
    picture, shape = np.asarray(x), tuple(shape)
    fits = len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3, 4))
    fits = fits and picture.size == int(np.prod(shape))
    rule = f"(h, w) or (3, h, w) of {picture.size} numbers"
    check("digit", "shape", shape, fits, rule, "digits.shape")
    finite = picture.dtype.kind in "biuf" and bool(np.isfinite(picture).all())
    check("digit", "x", picture, finite, "finite real numbers", "digits.x[0]")
    picture = picture.reshape(shape)
    if picture.ndim == 3:
        picture = picture.transpose(1, 2, 0)
    image = ax.imshow(picture, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title, fontsize=12)
    return image


def show(figure: Figure, alt: str) -> None:
    """Show a figure under a cell with its text alternative: a sentence for who can't see it.

    The sentence stands where a notebook keeps it (``metadata["image/png"]["alt"]``), where pages
    made from a notebook take it from, and in place of Matplotlib's ``<Figure size ...>``.

    Args:
        figure: The figure, closed afterwards.
        alt: What there is to see, in one sentence: the axes, and what the lesson reads off them.

    Raises:
        ValueError: If ``alt`` isn't a sentence: four words or more, and a full stop.

    Example:
        >>> show(Figure(), "Loss against rounds: FedAvg falls fast, then stays above the minimum.")
        Loss against rounds: FedAvg falls fast, then stays above the minimum.
    """
    from IPython.core.getipython import get_ipython
    from IPython.core.pylabtools import print_figure
    from IPython.display import display
    from matplotlib import pyplot

    sentence = isinstance(alt, str) and len(alt.split()) > 3 and alt.endswith(".")
    rule, like = "a sentence with a full stop", '"Loss against rounds: it falls."'
    check("show", "alt", alt, sentence, rule, like)
    if get_ipython() is None:  # a script: there is nowhere to show it
        print(alt)
    else:
        both = {"image/png": print_figure(figure, "png", base64=True), "text/plain": alt}
        display(both, metadata={"image/png": {"alt": alt}}, raw=True)
    pyplot.close(figure)
