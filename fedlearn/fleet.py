"""A simulated clock: how long each client computes, and how fast its line is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .checks import check, not_negative, positive, whole
from .rng import Use, numpy_rng


class Fleet(NamedTuple):
    """The clients' machines.

    Attributes:
        compute: (N,) seconds an example (forward, backward, step).
        down: (N,) bytes a second, from the server.
        up: (N,) bytes a second, to the server.
    """

    compute: np.ndarray
    down: np.ndarray
    up: np.ndarray

    def seconds(
        self, clients: np.ndarray, examples: np.ndarray, sent: int, received: int
    ) -> np.ndarray:
        """From the broadcast to the reply: sent / down + examples * compute + received / up. (K,) s

        ``clients`` (K,) are numbers, ``examples`` (K,) those processed, n_k E for a whole round;
        ``sent`` and ``received`` are bytes to and from one client.

        Example:
            >>> one = Fleet(np.array([0.001]), np.array([1e6]), np.array([5e5]))
            >>> one.seconds(np.array([0]), np.array([500]), 31_400, 31_400)
            array([0.5942])
        """
        wire = sent / self.down[clients] + received / self.up[clients]
        return wire + examples * self.compute[clients]


def check_fleet(name: str, fleet: Fleet, clients: int) -> None:
    """ValueError unless there is a machine for each of N clients, its three numbers > 0.

    A line may be infinitely fast, where bytes take no time.

    Example:
        >>> check_fleet("Simulated", fleet(3), 3)
    """
    for what, speeds in zip(fleet._fields, map(np.asarray, fleet), strict=True):
        good = speeds.shape == (clients,) and speeds.dtype.kind in "fiu"
        good = good and bool((speeds > 0).all())  # NaN isn't
        good = good and (what != "compute" or bool(np.isfinite(speeds).all()))
        finite = " and finite" * (what == "compute")
        rule = f"({clients},) numbers > 0{finite}, one a client"
        check(name, f"fleet.{what}", speeds, good, rule, f"fleet({clients})")


def fleet(
    n: int,
    seed: int = 0,
    *,
    compute: float = 1e-3,
    down: float = 1e6,
    up: float = 2.5e5,
    spread: float = 1.0,
) -> Fleet:
    """N machines, their speeds log-normal: median times exp(spread * N(0, 1)), each on its own.

    Args:
        n: N.
        seed: Of the draw.
        compute: Median seconds an example: a phone, a small network.
        down: Median bytes a second to the client.
        up: Median bytes a second from it, as a rule less.
        spread: Standard deviation of the logarithms; 0 makes all alike, at 1 one in six is 2.7
            times slower than the median. ValueError if a number is out of range.

    Example:
        >>> fleet(3, spread=0.0).compute
        array([0.001, 0.001, 0.001])
    """
    whole("fleet", "n", n, example=20)
    not_negative("fleet", "spread", spread, 1.0)
    for name, value in (("compute", compute), ("down", down), ("up", up)):
        positive("fleet", name, value, 1e-3)
    z = numpy_rng(seed, Use.FLEET).standard_normal((3, n))
    return Fleet(*(m * np.exp(spread * row) for m, row in zip((compute, down, up), z)))
