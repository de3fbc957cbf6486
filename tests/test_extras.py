"""What an extra brings is missing: the message says what to install."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
SUM = (
    "import numpy as np; from fedlearn.privacy import secure_sum; secure_sum(np.eye(3, dtype='u4'))"
)
USES = {  # what is missing -> the code that needs it, and how it is to be had
    "ipywidgets": ("import fedlearn.panels", "fedlearn[lab]"),
    "anywidget": ("from fedlearn.panels import Panel", "fedlearn[lab]"),
    "traitlets": ("import fedlearn.panels.engine", "fedlearn[lab]"),
    "flwr": ("import fedlearn.flower", "fedlearn[flower]"),
    "flwr.clientapp": ("from fedlearn.flower import GridClients", "fedlearn[flower]"),
    "dp_accounting": (
        "import fedlearn.privacy as p; p.epsilon(1, 0.1, 9, 1e-5)",
        "fedlearn[privacy]",
    ),
    "cryptography": (SUM, "fedlearn[privacy]"),
    "Crypto": (SUM, "fedlearn[privacy]"),
    "pandas": ("from fedlearn import History; History({'loss': [1.0]}).to_frame()", "pandas"),
}


# In one process, which has PyTorch: each use meets a package that it sees for the first time.
EACH = f"""
import json, sys
import torch

said = {{}}
for missing, (code, _) in {USES!r}.items():
    for name in [n for n in sys.modules if n.partition(".")[0] == "fedlearn"]:
        del sys.modules[name]
    there = {{n: m for n, m in sys.modules.items() if (n + ".").startswith(missing + ".")}}
    sys.modules.update(dict.fromkeys(there, None) | {{missing: None}})
    try:
        exec(code, {{}})
    except Exception as e:
        said[missing] = [type(e).__name__, str(e)]
    del sys.modules[missing]
    sys.modules.update(there)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said():
    done = subprocess.run([sys.executable, "-c", EACH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("missing", USES)
def test_a_missing_extra_says_what_to_install(said, missing):
    _, cure = USES[missing]
    kind, words = said[missing]
    assert kind == "ImportError" and "pip install" in words and cure in words
    if "[" in cure:
        assert cure.split("[")[1].rstrip("]") in EXTRAS, "an extra of that name exists"


@pytest.mark.slow
def test_without_any_extra_the_core_and_the_pictures_work():
    """All that isn't panels, Flower or cryptography runs on the dependencies alone."""
    gone = ("ipywidgets", "anywidget", "traitlets", "IPython", "flwr", "dp_accounting",
            "cryptography", "Crypto", "pandas")  # fmt: skip
    code = f"""
import sys
sys.modules.update(dict.fromkeys({gone!r}))
import fedlearn.asynchronous, fedlearn.attacks, fedlearn.diagnostics, fedlearn.federated_optimizer
import fedlearn.fleet, fedlearn.plots, fedlearn.privacy, fedlearn.skew
from fedlearn import Recipe, Simulated, algorithms, collect, data, federate, model, partition, rng
d, task = data.load("digits"), model.softmax_regression(64, 10)
parts = partition.iid(d.y.numpy(), 3, rng.numpy_rng(0))
clients = Simulated(Recipe(algorithms.fedavg(task, lr=0.5), task.theta0), d.x, d.y, parts)
print(len(collect(federate(clients, rounds=2), progress=True)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr[-800:]
