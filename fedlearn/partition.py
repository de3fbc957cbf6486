"""Who holds what: split n labelled examples over N clients.

Every partitioner is a pure function ``(labels, n_clients, rng, ...) -> Parts``. Each example goes
to exactly one client, no client stays empty, and the same generator state gives the same answer.

Two of them are called "Dirichlet" in papers and are not the same thing:

- :func:`dirichlet_label` deals each *label* out over the clients, so sizes differ too;
- :func:`dirichlet_client` gives each *client* its own mix of labels, all sizes equal.
"""

from __future__ import annotations

import numpy as np


class Parts(list[np.ndarray]):
    """One sorted index array per client, and ``note``: what the partitioner had to do, if anything.

    Example:
        >>> parts = Parts([np.array([0, 2]), np.array([1])])
        >>> len(parts), parts.note
        (2, '')
    """

    def __init__(self, arrays: list[np.ndarray], note: str = ""):
        super().__init__(np.sort(np.asarray(a, dtype=np.int64)) for a in arrays)
        self.note = note


def iid(labels: np.ndarray, n_clients: int, rng: np.random.Generator) -> Parts:
    """Shuffle, then cut into N pieces whose sizes differ by at most one.

    Args:
        labels: (n,) class of each example.
        n_clients: N, from 1 to n.
        rng: Where the shuffle comes from, e.g. ``numpy_rng(seed, Use.PARTITION)``.

    Returns:
        N index arrays.

    Raises:
        ValueError: If there are more clients than examples, or fewer than one client.

    Example:
        >>> from fedlearn.rng import numpy_rng
        >>> [len(p) for p in iid(np.zeros(10, int), 3, numpy_rng(0))]
        [4, 3, 3]
    """
    labels = _check("iid", labels, n_clients)
    return Parts(np.array_split(rng.permutation(len(labels)), n_clients))


def dirichlet_label(
    labels: np.ndarray,
    n_clients: int,
    rng: np.random.Generator,
    alpha: float,
    min_size: int = 1,
) -> Parts:
    """Deal each label out over the clients in proportions drawn from a symmetric Dirichlet.

    For every label c: q_c ~ Dir_N(alpha), and client k gets the share q_{c,k} of its examples.
    A small ``alpha`` hands most of a label to few clients; a large one deals evenly. Sizes differ.

    Args:
        labels: (n,) class of each example.
        n_clients: N.
        rng: Source of the draws.
        alpha: Concentration, > 0.
        min_size: Every client ends up with at least this many examples.

    Returns:
        N index arrays; ``note`` says how many clients had to be topped up.

    Raises:
        ValueError: If ``alpha`` is not > 0, or N * min_size exceeds the number of examples.

    Example:
        >>> from fedlearn.rng import numpy_rng
        >>> y = np.repeat(np.arange(3), 40)
        >>> parts = dirichlet_label(y, 4, numpy_rng(0), alpha=0.1)
        >>> sum(len(p) for p in parts)
        120

    Reference:
        Li, Diao, Chen, He, 2022, "Federated learning on non-IID data silos" (NIID-Bench), §IV;
        first in Yurochkin et al., 2019.

    Differs from the paper: its code draws again until every client has ten examples, which does not
    end for a small alpha. Here the draw is kept, and a client below ``min_size`` is topped up from
    the largest one.
    """
    _count("dirichlet_label", "min_size", min_size)
    labels = _classes("dirichlet_label", labels, n_clients, min_size)
    _positive("dirichlet_label", "alpha", alpha)
    owner = np.empty(len(labels), dtype=np.int64)
    for c in np.unique(labels):
        at = rng.permutation(np.flatnonzero(labels == c))
        cuts = np.cumsum(rng.dirichlet(np.full(n_clients, alpha)))[:-1] * len(at)
        owner[at] = np.searchsorted(np.rint(cuts), np.arange(len(at)), side="right")
    return _top_up(owner, n_clients, rng, min_size)


