"""Random recipes equal a plain loop or are refused in words; a thousand: ``benchmarks/fuzz.py``."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
from fuzz import case, verdict

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
