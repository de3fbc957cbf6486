"""Clients that are trained in processes of their own, side by side, with the bits of one.

A worker is a Python of its own: threads would share one interpreter, and two were hardly faster
than one. It holds the clients' examples, mapped from a file that all of them share; a message, what
some clients remember and their reply travel through a pipe.
"""

import contextlib
import copy
import os
import shutil
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import check
from .partition.files import write_whole

Job = tuple[Any, ...]  # what clients.some takes: message, context, memory, cuts, whether to add up
_HERE: list[Any] = []  # in a worker: the clients, or why they can't be had there


class Team:
    """Processes that hold the same clients. They start with the first round, and end with it all.

    That is: with the clients, or with this process, however it ends.

    Args:
        clients: With ``x``, ``y`` and ``some(*job) -> reply, what is remembered``.
        count: How many processes.

    Raises:
        ValueError: If the clients can't be sent to another process.

    Example:
        >>> from fedlearn import Recipe, Simulated, algorithms, model
        >>> task = model.softmax_regression(2, 2)
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0)
        >>> x, y, parts = torch.eye(2), torch.tensor([0, 1]), [[0], [1]]
        >>> clients = Simulated(recipe, x, y, parts, chunk=1, workers=2)
        >>> clients.team is None  # no process has been started yet
        True
    """

    def __init__(self, clients: Any, count: int) -> None:
        import cloudpickle
        from joblib.externals.loky import ProcessPoolExecutor

        there = copy.copy(clients)  # without a team
        there.x = there.y = None
        try:
            told = cloudpickle.dumps(there)
        except Exception as e:  # whatever a lock, a file or a generator says
            got, rule = f"{type(e).__name__} ({e})"[:200], "one that another process can be sent"
            check("Simulated", "recipe with workers > 1", got, False, rule, "workers=1")
        self.folder, self.count = Path(mkdtemp(prefix="fedlearn-workers-")), count
        self.held = _held(clients)
        start = os.getpid(), str(self.folder), torch.get_default_dtype()
        begin = {"initializer": _begin_with, "initargs": start}
        self.pool = ProcessPoolExecutor(count, timeout=None, **begin)  # starts none yet
        self.end = weakref.finalize(clients, _end, self.pool, self.folder)
        torch.save({"x": clients.x, "y": clients.y}, self.folder / "data.pt")
        write_whole(self.folder / "clients.pkl", told)

    def train(self, jobs: Iterable[tuple[np.ndarray, Job]]) -> Iterator[tuple[Any, ...]]:
        """(places, reply, memory) of each job, in order; a few at a time are on their way.

        Raises:
            RuntimeError: If a worker has been killed. The round may be tried again.
        """
        from joblib.externals.loky.process_executor import BrokenProcessPool

        away: deque[tuple[np.ndarray, Any]] = deque()
        try:
            for places, job in jobs:
                away.append((places, self.pool.submit(_some, _bare(job))))
                if len(away) > 2 * self.count:
                    places, future = away.popleft()
                    yield places, *_full(future.result())
            while away:
                places, future = away.popleft()
                yield places, *_full(future.result())
        except BrokenProcessPool as e:
            self.end()
            raise RuntimeError(
                "Simulated: a worker process has been killed, maybe for its memory; next(run) "
                "tries the round again with new ones, or use fewer: Simulated(..., workers=1)"
            ) from e
        finally:
            for _, future in away:
                future.cancel()


def still(team: Team | None, clients: Any, count: int) -> Team:
    """This team, if it lives and has what the clients are made of now; else a new one.

    Example:
        >>> class Clients:
        ...     recipe, x, y, parts = None, torch.eye(2), torch.eye(2), ()
        >>> clients = Clients()
        >>> team = still(None, clients, 2)
        >>> still(team, clients, 2) is team
        True
    """
    if team is not None:
        if team.end.alive and all(a is b for a, b in zip(team.held, _held(clients), strict=True)):
            return team
        team.end()
    return Team(clients, count)


def _held(clients: Any) -> tuple[Any, ...]:
    return clients.recipe, clients.x, clients.y, clients.parts, torch.get_default_dtype()


def begin(parent: int) -> None:
    """In a new worker: one thread for PyTorch, and an end when the parent has been killed.

    Example:
        >>> from joblib.externals.loky import ProcessPoolExecutor
        >>> pool = ProcessPoolExecutor(2, initializer=begin, initargs=(os.getpid(),))
        >>> pool.shutdown()  # nobody asked it for anything
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(0)

    torch.set_num_threads(1)
    threading.Thread(target=watch, daemon=True).start()


def _begin_with(parent: int, folder: str, dtype: torch.dtype) -> None:
    import cloudpickle

    begin(parent)
    torch.set_default_dtype(dtype)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    try:
        clients = cloudpickle.loads(Path(folder, "clients.pkl").read_bytes())
        data = torch.load(Path(folder, "data.pt"), mmap=True, weights_only=True)
        clients.x, clients.y = data["x"], data["y"]
        _HERE[:] = [clients]
    except Exception as e:  # raised here it would look as if the worker had been killed
        _HERE[:] = [e]


def _some(job: Any) -> Any:
    if isinstance(_HERE[0], Exception):
        raise _HERE[0]
    return _bare(_HERE[0].some(*_full(job)))


def _end(pool: Any, folder: Path) -> None:
    with contextlib.suppress(Exception):  # it may have broken before
        pool.shutdown(wait=True, kill_workers=True)
    shutil.rmtree(folder, ignore_errors=True)


def _bare(v: Any) -> Any:
    """Tensors as arrays, which travel at the speed of memory; bfloat16 has no array."""
    if isinstance(v, Tensor) and v.dtype != torch.bfloat16:
        return v.numpy()
    return _each(_bare, v)


def _full(v: Any) -> Any:
    return torch.from_numpy(v) if isinstance(v, np.ndarray) else _each(_full, v)


def _each(f: Any, v: Any) -> Any:
    if isinstance(v, dict):
        return {k: f(w) for k, w in v.items()}
    return type(v)(map(f, v)) if type(v) in (tuple, list) else v
