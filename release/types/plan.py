"""A plan as a type: a cell with every default filled in; and what the rules say about it."""

from __future__ import annotations

from typing import Any, Literal

from release.types.cell import Accuracy, AnySet, Conflict, Operators, Parallel, Reported, Serve, Source, Trial, Waiver, Weights
from release.types.chip import Base, Chip, Container, Device, Python
from release.types.consistency import Examination
from release.types.model import Model
from release.types.performance import Load
from release.types.words import Digest, Dtype, Frozen, Precision, RelativePath, Slug, Unknown, Version, split_cell, tag_of


class Concern(Frozen):
    """What a rule says about a plan: `refuse` ends it, `warn` is printed with it, `note` is worth knowing."""

    rule: Slug
    severity: Literal["refuse", "warn", "note"]
    message: str
    source: str = ""
    next_step: str = ""


class Plan(Frozen):
    """A cell with every default filled in and every rule checked."""

    cell: str
    chip: Chip
    device: Device | None
    model: Model
    precision: Precision
    dtype: Dtype
    variant: str | None
    engine: Slug
    base: Base | Unknown
    python: Python | None
    container: Container
    sources: tuple[Source, ...]
    wheels: RelativePath | None
    wheels_sha256: Digest | None
    packages: dict[str, Version | Unknown]
    serve: Serve
    parallel: Parallel | None
    world_sizes: tuple[int, ...]
    engine_config: dict[str, Any]
    features: tuple[Slug, ...]
    adapters: dict[str, str]
    weights: Weights | None
    accuracy: Accuracy | None
    trials: tuple[Trial, ...]
    reported: tuple[Reported, ...]
    conflicts: tuple[Conflict, ...]
    documents: tuple[str, ...]
    note: str
    reference: str | None
    consistency: Examination | None = None
    waivers: tuple[Waiver, ...] = ()
    benchmarks: tuple[AnySet, ...] = ()
    performance: Load | None = None
    operators: Operators | None = None

    @property
    def served_model_name(self) -> str:
        """The name that clients of the server use."""
        return str(self.serve.args.get("served-model-name", self.model.id))

    @property
    def slug(self) -> str:
        """The cell's last part as a tag: `bf16`, `bf16-native`."""
        return tag_of(split_cell(self.cell)[2])
