"""`release site` gathers records from folders, layouts, lists and registries, writes pages that a browser likes, and touches nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser
from catalogues import built, folder, planned, records
from command import release as command
from distribution import Answer, Distribution, home, registry, scripted

from release.errors import PublishError, ReleaseError, UsageError, VerificationError
from release.house import House
from release.oci import (
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR,
    NOWHERE,
    Descriptor,
    Layout,
    canonical,
    put_artifact,
)
from release.publish.artifact import RECORD_TYPE
from release.publish.distribution import Registry
from release.publish.keys import new_key
from release.publish.reference import Reference
from release.publish.registry import push
from release.publish.site import Site
from release.signing import sign_release
from release.site import address_of, lay_site
from release.types import JSON

__all__ = ["home", "registry"]


def plain(precision: str, **changes: Any) -> JSON:
    """Return a record without figures that pictures could be drawn of."""
    made = built("abacus", "pebble-7b", precision, performance=None, consistency=None, **changes)
    made["verdicts"][-1]["figures"] = {}
    return made


RECORD = plain("bf16")


def lay(*places: Path | str, to: Path, **options: Any) -> JSON:
    """Lay out a site; return its data."""
    lay_site([str(place) for place in places], to, Site(), house=House.open((), None, "auto"), **options)
    document: JSON = json.loads((to / "catalogue.json").read_text())
    return document


def layout_of(record: JSON, path: Path) -> tuple[Layout, Descriptor]:
    """Return a layout that holds a release with this record, and its index."""
    layout = Layout.create(path)
    layer = layout.put(LAYER_TAR, canonical(record["cell"]))
    rootfs = {"type": "layers", "diff_ids": [layer.digest]}
    config = layout.put_json(IMAGE_CONFIG, {"architecture": "amd64", "os": "linux", "rootfs": rootfs})
    document = {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": config.to_json(), "layers": [layer.to_json()]}
    image = layout.put_json(IMAGE_MANIFEST, document)
    part = put_artifact(layout, RECORD_TYPE, [layout.put("application/json", canonical(record))], subject=image)
    entries = [
        {**image.to_json(), "platform": {"os": "linux", "architecture": "amd64"}},
        {**part.to_json(), "platform": NOWHERE},
    ]
    index = layout.put_json(IMAGE_INDEX, {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries})
    layout.set_index([index.named("bf16")])
    return layout, index


def test_folders_and_layouts_give_their_records_once(tmp_path: Path) -> None:
    folder(tmp_path / "dist", [RECORD, planned("yupana", "sand-0.5b", "bf16")])
    (tmp_path / "dist" / "0" / "release.json").write_bytes(canonical(RECORD))
    layout_of(RECORD, tmp_path / "dist" / "0" / "oci")
    found = lay(tmp_path / "dist", to=tmp_path / "site")["releases"]
    assert [one["cell"] for one in found] == ["abacus/pebble-7b@bf16", "yupana/sand-0.5b@bf16"]
    assert [one["state"] for one in found] == ["validated", "planned"]


def test_a_list_names_places_a_line_each(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder(tmp_path / name, [plain({"a": "bf16", "b": "w8a8"}[name])])
    (tmp_path / "list").write_text(f"# ours\n{tmp_path / 'a'}\n\n  {tmp_path / 'b'}\n")
    assert len(lay(tmp_path / "list", to=tmp_path / "site")["releases"]) == 2


def test_a_list_that_names_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{tmp_path / 'list'}\n")
    with pytest.raises(UsageError, match="neither a folder nor a reference"):
        lay(tmp_path / "list", to=tmp_path / "site")


def test_what_is_no_record_is_left_out_and_said(tmp_path: Path) -> None:
    folder(tmp_path / "dist", [RECORD, RECORD | {"schema": "other/1"}, {}])
    (tmp_path / "dist" / "2" / "release.json").write_text('{"schema": 1, "schema": 2}')
    (tmp_path / "dist" / "3").mkdir()
    (tmp_path / "dist" / "3" / "release.json").symlink_to(tmp_path / "dist" / "0" / "release.json")
    document = lay(tmp_path / "dist", to=tmp_path / "site")
    assert len(document["releases"]) == 1
    assert [one["place"] for one in document["left-out"]] == ["1/release.json", "2/release.json"]
    assert "Left out" in (tmp_path / "site" / "index.html").read_text()


def test_a_layout_whose_record_was_touched_stops_it_and_nothing_is_written(tmp_path: Path) -> None:
    layout, _ = layout_of(RECORD, tmp_path / "oci")
    path = next(path for path in (layout.path / "blobs" / "sha256").iterdir() if b'"validated"' in path.read_bytes())
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"Pebble 7B", b"Pebble 8B"))
    with pytest.raises(VerificationError):
        lay(tmp_path / "oci", to=tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_site_is_written_over_an_older_one_and_leaves_what_others_put_there(tmp_path: Path) -> None:
    folder(tmp_path / "old", [RECORD, plain("w8a8")])
    folder(tmp_path / "new", [RECORD])
    lay(tmp_path / "old", to=tmp_path / "site")
    (tmp_path / "site" / "CNAME").write_text("example.org")
    lay(tmp_path / "new", to=tmp_path / "site")
    lay(tmp_path / "new", to=tmp_path / "fresh")
    there, fresh = (
        {str(path.relative_to(where)): path.read_bytes() for path in where.rglob("*") if path.is_file()}
        for where in (tmp_path / "site", tmp_path / "fresh")
    )
    assert there.pop("CNAME") == b"example.org" and there == fresh


def test_a_folder_with_anything_else_in_it_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "dist", [RECORD])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "dist")
    for to in ("mine", "link"):
        with pytest.raises(UsageError):
            lay(tmp_path / "dist", to=tmp_path / to)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["index.html"]


def test_an_old_catalogue_cannot_have_files_outside_removed_or_written(tmp_path: Path) -> None:
    folder(tmp_path / "dist", [RECORD])
    (tmp_path / "kept").write_text("kept")
    site = tmp_path / "site"
    site.mkdir()
    files = ["../kept", str(tmp_path / "kept"), "out/kept"]
    (site / "catalogue.json").write_text(json.dumps({"schema": "release-catalogue/1", "files": files}))
    (site / "out").symlink_to(tmp_path)
    lay(tmp_path / "dist", to=site)
    assert (tmp_path / "kept").read_text() == "kept"
    (site / "catalogue.json").write_text(json.dumps({"schema": "release-catalogue/1", "files": []}))
    (tmp_path / "elsewhere").mkdir()
    for path in sorted(site.glob("releases/**/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (site / "releases").rmdir()
    (site / "releases").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="leads out of"):
        lay(tmp_path / "dist", to=site)
    assert not any(path.is_file() for path in (tmp_path / "elsewhere").rglob("*"))


@pytest.mark.parametrize("place", ["nowhere", "UPPER/case:tag", "https://example.org/a", "a b"])
def test_what_is_neither_a_folder_nor_a_reference_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a folder nor a reference"):
        lay(place, to=tmp_path / "site")


@pytest.mark.parametrize(
    "text", ["example.org", "javascript:alert(1)", "file:///tmp", "https://", "https://a b/", "https://u@h/", "https://h/?a"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        address_of(text)
    assert address_of("https://example.org/a") == "https://example.org/a/" and address_of("") == ""


@pytest.mark.integration
def test_a_repository_gives_every_tag_and_what_is_signed_by_whom(registry: Distribution, tmp_path: Path) -> None:
    for name in ("key", "other"):
        new_key(tmp_path / name)
    where = registry.fresh()
    for tag, signer in (("bf16", "key"), ("bf16-2", "other"), ("bf16-3", None)):
        layout, index = layout_of(RECORD | {"made-by": tag}, tmp_path / tag)
        target = Reference(where.host, where.name, tag)
        push(layout, index, target)
        if signer:
            sign_release(str(target), tmp_path / signer)
    Registry.at(where).put_manifest(
        "mine", IMAGE_INDEX, canonical({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []})
    )
    document = lay(where, to=tmp_path / "site", keys=[tmp_path / "key.pub"])
    told = {one["place"].partition("@")[0].rpartition(":")[2]: (one["signature"], one["signers"]) for one in document["releases"]}
    assert told == {"bf16": ("signed", ["key.pub"]), "bf16-2": ("stranger", []), "bf16-3": ("unsigned", [])}
    assert [one["place"].partition("@")[0] for one in document["left-out"]] == [f"{where}:mine"]
    again = lay(f"{where}:bf16", to=tmp_path / "one")["releases"]
    assert len(again) == 1 and again[0]["signature"] is None
    layout, index = layout_of(RECORD, tmp_path / "cell")
    push(layout, index, Reference(where.host, f"{where.name}/cpu/tiny-qwq", "bf16"))
    starred = lay(f"{where}/*", to=tmp_path / "starred")["releases"]
    assert [one["place"].partition("@")[0] for one in starred] == [f"{where}/cpu/tiny-qwq:bf16"]
    with pytest.raises(PublishError, match="has no nothing"):
        lay(f"{where}:nothing", to=tmp_path / "none")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("tags", "link", "match"),
    [
        (["bf16"], "?n=1&last=a", "does not end"),
        (["bf16"], "/v2/other/tags/list", "goes on elsewhere"),
        (["bf16"], "http://example.org/v2/team/model/tags/list", "plain http"),
        ("bf16", "", "is none"),
        ([1], "", "is none"),
        ([str(number) for number in range(10_001)], "", "more than"),
    ],
)
def test_a_list_of_tags_that_leads_astray_is_refused(tags: Any, link: str, match: str, tmp_path: Path) -> None:
    headers = {"Link": f'<{link}>; rel="next"'} if link else {}
    with scripted(Answer(body=canonical({"tags": tags}), headers=headers)) as server:
        with pytest.raises(ReleaseError, match=match):
            lay(f"{server.host}/team/model", to=tmp_path / "site")
        assert {request.path.partition("?")[0] for request in server.seen} == {"/v2/team/model/tags/list"}


def focus(tab: Browser) -> str:
    return str(tab.ask("document.activeElement.className + ' ' + (document.activeElement.getAttribute('href') || '')"))


@pytest.mark.integration
def test_a_browser_likes_the_site_with_and_without_scripts_and_a_keyboard_and_a_search_reach_a_release(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    folder(tmp_path / "dist", records())
    assert lay(tmp_path / "dist", to=tmp_path / "site")["left-out"] == []
    with browser(tmp_path) as tab:
        first = (tmp_path / "site" / "index.html").as_uri()
        pages = sorted((tmp_path / "site" / "releases").rglob("*.html"))
        for width, dark in ((375, False), (1440, True)):
            tab.size(width, dark=dark)
            for address in (first, *(page.as_uri() for page in pages[:: len(pages) // 3])):
                tab.open(address)
                assert tab.ask("document.documentElement.scrollWidth <= innerWidth"), (address, "has to be scrolled aside")
                assert tab.ask("[...document.images].every((image) => image.complete && image.naturalWidth > 0)"), address
                assert tab.ask("getComputedStyle(document.body).fontSize") == "15px"
        tab.open(first)
        tab.press("Tab")
        assert focus(tab).startswith("skip #map")
        tab.press("Enter")
        for _ in range(2):
            tab.press("Tab")
        assert focus(tab).startswith("tile planned releases/abacus/boulder-235b/bf16-")
        tab.press("ArrowDown")
        assert focus(tab).startswith("tile validated releases/abacus/gravel-32b/bf16-")
        assert tab.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        before = tab.loaded
        tab.press("Enter")
        tab.wait(before)
        assert tab.ask("document.querySelector('h1').textContent") == "Gravel 32B · Abacus 9 · bf16"
        tab.open(first)
        tab.ask("document.querySelector('[name=q]').focus()")
        tab.type("quipu regressed w4a16")
        assert tab.ask("document.getElementById('count').textContent") == "0 of 28 shown"
        tab.ask("document.querySelector('[name=q]').select()")
        tab.type("quipu inconclusive")
        shown = "[...document.querySelectorAll('.list tbody tr:not([hidden]) a')].map((link) => link.textContent)"
        assert tab.ask(shown) == ["quipu-2/gravel-32b@w4a16", "quipu-2/pebble-7b@fp8"]
        kept = tab.ask("location.href")
        tab.open("about:blank")
        tab.open(kept)
        assert len(tab.ask(shown)) == 2 and tab.ask("document.querySelectorAll('.map thead th:not([hidden])').length") == 2
        tab("Emulation.setScriptExecutionDisabled", value=True)
        tab.open(first)
        root = tab("DOM.getDocument")["root"]["nodeId"]
        for selector, number in (
            (".list tbody tr:not([hidden])", len(records())),
            (".map tbody a:not([hidden])", 26),
            ("form:not([hidden])", 0),
        ):
            assert len(tab("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"]) == number, selector
        assert tab.complaints == []
        assert {request.partition(":")[0] for request in tab.requests} <= {"file", "about"}


@pytest.mark.integration
def test_the_command_says_what_it_wrote_and_what_it_left_out(tmp_path: Path) -> None:
    folder(tmp_path / "dist", [RECORD, {}])
    done = command("site", "--from", str(tmp_path / "dist"), "--to", str(tmp_path / "site"), "--lang", "zh", store=tmp_path)
    assert done.status == 0, done.err
    assert done.out.startswith("1 releases of 1 cells, ") and "left out: 1/release.json" in done.err
    assert '<html lang="zh">' in (tmp_path / "site" / "index.html").read_text()
    assert command("site", "--to", str(tmp_path / "none"), store=tmp_path).status == 2
