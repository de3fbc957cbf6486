"""Panels without a browser: widgets are ordinary objects, a moved slider is a set ``value``."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import subprocess
import sys
import threading
import time
from dataclasses import replace

import ipywidgets as W
import numpy as np
import pytest
import torch

from fedlearn import (
    Diverged,
    History,
    Recipe,
    Simulated,
    algorithms,
    data,
    federate,
    partition,
    plots,
    privacy,
)
from fedlearn.aggregate import krum, mean
from fedlearn.model import evaluator, softmax_regression
from fedlearn.panels import (
    Curve,
    Dots,
    Engine,
    Explorable,
    Holdings,
    Panel,
    Plane,
    Settings,
    code,
    controls,
    explorable,
    frames,
    grid,
    kernel,
)
from fedlearn.panels.federated import frames as frames_file
from fedlearn.panels.federated import panel as panel_file
from fedlearn.panels.federated.controls import SHOWN
from fedlearn.panels.federated.frames import References, setup
from fedlearn.panels.federated.settings import FEATURES, PARTITIONS
from fedlearn.panels.figure import figure, png
from fedlearn.panels.parts import base, plane, ranges
from fedlearn.panels.words import changed
from fedlearn.participation import poisson
from fedlearn.rng import Use, numpy_rng
from fedlearn.transform import chain


def run(lr=0.1, clients=2, alpha=0.5):
    """A fake run whose loss tells which parameters made it."""
    for t in itertools.count():
        yield {"loss": lr + alpha, "t": t, "clients": np.full(clients, lr)}


def threads():
    return [t for t in threading.enumerate() if t.name == "fedlearn-panel"]


def until(true, seconds=5.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


@pytest.fixture
def engine():
    made = []

    def make(source=run, params=None, **kw):
        e = Engine(source, params or {"lr": 0.1}, **{"rounds": 20, "settle": 0.0, **kw})
        made.append(e)
        return e

    yield make
    for e in made:
        e.close()


@pytest.fixture
def panel():
    made = []

    def make(**kw):
        p = Panel(**{"rounds": 4, "clients": 6, "epochs": 1, "seconds": 0.05, **kw})
        made.append(p)
        return p

    yield make
    for p in made:
        p.close()


# -- the engine -----------------------------------------------------------------------------------


def test_a_run_has_a_start_and_its_rounds(engine):
    e = engine()
    e.run()
    s = e.wait()
    assert s.columns["t"].tolist() == list(range(21)) and (s.round, s.state) == (20, "done")
    assert s.latest["clients"].shape == (2,) and "clients" not in s.columns


def test_a_change_starts_a_run_whatever_the_state(engine):
    e = engine()
    e.set(lr=0.2)  # idle
    assert e.wait().columns["loss"][-1] == 0.7
    e.set(lr=0.3)  # done
    s = e.wait()
    assert s.columns["loss"].tolist() == [0.8] * 21 and s.gen == 3
    assert e.set(lr=0.3) is False  # no change


def test_the_latest_of_a_storm_wins_and_stale_rounds_are_dropped(engine):
    e = engine(rounds=200)
    writers = [threading.Thread(target=lambda k=k: e.set(lr=float(k))) for k in range(2, 60)]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    e.set(lr=100.0)
    s = e.wait()
    assert s.params == {"lr": 100.0} and set(s.columns["loss"]) == {100.5} and s.round == 200


def test_commands_from_many_threads_leave_it_sound(engine):
    e = engine(rounds=30)
    rng = np.random.default_rng(0)
    todo = [
        [e.run, e.pause, e.step, e.reset, lambda k=k: e.set(lr=float(k))][rng.integers(5)]
        for k in range(300)
    ]
    workers = [threading.Thread(target=lambda i=i: [f() for f in todo[i::6]]) for i in range(6)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    e.reset()
    e.set(lr=-1.0)
    assert e.wait().columns["loss"].tolist() == [-0.5] * 31


def test_pause_holds_and_run_goes_on(engine):
    e = engine(rounds=60, pace=0.01)
    e.run()
    until(lambda: e.snapshot().round > 3)
    e.pause()
    n = e.wait("paused").round
    time.sleep(0.05)
    assert e.snapshot().round == n < 60
    e.run()
    assert e.wait().round == 60 and e.snapshot().gen == 1


def test_a_change_while_paused_shows_round_0_and_stays_paused(engine):
    shown = []
    e = engine(rounds=60, pace=0.01, on_frame=shown.append)
    e.run()
    until(lambda: e.snapshot().round > 3)
    e.pause()
    e.wait("paused")
    e.set(lr=9.0)
    s = e.wait("paused")
    assert (s.round, s.state, s.columns["loss"].tolist()) == (0, "paused", [9.5])
    assert shown[-1].columns["loss"].tolist() == [9.5]


def test_steps_are_one_round_each(engine):
    e = engine(rounds=3)
    for n in (1, 2):
        e.step()
        assert e.wait("paused").round == n
    e.step()
    assert e.wait("done").round == 3
    e.step()  # a finished run begins again
    assert e.wait("paused").round == 1


def test_reset_is_round_0_at_rest(engine):
    e = engine()
    e.run()
    e.wait()
    e.reset()
    s = e.wait("idle")
    assert (s.round, s.state, len(s.columns["loss"])) == (0, "idle", 1)
    e.step()
    assert e.wait("paused").round == 1


@pytest.mark.alone
def test_the_first_frame_comes_at_once_and_the_rest_is_capped(engine):
    shown = []
    e = engine(rounds=100, pace=0.005, fps=10, on_frame=lambda s: shown.append(time.perf_counter()))
    t = time.perf_counter()
    e.run()
    until(lambda: shown)
    assert shown[0] - t < 0.1
    e.wait()
    assert len(shown) <= 10 * (time.perf_counter() - t) + 2


@pytest.mark.alone
def test_a_run_paced_at_the_frame_rate_shows_nearly_every_round(engine):
    """A round that ends a little early must not cost its frame: a third was lost once."""
    shown, rng = [], np.random.default_rng(0)

    def uneven(lr):
        while True:
            time.sleep(rng.uniform(0, 0.02))
            yield {"loss": lr}

    e = engine(uneven, rounds=40, pace=0.04, fps=25, on_frame=lambda s: shown.append(s.round))
    e.run()
    e.wait()
    assert len(shown) >= 36, f"{len(shown)} of 41 frames"


@pytest.mark.alone
def test_runs_by_the_button_are_paced_and_runs_by_a_slider_are_not(engine):
    e = engine(rounds=20, pace=0.02)
    t = time.perf_counter()
    e.run()
    e.wait()
    assert time.perf_counter() - t > 0.35
    t = time.perf_counter()
    e.set(lr=3.0)
    e.wait()
    assert time.perf_counter() - t < 0.3


def test_an_error_is_kept_in_words_with_the_history_and_the_next_change_recovers(engine):
    def breaks(lr):
        for t in range(100):
            if lr > 5 and t == 3:
                raise ValueError("lr is too large, e.g. 0.1")
            yield {"loss": lr}

    e = engine(breaks)
    e.set(lr=10.0)
    s = e.wait("error")
    assert s.error == "lr is too large, e.g. 0.1" and s.round == 2
    e.set(lr=1.0)
    s = e.wait()
    assert (s.state, s.error, s.round) == ("done", "", 20)
    assert len(threads()) == 1


def test_an_error_in_make_and_a_strange_one(engine):
    def no(lr):
        raise KeyError("x")

    e = engine(no)
    e.run()
    assert e.wait("error").error == "KeyError: 'x'"


def test_a_picture_that_fails_does_not_end_the_thread(engine):
    def bad(s):
        if s.params["lr"] == 7.0:
            raise RuntimeError("no picture")

    e = engine(on_frame=bad)
    e.set(lr=7.0)
    assert "no picture" in e.wait().error
    e.set(lr=8.0)
    assert e.wait().error == ""


def test_the_ghost_is_the_last_run_that_got_somewhere(engine):
    e = engine()
    e.set(lr=1.0)
    e.wait()
    assert e.snapshot().ghost is None
    e.set(lr=2.0)
    assert e.wait().ghost.params == {"lr": 1.0}
    e.reset()  # the same parameters again: no news, the ghost stays
    e.run()
    assert e.wait().ghost.params == {"lr": 1.0}
    e.set(lr=3.0)
    assert e.wait().ghost.columns["loss"][-1] == 2.5


@pytest.mark.alone
def test_a_drag_does_not_replace_the_ghost(engine):
    e = engine(rounds=1000, settle=0.5)
    e.set(lr=1.0)
    e.wait()
    for k in range(40):  # forty short runs in a drag, some of them complete
        e.set(lr=2.0 + k)
        time.sleep(0.005)
    assert e.wait().ghost.params == {"lr": 1.0}


def test_a_missing_scalar_is_nan_and_a_callable_is_called_when_shown(engine):
    calls = []

    def sparse(lr):
        yield {"loss": 1.0, "drift": float("nan")}
        for t in range(50):
            yield {"drift": 2.0, "late": lambda t=t: calls.append(t) or t}

    e = engine(sparse, rounds=50, fps=5)
    e.set(lr=2.0)
    s = e.wait()
    assert np.isnan(s.columns["loss"][1]) and s.latest["late"] == 49 and len(calls) < 10


def test_closing_ends_the_thread_and_gives_threads_back(engine):
    torch.set_num_threads(2)
    try:
        a, b = engine(rounds=10**9), engine()
        a.run()
        b.compute()
        assert torch.get_num_threads() == 1
        a.close()
        assert a.state == "closed" and not threads() and torch.get_num_threads() == 1
        b.close()
        assert torch.get_num_threads() == 2
        a.set(lr=3.0)
        a.reset()
        assert a.state == "closed"
        with pytest.raises(RuntimeError, match="closed"):
            a.run()
    finally:
        torch.set_num_threads(1)


# -- the panel ------------------------------------------------------------------------------------


def test_the_preview_leaves_no_pane_empty(panel):
    p = panel()
    loss, accuracy, holdings, dots = p.parts
    assert len(loss.y) and len(accuracy.y) and holdings.clients == 6 and len(dots.values) == 24
    assert [line["role"] for line in loss.lines] == ["reference", "run"]
    assert p.readout.round == 4 and p.readout.items[1].endswith("MB sent")
    assert not threads(), "the thread comes with the first command"


def test_a_slider_moves_the_picture_and_leaves_a_ghost(panel):
    p = panel()
    before = p.parts[0].y, p.parts[2].counts
    p.controls["alpha"].value = 100.0
    s = p.engine.wait()
    assert s.params["settings"].alpha == 100.0 and s.round == 4
    assert (p.parts[0].y, p.parts[2].counts) != before
    ghost = next(line for line in p.parts[0].lines if line["role"] == "ghost")
    assert ghost["name"] == "last run (α = 0.1)"


def test_settings_are_checked_once_a_move_and_a_wrong_one_is_said(panel, monkeypatch):
    p, made = panel(show=("lr", "clients", "cohort", "method"), preview=False), []
    check = Settings.__post_init__
    monkeypatch.setattr(Settings, "__post_init__", lambda s: (made.append(s), check(s)))
    p.controls["lr"].value = 0.1
    p.engine.wait()
    assert made == [p.settings()] and p.engine.snapshot().params["settings"] is made[0]
    monkeypatch.setattr(panel_file, "read", lambda *a: {**vars(p._fixed), "lr": -1.0})
    p.controls["lr"].value = 0.2
    assert p.status.error.startswith("panel: lr must be > 0")
    monkeypatch.undo()
    p.controls["lr"].value = 0.3
    assert p.engine.wait().state == "done" and p.status.error == ""


def test_who_holds_what_follows_the_slider_while_paused(panel):
    p = panel(rounds=200, seconds=30.0)
    p.run_button.click()
    until(lambda: p.engine.snapshot().round > 0)
    p.run_button.click()
    p.engine.wait("paused")
    before = p.parts[2].counts
    p.controls["alpha"].value = 10.0
    s = p.engine.wait("paused")
    assert p.parts[2].counts != before and s.round == 0 and s.state == "paused"


def test_the_buttons(panel):
    p = panel()
    p.reset_button.click()
    assert p.engine.wait("idle").round == 0
    p.step_button.click()
    assert p.engine.wait("paused").round == 1
    p.run_button.click()
    assert p.engine.wait("done").round == 4
    assert (p.run_button.description, p.readout.round) == ("Run", 4)
    assert p.status.said.startswith("done. FedAvg on digits, 6 clients")


def test_more_clients_than_examples_is_said_and_the_panel_lives_on(panel):
    p = panel(dataset="wine", partition="shards", shards_each=5)
    p.controls["clients"].value = 100
    p.engine.wait("error")
    assert "100 clients" in p.status.error
    p.controls["clients"].value = 8
    assert p.engine.wait().state == "done" and p.status.error == ""


def test_divergence_is_said_and_the_rounds_before_are_kept(panel, monkeypatch):
    def diverges(*args, **kw):
        yield from itertools.islice(federate(*args, **kw), 2)
        raise Diverged(2, [3], History({}, None))

    monkeypatch.setattr(frames_file, "federate", diverges)
    p = panel()
    s = p.engine.snapshot()
    assert (s.state, s.round, p.readout.round) == ("error", 2, 2)
    assert p.status.error == s.error and "client 3" in s.error and "learning rate" in s.error
    monkeypatch.setattr(frames_file, "federate", federate)
    p.controls["lr"].value = 0.1
    assert p.engine.wait().state == "done" and p.status.error == ""


def test_controls_follow_each_other(panel):
    p = panel()
    assert p.controls["cohort"].max == 6 and p.settings().cohort is None
    p.controls["clients"].value = 30  # everybody stays everybody
    assert p.controls["cohort"].value == 30 and p.settings().cohort is None
    p.controls["cohort"].value = 20
    p.controls["clients"].value = 10
    assert (p.controls["cohort"].max, p.controls["cohort"].value) == (10, 10)
    gone = lambda name: "fl-gone" in p.controls[name]._dom_classes
    for split, used in PARTITIONS.items():
        p.controls["partition"].value = split
        skews = ("alpha", "labels_each", "shards_each")
        assert [k for k in skews if not gone(k)] == [used or "alpha"]
        assert gone("size_alpha") == (split != "label_and_quantity")
        assert p.controls["alpha"].disabled == (used != "alpha")
    p.controls["method"].value = "fedsgd"
    assert p.controls["epochs"].disabled and p.controls["batch"].disabled
    p.engine.wait()


def test_hidden_settings_keep_their_value(panel):
    p = panel(show=("lr",), parts=("loss",), batch=None, cohort=3, alpha=0.5, partition="iid")
    assert (p.settings().batch, p.settings().cohort, p.settings().alpha) == (None, 3, 0.5)
    assert [k for k in p.controls if not k.startswith("heading")] == ["lr"]


def test_the_code_makes_the_same_run(panel):
    p = panel(rounds=5, cohort=4, batch=None)
    for move in ({}, {"partition": "shards"}, {"method": "fedsgd", "model": "mlp", "batch": 16}):
        for name, value in move.items():
            p.controls[name].value = value
        if move:
            p.engine.wait()
        s, said = p.engine.snapshot(), io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(code(p.settings()), scope := {})
        assert float(said.getvalue().split()[0]) == pytest.approx(s.columns["loss"][-1], rel=1e-6)
        assert scope["history"]["bytes"][-1] == s.columns["bytes"][-1]
    p.show_code()
    assert p.status.code == code(p.settings()) and max(map(len, p.status.code.split("\n"))) < 100
    p.controls["model"].value = "softmax"
    p.engine.wait()
    assert "softmax_regression" in p.status.code, "the code follows the sliders"
    p.show_code()
    assert p.status.code == ""


def test_saving_never_overwrites(panel, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    p = panel()
    names = [[f.name for f in p.save()] for _ in range(3)]
    assert names[0] == ["fedavg-digits.csv", "fedavg-digits.png"]
    assert names[2] == ["fedavg-digits-2.csv", "fedavg-digits-2.png"]
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(itertools.chain(*names))
    rows = list(csv.DictReader((tmp_path / "fedavg-digits.csv").read_text().splitlines()))
    assert [float(r["loss"]) for r in rows] == p.engine.snapshot().columns["loss"].tolist()
    assert rows[0]["alpha"] == "0.1" and rows[0]["cohort"] == "all"
    assert (tmp_path / "fedavg-digits-2.png").read_bytes()[:4] == b"\x89PNG"
    assert str(tmp_path) in p.status.news
    monkeypatch.chdir("/")
    monkeypatch.setattr(explorable, "claim", lambda *a: (_ for _ in ()).throw(OSError("read-only")))
    p._save()
    assert p.status.news == "Nothing saved: read-only"


def test_the_bundle_degrades(panel):
    p = panel()
    data, meta = p._repr_mimebundle_()
    assert {"image/png", "text/plain", "application/vnd.jupyter.widget-view+json"} <= set(data)
    assert data["text/plain"] == meta["image/png"]["alt"]
    assert data["text/plain"].startswith(
        "FedAvg on digits, 6 clients, Dirichlet by label split, α ="
    )
    assert p._repr_mimebundle_()[0]["image/png"] == data["image/png"]  # made once


def test_closing_leaves_no_model_and_no_thread():
    before = set(W.widgets.widget._instances)
    for kw in ({}, {"show": (), "parts": ("loss",)}, {"preview": False}):
        p = Panel(rounds=3, clients=4, **kw)
        p.engine.run()
        p.close()
    assert set(W.widgets.widget._instances) == before and not threads()


def test_a_cell_that_runs_again_replaces_its_own_panels(monkeypatch):
    here = ["cell-1", "execution-1"]
    monkeypatch.setattr(kernel, "cell", lambda: tuple(here))
    make = lambda: Panel(rounds=2, clients=4, show=("lr",), parts=("loss",))
    a, b = make(), make()  # two in one cell: both live
    a.engine.run()
    assert {a.engine.state, b.engine.state} & {"closed"} == set()
    models = len(W.widgets.widget._instances)
    for n in range(2, 5):
        here[1] = f"execution-{n}"
        c, d = make(), make()
        assert len(W.widgets.widget._instances) == models and not threads()
    assert [x.engine.state for x in (a, b, c, d)] == ["closed", "closed", "done", "done"]
    here[:] = ["cell-2", "execution-9"]
    e = make()
    assert c.engine.state == "done"
    for x in (c, d, e):
        x.close()


def test_bytes_on_the_x_axis(panel):
    p = panel(x="bytes", parts=("loss",))
    sent = p.engine.snapshot().columns["bytes"] / 1e6
    assert p.parts[0].xmax == pytest.approx(sent[-1])
    x = np.frombuffer(p.parts[0].x, np.float32)
    assert np.allclose(x[-5:], sent) and p.parts[0].xlabel == "MB sent"


def timed(pause, n=6):
    """Rounds of unequal length; a reference and a second line with a clock of its own."""
    for t in range(n):
        yield {
            "loss": 2.0 / (t + 1), "seconds": pause * t**1.5, "other": 1.0, "clock": 0.3 * t,
            "reference": {"loss": [2.0, 1.0]},
        }  # fmt: skip


def shown_x(curve, role):
    x, at = np.frombuffer(curve.x, np.float32), 0
    for line in curve.lines:
        if line["role"] == role:
            return x[at : at + line["n"]]
        at += line["n"]
    raise KeyError(role)


def test_a_curve_over_seconds(engine):
    curve = Curve("loss", x="seconds", xlabel="simulated seconds")
    ends = []
    e = engine(
        timed, {"pause": 0.7}, rounds=5,
        on_frame=lambda s: (curve.show(s), ends.append(curve.xmax)), fps=1e6,
    )  # fmt: skip
    e.run()
    e.wait()
    assert np.allclose(shown_x(curve, "run"), 0.7 * np.arange(6) ** 1.5)
    assert curve.xmax == pytest.approx(0.7 * 5**1.5) and curve.xlabel == "simulated seconds"
    assert ends[:-1] == sorted(ends[:-1]), "the axis grows during a run, it doesn't jump"
    assert np.allclose(shown_x(curve, "reference"), [0, curve.xmax / 5])
    e.set(pause=2.1)  # the last run keeps its own seconds
    e.wait()
    assert np.allclose(shown_x(curve, "ghost"), 0.7 * np.arange(6) ** 1.5)
    assert curve.xmax == pytest.approx(2.1 * 5**1.5)
    axes = figure([curve]).axes[0]
    assert axes.get_xlabel() == "simulated seconds" and axes.get_xlim()[1] == curve.xmax


def test_each_line_over_a_column_of_its_own(engine):
    curve = Curve({"A": "loss", "B": "other"}, x={"A": "seconds", "B": "clock"}, xlabel="s")
    curve.show(engine(timed, {"pause": 1.0}, rounds=5).compute())
    assert np.allclose(shown_x(curve, "s1"), 0.3 * np.arange(6))
    assert curve.xmax == pytest.approx(5**1.5)
    with pytest.raises(ValueError, match=r"Curve: x='hours' is no column .* e\.g\."):
        Curve("loss", x="hours").show(engine(timed, {"pause": 1.0}, rounds=5).compute())
    for wrong in ({"A": "seconds"}, "", {"B": "clock", "A": "seconds"}):
        with pytest.raises(ValueError, match=r"Curve: x must .* e\.g\."):
            Curve({"A": "loss", "B": "other"}, x=wrong)


# -- feature skew ---------------------------------------------------------------------------------


@pytest.mark.parametrize("feature", FEATURES)
def test_what_each_client_sees(feature):
    s = Settings(clients=4, feature=feature, amount=0.5, rounds=1, partition="iid")
    made = setup(s)
    other = [k for k, own in enumerate(made.parts)
               if not torch.equal(made.x[own], made.data.x[own])
               or not torch.equal(made.y[own], made.data.y[own])]  # fmt: skip
    wanted = {"none": [], "rotation": [0, 1, 2, 3], "label_swap": [0, 1]}
    assert other == wanted.get(feature, [1, 2, 3]), "evenly from the first client to the last"
    still = setup(Settings(**{**vars(s), "amount": 0.0}))
    assert torch.equal(still.x, made.data.x) and torch.equal(still.y, made.data.y)
    counts = next(frames(s))["counts"]
    assert np.array_equal(counts[0], np.bincount(made.y[made.parts[0]], minlength=10))


@pytest.mark.parametrize("feature", FEATURES)
def test_the_code_of_a_feature_skew_makes_the_same_run(feature):
    s = Settings(clients=5, feature=feature, amount=0.35, rounds=3, epochs=1, seed=3)
    *_, last = frames(s)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code(s), {})
    assert said.getvalue().split() == [str(last["loss"]), str(last["accuracy"])]
    assert max(map(len, code(s).split("\n"))) < 100


@pytest.mark.parametrize("clients", [5, 14, 20])
def test_the_split_by_form_is_the_one_of_the_package_and_its_code_says_so(clients):
    s = Settings(clients=clients, partition="by_attribute", rounds=2, epochs=1, seed=3)
    made = setup(s)
    forms = [set(made.data.group[own].tolist()) for own in made.parts]
    assert all(len(own) == 1 for own in forms) == (clients >= 14)
    *_, last = frames(s)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code(s), {})
    assert said.getvalue().split() == [str(last["loss"]), str(last["accuracy"])]
    assert "by_attribute(d.group, " in code(s) and s.split_words() == "by form split"


def test_clients_are_asked_about_what_they_see_and_say():
    """Half of the clients swap 0 and 1: a model of their own world is right in it."""
    s = Settings(clients=2, feature="label_swap", amount=0.5, cohort=1, rounds=20, partition="iid")
    *_, last = frames(s)
    one, other = last["clients"]()
    assert abs(one - other) > 0.1 and max(one, other) > 0.9


def test_with_a_feature_skew_the_reference_depends_on_who_holds_what():
    kept = References()
    known = lambda **kw: kept.upto(s := Settings(rounds=1, **kw), setup(s), 1)["loss"]
    assert known(alpha=0.1) is known(alpha=10.0) is known(amount=0.9)
    turned = known(feature="rotation", alpha=0.1)
    assert turned is not known(feature="rotation", alpha=10.0) and turned[1] != known()[1]
    assert turned is known(feature="rotation", cohort=3)


def test_the_feature_menu(panel):
    p = panel(dataset="wine", show=("dataset", "feature"), parts=("loss", "holdings"))
    assert p.controls["amount"].disabled and "turned" not in p.caption()
    p.controls["feature"].value = "rotation"
    p.engine.wait("error")
    assert "rotate: needs pictures" in p.status.error and p.parts[1].clients == 0
    p.controls["dataset"].value = "digits"
    s = p.engine.wait()
    assert (s.state, p.status.error) == ("done", "") and not p.controls["amount"].disabled
    assert "turned by -45° to 45°" in p.caption()
    now, before = {"settings": p.settings()}, {"settings": replace(p.settings(), amount=1.0)}
    assert changed(before, now) == " (amount = 1)"
    assert changed({"settings": replace(p.settings(), feature="none")}, now) == " (no shift)"
    assert changed({"alpha": 100.0, "E": 5}, {"alpha": 0.1, "E": 5}) == " (α = 100)"
    iid, shards = {"partition": "iid", "alpha": 1.0}, {"partition": "shards", "alpha": 0.1}
    assert changed(iid, shards) == " (even)", "the skew of one split says nothing about another"
    assert not any("feature" in c for c in (SHOWN, panel(preview=False).controls))


@pytest.mark.parametrize(
    "wrong",
    [
        {"show": ("alpa",)},
        {"feature": "blur"},
        {"amount": 1.5},
        {"amount": True},
        {"amount": float("nan")},
        {"parts": ("los",)},
        {"dataset": "diabetes"},
        {"partition": "dirichlet"},
        {"method": "sgd"},
        {"model": "cnn"},
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"lr": float("inf")},
        {"lr": -1.0},
        {"clients": 0},
        {"clients": 2.5},
        {"epochs": True},
        {"batch": 0},
        {"cohort": 7},
        {"cohort": 0},
        {"rounds": 0},
        {"seed": -1},
        {"clip": 0.0},
        {"noise": -1.0},
        {"rate": 1.5},
        {"budget": 0.0},
        {"method": "dp_fedavg", "pipeline": chain(krum(1))},
        {"x": "time"},
    ],
    ids=lambda wrong: " ".join(f"{k}={v}" for k, v in wrong.items())[:60].partition("Pipeline")[0],
)
def test_wrong_arguments_name_the_rule_and_an_example(wrong):
    before = set(W.widgets.widget._instances)
    with pytest.raises(ValueError, match=r"e\.g\."):
        Panel(**{"clients": 6, "rounds": 2, "preview": False, **wrong})
    for model in set(W.widgets.widget._instances) - before:
        W.widgets.widget._instances[model].close()


def test_the_controls_of_a_full_panel_are_labelled(panel):
    p = panel(preview=False)
    shown = [c for c in p.controls.values() if controls.has_value(c)]
    assert all(c.description and c.tooltip for c in shown)
    own = 7  # pull, server rate, momentum, and of DP-FedAvg four: seen where the method has them
    assert len(shown) == len(SHOWN) + 3 + own  # sizes, labels, shards share the place of the skew


# -- differential privacy --------------------------------------------------------------------------

PRIVATE = {"method": "dp_fedavg", "clients": 20, "partition": "iid", "lr": 0.5, "epochs": 1}


def by_hand(S, z, q, budget, T):
    """Lesson 13's loop: the same clients, their stages and their ledger, without a panel."""
    d, task, N = data.load("digits"), softmax_regression(64, 10), 20
    parts = partition.iid(d.y.numpy(), N, numpy_rng(0, Use.PARTITION))
    stages = privacy.private_mean(S, z, expected=q * N)
    recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, stages, epochs=1)
    test = evaluator(task, d.x_test, d.y_test)
    clients = Simulated(recipe, d.x, d.y, parts)
    how = {"rounds": T, "delta": 1 / N**2, "budget": budget, "evaluate": test}
    return [*privacy.dp_federate(clients, **how)]


