"""run.py's decisions, without installing anything: installers and parts are stand-ins."""

import ast
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import create_autospec

import pytest

ROOT = Path(__file__).resolve().parents[1]
OK, BAD = ["-c", "pass"], ["-c", "raise SystemExit(1)"]


def load(path):
    """A run.py as a module."""
    spec = importlib.util.spec_from_file_location("run_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run.py as a module, in a folder of its own that has spaces in its name."""
    folder = tmp_path / "a b" / "fed learn"
    folder.mkdir(parents=True)
    for name in ("run.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    module = load(folder / "run.py")
    for name in ("CHROMIUM", "FEDLEARN_REQUIRE_BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "check_disk", lambda need: None)
    return module


@pytest.fixture
def calls(run, monkeypatch):
    """The commands that run.py starts. A venv is really made (empty); the installer says `code`."""

    class Calls(list):
        code = 0

        def installs(self):
            return [command for command in self if "install" in command]

    def call(command, **changes):
        made.append(command)
        if "venv" in command:
            without = [] if "--without-pip" in command else ["--without-pip"]
            return subprocess.call([*command, *without])
        if isinstance(made.code, BaseException):
            raise made.code
        return made.code

    made = Calls()
    monkeypatch.setattr(run, "call", call)
    monkeypatch.setattr(run.shutil, "which", lambda name: "uv" if name == "uv" else None)
    return made


def words(stopped):
    """What the user reads when run.py stops."""
    return str(stopped.value)


# --- the Python it runs under ------------------------------------------------------------------


def test_an_old_python_can_parse_it():
    ast.parse((ROOT / "run.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_an_old_python_is_told_so_in_words():
    code = "import runpy, sys; sys.version_info = (3, 6, 9); runpy.run_path(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT / "run.py"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("run.py needs Python 3.11 or newer")
    assert "Traceback" not in done.stderr


def test_only_the_standard_library_is_imported():
    tree = ast.parse((ROOT / "run.py").read_text(encoding="utf-8"))
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_every_text_is_ascii_because_a_console_may_not_be_utf8():
    assert (ROOT / "run.py").read_text(encoding="utf-8").isascii()


# --- when it installs --------------------------------------------------------------------------


def test_the_second_call_installs_nothing(run, calls):
    run.prepare("lab")
    assert calls.installs()[0][-1] == ".[lab]"
    before = len(calls)
    run.prepare("lab")
    assert len(calls) == before


def test_test_adds_to_lab_and_lab_after_test_has_all_it_needs(run, calls):
    run.prepare("lab")
    run.prepare("lab", "test")
    assert [command[-1] for command in calls.installs()] == [".[lab]", ".[lab,test]"]
    assert sum("venv" in command for command in calls) == 1, "the same .venv"
    run.prepare("lab")
    run.prepare("lab", "test")
    assert len(calls.installs()) == 2


@pytest.mark.parametrize(
    ("file", "old", "new", "again"),
    [
        ("constraints.txt", "tqdm==", "tqdm==0.", True),
        ("pyproject.toml", '"tqdm>=4.66"', '"tqdm>=4.67"', True),
        ("pyproject.toml", "line-length = 100", "line-length = 99", False),
    ],
)
def test_it_installs_again_when_the_pins_changed(run, calls, file, old, new, again):
    run.prepare("lab")
    text = (run.ROOT / file).read_text(encoding="utf-8")
    assert old in text
    (run.ROOT / file).write_text(text.replace(old, new), encoding="utf-8")
    run.prepare("lab")
    assert len(calls.installs()) == 1 + again
    assert sum("venv" in command for command in calls) == 1, "into the same .venv"


def test_it_installs_again_when_the_folder_moved(run, calls, monkeypatch):
    run.prepare("lab")
    before = run.pins()
    monkeypatch.setattr(run, "ROOT", shutil.copytree(run.ROOT, run.ROOT.with_name("moved")))
    assert run.pins() != before


def test_it_starts_over_when_the_python_of_the_venv_is_gone(run, calls):
    run.prepare("lab")
    run.PYTHON.unlink()
    run.prepare("lab")
    assert sum("venv" in command for command in calls) == 2
    assert run.runs("pass")


@pytest.mark.parametrize("left", ["first install", "later install", "power failure"])
def test_it_starts_over_after_an_install_that_broke_off(run, calls, left):
    if left != "first install":
        run.prepare("lab")
    if left == "power failure":
        run.STAMP.write_text('{"pins": "3f')
    else:
        calls.code = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            run.prepare("lab", "test")
    half = run.VENV / "half a package"
    half.touch()
    calls.code = 0
    run.prepare("lab")
    assert not half.exists()
    assert json.loads(run.STAMP.read_text())["extras"] == ["lab"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_the_venv_may_be_a_link_to_a_larger_disk(run, calls, tmp_path):
    (tmp_path / "large").mkdir()
    run.VENV.symlink_to(tmp_path / "large")
    run.prepare("lab")
    assert run.VENV.is_symlink() and run.runs("pass")


def test_jupyterlab_asks_nothing_and_looks_nothing_up(run, calls):
    run.prepare("lab")
    (file,) = run.VENV.rglob("lab/settings/overrides.json")
    ((_, settings),) = json.loads(file.read_text()).items()
    assert settings == {"fetchNews": "false", "checkForUpdates": False}


def test_jupyterlab_sends_a_kernel_s_messages_at_once(run, monkeypatch):
    from traitlets.config.loader import PyFileConfigLoader

    started = []
    monkeypatch.setattr(run, "prepare", lambda *extras: None)
    monkeypatch.setattr(run, "call", lambda command, **env: started.append(env))
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "mine")
    run.lab(None, browser=False)
    ours, mine = started[0]["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    assert mine == "mine"
    there = ROOT / Path(ours).relative_to(run.ROOT)
    config = PyFileConfigLoader("jupyter_server_config.py", str(there)).load_config()
    at_once = config.ServerApp.kernel_websocket_connection_class
    handler = create_autospec(at_once.websocket_handler.klass, instance=True)
    told = []
    handler.set_nodelay.side_effect = told.append
    monkeypatch.setattr(at_once.__base__, "connect", lambda self: told.append("connected"))
    at_once(websocket_handler=handler).connect()
    assert told == [True, "connected"]


def test_a_venv_that_somebody_else_made_is_installed_into(run, calls):
    subprocess.check_call([sys.executable, "-m", "venv", "--without-pip", run.VENV])
    theirs = run.VENV / "theirs"
    theirs.touch()
    run.prepare("lab")
    assert theirs.exists() and len(calls.installs()) == 1


def test_without_a_network_it_says_what_was_tried(run, calls):
    calls.code = 2
    with pytest.raises(SystemExit) as stopped:
        run.prepare("lab")
    assert "uv pip install" in words(stopped) and "no network" in words(stopped)
    assert "The .venv from before" not in words(stopped)
    calls.code = 0
    run.prepare("lab")
    assert json.loads(run.STAMP.read_text())["extras"] == ["lab"]


def test_a_failed_update_keeps_the_venv_from_before(run, calls):
    run.prepare("lab")
    pins = run.ROOT / "constraints.txt"
    before = pins.read_text(encoding="utf-8")
    pins.write_text(before.replace("tqdm==", "tqdm==0."), encoding="utf-8")
    calls.code = 1
    for _ in range(2):  # the second try does not throw it away either
        with pytest.raises(SystemExit) as stopped:
            run.prepare("lab")
        assert "The .venv from before is kept and works offline" in words(stopped)
    pins.write_text(before, encoding="utf-8")
    run.prepare("lab")
    assert len(calls.installs()) == 3, "with the old pins again, the old .venv fits"


def test_pip_installs_where_there_is_no_uv(run, calls, monkeypatch):
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    run.prepare("lab")
    assert calls.installs()[0][1:4] == ["-m", "pip", "install"]


def test_debian_without_python3_venv_is_told_the_package(run, calls, monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    run.prepare("lab")  # uv does without
    shutil.rmtree(run.VENV)
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        run.prepare("lab")
    assert "apt install python3-venv" in words(stopped)
    assert not run.VENV.exists()


def test_a_small_disk_stops_an_install_and_nothing_else(run, calls, monkeypatch):
    def check_disk(need):
        raise SystemExit(f"needs {need}")

    monkeypatch.setattr(run, "check_disk", check_disk)
    with pytest.raises(SystemExit, match=f"needs {run.ROOM['uv']}"):
        run.prepare("lab")
    assert not calls
    monkeypatch.setattr(run, "check_disk", lambda need: None)
    run.prepare("lab")
    monkeypatch.setattr(run, "check_disk", check_disk)
    run.prepare("lab")


def test_the_disk_check_says_what_is_needed_and_what_there_is(monkeypatch):
    run = load(ROOT / "run.py")
    monkeypatch.setattr(run.shutil, "disk_usage", lambda folder: type("", (), {"free": 3.21e9}))
    run.check_disk(3)
    with pytest.raises(SystemExit) as stopped:
        run.check_disk(7)
    assert "about 7 GB" in words(stopped) and "3.2 GB are free" in words(stopped)


# --- what .venv may be ---------------------------------------------------------------------------


def full(folder):
    """A folder with somebody's files."""
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    (folder / "bin").mkdir()
    return folder


def refused(run, calls, *said):
    with pytest.raises(SystemExit) as stopped:
        run.prepare("lab")
    assert all(word in words(stopped) for word in (*said, "Rename it or remove it")), words(stopped)
    assert not calls


@pytest.mark.parametrize("stamp", [None, "null", '{"pins": "installing"}'])
@pytest.mark.parametrize("link", [False, True])
def test_a_folder_of_other_files_is_not_touched(run, calls, tmp_path, link, stamp):
    if link and os.name == "nt":
        pytest.skip("links need rights there")
    folder = full(tmp_path / "mine" if link else run.VENV)
    if link:
        run.VENV.symlink_to(folder)
    if stamp:
        (folder / run.STAMP.name).write_text(stamp)
    before = sorted(folder.iterdir())
    refused(run, calls, "holds files that run.py has not made")
    assert sorted(folder.iterdir()) == before
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert run.VENV.is_symlink() == link


def test_a_folder_with_programs_alone_is_no_beginning_of_ours(run, calls):
    program(run.VENV / "bin" / "mine")
    refused(run, calls, "holds files that run.py has not made")
    assert (run.VENV / "bin" / "mine").exists()


def test_what_run_py_began_it_goes_on_with(run, calls):
    """Killed between the first stamp and the environment's own file."""
    (run.VENV / "bin").mkdir(parents=True)
    run.write_stamp({"pins": run.INSTALLING})
    run.prepare("lab")
    assert run.runs("pass")


def test_a_file_called_venv_is_said(run, calls):
    run.VENV.write_text("a file")
    refused(run, calls, "is no folder")
    assert run.VENV.read_text() == "a file"


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_to_nowhere(run, calls, tmp_path):
    run.VENV.symlink_to(tmp_path / "no" / "disk")
    refused(run, calls, "is not there, nor the folder above it")
    assert not (tmp_path / "no").exists(), "a disk that is not mounted is not made"
    run.VENV.unlink()
    run.VENV.symlink_to(run.VENV)
    refused(run, calls, "is no folder")
    run.VENV.unlink()
    run.VENV.symlink_to(tmp_path / "new")
    run.prepare("lab")
    assert run.VENV.is_symlink() and (tmp_path / "new" / "pyvenv.cfg").exists()


def theirs(run, *, works=True):
    """An environment that somebody else made."""
    subprocess.check_call([sys.executable, "-m", "venv", "--without-pip", run.VENV])
    (run.VENV / "theirs").touch()
    if not works:
        run.PYTHON.unlink()


def test_a_broken_venv_that_somebody_else_made_is_kept(run, calls):
    theirs(run, works=False)
    refused(run, calls, "run.py has not made", "does not start")
    assert (run.VENV / "theirs").exists()


@pytest.mark.parametrize("breaks", ["interrupt", "error"])
def test_what_somebody_else_made_stays_theirs_whatever_breaks_off(run, calls, capsys, breaks):
    theirs(run)
    calls.code = KeyboardInterrupt() if breaks == "interrupt" else 1
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run.prepare("lab")
    calls.code = 0
    run.prepare("lab")
    run.PYTHON.unlink()  # and years later its Python is gone
    with pytest.raises(SystemExit):
        run.prepare("lab")
    assert (run.VENV / "theirs").exists()
    assert not any("venv" in command for command in calls)
    assert "nothing in it is deleted" in capsys.readouterr().out


def test_without_pip_or_uv_theirs_can_not_be_added_to(run, calls, monkeypatch):
    theirs(run)
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    refused(run, calls, "cannot be installed into")
    assert (run.VENV / "theirs").exists()


STAMPS = ["null", "[]", "3", '"text"', "", "{}", '{"pins": 3, "extras": []}', '{"pins": null}',
          '{"pins": "PINS", "extras": null}', '{"pins": "PINS", "extras": "lab"}',
          '{"pins": "PINS", "extras": [1]}', '{"pins": "PINS"}', "[" * 100_000,
          b"\xff\xfe\x00", '{"pins": "3f']  # fmt: skip


@pytest.mark.parametrize("stamp", STAMPS, ids=lambda s: repr(s[:24]))
def test_no_stamp_is_a_traceback(run, calls, stamp):
    run.prepare("lab")
    stamp = stamp if isinstance(stamp, bytes) else stamp.replace("PINS", run.pins()).encode()
    run.STAMP.write_bytes(stamp)
    run.prepare("lab")
    assert run.read_stamp()["extras"] == ["lab"] and run.read_stamp()["pins"] == run.pins()
    before = len(calls)
    run.prepare("lab")
    assert len(calls) == before


def test_a_stamp_that_is_a_folder(run, calls):
    run.prepare("lab")
    run.STAMP.unlink()
    run.STAMP.mkdir()
    run.prepare("lab")
    assert run.read_stamp()["extras"] == ["lab"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_nothing_is_written_through_a_link_with_a_known_name(run, calls, tmp_path):
    run.prepare("lab")
    mine = tmp_path / "mine"
    mine.write_text("my own")
    run.STAMP.with_suffix(".tmp").symlink_to(mine)
    (run.VENV / "overrides.json.tmp").symlink_to(mine)
    run.prepare("lab", "test")
    assert mine.read_text() == "my own"
    assert run.read_stamp()["extras"] == ["lab", "test"]
    assert not [f for f in run.VENV.iterdir() if f.name.startswith(f".{run.STAMP.name}")]


# --- two terminals -------------------------------------------------------------------------------

SLOW_UV = """\
#!/bin/sh
echo begins >> '{seen}'
sleep 1
echo ends >> '{seen}'
"""  # a shell's, for a path with a space in it is no interpreter


@pytest.fixture
def slow_uv(run, tmp_path, monkeypatch):
    """A uv in PATH that takes a second and writes down when; the promise is not looked at."""
    seen = tmp_path / "seen"
    script = Path(program(tmp_path / "tools" / "uv"))
    script.write_text(SLOW_UV.format(seen=seen))
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    code = (
        "import importlib.util as u, sys\n"
        "spec = u.spec_from_file_location('run', sys.argv[1])\n"
        "run = u.module_from_spec(spec); spec.loader.exec_module(run)\n"
        "run.check_promise = run.check_disk = lambda *a: None\n"
        "run.prepare('lab')\n"
    )
    start = lambda: subprocess.Popen(
        [sys.executable, "-c", code, run.ROOT / "run.py"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return start, seen


def began(seen):
    end = time.monotonic() + 60
    while not (seen.exists() and "begins" in seen.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
def test_two_terminals_at_the_first_install_do_not_disturb_each_other(run, slow_uv):
    start, seen = slow_uv
    many = [start() for _ in range(3)]
    ends = [p.communicate(timeout=60) for p in many]
    assert [p.returncode for p in many] == [0, 0, 0], ends
    assert seen.read_text().split() == ["begins", "ends"], "one installs, the others find all"
    assert sum("waiting for it" in out for out, _ in ends) == 2
    assert run.read_stamp()["extras"] == ["lab"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
def test_an_installer_that_outlives_its_run_py_is_waited_for(run, slow_uv):
    start, seen = slow_uv
    first = start()
    began(seen)
    first.kill()
    first.wait()
    second = start()
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert seen.read_text().split() == ["begins", "ends", "begins", "ends"]
    assert "waiting for it" in out
    first.stdout.close()
    first.stderr.close()


def test_a_lock_file_of_a_dead_process_holds_nobody_up(run, calls):
    run.LOCK.write_text("12345")
    run.prepare("lab")
    assert run.read_stamp()["extras"] == ["lab"]


# --- the environment it installs in --------------------------------------------------------------

SENDS_AWAY = {
    "PIP_USER": "1", "PIP_PREFIX": "/elsewhere", "PIP_TARGET": "/elsewhere", "PIP_ROOT": "/else",
    "PIP_PYTHON": "/elsewhere/python", "PIP_NO_DEPS": "1", "PIP_DRY_RUN": "1", "PIP_PRE": "1",
    "PIP_REQUIRE_HASHES": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_CONSTRAINT": "/c.txt",
    "PIP_REQUIREMENT": "/r.txt", "PIP_PLATFORM": "win32", "PIP_NO_BINARY": ":all:",
    "UV_SYSTEM_PYTHON": "1", "UV_PROJECT_ENVIRONMENT": "/elsewhere", "UV_PYTHON": "3.9",
    "UV_REQUIRE_HASHES": "1", "UV_CONSTRAINT": "/c.txt", "UV_OVERRIDE": "/o.txt",
    "UV_RESOLUTION": "lowest", "UV_WORKING_DIR": "/", "UV_NO_EDITABLE": "1",
}  # fmt: skip
STAYS = {
    "PIP_INDEX_URL": "a", "PIP_EXTRA_INDEX_URL": "b", "PIP_FIND_LINKS": "c", "PIP_CERT": "d",
    "PIP_PROXY": "e", "PIP_CACHE_DIR": "f", "PIP_DEFAULT_TIMEOUT": "9", "PIP_TRUSTED_HOST": "g",
    "PIP_CONFIG_FILE": "h", "PIP_NO_INDEX": "0", "UV_INDEX_URL": "i", "UV_DEFAULT_INDEX": "j",
    "UV_INDEX_MINE_PASSWORD": "k", "UV_CACHE_DIR": "l", "UV_NATIVE_TLS": "1", "UV_OFFLINE": "0",
    "UV_CONFIG_FILE": "m", "HTTPS_PROXY": "n", "SSL_CERT_FILE": "o", "NETRC": "p",
}  # fmt: skip


def seen_by(run, tmp_path, monkeypatch, **how):
    """The environment that a command of run.py's gets."""
    file = tmp_path / "env.json"
    code = f"import json, os; json.dump(dict(os.environ), open({str(file)!r}, 'w'))"
    assert run.call([sys.executable, "-c", code], **how) == 0
    return json.loads(file.read_text())


def test_an_installer_keeps_the_network_settings_and_loses_those_that_send_it_away(
    run, tmp_path, monkeypatch
):
    for name, value in {**SENDS_AWAY, **STAYS}.items():
        monkeypatch.setenv(name, value)
    env = seen_by(run, tmp_path, monkeypatch, installs=True)
    assert not {n for n in SENDS_AWAY if n in env} - {"PIP_USER"}
    assert env["PIP_USER"] == "0", "a configuration file's `user = true` does not count, too"
    assert {n: env.get(n) for n in STAYS} == STAYS
    assert "PIP_PREFIX" in seen_by(run, tmp_path, monkeypatch), "JupyterLab gets the reader's own"


def test_every_install_runs_in_that_environment(run, calls, monkeypatch):
    how, fake = [], run.call
    monkeypatch.setattr(
        run, "call", lambda command, **changes: how.append((command, changes)) or fake(command)
    )
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    monkeypatch.setattr(run, "runs", lambda code: run.PYTHON.exists())
    monkeypatch.setattr(run.sys, "platform", "linux")
    run.prepare("lab", "cpu")
    installs = [changes for command, changes in how if "install" in command]
    assert len(installs) == 2 and all(changes == {"installs": True} for changes in installs)


def test_children_speak_utf8_and_no_setting_of_another_python_reaches_them(
    run, tmp_path, monkeypatch
):
    for name in ("PYTHONHOME", "PYTHONPATH", "PYTHONOPTIMIZE", "PYTHONINSPECT", "PYTHONWARNINGS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    env = seen_by(run, tmp_path, monkeypatch)
    gone = {"HOME", "PATH", "OPTIMIZE", "INSPECT", "WARNINGS", "IOENCODING"}
    assert not {n for n in env if n.removeprefix("PYTHON") in gone} - {"HOME", "PATH"}
    assert env["PYTHONUTF8"] == "1"


def test_a_strange_pythonpath_or_home_does_not_make_a_good_venv_look_broken(
    run, calls, tmp_path, monkeypatch
):
    run.prepare("lab")
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    before = len(calls)
    run.prepare("lab")
    assert len(calls) == before and run.runs("pass") and not run.runs("sys.exit(1)")


@pytest.mark.parametrize("extra", ["lab", "test"])
def test_an_install_that_only_says_so_is_not_stamped(run, calls, monkeypatch, extra):
    """The installer ends with 0, and what it should have installed is not in .venv."""
    real = load(run.ROOT / "run.py").call
    fake = run.call
    there = lambda command, **more: real(command) if "-P" in command else fake(command, **more)
    monkeypatch.setattr(run, "call", there)
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            run.prepare(extra)
        assert "has not what was to be installed" in words(stopped)
        assert "pip config list" in words(stopped)
        assert run.read_stamp()["pins"] == run.INSTALLING
    assert len(calls.installs()) == 2


@pytest.mark.parametrize(
    ("packages", "fine"),
    [
        (("torch", "jupyterlab", "ipykernel", "dp_accounting", "cryptography"), True),
        (("torch", "jupyterlab", "ipykernel", "dp_accounting"), False),
        (("jupyterlab", "ipykernel", "dp_accounting", "cryptography"), False),
    ],
)
def test_what_the_extras_promise_is_imported_from_the_venv_and_from_here(
    run, calls, monkeypatch, packages, fine
):
    run.make_venv("uv", 1)
    monkeypatch.setattr(run, "call", load(run.ROOT / "run.py").call)
    (site,) = run.VENV.rglob("site-packages")
    for name in packages:
        (site / f"{name}.py").touch()
    for name in ("fedlearn", "fedlearn/panels"):
        (run.ROOT / name).mkdir()
        (run.ROOT / name / "__init__.py").touch()
    with pytest.raises(SystemExit):
        run.check_promise(("lab",))  # it lies here, and is not installed
    (site / "fedlearn.pth").write_text(str(run.ROOT))
    if fine:
        run.check_promise(("lab",))
    else:
        with pytest.raises(SystemExit):
            run.check_promise(("lab",))
    shutil.copytree(run.ROOT / "fedlearn", site / "fedlearn")  # another fedlearn comes first
    with pytest.raises(SystemExit):
        run.check_promise(("lab",))


# --- letters that a console does not know --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="consoles there speak UTF-16")
@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONUTF8": "1", "PYTHONIOENCODING": "latin-1"},
    ],
    ids=str,
)
def test_no_console_makes_a_traceback_of_a_folder_s_letters(run, tmp_path, settings):
    folder = tmp_path / "Übung 学"
    shutil.copytree(run.ROOT, folder)
    program(folder / "bin" / "uv")
    (folder / "bin" / "uv").write_text("#!/bin/sh\nexit 3\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LC_", "LANG"))}
    env |= {"PATH": f"{folder / 'bin'}{os.pathsep}{env['PATH']}", **settings}
    done = subprocess.run(
        [sys.executable, folder / "run.py", "lab", "--cpu"],
        capture_output=True,
        env=env,
        timeout=100,
    )
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode == 1 and "Traceback" not in said, said
    assert "Installing .[lab" in said and "bung" in said
    assert "failed with exit code 3" in said or "disk is too small" in said


def test_the_pins_are_the_same_in_every_locale(run):
    """Else another console would install again."""
    shutil.copytree(run.ROOT, folder := run.ROOT.with_name("Übung 学"))
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['pins']())"
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LC_", "LANG"))}
    found = {
        subprocess.check_output([sys.executable, "-c", code, folder / "run.py"], env=plain | more)
        for more in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
                     {"PYTHONUTF8": "1"})
    }  # fmt: skip
    assert len(found) == 1


# --- --cpu ---------------------------------------------------------------------------------------


@pytest.fixture
def linux(run, monkeypatch):
    monkeypatch.setattr(run.sys, "platform", "linux")
    monkeypatch.setattr(run, "ROOM", {"uv": 7, "pip": 9})


@pytest.fixture
def index(run, calls, monkeypatch):
    """Whether PyTorch's CPU index answers: a switch, on at first."""
    switch, fake = {"on": True, "room": []}, run.call

    def call(command, **changes):
        code = fake(command, **changes)
        return 2 if "--torch-backend" in command and not switch["on"] else code

    monkeypatch.setattr(run, "call", call)
    monkeypatch.setattr(run, "check_disk", switch["room"].append)
    return switch


def backends(calls):
    return ["cpu" if "--torch-backend" in c else "default" for c in calls.installs()]


def test_cpu_takes_the_small_build_once_and_later_calls_keep_it(run, calls, linux, index):
    run.prepare("lab", "cpu")
    (command,) = calls.installs()
    assert command[:5] == ["uv", "pip", "install", "--python", str(run.PYTHON)]
    assert command[5:] == ["--torch-backend", "cpu", "-c", "constraints.txt", "-e", ".[lab]"]
    assert index["room"] == [run.CPU_ROOM] and run.read_stamp()["cpu"] is True
    before = len(calls)
    run.prepare("lab")
    run.prepare("lab", "cpu")
    assert len(calls) == before, "neither installs again"
    run.prepare("lab", "test")  # more extras, still the small build, which is left as it is
    assert backends(calls) == ["cpu", "cpu"]
    assert "--reinstall-package" not in calls.installs()[1]
    pins = run.ROOT / "constraints.txt"
    pins.write_text(pins.read_text(encoding="utf-8").replace("tqdm==", "tqdm==0."))
    run.prepare("lab")
    assert backends(calls) == ["cpu"] * 3 and run.read_stamp()["cpu"] is True


def test_without_cpu_the_default_build_stays_the_default(run, calls, linux, index):
    run.prepare("lab")
    run.prepare("lab", "test")
    assert backends(calls) == ["default"] * 2 and run.read_stamp()["cpu"] is False


def test_cpu_asked_for_later_replaces_the_build_and_nothing_else(run, calls, linux, index):
    run.prepare("lab")
    (run.VENV / "of the reader").touch()
    run.prepare("lab", "cpu")
    assert backends(calls) == ["default", "cpu"] and run.read_stamp()["cpu"] is True
    again = calls.installs()[1]
    replaced = [again[i + 1] for i, word in enumerate(again) if word == "--reinstall-package"]
    assert replaced == ["torch", "torchvision"]
    assert (run.VENV / "of the reader").exists()


def test_where_the_index_is_not_reached_it_says_so_and_takes_the_default(
    run, calls, linux, index, capsys
):
    index["on"] = False
    run.prepare("lab", "cpu")
    assert backends(calls) == ["cpu", "default"] and index["room"] == [run.CPU_ROOM, 7]
    said = capsys.readouterr().out
    assert "could not be had" in said and "Going on with the default build" in said
    before = len(calls)
    run.prepare("lab", "cpu")
    assert len(calls) == before, "offline from now on, as always"
    assert "Remove it to retry" in capsys.readouterr().out
    run.prepare("lab")
    assert len(calls) == before
    run.prepare("lab", "test")  # installs anyway: tries once more
    assert backends(calls)[2:] == ["cpu", "default"]
    index["on"] = True
    run.VENV.rename(run.VENV.with_name("old"))
    run.prepare("lab", "cpu")
    assert run.read_stamp()["cpu"] is True


def test_where_the_default_is_there_an_index_out_of_reach_changes_nothing(
    run, calls, linux, index, capsys
):
    run.prepare("lab")
    index["on"] = False
    run.prepare("lab", "cpu")
    assert backends(calls) == ["default", "cpu"], "nothing to install: the default is there"
    assert run.read_stamp()["pins"] == run.pins() and "Going on" in capsys.readouterr().out


def test_without_uv_pip_puts_it_into_the_venv(run, calls, linux, index, monkeypatch):
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    monkeypatch.setattr(run, "runs", lambda code: run.PYTHON.exists())
    run.prepare("lab", "cpu")
    one, two = calls.installs()
    assert one == [str(run.PYTHON), "-m", "pip", "install", "--no-compile", "uv>=0.7.14"]
    assert Path(two[0]).parent == run.PYTHON.parent and Path(two[0]).stem == "uv"
    assert "--torch-backend" in two


def test_no_network_at_all_with_cpu_is_said_once_in_words(run, calls, linux, index):
    calls.code = 2
    with pytest.raises(SystemExit) as stopped:
        run.prepare("lab", "cpu")
    assert "installing failed" in words(stopped) and backends(calls) == ["cpu", "default"]
    calls.code = 0
    run.prepare("lab")  # what was asked for is remembered
    assert run.read_stamp()["cpu"] is True


def test_an_install_with_cpu_that_broke_off_goes_on_with_it(run, calls, linux, index):
    calls.code = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run.prepare("lab", "cpu")
    calls.code = 0
    run.prepare("lab")
    assert backends(calls) == ["cpu", "cpu"] and run.read_stamp()["cpu"] is True


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_every_build_is_one_for_the_cpu(run, calls, monkeypatch, capsys, platform):
    monkeypatch.setattr(run.sys, "platform", platform)
    run.prepare("lab", "cpu")
    assert backends(calls) == ["default"]
    assert "without GPU libraries anyway" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["lab", "test"])
def test_both_commands_take_cpu(run, monkeypatch, command):
    asked = []
    monkeypatch.setattr(run, "prepare", lambda *wanted: asked.append(wanted))
    monkeypatch.setattr(run, "call", lambda *a, **k: 0)
    monkeypatch.setattr(run, "PARTS", {"one": [OK]})
    assert run.main([command, "--cpu"]) == run.main([command]) == 0
    assert "cpu" in asked[0] and "cpu" not in asked[1]


# --- lab ---------------------------------------------------------------------------------------


@pytest.fixture
def started(run, monkeypatch):
    """The command that starts JupyterLab, as a list that `lab` fills."""
    command = []
    monkeypatch.setattr(run, "prepare", lambda *extras: None)
    monkeypatch.setattr(run, "call", lambda words, **env: command.extend(words) or 0)
    return command


def test_lab_listens_on_this_computer_only_and_keeps_its_token(run, started):
    assert run.main(["lab"]) == 0
    assert "--ServerApp.ip=127.0.0.1" in started
    assert f"--ServerApp.root_dir={run.ROOT / 'notebooks'}" in started
    assert not [word for word in started if "token" in word or "password" in word]
    assert "--no-browser" not in started


def test_lab_passes_on_port_and_browser(run, started):
    port = run.free_port()
    assert run.main(["lab", "--no-browser", "--port", str(port)]) == 0
    assert f"--ServerApp.port={port}" in started and "--no-browser" in started


def test_port_0_takes_a_free_one(run, started):
    assert run.main(["lab", "--port", "0"]) == 0
    (port,) = [word.split("=")[1] for word in started if word.startswith("--ServerApp.port=")]
    assert int(port) > 0


def test_a_taken_port_is_said_before_anything_starts(run, started):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as stopped:
            run.main(["lab", "--port", str(port)])
    assert f"port {port} is taken" in words(stopped) and not started
    free = int(words(stopped).split()[-1])
    assert run.main(["lab", "--port", str(free)]) == 0, "the port it suggests works"


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none_is_refused(run, started, capsys, port):
    with pytest.raises(SystemExit) as stopped:
        run.main(["lab", f"--port={port}"])
    assert stopped.value.code == 2 and "0 to 65535" in capsys.readouterr().err


def test_ctrl_c_ends_lab_and_test_without_a_traceback(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "prepare", lambda *extras: None)
    monkeypatch.setattr(run, "call", interrupted)
    assert run.main(["lab"]) == 0
    assert run.main(["test"]) == 130


# --- test --------------------------------------------------------------------------------------


@pytest.fixture
def parts(run, monkeypatch):
    """Stand-in parts, run by this Python in place of the one in .venv."""
    monkeypatch.setattr(run, "prepare", lambda *extras: None)
    monkeypatch.setattr(run, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(run, "PARTS", {"one": [OK], "two": [BAD], "three": [OK]})
    monkeypatch.setattr(run, "FAST", {"one": [BAD], "three": [OK]})
    return run.PARTS


def test_a_failing_part_does_not_hide_the_others(run, parts, capfd):
    assert run.main(["test"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[-4:-1]] == [
        ["one", "passed"],
        ["two", "failed"],
        ["three", "passed"],
    ]
    assert all(line.endswith(" s") for line in lines[-4:-1])
    assert lines[-1] == "2 passed, 1 failed, 0 skipped"


def test_named_parts_run_alone(run, parts, capfd):
    assert run.main(["test", "three", "one"]) == 0
    assert capfd.readouterr().out.endswith("\n2 passed, 0 failed, 0 skipped\n")
    with pytest.raises(SystemExit) as stopped:
        run.main(["test", "four"])
    assert stopped.value.code == 2
    assert "no part four" in capfd.readouterr().err


def test_fast_runs_its_own_commands_and_no_other_part(run, parts, capfd):
    assert run.main(["test", "--fast"]) == 1
    lines = capfd.readouterr().out.splitlines()
    told = [line.split()[:2] for line in lines[-3:-1]]
    assert told == [["one", "failed"], ["three", "passed"]]
    assert run.main(["test", "--fast", "three"]) == 0
    with pytest.raises(SystemExit) as stopped:
        run.main(["test", "three", "two", "--fast"])
    assert stopped.value.code == 2 and "--fast leaves out two" in capfd.readouterr().err


def chosen(command):
    """The marker expression of a pytest command."""
    return command[command.index("-m", 2) + 1]


def test_each_unit_test_runs_once_and_fast_leaves_out_only_slow_ones(run):
    """Alone or beside others; --fast is lint, types and the quick ones of the same unit tests."""
    together, alone = run.PARTS["unit"]
    assert (chosen(together), chosen(alone)) == ("not alone", "alone")
    assert "-n" in together and "-n" not in alone
    (quick,) = run.FAST["unit"]
    assert chosen(quick) == "not alone and not slow"
    assert [w for w in quick if w != chosen(quick)] == [w for w in together if w != "not alone"]
    assert [*run.FAST] == ["lint", "types", "unit"]
    assert all(run.FAST[part] == run.PARTS[part] for part in ("lint", "types"))
    assert all(any("browser" in w for w in c) for c in (*run.PARTS["unit"], *run.PARTS["browser"]))


def test_every_command_of_a_part_runs_and_counts(run, parts, tmp_path):
    seen = tmp_path / "seen"
    parts["one"] = [BAD, ["-c", f"open({str(seen)!r}, 'w')"]]
    assert run.main(["test", "one"]) == 1
    assert seen.exists()


def test_parts_run_in_the_projects_folder(run, parts, tmp_path, monkeypatch):
    parts["one"] = [["-c", "import os, sys; sys.exit(not os.path.exists('constraints.txt'))"]]
    monkeypatch.chdir(tmp_path)
    assert run.main(["test", "one"]) == 0


# --- the browser -------------------------------------------------------------------------------

REPORT = "import sys; open(sys.argv[1].split('=')[1], 'w').write('<testsuite>{}</testsuite>')"


@pytest.mark.parametrize(
    ("must", "code", "words"), [("", 0, "0 failed, 1 skipped"), ("1", 1, "1 failed, 0 skipped")]
)
def test_without_a_browser(run, parts, monkeypatch, capfd, must, code, words):
    parts["browser"] = [OK]
    monkeypatch.setenv("FEDLEARN_REQUIRE_BROWSER", must)
    monkeypatch.setattr(run, "find_browser", lambda: None)
    assert run.main(["test", "one", "browser"]) == code
    out = capfd.readouterr().out
    assert "sudo apt install chromium" in out, "how to get one"
    assert out.splitlines()[-1] == f"1 passed, {words}"


@pytest.mark.parametrize(
    ("must", "cases", "result"),
    [
        ("", "<testcase><skipped/></testcase>", "passed"),
        ("1", "<testcase><skipped/></testcase>", "failed"),
        ("1", "<testcase/>", "passed"),
    ],
)
def test_in_ci_one_skipped_browser_test_fails(run, parts, monkeypatch, must, cases, result):
    parts["browser"] = [["-c", REPORT.format(cases)]]
    monkeypatch.setenv("FEDLEARN_REQUIRE_BROWSER", must)
    monkeypatch.setattr(run, "find_browser", lambda: sys.executable)
    assert run.browser_part() == result


def test_the_browser_that_was_found_is_handed_on(run, parts, monkeypatch):
    check = "import os, sys; sys.exit(os.environ['CHROMIUM'] != 'the one')"
    parts["browser"] = [["-c", check]]
    monkeypatch.setattr(run, "find_browser", lambda: "the one")
    assert run.browser_part() == "passed"


def program(path):
    """An executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(0o755)
    return str(path)


def test_chromium_in_the_environment_comes_first_and_may_be_wrong(run, tmp_path, monkeypatch):
    there = program(tmp_path / "my browser.exe")
    monkeypatch.setenv("CHROMIUM", there)
    assert run.find_browser() == there
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "nothing"))
    assert run.find_browser() is None


@pytest.mark.skipif(os.name == "nt", reason="PATH lists .exe files there")
@pytest.mark.parametrize("name", ["chromium", "google-chrome", "microsoft-edge"])
def test_a_browser_in_path_is_found(run, tmp_path, monkeypatch, name):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert run.find_browser() is None or sys.platform == "darwin"
    there = program(tmp_path / "bin" / name)
    assert run.find_browser() == there


@pytest.mark.parametrize(
    ("platform", "variable", "file"),
    [
        ("win32", "PROGRAMFILES(X86)", "Microsoft/Edge/Application/msedge.exe"),
        ("win32", "LOCALAPPDATA", "Google/Chrome/Application/chrome.exe"),
        ("darwin", "HOME", "Applications/Google Chrome.app/Contents/MacOS/Google Chrome"),
    ],
)
def test_a_browser_in_its_usual_place_is_found(
    run, tmp_path, monkeypatch, platform, variable, file
):
    if os.name == "nt" and platform != "win32":
        pytest.skip("macOS paths on Windows")
    monkeypatch.setattr(run.sys, "platform", platform)
    monkeypatch.setenv("PATH", "")
    for name in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    there = program(tmp_path / file)
    found = run.find_browser()
    assert found is not None and Path(found) == Path(there)


@pytest.mark.parametrize(
    ("words", "handed"),
    [
        (["pages"], ["pages"]),
        (["pages", "07", "12", "--still"], ["pages", "07", "12", "--still"]),
        (["pages", "--out", "site"], ["pages", "--out", os.path.abspath("site")]),
        (["pdf", "07", "--slides"], ["pages", "07", "--pdf", "its browser", "--slides"]),
        (["export", "student"], ["pages.student"]),
    ],
)
def test_pages_pdf_and_export_hand_their_words_to_tools(run, calls, monkeypatch, words, handed):
    monkeypatch.setattr(run, "find_browser", lambda: "its browser")
    assert run.main(words) == 0
    assert calls[-1] == [str(run.PYTHON), "-m", *handed]
    extras = run.read_stamp()["extras"]
    assert extras == (["lab"] if "export" in words else ["lab", "pages"])


def test_pdf_without_a_browser_says_where_to_get_one(run, calls, monkeypatch):
    monkeypatch.setattr(run, "find_browser", lambda: None)
    with pytest.raises(SystemExit, match="sudo apt install chromium"):
        run.main(["pdf"])
    assert not calls
