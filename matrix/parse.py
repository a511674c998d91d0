"""YAML of the matrix into types: strict, bounded, with file, line and dotted key in every complaint. Only this module imports yaml."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from release.errors import MatrixError

SIZE_LIMIT: Final = 1 << 20
DEPTH_LIMIT: Final = 50
INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)")
FLOAT: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")

LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

T = TypeVar("T", bound=BaseModel)
Place = tuple[str | int, ...]


def read(path: Path, kind: type[T]) -> T:
    """Return the YAML file `path` as a `kind`. Raises MatrixError naming file, line and dotted key of the first thing that is wrong.

    Anchors, aliases, tags, duplicate keys, more than 1 MiB and more than 50 levels are refused. Plain scalars are typed as in
    JSON: `no`, `1_000`, `0755` and `12:30` are strings.
    """
    data, lines = _document(path)
    try:
        return kind.model_validate(data)
    except ValidationError as problem:
        raise _complaint(path, kind, problem, lines) from problem


def near(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest known names, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(m) for m in matches)}?)" if matches else ""


def _document(path: Path) -> tuple[Any, dict[Place, int]]:
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise MatrixError(f"{path}: is larger than {SIZE_LIMIT} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise MatrixError(f"{path}: cannot be read: {problem}") from problem
    lines: dict[Place, int] = {}
    try:
        _refuse_cleverness(path, text)
        node = yaml.compose(text, Loader=LOADER)
        return _value(path, node, (), lines), lines
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise MatrixError(f"{path}{line}: {getattr(problem, 'problem', None) or problem}") from problem


def _refuse_cleverness(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
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
    return float(text) if FLOAT.fullmatch(text) else text


def _complaint(path: Path, kind: type[BaseModel], problem: ValidationError, lines: dict[Place, int]) -> MatrixError:
    error = problem.errors(include_url=False)[0]
    place = tuple(part for part in error["loc"] if part != "[key]")
    while place and place not in lines:
        place = place[:-1]
    line = lines.get(place, 1)
    where = f"{path}:{line}: {dotted(place) or '(top)'}"
    if error["type"] == "extra_forbidden":
        return MatrixError(f"{where}: unknown key{near(str(place[-1]), fields_at(kind, place[:-1]))}")
    if error["type"] == "missing":
        return MatrixError(f"{path}:{line}: {dotted(error['loc'])}: is missing")
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "string_type" and not isinstance(error["input"], dict | tuple | None):
        return MatrixError(f"{where}: {error['input']!r} is not text", next_step="put it in quotes")
    return MatrixError(f"{where}: {message[0].lower() + message[1:]}")


def dotted(place: Sequence[str | int]) -> str:
    """Return a place as people write it: `cells.bf16.serve.args`."""
    return ".".join(str(part) for part in place)


def fields_at(kind: object, place: Sequence[str | int]) -> list[str]:
    """Return the keys that a type knows at a place inside it, as YAML spells them."""
    for part in place:
        kind = _inside(kind, part)
    for candidate in _models(kind):
        return [field.alias or name for name, field in candidate.model_fields.items()]
    return []


def _inside(kind: object, part: str | int) -> object:
    for candidate in _models(kind):
        for name, field in candidate.model_fields.items():
            if part in (field.alias, name):
                return field.annotation
    if get_origin(kind) in (dict, tuple):
        return get_args(kind)[-1 if get_origin(kind) is dict else 0]
    return None


def _models(kind: object) -> list[type[BaseModel]]:
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
