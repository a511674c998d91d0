"""The doctor says where a patch set applies, what it takes, which hunks fail and since when; it touches no tree."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from release.errors import PatchError
from release.oci import sha256
from release.patches.cipher import decrypting, encrypt
from release.patches.doctor import Diagnosis, diagnose
from release.patches.fit import Failure, Piece, piece, pieces_in, pieces_of
from release.patches.keys import PrivateKey
from release.patches.make import make
from release.patches.mirror import Mirror
from release.store import Store

pytestmark = pytest.mark.integration

SEALED = {
    **os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "GIT_COMMITTER_DATE": "@1793491200 +0000",
}  # fmt: skip
RENAMED = 7
"""The commit of the made-up history in which upstream renames the function that the vendor's patch changes."""
COMMITS = 12


def git(*arguments: str, cwd: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, env=SEALED, check=True, capture_output=True, text=True).stdout.strip()


def commit(root: Path, message: str) -> str:
    git("add", "-A", cwd=root)
    git("commit", "-qm", message, "--allow-empty", cwd=root)
    return git("rev-parse", "HEAD", cwd=root)


def engine(name: str, before: int = 0, space: str = "") -> str:
    lines = [f"import module_{number}\n" for number in range(before)]
    head = [f"# line {number}\n" for number in range(5)]  # a hunk at the very beginning of a file may not move
    body = [f"    step_{number}(self){space}\n" for number in range(12)]
    rest = [f"def other_{number}():\n    pass\n" for number in range(8)]
    return "".join(
        [*lines, *head, "class Engine:\n", "    kind = 1\n", *rest, f"def {name}(self):\n", *body, "def last():\n    return 0\n"]
    )


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """Return a repository of twelve commits on `main`, tagged c0 to c11; the engine changes at c3, c7 and c9 only."""
    (root := tmp_path / "upstream").mkdir()
    git("init", "-qb", "main", cwd=root)
    for number in range(COMMITS):
        (root / "lib").mkdir(exist_ok=True)
        name = "schedule" if number < RENAMED else "plan_step"
        (root / "lib" / "engine.py").write_text(engine(name, before=0 if number < 3 else 4 if number < 9 else 5))
        (root / "notes").write_text(f"{number}\n")
        commit(root, f"change {number}")
        git("tag", f"c{number}", cwd=root)
    return root


def ids(root: Path) -> list[str]:
    return [git("rev-parse", f"c{number}", cwd=root) for number in range(COMMITS)]


def patched(root: Path, *changes: tuple[str, str, str], at: str = "c0") -> bytes:
    """Return the diff that replaces text in files of a commit."""
    git("checkout", "-q", "--detach", at, cwd=root)
    for path, old, new in changes:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))
    git("add", "-A", cwd=root)
    diff = subprocess.run(["git", "diff", "--cached", "--binary"], cwd=root, env=SEALED, check=True, capture_output=True).stdout
    git("reset", "-q", "--hard", cwd=root)
    git("checkout", "-q", "main", cwd=root)
    return diff


@pytest.fixture
def vendor(upstream: Path) -> tuple[Piece, ...]:
    """Return a patch with two hunks in the engine; one stands in the function that is renamed."""
    return (
        piece(
            "0001.patch",
            patched(
                upstream, ("lib/engine.py", "kind = 1", "kind = 2"), ("lib/engine.py", "    step_0(self)", "    step_0(self, 1)")
            ),
        ),
    )


