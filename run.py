"""fedlearn in two commands, and three more for those who teach.

python run.py lab     opens JupyterLab on the lessons
python run.py test    runs every check; `python run.py test unit browser` only these;
                      `python run.py test --fast` what is done in two minutes: lint, types and
                      the quick unit tests

python run.py pages   writes each lesson as one HTML file that needs no Python; its panels move;
                      `python run.py pages 07` only this one
python run.py pdf     prints these pages with the machine's own Chromium, Chrome or Edge;
                      `--slides`: as slides
python run.py export student
                      writes the notebooks without solutions and without the checks' answers

Each makes `.venv` beside this file and installs into it, the first time and whenever the pins
changed; after that it needs no network. With `--cpu` PyTorch comes without its GPU libraries, a
tenth of the download on Linux. Standard library only. Python 3.6 must be able to parse this file,
so that an old Python prints the words below and no SyntaxError.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import re
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
STAMP = VENV / "fedlearn-stamp.json"  # what read_stamp says
LOCK = ROOT / ".venv.lock"  # held by who installs; the system lets go of it when that one ends
INSTALLING = "installing"
# What there may be in ours before it has a pyvenv.cfg. Where there is more, it is somebody's own.
BEGINNING = [STAMP.name, "bin", "include", "lib", "lib64", "Scripts", "Include", "Lib"]
# GB by the tool that installs. On Linux PyTorch brings the CUDA libraries; pip unpacks beside them.
ROOM = {"uv": 7, "pip": 9} if sys.platform == "linux" else {"uv": 2, "pip": 3}
CPU_ROOM = 3  # without them, by uv
PROMISED = {  # by extra: what must be there after an install
    "lab": ["fedlearn.panels", "jupyterlab", "ipykernel", "dp_accounting", "cryptography"],
    "test": ["pytest", "xdist", "hypothesis", "nbclient", "playwright"],
    "pages": ["math_core"],
}
# Of PIP_* and UV_* an install keeps where packages come from and how they are fetched. The others
# decide what is installed and where to (PIP_USER, PIP_PREFIX, PIP_NO_DEPS, UV_REQUIRE_HASHES ...).
KEPT = re.compile(
    "INDEX|FIND_LINKS|HOST|CERT|TLS|PROXY|CACHE|TIMEOUT|RETR|KEYRING|AUTH|USERNAME|PASSWORD|NETRC|"
    "CONFIG_FILE|NO_CONFIG|OFFLINE|CONCURRENT|LINK_MODE|PROGRESS|QUIET|VERBOSE|LOG|COLOR|NO_INPUT|"
    "VERSION_CHECK|ROOT_USER_ACTION|TORCH_BACKEND|AWS|GOOGLE|AZURE"
)

CORES = ["-n", "logical", "--maxprocesses", "8", "--dist", "worksteal"]  # each holds PyTorch
FEW = ["-n", "auto", "--maxprocesses", "4", "--maxschedchunk", "1"]  # each holds a browser
APART = ("browser", "deployed", "test_notebooks.py")
NOT_UNIT = [f"--ignore=tests/{name}" for name in APART]
UNIT = ["-m", "pytest", "fedlearn", "tests", "--doctest-modules", *NOT_UNIT]
ALONE = ["-m", "pytest", "tests", *NOT_UNIT]  # they measure time: nothing else runs
BROWSER = ["-m", "pytest", "tests/browser"]
PARTS = {  # name: what .venv's Python is given, one command after the other
    "lint": [["-m", "ruff", "format", "--check", "."], ["-m", "ruff", "check", "."]],
    "types": [["-m", "mypy"]],
    "unit": [[*UNIT, "-m", "not alone", *CORES], [*ALONE, "-m", "alone"]],
    "notebooks": [["-m", "pytest", "tests/test_notebooks.py"]],
    "deployed": [["-m", "pytest", "tests/deployed"]],  # processes over Flower: two minutes
    "browser": [[*BROWSER, "-m", "alone"], [*BROWSER, "-m", "not alone", *FEW]],
}
FAST = {  # for whoever is writing code
    "lint": PARTS["lint"],
    "types": PARTS["types"],
    "unit": [[*UNIT, "-m", "not alone and not slow", *CORES]],
}

NOT_OURS = {  # settings of the reader's Python that .venv's must not have
    *("PYTHONHOME", "PYTHONPATH", "PYTHONIOENCODING", "PYTHONLEGACYWINDOWSSTDIO"),
    *("PYTHONOPTIMIZE", "PYTHONINSPECT", "PYTHONWARNINGS", "PYTHONEXECUTABLE"),
    "PYTHONDONTWRITEBYTECODE",  # each start would compile what it imports
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


def prepare(*wanted: str) -> None:
    """See that `.venv` has these extras; installs only when something changed.

    Among them may be "cpu": PyTorch without its GPU libraries. One installs at a time: a second
    terminal waits for the first, and then finds all it needs.
    """
    cpu, extras = "cpu" in wanted, tuple(name for name in wanted if name != "cpu")
    if cpu and sys.platform != "linux":
        say("--cpu: on this system PyTorch comes without GPU libraries anyway.")
        cpu = False
    if not ready(extras, cpu):
        with only_one():
            if not ready(extras, cpu):
                check_place()
                install(extras, read_stamp(), cpu)
    elif cpu and read_stamp()["cpu"] == "no":
        say("--cpu: the other build could not be had, .venv has the default. Remove it to retry.")


def ready(extras: tuple, cpu: bool) -> bool:
    """Whether `.venv` has these extras, of these pins, and the build of PyTorch asked for."""
    stamp = read_stamp()
    same = stamp.get("pins") == pins() and set(extras) <= set(stamp["extras"])
    return same and bool(stamp["cpu"] or not cpu) and runs("pass")


@contextlib.contextmanager
def only_one():
    """Hold the lock, wait for it where another run.py has it. What we start holds it, too."""
    handle = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        told = False
        while not locked(handle):
            if not told:
                say("Another run.py is installing into .venv: waiting for it. Ctrl-C gives up.")
            told = True
            time.sleep(0.3)
        os.set_inheritable(handle, True)  # an installer whose run.py was killed writes on
        yield
    finally:
        os.close(handle)


def locked(handle: int) -> bool:
    """Try to lock an open file; the system unlocks it when nobody has it open any more."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: on one's own risk, as before there was one
        return True
    return True


