"""Serving arguments as a cell's file or a command line says them: which the pipeline sets, which are secrets, and which values are none."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from release.errors import MatrixError, UsageError
from release.matrix import parse
from release.matrix.memory import CONTEXT, SEQUENCES, UTILIZATION, plain
from release.types import Arm, CellFile, Concern, Plan

SECRET_ARGUMENT: Final = re.compile(r"(^|[-_])(api[-_]?key|token|secret|password|credentials?)$", re.IGNORECASE)
"""Arguments of engines that carry a secret (`api-key`, `hf-token`); `max-num-batched-tokens` carries none."""
TENSOR: Final = ("write parallel.tensor-parallel-size", "use --tensor-parallel-size")
PIPELINE: Final = ("write parallel.pipeline-parallel-size", "use --pipeline-parallel-size")
HOSTS: Final = "the hosts follow from parallel and the chip's per-host"
WEIGHTS: Final = "the weights lie at /model"
RESERVED_ARGUMENTS: Final[dict[str, tuple[str, str]]] = {
    "host": ("the container's contract decides", "the container's contract decides"),
    "port": (
        "the port is serve.port",
        "`release serve --port` chooses one on the host; the cell's own is serve.port in its file",
    ),
    **dict.fromkeys(("model", "model-path"), (WEIGHTS, WEIGHTS)),
    **dict.fromkeys(("tensor-parallel-size", "tp", "tp-size"), TENSOR),
    **dict.fromkeys(("pipeline-parallel-size", "pp", "pp-size"), PIPELINE),
    **dict.fromkeys(("nnodes", "node-rank"), (HOSTS, HOSTS)),
}
"""What the pipeline sets itself: the next step in a file, and on a command line."""
LENGTHS: Final = {*CONTEXT, *SEQUENCES, "maxnumbatchedtokens"}
"""Settings that count something: whole numbers of at least 1."""
MOST: Final = 1_000_000_000
"""Tokens or sequences beyond which a figure is a slip."""
KNOWN: Final = (
    *("max-model-len", "max-seq-len", "context-length", "max-num-seqs", "max-batch-size", "max-running-requests"),
    *("gpu-memory-utilization", "mem-fraction-static", "max-num-batched-tokens", "served-model-name", "dtype", "kv-cache-dtype"),
    *("quantization", "load-format", "trust-remote-code", "enforce-eager", "seed", "block-size", "swap-space", "revision"),
    *("tokenizer", "tokenizer-mode", "chat-template", "reasoning-parser", "tool-call-parser", "enable-auto-tool-choice"),
    *("enable-prefix-caching", "enable-chunked-prefill", "enable-expert-parallel", "enable-lora", "max-loras", "max-lora-rank"),
    *("data-parallel-size", "max-seq-len-to-capture", "max-logprobs", "compilation-config", "rope-scaling", "rope-theta"),
    *("hf-overrides", "override-generation-config", "generation-config", "uvicorn-log-level", "disable-log-requests"),
    *("disable-log-stats", "device", "cpu-offload-gb", "num-gpu-blocks-override", "attention-backend", "speculative-config"),
    *(
        "distributed-executor-backend",
        "disable-custom-all-reduce",
        "guided-decoding-backend",
        "task",
        "runner",
        "max-prefill-tokens",
    ),
    *("chunked-prefill-size", "schedule-policy", "disable-radix-cache", "chat", *RESERVED_ARGUMENTS),
)
"""Arguments that engines are known to have: what is nearly one of them is probably meant to be it."""
FEATURES: Final = (
    *("fa3", "function-call", "long-sequence", "mindie-service", "multi-lora", "paged-attention", "prefix-cache"),
    *("speculative-decoding", "chunked-prefill", "reasoning", "multi-token-prediction", "expert-parallel", "structured-output"),
)
"""Columns of the vendors' feature tables."""
SHOWN: Final = 60
"""Characters of a value in a complaint at most."""
NEAR: Final = 0.88
"""How alike two names are, of 1, for the one to be a slip of the other."""


