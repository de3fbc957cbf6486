"""Every method against its formula: closed forms on quadratics, torch.optim, plain loops."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from problems import METHODS, hidden, problem, quadratics, run, vector
from torch import nn

from fedlearn import Recipe, Simulated, algorithms, federate, optim
from fedlearn.algorithms.fednova import accumulated
from fedlearn.batches import Shards, schedule
from fedlearn.descend import descend
from fedlearn.diagnostics import quadratics as Q
from fedlearn.participation import sample, uniform

close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-10)  # float64
HOW = {"rounds": 4, "cohort": 5, "batch": 16, "epochs": 2, "seed": 3}


# -- limits: where one method is another ----------------------------------------------------------

LIMITS = {
    "fedprox, mu = 0": lambda task: algorithms.fedprox(task, 0.3, mu=0.0),
    "fedavgm, beta = 0": lambda task: algorithms.fedavgm(task, 0.3, beta=0.0),
    "fedopt of sgd(1)": lambda task: algorithms.fedopt(task, 0.3, optim.sgd(1.0)),
    "fedsam, rho = 0": lambda task: algorithms.fedsam(task, 0.3, rho=0.0),
    "moon, mu = 0": lambda task: algorithms.moon(task, 0.3, hidden, mu=0.0),
    "a constant schedule": lambda task: algorithms.scheduled(
        lambda lr: algorithms.fedavg(task, lr), lambda t: 0.3
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_limit_is_fedavg(name):
    p = problem()
    want = run(algorithms.fedavg(p.closed_form, 0.3), p.closed_form.theta0, p, **HOW)
    got = run(LIMITS[name](p.closed_form), p.closed_form.theta0, p, **HOW)
    close(got[-1].theta, want[-1].theta)


def test_fednova_of_equal_steps_is_fedavg():
    p = problem()
    even = p._replace(parts=[np.arange(k, 240, 8) for k in range(8)])
    want = run(algorithms.fedavg(p.closed_form, 0.3), p.closed_form.theta0, even, **HOW)
    got = run(algorithms.fednova(p.closed_form, 0.3), p.closed_form.theta0, even, **HOW)
    close(got[-1].theta, want[-1].theta)
    uneven = run(algorithms.fednova(p.closed_form, 0.3), p.closed_form.theta0, p, **HOW)
    plain = run(algorithms.fedavg(p.closed_form, 0.3), p.closed_form.theta0, p, **HOW)
    assert (uneven[-1].theta - plain[-1].theta).norm() > 1e-3


def test_scaffolds_first_round_is_fedavgs():
    """c and every c_k are 0: nothing to correct yet. The second round differs."""
    p, theta = problem(), problem().closed_form.theta0
    plain = run(algorithms.fedavg(p.closed_form, 0.2), theta, p, **HOW)
    for option in (1, 2):
        method = algorithms.scaffold(p.closed_form, 0.2, n_total=240, option=option)
        got = run(method, theta, p, **HOW)
        close(got[0].theta, plain[0].theta)
        assert (got[-1].theta - plain[-1].theta).norm() > 1e-3


# -- the clients' steps, against torch.optim ------------------------------------------------------


def plain_client(p, k, t, *, lr, mu=0.0, beta=0.0, weight_decay=0.0):
    """theta_k - theta of client k in round t from the net's own parameters, by torch.optim.SGD."""
    net = copy.deepcopy(p.net)
    start = [q.detach().clone() for q in net.parameters()]
    opt = torch.optim.SGD(net.parameters(), lr, momentum=beta, weight_decay=weight_decay)
    index, mask, _ = schedule(p.parts, np.array([k]), batch=16, epochs=2, seed=3, round=t)
    for rows, real in zip(index[0], mask[0], strict=True):
        rows = rows[real > 0]
        if len(rows):
            opt.zero_grad()
            loss = nn.functional.cross_entropy(net(p.x[rows]), p.y[rows])
            pull = sum(((a - b) ** 2).sum() for a, b in zip(net.parameters(), start, strict=True))
            (loss + mu / 2 * pull).backward()
            opt.step()
    return vector(net) - vector(p.net)


