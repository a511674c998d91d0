"""Mails of commits, as `git format-patch --stdout` writes them, taken apart as `git am` does it: by git's own mailsplit and mailinfo."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

from release.errors import PatchError
from release.patches.git import Repository

MAILS_LIMIT: Final = 10_000
"""Mails that one mailbox may hold."""
START: Final = b"From "


def diffs(repository: Repository, mailbox: bytes, where: str, *, keep_cr: bool) -> list[bytes]:
    """Return what each mail of a mailbox changes, in order; mails that change nothing are left out.

    With `keep_cr`, carriage returns at the ends of lines stay, as in `git am --keep-cr`; without, they go, as in plain `git am`,
    which turns a patch for a file with such lines into another one. The mails lie in the repository's private folder meanwhile.
    """
    if (count := mailbox.count(b"\n" + START)) > MAILS_LIMIT:
        raise PatchError(f"the mailbox holds {count} mails; at most {MAILS_LIMIT} are read", where=where)
    folder = Path(tempfile.mkdtemp(prefix="mails-", dir=repository.folder))
    try:
        (box := folder / "box").write_bytes(mailbox)
        repository.run("mailsplit", "-d5", f"-o{folder}", "-b", *(["--keep-cr"] if keep_cr else []), str(box))
        box.unlink()
        found = []
        for mail in sorted(folder.iterdir()):
            diff = folder / "diff"
            repository.run("mailinfo", "-n", "--no-scissors", str(folder / "message"), str(diff), given=mail.read_bytes())
            if b"\ndiff --git " in (content := diff.read_bytes()) or content.startswith(b"diff --git "):
                found.append(content)
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)
