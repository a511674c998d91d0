"""A cell as types: what serves a model on a chip in a precision, from which sources, with which arguments, and what others reported of it."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from release.types.chip import Access, Base, Container, Count
from release.types.consistency import Examination
from release.types.performance import Load
from release.types.words import (
    Argument,
    ByteSize,
    Commit,
    Digest,
    Dtype,
    Environment,
    Frozen,
    RelativePath,
    Repository,
    Slug,
    Unknown,
    Version,
    matching,
)

VERDICT: Final = re.compile(r"[a-z][a-z0-9-]{0,60}(/[^\s/][^\n/]{0,80})?")
DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Wheel(Frozen):
    """A package whose code the release changes or must pin by itself: a wheel by digest, and the patch set for it."""

    wheel: Annotated[str, matching(re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+"), "a pin of the form name==version")]
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


class VendorPatch(Frozen):
    """A vendor's patches inside the source's own repository, in one of FlagScale's layouts below `hardware/<device-type>/`.

    `commit-id` names the base where a folder is named after it; `backends` and `task` choose among the later layouts. `base` is the
    full commit that is changed, `sha256` the patch file's digest (of several: that of their names and digests as canonical JSON).
    An encrypted one is opened with a key of whoever `contact` names.
    """

    format: Literal["flagscale"]
    device_type: Annotated[str, matching(re.compile(r"[A-Za-z0-9]+_[A-Za-z0-9]+"), "a device type such as bi_V150")]
    commit_id: Annotated[str, matching(re.compile(r"[0-9a-f]{7,40}"), "a commit id")] | None = None
    backends: tuple[str, ...] = ()
    task: Literal["train", "inference"] | None = None
    base: Commit | Unknown
    sha256: Digest | Unknown
    encrypted: bool = False
    contact: str = ""


class Submodule(Frozen):
    """A submodule whose content is wanted: where it is fetched from, and the commit that it must be at."""

    repository: Repository
    commit: Commit | None = None


class GitSource(Frozen):
    """A repository at a full commit, unpatched or with a patch set; `install` are the folders in it that become packages, in order, with
    `env` in the environment of their builds (what is exported has no .git to take a version from).

    `tag` or `branch` is the name that people use for the commit: it was resolved once, and a moved one is an error.
    """

    name: Slug
    repository: Repository
    commit: Commit | Unknown
    tag: str | None = None
    branch: str | None = None
    tree: Commit | None = None
    submodules: dict[RelativePath, Submodule] = {}
    patches: RelativePath | None = None
    vendor_patch: VendorPatch | None = None
    install: tuple[str, ...] = ()
    env: Environment = {}


def _kind(value: Any) -> str:
    there = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "git" if "repository" in there else "wheel"


Source = Annotated[Annotated[Wheel, Tag("wheel")] | Annotated[GitSource, Tag("git")], Discriminator(_kind)]


class Serve(Frozen):
    """How the engine is started: its arguments (as its own command line spells them), environment, port, patience in seconds.

    `memory` bounds the container's host memory; `path` is where the weights lie inside it.
    """

    args: dict[str, Argument] = {}
    env: Environment = {}
    port: int = Field(default=8000, ge=1, le=65535)
    memory: ByteSize | None = None
    ready_within: int = Field(default=600, gt=0)


class Parallel(Frozen):
    """How the model is laid over devices: tensor × pipeline parallel make one replica."""

    tensor_parallel_size: int = Field(default=1, ge=1)
    pipeline_parallel_size: int = Field(default=1, ge=1)
    replicas: int = Field(default=1, ge=1)

    @property
    def world_size(self) -> int:
        """Devices of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class Weights(Frozen):
    """How the checkpoint is brought into the cell's precision.

    `tool` makes it (`release` for conversions of our own), by the `commands` of the vendor's papers with `$SRC` and `$DST` in them;
    `config` are edits of config.json, `split` is the tensor parallel size that a sparse checkpoint was cut for, `block` the side of a
    quantisation block or group, `access` how to get ready-made ones.
    """

    tool: str = "release"
    version: Version | Unknown | None = None
    type: str | None = None
    commands: tuple[tuple[str, ...], ...] = ()
    env: Environment = {}
    config: dict[str, Any] = {}
    packages: dict[str, Version] = {}
    split: int | None = Field(default=None, ge=1)
    block: int | None = Field(default=None, ge=1)
    build: dict[str, Any] = {}
    calibration: tuple[str, ...] = ()
    access: Access | None = None
    note: str = ""


class Asking(Frozen):
    """How questions are asked, and the rule of their verdict.

    Each question is asked `repeats` times, each time with a seed of its own: worth while at a temperature above 0. `margin` is
    the non-inferiority margin of the difference candidate − reference, as a share (0.02 = 2 points).
    """

    margin: float = Field(gt=0, lt=1)
    max_tokens: int = Field(gt=0)
    temperature: float = Field(default=0.0, ge=0)
    seed: int = 0
    repeats: int = Field(default=1, ge=1, le=1000)
    concurrency: int = Field(default=32, ge=1, le=1024)


class Accuracy(Asking):
    """A question set of the matrix. `max-age` is how many days answers may be used, on either side, before they are asked for anew."""

    questions: RelativePath
    sha256: Digest
    grader: Literal["final-integer", "last-number", "boxed-integer", "exact", "choice-letter", "yes-no", "choice-loglikelihood"]
    max_age: int | None = Field(default=None, ge=1)


class QuestionSet(Accuracy):
    """A further set of questions beside the cell's own, by name: `accuracy/NAME` is its verdict."""

    name: Slug


