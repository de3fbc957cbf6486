"""Every lesson runs top to bottom on a laptop without network, and is stored clean."""

from __future__ import annotations

import asyncio
import os
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LIMIT_S = 300  # a hang, not a speed test

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


def execute(path: Path, folder: Path) -> tuple[nbformat.NotebookNode, float]:
    """Run a copy in an empty folder, offline; what a run leaves behind lands there."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(OFFLINE)
    env = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "XDG_CACHE_HOME": str(folder),
        "FEDLEARN_FAST": "1",
        "OMP_NUM_THREADS": "1",  # two notebooks at a time on two cores
    }
    env.pop("FEDLEARN_DATA", None)
    nb = nbformat.read(path, as_version=4)
    started = time.perf_counter()
    client = NotebookClient(nb, timeout=LIMIT_S, resources={"metadata": {"path": str(folder)}})
    asyncio.run(client.async_execute(env=env, cwd=str(folder)))  # execute() leaves a loop open
    return nb, time.perf_counter() - started


@pytest.fixture(scope="module")
def executed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[Path, Future]:
    """The chosen notebooks, running two at a time."""
    root = tmp_path_factory.mktemp("notebooks")
    chosen = {
        i.callspec.params["path"] for i in request.session.items if "executed" in i.fixturenames
    }
    pool = ThreadPoolExecutor(2)
    jobs = {p: pool.submit(execute, p, root / p.stem) for p in sorted(chosen)}
    yield jobs
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_offline_without_error_or_warning(executed, path, record_property):
    nb, seconds = executed[path].result()
    record_property("measured", f"{path.stem}: {seconds:.1f} s")
    assert complaints(nb) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_are_short(path):
    nb = nbformat.read(path, as_version=4)
    for c in nb.cells:
        if c.cell_type == "code" and not c.metadata.get("jupyter", {}).get("source_hidden"):
            lines = [ln for ln in c.source.splitlines() if ln.strip()]
            assert len(lines) <= 25, f"{len(lines)} lines: cut it in two:\n{c.source[:300]}"


def test_there_are_lessons():
    assert [p.stem[:2] for p in NOTEBOOKS][:5] == ["00", "01", "02", "03", "04"]
