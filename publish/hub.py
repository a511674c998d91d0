"""A release on its way to a model hub: which files it is there, what they are called, and who may see it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from release.errors import PublishError, UsageError, VerificationError
from release.hubs import Place
from release.oci import METADATA_LIMIT, canonical, sha256, sha256_file
from release.publish.dsse import strict
from release.publish.record import CARDS, SCHEMA, state_from
from release.types import JSON, RELATIVE
from release.types.verdict import State

RECORD: Final = "release.json"
RESULTS: Final = ".eval_results/release.yaml"
LIMIT: Final = 16 * METADATA_LIMIT
"""Bytes that a record may have, as `verify` has it."""


@dataclass(frozen=True)
class Parcel:
    """What lies in the repository in the end: files by their paths there, each with the digest that its record says; and what it is.

    `digests` are `sha256:<hex>` by the same paths; `tag` is made from them, so that it can never mean other content.
    """

    cell: str
    state: State
    files: Mapping[str, Path | bytes]
    digests: Mapping[str, str]
    license: str
    tag: str


@dataclass(frozen=True)
class Seen:
    """What a hub says of a repository before anything is sent: whether it is there, private, at which commit, which files, which tags."""

    exists: bool
    private: bool = True
    head: str = ""
    files: frozenset[str] = frozenset()
    tags: Mapping[str, str] = field(default_factory=dict)


class Hub(Protocol):
    """What is asked of a hub. Each method raises PublishError for an answer that was not hoped for."""

    can_publish: bool
    """Whether its library can make a private repository public."""

    def look(self) -> Seen:
        """Say what is there."""

    def create(self, parcel: Parcel) -> None:
        """Make the repository, private."""

    def commit(self, parcel: Parcel, seen: Seen) -> str:
        """Send what is not there yet, and make all of it one commit; return the commit."""

    def tag(self, name: str, commit: str) -> None:
        """Name a commit for good."""

    def show(self) -> None:
        """Make the repository public."""


def pack(folder: Path, boards: Mapping[str, tuple[str, str]], *, weights: bool) -> Parcel:
    """Return what is sent of a release that was pulled or built into `folder`; every file of it is compared with the record first.

    Raises UsageError where there is no release, VerificationError where a file is not what the record says, or the record calls itself
    more than its verdicts come to.
    """
    record = read_record(folder)
    try:
        files, digests = _files(folder, record, weights=weights)
        results = results_of(record, boards)
        state = state_from(record["verdicts"]) if record["state"] != State.PLANNED.value else State.PLANNED
        said, cell, licence = str(record["state"]), str(record["cell"]), str(record["model"]["license"])
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise VerificationError(f"the record in {folder} is not one: {problem!r:.200}") from problem
    if said != state.value:
        raise VerificationError(f"the record says {said:.40}, and its verdicts come to {state.value}", where=cell)
    if state not in (State.BUILT, State.VALIDATED, State.BLOCKED):
        raise PublishError(f"the release is {state.value}: there is nothing to publish", where=cell)
    if results:
        data = json.dumps(results, indent=1, ensure_ascii=False).encode() + b"\n"  # JSON is YAML
        files[RESULTS], digests[RESULTS] = data, sha256(data)
    return Parcel(cell, state, files, digests, licence, f"release-{sha256(canonical(digests))[7:19]}")


def results_of(record: JSON, boards: Mapping[str, tuple[str, str]]) -> list[JSON]:
    """Return measured scores as Hugging Face's `.eval_results` lists them (hub-docs, eval_results.yaml).

    `boards` are data set and task on the hub by benchmark: it takes no others. What others reported is never among them. The format has no
    place for n, repeats, interval and reference: they are notes.
    """
    found = []
    for one in (record.get("settlement") or {}).get("benchmarks") or ():
        if one["benchmark"] not in boards or not one["measured"] or not one["shares"]:
            continue
        dataset, task = boards[one["benchmark"]]
        low, high = one["interval-95"] or one["interval"]
        notes = (
            f"{record['precision']} on {record['chip']['id']}; n = {one['n']}, {one['repeats']['candidate']} repeats; reference "
            f"{one['shares']['reference']:.4f}, difference {one['delta']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}: {one['finding']}"
        )
        value = round(one["shares"]["candidate"], 4)
        found.append({"dataset": {"id": dataset, "task_id": task}, "value": value, "date": record["created"], "notes": notes})
    return found


def name_for(record: JSON) -> str:
    """Return the name of a repository that holds only this release: MODEL[-PRECISION]-CHIP[-VARIANT].

    The order is that of the field's own names (the model first, then how its weights are, then the maker of the chip).
    """
    model = str(record["model"]["name"]).replace(" ", "-")
    precision = str(record["precision"])
    parts = [model, *([precision.upper()] if precision != record["model"].get("precision") else []), str(record["chip"]["id"])]
    return "-".join([*parts, *([str(record["variant"])] if record.get("variant") else [])])


def push(hub: Hub, place: Place, parcel: Parcel, *, public: bool, dry_run: bool) -> list[str]:
    """Bring a release to a hub in one commit, name it, and with `public` show it last; return what was done, a line each.

    What is not validated is never public: neither made so, nor sent to where anybody can see it. Raises PublishError.
    """
    where = str(place)
    if public and parcel.state is not State.VALIDATED:
        raise PublishError(
            f"{parcel.cell} is {parcel.state.value}, not validated: it is not made public",
            where=where,
            next_step="leave out --public",
        )
    if public and not hub.can_publish:
        raise UsageError(
            f"{place.site.name}'s library cannot make a repository public",
            next_step="leave out --public, look at what was sent, and change it on the hub's own settings page",
        )
    seen = hub.look()
    if seen.exists and not seen.private and not public:
        raise PublishError(
            f"{where} is public, and --public is not given",
            where=parcel.cell,
            next_step="a release that is not validated needs a private repository"
            if parcel.state is not State.VALIDATED
            else "give --public",
        )
    if (own := _weights(parcel.files)) and (strange := sorted(_weights(seen.files) - own)):
        raise PublishError(
            f"{where} holds other weights: {strange[0]}", where=parcel.cell, next_step="send it to a repository of its own"
        )
    named = seen.tags.get(parcel.tag, seen.head)
    if named != seen.head:
        raise PublishError(
            f"tag {parcel.tag} is {named:.60}, not the head of {where}",
            where=parcel.cell,
            next_step="a published tag never moves: look who moved on",
        )
    told = [f"{len(parcel.files)} files, {_size(parcel)} bytes, {parcel.state.value}, tag {parcel.tag}"]
    if dry_run:
        told += [*sorted(parcel.files), f"nothing was sent: {where} {'is there' if seen.exists else 'would be made, private'}"]
        return told
    if not seen.exists:
        hub.create(parcel)
        seen = hub.look()
        if not seen.private:
            raise PublishError(
                f"{where} was to be private, and is public", where=parcel.cell, next_step="make it private on the hub"
            )
    commit = hub.commit(parcel, seen)
    if parcel.tag not in seen.tags:
        hub.tag(parcel.tag, commit)
    told.append(f"{where} is {commit}" + (", as it was" if commit == seen.head else ""))
    if public and seen.private:
        hub.show()
        if hub.look().private:
            raise PublishError(f"{where} is still private", where=parcel.cell)
        told.append(f"{where} is public")
    return told


def read_record(folder: Path) -> JSON:
    """Return the record of the release in a folder. Raises UsageError where there is none, VerificationError for another thing."""
    path = folder / RECORD
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no release", next_step="name a folder that `release pull` or `release build` has filled"
        )
    if path.stat().st_size > LIMIT:
        raise VerificationError(f"{path} has more than {LIMIT} bytes")
    record = strict(path.read_bytes(), str(path))
    if record.get("schema") != SCHEMA:
        raise VerificationError(f"{path} is of schema {record.get('schema')!r:.60}")
    return record


def _files(folder: Path, record: JSON, *, weights: bool) -> tuple[dict[str, Path | bytes], dict[str, str]]:
    """Return the files by their names in the repository, weights at its root as libraries look for them, and their digests."""
    wanted: dict[str, tuple[Path, str | None]] = {name: (folder / name, None) for name in (RECORD, *CARDS.values())}
    for file in (*record["evidence"], *record.get("pictures", ())):
        wanted[str(file["path"])] = folder / str(file["path"]), str(file["sha256"])
    for name, file in record["weights"]["files"].items() if weights else ():
        # the release's own card takes the place of upstream's, which goes beside it
        name_there = f"upstream/{name}" if str(name) in wanted else str(name)
        wanted[name_there] = _weight(folder, str(name), str(file["sha256"])), str(file["sha256"])
    files: dict[str, Path | bytes] = {}
    digests = {}
    for name, (path, digest) in wanted.items():
        if not RELATIVE.fullmatch(name) or name.lower().startswith(".git"):
            raise VerificationError(f"the record names a file {name!r:.100}")
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            if name == CARDS["zh"]:
                continue
            raise VerificationError(f"{path} is missing, or lies elsewhere", next_step="pull the release again")
        digests[name] = sha256_file(path)
        if digest not in (None, digests[name]):
            raise VerificationError(f"{path} has {digests[name]}, the record says {digest}")
        files[name] = path
    return files, digests


def _weight(folder: Path, name: str, digest: str) -> Path:
    """Return where a weight file lies: in a pulled release under its name, in a built one under its digest."""
    if not RELATIVE.fullmatch(name):
        raise VerificationError(f"the record names a file {name!r:.100}")
    pulled = folder / "weights" / name
    return pulled if pulled.is_file() else folder / "oci" / "blobs" / "sha256" / digest.removeprefix("sha256:").replace("/", "")


def _weights(names: Any) -> set[str]:
    return {name for name in names if PurePosixPath(name).suffix == ".safetensors"}


def _size(parcel: Parcel) -> int:
    return sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in parcel.files.values())
