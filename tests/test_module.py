"""A user's own module: equal to a plain PyTorch loop, or refused by name with the cure."""

from __future__ import annotations

import copy
import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from fedlearn import Recipe, Simulated, algorithms, federate
from fedlearn.diagnostics.recipes import describe, differences
from fedlearn.model import (
    cross_entropy,
    evaluator,
    from_module,
    mlp,
    squared_error,
    to_module,
    without_batch_norm,
)
from fedlearn.rng import Use, numpy_rng

# -- some sixty kinds of module, six losses: stacked, sequential and a plain loop are one ----------


class Apply(nn.Module):
    """A layer of a function."""

    def __init__(self, f, *layers):
        super().__init__()
        self.f, self.layers = f, nn.ModuleList(layers)

    def forward(self, x):
        return self.f(x, *self.layers)


class Scale(nn.Module):
    """Parameters of shape ()."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(0.2))

    def forward(self, x):
        return self.a * x + self.b


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.ParameterList([torch.randn(12, 5), torch.randn(5)])
        self.by_name = nn.ParameterDict({"v": torch.randn(5)})

    def forward(self, x):
        return torch.tanh(x @ self.w[0] + self.w[1]) * self.by_name["v"]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(12, 12), nn.Linear(12, 12)
        self.up.weight = self.down.weight

    def forward(self, x):
        return self.up(torch.tanh(self.down(x)))


class Steps(nn.Module):
    """A cell, step by step over x (B, T, features)."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        h = None
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return h[0] if isinstance(h, tuple) else h


class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(12, 5), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)


def frozen_norm():
    norm = nn.BatchNorm1d(5)
    norm.running_mean.copy_(torch.arange(5.0))
    return nn.Sequential(nn.Linear(12, 5), norm).eval()


flat = lambda n, g: torch.randn(n, 12, generator=g, dtype=torch.float64)
picture = lambda n, g: torch.randn(n, 2, 4, 4, generator=g, dtype=torch.float64)
series = lambda n, g: torch.randn(n, 5, 4, generator=g, dtype=torch.float64)
tokens = lambda n, g: torch.randint(0, 6, (n, 5), generator=g)
first = lambda x, layer: layer(x)[0]
quiet = {"dropout": 0.0, "batch_first": True}
norm_of = nn.utils.parametrizations
between = lambda act: nn.Sequential(nn.Linear(12, 5), act)