def fits(diagnosis: Diagnosis) -> list[str]:
    return [finding.fit for finding in diagnosis.findings]


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Return times and sizes of all files; git itself freshens the time of an object that it would have written anew."""
    files = ((path, path.lstat()) for path in sorted(root.rglob("*")))
    return {str(path): (0 if "objects" in path.parts else status.st_mtime_ns, status.st_size) for path, status in files}


def test_a_made_up_history_in_which_a_patch_stops_applying(tmp_path: Path, upstream: Path, vendor: tuple[Piece, ...]) -> None:
    before = snapshot(upstream)
    (scratch := tmp_path / "scratch").mkdir()
    found = diagnose(vendor, upstream, ["c0", "c5", "c6", "c7", "c11"], branch="main", scratch=scratch)
    assert fits(found) == ["clean", "clean", "clean", "fails", "fails"]
    assert [finding.commit.subject for finding in found.findings] == [f"change {number}" for number in (0, 5, 6, 7, 11)]
    assert found.findings[0].steps[0].moved == 0 and found.findings[1].steps[0].moved == 2
    header = vendor[0].changes[0].hunks[1]
    wanted = Failure("lib/engine.py", 2, 2, header, "there is no line 'def schedule(self):'")
    assert found.findings[3].steps[0].failures == found.findings[4].steps[0].failures == (wanted,)
    newest = found.newest
    assert newest and newest.finding and newest.broken_by
    assert (newest.tip.id, newest.finding.commit.id, newest.broken_by.commit.id) == tuple(ids(upstream)[at] for at in (11, 6, 7))
    assert newest.broken_by.steps[0].failures == (wanted,)
    assert (newest.commits, newest.states) == (12, 4)
    assert snapshot(upstream) == before
    assert not list(scratch.iterdir())


def test_a_range_goes_from_its_newest_commit_back_and_every_state_is_tried_once(
    upstream: Path, vendor: tuple[Piece, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from release.patches import doctor

    tried: list[str] = []
    real = doctor.try_on
    monkeypatch.setattr(doctor, "try_on", lambda *words: (tried.append(words[1]), real(*words))[1])
    found = diagnose(vendor, upstream, ["c2..main"])
    assert [finding.commit.id for finding in found.findings] == ids(upstream)[:2:-1]
    assert fits(found) == ["fails"] * 5 + ["clean"] * 4
    assert sorted(tried) == sorted(ids(upstream)[number] for number in (11, 8, 6))
    assert found.newest is None


@pytest.mark.parametrize("workers", [1, 3])
def test_bisecting_finds_what_a_scan_finds(upstream: Path, vendor: tuple[Piece, ...], workers: int) -> None:
    for number in range(40):  # every commit is a state of its own
        (upstream / "lib" / "engine.py").write_text(engine("schedule" if number < 17 else "plan_step", before=number))
        commit(upstream, f"more {number}")
    bisected = diagnose(vendor, upstream, branch="main", since="c11", workers=workers).newest
    assert bisected and not bisected.finding and "a scan tries them all" in bisected.note
    bisected = diagnose(vendor, upstream, branch="main", since="main~40", workers=workers, accept="fuzz").newest
    first = git("rev-parse", "main~39", cwd=upstream)
    bisected = diagnose(vendor, upstream, branch="main", since=first, workers=workers).newest
    scanned = diagnose(vendor, upstream, branch="main", since=first, workers=workers, search="scan").newest
    assert bisected and bisected.finding and bisected.broken_by and scanned
    assert bisected.finding.commit.subject == "more 16" and bisected.broken_by.commit.subject == "more 17"
    assert (scanned.finding, scanned.broken_by) == (bisected.finding, bisected.broken_by)
    assert scanned.proven and scanned.note == "" and scanned.tried >= 24
    assert not bisected.proven and "assumed, not tried" in bisected.note and bisected.tried <= 14


def test_where_a_patch_applies_again_only_a_scan_is_sure(upstream: Path, vendor: tuple[Piece, ...]) -> None:
    for number in range(20):
        name = "schedule" if number < 3 or number == 15 else "plan_step"
        (upstream / "lib" / "engine.py").write_text(engine(name, before=number + 6))
        commit(upstream, f"more {number}")
    since = git("rev-parse", "main~19", cwd=upstream)
    bisected = diagnose(vendor, upstream, branch="main", since=since, workers=1).newest
    scanned = diagnose(vendor, upstream, branch="main", since=since, workers=2, search="scan").newest
    assert bisected and bisected.finding and scanned and scanned.finding
    assert bisected.finding.commit.subject == "more 2" and not bisected.proven
    assert scanned.finding.commit.subject == "more 15" and scanned.proven


def test_a_good_tip_takes_one_trial_and_no_assumption(upstream: Path, vendor: tuple[Piece, ...]) -> None:
    newest = diagnose(vendor, upstream, branch="c6").newest
    assert newest and newest.finding and newest.proven
    assert (newest.finding.commit, newest.tried, newest.note, newest.broken_by) == (newest.tip, 1, "", None)


def test_a_set_that_applies_nowhere_says_so(upstream: Path) -> None:
    nowhere = (piece("x.patch", b"diff --git a/none b/none\n--- a/none\n+++ b/none\n@@ -1 +1 @@\n-a\n+b\n"),)
    for search in ("bisect", "scan"):
        newest = diagnose(nowhere, upstream, branch="main", search=search).newest
        assert newest and newest.finding is None and newest.broken_by is None and newest.proven
        assert "applies at none of the commits" in newest.note and newest.commits == 12


def test_what_it_takes_is_named(upstream: Path) -> None:
    """Base of each: the engine of c0. What is tried: the same with spaces at the ends of lines, other context, or a three-way merge."""
    changes = [("lib/engine.py", f"    step_{number}(self)", f"    step_{number}(self, 1)") for number in (6, 8)]
    patch = (piece("a.patch", patched(upstream, *changes)),)
    cases = {
        "spaces": engine("schedule", space="  "),
        "tabs": engine("schedule").replace("    step_", "\tstep_"),
        "outer": engine("schedule").replace("    step_3", "    STEP_3"),
        "near": engine("schedule").replace("    step_4", "    STEP_4"),
        "merge": engine("schedule").replace("    step_8(self)", "    step_8(self, 1)"),
        "both": engine("schedule").replace("    step_6(self)", "    step_6(self, 2)"),
    }
    for name, text in cases.items():
        git("checkout", "-q", "--detach", "c0", cwd=upstream)
        (upstream / "lib" / "engine.py").write_text(text)
        commit(upstream, name)
        git("tag", name, cwd=upstream)
    found = diagnose(patch, upstream, ["c0", *cases])
    assert [(finding.fit, finding.steps[0].way) for finding in found.findings[:6]] == [
        ("clean", ""),
        ("whitespace", "--whitespace=fix"),
        ("whitespace", "--ignore-whitespace"),
        ("fuzz", "-C2"),
        ("fuzz", "-C1"),
        ("fuzz", "--3way"),
    ]
    assert found.findings[6].fit == "fails"
    assert found.findings[6].steps[0].failures[0].reason == "there is no line 'step_6(self)'"
    assert diagnose(patch, upstream, branch="near", accept="whitespace").newest.finding.commit.subject == "change 0"  # type: ignore[union-attr]
    assert diagnose(patch, upstream, branch="near", accept="fuzz").newest.finding.commit.subject == "near"  # type: ignore[union-attr]


def test_a_patch_with_blanks_at_line_ends_that_needs_fixing_is_told_from_one_that_fits(upstream: Path) -> None:
    git("checkout", "-q", "--detach", "c0", cwd=upstream)
    (upstream / "lib" / "engine.py").write_text(engine("schedule", space="  "))
    commit(upstream, "with blanks")
    git("tag", "blanks", cwd=upstream)
    patch = (piece("a.patch", patched(upstream, ("lib/engine.py", "    step_6(self)", "    step_6(self, 1)"), at="blanks")),)
    found = diagnose(patch, upstream, ["blanks", "c0"])
    assert [(finding.fit, finding.steps[0].way) for finding in found.findings] == [
        ("clean", ""),
        ("whitespace", "--whitespace=fix"),
    ]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Return a repository with two commits, tagged old and new, that differ in every way that can stop a patch."""
    (root := tmp_path / "mixed").mkdir()
    git("init", "-qb", "main", cwd=root)
    for folder in ("deep/er", "plain"):
        (root / folder).mkdir(parents=True)
    (root / "deep" / "er" / 'the "file" ä').write_text("".join(f"{number}\n" for number in range(60)))
    (root / "gone").write_text("1\n2\n3\n")
    (root / "moved").write_text("".join(f"m{number}\n" for number in range(30)))
    (root / "bin").write_bytes(b"\0" + bytes(range(200)))
    (root / "plain" / "same").write_text("x\n")
    commit(root, "old")
    git("tag", "old", cwd=root)
    text = (root / "deep" / "er" / 'the "file" ä').read_text().replace("\n31\n", "\nthirty-one\n").replace("\n0\n1\n", "\n1\n")
    (root / "deep" / "er" / 'the "file" ä').write_text(text)
    (root / "gone").unlink()
    (root / "moved").rename(root / "elsewhere")
    (root / "bin").write_bytes(b"\0other")
    (root / "new").write_text("already here\n")
    commit(root, "new")
    git("tag", "new", cwd=root)
    return root


