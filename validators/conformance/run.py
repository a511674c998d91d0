"""Running the checks against one server: one verdict each, within a bounded time, whatever the server does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from release.errors import ServingError, UsageError
from release.types import Status, Verdict
from release.validators.conformance.check import AbsentError, Check, DeviationError, Finding, Subject, UndecidedError
from release.validators.conformance.table import CHECKS, FEATURES, ON_REQUEST, STANDARD
from release.validators.endpoint import Endpoint, PatienceError, UnreachableError

PREFIX: Final = "conformance/"
KEY_VARIABLE: Final = "RELEASE_API_KEY"
"""The environment variable that a server's key is taken from: one of ours, so that no other server's key is sent by accident."""
STRIKES: Final = 3
"""Checks in a row that may end without an answer in time before the others are no longer asked."""
LARGEST: Final = 16 * 1024 * 1024
"""Bytes of one answer to a check."""

Progress = Callable[[int, int, str], None]
"""Hears (done, total, name of the check) before each check, and once at the end."""


def conformance(
    endpoint: Endpoint,
    *,
    max_model_len: int,
    progress: Progress,
    features: Collection[str] = (),
    max_num_seqs: int | None = None,
    soak: float = 1800.0,
) -> tuple[Verdict, ...]:
    """Check a release: return one verdict a check, named `conformance/<check>`, in the order of the table.

    Looked at is what every server has, what every release has (STANDARD), and the `features` that the plan wants; a wanted feature
    that is lacking is FAILED. What nobody wants has no verdict, so that it can neither hold up a release nor adorn it.
    `max_model_len` is the context in tokens that the server was started with. Whatever a check raises is a FAILED verdict; only a
    server that no longer answers at all ends the run, with ServingError naming the check that it died in.
    """
    wanted = STANDARD | _known(features)
    checks = {name: check for name, check in CHECKS.items() if check.feature is None or check.feature in wanted}
    verdicts, death = look_at(Subject(endpoint, max_model_len, max_num_seqs, soak), checks, wanted, progress)
    if death:
        raise death
    return verdicts


def validate(
    url: str,
    model: str,
    *,
    api_key: str | None = None,
    require: Collection[str] = (),
    select: Sequence[str] = (),
    skip: Sequence[str] = (),
    timeout: float = 60.0,
    within: float = 1800.0,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    soak: float = 1800.0,
    progress: Progress = lambda done, total, name: None,
) -> tuple[Verdict, ...]:
    """Check any server: return one verdict for each check that `select` names (shell patterns; all where there are none).

    A feature that the server lacks is SKIPPED with what the server said, and FAILED if `require` names it; so is SKIPPED what
    `skip` leaves out, and what takes long and nobody requires. `timeout` bounds each request and `within` all of them (seconds):
    what is not asked in that time is FAILED. `api_key` comes from the environment (KEY_VARIABLE) and stands in no verdict. A server
    that cannot be reached, or dies, is FAILED as well. Raises UsageError for an unknown feature or a selection without checks, and
    ServingError for an address that is none.
    """
    endpoint = Endpoint(url.rstrip("/").removesuffix("/v1"), model, api_key=api_key, read_timeout=timeout, largest=LARGEST)
    wanted = _known(require)
    checks = {name: check for name, check in CHECKS.items() if not select or _fits(name, select)}
    if not checks:
        raise UsageError(f"no check is named {', '.join(select)}", next_step=f"there are: {', '.join(CHECKS)}")
    left_out = {name: "left out as asked for" for name in checks if _fits(name, skip)}
    left_out |= {
        name: f"only where it is wanted: {FEATURES[check.feature]}"
        for name, check in checks.items()
        if check.feature in ON_REQUEST and check.feature not in wanted and name not in select and name not in left_out
    }
    if max_model_len is None:
        with contextlib.suppress(ServingError):  # the checks will say what is wrong
            max_model_len = endpoint.max_model_len()
    verdicts, _ = look_at(
        Subject(endpoint, max_model_len, max_num_seqs, soak), checks, wanted, progress, within=within, left_out=left_out
    )
    return verdicts


def look_at(
    subject: Subject,
    checks: Mapping[str, Check],
    wanted: Collection[str],
    progress: Progress,
    *,
    within: float | None = None,
    left_out: Mapping[str, str] | None = None,
) -> tuple[tuple[Verdict, ...], ServingError | None]:
    """Run checks in order; return their verdicts, and what the server died of if it did.

    Once it is dead, `within` seconds are over, or STRIKES checks in a row had no answer in time, the others are FAILED unasked. An
    engine that answers 500 as it ends and lets the next check find it dead died at the check that got the 500.
    """
    began, strikes, answered = time.monotonic(), 0, False
    over, death, shaken = "", None, ""
    verdicts = []
    for number, (name, check) in enumerate(checks.items()):
        progress(number, len(checks), name)
        if within is not None and time.monotonic() - began > within and not over:
            over = f"the {within:g} s for all checks are over"
        if left_out and name in left_out:
            found = Finding("not asked", left_out[name], status=Status.SKIPPED)
        elif over:
            found = Finding("not asked", over, status=Status.FAILED)
        else:
            found, problem = _look(check, subject, wanted)
            answered = answered or not isinstance(problem, UnreachableError | PatienceError)
            strikes = strikes + 1 if isinstance(problem, PatienceError) else 0
            if isinstance(problem, UnreachableError | PatienceError) and not _recovers(subject.endpoint):
                guilty = shaken or name
                death = ServingError(f"the server died: {problem}", where=PREFIX + guilty, next_step="its log says why")
                over = f"the server died at the check {guilty}" if answered else "the server cannot be reached"
            elif strikes == STRIKES:
                over = f"{STRIKES} checks in a row had no answer in time, the last of them {name}"
            shaken = (shaken or name) if _breaks(problem) else ""
        verdicts.append(_verdict(name, check, found, subject.endpoint))
    progress(len(checks), len(checks), "done")
    return tuple(verdicts), death


def _look(check: Check, subject: Subject, wanted: Collection[str]) -> tuple[Finding, Exception | None]:
    """Return what a check found, and what it raised."""
    status = Status.FAILED
    cause: Exception
    try:
        return check.look(subject), None
    except DeviationError as problem:
        cause, measured, reason = problem, problem.measured, problem.reason
        if isinstance(problem, UndecidedError):
            status = Status.INCONCLUSIVE
        elif isinstance(problem, AbsentError) and check.feature is not None and check.feature not in wanted:
            status = Status.SKIPPED
        elif isinstance(problem, AbsentError):
            reason = f"{reason}; {check.feature or 'this'} is wanted"
    except ServingError as problem:
        cause, reason = problem, str(problem)
        measured = "no answer" if isinstance(problem, UnreachableError | PatienceError) else "a malformed answer"
    except Exception as problem:  # a foreign answer can break a check in ways nobody thought of; the other checks still count
        cause, measured, reason = problem, "the check broke", f"{type(problem).__name__}: {problem!s:.300}"
    return Finding(measured, reason, status=status), cause


def _breaks(problem: Exception | None) -> bool:
    """Say whether a check was answered with a status of 500 or more."""
    return getattr(problem, "status", 0) >= 500 or str(getattr(problem, "measured", "")).startswith("HTTP 5")


def _verdict(name: str, check: Check, found: Finding, endpoint: Endpoint) -> Verdict:
    return Verdict(
        name=PREFIX + name,
        status=found.status,
        measured=endpoint.redact(found.measured),
        wanted=check.wanted,
        reason=endpoint.redact(found.reason),
        figures=found.figures,
    )


def _recovers(endpoint: Endpoint) -> bool:
    """Return whether the server answers within about two seconds: a dropped connection alone is not death."""
    for pause in (0.0, 0.5, 1.5):
        time.sleep(pause)
        if endpoint.alive(min(10.0, endpoint.read_timeout)):
            return True
    return False


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _known(features: Collection[str]) -> frozenset[str]:
    unknown = sorted(set(features) - FEATURES.keys())
    if unknown:
        raise UsageError(f"no server has the feature {unknown[0]!r}", next_step=f"there are: {', '.join(FEATURES)}")
    return frozenset(features)
