"""The server's side of secure aggregation: what it checks, adds up and opens."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from . import messages as wire
from . import primitives as prim
from .messages import Keys, Masked, Opened, Refused, Sealed, TooFew, Vote


class Server:
    """The server in one attempt: passes letters on, adds up, and takes the masks off the sum.

    Each message is checked when it comes, and :class:`Refused` says what doesn't fit. What is
    refused hasn't counted: leave it out and go on. Below the threshold a stage raises
    :class:`TooFew`.

    Args:
        round: Its number.
        threshold: How many must answer at every stage.
        directory: Public identity keys by client.

    Example:
        >>> Server(round=0, threshold=2, directory={}).keys([])
        Traceback (most recent call last):
        ...
        fedlearn.privacy.secure_aggregation.messages.TooFew: ...: 0 answered at stage 'keys', ...
    """

    def __init__(self, round: int, threshold: int, directory: Mapping[int, bytes]):
        self.round, self.threshold, self._directory = round, threshold, directory
        self._shared: set[int] = set()
        self._answered: list[int] = []
        self._voters: set[int] = set()
        self._closed = False
        self.sum = np.zeros(0, np.uint32)

    def keys(self, keys: Sequence[Keys]) -> list[Keys]:
        """Stage 1 -> what is broadcast: all keys."""
        self._cohort = wire.check_keys(keys, self.round, self._directory)
        self._enough("keys", len(keys))
        self._attempt = wire.attempt_of(self._cohort)
        return list(keys)

    def route(self, letters: Iterable[Sealed]) -> dict[int, list[Sealed]]:
        """Stage 2 -> receiver: its letters, between those who sent theirs."""
        letters = list(letters)
        self._shared = {m.sender for m in letters}
        if any(m.round != self.round for m in letters) or not self._shared <= set(self._cohort):
            self._refuse("a letter of another round or a stranger")
        for u in self._shared:
            to = sorted(m.receiver for m in letters if m.sender == u)
            if to != sorted(set(self._cohort) - {u}):
                self._refuse(f"client {u} wrote to {to}, not to all")
        self._enough("shares", len(self._shared))
        return {k: [m for m in letters if m.receiver == k] for k in sorted(self._shared)}

    def add(self, message: Masked) -> None:
        """Stage 3: one more masked vector; refused: too late, a second one, of another attempt."""
        u = message.client
        if message.round != self.round:
            self._refuse(f"client {u}'s vector is of round {message.round}")
        if message.y.dtype != np.uint32 or message.y.ndim != 1:
            self._refuse(f"client {u}'s vector is {message.y.dtype}, not (d,) uint32")
        self._expected([u])
        if not self._is_from(u, message.signature, wire.signed_text(message, self._attempt)):
            self._refuse(f"client {u}'s vector is not signed by it for this attempt")
        self.add_sum([u], message.y)

    def add_sum(self, clients: Sequence[int], total: np.ndarray) -> None:
        """Stage 3, where something else has added up already: whose vectors, and their sum."""
        self._expected(clients)
        if self._answered and len(total) != len(self.sum):
            n = len(self.sum)
            self._refuse(f"{len(total)} numbers from client {clients[0]}, {n} from the others")
        if not self._answered:
            self.sum = np.zeros(len(total), np.uint32)
        self._answered += clients
        self.sum += total

    def answered(self) -> list[int]:
        """Ends stage 3 -> who answered. A vector that comes later is refused."""
        self._closed = True
        self._enough("masked", len(self._answered))
        return sorted(self._answered)

    def votes(self, votes: Sequence[Vote]) -> list[Vote]:
        """Stage 4 -> all votes, for everybody who voted.

        Refused: a vote for another list or attempt, of somebody not on the list, or a second one.
        Passed on, it would make every client refuse.
        """
        text = wire.ballot(self.round, self._answered, self._attempt)
        for v in votes:
            known = v.round == self.round and v.client in self._answered
            if not known or not self._is_from(v.client, v.signature, text):
                self._refuse(f"client {v.client}'s vote is not for this list and attempt")
        self._voters = self._once("vote", votes)
        self._enough("votes", len(votes))
        return list(votes)

    def masks(self, opened: Sequence[Opened]) -> np.ndarray:
        """Stage 5 -> (d,) uint32: all that is in the sum beside the clients' own vectors.

        A wrong share of a key shows: the key that it restores isn't the advertised. A wrong share
        of b_u, by a client that signed it, doesn't: it spoils the sum and reveals nothing. Refused
        as well: shares of another attempt, of who didn't vote, not those asked for, or twice.
        """
        for m in opened:
            self._fits(m)
        self._once("message of shares", opened)
        self._enough("opened", len(opened))
        found = np.zeros(len(self.sum), np.uint32)
        for u in self._answered:
            secret = self._restored(u, [m.answered for m in opened])
            wire.add(found, [(wire.own_key(secret, self.round, u, self._attempt), 1)])
        for v in self._gone():
            key = self._key_of(v, opened)
            pairs = [(self._pair(key, u, v), wire.sign(u, v)) for u in self._answered]
            wire.add(found, pairs)
        return found

    def total(self, opened: Sequence[Opened]) -> np.ndarray:
        """Stage 5 -> (d,) uint32: the sum of the vectors of those who answered."""
        return self.sum - self.masks(opened)

    def _expected(self, clients: Sequence[int]) -> None:
        if self._closed:
            self._refuse(
                f"the vector of client {clients[0]} is too late: the others have been told that it "
                "is gone"
            )
        for k in clients:
            if k not in self._shared or k in self._answered:
                why = "a second vector of" if k in self._answered else "no letters came from"
                self._refuse(f"{why} client {k}")

    def _fits(self, m: Opened) -> None:
        if m.round != self.round or m.client not in self._voters:
            self._refuse(f"shares from client {m.client} of round {m.round}: it hasn't voted here")
        shares, i = [*m.answered.values(), *m.gone.values()], wire.place(self._cohort, m.client)
        asked = m.answered.keys() == set(self._answered) and m.gone.keys() == set(self._gone())
        if not asked or any(s[0] != i or len(s[1]) != prim.SEED for s in shares):
            self._refuse(f"client {m.client} sent other shares than it was asked for")
        if not self._is_from(m.client, m.signature, wire.signed_text(m, self._attempt)):
            self._refuse(f"the shares from client {m.client} are not signed by it for this attempt")

    def _is_from(self, client: int, signature: bytes, text: bytes) -> bool:
        return prim.signed(self._directory[client], signature, text)

    def _once(self, what: str, messages: Sequence[Vote] | Sequence[Opened]) -> set[int]:
        senders = [m.client for m in messages]
        for k in senders:
            if senders.count(k) > 1:
                self._refuse(f"a second {what} of client {k}")
        return set(senders)

    def _gone(self) -> list[int]:
        return sorted(self._shared - set(self._answered))

    def _key_of(self, v: int, opened: Sequence[Opened]) -> Any:
        secret = self._restored(v, [m.gone for m in opened])
        key, public = prim.key_pair(secret, "mask", self.round, v)
        if public != self._cohort[v].mask:
            self._refuse(
                f"the shares of client {v}'s key don't fit the key that it advertised: somebody "
                "sent a wrong one. Nothing was opened"
            )
        return key

    def _pair(self, key: Any, u: int, v: int) -> bytes:
        return wire.pair_key(key, self._cohort[u].mask, self.round, u, v, self._attempt)

    def _restored(self, owner: int, held: list[dict[int, prim.Share]]) -> bytes:
        shares = {i: s for own in held if owner in own for i, s in [own[owner]]}
        self._enough("opened", len(shares))
        return prim.combine(list(shares.items())[: self.threshold])

    def _enough(self, stage: str, n: int) -> None:
        if n < self.threshold:
            raise TooFew(self.round, stage, n, self.threshold)

    def _refuse(self, why: str) -> NoReturn:
        raise Refused(f"server, round {self.round}: {why}")
