"""What does secure aggregation cost? Seconds by stage and bytes, beside a plain sum of the rows.

    python benchmarks/secure.py            # prints the tables, writes benchmarks/secure.md

All K clients and the server take turns on one thread: a stage's seconds are those of everybody
together, and a real client does its share of them at the same time as the others. A row's plain sum
and its protocol take turns, three times; the medians are shown. Every total is checked, mod 2**32.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedlearn.partition.files import write_whole
from fedlearn.privacy.secure_aggregation import STAGES, Sum, default_threshold, secure_sum

CASES = [  # clients, numbers, dropped before their masked vector, target in seconds
    (10, 7_850, 0, None),
    (10, 7_850, 2, None),
    (50, 7_850, 10, None),
    (10, 199_210, 2, None),
    (50, 199_210, 0, None),
    (50, 199_210, 10, 10.0),
    (100, 199_210, 20, None),
]


def plain(rows: np.ndarray) -> np.ndarray:
    """One vector after the other, as they arrive."""
    total = np.zeros(rows.shape[1], np.uint32)
    for row in rows:
        total += row
    return total


def timed(K: int, d: int, lost: int, repeat: int) -> tuple[list[Sum], float, float]:
    """The rounds, and the median seconds of the protocol and of the plain sum."""
    rows = np.random.default_rng(0).integers(0, 2**32, (K, d), dtype=np.uint32)
    runs, ours, theirs = [], [], []
    for _ in range(repeat):
        start = time.perf_counter()
        expected = plain(rows[lost:])
        middle = time.perf_counter()
        runs.append(secure_sum(rows, dropped={"masked": range(lost)}))
        ours.append(time.perf_counter() - middle)
        theirs.append(middle - start)
        if not np.array_equal(runs[-1].total, expected):
            raise SystemExit(f"K = {K}, d = {d}: the sum is wrong")
    return runs, statistics.median(ours), statistics.median(theirs)


def lines(repeat: int) -> Iterator[str]:
    head = " | ".join(f"{s}, s" for s in STAGES)
    yield (
        f"| clients | numbers | dropped | t | {head} | **all, s** | plain sum, s | "
        "one client sends, bytes | receives | of 4 d | target |"
    )
    yield "|" + "---:|" * (12 + len(STAGES) - 3) + "---|"
    for K, d, lost, target in CASES:
        runs, ours, theirs = timed(K, d, lost, repeat)
        spent = " | ".join(f"{statistics.median(r.seconds[s] for r in runs):.2f}" for s in STAGES)
        up, down = (sum(v[-1] for v in b.values()) for b in (runs[0].up, runs[0].down))
        goal = f"< {target:.0f} s" if target else ""
        yield (
            f"| {K} | {d:,} | {lost} | {default_threshold(K)} | {spent} | **{ours:.2f}** | "
            f"{theirs:.3f} | {up:,} | {down:,} | {(up + down) / (4 * d):.3f} | {goal} |"
        )


def main() -> None:
    table = []
    for line in lines(int(os.environ.get("REPEAT", "3"))):
        table.append(line)
        print(line, flush=True)
    head = (
        "# Secure aggregation\n\nMade by `python benchmarks/secure.py`, on two cores of which one "
        f"is used (Python {sys.version.split()[0]}, NumPy {np.__version__}). Threshold t = "
        "⌊2 K / 3⌋ + 1. A stage's seconds are those of all clients and the server, one after the "
        'other. "Of 4 d": bytes both ways over those of a plain float32 vector up.\n\n'
    )
    target = Path(__file__).with_suffix(".md")
    write_whole(target, (head + "\n".join(table) + "\n").encode())


if __name__ == "__main__":
    main()
