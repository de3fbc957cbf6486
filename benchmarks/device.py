"""Everything on a GPU, in one run: are the numbers those of the CPU, and how much faster is it?

    python benchmarks/device.py           # a CUDA device; prints, and writes benchmarks/device.md
    python benchmarks/device.py cpu       # the script itself, where there is none; writes nothing

First ``tests/test_device.py`` (every method, rule, stage and attack, in float64, against the CPU to
ten digits), then a round of McMahan's 2NN and of a small CNN here and there, in float32, the two
taking turns.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from speed import convolutional, mnist_shaped

from fedlearn import Recipe, Simulated, algorithms, federate, model
from fedlearn.partition.files import write_whole

HERE = Path(__file__).parent
CASES = {  # name: task, clients, of each how many examples
    "2NN, 10 clients of 600": (lambda: model.mlp(784, 200, 200, 10), 10, 600),
    "2NN, 100 clients of 600": (lambda: model.mlp(784, 200, 200, 10), 100, 600),
    "CNN, 10 clients of 600": (lambda: model.from_module(convolutional()), 10, 600),
    "CNN, 100 clients of 60": (lambda: model.from_module(convolutional()), 100, 60),
}


def rounds(make, N: int, each: int, device: str, chunk: int | None) -> Iterator[None]:  # type: ignore[no-untyped-def]
    x, y = (v[: N * each] for v in mnist_shaped())
    task = make()
    recipe = Recipe(algorithms.fedavg(task, 0.1), task.theta0, batch=10)
    parts = list(np.arange(N * each).reshape(N, each))
    clients = Simulated(recipe, x, y, parts, device=device, chunk=chunk)
    for _ in federate(clients, rounds=10**6):
        if device == "cuda":
            torch.cuda.synchronize()
        yield


def times(name: str, device: str, n: int = 5) -> tuple[float, float]:
    """Median seconds of a round on the CPU and on the device; a GPU trains all clients at once."""
    make, N, each = CASES[name]
    runs = rounds(make, N, each, "cpu", None), rounds(make, N, each, device, N)
    spent: tuple[list[float], list[float]] = ([], [])
    for t in range(n + 1):
        for mine, run in zip(spent, runs, strict=True):
            start = time.perf_counter()
            next(run)
            if t:
                mine.append(time.perf_counter() - start)
    return statistics.median(spent[0]), statistics.median(spent[1])


def main(device: str) -> None:
    env = {**os.environ, "FEDLEARN_DEVICE": device}
    tests = [sys.executable, "-m", "pytest", str(HERE.parent / "tests/test_device.py"), "-q"]
    done = subprocess.run(tests, env=env, capture_output=True, text=True, cwd=HERE.parent)
    text = [
        "# On a GPU",
        "",
        f"`tests/test_device.py`: {done.stdout.strip().splitlines()[-1]}",
        "",
        "| a round of FedAvg, B = 10, E = 1 | CPU, s | GPU, s | ratio |",
        "|---|---:|---:|---:|",
    ]
    if done.returncode:
        print(done.stdout[-6000:], flush=True)
    for name in CASES:
        cpu, gpu = times(name, device)
        text.append(f"| {name} | {cpu:.3f} | {gpu:.3f} | **{cpu / gpu:.1f}** |")
        print(text[-1], flush=True)
    card = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    threads = torch.get_num_threads()
    text += ["", f"{card}; CPU with {threads} threads; torch {torch.__version__}.", ""]
    print("\n".join(text))
    if device == "cuda":
        write_whole(HERE / "device.md", "\n".join(text).encode())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
