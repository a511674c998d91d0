"""Whether what a request asks of sampling is done: stops, bounds, choices, seeds, penalties."""

from __future__ import annotations

from release.types import JSON
from release.validators.conformance.check import (
    ASK,
    CHAT,
    GREEDY,
    LONGEST,
    AbsentError,
    Finding,
    Subject,
    asked,
    expect,
    offered,
    refusal,
    spoken,
    stop_in,
    take,
    text_of,
    usage_of,
)


def stop_string(subject: Subject) -> Finding:
    """Generation ends before a stop string, given as a text or in a list, and the text does not contain it."""
    whole = asked(subject)
    stop, cut = stop_in(whole, 2)
    for spelling in (stop, [stop]):
        answer = asked(subject, stop=spelling)
        said, finish = "".join(spoken(take(answer, "choices", 0, "message"))), take(answer, "choices", 0, "finish_reason")
        expect(finish == "stop", f"finish_reason {finish!r:.60}", f"stop={spelling!r} must end with finish_reason stop")
        expect(said.strip() == cut.strip(), f"{said!r:.80}", f"stop={spelling!r} must leave {cut!r:.80}")
    return Finding(f"{len(cut)} of {len(text_of(whole))} characters before {stop!r}")


def max_tokens(subject: Subject) -> Finding:
    """max_tokens ends an answer with finish_reason length, after exactly so many tokens."""
    limit = max(1, usage_of(asked(subject))[1] // 2)
    answer = asked(subject, max_tokens=limit)
    finish, tokens = take(answer, "choices", 0, "finish_reason"), usage_of(answer)[1]
    expect(
        (finish, tokens) == ("length", limit),
        f"{tokens} tokens, finish_reason {finish!r:.60}",
        f"max_tokens={limit} must give so many",
    )
    return Finding(f"{tokens} tokens, finish_reason length")


def two_choices(subject: Subject) -> Finding:
    """n=2 with a seed gives two choices with indexes 0 and 1; whether the seed repeats them is reported."""
    ask: JSON = {"temperature": 1.0, "seed": 7, "n": 2, "max_tokens": LONGEST}
    answers = [offered(lambda: subject.endpoint.chat(ASK, **ask), "n > 1") for _ in range(2)]
    texts = []
    for answer in answers:
        choices = take(answer, "choices")
        indexes = sorted(str(take(choice, "index")) for choice in choices)
        expect(indexes == ["0", "1"], f"choices {indexes!r:.60}", "n=2 must give the choices 0 and 1")
        usage_of(answer)
        texts.append([take(choice, "message", "content") for choice in sorted(choices, key=lambda c: int(c["index"]))])
    same = texts[0] == texts[1]
    note = "repeated" if same else "not repeated"
    return Finding(f"2 choices, {note} by the same seed", figures={"repeated-by-seed": same})


def seed(subject: Subject) -> Finding:
    """The same seed repeats an answer at temperature 1; how many texts other seeds give is reported."""
    ask: JSON = {"temperature": 1.0, "max_tokens": LONGEST}
    same = {text_of(offered(lambda: subject.endpoint.chat(ASK, **ask, seed=11), "seed")) for _ in range(3)}
    if len(same) > 1:
        raise AbsentError(f"{len(same)} texts in 3 requests with one seed", "the server does not repeat an answer by its seed")
    others = same | {text_of(subject.endpoint.chat(ASK, **ask, seed=number)) for number in (12, 13, 14)}
    return Finding(f"1 text in 3 requests with one seed, {len(others)} with four", figures={"texts": len(others)})


def greedy_repeats(subject: Subject) -> Finding:
    """The same question alone gets the same text at temperature 0, four times."""
    texts = {text_of(asked(subject)) for _ in range(4)}
    if len(texts) > 1:
        raise AbsentError(f"{len(texts)} texts in 4 requests", "the server is not deterministic at temperature 0, not even alone")
    return Finding("1 text in 4 requests")


def penalties(subject: Subject) -> Finding:
    """Penalties of 2 are taken, and one of 5 is refused; whether they change the answer is reported."""
    plain = text_of(asked(subject))
    punished = text_of(offered(lambda: asked(subject, frequency_penalty=2.0, presence_penalty=2.0), "penalties"))
    found = refusal(subject.endpoint.post(CHAT, subject.endpoint.chat_body(ASK, **GREEDY, frequency_penalty=5.0)))
    note = "another text" if plain != punished else "the same text"
    return Finding(f"{note} with penalties of 2; {found.measured} for one of 5", figures={"changed": plain != punished})
