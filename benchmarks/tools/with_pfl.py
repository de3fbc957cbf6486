"""The same run in pfl-research: 20 clients, 30 rounds of FedAvg, full batches, E = 5, lr 0.5.

Needs an environment of its own, because pfl 0.6 pins ``dp-accounting`` below 0.6:

    python -m venv pfl-env && pfl-env/bin/pip install -e . pfl==0.6.0
    OMP_NUM_THREADS=1 pfl-env/bin/python benchmarks/tools/with_pfl.py
"""

import importlib.metadata
import time

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn import functional as F

from fedlearn import Recipe, Simulated, algorithms, data, federate, model, partition
from fedlearn.rng import Use, numpy_rng

torch.set_num_threads(1)
digits = data.load("digits")
rng = numpy_rng(0, Use.PARTITION)
parts = partition.dirichlet_label(digits.y.numpy(), 20, rng, alpha=0.1)


class Net(nn.Linear):
    """Softmax regression from zero, as pfl wants a model."""

    def __init__(self):
        super().__init__(64, 10)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def loss(self, x, y, eval=False):
        return F.cross_entropy(self(x), y)

    def metrics(self, x, y, eval=False):
        return {}


def ours():
    task = model.softmax_regression(64, 10)
    recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, batch=None, epochs=5)
    *_, last = federate(Simulated(recipe, digits.x, digits.y, parts), rounds=30)
    return last.theta


def theirs():
    net, users = Net(), iter(np.tile(np.arange(20), 40).tolist())
    load = lambda k: Dataset((digits.x[parts[k]], digits.y[parts[k]]))
    train = FederatedDataset(load, lambda: next(users))
    server = torch.optim.SGD(net.parameters(), lr=1.0)
    how = NNAlgorithmParams(
        central_num_iterations=30, evaluation_frequency=1000, train_cohort_size=20,
        val_cohort_size=None,
    )  # fmt: skip
    local = NNTrainHyperParams(local_num_epochs=5, local_learning_rate=0.5, local_batch_size=None)
    backend = SimulatedBackend(train, None, postprocessors=[WeightByDatapoints()])
    FederatedAveraging().run(how, backend, PyTorchModel(net, torch.optim.SGD, server), local)
    return torch.cat([net.weight.detach().flatten(), net.bias.detach()])


if __name__ == "__main__":
    thetas = []
    for name, run in (("fedlearn", ours), (f"pfl {importlib.metadata.version('pfl')}", theirs)):
        began = time.perf_counter()
        thetas.append(run())
        print(f"{name}: {time.perf_counter() - began:.2f} s")
    print(f"largest difference of theta: {(thetas[0] - thetas[1]).abs().max():.1e}")
