"""Secure aggregation with clients that don't keep to it: whatever one sends, it is named and left
out, the others' sum is exact, or the round ends by its name. Sums are Python's own integers."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography", reason="needs fedlearn[privacy]")
pytest.importorskip("Crypto", reason="needs fedlearn[privacy]")

from fedlearn.privacy import FixedPoint, Refused, TooFew, secure_mean, secure_sum
from fedlearn.privacy import secure_aggregation as secure
from fedlearn.privacy.secure_aggregation import messages as wire
from fedlearn.privacy.secure_aggregation import primitives as prim
from fedlearn.privacy.secure_aggregation import round as rounds

P = 2**255 - 19
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
# RFC 7748 and Bernstein's list: order 1, 2, 4, 8, and every other way to write them in 32 bytes
LOW = [(n + top).to_bytes(32, "little")
       for n in (0, 1, *ORDER_8, P - 1, P, P + 1) for top in (0, 2**255)]  # fmt: skip
NOT_REDUCED = [(9 + 2**255).to_bytes(32, "little"), (P + 9).to_bytes(32, "little")]


def residues(K: int, d: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, (K, d), dtype=np.uint32)


def plain_sum(rows: np.ndarray) -> list[int]:
    return [sum(map(int, column)) % 2**32 for column in rows.T]


class Corrupt:
    """A client whose messages of one stage are changed before they are sent."""

    def __init__(self, client, stage, change):
        self._client, self._stage, self._change = client, stage, change

    def _sends(self, stage, message):
        return self._change(self._client, message) if stage == self._stage else message

    def advertise(self):
        return self._sends("keys", self._client.advertise())

    def share(self, keys):
        return self._sends("shares", self._client.share(keys))

    def mask(self, x, letters):
        return self._sends("masked", self._client.mask(x, letters))

    def vote(self, answered):
        return self._sends("votes", self._client.vote(answered))

    def open(self, votes):
        return self._sends("opened", self._client.open(votes))


def with_corrupt(K, t, corrupt, dropped=None, rows=None):
    """``secure_sum`` where some clients are corrupt: number -> (stage, change)."""
    real = rounds.enroll

    def enroll(*args, **kw):
        clients, server = real(*args, **kw)
        return clients | {k: Corrupt(clients[k], *how) for k, how in corrupt.items()}, server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "enroll", enroll)
        return secure_sum(residues(K) if rows is None else rows, threshold=t, dropped=dropped)


def signed_again(client, m):
    """As its owner would sign it; as it is, where it can't be signed."""
    try:
        text = wire.keys_text(m) if isinstance(m, wire.Keys) else None
        text = text or wire.signed_text(m, client._attempt)
        return m._replace(signature=client._identity.sign(text))
    except Exception:  # what no honest client could sign
        return m


def changed(field, value, sign=True):
    def change(client, m):
        new = m._replace(**{field: value(getattr(m, field)) if callable(value) else value})
        return signed_again(client, new) if sign and field != "signature" else new

    return change


# -- one fault, by hand ---------------------------------------------------------------------------


def one_letter(change):
    return lambda client, letters: [change(client, letters[0]), *letters[1:]]


def share_of(owner, value, kind="answered"):
    def new(shares):
        i, _ = shares[owner]
        return {**shares, owner: value(i) if callable(value) else value}

    return changed(kind, new)


