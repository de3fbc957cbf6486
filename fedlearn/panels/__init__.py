"""Live panels for notebooks. The only part of fedlearn that needs ipywidgets and anywidget.

>>> from fedlearn.panels import Panel
>>> panel = Panel(show=("alpha",), rounds=3)
>>> panel.close()
"""

from . import controls
from .engine import Engine, Past, Snapshot
from .explorable import Explorable
from .panel import Panel
from .parts import Curve, Dots, Holdings, Part, Plane
from .study import Settings, code, frames
from .words import Readout

__all__ = [
    "Curve",
    "Dots",
    "Engine",
    "Explorable",
    "Holdings",
    "Panel",
    "Part",
    "Past",
    "Plane",
    "Readout",
    "Settings",
    "Snapshot",
    "code",
    "controls",
    "frames",
]