def wrong_value(name: str, value: Any) -> str | None:
    """Say what is wrong with the value of a setting that memory is reckoned from, None where nothing is or nobody knows the setting."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if plain(name) in LENGTHS:
        good = number and isinstance(value, int) and 1 <= value <= MOST
        return None if good else f"{_shown(value)} is no whole number from 1 to {MOST}"
    if plain(name) in UTILIZATION:
        return None if number and 0 < value <= 1 else f"{_shown(value)} is no share of the memory above 0 and up to 1"
    return None


def check_arguments(file: CellFile, arm: Arm, path: Path, arm_name: str) -> None:
    """Raise MatrixError with file, line and key for an argument of a cell that is the pipeline's, a secret, or has no sensible value."""
    for holder, prefix in ((file, ()), (arm, ("cells", arm_name))):
        for name, value in holder.serve.args.items():
            place = (*prefix, "serve", "args", name)
            if (ours := name.replace("_", "-")) in RESERVED_ARGUMENTS:
                raise MatrixError(f"{parse.locate(path, *place)}: is set by the pipeline", next_step=RESERVED_ARGUMENTS[ours][0])
            if SECRET_ARGUMENT.search(name):
                raise MatrixError(
                    f"{parse.locate(path, *place)}: looks like a secret: secrets come from the environment, never from YAML"
                )
            if value == "":
                raise MatrixError(f"{parse.locate(path, *place)}: is empty", next_step="write a value, or leave it out")
        for inner, value in _settings({"serve": {"args": holder.serve.args}, "engine-config": holder.engine_config}, prefix):
            if wrong := wrong_value(str(inner[-1]), value):
                raise MatrixError(f"{parse.locate(path, *inner)}: {wrong}", next_step="write it as a plain number")


def check_asked(args: Mapping[str, Any]) -> None:
    """Raise UsageError for an argument of the command line that is the pipeline's, a secret, empty, or has no sensible value."""
    for name, value in args.items():
        said = f"--set {name}={value}"[:SHOWN]
        if (ours := name.replace("_", "-").lstrip("-")) in RESERVED_ARGUMENTS:
            raise UsageError(f"{said}: is set by the pipeline", next_step=RESERVED_ARGUMENTS[ours][1])
        if SECRET_ARGUMENT.search(name):
            raise UsageError(
                f"--set {name}: looks like a secret: secrets come from the environment, never from a command line",
                next_step="put it into the environment of the server",
            )
        if name.startswith("-") or value == "":
            raise UsageError(
                f"{said}: is {'empty' if value == '' else 'no name'}", next_step="write NAME=VALUE, as max-model-len=8192"
            )
        if wrong := wrong_value(name, value):
            raise UsageError(f"{said}: {wrong}", next_step=f"write it as a plain number: --set {name}=…")


def misspelt(plan: Plan) -> Iterator[Concern]:
    """An argument that no engine is known to have, and that is nearly one of those that they have, is probably a slip."""
    for name in plan.serve.args:
        if meant := _meant(name):
            text = f"no engine is known to have the argument {name!r} (did you mean {meant!r}?)"
            yield Concern(
                rule="arguments", severity="warn", message=text, next_step="an engine refuses an argument that it does not have"
            )


def unticked(plan: Plan) -> Iterator[Concern]:
    """A feature that is nearly one of those that vendors tick is probably meant to be it."""
    for feature in plan.features:
        if feature not in FEATURES and (meant := _ticked(feature)):
            text = f"no vendor is known to tick the feature {feature!r} (did you mean {meant!r}?)"
            yield Concern(
                rule="features", severity="warn", message=text, next_step="rules that look for a feature look for its very name"
            )


@cache
def _meant(name: str) -> str:
    """Return the argument of an engine that a name is a slip of; "" for one that is known, or like none."""
    known = {plain(each): each for each in KNOWN}
    word = plain(name).removeprefix("no")
    if word in known or plain(name) in known:
        return ""
    near = difflib.get_close_matches(word, known, n=1, cutoff=NEAR)
    return known[near[0]] if near else ""


@cache
def _ticked(feature: str) -> str:
    """Return the feature that a word is a slip of; "" where it is like none."""
    near = difflib.get_close_matches(feature, FEATURES, n=1, cutoff=0.8)
    return near[0] if near else ""


def _settings(tree: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every setting that is one value, at any depth, with its place."""
    for name, value in tree.items():
        if isinstance(value, str | int | float):  # nearly all are, and to ask for a Mapping is slow
            yield (*place, name), value
        elif isinstance(value, Mapping):
            yield from _settings(value, (*place, name))
        elif not isinstance(value, list | tuple) and value is not None:
            yield (*place, name), value


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) > MOST * MOST:
        return "a number of many digits"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
