"""The share of a served model's operators: its server is profiled while it answers, and what the kernels room counts is our answer."""

from __future__ import annotations

import base64
import binascii
import gzip
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from release.errors import StageError, UsageError
from release.kernels.aten import read_served, together
from release.kernels.calls import EVERY_SECONDS, RECORD, read_calls, summed
from release.kernels.coverage import RULES, Coverage, Kind, Share, coverage, read_trace, recorded
from release.kernels.registry import beyond
from release.matrix.load import Matrix
from release.pipeline import Work
from release.trial import reads_serve, server_of
from release.types import JSON, Plan

if TYPE_CHECKING:
    from release.validators.serving import Server

TRACES: Final = "/tmp/release-profile"
CALLS: Final = "/tmp/release-calls"
"""Where traces and recorded calls lie in the container: its root is read-only, and /tmp is memory."""
QUESTIONS: Final = 16
LONGEST: Final = 64
AT_ONCE: Final = 8
"""Questions that are asked under the profiler, the tokens that an answer may have, and how many are in flight."""
COUNTED: Final = ("kernels of a device", "operators of a host processor")
NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,200}\.(?:json|json\.gz)|flaggems-\d{1,9}\.txt")
MOST_FILES: Final = 256
HOST: Final = re.compile(rb'("(?:host_name|traceName)"\s*:\s*)"(?:[^"\\]|\\.)*"')
PROCESS: Final = re.compile(r"^.+_\d+(?=\.)")
"""Where torch's profiler writes the host's name: in fields of a trace (the second holds the path), and at the beginning of its file's name."""


def profile(work: Work) -> str:
    """Start the image with the engine's profiler on, ask questions, and keep the traces, the recorded calls and the shares."""
    reads = work.reads
    if reads["serve"]["unknown"]:
        raise StageError(reads["serve"]["unknown"])
    if not reads["serve"]["health"] or not reads["profiler"]:
        raise StageError(
            f"nothing is known of a profiler of {reads['serve']['engine']}",
            next_step="profile the server by hand, and give the traces: release kernels coverage FOLDER",
        )
    from release.validators.endpoint import Endpoint

    server = server_of(work, work.task.key, reads["serve"])
    endpoint, prompts = Endpoint(server.url, reads["serve"]["model"]), _prompts(work)
    work.line.note("warming up")
    _ask(endpoint, prompts)  # what runs once, at the first questions, is no share of serving
    _switch(endpoint, "/start_profile")
    work.line.note(f"{len(prompts)} questions under the profiler")
    tokens = _ask(endpoint, prompts)
    _switch(endpoint, "/stop_profile")
    time.sleep(EVERY_SECONDS * 1.5)  # the last calls are written by then
    (work.out / "server.log").write_text(server.log(), encoding="utf-8")
    _fetch(server, TRACES, work.out)
    _fetch(server, CALLS, work.out)
    found, calls = measure([work.out]), _recorded(work.out)
    _leave_hosts_out(work.out)
    asked = {"questions": len(prompts), "in-flight": AT_ONCE, "max-tokens": reads["max-tokens"], "answered-tokens": tokens}
    work.write("coverage.json", {**document(found, calls), "asked": asked, "added": reads["profiler"]})
    return "Triton: " + ", ".join(f"{percent(share)} by {share.by}" for share in found.shares)


def reads_profile(plan: Plan, matrix: Matrix) -> JSON:
    """How the server is started and what is added for the profiler, and which questions are asked."""
    from release.builders.engines import engine_named

    serve = reads_serve(plan, matrix)
    added = [str(word) for word in getattr(engine_named(plan.engine), "PROFILER", ())]
    argv = [*serve["argv"], *(word.format(folder=TRACES) for word in added)]
    return {
        "serve": {**serve, "argv": argv, "serve": {**serve["serve"], "env": {**serve["serve"]["env"], RECORD: CALLS}}},
        "profiler": [word.format(folder=TRACES) for word in added],
        "questions": plan.accuracy and {name: getattr(plan.accuracy, name) for name in ("questions", "sha256", "grader")},
        "example": plan.model.example,
        "most": QUESTIONS,
        "max-tokens": LONGEST,
    }


def unprofiled(plan: Plan) -> tuple[str, ...]:
    """Return the needs that a plan spares whose share of Triton nobody asks for."""
    return () if plan.operators and plan.operators.share else ("profile",)


def unmeasured(plan: Plan) -> tuple[str, ...]:
    """Return the needs that a plan spares of which a build does not both measure the speed and profile the server.

    Where it does, the profile waits: a second server of the cell would take from the first what is measured.
    """
    return () if plan.performance and plan.operators and plan.operators.share else ("performance",)


def _prompts(work: Work) -> list[str]:
    from release.validators.questions import read_questions

    known = work.reads["questions"]
    if known is None:
        return [str(work.reads["example"])] * AT_ONCE
    asked = read_questions(work.matrix.file(known["questions"]), known["sha256"], known["grader"])
    return [question.prompt for question in asked[: work.reads["most"]]]


