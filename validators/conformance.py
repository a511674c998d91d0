"""Whether a server speaks the OpenAI protocol as its clients expect: one small check, one verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from release.errors import ServingError
from release.types import JSON, Status, Verdict
from release.validators.endpoint import Answer, Endpoint, PatienceError, UnreachableError

PREFIX: Final = "conformance/"
CHAT: Final = "/v1/chat/completions"
ASK: Final = "What is 37+45?"
ASKS: Final = ("What is 37+45?", "What is 12+30?", "What is 58+67?", "What is 91+8?")
AT_ONCE: Final = 16
LONGEST: Final = 64
"""Tokens that a check lets the model write: enough to see the protocol, few enough for a slow chip."""
GREEDY: Final[JSON] = {"temperature": 0, "max_tokens": LONGEST}

Progress = Callable[[int, int, str], None]
"""Hears (done, total, name of the check) before each check, and once at the end."""


class DeviationError(Exception):
    """The server answers otherwise than the protocol says: what was measured, and why that is wrong."""

    def __init__(self, measured: str, reason: str) -> None:
        super().__init__(reason)
        self.measured = measured
        self.reason = reason


@dataclass(frozen=True)
class Finding:
    """What a check measured on a server that does as it should; INCONCLUSIVE where the server makes the question moot."""

    measured: str
    reason: str = "as the protocol says"
    figures: JSON = field(default_factory=dict)
    status: Status = Status.PASSED


@dataclass(frozen=True)
class Check:
    """One question to a server. `look` raises DeviationError or ServingError where the answer is not the `wanted` one."""

    wanted: str
    look: Callable[[Endpoint, int], Finding]


def conformance(endpoint: Endpoint, *, max_model_len: int, progress: Progress) -> tuple[Verdict, ...]:
    """Run every check of CHECKS in order and return one verdict each, named `conformance/<check>`.

    `max_model_len` is the context in tokens that the server was started with. Whatever a check raises is a FAILED verdict; only a
    server that no longer answers at all ends the run, with ServingError naming the check that it died in.
    """
    verdicts = []
    for number, (name, check) in enumerate(CHECKS.items()):
        progress(number, len(CHECKS), name)
        verdicts.append(_verdict(name, check, endpoint, max_model_len))
    progress(len(CHECKS), len(CHECKS), "done")
    return tuple(verdicts)


def _verdict(name: str, check: Check, endpoint: Endpoint, max_model_len: int) -> Verdict:
    try:
        found = check.look(endpoint, max_model_len)
    except DeviationError as problem:
        found = Finding(problem.measured, problem.reason, status=Status.FAILED)
    except (UnreachableError, PatienceError) as problem:
        if not _recovers(endpoint):
            raise ServingError(f"the server is dead: {problem}", where=PREFIX + name, next_step="its log says why") from problem
        found = Finding("no answer", str(problem), status=Status.FAILED)
    except ServingError as problem:
        found = Finding("a malformed answer", str(problem), status=Status.FAILED)
    except Exception as problem:  # a foreign answer can break a check in ways nobody thought of; the other checks still count
        found = Finding("the check broke", f"{type(problem).__name__}: {problem}", status=Status.FAILED)
    return Verdict(
        name=PREFIX + name,
        status=found.status,
        measured=found.measured,
        wanted=check.wanted,
        reason=found.reason,
        figures=found.figures,
    )


def _recovers(endpoint: Endpoint) -> bool:
    """Return whether the server answers within about two seconds: a dropped connection alone is not death."""
    for pause in (0.0, 0.5, 1.5):
        time.sleep(pause)
        if endpoint.alive():
            return True
    return False


def take(answer: Any, *path: str | int) -> Any:
    """Return the field of a JSON answer at `path`. Raises DeviationError naming the path if it is not there."""
    value = answer
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError) as problem:
            raise DeviationError("a malformed answer", f"the answer has no {'.'.join(map(str, path))}") from problem
    return value


def expect(true: bool, measured: str, reason: str) -> None:
    """Raise DeviationError unless `true`."""
    if not true:
        raise DeviationError(measured, reason)


def text_of(answer: JSON, choice: int = 0) -> str:
    """Return the text of a chat completion. Raises DeviationError if it is none, or empty."""
    content = take(answer, "choices", choice, "message", "content")
    expect(
        isinstance(content, str) and bool(content),
        f"content {content!r:.60}",
        "an answer's content must be a text that says something",
    )
    return str(content)


def usage_of(answer: JSON) -> tuple[int, int]:
    """Return (prompt tokens, completion tokens). Raises DeviationError unless both are positive and add up to the total."""
    prompt, completion, total = (take(answer, "usage", key) for key in ("prompt_tokens", "completion_tokens", "total_tokens"))
    counts = all(isinstance(count, int) and not isinstance(count, bool) for count in (prompt, completion, total))
    expect(
        counts and prompt > 0 and completion > 0 and prompt + completion == total,
        f"{prompt} + {completion} = {total}",
        "prompt and completion tokens must be positive and add up to the total",
    )
    return prompt, completion


def models_listed(endpoint: Endpoint, _: int) -> Finding:
    """/v1/models lists the served model."""
    names = [str(entry["id"]) for entry in endpoint.models()]
    expect(endpoint.model in names, ", ".join(names) or "no model", f"{endpoint.model} is not listed")
    return Finding(", ".join(names))


def chat_answers(endpoint: Endpoint, _: int) -> Finding:
    """A chat completion has an id, one choice, role assistant, a text and a finish reason."""
    answer = endpoint.chat(ASK, **GREEDY)
    expect(isinstance(answer.get("id"), str) and bool(answer["id"]), f"id {answer.get('id')!r}", "an answer must have an id")
    expect(answer.get("object") == "chat.completion", f"object {answer.get('object')!r}", "the object must be chat.completion")
    expect(len(take(answer, "choices")) == 1, f"{len(take(answer, 'choices'))} choices", "one choice was asked for")
    role, finish = take(answer, "choices", 0, "message", "role"), take(answer, "choices", 0, "finish_reason")
    expect(role == "assistant", f"role {role!r}", "the role must be assistant")
    expect(finish in ("stop", "length"), f"finish_reason {finish!r}", "the finish reason must be stop or length")
    return Finding(f"{len(text_of(answer))} characters, finish_reason {finish}")


def completion_answers(endpoint: Endpoint, _: int) -> Finding:
    """A text completion has a text and a finish reason."""
    answer = endpoint.completion("37+45=", temperature=0, max_tokens=8)
    text, finish = take(answer, "choices", 0, "text"), take(answer, "choices", 0, "finish_reason")
    expect(isinstance(text, str) and bool(text), f"text {text!r:.60}", "a completion must have a text")
    expect(finish in ("stop", "length"), f"finish_reason {finish!r}", "the finish reason must be stop or length")
    usage_of(answer)
    return Finding(f"{len(text)} characters, finish_reason {finish}")


def streamed(endpoint: Endpoint) -> list[JSON]:
    """Return the events of a greedy streamed answer with its usage."""
    return list(endpoint.stream(ASK, **GREEDY, stream_options={"include_usage": True}))


def joined(events: list[JSON]) -> str:
    """Return the text that a client puts together from a stream."""
    return "".join(take(event, "choices", 0, "delta").get("content") or "" for event in events if event.get("choices"))


def stream_framing(endpoint: Endpoint, _: int) -> Finding:
    """A stream is framed events up to [DONE]: the role first, one finish reason, at last the usage."""
    events = streamed(endpoint)
    expect(len(events) > 2, f"{len(events)} events", "a stream with usage has at least three events")
    role = take(events[0], "choices", 0, "delta").get("role")
    expect(role == "assistant", f"first role {role!r}", "the first delta must name the role")
    finishes = [f for event in events for choice in take(event, "choices") if (f := choice.get("finish_reason")) is not None]
    expect(len(finishes) == 1, f"finish reasons {finishes}", "a stream must have exactly one finish reason")
    expect(finishes[0] in ("stop", "length"), f"finish_reason {finishes[0]!r}", "the finish reason must be stop or length")
    ids = {event.get("id") for event in events}
    expect(len(ids) == 1 and None not in ids, f"{len(ids)} ids", "all events of a stream must have the same id")
    with_usage = [number for number, event in enumerate(events) if event.get("usage")]
    expect(
        with_usage == [len(events) - 1], f"usage in events {with_usage} of {len(events)}", "usage belongs in the last event alone"
    )
    expect(events[-1]["choices"] == [], f"{len(events[-1]['choices'])} choices beside it", "the usage event must have no choices")
    usage_of(events[-1])
    return Finding(f"{len(events)} events, finish_reason {finishes[0]}", figures={"events": len(events)})


def stream_equals_whole(endpoint: Endpoint, _: int) -> Finding:
    """The same question streamed and not streamed gets the same text at temperature 0."""
    whole, stream = text_of(endpoint.chat(ASK, **GREEDY)), joined(streamed(endpoint))
    if whole == stream:
        return Finding(f"the same {len(whole)} characters")
    others = {whole, *(text_of(endpoint.chat(ASK, **GREEDY)) for _ in range(3))}
    expect(len(others) > 1, f"{stream!r:.80} vs {whole!r:.80}", "the streamed text differs from the text that is not streamed")
    reason = "the answer differs from request to request at temperature 0, so that streaming cannot be told apart"
    return Finding(f"{len(others)} texts in 4 requests", reason, {"texts": len(others)}, Status.INCONCLUSIVE)


def usage_adds_up(endpoint: Endpoint, _: int) -> Finding:
    """Prompt and completion tokens add up, and the prompt has as many streamed as not streamed."""
    one, two, stream = (
        usage_of(endpoint.chat(ASK, **GREEDY)),
        usage_of(endpoint.chat(ASK, **GREEDY)),
        usage_of(streamed(endpoint)[-1]),
    )
    prompts = [one[0], two[0], stream[0]]
    expect(len(set(prompts)) == 1, f"prompt tokens {prompts}", "the same prompt must have the same number of tokens each time")
    return Finding(f"{one[0]} + {one[1]} tokens", figures={"prompt-tokens": one[0], "completion-tokens": one[1]})


def stop_string(endpoint: Endpoint, _: int) -> Finding:
    """Generation ends before a stop string, given as a text or in a list, and the text does not contain it."""
    whole = text_of(endpoint.chat(ASK, **GREEDY))
    expect(len(whole) > 1, f"{whole!r}", "the answer is too short to be stopped")
    stop = whole[len(whole) // 2 :][:2]
    cut = whole.partition(stop)[0]
    for spelling in (stop, [stop]):
        answer = endpoint.chat(ASK, **GREEDY, stop=spelling)
        content, finish = take(answer, "choices", 0, "message", "content") or "", take(answer, "choices", 0, "finish_reason")
        expect(finish == "stop", f"finish_reason {finish!r}", f"stop={spelling!r} must end with finish_reason stop")
        expect(content == cut, f"{content!r:.80}", f"stop={spelling!r} must leave {cut!r:.80}")
    return Finding(f"{len(cut)} of {len(whole)} characters before {stop!r}")


def max_tokens(endpoint: Endpoint, _: int) -> Finding:
    """max_tokens ends an answer with finish_reason length, after exactly so many tokens."""
    limit = max(1, usage_of(endpoint.chat(ASK, **GREEDY))[1] // 2)
    answer = endpoint.chat(ASK, temperature=0, max_tokens=limit)
    finish, tokens = take(answer, "choices", 0, "finish_reason"), usage_of(answer)[1]
    expect(
        (finish, tokens) == ("length", limit), f"{tokens} tokens, finish_reason {finish}", f"max_tokens={limit} must give so many"
    )
    return Finding(f"{tokens} tokens, finish_reason length")


def two_choices(endpoint: Endpoint, _: int) -> Finding:
    """n=2 with a seed gives two choices with indexes 0 and 1; whether the seed repeats them is reported."""
    ask: JSON = {"temperature": 1.0, "seed": 7, "n": 2, "max_tokens": LONGEST}
    answers = [endpoint.chat(ASK, **ask) for _ in range(2)]
    texts = []
    for answer in answers:
        choices = take(answer, "choices")
        indexes = sorted(str(take(choice, "index")) for choice in choices)
        expect(indexes == ["0", "1"], f"choices {indexes}", "n=2 must give the choices 0 and 1")
        usage_of(answer)
        texts.append([take(choice, "message", "content") for choice in sorted(choices, key=lambda c: int(c["index"]))])
    same = texts[0] == texts[1]
    note = "repeated" if same else "not repeated"
    return Finding(f"2 choices, {note} by the same seed", figures={"repeated-by-seed": same})


def logprobs(endpoint: Endpoint, _: int) -> Finding:
    """Each token comes with log-probabilities ≤ 0, and among the top ones with itself."""
    answer = endpoint.chat(ASK, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3)
    tokens = take(answer, "choices", 0, "logprobs", "content")
    expect(len(tokens) == usage_of(answer)[1], f"{len(tokens)} tokens", "there must be one entry a completion token")
    for entry in tokens:
        chosen, top = take(entry, "token"), take(entry, "top_logprobs")
        values = [take(t, "logprob") for t in (entry, *top)]
        right = all(isinstance(v, int | float) and not isinstance(v, bool) and v <= 0 for v in values)
        expect(right, f"logprobs {values}", "a log-probability must be a number that is not positive")
        expect(len(top) >= 3, f"{len(top)} top logprobs", "three top logprobs were asked for")
        expect(chosen in [take(t, "token") for t in top], f"{chosen!r}", "the chosen token must be among the top logprobs")
    return Finding(f"{len(tokens)} tokens, {len(tokens[0]['top_logprobs'])} top logprobs each")


def refusal(answer: Answer, *statuses: int) -> Finding:
    """Check that an answer refuses with one of `statuses` (any 4xx if none) and an OpenAI error body.

    That is an object `error` with message and type (texts) and code: null or a text at OpenAI, the HTTP status at vLLM 0.32.
    """
    fits = answer.status in statuses if statuses else 400 <= answer.status < 500
    expect(fits, f"HTTP {answer.status}: {answer.quoted}", "a bad request must be refused as the client's error")
    error = take(answer.json(), "error")
    for key in ("message", "type"):
        value = take(error, key)
        expect(isinstance(value, str) and bool(value), f"error.{key} {value!r:.60}", f"error.{key} must be a text")
    code = take(error, "code")
    right = code is None or (isinstance(code, int | str) and not isinstance(code, bool))
    expect(right, f"error.code {code!r:.60}", "error.code must be a number, a text or null")
    return Finding(f"HTTP {answer.status}, {error['type']}", figures={"status": answer.status})


def bad_json(endpoint: Endpoint, _: int) -> Finding:
    """A body that is no JSON is refused."""
    return refusal(endpoint.post(CHAT, b'{"model": "' + endpoint.model.encode() + b'", '))


def unknown_model(endpoint: Endpoint, _: int) -> Finding:
    """A model that is not served is refused with 404, streamed or not."""
    body = endpoint.chat_body(ASK, **GREEDY) | {"model": "no-such-model"}
    refusal(endpoint.post(CHAT, body | {"stream": True}), 404)
    return refusal(endpoint.post(CHAT, body), 404)


def negative_max_tokens(endpoint: Endpoint, _: int) -> Finding:
    """A negative max_tokens is refused."""
    return refusal(endpoint.post(CHAT, endpoint.chat_body(ASK, max_tokens=-1)))


def overlong_prompt(endpoint: Endpoint, max_model_len: int) -> Finding:
    """A prompt beyond the model's context is refused."""
    return refusal(endpoint.post(CHAT, endpoint.chat_body("37+45 " * max_model_len, max_tokens=1)))


