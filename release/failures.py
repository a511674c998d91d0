"""What kind of failure it is, by evidence: the stage, the error, and what logs say; every finding quotes the words that it rests on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from release.types import JSON, family

KINDS: Final = ("infrastructure", "build", "start-up", "conformance", "consistency", "accuracy", "performance", "flaky")
ON_DEVICE: Final = ("start-up", "conformance", "consistency", "accuracy", "performance")
"""Kinds for which an operator or a chip may be to blame: not before a control cell was run."""
QUOTED: Final = 160
"""Characters of evidence that are quoted."""

ERROR: Final = r"(?<!`)\b[A-Z]\w*(?-i:Error|Exception): (?!Engine core initialization failed)[^\n]{1,300}"
"""How Python tells an error in a log, but for the one by which vLLM says that another process had one, and those that a warning quotes."""

SUPPLY: Final = ("fetch", "unpatch", "wheels", "base", "checkpoint", "weights", "render", "image", "card", "publish")
BY_STAGE: Final = {
    **dict.fromkeys(SUPPLY, "build"),
    "serve": "start-up",
    "conformance": "conformance",
    **dict.fromkeys(("trace", "consistency"), "consistency"),
    **dict.fromkeys(("accuracy", "compare", "benchmarks", "settle"), "accuracy"),
    **dict.fromkeys(("performance", "profile", "judge"), "performance"),
}
"""What a failure is where no sign says more."""
SERVED: Final = ("serve", "conformance", "trace", "consistency", "accuracy", "benchmarks", "performance", "profile")
"""Stages that ask a server, and start it where it does not run yet."""
BY_ERROR: Final = {
    **dict.fromkeys(("StoreError", "EngineError", "HostError", "StagingError"), "infrastructure"),
    **dict.fromkeys(("UnreachableError", "PatienceError"), "start-up"),
}
"""What a failure is by its error: a server that does not stay up says nothing of what it was asked."""


@dataclass(frozen=True)
class Sign:
    """Words in an error or a log that tell what kind of failure it is; `stages` are those in which they mean that (all, if none). A group
    `said` is what is quoted, where that is not all of it.
    """

    kind: str
    name: str
    pattern: re.Pattern[str]
    stages: tuple[str, ...] = ()


def _sign(kind: str, name: str, pattern: str, *stages: str) -> Sign:
    return Sign(kind, name, re.compile(pattern, re.IGNORECASE), stages)


SIGNS: Final = (
    _sign("start-up", "shared memory full", r"/dev/shm[^\n]*no space left|no space left[^\n]*/dev/shm", *SERVED),
    _sign("infrastructure", "disk full", r"no space left on (the )?(device|disk)|disk quota exceeded|ENOSPC"),
    _sign(
        "infrastructure",
        "device lost",
        r"device (was |is |has been )?lost|fell off the bus|uncorrectable ecc|device heartbeat|lease .{0,60}(expired|lost)|no such device",
    ),
    _sign(
        "infrastructure", "killed by the host", r"oom[-_ ]?kill|killed process \d+|ended with status 137|exit (code|status) 137"
    ),
    _sign(
        "infrastructure",
        "network",
        r"connection (refused|reset|aborted)|timed? ?out|name resolution|could not resolve|network is unreachable|no route to host"
        r"|(429|502|503|504) (too many|bad gateway|service|gateway)",
        *("fetch", "wheels", "base", "checkpoint", "image", "publish"),
    ),
    _sign("infrastructure", "not installed here", r"[^\n]*\b(is not installed|needs the extra)\b[^\n]*", *SUPPLY),
    _sign(
        "infrastructure", "container engine", r"cannot connect to the .{0,20}daemon|container engine .{0,40}(missing|not running)"
    ),
    _sign("infrastructure", "host lost", r"host .{0,60}(unreachable|died|is gone)|node .{0,40}(died|lost)|ssh: connect to host"),
    _sign("build", "pin unknown", r"is unknown|is not pinned|not pinned file by file", *SUPPLY),
    _sign("build", "digest differs", r"the lock says|hash(es)? do(es)? not match|digest mismatch|is not the pinned", *SUPPLY),
    _sign("build", "patch", r"patch .{0,80}(does not|failed to) apply|hunk .{0,40}failed", "unpatch"),
    _sign(
        "start-up", "device memory", r"out of memory|OutOfMemoryError|larger than the (available|maximum).{0,60}cache", *SERVED
    ),
    _sign(
        "start-up",
        "import",
        r"(ModuleNotFound|Import)Error[^\n]*|undefined symbol[^\n]*|cannot open shared object file[^\n]*",
        *SERVED,
    ),
    _sign("start-up", "arguments", r"unrecognized arguments[^\n]*|invalid choice[^\n]*|no such option[^\n]*", *SERVED),
    _sign("start-up", "not ready in time", r"was not healthy after \d+ s", *SERVED),
    _sign("start-up", "error in its log", rf"the server (ended|died)(?s:.*?)(?P<said>{ERROR})", *SERVED),
    _sign("start-up", "server died", r"the server died", *SERVED),
)
"""Looked for in this order; the first that is found tells."""


@dataclass(frozen=True)
class Failure:
    """What kind of failure a cell met in which stage, by which sign, with the words that say so; `cause` is alike for equal causes."""

    kind: str
    sign: str
    stage: str
    evidence: str
    cause: str
    key: str = ""


def failures_of(fate: JSON) -> list[Failure]:
    """Return how a cell failed, as a run's journal tells it: a failed stage, or each verdict that blocks it; empty for one that did not."""
    if fate.get("reason") and fate.get("state") != "refused":
        return [_of_stage(fate)]
    return [_of_verdict(verdict) for verdict in fate.get("verdicts") or () if verdict.get("status") == "FAILED"]


