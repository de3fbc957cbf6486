"""The server's side of secure aggregation: what it checks, adds up and opens."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from ...checks import check, is_whole
from . import messages as wire
from . import primitives as prim
from .messages import STAGES, Keys, Masked, Opened, Refused, Sealed, TooFew, Vote


class Server:
    """The server in one attempt: passes letters on, adds up, and takes the masks off the sum.

    Each message is checked when it comes, its form first, and :class:`Refused` names the client
    and says what doesn't fit. What is refused hasn't counted and has changed nothing: leave it out
    and go on. Below the threshold a stage raises :class:`TooFew`.

    Args:
        round: Its number.
        threshold: How many must answer at every stage.
        directory: Public identity keys by client.
        d: How many numbers each vector has; None: as many as the first that comes.

    Attributes:
        refused: What was left out so far, kept by ``exchange`` and ``unmask``: a TooFew tells it.

    Example:
        >>> Server(round=0, threshold=2, directory={}, d=10).keys([])
        Traceback (most recent call last):
        ...
        fedlearn.privacy.secure_aggregation.messages.TooFew: ...: 0 answered at stage 'keys', ...
    """

    def __init__(
        self, round: int, threshold: int, directory: Mapping[int, bytes], d: int | None = None
    ):
        check("Server", "d", d, d is None or is_whole(d), "an integer >= 1", 199_210)
        self.round, self.threshold = wire.check_settings("Server", round, threshold, directory)
        self._directory, self.d = directory, d
        self.refused: list[Refused] = []
        self._next = 0
        self._cohort: dict[int, Keys] = {}
        self._marks: dict[tuple[int, int], bytes] = {}  # by owner and holder
        self._own: dict[int, bytes] = {}  # the mark of b_u
        self._shared: set[int] = set()
        self._answered: list[int] = []
        self._voters: set[int] = set()
        self.sum = np.zeros(d or 0, np.uint32)

    def keys(self, keys: Sequence[Keys]) -> list[Keys]:
        """Stage 1 -> what is broadcast: all keys."""
        self._due("keys")
        cohort = wire.check_keys(keys, self.round, self._directory)
        self._enough(len(cohort))
        if words := wire.halves(len(cohort), self.threshold):
            self._refuse(words)
        self._cohort, self._attempt, self._next = cohort, wire.attempt_of(cohort), 1
        return list(keys)

    def route(self, letters: Iterable[Sealed]) -> dict[int, list[Sealed]]:
        """Stage 2 -> receiver: its letters, between those who sent theirs."""
        self._due("shares")
        letters, to = list(letters), dict[int, list[int]]()
        for m in letters:
            self._form(m, Sealed)
            if m.round != self.round or m.sender not in self._cohort:
                self._refuse(f"a letter of client {m.sender}, of another round or a stranger", m[0])
            if len(m.text) != prim.SEALED:
                got = f"{len(m.text)} bytes, not {prim.SEALED}"
                self._refuse(f"client {m.sender}'s letter to {m.receiver} has {got}", m.sender)
            to.setdefault(m.sender, []).append(m.receiver)
        for u, receivers in to.items():
            if sorted(receivers) != sorted(set(self._cohort) - {u}):
                self._refuse(f"client {u} wrote to {sorted(receivers)}, not to all", u)
        self._enough(len(to))
        self._shared, self._next = set(to), 2
        self._marks = {(m.sender, m.receiver): m.marks for m in letters}
        return {k: [m for m in letters if m.receiver == k] for k in sorted(to)}

    def add(self, message: Masked) -> None:
        """Stage 3: one more masked vector; refused: too late, a second one, of another attempt."""
        self._form(message, Masked)
        u = message.client
        if message.round != self.round:
            self._refuse(f"client {u}'s vector is of round {message.round}", u)
        self._expected([u])
        self._vector(f"client {u}'s vector", message.y, u)
        if not self._is_from(u, message.signature, wire.signed_text(message, self._attempt)):
            self._refuse(f"client {u}'s vector is not signed by it for this attempt", u)
        self.add_sum([u], message.y)
        self._own[u] = message.mark

    def add_sum(self, clients: Sequence[int], total: np.ndarray) -> None:
        """Stage 3, where something else has added up already: whose vectors, and their sum."""
        self._expected(clients)
        self._vector(f"the sum of clients {list(clients)}", total, None)
        if self.d is None:
            self.d, self.sum = len(total), np.zeros(len(total), np.uint32)
        self._answered += clients
        self.sum += total

    def answered(self) -> list[int]:
        """Ends stage 3 -> who answered. A vector that comes later is refused."""
        if self._next <= 2:
            self._due("masked")
            self._enough(len(self._answered))
            self._next = 3
        return sorted(self._answered)

    def votes(self, votes: Sequence[Vote]) -> list[Vote]:
        """Stage 4 -> all votes, for everybody who voted.

        Refused: a vote for another list or attempt, of somebody not on the list, or a second one.
        Passed on, it would make every client refuse.
        """
        self.answered()
        if self._next != 4:  # asked again with other votes, the last ones count
            self._due("votes")
        text = wire.ballot(self.round, self._answered, self._attempt)
        for v in votes:
            self._form(v, Vote)
            known = v.round == self.round and v.client in self._answered
            if not known or not self._is_from(v.client, v.signature, text):
                self._refuse(f"client {v.client}'s vote is not for this list and attempt", v.client)
        voters = self._once("vote", votes)
        self._enough(len(votes))
        self._voters, self._next = voters, 4
        return list(votes)

    def masks(self, opened: Sequence[Opened]) -> np.ndarray:
        """Stage 5 -> (d,) uint32: all that is in the sum beside the clients' own vectors.

        Refused: shares of another attempt, of who didn't vote, not those asked for, twice, or
        others than their owner dealt: their marks tell. What is restored fits the key, or the mark
        of b_u, that its owner sent, or else the owner dealt false shares: Refused, by its name.
        """
        self._due("opened")
        for m in opened:
            self._fits(m)
        self._once("message of shares", opened)
        self._enough(len(opened))
        found = np.zeros(len(self.sum), np.uint32)
        for u in self._answered:
            secret = self._restored(u, {m.client: m.answered[u] for m in opened})
            if self._own.get(u) not in (None, wire.own_mark(secret, self.round, u, self._attempt)):
                self._dealt_false(u, "own mask", "mark")
            wire.add(found, [(wire.own_key(secret, self.round, u, self._attempt), 1)])
        for v in self._gone():
            key = self._key_of(v, opened)
            pairs = [(self._pair(key, u, v), wire.sign(u, v)) for u in self._answered]
            wire.add(found, pairs)
        return found

    def total(self, opened: Sequence[Opened]) -> np.ndarray:
        """Stage 5 -> (d,) uint32: the sum of the vectors of those who answered."""
        return self.sum - self.masks(opened)

    def _form(self, m: Any, kind: type) -> None:
        client, words = wire.fault(m, kind)
        if words:
            self._refuse(words, client)

    def _expected(self, clients: Sequence[int]) -> None:
        if self._next > 2:
            self._refuse(
                f"the vector of client {clients[0]} is too late: the others have been told that it "
                "is gone",
                clients[0],
            )
        for i, k in enumerate(clients):
            if k not in self._shared:
                self._refuse(f"no letters came from client {k}", k)
            if k in self._answered or k in clients[:i]:
                self._refuse(f"a second vector of client {k}", k)

    def _vector(self, what: str, y: np.ndarray, client: int | None) -> None:
        if y.dtype != np.uint32 or y.ndim != 1:
            self._refuse(f"{what} is {y.shape} {y.dtype}, not (d,) uint32", client)
        if len(y) != (self.d or max(len(y), 1)):
            self._refuse(f"{what} has {len(y)} numbers, not d = {self.d or 'one or more'}", client)

    def _fits(self, m: Opened) -> None:
        self._form(m, Opened)
        k = m.client
        if m.round != self.round or k not in self._voters:
            self._refuse(f"shares from client {k} of round {m.round}: it hasn't voted here", k)
        i, both = wire.place(self._cohort, k), [*m.answered.items(), *m.gone.items()]
        asked = m.answered.keys() == set(self._answered) and m.gone.keys() == set(self._gone())
        sizes = [(prim.SEED, prim.SEED * (u == k)) for u, _ in both]  # another's may be lacking
        if not asked or any(
            s[0] != i or len(s[1]) not in n for (_, s), n in zip(both, sizes, strict=True)
        ):
            self._refuse(f"client {k} sent other shares than it was asked for", k)
        if not self._is_from(k, m.signature, wire.signed_text(m, self._attempt)):
            self._refuse(f"the shares from client {k} are not signed by it for this attempt", k)
        for what, own in (("key", m.gone), ("own mask", m.answered)):
            for u, (_, share) in own.items():
                if u != k and share and not self._dealt(share, what, u, k):
                    self._refuse(
                        f"the shares of client {u}'s {what} don't fit what it dealt: client {k}'s "
                        "is a wrong one. Nothing was opened",
                        k,
                    )

    def _dealt(self, share: bytes, what: str, owner: int, holder: int) -> bool:
        """Whether it is the share that the owner dealt to the holder."""
        mark = wire.share_mark(share, what, self.round, owner, holder, self._attempt)
        marks = self._marks[owner, holder]
        return mark == (marks[: prim.SEED] if what == "key" else marks[prim.SEED :])

    def _dealt_false(self, u: int, what: str, other: str) -> NoReturn:
        self._refuse(
            f"the shares of client {u}'s {what} don't fit the {other} that it advertised: it dealt "
            "false ones. Nothing was opened",
            u,
        )

    def _is_from(self, client: int, signature: bytes, text: bytes) -> bool:
        return prim.signed(self._directory[client], signature, text)

    def _once(self, what: str, messages: Sequence[Vote] | Sequence[Opened]) -> set[int]:
        senders = [m.client for m in messages]
        for k in senders:
            if senders.count(k) > 1:
                self._refuse(f"a second {what} of client {k}", k)
        return set(senders)

    def _gone(self) -> list[int]:
        return sorted(self._shared - set(self._answered))

    def _key_of(self, v: int, opened: Sequence[Opened]) -> Any:
        secret = self._restored(v, {m.client: m.gone[v] for m in opened})
        key, public = prim.key_pair(secret, "mask", self.round, v)
        if public != self._cohort[v].mask:
            self._dealt_false(v, "key", "key")
        return key

    def _pair(self, key: Any, u: int, v: int) -> bytes:
        return wire.pair_key(key, self._cohort[u].mask, self.round, u, v, self._attempt)

    def _restored(self, owner: int, held: Mapping[int, prim.Share]) -> bytes:
        """From shares with marks first; the owner's own has none."""
        shares = [s for k, s in sorted(held.items(), key=lambda e: e[0] == owner) if s[1]]
        if len(shares) < self.threshold:
            none = [k for k, (_, s) in held.items() if not s]
            words = f"clients {none} have no share of client {owner}'s: they refused its letters"
            self.refused.append(Refused(self._at(words), owner, self.round, STAGES[self._next]))
        self._enough(len(shares))
        return prim.combine(shares[: self.threshold])

    def _due(self, stage: str) -> None:
        if stage != STAGES[self._next]:
            self._refuse(f"'{stage}' is over, or not yet there: each stage once, in order")

    def _enough(self, n: int) -> None:
        if n < self.threshold:
            raise TooFew(self.round, STAGES[self._next], n, self.threshold, self.refused)

    def _at(self, why: str) -> str:
        return f"server, round {self.round}, stage '{STAGES[self._next]}': {why}"

    def _refuse(self, why: str, client: int | None = None) -> NoReturn:
        raise Refused(self._at(why), client, self.round, STAGES[self._next])
