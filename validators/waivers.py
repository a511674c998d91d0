"""Verdicts that somebody lets pass for a while: never beyond the bound, never after the last day, and never as PASSED."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any, TypeGuard

from release.types import JSON, Status, Verdict, Waiver, dump
from release.validators.fingerprint import digest_of


def waived(verdicts: Sequence[Verdict], waivers: Sequence[Waiver], today: date) -> tuple[Verdict, ...]:
    """Return the verdicts as the waivers leave them, in their order.

    A verdict that is not PASSED and has a waiver becomes SKIPPED, which never validates a release and does not block it, and says "would
    have been … without this waiver". It is FAILED if the waiver has expired, or if the loss goes beyond its bound. The loss is
    `figures.loss`, else the lower end of `figures.interval` (or `interval-90`), else `figures.delta`, as a share; a waiver with a bound
    does nothing for a verdict without such a figure, and one without a bound does nothing for a verdict with one. A PASSED verdict
    stays, and says that its waiver can go.
    """
    return tuple(_apply(verdict, next((w for w in waivers if concerns(w, verdict)), None), today) for verdict in verdicts)


def settle(verdicts: Sequence[JSON], waivers: Sequence[JSON], today: date) -> tuple[list[JSON], list[JSON]]:
    """Return a record's verdicts as its waivers leave them, and the waivers, each with its `outcome`.

    The outcomes are `applied`, `not needed`, `expired`, `exceeded`, `does not apply`, and `idle` for one that no verdict was reached for.
    """
    given = [Waiver.model_validate(waiver) for waiver in waivers]
    before = [Verdict.model_validate(verdict, strict=False) for verdict in verdicts]
    after = waived(before, given, today)
    outcomes = {
        digest_of(verdict.figures["waiver"] | {"outcome": "", "without": ""}): verdict.figures["waiver"]["outcome"]
        for verdict in after
        if "waiver" in verdict.figures
    }
    told = [
        {**dump(waiver), "outcome": outcomes.get(digest_of(dump(waiver) | {"outcome": "", "without": ""}), "idle")}
        for waiver in given
    ]
    return [dump(verdict) for verdict in after], told


def idle(verdicts: Iterable[Verdict], waivers: Sequence[Waiver]) -> tuple[Waiver, ...]:
    """Return the waivers that concern no verdict that was reached: a misspelt name, or a validator that did not run."""
    reached = tuple(verdicts)
    return tuple(waiver for waiver in waivers if not any(concerns(waiver, verdict) for verdict in reached))


def concerns(waiver: Waiver, verdict: Verdict) -> bool:
    """Say whether a waiver is about a verdict: by the validator's name, and by `figures.benchmark` where it names one."""
    return waiver.validator == verdict.name and waiver.benchmark in (None, verdict.figures.get("benchmark"))


def _apply(verdict: Verdict, waiver: Waiver | None, today: date) -> Verdict:
    if waiver is None:
        return verdict
    by = f"waiver of {waiver.owner} ({waiver.issue}: {waiver.reason})"
    if verdict.status is Status.PASSED:
        return _said(verdict, verdict.status, f"{verdict.reason}; the {by} is not needed", waiver, "not needed")
    before = f"{verdict.figures.get('finding', verdict.status)} ({verdict.status})"
    if today > date.fromisoformat(waiver.expires):
        return _said(verdict, Status.FAILED, f"{verdict.reason}; the {by} expired on {waiver.expires}", waiver, "expired")
    loss = _loss(verdict.figures)
    if (waiver.bound is None) != (loss is None):
        lack = "states no bound" if waiver.bound is None else "has a bound, and the verdict no figure to hold against it"
        return _said(verdict, verdict.status, f"{verdict.reason}; the {by} does not apply: it {lack}", waiver, "does not apply")
    if waiver.bound is not None and loss is not None and loss >= waiver.bound:
        reason = f"{verdict.reason}; the {by} is exceeded: up to {100 * loss:.2f} points, bound {100 * waiver.bound:.2f}"
        return _said(verdict, Status.FAILED, reason, waiver, "exceeded")
    bound = f", within {100 * waiver.bound:.2f} points" if waiver.bound is not None else ""
    reason = f"would have been {before} without this waiver: {waiver.reason} ({waiver.issue}, {waiver.owner}, until {waiver.expires}{bound})"
    return _said(verdict, Status.SKIPPED, f"{reason}; {verdict.reason}", waiver, "applied")


def _said(verdict: Verdict, status: Status, reason: str, waiver: Waiver, outcome: str) -> Verdict:
    figures = verdict.figures | {"waiver": dump(waiver) | {"outcome": outcome, "without": str(verdict.status)}}
    return verdict.model_copy(update={"status": status, "reason": reason, "figures": figures})


def _loss(figures: dict[str, Any]) -> float | None:
    """Return the greatest loss that a verdict's figures leave open, as a share; None where they tell none."""
    ends = figures.get("interval") or figures.get("interval-90")
    loss, delta = figures.get("loss"), figures.get("delta")
    if _number(loss):
        return float(loss)
    if isinstance(ends, list | tuple) and ends and _number(ends[0]):
        return -float(ends[0])
    return -float(delta) if _number(delta) else None


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
