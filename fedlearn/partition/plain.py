"""Splits that need no mix of labels: even, sorted, by count of labels, by size, by attribute."""

from typing import Any

import numpy as np

from ..checks import positive, whole
from .base import Parts, _check, _classes, _top_up, names_of, rows


def iid(labels: np.ndarray, n_clients: int, rng: np.random.Generator) -> Parts:
    """Shuffle, then cut into N pieces whose sizes differ by at most one.

    Args:
        labels: (n,) class of each example.
        n_clients: N, from 1 to n, else ValueError.
        rng: Where the draws come from, e.g. ``numpy_rng(seed, Use.PARTITION)``.

    Example:
        >>> [len(p) for p in iid(np.zeros(10, int), 3, np.random.default_rng(0))]
        [4, 3, 3]
    """
    labels = _check("iid", labels, n_clients)
    return Parts(np.array_split(rng.permutation(len(labels)), n_clients))


def shards(
    labels: np.ndarray, n_clients: int, rng: np.random.Generator, per_client: int = 2
) -> Parts:
    """Sort by label, cut into N * per_client shards, deal ``per_client`` of them to every client.

    Most clients then hold at most ``per_client`` labels.

    Args:
        labels, n_clients, rng: As for :func:`iid`.
        per_client: Shards a client gets; 2 in the paper. ValueError if there are more shards than
            examples.

    Example:
        >>> y = np.repeat(np.arange(4), 10)
        >>> [len(p) for p in shards(y, 4, np.random.default_rng(0))]
        [10, 10, 10, 10]

    Reference:
        McMahan, Moore, Ramage, Hampson, Agüera y Arcas, 2017, "Communication-efficient learning of
        deep networks from decentralized data", §3 (200 shards of 300, two each).
    """
    whole("shards", "per_client", per_client)
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
        labels, n_clients, rng: As for :func:`iid`.
        labels_each: Labels of one client, from 1 to the number of labels C. ValueError if not, if
            N * labels_each < C (one has no owner), or a label has fewer examples than owners.

    Example:
        >>> y, rng = np.repeat(np.arange(4), 10), np.random.default_rng(0)
        >>> [len(set(y[p])) for p in labels_per_client(y, 4, rng, labels_each=2)]
        [2, 2, 2, 2]

    Reference:
        Li, Diao, Chen, He, 2022, NIID-Bench, §IV ("#C = k").

    Differs from the paper: labels are drawn among those with the fewest owners so far, so that no
    label is left without an owner and sizes stay alike.
    """
    labels = _classes("labels_per_client", labels, n_clients)
    whole("labels_per_client", "labels_each", labels_each)
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

    ``note`` says how many clients had to be topped up to one example.

    Args:
        labels, n_clients, rng: As for :func:`iid`.
        alpha: Concentration, > 0, else ValueError; small means a few large clients.

    Example:
        >>> parts = quantity(np.zeros(100, int), 5, np.random.default_rng(0), alpha=0.5)
        >>> sum(len(p) for p in parts)
        100

    Reference:
        Li, Diao, Chen, He, 2022, NIID-Bench, §IV (quantity skew).
    """
    labels = _check("quantity", labels, n_clients)
    positive("quantity", "alpha", alpha)
    cuts = np.cumsum(rng.dirichlet(np.full(n_clients, alpha)))[:-1] * len(labels)
    owner = np.empty(len(labels), dtype=np.int64)
    of_each = np.searchsorted(np.rint(cuts), np.arange(len(labels)), side="right")
    owner[rng.permutation(len(labels))] = of_each
    return _top_up(owner, n_clients, rng, 1)


def by_attribute(
    attribute: np.ndarray, n_clients: int | None = None, rng: np.random.Generator | None = None
) -> Parts:
    """Split by something the data have anyway: the writer, the clinic, the age group.

    With as many clients as values, one client a value. With fewer, the values are sorted and cut
    into N runs of about equal size; a value is never split. With more, and a generator, the
    examples of one value are dealt to several clients, who then differ by chance alone: each
    further client goes to the value whose clients hold most. ``names`` are the values, the first
    and the last of a run, or ``a 1/2`` for one of two who share a. The test set is cut alike by
    :func:`match`.

    Args:
        attribute: (n,) value of every example, none missing, else ValueError.
        n_clients: N; None for one client a value. ValueError if there are fewer values and no
            generator, or fewer examples.
        rng: Deals the examples of a value that has several clients; not used where none has.

    Example:
        >>> parts = by_attribute(np.array(["b", "a", "b", "c"]))
        >>> parts, parts.names
        ([array([1]), array([0, 2]), array([3])], ('a', 'b', 'c'))
        >>> by_attribute(np.array(["b", "a", "b"]), 3, np.random.default_rng(0)).names
        ('a', 'b 1/2', 'b 2/2')

    Reference:
        Caldas et al., 2018, "LEAF: a benchmark for federated settings" (writers of FEMNIST).
    """
    values, owner = distinct("by_attribute", attribute)
    N = len(values) if n_clients is None else n_clients
    whole("by_attribute", "n_clients", N)
    if N > len(values):
        return _shared(values, owner, N, rng)
    ends = np.cumsum(np.bincount(owner))
    cuts = np.searchsorted(ends, len(owner) * np.arange(1, N) / N) + 1
    at_least = np.maximum.accumulate(cuts - np.arange(N - 1)) + np.arange(N - 1)  # no empty run
    cuts = np.minimum(at_least, len(values) - N + 1 + np.arange(N - 1))
    group = np.searchsorted(cuts, owner, side="right")
    runs = [(v[0], v[-1]) for v in np.split(values, cuts)]
    names = [str(a) if a == b else f"{a}..{b}" for a, b in runs]
    return Parts([np.flatnonzero(group == k) for k in range(N)], names=names)


