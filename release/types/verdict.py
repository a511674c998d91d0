"""What a validator says, and what a release is by its verdicts."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from release.types.words import Frozen


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


FAMILIES: Final = ("accuracy", "consistency", "performance", "operators")
"""Validators whose verdicts are named `FAMILY` or `FAMILY/…`; every other verdict is one of conformance."""


def family(name: str) -> str:
    """Return which validator a verdict of this name comes from."""
    first = name.partition("/")[0]
    return first if first in FAMILIES else "conformance"


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