def bad_role(endpoint: Endpoint, _: int) -> Finding:
    """A role that is a number is refused; an unknown role must not break the server, and what it gets is reported.

    vLLM 0.32 hands unknown roles to the chat template on purpose; OpenAI refuses them.
    """
    turn = {"content": ASK}
    found = refusal(endpoint.post(CHAT, endpoint.chat_body([turn | {"role": 7}], **GREEDY)))
    unknown = endpoint.post(CHAT, endpoint.chat_body([turn | {"role": "wizard"}], **GREEDY)).status
    expect(unknown < 500, f"HTTP {unknown} for an unknown role", "a bad request must never be the server's error")
    note = f"{found.measured}; HTTP {unknown} for the unknown role 'wizard'"
    return Finding(note, figures=found.figures | {"unknown-role-status": unknown})


def unknown_path(endpoint: Endpoint, _: int) -> Finding:
    """A path that does not exist is 404."""
    status = endpoint.post("/v1/no-such-path", {}).status
    expect(status == 404, f"HTTP {status}", "an unknown path must be 404")
    return Finding("HTTP 404")


def many_at_once(endpoint: Endpoint, _: int) -> Finding:
    """Sixteen requests at once get an answer each, and none another one's; how many differ from the lone answer is reported."""
    alone = {ask: text_of(endpoint.chat(ask, **GREEDY)) for ask in ASKS}
    asked = [ASKS[i % len(ASKS)] for i in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda ask: text_of(endpoint.chat(ask, **GREEDY)), asked))
    for ask, text in zip(asked, answers, strict=True):
        if text != alone[ask] and text in alone.values():
            raise DeviationError(f"{ask!r} got {text!r:.80}", "a request got the answer to another one")
    differ = sum(text != alone[ask] for ask, text in zip(asked, answers, strict=True))
    same = "all as when asked alone" if not differ else "a batch may change the last digits, and so a near tie: not a failure"
    note = f"{AT_ONCE} of {AT_ONCE} answered, {differ} differ from the lone answer at temperature 0"
    return Finding(note, same, {"requests": AT_ONCE, "differ": differ})


