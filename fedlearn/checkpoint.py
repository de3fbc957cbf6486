"""A run on the disk: whole or not at all, checked when read, and refused by another recipe.

A file is a magic line, the SHA-256 of the rest, and what ``torch.save`` makes of plain values and
tensors. It is read with ``weights_only``: nothing in it is executed.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checks import check
from .diagnostics import differences
from .partition.files import place

MAGIC = b"fedlearn run 1\n"
PLAIN = (bool, int, float, str, type(None), dict, list, tuple)


def encode(content: dict[str, Any]) -> bytes:
    """Plain values and tensors as the bytes of a file; ValueError for what could not be read."""
    _check_plain(content)
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
    named = isinstance(path, (str, Path)) and bool(str(path).strip())
    to = Path(
        os.path.realpath(place(str(path) if named else ".ckpt"))
    )  # also if the folder changes
    ours = to.is_file() and _head(to) == MAGIC and os.access(to, os.W_OK)
    rule = "a new file in a folder that exists and is yours, or a checkpoint of fedlearn"
    free = to.parent.is_dir() and os.access(to.parent, os.W_OK) and not os.path.lexists(to)
    ok = named and (ours or free)
    check("checkpoint", "the path", path and str(path), ok, rule, "'run.ckpt'")
    return to


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(MAGIC))


def _check_plain(value: Any, where: str = "the run") -> None:
    """Refuse what could not be read back before a run is made and lost."""
    rule = "tensors, numbers and text; dicts, lists and tuples of them"
    ok = type(value) in PLAIN or isinstance(value, Tensor)
    check("checkpoint", where, type(value).__name__, ok, rule, "torch.as_tensor(...)")
    if isinstance(value, (dict, list, tuple)):
        for k, v in value.items() if isinstance(value, dict) else enumerate(value):
            _check_plain(v, f"{where}[{k!r}]")
            check("checkpoint", f"a name in {where}", k, type(k) in (str, int), "text", "'loss'")


def check_same(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse a checkpoint of another recipe; the message names what differs."""
    if other := differences(there, here):
        raise ValueError(
            f"resume: the run must have the recipe that it began with, got another: "
            f"{'; '.join(other[:4])}; take the old values, or begin a new run, e.g. "
            f"resume=None"
        )
