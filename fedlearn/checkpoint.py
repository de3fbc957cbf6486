"""A run on the disk: whole or not at all, checked when read, and refused by another recipe.

A file is a magic line, the SHA-256 of the rest, and what ``torch.save`` makes of plain values and
tensors. It is read with ``weights_only``: nothing in it is executed.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import is_dataclass
from numbers import Number
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checks import check

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


def claim(path: str | Path | None) -> Path:
    """The path for a checkpoint, refused early where it can't be written or is somebody's file."""
    ok = path is not None and Path(path).parent.is_dir()
    check("checkpoint", "the path", path, ok, "a file in a folder that exists", "'run.ckpt'")
    path = Path(str(path))
    free = not path.exists() or (path.is_file() and path.read_bytes()[: len(MAGIC)] == MAGIC)
    rule = "new or a checkpoint of fedlearn: it would overwrite another file"
    check("checkpoint", "the path", str(path), free, rule, "'run.ckpt'")
    return path


def check_plain(value: Any, where: str = "the run") -> None:
    """Refuse what could not be read back before a run is made and lost."""
    rule = "tensors, numbers and text; dicts, lists and tuples of them"
    ok = type(value) in (*PLAIN, dict, list, tuple) or isinstance(value, Tensor)
    check("checkpoint", where, type(value).__name__, ok, rule, "torch.as_tensor(...)")
    if isinstance(value, (dict, list, tuple)):
        for k, v in value.items() if isinstance(value, dict) else enumerate(value):
            check_plain(v, f"{where}[{k!r}]")


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


def check_same(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse a checkpoint of another recipe; the message names what differs."""
    same = lambda a, b: a == b or (a != a and b != b)  # NaN is what it was
    other = [k for k in {**there, **here} if not same(there.get(k, "none"), here.get(k, "none"))]
    said = [f"{k} was {there.get(k, 'none')!r}, is {here.get(k, 'none')!r}" for k in other[:4]]
    more = f" and {len(other) - 4} more" * (len(other) > 4)
    if other:
        raise ValueError(
            f"resume: the run must have the recipe that it began with, got another: "
            f"{'; '.join(said)}{more}; take the old values, or begin a new run, e.g. resume=None"
        )