def check_place() -> None:
    """Stop where `.venv` is, or leads to, what we have not made and may not write into."""
    folder = Path(os.path.realpath(VENV))  # it may be a link to a larger disk
    leads = f" leads to {folder}, which" if VENV.is_symlink() else ""
    cure = f"Rename it or remove it, and the same command again makes a new one: {VENV}"
    if not os.path.lexists(VENV):
        return
    if not os.path.lexists(folder):
        if not folder.parent.is_dir():
            stop(f".venv{leads} is not there, nor the folder above it.", cure)
    elif not folder.is_dir():
        stop(f".venv{leads} is no folder.", cure)
    elif not (folder / "pyvenv.cfg").is_file():
        begun = BEGINNING if read_stamp() else []
        if {name for name in os.listdir(folder) if name not in begun}:
            stop(f".venv{leads} holds files that run.py has not made. Nothing was done.", cure)
    elif not read_stamp() and not runs("pass"):
        stop(
            f".venv{leads} is an environment that run.py has not made, and its Python does not "
            "start or is older than 3.11. Nothing was done.",
            cure,
        )


def pins() -> str:
    """Hash of what decides the contents of `.venv`: requirements, exact versions, its place.

    The package itself is installed in editable form, so its code does not matter here.
    """
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    here = os.fsencode(ROOT).decode("utf-8", "backslashreplace")  # whatever the locale
    decides = [settings["build-system"], settings["project"], constraints, here]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def read_stamp() -> dict:
    """What was installed last; {} where run.py has not yet begun to install.

    {"pins": hash, or INSTALLING, "extras": [...], "cpu": True, False or "no" (asked for, but the
    default build was all there was), "made": whether `.venv` is our own}
    """
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, IsADirectoryError):  # cut short by a power failure
        stamp = None
    except OSError:
        return {}
    stamp = stamp if isinstance(stamp, dict) else {}
    pins, extras = stamp.get("pins"), stamp.get("extras", [])
    if not (isinstance(pins, str) and isinstance(extras, list) and all_text(extras)):
        pins, extras = INSTALLING, []
    cpu, made = stamp.get("cpu", False), stamp.get("made", True)
    return {
        "pins": pins,
        "extras": extras,
        "cpu": cpu if cpu in (True, "no") else False,
        "made": made is not False,
    }


