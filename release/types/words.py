"""The words that every type is made of: ids, digests, sizes, names of variables, and the habits of a frozen type."""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

JSON = dict[str, Any]

SHA256: Final = re.compile(r"sha256:[0-9a-f]{64}")
SLUG: Final = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
IMAGE: Final = re.compile(r"[a-z0-9][a-zA-Z0-9._:/-]*@sha256:[0-9a-f]{64}")
RELATIVE: Final = re.compile(r"(?!/)(?!.*(?:^|/)\.\.?(?:/|$))[A-Za-z0-9._/-]+")
ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SIZE: Final = re.compile(r"[0-9]+[kmg]?")
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
REPOSITORY: Final = re.compile(r"(https://|ssh://|file://)[^\s@]+")
VERSION: Final = re.compile(r"[0-9]+(\.[0-9]+)*[A-Za-z0-9.+-]*")
FLOOR: Final = re.compile(r"(>=|==)[0-9]+(\.[0-9]+)*")
SECRET: Final = re.compile(
    r"(^|_)(TOKENS?|SECRETS?|PASS|PASSWD|PASSWORD|CREDENTIALS?|PRIVATE|API_?KEY|ACCESS_?KEY)(_|$)", re.IGNORECASE
)

PRECISIONS: Final = ("bf16", "fp16", "fp32", "fp8", "w8a8", "w8a16", "w4a16", "w8a8c8", "w8a8s", "w8a8sc")
Precision = Literal["bf16", "fp16", "fp32", "fp8", "w8a8", "w8a16", "w4a16", "w8a8c8", "w8a8s", "w8a8sc"]
Dtype = Literal["bf16", "fp16", "fp32"]
"""What activations are computed in: of a floating-point precision its own name."""


CELL: Final = re.compile(r"(?P<chip>[^/@~]+)/(?P<model>[^/@~]+)@(?P<arm>(?P<precision>[^@~/]+)(?:~(?P<variant>[^@~/]+))?)")


@cache
def split_cell(cell: str) -> tuple[str, str, str]:
    """Return chip, model and arm (`bf16`, `bf16~native`) of a cell id. Raises ValueError for anything else."""
    match = CELL.fullmatch(cell)
    if not match or match["precision"] not in PRECISIONS or not all(SLUG.fullmatch(p) for p in re.split("[/@~]", cell)):
        raise ValueError(f"{cell!r} is not a cell")
    return match["chip"], match["model"], match["arm"]


def tag_of(arm: str) -> str:
    """Return the spelling of an arm in tags and folders: `bf16~native` → `bf16-native`."""
    return arm.replace("~", "-")


def bared(address: str) -> str:
    """Return a text as it may be shown: of an address with a user before its host, who may have a password, only what comes after."""
    scheme, mark, rest = address.partition("://")
    return f"{scheme}://…@{rest.rpartition('@')[2]}" if mark and "@" in rest else address


def matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    """Return the check that a text matches, for an annotation; `what` says what it ought to be."""

    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"{bared(value)!r} is not {what}")
        return value

    return AfterValidator(check)


def _not_secret(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if not ENV_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of an environment variable")
        if SECRET.search(name):
            raise ValueError(f"{name} looks like a secret: secrets come from the environment, never from YAML")
    return value


Digest = Annotated[str, matching(SHA256, "a digest of the form sha256:<64 hex digits>")]
Slug = Annotated[str, matching(SLUG, "a lower-case id such as qwq-32b")]
ImageReference = Annotated[str, matching(IMAGE, "an image reference with a digest, name@sha256:<64 hex digits>")]
RelativePath = Annotated[str, matching(RELATIVE, "a relative path without '..'")]
Commit = Annotated[str, matching(COMMIT, "a full commit id of 40 hex digits")]
Repository = Annotated[str, matching(REPOSITORY, "a repository's address (https, ssh or file) without credentials")]
Version = Annotated[str, matching(VERSION, "a version such as 4.51.0")]
Floor = Annotated[str, matching(FLOOR, "a requirement such as >=4.51.0 or ==4.43.1")]
ByteSize = Annotated[str, matching(SIZE, "a size such as 512m or 2g")]
Environment = Annotated[dict[str, str], AfterValidator(_not_secret)]
Argument = str | int | float | bool


def kebab(name: str) -> str:
    """Return the spelling of a field in YAML and JSON: `max_model_len` → `max-model-len`."""
    return name.replace("_", "-")


class Frozen(BaseModel):
    """The habits of every type: immutable, strict about types, strict about keys, kebab-case outside."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", alias_generator=kebab, validate_by_name=True, validate_by_alias=True
    )


def dump(value: Frozen) -> Any:
    """Return a value as JSON with the spelling of the YAML files."""
    return value.model_dump(mode="json", by_alias=True)


def tuples(document: Any) -> Any:
    """Return JSON with its lists as tuples, as strict frozen types want them."""
    if isinstance(document, dict):
        return {key: tuples(value) for key, value in document.items()}
    return tuple(tuples(item) for item in document) if isinstance(document, list) else document


class Unknown(Frozen):
    """What nobody has said yet: the reason stands where the value would stand, and nothing is made up."""

    unknown: str = Field(min_length=8)
