"""What secure aggregation is built from: five primitives, each key bound to its one purpose.

X25519 (a key that two share and nobody else), HKDF-SHA256 (many keys from one secret), ChaCha20
(a key stretched to a mask), ChaCha20-Poly1305 (a letter that can't be read or altered), Ed25519
(signatures), from ``cryptography``; Shamir's shares from ``pycryptodome``. Secrets come from the
operating system, never from a seed.

``purpose`` says what a key is for, ``numbers`` are its round and clients, integers >= 0, and
``attempt`` is the SHA-256 of the attempt's keys: another of any gives an unrelated key.
"""

import os
import struct
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...checks import check, is_whole, whole

SEED = 16  # bytes of a secret that is shared out
SEALED = 2 * SEED + 16  # of a letter with two shares

Share = tuple[int, bytes]  # number of the share, 16 bytes


def derive(secret: bytes, purpose: str, *numbers: int, attempt: bytes = b"") -> bytes:
    """32 bytes for one purpose, from a secret: HKDF-SHA256 with the :func:`label` as ``info``.

    Example:
        >>> a, b = (derive(b"sixteen bytes ok", "mask", t, 0, 1) for t in (7, 8))
        >>> len(a), a == b
        (32, False)

    Reference:
        Krawczyk, Eronen, 2010, "HMAC-based extract-and-expand key derivation function (HKDF)",
        RFC 5869.
    """
    c, info = _crypto(), label(purpose, *numbers, attempt=attempt)
    return bytes(c.HKDF(c.SHA256(), 32, salt=None, info=info).derive(secret))


def label(purpose: str, *numbers: int, attempt: bytes = b"") -> bytes:
    """What is signed, derived or sealed says what it is for, unambiguously.

    Bytes that no other purpose (a word without "/"), numbers (below 2**64) and attempt have: the
    numbers are counted first.

    Example:
        >>> label("mask", 1, 23) == label("mask", 12, 3)
        False
    """
    n = len(numbers)
    check("label", "purpose", purpose, "/" not in purpose, 'a word without "/"', "'mask'")
    try:
        counted = struct.pack(f">{n + 1}Q", n, *numbers)
    except struct.error:
        check("label", "numbers", numbers, False, "integers from 0 to 2**64 - 1", (7, 0, 1))
    return b"fedlearn/" + purpose.encode() + b"/" + counted + attempt


def key_pair(seed: bytes, purpose: str, *numbers: int) -> tuple[Any, bytes]:
    """An X25519 key pair that 16 secret bytes restore. -> private key, public key (32 bytes)

    Example:
        >>> key_pair(bytes(16), "mask", 0, 1)[1] == key_pair(bytes(16), "mask", 0, 1)[1]
        True
    """
    private = _crypto().x25519.X25519PrivateKey.from_private_bytes(derive(seed, purpose, *numbers))
    return private, private.public_key().public_bytes_raw()


def agree(private: Any, public: bytes, purpose: str, *numbers: int, attempt: bytes = b"") -> bytes:
    """The key, 32 bytes, that two have in common: X25519, then :func:`derive`.

    ``private`` is mine, of :func:`key_pair`, ``public`` the other's; both give the numbers in the
    same order. ValueError if the public key is no key (a point of low order, say).

    Example:
        >>> (a, A), (b, B) = (key_pair(fresh(), "mask", 0, k) for k in (1, 2))
        >>> agree(a, B, "pair", 0, 1, 2) == agree(b, A, "pair", 0, 1, 2)
        True

    Reference:
        Langley, Hamburg, Turner, 2016, "Elliptic curves for security", RFC 7748.
    """
    theirs = _crypto().x25519.X25519PublicKey.from_public_bytes(public)
    return derive(private.exchange(theirs), purpose, *numbers, attempt=attempt)


