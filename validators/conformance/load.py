"""Whether the server keeps its head: many requests at once, clients that hang up, hours of load, and what errors leave behind."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Final

from release.errors import ServingError
from release.types import JSON
from release.validators.conformance.check import (
    ASK,
    GREEDY,
    AbsentError,
    DeviationError,
    Finding,
    Subject,
    asked,
    expect,
    offered,
    text_of,
    usage_of,
)
from release.validators.conformance.limits import filled

ASKS: Final = ("What is 37+45?", "What is 12+30?", "What is 58+67?", "What is 91+8?")
AT_ONCE: Final = 16
MOST: Final = 257
SEQUENCES: Final = 32
"""How many requests a server is taken to run at once where nobody says."""
LONG: Final = 1024
"""Tokens of a long prompt; sixteen are more than the step of an engine holds by default (vLLM: 2048 on host processors, 8192 on GPUs)."""
HANG_UPS: Final = 8
SETTLES: Final = 10.0
"""Seconds within which requests whose clients are gone must have left the server."""
SLOWER: Final = 1.5
JITTER: Final = 0.01
"""Seconds that the machine alone may add to an answer: a server that answers within milliseconds is not slower for it."""
RUNNING: Final = re.compile(r"^\w+:num_requests_running(?:\{[^}\n]*\})? ([0-9.e+]+)$", re.MULTILINE)
"""The gauge of requests in work as vLLM and SGLang name it."""


def all_of(count: int, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Return what `work` returns for each item, `count` at once."""
    with ThreadPoolExecutor(count, thread_name_prefix="load") as pool:
        return list(pool.map(work, items))


def many_at_once(subject: Subject) -> Finding:
    """Sixteen requests at once get an answer each, and none another one's; how many differ from the lone answer is reported."""
    endpoint = subject.endpoint
    alone = {ask: text_of(endpoint.chat(ask, **GREEDY)) for ask in ASKS}
    questions = [ASKS[i % len(ASKS)] for i in range(AT_ONCE)]
    answers = all_of(AT_ONCE, lambda ask: text_of(endpoint.chat(ask, **GREEDY)), questions)
    for ask, text in zip(questions, answers, strict=True):
        if text != alone[ask] and text in alone.values():
            raise DeviationError(f"{ask!r} got {text!r:.80}", "a request got the answer to another one")
    differ = sum(text != alone[ask] for ask, text in zip(questions, answers, strict=True))
    same = "all as when asked alone" if not differ else "a batch may change the last digits, and so a near tie: not a failure"
    note = f"{AT_ONCE} of {AT_ONCE} answered, {differ} differ from the lone answer at temperature 0"
    return Finding(note, same, {"requests": AT_ONCE, "differ": differ})


def one_too_many(subject: Subject) -> Finding:
    """One request more than the server runs at once waits for its turn and is answered."""
    count = min(MOST, (subject.max_num_seqs or SEQUENCES) + 1)
    texts = all_of(count, lambda number: text_of(subject.endpoint.chat(f"What is {number}+7?", **GREEDY)), range(count))
    return Finding(f"{len(texts)} of {count} answered", figures={"requests": count})


def long_at_once(subject: Subject) -> Finding:
    """Long prompts at once, each sampled by its own seed, are all answered: the engine has to prefill some of them in parts.

    An engine that sets a seed's generator back where it throws away what it sampled of half a prompt can do so on a GPU alone: on
    processors that serve through the host's generator the engine ends (vLLM 0.32, "CPU Generator does not use offset").
    """
    text, want = filled(subject, min(0.5, LONG / subject.context()))
    ask: JSON = {"temperature": 1.0, "max_tokens": 4}
    try:
        offered(lambda: subject.endpoint.chat(ASK, **ask, seed=1), "seed")
        seeds = [{"seed": number} for number in range(AT_ONCE)]
    except AbsentError:
        seeds = [{}] * AT_ONCE

    def one(number: int) -> int:
        return usage_of(subject.endpoint.chat(f"{number}. {text}", **ask, **seeds[number]))[0]

    tokens = sum(all_of(AT_ONCE, one, range(AT_ONCE)))
    expect(tokens >= 0.8 * AT_ONCE * want, f"{tokens} prompt tokens", f"about {AT_ONCE * want} were sent")
    return Finding(
        f"{AT_ONCE} of {AT_ONCE} answered, {tokens} prompt tokens", figures={"requests": AT_ONCE, "prompt-tokens": tokens}
    )


def _running(subject: Subject) -> float | None:
    """Return how many requests the server says it works on, None where it does not say."""
    try:
        answer = subject.endpoint.get("/metrics", 5.0)
    except ServingError:
        return None
    found = RUNNING.findall(answer.body.decode("utf-8", "replace")) if answer.status == 200 else []
    return sum(map(float, found)) if found else None


def hang_up(subject: Subject) -> Finding:
    """Clients that hang up in the middle of a stream leave nothing behind: the next request is answered, and the slots are free."""

    def leave(_: int) -> None:
        with closing(subject.endpoint.stream(ASK, temperature=0, max_tokens=512)) as events:
            next(events)

    all_of(HANG_UPS, leave, range(HANG_UPS))
    began = time.monotonic()
    text_of(asked(subject))
    seconds = time.monotonic() - began
    figures: JSON = {"hang-ups": HANG_UPS, "next-answer-s": round(seconds, 3)}
    while (running := _running(subject)) and time.monotonic() - began < SETTLES:
        time.sleep(0.2)
    expect(not running, f"{running} requests still in work after {SETTLES:g} s", "clients that are gone must free their slots")
    slots = "the server does not say which slots are taken" if running is None else "no request left in work"
    return Finding(f"{HANG_UPS} hung up, the next answer after {seconds:.1f} s; {slots}", figures=figures)


def soak(subject: Subject) -> Finding:
    """Under load for as long as is wanted no request fails, and the last quarter is not slower than the first."""
    ends = time.monotonic() + subject.soak
    began = time.monotonic()

    def ask_on(_: int) -> list[tuple[float, float]]:
        times = []
        while (start := time.monotonic()) < ends:
            text_of(asked(subject))
            times.append((start - began, time.monotonic() - start))
        return times

    times = sorted(pair for worker in all_of(AT_ONCE, ask_on, range(AT_ONCE)) for pair in worker)
    quarters = [[took for at, took in times if low <= at * 4 / subject.soak < low + 1] for low in (0, 3)]
    expect(all(quarters), f"{len(times)} requests", "too few requests were answered to compare the end with the beginning")
    first, last = (statistics.median(quarter) for quarter in quarters)
    measured = f"{len(times)} requests in {subject.soak:g} s, median {first:.3g} s at first and {last:.3g} s at last"
    expect(last <= SLOWER * first + JITTER, measured, f"the server became slower by more than {SLOWER:g} times")
    return Finding(measured, figures={"requests": len(times), "first-s": first, "last-s": last})


def healthy_after_errors(subject: Subject) -> Finding:
    """After all the bad requests the server is healthy and answers."""
    expect(subject.endpoint.alive(), "not healthy", "bad requests must not make the server unhealthy")
    return Finding(f"healthy, {len(text_of(asked(subject)))} characters")
