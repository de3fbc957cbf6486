"""Secure aggregation: exact against plain sums, the messages against a plain reimplementation,
what an eavesdropper sees, what is refused, and the stages in the federated loop."""

from __future__ import annotations

import hashlib
import hmac
import os
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import METHODS, Wire, problem

from fedlearn import Recipe, Simulated, algorithms, federate
from fedlearn import participation as who
from fedlearn.aggregate import mean
from fedlearn.asynchronous import asynchronous
from fedlearn.fleet import fleet
from fedlearn.privacy import FixedPoint, Refused, TooFew, secure_mean, secure_sum
from fedlearn.transform import Context, chain, clip

pytest.importorskip("cryptography", reason="needs fedlearn[privacy]")
pytest.importorskip("Crypto", reason="needs fedlearn[privacy]")

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from fedlearn.privacy import secure_aggregation as secure
from fedlearn.privacy.secure_aggregation import messages
from fedlearn.privacy.secure_aggregation import primitives as prim

MOD = 2**32


def residues(K: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, MOD, (K, d), dtype=np.uint32)


def plain_sum(rows: np.ndarray) -> np.ndarray:
    """In Python's own integers: no wrapping that the package could share."""
    return np.array([sum(map(int, column)) % MOD for column in rows.T], np.uint32)


# -- fixed point ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    K=st.integers(1, 40),
    bound=st.floats(1e-3, 1e3),
    spare=st.integers(0, 8),
    seed=st.integers(0, 2**31),
)
def test_a_decoded_sum_is_off_by_half_a_step_a_client(K, bound, spare, seed):
    most = FixedPoint(bound, K).bits
    code = FixedPoint(bound, K, max(0, most - spare))
    x = np.random.default_rng(seed).uniform(-bound, bound, (K, 9))
    x[:, 0], x[:, 1] = bound, -bound  # the largest sums there can be
    total = np.zeros(9, np.uint32)
    for row in x:
        total += code.encode(row)
    off = np.abs(code.decode(total) - x.sum(0)).max()
    assert off <= K * 2.0 ** -(code.bits + 1) * (1 + 1e-9)


@given(bound=st.floats(1e-2, 1e4), K=st.integers(1, 1000))
def test_the_most_bits_that_fit_are_taken_and_named(bound, K):
    bits = FixedPoint(bound, K).bits
    assert K * bound * 2.0**bits <= 2**31 and K * (bound * 2.0 ** (bits + 1) + 1) >= 2**31
    with pytest.raises(ValueError, match=f"an integer from 0 to {bits}, .* got {bits + 1}"):
        FixedPoint(bound, K, bits + 1)


def test_a_weight_counts_as_so_many_clients():
    code = FixedPoint(2.0, 100, bits=10)
    assert code.decode(code.encode([1.5, -2.0], times=7)).tolist() == [10.5, -14.0]


