"""fedlearn in two commands.

python run.py lab     opens JupyterLab on the lessons
python run.py test    runs every check; `python run.py test unit browser` only these;
                      `python run.py test --fast` what is done in two minutes: lint, types and
                      the quick unit tests

Both make `.venv` beside this file and install into it, the first time and whenever the pins
changed; after that they need no network. Standard library only. Python 3.6 must be able to parse
this file, so that an old Python prints the words below and no SyntaxError.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

if sys.version_info < (3, 11):  # noqa: UP036 (this is the check)
    newer = [*filter(shutil.which, ("python3.13", "python3.12", "python3.11", "python3.14"))]
    sys.exit(
        f"run.py needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}.\n"
        + (f"A newer one is here: {newer[0]} run.py lab" if newer else "Install one and use that.")
    )

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "fedlearn-stamp.json"  # {"pins": hash, "extras": [...]}, or {"pins": INSTALLING}
INSTALLING = "installing"
# GB by the tool that installs. On Linux PyTorch brings the CUDA libraries; pip unpacks beside them.
ROOM = {"uv": 7, "pip": 9} if sys.platform == "linux" else {"uv": 2, "pip": 3}

CORES = ["-n", "logical", "--maxprocesses", "8", "--dist", "worksteal"]  # each holds PyTorch
FEW = ["-n", "auto", "--maxprocesses", "4", "--maxschedchunk", "1"]  # each holds a browser
NOT_UNIT = ["--ignore=tests/browser", "--ignore=tests/test_notebooks.py"]
UNIT = ["-m", "pytest", "fedlearn", "tests", "--doctest-modules", *NOT_UNIT]
ALONE = ["-m", "pytest", "tests", *NOT_UNIT]  # they measure time: nothing else runs
BROWSER = ["-m", "pytest", "tests/browser"]
PARTS = {  # name: what .venv's Python is given, one command after the other
    "lint": [["-m", "ruff", "format", "--check", "."], ["-m", "ruff", "check", "."]],
    "types": [["-m", "mypy"]],
    "unit": [[*UNIT, "-m", "not alone", *CORES], [*ALONE, "-m", "alone"]],
    "notebooks": [["-m", "pytest", "tests/test_notebooks.py"]],
    "browser": [[*BROWSER, "-m", "alone"], [*BROWSER, "-m", "not alone", *FEW]],
}
FAST = {  # for whoever is writing code
    "lint": PARTS["lint"],
    "types": PARTS["types"],
    "unit": [[*UNIT, "-m", "not alone and not slow", *CORES]],
}

SETTINGS = {  # JupyterLab asks nothing when it opens and looks nothing up
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}
}

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
BROWSERS += ["microsoft-edge", "microsoft-edge-stable", "msedge"]
PLACES = {  # where the installers put them, in PATH or not
    "win32": [
        f"{root}/{program}"
        for program in (
            "Google/Chrome/Application/chrome.exe",
            "Microsoft/Edge/Application/msedge.exe",
        )
        for root in ("${PROGRAMFILES}", "${PROGRAMFILES(X86)}", "${LOCALAPPDATA}")
    ],
    "darwin": [
        f"{root}/{name}.app/Contents/MacOS/{name}"
        for name in ("Google Chrome", "Chromium", "Microsoft Edge")
        for root in ("/Applications", "~/Applications")
    ],
}
GET_A_BROWSER = """\
The browser tests need Chromium, Chrome or Edge, and none was found. To get one:
  Debian, Ubuntu   sudo apt install chromium
  Fedora           sudo dnf install chromium
  macOS            brew install --cask google-chrome
  Windows          winget install Google.Chrome
Or set the environment variable CHROMIUM to the program's full path{}."""


def say(text: str) -> None:
    """Print at once, so that our lines stay in order with those of the programs we start."""
    print(text, flush=True)


def stop(*lines: str) -> NoReturn:
    """End with clear words and exit code 1."""
    raise SystemExit("run.py: " + "\n".join(lines))


# --- .venv -------------------------------------------------------------------------------------


def prepare(*extras: str) -> None:
    """See that `.venv` has these extras; installs only when something changed."""
    stamp = read_stamp()
    ready = stamp.get("pins") == pins() and set(extras) <= set(stamp["extras"])
    if not (ready and runs("pass")):
        install(extras, stamp)


def pins() -> str:
    """Hash of what decides the contents of `.venv`: requirements, exact versions, its place.

    The package itself is installed in editable form, so its code does not matter here.
    """
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    decides = [settings["build-system"], settings["project"], constraints, str(ROOT)]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def read_stamp() -> dict:
    """What was installed last; {} where run.py has not yet begun to install."""
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:  # cut short by a power failure
        return {"pins": INSTALLING}


def write_stamp(stamp: dict) -> None:
    """Replace the stamp in one step: it is the old one or the new one, never half of one."""
    temporary = STAMP.with_suffix(".tmp")
    temporary.write_text(json.dumps(stamp), encoding="utf-8")
    os.replace(temporary, STAMP)


