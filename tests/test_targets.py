"""y of any shape end to end, beside plain PyTorch: losses, accuracy, training, every client."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedlearn import Recipe, Simulated, algorithms, data, federate
from fedlearn.diagnostics import client_gradients, client_metrics
from fedlearn.model import (
    binary_cross_entropy,
    cross_entropy,
    evaluator,
    from_module,
    softmax_regression,
    squared_error,
)

DIABETES, CANCER, WINE = (data.load(name) for name in ("diabetes", "breast_cancer", "wine"))
N = 142
WORDS = torch.randint(0, 11, (N, 5), generator=torch.Generator().manual_seed(0))
TAGS = torch.randint(0, 3, (N, 5), generator=torch.Generator().manual_seed(1))
PARTS = [np.arange(60), np.arange(60, N)]


class Tagger(nn.Module):
    """Numbers of words (n, T) -> a score of each tag for each word, (n, C, T)."""

    def __init__(self):
        super().__init__()
        self.meaning, self.out = nn.Embedding(11, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.meaning(x)).transpose(1, 2)


def net(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


# what: (module, our loss, x, y, PyTorch's mean over the examples)
LINEAR = lambda o: net(lambda: nn.Linear(13, o))
half = lambda s, y: 0.5 * ((s - y) ** 2).flatten(1).sum(1).mean()
logits = F.binary_cross_entropy_with_logits
SICK = (WINE.y > 0).long()
SEVERAL = torch.stack([WINE.y > 0, WINE.y > 1, WINE.x[:, 0] > 0.5], 1)
KINDS = {
    "classes": (LINEAR(3), cross_entropy, WINE.x, WINE.y, F.cross_entropy),
    "one target": (
        LINEAR(1), squared_error, WINE.x, WINE.x[:, 3], lambda s, y: half(s, y[:, None]),
    ),
    "one target, a column": (LINEAR(1), squared_error, WINE.x, WINE.x[:, 3:4], half),
    "one target, a flat score": (
        nn.Sequential(LINEAR(1), nn.Flatten(0)), squared_error, WINE.x, WINE.x[:, 3:4],
        lambda s, y: half(s[:, None], y),
    ),
    "counts": (
        LINEAR(1), squared_error, WINE.x, WINE.y, lambda s, y: half(s, y[:, None]),
    ),
    "four targets": (LINEAR(4), squared_error, WINE.x, WINE.x[:, :4], half),
    "a picture of targets": (
        nn.Sequential(LINEAR(6), nn.Unflatten(1, (2, 3))), squared_error, WINE.x,
        WINE.x[:, :6].reshape(N, 2, 3), half,
    ),
    "one logit": (
        LINEAR(1), binary_cross_entropy, WINE.x, SICK, lambda s, y: logits(s, y[:, None].float()),
    ),
    "one logit, a column of booleans": (
        LINEAR(1), binary_cross_entropy, WINE.x, SICK[:, None] > 0,
        lambda s, y: logits(s, y.float()),
    ),
    "several labels": (
        LINEAR(3), binary_cross_entropy, WINE.x, SEVERAL, lambda s, y: logits(s, y.float()),
    ),
    "tags": (net(Tagger), cross_entropy, WORDS, TAGS, F.cross_entropy),
}  # fmt: skip


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_plain_gradient_descent(kind, stacked):
    """One client, all examples, five steps; PyTorch's own loss and optimizer."""
    module, loss, x, y, mean = KINDS[kind]
    if stacked and "flat score" in kind:
        pytest.skip("nn.Flatten(0) under vmap has another first dimension")
    task = from_module(module, loss, stacked=stacked)
    recipe = Recipe(algorithms.fedavg(task, lr=0.3), task.theta0, batch=None, epochs=5)
    (r,) = federate(Simulated(recipe, x, y, [np.arange(N)]), rounds=1)
    plain = copy.deepcopy(module)
    opt, seen = torch.optim.SGD(plain.parameters(), lr=0.3), []
    for _ in range(5):
        opt.zero_grad()
        now = mean(plain(x), y)
        now.backward()
        opt.step()
        seen.append(now.item())
    want = nn.utils.parameters_to_vector(plain.parameters()).detach()
    torch.testing.assert_close(r.theta, want, rtol=1e-4, atol=1e-6)
    assert r.loss == pytest.approx(np.mean(seen), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_batches_of_uneven_clients_change_nothing(kind):
    """A client alone and beside a larger one: the padding of y must not enter."""
    module, loss, x, y, _ = KINDS[kind]
    task = from_module(module, loss, stacked="flat score" not in kind)
    recipe = Recipe(algorithms.fedavg(task, lr=0.1), task.theta0, batch=16, epochs=2)
    small, large = np.arange(9), np.arange(9, N)
    both = next(federate(Simulated(recipe, x, y, [small, large]), rounds=1)).deltas[0]
    alone = next(federate(Simulated(recipe, x, y, [small]), rounds=1)).deltas[0]
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_measure_says_what_pytorch_says(kind):
    module, loss, x, y, mean = KINDS[kind]
    task = from_module(module, loss, stacked=False)
    with torch.no_grad():
        assert evaluator(task, x, y)(task.theta0)["loss"] == pytest.approx(
            mean(module(x), y).item(), rel=1e-5
        )
        each = [mean(module(x[own]), y[own]).item() for own in PARTS]
    got = client_metrics(task, task.theta0, x, y, PARTS)["loss"]
    np.testing.assert_allclose(got, each, rtol=1e-5)
    slopes = []
    for own in PARTS:
        value = mean(module(x[own]), y[own])
        grads = torch.autograd.grad(value, list(module.parameters()))
        slopes.append(torch.cat([g.reshape(-1) for g in grads]))
    got = client_gradients(task, task.theta0, x, y, PARTS)
    torch.testing.assert_close(got, torch.stack(slopes), rtol=1e-4, atol=1e-6)


def test_a_column_of_targets_is_not_broadcast():
    """(s - y) of (m,) and (m, 1) is a table (m, m): another loss, without a word."""
    x, y = DIABETES.x_test, DIABETES.y_test
    A = torch.cat([DIABETES.x, torch.ones(len(DIABETES.x), 1)], 1)
    best = torch.linalg.lstsq(A, DIABETES.y[:, None]).solution[:, 0]
    task = from_module(nn.Linear(10, 1), squared_error)
    right = float(0.5 * ((x @ best[:10] + best[10] - y) ** 2).mean())
    table = float(0.5 * ((x @ best[:10] + best[10] - y[:, None]) ** 2).mean())
    for target in (y, y[:, None], y.double()[:, None].numpy()):
        got = evaluator(task, x, target)(best)
        assert got == {"loss": pytest.approx(right, rel=1e-5)}
    assert table > 1.5 * right  # what it was


def test_the_losses_refuse_to_broadcast_by_themselves():
    for loss in (squared_error, binary_cross_entropy):
        for scores, y in (((4, 1), (4, 2)), ((4, 2), (4,)), ((4, 2, 3), (4, 3, 2)), ((4,), (3,))):
            with pytest.raises(ValueError, match=r"a target for each score, got shapes"):
                loss(torch.zeros(scores), torch.zeros(y))
    assert squared_error(torch.zeros(0, 1), torch.zeros(0)).shape == (0,)


def test_float32_losses_keep_their_bits():
    s, y = torch.randn(50, 1), torch.randn(50)
    assert torch.equal(squared_error(s, y), 0.5 * (s.squeeze(-1) - y) ** 2)
    s, y = torch.randn(50, 7), torch.randint(0, 7, (50,))
    assert torch.equal(cross_entropy(s, y), F.cross_entropy(s, y, reduction="none"))


# -- accuracy: where an answer can be right, and nowhere else -------------------------------------


def own(f):
    return lambda s, y: f(s[:, 0], y)


flat = {"reduction": "none"}
ONE_SCORE = {
    "ours": binary_cross_entropy,
    "PyTorch's logits": own(lambda s, y: logits(s, y.float(), **flat)),
    "weighted": own(lambda s, y: logits(s, y.float(), **flat, pos_weight=torch.tensor(1.5))),
    "soft margin": own(lambda s, y: F.soft_margin_loss(s, 2.0 * y - 1, **flat)),
    "hinge": own(lambda s, y: (1 - (2 * y - 1) * s).clamp(min=0)),
}


def trained_cancer(task):
    recipe = Recipe(algorithms.fedavg(task, lr=1.0), task.theta0, batch=None, epochs=60)
    (r,) = federate(Simulated(recipe, CANCER.x, CANCER.y, [np.arange(455)]), rounds=1)
    return r.theta


@pytest.mark.parametrize("kind", ONE_SCORE)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float32])
def test_one_score_is_right_by_its_sign(kind, dtype):
    """Its argmax is always 0: the share of zeros, .36, would be called the accuracy."""
    task = from_module(net(lambda: nn.Linear(30, 1)), ONE_SCORE[kind], stacked=False)
    theta = trained_cancer(task)
    scores = CANCER.x @ theta[:30] + theta[30]
    right = float(((scores > 0) == (CANCER.y > 0)).double().mean())
    assert right > 0.9 and float((CANCER.y == 0).double().mean()) < 0.4
    y = CANCER.y.to(dtype)
    assert evaluator(task, CANCER.x, y)(theta)["accuracy"] == pytest.approx(right)
    got = client_metrics(task, theta, CANCER.x, y, [np.arange(455)])["accuracy"]
    np.testing.assert_allclose(got, [right])


