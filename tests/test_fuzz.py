"""Random recipes equal a plain loop or are refused in words; a thousand: ``benchmarks/fuzz.py``."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
from fuzz import case, usual, verdict

SEED, N = 0, 40


@pytest.mark.parametrize("i", range(N))
def test_a_random_recipe_equals_the_plain_loop_or_is_refused(i):
    c = case(SEED, i)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, about a GRU under vmap
        end, what = verdict(c)
    assert end != "failure", f"{what}\n\n{c.program}\n{c.spec}"


def test_the_fuzz_would_see_a_wrong_number():
    """The plain loop's clients learn a tenth faster than the package's."""
    seen = Counter[str]()
    for i in range(N):
        c = case(SEED, i)
        if verdict(c)[0] == "equal":
            c.spec["lr"] *= 1.1
            seen[verdict(c)[0]] += 1
    assert seen["failure"] >= 10 and seen["failure"] > 4 * seen["equal"], seen


server = {"server_lr": 0.05, "tau": 0.02}
ADAPTIVE = {"fedadagrad": {}, "fedadam": {"beta2": 0.7}, "fedyogi": {"beta2": 0.7}}
GRID = {  # every number of every method away from its default, alone and all together
    "fedavg": [{}, {"server_lr": 0.6}, {"beta": 0.7}, {"weight_decay": 0.2}],
    "fedsgd": [{"beta": 0.0}, {"beta": 0.7}],
    "fedprox": [{"mu": 0.5}, {"mu": 5.0}, {"mu": 0.5, "server_lr": 0.6}],
    "scaffold": [{"option": 1}, {"option": 2}, {"option": 1, "server_lr": 0.6}],
    "fednova": [{"mu": 0.0}, {"mu": 2.0}, {"mu": 0.0, "beta": 0.7}, {"mu": 0.0, "server_lr": 0.6}],
    "feddyn": [{"alpha": 0.3}, {"alpha": 2.0}],
    "fedavgm": [{"beta": 0.0}, {"beta": 0.7}, {"beta": 0.7, "server_lr": 0.6}],
    **{name: [{**server, **b2, "beta1": b} for b in (0.0, 0.6)] for name, b2 in ADAPTIVE.items()},
    "fedopt": [
        {"server": name, "server_lr": 0.1, "tau": 1e-3, "beta2": 0.99, "beta": 0.9,
         "beta1": 0.0 if name == "adagrad" else 0.9}
        for name in ("sgd", "momentum", "adagrad", "adam", "yogi")
    ],
}  # fmt: skip
GRID["fedavg"].append({"server_lr": 0.6, "beta": 0.7, "weight_decay": 0.2})
GRID["fednova"].append({"server_lr": 0.6, "beta": 0.7, "mu": 2.0})


@pytest.mark.parametrize("decay", [None, 0.5])
@pytest.mark.parametrize("name, numbers", [(k, h) for k, some in GRID.items() for h in some])
def test_each_number_of_a_method_does_what_its_formula_says(name, numbers, decay):
    """A mutant that drops ``mu=mu`` lived until this: no other test had an independent a_k."""
    c = usual(name, decay=decay, **numbers)
    assert verdict(c) == ("equal", ""), c.program
