"""Examples: data sets in the wheel, made up, and through torchvision."""

import os
import pickle
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .checks import not_negative, whole
from .rng import Use, numpy_rng
from .task import Task, cross_entropy


class Dataset(NamedTuple):
    """Training and test examples of one problem.

    Attributes:
        x: (n, features) float32 in [0, 1] (the toy plane: in [-1, 1]; ``synthetic``: unbounded).
            Pictures lie flat: ``x.unflatten(1, shape)`` shows them.
        y: (n,) int64 classes, or float32 targets when ``classes`` is 0 (regression).
        x_test: (m, features).
        y_test: (m,).
        classes: C, or 0 for regression.
        name: ``"digits"``; ``"digits (fallback)"`` when another was asked for and missing.
        shape: Shape of one example as a picture, ``(8, 8)``; empty when it isn't one.
        about: Where the data comes from.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    name: str
    shape: tuple[int, ...] = ()
    about: str = ""


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

    Args:
        name: One of the names above.
        fallback: Loaded instead when ``name`` can't be had; what is printed says so and why, and
            the result's name ends in ``(fallback)``.
        folder: For the last three: where torchvision's files lie, or are put by the one download;
            None for :func:`data_folder`.
        seed: Of the training/test split of the first five (80 % / 20 %).

    Raises:
        ValueError: If the name is unknown.
        FileNotFoundError: If the files are missing or damaged and can't be downloaded, and there is
            no fallback. The message says what failed, why, and where to put the files.

    Example:
        >>> digits = load("digits")
        >>> digits.x.shape, digits.x_test.shape, digits.classes
        (torch.Size([1437, 64]), torch.Size([360, 64]), 10)
    """
    for asked in filter(None, (name, fallback)):
        if asked not in (*_SMALL, *_TORCHVISION):
            known = ", ".join((*_SMALL, *_TORCHVISION))
            raise ValueError(f"load: unknown data set {asked!r}; known are {known}, e.g. 'digits'")
    if name in _SMALL:
        return _split(name, _SMALL[name](seed), seed)
    try:
        return _torchvision(name, folder)
    except FileNotFoundError as missing:
        if fallback is None:
            raise
        print(f"{str(missing).rsplit(', or use load', 1)[0]}.")
        print(f"Using {fallback} instead: results are marked '{fallback} (fallback)'.")
        data = load(fallback, folder=folder, seed=seed)
        return data._replace(name=f"{data.name} (fallback)")


# -- in the wheel ---------------------------------------------------------------------------------

_Small = tuple[np.ndarray, np.ndarray, int, tuple[int, ...], str]  # x, y, classes, shape, about


def _digits(seed: int) -> _Small:
    from sklearn.datasets import load_digits

    d = load_digits()
    return d.data / 16.0, d.target, 10, (8, 8), "UCI optical digits, test part (Alpaydin, 1998)"


def _table(loader: str, classes: int, about: str) -> Callable[[int], _Small]:
    def read(seed: int) -> _Small:
        import sklearn.datasets

        d = getattr(sklearn.datasets, loader)()
        low, high = d.data.min(0), d.data.max(0)
        y = d.target if classes else d.target / d.target.max()
        return (d.data - low) / (high - low), y, classes, (), about

    return read


