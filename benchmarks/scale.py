"""How far does one machine go? Time and memory against clients, parameters and local epochs.

    python benchmarks/scale.py            # prints the tables, writes scale.md and scale.png

Every row is a process of its own, so that its peak memory is its own, on one thread unless it says
workers. Examples are made up in MNIST's shape. The plain loop (``speed.py``'s: deepcopy,
DataLoader, ``torch.optim.SGD``, a mean of state dicts) takes turns with ours in that process, so
that a busy machine slows both; the ratio is that of the medians of three rounds, so that the first,
in which workers start, doesn't count. Memory is that process's: each worker has a PyTorch and a
chunk of its own. Exponents are the slopes of straight lines through the logarithms: 1 is
proportional, 0 is free.
"""

from __future__ import annotations

import importlib.util
import io
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from speed import network, plain_loop

from fedlearn import Recipe, Simulated, algorithms, federate, model
from fedlearn.partition.files import write_whole
from fedlearn.rng import Use, numpy_rng

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))  # for Flower's grid without a network
TWO_NN, LINEAR = (784, 200, 200, 10), (784, 10)
SIZES = [LINEAR, (784, 50, 10), TWO_NN, (784, 1000, 10)]
NUMBERS = [100, 300, 1_000, 3_000, 10_000]
EPOCHS = [1, 2, 5, 10]
COLUMNS = ("clients", "examples each", "layers", "E", "workers", "method")


def peak() -> float:
    """Most memory this process has had, in MB (Linux counts in kB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def one(clients: int, each: int, dims: tuple[int, ...], epochs: int, workers: int, method: str,
        rounds: int, beside: bool) -> dict[str, float]:  # fmt: skip
    """Seconds a round and MB beyond import of one workload; with ``beside`` the plain loop's."""
    before = peak()
    rng = numpy_rng(0, Use.TOY)
    x = torch.from_numpy(rng.random((clients * each, 784), dtype=np.float32))
    y = torch.from_numpy(rng.integers(0, 10, clients * each))
    parts = list(np.arange(clients * each).reshape(clients, each))
    task = model.mlp(*dims)
    method, _, letter = method.partition(", ")
    made = {
        "fedavg": lambda: algorithms.fedavg(task, 0.05),
        "scaffold": lambda: algorithms.scaffold(task, 0.05, n_total=len(y)),
    }[method]()
    recipe = Recipe(made, task.theta0, batch=10, epochs=epochs)
    place = Simulated(recipe, x, y, parts, workers=workers)
    run = federate(letters(recipe, x, y, parts) if letter else place, rounds=10**6)
    plain = plain_loop(network(*dims), x, y, parts, clients) if beside else None
    ours, theirs, memory = [], [], 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        next(run)
        ours.append(time.perf_counter() - start)
        memory = memory or peak() - before  # before the plain loop's states are there
        if plain:
            start = time.perf_counter()
            next(plain)
            theirs.append(time.perf_counter() - start)
    out = {"seconds": statistics.median(ours), "MB": memory}
    return out | ({"plain": statistics.median(theirs)} if plain else {})


def letters(recipe: Recipe, x: torch.Tensor, y: torch.Tensor, parts: list[np.ndarray]):  # type: ignore[no-untyped-def]
    """The clients as Flower apps in this process: every message is packed, sent and checked."""
    from flwr.supercore.task_identity import TaskIdentity
    from test_flower import Loopback

    from fedlearn.flower import GridClients, client_app

    for name in ("_run_id", "_node_id", "_task_id"):
        setattr(TaskIdentity, name, 1)  # which Flower's own processes are told at their start
    own = lambda context: parts[context.node_config["partition-id"]]
    app = client_app(lambda context: (recipe, x, y, own(context)))
    return GridClients(recipe, Loopback(app, len(parts)), {k: 100 + k for k in range(len(parts))})


def measured(*workload, rounds: int = 3, beside: bool = False) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """:func:`one` in a process of its own."""
    asked = json.dumps([*workload, rounds, beside])
    out = subprocess.run([sys.executable, __file__, asked], capture_output=True, text=True)
    if out.returncode:
        return {"seconds": float("nan"), "MB": float("nan"), "gone": out.returncode}
    return json.loads(out.stdout)


