"""The settings of a run as controls, and how these follow each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as W

from . import controls as C
from .scales import SHORT, words
from .study import DATASETS, METHODS, PARTITIONS, Settings

SHOWN = (
    "dataset",
    "clients",
    "partition",
    "alpha",
    "method",
    "model",
    "epochs",
    "batch",
    "lr",
    "cohort",
)
_DATA = ("dataset", "clients", "partition", "alpha")
_TRAINING = ("method", "model", "epochs", "batch", "lr", "cohort")
_SPLITS = {
    "even (iid)": "iid",
    "Dirichlet by label": "dirichlet_label",
    "Dirichlet by client": "dirichlet_client",
    "shards": "shards",
    "labels per client": "labels_per_client",
    "sizes only (Dirichlet)": "quantity",
    "labels and sizes": "label_and_quantity",
}
_MODELS = {"softmax": "softmax", "network (32)": "mlp"}


def split_words(p: Any) -> str:
    """The split of the settings, in words.

    Example:
        >>> split_words(vars(Settings(partition="shards")))
        'shards split, shards each = 2'
    """
    kind = PARTITIONS[p["partition"]]
    name = next(k for k, v in _SPLITS.items() if v == p["partition"])
    if kind is None:
        return f"{name} split"
    sizes = f", sizes α = {words(p['size_alpha'])}" if name == "labels and sizes" else ""
    return f"{name} split, {SHORT[kind]} = {words(p[kind])}{sizes}"


def settled(fixed: Settings, controls: Mapping[str, W.Widget]) -> dict[str, Any]:
    """Every setting: the control's value where there is one.

    Example:
        >>> made = make_controls(Settings(clients=6), ("clients", "cohort"))
        >>> made["cohort"].value = 3
        >>> settled(Settings(clients=6), made)["cohort"]
        3
    """
    known = vars(fixed)
    shown = {k: tidy(c.value) for k, c in controls.items() if k in known and C.has_value(c)}
    s = known | shown
    everybody = s["cohort"] is None or s["cohort"] >= s["clients"]
    batch = None if s["batch"] == "all" else s["batch"]
    return s | {"cohort": None if everybody else s["cohort"], "batch": batch}


def follow(controls: Mapping[str, W.Widget], runs: Sequence[Settings]) -> None:
    """The cohort ends at N; what makes no difference to any of the runs is off.

    Example:
        >>> made = make_controls(Settings(), ("epochs",))
        >>> follow(made, [Settings(method="fedsgd")])
        >>> made["epochs"].disabled
        True
    """
    if "cohort" in controls:
        slider, N = controls["cohort"], min(s.clients for s in runs)
        everybody, top = slider.value == slider.max, max(N, 2)  # a slider needs two values
        if slider.max != top:
            slider.value = min(slider.value, top)
            slider.max = top
            if everybody:
                slider.value = top
    for name in ("epochs", "batch"):
        if name in controls:
            _enable(controls[name], any(s.applies(name) for s in runs))
    splitless = not any(PARTITIONS[s.partition] for s in runs)
    for name in ("alpha", "size_alpha", "labels_each", "shards_each"):
        if name in controls:  # one place: the skew that the split has; α, switched off, for none
            used = any(s.applies(name) for s in runs)
            _gone(controls[name], not (used or (name == "alpha" and splitless)))
            _enable(controls[name], used)


def make_controls(s: Settings, show: Sequence[str], most: int = 100) -> dict[str, W.Widget]:
    """Controls of the settings named in ``show``, under their headings; ``most`` clients.

    Example:
        >>> list(make_controls(Settings(), ("lr", "clients")))
        ['heading DATA', 'clients', 'heading TRAINING', 'lr']
    """
    datasets = dict.fromkeys((*DATASETS[:4], s.dataset))  # the others only if asked for: files
    batches = sorted({8, 16, 32, 64, 128} | ({s.batch} if s.batch else set()))
    top = max(most, s.clients)
    everybody = s.clients if s.cohort is None else s.cohort
    made: dict[str, list[tuple[str, Any]]] = {
        "dataset": [("dataset", lambda: C.menu(
            "Dataset", {words(d): d for d in datasets}, s.dataset))],
        "clients": [("clients", lambda: C.slider(
            "Clients", s.clients, min(2, s.clients), top, tip="How many share the data"))],
        "partition": [("partition", lambda: C.menu(
            "Split", _SPLITS, s.partition, tip="How the examples are dealt out"))],
        "alpha": [
            ("alpha", lambda: C.log_slider(
                "Skew α", min(max(s.alpha, 0.01), 100), 0.01, 100,
                tip="Dirichlet concentration: small is uneven, large is even")),
            ("size_alpha", lambda: C.log_slider(
                "Sizes α", min(max(s.size_alpha, 0.01), 100), 0.01, 100,
                tip="Dirichlet concentration of the clients' sizes")),
            ("labels_each", lambda: C.slider(
                "Labels each", s.labels_each, 1, max(10, s.labels_each))),
            ("shards_each", lambda: C.slider(
                "Shards each", s.shards_each, 1, max(10, s.shards_each))),
        ],
        "method": [("method", lambda: C.menu(
            "Method", {words(m): m for m in METHODS}, s.method))],
        "model": [("model", lambda: C.menu("Model", _MODELS, s.model))],
        "epochs": [("epochs", lambda: C.slider(
            "Local epochs", s.epochs, 1, max(20, s.epochs),
            tip="E: passes over a client's own data in a round"))],
        "batch": [("batch", lambda: C.choices(
            "Batch", [*batches, "all"], s.batch or "all",
            tip="B: examples of one local step"))],
        "lr": [("lr", lambda: C.log_slider(
            "Learning rate", min(max(s.lr, 0.001), 10), 0.001, 10, step=0.05,
            tip="η: length of a local step"))],
        "cohort": [("cohort", lambda: C.slider(
            "Cohort", everybody, 1, max(s.clients, 2), tip="K: clients called in a round"))],
    }  # fmt: skip
    out: dict[str, W.Widget] = {}
    for title, group in (("DATA", _DATA), ("TRAINING", _TRAINING)):
        if names := [n for n in group if n in show]:
            out[f"heading {title}"] = C.heading(title)
            for n in names:
                out.update((k, build()) for k, build in made[n])
    return out


def tidy(v: Any) -> Any:
    """A log slider's 0.12589254117941673 is 0.126: the code that is shown stays readable.

    Example:
        >>> tidy(0.12589254117941673), tidy(3)
        (0.126, 3)
    """
    return float(f"{v:.3g}") if isinstance(v, float) else v


def _enable(control: W.Widget, on: bool) -> None:
    control.disabled = not on
    (control.remove_class if on else control.add_class)("fl-off")


def _gone(control: W.Widget, gone: bool) -> None:
    (control.add_class if gone else control.remove_class)("fl-gone")
