"""The bill of materials of a release, CycloneDX 1.6: Debian packages, wheels with their digests, what the vendor changed, and the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType, Diff, Patch, PatchClassification, Pedigree
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from release.publish.provenance import RECORD
from release.types import JSON


def sbom(record: JSON, record_digest: str) -> JSON:
    """Return the bill of materials of a built release: equal records, equal documents.

    It names the record, and has a serial number of its own for each: releases that share an image may differ in their weights.
    """
    digest = str(record["image"]["manifest"]["digest"])
    bom = Bom(serial_number=uuid5(NAMESPACE_URL, record_digest))
    bom.metadata.properties.add(Property(name=RECORD, value=record_digest))
    bom.metadata.timestamp = datetime.fromisoformat(str(record["created"]))
    bom.metadata.component = Component(
        type=ComponentType.CONTAINER,
        name=str(record["cell"]),
        version=digest,
        bom_ref=digest,
        hashes=[_hash(digest)],
        purl=PackageURL("oci", None, str(record["model"]["id"]), digest, {"tag": str(record["precision"])}),
    )
    parts = [*_packages(record), *_wheels(record), *_sources(record), _model(record)]
    for component in parts:
        bom.components.add(component)
    bom.register_dependency(bom.metadata.component, parts)
    document: JSON = json.loads(JsonV1Dot6(bom).output_as_string())
    return document


def _packages(record: JSON) -> Iterator[Component]:
    for name, version in sorted((record["pins"]["base"].get("packages") or {}).items()):
        purl = PackageURL("deb", "debian", name, str(version))
        yield Component(type=ComponentType.LIBRARY, name=name, version=str(version), purl=purl, bom_ref=str(purl))


def _wheels(record: JSON) -> Iterator[Component]:
    patched = {source["name"] for source in record["pins"]["sources"]}
    for wheel in record["pins"]["wheels"]:
        if wheel["name"] not in patched:
            yield _wheel(wheel)


def _sources(record: JSON) -> Iterator[Component]:
    """Yield what the vendor's patches changed: each patch in its pedigree, and its digest, which has no place there, in a property."""
    for source in record["pins"]["sources"]:
        yield _wheel(source)
    for source in record["pins"].get("git") or ():
        commit = str(source["base"])
        yield Component(
            type=ComponentType.LIBRARY,
            name=str(source["name"]),
            version=commit,
            bom_ref=f"git:{source['name']}@{commit}",
            pedigree=_pedigree([str(patch["path"]) for patch in source["patches"]]),
            properties=[
                Property(name="release:repository", value=str(source["repository"])),
                Property(name="release:tree", value=str(source["tree"])),
                *(Property(name=f"release:patch:{patch['path']}", value=str(patch["sha256"])) for patch in source["patches"]),
            ],
        )


def _wheel(wheel: JSON) -> Component:
    purl = PackageURL("pypi", None, str(wheel["name"]), str(wheel["version"]))
    patches = wheel.get("patches") or ()
    return Component(
        type=ComponentType.LIBRARY,
        name=str(wheel["name"]),
        version=str(wheel["version"]),
        purl=purl,
        bom_ref=str(purl),
        hashes=[_hash(str(wheel["sha256"]))],
        pedigree=_pedigree([str(patch["file"]) for patch in patches]),
        properties=[Property(name=f"release:patch:{patch['file']}", value=str(patch["sha256"])) for patch in patches],
    )


def _model(record: JSON) -> Component:
    model = record["model"]
    files = [
        Component(type=ComponentType.FILE, name=name, bom_ref=f"weights:{name}", hashes=[_hash(str(file["sha256"]))])
        for name, file in sorted(record["weights"]["files"].items())
    ]
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=str(model["id"]),
        version=str(record["weights"]["precision"]),
        bom_ref=f"model:{model['id']}",
        description=str(model["description"]),
        licenses=[DisjunctiveLicense(name=str(model["license"]))],
        components=files,
    )


def _pedigree(patches: list[str]) -> Pedigree | None:
    if not patches:
        return None
    return Pedigree(patches=[Patch(type=PatchClassification.UNOFFICIAL, diff=Diff(url=XsUri(name))) for name in patches])


def _hash(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest.removeprefix("sha256:"))
