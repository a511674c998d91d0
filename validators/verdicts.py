"""The rule of every verdict: CONSISTENT, REGRESSED, INCONCLUSIVE or UNVERIFIABLE, from aggregates, from pairs, or from repeats.

With [L, U] the interval of 1 − 2α of candidate − reference and m the margin: CONSISTENT iff L > −m; REGRESSED iff L ≤ −m, U < 0 and
the one-sided p-value of "no loss" is at most α; otherwise INCONCLUSIVE, with what it would take. α is 5 % for one planned look and
2.53 % for each of two. A discordance that is only assumed plans, and never decides.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from release.errors import UsageError
from release.validators.judgement import Basis, Finding, Judgement, Need
from release.validators.statistics import (
    alpha_for,
    farrington_manning,
    mcnemar_exact,
    mcnemar_loss,
    means_interval,
    means_loss,
    newcombe_interval,
    newcombe_loss,
    paired_means,
    questions_needed,
    repeats_needed,
    student_tail,
    tango_interval,
    tango_score,
)
from release.validators.statistics.normal import NORMAL

CHANGED: Final = 0.05
"""Exact McNemar p-value below which a reason calls a small loss real. Not part of any decision."""
MOST_QUESTIONS: Final = 10**9
COUNT: Final = re.compile(r"\s{0,10}([0-9]{1,10})\s{0,10}/\s{0,10}([0-9]{1,10})\s{0,10}")


@dataclass(frozen=True)
class Plan:
    """What was fixed before anything was measured: the margin as a share, and one look or two.

    `temperature` is that of the answers, None where nobody says; at 0, repeats only repeat, and more questions are needed instead.
    `discordance` is the share of 2p(1 − p) to plan with where no pair was seen: 1 is the upper bound.
    """

    margin: float
    looks: int = 1
    temperature: float | None = None
    discordance: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise UsageError(
                f"a margin of {100 * self.margin:g} points is none", next_step="give one above 0 and below 100 points"
            )
        if self.looks not in (1, 2):
            raise UsageError(
                f"{self.looks} looks: one or two are planned beforehand, and runs are never repeated until they pass"
            )

    @property
    def alpha(self) -> float:
        """The one-sided error of this look."""
        return alpha_for(self.looks)


def finding_of(interval: tuple[float, float], p_loss: float, plan: Plan) -> Finding:
    """Return what an interval says; UNVERIFIABLE is not for it to say."""
    lower, upper = interval
    if lower > -plan.margin:
        return Finding.CONSISTENT
    return Finding.REGRESSED if upper < 0 and p_loss <= plan.alpha else Finding.INCONCLUSIVE


def judge_shares(
    candidate: float, reference: float, n: int, plan: Plan, *, repeats: tuple[int, int] = (1, 1), benchmark: str = ""
) -> Judgement:
    """Judge by two shares of the same `n` questions, asked `repeats` times: all that a published table tells.

    Newcombe's interval decides, Farrington and Manning's test gives `p`. Both take the sides as independent, which on the same
    questions they are not: too careful, never too bold. The plan takes 2p(1 − p) of the reference, known before the candidate is run.
    """
    totals = n * repeats[0], n * repeats[1]
    sides = candidate, totals[0], reference, totals[1]
    ends = newcombe_interval(*sides, 1 - 2 * plan.alpha)
    p_loss = newcombe_loss(*sides)
    found = finding_of(ends, p_loss, plan)
    discordance = plan.discordance * 2 * reference * (1 - reference)
    return Judgement(
        finding=found,
        basis=Basis.REPORTED,
        margin=plan.margin,
        alpha=plan.alpha,
        benchmark=benchmark,
        n=n,
        repeats=repeats,
        shares=(candidate, reference),
        delta=candidate - reference,
        interval=ends,
        interval_95=newcombe_interval(*sides, 0.95),
        p=farrington_manning(*sides, plan.margin),
        p_loss=p_loss,
        need=(need := _need(discordance, n, plan, (0, 0))),
        reason=reason_of(found, ends, plan, need=need, real=p_loss <= CHANGED / 2),
    )


def judge_pairs(b: int, c: int, n: int, right: int, plan: Plan, *, benchmark: str = "", excluded: int = 0) -> Judgement:
    """Judge `n` pairs of single answers, `b` right only for the candidate and `c` only for the reference; `right` for the candidate.

    Tango's interval decides; REGRESSED also wants the exact one-sided McNemar p-value, which few discordant pairs do not deceive.
    """
    ends = tango_interval(b, c, n, 1 - 2 * plan.alpha)
    p_loss = mcnemar_loss(b, c)
    found = finding_of(ends, p_loss, plan)
    delta = (b - c) / n
    discordance = (b + c) / n
    need = _need(discordance, n, plan, (1, 1), delta) if found is not Finding.CONSISTENT else None
    return Judgement(
        finding=found,
        basis=Basis.PAIRED,
        margin=plan.margin,
        alpha=plan.alpha,
        benchmark=benchmark,
        measured=True,
        n=n,
        shares=(right / n, (right - b + c) / n),
        delta=delta,
        interval=ends,
        interval_95=tango_interval(b, c, n, 0.95),
        p=1 - NORMAL.cdf(tango_score(b, c, n, -plan.margin)),
        p_loss=p_loss,
        discordance=discordance,
        need=need,
        reason=reason_of(found, ends, plan, need=need, real=mcnemar_exact(b, c) < CHANGED, excluded=excluded),
    )


Answers = Sequence[tuple[Sequence[float], Sequence[float]]]


def judge_repeats(
    answers: Answers, plan: Plan, *, clusters: Sequence[Hashable] | None = None, benchmark: str = "", excluded: int = 0
) -> Judgement:
    """Judge questions that were asked several times, or whose scores are fractions: for each, the candidate's and reference's scores.

    The wider of the errors over questions (or clusters) and over answers decides (`means_interval`); the plan takes that of answers.
    """
    means = paired_means(answers, clusters)
    independent = means.pairs if plan.temperature else means.n
    ends = means_interval(means, 1 - 2 * plan.alpha, independent=independent)
    p_loss = means_loss(means, independent=independent)
    found = finding_of(ends, p_loss, plan)
    repeats = max(len(c) for c, _ in answers), max(len(r) for _, r in answers)
    # the spread of differences stands in where nobody was asked twice
    discordance = min(1.0, means.se**2 * means.n if means.discordance is None else means.discordance)
    need = _need(discordance, means.n, plan, repeats, means.delta) if found is not Finding.CONSISTENT else None
    shares = tuple(sum(sum(side[which]) / len(side[which]) for side in answers) / means.n for which in (0, 1))
    wider = max(means.se, means.se_fixed or 0.0)
    return Judgement(
        finding=found,
        basis=Basis.PAIRED if repeats == (1, 1) else Basis.REPEATED,
        margin=plan.margin,
        alpha=plan.alpha,
        benchmark=benchmark,
        measured=True,
        n=means.n,
        repeats=repeats,
        shares=(shares[0], shares[1]),
        delta=means.delta,
        interval=ends,
        interval_95=means_interval(means, 0.95, independent=independent),
        p=student_tail((means.delta + plan.margin) / wider, means.freedom) if wider else float(means.delta <= -plan.margin),
        p_loss=p_loss,
        discordance=discordance,
        need=need,
        reason=reason_of(found, ends, plan, need=need, real=2 * p_loss < CHANGED, excluded=excluded),
    )


def _need(discordance: float, n: int, plan: Plan, made: tuple[int, int], delta: float = 0.0) -> Need:
    """Return what would decide. Where that was done already, the difference that was seen is taken as the true one."""
    margin, assuming = plan.margin, Need.assuming
    cold = plan.temperature == 0
    least = min(made)
    repeats = repeats_needed(discordance, margin, n, alpha=plan.alpha)
    questions = questions_needed(discordance, margin, alpha=plan.alpha)
    if least and (questions <= n if cold else repeats <= least):
        # between −m and 0 nothing settles quickly: the nearer end must be told apart
        reach = min(0.99, max(margin + delta, -delta))
        assuming = "if the difference is the one seen"
        repeats = max(least + 1, repeats_needed(discordance, reach, n, alpha=plan.alpha))
        questions = max(n + 1, questions_needed(discordance, reach, alpha=plan.alpha))
    if cold:
        return Need(None, questions, 2 * questions, assuming)
    requests = n * sum(max(0, repeats - side) for side in made)
    return Need(repeats, questions if plan.temperature is None and least else None, requests, assuming)


def reason_of(
    found: Finding,
    ends: tuple[float, float],
    plan: Plan,
    *,
    need: Need | None = None,
    real: bool = False,
    excluded: int = 0,
) -> str:
    """Return a finding as a sentence; `real`: whether a small loss is beyond doubt, `excluded`: pairs that could not be graded."""
    lower, upper = ends
    margin = f"{100 * plan.margin:.2f} points"
    left_out = f"; {excluded} pairs with a cut-off answer are left out" if excluded else ""
    if found is Finding.CONSISTENT:
        worse = f"no more than {-100 * lower:.2f} points worse than" if lower < 0 else "not worse than"
        small = f"; a small loss is {'real' if real else 'likely'}" if upper < 0 else ""
        better = f"; better by more than {margin} cannot be excluded" if upper >= plan.margin else ""
        return f"at {100 * (1 - plan.alpha):.3g} % confidence the candidate is {worse} the reference{small}{better}{left_out}"
    if found is Finding.REGRESSED:
        return f"the whole interval lies below 0, and a loss of {margin} or more cannot be excluded{left_out}"
    much = f"; {need} would decide with 80 % power {need.assuming}" if need else ""
    return f"neither a loss of {margin} nor no loss at all can be excluded{much}{left_out}"


def verdict_of_counts(
    candidate: str, reference: str, *, margin: float, repeats: int = 1, looks: int = 1, temperature: float | None = None
) -> Judgement:
    """Judge two counts such as "12/50" and "13/50": right answers of n questions × `repeats`. `margin` is a share (0.05 = 5 points).

    Raises UsageError for what is no count, and for a margin that is none. Sides with different totals were not asked the same questions:
    UNVERIFIABLE.
    """
    plan = Plan(margin, looks, temperature)
    (k1, n1), (k2, n2) = _count(candidate, "candidate"), _count(reference, "reference")
    if not 1 <= repeats <= MOST_QUESTIONS or n1 % repeats or n2 % repeats:
        raise UsageError(f"{candidate.strip()} and {reference.strip()} are no whole numbers of questions × {repeats} repeats")
    if n1 != n2:
        nothing = Judgement(finding=Finding.UNVERIFIABLE, basis=Basis.REPORTED, margin=margin, alpha=plan.alpha)
        return nothing.hindered(f"n differs ({n1} and {n2}): both sides must be asked the same questions")
    return judge_shares(k1 / n1, k2 / n2, n2 // repeats, plan, repeats=(repeats, repeats))


def _count(text: str, side: str) -> tuple[int, int]:
    match = COUNT.fullmatch(text)
    right, n = (int(match[1]), int(match[2])) if match else (1, 0)
    if right > n or not 0 < n <= MOST_QUESTIONS:
        raise UsageError(
            f"the {side}'s {text[:40]!r} is no count of right answers", next_step="write it as RIGHT/QUESTIONS, as in 12/50"
        )
    return right, n
