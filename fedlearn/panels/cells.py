"""Many runs, each to one number: on this thread and, beside it, in helper processes. No widgets.

A helper is a Python of its own (threads would share one interpreter: two were slower than one). It
starts while this thread computes the first cells, and stays for the next sweep.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ..federate import Diverged, Simulated, federate
from .study import Settings, setup

Result = dict[str, float]  # of the last round; empty: the run diverged, or the split is impossible
Axis = tuple[str, Sequence[Any]]  # a setting's name and its values
_KNOWN: dict[Settings, Result] = {}  # every cell ever computed here; a few floats each


def final(s: Settings, stale: Callable[[], bool] = lambda: False) -> Result | None:
    """Metrics after the last round; {} for a run that fails, None for one given up half way.

    Example:
        >>> final(Settings(rounds=10, alpha=100.0))["accuracy"] > 0.9
        True
    """
    try:
        made = setup(s)
        clients = Simulated(made.recipe, made.x, made.y, made.parts)
        last: Result = {}
        run = federate(
            made.recipe, clients, rounds=s.rounds, cohort=s.cohort, evaluate=made.test,
            every=s.rounds,
        )  # fmt: skip
        for r in run:
            if stale():
                return None
            last = r.metrics
    except (ValueError, Diverged):
        return {}
    return last if all(map(np.isfinite, last.values())) else {}


def known(s: Settings) -> Result | None:
    """What an earlier sweep of this process found, or None.

    Example:
        >>> known(Settings(seed=987654)) is None
        True
    """
    return _KNOWN.get(s)


def sweep(
    cells: Sequence[Settings],
    *,
    helpers: int | None = None,
    stale: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Settings, Result]]:
    """Every cell's metrics, in the order in which they come; known ones first.

    Args:
        cells: Cheap ones first: this thread begins there, helpers begin at the other end.
        helpers: Processes beside this thread; None for as many as there are other cores, at most 3.
        stale: Asked each round; when it says True, the sweep ends.

    Returns:
        An iterator of (cell, metrics). Closing it gives up what runs.

    Example:
        >>> two = [Settings(rounds=2, alpha=a) for a in (0.1, 10.0)]
        >>> sorted(s.alpha for s, _ in sweep(two, helpers=0))
        [0.1, 10.0]
    """
    todo = []
    for s in dict.fromkeys(cells):
        if s in _KNOWN:
            yield s, _KNOWN[s]
        else:
            todo.append(s)
    wanted = min(others() if helpers is None else helpers, len(todo) - 1)
    if any(callable(s.method) for s in todo):
        wanted = 0  # a function from a notebook cell is known in this process only
    with _borrowed(max(wanted, 0)) as team:
        came: list[tuple[Settings, Result | None]] = []

        def meanwhile() -> bool:
            """Between two rounds of this thread's cell: what helpers found, and more for them."""
            for helper in team:
                if (answer := helper.answer()) is not None:
                    came.append(answer)
                if helper.idle and todo:
                    helper.ask(todo.pop())
            return stale()

        while todo or any(h.busy for h in team):
            if todo:
                own = todo.pop(0)
                came.append((own, final(own, meanwhile)))
            else:
                came += [a for h in team if (a := h.answer(0.05)) is not None]
            if stale():
                return
            for s, found in came:
                if found is None:  # its helper has died
                    todo.append(s)
                else:
                    _KNOWN[s] = found
                    yield s, found
            came.clear()


def others() -> int:
    """Cores beside this thread's that a sweep may use: at most 3.

    Example:
        >>> 0 <= others() <= 3
        True
    """
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min((have or 1) - 1, 3)


