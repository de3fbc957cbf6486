"""A run on the disk: whole or not at all, checked when read, and refused by another recipe.

A file is a magic line, the SHA-256 of the rest, and what ``torch.save`` makes of plain values and
tensors. It is read with ``weights_only``: nothing in it is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .files import write_whole

MAGIC = b"fedlearn run 1\n"
_HEAD = len(MAGIC) + 32


def write(path: str | Path, content: dict[str, Any]) -> Path:
    """Write plain values and tensors; whoever reads finds the old content or the new."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    return write_whole(path, MAGIC + hashlib.sha256(data).digest() + data)


def read(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What :func:`write` wrote.

    Raises:
        ValueError: If the file is no checkpoint, or a bit of it was changed.
        FileNotFoundError: If there is none.
    """
    content = Path(path).read_bytes()
    data = content[_HEAD:]
    if content[: len(MAGIC)] != MAGIC:
        raise ValueError(
            f"resume: {path} must be a checkpoint of fedlearn, got a file that begins with "
            f"{content[:12]!r}, e.g. the path given to federate(..., checkpoint=...)"
        )
    if hashlib.sha256(data).digest() != content[len(MAGIC) : _HEAD]:
        raise ValueError(
            f"resume: {path} must be whole, got a damaged file: its checksum differs; use an "
            f"older copy, e.g. from a backup, or begin the run anew"
        )
    return torch.load(io.BytesIO(data), weights_only=True, map_location=device)


def claim(path: str | Path) -> Path:
    """The path for a checkpoint, refused early where it can't be written or is another file.

    Raises:
        ValueError: If its folder doesn't exist, or the file there is none of ours.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(
            f"checkpoint: the folder of {path} must exist, got none, e.g. checkpoint='run.ckpt'"
        )
    if path.exists() and (path.is_dir() or not _ours(path)):
        raise ValueError(
            f"checkpoint: {path} must be new or a checkpoint of fedlearn, got another file, which "
            f"it would overwrite, e.g. checkpoint='run.ckpt'"
        )
    return path


def _ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def check_plain(value: Any, where: str) -> None:
    """Refuse what ``weights_only`` would not give back, before a run is made and lost."""
    if isinstance(value, dict):
        for k, v in value.items():
            check_plain(v, f"{where}[{k!r}]")
    elif type(value) in (list, tuple):
        for i, v in enumerate(value):
            check_plain(v, f"{where}[{i}]")
    elif not (value is None or isinstance(value, (bool, int, float, str, Tensor))):
        raise ValueError(
            f"checkpoint: {where} must be a tensor, a number, text, or a dict, list or tuple of "
            f"them, got {type(value).__name__}, e.g. torch.as_tensor(...)"
        )


# -- which recipe made it --------------------------------------------------------------------------


def describe(thing: Any, name: str, seen: set[int] | None = None) -> dict[str, Any]:
    """Everything that decides a run, flat: path -> number, text or digest.

    Functions are described by their names and by what they enclose: the method's learning rate,
    say. So a student's own method needs no name and no registration.
    """
    seen = set() if seen is None else seen
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return {name: thing}
    if isinstance(thing, np.generic):
        return {name: thing.item()}
    if isinstance(thing, (Tensor, np.ndarray)):
        return {name: _digest(thing)}
    if id(thing) in seen:
        return {}
    seen.add(id(thing))
    said: dict[str, Any] = {name: type(thing).__name__}
    parts: Mapping[Any, Any] = {}
    if isinstance(thing, Mapping):
        parts = thing
    elif isinstance(thing, tuple) and (fields := getattr(thing, "_fields", ())):
        parts = dict(zip(fields, thing))
    elif isinstance(thing, (list, tuple)):
        parts = dict(enumerate(thing))
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        parts = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}
    elif isinstance(thing, FunctionType):
        said, parts = {name: thing.__qualname__}, _enclosed(thing)
    elif isinstance(thing, nn.Module):
        said = {name: str(thing)}
    for k, v in parts.items():
        said |= describe(v, f"{name}.{k}", seen)
    return said


def _digest(values: Tensor | np.ndarray) -> str:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    bits = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return f"{array.dtype}{list(array.shape)} {bits}"


def _enclosed(function: FunctionType) -> dict[str, Any]:
    """What a function closes over; of one from outside the package its constants, too."""
    cells = function.__closure__ or ()
    parts: dict[Any, Any] = {}
    parts |= zip(function.__code__.co_freevars, (c.cell_contents for c in cells))
    if not str(function.__module__).startswith("fedlearn."):
        plain = (bool, int, float, str)
        consts = function.__code__.co_consts
        parts |= {f"constant {i}": c for i, c in enumerate(consts) if isinstance(c, plain)}
        world = function.__globals__
        names = [n for n in function.__code__.co_names if isinstance(world.get(n), plain)]
        parts |= {n: world[n] for n in names} | dict(enumerate(function.__defaults__ or ()))
    return parts


def check_same(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse a checkpoint of another recipe.

    Raises:
        ValueError: If anything that decides the run differs; the message names what.
    """
    other = [k for k in {**there, **here} if there.get(k, "none") != here.get(k, "none")]
    if other:
        said = [f"{k} was {there.get(k, 'none')!r}, is {here.get(k, 'none')!r}" for k in other[:4]]
        raise ValueError(
            f"resume: the run must have the recipe that it began with, got another: "
            f"{'; '.join(said)}{f' and {len(other) - 4} more' if len(other) > 4 else ''}; "
            f"e.g. take the old values, or begin a new run"
        )
