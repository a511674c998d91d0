"""Graded answers of two sides, whoever asked: whether they can be compared at all, and the judgement if they can."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from release.types import JSON
from release.validators.fingerprint import differences, omissions
from release.validators.judgement import Basis, Finding, Judgement
from release.validators.statistics import two_proportions
from release.validators.verdicts import Plan, judge_pairs, judge_repeats

RATE_ALARM: Final = 0.01
"""p-value below which a difference in truncated or empty answers makes a comparison meaningless."""
LENGTH_BAND: Final = (0.90, 1.10)
"""Mean completion tokens of the candidate as a share of the reference's: MLPerf Inference's guard (inference_rules.adoc)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to one question: its score from 0 to 1, None where nothing could be graded, and what is known of how it came."""

    question: str
    score: float | None
    repeat: int = 0
    failed: bool = False
    truncated: bool = False
    empty: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cluster: str | None = None


@dataclass(frozen=True)
class Side:
    """All answers of one side by question, in the order they came. `told`: whether its file says how each answer ended."""

    name: str
    answers: Mapping[str, tuple[Answer, ...]]
    fingerprint: JSON | None = None
    told: bool = True

    @classmethod
    def of(cls, name: str, answers: Iterable[Answer], fingerprint: JSON | None = None, *, told: bool = True) -> Side:
        """Gather answers by question."""
        found: dict[str, list[Answer]] = {}
        for answer in answers:
            found.setdefault(answer.question, []).append(answer)
        return cls(name, {question: tuple(group) for question, group in found.items()}, fingerprint, told)

    def every(self) -> Iterator[Answer]:
        """Yield every answer."""
        for group in self.answers.values():
            yield from group

    def count(self, which: Callable[[Answer], bool]) -> int:
        """Return how many answers are so."""
        return sum(map(which, self.every()))

    @property
    def total(self) -> int:
        """How many answers there are."""
        return sum(map(len, self.answers.values()))

    @property
    def tokens_mean(self) -> float | None:
        """Mean completion tokens of the answers that came, None where none says."""
        known = [a.completion_tokens for a in self.every() if not a.failed and a.completion_tokens is not None]
        return sum(known) / len(known) if known else None


def obstacles(candidate: Side, reference: Side) -> Iterator[str]:
    """Yield every reason why two sides cannot be compared; none if they can.

    The same questions, each asked the same number of times a side, as the same number of prompt tokens (else template or tokenizer
    differ); every request answered; truncated and empty answers about as frequent (p ≥ 0.01), answers about as long (90–110 %);
    fingerprints that say what they must, and the same.
    """
    if candidate.fingerprint is not None and reference.fingerprint is not None:
        yield from _fingerprints(candidate, reference)
    asked = candidate.answers.keys() ^ reference.answers.keys()
    if asked:
        yield f"the questions differ: {len(asked)} were asked on one side only"
    for side in (candidate, reference):
        times = {len(group) for group in side.answers.values()}
        if any(len({answer.repeat for answer in group}) < len(group) for group in side.answers.values()):
            yield f"{side.name} has a question twice"
        elif len(times) > 1:
            yield f"{side.name} is not whole: it has between {min(times)} and {max(times)} answers to a question"
        if failed := side.count(lambda answer: answer.failed):
            yield f"{failed} requests of {side.name} failed and were not graded"
    if other := _other_prompts(candidate, reference):
        yield f"{other} prompts have another number of tokens: chat template or tokenizer differ"
    if not candidate.answers or not reference.answers:
        yield "there are no samples"
        return
    yield from _rates(candidate, reference)
    if not asked and not _graded(candidate, reference)[0]:
        yield "no pair of answers could be graded on both sides"


def judge(candidate: Side, reference: Side, plan: Plan, *, benchmark: str = "") -> Judgement:
    """Judge two sides question by question; UNVERIFIABLE, without figures, where they cannot be compared.

    Answers that could not be graded are left out: of single answers the pair, of several that answer. `measured` is true only where both
    sides carry a fingerprint.
    """
    found = tuple(obstacles(candidate, reference))
    judged = _nothing(plan, benchmark).hindered(*found) if found else _judge(candidate, reference, plan, benchmark)
    return replace(judged, measured=candidate.fingerprint is not None and reference.fingerprint is not None)


def _nothing(plan: Plan, benchmark: str) -> Judgement:
    return Judgement(finding=Finding.UNVERIFIABLE, basis=Basis.PAIRED, margin=plan.margin, alpha=plan.alpha, benchmark=benchmark)


def _judge(candidate: Side, reference: Side, plan: Plan, benchmark: str) -> Judgement:
    pairs, clusters, excluded = _graded(candidate, reference)
    single = all(len(one) == len(two) == 1 for one, two in pairs)
    if single and all(score in (0.0, 1.0) for pair in pairs for (score,) in pair) and not _several(clusters):
        b = sum(one[0] > two[0] for one, two in pairs)
        c = sum(one[0] < two[0] for one, two in pairs)
        right = sum(one[0] == 1.0 for one, _ in pairs)
        return judge_pairs(b, c, len(pairs), right, plan, benchmark=benchmark, excluded=excluded)
    if len(pairs) < 2:
        return _nothing(plan, benchmark).hindered("one question has no spread: two at least are needed")
    return judge_repeats(pairs, plan, clusters=clusters if _several(clusters) else None, benchmark=benchmark, excluded=excluded)


Scores = tuple[float, ...]


def _graded(candidate: Side, reference: Side) -> tuple[list[tuple[Scores, Scores]], list[str], int]:
    """Return the scores of each question that both sides have one of, its cluster, and how many pairs were left out."""
    pairs: list[tuple[Scores, Scores]] = []
    clusters: list[str] = []
    excluded = 0
    for question, mine in candidate.answers.items():
        theirs = reference.answers.get(question, ())
        one, two = (tuple(a.score for a in group if a.score is not None) for group in (mine, theirs))
        excluded += max(len(mine) - len(one), len(theirs) - len(two))
        if one and two:
            pairs.append((one, two))
            clusters.append(mine[0].cluster or f"\0{question}")
    return pairs, clusters, excluded


def _several(clusters: list[str]) -> bool:
    """Say whether questions belong together: some share a cluster, and not all the same."""
    return 1 < len(set(clusters)) < len(clusters)


def _fingerprints(candidate: Side, reference: Side) -> Iterator[str]:
    assert candidate.fingerprint is not None and reference.fingerprint is not None
    if found := differences(candidate.fingerprint, reference.fingerprint):
        yield f"the evaluations differ in {', '.join(map(str, found))}"
    for side in (candidate, reference):
        if missing := omissions(side.fingerprint or {}):
            yield f"the fingerprint of {side.name} does not say: {', '.join(missing)}"


def _other_prompts(candidate: Side, reference: Side) -> int:
    other = 0
    for question, mine in candidate.answers.items():
        for theirs in reference.answers.get(question, ())[:1]:
            lengths = mine[0].prompt_tokens, theirs.prompt_tokens
            other += None not in lengths and lengths[0] != lengths[1]
    return other


def _rates(candidate: Side, reference: Side) -> Iterator[str]:
    for what, which in (("truncated", lambda a: a.truncated), ("empty", lambda a: a.empty)):
        counts = candidate.count(which), candidate.total, reference.count(which), reference.total
        p = two_proportions(*counts)
        if p < RATE_ALARM:
            yield f"{what} answers differ: {counts[0]} of {counts[1]} vs {counts[2]} of {counts[3]} (p = {p:.2g})"
    one, two = candidate.tokens_mean, reference.tokens_mean
    if one is None or two is None:
        if candidate.told and reference.told:
            yield "the server does not say how many tokens its answers have"
    elif not LENGTH_BAND[0] * two <= one <= LENGTH_BAND[1] * two:
        share = f"{100 * one / two:.0f} % of the reference's" if two else "and the reference's have none"
        yield f"answers have {one:.1f} tokens on average, {share}"