def test_a_private_run_is_the_one_by_hand_and_its_epsilon_is_the_accountant_s(panel):
    p = panel(
        **PRIVATE,
        rounds=9,
        noise=1.5,
        rate=0.5,
        clip=0.3,
        budget=3.0,
        show=("privacy", "cohort"),
        parts=("privacy", "accuracy", "epsilon", "noise"),
    )
    s, rounds = p.engine.snapshot(), by_hand(0.3, 1.5, 0.5, 3.0, 9)
    assert s.columns["accuracy"][1:].tolist() == [r.metrics["accuracy"] for r in rounds]
    each = privacy.epsilons(1.5, 0.5, 9, 1 / 400)
    assert s.columns["epsilon"][1:] == pytest.approx(each[: s.round]) and s.round < 9
    assert each[s.round - 1] <= 3.0 < each[s.round], "it ends before the budget is overspent"
    norms = [float(r.deltas.sum(0).norm()) / 10 for r in rounds]
    assert s.columns["updates"][1:] == pytest.approx(norms)
    assert s.columns["noise"][-1] == pytest.approx(1.5 * 0.3 * 650**0.5 / 10)
    assert p.readout.items[2:] == [
        f"ε {each[s.round - 1]:.1f} of 3",
        "stopped: the next round costs too much",
    ]
    assert p.controls["cohort"].disabled and "ε" in p.caption() and "q = 0.5" in p._figure_title(s)
    assert [line["name"] for line in p.parts[1].lines] == ["no clip, no noise", "this run"]
    assert [line["role"] for line in p.parts[0].lines] == ["run"], "without noise ε is no number"
    p.controls["budget"].value = 1.0  # the first round costs more: none is made, and that is said
    s = p.engine.wait()
    assert (s.state, s.round, p.status.error) == ("done", 0, "")
    assert p.readout.items[-2:] == ["ε 0.0 of 1", "stopped: the next round costs too much"]


