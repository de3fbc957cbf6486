"""What a partition is, how it is checked, summarised, saved and loaded again."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check, whole
from .files import place, write_whole


class Parts(list[np.ndarray]):
    """One sorted index array per client, and what is known of them.

    Attributes:
        note: What the partitioner had to do, if anything.
        names: What the clients are called, the hospitals, say; None if they have numbers alone.

    Example:
        >>> parts = Parts([np.array([0, 2]), np.array([1])], names=["Basel", "Bern"])
        >>> len(parts), parts.note, parts.names
        (2, '', ('Basel', 'Bern'))
    """

    def __init__(self, arrays: Iterable[Any], note: str = "", names: Sequence[Any] | None = None):
        any_row = np.iinfo(np.int64).max
        own = [_own("Parts", a, f"client {k}", any_row, True) for k, a in enumerate(arrays)]
        super().__init__(map(np.sort, own))
        self.note, self.names = note, None if names is None else tuple(map(str, names))
        fits = self.names is None or len(self.names) == len(self)
        check("Parts", "names", names, fits, f"one for each of {len(self)} clients", "['a', 'b']")


def names_of(parts: Any) -> tuple[str, ...] | None:
    """What the clients are called: the keys of a dict, ``Parts.names``, or None.

    Example:
        >>> names_of({"Basel": [0, 2], "Bern": [1]}), names_of([[0, 2], [1]])
        (('Basel', 'Bern'), None)
    """
    if isinstance(parts, Mapping):
        numbers = set(parts) == set(range(len(parts)))
        return None if numbers else tuple(map(str, parts))
    return getattr(parts, "names", None)


def rows(name: str, parts: Any, n: int, *, empty: bool = False) -> list[np.ndarray]:
    """A copy of every client's rows, int64; the ``ValueError`` of ``name`` if some don't exist.

    Args:
        name: Of the function that was given them.
        parts: An array, list or tensor of rows a client; or a dict {client: rows}, in its order. A
            dict whose keys are the numbers 0..N-1 is put into theirs.
        n: Of the examples: rows are 0..n-1.
        empty: Whether a client may have none.

    Example:
        >>> rows("counts", {"Basel": [0, 2], "Bern": range(1)}, 3)
        [array([0, 2]), array([0])]
    """
    names = names_of(parts)
    if isinstance(parts, Mapping):
        parts = list(parts.values()) if names else [parts[k] for k in range(len(parts))]
    try:
        parts = list(parts)
    except TypeError:
        parts = [parts]  # a number: told below
    if not parts:
        raise ValueError(
            f"{name}: needs at least one client, got no parts, e.g. [np.arange({max(n, 1)})]"
        )
    return [_own(name, p, f"client {k}{_called(names, k)}", n, empty) for k, p in enumerate(parts)]


def _called(names: Sequence[str] | None, k: int) -> str:
    return f" ({names[k]})" if names else ""


def _own(name: str, part: Any, who: str, n: int, empty: bool) -> np.ndarray:
    """One client's rows."""
    own = np.asarray(part.cpu() if hasattr(part, "cpu") else part)
    if own.ndim != 1:
        raise ValueError(
            f"{name}: parts must be a list of rows a client, got shape {own.shape} for {who}, "
            f"e.g. partition.by_attribute(column) for a column that says who holds what"
        )
    if len(own) and own.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: parts must be integer rows of x and y, got {own.dtype} for {who}, e.g. "
            f"np.flatnonzero(mask) for a mask"
        )
    if (not len(own) and not empty) or (len(own) and (own.min() < 0 or own.max() >= n)):
        got = f"{own.min()}..{own.max()}" if len(own) else "none"
        raise ValueError(
            f"{name}: every client needs rows from 0..{n - 1}, got {got} for {who}; make parts "
            f"with fedlearn.partition, e.g. partition.iid(y, 10, rng)"
        )
    return own.astype(np.int64)


def counts(parts: list[np.ndarray], labels: np.ndarray, classes: int) -> np.ndarray:
    """How many examples of each label every client holds, (N, C): the picture "who holds what".

    Args:
        parts: N index arrays.
        labels: (n,) integer class of each example, else ValueError.
        classes: C; ValueError if a label lies outside 0..C-1.

    Example:
        >>> counts([np.array([0, 1]), np.array([2])], np.array([0, 1, 1]), 2)
        array([[1, 1],
               [0, 1]])
    """
    labels = _integers("counts", _column("counts", labels))
    held = rows("counts", parts, len(labels), empty=True)
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"counts: labels must be 0..{classes - 1}, got {labels.min()}..{labels.max()}, "
            f"e.g. classes={int(labels.max()) + 1}"
        )
    return np.stack([np.bincount(labels[p], minlength=classes) for p in held])


def summary(parts: list[np.ndarray], labels: np.ndarray, classes: int) -> str:
    """The partition as a table in plain text: sizes, number of labels, most frequent label.

    A header, a line a client, with its name if it has one, and a last line for all of them.

    Args:
        parts, labels, classes: As for :func:`counts`, which also says what raises.

    Example:
        >>> print(summary([np.array([0, 1, 2]), np.array([3])], np.array([0, 0, 1, 1]), 2))
        client  examples  labels  most frequent
             0         3       2    0 (67 %)
             1         1       1    1 (100 %)
           all         4       2    0 (50 %)
    """
    held = counts(parts, labels, classes)
    names = [*(names_of(parts) or map(str, range(len(held)))), "all"]
    wide = max(6, *map(len, names))
    lines = [f"{'client':>{wide}}  examples  labels  most frequent"]
    for name, row in zip(names, [*held, held.sum(0)], strict=True):
        top = int(row.argmax())
        share = f"{top} ({row[top] / max(row.sum(), 1):.0%})".replace("%", " %")
        lines.append(f"{name:>{wide}}  {row.sum():8}  {(row > 0).sum():6}    {share}")
    return "\n".join(lines)


