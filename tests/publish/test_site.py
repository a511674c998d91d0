"""The catalogue says what verdicts come to; its pages are made of records alone, lead nowhere else, and run only our script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ET
from datetime import date
from functools import cache
from html.parser import HTMLParser
from pathlib import PurePosixPath
from typing import Any, Final

import pytest
from catalogues import WAIVER, built, found, planned, records
from hypothesis import given, settings
from hypothesis import strategies as st

from release.errors import UsageError, VerificationError
from release.oci import canonical
from release.publish.catalogue import Entry, Found, Mark, Signature, catalogue, entry_of
from release.publish.site import Picture, Site, render_site
from release.templates.html import html_of
from release.templates.render import FOLDER, script_data
from release.types import JSON, State

HOSTILE: Final = (
    "</td></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'\u202egnp [a](javascript:alert(3)) <style>*{}</style>"
)
SVG: Final = Picture(b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", HOSTILE)


def made(*these: JSON, day: date | None = None) -> tuple[Entry, ...]:
    return catalogue([Found(canonical(each)) for each in these], day)


@cache
def whole() -> dict[str, bytes]:
    """Return the files of the catalogue with everything in it."""
    return pages(catalogue(found()))


def pages(entries: tuple[Entry, ...], **options: Any) -> dict[str, bytes]:
    return render_site(entries, {entry.path: {"forest": SVG} for entry in entries}, [("somewhere", HOSTILE)], Site(**options))


class Page(HTMLParser):
    """What a page is made of: tags with attributes, and its scripts."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(data.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.scripts += [""] if tag == "script" else []

    def handle_data(self, data: str) -> None:
        if self.scripts and self.cdata_elem == "script":
            self.scripts[-1] += data

    def addresses(self) -> list[str]:
        return [str(attrs[name]) for _, attrs in self.tags for name in ("href", "src", "srcset", "action") if name in attrs]


# The catalogue


def test_a_release_is_what_its_verdicts_come_to_and_not_what_it_says() -> None:
    entry = made(built("abacus", "pebble-7b", "bf16", status="FAILED", state="validated"))[0]
    assert (entry.state, entry.marks) == (State.BLOCKED, (Mark.CONTRADICTED,))
    nothing = made(built("abacus", "pebble-7b", "bf16", verdicts=[]))[0]
    assert nothing.state is State.BLOCKED
    unborn = made(built("abacus", "pebble-7b", "bf16", verdicts=[], state="planned"))[0]
    assert unborn.state is State.BLOCKED, "there is an image: it is no plan"
    assert made(planned("abacus", "pebble-7b", "bf16"))[0].state is State.PLANNED


def test_the_newest_release_stands_for_its_cell_and_the_others_stay() -> None:
    days = ("2026-10-02", "2026-11-20", "2026-10-30")
    entries = made(planned("abacus", "pebble-7b", "bf16"), *(built("abacus", "pebble-7b", "bf16", day=day) for day in days))
    assert [str(entry.made)[:10] for entry in entries] == ["2026-11-20", "2026-10-30", "2026-10-02", "None"]
    assert [entry.newest for entry in entries] == [True, False, False, False]
    assert len({entry.path for entry in entries}) == 4


def test_a_waiver_is_over_after_its_last_day() -> None:
    release = built("abacus", "pebble-7b", "w8a8", status="SKIPPED", waivers=[WAIVER])
    assert made(release)[0].marks == (Mark.WAIVED,)
    assert made(release, day=date(2026, 12, 31))[0].marks == (Mark.WAIVED,)
    assert made(release, day=date(2027, 1, 1))[0].marks == (Mark.EXPIRED,)
    idle = built("abacus", "pebble-7b", "w8a8", waivers=[WAIVER | {"outcome": "not needed"}])
    assert made(idle)[0].marks == ()


def test_a_release_is_stale_once_its_reference_has_been_released_anew() -> None:
    reference = built("abacus", "pebble-7b", "fp32", day="2026-11-24")
    same = {"cell": reference["cell"], "serve": {"image": reference["image"]["config"]}}
    old, new = built("abacus", "pebble-7b", "bf16"), built("abacus", "pebble-7b", "w8a8", day="2026-11-25")
    marks = {entry.cell: entry.marks for entry in made(reference, old, new)}
    assert marks[old["cell"]] == (Mark.STALE,) and marks[new["cell"]] == ()
    marks = {entry.cell: entry.marks for entry in made(reference, old | {"reference": same})}
    assert marks[old["cell"]] == ()


