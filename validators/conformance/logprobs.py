"""Whether log-probabilities are numbers that mean something: of what the model says, and of a text that it is given."""

from __future__ import annotations

from typing import Any, Final

from release.types import JSON
from release.validators.conformance.check import (
    ASK,
    COMPLETIONS,
    AbsentError,
    Finding,
    Subject,
    expect,
    is_logprob,
    offered,
    take,
    usage_of,
)

SCORED: Final = "37+45="
NEAR: Final = 1e-3
"""How far (in nats) the token of temperature 0 may lie below the most likely one: rounding, and no more."""
STEADY: Final = 0.25
"""How much the score of one text may differ between two requests (nats a token): more than batching and rounding explain."""


def _entries(subject: Subject, **parameters: Any) -> list[JSON]:
    ask: JSON = {"temperature": 0, "max_tokens": 4, "logprobs": True, "top_logprobs": 3}
    answer = offered(lambda: subject.endpoint.chat(ASK, **(ask | parameters)), "logprobs")
    if take(answer, "choices", 0).get("logprobs") is None:
        raise AbsentError("no logprobs", "the server ignores logprobs")
    tokens = take(answer, "choices", 0, "logprobs", "content")
    expect(isinstance(tokens, list), f"logprobs.content {tokens!r:.60}", "logprobs.content must be a list")
    expect(len(tokens) == usage_of(answer)[1], f"{len(tokens)} tokens", "there must be one entry a completion token")
    return list(tokens)


def logprobs(subject: Subject) -> Finding:
    """Each token comes with log-probabilities ≤ 0, and among the top ones with itself."""
    tokens = _entries(subject)
    for entry in tokens:
        chosen, top = take(entry, "token"), take(entry, "top_logprobs")
        values = [take(t, "logprob") for t in (entry, *top)]
        expect(
            all(map(is_logprob, values)), f"logprobs {values!r:.100}", "a log-probability must be a number that is not positive"
        )
        expect(len(top) >= 3, f"{len(top)} top logprobs", "three top logprobs were asked for")
        expect(chosen in [take(t, "token") for t in top], f"{chosen!r:.60}", "the chosen token must be among the top logprobs")
    return Finding(f"{len(tokens)} tokens, {len(tokens[0]['top_logprobs'])} top logprobs each")


def greedy_on_top(subject: Subject) -> Finding:
    """At temperature 0 the chosen token is the most likely one."""
    tokens = _entries(subject)
    gaps = [max(take(t, "logprob") for t in take(entry, "top_logprobs")) - take(entry, "logprob") for entry in tokens]
    expect(max(gaps) <= NEAR, f"{max(gaps):.3g} nats below the top", "greedy decoding must choose the most likely token")
    return Finding(f"{len(gaps)} of {len(gaps)} tokens on top")


def stream_logprobs(subject: Subject) -> Finding:
    """A stream brings the same tokens with the same log-probabilities, to rounding."""
    whole = _entries(subject)
    ask: JSON = {"temperature": 0, "max_tokens": 4, "logprobs": True, "top_logprobs": 3}
    stream = [
        entry
        for event in subject.endpoint.stream(ASK, **ask)
        for choice in take(event, "choices")
        for entry in (choice.get("logprobs") or {}).get("content") or []
    ]
    one, two = ([take(entry, "token") for entry in entries] for entries in (whole, stream))
    expect(one == two, f"{two!r:.80} vs {one!r:.80}", "the streamed tokens differ from those not streamed")
    gap = max(abs(take(a, "logprob") - take(b, "logprob")) for a, b in zip(whole, stream, strict=True))
    expect(gap <= STEADY, f"{gap:.3g} nats apart", "the streamed log-probabilities differ from those not streamed")
    return Finding(f"the same {len(one)} tokens, at most {gap:.2g} nats apart", figures={"largest-gap": gap})


def _legacy(subject: Subject, **parameters: Any) -> JSON:
    """Return choices[0].logprobs of a text completion, its lists of one length and its values log-probabilities."""
    ask: JSON = {"temperature": 0, "max_tokens": 1, "logprobs": 1}
    answer = offered(lambda: subject.endpoint.completion(SCORED, **(ask | parameters)), "logprobs of text completions")
    found = take(answer, "choices", 0).get("logprobs")
    if found is None:
        raise AbsentError("no logprobs", "the server ignores logprobs of text completions")
    tokens, values = take(found, "tokens"), take(found, "token_logprobs")
    expect(len(tokens) == len(values) > 0, f"{len(tokens)} tokens, {len(values)} logprobs", "there must be one a token")
    return {"tokens": tokens, "values": values, "usage": usage_of(answer)}


def completion_logprobs(subject: Subject) -> Finding:
    """A text completion brings a log-probability ≤ 0 for each token."""
    found = _legacy(subject, max_tokens=4)
    values = found["values"]
    expect(all(map(is_logprob, values)), f"{values!r:.100}", "a log-probability must be a number that is not positive")
    expect(len(values) == found["usage"][1], f"{len(values)} values", "there must be one a completion token")
    return Finding(f"{len(values)} tokens")


def scoring(subject: Subject) -> Finding:
    """A given text is scored with `echo`: null for its first token, ≤ 0 for each other one, the same each time."""
    one, two = (_legacy(subject, echo=True) for _ in range(2))
    prompt, written = one["usage"]
    if len(one["values"]) == written:
        raise AbsentError("no tokens of the prompt", "the server ignores echo")
    expect(
        len(one["values"]) == prompt + written,
        f"{len(one['values'])} values for {prompt} + {written} tokens",
        "echo must give one value a token of the prompt and of the completion",
    )
    first, rest = one["values"][0], one["values"][1:]
    expect(first is None or is_logprob(first), f"first value {first!r:.60}", "the first token has no log-probability")
    expect(all(map(is_logprob, rest)), f"{rest!r:.100}", "a log-probability must be a number that is not positive")
    expect(one["tokens"] == two["tokens"], f"{two['tokens']!r:.80}", "the same text must have the same tokens")
    gap = max(abs(a - b) for a, b in zip(rest, two["values"][1:], strict=True))
    expect(gap <= STEADY, f"{gap:.3g} nats apart", "the same text must have the same score")
    return Finding(f"{prompt} tokens scored, at most {gap:.2g} nats apart in two requests", figures={"largest-gap": gap})


def prompt_logprobs(subject: Subject) -> Finding:
    """A given text is scored with `prompt_logprobs`: null first, then for each token its own log-probability and the top one's."""
    ask: JSON = {"temperature": 0, "max_tokens": 1, "prompt_logprobs": 1}
    answer = offered(lambda: subject.endpoint.completion(SCORED, **ask), "prompt_logprobs")
    found = take(answer, "choices", 0).get("prompt_logprobs")
    if found is None:
        raise AbsentError("no prompt_logprobs", f"the server ignores prompt_logprobs in {COMPLETIONS}")
    expect(isinstance(found, list) and len(found) > 0, f"{found!r:.60}", "prompt_logprobs must be a list")
    expect(len(found) == usage_of(answer)[0], f"{len(found)} entries", "there must be one entry a token of the prompt")
    expect(found[0] is None, f"first entry {found[0]!r:.60}", "the first token has no log-probability")
    for entry in found[1:]:
        expect(isinstance(entry, dict) and len(entry) > 0, f"{entry!r:.60}", "an entry must name at least the token itself")
        values = [take(value, "logprob") for value in entry.values()]
        expect(all(map(is_logprob, values)), f"{values!r:.100}", "a log-probability must be a number that is not positive")
    return Finding(f"{len(found)} tokens scored")