def all_text(values: list) -> bool:
    """Whether these are all text."""
    return all(isinstance(v, str) for v in values)


def replace(path: Path, text: str) -> None:
    """Write a file in one step: it is the old one or the new one, never half of one.

    Under a temporary name that nobody can foresee: a link there would be written through.
    """
    handle, temporary = tempfile.mkstemp(".tmp", f".{path.name}.", str(path.parent))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_stamp(stamp: dict) -> None:
    """Say what is in `.venv`, for the next call."""
    replace(STAMP, json.dumps(stamp))


def runs(code: str) -> bool:
    """Whether `.venv`'s Python starts (the one it was made from may be gone) and runs `code`."""
    check = f"import sys\nif sys.version_info < (3, 11): sys.exit(1)\n{code}"
    try:
        command, quiet = [PYTHON, "-c", check], subprocess.DEVNULL
        done = subprocess.run(command, stdin=quiet, capture_output=True, env=environment())
        return done.returncode == 0
    except OSError:
        return False


def install(extras: tuple, stamp: dict, cpu: bool = False) -> None:
    """Install into `.venv`, made anew where it is missing, broken or half full; stamp it last.

    One that somebody else made is added to, and never emptied.
    """
    uv, half = shutil.which("uv"), stamp.get("pins") == INSTALLING
    ours = stamp.get("made", not VENV.exists() or not any(VENV.iterdir()))
    works = runs("pass" if uv else "import pip")
    if not ours and not works:
        stop(
            f"{VENV} is an environment that run.py has not made, and it cannot be installed into.",
            "Rename it or remove it, and the same command again makes a new one.",
        )
    fresh = ours and (half or not works)
    cpu = cpu or stamp.get("cpu") in (True, "no")  # as it was asked for once
    if fresh:
        make_venv(uv, CPU_ROOM if cpu else ROOM["uv" if uv else "pip"])
    else:
        check_disk(1)
    target = f".[{','.join(extras)}]"
    say(f"Installing {target} into {VENV}" + (" (some minutes the first time)" if fresh else ""))
    if not ours:
        say("run.py has not made that environment: it is added to, nothing in it is deleted.")
    new = {"pins": INSTALLING, "extras": [], "cpu": "no" if cpu else False, "made": ours}
    write_stamp(new)
    if cpu and install_cpu(target, uv, there=not fresh and stamp.get("cpu") is not True):
        new["cpu"] = True
    else:
        kept = not (fresh or half)  # pip and uv fetch everything before they change anything
        install_default(target, uv, stamp if kept else None, new, extras)
    check_promise(extras)
    settings = VENV / "share/jupyter/lab/settings"
    settings.mkdir(parents=True, exist_ok=True)
    replace(settings / "overrides.json", json.dumps(SETTINGS))
    write_stamp({**new, "pins": pins(), "extras": list(extras)})


def install_default(
    target: str, uv: str | None, before: dict | None, new: dict, extras: tuple
) -> None:
    """Install what PyPI has; where it fails stop, and keep the `.venv` that worked `before`."""
    if new["cpu"]:
        say("\nThe build of PyTorch without GPU libraries could not be had: no way to its index,")
        say("or none for this computer; the reason is above. Going on with the default build.")
        if before and before.get("pins") == pins() and set(extras) <= set(before["extras"]):
            return  # it is there
        check_disk(1 if before is not None else ROOM["uv" if uv else "pip"])
    command = [*tool(uv), "-c", "constraints.txt", "-e", target]
    code = call(command, installs=True)
    if code and before is not None:
        write_stamp(before or {**new, "pins": ""})
    if code:
        install_failed(command, code, kept=before is not None)
    if before and before.get("cpu") is True:  # it had the small one, and may have it still
        new["cpu"] = runs("import torch; sys.exit(bool(torch.version.cuda))") or "no"


