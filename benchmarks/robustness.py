"""Five attacks, eight rules (Krum in both forms), 0 to 40 % attackers: test accuracy on digits.

    python benchmarks/robustness.py            # prints the tables, fills benchmarks/robustness.md
    python benchmarks/robustness.py --fast     # two rounds, one seed: does it run?

Twenty clients, softmax regression, FedAvg with lr 0.5, B = 32, E = 2, 40 rounds, everybody in every
round; mean of three seeds (a seed is another split and another shuffle). Clients 0, 1, ... attack.
A rule is told how many there are, which no real server is; with none it expects 10 %. The words in
robustness.md are written by hand, the tables by this script.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fedlearn import (
    Diverged,
    Recipe,
    Simulated,
    aggregate,
    algorithms,
    data,
    federate,
    model,
    partition,
)
from fedlearn.attacks import byzantine as attacks
from fedlearn.partition.files import write_whole
from fedlearn.rng import Use, numpy_rng
from fedlearn.transform import Reduce, chain

N, SHARES = 20, (0, 10, 20, 30, 40)  # clients, per cent of attackers
SPLITS = {"even, α = 100": 100.0, "uneven, α = 0.1": 0.1}

ALONE = "*the honest alone, mean*"
RULES: dict[str, Callable[[int], Reduce]] = {  # f attackers expected -> the rule
    "mean": lambda f: aggregate.mean(),
    "clipped mean, S = 1": lambda f: aggregate.clipped_mean(1.0),
    "median": lambda f: aggregate.median(),
    "trimmed mean, f / K": lambda f: aggregate.trimmed_mean(f / N),
    "Krum": aggregate.krum,
    "multi-Krum": aggregate.multi_krum,
    "geometric median": lambda f: aggregate.geometric_median(),
    "Bulyan": aggregate.bulyan,
}
ATTACKS: dict[str, attacks.Attack | None] = {
    "Sign flip × 5": attacks.sign_flip(5.0),
    "Gaussian noise, std 1": attacks.gaussian(1.0),
    "Label flip": None,  # in the data
    "A little is enough, z = 1.5": attacks.little_is_enough(1.5),
    "Inner product, ε = 0.5": attacks.inner_product(0.5),
}

DIGITS = data.load("digits")
TASK = model.softmax_regression(64, 10)
TEST = model.evaluator(TASK, DIGITS.x_test, DIGITS.y_test)


def accuracy(rule: str, attack: str, f: int, alpha: float, seed: int, rounds: int) -> float:
    """Test accuracy after the last round; chance's 0.1 if theta is no longer finite."""
    rng = numpy_rng(seed, Use.PARTITION)
    parts: list[np.ndarray] = partition.dirichlet_label(DIGITS.y.numpy(), N, rng, alpha=alpha)
    send, y = ATTACKS[attack], DIGITS.y
    if rule == ALONE:  # the attackers stay away, and take their data with them
        parts, send = parts[f:], None
    elif send is None:
        y = attacks.label_flip(y, parts, range(f), 10)
    combine = aggregate.mean() if rule == ALONE else RULES[rule](f or N // 10)
    method = algorithms.fedavg(TASK, lr=0.5)
    recipe = Recipe(method, TASK.theta0, chain(combine), epochs=2, seed=seed)
    clients = Simulated(recipe, DIGITS.x, y, parts)
    some = attacks.Byzantine(clients, range(f), send) if send else clients
    try:
        *_, last = federate(some, rounds=rounds, evaluate=TEST, every=rounds)
    except Diverged:
        return 0.1
    return last.metrics["accuracy"]


def cell(rule: str, attack: str, f: int, alpha: float, seeds: int, rounds: int) -> str:
    """Mean over the seeds in per cent; where the rule refuses, how many clients it needs."""
    try:
        runs = [accuracy(rule, attack, f, alpha, s, rounds) for s in range(seeds)]
    except ValueError as e:
        need = re.search(r"cohort of at least (\d+)", str(e))
        if not need:
            raise
        return f"K ≥ {need[1]}"
    return f"{100 * np.mean(runs):.0f}"


Known = dict[tuple[str, float, int], str]


def table(attack: str, seeds: int, rounds: int, known: Known) -> list[str]:
    """Rows: rules. Columns: per cent of attackers, on even and on uneven data."""
    head = [f"{name}: {s} %" if s == 0 else f"{s} %" for name in SPLITS for s in SHARES]
    lines = [f"| {attack} | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    for rule in tqdm([ALONE, *RULES], desc=attack):
        cells = []
        for alpha, share in itertools.product(SPLITS.values(), SHARES):
            key, f = (rule, alpha, share), N * share // 100
            made = known.get(key) or cell(rule, attack, f, alpha, seeds, rounds)
            if share == 0 or rule == ALONE:  # the same in all tables
                known[key] = made
            cells.append(made)
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return lines


def fill(path: Path, made: str) -> None:
    """Put the tables between their two marks; the words round them stay."""
    text = path.read_text(encoding="utf-8")
    new = re.sub(
        r"(<!-- tables -->\n).*(<!-- /tables -->)", lambda m: m[1] + made + m[2], text, flags=re.S
    )
    write_whole(path, new.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="two rounds, one seed; nothing written")
    fast = parser.parse_args().fast
    torch.set_num_threads(1)
    known: Known = {}
    blocks = []
    for attack in ATTACKS:
        blocks.append("\n".join(table(attack, *((1, 2) if fast else (3, 40)), known)))
        print(blocks[-1] + "\n", flush=True)
    if not fast:
        fill(Path(__file__).with_suffix(".md"), "\n" + "\n\n".join(blocks) + "\n\n")


if __name__ == "__main__":
    main()
