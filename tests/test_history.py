"""A run's history says what it is, and goes to files and back without losing a bit."""

from __future__ import annotations

import csv
import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from problems import METHODS, problem
from runs import KINDS, ROUNDS, look, start

from fedlearn import History, Recipe, Round, Simulated, collect, federate
from fedlearn.history import OWN

nan, inf = math.nan, math.inf


def round_(t=0, **kw):
    none = np.zeros(0, int)
    theta = torch.zeros(2)
    plain = {"t": t, "theta": theta, "answered": none, "rows": theta[:0], "p": theta[:0],
             "loss": 1.5, "sent": 8, "received": 8, "metrics": {}, "called": none}  # fmt: skip
    return Round(**{**plain, **kw})


HARD = {
    "round": [1, 2, 3, 4],
    "bytes": [10, 10**15 + 1, 2**53 - 1, 2**60],
    "train_loss": [0.1, nan, inf, -inf],
    "tiny": [5e-324, -0.0, 0.1 + 0.2, 1.7976931348623157e308],
    "a, b": [1e16, 1e-7, 1 / 3, -1e22],
    'quote " and é θ': [nan, nan, nan, nan],
}


# -- what it says ----------------------------------------------------------------------------------


def test_it_says_what_it_is():
    h = collect(start("fedavg", evaluate=lambda theta: {"accuracy": 0.875}, every=1))
    said = repr(h)
    assert said.startswith("History of 5 rounds; at the last: ")
    assert "accuracy 0.875" in said and f"train_loss {h['train_loss'][-1]:.4g}" in said
    assert "given up" not in said and "early" not in said and "object at" not in said
    assert str(History()) == "History of 0 rounds"


def test_it_says_how_it_ended():
    said = repr(History(HARD, None, "by hand", {1: "krum: too few", 2: "lost"}))
    assert "2 given up: 1, 2" in said and "ended early: by hand" in said and "nan" in said


def test_a_column_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match="no column 'acc'; there are round, bytes"):
        History(HARD)["acc"]
    with pytest.raises(ValueError, match="there are none"):
        History()["acc"]


# -- what it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["round", "bytes", "train_loss", "seconds"])
def test_a_metric_named_like_its_own_columns_is_refused(name, tmp_path):
    assert set(OWN) == {"round", "bytes", "train_loss", "seconds"}
    run = start("fedavg", evaluate=lambda theta: {"loss": 1.0, name: 2.0}, every=2)
    next(run)  # not evaluated: nothing is wrong yet
    with pytest.raises(ValueError, match=f"History: a metric must be none of .* got '{name}'") as e:
        next(run)
    assert f"e.g. a metric='test_{name}'" in str(e.value) and len(run.history) == 1 and run.t == 1
    with pytest.raises(ValueError, match="must be none of"):
        History().add(round_(metrics={name: 1.0}))
    run.evaluate = look
    assert len(collect(run)) == ROUNDS


@pytest.mark.parametrize("value", [None, "0.9", [0.9], np.array([0.1, 0.2]), torch.ones(2), {}])
def test_a_metric_that_is_no_number_is_refused(value):
    run = start("fedavg", evaluate=lambda theta: {"accuracy": value}, every=1)
    with pytest.raises(ValueError, match=r"History: metrics\['accuracy'\] must be a number"):
        next(run)
    assert len(run.history) == 0 and run.history.columns == {}


@pytest.mark.parametrize(
    "value", [np.float64(0.1), np.float32(0.1), np.int64(3), torch.tensor(0.1), np.array([0.5]), 3]
)
def test_numbers_of_numpy_and_torch_become_pythons(value, tmp_path):
    run = start("fedavg", evaluate=lambda t: {"m": value}, every=1, checkpoint=tmp_path / "a")
    h = collect(run)
    assert {type(v) for v in h.columns["m"]} <= {float, int}
    assert h["m"].tolist() == [float(np.asarray(value).item())] * ROUNDS
    assert start("fedavg", resume=tmp_path / "a").history == h


# -- its numbers -----------------------------------------------------------------------------------


