"""Publishing what was built, and pulling it with its signatures checked: a real registry, and the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cutting import cutting
from distribution import Distribution, registry
from laid import Built, built, key, laid_out, public, whole
from records import record

from release.errors import PublishError, UnsignedError, VerificationError, WrongKeyError
from release.house import House
from release.oci import Layout
from release.publish.artifact import RECORD_TYPE
from release.publish.distribution import Registry
from release.publish.keys import new_key
from release.publish.neighbours import Neighbours
from release.publish.reference import Reference
from release.publish.registry import push
from release.pull import pull
from release.signing import verify_release

__all__ = ["built", "key", "registry"]


@pytest.mark.integration
def test_a_release_is_published_with_what_is_said_of_it_and_the_tag_last(built: Built, registry: Distribution, key: Path) -> None:
    where = registry.fresh("bf16")
    done = built.publish(where, key=key)
    assert done.sent == done.size > 100_000
    digest, _ = verify_release(str(where), [public(key)], None)
    assert done.reference == f"{where}@{digest}"
    there = Registry.at(where)
    image = json.loads(there.get_manifest(digest)[1])["manifests"][0]["digest"]
    kinds = sorted(str(json.loads(there.get_manifest(each.digest)[1])["artifactType"]) for each in there.referrers(image))
    assert kinds == [
        "application/vnd.cyclonedx+json",
        *["application/vnd.dev.sigstore.bundle.v0.3+json"] * 4,
        *["application/vnd.in-toto+json"] * 2,
        RECORD_TYPE,
    ]


@pytest.mark.integration
def test_a_dry_run_asks_and_writes_nothing(built: Built, registry: Distribution) -> None:
    where = registry.fresh("bf16")
    done = built.publish(where, dry_run=True)
    assert done.sent == done.size
    assert Registry.at(where).digest_of("bf16") is None
    built.publish(where)
    assert built.publish(where, dry_run=True).sent == 0


@pytest.mark.integration
def test_a_second_cell_sends_less_than_a_hundredth(built: Built, registry: Distribution) -> None:
    built.publish(registry.fresh("bf16"))
    with cutting(registry.host) as relay:
        second = Reference(relay.host, registry.fresh().name, "bf16")
        remembered = json.loads(built.memory.read_text())
        built.memory.write_text(json.dumps({relay.host: remembered[registry.host]}))
        done = built.publish(second)
    assert done.sent < done.size / 100
    assert relay.passed["up"] < 60_000, "questions, manifests, and what is said of it"


@pytest.mark.integration
def test_what_is_there_already_costs_one_question(built: Built, registry: Distribution, monkeypatch: pytest.MonkeyPatch) -> None:
    where = registry.fresh("bf16")
    built.publish(where)
    asked: list[str] = []
    original = Registry.digest_of
    monkeypatch.setattr(Registry, "digest_of", lambda self, tag: asked.append(tag) or original(self, tag))
    monkeypatch.setattr(Registry, "put_manifest", None)
    monkeypatch.setattr(Registry, "has_blob", None)
    assert built.publish(where).sent == 0
    assert asked == ["bf16"]


@pytest.mark.integration
def test_a_push_that_cannot_be_signed_sets_no_tag(built: Built, registry: Distribution, tmp_path: Path) -> None:
    where = registry.fresh("bf16")
    (tmp_path / "nokey").write_text("no key")
    (tmp_path / "nokey").chmod(0o600)
    with pytest.raises(Exception, match="key"):
        built.publish(where, key=tmp_path / "nokey")
    assert Registry.at(where).digest_of("bf16") is None


@pytest.mark.integration
def test_another_release_is_not_published_under_the_same_tag(built: Built, registry: Distribution, tmp_path: Path) -> None:
    where = registry.fresh("bf16")
    first = built.publish(where)
    other = laid_out(tmp_path / "other", record(created="2026-11-02T00:00:00+00:00"))
    with pytest.raises(VerificationError, match="never moves"):
        other.publish(where)
    assert f"{where}@{Registry.at(where).digest_of('bf16')}" == first.reference


@pytest.mark.integration
def test_a_release_that_is_not_validated_is_not_published_as_one(registry: Distribution, tmp_path: Path) -> None:
    blocked = laid_out(tmp_path / "blocked", {**record(), "state": "blocked"})
    with pytest.raises(PublishError, match="is blocked"):
        blocked.publish(registry.fresh("bf16"))
    merely = laid_out(tmp_path / "merely", {**record(), "state": "built"})
    with pytest.raises(PublishError, match="is built"):
        merely.publish(registry.fresh("bf16"), validated=True)


@pytest.mark.integration
def test_a_pull_with_a_key_takes_what_was_verified_or_nothing(
    built: Built, registry: Distribution, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    house = House.open((), tmp_path / "store", "auto")
    where, target = registry.fresh("bf16"), tmp_path / "there" / "release"
    built.publish(where)
    with pytest.raises(UnsignedError):
        pull(house, str(where), target, keys=[public(key)])
    signed = registry.fresh("bf16")
    built.publish(signed, key=key)
    new_key(tmp_path / "stranger")
    with pytest.raises(WrongKeyError):
        pull(house, str(signed), target, keys=[public(tmp_path / "stranger")])
    assert not target.parent.exists()
    with pytest.raises(VerificationError, match="not a release: it has no card, weights"):  # it was let in, and is a small one
        pull(house, str(signed), target, keys=[public(key)], into_engine=False)
    assert list(target.parent.iterdir()) == [], "nothing partial is left"


@pytest.mark.integration
def test_a_tag_that_moves_between_verifying_and_pulling_does_not_change_what_is_pulled(
    built: Built, registry: Distribution, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where, kept = registry.fresh("bf16"), tmp_path / "kept"
    built.publish(where, key=key)
    theirs = Layout.open(laid_out(tmp_path / "evil", record(created="2020-01-01T00:00:00+00:00")).folder / "oci")
    (good,), (evil,) = Layout.open(built.folder / "oci").index(), theirs.index()

    def moved(*asked: Any) -> tuple[str, list[Any]]:
        verified = verify_release(*asked)
        push(theirs, evil, where, move=True)
        return verified

    monkeypatch.setattr("release.signing.verify_release", moved)
    with pytest.raises(VerificationError, match="not a release"):  # it was let in, and is a small one
        pull(House.open((), tmp_path / "store", "auto"), str(where), tmp_path / "to", layout=kept, keys=[public(key)])
    assert Registry.at(where).digest_of("bf16") == evil.digest
    assert [entry.digest for entry in Layout.open(kept).index()] == [good.digest]


@pytest.mark.integration
def test_the_reference_that_publishing_printed_brings_its_release_after_the_tag_moved(
    registry: Distribution, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    house, where = House.open((), tmp_path / "store", "auto"), registry.fresh("bf16")
    good = whole(tmp_path / "good", record())
    evil = Layout.open(whole(tmp_path / "evil", record(created="2020-01-01T00:00:00+00:00")).folder / "oci")
    printed = good.publish(where, key=key).reference
    push(evil, evil.find("bf16"), where, move=True)
    pulled = pull(house, printed, tmp_path / "to", into_engine=False, keys=[public(key)])
    assert pulled.record["created"] == record()["created"]
    with pytest.raises(UnsignedError):
        pull(house, str(where), tmp_path / "to", into_engine=False, keys=[public(key)])
    assert json.loads((tmp_path / "to" / "release.json").read_bytes()) == pulled.record


def test_a_memory_that_cannot_be_read_is_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "store" / "pushed.json"
    first = Neighbours(file, "host:1", "team/a")
    assert first("sha256:1") == ""
    first.remember(["sha256:1"])
    assert Neighbours(file, "host:1", "team/b")("sha256:1") == "team/a"
    assert Neighbours(file, "host:1", "team/a")("sha256:1") == "", "what is here is not next door"
    assert Neighbours(file, "host:2", "team/b")("sha256:1") == ""
    for text in ("", "[]", "{", '{"host:1": 3}', '{"host:1": {"sha256:1": 7}}'):
        file.write_text(text)
        assert Neighbours(file, "host:1", "team/b")("sha256:1") == ""
