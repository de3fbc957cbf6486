"""Data sets with and without a network, and the plan of who sees which example when."""

from __future__ import annotations

import contextlib
import difflib
import functools
import http.client
import itertools
import math
import operator
import os
import socket
import struct
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlearn import batches, data
from fedlearn.batches import Shards, schedule
from fedlearn.data import load
from fedlearn.data.cases import features
from fedlearn.rng import Use, hashed, numpy_rng

# -- in the wheel ---------------------------------------------------------------------------------

# name: training examples, test examples, features, classes
SMALL = {
    "digits": (1437, 360, 64, 10),
    "breast_cancer": (455, 114, 30, 2),
    "wine": (142, 36, 13, 3),
    "diabetes": (353, 89, 10, 0),
    "toy": (480, 120, 2, 3),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_data_sets_need_no_network(name, closed_network):
    n, m, features, classes = SMALL[name]
    d = load(name)
    assert (d.name, d.classes) == (name, classes)
    assert (d.x.shape, d.x_test.shape) == ((n, features), (m, features))
    assert (d.y.shape, d.y_test.shape) == ((n,), (m,))
    assert d.x.dtype == d.x_test.dtype == torch.float32
    assert d.y.dtype == (torch.int64 if classes else torch.float32)
    both = torch.cat([d.x, d.x_test])
    assert both.max() <= 1 and both.min() >= (-1 if name == "toy" else 0)
    if classes:
        assert sorted(set(torch.cat([d.y, d.y_test]).tolist())) == list(range(classes))
    assert d.about and not closed_network


def test_digits_are_the_real_ones():
    """Against scikit-learn: the split loses no row, repeats none and mixes no label up."""
    from sklearn.datasets import load_digits

    d, real = load("digits"), load_digits()
    got = np.concatenate([torch.cat([d.x, d.x_test]) * 16, torch.cat([d.y, d.y_test])[:, None]], 1)
    want = np.concatenate([real.data, real.target[:, None]], 1)
    assert sorted(map(tuple, got)) == sorted(map(tuple, want))
    assert d.shape == (8, 8)


FORMS = [0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667]  # by eye


def test_a_digit_knows_the_form_it_was_written_on():
    """Against scikit-learn's order, cut by hand where the form's text begins anew."""
    from sklearn.datasets import load_digits

    d, real = load("digits"), load_digits()
    assert d.group.dtype == torch.int64 and d.group.shape == d.y.shape
    form = np.repeat(np.arange(14), np.diff([*FORMS, 1797]))
    want = {(*row, form[i]) for i, row in enumerate(real.data)}
    got = torch.cat(
        [torch.cat([d.x, d.x_test]) * 16, torch.cat([d.group, d.group_test])[:, None]], 1
    )
    assert len(want) == len(real.data) and set(map(tuple, got.numpy())) == want
    again = load("digits", seed=5)
    assert torch.equal(again.group.bincount() + again.group_test.bincount(),
                       torch.tensor(np.bincount(form)))  # fmt: skip


def test_each_form_asks_for_the_same_digits():
    """The text of the form, 130 digits; a few are missing here and there, and two are exchanged."""
    from sklearn.datasets import load_digits

    label = "".join(map(str, load_digits().target))
    texts = [label[a:b] for a, b in itertools.pairwise([*FORMS, None])]
    whole = texts[0]
    assert len(whole) == 130 and whole.startswith("0123456789" * 3) and texts.count(whole) >= 7
    for text in texts:
        common = sum(m.size for m in difflib.SequenceMatcher(None, whole, text, False)
                     .get_matching_blocks())  # fmt: skip
        assert len(text) - common <= 2 and len(whole) - common <= 10


def test_a_form_is_a_hand_of_its_own():
    """Within a class, a digit's neighbour is by the same form far more often than chance."""
    d = load("digits")
    x, y, form = torch.cat([d.x, d.x_test]), torch.cat([d.y, d.y_test]), torch.cat(
        [d.group, d.group_test])  # fmt: skip
    hits = []
    for c in range(10):
        own = y == c
        apart = torch.cdist(x[own], x[own]).fill_diagonal_(math.inf)
        hits += (form[own][apart.argmin(1)] == form[own]).tolist()
    assert np.mean(hits) > 0.45  # chance: 12 of 129, 0.09


def test_data_without_natural_clients_say_none():
    for name in SMALL.keys() - {"digits"}:
        assert load(name).group is None and load(name).group_test is None


def test_the_split_follows_the_seed():
    a, b, c = load("digits", seed=0), load("digits", seed=0), load("digits", seed=1)
    assert torch.equal(a.x, b.x) and torch.equal(a.y_test, b.y_test)
    assert not torch.equal(a.x, c.x)


# -- through torchvision --------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    """LeCun's IDX format for unsigned bytes: 0, 0, 8, dimensions, then sizes, big-endian."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A complete MNIST folder of 20 + 5 small pictures. -> MNIST/raw inside tmp_path"""
    folder, rng = tmp_path / "MNIST" / "raw", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, n in (("train", 20), ("t10k", 5)):
        images, labels = rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def test_files_that_are_there_are_read_without_network(raw, closed_network):
    d = load("mnist", folder=raw.parents[1])
    assert (d.name, d.classes, d.shape) == ("mnist", 10, (28, 28))
    pixels = np.frombuffer((raw / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    assert np.array_equal((d.x * 255).round().numpy().reshape(-1), pixels)
    assert d.y.tolist() == [i % 10 for i in range(20)] and d.y_test.tolist() == [0, 1, 2, 3, 4]
    assert d.x.dtype == torch.float32 and d.y.dtype == torch.int64
    assert not closed_network  # nobody asked the network


def test_the_folder_comes_from_the_environment(raw, closed_network, monkeypatch):
    monkeypatch.setenv("FEDLEARN_DATA", str(raw.parents[1]))
    assert len(load("mnist").y) == 20


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_missing_files_and_no_network(name, tmp_path, closed_network):
    """One message: what failed, why, where the files go, what else works."""
    with pytest.raises(FileNotFoundError) as e:
        load(name, folder=tmp_path)
    assert closed_network  # it did try
    message = str(e.value)
    for words in (name, str(tmp_path), "Network is unreachable", "FEDLEARN_DATA", "fallback="):
        assert words in message
    assert "\n" not in message


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
DAMAGE = {
    "images cut in the middle": (IMAGES, lambda b: b[: len(b) // 2]),
    "images cut in the header": (IMAGES, lambda b: b[:7]),
    "images empty": (IMAGES, lambda b: b""),
    "images are a web page": (IMAGES, lambda b: b"<!DOCTYPE html><title>404</title>" * 9),
    "images of another type": (IMAGES, lambda b: b[:2] + b"\x0d" + b[3:]),
    "images of an unknown type": (IMAGES, lambda b: b[:2] + b"\x0a" + b[3:]),
    "labels cut in the middle": (LABELS, lambda b: b[:-5]),
    "labels empty": (LABELS, lambda b: b""),
    "labels of fewer pictures": (LABELS, lambda b: idx(np.arange(7))),
    "test images cut": ("t10k-images-idx3-ubyte", lambda b: b[:-1]),
    "test labels cut": ("t10k-labels-idx1-ubyte", lambda b: b[:-1]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_called_damaged(damage, raw, closed_network):
    name, spoil = DAMAGE[damage]
    (raw / name).write_bytes(spoil((raw / name).read_bytes()))
    with pytest.raises(FileNotFoundError, match="damaged") as e:
        load("mnist", folder=raw.parents[1])
    assert "delete it" in str(e.value) and str(raw) in str(e.value)


def test_a_damaged_file_falls_back_too(raw, closed_network, capsys):
    (raw / LABELS).write_bytes(b"")
    assert load("mnist", folder=raw.parents[1], fallback="digits").name == "digits (fallback)"
    assert "damaged" in capsys.readouterr().out


def test_a_connection_that_breaks_is_no_traceback(tmp_path, monkeypatch):
    """The server answers and hangs up in the middle of a file."""

    def broken(*args, **kwargs):
        raise http.client.IncompleteRead(b"", 1000)

    monkeypatch.setattr(urllib.request, "urlopen", broken)
    with pytest.raises(FileNotFoundError, match="download failed"):
        load("mnist", folder=tmp_path)


def test_a_silent_server_ends_in_a_timeout(tmp_path, monkeypatch):
    """torchvision sets no timeout: while it downloads, every new socket must have one."""
    seen = []

    def urlopen(*args, **kwargs):
        seen.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(FileNotFoundError, match="timed out"):
        load("mnist", folder=tmp_path)
    assert seen and all(0 < s <= 60 for s in seen)
    assert socket.getdefaulttimeout() is None  # and afterwards as before


def test_downloads_that_overlap_leave_no_timeout_behind(tmp_path, monkeypatch):
    """The first to begin was the first to end: the second put the first one's timeout back."""
    began, go_on = threading.Semaphore(0), threading.Event()

    def urlopen(*args, **kwargs):
        began.release()
        go_on.wait(10)
        raise TimeoutError("timed out")

    def load_quietly(name):
        with contextlib.suppress(FileNotFoundError):
            load(name, folder=tmp_path / name)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    names = ("mnist", "fashion_mnist", "cifar10")
    threads = [threading.Thread(target=load_quietly, args=[name]) for name in names]
    for t in threads:
        t.start()
    assert began.acquire(timeout=10)
    began.acquire(timeout=0.2)  # a second one, if they don't wait for each other
    go_on.set()
    for t in threads:
        t.join(30)
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("how", ["folder", "path", "environment"])
def test_a_tilde_is_the_home_folder(raw, closed_network, monkeypatch, how):
    home = raw.parents[2]
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    at = f"~/{raw.parents[1].name}"
    if how == "environment":
        monkeypatch.setenv("FEDLEARN_DATA", at)
    folder = {"folder": at, "path": Path(at), "environment": None}[how]
    assert len(load("mnist", folder=folder).y) == 20
    assert data.data_folder(folder) == raw.parents[1]


def test_the_fallback_says_so(tmp_path, closed_network, capsys):
    d = load("mnist", folder=tmp_path, fallback="digits")
    real = load("digits")
    assert d.name == "digits (fallback)"
    assert torch.equal(d.x, real.x) and torch.equal(d.y_test, real.y_test)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) <= 2 and not err  # nothing of torchvision's own
    for words in ("mnist", "digits (fallback)", "Network is unreachable"):
        assert words in out


def test_no_fallback_when_the_files_are_there(raw, closed_network, capsys):
    assert load("mnist", folder=raw.parents[1], fallback="digits").name == "mnist"
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(
    not os.environ.get("FEDLEARN_DATA"),
    reason="set FEDLEARN_DATA to a folder with MNIST/raw to test the real MNIST",
)
def test_the_real_mnist(closed_network):
    d = load("mnist")
    assert (d.x.shape[0], d.x_test.shape[0]) == (60_000, 10_000)
    assert d.x[0].numel() == 784 and (d.x.min(), d.x.max()) == (0, 1)
    # LeCun's own counts of the training labels, and the mean grey value everyone normalises by
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(d.y).tolist() == counts
    assert d.x.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert d.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


# -- made up, with its clients ---------------------------------------------------------------------


def test_synthetic_deals_every_example_to_one_client():
    d, parts = data.synthetic(0.5, 0.5)
    assert d.x.shape == (len(d.y), 60) and d.x_test.shape == (len(d.y_test), 60)
    assert d.x.dtype == torch.float32 and d.y.dtype == torch.int64 and d.classes == 10
    assert len(parts) == 30 and np.array_equal(np.concatenate(parts), np.arange(len(d.y)))
    assert min(map(len, parts)) >= 45  # nine in ten of at least 50
    assert len(d.y_test) == pytest.approx(len(d.y) / 9, rel=0.03)


def test_synthetic_follows_the_seed_and_no_other_client():
    (a, held), (b, _), (c, _) = (data.synthetic(1, 1, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.x, b.x) and torch.equal(a.y_test, b.y_test)
    assert a.x.shape != c.x.shape
    few, parts = data.synthetic(1, 1, n_clients=3)
    rows = np.concatenate(held[:3])
    assert torch.equal(few.x, a.x[rows]) and torch.equal(few.y, a.y[rows])
    assert [len(p) for p in parts] == [len(p) for p in held[:3]]


def test_synthetic_has_the_papers_moments():
    """Within a client variances j^-1.2; between clients' means of means beta + 1/60, a variance."""
    d, parts = data.synthetic(0, 4, n_clients=200)
    own = [d.x[p].double() for p in parts]
    spread = torch.stack([x.var(0) for x in own])
    want = torch.arange(1, 61).double() ** -1.2
    assert torch.allclose(spread.mean(0), want, rtol=0.1)
    middle = torch.stack([x.mean() for x in own])
    assert middle.var().item() == pytest.approx(4 + 1 / 60, rel=0.4)  # four standard errors


def test_alpha_moves_all_scores_alike():
    """The published recipe's own flaw: no label follows alpha."""
    (a, _), (b, _) = data.synthetic(0, 1), data.synthetic(9, 1)
    assert torch.equal(a.x, b.x)
    assert (a.y != b.y).sum() <= 2  # ties, at float precision


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": -1},
        {"alpha": float("nan")},
        {"beta": float("inf")},
        {"n_clients": 0},
        {"n_clients": 2.5},
        {"n_clients": True},
    ],
    ids=str,
)
def test_synthetic_refuses(wrong):
    with pytest.raises(ValueError, match=rf"^synthetic: {next(iter(wrong))} must be .*, got "):
        data.synthetic(**{"alpha": 1, "beta": 1, **wrong})


# -- cases: cars and machines ---------------------------------------------------------------------


def test_two_cars_alone_hold_the_rare_sign():
    signs, cars = data.drivers()
    assert len(cars) == 40 and np.array_equal(np.concatenate(cars), np.arange(len(signs.y)))
    rare = [int((signs.y[own] == 8).sum()) for own in cars]
    assert rare == [12, 12] + [0] * 38
    others = [len(own) - r for own, r in zip(cars, rare)]
    assert max(others) - min(others) == 1
    assert sum(others) == int((load("digits").y != 8).sum())
    assert signs.shape == (8, 8) and signs.x.min() >= 0 and signs.x.max() <= 1
    assert "proxy" in signs.about


def test_a_quarter_of_the_cars_drives_in_each_weather():
    signs, cars = data.drivers(seed=3)
    weather = [set(signs.group[own].tolist()) for own in cars]
    assert sorted(weather, key=min) == [{kind} for kind in range(4) for _ in range(10)]


def test_cars_see_the_real_digits_through_their_weather():
    """By day as they are, at night 0.4 as bright; a picture belongs to one car."""
    (signs, _), digits = data.drivers(seed=2), load("digits", seed=2)
    real = {tuple(v) for v in digits.x.tolist()}
    for kind, factor in ((0, 1.0), (1, 0.4)):
        mine = signs.x[signs.group == kind]
        bright = {tuple(v) for v in (digits.x * factor).tolist()}
        assert len(mine) > 300 and {tuple(v) for v in mine.tolist()} <= bright
    foggy = signs.x[signs.group == 2].tolist()
    assert not real & {tuple(v) for v in foggy}


def test_every_test_sign_is_there_in_each_weather():
    from fedlearn.skew import rotate

    (signs, _), digits = data.drivers(), load("digits")
    day, night, fog, tilted = signs.x_test.split(360)
    assert torch.equal(signs.y_test, digits.y_test.repeat(4))
    assert signs.group_test.tolist() == [kind for kind in range(4) for _ in range(360)]
    assert torch.equal(day, digits.x_test) and torch.equal(night, 0.4 * digits.x_test)
    grey = (day > 0.4) & (day < 0.6)  # two standard deviations from where it is cut
    assert (fog - day)[grey].mean().abs() < 0.02
    assert (fog - day)[grey].std().item() == pytest.approx(0.25, rel=0.08)  # cut: a little less
    assert torch.equal(tilted, rotate(day, [np.arange(360)], [25.0], (8, 8)))


def test_who_saw_the_rare_sign_moves_no_other_picture():
    (none, cars), (ten, _) = data.drivers(holders=0), data.drivers(holders=10)
    assert not (none.y == 8).any() and int((ten.y == 8).sum()) == 120
    assert torch.equal(none.x, ten.x[ten.y != 8])  # the fog, too
    assert torch.equal(none.y, ten.y[ten.y != 8])
    assert torch.equal(none.x_test, ten.x_test)
    assert len(cars) == 40 and torch.equal(none.x, data.drivers(holders=0)[0].x)
    assert not torch.equal(none.x, data.drivers(holders=0, seed=1)[0].x)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_clients": 0},
        {"n_clients": 42},
        {"n_clients": 404},
        {"n_clients": 40.0},
        {"holders": -1},
        {"holders": 12},
        {"holders": 1.5},
        {"holders": 5, "n_clients": 4},
    ],
    ids=str,
)
def test_drivers_refuses(wrong):
    argument = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"^drivers: {argument} must be .*, got "):
        data.drivers(**wrong)


def test_machines_hold_health_and_one_fault_at_most():
    windows, rotors = data.machines()
    counts = [windows.y[own].bincount(minlength=4).tolist() for own in rotors]
    want = {0: [60, 20, 0, 0], 1: [60, 0, 20, 0], 2: [60, 0, 0, 20], 3: [60, 0, 0, 0]}
    assert counts == [want[k % 4] for k in range(12)]
    assert [windows.group[own].unique().tolist() for own in rotors] == [[k] for k in range(12)]
    for k in range(12):
        assert windows.y_test[windows.group_test == k].bincount().tolist() == [25] * 4
    assert windows.x.dtype == torch.float32 and windows.x.isfinite().all()
    assert "simulation" in windows.about


def test_machines_follow_the_seed_and_no_other_machine():
    (a, _), (b, _), (c, _) = (data.machines(seed=s) for s in (0, 0, 1))
    assert torch.equal(a.x, b.x) and torch.equal(a.x_test, b.x_test)
    assert not torch.equal(a.x, c.x)
    few, rotors = data.machines(n_clients=3)
    assert torch.equal(few.x, a.x[: len(few.x)]) and torch.equal(few.x_test, a.x_test[:300])
    assert [len(own) for own in rotors] == [80, 80, 80]


def test_features_of_two_sines_are_those_of_the_formula():
    """Amplitudes 0.8 at f and 0.3 at 3f: a Hann window's line is a quarter of an amplitude."""
    t = np.arange(512) / 2560
    v = 0.8 * np.sin(2 * np.pi * 30 * t) + 0.3 * np.sin(2 * np.pi * 90 * t + 1)
    rms, kurtosis, crest, one, two, three, low, high = np.exp(features(v[None], 30.0)[0])
    assert rms == pytest.approx(np.sqrt(0.8**2 / 2 + 0.3**2 / 2), rel=0.01)
    assert kurtosis == pytest.approx(((v - v.mean()) ** 4).mean() / v.var() ** 2)
    assert crest == pytest.approx(np.abs(v).max() / rms)
    assert one == pytest.approx(0.8 / 4, rel=0.01) and three == pytest.approx(0.3 / 4, rel=0.01)
    assert two < 0.001 and low < 0.001 and high < 0.001
    ring = 0.5 * np.sin(2 * np.pi * 900 * t)  # a line of 0.125, half of it in two bins beside it
    assert np.exp(features(ring[None], 30.0)[0, 7]) == pytest.approx(0.25 / 120, rel=0.1)


def test_a_gain_shifts_features_and_shapes_none():
    v = np.random.default_rng(0).normal(size=(5, 512))
    shift = features(7 * v, 20.0) - features(v, 20.0)
    want = np.log(7) * np.array([1, 0, 0, 1, 1, 1, 1, 1])
    assert np.allclose(shift, want, atol=1e-2)


def test_faults_show_where_the_formulas_put_them():
    windows, _ = data.machines(n_clients=40, seed=5)
    x, of = windows.x_test.double(), windows.group_test
    mean = lambda state: torch.stack(
        [x[(of == k) & (windows.y_test == state)].mean(0) for k in range(40)]
    )
    healthy, imbalance, bearing, misaligned = map(mean, range(4))
    v = torch.linspace(0.6, 1.4, 1001, dtype=torch.float64)
    rise = (imbalance - healthy).mean(0)
    assert rise[3].item() == pytest.approx(torch.log(1 + 1.2 * v).mean().item(), abs=0.03)
    assert rise[4:].abs().max() < 0.12  # its neighbours stay
    assert (bearing - healthy).mean(0)[7] > 0.3 and (misaligned - healthy).mean(0)[4] > 0.5
    assert (misaligned - healthy).mean(0)[3].abs() < 0.12


@pytest.mark.parametrize("wrong", [0, 2.5, True], ids=str)
def test_machines_refuses(wrong):
    with pytest.raises(ValueError, match=r"^machines: n_clients must be .*, got "):
        data.machines(n_clients=wrong)


# -- the plan -------------------------------------------------------------------------------------


@st.composite
def plans(draw):
    """Clients of 1 to 12 scattered examples each, and how to train them."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=8))
    rows = np.random.default_rng(draw(st.integers(0, 99))).permutation(sum(sizes) + 5)
    parts = np.split(rows[: sum(sizes)], np.cumsum(sizes)[:-1])
    how = {
        "batch": draw(st.none() | st.integers(1, 15)),
        "epochs": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 2**40)),
        "round": draw(st.integers(0, 500)),
    }
    cohort = draw(st.permutations(range(len(sizes))))[: draw(st.integers(1, len(sizes)))]
    return parts, np.array(cohort), how


def steps(index, mask, i):
    """What client i really does: its non-empty batches, in order."""
    both = zip(index[i], mask[i], strict=True)
    return [rows[real > 0].tolist() for rows, real in both if real.any()]


@given(plans())
def test_every_example_is_seen_once_an_epoch(plan):
    parts, cohort, how = plan
    index, mask, n = schedule(parts, cohort, **how)
    assert index.shape == mask.shape and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert n.tolist() == [len(parts[k]) for k in cohort]
    for i, k in enumerate(cohort):
        own = sorted(parts[k].tolist())
        per_epoch = -(-len(own) // (how["batch"] or len(own)))
        batches = steps(index, mask, i)
        assert len(batches) == how["epochs"] * per_epoch
        for e in range(how["epochs"]):
            epoch = batches[e * per_epoch : (e + 1) * per_epoch]
            assert sorted(functools.reduce(operator.iadd, epoch, [])) == own
            full = how["batch"] or len(own)
            assert all(len(b) == full for b in epoch[:-1]) and 0 < len(epoch[-1]) <= full
        assert set(index[i].flatten().tolist()) <= set(own)  # the padding too is the client's own


@given(plans())
def test_a_clients_plan_does_not_depend_on_the_cohort(plan):
    parts, cohort, how = plan
    index, mask, _ = schedule(parts, cohort, **how)
    for i, k in enumerate(cohort):
        alone = schedule({int(k): parts[k]}, np.array([k]), **how)
        assert steps(index, mask, i) == steps(alone[0], alone[1], 0)


def test_the_order_changes_with_seed_round_and_epoch():
    parts = [np.arange(50)]
    how = {"batch": None, "epochs": 2, "seed": 0, "round": 0}
    index = schedule(parts, np.array([0]), **how)[0]
    first, second = index[0].tolist()
    assert first != second
    for other in ({"seed": 1}, {"round": 1}):
        assert schedule(parts, np.array([0]), **{**how, **other})[0][0, 0].tolist() != first


def test_every_order_is_as_likely_as_any_other():
    """Three examples, 3000 rounds: each of the six orders about 500 times (chi² at p = 1e-4)."""
    parts, how = [np.arange(3)], {"batch": None, "epochs": 1, "seed": 5}
    seen = [
        tuple(schedule(parts, np.array([0]), round=t, **how)[0].flatten().tolist())
        for t in range(3000)
    ]
    counts = np.array([seen.count(order) for order in sorted(set(seen))])
    assert len(counts) == 6
    assert ((counts - 500) ** 2 / 500).sum() < 25.7


def test_batches_are_the_rows_that_the_plan_names(monkeypatch):
    """Also when the round is gathered in several blocks."""
    monkeypatch.setattr(batches, "_GATHER", 40)
    x, y = torch.arange(60.0).reshape(20, 3), torch.arange(20)
    parts = [np.arange(0, 9), np.arange(9, 20)]
    plan = schedule(parts, np.arange(2), batch=4, epochs=2, seed=0, round=0)
    got = list(Shards(x, y, *plan).batches())
    assert len(got) == plan[0].shape[1]
    for t, (bx, by, mask) in enumerate(got):
        assert torch.equal(by, plan[0][:, t]) and torch.equal(mask, plan[1][:, t])
        assert torch.equal(bx, x[plan[0][:, t]])


# -- randomness as a value ------------------------------------------------------------------------


def test_a_draw_depends_on_its_whole_path():
    """Zeros at the end count, and a seed above 2**32 is no path of two."""
    paths = [(0,), (1,), (0, Use.SAMPLE), (0, Use.SHUFFLE), (0, 0, 1), (0, 1, 0), (0, 0, 0, 1)]
    paths += [(0, 0, 0), (2**32,), (2**64,)]
    draws = {numpy_rng(*path).integers(0, 2**62) for path in paths}
    assert len(draws) == len(paths)


def test_seeds_next_to_each_other_are_unrelated():
    """A keyed hash of (example ^ seed) would only swap neighbours between seed 0 and seed 1."""
    a, b = hashed(np.arange(64_000), 0, 1), hashed(np.arange(64_000), 1, 1)
    assert not set(a.tolist()) & set(b.tolist())
    assert abs(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1]) < 0.02


def test_hashed_bits_look_random():
    """64,000 keys in a row: no collision, and each of the 64 bits is set half of the time."""
    bits = hashed(np.arange(64_000), 0, 1)
    assert len(set(bits.tolist())) == 64_000
    share = ((bits[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean(0)
    assert abs(share - 0.5).max() < 0.01  # five standard deviations
    assert not np.array_equal(bits, hashed(np.arange(64_000), 1, 0))