def all_at_once(root: Path) -> bytes:
    git("checkout", "-q", "--detach", "old", cwd=root)
    file = root / "deep" / "er" / 'the "file" ä'
    file.write_text(file.read_text().replace("\n5\n", "\nfive\n").replace("\n30\n", "\nthirty\n").replace("\n50\n", "\nfifty\n"))
    (root / "gone").write_text("1\ntwo\n3\n")
    git("mv", "moved", "moved here", cwd=root)
    with (root / "moved here").open("a") as stream:
        stream.write("more\n")
    (root / "bin").write_bytes(b"\0" + bytes(range(100)))
    (root / "new").write_text("new\n")
    (root / "plain" / "same").write_text("y\n")
    git("add", "-A", cwd=root)
    diff = subprocess.run(
        ["git", "diff", "--cached", "--binary", "-M"], cwd=root, env=SEALED, check=True, capture_output=True
    ).stdout
    git("reset", "-q", "--hard", cwd=root)
    return diff


def test_every_hunk_and_file_that_fails_is_listed_and_no_other(mixed: Path) -> None:
    found = diagnose([piece("all.patch", all_at_once(mixed))], mixed, ["old", "new"])
    assert fits(found) == ["clean", "fails"]
    listed = {(failure.path, failure.hunk, failure.hunks): failure.reason for failure in found.findings[1].steps[0].failures}
    assert listed == {
        ('deep/er/the "file" ä', 2, 3): "there is no line '31'",
        ("gone", 0, 1): "does not exist in index",
        ("moved here", 0, 1): "does not exist in index",
        ("bin", 0, 0): "its content is not the one that the change was made for",
        ("new", 0, 1): "already exists in index",
    }


