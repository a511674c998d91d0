"""Markdown as HTML that can do nothing: no HTML of its author, no picture, no link but to the web."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from html import unescape
from typing import TYPE_CHECKING, Final

from markupsafe import Markup, escape

from release.templates.render import plain_text

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

RIGHT: Final = "text-align:right"
FOLDED: Final = re.compile(r"<details><summary>([^<>]*)</summary>")
"""How our cards begin what is folded up; no value in a card can, for its signs are character references."""
WEB: Final = ("https://", "http://", "#")
DEEPEST: Final = 6


def html_of(markdown: str, below: int = 0) -> Markup:
    """Return a text in Markdown (CommonMark with tables, front matter left out) as HTML whose headings stand `below` levels lower.

    HTML in the text is shown as text, pictures are left to the page, links lead to the web or nowhere.
    """
    reader = _reader()
    tokens = reader.parse(_body(plain_text(markdown)))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(DEEPEST, int(token.tag[1:]) + below)}"
        elif token.type in ("th_open", "td_open"):
            token.attrs = {"class": "number"} if token.attrs.get("style") == RIGHT else {}  # the page's policy lets no style in
        elif token.type == "fence":
            token.info, token.attrs = "", {"tabindex": "0"}  # it may scroll, and a keyboard must reach it
    for opened, inside, closed in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if opened.type == "th_open" and not inside.content:
            opened.tag = closed.tag = "td"  # a heading that says nothing is none
    _fold(tokens)
    return Markup(reader.renderer.render(tokens, reader.options, {}))


def _fold(tokens: Sequence[Token]) -> None:
    """Make the folds of our cards elements again."""
    depth = 0
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if token.type != "inline" or before.type != "paragraph_open" or not token.children:
            continue
        opened = FOLDED.fullmatch(token.content)
        if opened is None and not (token.content == "</details>" and depth):
            continue
        depth += 1 if opened else -1
        shown = token.children[0]
        shown.type = "html_inline"
        shown.content = f"<details><summary>{escape(unescape(opened[1]))}</summary>" if opened else "</details>"
        token.children = [shown]
        before.hidden = after.hidden = True


def _body(text: str) -> str:
    """Return the text without its front matter."""
    if not text.startswith("---\n"):
        return text
    _, ruler, rest = text[4:].partition("\n---\n")
    return rest if ruler else text


@cache
def _reader() -> MarkdownIt:
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    reader.validateLink = lambda url: url.startswith(WEB)  # type: ignore[method-assign]
    return reader
