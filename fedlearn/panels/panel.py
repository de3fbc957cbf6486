"""The panel of the course: a federated run under the hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as W

from . import controls as C
from .engine import Frame, Snapshot
from .explorable import Explorable
from .parts import Curve, Dots, Holdings, Part
from .save import table
from .scales import words
from .study import DATASETS, METHODS, PARTITIONS, References, Settings, code, frames

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
PARTS = ("loss", "accuracy", "holdings", "clients")
_DATA = ("dataset", "clients", "partition", "alpha")
_TRAINING = ("method", "model", "epochs", "batch", "lr", "cohort")
_SPLITS = {
    "even (iid)": "iid",
    "Dirichlet by label": "dirichlet_label",
    "Dirichlet by client": "dirichlet_client",
    "shards": "shards",
    "labels per client": "labels_per_client",
    "sizes only (Dirichlet)": "quantity",
}
_MODELS = {"softmax": "softmax", "network (32)": "mlp"}


class Panel(Explorable):
    """A federated run that answers the hand: sliders, live curves, who holds what.

    Args:
        show: Controls that the reader sees, any of ``dataset``, ``clients``, ``partition``,
            ``alpha`` (the skew: also labels or shards each, as the split wants), ``method``,
            ``model``, ``epochs``, ``batch``, ``lr``, ``cohort``. The others keep the value given.
        dataset: ``digits``, ``breast_cancer``, ``wine``, ``toy``, ``mnist``, ``fashion_mnist`` or
            ``cifar10``.
        model: ``softmax`` (regression) or ``mlp`` (one hidden layer of 32).
        clients: N.
        partition: A function of :mod:`fedlearn.partition`, by name.
        alpha: Concentration of the Dirichlet splits; set to the nearest step of the slider.
        labels_each: Labels of a client under ``labels_per_client``.
        shards_each: Shards of a client under ``shards``.
        method: ``fedavg`` or ``fedsgd``.
        epochs: E.
        lr: Learning rate; set to the nearest step of the slider.
        batch: B, or None for all of a client's examples.
        cohort: K, clients called each round; None for everybody.
        rounds: Length of a run.
        seed: Of the split, the start, the cohorts and the shuffles.
        x: ``"round"``, or ``"bytes"`` for megabytes sent.
        predict: The question under the picture.
        preview: Compute the first run now, so that the picture is never blank.
        parts: Pictures, any of ``loss``, ``accuracy``, ``holdings``, ``clients``.
        seconds: How long a run started by the Run button takes at least.

    Raises:
        ValueError: If a value is out of its range; the message names the rule and an example.

    Example:
        >>> panel = Panel(show=("alpha", "epochs"), rounds=5)
        >>> panel.controls["alpha"].value
        0.1
        >>> panel.engine.snapshot().round
        5
        >>> panel.close()
    """

    def __init__(
        self,
        *,
        show: Sequence[str] = SHOWN,
        dataset: str = "digits",
        model: str = "softmax",
        clients: int = 20,
        partition: str = "dirichlet_label",
        alpha: float = 0.1,
        labels_each: int = 2,
        shards_each: int = 2,
        method: str = "fedavg",
        epochs: int = 5,
        lr: float = 1.0,
        batch: int | None = 32,
        cohort: int | None = None,
        rounds: int = 60,
        seed: int = 0,
        x: str = "round",
        predict: str = "Predict first: what happens to the loss if α goes from 100 to 0.01?",
        preview: bool = True,
        parts: Sequence[str] = PARTS,
        seconds: float = 2.0,
    ):
        _known("show", show, SHOWN)
        _known("parts", parts, PARTS)
        self._fixed = Settings(
            dataset=dataset, model=model, clients=clients, partition=partition, alpha=float(alpha),
            labels_each=labels_each, shards_each=shards_each, method=method, epochs=epochs,
            lr=float(lr), batch=batch, cohort=cohort, rounds=rounds, seed=seed,
        )  # fmt: skip
        self._references, self._adjusting = References(), False
        super().__init__(
            _controls(self._fixed, show),
            self._make,
            [_part(name, x) for name in parts],
            rounds=rounds,
            seconds=seconds,
            readout=_numbers,
            predict=predict,
            code=lambda s: code(Settings(**s.params)),
            preview=preview,
        )
        self._adjust()

    def values(self) -> dict[str, Any]:
        """Every setting of the run, those without a control too."""
        shown = {k: _tidy(c.value) for k, c in self.controls.items() if C.has_value(c)}
        s = vars(self._fixed) | shown
        everybody = s["cohort"] is None or s["cohort"] >= s["clients"]
        batch = None if s["batch"] == "all" else s["batch"]
        return s | {"cohort": None if everybody else s["cohort"], "batch": batch}

    def settings(self) -> Settings:
        """The settings as :class:`~fedlearn.panels.Settings`."""
        return Settings(**self.values())

    def _make(self, **params: Any) -> Iterator[Frame]:
        return frames(Settings(**params), self._references)

    def _moved(self, change: Any = None) -> None:
        with self._lock:
            if self._adjusting:
                return
            self._adjusting = True
            try:
                self._adjust(change)
            finally:
                self._adjusting = False
            self.engine.set(**self.values())

    def _adjust(self, change: Any = None) -> None:
        """Controls follow each other: the cohort ends at N, what doesn't apply is off."""
        if "cohort" in self.controls:
            N = self.values()["clients"]
            slider = self.controls["cohort"]
            everybody, top = slider.value == slider.max, max(N, 2)  # a slider needs two values
            if slider.max != top:
                slider.value = min(slider.value, top)
                slider.max = top
                if everybody:
                    slider.value = top
        s = replace(self._fixed, **self.values())
        for name in ("epochs", "batch"):
            if name in self.controls:
                _enable(self.controls[name], s.applies(name))
        skews = [k for k in ("alpha", "labels_each", "shards_each") if k in self.controls]
        for name in skews:  # one place: the skew that the split has; α, switched off, for none
            used = s.applies(name)
            _gone(
                self.controls[name], not (used or (name == "alpha" and not PARTITIONS[s.partition]))
            )
            _enable(self.controls[name], used)

    def caption(self, snapshot: Snapshot | None = None) -> str:
        s = snapshot or self.engine.snapshot()
        p, where = s.params, "start"
        if s.round:
            where = f"{s.round} rounds"
        end = "".join(
            f", {k} {s.columns[k][-1]:.2f}" for k in ("loss", "accuracy") if k in s.columns
        )
        return (
            f"{words(p['method'])} on {words(p['dataset'])}, {p['clients']} clients, "
            f"{_split_words(p)}, {where}{end}."
        )

    def _figure_title(self, s: Snapshot) -> str:
        p, local = s.params, ""
        if Settings(**p).applies("epochs"):
            local = f", E = {p['epochs']}, B = {words(p['batch'])}"
        return (
            f"{words(p['method'])} on {words(p['dataset'])}: {p['clients']} clients, "
            f"{_split_words(p)}{local}, η = {words(p['lr'])}"
        )

    def _stem(self, s: Snapshot) -> str:
        return f"{s.params['method']}-{s.params['dataset']}"

    def _table(self, s: Snapshot) -> bytes:
        reference = s.latest.get("reference") or {}
        pooled = {f"centralised_{k}": v for k, v in reference.items()}
        return table({**s.columns, **pooled}, s.params)


