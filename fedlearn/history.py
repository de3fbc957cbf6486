"""What a run leaves behind: its rounds, its numbers, and how it ended."""

import csv
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .checks import check
from .partition.files import place, write_whole

OWN = ("round", "bytes", "train_loss", "seconds")  # columns that no metric may be called
RESERVED = (*OWN, "epsilon", "staleness")  # and what some runs add to the metrics themselves


class Round(NamedTuple):
    """What happened in round t.

    Attributes:
        t: 0, 1, ...
        theta: (d,) the model AFTER the round.
        answered: (K,) numbers of the clients whose updates came back.
        rows: (K, d) what the server received, or None where that was too much to keep: ``deltas``.
        p: (K,) their weights n_k / n.
        loss: Mean training loss over the clients' local steps; NaN if nobody answered or tells it.
        sent: Bytes from the server to ONE client.
        received: Bytes from ONE client to the server: delta and what else the method needs.
        metrics: What ``evaluate`` returned; empty in a round that wasn't evaluated.
        called: Numbers of the clients that the server sent to, those that dropped out included.
        seconds: How long the round took on the simulated clock; NaN without one.
    """

    t: int
    theta: Tensor
    answered: np.ndarray
    rows: Tensor | None
    p: Tensor
    loss: float
    sent: int
    received: int
    metrics: dict[str, float]
    called: np.ndarray
    seconds: float = math.nan

    @property
    def deltas(self) -> Tensor:
        """(K, d) what the server received, delta_k = theta_k - theta.

        ValueError in a round of so many clients that only their mean was kept.
        """
        if self.rows is None:
            raise ValueError(
                f"Round.deltas: {len(self.p):,} updates of {self.theta.numel():,} numbers were "
                f"added up as they came and not kept; to keep them, e.g. federate(..., deltas=True)"
            )
        return self.rows


class Diverged(FloatingPointError):
    """A run left the numbers: some parameter is inf or NaN.

    Attributes:
        round: t of the round that did it.
        clients: Numbers of the clients whose update isn't finite; empty if the server did it.
        history: :class:`History` of the rounds before.
    """

    def __init__(self, round: int, clients: list[int], history: "History"):
        few, many = ", ".join(map(str, clients[:5])), "s" * (len(clients) > 1)
        more = f" and {len(clients) - 5} more" * (len(clients) > 5)
        who = f"the update of client{many} {few}{more}" if clients else "the server's step"
        super().__init__(
            f"round {round}: {who} is inf or NaN. Most often the learning rate is too large for "
            f"this many local steps: try a tenth of it. The {round} rounds before are kept."
        )
        self.round, self.clients, self.history = round, clients, history


