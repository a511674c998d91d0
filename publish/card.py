"""The card, README.md: what a reader sees of a release, from its record alone."""

from __future__ import annotations

import json
from typing import Any, Final

from release.templates.render import render
from release.types import JSON, tag_of

TEMPLATE: Final = "cards/card.md.j2"
MEANING: Final = {
    "planned": "Nothing has been built yet.",
    "built": "It was built and it serves, but it is **not validated**: see the verdicts that did not pass.",
    "validated": "Every check passed, on the image and weights whose digests stand below.",
    "blocked": "A verdict blocks this release: do not use it.",
}


def render_card(record: JSON) -> str:
    """Return the card of a record as Markdown with front matter."""
    verdicts = record["verdicts"]
    checks = [verdict for verdict in verdicts if verdict["name"] != "accuracy"]
    values: dict[str, Any] = {
        "record": record,
        "front": {name: json.dumps(value, ensure_ascii=False) for name, value in front_matter(record).items()},
        "meaning": MEANING[record["state"]],
        "accuracy": next(verdict for verdict in verdicts if verdict["name"] == "accuracy"),
        "checks": checks,
        "passed": sum(verdict["status"] == "PASSED" for verdict in checks),
        "question": {"model": record["serve"]["model"], "messages": [{"role": "user", "content": record["model"]["example"]}]},
        "pull": f"release pull --chip {record['chip']['id']} --model {record['model']['id']} --precision {arm(record)}",
        "tag": tag_of(arm(record)),
        "wheels": sorted([*record["pins"]["wheels"], *record["pins"]["sources"]], key=lambda wheel: str(wheel["name"])),
    }
    return render(TEMPLATE, values)


def arm(record: JSON) -> str:
    """Return precision and variant as the command line takes them: `bf16`, `bf16~native`."""
    return str(record["precision"]) + (f"~{record['variant']}" if record["variant"] else "")


def front_matter(record: JSON) -> dict[str, Any]:
    """Return the metadata block that model hubs read (Hugging Face model card metadata)."""
    model = record["model"]
    return {
        "license": model["license"],
        "language": list(model["languages"]),
        "pipeline_tag": "text-generation",
        "library_name": record["engine"],
        "tags": [f"chip:{record['chip']['id']}", f"precision:{record['precision']}", f"state:{record['state']}"],
    }
