"""What a user hands over, x, y, who holds what: the same run as from tidy tensors, or a sentence.

Whatever is converted must train to the same bits as float32 examples and int64 labels.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedlearn import Recipe, Simulated, algorithms, centralised, data, federate, partition
from fedlearn.attacks.backdoor import backdoor_rate, poison
from fedlearn.attacks.byzantine import label_flip
from fedlearn.attacks.messages import gradient
from fedlearn.batches import schedule
from fedlearn.diagnostics import client_gradients, client_metrics
from fedlearn.model import (
    binary_cross_entropy,
    evaluator,
    from_module,
    softmax_regression,
    squared_error,
)

WINE = data.load("wine")
X, Y = WINE.x.numpy(), WINE.y.numpy()
TASK = softmax_regression(13, 3)
PARTS = [np.arange(0, 142, 2), np.arange(1, 142, 2)]


def simulated(x=X, y=Y, parts=PARTS, task=TASK, **kw):
    recipe = Recipe(algorithms.fedavg(task, lr=0.3), task.theta0, batch=16, **kw)
    return Simulated(recipe, x, y, parts)


def trained(x=X, y=Y, parts=PARTS, task=TASK, **kw):
    *_, last = federate(simulated(x, y, parts, task, **kw), rounds=3)
    return last.theta


class Column:
    """A pandas Series, as far as numbers go: it gives an array and has its own index."""

    def __init__(self, values):
        self.values, self.index = values, range(900, 900 + len(values))

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class Frame:
    """A pandas DataFrame: columns of different types; as one array they may be objects."""

    def __init__(self, columns):
        self.columns, self.shape = list(columns), (len(next(iter(columns.values()))), len(columns))
        self.held = list(columns.values())
        self.iloc = self

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, at):
        return Column(self.held[at[1]])

    def __array__(self, dtype=None, copy=None):
        return np.array([list(row) for row in zip(*self.held)], object)


def frame(x):
    return Frame({f"c{j}": x[:, j] for j in range(x.shape[1])})


# -- converted: the same bits as from tidy tensors ------------------------------------------------

SAME_X = {
    "a tensor": WINE.x,
    "numpy": X,
    "float64": X.astype(np.float64),
    "long double": X.astype(np.longdouble),
    "big endian": X.astype(">f4"),
    "Fortran order": np.asfortranarray(X),
    "backwards twice": X[::-1].copy()[::-1],
    "every other of more": np.repeat(X, 2, axis=0)[::2],
    "lists": X.tolist(),
    "a list of arrays": list(X),
    "a list of tensors": list(WINE.x),
    "a data frame": frame(X),
    "double tensor": WINE.x.double(),
    "with a graph": WINE.x.clone().requires_grad_(),
}
SAME_Y = {
    "a tensor": WINE.y,
    **{t: Y.astype(t) for t in ("int8", "int16", "int32", "uint8", "uint16", "uint64", ">i2")},
    "a list": Y.tolist(),
    "a column (n, 1)": Y[:, None],
    "a series": Column(Y),
    "a list of tensors": list(WINE.y),
}


@pytest.mark.parametrize("kind", SAME_X)
def test_examples_of_any_kind_train_to_the_same_bits(kind):
    assert torch.equal(trained(x=SAME_X[kind]), trained())
    test = evaluator(TASK, SAME_X[kind], Y)(TASK.theta0 + 0.1)
    assert test == evaluator(TASK, WINE.x, WINE.y)(TASK.theta0 + 0.1)


@pytest.mark.parametrize("kind", SAME_Y)
def test_labels_of_any_kind_train_to_the_same_bits(kind):
    assert torch.equal(trained(y=SAME_Y[kind]), trained())
    test = evaluator(TASK, X, SAME_Y[kind])(TASK.theta0 + 0.1)
    assert test == evaluator(TASK, WINE.x, WINE.y)(TASK.theta0 + 0.1)


def test_read_only_arrays_go_and_stay_as_they_are():
    x = X.copy()
    x.setflags(write=False)
    assert torch.equal(trained(x=x), trained()) and np.array_equal(x, X)
    assert simulated(x=np.broadcast_to(X[:1], X.shape)).x.shape == X.shape


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_whole_numbers_become_real_ones_of_the_same_value(dtype):
    bytes_ = (X * 255).astype(np.uint8)
    assert torch.equal(trained(x=bytes_.astype(dtype)), trained(x=bytes_.astype(np.float32)))


def test_booleans_are_zero_and_one():
    assert torch.equal(trained(x=X > 0.5), trained(x=(X > 0.5).astype(np.float32)))
    two = softmax_regression(13, 2)
    assert torch.equal(trained(y=Y > 0, task=two), trained(y=(Y > 0).astype(int), task=two))


def test_numbers_beside_booleans_in_a_frame_stay_numbers():
    both = {**{f"c{j}": X[:, j] for j in range(12)}, "sick": X[:, 12] > 0.5}
    plain = np.column_stack([X[:, :12], X[:, 12] > 0.5])
    assert torch.equal(trained(x=Frame(both)), trained(x=plain))


def test_the_parameters_decide_the_precision():
    double = Recipe(algorithms.fedavg(TASK, lr=0.3), TASK.theta0.double())
    clients = Simulated(double, X.astype(np.float64), Y, PARTS)
    assert clients.x.dtype == torch.float64
    test = evaluator(TASK, WINE.x.double() + 1e-12, WINE.y)  # theta says, when it comes
    theta = torch.linspace(-1, 1, 42, dtype=torch.float64)
    want = F.cross_entropy(
        (WINE.x.double() + 1e-12) @ theta[:39].view(3, 13).T + theta[39:], WINE.y
    )
    assert test(theta)["loss"] == pytest.approx(float(want), rel=1e-13)


class Words(nn.Module):
    """Numbers of words (n, T) -> scores (n, C), or of each word (n, C, T)."""

    def __init__(self, each=False):
        super().__init__()
        torch.manual_seed(0)
        self.meaning, self.out, self.each = nn.Embedding(11, 4), nn.Linear(4, 3), each

    def forward(self, x):
        h = self.meaning(x)
        return self.out(h).transpose(1, 2) if self.each else self.out(h.mean(1))


WORDS = np.random.default_rng(0).integers(0, 11, (142, 5))
TAGS = np.random.default_rng(1).integers(0, 3, (142, 5))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16, np.uint8])
def test_numbers_of_words_stay_whole(dtype):
    task = from_module(Words())
    assert torch.equal(trained(WORDS.astype(dtype), task=task), trained(WORDS, task=task))


# -- refused: one sentence, with the cure ----------------------------------------------------------

TALK = from_module(Words())
TEXT = np.array(["Barolo", "Grignolino", "Barbera"])
REG = from_module(nn.Linear(13, 1), squared_error)
TWO = from_module(nn.Linear(13, 2), squared_error)
BIN = from_module(nn.Linear(13, 1), binary_cross_entropy)
GAPS = np.where(np.arange(142) % 50 == 7, np.nan, 1.0)
BAD = {
    "text labels": ({"y": TEXT[Y]}, ["y must hold numbers", "text", "return_inverse=True"]),
    "a list of text": ({"y": TEXT[Y].tolist()}, ["text", "return_inverse=True"]),
    "text as objects": ({"y": TEXT[Y].astype(object)}, ["text", "return_inverse=True"]),
    "numbers as objects": ({"y": Y.astype(object)}, ["objects (int)", "y.astype(int)"]),
    "reals as objects": ({"x": X.astype(object)}, ["objects (float)", "x.astype(float)"]),
    "None among labels": ({"y": [None, *Y[1:].tolist()]}, ["objects", "e.g."]),
    "dates": ({"x": np.full((142, 1), "2020-01-01", "M8[D]")}, ["dates", "e.g."]),
    "complex": ({"x": X + 1j}, ["complex", "x.real"]),
    "complex tensor": ({"x": WINE.x + 1j}, ["complex", "x.real"]),
    "sparse": ({"x": WINE.x.to_sparse()}, ["sparse", "x.to_dense()"]),
    "masked": ({"x": np.ma.masked_less(X, 0.5)}, ["masked", "x.filled"]),
    "meta": ({"x": WINE.x.to("meta")}, ["meta"]),
    "ragged": ({"x": [[1.0, 2.0], [3.0]] * 71}, ["one shape an example", "pad"]),
    "ragged tensors": ({"x": [torch.ones(2), torch.ones(3)] * 71}, ["one shape", "pad_sequence"]),
    "a data set": (
        {"x": torch.utils.data.TensorDataset(WINE.x, WINE.y)}, ["TensorDataset", "e.g."],
    ),
    "nothing": ({"y": None}, ["y must be a tensor or an array", "NoneType"]),
    "a number": ({"y": 3}, ["y must be a tensor or an array", "int"]),
    "text in a column": (
        {"x": Frame({"a": X[:, 0], "grape": TEXT[Y]})}, ["'grape'", "pd.get_dummies"],
    ),
    "NaN in x": (
        {"x": np.where(np.arange(142)[:, None] > 139, np.nan, X)},
        ["x holds inf or NaN", "2 of 142 examples", "row 140"],
    ),
    "inf in pictures": (
        {"x": np.where(X.reshape(142, 13, 1) == X[5, 0], np.inf, 0)}, ["inf or NaN", "e.g."],
    ),
    "too large for float32": (
        {"x": X.astype(np.float64) * 1e300}, ["too large for torch.float32", "e.g."],
    ),
    "NaN in y": (
        {"y": GAPS, "task": REG}, ["y holds inf or NaN in 3 of 142 examples, first in row 7"],
    ),
    "inf in y (n, 2)": (
        {"y": np.stack([np.ones(142), GAPS], 1), "task": TWO},
        ["y holds inf or NaN in 3 of 142", "e.g."],
    ),
    "float labels": ({"y": Y.astype(np.float32)}, ["integer classes", "y.long()"]),
    "one-hot labels": ({"y": np.eye(3, dtype=int)[Y]}, ["(142, 3)", "y.argmax(1)"]),
    "soft labels": ({"y": np.eye(3)[Y]}, ["(142, 3)", "y.argmax(1)"]),
    "two labels an example": ({"y": np.stack([Y, Y], 1)}, ["(142, 2)", "y[:, 0]"]),
    "a hole among labels": ({"y": np.where(Y, Y, -100)}, ["0..2", "-100..2", "e.g."]),
    "labels from 1": ({"y": Y + 1}, ["0..2", "1..3", "e.g."]),
    "one score, classes": (
        {"task": softmax_regression(13, 1), "y": Y * 0}, ["one score", "binary_cross_entropy"],
    ),
    "one score, three labels": ({"task": BIN}, ["0 and 1", "0..2", "e.g."]),
    "labels -1 and 1": ({"task": BIN, "y": np.where(Y, 1, -1)}, ["0 and 1", "-1..1", "e.g."]),
    "two targets, one score": (
        {"task": REG, "y": X[:, :2]}, ["(142, 2)", "one loss an example", "nn.Linear(64, 2)"],
    ),
    "one target, two scores": (
        {"task": from_module(nn.Linear(13, 2), squared_error), "y": X[:, :1]},
        ["one loss an example", "nn.Linear(64, 1)"],
    ),
    "a feature without a dimension": (
        {"x": X[:, 0], "task": softmax_regression(1, 3)}, ["x[:, None]"],
    ),
    "real numbers for words": ({"x": WORDS * 1.0, "task": TALK}, ["x.long()"]),
    "a word too many": (
        {"x": np.where(np.arange(710).reshape(142, 5) == 401, 11, WORDS), "task": TALK},
        ["out of range", "nn.Embedding(12"],
    ),
    "a word below 0": ({"x": WORDS - 1, "task": TALK}, ["numbers >= 0"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_can_not_be_converted_is_refused_everywhere_by_name(kind):
    given, words = BAD[kind]
    x, y, task = given.get("x", X), given.get("y", Y), given.get("task", TASK)
    calls = {
        "Simulated": lambda: simulated(x, y, task=task),
        "evaluator": lambda: evaluator(task, x, y),
        "client_metrics": lambda: client_metrics(task, task.theta0, x, y, PARTS),
        "client_gradients": lambda: client_gradients(task, task.theta0, x, y, PARTS),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"^{name}: ") as e:
            call()
        missing = [w for w in words if w not in str(e.value)]
        assert not missing, f"{missing} not in: {e.value}"


# -- losses that a user wrote ---------------------------------------------------------------------


def per_example(loss):
    """As a wrapper would make it: the mean over what is left beside the examples."""

    def own(scores, y):
        losses = loss(scores, y)
        return losses.flatten(1).mean(1) if losses.dim() > 1 else losses

    return own


mse = nn.MSELoss(reduction="none")
WRONG = {
    "a mean over all": (nn.CrossEntropyLoss(), 3, Y, "reduction='none'"),
    "a sum": (nn.CrossEntropyLoss(reduction="sum"), 3, Y, "reduction='none'"),
    "a function's mean": (F.cross_entropy, 3, Y, "reduction='none'"),
    "(n, 1) beside (n,)": (mse, 1, X[:, 0], "reshape"),
    "the same, averaged": (per_example(mse), 1, X[:, 0], "broadcast"),
    "(n,) beside (n, 1)": (per_example(lambda s, y: mse(s[:, 0], y)), 1, X[:, :1], "broadcast"),
    "by hand": (per_example(lambda s, y: (s - y) ** 2), 1, X[:, 0], "broadcast"),
    "labels, by hand": (
        per_example(lambda s, y: F.softplus(s) - s * y), 1, (Y > 0).astype(int), "broadcast",
    ),
    "against the batch's mean": (lambda s, y: (s[:, 0] - s.mean() - y) ** 2, 1, X[:, 0], "depend"),
    "floats as classes": (nn.CrossEntropyLoss(reduction="none"), 3, Y * 1.0, "y.long()"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.filterwarnings("default")  # PyTorch's own about target sizes
def test_a_loss_that_mixes_examples_is_refused(kind):
    loss, scores, y, words = WRONG[kind]
    task = from_module(nn.Linear(13, scores))._replace(loss=loss)
    for call in (lambda: simulated(y=y, task=task), lambda: evaluator(task, X, y)):
        with pytest.raises(ValueError, match=words):
            call()


RIGHT = {
    "PyTorch's": (nn.CrossEntropyLoss(reduction="none"), 3, Y),
    "of bytes": (nn.CrossEntropyLoss(reduction="none"), 3, Y.astype(np.uint8)),
    "squeezed": (lambda s, y: F.mse_loss(s.squeeze(), y, reduction="none"), 1, X[:, 0]),
    "of whole numbers": (lambda s, y: (s[:, 0] - y) ** 2, 1, Y),
    "weighted": (
        lambda s, y: F.cross_entropy(s, y, torch.tensor([1.0, 2.0, 0.5]), reduction="none"), 3, Y,
    ),
    "several": (lambda s, y: F.mse_loss(s, y, reduction="none").mean(1), 3, X[:, :3]),
    "soft labels": (lambda s, y: F.cross_entropy(s, y, reduction="none"), 3, np.eye(3)[Y]),
    "one as a column": (per_example(mse), 1, X[:, :1]),
}  # fmt: skip


@pytest.mark.parametrize("kind", RIGHT)
def test_a_loss_that_does_not_is_what_pytorch_says(kind):
    loss, scores, y = RIGHT[kind]
    torch.manual_seed(0)
    net = nn.Linear(13, scores)
    task = from_module(net, loss)
    y_ = torch.as_tensor(y)
    y_ = y_.float() if y_.is_floating_point() else y_.long()
    want = loss(net(WINE.x), y_).mean().item()
    assert evaluator(task, X, y)(task.theta0)["loss"] == pytest.approx(want, rel=1e-5)
    one = client_metrics(task, task.theta0, X, y, PARTS)["loss"]
    assert one.mean() == pytest.approx(want, rel=1e-5)
    assert trained(y=y, task=task).isfinite().all()


def test_the_model_must_leave_examples_apart():
    flat = from_module(Words(each=True))
    gone = flat._replace(
        predict=lambda theta, x: flat.predict(theta, x).transpose(1, 2).flatten(0, 1)
    )
    with pytest.raises(ValueError, match=r"Simulated: the model must give scores of each example"):
        simulated(WORDS, TAGS, task=gone)


# -- who holds what --------------------------------------------------------------------------------

ROWS = [[0, 5, 9], [1, 2]]
SAME_PARTS = {
    "lists": ROWS,
    "arrays": [np.array(r) for r in ROWS],
    "small integers": [np.array(r, np.uint8) for r in ROWS],
    "tensors": [torch.tensor(r) for r in ROWS],
    "columns": [Column(np.array(r)) for r in ROWS],
    "a generator": (r for r in ROWS),
    "a tuple": tuple(ROWS),
    "a dict": {"Basel": ROWS[0], "Bern": ROWS[1]},
    "a dict by number": {1: ROWS[1], 0: ROWS[0]},
    "Parts": partition.Parts(ROWS),
}


@pytest.mark.parametrize("kind", SAME_PARTS)
def test_parts_of_any_kind_are_the_same_clients(kind):
    clients = simulated(parts=SAME_PARTS[kind])
    assert [p.tolist() for p in clients.parts] == ROWS and clients.count == 2
    assert clients.names == (("Basel", "Bern") if kind == "a dict" else None)


WRONG_PARTS = {
    "a mask": ([Y > 0], "flatnonzero"),
    "a mask as a list": ([(Y > 0).tolist()], "flatnonzero"),
    "reals": ([[0.0, 1.0]], "integer rows"),
    "below 0": ({"Basel": [0], "Bern": [-1]}, r"client 1 \(Bern\)"),
    "too far": ([[0, 142]], r"0\.\.141, got 0\.\.142"),
    "none": ([[0], []], "got none for client 1"),
    "no client": ({}, "at least one client"),
    "a column": (TEXT[Y], "by_attribute"),
    "numbers": (Y, "by_attribute"),
    "a number": (2, "by_attribute"),
    "a table": ([[[0, 1]]], "list of rows"),
}


@pytest.mark.parametrize("kind", WRONG_PARTS)
def test_rows_that_are_none_are_refused_by_the_clients_name(kind):
    parts, words = WRONG_PARTS[kind]
    with pytest.raises(ValueError, match=rf"^Simulated: .*{words}"):
        simulated(parts=parts)


def test_parts_made_by_hand_are_checked_too():
    for wrong in ([[0.5, 1.7]], [np.array([True, False])], [[-1]], [[[0]]]):
        with pytest.raises(ValueError, match=r"^Parts: "):
            partition.Parts(wrong)
    with pytest.raises(ValueError, match=r"^Parts: names .*2 clients"):
        partition.Parts([[0], [1]], names=["a"])


# -- nobody else's numbers change a run -----------------------------------------------------------


def test_what_was_handed_over_may_change_afterwards():
    x, y, theta = WINE.x.clone(), WINE.y.clone(), TASK.theta0.clone()
    parts = [p.copy() for p in PARTS]
    recipe = Recipe(algorithms.fedavg(TASK, lr=0.3), theta, batch=16)
    clients, test = Simulated(recipe, x, y, parts), evaluator(TASK, x, y)
    before = test(TASK.theta0 + 0.1)
    x.zero_(), y.zero_(), theta.fill_(7.0)
    for p in parts:
        p[:] = 0
    *_, last = federate(clients, rounds=3)
    assert torch.equal(last.theta, trained()) and test(TASK.theta0 + 0.1) == before


def test_arrays_may_change_afterwards():
    x, y = X.copy(), Y.copy()
    clients, test = simulated(x, y), evaluator(TASK, x, y)
    before = test(TASK.theta0 + 0.1)
    x[:], y[:] = 0, 0
    assert torch.equal(clients.x, WINE.x) and torch.equal(clients.y, WINE.y)
    assert test(TASK.theta0 + 0.1) == before


def test_theta_of_a_net_keeps_no_graph():
    net = nn.Linear(13, 3)
    task = from_module(net)
    theta = nn.utils.parameters_to_vector(net.parameters())
    recipe = Recipe(algorithms.fedavg(task, lr=0.3), theta)
    assert recipe.theta.grad_fn is None and not recipe.theta.requires_grad
    for r in federate(Simulated(recipe, X, Y, PARTS), rounds=2, evaluate=evaluator(task, X, Y)):
        assert not r.theta.requires_grad and not r.deltas.requires_grad
    theta.data.zero_()
    assert recipe.theta.abs().sum() > 0


def test_a_history_and_a_round_may_be_overwritten():
    run = federate(simulated(), rounds=3)
    run.history.theta.fill_(9.0)
    for r in run:
        kept = r.theta.clone()
        for mine in (r.theta, r.deltas, r.p, run.history.theta):
            mine.zero_()
        r.answered[:], r.called[:] = 0, 0
    assert torch.equal(kept, trained())


def test_a_resumed_history_is_its_own():
    run = federate(simulated(), rounds=3)
    next(run)
    more = federate(simulated(), rounds=3, resume=run)
    more.history.theta.zero_()
    *_, last = more
    assert torch.equal(last.theta, trained())


# -- batches larger than a client -----------------------------------------------------------------


def test_a_batch_larger_than_every_client_is_all_of_its_examples():
    parts = partition.iid(Y, 5, np.random.default_rng(0))
    full = schedule(parts, np.arange(5), batch=None, epochs=2, seed=0, round=3)
    for batch in (29, 300_000, 10**9, 10**30):
        for a, b in zip(
            full, schedule(parts, np.arange(5), batch=batch, epochs=2, seed=0, round=3)
        ):
            assert torch.equal(a, b)


def test_numpys_small_integers_do_not_overflow():
    recipe = Recipe(
        algorithms.fedavg(TASK, 0.1), TASK.theta0, batch=np.uint8(32), epochs=np.int8(5)
    )
    assert (recipe.batch, recipe.epochs) == (32, 5)
    assert centralised(recipe, X, Y, np.uint8(20)).recipe.batch == 142  # 640 mod 256 is 128
    got = schedule(PARTS, np.arange(2), batch=np.uint8(40), epochs=np.uint8(200), seed=0, round=0)
    assert got[0].shape == (2, 400, 40)


HUGE = """
import resource, numpy as np, torch
from fedlearn import Recipe, Simulated, algorithms, federate, model
sizes = [60_000] + [10] * 199
x, y = torch.randn(sum(sizes), 50), torch.zeros(sum(sizes), dtype=torch.int64)
parts = np.split(np.arange(len(x)), np.cumsum(sizes)[:-1])
task = model.softmax_regression(50, 3)
recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, batch=None)
clients = Simulated(recipe, x, y, parts)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
next(federate(clients, rounds=1))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_one_huge_client_pads_no_others():
    """Padded to its size, a chunk of 100 would gather 100 x 60,000 x 50 numbers: 1.2 GB."""
    out = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 400


