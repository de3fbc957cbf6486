"""A and B: two runs side by side that share everything but one setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as W

from . import controls as C
from . import kernel
from .engine import Frame, Snapshot
from .explorable import Explorable
from .knobs import SHOWN, follow, make_controls, settled, tidy
from .parts import Curve, Holdings
from .scales import SHORT, words
from .study import Settings, code, frames

VARY = tuple(name for name in SHOWN if name != "cohort")


class Compare(Explorable):
    """Two federated runs that share the seed and every setting but one: A is blue, B orange.

    Args:
        vary: The setting in dispute: ``dataset``, ``clients``, ``partition``, ``alpha``,
            ``method``, ``model``, ``epochs``, ``batch`` or ``lr``.
        a: Its value in A.
        b: Its value in B.
        show: Controls of what A and B share; what differs has one for each of them.
        rounds: Length of a run.
        predict: The question under the picture.
        seconds: How long a run started by the Run button takes at least.
        preview: Compute the first run now.
        **more: Any other setting of :class:`Panel`.

    Raises:
        ValueError: If a value is out of its range; the message names the rule and an example.

    Example:
        >>> panel = Compare(vary="alpha", a=100.0, b=0.1, show=("epochs",), rounds=3)
        >>> sorted(panel.engine.snapshot().columns)[:2], panel.parts[0].lines[1]["name"]
        (['accuracy_a', 'accuracy_b'], 'B: α = 0.1')
        >>> panel.close()
    """

    def __init__(
        self,
        *,
        vary: str = "partition",
        a: Any = "dirichlet_label",
        b: Any = "dirichlet_client",
        show: Sequence[str] = ("alpha", "clients", "epochs"),
        rounds: int = 60,
        predict: str = "Predict first: which of the two learns faster, A or B?",
        seconds: float = 2.0,
        preview: bool = True,
        **more: Any,
    ):
        if vary not in VARY:
            raise ValueError(
                f"Compare: vary must be one of {', '.join(VARY)}, got {vary!r}, e.g. 'partition'"
            )
        if wrong := [s for s in show if s not in SHOWN]:
            raise ValueError(
                f"Compare: show takes any of {', '.join(SHOWN)}, got {wrong[0]!r}, e.g. ('lr',)"
            )
        show = [s for s in show if s != vary]
        self.vary = vary
        self._fixed = Settings(**{"rounds": rounds, **more, vary: a})
        other = replace(self._fixed, **{vary: b})
        self._loss = Curve({"A": "loss_a", "B": "loss_b"}, title="test loss (log scale)", log=True)
        self._accuracy = Curve(
            {"A": "accuracy_a", "B": "accuracy_b"},
            title="test accuracy",
            ylim=(0, 1),
            legend="bottom",
        )
        disputed: dict[str, W.Widget] = {"heading dispute": C.heading("A AND B")}
        for letter, s in (("a", self._fixed), ("b", other)):
            made = make_controls(s, (vary,))
            disputed[letter] = control = made.pop(vary)
            control.description = f"{letter.upper()}: {control.description}"
            for other_widget in made.values():  # its heading, and the other splits' skews
                kernel.close_tree(other_widget)
        super().__init__(
            disputed | make_controls(self._fixed, show),
            self._make,
            [self._loss, self._accuracy, *(Holdings(key=f"counts_{c}") for c in "ab")],
            rounds=rounds,
            seconds=seconds,
            readout=_numbers,
            predict=predict,
            code=lambda s: "\n".join(f"# {c.upper()}\n{code(self._of(s.params, c))}" for c in "ab"),
            name=f"compare-{vary}",
            preview=preview,
        )

    def values(self) -> dict[str, Any]:
        """What A and B share, and ``a`` and ``b``, the two values of what they don't."""
        two = {c: tidy(self.controls[c].value) for c in "ab"}
        if self.vary == "batch":
            two = {c: None if v == "all" else v for c, v in two.items()}
        return settled(self._fixed, self.controls) | two

    def settings(self, which: str = "a") -> Settings:
        """The settings of ``"a"`` or ``"b"``."""
        return self._of(self.values(), which)

    def _of(self, params: Any, which: str) -> Settings:
        s = {k: v for k, v in params.items() if k not in ("a", "b")} | {self.vary: params[which]}
        if s["cohort"] is not None:
            s["cohort"] = min(s["cohort"], s["clients"])
        return Settings(**s)

    def _make(self, **params: Any) -> Iterator[Frame]:
        runs = {c: frames(self._of(params, c)) for c in "ab"}
        ends: dict[str, str] = {}
        while True:
            frame: dict[str, Any] = {}
            for c, run in runs.items():
                if c in ends:
                    continue
                try:
                    own = next(run, None)
                except ArithmeticError as e:  # diverged: the other one goes on
                    ends[c] = f"{c.upper()}: {e}"
                    frame["ended"] = " ".join(ends.values())
                    continue
                if own is None:
                    return
                labels = {"labels": own.pop("labels")} if "labels" in own else {}
                frame |= {f"{k}_{c}": v for k, v in own.items()} | labels
            if len(ends) == 2:
                raise ArithmeticError(" ".join(ends.values()))
            yield frame

    def _frame(self, s: Snapshot) -> None:
        said = {c: self._words(s.params[c]) for c in "ab"}
        for curve, column in ((self._loss, "loss"), (self._accuracy, "accuracy")):
            curve.columns = {f"{c.upper()}: {said[c]}": f"{column}_{c}" for c in "ab"}
        for part, c in zip(self.parts[2:], "ab"):
            part.title = f"{c.upper()}: {said[c]}"
        super()._frame(s)
        if not s.error:  # one of the two may have ended early
            self.status.error = s.latest.get("ended", "")

    def _words(self, value: Any) -> str:
        return words(value) if isinstance(value, str) else f"{SHORT[self.vary]} = {words(value)}"

    def caption(self, snapshot: Snapshot | None = None) -> str:
        """One sentence for those who can't see the picture."""
        s = snapshot or self.engine.snapshot()
        said = []
        for c in "ab":
            loss = s.columns.get(f"loss_{c}")
            end = "" if loss is None else f", loss {loss[-1]:.3g}"
            said.append(f"{c.upper()}: {self._words(s.params[c])}{end}")
        return f"{'; '.join(said)}; after {s.round} rounds on {words(s.params['dataset'])}."

    def _figure_title(self, s: Snapshot) -> str:
        return self.caption(s)

    def _stem(self, s: Snapshot) -> str:
        return self.name

    def _adjust(self) -> None:
        follow(self.controls, [self.settings(c) for c in "ab"])


def _numbers(s: Snapshot) -> list[str]:
    said = []
    for c in "ab":
        accuracy = s.columns.get(f"accuracy_{c}")
        if accuracy is not None:
            said.append(f"{c.upper()}: accuracy {accuracy[-1]:.3f}")
    return said
