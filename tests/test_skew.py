"""Feature skew and concept shift, beside plain loops over pixels, examples and clients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn import partition, skew
from fedlearn.rng import Use, numpy_rng

SHAPES = [(2, 2), (5, 5), (4, 7), (3, 6, 6)]


def pictures(shape, n=6, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, int(np.prod(shape)), generator=g, dtype=dtype)


def turned(picture, degrees):
    """(h, w), counter-clockwise: where each new pixel came from, by bilinear weights, 0 outside."""
    h, w = picture.shape
    out, t = np.zeros((h, w)), np.deg2rad(degrees)
    for i in range(h):
        for j in range(w):
            up, right = (h - 1) / 2 - i, j - (w - 1) / 2
            old_right = np.cos(t) * right + np.sin(t) * up  # turned back by t
            old_up = np.cos(t) * up - np.sin(t) * right
            row, column = (h - 1) / 2 - old_up, old_right + (w - 1) / 2
            for r in (int(np.floor(row)), int(np.floor(row)) + 1):
                for c in (int(np.floor(column)), int(np.floor(column)) + 1):
                    if 0 <= r < h and 0 <= c < w:
                        out[i, j] += (1 - abs(row - r)) * (1 - abs(column - c)) * picture[r, c]
    return out


# -- rotate ---------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.sampled_from(SHAPES), st.floats(-720, 720), st.integers(0, 99))
def test_rotate_is_the_plain_loop(shape, degrees, seed):
    x = pictures(shape, n=2, seed=seed, dtype=torch.float64)
    got = skew.rotate(x, [np.array([0, 1])], [degrees], shape)
    assert got.shape == x.shape and got.dtype == x.dtype
    for before, after in zip(x.reshape(2, *shape), got.reshape(2, *shape), strict=True):
        for a, b in zip(before.reshape(-1, *shape[-2:]), after.reshape(-1, *shape[-2:])):
            np.testing.assert_allclose(b.numpy(), turned(a.numpy(), degrees), atol=1e-6)


@pytest.mark.parametrize("quarter", [0, 1, 2, 3, 4, -1])
@pytest.mark.parametrize("shape", [(8, 8), (3, 5, 5)])
def test_quarter_turns_only_move_pixels(quarter, shape):
    x = pictures(shape)
    got = skew.rotate(x, [np.arange(6)], [90.0 * quarter], shape).reshape(6, *shape).numpy()
    expected = np.rot90(x.reshape(6, *shape).numpy(), quarter, axes=(-2, -1))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_every_client_has_its_own_angle():
    x = pictures((5, 5))
    parts = [np.array([4, 1]), np.array([0, 2]), np.array([3])]
    together = skew.rotate(x, parts, [15.0, 0.0, 200.0], (5, 5))
    for own, angle in zip(parts, [15.0, 0.0, 200.0], strict=True):
        alone = skew.rotate(x[own], [np.arange(len(own))], [angle], (5, 5))
        assert torch.equal(together[own], alone)
    assert torch.equal(together[parts[1]], x[parts[1]])
    assert torch.equal(together[5], x[5])  # nobody's example stays as it is


# -- add_noise ------------------------------------------------------------------------------------


def test_the_noise_has_its_standard_deviation_and_another_for_every_client():
    x = torch.full((3000, 20), 0.5)
    parts = list(np.split(np.arange(3000), 3))
    noise = skew.add_noise(x, parts, [0.0, 0.02, 0.1]) - x
    for own, std in zip(parts, [0.0, 0.02, 0.1], strict=True):
        assert float(noise[own].std()) == pytest.approx(std, rel=0.03)
        assert abs(float(noise[own].mean())) < 0.002
    assert abs(np.corrcoef(noise[parts[1]].flatten(), noise[parts[2]].flatten())[0, 1]) < 0.03


def test_a_clients_noise_depends_on_its_number_and_the_seed_alone():
    x, own = torch.full((9, 4), 0.5), np.array([1, 5, 8])
    a = skew.add_noise(x, [np.array([0]), own], [0.0, 0.1], seed=7)
    b = skew.add_noise(x, [np.array([2, 3]), own, np.array([4])], [0.3, 0.1, 0.2], seed=7)
    assert torch.equal(a[own], b[own])
    plain = 0.5 + 0.1 * numpy_rng(7, Use.SKEW, 1).standard_normal((3, 4))
    np.testing.assert_allclose(a[own].numpy(), plain.clip(0, 1), atol=1e-6)
    assert not torch.equal(a[own], skew.add_noise(x, [np.array([0]), own], [0.0, 0.1], seed=8)[own])


@given(st.floats(0, 1e6), st.integers(0, 2**31))
def test_noise_of_any_size_stays_in_range(std, seed):
    got = skew.add_noise(pictures((4, 4)), [np.arange(6)], [std], seed)
    assert float(got.min()) >= 0 and float(got.max()) <= 1 and got.dtype == torch.float32


# -- brighten -------------------------------------------------------------------------------------


@given(st.floats(0, 1e6), st.sampled_from([1, 2, 3, 64]))
def test_brighten_multiplies_and_clips(factor, features):
    x = pictures((features,))
    got = skew.brighten(x, [np.arange(3), np.arange(3, 6)], [factor, 1.0])
    np.testing.assert_allclose(got[:3].numpy(), np.clip(x[:3].numpy() * factor, 0, 1), rtol=1e-5)
    assert torch.equal(got[3:], x[3:])


# -- swap_labels ----------------------------------------------------------------------------------


@given(
    st.lists(st.none() | st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8)
)
def test_swap_is_a_table_of_names_and_twice_is_nothing(pairs):
    y = torch.from_numpy(np.random.default_rng(len(pairs)).integers(0, 6, 60))
    parts = partition.iid(y.numpy(), len(pairs), numpy_rng(0))
    got = skew.swap_labels(y, parts, pairs)
    for own, pair in zip(parts, pairs, strict=True):
        a, b = pair or (0, 0)
        name = {**{c: c for c in range(6)}, a: b, b: a}
        assert got[own].tolist() == [name[c] for c in y[own].tolist()]
    assert torch.equal(skew.swap_labels(got, parts, pairs), y)
    assert torch.equal(got.bincount(minlength=6).sum(), y.bincount(minlength=6).sum())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_swap_keeps_the_type_and_takes_numpys_numbers(dtype):
    y = torch.tensor([0, 1, 2], dtype=dtype)
    got = skew.swap_labels(y, [np.arange(3)], [tuple(np.array([0, 2]))])
    assert got.dtype == dtype and got.tolist() == [2, 1, 0]


# -- all of them ----------------------------------------------------------------------------------

CHANGES = {
    "rotate": lambda x, parts, amounts: skew.rotate(x, parts, amounts, (4, 4)),
    "add_noise": skew.add_noise,
    "brighten": skew.brighten,
}
PARTS = [np.array([0, 3]), np.array([1, 2, 4])]


@pytest.mark.parametrize("name", CHANGES)
def test_the_examples_given_are_left_alone(name):
    x = pictures((4, 4))
    before = x.clone()
    a, b = (CHANGES[name](x, PARTS, [0.3, 40.0]) for _ in range(2))
    assert torch.equal(x, before) and not torch.equal(a, before) and torch.equal(a, b)
    y = torch.tensor([0, 1, 0, 1, 1])
    skew.swap_labels(y, PARTS, [(0, 1), None])
    assert y.tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("amounts", [[1.0], [1.0] * 3, [], [1.0, np.nan], [1.0, np.inf]])
def test_one_finite_number_a_client(name, amounts):
    with pytest.raises(ValueError, match=rf"{name}: .*got .*e\.g\."):
        CHANGES[name](pictures((4, 4)), PARTS, amounts)


@pytest.mark.parametrize("name", ["add_noise", "brighten"])
def test_nothing_negative(name):
    with pytest.raises(ValueError, match=rf"{name}: .*>= 0, got -0.1"):
        CHANGES[name](pictures((4, 4)), PARTS, [0.5, -0.1])


def test_only_pictures_turn_and_every_client_needs_a_pair_or_none():
    with pytest.raises(ValueError, match=r"rotate: needs pictures, got .*digits"):
        skew.rotate(torch.zeros(3, 13), [np.arange(3)], [90.0], ())
    with pytest.raises(ValueError, match=r"swap_labels: .*2 clients, got 1"):
        skew.swap_labels(torch.tensor([0, 1]), [np.array([0]), np.array([1])], [(0, 1)])


def test_pictures_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"rotate: .*\(5, 5\).*got \(6, 16\)"):
        skew.rotate(pictures((4, 4)), [np.arange(6)], [10.0], (5, 5))


# -- data that are not in [0, 1] ------------------------------------------------------------------

STANDARD = (pictures((4, 4), n=200) - 0.5) / 0.29
HALVES = [np.arange(100), np.arange(100, 200)]


@pytest.mark.parametrize("x", [STANDARD, STANDARD * 100, pictures((4, 4), n=200)], ids=str)
def test_an_amount_that_changes_nothing_changes_not_one_number(x):
    for got in (
        skew.add_noise(x, HALVES, [0.0, 0.0]),
        skew.brighten(x, HALVES, [1.0, 1.0]),
        skew.rotate(x, HALVES, [0.0, 0.0], (4, 4), fill=float(x.min())),
    ):
        assert torch.equal(got, x)


def test_standardised_features_get_all_of_their_noise():
    """Clipped to [0, 1] it would be another distribution, and the mean 0 would be gone."""
    x = torch.randn(3000, 20, generator=torch.Generator().manual_seed(0))
    noise = skew.add_noise(x, [np.arange(3000)], [0.5]) - x
    assert float(noise.std()) == pytest.approx(0.5, rel=0.03) and abs(float(noise.mean())) < 0.01
    plain = x.double().numpy() + 0.5 * numpy_rng(0, Use.SKEW, 0).standard_normal((3000, 20))
    np.testing.assert_allclose(skew.add_noise(x, [np.arange(3000)], [0.5]), plain, atol=1e-5)
    assert torch.equal(skew.brighten(x, [np.arange(3000)], [2.0]), 2 * x)


def test_a_standardised_picture_turns_on_its_own_background():
    x, black = pictures((5, 5)), -0.4242
    standard = x * 3.0 + black  # 0 has become -0.4242
    for degrees in (30.0, 90.0, -77.0):
        got = skew.rotate(standard, [np.arange(6)], [degrees], (5, 5), fill=black)
        want = skew.rotate(x, [np.arange(6)], [degrees], (5, 5)) * 3.0 + black
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"rotate: fill must be given .*got None, e\.g\. fill=-0\.4"
    ):
        skew.rotate(standard, [np.arange(6)], [30.0], (5, 5))


@pytest.mark.parametrize("name", CHANGES)
def test_whole_numbers_are_refused_and_arrays_are_not(name):
    """A byte has no room for noise of 0.1."""
    x = pictures((4, 4))
    with pytest.raises(ValueError, match=rf"{name}: x must be real numbers, got .*uint8"):
        CHANGES[name]((x * 255).to(torch.uint8), PARTS, [0.3, 40.0])
    parts = {"a": PARTS[0].tolist(), "b": torch.from_numpy(PARTS[1])}
    assert torch.equal(
        CHANGES[name](x.numpy(), parts, [0.3, 40.0]), CHANGES[name](x, PARTS, [0.3, 40.0])
    )
    with pytest.raises(ValueError, match=rf"{name}: every client needs rows from 0\.\.5, got 9"):
        CHANGES[name](x, [np.array([9]), PARTS[1]], [0.3, 40.0])


def test_labels_that_do_not_exist_are_not_swapped():
    y = torch.tensor([0, 1, 2])
    for pair in ((0, 9), (-1, 0), (0, 1, 2)):
        with pytest.raises(
            ValueError, match=r"swap_labels: a pair must be two labels that y holds"
        ):
            skew.swap_labels(y, [np.arange(3)], [pair])
    with pytest.raises(ValueError, match=r"swap_labels: y must be integer classes, got .*float32"):
        skew.swap_labels(y.float(), [np.arange(3)], [(0, 1)])
    words = torch.tensor([[0, 1], [2, 1]])
    assert skew.swap_labels(words, [[0], [1]], [(0, 1), None]).tolist() == [[1, 0], [2, 1]]
    assert skew.swap_labels(y.numpy(), [[0], [1, 2]], [(0, 1), None]).tolist() == [1, 1, 2]
