"""Stages between client and server, each against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlearn.aggregate import mean
from fedlearn.transform import After, Context, Rowwise, chain, clip, noise

S = np.array([2, 5, 7, 9])
CTX = Context(seed=0, round=3, called=S, answered=S)
ROWWISE = {"clip": clip(1.0)}  # a new stage on the client: a new entry


def rows(seed=0):
    """Four updates, of length 0.1, 1, 3 and 0."""
    delta = torch.randn(4, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wanted = torch.tensor([0.1, 1.0, 3.0, 0.0], dtype=torch.float64)
    return delta / delta.norm(dim=1, keepdim=True) * wanted[:, None]


def test_clip_shortens_what_is_too_long_and_nothing_else():
    delta = rows()
    got, _ = clip(0.5).apply(delta, torch.ones(4), {}, CTX)
    torch.testing.assert_close(got[[0, 3]], delta[[0, 3]])
    torch.testing.assert_close(got[1], delta[1] * 0.5)
    torch.testing.assert_close(got[2], delta[2] / 6)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e300])
def test_clip_bounds_a_row_without_a_finite_norm_and_leaves_the_others(bad):
    """inf * 0 is nan: a row with such a number, or one whose norm overflows, becomes 0."""
    delta = rows()
    want, _ = clip(0.5).apply(delta.clone(), torch.ones(4), {}, CTX)
    delta[2, 7] = bad
    want[2] = 0
    got, _ = clip(0.5).apply(delta, torch.ones(4), {}, CTX)
    assert got.dtype == delta.dtype and torch.equal(got, want)


@pytest.mark.parametrize("name", ROWWISE)
def test_a_row_alone_is_that_row_of_the_stack(name):
    """What a client does can't depend on the other clients."""
    stage, delta, n = ROWWISE[name], rows(), torch.arange(1.0, 5.0)
    memory = {k: torch.randn(4, *v.shape) for k, v in stage.memory(torch.zeros(30)).items()}
    whole, kept = stage.apply(delta, n, memory, CTX)
    for i in range(4):
        one = {k: v[i : i + 1] for k, v in memory.items()}
        ctx = CTX._replace(answered=S[i : i + 1])
        row, own = stage.apply(delta[i : i + 1], n[i : i + 1], one, ctx)
        torch.testing.assert_close(row[0], whole[i])
        for k in kept:
            torch.testing.assert_close(own[k][0], kept[k][i])


def test_noise_has_its_standard_deviation_and_no_memory():
    zero = torch.zeros(40_000, dtype=torch.float64)
    draw = noise(0.3).apply(zero, CTX)
    assert draw.std().item() == pytest.approx(0.3, rel=0.02)
    assert abs(draw.mean()) < 5 * 0.3 / 200
    assert torch.equal(draw, noise(0.3).apply(zero, CTX))  # the same round, the same noise
    for other in (CTX._replace(round=4), CTX._replace(seed=1)):
        again = noise(0.3).apply(zero, other)
        assert abs(torch.corrcoef(torch.stack([draw, again]))[0, 1]) < 0.03
    torch.testing.assert_close(noise(0.0).apply(zero + 1, CTX), zero + 1)


def test_stages_run_in_the_order_they_are_written():
    """(2 delta + 1), then the mean, then (10 x - 3): another order gives another number."""
    double = Rowwise("double", lambda d, n, m, ctx: (2 * d, m))
    plus = Rowwise("plus", lambda d, n, m, ctx: (d + 1, m))
    ten, minus = After("ten", lambda d, ctx: 10 * d), After("minus", lambda d, ctx: d - 3)
    pipeline, n = chain(double, plus, mean(), ten, minus), torch.tensor([3.0, 1.0])
    delta, _ = pipeline.encode(torch.tensor([[1.0], [5.0]]), n, {}, CTX)
    assert delta.tolist() == [[3.0], [11.0]]
    got = pipeline.combine({"delta": delta, "n": n, "loss": n}, n / n.sum(), CTX)
    assert got.item() == 10 * (0.75 * 3 + 0.25 * 11) - 3


def test_two_stages_of_a_kind_keep_their_memories_apart():
    """Each stage sees only its own part of what a client keeps, also under the same name."""

    def counter(by):
        def apply(d, n, memory, ctx):
            return d, {"count": memory["count"] + by}

        return Rowwise("counter", apply, lambda theta: {"count": torch.zeros(())})

    pipeline = chain(counter(1), counter(10), mean())
    memory = [{k: v[None] for k, v in own.items()} for own in pipeline.memory(torch.zeros(1))]
    for _ in range(3):
        _, memory = pipeline.encode(torch.zeros(1, 1), torch.ones(1), memory, CTX)
    assert [own["count"].item() for own in memory] == [3.0, 30.0]
