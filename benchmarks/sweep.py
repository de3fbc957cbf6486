"""5 x 5 settings of 100 rounds on digits with 20 clients: all cores against one.

    python benchmarks/sweep.py [--rounds 100]

Prints seconds with one core, with all (helpers warm, and with their start), and the ratio; fails
if all cores take 60 s or more. A ratio below 1.5 on two cores usually means that they are shared.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import torch

from fedlearn.panels import Settings
from fedlearn.panels.federated import workers

X = ("epochs", (1, 2, 5, 10, 20))
Y = ("alpha", (0.01, 0.1, 1.0, 10.0, 100.0))


def timed(settings: Settings, helpers: int | None) -> tuple[float, np.ndarray]:
    workers._KNOWN.clear()
    start = time.perf_counter()
    table = workers.grid(settings, x=X, y=Y, helpers=helpers)
    return time.perf_counter() - start, table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    settings = Settings(rounds=parser.parse_args().rounds)
    torch.set_num_threads(1)
    cold, _ = timed(settings, None)
    warm, table = timed(settings, None)
    one, same = timed(settings, 0)
    assert np.allclose(table, same), "a helper must find what this process finds"
    print(f"25 cells x {settings.rounds} rounds, digits, 20 clients, {workers.others() + 1} cores")
    print(f"one core {one:.1f} s, all {warm:.1f} s: {one / warm:.2f} times as fast")
    print(f"with the helpers' start {cold:.1f} s; lowest accuracy {np.nanmin(table):.3f}")
    return 0 if max(cold, warm) < 60 else 1


if __name__ == "__main__":
    sys.exit(main())
