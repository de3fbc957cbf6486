"""Pictures: what is sent to the browser, what is said, what is drawn without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlearn.panels import Curve, Engine, Explorable, Pictures, controls
from fedlearn.panels.figure import figure, png


def shown(part, **frame):
    engine = Engine(lambda: [frame], {}, rounds=1)
    part.show(engine.compute())
    engine.close()
    return part


def test_every_pixel_is_sent_in_reading_order():
    a, b = np.arange(6.0).reshape(2, 3) / 5, torch.eye(4)
    part = shown(Pictures(), pictures=[("a", a), ("b", b, "error 0.1")])
    sent = np.frombuffer(part.values, np.float32)
    assert sent.tolist() == pytest.approx([*a.ravel(), *b.numpy().ravel()])
    assert (part.names, part.remarks) == (["a", "b"], ["", "error 0.1"])
    assert part.shapes == [[2, 3], [4, 4]]
    assert part.label == "pictures: a, 2 × 3; b, 4 × 4, error 0.1"


def test_a_dict_is_a_list_and_the_key_may_be_another():
    part = shown(Pictures(key="x", title="guesses"), x={"one": np.zeros((2, 2))})
    assert part.label == "guesses: one, 2 × 2"
    before = part.values
    shown(part, other=1.0)
    assert part.values == before, "a frame without pictures changes nothing"


def test_an_error_leaves_no_old_picture():
    part = shown(Pictures(), pictures={"one": np.ones((2, 2))})

    def fails():
        raise ValueError("no such client")
        yield {}

    engine = Engine(fails, {}, rounds=1)
    part.show(engine.compute())
    engine.close()
    assert (part.names, part.values, part.label) == ([], b"", "pictures: none")
    png(figure([part]))


def test_the_static_picture_has_the_same_greys_whatever_the_range():
    """0 is black and 1 white: a picture of one grey isn't stretched."""
    part = shown(
        Pictures(columns=2), pictures=[("grey", np.full((2, 2), 0.5)), ("w", np.ones((2, 2)))]
    )
    drawing = figure([part])
    small = drawing.axes[0].child_axes
    assert [a.get_title() for a in small] == ["grey", "w"]
    assert all(a.images[0].get_clim() == (0, 1) for a in small)
    drawing.canvas.draw()
    pixels = np.asarray(drawing.canvas.buffer_rgba())[..., :3]
    middle = small[0].get_window_extent()
    x, y = int(middle.x0 + middle.width / 2), int(middle.y0 + middle.height / 2)
    assert np.abs(pixels[len(pixels) - y, x].astype(int) - 127).max() <= 1


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 8, 16])
def test_any_number_with_and_without_a_remark(n):
    x = np.random.default_rng(0).random((8, 8))
    x[0, 0] = np.nan
    for more in ((), ("error 0.01",)):
        part = shown(Pictures(), pictures=[(f"example {k}", x, *more) for k in range(n)])
        drawing = figure([part])
        drawing.canvas.draw()
        assert len(drawing.axes[0].child_axes) == n


def test_bad_pictures_are_refused_in_words():
    with pytest.raises(ValueError, match=r"Pictures: a picture must be \(h, w\), got \(64,\) for"):
        shown(Pictures(), pictures={"flat": np.zeros(64)})
    for columns in (0, -1, 1.5, "2"):
        with pytest.raises(ValueError, match="Pictures: columns must be"):
            Pictures(columns=columns)


def test_in_a_panel_under_a_slider():
    def make(size):
        for t in range(3):
            yield {"loss": 1 / (t + 1), "pictures": {"x": np.full((size, size), t / 2)}}

    panel = Explorable(
        {"size": controls.slider("Size", 3, 1, 9)},
        make,
        [Curve("loss"), Pictures()],
        rounds=2,
    )
    panel.controls["size"].value = 5
    s = panel.engine.wait()
    assert (s.state, s.error) == ("done", "") and panel.parts[1].shapes == [[5, 5]]
    assert np.frombuffer(panel.parts[1].values, np.float32).tolist() == [1.0] * 25
    assert "x, 5 × 5" in panel.caption()
    panel.close()


def test_a_picture_of_nothing_is_crossed_out():
    empty, dark = np.full((4, 4), np.nan), np.zeros((4, 4))
    part = Pictures()
    frame = {"pictures": [("silent", empty), ("dark", dark)]}
    part.show(Engine(lambda: [frame], {}, rounds=1).compute())
    small = figure([part]).axes[0].child_axes
    assert [len(axes.lines) for axes in small] == [2, 0]