MODULES = {
    "Linear": (lambda: nn.Linear(12, 5), flat),
    "Linear without bias": (lambda: nn.Linear(12, 5, bias=False), flat),
    "Bilinear": (lambda: Apply(lambda x, m: m(x, x.flip(1)), nn.Bilinear(12, 12, 4)), flat),
    "ReLU": (lambda: between(nn.ReLU()), flat),
    "ReLU in place": (lambda: between(nn.ReLU(inplace=True)), flat),
    "ReLU in place on x": (lambda: nn.ReLU(inplace=True), flat),
    "GELU": (lambda: between(nn.GELU()), flat),
    "PReLU": (lambda: between(nn.PReLU(5)), flat),
    "GLU": (lambda: nn.Sequential(nn.Linear(12, 6), nn.GLU()), flat),
    "Softmax": (lambda: between(nn.Softmax(-1)), flat),
    "RReLU": (lambda: between(nn.RReLU()).eval(), flat),
    "Dropout": (lambda: between(nn.Dropout(0.5)).eval(), flat),
    "LayerNorm": (lambda: between(nn.LayerNorm(5)), flat),
    "RMSNorm": (lambda: between(nn.RMSNorm(5)), flat),
    "GroupNorm": (lambda: nn.Sequential(nn.Linear(12, 6), nn.GroupNorm(2, 6)), flat),
    "BatchNorm with fixed statistics": (frozen_norm, flat),
    "BatchNorm by hand": (lambda: between(Apply(lambda x: x - x.mean(0))), flat),
    "the largest of the batch": (lambda: between(Apply(lambda x: x / x.abs().max())), flat),
    "F.batch_norm, no example alone": (
        lambda: between(Apply(lambda x: F.batch_norm(x, None, None, training=True))), flat,
    ),
    "the size of the batch": (lambda: between(Apply(lambda x: x / len(x))), flat),
    "weight_norm": (lambda: norm_of.weight_norm(nn.Linear(12, 5)), flat),
    "spectral_norm": (lambda: norm_of.spectral_norm(nn.Linear(12, 5)).eval(), flat),
    "orthogonal": (lambda: norm_of.orthogonal(nn.Linear(12, 5)), flat),
    "parameters of shape ()": (Scale, flat),
    "lists of parameters": (Listed, flat),
    "tied": (Tied, flat),
    "frozen": (lambda: between(nn.Linear(5, 5).requires_grad_(False)), flat),
    "a spare layer": (Spare, flat),
    "writes into x": (lambda: Apply(lambda x: x.sub_(0.5).div_(0.25)), flat),
    "control flow": (
        lambda: Apply(lambda x, m: m(x) if float(x[0, 0]) > 0 else m(-x), nn.Linear(12, 5)),
        flat,
    ),
    "a hook": (lambda: between(nn.Tanh()), flat),
    "Conv1d": (lambda: nn.Conv1d(5, 3, 2), series),
    "Conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), picture),
    "depthwise": (lambda: nn.Conv2d(2, 2, 3, groups=2), picture),
    "Conv3d": (lambda: nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 2, 2)), picture),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 2), picture),
    "functional convolution": (
        lambda: Apply(lambda x, m: F.conv2d(x, m.weight, m.bias), nn.Conv2d(2, 2, 3)), picture,
    ),
    "MaxPool2d": (lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.MaxPool2d(2)), picture),
    "AvgPool2d": (lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.AvgPool2d(2)), picture),
    "AdaptiveAvgPool2d": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d(1)), picture,
    ),
    "LPPool2d": (lambda: nn.Sequential(nn.Softplus(), nn.LPPool2d(2, 2)), picture),
    "PixelShuffle": (lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.PixelShuffle(2)), picture),
    "Upsample": (lambda: nn.Sequential(nn.Conv2d(2, 1, 1), nn.Upsample(scale_factor=2)), picture),
    "Unfold": (lambda: nn.Unfold(2), picture),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(2, affine=True), picture),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(2), picture),
    "ZeroPad2d": (lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(2, 1, 3)), picture),
    "RNN": (lambda: Apply(first, nn.RNN(4, 3, batch_first=True)), series),
    "GRU": (lambda: Apply(first, nn.GRU(4, 3, batch_first=True, bidirectional=True)), series),
    "LSTM": (lambda: Apply(first, nn.LSTM(4, 3, batch_first=True, num_layers=2)), series),
    "RNNCell": (lambda: Steps(nn.RNNCell(4, 3)), series),
    "GRUCell": (lambda: Steps(nn.GRUCell(4, 3)), series),
    "LSTMCell": (lambda: Steps(nn.LSTMCell(4, 3)), series),
    "attention": (
        lambda: Apply(lambda x, m: m(x, x, x)[0], nn.MultiheadAttention(4, 2, **quiet)), series,
    ),
    "attention in evaluation": (
        lambda: Apply(
            lambda x, m: m(x, x, x)[0], nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
        ).eval(),
        series,
    ),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 6, **quiet), series),
    "transformer in evaluation": (
        lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).eval(), series,
    ),
    "decoder": (
        lambda: Apply(lambda x, m: m(x, x), nn.TransformerDecoderLayer(4, 2, 6, **quiet)), series,
    ),
    "batch not first": (lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0), series),
    "Embedding": (lambda: nn.Embedding(6, 3), tokens),
    "Embedding with padding": (lambda: nn.Embedding(6, 3, padding_idx=0), tokens),
    "Embedding by frequency": (lambda: nn.Embedding(6, 3, scale_grad_by_freq=True), tokens),
    "sparse Embedding": (lambda: nn.Embedding(6, 3, sparse=True), tokens),
    "functional Embedding with padding": (
        lambda: Apply(
            lambda x, m: F.embedding(x, m.weight, padding_idx=1), nn.Embedding(6, 3)
        ),
        tokens,
    ),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(6, 3), tokens),
    "EmbeddingBag with padding": (lambda: nn.EmbeddingBag(6, 3, padding_idx=0), tokens),
    "Embedding and GRU": (
        lambda: nn.Sequential(
            nn.Embedding(6, 4, padding_idx=0), Apply(first, nn.GRU(4, 3, batch_first=True))
        ),
        tokens,
    ),
}  # fmt: skip

classes = lambda n, g: torch.randint(0, 3, (n,), generator=g)
number = lambda n, g: torch.randn(n, generator=g, dtype=torch.float64)
numbers = lambda n, g: torch.randn(n, 3, generator=g, dtype=torch.float64)
several = lambda n, g: torch.randint(0, 2, (n, 3), generator=g).double()
words = lambda n, g: torch.randint(0, 3, (n, 2), generator=g)

LOSSES = {  # ours, PyTorch's own mean, y, scores of an example
    "cross_entropy": (cross_entropy, nn.CrossEntropyLoss(), classes, (3,)),
    "squared_error": (
        squared_error, lambda z, y: 0.5 * F.mse_loss(z[:, 0], y), number, (1,),
    ),
    "several labels": (
        nn.BCEWithLogitsLoss(reduction="none"), nn.BCEWithLogitsLoss(), several, (3,),
    ),
    "several numbers": (nn.MSELoss(reduction="none"), nn.MSELoss(), numbers, (3,)),
    "Huber": (nn.HuberLoss(reduction="none"), nn.HuberLoss(), numbers, (3,)),
    "a class a word": (
        lambda z, y: F.cross_entropy(z, y, reduction="none"), nn.CrossEntropyLoss(), words, (3, 2),
    ),
}  # fmt: skip
EACH = list(zip(MODULES, itertools.cycle(LOSSES)))
ALL = [pair for pair in itertools.product(MODULES, LOSSES) if pair not in EACH]


