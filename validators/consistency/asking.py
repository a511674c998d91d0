"""Asking a server many things at once, within bounded time, and reading tokens and logprobs out of what it says."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Final

from release.errors import ServingError
from release.types import JSON
from release.types.consistency import Examination
from release.validators.consistency.evidence import Log
from release.validators.endpoint import Answer, Endpoint, PatienceError, RefusedError, UnreachableError

PAUSES: Final = (0.5, 2.0)
"""Seconds to wait before a request whose connection was lost is asked again: twice, then it ends the layer."""
EXTRA: Final = "return_token_ids"
"""What vLLM understands beyond OpenAI's fields; a server that refuses it by name is asked without."""
STRICT: Final = (400, 422)
ABOVE_ZERO: Final = 1e-3
"""A logprob may be so much above 0 by rounding."""

Progress = Callable[[int, int, str], None]
"""Hears (done, total, what) after each step."""


class NumbersError(ServingError):
    """The server answered, and its numbers cannot be those of a model: a fault that is proven."""


class UnshownError(ServingError):
    """The server does not show what a layer needs."""


@dataclass(frozen=True)
class Asking:
    """One thing to ask: the key of its record, where, what, and what makes the record of the answer."""

    key: str
    path: str
    body: JSON
    read: Callable[[JSON], JSON]
    refused: Callable[[RefusedError], JSON] | None = None


class Clock:
    """The time that a layer has, in seconds."""

    def __init__(self, within: float) -> None:
        self.began = time.monotonic()
        self.within = within

    @property
    def spent(self) -> float:
        """Seconds since the layer began."""
        return time.monotonic() - self.began

    def patience(self, most: float) -> float:
        """Return how long one request may take. Raises PatienceError when the layer's time is over."""
        left = self.within - self.spent
        if left <= 0:
            raise PatienceError(f"the layer was not finished within {self.within:g} s")
        return min(most, left)


