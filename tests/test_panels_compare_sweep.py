"""The parts of the non-IID laboratory: boundaries, bars, A/B, the sweep."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
import time

import ipywidgets as W
import numpy as np
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from matplotlib.text import Text

from fedlearn import Diverged, algorithms
from fedlearn.model import softmax_regression
from fedlearn.panels import (
    Bars,
    Boundary,
    Compare,
    Curve,
    Dots,
    Engine,
    Explorable,
    Heat,
    Holdings,
    Panel,
    Plane,
    Settings,
    Sweep,
    boundary_scene,
    code,
    controls,
    frames,
    grid,
)
from fedlearn.panels.federated import compare, workers
from fedlearn.panels.federated.controls import OFFERED
from fedlearn.panels.federated.settings import METHODS, OWN, PARTITIONS, pairs
from fedlearn.panels.figure import figure, png
from fedlearn.panels.parts import lines


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


def menus(panel):
    """Those that the reader can use now, with all their options."""
    found = {n: c for n, c in panel.controls.items() if isinstance(c, W.Dropdown) and n not in "ab"}
    seen = {n: c for n, c in found.items() if "fl-gone" not in c._dom_classes}
    return {n: ends(c) for n, c in seen.items()}


def all_sliders(panel, side):
    kinds = (W.IntSlider, W.FloatSlider, W.FloatLogSlider, W.SelectionSlider)
    found = {n: c for n, c in panel.controls.items() if isinstance(c, kinds) and n not in "ab"}
    return {n: ends(c)[side] for n, c in found.items() if n != "cohort"} | (
        {"cohort": (1, 100)[side]} if "cohort" in found else {}
    )


def move(panel, **values):
    """All at once, as one move: a run for each step of the way would be work for nothing."""
    panel._adjusting = True
    for name, value in values.items():
        control = panel.controls[name]
        control.value = min(value, control.max) if name == "cohort" else value
    panel._adjusting = False
    panel._moved()
    return panel.engine.wait()


def whole(panel, drawn=False):
    """No part is empty, for the eye or for the ear; drawn: nor in the static picture."""
    for part in panel.parts:
        data = [v for k, v in part.get_state().items() if isinstance(v, bytes)]
        data += [v for k, v in part.get_state().items() if k == "scene"]
        assert part.label and any(data), f"{part.title} is empty"
    if drawn:
        drawing = panel.figure()
        for axes, part in zip(drawing.axes, panel.parts):
            assert any(a.has_data() for a in (axes, *axes.child_axes)), f"{part.title} isn't drawn"
        drawing.canvas.draw()
        pixels = np.asarray(drawing.canvas.buffer_rgba())[..., :3]
        assert (pixels < 250).any(-1).mean() > 0.01, "the picture is blank"


@pytest.fixture
def made():
    panels = []

    def make(kind, **kw):
        panels.append(kind(**kw))
        return panels[-1]

    yield make
    for p in panels:
        p.close()


# -- every control to both ends, in every combination of menus ------------------------------------

SMALL = {"rounds": 2, "clients": 4, "seconds": 0.01}
TOY = {"dataset": "toy", "model": "mlp", "show": ("clients", "alpha", "epochs", "lr"),
       "parts": ("accuracy", "holdings", "boundary")}  # fmt: skip
KINDS = {
    "panel": (Panel, {**SMALL, "epochs": 1, "show": OFFERED}),
    "toy": (Panel, {**SMALL, **TOY, "epochs": 1}),
    "compare": (Compare, {**SMALL, "epochs": 1, "show": ("dataset", "alpha", "method", "cohort")}),
    "sweep": (Sweep, {"rounds": 1, "helpers": 0, "preview": True, "show": ("partition", "lr"),
                      "x": ("epochs", (1, 2)), "y": ("alpha", (0.1, 10.0))}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_control_to_every_end(made, kind):
    """One at a time, by the control itself."""
    make, kw = KINDS[kind]
    p = made(make, **kw)
    for name, control in list(p.controls.items()):
        if not hasattr(control, "value") or isinstance(control, W.Label):
            continue
        start = control.value
        for end in ends(control):
            control.value = end
            s = p.engine.wait()
            assert s.state == "done" or p.status.error, f"{name} = {end}"
            if s.state == "done":
                whole(p)
        control.value = start
        assert p.engine.wait().state == "done", f"{name} back at {start}"
    whole(p, drawn=True)


class SmallPanel(Panel):
    _most_clients = 5


class SmallSweep(Sweep):
    """A slider of up to 100 clients would take a while."""

    def __init__(self, **kw):
        super().__init__(**kw)
        self.controls["clients"].max = 5


class SmallCompare(Compare):
    _most_clients = 5


def impossible(p, s, how="error"):
    """What no setting of the sliders can help, said in words: the rule and an example."""
    pictures = s.feature != "rotation" or s.dataset == "digits"
    unit = s.feature not in ("noise", "brightness") or s.dataset != "toy"
    C = {"digits": 10, "breast_cancer": 2}.get(s.dataset, 3)
    labels = s.partition != "labels_per_client" or s.labels_each <= C <= s.clients * s.labels_each
    grouped = s.partition != "by_attribute" or s.dataset == "digits"
    if pictures and unit and labels and grouped:
        return False
    if how == "error":
        assert p.engine.state == "error" and "e.g." in p.status.error
    else:
        assert np.isneginf(p.table()).all()
    return True


EVERY = {
    "panel": (SmallPanel, {"show": OFFERED, "clients": 4, "rounds": 1, "seconds": 0}),
    "toy": (Panel, {**TOY, "clients": 3, "rounds": 1, "seconds": 0,
                    "show": [n for n in OFFERED if n != "dataset"]}),
    "sweep": (SmallSweep, {"x": ("epochs", (1,)), "y": ("seed", (0,)), "rounds": 1, "clients": 4,
                           "helpers": 0, "preview": True, "show": OFFERED}),
}  # fmt: skip


def together(combinations):
    """Which two options stand together in one of these."""
    return {two for c in combinations for two in itertools.combinations(enumerate(c), 2)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERY)
def test_both_ends_of_every_slider_in_every_combination_of_menus(made, kind):
    make, kw = EVERY[kind]
    p = made(make, **kw)
    options = menus(p)
    assert len(options) == (4 if kind == "toy" else 5)
    options["method"] = ["fedavg", "fedsgd"]  # the others: in the next test
    every = [*itertools.product(*options.values())]
    if os.environ.get("FEDLEARN_FAST") and kind != "toy":  # a third, with each pair of options
        third = random.Random(0).sample(every, len(every) // 3)
        assert together(third) == together(every)
        every = third
    for n, combination in enumerate(every):
        for side in (0, -1) if kind == "toy" else (-(n % 2),):  # one end each, both over all
            move(p, **dict(zip(options, combination)), **all_sliders(p, side))
            if impossible(p, p.settings(), "failed" if kind == "sweep" else "error"):
                continue
            assert (p.engine.state, p.status.error) == ("done", ""), (combination, side)
            whole(p, drawn=n % 80 == 0)


@pytest.mark.slow
def test_every_method_at_both_ends_of_every_slider(made):
    p = made(SmallPanel, show=OFFERED, dataset="wine", clients=4, rounds=1, seconds=0)
    for method, model, side in itertools.product(METHODS, ("softmax", "mlp"), (0, -1)):
        move(p, method=method, model=model, **all_sliders(p, side))
        if p.engine.state == "error":  # learning rate 10 with pull 10: that run does diverge
            assert "learning rate is too large" in p.status.error and side == -1
            continue
        assert p.status.error == "", (method, model, side)
        whole(p, drawn=side == 0 and model == "mlp")


def test_a_method_of_ones_own_stands_in_the_menu_and_runs(made):
    def my_fedavg(task, lr):
        return algorithms.fedavg(task, lr)

    p = made(Panel, method=my_fedavg, show=("method", "lr"), rounds=4)
    own = p.engine.wait().columns["loss"]
    assert p.controls["method"].label == "my_fedavg"
    assert "my_fedavg(task, 1.0)  # your own" in code(p.settings())
    for method in ("scaffold", "fedavg"):
        move(p, method=method)
    np.testing.assert_array_equal(p.engine.wait().columns["loss"], own)
    move(p, method=my_fedavg)
    assert p.status.error == "" and "my_fedavg" in p.caption()
    assert b"my_fedavg" in p._table(p.engine.snapshot())
    q = made(Panel, method=lambda task, lr: None, rounds=2, preview=False)
    move(q, lr=0.5)
    assert "must make an Algorithm" in q.status.error


def test_controls_and_parts_of_another_cell_outlive_the_panel():
    """The panel's cell is run again, the cell that made its sliders isn't."""
    before = len(W.widgets.widget._instances)
    knobs, parts = {"a": controls.slider("A", 3, 1, 10)}, [Curve("loss")]
    make = lambda a: [{"loss": float(a)}]
    first = Explorable(knobs, make, parts, rounds=1)
    n = len(W.widgets.widget._instances)
    first.close()
    second = Explorable(knobs, make, parts, rounds=1)
    assert len(W.widgets.widget._instances) == n
    knobs["a"].value = 7
    assert second.engine.wait().columns["loss"][-1] == 7.0
    assert first.engine.snapshot().columns["loss"][-1] == 3.0  # the old one hears nothing
    whole(second)
    second.close()
    assert len(W.widgets.widget._instances) == before


def test_the_settings_of_a_method_are_seen_when_it_has_them(made):
    p = made(Panel, show=("method",), rounds=2)
    seen = lambda: {n for n in OWN if "fl-gone" not in p.controls[n]._dom_classes}
    for method, own in METHODS.items():
        move(p, method=method)
        assert seen() == set(own), method


@pytest.mark.slow
@pytest.mark.parametrize("vary", compare.VARY)
def test_side_by_side_in_every_combination_of_menus(made, vary):
    kw = {"dataset": "wine", "clients": 4, "rounds": 1, "seconds": 0, "epochs": 1}
    p = made(SmallCompare, **kw, show=("partition", "method", "alpha", "feature", "cohort"))
    p.controls["feature"].value = "label_swap"
    p.controls["vary"].value = vary
    p.engine.wait()
    options = {n: v for n, v in menus(p).items() if n not in ("vary", "feature")}
    options |= {n: ["fedavg", "fedadam"] for n in options if n.endswith("method")}
    for n, combination in enumerate(itertools.product(*options.values())):
        for side in (-(n % 2),):  # one end each, both over all
            move(p, **dict(zip(options, combination)), **all_sliders(p, side))
            if any(impossible(p, p.settings(c)) for c in "ab"):
                continue
            assert (p.engine.state, p.status.error) == ("done", ""), (combination, side)
            whole(p, drawn=n == 0)


def pictures(kind, size, lean, pull, names):
    """Frames for every part, from every kind of control."""
    n = size + (kind == "large")
    rows = np.linspace(0, lean, n)
    at = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    task = softmax_regression(2, 2)
    scene_ = boundary_scene(task, task.theta0 + pull, [], at, torch.tensor([0, 1]), [0, 1])
    ball = {"center": (0, 0), "matrix": np.eye(2), "levels": [pull]}
    for t in range(2):
        yield {
            "loss": pull / (t + 1), "seconds": 0.1 * t * n, "counts": np.eye(n) + 1,
            "labels": [names] * n, "clients": rows,
            "bars": rows, "heat": np.full((1, 2), pull), "boundary": scene_,
            "plane": {"contours": [ball], "points": [{"at": (0, lean), "name": names}]},
        }  # fmt: skip


@pytest.mark.parametrize(
    "parts",
    [lambda: [Curve("loss", x="seconds"), Plane(), Bars(), Heat(rows=["a"], columns=["b", "c"])],
     lambda: [Holdings(), Dots(), Boundary()]],
    ids=["curve-plane-bars-heat", "holdings-dots-boundary"],
)  # fmt: skip
def test_a_lesson_s_own_panel_in_every_combination_of_menus(made, parts):
    dials = {
        "kind": controls.menu("Kind", ["small", "large"], "small"),
        "names": controls.menu("Names", {"short": "a", "long": "a rather long name"}, "a"),
        "size": controls.slider("Size", 3, 1, 30),
        "lean": controls.float_slider("Lean", 0.5, 0, 1),
        "pull": controls.log_slider("Pull", 1.0, 0.01, 100),
    }
    p = made(Explorable, controls=dials, make=pictures, parts=parts(), rounds=1, seconds=0)
    options = menus(p)
    for n, combination in enumerate(itertools.product(*options.values())):
        for side in (0, -1):
            s = move(p, **dict(zip(options, combination)), **all_sliders(p, side))
            assert (s.state, s.error) == ("done", "")
            whole(p, drawn=n == 0)


# -- A and B --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_pair_of_splits_and_methods_side_by_side(made):
    p = made(Compare, **SMALL, dataset="wine", epochs=1, show=("method",))
    every = itertools.product(enumerate(PARTITIONS), enumerate(PARTITIONS), enumerate(METHODS))
    for (i, a), (j, b), (m, method) in every:
        if (i + j + m) % 2:  # every two of the three meet
            continue
        move(p, a=a, b=b, method=method)
        if "by_attribute" in (a, b):  # wine has no natural clients
            assert "e.g. dataset='digits'" in p.status.error
            continue
        assert p.status.error == "", (a, b, method)
        assert p.parts[2].clients == p.parts[3].clients == 4


def test_the_menu_leaves_a_alone_loses_no_value_and_makes_no_widget(made):
    p = made(Compare, **SMALL, epochs=3, show=("epochs", "cohort"))
    models, first = len(W.widgets.widget._instances), p.settings("a")
    p.controls["b"].value = "shards"
    chosen = {"alpha": 10.0, "lr": 0.5, "epochs": 7, "batch": "all", "model": "mlp", "clients": 6}
    for vary, value in chosen.items():
        p.controls["vary"].value = vary
        p.controls["b"].value = value
    for _ in range(3):
        for vary in compare.VARY:
            p.controls["vary"].value = vary
            s = p.engine.wait()
            assert p.vary == vary == s.params["vary"] and p.settings("a") == first
            one, two = vars(first), vars(p.settings("b"))
            assert {k for k in one if one[k] != two[k]} == {vary}, "B is A but for this"
            b = p.controls[f"b {vary}"]
            assert b is p.controls["b"] and "fl-gone" not in b._dom_classes
            assert p.controls["a"].description == "A: " + b.description[3:]
            assert sum(c.description.startswith("B:") for c in seen(p)) == 1
    for vary, value in chosen.items():
        now = p.controls[f"b {vary}"].value
        assert now == (pytest.approx(value, rel=0.02) if vary in ("alpha", "lr") else value)
    assert p.controls["b partition"].value == "shards"
    assert len(W.widgets.widget._instances) == models


def seen(panel):
    every = {id(c): c for n, c in panel.controls.items() if "fl-gone" not in c._dom_classes}
    return list(every.values())


def test_what_would_make_a_difference_is_in_reach(made):
    p = made(Compare, **SMALL, vary="amount", a=0.2, b=0.9, show=("epochs",))
    assert p.controls["feature"] in seen(p) and p.controls["a"].disabled
    p.controls["feature"].value = "label_swap"
    p.engine.wait()
    assert not p.controls["a"].disabled and not p.controls["b"].disabled
    p.controls["vary"].value = "lr"
    assert p.controls["feature"] not in seen(p) and p.controls["amount"] not in seen(p)
    assert [c.value for c in seen(p) if isinstance(c, W.Label)] == ["A AND B", "TRAINING"]
    assert p.settings("b").feature == "label_swap", "A keeps what it has"


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


def test_how_each_client_is_served_side_by_side(made):
    p = made(Compare, vary="feature", a="none", b="brightness", amount=1.0, partition="iid",
             clients=6, rounds=3, show=(), beside="clients")  # fmt: skip
    for part, c in zip(p.parts[-2:], "ab", strict=True):
        *_, last = frames(p.settings(c))
        assert isinstance(part, Dots) and part.each == pytest.approx(last["clients"]())
        assert part.title == f"{c.upper()}: " + ("no shift", "brightness")[c == "b"]
    assert p.parts[-1].each.argmin() == 5, "whose pictures are black"


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
    (line,) = lines.lines(scores)
    pieces = np.split(line, np.flatnonzero(np.isnan(line[:, 0])))
    assert len(pieces) == 3


def test_a_closed_curve_is_closed_and_nothing_is_lost():
    at = np.linspace(-1, 1, 25)
    x, y = np.meshgrid(at, at)
    r = np.hypot(x, y)
    scores = np.stack([r, np.full_like(r, 0.613)], -1)[None]
    (line,) = lines.lines(scores)
    assert np.allclose(line[0], line[-1]) and np.isfinite(line).all()
    radius = np.hypot(*(line / 12 - 1).T)
    assert np.abs(radius - 0.613).max() < 0.01
    constant = np.zeros((1, 5, 5, 3))
    assert lines.lines(constant)[0].shape == (0, 2)
    assert lines.lines(np.full((1, 5, 5, 3), np.nan))[0].shape == (0, 2), "not in the cohort"


def test_the_plane_wants_a_plane():
    with pytest.raises(ValueError, match="toy"):
        task = softmax_regression(3, 2)
        boundary_scene(task, task.theta0, [], torch.zeros(2, 3), torch.tensor([0, 1]), [0, 1])
    for wrong in ({"clients": 7}, {"dataset": "digits"}, {"show": ("dataset",)}):
        with pytest.raises(ValueError, match=r"toy plane alone, with 1 to 6 .* e\.g\."):
            Panel(**{**TOY, "clients": 3, **wrong})


# -- bars, heat -----------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[], [np.nan], [-1.0, 2.0], [0.0]])
def test_bars_of_anything(values):
    bars = shown(Bars(), bars=values)
    png(figure([bars]))
    assert bars.label


def test_bars_name_the_lowest_by_what_a_bar_is_and_only_if_they_differ():
    bars = shown(Bars(title="recall", xlabel="sign"), bars=[0.5, 0.25, 0.75])
    assert bars.label == "recall: 3 bars, mean 0.5, lowest sign 1 with 0.25"
    drawn = figure([bars])
    assert any("lowest: sign 1, 0.25" in text.get_text() for text in drawn.findobj(Text))
    level = shown(Bars(title="recall"), bars=[0.5, 0.5])
    assert level.label == "recall: 2 bars, mean 0.5"
    texts = figure([level]).findobj(Text)
    assert not any("lowest" in text.get_text() for text in texts)


def test_parts_with_nothing_to_draw_yet():
    for part in (Boundary(), Bars(), Heat(rows=["a"], columns=["b", "c"])):
        png(figure([part]))


def test_an_impossible_split_clears_the_pictures(made):
    p = made(Panel, rounds=2, dataset="wine", partition="shards", shards_each=5, clients=6,
             parts=("holdings", "clients"))  # fmt: skip
    assert p.parts[0].clients == len(p.parts[1].each) == 6
    p.controls["clients"].value = 100
    p.engine.wait("error")
    assert p.parts[0].clients == len(p.parts[1].each) == 0 and "see the message" in p.parts[0].note
    p.controls["clients"].value = 6
    assert p.engine.wait().state == "done" and p.parts[0].clients == 6


# -- the sweep ------------------------------------------------------------------------------------

AXES = {"x": ("epochs", (1, 2)), "y": ("alpha", (0.1, 10.0))}


def test_the_cells_are_the_runs():
    s = Settings(rounds=3, clients=5)
    table = grid(s, **AXES, helpers=0)
    *_, last = frames(Settings(rounds=3, clients=5, alpha=10.0, epochs=2))
    assert table[1, 1] == pytest.approx(last["accuracy"])


def team():
    """The worker processes of this one."""
    return get_reusable_executor(1, timeout=600, initializer=workers.begin,
                                 initargs=(os.getpid(),))._processes  # fmt: skip


@pytest.mark.slow
def test_a_worker_finds_the_same_and_stays():
    s = Settings(rounds=3, clients=5, seed=11)
    with_one = grid(s, **AXES, helpers=1)
    workers._KNOWN.clear()
    assert np.array_equal(grid(s, **AXES, helpers=0), with_one)
    workers._KNOWN.clear()
    before = set(team())
    grid(s, **AXES, helpers=1)
    assert set(team()) == before and len(before) == 1


@pytest.mark.slow
def test_a_worker_that_dies_loses_no_cell():
    s = Settings(rounds=300, clients=5, seed=12)
    found = workers.sweep(pairs(s, **AXES), helpers=1)
    first, _ = next(found)
    for pid in team():
        os.kill(pid, 9)
    assert len({first, *(cell for cell, _ in found)}) == 4
    assert all(map(np.isfinite, (workers.known(cell)["loss"] for cell in pairs(s, **AXES))))


@pytest.mark.slow
def test_a_sweep_given_up_frees_its_workers_within_a_round():
    slow = pairs(Settings(rounds=10**6, clients=5, seed=13), **AXES)
    quick = pairs(Settings(rounds=2, clients=5, seed=14), **AXES)
    grid(Settings(rounds=1, clients=5, seed=15), **AXES, helpers=1)  # the worker is there
    began = time.monotonic()
    assert not list(workers.sweep(slow, helpers=1, stale=lambda: time.monotonic() > began + 1))
    assert {s for s, _ in workers.sweep(quick, helpers=1)} == set(quick)
    assert time.monotonic() - began < 10


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sys.exit()", "os.kill(os.getpid(), 9)"])
def test_no_worker_outlives_the_notebook(how):
    """Left in the middle of a long sweep."""
    program = f"""
