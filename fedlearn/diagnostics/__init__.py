"""How uneven the data are, and how far the clients drift: numbers with a formula each."""

from . import quadratics
from .measures import (
    client_gradients,
    client_metrics,
    cosines,
    drift,
    effective_classes,
    gini,
    gradient_dissimilarity,
    jensen_shannon,
    label_distance,
    weight_divergence,
)

__all__ = [
    "client_gradients",
    "client_metrics",
    "cosines",
    "drift",
    "effective_classes",
    "gini",
    "gradient_dissimilarity",
    "jensen_shannon",
    "label_distance",
    "quadratics",
    "weight_divergence",
]
