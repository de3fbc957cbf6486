"""Panels on anybody's data, model, columns and pictures."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import ipywidgets as W
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fedlearn import data
from fedlearn.model import binary_cross_entropy, from_module, softmax_regression
from fedlearn.panels import Bars, Compare, Curve, Panel, Settings, Sweep, code, frames, grid


def table(n=90):
    rng = np.random.default_rng(3)
    age, dose = rng.normal(50, 9, n), rng.normal(0, 1, n)
    ill = np.where(age + 9 * dose > 50, "yes", "no")
    return pd.DataFrame({"age": age, "dose": dose, "ill": ill,
                         "hospital": rng.choice(["Bern", "Basel", "Chur"], n)})  # fmt: skip


patients = data.own(table(), "ill", group="hospital", scale=True, name="patients")
with torch.random.fork_rng():
    torch.manual_seed(0)  # else each process would have a start of its own
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))


def longest(r):
    return r.deltas.norm(dim=1).max()


OWN = {"dataset": patients, "model": net, "clients": 3, "partition": "by_attribute", "epochs": 1,
       "rounds": 4, "lr": 0.5, "extras": {"longest": longest}}  # fmt: skip


@pytest.fixture(autouse=True)
def the_same_start():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def made():
    panels = []

    def make(kind, **kw):
        panels.append(kind(**{**OWN, **kw}))
        return panels[-1]

    yield make
    for p in panels:
        p.close()


def test_a_table_becomes_a_data_set_whose_rows_stay_together():
    frame = table()
    d = data.own(frame, "ill", group="hospital")
    assert (len(d.x), len(d.x_test), d.classes) == (72, 18, 2)
    known = {tuple(np.float32(r[:2])): tuple(r[2:]) for r in frame.to_numpy()}
    for x, y, g in zip(d.x, d.y, d.group):
        row = (("no", "yes")[y], ("Basel", "Bern", "Chur")[g])
        assert known[tuple(np.float32(x.tolist()))] == row
    arrays = data.own(frame[["age", "dose"]].to_numpy(), frame.ill, group=list(frame.hospital))
    assert all(torch.equal(a, b) for a, b in zip(arrays[:4], d[:4]))
    assert d == d and d != arrays and len({d, arrays}) == 2
    ages = data.own(frame[["dose"]], frame.age, scale=True)
    assert ages.classes == 0 and ages.y.dtype == torch.float32
    both = torch.cat([ages.x, ages.x_test])
    assert (float(both.min()), float(both.max())) == (0, 1)
    assert data.own(np.zeros((5, 4, 4)), [0, 1, 1, 0, 1]).shape == (4, 4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(lambda f: data.own(f, "il"), "column must be one of age, dose, ill, hospital, got 'il'"),
     (lambda f: data.own(f, "ill", group="clinic"), "got 'clinic'"),
     (lambda f: data.own(f, "ill"), "text, dates or missing values in column 'hospital'"),
     (lambda f: data.own(f.assign(age=np.nan), "ill", group="hospital"), "x holds inf or NaN"),
     (lambda f: data.own(f.assign(ill=None), "ill", group="hospital"), "y: needs a value"),
     (lambda f: data.own(f[["age"]], f.dose * np.nan), "y holds inf or NaN"),
     (lambda f: data.own(f[["age"]], f.ill[:7]), "as long as y and group"),
     (lambda f: Panel(dataset="patients.csv"), "data.own"),
     (lambda f: Settings(dataset=patients._replace(x=patients.x.numpy())), "of tensors"),
     (lambda f: Settings(dataset=patients, model=nn.Linear(5, 2)), "can't take examples"),
     (lambda f: Settings(dataset=patients, model=nn.Linear(2, 1)), "a score for each class"),
     (lambda f: Settings(dataset=patients, model=nn.Dropout()), "from_module: "),
     (lambda f: Settings(model=net), "can't take examples"),
     (lambda f: Settings(extras={"loss": longest}), "names of their own"),
     (lambda f: Settings(extras=[3]), "functions of a round"),
     (lambda f: Panel(parts=[Curve("worts")]), "takes any of loss, accuracy"),
     (lambda f: Panel(dataset=data.own(f[["dose"]], f.age), model=nn.Linear(1, 1)), "'accuracy'"),
     (lambda f: grid(Settings(), x=("epochs", (1,)), y=("seed", (0,)), measure="longest"), "grid"),
     (lambda f: Compare(curves=("longest",)), "Compare: curves")],
)  # fmt: skip
def test_mistakes_are_said_before_any_run(wrong, said):
    before = set(W.widgets.widget._instances)
    with pytest.raises(ValueError, match=r"e\.g\.|needs a value|nan_to_num|keep = ") as e:
        wrong(table())
    assert said in str(e.value)
    for model in set(W.widgets.widget._instances) - before:
        W.widgets.widget._instances[model].close()


def run_of(text, **names):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(text, names)
    return [float(v) for v in said.getvalue().split()]


def test_a_panel_of_one_s_own_and_the_code_that_makes_it(made):
    parts = ["loss", Curve("worst", ylim=(0, 1)), Curve("longest"), Bars(key="norms")]
    extras = {"longest": longest, "norms": lambda r: r.deltas.norm(dim=1).numpy()}
    p = made(Panel, parts=parts, extras=extras, show=("dataset", "model", "lr"))
    s = p.engine.snapshot()
    text = code(p.settings())
    again = run_of(text, your_dataset=patients, your_model=net)
    assert again == [s.columns["loss"][-1], s.columns["accuracy"][-1]], "equal bits"
    assert text.startswith("d = your_dataset  # your own\n")
    *_, last = frames(replace(p.settings(), extras=()))
    assert last["loss"] == s.columns["loss"][-1], "looking changes nothing"
    assert s.columns["worst"][-1] == pytest.approx(last["clients"]().min())
    assert np.isnan(s.columns["longest"][0]) and (s.columns["longest"][1:] > 0).all()
    assert len(s.latest["norms"]) == 3 and all(part.label for part in p.parts)
    assert p.caption().startswith("FedAvg on patients, 3 clients, by group split, 4 rounds")
    assert p._stem(s) == "fedavg-patients" and b"patients,Sequential" in p._table(s)
    assert p.controls["dataset"].label == "patients" and p.controls["model"].label == "Sequential"
    p.controls["model"].value = "softmax"
    assert p.engine.wait().state == "done" and p.status.error == ""
    p.controls["model"].value = net
    assert p.engine.wait().columns["loss"][-1] == s.columns["loss"][-1]


def test_a_variable_of_the_notebook_is_called_by_its_name(made, monkeypatch):
    import __main__

    monkeypatch.setattr(__main__, "clinic", patients, raising=False)
    monkeypatch.setattr(__main__, "net", net, raising=False)
    text = code(Settings(**OWN))
    assert text.startswith("d = clinic  # your own\nfrom") and "from_module(net)" in text
    assert len(run_of(text, clinic=patients, net=net)) == 2
    axes = {"x": ("lr", (0.1, 0.5)), "y": ("seed", (0, 1))}
    rest = {k: v for k, v in OWN.items() if k != "lr"}
    w = Sweep(**rest, **axes, measure="longest", preview=True, show=("epochs",))
    w.show_code()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(w.status.code, {"clinic": patients, "net": net, "longest": longest})
    assert said.getvalue() == f"{w.table()}\n" and np.isfinite(w.table()).all()
    w.close()


def test_any_task_and_numbers_to_predict(made):
    frame = table()
    logistic = from_module(nn.Linear(2, 1), binary_cross_entropy)
    p = made(Panel, model=logistic, parts=("accuracy", "clients"))
    assert p.status.error == "" and p.engine.snapshot().columns["accuracy"][-1] > 0.5
    s = Settings(**{**OWN, "model": softmax_regression(2, 2)})
    again = run_of(code(s), your_dataset=patients, your_model=s.model)
    *_, last = frames(s)
    assert again == [last["loss"], last["accuracy"]]
    ages = data.own(frame[["dose"]], frame.age / 50, scale=True, name="ages")
    kw = {"dataset": ages, "model": nn.Linear(1, 1), "partition": "iid", "lr": 0.1}
    q = made(Panel, **kw, parts=("loss", "holdings"))
    assert q.status.error == "" and q.parts[1].clients == 3
    found = run_of(code(q.settings()), your_dataset=ages, your_model=kw["model"])
    assert found == [q.engine.snapshot().columns["loss"][-1]]


def test_side_by_side_and_in_a_map(made):
    c = made(Compare, vary="method", a="fedavg", b="scaffold", curves=("worst", "longest"))
    s = c.engine.snapshot()
    for which in "ab":
        run = list(frames(c.settings(which), worst=True))
        for column in ("worst", "longest"):
            assert s.columns[f"{column}_{which}"][-1] == float(run[-1][column])
    assert len(c.parts) == 4 and all(part.label for part in c.parts) and c.status.error == ""
    c.controls["vary"].value = "dataset"
    assert c.engine.wait().state == "done" and c.settings("b").dataset is patients
    axes = {"x": ("epochs", (1, 2)), "y": ("lr", (0.1, 0.5))}
    maps = grid(Settings(**OWN), **axes, measure="worst", seeds=(0, 1), helpers=0)
    assert maps.shape == (2, 2, 2) and not np.array_equal(*maps)
    for n in range(2):
        one = Settings(**{**OWN, "seed": n})
        assert np.array_equal(maps[n], grid(one, **axes, measure="worst", helpers=0))
    *_, last = frames(Settings(**{**OWN, "epochs": 2}), worst=True)
    assert maps[0, 1, 1] == last["worst"]