LOCAL = {
    "pull": {"lr": 0.3, "mu": 0.7},
    "pull, lr mu = 1": {"lr": 0.5, "mu": 2.0},  # the fused step would divide by 0
    "pull, lr mu > 1": {"lr": 0.5, "mu": 3.0},
    "decay": {"lr": 0.3, "weight_decay": 0.2},
    "momentum": {"lr": 0.1, "beta": 0.9},
    "all of it": {"lr": 0.1, "mu": 0.5, "beta": 0.7, "weight_decay": 0.1},
}


@pytest.mark.parametrize("how", LOCAL)
def test_descend_is_torch_optim_on_the_corrected_objective(how):
    """Clients of very different sizes in one stack: some have run out while others still step."""
    p, theta = problem(), problem().closed_form.theta0
    S = np.arange(8)
    index, mask, n = schedule(p.parts, S, batch=16, epochs=2, seed=3, round=1)
    shards = Shards(p.x, p.y, index, mask.double(), n.double())
    assert len({int(m.any(-1).sum()) for m in mask}) > 2
    kw = dict(LOCAL[how])
    lr = kw.pop("lr")
    theta_k, _, _ = descend(p.closed_form, theta, shards, lr, **kw)
    for k in S:
        close(theta_k[k] - theta, plain_client(p, k, 1, lr=lr, **kw))


def plain_round(p, theta, t, lr, objective):
    """Who is called in round t, and theta_k of each, by torch.optim on objective(net, k, x, y)."""
    S = sample(8, 5, 3, t)
    index, mask, n = schedule(p.parts, S, batch=16, epochs=2, seed=3, round=t)
    found = {}
    for i, k in enumerate(S):
        net = copy.deepcopy(p.net)
        nn.utils.vector_to_parameters(theta.clone(), net.parameters())  # it hands out views
        opt = torch.optim.SGD(net.parameters(), lr)
        for rows, real in zip(index[i], mask[i], strict=True):
            rows = rows[real > 0]
            if len(rows):
                opt.zero_grad()
                objective(net, k, p.x[rows], p.y[rows]).backward()
                opt.step()
        found[k] = vector(net)
    return found, n.double() / n.double().sum()


def of(p, theta):
    net = copy.deepcopy(p.net).requires_grad_(False)
    nn.utils.vector_to_parameters(theta, net.parameters())
    return net


def test_moon_is_a_plain_loop_with_the_papers_loss():
    """Its clients remember their last model from round to round, and those left out keep it."""
    p, mu, T = problem(), 2.0, 0.5
    got = run(algorithms.moon(p.closed_form, 0.3, hidden, mu=mu, temperature=T), vector(p.net), p)
    theta, last = vector(p.net), {k: vector(p.net) for k in range(8)}
    for r in got:
        glob, before = of(p, theta), {k: of(p, v) for k, v in last.items()}

        def objective(net, k, x, y, glob=glob, before=before):
            z = net[:-1](x)
            positive, negative = (
                torch.exp(torch.cosine_similarity(z, other[:-1](x)) / T)
                for other in (glob, before[k])
            )
            contrast = -torch.log(positive / (positive + negative)).mean()
            return nn.functional.cross_entropy(net(x), y) + mu * contrast

        found, w = plain_round(p, theta, r.t, 0.3, objective)
        theta = sum(w[i] * v for i, v in enumerate(found.values()))
        last |= found
        close(r.theta, theta)
    plain = run(algorithms.fedavg(p.closed_form, 0.3), vector(p.net), p)
    close(got[0].theta, plain[0].theta)  # z_glob = z_prev: nothing to contrast
    assert (got[-1].theta - plain[-1].theta).norm() > 1e-2


