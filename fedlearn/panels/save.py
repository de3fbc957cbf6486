"""Files beside the notebook, under names that never overwrite."""

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .words import flat


def claim(stem: str, endings: Sequence[str], folder: Path | None = None) -> list[Path]:
    """Reserve ``stem.csv``, ``stem.png``, or with ``-1``, ``-2`` … the first set that is free."""
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


def table(columns: Mapping[str, Any], params: Mapping[str, Any]) -> bytes:
    """CSV, a row a round; every row carries the parameters, so that files can be put together."""
    out, constants = io.StringIO(), flat(params)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["round", *columns, *constants])
    same = ["all" if v is None else getattr(v, "__name__", v) for v in constants.values()]
    for i in range(max((len(v) for v in columns.values()), default=0)):
        row = [float(v[i]) if i < len(v) and np.isfinite(v[i]) else "" for v in columns.values()]
        writer.writerow([i, *row, *same])
    return out.getvalue().encode()
