"""What clients and server of secure aggregation have in common: messages, masks, threshold.

Whatever comes after the keys is bound to the *attempt*: to the SHA-256 of all keys that were
advertised. A round that is given up and begun anew, with the same number and the same clients, is
another attempt, and nothing of the first counts in it.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from ...checks import RoundFailed, check, is_whole
from . import primitives as prim

STAGES = ("keys", "shares", "masked", "votes", "opened")


class Refused(RuntimeError):
    """A message that doesn't fit the protocol: malformed, altered, repeated, of another round.

    Attributes:
        client: Whose message it is; None if it is no client's, but the server's or the caller's.
        round: Its number.
        stage: Of the protocol, e.g. ``"masked"``.
    """

    def __init__(
        self, words: str, client: int | None = None, round: int | None = None, stage: str = ""
    ):
        super().__init__(words)
        self.client, self.round, self.stage = client, round, stage


class TooFew(RoundFailed, RuntimeError):
    """A round that ends below its threshold: nothing is opened.

    Attributes:
        stage: Of the protocol, e.g. ``"masked"``.
        answered: How many did.
        threshold: t.
        refused: What had been refused till then, each a :class:`Refused`; the message has it, too.
    """

    def __init__(
        self,
        round: int,
        stage: str,
        answered: int,
        threshold: int,
        refused: Sequence[Refused] = (),
    ):
        super().__init__(
            f"secure aggregation, round {round}: {answered} answered at stage '{stage}', the "
            f"threshold is {threshold}. Nothing was opened: no sum, no update, and theta stays as "
            "it was. Begin the next round, with new updates: call more clients, or wait for more"
            + "".join(f". Refused: {e}" for e in refused)
        )
        self.stage, self.answered, self.threshold = stage, answered, threshold
        self.refused = list(refused)


class Keys(NamedTuple):
    """Stage 1, client to all: two public keys of 32 bytes for this attempt, signed."""

    client: int
    round: int
    letter: bytes
    mask: bytes
    signature: bytes


class Sealed(NamedTuple):
    """Stage 2, client to client through the server: a share of both secrets, encrypted.

    For the server, beside them, the marks of the two: :func:`share_marks`.
    """

    sender: int
    receiver: int
    round: int
    text: bytes
    marks: bytes


class Masked(NamedTuple):
    """Stage 3, client to server: y_u, (d,) uint32, and b_u's :func:`own_mark`; signed."""

    client: int
    round: int
    y: np.ndarray
    mark: bytes
    signature: bytes


class Vote(NamedTuple):
    """Stage 4, client to all: its signature under the :func:`ballot`."""

    client: int
    round: int
    signature: bytes


class Opened(NamedTuple):
    """Stage 5, client to server: shares of b_v of the answered, of the mask key of the gone.

    Of a client whose letter it refused it has none: that share is empty.
    """

    client: int
    round: int
    answered: dict[int, prim.Share]
    gone: dict[int, prim.Share]
    signature: bytes


KINDS = dict(zip(STAGES, (Keys, Sealed, Masked, Vote, Opened)))


def fault(m: Any, kind: type[Any], sender: int | None = None) -> tuple[int | None, str]:
    """Whose message it is, and what is wrong with its form: "" if nothing.

    Nothing else of a message is looked at before this. ``sender`` is the client that it came from,
    where that is known.
    """
    if type(m) is not kind:
        return sender, f"client {sender} sent {type(m).__name__} where {kind.__name__} is due"
    who = sender if sender is not None else m[0] if _number(m[0]) else None
    for name, value in m._asdict().items():
        rule, good = FORMS[name]
        if not good(value):
            got = f"{len(value)} bytes" if isinstance(value, bytes) else f"{value!r:.60}"
            return who, f"client {who}'s {kind.__name__}: {name} must be {rule}, got {got}"
    return who, "" if m[0] == who else f"client {who} sent a message of client {m[0]}"


def _number(v: Any) -> bool:
    return type(v) is int and 0 <= v < 2**64  # as label takes them


def _bytes(n: int) -> tuple[str, Callable[[Any], bool]]:
    return f"{n} bytes", lambda v: isinstance(v, bytes) and len(v) == n


