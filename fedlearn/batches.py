"""The minibatches that each client sees in one round."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .rng import Use, hashed

Parts = Sequence[np.ndarray] | Mapping[int, np.ndarray]  # client -> its rows of x and y
_GATHER = 4_000_000  # numbers gathered at once: 16 MB
torch.empty(30_000_000, dtype=torch.uint8)  # freed: glibc now keeps up to 60 MB for the next step


class Shards(NamedTuple):
    """The round's minibatches of K clients: T steps of at most B examples, as indices into x, y.

    Attributes:
        x: (n, ...) every example, of all clients.
        y: (n, ...).
        index: (K, T, B) int64 rows of x and y.
        mask: (K, T, B) 1.0 for an example, 0.0 for padding; float32, or float64 where theta is.
        n: (K,) examples each client holds, in the same type: halves can't count them.
    """

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple's index() isn't missed
    mask: Tensor
    n: Tensor

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Step by step: x (K, B, ...), y (K, B, ...), mask (K, B)."""
        steps = self.index.transpose(0, 1).contiguous()  # (T, K, B): a step's batches lie together
        masks = self.mask.transpose(0, 1).contiguous()
        size = max(steps[:1].numel() * self.x[:1].numel(), 1)
        block = max(1, _GATHER // size)  # many steps a gather, but never the whole data set again
        for rows, mask in zip(steps.split(block), masks.split(block), strict=True):
            flat = rows.reshape(-1)
            x = self.x.index_select(0, flat).reshape(*rows.shape, *self.x.shape[1:])
            y = self.y.index_select(0, flat).reshape(*rows.shape, *self.y.shape[1:])
            yield from zip(x.unbind(0), y.unbind(0), mask.unbind(0), strict=True)


def schedule(
    parts: Parts,
    clients: np.ndarray,
    *,
    batch: int | None,
    epochs: int,
    seed: int,
    round: int | np.ndarray,
    work: np.ndarray | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The minibatches of K clients for one round: E passes over each one's data, reshuffled.

    Every example gets a key that depends on (seed, round, epoch, example) alone; a client takes its
    own in the order of their keys. So what a client sees doesn't depend on who else takes part.

    Args:
        parts: Index array of every client.
        clients: (K,) their numbers; K = 0 gives T = 0 steps.
        batch, epochs, seed: As in ``Recipe``: B, E and the run's seed.
        round: t; or (K,), if every client is in a round of its own.
        work: (K,) the fraction of its steps that each client does, rounded up; None for all.

    Returns ``index`` (K, T, B) int64, ``mask`` (K, T, B) float32, ``n`` (K,) float64, where T is
    the number of steps of the largest client; shorter ones are padded with mask 0.

    Example:
        >>> parts = [np.array([0, 1, 2]), np.array([3])]
        >>> index, mask, n = schedule(parts, np.arange(2), batch=2, epochs=1, seed=0, round=0)
        >>> mask.tolist(), n.tolist()
        ([[[1.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]], [3.0, 1.0])
    """
    if not len(clients):
        return torch.zeros(0, 0, 1, dtype=torch.int64), torch.zeros(0, 0, 1), torch.zeros(0)
    own = [parts[k] for k in clients.tolist()]
    n = np.array([len(p) for p in own])
    largest = max(int(n.max()), 1)
    B, epochs = int(min(batch or largest, largest)), int(epochs)  # NumPy's small ones overflow
    T1 = max(int((-(-n // B)).max()), 1)  # steps an epoch
    flat = np.concatenate(own)
    client = np.repeat(np.arange(len(own)), n)
    at = np.arange(len(flat)) - np.repeat(np.cumsum(n) - n, n)  # place within the client
    pad = np.array([p[0] if len(p) else 0 for p in own])  # own row: nobody reads another's
    index = np.tile(pad[:, None, None], (1, epochs, T1 * B)).astype(np.int64)
    mask = np.zeros((len(own), epochs, T1 * B), np.float32)
    mask[client, :, at] = 1.0
    first = client.astype(np.uint64) << np.uint64(44)  # one sort for all: client, then hash
    at_round = np.repeat(round, n) if isinstance(round, np.ndarray) else round
    for e in range(epochs):
        key = hashed(flat, seed, Use.SHUFFLE, at_round, e) >> np.uint64(20)
        index[client, e, at] = flat[np.argsort(key | first, kind="stable")]
    mask = mask.reshape(len(own), epochs * T1, B)
    if work is not None:  # the first ceil(work_k tau_k) steps of client k's, at least one
        steps = np.cumsum(mask.any(-1), axis=1)
        done = steps <= np.maximum(np.ceil(np.asarray(work)[:, None] * steps[:, -1:]), 1)
        mask *= done[..., None]
    index, n = index.reshape(mask.shape), n.astype(np.float64)  # 2**24 + 1 is none of float32's
    return torch.from_numpy(index), torch.from_numpy(mask), torch.from_numpy(n)
