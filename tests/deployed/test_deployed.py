"""A real deployment on this machine: the same bits, and what ``kill -9`` and strangers do to it."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("flwr.clientapp", reason="needs flwr: pip install 'fedlearn[flower]'")
if os.name != "posix":
    pytest.skip("ends processes by their group: Linux and macOS", allow_module_level=True)

import httpx

from fedlearn import Simulated, federate
from fedlearn.flower.keys import make_keys
from fedlearn.flower.local import Local, _script, free_ports
from fedlearn.privacy.secure_aggregation.stages import desk_of
from fedlearn.transform import Context

APP = Path(__file__).parents[2] / "examples" / "flower"
ROUNDS = 2
LONG = 300.0  # seconds: nothing waits so long unless it hangs
SPY = '''

class Spy:
    """The grid, and beside it files of this process's number and of all that reaches the server."""

    def __init__(self, grid, how):
        self.grid, self.file = grid, f"{how['folder']}/{how['name']}.received"
        with open(f"{how['folder']}/{how['name']}.pid", "w") as f:
            f.write(str(os.getpid()))

    def __getattr__(self, name):
        return getattr(self.grid, name)

    def pull_messages(self, message_ids):
        came = [*self.grid.pull_messages(message_ids)]
        with open(self.file, "ab") as f:
            for m in came:
                plain = lambda v: v.numpy() if hasattr(v, "numpy") else v
                for name, record in m.content.items() if m.has_content() else ():
                    pickle.dump((name, {k: plain(v) for k, v in record.items()}), f)
        return came


def known(grid, how):
    """The nodes, found once: to look for them again costs a process each."""
    file = f"{how['folder']}/nodes-{how['clients']}"
    if not os.path.exists(file):
        with open(file, "wb") as f:
            pickle.dump(GridClients(recipe_of("fedavg"), grid, how["clients"]).node_of, f)
    with open(file, "rb") as f:
        return pickle.load(f)