def _shares(v: Any) -> bool:
    pairs = type(v) is dict and all(type(s) is tuple and len(s) == 2 for s in v.values())
    return pairs and all(
        _number(owner) and _number(i) and isinstance(share, bytes)
        for owner, (i, share) in v.items()
    )


FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # by field: rule, and whether it is kept
    **dict.fromkeys(
        ("client", "sender", "receiver", "round"), ("an integer from 0 to 2**64 - 1", _number)
    ),
    **dict.fromkeys(("letter", "mask", "text"), ("bytes", lambda v: isinstance(v, bytes))),
    "marks": _bytes(2 * prim.SEED),
    "mark": _bytes(prim.SEED),
    "signature": _bytes(64),
    "y": ("a NumPy array", lambda v: type(v) is np.ndarray),  # a masked array is none
    **dict.fromkeys(("answered", "gone"), ("client -> (place, share)", _shares)),
}


def check_keys(keys: Sequence[Keys], round: int, directory: Mapping[int, bytes]) -> dict[int, Keys]:
    """Advertised keys by client; Refused unless of this round, X25519, signed, none twice."""
    cohort: dict[int, Keys] = {}
    known: set[bytes] = set()
    for m in keys:
        who, words = fault(m, Keys)
        words = words or _unfit(m, round, directory, cohort, known)
        if words:
            raise Refused(f"round {round}: {words}", who, round, "keys")
        cohort[m.client] = m
        known |= {m.letter, m.mask}
    return cohort


def _unfit(
    m: Keys,
    round: int,
    directory: Mapping[int, bytes],
    cohort: Mapping[int, Keys],
    known: set[bytes],
) -> str:
    keys = f"client {m.client}'s keys"
    if m.round != round:
        return f"{keys} are of round {m.round}"
    if (len(m.letter), len(m.mask)) != (32, 32):
        return f"{keys} are not of 32 bytes each"
    identity = directory.get(m.client)
    if identity is None or not prim.signed(identity, m.signature, keys_text(m)):
        return f"{keys} are not signed by client {m.client}"
    if m.client in cohort or m.letter == m.mask or known & {m.letter, m.mask}:
        return f"{keys}: a client or a key comes twice"
    if not prim.is_key(m.letter) or not prim.is_key(m.mask):
        return f"{keys}: one is no X25519 key, but of low order or not reduced"
    return ""


def keys_text(m: Keys) -> bytes:
    """What a client signs under its two keys: round, client and both."""
    return prim.label("keys", m.round, m.client) + m.letter + m.mask


def attempt_of(cohort: Mapping[int, Keys]) -> bytes:
    """Which attempt at a round this is: SHA-256 (32 bytes) over all keys advertised, by client.

    Every client draws new keys, so no two attempts agree, and two clients that were shown
    different keys are in different ones.
    """
    return sha256(b"".join(keys_text(cohort[k]) for k in sorted(cohort))).digest()


def common_key(
    purpose: str, private: Any, public: bytes, round: int, u: int, v: int, attempt: bytes
) -> bytes:
    """32 bytes that only u and v know, for "letter" (u to v) or "pair", in one attempt."""
    try:
        return prim.agree(private, public, purpose, round, u, v, attempt=attempt)
    except ValueError:
        words = f"round {round}: clients {u} and {v} can't agree on a key: one's is no X25519 key"
        raise Refused(words) from None


def pair_key(private: Any, public: bytes, round: int, u: int, v: int, attempt: bytes) -> bytes:
    """The key of the mask that u and v, in any order, have in common in this attempt."""
    return common_key("pair", private, public, round, min(u, v), max(u, v), attempt)


def own_key(secret: bytes, round: int, u: int, attempt: bytes) -> bytes:
    """The key of u's own mask in this attempt, from b_u (16 bytes)."""
    return prim.derive(secret, "own mask", round, u, attempt=attempt)


def own_mark(secret: bytes, round: int, u: int, attempt: bytes) -> bytes:
    """The mark of b_u, 16 bytes that fit it and don't tell it: SHA-256, cut, with its label."""
    return sha256(prim.label("own mask's mark", round, u, attempt=attempt) + secret).digest()[:16]


def share_mark(
    share: bytes, what: str, round: int, owner: int, holder: int, attempt: bytes
) -> bytes:
    """The same of the holder's share of the owner's "key" or "own mask"."""
    bound = prim.label(f"mark of a share of {what}", round, owner, holder, attempt=attempt)
    return sha256(bound + share).digest()[:16]