def test_later_patches_are_judged_by_themselves_and_failures_that_may_follow_are_marked(mixed: Path) -> None:
    def on_top(old: str, new: str) -> bytes:
        return f"diff --git a/{old} b/{old}\n--- a/{old}\n+++ b/{old}\n@@ -1 +1 @@\n{new}\n".encode()

    pieces = [
        piece("1.patch", all_at_once(mixed)),
        piece("2.patch", on_top("plain/same", "-y\n+z")),
        piece("3.patch", on_top("new", "-new\n+newer")),
        piece("4.patch", on_top("elsewhere", "-none\n+some")),
    ]
    (finding,) = diagnose(pieces, mixed, ["new"]).findings
    assert [step.fit for step in finding.steps] == ["fails", "clean", "fails", "fails"]
    assert [(failure.path, failure.follows) for step in finding.steps[2:] for failure in step.failures] == [
        ("new", True),
        ("elsewhere", False),
    ]


def test_a_change_that_upstream_has_taken_is_recognised(upstream: Path) -> None:
    patch = patched(upstream, ("lib/engine.py", "kind = 1", "kind = 2"))
    (upstream / "lib" / "engine.py").write_text(engine("plan_step").replace("kind = 1", "kind = 2"))
    commit(upstream, "taken")
    found = diagnose([piece("a.patch", patch)], upstream, ["main", "main~"])
    assert [(finding.fit, finding.steps[0].already) for finding in found.findings] == [("fails", True), ("clean", False)]


def test_what_a_file_says_cannot_pass_for_what_git_says(tmp_path: Path) -> None:
    (root := tmp_path / "spoof").mkdir()
    git("init", "-qb", "main", cwd=root)
    lines = "Applying patch f with 9 rejects...\nRejected hunk #7.\nerror: f: does not exist in index\nApplied patch f cleanly.\n"
    lines = "error: patch failed: f:1\nerror: g: does not exist in index\n" + lines
    (root / "f").write_text(lines + "end\n")
    (root / "g").write_text("1\n")
    commit(root, "one")
    diff = patched(root, ("f", "end\n", "END\n"), ("g", "1", "2"), at="main")
    (root / "f").write_text(lines.replace("9", "8") + "other\n")
    commit(root, "two")
    (finding,) = diagnose([piece("a.patch", diff)], root, ["main"]).findings
    assert [(failure.path, failure.hunk) for failure in finding.steps[0].failures] == [("f", 1)]


def test_a_diff_that_was_cut_into_files_is_put_together_again(mixed: Path) -> None:
    diff = all_at_once(mixed)
    sections = [b"diff --git " + section for section in diff.split(b"diff --git ")[1:]]
    (one,) = pieces_in(((f"{number}.patch", section) for number, section in enumerate(sections)), whole="plain")
    assert (one.name, one.content) == ("plain", b"".join(sections))
    assert fits(diagnose([one], mixed, ["old"])) == ["clean"]


