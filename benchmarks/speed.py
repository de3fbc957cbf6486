"""How fast is fedlearn? Ratios, measured side by side in one run, on one thread.

    python benchmarks/speed.py            # prints the table, writes benchmarks/speed.md

The yardsticks are written here, in plain PyTorch, as a tutorial would:

- *plain loop*: for every client of the cohort deepcopy the model, iterate a DataLoader, step
  ``torch.optim.SGD``, then average the state dicts weighted by n_k;
- *centralised*: one model, one DataLoader over the same number of examples, ``torch.optim.SGD``,
  minibatches of 10.

A row's contestants take turns, round by round, so that a busy machine slows them all; the ratio is
that of the medians. (Start-up times: the least of seven.)
"""

from __future__ import annotations

import copy
import itertools
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from fedlearn import Recipe, Simulated, algorithms, data, federate, model, partition
from fedlearn.asynchronous import asynchronous
from fedlearn.batches import Shards, schedule
from fedlearn.fleet import fleet
from fedlearn.participation import sample
from fedlearn.partition.files import write_whole
from fedlearn.rng import Use, numpy_rng

LR, BATCH = 0.1, 10


def mnist_shaped() -> tuple[torch.Tensor, torch.Tensor]:
    """60,000 made-up examples of MNIST's shape: speed doesn't depend on what they show."""
    rng = numpy_rng(0, Use.TOY)
    x = rng.random((60_000, 784), dtype=np.float32)
    return torch.from_numpy(x), torch.from_numpy(rng.integers(0, 10, 60_000))


def network(*dims: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(dims):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 14 * 14, 10),
    )


# -- the contestants: iterators that do one round a next() -----------------------------------------


def train(net: nn.Module, loader: DataLoader) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    loss = nn.CrossEntropyLoss()
    for xb, yb in loader:
        optimizer.zero_grad()
        loss(net(xb), yb).backward()
        optimizer.step()


def plain_loop(net: nn.Module, x, y, parts, cohort: int) -> Iterator[None]:
    everything, server, t = TensorDataset(x, y), copy.deepcopy(net), 0
    while True:
        S = sample(len(parts), cohort, 0, t)
        n, states = sum(len(parts[k]) for k in S), []
        for k in S:
            local = copy.deepcopy(server)
            own = Subset(everything, parts[k].tolist())
            train(local, DataLoader(own, batch_size=BATCH, shuffle=True))
            states.append((len(parts[k]) / n, local.state_dict()))
        server.load_state_dict({k: sum(p * s[k] for p, s in states) for k in states[0][1]})
        t += 1
        yield


def centralised_loop(net: nn.Module, x, y, examples: int) -> Iterator[None]:
    net, subset = copy.deepcopy(net), Subset(TensorDataset(x, y), range(examples))
    while True:
        train(net, DataLoader(subset, batch_size=BATCH, shuffle=True))
        yield


def ours(task: model.Task, x, y, parts, cohort: int, method=None, workers=1) -> Iterator[None]:
    method = method or algorithms.fedavg(task, LR)
    recipe = Recipe(method, task.theta0, batch=BATCH)
    clients = Simulated(recipe, x, y, parts, workers=workers)
    for _ in federate(clients, rounds=10**6, cohort=cohort):
        yield


def products(dims: tuple[int, ...], K: int, steps: int, data=None) -> Iterator[None]:  # type: ignore[no-untyped-def]
    """The matrix products of a round and nothing else: its limit on this machine.

    Forward, backward and the step of each layer, for K clients at once, in place where training is.
    With ``data`` = x, y, parts, cohort on the minibatches of a round, which are gathered first.
    """
    rng = torch.Generator().manual_seed(0)
    made = lambda *shape: torch.rand(*shape, generator=rng) / 1e3
    W = [made(K, o, i) for i, o in itertools.pairwise(dims)]
    h = [made(K, BATCH, d) for d in dims]
    for t in itertools.count():
        batches = gathered(*data, t) if data else itertools.repeat((h[0],))
        for (h[0], *_), _ in zip(batches, range(steps), strict=False):
            for i, w in enumerate(W):
                torch.bmm(h[i], w.mT)
            for i, w in reversed([*enumerate(W)]):
                if i:
                    torch.bmm(h[i + 1], w)
                w.baddbmm_(h[i + 1].mT, h[i], alpha=-1e-6)
        yield


def gathered(x, y, parts, cohort: int, t: int):  # type: ignore[no-untyped-def]
    """Round t's minibatches, as :func:`ours` draws them."""
    S = sample(len(parts), cohort, 0, t)
    of = schedule(parts, S, batch=BATCH, epochs=1, seed=0, round=t)
    return Shards(x, y, *of).batches()


