"""What a run is made of, flat, and what differs between two: of recipes, data, anything."""

import hashlib
from collections.abc import Mapping
from dataclasses import is_dataclass
from numbers import Number
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from torch import Tensor, nn

PLAIN = (bool, int, float, str, type(None))


def describe(thing: Any, name: str, seen: set[int] | None = None) -> dict[str, Any]:
    """Everything in a thing that decides a run, flat: path -> number, text or digest.

    Functions are described by their names and by what they enclose, the method's learning rate,
    say, so that a student's own method needs no name and no registration; tensors by type, shape
    and SHA-256; objects by what pickle would keep of them.

    Args:
        thing: A recipe, a method, a call, tensors, dicts and lists of such.
        name: The first word of every path.
        seen: Used in the recursion.

    Example:
        >>> describe({"lr": 0.1, "sizes": (3, 4)}, "run")
        {'run': 'dict', 'run.lr': 0.1, 'run.sizes': 'tuple', 'run.sizes.0': 3, 'run.sizes.1': 4}
    """
    seen = set() if seen is None else seen
    if isinstance(thing, (Tensor, np.ndarray)):
        array = thing.detach().cpu().numpy() if isinstance(thing, Tensor) else thing
        thing = _digest(np.ascontiguousarray(array))
    if isinstance(thing, (*PLAIN, np.generic)):
        return {name: thing.item() if isinstance(thing, np.generic) else thing}
    if id(thing) in seen:
        return {}
    seen.add(id(thing))
    called = str(thing) if isinstance(thing, nn.Module) else type(thing).__name__
    said = {name: getattr(thing, "__qualname__", called)}
    for k, v in _parts(thing).items():
        said |= describe(v, f"{name}.{k}", seen)
    return said


def _digest(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def _parts(thing: Any) -> dict[Any, Any]:
    if isinstance(thing, Mapping):
        return dict(thing)
    if isinstance(thing, (list, tuple)):
        return dict(zip(getattr(thing, "_fields", range(len(thing))), thing))
    ours = str(getattr(thing, "__module__", "")).startswith("fedlearn.")
    if isinstance(thing, FunctionType):
        cells = (c.cell_contents for c in thing.__closure__ or ())
        enclosed = dict(zip(thing.__code__.co_freevars, cells))
        return enclosed if ours else {**enclosed, **_written(thing)}
    if isinstance(thing, (type, nn.Module)) or (ours and not is_dataclass(thing)):
        return {}
    try:
        return dict(enumerate(thing.__reduce_ex__(2)))  # what pickle would keep of it
    except TypeError:
        return {}


def _written(function: FunctionType) -> dict[Any, Any]:
    """What stands in a student's function: constants, defaults, what it names beside it."""
    code, world = function.__code__, function.__globals__
    beside = {n: world[n] for n in code.co_names if isinstance(world.get(n), Number | FunctionType)}
    consts = {f"constant {i}": c for i, c in enumerate(code.co_consts) if isinstance(c, PLAIN)}
    more = {"defaults": function.__defaults__, "keywords": function.__kwdefaults__}
    inner = [FunctionType(c, world) for c in code.co_consts if isinstance(c, CodeType)]
    return {**beside, **consts, **more, "names": " ".join(code.co_names), "inner": inner}


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What differs between two descriptions, in words; what decides most comes first.

    Example:
        >>> from fedlearn import algorithms, model
        >>> task = model.softmax_regression(2, 2)
        >>> a, b = (describe(algorithms.fedavg(task, lr), "method") for lr in (0.1, 0.2))
        >>> differences(a, b)
        ['method.client.lr was 0.1, is 0.2']
    """
    same = lambda a, b: a == b or (a != a and b != b)  # NaN is what it was
    other = [k for k in {**there, **here} if not same(there.get(k, "none"), here.get(k, "none"))]
    other.sort(key=lambda k: k.count("."))
    return [f"{k} was {there.get(k, 'none')!r}, is {here.get(k, 'none')!r}" for k in other]