def test_its_numbers_are_the_rounds_numbers():
    """Against a plain loop over the rounds of another run."""
    how = {"evaluate": look, "every": 2}
    h = collect(start("dropouts, stragglers, a clock", **how))
    moved, clock = 0, 0.0
    for i, r in enumerate(start("dropouts, stragglers, a clock", **how)):
        moved += r.sent * len(r.called) + r.received * len(r.answered)
        clock += 0.0 if math.isnan(r.seconds) else r.seconds
        assert h["round"][i] == i + 1 and h["bytes"][i] == moved
        assert h["train_loss"][i] == r.loss or math.isnan(r.loss)
        assert h["seconds"][i] == pytest.approx(clock, rel=1e-12)
        assert math.isnan(h["norm"][i]) == (i % 2 == 0 and i != 4)
        if r.metrics:
            assert h["norm"][i] == r.metrics["norm"] == float(r.theta.norm())
    assert len(h) == ROUNDS and torch.equal(h.theta, r.theta)


def test_a_metric_that_comes_later_is_nan_before():
    h = History()
    for t, metrics in enumerate([{}, {"a": 1.0}, {"b": 2.0}, {"a": 3.0}]):
        h.add(round_(t, metrics=metrics))
    np.testing.assert_array_equal(h["a"], [nan, 1, nan, 3])
    np.testing.assert_array_equal(h["b"], [nan, nan, 2, nan])
    assert len(h) == 4


def test_a_round_may_be_added_twice_if_the_first_try_was_cut_off():
    whole, cut = History(), History()
    for t in range(3):
        r = round_(t, metrics={"m": t / 3, f"new{t}": 1.0}, seconds=0.5)
        whole.add(r)
        before = len(cut)
        cut.add(r)
        cut.columns["round"].pop()  # Ctrl-C before the last column, "round", was written
        if t == 1:
            cut.columns["m"].pop()
        assert len(cut) == before
        cut.add(r)
    assert cut == whole and torch.equal(cut.theta, r.theta)


@pytest.mark.parametrize("name", ["round", "bytes", "train_loss", "seconds", "m"])
@pytest.mark.parametrize("behind", [False, True])
def test_ctrl_c_at_any_column_of_a_round(name, behind):
    class Cut(list):
        def __setitem__(self, key, value):
            if behind:
                super().__setitem__(key, value)
            cut.columns[name] = list(self)
            raise KeyboardInterrupt

    whole, cut = History(), History()
    for t in range(2):
        r = round_(t, metrics={"m": t / 3}, seconds=0.5)
        whole.add(r)
        if t:
            cut.columns[name] = Cut(cut.columns[name])
            with pytest.raises(KeyboardInterrupt):
                cut.add(r)
        if len(cut) == t:  # as a run does, see Run._settle
            cut.add(r)
    assert cut == whole and torch.equal(cut.theta, whole.theta)


# -- there and back --------------------------------------------------------------------------------


def histories():
    yield "empty", History()
    yield "hard", History(HARD)
    yield "one round", History({k: v[:1] for k, v in HARD.items()})
    yield "numpy", History({"round": [1, 2], "m": [np.float32(0.1), np.float64(nan)]})
    for kind in ("fedavg", "private", "asynchronous", "poisson, some rounds empty"):
        yield kind, collect(start(kind))


HISTORIES = dict(histories())
REASONS = {0: 'krum: "too few"', 7: "GridClients: θ is lost\nsecond line"}


def equal(a, b):
    """Not by ==, which is tested here."""
    assert list(a.columns) == list(b.columns)
    for name in a.columns:
        np.testing.assert_array_equal(a[name], b[name], strict=len(a) > 0)
        x, y = ([math.copysign(1, v) for v in h.columns[name] if v == v] for h in (a, b))
        assert x == y, name  # -0.0
    assert (a.stopped, a.failed) == (b.stopped, b.failed)


@pytest.mark.parametrize("name", HISTORIES)
def test_json_and_back(name, tmp_path):
    h = HISTORIES[name]
    h = History(h.columns, h.theta, 'ended "early"\n', REASONS)
    text = h.to_json()
    for back in (History.from_json(text), History.from_json(json.dumps(json.loads(text)))):
        equal(back, h)
        assert back == h
    assert h.to_json(tmp_path / "h.json") == text
    assert (
        History.from_json(tmp_path / "h.json") == h == History.from_json(str(tmp_path / "h.json"))
    )


