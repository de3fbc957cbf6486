"""Split columns: split is joint, the alignment finds whom it should, the attacks bite."""

from __future__ import annotations

import copy
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import r2_score, roc_auc_score
from torch import nn

from fedlearn.vertical import (
    Blinded,
    align,
    columns_from_scores,
    direction,
    randomised_response,
    residual_noise,
    rows_given_away,
    split_logistic,
    split_network,
)
from fedlearn.vertical.alignment import point

WEAK = ("texture", "smoothness", "symmetry", "fractal")


def hospital(seed: int = 0, n: int = 300):
    """The clinic's 12 columns, the laboratory's 18, the diagnosis; 300 patients and 171 others."""
    d = load_breast_cancer()
    clinic = np.array([any(w in name for w in WEAK) for name in d.feature_names])
    order = np.random.default_rng(seed).permutation(len(d.target))
    test, train = order[:171], order[171:]
    x = torch.from_numpy((d.data - d.data[train].mean(0)) / d.data[train].std(0))
    y = torch.from_numpy(1.0 - d.target)
    return x[:, clinic], x[:, ~clinic], y, train[:n], test


def joint(x, y, lr: float, steps: int, l2: float):
    """One table, one owner: autograd on the whole objective."""
    w = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)
    b = torch.zeros((), dtype=x.dtype, requires_grad=True)
    opt = torch.optim.SGD([{"params": [w], "weight_decay": l2}, {"params": [b]}], lr=lr)
    for _ in range(steps):
        opt.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(x @ w + b, y).backward()
        opt.step()
    return w.detach(), b.detach()


@pytest.mark.parametrize("seed", range(5))
def test_split_logistic_regression_is_the_joint_one(seed):
    clinic, lab, y, train, test = hospital(seed)
    *_, last = split_logistic(clinic[train], lab[train], y[train], lr=0.5, steps=300, l2=1e-3)
    w, b = joint(torch.cat([clinic, lab], 1)[train], y[train], 0.5, 300, 1e-3)
    halves = torch.cat([last.theta["label"], last.theta["other"]])
    assert (halves - w).abs().max() < 1e-13
    assert abs(last.theta["top"] - b) < 1e-13
    assert last.sent == 2 * 300 * 8  # u and r, 300 float64 each
    z = clinic[test] @ last.theta["label"] + lab[test] @ last.theta["other"] + last.theta["top"]
    assert ((z > 0) == (y[test] > 0)).double().mean() > 0.94


def test_split_logistic_regression_goes_where_another_library_goes():
    clinic, lab, y, train, _ = hospital()
    *_, last = split_logistic(clinic[train], lab[train], y[train], lr=1.0, steps=6000, l2=0.05)
    x = torch.cat([clinic, lab], 1)[train].numpy()
    ours = torch.cat([last.theta["label"], last.theta["other"]]).numpy()
    theirs = LogisticRegression(C=1 / (0.05 * 300), tol=1e-10, max_iter=10_000).fit(x, y[train])
    np.testing.assert_allclose(ours, theirs.coef_[0], atol=1e-6)