@dataclass(eq=False, repr=False)
class History:
    """The numbers of a run, a column each; ``history["loss"]`` is a NumPy array over rounds.

    Columns: ``round`` (1 after the first), ``bytes`` (both ways, all clients, so far),
    ``train_loss``, ``seconds`` so far if there is a simulated clock, and every metric of
    ``evaluate`` (NaN where a round wasn't evaluated).

    Attributes:
        columns: name -> list of numbers.
        theta: The model after the last finite round.
        stopped: Why the run ended early, in words; empty if it didn't.
        failed: t of each round that was given up -> why, in words.

    Example:
        >>> h = History({"round": [1, 2], "loss": [2.3, 1.9]})
        >>> h["loss"]
        array([2.3, 1.9])
        >>> h
        History of 2 rounds; at the last: loss 1.9
    """

    columns: dict[str, list[float]] = field(default_factory=dict)
    theta: Tensor | None = None
    stopped: str = ""
    failed: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number = lambda v: math.nan if v is None else v  # JSON has no NaN
        self.columns = {str(k): list(map(number, self.columns[k])) for k in self.columns}
        self.failed = {int(t): why for t, why in self.failed.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            there = ", ".join(self.columns) or "none"
            raise ValueError(
                f"History: no column {name!r}; there are {there}, e.g. history['round']"
            )
        return np.asarray(self.columns[name])

    def __len__(self) -> int:
        return len(self.columns.get("round", ()))

    def __repr__(self) -> str:
        ends = [f"{k} {v[-1]:.4g}" for k, v in self.columns.items() if k != "round" and v]
        failed, n = list(map(str, self.failed)), len(self.failed)
        more = {"at the last": ends, f"{n} given up": failed, "ended early": [self.stopped]}
        said = [f"; {words}: {', '.join(end)}" for words, end in more.items() if any(end)]
        return f"History of {len(self)} rounds{''.join(said)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self.plain() == other.plain()

    def plain(self) -> dict[str, Any]:
        """All but theta, in numbers and text; NaN is None."""
        columns = {k: list(map(_plain, column)) for k, column in self.columns.items()}
        return {"columns": columns, "stopped": self.stopped, "failed": self.failed}

    def check(self, metrics: dict[str, Any], own: tuple[str, ...] = OWN) -> dict[str, Any]:
        """The metrics; ValueError for one that is no number, or called like a column of our own."""
        known = isinstance(metrics, dict)
        check("evaluate", "what it returns", metrics, known, "a dict of numbers", {"loss": 0.9})
        for name in set(metrics) & set(own):
            check("History", "a metric", name, False, f"none of {own}", f"'test_{name}'")
        for name, v in metrics.items():
            rule = "a number; the history has one a round"
            check("History", f"metrics[{name!r}]", v, isinstance(_item(v), (int, float)), rule, 0.9)
        return {str(name): v for name, v in metrics.items()}

    def add(self, r: Round) -> None:
        """Append one round; again, if Ctrl-C ended the first try. ValueError as in check."""
        metrics, self.theta = self.check(r.metrics), r.theta.clone()
        n = len(self)
        so_far = lambda name: self.columns[name][n - 1] if n and name in self.columns else 0
        moved = r.sent * len(r.called) + r.received * len(r.answered)
        row = {"round": r.t + 1, "bytes": so_far("bytes") + moved, "train_loss": r.loss}
        if not (still := math.isnan(r.seconds)) or "seconds" in self.columns:  # nobody answered
            row["seconds"] = so_far("seconds") + (0.0 if still else r.seconds)
        row |= {name: _item(v) for name, v in metrics.items()}
        for name in row:
            self.columns.setdefault(name, [math.nan] * n)
        for name in reversed(self.columns):  # "round", which counts, comes last
            self.columns[name][n:] = [row.get(name, math.nan)]

    # -- to files and back; theta goes with a checkpoint, or with torch.save -----------------------

    def to_json(self, path: str | Path | None = None) -> str:
        """All but theta as JSON text, NaN as null; written to ``path``, too, if one is given.

        Example:
            >>> h = History({"round": [1, 2], "loss": [2.3, math.nan]}, stopped="by hand")
            >>> History.from_json(h.to_json()) == h
            True
        """
        text = json.dumps(self.plain())
        if path is not None:
            write_whole(path, text.encode())
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> "History":
        """Of what :meth:`to_json` made: its text, or the path of the file."""
        text = str(source)
        return cls(**json.loads(text if text[:1] == "{" else place(source).read_text()))

    def to_csv(self, path: str | Path) -> Path:
        """The columns as CSV, a row a round; NaN is an empty cell."""
        text = io.StringIO()
        csv.writer(text).writerows([self.columns, *zip(*self.plain()["columns"].values())])
        return write_whole(path, text.getvalue().encode())

    @classmethod
    def from_csv(cls, path: str | Path) -> "History":
        """Of what :meth:`to_csv` wrote."""
        names, *rows = csv.reader(io.StringIO(place(path).read_bytes().decode(), newline=""))
        number = lambda text: int(text) if text.lstrip("-").isdigit() else float(text or "nan")
        return cls({name: [number(row[i]) for row in rows] for i, name in enumerate(names)})

    def to_frame(self) -> Any:
        """The columns as a pandas DataFrame, where pandas is installed; ``History(frame)`` back."""
        try:
            import pandas as pd
        except ImportError as e:
            raise ImportError("to_frame: needs pandas, e.g. pip install pandas") from e
        return pd.DataFrame(self.columns)


def _plain(v: Any) -> Any:
    """A number that JSON and CSV hold and give back bit for bit; NaN is None."""
    v = _item(v)
    return None if v != v else v


def _item(v: Any) -> Any:
    """Python's own number for NumPy's or for a tensor of one: what any file can hold."""
    one = isinstance(v, (Tensor, np.generic, np.ndarray)) and math.prod(v.shape) == 1
    v = v.item() if one else v
    return int(v) if isinstance(v, bool) else v
