"""A signed release verifies, with our own verifier and with cosign's; whatever was touched, left out or signed by others does not."""

from __future__ import annotations

import base64
import json
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from distribution import Distribution, home, manifest, registry
from peers import Peer, fetched
from records import record

from release.errors import IncompleteError, PolicyError, ReleaseError, UnsignedError, UsageError, VerificationError, WrongKeyError
from release.oci import (
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR,
    NOWHERE,
    TITLE,
    Descriptor,
    Layout,
    canonical,
    put_artifact,
    sha256,
)
from release.publish.artifact import RECORD_TYPE
from release.publish.distribution import Registry
from release.publish.dsse import BUNDLE_TYPE, PAYLOAD_TYPE, bundle, open_bundle, pae, statement, strict, unbase64
from release.publish.folder import export
from release.publish.keys import PASSPHRASE, new_key, read_private, read_public
from release.publish.provenance import VERDICT, provenance, verdict
from release.publish.reference import Reference
from release.publish.registry import push
from release.publish.sbom import sbom
from release.publish.signature import SIGN, attest, publish, put, sign
from release.signing import sign_release, verify_release
from release.types import JSON

__all__ = ["home", "registry"]

DIGEST = "sha256:" + "a" * 64
TODAY = date(2026, 11, 27)


@pytest.fixture(autouse=True)
def no_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSPHRASE, raising=False)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    new_key(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    new_key(tmp_path / "other")
    return tmp_path / "other"


def public(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


# Keys


def test_a_new_key_is_its_owner_s_alone_and_never_replaces_one(tmp_path: Path) -> None:
    new_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert read_private(tmp_path / "key").public().hint == read_public(tmp_path / "key.pub").hint
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(UsageError, match="never replaced"):
        new_key(tmp_path / "key")
    (tmp_path / "b.pub").write_text("mine")
    with pytest.raises(UsageError, match="never replaced"):
        new_key(tmp_path / "b")
    assert (tmp_path / "key").read_bytes() == before and not (tmp_path / "b").exists()


def test_a_key_that_others_can_read_is_refused(key: Path) -> None:
    key.chmod(0o640)
    with pytest.raises(UsageError, match="can be read by others"):
        read_private(key)


def test_an_encrypted_key_opens_with_its_passphrase_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE, "open sesame")
    new_key(tmp_path / "key")
    assert b"ENCRYPTED" in (tmp_path / "key").read_bytes()
    read_private(tmp_path / "key")
    monkeypatch.setenv(PASSPHRASE, "wrong")
    with pytest.raises(UsageError, match="is not its passphrase") as caught:
        read_private(tmp_path / "key")
    assert "wrong" not in str(caught.value)
    monkeypatch.delenv(PASSPHRASE)
    with pytest.raises(UsageError, match="is encrypted"):
        read_private(tmp_path / "key")


def pem(kind: str) -> tuple[bytes, bytes]:
    """Return a private and a public key of another kind."""
    made: Any = {
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
    }[kind]()
    form = serialization.PrivateFormat.PKCS8
    return (
        made.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()),
        made.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


@pytest.mark.parametrize("kind", ["P-384", "RSA", "Ed25519"])
def test_keys_of_another_kind_are_refused(kind: str, tmp_path: Path) -> None:
    private, shown = pem(kind)
    (tmp_path / "k").write_bytes(private)
    (tmp_path / "k").chmod(0o600)
    (tmp_path / "k.pub").write_bytes(shown)
    with pytest.raises(UsageError, match="P-256"):
        read_private(tmp_path / "k")
    with pytest.raises(UsageError, match="P-256"):
        read_public(tmp_path / "k.pub")


@pytest.mark.parametrize("text", [b"", b"-----BEGIN PUBLIC KEY-----", b"\x00" * 100, b"x" * 20_000])
def test_what_is_no_key_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(text)
    (tmp_path / "k").chmod(0o600)
    for read in (read_private, read_public):
        with pytest.raises(UsageError):
            read(tmp_path / "k")
    with pytest.raises(UsageError, match="cannot be read"):
        read_public(tmp_path / "none")


# Envelopes


def test_what_is_signed_says_its_type_and_its_length() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_a_bundle_opens_with_the_key_that_made_it_and_no_other(key: Path, other: Path) -> None:
    data = bundle(statement(DIGEST, SIGN, {}), read_private(key))
    signed = open_bundle(data, [read_public(public(other)), read_public(public(key))])
    assert signed is not None and (signed.key.name, signed.subjects, signed.predicate_type) == ("key.pub", (DIGEST,), SIGN)
    assert open_bundle(data, [read_public(public(other))]) is None


def changed(data: bytes, change: Callable[[JSON], object]) -> bytes:
    document = json.loads(data)
    change(document)
    return canonical(document)


def flipped(document: JSON) -> None:
    payload = bytearray(base64.b64decode(document["dsseEnvelope"]["payload"]))
    payload[payload.index(b"a" * 64) : payload.index(b"a" * 64) + 1] = b"b"
    document["dsseEnvelope"]["payload"] = base64.b64encode(bytes(payload)).decode()


def test_a_statement_that_was_touched_is_nobody_s(key: Path) -> None:
    data = changed(bundle(statement(DIGEST, SIGN, {}), read_private(key)), flipped)
    assert open_bundle(data, [read_public(public(key))]) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(mediaType="application/vnd.dev.sigstore.bundle.v0.2+json"),
        lambda d: d["dsseEnvelope"].update(payloadType="application/vnd.other+json"),
        lambda d: d["dsseEnvelope"].update(payload="A" * 5),
        lambda d: d["dsseEnvelope"].update(payload="YQ=", payloadType=PAYLOAD_TYPE),
        lambda d: d["dsseEnvelope"].update(signatures=[]),
        lambda d: d["dsseEnvelope"].update(signatures=[{"sig": "x"}] * 100),
        lambda d: d["dsseEnvelope"]["signatures"][0].update(sig=d["dsseEnvelope"]["signatures"][0]["sig"] + "\n"),
        lambda d: d["dsseEnvelope"].update(payload=base64.b64encode(b'{"_type": "x"}').decode()),
        lambda d: d.pop("dsseEnvelope"),
    ],
)
def test_a_bundle_of_another_shape_is_refused(change: Callable[[JSON], object], key: Path) -> None:
    data = changed(bundle(statement(DIGEST, SIGN, {}), read_private(key)), change)
    with pytest.raises(VerificationError):
        open_bundle(data, [read_public(public(key))])


