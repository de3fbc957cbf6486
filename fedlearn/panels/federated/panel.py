"""The panel of the course: a federated run under the hand."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ipywidgets as W

from ...checks import one_of
from ..engine import Frame, Snapshot
from ..explorable import Explorable
from ..parts.base import Part
from ..parts.boundary import Boundary
from ..parts.curve import Curve
from ..parts.dots import Dots
from ..parts.holdings import Holdings
from ..save import table
from ..words import Words, words
from .code import code
from .controls import SHOWN, fit_cohort, follow, make_controls, offered, read
from .frames import References, frames
from .settings import SPENT, Settings, check_names

PARTS = {
    "loss": lambda x: Curve("loss", title="test loss (log scale)", x=x, log=True),
    "accuracy": lambda x: Curve("accuracy", title="test accuracy", x=x, ylim=(0, 1),
                                legend="bottom"),
    "holdings": lambda x: Holdings(),
    "clients": lambda x: Dots(),
    "boundary": lambda x: Boundary(),
    "privacy": lambda x: Curve("accuracy", title="test accuracy against ε", x="epsilon",
                               xlabel="ε spent", ylim=(0, 1), legend="bottom"),
    "epsilon": lambda x: Curve({"spent": "epsilon", "budget": "budget"}, title="ε spent", x=x,
                               legend="bottom"),
    "noise": lambda x: Curve({"updates": "updates", "noise": "noise"}, x=x, log=True,
                             title="norm of the step: updates and noise", ylim=(0.01, 100)),
}  # fmt: skip


class Panel(Explorable):
    """A federated run that answers the hand: sliders, live curves, who holds what.

    Args:
        show: Controls that the reader sees, any of ``dataset``, ``clients``, ``partition``,
            ``alpha`` (the skew: also labels or shards each, as the split wants), ``method`` (and
            what it has beside lr), ``model``, ``epochs``, ``batch``, ``lr``, ``cohort``; and, if
            asked for, ``feature`` (a menu, and its amount) and, of ``method="dp_fedavg"``,
            ``privacy`` (noise, rate, clip, budget). The others keep the value given.
        x: ``"round"``, or ``"bytes"`` for megabytes sent.
        predict: The question under the picture.
        preview: Compute the first run now, so that the picture is never blank.
        parts: One to four pictures of ``loss``, ``accuracy``, ``holdings``, ``clients`` and, for
            ``dataset="toy"`` and at most six clients, ``boundary``: the plane, where each client's
            model and the shared one draw the line; of DP-FedAvg also ``privacy`` (accuracy against
            epsilon), ``epsilon`` (over rounds) and ``noise`` (its norm, and the updates'). Or parts
            of your own, ``Curve("worst")``: accuracy on the worst client's examples, an extra, ….
        seconds: How long a run started by the Run button takes at least.
        **settings: Of the run, see :class:`Settings`; on a slider, set to its nearest step. A
            method of your own stands in the menu under its name. ValueError if a value is out of
            its range; the message names the rule and an example.

    Example:
        >>> panel = Panel(show=("alpha", "epochs"), rounds=5)
        >>> panel.controls["alpha"].value
        0.1
        >>> panel.engine.snapshot().round
        5
        >>> panel.close()
    """

    _most_clients = 100

    def __init__(
        self,
        *,
        show: Sequence[str] = SHOWN,
        x: str = "round",
        predict: str = "Predict first: what happens to the loss if α goes from 100 to 0.01?",
        preview: bool = True,
        parts: Sequence[str | Part] = ("loss", "accuracy", "holdings", "clients"),
        seconds: float = 2.0,
        **settings: Any,
    ):
        offered("Panel: show", show)
        offered("Panel: parts", [p for p in parts if not isinstance(p, Part)], (*PARTS,))
        check_names("Panel", settings)
        s = self._fixed = Settings(**settings)
        one_of("Panel", "x", x, ("round", "bytes"))
        made = [p if isinstance(p, Part) else PARTS[p](x) for p in parts]
        drawn = [c for p in made if isinstance(p, Curve) for c in (*p.columns.values(), *p.over)]
        offered("Panel: a Curve", drawn, (*s.columns, *SPENT, "round"))
        self._worst = "worst" in drawn
        most = 500 if s.private else self._most_clients  # privacy is for crowds
        if "boundary" in parts:
            if s.dataset != "toy" or "dataset" in show or s.clients > 6:
                raise ValueError(
                    "Panel: 'boundary' shows the toy plane alone, with 1 to 6 clients, got "
                    f"{s.dataset!r} with {s.clients} and show={show!r}, e.g. dataset='toy', "
                    "clients=3, show=('epochs',)"
                )
            most = min(most, 6)
        self._references = References()
        super().__init__(
            make_controls(s, show, most),
            self._make,
            made,
            rounds=s.rounds,
            seconds=seconds,
            readout=lambda s: _numbers(s, self.say),
            predict=predict,
            code=lambda s: code(s.params["settings"]),
            preview=preview,
        )

    def settings(self) -> Settings:
        """The settings as the controls were last moved."""
        return self._settings

    def _adjust(self) -> dict[str, Any]:
        self._settings = settle(self._fixed, self.controls)
        follow(self.controls, [self._settings])
        return {"settings": self._settings}

    def _make(self, settings: Settings) -> Iterator[Frame]:
        return frames(settings, self._references, worst=self._worst)

    def caption(self, snapshot: Snapshot | None = None) -> str:
        s = snapshot or self.engine.snapshot()
        p, say = s.params["settings"], self.say
        known = [k for k in ("loss", "accuracy") if k in s.columns]
        said = [say("{n} rounds", n=s.round) if s.round else say("start")]
        said += [f"{say(k)} {s.columns[k][-1]:.2f}" for k in known]
        end = say(", ").join(said + _spent(s, say))
        text = "{method} on {dataset}, {clients} clients, {split}, {end}."
        return say(text, **_where(p, say), end=end)

    def _figure_title(self, s: Snapshot) -> str:
        p, say = s.params["settings"], self.say
        local = f", E = {p.epochs}, B = {words(p.batch, say)}" if p.applies("epochs") else ""
        local += f", z = {p.noise:g}, q = {p.rate:g}, S = {p.clip:g}" if p.private else ""
        local = local.replace(", ", say(", "))
        text = "{method} on {dataset}: {clients} clients, {split}{local}, η = {lr}"
        return say(text, **_where(p, say), local=local, lr=words(p.lr))

    def _stem(self, s: Snapshot) -> str:
        p = s.params["settings"]
        method = p.method if isinstance(p.method, str) else words(p.method)
        return f"{method}-{p.dataset if isinstance(p.dataset, str) else words(p.dataset)}"

    def _table(self, s: Snapshot) -> bytes:
        pooled = {f"centralised_{k}": v for k, v in s.latest.get("reference", {}).items()}
        return table({**s.columns, **pooled}, s.params)


def settle(fixed: Settings, controls: Mapping[str, W.Widget]) -> Settings:
    """The settings after a move, made and checked this once."""
    fit_cohort(controls, read(fixed, controls)["clients"])
    return Settings(**read(fixed, controls))


def _where(s: Settings, say: Words) -> dict[str, Any]:
    split = s.split_words(say) + s.shift_words(say)
    of = {"method": words(s.method, say), "dataset": words(s.dataset, say)}
    return {**of, "clients": s.clients, "split": split}


def _numbers(s: Snapshot, say: Words) -> list[str]:
    accuracy, sent = s.columns.get("accuracy"), s.columns.get("bytes")
    said = []
    if accuracy is not None and len(accuracy):
        said.append(say("accuracy {v:.3f}", v=accuracy[-1]))
    if sent is not None and len(sent):
        mega = "{mega:.1f} MB sent" if sent[-1] >= 1e5 else "{kilo:.0f} kB sent"
        said.append(say(mega, mega=sent[-1] / 1e6, kilo=sent[-1] / 1e3))
    return said + _spent(s, say)


def _spent(s: Snapshot, say: Words) -> list[str]:
    """Of a private run: the epsilon spent, and why it ended."""
    p = s.params["settings"]
    if not p.private:
        return []
    of = say(" of {budget:g}", budget=p.budget) if math.isfinite(p.budget) else ""
    words = f"ε {s.columns['epsilon'][-1] if s.round else 0.0:.1f}{of}"
    why = say("stopped: the next round costs too much")
    return [words, why] if s.state == "done" and s.round < s.rounds else [words]
