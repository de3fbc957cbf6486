"""Who holds what: every example once, no client empty, any setting; and the published numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedlearn import partition
from fedlearn.rng import numpy_rng

# -- any setting ----------------------------------------------------------------------------------


@st.composite
def labelled(draw):
    """Labels of 2 to 2000 examples; classes with one example, all of one class, gaps in numbers."""
    classes = draw(st.integers(1, 12))
    rare = draw(st.integers(0, classes - 1))  # so many classes have a single example
    n = draw(st.integers(max(2, classes), 2000))
    common = np.arange(rare, classes)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    labels = np.concatenate([np.arange(rare), common, rng.choice(common, n - classes)])
    return rng.permutation(labels) * draw(st.sampled_from([1, 3]))


alphas = st.floats(1e-3, 1e3) | st.sampled_from([1e-3, 1.0, 1e3])

SPLITS = {
    "iid": lambda y, N, rng, a: partition.iid(y, N, rng),
    "dirichlet_label": lambda y, N, rng, a: partition.dirichlet_label(y, N, rng, a),
    "dirichlet_client": lambda y, N, rng, a: partition.dirichlet_client(y, N, rng, a),
    "shards": lambda y, N, rng, a: partition.shards(y, N, rng, min(2, len(y) // N)),
    "quantity": lambda y, N, rng, a: partition.quantity(y, N, rng, a),
}


def check_every_example_once(parts, n, n_clients):
    assert len(parts) == n_clients
    assert min(len(p) for p in parts) >= 1
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert all(p.dtype == np.int64 and np.array_equal(p, np.sort(p)) for p in parts)


@pytest.mark.parametrize("name", SPLITS)
@settings(max_examples=80)
@given(labels=labelled(), n_clients=st.integers(2, 500), alpha=alphas, seed=st.integers(0, 2**32))
@example(labels=np.zeros(500, int), n_clients=500, alpha=1e-3, seed=0)
@example(labels=np.arange(500), n_clients=500, alpha=1e3, seed=0)
@example(labels=np.repeat([0, 1], [1999, 1]), n_clients=2, alpha=1e-3, seed=0)
def test_every_example_goes_to_one_client(name, labels, n_clients, alpha, seed):
    n_clients = min(n_clients, len(labels))
    split = SPLITS[name]
    parts = split(labels, n_clients, numpy_rng(seed), alpha)
    check_every_example_once(parts, len(labels), n_clients)
    again = split(labels, n_clients, numpy_rng(seed), alpha)
    assert parts.note == again.note
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@settings(max_examples=80)
@given(st.integers(2, 100), st.integers(1, 10), st.integers(1, 10), st.integers(0, 2**32))
def test_labels_per_client_gives_exactly_so_many(n_clients, classes, each, seed):
    each = min(each, classes)
    if n_clients * each < classes:
        each = classes
    labels = np.repeat(np.arange(classes), 100)
    parts = partition.labels_per_client(labels, n_clients, numpy_rng(seed), each)
    check_every_example_once(parts, len(labels), n_clients)
    assert {len(np.unique(labels[p])) for p in parts} == {each}
    again = partition.labels_per_client(labels, n_clients, numpy_rng(seed), each)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("name", [*SPLITS, "labels_per_client"])
def test_another_seed_is_another_split(name):
    labels = np.repeat(np.arange(5), 40)
    split = SPLITS.get(name, lambda y, N, rng, a: partition.labels_per_client(y, N, rng))
    a, b = (split(labels, 10, numpy_rng(seed), 1.0) for seed in (0, 1))
    assert any(not np.array_equal(p, q) for p, q in zip(a, b, strict=True))


@given(labelled(), st.integers(1, 50), st.integers(1, 8), alphas)
def test_a_minimum_size_is_kept_and_said(labels, n_clients, min_size, alpha):
    n_clients = min(n_clients, len(labels) // min_size) or 1
    min_size = min(min_size, len(labels))
    parts = partition.dirichlet_label(labels, n_clients, numpy_rng(0), alpha, min_size)
    check_every_example_once(parts, len(labels), n_clients)
    assert min(len(p) for p in parts) >= min_size


def test_the_note_says_how_many_were_topped_up():
    labels = np.repeat(np.arange(10), 100)
    hard = partition.dirichlet_label(labels, 100, numpy_rng(0), 1e-3)
    assert hard.note.endswith("of 100 clients topped up to 1")
    assert int(hard.note.split()[0]) >= 85  # ten labels, nearly each on one client
    assert partition.dirichlet_label(labels, 10, numpy_rng(0), 100.0).note == ""


@pytest.mark.parametrize("name", ["iid", "dirichlet_client"])
@given(labels=labelled(), n_clients=st.integers(1, 60))
def test_sizes_differ_by_at_most_one(name, labels, n_clients):
    n_clients = min(n_clients, len(labels))
    sizes = [len(p) for p in SPLITS[name](labels, n_clients, numpy_rng(0), 0.1)]
    assert max(sizes) - min(sizes) <= 1


# -- published numbers ----------------------------------------------------------------------------

TEN = np.repeat(np.arange(10), 6000)  # balanced labels, MNIST's size


def same_label(mix):
    """Σ_c p_c², the chance that two examples of one client have the same label, over clients."""
    return (mix**2).sum(1).mean()


def realised(parts, labels, classes):
    held = np.stack([np.bincount(labels[p], minlength=classes) for p in parts])
    return held / held.sum(1, keepdims=True)


@pytest.mark.parametrize("alpha, expected", [(0.1, 0.550), (1.0, 0.1818), (100.0, 101 / 1001)])
def test_client_mixes_have_the_closed_form(alpha, expected):
    mixes = partition.client_mixes(20_000, 10, numpy_rng(0), alpha)
    assert np.allclose(mixes.sum(1), 1)
    assert same_label(mixes) == pytest.approx((alpha + 1) / (10 * alpha + 1), rel=0.02)
    assert same_label(mixes) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 10.0])
def test_realised_mixes_follow_the_closed_form(alpha):
    """What clients really hold, over ten draws of 40 clients with 1500 examples each.

    Labels run out: the last quarter of the clients takes what is left and is up to 45 % off. Those
    served before keep the closed form.
    """
    expected = (alpha + 1) / (10 * alpha + 1)
    mixes = [
        realised(partition.dirichlet_client(TEN, 40, numpy_rng(s), alpha), TEN, 10)
        for s in range(10)
    ]
    early = np.mean([same_label(m[:20]) for m in mixes])
    assert early == pytest.approx(expected, rel=0.08)
    everyone = np.mean([same_label(m) for m in mixes])
    assert everyone == pytest.approx(expected, rel=0.15)


def test_the_two_dirichlets_are_not_the_same():
    """At one alpha: dirichlet_client has equal sizes, dirichlet_label has not."""
    rng = numpy_rng(0)
    by_label = [len(p) for p in partition.dirichlet_label(TEN, 20, rng, 0.1)]
    by_client = [len(p) for p in partition.dirichlet_client(TEN, 20, rng, 0.1)]
    assert set(by_client) == {3000} and max(by_label) > 3 * min(by_label)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_dirichlet_label_shares_have_dirichlets_second_moment(alpha):
    """Share q of a label at a client: E[q²] = (alpha + 1) / (N (N alpha + 1))."""
    N, squares = 10, []
    for s in range(40):
        parts = partition.dirichlet_label(TEN, N, numpy_rng(s), alpha)
        held = np.stack([np.bincount(TEN[p], minlength=10) for p in parts])
        squares.append(((held / 6000) ** 2).mean())
    assert np.mean(squares) == pytest.approx((alpha + 1) / (N * (N * alpha + 1)), rel=0.08)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 10.0])
def test_quantity_shares_have_dirichlets_second_moment(alpha):
    N = 10
    sizes = [[len(p) for p in partition.quantity(TEN, N, numpy_rng(s), alpha)] for s in range(100)]
    got = ((np.array(sizes) / len(TEN)) ** 2).mean()
    assert got == pytest.approx((alpha + 1) / (N * (N * alpha + 1)), rel=0.1)


def test_quantity_keeps_the_mix_of_labels():
    parts = partition.quantity(TEN, 5, numpy_rng(0), 2.0)
    mixes = realised(parts, TEN, 10)
    assert abs(mixes - 0.1).max() < 0.03


@pytest.mark.parametrize("each, distance", [(2, 1.6), (1, 1.8)])
def test_the_distance_of_few_labels_to_uniform(each, distance):
    """L1 distance between a client's mix and the uniform one (NIID-Bench, "#C = k")."""
    for n_clients in (10, 20, 50):
        parts = partition.labels_per_client(TEN, n_clients, numpy_rng(0), each)
        far = abs(realised(parts, TEN, 10) - 0.1).sum(1)
        assert far == pytest.approx(distance, abs=1e-9)


def test_mcmahans_shards():
    """60,000 examples, 100 clients: 200 shards of 300 by label, two each."""
    parts = partition.shards(TEN, 100, numpy_rng(0))
    assert {len(p) for p in parts} == {600}
    assert {len(np.unique(TEN[p])) for p in parts} <= {1, 2}
    held = np.stack([np.bincount(TEN[p], minlength=10) for p in parts])
    assert set(held.flatten()) == {0, 300, 600}


def test_iid_is_uniform():
    mixes = realised(partition.iid(TEN, 10, numpy_rng(0)), TEN, 10)
    assert abs(mixes - 0.1).max() < 0.02


def test_counts_are_who_holds_what():
    labels = np.array([0, 2, 2, 1, 0])
    got = partition.counts([np.array([0, 1]), np.array([2, 3, 4])], labels, 4)
    assert got.tolist() == [[1, 0, 1, 0], [1, 1, 1, 0]]