def test_fedsam_is_a_plain_loop_of_two_gradients_a_step():
    p, rho = problem(), 0.2
    got = run(algorithms.fedsam(p.closed_form, 0.3, rho=rho), vector(p.net), p)
    theta = vector(p.net)

    class Surrogate(torch.autograd.Function):
        """Its gradient is that of the loss at w + rho g / |g|."""

        @staticmethod
        def forward(ctx, w, net, x, y):
            ctx.kept = w.detach().clone(), net, x, y
            return w.new_zeros(())

        @staticmethod
        def backward(ctx, one):
            w, net, x, y = ctx.kept
            slope = lambda at: torch.autograd.grad(
                nn.functional.cross_entropy(
                    torch.func.functional_call(net, split(net, at), (x,)), y
                ), at,
            )[0]  # fmt: skip
            with torch.enable_grad():
                g = slope(w.clone().requires_grad_())
                return slope((w + rho * g / g.norm()).requires_grad_()), None, None, None

    def split(net, at):
        sizes = [q.numel() for q in net.parameters()]
        named = zip(net.named_parameters(), at.split(sizes))
        return {k: v.view_as(q) for (k, q), v in named}

    objective = lambda net, k, x, y: Surrogate.apply(
        nn.utils.parameters_to_vector(net.parameters()), p.net, x, y
    )
    for r in got:
        found, w = plain_round(p, theta, r.t, 0.3, objective)
        theta = sum(w[i] * v for i, v in enumerate(found.values()))
        close(r.theta, theta)


def test_fedsam_on_a_quadratic_looks_rho_ahead():
    """f = 2 (theta - 1)²/2 from 0: g = -2, so the step is lr 2 (1 + rho), in closed form."""
    task, x, y, parts = quadratics([2.0], [1.0], [1])
    recipe = Recipe(algorithms.fedsam(task, 0.1, rho=0.5), task.theta0, batch=None)
    first = next(federate(Simulated(recipe, x, y, parts), rounds=1))
    assert first.theta.item() == pytest.approx(0.1 * 2 * 1.5, abs=1e-12)


def test_where_there_is_no_gradient_fedsam_stands_still():
    task, x, y, parts = quadratics([2.0], [0.0], [1])
    recipe = Recipe(algorithms.fedsam(task, 0.1, rho=0.5), task.theta0, batch=None)
    assert next(federate(Simulated(recipe, x, y, parts), rounds=1)).theta.item() == 0.0


@pytest.mark.parametrize("shape", ["(B,)", "(B, m, 1)", "(m,)"])
def test_features_of_another_shape_are_refused(shape):
    p = problem()
    wrong = {
        "(B,)": lambda theta, x: hidden(theta, x)[:, 0],
        "(B, m, 1)": lambda theta, x: hidden(theta, x)[..., None],
        "(m,)": lambda theta, x: hidden(theta, x).mean(0),
    }[shape]
    with pytest.raises(ValueError, match="moon: features must be one row of features an example"):
        run(algorithms.moon(p.closed_form, 0.3, wrong), vector(p.net), p)


def test_a_method_of_ones_own_takes_its_gradient_inside_the_client():
    """Adds |w|_4^4 to every client's loss, which no mu, shift or weight_decay does."""
    p, theta = problem(), problem().closed_form.theta0
    task, strength = p.closed_form, 0.3

    def client(message, shards, memory):
        def mine(w, x, y, mask):
            g, loss = task.grad(w, x, y, mask)
            with torch.enable_grad():  # clients run under no_grad
                at = w.detach().requires_grad_()
                (more,) = torch.autograd.grad(strength * (at**4).sum(), at)
            return g + more * (mask.sum(1, keepdim=True) > 0), loss

        theta_k, _, loss = descend(task, message["theta"], shards, 0.1, grad=mine)
        return {"delta": theta_k - message["theta"], "loss": loss}, memory

    method = algorithms.fedavg(task, 0.1)._replace(client=client)
    r = run(method, theta, p, rounds=1)[0]
    objective = lambda net, k, x, y: (
        nn.functional.cross_entropy(net(x), y)
        + strength * sum((q**4).sum() for q in net.parameters())
    )
    found, w = plain_round(p, theta, 0, 0.1, objective)
    close(r.theta, sum(w[i] * v for i, v in enumerate(found.values())))


