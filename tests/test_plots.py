"""Static figures: what is drawn, in which look, and that it can be read. No display needed."""

from __future__ import annotations

import base64
import io

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from nbclient import NotebookClient

from fedlearn import plots
from fedlearn.history import History


@pytest.fixture
def ax():
    with plots.style():
        figure = Figure()
        FigureCanvasAgg(figure)
        yield figure.add_subplot()


def drawn(ax):
    """Render it: layout, fonts and tick labels exist only then."""
    ax.figure.savefig(file := io.BytesIO(), format="png")
    assert file.getvalue().startswith(b"\x89PNG")


def history(n=3, **columns):
    t = np.arange(1, n + 1)
    return History({"round": t, "loss": 2.0 / t, "bytes": 5e5 * t, **columns}, None)


def look(line):
    return to_hex(line.get_color()).upper(), line.get_linestyle(), line._dash_pattern


def test_curves_draw_the_columns(ax):
    a, b = plots.curves(ax, {"E = 1": history(3), "E = 5": history(5)})
    assert a.get_xdata().tolist() == [1, 2, 3] and np.allclose(a.get_ydata(), [2, 1, 2 / 3])
    assert len(b.get_xdata()) == 5
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("round", "test loss")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["E = 1", "E = 5"]
    drawn(ax)


def test_curves_over_bytes_are_in_megabytes(ax):
    (line,) = plots.curves(ax, {"run": history()}, x="bytes")
    assert np.allclose(line.get_xdata(), [0.5, 1.0, 1.5]) and "MB" in ax.get_xlabel()
    assert ax.get_legend() is None, "one run needs no legend"


def test_curves_leave_out_rounds_that_were_not_evaluated(ax):
    h = history(4, accuracy=np.array([np.nan, 0.5, np.nan, 0.7]))
    (line,) = plots.curves(ax, {"run": h}, y="accuracy")
    assert line.get_xdata().tolist() == [2, 4] and line.get_ydata().tolist() == [0.5, 0.7]


def test_six_runs_differ_without_their_colours(ax):
    lines = plots.curves(ax, {str(k): history() for k in range(6)})
    looks = [look(line) for line in lines]
    assert len({c for c, _, _ in looks}) == 6 and {c for c, _, _ in looks} <= set(plots.OKABE_ITO)
    assert len({str(dash) for _, _, dash in looks}) == 6


def test_more_runs_than_looks_start_again(ax):
    lines = plots.curves(ax, {str(k): history() for k in range(8)})
    assert look(lines[6]) == look(lines[0]) and len(lines) == 8


@pytest.mark.parametrize("column", [{"y": "f1"}, {"x": "seconds"}])
def test_a_column_that_is_not_there_is_named(ax, column):
    with pytest.raises(ValueError, match=next(iter(column.values()))):
        plots.curves(ax, {"run": history()}, **column)