import os, sys, threading, time
from fedlearn.panels import Settings
from fedlearn.panels.federated import settings, workers
cells = settings.pairs(Settings(rounds=10**6), ("epochs", (1, 2)), ("alpha", (0.1, 1.0)))
run = workers.sweep(cells, helpers=1, stale=lambda: time.sleep(0.01))
threading.Thread(target=lambda: list(run), daemon=True).start()
while not workers._TEAMS: time.sleep(0.05)
time.sleep(4)
from joblib.externals.loky import reusable_executor
print(*reusable_executor._executor._processes, flush=True)
{how}
"""
    out = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60)
    (worker,) = map(int, out.stdout.split())
    end = time.monotonic() + 8
    while alive(worker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(worker)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_is_known_comes_at_once(made, monkeypatch):
    p = made(Sweep, **AXES, rounds=3, helpers=0, preview=True, seed=21, show=("lr", "method"))
    first = p.table()
    p.controls["lr"].value = 0.1
    p.engine.wait()
    assert not np.array_equal(p.table(), first)
    monkeypatch.setattr(workers, "final", lambda *a: pytest.fail("computed twice"))
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


def test_a_map_over_seeds_is_the_mean_of_their_maps_and_says_how_far_they_lie_apart(made, capsys):
    seeds = np.array([3, 5, 8])
    kw = {**AXES, "rounds": 2, "clients": 5, "helpers": 0, "preview": True, "show": ()}
    p = made(Sweep, **kw, seeds=seeds)
    one_each = [grid(Settings(rounds=2, clients=5, seed=int(n)), **AXES, helpers=0) for n in seeds]
    assert p.engine.snapshot().round == 12  # a run a cell and seed
    assert p.table() == pytest.approx(np.mean(one_each, 0)) and len(set(one_each[0].flat)) > 1
    heat = p.parts[0]
    assert heat.spread == pytest.approx(np.std(one_each, 0)) and (heat.spread > 0).all()
    assert np.frombuffer(heat.spreads, np.float32) == pytest.approx(heat.spread.ravel())
    first = f"{np.mean(one_each, 0)[0, 0]:.3f}\n± {np.std(one_each, 0)[0, 0]:.3f}"
    assert first in [t.get_text() for t in p.figure().axes[0].texts]
    assert f"± {heat.spread.flat[heat.table.argmax()]:.2g} (" in heat.label.split(" to ")[1]
    _, header, *rows = [None, *p._table(p.engine.snapshot()).decode().splitlines()]
    assert header == "alpha,epochs,accuracy,std" and len(rows) == 4
    assert [float(v) for v in rows[1].split(",")] == pytest.approx(
        [0.1, 2, heat.table[0, 1], heat.spread[0, 1]]
    )
    p.show_code()
    exec(p.status.code, found := {})
    assert found["found"].shape == (3, 2, 2) and found["found"] == pytest.approx(np.array(one_each))
    capsys.readouterr()


def test_a_cell_of_which_one_seed_fails_has_failed(made, monkeypatch):
    of = lambda s: {} if s.seed == 1 and s.epochs == 2 else {"accuracy": 0.5 + s.seed / 4}
    monkeypatch.setattr(workers, "final", lambda s, stale: of(s))
    monkeypatch.setattr(workers, "_KNOWN", {})
    p = made(Sweep, **AXES, seeds=(0, 1), helpers=0, preview=True)
    assert p.table()[0].tolist() == [0.625, -np.inf] and p.parts[0].spread[0, 0] == 0.125
    assert "failed" in [t.get_text() for t in p.figure().axes[0].texts]
    whole(p)


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
     (Sweep, {"y": ("alpha", (0.0,))}), (Sweep, {"seeds": ()}), (Sweep, {"seeds": 3}),
     (Sweep, {"seeds": (1, 1)}), (Sweep, {"seeds": (0, -1)}),
     (Sweep, {"seeds": (0, 1), "x": ("seed", (2, 3))}),
     (Compare, {"vary": "cohort"}), (Compare, {"show": ("alpa",)}),
     (Compare, {"beside": "dots"}), (Compare, {"b": "dirichlet"}),
     (Panel, {"parts": ("client_curves",)}),
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