def dirichlet_client(
    labels: np.ndarray, n_clients: int, rng: np.random.Generator, alpha: float
) -> Parts:
    r"""Give every client its own mix of labels, drawn from a symmetric Dirichlet, at equal sizes.

    Client k draws p_k ~ Dir_C(alpha) and takes its n/N examples label by label from p_k. For C
    labels E[Σ_c p_{k,c}²] = (alpha + 1) / (C alpha + 1): the chance that two examples of one client
    have the same label.

    Args:
        labels: (n,) class of each example.
        n_clients: N.
        rng: Source of the draws.
        alpha: Concentration, > 0.

    Returns:
        N index arrays whose sizes differ by at most one.

    Raises:
        ValueError: If ``alpha`` is not > 0, or there are more clients than examples.

    Example:
        >>> from fedlearn.rng import numpy_rng
        >>> y = np.repeat(np.arange(3), 40)
        >>> [len(p) for p in dirichlet_client(y, 4, numpy_rng(0), alpha=0.1)]
        [30, 30, 30, 30]

    Reference:
        Hsu, Qi, Brown, 2019, "Measuring the effects of non-identical data distribution for
        federated visual classification", §3 (with a uniform prior over labels).

    Note:
        Labels run out. A client served late then draws from what is left, in the proportions of its
        own p_k, as in the paper; its mix is less extreme or more so than drawn.
    """
    labels = _classes("dirichlet_client", labels, n_clients)
    _positive("dirichlet_client", "alpha", alpha)
    classes = np.unique(labels)
    pools = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]
    taken = np.zeros(len(classes), dtype=np.int64)
    sizes = np.diff(np.linspace(0, len(labels), n_clients + 1).round().astype(np.int64))
    mixes, parts = client_mixes(n_clients, len(classes), rng, alpha), []
    for mix, size in zip(mixes, sizes, strict=True):
        want = _draw(mix, np.array([len(p) for p in pools]) - taken, int(size), rng)
        parts.append(
            np.concatenate(
                [p[t : t + w] for p, t, w in zip(pools, taken, want, strict=True)],
            )
        )
        taken += want
    return Parts(parts)


def client_mixes(
    n_clients: int, classes: int, rng: np.random.Generator, alpha: float
) -> np.ndarray:
    """The label mixes p_k that :func:`dirichlet_client` draws, before labels run out.

    Args:
        n_clients: N.
        classes: C.
        rng: Source of the draws.
        alpha: Concentration, > 0.

    Returns:
        (N, C), rows summing to 1.

    Raises:
        ValueError: If ``alpha`` is not > 0.

    Example:
        >>> from fedlearn.rng import numpy_rng
        >>> p = client_mixes(2000, 10, numpy_rng(0), alpha=1.0)
        >>> round(float((p**2).sum(1).mean()), 2)  # (1 + 1) / (10 + 1) = 0.18
        0.18
    """
    _positive("client_mixes", "alpha", alpha)
    return rng.dirichlet(np.full(classes, alpha), size=n_clients)


def shards(
    labels: np.ndarray, n_clients: int, rng: np.random.Generator, per_client: int = 2
) -> Parts:
    """Sort by label, cut into N * per_client shards, deal ``per_client`` of them to every client.

    Args:
        labels: (n,) class of each example.
        n_clients: N.
        rng: Source of the deal.
        per_client: Shards a client gets; 2 in the paper.

    Returns:
        N index arrays; most clients hold at most ``per_client`` labels.

    Raises:
        ValueError: If there are more shards than examples.

    Example:
        >>> from fedlearn.rng import numpy_rng
        >>> y = np.repeat(np.arange(4), 10)
        >>> [len(p) for p in shards(y, 4, numpy_rng(0))]
        [10, 10, 10, 10]

    Reference:
        McMahan, Moore, Ramage, Hampson, Agüera y Arcas, 2017, "Communication-efficient learning of
        deep networks from decentralized data", §3 (200 shards of 300, two each).
    """
    _count("shards", "per_client", per_client)
    labels = _classes("shards", labels, n_clients, per_client)
    order = np.lexsort((rng.permutation(len(labels)), labels))  # ties in random order
    cut = np.array_split(order, n_clients * per_client)
    hand = rng.permutation(len(cut)).reshape(n_clients, per_client)
    return Parts([np.concatenate([cut[s] for s in own]) for own in hand])


def labels_per_client(
    labels: np.ndarray, n_clients: int, rng: np.random.Generator, labels_each: int = 2
) -> Parts:
    """Every client holds exactly ``labels_each`` labels; a label's owners share it equally.

    Args:
        labels: (n,) class of each example.
        n_clients: N.
        rng: Source of the draws.
        labels_each: Labels of one client, from 1 to the number of labels C.

    Returns:
        N index arrays.

    Raises:
        ValueError: If N * labels_each < C (a label would have no owner), labels_each > C, or a
            label has fewer examples than owners.

    Example:
        >>> from fedlearn.rng import numpy_rng
        >>> y = np.repeat(np.arange(4), 10)
        >>> [len(set(y[p])) for p in labels_per_client(y, 4, numpy_rng(0), labels_each=2)]
        [2, 2, 2, 2]

    Reference:
        Li, Diao, Chen, He, 2022, NIID-Bench, §IV ("#C = k").

    Differs from the paper: labels are drawn among those with the fewest owners so far, so that no
    label is left without an owner and sizes stay alike.
    """
    labels = _classes("labels_per_client", labels, n_clients)
    _count("labels_per_client", "labels_each", labels_each)
    classes = np.unique(labels)
    C = len(classes)
    if labels_each > C or n_clients * labels_each < C:
        raise ValueError(
            f"labels_per_client: needs labels_each <= C and N * labels_each >= C, so that every "
            f"label has an owner; got labels_each={labels_each}, N={n_clients}, C={C} labels, "
            f"e.g. labels_each={min(C, max(1, -(-C // n_clients)))}"
        )
    owners: list[list[int]] = [[] for _ in classes]
    for k in range(n_clients):
        fewest_first = np.lexsort(np.array([rng.random(C), [len(o) for o in owners]]))
        for c in fewest_first[:labels_each]:
            owners[c].append(k)
    parts: list[list[np.ndarray]] = [[] for _ in range(n_clients)]
    for c, own in zip(classes, owners, strict=True):
        at = rng.permutation(np.flatnonzero(labels == c))
        if len(at) < len(own):
            raise ValueError(
                f"labels_per_client: label {c} has {len(at)} examples for {len(own)} owners; use "
                f"fewer clients or fewer labels each, e.g. n_clients={max(1, n_clients // 2)}"
            )
        for k, piece in zip(own, np.array_split(at, len(own)), strict=True):
            parts[k].append(piece)
    return Parts([np.concatenate(p) for p in parts])


