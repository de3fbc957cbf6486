"""One round of secure aggregation in this process, every message included. See ``README.md``."""

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from ...checks import check, is_whole
from . import primitives as prim
from .client import Client
from .fixed_point import FixedPoint
from .messages import STAGES, Sealed, check_threshold
from .server import Server


class Sum(NamedTuple):
    """What a round of secure aggregation leaves behind.

    Attributes:
        total: (d,) uint32, or float64 if there was a code: the sum of those who answered.
        answered: Who is in the sum.
        seen: client -> y_u, (d,) uint32: all that the server saw of its vector.
        up: stage -> bytes that each client sent, (K,).
        down: stage -> bytes that each client received, (K,).
        seconds: stage -> seconds of all clients and the server, one after the other.
    """

    total: np.ndarray
    answered: list[int]
    seen: dict[int, np.ndarray]
    up: dict[str, np.ndarray]
    down: dict[str, np.ndarray]
    seconds: dict[str, float]


def secure_sum(
    rows: np.ndarray,
    *,
    threshold: int | None = None,
    dropped: Mapping[str, Iterable[int]] | None = None,
    round: int = 0,
    code: FixedPoint | None = None,
) -> Sum:
    """Add up K vectors by the whole protocol, every message included, in this process.

    Args:
        rows: (K, d), a row a client: uint32, or numbers if there is a ``code``.
        threshold: t, more than K / 2 and at most K; None for ⌊2 K / 3⌋ + 1.
        dropped: stage -> clients that fall silent before its message: ``{"masked": [3, 7]}``. The
            stages are keys, shares, masked, votes, opened.
        round: Goes into every key and signature.
        code: Numbers to residues and back.

    Raises:
        ValueError: If the threshold doesn't fit the cohort, a stage or a client isn't there, or a
            number is out of the code's range.
        TooFew: If fewer than t answer at some stage: nothing is opened.

    Example:
        >>> rows = np.array([[1, 2], [10, 20], [100, 200]], np.uint32)
        >>> secure_sum(rows).total
        array([111, 222], dtype=uint32)
        >>> secure_sum(rows, threshold=2, dropped={"masked": [1]}).total
        array([101, 202], dtype=uint32)

    Reference:
        Bonawitz et al., 2017, Figure 4.
    """
    rows, K = _encoded(rows, code), len(rows)
    t = check_threshold("secure_sum", threshold, K)
    there = _presence(K, dropped or {})
    log = _Log(K)
    clients, server = enroll(range(K), round, t)
    letters = exchange(clients, server, there, log)
    seen = {}
    for k in there("masked", letters):
        message = clients[k].mask(rows[k], letters[k])
        server.add(log.sent(k, message))
        seen[k] = message.y
    answered = server.answered()
    log.ends("masked")
    total = server.sum - unmask(clients, server, there, log)
    return Sum(code.decode(total) if code else total, answered, seen, *log.books())


There = Callable[[str, Iterable[int]], list[int]]  # stage, who was there so far -> who still is


def _everybody(stage: str, clients: Iterable[int]) -> list[int]:
    return list(clients)


def enroll(
    numbers: Iterable[int], round: int, threshold: int, identities: Mapping[int, Any] | None = None
) -> tuple[dict[int, Client], Server]:
    """A round's clients, number -> :class:`Client`, and its :class:`Server`, all in this process.

    Args:
        numbers: The clients' numbers.
        round: Its number.
        threshold: How many must answer.
        identities: Their signing keys; None for new ones.

    Example:
        >>> clients, server = enroll([4, 7], round=0, threshold=2)
        >>> sorted(clients), server.threshold
        ([4, 7], 2)
    """
    numbers = [int(k) for k in numbers]
    ids = {k: prim.identity() if identities is None else identities[k] for k in numbers}
    book = {k: i.public_key().public_bytes_raw() for k, i in ids.items()}
    clients = {k: Client(k, round, i, book, threshold) for k, i in ids.items()}
    return clients, Server(round, threshold, book)


def exchange(
    clients: Mapping[int, Client],
    server: Server,
    there: There = _everybody,
    log: "_Log | None" = None,
) -> dict[int, list[Sealed]]:
    """Stages 1 and 2: keys and shares. -> receiver: its letters

    Args:
        clients: The cohort.
        server: The server.
        there: Who is still there at a stage.
        log: Counts bytes and seconds.

    Example:
        >>> clients, server = enroll(range(3), round=0, threshold=2)
        >>> [m.sender for m in exchange(clients, server)[1]]
        [0, 2]
    """
    log = log or _Log(0)
    keys = server.keys([log.sent(k, clients[k].advertise()) for k in there("keys", clients)])
    for k in (m.client for m in keys):
        log.received(k, keys)
    log.ends("keys")
    here = there("shares", [m.client for m in keys])
    letters = server.route(m for k in here for m in log.sent(k, clients[k].share(keys)))
    for k, own in letters.items():
        log.received(k, own)
    log.ends("shares")
    return letters


