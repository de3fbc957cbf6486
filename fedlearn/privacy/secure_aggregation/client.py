"""The clients' side of secure aggregation, message by message; ``README.md`` has the order.

Client u sends y_u = x_u + PRG(b_u) + Σ_{v>u} PRG(s_uv) - Σ_{v<u} PRG(s_uv) mod 2**32. The pairs'
masks cancel in the sum. Shares of every secret lie with the others: t of them open b_u of those who
answered, or the key of those who dropped out, never both of one client.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from ...checks import check, is_whole
from . import messages as wire
from . import primitives as prim
from .messages import STAGES, Keys, Masked, Opened, Refused, Sealed, Vote


class Client:
    """One client in one attempt at a round.

    Its five methods are called once each, in their order; each refuses what an honest server would
    not have sent, and names whose message it is. Then this client is done with the round, but for a
    bad letter: see :meth:`mask`.

    Args:
        number: u.
        round: Its number.
        identity: Its signing key, ``primitives.identity()``.
        directory: Public identity keys by client: whom the others are known by.
        threshold: How many must answer, more than half of the cohort.

    Example:
        >>> ids = {k: prim.identity() for k in range(2)}
        >>> book = {k: i.public_key().public_bytes_raw() for k, i in ids.items()}
        >>> u = Client(0, round=7, identity=ids[0], directory=book, threshold=2)
        >>> u.advertise().round
        7

    Reference:
        Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth, 2017, "Practical
        secure aggregation for privacy-preserving machine learning", Figure 4, with the underlined
        parts against an active server.

    Differs from the paper: the secret that is shared is a 16-byte seed, from which HKDF makes the
    X25519 key: Shamir's shares are of 16 bytes. All that follows the keys is bound to the SHA-256
    of all advertised keys, vectors and opened shares are signed as well, and the server checks
    every signature. The server also gets a hash of every share and of b_u, so that it knows who
    sent a wrong one. Letters are opened when they arrive. The numbers are mod 2**32 whatever the
    number of clients.
    """

    def __init__(
        self, number: int, round: int, identity: Any, directory: Mapping[int, bytes], threshold: int
    ):
        round, threshold = wire.check_settings("Client", round, threshold, directory)
        good = is_whole(number, 0) and number in directory
        check("Client", "number", number, good, "in the directory", 0)
        number = int(number)
        self.number, self.round, self.threshold = number, round, threshold
        self._identity, self._directory = identity, directory
        self._next, self._stage = 0, STAGES[0]
        self._cohort: dict[int, Keys] = {}
        self._held: dict[int, tuple[bytes, bytes]] = {}  # by owner: a share of seed, of own mask
        self._answered: set[int] = set()
        self._take([prim.fresh(), prim.fresh(), prim.fresh()])

    def _take(self, secrets: Sequence[bytes]) -> None:
        """Its secrets: of the letters' key, of the masks' key, and b_u."""
        self._letter_seed, self._seed, self._own_mask = secrets
        u, t = self.number, self.round
        self._letter_key, letter = prim.key_pair(self._letter_seed, "letter", t, u)
        self._mask_key, mask = prim.key_pair(self._seed, "mask", t, u)
        keys = Keys(u, t, letter, mask, b"")
        self._keys = keys._replace(signature=self._identity.sign(wire.keys_text(keys)))

    def keep(self) -> dict[str, Any]:
        """All that it is between two stages, for a process that ends; its secrets among it."""
        return {
            "secrets": [self._letter_seed, self._seed, self._own_mask],
            "cohort": [tuple(m) for m in self._cohort.values()],
            "held": dict(self._held),
            "answered": sorted(self._answered),
            "next": self._next,
        }

    def resume(self, kept: Mapping[str, Any]) -> "Client":
        """Go on as the client that :meth:`keep` was called of, of the same number and round."""
        self._take(kept["secrets"])
        self._cohort = {m[0]: Keys(*m) for m in kept["cohort"]}
        self._attempt = wire.attempt_of(self._cohort)
        self._held, self._answered = dict(kept["held"]), set(kept["answered"])
        self._next = kept["next"]
        return self

    def advertise(self) -> Keys:
        """Stage 1: two fresh public keys, signed."""
        self._turn("keys")
        return self._keys

    def share(self, keys: Sequence[Keys]) -> list[Sealed]:
        """Stage 2: a letter to every other client, with a share of both secrets.

        Refuses a key that is of another round, twice there, not signed by its owner or no key at
        all, and a threshold that is not more than half of the cohort.
        """
        self._turn("shares")
        self._cohort = self._checked(self._list(keys))
        self._attempt = wire.attempt_of(self._cohort)
        n, me = len(self._cohort), self.number
        seeds = prim.split(self._seed, self.threshold, n)
        masks = prim.split(self._own_mask, self.threshold, n)
        letters = []
        for v, (_, of_seed), (_, of_mask) in zip(sorted(self._cohort), seeds, masks, strict=True):
            if v == me:
                self._held[me] = of_seed, of_mask
                continue
            bound = _address(self.round, me, v, self._attempt)
            text = prim.seal(self._box(v, me, v), of_seed + of_mask, bound)
            marks = wire.share_marks((of_seed, of_mask), self.round, me, v, self._attempt)
            letters.append(Sealed(me, v, self.round, text, marks))
        return letters

    def mask(self, x: np.ndarray, letters: Sequence[Sealed]) -> Masked:
        """Stage 3: y_u of x (d,) uint32, masked with everybody who shared.

        ValueError if x has another form: a float would lose what is behind its point. Refuses a
        letter that is not for this client and attempt, comes twice or was altered; fewer than t.
        A refused letter can be asked about again with an empty text: this client then has no share
        of its sender's secrets, which doesn't count to the t, but it masks with it as the others
        do.
        """
        x = np.asarray(x)
        good = x.dtype == np.uint32 and x.ndim == 1
        rule, got = "(d,) uint32, residues", f"{x.shape} {x.dtype}"
        check("Client.mask", "x", got, good, rule, "FixedPoint(1.0, 50).encode(x)")
        self._turn("masked")
        self._next -= 1  # not over before there is an answer
        held = dict(self._held)
        for letter in self._list(letters):
            self._keep(letter, held)
        lacking = [f", not client {u}" for u, (seed, _) in held.items() if not seed]
        self._enough(f"shared their secrets{''.join(lacking)}", len(held) - len(lacking))
        self._held, self._next = held, self._next + 1
        y, me = x.copy(), self.number
        wire.add(y, [(wire.own_key(self._own_mask, self.round, me, self._attempt), 1)])
        wire.add(y, [(self._pair(v), wire.sign(me, v)) for v in self._held if v != me])
        mark = wire.own_mark(self._own_mask, self.round, me, self._attempt)
        message = Masked(me, self.round, y, mark, b"")
        return message._replace(signature=self._signed(wire.signed_text(message, self._attempt)))

    def vote(self, answered: Sequence[int]) -> Vote:
        """Stage 4: sign who answered. One list an attempt: t clients agree on one, or on none.

        Refuses a list that leaves this client out, names a stranger, or is below the threshold.
        """
        self._turn("votes")
        good = all(is_whole(k, 0) for k in self._list(answered))
        good = good and len(set(answered)) == len(answered)
        if not good or self.number not in answered or not set(answered) <= set(self._held):
            self._refuse(f"the list of who answered, {answered}, can't be right")
        self._answered = set(answered)
        self._enough("answered", len(self._answered))
        return Vote(self.number, self.round, self._signed(self._ballot()))

    def open(self, votes: Sequence[Vote]) -> Opened:
        """Stage 5: of every client one kind of share, by the list that t of them signed.

        Refuses if fewer than t signed this client's list in this attempt, or one of the votes is
        for something else.
        """
        self._turn("opened")
        for v in self._list(votes):
            self._form(v, Vote)
            known = v.client in self._answered and v.round == self.round
            if not known or not prim.signed(self._directory[v.client], v.signature, self._ballot()):
                self._refuse(f"client {v.client}'s vote is not for this list and attempt", v.client)
        self._enough("signed the list", len({v.client for v in votes}))
        i = wire.place(self._cohort, self.number)
        answered = {v: (i, b) for v, (_, b) in self._held.items() if v in self._answered}
        gone = {v: (i, s) for v, (s, _) in self._held.items() if v not in self._answered}
        message = Opened(self.number, self.round, answered, gone, b"")
        return message._replace(signature=self._signed(wire.signed_text(message, self._attempt)))

    def _checked(self, keys: Sequence[Keys]) -> dict[int, Keys]:
        cohort = wire.check_keys(keys, self.round, self._directory)
        if cohort.get(self.number) != self._keys:
            self._refuse("its own keys are missing or were changed")
        self._enough("advertised keys", len(cohort))
        if words := wire.halves(len(cohort), self.threshold):
            self._refuse(words)
        return cohort

    def _keep(self, letter: Sealed, held: dict[int, tuple[bytes, bytes]]) -> None:
        self._form(letter, Sealed)
        u, me = letter.sender, self.number
        if letter.receiver != me or letter.round != self.round or u not in self._cohort:
            self._refuse(f"a letter from {u} to {letter.receiver} of round {letter.round}", u)
        if u in held:
            self._refuse(f"a second letter from client {u}", u)
        if not letter.text:
            held[u] = b"", b""
            return
        try:
            bound = _address(self.round, u, me, self._attempt)
            text = prim.unseal(self._box(u, u, me), letter.text, bound)
        except ValueError as e:
            self._refuse(f"the letter from {u}: {e}", u)
        if len(text) != 2 * prim.SEED:
            self._refuse(f"the letter from {u} holds {len(text)} bytes, not two shares of 16", u)
        held[u] = shares = text[: prim.SEED], text[prim.SEED :]
        if letter.marks != wire.share_marks(shares, self.round, u, me, self._attempt):
            self._refuse(f"the letter from {u} holds other shares than their marks tell", u)

    def _box(self, other: int, sender: int, receiver: int) -> bytes:
        theirs = self._cohort[other].letter
        ways = self.round, sender, receiver, self._attempt
        return wire.common_key("letter", self._letter_key, theirs, *ways)

    def _pair(self, v: int) -> bytes:
        theirs = self._cohort[v].mask
        return wire.pair_key(self._mask_key, theirs, self.round, self.number, v, self._attempt)

    def _ballot(self) -> bytes:
        return wire.ballot(self.round, self._answered, self._attempt)

    def _signed(self, text: bytes) -> bytes:
        return bytes(self._identity.sign(text))

    def _enough(self, what: str, n: int) -> None:
        if n < self.threshold:
            self._refuse(f"only {n} {what}, the threshold is {self.threshold}")

    def _list(self, sent: Any) -> Any:
        if not isinstance(sent, (list, tuple)):
            self._refuse(f"{type(sent).__name__} came where a list is due")
        return sent

    def _form(self, m: Any, kind: type) -> None:
        client, words = wire.fault(m, kind)
        if words:
            self._refuse(words, client)

    def _turn(self, stage: str) -> None:
        due = STAGES[self._next] if self._next < len(STAGES) else "over"
        self._stage = stage
        if stage != due:
            self._refuse(f"asked for '{stage}', but it is at '{due}': each stage once, in order")
        self._next += 1

    def _refuse(self, why: str, client: int | None = None) -> NoReturn:
        me = f"client {self.number}, round {self.round}, stage '{self._stage}'"
        raise Refused(f"{me}, refuses: {why}", client, self.round, self._stage)


def _address(round: int, sender: int, receiver: int, attempt: bytes) -> bytes:
    return prim.label("letter", round, sender, receiver, attempt=attempt)
