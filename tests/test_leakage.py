"""What a gradient or a model tells without a search: closed forms, brute force, scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from fedlearn import Recipe, Simulated, data, federate, partition
from fedlearn.algorithms import fedavg
from fedlearn.attacks import invert_linear, label_counts, membership, reveal_label
from fedlearn.model import from_module, mlp, softmax_regression, views

DIGITS = data.load("digits")


def slope(task, x, y, theta=None):
    theta = task.theta0 if theta is None else theta
    return task.grad(theta[None], x[None], y[None], torch.ones(1, len(x)))[0][0]


def layers(g, *dims):
    shapes = [s for i, o in itertools.pairwise(dims) for s in ((o, i), (o,))]
    return views(g, shapes)


@pytest.fixture(scope="module")
def trained():
    """An mlp after some rounds of FedAvg: test accuracy about 0.9."""
    task = mlp(64, 32, 10)
    recipe = Recipe(fedavg(task, lr=0.5), task.theta0)
    rng = np.random.default_rng(0)
    clients = Simulated(recipe, DIGITS.x, DIGITS.y, partition.iid(DIGITS.y, 10, rng))
    (*_, last) = federate(clients, rounds=60)
    return task, last.theta


# -- an input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: softmax_regression(64, 10), lambda: mlp(64, 10)])
def test_one_gradient_of_a_linear_layer_is_the_picture(make):
    """Error <= 1e-6 in float32."""
    task = make()
    for i in range(100):
        W, b = layers(slope(task, DIGITS.x[i : i + 1], DIGITS.y[i : i + 1]), 64, 10)
        assert (invert_linear(W, b) - DIGITS.x[i]).abs().max() <= 1e-6
        assert (invert_linear(W, b, rows=range(10)) - DIGITS.x[i]).abs().max() <= 1e-6
        assert torch.equal(invert_linear(W, b, rows=[3])[0], W[3] / b[3])


def test_whatever_stands_behind_the_layer(trained):
    """The first layer of three networks, one of them trained, gradients by two routes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # all five ReLUs of an unlucky start are dead: no gradient
        deep = nn.Sequential(
            nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 5), nn.ReLU(), nn.Linear(5, 10)
        )
    task, theta = trained
    for task_, theta_, units in ((task, theta, 32), (from_module(deep), None, 20)):
        for i in range(20):
            g = slope(task_, DIGITS.x[i : i + 1], DIGITS.y[i : i + 1], theta_)
            W, b = g[: 64 * units].view(units, 64), g[64 * units : 65 * units]
            assert (invert_linear(W, b) - DIGITS.x[i]).abs().max() <= 1e-5


def test_tiny_gradients_don_t_underflow():
    x, b = torch.rand(5), torch.tensor([1e-30, -2e-30])
    assert torch.allclose(invert_linear(b[:, None] * x, b), x, rtol=1e-5)


def test_a_batch_gives_the_mixture_that_the_formula_says():
    task, x, y = softmax_regression(64, 10), DIGITS.x[:4], DIGITS.y[:4]
    W, b = layers(slope(task, x, y), 64, 10)
    scores = torch.full((4, 10), 0.1, dtype=torch.float64)
    scores[range(4), y] -= 1  # dL_i / dz at theta = 0
    for k in range(10):
        weights = scores[:, k] / scores[:, k].sum()
        by_hand = (weights[:, None] * x.double()).sum(0)
        assert torch.allclose(invert_linear(W, b, rows=[k])[0].double(), by_hand, atol=1e-4)
    assert (invert_linear(W, b) - x).pow(2).mean(1).min() > 0.01, "no example comes out alone"


def test_a_relu_unit_that_is_active_for_one_example_gives_it_away():
    task, x, y = mlp(64, 200, 10, seed=1), DIGITS.x[:4], DIGITS.y[:4]
    W1, b1, *_ = layers(task.theta0, 64, 200, 10)
    active = x @ W1.T + b1 > 0  # (4, 200)
    alone = {i: k for k in range(200) for i in range(4) if active[:, k].sum() == 1 and active[i, k]}
    assert len(alone) >= 2
    gW, gb, *_ = layers(slope(task, x, y), 64, 200, 10)
    for i, k in alone.items():
        assert (invert_linear(gW, gb, rows=[k])[0] - x[i]).abs().max() < 1e-5