@pytest.mark.parametrize("data", [b'{"a": 1, "a": 2}', b"[]", b'{"a": NaN}', b"\xff", b"[" * 100_000, b"{}" + b" " * (5 << 20)])
def test_json_that_two_readers_may_read_differently_is_refused(data: bytes) -> None:
    with pytest.raises(VerificationError):
        strict(data, "it")


@pytest.mark.parametrize("text", ["YQ", "YQ=", "YR==", "Y Q==", "YQ==\n", "-_==", None, 5])
def test_base64_of_another_spelling_is_refused(text: object) -> None:
    with pytest.raises(VerificationError):
        unbase64(text, "it")
    assert unbase64("YQ==", "it") == b"a"


# Releases in a real registry


WAIVED = {"validator": "accuracy", "reason": "r", "outcome": "applied"}


class Published:
    """A small release in a registry, whose parts are as ours are."""

    def __init__(self, registry: Distribution, folder: Path, made: JSON) -> None:
        self.where = registry.fresh("bf16")
        self.layout = Layout.create(folder / "layout")
        layer = self.layout.put(LAYER_TAR, b"layer")
        rootfs = {"type": "layers", "diff_ids": [layer.digest]}
        config = self.layout.put_json(IMAGE_CONFIG, {"architecture": "amd64", "os": "linux", "rootfs": rootfs})
        self.image = self.layout.put_json(IMAGE_MANIFEST, manifest(config, layer))
        self.index = self.release(made)
        push(self.layout, self.index, self.where)

    def release(self, made: JSON) -> Descriptor:
        """Return the index of a release of the image, with this record."""
        told = self.layout.put("application/json", canonical(made), {TITLE: "release.json"})
        part = put_artifact(self.layout, RECORD_TYPE, [told], subject=self.image)
        entries = [
            {**self.image.to_json(), "platform": {"os": "linux", "architecture": "amd64"}},
            {**part.to_json(), "platform": NOWHERE},
        ]
        return self.layout.put_json(IMAGE_INDEX, {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries})

    @property
    def registry(self) -> Registry:
        return Registry.at(self.where)

    def sign(self, subject: Descriptor, key: Path, of: Descriptor | None = None) -> None:
        """Publish a signature at `subject`; with `of`, one that is of something else."""
        made = sign(self.layout, of or subject, read_private(key), f"{self.where.host}/{self.where.name}")
        publish(self.registry, self.layout, subject.digest, *made)

    def attest(self, kind: str, predicate: JSON, key: Path) -> None:
        """Publish a signed statement about the image."""
        made = attest(self.layout, self.image, statement(self.image.digest, kind, predicate), kind, read_private(key))
        put(self.registry, self.layout, self.image.digest, made)

    def refused(self, kind: type[ReleaseError], *keys: Path, policy: Path | None = None, match: str | None = None) -> None:
        with pytest.raises(kind, match=match) as caught:
            verify_release(str(self.where), [public(key) for key in keys], policy, TODAY)
        assert type(caught.value) is kind