class Helper:
    """A process that computes cells, a line of JSON each way.

    Example:
        >>> helper = Helper()
        >>> helper.ask(Settings(rounds=1))
        >>> helper.answer(60)[1] is not None
        True
        >>> helper.close()
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from fedlearn.panels.cells import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._cell: Settings | None = None
        self._ticket = 0
        threading.Thread(target=self._listen, name="fedlearn-helper", daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout
        with contextlib.suppress(ValueError):
            for line in self._process.stdout:
                self._said.put(line)
        self._said.put("")  # it has ended

    @property
    def idle(self) -> bool:
        """Whether it lives and has nothing to do."""
        return self._cell is None and self._process.poll() is None

    @property
    def busy(self) -> bool:
        """Whether an answer, or its end, is still to come."""
        return self._cell is not None

    def ask(self, s: Settings) -> None:
        """Begin a cell."""
        self._cell, self._ticket = s, self._ticket + 1
        self._tell({"ticket": self._ticket, "settings": asdict(s)})

    def give_up(self) -> None:
        """Forget the cell in hand; the helper ends it with the round it is in."""
        if self._cell is not None:
            self._cell, self._ticket = None, self._ticket + 1
            self._tell({"ticket": self._ticket})

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError, ValueError):  # a dead helper answers with its end
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def answer(self, timeout: float = 0.0) -> tuple[Settings, Result | None] | None:
        """(cell, metrics) when it is done, (cell, None) when the helper has died, else None."""
        while (s := self._cell) is not None:
            try:
                line = self._said.get(timeout > 0, timeout or None)
            except queue.Empty:
                return None
            said: dict[str, Any] = json.loads(line) if line else {"ticket": self._ticket}
            if said["ticket"] == self._ticket:  # not of a cell that was given up
                self._cell = None
                return s, said.get("result")
        return None

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(10)
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, ValueError):
                if stream:
                    stream.close()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None


_TEAM: list[Helper] = []  # those that nobody uses now
_team_lock = threading.Lock()


@contextlib.contextmanager
def _borrowed(n: int) -> Iterator[list[Helper]]:
    """n helpers, from earlier sweeps where there are any; they stay for the next one."""
    with _team_lock:
        mine = [h for h in _TEAM if h.alive][:n]
        _TEAM[:] = [h for h in _TEAM if h not in mine and h.alive]
    try:
        with contextlib.suppress(OSError):  # a place where no process may be started
            mine += [Helper() for _ in range(n - len(mine))]
        yield mine
    finally:
        for helper in mine:
            helper.give_up()
        with _team_lock:
            _TEAM.extend(mine)


@atexit.register
def dismiss() -> None:
    """End the helpers that nobody uses.

    Example:
        >>> dismiss()
    """
    with _team_lock:
        team, _TEAM[:] = list(_TEAM), []
    for helper in team:
        helper.close()


def serve() -> None:
    """What a helper does: answers questions until its input ends, or nobody asks for ten minutes.

    Example:
        >>> serve.__module__  # subprocess runs it, see Helper
        'fedlearn.panels.cells'
    """
    import torch

    torch.set_num_threads(1)
    asked: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    now = {"ticket": 0}

    def listen() -> None:
        for line in sys.stdin:
            message = json.loads(line)
            now["ticket"] = message["ticket"]
            if "settings" in message:
                asked.put(message)
        os._exit(0)  # the notebook is gone

    threading.Thread(target=listen, daemon=True).start()
    with contextlib.suppress(queue.Empty):
        while True:
            message = asked.get(timeout=600)
            ticket = message["ticket"]
            try:
                result = final(Settings(**message["settings"]), lambda t=ticket: now["ticket"] != t)  # type: ignore[misc]
            except Exception:  # the asker will meet it again, and show it
                os._exit(1)
            print(json.dumps({"ticket": ticket, "result": result or {}}), flush=True)


def grid(
    settings: Settings,
    *,
    x: Axis,
    y: Axis,
    measure: str = "accuracy",
    helpers: int | None = None,
) -> np.ndarray:
    """A measure after the last round for every pair of two settings.

    Args:
        settings: All other settings.
        x: Name and values of the columns, e.g. ``("epochs", (1, 5, 20))``.
        y: Name and values of the rows.
        measure: ``"accuracy"`` or ``"loss"``, on the test set.
        helpers: As for :func:`sweep`.

    Returns:
        (rows, columns); NaN where a run diverged or a split is impossible.

    Example:
        >>> grid(Settings(rounds=2), x=("epochs", (1, 2)), y=("alpha", (0.1,)), helpers=0).shape
        (1, 2)
    """
    cells = pairs(settings, x, y)
    order = sorted(cells, key=lambda s: s.epochs * s.rounds)
    found = dict(sweep(order, helpers=helpers))
    values = [found[s].get(measure, np.nan) for s in cells]
    return np.array(values).reshape(len(y[1]), len(x[1]))


def pairs(
    s: Settings, x: tuple[str, Sequence[Any]], y: tuple[str, Sequence[Any]]
) -> list[Settings]:
    """The settings of every cell, row by row.

    Example:
        >>> [(c.alpha, c.epochs) for c in pairs(Settings(), ("epochs", (1, 2)), ("alpha", (0.1,)))]
        [(0.1, 1), (0.1, 2)]
    """
    return [replace(s, **{x[0]: a, y[0]: b}) for b in y[1] for a in x[1]]
