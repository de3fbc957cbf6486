"""Who is in both tables? Private set intersection by double blinding.

Each owner hashes its ids to points of a curve and multiplies them by a secret number of its own;
the other multiplies once more. Multiplications commute, so equal ids end as equal points, and
whoever lacks one of the two secrets can't try out names.
"""

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..checks import check

POINT = 32  # bytes of a point on the wire
_PRIME = 2**255 - 19
_A = 486662  # Curve25519: v² = u³ + A u² + u mod p


class Alignment(NamedTuple):
    """What :func:`align` returns.

    Attributes:
        rows_a: (m,) rows of the first owner's table, ascending.
        rows_b: (m,) rows of the second owner's, the same people in the same order.
        sent: Bytes that crossed the line, both ways.
    """

    rows_a: np.ndarray
    rows_b: np.ndarray
    sent: int


def align(ids_a: Sequence[str], ids_b: Sequence[str]) -> Alignment:
    """The rows of two tables that belong to the same people: private set intersection.

    Points go there and back: H(id) -> a H(id) -> b a H(id), and H(id) -> b H(id) -> a b H(id), with
    a and b drawn anew for every run. Both owners learn how many ids the other has, and which of
    their own are shared; of the others' ids nothing, as long as the discrete logarithm on
    Curve25519 is hard. What it does not hold back: an owner that fills its list with guessed ids
    learns who is there, and one that runs it again with another list learns more.

    Args:
        ids_a: Ids of the first owner's rows, text, each once.
        ids_b: Ids of the second owner's. ValueError if an id stands twice or is no text.

    Example:
        >>> found = align(["ann", "bob", "eve"], ["eve", "dan", "ann"])
        >>> found.rows_a, found.rows_b, found.sent
        (array([0, 2]), array([2, 0]), 384)

    Reference:
        Meadows, 1986, "A more efficient cryptographic matchmaking protocol for use in the absence
        of a continuously available third party"; Huberman, Franklin, Hogg, 1999, "Enhancing privacy
        and trust in electronic communities". Curve: Bernstein, 2006, "Curve25519".

    Differs from the paper: ids are hashed to the curve itself by trying counters, not to its twist,
    so that no bit of u tells two ids apart; honest owners are assumed, nobody proves anything.
    """
    a, b = Blinded(ids_a), Blinded(ids_b)
    once_a, once_b = a.first, b.first  # to the other owner, each in a secret order
    twice_a, twice_b = b.again(once_a), a.again(once_b)  # and back, in the order received
    sent = POINT * 2 * (len(once_a) + len(once_b))
    where = {point: j for j, point in enumerate(twice_b)}
    pairs = [(a.order[i], b.order[where[p]]) for i, p in enumerate(twice_a) if p in where]
    rows = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return Alignment(rows[:, 0], rows[:, 1], sent)


class Blinded:
    """One owner's ids as points that only it could have made.

    Args:
        ids: Text, each once.

    Attributes:
        order: order[i] is the row whose point stands at place i: drawn from the operating system,
            since rows that are sorted by name would say where a name stands.
        first: Points to send, H(id) times the secret, in that order.

    Example:
        >>> a, b = Blinded(["ann"]), Blinded(["ann"])
        >>> a.first == b.first, a.again(b.first) == b.again(a.first)
        (False, True)
    """

    def __init__(self, ids: Sequence[str]):
        named = [*ids]
        text = all(isinstance(i, str) for i in named)
        rule = "text, so that both owners hash the same bytes"
        check("align", "ids", [type(i).__name__ for i in named][:3], text, rule, "['p-001', ...]")
        twice = (
            sorted({i for i in named if named.count(i) > 1}) if len({*named}) < len(named) else []
        )
        check("align", "ids", twice[:3], not twice, "each there once", "sorted(set(ids))")
        self._secret = _curve().X25519PrivateKey.generate()
        self.order = [
            int(i) for i in np.random.default_rng(secrets.randbits(128)).permutation(len(named))
        ]
        self.first = [self._times(point(named[i])) for i in self.order]

    def again(self, points: Sequence[bytes]) -> list[bytes]:
        """The other owner's points times our secret, in the order received.

        ValueError for one that isn't 32 bytes, or lies in the curve's small subgroup: its multiple
        would be the same for every secret.
        """
        return [self._times(p) for p in points]

    def _times(self, u: bytes) -> bytes:
        good = isinstance(u, bytes) and len(u) == POINT
        check("align", "a point", u, good, f"{POINT} bytes", "Blinded(ids).first[0]")
        try:
            return bytes(self._secret.exchange(_curve().X25519PublicKey.from_public_bytes(u)))
        except ValueError as e:
            raise ValueError(
                f"align: a point must not be of low order, got {u.hex()}: its multiple is 0 "
                "whatever the secret, e.g. a point of Blinded(ids).first"
            ) from e


def point(name: str) -> bytes:
    """H(id): 32 bytes, the u of a point on the curve itself; half of all numbers belong to none.

    The counter goes up until u is on the curve: v² = u³ + A u² + u must be a square. A plain
    hash would leave half of the ids on the twist, and everybody could see which half.

    Example:
        >>> point("ann") == point("ann"), point("ann") == point("bob"), len(point("ann"))
        (True, False, 32)
    """
    for counter in range(256):
        text = b"fedlearn psi %d " % counter + name.encode()
        u = int.from_bytes(hashlib.sha256(text).digest(), "little") % 2**255  # X25519 ignores a bit
        square = (u**3 + _A * u * u + u) % _PRIME
        if u < _PRIME and pow(square, (_PRIME - 1) // 2, _PRIME) == 1:
            return u.to_bytes(POINT, "little")
    raise AssertionError("256 hashes in a row missed the curve: once in 2**256")


def _curve() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import x25519
    except ImportError as e:
        raise ImportError(
            "fedlearn.vertical.align needs cryptography: pip install 'fedlearn[privacy]'"
        ) from e
    return x25519