# -- primitives -----------------------------------------------------------------------------------


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 for 32 bytes, with the standard library."""
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def info(purpose: str, *numbers: int, attempt: bytes = b"") -> bytes:
    counted = b"".join(n.to_bytes(8, "big") for n in (len(numbers), *numbers))
    return b"fedlearn/%s/" % purpose.encode() + counted + attempt


def attempt_of(cohort) -> bytes:
    texts = (info("keys", m.round, k) + m.letter + m.mask for k, m in sorted(cohort.items()))
    return hashlib.sha256(b"".join(texts)).digest()


def stream(key: bytes, d: int) -> np.ndarray:
    out = Cipher(ChaCha20(key, bytes(16)), None).encryptor().update(bytes(4 * d))
    return np.array(struct.unpack(f"<{d}I", out), np.uint32)


def test_keys_are_hkdf_and_masks_chacha20():
    assert prim.derive(b"secret", "pair", 7, 1, 2) == hkdf(b"secret", info("pair", 7, 1, 2))
    bound = hkdf(b"secret", info("pair", 7, 1, 2, attempt=b"first"))
    assert prim.derive(b"secret", "pair", 7, 1, 2, attempt=b"first") == bound
    # RFC 8439, appendix A.1, test vector 1
    assert prim.keystream(bytes(32), 4).tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"


def test_labels_are_unambiguous():
    """However the same bytes are cut into numbers and attempt."""
    cuts = ((*range(n), (b"".join(k.to_bytes(8, "big") for k in range(n, 5)))) for n in range(6))
    labels = {prim.label("vote", *numbers, attempt=rest) for *numbers, rest in cuts}
    assert len(labels) == 6


def test_a_letter_opens_for_its_address_only():
    key = os.urandom(32)
    sealed = prim.seal(key, b"share", b"round 1")
    assert prim.unseal(key, sealed, b"round 1") == b"share"
    altered = bytes([sealed[0] ^ 1]) + sealed[1:]
    for k, text, bound in ((key, altered, b"round 1"), (key, sealed, b"round 2"),
                           (os.urandom(32), sealed, b"round 1"), (key, b"", b"")):  # fmt: skip
        with pytest.raises(ValueError, match="altered"):
            prim.unseal(k, text, bound)


def times(a: int, b: int) -> int:
    """In GF(2**128) modulo 1 + x + x² + x⁷ + x¹²⁸."""
    out = 0
    while b:
        out ^= a if b & 1 else 0
        a = (a << 1) ^ ((1 << 128 | 0b10000111) if a >> 127 else 0)
        b >>= 1
    return out


def inverse(a: int) -> int:
    out = 1
    for _ in range(127):  # a ** (2**128 - 2)
        a = times(a, a)
        out = times(out, a)
    return out


def lagrange(points: dict[int, int], x: int) -> int:
    """The polynomial through the points, at x."""
    out = 0
    for i, y in points.items():
        for j in points:
            if j != i:
                y = times(times(y, x ^ j), inverse(i ^ j))
        out ^= y
    return out


def number(b: bytes) -> int:
    return int.from_bytes(b, "big")


def test_any_threshold_of_shares_restores_the_secret():
    secret = os.urandom(16)
    shares = prim.split(secret, 3, 5)
    for i in range(3):
        some = shares[i : i + 3]
        assert prim.combine(some) == secret
        assert lagrange({k: number(s) for k, s in some}, 0) == number(secret)
    assert prim.combine(shares[:2]) != secret


def test_one_share_less_fits_every_secret():
    """For any other secret there is a last share that leads to it: t - 1 say nothing."""
    shares = prim.split(os.urandom(16), 4, 6)
    for _ in range(3):
        other = os.urandom(16)
        points = {0: number(other), **{k: number(s) for k, s in shares[:3]}}
        last = lagrange(points, 6).to_bytes(16, "big")
        assert prim.combine([*shares[:3], (6, last)]) == other


# -- the protocol: exact --------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(data=st.data(), K=st.integers(2, 8), d=st.integers(1, 40), round=st.integers(0, 2**40))
def test_the_sum_is_exact_whoever_drops_out_whenever(data, K, d, round):
    t = data.draw(st.integers(K // 2 + 1, K))
    stage = st.sampled_from([*secure.STAGES, "never", "never", "never"])
    leaves = [data.draw(stage) for _ in range(K)]
    gone = {s: [k for k in range(K) if leaves[k] == s] for s in secure.STAGES}
    rows, there = residues(K, d), set(range(K))
    expected = None
    for s in secure.STAGES:  # by hand: below t it ends; in the sum are those that sent y
        there -= set(gone[s])
        if len(there) < t:
            expected = (s, len(there))
            break
        if s == "masked":
            summed = sorted(there)
    if expected:
        with pytest.raises(TooFew, match="Nothing was opened") as e:
            secure_sum(rows, threshold=t, dropped=gone, round=round)
        assert (e.value.stage, e.value.answered, e.value.threshold) == (*expected, t)
    else:
        s = secure_sum(rows, threshold=t, dropped=gone, round=round)
        assert s.answered == summed
        assert np.array_equal(s.total, plain_sum(rows[summed]))


def test_numbers_come_out_to_half_a_step_a_client():
    x = np.random.default_rng(0).uniform(-1, 1, (10, 50))
    s = secure_sum(x, code=FixedPoint(1.0, 10, bits=12), dropped={"masked": [2, 5]})
    kept = np.delete(x, [2, 5], 0).sum(0)
    assert np.abs(s.total - kept).max() <= 8 * 2**-13


@pytest.fixture
def party():
    """Three clients after the exchange of keys and shares, threshold two."""
    clients, server = secure.enroll(range(3), round=5, threshold=2)
    return clients, server, secure.exchange(clients, server)


def masked(clients, server, letters, rows, only=None):
    out = {k: clients[k].mask(rows[k], letters[k]) for k in only or clients}
    for m in out.values():
        server.add(m)
    return out


def test_the_masked_vector_is_the_papers_formula(party):
    """Recomputed with cryptography alone, from the seeds and the public keys of the messages."""
    clients, server, letters = party
    rows, d = residues(3, 20), 20
    y = masked(clients, server, letters, rows)
    private, public, own = {}, {}, {}
    attempt = attempt_of(clients[0]._cohort)
    for u, c in clients.items():
        private[u] = X25519PrivateKey.from_private_bytes(hkdf(c._seed, info("mask", 5, u)))
        public[u] = clients[0]._cohort[u].mask
        own[u] = stream(hkdf(c._own_mask, info("own mask", 5, u, attempt=attempt)), d)
    for u in clients:
        expected = rows[u].astype(object) + own[u]
        for v in set(clients) - {u}:
            secret = private[u].exchange(X25519PublicKey.from_public_bytes(public[v]))
            name = info("pair", 5, min(u, v), max(u, v), attempt=attempt)
            mask = stream(hkdf(secret, name), d).astype(object)
            expected = expected + mask if v > u else expected - mask
        assert np.array_equal(y[u].y, (expected % MOD).astype(np.uint32))
    left = sum(m.y.astype(object) for m in y.values()) - sum(v.astype(object) for v in own.values())
    assert np.array_equal(left % MOD, sum(rows.astype(object)) % MOD)  # pairs' masks cancel exactly


def test_the_paper_s_bytes():
    """2 n keys and 5 n - 4 shares beside the vector: ours has the same terms, in its own sizes."""
    K, d = 6, 1000
    s = secure_sum(residues(K, d))
    up = sum(s.up.values())
    keys = 4 + 4 + 32 + 32 + 64
    letters = (K - 1) * (4 + 4 + 4 + 32 + 16 + 2 * 16)  # two shares sealed, and their marks
    opened = 4 + 4 + K * (4 + 4 + 16) + 64
    assert (up == keys + letters + (8 + 4 * d + 16 + 64) + (4 + 4 + 64) + opened).all()
    down = sum(s.down.values())
    assert (down == K * keys + letters + 4 * K + K * 72).all()


# -- what the server sees -------------------------------------------------------------------------


def test_one_masked_vector_looks_uniform():
    """A count finds gross errors only; that nobody sees a difference is ChaCha20's part.

    Chi-square over the bytes of what hides a constant. 255 degrees of freedom: the statistic is
    beyond 420 with probability 4e-10, so a false alarm comes once in two billion runs."""
    seen = secure_sum(np.full((3, 50_000), 12345, np.uint32)).seen
    for y in seen.values():
        counts = np.bincount(y.view(np.uint8), minlength=256)
        expected = counts.sum() / 256
        assert ((counts - expected) ** 2 / expected).sum() < 420
    plain = np.bincount(np.full(50_000, 12345, np.uint32).view(np.uint8), minlength=256)
    assert ((plain - expected) ** 2 / expected).sum() > 1e6  # the test sees what isn't uniform


def test_it_is_uncorrelated_with_the_plain_one_and_never_the_same():
    code, d = FixedPoint(1.0, 3), 40_000
    x = np.random.default_rng(0).uniform(-1, 1, (3, d))
    one, two = secure_sum(x, code=code), secure_sum(x, code=code)
    for k in range(3):
        hidden = one.seen[k].view(np.int32).astype(float)
        assert abs(np.corrcoef(hidden, x[k])[0, 1]) < 6 / np.sqrt(d)
        assert (one.seen[k] != two.seen[k]).mean() > 0.999
    assert np.array_equal(one.total, two.total)


def test_why_there_is_a_second_mask(party):
    """Client 2 is late. Its pairs' masks have been opened; its own mask still hides its vector."""
    clients, server, letters = party
    rows = np.full((3, 2000), 7, np.uint32)
    masked(clients, server, letters, rows, only=[0, 1])
    late = clients[2].mask(rows[2], letters[2])
    assert np.array_equal(server.sum - secure.unmask(clients_but(clients, 2), server),
                          plain_sum(rows[:2]))  # fmt: skip
    with pytest.raises(Refused, match="too late"):
        server.add(late)
    pairs = np.zeros(2000, np.uint32)
    for v in (0, 1):
        messages.add(pairs, [(clients[2]._pair(v), messages.sign(2, v))])
    without_pairs = late.y - pairs  # all that a curious server can take off
    assert len(np.unique(without_pairs)) > 1990
    name = info("own mask", 5, 2, attempt=attempt_of(clients[2]._cohort))
    own = stream(hkdf(clients[2]._own_mask, name), 2000)
    assert np.array_equal(without_pairs - own, rows[2])  # the one thing that it lacks


