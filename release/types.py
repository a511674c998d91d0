"""The words of the house as frozen types: chip, model, cell, plan, verdict. Nothing here does anything."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

JSON = dict[str, Any]

SHA256: Final = re.compile(r"sha256:[0-9a-f]{64}")
SLUG: Final = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
IMAGE: Final = re.compile(r"[a-z0-9][a-zA-Z0-9._:/-]*@sha256:[0-9a-f]{64}")
RELATIVE: Final = re.compile(r"(?!/)(?!.*(?:^|/)\.\.?(?:/|$))[A-Za-z0-9._/-]+")
ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SIZE: Final = re.compile(r"[0-9]+[kmg]?")
SECRET: Final = re.compile(
    r"(^|_)(TOKENS?|SECRETS?|PASS|PASSWD|PASSWORD|CREDENTIALS?|PRIVATE|API_?KEY|ACCESS_?KEY)(_|$)", re.IGNORECASE
)

PRECISIONS: Final = ("bf16", "fp16", "fp32", "fp8", "w8a8", "w8a16", "w4a16", "w8a8c8", "w8a8s", "w8a8sc")
Precision = Literal["bf16", "fp16", "fp32", "fp8", "w8a8", "w8a16", "w4a16", "w8a8c8", "w8a8s", "w8a8sc"]


CELL: Final = re.compile(r"(?P<chip>[^/@~]+)/(?P<model>[^/@~]+)@(?P<arm>(?P<precision>[^@~/]+)(?:~(?P<variant>[^@~/]+))?)")


def split_cell(cell: str) -> tuple[str, str, str]:
    """Return chip, model and arm (`bf16`, `bf16~native`) of a cell id. Raises ValueError for anything else."""
    match = CELL.fullmatch(cell)
    if not match or match["precision"] not in PRECISIONS or not all(SLUG.fullmatch(p) for p in re.split("[/@~]", cell)):
        raise ValueError(f"{cell!r} is not a cell")
    return match["chip"], match["model"], match["arm"]


def tag_of(arm: str) -> str:
    """Return the spelling of an arm in tags and folders: `bf16~native` → `bf16-native`."""
    return arm.replace("~", "-")


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"{value!r} is not {what}")
        return value

    return AfterValidator(check)


def _not_secret(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if not ENV_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of an environment variable")
        if SECRET.search(name):
            raise ValueError(f"{name} looks like a secret: secrets come from the environment, never from YAML")
    return value


Digest = Annotated[str, _matching(SHA256, "a digest of the form sha256:<64 hex digits>")]
Slug = Annotated[str, _matching(SLUG, "a lower-case id such as qwq-32b")]
ImageReference = Annotated[str, _matching(IMAGE, "an image reference with a digest, name@sha256:<64 hex digits>")]
RelativePath = Annotated[str, _matching(RELATIVE, "a relative path without '..'")]
ByteSize = Annotated[str, _matching(SIZE, "a size such as 512m or 2g")]
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


class Bootstrap(Frozen):
    """A minimal Debian root file system made on the host with mmdebstrap under a fixed SOURCE_DATE_EPOCH (seconds)."""

    suite: Slug
    include: tuple[Slug, ...] = Field(min_length=1)
    epoch: int = Field(ge=0)


class Base(Frozen):
    """Where the lowest layers of the image come from: a bootstrap, or an image pinned by digest. Exactly one of them."""

    bootstrap: Bootstrap | None = None
    image: ImageReference | None = None

    @model_validator(mode="after")
    def _one(self) -> Base:
        if (self.bootstrap is None) == (self.image is None):
            raise ValueError("give exactly one of 'bootstrap' and 'image'")
        return self


class Python(Frozen):
    """The interpreter of the base image, as far as wheels must fit it: version "3.11", glibc "2.36"."""

    version: Annotated[str, _matching(re.compile(r"3\.[0-9]+"), "a Python version such as '3.11'")]
    glibc: Annotated[str, _matching(re.compile(r"2\.[0-9]+"), "a glibc version such as '2.36'")]


class Container(Frozen):
    """How a container reaches the device, and what it may do."""

    devices: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    privileged: bool = False
    shm_size: ByteSize = "1g"
    ulimits: dict[str, str] = {}
    env: Environment = {}


class Chip(Frozen):
    """A kind of accelerator: facts about the device and how a container reaches it."""

    id: Slug
    name: str
    vendor: str
    architecture: Literal["amd64", "arm64"]
    precisions: tuple[Precision, ...] = Field(min_length=1)
    base: Base | None = None
    python: Python | None = None
    container: Container = Container()


class Architecture(Frozen):
    """Shapes of a decoder-only model, as in its config.json; `class` is the name in `architectures`."""

    class_: str = Field(alias="class")
    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    context: int = Field(gt=0)
    tied_embeddings: bool = False


class Checkpoint(Frozen):
    """The upstream weights at a pinned state: a folder relative to the matrix, and the digest of every file in it."""

    path: RelativePath
    recipe: RelativePath | None = None
    files: dict[RelativePath, Digest] = Field(min_length=1)


class Model(Frozen):
    """An upstream checkpoint at a pinned revision, with its architecture facts; `example` is a question for the card."""

    id: Slug
    name: str
    family: Slug
    vendor: str
    license: Slug
    languages: tuple[Slug, ...] = ("en",)
    description: str
    example: str
    precision: Precision
    architecture: Architecture
    checkpoint: Checkpoint


class Source(Frozen):
    """A package whose code the release changes or must pin by itself: a wheel by digest, and the patch set for it."""

    wheel: Annotated[str, _matching(re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+"), "a pin of the form name==version")]
    sha256: Digest
    patches: RelativePath | None = None

    @property
    def name(self) -> str:
        """The distribution's name."""
        return self.wheel.split("==")[0]

    @property
    def version(self) -> str:
        """The distribution's version."""
        return self.wheel.split("==")[1]


