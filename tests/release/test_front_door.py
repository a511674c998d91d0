"""However a command ends, it ends with one message that is true: what the system refuses, Ctrl-C, and files that are something else."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command import release

from release import cli
from release.errors import ReleaseError
from release.show.sources import imported


def failing(problem: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Return exit code and message of a command line that ends with `problem`."""

    def end(**how: object) -> None:
        raise problem

    monkeypatch.setattr(cli.cli, "main", end)
    monkeypatch.setattr(cli.signal, "signal", lambda *what: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("problem", "wanted", "step"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "error: /a/b: permission denied", "a folder of yours"),
        (OSError(errno.EROFS, "Read-only file system", "/a"), "error: /a: read-only file system", "a folder of yours"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: no space left on device", "free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/a"), "error: /a: disk quota exceeded", "free some space"),
        (FileExistsError(errno.EEXIST, "File exists", "/a", None, "/b"), "error: /a → /b: file exists", ""),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", b"/a"), "not a directory", ""),
        (TimeoutError("timed out"), "error: timed out", ""),
        (ConnectionError(), "error: connectionerror", ""),
    ],
)
def test_what_the_system_refuses_is_no_defect(
    problem: OSError, wanted: str, step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = failing(problem, monkeypatch, capsys)
    assert status == 1
    assert wanted in told and step in told and "defect" not in told
    assert ("next:" in told) == bool(step)


def test_anything_else_is_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(KeyError("x"), monkeypatch, capsys) == (
        1,
        "error: KeyError: 'x'\n  next: this is a defect of release: --traceback shows where\n",
    )
    assert failing(ReleaseError("no"), monkeypatch, capsys) == (1, "error: no\n")


@pytest.mark.parametrize(("command", "kept"), [("build", True), ("plan", False), ("unpatch", False)])
def test_only_a_build_goes_on_from_where_it_was_stopped(
    command: str, kept: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class End(Exception):
        pass

    def end(status: int) -> None:
        assert status == 130
        raise End

    def stop(*what: object, **how: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.os, "_exit", end)
    monkeypatch.setattr(cli.signal, "signal", lambda *what: None)
    monkeypatch.setattr(cli.cli.commands[command], "callback", stop)
    monkeypatch.setattr(sys, "argv", ["release", command, *(("--chip", "a", "--model", "b") if command != "unpatch" else ())])
    with pytest.raises(End):
        cli.main()
    told = capsys.readouterr().err.strip()
    assert told == ("stopped; what was finished is kept, the next build goes on from there" if kept else "stopped")
    assert isinstance(cli.cli, click.Group)


@pytest.mark.integration
def test_ctrl_c_while_the_front_door_is_being_opened_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n")
    for program in (("-m", "release", "plan"), ("-c", "from release.cli import main; main()")):
        done = subprocess.run(
            ["env", "--default-signal=INT", sys.executable, *program],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


@pytest.mark.integration
@pytest.mark.parametrize("content", [b"\x89PNG\0\xff", b"{}", b"[]", b"3", b"[" * 100_000, json.dumps({"cell": "a"}).encode()])
def test_a_file_that_is_no_release_record_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A card\n")
    (tmp_path / "release.json").write_bytes(content)
    words = ("card", "lint", str(tmp_path / "README.md"), "--record", str(tmp_path / "release.json"))
    answer = release(*words, store=tmp_path / "store")
    assert (answer.status, answer.out) == (2, "")
    assert "no release record" in answer.err and "next:" in answer.err


@pytest.mark.integration
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = release(
        "card", "--chip", "cpu", "--model", "tiny-qwq", "--into", str(tmp_path / "file" / "x"), store=tmp_path / "store"
    )
    assert answer.status == 1
    assert f"error: {tmp_path}/file/x: not a directory" in answer.err and "defect" not in answer.err


@pytest.mark.parametrize(("architecture", "runs"), [("amd64", True), ("arm64", True), ("riscv64", False)])
def test_what_an_imported_base_runs_on_is_said_and_where_no_chip_has_it(architecture: str, runs: bool) -> None:
    told = imported({"diff-ids": ["a"], "tags": [], "architecture": architecture, "os": "linux"})
    assert f"1 layers for linux/{architecture}" in told
    assert ("no chip has a host" in told) != runs
