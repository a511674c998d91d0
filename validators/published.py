"""A published card's table of scores, read by the roles of its columns: what each row proves, given n, and whether it can be true."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from release.errors import UsageError
from release.types import JSON, Benchmark, Reported, Unknown
from release.validators.judgement import Basis, Finding, Judgement, interval, points
from release.validators.settlement import Settlement, settle
from release.validators.statistics import ALPHA, counts_behind, repeats_that_fit
from release.validators.tables import Table, number_in, tables_of
from release.validators.verdicts import Plan, judge_shares

MOST_PLACES: Final = 12
REFERENCE: Final = re.compile(
    r"(?<![a-z])(?:reference|ref|baseline|base|native|origin(?:al)?|official|upstream|cuda|gpu|v1)(?![a-z])|参考|基线|基准|原生|原始|官方"
)
CANDIDATE: Final = re.compile(
    r"(?<![a-z])(?:candidate|ours|released?|flagos|ported|quanti[sz]ed|npu|v2)(?![a-z])|候选|移植|量化|适配"
)
DIFFERENCE: Final = re.compile(r"(?<![a-z])(?:diff|difference|delta|gap|loss|drop|change|ratio|relative)(?![a-z])|Δ|差|相对|损失")
PROTOCOL: Final = re.compile(
    r"\([^()]{0,60}\)|（[^（）]{0,60}）|(?:_|\s|-)*[0-9]{1,3}\s?[-_]?\s?(?:few)?[-_]?shots?"
    r"|(?:_|\s|-)*@?(?:avg|mean|pass|maj|cons|acc|em|accuracy)\.?(?:@?[0-9]{1,4})?(?![a-z0-9])",
    re.IGNORECASE,
)
SHOTS: Final = re.compile(r"(?<![0-9])([0-9]{1,3})\s?[-_]?\s?(?:few)?[-_]?shots?(?![a-z])", re.IGNORECASE)
AVERAGED: Final = re.compile(r"(?:avg|mean)@?([0-9]{1,4})|@(?:avg|mean)([0-9]{1,4})", re.IGNORECASE)
OTHERWISE_SCORED: Final = re.compile(r"(?:maj|cons|pass)@(?!1(?![0-9]))[0-9]{1,4}", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """One row of a published table: where it stands, its label, both figures as printed, and the judgement."""

    line: int
    label: str
    candidate: str
    reference: str
    judgement: Judgement


@dataclass(frozen=True)
class Card:
    """What a published table proves: a judgement for each row, and what would become of a cell with nothing else to show."""

    lines: tuple[Line, ...]
    settlement: Settlement

    def text(self) -> str:
        """Return every row and what they prove, for a terminal: differences in points, candidate − reference."""
        head = ("benchmark", "n", "difference", "90 % interval", "95 % interval", "margin", "p", "k", "verdict")
        rows = [head, *(_columns(line) for line in self.lines)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = []
        for row, line in zip(rows, (None, *self.lines), strict=True):
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
            if line:
                lines += [f"    {said}" for said in (*line.judgement.obstacles, *line.judgement.notes)]
        return "\n".join([*lines, "", self.proves])

    @property
    def proves(self) -> str:
        """What the table proves, in a sentence."""
        found = [line.judgement.finding for line in self.lines]
        parts = [f"{found.count(finding)} {finding}" for finding in Finding if finding in found]
        known = sum(finding in (Finding.CONSISTENT, Finding.REGRESSED) for finding in found)
        return f"{known} of {len(found)} rows say something ({', '.join(parts)}), all from reported aggregates: nothing here was measured."

    def json(self) -> JSON:
        """Return the card for a machine."""
        rows = [
            {"line": line.line, "label": line.label, "printed": {"candidate": line.candidate, "reference": line.reference}}
            | line.judgement.json()
            for line in self.lines
        ]
        decided = self.settlement
        return {"rows": rows, "proves": self.proves, "decision": str(decided.decision), "requests": decided.requests}


def _columns(line: Line) -> tuple[str, ...]:
    judged = line.judgement
    if judged.delta is None or judged.interval is None or judged.interval_95 is None or judged.p is None or judged.need is None:
        return (line.label, str(judged.n or "?"), *[""] * 6, str(judged.finding))
    return (
        line.label,
        f"{judged.n}" + ("" if judged.repeats == (1, 1) else f" × {judged.repeats[0]}"),
        points(judged.delta),
        interval(judged.interval),
        interval(judged.interval_95),
        f"{100 * judged.margin:g}",
        f"{judged.p:.3f}",
        str(judged.need.repeats),
        f"{judged.finding}" + (f", else {judged.otherwise}" if judged.otherwise else ""),
    )


def verdict_of_card(
    text: str,
    benchmarks: Collection[Benchmark],
    *,
    reference: str = "",
    reference_names: Collection[str] = (),
    sizes: Mapping[str, int] | None = None,
    margin: float | None = None,
) -> Card:
    """Judge every row of the tables of scores in a card's Markdown.

    A table counts if a row of it (or a column: then it is turned) names a benchmark of `benchmarks`. Its columns are told by role, from
    words in their heads; `reference` names the reference's column where the words do not (a part of its head), `reference_names` are
    more such words, the names of reference hardware for one. `sizes` gives n for labels of its own, by benchmark id or label; `margin` (a
    share) stands in for each benchmark's. Raises UsageError where there is no such table, or where the roles cannot be told.
    """
    found: list[Line] = []
    for table in tables_of(text):
        for turned in (table, table.transposed()):
            if any(_benchmark(row.cells[0], benchmarks) for row in turned.rows):
                found += _lines(turned, benchmarks, reference, reference_names, sizes or {}, margin)
                break
    if not found:
        known = ", ".join(sorted(benchmark.name for benchmark in benchmarks))
        raise UsageError(
            "the card has no table of scores that can be read",
            next_step=f"a row must name one of {known}, and two columns have figures",
        )
    return Card(tuple(found), settle([line.judgement for line in found]))


def verdict_of_reported(reported: Reported, benchmarks: Collection[Benchmark], *, sizes: Mapping[str, int] | None = None) -> Card:
    """Judge a reported table of the matrix: figures are taken to have been printed with as many places as the longest of them."""
    figures = [Decimal(repr(float(figure))) for score in reported.scores for figure in (score.candidate, score.reference)]
    places = min(MOST_PLACES, max(2, *(-int(f.normalize().as_tuple().exponent) for f in figures if f.is_finite())))
    lines = []
    for number, score in enumerate(reported.scores, 1):
        one, two = (f"{figure:.{places}f}" for figure in (score.candidate, score.reference))
        judged = judge_row(score.benchmark, one, two, benchmarks, percent=score.unit == "percent", sizes=sizes)
        lines.append(Line(number, score.benchmark, one, two, judged))
    return Card(tuple(lines), settle([line.judgement for line in lines]))


def judge_row(
    label: str,
    candidate: str,
    reference: str,
    benchmarks: Collection[Benchmark],
    *,
    percent: bool,
    sizes: Mapping[str, int] | None = None,
    margin: float | None = None,
) -> Judgement:
    """Judge two figures as they are printed, of the benchmark that `label` names; `percent`: they are of 100, else of 1.

    UNVERIFIABLE where the benchmark or n is unknown, where a figure is no score, and where it cannot be a number of right answers over n
    questions (GRIM); figures are given all the same, and what they would say.
    """
    named = _benchmark(label, benchmarks)
    benchmark, assumed = named or (None, "")
    n = (
        (sizes or {}).get(benchmark.id if benchmark else label)
        or (sizes or {}).get(label)
        or (benchmark.n if benchmark else None)
    )
    bound = margin or (benchmark.margin.share if benchmark else None)
    nothing = Judgement(Finding.UNVERIFIABLE, Basis.REPORTED, bound or 0.0, ALPHA, benchmark.id if benchmark else label, n=n)
    if bound is None:
        return nothing.hindered("no margin was fixed for this benchmark: give one")
    if n is None:
        return nothing.hindered("the number of questions is unknown: give it")
    match = AVERAGED.search(label)
    repeats = int(match[1] or match[2]) if match else 1
    top = 100 if percent else 1
    if not number_in(candidate) or not number_in(reference):
        return nothing.hindered(f"{candidate[:40]} and {reference[:40]} are no scores")
    if not (0 <= Decimal(candidate) <= top and 0 <= Decimal(reference) <= top) or not 0 < repeats <= 1000:
        return nothing.hindered(f"{candidate} and {reference} are no scores out of {top}")
    shares = float(Decimal(candidate) / top), float(Decimal(reference) / top)
    judged = judge_shares(*shares, n, Plan(bound), repeats=(repeats, repeats), benchmark=nothing.benchmark)
    judged = judged.noted(*_doubts(label, benchmark, assumed, n))
    if benchmark and (benchmark.fractional or benchmark.n_assumed) and n == benchmark.n:
        return judged
    return judged.hindered(*_impossible((candidate, reference), n, repeats, percent=percent))


def _doubts(label: str, benchmark: Benchmark | None, assumed: str, n: int) -> Iterator[str]:
    if assumed:
        yield assumed
    if benchmark and benchmark.n_assumed and n == benchmark.n:
        yield f"n = {n} is assumed: {benchmark.n_assumed}"
    if match := OTHERWISE_SCORED.search(label):
        yield f"{match[0]} is no mean of single answers: the interval is that of one answer a question"
    shots = SHOTS.search(label)
    if shots and benchmark and not isinstance(benchmark.shots, Unknown) and int(shots[1]) != benchmark.shots:
        yield f"asked with {shots[1]} examples, {benchmark.name} here with {benchmark.shots}"


def _impossible(figures: tuple[str, str], n: int, repeats: int, *, percent: bool) -> Iterator[str]:
    """Yield why the printed figures cannot be what they say; nothing if they can."""
    wrong = [figure for figure in figures if not counts_behind(figure, n, repeats, percent=percent)]
    if not wrong:
        return
    over = f"{n} questions" + (f" × {repeats} repeats" if repeats > 1 else "")
    fitting = [k for k in repeats_that_fit(figures, n, percent=percent, most=16) if k != repeats]
    hint = f"; {fitting[0]} repeats would fit" if fitting else ""
    yield f"{' and '.join(wrong)} can be no number of right answers of {over}, rounded (GRIM){hint}"


def _benchmark(label: str, benchmarks: Collection[Benchmark]) -> tuple[Benchmark, str] | None:
    """Return the benchmark that a label names, once what it says of shots, averages and metrics is taken away, and what that assumes."""
    for bare in (label, PROTOCOL.sub("", label)):
        wanted = _squeezed(bare)
        for benchmark in benchmarks:
            if wanted in map(_squeezed, (benchmark.id, benchmark.name, *benchmark.aliases)):
                return benchmark, ""
            for alias, assumed in benchmark.loose.items():
                if wanted == _squeezed(alias):
                    return benchmark, assumed
    return None


def _squeezed(text: str) -> str:
    return re.sub(r"[\s_\-–—.:@]+", "", text).casefold()


def _lines(
    table: Table,
    benchmarks: Collection[Benchmark],
    reference: str,
    names: Collection[str],
    sizes: Mapping[str, int],
    margin: float | None,
) -> Iterator[Line]:
    """Yield a line for each row and candidate's column of a table of scores."""
    numbered = [
        column
        for column in range(1, len(table.head.cells))
        if any(number_in(row.cells[column]) for row in table.rows) and not DIFFERENCE.search(table.head.cells[column].lower())
    ]
    if len(numbered) < 2:
        return
    home = _reference_column(table, numbered, reference, names)
    for column in numbered:
        if column == home:
            continue
        several = f" [{table.head.cells[column]}]" if len(numbered) > 2 else ""
        scale = _percent(table, (home, column))
        for row in table.rows:
            one, two = number_in(row.cells[column]), number_in(row.cells[home])
            known = _benchmark(row.cells[0], benchmarks)
            if not row.cells[0] or (not known and not (one and two)):
                continue
            if one is None or two is None:
                judged = Judgement(
                    Finding.UNVERIFIABLE, Basis.REPORTED, margin or 0.0, ALPHA, known[0].id if known else row.cells[0]
                )
                judged = judged.hindered("a score is missing")
            else:
                judged = _scaled(row.cells[0], one, two, scale, benchmarks, sizes, margin)
            yield Line(row.line, row.cells[0] + several, row.cells[column], row.cells[home], judged)


