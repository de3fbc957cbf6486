"""A control for each setting, and how the controls follow each other."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as W
import numpy as np

from ...checks import check
from .. import controls as C
from ..words import spoken, words
from .settings import DATASETS, FEATURES, METHODS, MODELS, OWN, PARTITIONS, Settings, least

_DATA = ("dataset", "clients", "partition", "alpha", "feature")
_TRAINING = ("method", "model", "epochs", "batch", "lr", "cohort")
_PRIVACY = ("privacy",)
OFFERED = (*_DATA, *_TRAINING, *_PRIVACY)  # what ``show`` may name
SHOWN = tuple(name for name in OFFERED if name not in ("feature", "privacy"))
SKEWS = ("alpha", "size_alpha", "labels_each", "shards_each")  # one place for all of them
TOGETHER = {  # under one name: the skew is what the split makes of it
    "alpha": SKEWS,
    "feature": ("feature", "amount"),
    "method": ("method", *OWN),  # those of some methods
    "privacy": METHODS["dp_fedavg"],
}


def offered(who: str, show: Sequence[str], known: Sequence[str] = OFFERED) -> None:
    """Refuse a name that isn't among those known."""
    names = [show] if isinstance(show, str) else show
    if wrong := [name for name in names if isinstance(show, str) or name not in known]:
        raise ValueError(
            f"{who} takes any of {', '.join(known)}, got {wrong[0]!r}, e.g. {tuple(known[:2])!r}"
        )


def make_controls(s: Settings, show: Sequence[str], most: int = 100) -> dict[str, W.Widget]:
    """Controls of the settings named in ``show``, under their headings; ``most`` clients."""
    out: dict[str, W.Widget] = {}
    for title, group in (("DATA", _DATA), ("TRAINING", _TRAINING), ("PRIVACY", _PRIVACY)):
        names = [n for name in group if name in show for n in TOGETHER.get(name, (name,))]
        if names := [n for n in names if n not in out]:
            out[f"heading {title}"] = C.heading(title)
            out.update((n, make_control(s, n, most)) for n in names)
    return out


