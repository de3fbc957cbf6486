"""A lesson as one HTML file: opens from disk, asks for no other file, its panels move."""

from __future__ import annotations

import base64
import html
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from fedlearn import panels
from fedlearn.panels.parts.base import sheet

from . import markdown
from .lessons import Cell, Lesson, tags

WEB = Path(__file__).with_name("web")
PANELS = Path(panels.__file__).with_name("web")
LIVE = (
    "The panels replay recorded runs. To train anew, and to run the code, get the course and start "
    "<code>python run.py lab</code>."
)


def page(lesson: Lesson, before: Lesson | None = None, after: Lesson | None = None) -> str:
    """The lesson's HTML, with links to its neighbours."""
    renderer = markdown.Renderer()
    try:
        body = "\n".join(cell(c, renderer, lesson.recordings) for c in lesson.cells)
    except ValueError as e:
        raise ValueError(f"{lesson.stem}: {e}") from e
    heads = [(s, t) for level, s, t in renderer.headings if level == 2]
    toc = "".join(f'<li><a href="#{s}">{t}</a></li>' for s, t in heads)
    live = f'<p class="live">{LIVE}</p>' if lesson.recordings else ""
    return filled(
        title=_title(lesson),
        toc=f"<ol>{toc}</ol>",
        body=re.sub(r"(</h1>)", rf"\1{live}", body, count=1),
        before=_way(before, "prev", "← {}"),
        after=_way(after, "next", "{} →"),
        player=player() if lesson.recordings else "",
    )


def index(lessons: Sequence[Lesson], texts: Sequence[Lesson]) -> str:
    """The page that leads to all others."""
    rows = "".join(
        f'<li value="{int(x.stem[:2])}"><a href="{x.stem}.html">{_title(x)}</a>'
        f"<small>{html.escape(_about(x))}</small></li>"
        for x in lessons
    )
    also = " and ".join(f'<a href="{x.stem}.html">{_title(x)}</a>' for x in texts)
    body = (
        '<h1 id="top">fedlearn: a course on federated learning</h1>'
        "<p>Federated learning trains one model on data that stays where it is. Each lesson asks "
        "one question and answers it with formulas, code and panels whose sliders move.</p>"
        f'<p class="live">{LIVE}</p><ol class="lessons">{rows}</ol><p>Beside them: {also}.</p>'
    )
    return filled(title="The lessons", toc="", body=body, before="", after="", player="")


def filled(**parts: str) -> str:
    """The template with its parts; style and script are the same for every page."""
    template = Template((WEB / "page.html").read_text(encoding="utf-8"))
    css = sheet() + (WEB / "page.css").read_text(encoding="utf-8")
    js = "".join((WEB / f"{n}.js").read_text(encoding="utf-8") for n in ("page", "present"))
    return template.substitute(css=css, js=js, **parts)


def player() -> str:
    """common.js once, each view in a function of its own, the player."""
    views = []
    for path in sorted(PANELS.glob("*.js")):
        if path.stem != "common":
            text = path.read_text(encoding="utf-8").replace("export default {", "return {")
            views.append(f"{path.stem}: (() => {{\n{text}}})(),\n")
    common = (PANELS / "common.js").read_text(encoding="utf-8")
    own = (WEB / "player.js").read_text(encoding="utf-8")
    return f"(() => {{\n{common}\nconst VIEWS = {{\n{''.join(views)}}};\n{own}\n}})();"


def _way(to: Lesson | None, rel: str, mark: str) -> str:
    if to is None:
        return ""
    title = _title(to)
    return f'<a rel="{rel}" href="{to.stem}.html">{mark.format(f"<span>{title}</span>")}</a>'


def _title(lesson: Lesson) -> str:
    return html.escape(markdown.plain(lesson.heading))


def _about(lesson: Lesson) -> str:
    subject = lesson.subtitle.partition(": ")[2].split(", about")[0]
    panels_ = sum("panel" in tags(c) for c in lesson.cells)
    words = [subject, f"{lesson.minutes} minutes" if lesson.minutes else ""]
    words.append(f"{panels_} panel{'s' * (panels_ > 1)}")
    return " · ".join(filter(None, words))


# -- cells ----------------------------------------------------------------------------------------


def cell(c: Cell, renderer: markdown.Renderer, recordings: Mapping[str, str]) -> str:
    """A cell's HTML: text, or code and what it printed and drew."""
    source = "".join(c["source"])
    if c["cell_type"] == "markdown":
        return renderer.html(source)
    if c["cell_type"] != "code":
        return ""
    jupyter = c["metadata"].get("jupyter", {})
    recorded = recordings.get(c.get("id", ""), "")
    outputs = [output(o, renderer) for o in joined(c.get("outputs", ()))]
    shown = "".join(outputs)
    if recorded:
        printed = [h for h in outputs if "<figure" not in h]
        picture = "".join(h for h in outputs if "<figure" in h)
        shown = "".join(printed) + _panel(c["id"], recorded, picture)
    made = markdown.code(source)
    if not jupyter.get("source_hidden"):
        return made + shown
    inside, outside = (shown, "") if jupyter.get("outputs_hidden") else ("", shown)
    name = html.escape(_name(source))
    return f"<details><summary>{name}</summary>{made}{inside}</details>{outside}"


def _name(source: str) -> str:
    """What a collapsed cell is called: its first line, where that is a comment."""
    first = source.split("\n", 1)[0]
    return first.lstrip("# ") if first.startswith("#") else "The Python of this cell"


def _panel(name: str, recorded: str, picture: str) -> str:
    return (
        f'<div class="panel"><div class="fl-play" id="panel-{name}" role="group" '
        f'aria-label="Panel {name}, recorded runs">'
        f'<script type="text/plain">{recorded}</script></div><noscript>{picture}</noscript></div>'
    )


def joined(outputs: Iterable[Cell]) -> list[dict[str, Any]]:
    """Outputs with what was printed in pieces in one."""
    found: list[dict[str, Any]] = []
    for o in outputs:
        if found and o["output_type"] == "stream" == found[-1]["output_type"]:
            found[-1]["text"] = [*found[-1]["text"], *o["text"]]
        else:
            found.append(dict(o))
    return found


def output(o: Cell, renderer: markdown.Renderer) -> str:
    """An output's HTML: a picture with its text alternative, a text, or what was printed."""
    if o["output_type"] == "stream":
        return f'<div class="out"><pre>{html.escape("".join(o["text"]))}</pre></div>'
    data = {k: "".join(v) for k, v in o.get("data", {}).items()}
    if "image/png" in data:
        alt = o.get("metadata", {}).get("image/png", {}).get("alt") or data.get("text/plain", "")
        return f"<figure>{picture(data['image/png'], alt)}</figure>"
    if "text/markdown" in data:
        return renderer.html(data["text/markdown"])
    return f'<div class="out"><pre>{html.escape(data.get("text/plain", ""))}</pre></div>'


def picture(png: str, alt: str) -> str:
    """An image inside the page; with its size, so that nothing jumps."""
    raw = base64.b64decode(png)
    w, h = struct.unpack(">II", raw[16:24])
    source = base64.b64encode(raw).decode()
    said = html.escape(alt, quote=True)
    return f'<img width="{w}" height="{h}" alt="{said}" src="data:image/png;base64,{source}">'
