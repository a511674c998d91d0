"""Text from templates: nothing undefined is let through, and no value can break out of the place it is written to. Only this
module imports jinja2."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2

from release.errors import TemplateError

FOLDER: Final = Path(__file__).parent
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
FOLDER_WORD: Final = re.compile(r"\$PWD/[A-Za-z0-9._/:-]+")
SWITCHES: Final = ("--rm", "--read-only", "--privileged")
"""Flags of `docker run` that take no value, as far as our commands use them."""
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


def sources(*templates: str) -> dict[str, str]:
    """Return the text of templates by name, for keys."""
    return {name: (FOLDER / name).read_text(encoding="utf-8") for name in templates}


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


def shell_line(argv: Sequence[str], width: int = 100) -> str:
    """Return an argv as a shell command that can be pasted: flags stay with their values, lines break with backslashes.

    A word that begins with `$PWD/` is put in double quotes, so that the shell fills in the folder; everything else is literal.
    """
    groups: list[str] = []
    for number, word in enumerate(argv):
        text = f'"{word}"' if FOLDER_WORD.fullmatch(word) else shlex.quote(word)
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


def markdown_cell(value: object) -> str:
    """Return a value as text for a cell of a Markdown table: no pipes, no line breaks, no HTML.

    Pipe and backslash become character references: dialects disagree on what a backslash before a pipe means.
    """
    text = CONTROL.sub(" ", str(value))
    for sign, reference in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("\\", "&#92;")):
        text = text.replace(sign, reference)
    return text


def prose(value: object) -> str:
    """Return a value as Markdown text that holds no HTML and stays in its paragraph."""
    return CONTROL.sub(" ", str(value)).replace("&", "&amp;").replace("<", "&lt;")


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
    }
    environment.filters |= filters
    return environment
