"""Layer 1: the candidate scores the reference's own answers, token by token. No divergence spoils it, and it is prefill alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from release.types import JSON, Verdict
from release.types.consistency import Limits
from release.validators.consistency import answers
from release.validators.consistency.asking import Asking, Clock, UnshownError, read_scores
from release.validators.consistency.case import Case, Measure, Side, percent, verdict, within
from release.validators.consistency.divergence import (
    Floats,
    Mean,
    Scores,
    clustered_mean,
    disagreements,
    gaps,
    kl_bound,
    quantiles,
    scores_of,
    stack,
)
from release.validators.consistency.evidence import digest_of, header_of, read_log

LAYER: Final = "scoring"
FILE: Final = "scores.jsonl"
FLOOR: Final = "floor.jsonl"
LENGTHS: Final = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Ends of the slices by length: how many tokens stand before the one that is scored."""
FEWEST: Final = 10
"""A slice with fewer prompts is shown and not judged: a bootstrap over fewer says little."""
WORST: Final = 5


def sequences(folder: Path, context: int | None, tokens: int) -> Iterator[tuple[str, list[int], int]]:
    """Yield (key, all token ids, where the answer begins) of recorded answers until `tokens` of answers are reached.

    Greedy answers come first, then a sample of each prompt, and so on. Raises UnshownError if the server showed no token ids.
    """
    found = {one["key"]: one for one in read_log(folder / answers.FILE)}
    reached = 0
    for key in sorted(found, key=lambda key: (int(key.rpartition("#")[2]), key)):
        one = found[key]
        if reached >= tokens:
            return
        if one["prompt"] is None or one["ids"] is None:
            raise UnshownError("the reference does not show the ids of its tokens (return_token_ids)")
        ids = [*one["prompt"], *one["ids"]][: context - 1 if context else None]  # scoring asks for one token more
        if len(ids) > len(one["prompt"]) > 0:
            reached += len(ids) - len(one["prompt"])
            yield key, ids, len(one["prompt"])


def _asking(side: Side, reference: Path, keys: set[str] | None = None) -> Iterator[Asking]:
    for key, ids, first in sequences(reference, _context(reference), side.spec.tokens):
        if keys is None or key in keys:
            body = {
                "model": side.endpoint.model,
                "prompt": ids,
                "max_tokens": 1,
                "temperature": 0,
                "prompt_logprobs": side.spec.top,
            }
            yield Asking(key, "/v1/completions", body, partial(read_scores, ids=ids, first=first, top=side.spec.top))


def _context(reference: Path) -> int | None:
    found: int | None = header_of(reference / "identity.jsonl")["context"]
    return found


def _asked(side: Side, reference: Path) -> JSON:
    return {
        "layer": LAYER,
        "answers": digest_of(reference / answers.FILE),
        "tokens": side.spec.tokens,
        "top": side.spec.top,
    }


def record(side: Side, clock: Clock, reference: Path | None = None) -> Path:
    """Have a server score the answers that the reference (by default itself) gave."""
    folder = reference or side.folder
    return side.ask(FILE, _asked(side, folder), lambda: _asking(side, folder), clock)


def record_floor(side: Side, clock: Clock) -> Path:
    """Have the reference score some of its answers again, one at a time: what it differs from itself."""
    keys = {answers.key_of(prompt.id, 0) for prompt in answers.chosen(side.prompts, side.spec.floor)}
    asked = {**_asked(side, side.folder), "floor": side.spec.floor}
    return side.ask(FLOOR, asked, lambda: _asking(side, side.folder, keys), clock, concurrency=1)


def judge(case: Case, clock: Clock) -> Verdict:
    """Compare the scores of both sides: KL and disagreement of the whole and of each slice, against limits and the reference's floor."""
    if not (case.reference / FILE).is_file() or not (case.reference / FLOOR).is_file():
        raise UnshownError("the reference has no scores: it shows no token ids, or no logprobs of prompts")
    record(case.candidate, clock, case.reference)
    table = Table.of(case.reference, case.candidate.folder / FILE, case.candidate.spec.top)
    floor = Table.of(case.reference, case.reference / FLOOR, case.candidate.spec.top)
    limits = case.limits
    kl_limit = max(limits.kl, limits.floor_factor * float(floor.kl.mean()))
    top_limit = max(limits.disagreement, limits.floor_factor * float(floor.other.mean()))
    kl, other = clustered_mean(table.kl, table.prompts), clustered_mean(table.other, table.prompts)
    far = f"KL ≥ {kl.value:.2g} nats a token [{kl.low:.2g}, {kl.high:.2g}], limit {kl_limit:.2g}"
    agree = f"top-1 agreement {percent(1 - other.value)} [{percent(1 - other.high)}, {percent(1 - other.low)}]"
    measures = [
        Measure("kl", within(kl.low, kl.high, kl_limit), far),
        Measure("top-1", within(other.low, other.high, top_limit), f"{agree}, at least {percent(1 - top_limit)}"),
    ]
    kinds = {prompt.id: prompt.kind for prompt in case.candidate.prompts}
    slices = list(_slices(table, kinds, limits, kl_limit, top_limit))
    if not any(one.finding == "DIFFERENT" for one in measures):
        measures += [one["measure"] for one in slices if one["measure"].finding == "DIFFERENT"]
    n, asked = len(table.kl), case.candidate.spec.tokens
    few = f"{n} tokens were scored, fewer than the {asked} wanted: the prompts gave no more" if n < asked else ""
    figures = {
        "tokens": n,
        "tokens-wanted": asked,
        "kl": kl.figures() | {"limit": kl_limit, "floor": float(floor.kl.mean())} | quantiles(table.kl),
        "disagreement": other.figures() | {"limit": top_limit, "floor": float(floor.other.mean())},
        "disagreement-decided": float((table.other & (table.gap >= limits.near_tie)).mean()),
        "logprob-difference": {"mean": float(table.delta.mean())} | quantiles(table.delta),
        "slices": [one["figures"] for one in slices],
        "worst": table.worst(),
    }
    worst = ", ".join(one["prompt"] for one in table.worst()[:3])
    wanted = f"KL ≤ {kl_limit:.2g} nats a token, and top-1 agreement ≥ {percent(1 - top_limit)}"
    return verdict(LAYER, measures, wanted, figures, note="; ".join(filter(None, (few, f"worst prompts: {worst}"))))


