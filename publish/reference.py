"""Where something is in a registry: host, name, tag and digest, nothing of it guessed."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from release.errors import UsageError

LABEL: Final = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
REFERENCE: Final = re.compile(
    rf"(?P<host>(?:\[[0-9a-f:]+\]|{LABEL}(?:\.{LABEL})*)(?::[1-9][0-9]{{0,4}})?)/(?P<name>{PART}(?:/{PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
"""distribution-spec 1.1 "Pulling manifests" for name and tag; the host is never left out."""
LIMIT: Final = 1000
"""Characters that a reference may have, well above what its parts may have together."""


@dataclass(frozen=True)
class Reference:
    """Where something is in a registry: `HOST[:PORT]/NAME[:TAG][@sha256:…]`, nothing of it guessed.

    Raises UsageError for any other spelling, also for a first part that is no host (a dot, a port, or `localhost`).
    """

    host: str
    name: str
    tag: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        parts = (self.host, self.name, self.tag or None, self.digest or None)
        if match(str(self)).groups() != parts or len(self.name) > 255 or not is_host(self.host):
            raise refusal(str(self))

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference as a person writes it."""
        found = match(text)
        return cls(found["host"], found["name"], found["tag"] or "", found["digest"] or "")

    def __str__(self) -> str:
        return f"{self.host}/{self.name}" + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def match(text: str) -> re.Match[str]:
    """Return the parts of a reference, or raise UsageError."""
    found = REFERENCE.fullmatch(text) if len(text) <= LIMIT else None
    if not found:
        raise refusal(text)
    return found


def refusal(text: str) -> UsageError:
    """Return the error for a text that is no reference; what stands before an @ may be a password, and is not repeated."""
    shown = re.sub(r"(?s).*@(?!sha256:)", "…@", text[:LIMIT])[:200]
    return UsageError(
        f"{shown!r} is not a reference",
        next_step="write HOST[:PORT]/NAME[:TAG][@sha256:…], for example registry.example.org/team/model:1.0",
    )


def is_host(host: str) -> bool:
    """Say whether `host` (with or without a port) is spelled as a host, and not as the first folder of a name."""
    try:
        parts = urlsplit(f"//{host}")
        port, bare = parts.port, parts.hostname or ""
        if host.startswith("["):
            ipaddress.IPv6Address(bare)
    except ValueError:
        return False
    return len(bare) < 254 and (port is not None or "." in bare or host.startswith("[") or bare == "localhost")


def is_loopback(host: str) -> bool:
    """Say whether `host` (no port, no brackets) can only be this machine: 127.0.0.0/8, ::1, localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
