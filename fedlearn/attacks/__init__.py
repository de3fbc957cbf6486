"""Attacks: what an update gives away, and what a client can do to the others' model."""

from .backdoor import backdoor_rate, boost, hide, poison, stamp
from .byzantine import (
    Attack,
    Byzantine,
    gaussian,
    inner_product,
    label_flip,
    little_is_enough,
    sign_flip,
    z_max,
)
from .inversion import best, dlg, idlg, invert_cosine, match
from .leakage import Membership, invert_linear, label_counts, membership, reveal_label
from .messages import Send, gradient, update
from .search import Guess

__all__ = [
    "Attack", "Byzantine", "Guess", "Membership", "Send", "backdoor_rate", "best", "boost",
    "dlg", "gaussian", "gradient", "hide", "idlg", "inner_product", "invert_cosine",
    "invert_linear", "label_counts", "label_flip", "little_is_enough", "match", "membership",
    "poison", "reveal_label", "sign_flip", "stamp", "update", "z_max",
]  # fmt: skip
