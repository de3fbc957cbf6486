"""What a partition is, how it is checked, summarised, saved and loaded again."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check, whole
from .files import place, write_whole


class Parts(list[np.ndarray]):
    """One sorted index array per client, and ``note``: what the partitioner had to do, if anything.

    Example:
        >>> parts = Parts([np.array([0, 2]), np.array([1])])
        >>> len(parts), parts.note
        (2, '')
    """

    def __init__(self, arrays: list[np.ndarray], note: str = ""):
        super().__init__(np.sort(np.asarray(a, dtype=np.int64)) for a in arrays)
        self.note = note


def counts(parts: list[np.ndarray], labels: np.ndarray, classes: int) -> np.ndarray:
    """How many examples of each label every client holds, (N, C): the picture "who holds what".

    Args:
        parts: N index arrays.
        labels: (n,) integer class of each example.
        classes: C; ValueError if a label lies outside 0..C-1.

    Example:
        >>> counts([np.array([0, 1]), np.array([2])], np.array([0, 1, 1]), 2)
        array([[1, 1],
               [0, 1]])
    """
    labels = np.asarray(labels)
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"counts: labels must be 0..{classes - 1}, got {labels.min()}..{labels.max()}, "
            f"e.g. classes={int(labels.max()) + 1}"
        )
    return np.stack([np.bincount(labels[p], minlength=classes) for p in parts])


def summary(parts: list[np.ndarray], labels: np.ndarray, classes: int) -> str:
    """The partition as a table in plain text: sizes, number of labels, most frequent label.

    A header, a line a client, and a last line for all of them.

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
    lines = ["client  examples  labels  most frequent"]
    for name, row in [*enumerate(held), ("all", held.sum(0))]:
        top = int(row.argmax())
        share = f"{top} ({row[top] / max(row.sum(), 1):.0%})".replace("%", " %")
        lines.append(f"{name:>6}  {row.sum():8}  {(row > 0).sum():6}    {share}")
    return "\n".join(lines)


def save(parts: list[np.ndarray], path: str | Path) -> Path:
    """Write a partition as JSON, to a temporary name first: a file is there whole or not at all.

    Args:
        parts: N arrays of row numbers, with a note or without; no row twice, else ValueError.
        path: Where to; replaced if it exists, ``~`` is the home folder. It is returned.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load(save(Parts([np.array([1, 2]), np.array([0])], "a note"), f"{folder}/p.json"))
        [array([1, 2]), array([0])]
    """
    rows = [np.asarray(p).tolist() for p in parts]
    content = {"note": getattr(parts, "note", ""), "parts": rows}
    if wrong := _wrong(content):
        raise ValueError(f"partition.save: {wrong}, e.g. partition.iid(labels, 10, rng)")
    return write_whole(path, json.dumps(content).encode())


def load(path: str | Path) -> Parts:
    """Read a partition that :func:`save` wrote, with its note.

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
    return Parts([np.array(p, dtype=np.int64) for p in saved["parts"]], saved["note"])


def _wrong(saved: Any) -> str:
    """What keeps JSON's values from being a partition, in words; nothing if they are one."""
    if not isinstance(saved, dict) or not {"note", "parts"} <= set(saved):
        return "needs a note and parts"
    if not isinstance(saved["note"], str):
        return f"the note must be text, got {saved['note']!r}"
    if not isinstance(saved["parts"], list):
        return f"parts must be a list, got {type(saved['parts']).__name__}"
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


def _check(name: str, labels: np.ndarray, n_clients: int, each: int = 1) -> np.ndarray:
    whole(name, "n_clients", n_clients)
    labels = np.asarray(labels)
    rule = "one class an example, shape (n,), not one-hot rows"
    check(name, "labels", labels.shape, labels.ndim == 1, rule, "labels.argmax(1)")
    if n_clients * each > len(labels):
        example = max(1, len(labels) // max(each, 1) // 2)
        raise ValueError(
            f"{name}: {n_clients} clients with at least {each} each need {n_clients * each} "
            f"examples, got {len(labels)}, e.g. n_clients={example}"
        )
    return labels


def _classes(name: str, labels: np.ndarray, n_clients: int, each: int = 1) -> np.ndarray:
    labels = _check(name, labels, n_clients, each)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: splits by label, so labels must be integer classes, got {labels.dtype}; "
            f"for regression use iid or quantity"
        )
    return labels