class Evaluation(Asking):
    """A benchmark that another tool runs, in an environment of its own.

    `dataset` is what the tool calls it, and lies at `path` below the user's data folder. `options` are further dataset arguments of the
    tool, `metric` its main one where it is not the tool's own choice.
    """

    name: Slug
    runner: Literal["evalscope"]
    version: Version | None = None
    dataset: Annotated[str, matching(re.compile(r"[a-z0-9_]{1,60}"), "the name of a data set, as gsm8k")]
    path: RelativePath
    metric: str | None = None
    options: dict[str, Any] = {}


def _asked_by(value: Any) -> str:
    there = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "tool" if "runner" in there else "own"


AnySet = Annotated[Annotated[QuestionSet, Tag("own")] | Annotated[Evaluation, Tag("tool")], Discriminator(_asked_by)]


class Operators(Frozen):
    """What a cell claims of its operators: which library serves them, and the line of the server's log (a regular expression) that proves it.

    `env` is the switch that turns it on, as the server's environment has it; the same image without it runs the native operators.
    With `plugin`, our own wheel `release-kernels` is installed in the image: its switch is RELEASE_OPERATORS, and it is set from `env`.
    With `share`, the server is profiled, and the card says which share ran in Triton.
    """

    library: Slug
    env: Environment
    proof: str = Field(min_length=4, max_length=400)
    plugin: bool = False
    share: bool = False
    source: str = ""


class Trial(Frozen):
    """An accuracy or performance run that the engine brings with it: a data set by the engine's name, or pairs of input and output tokens."""

    dataset: str | None = None
    cases: tuple[tuple[int, int], ...] = ()
    batch: int = Field(default=1, ge=1)
    env: Environment = {}


class Score(Frozen):
    """One row of a table that someone else published: both figures as printed, in percent or as a share."""

    benchmark: str
    candidate: float
    reference: float
    unit: Literal["percent", "share"] = "percent"


class Reported(Frozen):
    """A table that someone else published: shown as `reported`, never mixed with what was measured here."""

    source: str
    candidate: str
    reference: str
    scores: tuple[Score, ...] = Field(min_length=1)


class Conflict(Frozen):
    """Where a vendor's papers contradict themselves or the arithmetic: kept as data, and said by every plan."""

    says: str
    but: str
    source: str


def _day(value: str) -> str:
    if not DAY.fullmatch(value):
        raise ValueError(f"{value!r} is not a day such as 2026-12-31")
    date.fromisoformat(value)
    return value


class Waiver(Frozen):
    """A verdict that is let pass for a while, by somebody, for a reason, and not beyond a bound.

    `validator` is the verdict's name (`accuracy`, `consistency/decoding`), `benchmark` the one of several. `bound` stands in for the
    margin, in its unit (for accuracy a share:
    0.05 = 5 points); none where the validator measures nothing. `expires` is the last day that it holds, as 2026-12-31.
    """

    validator: Annotated[str, matching(VERDICT, "the name of a verdict, as accuracy or consistency/decoding")]
    benchmark: Slug | None = None
    bound: float | None = Field(default=None, gt=0)
    reason: str = Field(min_length=8)
    owner: str = Field(min_length=2)
    issue: str = Field(min_length=2)
    expires: Annotated[str, AfterValidator(_day)]


class Arm(Frozen):
    """What differs for one precision (and variant) of a cell file. What is not said is taken from the file."""

    reference: str | None = None
    engine: Slug | None = None
    device: Slug | None = None
    dtype: Dtype | None = None
    base: Base | Unknown | None = None
    sources: tuple[Source, ...] | None = None
    wheels: RelativePath | None = None
    packages: dict[str, Version | Unknown] = {}
    container: Container | None = None
    serve: Serve = Serve()
    parallel: Parallel | None = None
    world_sizes: tuple[Count, ...] | None = None
    engine_config: dict[str, Any] = {}
    weights: Weights | None = None
    features: tuple[Slug, ...] = ()
    trials: tuple[Trial, ...] | None = None
    reported: tuple[Reported, ...] | None = None
    waivers: tuple[Waiver, ...] = ()
    performance: Load | None = None
    operators: Operators | None = None
    conflicts: tuple[Conflict, ...] = ()
    note: str = ""


class CellFile(Frozen):
    """One file of matrix/cells: what all precisions of a chip × model share, and what differs for each.

    `world-sizes` are those that the vendor lists; `parallel` is the layout to serve with (chosen by the plan where it is not said); `packages`
    are versions known to be in the base image; `engine-config` is what the engine's files want beside its arguments; `documents` are the papers
    that the facts come from.
    """

    chip: Slug
    model: Slug
    engine: Slug
    device: Slug | None = None
    base: Base | Unknown | None = None
    sources: tuple[Source, ...] = ()
    wheels: RelativePath | None = None
    packages: dict[str, Version | Unknown] = {}
    container: Container | None = None
    serve: Serve = Serve()
    parallel: Parallel | None = None
    world_sizes: tuple[Count, ...] = ()
    engine_config: dict[str, Any] = {}
    features: tuple[Slug, ...] = ()
    adapters: dict[str, str] = {}
    weights: Weights | None = None
    consistency: Examination | None = None
    accuracy: Accuracy | None = None
    benchmarks: tuple[AnySet, ...] = ()
    performance: Load | None = None
    operators: Operators | None = None
    trials: tuple[Trial, ...] = ()
    reported: tuple[Reported, ...] = ()
    waivers: tuple[Waiver, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    documents: tuple[str, ...] = ()
    note: str = ""
    cells: dict[str, Arm] = Field(min_length=1)
