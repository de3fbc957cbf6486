"""fedlearn: the federated loop on one screen, a method in one small file.

>>> from fedlearn import algorithms, data, model, partition
>>> from fedlearn.federate import Recipe, Simulated, federate
"""

from . import aggregate, algorithms, data, model, optim, partition, rng, transform

__version__ = "0.1.0"
__all__ = [
    "aggregate",
    "algorithms",
    "data",
    "model",
    "optim",
    "partition",
    "rng",
    "transform",
]
