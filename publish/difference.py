"""What two releases do not have in common: pins, packages, serving arguments, weights and verdicts, from their records alone."""

from __future__ import annotations

import json
from collections import Counter
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
        one, other = _numbered(_facts(first)), _numbered(_facts(second))
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
    yield from ((("argument", name), value) for name, value in _arguments(record["serve"].get("argv") or ()))
    yield from _each("environment", record["serve"].get("env") or {})
    yield ("image", "manifest"), str(record["image"]["manifest"]["digest"])
    for name in ("questions", "prompts"):
        yield ("evaluation", name), str(pins.get(name) or "")
    for verdict in record["verdicts"]:
        told = f"{verdict['status']}: {verdict['measured']}, wanted {verdict['wanted']}"
        yield ("verdict", verdict["name"]), told
        if verdict.get("figures"):
            yield ("figures", verdict["name"]), json.dumps(verdict["figures"], sort_keys=True)
    for waiver in record.get("waivers") or ():
        yield ("waiver", str(waiver["validator"])), json.dumps(waiver, sort_keys=True)


def _numbered(facts: Iterator[tuple[tuple[str, str], str]]) -> dict[tuple[str, str], str]:
    """Return facts by kind and name; the second of one name is `name (2)`, so that none hides another."""
    found: dict[tuple[str, str], str] = {}
    seen = Counter[tuple[str, str]]()
    for (kind, name), value in facts:
        seen[kind, name] += 1
        found[kind, name if seen[kind, name] == 1 else f"{name} ({seen[kind, name]})"] = value
    return found


def _each(kind: str, values: Mapping[str, object]) -> Iterator[tuple[tuple[str, str], str]]:
    for name, value in sorted(values.items()):
        yield (kind, str(name)), str(value)


def _arguments(argv: Sequence[str]) -> list[tuple[str, str]]:
    """Return a command line's `--name value …` and `--name=value` in their order; words before the first name stand under none."""
    found: list[tuple[str, str]] = [("", "")]
    for word in map(str, argv):
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            found.append((name, value if equals else ""))
        else:
            found[-1] = found[-1][0], f"{found[-1][1]} {word}".strip()
    return found
