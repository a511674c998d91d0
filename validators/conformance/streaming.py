"""Whether streams are framed as line-wise clients read them, and say the same as an answer that is not streamed."""

from __future__ import annotations

from typing import Final

from release.types import JSON, Status
from release.validators.conformance.check import (
    COMPLETIONS,
    Finding,
    Subject,
    asked,
    expect,
    offered,
    stop_in,
    streamed,
    take,
    text_of,
    told,
    usage_of,
)

PROMPT: Final = "37+45="


def stream_framing(subject: Subject) -> Finding:
    """A stream is framed events up to [DONE]: the role first, one finish reason, at last the usage."""
    events = streamed(subject)
    expect(len(events) > 2, f"{len(events)} events", "a stream with usage has at least three events")
    role = take(events[0], "choices", 0, "delta").get("role")
    expect(role == "assistant", f"first role {role!r:.60}", "the first delta must name the role")
    finishes = [f for event in events for choice in take(event, "choices") if (f := choice.get("finish_reason")) is not None]
    expect(len(finishes) == 1, f"finish reasons {finishes!r:.100}", "a stream must have exactly one finish reason")
    expect(finishes[0] in ("stop", "length"), f"finish_reason {finishes[0]!r:.60}", "the finish reason must be stop or length")
    ids = {event.get("id") for event in events}
    expect(len(ids) == 1 and None not in ids, f"{len(ids)} ids", "all events of a stream must have the same id")
    with_usage = [number for number, event in enumerate(events) if event.get("usage")]
    expect(
        with_usage == [len(events) - 1],
        f"usage in events {with_usage!r:.60} of {len(events)}",
        "usage belongs in the last event alone",
    )
    expect(events[-1]["choices"] == [], f"{len(events[-1]['choices'])} choices beside it", "the usage event must have no choices")
    usage_of(events[-1])
    return Finding(f"{len(events)} events, finish_reason {finishes[0]}", figures={"events": len(events)})


def stream_plain(subject: Subject) -> Finding:
    """A stream that was not asked for its usage has a choice in every event, and ends with its finish reason."""
    events = streamed(subject, stream_options=None)
    bare = sum(not event.get("choices") for event in events)
    expect(bare == 0, f"{bare} of {len(events)} events without a choice", "clients that did not ask for usage read choices[0]")
    finish = take(events[-1], "choices", 0, "finish_reason") if events else None
    expect(finish in ("stop", "length"), f"finish_reason {finish!r:.60}", "the last event must have the finish reason")
    return Finding(f"{len(events)} events, each with a choice")


def stream_equals_whole(subject: Subject) -> Finding:
    """The same question streamed and not streamed gets the same text at temperature 0."""
    whole, stream = text_of(asked(subject)), told(streamed(subject))
    if whole == stream:
        return Finding(f"the same {len(whole)} characters")
    others = {whole, *(text_of(asked(subject)) for _ in range(3))}
    expect(len(others) > 1, f"{stream!r:.80} vs {whole!r:.80}", "the streamed text differs from the text that is not streamed")
    reason = "the answer differs from request to request at temperature 0, so that streaming cannot be told apart"
    return Finding(f"{len(others)} texts in 4 requests", reason, {"texts": len(others)}, Status.INCONCLUSIVE)


def usage_adds_up(subject: Subject) -> Finding:
    """Prompt and completion tokens add up, and the prompt has as many streamed as not streamed."""
    one, two, stream = usage_of(asked(subject)), usage_of(asked(subject)), usage_of(take(streamed(subject), -1))
    prompts = [one[0], two[0], stream[0]]
    expect(len(set(prompts)) == 1, f"prompt tokens {prompts}", "the same prompt must have the same number of tokens each time")
    return Finding(f"{one[0]} + {one[1]} tokens", figures={"prompt-tokens": one[0], "completion-tokens": one[1]})


def stream_stop(subject: Subject) -> Finding:
    """A stream ends before a stop string, and lets no part of it through that a token boundary had cut off."""
    whole = asked(subject)
    stop, cut = stop_in(whole, 3)
    text = told(streamed(subject, stop=stop))
    expect(text.strip() == cut.strip(), f"{text!r:.80}", f"stop={stop!r} must leave {cut!r:.80}")
    return Finding(f"{len(cut)} of {len(text_of(whole))} characters before {stop!r}")


def stream_completion(subject: Subject) -> Finding:
    """A streamed text completion says the same as one that is not streamed."""
    ask: JSON = {"temperature": 0, "max_tokens": 8}
    whole = offered(lambda: subject.endpoint.completion(PROMPT, **ask), COMPLETIONS)
    body: JSON = {"model": subject.endpoint.model, "prompt": PROMPT, "stream": True, **ask}
    events = list(subject.endpoint.events(COMPLETIONS, body))
    text = "".join(str(take(event, "choices", 0, "text")) for event in events if event.get("choices"))
    expect(text == take(whole, "choices", 0, "text"), f"{text!r:.80}", "the streamed text differs from the one not streamed")
    return Finding(f"the same {len(text)} characters in {len(events)} events")