def _shared(
    values: np.ndarray, owner: np.ndarray, N: int, rng: np.random.Generator | None
) -> Parts:
    """More clients than values: some values have several."""
    if rng is None or N > len(owner):
        need, most = ("an example each", len(owner)) if rng else ("as many values", len(values))
        more = "" if rng else f", or rng=numpy_rng(0, Use.PARTITION) for up to {len(owner)}"
        raise ValueError(
            f"by_attribute: {N} clients need {need}, got {most}, e.g. n_clients={most}{more}"
        )
    size, clients = np.bincount(owner), np.ones(len(values), int)
    for _ in range(N - len(values)):
        clients[(size / clients).argmax()] += 1
    parts: list[np.ndarray] = []
    names: list[str] = []
    for v, (value, m) in enumerate(zip(values, clients)):
        own = rng.permutation(np.flatnonzero(owner == v))
        parts += map(np.sort, np.array_split(own, m))
        names += [f"{value} {i}/{m}" if m > 1 else str(value) for i in range(1, m + 1)]
    return Parts(parts, names=names)


def match(
    parts: list[np.ndarray],
    attribute: np.ndarray,
    attribute_test: np.ndarray,
    rng: np.random.Generator | None = None,
) -> Parts:
    """Cut a test set as its training set is cut: client k is the same hospital in both.

    Of every value of the attribute, each client gets that share of the test examples that it holds
    of the training examples. So one hospital's test examples go to whoever holds the hospital, and
    labels that were dealt out are dealt out alike. A client may stay without a test example;
    it keeps its number and name.

    Args:
        parts: N index arrays of training examples.
        attribute: (n,) what the training set was cut by: the hospital, the label.
        attribute_test: (m,) the same of the test set. ValueError if a value is missing, or held by
            no client.
        rng: Shuffles the examples of a value before they are shared; None: as they lie.

    Example:
        >>> train, test = np.array(["Bern", "Basel", "Chur", "Bern"]), np.array(["Chur", "Basel"])
        >>> both = match(by_attribute(train), train, test)
        >>> both, both.names
        ([array([1]), array([], dtype=int64), array([0])], ('Basel', 'Bern', 'Chur'))
    """
    values, at = distinct("match", attribute)
    values_test, at_test = distinct("match", attribute_test)
    held = rows("match", parts, len(at))
    owns = np.stack([np.bincount(at[own], minlength=len(values)) for own in held])  # (N, values)
    number = {v: i for i, v in enumerate(values.tolist())}
    none = np.zeros(len(held), int)
    pieces: list[list[np.ndarray]] = [[] for _ in held]
    for i, value in enumerate(values_test.tolist()):
        share = owns[:, number[value]] if value in number else none
        if not share.any():
            raise ValueError(
                f"match: every value of the test set must be held by a client, got {value!r}, "
                f"e.g. leave it out, attribute_test[attribute_test != {value!r}]"
            )
        own = np.flatnonzero(at_test == i)
        own = own if rng is None else rng.permutation(own)
        cuts = np.rint(np.cumsum(share) / share.sum() * len(own)).astype(np.int64)[:-1]
        for k, piece in enumerate(np.split(own, cuts)):
            pieces[k].append(piece)
    return Parts(map(np.concatenate, pieces), names=names_of(parts))


def distinct(name: str, attribute: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values, sorted, and which of them each example has."""
    column = np.asarray(attribute.cpu() if hasattr(attribute, "cpu") else attribute)
    if column.ndim != 1 or not len(column):
        raise ValueError(
            f"{name}: needs one value an example, shape (n,), got shape {column.shape}, "
            f"e.g. a column x[:, 0]"
        )
    missing = np.array([_is_missing(v) for v in column])
    if missing.any():
        raise ValueError(
            f"{name}: needs a value of every example, got none for {missing.sum()} of "
            f"{len(column)}, first in row {missing.argmax()}, e.g. column.fillna('unknown')"
        )
    try:
        return np.unique(column, return_inverse=True)
    except TypeError as e:
        kinds = sorted({type(v).__name__ for v in column.tolist()})
        raise ValueError(
            f"{name}: needs values of one kind, got {' and '.join(kinds)}, e.g. column.astype(str)"
        ) from e


def _is_missing(v: Any) -> bool:
    try:
        return v is None or bool(v != v)  # NaN; pandas' NA won't even say
    except TypeError:
        return True
