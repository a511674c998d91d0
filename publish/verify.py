"""Whether a published release can be let in: signed by a key that is trusted, whole, what its record says, and what a policy wants."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from pydantic import ValidationError

from release.errors import IncompleteError, PolicyError, UnsignedError, UsageError, VerificationError, WrongKeyError
from release.oci import IMAGE_MANIFEST, METADATA_LIMIT, Descriptor, Layout
from release.publish.artifact import RECORD_TYPE
from release.publish.dsse import Signed, strict
from release.publish.keys import Public
from release.publish.provenance import BILL, VERDICT, builder_of, speaks_of
from release.publish.provenance import PREDICATE as PROVENANCE
from release.publish.record import SCHEMA, state_from
from release.publish.signature import find
from release.types import JSON
from release.types.policy import Attested, Policy
from release.types.verdict import State

if TYPE_CHECKING:
    from release.publish.folder import Source

STATEMENTS: Final = {"sbom": BILL, "provenance": PROVENANCE, "verdict": VERDICT}
"""What a policy calls a statement, and its predicate type."""
RANKS: Final = {State.PLANNED: 0, State.BLOCKED: 0, State.BUILT: 1, State.VALIDATED: 2}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what was found."""

    what: str
    found: str


class Rule(Protocol):
    """One rule of a policy: yields what it found to be in order, raises PolicyError where something is not."""

    def __call__(self, policy: Policy, record: JSON, today: date) -> Iterator[Check]:
        """Look at a record."""
        ...


def verify(
    registry: Source, reference: str, keys: Sequence[Public], policy: Policy, today: date, scratch: Path
) -> tuple[str, list[Check]]:
    """Verify the release that a tag or digest names; return its digest, and what was looked at.

    The name is resolved once: everything after that goes by digest. Raises UsageError without a key (nothing required means refused),
    UnsignedError, WrongKeyError, IncompleteError, PolicyError, and VerificationError where something is not what its digest or signature says.
    """
    if not keys:
        raise UsageError("no key is given: what requires nothing proves nothing", next_step="--key FILE.pub, of whom you trust")
    index, entries = released(registry, reference)
    image = image_of(entries)
    checks = [Check("digest", f"{reference} is {index.digest}")]
    attested: tuple[Signed, ...] = ()
    for what, descriptor in (("index", index), *((("image", image),) if image else ())):
        found = find(registry, descriptor.digest, keys, scratch / what)
        if not found.signers:
            told = f"{what} {descriptor.digest}"
            if found.strangers:
                raise WrongKeyError(
                    f"{told} is signed {found.strangers} times, by none of the {len(keys)} keys given", where=registry.where
                )
            also = f"; {len(found.attested)} statements about it are no signature of it" if found.attested else ""
            raise UnsignedError(f"{told} is not signed{also}", where=registry.where)
        checks.append(Check(f"{what} signed by", ", ".join(found.signers)))
        if what == "image":
            attested = found.attested
    record, record_digest = record_of(registry, entries, scratch)
    checks += _attested(policy, attested, record, record_digest, registry.where)
    try:
        for rule in RULES:
            checks += rule(policy, record, today)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise IncompleteError(f"the record lacks what a release's must have: {problem!s:.200}", where=registry.where) from problem
    return index.digest, checks


def _attested(policy: Policy, attested: Sequence[Signed], record: JSON, digest: str, where: str) -> Iterator[Check]:
    """Yield the statements that the policy wants, of those that a trusted key has signed of this release.

    Raises IncompleteError for one that nobody trusted has signed, PolicyError for provenance of other builders alone, and VerificationError
    where all that is signed is of other releases, and as `spoken` does.
    """
    said = spoken(attested, record, digest, where)
    for name in policy.attested:
        if not said.get(STATEMENTS[name]):
            if any(each.predicate_type == STATEMENTS[name] for each in attested):
                raise VerificationError(f"the signed {name} is of another record, and here is {digest}", where=where)
            raise IncompleteError(f"no trusted key attests a {name}", where=where, next_step="release sign attests all three")
        yield Check("attested", name)
    if "provenance" in policy.attested:
        builders = [builder_of(each.predicate) for each in said[PROVENANCE]]
        builder = next((each for each in builders if each in policy.builders), None)
        if builder is None:
            told = " and ".join(f"{each!r:.80}" for each in builders[:3])
            raise PolicyError(f"its provenance is of the builder {told}, none of {', '.join(policy.builders)}", where=where)
        yield Check("built by", builder)


def spoken(attested: Sequence[Signed], record: JSON, digest: str, where: str) -> dict[str, list[Signed]]:
    """Return what is said of the release with this record, each once, by predicate type: other releases may have the same image.

    Raises VerificationError where a verdict of this record has another shape, or another state than the record.
    """
    said: dict[str, list[Signed]] = {}
    for each in attested:
        known = said.setdefault(each.predicate_type, [])
        if speaks_of(each.predicate_type, each.predicate, digest) and all(each.payload != other.payload for other in known):
            known.append(each)
    for each in said.get(VERDICT, ()):
        try:
            found = Attested.model_validate_json(json.dumps(each.predicate))
        except ValidationError as problem:
            raise VerificationError(f"the signed verdict is none: {problem.errors()[0]['msg']:.200}", where=where) from problem
        if found.state.value != record.get("state"):
            state = record.get("state")
            raise VerificationError(f"the signed verdict says {found.state.value}, and its record {state!r:.80}", where=where)
    return said


