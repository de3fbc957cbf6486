"""The settings of a run as controls, and how these follow each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as W

from . import controls as C
from .methods import METHODS, name_of
from .scales import SHORT, words
from .study import DATASETS, PARTITIONS, Settings

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
OFFERED = (*SHOWN, "feature")  # what ``show`` may name
_DATA = ("dataset", "clients", "partition", "alpha", "feature")
_TRAINING = ("method", "model", "epochs", "batch", "lr", "cohort")
SKEWS = ("alpha", "size_alpha", "labels_each", "shards_each")  # one place for all of them
OWN = ("mu", "server_lr", "beta")  # of some methods
_TOGETHER = {  # under one name: the skew is what the split makes of it
    "alpha": SKEWS,
    "feature": ("feature", "amount"),
    "method": ("method", *OWN),
}
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
_SHIFTS = {
    "none": "none",
    "rotation": "rotation",
    "noise": "noise",
    "brightness": "brightness",
    "labels 0, 1 swapped": "label_swap",
}


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


def shift_words(p: Any) -> str:
    """How clients' examples differ, in words; nothing where they don't.

    Example:
        >>> shift_words(vars(Settings(feature="rotation", amount=0.5)))
        ', turned by -45° to 45°'
        >>> shift_words(vars(Settings()))
        ''
    """
    a = p["amount"]
    return {
        "none": "",
        "rotation": f", turned by {-90 * a:.0f}° to {90 * a:.0f}°",
        "noise": f", noise up to {a:.2g}",
        "brightness": f", brightness down to {1 - a:.2g}",
        "label_swap": f", labels 0 and 1 swapped by {a:.0%} of the clients",
    }[p["feature"]]


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
    if "amount" in controls:
        _enable(controls["amount"], any(s.applies("amount") for s in runs))
    for name in OWN:
        if name in controls:
            hide(controls[name], not any(s.applies(name) for s in runs))
    splitless = not any(PARTITIONS[s.partition] for s in runs)
    for name in SKEWS:
        if name in controls:  # one place: the skew that the split has; α, switched off, for none
            used = any(s.applies(name) for s in runs)
            hide(controls[name], not (used or (name == "alpha" and splitless)))
            _enable(controls[name], used)


def make_controls(s: Settings, show: Sequence[str], most: int = 100) -> dict[str, W.Widget]:
    """Controls of the settings named in ``show``, under their headings; ``most`` clients.

    Example:
        >>> list(make_controls(Settings(), ("lr", "clients")))
        ['heading DATA', 'clients', 'heading TRAINING', 'lr']
    """
    out: dict[str, W.Widget] = {}
    for title, group in (("DATA", _DATA), ("TRAINING", _TRAINING)):
        if names := [n for n in group if n in show]:
            out[f"heading {title}"] = C.heading(title)
            for name in names:
                both = _TOGETHER.get(name, (name,))
                out.update((n, make_control(s, n, most)) for n in both)
    return out


def make_control(s: Settings, name: str, most: int = 100) -> W.Widget:
    """The control of one setting, at its value; ``most`` clients.

    Example:
        >>> make_control(Settings(), "epochs").value
        5
    """
    datasets = dict.fromkeys((*DATASETS[:4], s.dataset))  # the others only if asked for: files
    batches = sorted({8, 16, 32, 64, 128} | ({s.batch} if s.batch else set()))
    methods: dict[str, Any] = {words(m): m for m in METHODS}
    if not isinstance(s.method, str):
        methods[name_of(s.method)] = s.method  # the student's own
    top = max(most, s.clients)
    everybody = s.clients if s.cohort is None else s.cohort
    made: dict[str, Callable[[], W.Widget]] = {
        "dataset": lambda: C.menu("Dataset", {words(d): d for d in datasets}, s.dataset),
        "clients": lambda: C.slider(
            "Clients", s.clients, min(2, s.clients), top, tip="How many share the data"),
        "partition": lambda: C.menu(
            "Split", _SPLITS, s.partition, tip="How the examples are dealt out"),
        "alpha": lambda: C.log_slider(
            "Skew α", min(max(s.alpha, 0.01), 100), 0.01, 100,
            tip="Dirichlet concentration: small is uneven, large is even"),
        "size_alpha": lambda: C.log_slider(
            "Sizes α", min(max(s.size_alpha, 0.01), 100), 0.01, 100,
            tip="Dirichlet concentration of the clients' sizes"),
        "labels_each": lambda: C.slider("Labels each", s.labels_each, 1, max(10, s.labels_each)),
        "shards_each": lambda: C.slider("Shards each", s.shards_each, 1, max(10, s.shards_each)),
        "feature": lambda: C.menu(
            "Shift", _SHIFTS, s.feature,
            tip="What each client does to its examples, or to their names"),
        "amount": lambda: C.float_slider(
            "Amount", s.amount, 0, 1, step=0.05, tip="How much the clients differ in it"),
        "method": lambda: C.menu("Method", methods, s.method),
        "mu": lambda: C.log_slider(
            "Pull μ", min(max(s.mu, 0.001), 10), 0.001, 10,
            tip="How strongly a client is held to the broadcast θ: FedProx's μ, FedDyn's α"),
        "server_lr": lambda: C.log_slider(
            "Server rate", min(max(s.server_lr, 0.001), 10), 0.001, 10, step=0.05,
            tip="η_s: length of the server's step"),
        "beta": lambda: C.float_slider(
            "Momentum β", s.beta, 0, 0.99, step=0.01, tip="What is kept of the last step"),
        "model": lambda: C.menu("Model", _MODELS, s.model),
        "epochs": lambda: C.slider(
            "Local epochs", s.epochs, 1, max(20, s.epochs),
            tip="E: passes over a client's own data in a round"),
        "batch": lambda: C.choices(
            "Batch", [*batches, "all"], s.batch or "all", tip="B: examples of one local step"),
        "lr": lambda: C.log_slider(
            "Learning rate", min(max(s.lr, 0.001), 10), 0.001, 10, step=0.05,
            tip="η: length of a local step"),
        "cohort": lambda: C.slider(
            "Cohort", everybody, 1, max(s.clients, 2), tip="K: clients called in a round"),
    }  # fmt: skip
    return made[name]()


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


def hide(control: W.Widget, gone: bool) -> None:
    """Take a control out of sight, or bring it back; its value stays.

    Example:
        >>> lr = make_control(Settings(), "lr")
        >>> hide(lr, True)
        >>> "fl-gone" in lr._dom_classes
        True
    """
    (control.add_class if gone else control.remove_class)("fl-gone")
