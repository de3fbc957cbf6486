"""The thread behind a panel: it trains, keeps the history and hands out snapshots. No widgets.

Rules that make it hold beside a notebook:

- a command only writes what is wanted, under a lock; the worker alone trains and sends frames;
- the latest parameters win, and a round that ends with stale ones is dropped;
- the first frame after a change goes out at once, the following at most ``fps`` times a second.
"""

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Frame = Mapping[str, Any]


@dataclass(frozen=True)
class Past:
    """A run that is over: its columns and the parameters that made it."""

    columns: Mapping[str, np.ndarray]
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """What there is to see at one moment.

    Attributes:
        gen: Number of the run, one more for each change.
        params: The parameters of this run.
        columns: Every scalar of the frames so far, as float arrays; a missing value is NaN.
        latest: Everything else, as the last frame gave it.
        round: Rounds done; frame 0 is the state before training.
        rounds: Rounds wanted.
        state: ``idle``, ``running``, ``paused``, ``done``, ``error`` or ``closed``.
        error: What went wrong, in words.
        ghost: The last run that got somewhere, or None.
    """

    gen: int
    params: Mapping[str, Any]
    columns: Mapping[str, np.ndarray]
    latest: Mapping[str, Any]
    round: int
    rounds: int
    state: str
    error: str = ""
    ghost: Past | None = None


@dataclass
class _Run:
    """The run in hand. Only the worker touches ``frames``; rows are appended under the lock."""

    gen: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    frames: Iterator[Frame] | None = None
    rows: list[dict[str, float]] = field(default_factory=list)
    latest: dict[str, Any] = field(default_factory=dict)
    since: float = 0.0

    def columns(self) -> dict[str, np.ndarray]:
        names = dict.fromkeys(k for row in self.rows[:1] + self.rows[-1:] for k in row)
        nan = float("nan")
        return {k: np.array([row.get(k, nan) for row in self.rows]) for k in names}

    def add(self, row: dict[str, float], rest: dict[str, Any]) -> None:
        self.latest.update(rest)
        self.rows.append(row)


