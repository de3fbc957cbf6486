"""A and B: two runs side by side that share everything but one setting."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as W

from ...checks import one_of
from .. import controls as C
from ..engine import Frame, Snapshot
from ..explorable import Explorable
from ..parts.curve import Curve
from ..parts.dots import Dots
from ..parts.holdings import Holdings
from ..save import table
from ..words import Words, said, spoken, words
from . import controls as knobs
from .code import code
from .frames import frames
from .settings import MODELS, OWN, Settings, check_names

_DIFFER: dict[str, tuple[str, tuple[Any, ...]]] = {  # as the menu has it; B: the first not A's
    "dataset": ("dataset", ("digits", "breast_cancer")),
    "clients": ("clients", (5, 4)),
    "partition": ("split", ("iid", "dirichlet_label")),
    "alpha": ("skew α", (100.0, 0.1)),
    "feature": ("shift", ("label_swap", "none")),
    "amount": ("shift amount", (1.0, 0.0)),
    "method": ("method", ("fedsgd", "fedavg")),
    "model": ("model", MODELS[::-1]),
    "epochs": ("local epochs", (1, 20)),
    "batch": ("batch", (8, None)),
    "lr": ("learning rate", (0.1, 1.0)),
}
VARY = tuple(_DIFFER)
_BESIDE = {"holdings": (Holdings, "counts"), "clients": (Dots, "clients")}
_LONG = {"Epochs": "Local epochs", "Rate η": "Learning rate"}  # beside a letter: the short one
_SWITCH = {"alpha": "partition", "amount": "feature", "epochs": "method", "batch": "method"}


class Compare(Explorable):
    """Two federated runs that share the seed and every setting but one: A is blue, B orange.

    The menu "Differ in" chooses that one setting. It leaves A as it is; B is A but for that one,
    for which B has a control of its own. That keeps its value while the menu is elsewhere.

    Args:
        vary: Where the menu starts: ``dataset``, ``clients``, ``partition``, ``alpha``,
            ``feature``, ``amount``, ``method``, ``model``, ``epochs``, ``batch`` or ``lr``.
        a: Its value in A.
        b: Its value in B.
        show: Controls of what A and B share; what differs has one for each of them.
        curves: One or two columns to draw: ``loss``, ``accuracy``, ``worst``, one of the extras.
        beside: The other two pictures: ``holdings``, who holds what, or ``clients``, a dot each.
        rounds: Length of a run.
        predict: The question under the picture.
        seconds: How long a run started by the Run button takes at least.
        preview: Compute the first run now.
        **settings: Any other of :class:`Settings`, of A and B. ValueError if one is out of range.

    Example:
        >>> panel = Compare(vary="alpha", a=100.0, b=0.1, show=("epochs",), rounds=3)
        >>> sorted(panel.engine.snapshot().columns)[:2], panel.parts[0].lines[1]["name"]
        (['accuracy_a', 'accuracy_b'], 'B: α = 0.1')
        >>> panel.controls["vary"].value = "epochs"
        >>> panel.controls["b"].value = 20
        >>> panel.settings("a").epochs, panel.settings("b").epochs, panel.settings("b").alpha
        (5, 20, 100.0)
        >>> panel.close()
    """

    _most_clients = 100

    def __init__(
        self,
        *,
        vary: str = "partition",
        a: Any = "dirichlet_label",
        b: Any = "dirichlet_client",
        show: Sequence[str] = ("alpha", "clients", "epochs"),
        curves: Sequence[str] = ("loss", "accuracy"),
        beside: str = "holdings",
        rounds: int = 60,
        predict: str = "Predict first: which of the two learns faster, A or B?",
        seconds: float = 2.0,
        preview: bool = True,
        **settings: Any,
    ):
        one_of("Compare", "vary", vary, VARY)
        one_of("Compare", "beside", beside, tuple(_BESIDE))
        knobs.offered("Compare: show", show)
        self._shown = set(show)
        check_names("Compare", settings, (vary,))
        self._fixed = Settings(**{"rounds": rounds, **settings, vary: a})
        replace(self._fixed, **{vary: b})  # a wrong value is said now
        knobs.offered("Compare: curves", curves, self._fixed.columns)
        share: Any = {"ylim": (0, 1), "legend": "bottom"}
        look: dict[str, Any] = {
            "loss": {"log": True, "title": "test loss (log scale)"},
            "accuracy": {"title": "test accuracy", **share},
            "worst": {"title": "test worst", **share},
        }
        self._curves = {c: Curve({"A": "", "B": ""}, **look.get(c, {"title": c})) for c in curves}
        part, key = _BESIDE[beside]
        super().__init__(
            _all_controls(self._fixed, show, vary, b, self._most_clients),
            self._make,
            [*self._curves.values(), *(part(key=f"{key}_{c}") for c in "ab")],
            rounds=rounds,
            seconds=seconds,
            readout=lambda s: _numbers(s, self.say),
            predict=predict,
            code=lambda s: "\n".join(f"# {c.upper()}\n{code(s.params[c])}" for c in "ab"),
            name="compare",
            preview=preview,
        )

    @property
    def vary(self) -> str:
        """The setting in which A and B differ now."""
        return str(self.controls["vary"].value)

    def settings(self, which: str = "a") -> Settings:
        """The settings of ``"a"`` or ``"b"``, as the controls were last moved."""
        return self._runs[which]

    def _make(self, vary: str, **settings: Settings) -> Iterator[Frame]:
        more: Any = {"worst": True} if "worst" in self._curves else {}
        runs = {c: frames(s, **more) for c, s in settings.items()}
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
        differ = {c: _differ(s.params, c, self.say) for c in "ab"}
        for column, curve in self._curves.items():
            curve.columns = {f"{c.upper()}: {differ[c]}": f"{column}_{c}" for c in "ab"}
        for part, c in zip(self.parts[-2:], "ab"):
            part.title = f"{c.upper()}: {differ[c]}"
        super()._frame(s)
        if not (s.error or self._wrong):  # one of the two may have ended early
            self.status.error = s.latest.get("ended", "")

    def caption(self, snapshot: Snapshot | None = None) -> str:
        """One sentence for those who can't see the picture."""
        s = snapshot or self.engine.snapshot()
        both, say = [], self.say
        for c in "ab":
            loss = s.columns.get(f"loss_{c}")
            end = "" if loss is None else say(", loss {v:.3g}", v=loss[-1])
            both.append(f"{c.upper()}: {_differ(s.params, c, say)}{end}")
        where = {"both": say("; ").join(both), "n": s.round}
        dataset = words(s.params["a"].dataset, say)
        return say("{both}; after {n} rounds on {dataset}.", **where, dataset=dataset)

    def _figure_title(self, s: Snapshot) -> str:
        return self.caption(s)

    def _stem(self, s: Snapshot) -> str:
        return f"compare-{s.params['vary']}"

    def _table(self, s: Snapshot) -> bytes:
        vary = s.params["vary"]
        differ = {c: getattr(s.params[c], vary) for c in "ab"}
        return table(s.columns, vars(s.params["a"]) | {"vary": vary} | differ)

    def _adjust(self) -> dict[str, Any]:
        vary = self.vary
        differs = {vary: knobs.setting(self.controls[f"b {vary}"])}
        one = knobs.read(self._fixed, self.controls)
        knobs.fit_cohort(self.controls, min(one["clients"], differs.get("clients", one["clients"])))
        one = knobs.read(self._fixed, self.controls)
        self._runs = {"a": _within(one), "b": _within(one | differs)}
        knobs.follow(self.controls, [*self._runs.values()])
        seen = self._seen()
        self.controls |= {"a": self.controls[vary], "b": self.controls[f"b {vary}"]}
        for name in vars(self._fixed):
            if name in self.controls:
                self._place(name, name in seen, name == vary)
        self._hide_headings()
        return {"vary": vary, **self._runs}

    def _seen(self) -> set[str]:
        """The settings of A whose controls are to be seen."""
        seen = self._shown | {self.vary}
        if not self.settings("a").applies(self.vary):
            seen.add(_SWITCH[self.vary])  # what would make it count has to be in reach
        return seen | {below for name in seen for below in knobs.TOGETHER.get(name, ())}

    def _place(self, name: str, seen: bool, differs: bool) -> None:
        one, two = self.controls[name], self.controls.get(f"b {name}")
        if differs or not seen or name not in (*knobs.SKEWS, *OWN):  # follow() did those
            knobs.hide(one, not seen)
        if two is not None:
            brief = two.description.removeprefix("B: ")
            long = {self.say(k): self.say(v) for k, v in _LONG.items()}
            one.description = f"A: {brief}" if differs else long.get(brief, brief)
            two.disabled = one.disabled
            knobs.hide(two, not differs)

    def _hide_headings(self) -> None:
        """A heading with nothing below it is hidden, too."""
        below = False
        for name, control in reversed(self.controls.items()):
            if name.startswith("heading"):
                knobs.hide(control, not below)
                below = False
            elif name not in ("a", "b"):
                below = below or "fl-gone" not in control._dom_classes


