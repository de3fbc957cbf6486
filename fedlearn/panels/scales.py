"""Numbers for people: axis ranges that end on round numbers, and what changed between two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SHORT = {
    "alpha": "α",
    "epochs": "E",
    "batch": "B",
    "lr": "η",
    "cohort": "K",
    "clients": "N",
    "labels_each": "labels each",
    "shards_each": "shards each",
    "size_alpha": "sizes α",
    "amount": "amount",
    "mu": "μ",
    "server_lr": "η_s",
    "beta": "β",
}
# As the menus have them.
NAMES = {
    "fedavg": "FedAvg",
    "fedsgd": "FedSGD",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "fednova": "FedNova",
    "feddyn": "FedDyn",
    "fedavgm": "FedAvgM",
    "fedadagrad": "FedAdagrad",
    "fedadam": "FedAdam",
    "fedyogi": "FedYogi",
    "mlp": "network",
    "iid": "even",
    "label_and_quantity": "labels and sizes",
    "quantity": "sizes only",
    "dirichlet_label": "Dirichlet by label",
    "dirichlet_client": "Dirichlet by client",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "none": "no shift",
}


def words(value: Any) -> str:
    """A setting as it is said: two digits are enough.

    Example:
        >>> words(0.1), words(100.0), words(None), words("dirichlet_label")
        ('0.1', '100', 'all', 'Dirichlet by label')
    """
    if value is None:
        return "all"
    if callable(value):
        return getattr(value, "__name__", "own method")
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"
    return NAMES.get(value, str(value).replace("_", " "))


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What was different in the last run, for the legend; nothing if it is more than two things.

    Example:
        >>> changed({"alpha": 100.0, "epochs": 5}, {"alpha": 0.1, "epochs": 5})
        ' (α = 100)'
        >>> changed({"partition": "iid", "alpha": 1.0}, {"partition": "shards", "alpha": 0.1})
        ' (even)'
    """
    other = {k for k, v in before.items() if now.get(k) != v}
    if "partition" in other:  # the skew of one split says nothing about another
        other -= {"alpha", "labels_each", "shards_each", "size_alpha"}
    if "feature" in other:
        other -= {"amount"}
    if "method" in other:
        other -= {"epochs", "batch", "mu", "server_lr", "beta"}
    if {"clients", "cohort"} <= other and before["clients"] == before["cohort"]:
        other -= {"cohort"}  # everybody takes part, before and now
    said = [
        words(before[k])
        if isinstance(before[k], str) or callable(before[k])
        else f"{SHORT.get(k, k)} = {words(before[k])}"
        for k in before
        if k in other
    ]
    text = f" ({', '.join(said)})"
    return text if said and len(text) <= 26 else ""


def round_up(v: float, steps: Sequence[float] = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)) -> float:
    """The smallest of ``steps`` times a power of ten that isn't below v > 0.

    Example:
        >>> round_up(2.31), round_up(0.02)
        (2.5, 0.02)
    """
    ten = 10.0 ** np.floor(np.log10(v))
    return float(f"{next((m * ten for m in steps if m * ten >= v * (1 - 1e-9)), 10 * ten):.6g}")


def linear_range(v: np.ndarray) -> tuple[float, float]:
    """From 0, or a round number below, to a round number above.

    Example:
        >>> linear_range(np.array([0.3, 2.2]))
        (0.0, 2.5)
    """
    lo, hi = float(v.min()), float(v.max())
    top = round_up(hi) if hi > 0 else 0.0
    low = -round_up(-lo) if lo < 0 else 0.0
    return (low, top) if top > low else (0.0, 1.0)


def log_range(v: np.ndarray) -> tuple[float, float]:
    """Round numbers below and above, one to six decades apart.

    Example:
        >>> log_range(np.array([0.13, 2.3]))
        (0.1, 3.0)
    """
    lo, hi = float(v.min()), float(v.max())
    top = round_up(hi, (1, 2, 3, 5, 10))
    ten = 10.0 ** np.floor(np.log10(lo))
    low = float(f"{next(m * ten for m in (5, 2, 1) if m * ten <= lo * (1 + 1e-9)):.6g}")
    return max(min(low, top / 10), top / 1e6), top
