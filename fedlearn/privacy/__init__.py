"""Privacy: differential privacy with its accounting, and secure aggregation.

``import fedlearn.privacy`` is light; the accountant (dp-accounting) and the cryptography are
imported by what uses them: ``pip install 'fedlearn[privacy]'``, part of the lab.
"""

from .dp import (
    calibrate,
    dp_federate,
    epsilon,
    local_epsilon,
    local_noise,
    noise_multiplier,
    private_mean,
)

__all__ = [
    "calibrate",
    "dp_federate",
    "epsilon",
    "local_epsilon",
    "local_noise",
    "noise_multiplier",
    "private_mean",
]