def race(rounds: int, *contestants: Iterator[None]) -> list[float]:
    """Median milliseconds a round of each, taking turns."""
    times: list[list[float]] = [[] for _ in contestants]
    for r in range(rounds + 1):
        for spent, run in zip(times, contestants, strict=True):
            start = time.perf_counter()
            next(run)
            if r:  # the first warms up
                spent.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(t) for t in times]


# -- the table ------------------------------------------------------------------------------------


def rows(rounds: int) -> Iterator[tuple[str, str, float, float, str]]:
    """(workload, against, ms of the yardstick, ms of ours, target)."""
    digits, (x, y) = data.load("digits"), mnist_shaped()
    small = partition.iid(digits.y, 100, numpy_rng(0, Use.PARTITION))
    parts = partition.iid(y, 100, numpy_rng(0, Use.PARTITION))

    def against_plain(name, net, task, target, data=(x, y, parts, 10)):  # type: ignore[no-untyped-def]
        plain, mine = race(rounds, plain_loop(net, *data), ours(task, *data))
        return name, "plain loop", plain, mine, target

    linear, net2 = network(784, 10), network(784, 200, 200, 10)
    digits_100, softmax = (digits.x, digits.y, small, 100), model.softmax_regression
    for name, dims, steps, work, target in (
        ("digits softmax, 100 of 100 clients", (64, 10), 2, digits_100, ">= 30"),
        ("MNIST-shaped softmax, 10 of 100", (784, 10), 60, (x, y, parts, 10), ">= 12"),
    ):
        own = torch.from_numpy(work[0].numpy().copy())  # no other's, which may be in the cache
        alone = products(dims, work[-1], steps, (own, *work[1:]))
        contest = plain_loop(network(*dims), *work), alone, ours(softmax(*dims), *work)
        plain, limit, mine = race(rounds, *contest)
        yield name, "plain loop", plain, mine, target
        yield name, "its products and the gathering of its batches", limit, mine, ""
    yield against_plain("2NN, 10 of 100", net2, model.mlp(784, 200, 200, 10), ">= 2.5")
    two_nn, cnn = model.mlp(784, 200, 200, 10), convolutional()
    limit, mine = race(rounds, products((784, 200, 200, 10), 10, 60), ours(two_nn, x, y, parts, 10))
    yield "2NN, 10 of 100", "its matrix products alone", limit, mine, ">= 0.5"
    for name, net, task, target in (
        ("2NN", net2, two_nn, ">= 5"),
        ("small CNN", cnn, model.from_module(cnn), ">= 1.8"),
    ):
        both = ours(task, x, y, parts, 10, workers=2)
        plain, mine = race(rounds, plain_loop(net, x, y, parts, 10), both)
        yield f"{name}, 10 of 100, two workers", "plain loop on one", plain, mine, target
    for name, net in (("softmax", linear), ("2NN", net2), ("small CNN", convolutional())):
        yield against_plain(f"generic module: {name}", net, model.from_module(net), ">= 0.9")
    small_net = network(64, 10)
    yield against_plain(
        "generic module: digits softmax, 100",
        small_net,
        model.from_module(small_net),
        ">= 0.9",
        digits_100,
    )
    for name, net, task, target in (
        ("MNIST-shaped softmax", linear, model.softmax_regression(784, 10), ">= 4"),
        ("2NN", net2, model.mlp(784, 200, 200, 10), ">= 2"),
    ):
        central, mine = race(rounds, centralised_loop(net, x, y, 6000), ours(task, x, y, parts, 10))
        yield f"{name}, 6,000 examples", "centralised SGD", central, mine, target


def methods(rounds: int) -> Iterator[tuple[str, float, float]]:
    """(method, ms of FedAvg, ms of the method), 2NN, everything else alike, all taking turns."""
    x, y = mnist_shaped()
    parts, task = partition.iid(y, 100, numpy_rng(0, Use.PARTITION)), model.mlp(784, 200, 200, 10)
    contest = {
        "FedProx": algorithms.fedprox(task, LR, mu=0.1),
        "SCAFFOLD": algorithms.scaffold(task, LR, n_total=len(y)),
        "FedNova": algorithms.fednova(task, LR),
        "FedDyn": algorithms.feddyn(task, LR, alpha=0.1, n_total=len(y)),
        "FedAdam": algorithms.fedadam(task, LR),
    }
    runs = [ours(task, x, y, parts, 10, m) for m in contest.values()]
    base, *times = race(rounds, ours(task, x, y, parts, 10), *runs)
    for name, ms in zip(contest, times, strict=True):
        yield name, base, ms


