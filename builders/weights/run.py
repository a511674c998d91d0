"""A conversion, done: shard after shard into a folder that outlives a kill, then everything at once into its place."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from release.builders.weights.catalogue import index_of
from release.builders.weights.disk import sync_folder
from release.builders.weights.header import parse
from release.builders.weights.kernels import KERNELS
from release.builders.weights.plan import Conversion, Shard
from release.builders.weights.stream import Pool, Written, full, write_shard
from release.errors import StageError, StoreError
from release.oci import sha256_file
from release.progress import Line
from release.store import write_whole

RESERVE: Final = 16 << 20
"""Bytes of a disk that are left free for what is not counted: folders, journals, a file system's own."""


@dataclass(frozen=True)
class Done:
    """What was done. `facts` is the same however often the run was interrupted; the other fields tell of this very run.

    facts: recipe; tensors converted, kept, added, dropped; `counts` of what kernels counted, in all; `tensors`, the counts of each tensor
    that has any; `files`, every file with its sha256 and bytes.
    """

    facts: dict[str, Any]
    seconds: float
    resumed: int
    read: int
    written: int


def run(conversion: Conversion, target: Path, line: Line, *, partial: Path | None = None) -> Done:
    """Write what is planned to the folder `target`, which is empty or not there; return what was done.

    Everything is written into `partial` first (`.NAME.partial` beside the target unless given; on the same disk). A run that was killed
    leaves it, and the next one neither reads nor writes the shards again that it finished: of the same plan, from the same files. Only
    when all is there it becomes the target, by renaming if `partial` is ours, by hard links if it was given (its owner removes it).
    Raises StoreError where the disk is full, StageError for what the kernels refuse.
    """
    began = time.monotonic()
    folder = partial if partial is not None else target.with_name(f".{target.name}.partial")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StoreError(f"{target} is there already, and not empty", next_step="name a folder that is not there yet")
    files = folder / "files"
    try:
        files.mkdir(parents=True, exist_ok=True)
        for leftover in files.glob(".*.writing"):
            leftover.unlink()
        journal = Journal(folder, conversion)
        wanted = {shard.file: journal.finished(shard) for shard in conversion.shards}
        resumed = [name for name, written in wanted.items() if written]
        _enough(conversion, files, set(resumed))
        line.expect(conversion.reads, "bytes")
        if resumed:
            line.note(f"{len(resumed)} of {len(wanted)} shards are there")
            line.advance(sum(shard.reads for shard in conversion.shards if shard.file in resumed))
        written = _shards(conversion, wanted, journal, files, line.advance)
        _beside(conversion, files)
        facts = _facts(conversion, written, files)
        _publish(files, target, keep=partial is not None)
        if partial is None:
            shutil.rmtree(folder)
    except OSError as problem:
        raise full(problem, folder) from problem
    left = [shard for shard in conversion.shards if shard.file not in resumed]
    size, read = sum(shard.size for shard in left), sum(shard.reads for shard in left)
    return Done(facts, time.monotonic() - began, len(resumed), read, size)


def _shards(
    conversion: Conversion, found: Mapping[str, Written | None], journal: Journal, files: Path, on_bytes: Callable[[int], None]
) -> dict[str, Written]:
    written = {}
    pool: Pool | None = None
    for shard in conversion.shards:
        done = found[shard.file]
        if done is None:
            before = journal.identity(shard)
            pool = pool or Pool(conversion.source)
            done = write_shard(pool, shard, files, conversion.refuse, on_bytes)
            if journal.identity(shard) != before:
                (files / shard.file).unlink()
                raise StageError(
                    f"a source of {shard.file} changed while it was read", next_step="nothing may change it meanwhile"
                )
            journal.note(shard, done)
        written[shard.file] = done
    return written


