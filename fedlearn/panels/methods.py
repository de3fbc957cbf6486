"""The methods that a panel offers, made from its settings; and a student's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from .. import algorithms
from ..algorithms import Algorithm
from ..model import Task

Method = str | Callable[[Task, float], Algorithm]  # a name of METHODS, or (task, lr) -> Algorithm

METHODS: dict[str, tuple[str, ...]] = {  # and the settings that each has beside the clients' lr
    "fedavg": (),
    "fedsgd": (),
    "fedprox": ("mu",),
    "scaffold": (),
    "fednova": (),
    "feddyn": ("mu",),
    "fedavgm": ("server_lr", "beta"),
    "fedadagrad": ("server_lr",),
    "fedadam": ("server_lr",),
    "fedyogi": ("server_lr",),
}
_AS = {"feddyn": {"mu": "alpha"}}  # what a method calls a setting
_WEIGHS = ("scaffold", "feddyn")  # need the population's size


class Knobs(Protocol):
    """What is read of the settings, beside what METHODS names."""

    @property
    def method(self) -> Any:
        """A :data:`Method`."""

    @property
    def lr(self) -> float:
        """The clients' learning rate."""


def name_of(method: Method) -> str:
    """The method's name, a student's own too.

    Example:
        >>> name_of("fedavg"), name_of(lambda task, lr: None)
        ('fedavg', '<lambda>')
    """
    return method if isinstance(method, str) else getattr(method, "__name__", "own method")


def uses(method: Method, setting: str) -> bool:
    """Whether a method has a setting of its own: ``mu``, ``server_lr`` or ``beta``.

    Example:
        >>> uses("feddyn", "mu"), uses("fedavg", "mu")
        (True, False)
    """
    return isinstance(method, str) and setting in METHODS[method]


def make_method(s: Knobs, task: Task, n_total: int) -> Algorithm:
    """The settings' method for a task, over a population of ``n_total`` examples.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> from fedlearn.panels import Settings
        >>> task = softmax_regression(64, 10)
        >>> sorted(make_method(Settings(method="scaffold"), task, 1437).init(task.theta0))
        ['c', 'theta']
    """
    if not isinstance(s.method, str):
        made = s.method(task, s.lr)
        if not isinstance(made, Algorithm):
            raise ValueError(
                f"panel: method must make an Algorithm of (task, lr), got {type(made).__name__} "
                f"from {name_of(s.method)}, e.g. lambda task, lr: algorithms.fedavg(task, lr)"
            )
        return made
    more = {"n_total": n_total} if s.method in _WEIGHS else {}
    algorithm: Algorithm = getattr(algorithms, s.method)(task, lr=s.lr, **_own(s), **more)
    return algorithm


def method_code(s: Knobs) -> str:
    """The Python that makes it.

    Example:
        >>> from fedlearn.panels import Settings
        >>> method_code(Settings(method="feddyn", lr=0.1, mu=0.5))
        'algorithms.feddyn(task, lr=0.1, alpha=0.5, n_total=len(d.y))'
    """
    if not isinstance(s.method, str):
        return f"{name_of(s.method)}(task, {s.lr!r})  # your own"
    own = "".join(f", {k}={v!r}" for k, v in _own(s).items())
    total = ", n_total=len(d.y)" if s.method in _WEIGHS else ""
    return f"algorithms.{s.method}(task, lr={s.lr!r}{own}{total})"


def _own(s: Knobs) -> dict[str, float]:
    called = _AS.get(s.method, {})
    return {called.get(k, k): getattr(s, k) for k in METHODS[s.method]}