def whole(name, loss):
    """The module with a head of the loss's scores."""
    body, inputs = MODULES[name]
    torch.manual_seed(0)
    net, shape = body(), LOSSES[loss][3]
    training = net.training
    net.double()
    with torch.no_grad():
        width = net(inputs(2, torch.Generator())).flatten(1).shape[1]
    head = nn.Linear(width, torch.Size(shape).numel()).double()
    net = nn.Sequential(net, nn.Flatten(), head, nn.Unflatten(1, shape))
    if name == "a hook":
        net[0].register_forward_hook(lambda m, x, out: 2 * out)
    return net.train(training)


N = (5, 3, 2)  # examples of three clients: there is padding


def data(name, loss):
    g = torch.Generator().manual_seed(1)
    n = len(N) * N[0]
    x, y = MODULES[name][1](n, g), LOSSES[loss][2](n, g)
    mask = torch.tensor([[1.0] * k + [0.0] * (N[0] - k) for k in N], dtype=torch.float64)
    return x.unflatten(0, (len(N), N[0])), y.unflatten(0, (len(N), N[0])), mask


def federated(net, loss, x, y, mask, **kw):
    """Two rounds of two steps, by the task."""
    task = from_module(net, loss, **kw)
    p, theta = mask.sum(1) / mask.sum(), task.theta0
    for _ in range(2):
        theta_k = theta.expand(len(N), -1).clone()
        for _ in range(2):
            task.step(theta_k, x, y, mask, 0.1)
        theta = p @ theta_k
    return theta


def plain(net, loss, x, y, mask):
    """The same as a tutorial writes it: deepcopy, torch.optim, a mean."""
    trained = lambda m: [p for p in m.parameters() if p.requires_grad]
    server = copy.deepcopy(net)
    for _ in range(2):
        local = [copy.deepcopy(server) for _ in N]
        for k, m in enumerate(local):
            opt = torch.optim.SGD(trained(m), lr=0.1)
            for _ in range(2):
                opt.zero_grad()
                loss(m(x[k, : N[k]].clone()), y[k, : N[k]]).backward()
                opt.step()
        with torch.no_grad():
            for own in zip(trained(server), *map(trained, local)):
                own[0].copy_(sum(n * v for n, v in zip(N, own[1:])) / sum(N))
    return nn.utils.parameters_to_vector(trained(server)).detach()


def check_one_is_the_other(name, loss):
    net, (ours, theirs, *_) = whole(name, loss), LOSSES[loss]
    x, y, mask = data(name, loss)
    before, seen = copy.deepcopy(net.state_dict()), x.clone()
    want = plain(net, theirs, x, y, mask)
    for how in (None, False):
        got = federated(net, ours, x, y, mask, stacked=how)
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-9)
    assert torch.equal(x, seen)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("name, loss", EACH)
def test_a_module_is_trained_as_a_plain_loop_does(name, loss):
    check_one_is_the_other(name, loss)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_every_module_with_every_loss_is_trained_as_a_plain_loop_does(loss, subtests):
    for name, other in ALL:
        if other == loss:
            with subtests.test(name):
                check_one_is_the_other(name, loss)


# -- what is no function of theta and x is refused by name, with the cure -------------------------