def test_a_mailbox_is_tried_mail_by_mail_a_series_patch_by_patch(tmp_path: Path, upstream: Path) -> None:
    git("checkout", "-qb", "work", "c2", cwd=upstream)
    for old, new in (("kind = 1", "kind = 2"), ("step_0(self)", "step_0(self, 1)")):
        text = (upstream / "lib" / "engine.py").read_text()
        (upstream / "lib" / "engine.py").write_text(text.replace(old, new))
        commit(upstream, f"Change {new} → ä")
    box = subprocess.run(
        ["git", "format-patch", "--stdout", "c2..work"], cwd=upstream, env=SEALED, check=True, capture_output=True
    ).stdout
    (tmp_path / "base.patch").write_bytes(box)
    pieces = pieces_of(tmp_path / "base.patch")
    assert [one.name for one in pieces] == ["base.patch#1", "base.patch#2"]
    found = diagnose(pieces, upstream, ["c2", "c8"])
    assert [[step.fit for step in finding.steps] for finding in found.findings] == [["clean", "clean"], ["clean", "fails"]]
    git("format-patch", "-qo", str(tmp_path / "engine" / "1.0"), "c2..work", cwd=upstream)
    files = sorted((tmp_path / "engine" / "1.0").iterdir())
    (tmp_path / "engine" / "1.0" / "series").write_text("".join(f"{file.name} {sha256(file.read_bytes())}\n" for file in files))
    series = pieces_of(tmp_path / "engine" / "1.0")
    assert [one.name for one in series] == [file.name for file in files]
    assert [[step.fit for step in finding.steps] for finding in diagnose(series, upstream, ["c2", "c8"]).findings] == [
        ["clean", "clean"],
        ["clean", "fails"],
    ]


def test_encrypted_patches_are_opened_and_none_of_their_lines_quoted(
    tmp_path: Path, upstream: Path, vendor: tuple[Piece, ...], key: PrivateKey
) -> None:
    (tmp_path / "a.patch.encrypted").write_bytes(encrypt(vendor[0].content, [key.public]))
    with pytest.raises(PatchError, match="no key is at hand") as caught:
        pieces_of(tmp_path / "a.patch.encrypted")
    assert caught.value.next_step
    (one,) = pieces_of(tmp_path / "a.patch.encrypted", decrypting(lambda: key))
    assert one.secret and one.content == vendor[0].content
    assert pieces_in([("b", (tmp_path / "a.patch.encrypted").read_bytes())], decrypting(lambda: key))[0].secret
    found = diagnose([one], upstream, ["c7"])
    assert fits(found) == ["fails"]
    assert "schedule" not in str(asdict(found.findings[0])) and "schedule" not in repr(one)


@pytest.mark.parametrize("form", ["bare", "mirror", "worktree", "shallow"])
def test_any_repository_can_be_asked(tmp_path: Path, upstream: Path, vendor: Sequence[Piece], form: str) -> None:
    place = tmp_path / "place"
    if form == "worktree":
        git("worktree", "add", "-q", "--detach", str(place), "c5", cwd=upstream)
    elif form == "shallow":
        git("clone", "-q", "--depth=3", upstream.as_uri(), str(place), cwd=tmp_path)
    else:
        git("clone", "-q", "--mirror", str(upstream), str(place / "git" if form == "mirror" else place), cwd=tmp_path)
    wanted = ["HEAD"] if form == "shallow" else ["c5", "main", "HEAD"]
    found = diagnose(vendor, place, wanted, branch="HEAD")
    assert found.findings[-1].commit.id == git("rev-parse", "HEAD", cwd=place / "git" if form == "mirror" else place)
    assert found.newest and found.newest.commits == {"shallow": 3, "worktree": 6}.get(form, COMMITS)


def test_what_is_needed_is_brought_before_a_commit_is_tried(upstream: Path, vendor: Sequence[Piece]) -> None:
    brought: list[tuple[str, tuple[str, ...]]] = []
    diagnose(vendor, upstream, ["c1", "c2"], bring=lambda id, paths: brought.append((id, tuple(paths))))
    assert sorted(brought) == sorted((id, ("lib/engine.py",)) for id in ids(upstream)[1:3])


