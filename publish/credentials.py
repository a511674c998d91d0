"""As whom a registry is asked: what the user keeps for it, and what it asks for."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from release.errors import PublishError

CHALLENGE: Final = re.compile(r'(?<![A-Za-z_])(?:([A-Za-z]+)\s+)?([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


@dataclass(frozen=True)
class Credentials:
    """A user and a password for one registry; neither shows in a `repr`."""

    user: str = field(repr=False)
    password: str = field(repr=False)

    def header(self) -> str:
        """Return the Basic authorization (RFC 7617, UTF-8)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def stored_credentials(host: str, environ: Mapping[str, str] = os.environ) -> Credentials | None:
    """Return what the user keeps for `host`, or None.

    First RELEASE_REGISTRY_USER and RELEASE_REGISTRY_PASSWORD, where RELEASE_REGISTRY_HOST is this very host; then the `auths`
    of docker's config.json (in DOCKER_CONFIG, else ~/.docker). Raises PublishError for a config.json that cannot be read.
    """
    if environ.get("RELEASE_REGISTRY_HOST") == host:
        return Credentials(environ.get("RELEASE_REGISTRY_USER", ""), environ.get("RELEASE_REGISTRY_PASSWORD", ""))
    path = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or "/") / ".docker") / "config.json"
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_bytes()).get("auths") or {}
        for key, entry in entries.items():
            if key.removeprefix("https://").removeprefix("http://").partition("/")[0] != host:
                continue
            if entry.get("auth"):
                user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
                return Credentials(user, password.rstrip("\0"))
            if entry.get("username"):
                return Credentials(str(entry["username"]), str(entry.get("password", "")))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        raise PublishError(f"{path} cannot be read as docker's config.json", next_step=f"docker login {host}") from None
    return None


def challenges(header: str) -> dict[str, dict[str, str]]:
    """Return a WWW-Authenticate header as scheme (lower case) → parameters (RFC 9110 §11.6.1)."""
    found: dict[str, dict[str, str]] = {}
    scheme = ""
    for match in CHALLENGE.finditer(header[:8192]):
        scheme = match[1].lower() if match[1] else scheme
        value = match[4] if match[3] is None else re.sub(r"\\(.)", r"\1", match[3])
        found.setdefault(scheme, {}).setdefault(match[2].lower(), value)
    if header.strip().lower() == "basic":
        found["basic"] = {}
    return found
