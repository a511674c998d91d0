"""Text from templates: nothing undefined is let through, and no value can break out of the place it is written to. Only this
module imports jinja2."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2 import meta
from markupsafe import Markup

from release.errors import TemplateError

FOLDER: Final = Path(__file__).parent
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
FOLDER_WORD: Final = re.compile(r"\$PWD/[A-Za-z0-9._/:-]+|\$(?:SRC|DST|IMAGE)(?:/[A-Za-z0-9._/:-]+)?")
"""What the shell of the reader is to fill in: a folder below the one they are in, those of a conversion, the id of an image."""
VARIABLE: Final = re.compile(r"\$([A-Z][A-Z0-9_]*)")
TAME: Final = re.compile(r"[A-Za-z0-9._/:,=+@%-]*")
"""Text that means itself between double quotes, in every shell and at every prompt."""
BLOCK: Final = re.compile(r"\s*(?P<number>[0-9]*)(?P<sign>[#>+*=~`_:|.)\[-])")
"""What may begin a block of Markdown other than a paragraph: heading, quote, list, rule, fence, table, definition."""
SPAN: Final = re.compile(r"[^`|<>&\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
ARM: Final = re.compile(r"[a-z0-9._-]+~[a-z0-9._-]+")
"""Precision and variant: a tilde inside a word is left alone by every shell (POSIX 2.6.1)."""
FENCE: Final = re.compile(r"`{3,}")
UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
TURNING: Final = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
SWITCHES: Final = ("--rm", "--init", "--read-only", "--privileged")
"""Flags of `docker run` that take no value, as far as our commands use them."""
PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*( [A-Za-z0-9._/-]+)*")
WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+=-]*")


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return the template `templates/<template>` filled with `values`. Raises TemplateError for an undefined name or an unsafe value."""
    try:
        return _environment().get_template(template).render(values)
    except jinja2.TemplateError as problem:
        line = f":{problem.lineno}" if isinstance(problem, jinja2.TemplateSyntaxError) else ""
        raise TemplateError(f"template {template}{line}: {problem.message or problem}") from problem
    except (TypeError, ValueError, ArithmeticError, LookupError) as problem:
        raise TemplateError(f"template {template}: {type(problem).__name__}: {problem}") from problem


def render_page(template: str, values: Mapping[str, Any]) -> str:
    """Return an HTML page from a template: every value is escaped. Raises TemplateError as `render` does."""
    try:
        return _pages().get_template(template).render(values)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as problem:
        raise TemplateError(f"template {template}: {problem}") from problem


def sources(*templates: str) -> dict[str, str]:
    """Return the text of templates by name, and of those that they are made from, for keys."""
    found: dict[str, str] = {}
    following = list(templates)
    while following:
        if (name := following.pop()) not in found:
            found[name] = (FOLDER / name).read_text(encoding="utf-8")
            following += _named_in(found[name])
    return found


@cache
def _named_in(text: str) -> tuple[str, ...]:
    """Return the templates that a template's text is made from: parsed once, however many cells are planned."""
    return tuple(other for other in meta.find_referenced_templates(_environment().parse(text)) if other)


def docker_quoted(value: str) -> str:
    r"""Return `value` as a double-quoted Dockerfile string for LABEL and ENV.

    Backslash, quote and dollar are escaped with a backslash (the parser's default escape character), so that nothing is expanded;
    these three are all that can be escaped between double quotes (buildkit's shell lexer, processDoubleQuote). Raises
    TemplateError for control characters, line separators and what UTF-8 cannot say.
    """
    if CONTROL.search(value):
        raise TemplateError(f"{value!r} has a control character: it cannot stand in a Dockerfile")
    return '"' + re.sub(r'([\\"$])', r"\\\1", value) + '"'


def docker_word(value: str) -> str:
    """Return `value` unchanged if it is one plain word (for FROM, COPY, USER). Raises TemplateError otherwise."""
    if not WORD.fullmatch(value):
        raise TemplateError(f"{value!r} cannot stand unquoted in a Dockerfile")
    return value


def docker_exec(argv: Sequence[str]) -> str:
    """Return an argv in exec form, a JSON array."""
    for word in argv:
        docker_quoted(word)
    return json.dumps(list(argv), ensure_ascii=False)


def shell_line(argv: Sequence[str], width: int = 100, variables: Collection[str] = ()) -> str:
    """Return an argv as a shell command that can be pasted: flags stay with their values, lines break with backslashes.

    A word that begins with `$PWD/` (or `$SRC`, `$DST`, `$IMAGE`) is put in double quotes, so that the shell fills it in, and so are those
    of `variables` wherever they stand in a word; everything else is literal.
    """
    groups: list[str] = []
    for number, word in enumerate(argv):
        text = f'"{word}"' if FOLDER_WORD.fullmatch(word) else word if ARM.fullmatch(word) else filled_word(word, variables)
        value = number and argv[number - 1].startswith("--") and not word.startswith("-") and argv[number - 1] not in SWITCHES
        if value:
            groups[-1] += f" {text}"
        else:
            groups.append(text)
    lines = [groups[0]]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) + 1 > width:
            lines.append("  " + group)
        else:
            lines[-1] += f" {group}"
    return " \\\n".join(lines)


