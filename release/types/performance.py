"""How fast a server answers: what is asked for, what was measured in every repeat, and what a reader may take from it."""

from __future__ import annotations

from statistics import median
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from release.types.words import Digest, Frozen, RelativePath

Metric = Literal["ttft", "tpot", "itl", "e2el"]
METRICS: Final[tuple[Metric, ...]] = ("ttft", "tpot", "itl", "e2el")
"""Time to first token, time per output token after it ((e2e − TTFT) / (out − 1) a request), gap between tokens, end to end; in ms."""
TAIL: Final = 1000
"""Requests below which a 99th percentile says nothing."""
FEWEST: Final = 100
SLACK: Final = 0.05
"""How far a tool's own rate may be from tokens over seconds."""


class Objective(Frozen):
    """The service level that a request has to keep to count as goodput: at most so many ms each."""

    ttft: float | None = Field(default=None, gt=0)
    tpot: float | None = Field(default=None, gt=0)
    e2el: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _said(self) -> Self:
        if self.ttft is None and self.tpot is None and self.e2el is None:
            raise ValueError("say at least one of ttft, tpot and e2el")
        return self


class Load(Frozen):
    """What a cell has measured: each pair of input and output tokens of `grid` at each `concurrency`, `repeats` times.

    `requests` a run are max(5 × concurrency, 100) where it is not said; `warmups` requests before each are not counted. Every answer has
    just the output tokens that are asked for (EOS is ignored). `of-reference` is the least throughput as a share of the reference's that
    passes (0.8), `of-last` the same of the last release's, whose record `last` is with its digest: where neither is said, nothing is judged.
    """

    grid: tuple[tuple[int, int], ...] = Field(min_length=1)
    concurrency: tuple[int, ...] = Field(min_length=1)
    requests: int | None = Field(default=None, gt=0)
    repeats: int = Field(default=3, ge=1, le=100)
    warmups: int = Field(default=8, ge=0)
    seed: int = 0
    slo: Objective | None = None
    of_reference: float | None = Field(default=None, gt=0)
    of_last: float | None = Field(default=None, gt=0)
    last: RelativePath | None = None
    last_sha256: Digest | None = None
    within: float = Field(default=1800.0, gt=0)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if any(number < 1 for pair in self.grid for number in pair) or any(number < 1 for number in self.concurrency):
            raise ValueError("tokens and concurrency are numbers from 1")
        if (self.of_last is None) != (self.last is None) or (self.last is None) != (self.last_sha256 is None):
            raise ValueError("of-last, last and last-sha256 belong together")
        return self

    def requests_at(self, concurrency: int) -> int:
        """Return how many requests a run at this concurrency has."""
        return self.requests or max(5 * concurrency, FEWEST)


class Latency(Frozen):
    """One latency over the requests of a run, in ms; a percentile that the tool does not give is None."""

    mean: float = Field(ge=0)
    p50: float = Field(ge=0)
    p90: float | None = Field(default=None, ge=0)
    p99: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        known = [value for value in (self.p50, self.p90, self.p99) if value is not None]
        if known != sorted(known):
            raise ValueError(f"percentiles fall: {known}")
        return self


class Run(Frozen):
    """One repeat: how long it took, how many requests ended how, tokens in all, rates a second, and latencies in ms."""

    seconds: float = Field(gt=0)
    completed: int = Field(ge=0)
    failed: int = Field(ge=0)
    input_tokens: int = Field(ge=0)
    output_tokens: int = Field(ge=0)
    requests_per_second: float = Field(ge=0)
    output_tokens_per_second: float = Field(ge=0)
    goodput: float | None = Field(default=None, ge=0)
    ttft: Latency | None = None
    tpot: Latency | None = None
    itl: Latency | None = None
    e2el: Latency | None = None
    load: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if not self.completed + self.failed:
            raise ValueError("no request was made")
        for what, rate, count in (
            ("requests", self.requests_per_second, self.completed),
            ("output tokens", self.output_tokens_per_second, self.output_tokens),
        ):
            if abs(rate * self.seconds - count) > SLACK * max(count, 1):
                raise ValueError(f"{rate} {what} a second over {self.seconds} s are not {count}")
        if self.goodput is not None and self.goodput > self.requests_per_second * (1 + SLACK):
            raise ValueError("the goodput is greater than the throughput")
        return self


class Point(Frozen):
    """What was measured at one load: input and output tokens a request, requests in flight, and every repeat."""

    input_tokens: int = Field(gt=0)
    output_tokens: int = Field(gt=0)
    concurrency: int = Field(gt=0)
    requests: int = Field(gt=0)
    runs: tuple[Run, ...] = Field(min_length=1)

    @property
    def name(self) -> str:
        """The load in a few signs: `128+64 × 8`."""
        return f"{self.input_tokens}+{self.output_tokens} × {self.concurrency}"

    @property
    def throughput(self) -> float:
        """Output tokens a second: the median of the repeats."""
        return median(run.output_tokens_per_second for run in self.runs)

    @property
    def span(self) -> tuple[float, float]:
        """The slowest and the fastest repeat, in output tokens a second."""
        rates = [run.output_tokens_per_second for run in self.runs]
        return min(rates), max(rates)


class Machine(Frozen):
    """What it was measured on: a fingerprint of the host, without a name of it."""

    processor: str
    cores: int = Field(gt=0)
    device: str | None = None
    devices: int | None = None


class Performance(Frozen):
    """What a tool measured: `prefix-cache` says what is known of it; `asked` is the load that the cell asked for."""

    tool: str
    version: str
    machine: Machine
    prefix_cache: str
    slo: Objective | None = None
    points: tuple[Point, ...] = Field(min_length=1)
