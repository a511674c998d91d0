"""Wheels for the image: pinned by digest, downloaded on the host with the user's own pip configuration, kept once in the store."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from release import processes
from release.errors import FetchError, StageError
from release.oci import link_or_copy, sha256_file
from release.progress import Line
from release.store import Store
from release.types import Python

PIN: Final = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9._+!-]+)\s+--hash=(?P<hash>sha256:[0-9a-f]{64})")
BATCH: Final = 35
"""Wheels that one call of pip brings; each call costs half a second besides."""
PLATFORMS: Final = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Pin:
    """One wheel: distribution name, exact version, and the digest `sha256:<hex>` of the one file that fits the target."""

    name: str
    version: str
    digest: str

    @property
    def requirement(self) -> str:
        """The pin as pip reads it, with its digest."""
        return f"{self.name}=={self.version} --hash={self.digest}"


def read_pins(path: Path) -> tuple[Pin, ...]:
    """Return the pins of a requirements file. Every line must be `name==version --hash=sha256:…`; FetchError otherwise."""
    pins: dict[str, Pin] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise FetchError(f"{path} cannot be read: {problem}") from problem
    for number, line in enumerate(lines, 1):
        text = line.split(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        match = PIN.fullmatch(text)
        if not match:
            raise FetchError(
                f"{path}:{number}: {text!r} is not a pin", next_step="write name==version --hash=sha256:<64 hex digits>"
            )
        name = normalised(match["name"])
        if name in pins:
            raise FetchError(f"{path}:{number}: {name} is pinned twice")
        pins[name] = Pin(match["name"], match["version"], match["hash"])
    if not pins:
        raise FetchError(f"{path} pins nothing")
    return tuple(pins.values())


def normalised(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def tags(python: Python, architecture: str) -> list[str]:
    """Return pip's options for wheels that run on that interpreter, glibc and architecture, the newest platform tag first (PEP 600)."""
    machine = PLATFORMS[architecture]
    newest = int(python.glibc.split(".")[1])
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 4, -1)]
    platforms += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}", f"linux_{machine}"]
    options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python.version}"]
    return options + [f"--platform={platform}" for platform in platforms]


def download(
    pins: Sequence[Pin], python: Python, architecture: str, *, store: Store, partial: Path, out: Path, line: Line
) -> list[dict[str, Any]]:
    """Put every pinned wheel into `out` and return name, version, file, sha256 and bytes of each, by name.

    Wheels that the store has are linked, after another look at their digest. The others come from pip, with the user's own
    configuration, BATCH at a time: what a batch brought outlives a kill. Raises FetchError when a wheel cannot be had or is not the pinned one.
    """
    missing = [pin for pin in pins if not _kept(store, pin)]
    watch = _Watch(line, len(missing))
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        _fetch(batch, python, architecture, partial, watch)
        by_digest = {sha256_file(file): file for file in sorted(partial.glob("*.whl"))}
        for pin in batch:
            if pin.digest not in by_digest:
                raise FetchError(f"{pin.name}=={pin.version}: pip brought no wheel with {pin.digest}")
            store.note_blob(pin.digest, by_digest[pin.digest].name)
            store.keep_blob(by_digest[pin.digest], pin.digest)
    out.mkdir(exist_ok=True)
    found = []
    for pin in sorted(pins, key=lambda pin: normalised(pin.name)):
        file = store.blob_name(pin.digest).read_text()
        link_or_copy(store.blob(pin.digest), out / file)
        size = (out / file).stat().st_size
        found.append({"name": normalised(pin.name), "version": pin.version, "file": file, "sha256": pin.digest, "bytes": size})
    return found


def _kept(store: Store, pin: Pin) -> bool:
    """Say whether the store has a wheel, whole and under its name; what is damaged is thrown away and fetched again."""
    blob, name = store.blob(pin.digest), store.blob_name(pin.digest)
    if not blob.is_file() or not name.is_file():
        return False
    if sha256_file(blob) != pin.digest or not name.read_text().endswith(".whl"):
        blob.unlink()
        return False
    return True


def _fetch(pins: Sequence[Pin], python: Python, architecture: str, partial: Path, watch: _Watch) -> None:
    scratch = partial / "tmp"  # pip leaves what it unpacks where it was when it is killed
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with tempfile.NamedTemporaryFile("w", dir=partial, prefix=".pins-", suffix=".txt") as requirements:
        requirements.write("\n".join(pin.requirement for pin in pins) + "\n")
        requirements.flush()
        argv = [
            sys.executable,
            "-P",
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--require-hashes",
            "--progress-bar=raw",
            "--no-input",
        ]
        argv += ["--disable-pip-version-check", "--dest", str(partial), "--requirement", requirements.name]
        try:
            processes.run([*argv, *tags(python, architecture)], env={"TMPDIR": str(scratch)}, on_line=watch.hear)
        except StageError as problem:
            raise _explained(problem, watch.lines) from problem
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


class _Watch:
    """Follows pip's raw progress lines (`Progress 1024 of 4096`): bytes over all files."""

    def __init__(self, line: Line, files: int) -> None:
        self.line, self.files = line, files
        self.lines: list[str] = []
        self._before = self._now = self._seen = 0
        line.expect(None, "bytes")

    def hear(self, text: str) -> None:
        """Take one line of pip's output."""
        self.lines.append(text)
        words = text.split()
        if text.startswith("Progress ") and len(words) == 4:
            self._now = int(words[1])
            self.line.reach(self._before + self._now)
        elif text.startswith("Collecting "):
            self._before, self._now = self._before + self._now, 0
            self._seen += 1
            self.line.note(f"{self._seen} of {self.files} wheels")


def _explained(problem: StageError, lines: Sequence[str]) -> FetchError:
    text = "\n".join(lines)
    if "THESE PACKAGES DO NOT MATCH THE HASHES" in text:
        culprit = re.search(r"^\s*(\S+==\S+) from", text, re.MULTILINE)
        return FetchError(
            f"{culprit[1] if culprit else 'a wheel'} from your package index is not the pinned file",
            next_step="the index or a mirror serves another build of that version; use one that serves the original, or pin the new digest",
        )
    if unmet := re.search(r"No matching distribution found for (\S+)", text):
        hint = "check `pip config list`: the index must offer it for the image's Python and platform"
        if unmet[1].startswith("torch=="):
            hint += "; CPU builds of torch (`+cpu`) are on PyTorch's own index: add it as an extra-index-url to your pip configuration"
        return FetchError(f"your package index has no wheel for {unmet[1]}", next_step=hint)
    return FetchError(problem.message, next_step=problem.next_step)