@lru_cache(maxsize=4096)
def is_key(public: bytes) -> bool:
    """Whether it is a public key of X25519: 32 bytes, canonical, not of low order.

    A point of low order gives zero whatever it is multiplied by: everybody knows what is agreed on
    with it. Canonical: below 2**255 - 19, so no key comes in two forms.

    Example:
        >>> is_key(key_pair(fresh(), "mask", 0, 1)[1]), is_key(bytes(32))
        (True, False)

    Reference:
        Langley, Hamburg, Turner, 2016, RFC 7748, §6.1.
    """
    if len(public) != 32 or int.from_bytes(public, "little") >= 2**255 - 19:
        return False
    x25519 = _crypto().x25519
    try:
        any_key = x25519.X25519PrivateKey.from_private_bytes(
            bytes(32)
        )  # a multiple of 8 it is made
        any_key.exchange(x25519.X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return False
    return True


def keystream(key: bytes, n: int, out: np.ndarray | None = None) -> np.ndarray:
    """A key stretched to n numbers, each of the 2**32 as likely as any other: ChaCha20. (n,) uint32

    Args:
        key: 32 bytes, used for this and nothing else (the nonce is zero).
        n: How many.
        out: (n,) uint32 to write into.

    Example:
        >>> keystream(bytes(32), 2).tobytes().hex()  # RFC 8439, appendix A.1, test vector 1
        '76b8e0ada0f13d90'

    Reference:
        Nir, Langley, 2018, "ChaCha20 and Poly1305 for IETF protocols", RFC 8439.
    """
    c = _crypto()
    out = np.empty(n, "<u4") if out is None else out
    good = out.shape == (n,) and out.dtype == np.dtype("<u4")
    check(
        "keystream", "out", (out.shape, out.dtype), good, f"({n},) uint32", f"np.empty({n}, '<u4')"
    )
    stream = c.Cipher(c.algorithms.ChaCha20(key, bytes(16)), None).encryptor()
    stream.update_into(bytes(4 * n), out.view(np.uint8).data)
    return out


def seal(key: bytes, text: bytes, bound: bytes) -> bytes:
    """Encrypt and authenticate one text, 16 bytes longer: ChaCha20-Poly1305.

    Args:
        key: 32 bytes for this one letter, never used again: so the nonce may be zero.
        text: What is hidden.
        bound: What is not hidden but can't be altered either: round, sender, receiver.

    Example:
        >>> unseal(bytes(32), seal(bytes(32), b"share", b"1 to 2"), b"1 to 2")
        b'share'
    """
    return bytes(_crypto().ChaCha20Poly1305(key).encrypt(bytes(12), text, bound))


def unseal(key: bytes, sealed: bytes, bound: bytes) -> bytes:
    """The text of :func:`seal`; ValueError if key, letter or ``bound`` differs in a single bit.

    Example:
        >>> unseal(bytes(32), seal(bytes(32), b"share", b"1 to 2"), b"1 to 3")
        Traceback (most recent call last):
        ...
        ValueError: unseal: altered, or sealed for another round, sender or receiver
    """
    c = _crypto()
    try:
        return bytes(c.ChaCha20Poly1305(key).decrypt(bytes(12), sealed, bound))
    except c.InvalidTag:
        words = "unseal: altered, or sealed for another round, sender or receiver"
        raise ValueError(words) from None


def identity() -> Any:
    """A client's long-term signing key, Ed25519: by it the others know who speaks.

    Example:
        >>> len(identity().public_key().public_bytes_raw())
        32
    """
    return _crypto().ed25519.Ed25519PrivateKey.generate()


def signed(public: bytes, signature: bytes, text: bytes) -> bool:
    """Whether the owner of the identity key ``public`` (32 bytes) signed ``text`` so (64 bytes).

    Example:
        >>> me = identity()
        >>> signed(me.public_key().public_bytes_raw(), me.sign(b"yes"), b"no")
        False
    """
    c = _crypto()
    try:
        c.ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except (c.InvalidSignature, ValueError):
        return False
    return True


def split(secret: bytes, threshold: int, n: int) -> list[Share]:
    """n shares of a secret of 16 bytes: any ``threshold`` restore it, fewer say nothing about it.

    The secret is p(0) of a random polynomial p of degree threshold - 1 over GF(2**128), the
    threshold from 2 to n; share i is (i, p(i)), i from 1.

    Example:
        >>> combine(split(b"sixteen bytes ok", 2, 3)[1:])
        b'sixteen bytes ok'

    Reference:
        Shamir, 1979, "How to share a secret".
    """
    whole("split", "n", n, 2, example=3)
    rule = f"an integer from 2 to n = {n}"
    check("split", "threshold", threshold, is_whole(threshold, 2, n), rule, 2)
    good = isinstance(secret, bytes) and len(secret) == SEED
    check("split", "secret", type(secret), good, f"{SEED} bytes", "fresh()")  # never shown
    return [(int(i), bytes(s)) for i, s in _crypto().Shamir.split(int(threshold), int(n), secret)]


def combine(shares: list[Share]) -> bytes:
    """The secret of exactly ``threshold`` shares. A wrong share gives a wrong secret, unnoticed.

    Example:
        >>> combine(split(bytes(16), 3, 5)[:3]) == bytes(16)
        True
    """
    places = {i for i, s in shares if is_whole(i) and isinstance(s, bytes) and len(s) == SEED}
    rule = f"two or more of {SEED} bytes, each in its own place from 1"
    check("combine", "shares", places, 2 <= len(places) == len(shares), rule, "split(s, 2, 3)[1:]")
    return bytes(_crypto().Shamir.combine(shares))


def fresh() -> bytes:
    """16 secret bytes of the operating system's.

    Example:
        >>> fresh() == fresh()
        False
    """
    return os.urandom(SEED)


@cache
def _crypto() -> SimpleNamespace:
    """Both libraries' names, imported on first use."""
    try:
        from Crypto.Protocol.SecretSharing import Shamir
        from cryptography.exceptions import InvalidSignature, InvalidTag
        from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as e:
        raise ImportError(
            "fedlearn.privacy: secure aggregation needs cryptography and pycryptodome: "
            "pip install 'fedlearn[privacy]'"
        ) from e
    return SimpleNamespace(
        Shamir=Shamir,
        InvalidSignature=InvalidSignature,
        InvalidTag=InvalidTag,
        ed25519=ed25519,
        x25519=x25519,
        Cipher=Cipher,
        algorithms=algorithms,
        ChaCha20Poly1305=ChaCha20Poly1305,
        SHA256=SHA256,
        HKDF=HKDF,
    )
