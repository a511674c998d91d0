"""What the reference says: each prompt answered greedily and by sampling, as tokens. Every further layer is built on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from release.types import JSON
from release.validators.consistency.asking import Asking, Clock, read_answer
from release.validators.consistency.case import Side
from release.validators.consistency.prompts import Prompt

FILE: Final = "answers.jsonl"
ALONE: Final = "alone.jsonl"
CANDIDATE_SEED: Final = 2**30
"""Added to a candidate's seeds: with the reference's own, its samples would not be independent of the reference's."""


def key_of(prompt: str, number: int) -> str:
    """Return the key of an answer: number 0 is the greedy one."""
    return f"{prompt}#{number}"


def prompt_of(key: str) -> str:
    """Return the prompt of an answer's key."""
    return key.rpartition("#")[0]


def greedy(side: Side, prompts: Iterable[Prompt]) -> Iterator[Asking]:
    """Yield what to ask for one greedy answer a prompt."""
    for prompt in prompts:
        path, body = prompt.request(side.endpoint, max_tokens=side.spec.max_tokens, temperature=0, seed=side.spec.seed)
        yield Asking(key_of(prompt.id, 0), path, body, read_answer)


def sampled(side: Side, *, shift: int) -> Iterator[Asking]:
    """Yield what to ask for the sampled answers of all prompts, first one of each; `shift` is added to every seed."""
    spec = side.spec
    for number in range(1, spec.samples + 1):
        for place, prompt in enumerate(side.prompts):
            seed = spec.seed + shift + number * len(side.prompts) + place
            asked = prompt.request(side.endpoint, max_tokens=spec.max_tokens, temperature=spec.temperature, top_p=1.0, seed=seed)
            yield Asking(key_of(prompt.id, number), *asked, read_answer)


def record(side: Side, clock: Clock) -> Path:
    """Have the reference answer everything."""

    def everything() -> Iterator[Asking]:
        yield from greedy(side, side.prompts)
        yield from sampled(side, shift=0)

    spec = side.spec
    asked = {**greedy_asked(side), "samples": spec.samples, "temperature": spec.temperature}
    return side.ask(FILE, asked, everything, clock)


def record_alone(side: Side, clock: Clock) -> Path:
    """Have a server answer some prompts again, one at a time."""
    some = chosen(side.prompts, side.spec.floor)
    return side.ask(ALONE, {**greedy_asked(side), "floor": side.spec.floor}, lambda: greedy(side, some), clock, concurrency=1)


def unit(answers: Iterable[JSON]) -> str:
    """Return what answers are compared by: `ids` where all of them show their tokens, else `text`."""
    return "ids" if all(one["ids"] is not None for one in answers) else "text"


def greedy_asked(side: Side) -> JSON:
    """Return what decides a greedy answer."""
    return {"layer": "answers", "prompts": side.spec.sha256, "max-tokens": side.spec.max_tokens, "seed": side.spec.seed}


def chosen(prompts: tuple[Prompt, ...], most: int) -> tuple[Prompt, ...]:
    """Return at most `most` prompts, evenly spread over the file."""
    if len(prompts) <= most:
        return prompts
    return tuple(prompts[place * len(prompts) // most] for place in range(most))
