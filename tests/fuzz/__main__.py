"""The longer job: atheris changes documents under coverage of the readers until something other than a ReleaseError comes out.

Run it by hand, from a virtual environment with the package and atheris in it (CI does not):

    python tests/fuzz -max_total_time=600               every reader, one after the other as the bytes say
    python tests/fuzz -max_total_time=600 corpus/       with a folder that keeps what was interesting

What it finds is written to crash-…; `python tests/fuzz crash-…` runs that again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "parts"))

with atheris.instrument_imports(include=["release"]):
    from readers import readers

import contextlib

from release.errors import ReleaseError

KNOWN = list(readers(Path(tempfile.mkdtemp(prefix="release-fuzz-keys-"))).values())


def one(data: bytes) -> None:
    """Give all but the first byte to the reader that the first byte names; the reader's sound document stands for an empty one."""
    if not data:
        return
    reader = KNOWN[data[0] % len(KNOWN)]
    with tempfile.TemporaryDirectory(prefix="release-fuzz-") as folder:
        with contextlib.suppress(ReleaseError):
            reader.read(data[1:] or reader.sound, Path(folder))
        left = {path.name for path in Path(folder).iterdir()}
        if not left <= {"in", "out"}:
            raise AssertionError(f"written: {sorted(left)}")


def main() -> None:
    """Fuzz; the sound documents are the first corpus."""
    corpus = Path(tempfile.mkdtemp(prefix="release-fuzz-corpus-"))
    for number, reader in enumerate(KNOWN):
        (corpus / str(number)).write_bytes(bytes([number]) + reader.sound)
    words = sys.argv if any(not word.startswith("-") for word in sys.argv[1:]) else [*sys.argv, str(corpus)]
    atheris.Setup(words, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
