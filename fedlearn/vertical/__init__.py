"""Vertical federated learning: two owners hold different columns about the same people.

One of them also owns the label. They find the people whom both know without showing the others
(:mod:`.alignment`), train one model of which each keeps its half (:mod:`.split`), and look at what
crossed the line all the same (:mod:`.leakage`). Derived in lesson 17.
"""

from .alignment import Alignment, Blinded, align
from .leakage import columns_from_scores, direction, residual_noise, rows_given_away
from .leakage import randomised_response as randomised_response
from .split import Step, split_logistic, split_network

__all__ = [
    "Alignment", "Blinded", "Step", "align", "columns_from_scores", "direction",
    "randomised_response", "residual_noise", "rows_given_away", "split_logistic", "split_network",
]  # fmt: skip
