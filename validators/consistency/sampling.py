"""Layer 3: do both servers draw their answers from the same distribution? The only layer that sees a broken sampler."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np

from release.types import JSON, Verdict
from release.types.consistency import Finding
from release.validators.consistency import answers
from release.validators.consistency.asking import Clock
from release.validators.consistency.case import Case, Measure, verdict, within
from release.validators.consistency.discrepancy import Discrepancy, discrepancy, hamming
from release.validators.consistency.evidence import read_log

LAYER: Final = "sampling"
FILE: Final = "samples.jsonl"
ALPHA: Final = 0.01
"""p-value below which a difference is one; whether it matters is said by its size."""


def record(case: Case, clock: Clock) -> Path:
    """Have the candidate draw as many answers as the reference drew, with other seeds."""
    side, spec = case.candidate, case.candidate.spec
    asked = {
        **answers.greedy_asked(side),
        "samples": spec.samples,
        "temperature": spec.temperature,
        "shift": answers.CANDIDATE_SEED,
    }
    return side.ask(FILE, asked, lambda: answers.sampled(side, shift=answers.CANDIDATE_SEED), clock)


def judge(case: Case, clock: Clock) -> Verdict:
    """Compare the samples by MMD against the limit; what two halves of the reference's own samples differ is shown beside it.

    DIFFERENT needs both: a p-value below 1 %, which says that there is a difference, and a size beyond the limit, which says that
    it matters. With enough samples any other arithmetic has a p-value of 0.
    """
    ours = _by_prompt(read_log(record(case, clock)))
    theirs = _by_prompt(one for one in case.theirs(answers.FILE) if not one["key"].endswith("#0"))
    names = sorted(ours.keys() & theirs.keys())
    unit = answers.unit(one for name in names for one in (*ours[name], *theirs[name]))
    found = _compare([(theirs[name], ours[name]) for name in names], unit)
    halves = [(theirs[name][0::2], theirs[name][1::2]) for name in names]
    floor = _compare(halves, unit) if case.candidate.spec.samples >= 4 else None
    limit = case.limits.mmd
    finding: Finding = within(found.low, found.high, limit)
    if finding == "DIFFERENT" and found.p >= ALPHA:
        finding = "INCONCLUSIVE"
    reads = f"MMD² {found.value:.2g} [{found.low:.2g}, {found.high:.2g}], limit {limit:.2g}, p = {found.p:.3f}"
    if finding == "INCONCLUSIVE" and found.value < limit:
        needed = math.ceil(case.candidate.spec.samples * (found.high - found.value) / (limit - found.value))
        reads += f"; about {needed} samples a prompt would decide"
    lengths = [float(np.mean([len(one[unit]) for name in names for one in side[name]])) for side in (ours, theirs)]
    figures = {
        "mmd2": found.value,
        "low-95": found.low,
        "high-95": found.high,
        "p": found.p,
        "limit": limit,
        "floor": None if floor is None else {"mmd2": floor.value, "p": floor.p},
        "prompts": len(names),
        "samples": case.candidate.spec.samples,
        "tokens-mean": {"candidate": lengths[0], "reference": lengths[1]},
    }
    return verdict(LAYER, [Measure("mmd", finding, reads)], f"MMD² ≤ {limit:.2g}", figures)


def _compare(pairs: list[tuple[list[JSON], list[JSON]]], unit: str) -> Discrepancy:
    """Return the discrepancy of answers, prompt by prompt; all prompts have as many on each side."""
    n = len(pairs[0][0])
    return discrepancy(np.stack([hamming([answer[unit] for answer in (*one, *other)]) for one, other in pairs]), n)


def _by_prompt(records: Iterable[JSON]) -> dict[str, list[JSON]]:
    found: dict[str, list[tuple[int, JSON]]] = defaultdict(list)
    for one in records:
        found[answers.prompt_of(one["key"])].append((int(one["key"].rpartition("#")[2]), one))
    return {name: [one for _, one in sorted(group, key=lambda pair: pair[0])] for name, group in found.items()}