@pytest.mark.parametrize("name", HISTORIES)
def test_csv_and_back(name, tmp_path):
    h = HISTORIES[name]
    h = History(h.columns)
    assert h.to_csv(tmp_path / "h.csv") == tmp_path / "h.csv"
    back = History.from_csv(tmp_path / "h.csv")
    equal(back, h)
    assert back == h
    with open(tmp_path / "h.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(h.columns) and len(rows) == 1 + len(h)


def test_integers_stay_integers(tmp_path):
    h = History(HARD)
    h.to_csv(tmp_path / "h.csv")
    for back in (History.from_json(h.to_json()), History.from_csv(tmp_path / "h.csv")):
        assert back.columns["bytes"] == HARD["bytes"]
        assert {type(v) for v in back.columns["bytes"]} == {int}


COUNTS = {"round": [1, 2], "correct": [nan, 93]}  # a metric of integers, evaluated every 2 rounds


@pytest.mark.parametrize("columns", [HARD, COUNTS, {}, dict(HISTORIES["fedavg"].columns)])
def test_pandas_and_back(columns):
    pd = pytest.importorskip("pandas", reason="pandas is no dependency: to_frame() for who has it")
    h = History(columns)
    frame = h.to_frame()
    assert isinstance(frame, pd.DataFrame) and list(frame.columns) == list(columns)
    assert len(frame) == len(h)
    assert History(frame) == h


class Frame:
    """What is used of a DataFrame, with what makes one differ from a dict of lists."""

    def __init__(self, columns):
        self.columns = {k: np.array(v) for k, v in columns.items()}  # 93 and NaN are floats then

    def __iter__(self):
        return iter(self.columns)

    def __getitem__(self, name):
        return self.columns[name]

    def __len__(self):
        return max(map(len, self.columns.values()), default=0)

    def __bool__(self):
        raise ValueError("The truth value of a DataFrame is ambiguous.")


@pytest.mark.parametrize("columns", [HARD, COUNTS, {}])
def test_a_stand_in_for_pandas_and_back(columns, monkeypatch):
    """Runs every line where pandas is not installed; the test above is the real one."""
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=Frame))
    h = History(columns)
    frame = h.to_frame()
    assert isinstance(frame, Frame) and len(frame) == len(h)
    assert History(frame) == h


# -- what is equal ---------------------------------------------------------------------------------


def test_equal_is_equal_in_every_number_and_word():
    h = History(HARD, None, "a", {1: "b"})
    assert h == History({k: list(v) for k, v in HARD.items()}, torch.ones(1), "a", {1: "b"})
    assert h != History(HARD, None, "other", {1: "b"})
    assert h != History(HARD, None, "a", {1: "c"})
    assert h != History(HARD, None, "a", {2: "b"})
    assert h != History(HARD, None, "a") and h != "a" and h != HARD
    for name, column in HARD.items():
        for i, v in enumerate(column):
            for other in (0.5, nan, inf):
                if v == other or (v != v and other != other):
                    continue
                changed = {**HARD, name: [*column[:i], other, *column[i + 1 :]]}
                assert h != History(changed, None, "a", {1: "b"}), (name, i, other)
    assert h != History({k: v for k, v in HARD.items() if k != "tiny"}, None, "a", {1: "b"})
    assert h != History({**HARD, "more": [1.0] * 4}, None, "a", {1: "b"})


def test_a_history_does_not_write_into_what_it_was_made_of():
    columns, failed = {"round": [1], "loss": [1.0]}, {}
    h = History(columns, None, "", failed)
    h.add(round_(1))
    h.failed[3] = "why"
    assert columns == {"round": [1], "loss": [1.0]} and failed == {}


@pytest.mark.parametrize("kind", ["fedavg", "asynchronous", "private"])
def test_a_resumed_runs_history_goes_through_files_like_any_other(kind, tmp_path):
    run = start(kind, checkpoint=tmp_path / "a")
    next(run), next(run)
    again = collect(start(kind, resume=tmp_path / "a"))
    whole = collect(start(kind))
    equal(History.from_json(again.to_json()), whole)
    assert kind in KINDS


def test_evaluate_is_called_once_a_round_that_is_due():
    p, task, calls = problem(), problem().closed_form, []
    recipe = Recipe(METHODS["fedavg"](task), task.theta0, seed=3)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    evaluate = lambda theta: calls.append(1) or {"n": len(calls)}
    h = collect(federate(clients, rounds=7, evaluate=evaluate, every=3))
    np.testing.assert_array_equal(h["n"], [nan, nan, 1, nan, nan, 2, 3])
