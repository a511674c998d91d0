"""Real programs of Debian's later suites (cosign, oras, crane), unpacked into a folder of their own: nothing is installed. For tests only."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCES: Final = (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*")))
URI: Final = re.compile(r"(?m)^(?:URIs:\s*|deb(?:\s+\[[^\]]*\])?\s+)(\S+/debian/?)\s*")


@dataclass(frozen=True)
class Peer:
    """A program: its path, and the suite that it comes from."""

    program: Path
    suite: str

    def __call__(self, *words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end, with a home of its own."""
        return subprocess.run(
            [str(self.program), *words],
            cwd=cwd,
            env={"HOME": str(cwd), "PATH": "/usr/bin:/bin", "COSIGN_PASSWORD": "", **env},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def fetched(suite: str, folder: Path, *packages: str) -> list[Peer]:
    """Fetch programs of a suite, each named as its package, from the mirror that this machine's apt uses. Skips, with the reason, where they
    cannot be had.
    """
    mirror = next((match[1] for path in SOURCES if path.is_file() and (match := URI.search(path.read_text()))), None)
    if mirror is None or not KEYRING.is_file() or shutil.which("apt-get") is None:
        pytest.skip("apt has no Debian mirror here")
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "-q", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    for words in (["update"], ["download", *packages]):
        done = subprocess.run([*apt, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"{', '.join(packages)} of {suite} cannot be had: {done.stderr.strip()[-200:]}")
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(folder / "x")], check=True)
    return [Peer(folder / "x/usr/bin" / name, suite) for name in packages]
