"""A real deployment on this machine: the same bits, and what ``kill -9`` and strangers do to it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr.clientapp", reason="needs flwr: pip install 'fedlearn[flower]'")
if os.name != "posix":
    pytest.skip("ends processes by their group: Linux and macOS", allow_module_level=True)

from fedlearn.flower.local import Local

APP = Path(__file__).parents[1] / "examples" / "flower"
ROUNDS = 2
LONG = 600.0  # seconds: no test waits so long unless something hangs


def python(*words):
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=APP, capture_output=True, text=True, timeout=LONG
    )
    assert done.returncode == 0, done.stderr[-800:]
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    python("prepare.py", folder, 2)
    return folder


@pytest.fixture(scope="module")
def local(data):
    own = [{"data": f"{data}/client-{k}.npz", "keep": str(data)} for k in range(2)]
    with Local(own, limit=LONG) as local:
        yield local


def started(local, data, method, **how):
    config = {"folder": str(data), "clients": 2, "minimum": 2, "timeout": LONG, "rounds": ROUNDS}
    return local.run(APP, {**config, "method": method, "name": method, **how})


def ended(local, data, run, method):
    """What the run printed: the rounds it did itself, with the digest of a run in one process."""
    said = [*local.lines(run)]
    theirs = [line.split()[-1] for line in said if line.startswith("digest")]
    assert theirs == [python("here.py", data, method, ROUNDS).split()[-1]], said
    return [line.split(":")[0] for line in said if line.startswith("round")]


@pytest.mark.slow
def test_the_same_bits_deployed_whatever_is_killed(local, data, record_property):
    began = time.monotonic()
    assert ended(local, data, started(local, data, "fedavg"), "fedavg") == ["round 0", "round 1"]

    started(local, data, "scaffold")
    local.until((data / "scaffold.ckpt").exists, "a round of SCAFFOLD")
    local.kill("link-exec")  # and its ServerApp; nodes keep what they remember
    local.start_executor("link")
    assert ended(local, data, started(local, data, "scaffold"), "scaffold") == ["round 1"]

    started(local, data, "fedadam")
    local.until((data / "fedadam.ckpt").exists, "a round of FedAdam")
    local.kill("link", "link-exec")
    local.start_link()
    assert ended(local, data, started(local, data, "fedadam"), "fedadam") == ["round 1"]
    record_property("measured", f"three methods, two kills: {time.monotonic() - began:.0f} s")
