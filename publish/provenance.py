"""Where a release comes from and what was found about it, as in-toto predicates: SLSA provenance v1, and a verdict of our own.

The verdict's predicate: `cell`, `state`, `record` (the digest of release.json), `created`, `verdicts` (name, status, measured, wanted) and
`waivers` (validator, outcome, expires). Whoever trusts the key learns from it what the release was when it was signed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from release.oci import DIGEST
from release.types import JSON

PREDICATE: Final = "https://slsa.dev/provenance/v1"
BILL: Final = "https://cyclonedx.org/bom"
"""The predicate type of a bill of materials in CycloneDX."""
RECORD: Final = "release:record"
"""The property by which a bill of materials of ours names the record that it was made from."""
VERDICT: Final = "urn:release:verdict:v1"
BUILD: Final = "urn:release:build:v1"
"""What was done: the stages of release, from the cell that `externalParameters` name and the digests of `resolvedDependencies`."""


def provenance(record: JSON, record_digest: str) -> JSON:
    """Return the predicate of SLSA provenance v1. No host, user or path stands in it: none of them decides what comes out."""
    created = sorted(str(stage["created"]) for stage in record["stages"]) or [str(record["created"])]
    return {
        "buildDefinition": {
            "buildType": BUILD,
            "externalParameters": {
                "cell": record["cell"],
                "chip": record["chip"]["id"],
                "model": record["model"]["id"],
                "precision": record["precision"],
                "variant": record["variant"],
            },
            "internalParameters": {"stages": {stage["stage"]: stage["key"] for stage in record["stages"]}},
            "resolvedDependencies": list(_dependencies(record)),
        },
        "runDetails": {
            "builder": {"id": "urn:release:builder", "version": {"release": str(record["made-by"]).removeprefix("release ")}},
            "metadata": {"invocationId": record_digest, "startedOn": created[0], "finishedOn": created[-1]},
            "byproducts": [{"name": file["path"], "digest": _hex(file["sha256"])} for file in record["evidence"]],
        },
    }


def builder_of(predicate: JSON) -> str:
    """Return the builder that a stranger's provenance names; an empty string where it names none."""
    found = _at(predicate, "runDetails", "builder", "id")
    return found if isinstance(found, str) else ""


def _at(document: object, *names: str) -> object:
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def speaks_of(kind: str, predicate: JSON, record_digest: str) -> bool:
    """Say whether a statement about an image is about the release with this record too, though other releases may have the same image.

    What names a record is about that one alone. What names none (another tool's bill of materials, another builder's provenance) is about
    the image, whoever has it; but a verdict is of a record, or of nothing.
    """
    named = _record_named(kind, predicate)
    return named == record_digest or (named is None and kind != VERDICT)


def _record_named(kind: str, predicate: JSON) -> str | None:
    """Return the digest of the record that a stranger's statement names, None where it names none."""
    found: object = None
    if kind == BILL:
        told = _at(predicate, "metadata", "properties")
        properties = [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []
        found = next((each.get("value") for each in properties if each.get("name") == RECORD), None)
    elif kind == PREDICATE:
        found = _at(predicate, "runDetails", "metadata", "invocationId")
    elif kind == VERDICT:
        found = predicate.get("record")
    return found if isinstance(found, str) and DIGEST.fullmatch(found) else None


def verdict(record: JSON, record_digest: str) -> JSON:
    """Return the predicate that says what was found about a release."""
    return {
        **{name: record[name] for name in ("cell", "state", "created")},
        "record": record_digest,
        "verdicts": [{name: each[name] for name in ("name", "status", "measured", "wanted")} for each in record["verdicts"]],
        "waivers": [{name: each[name] for name in ("validator", "outcome", "expires")} for each in record.get("waivers") or ()],
    }


def _dependencies(record: JSON) -> Iterator[JSON]:
    pins = record["pins"]
    for layer in pins["base"]["diff-ids"]:
        yield {"name": "base", "uri": f"pkg:generic/{record['chip']['id']}-base", "digest": _hex(layer)}
    for wheel in pins["wheels"]:
        yield {"uri": f"pkg:pypi/{wheel['name']}@{wheel['version']}", "digest": _hex(wheel["sha256"])}
    for source in pins["sources"]:
        digest = source.get("upstream-sha256") or source["sha256"]
        yield {"name": "upstream", "uri": f"pkg:pypi/{source['name']}@{source['version']}", "digest": _hex(digest)}
        yield from ({"name": f"patch {patch['file']}", "digest": _hex(patch["sha256"])} for patch in source["patches"])
    for source in pins.get("git") or ():
        yield {"uri": f"git+{source['repository']}", "digest": {"gitCommit": source["base"]}, "name": source["name"]}
        yield from ({"name": f"patch {patch['path']}", "digest": _hex(patch["sha256"])} for patch in source["patches"])
    for name, digest in (pins.get("checkpoint") or {}).items():
        yield {"name": f"checkpoint {name}", "uri": f"pkg:generic/{record['model']['id']}", "digest": _hex(digest)}
    for name in ("questions", "prompts"):
        if pins.get(name):
            yield {"name": name, "digest": _hex(pins[name])}


def _hex(digest: str) -> JSON:
    return {"sha256": digest.removeprefix("sha256:")}
