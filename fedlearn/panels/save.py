"""Files beside the notebook, under names that never overwrite."""

import contextlib
import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .words import flat, words


def claim(stem: str, endings: Sequence[str], folder: Path | None = None) -> list[Path]:
    """Names that are free: ``stem.csv``, ``stem.png``, or with ``-1``, ``-2`` … at both.

    The first is taken at once, by an empty file, so that two panels don't get the same names.
    """
    folder = folder or Path.cwd()
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem) or "run"
    n = 0
    while True:
        paths = [folder / f"{stem}{f'-{n}' if n else ''}{ending}" for ending in endings]
        if not any(map(os.path.lexists, paths)):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(paths[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
                return paths
        n += 1


def table(columns: Mapping[str, Any], params: Mapping[str, Any]) -> bytes:
    """CSV, a row a round; every row carries the parameters, so that files can be put together."""
    out, constants = io.StringIO(), flat(params)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["round", *columns, *constants])
    plain = (str, int, float)
    same = [v if isinstance(v, plain) else words(v) for v in constants.values()]
    for i in range(max((len(v) for v in columns.values()), default=0)):
        row = [float(v[i]) if i < len(v) and np.isfinite(v[i]) else "" for v in columns.values()]
        writer.writerow([i, *row, *same])
    return out.getvalue().encode()
