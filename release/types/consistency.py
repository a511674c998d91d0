"""How much a candidate may differ from its reference token by token, how that is asked, and what came out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from release.types.verdict import Verdict
from release.types.words import Digest, Frozen, Precision, RelativePath

Finding = Literal["CONSISTENT", "DIFFERENT", "INCONCLUSIVE", "UNVERIFIABLE"]
"""What a layer, or all of them, found. DIFFERENT is proven; UNVERIFIABLE says that nothing could be measured."""


class Limits(Frozen):
    """How far a candidate of one precision may be from its reference: what lies beyond is another model.

    `kl` is the mean Kullback–Leibler divergence a token in nats, `disagreement` the share of tokens whose most likely one is
    another, `divergence` the share of greedy answers that leave the reference's at a token that was no near tie, `mmd` the squared
    maximum mean discrepancy of sampled answers. Each counts as max(limit, `floor-factor` × what the reference differs from
    itself). A slice (a kind, a length) may differ `slice-factor` times as much as the whole. Two tokens are a near tie where the
    reference's own logprobs of them are less than `near-tie` nats apart. `calibrated` says where the figures come from.
    """

    kl: float = Field(gt=0)
    disagreement: float = Field(gt=0, lt=1)
    divergence: float = Field(gt=0, lt=1)
    mmd: float = Field(gt=0)
    near_tie: float = Field(default=0.125, ge=0)
    floor_factor: float = Field(default=2.0, ge=1)
    slice_factor: float = Field(default=4.0, ge=1)
    calibrated: str = Field(min_length=8)


class Tolerances(Frozen):
    """The file matrix/consistency.yaml: the limits by the candidate's precision."""

    precisions: dict[Precision, Limits]


class Examination(Frozen):
    """What a consistency check asks of both servers.

    `prompts` is JSONL: {"id", "kind", "messages"} or {"id", "kind", "text"}. Each is answered once greedily and `samples` times at
    `temperature`, with at most `max-tokens`; of these answers at least `tokens` tokens are scored (all, where there are fewer)
    with the `top` most likely tokens of each position, `concurrency` at once. `floor` answers are repeated one at a time, to see
    what the reference differs from itself. `patience` (seconds) is for one request, `within` for a layer. `context` is what the
    candidate must serve at least, in tokens: as much as the reference where it is not said. `limits` replaces those of the precision.
    `max-age` is how many days a trace may be used, before it is recorded anew.
    """

    prompts: RelativePath
    sha256: Digest
    tokens: int = Field(default=50_000, gt=0)
    top: int = Field(default=20, ge=1, le=100)
    max_tokens: int = Field(default=256, gt=0)
    samples: int = Field(default=8, ge=2, le=1000)
    temperature: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**30)
    floor: int = Field(default=64, ge=1)
    concurrency: int = Field(default=32, ge=1, le=1024)
    patience: float = Field(default=120.0, gt=0)
    within: float = Field(default=1800.0, gt=0)
    context: int | None = Field(default=None, gt=0)
    limits: Limits | None = None
    max_age: int | None = Field(default=None, ge=1)


class Consistency(Frozen):
    """The outcome: a verdict a layer, cheapest first; those after a proven difference are SKIPPED.

    `caught-by` is the layer that proved the difference, `seconds` the wall-clock time up to there, and `reference` the digest of the
    trace that was compared with (none, where both servers were asked in turns).
    """

    finding: Finding
    caught_by: str | None
    seconds: float = Field(ge=0)
    reference: Digest | None
    limits: Limits
    verdicts: tuple[Verdict, ...] = Field(min_length=1)
