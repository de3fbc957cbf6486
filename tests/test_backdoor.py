"""The backdoor: its parts beside plain loops, and what it does to a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlearn import Recipe, Simulated, algorithms, data, federate, model, partition
from fedlearn import aggregate as A
from fedlearn.attacks.backdoor import backdoor_rate, boost, hide, poison, stamp
from fedlearn.attacks.byzantine import Byzantine
from fedlearn.rng import Use, numpy_rng
from fedlearn.transform import Context, chain

DIGITS = data.load("digits")
TASK = model.softmax_regression(64, 10)
TEST = model.evaluator(TASK, DIGITS.x_test, DIGITS.y_test)
PARTS = partition.iid(DIGITS.y.numpy(), 10, numpy_rng(0, Use.PARTITION))
mark = lambda x: stamp(x, (8, 8))


@pytest.mark.parametrize("shape", [(8, 8), (3, 5), (3, 4, 6)])
@pytest.mark.parametrize("size", [1, 3])
def test_the_stamp_pixel_by_pixel(shape, size):
    x = torch.rand(2, int(np.prod(shape)), generator=torch.Generator().manual_seed(0))
    before = x.clone()
    got = stamp(x, shape, size, 0.7).reshape(2, -1, *shape[-2:])
    old = x.reshape(2, -1, *shape[-2:])
    h, w = shape[-2:]
    for i in range(h):
        for j in range(w):
            inside = i >= h - size and j >= w - size
            want = torch.full_like(old[..., i, j], 0.7) if inside else old[..., i, j]
            assert torch.equal(got[..., i, j], want)
    assert torch.equal(x, before)  # a copy


def test_poison_takes_its_share_of_the_attackers_and_nothing_else():
    for share in (0.001, 0.3, 1.0):
        x, y = poison(DIGITS.x, DIGITS.y, PARTS, [2, 7], mark, 4, share=share)
        changed = np.flatnonzero((x != DIGITS.x).any(1) | (y != DIGITS.y))
        for k, own in enumerate(PARTS):
            mine = np.intersect1d(own, changed)
            stamped = [i for i in own if torch.equal(x[i], mark(DIGITS.x[i : i + 1])[0])]
            assert (len(mine) > 0) == (k in (2, 7))
            if k in (2, 7):
                assert len(stamped) == max(1, round(share * len(own)))
                assert (y[stamped] == 4).all() and set(mine) <= set(stamped)
    assert DIGITS.x.max() <= 1 and (DIGITS.y.bincount() > 100).all()  # the originals are left alone


def test_whom_poison_takes_depends_on_seed_and_client_alone():
    x, y = torch.zeros(60, 64), torch.zeros(60, dtype=torch.int64)
    parts = list(np.split(np.arange(60), 3))
    take = lambda attackers, seed=5: poison(x, y, parts, attackers, mark, 1, seed=seed)[1]
    assert torch.equal(take([0, 2])[40:], take([2])[40:])
    assert take([0, 2])[:20].sum() == 10 and not torch.equal(take([2]), take([2], seed=6))
    assert not torch.equal(take([0, 2])[:20], take([0, 2])[40:])  # each client its own


def test_boost_replaces_the_model():
    """Where the others have converged, one client's boosted update puts the server on its model."""
    own = torch.randn(1, 650, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    delta = torch.cat([torch.zeros(2, 650, dtype=torch.float64), boost(1 / 0.3)(own, own, None)])
    torch.testing.assert_close(A.mean().apply(delta, p), own[0])
    assert torch.equal(boost(1.0)(own, own, None), own)


def test_the_rate_by_a_loop():
    theta = torch.randn(650, generator=torch.Generator().manual_seed(1))
    hits = total = 0
    W, b = theta[:640].reshape(10, 64), theta[640:]
    for x, y in zip(DIGITS.x_test, DIGITS.y_test, strict=True):
        if y != 3:
            picture = x.reshape(8, 8).clone()
            picture[6:, 6:] = 1.0
            hits, total = hits + int((W @ picture.flatten() + b).argmax() == 3), total + 1
    got = backdoor_rate(TASK, theta, DIGITS.x_test, DIGITS.y_test, mark, 3)
    assert got == pytest.approx(hits / total)


def test_hide_is_a_projection_onto_a_ball_round_the_honest_mean():
    g = torch.Generator().manual_seed(0)
    honest = torch.randn(9, 20, generator=g, dtype=torch.float64)
    own = torch.stack([50 * honest[0], honest.mean(0) + 1e-3 * honest[1], honest.mean(0)])
    middle = honest.numpy().mean(0)
    far = lambda rows: np.sqrt(((rows.numpy() - middle) ** 2).sum(1))
    for radius in (0.3, 1.0):
        r, sent = radius * np.median(far(honest)), hide(radius)(honest, own, None)
        np.testing.assert_allclose(far(sent), np.minimum(far(own), r), atol=1e-12)
        toward = (sent[0] - honest.mean(0)) / (own[0] - honest.mean(0))
        np.testing.assert_allclose(toward, toward[0], rtol=1e-9)  # in the same direction
        torch.testing.assert_close(sent[1:], own[1:])  # near enough already


def test_krum_takes_the_hidden_one_for_the_most_typical():
    """High dimension: honest ones lie far from each other, and who is near the centre is near all.

    A squared distance is 2 d between honest ones, d (1 + radius²) to the hidden one.
    """
    g = torch.Generator().manual_seed(0)
    honest = torch.randn(10, 5000, generator=g, dtype=torch.float64)
    own = torch.randn(1, 5000, generator=g, dtype=torch.float64) * 10
    for radius, taken in ((0.7, True), (1.2, False)):
        sent = hide(radius)(honest, own, None)
        out = A.krum(1).apply(torch.cat([honest, sent]), torch.ones(11))
        assert torch.equal(out, sent[0]) == taken


def run(rule, attackers, factor=1.0, share=0.5, rounds=20, attack=None):
    x, y = poison(DIGITS.x, DIGITS.y, PARTS, attackers, mark, 0, share=share)
    recipe = Recipe(algorithms.fedavg(TASK, lr=0.5), TASK.theta0, chain(rule), epochs=2)
    clients = Byzantine(Simulated(recipe, x, y, PARTS), attackers, attack or boost(factor))
    *_, last = federate(clients, rounds=rounds, evaluate=TEST, every=rounds)
    rate = backdoor_rate(TASK, last.theta, DIGITS.x_test, DIGITS.y_test, mark, 0)
    return last.metrics["accuracy"], rate


def test_the_backdoor_opens_and_the_work_is_still_done():
    clean, none = run(A.mean(), [])
    assert clean > 0.92 and none < 0.1
    good, opened = run(A.mean(), [0, 1])
    assert good > 0.9 and opened > 0.6


def test_a_boosted_client_alone_opens_it_and_a_servers_clip_shuts_it():
    _, weak = run(A.mean(), [0], share=0.3)
    _, strong = run(A.mean(), [0], factor=10.0, share=0.3)
    assert strong > weak + 0.3
    _, clipped = run(A.clipped_mean(0.5), [0], factor=10.0, share=0.3)
    assert clipped < strong - 0.3


def test_one_hidden_attacker_opens_krum_and_not_the_mean():
    """The rule that should keep attackers out listens to the one that stands near the centre."""
    good, opened = run(A.krum(2), [0], attack=hide(0.7))
    assert good > 0.9 and opened > 0.5
    _, mean = run(A.mean(), [0], attack=hide(0.7))
    _, plain = run(A.krum(2), [0])  # the same data, sent as they are
    assert mean < 0.1 and plain < 0.1


S = np.arange(10)
BAD = {
    r"stamp: x must be .* shape \(8, 8\)": lambda: stamp(torch.zeros(2, 63), (8, 8)),
    r"stamp: x must": lambda: stamp(torch.zeros(64), (8, 8)),
    r"stamp: size must be an integer from 1 to 8, got 9": lambda: stamp(DIGITS.x, (8, 8), 9),
    r"stamp: value must be finite": lambda: stamp(DIGITS.x, (8, 8), 2, float("nan")),
    r"poison: share must be > 0 and <= 1, got 1.5": lambda: poison(
        DIGITS.x, DIGITS.y, PARTS, [0], mark, 0, share=1.5
    ),
    r"poison: target must": lambda: poison(DIGITS.x, DIGITS.y, PARTS, [0], mark, -1),
    r"poison: attackers must .* from 0 to 9, got \[10\]": lambda: poison(
        DIGITS.x, DIGITS.y, PARTS, [10], mark, 0
    ),
    r"boost: factor must be > 0 and finite, got inf": lambda: boost(float("inf")),
    r"hide: radius must be > 0 and finite, got 0": lambda: hide(0),
    r"backdoor_rate: target must": lambda: backdoor_rate(
        TASK, TASK.theta0, DIGITS.x[:2], torch.zeros(2, dtype=torch.int64), mark, 0
    ),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_refused_in_words(words):
    with pytest.raises(ValueError, match=words) as e:
        BAD[words]()
    assert "got" in str(e.value) and "e.g." in str(e.value)


def test_it_runs_behind_the_wrapper_in_one_round():
    recipe = Recipe(algorithms.fedavg(TASK, lr=0.5), TASK.theta0)
    clients = Simulated(recipe, DIGITS.x, DIGITS.y, PARTS)
    bad = Byzantine(clients, [3], boost(10.0))
    ctx, message = Context(0, 0, S, S), {"theta": TASK.theta0}
    a, b = (c.run(message, ctx, c.memory())[0]["delta"] for c in (clients, bad))
    torch.testing.assert_close(b[3], 10 * a[3])
    assert torch.equal(b[[k for k in S if k != 3]], a[[k for k in S if k != 3]])
