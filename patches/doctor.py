"""Where a patch set applies: over a list or a range of commits, and the newest commit of a branch at which it still does."""

from __future__ import annotations

import contextlib
import os
import queue
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from release.errors import PatchError, RequestError
from release.patches.borrow import Bring, borrowed, commit_id, git_directory
from release.patches.fit import CLEAN, FITS, Piece, Step, try_on, worst
from release.patches.git import Repository

BISECT: Final = "bisect"
SCAN: Final = "scan"
SEARCHES: Final = (BISECT, SCAN)
MOST_COMMITS: Final = 100_000
MOST_FINDINGS: Final = 5_000
"""Commits that a table may have."""


@dataclass(frozen=True)
class Commit:
    """A commit as a table shows it: full id, date of committing (YYYY-MM-DD), first line of its message."""

    id: str
    date: str
    subject: str


@dataclass(frozen=True)
class Finding:
    """How the set fits one commit: the worst of its steps, and the steps, one for each patch."""

    commit: Commit
    fit: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Newest:
    """The newest commit of a branch, along its first parents, at which the set applies.

    `finding` is that commit's, None where none was found; `broken_by` is the finding of the next newer commit, at which it does not
    apply any more, None where the tip itself is good. Both were tried. `proven` says whether every newer state of the touched files
    was tried too. Where it is False, a bisection assumed that the set, once it does not apply, applies at no newer commit; `note`
    says so. `commits` is the number of commits looked at, `states` in how many different states they have the touched files, `tried`
    how many of these were tried.
    """

    tip: Commit
    finding: Finding | None
    broken_by: Finding | None
    search: str
    proven: bool
    note: str
    commits: int
    states: int
    tried: int


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found: the patches that were tried, the findings in the order asked for, and the newest commit if asked for."""

    patches: tuple[str, ...]
    findings: tuple[Finding, ...]
    newest: Newest | None

    def worse(self, wanted: str) -> tuple[Finding, ...]:
        """Return the findings that are worse than `wanted`, one of FITS."""
        return tuple(finding for finding in self.findings if not _good(finding, wanted))


@dataclass(frozen=True)
class _State:
    """A run of commits along first parents, newest first, between which no touched file changes: what fits one fits all."""

    commits: tuple[Commit, ...]


def diagnose(
    pieces: Sequence[Piece],
    place: Path,
    commits: Sequence[str] = (),
    *,
    branch: str = "",
    since: str = "",
    search: str = BISECT,
    accept: str = CLEAN,
    workers: int = 0,
    bring: Bring | None = None,
    scratch: Path | None = None,
) -> Diagnosis:
    """Try the pieces on commits of the repository at `place`: a checkout, a bare repository, a mirror. Nothing in it is written.

    `commits` are revisions and ranges `A..B` (the commits after A up to B along first parents, newest first). `branch` asks for
    the newest commit at which the set applies with `accept` (one of FITS but the last) or better, not looked for before `since`: by
    bisection, which tries few commits and assumes that what stopped applying never applies again, or by a scan, which tries every
    state of the touched files from the newest on and assumes nothing. Commits between which no touched file changes count as one.
    Work is done in `workers` threads (0: one for each core), in private repositories under `scratch`.
    Raises PatchError for a repository, commit or range that does not exist.
    """
    if search not in SEARCHES or accept not in FITS[:-1]:
        raise PatchError(f"there is no search {search!r} for {accept!r}", next_step=f"search: {SEARCHES}; accept: {FITS[:-1]}")
    if not pieces:
        raise PatchError("there is no patch to try")
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=scratch) as folder:
        practice = _Practice(Path(folder), place, pieces, workers or os.cpu_count() or 1, bring)
        try:
            findings = tuple(practice.examined(commits))
            newest = practice.newest(branch, since, search, accept) if branch else None
        finally:
            practice.close()
    return Diagnosis(tuple(one.name for one in pieces), findings, newest)


class _Practice:
    """The repositories in which commits are tried, one for each thread, and what was found so far."""

    def __init__(self, folder: Path, place: Path, pieces: Sequence[Piece], workers: int, bring: Bring | None) -> None:
        self._folder, self._pieces, self._bring, self._workers = folder, pieces, bring, workers
        self._paths = sorted({path for one in pieces for path in one.touched})
        (folder / "names").mkdir()
        self._names = borrowed(folder / "names", place, str(place))
        self._objects = git_directory(place, str(place)) / "objects"
        self._free: queue.SimpleQueue[Repository] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(workers, "doctor")
        self._known: dict[str, Finding] = {}

    def close(self) -> None:
        """Wait for what runs, and begin nothing more."""
        self._threads.shutdown(cancel_futures=True)

    def examined(self, revisions: Sequence[str]) -> list[Finding]:
        """Return a finding for each commit that the revisions and ranges name; a range is tried once for each state."""
        states: list[_State] = []
        for revision in revisions:
            old, mark, new = revision.partition("..")
            if mark and (not old or not new or new.startswith(".")):
                raise RequestError(
                    f"{revision!r} is no range A..B", where=self._names.name, next_step="write both ends and two dots"
                )
            found = self._states(new, old) if mark else [_State((self._commit(commit_id(self._names, revision)),))]
            if not found:
                raise RequestError(
                    f"there are no commits in {revision}",
                    where=self._names.name,
                    next_step="write the older end of the range first",
                )
            states += found
        if (count := sum(len(state.commits) for state in states)) > MOST_FINDINGS:
            raise RequestError(
                f"{count} commits are more than a table holds",
                where=self._names.name,
                next_step="name a shorter range, or a branch",
            )
        tried = self._tried([state.commits[0] for state in states])
        return [replace(finding, commit=commit) for finding, state in zip(tried, states, strict=True) for commit in state.commits]

    def newest(self, branch: str, since: str, search: str, accept: str) -> Newest:
        """Search a branch."""
        states = self._states(branch, since, inclusive=True)
        good = self._scanned(states, accept) if search == SCAN else self._bisected(states, accept)
        heads = [state.commits[0] for state in states]
        tried = [head.id in self._known for head in heads]
        proven = all(tried[:good] if good is not None else tried)
        where = f"in the {sum(map(len, (state.commits for state in states)))} commits from {heads[0].id[:8]} back"
        note = "" if good is not None else f"the set applies at none of the commits tried {where}"
        if good is not None and not proven:
            note = "bisected: that it applies at no newer commit is assumed, not tried; a scan tries them all"
        if good is None and not proven:
            note += "; the oldest of them does not take it, so there is nothing to bisect: a scan tries them all"
        return Newest(
            tip=heads[0],
            finding=self._known[heads[good].id] if good is not None else None,
            broken_by=self._breaker(states, good) if good else None,
            search=search,
            proven=proven,
            note=note,
            commits=sum(len(state.commits) for state in states),
            states=len(states),
            tried=sum(tried),
        )

    def _breaker(self, states: Sequence[_State], good: int) -> Finding:
        """Return the finding of the state after the good one, at its oldest commit: the one that made the change."""
        newer = states[good - 1]
        return replace(self._known[newer.commits[0].id], commit=newer.commits[-1])

    def _scanned(self, states: Sequence[_State], accept: str) -> int | None:
        """Return the first good state, having tried all before it."""
        for start in range(0, len(states), self._workers):
            batch = states[start : start + self._workers]
            for place, finding in enumerate(self._tried([state.commits[0] for state in batch]), start):
                if _good(finding, accept):
                    return place
        return None

    def _bisected(self, states: Sequence[_State], accept: str) -> int | None:
        """Return a good state whose newer neighbour is bad, or 0; None where the oldest is bad, and the tip too."""

        def good(place: int) -> bool:
            return _good(self._tried([states[place].commits[0]])[0], accept)

        if good(0):
            return 0
        if len(states) == 1 or not good(len(states) - 1):
            return None
        bad, fine = 0, len(states) - 1
        while fine - bad > 1:
            count = min(self._workers, fine - bad - 1)
            places = [bad + (fine - bad) * (number + 1) // (count + 1) for number in range(count)]
            found = self._tried([states[place].commits[0] for place in places])
            first = next((place for place, finding in zip(places, found, strict=True) if _good(finding, accept)), fine)
            bad, fine = max((place for place in places if place < first), default=bad), first
        return fine

    def _tried(self, commits: Sequence[Commit]) -> list[Finding]:
        """Try commits side by side; none is tried twice."""
        new = {commit.id: commit for commit in commits if commit.id not in self._known}
        self._known |= dict(zip(new, self._threads.map(self._try, new.values()), strict=True))
        return [self._known[commit.id] for commit in commits]

    def _try(self, commit: Commit) -> Finding:
        if self._bring:
            self._bring(commit.id, self._paths)
        with self._repository() as repository:
            steps = try_on(repository, commit.id, self._pieces)
        return Finding(commit, worst([step.fit for step in steps]), steps)

    @contextlib.contextmanager
    def _repository(self) -> Iterator[Repository]:
        """Lend a repository that nobody else uses meanwhile."""
        try:
            repository = self._free.get_nowait()
        except queue.Empty:
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            repository = Repository.create(folder, self._names.name, objects=[self._objects])
        try:
            yield repository
        finally:
            self._free.put(repository)

    def _states(self, new: str, old: str, *, inclusive: bool = False) -> list[_State]:
        """Return the states of the touched files, newest first, along the first parents of `new` back to `old`."""
        tip, past = commit_id(self._names, new), commit_id(self._names, old) if old else ""
        commits = self._listed(tip, f"^{past}" if past else "")
        if past and inclusive:
            commits.append(self._commit(past))
        if len(commits) > MOST_COMMITS:
            raise RequestError(f"more than {MOST_COMMITS} commits", where=self._names.name, next_step="name a shorter history")
        given = os.fsencode("\n".join([tip, *([f"^{past}"] if past else []), "--", *self._paths, ""]))
        changing = set(self._names.run("--literal-pathspecs", "rev-list", "--first-parent", "--stdin", given=given).split())
        states: list[_State] = []
        current: list[Commit] = []
        for commit in commits:
            current.append(commit)
            if commit.id in changing:
                states.append(_State(tuple(current)))
                current = []
        if current:
            states.append(_State(tuple(current)))
        return states

    def _commit(self, id: str) -> Commit:
        return self._listed(id, "--no-walk")[0]

    def _listed(self, *which: str) -> list[Commit]:
        """Return commits along first parents, newest first, at most one more than is allowed."""
        form = (
            "--first-parent",
            f"--max-count={MOST_COMMITS + 1}",
            "--format=%H%x00%cs%x00%s%x00",
            "--no-color",
            "--no-show-signature",
        )
        fields = self._names.run("log", *form, *filter(None, which), "--").split("\0")
        subjects = ("".join(char if char.isprintable() else "�" for char in subject) for subject in fields[2::3])
        return [
            Commit(id.strip(), date, subject) for id, date, subject in zip(fields[0::3], fields[1::3], subjects, strict=False)
        ]


def _good(finding: Finding, accept: str) -> bool:
    return FITS.index(finding.fit) <= FITS.index(accept)