class Always(nn.Module):
    """F.dropout that doesn't hear module.eval()."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(F.dropout(x, 0.1))


class Hears(Always):
    def forward(self, x):
        return self.out(F.dropout(x, 0.1, self.training))


class Running(nn.Module):
    """A running mean in a buffer, changed in place or put anew."""

    def __init__(self, put=False, used=True):
        super().__init__()
        self.out, self.put, self.used = nn.Linear(4, 3), put, used
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if self.training:
            new = 0.9 * self.mean + 0.1 * x.mean(0).detach()
            if self.put:
                self.mean = new
            else:
                self.mean.copy_(new)
        return self.out(x - self.mean if self.used else x)


class Remembers(nn.Module):
    """What it saw last, in an attribute that no list of buffers has."""

    def __init__(self):
        super().__init__()
        self.out, self.last = nn.Linear(4, 3), 0.0

    def forward(self, x):
        before, self.last = self.last, float(x.sum())
        return self.out(x) + before


class Own(nn.Module):
    """Draws from Python's, NumPy's or a generator of its own."""

    def __init__(self, draw):
        super().__init__()
        self.out, self.draw = nn.Linear(4, 3), draw

    def forward(self, x):
        return self.out(x) * self.draw()


class Renorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(3 * torch.ones(6, 3))

    def forward(self, x):
        return F.embedding(x[:, 0].long() % 6, self.w, max_norm=1.0)


attention = lambda **kw: Apply(
    lambda x, m: m(x[:, None], x[:, None], x[:, None])[0][:, 0], nn.MultiheadAttention(4, 2, **kw)
)
gru = lambda **kw: Apply(lambda x, m: m(x[:, None])[0][:, 0], nn.GRU(4, 3, batch_first=True, **kw))
generator = torch.Generator()

NO_FUNCTION = {
    "F.dropout": (Hears, ["layer itself (Hears) draws random numbers", "call module.eval() first"]),
    "F.dropout, always": (Always, ["(Always) draws random", "training=self.training"]),
    "F.dropout, inside": (
        lambda: nn.Sequential(nn.Linear(4, 4), Hears()), ["layer 1 (Hears) draws random"],
    ),
    "dropout of a GRU": (
        lambda: gru(dropout=0.5, num_layers=2), ["layers.0 (GRU) draws", "module.eval() first"],
    ),
    "dropout of an attention": (
        lambda: attention(dropout=0.5), ["layers.0 (MultiheadAttention) draws", "module.eval()"],
    ),
    "dropout of attention's function": (
        lambda: Apply(
            lambda x, m: m(F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)), nn.Linear(4, 3)
        ),
        ["(Apply) draws random"],
    ),
    "dropout of a transformer": (
        lambda: nn.TransformerEncoderLayer(4, 2), ["draws", "module.eval() first"],
    ),
    "RReLU": (lambda: nn.Sequential(nn.Linear(4, 3), nn.RReLU()), ["layer 1 (RReLU) draws"]),
    "AlphaDropout": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.AlphaDropout()), ["layer 1 (AlphaDropout) draws"],
    ),
    "noise": (
        lambda: Apply(lambda x, m: m(x + 0.1 * torch.randn_like(x)), nn.Linear(4, 3)),
        ["(Apply) draws random numbers", "leave it out"],
    ),
    "Python's draws": (lambda: Own(random.random), ["(Own) draws random numbers"]),
    "NumPy's draws": (lambda: Own(lambda: np.random.rand()), ["(Own) draws"]),  # noqa: NPY002
    "draws of its own": (
        lambda: Own(lambda: torch.rand((), generator=generator)), ["two calls", "differ"],
    ),
    "running mean": (Running, ["layer itself (Running) changes its buffer mean", "module.eval()"]),
    "running mean, put": (lambda: Running(put=True), ["changes its buffer mean"]),
    "running mean, unused": (lambda: Running(used=False), ["changes its buffer mean"]),
    "what was last": (Remembers, ["two calls at one theta differ"]),
    "spectral_norm": (
        lambda: norm_of.spectral_norm(nn.Linear(4, 3)), ["changes its buffer", "module.eval()"],
    ),
    "spectral_norm of old": (
        lambda: nn.utils.spectral_norm(nn.Linear(4, 3)), ["changes its buffer weight_u"],
    ),
    "InstanceNorm with memory": (
        lambda: nn.Sequential(
            nn.Linear(4, 3), nn.Unflatten(1, (3, 1)),
            nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten(),
        ),
        ["layer 2 (InstanceNorm1d) keeps batch statistics", "InstanceNorm1d(3), which keeps none"],
    ),
    "BatchNorm": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
        ["layer 1 (BatchNorm1d)", "without_batch_norm(module)", "module.eval()"],
    ),
    "max_norm": (
        lambda: nn.Embedding(6, 3, max_norm=1.0), ["itself (Embedding)", "leave max_norm out"],
    ),
    "max_norm, by hand": (Renorm, ["(Renorm) changes its parameter w"]),
    "a tuple": (
        lambda: nn.GRU(4, 3, batch_first=True), ["one tensor, got a tuple of 2", "self.net(x)[0]"],
    ),
    "a dict": (
        lambda: Apply(lambda x, m: {"logits": m(x)}, nn.Linear(4, 3)),
        ["got a dict of 1", "self.net(x)['logits']"],
    ),
    "one number": (
        lambda: Apply(lambda x, m: m(x).mean(), nn.Linear(4, 3)), ["got shape () of torch.float32"],
    ),
    "examples last": (
        lambda: Apply(lambda x, m: m(x).T, nn.Linear(4, 3)), ["got shape (3, 2)", "examples first"],
    ),
    "classes": (lambda: Apply(lambda x, m: m(x).argmax(1), nn.Linear(4, 3)), ["torch.int64"]),
    "no gradient": (
        lambda: Apply(lambda x, m: m(x).detach(), nn.Linear(4, 3)), ["no gradient reaches"],
    ),
    "no size yet": (lambda: nn.LazyLinear(3), ["(LazyLinear) has no size", "module(x[:2]) once"]),
    "no numbers": (lambda: nn.Linear(4, 3, device="meta"), ["(Linear) has no numbers", "to_empty"]),
    "two types": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3).double()),
        ["one type", "torch.float32 in 0.weight", "torch.float64 in 1.weight", "module.float()"],
    ),
    "complex": (
        lambda: Apply(lambda x, m: m(x.cfloat()).abs(), nn.Linear(4, 3, dtype=torch.cfloat)),
        ["real numbers", "torch.complex64", "view_as_real"],
    ),
    "memory shared by two": (
        lambda: nn.Sequential(a := nn.Linear(3, 3), alias(nn.Linear(3, 3), a)),
        ["1.weight and 0.weight must not share memory", "tie them"],
    ),
    "a hook on a gradient": (
        lambda: hooked("register_hook"), ["parameter weight has a hook", "descend(..., grad=...)"],
    ),
    "a hook after a gradient": (
        lambda: hooked("register_post_accumulate_grad_hook"), ["parameter weight has a hook"],
    ),
    "no module": (lambda: "nn.Linear(4, 3)", ["module must be an nn.Module, got 'str'"]),
    "a file inside": (
        lambda: Own(threading.Lock()), ["copy.deepcopy", "lock"],
    ),
}  # fmt: skip


def hooked(how):
    net = nn.Linear(4, 3)
    getattr(net.weight, how)(lambda g: None)
    return net


def alias(layer, other):
    layer.weight = nn.Parameter(other.weight.data)
    return layer


@pytest.mark.parametrize("stacked", [None, False, True])
@pytest.mark.parametrize("name", NO_FUNCTION)
def test_what_is_no_function_of_theta_and_x_is_refused(name, stacked):
    make, words = NO_FUNCTION[name]
    net, x = make(), torch.rand(6, 4, 4) if name == "a tuple" else torch.rand(6, 4)
    x = torch.randint(0, 6, (6, 4)) if name == "max_norm" else x
    before = whole_state(net)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[2]  # noqa: NPY002
    with pytest.raises(ValueError) as e:
        task = from_module(net, stacked=stacked)
        recipe = Recipe(algorithms.fedavg(task, 0.1), task.theta0)
        Simulated(recipe, x, torch.arange(6) % 3, [np.arange(6)])
    said = str(e.value)
    words = ["(GRU) can't be run by vmap"] if stacked and name == "a tuple" else words
    assert said.startswith("from_module: ") and not [w for w in words if w not in said], said
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[2] == states[2]  # noqa: NPY002
    assert whole_state(net) == before


def whole_state(net):
    """All that a module is, as text."""
    if not isinstance(net, nn.Module) or any(map(nn.parameter.is_lazy, net.parameters())):
        return ""
    flags = [m.training for m in net.modules()]
    numbers = {k: v.tolist() for k, v in net.state_dict().items() if not v.is_meta}
    return f"{net} {flags} {numbers}"


@pytest.mark.parametrize("name", ["F.dropout", "dropout of a GRU", "dropout of an attention",
                                  "RReLU", "AlphaDropout", "running mean", "spectral_norm",
                                  "BatchNorm", "InstanceNorm with memory"])  # fmt: skip
def test_the_cure_cures(name):
    net = NO_FUNCTION[name][0]().eval()
    task, x = from_module(net), torch.rand(6, 4)
    values = {float(task.predict(task.theta0, x).double().sum()) for _ in range(5)}
    assert len(values) == 1
    task.step(task.theta0[None].clone(), x[None], torch.arange(6)[None] % 3, torch.ones(1, 6), 0.1)


@pytest.mark.parametrize("first", ["predict", "grad", "step", "evaluator"])
def test_it_is_refused_wherever_it_is_used_first(first):
    task, x, y = from_module(Always()), torch.rand(6, 4), torch.arange(6) % 3
    theta, mask = task.theta0[None].clone(), torch.ones(1, 6)
    use = {
        "predict": lambda: task.predict(task.theta0, x),
        "grad": lambda: task.grad(theta, x[None], y[None], mask),
        "step": lambda: task.step(theta, x[None], y[None], mask, 0.1),
        "evaluator": lambda: evaluator(task, x, y),
    }[first]
    with pytest.raises(ValueError, match="draws random numbers"):
        use()


def test_a_module_is_looked_at_once_and_draws_nothing_of_the_users():
    calls = []
    net = nn.Sequential(nn.Linear(4, 3))
    net.register_forward_hook(lambda *_: calls.append(1))
    task, x = from_module(net), torch.rand(6, 4)
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    task.predict(task.theta0, x)
    assert torch.equal(torch.rand(3), want)
    looked = len(calls)
    task.predict(task.theta0, x)
    assert len(calls) == looked + 1


def test_one_example_is_looked_at_again_when_there_are_two():
    """Of one example nobody sees that it depends on another."""
    net = nn.Sequential(nn.Linear(4, 3), Apply(lambda x: x - x.mean(0))).double()
    task, x = from_module(net), torch.rand(2, 4, 4, dtype=torch.float64)
    task.predict(task.theta0, x[0, :1])
    y, mask = torch.arange(4).expand(2, 4) % 3, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).double()
    theta = task.theta0.expand(2, -1).clone()
    got = task.grad(theta, x, y, mask)[0]
    want = from_module(net, stacked=False).grad(theta, x, y, mask)[0]
    torch.testing.assert_close(got, want)


class Surprise(nn.Module):
    """Looks at values from the hundredth row on: no probe of the first examples can see it."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(-x if len(x) > 3 and x.sum().item() > 0 else x)


