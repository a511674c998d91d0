"""A canary: the smallest container there can be, made here, by which a host shows that it is not the one at fault."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

from release import processes
from release.containers import Engine
from release.errors import EngineError, StageError
from release.oci import IMAGE_CONFIG, IMAGE_MANIFEST, LAYER_GZIP, Descriptor, Layout, sha256
from release.types import Container

TAG: Final = "release-canary:1"
PATIENCE: Final = 60.0
"""Seconds that the canary has."""
SAMPLE: Final = 8 << 20
"""Bytes that a disk must be able to take."""
WRITE: Final = 'f="$1/.release-canary.$$"; dd if=/dev/zero of="$f" bs=1048576 count="$2" conv=fsync; s=$?; rm -f "$f"; exit $s'
MACHINES: Final = {
    "x86_64": (62, bytes.fromhex("31ff b83c000000 0f05"), "amd64"),
    "aarch64": (183, bytes.fromhex("000080d2 a80b80d2 010000d4"), "arm64"),
}
"""By an engine's word for its processor: the number that ELF has for it, the instructions of exit(0), and what images call it."""

Run = Callable[[Sequence[str]], object]
"""Runs a command on the host, and raises ReleaseError if it fails."""


def provide_canary(engine: Engine) -> str:
    """See to it that the engine holds the canary's image and return its tag."""
    if not engine.has(TAG):
        with tempfile.TemporaryDirectory(prefix="release-canary-") as folder:
            path = Path(folder) / "canary.tar"
            path.write_bytes(_rootfs(str(engine.facts().get("Architecture", ""))))
            engine.import_rootfs(path, TAG)
    return TAG


def lay_out_canary(layout: Layout, machine: str) -> tuple[Descriptor, str]:
    """Write the canary's image into a layout, the same bytes each time; return its manifest and its id.

    Its layer is not that of the canary which an engine has imported: that one would not have to be pulled.
    """
    _, _, architecture = MACHINES.get(machine, MACHINES["x86_64"])
    rootfs = _rootfs(machine, "pulled")
    layer = layout.put(LAYER_GZIP, gzip.compress(rootfs, mtime=0))
    about = {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [sha256(rootfs)]},
    }
    config = layout.put_json(IMAGE_CONFIG, about)
    document = {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": config.to_json(), "layers": [layer.to_json()]}
    return layout.put_json(IMAGE_MANIFEST, document), config.digest


def _rootfs(machine: str, name: str = "ok") -> bytes:
    """Return the canary's root file system as a tar: one program of that name."""
    program, stream = executable(machine), io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(program), 0o755
        archive.addfile(member, io.BytesIO(program))
    return stream.getvalue()


def executable(machine: str) -> bytes:
    """Return a static program of about 130 bytes that ends with status 0 (ELF-64, one segment; System V ABI, "Object Files")."""
    number, code, _ = MACHINES.get(machine, MACHINES["x86_64"])
    start, size = 0x400000, 64 + 56 + len(code)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, number, 1, start + 120, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, size, size, 0x1000) + code


def send(engine: Engine, contract: Container, run: Run, folders: Sequence[str] = ()) -> None:
    """Start a container that reaches the chip's devices, and write to the disks that a build writes to. Raises EngineError on any fault."""
    image = provide_canary(engine)
    line = [engine.cli, "run", "--rm", "--network", "none", *_access(contract), image, "/ok"]
    try:
        processes.run(line, env=engine.env, timeout=PATIENCE)
    except StageError as problem:
        last = problem.next_step.splitlines()[-1] if problem.next_step else ""
        raise EngineError(f"a canary does not start there: {last or problem.message}") from problem
    container = engine.claim(f"release-canary-{uuid4().hex[:12]}", image, {"release.canary": "1"})
    try:
        engine.keep(container, "/", _sample())
    finally:
        engine.remove(container)
    for folder in folders:
        try:
            run(["sh", "-c", WRITE, "sh", folder, str(SAMPLE >> 20)])
        except StageError as problem:
            lines = [line for line in problem.next_step.splitlines() if ":" in line and "records" not in line]
            said = problem.message if "no space" in problem.message else (lines[-1] if lines else problem.message)
            raise EngineError(f"{folder} takes no {SAMPLE >> 20} MiB: {said}") from problem


def _access(contract: Container) -> list[str]:
    """Return the flags by which a container of the chip reaches its devices."""
    words = ["--privileged"] if contract.privileged else []
    words += ["--gpus", contract.gpus] if contract.gpus else []
    for device in contract.devices:
        words += ["--device", device]
    for mount in contract.mounts:
        words += ["--volume", mount]
    return words


def _sample() -> Iterator[bytes]:
    member = tarfile.TarInfo("sample")
    member.size = SAMPLE
    yield member.tobuf()
    for _ in range(SAMPLE >> 20):
        yield bytes(1 << 20)
    yield bytes(1024)
