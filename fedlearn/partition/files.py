"""One way to write a file: it is there whole or not at all."""

import contextlib
import glob
import os
import secrets
import stat
import time
from pathlib import Path

from ..checks import check


def place(path: str | Path) -> Path:
    """The path of a file, with ``~`` for the home folder; ValueError if it is no path.

    Example:
        >>> place("~/parts.json") == Path.home() / "parts.json", place("a.csv").name
        (True, 'a.csv')
    """
    rule = "the name of a file, text or a Path"
    fine = isinstance(path, (str, Path)) and str(path).strip() not in ("", ".")
    check("files", "path", path, fine and "\0" not in str(path), rule, "'run.csv'")
    return Path(os.path.expanduser(path))


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write to a temporary file beside ``path``, flush it to the disk, then ``os.replace``.

    Whoever reads ``path`` finds the old content or the new, whenever the process is killed. What a
    killed writer left behind is removed by the next one, a minute later. The temporary name can't
    be foreseen, and what has it already, a link above all, is never written through.

    Args:
        path: Of the file; replaced if it exists, and then keeps its mode; ``~`` is the home folder.
            Where it is a link, the file that it leads to. It is returned.
        content: All of it.

    Raises:
        FileNotFoundError: If its folder isn't there.
        IsADirectoryError: If it is a folder.
        PermissionError: If the file is write-protected, or nobody may write there.
        OSError: If it is neither a file nor free, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(f"{folder}/a.txt", b"all of it").read_bytes()
        b'all of it'
    """
    said = place(path)
    to = Path(os.path.realpath(said))
    mode = _writable(to, said)
    for left in to.parent.glob(f".{glob.escape(_short(to))}.*.tmp"):
        with contextlib.suppress(OSError):  # another process took it away
            there = left.lstat()
            if time.time() - there.st_mtime > 60 and stat.S_ISREG(there.st_mode):
                left.unlink()
    temporary = to.with_name(f".{_short(to)}.{secrets.token_hex(8)}.tmp")
    try:
        new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        handle = os.open(temporary, new, 0o666)  # less the umask
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, to)
        _flush_folder(to.parent)
    except BaseException as e:
        temporary.unlink(missing_ok=True)
        if isinstance(e, OSError) and e.filename:  # named after the file, not the temporary one
            raise OSError(e.errno, e.strerror, str(said)) from e
        raise
    return said


def put_aside(path: Path) -> None:
    """Keep what is there, if anything is, under its name with ``.before``.

    What is under that name already is replaced if it begins as the file does (an older run's), and
    else somebody's own: FileExistsError.
    """
    before = path.with_name(f"{path.name}.before")
    if not path.exists():
        return
    if os.path.lexists(before) and not (before.is_file() and _begins(before) == _begins(path)):
        raise FileExistsError(
            f"files: {path.name} would be kept as {before.name}, and that must be free or an older "
            f"run's, got a file of another kind, e.g. checkpoint='2-{path.name}'"
        )
    os.replace(path, before)


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _short(path: Path) -> str:
    """As much of a name as leaves room for more: a system allows 255 bytes."""
    return os.fsdecode(os.fsencode(path.name)[:200])


def _writable(to: Path, said: Path) -> int | None:
    """The mode of the file that is there, None for a free place; in words what is neither."""
    if not to.parent.is_dir():
        raise FileNotFoundError(
            f"files: a file needs a folder that exists, got {str(said)!r}, and there is no "
            f"{str(to.parent)!r}, e.g. {said.name!r}"
        )
    if to.is_dir():
        raise IsADirectoryError(
            f"files: path must be a file's, got the folder {str(said)!r}, e.g. "
            f"{str(said / 'run.csv')!r}"
        )
    if not os.path.lexists(to):
        return None
    if not to.is_file():
        raise OSError(f"files: path must be a file's or free, got {str(said)!r}, e.g. 'run.csv'")
    if not os.access(to, os.W_OK):
        raise PermissionError(
            f"files: the file must not be write-protected, got {str(said)!r}, e.g. another name"
        )
    return to.stat().st_mode & 0o777


def _flush_folder(folder: Path) -> None:
    """So that the new name survives a power failure, where a system offers it."""
    with contextlib.suppress(OSError, AttributeError):  # Windows has no handle of a folder
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(handle)
        os.close(handle)
