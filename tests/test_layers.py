"""Imports point down only, and ``import fedlearn`` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fedlearn"
LAYERS = [  # lowest first; within a layer, files may import one another
    {"checks", "files", "rng"},
    {"partition"},
    {"batches", "data", "task", "module", "skew"},
    {"transform", "optim", "descend", "model", "diagnostics"},
    {
        "algorithms",
        "aggregate",
        "federated_optimizer",
        "history",
        "participation",
        "fleet",
        "workers",
    },
    {"recipe", "checkpoint", "fold", "simulated", "loop"},
    {"asynchronous", "compress", "privacy", "attacks", "personal", "vertical"},
    {"plots", "flower"},
    {"panels"},
]
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer}
ONLY = {  # who may import it, at the top of a file or inside a function
    "ipywidgets": {"panels"},
    "anywidget": {"panels"},
    "IPython": {"panels", "plots"},
    "joblib": {"panels", "workers"},
    "cloudpickle": {"workers"},
    "matplotlib": {"plots", "panels"},
    "flwr": {"flower"},
    "sklearn": {"data"},
    "torchvision": {"data", "skew"},
    "platformdirs": {"data"},
    "dp_accounting": {"privacy"},
    "cryptography": {"privacy", "vertical", "flower"},
    "Crypto": {"privacy"},
}
HEAVY = set(ONLY) | {"tqdm", "scipy", "pandas"}  # none of it at import
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(file: Path) -> set[tuple[str, ...]]:
    """Absolute dotted names of everything a file imports, anywhere in it."""
    here, names = file.relative_to(PACKAGE.parent).with_suffix("").parts, set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {tuple(a.name.split(".")) for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            names |= {(*base, a.name) for a in node.names}
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down(file):
    me = file.relative_to(PACKAGE).with_suffix("").parts[0]
    if me == "__init__":
        return
    assert me in LEVEL, f"{me} belongs to no layer: add it to LAYERS"
    for top, *rest in imported(file):
        if top == "fedlearn" and rest:
            assert LEVEL[rest[0]] <= LEVEL[me], f"{me} imports {rest[0]}, which lies above it"
        assert me in ONLY.get(top, {me}), f"{me} imports {top}; only {ONLY[top]} may"


def test_import_is_light():
    """Beyond what ``import torch`` brings along itself."""
    code = """
import sys, torch
before = set(sys.modules)
import fedlearn, fedlearn.loop
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fedlearn" in out.stdout.split()
    assert not HEAVY & set(out.stdout.split())