def save(parts: Any, path: str | Path) -> Path:
    """Write a partition as JSON, to a temporary name first: a file is there whole or not at all.

    Args:
        parts: N arrays of row numbers, or a dict {client: rows}, with a note and names or without;
            no row twice, else ValueError.
        path: Where to; replaced if it exists, ``~`` is the home folder. It is returned.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load(save(Parts([np.array([1, 2]), np.array([0])], "a note"), f"{folder}/p.json"))
        [array([1, 2]), array([0])]
    """
    held = parts.values() if isinstance(parts, Mapping) else parts
    own = [np.asarray(p).tolist() for p in held]
    content: dict[str, Any] = {"note": getattr(parts, "note", ""), "parts": own}
    if (names := names_of(parts)) is not None:
        content["names"] = [*names]
    if wrong := _wrong(content):
        raise ValueError(f"partition.save: {wrong}, e.g. partition.iid(labels, 10, rng)")
    return write_whole(path, json.dumps(content).encode())


def load(path: str | Path) -> Parts:
    """Read a partition that :func:`save` wrote, with its note and its names.

    Args:
        path: FileNotFoundError if no file is there, ValueError if it is no saved partition, or if
            a row is there twice.

    Example:
        >>> load("nowhere.json")
        Traceback (most recent call last):
        ...
        FileNotFoundError: ...
    """
    content = place(path).read_bytes()
    try:
        saved = json.loads(content)
        wrong = _wrong(saved)
    except (ValueError, RecursionError) as e:
        saved, wrong = {}, f"it is no JSON, {type(e).__name__}"
    if wrong:
        raise ValueError(
            f"partition.load: needs a file that partition.save wrote, got {Path(path).name} "
            f"({wrong}), e.g. partition.save(parts, 'parts.json')"
        )
    own = [np.array(p, dtype=np.int64) for p in saved["parts"]]
    return Parts(own, saved["note"], saved.get("names"))


def _wrong(saved: Any) -> str:
    """What keeps JSON's values from being a partition, in words; nothing if they are one."""
    if not isinstance(saved, dict) or not {"note", "parts"} <= set(saved):
        return "needs a note and parts"
    if not isinstance(saved["note"], str):
        return f"the note must be text, got {saved['note']!r}"
    if not isinstance(saved["parts"], list):
        return f"parts must be a list, got {type(saved['parts']).__name__}"
    names = saved.get("names")
    if names is not None and not (isinstance(names, list) and len(names) == len(saved["parts"])):
        return f"names must be a list, one a client, got {names!r}"
    owner: dict[int, int] = {}
    for k, rows in enumerate(saved["parts"]):
        if not isinstance(rows, list):
            return f"client {k}'s rows must be a list, got {rows!r}"
        for i in rows:
            if type(i) is not int or not 0 <= i < 2**63:
                return f"rows must be integers >= 0, got {i!r} of client {k}"
            if i in owner:
                twice = f"clients {owner[i]} and {k}" if owner[i] != k else f"client {k}, twice"
                return f"each row must be of one client, got row {i} of {twice}"
            owner[i] = k
    return ""


def _top_up(owner: np.ndarray, n_clients: int, rng: np.random.Generator, min_size: int) -> Parts:
    """Move examples, one at a time, from the largest client to those below ``min_size``."""
    sizes = np.bincount(owner, minlength=n_clients)
    poor = np.flatnonzero(sizes < min_size)
    for k in poor:
        while sizes[k] < min_size:
            rich = int(sizes.argmax())
            i = rng.choice(np.flatnonzero(owner == rich))
            owner[i] = k
            sizes[rich] -= 1
            sizes[k] += 1
    note = f"{len(poor)} of {n_clients} clients topped up to {min_size}" if len(poor) else ""
    order = np.argsort(owner, kind="stable")
    return Parts(np.split(order, np.cumsum(sizes)[:-1]), note)


def _column(name: str, labels: Any) -> np.ndarray:
    """One value an example, as an array (n,)."""
    labels = np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels)
    column = labels.ndim == 2 and labels.shape[1] == 1
    rule = "one class an example, shape (n,), not one-hot rows"
    cure = "labels.ravel()" if column else "labels.argmax(1)"
    check(name, "labels", labels.shape, labels.ndim == 1, rule, cure)
    return labels


def _check(name: str, labels: np.ndarray, n_clients: int, each: int = 1) -> np.ndarray:
    whole(name, "n_clients", n_clients)
    labels = _column(name, labels)
    if n_clients * each > len(labels):
        example = max(1, len(labels) // max(each, 1) // 2)
        raise ValueError(
            f"{name}: {n_clients} clients with at least {each} each need {n_clients * each} "
            f"examples, got {len(labels)}, e.g. n_clients={example}"
        )
    return labels


def _classes(name: str, labels: np.ndarray, n_clients: int, each: int = 1) -> np.ndarray:
    return _integers(name, _check(name, labels, n_clients, each))


def _integers(name: str, labels: np.ndarray) -> np.ndarray:
    if len(labels) and labels.dtype.kind not in "iub":
        raise ValueError(
            f"{name}: labels must be integer classes, got {labels.dtype}, e.g. "
            f"np.unique(labels, return_inverse=True)[1]; for a regression use iid or quantity"
        )
    return labels.astype(np.int64)
