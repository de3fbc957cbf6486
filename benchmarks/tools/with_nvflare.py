"""The same run in NVFlare: 5 clients, 3 rounds of FedAvg, full batches, E = 5, lr 0.5.

NVFlare starts a process for each client, with this file as its script. It needs an environment of
its own, because its protobuf isn't Flower's; it was run without a network:

    python -m venv nv-env && nv-env/bin/pip install -e . nvflare==2.9.0
    OMP_NUM_THREADS=1 unshare -n sh -c \
        'ip link set lo up && nv-env/bin/python benchmarks/tools/with_nvflare.py'
"""

import importlib.metadata
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from fedlearn import Recipe, Simulated, algorithms, data, federate, model, partition
from fedlearn.rng import Use, numpy_rng

CLIENTS, ROUNDS = 5, 3


def world():
    torch.set_num_threads(1)
    digits = data.load("digits")
    rng = numpy_rng(0, Use.PARTITION)
    parts = partition.dirichlet_label(digits.y.numpy(), 20, rng, alpha=0.1)
    return digits, parts[:CLIENTS]


class Net(nn.Linear):
    """Softmax regression from zero."""

    def __init__(self):
        super().__init__(64, 10)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def client():
    """What runs in the process of a site."""
    import nvflare.client as flare

    flare.init()
    digits, parts = world()
    rows = parts[int(flare.get_site_name().split("-")[1]) - 1]
    x, y, net = digits.x[rows], digits.y[rows], Net()
    while flare.is_running():
        net.load_state_dict(flare.receive().params)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        weight = {"NUM_STEPS_CURRENT_ROUND": len(y)}  # by which NVFlare averages
        own = flare.FLModel(params=net.state_dict(), metrics={"accuracy": 0.0}, meta=weight)
        flare.send(own)


def ours():
    digits, parts = world()
    task = model.softmax_regression(64, 10)
    recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, batch=None, epochs=5)
    *_, last = federate(Simulated(recipe, digits.x, digits.y, parts), rounds=ROUNDS)
    return last.theta


def theirs(folder):
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe import SimEnv

    sys.path.insert(0, str(Path(__file__).parent))
    from with_nvflare import Net as Shared  # by the name under which the server imports it

    recipe = FedAvgRecipe(
        name="digits", min_clients=CLIENTS, num_rounds=ROUNDS, model=Shared(),
        train_script=__file__, train_args="client",
    )  # fmt: skip
    recipe.execute(SimEnv(num_clients=CLIENTS, num_threads=CLIENTS, workspace_root=folder))
    (file,) = Path(folder).rglob("FL_global_model.pt")
    saved = torch.load(file, weights_only=False)
    own = saved.get("model", saved)
    return torch.cat([torch.as_tensor(own[k]).flatten() for k in ("weight", "bias")])


def main():
    began = time.perf_counter()
    theta = ours()
    print(f"fedlearn: {time.perf_counter() - began:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        other = theirs(folder)
    version = importlib.metadata.version("nvflare")
    print(f"nvflare {version}: {time.perf_counter() - began:.1f} s")
    print(f"largest difference of theta: {(theta - other).abs().max():.1e}")


if __name__ == "__main__":
    client() if sys.argv[1:] == ["client"] else main()
