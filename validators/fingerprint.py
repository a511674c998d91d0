"""What makes two evaluations comparable: data, prompt, sampling, limits, harness and grader, as canonical JSON with a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field

from release.types import JSON, Digest, Frozen, dump

MAY_DIFFER: Final = frozenset({"model", "repeats"})
"""Fields in which two evaluations may differ: the served name says nothing of what was asked, and sides that were asked a different
number of times are compared question by question, with the error that each has."""
ESSENTIAL: Final = {
    "the questions": ("question-ids", "questions"),
    "n": ("n",),
    "the prompt": ("prompt",),
    "sampling": ("sampling", "temperature"),
    "max-tokens": ("max-tokens",),
    "the harness": ("harness",),
    "the grader": ("grader",),
}
"""What a fingerprint must say to be one, and the fields that may say it."""
DEEPEST: Final = 20
LONGEST: Final = 80


class Fingerprint(Frozen):
    """An evaluation's fingerprint in full.

    `dataset` and `revision` name the questions, `question-ids` is their `digest_of_ids`; `prompt` and `chat-template` are digests or words
    for how a question becomes tokens; `sampling` holds the figures that were sent (temperature, top-p, seed, …); `max-model-len` is what
    the server gives the model, None where it does not say; `harness` is name and version; `model` is the served name.
    """

    dataset: str
    revision: str
    question_ids: Digest
    n: int = Field(gt=0)
    repeats: int = Field(default=1, ge=1)
    prompt: str
    chat_template: str | None
    sampling: dict[str, float | int | str | bool | None]
    max_tokens: int
    max_model_len: int | None
    harness: str
    grader: str
    model: str = ""

    @property
    def digest(self) -> str:
        """The digest of everything but what may differ."""
        return digest_of(comparable(dump(self)))


@dataclass(frozen=True)
class Difference:
    """A field that two fingerprints do not agree in, with what each says; None where it says nothing."""

    field: str
    candidate: Any
    reference: Any

    def __str__(self) -> str:
        return f"{self.field} ({_shown(self.candidate)} vs {_shown(self.reference)})"


def canonical(value: Any) -> bytes:
    """Return JSON as the same bytes whoever writes it: sorted keys, no white space, UTF-8. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        "utf-8", "replace"
    )


def digest_of(value: Any) -> str:
    """Return the digest of a value's canonical JSON, as sha256:<64 hex digits>."""
    return "sha256:" + hashlib.sha256(canonical(value)).hexdigest()


def digest_of_ids(ids: Iterable[str]) -> str:
    """Return the digest of a set of question ids, in whatever order they come."""
    return digest_of(sorted(ids))


def comparable(fingerprint: Mapping[str, Any]) -> JSON:
    """Return a fingerprint without what may differ."""
    return {key: value for key, value in fingerprint.items() if key not in MAY_DIFFER}


def differences(candidate: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Return where two fingerprints differ, by dotted field and in their order; a field that one of them lacks is a difference."""
    one, two = dict(_flat(comparable(candidate))), dict(_flat(comparable(reference)))
    return tuple(
        Difference(key, one.get(key), two.get(key))
        for key in sorted({*one, *two})
        if key not in one or key not in two or not _same(one[key], two[key])
    )


def omissions(fingerprint: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a fingerprint does not say and must: what is unknown cannot be called equal."""
    return tuple(what for what, fields in ESSENTIAL.items() if all(fingerprint.get(field) is None for field in fields))


def _flat(value: Mapping[str, Any], before: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner and depth < DEEPEST:
            yield from _flat(inner, f"{before}{key}.", depth + 1)
        else:
            yield f"{before}{key}", inner


def _same(one: Any, two: Any) -> bool:
    """Say whether two values are equal, and not merely to Python: True is not 1."""
    return isinstance(one, bool) == isinstance(two, bool) and bool(one == two)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
