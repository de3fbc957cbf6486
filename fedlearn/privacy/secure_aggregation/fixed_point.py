"""Numbers as residues: fixed point mod 2**32, in which masks cancel exactly.

Floating-point numbers can't be masked: there is no uniform one to add, and a large mask would eat
the small number's digits. On a clock of 2**32 hours every hour is as likely as any other, and
adding is exact.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...checks import check, is_whole, positive, whole

LIMIT = 2**31  # of a signed sum mod 2**32


@dataclass(frozen=True)
class FixedPoint:
    """x -> round(x 2**bits) mod 2**32, and the sum of up to ``clients`` such back to numbers.

    Negative numbers are two's complement: the whole number -1 is 2**32 - 1. The sum of K encodings
    is right if it lies within ±2**31, half a turn to either side, which ``clients`` times ``bound``
    times 2**bits guarantees. It is off by at most K 2**-(bits + 1), half a step a client.

    Attributes:
        bound: Largest |x| that may be sent, > 0.
        clients: Most that are ever added up. A vector sent w times, as in a weighted mean, counts
            as w clients.
        bits: After the point; None takes the most that fit.

    Raises:
        ValueError: If a number is out of range, or the sum could reach 2**31; the message says
            how many bits would fit.

    Example:
        >>> code = FixedPoint(bound=1.0, clients=3, bits=16)
        >>> code.encode(np.array([0.5, -0.5]))
        array([     32768, 4294934528], dtype=uint32)
        >>> total = code.encode(np.array([0.5])) + code.encode(np.array([-0.75]))
        >>> code.decode(total)
        array([-0.25])
        >>> FixedPoint(bound=8.0, clients=1437).bits
        17
    """

    bound: float
    clients: int
    bits: int | None = None

    def __post_init__(self) -> None:
        bound, bits = self.bound, self.bits
        positive("FixedPoint", "bound", bound, 8.0)
        whole("FixedPoint", "clients", self.clients, example=50)
        most = _most_bits(bound, self.clients)
        if most is None:
            raise ValueError(
                f"FixedPoint: {self.clients} clients times bound {bound} must stay below 2**31, "
                f"and don't with 0 bits either, e.g. bound={LIMIT / 4 / self.clients:.3g}"
            )
        if bits is None:
            object.__setattr__(self, "bits", most)
        else:
            below = f"so that {self.clients} x {bound} stays below 2**31"
            rule = f"an integer from 0 to {most}, {below}"
            check("FixedPoint", "bits", bits, is_whole(bits, 0, most), rule, most)

    @property
    def scale(self) -> float:
        """2**bits: steps a unit."""
        assert self.bits is not None
        return 2.0**self.bits

    def encode(self, x: Any, times: int = 1) -> np.ndarray:
        """(d,) numbers -> (d,) uint32 residues of ``times`` x.

        ValueError if a number is NaN, infinite or beyond ``bound``: nothing is cut silently.
        """
        x = np.asarray(x)
        check("encode", "x", x.dtype, x.dtype.kind in "biuf", "real numbers", [0.5, -0.25])
        x = x.astype(np.float64)
        bad = ~(np.abs(x) <= self.bound)  # NaN, too
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"FixedPoint: every number must lie within ±{self.bound}, got {x.flat[i]} at "
                f"position {i} ({int(bad.sum())} of {x.size} are out of range); send less or allow "
                f"more, e.g. clip({self.bound}) before it or a larger bound"
            )
        rule = f"an integer from 1 to clients = {self.clients}"
        check("encode", "times", times, is_whole(times, 1, self.clients), rule, 1)
        return np.rint(x * (times * self.scale)).astype(np.int64).astype(np.uint32)

    def decode(self, total: np.ndarray) -> np.ndarray:
        """(d,) uint32, the sum mod 2**32 of encodings -> (d,) float64, the sum of the numbers."""
        total = np.asarray(total)
        rule = "integers: a sum of what encode gave"
        check(
            "decode", "total", total.dtype, total.dtype.kind in "iu", rule, "encode(x) + encode(y)"
        )
        return total.astype(np.uint32).view(np.int32) / self.scale


def _most_bits(bound: float, clients: int) -> int | None:
    """The most bits with clients * ceil(bound * 2**bits) < 2**31."""
    fits = [b for b in range(52) if clients * math.ceil(bound * 2.0**b) < LIMIT]
    return fits[-1] if fits else None
