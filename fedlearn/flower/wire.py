"""What travels: named tensors as Flower's records, looked at before they are used; asking nodes."""

import io
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Tensor

from ..checks import check
from ..recipe import Recipe

Look = tuple[str, tuple[int, ...]]  # of a tensor: its type and shape
PAUSE = 0.4  # seconds between two looks for replies: each costs the SuperLink some CPU


def pack(tensors: dict[str, Tensor]) -> ArrayRecord:
    """Named tensors as Flower sends them: a record of NumPy arrays."""
    return ArrayRecord({k: Array(v.detach().cpu().numpy()) for k, v in tensors.items()})


def unpack(record: ArrayRecord) -> dict[str, Tensor]:
    """The tensors that :func:`pack` packed, on the CPU."""
    return {k: torch.from_numpy(np.array(v.numpy())) for k, v in record.items()}


def checked(name: str, record: Any, looks: Mapping[str, Look | None]) -> dict[str, Tensor]:
    """The tensors of a record from outside: of these names and looks, and finite; else ValueError.

    Type and shape are read off each array's header first, so that nothing is unpickled and no more
    is allocated than was agreed on. A look of None lets any numbers through.
    """
    ok = isinstance(record, ArrayRecord)
    check(name, "what it sends", type(record).__name__, ok, "an ArrayRecord", "pack(reply)")
    names, rule = [str(k)[:40] for k in sorted(record)][:9], f"exactly {sorted(looks)}"
    check(name, "its names", names, set(record) == set(looks), rule, sorted(looks))
    for k, look in looks.items():
        header = io.BytesIO(record[k].data)
        plain = np.lib.format.read_magic(header) == (1, 0)
        check(name, k, "another format", plain, "an array as np.save writes it", "Array(ndarray)")
        shape, _, dtype = np.lib.format.read_array_header_1_0(header)
        ok = (str(dtype), shape) == look if look else dtype.kind in "biuf"
        check(name, k, f"{dtype} {shape}", ok, " ".join(map(str, look or ["numbers"])), "delta")
    tensors = unpack(record)
    for k, v in tensors.items():
        bad = int((~v.isfinite()).sum())
        check(name, k, f"{bad} of {v.numel()} inf or NaN", not bad, "finite", "a smaller lr")
    return tensors


def push(grid: Any, letters: Mapping[int, Message]) -> dict[str, int]:
    """Send letters, each under a number. -> the id of each that is under way: its number"""
    ids = grid.push_messages([*letters.values()]) if letters else []
    return {name: i for name, i in zip(ids, letters) if name}


def pull(grid: Any, under_way: dict[str, int]) -> Iterator[tuple[int, Message]]:
    """Answers that are there, by their letter's number; these are no longer under way."""
    for m in grid.pull_messages([*under_way]) if under_way else ():
        if (i := under_way.pop(m.metadata.reply_to_message_id, None)) is not None:
            yield i, m


def ask(
    grid: Any,
    letters: Mapping[int, Message],
    timeout: float | None,
    earlier: dict[str, int] | None = None,
) -> dict[int, Message]:
    """Send letters and wait until all are answered, or for ``timeout`` seconds.

    What is still under way from ``earlier`` tries counts as well, if it is answered now.
    Flower's own ``send_and_receive`` looks every three seconds, longer than a small round takes.
    """
    end = math.inf if timeout is None else time.monotonic() + timeout
    under_way, came = {} if earlier is None else earlier, dict[int, Message]()
    under_way |= push(grid, letters)
    while True:
        came |= dict(pull(grid, under_way))
        if {*letters} <= {*came} or time.monotonic() > end:
            return came
        time.sleep(PAUSE)


def look(v: Tensor, rows: int = 0) -> Look:
    """Its type and shape, without the first dimensions."""
    return str(v.dtype).removeprefix("torch."), tuple(v.shape[rows:])


def hides(recipe: Recipe) -> bool:
    """Whether a stage on the client hides its update: then it sends that and no other number."""
    return any(s.private for s in recipe.pipeline.on_client)


def warn_of_the_seed(name: str, stds: list[float]) -> None:
    """Say that noise of a seed hides nothing from who knows the seed."""
    if any(stds):
        warnings.warn(
            f"{name}: seeded=True is for teaching: the noise is a function of the recipe's seed, "
            f"and whoever knows the seed, as every client does, can subtract it. Leave it out, and "
            f"the noise comes from the operating system",
            RuntimeWarning,
            stacklevel=3,
        )