def ask_all(
    endpoint: Endpoint,
    asked: Iterable[Asking],
    log: Log,
    spec: Examination,
    clock: Clock,
    progress: Progress,
    *,
    concurrency: int | None = None,
) -> None:
    """Ask what the log does not hold yet, and write each record into it as it comes; the log is finished then.

    The first request that fails ends it: a connection lost three times, no answer within `spec.patience`, another status than 200,
    or an answer that `read` refuses. What came until then stays in the log, and the next run goes on from there.
    Raises ServingError and its kinds.
    """
    if log.finished:
        return
    todo = [one for one in asked if one.key not in log.done]
    before, total = len(log.done), len(log.done) + len(todo)
    client = endpoint.patient(spec.patience)

    def work(one: Asking) -> str:
        log.append(one.key, _record(client, one, spec, clock))
        return one.key

    with ThreadPoolExecutor(concurrency or spec.concurrency, thread_name_prefix="ask") as pool:
        futures = [pool.submit(work, one) for one in todo]
        try:
            for done, future in enumerate(as_completed(futures), before + 1):
                progress(done, total, future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    log.finish()


def _record(endpoint: Endpoint, one: Asking, spec: Examination, clock: Clock) -> JSON:
    for pause in (*PAUSES, None):
        try:
            answer = _client(endpoint, clock.patience(spec.patience)).post(one.path, one.body)
            if answer.status in STRICT and EXTRA in one.body and EXTRA.encode() in answer.body:
                body = {name: value for name, value in one.body.items() if name != EXTRA}
                answer = _client(endpoint, clock.patience(spec.patience)).post(one.path, body)
            break
        except UnreachableError as lost:
            if pause is None:
                raise lost.located(one.key) from lost
            time.sleep(pause)
        except PatienceError as late:
            clock.patience(spec.patience)  # says so, if it was the layer's time that was over
            raise late.located(one.key) from late
    try:
        return one.read(_object(answer, one.path))
    except RefusedError as refusal:
        if one.refused is not None and 400 <= refusal.status < 500:
            return one.refused(refusal)
        raise refusal.located(one.key) from refusal
    except ServingError as problem:
        raise problem.located(one.key) from problem


def _client(endpoint: Endpoint, patience: float) -> Endpoint:
    """Return the endpoint itself while there is time enough: it keeps its connections."""
    return endpoint if patience >= endpoint.read_timeout else endpoint.patient(patience)


def _object(answer: Answer, path: str) -> JSON:
    """Return the answer as an object; NaN and Infinity, which are no JSON, are let through for `read` to name them."""
    try:
        return answer.wanted(path)
    except RefusedError:
        raise
    except ServingError:
        try:
            value = json.loads(answer.body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise
        return value


def first_choice(answer: JSON) -> JSON:
    """Return choices[0]. Raises ServingError if there is none."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ServingError("the answer has no choices[0]")
    return choices[0]


def read_prompt(answer: JSON) -> JSON:
    """Return {"tokens", "ids"} of a prompt as the server rendered it: `ids` is null where it shows none.

    Raises UnshownError if it says neither, and NumbersError where the two contradict one another.
    """
    choice, usage = first_choice(answer), answer.get("usage")
    ids = _ids(answer.get("prompt_token_ids", choice.get("prompt_token_ids")))
    told = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    count = told if isinstance(told, int) and not isinstance(told, bool) and told >= 0 else None
    if count is None and ids is None:
        raise UnshownError("the server does not say how many tokens a prompt has (usage.prompt_tokens)")
    if count is not None and ids is not None and count != len(ids):
        raise NumbersError(f"usage says {count} prompt tokens, and {len(ids)} are shown")
    return {"tokens": len(ids) if ids is not None else count, "ids": ids}


def read_answer(answer: JSON) -> JSON:
    """Return {"prompt", "ids", "text", "finish"} of an answer; `prompt` and `ids` are null where the server shows no token ids."""
    choice = first_choice(answer)
    message = choice.get("message")
    text = choice.get("text") if message is None else None
    if isinstance(message, dict):
        thought = message.get("reasoning_content", message.get("reasoning"))
        said = message.get("content")
        text = (thought if isinstance(thought, str) else "") + (said or "") if isinstance(said, str | None) else said
    reason = choice.get("finish_reason")
    if not isinstance(text, str | None) or reason not in ("stop", "length"):
        raise ServingError(f"the answer has no text, or ended with finish_reason {reason!r:.50}")
    return {
        "prompt": read_prompt(answer)["ids"],
        "ids": _ids(choice.get("token_ids")),
        "text": (text or "").encode("utf-8", "replace").decode(),
        "finish": reason,
    }


def read_scores(answer: JSON, ids: list[int], first: int, top: int) -> JSON:
    """Return {"top", "logprobs", "chosen"} of the tokens `ids[first:]`, from vLLM's `prompt_logprobs`.

    For each position the `top` most likely tokens, most likely first, with their logprobs, and the logprob of the token that stands
    there; rounded to 1e-6. Raises UnshownError if the server shows none, and NumbersError for another number of positions, a token
    that is not scored, and logprobs that are none (NaN, null, above 0).
    """
    shown = first_choice(answer).get("prompt_logprobs")
    if shown is None:
        raise UnshownError("the server shows no prompt_logprobs")
    if not isinstance(shown, list) or len(shown) != len(ids):
        count = len(shown) if isinstance(shown, list) else "no"
        raise NumbersError(f"{len(ids)} tokens were sent, and {count} positions are scored")
    tops, logprobs, chosen = [], [], []
    for position in range(first, len(ids)):
        at = _position(shown[position], position)
        own = at.get(ids[position])
        if own is None:
            raise NumbersError(f"position {position}: the token that stands there is not scored")
        kept = sorted(at.items(), key=lambda item: item[1])[:top]
        tops.append([token for token, _ in kept])
        logprobs.append([round(-rank[0], 6) + 0.0 for _, rank in kept])
        chosen.append(round(-own[0], 6) + 0.0)
    return {"top": tops, "logprobs": logprobs, "chosen": chosen}


def _position(shown: Any, position: int) -> dict[int, tuple[float, int]]:
    """Return what is shown of one position: by token id its −logprob and rank, so that sorting puts the most likely first."""
    if not isinstance(shown, dict) or not shown:
        raise NumbersError(f"position {position} is not scored")
    found = {}
    for token, entry in shown.items():
        value = entry.get("logprob") if isinstance(entry, dict) else None
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value > ABOVE_ZERO:
            raise NumbersError(f"position {position}: the logprob of token {token:.20} is {value!r:.40}")
        rank = entry.get("rank")
        try:
            found[int(token)] = (-min(float(value), 0.0), rank if isinstance(rank, int) else 0)
        except ValueError as problem:
            raise NumbersError(f"position {position}: {token!r:.40} is no token id") from problem
    return found


def _ids(value: Any) -> list[int] | None:
    if isinstance(value, list) and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in value):
        return value
    return None
