"""The site: a catalogue as pages that need no server, ask nobody for anything, and say nothing that no record says."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from release.errors import ReleaseError, UsageError
from release.publish.card import loads_of, render_card
from release.publish.catalogue import SCHEMA, Entry, Signature
from release.publish.report import pins_of, verdicts_told
from release.templates.html import html_of
from release.templates.render import FOLDER, plain_text, render, render_page, shell_line
from release.types import JSON, State, tag_of

LETTERS: Final = {State.VALIDATED: "V", State.BUILT: "B", State.BLOCKED: "X", State.PLANNED: "P"}
ROOT: Final = "../../../"
"""The way from a release's page to the top."""
SHEET: Final = "site/site.css"
SCRIPT: Final = "site/site.js"
OTHER_CARD: Final = re.compile(r"(?m)^\[[^\]\n]*\]\(README[_a-z]*\.md\)\n\n?")
"""The line of a card that leads to the card in another language, which lies not here."""
POLICY: Final = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'"
FEED: Final = uuid.UUID("6f1f4d43-5cf0-5d0f-9d0a-3f2a7b1f6a55")
"""The name space of the feed's ids."""
LONGEST_FEED: Final = 100
BROKEN: Final = (ReleaseError, KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError)
"""What comes of a record that is none."""
NEVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Site:
    """How a site is made: its words, its title, the address that it will have (ends with a slash; none is known: empty)."""

    language: str = "en"
    title: str = ""
    address: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of a release as SVG, for light pages and for dark ones, and what it says in words."""

    day: bytes
    night: bytes
    said: str


def words_of(language: str) -> JSON:
    """Return the words of the pages. Raises UsageError for a language that there are none in."""
    found: JSON = {}
    for name in ("report/words.json", "site/words.json"):
        known = json.loads((FOLDER / name).read_text(encoding="utf-8"))
        if language not in known:
            raise UsageError(f"there is no site in {language!r}", next_step=f"there are: {', '.join(known)}")
        found |= known[language]
    return found


def render_site(
    entries: Sequence[Entry],
    pictures: Mapping[str, Mapping[str, Picture]],
    left_out: Sequence[tuple[str, str]],
    site: Site,
) -> dict[str, bytes]:
    """Return the files of a site by their paths: equal releases, equal bytes.

    `pictures` are by name, by the path of their release; `left_out` says what was found and is not
    shown, and why. A release whose page cannot be made is left out too.
    """
    words = words_of(site.language)
    title = site.title or words["catalogue"]
    missing = [(plain_text(place), plain_text(reason)) for place, reason in left_out]
    items, files = _pages(entries, pictures, words, site, missing)
    shown = [entry for entry in entries if entry.path in items]
    shown.sort(key=lambda entry: entry.made or NEVER, reverse=True)  # what is planned comes last, and stays in its order
    listed = [items[entry.path] | {"number": number} for number, entry in enumerate(shown)]
    files["index.html"] = _index(shown, listed, missing, words, site, title)
    files["feed.xml"] = _feed(shown, listed, words, site, title)
    files["site.css"] = render(SHEET, {}).encode()
    files["catalogue.json"] = _data(shown, listed, missing, files)
    return files


def _pages(
    entries: Sequence[Entry],
    pictures: Mapping[str, Mapping[str, Picture]],
    words: JSON,
    site: Site,
    missing: list[tuple[str, str]],
) -> tuple[dict[str, JSON], dict[str, bytes]]:
    """Return what lists say of each release, by its path, and the files of their pages; those that cannot be made go to `missing`."""
    items: dict[str, JSON] = {}
    history: dict[str, list[JSON]] = {}
    files: dict[str, bytes] = {}
    broken: dict[str, Exception] = {}
    for entry in entries:
        try:
            items[entry.path] = _item(entry, words) | {"newest": entry.cell not in history}
            history.setdefault(entry.cell, []).append(items[entry.path])
        except BROKEN as problem:
            broken[entry.path] = problem
    for entry in (entry for entry in entries if entry.path in items):
        try:
            files |= _release(entry, history[entry.cell], pictures.get(entry.path, {}), words, site)
        except BROKEN as problem:
            broken[entry.path] = problem
    if not broken:
        return items, files
    sound = [entry for entry in entries if entry.path not in broken]  # anew: the others of their cells must not lead to them
    missing += [(e.found.place or e.cell, plain_text(f"{broken[e.path]!s:.200}")) for e in entries if e.path in broken]
    return _pages(sound, pictures, words, site, missing)


def _item(entry: Entry, words: JSON) -> JSON:
    """Return what a list says of a release."""
    record, found = entry.found.record, entry.found
    accuracy: JSON = next((v for v in record["verdicts"] if v["name"] == "accuracy"), {})
    signed = words["signed-plain"] if found.signature is Signature.SIGNED else words["marks"].get(str(found.signature), "")
    item = {
        **{"cell": entry.cell, "chip": entry.chip, "model": entry.model, "precision": entry.precision, "arm": entry.arm},
        **{"engine": entry.engine, "state": entry.state.value, "letter": LETTERS[entry.state]},
        **{"marks": [mark.value for mark in entry.marks], "path": entry.path, "short": found.digest[7:19]},
        "made": entry.made and _stamp(entry.made),
        "title": f"{record['model']['name']} · {record['chip']['name']} · {entry.arm}",
        "measured": accuracy.get("measured", ""),
        "finding": (accuracy.get("figures") or {}).get("finding") or accuracy.get("status", ""),
        "reported": sum(len(table["scores"]) for table in record.get("reported") or ()),
        "signed": f"{words['signed']} {', '.join(found.signers)}" if found.signers else signed,
    }
    return item | {"found-by": _searched(entry, item, words)}


def _stamp(made: datetime) -> str:
    return made.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _release(entry: Entry, history: list[JSON], pictures: Mapping[str, Picture], words: JSON, site: Site) -> dict[str, bytes]:
    """Return the page of a release, and what lies beside it: record, card, pictures."""
    record, item = entry.record, next(other for other in history if other["path"] == entry.path)
    file = entry.path.rpartition("/")[2]
    try:
        card = render_card(record, site.language)
    except BROKEN:
        card = ""
    which = ["--chip", entry.chip, "--model", entry.model, "--precision", entry.arm]
    place = entry.found.place
    command = record["serve"]["command"]
    values: dict[str, Any] = {
        **{"record": record, "item": item, "words": words, "language": site.language, "root": ROOT, "policy": POLICY},
        **{"title": item["title"], "file": file, "said": str(entry.found.record["state"]), "history": history, "wrong": []},
        **verdicts_told(record),
        "loads": loads_of(record.get("performance")),
        "pictures": [
            {"name": name, "address": f"{file}.{name}.svg", "night": f"{file}.{name}.night.svg", "said": picture.said}
            for name, picture in pictures.items()
        ],
        "newest": ROOT + history[0]["path"] + ".html",
        "digests": list(_digests(entry)),
        "command": shell_line(command) if command else "",
        "verify": shell_line(["release", "verify", place, "--key", "KEY.pub"]) if place else "",
        "pull": shell_line(["release", "pull", *([place] if place else which)]),
        "build": shell_line(["release", "build", *which]),
        "folder": f"pulled/{entry.chip}/{entry.model}/{tag_of(entry.arm)}",
        "pins": list(pins_of(record)),
        "has_card": bool(card),
        "card": html_of(OTHER_CARD.sub("", card), below=2),
    }
    files = {f"{entry.path}.html": render_page("site/release.html.j2", values).encode()}
    files[f"{entry.path}.json"] = entry.found.data
    if card:
        files[f"{entry.path}.md"] = card.encode()
    for name, picture in pictures.items():
        files |= {f"{entry.path}.{name}.svg": picture.day, f"{entry.path}.{name}.night.svg": picture.night}
    return files


def _digests(entry: Entry) -> Iterator[tuple[str, str]]:
    record = entry.found.record
    if entry.found.place:
        yield "index-digest", entry.found.place
    if record["image"]:
        yield "image-digest", record["image"]["manifest"]["digest"]
    yield "record-digest", entry.found.digest


def _index(
    entries: Sequence[Entry], items: list[JSON], left_out: Sequence[tuple[str, str]], words: JSON, site: Site, title: str
) -> bytes:
    """Return the first page: the map of the newest releases, and the list of all."""
    chips = {entry.chip: entry.found.record["chip"] for entry in entries}
    models = {entry.model: entry.found.record["model"] for entry in entries}
    rows = []
    for model, facts in sorted(models.items()):
        tiles: dict[str, list[JSON]] = {}
        for item in sorted(items, key=lambda item: item["arm"]):
            if item["model"] == model and item["newest"]:
                tiles.setdefault(item["chip"], []).append(item)
        rows.append({"name": facts["name"], "vendor": facts.get("vendor"), "tiles": tiles})
    columns = [(chip, facts["name"], facts.get("vendor")) for chip, facts in sorted(chips.items())]
    precisions = sorted({entry.precision for entry in entries})
    values = {
        **{"words": words, "language": site.language, "title": title, "entries": items, "rows": rows, "left_out": left_out},
        "policy": f"{POLICY}; script-src '{_hash(render(SCRIPT, {}))}'",
        "chips": columns,
        "models": [(model, facts["name"]) for model, facts in sorted(models.items())],
        "cells": sum(item["newest"] for item in items),
        "day": max((item["made"][:10] for item in items if item["made"]), default=""),
        "states": [(s.value, LETTERS[s], sum(i["newest"] and i["state"] == s for i in items)) for s in LETTERS],
        "marks": sorted({mark for item in items for mark in item["marks"]}),
        "looked": any(entry.found.signature for entry in entries),
        "choices": [
            ("chip", "chip", [(chip, name) for chip, name, _ in columns]),
            ("model", "model", [(model, facts["name"]) for model, facts in sorted(models.items())]),
            ("precision", "precision", [(each, each) for each in precisions]),
        ],
        "index": [item["found-by"] for item in items],
    }
    return render_page("site/index.html.j2", values).encode()


def _hash(script: str) -> str:
    """Return what a Content-Security-Policy calls a script by (CSP 3, 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _searched(entry: Entry, item: JSON, words: JSON) -> JSON:
    """Return what a release is filtered by and found by, in lower case."""
    record = entry.found.record
    told = [item["cell"], item["title"], item["engine"], item["finding"], item["signed"], entry.found.place, entry.found.digest]
    told += [record["model"].get(name) for name in ("vendor", "family", "license")] + [record["chip"].get("vendor")]
    told += [words["states"][item["state"]], item["state"], *(words["marks"][mark] for mark in item["marks"])]
    told += [digest for _, digest in _digests(entry)]
    told += [f"{verdict['name']} {verdict['status']}" for verdict in record["verdicts"] if verdict["status"] != "PASSED"]
    told += [score["benchmark"] for table in record.get("reported") or () for score in table["scores"]]
    text = " ".join(str(each) for each in dict.fromkeys(told) if each).lower()
    return {name: item[name] for name in ("chip", "model", "precision", "state")} | {"text": text}


def _feed(entries: Sequence[Entry], items: list[JSON], words: JSON, site: Site, title: str) -> bytes:
    """Return the newest releases as a feed (Atom, RFC 4287); its addresses are relative where the site's own is not known."""
    made = [
        {**item, "id": uuid.uuid5(FEED, entry.found.digest).urn}
        for entry, item in zip(entries, items, strict=True)
        if item["made"]
    ]
    made.sort(key=lambda item: (item["made"], item["path"]), reverse=True)
    values = {
        **{"words": words, "language": site.language, "title": title, "address": site.address, "items": made[:LONGEST_FEED]},
        "id": uuid.uuid5(FEED, site.address or title).urn,
        "updated": made[0]["made"] if made else "1970-01-01T00:00:00Z",
    }
    return render_page("site/feed.xml.j2", values).encode()


def _data(entries: Sequence[Entry], items: list[JSON], left_out: Sequence[tuple[str, str]], files: Mapping[str, bytes]) -> bytes:
    """Return the catalogue for programs, which names every file of the site."""
    releases = [
        {name: item[name] for name in ("cell", "chip", "model", "precision", "engine", "state", "marks", "made", "newest")}
        | {"page": f"{item['path']}.html", "record": f"{item['path']}.json", "record-sha256": entry.found.digest}
        | {"place": entry.found.place or None, "signature": entry.found.signature, "signers": list(entry.found.signers)}
        | {"measured": {"accuracy": item["measured"], "finding": item["finding"]} if item["measured"] else None}
        for entry, item in zip(entries, items, strict=True)
    ]
    missing = [{"place": place, "reason": reason} for place, reason in left_out]
    document = {"schema": SCHEMA, "releases": releases, "left-out": missing, "files": sorted([*files, "catalogue.json"])}
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()