def sound(**changes: Any) -> JSON:
    made = record(**changes)
    made["verdicts"] = [{**verdict, "reason": verdict["reason"]} for verdict in made["verdicts"]]
    return made


@pytest.fixture
def release(registry: Distribution, tmp_path: Path) -> Published:
    return Published(registry, tmp_path, sound())


integration = pytest.mark.integration


@integration
def test_a_signed_release_verifies_by_tag_and_by_digest(release: Published, key: Path, other: Path) -> None:
    told = sign_release(str(release.where), key)
    assert told[:2] == [f"signed {release.index.digest}", f"signed {release.image.digest}"] and len(told) == 5
    digest, checks = verify_release(str(release.where), [public(other), public(key)], None, TODAY)
    told = {check.what: check.found for check in checks}
    assert digest == release.index.digest
    assert told["index signed by"] == told["image signed by"] == "key.pub"
    assert told["state"] == "validated"
    by_digest = str(Reference(release.where.host, release.where.name, "", digest))
    assert verify_release(by_digest, [public(key)], None, TODAY)[0] == digest


@integration
def test_signing_twice_and_by_another_keeps_what_was_there(release: Published, key: Path, other: Path) -> None:
    for each in (key, other, key):
        sign_release(str(release.where), each)
    for each in (key, other):
        verify_release(str(release.where), [public(each)], None, TODAY)


@integration
def test_without_a_key_nothing_is_verified(release: Published) -> None:
    release.refused(UsageError, match="proves nothing")


@integration
def test_what_nobody_signed_is_unsigned(release: Published, key: Path) -> None:
    release.refused(UnsignedError, key)


@integration
def test_what_only_others_signed_is_the_wrong_key_s(release: Published, key: Path, other: Path) -> None:
    sign_release(str(release.where), other)
    release.refused(WrongKeyError, key)


@integration
def test_an_index_that_is_signed_with_an_image_that_is_not_is_unsigned(release: Published, key: Path) -> None:
    release.sign(release.index, key)
    release.refused(UnsignedError, key, match="image")


@integration
def test_a_signature_of_another_digest_is_tampering(release: Published, key: Path) -> None:
    release.sign(release.index, key, of=release.image)
    release.refused(VerificationError, key)