def test_a_shift_is_added_to_every_gradient():
    """A linear term sᵀw in the objective, for each client another."""
    p, theta = problem(), problem().closed_form.theta0
    g = torch.Generator().manual_seed(0)
    shift = torch.randn(8, len(theta), generator=g, dtype=torch.float64) / 10
    index, mask, n = schedule(p.parts, np.arange(8), batch=16, epochs=2, seed=3, round=0)
    shards = Shards(p.x, p.y, index, mask.double(), n.double())
    got, _, _ = descend(p.closed_form, theta, shards, 0.3, mu=0.2, shift=shift)
    slow = p.closed_form._replace(step=None)  # the other way through the code
    close(got, descend(slow, theta, shards, 0.3, mu=0.2, shift=shift)[0])
    by_hand = theta.clone()  # client 2 alone
    for x, y, m in Shards(p.x, p.y, index[2:3], mask[2:3].double(), n[2:3].double()).batches():
        if m.any():
            grad = p.closed_form.grad(by_hand[None], x, y, m)[0][0]
            by_hand = by_hand - 0.3 * (grad + 0.2 * (by_hand - theta) + shift[2])
    close(got[2], by_hand)


def test_a_schedule_changes_the_rate_of_its_round():
    p = problem()
    rates = [0.4, 0.1, 0.05]
    task = p.closed_form
    method = algorithms.scheduled(lambda lr: algorithms.fedavg(task, lr), lambda t: rates[t])
    got = run(method, task.theta0, p, rounds=3)
    theta = task.theta0
    for t, lr in enumerate(rates):  # one round at a time, each with its own method
        S = sample(8, 5, 3, t)
        index, mask, n = schedule(p.parts, S, batch=16, epochs=2, seed=3, round=t)
        shards = Shards(p.x, p.y, index, mask.double(), n.double())
        theta_k, _, _ = descend(task, theta, shards, lr)
        theta = (n.double() / n.sum()) @ theta_k
    close(got[-1].theta, theta)
    assert got[0].sent == got[0].received + 8  # theta, and one number


def test_fedsgd_with_momentum_is_torch_sgd_with_momentum():
    p, net = problem(), copy.deepcopy(problem().net)
    opt = torch.optim.SGD(net.parameters(), 0.2, momentum=0.8)
    for _ in range(6):
        opt.zero_grad()
        nn.functional.cross_entropy(net(p.x), p.y).backward()
        opt.step()
    method = algorithms.fedsgd(p.closed_form, 0.2, beta=0.8)
    how = {"rounds": 6, "cohort": 8, "batch": None, "epochs": 1}
    close(run(method, p.closed_form.theta0, p, **how)[-1].theta, vector(net))


# -- the server's optimisers ----------------------------------------------------------------------


def steps(opt: optim.Optimizer, gradients: torch.Tensor) -> torch.Tensor:
    theta = torch.zeros(gradients.shape[1], dtype=torch.float64)
    state = opt.init(theta)
    for g in gradients:
        theta, state = opt.step(g, state, theta)
    return theta


def torch_steps(make, gradients: torch.Tensor, v0: float | None = None) -> torch.Tensor:
    theta = nn.Parameter(torch.zeros(gradients.shape[1], dtype=torch.float64))
    opt = make([theta])
    if v0 is not None:
        before = {"step": torch.tensor(0.0), "square_avg": torch.full_like(theta.data, v0)}
        opt.state[theta].update(before)
    for g in gradients:
        theta.grad = g.clone()
        opt.step()
    return theta.detach()


def some_gradients() -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(9, 5, generator=g, dtype=torch.float64) * torch.tensor([1e-3, 0.1, 1, 5, 0])


def test_momentum_is_torch_sgd():
    g = some_gradients()
    want = torch_steps(lambda p: torch.optim.SGD(p, 0.3, momentum=0.9), g)
    close(steps(optim.momentum(0.3, 0.9), g), want)
    close(steps(optim.momentum(0.3, 0.0), g), steps(optim.sgd(0.3), g))


