"""Data sets by name: in the wheel, and through torchvision."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import check, one_of
from ..partition.plain import distinct
from ..rng import Use, numpy_rng
from . import pictures
from .arrays import check_finite, tensor


class Dataset(NamedTuple):
    """Training and test examples of one problem.

    Attributes:
        x: (n, features) float32 in [0, 1] (the toy plane: in [-1, 1]; made by a formula: any).
            Pictures lie flat: ``x.unflatten(1, shape)`` shows them.
        y: (n,) int64 classes, or float32 targets when ``classes`` is 0 (regression). Of your own
            data (n, ...): what the loss compares with the scores.
        x_test: (m, features).
        y_test: (m,), or (m, ...).
        classes: C, or 0 for regression.
        name: ``"digits"``; ``"digits (fallback)"`` when another was asked for and missing.
        shape: Shape of one example as a picture, ``(8, 8)``; empty when it isn't one.
        about: Where the data comes from.
        group: (n,) int64: the natural client of each example, one that nobody dealt out, from 0
            on; None where none is known. ``partition.by_attribute(d.group)`` splits by it.
        group_test: (m,) the same of the test examples.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    name: str
    shape: tuple[int, ...] = ()
    about: str = ""
    group: Tensor | None = None
    group_test: Tensor | None = None

    # tensors can't be compared: the same only as itself
    __eq__, __ne__, __hash__ = object.__eq__, object.__ne__, object.__hash__  # type: ignore


