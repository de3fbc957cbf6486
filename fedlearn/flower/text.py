"""The messages of secure aggregation as text, and the files that say who is who."""

import json
from pathlib import Path
from typing import Any

from ..checks import check
from ..partition.files import place


def to_text(value: Any) -> str:
    """Numbers, words, bytes, tuples, lists and dicts as JSON; bytes in hexadecimal."""
    return json.dumps(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {"dict": [[_plain(k), _plain(v)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def from_text(text: Any) -> Any:
    """What :func:`to_text` wrote, lists as tuples. ValueError for anything else.

    It makes numbers, words, bytes, tuples and dicts, nothing else, whatever the text says.

    Example:
        >>> from_text(to_text([{3: (1, b"ab")}, None]))
        ({3: (1, b'ab')}, None)
    """
    rule = "text, as to_text writes it"
    try:
        return _value(json.loads(text))
    except (LookupError, TypeError, ValueError, RecursionError) as e:
        check("from_text", "what came", f"{e!r:.80}", False, rule, "'[1, 2]'")


def _value(plain: Any) -> Any:
    if isinstance(plain, dict):
        if "hex" in plain:
            return bytes.fromhex(plain["hex"])
        return {_value(k): _value(v) for k, v in plain["dict"]}
    return tuple(map(_value, plain)) if isinstance(plain, list) else plain


def directory_of(file: str | Path) -> dict[int, bytes]:
    """Public identity keys by client, from the ``directory.json`` of ``make_keys``."""
    there = json.loads(place(file).read_text(encoding="utf-8"))
    return {int(k): bytes.fromhex(v) for k, v in there.items()}