def unmask(
    clients: Mapping[int, Client],
    server: Server,
    there: There = _everybody,
    log: "_Log | None" = None,
) -> np.ndarray:
    """Stages 4 and 5: votes and shares. -> (d,) uint32, what to take off the server's sum

    Args:
        clients, there, log: As for :func:`exchange`.
        server: The server, with the masked vectors.

    Example:
        >>> clients, server = enroll(range(2), round=0, threshold=2)
        >>> letters, x = exchange(clients, server), np.array([7], np.uint32)
        >>> for k, client in clients.items():
        ...     server.add(client.mask(x, letters[k]))
        >>> server.sum - unmask(clients, server)
        array([14], dtype=uint32)
    """
    log = log or _Log(0)
    answered = server.answered()
    voters = there("votes", answered)
    for k in voters:
        log.received(k, answered)
    votes = server.votes([log.sent(k, clients[k].vote(answered)) for k in voters])
    for k in voters:
        log.received(k, votes)
    log.ends("votes")
    here = there("opened", voters)
    masks = server.masks([log.sent(k, clients[k].open(votes)) for k in here])
    log.ends("opened")
    return masks


def wire_bytes(message: Any) -> int:
    """Size of a message, or of a list of them: 4 bytes a number, whatever else as long as it is.

    Args:
        message: Of the protocol.

    Example:
        >>> from fedlearn.privacy.secure_aggregation import Vote
        >>> wire_bytes(Vote(client=3, round=0, signature=bytes(64)))
        72
    """
    if isinstance(message, np.ndarray):
        return int(message.nbytes)
    if isinstance(message, bytes):
        return len(message)
    if isinstance(message, int):
        return 4
    parts = message.items() if isinstance(message, dict) else message
    return sum(map(wire_bytes, parts))


class _Log:
    """Bytes by stage and client, seconds by stage."""

    def __init__(self, clients: int):
        self._clients = clients
        self._marks = [perf_counter()]
        self._up, self._down = [np.zeros(clients, np.int64)], [np.zeros(clients, np.int64)]

    def sent(self, client: int, message: Any) -> Any:
        if self._clients:
            self._up[-1][client] += wire_bytes(message)
        return message

    def received(self, client: int, message: Any) -> None:
        if self._clients:
            self._down[-1][client] += wire_bytes(message)

    def ends(self, stage: str) -> None:
        self._marks.append(perf_counter())
        self._up.append(np.zeros(self._clients, np.int64))
        self._down.append(np.zeros(self._clients, np.int64))

    def books(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, float]]:
        spent = [b - a for a, b in pairwise(self._marks)]
        up, down = dict(zip(STAGES, self._up)), dict(zip(STAGES, self._down))
        return up, down, dict(zip(STAGES, spent))


def _encoded(rows: np.ndarray, code: FixedPoint | None) -> np.ndarray:
    rows = np.asarray(rows)
    check("secure_sum", "rows", rows.shape, rows.ndim == 2, "a matrix (K, d)", "np.ones((5, 3))")
    if code is None:
        rule = "uint32 residues, or numbers with a code"
        check("secure_sum", "rows", rows.dtype, rows.dtype == np.uint32, rule, "code.encode(x)")
        return rows
    rule = f"no more than the code's {code.clients} clients"
    check("secure_sum", "rows", len(rows), len(rows) <= code.clients, rule, code.clients)
    return np.stack([code.encode(row) for row in rows])


def _presence(K: int, dropped: Mapping[str, Iterable[int]]) -> There:
    for stage, who in dropped.items():
        rule = "one of " + ", ".join(STAGES)
        check("secure_sum", "dropped", stage, stage in STAGES, rule, {"masked": [1]})
        for k in who:
            known = is_whole(k, 0) and k < K
            check("secure_sum", "dropped", k, known, f"clients from 0 to {K - 1}", {"masked": [1]})
    out = {stage: set(who) for stage, who in dropped.items()}
    return lambda stage, clients: [k for k in clients if k not in out.get(stage, ())]
