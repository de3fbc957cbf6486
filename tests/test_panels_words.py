"""What panels say: one table a language, in Python and in JavaScript."""

from __future__ import annotations

import ast
import re
import string
import tomllib
from pathlib import Path

import ipywidgets as W
import numpy as np
import pytest

import fedlearn.panels
from fedlearn.panels import (
    Bars,
    Compare,
    Curve,
    Dots,
    Explorable,
    Holdings,
    Panel,
    Pictures,
    Plane,
    Sweep,
    controls,
    kernel,
    language,
)
from fedlearn.panels.federated.controls import OFFERED
from fedlearn.panels.words import NAMES, length

ROOM = Path(fedlearn.panels.__file__).parent
TABLES = {p.stem: tomllib.loads(p.read_text("utf-8")) for p in ROOM.glob("languages/*.toml")}
ENGLISH = TABLES["en"]["words"]
OTHERS = sorted(TABLES.keys() - {"en"})
SMALL = {"rounds": 2, "clients": 4, "epochs": 1}
# Algorithms and files are called so in every language; the rest stands for numbers.
NAMED = {*NAMES.values(), "DP", "softmax", "krum", "CSV", "PNG", "Python", "MB", "kB", "inf", "std"}


@pytest.fixture(autouse=True)
def english_afterwards():
    yield
    language("en")


@pytest.fixture
def made():
    panels = []

    def make(kind, *args, **kw):
        panels.append(kind(*args, **kw))
        return panels[-1]

    yield make
    for p in panels:
        p.close()


# -- the tables -----------------------------------------------------------------------------------


