"""What two releases do not have in common: pins, packages, serving arguments, weights and verdicts, from their records alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from release.errors import VerificationError
from release.types import JSON


class Difference(NamedTuple):
    """One thing that differs: its kind, its name, and what it is in either release; empty where a release has none."""

    kind: str
    name: str
    first: str
    second: str


def differences(first: JSON, second: JSON) -> list[Difference]:
    """Return what differs between two records, in the order in which a release is made. Raises VerificationError for what is no record."""
    try:
        one, other = dict(_facts(first)), dict(_facts(second))
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise VerificationError(f"a record lacks what a release's must have: {problem!r:.200}") from problem
    names = list(dict.fromkeys([*one, *other]))
    order = {kind: number for number, kind in enumerate(dict.fromkeys(kind for kind, _ in names))}
    names.sort(key=lambda key: order[key[0]])
    return [Difference(*key, one.get(key, ""), other.get(key, "")) for key in names if one.get(key) != other.get(key)]


def _facts(record: JSON) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield everything that is compared, as (kind, name) and a text."""
    for name in ("cell", "state", "made-by"):
        yield ("release", name), str(record.get(name, ""))
    pins = record["pins"]
    for number, layer in enumerate(pins["base"].get("diff-ids") or ()):
        yield ("base", f"layer {number}"), str(layer)
    yield from _each("package", pins["base"].get("packages") or {})
    for source in pins["sources"]:
        yield ("source", source["name"]), f"{source['version']} {source.get('upstream-sha256') or source['sha256']}"
        yield from ((("patch", patch["file"]), str(patch["sha256"])) for patch in source["patches"])
    for source in pins.get("git") or ():
        yield ("source", source["name"]), f"{source['repository']} {source['base']}"
        yield from ((("patch", patch["path"]), str(patch["sha256"])) for patch in source["patches"])
    for wheel in pins["wheels"]:
        yield ("wheel", wheel["name"]), f"{wheel['version']} {wheel['sha256']}"
    yield from _each("checkpoint", pins.get("checkpoint") or {})
    yield from _each("weights", {name: file["sha256"] for name, file in record["weights"]["files"].items()})
    yield from _each("argument", _arguments(record["serve"].get("argv") or ()))
    yield from _each("environment", record["serve"].get("env") or {})
    yield ("image", "manifest"), str(record["image"]["manifest"]["digest"])
    for name in ("questions", "prompts"):
        yield ("evaluation", name), str(pins.get(name) or "")
    for verdict in record["verdicts"]:
        yield ("verdict", verdict["name"]), f"{verdict['status']}: {verdict['measured']}"


def _each(kind: str, values: Mapping[str, object]) -> Iterator[tuple[tuple[str, str], str]]:
    for name, value in sorted(values.items()):
        yield (kind, str(name)), str(value)


def _arguments(argv: Sequence[str]) -> dict[str, str]:
    """Return a command line's `--name value` and `--name=value` pairs; a word that belongs to no name stands under its place."""
    found: dict[str, str] = {}
    name = ""
    for number, word in enumerate(map(str, argv)):
        if word.startswith("--"):
            name, _, value = word.partition("=")
            found[name] = value
        elif name and not found[name]:
            found[name] = word
        else:
            found[f"word {number}"] = word
    return found
