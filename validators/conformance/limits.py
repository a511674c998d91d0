"""Whether the context is as long as the server says: used up to its end, refused beyond it, and read to its middle."""

from __future__ import annotations

from typing import Final

from release.types import JSON
from release.validators.conformance.check import CHAT, LONGEST, Finding, Subject, expect, refusal, spoken, take, usage_of

FILLER: Final = "37+45 "
SHARE: Final = 0.9
SECRET: Final = "7481"


def overlong_prompt(subject: Subject) -> Finding:
    """A prompt beyond the model's context is refused."""
    body = subject.endpoint.chat_body(FILLER * subject.context(), max_tokens=1)
    return refusal(subject.endpoint.post(CHAT, body))


def too_many_tokens(subject: Subject) -> Finding:
    """More tokens than the context holds are refused, or the answer stays within the context."""
    context = subject.context()
    answer = subject.endpoint.post(
        CHAT, subject.endpoint.chat_body("What is 1+2?", temperature=0, max_tokens=context + 1, stop="\n")
    )
    if answer.status != 200:
        return refusal(answer)
    total = sum(usage_of(answer.json()))
    expect(total <= context, f"{total} tokens", "an answer must stay within the context")
    return Finding(f"{total} of {context} tokens")


def filled(subject: Subject, share: float) -> tuple[str, int]:
    """Return a text that fills a share of the context and its tokens: what one repetition costs is measured by two requests."""

    def tokens(repetitions: int) -> int:
        return usage_of(subject.endpoint.chat(FILLER * repetitions, temperature=0, max_tokens=1))[0]

    want = int(share * subject.context())
    few, more = tokens(4), tokens(20)
    expect(more > few, f"{few} and {more} prompt tokens", "a longer prompt must have more tokens")
    repetitions = max(1, int(4 + (want - few) * 16 / (more - few)))
    return FILLER * repetitions, want


def full_context(subject: Subject) -> Finding:
    """A prompt that fills nine tenths of the context is answered, and counted as that long."""
    text, want = filled(subject, SHARE)
    prompt, _ = usage_of(subject.endpoint.chat(text, temperature=0, max_tokens=4))
    expect(0.8 * want <= prompt <= subject.context(), f"{prompt} prompt tokens", f"about {want} were sent")
    return Finding(f"{prompt} of {subject.context()} tokens answered", figures={"prompt-tokens": prompt})


def needle(subject: Subject) -> Finding:
    """A number that stands in the middle of nine tenths of the context is found."""
    text, _ = filled(subject, SHARE - 0.1)
    half = len(text) // 2
    ask = (
        f"{text[:half]}\nThe secret number is {SECRET}.\n{text[half:]}\nWhat is the secret number? Answer with the number alone."
    )
    answer: JSON = subject.endpoint.chat(ask, temperature=0, max_tokens=max(LONGEST, subject.context() // 20))
    said = spoken(take(answer, "choices", 0, "message"))[1]
    expect(SECRET in said.rpartition("</think>")[2], f"{said[-80:]!r}", f"the number in the middle is {SECRET}")
    return Finding(f"found in {usage_of(answer)[0]} tokens")
