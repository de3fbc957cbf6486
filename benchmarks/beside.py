"""Is this tree slower than another? Both run the same workloads, taking turns, and are compared.

    git worktree add ../old COMMIT && python benchmarks/beside.py ../old

Each tree's own ``benchmarks/speed.py`` makes the runs, so their spelling may differ. A turn is a
fresh process a tree; the number is the median of five turns, each the median of its rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

TURNS, ROUNDS = 5, 15
CASES = {  # what a tree's speed.py is asked for: milliseconds a round
    "digits softmax, 100 of 100": "ms(ours(softmax(64, 10), *digits))",
    "digits softmax, SCAFFOLD": "ms(ours(t := softmax(64, 10), *digits, scaffold(t, 1437)))",
    "MNIST-shaped softmax, 10 of 100": "ms(ours(softmax(784, 10), *mnist))",
    "2NN, 10 of 100": "ms(ours(net, *mnist))",
    "2NN, FedProx": "ms(ours(net, *mnist, s.algorithms.fedprox(net, s.LR, mu=0.1)))",
    "2NN, SCAFFOLD": "ms(ours(net, *mnist, scaffold(net, 60_000)))",
    "2NN, FedDyn": "ms(ours(net, *mnist, s.algorithms.feddyn(net, s.LR, 0.1, 60_000)))",
    "2NN, FedAdam": "ms(ours(net, *mnist, s.algorithms.fedadam(net, s.LR)))",
    "generic module: digits softmax": "ms(ours(module(64, 10), *digits))",
    "generic module: small CNN": "ms(ours(s.model.from_module(s.convolutional()), *mnist), 3)",
    "FedBuff, ms an update": "1e3 / s.updates_a_second(10)",
    "FedAsync, ms an update": "1e3 / s.updates_a_second(1)",
}
TURN = """
import json, statistics, sys, time
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/benchmarks"]
import speed as s
s.torch.set_num_threads(1)
d, (x, y) = s.data.load("digits"), s.mnist_shaped()
split = lambda y: s.partition.iid(y, 100, s.numpy_rng(0, s.Use.PARTITION))
digits, mnist = (d.x, d.y, split(d.y), 100), (x, y, split(y), 10)
softmax, ours, net = s.model.softmax_regression, s.ours, s.model.mlp(784, 200, 200, 10)
scaffold = lambda task, n: s.algorithms.scaffold(task, s.LR, n_total=n)
module = lambda *dims: s.model.from_module(s.network(*dims))

def ms(run, rounds=int(sys.argv[3])):
    next(run)
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        next(run)
        spent.append(1e3 * (time.perf_counter() - start))
    return statistics.median(spent)

print(json.dumps({name: eval(code) for name, code in json.loads(sys.argv[2]).items()}))
"""


def turn(tree: Path) -> dict[str, float]:
    """One fresh process of a tree over all cases."""
    words = [sys.executable, "-c", TURN, str(tree), json.dumps(CASES), str(ROUNDS)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(words, check=True, capture_output=True, text=True, env=env)
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    here, there = Path(__file__).resolve().parents[1], Path(sys.argv[1]).resolve()
    times: dict[Path, list[dict[str, float]]] = {there: [], here: []}
    for i in range(TURNS):
        for tree in (there, here) if i % 2 else (here, there):  # nobody is always the first
            times[tree].append(turn(tree))
            print(".", end="", flush=True)
    print("\n\n| workload | that tree, ms | this tree, ms | ratio |\n|---|---:|---:|---:|")
    for name in CASES:
        a, b = (statistics.median(t[name] for t in times[tree]) for tree in (there, here))
        print(f"| {name} | {a:.3f} | {b:.3f} | **{b / a:.2f}** |")


if __name__ == "__main__":
    main()