def test_what_vmap_meets_later_goes_one_after_the_other_or_is_refused():
    net, x, y = Surprise(), torch.rand(2, 6, 4), torch.arange(12).reshape(2, 6) % 3
    task = from_module(net)
    theta = task.theta0.expand(2, -1).clone()
    got = task.grad(theta, x, y, torch.ones(2, 6))[0]
    want = from_module(net, stacked=False).grad(theta, x, y, torch.ones(2, 6))[0]
    torch.testing.assert_close(got, want)
    with pytest.raises(ValueError, match=r"from_module: vmap can't run .*item.*stacked=False"):
        from_module(net, stacked=True).grad(theta, x, y, torch.ones(2, 6))


def test_the_padding_row_of_an_embedding_stays_where_it_is():
    """The issue's module: the row's norm after 100 rounds was 1.32; it is 0."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.out = nn.Embedding(20, 4, padding_idx=0), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.emb(x).mean(1))

    torch.manual_seed(0)
    task = from_module(Words())
    x, y = torch.randint(0, 20, (60, 5)), torch.randint(0, 3, (60,))
    x[:, 3:] = 0
    recipe = Recipe(algorithms.fedavg(task, 0.5), task.theta0, batch=7)
    run = federate(Simulated(recipe, x, y, np.split(np.arange(60), [10, 37])), rounds=100)
    net = to_module(task, list(run)[-1].theta)
    norms = net.emb.weight.detach().norm(dim=1)
    assert norms[0] == 0.0 and norms[1] > 0.1


@pytest.mark.parametrize("stacked", [None, True, False])
def test_a_forward_that_writes_into_its_input_changes_nothing_of_the_users(stacked):
    """The issue's numbers: three evaluations at one theta were 2.0, 6.1 and 24.2."""
    net = Apply(lambda x, m: m(x.sub_(0.5).div_(0.25)), nn.Linear(4, 3))
    task, x, y = from_module(net, stacked=stacked), torch.rand(30, 4), torch.arange(30) % 3
    seen = x.clone()
    measure = evaluator(task, x, y)
    assert len({measure(task.theta0)["loss"] for _ in range(3)}) == 1
    recipe = Recipe(algorithms.fedavg(task, 0.1), task.theta0)
    clients = Simulated(recipe, x, y, [np.arange(20), np.arange(20, 30)])
    list(federate(clients, rounds=2))
    task.grad(task.theta0[None], x[None], y[None], torch.ones(1, 30))
    assert torch.equal(x, seen) and torch.equal(clients.x, seen)


