"""Settings as they are said, and what changed between two runs."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from torch import nn

from ..data import Dataset
from ..model import Task
from ..transform import Pipeline

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
    "mu": "μ",
    "server_lr": "η_s",
    "beta": "β",
    "noise": "z",
    "rate": "q",
    "clip": "S",
    "budget": "budget ε",
}
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
    "dp_fedavg": "DP-FedAvg",
    "mlp": "network",
    "iid": "even",
    "label_swap": "labels 0, 1 swapped",
    "label_and_quantity": "labels and sizes",
    "quantity": "sizes only",
    "dirichlet_label": "Dirichlet by label",
    "dirichlet_client": "Dirichlet by client",
    "by_attribute": "by form",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "none": "no shift",
}


def words(value: Any) -> str:
    """A setting as menus and captions say it: two digits are enough."""
    if value is None:
        return "all"
    if isinstance(value, Dataset):
        return value.name
    if isinstance(value, (Task, nn.Module)):
        return type(getattr(value, "module", value) or value).__name__
    if callable(value):
        return getattr(value, "__name__", "own method")
    if isinstance(value, Pipeline):
        stages: tuple[Any, ...] = (*value.on_client, value.reduce, *value.on_server)
        return ", ".join(s.name for s in stages)
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"
    return NAMES.get(value, str(value).replace("_", " "))


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by name; those of a :class:`Settings` among them, each under its own."""
    out: dict[str, Any] = {}
    for name, value in params.items():
        out |= vars(value) if is_dataclass(value) else {name: value}
    out["extras"] = ", ".join(name for name, _ in out.get("extras", ()))
    return {k: v for k, v in out.items() if k != "extras" or v}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What was different in the last run, for the legend: `` (α = 100)``; nothing if it is long."""
    before, now = flat(before), flat(now)
    other = {k for k, v in before.items() if now.get(k) != v}
    if "partition" in other:  # the skew of one split says nothing about another
        other -= {"alpha", "labels_each", "shards_each", "size_alpha"}
    if "feature" in other:
        other -= {"amount"}
    if "method" in other:
        other -= {"epochs", "batch", "mu", "server_lr", "beta", "noise", "rate", "clip", "budget"}
    if {"clients", "cohort"} <= other and before["clients"] == before["cohort"]:
        other -= {"cohort"}  # everybody takes part, before and now
    text = f" ({', '.join(said(k, v) for k, v in before.items() if k in other)})"
    return text if other and len(text) <= 26 else ""


def said(name: str, value: Any) -> str:
    """``α = 0.1``; a value that has a name of its own stands alone."""
    alone = isinstance(value, (str, Pipeline, Dataset, Task)) or callable(value)
    return words(value) if alone else f"{SHORT.get(name, name)} = {words(value)}"
