"""The panel of the course: a federated run under the hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .boundary import Boundary
from .clients import ClientCurves
from .engine import Frame, Snapshot
from .explorable import Explorable
from .knobs import OFFERED, SHOWN, follow, make_controls, settled, shift_words, split_words
from .methods import Method, name_of
from .parts import Curve, Dots, Holdings, Part
from .save import table
from .scales import words
from .study import (
    Extra,
    References,
    Settings,
    client_curves,
    code,
    frames,
    plane,
)

PARTS = ("loss", "accuracy", "holdings", "clients")
EXTRAS: dict[str, Extra] = {"client_curves": client_curves, "boundary": plane}


class Panel(Explorable):
    """A federated run that answers the hand: sliders, live curves, who holds what.

    Args:
        show: Controls that the reader sees, any of ``dataset``, ``clients``, ``partition``,
            ``alpha`` (the skew: also labels or shards each, as the split wants), ``method`` (and
            what it has beside lr), ``model``, ``epochs``, ``batch``, ``lr``, ``cohort``; and, if
            asked for, ``feature`` (a menu, and its amount). The others keep the value given.
        dataset: ``digits``, ``breast_cancer``, ``wine``, ``toy``, ``mnist``, ``fashion_mnist`` or
            ``cifar10``.
        model: ``softmax`` (regression) or ``mlp`` (one hidden layer of 32).
        clients: N.
        partition: A function of :mod:`fedlearn.partition`, by name.
        alpha: Concentration of the Dirichlet splits; set to the nearest step of the slider.
        labels_each: Labels of a client under ``labels_per_client``.
        shards_each: Shards of a client under ``shards``.
        size_alpha: Concentration of the sizes under ``label_and_quantity``.
        feature: What each client does to its examples: ``none``, ``rotation`` (pictures only),
            ``noise``, ``brightness`` or ``label_swap``; see :class:`Settings`.
        amount: How much, from 0 to 1; set to the nearest step of the slider.
        method: ``fedavg``, ``fedsgd``, ``fedprox``, ``scaffold``, ``fednova``, ``feddyn``,
            ``fedavgm``, ``fedadagrad``, ``fedadam`` or ``fedyogi``; or your own, a function (task,
            lr) -> Algorithm: it stands in the menu under its name.
        mu: Pull towards the broadcast theta: FedProx's mu, FedDyn's alpha.
        server_lr: eta_s of FedAvgM, FedAdagrad, FedAdam and FedYogi.
        beta: Momentum of FedAvgM.
        epochs: E.
        lr: Learning rate; set to the nearest step of the slider.
        batch: B, or None for all of a client's examples.
        cohort: K, clients called each round; None for everybody.
        rounds: Length of a run.
        seed: Of the split, the start, the cohorts and the shuffles.
        x: ``"round"``, or ``"bytes"`` for megabytes sent.
        predict: The question under the picture.
        preview: Compute the first run now, so that the picture is never blank.
        parts: One to four pictures of ``loss``, ``accuracy``, ``holdings``, ``clients``,
            ``client_curves`` and, for the toy plane, ``boundary``.
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

    _most_clients = 100

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
        size_alpha: float = 1.0,
        feature: str = "none",
        amount: float = 0.5,
        method: Method = "fedavg",
        mu: float = 0.1,
        server_lr: float = 0.1,
        beta: float = 0.9,
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
        _known("show", show, OFFERED)
        _known("parts", parts, (*PARTS, *EXTRAS))
        self._fixed = Settings(
            dataset=dataset, model=model, clients=clients, partition=partition, alpha=float(alpha),
            labels_each=labels_each, shards_each=shards_each, size_alpha=float(size_alpha),
            feature=feature, amount=amount,
            method=method, mu=float(mu), server_lr=float(server_lr), beta=float(beta),
            epochs=epochs, lr=float(lr), batch=batch,
            cohort=cohort, rounds=rounds, seed=seed,
        )  # fmt: skip
        if x not in ("round", "bytes"):
            raise ValueError(f"Panel: x must be 'round' or 'bytes', got {x!r}, e.g. x='bytes'")
        self._references = References()
        self._extras = [EXTRAS[p] for p in parts if p in EXTRAS]
        super().__init__(
            make_controls(self._fixed, show, self._most_clients),
            self._make,
            [_part(name, x) for name in parts],
            rounds=rounds,
            seconds=seconds,
            readout=_numbers,
            predict=predict,
            code=lambda s: code(Settings(**s.params)),
            preview=preview,
        )

    def values(self) -> dict[str, Any]:
        """Every setting of the run, those without a control too."""
        return settled(self._fixed, self.controls)

    def settings(self) -> Settings:
        """The settings as :class:`~fedlearn.panels.Settings`."""
        return Settings(**self.values())

    def _make(self, **params: Any) -> Iterator[Frame]:
        return frames(Settings(**params), self._references, self._extras)

    def _adjust(self) -> None:
        follow(self.controls, [self.settings()])

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
            f"{split_words(p)}{shift_words(p)}, {where}{end}."
        )

    def _figure_title(self, s: Snapshot) -> str:
        p, local = s.params, ""
        if Settings(**p).applies("epochs"):
            local = f", E = {p['epochs']}, B = {words(p['batch'])}"
        return (
            f"{words(p['method'])} on {words(p['dataset'])}: {p['clients']} clients, "
            f"{split_words(p)}{shift_words(p)}{local}, η = {words(p['lr'])}"
        )

    def _stem(self, s: Snapshot) -> str:
        return f"{name_of(s.params['method'])}-{s.params['dataset']}"

    def _table(self, s: Snapshot) -> bytes:
        reference = s.latest.get("reference") or {}
        pooled = {f"centralised_{k}": v for k, v in reference.items()}
        return table({**s.columns, **pooled}, {**s.params, "method": name_of(s.params["method"])})


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
    kinds = {"holdings": Holdings, "clients": Dots, "boundary": Boundary}
    return kinds.get(name, ClientCurves)()


def _known(what: str, given: Sequence[str], known: tuple[str, ...]) -> None:
    wrong = [g for g in given if g not in known] if not isinstance(given, str) else [given]
    if wrong:
        raise ValueError(
            f"Panel: {what} takes any of {', '.join(known)}, got {wrong[0]!r}, "
            f"e.g. {what}=({known[0]!r}, {known[1]!r})"
        )
