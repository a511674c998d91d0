"""The catalogue: what many records say together, each taken at its verdicts' word and not at its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

from release.errors import VerificationError
from release.oci import canonical, sha256
from release.publish.card import arm
from release.publish.dsse import strict
from release.publish.record import SCHEMA as RECORD_SCHEMA
from release.publish.record import state_from
from release.types import JSON, State, split_cell, tag_of

SCHEMA: Final = "release-catalogue/1"
MOST: Final = 4_000
"""Records that one catalogue may hold."""
LABEL: Final = re.compile(r"[A-Za-z0-9_.-]{1,40}")


class Signature(StrEnum):
    """What was found when somebody looked for the signature of a release; of one that nobody looked at there is none."""

    SIGNED = "signed"
    UNSIGNED = "unsigned"
    STRANGER = "stranger"
    INCOMPLETE = "incomplete"


class Mark(StrEnum):
    """What a reader must know beside the state."""

    WAIVED = "waived"
    EXPIRED = "expired"
    STALE = "stale"
    CONTRADICTED = "contradicted"
    UNSIGNED = "unsigned"
    STRANGER = "stranger"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class Found:
    """A record as it was found: its bytes, where it is published (`HOST/NAME[:TAG]@sha256:…`, or nowhere), and who signed that."""

    data: bytes
    place: str = ""
    signature: Signature | None = None
    signers: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Return the digest of the record."""
        return sha256(self.data)

    @cached_property
    def record(self) -> JSON:
        """Return the record. Raises VerificationError for what is none."""
        return strict(self.data, "the record")


@dataclass(frozen=True)
class Entry:
    """One release in a catalogue. `newest` is the one that stands for its cell; `made` is None for one that is planned."""

    found: Found
    cell: str
    chip: str
    model: str
    precision: str
    arm: str
    engine: str
    state: State
    made: datetime | None
    marks: tuple[Mark, ...]
    newest: bool = False

    @property
    def path(self) -> str:
        """Return where its page is, without a suffix: no two releases have the same."""
        return f"releases/{self.chip}/{self.model}/{tag_of(self.arm)}-{self.found.digest.removeprefix('sha256:')[:12]}"

    @property
    def record(self) -> JSON:
        """Return the record, calling itself what its verdicts come to."""
        return {**self.found.record, "state": self.state.value}


def catalogue(found: Iterable[Found], day: date | None = None) -> tuple[Entry, ...]:
    """Return the releases, by cell and the newest of each cell first. `day` is that by which waivers are judged [default: that of the newest].

    The same record found twice is one release, by preference where it is published. Raises VerificationError for a record that lacks
    what a catalogue needs, and for more than MOST.
    """
    unique: dict[str, Found] = {}
    for one in found:
        unique[one.digest] = min(unique.get(one.digest, one), one, key=_preferred)
        if len(unique) > MOST:
            raise VerificationError(f"there are more than {MOST} records")
    entries = sorted((entry_of(one) for one in unique.values()), key=_order)
    newest = {entry.cell: entry for entry in reversed(entries)}
    last = max((entry.made.date() for entry in entries if entry.made), default=date.min)
    return tuple(
        replace(entry, newest=newest[entry.cell] is entry, marks=tuple(_marks(entry, newest, day or last))) for entry in entries
    )


def entry_of(found: Found) -> Entry:
    """Return what a record is. Raises VerificationError for one that a catalogue cannot show."""
    record = found.record
    try:
        if record["schema"] != RECORD_SCHEMA:
            raise ValueError("it is no record")
        chip, model, spelled = split_cell(record["cell"])
        if (chip, model, spelled) != (record["chip"]["id"], record["model"]["id"], arm(record)):
            raise ValueError(f"its cell is {record['cell']}, and it speaks of another")
        for what, names in ((record["chip"], ("name", "vendor")), (record["model"], ("name", "vendor", "family", "license"))):
            if not all(isinstance(what.get(name, ""), str) for name in names) or not what["name"].strip():
                raise ValueError("it calls chip or model by no name")
        if not LABEL.fullmatch(record["engine"]):
            raise ValueError("its engine has no name")
        planned = record["image"] is None and record["verdicts"] == [] and record["state"] == State.PLANNED
        state = State.PLANNED if planned else state_from(record["verdicts"])
        if not planned and not isinstance(record["image"], dict):
            raise ValueError("it has verdicts on no image")
        made = None if planned else _time(record["created"])
        _waivers(record)
        canonical(record)  # half a character, which no page can say, raises ValueError
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise VerificationError(f"the record {found.digest[:19]} cannot be shown: {problem!s:.200}") from problem
    return Entry(found, f"{chip}/{model}@{spelled}", chip, model, record["precision"], spelled, record["engine"], state, made, ())


def _preferred(found: Found) -> tuple[bool, bool, str]:
    return found.signature is not Signature.SIGNED, not found.place, found.place


def _time(text: Any) -> datetime:
    made = datetime.fromisoformat(text)
    return (made if made.tzinfo else made.replace(tzinfo=UTC)).astimezone(UTC)


def _order(entry: Entry) -> tuple[Any, ...]:
    age = -entry.made.timestamp() if entry.made else float("inf")
    return entry.model, entry.chip, entry.arm, age, entry.found.digest


def _waivers(record: JSON) -> list[date]:
    """Return the last days of the waivers that hold a verdict back."""
    return [date.fromisoformat(one["expires"]) for one in record.get("waivers") or () if one["outcome"] == "applied"]


def _marks(entry: Entry, newest: Mapping[str, Entry], day: date) -> Iterator[Mark]:
    last = _waivers(entry.found.record)
    if last:
        yield Mark.EXPIRED if min(last) < day else Mark.WAIVED
    if _is_stale(entry, newest):
        yield Mark.STALE
    if entry.found.record["state"] != entry.state:
        yield Mark.CONTRADICTED
    if entry.found.signature not in (None, Signature.SIGNED) and entry.state is not State.PLANNED:
        yield Mark(entry.found.signature)


def _is_stale(entry: Entry, newest: Mapping[str, Entry]) -> bool:
    """Say whether the reference that a release was compared with has been released anew since, with another image."""
    reference = entry.found.record.get("reference")
    if entry.made is None or not isinstance(reference, dict) or not isinstance(reference.get("serve"), dict):
        return False
    other, compared = newest.get(str(reference.get("cell"))), reference["serve"].get("image")
    if other is None or other.made is None or other.made <= entry.made or not isinstance(compared, str):
        return False
    image = other.found.record.get("image")
    return isinstance(image, dict) and image.get("config") != compared
