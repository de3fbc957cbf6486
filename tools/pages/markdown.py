"""Markdown as HTML: mathematics as MathML, headings with anchors, links to the other pages."""

from __future__ import annotations

import html
import re
from functools import lru_cache
from typing import Any

from math_core import LatexError, LatexToMathML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

PAGES = re.compile(r"(?P<stem>\d\d_\w+|notation|glossary)\.(ipynb|md)(?P<at>#.*)?")
LONG = 40  # letters of TeX; a longer formula in a line may be wider than a phone
_TEX = LatexToMathML(annotation=True)
_PYTHON: Any = HtmlFormatter(nowrap=True, classprefix="h")


@lru_cache(maxsize=4096)
def mathml(tex: str, display: bool) -> str:
    """A formula as MathML Core; ValueError where it isn't one."""
    try:
        return str(_TEX.convert_with_local_state(tex.strip(), displaystyle=display))
    except LatexError as e:
        raise ValueError(f"pages: not a formula: {tex.strip()!r}\n{e}") from e


def code(source: str) -> str:
    """Python, highlighted."""
    return f'<div class="code"><pre>{highlight(source, PythonLexer(), _PYTHON)}</pre></div>'


def plain(text: str) -> str:
    """The words of a piece of HTML."""
    spoken = re.sub(r"<annotation.*?</annotation>|<[^>]+>", "", text, flags=re.DOTALL)
    return html.unescape(spoken).strip()


class Renderer(IPythonRenderer):
    """One for each page: it knows the headings that it has met, as (level, anchor, HTML)."""

    def __init__(self) -> None:
        super().__init__(escape=False)
        self.headings: list[tuple[int, str, str]] = []

    def html(self, source: str) -> str:
        """A cell's text as HTML; wide tables scroll in their own box."""
        made = str(MarkdownWithMath(renderer=self).render(source))
        return re.sub(
            r"<table>.*?</table>", r'<div class="table">\g<0></div>', made, flags=re.DOTALL
        )

    def block_math(self, body: str) -> str:
        """A formula on a line of its own."""
        return f'<span class="formula">{mathml(body, True)}</span>'

    def inline_math(self, body: str) -> str:
        """A formula in a sentence."""
        made = mathml(body, False)
        return f'<span class="wide">{made}</span>' if len(body) > LONG else made

    def latex_environment(self, name: str, body: str) -> str:
        r"""``\begin{align} ... \end{align}`` without dollars."""
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """A heading with an anchor."""
        words = plain(text)
        slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "section"
        if slug in {s for _, s, _ in self.headings}:
            slug += f"-{len(self.headings)}"
        self.headings.append((level, slug, text))
        name = html.escape(f"Link to {words}", quote=True)
        anchor = f'<a class="anchor" href="#{slug}" aria-label="{name}">#</a>'
        return f'<h{level} id="{slug}">{text}{anchor}</h{level}>\n'

    def block_code(self, code_: str, info: str | None = None) -> str:
        """Code in a text."""
        return code(code_) if info == "python" else f"<pre>{html.escape(code_)}</pre>\n"

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link; to a lesson it leads to its page, to a file that has no page nowhere."""
        if m := PAGES.fullmatch(url):
            url = f"{m['stem']}.html{m['at'] or ''}"
        elif not url.startswith(("http:", "https:", "#")):
            return text
        return str(super().link(text, url, title))

    def codespan(self, text: str) -> str:
        """Code in a line; a lesson's file is a link to its page."""
        if (m := PAGES.fullmatch(text)) and m["stem"][0].isdigit():
            return f'<a href="{m["stem"]}.html">{m["stem"]}</a>'
        return str(super().codespan(text))