def test_a_huge_client_is_trained_as_it_would_be_beside_small_ones(monkeypatch):
    parts = [np.arange(100), np.arange(100, 103), np.arange(103, 142), np.array([7])]
    together = [r.deltas for r in federate(simulated(parts=parts), rounds=2)]
    monkeypatch.setattr("fedlearn.simulated._PADDED", 1)
    apart = [r.deltas for r in federate(simulated(parts=parts), rounds=2)]
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# -- attacks take the same ------------------------------------------------------------------------


def test_attacks_take_arrays_and_refuse_what_has_no_classes():
    flipped = label_flip(Y.astype(np.uint8), {"a": [0, 1], "b": [2]}, [1], 3)
    assert flipped[:3].tolist() == [Y[0], Y[1], 2 - Y[2]]
    x, y = poison(X, Y, [[0, 1], [2, 3]], [0], lambda x: x + 1, 2, share=1.0)
    assert (
        np.allclose(x[:2], X[:2] + 1) and y[:2].tolist() == [2, 2] and (y[2:] == WINE.y[2:]).all()
    )
    theta = torch.cat([torch.zeros(39), torch.tensor([0.0, 0.0, 1.0])])  # always says 2
    assert backdoor_rate(TASK, theta, X, Y, lambda x: x, 2) == 1.0
    with pytest.raises(ValueError, match=r"backdoor_rate: (y must be a class|a classifier needs)"):
        backdoor_rate(REG, REG.theta0, X, X[:, 0], lambda x: x, 0)
    with pytest.raises(ValueError, match=r"label_flip: y must be integer classes"):
        label_flip(X[:, 0], [[0]], [0], 3)
    with pytest.raises(ValueError, match=r"gradient: task must be a classifier's"):
        gradient(REG, REG.theta0)