def _split_words(p: Any) -> str:
    kind = PARTITIONS[p["partition"]]
    name = next(k for k, v in _SPLITS.items() if v == p["partition"])
    if kind is None:
        return f"{name} split"
    return f"{name} split, {'α' if kind == 'alpha' else words(kind)} = {words(p[kind])}"


def _numbers(s: Snapshot) -> list[str]:
    accuracy, sent = s.columns.get("accuracy"), s.columns.get("bytes")
    said = []
    if accuracy is not None and len(accuracy):
        said.append(f"accuracy {accuracy[-1]:.3f}")
    if sent is not None and len(sent):
        mega = sent[-1] >= 1e5
        said.append(f"{sent[-1] / 1e6:.1f} MB sent" if mega else f"{sent[-1] / 1e3:.0f} kB sent")
    return said


def _part(name: str, x: str) -> Part:
    if name == "loss":
        return Curve("loss", title="test loss (log scale)", x=x, log=True)
    if name == "accuracy":
        return Curve("accuracy", title="test accuracy", x=x, ylim=(0, 1), legend="bottom")
    return Holdings() if name == "holdings" else Dots()


def _controls(s: Settings, show: Sequence[str]) -> dict[str, W.Widget]:
    datasets = dict.fromkeys((*DATASETS[:4], s.dataset))  # the others only if asked for: files
    batches = sorted({8, 16, 32, 64, 128} | ({s.batch} if s.batch else set()))
    top = max(100, s.clients)
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


def _tidy(v: Any) -> Any:
    """A log slider's 0.12589254117941673 is 0.126: the code that is shown stays readable."""
    return float(f"{v:.3g}") if isinstance(v, float) else v


def _enable(control: W.Widget, on: bool) -> None:
    control.disabled = not on
    (control.remove_class if on else control.add_class)("fl-off")


def _gone(control: W.Widget, gone: bool) -> None:
    (control.add_class if gone else control.remove_class)("fl-gone")


def _known(what: str, given: Sequence[str], known: tuple[str, ...]) -> None:
    wrong = [g for g in given if g not in known] if not isinstance(given, str) else [given]
    if wrong:
        raise ValueError(
            f"Panel: {what} takes any of {', '.join(known)}, got {wrong[0]!r}, "
            f"e.g. {what}=({known[0]!r}, {known[1]!r})"
        )
