"""Reporting on a release that was built or pulled: pictures and one page of HTML, laid beside its record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from release.errors import UsageError
from release.types import JSON

PAGES = {"en": "report.html", "zh": "report_zh.html"}
LARGEST = 64 << 20
"""Bytes of a record beyond which it is none."""


@dataclass(frozen=True)
class Reported:
    """What was written: the page, and the pictures, each as SVG and PNG."""

    page: Path
    pictures: tuple[Path, ...]


def read_record(folder: Path) -> JSON:
    """Return the record of a release in a folder. Raises UsageError where there is none."""
    path = folder / "release.json"
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict) or not str(record.get("schema", "")).startswith("release-record/"):
            raise ValueError("it is no record")
    except FileNotFoundError as problem:
        raise UsageError(f"{folder} holds no release.json", next_step="release build, or release pull, brings one") from problem
    except (OSError, ValueError, RecursionError) as problem:
        raise UsageError(
            f"{folder} holds no release: {problem}", next_step="release build, or release pull, brings one"
        ) from problem
    return record


def report(folder: Path, out: Path | None, language: str) -> Reported:
    """Write the report of the release in `folder` to `out` (default: beside the record), and its pictures beside it.

    Raises UsageError where there is no release, or the extra `report` is not installed; TemplateError for a record that lacks something.
    """
    from release.publish.pictures import draw, facts_of, pictures_of
    from release.publish.report import render_report, wrong_answers

    record = read_record(folder)
    try:
        specs = pictures_of(record)
        drawn, said = draw(specs), facts_of(specs)
        pictures = {name: (svg, said[name]) for name, svg in drawn.items()}
        text = render_report(record, pictures, wrong_answers(folder), language)
    except (KeyError, TypeError, AttributeError, IndexError) as problem:
        raise UsageError(
            f"{folder}/release.json is no whole record: {problem!r:.200}", next_step="build the release again"
        ) from problem
    page = out or folder / PAGES.get(language, f"report_{language}.html")
    beside = page.parent / "pictures"
    beside.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    written = []
    for kind, made in (("svg", drawn), ("png", draw(specs, "png"))):
        for name, data in made.items():
            (beside / f"{name}.{kind}").write_bytes(data)
            written.append(beside / f"{name}.{kind}")
    return Reported(page, tuple(written))