def test_a_private_run_s_reference_is_the_run_without_clip_and_noise():
    s = Settings(**PRIVATE, rounds=3, noise=4.0, clip=0.01)
    known, made = References(), setup(s)
    found = known.upto(s, made, 3)["loss"]
    plain = replace(made.recipe, pipeline=chain(mean()))
    clients = Simulated(plain, made.x, made.y, made.parts)
    run = federate(clients, rounds=3, cohort=poisson(s.rate), evaluate=made.test)
    assert found[1:] == [r.metrics["loss"] for r in run]
    assert known.upto(replace(s, noise=1.0, clip=1.0, budget=2.0), made, 3)["loss"] is found
    assert known.upto(replace(s, rate=0.5), made, 3)["loss"] is not found


@pytest.mark.parametrize("budget", [5.0, float("inf")])
def test_the_code_of_a_private_run_makes_the_same_run(budget):
    s = Settings(**PRIVATE, rounds=4, noise=1.5, budget=budget)
    *_, last = frames(s)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code(s), {})
    assert said.getvalue().split() == [str(last["loss"]), str(last["accuracy"])]
    assert max(map(len, code(replace(s, clients=500, rounds=100)).split("\n"))) < 100


def test_a_map_of_private_runs_knows_epsilon_and_where_the_budget_ends():
    s = Settings(**PRIVATE, rounds=4, rate=0.5, budget=5.0)
    axes = {"x": ("noise", (1.5, 4.0)), "y": ("clip", (0.5,))}
    spent = grid(s, **axes, measure="epsilon", helpers=0)[0]
    for z, found in zip((1.5, 4.0), spent):
        each = [e for e in privacy.epsilons(z, 0.5, 4, 1 / 400) if e <= 5.0]
        assert found == pytest.approx(each[-1])
    *_, last = frames(replace(s, noise=1.5))
    assert grid(s, **axes, helpers=0)[0, 0] == last["accuracy"], "of its last round"