def load(
    name: str = "digits",
    *,
    fallback: str | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a data set; the first five need no network and no file.

    ======================  =================================================================
    ``digits``              1,797 handwritten digits, 8x8 (the default), 10 classes
    ``breast_cancer``       569 tumours, 30 measurements, 2 classes
    ``wine``                178 wines, 13 measurements, 3 classes
    ``diabetes``            442 patients, 10 measurements, a number to predict
    ``toy``                 600 points of a plane in 3 interleaved arms
    ``mnist``               70,000 handwritten digits, 28x28
    ``fashion_mnist``       70,000 pictures of clothes, 28x28
    ``cifar10``             60,000 colour pictures, 3x32x32
    ======================  =================================================================

    The digits have natural clients: they were written on copies of one form, and the order of the
    labels still shows fourteen of them. ``group`` says on which, 0 to 13, a digit was written: 122
    to 130 digits a form, about 13 of each class. UCI counts 13 writers in this part and does not
    say who wrote what; so a form is by one hand, as far as we know, but two may be by the same.

    Args:
        name: One of the names above.
        fallback: Loaded instead when ``name`` can't be had; what is printed says so and why, and
            the result's name ends in ``(fallback)``.
        folder: For the last three: where torchvision's files lie, or are put by the one download;
            None for :func:`data_folder`. A ``~`` is the home folder.
        seed: Of the training/test split of the first five (80 % / 20 %).

    Raises:
        ValueError: If the name is unknown.
        FileNotFoundError: If the files are missing or damaged and can't be downloaded, and there is
            no fallback. The message says what failed, why, and where to put the files.

    Example:
        >>> digits = load("digits")
        >>> digits.x.shape, digits.x_test.shape, digits.classes
        (torch.Size([1437, 64]), torch.Size([360, 64]), 10)
        >>> digits.group.unique().tolist() == list(range(14))
        True
    """
    for asked in filter(None, (name, fallback)):
        if asked not in (*_SMALL, *pictures.KNOWN):
            known = ", ".join((*_SMALL, *pictures.KNOWN))
            raise ValueError(f"load: unknown data set {asked!r}; known are {known}, e.g. 'digits'")
    if name in _SMALL:
        return _split(name, _SMALL[name](seed), seed)
    try:
        (x, y), (x_test, y_test) = pictures.read(name, folder)
        _, about, shape = pictures.KNOWN[name]
        return Dataset(x, y, x_test, y_test, 10, name, shape, about)
    except FileNotFoundError as missing:
        if fallback is None:
            raise
        print(f"{str(missing).rsplit(', or use load', 1)[0]}.")
        print(f"Using {fallback} instead: results are marked '{fallback} (fallback)'.")
        data = load(fallback, folder=folder, seed=seed)
        return data._replace(name=f"{data.name} (fallback)")


def own(
    x: Any, y: Any, *, group: Any = None, scale: bool = False, name: str = "own data", seed: int = 0
) -> Dataset:
    """Your own examples as a :class:`Dataset`, of which every fifth is put aside for the test.

    Where the test set is given, or the numbers are tokens, write ``Dataset(x, y, ...)`` yourself.

    Args:
        x: (n, ...) numbers; or a DataFrame, whose columns but ``y`` and ``group`` are features.
        y: (n,) classes, whole numbers or text, which become 0..C-1 in sorted order; or real
            numbers, to be predicted. Of a DataFrame, the name of a column.
        group: (n,) the natural client of each example, its hospital, say; or a column's name.
        scale: Each feature to 0..1, as :func:`load` does: steps want features of like size.
        name: What panels and files call it.
        seed: Of the training/test split.

    Raises:
        ValueError: If a column isn't there, a value is missing or no number, or lengths differ.

    Example:
        >>> d = own([[1.0], [2.0], [3.0], [4.0]], ["ill", "well", "ill", "well"])
        >>> d.x.shape, d.classes, len(d.y_test), sorted(d.y.unique().tolist())
        (torch.Size([3, 1]), 2, 1, [0, 1])
    """
    if hasattr(x, "columns") and hasattr(x, "iloc"):
        table, names = x, [v for v in (y, group) if isinstance(v, str)]
        for v in names:
            one_of("own", "column", v, [*table.columns])
        y, group = (table[v] if isinstance(v, str) else v for v in (y, group))
        x = table.drop(columns=names)
    x, classes, values = tensor("own", "x", x).float(), 0, np.asarray(y)
    check_finite("own", "x", x, x.dtype)
    if values.dtype.kind == "f":
        check_finite("own", "y", tensor("own", "y", y), x.dtype)
    else:
        kinds, values = distinct("own, y", y)
        classes = len(kinds)
    clients = None if group is None else distinct("own, group", group)[1]
    fits = len(values) == len(x) == len(values if clients is None else clients)
    check("own", "x", f"{len(x)} rows", fits, "as long as y and group", "table[columns]")
    if scale:
        x = (x - x.amin(0)) / (x.amax(0) - x.amin(0)).clamp(min=torch.finfo(x.dtype).tiny)
    small = x.numpy(), values, classes, tuple(x.shape[1:]) if x.dim() > 2 else (), "", clients
    return _split(name, small, seed)


# -- in the wheel ---------------------------------------------------------------------------------

# x, y, classes, shape, about, group
_Small = tuple[np.ndarray, np.ndarray, int, tuple[int, ...], str, np.ndarray | None]


def _digits(seed: int) -> _Small:
    from sklearn.datasets import load_digits

    d = load_digits()
    about = "UCI optical digits, test part (Alpaydin, 1998)"
    return d.data / 16.0, d.target, 10, (8, 8), about, _forms(d.target)


def _forms(labels: np.ndarray) -> np.ndarray:
    """Which form each digit was written on, from the order of the labels alone.

    Every form asks for the same 130 digits in the same order and opens with 0 1 2 ... 9 three
    times. A few digits are missing, so an opening is what is read, and only once in 100 digits.
    """
    starts: list[int] = []
    for opening in re.finditer("(?=0?1234567890123456)", "".join(map(str, labels))):
        if not starts or opening.start() > starts[-1] + 100:
            starts.append(opening.start())
    return np.searchsorted(starts, np.arange(len(labels)), side="right") - 1


def _table(loader: str, classes: int, about: str) -> Callable[[int], _Small]:
    def read(seed: int) -> _Small:
        import sklearn.datasets

        d = getattr(sklearn.datasets, loader)()
        low, high = d.data.min(0), d.data.max(0)
        y = d.target if classes else d.target / d.target.max()
        return (d.data - low) / (high - low), y, classes, (), about, None

    return read


def _toy(seed: int) -> _Small:
    """Three spiral arms of 200 points, in [-1, 1]^2."""
    rng = numpy_rng(seed, Use.TOY)
    arm, at = np.repeat(np.arange(3), 200), np.tile(np.linspace(0.08, 1.0, 200), 3)
    angle = 2 * np.pi * arm / 3 + 2.5 * at + rng.normal(0, 0.15, 600)
    x = at[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return x, arm, 3, (), "made up: three spiral arms", None


_SMALL: dict[str, Callable[[int], _Small]] = {
    "digits": _digits,
    "breast_cancer": _table("load_breast_cancer", 2, "Wisconsin diagnostic (Wolberg, 1995)"),
    "wine": _table("load_wine", 3, "UCI wine (Aeberhard, Forina, 1992)"),
    "diabetes": _table("load_diabetes", 0, "diabetes progression (Efron et al., 2004)"),
    "toy": _toy,
}


def _split(name: str, small: _Small, seed: int) -> Dataset:
    x, y, classes, shape, about, group = small
    order = numpy_rng(seed, Use.SPLIT).permutation(len(y))
    test, train = np.split(order, [-(-len(y) // 5)])
    xs = torch.from_numpy(np.asarray(x, np.float32))
    ys = torch.from_numpy(np.asarray(y, np.int64 if classes else np.float32))
    g = None if group is None else torch.from_numpy(np.asarray(group, np.int64))
    groups = (None, None) if g is None else (g[train], g[test])
    return Dataset(xs[train], ys[train], xs[test], ys[test], classes, name, shape, about, *groups)