def _of_stage(fate: JSON) -> Failure:
    stage, reason, key = (str(fate.get(name) or "") for name in ("stage", "reason", "key"))
    said = f"{reason}\n{fate.get('detail') or ''}"
    for sign in SIGNS:
        if (not sign.stages or stage in sign.stages) and (found := sign.pattern.search(said)):
            cause = found.groupdict().get("said")
            start, end = found.span("said" if cause else 0)
            line = said[said.rfind("\n", 0, start) + 1 : end]  # what comes after the sign differs from cell to cell
            return Failure(sign.kind, sign.name, stage, _around(said, start, end), alike(cause or line), key)
    error = str(fate.get("error") or "")
    kind = BY_ERROR.get(error) or BY_STAGE.get(stage, "build")
    return Failure(kind, error or "stage", stage, _short(reason), alike(reason), key)


def _of_verdict(verdict: JSON) -> Failure:
    name = str(verdict.get("name"))
    kind = {"operators": "conformance"}.get(family(name), family(name))
    words = f"{name}: {verdict.get('measured')}, wanted {verdict.get('wanted')}"
    return Failure(kind, "verdict", name, _short(words), name)


def _around(text: str, start: int, end: int) -> str:
    """Return the line in which a sign stands, from what comes before it to what comes after."""
    last = text.find("\n", end)
    return _short(text[text.rfind("\n", 0, start) + 1 : last if last >= 0 else len(text)].strip())


def _short(text: str) -> str:
    return text if len(text) <= QUOTED else text[: QUOTED - 1] + "…"


def alike(text: str) -> str:
    """Return a message without what differs from cell to cell: ids of cells, digests, addresses, paths, numbers."""
    for pattern, word in (
        (r"[a-z0-9.-]+/[a-z0-9.-]+@[a-z0-9]+(~[a-z0-9.-]+)?", "CELL"),
        (r"\b(sha256:)?[0-9a-f]{8,64}\b…?", "DIGEST"),
        (r"0x[0-9a-f]+", "ADDRESS"),
        (r"(/[\w.+-]+){2,}", "PATH"),
        (r"\d+(\.\d+)?", "N"),
    ):
        text = re.sub(pattern, word, text)
    return text