def healthy_after_errors(endpoint: Endpoint, _: int) -> Finding:
    """After all the bad requests the server is healthy and answers."""
    expect(endpoint.alive(), "not healthy", "bad requests must not make the server unhealthy")
    return Finding(f"healthy, {len(text_of(endpoint.chat(ASK, **GREEDY)))} characters")


CHECKS: Final[dict[str, Check]] = {
    "models": Check("the served model in /v1/models", models_listed),
    "chat": Check("id, role assistant, a text, finish_reason stop or length", chat_answers),
    "completion": Check("a text, finish_reason stop or length", completion_answers),
    "stream-framing": Check("framed events to [DONE]; role first, one finish_reason, usage last", stream_framing),
    "stream-equals-whole": Check("the same text streamed and not, at temperature 0", stream_equals_whole),
    "usage": Check("prompt + completion = total; the same prompt tokens streamed and not", usage_adds_up),
    "stop": Check("the text up to the stop string, without it, finish_reason stop", stop_string),
    "max-tokens": Check("exactly max_tokens tokens, finish_reason length", max_tokens),
    "two-choices": Check("choices 0 and 1 for n=2", two_choices),
    "logprobs": Check("≤ 0, one entry a token, the chosen token among the top ones", logprobs),
    "bad-json": Check("4xx with an error body", bad_json),
    "unknown-model": Check("404 with an error body", unknown_model),
    "negative-max-tokens": Check("4xx with an error body", negative_max_tokens),
    "overlong-prompt": Check("4xx with an error body", overlong_prompt),
    "bad-role": Check("4xx with an error body for a role that is a number, no 5xx for an unknown one", bad_role),
    "unknown-path": Check("404", unknown_path),
    "many-at-once": Check("16 of 16 answered, none with another's answer", many_at_once),
    "healthy-after-errors": Check("healthy and answering", healthy_after_errors),
}
"""Every check by its name, in the order they run: the last one looks at what the bad requests left behind."""
