"""What a run is made of, flat, and what differs between two: of recipes, data, anything."""

import hashlib
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str, type(None))
DECIDES = (
    *("recipe", "x", "y", "parts", "chunk", "fleet", "clients", "attackers", "attack"),
    *("code", "threshold"),  # of secure_mean
)


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
        if isinstance(thing, Tensor) and thing.dtype == torch.bfloat16:  # NumPy has no such type
            said = describe(thing.detach().view(torch.int16), name)
            return {name: said[name].replace("int16", "bfloat16", 1)}
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
    if isinstance(thing, nn.Module):
        return _layers(thing)
    if isinstance(thing, type):
        return {}
    held = getattr(thing, "__dict__", {})
    if _ours(type(thing)):  # clients, for one: with their data, or with whom they wrap
        return {k: v for k, v in held.items() if k in DECIDES}
    passing = (list, dict, set)  # what an object fills as it is used, a cache, decides nothing
    own = {k: v for k, v in held.items() if not isinstance(v, passing)}
    return {**own, **_methods(type(thing))}


def _methods(kind: type) -> dict[str, Any]:
    """The functions of a student's class, its parents' too."""
    found = {k: f for base in kind.__mro__ for k, f in vars(base).items()}
    return {k: f for k, f in found.items() if isinstance(f, FunctionType)}


def _layers(module: nn.Module) -> dict[str, Any]:
    """What isn't trained; of layers that aren't PyTorch's own: how they compute, their numbers."""
    still = {k: p for k, p in module.named_parameters() if not p.requires_grad}
    parts: dict[str, Any] = still | dict(module.named_buffers())
    for name, m in module.named_modules():
        if not type(m).__module__.startswith("torch."):
            held = {k: v for k, v in vars(m).items() if k != "training"}
            plain = {k: v for k, v in held.items() if isinstance(v, (*PLAIN, Tensor))}
            own = {k: f for k, f in vars(type(m)).items() if isinstance(f, FunctionType)}
            parts |= {f"{name}.{k}".lstrip("."): v for k, v in {**plain, **own}.items()}
    return parts


def _ours(thing: Any) -> bool:
    return str(thing.__module__).startswith("fedlearn.")


def _written(function: FunctionType) -> dict[str, Any]:
    """What stands in a student's function: constants, operations, what it names beside it."""
    defaults = {f"default {i}": v for i, v in enumerate(function.__defaults__ or ())}
    inside = _code(function.__code__, function.__globals__, "")
    return {**defaults, **(function.__kwdefaults__ or {}), **inside}


def _decides(v: Any, world: dict[str, Any]) -> bool:
    """Whether something that a function names beside it is more than a tool."""
    if isinstance(v, FunctionType):
        return v.__globals__ is world
    return not (isinstance(v, (ModuleType, type)) or callable(v) or v is None)


def _code(code: CodeType, world: dict[str, Any], where: str) -> dict[str, Any]:
    beside = {n: world[n] for n in code.co_names if n in world}
    parts = {n: v for n, v in beside.items() if _decides(v, world)}
    for i, c in enumerate(code.co_consts):
        if isinstance(c, CodeType):
            parts |= _code(c, world, f"{where}{i}.")
        else:
            parts[f"constant {where}{i}"] = c if isinstance(c, PLAIN) else repr(c)
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