def test_adagrad_is_torch_adagrad():
    g, tau = some_gradients(), 0.01
    make = lambda p: torch.optim.Adagrad(p, 0.3, initial_accumulator_value=tau**2, eps=tau)
    close(steps(optim.adagrad(0.3, tau=tau), g), torch_steps(make, g))


def test_adam_without_momentum_is_torch_rmsprop():
    g, tau = some_gradients(), 0.01
    make = lambda p: torch.optim.RMSprop(p, 0.3, alpha=0.9, eps=tau)
    close(steps(optim.adam(0.3, 0.0, 0.9, tau), g), torch_steps(make, g, v0=tau**2))


@pytest.mark.parametrize("name", ["adam", "yogi"])
def test_adam_and_yogi_are_the_papers_lines(name):
    """Reddi et al., Algorithm 2, number by number in plain Python: no bias correction."""
    lr, b1, b2, tau = 0.1, 0.9, 0.7, 1e-3
    for column in some_gradients().T:
        x, m, v = 0.0, 0.0, tau**2
        for d in (-column).tolist():  # Delta_t = -g_t
            m = b1 * m + (1 - b1) * d
            if name == "yogi":
                v = v - (1 - b2) * d**2 * float(np.sign(v - d**2))
            else:
                v = b2 * v + (1 - b2) * d**2
            x = x + lr * m / (v**0.5 + tau)
        got = steps(getattr(optim, name)(lr, b1, b2, tau), column[:, None])
        assert got.item() == pytest.approx(x, rel=1e-12)


def test_the_servers_optimiser_sees_minus_the_mean_update():
    p, seen = problem(), []

    def spy(g, s, theta):
        seen.append(g)
        return theta - 0.5 * g, s

    method = algorithms.fedopt(p.closed_form, 0.3, optim.Optimizer(lambda theta: (), spy))
    rounds = run(method, p.closed_form.theta0, p)
    for g, r in zip(seen, rounds, strict=True):
        close(-g, r.p @ r.deltas)


# -- quadratics: who reaches the optimum ----------------------------------------------------------


def rests_at(algorithm, problem, *, epochs, rounds=4000):
    """Rounds until theta stands still."""
    task, x, y, parts = problem
    recipe = Recipe(algorithm(task), task.theta0 + 3.0, batch=None, epochs=epochs)
    before = recipe.theta
    for r in federate(Simulated(recipe, x, y, parts), rounds=rounds):
        if (r.theta - before).abs().max() < 1e-14:
            return before
        before = r.theta
    raise AssertionError(f"still moving after {rounds} rounds, at {before}")


@pytest.mark.parametrize("epochs", [1, 5, 20])
@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize("sizes, optimum", [((1, 1), 0.8), ((3, 1), 4 / 7)])
def test_scaffold_reaches_the_optimum(epochs, option, sizes, optimum):
    two = quadratics([1.0, 4.0], [0.0, 1.0], sizes)
    method = lambda task: algorithms.scaffold(task, 0.1, n_total=sum(sizes), option=option)
    got = rests_at(method, two, epochs=epochs)
    assert got.item() == pytest.approx(optimum, abs=1e-9)


def test_a_uniform_c_beside_weighted_updates_goes_astray():
    """The field's bug: 0.8 instead of 4/7. The test above would catch it."""
    two = quadratics([1.0, 4.0], [0.0, 1.0], [3, 1])

    def wrong(task):
        right = algorithms.scaffold(task, 0.1, n_total=4)

        def server(state, delta, reply, p):
            c = state["c"] + reply["delta_c"].mean(0)
            return {"theta": state["theta"] + delta, "c": c}

        return right._replace(server=server)

    assert rests_at(wrong, two, epochs=5).item() == pytest.approx(0.8, abs=1e-9)


