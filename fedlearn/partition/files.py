"""One way to write a file: it is there whole or not at all."""

import contextlib
import glob
import os
import tempfile
import time
from pathlib import Path


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write to a temporary file beside ``path``, flush it to the disk, then ``os.replace``.

    Whoever reads ``path`` finds the old content or the new, whenever the process is killed. What a
    killed writer left behind is removed by the next one, a minute later.

    Args:
        path: Of the file; replaced if it exists. It is returned.
        content: All of it.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(f"{folder}/a.txt", b"all of it").read_bytes()
        b'all of it'
    """
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process took it away
            if time.time() - left.stat().st_mtime > 60:
                left.unlink()
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise
    return path


def put_aside(path: Path) -> None:
    """Keep what is there, if anything is, under its name with ``.before``."""
    if path.exists():
        os.replace(path, path.with_name(f"{path.name}.before"))


def _flush_folder(folder: Path) -> None:
    """So that the new name survives a power failure, where a system offers it."""
    with contextlib.suppress(OSError, AttributeError):  # Windows has no handle of a folder
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(handle)
        os.close(handle)
