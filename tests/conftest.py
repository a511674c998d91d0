"""What every test may rely on: a home of its own, and, unless it says that it uses the real parts, no process and no network."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
from hypothesis import settings

# A busy machine is no failure: no property has a deadline. What `CI` asks for besides stays.
settings.register_profile("release", settings.default, deadline=None)
settings.load_profile("release")

REAL: Final = ("integration", "engine")
"""Marks of the tests that may start processes and open connections."""
STARTERS: Final = (
    *("execv", "execve", "execvp", "execvpe", "execl", "execle", "execlp", "execlpe", "fork", "forkpty"),
    *("posix_spawn", "posix_spawnp", "spawnv", "spawnve", "spawnvp", "spawnvpe", "system", "popen"),
)
GOLDEN: Final = Path(__file__).parent / "golden"
PIP: Final = (".config/pip/pip.conf", ".pip/pip.conf")
"""Where pip keeps the user's own configuration, under the home."""


def pytest_configure() -> None:
    """Heed Ctrl-C, and have all that tests start heed it: a shell gives its background jobs a SIGINT that is ignored, and they hand it on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="write the golden files anew instead of comparing with them")


@pytest.fixture(autouse=True)
def own_home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point HOME, XDG_CACHE_HOME and RELEASE_STORE into the test's own folder.

    Tests with a container engine keep theirs: engines find their sockets and images by them, and a store is worth minutes. The
    user's pip configuration stays in force for all.
    """
    if request.node.get_closest_marker("engine"):
        return
    known = next((Path.home() / name for name in PIP if (Path.home() / name).is_file()), None)
    if known and "PIP_CONFIG_FILE" not in os.environ:
        monkeypatch.setenv("PIP_CONFIG_FILE", str(known))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setenv("RELEASE_STORE", str(tmp_path / "store"))


@pytest.fixture(autouse=True)
def only_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make processes and connections raise in tests that are marked neither `integration` nor `engine`."""
    if any(request.node.get_closest_marker(mark) for mark in REAL):
        return
    monkeypatch.setattr(subprocess.Popen, "__init__", _refusing("starts a process"))
    for name in STARTERS:
        if hasattr(os, name):
            monkeypatch.setattr(os, name, _refusing("starts a process"))
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, _refusing("opens a connection"))
    monkeypatch.setattr(socket, "getaddrinfo", _refusing("asks for an address"))


def _refusing(what: str) -> Callable[..., NoReturn]:
    def refuse(*words: Any, **options: Any) -> NoReturn:
        pytest.fail(f"a unit test {what}: {words[-1:]}; mark it 'integration', or do without")

    return refuse


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the golden file of that name; with `--golden`, write it."""

    def compare(name: str, text: str) -> None:
        if request.config.getoption("--golden"):
            (GOLDEN / name).parent.mkdir(parents=True, exist_ok=True)
            (GOLDEN / name).write_text(text, encoding="utf-8")
        assert (GOLDEN / name).is_file(), f"there is no golden file {name}: make golden"
        assert text == (GOLDEN / name).read_text(encoding="utf-8"), f"{name} changed: if that is meant, make golden and review"

    return compare
