"""Skewed labels: the two Dirichlets, and uneven labels with uneven sizes."""

import numpy as np

from ..checks import positive, whole
from .base import Parts, _classes, _top_up


def dirichlet_label(
    labels: np.ndarray, n_clients: int, rng: np.random.Generator, alpha: float, min_size: int = 1
) -> Parts:
    """Deal each label out over the clients in proportions drawn from a symmetric Dirichlet.

    For every label c: q_c ~ Dir_N(alpha), and client k gets the share q_{c,k} of its examples.
    A small ``alpha`` hands most of a label to few clients; a large one deals evenly. Sizes differ.
    ``note`` says how many clients had to be topped up.

    Args:
        labels, n_clients, rng: As for :func:`~fedlearn.partition.iid`.
        alpha: Concentration, > 0, else ValueError.
        min_size: Every client ends up with at least this many examples; ValueError if N * min_size
            exceeds their number.

    Example:
        >>> y = np.repeat(np.arange(3), 40)
        >>> sum(len(p) for p in dirichlet_label(y, 4, np.random.default_rng(0), alpha=0.1))
        120

    Reference:
        Li, Diao, Chen, He, 2022, "Federated learning on non-IID data silos" (NIID-Bench), §IV;
        first in Yurochkin et al., 2019.

    Differs from the paper: its code draws again until every client has ten examples, which does not
    end for a small alpha. Here the draw is kept, and a client below ``min_size`` is topped up from
    the largest one.
    """
    whole("dirichlet_label", "min_size", min_size)
    labels = _classes("dirichlet_label", labels, n_clients, min_size)
    positive("dirichlet_label", "alpha", alpha)
    owner = np.empty(len(labels), dtype=np.int64)
    for c in np.unique(labels):
        at = rng.permutation(np.flatnonzero(labels == c))
        cuts = np.cumsum(rng.dirichlet(np.full(n_clients, alpha)))[:-1] * len(at)
        owner[at] = np.searchsorted(np.rint(cuts), np.arange(len(at)), side="right")
    return _top_up(owner, n_clients, rng, min_size)


def dirichlet_client(
    labels: np.ndarray, n_clients: int, rng: np.random.Generator, alpha: float
) -> Parts:
    """Give every client its own mix of labels, drawn from a symmetric Dirichlet, at equal sizes.

    Client k draws p_k ~ Dir_C(alpha) and takes its n/N examples label by label from p_k. For C
    labels E[Σ_c p_{k,c}²] = (alpha + 1) / (C alpha + 1): the chance that two examples of one client
    have the same label. Sizes differ by at most one. Labels run out: a client served late then
    draws from what is left, in the proportions of its own p_k, as in the paper; its mix is less
    extreme or more so than drawn.

    Args:
        labels, n_clients, rng: As for :func:`~fedlearn.partition.iid`.
        alpha: Concentration, > 0, else ValueError.

    Example:
        >>> y = np.repeat(np.arange(3), 40)
        >>> [len(p) for p in dirichlet_client(y, 4, np.random.default_rng(0), alpha=0.1)]
        [30, 30, 30, 30]

    Reference:
        Hsu, Qi, Brown, 2019, "Measuring the effects of non-identical data distribution for
        federated visual classification", §3 (with a uniform prior over labels).
    """
    labels = _classes("dirichlet_client", labels, n_clients)
    positive("dirichlet_client", "alpha", alpha)
    sizes = np.diff(np.linspace(0, len(labels), n_clients + 1).round().astype(np.int64))
    return _from_mixes(labels, sizes, rng, alpha)


def client_mixes(
    n_clients: int, classes: int, rng: np.random.Generator, alpha: float
) -> np.ndarray:
    """The label mixes p_k, (N, C), that :func:`dirichlet_client` draws, before labels run out.

    Args:
        n_clients: N.
        classes: C.
        rng: Source of the draws.
        alpha: Concentration, > 0, else ValueError.

    Example:
        >>> p = client_mixes(2000, 10, np.random.default_rng(0), alpha=1.0)
        >>> round(float((p**2).sum(1).mean()), 2)  # (1 + 1) / (10 + 1) = 0.18
        0.18
    """
    positive("client_mixes", "alpha", alpha)
    return rng.dirichlet(np.full(classes, alpha), size=n_clients)


def label_and_quantity(
    labels: np.ndarray,
    n_clients: int,
    rng: np.random.Generator,
    alpha: float,
    size_alpha: float = 1.0,
) -> Parts:
    """Uneven labels and uneven sizes, each with its own knob.

    Sizes n_k ~ n * Dir_N(size_alpha); client k then takes its n_k examples from its own mix
    p_k ~ Dir_C(alpha), as in :func:`dirichlet_client`.

    Args:
        labels, n_clients, rng: As for :func:`~fedlearn.partition.iid`.
        alpha: Concentration of the label mixes, > 0, else ValueError.
        size_alpha: Concentration of the sizes, > 0, else ValueError.

    Example:
        >>> y, rng = np.repeat(np.arange(3), 40), np.random.default_rng(0)
        >>> sum(len(p) for p in label_and_quantity(y, 4, rng, alpha=0.5, size_alpha=0.5))
        120

    Reference:
        Li, Diao, Chen, He, 2022, NIID-Bench, §IV (its "mixed types of skew").
    """
    labels = _classes("label_and_quantity", labels, n_clients)
    positive("label_and_quantity", "alpha", alpha)
    positive("label_and_quantity", "size_alpha", size_alpha)
    share = rng.dirichlet(np.full(n_clients, size_alpha))
    sizes = np.diff(np.rint(np.r_[0, np.cumsum(share)[:-1], 1] * (len(labels) - n_clients)))
    return _from_mixes(labels, 1 + sizes.astype(np.int64), rng, alpha)


def _from_mixes(
    labels: np.ndarray, sizes: np.ndarray, rng: np.random.Generator, alpha: float
) -> Parts:
    """Client k takes sizes[k] examples from its own mix, one client after the other."""
    classes = np.unique(labels)
    pools = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]
    taken = np.zeros(len(classes), dtype=np.int64)
    mixes, parts = client_mixes(len(sizes), len(classes), rng, alpha), []
    for mix, size in zip(mixes, sizes, strict=True):
        want = _draw(mix, np.array([len(p) for p in pools]) - taken, int(size), rng)
        own = [p[t : t + w] for p, t, w in zip(pools, taken, want, strict=True)]
        parts.append(np.concatenate(own))
        taken += want
    return Parts(parts)


def _draw(mix: np.ndarray, left: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """``size`` draws from ``mix`` without taking more of a label than is left. -> (C,) counts."""
    got = np.zeros(len(mix), dtype=np.int64)
    while (short := size - int(got.sum())) > 0:
        room = left - got
        p = np.where(room > 0, mix, 0.0)
        if p.sum() <= 0:  # its own labels are gone: any that is left
            p = (room > 0).astype(float)
        got += np.minimum(rng.multinomial(short, p / p.sum()), room)
    return got
