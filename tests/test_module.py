"""A user's own module: equal to a plain PyTorch loop, or refused by name with the cure."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedlearn.model import cross_entropy, from_module, squared_error

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


N = (4, 3, 1)  # examples of three clients: there is padding


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
