"""A JupyterLab for the session, a page for each test, and what was measured at the end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from lab import NOTEBOOKS, browser, chromium, lab_server, page_in, stop_kernels

MEASURED: list[str] = []

# With FEDLEARN_TEST_FREEZE=1 a drawn line stays as it was first drawn: the tests must then fail.
FREEZE = """(() => {
  const set = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function (name, value) {
    const drawn = name === 'd' && this.closest?.('.fl-part') && this.getAttribute('d');
    if (!drawn) set.call(this, name, value);
  };
})()"""

SCRATCH = {
    "scratch.ipynb": "from fedlearn.panels import Panel\n\npanel = Panel()\npanel",
    "toy.ipynb": "from fedlearn.panels import ToyPanel\n\npanel = ToyPanel(clients=5)\npanel",
    "compare.ipynb": "from fedlearn.panels import Compare\n\npanel = Compare()\npanel",
}


def write_notebook(path: Path, *cells: str) -> None:
    note = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    note.metadata.kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    nbformat.write(note, path)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory):
    """(address, token) of a server on a copy of the notebooks and a scratch notebook."""
    if not chromium():
        pytest.skip(
            "no Chromium, Chrome or Edge found: install one (Debian: apt-get install chromium), "
            "or set CHROMIUM to its program"
        )
    root = tmp_path_factory.mktemp("site")
    for note in NOTEBOOKS.glob("*.ipynb"):
        shutil.copy(note, root)
    for name, cell in SCRATCH.items():
        write_notebook(root / name, cell, "1 + 1")
    os.environ.setdefault("FEDLEARN_FAST", "1")
    with lab_server(root) as (address, token):
        yield address, token


@pytest.fixture(scope="session")
def chrome(site):
    with browser() as context:
        yield context


@pytest.fixture
def page(site, chrome):
    with page_in(chrome, FREEZE if os.environ.get("FEDLEARN_TEST_FREEZE") else "") as page:
        yield page
    stop_kernels(*site)  # or twenty notebooks would hold twenty kernels


@pytest.fixture
def measured():
    return MEASURED


def pytest_terminal_summary(terminalreporter) -> None:
    if MEASURED:
        terminalreporter.section("panels, as measured in the browser")
        for line in MEASURED:
            terminalreporter.write_line(line)
