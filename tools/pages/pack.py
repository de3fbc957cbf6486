"""Numbers of a recording, each array kept once, in text that a page can hold.

Floats are kept as the first 24 bits of a float32: 16 wouldn't do, because lesson 11's errors fall
to 1e-12, where a float16 is 0. The bytes of all floats stand in three planes (high, middle, low),
which gzip likes. ``web/player.js`` reads it.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BYTES = ("regions", "owner", "right")  # traits that hold bytes; all others hold float32


class Pool:
    """All arrays that were kept, each once. A reference into it stands in their place.

    ``{"$f": [[at, n], ...]}`` are floats, in one or more pieces; ``{"$b": [at, n]}`` bytes;
    ``{"$m": [at, n, wide]}`` rows of numbers.
    """

    def __init__(self) -> None:
        self._words: list[np.ndarray] = []
        self._bytes: list[bytes] = []
        self._at = {"words": 0, "bytes": 0}
        self._known: dict[bytes, list[int]] = {}

    def floats(self, values: np.ndarray) -> list[int]:
        """Keep an array of floats; [where it begins, how many]."""
        bits = np.ascontiguousarray(values, np.float32).ravel().view(np.uint32)
        # Rounded to 24 bits. Not a finite one: a NaN might become an infinity, and the last word 0.
        finite = np.isfinite(bits.view(np.float32))
        rounded = np.where(finite, bits.astype(np.uint64) + 0x80, bits) >> 8
        words = rounded.astype(np.uint32)
        return self._once(b"f" + words.tobytes(), "words", self._words, words)

    def raw(self, values: bytes) -> list[int]:
        """Keep bytes as they are."""
        return self._once(b"b" + values, "bytes", self._bytes, values)

    def ints(self, values: Sequence[int]) -> list[int]:
        """Keep whole numbers below 2**24, in three planes."""
        a = np.asarray(values, np.uint32)
        return self.raw(b"".join((a >> s & 255).astype(np.uint8).tobytes() for s in (0, 8, 16)))

    def _once(self, key: bytes, kind: str, kept: list[Any], values: Any) -> list[int]:
        if key not in self._known:
            self._known[key] = [self._at[kind], len(values)]
            kept.append(values)
            self._at[kind] += len(values)
        return self._known[key]

    def trait(self, name: str, value: Any, state: Mapping[str, Any]) -> Any:
        """What a view was sent under a name, its arrays kept here."""
        if not isinstance(value, bytes):
            return self.plain(value)
        if name in BYTES:
            return {"$b": self.raw(value)}
        numbers = np.frombuffer(value, np.float32)
        if name in ("x", "y") and "lines" in state:  # line by line: they share their rounds
            cuts = np.cumsum([line["n"] for line in state["lines"]])[:-1]
            return {"$f": [self.floats(part) for part in np.split(numbers, cuts)]}
        return {"$f": [self.floats(numbers)]}

    def plain(self, v: Any) -> Any:
        """A value for JSON: four digits are enough, long tables of numbers are kept here."""
        if isinstance(v, float):
            return float(f"{v:.4g}") if math.isfinite(v) else None
        if isinstance(v, Mapping):
            return {k: self.plain(w) for k, w in v.items()}
        if isinstance(v, (list, tuple)):
            if wide := _width(v):
                return {"$m": [*self.floats(np.array(v, np.float32)), wide]}
            return [self.plain(w) for w in v]
        return v

    def packed(self, header: Mapping[str, Any]) -> str:
        """gzip(three lengths, header as JSON, three planes of floats, bytes), in base 64."""
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        words = np.concatenate([np.zeros(0, np.uint32), *self._words])
        planes = b"".join((words >> s & 255).astype(np.uint8).tobytes() for s in (16, 8, 0))
        raw = b"".join(self._bytes)
        lengths = np.array([len(text), len(words), len(raw)], "<u4").tobytes()
        packed = gzip.compress(lengths + text + planes + raw, 9, mtime=0)
        return base64.b64encode(packed).decode()


def _width(v: Sequence[Any]) -> int:
    """Columns of a table of numbers; 0 for anything else, and for a short one."""
    rows = all(isinstance(row, (list, tuple)) for row in v)
    if len(v) < 4 or not rows or len({len(row) for row in v}) != 1:
        return 0
    numbers = all(isinstance(n, (int, float)) for row in v for n in row)
    return len(v[0]) if numbers else 0
