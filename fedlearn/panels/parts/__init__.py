"""The pictures of a panel, one a file: how it is sent, and how it is drawn without a browser."""

from .bars import Bars
from .base import Part
from .boundary import Boundary
from .curve import Curve
from .dots import Dots
from .heat import Heat
from .holdings import Holdings
from .lines import boundary_scene
from .pictures import Pictures
from .plane import Plane
from .readout import Readout, Status

__all__ = [
    "Bars",
    "Boundary",
    "Curve",
    "Dots",
    "Heat",
    "Holdings",
    "Part",
    "Pictures",
    "Plane",
    "Readout",
    "Status",
    "boundary_scene",
]
