"""Two releases that share one image in one repository: each is verified and pulled by what is said of it, and of no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from distribution import Distribution, home, registry
from laid import key, public, whole
from records import record

from release.errors import (
    IncompleteError,
    PolicyError,
    PublishError,
    ReleaseError,
    UnsignedError,
    VerificationError,
    WrongKeyError,
)
from release.house import House
from release.oci import IMAGE_INDEX, IMAGE_MANIFEST, TITLE, Descriptor, Layout, canonical
from release.publish import signature
from release.publish.distribution import Registry
from release.publish.dsse import open_bundle, statement, strict
from release.publish.keys import PASSPHRASE, new_key, read_private, read_public
from release.publish.provenance import BILL, VERDICT, provenance, speaks_of, verdict
from release.publish.provenance import PREDICATE as PROVENANCE
from release.publish.reference import Reference
from release.publish.sbom import sbom
from release.publish.signature import SIGN, SIGNATURE, attest, find, publish, put, sign
from release.pull import pull
from release.signing import rotate, sign_release, verify_release
from release.types import JSON

__all__ = ["home", "key", "registry"]

DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
VULNERABILITIES = "https://cosign.sigstore.dev/attestation/vuln/v1"
KINDS = {"sbom": BILL, "provenance": PROVENANCE, "verdict": VERDICT}
integration = pytest.mark.integration


class Shared:
    """An image in a repository, and the releases of two cells that have it, with weights of their own, made a day apart."""

    def __init__(self, registry: Distribution, folder: Path) -> None:
        self.folder = folder
        self.first = registry.fresh("bf16")
        self.second = replace(self.first, tag="bf16-again")
        self.records = {
            self.first: record(),
            self.second: record(cell="abacus/pebble-7b@bf16~own", created="2026-11-21T12:00:00+00:00"),
        }
        for where, made in self.records.items():
            whole(folder / where.tag, made).publish(where)
        self.registry = Registry.at(self.first)
        entries = [json.loads(self.registry.get_manifest(where.tag)[1])["manifests"] for where in self.records]
        self.image = Descriptor.from_json(entries[0][0])
        assert entries[0][0] == entries[1][0], "they share no image"

    def told(self, where: Reference) -> dict[str, JSON]:
        """Return what is attested of a release."""
        made, digest = self.records[where], self.digest(where)
        return {BILL: sbom(made, digest), PROVENANCE: provenance(made, digest), VERDICT: verdict(made, digest)}

    def digest(self, where: Reference) -> str:
        """Return the digest of a release's record."""
        layers = [json.loads(self.registry.get_manifest(each["digest"])[1])["layers"] for each in self.index(where)]
        return next(str(each["digest"]) for (each, *_) in layers if each.get("annotations", {}).get(TITLE) == "release.json")

    def index(self, where: Reference) -> list[JSON]:
        """Return the entries of a release's index."""
        found: list[JSON] = json.loads(self.registry.get_manifest(where.tag)[1])["manifests"]
        return found

    def sign(self, where: Reference, key: Path) -> None:
        """Sign index and image of a release, and attest nothing."""
        layout = Layout.create(self.folder / f"signed-{where.tag}")
        for subject in (self.registry.get_manifest(where.tag)[0], self.image):
            publish(self.registry, layout, subject.digest, *sign(layout, subject, read_private(key), "x"))

    def attest(self, told: Mapping[str, JSON], key: Path) -> None:
        """Attest, by predicate type, what is told of the image."""
        layout = Layout.create(self.folder / "attested")
        payloads = {kind: statement(self.image.digest, kind, predicate) for kind, predicate in told.items()}
        made = [attest(layout, self.image, payload, kind, read_private(key)) for kind, payload in payloads.items()]
        put(self.registry, layout, self.image.digest, *made)

    def signed(self, key: Path) -> list[tuple[str, JSON]]:
        """Return what a key attests of the image, in the order of the registry's list."""
        layout, found = Layout.create(self.folder / "read"), []
        for entry in self.registry.referrers(self.image.digest):
            for layer in map(Descriptor.from_json, json.loads(self.registry.get_manifest(entry.digest)[1])["layers"]):
                if layer.media_type.startswith("application/vnd.dev.sigstore.bundle"):
                    self.registry.get_blob(layer, layout)
                    told = open_bundle(layout.blob(layer.digest).read_bytes(), [read_public(public(key))])
                    found += [(told.predicate_type, told.predicate)] if told else []
        return found

    def refused(self, where: Reference, kind: type[ReleaseError], code: int, key: Path, match: str | None = None) -> None:
        with pytest.raises(kind, match=match) as caught:
            verify_release(str(where), [public(key)], None)
        assert (type(caught.value), caught.value.exit_code) == (kind, code)


