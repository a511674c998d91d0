"""The report: one page of HTML for one release, from its record and evidence, that asks nobody for anything and runs nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from release.errors import UsageError
from release.publish.card import arm, loads_of
from release.templates.render import render_page, shell_line
from release.types import JSON, family, tag_of

TEMPLATE: Final = "report/report.html.j2"
WORDS: Final = "report/words.json"
SHOWN: Final = 12
"""Wrong answers that a report shows; of the others it gives the number."""
LONGEST: Final = 600
"""Characters of an answer that a report shows."""
LARGEST: Final = 64 << 20
"""Bytes of a file of answers beyond which it is not read."""
SAMPLES: Final = "evidence/accuracy/samples.jsonl"
STATUSES: Final = ("FAILED", "INCONCLUSIVE", "SKIPPED", "PASSED")


def render_report(record: JSON, pictures: Mapping[str, tuple[bytes, str]], wrong: list[JSON], language: str = "en") -> str:
    """Return the page of a record: `pictures` are SVGs with what they say in words, `wrong` the answers from `wrong_answers`.

    Raises UsageError for a language that there is none in, TemplateError for a record that lacks something.
    """
    from release.templates.render import FOLDER

    known = json.loads((FOLDER / WORDS).read_text(encoding="utf-8"))
    if language not in known:
        raise UsageError(f"there is no report in {language!r}", next_step=f"there are: {', '.join(known)}")
    which = ["--chip", record["chip"]["id"], "--model", record["model"]["id"], "--precision", arm(record)]
    values: dict[str, Any] = {
        "record": record,
        "words": known[language],
        "language": language,
        "title": f"{record['model']['name']} · {record['chip']['name']} · {record['precision']}",
        **verdicts_told(record),
        "loads": loads_of(record.get("performance")),
        "pictures": [
            {"name": name, "address": "data:image/svg+xml;base64," + base64.b64encode(svg).decode(), "said": said, "night": ""}
            for name, (svg, said) in pictures.items()
        ],
        "wrong": wrong[:SHOWN],
        "more": max(0, len(wrong) - SHOWN),
        "command": shell_line(record["serve"]["command"]) if record["serve"]["command"] else "",
        "pull": shell_line(["release", "pull", *which]),
        "folder": f"pulled/{record['chip']['id']}/{record['model']['id']}/{tag_of(arm(record))}",
        "pins": list(pins_of(record)),
    }
    return render_page(TEMPLATE, values)


def verdicts_told(record: JSON) -> JSON:
    """Return a record's verdicts as pages tell them: what did not pass first, `checks` of conformance apart from what is `told` in full."""
    verdicts = sorted(record["verdicts"], key=lambda verdict: STATUSES.index(verdict["status"]))
    checks = [verdict for verdict in verdicts if family(verdict["name"]) == "conformance"]
    return {"told": [verdict for verdict in verdicts if verdict not in checks], "checks": checks}


def wrong_answers(folder: Path) -> list[JSON]:
    """Return the answers of a release that were graded as wrong, shortened, from the evidence in its folder; none where there is none."""
    path = folder / SAMPLES
    if not path.is_file() or path.is_symlink() or path.stat().st_size > LARGEST:
        return []
    found = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                sample = json.loads(line)
                if isinstance(sample, dict) and sample.get("correct") is False:
                    text = str(sample.get("text", ""))
                    told = {name: str(sample.get(name, ""))[:100] for name in ("question_id", "expected", "answer")}
                    found.append({**told, "text": text[:LONGEST] + ("…" if len(text) > LONGEST else "")})
            except (ValueError, RecursionError):
                continue  # what is damaged is nothing to show; verifying is for `pull`
    return found


def pins_of(record: JSON) -> Iterator[tuple[str, str]]:
    """Yield what the release is and was made from, by digest."""
    if record["image"]:
        yield "image", record["image"]["manifest"]["digest"]
        yield "image id", record["image"]["config"]
    for source in (*(record["pins"].get("sources") or ()), *(record["pins"].get("git") or ())):
        yield f"source {source['name']}", str(source.get("sha256") or source.get("base"))
        for patch in source["patches"]:
            yield f"patch {patch.get('file') or patch.get('path')}", patch["sha256"]
    for name in ("dockerfile", "pylock", "questions", "prompts"):
        if record["pins"].get(name):
            yield name, record["pins"][name]
    for name, file in ((record["weights"] or {}).get("files") or {}).items():
        yield f"weights {name}", file["sha256"]
