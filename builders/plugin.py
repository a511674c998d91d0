"""The kernels room as a wheel of its own, `release-kernels`: the same files, made the same everywhere, for an image to install."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from functools import cache
from pathlib import Path
from typing import Final

from release import __version__, kernels
from release.oci import sha256_file

NAME: Final = "release-kernels"
PACKAGE: Final = "release_kernels"
PLUGIN: Final = f"{PACKAGE}.plugin:install"
KINDS: Final = (".py", ".json")
DAY: Final = (2000, 1, 1, 0, 0, 0)
METADATA: Final = f"""\
Metadata-Version: 2.1
Name: {NAME}
Version: {__version__}
Summary: Triton operators for released models, and the plugin that puts them into vLLM
License: Apache-2.0
Requires-Python: >=3.10
"""
WHEEL: Final = "Wheel-Version: 1.0\nGenerator: release\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
ENTRY_POINTS: Final = f"[vllm.general_plugins]\n{PACKAGE} = {PLUGIN}\n"


def write_wheel(folder: Path) -> dict[str, str | int]:
    """Write the wheel into `folder` and return name, version, file, sha256 and bytes of it.

    It is a function of the room's files: sorted names, one time stamp, one mode, stored without compression, whose output differs between
    versions of zlib. Format: Binary distribution format of the Python packaging specifications.
    """
    info = f"{PACKAGE}-{__version__}.dist-info"
    files = _room()
    texts = {"METADATA": METADATA, "WHEEL": WHEEL, "entry_points.txt": ENTRY_POINTS}
    files |= {f"{info}/{name}": text.encode() for name, text in texts.items()}
    rows = [f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in sorted(files.items())]
    files[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"]).encode()
    target = folder / f"{PACKAGE}-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(files.items(), key=lambda file: (file[0].startswith(info), file[0])):
            entry = zipfile.ZipInfo(name, DAY)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            archive.writestr(entry, data)
    return {
        "name": NAME,
        "version": __version__,
        "file": target.name,
        "sha256": sha256_file(target),
        "bytes": target.stat().st_size,
    }


@cache
def digest_of() -> str:
    """Return a digest of everything that the wheel is made from, as `sha256:…`."""
    files = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(_room().items())}
    text = json.dumps([METADATA, WHEEL, ENTRY_POINTS, files])
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _room() -> dict[str, bytes]:
    room = Path(kernels.__file__).parent
    return {
        f"{PACKAGE}/{path.relative_to(room).as_posix()}": path.read_bytes()
        for path in room.rglob("*")
        if path.suffix in KINDS and path.is_file()
    }


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
