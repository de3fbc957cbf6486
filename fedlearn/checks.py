"""The rules that arguments keep. Every message names function, rule, value got and an example."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np


class RoundFailed(ValueError):
    """A round failed for a reason that the next one may not have: too few answers, say.

    The run lives on: ``next`` begins the next round, and ``federate(..., skip=3)`` does so itself.
    """


def check(name: str, argument: str, value: Any, ok: bool, rule: str, example: Any) -> None:
    """Raise the ``ValueError`` of function ``name`` about one argument unless ``ok``.

    Example:
        >>> check("fedprox", "mu", -1.0, False, ">= 0 and finite", 0.1)
        Traceback (most recent call last):
        ...
        ValueError: fedprox: mu must be >= 0 and finite, got -1.0, e.g. mu=0.1
    """
    if not ok:
        said = f"{argument} must be {rule}, got {value!r}, e.g. {argument}={example}"
        raise ValueError(f"{name}: {said}")


def is_whole(value: Any, low: float = 1, high: float = math.inf) -> bool:
    """Whether a value is an integer from ``low`` to ``high``, Python's or NumPy's; True is none."""
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))
    return integer and low <= value <= high


def whole(
    name: str, argument: str, value: Any, low: float = 1, high: float = math.inf, example: Any = 10
) -> None:
    """An integer >= ``low``, or from ``low`` to ``high``."""
    rule = f"an integer >= {low}" if high == math.inf else f"an integer from {low} to {high}"
    check(name, argument, value, is_whole(value, low, high), rule, example)


def number(value: Any) -> float:
    """A real number, NumPy's or a tensor of one too, as a float; NaN for anything else."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def positive(name: str, argument: str, value: Any, example: Any = 0.1) -> None:
    """A number > 0 and finite: a learning rate, a bound."""
    check(name, argument, value, 0 < number(value) < math.inf, "> 0 and finite", example)


def not_negative(name: str, argument: str, value: Any, example: Any = 0.1) -> None:
    """A number >= 0 and finite: a strength, a standard deviation."""
    check(name, argument, value, 0 <= number(value) < math.inf, ">= 0 and finite", example)


def below_one(name: str, argument: str, value: Any, example: Any = 0.9) -> None:
    """A number >= 0 and < 1: a momentum."""
    check(name, argument, value, 0 <= number(value) < 1, ">= 0 and < 1", example)


def probability(name: str, argument: str, value: Any, example: Any = 0.1) -> None:
    """A number > 0 and <= 1: the chance of being called."""
    check(name, argument, value, 0 < number(value) <= 1, "> 0 and <= 1", example)


def one_of(name: str, argument: str, value: Any, known: Sequence[Any]) -> None:
    """One of a few values."""
    ok = any(type(value) is type(k) and value == k for k in known)
    said = f"one of {', '.join(map(str, known))}"
    check(name, argument, value, ok, said, repr(known[0]))