@pytest.mark.parametrize("epochs", [1, 5, 20])
@pytest.mark.parametrize("mu", [0.0, 0.5, 4.0])
def test_fedprox_rests_at_its_closed_form(epochs, mu):
    """delta_k = (1 - m_k) a_k (b_k - theta) / (a_k + mu) with m_k = (1 - lr (a_k + mu))^E."""
    a, b, p = np.array([1.0, 4.0]), np.array([0.0, 1.0]), np.array([0.75, 0.25])
    w = p * a / (a + mu) * (1 - (1 - 0.1 * (a + mu)) ** epochs)
    two = quadratics(a, b, [3, 1])
    got = rests_at(lambda task: algorithms.fedprox(task, 0.1, mu), two, epochs=epochs)
    assert got.item() == pytest.approx((w @ b) / w.sum(), abs=1e-9)


@pytest.mark.parametrize("lr, expected", [(0.1, 0.404990), (0.01, 0.490035), (0.001, 0.499000)])
def test_fednova_with_unequal_steps(lr, expected):
    """tau = (1, 9) and equal weights: sizes 1 and 9 in batches of one, every client counts 1."""
    task, x, y, parts = quadratics([1.0, 1.0], [0.0, 1.0], [1, 9])
    method = algorithms.fednova(task, lr)
    recipe = Recipe(method, task.theta0 + 0.5, batch=1, epochs=1, equal=True)
    *_, last = federate(Simulated(recipe, x, y, parts), rounds=int(2 / lr) + 300)
    assert last.theta.item() == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize("tau", [1, 2, 7])
def test_accumulated_is_the_papers_norm(tau):
    """‖a‖₁ of momentum (Wang et al., §4) and of the pull, each from its own sum."""
    t, beta, lr, mu = torch.tensor([[float(tau)]]), 0.8, 0.1, 2.0
    momentum = sum((1 - beta ** (tau - j)) / (1 - beta) for j in range(tau))
    pull = sum((1 - lr * mu) ** (tau - 1 - j) for j in range(tau))
    assert accumulated(t, lr).item() == tau
    assert accumulated(t, lr, beta=beta).item() == pytest.approx(momentum, rel=1e-6)
    assert accumulated(t, lr, mu=mu).item() == pytest.approx(pull, rel=1e-6)


def test_fednova_with_momentum_is_consistent_for_small_steps():
    """Steps differ ninefold, momentum too, yet the fixed point nears the optimum 0.5 with lr."""
    task, x, y, parts = quadratics([1.0, 1.0], [0.0, 1.0], [1, 9])
    off = []
    for lr in (0.02, 0.005):
        method = algorithms.fednova(task, lr, beta=0.5)
        recipe = Recipe(method, task.theta0 + 0.5, batch=1, equal=True)
        *_, last = federate(Simulated(recipe, x, y, parts), rounds=int(4 / lr))
        off.append(abs(last.theta.item() - 0.5))
    assert off[1] < 0.3 * off[0] < 0.02


def random_quadratics(sizes):
    """Eight clients in five dimensions; client k holds sizes[k] copies of its quadratic."""
    rng = np.random.default_rng(0)
    roots = rng.standard_normal((8, 5, 5))
    A = roots @ roots.transpose(0, 2, 1) / 5 + 0.3 * np.eye(5)
    q = Q.of(A, 2 * rng.standard_normal((8, 5)), np.array(sizes, float))
    task, x, y, _ = q.task()
    rows = np.repeat(np.arange(8), sizes)
    ends = np.cumsum([0, *sizes])
    parts = [np.arange(i, j) for i, j in itertools.pairwise(ends)]
    return q, (task, x[rows], y[rows], parts)


SIZES = [1, 5, 2, 2, 7, 1, 3, 4]
CORRECTED = {
    "scaffold": lambda task, n: algorithms.scaffold(task, 0.02, n),
    "scaffold, option 1": lambda task, n: algorithms.scaffold(task, 0.02, n, option=1),
    "feddyn": lambda task, n: algorithms.feddyn(task, 0.02, alpha=0.5, n_total=n),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRECTED)