def nets(seed: int):
    torch.manual_seed(seed)
    half = lambda n: nn.Sequential(nn.Linear(n, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    top = nn.Sequential(nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    return half(12), half(18), top


def test_a_split_network_is_the_joint_one_bit_for_bit():
    clinic, lab, y, train, _ = hospital()
    halves = nets(0)
    before = copy.deepcopy([m.state_dict() for m in halves])
    *_, last = split_network(*halves, clinic[train], lab[train], y[train], lr=0.5, steps=40)
    for m, old in zip(halves, before):  # ours are copies
        assert all(torch.equal(v, old[k]) for k, v in m.state_dict().items())
    fc, fl, g = halves
    opt = torch.optim.SGD([p for m in halves for p in m.parameters()], lr=0.5)
    for _ in range(40):
        opt.zero_grad()
        z = g(torch.cat([fc(clinic[train]), fl(lab[train])], 1))[:, 0]
        nn.functional.binary_cross_entropy_with_logits(z, y[train]).backward()
        opt.step()
    for name, m in zip(("label", "other", "top"), halves):
        want = nn.utils.parameters_to_vector(m.parameters()).detach()
        assert torch.equal(last.theta[name], want), name


# -- alignment ------------------------------------------------------------------------------------

ids = st.lists(st.text(max_size=6), unique=True, max_size=8)


@settings(max_examples=30, deadline=None)
@given(ids, ids)
def test_alignment_finds_exactly_the_shared(ours, theirs):
    found = align(ours, theirs)
    a, b = [ours[i] for i in found.rows_a], [theirs[i] for i in found.rows_b]
    assert a == b == [i for i in ours if i in theirs]
    assert found.sent == 64 * (len(ours) + len(theirs))


def test_a_hundred_ids_are_found_among_others():
    ours, theirs = [f"p{i}" for i in range(150)], [f"p{i}" for i in range(249, 49, -1)]
    found = align(ours, theirs)
    assert found.rows_a.tolist() == list(range(50, 150))
    assert [theirs[j] for j in found.rows_b] == ours[50:]


def on_the_curve(u: int) -> bool:
    """v² = u³ + A u² + u has a root mod p, by Euler's criterion: a form of its own."""
    p = 2**255 - 19
    return pow((u * u % p * u + 486662 * u * u + u) % p, (p - 1) // 2, p) in (0, 1)


def test_points_lie_on_the_curve_and_never_use_the_bit_that_is_ignored():
    us = [int.from_bytes(point(f"patient {i}"), "little") for i in range(200)]
    assert all(map(on_the_curve, us)) and max(us) < 2**255 - 19 and len(set(us)) == 200
    plain = [
        int.from_bytes(hashlib.sha256(b"%d" % i).digest(), "little") % 2**255 for i in range(200)
    ]
    assert 60 < sum(map(on_the_curve, plain)) < 140, "a plain hash lands on the twist half the time"


def test_blinded_points_can_not_be_guessed_and_plain_hashes_can():
    secret, guesses = (
        [f"patient {i:03d}" for i in range(20)],
        [f"patient {i:03d}" for i in range(99)],
    )
    hashed = {hashlib.sha256(i.encode()).digest() for i in secret}
    assert sum(hashlib.sha256(g.encode()).digest() in hashed for g in guesses) == 20
    sent = set(Blinded(secret).first)
    assert not sent & {point(g) for g in guesses}
    assert not sent & set(Blinded(guesses).first), "a secret of one's own is not the other's"
    assert not sent & set(Blinded(secret).first), "fresh keys a run"


def test_the_order_sent_is_not_the_order_held():
    names = [f"p{i:03d}" for i in range(50)]
    assert Blinded(names).order != list(range(50)) and sorted(Blinded(names).order) == list(
        range(50)
    )


LOW = [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18]  # of low order, two of them not canonical


@pytest.mark.parametrize("u", LOW)
def test_points_of_low_order_are_refused(u):
    with pytest.raises(ValueError, match="align: a point must not be of low order"):
        Blinded(["ann"]).again([u.to_bytes(32, "little")])


@pytest.mark.parametrize("bad", [b"short", "text", b"x" * 33, None])
def test_what_is_no_point_is_refused(bad):
    with pytest.raises(ValueError, match="align: a point must be 32 bytes"):
        Blinded(["ann"]).again([bad])


def test_ids_are_text_and_stand_once():
    with pytest.raises(ValueError, match=r"align: ids must be each there once, got \['a'\]"):
        align(["a", "b", "a"], ["a"])
    with pytest.raises(ValueError, match="align: ids must be text"):
        align([1, 2], ["a"])
    nobody = align([], ["a"])
    assert len(nobody.rows_a) == len(nobody.rows_b) == 0


# -- what leaks -----------------------------------------------------------------------------------


def test_the_residual_is_the_diagnosis_with_a_sign():
    clinic, lab, y, train, test = hospital()
    rounds = list(split_logistic(clinic[train], lab[train], y[train], lr=0.5, steps=300, l2=1e-3))
    assert roc_auc_score(y[train], -rounds[0].down) == 1.0
    assert torch.equal((rounds[-1].down <= 0).double(), y[train]), "at every step"
    mine = rows_given_away(lab[test], rounds[-1].theta["other"])
    assert roc_auc_score(y[test], mine) > 0.97, "the half alone, without a word from the clinic"


def test_the_gradient_of_a_network_gives_the_label_too():
    clinic, lab, y, train, _ = hospital()
    first = next(split_network(*nets(0), clinic[train], lab[train], y[train], lr=0.5, steps=9))
    auc = roc_auc_score(y[train], direction(first.down))
    assert max(auc, 1 - auc) > 0.98


def test_scores_of_many_steps_give_the_columns():
    clinic, lab, y, train, _ = hospital()
    rounds = list(split_logistic(clinic[train], lab[train], y[train], lr=0.5, steps=300, l2=1e-3))
    seen, known = torch.stack([r.up for r in rounds], 1), np.arange(20)
    stolen = columns_from_scores(seen, known, lab[train][:20])
    assert r2_score(lab[train][20:], stolen[20:]) > 0.999
    few = columns_from_scores(seen[:, :3], known, lab[train][:20])
    assert r2_score(lab[train][20:], few[20:]) < 0.9, "three steps span three directions"


def test_noise_hides_the_residual_but_not_the_half():
    clinic, lab, y, train, _ = hospital()
    noisy = split_logistic(
        clinic[train], lab[train], y[train], lr=0.5, steps=300, protect=residual_noise(2.0)
    )
    rounds = list(noisy)
    assert roc_auc_score(y[train], -rounds[0].down) < 0.75
    assert not torch.equal(rounds[0].down, rounds[1].down)
    apart = rounds[1].down - rounds[0].down
    assert 2.0 * 2**0.5 * 0.9 < apart.std() < 2.0 * 2**0.5 * 1.1, "a draw of its own a step"
    assert roc_auc_score(y[train], rows_given_away(lab[train], rounds[-1].theta["other"])) > 0.95


def test_two_strengths_of_noise_give_nothing_away_by_their_difference():
    r = torch.linspace(-1, 1, 50)
    weak, strong = residual_noise(1.0, seed=3)(r, 7), residual_noise(2.0, seed=3)(r, 7)
    assert (2 * weak - strong - r).abs().max() > 1, (
        "the same draw would cancel: 2 (r + z) - (r + 2z)"
    )
    assert torch.equal(weak, residual_noise(1.0, seed=3)(r, 7))
    assert residual_noise(1.0)(r[:, None].expand(50, 4), 0).std(0).min() > 0.5


def test_label_privacy_is_the_only_one_that_reaches_the_half():
    clinic, lab, y, train, _ = hospital()
    own = {}
    for epsilon in (8.0, 0.2):
        told = randomised_response(y[train], epsilon, seed=3)
        *_, last = split_logistic(clinic[train], lab[train], told, lr=0.5, steps=300, l2=1e-3)
        own[epsilon] = roc_auc_score(y[train], rows_given_away(lab[train], last.theta["other"]))
    assert own[8.0] > 0.98 and own[0.2] < 0.93


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
def test_labels_are_flipped_as_often_as_epsilon_says(epsilon):
    n = 200_000
    told = randomised_response(torch.ones(n), epsilon, seed=1)
    flips = float((told == 0).double().mean())
    want = 1 / (1 + np.exp(epsilon))
    assert abs(flips - want) < 5 * (want * (1 - want) / n) ** 0.5


# -- refused --------------------------------------------------------------------------------------

x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
ok = torch.tensor([0.0, 1, 0, 1, 1, 0])


@pytest.mark.parametrize(
    ("columns", "y", "settings", "rule"),
    [
        ((x, x[:5]), ok, {}, "two tables"),
        ((x, x), ok[:, None], {}, "two tables"),
        ((x[0], x), ok, {}, "two tables"),
        ((x[:0], x[:0]), ok[:0], {}, "two tables"),
        ((x, x * torch.nan), ok, {}, "x_other must be finite"),
        ((x.int(), x), ok, {}, "x_label must be finite floating-point"),
        ((x, x), ok + 1, {}, "y must be 0 or 1"),
        ((x, x), ok, {"lr": 0.0}, "lr must be"),
        ((x, x), ok, {"steps": 0}, "steps must be"),
    ],
)
def test_bad_input_is_refused_at_once_and_by_name(columns, y, settings, rule):
    given = {"lr": 0.5, "steps": 3, **settings}
    with pytest.raises(ValueError, match=f"split_logistic: .*{rule}"):
        split_logistic(*columns, y, **given)
    bottoms = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(4, 1)
    with pytest.raises(ValueError, match=f"split_network: .*{rule}"):
        split_network(*bottoms, *columns, y, **given)


def test_attacks_and_defences_refuse_by_name():
    with pytest.raises(ValueError, match="split_logistic: l2 must be"):
        split_logistic(x, x, ok, lr=0.5, steps=3, l2=-1.0)
    with pytest.raises(ValueError, match=r"split_network: top's output must be \(n, 1\)"):
        next(
            split_network(
                nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(4, 2), x, x, ok, lr=1.0, steps=1
            )
        )
    with pytest.raises(ValueError, match="direction: gradients must be"):
        direction(ok)
    with pytest.raises(ValueError, match="columns_from_scores: what is known must be"):
        columns_from_scores(x, np.arange(3), x[:2])
    with pytest.raises(ValueError, match="rows_given_away: columns and half must be"):
        rows_given_away(x, torch.zeros(3))
    with pytest.raises(ValueError, match="residual_noise: std must be"):
        residual_noise(-1.0)
    with pytest.raises(ValueError, match="randomised_response: epsilon must be"):
        randomised_response(ok, 0.0)
    with pytest.raises(ValueError, match="randomised_response: y must be"):
        randomised_response(ok * 2, 1.0)
