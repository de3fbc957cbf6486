"""How uneven the data are, how far clients drift: numbers with a formula; how two runs differ."""

from . import quadratics
from .evaluation import client_metrics, evaluator
from .measures import (
    client_gradients,
    cosines,
    drift,
    effective_classes,
    gini,
    gradient_dissimilarity,
    jensen_shannon,
    label_distance,
    tail,
    updates,
    weight_divergence,
)
from .recipes import describe, differences

__all__ = [
    "client_gradients", "client_metrics", "cosines", "describe", "differences", "drift",
    "effective_classes", "evaluator", "gini", "gradient_dissimilarity", "jensen_shannon",
    "label_distance", "quadratics", "tail", "updates", "weight_divergence",
]  # fmt: skip