class Journal:
    """What is known of finished shards: a small file a shard beside them, written after the shard is durable."""

    def __init__(self, folder: Path, conversion: Conversion) -> None:
        self.folder, self.conversion = folder, conversion
        (folder / "journal").mkdir(exist_ok=True)

    def identity(self, shard: Shard) -> dict[str, Any]:
        """Return what a shard is a function of: its plan, its kernels, its sources as they lie there, what is refused."""
        names = {tensor.file for step in shard.steps for tensor in (*((step.source,) if step.source else ()), *step.aside)}
        found = {name: (self.conversion.source / name).stat() for name in sorted(names)}
        return {
            "plan": shard.digest,
            "kernels": {step.kernel: KERNELS[step.kernel].version for step in shard.steps},
            "sources": {name: [stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in found.items()},
            "refuse": sorted(self.conversion.refuse),
        }

    def note(self, shard: Shard, written: Written) -> None:
        """Say that a shard is finished."""
        write_whole(self._file(shard), json.dumps({"of": self.identity(shard), "written": asdict(written)}))

    def finished(self, shard: Shard) -> Written | None:
        """Return what is known of a shard if it is there, as it was noted, and would be made of the same again; nothing else is trusted."""
        try:
            noted = parse(self._file(shard).read_bytes())
            written = Written(**noted["written"])
            there = (self.folder / "files" / shard.file).stat()
            same = noted["of"] == self.identity(shard) and (there.st_size, there.st_mtime_ns) == (written.size, written.mtime_ns)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return written if same and written.size == shard.size else None

    def _file(self, shard: Shard) -> Path:
        return self.folder / "journal" / f"{shard.file}.json"


def _enough(conversion: Conversion, files: Path, there: set[str]) -> None:
    """Raise StoreError if the disk cannot hold what is still to be written."""
    needed = sum(shard.size for shard in conversion.shards if shard.file not in there)
    needed += sum((conversion.source / name).stat().st_size for name in conversion.carried if not (files / name).exists())
    free = shutil.disk_usage(files).free
    if needed + RESERVE > free:
        raise StoreError(
            f"no space left on the disk of {files}: {needed / 1e9:.2f} GB are still to be written, {free / 1e9:.2f} GB are free",
            next_step="free some and start again: finished shards are kept",
        )


def _beside(conversion: Conversion, files: Path) -> None:
    """Write everything but shards: carried files, the index, config.json with its edits, texts of the plan; remove what is of no plan."""
    texts = dict(conversion.files)
    if conversion.index:
        index = index_of({shard.file: shard.tensors for shard in conversion.shards})
        texts[conversion.index] = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
    if conversion.config:
        config = edited(parse((conversion.source / "config.json").read_bytes()), conversion.config)
        texts["config.json"] = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    meant = {*(shard.file for shard in conversion.shards), *texts, *conversion.carried}
    for path in sorted(files.rglob("*")):
        if path.is_file() and path.relative_to(files).as_posix() not in meant:
            path.unlink()
    for name in sorted(meant - {shard.file for shard in conversion.shards}):
        path = files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in texts:
            write_whole(path, texts[name])
        else:
            copy = path.with_name(f".{path.name}.writing")
            shutil.copyfile(conversion.source / name, copy)
            os.replace(copy, path)
        os.chmod(path, 0o644)  # a server that is not root must be able to read what safetensors writes as 0600


def edited(config: Mapping[str, Any], edits: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the edits of a plan: values set, and keys removed where the edit is None; the order of keys is kept."""
    found = {key: edits.get(key, value) for key, value in config.items() if edits.get(key, value) is not None or key not in edits}
    return {**found, **{key: value for key, value in edits.items() if value is not None and key not in found}}


def _facts(conversion: Conversion, written: Mapping[str, Written], files: Path) -> dict[str, Any]:
    summary = conversion.summary()
    tensors = {name: counts for done in written.values() for name, counts in sorted(done.counts.items())}
    counts: dict[str, int] = {}
    for found in tensors.values():
        for what, count in found.items():
            counts[what] = counts.get(what, 0) + count
    listed = {}
    for path in sorted(path for path in files.rglob("*") if path.is_file()):
        name = path.relative_to(files).as_posix()
        digest = written[name].sha256 if name in written else sha256_file(path)
        listed[name] = {"sha256": digest, "bytes": path.stat().st_size}
    totals = {
        kind: sum(entry["tensors"] for entry in summary[kind].values()) for kind in ("converted", "kept", "added", "dropped")
    }
    return {"recipe": conversion.recipe, **totals, "counts": counts, "tensors": tensors, "files": listed}


def _publish(files: Path, target: Path, *, keep: bool) -> None:
    """Make the finished folder the target: by one rename, or, if it is to be kept, by hard links (a copy where they are refused)."""
    for folder in (files, *(path for path in files.rglob("*") if path.is_dir())):
        sync_folder(folder)
    if not keep:
        files.rename(target)  # onto an empty folder, or none
        sync_folder(target.parent)
        return
    from release.oci import link_or_copy

    for path in sorted(path for path in files.rglob("*") if path.is_file()):
        place = target / path.relative_to(files)
        place.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, place)