def _parted(frame: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """A frame's scalars, and all else."""
    if not isinstance(frame, Mapping):
        raise ValueError(f"make: a frame must be a dict, got {frame!r}, e.g. {{'loss': 0.5}}")
    row = {k: float(v) for k, v in frame.items() if _scalar(v)}
    return row, {k: v for k, v in frame.items() if k not in row}


def _scalar(v: Any) -> bool:
    plain = not isinstance(v, (str, list, tuple)) and not callable(v)  # lists may be ragged
    return plain and np.ndim(v) == 0 and _number(v)


def _number(v: Any) -> bool:
    try:
        float(v)
    except (TypeError, ValueError):
        return False
    return True


def in_words(e: BaseException) -> str:
    """An error as a panel says it: the kind only where the words alone may not do."""
    plain = isinstance(e, (ValueError, ArithmeticError, OSError)) and str(e)
    return str(e) if plain else f"{type(e).__name__}: {e}"


class Engine:
    """Runs ``make(**params)`` on its own thread, frame by frame.

    Every public method may be called from any thread, at any time, in any order.

    Args:
        make: ``make(**params)`` returns an iterator of frames. A frame is a dict: scalars become
            history columns, anything else is kept as it was last given; a callable value is called
            only when a frame is shown. The first frame is the state before training (round 0).
        params: The first parameters.
        rounds: The run is over after ``rounds + 1`` frames, or when the iterator ends.
        fps: Most frames a second that ``on_frame`` is given.
        pace: Seconds a round takes at least in a run started by :meth:`run`, so that the eye can
            follow. A run started by :meth:`set` goes at full speed.
        settle: Seconds after which an interrupted run counts as one that was looked at and may
            become the ghost. A drag makes many short runs; none of them should.
        on_frame: Called on the worker's thread with each :class:`Snapshot`.

    Note:
        PyTorch is held at one intra-op thread while any engine works and until the last is closed:
        two threads beside a browser were ten times slower. That setting is process-wide.

    Example:
        >>> def halve(start):
        ...     while True:
        ...         yield {"loss": start}
        ...         start /= 2
        >>> engine = Engine(halve, {"start": 8.0}, rounds=3)
        >>> engine.compute().columns["loss"].tolist()
        [8.0, 4.0, 2.0, 1.0]
        >>> engine.close()
    """

    def __init__(
        self,
        make: Callable[..., Iterable[Frame]],
        params: Mapping[str, Any],
        *,
        rounds: int,
        fps: float = 20.0,
        pace: float = 0.0,
        settle: float = 0.8,
        on_frame: Callable[[Snapshot], None] | None = None,
    ):
        self._make, self._rounds, self._fps, self._pace = make, rounds, fps, pace
        self._settle, self._on_frame = settle, on_frame or (lambda snapshot: None)
        self._cv = threading.Condition()
        self._params, self._want = dict(params), 1
        self._run, self._ghost = _Run(), None  # type: _Run, Past | None
        self._state, self._error = "idle", ""
        self._credit = 0  # frames to make although the state isn't "running"
        self._dirty = False  # the state changed and nobody has been told
        self._busy = self._paced = False
        self._release: weakref.finalize | None = None
        self._thread: threading.Thread | None = None
        self.sent = 0

    # -- commands, from any thread --------------------------------------------------------------

    def set(self, **params: Any) -> bool:
        """Change parameters: a new run starts at once, or waits at round 0 when paused."""
        with self._cv:
            changed = {k: v for k, v in params.items() if self._params.get(k, self) != v}
            if not changed or self._state == "closed":
                return False
            self._params.update(changed)
            self._want += 1
            if self._state == "paused":
                self._credit = 1
            else:
                self._state, self._paced = "running", False
            self._wake()
        return True

    def run(self) -> None:
        """Start, or go on after a pause; again from the beginning when the run is over."""
        with self._cv:
            self._open()
            if self._state in ("done", "error"):
                self._want += 1
            self._state, self._paced = "running", True
            self._wake()

    def pause(self) -> None:
        """Hold after the round in hand."""
        with self._cv:
            if self._state == "running":
                self._state, self._dirty = "paused", True
                self._wake()

    def step(self) -> None:
        """One more round, then hold."""
        with self._cv:
            self._open()
            if self._state in ("done", "error"):
                self._want += 1
            fresh = self._want != self._run.gen
            self._credit += 2 if fresh and not self._credit else 1  # round 0 comes along
            self._state = "paused"
            self._wake()

    def reset(self) -> None:
        """Back to round 0, at rest."""
        with self._cv:
            if self._state != "closed":
                self._want += 1
                self._state, self._credit = "idle", 1
                self._wake()

    def close(self, timeout: float = 5.0) -> None:
        """End the thread. The history stays readable."""
        with self._cv:
            first, self._state = self._state != "closed", "closed"
            self._cv.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        if first and self._release is not None:
            self._release()

    def wait(self, state: str = "done", timeout: float = 60.0) -> Snapshot:
        """Block until the worker rests in ``state`` (or in an error), its frame sent."""

        def rests() -> bool:
            there = self._state in (state, "error") and not self._busy and not self._work_waits()
            return there or self._state == "closed"

        with self._cv:
            if not self._cv.wait_for(rests, timeout):
                raise TimeoutError(f"still {self._state} after {timeout} s")
        return self.snapshot()

    # -- looking ---------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``idle``, ``running``, ``paused``, ``done``, ``error`` or ``closed``."""
        return self._state

    @property
    def error(self) -> str:
        """What went wrong, in words; "" while all is well."""
        return self._error

    @property
    def stale(self) -> bool:
        """Whether what runs is wanted no more: ``make`` may ask, and give up a long frame."""
        return self._want != self._run.gen or self._state == "closed"

    def snapshot(self) -> Snapshot:
        """The history up to now; later rounds don't change it."""
        with self._cv:
            run = self._run
            columns, latest = run.columns(), dict(run.latest)
            seen = (run.gen, run.params, max(len(run.rows) - 1, 0), self._state, self._error)
            ghost = self._ghost
        latest = {k: v() if callable(v) else v for k, v in latest.items()}
        gen, params, done, state, error = seen
        return Snapshot(gen, dict(params), columns, latest, done, self._rounds, state, error, ghost)

    def compute(self) -> Snapshot:
        """The whole run on the calling thread, before the worker exists: the static picture."""
        if self._thread is not None:
            raise RuntimeError("compute() comes before the first command")
        self._take_threads()
        with self._cv:
            self._state, self._paced = "running", False
        while self._state == "running":
            self._advance()
        return self.snapshot()

    # -- the worker ------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._state == "closed":
            raise RuntimeError("this panel was closed (its cell ran again): use the newer one")

    def _wake(self) -> None:
        """Under the lock: make sure that there is a worker, and that it looks."""
        if self._thread is None:
            self._take_threads()
            self._thread = threading.Thread(target=self._work, name="fedlearn-panel", daemon=True)
            self._thread.start()
        self._cv.notify_all()

    def _work_waits(self) -> bool:
        return self._state in ("running", "closed") or self._credit > 0 or self._dirty

    def _work(self) -> None:
        import torch

        torch.set_num_threads(1)  # also a property of each thread that computes
        due = 0.0
        while True:
            with self._cv:
                self._busy = False
                self._cv.notify_all()
                self._cv.wait_for(self._work_waits)
                if self._state == "closed":
                    return
                self._busy, told = True, self._dirty
                self._dirty = False
                go = self._state == "running" or self._credit > 0
                self._credit = max(self._credit - 1, 0)
            began = time.perf_counter()
            first = self._advance() if go else False
            now = time.perf_counter()
            with self._cv:
                stale = self._want != self._run.gen
                rests = self._state != "running"
            at_once = first or rests or told
            if not stale and (at_once or now >= due):
                due = self._next(due, now, at_once)
                self._send()
            self._rest(self._pace - (time.perf_counter() - began))

    def _next(self, due: float, now: float, at_once: bool) -> float:
        """When the next frame may go. A late frame doesn't delay the following ones.

        Counted from ``now`` instead, a run paced at exactly ``fps`` rounds a second would lose
        every third frame: a round that ends a millisecond early would wait for the next.
        """
        gap = 1 / self._fps
        return now + gap if at_once else max(due, now - gap) + gap

    def _rest(self, seconds: float) -> None:
        """Sleep between the rounds of a paced run; any command ends the sleep."""
        with self._cv:
            gen = self._run.gen
            if seconds > 0 and self._paced:
                self._cv.wait_for(
                    lambda: self._state != "running" or self._want != gen or not self._paced,
                    seconds,
                )

    def _advance(self) -> bool:
        """One frame. True if it is the first of its run."""
        with self._cv:
            if fresh := self._want != self._run.gen:
                self._retire()
                self._run = _Run(self._want, dict(self._params), since=time.perf_counter())
                self._error = ""
            run = self._run
        try:
            if run.frames is None:
                run.frames = iter(self._make(**run.params))
            frame = next(run.frames, None)
            new = None if frame is None else _parted(frame)
        except (Exception, SystemExit) as e:  # shown in the panel; thread and history live on
            self._fail(run, e)
            return fresh
        with self._cv:
            if self._want != run.gen:
                return fresh  # a change during the round drops its result
            if new is not None:
                run.add(*new)
            if new is None or len(run.rows) > self._rounds:
                self._end("done")
        return fresh

    def _fail(self, run: _Run, e: BaseException) -> None:
        with self._cv:
            if self._want == run.gen:
                self._error = in_words(e)
                self._end("error")

    def _end(self, state: str) -> None:
        if self._state != "closed":
            self._state, self._credit = state, 0
        self._cv.notify_all()

    def _retire(self) -> None:
        """The run in hand becomes the ghost if it got beyond a tenth and was looked at."""
        run, ghost = self._run, self._ghost
        if run.frames is not None and hasattr(run.frames, "close"):
            with contextlib.suppress(Exception):  # it may raise while it tidies up
                run.frames.close()
        far = len(run.rows) - 1 > self._rounds / 10
        seen = time.perf_counter() - run.since >= self._settle or ghost is None
        if far and seen and run.params != self._params:
            self._ghost = Past(run.columns(), run.params)

    def _send(self) -> None:
        self.sent += 1
        try:
            self._on_frame(self.snapshot())
        except Exception as e:  # a picture that fails must not end the thread
            with self._cv:
                self._error = f"{type(e).__name__}: {e}"

    def _take_threads(self) -> None:
        if self._release is None:  # at the latest when the engine is forgotten without close()
            _take_one_thread()
            self._release = weakref.finalize(self, _give_threads_back)


_threads_lock = threading.Lock()
_threads_users = 0
_threads_before = 0


def _take_one_thread() -> None:
    """One intra-op thread while a panel lives: a core stays free for the browser."""
    global _threads_users, _threads_before
    import torch

    with _threads_lock:
        if _threads_users == 0:
            _threads_before = torch.get_num_threads()
            torch.set_num_threads(1)
        _threads_users += 1


def _give_threads_back() -> None:
    global _threads_users
    import torch

    with _threads_lock:
        _threads_users -= 1
        if _threads_users == 0:
            torch.set_num_threads(_threads_before)
