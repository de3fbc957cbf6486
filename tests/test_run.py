"""run.py's decisions, without installing anything: installers and parts are stand-ins."""

import ast
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

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


# --- lab ---------------------------------------------------------------------------------------


@pytest.fixture
def started(run, monkeypatch):
    """The command that starts JupyterLab, as a list that `lab` fills."""
    command = []
    monkeypatch.setattr(run, "prepare", lambda *extras: None)
    monkeypatch.setattr(run, "call", lambda words: command.extend(words) or 0)
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
