"""Every check by its name, and what a server may lack."""

from __future__ import annotations

from typing import Final

from release.validators.conformance import (
    errors,
    limits,
    load,
    logprobs,
    protocol,
    reasoning,
    sampling,
    streaming,
    structured,
    tools,
)
from release.validators.conformance.check import Check

REFUSED: Final = "4xx with an error body"

FEATURES: Final[dict[str, str]] = {
    "health": "GET /health",
    "completions": "text completions",
    "choices": "several choices by n",
    "logprobs": "log-probabilities of chat completions",
    "completion-logprobs": "log-probabilities of text completions",
    "scoring": "the score of a given text, by echo",
    "prompt-logprobs": "the score of a given text, by prompt_logprobs",
    "content-parts": "messages in parts",
    "max-completion-tokens": "the newer name of max_tokens",
    "seed": "answers repeated by their seed",
    "greedy-repeats": "the same answer each time at temperature 0, asked alone",
    "penalties": "frequency and presence penalties",
    "context": "a context length that somebody says",
    "tools": "tool calls",
    "structured-output": "JSON by response_format",
    "reasoning": "thoughts apart from the answer",
    "auth": "a key that requests must show",
    "needle": "a number found in the middle of a long prompt: asks what the model can do",
    "soak": "half an hour of load",
}
"""What a server may lack, and what it is. A check of such a feature says SKIPPED where the server lacks it, and FAILED if it is wanted."""
STANDARD: Final = frozenset({"completions", "choices", "logprobs", "context"})
"""What every release has."""
ON_REQUEST: Final = frozenset({"needle", "soak"})
"""What is looked at only where it is wanted: it takes long, or asks for more than the protocol."""

CHECKS: Final[dict[str, Check]] = {
    "health": Check("200", protocol.health, "health"),
    "models": Check("the served model in /v1/models", protocol.models_listed),
    "chat": Check("id, role assistant, a text, finish_reason stop or length", protocol.chat_answers),
    "names": Check("the model's own name in each answer, an id of its own for each", protocol.names_the_model),
    "completion": Check("a text, finish_reason stop or length", protocol.completion_answers, "completions"),
    "conversation": Check("more prompt tokens with earlier turns than without", protocol.conversation),
    "content-parts": Check("the same prompt tokens as a text", protocol.content_parts, "content-parts"),
    "max-completion-tokens": Check("no more tokens than that", protocol.max_completion_tokens, "max-completion-tokens"),
    "stream-framing": Check("framed events to [DONE]; role first, one finish_reason, usage last", streaming.stream_framing),
    "stream-plain": Check("a choice in every event where no usage was asked for", streaming.stream_plain),
    "stream-equals-whole": Check("the same text streamed and not, at temperature 0", streaming.stream_equals_whole),
    "stream-stop": Check("the text up to the stop string, and no part of it", streaming.stream_stop),
    "stream-completion": Check("the same text streamed and not", streaming.stream_completion, "completions"),
    "usage": Check("prompt + completion = total; the same prompt tokens streamed and not", streaming.usage_adds_up),
    "stop": Check("the text up to the stop string, without it, finish_reason stop", sampling.stop_string),
    "max-tokens": Check("exactly max_tokens tokens, finish_reason length", sampling.max_tokens),
    "two-choices": Check("choices 0 and 1 for n=2", sampling.two_choices, "choices"),
    "seed": Check("one text in three requests with one seed", sampling.seed, "seed"),
    "greedy-repeats": Check("one text in four requests at temperature 0", sampling.greedy_repeats, "greedy-repeats"),
    "penalties": Check("penalties of 2 taken, one of 5 refused", sampling.penalties, "penalties"),
    "logprobs": Check("≤ 0, one entry a token, the chosen token among the top ones", logprobs.logprobs, "logprobs"),
    "greedy-on-top": Check("the most likely token at temperature 0", logprobs.greedy_on_top, "logprobs"),
    "stream-logprobs": Check("the same tokens and values streamed and not", logprobs.stream_logprobs, "logprobs"),
    "completion-logprobs": Check("≤ 0, one value a token", logprobs.completion_logprobs, "completion-logprobs"),
    "scoring": Check("null, then ≤ 0 for each token of a given text, the same each time", logprobs.scoring, "scoring"),
    "prompt-logprobs": Check("null, then ≤ 0 for each token of a given text", logprobs.prompt_logprobs, "prompt-logprobs"),
    "full-context": Check("nine tenths of the context answered", limits.full_context, "context"),
    "needle": Check("the number in the middle", limits.needle, "needle"),
    "tools-auto": Check("words, or a call with fitting arguments", tools.tools_auto, "tools"),
    "tools-none": Check("no call", tools.tools_none, "tools"),
    "tools-required": Check("at least one call, ids of their own, fitting arguments", tools.tools_required, "tools"),
    "tools-named": Check("a call of that tool with fitting arguments", tools.tools_named, "tools"),
    "tools-streamed": Check("arguments in pieces that come to fitting ones", tools.tools_streamed, "tools"),
    "tools-result": Check("a call and its result taken as turns", tools.tools_result, "tools"),
    "tools-unknown": Check(REFUSED, tools.tools_unknown, "tools"),
    "json-object": Check("a JSON object", structured.json_answer, "structured-output"),
    "json-schema": Check("an object of that schema", structured.json_schema, "structured-output"),
    "json-schema-streamed": Check("the same object, no character torn", structured.json_schema_streamed, "structured-output"),
    "json-bad-schema": Check(REFUSED, structured.json_bad_schema, "structured-output"),
    "reasoning": Check("thoughts in a field of their own, no marks of them", reasoning.reasoning, "reasoning"),
    "reasoning-streamed": Check("the same thoughts and the same answer", reasoning.reasoning_streamed, "reasoning"),
    "reasoning-history": Check("a turn with its thoughts taken", reasoning.reasoning_history, "reasoning"),
    "many-at-once": Check("16 of 16 answered, none with another's answer", load.many_at_once),
    "one-too-many": Check("all answered, one more than run at once", load.one_too_many),
    "long-at-once": Check("16 of 16 answered, long prompts and a seed each", load.long_at_once, "context"),
    "hang-up": Check("an answer after clients that hung up, no slot taken", load.hang_up),
    "soak": Check("no failed request, not slower at last than at first", load.soak, "soak"),
    "bad-json": Check(REFUSED, errors.bad_json),
    "unknown-model": Check("404 with an error body", errors.unknown_model),
    "negative-max-tokens": Check(REFUSED, errors.negative_max_tokens),
    "overlong-prompt": Check(REFUSED, limits.overlong_prompt, "context"),
    "too-many-tokens": Check("4xx with an error body, or an answer within the context", limits.too_many_tokens, "context"),
    "bad-role": Check(f"{REFUSED} for a role that is a number, no 5xx for an unknown one", errors.bad_role),
    "bad-sampling": Check(REFUSED, errors.bad_sampling),
    "no-messages": Check(REFUSED, errors.no_messages),
    "unknown-path": Check("404", errors.unknown_path),
    "wrong-method": Check("405 or 404", errors.wrong_method),
    "hostile-bodies": Check("no 5xx, no hang", errors.hostile_bodies),
    "auth": Check("401 without the right key", errors.auth, "auth"),
    "healthy-after-errors": Check("healthy and answering", load.healthy_after_errors),
}
"""Every check by its name, in the order they run: the last one looks at what the bad requests left behind."""
