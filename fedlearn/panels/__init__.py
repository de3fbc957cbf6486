"""Live panels for notebooks. The only part of fedlearn that needs ipywidgets and anywidget:
``pip install 'fedlearn[lab]'``.

The README of this folder draws a slider's way to the picture.

>>> from fedlearn.panels import Panel
>>> panel = Panel(show=("alpha",), rounds=3)
>>> panel.close()
"""

try:
    import anywidget
    import ipywidgets
except ImportError as e:
    raise ImportError(
        f"fedlearn.panels needs ipywidgets and anywidget ({e}): pip install 'fedlearn[lab]'"
    ) from e

from . import controls
from .engine import Engine, Past, Snapshot
from .explorable import Explorable
from .federated.code import code
from .federated.compare import Compare
from .federated.frames import frames
from .federated.panel import Panel
from .federated.settings import Settings
from .federated.sweep import Sweep
from .federated.workers import grid
from .parts.bars import Bars
from .parts.base import Part
from .parts.boundary import Boundary
from .parts.curve import Curve
from .parts.dots import Dots
from .parts.heat import Heat
from .parts.holdings import Holdings
from .parts.lines import boundary_scene
from .parts.pictures import Pictures
from .parts.plane import Plane
from .parts.readout import Readout
from .words import language

del anywidget, ipywidgets

__all__ = [
    "Bars", "Boundary", "Compare", "Curve", "Dots", "Engine", "Explorable", "Heat", "Holdings",
    "Panel", "Part", "Past", "Pictures", "Plane", "Readout", "Settings", "Snapshot", "Sweep",
    "boundary_scene", "code", "controls", "frames", "grid", "language",
]  # fmt: skip
