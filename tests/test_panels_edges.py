"""Panels at their edges: broken saves, rules that need more clients, strange code, wrong values."""

from __future__ import annotations

import asyncio
import csv
import os
import threading

import ipywidgets as W
import pytest

from fedlearn.aggregate import bulyan, krum, mean, median, multi_krum
from fedlearn.panels import (
    Compare,
    Curve,
    Engine,
    Explorable,
    Panel,
    Settings,
    Sweep,
    code,
    controls,
    frames,
    grid,
    kernel,
)
from fedlearn.panels import explorable as explorable_file
from fedlearn.panels.federated.settings import least
from fedlearn.transform import Reduce, chain, clip


@pytest.fixture
def panel():
    made = []

    def make(kind=Panel, **kw):
        small = {"rounds": 2, "clients": 6, "epochs": 1, "seconds": 0.05}
        p = kind(**(small | kw if kind is Panel else kw))
        made.append(p)
        return p

    yield make
    for p in made:
        p.close()


@pytest.fixture
def leftovers():
    """Widgets of constructors that refuse are closed here."""
    before = set(W.widgets.widget._instances)
    yield
    for model in set(W.widgets.widget._instances) - before:
        W.widgets.widget._instances[model].close()


# -- Save: both files, whole, or neither ----------------------------------------------------------


def full(*args):
    raise OSError(28, "No space left on device")


def wrong(*args):
    raise RuntimeError("a part that can't paint")


