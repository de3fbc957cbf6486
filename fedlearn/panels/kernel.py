"""What a panel must know of the kernel it lives in: cells, threads, messages."""

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import ipywidgets as W


def tree(widget: W.Widget) -> Iterator[W.Widget]:
    """A widget and all below it, children first."""
    for child in getattr(widget, "children", ()):
        yield from tree(child)
    yield widget


def close_tree(widget: W.Widget) -> None:
    """Close a widget, its children, layout and style: ``close()`` alone leaves the others."""
    for w in list(tree(widget)):
        for part in (getattr(w, "layout", None), getattr(w, "style", None), w):
            if part is not None:
                part.close()


def open_tree(widget: W.Widget) -> None:
    """Bring a closed widget and all below it back, with their values; an open one is left alone.

    A cell that is run again closes its panel, and the sliders with it. Where they were made in
    another cell, which isn't run again, the new panel gets them closed.
    """
    for w in reversed(list(tree(widget))):  # a parent's state names its children
        for part in (getattr(w, "layout", None), getattr(w, "style", None), w):
            if part is not None and part.comm is None:
                part.open()


def hear_while_busy(widget: W.Widget) -> None:
    """Let messages of a widget and all below it arrive while another cell runs.

    JupyterLab sends them to a subshell, a thread of their own. ipykernel 7.4 sends them instead to
    where the widget was last written from, which is the busy main thread for a slider that nobody
    has moved yet: its first move would wait for the cell to end, and the following ones behind it.
    Here the address that JupyterLab wrote counts again. Other versions have no such method.
    """
    for w in tree(widget):
        if hasattr(w.comm, "_reply_subshell_for"):
            w.comm._reply_subshell_for = lambda data, addressed: addressed


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The kernel's loop on the main thread, or None in a plain script."""
    with contextlib.suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None


# Panels by cell. A cell that runs again replaces its own older panels, whatever they are called.
_LIVE: dict[str, tuple[str, list[weakref.ref[Any]]]] = {}
_lock = threading.Lock()


def replace_older(panel: Any) -> None:
    """Close the panels that an older execution of the running cell made; remember this one."""
    here = cell()
    if here is None:
        return
    name, execution = here
    with _lock:
        before, panels = _LIVE.get(name, (execution, []))
        old = panels if before != execution else []
        _LIVE[name] = (execution, [*(() if old else panels), weakref.ref(panel)])
    for ref in old:
        if (gone := ref()) is not None:
            gone.close()


def cell() -> tuple[str, str] | None:
    """(cell id, id of this execution), as JupyterLab and nbclient send them; None elsewhere."""
    try:
        from IPython import get_ipython

        parent = get_ipython().get_parent()
        name = (parent.get("metadata") or {}).get("cellId")
        return (name, parent["header"]["msg_id"]) if name else None
    except (AttributeError, KeyError, ImportError):
        return None
