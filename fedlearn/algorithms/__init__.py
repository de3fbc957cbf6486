"""Federated methods, one file each: what a client does, what the server does."""

from .base import Algorithm, Message, Reply
from .fedavg import fedavg
from .feddyn import feddyn
from .fednova import fednova
from .fedopt import fedadagrad, fedadam, fedavgm, fedopt, fedyogi
from .fedprox import fedprox
from .fedsam import fedsam
from .fedsgd import fedsgd
from .moon import moon
from .scaffold import scaffold
from .scheduled import scheduled

__all__ = [
    "Algorithm", "Message", "Reply", "fedadagrad", "fedadam", "fedavg", "fedavgm", "feddyn",
    "fednova", "fedopt", "fedprox", "fedsam", "fedsgd", "fedyogi", "moon", "scaffold", "scheduled",
]  # fmt: skip
