"""A map of final accuracy over two settings, filled in cell by cell."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...checks import one_of
from .. import kernel
from ..engine import Frame, Snapshot
from ..explorable import Explorable
from ..parts.heat import Heat
from ..words import SHORT, spoken, words
from .code import brought, literal
from .controls import follow, make_controls, offered
from .panel import settle
from .settings import METHODS, Axis, Settings, check_names, pairs
from .workers import known, sweep

_NUMBERS = ("alpha", "epochs", "lr", "clients", "batch", "cohort", "labels_each", "shards_each",
            "rounds", "seed", "size_alpha", "amount", *METHODS["dp_fedavg"])  # fmt: skip


class Sweep(Explorable):
    """Final accuracy for every pair of two settings: Run fills the map, Reset gives up.

    All cores are used; what was computed once is there at once, also after moving back.

    Args:
        x: Name and values of the columns.
        y: Name and values of the rows.
        show: Controls of the other settings, as for :class:`Panel`.
        measure: As for :func:`grid`, after the last round.
        rounds: Length of every run.
        predict: The question under the picture.
        preview: Compute all cells now; else the map waits for Run.
        helpers: Processes beside this one; None for one for each other core.
        **settings: Any other of :class:`Settings`. ValueError if a value is out of its range.

    Example:
        >>> panel = Sweep(x=("epochs", (1, 2)), y=("alpha", (0.1, 10.0)), rounds=2, helpers=0)
        >>> panel.engine.run()
        >>> panel.engine.wait().round, panel.table().shape
        (4, (2, 2))
        >>> panel.close()
    """

    def __init__(
        self,
        *,
        x: Axis = ("epochs", (1, 2, 5, 10, 20)),
        y: Axis = ("alpha", (0.01, 0.1, 1.0, 10.0, 100.0)),
        show: Sequence[str] = ("partition", "clients", "lr"),
        measure: str = "accuracy",
        rounds: int = 100,
        predict: str = "Predict first: in which corner is the accuracy lowest?",
        preview: bool = False,
        helpers: int | None = None,
        **settings: Any,
    ):
        for name, values in (x, y):
            if name not in _NUMBERS or not len(values):
                raise ValueError(
                    f"Sweep: an axis is one of {', '.join(_NUMBERS)} and its values, got "
                    f"{(name, values)!r}, e.g. x=('epochs', (1, 5, 20))"
                )
        offered("Sweep: show", show)
        if x[0] == y[0]:
            raise ValueError(f"Sweep: the axes differ, got {x[0]} twice, e.g. x=('epochs', (1, 5))")
        show = [s for s in show if s not in (x[0], y[0])]
        self.x, self.y, self.measure, self._helpers = x, y, measure, helpers
        check_names("Sweep", settings, (x[0], y[0]))
        first = {"rounds": rounds, **settings, x[0]: x[1][0], y[0]: y[1][0]}
        self._fixed = self._settings = Settings(**first)
        one_of("Sweep", "measure", measure, self._fixed.columns)
        pairs(self._fixed, x, y)  # a wrong value is said now
        say = spoken()
        title = say({"accuracy": "test accuracy", "loss": "test loss"}.get(measure, measure))
        after = "{title} after {n} rounds"
        heat = Heat(
            title=title if "rounds" in (x[0], y[0]) else say(after, title=title, n=rounds),
            rows=[words(v, say) for v in y[1]],
            columns=[words(v, say) for v in x[1]],
            xlabel=_axis(x[0]),
            ylabel=_axis(y[0]),
        )
        made = make_controls(self._fixed, show)
        for axis in {x[0], y[0]} & set(made):  # labels each comes with α, say
            kernel.close_tree(made.pop(axis))
        super().__init__(
            made,
            self._make,
            [heat],
            rounds=len(x[1]) * len(y[1]),
            seconds=0.0,
            readout=lambda s: [],
            predict=predict,
            code=self._text,
            name=f"sweep-{x[0]}-{y[0]}",
            preview=preview,
        )
        if self.readout:
            self.readout.unit = say("cell")
        if not preview:
            self._frame(self._start())

    def settings(self) -> Settings:
        """The settings of the first cell, as the controls were last moved."""
        return self._settings

    def table(self) -> np.ndarray:
        """(rows, columns) of what is shown: NaN is not known yet, -inf a run that failed."""
        return np.array(self.parts[0].table)

    def _adjust(self) -> dict[str, Any]:
        self._settings = settle(self._fixed, self.controls)
        follow(self.controls, [self._settings])
        return {"settings": self._settings}

    def _start(self) -> Snapshot:
        """The map before the first command: what is known already."""
        s = self.engine.snapshot()
        heat = self._known(pairs(self._settings, self.x, self.y))
        return Snapshot(0, {"settings": self._settings}, {}, {"heat": heat}, 0, s.rounds, "idle")

    def _known(self, cells: list[Settings]) -> np.ndarray:
        found = [known(s) for s in cells]
        values = [np.nan if f is None else f.get(self.measure, -np.inf) for f in found]
        return np.array(values).reshape(len(self.y[1]), len(self.x[1]))

    def _make(self, settings: Settings) -> Iterator[Frame]:
        cells = pairs(settings, self.x, self.y)
        yield {"heat": self._known(cells)}
        for _ in sweep(cells, helpers=self._helpers, stale=lambda: self.engine.stale):
            yield {"heat": self._known(cells)}

    def caption(self, snapshot: Snapshot | None = None) -> str:
        """One sentence for those who can't see the picture."""
        s = (snapshot or self._start()).params["settings"]
        say = self.say
        said = [words(s.dataset, say), s.split_words(say, skew=False) + s.shift_words(say)]
        return self.parts[0].label + say(". ") + say("{said}.", said=say(", ").join(said))

    def _figure_title(self, s: Snapshot) -> str:
        p = self._settings
        of = {"method": words(p.method, self.say), "dataset": words(p.dataset, self.say)}
        return self.say("{method} on {dataset}, {clients} clients", **of, clients=p.clients)

    def _table(self, s: Snapshot) -> bytes:
        lines = [f"{self.y[0]},{self.x[0]},{self.measure}"]
        for b, row in zip(self.y[1], self.table()):
            lines += [f"{b},{a},{v if np.isfinite(v) else ''}" for a, v in zip(self.x[1], row)]
        return ("\n".join(lines) + "\n").encode()

    def _text(self, s: Snapshot) -> str:
        given = {k: v for k, v in vars(self._settings).items() if v != getattr(Settings(), k)}
        made = {k: literal(k, v) for k, v in given.items()}
        inner = ", ".join(f"{k}={v}" for k, v in made.items() if k not in (self.x[0], self.y[0]))
        return (
            f"{brought(self._settings)}from fedlearn.panels import Settings, grid\n\n"
            f"x = ({self.x[0]!r}, {tuple(self.x[1])!r})\n"
            f"y = ({self.y[0]!r}, {tuple(self.y[1])!r})\n"
            f"settings = Settings({inner})\n"
            f"print(grid(settings, x=x, y=y, measure={self.measure!r}))\n"
        )


def _axis(name: str) -> str:
    long = {"alpha": "skew α", "epochs": "local epochs E", "lr": "learning rate η",
            "clients": "clients N", "cohort": "cohort K", "batch": "batch B"}  # fmt: skip
    return long.get(name, SHORT.get(name, name))
