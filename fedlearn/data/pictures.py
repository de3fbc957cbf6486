"""Pictures through torchvision: read from a folder, downloaded once."""

import os
import pickle
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

KNOWN = {
    "mnist": ("MNIST", "LeCun, Cortes, Burges, 1998", (28, 28)),
    "fashion_mnist": ("FashionMNIST", "Xiao, Rasul, Vollgraf, 2017", (28, 28)),
    "cifar10": ("CIFAR10", "Krizhevsky, 2009", (3, 32, 32)),
}
_TIMEOUT_S = 15.0  # torchvision sets none: without it a dead network hangs the lesson
_DOWNLOAD = threading.Lock()  # the timeout is the process's: one download sets it and takes it back


def data_folder(folder: str | Path | None = None) -> Path:
    """Where torchvision's files are looked for: ``folder``, $FEDLEARN_DATA, or the user's cache.

    A ``~`` is the home folder, as in a shell.

    Example:
        >>> data_folder("somewhere").name
        'somewhere'
    """
    from platformdirs import user_cache_path

    named = folder or os.environ.get("FEDLEARN_DATA")
    return Path(named).expanduser() if named else user_cache_path("fedlearn")


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """For one download at a time: two that overlap would put back each other's."""
    with _DOWNLOAD:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(seconds)
        try:
            yield
        finally:
            socket.setdefaulttimeout(before)


def read(name: str, folder: str | Path | None) -> list[tuple[Tensor, Tensor]]:
    """Training and test pictures, (x, y) each; FileNotFoundError, with a reason, without them."""
    from torchvision import datasets

    cls = KNOWN[name][0]
    root = data_folder(folder)
    try:
        return [_tensors(_read(getattr(datasets, cls), root, t)) for t in (True, False)]
    except _DAMAGED as e:
        why = f"a file there is damaged: delete it ({str(e).strip() or type(e).__name__})"
        raise FileNotFoundError(_missing(name, cls, root, why)) from e
    except (RuntimeError, OSError, HTTPException) as e:  # URLError is an OSError
        found = re.search(r"urlopen error (?:\[Errno [^]]*\] )?([^>]*)", str(e))
        why = f"download failed: {found[1] if found else ' '.join(str(e).split())[:120]}"
        raise FileNotFoundError(_missing(name, cls, root, why)) from e


class _Damaged(Exception):
    pass


# what torchvision raises when it reads a file that is cut, empty or another
_DAMAGED = (_Damaged, AssertionError, ValueError, TypeError, KeyError, EOFError, pickle.PickleError)


def _read(dataset, root: Path, train: bool):  # type: ignore[no-untyped-def]
    """From the folder; only what isn't there is downloaded."""
    try:
        return dataset(root, train=train)
    except RuntimeError as e:
        if "not found" not in str(e):  # torchvision's words: "Dataset not found"
            raise _Damaged(e) from e
        with _socket_timeout(_TIMEOUT_S):
            return dataset(root, train=train, download=True)


def _missing(name: str, cls: str, root: Path, why: str) -> str:
    inside = "cifar-10-batches-py" if cls == "CIFAR10" else f"{cls}/raw"
    return (
        f"load: no {name} in {_short(root)} ({why}). Put torchvision's files into "
        f"{_short(root / inside)}, or set FEDLEARN_DATA to a folder that has them, or use "
        f"load({name!r}, fallback='digits')."
    )


def _short(path: Path) -> str:
    """With ~ for the home folder: a message may end up in a stored notebook."""
    return str(path).replace(str(Path.home()), "~")


def _tensors(part) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    x = torch.as_tensor(part.data)
    if len(x) != len(part.targets):
        raise _Damaged(f"{len(x)} pictures, {len(part.targets)} labels")
    if x.dim() == 4:  # CIFAR: channels last
        x = x.permute(0, 3, 1, 2)
    return x.flatten(1).float().div_(255), torch.as_tensor(part.targets)