@integration
def test_a_signed_statement_of_another_kind_is_no_signature(release: Published, key: Path) -> None:
    for subject in (release.index, release.image):
        payload = statement(subject.digest, "https://cyclonedx.org/bom", {"bomFormat": "CycloneDX"})
        made = attest(release.layout, subject, payload, "https://cyclonedx.org/bom", read_private(key))
        put(release.registry, release.layout, subject.digest, made)
    release.refused(UnsignedError, key, match="1 statements about it are no signature")


@integration
def test_signatures_that_were_taken_away_leave_it_unsigned(release: Published, key: Path) -> None:
    sign_release(str(release.where), key)
    empty = canonical({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []})
    for subject in (release.index, release.image):
        release.registry.put_manifest(subject.digest.replace(":", "-"), IMAGE_INDEX, empty)
        none = release.layout.put_json(IMAGE_CONFIG, {})
        release.registry.put_blob(none, release.layout.blob(none.digest))
        release.registry.put_manifest(f"{subject.digest.replace(':', '-')}.sig", IMAGE_MANIFEST, canonical(manifest(none)))
    release.refused(UnsignedError, key)


@integration
def test_a_release_without_a_record_is_incomplete(registry: Distribution, tmp_path: Path, key: Path) -> None:
    release = Published(registry, tmp_path, {"schema": "another/1"})
    for subject in (release.index, release.image):
        release.sign(subject, key)
    with pytest.raises(IncompleteError):
        sign_release(str(release.where), key)
    release.refused(IncompleteError, key, match="schema")


@integration
@pytest.mark.parametrize(
    ("made", "policy", "said"),
    [
        ({"state": "built"}, "", "its verdicts come to validated"),
        ({}, "chips: [another]", "is none of another"),
        ({}, "not-older-than: 1", "the policy wants at most 1"),
        ({}, "sources: ['sha256:" + "9" * 63 + "0']", "was not made from"),
        ({}, "base: 'sha256:" + "7" * 64 + "'", "does not stand on the base"),
        (
            {"waivers": [{"validator": "accuracy", "reason": "r", "expires": "2026-11-26", "outcome": "applied"}]},
            "",
            "expired on",
        ),
        (
            {"waivers": [{"validator": "accuracy", "reason": "r", "expires": "2099-01-01", "outcome": "applied"}]},
            "no-waivers: true",
            "wants no waivers",
        ),
    ],
)
def test_what_the_policy_does_not_let_in_is_told_apart(
    registry: Distribution, tmp_path: Path, key: Path, made: JSON, policy: str, said: str
) -> None:
    release = Published(registry, tmp_path, sound(**made))
    sign_release(str(release.where), key)
    rules = tmp_path / "policy.yaml"
    rules.write_text(policy or "state: built\n")
    release.refused(PolicyError, key, policy=rules, match=said)


@integration
def test_a_tag_that_moves_between_looking_and_verifying_changes_nothing(
    registry: Distribution, tmp_path: Path, key: Path, release: Published
) -> None:
    sign_release(str(release.where), key)
    digest, _ = verify_release(str(release.where), [public(key)], None, TODAY)
    (tmp_path / "evil").mkdir()
    evil = Published(registry, tmp_path / "evil", sound(created="2020-01-01T00:00:00+00:00"))
    push(evil.layout, evil.index, release.where, move=True)
    release.refused(UnsignedError, key)
    pinned = str(Reference(release.where.host, release.where.name, "", digest))
    assert verify_release(pinned, [public(key)], None, TODAY)[0] == digest


OURS = sha256(canonical(sound()))


@integration
@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"record": OURS, "state": "validated"}, "is none: Field required"),
        ({**verdict(sound(), OURS), "state": "built"}, "says built, and its record 'validated'"),
    ],
)
def test_a_verdict_of_this_record_with_another_shape_or_state_is_tampering(
    told: JSON, match: str, release: Published, key: Path
) -> None:
    sign_release(str(release.where), key)
    release.attest(VERDICT, told, key)
    release.refused(VerificationError, key, match=match)