def test_a_record_that_is_found_twice_is_one_release_where_it_is_published_and_signed() -> None:
    data = canonical(built("abacus", "pebble-7b", "bf16"))
    place = "registry.example.org/a@sha256:" + "1" * 64
    signed = Found(data, place + "2", Signature.SIGNED, ("key.pub",))
    for order in ((Found(data), signed, Found(data, place)), (signed, Found(data, place), Found(data))):
        entries = catalogue(order)
        assert len(entries) == 1 and entries[0].found is signed


@pytest.mark.parametrize("signature", [Signature.UNSIGNED, Signature.STRANGER, Signature.INCOMPLETE])
def test_what_no_trusted_key_signed_is_marked(signature: Signature) -> None:
    data = canonical(built("abacus", "pebble-7b", "bf16"))
    entry = catalogue([Found(data, "", signature)])[0]
    assert entry.marks == (Mark(signature.value),)
    assert catalogue([Found(data)])[0].marks == () == catalogue([Found(data, "", Signature.SIGNED, ("k",))])[0].marks
    text = pages((entry,))[f"{entry.path}.html"].decode()
    assert f'class="notice {signature.value}"' in text


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "other/1"},
        {"cell": "abacus/pebble-7b@w8a8"},
        {"cell": "../../pebble-7b@bf16"},
        {"chip": {"id": "../..", "name": "x"}},
        {"model": {}},
        {"engine": HOSTILE},
        {"verdicts": [{"name": "accuracy", "status": "GOOD"}]},
        {"verdicts": "PASSED"},
        {"created": "yesterday"},
        {"created": None},
        {"waivers": [{"outcome": "applied", "expires": HOSTILE}]},
        {"waivers": 7},
        {"image": []},
    ],
)
def test_what_a_catalogue_cannot_trust_is_refused_or_left_out(changes: JSON) -> None:
    one = Found(canonical(built("abacus", "pebble-7b", "bf16") | changes))
    try:
        entries = (entry_of(one),)
    except VerificationError:
        return
    document = json.loads(render_site(entries, {}, [], Site())["catalogue.json"])
    assert document["releases"] == [] and document["left-out"][0]["place"] == "abacus/pebble-7b@bf16"


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"a": 1, "a": 2}', b"[" * 100_000, b"\xff"])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(VerificationError):
        entry_of(Found(data))


# The pages


def test_equal_records_give_equal_bytes_in_whatever_order_they_are_found() -> None:
    assert whole() == pages(catalogue(reversed(found())))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_address_of_every_page_leads_to_a_file_of_the_site(language: str) -> None:
    files = whole() if language == "en" else pages(catalogue(found()), language=language)
    assert len([name for name in files if name.endswith(".html")]) == len(records()) + 1
    for name in (name for name in files if name.endswith(".html")):
        page = Page(files[name])
        assert ("html", {"lang": language}) in page.tags
        for address in page.addresses():
            path, _, anchor = address.partition("#")
            if address.startswith("https://"):
                assert "card" in name or "releases/" in name
            elif path:
                parts: list[str] = []
                for part in (PurePosixPath(name).parent / path).parts:
                    parts = parts[:-1] if part == ".." else [*parts, part]
                assert "/".join(parts) in files, address
            else:
                assert any(attrs.get("id") == anchor for _, attrs in page.tags), address


def test_a_page_says_every_verdict_digest_and_pin_of_its_record_and_how_to_verify_it() -> None:
    record = built("abacus", "pebble-7b", "bf16", variant="native")
    place = "registry.example.org/team/abacus/pebble-7b:bf16-native@sha256:" + "1" * 64
    entry = catalogue([Found(canonical(record), place, Signature.SIGNED, ("key.pub",))])[0]
    files = pages((entry,))
    text = files[f"{entry.path}.html"].decode()
    for verdict in record["verdicts"]:
        assert verdict["name"] in text and verdict["wanted"].replace("&", "&amp;").replace("'", "&#39;") in text
    for digest in (record["image"]["manifest"]["digest"], entry.found.digest, record["pins"]["sources"][0]["sha256"]):
        assert digest in text
    commands = text.replace(" \\\n ", "")
    assert f"release verify {place} --key KEY.pub" in commands and f"release pull {place}" in commands
    assert "signed by key.pub" in text
    assert files[f"{entry.path}.json"] == entry.found.data
    assert files[f"{entry.path}.md"].startswith(b"---\n")