def test_what_the_user_does_to_the_module_later_is_not_the_tasks():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3).requires_grad_(False))
    task, x = from_module(net), torch.rand(2, 4)
    before = task.predict(task.theta0, x)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert torch.equal(task.predict(task.theta0, x), before)


@pytest.mark.parametrize("old", ["weight_norm", "prune"])
def test_a_module_with_computed_tensors_is_copied(old):
    net = nn.Linear(4, 3)
    if old == "prune":
        prune.l1_unstructured(net, "weight", 0.5)
    else:
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(net)
    x = torch.rand(2, 4)
    want = net(x)
    task = from_module(net)
    torch.testing.assert_close(task.predict(task.theta0, x), want)
    torch.testing.assert_close(to_module(task, task.theta0)(x), want)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_of_another_precision_is_looked_at_too(kind):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3)).to(kind)
    x, y, mask = torch.rand(2, 5, 4).to(kind), torch.arange(10).reshape(2, 5) % 3, torch.ones(2, 5)
    for stacked in (True, False):
        task = from_module(net, stacked=stacked)
        g, _ = task.grad(task.theta0.expand(2, -1), x, y, mask.to(kind))
        assert g.dtype == kind and g.isfinite().all()


def test_theta_may_be_of_another_precision_than_the_module():
    net = nn.Linear(4, 3)
    task, x = from_module(net), torch.rand(6, 4, dtype=torch.float64)
    torch.testing.assert_close(task.predict(task.theta0.double(), x), net.double()(x))


def test_predict_goes_through_torch_func():
    task, x = from_module(nn.Linear(4, 3)), torch.rand(5, 2, 4)
    theta = task.theta0.expand(5, -1)
    together = torch.func.vmap(task.predict)(theta, x)
    torch.testing.assert_close(together, torch.stack([task.predict(task.theta0, v) for v in x]))
    slope = torch.func.jacrev(lambda th: task.predict(th, x[0]))(task.theta0)
    assert slope.shape == (2, 3, 15)


# -- losses ---------------------------------------------------------------------------------------