def share_marks(
    shares: tuple[bytes, bytes], round: int, owner: int, holder: int, attempt: bytes
) -> bytes:
    """Of both, in a letter's order: 32 bytes."""
    both = zip(shares, ("key", "own mask"), strict=True)
    return b"".join(share_mark(s, what, round, owner, holder, attempt) for s, what in both)


def ballot(round: int, answered: Iterable[int], attempt: bytes) -> bytes:
    """What a voter signs: the list of who answered, in any order, in this attempt."""
    return prim.label("vote", round, *sorted(answered), attempt=attempt)


def signed_text(m: Masked | Opened, attempt: bytes) -> bytes:
    """What a client signs under its vector or its shares: all of it, in this attempt."""
    if isinstance(m, Masked):
        content = sha256(np.ascontiguousarray(m.y, "<u4").data).digest()
        return prim.label("masked", m.round, m.client, attempt=attempt) + m.mark + content
    text = prim.label("opened", m.round, m.client, len(m.answered), attempt=attempt)
    for owner, (i, share) in [*sorted(m.answered.items()), *sorted(m.gone.items())]:
        text += struct.pack(">3Q", owner, i, len(share)) + share
    return text


def sign(u: int, v: int) -> int:
    """How u uses the mask that it shares with v: +1 if v > u, -1 if v < u."""
    return 1 if v > u else -1


def add(total: np.ndarray, keys: Iterable[tuple[bytes, int]]) -> None:
    """Add the key streams, each with its sign +1 or -1, to ``total`` (d,) in place, mod 2**32."""
    buffer = np.empty(len(total), "<u4")
    for key, way in keys:
        prim.keystream(key, len(total), buffer)
        (np.add if way > 0 else np.subtract)(total, buffer, out=total)


def place(cohort: Iterable[int], client: int) -> int:
    """Which share of every secret the client holds: its place in the cohort, from 1."""
    return sorted(cohort).index(client) + 1


def default_threshold(clients: int) -> int:
    """⌊2 K / 3⌋ + 1, but no more than K: holds if a third of the clients help the server.

    Args:
        clients: K.

    Example:
        >>> [default_threshold(K) for K in (2, 3, 10, 50)]
        [2, 3, 7, 34]

    Reference:
        Bonawitz et al., 2017, §6.
    """
    return min(clients, 2 * clients // 3 + 1)


def check_settings(
    name: str, round: int, threshold: int, directory: Mapping[int, bytes]
) -> tuple[int, int]:
    """round and t as Python's own integers; ValueError unless they, and the directory, are good."""
    rule = "an integer from 0 to 2**64 - 1"
    check(name, "round", round, is_whole(round, 0, 2**64 - 1), rule, 7)
    check(name, "threshold", threshold, is_whole(threshold, 2), "an integer >= 2", 7)
    for k, key in directory.items():
        good = is_whole(k, 0, 2**64 - 1) and isinstance(key, bytes) and len(key) == 32
        check(name, "directory", {k: key}, good, "client -> its identity key of 32 bytes", "{0: A}")
    return int(round), int(threshold)


def halves(clients: int, threshold: int) -> str:
    """Why the threshold is no more than half of the cohort's clients; "" if it is more."""
    why = "two halves could be shown two lists, and both secrets of one client opened"
    return f"{clients} clients with threshold {threshold}: {why}" * (2 * threshold <= clients)


def check_threshold(name: str, threshold: int | None, clients: int) -> int:
    """t for a cohort of K >= 2, from ⌊K / 2⌋ + 1 to K; None for :func:`default_threshold`."""
    rule = "at least 2: the sum of one is that one's update"
    check(name, "the cohort", clients, clients >= 2, rule, 10)
    t = default_threshold(clients) if threshold is None else threshold
    good = default_threshold(clients)
    check(name, "threshold", t, is_whole(t, 1), "an integer >= 2", good)
    check(name, "threshold", t, t <= clients, f"at most the cohort's {clients} clients", good)
    rule = (
        f"more than half of the cohort's {clients} clients (a server could ask one half for one "
        "secret of a client and the other half for its other)"
    )
    check(name, "threshold", t, 2 * t > clients, rule, good)
    return int(t)