BREAKS = {
    "the picture": ("png", wrong, "RuntimeError: a part that can't paint"),
    "the disk, at once": ("write_whole", full, "No space left on device"),
    "the disk, while drawing": ("png", full, "No space left on device"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_save_leaves_nothing_and_is_said(panel, tmp_path, monkeypatch, what):
    name, breaks, said = BREAKS[what]
    monkeypatch.chdir(tmp_path)
    p = panel()
    monkeypatch.setattr(explorable_file, name, breaks)
    p._save()
    assert p.status.news.startswith("Nothing saved: ") and said in p.status.news
    assert os.listdir(tmp_path) == []
    with pytest.raises((OSError, RuntimeError)):
        p.save()  # by hand it raises
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert [f.stat().st_size > 100 for f in p.save()] == [True, True], "the name is free again"
    assert sorted(os.listdir(tmp_path)) == ["fedavg-digits.csv", "fedavg-digits.png"]


def test_ctrl_c_in_a_save_leaves_nothing(panel, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    p = panel()
    monkeypatch.setattr(explorable_file, "png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        p.save()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_gone_is_said(panel, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    p = panel()
    (tmp_path / "gone").rmdir()
    p._save()
    assert p.status.news.startswith("Nothing saved: ")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("breaks", [False, True])
def test_while_another_cell_runs_the_picture_comes_later_or_the_table_goes(
    panel, tmp_path, monkeypatch, breaks
):
    """Save is pressed on another thread than the loop's, which is busy."""
    monkeypatch.chdir(tmp_path)

    async def notebook():
        p = panel()
        if breaks:
            monkeypatch.setattr(explorable_file, "png", wrong)
        press = threading.Thread(target=p._save)
        press.start()
        press.join()  # the loop is busy here, as with a long cell
        assert os.listdir(tmp_path) == ["fedavg-digits.csv"], "no empty picture holds its place"
        assert "comes after this cell" in p.status.news
        await asyncio.sleep(0.01)
        return p.status.news

    said = asyncio.run(notebook())
    if breaks:
        assert os.listdir(tmp_path) == [] and "Nothing saved: RuntimeError" in said
    else:
        assert sorted(os.listdir(tmp_path)) == ["fedavg-digits.csv", "fedavg-digits.png"]
        assert said.startswith("Saved fedavg-digits.csv and fedavg-digits.png")


def test_in_a_cell_both_files_are_there_when_save_returns(panel, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def cell():
        return [f.stat().st_size > 100 for f in panel().save()]

    assert asyncio.run(cell()) == [True, True]


def test_a_picture_that_came_in_between_is_not_written_over(panel, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    p, real = panel(), explorable_file.png

    def meanwhile(figure):
        (tmp_path / "fedavg-digits.png").write_bytes(b"my own")
        return real(figure)

    monkeypatch.setattr(explorable_file, "png", meanwhile)
    p._save()
    assert "Nothing saved" in p.status.news and os.listdir(tmp_path) == ["fedavg-digits.png"]
    assert (tmp_path / "fedavg-digits.png").read_bytes() == b"my own"


@pytest.mark.parametrize("there", ["fedavg-digits.png", "fedavg-digits.csv"])
def test_one_of_the_two_names_taken_is_enough(panel, tmp_path, monkeypatch, there):
    monkeypatch.chdir(tmp_path)
    (tmp_path / there).write_bytes(b"my own")
    names = [f.name for f in panel().save()]
    assert names == ["fedavg-digits-1.csv", "fedavg-digits-1.png"]
    assert (tmp_path / there).read_bytes() == b"my own"


# -- rules that need so many clients --------------------------------------------------------------

RULES = {  # the pipeline, the fewest clients it can do with, its bound
    "krum(3)": (chain(krum(3)), 9, "K >= 2 f + 3"),
    "multi_krum(3, None)": (chain(multi_krum(3)), 9, "K >= 2 f + 3"),
    "bulyan(2)": (chain(clip(1.0), bulyan(2)), 11, "K >= 4 f + 3"),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_too_few_are_called_for_is_said_before_any_round(panel, name):
    pipeline, need, bound = RULES[name]
    made = Settings(clients=need, pipeline=pipeline)
    assert made.pipeline is pipeline
    for few in ({"clients": need - 1}, {"clients": 20, "cohort": need - 1}):
        with pytest.raises(ValueError) as said:
            Settings(pipeline=pipeline, **few)
        for words in (bound, f"at least {need}", f"K = {need - 1} here", "e.g."):
            assert words in str(said.value)


@pytest.mark.parametrize("name", RULES)
def test_a_slider_below_the_bound_says_so_at_once_and_keeps_on_saying_it(panel, name):
    pipeline, need, bound = RULES[name]
    p = panel(pipeline=pipeline, clients=need, show=("clients", "cohort", "lr"), rounds=20)
    tip = f"; {name} needs {need} or more"
    assert all(p.controls[c].tooltip.endswith(tip) for c in ("clients", "cohort"))
    good = p.settings()
    before = p.engine.snapshot().gen
    p.controls["clients"].value = need - 1
    assert bound in p.status.error and f"K = {need - 1} here" in p.status.error
    assert p.engine.snapshot().gen == before and p.settings() is good, "no run was begun"
    p.engine.run()  # frames of the run before don't wipe the words away
    assert p.engine.wait().round == 20 and bound in p.status.error
    p.controls["clients"].value = need
    p.controls["cohort"].value = need - 1
    assert bound in p.status.error
    p.controls["cohort"].value = need
    assert p.status.error == ""


def test_a_pipeline_is_what_runs_and_what_the_code_says(panel):
    s = Settings(clients=9, rounds=3, pipeline=chain(clip(0.5), krum(3)))
    text = code(s)
    assert "from fedlearn.aggregate import krum\n" in text
    assert "from fedlearn.transform import chain, clip\n" in text
    assert "theta0, chain(clip(0.5), krum(3)), batch=32" in text
    names = {}
    exec(text, names)
    *_, last = frames(s)
    assert names["history"]["loss"][-1] == last["loss"]
    *_, plain = frames(Settings(clients=9, rounds=3))
    assert plain["loss"] != last["loss"] and "chain" not in code(Settings())
    for rule in (mean(), median()):
        *_, other = frames(Settings(clients=9, rounds=3, pipeline=chain(rule)))
        assert (other["loss"] == plain["loss"]) == rule.name.startswith("mean")


def test_a_pipeline_in_the_table_the_reference_and_the_map(panel, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    p = panel(pipeline=chain(krum(1)), clients=5, show=("lr",))
    assert p.engine.snapshot().error == "", "all data in one place need no rule"
    data, _ = p.save()
    rows = list(csv.DictReader(data.read_text().splitlines()))
    assert {r["pipeline"] for r in rows} == {"krum(1)"} and rows[-1]["centralised_loss"]
    axes = {"x": ("epochs", (1, 2)), "y": ("alpha", (0.1,))}
    sweep = panel(Sweep, **axes, rounds=2, clients=5, pipeline=chain(krum(1)))
    sweep.engine.run()
    assert sweep.engine.wait().state == "done"
    text = sweep._text(sweep.engine.snapshot())
    names = {}
    exec(text.replace("print(", "found = ("), names)
    assert (names["found"] == sweep.table()).all()
    s = Settings(rounds=2, clients=5)
    assert not (grid(s, **axes, helpers=0) == sweep.table()).all()


@pytest.mark.parametrize(
    "pipeline",
    ["krum", krum(3), [krum(3)], None, 3, lambda rows, p: p @ rows],
    ids=["text", "a stage", "a list", "none", "a number", "a function"],
)
def test_what_is_no_pipeline_is_refused(pipeline):
    with pytest.raises(ValueError, match=r"panel: pipeline must be .*got .*e\.g\."):
        Settings(pipeline=pipeline)


def test_what_a_rule_needs():
    assert least("mean", 100) == least(chain(median()), 100) == ""
    assert least(chain(krum(30)), 50) == "; krum(30) needs more than 50 or more"
    own = Reduce("own", lambda delta, p: p @ delta)
    assert least(chain(own), 100) == ""


# -- arguments ------------------------------------------------------------------------------------

AXES = {"x": ("epochs", (1, 2)), "y": ("alpha", (0.1, 1.0))}
REFUSED = {
    "a setting that there isn't": lambda: Panel(aplha=0.1),
    "that of another version": lambda: Compare(learning_rate=0.1),
    "of a map": lambda: Sweep(**AXES, epoch=3),
    "given twice": lambda: Compare(vary="alpha", a=1.0, b=2.0, alpha=0.5),
    "an axis given twice": lambda: Sweep(**AXES, epochs=3),
    "no such data": lambda: Panel(dataset="nope"),
    "no client": lambda: Panel(clients=0),
    "seconds below 0": lambda: Panel(seconds=-1.0),
    "seconds that are no number": lambda: Panel(seconds=float("nan")),
    "mu = 0 on a slider over powers of ten": lambda: Panel(method="fedprox", mu=0.0),
    "too few for the rule": lambda: Panel(pipeline=chain(krum(3)), clients=8),
    "too few in B": lambda: Compare(vary="clients", a=20, b=8, pipeline=chain(krum(3))),
    "too few in a cell": lambda: Sweep(
        x=("clients", (20, 8)), y=AXES["y"], pipeline=chain(krum(3))
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_arguments_are_refused_by_name(leftovers, what):
    with pytest.raises(ValueError, match=r"(e\.g\.|leave out)"):
        REFUSED[what]()


def lesson(**kw):
    sliders = {"start": controls.slider("Start", 8, 1, 9)}
    make = kw.pop("make", lambda start: iter([{"height": float(start)}]))
    return Explorable(
        **{"controls": sliders, "make": make, "parts": [Curve("height")], "rounds": 3, **kw}
    )


@pytest.mark.parametrize(
    "kw", [{"fps": 0.0}, {"fps": -1.0}, {"rounds": -1}, {"rounds": 2.5}, {"seconds": -1.0},
           {"controls": {"start": 8}}], ids=str,
)  # fmt: skip
def test_a_lesson_s_wrong_arguments_are_refused_by_name(leftovers, kw):
    with pytest.raises(ValueError, match=r"Explorable: .*got .*e\.g\."):
        lesson(**kw)


@pytest.mark.parametrize(
    "make",
    [
        lambda: controls.slider("A", 5.5, 0, 9),
        lambda: controls.slider("A", 5, 0, 9, step=0),
        lambda: controls.slider("A", 10, 0, 9),
        lambda: controls.slider("A", True, 0, 9),
        lambda: controls.float_slider("A", 0.5, 0, 1, step=0.0),
        lambda: controls.float_slider("A", float("nan"), 0, 1),
        lambda: controls.log_slider("A", 0.5, 0, 1),
        lambda: controls.log_slider("A", 0.5, -1, 1),
        lambda: controls.log_slider("A", 0.5, 0.1, 1, step=-0.1),
        lambda: controls.menu("A", [], None),
        lambda: controls.menu("A", ["a"], "b"),
        lambda: controls.choices("A", [8, None], 8),
        lambda: controls.choices("A", {}, 8),
    ],
)
def test_a_control_that_can_not_be_is_refused_by_name(leftovers, make):
    with pytest.raises(ValueError, match=r"(slider|menu|choices): .*e\.g\."):
        make()


def test_a_value_beyond_a_slider_s_usual_range_is_kept(panel):
    p = panel(alpha=1000.0, lr=0.0005, method="fedavgm", beta=0.995, preview=False)
    s = p.settings()
    assert (s.alpha, s.lr) == (1000.0, 0.0005) and s.beta == pytest.approx(0.995, abs=0.005)
    assert controls.slider("A", 5, 0, 10, step=3).value == 3, "on the grid, as the browser has it"


# -- strange code behind a panel ------------------------------------------------------------------


def boom(*args, **kw):
    raise SystemExit(3)


class Trap:
    """An iterator that can't be closed quietly."""

    def __init__(self, start):
        self.start, self.n = start, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.n += 1
        return {"height": float(self.start + self.n)}

    def close(self):
        raise RuntimeError("not now")


STRANGE = {  # code that a lesson may have, and what the panel says
    "no dict": (lambda start: iter([3.0] if start < 8 else [{"height": 1.0}]), "must be a dict"),
    "exit": (lambda start: boom() if start < 8 else iter([{"height": 1.0}]), "SystemExit"),
    "nothing to iterate": (
        lambda start: None if start < 8 else iter([{"height": 1.0}]),
        "TypeError",
    ),
}


@pytest.mark.parametrize("what", STRANGE)
def test_strange_code_is_said_and_the_panel_lives_on(panel, what):
    make, said = STRANGE[what]
    p = panel(lesson, make=make)
    p.controls["start"].value = 2
    assert p.engine.wait("error").state == "error" and said in p.status.error
    p.controls["start"].value = 9
    assert p.engine.wait().state == "done" and p.status.error == ""


def test_a_run_that_can_not_be_closed_does_not_end_the_thread():
    e = Engine(Trap, {"start": 1.0}, rounds=5, settle=0.0)
    try:
        for start in (2.0, 3.0, 4.0):
            e.set(start=start)
            assert e.wait().columns["height"][0] == start + 1
    finally:
        e.close()


def test_what_goes_wrong_behind_a_slider_or_a_button_is_said(panel, monkeypatch):
    p = panel(lesson, code=lambda s: 1 / 0)
    buttons = [w for w in kernel.tree(p.ui) if isinstance(w, W.Button)]
    code_button = next(b for b in buttons if b.description == "Code")
    code_button.click()
    assert "division by zero" in p.status.error
    p._showing_code = False
    monkeypatch.setattr(p, "_adjust", lambda: {}["x"])
    p.controls["start"].value = 5
    assert p.status.error == "KeyError: 'x'"
    monkeypatch.undo()
    p.controls["start"].value = 6
    assert p.engine.wait().state == "done" and p.status.error == ""


def test_a_part_that_fails_does_not_take_the_others_along(panel):
    class Bad(Curve):
        fails = False

        def show(self, snapshot):
            if self.fails:
                raise RuntimeError("no picture")
            super().show(snapshot)

    bad, good = Bad("height"), Curve("height")
    p = panel(lesson, parts=[bad, good])
    before = good.gen
    bad.fails = True
    p.controls["start"].value = 3
    p.engine.wait()
    assert good.gen > before and p.status.error == "RuntimeError: no picture"
    assert p.readout.round == p.engine.snapshot().round
