"""A whole Flower deployment on this machine: a SuperLink and SuperNodes, each a process."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checks import check, whole
from ..partition.files import place, write_whole
from .keys import make_keys

HOST = "127.0.0.1"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
GRACE = 6.0  # seconds to end by oneself


class Local:
    """A deployment on 127.0.0.1, with TLS, node authentication and an authority of its own.

    The processes are those of a deployment on many machines, started with the same options: a
    SuperLink, a SuperNode for each client, and beside each of them its SuperExec, which starts
    ServerApp and ClientApps. Ports are free ones, Flower's telemetry and update check are off, and
    all that Flower writes lies in one folder. At the end of the ``with`` block, whatever ends it,
    all processes are ended. Linux and macOS.

    Args:
        node_configs: What each node is told beside ``partition-id`` and the files of its keys, from
            client 0 on.
        folder: Where keys, logs and Flower's state go; None for a temporary one, which is removed.
        say: Gets a line of progress.
        limit: Seconds that a step may take before it counts as failed.

    Attributes:
        folder: Where all of it lies.
        address: Of the SuperLink, host and port.
        processes: Name -> its process; each leads a process group of its own.

    Raises:
        RuntimeError: From the ``with`` block, if a process ends or isn't ready in time; with the
            last lines of its log.
        ValueError: If there is no node, or the folder isn't empty.

    Example:
        >>> local = Local([{"data": "client-0.npz"}, {"data": "client-1.npz"}])
        >>> len(local.node_configs), local.processes  # nothing is started before `with local:`
        (2, {})
    """

    def __init__(
        self,
        node_configs: list[dict[str, Any]],
        *,
        folder: str | Path | None = None,
        say: Callable[[str], None] = lambda line: None,
        limit: float = 300.0,
    ):
        good, rule = len(node_configs) > 0, "a dict for each node, one at least"
        check("Local", "node_configs", node_configs, good, rule, "[{'data': 'client-0.npz'}]")
        self.node_configs, self.say, self.limit = node_configs, say, limit
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._asked, self._ports = folder, dict[str, int]()

    # -- start and stop ----------------------------------------------------------------------------

    def __enter__(self) -> "Local":
        if os.name != "posix":
            raise RuntimeError("Local: ends processes by their group, which needs Linux or macOS")
        self._temporary = self._asked is None
        made = tempfile.mkdtemp(prefix="fedlearn-flower-") if self._asked is None else self._asked
        self.folder = place(made).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        empty, rule = not any(self.folder.iterdir()), "empty, or not there yet"
        check("Local", "folder", str(self.folder), empty, rule, "'flower-demo'")
        try:
            self._begin()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _begin(self) -> None:
        N = len(self.node_configs)
        self.keys = make_keys(self.folder / "keys", N)
        for name in ("home", "logs"):
            (self.folder / name).mkdir()
        self.say(f"keys and certificates of an own authority: {self.keys}")
        self._ports = dict(zip(["link", *(f"node-{k}" for k in range(N))], free_ports(N + 1)))
        self.address = f"{HOST}:{self._ports['link']}"
        to = {"address": self.address, "root-certificates": str(self.keys / "ca.crt")}
        lines = ["[superlink]", 'default = "local"', "[superlink.local]", *map(_toml, to.items())]
        write_whole(self.folder / "home" / "config.toml", "\n".join(lines).encode())
        self.start_link()
        self.say(f"SuperLink on {self.address}, TLS")
        for k in range(N):
            self._register(k)
            self.say(f"key of node {k} registered")
        for k in range(N):
            self.start_node(k)
        for k in range(N):
            self.joined(k)
            self.say(f"node {k} has joined")

    def _register(self, k: int) -> None:
        try:
            self.flwr("supernode", "register", str(self.keys / f"node-{k}.pub"))
        except RuntimeError as e:
            raise RuntimeError(f"{e}\nlink:\n{self._last('link')}") from None

    def start_link(self) -> None:
        """Start the SuperLink, or start it again on the state that it left."""
        self._start(
            "link",
            "flower-superlink",
            *self._served("link"),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            *("--database", str(self.folder / "link.db")),
        )
        self.until(lambda: _answers(self._ports["link"]), "the SuperLink answers")
        self.start_executor("link")

    def start_node(self, k: int) -> None:
        """Start the node of client k, or start it again."""
        self._start(f"node-{k}", *self.node_command(k))
        self.start_executor(f"node-{k}")

    def node_command(self, k: int, **other: str) -> list[str]:
        """The command of client k's node; other options by name go in the place of its own."""
        own = {"identity": self.keys / f"identity-{k}", "directory": self.keys / "directory.json"}
        config = {"partition-id": k, **{n: str(file) for n, file in own.items()}}
        config |= self.node_configs[k]
        options = {
            "superlink": self.address,
            "root-certificates": str(self.keys / "ca.crt"),
            "auth-supernode-private-key": str(self.keys / f"node-{k}"),
            "node-config": " ".join(map(_toml, config.items())).replace(" = ", "="),
            **{name.replace("_", "-"): value for name, value in other.items()},
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return ["flower-supernode", *self._served(f"node-{k}"), *words]

    def start_executor(self, name: str) -> None:
        """Start the SuperExec of the SuperLink or of a node: it starts the apps."""
        self._start(
            f"{name}-exec",
            "flower-superexec",
            *("--runtime-api-address", f"{HOST}:{self._ports[name]}"),
            *("--root-certificates", str(self.keys / "ca.crt")),
            *("--superexec-auth-secret-file", str(self.keys / "superexec")),
            *("--parent-pid", str(self.processes[name].pid)),
        )

    def _served(self, name: str) -> list[str]:
        """Where it listens, with which certificate, and that its SuperExec has a secret."""
        return [
            *("--host", HOST, "--port", str(self._ports[name]), "--isolation", "process"),
            *("--ssl-ca-certfile", str(self.keys / "ca.crt")),
            *("--ssl-certfile", str(self.keys / "server.pem")),
            *("--ssl-keyfile", str(self.keys / "server.key")),
            *("--superexec-auth-secret-file", str(self.keys / "superexec")),
        ]

    def joined(self, k: int, times: int = 1) -> None:
        """Wait until the node of client k has joined, so often since the beginning."""
        there = lambda: self.log(f"node-{k}").count("SuperNode ID") >= times
        self.until(there, f"node {k} joins")

    def kill(self, *names: str) -> None:
        """``kill -9``, with all that they have started; nothing is tidied up."""
        for name in names:
            self._signal(self.processes[name], signal.SIGKILL)
            self.processes.pop(name).wait()

    def stop(self) -> None:
        """End all processes: asked to, and after some seconds made to. Nodes go first."""
        with _undisturbed():
            nodes = [n for n in self.processes if not n.startswith("link")]
            for some in (nodes, [n for n in self.processes if n not in nodes]):
                for name in some:
                    self._signal(self.processes[name], signal.SIGTERM)
                end = time.monotonic() + GRACE
                while time.monotonic() < end and any(map(self._lives, some)):
                    time.sleep(0.05)
                for name in some:
                    self._signal(self.processes[name], signal.SIGKILL)
                for name in some:
                    self.processes.pop(name).wait()
            if self._temporary:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, program: str, *words: str) -> None:
        environment = self.environment() | (self._spaceless() if name == "link" else {})
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [_script(program), *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment, cwd=self.folder, start_new_session=True,
            )  # fmt: skip

    def _spaceless(self) -> dict[str, str]:
        """A SuperLink makes no tables where its own path has a space: there a copy of it runs."""
        import flwr

        own, there = Path(flwr.__file__).parent, self.folder / "superlink"
        if " " not in str(own):
            return {}
        good, rule = " " not in str(there), "without a space where Flower is installed with one"
        check("Local", "folder", str(self.folder), good, rule, "'flower-demo'")
        if not there.exists():
            shutil.copytree(own, there / "flwr", ignore=shutil.ignore_patterns("__pycache__"))
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(there), os.getenv("PYTHONPATH")]))}

    def _lives(self, name: str) -> bool:
        """Whether a process of its group is there, the first one or one that it started."""
        process = self.processes[name]
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except (ProcessLookupError, PermissionError):  # macOS: only zombies are left
            return False
        return True

    @staticmethod
    def _signal(process: "subprocess.Popen[bytes]", which: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, which)  # its group: nothing else was ever in it

    def environment(self) -> dict[str, str]:
        """What Flower's programs are started with: its own state, and no way out of the machine."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FLWR_")}
        colours = {"FORCE_COLOR", "CLICOLOR_FORCE"}  # Jupyter wants them; answers are read as JSON
        kept = {k: v for k, v in kept.items() if k not in colours}
        here = ",".join(filter(None, [kept.get("NO_PROXY"), HOST, "localhost"]))
        scripts = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
        return kept | {
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.4",  # a second, else
            "OMP_NUM_THREADS": "1",  # many processes share the cores
            "PATH": scripts,
            "NO_PROXY": here,
            "no_proxy": here,
        }

    # -- use ---------------------------------------------------------------------------------------

    def flwr(self, *words: str) -> Any:
        """Run the command ``flwr`` on this deployment. -> what it answers, as JSON

        RuntimeError with what it says if it fails.
        """
        done = subprocess.run(
            [_script("flwr"), *words, "local", "--format", "json"], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, env=self.environment(), cwd=self.folder,
            timeout=self.limit,
        )  # fmt: skip
        said = COLOURS.sub("", done.stdout + done.stderr).strip()
        if done.returncode or '"success": false' in said:
            raise RuntimeError(f"Local: flwr {' '.join(words[:2])} failed: {said[-600:]}")
        return json.loads(done.stdout[done.stdout.index("{") :])

    def run(self, app: str | Path, config: Mapping[str, Any]) -> str:
        """Start a run of an app's folder, with some of its configuration. -> the run's id"""
        file = self.folder / "run.toml"
        write_whole(file, "\n".join(map(_toml, config.items())).encode())
        return str(self.flwr("run", "-c", str(file), str(place(app).resolve()))["run-id"])

    def lines(self, run: str) -> Iterator[str]:
        """What the run's ServerApp prints, line by line, until it ends."""
        with subprocess.Popen(
            [_script("flwr"), "log", run, "local", "--stream"], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment(),
            cwd=self.folder, start_new_session=True,
        ) as reader:  # fmt: skip
            try:
                assert reader.stdout
                for line in reader.stdout:
                    yield COLOURS.sub("", line).rstrip()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(reader.pid, signal.SIGKILL)

    def log(self, name: str) -> str:
        """What a process has written so far."""
        file = self.folder / "logs" / f"{name}.log"
        text = file.read_text(errors="replace") if file.exists() else ""
        return COLOURS.sub("", text)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition. RuntimeError if it isn't met in time, or a process has ended."""
        end = time.monotonic() + self.limit
        while not condition():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(
                        f"Local: {name} has ended before {what}; it says:\n{self._last(name)}"
                    )
            if time.monotonic() > end:
                logs = "\n".join(f"{name}:\n{self._last(name)}" for name in self.processes)
                raise RuntimeError(f"Local: not in {self.limit:g} s: {what}\n{logs}")
            time.sleep(0.1)

    def _last(self, name: str) -> str:
        return "\n".join(self.log(name).strip().splitlines()[-12:])


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nobody listens, all different."""
    whole("free_ports", "count", count)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind((HOST, 0))
        return [s.getsockname()[1] for s in sockets]


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
        return True
    return False


def _script(name: str) -> str:
    """Flower's program of this environment, whatever PATH says."""
    own = Path(sys.executable).with_name(name)
    return str(own) if own.exists() else shutil.which(name) or name


def _toml(item: tuple[str, Any]) -> str:
    return f"{item[0]} = {json.dumps(item[1])}"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C doesn't leave half of the processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {s: signal.signal(s, signal.SIG_IGN) for s in names}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, signal.SIG_DFL if handler is None else handler)
