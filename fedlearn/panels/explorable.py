"""Controls at the left, pictures at the right, a thread behind: what every live lesson is."""

import base64
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as W

from ..checks import check, not_negative, positive, whole
from ..partition.files import write_whole
from . import kernel
from .controls import has_value, value_of
from .engine import Engine, Frame, Snapshot, in_words
from .figure import figure, png
from .parts.base import Part
from .parts.readout import Readout, Status
from .save import claim, table
from .words import flat, spoken, words

_SAVE = "CSV, PNG beside the notebook. A panel lives in the kernel: a restart forgets its last run"


class Explorable:
    """A picture that answers the hand: move a control, and ``make`` runs anew.

    Args:
        controls: name -> a widget from :mod:`fedlearn.panels.controls` (or any widget with a
            ``value``; headings have none). The names are the arguments of ``make``.
        make: ``make(**values)`` yields frames, as :class:`~fedlearn.panels.Engine` wants them. A
            picture without time yields one frame.
        parts: One to four parts, else ValueError, filled column by column.
        rounds: Rounds of a run. 0 for a picture without time: then there are no run buttons.
        seconds: How long a run started by the Run button takes at least.
        readout: Snapshot -> short texts beside the progress bar.
        predict: The question under the picture.
        caption: Snapshot -> one sentence, for ``text/plain``, screen readers and alt text.
        code: Snapshot -> Python that does the same; None leaves the Code button out.
        name: Stem of saved files.
        preview: Compute the first run now, so that the picture is never blank.
        fps: Most frames a second.

    Example:
        >>> from fedlearn.panels import Curve, controls
        >>> def halve(start):
        ...     for t in range(11):
        ...         yield {"height": start / 2**t}
        >>> sliders = {"start": controls.slider("Start", 8, 1, 9)}
        >>> demo = Explorable(sliders, halve, [Curve("height")], rounds=10)
        >>> demo.engine.snapshot().columns["height"][:3].tolist()
        [8.0, 4.0, 2.0]
        >>> demo.close()
    """

    def __init__(
        self,
        controls: Mapping[str, W.Widget],
        make: Callable[..., Iterable[Frame]],
        parts: Sequence[Part],
        *,
        rounds: int = 0,
        seconds: float = 2.0,
        readout: Callable[[Snapshot], list[str]] | None = None,
        predict: str = "",
        caption: Callable[[Snapshot], str] | None = None,
        code: Callable[[Snapshot], str] | None = None,
        name: str = "fedlearn",
        preview: bool = True,
        fps: float = 20.0,
    ):
        check("Explorable", "parts", len(parts), 1 <= len(parts) <= 4, "one to four", "[Curve()]")
        strange = [k for k, c in controls.items() if not isinstance(c, W.Widget)]
        example = "{'a': controls.slider('A', 5, 0, 9)}"
        check("Explorable", "controls", strange, not strange, "widgets, all of them", example)
        whole("Explorable", "rounds", rounds, 0, example=60)
        not_negative("Explorable", "seconds", seconds, 2.0)
        positive("Explorable", "fps", fps, 20.0)
        kernel.replace_older(self)
        self.say = spoken()
        self.controls, self.parts, self.name = dict(controls), list(parts), name
        for widget in (*self.controls.values(), *self.parts):
            kernel.open_tree(widget)
        self._caption, self._code, self._predict = caption, code, predict
        self._lock, self._static, self._showing_code = threading.RLock(), "", False
        self._wrong = ""  # what is wrong with the controls' values, in words
        self._loop, self._adjusting = kernel.running_loop(), False
        self._build(rounds, readout)
        self.engine = Engine(
            make,
            self._adjust(),
            rounds=rounds,
            fps=fps,
            pace=seconds / rounds if rounds else 0.0,
            on_frame=self._frame,
        )
        if preview:
            self._frame(self.engine.compute())
        for c in self.controls.values():
            if has_value(c):
                c.observe(self._moved, "value")

    def values(self) -> dict[str, Any]:
        """The controls' values, by name: what ``make`` is called with."""
        return {k: value_of(c) for k, c in self.controls.items() if has_value(c)}

    def close(self) -> None:
        """End the thread and remove every widget model. Running the cell again does this, too."""
        self.engine.close()
        for c in self.controls.values():
            with contextlib.suppress(ValueError):  # it wasn't observed: has no value
                c.unobserve(self._moved, "value")
        kernel.close_tree(self.ui)

    def save(self) -> list[Path]:
        """Write CSV and PNG beside the notebook, never over a file. Returns the two paths.

        The picture is drawn on the main thread; while another cell runs it comes after that cell.
        Both files are there, whole, or neither; what went wrong is raised, or said in the panel.
        """
        snapshot = self.engine.snapshot()
        content = self._table(snapshot)
        paths = claim(self._stem(snapshot), [".csv", ".png"])
        with _all_or_none(paths[0]):
            write_whole(paths[0], content)
            if self._loop in (None, kernel.running_loop()) or not self._loop.is_running():
                self._draw_file(*paths)
            else:
                later = "Saving {name}: its picture comes after this cell"
                self.status.news = self.say(later, name=paths[0].name)
                self._loop.call_soon_threadsafe(self._saved_later, *paths)
        return paths

    def caption(self, snapshot: Snapshot | None = None) -> str:
        """One sentence for those who can't see the picture."""
        s = snapshot or self.engine.snapshot()
        if self._caption:
            return self._caption(s)
        said = [f"{self.say(k)} {words(v, self.say)}" for k, v in flat(s.params).items()]
        pictures = self.say(". ").join(p.label or p.title for p in self.parts)
        said_of = {"pictures": pictures, "settings": self.say(", ").join(said)}
        return self.say("{pictures}. Settings: {settings}.", **said_of)

    # -- building --------------------------------------------------------------------------------

    def _build(self, rounds: int, readout: Callable[[Snapshot], list[str]] | None) -> None:
        self.status = Status()
        self.readout = Readout(readout or (lambda s: [])) if rounds else None
        head, foot = self._head() if rounds else None, self._foot()
        for c in self.controls.values():
            c.add_class("fl-control")
        panes = _box(self.parts, "fl-parts", f"fl-n{len(self.parts)}")
        left = [_box(self.controls.values(), "fl-controls")] if self.controls else []
        rows = [*([head] if head else []), *left, panes, foot, self.status]
        grid = _box(rows, "fl-grid", *([] if left else ["fl-bare"]))
        self.ui = _box([grid], "fl-root")
        kernel.hear_while_busy(self.ui)

    def _head(self) -> W.Widget:
        make = self._button
        toggle, step = self._safely(self._toggled), self._safely(lambda: self.engine.step())
        self.run_button = make("Run", "play", "Run or pause the training", toggle)
        self.step_button = make("Step", "step-forward", "One round", step)
        reset = self._safely(lambda: self.engine.reset())
        self.reset_button = make("Reset", "undo", "Back to round 0", reset)
        buttons = _box([self.run_button, self.step_button, self.reset_button], "fl-buttons")
        return _box([buttons, self.readout], "fl-head")

    def _foot(self) -> W.Widget:
        predict = W.HTML(self.say(self._predict))
        predict.add_class("fl-predict")
        buttons = [self._button("Save", "download", _SAVE, self._save)]
        if self._code:
            tip = "The Python that makes this run"
            buttons.insert(0, self._button("Code", "code", tip, self._safely(self.show_code)))
        return _box([predict, *buttons], "fl-foot")

    def _button(self, name: str, icon: str, tip: str, do: Callable[[], Any]) -> W.Button:
        button = W.Button(description=self.say(name), icon=icon, tooltip=self.say(tip))
        button.on_click(lambda _: do())
        return button

    # -- from the browser, on whatever thread the kernel chose -----------------------------------

    def _moved(self, change: Any = None) -> None:
        with self._lock:  # two callbacks at once (main and subshell): the later reader wins
            if self._adjusting:
                return
            self._adjusting = True
            try:
                self.engine.set(**self._adjust())
                if self._wrong:  # back where it was, maybe: then no frame comes
                    self._wrong, self.status.error = "", self.engine.error
            except Exception as e:  # said in the panel, which lives on
                self._wrong = self.status.error = in_words(e)
            finally:
                self._adjusting = False

    def _adjust(self) -> dict[str, Any]:
        """Where controls follow each other, and what ``make`` is then called with."""
        return self.values()

    def _toggled(self) -> None:
        if self.engine.state == "running":
            self.engine.pause()
        else:
            self.engine.run()

    def show_code(self) -> None:
        """Show or hide the Python that makes this run: what the Code button does."""
        self._showing_code = not self._showing_code
        text = self._code(self.engine.snapshot()) if self._code and self._showing_code else ""
        self.status.code = text

    def _save(self) -> None:
        try:
            self.save()
        except Exception as e:
            self.status.news = self.say("Nothing saved: {error}", error=in_words(e))

    def _saved_later(self, *paths: Path) -> None:
        try:
            with _all_or_none(paths[0]):
                self._draw_file(*paths)
        except Exception as e:
            self.status.news = self.say("Nothing saved: {error}", error=in_words(e))

    def _safely(self, do: Callable[[], Any]) -> Callable[[], None]:
        """What a button does; what goes wrong is said in the panel."""

        def done() -> None:
            try:
                do()
            except Exception as e:
                self.status.error = in_words(e)

        return done

    # -- from the worker -------------------------------------------------------------------------

    def _frame(self, s: Snapshot) -> None:
        failed: list[Exception] = []
        for part in (*self.parts, *([self.readout] if self.readout else [])):
            try:
                part.show(s)
            except Exception as e:  # the other pictures go on
                failed.append(e)
        self.status.show(replace(s, error=self._wrong or s.error or "".join(map(in_words, failed))))
        if hasattr(self, "run_button"):
            running = s.state == "running"
            self.run_button.description = self.say("Pause" if running else "Run")
            self.run_button.icon = "pause" if running else "play"
        if s.state != "running":
            self.status.said = self.say(s.state) + self.say(". ") + self.caption(s)
        if self._showing_code and self._code:
            self.status.code = self._code(s)
        if failed:
            raise failed[0]

    # -- pictures and files, on the main thread --------------------------------------------------

    def figure(self) -> Any:
        """What is shown now, as a Matplotlib figure."""
        return figure(self.parts, title=self._figure_title(self.engine.snapshot()))

    def _figure_title(self, s: Snapshot) -> str:
        return ""

    def _stem(self, s: Snapshot) -> str:
        return self.name

    def _table(self, s: Snapshot) -> bytes:
        return table(s.columns, s.params)

    def _draw_file(self, data: Path, picture: Path) -> None:
        drawn = png(self.figure())
        if os.path.lexists(picture):
            raise FileExistsError(f"there is a {picture.name} now: save once more")
        write_whole(picture, drawn)
        names = {"data": data.name, "picture": picture.name, "folder": data.parent}
        self.status.news = self.say("Saved {data} and {picture} in {folder}", **names)

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        data = dict(self.ui._repr_mimebundle_() or {})
        said = self.caption()
        if not self._static:
            self._static = base64.b64encode(png(self.figure())).decode()
        data |= {"text/plain": said, "image/png": self._static}
        return data, {"image/png": {"alt": said}}


@contextlib.contextmanager
def _all_or_none(data: Path) -> Iterator[None]:
    """Without its picture the table goes, too."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            data.unlink()
        raise


def _box(children: Iterable[W.Widget], *classes: str) -> W.Box:
    box = W.Box(list(children))
    for c in classes:
        box.add_class(c)
    return box
