"""Partitions with two knobs or a natural attribute; the table; saved and loaded again."""

from __future__ import annotations

import json
import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_partition import TEN, alphas, check_every_example_once, labelled, realised, same_label

from fedlearn import partition
from fedlearn.rng import numpy_rng

# -- label_and_quantity ---------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    labels=labelled(),
    n_clients=st.integers(2, 500),
    alpha=alphas,
    size_alpha=alphas,
    seed=st.integers(0, 2**32),
)
@example(labels=np.zeros(500, int), n_clients=500, alpha=1e-3, size_alpha=1e-3, seed=0)
@example(labels=np.arange(500), n_clients=500, alpha=1e3, size_alpha=1e-3, seed=0)
@example(labels=np.repeat([0, 1], [1999, 1]), n_clients=2, alpha=1e-3, size_alpha=1e3, seed=0)
def test_every_example_goes_to_one_client(labels, n_clients, alpha, size_alpha, seed):
    n_clients = min(n_clients, len(labels))
    parts, again = (
        partition.label_and_quantity(labels, n_clients, numpy_rng(seed), alpha, size_alpha)
        for _ in range(2)
    )
    check_every_example_once(parts, len(labels), n_clients)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("size_alpha", [0.3, 1.0, 10.0])
def test_sizes_have_dirichlets_second_moment(size_alpha):
    """Share s of a client: E[s²] = (a + 1) / (N (N a + 1)), whatever the labels' alpha."""
    N, few = 10, TEN[::30]
    draws = [
        partition.label_and_quantity(few, N, numpy_rng(s), 0.5, size_alpha) for s in range(300)
    ]
    got = np.mean([[(len(p) / len(few)) ** 2 for p in parts] for parts in draws])
    assert got == pytest.approx((size_alpha + 1) / (N * (N * size_alpha + 1)), rel=0.06)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_mixes_have_the_closed_form_before_labels_run_out(alpha):
    """E[Σq²] = (alpha + 1) / (10 alpha + 1), over the clients served first with 500 or more."""
    first = []
    for s in range(30):
        parts = partition.label_and_quantity(TEN, 20, numpy_rng(s), alpha, 1.0)
        first += [p for p in parts[:6] if len(p) >= 500]
    got = same_label(realised(first, TEN, 10))
    assert got == pytest.approx((alpha + 1) / (10 * alpha + 1), rel=0.12)


def test_each_knob_turns_one_thing():
    even_sizes = partition.label_and_quantity(TEN, 20, numpy_rng(0), 0.1, 1e6)
    sizes = np.array([len(p) for p in even_sizes])
    assert sizes.max() < 1.02 * sizes.min() and same_label(realised(even_sizes, TEN, 10)) > 0.4
    even_labels = partition.label_and_quantity(TEN, 20, numpy_rng(0), 1e6, 0.5)
    sizes = np.array([len(p) for p in even_labels])
    large = [p for p in even_labels[:-1] if len(p) > 2000]  # the last one takes what is left
    assert sizes.max() > 10 * sizes.min() and abs(realised(large, TEN, 10) - 0.1).max() < 0.03


# -- by_attribute ---------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=60),  # how often each value occurs
    st.integers(1, 60),
    st.integers(0, 99),
)
@example([100, 1, 1, 1], 2, 0)
@example([1, 1, 1, 100], 3, 0)
@example([1] * 60, 60, 0)
def test_values_are_never_split_and_runs_are_about_equal(often, n_clients, seed):
    n_clients = min(n_clients, len(often))
    rng = np.random.default_rng(seed)
    attribute = rng.permutation(np.repeat(np.arange(len(often)) * 7 - 30, often))
    parts = partition.by_attribute(attribute, n_clients)
    check_every_example_once(parts, len(attribute), n_clients)
    held = [sorted(set(attribute[p].tolist())) for p in parts]
    assert [v for own in held for v in own] == sorted(
        set(attribute.tolist())
    )  # sorted runs, no value twice
    fair = len(attribute) / n_clients
    if max(often) <= fair:  # a run ends with the value that passes its fair end
        assert all(abs(len(p) - fair) < max(often) for p in parts)


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=80))
def test_one_client_a_value(attribute):
    parts = partition.by_attribute(np.array(attribute))
    values = sorted(set(attribute))
    assert len(parts) == len(values)
    for own, value in zip(parts, values, strict=True):
        assert own.tolist() == [i for i, v in enumerate(attribute) if v == value]