def test_holdings_show_counts_and_sizes(ax):
    counts = np.array([[3, 0, 1], [1, 2, 0]])
    image, *sizes = plots.holdings(ax, counts, names=["cat", "dog", "owl"])
    assert (np.asarray(image.get_array()) == counts).all()
    assert [t.get_text() for t in sizes] == ["4", "3"]
    drawn(ax)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["cat", "dog", "owl"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("label", "client")


def test_holdings_darker_is_more_and_empty_is_lightest(ax):
    image, *_ = plots.holdings(ax, np.array([[0, 5], [10, 1]]))
    shade = image.cmap(image.norm(image.get_array()))[..., :3].sum(-1)
    assert shade[0, 0] > shade[1, 1] > shade[0, 1] > shade[1, 0]


def test_holdings_of_a_crowd_stay_legible(ax):
    image, *sizes = plots.holdings(ax, np.ones((100, 10), int))
    assert not sizes and len(ax.get_yticks()) <= 10
    assert image.get_array().shape == (100, 10)


def test_contours_are_the_functions(ax):
    rings = plots.contours(ax, lambda a, b: a**2 + b**2, span=(-2, 2, -2, 2), levels=[1.0, 2.25])
    for radius, path in zip((1.0, 1.5), rings.get_paths()):
        assert np.allclose(np.hypot(*path.vertices.T), radius, atol=0.01)
    assert ax.get_aspect() == 1 and "theta" in ax.get_xlabel()
    drawn(ax)


def test_contours_of_two_functions_can_differ_by_dash(ax):
    solid, dashed = (
        plots.contours(ax, lambda a, b: a + b, span=(0, 1, 0, 1), color=c, linestyle=dash)
        for c, dash in ((plots.BLUE, "-"), (plots.ORANGE, "--"))
    )
    assert solid.get_linestyles()[0][1] is None and dashed.get_linestyles()[0][1]
    assert to_hex(dashed.get_edgecolor()[0]).upper() == plots.ORANGE
    drawn(ax)


def test_a_digit_is_ink_on_paper(ax):
    x = np.zeros(64)
    x[9] = 1.0  # row 1, column 1
    image = plots.digit(ax, x, (8, 8), title="7")
    assert image.get_array()[1, 1] == 1 and image.get_array().sum() == 1
    paper, ink = image.cmap(image.norm([0.0, 1.0]))[:, :3].sum(1)
    assert paper > 2.9 and ink < 0.1 and not ax.axison and ax.get_title() == "7"


def test_a_colour_picture_has_its_channels_last(ax):
    x = np.zeros((3, 4, 5))
    x[2] = 1.0
    image = plots.digit(ax, x.reshape(-1), (3, 4, 5))
    assert image.get_array().shape == (4, 5, 3) and (image.get_array()[..., 2] == 1).all()
    drawn(ax)


def test_a_picture_of_another_shape_is_refused(ax):
    with pytest.raises(ValueError, match="64"):
        plots.digit(ax, np.zeros(64), (28, 28))


def test_the_style_is_legible_and_leaves_no_trace():
    before = dict(mpl.rcParams)
    with plots.style():
        assert mpl.rcParams["font.size"] >= 13 and mpl.rcParams["lines.linewidth"] >= 2
        assert mpl.rcParams["figure.constrained_layout.use"]
        cycle = list(mpl.rcParams["axes.prop_cycle"])
    assert len({str(c["linestyle"]) for c in cycle}) == len({c["color"] for c in cycle}) == 6
    assert dict(mpl.rcParams) == before


def test_text_of_a_figure_is_large_enough(ax):
    plots.curves(ax, {"E = 1": history(), "E = 5": history()})
    drawn(ax)
    texts = [ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_legend().get_texts()]
    assert min(t.get_fontsize() for t in texts) >= 12


def test_use_sets_the_style_for_good():
    with mpl.rc_context():
        plots.use()
        assert mpl.rcParams["axes.grid"] and mpl.rcParams["font.size"] == 13


def test_a_shown_figure_is_a_picture_with_its_sentence(tmp_path):
    """As a notebook stores it: once, whatever the inline backend would have shown by itself."""
    nb = nbformat.v4.new_notebook()
    code = (
        "from matplotlib import pyplot as plt\nfrom fedlearn import plots\n"
        "fig, ax = plt.subplots()\nax.plot([3, 1])\n"
        "plots.show(fig, 'A line that falls from 3 to 1.')"
    )
    nb.cells = [nbformat.v4.new_code_cell(code)]
    NotebookClient(nb, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (output,) = nb.cells[0].outputs
    assert output.data["text/plain"] == "A line that falls from 3 to 1."
    assert output.metadata["image/png"]["alt"] == "A line that falls from 3 to 1."
    assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG")


@pytest.mark.parametrize("alt", [None, "", "loss", "A line that falls from 3 to 1", 3])
def test_a_figure_without_a_sentence_is_refused(alt):
    with pytest.raises(ValueError, match="show: alt must be a sentence with a full stop, got"):
        plots.show(Figure(), alt)