# -- parts, pictures, files -----------------------------------------------------------------------


def test_axes_do_not_jump_during_a_run():
    curve, e = Curve("loss", log=True), Engine(run, {"lr": 0.1}, rounds=3)
    snapshot = e.compute()
    e.close()
    limits = []
    for n, state in [(1, "running"), (2, "running"), (4, "done")]:
        columns = {"loss": np.array([2.3, 0.9, 0.4, 0.15])[:n]}
        curve.show(type(snapshot)(1, {}, columns, {}, n, 3, state))
        limits.append(tuple(curve.ylim))
    lows, highs = zip(*limits)
    assert list(lows) == sorted(lows, reverse=True) and set(highs) == {3.0}


def test_axes_end_on_round_numbers():
    assert (ranges.round_up(2.31), ranges.round_up(0.02)) == (2.5, 0.02)
    assert ranges.linear_range(np.array([0.3, 2.2])) == (0.0, 2.5)
    assert ranges.log_range(np.array([0.13, 2.3])) == (0.1, 3.0)


def test_a_lesson_with_its_own_picture():
    scene = lambda angle: {"points": [{"at": np.array([angle, 1.0]), "name": "optimum"}]}
    lesson = Explorable(
        {"angle": controls.float_slider("Angle", 0.5, 0, 1)},
        lambda angle: [{"plane": scene(angle)}],
        [Plane(xlim=(-1, 2), ylim=(0, 2))],
    )
    assert not hasattr(lesson, "run_button") and lesson.engine.state == "done"
    lesson.controls["angle"].value = 0.9
    lesson.engine.wait()
    assert lesson.parts[0].scene["points"][0]["at"] == [0.9, 1.0]
    data, _ = lesson._repr_mimebundle_()
    assert (
        "optimum at (0.5, 1)" in data["text/plain"] or "optimum at (0.9, 1)" in data["text/plain"]
    )
    lesson.close()


