"""One model for all, or a model for each: personal methods, a file each, and fair ones.

Every method is an :class:`~fedlearn.algorithms.Algorithm`, so it runs wherever FedAvg runs. Models
of one's own lie in what clients remember; :func:`models` reads them. Derived in lesson 16.
"""

from .afl import afl
from .alone import alone
from .base import models
from .ditto import ditto
from .fedper import fedper, fedrep
from .fine_tuning import fine_tune
from .ifca import ifca
from .qfedavg import qfedavg

__all__ = ["afl", "alone", "ditto", "fedper", "fedrep", "fine_tune", "ifca", "models", "qfedavg"]