def exponent(sizes: list[float], values: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def table(rows: list[tuple[tuple, dict[str, float]]]) -> list[str]:
    lines = [
        f"| {' | '.join(COLUMNS)} | s a round | plain loop | ratio | MB beyond import |",
        "|" + "---|" * len(COLUMNS) + "---:|---:|---:|---:|",
    ]
    for (clients, each, dims, epochs, workers, method), got in rows:
        layers = "-".join(map(str, dims))
        plain, ratio = "", ""
        if "plain" in got:
            plain, ratio = f"{got['plain']:.2f}", f"**{got['plain'] / got['seconds']:.1f}**"
        said = f"| {clients:,} | {each} | {layers} | {epochs} | {workers} | {method} "
        lines.append(f"{said}| {got['seconds']:.3f} | {plain} | {ratio} | {got['MB']:.0f} |")
    return lines


def main() -> None:
    grow = {
        "clients, 6 examples each, on the 2NN": [(n, 6, TWO_NN, 1, 1, "fedavg") for n in NUMBERS],
        "parameters, 300 clients of 60": [(300, 60, dims, 1, 1, "fedavg") for dims in SIZES],
        "local epochs, 300 clients of 60, softmax": [
            (300, 60, LINEAR, e, 1, "fedavg") for e in EPOCHS
        ],
    }
    along = {
        "clients": NUMBERS,
        "parameters": [model.mlp(*dims).theta0.numel() for dims in SIZES],
        "local epochs": EPOCHS,
    }
    text = [__doc__.split("\n\n")[0], ""]
    fig, axes = plt.subplots(1, 3, figsize=(13, 4))
    for ax, (title, work), (name, sizes) in zip(axes, grow.items(), along.items(), strict=True):
        got = [measured(*w) for w in work]
        fits = {k: exponent(sizes, [g[k] for g in got]) for k in ("seconds", "MB")}
        text += [f"## Against {title}", "", *table(list(zip(work, got))), ""]
        text += [f"Exponents: time {fits['seconds']:.2f}, memory {fits['MB']:.2f}.", ""]
        ax.loglog(sizes, [g["seconds"] for g in got], "o-", label="seconds a round")
        ax.loglog(sizes, [g["MB"] / 1e3 for g in got], "s--", label="GB beyond import")
        ax.set(xlabel=name, title=f"time ∝ {name}^{fits['seconds']:.2f}")
        print("\n".join(text[-8:]), flush=True)
    axes[0].legend()
    fig.tight_layout()
    out = io.BytesIO()
    fig.savefig(out, dpi=80, format="png")
    write_whole(HERE / "scale.png", out.getvalue())
    beside = [
        (1_000, 60, TWO_NN, 1, 1, "fedavg"),
        (1_000, 60, TWO_NN, 1, 2, "fedavg"),
        (10_000, 6, TWO_NN, 1, 1, "fedavg"),
        (10_000, 6, TWO_NN, 1, 2, "fedavg"),
    ]
    text += ["## Everybody takes part, beside the plain loop", ""]
    text += [*table([(w, measured(*w, rounds=3, beside=True)) for w in beside]), ""]
    large = [(2_000, 6, TWO_NN, 1, 1, "scaffold")]
    text += ["## Clients that remember: memory in a file", ""]
    text += [*table([(w, measured(*w, rounds=2)) for w in large]), ""]
    if importlib.util.find_spec("flwr"):
        both = ("fedavg", "fedavg, Flower's messages")
        apart = [(100, 60, dims, 1, 1, how) for dims in (LINEAR, TWO_NN) for how in both]
        text += ["## Over Flower's messages, in one process", ""]
        text += [*table([(w, measured(*w, rounds=3)) for w in apart]), ""]
    text += [f"torch {torch.__version__}, Python {sys.version.split()[0]}. ![](scale.png)", ""]
    print("\n".join(text), flush=True)
    write_whole(HERE / "scale.md", "\n".join(text).encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        *workload, rounds, beside = json.loads(sys.argv[1])
        workload[2] = tuple(workload[2])
        print(json.dumps(one(*workload, rounds, beside)))
    else:
        main()
