"""What a run is made of, flat, and what differs between two: of recipes, data, anything."""

import hashlib
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
from torch import Tensor, nn

PLAIN = (bool, int, float, str, type(None))


def describe(thing: Any, name: str, seen: dict[int, Any] | None = None) -> dict[str, Any]:
    """Everything in a thing that decides a run, flat: path -> number, text or digest.

    Functions are described by their names and by what they enclose, the method's learning rate,
    say, so that a student's own method needs no name and no registration; what stands outside the
    package also by what is written in it. Tensors by type, shape and SHA-256; objects by what they
    hold. What is met again is not repeated.

    Args:
        thing: A recipe, a method, a call, tensors, dicts and lists of such.
        name: The first word of every path.
        seen: Used in the recursion.

    Example:
        >>> describe({"lr": 0.1, "sizes": (3, 4)}, "run")
        {'run': 'dict', 'run.lr': 0.1, 'run.sizes': 'tuple', 'run.sizes.0': 3, 'run.sizes.1': 4}
    """
    seen = {} if seen is None else seen
    if isinstance(thing, (Tensor, np.ndarray)):
        array = thing.detach().cpu().numpy() if isinstance(thing, Tensor) else thing
        thing = _digest(np.ascontiguousarray(array))
    if isinstance(thing, (*PLAIN, np.generic)):
        return {name: thing.item() if isinstance(thing, np.generic) else thing}
    if id(thing) in seen:
        return {}
    seen[id(thing)] = thing  # kept, so that no other gets its number
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
    if isinstance(thing, partial):
        return {"func": thing.func, "args": thing.args, **thing.keywords}
    if isinstance(thing, MethodType):
        return {"self": thing.__self__, "function": thing.__func__}
    if isinstance(thing, FunctionType):
        cells = (c.cell_contents for c in thing.__closure__ or ())
        enclosed = dict(zip(thing.__code__.co_freevars, cells))
        return enclosed if _ours(thing) else {**enclosed, **_written(thing)}
    if is_dataclass(thing) and not isinstance(thing, type):
        return vars(thing)
    if isinstance(thing, (type, nn.Module)) or _ours(type(thing)):
        return {}
    call = getattr(type(thing), "__call__", None)  # noqa: B004 (its code, not whether it has one)
    own = {"__call__": call} if isinstance(call, FunctionType) else {}
    return {**getattr(thing, "__dict__", {}), **own}


def _ours(thing: Any) -> bool:
    return str(thing.__module__).startswith("fedlearn.")


def _written(function: FunctionType) -> dict[str, Any]:
    """What stands in a student's function: constants, operations, what it names beside it."""
    defaults = {f"default {i}": v for i, v in enumerate(function.__defaults__ or ())}
    inside = _code(function.__code__, function.__globals__, "")
    return {**defaults, **(function.__kwdefaults__ or {}), **inside}


def _code(code: CodeType, world: dict[str, Any], where: str) -> dict[str, Any]:
    near = lambda v: isinstance(v, FunctionType) and v.__globals__ is world
    beside = {n: world.get(n) for n in code.co_names}
    parts = {n: v for n, v in beside.items() if isinstance(v, PLAIN[:-1]) or near(v)}
    for i, c in enumerate(code.co_consts):
        if isinstance(c, CodeType):
            parts |= _code(c, world, f"{where}{i}.")
        elif isinstance(c, PLAIN):
            parts[f"constant {where}{i}"] = c
    operations = code.co_code + repr(code.co_names).encode()
    return parts | {f"code {where}".rstrip(): hashlib.sha256(operations).hexdigest()[:16]}


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
