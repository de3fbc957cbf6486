"""The parts of the non-IID laboratory: boundaries, client curves, bars, A/B, the sweep."""

from __future__ import annotations

import itertools
import threading
import time

import ipywidgets as W
import numpy as np
import pytest
import torch

from fedlearn.federate import Diverged
from fedlearn.model import softmax_regression
from fedlearn.panels import (
    Bars,
    Boundary,
    ClientCurves,
    Compare,
    Engine,
    Heat,
    Panel,
    Settings,
    Sweep,
    ToyPanel,
    boundary_scene,
    cells,
    compare,
    frames,
    grid,
    scene,
    static,
)
from fedlearn.panels.study import METHODS, PARTITIONS


def shown(part, **frame):
    engine = Engine(lambda: [frame], {}, rounds=1)
    part.show(engine.compute())
    engine.close()
    return part


def ends(control):
    """Both ends of a slider, every option of a menu."""
    if hasattr(control, "options"):
        return [o[-1] if isinstance(o, tuple) else o for o in control.options]
    if isinstance(control, W.FloatLogSlider):
        return [10.0**control.min, 10.0**control.max]
    return [control.min, control.max]


def whole(panel, static_too=True):
    """No part is empty, for the eye or for the ear, and the static picture can be drawn."""
    for part in panel.parts:
        data = [v for k, v in part.get_state().items() if isinstance(v, bytes)]
        assert part.label and any(data), f"{part.title} is empty"
    if static_too:
        assert len(static.png(panel.figure())) > 5000


@pytest.fixture
def made():
    panels = []

    def make(kind, **kw):
        panels.append(kind(**kw))
        return panels[-1]

    yield make
    for p in panels:
        p.close()


