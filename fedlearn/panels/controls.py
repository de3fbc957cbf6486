"""Sliders and menus in the panel's look. A lesson makes its own controls with these.

Values start on the slider's step grid: the browser would otherwise send a corrected one back.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as W

from ..checks import check, is_whole, positive, whole
from .words import spoken

__all__ = ["choices", "float_slider", "heading", "log_slider", "menu", "slider"]


def _look(name: str, tip: str) -> dict[str, Any]:
    say = spoken()
    style = {"style": {"description_width": "88px"}, "layout": {"width": "auto"}}
    return {"description": say(name), "tooltip": say(tip or name), **style}


def slider(name: str, value: int, low: int, high: int, *, step: int = 1, tip: str = "") -> W.Widget:
    """A slider over integers.

    Example:
        >>> slider("Clients", 20, 2, 100).value
        20
    """
    for key, v in {"value": value, "low": low, "high": high}.items():
        check("slider", key, v, is_whole(v, -math.inf), "an integer, or take float_slider", 5)
    whole("slider", "step", step, example=1)
    check("slider", "value", value, low <= value <= high, f"in {low}..{high}", low)
    value = low + (value - low) // step * step
    return W.IntSlider(value, low, high, step=step, **_look(name, tip))


def float_slider(
    name: str, value: float, low: float, high: float, *, step: float = 0.1, tip: str = ""
) -> W.Widget:
    """A slider over equally spaced numbers.

    Example:
        >>> float_slider("Angle", 0.33, 0.0, 1.0).value
        0.3
    """
    positive("float_slider", "step", step)
    check("float_slider", "value", value, low <= value <= high, f"in {low}..{high}", low)
    value = min(high, low + round((value - low) / step) * step)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    shown = {"step": step, "readout_format": f".{digits}f", **_look(name, tip)}
    return W.FloatSlider(float(f"{value:.12g}"), min=low, max=high, **shown)


def log_slider(
    name: str, value: float, low: float, high: float, *, step: float = 0.1, tip: str = ""
) -> W.Widget:
    """A slider over powers of ten; ``step`` is in the exponent.

    Example:
        >>> log_slider("Skew", 0.5, 0.01, 100).value
        0.501
    """
    positive("log_slider", "low", low, 0.01)
    positive("log_slider", "step", step)
    check("log_slider", "value", value, low <= value <= high, f"in {low}..{high}", low)
    a, b = math.log10(low), math.log10(high)
    value = 10 ** min(b, a + round((math.log10(value) - a) / step) * step)
    shown = {"step": step, "readout_format": ".2r", **_look(name, tip)}
    return W.FloatLogSlider(float(f"{value:.3g}"), base=10, min=a, max=b, **shown)


def menu(
    name: str, options: Mapping[str, Any] | Sequence[Any], value: Any, *, tip: str = ""
) -> W.Widget:
    """A menu. ``options`` are values, or ``{what is shown: value}``.

    Example:
        >>> menu("Split", {"even": "iid", "by label": "shards"}, "iid").value
        'iid'
    """
    pairs = _options("menu", name, options, value)
    return W.Dropdown(options=pairs, value=value, **_look(name, tip))


def choices(
    name: str, options: Mapping[str, Any] | Sequence[Any], value: Any, *, tip: str = ""
) -> W.Widget:
    """A slider over a few named values, in order. None can't be one of them (ipywidgets: nothing).

    Example:
        >>> choices("Batch", [8, 32, "all"], "all").value
        'all'
    """
    pairs = _options("choices", name, options, value)
    known = [v for _, v in pairs]
    check("choices", "options", known, None not in known, "named values, not None", "[8, 'all']")
    return W.SelectionSlider(options=pairs, value=value, **_look(name, tip))


def heading(text: str) -> W.Widget:
    """A small heading between controls; it has no value.

    Example:
        >>> heading("DATA").description
        ''
    """
    label = W.Label(spoken()(text))
    label.add_class("fl-group")
    return label


def has_value(control: W.Widget) -> bool:
    """Whether a widget is a control, and not a heading."""
    return hasattr(control, "value") and not isinstance(control, (W.Label, W.HTML))


def value_of(control: W.Widget) -> Any:
    """A control's value; a log slider's to three digits.

    The browser sends 0.5011872 back where the slider was made with 0.501: that is no move.

    Example:
        >>> wide = log_slider("Skew", 0.5, 0.01, 100)
        >>> wide.value = 10**-0.3
        >>> value_of(wide)
        0.501
    """
    v = control.value
    return float(f"{v:.3g}") if isinstance(control, W.FloatLogSlider) else v


def mark(control: W.Widget, style: str, on: bool) -> None:
    """Give a control a class of the style sheet, or take it away."""
    (control.add_class if on else control.remove_class)(style)


def _options(who: str, name: str, options: Any, value: Any) -> list[tuple[str, Any]]:
    """(what is shown, value) of each."""
    pairs = options.items() if isinstance(options, Mapping) else [(str(v), v) for v in options]
    known = [v for _, v in pairs]
    check(who, "options", known, bool(known), "at least one", "['a', 'b']")
    if value not in known:
        raise ValueError(
            f"{who}: {name} has no option {value!r}; there are "
            f"{', '.join(map(repr, known))}, e.g. value={known[0]!r}"
        )
    return [(spoken()(label), v) for label, v in pairs]
