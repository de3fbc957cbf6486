"""Every lesson and the handout run top to bottom, offline, and are stored clean and tagged.

Tags say what a cell is for: what a panel needs (``setup``), a ``panel``, a ``check`` of a claim or
an answer, an ``exercise``, its ``solution``, a ``figure``, an experiment ``further`` on.
"""

from __future__ import annotations

import ast
import asyncio
import copy
import os
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from needed import needed, shows_a_panel, taken
from skeleton import hidden, tags

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
PAGES = [*NOTEBOOKS, Path(__file__).parents[1] / "teaching" / "your_own.ipynb"]  # and the handout
TOOLS = str(Path(__file__).parents[1] / "tools")
LIMIT_S = 300  # a hang, not a speed test
AT_A_TIME = min(8, 1 + max(2, os.cpu_count() or 2))  # one more than cores: lesson 19 waits a lot
TAGS = {"setup", "panel", "check", "exercise", "solution", "figure", "further"}

# The kernel may talk to this machine only: whatever else is looked up or called is refused.
OFFLINE = """
import socket
def _refuse(*a, **k):
    raise OSError("no network (refused by the test)")
_connect, _look_up = socket.socket.connect, socket.getaddrinfo
def connect(self, address):
    inet = self.family in (socket.AF_INET, socket.AF_INET6)
    here = not inet or address[0].startswith(("127.", "::1"))
    return _connect(self, address) if here else _refuse()
def getaddrinfo(host, *a, **k):
    return _look_up(host, *a, **k) if host in ("127.0.0.1", "::1", "localhost", None) else _refuse()
socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
"""