def test_probabilities_are_right_above_a_half():
    task = from_module(
        nn.Sequential(net(lambda: nn.Linear(30, 1)), nn.Sigmoid()),
        own(lambda s, y: F.binary_cross_entropy(s, y.float(), **flat)),
    )
    theta = trained_cancer(task)
    scores = CANCER.x @ theta[:30] + theta[30]
    right = float(((scores > 0) == (CANCER.y > 0)).double().mean())
    assert right > 0.9 and evaluator(task, CANCER.x, CANCER.y)(theta)["accuracy"] == right


MANY_SCORES = {
    "ours": (cross_entropy, nn.Identity()),
    "PyTorch's": (nn.CrossEntropyLoss(reduction="none"), nn.Identity()),
    "smoothed": (nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1), nn.Identity()),
    "of log-probabilities": (nn.NLLLoss(reduction="none"), nn.LogSoftmax(1)),
    "margins": (nn.MultiMarginLoss(reduction="none"), nn.Identity()),
    "focal": (
        lambda s, y: (l := F.cross_entropy(s, y, **flat)) * (1 - (-l).exp()) ** 2, nn.Identity(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MANY_SCORES)
def test_classes_are_right_by_their_highest_score(kind):
    loss, last = MANY_SCORES[kind]
    module = nn.Sequential(LINEAR(3), last)
    task = from_module(module, loss)
    right = float((module(WINE.x).argmax(1) == WINE.y).double().mean())
    assert evaluator(task, WINE.x, WINE.y)(task.theta0)["accuracy"] == right


NO_ANSWER = {
    "targets": (1, squared_error, WINE.x[:, 3]),
    "counts": (1, squared_error, WINE.y),
    "0 and 1 as numbers": (1, squared_error, SICK),
    "a user's squares": (1, own(lambda s, y: (s - y) ** 2), SICK),
    "a user's distances": (1, own(lambda s, y: (s - y).abs()), SICK.float()),
    "Poisson": (1, own(lambda s, y: F.poisson_nll_loss(s, y, **flat)), SICK),
    "mean and variance": (
        2, lambda s, y: F.gaussian_nll_loss(s[:, 0], y.float(), s[:, 1].exp(), **flat), SICK,
    ),
    "several labels": (3, binary_cross_entropy, SEVERAL),
    "several whole targets": (3, lambda s, y: ((s - y) ** 2).mean(1), F.one_hot(WINE.y)),
    "several counts": (7, lambda s, y: ((s[:, :3] - y) ** 2).mean(1), F.one_hot(WINE.y)),
    "one-hot targets": (3, squared_error, F.one_hot(WINE.y)),
    "soft labels": (3, lambda s, y: F.cross_entropy(s, y, **flat), F.one_hot(WINE.y).float()),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_ANSWER)
def test_where_no_answer_is_right_or_wrong_there_is_no_accuracy(kind):
    scores, loss, y = NO_ANSWER[kind]
    task = from_module(LINEAR(scores), loss)
    assert set(evaluator(task, WINE.x, y)(task.theta0)) == {"loss"}
    assert set(client_metrics(task, task.theta0, WINE.x, y, PARTS)) == {"loss"}


def test_every_word_counts_and_ignored_ones_do_not():
    task = from_module(net(Tagger), stacked=False)
    said = net(Tagger)(WORDS).argmax(1)
    right = float((said == TAGS).double().mean())
    assert evaluator(task, WORDS, TAGS)(task.theta0)["accuracy"] == pytest.approx(right)
    gaps = TAGS.masked_fill(WORDS < 4, -100)  # PyTorch's ignore_index
    gaps[:2] = -100
    loss = lambda s, y: F.cross_entropy(s, y, **flat).sum(1) / (y >= 0).sum(1).clamp(min=1)
    task = task._replace(loss=loss)
    right = (said == gaps)[gaps >= 0].double().mean().item()
    assert evaluator(task, WORDS, gaps)(task.theta0)["accuracy"] == pytest.approx(right)
    each = client_metrics(task, task.theta0, WORDS, gaps, [[0, 1], range(2, N)])["accuracy"]
    assert each.mask.tolist() == [True, False] and each[1] == pytest.approx(right)


# -- of every client ------------------------------------------------------------------------------


def test_a_client_without_an_example_has_no_number_and_shifts_nobody():
    task = softmax_regression(13, 3)
    theta = torch.linspace(-1, 1, 42)
    parts = [np.arange(5), np.array([], int), np.arange(5, 40), []]
    got = client_metrics(task, theta, WINE.x, WINE.y, parts)
    full = client_metrics(task, theta, WINE.x, WINE.y, [parts[0], parts[2]])
    for name in ("loss", "accuracy"):
        a, b = full[name]
        assert got[name].mask.tolist() == [False, True, False, True] and len(got[name]) == 4
        assert (got[name][0], got[name][2]) == (a, b)
        assert got[name].mean() == pytest.approx((a + b) / 2)
        assert got[name].std() == pytest.approx(abs(a - b) / 2)
        assert (got[name].min(), got[name].max()) == (min(a, b), max(a, b))
        assert type(full[name]) is np.ndarray
    with pytest.raises(ValueError, match=r"client_metrics: parts must be not all empty"):
        client_metrics(task, theta, WINE.x, WINE.y, [[], []])


def test_a_model_a_client_is_judged_on_that_clients_examples():
    task = softmax_regression(13, 3)
    models = torch.randn(3, 42, generator=torch.Generator().manual_seed(0))
    parts = [np.arange(5), np.arange(3, 40), np.array([141, 7])]
    got = client_metrics(task, models, WINE.x, WINE.y, parts)
    slopes = client_gradients(task, models, WINE.x, WINE.y, parts)
    for k, own_rows in enumerate(parts):
        alone = evaluator(task, WINE.x[own_rows], WINE.y[own_rows])(models[k])
        assert got["loss"][k] == pytest.approx(alone["loss"], rel=1e-5)
        assert got["accuracy"][k] == pytest.approx(alone["accuracy"])
        one = client_gradients(task, models[k], WINE.x, WINE.y, [own_rows])[0]
        torch.testing.assert_close(slopes[k], one)
    for wrong in (models[:2], models[None]):
        with pytest.raises(ValueError, match=r"client_metrics: theta must be \(d,\), or \(N, d\)"):
            client_metrics(task, wrong, WINE.x, WINE.y, parts)


def test_a_task_with_its_gradient_alone_has_nothing_to_evaluate():
    task = softmax_regression(13, 3)._replace(predict=None)
    for call in (lambda: evaluator(task, WINE.x, WINE.y),
                 lambda: client_metrics(task, task.theta0, WINE.x, WINE.y, PARTS)):  # fmt: skip
        with pytest.raises(ValueError, match="a model and its loss"):
            call()
    assert client_gradients(task, task.theta0, WINE.x, WINE.y, PARTS).shape == (2, 42)