BAD_LOSS = {
    "a mean": (nn.CrossEntropyLoss(), "='mean'.*nn.CrossEntropyLoss\\(reduction='none'\\)"),
    "a sum": (nn.MSELoss(reduction="sum"), "reduction='sum'"),
    "PyTorch's function": (F.cross_entropy, "lambda z, y: F.cross_entropy\\(z, y, reduction="),
    "a class": (nn.CrossEntropyLoss, "loss must be a function"),
    "no function": ("mse", "loss must be a function"),
    "one number": (lambda z, y: F.cross_entropy(z, y), "got \\(\\) from scores"),
    "mixed": (lambda z, y: F.cross_entropy(z, y, reduction="none") - z.mean(), "on the others"),
    "drawn": (
        lambda z, y: F.cross_entropy(z, y, reduction="none") * torch.rand(()), "draws random",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LOSS)
@pytest.mark.parametrize("stacked", [None, False])
def test_a_loss_that_is_not_one_an_example_is_refused(name, stacked):
    loss, words = BAD_LOSS[name]
    with pytest.raises(ValueError, match=f"from_module: .*{words}"):
        task = from_module(nn.Linear(4, 3), loss, stacked=stacked)
        x, y = torch.rand(1, 6, 4), torch.arange(6)[None] % 3
        task.grad(task.theta0[None], x, y, torch.ones(1, 6))


@pytest.mark.parametrize("stacked", [None, False])
@pytest.mark.parametrize("loss", [nn.MSELoss, nn.HuberLoss, nn.SmoothL1Loss, nn.L1Loss])
def test_scores_of_one_beside_targets_without_are_refused(loss, stacked):
    """(B, 1) beside (B,) is a matrix (B, B), of which PyTorch warns and goes on."""
    task = from_module(nn.Linear(4, 1), loss(reduction="none"), stacked=stacked)
    with pytest.raises(ValueError, match=r"one number an example.*squeeze\(-1\)"):
        task.grad(task.theta0[None], torch.rand(1, 6, 4), torch.rand(1, 6), torch.ones(1, 6))
    with pytest.raises(ValueError, match=r"one number an example.*squeeze\(-1\)"):
        task.loss(torch.rand(6, 1), torch.rand(6))
    by_hand = from_module(nn.Linear(4, 1), lambda z, y: (z - y) ** 2, stacked=stacked)
    with pytest.raises(ValueError, match=r"one number an example.*squeeze\(-1\)"):
        by_hand.grad(by_hand.theta0[None], torch.rand(1, 6, 4), torch.rand(1, 6), torch.ones(1, 6))


def test_a_loss_that_writes_into_what_it_gets_changes_nothing_of_the_users():
    """Its scores are asked for the accuracy afterwards, its labels are the user's."""
    written = lambda z, y: F.cross_entropy(z.neg_().neg(), y, reduction="none")
    rewritten = lambda z, y: (
        F.cross_entropy(z.clone().mul_(1), y.add_(0), reduction="none") + z.zero_()[:, 0]
    )
    x, y = torch.rand(30, 4), torch.arange(30) % 3
    plain, seen = from_module(nn.Linear(4, 3)), y.clone()
    want = evaluator(plain, x, y)(plain.theta0)
    for loss in (written, rewritten):
        task = from_module(to_module(plain, plain.theta0), loss)
        assert evaluator(task, x, y)(task.theta0) == pytest.approx(want)
    task = from_module(
        nn.Linear(4, 3), lambda z, y: F.cross_entropy(z, y.zero_(), reduction="none")
    )
    task.grad(task.theta0[None], x[None], y[None], torch.ones(1, 30))
    assert torch.equal(y, seen)


def test_scores_of_shape_b_are_scores():
    net = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    task, g = from_module(net, nn.BCEWithLogitsLoss(reduction="none")), []
    x, y, mask = torch.rand(2, 5, 4), (torch.rand(2, 5) > 0.5).float(), torch.ones(2, 5)
    for one in (task, from_module(net, nn.BCEWithLogitsLoss(reduction="none"), stacked=True)):
        g.append(one.grad(task.theta0.expand(2, -1), x, y, mask)[0])
    F.binary_cross_entropy_with_logits(net(x[0]), y[0]).backward()
    for got in g:
        torch.testing.assert_close(got[0, :4], net[0].weight.grad[0])


def test_a_loss_that_can_not_take_the_labels_says_so():
    task = from_module(nn.Linear(4, 1), nn.BCEWithLogitsLoss(reduction="none"))
    with pytest.raises(ValueError, match=r"from_module: loss can't take scores \(6, 1\).*squeeze"):
        task.loss(torch.rand(6, 1), torch.ones(6))


def test_a_loss_with_parameters_is_refused():
    class Warm(nn.Module):
        def __init__(self):
            super().__init__()
            self.t = nn.Parameter(torch.ones(()))

        def forward(self, z, y):
            return F.cross_entropy(z / self.t, y, reduction="none")

    with pytest.raises(ValueError, match=r"from_module: loss must have nothing to train.*Warm"):
        from_module(nn.Linear(4, 3), Warm())
    from_module(nn.Linear(4, 3), Warm().requires_grad_(False))


def test_the_packages_own_losses_are_the_tasks_as_they_are():
    assert from_module(nn.Linear(4, 3)).loss is cross_entropy
    assert from_module(nn.Linear(4, 1), squared_error).loss is squared_error


def test_a_loss_of_several_numbers_is_their_mean():
    task = from_module(nn.Linear(4, 3), nn.MSELoss(reduction="none"))
    z, y = torch.rand(5, 3), torch.rand(5, 3)
    torch.testing.assert_close(task.loss(z, y), ((z - y) ** 2).mean(1))


# -- the module given back ------------------------------------------------------------------------


def test_the_module_comes_back_whole(tmp_path):
    """Frozen, tied, a scalar, a buffer: by torch.save into a fresh module of PyTorch alone."""

    def fresh(seed):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(6, 6), nn.Linear(6, 6), Scale(), nn.BatchNorm1d(6).eval(),
            nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3),
        )  # fmt: skip
        net[1].weight = net[0].weight
        net[3].running_mean.copy_(torch.rand(6))
        return net.eval()

    net = fresh(0)
    before = copy.deepcopy(net.state_dict())
    task = from_module(net)
    theta = task.theta0 + 0.1 * torch.randn_like(task.theta0)
    torch.save(to_module(task, theta).state_dict(), tmp_path / "net.pt")
    other = fresh(1)
    other.load_state_dict(torch.load(tmp_path / "net.pt"))
    x = torch.rand(5, 6)
    torch.testing.assert_close(other(x), task.predict(theta, x))
    back = to_module(task, theta)
    assert back[1].weight is back[0].weight and not back[4].weight.requires_grad
    assert torch.equal(from_module(back).theta0, theta)  # and there again
    with torch.no_grad():
        back[5].bias.zero_()  # a copy of its own
    torch.testing.assert_close(task.predict(theta, x), other(x))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


