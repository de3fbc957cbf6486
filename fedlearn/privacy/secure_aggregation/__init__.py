"""Secure aggregation: the server learns the sum of the clients' vectors and no single one.

The messages in their order, what the server sees and what happens when somebody falls silent:
``README.md`` beside this file. Lesson 12 builds the protocol step by step.
"""

from . import primitives
from .client import Client
from .fixed_point import FixedPoint
from .messages import STAGES, Refused, TooFew, Vote, default_threshold
from .round import Sum, enroll, exchange, secure_sum, unmask, wire_bytes
from .server import Server
from .stages import secure_mean

__all__ = [
    "STAGES", "Client", "FixedPoint", "Refused", "Server", "Sum", "TooFew", "Vote",
    "default_threshold", "enroll", "exchange", "primitives", "secure_mean", "secure_sum",
    "unmask", "wire_bytes",
]  # fmt: skip
