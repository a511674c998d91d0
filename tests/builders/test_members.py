"""Memory does not grow with the members of a layer either: measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from release.builders import tar

pytestmark = [pytest.mark.integration, pytest.mark.alone]

MEMBERS: Final = 100_000
PROGRAM: Final = """
import sys
from pathlib import Path
from release.builders import inventory
from release.builders.layer import rewrite_tar

class Sink:
    size = 0
    def write(self, data):
        self.size += len(data)

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0])

inventory.CACHE = 4 << 20
sink = Sink()
before = peak()
rewritten = rewrite_tar(Path(sys.argv[1]), sink, epoch=0)
print(peak() - before, rewritten.kept, sink.size)
"""


def many(path: Path) -> None:
    """Write a layer of empty files and, to each second one, a hard link, each with a name of 95 bytes."""
    plain = bytearray(tar.header(tar.Member("x" * 95, tar.FILE, 0o644, 0, 0, 0, 0, "", 0, 0), 0))
    link = bytearray(tar.header(tar.Member("x" * 95, tar.LINK, 0o644, 0, 0, 0, 0, "x" * 95, 0, 0), 0))
    before = b""
    with path.open("wb") as stream:
        for number in range(MEMBERS):
            block = link if number % 3 == 2 else plain
            block[:10] = b"%05d/%04d" % (number * 7919 % 99991, number % 7919)
            if block is link:
                block[157:252] = before
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            stream.write(block)
            before = bytes(block[:95])
        stream.write(tar.END)


def test_an_archive_of_very_many_members_takes_memory_for_its_cache_and_no_more(tmp_path: Path) -> None:
    many(tmp_path / "layer.tar")
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "layer.tar")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=True)
    grown, kept, size = map(int, done.stdout.split())
    assert (kept, size) == (MEMBERS, 512 * MEMBERS + 1024)
    assert grown < 16 << 10, "a hundred thousand names alone are 9.5 MB, and Python's objects for them 50 MB"