'''


@pytest.fixture
def example(monkeypatch):
    """The example's modules, in this process: prepare, here and digits.recipe."""
    monkeypatch.syspath_prepend(str(APP))
    names = ("prepare", "here", "digits", "digits.recipe")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


@pytest.fixture
def app(tmp_path):
    """The example, with a server that writes down what it receives."""
    there = shutil.copytree(APP, tmp_path / "app")
    file, begin = there / "digits" / "server.py", '    """One run."""\n'
    source = file.read_text()
    assert source.count(begin) == source.count('how["clients"]') == 1
    source = source.replace('how["clients"]', "known(grid, how)")
    listens = "    grid = Spy(grid, context.run_config)\n"
    file.write_text(source.replace(begin, begin + listens) + "\n\nimport os, pickle" + SPY)
    return there


class Runs:
    """Runs of the app on a deployment, and what they must come to."""

    def __init__(self, local, app, data, here):
        self.local, self.app, self.data, self.here = local, app, data, here

    def start(self, method, **how):
        config = {"folder": str(self.data), "clients": 2, "minimum": 2, "timeout": LONG}
        config |= {"rounds": ROUNDS, "method": method, "name": method, **how}
        return self.local.run(self.app, config)

    def first_round(self, method):
        """Wait for the checkpoint of a run's first round."""
        self.local.until((self.data / f"{method}.ckpt").exists, f"a round of {method}")

    def end(self, method, run, rounds=ROUNDS):
        """Its own rounds, by what it prints; its digest must be that of a run in one process."""
        said = [*self.local.lines(run)]
        theirs = [line.split()[-1] for line in said if line.startswith("digest")]
        assert theirs == [self.here(self.data, method, rounds)], said
        return [line.split(":")[0] for line in said if line.startswith("round")]

    def trains(self, k):
        """Wait until the node of client k has taken one more round's letter."""
        log = lambda: self.local.log(f"node-{k}")
        before = log().count("Receiving: train")
        taken = lambda: "Received successfully" in log().rpartition("Receiving: train")[2]
        more = lambda: log().count("Receiving: train") > before and taken()
        self.local.until(more, f"node {k} trains")


def strangers(local, tmp_path):
    """Nodes that must not get in: a key that nobody registered, a server of another authority."""
    other = make_keys(tmp_path / "other", 1)
    ways = [{"auth_supernode_private_key": str(other / "node-0")},
            {"root_certificates": str(other / "ca.crt")}]  # fmt: skip
    for way, port in zip(ways, free_ports(2)):
        program, *words = local.node_command(0, port=str(port), **way)
        yield subprocess.Popen(
            [_script(program), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=local.environment(), start_new_session=True,
        )  # fmt: skip


def refused(local, path, **headers):
    """The SuperLink's answer to a request without, or with a wrong, token."""
    trust = ssl.create_default_context(cafile=local.keys / "ca.crt")
    said = httpx.post(
        f"https://{local.address}/v1/runtime/{path}", content=b"", verify=trust, trust_env=False,
        headers={"content-type": "application/protobuf", **headers},
    )  # fmt: skip
    return said.status_code


def received(file):
    with file.open("rb") as f:
        while True:
            try:
                yield pickle.load(f)
            except EOFError:
                return


def alive(groups):
    def there(group):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True

    return [group for group in groups if there(group)]


@pytest.mark.slow
def test_deployed_it_gives_the_same_bits_whatever_is_killed(
    app, example, tmp_path, record_property
):
    """Runs go on side by side where they can: a node waits three seconds if it has no letter."""
    began, data = time.monotonic(), tmp_path / "data"
    example["prepare"].main(str(data), "3")
    third = (data / "client-2.npz").rename(tmp_path / "client-2.npz")  # in one run alone
    files = [data / "client-0.npz", data / "client-1.npz", third]
    own = [{"data": str(file), "keep": str(tmp_path)} for file in files]
    with Local(own, limit=LONG) as local:
        folder, runs = local.folder, Runs(local, app, data, example["here"].run_here)
        outside = [*strangers(local, tmp_path)]
        broken = runs.start("scaffold")
        lost = {"clients": 3, "rounds": 1, "timeout": 15.0, "tries": 40}
        lost = runs.start("fedavg", name="lost", **lost)
        runs.trains(2)  # it takes part in that run alone
        local.kill("node-2", "node-2-exec")
        fedavg = runs.start("fedavg", rounds=1)
        directory = str(local.keys / "directory.json")
        secure = runs.start("secure", rounds=1, directory=directory)

        runs.first_round("scaffold")
        os.kill(int((data / "scaffold.pid").read_text()), signal.SIGKILL)  # its ServerApp
        local.flwr("stop", broken)  # else nodes wait a minute for what it had begun to send
        scaffold = runs.start("scaffold")
        assert runs.end("scaffold", scaffold)[-1:] == ["round 1"]
        assert runs.end("fedavg", fedavg, rounds=1) == ["round 0"]
        assert runs.end("secure", secure, rounds=1) == ["round 0"]
        said = [*local.lines(lost)]
        assert [line for line in said if line.startswith("round 0: 2 of 3 clients")], said
        assert [line for line in said if "client 2" in line and "left out of round 0" in line], said

        for process, why in zip(outside, ("Failed to activate", "CERTIFICATE_VERIFY_FAILED")):
            words, _ = process.communicate(timeout=LONG)
            assert process.returncode and why in words, words[-800:]
        assert refused(local, "get-nodes", **{"flwr-task-token": "wrong"}) == 401
        assert refused(local, "acquire-task") == 401, "a stranger fetches no task"

        broken = runs.start("fedadam")
        runs.first_round("fedadam")
        local.kill("link", "link-exec")
        local.start_link()
        local.flwr("stop", broken)
        assert runs.end("fedadam", runs.start("fedadam")) == ["round 1"]
        groups = [process.pid for process in local.processes.values()]
    assert not alive(groups) and not folder.exists()
    saw_nothing(data, example["digits.recipe"])
    record_property("measured", f"deployed: seven runs in {time.monotonic() - began:.0f} s")


def saw_nothing(data, recipe):
    """What reached the server in the secure run: no update, and nothing that is as long as one."""
    records = [*received(data / "secure.received")]
    vectors = [r["y"] for name, r in records if name == "reply" and "y" in r]
    assert len(vectors) == 2 and {v.dtype.name for v in vectors} == {"int32"}
    for k in range(2):
        x, y, rows = recipe.examples(data / f"client-{k}.npz")
        r = next(federate(Simulated(recipe.recipe_of("fedavg"), x, y, [rows], chunk=1), rounds=1))
        who, n = np.array([k]), torch.tensor([float(len(rows))])
        plain = desk_of(recipe.recipe_of("secure").pipeline).residues(
            r.deltas, n, Context(0, 0, who, who)
        )
        for masked in vectors:
            assert not (masked.view(np.uint32) == plain[k]).any()
    assert {name for name, _ in records} <= {"client", "secure", "reply"}
    assert all(len(r["said"]) < 6000 for name, r in records if name == "secure")


def running():
    """The command lines of all processes of this machine."""
    if not Path("/proc/self/cmdline").exists():
        return subprocess.run(["ps", "-Ao", "args"], capture_output=True, text=True).stdout
    said = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            said.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(said)


ENDS = {
    "ctrl-c": ("SuperLink on", lambda group: os.killpg(group, signal.SIGINT)),  # as a terminal does
    "terminated": ("node 0 has joined", lambda process: os.kill(process, signal.SIGTERM)),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_a_demo_that_is_interrupted_leaves_nothing_behind(how, tmp_path):
    folder, said, (when, interrupt) = tmp_path / "demo", [], ENDS[how]
    words = ["-m", "fedlearn.flower", "demo", "--clients", "1", "--folder", str(folder)]
    hears = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the background it is ignored
    with subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, preexec_fn=hears,
    ) as process:  # fmt: skip
        for line in process.stdout:
            said.append(line)
            if when in line:
                interrupt(process.pid)
    assert process.returncode in (130, 143) and "Traceback" not in "".join(said), said
    assert str(folder) not in running()
    assert (folder / "logs" / "link.log").exists(), "the folder that was asked for is kept"


def test_a_folder_that_holds_something_is_refused_and_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="folder must be empty"), Local([{}], folder=tmp_path):
        pass
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


def test_an_error_at_the_start_ends_what_was_started(tmp_path):
    local = Local([{}], folder=tmp_path / "a")
    local.start_link = lambda: (
        local._start("link", "flower-superlink", "--no-such-option")
        or (local.until(lambda: False, "what never comes"))
    )
    with pytest.raises(RuntimeError, match="link has ended before what never comes"), local:
        pass
    assert not local.processes


@pytest.mark.parametrize("place", ["here", "with a space"])
def test_flower_in_a_folder_with_a_space_runs_from_a_copy_without(place, tmp_path, monkeypatch):
    """Its SuperLink lists folders with spaces between them, finds none, and makes no table."""
    import flwr

    (tmp_path / "a b" / "flwr").mkdir(parents=True)
    (tmp_path / "a b" / "flwr" / "__init__.py").write_text("")
    monkeypatch.setattr(flwr, "__file__", str(tmp_path / "a b" / "flwr" / "__init__.py"))
    local = Local([{}])
    local.folder = tmp_path / place
    if place == "here":
        first = Path(local._spaceless()["PYTHONPATH"].split(os.pathsep)[0])
        assert " " not in str(first) and (first / "flwr" / "__init__.py").exists()
    else:
        with pytest.raises(ValueError, match="without a space"):
            local._spaceless()