def _toy(seed: int) -> _Small:
    """Three spiral arms of 200 points, in [-1, 1]^2."""
    rng = numpy_rng(seed, Use.TOY)
    arm, at = np.repeat(np.arange(3), 200), np.tile(np.linspace(0.08, 1.0, 200), 3)
    angle = 2 * np.pi * arm / 3 + 2.5 * at + rng.normal(0, 0.15, 600)
    x = at[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return x, arm, 3, (), "made up: three spiral arms"


_SMALL: dict[str, Callable[[int], _Small]] = {
    "digits": _digits,
    "breast_cancer": _table("load_breast_cancer", 2, "Wisconsin diagnostic (Wolberg, 1995)"),
    "wine": _table("load_wine", 3, "UCI wine (Aeberhard, Forina, 1992)"),
    "diabetes": _table("load_diabetes", 0, "diabetes progression (Efron et al., 2004)"),
    "toy": _toy,
}


def _split(name: str, small: _Small, seed: int) -> Dataset:
    x, y, classes, shape, about = small
    order = numpy_rng(seed, Use.SPLIT).permutation(len(y))
    test, train = np.split(order, [-(-len(y) // 5)])
    xs = torch.from_numpy(np.asarray(x, np.float32))
    ys = torch.from_numpy(np.asarray(y, np.int64 if classes else np.float32))
    return Dataset(xs[train], ys[train], xs[test], ys[test], classes, name, shape, about)


# -- made up, with its clients ---------------------------------------------------------------------


def synthetic(
    alpha: float, beta: float, n_clients: int = 30, seed: int = 0
) -> tuple[Dataset, list[np.ndarray]]:
    """FedProx's synthetic(alpha, beta): every client has a model and a cloud of its own.

    Client k holds floor(lognormal(4, 2)) + 50 examples, nine in ten of them for training, with
    60 features and 10 classes:

    - y = argmax(W_k x + b_k), every entry of W_k and b_k ~ N(u_k, 1), u_k ~ N(0, alpha);
    - x ~ N(v_k, Sigma), Sigma = diag(j^-1.2), every entry of v_k ~ N(B_k, 1), B_k ~ N(0, beta).

    ``beta`` is how much the clients' examples differ. ``alpha`` was meant for their models, but u_k
    moves all ten scores of an example alike, so that no label follows it: what makes the models
    differ, at (0, 0) too, is that every client draws W_k and b_k for itself.

    Args:
        alpha: Variance of u_k, >= 0, else ValueError.
        beta: Variance of B_k, >= 0, else ValueError.
        n_clients: N >= 1, else ValueError; 30 in the paper.
        seed: Of all draws. Client k's depend on (seed, k) alone, its sizes not on alpha and beta.

    Returns:
        The :class:`Dataset`, all clients' test examples in one test set, and N index arrays.

    Example:
        >>> made_up, parts = synthetic(1, 1)
        >>> made_up.x.shape[1], made_up.classes, len(parts)
        (60, 10, 30)

    Reference:
        Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, 2020, "Federated optimization in heterogeneous
        networks", §5.1.

    Differs from the paper's code: N(0, beta) has the variance beta, as the paper writes it; its
    code takes beta for the standard deviation, which is another number unless it is 0 or 1. (Nine
    in ten for training is the code's; the paper says eight.)
    """
    not_negative("synthetic", "alpha", alpha, 0.5)
    not_negative("synthetic", "beta", beta, 0.5)
    whole("synthetic", "n_clients", n_clients, example=30)
    clients = [_synthetic_client(alpha, beta, seed, k) for k in range(n_clients)]
    cuts = [len(y) - len(y) // 10 for _, y in clients]  # the rest is for testing
    x, x_test, y, y_test = (
        torch.cat([torch.from_numpy(client[i][part]) for client, part in zip(clients, parts)])
        for i in (0, 1)
        for parts in ([slice(c) for c in cuts], [slice(c, None) for c in cuts])
    )
    name, about = f"synthetic({alpha}, {beta})", "made up as in FedProx (Li et al., 2020)"
    held = np.split(np.arange(len(y)), np.cumsum(cuts)[:-1])
    return Dataset(x, y, x_test, y_test, 10, name, (), about), held


def _synthetic_client(
    alpha: float, beta: float, seed: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    rng = numpy_rng(seed, Use.TOY, k)
    n = int(rng.lognormal(4, 2)) + 50
    u, B = np.sqrt([alpha, beta]) * rng.normal(size=2)
    W, b, v = rng.normal(u, 1, (10, 60)), rng.normal(u, 1, 10), rng.normal(B, 1, 60)
    x = v + np.arange(1, 61) ** -0.6 * rng.normal(size=(n, 60))  # j^-0.6 squared is j^-1.2
    return x.astype(np.float32), (x @ W.T + b).argmax(1)


# -- through torchvision --------------------------------------------------------------------------

_TORCHVISION = {
    "mnist": ("MNIST", "LeCun, Cortes, Burges, 1998", (28, 28)),
    "fashion_mnist": ("FashionMNIST", "Xiao, Rasul, Vollgraf, 2017", (28, 28)),
    "cifar10": ("CIFAR10", "Krizhevsky, 2009", (3, 32, 32)),
}
_TIMEOUT_S = 15.0  # torchvision sets none: without it a dead network hangs the lesson


def data_folder(folder: str | Path | None = None) -> Path:
    """Where torchvision's files are looked for: ``folder``, $FEDLEARN_DATA, or the user's cache.

    Example:
        >>> data_folder("somewhere").name
        'somewhere'
    """
    from platformdirs import user_cache_path

    return Path(folder or os.environ.get("FEDLEARN_DATA") or user_cache_path("fedlearn"))


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _torchvision(name: str, folder: str | Path | None) -> Dataset:
    from torchvision import datasets

    cls, about, shape = _TORCHVISION[name]
    root = data_folder(folder)
    try:
        with _socket_timeout(_TIMEOUT_S):
            parts = [_tensors(_read(getattr(datasets, cls), root, t)) for t in (True, False)]
    except _DAMAGED as e:
        why = f"a file there is damaged: delete it ({str(e).strip() or type(e).__name__})"
        raise FileNotFoundError(_missing(name, cls, root, why)) from e
    except (RuntimeError, OSError, HTTPException) as e:  # URLError is an OSError
        found = re.search(r"urlopen error (?:\[Errno [^]]*\] )?([^>]*)", str(e))
        why = f"download failed: {found[1] if found else ' '.join(str(e).split())[:120]}"
        raise FileNotFoundError(_missing(name, cls, root, why)) from e
    (x, y), (x_test, y_test) = parts
    return Dataset(x, y, x_test, y_test, 10, name, shape, about)


class _Damaged(Exception):
    pass


# what torchvision raises when it reads a file that is cut, empty or another
_DAMAGED = (_Damaged, AssertionError, ValueError, TypeError, KeyError, EOFError, pickle.PickleError)


def _read(dataset, root: Path, train: bool):  # type: ignore[no-untyped-def]
    """From the folder; only what isn't there is downloaded."""
    try:
        return dataset(root, train=train)
    except RuntimeError as e:
        if "not found" not in str(e):  # torchvision's words: "Dataset not found"
            raise _Damaged(e) from e
        return dataset(root, train=train, download=True)


def _missing(name: str, cls: str, root: Path, why: str) -> str:
    inside = "cifar-10-batches-py" if cls == "CIFAR10" else f"{cls}/raw"
    return (
        f"load: no {name} in {_short(root)} ({why}). Put torchvision's files into "
        f"{_short(root / inside)}, or set FEDLEARN_DATA to a folder that has them, or use "
        f"load({name!r}, fallback='digits')."
    )


def _short(path: Path) -> str:
    """With ~ for the home folder: a message may end up in a stored notebook."""
    return str(path).replace(str(Path.home()), "~")


def _tensors(part) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    x = torch.as_tensor(part.data)
    if len(x) != len(part.targets):
        raise _Damaged(f"{len(x)} pictures, {len(part.targets)} labels")
    if x.dim() == 4:  # CIFAR: channels last
        x = x.permute(0, 3, 1, 2)
    return x.flatten(1).float().div_(255), torch.as_tensor(part.targets)


def check_population(
    name: str, task: Task | None, x: Tensor, y: Tensor, parts: Sequence[np.ndarray]
) -> None:
    """Raise the ``ValueError`` of ``name`` for what can be known to be wrong before a run.

    Example:
        >>> check_population("Simulated", None, torch.ones(3, 2), torch.ones(3), [np.array([3])])
        Traceback (most recent call last):
        ...
        ValueError: Simulated: every client needs rows from 0..2, got 3..3 for client 0; ...
    """
    if len(x) != len(y):
        raise ValueError(f"{name}: x and y must have one row an example, got {len(x)} and {len(y)}")
    if not all(part.isfinite().all() for part in x.split(10_000)):  # in parts: isfinite copies
        raise ValueError(f"{name}: x holds inf or NaN; clean it, e.g. with x.nan_to_num()")
    if not len(parts):
        raise ValueError(f"{name}: needs at least one client, got no parts, e.g. [np.arange(100)]")
    for k, rows in enumerate(map(np.asarray, parts)):
        if len(rows) and not np.issubdtype(rows.dtype, np.integer):
            raise ValueError(
                f"{name}: parts must be integer rows of x and y, got {rows.dtype} for client "
                f"{k}, e.g. np.flatnonzero(mask) for a mask"
            )
        if not len(rows) or rows.min() < 0 or rows.max() >= len(y):
            got = f"{rows.min()}..{rows.max()}" if len(rows) else "none"
            raise ValueError(
                f"{name}: every client needs rows from 0..{len(y) - 1}, got {got} for client "
                f"{k}; make parts with fedlearn.partition, e.g. partition.iid(y, 10, rng)"
            )
    if task is not None and task.predict is not None and task.loss is not None:
        _check_fit(name, task, x, y)  # a Task from a notebook cell may have its gradient alone


def _check_fit(name: str, task: Task, x: Tensor, y: Tensor) -> None:
    """The model takes these examples, and its loss these labels."""
    few = x[:2].cpu()
    try:
        scores = task.predict(task.theta0, few)
    except (RuntimeError, ValueError, IndexError) as e:
        if str(e).startswith("from_module: "):  # of the module itself, with its cure
            raise
        raise ValueError(
            f"{name}: the model can't take examples of shape {tuple(x.shape[1:])} ({e}), "
            f"e.g. softmax_regression({x[0].numel()}, 10) for these"
        ) from e
    if task.loss is cross_entropy:
        check_labels(name, y, scores.shape[-1])
    elif task.loss(scores, y[:2].cpu()).shape != (len(few),):
        raise ValueError(
            f"{name}: the model's scores of shape {tuple(scores.shape)} don't give one loss an "
            f"example, e.g. one score, nn.Linear({x[0].numel()}, 1), for squared_error"
        )


def check_labels(name: str, y: Tensor, classes: int) -> None:
    """Raise the ``ValueError`` of function ``name`` if a label is outside 0..classes-1.

    Example:
        >>> check_labels("load", torch.tensor([0, 7]), 5)
        Traceback (most recent call last):
        ...
        ValueError: load: labels must be 0..4 for a model with 5 scores, got 0..7, ...
    """
    if y.is_floating_point():
        raise ValueError(
            f"{name}: a classifier needs integer classes, got {y.dtype}, e.g. y.long(); to predict "
            f"numbers use from_module(module, squared_error)"
        )
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name}: labels must be 0..{classes - 1} for a model with {classes} scores, got "
            f"{low}..{high}, e.g. softmax_regression(64, {high + 1})"
        )