def _all_controls(
    s: Settings, show: Sequence[str], vary: str, b: Any, most: int
) -> dict[str, W.Widget]:
    """The menu, a control for all that A and B may share, after each its twin for B.

    All are made once and shown by turns: a change of the menu makes no widget and loses no value.
    """
    made: dict[str, W.Widget] = {"heading AB": C.heading("A AND B")}
    short = {spoken()(v): spoken()(k) for k, v in _LONG.items()}
    titles = {title: name for name, (title, _) in _DIFFER.items()}
    made["vary"] = C.menu("Differ in", titles, vary, tip="The one setting in which A and B differ")
    wanted = {name for name in knobs.OFFERED if name in VARY or name in show}
    for name, control in knobs.make_controls(s, tuple(wanted), most).items():
        made[name] = control
        if name in VARY:
            same = name in ("dataset", "model") and not s.plain  # others needn't fit your own
            other = next(v for v in _DIFFER[name][1] if same or v != vars(s)[name])
            value = b if name == vary else vars(s)[name] if same else other
            twin = knobs.make_control(replace(s, cohort=None, **{name: value}), name, most)
            brief = short.get(twin.description, twin.description)
            twin.description = f"B: {brief}"
            made[f"b {name}"] = twin
    return made


def _within(values: Mapping[str, Any]) -> Settings:
    """Settings whose cohort, shared by two of unlike size, is at most everybody."""
    K = values["cohort"]
    return Settings(**{**values, "cohort": K and min(K, values["clients"])})


def _differ(params: Mapping[str, Any], which: str, say: Words) -> str:
    return said(params["vary"], getattr(params[which], params["vary"]), say)


def _numbers(s: Snapshot, say: Words) -> list[str]:
    ends = {c.upper(): s.columns.get(f"accuracy_{c}") for c in "ab"}
    return [f"{c}: {say('accuracy {v:.3f}', v=v[-1])}" for c, v in ends.items() if v is not None]