class Table:
    """Every position that was scored on both sides: KL bound, whether the first token is another, |Δlogprob|, prompt and length."""

    def __init__(
        self, reference: Scores, candidate: Scores, names: list[str], prompts: NDArray[Any], before: NDArray[Any]
    ) -> None:
        self.kl: Floats = kl_bound(reference, candidate)
        self.other = disagreements(reference, candidate)
        self.delta: Floats = np.abs(reference.chosen - candidate.chosen)
        self.gap: Floats = gaps(reference)
        self.names, self.prompts, self.before = names, prompts, before

    @classmethod
    def of(cls, reference: Path, other: Path, top: int) -> Table:
        """Read the reference's scores and others of the same answers. Raises UnshownError if there are none, or of other answers."""
        theirs = {one["key"]: scores_of([one], top) for one in read_log(other)}
        ours = {one["key"]: scores_of([one], top) for one in read_log(reference / FILE) if one["key"] in theirs}
        starts = {key: first for key, _, first in sequences(reference, _context(reference), 2**62) if key in theirs}
        if not ours or ours.keys() != theirs.keys() or any(len(ours[key]) != len(theirs[key]) for key in ours):
            raise UnshownError(f"{len(ours)} of {len(theirs)} scored answers are the reference's")
        names = sorted({answers.prompt_of(key) for key in ours})
        place = {name: number for number, name in enumerate(names)}
        return cls(
            stack(list(ours.values())),
            stack([theirs[key] for key in ours]),
            names,
            np.concatenate([np.full(len(one), place[answers.prompt_of(key)]) for key, one in ours.items()]),
            np.concatenate([starts[key] + np.arange(len(one)) for key, one in ours.items()]),
        )

    def worst(self) -> list[JSON]:
        """Return the prompts with the greatest mean KL."""
        counts = np.bincount(self.prompts, minlength=len(self.names))
        means = np.bincount(self.prompts, weights=self.kl, minlength=len(self.names)) / np.maximum(counts, 1)
        apart = np.bincount(self.prompts, weights=self.other, minlength=len(self.names))
        order = np.argsort(-means, kind="stable")[:WORST]
        return [
            {"prompt": self.names[i], "kl": float(means[i]), "disagreements": int(apart[i]), "tokens": int(counts[i])}
            for i in order
        ]


def _slices(table: Table, kinds: dict[str, str], limits: Limits, kl_limit: float, top_limit: float) -> Iterator[JSON]:
    """Yield figures and measure of each kind and each length; the tails are Bonferroni's."""
    kind_of = np.array([kinds.get(name, "") for name in table.names])[table.prompts]
    parts = [(f"kind {kind}", kind_of == kind) for kind in sorted(set(kind_of))]
    band = np.searchsorted(LENGTHS, table.before, side="right")
    parts += [(_band(number), band == number) for number in sorted(set(band.tolist()))]
    for name, mask in parts:
        prompts = len(np.unique(table.prompts[mask]))
        tail = 0.05 / (2 * len(parts))
        kl: Mean = clustered_mean(table.kl[mask], table.prompts[mask], tail=tail)
        other: Mean = clustered_mean(table.other[mask], table.prompts[mask], tail=tail)
        apart = prompts >= FEWEST and (kl.low > limits.slice_factor * kl_limit or other.low > limits.slice_factor * top_limit)
        reads = f"{name}: KL ≥ {kl.value:.2g}, top-1 agreement {percent(1 - other.value)}"
        yield {
            "measure": Measure(name, "DIFFERENT" if apart else "CONSISTENT", reads),
            "figures": {
                "slice": name,
                "tokens": int(mask.sum()),
                "prompts": prompts,
                "kl": kl.value,
                "disagreement": other.value,
            },
        }


def _band(number: int) -> str:
    low, high = (0, *LENGTHS)[number], (*LENGTHS, 0)[number]
    return f"from {low} tokens" if not high else f"{low} to {high - 1} tokens"
