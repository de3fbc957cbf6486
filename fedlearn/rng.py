"""Randomness as a value: every random draw is a function of (seed, use, round, client).

No generator is shared and none is advanced, so the order in which clients are trained, the size of
a chunk or one evaluation more or less can't change what is drawn.
"""

from enum import IntEnum

import numpy as np

from .checks import is_whole


class Use(IntEnum):
    """What a draw is for: the first element of its path, so that two uses never share numbers."""

    SAMPLE = 0  # which clients a round calls
    SHUFFLE = 1  # the order of a client's examples
    PARTITION = 2  # who holds what
    INIT = 3  # initial parameters
    SPLIT = 4  # training and test sets
    NOISE = 5  # noise added by the server
    TOY = 6  # examples of made-up data
    SKEW = 7  # noise on a client's features
    AVAILABLE = 8  # which clients are there
    DROPOUT = 9  # which of the called never answer
    STRAGGLE = 10  # which are slow, and how slow
    FLEET = 11  # speeds of machines and lines
    LOCAL_NOISE = 12  # noise that a client adds itself
    ATTACK = 13  # what attackers make up
    GUESS = 14  # where an attacker begins to search
    COMPRESS = 15  # which numbers a client sends, and how it rounds them


def numpy_rng(seed: int, *path: int) -> np.random.Generator:
    """The generator of one use; the same arguments give the same numbers, on every machine.

    Args:
        seed: The run's seed, an integer >= 0.
        *path: Where the draw is used, integers >= 0: ``(Use.SAMPLE, round)``, say. ValueError if
            one is negative or not an integer.

    Example:
        >>> [int(numpy_rng(0, Use.SAMPLE, t).integers(100)) for t in (7, 8, 7)]
        [70, 82, 70]
    """
    for value in (seed, *path):
        if not is_whole(value, 0):
            raise ValueError(f"numpy_rng: wants integers >= 0, got {value!r}, e.g. numpy_rng(0, 3)")
    # spawn_key, not one longer seed: SeedSequence([0]) and SeedSequence([0, 0]) are the same
    return np.random.default_rng(np.random.SeedSequence(int(seed), spawn_key=tuple(map(int, path))))


def hashed(keys: np.ndarray, *path: int | np.ndarray) -> np.ndarray:
    """64 well-mixed bits for every integer in ``keys`` and the path, all at once.

    One call replaces a generator per client: sorting examples by their hash shuffles them.

    Args:
        keys: (n,) integers >= 0; as many uint64 are returned.
        *path: Integers >= 0, as for :func:`numpy_rng`; or (n,) of them, one a key.

    Example:
        >>> hashed(np.arange(5), 0, 1).argsort()
        array([3, 0, 1, 2, 4])
    """
    state = np.zeros(1, np.uint64)
    for p in path:
        state = _mix(state ^ np.asarray(p).astype(np.uint64))
    return _mix(keys.astype(np.uint64) ^ state)


def _mix(z: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele, Lea, Flood, 2014, "Fast splittable pseudorandom number generators")."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
