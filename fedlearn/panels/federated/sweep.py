"""A map of final accuracy over two settings, filled in cell by cell."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...checks import check, one_of
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
        seeds: One run of each pair for each: the map is their mean ± standard deviation.
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
        seeds: Sequence[int] | None = None,
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
        given: Any = seeds
        several = np.ndim(given) == 1
        seeds = tuple(np.asarray(given).tolist()) if several else ()  # Python's numbers, for Code
        fine = given is None or (several and len({*seeds}) == len(seeds) > 1)
        check("Sweep", "seeds", given, fine, "None, or two or more, each once", (0, 1, 2))
        taken = (x[0], y[0], *("seed",) * bool(seeds))
        if twice := next((name for name in taken if taken.count(name) > 1), None):
            raise ValueError(
                f"Sweep: the axes differ, got {twice} twice, e.g. x=('epochs', (1, 5))"
            )
        show = [s for s in show if s not in (x[0], y[0])]
        self.x, self.y, self.measure, self.seeds, self._helpers = x, y, measure, seeds, helpers
        check_names("Sweep", settings, taken)
        first = {"rounds": rounds, **settings, x[0]: x[1][0], y[0]: y[1][0]}
        self._fixed = self._settings = Settings(**first)
        one_of("Sweep", "measure", measure, self._fixed.columns)
        cells = pairs(self._fixed, x, y, seeds or None)  # a wrong value is said now
        say = spoken()
        title = say({"accuracy": "test accuracy", "loss": "test loss"}.get(measure, measure))
        if "rounds" not in (x[0], y[0]):
            title = say("{title} after {n} rounds", title=title, n=rounds)
        heat = Heat(
            title=title + (say(", {n} seeds: mean ± std", n=len(seeds)) if seeds else ""),
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
            rounds=len(cells),
            seconds=0.0,
            readout=lambda s: [],
            predict=predict,
            code=self._text,
            name=f"sweep-{x[0]}-{y[0]}",
            preview=preview,
        )
        if self.readout:
            self.readout.unit = say("run" if seeds else "cell")
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
        known = self._known(pairs(self._settings, self.x, self.y, self.seeds or None))
        return Snapshot(0, {"settings": self._settings}, {}, known, 0, s.rounds, "idle")

    def _known(self, cells: list[Settings]) -> Frame:
        found = [known(s) for s in cells]
        values = np.array([np.nan if f is None else f.get(self.measure, -np.inf) for f in found])
        each = values.reshape(len(self.y[1]), len(self.x[1]), -1)
        with np.errstate(invalid="ignore"):  # one that failed: -inf, and no spread
            return {"heat": each.mean(-1)} | ({"spread": each.std(-1)} if self.seeds else {})

    def _make(self, settings: Settings) -> Iterator[Frame]:
        cells = pairs(settings, self.x, self.y, self.seeds or None)
        yield self._known(cells)
        for _ in sweep(cells, helpers=self._helpers, stale=lambda: self.engine.stale):
            yield self._known(cells)

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
        lines = [",".join((self.y[0], self.x[0], self.measure, *("std",) * bool(self.seeds)))]
        maps = [self.table(), *[self.parts[0].spread] * bool(self.seeds)]
        for (i, b), (j, a) in itertools.product(enumerate(self.y[1]), enumerate(self.x[1])):
            row = [str(m[i, j]) if np.isfinite(m[i, j]) else "" for m in maps]
            lines.append(",".join((str(b), str(a), *row)))
        return ("\n".join(lines) + "\n").encode()

    def _text(self, s: Snapshot) -> str:
        given = {k: v for k, v in vars(self._settings).items() if v != getattr(Settings(), k)}
        made = {k: literal(k, v) for k, v in given.items()}
        inner = ", ".join(f"{k}={v}" for k, v in made.items() if k not in (self.x[0], self.y[0]))
        seeds = f", seeds={self.seeds!r}" if self.seeds else ""
        run = f"grid(settings, x=x, y=y, measure={self.measure!r}{seeds})"
        several = f"found = {run}\nprint(found.mean(0), found.std(0))\n"
        return (
            f"{brought(self._settings)}from fedlearn.panels import Settings, grid\n\n"
            f"x = ({self.x[0]!r}, {tuple(self.x[1])!r})\n"
            f"y = ({self.y[0]!r}, {tuple(self.y[1])!r})\n"
            f"settings = Settings({inner})\n" + (several if seeds else f"print({run})\n")
        )


def _axis(name: str) -> str:
    long = {"alpha": "skew α", "epochs": "local epochs E", "lr": "learning rate η",
            "clients": "clients N", "cohort": "cohort K", "batch": "batch B"}  # fmt: skip
    return long.get(name, SHORT.get(name, name))