def test_the_largest_value_does_not_empty_its_neighbours():
    for where in range(5):
        often = np.ones(5, int)
        often[where] = 1000
        for N in range(1, 6):
            parts = partition.by_attribute(np.repeat(np.arange(5), often), N)
            check_every_example_once(parts, 1004, N)


def test_any_kind_of_attribute():
    assert [p.tolist() for p in partition.by_attribute([2.5, -1.0, 2.5])] == [[1], [0, 2]]
    assert [p.tolist() for p in partition.by_attribute(np.array([True, False]))] == [[1], [0]]


@pytest.mark.parametrize("n_clients", [0, -1, 1.5, True, 3])
def test_impossible_numbers_of_clients(n_clients):
    with pytest.raises(ValueError, match=r"by_attribute: .*got .*e\.g\."):
        partition.by_attribute(np.array([1, 1, 2]), n_clients)


def test_one_value_an_example():
    for wrong in (np.zeros((4, 2)), np.zeros(0)):
        with pytest.raises(ValueError, match=r"by_attribute: .*got shape .*e\.g\."):
            partition.by_attribute(wrong)


@pytest.mark.parametrize("missing", [None, float("nan"), np.datetime64("NaT")])
def test_a_missing_value_is_named(missing):
    column = np.array(["a", missing, "b"], object)
    with pytest.raises(ValueError, match=r"by_attribute: .*none for 1 of 3, first in row 1"):
        partition.by_attribute(column)


def test_values_of_two_kinds_are_named():
    with pytest.raises(ValueError, match=r"by_attribute: .*got int and str, e\.g\. column\.astype"):
        partition.by_attribute(np.array(["a", 1], object))


def test_clients_are_called_by_their_values():
    assert partition.by_attribute(["b", "a", "b"]).names == ("a", "b")
    assert partition.by_attribute(np.arange(10), 3).names == ("0..3", "4..6", "7..9")
    assert partition.iid(TEN, 5, numpy_rng(0)).names is None


@settings(max_examples=80)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.data(), st.integers(0, 99))
def test_more_clients_than_values_share_one_and_never_two(often, more, seed):
    """Seats go one by one to the value with most examples a client: D'Hondt, written anew."""
    attribute = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(often)), often))
    N = more.draw(st.integers(len(often), sum(often)))
    parts = partition.by_attribute(attribute, N, numpy_rng(seed))
    check_every_example_once(parts, len(attribute), N)
    owns = [set(attribute[p].tolist()) for p in parts]
    assert all(len(values) == 1 for values in owns)
    clients = np.bincount([v for values in owns for v in values])
    for v, n in enumerate(often):
        sizes = [len(p) for p, values in zip(parts, owns) if v in values]
        assert max(sizes) - min(sizes) <= 1
        for u, m in enumerate(clients):  # no seat would do better elsewhere
            assert m == 1 or often[u] / (m - 1) >= n / clients[v] - 1e-9
    again = partition.by_attribute(attribute, N, numpy_rng(seed))
    assert all(map(np.array_equal, parts, again)) and parts.names == again.names


def test_the_examples_of_a_shared_value_are_dealt_out_by_chance():
    one, other = (partition.by_attribute([0] * 40, 2, numpy_rng(s))[0].tolist() for s in (0, 1))
    assert one != other and one != list(range(20))


