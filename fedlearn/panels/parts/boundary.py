"""The plane of a toy problem: who holds which point, and where each model draws the line."""

from typing import Any

import numpy as np
import traitlets as T

from ...plots import DASHES, HALO, OKABE_ITO
from ..engine import Snapshot
from .base import Part, packed, script
from .lines import GRID, LIM

MARKS = "os^Dv*"  # dot, square, up, diamond, down, star: as in boundary.js


class Boundary(Part):
    """Points in their client's colour and mark, each client's boundary, the shared model's.

    A hollow point is one that the shared model gets wrong. Dashed: a client's model after its local
    steps of this round; thick: the shared model after the round. Grey: the shared model's classes.

    Reads ``boundary`` from the frame: what :func:`~fedlearn.panels.boundary_scene` returns.

    Example:
        >>> import torch
        >>> from fedlearn.model import mlp
        >>> from fedlearn.panels import Engine, boundary_scene
        >>> x, task = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), mlp(2, 4, 2)
        >>> scene = boundary_scene(task, task.theta0, [], x, torch.tensor([0, 1]), [0, 1])
        >>> picture = Boundary()
        >>> picture.show(Engine(lambda: [{"boundary": scene}], {}, rounds=1).compute())
        >>> picture.clients, len(picture.regions)
        (2, 2304)
    """

    _esm = script("boundary")
    regions = T.Bytes(b"").tag(sync=True)
    grid = T.Int(GRID).tag(sync=True)
    lim = T.Float(LIM).tag(sync=True)
    lines = T.Bytes(b"").tag(sync=True)
    lengths: Any = T.List().tag(sync=True)
    points = T.Bytes(b"").tag(sync=True)
    owner = T.Bytes(b"").tag(sync=True)
    right = T.Bytes(b"").tag(sync=True)
    names: Any = T.List().tag(sync=True)
    clients = T.Int(0).tag(sync=True)

    def __init__(self, *, title: str = "the plane: who says what where"):
        super().__init__(title=title)
        self._scene: dict[str, Any] = {}

    def show(self, snapshot: Snapshot) -> None:
        scene = snapshot.latest.get("boundary")
        if scene is None:
            return
        self._scene = scene
        owner, right = np.asarray(scene["owner"], np.uint8), np.asarray(scene["right"], bool)
        K = int(owner.max()) + 1
        own = [right[owner == k].mean() if (owner == k).any() else 0.0 for k in range(K)]
        with self.hold_sync():
            self.gen, self.clients = snapshot.gen, K
            self.regions = np.ascontiguousarray(scene["regions"], np.uint8).tobytes()
            self.lines = packed(np.concatenate(scene["lines"]))
            self.lengths = [len(line) for line in scene["lines"]]
            self.points, self.names = packed(scene["points"]), scene["names"]
            self.owner, self.right = owner.tobytes(), right.astype(np.uint8).tobytes()
            self.label = self.say(
                "{title}: the shared model is right on {right:.2f} of {n} points; by client {each}",
                title=self.title,
                right=right.mean(),
                n=len(right),
                each=self.say(", ").join(f"{k}: {v:.2f}" for k, v in enumerate(own)),
            )

    def paint(self, axes: Any) -> None:
        from matplotlib.colors import ListedColormap

        axes.set(xlim=(-LIM, LIM), ylim=(-LIM, LIM), xlabel="x₁", ylabel="x₂")
        axes.set_aspect("equal", adjustable="box")
        if not (s := self._scene):
            return
        greys = ListedColormap(["#FAFAFA", "#E6E6E6", "#CFCFCF", "#BDBDBD"])
        box = (-LIM, LIM, -LIM, LIM)
        axes.imshow(s["regions"], cmap=greys, extent=box, origin="lower", vmin=0, vmax=3, zorder=0)
        for k in range(self.clients):
            for right in (False, True):
                at = s["points"][(s["owner"] == k) & (s["right"] == right)]
                color, mark = OKABE_ITO[k % 8], MARKS[k % 6]
                look = {"color": color, "mfc": color if right else "white", "ms": 4, "lw": 0}
                name = self.say("client {k}", k=k) if right else None
                axes.plot(*at.T, mark, label=name, **look)
        for k, line in enumerate(s["lines"][1:]):
            axes.plot(*line.T, color=OKABE_ITO[k % 8], lw=1.6, ls=DASHES[1 + k % 4])
        axes.plot(*s["lines"][0].T, color="#111111", lw=2.6, label=self.say("shared"))
        for n in s["names"]:
            name = self.say("class {name}", name=n["text"])
            axes.text(*n["at"], name, fontsize=10, ha="center", path_effects=HALO)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, fontsize=9, edgecolor="none"
        )
