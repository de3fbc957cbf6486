"""Axis ranges that end on round numbers."""

from collections.abc import Sequence

import numpy as np


def round_up(v: float, steps: Sequence[float] = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)) -> float:
    """The smallest of ``steps`` times a power of ten that isn't below v > 0."""
    ten = 10.0 ** np.floor(np.log10(v))
    return float(f"{next((m * ten for m in steps if m * ten >= v * (1 - 1e-9)), 10 * ten):.6g}")


def linear_range(v: np.ndarray) -> tuple[float, float]:
    """From 0, or a round number below, to a round number above."""
    lo, hi = float(v.min()), float(v.max())
    top = round_up(hi) if hi > 0 else 0.0
    low = -round_up(-lo) if lo < 0 else 0.0
    return (low, top) if top > low else (0.0, 1.0)


def log_range(v: np.ndarray) -> tuple[float, float]:
    """Round numbers below and above, one to six decades apart."""
    lo, hi = float(v.min()), float(v.max())
    top = round_up(hi, (1, 2, 3, 5, 10))
    ten = 10.0 ** np.floor(np.log10(lo))
    low = float(f"{next(m * ten for m in (5, 2, 1) if m * ten <= lo * (1 + 1e-9)):.6g}")
    return max(min(low, top / 10), top / 1e6), top