def test_more_clients_than_values_need_a_generator_and_examples():
    with pytest.raises(ValueError, match=r"as many values, got 2, e\.g\. n_clients=2, or rng="):
        partition.by_attribute(["a", "b", "b"], 3)
    with pytest.raises(ValueError, match=r"an example each, got 3, e\.g\. n_clients=3"):
        partition.by_attribute(["a", "b", "b"], 4, numpy_rng(0))
    parts = partition.by_attribute(["a", "b", "b"], 3, numpy_rng(0))
    assert parts.names == ("a", "b 1/2", "b 2/2")


# -- match: the test set cut as the training set is ------------------------------------------------


@given(
    st.lists(st.sampled_from("abcde"), min_size=1, max_size=60),
    st.lists(st.integers(0, 99), max_size=40),
    st.integers(1, 5),
)
def test_a_hospital_is_the_same_client_in_both(train, picks, n_clients):
    """Also where the test set lacks some: nobody is shifted."""
    if not picks:
        picks = [0]
    test = [train[i % len(train)] for i in picks]
    parts = partition.by_attribute(train, min(n_clients, len(set(train))))
    both = partition.match(parts, train, test)
    assert len(both) == len(parts) and both.names == parts.names
    assert sorted(np.concatenate(both).tolist()) == list(range(len(test)))
    for own, own_test in zip(parts, both, strict=True):
        assert {test[i] for i in own_test} == {train[i] for i in own} & set(test)


def test_a_hospital_missing_from_the_test_set_has_an_empty_part():
    train, test = np.array(["Bern", "Basel", "Chur", "Bern"]), np.array(["Chur", "Bern"])
    both = partition.match(partition.by_attribute(train), train, test)
    assert [p.tolist() for p in both] == [[], [1], [0]] and both.names == ("Basel", "Bern", "Chur")


@settings(max_examples=30)
@given(labelled(), st.integers(1, 12), st.sampled_from([0.1, 1.0, 100.0]), st.integers(0, 99))
def test_labels_dealt_out_are_dealt_out_alike(labels, n_clients, alpha, seed):
    """A test set of three times the training set: three times each client's examples of a label."""
    parts = partition.dirichlet_label(labels, min(n_clients, len(labels)), numpy_rng(seed), alpha)
    test = np.repeat(labels, 3)
    both = partition.match(parts, labels, test, numpy_rng(seed))
    assert sorted(np.concatenate(both).tolist()) == list(range(len(test)))
    classes = int(labels.max()) + 1
    got = partition.counts(both, test, classes)
    assert (got == 3 * partition.counts(parts, labels, classes)).all()


def test_without_a_generator_the_order_stays_and_with_one_it_is_its():
    parts, y = [np.arange(0, 20), np.arange(20, 40)], np.zeros(40, int)
    assert [p.tolist() for p in partition.match(parts, y, np.zeros(6, int))] == [
        [0, 1, 2],
        [3, 4, 5],
    ]
    a, b = (partition.match(parts, y, np.zeros(60, int), numpy_rng(s)) for s in (0, 1))
    assert a[0].tolist() != b[0].tolist() and len(a[0]) == len(b[0]) == 30


def test_a_value_that_nobody_holds_is_named():
    with pytest.raises(ValueError, match=r"match: .*held by a client, got 'Genf', e\.g\."):
        partition.match([[0], [1]], ["Bern", "Basel"], ["Genf", "Bern"])
    with pytest.raises(ValueError, match=r"match: .*got 'Basel'"):
        partition.match([[0]], ["Bern", "Basel"], ["Basel"])


# -- summary --------------------------------------------------------------------------------------


@given(labelled(), st.integers(1, 30), st.integers(0, 99))
def test_the_table_is_what_a_counter_says(labels, n_clients, seed):
    parts = partition.iid(labels, min(n_clients, len(labels)), numpy_rng(seed))
    classes = int(labels.max()) + 1
    head, *lines, last = partition.summary(parts, labels, classes).split("\n")
    assert head.split() == ["client", "examples", "labels", "most", "frequent"]
    rows = [*((str(k), p) for k, p in enumerate(parts)), ("all", np.arange(len(labels)))]
    for line, (name, own) in zip([*lines, last], rows, strict=True):
        held = Counter(labels[own].tolist())
        top, n = min(held.items(), key=lambda item: (-item[1], item[0]))
        share = f"({100 * n / len(own):.0f} %)"
        expected = [name, str(len(own)), str(len(held)), str(top), *share.split()]
        assert line.split() == expected