@pytest.mark.parametrize("cohort", [8, 3])
def test_corrected_methods_reach_the_optimum_in_five_dimensions(name, cohort):
    """Unequal sizes; everybody, or three of eight a round. FedAvg stops at its closed form."""
    q, (task, x, y, parts) = random_quadratics(SIZES)
    recipe = Recipe(CORRECTED[name](task, sum(SIZES)), task.theta0, batch=None, epochs=10)
    *_, last = federate(Simulated(recipe, x, y, parts), rounds=1500, cohort=cohort)
    assert np.abs(last.theta.numpy() - q.optimum()).max() < 1e-5


def test_fedavg_stops_at_its_closed_form_in_five_dimensions():
    q, problem = random_quadratics(SIZES)
    got = rests_at(lambda task: algorithms.fedavg(task, 0.02), problem, epochs=10)
    want = q.fixed_point(0.02, 10)
    assert np.abs(got.numpy() - want).max() < 1e-9
    assert np.abs(want - q.optimum()).max() > 0.02


def test_scaffold_with_option_1_and_one_step_is_gradient_tracking():
    """E = 1: theta moves along the mean gradient, whatever the variates hold."""
    q, (task, x, y, parts) = random_quadratics([1] * 8)
    recipe = Recipe(algorithms.scaffold(task, 0.1, 8, option=1), task.theta0, batch=None)
    theta = np.zeros(5)
    for r in federate(Simulated(recipe, x, y, parts), rounds=20):
        theta = theta - 0.1 * np.einsum("kij,kj->i", q.A, theta - q.b) / 8
        assert np.abs(r.theta.numpy() - theta).max() < 1e-12


def test_feddyn_is_the_papers_algorithm():
    """Acar et al., Algorithm 1, client by client with exact local minima, equal sizes."""
    q, (task, x, y, parts) = random_quadratics([1] * 8)
    alpha, theta, h, eye = 0.5, np.zeros(5), np.zeros(5), np.eye(5)
    grads = np.zeros((8, 5))
    recipe = Recipe(
        algorithms.feddyn(task, 0.1, alpha, n_total=8), task.theta0, batch=None, epochs=400
    )
    for r in federate(Simulated(recipe, x, y, parts), rounds=12, cohort=4):
        arrived = {}
        for k in r.answered:
            # argmin L_k(w) - <grad_k, w> + alpha/2 |w - theta|^2
            right = q.A[k] @ q.b[k] + grads[k] + alpha * theta
            arrived[k] = np.linalg.solve(q.A[k] + alpha * eye, right)
            grads[k] = grads[k] - alpha * (arrived[k] - theta)
        h = h - alpha / 8 * sum(w - theta for w in arrived.values())
        theta = sum(arrived.values()) / 4 - h / alpha
        assert np.abs(r.theta.numpy() - theta).max() < 1e-6


def test_scaffolds_c_is_the_weighted_mean_of_all_clients_variates():
    """With five of eight a round, of very unequal sizes: c never loses track."""
    p = problem()
    states = []
    method = algorithms.scaffold(p.closed_form, 0.2, n_total=240)

    def server(state, delta, reply, weights):
        states.append(method.server(state, delta, reply, weights))
        return states[-1]

    recipe = Recipe(method._replace(server=server), p.closed_form.theta0, batch=16)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    sizes = torch.tensor([len(rows) for rows in p.parts], dtype=torch.float64)
    run_ = federate(clients, rounds=6, cohort=uniform(5))
    for _ in run_:
        close(states[-1]["c"], (sizes / 240) @ run_.memory[0]["c_k"])


def test_fednovas_round_by_hand():
    """tau_eff = sum p_k tau_k times the weighted mean of the updates a step; sizes differ."""
    p = problem()
    task = p.closed_form
    (plain,) = run(algorithms.fedavg(task, 0.3), task.theta0, p, rounds=1)
    (nova,) = run(algorithms.fednova(task, 0.3, server_lr=0.7), task.theta0, p, rounds=1)
    _, mask, _ = schedule(p.parts, plain.answered, batch=16, epochs=2, seed=3, round=0)
    tau = mask.any(-1).sum(-1).double()
    assert len(set(tau.tolist())) > 2
    per_step = sum(w * d / t for w, d, t in zip(plain.p, plain.deltas, tau, strict=True))
    close(nova.theta, task.theta0 + 0.7 * (plain.p @ tau) * per_step)


