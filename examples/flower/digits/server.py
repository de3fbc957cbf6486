"""The server: finds the nodes, runs the rounds, and goes on from the checkpoint if there is one."""

from pathlib import Path

import numpy as np
import torch
from flwr.serverapp import ServerApp

from fedlearn import federate, model
from fedlearn.flower import GridClients

from .recipe import TASK, digest, recipe_of

app = ServerApp()


@app.main()
def main(grid, context):
    """One run."""
    how = context.run_config
    folder = Path(how["folder"])
    held_out = np.load(folder / "test.npz")
    test = model.evaluator(TASK, *(torch.from_numpy(held_out[k]) for k in "xy"))
    ways = {k: how[k] for k in ("timeout", "minimum", "tries")}
    ways["directory"] = how["directory"] or None
    clients = GridClients(recipe_of(how["method"]), grid, how["clients"], **ways)
    path = folder / f"{how['name']}.ckpt"
    run = federate(clients, rounds=how["rounds"], evaluate=test, checkpoint=path, resume=True)
    print(f"found {clients.count} nodes, begins with round {run.t}", flush=True)
    for r in run:
        who = f"{len(r.answered)} of {len(r.called)} clients"
        print(f"round {r.t}: {who}, accuracy {r.metrics['accuracy']:.3f}", flush=True)
    run.history.to_csv(path.with_suffix(".csv"))
    print(f"digest {digest(run.state['theta'])}", flush=True)