def runs(code: str) -> bool:
    """Whether `.venv`'s Python starts (the one it was made from may be gone) and runs `code`."""
    check = f"import sys; assert sys.version_info >= (3, 11); {code}"
    try:
        return subprocess.run([PYTHON, "-c", check], capture_output=True).returncode == 0
    except OSError:
        return False


def install(extras: tuple, stamp: dict) -> None:
    """Install into `.venv`, made anew where it is missing, broken or half full; stamp it last."""
    uv = shutil.which("uv")
    fresh = stamp.get("pins") == INSTALLING or not runs("pass" if uv else "import pip")
    if fresh:
        make_venv(uv)
    else:
        check_disk(1)
    target = f".[{','.join(extras)}]"
    tool = [uv, "pip", "install", "--python", PYTHON] if uv else [PYTHON, "-m", "pip", "install"]
    command = [str(word) for word in (*tool, "-c", "constraints.txt", "-e", target)]
    say(f"Installing {target} into {VENV}" + (" (some minutes the first time)" if fresh else ""))
    write_stamp({"pins": INSTALLING})
    code = call(command)
    if code == 0:
        settings = VENV / "share/jupyter/lab/settings"
        settings.mkdir(parents=True, exist_ok=True)
        (settings / "overrides.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
        write_stamp({"pins": pins(), "extras": extras})
        return
    if not fresh:  # pip and uv fetch everything before they change anything
        write_stamp(stamp or {"pins": "", "extras": []})
    install_failed(command, code, kept=not fresh)


def make_venv(uv: str | None) -> None:
    """An empty `.venv`; without pip where there is only uv to install with."""
    pip = importlib.util.find_spec("ensurepip") is not None
    if not (pip or uv):
        stop(
            "this Python cannot make virtual environments, its module ensurepip is missing.",
            "On Debian and Ubuntu: sudo apt install python3-venv   (then the same again)",
        )
    folder = VENV.resolve()  # it may be a link to a larger disk
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    check_disk(ROOM["uv" if uv else "pip"])
    write_stamp({"pins": INSTALLING})
    python = getattr(sys, "_base_executable", sys.executable)  # ours may just have been in there
    if call([python, "-m", "venv", *([] if pip else ["--without-pip"]), str(folder)]):
        stop(
            f"could not make the virtual environment {VENV}; the reason is above.",
            "On Debian and Ubuntu this may help: sudo apt install python3-venv",
        )


def check_disk(need: float) -> None:
    """Stop where less than `need` GB are free."""
    free = shutil.disk_usage(VENV).free / 1e9
    if free < need:
        stop(
            f"the disk is too small: installing needs about {need} GB, {free:.1f} GB are free.",
            f"Free some space, or move this folder to a larger disk: {ROOT}",
        )


def install_failed(command: list, code: int, kept: bool) -> NoReturn:
    """Stop and say what was tried, why it may have failed, what works now."""
    free = shutil.disk_usage(VENV).free / 1e9
    python = ".".join(map(str, sys.version_info[:2]))
    lines = [
        f"installing failed with exit code {code}. The reason is above. What was tried, in {ROOT}:",
        f"  {subprocess.list2cmdline(command)}",
        "Most often it is one of these:",
        "- no network, or a network with a proxy or a package mirror that is not set here;",
        f"- no PyTorch for this computer: a Mac with Intel inside, a Python too new ({python});",
        f"- a full disk ({free:.1f} GB are free).",
        "Then the same command again goes on. Once it has finished, it needs no network.",
    ]
    if kept:
        again = subprocess.list2cmdline([str(PYTHON), "-m", "jupyterlab"])
        lines += ["The .venv from before is kept and works offline:", f"  {again}"]
    stop(*lines)


def call(command: list, **changes: str) -> int:
    """Run a command in the project's folder and return its exit code.

    Ctrl-C reaches the command as well as us, SIGTERM only us; either way it gets time to tidy up.
    """
    child = subprocess.Popen(command, cwd=ROOT, env=environment(**changes))
    try:
        return child.wait()
    except BaseException as reason:
        if not isinstance(reason, KeyboardInterrupt):
            child.terminate()
        try:
            child.wait(20)
        except BaseException:  # a second Ctrl-C, or it does not listen
            child.kill()
        raise


def environment(**changes: str) -> dict:
    """Our environment with `.venv` activated and the same text encoding everywhere."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "PYTHONPATH")}
    path = str(PYTHON.parent) + os.pathsep + env.get("PATH", "")
    return {**env, "PATH": path, "VIRTUAL_ENV": str(VENV), "PYTHONUTF8": "1", **changes}


# --- lab ---------------------------------------------------------------------------------------


def lab(port: int | None, browser: bool) -> int:
    """Open JupyterLab on the playground, for this computer only and with its token."""
    if port:
        check_port(port)
    prepare("lab")
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.root_dir": ROOT / "notebooks",
        "ServerApp.answer_yes": True,  # one Ctrl-C ends it
        "Application.log_level": "ERROR",  # the address, not sixty lines around it
        "KernelManager.transport_encryption": "auto",  # ipykernel warns where there is none
        "LabApp.default_url": "/lab/tree/00_playground.ipynb",
    }
    if port is not None:
        options.update({"ServerApp.port": port or free_port(), "ServerApp.port_retries": 0})
    command = [str(PYTHON), "-m", "jupyterlab", *(f"--{k}={v}" for k, v in options.items())]
    command += [] if browser else ["--no-browser"]
    command += ["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []  # containers
    say("Starting JupyterLab. There: Run > Run All Cells, then drag. Ctrl-C here ends it.")
    try:
        return call(command)
    except KeyboardInterrupt:
        return 0


def check_port(port: int) -> None:
    """Stop where JupyterLab could not listen on this port."""
    with socket.socket() as server:
        if os.name != "nt":  # as Jupyter does; on Windows it would let two listen on one port
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except OSError as reason:
            why = "is for administrators" if isinstance(reason, PermissionError) else "is taken"
            stop(f"port {port} {why}. This one is free: python run.py lab --port {free_port()}")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


# --- test --------------------------------------------------------------------------------------


def test(names: list, fast: bool = False) -> int:
    """Run the parts one after the other; a failing one does not keep the others from running."""
    prepare("lab", "test")
    results, table, parts = [], [], FAST if fast else PARTS
    for name in names or parts:
        say(f"\n=== {name} ===")
        start = time.monotonic()
        results.append(browser_part() if name == "browser" else run_part(parts[name]))
        table.append(f"{name:10} {results[-1]:8} {time.monotonic() - start:6.1f} s")
        say(table[-1])
    say("\n" + "\n".join(table))
    say(", ".join(f"{results.count(word)} {word}" for word in ("passed", "failed", "skipped")))
    return 1 if "failed" in results else 0


def run_part(commands: list, **changes: str) -> str:
    """Run all commands of a part: "passed" or "failed"."""
    codes = [call([str(PYTHON), *words], **changes) for words in commands]
    return "failed" if any(codes) else "passed"


def browser_part() -> str:
    """The browser tests; FEDLEARN_REQUIRE_BROWSER=1 (CI) makes a skipped one a failure."""
    must = os.environ.get("FEDLEARN_REQUIRE_BROWSER") == "1"
    browser = find_browser()
    if browser is None:
        named = os.environ.get("CHROMIUM")
        say(GET_A_BROWSER.format(f" ({named} is no program)" if named else ""))
        return "failed" if must else "skipped"
    with tempfile.TemporaryDirectory() as folder:
        reports = [Path(folder, f"{i}.xml") for i in range(len(PARTS["browser"]))]
        commands = [[*c, f"--junitxml={r}"] for c, r in zip(PARTS["browser"], reports)]
        result = run_part(commands, CHROMIUM=browser)
        skipped = (ElementTree.parse(r).find(".//skipped") is not None for r in reports)
        if result == "passed" and must and any(skipped):
            say("A browser test was skipped. FEDLEARN_REQUIRE_BROWSER=1 makes that a failure.")
            return "failed"
    return result


def find_browser() -> str | None:
    """Chromium, Chrome or Edge: what CHROMIUM names, else in PATH, else in the usual places."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    places = (os.path.expanduser(os.path.expandvars(p)) for p in PLACES.get(sys.platform, []))
    return next(filter(None, map(shutil.which, (*BROWSERS, *places))), None)


# --- the command line --------------------------------------------------------------------------


def port_number(text: str) -> int:
    """A port from 0 (any free one) to 65535."""
    if not (text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text}")
    return int(text)


def part_name(text: str) -> str:
    """One of PARTS."""
    if text not in PARTS:
        raise argparse.ArgumentTypeError(f"there is no part {text}, only {', '.join(PARTS)}")
    return text


def main(words: list | None = None) -> int:
    """Read the command line and run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python run.py", description="fedlearn in two commands.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{lab,test}")
    command = commands.add_parser("lab", help="open the lessons in JupyterLab")
    command.add_argument("--no-browser", action="store_true", help="only print the address")
    command.add_argument("--port", type=port_number, help="listen here; 0 takes any free port")
    command = commands.add_parser("test", help="run every check, or only the parts named")
    command.add_argument("parts", nargs="*", type=part_name, help=", ".join(PARTS))
    text = f"only what is done in two minutes: {', '.join(FAST)} without the slow tests"
    command.add_argument("--fast", action="store_true", help=text)
    given = parser.parse_args(words)
    if given.command == "test" and given.fast and not set(given.parts) <= set(FAST):
        left = ", ".join(sorted(set(given.parts) - set(FAST)))
        command.error(f"--fast leaves out {left}: name it without --fast")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if given.command == "lab":
            return lab(given.port, not given.no_browser)
        return test(given.parts, given.fast)
    except KeyboardInterrupt:
        say("\nStopped.")
        return 130
    except OSError as reason:  # a folder that is read-only, a disk that has filled up meanwhile
        stop(f"{type(reason).__name__}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
