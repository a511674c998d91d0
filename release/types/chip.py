"""A chip as types: the device and its figures, how a container reaches it, what its host must have, and its vendor's rules."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from release.types.words import (
    Argument,
    ByteSize,
    Dtype,
    Environment,
    Frozen,
    ImageReference,
    Precision,
    Slug,
    Unknown,
    Version,
    matching,
)

MOST_MEMORY: Final = 1e6
"""GiB of one device beyond which a figure is a slip."""

Name = Annotated[str, matching(re.compile(r"(?s).*\S.*"), "a name: it says nothing")]
Mount = Annotated[
    str,
    matching(re.compile(r"/[^:]*:/[^:]*(:(ro|rw))?"), "a mount of the form /on/the/host:/in/the/container, with :ro or without"),
]
Figure = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def _one_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as problem:
        raise ValueError(f"{pattern!r} is no regular expression: {problem}") from problem
    if groups != 1:
        raise ValueError(f"{pattern!r} has {groups} groups and must have one: what it finds; write (?:…) for the others")
    return pattern


Pattern = Annotated[str, AfterValidator(_one_group)]


class Bootstrap(Frozen):
    """A minimal Debian root file system made on the host with mmdebstrap under a fixed SOURCE_DATE_EPOCH (seconds)."""

    suite: Slug
    include: tuple[Slug, ...] = Field(min_length=1)
    epoch: int = Field(ge=0)


class Access(Frozen):
    """How to get what cannot be pinned yet: asked for by mail, taken from a vendor's site, or pulled from a registry by a tag.

    `name` is what the vendor calls it. Once it is here, `release base import FILE` tells the digest to pin.
    """

    kind: Literal["request", "site", "registry"]
    name: str | Unknown
    contact: str
    note: str = ""


class Base(Frozen):
    """Where the lowest layers of the image come from: a bootstrap, an image pinned by digest, or one to be got. Exactly one of them."""

    bootstrap: Bootstrap | None = None
    image: ImageReference | None = None
    access: Access | None = None

    @model_validator(mode="after")
    def _one(self) -> Base:
        if sum(part is not None for part in (self.bootstrap, self.image, self.access)) != 1:
            raise ValueError("give exactly one of 'bootstrap', 'image' and 'access'")
        return self


class Python(Frozen):
    """The interpreter of the base image, as far as wheels must fit it: version "3.11", glibc "2.36"."""

    version: Annotated[str, matching(re.compile(r"3\.[0-9]+"), "a Python version such as '3.11'")]
    glibc: Annotated[str, matching(re.compile(r"2\.[0-9]+"), "a glibc version such as '2.36'")]


class Container(Frozen):
    """How a container reaches the device, and what it may do; `exec-tmp`: run what it has compiled, kernels for one, in /tmp."""

    devices: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    privileged: bool = False
    gpus: Literal["all"] | None = None
    network: Literal["bridge", "host"] = "bridge"
    ipc: Literal["private", "host"] = "private"
    pid: Literal["private", "host"] = "private"
    uts: Literal["private", "host"] = "private"
    init: bool = False
    exec_tmp: bool = False
    security_opt: tuple[str, ...] = ()
    shm_size: ByteSize = "1g"
    ulimits: dict[str, str] = {}
    env: Environment = {}


class Device(Frozen):
    """One device as a process sees it, which may be less than a card.

    `memory` in GiB, `bandwidth` of that memory and `interconnect` between devices in GB/s (one direction), `compute` in dense TFLOP/s
    by type (`bf16`, `fp16`, `int8`, `fp8`), `per-host` how many a usual host has.
    """

    name: Name
    memory: Annotated[float, Field(gt=0, le=MOST_MEMORY, allow_inf_nan=False)] | Unknown = Field(union_mode="left_to_right")
    bandwidth: Figure | Unknown = Field(union_mode="left_to_right")
    compute: dict[Literal["bf16", "fp16", "fp32", "int8", "fp8"], Figure] = {}
    interconnect: Figure | Unknown = Unknown(unknown="nobody has said it")
    per_host: Count | Unknown
    source: str


class Tool(Frozen):
    """The host's own tool that shows its devices: argv, and regular expressions over what it prints.

    `driver`, `device` (one match a device) and `memory` (MiB, one match a device) each have one group.
    """

    command: tuple[str, ...] = Field(min_length=1)
    driver: Pattern | None = None
    device: Pattern | None = None
    memory: Pattern | None = None


class Host(Frozen):
    """What a host of this chip must have: driver, tool, and software with the versions that the vendor names."""

    driver: Version | Unknown = Unknown(unknown="the vendor's papers name no version")
    tool: Tool | None = None
    software: dict[str, str | Unknown] = {}


class When(Frozen):
    """Where a rule applies: everything that is given must hold.

    `kv-heads-split`: whether the KV heads are a multiple of the tensor parallel size.
    """

    engines: tuple[Slug, ...] = ()
    families: tuple[Slug, ...] = ()
    precisions: tuple[Precision, ...] = ()
    features: tuple[Slug, ...] = ()
    parameters_at_least: float | None = None
    kv_heads_split: bool | None = None


class Rule(Frozen):
    """What a vendor's papers demand of a cell, as data: what is given must hold, else the plan is refused or warned about.

    `dtypes`: activations may be these. `precisions`: these alone. `env` and `args`: set to just these values. `multiples`: a serving
    argument (or every item of it, where it is a list written with commas) is a multiple of the number. `world-size: even`: no odd
    count of devices but one. `without`: features that must not be ticked. `weights: float`: no quantised weights. `most`: at most so
    many adapters.
    """

    id: Slug
    when: When = When()
    dtypes: tuple[Dtype, ...] = ()
    precisions: tuple[Precision, ...] = ()
    env: Environment = {}
    args: dict[str, Argument] = {}
    multiples: dict[str, Count] = {}
    world_size: Literal["even"] | None = None
    without: tuple[Slug, ...] = ()
    weights: Literal["float"] | None = None
    most: int | None = Field(default=None, ge=0)
    severity: Literal["refuse", "warn"] = "refuse"
    reason: str
    source: str


class Chip(Frozen):
    """A kind of accelerator: facts about the device and how a container reaches it.

    `precisions` are the weight formats that run on it, `dtypes` what it computes activations in (the first is the default for
    quantised weights). `devices` are its variants by name, the default first; none for a host processor.
    """

    id: Slug
    name: Name
    vendor: Name
    architecture: Literal["amd64", "arm64"]
    precisions: tuple[Precision, ...] = Field(min_length=1)
    dtypes: tuple[Dtype, ...] = Field(default=("bf16",), min_length=1)
    devices: dict[Slug, Device] = {}
    base: Base | None = None
    python: Python | None = None
    container: Container = Container()
    host: Host = Host()
    rules: tuple[Rule, ...] = ()
    note: str = ""