def _ask(endpoint: Any, prompts: Sequence[str]) -> int:
    """Ask all prompts, several in flight, and return the tokens of the answers as the server counts them."""

    def answer(prompt: str) -> int:
        usage = endpoint.chat(prompt, max_tokens=LONGEST, temperature=0, seed=0).get("usage") or {}
        return int(usage.get("completion_tokens") or 0)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(pool.map(answer, prompts))


def _switch(endpoint: Any, path: str) -> None:
    answer = endpoint.post(path, b"")
    if answer.status != 200:
        raise StageError(f"the server answered {path} with HTTP {answer.status}: {answer.quoted}")


def _fetch(server: Server, folder: str, into: Path) -> None:
    """Copy the JSON files and FlagGems' records of a folder in the server's container, in memory or on another machine, into `into`."""
    _, listed, _ = server.engine.execute(server.container, ["ls", "-1", folder])
    names = [name for name in listed.splitlines() if NAME.fullmatch(name)]
    if len(names) > MOST_FILES:
        raise StageError(f"{folder} of the container has {len(names)} files: something else writes there")
    for name in names:
        status, out, err = server.engine.execute(server.container, ["base64", "-w0", f"{folder}/{name}"])
        try:
            data = base64.b64decode(out, validate=True)
        except binascii.Error as problem:
            raise StageError(f"{folder}/{name} cannot be read out of the container: {problem}") from problem
        if status:
            raise StageError(f"{folder}/{name} cannot be read out of the container: {err.strip()[-200:]}")
        (into / name).write_bytes(data)


def _leave_hosts_out(folder: Path) -> None:
    """Take the name of the host out of traces and of their files' names: both are published as evidence.

    Of a name as torch writes it, `HOST_PID.….pt.trace.json.gz`, what distinguishes its process is its number among them.
    """
    for number, path in enumerate(profiles([folder]), 1):
        packed = path.suffix == ".gz"
        data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        data = HOST.sub(rb'\1"left out"', data)
        path.unlink()
        kept = folder / PROCESS.sub(f"process-{number}", path.name)
        kept.write_bytes(gzip.compress(data, mtime=0) if packed else data)


def _recorded(folder: Path) -> list[dict[str, Any]]:
    """Return the calls that a server's processes recorded. Raises UsageError for a file that is no such record."""
    try:
        return read_calls(folder)
    except ValueError as problem:
        raise UsageError(str(problem), next_step="give the folder that RELEASE_OPERATORS_RECORD named") from problem


def calls_of(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the calls that were recorded beside traces, in the folders among `paths`; none where nothing was."""
    return [row for path in paths if path.is_dir() for row in _recorded(path)]


def percent(share: Share) -> str:
    """Return a share as it is printed, or in a word why there is none."""
    return ("not told" if share.reason else "nothing observed") if share.share is None else f"{share.share:.1%}"


def profiles(paths: Sequence[Path]) -> list[Path]:
    """Return the traces among files and folders (`*.trace.json`, `*.trace.json.gz`). Raises UsageError where a folder has none."""
    found = []
    for path in paths:
        inside = sorted((*path.glob("*.trace.json"), *path.glob("*.trace.json.gz"))) if path.is_dir() else [path]
        if not inside:
            raise UsageError(
                f"{path} has no *.trace.json or *.trace.json.gz", next_step="profile the server: see README, Kernels"
            )
        found += inside
    return found


def measure(paths: Sequence[Path]) -> Coverage:
    """Return what the traces of one server show, and FlagGems' records beside them. Raises UsageError for what is no trace or no record."""
    try:
        served = [found for path in paths if path.is_dir() and (found := read_served(path)) is not None]
        return coverage((read_trace(path) for path in profiles(paths)), together(served) if served else None)
    except ValueError as problem:
        raise UsageError(str(problem), next_step="give what /start_profile and /stop_profile of vLLM left") from problem


def document(found: Coverage, calls: Sequence[Mapping[str, Any]] = ()) -> JSON:
    """Return a coverage, and what was recorded of calls, as JSON: no share stands in it without its definition."""
    return {
        "counted": COUNTED[not found.device],
        "rules": RULES,
        "shares": [_told(share) for share in found.shares],
        "unrecorded": list(found.unrecorded),
        "recorded": {"shares": [_told(share) for share in recorded(calls)], "calls": summed(calls), "beyond": dict(beyond())}
        if calls
        else None,
        "kinds": [
            {
                "name": kind.name,
                "library": kind.library,
                "triton": kind.triton,
                "launches": kind.launches,
                "microseconds": round(kind.time, 3),
            }
            for kind in found.kinds
        ],
    }


def _told(share: Share) -> JSON:
    told = {"by": share.by, "share": share.share, "triton": share.part, "total": share.whole, "definition": share.definition}
    return {**told, "reason": share.reason or None}


def by_library(kinds: Sequence[Kind]) -> list[tuple[str, bool, int, int, float]]:
    """Return each library with whether it is Triton, its kinds, launches and microseconds, the longest first."""
    rows: dict[str, tuple[bool, int, int, float]] = {}
    for kind in kinds:
        _, count, launches, time = rows.get(kind.library, (False, 0, 0, 0.0))
        rows[kind.library] = (kind.triton, count + bool(kind.launches), launches + kind.launches, time + kind.time)
    return sorted(((name, *row) for name, row in rows.items()), key=lambda row: -row[4])