def tool(uv: str | None) -> list:
    """The command that installs into `.venv`: uv's, or pip's.

    Neither compiles all of 17,000 files, a minute with pip: what is imported is compiled then.
    """
    if uv:
        return [str(uv), "pip", "install", "--python", str(PYTHON)]
    return [str(PYTHON), "-m", "pip", "install", "--no-compile"]


def install_cpu(target: str, uv: str | None, there: bool) -> bool:
    """Install with the build of PyTorch that has no GPU libraries. Whether it could be had.

    Only uv knows its index by name; where there is no uv, pip puts it into `.venv`. Where the other
    build is `there`, it is replaced.
    """
    if uv is None:
        if call([*tool(None), "uv>=0.7.14"], installs=True):
            return False
        uv = str(PYTHON.with_name("uv.exe" if os.name == "nt" else "uv"))
    again = ["--reinstall-package", "torch", "--reinstall-package", "torchvision"] if there else []
    words = ["--torch-backend", "cpu", *again, "-c", "constraints.txt", "-e", target]
    try:
        return call([*tool(uv), *words], installs=True) == 0
    except OSError:  # that uv does not start
        return False


def check_promise(extras: tuple) -> None:
    """Stop, without a stamp, unless `.venv` has what was to be installed: pip may say otherwise."""
    names = ["torch", *(n for extra in extras for n in PROMISED.get(extra, []))]
    code = "import importlib, sys, fedlearn\nfrom pathlib import Path\n"
    code += "here, *names = sys.argv[1:]\n"
    code += "for name in names: importlib.import_module(name)\n"
    code += "file = Path(fedlearn.__file__).resolve()\n"
    code += "if file.parent.parent != Path(here).resolve(): sys.exit('fedlearn is %s' % file)"
    if call([str(PYTHON), "-P", "-c", code, str(ROOT), *names]):
        stop(
            f"the installer says that all went well, but {VENV} has not what was to be installed;",
            "the reason is above. A setting may send packages elsewhere: see `pip config list`,",
            "and `user`, `target` or `prefix` in pip's or uv's configuration. Without them, the",
            "same command again installs.",
        )


def make_venv(uv: str | None, room: float) -> None:
    """An empty `.venv`; without pip where there is only uv to install with."""
    pip = importlib.util.find_spec("ensurepip") is not None
    if not (pip or uv):
        stop(
            "this Python cannot make virtual environments, its module ensurepip is missing.",
            "On Debian and Ubuntu: sudo apt install python3-venv   (then the same again)",
        )
    folder = Path(os.path.realpath(VENV))  # it may be a link to a larger disk
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():  # ours, or none: check_place and install saw to that
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    check_disk(room)
    write_stamp({"pins": INSTALLING, "extras": []})
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


def call(command: list, installs: bool = False, **changes: str) -> int:
    """Run a command in the project's folder and return its exit code.

    Ctrl-C reaches the command as well as us, SIGTERM only us; either way it gets time to tidy up.
    """
    env = environment(**changes)
    if installs:
        env = {k: v for k, v in env.items() if not k.startswith(("PIP_", "UV_")) or KEPT.search(k)}
        env["PIP_USER"] = "0"  # above `user = true` in a configuration file
    child = subprocess.Popen(command, cwd=ROOT, env=env, close_fds=False)
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
    env = {k: v for k, v in os.environ.items() if k not in NOT_OURS}
    path = str(PYTHON.parent) + os.pathsep + env.get("PATH", "")
    return {**env, "PATH": path, "VIRTUAL_ENV": str(VENV), "PYTHONUTF8": "1", **changes}


# --- lab ---------------------------------------------------------------------------------------


def lab(port: int | None, browser: bool, *cpu: str) -> int:
    """Open JupyterLab on the playground, for this computer only and with its token."""
    if port:
        check_port(port)
    prepare("lab", *cpu)
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
    paths = filter(None, [str(ROOT / "tools/jupyter"), os.environ.get("JUPYTER_CONFIG_PATH")])
    try:
        return call(command, JUPYTER_CONFIG_PATH=os.pathsep.join(paths))
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


def test(names: list, fast: bool = False, *cpu: str) -> int:
    """Run the parts one after the other; a failing one does not keep the others from running."""
    prepare("lab", "test", *cpu)
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


# --- pages -------------------------------------------------------------------------------------