# What is attested


def test_the_bill_of_materials_is_sound_and_names_every_part() -> None:
    made = record()
    document = sbom(made, DIGEST)
    assert document == sbom(record(), DIGEST)
    assert document["serialNumber"] != sbom(record(), "sha256:" + "b" * 64)["serialNumber"]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
    parts = {part["bom-ref"]: part for part in document["components"]}
    assert {"pkg:pypi/click@8.3.0", "pkg:pypi/vllm-abacus@1.0", "model:pebble-7b"} <= parts.keys()
    patched = parts["pkg:pypi/vllm-abacus@1.0"]
    assert patched["pedigree"]["patches"][0]["diff"]["url"] == "0001-version.patch"
    files = {part["name"]: part["hashes"][0]["content"] for part in parts["model:pebble-7b"]["components"]}
    assert files == {name: file["sha256"].removeprefix("sha256:") for name, file in made["weights"]["files"].items()}


def test_the_provenance_names_every_input_by_digest_and_no_host() -> None:
    made = record(stages=[{"stage": "image", "key": "k", "seconds": 1, "created": "2026-11-20T10:00:00+00:00"}])
    told = provenance(made, DIGEST)
    dependencies = told["buildDefinition"]["resolvedDependencies"]
    assert all(dependency["digest"] for dependency in dependencies)
    digests = {value for dependency in dependencies for value in dependency["digest"].values()}
    pins = made["pins"]
    wanted = [*(wheel["sha256"] for wheel in pins["wheels"]), *pins["checkpoint"].values(), *pins["base"]["diff-ids"]]
    assert {digest.removeprefix("sha256:") for digest in wanted} <= digests
    import socket

    assert socket.gethostname() not in json.dumps(told)
    assert verdict(made, DIGEST)["state"] == "validated"


# cosign


@pytest.fixture(scope="session")
def sid(tmp_path_factory: pytest.TempPathFactory) -> list[Peer]:
    return fetched("sid", tmp_path_factory.mktemp("sid"), "cosign", "oras")


@pytest.fixture(scope="session", params=["trixie", "sid"])
def cosign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sid: list[Peer]) -> Peer:
    return sid[0] if request.param == "sid" else fetched("trixie", tmp_path_factory.mktemp("trixie"), "cosign")[0]


VERIFY = ("verify", "--insecure-ignore-tlog=true", "--allow-http-registry")


