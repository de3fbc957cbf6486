"""Files beside the notebook, under names that never overwrite."""

from __future__ import annotations

import csv
import io
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def claim(stem: str, endings: Sequence[str], folder: Path | None = None) -> list[Path]:
    """Reserve ``stem.csv``, ``stem.png``, or with ``-1``, ``-2`` … the first set that is free.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as d:
        ...     a = claim("run", [".csv", ".png"], Path(d))
        ...     b = claim("run", [".csv", ".png"], Path(d))
        ...     [p.name for p in a + b]
        ['run.csv', 'run.png', 'run-1.csv', 'run-1.png']
    """
    folder = folder or Path.cwd()
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem) or "run"
    n = 0
    while True:
        paths = [folder / f"{stem}{f'-{n}' if n else ''}{ending}" for ending in endings]
        made: list[Path] = []
        try:
            for p in paths:
                os.close(os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                made.append(p)
            return paths
        except FileExistsError:
            for p in made:
                p.unlink()
            n += 1


def fill(path: Path, content: bytes) -> None:
    """Replace a reserved file in one go: nobody ever reads half of it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as d:
        ...     (p,) = claim("run", [".csv"], Path(d))
        ...     fill(p, b"round,loss\\n")
        ...     p.read_bytes()
        b'round,loss\\n'
    """
    handle, temp = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(content)
        os.chmod(temp, path.stat().st_mode & 0o777)
        os.replace(temp, path)
    except BaseException:
        os.unlink(temp)
        raise


def table(columns: Mapping[str, Any], constants: Mapping[str, Any]) -> bytes:
    """CSV, a row a round; every row carries the settings, so that files can be put together.

    Example:
        >>> print(table({"loss": np.array([2.0, 1.5])}, {"alpha": 0.1}).decode().strip())
        round,loss,alpha
        0,2.0,0.1
        1,1.5,0.1
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["round", *columns, *constants])
    n = max((len(v) for v in columns.values()), default=0)
    for i in range(n):
        row = [float(v[i]) if i < len(v) and np.isfinite(v[i]) else "" for v in columns.values()]
        writer.writerow([i, *row, *("all" if v is None else v for v in constants.values())])
    return out.getvalue().encode()
