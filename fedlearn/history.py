"""What a run leaves behind: its rounds, its numbers, and how it ended."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Round(NamedTuple):
    """What happened in round t.

    Attributes:
        t: 0, 1, ...
        theta: (d,) the model AFTER the round.
        cohort: (K,) numbers of the clients that took part.
        deltas: (K, d) what the server received, delta_k = theta_k - theta.
        p: (K,) their weights n_k / n.
        loss: Mean training loss over the clients' local steps.
        sent: Bytes from the server to ONE client.
        received: Bytes from ONE client to the server: delta and what else the method needs.
        metrics: What ``evaluate`` returned; empty in a round that wasn't evaluated.
        called: Clients that the server sent to, those that dropped out included.
        seconds: How long the round took on the simulated clock; NaN without one.
    """

    t: int
    theta: Tensor
    cohort: np.ndarray
    deltas: Tensor
    p: Tensor
    loss: float
    sent: int
    received: int
    metrics: dict[str, float]
    called: int
    seconds: float = math.nan


class Diverged(FloatingPointError):
    """A run left the numbers: some parameter is inf or NaN.

    Attributes:
        round: t of the round that did it.
        clients: Numbers of the clients whose update isn't finite; empty if the server did it.
        history: :class:`History` of the rounds before.

    Example:
        >>> Diverged(3, [1, 4], History({}, None)).round
        3
    """

    def __init__(self, round: int, clients: list[int], history: History):
        many = "s" * (len(clients) > 1)
        who = f"the update of client{many} {_few(clients)}" if clients else "the server's step"
        super().__init__(
            f"round {round}: {who} is inf or NaN. Most often the learning rate is too large for "
            f"this many local steps: try a tenth of it. The {round} rounds before are kept."
        )
        self.round, self.clients, self.history = round, clients, history


class History:
    """The numbers of a run, a column each; ``history["loss"]`` is a NumPy array over rounds.

    Columns: ``round`` (1 after the first), ``bytes`` (both ways, all clients, so far),
    ``train_loss``, ``seconds`` so far if there is a simulated clock, and every metric of
    ``evaluate`` (NaN where a round wasn't evaluated).

    Attributes:
        columns: name -> list of numbers.
        theta: The model after the last finite round.
        stopped: Why the run ended early, in words; empty if it didn't.

    Example:
        >>> h = History({"round": [1, 2], "loss": [2.3, 1.9]}, theta=None)
        >>> h["loss"]
        array([2.3, 1.9])
    """

    def __init__(self, columns: dict[str, list[float]], theta: Tensor | None, stopped: str = ""):
        self.columns, self.theta, self.stopped = columns, theta, stopped

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise ValueError(
                f"History: no column {name!r}; there are {', '.join(self.columns) or 'none'}, "
                f"e.g. history['round']"
            )
        return np.asarray(self.columns[name])

    def __len__(self) -> int:
        return len(self.columns.get("round", ()))

    def add(self, r: Round) -> None:
        """Append one round.

        Example:
            >>> h = History({}, None)
            >>> import torch
            >>> one = torch.ones(1)
            >>> h.add(Round(0, one, np.array([0]), one[None], one, 2.3, 4, 4, {}, 1))
            >>> h["bytes"]
            array([8])
        """
        n = len(self)
        so_far = lambda name: self.columns[name][-1] if name in self.columns else 0
        moved = r.sent * r.called + r.received * len(r.cohort)
        row = {"round": r.t + 1, "bytes": so_far("bytes") + moved, "train_loss": r.loss}
        if not math.isnan(r.seconds):
            row["seconds"] = so_far("seconds") + r.seconds
        elif "seconds" in self.columns:  # nobody answered: the clock stands still
            row["seconds"] = so_far("seconds")
        row |= r.metrics
        for name in {**self.columns, **row}:
            column = self.columns.setdefault(name, [math.nan] * n)
            column.append(row.get(name, math.nan))
        self.theta = r.theta


def collect(rounds: Iterable[Round], *, progress: int | None = None) -> History:
    """Run to the end and keep the numbers; what came before a divergence is kept too.

    Args:
        rounds: What :func:`federate` returns.
        progress: How many rounds to expect: shows a progress bar. None: no bar.

    Returns:
        A :class:`History`. If the run diverged, ``stopped`` says why and a ``RuntimeWarning`` is
        given.

    Example:
        >>> collect([]).columns
        {}
    """
    history = History({}, None)
    if progress is not None:
        from tqdm.auto import tqdm

        rounds = tqdm(rounds, total=progress, unit="round")
    try:
        for r in rounds:
            history.add(r)
    except Diverged as e:
        history.stopped, history.theta = str(e), e.history.theta
        warnings.warn(str(e), RuntimeWarning, stacklevel=2)
    return history


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5} more" * (len(numbers) > 5))
