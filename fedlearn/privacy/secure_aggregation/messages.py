"""What clients and server of secure aggregation have in common: messages, masks, threshold.

Whatever comes after the keys is bound to the *attempt*: to the SHA-256 of all keys that were
advertised. A round that is given up and begun anew, with the same number and the same clients, is
another attempt, and nothing of the first counts in it.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from ...checks import RoundFailed, check, is_whole
from . import primitives as prim

STAGES = ("keys", "shares", "masked", "votes", "opened")


class Refused(RuntimeError):
    """A message that doesn't fit the protocol: altered, repeated, not signed, of another round."""


class TooFew(RoundFailed, RuntimeError):
    """A round that ends below its threshold: nothing is opened.

    Attributes:
        stage: Of the protocol, e.g. ``"masked"``.
        answered: How many did.
        threshold: t.
    """

    def __init__(self, round: int, stage: str, answered: int, threshold: int):
        super().__init__(
            f"secure aggregation, round {round}: {answered} answered at stage '{stage}', the "
            f"threshold is {threshold}. Nothing was opened: no sum, no update, and theta stays as "
            "it was. Begin the next round, with new updates: call more clients, or wait for more"
        )
        self.stage, self.answered, self.threshold = stage, answered, threshold


class Keys(NamedTuple):
    """Stage 1, client to all: two public keys of 32 bytes for this attempt, signed."""

    client: int
    round: int
    letter: bytes
    mask: bytes
    signature: bytes


class Sealed(NamedTuple):
    """Stage 2, client to client through the server: a share of both secrets, encrypted."""

    sender: int
    receiver: int
    round: int
    text: bytes


class Masked(NamedTuple):
    """Stage 3, client to server: y_u, (d,) uint32, signed by :func:`signed_text`."""

    client: int
    round: int
    y: np.ndarray
    signature: bytes


class Vote(NamedTuple):
    """Stage 4, client to all: its signature under the :func:`ballot`."""

    client: int
    round: int
    signature: bytes


class Opened(NamedTuple):
    """Stage 5, client to server: shares of b_v of the answered, of the mask key of the gone."""

    client: int
    round: int
    answered: dict[int, prim.Share]
    gone: dict[int, prim.Share]
    signature: bytes


def check_keys(keys: Sequence[Keys], round: int, directory: Mapping[int, bytes]) -> dict[int, Keys]:
    """Advertised keys by client; Refused unless of this round, 32 bytes, signed, none twice."""
    for m in keys:
        if m.round != round:
            raise Refused(f"round {round}: client {m.client}'s keys are of round {m.round}")
        if (len(m.letter), len(m.mask)) != (32, 32):
            raise Refused(f"round {round}: client {m.client}'s keys are not of 32 bytes each")
        known = m.client in directory
        if not known or not prim.signed(directory[m.client], m.signature, keys_text(m)):
            raise Refused(
                f"round {round}: client {m.client}'s keys are not signed by client {m.client}"
            )
    different = {key for m in keys for key in (m.letter, m.mask)}
    if len({m.client for m in keys}) < len(keys) or len(different) < 2 * len(keys):
        raise Refused(f"round {round}: a client or a key comes twice")
    return {m.client: m for m in keys}


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


def ballot(round: int, answered: Iterable[int], attempt: bytes) -> bytes:
    """What a voter signs: the list of who answered, in any order, in this attempt."""
    return prim.label("vote", round, *sorted(answered), attempt=attempt)


def signed_text(m: Masked | Opened, attempt: bytes) -> bytes:
    """What a client signs under its vector or its shares: all of it, in this attempt."""
    if isinstance(m, Masked):
        content = sha256(np.ascontiguousarray(m.y, "<u4").data).digest()
        return prim.label("masked", m.round, m.client, attempt=attempt) + content
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
