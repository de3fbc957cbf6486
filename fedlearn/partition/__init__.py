"""Who holds what: split n labelled examples over N clients.

Every partitioner is a pure function ``(labels, n_clients, rng, ...) -> Parts``. Each example goes
to exactly one client, no client stays empty, and the same generator state gives the same answer.

Two of them are called "Dirichlet" in papers and are not the same thing:

- :func:`dirichlet_label` deals each *label* out over the clients, so sizes differ too;
- :func:`dirichlet_client` gives each *client* its own mix of labels, all sizes equal.

:func:`match` cuts the test set as the training set is cut, so that client k is the same in both.

Feature skew and concept shift, which change examples and not who holds them, are in
:mod:`fedlearn.skew`.
"""

from .base import Parts, counts, load, save, summary
from .labels import client_mixes, dirichlet_client, dirichlet_label, label_and_quantity
from .plain import by_attribute, iid, labels_per_client, match, quantity, shards

__all__ = [
    "Parts", "by_attribute", "client_mixes", "counts", "dirichlet_client", "dirichlet_label",
    "iid", "label_and_quantity", "labels_per_client", "load", "match", "quantity", "save", "shards",
    "summary",
]  # fmt: skip