def pages(names: list, out: str | None, *cpu: str, still: bool = False) -> int:
    """Write the lessons as HTML files that need no Python, see tools/pages."""
    prepare("lab", "pages", *cpu)
    words = ["--still"] if still else []
    return run_tool("pages", *names, *words, *(["--out", os.path.abspath(out)] if out else []))


def pdf(names: list, out: str | None, slides: bool, *cpu: str) -> int:
    """Write the pages, and print each with this machine's browser."""
    browser = find_browser()
    if browser is None:
        stop(GET_A_BROWSER.format("").replace("The browser tests need", "Printing needs"))
    prepare("lab", "pages", *cpu)
    words = [*names, "--pdf", browser, *(["--slides"] if slides else [])]
    return run_tool("pages", *words, *(["--out", os.path.abspath(out)] if out else []))


def export(out: str | None, *cpu: str) -> int:
    """Write the notebooks without solutions and without the checks' answers."""
    prepare("lab", *cpu)
    return run_tool("pages.student", *(["--out", os.path.abspath(out)] if out else []))


def run_tool(name: str, *words: str) -> int:
    """Run a module of tools/."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    return call([str(PYTHON), "-m", name, *words], PYTHONPATH=path)


# --- the command line --------------------------------------------------------------------------


def port_number(text: str) -> int:
    """A port from 0 (any free one) to 65535."""
    if not (text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text}")
    return int(text)


def part_name(text: str) -> str:
    """One of PARTS."""
    if text not in PARTS:
        known = ", ".join(PARTS)
        raise argparse.ArgumentTypeError(f"there is no part {text}, only {known}")
    return text


def add_pages(commands: argparse._SubParsersAction) -> None:
    """The command lines of pages, pdf and export."""
    for name, text in (("pages", "write the lessons as HTML"), ("pdf", "print these pages")):
        command = commands.add_parser(name, help=text)
        command.add_argument("names", nargs="*", metavar="NN", help="only these lessons, e.g. 07")
        command.add_argument("--out", help="the folder, build/pages by default")
        if name == "pages":
            command.add_argument("--still", action="store_true", help="panels as pictures")
        else:
            command.add_argument("--slides", action="store_true", help="a slide a page")
    command = commands.add_parser("export", help="write the notebooks for students")
    command.add_argument("who", choices=["student"], help="without solutions")
    command.add_argument("--out", help="the folder, build/student by default")


def main(words: list | None = None) -> int:
    """Read the command line and run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python run.py", description="The course, and its tests.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("lab", help="open the lessons in JupyterLab")
    command.add_argument("--no-browser", action="store_true", help="only print the address")
    command.add_argument("--port", type=port_number, help="listen here; 0 takes any free port")
    command = commands.add_parser("test", help="run every check, or only the parts named")
    command.add_argument("parts", nargs="*", type=part_name, help=", ".join(PARTS))
    text = f"only what is done in two minutes: {', '.join(FAST)} without the slow tests"
    command.add_argument("--fast", action="store_true", help=text)
    add_pages(commands)
    for command in commands.choices.values():
        text = "install PyTorch without GPU libraries (Linux): a tenth of the download"
        command.add_argument("--cpu", action="store_const", const=["cpu"], default=[], help=text)
    for stream in (sys.stdout, sys.stderr):  # a console may not know the letters of our folder
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    given = parser.parse_args(words)
    if given.command == "test" and given.fast and not set(given.parts) <= set(FAST):
        left = ", ".join(sorted(set(given.parts) - set(FAST)))
        command.error(f"--fast leaves out {left}: name it without --fast")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if given.command == "lab":
            return lab(given.port, not given.no_browser, *given.cpu)
        if given.command == "pages":
            return pages(given.names, given.out, *given.cpu, still=given.still)
        if given.command == "pdf":
            return pdf(given.names, given.out, given.slides, *given.cpu)
        if given.command == "export":
            return export(given.out, *given.cpu)
        return test(given.parts, given.fast, *given.cpu)
    except KeyboardInterrupt:
        say("\nStopped.")
        return 130
    except OSError as reason:  # a folder that is read-only, a disk that has filled up meanwhile
        stop(f"{type(reason).__name__}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
