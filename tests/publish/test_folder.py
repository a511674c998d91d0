"""A release in a folder: exported with all that speaks of it, verified without a network, and published again elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import release
from distribution import Distribution, home, registry
from laid import Built, built, key, laid_out, public
from records import record

from release.errors import ReleaseError, UnsignedError, UsageError, VerificationError, WrongKeyError
from release.oci import Descriptor, Layout, canonical, children
from release.publish.distribution import Registry
from release.publish.folder import Folder, export, publish_folder
from release.publish.keys import new_key
from release.publish.reference import Reference
from release.signing import rotate, sign_release, verify_release

__all__ = ["built", "home", "key", "registry"]

pytestmark = pytest.mark.integration


@pytest.fixture
def bundle(built: Built, registry: Distribution, key: Path, tmp_path: Path) -> Path:
    """A signed release in a folder; nothing else is left of the registry that it comes from."""
    where = registry.fresh("bf16")
    built.publish(where, key=key)
    export(where, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_verifies_without_a_network_by_the_same_rules(
    bundle: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requests.Session.request", None)
    digest, checks = verify_release(str(bundle), [public(key)], None)
    assert digest == Folder(bundle).named["bf16"].digest
    assert {"index signed by", "image signed by", "attested", "state"} <= {check.what for check in checks}
    new_key(tmp_path / "stranger")
    with pytest.raises(WrongKeyError):
        verify_release(str(bundle), [public(tmp_path / "stranger")], None)


def test_a_bundle_is_published_elsewhere_with_its_signatures_and_the_tag_last(
    bundle: Path, key: Path, registry: Distribution
) -> None:
    where = registry.fresh("mirrored")
    digest = publish_folder(bundle, where)
    assert verify_release(str(where), [public(key)], None)[0] == digest
    image = json.loads(Registry.at(where).get_manifest(digest)[1])["manifests"][0]["digest"]
    assert len(Registry.at(where).referrers(image)) == 8, (
        "the record, what is said of it in three documents, and four that are signed"
    )


def test_a_folder_that_is_there_is_not_written_to(built: Built, registry: Distribution, bundle: Path) -> None:
    with pytest.raises(UsageError, match="is there already"):
        export(registry.fresh("bf16"), bundle)


def test_what_cannot_be_had_whole_leaves_no_folder(registry: Distribution, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError):
        export(registry.fresh("bf16"), tmp_path / "new" / "bundle")
    assert not (tmp_path / "new" / "bundle").exists() and not list(tmp_path.glob("new/.*"))


def blob_of(folder: Path, name: str) -> Path:
    return Layout.open(folder).blob(Folder(folder).named[name].digest)


def touched(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def without_signatures(folder: Path) -> None:
    layout = Layout.open(folder)
    layout.set_index([entry for name, entry in Folder(folder).named.items() if not name.startswith("sha256-")])


def two_releases(folder: Path) -> None:
    layout = Layout.open(folder)
    layout.set_index([*layout.index(), Folder(folder).named["bf16"].named("again")])


def another_index(folder: Path) -> None:
    path = blob_of(folder, "bf16")
    touched(path, canonical({**json.loads(path.read_bytes()), "annotations": {}}))


def index_that_points_away(folder: Path) -> None:
    path = blob_of(folder, "bf16")
    path.unlink()
    path.symlink_to("/etc/passwd")


def index_of_garbage(folder: Path) -> None:
    touched(folder / "index.json", b'{"manifests": 7}')


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        (without_signatures, UnsignedError, "is not signed"),
        (two_releases, VerificationError, "holds 2 releases"),
        (another_index, VerificationError, "has the content of"),
        (index_that_points_away, VerificationError, "it has no bf16"),
        (index_of_garbage, VerificationError, "cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_bundle_that_was_touched_is_refused(
    change: Callable[[Path], None], kind: type[ReleaseError], match: str, bundle: Path, key: Path
) -> None:
    change(bundle)
    with pytest.raises(kind, match=match) as caught:
        verify_release(str(bundle), [public(key)], None)
    assert type(caught.value) is kind


def reached(layout: Layout, digest: Descriptor) -> set[str]:
    """Return the digests of all that a release is made of."""
    found, stack = set[str](), [digest]
    while stack:
        each = stack.pop()
        found.add(each.digest.removeprefix("sha256:"))
        stack += children(each, layout)
    return found


def test_every_touched_blob_of_a_release_in_a_folder_is_noticed(bundle: Path, key: Path) -> None:
    names = reached(Layout.open(bundle), Folder(bundle).named["bf16"])
    assert len(names) >= 6
    for name in sorted(names):
        path = bundle / "blobs" / "sha256" / name
        whole = path.read_bytes()
        touched(path, whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(VerificationError):
            verify_release(str(bundle), [public(key)], None)
        touched(path, whole)
    verify_release(str(bundle), [public(key)], None)


def test_every_touched_blob_of_a_bundle_keeps_it_from_being_published(bundle: Path, registry: Distribution) -> None:
    named = {entry.digest for name, entry in Folder(bundle).named.items() if name.startswith("sha256-") and name.endswith(".sig")}
    for path in sorted((bundle / "blobs" / "sha256").iterdir()):
        whole = path.read_bytes()
        touched(path, whole[:-1] + bytes([whole[-1] ^ 1]))
        where = registry.fresh("mirrored")
        with pytest.raises(VerificationError):
            publish_folder(bundle, where)
        assert Registry.at(where).digest_of("mirrored") is None
        touched(path, whole)
    assert named


def test_a_bundle_touches_no_signature_of_another_release(
    bundle: Path, key: Path, registry: Distribution, tmp_path: Path
) -> None:
    where = registry.fresh("other")
    other = laid_out(tmp_path / "other", record(created="2026-11-02T00:00:00+00:00"), content=b"1")
    digest = other.publish(where, key=key).reference.rpartition("@")[2]
    layout, ours = Layout.open(bundle), Folder(bundle)
    own = ours.named[f"{ours.named['bf16'].digest.replace(':', '-')}.sig"]
    layout.set_index([*layout.index(), own.named(f"{digest.replace(':', '-')}.sig")])
    verify_release(str(bundle), [public(key)], None)
    publish_folder(bundle, Reference(where.host, where.name, "bf16"))
    assert verify_release(str(where), [public(key)], None)[0] == digest


def signatures(where: Reference, digest: str) -> int:
    found = Registry.at(where).find_manifest(f"{digest.replace(':', '-')}.sig")
    return len(json.loads(found[1])["layers"]) if found else 0


def test_an_import_keeps_what_others_signed_there_and_adds_what_is_new(
    built: Built, registry: Distribution, key: Path, tmp_path: Path
) -> None:
    source, target = registry.fresh("bf16"), registry.fresh("here")
    built.publish(source, key=key)
    export(source, tmp_path / "before")
    digest = publish_folder(tmp_path / "before", target)
    new_key(tmp_path / "theirs")
    sign_release(str(target), tmp_path / "theirs")
    new_key(tmp_path / "next")
    rotate(public(key), tmp_path / "next", [str(source)])
    export(source, tmp_path / "after")
    assert signatures(target, digest) == 2
    assert publish_folder(tmp_path / "after", target) == digest
    assert signatures(target, digest) == 3
    for each in (key, tmp_path / "theirs", tmp_path / "next"):
        verify_release(str(target), [public(each)], None)
    publish_folder(tmp_path / "before", Reference(target.host, target.name, "again"))
    assert signatures(target, digest) == 3


def test_only_what_was_verified_is_published_or_pulled(bundle: Path, registry: Distribution) -> None:
    where = registry.fresh("here")
    with pytest.raises(VerificationError, match="was verified"):
        publish_folder(bundle, where, expected="sha256:" + "0" * 64)
    assert Registry.at(where).digest_of("here") is None
    with pytest.raises(VerificationError, match="was verified"):
        Folder(bundle).held_to("sha256:" + "0" * 64)


def test_a_new_key_signs_what_the_old_one_signed_and_nothing_else(
    built: Built, registry: Distribution, key: Path, tmp_path: Path
) -> None:
    signed, unsigned = registry.fresh("bf16"), registry.fresh("bf16")
    built.publish(signed, key=key)
    built.publish(unsigned)
    new_key(tmp_path / "next")
    with pytest.raises(UnsignedError, match="is not signed by"):
        rotate(public(key), tmp_path / "next", [str(signed), str(unsigned)])
    with pytest.raises(WrongKeyError):
        verify_release(str(signed), [public(tmp_path / "next")], None)
    rotate(public(key), tmp_path / "next", [str(signed)])
    for each in (key, tmp_path / "next"):
        verify_release(str(signed), [public(each)], None)


def test_the_commands_export_verify_import_and_compare(built: Built, registry: Distribution, key: Path, tmp_path: Path) -> None:
    where, target = registry.fresh("bf16"), registry.fresh("here")
    built.publish(where)
    sign_release(str(where), key)
    done = release("bundle", "export", str(where), str(tmp_path / "b"), store=tmp_path / "store", cwd=tmp_path)
    assert done.status == 0, done.err
    done = release(
        "bundle",
        "import",
        str(tmp_path / "b"),
        "--to",
        str(target),
        "--key",
        str(public(key)),
        store=tmp_path / "store",
        cwd=tmp_path,
    )
    assert done.status == 0, done.err
    other = laid_out(tmp_path / "other", {**record(), "made-by": "release 9.9"})
    same = release("diff", str(target), str(tmp_path / "b"), store=tmp_path / "store", cwd=tmp_path)
    assert (same.status, same.out) == (0, ""), same.err
    differs = release("diff", str(target), str(other.folder / "oci"), store=tmp_path / "store", cwd=tmp_path)
    assert differs.status == 1 and "made-by" in differs.out and "release 9.9" in differs.out


def test_a_blob_that_lies_outside_is_not_read_though_it_is_the_same(bundle: Path, tmp_path: Path) -> None:
    path = blob_of(bundle, "bf16")
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(VerificationError, match="it has no sha256"):
        Folder(bundle).get_blob(Folder(bundle).named["bf16"], Layout.create(tmp_path / "into"))


def test_a_folder_reads_as_a_registry_does(bundle: Path) -> None:
    folder = Folder(bundle)
    assert folder.find_manifest("nothing") is None
    assert folder.find_manifest("sha256:" + "0" * 64) is None
    assert folder.referrers("sha256:" + "0" * 64) == []
    with pytest.raises(VerificationError):
        folder.find_manifest("sha256:../../../etc/passwd")