def _scaled(
    label: str,
    one: tuple[str, bool],
    two: tuple[str, bool],
    percent: bool | None,
    benchmarks: Collection[Benchmark],
    sizes: Mapping[str, int],
    margin: float | None,
) -> Judgement:
    """Judge a row whose figures may be percent or shares: what a sign or the row itself says comes before the table's habit."""
    figures = [Decimal(figure) for figure, _ in (one, two)]
    if one[1] or two[1] or max(figures) > 1:
        percent = True
    judged = judge_row(label, one[0], two[0], benchmarks, percent=percent is not False, sizes=sizes, margin=margin)
    if percent and 0 < min(figures) <= 1 < max(figures) and not (one[1] and two[1]):
        return judged.hindered(f"{one[0]} and {two[0]} look like a share and a percentage")
    if percent and 0 < max(figures) <= 1 and not (one[1] or two[1]):
        return judged.hindered(f"{one[0]} and {two[0]} look like shares, and the other rows are percentages")
    return judged


def _percent(table: Table, columns: tuple[int, int]) -> bool:
    """Say whether a table's figures are percentages: one has the sign, or is greater than 1."""
    found = [number for row in table.rows for column in columns if (number := number_in(row.cells[column]))]
    return any(sign or Decimal(figure) > 1 for figure, sign in found)


def _reference_column(table: Table, columns: list[int], reference: str, names: Collection[str]) -> int:
    """Return the reference's column among those with figures. Raises UsageError where the heads do not tell it from the others."""
    heads = {column: table.head.cells[column] for column in columns}
    if reference:
        found = [column for column, head in heads.items() if reference.casefold() in head.casefold()]
    else:
        lower = {column: head.casefold() for column, head in heads.items()}
        theirs = [column for column, head in lower.items() if CANDIDATE.search(head)]
        found = [column for column, head in lower.items() if column not in theirs and _says_reference(head, names)]
        if not found and len(columns) - len(theirs) == 1:
            found = [column for column in columns if column not in theirs]
    if len(found) != 1:
        raise UsageError(
            f"line {table.head.line}: which column is the reference cannot be told from {', '.join(map(repr, heads.values()))}"[
                :500
            ],
            next_step="name it: a part of the reference column's head",
        )
    return found[0]


def _says_reference(head: str, names: Collection[str]) -> bool:
    words = set(re.split(r"[^a-z0-9]+", head))
    return REFERENCE.search(head) is not None or any(name.casefold() in words for name in names)