def make_control(s: Settings, name: str, most: int = 100) -> W.Widget:
    """The control of one setting, at its value; ``most`` clients."""
    say = spoken()

    def menu(title: str, values: Sequence[Any], tip: str = "") -> W.Widget:
        return C.menu(title, {words(v, say): v for v in values}, getattr(s, name), tip=tip)

    def log(title: str, low: float, high: float, tip: str, step: float = 0.05) -> W.Widget:
        value = getattr(s, name)
        check("panel", name, value, value > 0, "> 0 to be on a slider, or not shown", low)
        return C.log_slider(title, value, min(low, value), max(high, value), step=step, tip=tip)

    def whole(title: str, low: int, high: int, tip: str = "") -> W.Widget:
        value = getattr(s, name) or s.clients
        return C.slider(title, value, min(low, value), max(high, value), tip=tip)

    def few(title: str, values: Sequence[float], tip: str) -> W.Widget:
        value = getattr(s, name)
        return C.choices(
            title, {words(v, say): v for v in sorted({*values, value})}, value, tip=tip
        )

    need = least(s.pipeline, most, say)
    batches = sorted({8, 16, 32, 64, 128} | ({s.batch} if s.batch else set()))
    own = () if isinstance(s.method, str) else (s.method,)  # the student's, under its name
    made: dict[str, Callable[[], W.Widget]] = {
        # the larger data sets only if asked for: they are files
        "dataset": lambda: menu("Dataset", [
            *dict.fromkeys((*DATASETS[: 4 * isinstance(s.model, str)], s.dataset))]),
        "clients": lambda: whole("Clients", 2, most, say("How many share the data") + need),
        "partition": lambda: menu("Split", [*PARTITIONS], "How the examples are dealt out"),
        "alpha": lambda: log(
            "Skew α", 0.01, 100, "Dirichlet concentration: small is uneven, large is even", 0.1),
        "size_alpha": lambda: log(
            "Sizes α", 0.01, 100, "Dirichlet concentration of the clients' sizes", 0.1),
        "labels_each": lambda: whole("Labels each", 1, 10),
        "shards_each": lambda: whole("Shards each", 1, 10),
        "feature": lambda: menu(
            "Shift", FEATURES, "What each client does to its examples, or to their names"),
        "amount": lambda: C.float_slider(
            "Amount", s.amount, 0, 1, step=0.05, tip="How much the clients differ in it"),
        "method": lambda: menu("Method", (*METHODS, *own)),
        "mu": lambda: log(
            "Pull μ", 0.001, 10,
            "How strongly a client is held to the broadcast θ: FedProx's μ, FedDyn's α", 0.1),
        "server_lr": lambda: log("Server rate", 0.001, 10, "η_s: length of the server's step"),
        "beta": lambda: C.float_slider(
            "Momentum β", s.beta, 0, max(0.99, s.beta), step=0.01,
            tip="What is kept of the last step"),
        "noise": lambda: few(
            "Noise z", np.arange(0.25, 5.1, 0.25).tolist(), "Standard deviation on the sum, in S"),
        "rate": lambda: few("Chance q", (0.05, 0.1, 0.2, 0.5, 1.0), "To be in a round's cohort"),
        "clip": lambda: few(
            "Clip S", (0.01, 0.03, 0.1, 0.3, 0.5, 1.0, 3.0, 10.0), "No update is longer"),
        "budget": lambda: few(
            "Budget ε", (1.0, 2.0, 4.0, 8.0, 16.0, 64.0, math.inf), "Where the run ends"),
        "model": lambda: menu(
            "Model", [*dict.fromkeys((*MODELS, s.model))], "Network: one hidden layer of 32"),
        "epochs": lambda: whole(
            "Local epochs", 1, 20, "E: passes over a client's own data in a round"),
        "batch": lambda: C.choices(
            "Batch", [*batches, "all"], s.batch or "all", tip="B: examples of one local step"),
        "lr": lambda: log("Learning rate", 0.001, 10, "η: length of a local step"),
        "cohort": lambda: whole(
            "Cohort", 1, max(s.clients, 2), say("K: clients called in a round") + need),
    }  # fmt: skip
    return made[name]()


def read(fixed: Settings, controls: Mapping[str, W.Widget]) -> dict[str, Any]:
    """Every setting: the control's value where there is one."""
    shown = {k: setting(c) for k, c in controls.items() if k in vars(fixed)}
    s = vars(fixed) | shown
    if s["cohort"] is not None and s["cohort"] >= s["clients"]:
        s["cohort"] = None  # everybody
    return s


def setting(control: W.Widget) -> Any:
    """A control's value as a setting: 0.12589254 is 0.126, which keeps the code readable."""
    v = C.value_of(control)
    return None if v == "all" else float(f"{v:.3g}") if isinstance(v, float) else v


def fit_cohort(controls: Mapping[str, W.Widget], clients: int) -> None:
    """The cohort's slider ends at N; where everybody took part, everybody still does."""
    if "cohort" in controls:
        slider, top = controls["cohort"], max(clients, 2)  # a slider needs two values
        everybody = slider.value == slider.max
        if slider.max != top:
            slider.value = min(slider.value, top)
            slider.max = top
            if everybody:
                slider.value = top


def follow(controls: Mapping[str, W.Widget], runs: Sequence[Settings]) -> None:
    """What makes no difference to any of the runs is off, or out of sight."""
    counts = {name: any(s.applies(name) for s in runs) for name in controls}
    for name in {"epochs", "batch", "amount", "cohort", *SKEWS} & set(controls):
        controls[name].disabled = not counts[name]
        C.mark(controls[name], "fl-off", not counts[name])
    splitless = not any(PARTITIONS[s.partition] for s in runs)
    for name in {*OWN, *SKEWS} & set(controls):  # α, switched off, where the split has no skew
        hide(controls[name], not (counts[name] or (name == "alpha" and splitless)))


def hide(control: W.Widget, gone: bool) -> None:
    """Take a control out of sight, or bring it back; its value stays."""
    C.mark(control, "fl-gone", gone)
