"""The parts made of words: the readout above the pictures, the status below them."""

from collections.abc import Callable
from typing import Any

import traitlets as T

from ..engine import Snapshot
from .base import Part, script


class Readout(Part):
    """Round 37/100, the progress bar, and a few numbers in words.

    Args:
        items: Snapshot -> the words, e.g. ``["accuracy 0.91"]``.

    Example:
        >>> from fedlearn.panels import Engine
        >>> readout = Readout(lambda s: [f"{len(s.columns['loss'])} losses"])
        >>> readout.show(Engine(lambda: [{"loss": 1.0}], {}, rounds=9).compute())
        >>> readout.round, readout.rounds, readout.items
        (0, 9, ['1 losses'])
    """

    _esm = script("readout")
    round = T.Int(0).tag(sync=True)
    rounds = T.Int(1).tag(sync=True)
    items: Any = T.List().tag(sync=True)
    unit = T.Unicode("round").tag(sync=True)

    def __init__(self, items: Callable[[Snapshot], list[str]] = lambda snapshot: []):
        super().__init__(title="progress", unit="round")
        self._items = items

    def show(self, snapshot: Snapshot) -> None:
        with self.hold_sync():
            self.gen, self.rounds, self.round = snapshot.gen, snapshot.rounds, snapshot.round
            self.items = self._items(snapshot)


class Status(Part):
    """Errors in words, what was saved, the code; and it gives slider handles their names."""

    _esm = script("status")
    error = T.Unicode("").tag(sync=True)
    news = T.Unicode("").tag(sync=True)
    said = T.Unicode("").tag(sync=True)
    code = T.Unicode("").tag(sync=True)

    def show(self, snapshot: Snapshot) -> None:
        with self.hold_sync():
            self.gen, self.error = snapshot.gen, snapshot.error
