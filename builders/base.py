"""The lowest layers of an image: a Debian root file system made on the host, or an image pulled by digest."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from release import processes
from release.builders.compression import MAGIC, ZSTD, kind_of, unpacked_as
from release.builders.layer import rewrite_tar
from release.builders.normalise import adopt, docker_archive
from release.containers import Engine
from release.errors import EngineError, FetchError, StageError
from release.oci import Layout, link_or_copy, sha256_file
from release.progress import Line
from release.types import Bootstrap

ROOTFS: Final = "rootfs.tar"
IMPORTED: Final = "base"
"""The name of an imported image inside its layout."""
SPARED: Final = 10
"""Of the free disk, one part in so many is left to others when an archive is unpacked."""
STEPS: Final = re.compile(r"I: (?P<text>.*)")


def pull_base(image: str, engine: Engine, line: Line) -> dict[str, Any]:
    """Pull a base image by digest into the engine and return what identifies it."""
    line.note(f"pulling {image}")
    engine.pull(image, on_line=line.note)
    return {"kind": "image", "image": image, "diff-ids": engine.inspect(image)["RootFS"]["Layers"]}


def import_base(archive: Path, out: Path, line: Line) -> dict[str, Any]:
    """Take a docker-archive (`docker save`) that a vendor sent into a layout under `out` and return what identifies it.

    The archive may be compressed as a whole (`docker save | gzip`). Its manifest is made here, and is the same for the same image:
    `digest` is what a cell pins as NAME@sha256:…. Raises StageError for an archive that is not one sound image.
    """
    layout = Layout.create(out / "layout")
    with plain(archive, out, line) as tar:
        line.expect(tar.stat().st_size, "bytes")
        image, tags = adopt(tar, layout, on_bytes=line.advance)
    layout.set_index([image.manifest.named(IMPORTED)])
    diff_ids = [layer.diff_id for layer in image.layers]
    return {
        "digest": image.manifest.digest,
        "config": image.config_digest,
        "diff-ids": diff_ids,
        "tags": list(tags),
        **(image.manifest.platform or {}),
    }


@contextlib.contextmanager
def plain(archive: Path, scratch: Path, line: Line) -> Iterator[Path]:
    """Lend an archive as a plain tar: itself, or what it unpacks to under `scratch`, which is removed again.

    Told by its first bytes, not by its name. Raises StageError for one that is damaged, or that unpacks to more than the disk has free.
    """
    try:
        with archive.open("rb") as stream:
            kind = kind_of(stream.read(MAGIC))
            stream.seek(0)
            if kind == ZSTD:
                raise StageError(
                    "the archive is compressed with zstd",
                    where=archive.name,
                    next_step=f"unzstd {archive.name}, and import what comes out",
                )
            if not kind:
                yield archive
                return
            (folder := scratch / "plain").mkdir()
            try:
                _unpack(stream, kind, file := folder / archive.name, line)
                yield file
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except ValueError as problem:
        raise StageError(
            f"it is no sound {kind} file: {problem}", where=archive.name, next_step="ask for it again, and compare its digest"
        ) from problem


def _unpack(stream: BinaryIO, kind: str, file: Path, line: Line) -> None:
    """Unpack a compressed archive into `file`. A bomb is stopped before the disk is full: a part of what is free is left."""
    line.note(f"unpacking {kind}")
    line.expect(os.fstat(stream.fileno()).st_size, "bytes")
    free = shutil.disk_usage(file.parent).free
    written, limit = 0, free - free // SPARED
    with file.open("wb") as output:
        for chunk in unpacked_as(kind, stream):
            written += len(chunk)
            if written > limit:
                raise StageError(
                    f"it unpacks to more than {limit / 1e6:.0f} MB, and the store's disk has {free / 1e6:.0f} MB free",
                    where=file.name,
                    next_step="free some space or set RELEASE_STORE to another disk, if the archive is meant to be that large",
                )
            output.write(chunk)
            line.reach(stream.tell())
    line.note("")


def imported_base(image: str, facts: Mapping[str, Any], folder: Path, out: Path) -> dict[str, Any]:
    """Bring a pinned base that was imported into `folder` to `out`, and return what identifies it: an engine that loaded it knows no digest."""
    shutil.copytree(
        folder / "layout", out / "layout", copy_function=lambda source, target: link_or_copy(Path(source), Path(target))
    )
    tag = f"release-base:{facts['digest'].removeprefix('sha256:')[:24]}"
    return {"kind": "imported", "image": tag, "pinned": image, "config": facts["config"], "diff-ids": facts["diff-ids"]}


def make_base(spec: Bootstrap, architecture: str, *, out: Path, scratch: Path, line: Line) -> dict[str, Any]:
    """Make a base and return what identifies it: its name inside the engine, its diff id, and its packages with their versions."""
    packages = bootstrap(spec, architecture, out / ROOTFS, scratch, line)
    digest = sha256_file(out / ROOTFS)
    tag = f"release-base:{digest.removeprefix('sha256:')[:24]}"
    size = (out / ROOTFS).stat().st_size
    return {"kind": "bootstrap", "image": tag, "diff-ids": [digest], "bytes": size, "packages": packages}


def provide_base(facts: dict[str, Any], folder: Path, engine: Engine) -> None:
    """See to it that the engine holds the base. Raises EngineError if what it holds then is something else."""
    if not engine.has(facts["image"]):
        if facts["kind"] == "image":
            engine.pull(facts["image"])
        elif facts["kind"] == "imported":
            layout = Layout.open(folder / "layout")
            engine.load(docker_archive(layout, layout.find(IMPORTED), tag=facts["image"]), facts["config"])
        else:
            engine.import_rootfs(folder / ROOTFS, facts["image"])
    held = engine.inspect(facts["image"])["RootFS"]["Layers"]
    if held != facts["diff-ids"]:
        raise EngineError(f"the engine's {facts['image']} has the layers {held}, not {facts['diff-ids']}")


def bootstrap(spec: Bootstrap, architecture: str, target: Path, scratch: Path, line: Line) -> dict[str, str]:
    """Write a minimal Debian root file system to `target` as one normalised tar and return its packages with their versions.

    Reproducible for one state of the mirror: mmdebstrap honours SOURCE_DATE_EPOCH. The mirror is the one of the host's own apt
    configuration; no address of it is left inside. Raises FetchError when mmdebstrap is missing or fails.
    """
    program = processes.find("mmdebstrap")
    if not program:
        raise FetchError("mmdebstrap is not installed", next_step="sudo apt-get install mmdebstrap")
    raw = scratch / "raw.tar"
    argv = [
        *_apart(),
        program,
        "--variant=minbase",
        f"--architectures={architecture}",
        f"--include={','.join(sorted(spec.include))}",
    ]
    argv += ['--customize-hook=rm -f "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*']
    argv += [spec.suite, str(raw), *_mirrors(spec.suite)]

    def hear(text: str) -> None:
        if step := STEPS.match(text):
            line.note(step["text"])

    try:
        processes.run(argv, env={"SOURCE_DATE_EPOCH": str(spec.epoch), "TMPDIR": str(scratch)}, on_line=hear)
    except StageError as problem:
        hint = "mmdebstrap needs root, or user namespaces (`sysctl kernel.unprivileged_userns_clone=1`) and `apt-get install uidmap`\n"
        raise FetchError(f"no root file system: {problem.message}", next_step=hint + problem.next_step) from problem
    line.note("normalising")
    with target.open("wb") as output:
        rewrite_tar(raw, output, epoch=spec.epoch)
    packages = dict(_packages(raw))
    raw.unlink()
    return packages


def _apart() -> list[str]:
    """Return the words that put root's mmdebstrap into namespaces of its own: its mounts and processes end with it, however it ends."""
    program = processes.find("unshare")
    if os.geteuid() != 0 or not program:
        return []
    return [program, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def _mirrors(suite: str) -> list[str]:
    """Return the Debian mirrors of the host's own apt configuration as sources.list lines for `suite`; none lets mmdebstrap choose."""
    if not processes.find("apt-get"):
        return []
    try:
        lines = processes.run(["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME)", "Created-By: Packages"])
    except StageError:
        return []
    found: dict[str, None] = {}
    for text in lines:
        site, _, codename = text.partition(" ")
        if codename in (suite, f"{suite}-updates", f"{suite}-security") and "debian" in site:
            found[f"deb {site} {codename} main"] = None
    return list(found)


def _packages(tar: Path) -> Iterator[tuple[str, str]]:
    """Yield name and version of every Debian package in a root file system tar (deb-control format of dpkg's status file)."""
    import tarfile

    with tarfile.open(tar) as archive:
        status = archive.extractfile("./var/lib/dpkg/status")
        assert status is not None
        name = ""
        for text in status.read().decode(errors="replace").splitlines():
            if text.startswith("Package: "):
                name = text.removeprefix("Package: ")
            elif text.startswith("Version: "):
                yield name, text.removeprefix("Version: ")
