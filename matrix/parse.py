"""YAML of the matrix into types: strict, bounded, with file, line and dotted key in every complaint. Only this module imports yaml."""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from release.errors import MatrixError

SIZE_LIMIT: Final = 1 << 20
DEPTH_LIMIT: Final = 50
INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)")
FLOAT: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")

PLAIN: Final = re.compile(rf"true|false|{FLOAT.pattern}")


class _Loader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]
    """One that resolves no types: `_scalar` does. It is asked for every node, so that even asking in vain would cost a sixth of a plan."""

    def resolve(self, kind: object, value: object, implicit: object) -> str:
        """Return one word for all nodes."""
        return "untyped"


CLEVER: Final = re.compile(r"[&*!]")
"""Without one of these characters a text has no anchor, alias or tag."""
PLAIN_DEPTH: Final = 1000
"""Levels that PyYAML's recursion surely survives; how deep a file really is, is found out afterwards."""
MESSAGE_LIMIT: Final = 300
"""Characters that a complaint has at most: a value of a megabyte is no help to anyone."""
WANTED: Final = {
    "tuple_type": "is not a list",
    "dict_type": "is not a mapping of keys to values",
    "model_type": "is not a mapping of keys to values",
}
"""What our readers call a type that pydantic names after Python."""

T = TypeVar("T", bound=BaseModel)
Place = tuple[str | int, ...]


def read(path: Path, kind: type[T]) -> T:
    """Return the YAML file `path` as a `kind`. Raises MatrixError naming file, line and dotted key of the first thing that is wrong.

    Anchors, aliases, tags, duplicate keys, more than 1 MiB and more than 50 levels are refused. Plain scalars are typed as in
    JSON: `no`, `1_000`, `0755` and `12:30` are strings.
    """
    text = _text(path)
    data = _content(text)
    if data is None:
        data, _ = _parsed(path, text)
    try:
        return kind.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as problem:
        raise _complaint(path, kind, problem, _parsed(path, text)[1]) from problem


def near(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest known names, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(m) for m in matches)}?)" if matches else ""


def locate(path: Path, *place: str | int) -> str:
    """Return file, line and dotted key of a place in a file that was read: `cells/cpu/x.yaml:35: cells.bf16`; for complaints."""
    _, lines = document(path)
    return f"{path}:{lines.get(place, 1)}: {dotted(place)}"


def document(path: Path) -> tuple[Any, dict[Place, int]]:
    """Return the content of a YAML file, lists as tuples, and the line of every place in it. Raises MatrixError as `read` does."""
    return _parsed(path, _text(path))


def plain(data: bytes, name: str) -> Any:
    """Return the content of somebody else's YAML file, called `name` in complaints, under the same rules. Raises MatrixError."""
    if len(data) > SIZE_LIMIT:
        raise MatrixError(f"{name}: is larger than {SIZE_LIMIT} bytes")
    try:
        return _parsed(Path(name), data.decode("utf-8"))[0]
    except UnicodeDecodeError as problem:
        raise MatrixError(f"{name}: cannot be read: {problem}") from problem