def test_names_stand_in_the_table():
    y = np.arange(50) % 2
    parts = partition.by_attribute(np.array(["University hospital", "Bern"])[y])
    head, *lines = partition.summary(parts, y, 2).split("\n")
    assert [line.rsplit(maxsplit=5)[0].strip() for line in lines] == [*parts.names, "all"]
    assert len({line.index("(") for line in lines}) == 1 and head.index("client") > 6


def test_the_columns_stay_in_line():
    table = partition.summary(partition.iid(TEN, 120, numpy_rng(0)), TEN, 10).split("\n")
    assert len(table) == 122
    assert {line.index("(") for line in table[1:]} == {table[1].index("(")}


def test_a_label_outside_is_named():
    with pytest.raises(ValueError, match=r"labels must be 0\.\.1, got 0\.\.2"):
        partition.summary([np.array([0, 1])], np.array([0, 2]), 2)


# -- save and load --------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 19)), unique_by=lambda pair: pair[0]),
    st.integers(0, 20),
    st.text(max_size=40),
)
def test_what_is_loaded_is_what_was_saved(tmp_path_factory, owned, n_clients, note):
    """Also clients without a row, and no client at all."""
    arrays = [[i for i, owner in owned if owner == k] for k in range(n_clients)]
    path = tmp_path_factory.mktemp("parts") / "parts.json"
    parts = partition.Parts([np.array(a, dtype=np.int64) for a in arrays], note)
    assert partition.save(parts, str(path)) == path
    back = partition.load(path)
    assert isinstance(back, partition.Parts) and back.note == note and len(back) == len(parts)
    for a, b in zip(parts, back, strict=True):
        assert b.dtype == np.int64 and np.array_equal(a, b)
    assert os.listdir(path.parent) == ["parts.json"]


def test_plain_lists_of_arrays_can_be_saved_and_files_replaced(tmp_path):
    path = tmp_path / "parts.json"
    partition.save([np.array([5, 1])], path)
    partition.save([[2], [0, 1]], path)
    assert [p.tolist() for p in partition.load(path)] == [[2], [0, 1]]