FAULTS = {  # name: (stage, change, words); client 1 of five, threshold three
    "a short vector": ("masked", changed("y", lambda y: y[:-1]), "has 5 numbers, not d = 6"),
    "a long vector": ("masked", changed("y", lambda y: np.append(y, y[:1])), "7 numbers"),
    "an empty vector": ("masked", changed("y", lambda y: y[:0]), "0 numbers"),
    "a matrix": ("masked", changed("y", lambda y: y[None]), r"\(1, 6\) uint32, not"),
    "int64": ("masked", changed("y", lambda y: y.astype(np.int64)), "int64, not"),
    "big-endian": ("masked", changed("y", lambda y: y.astype(">u4")), "not .d,. uint32"),
    "a masked array": (
        "masked", changed("y", lambda y: np.ma.array(y, mask=[1, 0, 0, 0, 0, 0])), "a NumPy array"),
    "a list": ("masked", changed("y", lambda y: y.tolist()), "a NumPy array"),
    "no vector": ("masked", changed("y", None), "a NumPy array, got None"),
    "a short mark": ("masked", changed("mark", b"12"), "mark must be 16 bytes, got 2 bytes"),
    "a number too low": ("masked", changed("client", -1), "client must be an integer from 0"),
    "a number too high": ("masked", changed("round", 2**64), "round must be an integer from 0"),
    "another's number": ("masked", changed("client", 2), "client 1 sent a message of client 2"),
    "a key that is text": ("keys", changed("mask", "A" * 32), "mask must be bytes"),
    "a key too short": ("keys", changed("letter", b"short"), "not of 32 bytes each"),
    "a key that is a number": ("keys", changed("letter", 7), "letter must be bytes, got 7"),
    "a round that is NaN": ("keys", changed("round", float("nan")), "round must be .* got nan"),
    "no signature": ("keys", changed("signature", None), "signature must be 64 bytes, got None"),
    "a short signature": ("votes", changed("signature", bytes(63)), "64 bytes, got 63 bytes"),
    "no message": ("votes", lambda *_: None, "client 1 sent NoneType where Vote is due"),
    "another kind": ("votes", lambda c, m: c._keys, "client 1 sent Keys where Vote is due"),
    "no letters": ("shares", lambda *_: None, "client 1 sent None where Sealed is due"),
    "an empty list": ("shares", lambda *_: [], r"client 1 sent \[\] where Sealed is due"),
    "a letter short": ("shares", lambda c, m: m[1:], "client 1 wrote to .2, 3, 4., not to all"),
    "a letter twice": ("shares", lambda c, m: [*m, m[0]], "client 1 wrote to .0, 0, 2"),
    "a letter to itself": (
        "shares", lambda c, m: [*m, m[0]._replace(receiver=1)], "client 1 wrote to .0, 1, 2"),
    "a letter to nobody": ("shares", one_letter(changed("receiver", 77)), "client 1 wrote to .2"),
    "a letter to None": (
        "shares", one_letter(changed("receiver", None)), "receiver must be an integer"),
    "a letter of 3 bytes": (
        "shares", one_letter(changed("text", b"abc")), "letter to 0 has 3 bytes, not 48"),
    "an empty letter": ("shares", one_letter(changed("text", b"")), "has 0 bytes, not 48"),
    "no marks": ("shares", one_letter(changed("marks", b"")), "marks must be 32 bytes"),
    "shares that are none": ("opened", changed("answered", None), "answered must be client -> "),
    "a name for a client": (
        "opened", changed("answered", lambda s: {str(k): v for k, v in s.items()}), "client -> "),
    "a share less": (
        "opened", changed("answered", lambda s: dict(list(s.items())[1:])), "other shares than"),
    "a share more": (
        "opened", changed("answered", lambda s: s | {9: s[0]}), "other shares than"),
    "a short share": ("opened", share_of(0, lambda i: (i, b"x")), "other shares than"),
    "a share without a place": ("opened", share_of(0, b"x" * 16), "client -> "),
    "a share in another place": ("opened", share_of(0, lambda i: (i + 1, bytes(16))), "other sh"),
    "a false share": ("opened", share_of(0, lambda i: (i, bytes(16))), "client 1's is a wrong one"),
    "a false share of a key": (
        "opened", share_of(4, lambda i: (i, bytes(16)), "gone"), "client 4's key don't fit what"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refused_by_name_round_and_stage_and_the_others_go_on(name):
    stage, change, words = FAULTS[name]
    s = with_corrupt(5, 3, {1: (stage, change)}, dropped={"masked": [4]})
    (refused,) = s.refused
    assert (refused.client, refused.round, refused.stage) == (1, 0, stage)
    with pytest.raises(Refused, match=words):
        raise refused
    assert "round 0" in str(refused) and "client 1" in str(refused) and stage in str(refused)
    gone = [1, 4] if stage in ("keys", "shares", "masked") else [4]
    assert s.answered == [k for k in range(5) if k not in gone]
    assert s.total.tolist() == plain_sum(residues(5)[s.answered])


@pytest.mark.parametrize("field", ["letter", "mask"])
@pytest.mark.parametrize("point", [*LOW, *NOT_REDUCED], ids=lambda b: b.hex()[:6] + b.hex()[-2:])
def test_no_point_of_low_order_and_no_second_form_of_a_key_gets_in(field, point):
    s = with_corrupt(4, 3, {2: ("keys", changed(field, point))})
    (refused,) = s.refused
    assert (refused.client, refused.stage) == (2, "keys")
    assert "client 2's keys: one is no X25519 key, but of low order or not reduced" in str(refused)
    assert s.answered == [0, 1, 3] and s.total.tolist() == plain_sum(residues(4)[[0, 1, 3]])
    clients, _ = secure.enroll(range(3), 0, 2)
    keys = [c.advertise() for c in clients.values()]
    keys[1] = changed(field, point)(clients[1], keys[1])
    with pytest.raises(Refused, match="client 1's keys: one is no X25519") as e:
        clients[0].share(keys)  # nor past a server that doesn't look
    assert e.value.client == 1


def test_a_key_is_any_point_of_large_order_on_the_curve_or_its_twist():
    keys = [prim.key_pair(prim.fresh(), "mask", 0, k)[1] for k in range(50)]
    assert all(map(prim.is_key, keys))
    assert not any(map(prim.is_key, [*LOW, *NOT_REDUCED, b"", bytes(31), keys[0] + b"0"]))


def test_without_the_others_to_reach_the_threshold_the_end_names_the_client():
    with pytest.raises(TooFew, match=r"2 answered.*'masked'.*Refused: .*client 1's vector") as e:
        with_corrupt(3, 3, {1: FAULTS["a short vector"][:2]})
    assert [r.client for r in e.value.refused] == [1]


def test_the_server_is_told_d_so_that_the_first_vector_can_be_the_short_one():
    rows = residues(4)
    clients, server = secure.enroll(range(4), 7, 3, d=6)
    letters = secure.exchange(clients, server)
    with pytest.raises(Refused, match="round 7, stage 'masked': client 0's vector has 5 numbers"):
        server.add(clients[0].mask(rows[0, :-1], letters[0]))
    for k in (1, 2, 3):
        server.add(clients[k].mask(rows[k], letters[k]))
    assert (server.sum - secure.unmask(clients, server)).tolist() == plain_sum(rows[1:])


# -- letters --------------------------------------------------------------------------------------


def sealed(change):
    """Client 1's letters to the given receivers, changed inside, well sealed."""

    def letters(client, sent):
        return [change(client, m) for m in sent]

    return letters


def spoilt(to):
    flip = lambda m: m._replace(text=bytes([m.text[0] ^ 1]) + m.text[1:])
    return lambda client, sent: [flip(m) if m.receiver in to else m for m in sent]


def other_shares(to):
    """Well sealed, but not what the marks say."""

    def change(client, sent):
        out = []
        for m in sent:
            way = client.round, client.number, m.receiver
            bound = prim.label("letter", *way, attempt=client._attempt)
            box = client._box(m.receiver, client.number, m.receiver)
            text = prim.seal(box, os.urandom(32), bound)
            out.append(m._replace(text=text) if m.receiver in to else m)
        return out

    return change


@pytest.mark.parametrize("bad", [spoilt, other_shares])
@pytest.mark.parametrize("gone", [[], [1]], ids=["it answers", "it falls silent"])
def test_a_bad_letter_costs_its_receiver_the_share_and_nobody_the_round(bad, gone):
    s = with_corrupt(7, 4, {1: ("shares", bad([0, 3]))}, dropped={"masked": gone})
    assert [(r.client, r.stage) for r in s.refused] == [(1, "masked")] * 2
    assert [str(r)[:8] for r in s.refused] == ["client 0", "client 3"]  # who says so
    assert all("the letter from 1" in str(r) for r in s.refused)
    assert s.answered == [k for k in range(7) if k not in gone]
    assert s.total.tolist() == plain_sum(residues(7)[s.answered])


@pytest.mark.parametrize("gone", [[], [1]], ids=["it answers", "it falls silent"])
def test_too_many_bad_letters_end_the_round_by_their_senders_name(gone):
    with pytest.raises(TooFew, match=r"[12] answered.*the letter from 1.*share of client 1's") as e:
        with_corrupt(5, 3, {1: ("shares", spoilt([0, 3, 4]))}, dropped={"masked": gone})
    assert {r.client for r in e.value.refused} == {1}


def test_letters_that_cannot_be_read_do_not_count_to_the_threshold():
    """A server could make them up, for clients that are not there."""
    clients, server = secure.enroll(range(5), 0, 4)
    letters = secure.exchange(clients, server)
    empty = [m._replace(text=b"") for m in letters[0]]
    with pytest.raises(Refused, match=r"only 3 .* not client 3, not client 4, the threshold is 4"):
        clients[0].mask(residues(1)[0], [*letters[0][:2], *empty[2:]])


def test_a_client_that_lacks_a_share_masks_all_the_same_and_opens_what_it_has():
    clients, server = secure.enroll(range(4), 0, 3, d=6)
    letters, rows = secure.exchange(clients, server), residues(4)
    letters[0][0] = letters[0][0]._replace(text=b"")
    for k in range(4):
        server.add(clients[k].mask(rows[k], letters[k]))
    votes = server.votes([clients[k].vote([0, 1, 2, 3]) for k in range(4)])
    opened = [clients[k].open(votes) for k in range(4)]
    assert opened[0].answered[1] == (1, b"") and opened[2].answered[1][1]
    assert server.total(opened).tolist() == plain_sum(rows)
    own = opened[0]._replace(answered=opened[0].answered | {0: (1, b"")})
    with pytest.raises(Refused, match="client 0 sent other shares"):  # its own it has
        server.masks([signed_again(clients[0], own), *opened[1:]])


def dealing(change):
    """Change a client's secrets between dealing and masking."""

    def act(client, letters):
        change(client)
        return letters

    return act


def another_seed(client):
    client._own_mask = os.urandom(16)


def test_who_deals_other_shares_than_it_masks_with_is_named():
    with pytest.raises(Refused, match=r"client 1's own mask don't fit the mark.*false") as e:
        with_corrupt(4, 3, {1: ("shares", dealing(another_seed))})
    assert (e.value.client, e.value.stage) == (1, "opened")


def test_who_advertises_another_key_than_it_deals_is_named():
    def before(client, keys):
        client._seed = os.urandom(16)
        return keys

    with pytest.raises(Refused, match=r"client 1's key don't fit the key.*false") as e:
        with_corrupt(4, 3, {1: ("keys", before)}, dropped={"masked": [1]})
    assert e.value.client == 1


def test_its_own_share_counts_only_where_the_others_are_too_few():
    """It has no mark; false, it must not spoil what the others can restore without it."""
    change = share_of(1, lambda i: (i, bytes(16)))
    s = with_corrupt(5, 3, {1: ("opened", change)})
    assert s.refused == [] and s.total.tolist() == plain_sum(residues(5))
    with pytest.raises(TooFew, match="client 1's own mask"):
        with_corrupt(3, 3, {1: ("opened", change)})


# -- a client against a server that forwards anything ---------------------------------------------


def keys_of(change):
    clients, _ = secure.enroll(range(3), 5, 2)
    keys = [c.advertise() for c in clients.values()]
    return lambda: clients[0].share(change(keys))


def letters_of(change):
    clients, server = secure.enroll(range(3), 5, 2)
    letters = secure.exchange(clients, server)
    return lambda: clients[0].mask(residues(1)[0], change(letters[0]))


def list_of(change):
    clients, server = secure.enroll(range(3), 5, 2)
    letters = secure.exchange(clients, server)
    for k, c in clients.items():
        server.add(c.mask(residues(3)[k], letters[k]))
    return lambda: clients[0].vote(change([0, 1, 2]))


def votes_of(change):
    clients, server = secure.enroll(range(3), 5, 2)
    letters = secure.exchange(clients, server)
    for k, c in clients.items():
        server.add(c.mask(residues(3)[k], letters[k]))
    votes = [c.vote([0, 1, 2]) for c in clients.values()]
    return lambda: clients[0].open(change(votes))


FORWARDED = [
    *[(act, lambda _, junk=junk: junk, None) for act in (keys_of, letters_of, list_of, votes_of)
      for junk in (None, 7, "abc", {1: 2})],
    *[(act, lambda m: [*m[:1], None, *m[2:]], None)
      for act in (keys_of, letters_of, list_of, votes_of)],
    *[(act, lambda m, f=field, v=value: [m[0]._replace(**{f: v}), *m[1:]], named)
      for act, field, value, named in (
          (keys_of, "mask", "A" * 32, 0), (keys_of, "round", None, 0),
          (keys_of, "client", -1, None),
          (keys_of, "signature", 5, 0), (keys_of, "letter", b"", 0),
          (letters_of, "text", None, 1), (letters_of, "text", b"x", 1),
          (letters_of, "text", bytes(48), 1), (letters_of, "marks", bytes(32), 1),
          (letters_of, "marks", b"", 1), (letters_of, "receiver", 2.0, 1),
          (letters_of, "sender", "1", None), (letters_of, "sender", 99, 99),
          (votes_of, "signature", b"", 0), (votes_of, "signature", None, 0),
          (votes_of, "round", 2**70, 0), (votes_of, "client", [], None))],
    *[(list_of, lambda m, new=new: new, None)
      for new in ([0, 1, 1, 2], [0, 1, 2.0], [0, [1]], [0, True], [], [0, -1], [0, np.nan])],
]  # fmt: skip


@pytest.mark.parametrize(("act", "change", "named"), FORWARDED)
def test_a_client_refuses_whatever_a_server_forwards(act, change, named):
    with pytest.raises(Refused, match=r"round 5") as e:
        act(change)()
    assert e.value.client == named and e.value.round == 5
    assert named is None or f"client {named}" in str(e.value) or f"from {named}" in str(e.value)


# -- settings -------------------------------------------------------------------------------------


def client_with(**kw):
    book = {k: prim.identity().public_key().public_bytes_raw() for k in range(3)}
    args = {"number": 0, "round": 0, "identity": prim.identity(), "directory": book, "threshold": 2}
    return lambda: secure.Client(**(args | kw))


def server_with(**kw):
    return lambda: secure.Server(**({"round": 0, "threshold": 2, "directory": {}, "d": 3} | kw))


SETTINGS = {
    "Client: threshold must be an integer >= 2, got nan": client_with(threshold=float("nan")),
    "Client: threshold must be an integer >= 2, got 1": client_with(threshold=1),  # a sum of one
    "Client: round must be an integer from 0": client_with(round=-1),
    "Client: number must be in the directory, got 7": client_with(number=7),
    "Client: directory must be client -> its identity key": client_with(directory={0: b"short"}),
    "Server: threshold must be an integer >= 2": server_with(threshold=None),
    "Server: round must be an integer from 0 to 2": server_with(round=2**64),
    "Server: d must be an integer >= 1, got 0": server_with(d=0),
    "Server: d must be an integer >= 1, got 2.5": server_with(d=2.5),
    "Server: directory must be client -> its": server_with(directory={"0": bytes(32)}),
    "enroll: numbers must be integers >= 0, none twice, got .1, 1.": lambda: secure.enroll(
        [1, 1], 0, 2),
    "enroll: numbers must be integers >= 0, none twice, got .0, 1.5.": lambda: secure.enroll(
        [0, 1.5], 0, 2),
    "enroll: numbers must be integers >= 0": lambda: secure.enroll([0, -1], 0, 2),
    "enroll: identities must be a signing key for each of .0, 1.": lambda: secure.enroll(
        range(2), 0, 2, {0: prim.identity()}),
    "Server: d must be": lambda: secure.enroll(range(2), 0, 2, d=True),
    r"rows must be a matrix \(K, d\), got \(3, 0\)": lambda: secure_sum(
        np.ones((3, 0), np.uint32)),
    "secure_sum: the row of client 1 can't be sent. FixedPoint: .* got nan": lambda: secure_sum(
        np.array([[0.5], [np.nan]]), code=FixedPoint(1.0, 2)),
    "dropped must be stage -> clients, got 1": lambda: secure_sum(residues(3), dropped={"keys": 1}),
    "round must be an integer from 0": lambda: secure_sum(residues(3), round=1.5),
    "encode: x must be real numbers, got dtype..complex128": lambda: FixedPoint(1.0, 2).encode(
        np.array([1j])),
    "encode: x must be real numbers, got dtype..<U1": lambda: FixedPoint(1.0, 2).encode(["1"]),
    "decode: total must be integers": lambda: FixedPoint(1.0, 2).decode(np.array([1.7])),
    "split: threshold must be an integer from 2 to n = 3, got 5": lambda: prim.split(
        bytes(16), 5, 3),
    "split: threshold must be an integer from 2 to n = 3, got 1": lambda: prim.split(
        bytes(16), 1, 3),
    "split: secret must be 16 bytes": lambda: prim.split(bytes(15), 2, 3),
    "combine: shares must be two or more": lambda: prim.combine([]),
    "combine: shares must be two": lambda: prim.combine([(1, bytes(16)), (1, bytes(16))]),
    "combine: shares must be": lambda: prim.combine([(1, bytes(16)), (2, bytes(8))]),
    "label: numbers must be integers from 0": lambda: prim.label("mask", -1),
    "label: numbers must be integers": lambda: prim.derive(b"s", "mask", 2**64),
    "label: purpose must be a word without": lambda: prim.label("a/b"),
    r"keystream: out must be \(3,\) uint32": lambda: prim.keystream(
        bytes(32), 3, np.empty(5, np.uint32)),
}  # fmt: skip


@pytest.mark.parametrize("message", SETTINGS)
def test_what_no_round_can_work_with_is_refused_at_once(message):
    with pytest.raises(ValueError, match=message) as e:
        SETTINGS[message]()
    assert "e.g." in str(e.value)


def test_numpy_s_integers_are_integers():
    rows, ids = residues(3), {np.int64(k): prim.identity() for k in range(3)}
    clients, server = secure.enroll(np.arange(3), np.int64(4), np.int32(2), ids, np.int64(6))
    letters = secure.exchange(clients, server)
    for k in clients:
        server.add(clients[k].mask(rows[k], letters[k]))
    assert (server.sum - secure.unmask(clients, server)).tolist() == plain_sum(rows)


def test_an_error_never_shows_a_secret():
    secret = b"a secret too long"
    with pytest.raises(ValueError) as e:
        prim.split(secret, 2, 3)
    assert "too long" not in str(e.value)


def test_server_s_stages_come_once_and_in_their_order():
    clients, server = secure.enroll(range(3), 5, 2, d=6)
    with pytest.raises(Refused, match="no letters came from client 0"):
        server.add(wire.Masked(0, 5, residues(1)[0], bytes(16), bytes(64)))
    for call in (server.answered, lambda: server.votes([]), lambda: server.masks([]),
                 lambda: server.route([])):  # fmt: skip
        with pytest.raises(Refused, match="over, or not yet there"):
            call()
    letters = secure.exchange(clients, server)
    with pytest.raises(Refused, match="'keys' is over"):
        server.keys([])
    with pytest.raises(Refused, match="'shares' is over"):
        server.route([])
    with pytest.raises(Refused, match="a second vector of client 0"):
        server.add_sum([0, 0], np.zeros(6, np.uint32))
    with pytest.raises(Refused, match=r"the sum of clients \[0\] is \(6,\) float64"):
        server.add_sum([0], np.zeros(6))
    for k in clients:  # nothing of all that has counted
        server.add(clients[k].mask(residues(3)[k], letters[k]))
    assert (server.sum - secure.unmask(clients, server)).tolist() == plain_sum(residues(3))


def test_a_refusal_survives_being_sent_to_another_process():
    e = pickle.loads(pickle.dumps(Refused("words", 3, 7, "keys")))
    assert (str(e), e.client, e.round, e.stage) == ("words", 3, 7, "keys")


def test_a_weight_that_is_no_number_is_refused_by_name():
    from fedlearn.transform import Context, chain

    torch = pytest.importorskip("torch")
    ctx = Context(0, 0, np.arange(3), np.arange(3))
    for n in (float("nan"), float("inf"), 1.5):
        with pytest.raises(ValueError, match="secure_mean: n_k must be a whole number >= 1"):
            chain(*secure_mean(1.0, 9)).encode(
                torch.zeros(3, 2), torch.tensor([1.0, n, 1.0]), {}, ctx
            )


# -- any field of any message ---------------------------------------------------------------------


JUNK = [None, -1, 0, 1, 3, 2**64 - 1, 2**64, True, 1.0, float("nan"), "", "text", [], {}, (),
        b"", bytes(16), bytes(31), bytes(32), bytes(33), bytes(64), *LOW[:3], *NOT_REDUCED,
        {0: None}, {0: (1, bytes(16))}, {"0": (1, bytes(16))}, {0: (1,)}, {-1: (1, bytes(16))},
        np.zeros(6), np.zeros(5, np.uint32), np.zeros((6, 1), np.uint32), np.uint32(3)]  # fmt: skip


def bent(data, client, m, sign):
    """One field of one message is another: junk, or nearly right."""
    field = data.draw(st.sampled_from(m._fields))
    value = getattr(m, field)
    near = [flipped(value)] if isinstance(value, bytes) and value else []
    if isinstance(value, dict) and value:
        k = data.draw(st.sampled_from(sorted(value)))
        i, share = value[k]
        rest = {v: s for v, s in value.items() if v != k}
        near = [rest, {**rest, 9: (i, share)}, {**rest, k: (i + 1, share)}, {**rest, k: (i, b"")},
                {**rest, k: (i, flipped(share))}, {**rest, k: (i, share[:-1])},
                {**rest, k: share}, {**rest, k: (i, None)}]  # fmt: skip
    if isinstance(value, np.ndarray):  # another vector of this form, signed, is just another x
        near = [value[:-1], np.append(value, value), value.astype(np.int64), value[::-1, None]]
    new = m._replace(**{field: data.draw(st.sampled_from([*near, *JUNK]))})
    if sign and field in ("letter", "mask") and prim_key(getattr(new, field)):
        return new  # a key of another's, or nobody's, is just another x, too: as it came, unsigned
    return signed_again(client, new) if sign and field != "signature" else new


def prim_key(value):
    return isinstance(value, bytes) and prim.is_key(value)


def flipped(value: bytes) -> bytes:
    return bytes([value[0] ^ 1]) + value[1:]


def corruption(data, seen, stage):
    """What one client does to its messages of one stage; ``seen``: what was sent before."""
    sign = data.draw(st.booleans())

    def change(client, sent):
        several = isinstance(sent, list)
        own = list(sent) if several else [sent]
        seen.append(own[0])
        how = data.draw(st.sampled_from(["field"] * 6 + ["replay", "junk", "less", "more"]))
        j = data.draw(st.integers(0, len(own) - 1))
        if how == "field":
            own[j] = bent(data, client, own[j], sign)
        if how == "replay":
            own[j] = copy.copy(data.draw(st.sampled_from(seen)))
        if how == "junk":
            return data.draw(st.sampled_from(JUNK))
        if how == "less":
            own.pop(j)
        if how == "more":
            own.append(own[j])
        return own if several else own[0] if own else None

    return stage, change


class Overheard(Corrupt):
    """An honest client: the corrupt ones may send its messages again."""

    def __init__(self, client, seen):
        self._client, self._seen = client, seen

    def _sends(self, stage, message):
        self._seen.extend(message if isinstance(message, list) else [message])
        return message


def played(data, K, t, corrupt, silence=True):
    """A round with corrupt clients. Exact over who is in it, or ended by a corrupt one's name."""
    rows, seen, real = residues(K), [], rounds.enroll
    stages = st.sampled_from(secure.STAGES)
    how = {k: corruption(data, seen, data.draw(stages)) for k in corrupt}
    honest = [k for k in range(K) if k not in corrupt]
    silent = data.draw(st.sampled_from([*honest, None, None])) if silence else None
    dropped = {} if silent is None else {data.draw(stages): [silent]}
    yesterday, server = real(range(K), 0, t)
    seen += [c.advertise() for c in yesterday.values()]  # another attempt, to be replayed

    def enroll(*args, **kw):
        clients, server = real(*args, **kw)
        honest = {k: Overheard(c, seen) for k, c in clients.items()}
        return honest | {k: Corrupt(clients[k], *how[k]) for k in corrupt}, server

    named = lambda e: e.client in corrupt or any(f"client {k}" in str(e) for k in corrupt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "enroll", enroll)
        try:
            s = secure_sum(rows, threshold=t, dropped=dropped)
        except TooFew as e:
            assert e.refused and all(map(named, e.refused))
            assert all(r.client in {*corrupt, None} for r in e.refused)
        except Refused as e:
            assert e.client in corrupt
        else:
            assert s.total.tolist() == plain_sum(rows[s.answered])
            early = [k for stage in secure.STAGES[:3] for k in dropped.get(stage, ())]
            assert {k for k in range(K) if k not in corrupt and k not in early} <= set(s.answered)
            assert all(map(named, s.refused))
            assert all(r.client in {*corrupt, None} for r in s.refused)  # no honest one is blamed
            left_out = set(range(K)) - set(s.answered) - set(early)
            assert left_out <= {k for k in corrupt for r in s.refused if f"client {k}" in str(r)}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_one_client_sends_the_sum_is_exact_or_the_end_has_its_name(data):
    played(data, 5, 3, [data.draw(st.integers(0, 4))])


@settings(max_examples=75, deadline=None)
@given(data=st.data())
def test_nor_do_two_get_further(data):
    two = data.draw(st.lists(st.integers(0, 6), min_size=2, max_size=2, unique=True))
    played(data, 7, 4, two)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_at_the_edge_of_the_threshold_too(data):
    played(data, 3, 3, [data.draw(st.integers(0, 2))], silence=False)
