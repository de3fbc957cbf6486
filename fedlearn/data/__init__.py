"""Examples: data sets by name, made up, or your own, checked at one boundary."""

from .arrays import tensor
from .boundary import Population, check_labels, check_population, fit, like
from .cases import drivers, machines
from .made_up import synthetic
from .pictures import data_folder
from .sets import Dataset, load, own

__all__ = [
    "Dataset", "Population", "check_labels", "check_population", "data_folder", "drivers", "fit",
    "like", "load", "machines", "own", "synthetic", "tensor",
]  # fmt: skip
