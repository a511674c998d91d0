"""Text from templates: nothing undefined is let through, and no value can break out of the place it is written to. Only this
module imports jinja2."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2

from release.errors import TemplateError

FOLDER: Final = Path(__file__).parent
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
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


def sources(*templates: str) -> dict[str, str]:
    """Return the text of templates by name, for keys."""
    return {name: (FOLDER / name).read_text(encoding="utf-8") for name in templates}


def docker_quoted(value: str) -> str:
    r"""Return `value` as a double-quoted Dockerfile string for LABEL and ENV.

    Backslash, quote, dollar and backtick are escaped with a backslash (the parser's default escape character), so that nothing
    is expanded. Raises TemplateError for control characters and line separators.
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
    """Return a value as text for a cell of a Markdown table: no pipes, no line breaks, no HTML."""
    text = CONTROL.sub(" ", str(value))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def points(share: float) -> str:
    """Return a share as signed percentage points: 0.0123 → `+1.23`."""
    return f"{100 * share:+.2f}"


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
    environment.filters |= {
        "quoted": docker_quoted,
        "word": docker_word,
        "exec": docker_exec,
        "shell": shell_line,
        "cell": markdown_cell,
        "points": points,
    }
    return environment
