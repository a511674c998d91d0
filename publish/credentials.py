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

from release.errors import PublishError, StageError
from release.processes import find, run

CHALLENGE: Final = re.compile(r'(?<![A-Za-z_])(?:([A-Za-z]+)\s+)?([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')

PATIENCE: Final = 30.0
"""Seconds that a program that keeps credentials may take."""


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

    First RELEASE_REGISTRY_USER and RELEASE_REGISTRY_PASSWORD, where RELEASE_REGISTRY_HOST is this very host; then docker's config.json
    (in DOCKER_CONFIG, else ~/.docker): the program that `credHelpers` names for the host, the one of `credsStore`, and `auths`. Raises
    PublishError for a config.json that cannot be read, and for a program that fails.
    """
    if environ.get("RELEASE_REGISTRY_HOST") == host:
        return Credentials(environ.get("RELEASE_REGISTRY_USER", ""), environ.get("RELEASE_REGISTRY_PASSWORD", ""))
    path = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or "/") / ".docker") / "config.json"
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_bytes())
        helper = (document.get("credHelpers") or {}).get(host) or document.get("credsStore")
        entries = document.get("auths") or {}
        if helper and (kept := asked_of(str(helper), host)):
            return kept
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


def asked_of(helper: str, host: str) -> Credentials | None:
    """Return what the program `docker-credential-<helper>` keeps for `host`, or None (protocol: docker-credential-helpers, `get`).

    Raises PublishError, which repeats nothing that the program said, where it is not there, fails, or keeps only an identity token.
    """
    program = find(f"docker-credential-{helper}") if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", helper) else None
    if program is None:
        raise PublishError(
            f"docker's config.json names the program docker-credential-{helper[:64]!r}, which is not there", where=host
        )
    try:
        answer = json.loads("\n".join(run([program, "get"], stdin=host, timeout=PATIENCE)))
        user, secret = answer["Username"], answer["Secret"]
    except StageError as problem:
        if "credentials not found" in str(problem) + problem.next_step:
            return None
        raise PublishError(f"docker-credential-{helper} fails", where=host, next_step=f"docker login {host}") from None
    except (ValueError, KeyError, TypeError):
        raise PublishError(f"docker-credential-{helper} answers nonsense", where=host) from None
    if user == "<token>" or not isinstance(user, str) or not isinstance(secret, str):
        raise PublishError(
            f"docker-credential-{helper} keeps an identity token, no password", where=host, next_step="log in with a password"
        )
    return Credentials(user, secret)


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