@pytest.fixture
def shared(registry: Distribution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shared:
    monkeypatch.delenv(PASSPHRASE, raising=False)
    return Shared(registry, tmp_path / "shared")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """The key of somebody whom nobody here trusts."""
    new_key(tmp_path / "theirs")
    return tmp_path / "theirs"


@integration
def test_two_releases_of_one_image_both_verify_and_each_pull_gives_its_own(
    shared: Shared, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    house = House.open((), tmp_path / "store", "auto")
    sign_release(str(shared.first), key)
    shared.refused(shared.second, UnsignedError, 10, key, match="index")
    for where in (shared.second, shared.first):
        sign_release(str(where), key)
        for each in shared.records:
            assert verify_release(str(each), [public(key)], None)[0] == shared.registry.digest_of(each.tag)
    for each, made in shared.records.items():
        pulled = pull(house, str(each), tmp_path / "pulled" / each.tag, into_engine=False, keys=[public(key)])
        assert pulled.record == made
        assert made["created"] in (pulled.folder / "README.md").read_text()


@integration
def test_what_a_third_party_says_of_the_image_changes_nothing(shared: Shared, key: Path, theirs: Path) -> None:
    for where in (shared.first, shared.second):
        sign_release(str(where), key)
    told = shared.told(shared.first)
    shared.attest({**told, VERDICT: {**told[VERDICT], "state": "blocked"}}, theirs)
    for where in (shared.first, shared.second):
        verify_release(str(where), [public(key)], None)
        shared.refused(where, WrongKeyError, 11, theirs)


@integration
def test_a_release_that_would_make_the_others_of_its_image_unverifiable_is_not_published(
    shared: Shared, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for where in (shared.first, shared.second):
        sign_release(str(where), key)
    there = len(shared.registry.referrers(shared.image.digest))
    monkeypatch.setattr(signature, "MOST", there)
    third = replace(shared.first, tag="bf16-third")
    built = whole(shared.folder / third.tag, record(created="2026-11-22T12:00:00+00:00"))
    with pytest.raises(PublishError, match="referrers"):
        built.publish(third, key=key)
    with pytest.raises(PublishError, match="referrers"):
        sign_release(str(shared.first), key)
    assert shared.registry.digest_of(third.tag) is None
    assert len(shared.registry.referrers(shared.image.digest)) == there
    for where in (shared.first, shared.second):
        verify_release(str(where), [public(key)], None)
    whole(shared.folder / "again", shared.records[shared.first]).publish(shared.first)  # what is there costs nobody anything


@integration
def test_two_that_sign_at_once_lose_no_signature_of_the_older_form(shared: Shared, key: Path, theirs: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda by: sign_release(str(shared.first), by), [key, theirs] * 2))
    tag = shared.image.digest.replace(":", "-") + ".sig"
    layers = json.loads(shared.registry.get_manifest(tag)[1])["layers"]
    assert len({layer["annotations"][SIGNATURE] for layer in layers}) == 4


@integration
def test_signatures_that_are_no_list_are_refused_by_who_signs(shared: Shared, key: Path) -> None:
    sign_release(str(shared.first), key)
    tag = shared.image.digest.replace(":", "-") + ".sig"
    known = strict(shared.registry.get_manifest(tag)[1], "signatures")
    shared.registry.put_manifest(tag, IMAGE_MANIFEST, canonical(known | {"layers": None}))
    with pytest.raises(VerificationError, match="no list"):
        sign_release(str(shared.first), key)


@integration
@pytest.mark.parametrize("name", KINDS)
def test_a_release_whose_own_statement_is_missing_is_refused_though_the_other_s_is_there(
    name: str, shared: Shared, key: Path, theirs: Path
) -> None:
    shared.sign(shared.first, key)
    told = shared.told(shared.first)
    shared.attest({kind: predicate for kind, predicate in told.items() if kind != KINDS[name]}, key)
    shared.attest({KINDS[name]: told[KINDS[name]]}, theirs)
    shared.refused(shared.first, IncompleteError, 12, key, match=f"attests a {name}")
    sign_release(str(shared.second), key)
    shared.refused(shared.first, VerificationError, 5, key, match=f"the signed {name} is of another record")
    verify_release(str(shared.second), [public(key)], None)


@integration
def test_statements_that_were_taken_away_are_missed_on_their_release_alone(shared: Shared, key: Path) -> None:
    for where in (shared.first, shared.second):
        sign_release(str(where), key)
    mine = shared.digest(shared.first)
    layout, kept = Layout.create(shared.folder / "kept"), []
    for entry in shared.registry.referrers(shared.image.digest):
        layer = Descriptor.from_json(json.loads(shared.registry.get_manifest(entry.digest)[1])["layers"][0])
        shared.registry.get_blob(layer, layout)
        if layer.media_type.startswith("application/vnd.dev.sigstore.bundle"):
            told = open_bundle(layout.blob(layer.digest).read_bytes(), [read_public(public(key))])
            if told and told.predicate_type == VERDICT and told.predicate["record"] == mine:
                continue
        kept.append(entry.to_json())
    document = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": kept}
    shared.registry.put_manifest(shared.image.digest.replace(":", "-"), IMAGE_INDEX, canonical(document))
    shared.refused(shared.first, VerificationError, 5, key, match="the signed verdict is of another record")
    verify_release(str(shared.second), [public(key)], None)


@integration
def test_the_provenance_of_another_builder_counts_beside_ours_only_where_a_policy_names_it(
    shared: Shared, key: Path, tmp_path: Path
) -> None:
    foreign = {"runDetails": {"builder": {"id": "https://ci.example/builder"}, "metadata": {"invocationId": "run 7"}}}
    sign_release(str(shared.first), key)
    shared.attest({PROVENANCE: foreign}, key)
    verify_release(str(shared.first), [public(key)], None)
    (tmp_path / "policy.yaml").write_text("builders: ['https://ci.example/builder']\n")
    checks = verify_release(str(shared.first), [public(key)], tmp_path / "policy.yaml")[1]
    assert [check.found for check in checks if check.what == "built by"] == ["https://ci.example/builder"]
    (tmp_path / "policy.yaml").write_text("builders: ['https://another.example']\n")
    with pytest.raises(PolicyError, match="of the builder"):
        verify_release(str(shared.first), [public(key)], tmp_path / "policy.yaml")


# A key that is replaced


@integration
def test_a_new_key_attests_what_the_old_one_did_of_this_release_and_nothing_more(
    shared: Shared, key: Path, theirs: Path, tmp_path: Path
) -> None:
    new_key(tmp_path / "next")
    for where in (shared.first, shared.second):
        sign_release(str(where), key)
    shared.attest({VULNERABILITIES: {"scanner": "ours"}}, key)
    forged = {**verdict(shared.records[shared.first], shared.digest(shared.first)), "verdicts": []}
    shared.attest({VERDICT: forged, VULNERABILITIES: {"scanner": "forged"}}, theirs)
    rotate(public(key), tmp_path / "next", [str(shared.first)])
    anew = {kind: predicate for kind, predicate in shared.signed(tmp_path / "next") if kind != SIGN}
    assert anew == {**shared.told(shared.first), VULNERABILITIES: {"scanner": "ours"}}
    assert len(shared.signed(tmp_path / "next")) == len(anew) + 1, "and the image's own signature"
    verify_release(str(shared.first), [public(tmp_path / "next")], None)
    shared.refused(shared.second, WrongKeyError, 11, tmp_path / "next")


@integration
def test_a_new_key_signs_what_the_old_one_did_to_the_byte_and_what_was_said_of_the_index_too(
    shared: Shared, key: Path, tmp_path: Path
) -> None:
    new_key(tmp_path / "next")
    sign_release(str(shared.first), key)
    index, layout = shared.registry.get_manifest(shared.first.tag)[0], Layout.create(tmp_path / "layout")
    said = {}
    for subject in (index, shared.image):
        said[subject.digest] = statement(subject.digest, VULNERABILITIES, {"worst": "?"}).replace(b'"?"', b"1e400")
        put(
            shared.registry,
            *(layout, subject.digest, attest(layout, subject, said[subject.digest], VULNERABILITIES, read_private(key))),
        )
    rotate(public(key), tmp_path / "next", [str(shared.first)])
    for number, (digest, payload) in enumerate(said.items()):
        found = find(shared.registry, digest, [read_public(public(tmp_path / "next"))], tmp_path / str(number))
        assert payload in [each.payload for each in found.attested]


@integration
def test_what_only_others_attested_is_not_attested_by_the_new_key(
    shared: Shared, key: Path, theirs: Path, tmp_path: Path
) -> None:
    new_key(tmp_path / "next")
    shared.sign(shared.first, key)
    told = shared.told(shared.first)
    shared.attest({VERDICT: told[VERDICT]}, key)
    shared.attest({kind: told[kind] for kind in (BILL, PROVENANCE)}, theirs)
    rotate(public(key), tmp_path / "next", [str(shared.first)])
    assert sorted(kind for kind, _ in shared.signed(tmp_path / "next")) == [SIGN, VERDICT]
    shared.refused(shared.first, IncompleteError, 12, tmp_path / "next", match="attests a sbom")


@integration
@pytest.mark.parametrize("change", [{"state": "built"}, {"verdicts": None}])
def test_a_rotation_signs_nothing_where_one_release_is_not_in_order(
    change: JSON, shared: Shared, key: Path, tmp_path: Path
) -> None:
    new_key(tmp_path / "next")
    for where in (shared.first, shared.second):
        sign_release(str(where), key)
    shared.attest({VERDICT: {**shared.told(shared.second)[VERDICT], **change}}, key)
    with pytest.raises(VerificationError, match="the signed verdict"):
        rotate(public(key), tmp_path / "next", [str(shared.first), str(shared.second)])
    assert shared.signed(tmp_path / "next") == []
    shared.refused(shared.first, WrongKeyError, 11, tmp_path / "next")


@integration
def test_a_rotation_wants_the_image_signed_by_the_old_key_too(shared: Shared, key: Path, theirs: Path, tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "layout")
    index = shared.registry.get_manifest(shared.first.tag)[0]
    publish(shared.registry, layout, index.digest, *sign(layout, index, read_private(key), "x"))
    sign_release(str(shared.first), theirs)
    new_key(tmp_path / "next")
    with pytest.raises(UnsignedError, match=r"the image of .* is not signed by key\.pub"):
        rotate(public(key), tmp_path / "next", [str(shared.first)])
    assert shared.signed(tmp_path / "next") == []


# What a statement names


@pytest.mark.parametrize("told", [None, 7, "", "sha256:short", [], {}])
def test_a_verdict_that_names_no_record_is_of_none(told: object) -> None:
    assert not speaks_of(VERDICT, {"record": told}, DIGEST)


def test_a_statement_that_names_a_record_is_of_that_one_alone() -> None:
    for kind, predicate in (
        (BILL, sbom(record(), DIGEST)),
        (PROVENANCE, provenance(record(), DIGEST)),
        (VERDICT, verdict(record(), DIGEST)),
    ):
        assert speaks_of(kind, predicate, DIGEST) and not speaks_of(kind, predicate, OTHER)


@pytest.mark.parametrize(
    ("kind", "predicate"),
    [
        (BILL, {"bomFormat": "CycloneDX"}),
        (BILL, {"metadata": {"properties": [{"name": "other:record", "value": OTHER}, 7, {}]}}),
        (BILL, {"metadata": []}),
        (PROVENANCE, {"runDetails": {"metadata": {"invocationId": "https://ci.example/run/7"}}}),
        (PROVENANCE, {"runDetails": 7}),
        ("https://spdx.dev/Document", {"record": OTHER}),
    ],
)
def test_what_names_no_record_is_of_the_image_whoever_has_it(kind: str, predicate: JSON) -> None:
    assert speaks_of(kind, predicate, DIGEST)
