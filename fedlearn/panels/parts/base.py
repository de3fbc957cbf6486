"""What every picture is: live in the browser, still in Matplotlib, in one class of one file."""

from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets as T

from ...plots import OKABE_ITO
from ..engine import Snapshot
from ..words import spoken

_TEXTS = ("title", "xlabel", "ylabel", "rowname", "colname", "unit")  # said in the panel's language
_WEB = Path(__file__).parents[1] / "web"
_ON_DARK = ("#56B4E9", "#F0B93A", "#2BC79A", "#F0803C", "#E3A0C6", "#9AD4F5", "#A0A0A0", "#EEEEEE")


def script(name: str) -> str:
    """The JavaScript of a part, as text (a path would be watched): the helpers and its own."""
    return "\n".join((_WEB / f"{n}.js").read_text(encoding="utf-8") for n in ("common", name))


def sheet() -> str:
    """The style sheet, with the course's colours as ``--fl-c0`` to ``--fl-c7``."""
    css = (_WEB / "style.css").read_text(encoding="utf-8")
    for place, palette in (("/* light */", OKABE_ITO), ("/* dark */", _ON_DARK)):
        css = css.replace(place, " ".join(f"--fl-c{k}: {c};" for k, c in enumerate(palette)))
    return css


def packed(values: Any) -> bytes:
    """Numbers as they are sent: float32, row by row."""
    return np.ascontiguousarray(values, np.float32).tobytes()


def corner(axes: Any, text: str, color: str = "#444444") -> None:
    """A remark at the right above a still picture, beside its title."""
    axes.set_title(text, loc="right", fontsize=9, color=color)


class Part(anywidget.AnyWidget):
    """A small live picture: a title, a spoken label, the number of the run it shows.

    A part of your own has ``_esm`` (JavaScript), traits for what is sent, ``show`` and ``paint``.

    Example:
        >>> Part(title="test loss").title
        'test loss'
    """

    _css = sheet()
    title = T.Unicode("").tag(sync=True)
    label = T.Unicode("").tag(sync=True)
    gen = T.Int(0).tag(sync=True)
    words = T.Dict().tag(sync=True)  # those of its script that the language says in another way

    def __init__(self, **traits: Any):
        self.say = say = spoken()
        script = str(self._esm) if hasattr(self, "_esm") else ""
        words = {k: v for k, v in say.table.items() if k != v and f'"{k}"' in script}
        said = {k: say(v) if k in _TEXTS else v for k, v in traits.items()}
        super().__init__(words=words, **said)

    def found(self, s: Snapshot, key: str, none: Any) -> Any:
        """What the frames hold under a key; ``none`` after an error: an old picture deceives."""
        return s.latest.get(key, none if s.state == "error" else None)

    def show(self, snapshot: Snapshot) -> None:
        """Send what the snapshot holds to the browser. Only a panel's worker calls it."""
        raise NotImplementedError

    def paint(self, axes: Any) -> None:
        """Draw what is shown now onto Matplotlib axes."""
        raise NotImplementedError

    def finish(self, axes: Any) -> None:
        """What can be drawn only when the figure is laid out."""