@pytest.mark.parametrize("option", [1, 2])
def test_scaffolds_variate_is_the_mean_gradient_of_the_steps_really_taken(option):
    """Round 0, where nothing is corrected yet: clients of two to twelve steps, each by hand."""
    p = problem()
    task, theta = p.closed_form, p.closed_form.theta0
    method = algorithms.scaffold(task, 0.2, n_total=240, option=option)
    recipe = Recipe(method, theta, batch=16, epochs=2)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    one = federate(clients, rounds=1)
    next(one)
    index, mask, _ = schedule(p.parts, np.arange(8), batch=16, epochs=2, seed=0, round=0)
    for k in range(8):
        w, met = theta, []
        for rows, real in zip(index[k], mask[k].double(), strict=True):
            if real.any():
                at = theta if option == 1 else w
                g = task.grad(at[None], p.x[rows][None], p.y[rows][None], real[None])[0][0]
                met.append((g, real.sum() if option == 1 else 1.0))  # 1: every example alike
                w = w - 0.2 * g
        mean = sum(g * m for g, m in met) / sum(m for _, m in met)
        close(one.memory[0]["c_k"][k], mean)


# -- what is refused ------------------------------------------------------------------------------

BAD = {
    "fedprox: mu must be >= 0": lambda t: algorithms.fedprox(t, 0.1, mu=-1.0),
    "fedprox: mu must": lambda t: algorithms.fedprox(t, 0.1, mu=float("nan")),
    "fedavg: beta must be >= 0 and < 1": lambda t: algorithms.fedavg(t, 0.1, beta=1.0),
    "fedavg: weight_decay must": lambda t: algorithms.fedavg(t, 0.1, weight_decay=-0.1),
    "scaffold: n_total must": lambda t: algorithms.scaffold(t, 0.1, n_total=0),
    "scaffold: option must be 1 or 2": lambda t: algorithms.scaffold(t, 0.1, 10, option=3),
    "scaffold: server_lr must": lambda t: algorithms.scaffold(t, 0.1, 10, server_lr=0),
    "feddyn: alpha must be > 0": lambda t: algorithms.feddyn(t, 0.1, 0.0, 10),
    "fednova: mu must be < 1 / lr": lambda t: algorithms.fednova(t, 0.5, mu=2.0),
    "momentum: beta must": lambda t: algorithms.fedavgm(t, 0.1, beta=1.0),
    "adam: beta2 must": lambda t: algorithms.fedadam(t, 0.1, beta2=1.0),
    "adagrad: lr must": lambda t: algorithms.fedadagrad(t, 0.1, server_lr=-1),
    "yogi: tau must": lambda t: algorithms.fedyogi(t, 0.1, tau=0.0),
    "fedavg: lr must": lambda t: algorithms.scheduled(
        lambda lr: algorithms.fedavg(t, lr), lambda t: 0.0
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_numbers_are_refused_in_words(message):
    with pytest.raises(ValueError, match=message) as e:
        BAD[message](problem().closed_form)
    assert "got" in str(e.value) and "e.g." in str(e.value)


@pytest.mark.parametrize("method", ["scaffold", "feddyn"])
def test_a_total_smaller_than_the_cohort_is_found_out(method):
    p = problem()
    make = {
        "scaffold": lambda: algorithms.scaffold(p.closed_form, 0.1, n_total=8),  # N, not Σ n_k
        "feddyn": lambda: algorithms.feddyn(p.closed_form, 0.1, 0.1, n_total=8),
    }[method]
    with pytest.raises(ValueError, match=f"{method}: n_total must be .*all clients' examples"):
        run(make(), p.closed_form.theta0, p)


def test_the_battery_covers_every_method():
    """Whatever ``algorithms`` offers is in METHODS."""
    made = {name for name in algorithms.__all__ if name[0].islower()}
    source = " ".join(METHODS)
    assert {m for m in made if m.replace("fedopt", "fedavgm") not in source} == set()