@integration
def test_cosign_verifies_what_we_signed_and_nothing_else(
    release: Published, key: Path, other: Path, cosign: Peer, tmp_path: Path
) -> None:
    """The image is that of two releases, of which both are signed: nothing that one says takes the other's place."""
    second = replace(release.where, tag="again")
    push(release.layout, release.release(sound(created="2026-11-21T12:00:00+00:00")), second)
    image = f"{release.where.host}/{release.where.name}@{release.image.digest}"
    words = (*VERIFY, "--key", str(public(key)), image)
    assert cosign(*words, cwd=tmp_path).returncode != 0
    for where in (release.where, second):
        sign_release(str(where), key)
    for where in (release.where, second):
        verify_release(str(where), [public(key)], None, TODAY)
    done = cosign(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert release.image.digest in done.stdout
    simple = release.registry.get_manifest(f"{release.image.digest.replace(':', '-')}.sig")[1]
    assert len(json.loads(simple)["layers"]) == 2
    assert cosign(*VERIFY, "--key", str(public(other)), image, cwd=tmp_path).returncode != 0
    if cosign.suite == "trixie":
        return  # 2.5.0 asks a server of keys for what is attested in the newer form
    for kind in ("cyclonedx", "slsaprovenance1", "urn:release:verdict:v1"):
        words = ("verify-attestation", *VERIFY[1:], "--type", kind, "--key", str(public(key)), image)
        done = cosign(*words, cwd=tmp_path)
        assert done.returncode == 0, (kind, done.stderr)
        assert len(done.stdout.splitlines()) == 2, (kind, done.stdout)
        assert cosign(*words[:-2], str(public(other)), image, cwd=tmp_path).returncode != 0


@integration
def test_cosign_verifies_an_exported_release_without_a_registry(
    release: Published, key: Path, other: Path, cosign: Peer, tmp_path: Path
) -> None:
    sign_release(str(release.where), key)
    export(release.where, tmp_path / "bundle")
    words = ("verify", "--insecure-ignore-tlog=true", "--local-image", "--key")
    done = cosign(*words, str(public(key)), "bundle", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert release.index.digest in done.stdout
    assert cosign(*words, str(public(other)), "bundle", cwd=tmp_path).returncode != 0
    manifest = tmp_path / "bundle" / "blobs" / release.index.digest.replace(":", "/")
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes().replace(b'"linux"', b'"other"'))
    assert cosign(*words, str(public(key)), "bundle", cwd=tmp_path).returncode != 0


@integration
def test_oras_discovers_what_refers_to_the_image(release: Published, key: Path, sid: list[Peer], tmp_path: Path) -> None:
    sign_release(str(release.where), key)
    image = f"{release.where.host}/{release.where.name}@{release.image.digest}"
    done = sid[1]("discover", "--plain-http", "--format", "json", image, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kinds = Counter(each["artifactType"] for each in json.loads(done.stdout)["referrers"])
    assert kinds == {RECORD_TYPE: 1, BUNDLE_TYPE: 4}


@integration
def test_what_cosign_signed_passes_our_verifier(release: Published, key: Path, cosign: Peer, tmp_path: Path) -> None:
    made = cosign("generate-key-pair", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    for subject in (release.index, release.image):
        image = f"{release.where.host}/{release.where.name}@{subject.digest}"
        words = ["sign", "--key", "cosign.key", "--tlog-upload=false", "--allow-http-registry", "--yes", image]
        if cosign.suite == "sid":
            words[3:4] = ["--use-signing-config=false", "--tlog-upload=false"]
        done = cosign(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    release.refused(WrongKeyError, key)
    keys = [tmp_path / "cosign.pub"]
    with pytest.raises(IncompleteError, match="attests a sbom"):
        verify_release(str(release.where), keys, None, TODAY)
    (tmp_path / "policy.yaml").write_text("attested: []\n")
    digest, checks = verify_release(str(release.where), keys, tmp_path / "policy.yaml", TODAY)
    assert digest == release.index.digest
    assert {check.found for check in checks if "signed by" in check.what} == {"cosign.pub"}


@integration
def test_the_commands_make_a_key_sign_and_verify_with_exit_codes_of_their_own(release: Published, tmp_path: Path) -> None:
    import sys

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "release", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )

    assert run("keys", "new", "mine").returncode == 0
    where = str(release.where)
    assert run("verify", where).returncode == 2
    unsigned = run("verify", where, "--key", "mine.pub")
    assert unsigned.returncode == 10 and unsigned.stderr.startswith("refused: "), unsigned.stderr
    assert run("sign", where, "--key", "mine").returncode == 0
    right = run("verify", where, "--key", "mine.pub", "--json")
    assert right.returncode == 0 and json.loads(right.stdout)["digest"] == release.index.digest, right.stderr
    assert run("keys", "new", "theirs").returncode == 0
    assert run("verify", where, "--key", "theirs.pub").returncode == 11
    (tmp_path / "policy.yaml").write_text("chips: [another]\n")
    assert run("verify", where, "--key", "mine.pub", "--policy", "policy.yaml").returncode == 13
    (tmp_path / "policy.yaml").write_text("no-waiver: true\n")
    assert run("verify", where, "--key", "mine.pub", "--policy", "policy.yaml").returncode == 2
