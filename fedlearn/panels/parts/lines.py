"""Where models of a plane draw the line between classes: numbers for a picture, no widgets."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...model import Task

LIM = 1.1  # half the side of the picture
GRID = 48  # nodes a side where the models are asked


def boundary_scene(
    task: Task, theta: Tensor, thetas: Tensor | Sequence[Tensor], x: Tensor, y: Tensor, owner: Any
) -> dict[str, Any]:
    """What :class:`~fedlearn.panels.Boundary` draws.

    Costly: hand it over in a function, which is called only when a frame is shown.

    Args:
        task: The model, with two inputs.
        theta: (d,) the shared model.
        thetas: (K, d) models after local steps, or nothing.
        x: (n, 2) points in [-1.1, 1.1]; ValueError if they are not in a plane.
        y: (n,) their classes.
        owner: (n,) the client of each.

    Returns:
        ``regions`` (48, 48) class of the shared model at each node, ``lines`` one array (m, 2) a
        model with NaN between pieces, the shared model's first, ``points``, ``owner``, ``right``
        (n,) and ``names`` of the classes.

    Example:
        >>> import torch
        >>> from fedlearn.model import softmax_regression
        >>> task, x = softmax_regression(2, 2), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> theta = torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0])  # class 1 where x > 0
        >>> scene = boundary_scene(task, theta, [], x, torch.tensor([0, 1]), [0, 1])
        >>> abs(float(scene["lines"][0][:, 0].max())) < 1e-6, scene["right"].tolist()
        (True, [True, True])
    """
    if x.dim() != 2 or x.shape[1] != 2:
        raise ValueError(
            f"Boundary: needs points of a plane, (n, 2), got {tuple(x.shape)}, e.g. dataset='toy'"
        )
    at = torch.linspace(-LIM, LIM, GRID)
    nodes = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).reshape(-1, 2)
    with torch.no_grad():
        scores = torch.stack([task.predict(th, nodes) for th in (theta, *thetas)])
        right = task.predict(theta, x).argmax(-1) == y
    grids = scores.reshape(len(scores), GRID, GRID, -1).numpy()
    return {
        "regions": grids[0].argmax(-1).astype(np.uint8),
        "lines": [line * (2 * LIM / (GRID - 1)) - LIM for line in lines(grids)],
        "points": x.numpy(),
        "owner": np.asarray(owner, np.uint8),
        "right": right.numpy(),
        "names": _names(x.numpy(), y.numpy()),
    }


def _names(x: np.ndarray, y: np.ndarray) -> list[dict[str, Any]]:
    """Each class is named once, beyond its outermost points."""
    out = []
    for c in np.unique(y):
        own = x[y == c]
        far = own[np.argsort(-np.linalg.norm(own, axis=1))[: max(1, len(own) // 20)]].mean(0)
        out.append({"at": [float(v) for v in np.clip(1.12 * far, -0.92, 0.92)], "text": str(c)})
    return out


def lines(scores: np.ndarray) -> list[np.ndarray]:
    """Where the largest score changes hands, by linear interpolation along the grid's edges.

    Two crossings of a cell are joined; three or more meet in their middle, where classes meet.

    scores (M, G, G, C), first rows, then columns -> M arrays (m, 2) of (column, row) coordinates,
    NaN rows between pieces.
    """
    _, G, _, _ = scores.shape
    across, a = _crossings(scores[:, :, :-1], scores[:, :, 1:])  # (M, G, G - 1)
    along, b = _crossings(scores[:, :-1], scores[:, 1:])  # (M, G - 1, G)
    out = []
    for h, th, v, tv in zip(across, a, along, b):
        place: dict[int, tuple[float, float]] = {}
        cells: dict[int, list[int]] = defaultdict(list)  # cell -> its crossings
        for up, (hit, t) in enumerate(((h, th), (v, tv))):
            for i, j in np.argwhere(hit).tolist():
                e = 2 * (i * G + j) + up
                place[e] = (j, i + t[i, j]) if up else (j + t[i, j], i)
                for r, c in ((i, j), (i, j - 1) if up else (i - 1, j)):  # the cells at its sides
                    if 0 <= r < G - 1 and 0 <= c < G - 1:
                        cells[r * G + c].append(e)
        links: dict[int, list[int]] = defaultdict(list)
        for cell, ends in cells.items():
            if len(ends) > 2:  # a place of its own, under a negative number
                x, y = zip(*(place[e] for e in ends))
                place[-1 - cell] = (sum(x) / len(ends), sum(y) / len(ends))
                pairs = [(e, -1 - cell) for e in ends]
            else:
                pairs = [(ends[0], ends[1])]
            for p, q in pairs:
                links[p].append(q)
                links[q].append(p)
        out.append(_chained(place, links))
    return out


def _crossings(s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between neighbours: whether the largest score is another's, and where they are equal."""
    one, two = s.argmax(-1)[..., None], t.argmax(-1)[..., None]
    lead, lag = (
        (np.take_along_axis(v, one, -1) - np.take_along_axis(v, two, -1))[..., 0] for v in (s, t)
    )
    return (one != two)[..., 0], np.clip(lead / np.where(lead - lag > 0, lead - lag, 1), 0, 1)


def _chained(place: dict[int, tuple[float, float]], links: dict[int, list[int]]) -> np.ndarray:
    """Walk the graph: first from ends and meeting points, then round the closed curves."""
    out: list[tuple[float, float]] = []
    for start in [n for n in links if len(links[n]) != 2] + list(links):
        while links[start]:
            node = start
            if out:
                out.append((np.nan, np.nan))
            out.append(place[node])
            while links[node]:
                following = links[node].pop()
                links[following].remove(node)
                node = following
                out.append(place[node])
                if len(links[node]) != 1:
                    break
    return np.array(out, np.float32).reshape(-1, 2)
