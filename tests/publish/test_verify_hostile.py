"""What a hostile registry can say about a release when it is verified: each refusal with its own exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from distribution import Scripted, Shelf, at, home, index, manifest, scripted
from records import record

from release.errors import IncompleteError, PolicyError, PublishError, ReleaseError, UnsignedError, VerificationError
from release.oci import (
    EMPTY_JSON,
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR,
    METADATA_LIMIT,
    NOWHERE,
    TITLE,
    Descriptor,
    Layout,
    canonical,
    put_artifact,
    sha256,
)
from release.publish.artifact import RECORD_TYPE
from release.publish.dsse import BUNDLE_TYPE, statement
from release.publish.keys import PASSPHRASE, Private, Public, new_key, read_private
from release.publish.provenance import BILL, VERDICT, provenance, verdict
from release.publish.provenance import PREDICATE as PROVENANCE
from release.publish.sbom import sbom
from release.publish.signature import MOST, MOST_BUNDLES, SIGN, SIGNATURE, SIMPLE, attest, sign
from release.publish.transport import Transport
from release.publish.verify import verify
from release.types import JSON
from release.types.policy import Policy

__all__ = ["home"]

TODAY = date(2026, 11, 27)
integration = pytest.mark.integration


def tag(subject: Descriptor) -> str:
    return subject.digest.replace(":", "-")


class Hostile:
    """A signed release as ours are, on the shelf of a registry that then says of it what a test wants."""

    def __init__(self, folder: Path, server: Scripted, shelf: Shelf) -> None:
        new_key(folder / "key")
        self.key: Private = read_private(folder / "key")
        self.public: Public = self.key.public("key.pub")
        self.server, self.shelf, self.folder = server, shelf, folder
        self.layout = Layout.create(folder / "layout")
        layer = self.layout.put(LAYER_TAR, b"layer")
        rootfs = {"type": "layers", "diff_ids": [layer.digest]}
        config = self.layout.put_json(IMAGE_CONFIG, {"architecture": "amd64", "os": "linux", "rootfs": rootfs})
        self.image = self.layout.put_json(IMAGE_MANIFEST, manifest(config, layer))
        told = self.layout.put("application/json", canonical(record()), {TITLE: "release.json"})
        part = put_artifact(self.layout, RECORD_TYPE, [told], subject=self.image)
        linux = replace(self.image, platform={"os": "linux", "architecture": "amd64"})
        self.index = self.layout.put_json(IMAGE_INDEX, index(linux, replace(part, platform=NOWHERE)))
        self.statements: dict[str, JSON] = {
            BILL: sbom(record(), told.digest),
            PROVENANCE: provenance(record(), told.digest),
            VERDICT: verdict(record(), told.digest),
        }
        for subject in (self.index, self.image):
            simple, bundled = sign(self.layout, subject, self.key, "127.0.0.1/team/model")
            self.refer(subject, bundled)
            self.shelf.manifests[f"{tag(subject)}.sig"] = IMAGE_MANIFEST, self.layout.blob(simple.digest).read_bytes()

    def attest(self, **changes: Any) -> None:
        """Attest everything of the image, with another provenance if one is given, and without what is `left_out`."""
        made = self.statements if "provenance" not in changes else {**self.statements, PROVENANCE: changes["provenance"]}
        wanted = [kind for kind in made if kind != changes.get("left_out")]
        told = [
            attest(self.layout, self.image, statement(self.image.digest, kind, made[kind]), kind, self.key) for kind in wanted
        ]
        self.refer(self.image, *told)

    def refer(self, subject: Descriptor, *referrers: Descriptor) -> None:
        """List referrers under the fallback tag, which is what this registry keeps."""
        self.shelf.add(index(*referrers), tag=tag(subject))

    def verify(self, policy: Policy | None = None) -> list[str]:
        for path in (self.layout.path / "blobs" / "sha256").iterdir():
            data, name = path.read_bytes(), f"sha256:{path.name}"
            self.shelf.blobs[name] = data
            kind = json.loads(data).get("mediaType") if data.startswith(b"{") else ""
            if kind in (IMAGE_INDEX, IMAGE_MANIFEST):
                self.shelf.manifests.setdefault(name, (kind, data))
        scratch = self.folder / "scratch"
        scratch.mkdir()
        _, checks = verify(at(self.server), self.index.digest, [self.public], policy or Policy(), TODAY, scratch)
        return [check.what for check in checks]

    def refused(self, kind: type[ReleaseError], code: int, match: str, policy: Policy | None = None) -> None:
        with pytest.raises(kind, match=match) as caught:
            self.verify(policy)
        assert type(caught.value) is kind and caught.value.exit_code == code
        assert len(str(caught.value)) < 600


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Hostile]:
    monkeypatch.delenv(PASSPHRASE, raising=False)
    shelf = Shelf()
    with scripted(shelf) as server:
        yield Hostile(tmp_path, server, shelf)


@integration
def test_what_is_whole_is_let_in(hostile: Hostile) -> None:
    hostile.attest()
    assert "built by" in hostile.verify()


@integration
@pytest.mark.parametrize(("kind", "name"), [(BILL, "sbom"), (PROVENANCE, "provenance"), (VERDICT, "verdict")])
def test_a_statement_that_is_missing_makes_it_incomplete(kind: str, name: str, hostile: Hostile) -> None:
    hostile.attest(left_out=kind)
    hostile.refused(IncompleteError, 12, f"attests a {name}")


@integration
@pytest.mark.parametrize(
    "predicate",
    [
        {"runDetails": {"builder": {"id": "https://evil.example/builder"}}},
        {},
        {"runDetails": []},
        {"runDetails": {"builder": {"id": 7}}},
    ],
)
def test_provenance_of_another_builder_is_against_the_policy(predicate: JSON, hostile: Hostile) -> None:
    hostile.attest(provenance=predicate)
    hostile.refused(PolicyError, 13, "its provenance is of the builder")


@integration
def test_a_policy_can_name_the_builder_that_counts(hostile: Hostile) -> None:
    hostile.attest(provenance={"runDetails": {"builder": {"id": "https://ci.example/builder"}}})
    assert "built by" in hostile.verify(Policy(builders=("https://ci.example/builder",)))


@integration
def test_a_list_that_names_the_bundle_of_another_digest_proves_nothing(hostile: Hostile) -> None:
    del hostile.shelf.manifests[f"{tag(hostile.index)}.sig"]
    hostile.refer(hostile.index, sign(hostile.layout, hostile.image, hostile.key, "x")[1])
    hostile.refused(UnsignedError, 10, "index")


@integration
def test_a_bundle_that_was_moved_to_another_digest_is_tampering(hostile: Hostile) -> None:
    moved = attest(hostile.layout, hostile.index, statement(hostile.image.digest, SIGN, {}), SIGN, hostile.key)
    hostile.refer(hostile.index, moved)
    hostile.refused(VerificationError, 5, "a statement at")


def claims(hostile: Hostile, size: int) -> Descriptor:
    """Return a referrer whose bundle claims `size` bytes, and is not there."""
    bundle = Descriptor(BUNDLE_TYPE, sha256(b"giant"), size)
    return put_artifact(hostile.layout, BUNDLE_TYPE, [bundle], subject=hostile.index)


def junk(hostile: Hostile) -> Descriptor:
    """Return a referrer with the largest bundle that is still read, which is nothing but brackets."""
    bundle = hostile.layout.put(BUNDLE_TYPE, b"[" * METADATA_LIMIT)
    return put_artifact(hostile.layout, BUNDLE_TYPE, [bundle], subject=hostile.index)


def crowd(hostile: Hostile) -> Descriptor:
    """Return a referrer with more bundles than anybody puts into one."""
    many = [Descriptor(BUNDLE_TYPE, sha256(str(n).encode()), 1) for n in range(MOST_BUNDLES + 1)]
    return put_artifact(hostile.layout, BUNDLE_TYPE, many, subject=hostile.index)


@integration
@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda hostile: claims(hostile, METADATA_LIMIT + 1), "claims"),
        (lambda hostile: claims(hostile, (1 << 50) - 1), "claims"),
        (junk, "a bundle cannot be read"),
        (crowd, "more than 16 bundles"),
    ],
)
def test_a_bundle_that_is_too_much_is_refused(made: Callable[[Hostile], Descriptor], said: str, hostile: Hostile) -> None:
    hostile.refer(hostile.index, made(hostile))
    hostile.refused(VerificationError, 5, said)
    assert not [seen for seen in hostile.server.seen if seen.path.endswith(sha256(b"giant"))]


@integration
@pytest.mark.parametrize("number", [MOST + 1, 10_000])
def test_too_many_referrers_are_refused_before_one_is_opened(number: int, hostile: Hostile) -> None:
    hostile.refer(hostile.index, *(Descriptor(IMAGE_MANIFEST, sha256(str(n).encode()), 9) for n in range(number)))
    hostile.refused(VerificationError, 5, f"more than {MOST} referrers")
    assert not [seen for seen in hostile.server.seen if seen.path.endswith(sha256(b"0"))]


@integration
def test_too_many_signatures_are_refused_before_one_is_read(hostile: Hostile) -> None:
    config = hostile.layout.put(EMPTY_JSON, b"{}")
    many = [Descriptor(SIMPLE, sha256(str(n).encode()), 9, {SIGNATURE: "YQ=="}) for n in range(MOST + 1)]
    hostile.shelf.manifests[f"{tag(hostile.index)}.sig"] = IMAGE_MANIFEST, canonical(manifest(config, *many))
    hostile.refused(VerificationError, 5, "no sound list")
    assert not [seen for seen in hostile.server.seen if seen.path.endswith(sha256(b"0"))]


@integration
@pytest.mark.parametrize("size", [-1, 1 << 63, 1 << 200, "9", True, 1.5, None])
def test_an_impossible_size_is_refused_wherever_verifying_reads_one(size: object, hostile: Hostile) -> None:
    entry = {**claims(hostile, 9).to_json(), "size": size}
    hostile.shelf.add({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [entry]}, tag=tag(hostile.index))
    hostile.refused(VerificationError, 5, "impossible size")


# What needs no release


@pytest.mark.parametrize(
    "location",
    ["http://registry.example.org/v2/x", "http://127.0.0.1/x", "http://other.example.org/x", "HTTP://registry.example.org/x"],
)
def test_an_https_registry_cannot_send_us_to_plain_http(location: str) -> None:
    with pytest.raises(PublishError, match="plain http"):
        Transport("registry.example.org", "team/model").address(location)


@integration
def test_a_wrong_passphrase_stands_neither_in_the_error_nor_in_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE, "right-and-secret")
    new_key(tmp_path / "key")
    words = [sys.executable, "-m", "release", "--traceback", "sign", "127.0.0.1:9/team/model:1", "--key", "key"]
    environment = {**os.environ, PASSPHRASE: "wrong-but-secret"}
    ran = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" in ran.stderr and f"{PASSPHRASE} is not its passphrase" in ran.stderr
    body = (tmp_path / "key").read_text().splitlines()[1:-1]
    assert not [secret for secret in ("-secret", *body) if secret in ran.stdout + ran.stderr]