def filled_word(word: str, variables: Collection[str]) -> str:
    """Return a word for a shell that fills in those of `variables` in it, `$NAME`, and takes all else as it is (POSIX, 2.2 and 2.6.2)."""
    parts = VARIABLE.split(word)  # text, name, text, name, …, text
    named = [name for name in parts[1::2] if name in variables]
    if not named:
        return shlex.quote(word)
    pieces = [
        part if not number % 2 else f"${{{part}}}" if part in variables else f"${part}" for number, part in enumerate(parts)
    ]
    if len(named) == len(parts) // 2 and all(TAME.fullmatch(text) for text in parts[::2]):
        return '"' + re.sub(r"\$\{([A-Z0-9_]+)\}(?=/|$)", r"$\1", "".join(pieces)) + '"'
    return "".join(
        f'"{piece}"' if number % 2 and parts[number] in variables else shlex.quote(piece) if piece else ""
        for number, piece in enumerate(pieces)
    )


def markdown_cell(value: object) -> str:
    """Return a value as text for a cell of a Markdown table: no pipes, no line breaks, no HTML.

    Pipe and backslash become character references: dialects disagree on what a backslash before a pipe means.
    """
    text = CONTROL.sub(" ", str(value))
    for sign, reference in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("\\", "&#92;")):
        text = text.replace(sign, reference)
    return text


def shell_word(value: str) -> str:
    """Return `value` as one word of a shell line in a Dockerfile. Raises TemplateError for what cannot stand on one line."""
    if CONTROL.search(value):
        raise TemplateError(f"{value!r} has a control character: it cannot stand in a Dockerfile")
    return shlex.quote(value)


def yaml_scalar(value: object) -> str:
    """Return a value as a YAML scalar on one line: plain where no reader could take it for anything but text, else in double quotes."""
    text = str(value)
    if PLAIN.fullmatch(text) and text.lower() not in ("true", "false", "yes", "no", "on", "off", "null"):
        return text
    return json.dumps(text, ensure_ascii=CONTROL.search(text) is not None)


def prose(value: object) -> str:
    """Return a value as Markdown text that holds no HTML, stays in its paragraph and begins no other block."""
    text = CONTROL.sub(" ", str(value)).strip().replace("&", "&amp;").replace("<", "&lt;")
    if match := BLOCK.match(text):
        text = f"{match['number']}&#{ord(match['sign'])};{text[match.end() :]}"
    return text


def code_span(value: object) -> str:
    """Return a value as a code span that may stand in a table; as plain text of a cell where it has signs that would end one."""
    text = str(value)
    return f"`{text}`" if SPAN.fullmatch(text) and text.strip() else markdown_cell(text)


def fenced(text: str, language: str = "") -> str:
    """Return a text as a fenced block of code that nothing in it can end (CommonMark 4.5: a longer fence)."""
    body = UNPRINTABLE.sub("\ufffd", str(text)).rstrip("\n")
    fence = "`" * max([3, *(len(run) + 1 for run in FENCE.findall(body))])
    return f"{fence}{language}\n{body}\n{fence}"


def script_data(value: object) -> Markup:
    """Return a value as JSON that may stand in a <script> of a page: nothing in it can end the element or begin a comment (HTML, 4.12.1.3)."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    for sign in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(plain_text(text))


def plain_text(value: object) -> str:
    """Return a value as text without control signs, and none that turns the direction of what stands beside it (Unicode UAX 9)."""
    return TURNING.sub("", UNPRINTABLE.sub("\ufffd", str(value)))


@cache
def _pages() -> jinja2.Environment:
    environment = _environment().overlay(autoescape=True)
    environment.filters = {**environment.filters, "data": script_data}
    environment.finalize = lambda value: value if isinstance(value, jinja2.runtime.Macro | Markup) else plain_text(value)
    return environment


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "quoted": lambda value: docker_quoted(str(value)),  # str: what is undefined says so itself
        "word": lambda value: docker_word(str(value)),
        "exec": docker_exec,
        "shell": shell_line,
        "cell": markdown_cell,
        "prose": prose,
        "code": code_span,
        "fenced": fenced,
        "gib": lambda number: f"{number / (1 << 30):.1f} GiB",
        "kib": lambda number: f"{number / (1 << 10):.1f} KiB",
        "yaml": yaml_scalar,
        "shell_word": lambda value: shell_word(str(value)),
    }
    environment.filters |= filters
    return environment
