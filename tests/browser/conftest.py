"""A JupyterLab and a page of a browser for each process that runs tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from lab import (
    NOTEBOOKS,
    browser,
    chromium,
    close_all,
    lab_server,
    open_lab,
    page_in,
    stop_kernels,
)

# With FEDLEARN_TEST_FREEZE=1 lines and cells stay as first drawn: the tests must then fail.
FREEZE = """(() => {
  const set = Element.prototype.setAttribute, kept = { path: 'd', rect: 'fill-opacity' };
  Element.prototype.setAttribute = function (name, value) {
    const drawn = kept[this.tagName] === name && this.closest('.fl-part')
      && this.getAttribute(name);
    if (!drawn) set.call(this, name, value);
  };
})()"""

SCRATCH = {  # name: what its panel is
    "scratch": "Panel()",
    "toy": "Panel(dataset='toy', model='mlp', clients=5, "
    "parts=('accuracy', 'holdings', 'boundary'), show=('clients', 'alpha', 'epochs', 'lr'))",
    "compare": "Compare()",
    "sweep": "Sweep(x=('epochs', (1, 2, 5)), y=('alpha', (0.1, 1, 10)), rounds=30, show=('lr',))",
}


# A teacher's own table and module, with a curve and a column of their own.
OWN = [
    """import numpy as np, pandas as pd
from torch import nn
from fedlearn import data

rng = np.random.default_rng(0)
table = pd.DataFrame({"age": rng.normal(50, 9, 200), "dose": rng.normal(0, 1, 200)})
table["ill"] = np.where(table.age + 9 * table.dose > 50, "yes", "no")
table["hospital"] = rng.choice(["Bern", "Basel", "Chur"], 200)
table.to_csv("patients.csv", index=False)""",
    """from fedlearn.panels import Curve, Panel

patients = data.own(pd.read_csv("patients.csv"), "ill", group="hospital", scale=True,
                    name="patients")
net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
panel = Panel(
    dataset=patients, model=net, clients=3, partition="by_attribute", lr=0.5, rounds=30,
    extras={"longest": lambda r: r.deltas.norm(dim=1).max()},
    parts=["loss", Curve("worst", ylim=(0, 1), legend="bottom"), Curve("longest"), "holdings"],
    show=("lr", "epochs", "method", "dataset", "model"),
)
panel""",
]


# A panel of each kind in Chinese.
CHINESE = [
    """from fedlearn.panels import Compare, Panel, Sweep, language

language("zh")
chinese = Panel(show=("dataset", "clients", "partition", "alpha", "feature", "method", "model",
                      "epochs", "batch", "lr", "cohort"), alpha=0.01, rounds=3)
chinese""",
    "Compare(rounds=2)",
    "Sweep(x=('epochs', (1, 2)), y=('batch', (32, None)), rounds=1, clients=5, seeds=(0, 1),\n"
    "      helpers=0, preview=True)",
]


WHOLE = "01_what_is_federated_learning.ipynb"  # as its reader finds it


FAILED = pytest.StashKey[bool]()


def panels_only(path: Path) -> list[str]:
    """The cells that a lesson's panels need, and the panels: those tagged so."""
    note = nbformat.read(path, as_version=4)
    return [c.source for c in note.cells if {"setup", "panel"} & set(c.metadata.get("tags", ()))]


def write_notebook(path: Path, *cells: str) -> None:
    note = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    note.metadata.kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    nbformat.write(note, path)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory):
    """(address, token) of a server on the lessons' panels and the scratch notebooks."""
    if not chromium():
        pytest.skip(
            "no Chromium, Chrome or Edge found: install one (Debian: apt-get install chromium), "
            "or set CHROMIUM to its program"
        )
    root = tmp_path_factory.mktemp("site")
    for note in NOTEBOOKS.glob("*.ipynb"):
        write_notebook(root / note.name, *panels_only(note))
    shutil.copy(NOTEBOOKS / WHOLE, root)
    for name, panel in SCRATCH.items():
        cell = f"from fedlearn.panels import {panel.split('(')[0]}\n\npanel = {panel}\npanel"
        write_notebook(root / f"{name}.ipynb", cell, "1 + 1")
    write_notebook(root / "own.ipynb", *OWN, *CHINESE)
    os.environ.setdefault("FEDLEARN_FAST", "1")
    with lab_server(root) as (address, token):
        yield address, token


@pytest.fixture(scope="session")
def playwright():
    """One for each process: a second one can't be started beside it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def chrome(site, playwright):
    with browser(playwright) as context:
        yield context


@pytest.fixture(scope="session")
def lab(site, chrome):
    """A page with JupyterLab in it: loading that takes longer than opening a notebook."""
    with page_in(chrome, FREEZE if os.environ.get("FEDLEARN_TEST_FREEZE") else "") as page:
        open_lab(page, *site)
        yield page


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture
def page(request, site, lab):
    lab.problems.clear()
    yield lab
    close_all(lab)
    if request.node.stash[FAILED]:  # a dialog may be open, a button pressed
        open_lab(lab, *site)
    stop_kernels(*site, wait=False)  # or twenty notebooks would hold twenty kernels
