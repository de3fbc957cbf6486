"""Many clients' rows in little memory: added up as they come, or laid into a file."""

import tempfile
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from .algorithms import Reply
from .task import weighted
from .transform import Memory

Rule = Callable[[Tensor, Tensor], Tensor]  # (R, d), p (R,) -> (d,), see Reduce.fold
Done = Iterable[tuple[np.ndarray, Reply, tuple[Memory, ...]]]  # places, reply, memory of some rows
TOGETHER = 8  # rows that are added up at once: chunks', then sums'
_MAPPED = 1_000_000_000  # bytes from which rows lie in a file


def rows(like: Tensor, K: int) -> Tensor:
    """(K, ...) copies of one client's tensor; those above 1 GB in a file that ends with them.

    The file lies where temporary files do (``TMPDIR``), and what is 0 takes no room in it.

    Example:
        >>> rows(torch.tensor([1.0, 2.0]), 3)
        tensor([[1., 2.],
                [1., 2.],
                [1., 2.]])
    """
    size = K * like.numel() * like.element_size()
    if size <= _MAPPED or like.device.type != "cpu":
        return like.expand(K, *like.shape).clone()
    with tempfile.TemporaryFile() as file:
        place = np.memmap(file, np.uint8, "w+", shape=(size,))
    out = torch.from_numpy(place).view(like.dtype).view(K, *like.shape)
    return out.copy_(like.expand_as(out)) if like.any() else out


def join(done: Done, K: int, rule: Rule | None) -> tuple[Reply, tuple[Memory, ...]]:
    """One reply of many in the order of their places 0..K-1; with a ``rule`` one row of all.

    That row is what a client would send who holds everybody's examples: the rule of the updates,
    the weighted mean of the rest, n the sum. ``each`` (K,) are the clients' own n, ``sane`` (K,)
    says whose update is finite; memory stays a row a client.

    Example:
        >>> two = {"delta": torch.tensor([[0.0], [4.0]]), "n": torch.tensor([3.0, 1.0])}
        >>> one, _ = join([(np.arange(2), two, ())], 2, lambda rows, p: p @ rows)
        >>> one["delta"], one["n"], one["each"]
        (tensor([[1.]]), tensor([4.]), tensor([3., 1.]))
    """
    reply: Reply = {}
    kept: tuple[Memory, ...] = ()
    sums: list[Reply] = []
    none = lambda v: rows(torch.zeros_like(v[0]), K)
    stacked = lambda sums: {k: torch.cat([one[k] for one in sums]) for k in sums[0]}
    for where, some, own in done:
        at = torch.from_numpy(where).to(some["n"].device)
        kept = kept or tuple({k: none(v) for k, v in o.items()} for o in own)
        for mine, now in zip(kept, own, strict=True):
            for k, v in now.items():
                mine[k][at] = v
        if rule is None:
            for k, v in some.items():
                reply.setdefault(k, v.new_empty(K, *v.shape[1:]))[at] = v
            continue
        each = reply.pop("each", some["n"].new_empty(K))
        sane = reply.pop("sane", torch.ones_like(each, dtype=torch.bool))
        each[at], one = some.get("each", some["n"]), _one(some, rule)
        if not one["delta"].sum().isfinite():  # then look whose fault it is
            sane[at] = some.get("sane", some["delta"].isfinite().all(1))
        sums, reply = [*sums, one], {"each": each, "sane": sane}
        sums = [_one(stacked(sums), rule)] if len(sums) == TOGETHER else sums
    return (reply | _one(stacked(sums), rule) if rule and sums else reply), kept


def _one(reply: Reply, rule: Rule) -> Reply:
    """Some rows as one row, with all their weight; what is one already stays as it is."""
    if "each" in reply:
        return {k: v for k, v in reply.items() if k not in ("each", "sane")}
    n = reply["n"]
    p = n / n.sum()
    mean = lambda v: weighted(p, v.reshape(len(v), -1)).reshape(1, *v.shape[1:])
    out = {k: mean(v) for k, v in reply.items() if k != "delta"}
    out |= {"delta": rule(reply["delta"], p)[None], "n": n.sum()[None]}
    return out | ({"seconds": reply["seconds"].max()[None]} if "seconds" in reply else {})