BAD_BACK = {
    "another task": (lambda t: to_module(mlp(4, 3), t.theta0), "task must be one that from_module"),
    "too short": (lambda t: to_module(t, t.theta0[:-1]), r"theta must be \(15,\)"),
    "a matrix": (lambda t: to_module(t, t.theta0[None]), r"theta must be \(15,\)"),
    "another type": (lambda t: to_module(t, t.theta0.double()), "of torch.float32"),
    "no tensor": (lambda t: to_module(t, t.theta0.numpy()), r"got 'ndarray'"),
}


@pytest.mark.parametrize("name", BAD_BACK)
def test_what_does_not_fit_does_not_come_back(name):
    how, words = BAD_BACK[name]
    with pytest.raises(ValueError, match=f"to_module: .*{words}"):
        how(from_module(nn.Linear(4, 3)))


# -- without batch norm ---------------------------------------------------------------------------


@pytest.mark.parametrize("C, groups", [(48, 24), (64, 32), (6, 3), (7, 1), (96, 32), (1, 1)])
@pytest.mark.parametrize("norm, extra", [(nn.BatchNorm2d, (5, 5)), (nn.BatchNorm3d, (3, 3, 3))])
def test_group_norm_takes_the_place_of_batch_norm(C, groups, norm, extra):
    net = nn.Sequential(nn.Identity(), nn.Sequential(norm(C)))
    with torch.no_grad():
        net[1][0].weight.uniform_(), net[1][0].bias.uniform_()
    new = without_batch_norm(net)
    assert isinstance(net[1][0], norm) and new[1][0].num_groups == groups
    x, own = torch.randn(2, C, *extra), net[1][0]
    want = x.reshape(2, groups, -1)
    spread = want.var(-1, unbiased=False, keepdim=True)
    want = (want - want.mean(-1, keepdim=True)) / (spread + 1e-5).sqrt()
    shape = (1, C, *[1] * len(extra))
    want = want.reshape(x.shape) * own.weight.view(shape) + own.bias.view(shape)
    torch.testing.assert_close(new(x), want, atol=1e-5, rtol=1e-4)


def test_after_a_linear_layer_group_norm_normalises_over_all_channels():
    """Groups of one would make every score the bias; groups of two would leave a sign."""
    net = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Linear(32, 3))
    task = from_module(without_batch_norm(net))
    assert task.predict(task.theta0, torch.rand(9, 4)).std(0).min() > 1e-3
    with pytest.raises(ValueError, match=r"without_batch_norm: layer 0 .* two channels.*got 1"):
        without_batch_norm(nn.Sequential(nn.BatchNorm1d(1)))


def test_without_batch_norm_keeps_everything_else():
    shared = nn.BatchNorm2d(8, affine=False)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), shared, nn.ReLU(), shared, nn.BatchNorm2d(8, eps=0.1))
    net[4].requires_grad_(False)
    new = without_batch_norm(net)
    assert new[1] is new[3] and new[1].weight is None and new[4].eps == 0.1
    assert not new[4].weight.requires_grad and torch.equal(new[0].weight, net[0].weight)
    assert isinstance(without_batch_norm(nn.BatchNorm2d(8)), nn.GroupNorm)


# -- what a checkpoint knows of a module ----------------------------------------------------------


def test_a_task_is_described_by_what_is_frozen_and_not_by_its_use():
    def made(bias):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3).requires_grad_(False))
        net[1].bias.fill_(bias)
        return from_module(net)

    one, same, other = made(1.0), made(1.0), made(2.0)
    before = describe(one, "task")
    x, y, mask = torch.rand(1, 6, 4), torch.arange(6)[None] % 3, torch.ones(1, 6)
    one.step(one.theta0[None].clone(), x, y, mask, 0.1)
    assert describe(one, "task") == before == describe(same, "task")
    assert [k.split(" ")[0] for k in differences(before, describe(other, "task"))] == [
        "task.module.1.bias"
    ]


@pytest.mark.parametrize("stacked", [True, False, None])
def test_threads_do_not_meet_in_a_module(stacked):
    """A module's layers stand in it while it runs: two threads in one net would be one too many."""
    net = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 10))
    task, rng = from_module(net, stacked=stacked), numpy_rng(0, Use.TOY)
    x = torch.from_numpy(rng.random((8, 50, 30), np.float32))
    y = torch.from_numpy(rng.integers(0, 10, (8, 50)))
    theta = task.theta0 + torch.from_numpy(rng.random((8, 1), np.float32))  # (8, d)
    grads = lambda k: [task.grad(theta[[k]], x[[k]], y[[k]], torch.ones(1, 50)) for _ in range(20)]
    with ThreadPoolExecutor(4) as pool:  # anew: all threads look at its examples
        found = list(pool.map(grads, range(8)))
    for k, each in enumerate(found):
        g, loss = from_module(net, stacked=stacked).grad(
            theta[[k]], x[[k]], y[[k]], torch.ones(1, 50)
        )
        assert all(torch.equal(g, h) and torch.equal(loss, v) for h, v in each)
