"""What panels say: the languages' tables, settings in words, what changed between two runs."""

import re
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from ..checks import one_of
from ..data import Dataset
from ..model import Task
from ..transform import Pipeline

SHORT = {
    "alpha": "α", "epochs": "E", "batch": "B", "lr": "η", "cohort": "K", "clients": "N",
    "labels_each": "labels each", "shards_each": "shards each", "size_alpha": "sizes α",
    "mu": "μ", "server_lr": "η_s", "beta": "β", "noise": "z", "rate": "q", "clip": "S",
    "budget": "budget ε",
}  # fmt: skip
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
_TABLES = Path(__file__).parent / "languages"


class Words:
    """What a panel says in one language: its table, and the fonts that have its letters.

    Called with a text in English, it gives the text of the language, its fields filled in. A text
    that the table hasn't, a name that the reader gave, stays as it is.

    Example:
        >>> Words("zh")("client {k}", k=2), Words("zh")("my own")
        ('客户端 2', 'my own')
    """

    def __init__(self, name: str):
        file = tomllib.loads((_TABLES / f"{name}.toml").read_text(encoding="utf-8"))
        self.name, self.fonts, self.table = name, file["fonts"], file["words"]

    def __call__(self, text: str, **fields: Any) -> str:
        said = str(self.table.get(text, text))
        return said.format(**fields) if fields else said

    def note(self, text: str) -> str:
        """A note whose numbers are filled in already."""
        numbers = iter(re.findall(r"\d+", text))
        return re.sub("#", lambda _: next(numbers), self(re.sub(r"\d+", "#", text)))


known = lru_cache(Words)
ENGLISH = known("en")
_now = ENGLISH


def spoken() -> Words:
    """The words of a panel that is made now."""
    return _now


def language(name: str | None = None) -> str:
    """Choose the language of the panels made from now on; those that are open keep theirs.

    What a panel says is in that language: controls, curves, tips, what a screen reader reads. Names
    of your own, files, code and the reason in an error stay as they are. A still picture needs a
    font that has the letters, Noto Sans CJK say.

    Args:
        name: ``"en"`` or ``"zh"`` (Simplified Chinese); None only asks.

    Returns:
        The language of new panels.

    Raises:
        ValueError: If there is no such language; the message names those there are.

    Example:
        >>> from fedlearn.panels import controls
        >>> language("zh"), controls.slider("Clients", 20, 2, 100).description, language("en")
        ('zh', '客户端数', 'en')
    """
    global _now
    if name is not None:
        one_of("language", "name", name, sorted(p.stem for p in _TABLES.glob("*.toml")))
        _now = known(name)
    return _now.name


def length(text: str) -> int:
    """How wide a text is, in Latin letters: a Chinese one is as wide as two."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def words(value: Any, say: Words = ENGLISH) -> str:
    """A setting as menus and captions say it: two digits are enough."""
    if value is None:
        return say("all")
    if isinstance(value, Dataset):
        return value.name
    if isinstance(value, (Task, nn.Module)):
        return type(getattr(value, "module", value) or value).__name__
    if callable(value):
        return getattr(value, "__name__", say("own method"))
    if isinstance(value, Pipeline):
        stages: tuple[Any, ...] = (*value.on_client, value.reduce, *value.on_server)
        return ", ".join(s.name for s in stages)
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"
    return say(NAMES.get(value, str(value).replace("_", " ")))


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by name; those of a :class:`Settings` among them, each under its own."""
    out: dict[str, Any] = {}
    for name, value in params.items():
        out |= vars(value) if is_dataclass(value) else {name: value}
    out["extras"] = ", ".join(name for name, _ in out.get("extras", ()))
    return {k: v for k, v in out.items() if k != "extras" or v}


def changed(before: Mapping[str, Any], now: Mapping[str, Any], say: Words = ENGLISH) -> str:
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
    what = say(", ").join(said(k, v, say) for k, v in before.items() if k in other)
    return say(" ({what})", what=what) if other and length(what) <= 23 else ""


def said(name: str, value: Any, say: Words = ENGLISH) -> str:
    """``α = 0.1``; a value that has a name of its own stands alone."""
    alone = isinstance(value, (str, Pipeline, Dataset, Task)) or callable(value)
    return words(value, say) if alone else f"{say(SHORT.get(name, name))} = {words(value, say)}"
