"""A run on the disk: whole or not at all, checked when read, and refused by another recipe.

A file is a magic line, the SHA-256 of the rest, and what ``torch.save`` makes of plain values and
tensors. It is read with ``weights_only``: nothing in it is executed.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checks import check
from .files import write_whole

MAGIC = b"fedlearn run 1\n"
PLAIN = (bool, int, float, str, type(None))


def encode(content: dict[str, Any]) -> bytes:
    """Plain values and tensors as the bytes of a file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    return MAGIC + hashlib.sha256(data).digest() + data


def decode(content: bytes, path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What :func:`encode` encoded.

    Raises:
        ValueError: If it is no checkpoint, or a bit of it was changed.
    """
    magic, rest = content[: len(MAGIC)], content[len(MAGIC) :]
    check("resume", "the file", str(path), magic == MAGIC, "a checkpoint of fedlearn", "'run.ckpt'")
    whole = hashlib.sha256(rest[32:]).digest() == rest[:32]
    rule = "whole: its checksum differs, some of it was changed or lost"
    check("resume", "the file", str(path), whole, rule, "an older copy")
    return torch.load(io.BytesIO(rest[32:]), weights_only=True, map_location=device)


def claim(path: str | Path) -> Path:
    """The path for a checkpoint, refused early where it can't be written or is somebody's file."""
    path = Path(path)
    rule = "a file in a folder that exists"
    check("checkpoint", "the path", str(path), path.parent.is_dir(), rule, "'run.ckpt'")
    free = not path.exists() or (path.is_file() and path.read_bytes()[: len(MAGIC)] == MAGIC)
    rule = "new or a checkpoint of fedlearn: it would overwrite another file"
    check("checkpoint", "the path", str(path), free, rule, "'run.ckpt'")
    return path


def write(path: Path, content: dict[str, Any]) -> Path:
    """Write a checkpoint; whoever reads finds the old one or the new."""
    return write_whole(path, encode(content))


# -- which recipe made it --------------------------------------------------------------------------


def describe(thing: Any, name: str, seen: set[int] | None = None) -> dict[str, Any]:
    """Everything that decides a run, flat: path -> number, text or digest.

    Functions are described by their names and by what they enclose: the method's learning rate,
    say. So a student's own method needs no name and no registration.
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
    if is_dataclass(thing) and not isinstance(thing, type):
        return vars(thing)
    if isinstance(thing, partial):
        return {"func": thing.func, "args": thing.args, **thing.keywords}
    if isinstance(thing, MethodType):
        return {"self": thing.__self__, "function": thing.__func__}
    if not isinstance(thing, FunctionType):  # an object of a student's class is what it holds
        return {} if isinstance(thing, (type, nn.Module)) or _ours(type(thing)) else _held(thing)
    parts = dict(
        zip(thing.__code__.co_freevars, (c.cell_contents for c in thing.__closure__ or ()))
    )
    if not _ours(thing):  # a student's: what is written in it, too
        parts |= {f"default {i}": v for i, v in enumerate(thing.__defaults__ or ())}
        parts |= thing.__kwdefaults__ or {}
        parts |= _written(thing.__code__, thing.__globals__)
    return parts


def _ours(thing: Any) -> bool:
    return str(thing.__module__).startswith("fedlearn.")


def _held(thing: Any) -> dict[str, Any]:
    call = getattr(type(thing), "__call__", None)  # noqa: B004 (its code, not whether it has one)
    own = {"__call__": call} if isinstance(call, FunctionType) else {}
    return {**getattr(thing, "__dict__", {}), **own}


def _written(code: CodeType, world: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Constants, operations, and the numbers and functions beside it that a function names."""
    beside = {n: world.get(n) for n in code.co_names}
    near = lambda v: isinstance(v, FunctionType) and v.__globals__ is world
    parts = {n: v for n, v in beside.items() if isinstance(v, PLAIN[:-1]) or near(v)}
    for i, c in enumerate(code.co_consts):
        if isinstance(c, CodeType):
            parts |= _written(c, world, f"{where}{i}.")
        elif isinstance(c, PLAIN):
            parts[f"constant {where}{i}"] = c
    operations = code.co_code + repr(code.co_names).encode()
    return parts | {f"code {where}".rstrip(): hashlib.sha256(operations).hexdigest()[:16]}


def check_same(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse a checkpoint of another recipe; the message names what differs."""
    same = lambda a, b: a == b or (a != a and b != b)  # NaN is what it was
    other = [k for k in {**there, **here} if not same(there.get(k, "none"), here.get(k, "none"))]
    other.sort(key=lambda k: k.count("."))  # what decides most comes first
    said = [f"{k} was {there.get(k, 'none')!r}, is {here.get(k, 'none')!r}" for k in other[:4]]
    more = f" and {len(other) - 4} more" * (len(other) > 4)
    if other:
        raise ValueError(
            f"resume: the run must have the recipe that it began with, got another: "
            f"{'; '.join(said)}{more}; take the old values, or begin a new run, e.g. resume=None"
        )
