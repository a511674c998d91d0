"""YAML as text, for the configuration files of engines: one spelling for a value, and nothing that a value says can break out of its place."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from release.errors import TemplateError

PLAIN: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null"})
"""What YAML 1.1 reads as something else than text, whatever its case."""
ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}


def document(value: object) -> str:
    """Return mappings, lists and scalars as a YAML document in block style, keys in the order they have.

    Text is written plain only where no YAML reader takes it for anything else, and double-quoted otherwise (YAML 1.1 and 1.2, §5.7
    escapes). Raises TemplateError for lone surrogates, for numbers that are not finite and for types that YAML has no word for.
    """
    return "\n".join(_lines(value, 0)) + "\n"


def _lines(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _entry(f"{'  ' * depth}{_text(str(key))}:", item, depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes) and value:
        for item in value:
            first, *rest = _lines(item, depth + 1)
            yield f"{'  ' * depth}- {first.lstrip(' ')}"
            yield from rest
    else:
        yield "  " * depth + _scalar(value)


def _entry(head: str, item: object, depth: int) -> Iterator[str]:
    if isinstance(item, Mapping | Sequence) and not isinstance(item, str | bytes) and item:
        yield head
        yield from _lines(item, depth)
    else:
        yield f"{head} {_scalar(item)}"


def _scalar(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "[]"
    raise TemplateError(f"{value!r} has no word in YAML")


def _number(value: float) -> str:
    """Return a float so that YAML 1.1 reads a float too: it wants a point in `1.0e-05`."""
    if not math.isfinite(value):
        raise TemplateError(f"{value} is not a number that a configuration can hold")
    mantissa, sign, exponent = repr(value).partition("e")
    if not sign:
        return mantissa
    point = mantissa if "." in mantissa else f"{mantissa}.0"
    return f"{point}e{exponent if exponent[0] in '+-' else '+' + exponent}"


def _text(value: str) -> str:
    if PLAIN.fullmatch(value) and value.lower() not in WORDS:
        return value
    return '"' + "".join(_escaped(sign) for sign in value) + '"'


def _escaped(sign: str) -> str:
    if sign in ESCAPES:
        return ESCAPES[sign]
    number = ord(sign)
    if 0xD800 <= number <= 0xDFFF:
        raise TemplateError(f"{sign!r} is half of a character: UTF-8 cannot say it")
    if sign.isprintable():
        return sign
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