SMALL = {"rounds": 2, "clients": 4, "seconds": 0.01}
KINDS = {
    "toy": (ToyPanel, {**SMALL, "epochs": 1}),
    "compare": (Compare, {**SMALL, "epochs": 1, "show": ("dataset", "alpha", "method", "cohort")}),
    "curves": (Panel, {**SMALL, "epochs": 1, "parts": ("loss", "client_curves")}),
    "sweep": (Sweep, {"rounds": 1, "helpers": 0, "preview": True, "show": ("partition", "lr"),
                      "x": ("epochs", (1, 2)), "y": ("alpha", (0.1, 10.0))}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_control_to_every_end(made, kind):
    make, kw = KINDS[kind]
    p = made(make, **kw)
    whole(p)
    for name, control in p.controls.items():
        if not hasattr(control, "value") or isinstance(control, W.Label):
            continue
        start = control.value
        for end in ends(control):
            control.value = end
            s = p.engine.wait()
            assert s.state == "done" or p.status.error, f"{name} = {end}"
            if s.state == "done":
                whole(p, static_too=end == ends(control)[-1])
        control.value = start
        assert p.engine.wait().state == "done", f"{name} back at {start}"


def test_every_pair_of_splits_and_methods_side_by_side(made):
    p = made(Compare, **SMALL, dataset="wine", epochs=1, show=("method",))
    for a, b, method in itertools.product(PARTITIONS, PARTITIONS, METHODS):
        p.controls["a"].value, p.controls["b"].value = a, b
        p.controls["method"].value = method
        p.engine.wait()
        assert p.status.error == "", (a, b, method)
        assert p.parts[2].clients == p.parts[3].clients == 4


@pytest.mark.parametrize(
    ("vary", "a", "b"),
    [("alpha", 100.0, 0.1), ("epochs", 1, 20), ("batch", 8, None), ("clients", 4, 9),
     ("lr", 0.1, 1.0), ("method", "fedavg", "fedsgd"), ("model", "softmax", "mlp"),
     ("dataset", "wine", "digits")],
)  # fmt: skip
def test_what_is_compared_is_all_that_differs(made, vary, a, b):
    p = made(Compare, vary=vary, a=a, b=b, rounds=2, show=("cohort",))
    one, two = vars(p.settings("a")), vars(p.settings("b"))
    assert {k for k in one if one[k] != two[k]} == {vary}
    s = p.engine.snapshot()
    for c in "ab":
        alone = [f["loss"] for f in frames(p.settings(c))]
        assert s.columns[f"loss_{c}"].tolist() == pytest.approx(alone)


def test_when_one_diverges_the_other_goes_on(made, monkeypatch):
    def fails(s):
        for t, frame in enumerate(frames(s)):
            if t == 2 and s.alpha < 1:
                raise Diverged(2, [0], None)
            yield frame

    monkeypatch.setattr(compare, "frames", fails)
    p = made(Compare, vary="alpha", a=0.1, b=10.0, rounds=4, clients=4)
    s = p.engine.snapshot()
    assert np.isfinite(s.columns["loss_b"]).sum() == 5 and "A:" in p.status.error
    assert np.isfinite(s.columns["loss_a"]).sum() == 2


# -- the plane ------------------------------------------------------------------------------------


def test_a_linear_boundary_is_where_the_formula_says():
    task = softmax_regression(2, 2)
    theta = torch.tensor([1.0, 2.0, -1.0, -2.0, 0.3, -0.3])  # 2 (x + 2 y) + 0.6 = 0
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    made = boundary_scene(task, theta, theta[None], x, torch.tensor([0, 1]), [0, 1])
    for line in made["lines"]:
        assert np.abs(line[:, 0] + 2 * line[:, 1] + 0.3).max() < 1e-5
    assert np.isfinite(made["lines"][0]).all(), "one piece"
    assert made["right"].all()


def test_three_classes_meet_in_one_point():
    at = np.linspace(-1, 1, 9) + 0.03
    x, y = np.meshgrid(at, at)
    angles = 2 * np.pi * np.arange(3) / 3
    scores = np.stack([x * np.cos(a) + y * np.sin(a) for a in angles], -1)[None]
    (line,) = scene.lines(scores)
    pieces = np.split(line, np.flatnonzero(np.isnan(line[:, 0])))
    assert len(pieces) == 3


def test_a_closed_curve_is_closed_and_nothing_is_lost():
    at = np.linspace(-1, 1, 25)
    x, y = np.meshgrid(at, at)
    r = np.hypot(x, y)
    scores = np.stack([r, np.full_like(r, 0.613)], -1)[None]
    (line,) = scene.lines(scores)
    assert np.allclose(line[0], line[-1]) and np.isfinite(line).all()
    radius = np.hypot(*(line / 12 - 1).T)
    assert np.abs(radius - 0.613).max() < 0.01
    constant = np.zeros((1, 5, 5, 3))
    assert scene.lines(constant)[0].shape == (0, 2)
    assert scene.lines(np.full((1, 5, 5, 3), np.nan))[0].shape == (0, 2), "not in the cohort"


def test_the_plane_wants_a_plane():
    with pytest.raises(ValueError, match="toy"):
        task = softmax_regression(3, 2)
        boundary_scene(task, task.theta0, [], torch.zeros(2, 3), torch.tensor([0, 1]), [0, 1])
    with pytest.raises(ValueError, match="1 to 6"):
        ToyPanel(clients=7)
    with pytest.raises(ValueError, match="Panel"):
        ToyPanel(dataset="digits")


# -- client curves, bars, heat --------------------------------------------------------------------


def test_one_hundred_clients_share_a_pane_and_a_missing_one_is_no_worst():
    table = np.random.default_rng(0).random((5, 100))
    table[-1, 3] = np.nan
    curves = shown(ClientCurves(), client_curves=table)
    assert curves.worst == np.nanargmin(table[-1])
    static.png(static.figure([curves]))
    assert shown(ClientCurves(better="low"), client_curves=table).worst == np.nanargmax(table[-1])


@pytest.mark.parametrize("values", [[], [np.nan], [-1.0, 2.0], [0.0]])
def test_bars_of_anything(values):
    bars = shown(Bars(), bars=values)
    static.png(static.figure([bars]))
    assert bars.label


def test_parts_with_nothing_to_draw_yet():
    for part in (Boundary(), ClientCurves(), Bars(), Heat(rows=["a"], columns=["b", "c"])):
        static.png(static.figure([part]))


def test_an_impossible_split_clears_the_pictures(made):
    p = made(Panel, rounds=2, dataset="wine", partition="shards", shards_each=5, clients=6,
             parts=("holdings", "client_curves"))  # fmt: skip
    assert p.parts[0].clients == p.parts[1].clients == 6
    p.controls["clients"].value = 100
    p.engine.wait("error")
    assert p.parts[0].clients == p.parts[1].clients == 0 and "see the message" in p.parts[0].note
    p.controls["clients"].value = 6
    assert p.engine.wait().state == "done" and p.parts[0].clients == 6


# -- the sweep ------------------------------------------------------------------------------------

AXES = {"x": ("epochs", (1, 2)), "y": ("alpha", (0.1, 10.0))}


def test_the_cells_are_the_runs():
    s = Settings(rounds=3, clients=5)
    table = grid(s, **AXES, helpers=0)
    *_, last = frames(Settings(rounds=3, clients=5, alpha=10.0, epochs=2))
    assert table[1, 1] == pytest.approx(last["accuracy"])


@pytest.mark.slow
def test_a_helper_finds_the_same_and_stays():
    s = Settings(rounds=3, clients=5, seed=11)
    with_one = grid(s, **AXES, helpers=1)
    cells._KNOWN.clear()
    assert np.array_equal(grid(s, **AXES, helpers=0), with_one)
    cells._KNOWN.clear()
    team = list(cells._TEAM)
    grid(s, **AXES, helpers=1)
    assert cells._TEAM == team and len(team) >= 1
    cells.dismiss()
    assert not cells._TEAM


@pytest.mark.slow
def test_a_helper_that_dies_loses_no_cell():
    helper = cells.Helper()
    cells._TEAM.append(helper)
    helper._process.kill()
    table = grid(Settings(rounds=2, clients=5, seed=12), **AXES, helpers=1)
    assert np.isfinite(table).all()
    helper.close()
    cells.dismiss()


def test_what_is_known_comes_at_once(made, monkeypatch):
    p = made(Sweep, **AXES, rounds=3, helpers=0, preview=True, seed=21, show=("lr", "method"))
    first = p.table()
    p.controls["lr"].value = 0.1
    p.engine.wait()
    assert not np.array_equal(p.table(), first)
    monkeypatch.setattr(cells, "final", lambda *a: pytest.fail("computed twice"))
    p.controls["lr"].value = 1.0
    s = p.engine.wait()
    assert np.array_equal(p.table(), first) and (s.state, s.round) == ("done", 4)


def test_reset_gives_up_within_a_round_and_no_thread_grows(made):
    slow = {"x": ("epochs", (18, 19, 20)), "y": ("alpha", (0.1, 1.0))}
    p = made(Sweep, **slow, rounds=3000, helpers=0, seed=31, clients=30)
    assert np.isnan(p.table()).all()
    p.engine.run()
    time.sleep(0.3)
    start = time.monotonic()
    p.reset_button.click()
    assert p.engine.wait("idle", 20).round == 0
    assert time.monotonic() - start < 5
    before = threading.active_count()
    for _ in range(3):
        p.engine.run()
        p.reset_button.click()
        p.engine.wait("idle", 20)
    assert threading.active_count() == before
    p.engine.run()
    p.close()
    assert p.engine.state == "closed"


def test_a_failed_cell_is_said_and_not_tried_again(made):
    p = made(Sweep, x=("epochs", (1, 2)), y=("clients", (5, 170)), rounds=1, dataset="wine",
             partition="shards", helpers=0, preview=True)  # fmt: skip
    assert np.isneginf(p.table()[1]).all() and np.isfinite(p.table()[0]).all()
    assert b"170,1,\n" in p._table(p.engine.snapshot())
    whole(p)


def test_the_code_of_a_sweep_makes_the_same_map(made, capsys):
    p = made(Sweep, **AXES, rounds=2, helpers=0, preview=True, lr=0.5)
    p.show_code()
    exec(p.status.code, {})
    assert f"{p.table()[0, 0]:.6f}"[:6] in capsys.readouterr().out
    assert "lr=0.501" in p.status.code


def test_closing_leaves_no_model_and_no_thread():
    before = set(W.widgets.widget._instances)
    for make, kw in KINDS.values():
        p = make(**kw)
        p.engine.run()
        p.close()
    assert set(W.widgets.widget._instances) == before
    assert not [t for t in threading.enumerate() if t.name == "fedlearn-panel"]


@pytest.mark.parametrize(
    "wrong",
    [(Sweep, {"x": ("dataset", ("wine",))}), (Sweep, {"show": ("alpa",)}),
     (Sweep, {"x": ("alpha", (1.0,))}), (Sweep, {"measure": "f1"}),
     (Sweep, {"y": ("alpha", (0.0,))}),
     (Compare, {"vary": "cohort"}), (Compare, {"show": ("alpa",)}),
     (Compare, {"b": "dirichlet"}), (ClientCurves, {"better": "up"}),
     (Panel, {"size_alpha": 0.0})],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_name_the_rule_and_an_example(wrong):
    make, kw = wrong
    before = set(W.widgets.widget._instances)
    with pytest.raises(ValueError, match=r"e\.g\."):
        make(**kw)
    for model in set(W.widgets.widget._instances) - before:
        W.widgets.widget._instances[model].close()
