"""Many runs, each to one number: on this thread and, beside it, in loky's worker processes.

A worker is a Python of its own (threads would share one interpreter: two were slower than one). It
starts while this thread computes the first cells, and stays for the next sweep. No widgets here.
"""

import atexit
import contextlib
import functools
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from tempfile import mkdtemp
from typing import Any

import numpy as np

from ...checks import one_of
from ...workers import begin
from .frames import final
from .settings import Axis, Settings, pairs

Result = dict[str, float]  # of the last round; empty: the run diverged, or the split is impossible
Away = dict[Settings, "Future[Result | None]"]  # in a worker's hands, or next
_KNOWN: dict[Settings, Result] = {}  # every cell ever computed here; a few floats each
_TEAMS: dict[str, Away] = {}  # of the sweeps that run now


def grid(
    settings: Settings,
    *,
    x: Axis,
    y: Axis,
    measure: str = "accuracy",
    seeds: Sequence[int] | None = None,
    helpers: int | None = None,
) -> np.ndarray:
    """Final accuracy of every pair of two settings, (rows, columns); NaN where a run fails.

    It fails if it diverges or the split is impossible.

    Args:
        settings: What all runs share.
        x: Name and values of the columns, e.g. ``("epochs", (1, 5, 20))``.
        y: Name and values of the rows.
        measure: ``"accuracy"`` or ``"loss"`` on the test set, ``"worst"``, ``"epsilon"``, an extra.
        seeds: One map for each, (seeds, rows, columns): ``.mean(0)`` and ``.std(0)`` are theirs.
        helpers: Processes beside this one; None for one for each other core, at most 3.

    Example:
        >>> grid(Settings(rounds=2), x=("epochs", (1, 2)), y=("alpha", (0.1,)), helpers=0).shape
        (1, 2)
    """
    one_of("grid", "measure", measure, settings.columns)
    cells = pairs(settings, x, y, seeds)
    found = dict(sweep(cells, helpers=helpers))
    values = np.array([found[s].get(measure, np.nan) for s in cells])
    maps = np.moveaxis(values.reshape(len(y[1]), len(x[1]), -1), -1, 0)
    return maps[0] if seeds is None else maps


def known(s: Settings) -> Result | None:
    """What an earlier sweep of this process found, or None."""
    return _KNOWN.get(s)


def sweep(
    cells: Sequence[Settings],
    *,
    helpers: int | None = None,
    stale: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Settings, Result]]:
    """(cell, metrics) of every cell, in the order in which they come; known ones first.

    This thread begins with the cheap cells, workers begin at the other end. When ``stale`` says
    True, or the iterator is closed, all give up with the round that they are in.
    """
    yield from ((s, _KNOWN[s]) for s in dict.fromkeys(cells) if s in _KNOWN)
    todo = [s for s in dict.fromkeys(cells) if s not in _KNOWN]
    todo.sort(key=lambda s: s.epochs * s.rounds)
    alone = len(todo) < 2 or not all(s.plain for s in todo)  # a notebook's own stays here
    n = 0 if alone else others() if helpers is None else helpers
    came: dict[Settings, Result | None] = {}
    with _team(n) as (away, ask):

        def meanwhile() -> bool:
            """Between two rounds of this thread's cell: what workers found, and more for them."""
            nonlocal n
            for s in [s for s in away if away[s].done()]:
                future = away.pop(s)
                if future.exception() is None:
                    came[s] = future.result()
                else:  # its worker has died: the rest is done here
                    todo.append(s)
                    n = 0
            while todo and len(away) < n:
                s = todo.pop()
                if not ask(s):
                    todo.append(s)
                    n = 0
            return stale()

        while todo or away:
            own = todo.pop(0) if todo else None
            if meanwhile():
                return
            if own is not None:
                came[own] = final(own, meanwhile)
            else:
                wait(away.values(), 0.05, FIRST_COMPLETED)
            for s, found in came.items():
                if found is not None:  # else it was given up
                    _KNOWN[s] = found
                    yield s, found
            came.clear()


def others() -> int:
    """Cores beside this thread's that a sweep may use: at most 3."""
    from joblib import cpu_count

    return min(int(cpu_count()) - 1, 3)


@contextlib.contextmanager
def _team(n: int) -> Iterator[tuple[Away, Callable[[Settings], bool]]]:
    """(cells in the hands of n workers, a function that gives them one more, if it can).

    They can't be told to stop, but each looks, once a round, whether a folder is still there.
    """
    away: Away = {}

    def ask(s: Settings) -> bool:
        from joblib.externals.loky import get_reusable_executor

        with contextlib.suppress(OSError, RuntimeError):  # where no process may be started
            with_parent = {"initializer": begin, "initargs": (os.getpid(),)}
            pool: Any = get_reusable_executor(n, timeout=600, **with_parent)
            away[s] = pool.submit(_away, s, folder)
            _leave_at_once()
        return s in away

    folder = mkdtemp(prefix="fedlearn-sweep-") if n > 0 else ""
    _TEAMS[folder] = away
    try:
        yield away, ask
    finally:
        _give_up(folder)


def _give_up(folder: str) -> None:
    for future in _TEAMS.pop(folder, {}).values():
        future.cancel()
    shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _leave_at_once() -> None:
    """At exit loky waits for the work in hand: before it does, that work is given up.

    It waits where ``threading`` calls those who registered so, the latest first.
    """
    register = getattr(threading, "_register_atexit", atexit.register)
    register(lambda: [*map(_give_up, list(_TEAMS))])


def _away(s: Settings, folder: str) -> Result | None:
    return final(s, lambda: not os.path.isdir(folder))
