"""A benchmark as a type: how many questions, asked how and graded how, from which data, and what loss on it still counts as none."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from release.types.model import Hub
from release.types.words import Frozen, RelativePath, Slug, Unknown, matching

Alias = Annotated[str, matching(re.compile(r"[^|\n]{1,60}"), "a name of at most 60 characters on one line")]


class Margin(Frozen):
    """The loss, candidate − reference, that still counts as none: a share (0.02 = 2 points), chosen before anything is measured."""

    share: float = Field(gt=0, lt=1)
    source: str


class Sampling(Frozen):
    """How answers are drawn. `model`: as the model's own generation_config.json says, which each fingerprint records in figures."""

    by: Literal["model", "greedy"] | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)

    @model_validator(mode="after")
    def _said(self) -> Sampling:
        if (self.by is None) == (self.temperature is None):
            raise ValueError("give exactly one of 'by' and 'temperature'")
        return self


class Data(Frozen):
    """Where the questions come from: a hub's repository for people to read, and the folder below the user's own data folder to run from.

    Nothing is downloaded behind anyone's back: `path` is looked up where the user says that data sets lie.
    """

    hub: Hub
    path: RelativePath
    subset: str | None = None
    split: str
    license: str | Unknown


class Board(Frozen):
    """Where a hub lists scores of this benchmark: its data set there, and the task in it."""

    dataset: str = Field(pattern=r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
    task: str = Field(pattern=r"[A-Za-z0-9._-]+")


class Benchmark(Frozen):
    """A named set of `n` questions, and the rule of its verdict.

    `aliases` are spellings in published tables; `loose` are spellings that leave something open, with what is assumed then. `n-assumed`:
    why n is no fact. `fractional`: answers can be worth a part, so a score is no whole number of right answers. `clusters`: questions that
    belong together (subjects, passages), by the name of the field. `repeats` a side are the default profile. `discordance` is the share
    λ of 2p(1 − p) that two runs of the same endpoint disagree in: 1 is the upper bound, before anything is measured.
    """

    id: Slug
    name: str
    aliases: tuple[Alias, ...] = ()
    loose: dict[str, str] = {}
    n: int = Field(gt=0)
    n_assumed: str = ""
    fractional: bool = False
    clusters: str | None = None
    shots: int | Unknown
    metric: Literal["exact-match", "choice", "pass-at-1", "mixed"]
    grader: str
    margin: Margin
    repeats: int = Field(default=1, ge=1)
    discordance: float = Field(default=1.0, gt=0, le=1)
    sampling: Sampling
    max_tokens: int | Unknown
    data: Data
    board: Board | None = None
    source: str
    note: str = ""