def clients_but(clients, gone):
    return {k: c for k, c in clients.items() if k != gone}


# -- below the threshold nothing is opened --------------------------------------------------------


@pytest.mark.parametrize("stage", secure.STAGES)
def test_below_the_threshold_no_secret_is_put_together(monkeypatch, stage):
    def never(shares):
        raise AssertionError("a secret was opened")

    monkeypatch.setattr(prim, "combine", never)
    with pytest.raises(
        TooFew, match=r"3 answered.*threshold is 4.*Nothing was opened.*theta stays.*new updates"
    ):
        secure_sum(residues(6, 5), threshold=4, dropped={stage: [0, 2, 4]})


def test_a_client_opens_nothing_below_the_threshold(party):
    clients, server, letters = party
    masked(clients, server, letters, residues(3, 4))
    with pytest.raises(Refused, match="only 1 answered, the threshold is 2"):
        clients[0].vote([0])
    votes = [clients[k].vote([1, 2]) for k in (1, 2)]
    with pytest.raises(Refused, match="only 1 signed the list"):
        clients[1].open(votes[:1])


def test_two_lists_open_nothing():
    """A server that tells half the clients that 3 answered and half that it didn't gets neither."""
    clients, server = secure.enroll(range(4), round=0, threshold=3)
    letters = secure.exchange(clients, server)
    masked(clients, server, letters, residues(4, 4))
    with_3 = [clients[k].vote([0, 1, 2, 3]) for k in (0, 3)]
    without = [clients[k].vote([0, 1, 2]) for k in (1, 2)]
    for k, votes in ((0, with_3), (1, without)):
        with pytest.raises(Refused, match="only 2 signed the list"):
            clients[k].open(votes)


def test_a_vote_for_one_list_does_not_count_for_another():
    clients, server = secure.enroll(range(4), round=0, threshold=3)
    letters = secure.exchange(clients, server)
    masked(clients, server, letters, residues(4, 4))
    with_3 = [clients[k].vote([0, 1, 2, 3]) for k in (0, 3)]
    without = [clients[k].vote([0, 1, 2]) for k in (1, 2)]
    with pytest.raises(Refused, match="client 1's vote is not for this list"):
        clients[0].open(with_3 + without)
    with pytest.raises(Refused, match="client 0's vote is not for this list"):
        clients[1].open([*without, with_3[0]])


def test_votes_of_a_given_up_attempt_open_nothing():
    """Same round, same identities, K = 6, t = 4. Three attempts are given up after the votes: each
    gives four honest votes for another list. With those, shown one list to each pair of clients,
    the next attempt would give the shares to read the sum of 0, 1, 2 alone: fewer than t."""
    ids = {k: prim.identity() for k in range(6)}

    def attempt():
        clients, server = secure.enroll(range(6), 7, 4, ids)
        masked(clients, server, secure.exchange(clients, server), residues(6, 4))
        return clients

    lists = {v: [0, 1, 2, v] for v in (3, 4, 5)}
    stored = {}
    for v, shown in lists.items():
        clients = attempt()
        stored[v] = [clients[k].vote(shown) for k in shown]
        clients[0].open(stored[v])  # in their own attempt they are good
    clients = attempt()
    for k, client in clients.items():
        v = 3 + k % 3
        client.vote(lists[v])
        with pytest.raises(Refused, match="vote is not for this list and attempt"):
            client.open(stored[v])


def test_every_key_of_a_mask_is_bound_to_the_attempt(party):
    """One client shown another key of another: it is in another attempt, and nothing fits."""
    clients, server = secure.enroll(range(3), round=5, threshold=2)
    keys = [c.advertise() for c in clients.values()]
    other = keys[2]._replace(letter=keys[2].mask, mask=keys[2].letter)
    text = info("keys", 5, 2) + other.letter + other.mask
    other = other._replace(signature=clients[2]._identity.sign(text))  # client 2 helps the server
    letters = clients[0].share(keys), clients[1].share([keys[0], keys[1], other])
    with pytest.raises(Refused, match="the letter from 1"):
        clients[0].mask(residues(1, 4)[0], [letters[1][0]])
    a, b = clients[0], clients[1]
    assert a._pair(1) != b._pair(0)


def test_two_lists_are_why_half_is_not_enough():
    """With t = K / 2 both halves would have agreed: a client doesn't begin such a round."""
    clients, server = secure.enroll(range(4), round=0, threshold=2)
    with pytest.raises(Refused, match="two lists, and both secrets"):
        secure.exchange(clients, server)


