"""The one writer: whole or not at all, never through a link, and refused in words."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedlearn.partition import files
from fedlearn.partition.files import put_aside, write_whole

ROOT = Path(__file__).parents[1]
links = pytest.mark.skipif(os.name == "nt", reason="links need rights there")


def test_no_temporary_name_can_be_foreseen_and_a_planted_link_is_not_written_through(
    tmp_path, monkeypatch
):
    """Two writes take two names; what lies under one already is left as it is."""
    names, real = [], os.open

    def seen(path, *more):
        names.append(Path(path).name)
        return real(path, *more)

    monkeypatch.setattr(files.os, "open", seen)
    for _ in range(2):
        write_whole(tmp_path / "a", b"x")
    used = [n for n in names if n.endswith(".tmp")]
    assert len(set(used)) == 2
    mine = tmp_path / "mine"
    mine.write_bytes(b"my own")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "known")
    (tmp_path / ".a.known.tmp").symlink_to(mine)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a", b"y")
    assert mine.read_bytes() == b"my own" and (tmp_path / "a").read_bytes() == b"x"


@links
def test_the_old_fixed_name_is_somebody_s_own_file(tmp_path):
    """What used to be the temporary name: a link or a file there stays as it is."""
    mine = tmp_path / "mine"
    mine.write_bytes(b"my own")
    for name in ("a.tmp", ".a.tmp", "a.json.tmp"):
        (tmp_path / name).symlink_to(mine)
    write_whole(tmp_path / "a", b"x")
    write_whole(tmp_path / "a.json", b"x")
    assert mine.read_bytes() == b"my own"


@links
def test_where_the_path_is_a_link_the_file_it_leads_to_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "a")
    for content in (b"1", b"2"):  # first the link leads to a free place
        assert write_whole(tmp_path / "link", content) == tmp_path / "link"
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "far" / "a").read_bytes() == content
    (tmp_path / "lost").symlink_to(tmp_path / "no" / "a")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("lost", "loop"):
        with pytest.raises(OSError, match=r"files: .*got .*e\.g\."):
            write_whole(tmp_path / name, b"x")


@pytest.mark.parametrize("path", [None, 3, b"a", "", ".", " ", "a\0b", ["a"]], ids=repr)
def test_what_is_no_path_is_refused_by_name(path):
    with pytest.raises(ValueError, match=r"files: path must be .*got .*e\.g\."):
        write_whole(path, b"x")


def test_a_folder_and_a_folder_that_is_not_there_are_said(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"got the folder .*e\.g\."):
        write_whole(tmp_path, b"x")
    with pytest.raises(FileNotFoundError, match=r"there is no .*e\.g\. 'a'"):
        write_whole(tmp_path / "no" / "a", b"x")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="a folder that exists"):
        write_whole(tmp_path / "file" / "a", b"x")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="no named pipes there")
def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a file's or free"):
        write_whole(tmp_path / "pipe", b"x")
    assert (tmp_path / "pipe").is_fifo()


def test_a_write_protected_file_stays(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"kept")
    monkeypatch.setattr(files.os, "access", lambda *a: False)  # root may write everything
    with pytest.raises(PermissionError, match="write-protected"):
        write_whole(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"kept"


def test_an_error_of_the_system_names_the_file_and_not_the_temporary_one(tmp_path, monkeypatch):
    def full(path, *more):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files.os, "open", full)
    with pytest.raises(PermissionError) as said:
        write_whole(tmp_path / "a", b"x")
    assert str(said.value).endswith(f"Permission denied: {str(tmp_path / 'a')!r}")


@pytest.mark.skipif(os.name == "nt", reason="no umask there")
def test_a_new_file_keeps_to_the_umask():
    code = (
        "import os, sys; from fedlearn.partition.files import write_whole; os.umask(0o077)\n"
        "print(oct(write_whole(sys.argv[1], b'').stat().st_mode & 0o777))"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, f"{folder}/a"], capture_output=True, text=True, check=True
        )
    assert done.stdout == "0o600\n"


def test_a_name_as_long_as_the_system_allows(tmp_path):
    for name in ("a" * 255, "ü" * 127):
        assert write_whole(tmp_path / name, b"x").read_bytes() == b"x"
        write_whole(tmp_path / name, b"y")
    assert len(os.listdir(tmp_path)) == 2


@links
def test_only_files_are_swept_up(tmp_path):
    """A folder, or a link, that is called as a left-over is stays; the write goes on."""
    (tmp_path / ".a.1.tmp").mkdir()
    (tmp_path / "b").write_bytes(b"my own")
    (tmp_path / ".a.2.tmp").symlink_to(tmp_path / "b")
    for name in (".a.1.tmp", ".a.2.tmp"):
        os.utime(tmp_path / name, (0, 0), follow_symlinks=False)
    write_whole(tmp_path / "a", b"x")
    assert sorted(os.listdir(tmp_path)) == [".a.1.tmp", ".a.2.tmp", "a", "b"]


def test_many_writers_at_once_leave_one_of_their_files(tmp_path):
    write = lambda n: [write_whole(tmp_path / "a", bytes([n]) * 5000) for _ in range(20)]
    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    content = (tmp_path / "a").read_bytes()
    assert len(content) == 5000 and len(set(content)) == 1
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_of_one_s_own_is_not_put_aside_over(tmp_path):
    run, before = tmp_path / "a", tmp_path / "a.before"
    put_aside(run)  # nothing there
    run.write_bytes(b"fedlearn run 1\n1")
    put_aside(run)
    run.write_bytes(b"fedlearn run 1\n2")
    put_aside(run)
    assert before.read_bytes().endswith(b"2") and not run.exists()
    before.write_bytes(b"my thesis")
    run.write_bytes(b"fedlearn run 1\n3")
    with pytest.raises(FileExistsError, match=r"a\.before.*e\.g\."):
        put_aside(run)
    assert before.read_bytes() == b"my thesis" and run.exists()


WRITES = {"write_text", "write_bytes", "savefig", "to_csv", "mkstemp", "NamedTemporaryFile"}


@pytest.mark.parametrize(
    "file",
    [*sorted((ROOT / "fedlearn").rglob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py")),
     *sorted((ROOT / "tools").rglob("*.py"))],
    ids=lambda f: str(f.relative_to(ROOT)),
)  # fmt: skip
def test_every_file_is_written_by_the_one_writer(file):
    """No open(..., "w"), no write_text, no os.replace, but in the writer itself."""
    if file.name == "files.py":
        return
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        in_memory = name == "savefig" and ast.unparse(node.args[0]) == "out"
        assert name not in WRITES or in_memory, f"line {node.lineno}: {name}"
        of_os = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "os"
        assert not (of_os and name in ("replace", "rename")), f"line {node.lineno}: os.{name}"
        if name == "open" and isinstance(node.func, ast.Name):
            mode = ast.unparse(node.args[1]) if len(node.args) > 1 else "'r'"
            assert "r" in mode, f"line {node.lineno}: open(..., {mode})"