def quantity(labels: np.ndarray, n_clients: int, rng: np.random.Generator, alpha: float) -> Parts:
    """Same mix of labels everywhere, uneven sizes: the sizes' shares are drawn from Dir_N(alpha).

    Args:
        labels: (n,) class of each example.
        n_clients: N.
        rng: Source of the draws.
        alpha: Concentration, > 0; small means a few large clients.

    Returns:
        N index arrays; ``note`` says how many clients had to be topped up to one example.

    Raises:
        ValueError: If ``alpha`` is not > 0, or there are more clients than examples.

    Example:
        >>> from fedlearn.rng import numpy_rng
        >>> sum(len(p) for p in quantity(np.zeros(100, int), 5, numpy_rng(0), alpha=0.5))
        100

    Reference:
        Li, Diao, Chen, He, 2022, NIID-Bench, §IV (quantity skew).
    """
    labels = _check("quantity", labels, n_clients)
    _positive("quantity", "alpha", alpha)
    cuts = np.cumsum(rng.dirichlet(np.full(n_clients, alpha)))[:-1] * len(labels)
    owner = np.empty(len(labels), dtype=np.int64)
    owner[rng.permutation(len(labels))] = np.searchsorted(
        np.rint(cuts), np.arange(len(labels)), side="right"
    )
    return _top_up(owner, n_clients, rng, 1)


def counts(parts: list[np.ndarray], labels: np.ndarray, classes: int) -> np.ndarray:
    """How many examples of each label every client holds: the picture "who holds what".

    Args:
        parts: N index arrays.
        labels: (n,) integer class of each example.
        classes: C.

    Returns:
        (N, C) integers.

    Raises:
        ValueError: If a label lies outside 0..C-1.

    Example:
        >>> counts([np.array([0, 1]), np.array([2])], np.array([0, 1, 1]), 2)
        array([[1, 1],
               [0, 1]])
    """
    labels = np.asarray(labels)
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"counts: labels must be 0..{classes - 1}, got {labels.min()}..{labels.max()}, "
            f"e.g. classes={int(labels.max()) + 1}"
        )
    return np.stack([np.bincount(labels[p], minlength=classes) for p in parts])


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


def _top_up(owner: np.ndarray, n_clients: int, rng: np.random.Generator, min_size: int) -> Parts:
    """Move examples, one at a time, from the largest client to those below ``min_size``."""
    sizes = np.bincount(owner, minlength=n_clients)
    poor = np.flatnonzero(sizes < min_size)
    for k in poor:
        while sizes[k] < min_size:
            rich = int(sizes.argmax())
            i = rng.choice(np.flatnonzero(owner == rich))
            owner[i] = k
            sizes[rich] -= 1
            sizes[k] += 1
    note = f"{len(poor)} of {n_clients} clients topped up to {min_size}" if len(poor) else ""
    order = np.argsort(owner, kind="stable")
    return Parts(np.split(order, np.cumsum(sizes)[:-1]), note)


def _check(name: str, labels: np.ndarray, n_clients: int, each: int = 1) -> np.ndarray:
    _count(name, "n_clients", n_clients)
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(
            f"{name}: labels must be one class an example, shape (n,), got shape {labels.shape}, "
            f"e.g. labels.argmax(1) for one-hot rows"
        )
    if n_clients * each > len(labels):
        example = max(1, len(labels) // max(each, 1) // 2)
        raise ValueError(
            f"{name}: {n_clients} clients with at least {each} each need {n_clients * each} "
            f"examples, got {len(labels)}, e.g. n_clients={example}"
        )
    return labels


def _classes(name: str, labels: np.ndarray, n_clients: int, each: int = 1) -> np.ndarray:
    labels = _check(name, labels, n_clients, each)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: splits by label, so labels must be integer classes, got {labels.dtype}; "
            f"for regression use iid or quantity"
        )
    return labels


def _count(name: str, argument: str, value: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: {argument} must be an integer >= 1, got {value!r}, e.g. 2")


def _positive(name: str, argument: str, value: float) -> None:
    if not (value > 0 and np.isfinite(value)):
        raise ValueError(f"{name}: {argument} must be > 0 and finite, got {value!r}, e.g. 0.5")