def written(document: Any) -> str:
    """Return a document as YAML that every reader takes alike: block style, keys in their order, no anchors, strings quoted where needed."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise MatrixError(f"{path}: is larger than {SIZE_LIMIT} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise MatrixError(f"{path}: cannot be read: {problem}") from problem


def _content(text: str) -> Any:
    """Return the content of a text in which nothing is wrong, without the lines; None where `_parsed` has to look closer."""
    if not _is_plain(text):
        return None
    try:
        return _bare(yaml.compose(text, Loader=_Loader), DEPTH_LIMIT)
    except (ValueError, yaml.YAMLError):
        return None


def _bare(node: yaml.Node | None, levels: int) -> Any:
    """Return the value of a node of at most so many levels. Raises ValueError for whatever `_value` has a complaint about."""
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if node is None or levels <= 0:
        raise ValueError
    if isinstance(node, yaml.SequenceNode):
        return tuple([_bare(item, levels - 1) for item in node.value])
    assert isinstance(node, yaml.MappingNode)
    mapping: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in mapping:
            raise ValueError
        mapping[key.value] = _bare(value, levels - 1)
    return mapping


def _parsed(path: Path, text: str) -> tuple[Any, dict[Place, int]]:
    lines: dict[Place, int] = {}
    try:
        if not _is_plain(text):
            _refuse_cleverness(path, text)
            return _value(path, yaml.compose(text, Loader=_Loader), (), lines), lines
        try:
            return _value(path, yaml.compose(text, Loader=_Loader), (), lines), lines
        except (MatrixError, yaml.YAMLError):
            _refuse_cleverness(path, text)  # the first of several complaints, in the order of the lines
            raise
    except yaml.YAMLError as problem:
        raise MatrixError(f"{path}:{_line_of(problem, text)}: {_reason_of(problem)}") from problem


def _line_of(problem: yaml.YAMLError, text: str) -> int:
    if mark := getattr(problem, "problem_mark", None):
        return int(mark.line) + 1
    position = getattr(problem, "position", 0)
    return text.count("\n", 0, position if isinstance(position, int) else 0) + 1


def _reason_of(problem: yaml.YAMLError) -> str:
    return str(getattr(problem, "problem", None) or getattr(problem, "reason", None) or problem).splitlines()[0]


def _is_plain(text: str) -> bool:
    """Say whether a text needs no look at its events: no character of an anchor, alias or tag, and no room for much depth.

    A level takes a bracket, or a column further to the right, of which one may hold a mapping and a sequence in it.
    """
    if CLEVER.search(text):
        return False
    return 2 * max(map(len, text.splitlines()), default=0) + text.count("[") + text.count("{") < PLAIN_DEPTH


def _refuse_cleverness(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise MatrixError(f"{path}:{line}: anchors and aliases are not allowed", next_step="write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_LIMIT:
                raise MatrixError(f"{path}:{line}: is nested deeper than {DEPTH_LIMIT} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if tag := getattr(event, "tag", None):
            raise MatrixError(f"{path}:{line}: the tag {tag} is not allowed")


def _value(path: Path, node: yaml.Node | None, place: Place, lines: dict[Place, int]) -> Any:
    if node is None:
        raise MatrixError(f"{path}: is empty")
    lines[place] = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if len(place) >= DEPTH_LIMIT:
        raise MatrixError(f"{path}:{lines[place]}: is nested deeper than {DEPTH_LIMIT} levels")
    if isinstance(node, yaml.SequenceNode):
        return tuple(_value(path, item, (*place, number), lines) for number, item in enumerate(node.value))
    assert isinstance(node, yaml.MappingNode)
    mapping: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise MatrixError(f"{path}:{line}: a key must be a word")
        if key.value in mapping:
            raise MatrixError(f"{path}:{line}: {dotted((*place, key.value))}: the key is there twice")
        mapping[key.value] = _value(path, value, (*place, key.value), lines)
        lines[(*place, key.value)] = line
    return mapping


def _scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    text: str = node.value
    if node.style:
        return text
    if text in ("", "null", "~"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if INTEGER.fullmatch(text):
        return int(text) if len(text) < 20 else text
    if FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def _complaint(path: Path, kind: type[BaseModel], problem: ValidationError, lines: dict[Place, int]) -> MatrixError:
    errors = problem.errors(include_url=False)
    # A misspelt key is unknown and missing at once: the first of the two is what helps.
    error = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    place, rest = _place(error["loc"], lines)
    line = lines.get(place, 1)
    where = f"{path}:{line}: {dotted(place) or '(top)'}"
    if error["type"] == "extra_forbidden":
        return MatrixError(f"{where}: unknown key{near(str(place[-1]), fields_at(kind, place[:-1]))}")
    if error["type"] == "missing":
        return MatrixError(f"{path}:{line}: {dotted((*place, *rest))}: is missing")
    if error["type"] in WANTED:
        return MatrixError(f"{where}: {WANTED[error['type']]}")
    return MatrixError(f"{where}: {_message(error)}", next_step=_hint(error["type"], error["input"]))


def _place(found: Place, lines: dict[Place, int]) -> tuple[Place, Place]:
    """Return the part of pydantic's location that stands in the file, and what is left; names of a union's members stand in none."""
    place: Place = ()
    for number, part in enumerate(found):
        if (*place, part) in lines:
            place = (*place, part)
        elif number == len(found) - 1:
            return place, (part,)
    return place, ()


def _message(error: ErrorDetails) -> str:
    if error["type"] == "string_type" and error["input"] is not None:
        message = f"{error['input']!r} is not text"
    elif error["type"] == "value_error":
        message = str(error["msg"]).removeprefix("Value error, ")
    else:
        message = str(error["msg"])[0].lower() + str(error["msg"])[1:]
    return message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 1] + "…"


def _hint(kind: str, value: object) -> str:
    """Return what to do about a scalar that has the wrong type only for its quotes, or for their absence."""
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "put it in quotes"
    if kind in ("int_type", "float_type", "bool_type") and isinstance(value, str) and PLAIN.fullmatch(value):
        return "write it without quotes"
    return ""


def dotted(place: Sequence[str | int]) -> str:
    """Return a place as people write it: `cells.bf16.serve.args`."""
    return ".".join(str(part) for part in place)


def fields_at(kind: object, place: Sequence[str | int]) -> list[str]:
    """Return the keys that a type knows at a place inside it, as YAML spells them."""
    for part in place:
        kind = _inside(kind, part)
    return [field.alias or name for candidate in _models(kind) for name, field in candidate.model_fields.items()]


def _inside(kind: object, part: str | int) -> object:
    for candidate in _models(kind):
        for name, field in candidate.model_fields.items():
            if part in (field.alias, name):
                return field.annotation
    for member in get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,):
        if get_origin(member) in (dict, tuple):
            return get_args(member)[-1 if get_origin(member) is dict else 0]
    return None


def _models(kind: object) -> list[type[BaseModel]]:
    if get_origin(kind) is Annotated:
        return _models(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [model for member in get_args(kind) for model in _models(member)]
    return [kind] if isinstance(kind, type) and issubclass(kind, BaseModel) else []