def test_a_planned_cell_has_a_page_that_promises_nothing() -> None:
    entry = made(planned("abacus", "pebble-7b", "w8a8"))[0]
    text = pages((entry,))[f"{entry.path}.html"].decode()
    assert "Nothing has been built yet" in text and "release pull" not in text and "Reported by others" in text


def hostile(value: Any, name: str = "") -> Any:
    """Replace every text that a stranger may write and a catalogue would still show."""
    kept = ("state", "status", "cell", "id", "precision", "variant", "engine", "schema", "created", "expires", "outcome")
    if isinstance(value, dict):
        return {key: item if key in kept else hostile(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) and not (name == "name" and value.startswith("accuracy")) else value


@pytest.mark.parametrize("language", ["en", "zh"])
def test_hostile_records_stay_text_on_every_page(language: str) -> None:
    entries = made(*map(hostile, records()))
    files = pages(entries, language=language, title=HOSTILE)
    assert json.loads(files["catalogue.json"])["left-out"] == [{"place": "somewhere", "reason": HOSTILE.replace("\u202e", "")}]
    for name, data in files.items():
        if name.endswith(".xml"):
            assert {element.tag.rpartition("}")[2] for element in ET.fromstring(data).iter()} <= {
                *("feed", "title", "id", "updated", "author", "name", "link", "entry", "summary")
            }
        if not name.endswith(".html"):
            continue
        page = Page(data)
        assert "\u202e" not in data.decode()
        assert {tag for tag, _ in page.tags} & {"style", "iframe", "object", "embed", "base", "svg"} == set()
        assert not any(key.startswith("on") or key == "style" for _, attrs in page.tags for key in attrs)
        assert not any(re.match(r"\s*(javascript|data|vbscript|file):", address, re.I) for address in page.addresses())
        assert len(page.scripts) == (2 if name == "index.html" else 0)
        assert all(tag != "img" or str(attrs["src"]).endswith(".forest.svg") for tag, attrs in page.tags)


def test_only_our_script_runs_and_the_policy_names_it_by_its_digest() -> None:
    files = whole()
    policies = {}
    for name in (name for name in files if name.endswith(".html")):
        page = Page(files[name])
        told = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
        policies[name] = str(told)
    assert all(
        "script-src" not in told and "default-src 'none'" in told for name, told in policies.items() if name != "index.html"
    )
    script = Page(files["index.html"]).scripts[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policies["index.html"]
    assert script == (FOLDER / "site" / "site.js").read_text(encoding="utf-8")


def test_the_map_shows_the_newest_release_of_each_cell_and_the_list_shows_all() -> None:
    entries = catalogue(found())
    page = Page(whole()["index.html"])
    tiles = [attrs["href"] for tag, attrs in page.tags if tag == "a" and str(attrs.get("class", "")).startswith("tile ")]
    assert sorted(map(str, tiles)) == sorted(f"{entry.path}.html" for entry in entries if entry.newest)
    assert len([1 for tag, attrs in page.tags if tag == "tr" and "data-i" in attrs]) == len(entries)


def test_an_empty_catalogue_says_so() -> None:
    files = render_site((), {}, [], Site())
    assert b"There is no release yet." in files["index.html"] and b"<script" not in files["index.html"]
    ET.fromstring(files["feed.xml"])


def test_the_feed_has_what_was_built_newest_first_under_the_address_that_is_given() -> None:
    entries = catalogue(found())
    atom = "{http://www.w3.org/2005/Atom}"
    for address in ("", "https://example.org/releases/"):
        root = ET.fromstring(pages(entries, address=address)["feed.xml"])
        told = [str(entry.findtext(f"{atom}updated")) for entry in root.findall(f"{atom}entry")]
        assert told == sorted(told, reverse=True) and len(told) == sum(entry.made is not None for entry in entries)
        links = [str(link.get("href")) for link in root.findall(f"{atom}entry/{atom}link")]
        assert all(link.startswith(f"{address}releases/") for link in links)
        assert len({entry.findtext(f"{atom}id") for entry in root.findall(f"{atom}entry")}) == len(told)


def test_the_data_name_every_file_and_no_number_that_is_not_the_record_s() -> None:
    files = whole()
    document = json.loads(files["catalogue.json"])
    assert document["files"] == sorted(files)
    for release in document["releases"]:
        record = json.loads(files[release["record"]])
        accuracy = next((v["measured"] for v in record["verdicts"] if v["name"] == "accuracy"), None)
        assert (release["measured"] or {}).get("accuracy") == accuracy
        assert release["record-sha256"] == "sha256:" + hashlib.sha256(files[release["record"]]).hexdigest()


def test_there_is_no_site_in_a_language_without_words() -> None:
    with pytest.raises(UsageError, match="there is no site in 'xx'"):
        pages((), language="xx")


# Light and dark


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_colour_of_text_stands_out_on_its_ground_in_light_and_in_dark() -> None:
    sheet = (FOLDER / "site" / "site.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", sheet, re.S)
    )
    for theme in (light, light | dark):
        pairs = [(ink, ground) for ink in ("ink", "dim", "link", "note") for ground in ("paper", "wash")]
        pairs += [(state, ground) for state in ("validated", "built", "blocked") for ground in ("paper", "wash", f"{state}-soft")]
        pairs += [("planned", "paper"), ("planned", "wash"), ("note", "note-soft"), ("ink", "note-soft"), ("ink", "blocked-soft")]
        for ink, ground in pairs:
            high, low = sorted((luminance(theme[ink]), luminance(theme[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


# Markdown and data


def test_markdown_becomes_html_that_can_do_nothing() -> None:
    text = f"---\nfront: matter\n---\n# {HOSTILE}\n\n| a |\n|--:|\n| {HOSTILE} |\n\n![x](https://example.org/x.png)\n\n```html\n<b>\n```\n"
    text += "[a](javascript:alert(1)) [b](data:text/html,x) [c](file:///x) [d](//example.org) [e](https://example.org/)"
    page = Page(str(html_of(text, below=2)).encode())
    assert {tag for tag, _ in page.tags} == {"h3", "table", "thead", "tr", "th", "tbody", "td", "p", "a", "pre", "code"}
    assert set(page.addresses()) == {"https://example.org/x.png", "https://example.org/"}
    assert "front" not in str(html_of(text))


def test_the_folds_of_a_card_are_folds_again_and_only_those() -> None:
    text = str(
        html_of(
            "<details><summary>3 &amp; &lt;4</summary>\n\nx\n\n</details>\n\n</details>\n\n<details open><summary>a</summary>\n"
        )
    )
    assert "<details><summary>3 &amp; &lt;4</summary>" in text
    assert text.count("<details>") == 1 == text.count("</details>") and "&lt;details open&gt;" in text


def test_data_in_a_page_cannot_end_its_element() -> None:
    value = {"a": f"{HOSTILE}<!--\u2028&"}
    text = str(script_data(value))
    assert not set(text) & set("<>&\u2028\u202e") and json.loads(text) == {"a": value["a"].replace("\u202e", "")}


def test_a_release_whose_page_cannot_be_made_is_left_out_and_nothing_leads_to_it() -> None:
    bad, good = (
        built("abacus", "pebble-7b", "bf16", day="2026-11-25", reported=[{"scores": [1]}]),
        built("abacus", "pebble-7b", "bf16"),
    )
    files = pages(made(bad, good))
    document = json.loads(files["catalogue.json"])
    assert [one["place"] for one in document["left-out"]] == ["somewhere", "abacus/pebble-7b@bf16"]
    assert [(one["made"][:10], one["newest"]) for one in document["releases"]] == [("2026-11-20", True)]
    assert len([name for name in files if name.endswith(".html")]) == 2
    assert b"There is a newer release" not in files[document["releases"][0]["page"]]


# Anything at all

LEAVES: Final = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES: Final = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)


def places_in(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to everything in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(way for key, item in inner for way in places_in(item, (*place, key)))]


PLACES: Final = places_in(built("abacus", "pebble-7b", "bf16", status="SKIPPED", waivers=[WAIVER]))[1:]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
def test_whatever_stands_in_a_record_it_is_shown_as_text_or_left_out(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    record = built("abacus", "pebble-7b", "bf16", status="SKIPPED", waivers=[WAIVER])
    for (*way, last), value in changes:
        inside: Any = record
        try:
            for key in way:
                inside = inside[key]
            inside[last] = value
        except (KeyError, IndexError, TypeError):
            continue
    data = json.dumps(record).encode()
    try:
        entries = catalogue([Found(data)])
    except VerificationError:
        return
    files = render_site(entries, {}, [], Site())
    document = json.loads(files["catalogue.json"])
    assert len(document["releases"]) + len(document["left-out"]) == 1
    ET.fromstring(files["feed.xml"])
    for name in (name for name in files if name.endswith(".html")):
        page = Page(files[name])
        assert len(page.scripts) == (2 if name == "index.html" and document["releases"] else 0)
        assert not {tag for tag, _ in page.tags} & {"style", "img", "iframe", "object"}