def test_one_client_opens_one_kind_of_share_of_each(party):
    clients, server, letters = party
    masked(clients, server, letters, residues(3, 4), only=[0, 1])
    votes = [clients[k].vote([0, 1]) for k in (0, 1)]
    opened = clients[0].open(votes)
    assert set(opened.answered) == {0, 1} and set(opened.gone) == {2}
    with pytest.raises(Refused, match="each stage once"):
        clients[0].open(votes)
    with pytest.raises(Refused, match="each stage once"):
        clients[0].vote([0, 1, 2])


# -- an active attacker ---------------------------------------------------------------------------


def advertised(n=3, round=5):
    clients, server = secure.enroll(range(n), round=round, threshold=2)
    return clients, server, [c.advertise() for c in clients.values()]


def a_replayed_key():
    clients, server, keys = advertised()
    old = keys[1]._replace(round=4)
    return lambda: clients[0].share([keys[0], old, keys[2]])


def an_old_key_called_new():
    """The signature is over the round: last round's key does not pass for this one's."""
    ids = {k: prim.identity() for k in range(3)}
    before, _ = secure.enroll(range(3), 4, 2, ids)
    now, _ = secure.enroll(range(3), 5, 2, ids)
    keys = [now[0].advertise(), before[1].advertise()._replace(round=5), now[2].advertise()]
    return lambda: now[0].share(keys)


def a_key_of_the_server():
    clients, server, keys = advertised()
    own = prim.key_pair(prim.fresh(), "mask", 5, 1)[1]
    return lambda: clients[0].share([keys[0], keys[1]._replace(mask=own), keys[2]])


def a_key_signed_by_another():
    clients, server, keys = advertised()
    return lambda: clients[0].share([keys[0], keys[2]._replace(client=1), keys[2]])


def a_stranger():
    clients, server, keys = advertised()
    stranger, _ = secure.enroll([9], 5, 2)
    return lambda: server.keys([*keys, stranger[9].advertise()])


def a_key_twice():
    clients, server, keys = advertised()
    return lambda: clients[0].share([*keys, keys[1]])


def own_key_missing():
    clients, server, keys = advertised()
    return lambda: clients[0].share(keys[1:])


def resigned(client, keys, **changes):
    """What a client could send that doesn't keep to the protocol: badly made, well signed."""
    new = keys._replace(**changes)
    text = info("keys", new.round, new.client) + new.letter + new.mask
    return new._replace(signature=client._identity.sign(text))


def a_key_of(**changes):
    clients, server, keys = advertised()
    keys[1] = resigned(clients[1], keys[1], **changes)
    return lambda: clients[0].share(keys)


def one_key_for_both():
    clients, server, keys = advertised()
    keys[1] = resigned(clients[1], keys[1], letter=keys[1].mask)
    return lambda: clients[0].share(keys)


def a_mask_key_of_low_order():
    """Zero is a point of low order: whatever one multiplies it by, the product is zero."""
    clients, server, keys = advertised()
    keys[1] = resigned(clients[1], keys[1], mask=bytes(32))
    return lambda: server.keys(keys)


def a_letter_of_another_length():
    clients, server = secure.enroll(range(3), round=5, threshold=2)
    letters = secure.exchange(clients, server)
    bound = info("letter", 5, 1, 0, attempt=attempt_of(clients[0]._cohort))
    short = prim.seal(clients[1]._box(0, 1, 0), bytes(31), bound)
    wrong = [letters[0][0]._replace(text=short), letters[0][1]]
    return lambda: clients[0].mask(np.zeros(3, np.uint32), wrong)


def letters_of(tamper, to=0):
    clients, server = secure.enroll(range(3), round=5, threshold=2)
    letters = secure.exchange(clients, server)
    return lambda: clients[to].mask(np.zeros(3, np.uint32), tamper(letters))


def a_flipped_bit(letters):
    m = letters[0][0]
    return [m._replace(text=bytes([m.text[0] ^ 1]) + m.text[1:]), *letters[0][1:]]


def a_vector_twice():
    clients, server = secure.enroll(range(3), round=5, threshold=2)
    letters = secure.exchange(clients, server)
    y = clients[0].mask(np.zeros(3, np.uint32), letters[0])
    server.add(y)
    return lambda: server.add(y)


def a_second_mask():
    clients, server = secure.enroll(range(3), round=5, threshold=2)
    letters = secure.exchange(clients, server)
    clients[0].mask(np.zeros(3, np.uint32), letters[0])
    return lambda: clients[0].mask(np.ones(3, np.uint32), letters[0])


def server_with(change, numbers=3):
    """Client 1's vector, changed on its way."""
    clients, server = secure.enroll(range(3), round=5, threshold=2)
    letters = secure.exchange(clients, server)
    server.add(clients[0].mask(np.zeros(3, np.uint32), letters[0]))
    message = clients[1].mask(np.zeros(numbers, np.uint32), letters[1])
    return lambda: server.add(change(message))


def two_attempts():
    """The same round twice, with the same identities, both up to the votes."""
    ids = {k: prim.identity() for k in range(3)}
    out = []
    for _ in range(2):
        clients, server = secure.enroll(range(3), 5, 2, ids)
        masked(clients, server, secure.exchange(clients, server), residues(3, 4))
        out.append((clients, server))
    return out


def a_vector_of_another_attempt():
    """The same client, the same number of the round: only the signature tells."""
    ids = {k: prim.identity() for k in range(3)}
    both = [secure.enroll(range(3), 5, 2, ids) for _ in range(2)]
    (_, server), (clients, _) = both
    letters = [secure.exchange(*pair) for pair in both][1]
    return lambda: server.add(clients[2].mask(np.zeros(4, np.uint32), letters[2]))