def image_of(entries: Sequence[Descriptor]) -> Descriptor | None:
    """Return a release's image, of the entries of its index."""
    return next((entry for entry in entries if entry.platform.get("os") == "linux"), None)


def released(source: Source, name: str) -> tuple[Descriptor, list[Descriptor]]:
    """Return the index of the release that a tag or digest names, and its entries. Raises VerificationError where it is no sound one."""
    index, data = source.get_manifest(name)
    return index, [Descriptor.from_json(entry) for entry in strict(data, "a release").get("manifests", ())]


def record_of(registry: Source, entries: Sequence[Descriptor], scratch: Path) -> tuple[JSON, str]:
    """Return the record that the index names, and its digest. Raises IncompleteError where it names none."""
    layout = Layout.create(scratch / "record")
    for entry in entries:
        if entry.media_type != IMAGE_MANIFEST or entry.size > METADATA_LIMIT:
            continue
        _, data = registry.get_manifest(entry.digest)
        manifest = strict(data, "a manifest")
        layers = manifest.get("layers")
        if manifest.get("artifactType") == RECORD_TYPE and isinstance(layers, list) and layers:
            first = Descriptor.from_json(layers[0])
            if first.size > 16 * METADATA_LIMIT:
                break
            registry.get_blob(first, layout)
            record = strict(layout.blob(first.digest).read_bytes(), "the record")
            if record.get("schema") != SCHEMA:
                raise IncompleteError(f"the record is of schema {record.get('schema')!r:.60}", where=registry.where)
            return record, first.digest
    raise IncompleteError(
        "the release has no record", where=registry.where, next_step="it was not published by release, or not whole"
    )


def _state(policy: Policy, record: JSON, today: date) -> Iterator[Check]:
    """The state that the verdicts come to, whatever the record says of itself, is enough."""
    said, come_to = str(record.get("state")), state_from(record["verdicts"])
    if said != come_to.value:
        raise PolicyError(f"the record says {said}, and its verdicts come to {come_to.value}")
    if RANKS[come_to] < RANKS[State(policy.state)]:
        raise PolicyError(f"the release is {come_to.value}, the policy wants {policy.state}")
    yield Check("state", come_to.value)


def _named(policy: Policy, record: JSON, today: date) -> Iterator[Check]:
    """Chip and model are among those that are let in."""
    for what, wanted in (("chip", policy.chips), ("model", policy.models)):
        name = str(record[what]["id"])
        if wanted and name not in wanted:
            raise PolicyError(f"{what} {name} is none of {', '.join(wanted)}")
        yield Check(what, name)


def _age(policy: Policy, record: JSON, today: date) -> Iterator[Check]:
    """It was made not too long ago."""
    made = datetime.fromisoformat(str(record["created"])).date()
    days = (today - made).days
    if policy.not_older_than is not None and not 0 <= days <= policy.not_older_than:
        raise PolicyError(f"it was made on {made}, {days} days ago; the policy wants at most {policy.not_older_than}")
    yield Check("made", f"{made}, {days} days ago")


def _waivers(policy: Policy, record: JSON, today: date) -> Iterator[Check]:
    """No waiver has expired since; with `no-waivers`, none was applied."""
    applied = [waiver for waiver in record.get("waivers") or () if waiver.get("outcome") == "applied"]
    for waiver in applied:
        if policy.no_waivers:
            raise PolicyError(f"{waiver['validator']} was waived ({waiver['reason']}), the policy wants no waivers")
        if today > date.fromisoformat(waiver["expires"]):
            raise PolicyError(f"the waiver of {waiver['validator']} expired on {waiver['expires']}")
    yield Check("waivers", f"{len(applied)} applied, none expired" if applied else "none applied")


def _made_from(policy: Policy, record: JSON, today: date) -> Iterator[Check]:
    """It was made from what the policy names."""
    pins = record["pins"]
    known = {str(value) for value in _digests(pins)}
    for digest in policy.sources:
        if digest not in known:
            raise PolicyError(f"it was not made from {digest}")
        yield Check("made from", digest)
    if policy.base is not None:
        layers = (pins.get("base") or {}).get("diff-ids") or ()
        if policy.base not in layers:
            raise PolicyError(f"it does not stand on the base {policy.base}")
        yield Check("base", policy.base)


def _digests(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _digests(item)
    elif isinstance(value, list):
        for item in value:
            yield from _digests(item)
    elif isinstance(value, str) and value.startswith("sha256:"):
        yield value


RULES: Final[tuple[Rule, ...]] = (_state, _named, _age, _waivers, _made_from)
"""What is looked at, in this order; each says what it found, and the first that is not kept ends it."""
