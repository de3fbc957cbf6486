"""Privacy: differential privacy with its accounting, and secure aggregation.

``import fedlearn.privacy`` is light; the accountant (dp-accounting) and the cryptography are
imported by what uses them: ``pip install 'fedlearn[privacy]'``, part of the lab.
"""

from . import secure_aggregation
from . import secure_aggregation as secure  # as lesson 12 calls the room
from .accounting import calibrate, delta, epsilon, epsilons, fixed_cohort, local_epsilon, losses
from .adaptive import adaptive_clip
from .dp import dp_federate, local_noise, noise_multiplier, private_mean
from .secure_aggregation import (
    FixedPoint,
    Refused,
    Sum,
    TooFew,
    primitives,
    secure_mean,
    secure_sum,
)

__all__ = [
    "adaptive_clip", "calibrate", "delta", "dp_federate", "epsilon", "epsilons", "fixed_cohort",
    "local_epsilon", "local_noise", "losses", "noise_multiplier", "private_mean", "FixedPoint",
    "Refused", "Sum", "TooFew", "primitives", "secure", "secure_aggregation", "secure_mean",
    "secure_sum",
]  # fmt: skip
