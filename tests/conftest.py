"""What every test shares: a thread each, repeatable hypothesis, a closed network, measurements."""

from __future__ import annotations

import os
import socket

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # each has its share of the cores, and so has what it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # tiny matrices: a second thread only waits

# derandomize: a change is judged by the same examples on every machine. deadline: a slow machine
# is no failure.
settings.register_profile("fedlearn", derandomize=True, deadline=None, database=None)
settings.load_profile("fedlearn")


@pytest.fixture
def closed_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """No name resolves, no socket connects. The list holds every address that was tried."""
    tried: list[object] = []

    def refuse(*args: object, **kwargs: object) -> None:
        tried.append(args)
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lines that tests gave to ``record_property("measured", ...)``, in this process or another."""
    done = [r for key in ("passed", "failed") for r in terminalreporter.stats.get(key, [])]
    lines = {r.nodeid: v for r in done for k, v in r.user_properties if k == "measured"}
    if lines:
        terminalreporter.section("measured")
        for _, line in sorted(lines.items()):
            terminalreporter.write_line(str(line))
