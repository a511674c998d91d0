"""Licences as model hubs file them: those that have an id there, and how another one is named."""

from __future__ import annotations

import re
from typing import Final

from release.types import JSON

LISTED: Final = frozenset(
    (
        *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0"),
        *(
            "bigcode-openrail-m",
            "afl-3.0",
            "artistic-2.0",
            "bsl-1.0",
            "bsd",
            "bsd-2-clause",
            "bsd-3-clause",
            "bsd-3-clause-clear",
        ),
        *("c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
        *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
        *("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0"),
        *("cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl", "gpl"),
        *("gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl"),
        *("openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr"),
        *("deepfloyd-if-license", "llama2", "gemma", "unknown"),
    )
)
"""Ids that a card's `license` may have (Hugging Face, hub-docs, docs/hub/repositories-licenses.md, 008d54d0); all others are `other`."""
REPOSITORY: Final = re.compile("[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
COMMIT: Final = re.compile("[0-9a-f]{40}")


def license_of(model: JSON) -> dict[str, str]:
    """Return a model's licence as front matter: an id of the list, or `other` with the name that its maker gives it and where its text is.

    The text is upstream's file LICENSE, where the hub wants it of every `other` (the same page), at the pinned revision if there is one.
    """
    said = str(model["license"])
    if said in LISTED:
        return {"license": said}
    hub = (model.get("checkpoint") or {}).get("hub") or {}
    link = {}
    if "huggingface" in hub.get("sites", ()) and REPOSITORY.fullmatch(str(hub["repository"])):
        revision = hub["revision"] if isinstance(hub["revision"], str) and COMMIT.fullmatch(hub["revision"]) else "main"
        link = {"license_link": f"https://huggingface.co/{hub['repository']}/blob/{revision}/LICENSE"}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.+-]+", "-", said.lower()).strip("-") or "other", **link}
