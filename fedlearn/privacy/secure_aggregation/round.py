"""One round of secure aggregation in this process, every message included. See ``README.md``."""

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ...checks import check, is_whole
from . import primitives as prim
from .client import Client
from .fixed_point import FixedPoint
from .messages import KINDS, STAGES, Masked, Refused, Sealed, check_threshold, fault
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
        refused: What was left out, and why, in its order: each a :class:`Refused` with ``client``
            and ``stage``. From that stage on the client counts as silent, but for a letter: then
            its receiver has no share of it.
    """

    total: np.ndarray
    answered: list[int]
    seen: dict[int, np.ndarray]
    up: dict[str, np.ndarray]
    down: dict[str, np.ndarray]
    seconds: dict[str, float]
    refused: list[Refused]


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
        Refused: If a client dealt false shares of its secrets, so that nothing restores them.

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
    clients, server = enroll(range(K), round, t, d=rows.shape[1])
    letters = exchange(clients, server, there, log)
    seen: dict[int, np.ndarray] = {}

    def add(own: list[Masked]) -> None:
        for m in own:
            server.add(m)

    for k in there("masked", letters):
        sent = _asked(
            [k], lambda k: [mask_with(clients[k], rows[k], letters[k], server.refused)], server
        )
        _, good = taken(sent, "masked", add, server, log)
        seen |= {k: own[0].y for k, own in good.items()}
    answered = server.answered()
    log.ends("masked")
    total = server.sum - unmask(clients, server, there, log)
    return Sum(code.decode(total) if code else total, answered, seen, *log.books(), server.refused)


T = TypeVar("T")
There = Callable[[str, Iterable[int]], list[int]]  # stage, who was there so far -> who still is


def _everybody(stage: str, clients: Iterable[int]) -> list[int]:
    return list(clients)


def enroll(
    numbers: Iterable[int],
    round: int,
    threshold: int,
    identities: Mapping[int, Any] | None = None,
    d: int | None = None,
) -> tuple[dict[int, Client], Server]:
    """A round's clients, number -> :class:`Client`, and its :class:`Server`, all in this process.

    Args:
        numbers: The clients' numbers.
        round: Its number.
        threshold: How many must answer.
        identities: Their signing keys; None for new ones.
        d: How many numbers each vector has, for the server; None: as many as the first has.

    Raises:
        ValueError: If a number, the round or the threshold is out of range, a client comes twice or
            has no identity.

    Example:
        >>> clients, server = enroll([4, 7], round=0, threshold=2)
        >>> sorted(clients), server.threshold
        ([4, 7], 2)
    """
    numbers = list(numbers)
    good = all(is_whole(k, 0, 2**64 - 1) for k in numbers) and len(set(numbers)) == len(numbers)
    check("enroll", "numbers", numbers, good, "integers >= 0, none twice", [0, 1, 2])
    numbers = [int(k) for k in numbers]
    good = identities is None or set(numbers) <= set(identities)
    rule = f"a signing key for each of {numbers}"
    check("enroll", "identities", identities, good, rule, "{k: primitives.identity()}")
    ids = {k: prim.identity() if identities is None else identities[k] for k in numbers}
    book = {k: i.public_key().public_bytes_raw() for k, i in ids.items()}
    clients = {k: Client(k, round, i, book, threshold) for k, i in ids.items()}
    return clients, Server(round, threshold, book, d)


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
    sent = _asked(there("keys", clients), lambda k: [clients[k].advertise()], server)
    keys, good = taken(sent, "keys", server.keys, server, log)
    for k in good:
        log.received(k, keys)
    log.ends("keys")
    sent = _asked(there("shares", good), lambda k: clients[k].share(keys), server)
    letters, _ = taken(sent, "shares", server.route, server, log)
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
    sent = _asked(voters, lambda k: [clients[k].vote(answered)], server)
    votes, good = taken(sent, "votes", server.votes, server, log)
    for k in good:
        log.received(k, votes)
    log.ends("votes")
    sent = _asked(there("opened", good), lambda k: [clients[k].open(votes)], server)
    masks, _ = taken(sent, "opened", server.masks, server, log)
    log.ends("opened")
    return masks


def _asked(clients: Iterable[int], act: Callable[[int], Any], server: Server) -> dict[int, Any]:
    """What each client sends; one that refuses what it got says why, and falls silent."""
    sent = {}
    for k in clients:
        try:
            sent[k] = act(k)
        except Refused as e:
            server.refused.append(e)
    return sent


def taken(
    sent: Mapping[int, Any],
    stage: str,
    act: Callable[[list[Any]], T],
    server: Server,
    log: "_Log | None" = None,
) -> tuple[T, dict[int, Any]]:
    """What the server makes of it, and who sent what; without the clients that it refuses."""
    good = {}
    for k, own in sent.items():
        faults = [f"client {k} sent {own!r:.40} where {KINDS[stage].__name__} is due"]
        if isinstance(own, list) and own:  # a client speaks for no other
            faults = [words for m in own for _, words in [fault(m, KINDS[stage], k)] if words]
        if faults:
            words = f"server, round {server.round}, stage '{stage}': {faults[0]}"
            server.refused.append(Refused(words, k, server.round, stage))
        else:
            good[k] = own
    while True:
        try:
            out = act([m for own in good.values() for m in own])
        except Refused as e:
            if e.client not in good:
                raise
            server.refused.append(e)
            del good[e.client]
        else:
            if log:
                for k, own in good.items():
                    log.sent(k, own)
            return out, good


def mask_with(
    client: Client, x: np.ndarray, letters: list[Sealed], refused: list[Refused]
) -> Masked:
    """Its masked vector; of whose letter it refuses it has no share, and says so."""
    by = {m.sender: m for m in letters}
    while True:
        try:
            return client.mask(x, list(by.values()))
        except Refused as e:
            if e.client not in by or not by[e.client].text:
                raise
            refused.append(e)
            by[e.client] = by[e.client]._replace(text=b"")


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
    good = rows.ndim == 2 and rows.size > 0
    check("secure_sum", "rows", rows.shape, good, "a matrix (K, d)", "np.ones((5, 3))")
    if code is None:
        rule = "uint32 residues, or numbers with a code"
        check("secure_sum", "rows", rows.dtype, rows.dtype == np.uint32, rule, "code.encode(x)")
        return rows
    rule = f"no more than the code's {code.clients} clients"
    check("secure_sum", "rows", len(rows), len(rows) <= code.clients, rule, code.clients)
    return np.stack([_encoded_row(code, k, row) for k, row in enumerate(rows)])


def _encoded_row(code: FixedPoint, k: int, row: np.ndarray) -> np.ndarray:
    try:
        return code.encode(row)
    except ValueError as e:
        raise ValueError(f"secure_sum: the row of client {k} can't be sent. {e}") from None


def _presence(K: int, dropped: Mapping[str, Iterable[int]]) -> There:
    for stage, who in dropped.items():
        rule = "one of " + ", ".join(STAGES)
        check("secure_sum", "dropped", stage, stage in STAGES, rule, {"masked": [1]})
        check("secure_sum", "dropped", who, np.iterable(who), "stage -> clients", {"masked": [1]})
        for k in who:
            known = is_whole(k, 0) and k < K
            check("secure_sum", "dropped", k, known, f"clients from 0 to {K - 1}", {"masked": [1]})
    out = {stage: set(who) for stage, who in dropped.items()}
    return lambda stage, clients: [k for k in clients if k not in out.get(stage, ())]