def test_a_mirror_of_the_store_gets_the_files_that_are_needed_and_no_others(
    tmp_path: Path, upstream: Path, vendor: Sequence[Piece]
) -> None:
    (upstream / "other").write_text("never asked for\n")
    commit(upstream, "other")
    for name in ("allowFilter", "allowAnySHA1InWant"):
        git("config", f"uploadpack.{name}", "true", cwd=upstream)
    kept = Mirror(Store(tmp_path / "store"), str(upstream))
    tip = kept.commit("main")
    with pytest.raises(PatchError, match=r"lacks the content of 'lib/engine\.py'"):
        diagnose(vendor, kept.folder, [tip])
    found = diagnose(vendor, kept.folder, [tip], branch=tip, bring=kept.bring)
    assert found.newest and found.newest.finding and found.newest.finding.commit.subject == "change 6"
    missing = kept.repository.run("rev-list", "--objects", "--missing=print", "--no-walk", tip)
    assert missing.count("?") == 2  # `notes` and `other`
    (tree := tmp_path / "tree").mkdir()
    for path in ("notes", "other", "lib/engine.py"):
        (tree / path).parent.mkdir(exist_ok=True)
        (tree / path).write_text((upstream / path).read_text() + ("more\n" if path == "notes" else ""))
    made = make(tree, tip, tmp_path / "engine" / "1.0", repository=kept.folder, bring=kept.bring)
    assert made.changed == ("notes",)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"commits": ["nothing"]}, "there is no commit 'nothing'"),
        ({"commits": ["c1..nothing"]}, "there is no commit 'nothing'"),
        ({"commits": ["c1...c2"]}, "is no range"),
        ({"commits": ["..c2"]}, "is no range"),
        ({"commits": ["--all"]}, "there is no commit"),
        ({"commits": ["c3..c1"]}, r"there are no commits in c3\.\.c1"),
        ({"branch": "nothing"}, "there is no commit 'nothing'"),
        ({"branch": "main", "since": "nothing"}, "there is no commit 'nothing'"),
        ({"branch": "main", "search": "guess"}, "there is no search"),
        ({"branch": "main", "accept": "fails"}, "there is no search"),
    ],
)
def test_what_does_not_exist_is_refused(
    upstream: Path, vendor: Sequence[Piece], options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(PatchError, match=complaint):
        diagnose(vendor, upstream, **options)  # type: ignore[arg-type]


def test_no_repository_no_patch_and_no_set_are_refused(tmp_path: Path, upstream: Path, vendor: Sequence[Piece]) -> None:
    with pytest.raises(PatchError, match="there is no git repository"):
        diagnose(vendor, tmp_path, ["HEAD"])
    with pytest.raises(PatchError, match="no patch to try"):
        diagnose([], upstream, ["HEAD"])
    with pytest.raises(PatchError, match="there is no series"):
        pieces_of(upstream)
    with pytest.raises(PatchError, match="cannot be read"):
        pieces_of(tmp_path / "nothing")
    (tmp_path / "prose").write_text("hello\n")
    with pytest.raises(PatchError, match="changes nothing"):
        pieces_of(tmp_path / "prose")
    shutil.copyfile(tmp_path / "prose", tmp_path / "x.patch")
    (tmp_path / "x.patch").write_text("diff --git a/../x b/../x\nold mode 100644\nnew mode 100755\n")
    with pytest.raises(PatchError, match="leaves the tree"):
        pieces_of(tmp_path / "x.patch")


def test_a_repositorys_hooks_and_configuration_run_nothing(tmp_path: Path, upstream: Path, vendor: Sequence[Piece]) -> None:
    trap = f"touch {tmp_path}/ran; cat"
    for name in (
        "core.fsmonitor",
        "uploadpack.packObjectsHook",
        "core.pager",
        "diff.external",
        "merge.evil.driver",
        "core.editor",
    ):
        git("config", name, trap, cwd=upstream)
    (upstream / ".git" / "info" / "attributes").write_text("* merge=evil diff=evil filter=evil\n")
    (tmp_path / "ran").unlink(missing_ok=True)
    assert fits(diagnose(vendor, upstream, ["c0", "c7"], branch="main")) == ["clean", "fails"]
    assert not (tmp_path / "ran").exists()