class Serve(Frozen):
    """How the engine is started: its arguments (as its own command line spells them), environment, port, patience in seconds."""

    args: dict[str, Argument] = {}
    env: Environment = {}
    port: int = Field(default=8000, ge=1, le=65535)
    memory: ByteSize = "8g"
    ready_within: int = Field(default=600, gt=0)


class Accuracy(Frozen):
    """A question set and the rule of its verdict.

    `margin` is the non-inferiority margin of the difference candidate − reference, as a share (0.02 = 2 points).
    """

    questions: RelativePath
    sha256: Digest
    grader: Literal["final-integer"]
    margin: float = Field(gt=0, lt=1)
    max_tokens: int = Field(gt=0)
    temperature: float = Field(default=0.0, ge=0)
    seed: int = 0
    concurrency: int = Field(default=32, ge=1, le=1024)


class Arm(Frozen):
    """What differs for one precision (and variant) of a cell file."""

    reference: str | None = None
    serve: Serve = Serve()


class CellFile(Frozen):
    """One file of matrix/cells: what all precisions of a chip × model share, and what differs for each."""

    chip: Slug
    model: Slug
    engine: Slug
    base: Base | None = None
    sources: tuple[Source, ...] = ()
    wheels: RelativePath
    serve: Serve
    accuracy: Accuracy
    cells: dict[str, Arm] = Field(min_length=1)


class Plan(Frozen):
    """A cell with every default filled in and every rule checked."""

    cell: str
    chip: Chip
    model: Model
    precision: Precision
    variant: str | None
    engine: Slug
    base: Base
    python: Python
    sources: tuple[Source, ...]
    wheels: RelativePath
    wheels_sha256: Digest
    serve: Serve
    accuracy: Accuracy
    reference: str | None

    @property
    def served_model_name(self) -> str:
        """The name that clients of the server use."""
        return str(self.serve.args.get("served-model-name", self.model.id))

    @property
    def slug(self) -> str:
        """The cell's last part as a tag: `bf16`, `bf16-native`."""
        return tag_of(split_cell(self.cell)[2])


class Status(StrEnum):
    """What a verdict says. SKIPPED never counts as PASSED."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    INCONCLUSIVE = "INCONCLUSIVE"
    SKIPPED = "SKIPPED"


class Verdict(Frozen):
    """What a validator found: always with the measured value, the wanted value and a reason."""

    name: str
    status: Status
    measured: str
    wanted: str
    reason: str
    figures: dict[str, Any] = {}


class State(StrEnum):
    """What a release is. Publishing refuses to call anything validated that is not."""

    PLANNED = "planned"
    BUILT = "built"
    VALIDATED = "validated"
    BLOCKED = "blocked"


def state_of(verdicts: tuple[Verdict, ...]) -> State:
    """Return what a built release is, given its verdicts: any FAILED blocks, all PASSED validates, nothing else does.

    An empty tuple of verdicts is `blocked`: a release that nothing looked at is not a release.
    """
    if not verdicts or any(v.status is Status.FAILED for v in verdicts):
        return State.BLOCKED
    return State.VALIDATED if all(v.status is Status.PASSED for v in verdicts) else State.BUILT