def outputs(nb: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [o for c in nb.cells if c.cell_type == "code" for o in c.outputs]


def complaints(nb: nbformat.NotebookNode) -> list[str]:
    """Errors and warnings among the outputs."""
    said = [o.text for o in outputs(nb) if o.get("name") == "stderr"]
    return said + [f"{o.ename}: {o.evalue}" for o in outputs(nb) if o.output_type == "error"]


def recording(nb: nbformat.NotebookNode, stem: str, kept: Path) -> None:
    """After each panel a cell that keeps two settings of it, for the tests of the pages."""
    for i in sorted(tagged(nb, "panel"), reverse=True):
        keep = f"keep([*Out.values()][-1], {stem!r}, {nb.cells[i].id!r}, Path({str(kept)!r}))"
        code = f"from pathlib import Path\nfrom pages.recordings import keep\n{keep}"
        nb.cells.insert(i + 1, nbformat.v4.new_code_cell(code))


def execute(path: Path, folder: Path, kept: Path) -> tuple[nbformat.NotebookNode, float]:
    """Run a copy in an empty folder, offline; what a run leaves behind lands there.

    Its panels are recorded in passing, if it is a lesson: the handout has no page.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(OFFLINE)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), TOOLS, os.getenv("PYTHONPATH")])),
        "XDG_CACHE_HOME": str(folder),
        "FEDLEARN_FAST": "1",
        "OMP_NUM_THREADS": "1",  # a notebook a core
    }
    env.pop("FEDLEARN_DATA", None)
    nb = nbformat.read(path, as_version=4)
    if path in NOTEBOOKS:
        recording(nb, path.stem, kept)
    started = time.perf_counter()
    client = NotebookClient(nb, timeout=LIMIT_S, resources={"metadata": {"path": str(folder)}})
    asyncio.run(client.async_execute(env=env, cwd=str(folder)))  # execute() leaves a loop open
    return nb, time.perf_counter() - started


@pytest.fixture(scope="module")
def executed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[Path, Future]:
    """The chosen notebooks, three at a time or one more than there are cores; lesson 19 first."""
    root = tmp_path_factory.mktemp("notebooks")
    kept = request.config.cache.mkdir("recorded")
    chosen = {
        i.callspec.params["path"] for i in request.session.items if "executed" in i.fixturenames
    }
    pool = ThreadPoolExecutor(AT_A_TIME)
    first = sorted(chosen, key=lambda p: (not p.stem.startswith("19"), p))
    jobs = {p: pool.submit(execute, p, root / p.stem, kept) for p in first}
    yield jobs
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_runs_offline_without_error_or_warning(executed, path, record_property):
    nb, seconds = executed[path].result()
    record_property("measured", f"{path.stem}: {seconds:.1f} s")
    assert complaints(nb) == []
    assert not any("deployment broke down" in o.get("text", "") for o in outputs(nb))


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_stored_clean(path):
    text = path.read_text()
    nb = nbformat.reads(text, as_version=4)
    nbformat.validate(nb)
    code = [c for c in nb.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), "not run in order"
    assert complaints(nb) == []
    assert "widget-view" not in text and "widgets" not in nb.metadata, "run tools/freeze.py over it"
    assert not any("execution" in c.metadata for c in code), "timings stored: run tools/freeze.py"
    assert len(text) < 1_000_000, f"{len(text)} bytes: store smaller pictures"
    machine = re.search(r"/(?:home|Users|root|tmp|work)/[\w.]+", words(nb))
    assert not machine, f"a machine's path: {machine}"


def words(nb: nbformat.NotebookNode) -> str:
    """All that can be read: sources and textual outputs, no pictures."""
    parts = [c.source for c in nb.cells]
    for o in outputs(nb):
        texts = {k: v for k, v in o.get("data", {}).items() if k.startswith("text/")}
        parts += [
            o.get("text", ""),
            *(v if isinstance(v, str) else "".join(v) for v in texts.values()),
        ]
    return "\n".join(parts)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_cells_are_short(path):
    nb = nbformat.read(path, as_version=4)
    for c in nb.cells:
        if c.cell_type == "code" and not hidden(c):
            lines = [ln for ln in c.source.splitlines() if ln.strip()]
            assert len(lines) <= 25, f"{len(lines)} lines: cut it in two:\n{c.source[:300]}"


def test_there_are_lessons():
    assert [p.stem[:2] for p in NOTEBOOKS][:5] == ["00", "01", "02", "03", "04"]


# -- tags -----------------------------------------------------------------------------------------


def tagged(nb: nbformat.NotebookNode, *names: str) -> set[int]:
    """Numbers of the cells that have one of these tags."""
    return {i for i, c in enumerate(nb.cells) if tags(c) & set(names)}


def shown(nb: nbformat.NotebookNode, numbers: set[int]) -> str:
    """Cells in words, for a message."""
    return "; ".join(f"{i} ({nb.cells[i].source[:50]!r})" for i in sorted(numbers))


def check_tags(nb: nbformat.NotebookNode) -> None:
    """Every rule about single cells; the tests below are about what belongs together."""
    further = False
    for i, cell in enumerate(nb.cells):
        mine, where = tags(cell), f"cell {i} ({cell.source[:50]!r})"
        assert mine <= TAGS, f"{where}: unknown tags {mine - TAGS}"
        assert len(mine) == len(cell.metadata.get("tags", ())), f"{where}: a tag twice"
        if cell.cell_type == "markdown":
            if title := re.search(r"^#{1,2} (.*)$", cell.source, re.MULTILINE):
                further = title[1].strip().lower() == "further experiments"
            assert mine <= {"exercise", "solution", "further"}, f"{where}: tags of a code cell"
            hint, rest = "<details><summary>Hint", cell.source
            assert hint not in rest or "exercise" in mine, f"{where}: a hint is in its exercise"
            folded = "<details" in rest.replace(hint, "").replace("<details><summary>The knobs", "")
            assert folded == ("solution" in mine), f"{where}: a solution is in <details>"
        elif cell.cell_type == "code":
            asserts = any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(cell.source)))
            assert not asserts or "check" in mine, f"{where}: it asserts, so it is a check"
            assert shows_a_panel(cell) == ("panel" in mine), f"{where}: a panel, or not"
            drawn = any("image/png" in o.get("data", {}) for o in cell.outputs)
            assert (drawn and "panel" not in mine) == ("figure" in mine), f"{where}: a figure?"
            assert hidden(cell) or "solution" not in mine, f"{where}: a solution is collapsed"
        assert further == ("further" in mine), f"{where}: 'Further experiments' and `further`"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_tags_say_what_a_cell_is(path):
    check_tags(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_the_panels_need_is_setup_and_nothing_else(path):
    nb = nbformat.read(path, as_version=4)
    panels = tagged(nb, "panel")
    assert panels, "a lesson has a panel"
    need, setup = needed(nb.cells, panels), tagged(nb, "setup")
    missing = {i: why for i, why in need.items() if i not in setup}
    assert not missing, f"not tagged `setup`, though a panel needs it: {missing}"
    assert not setup - {*need}, f"`setup` that no panel needs: {shown(nb, setup - {*need})}"
    assert not tagged(nb, "further") & {*need}, "a panel needs a further experiment"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_a_panel_still_moves_when_all_cells_have_run(path):
    cells = nbformat.read(path, as_version=4).cells
    for i in tagged(nbformat.NotebookNode(cells=cells), "panel"):
        assert not (lost := taken(cells, i)), (
            f"cell {i}'s panel reads names that cells take: {lost}"
        )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_exercise_is_checked_and_solved(path):
    """A text, code to write, a check. Then the solution: before the next exercise, or, if it has a
    number, under this number in the next solutions."""
    nb = nbformat.read(path, as_version=4)
    texts = [i for i in sorted(tagged(nb, "exercise")) if nb.cells[i].cell_type == "markdown"]
    assert texts, "a lesson has exercises"
    for start, end in zip(texts, [*texts[1:], len(nb.cells)]):
        what = f"exercise in cell {start} ({nb.cells[start].source[:50]!r})"
        named = re.match(r"\**Exercise (\d+)", nb.cells[start].source)
        number = int(named[1]) if named else None
        solutions = [i for i in sorted(tagged(nb, "solution")) if i >= start]
        assert solutions, f"{what}: no solution after it"
        checks = [i for i in sorted(tagged(nb, "check")) if start < i < end]
        assert checks, f"{what}: no check before the next exercise"
        assert checks[0] < solutions[0], f"{what}: the solution comes before the check"
        if number is None:
            assert solutions[0] < end, f"{what}: no solution before the next exercise"
        else:
            item = re.search(rf"^{number}\. ", nb.cells[solutions[0]].source, re.MULTILINE)
            assert item, f"{what}: the next solutions have no item {number}."


def broken(nb: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    """A copy in which the first cell with this tag has lost it."""
    nb = copy.deepcopy(nb)
    cell = nb.cells[min(tagged(nb, tag))]
    cell.metadata["tags"] = [t for t in cell.metadata["tags"] if t != tag]
    return nb


@pytest.mark.parametrize("tag", ["panel", "check", "solution", "figure"])
def test_a_lost_tag_is_noticed(tag):
    with pytest.raises(AssertionError, match=r"cell \d+"):
        check_tags(broken(nbformat.read(NOTEBOOKS[1], as_version=4), tag))


def notebook(*sources: str) -> list[nbformat.NotebookNode]:
    return [nbformat.v4.new_code_cell(s) for s in sources]


@pytest.mark.parametrize(
    ("sources", "need"),
    [
        (["import a", "b = 1", "c = a", "Panel(c)"], [0, 2]),
        (["def f():\n    return x", "x = 1", "y = f()", "Panel(y)"], [0, 1, 2]),  # called: x
        (["def f():\n    return x", "x = 1", "y = f", "Panel(y)"], [0, 1, 2]),  # handed on
        (["x = 1", "x = 2", "Panel(x)"], [1]),
        (["x = 1", "f = lambda: x", "x = 2", "Panel(f)"], [1, 2]),  # the x at the time of the call
        (["x = []", "x.append(1)", "Panel(x)"], [0, 1]),
        (["x = {}", "x['a'] = 1", "x.b = 2", "y = 3", "Panel(x)"], [0, 1, 2]),
        (["n = 0", "for i in range(3):\n    n += i", "Panel(n)"], [0, 1]),
        (["i = 7", "for i in range(3):\n    j = i", "Panel(j)"], [1]),
        (["x = 1", "y = [x for x in range(3)]", "Panel(y)"], [1]),
        (["k = 2", "y = [k * x for x in range(3)]", "Panel(y)"], [0, 1]),
        (["h = 1", "def f():\n    return g()", "def g():\n    return h", "Panel(f)"], [0, 1, 2]),
        (["import numpy as np", "z = np.append([], 1)", "Panel(np)"], [0]),
    ],
)
def test_what_a_panel_needs_is_followed_backwards(sources, need):
    assert [*needed(notebook("Panel = 0", *sources), {len(sources)})] == [0, *(i + 1 for i in need)]


def test_a_name_that_nothing_makes_is_named():
    with pytest.raises(AssertionError, match="'x', read in cell 1"):
        needed(notebook("Panel = 0", "Panel(x)", "x = 1"), {1})
