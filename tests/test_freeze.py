"""``tools/freeze.py`` makes executed notebooks fit to be stored."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "tools" / "freeze.py"
spec = importlib.util.spec_from_file_location("freeze", FILE)
freeze = importlib.util.module_from_spec(spec)
spec.loader.exec_module(freeze)


def test_freeze(tmp_path):
    view = "application/vnd.jupyter.widget-view+json"
    png = {view: {"model_id": "x"}, "image/png": "AAAA", "text/plain": "said"}
    bare = {view: {"model_id": "x"}, "text/plain": "said"}
    outputs = [{"output_type": "display_data", "data": d, "metadata": {}} for d in (png, bare)]
    cell = {"cell_type": "code", "id": "a", "source": "1", "metadata": {"execution": {"t": 1}},
            "outputs": outputs, "execution_count": 1}  # fmt: skip
    note = {"cells": [cell], "metadata": {"widgets": {}}, "nbformat": 4, "nbformat_minor": 5}
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(note))
    assert freeze.freeze(path) and not freeze.freeze(path)
    now = json.loads(path.read_text())
    assert list(now["cells"][0]["outputs"][0]["data"]) == ["image/png", "text/plain"]
    assert view in now["cells"][0]["outputs"][1]["data"], "without a picture the view stays"
    assert now["metadata"] == {} and now["cells"][0]["metadata"] == {}
    assert [f.name for f in tmp_path.iterdir()] == ["a.ipynb"]
    (tmp_path / "b.ipynb").write_text("{")
    with pytest.raises(ValueError, match="not a notebook"):
        freeze.freeze(tmp_path / "b.ipynb")


def test_it_runs_as_a_command(tmp_path):
    note = tmp_path / "a.ipynb"
    note.write_text('{"cells": [], "metadata": {"widgets": {}}, "nbformat": 4}')
    run = lambda *more: subprocess.run(
        [sys.executable, FILE, *more], capture_output=True, text=True, timeout=60
    )
    assert [run(note).stdout for _ in range(2)] == [f"{note}: frozen\n", f"{note}: nothing to do\n"]
    nothing = run()
    assert nothing.returncode == 2 and "usage: python tools/freeze.py" in nothing.stdout