def test_bad_layers_are_refused_in_words():
    with pytest.raises(ValueError, match="invert_linear: every bias gradient is 0"):
        invert_linear(torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ValueError, match=r"a bias gradient of rows \[0, 1\] is 0"):
        invert_linear(torch.ones(3, 4), torch.tensor([0.0, 1.0, 1.0]), rows=[0, 1])
    with pytest.raises(ValueError, match=r"invert_linear: rows must be units 0..2"):
        invert_linear(torch.ones(3, 4), torch.ones(3), rows=[3])
    for W, b in ((torch.ones(4), torch.ones(4)), (torch.ones(3, 4), torch.ones(4)),
                 (torch.ones(3, 4), torch.ones(3, 1))):  # fmt: skip
        with pytest.raises(ValueError, match="invert_linear: wants weight_grad"):
            invert_linear(W, b)


# -- labels ---------------------------------------------------------------------------------------


def test_the_label_by_its_sign_on_a_hundred_untrained_networks():
    for i in range(100):
        task = mlp(64, 32, 10, seed=i)
        _, _, W, b = layers(slope(task, DIGITS.x[i : i + 1], DIGITS.y[i : i + 1]), 64, 32, 10)
        assert int((b < 0).sum()) == 1, "one negative bias gradient, the label's"
        assert reveal_label(b) == reveal_label(W) == DIGITS.y[i]


def test_the_label_without_biases_and_with_signed_activations():
    net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10, bias=False))
    task = from_module(net)
    for i in range(20):
        g = slope(task, DIGITS.x[i : i + 1], DIGITS.y[i : i + 1])
        assert reveal_label(g[-160:].view(10, 16)) == DIGITS.y[i]


def test_a_class_whose_probability_underflows_is_no_second_label():
    assert reveal_label(torch.tensor([0.0, -1.0, 1.0])) == 1


def test_no_label_from_a_batch_or_from_nothing():
    b = slope(softmax_regression(64, 10), DIGITS.x[:8], DIGITS.y[:8])[-10:]
    for grad in (b, torch.zeros(10), torch.zeros(10, 4)):
        with pytest.raises(ValueError, match="reveal_label: exactly one class must"):
            reveal_label(grad)
    for grad in (torch.zeros(()), torch.zeros(1), torch.zeros(2, 5), torch.zeros(3, 3, 3)):
        with pytest.raises(ValueError, match="reveal_label: grad must be of shape"):
            reveal_label(grad)


@pytest.mark.parametrize("batch", [1, 2, 7, 32, 300])
def test_counts_are_exact_at_zero(batch):
    task, rng = softmax_regression(64, 10), np.random.default_rng(batch)
    for _ in range(20):
        rows = rng.choice(len(DIGITS.y), batch, replace=False)
        y = DIGITS.y[rows]
        b = slope(task, DIGITS.x[rows], y)[-10:]
        assert torch.equal(label_counts(b, batch), y.bincount(minlength=10))


def test_counts_are_exact_wherever_the_mean_softmax_is_known(trained):
    task, theta = trained
    x, y = DIGITS.x[:64], DIGITS.y[:64]
    q = task.predict(theta, x).softmax(-1).mean(0)
    b = slope(task, x, y, theta)[-10:]
    assert torch.equal(label_counts(b, 64, q), y.bincount(minlength=10))
    by_label = torch.stack([task.predict(theta, x[y == c]).softmax(-1).mean(0) for c in range(10)])
    assert torch.equal(label_counts(b, 64, by_label), y.bincount(minlength=10))


def right(task, theta, expected, batch=32):
    """Share of the labels that the counts have right, mean of 20 batches of three labels each."""
    rng, hits = np.random.default_rng(0), []
    for _ in range(20):
        few = torch.from_numpy(rng.choice(10, 3, replace=False))
        mine = torch.isin(DIGITS.y, few).nonzero()[:, 0].numpy()
        rows = rng.choice(mine, batch, replace=False)
        b = slope(task, DIGITS.x[rows], DIGITS.y[rows], theta)[-10:]
        truth = DIGITS.y[rows].bincount(minlength=10)
        hits.append(float(torch.minimum(label_counts(b, batch, expected), truth).sum()) / batch)
    return np.mean(hits)