@pytest.mark.parametrize("breaks", ["write", "replace"])
def test_a_save_that_breaks_leaves_the_old_file(tmp_path, monkeypatch, breaks):
    path = tmp_path / "parts.json"
    partition.save([np.array([0])], path)
    before = path.read_bytes()

    def half(handle):
        os.ftruncate(handle, 9)
        raise OSError(28, "No space left on device")

    def no(*args):
        raise OSError(13, "Permission denied")

    if breaks == "write":
        monkeypatch.setattr(os, "fsync", half)
    else:
        monkeypatch.setattr(os, "replace", no)
    with pytest.raises(OSError):
        partition.save([np.arange(100)], path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["parts.json"], "the half-written file was left behind"


WRONG = {
    "no JSON": b"client,example\n0,1\n",
    "half a file": b'{"note": "", "parts": [[0, 1], [2',
    "no text": b"\x93NUMPY\x01\x00\xff\xfe",
    "a list": b"[[0, 1], [2]]",
    "no note": b'{"parts": [[0]]}',
    "no parts": b'{"note": ""}',
    "a number": b'{"note": "", "parts": 3}',
    "not arrays": b'{"note": "", "parts": [0, 1]}',
    "tables": b'{"note": "", "parts": [[[0], [1]]]}',
    "fractions": b'{"note": "", "parts": [[0, 1.5]]}',
    "words": b'{"note": "", "parts": [["zero"]]}',
    "negative": b'{"note": "", "parts": [[-1]]}',
    "one row, two clients": b'{"note": "", "parts": [[0, 1], [2], [3, 1]]}',
    "one row twice": b'{"note": "", "parts": [[0], [2, 2]]}',
    "true": b'{"note": "", "parts": [[0, true]]}',
    "whole fractions": b'{"note": "", "parts": [[0.0, 1.0]]}',
    "digits": b'{"note": "", "parts": ["01"]}',
    "clients by name": b'{"note": "", "parts": {"a": [0]}}',
    "more than 64 bits": b'{"note": "", "parts": [[9223372036854775808]]}',
    "null": b"null",
    "a number alone": b"3",
    "a word": b'"parts note"',
    "rows that are null": b'{"note": "", "parts": [null]}',
    "parts that are null": b'{"note": "", "parts": null}',
    "a note that is null": b'{"note": null, "parts": [[0]]}',
    "NaN": b'{"note": "", "parts": [[NaN]]}',
    "empty": b"",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_is_no_partition_says_so(tmp_path, kind):
    path = tmp_path / "other.json"
    path.write_bytes(WRONG[kind])
    with pytest.raises(ValueError, match=r"partition\.load: .*got other\.json .*e\.g\."):
        partition.load(path)


def test_the_row_that_is_there_twice_is_named(tmp_path):
    path = tmp_path / "p.json"
    path.write_bytes(WRONG["one row, two clients"])
    with pytest.raises(ValueError, match="row 1 of clients 0 and 2"):
        partition.load(path)
    path.write_bytes(WRONG["one row twice"])
    with pytest.raises(ValueError, match="row 2 of client 1, twice"):
        partition.load(path)


@pytest.mark.parametrize(
    "parts",
    [
        [[0, 1], [1, 2]],
        [[3, 3]],
        [[-1]],
        [np.array([0.0, 1.0])],
        [np.array([True, False])],
        [np.array([[0], [1]])],
        [np.array(["0"])],
        [3],
    ],
    ids=str,
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, parts):
    path = partition.save([[0]], tmp_path / "p.json")
    with pytest.raises(ValueError, match=r"partition\.save: .*got .*e\.g\."):
        partition.save(parts, path)
    assert [p.tolist() for p in partition.load(path)] == [[0]], "the old file is untouched"


def test_a_later_version_may_say_more(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"note": "a", "parts": [[1], [0]], "colour": ["red", "blue"]}')
    assert [p.tolist() for p in partition.load(path)] == [[1], [0]]


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert partition.save([[0]], "~/p.json") == tmp_path / "p.json"
    assert [p.tolist() for p in partition.load("~/p.json")] == [[0]]


def test_no_file_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        partition.load(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError):
        partition.save([np.array([0])], tmp_path / "no" / "folder.json")


def test_the_file_is_plain_json(tmp_path):
    path = partition.save(partition.Parts([np.array([3, 1])], "a note"), tmp_path / "p.json")
    assert json.loads(path.read_text()) == {"note": "a note", "parts": [[1, 3]]}


def test_names_are_saved_with_the_rows(tmp_path):
    named = partition.Parts([np.array([2, 0]), np.array([1])], "by hand", ["Basel", "Bern"])
    back = partition.load(partition.save(named, tmp_path / "p.json"))
    assert back.names == ("Basel", "Bern") and back.note == "by hand"
    assert [rows.tolist() for rows in back] == [[0, 2], [1]]
    back = partition.load(partition.save({"Chur": [3], "Olten": [0, 1]}, tmp_path / "d.json"))
    assert back.names == ("Chur", "Olten") and [rows.tolist() for rows in back] == [[3], [0, 1]]
    nameless = partition.save(partition.Parts([np.array([0])]), tmp_path / "n.json")
    assert partition.load(nameless).names is None


@pytest.mark.parametrize("names", [["one"], "ab", {"a": 1}, 3, [1]])
def test_names_that_are_not_one_a_client_are_refused(tmp_path, names):
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"note": "", "parts": [[0], [1]], "names": names}))
    with pytest.raises(ValueError, match=r"partition\.load: needs a file that"):
        partition.load(file)