def updates_a_second(buffer: int, updates: int = 6000) -> float:
    """Client updates an asynchronous run of 1,000 clients handles, digits softmax, E = 1."""
    digits, task = data.load("digits"), model.softmax_regression(64, 10)
    parts = partition.iid(digits.y, 1000, numpy_rng(0, Use.PARTITION))
    recipe = Recipe(algorithms.fedavg(task, LR), task.theta0)
    clients = Simulated(recipe, digits.x, digits.y, parts, fleet=fleet(1000))
    steps = updates // buffer
    how = {"concurrency": 100, "buffer": buffer, "rebase": buffer == 1}
    run = asynchronous(clients, rounds=steps, **how)
    next(run)  # the first warms up
    start = time.perf_counter()
    for _ in run:
        pass
    return (steps - 1) * buffer / (time.perf_counter() - start)


def more(rounds: int) -> Iterator[str]:
    """The lines about other methods and about asynchronous runs."""
    yield "| method, 2NN, 10 of 100 | FedAvg, ms a round | its own | ratio | target |"
    yield "|---|---:|---:|---:|---|"
    for name, base, ms in methods(rounds):
        target = "<= 1.5" if name in ("FedProx", "SCAFFOLD", "FedNova") else ""
        yield f"| {name} | {base:.1f} | {ms:.1f} | **{ms / base:.2f}** | {target} |"
    yield ""
    for name, buffer in (("FedBuff, buffer 10", 10), ("FedAsync", 1)):
        rate = statistics.median(updates_a_second(buffer) for _ in range(3))
        yield f"{name}, 1,000 clients, 100 at a time: {rate:,.0f} client updates a second."
        yield ""
    yield "(target >= 2,000)"


def seconds_to(*statements: str, repeat: int = 7) -> list[float]:
    """Least seconds a fresh interpreter takes for each statement, taking turns."""
    times: list[list[float]] = [[] for _ in statements]
    for _ in range(repeat):
        for spent, statement in zip(times, statements, strict=True):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            spent.append(time.perf_counter() - start)
    return [min(t) for t in times]


IMPORT, WORKLOAD = "--import-only", "--memory"


def peak_mb_of(what: str) -> float:
    """Peak resident memory of a fresh process, in MB."""
    out = subprocess.run(
        [sys.executable, __file__, what], check=True, capture_output=True, text=True
    )
    return float(out.stdout)


def memory_workload() -> None:
    """Ten rounds of the 2NN workload."""
    x, y = mnist_shaped()
    parts = partition.iid(y, 100, numpy_rng(0, Use.PARTITION))
    run = ours(model.mlp(784, 200, 200, 10), x, y, parts, 10)
    for _ in range(10):
        next(run)


def peak_mb() -> float:
    """Of this process. On Linux ru_maxrss would count the parent's peak too, so ask /proc."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(ln for ln in status.read_text().splitlines() if ln.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes


def main() -> None:
    torch.set_num_threads(1)
    rounds = int(os.environ.get("ROUNDS", "15"))
    lines = [
        "| workload | against | theirs, ms a round | fedlearn, ms a round | ratio | target |",
        "|---|---|---:|---:|---:|---|",
    ]
    print("\n".join(lines), flush=True)
    for name, against, theirs, mine, target in rows(rounds):
        ratio = f"**{theirs / mine:.{1 if theirs > mine else 2}f}**"
        lines.append(f"| {name} | {against} | {theirs:.1f} | {mine:.2f} | {ratio} | {target} |")
        print(lines[-1], flush=True)
    base, both = seconds_to("import torch", "import torch, fedlearn")
    alone, workload = peak_mb_of(IMPORT), peak_mb_of(WORKLOAD)
    extra = [
        f"`import torch` {base:.2f} s, with `import fedlearn` {both:.2f} s: {both - base:+.2f} s "
        "(target < 0.5 s).",
        f"Peak memory of ten rounds of the 2NN workload, its 188 MB of data included: "
        f"{workload - alone:.0f} MB (target < 600 MB) beyond the {alone:.0f} MB that "
        "`import torch, fedlearn` takes in this build.",
    ]
    print("\n" + "\n".join(extra) + "\n")
    others = []
    for line in more(rounds):
        others.append(line)
        print(line, flush=True)
    write(lines, [*extra, "\n".join(others)])


def write(lines: list[str], extra: list[str]) -> None:
    head = (
        "# Speed\n\nMade by `python benchmarks/speed.py`, on one thread but where workers are "
        "named, the contestants of a row "
        f"taking turns (torch {torch.__version__.split('+')[0]}, Python {sys.version.split()[0]}). "
        "FedAvg, B = 10, E = 1.\n\n"
    )
    target = Path(__file__).with_suffix(".md")
    text = head + "\n".join(lines) + "\n\n" + "\n\n".join(extra) + "\n"
    write_whole(target, text.encode())


if __name__ == "__main__":
    if WORKLOAD in sys.argv:
        memory_workload()
    if {WORKLOAD, IMPORT} & set(sys.argv):
        print(peak_mb())
    else:
        main()