def votes_for_the_server(change, stage="votes"):
    """What the server gets of three clients, and what of another attempt at the same round."""
    (before, old), (clients, server) = two_attempts()
    votes = [c.vote([0, 1, 2]) for c in clients.values()]
    stored = [c.vote([0, 1, 2]) for c in before.values()]
    if stage == "votes":
        return lambda: server.votes(change(votes, stored))
    server.votes(votes)
    opened = [c.open(votes) for c in clients.values()]
    replayed = [c.open(stored) for c in before.values()]
    return lambda: server.masks(change(opened, replayed))


def silent_voter():
    """Its vote got lost, its shares came."""
    _, (clients, server) = two_attempts()
    votes = [c.vote([0, 1, 2]) for c in clients.values()]
    server.votes(votes[:2])
    return lambda: server.masks([clients[k].open(votes[:2]) for k in (1, 2)])


def shares_for_the_server(change):
    return votes_for_the_server(change, "opened")


def another_share(m):
    i, _ = m.answered[0]
    return m._replace(answered={**m.answered, 0: (i, bytes(16))})


def another_place(m):
    return m._replace(answered={v: (i + 1, s) for v, (i, s) in m.answered.items()})


def one_less(m):
    return m._replace(answered={v: share for v, share in m.answered.items() if v != 1})


def both_kinds(m):
    return m._replace(gone=m.answered)


def a_letter_left_out():
    clients, server, keys = advertised()
    server.keys(keys)
    letters = [m for c in clients.values() for m in c.share(keys)]
    return lambda: server.route(letters[1:])


def a_forged_vote(change):
    clients, server = secure.enroll(range(3), round=5, threshold=2)
    letters = secure.exchange(clients, server)
    masked(clients, server, letters, residues(3, 4))
    votes = [clients[k].vote([0, 1, 2]) for k in range(3)]
    return lambda: clients[0].open([votes[0], change(votes[1])])


def a_list(answered):
    clients, server = secure.enroll(range(3), round=5, threshold=2)
    letters = secure.exchange(clients, server)
    masked(clients, server, letters, residues(3, 4))
    return lambda: clients[0].vote(answered)


def the_same_vote_twice():
    clients, server = secure.enroll(range(3), round=5, threshold=2)
    letters = secure.exchange(clients, server)
    masked(clients, server, letters, residues(3, 4))
    votes = [clients[k].vote([0, 1, 2]) for k in range(3)]
    return lambda: clients[0].open([votes[1], votes[1]])


def a_wrong_share():
    clients, server = secure.enroll(range(3), round=5, threshold=2)
    letters = secure.exchange(clients, server)
    masked(clients, server, letters, residues(3, 4), only=[0, 1])
    votes = [clients[k].vote([0, 1]) for k in (0, 1)]
    held = clients[0]._held[2]
    clients[0]._held[2] = os.urandom(16), held[1]
    opened = [clients[k].open(server.votes(votes)) for k in (0, 1)]
    return lambda: server.masks(opened)