def test_an_estimate_is_nearly_right_untrained_and_worse_trained(trained):
    """Without any data of its own: 0.95 and more before training, much less behind it."""
    task, theta = trained
    before, after = right(task, task.theta0, None), right(task, theta, None)
    assert before > 0.95, before
    assert after < before - 0.2, (before, after)
    own = task.predict(task.theta0, DIGITS.x_test).softmax(-1).mean(0)
    assert right(task, task.theta0, own) >= before, "pictures of its own help"
    own = task.predict(theta, DIGITS.x_test).softmax(-1)
    rows = [own[DIGITS.y_test == c].mean(0) for c in range(10)]
    assert right(task, theta, torch.stack(rows)) > after + 0.1, "label by label even more so"


def test_the_rounding_is_the_nearest_of_all_counts():
    """Against all 35 ways to give 4 examples to 4 labels."""
    rng = np.random.default_rng(0)
    ways = [w for w in itertools.product(range(5), repeat=4) if sum(w) == 4]
    for _ in range(50):
        g = torch.from_numpy(rng.normal(0, 0.3, 4))
        g -= g.mean()  # a gradient's components add up to 0
        wanted = 4 * (0.25 - g)
        costs = [((wanted - torch.tensor(w)) ** 2).sum().item() for w in ways]
        got = label_counts(g, 4)
        assert got.sum() == 4 and got.min() >= 0
        assert ((wanted - got) ** 2).sum().item() == pytest.approx(min(costs))


def test_bad_counts_are_refused_in_words():
    g = torch.zeros(3)
    for batch in (0, -1, 2.5):
        with pytest.raises(ValueError, match="label_counts: batch must be an integer >= 1"):
            label_counts(g, batch)
    bad = (torch.ones(3), torch.ones(2) / 2, torch.tensor([1.5, -0.5, 0.0]), torch.ones(3, 2) / 2)
    for q in (*bad, torch.eye(3) * 2):
        with pytest.raises(ValueError, match="label_counts: expected must be 3 probabilities"):
            label_counts(g, 4, q)
    with pytest.raises(ValueError, match=r"label_counts: bias_grad must be \(C,\)"):
        label_counts(torch.zeros(3, 3), 4)


# -- members --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_advantage_and_auc_are_scikit_learn_s(seed):
    from sklearn.metrics import roc_auc_score, roc_curve

    rng = np.random.default_rng(seed)
    a, b = rng.exponential(1, 80).round(1), rng.exponential(1.5, 120).round(1)  # with ties
    truth, score = np.r_[np.ones(80), np.zeros(120)], -np.r_[a, b]
    found = membership(torch.from_numpy(a), torch.from_numpy(b))
    fpr, tpr, _ = roc_curve(truth, score, drop_intermediate=False)
    assert found.auc == pytest.approx(roc_auc_score(truth, score))
    assert found.advantage == pytest.approx((tpr - fpr).max())
    assert found.tpr == (a <= found.threshold).mean() and found.fpr == (b <= found.threshold).mean()


def test_the_threshold_against_every_threshold():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 30), rng.normal(0.7, 1.4, 20)
    every = max((a <= t).mean() - (b <= t).mean() for t in np.r_[-9, a, b, 9])
    assert membership(a, b).advantage == pytest.approx(every)
    given = membership(a, b, threshold=a.mean())
    assert given.advantage == pytest.approx((a <= a.mean()).mean() - (b <= a.mean()).mean())
    assert given.advantage <= every and given.threshold == a.mean()


def test_the_ends_of_the_scale():
    same = torch.arange(5.0)
    assert membership(same, same)[3:] == (0.0, 0.5)
    assert membership(same, same + 10)[3:] == (1.0, 1.0)
    assert membership(same + 10, same)[3:] == (0.0, 0.0), "no threshold helps: advantage 0"


def test_bad_losses_are_refused_in_words():
    some = torch.ones(3)
    for a, b, name in ((some[:0], some, "members"), (some, some * torch.nan, "others")):
        with pytest.raises(ValueError, match=f"membership: {name} must be losses"):
            membership(a, b)
    with pytest.raises(ValueError, match="membership: threshold must be a number"):
        membership(some, some, threshold=float("nan"))