def test_a_log_slider_s_echo_is_no_move():
    """The browser sends 10**-0.3 back for the 0.501 that it was given."""
    seen = []
    lesson = Explorable(
        {"S": controls.log_slider("Clip S", 0.5, 0.01, 10)},
        lambda S: [seen.append(S) or {"loss": 1.0}],
        [Curve("loss")],
    )
    lesson.controls["S"].value = 10**-0.3
    lesson.engine.wait()
    assert seen == [0.501]
    lesson.controls["S"].value = 10**-0.2
    lesson.engine.wait()
    assert seen == [0.501, 0.631]
    lesson.close()


def test_a_wrong_scene_is_said():
    lesson = Explorable(
        {"a": controls.slider("A", 1, 0, 2)},
        lambda a: [{"plane": {"point": []} if a == 2 else {}}],
        [Plane()],
    )
    lesson.controls["a"].value = 2
    assert "knows contours, points, paths" in lesson.engine.wait().error
    lesson.close()


def test_ellipses_are_level_sets():
    A, c = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([0.3, -0.2])
    xy = np.stack(plane.ellipse(c, A, 0.7), 1) - c
    assert np.allclose(0.5 * np.einsum("ni,ij,nj->n", xy, A, xy), 0.7)


def test_two_dot_pictures_of_one_panel_show_an_array_each():
    mine, other = Dots(title="alone", key="own"), Dots()
    frame = {"own": np.array([0.2, 0.4]), "clients": np.array([0.7, 0.9, 0.8])}
    snapshot = Engine(lambda: [frame], {}, rounds=1).compute()
    for part in (mine, other):
        part.show(snapshot)
    assert np.frombuffer(mine.values, np.float32).tolist() == pytest.approx([0.2, 0.4])
    assert mine.label == "alone: accuracy of 2 clients, mean 0.30, worst client 0 with 0.20"
    assert "3 clients, mean 0.80, worst client 0" in other.label


def test_static_pictures_are_stable_and_need_no_pyplot(panel):
    p = panel()
    assert png(p.figure()) == png(p.figure())
    for k, color in enumerate(plots.OKABE_ITO):  # one palette: lessons, still and live pictures
        assert f"--fl-c{k}: {color};" in base.Part._css
    for part in (Curve("loss"), Holdings(), Dots(), Plane()):  # nothing to draw yet: no error
        png(figure([part]))


def test_the_engine_needs_no_widgets():
    program = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('engine', sys.argv[1])\n"
        "engine = importlib.util.module_from_spec(spec); sys.modules['engine'] = engine\n"
        "spec.loader.exec_module(engine)\n"
        "assert not {'ipywidgets', 'anywidget', 'matplotlib'} & set(sys.modules)\n"
    )
    file = sys.modules[Engine.__module__].__file__
    subprocess.run([sys.executable, "-c", program, file], check=True, timeout=60)