REFUSED = {
    "a replayed key": (a_replayed_key, "client 1's keys are of round 4"),
    "an old key called new": (an_old_key_called_new, "not signed by client 1"),
    "a key of the server's": (a_key_of_the_server, "not signed by client 1"),
    "a key signed by another": (a_key_signed_by_another, "not signed by client 1"),
    "a stranger": (a_stranger, "not signed by client 9"),
    "a key twice": (a_key_twice, "comes twice"),
    "a shorter and a longer key": (
        lambda: a_key_of(letter=bytes(31), mask=bytes(33)), "not of 32 bytes each"),
    "one key for letters and masks": (one_key_for_both, "a client or a key comes twice"),
    "a letter's key of low order": (
        lambda: a_key_of(letter=bytes(32)), "client 1's keys: one is no X25519 key, but of low"),
    "a mask's key of low order": (
        a_mask_key_of_low_order, "client 1's keys: one is no X25519 key, but of low order"),
    "a letter of another length": (a_letter_of_another_length, "holds 31 bytes, not two shares"),
    "own key missing": (own_key_missing, "its own keys are missing"),
    "an altered letter": (lambda: letters_of(a_flipped_bit), "the letter from 1: unseal: altered"),
    "a letter to another": (
        lambda: letters_of(lambda m: [m[1][1], *m[0][1:]]), "a letter from 2 to 1"),
    "a letter relabelled": (
        lambda: letters_of(lambda m: [m[1][1]._replace(receiver=0), m[0][0]]), "altered"),
    "a letter of another round": (
        lambda: letters_of(lambda m: [m[0][0]._replace(round=4), m[0][1]]), "of round 4"),
    "a letter twice": (lambda: letters_of(lambda m: [*m[0], m[0][0]]), "a second letter"),
    "too few letters": (lambda: letters_of(lambda m: []), "only 1 shared"),
    "a letter left out": (a_letter_left_out, "not to all"),
    "a vector twice": (a_vector_twice, "a second vector of client 0"),
    "two vectors of one client": (a_second_mask, "each stage once, in order"),
    "a vector of another round": (
        lambda: server_with(lambda m: m._replace(round=4)), "vector is of round 4"),
    "a vector of another attempt": (
        a_vector_of_another_attempt, "client 2's vector is not signed by it for this attempt"),
    "an altered vector": (
        lambda: server_with(lambda m: m._replace(y=m.y + np.uint32(1))), "vector is not signed"),
    "a vector of floats": (
        lambda: server_with(lambda m: m._replace(y=m.y + 0.5)), r"not \(d,\) uint32"),
    "a stranger's vector": (
        lambda: server_with(lambda m: m._replace(client=9)), "no letters came"),
    "a longer vector": (lambda: server_with(lambda m: m, numbers=4), "4 numb"),
    "server: forged votes": (
        lambda: votes_for_the_server(lambda new, _: [secure.Vote(9, 99, b"")] * 4), "client 9's"),
    "server: a vote signed by another": (
        lambda: votes_for_the_server(lambda new, _: [new[0]._replace(client=1), new[2]]),
        "client 1's vote is not for this list"),
    "server: a vote of another round": (
        lambda: votes_for_the_server(lambda new, _: [new[0]._replace(round=4), new[2]]),
        "client 0's vote is not for this list"),
    "server: a vote of another attempt": (
        lambda: votes_for_the_server(lambda new, old: [old[0], *new[1:]]),
        "client 0's vote is not for this list and attempt"),
    "server: a vote twice": (
        lambda: votes_for_the_server(lambda new, _: [*new, new[1]]), "a second vote of client 1"),
    "server: shares of another round": (
        lambda: shares_for_the_server(lambda new, _: [new[0]._replace(round=4), *new[1:]]),
        "shares from client 0 of round 4"),
    "server: shares of another attempt": (
        lambda: shares_for_the_server(lambda new, old: [old[0], *new[1:]]),
        "the shares from client 0 are not signed by it for this attempt"),
    "server: a stranger's shares": (
        lambda: shares_for_the_server(lambda new, _: [new[0]._replace(client=9), *new[1:]]),
        "shares from client 9"),
    "server: shares twice": (
        lambda: shares_for_the_server(lambda new, _: [*new, new[1]]),
        "a second message of shares of client 1"),
    "server: an altered share": (
        lambda: shares_for_the_server(lambda new, _: [another_share(new[0]), *new[1:]]),
        "the shares from client 0 are not signed"),
    "server: a share in another's place": (
        lambda: shares_for_the_server(lambda new, _: [another_place(new[0]), *new[1:]]),
        "client 0 sent other shares than it was asked for"),
    "server: a share left out": (
        lambda: shares_for_the_server(lambda new, _: [one_less(new[0]), *new[1:]]),
        "client 0 sent other shares"),
    "server: both kinds of shares": (
        lambda: shares_for_the_server(lambda new, _: [both_kinds(new[0]), *new[1:]]),
        "client 0 sent other shares"),
    "server: shares of who didn't vote": (
        lambda: silent_voter(), "shares from client 2 of round 5: it hasn't voted here"),
    "a forged vote": (lambda: a_forged_vote(lambda v: v._replace(client=2)), "client 2's vote"),
    "a vote of another round": (lambda: a_forged_vote(lambda v: v._replace(round=4)), "vote is no"),
    "a stranger's vote": (lambda: a_forged_vote(lambda v: v._replace(client=7)), "client 7's"),
    "a vote counted twice": (lambda: the_same_vote_twice(), "only 1 signed the list"),
    "a list without me": (lambda: a_list([1, 2]), "can't be right"),
    "a list with a stranger": (lambda: a_list([0, 1, 9]), "can't be right"),
    "a wrong share": (a_wrong_share, "the shares of client 2's key don't fit"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    prepare, words = REFUSED[name]
    act = prepare()
    with pytest.raises(Refused, match=words):
        act()


def test_what_the_server_refused_can_be_left_out():
    clients, server = secure.enroll(range(4), round=5, threshold=3)
    rows = residues(4, 5)
    masked(clients, server, secure.exchange(clients, server), rows)
    votes = [c.vote([0, 1, 2, 3]) for c in clients.values()]
    forged = votes[3]._replace(signature=bytes(64))
    with pytest.raises(Refused, match="client 3's vote"):
        server.votes([*votes[:3], forged])
    votes = server.votes(votes[:3])
    opened = [clients[k].open(votes) for k in range(3)]
    with pytest.raises(Refused, match="client 0 sent other"):
        server.masks([both_kinds(opened[0]), *opened[1:]])
    assert np.array_equal(server.total(opened), plain_sum(rows))


@pytest.mark.parametrize("secret", [0, 1], ids=["key", "own mask"])
def test_a_wrong_share_is_named_and_the_others_open_the_sum(secret):
    """Whoever dealt it has sent the server its mark. It is signed by its holder: nobody else's."""
    clients, server = secure.enroll(range(5), round=5, threshold=3, d=9)
    letters, rows = secure.exchange(clients, server), residues(5, 9)
    masked(clients, server, letters, rows, only=[0, 1, 2, 3])
    owner = (4, 1)[secret]
    false = list(clients[0]._held[owner])
    false[secret] = os.urandom(16)
    clients[0]._held[owner] = tuple(false)
    assert np.array_equal(server.sum - secure.unmask(clients, server), plain_sum(rows[:4]))
    (refused,) = server.refused
    assert (refused.client, refused.round, refused.stage) == (0, 5, "opened")
    what = ("key", "own mask")[secret]
    assert f"the shares of client {owner}'s {what} don't fit what it dealt" in str(refused)


def test_masks_and_keys_differ_from_round_to_round():
    """The same identities, another round: no key, mask or masked vector comes again."""
    ids = {k: prim.identity() for k in range(2)}
    seen = []
    for t in (0, 1):
        clients, server = secure.enroll(range(2), t, 2, ids)
        letters = secure.exchange(clients, server)
        seen.append(clients[0].mask(np.zeros(1000, np.uint32), letters[0]).y)
    assert (seen[0] != seen[1]).mean() > 0.99


def test_a_letter_and_its_answer_have_different_keys(party):
    """The nonce is zero: no key may seal two letters."""
    clients, _, _ = party
    keys = {clients[u]._box(v, u, v) for u in clients for v in clients if u != v}
    assert len(keys) == 6
    assert clients[0]._box(1, 0, 1) == clients[1]._box(0, 0, 1)


def seventeen_bits(**changes):
    return lambda: FixedPoint(**{"bound": 8.0, "clients": 1437, **changes})


BAD = {
    "threshold must be at most the cohort's 4 clients, got 5": lambda: secure_sum(
        residues(4, 2), threshold=5),
    "threshold must be more than half of the cohort's 4 clients": lambda: secure_sum(
        residues(4, 2), threshold=2),
    "threshold must be an integer >= 2, got 2.5": lambda: secure_sum(residues(4, 2), threshold=2.5),
    "the cohort must be at least 2": lambda: secure_sum(residues(1, 2)),
    "dropped must be one of keys, shares": lambda: secure_sum(residues(3, 2), dropped={"la": [1]}),
    "dropped must be clients from 0 to 2, got 3": lambda: secure_sum(
        residues(3, 2), dropped={"masked": [3]}),
    "rows must be uint32 residues, or numbers with a code": lambda: secure_sum(np.ones((3, 2))),
    "rows must be a matrix": lambda: secure_sum(np.ones(3, np.uint32)),
    "no more than the code's 2 clients": lambda: secure_sum(
        np.ones((3, 2)), code=FixedPoint(1.0, 2)),
    r"within ±1.0, got 1.5 at position 1 \(1 of 2": lambda: FixedPoint(1.0, 3).encode([0.0, 1.5]),
    "got nan at position 0": lambda: FixedPoint(1.0, 3).encode([np.nan]),
    "got -inf at position 0": lambda: FixedPoint(1.0, 3).encode([-np.inf]),
    "bits must be an integer from 0 to 17, .* got 18": seventeen_bits(bits=18),
    "bits must be an integer from 0": seventeen_bits(bits=-1),
    "bound must be > 0": seventeen_bits(bound=0.0),
    "bound must be > 0 and finite": seventeen_bits(bound=np.inf),
    "clients must be an integer >= 1": seventeen_bits(clients=0),
    "don't with 0 bits either": seventeen_bits(bound=1e7),
    "times must be an integer from 1 to clients": lambda: FixedPoint(1.0, 3).encode([0.0], 4),
    r"Client.mask: x must be \(d,\) uint32, residues, got '\(3,\) float64'": lambda: secure.enroll(
        range(3), 5, 2)[0][0].mask(np.full(3, 0.9), []),
    r"Client.mask: x must be \(d,\) uint32, residues, got '\(1, 3\) uint32'": lambda: secure.enroll(
        range(3), 5, 2)[0][0].mask(residues(1, 3), []),
    "secure_mean: threshold must be an integer >= 2": lambda: secure_mean(1.0, 9, threshold=1),
    "FixedPoint: bound": lambda: secure_mean(-1.0, 9),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_requests_are_refused_in_words(message):
    with pytest.raises(ValueError, match=message) as e:
        BAD[message]()
    assert "e.g." in str(e.value)


# -- in the federated loop ------------------------------------------------------------------------


def stages(bound=4.0, total=240, **kw):
    return secure_mean(bound, total, **kw)


def went(pipeline, *, method="fedavg", rounds=4, cohort=5, place=Simulated, **kw):
    p = problem()
    task = p.closed_form
    chunk = {k: kw.pop(k) for k in ("chunk", "fleet") if k in kw}
    recipe = Recipe(METHODS[method](task), task.theta0, pipeline, batch=16, epochs=2, seed=3, **kw)
    clients = place(recipe, p.x, p.y, p.parts, **chunk)
    return list(federate(clients, rounds=rounds, cohort=cohort))


def end(*args, **kw):
    return went(*args, **kw)[-1].theta


def off(bits, rounds, K=5, n=1):
    """How far quantisation alone can move one number of a round's mean, times the rounds.

    n is the least that a cohort's clients hold together; local training on a model that is this
    far off may stretch it: by less than 4 here.
    """
    return 4 * rounds * K / n * 2.0 ** -(bits + 1)


@pytest.mark.parametrize("bits", [8, 12, 21])
def test_a_run_equals_the_mean_s_run_but_for_quantisation(bits):
    plain, hidden = end(chain(mean())), end(chain(*stages(bits=bits)))
    moved = (plain - hidden).abs().max()
    assert 0 < moved <= off(bits, 4, n=50)


def test_one_round_is_within_its_stated_bound():
    p = problem()
    for equal in (False, True):
        kw = {"rounds": 1, "equal": equal}
        code = FixedPoint(4.0, 240)
        n = 5 if equal else min(sum(len(p.parts[k]) for k in r.answered) for r in went(
            chain(mean()), **kw))  # fmt: skip
        moved = (end(chain(mean()), **kw) - end(chain(*stages()), **kw)).abs().max()
        assert moved <= 5 / n * 2.0 ** -(code.bits + 1) * (1 + 1e-9)


def test_dropouts_are_recovered():
    call = who.dropouts(who.uniform(7), 0.2)
    threshold = 4
    runs = [
        went(chain(*s), cohort=call, rounds=6) for s in ((mean(),), stages(threshold=threshold))
    ]
    lost = [len(r.called) - len(r.answered) for r in runs[0]]
    assert sum(lost) >= 4 and max(lost) <= 7 - threshold
    assert (runs[0][-1].theta - runs[1][-1].theta).abs().max() <= off(21, 6, 7, 20)


def test_chunks_and_the_wire_give_the_same_bits():
    base = end(chain(*stages()))
    assert torch.equal(base, end(chain(*stages()), chunk=2))
    assert torch.equal(base, end(chain(*stages()), chunk=1))
    assert (base - end(chain(*stages()), place=Wire)).abs().max() <= off(21, 4, n=50)


def test_the_order_of_the_rows_does_not_matter():
    pipeline, ctx = chain(*stages(total=9)), Context(0, 0, np.arange(4), np.array([2, 0, 3]))
    delta, n = torch.randn(3, 6, dtype=torch.float64), torch.tensor([1.0, 3.0, 2.0])
    rows, _ = pipeline.encode(delta, n, {}, ctx)
    back = torch.tensor([2, 0, 1])
    some = ctx._replace(answered=ctx.answered[back.numpy()])
    out = pipeline.combine({"delta": rows[back]}, n, some)
    assert torch.allclose(out, (n / 6).double() @ delta, atol=3 / 6 * 2.0**-20)


def test_the_server_sees_no_update():
    """What the loop hands on as deltas: the masked residues, 4 bytes a number, n_k beside them."""
    plain = went(chain(mean()), rounds=1)[0]
    hidden = went(chain(*stages()), rounds=1)[0]
    assert hidden.deltas.dtype == torch.int32
    assert hidden.deltas.shape[1] == plain.deltas.shape[1] + 1
    assert hidden.received == 4 * hidden.deltas.shape[1]
    for shown, true in zip(hidden.deltas[:, :-1], plain.deltas, strict=True):
        r = np.corrcoef(shown.double(), true)[0, 1]
        assert abs(r) < 6 / np.sqrt(len(true))


def test_clip_before_it_and_noise_behind_it():
    from fedlearn.transform import noise

    a = end(chain(clip(0.1), mean(), noise(0.01)))
    b = end(chain(clip(0.1), *stages(bound=0.1), noise(0.01)))
    assert 0 < (a - b).abs().max() <= off(26, 4, n=50)


def test_every_client_may_count_the_same():
    a, b = end(chain(mean()), equal=True), end(chain(*stages(total=5)), equal=True)
    assert 0 < (a - b).abs().max() <= off(26, 4, n=5)


def test_below_the_threshold_the_run_stops_and_says_so():
    call = who.dropouts(who.uniform(), 0.5)
    with pytest.raises(TooFew, match=r"threshold is 6. Nothing was opened.*theta stays"):
        went(chain(*stages()), cohort=call, rounds=20)
    nobody = who.dropouts(who.uniform(4), 1.0)
    with pytest.raises(TooFew, match="0 answered at stage 'masked'"):
        went(chain(*stages()), cohort=nobody)


def test_a_pipeline_serves_many_runs_and_survives_one_that_broke_off():
    pipeline = chain(*stages())
    first = end(pipeline)
    p, ctx = torch.ones(1, 45, dtype=torch.float64), Context(3, 0, np.arange(3), np.array([1]))
    pipeline.encode(p, torch.ones(1), {}, ctx)  # a round that nobody ends
    assert torch.equal(first, end(pipeline))
    pipeline.encode(p, torch.ones(1), {}, ctx)
    pipeline.encode(p, torch.ones(1), {}, ctx)  # the same client again: with fresh keys
    assert torch.equal(first, end(pipeline))


def foreign():
    ctx, n = Context(0, 0, np.arange(3), np.arange(3)), torch.ones(3)
    here, there = chain(*stages()), chain(*stages())
    rows, _ = there.encode(torch.ones(3, 2), n, {}, ctx)
    return here.combine({"delta": rows}, n / 3, ctx)


def incomplete():
    """One of those who are said to have answered masked somewhere else."""
    ctx, n = Context(0, 0, np.arange(3), np.arange(2)), torch.ones(2)
    pipeline = chain(*stages(threshold=2))
    rows, _ = pipeline.encode(torch.ones(2, 2), n, {}, ctx)
    return pipeline.combine({"delta": rows}, n / 3, ctx._replace(answered=np.arange(3)))


def a_second_time():
    """A round is opened once: its secrets are gone, and no other sum can be opened with them."""
    ctx, n = Context(0, 0, np.arange(3), np.arange(3)), torch.ones(3)
    pipeline = chain(*stages())
    rows, _ = pipeline.encode(torch.ones(3, 2), n, {}, ctx)
    pipeline.combine({"delta": rows}, n / 3, ctx)
    return pipeline.combine({"delta": rows}, n / 3, ctx)


@pytest.mark.parametrize("act", [foreign, incomplete, a_second_time])
def test_masks_of_another_process_are_not_taken_for_noise(act):
    with pytest.raises(Refused, match="keys to open the sum are not here; nothing was opened"):
        act()


def asynchronously():
    p = problem()
    task = p.closed_form
    recipe = Recipe(algorithms.fedavg(task, 0.1), task.theta0, chain(*stages()))
    clients = Simulated(recipe, p.x, p.y, p.parts, fleet=fleet(8))
    return list(asynchronous(clients, rounds=2, concurrency=4, buffer=2))


def wrapping(total=2**30):
    """Five clients with 2**30 examples: their number is 2**30 mod 2**32, once round unseen."""
    ctx, n = Context(0, 0, np.arange(5), np.arange(5)), torch.full((5,), float(total))
    pipeline = chain(*secure_mean(1.0, total, threshold=5))
    rows, _ = pipeline.encode(torch.eye(5, 1), n, {}, ctx)
    return pipeline.combine({"delta": rows}, n / n.sum(), ctx)


IN_THE_LOOP = {
    r"total must be below 2\*\*32 / 5: the n_k of 5 clients": wrapping,
    "total must be no less than the cohort's sum of n_k, .*2500000000": lambda: wrapping(5 * 10**8),
    "protects only 'delta', but this method also sends": lambda: went(
        chain(*stages()), method="scaffold"),
    "the cohort must be clients that are called once each": lambda: went(
        chain(*stages()), cohort=who.weighted(5, [30] * 8, replace=True)),
    "threshold must be at most the cohort's 5": lambda: went(chain(*stages(threshold=6))),
    "the cohort must be at least 2": lambda: went(chain(*stages()), cohort=1),
    "client . can't be sent. FixedPoint: every number must lie": lambda: went(
        chain(*stages(bound=1e-3))),
    "total must be no less than the cohort's sum of n_k": lambda: went(chain(*stages(total=100))),
    "client . alone holds 95": lambda: went(chain(*stages(total=90))),
    "an asynchronous run has no common round": asynchronously,
}  # fmt: skip


@pytest.mark.parametrize("message", IN_THE_LOOP)
def test_what_cannot_work_in_the_loop_is_refused(message):
    with pytest.raises(ValueError, match=message) as e:
        IN_THE_LOOP[message]()
    assert "e.g." in str(e.value) or "federate(" in str(e.value)


@pytest.mark.slow
def test_fifty_clients_with_the_2nn_s_parameters_ten_drop_out():
    rows = residues(50, 199_210)
    s = secure_sum(rows, dropped={"masked": range(10)})
    assert s.answered == list(range(10, 50))
    assert np.array_equal(s.total, rows[10:].astype(np.uint64).sum(0).astype(np.uint32))
