"""fedlearn: the federated loop on one screen, a method in one small file.

>>> from fedlearn import Recipe, Simulated, algorithms, collect, data, federate, model, partition
"""

from . import aggregate, algorithms, data, model, optim, participation, partition, rng, transform
from .checks import RoundFailed
from .history import Diverged, History, Round
from .loop import Run, collect, federate
from .recipe import Recipe
from .simulated import Simulated, centralised

__version__ = "0.1.0"
__all__ = [
    "Diverged", "History", "Recipe", "Round", "RoundFailed", "Run", "Simulated", "aggregate",
    "algorithms", "centralised", "collect", "data", "federate", "model", "optim", "participation",
    "partition", "rng", "transform",
]  # fmt: skip