def fields(text):
    """What is filled in, and how: {('mean', '.3g')}."""
    return {(name, spec) for _, name, spec, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("name", OTHERS)
def test_a_translation_has_every_text_with_the_same_fields(name):
    words = TABLES[name]["words"]
    assert list(words) == list(ENGLISH)
    assert not [k for k, v in words.items() if not v.strip()]
    assert not [k for k, v in words.items() if fields(v) != fields(k)]


def test_english_is_what_the_code_has():
    assert all(k == v for k, v in ENGLISH.items())


def literals():
    """(file, texts that stand in it, those of them that are said)."""
    for path in sorted(ROOM.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        texts = {t for t in texts if isinstance(t, str)}
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and n.args]
        called = [getattr(n.func, "attr", getattr(n.func, "id", "")) for n in calls]
        first = [n.args[0] for n, name in zip(calls, called) if name == "say"]
        yield path, texts, {n.value for n in first if isinstance(n, ast.Constant)}
    for path in sorted(ROOM.rglob("*.js")):
        source = path.read_text("utf-8")
        texts = set(re.findall(r'"([^"\n]*)"', source))
        yield path, texts, set(re.findall(r'\bsay\("([^"]*)"', source))


def test_what_is_said_is_in_the_table_and_the_table_has_no_more():
    found = list(literals())
    missing = {p.name: said - ENGLISH.keys() for p, _, said in found}
    assert not {p: said for p, said in missing.items() if said}
    assert sum(bool(said) for p, _, said in found if p.suffix == ".js") >= 7
    texts = set().union(*(texts for _, texts, _ in found))
    texts |= {t.replace("_", " ") for t in texts}  # names of settings, as menus have them
    from_outside = {"# of # clients topped up to #"}  # of partition.Parts.note
    assert ENGLISH.keys() - texts == from_outside


def test_no_view_says_anything_past_the_table():
    """Texts that a view sets are variables or say(...): no letter of their own."""
    for path in ROOM.glob("web/*.js"):
        source = path.read_text("utf-8")
        fourth = r'html\("\w+", "[^"]*", \w+, '
        set_to = re.findall(rf'(?:textContent = |"aria-label": |{fourth})(["`][^"`]*["`])', source)
        plain = [re.sub(r"\$\{[^}]*\}", "", t) for t in set_to]
        assert not [t for t in plain if re.search("[A-Za-z]{2}", t)], path.name


# -- the choice -----------------------------------------------------------------------------------


def test_an_unknown_language_is_refused_and_nothing_changes():
    for wrong in ("fr", "", 3, "en.toml", "../zh"):
        with pytest.raises(ValueError, match=r"language: name must be one of en, zh, got"):
            language(wrong)
    assert language() == "en"


def test_an_open_panel_keeps_its_language_and_a_new_one_takes_the_new(made):
    old = made(Panel, **SMALL)
    assert language("zh") == language() == "zh"
    new = made(Panel, **SMALL)
    language("en")
    for p, run, title, name in (
        (old, "Run", "test accuracy", "this run"), (new, "运行", "测试准确率", "本次运行"),
    ):  # fmt: skip
        p.controls["epochs"].value = 2  # on the panel's own thread
        p.engine.wait()
        assert p.run_button.description == run and p.parts[1].title == title
        assert p.parts[1].lines[-1]["name"] == name and title in p.parts[1].label
        assert p.controls["clients"].description == {"Run": "Clients"}.get(run, "客户端数")
    assert made(Panel, **SMALL).run_button.description == "Run"


def test_numbers_code_and_files_are_the_same_in_every_language(made):
    one = made(Panel, **SMALL)
    language("zh")
    two = made(Panel, **SMALL)
    a, b = one.engine.snapshot(), two.engine.snapshot()
    assert all(np.array_equal(a.columns[k], b.columns[k], equal_nan=True) for k in a.columns)
    assert one._table(a) == two._table(b) and one._code(a) == two._code(b)
    assert one._stem(a) == two._stem(b)


# -- a panel in Chinese ---------------------------------------------------------------------------


def spoken(p):
    """All that a panel says, for the eye and for the ear, but code and names of files."""
    shown = ("description", "tooltip", "title", "label", "xlabel", "ylabel", "note", "drift")
    shown += ("items", "unit", "said", "rowname", "colname", "columns", "rows")
    for w in kernel.tree(p.ui):
        yield from (str(getattr(w, name)) for name in shown if w.has_trait(name))
        if hasattr(w, "options"):
            labels = [str(o[0]) for o in w.options]
            assert len(set(labels)) == len(labels), "two options have one name"
            yield from labels
        if isinstance(w, (W.Label, W.HTML)):
            yield w.value
        if isinstance(w, Curve):
            yield from (line["name"] for line in w.lines)
    yield from (p.caption(), p._figure_title(p.engine.snapshot()))
    drawing = p.figure()
    for axes in drawing.axes:
        yield from (t.get_text() for t in axes.findobj() if hasattr(t, "get_text"))


def foreign(texts):
    """Words in Latin letters that are no names."""
    found = {w for t in texts for w in re.findall(r"[A-Za-z]{2,}", t.replace("$_k$", ""))}
    return found - {w for name in NAMED for w in name.split("-")} - {"None"}


PANELS = [
    (Panel, {**SMALL, "show": OFFERED, "partition": "label_and_quantity", "feature": "rotation"}),
    (Panel, {**SMALL, "dataset": "toy", "parts": ("accuracy", "holdings", "boundary"),
             "show": ("clients",), "x": "bytes"}),
    (Panel, {"rounds": 2, "clients": 40, "method": "dp_fedavg", "show": ("privacy",),
             "budget": 2.0, "noise": 0.5, "parts": ("loss", "privacy", "epsilon", "noise")}),
    (Compare, {**SMALL, "curves": ("loss", "worst"), "show": ("cohort", "dataset")}),
    (Sweep, {"x": ("epochs", (1, 2)), "y": ("batch", (8, None)), "rounds": 1, "helpers": 0,
             "preview": True, "seeds": (0, 1), "clients": 4}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "kw"), PANELS, ids=["full", "toy", "private", "two", "map"])
def test_a_panel_speaks_chinese_throughout(made, kind, kw):
    language("zh")
    p = made(kind, **kw)
    if "alpha" in p.controls:
        p.controls["alpha"].value = 10.0  # a last run, which the legend names
        p.engine.wait()
    assert foreign(spoken(p)) == set()


def one_of_each():
    yield {"loss": 1.0, "drift": 0.3, "bars": np.array([0.1, 0.5]), "clients": np.array([0.2, 1])}
    scene = {"points": [{"at": (0, 1), "name": "θ*", "mark": "star"}]}
    yield {"loss": 0.5, "plane": scene, "pictures": [("x", np.eye(3))], "counts": np.eye(3),
           "note": "3 of 20 clients topped up to 2"}  # fmt: skip


def test_the_ready_parts_of_a_lesson_s_own_panel_speak_chinese(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    language("zh")
    for parts in ([Bars(), Dots(), Plane(), Pictures()], [Holdings(), Curve("loss")]):
        p = made(Explorable, {}, one_of_each, parts, rounds=1)
        texts = [t for t in spoken(p) if t]
        assert foreign(texts) == set() and len(texts) > 20
        p.save()
        assert re.match("已将 .* 保存到", p.status.news)
    assert p.parts[0].note == "3 / 20 个客户端已补足到 2 个样本"


def test_names_of_one_s_own_stay(made):
    language("zh")
    slider = controls.menu("Ward", ["north", "all"], "north")
    p = made(Explorable, {"ward": slider}, lambda ward: [{"loss": 1.0}], [Curve({"{odd}": "loss"})])
    assert slider.description == "Ward" and [o[0] for o in slider.options] == ["north", "全部"]
    assert p.parts[0].lines[0]["name"] == "{odd}" and p.values() == {"ward": "north"}


def test_a_chinese_letter_is_as_wide_as_two():
    assert length("α = 0.1") == 7 and length("客户端 2") == 8
