"""The model hubs: whose they are, where they are reached, who we are there; each by its own library, for who sends and who brings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from release.errors import ReleaseError, StageError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from modelscope_hub import HubApi

REPOSITORY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
"""ORGANISATION/NAME, as both hubs take it."""
LOOPBACK: Final = re.compile(r"127(\.[0-9]{1,3}){3}|localhost|::1")
INSTALL: Final = "pip install 'release[hub]'"


@dataclass(frozen=True)
class Site:
    """A hub: its name in a matrix, how a command line shortens it, its main branch, and the variables that say where it is and who we are."""

    name: str
    short: str
    branch: str
    endpoints: tuple[str, ...]
    token: str
    default: str

    @property
    def endpoint(self) -> str:
        """Return where the hub is reached: what the environment says, else its own address.

        Raises UsageError for anything but https, or http to this machine: a token goes along.
        """
        said = next((value for name in self.endpoints if (value := os.environ.get(name, "").strip())), self.default)
        url = (said if "://" in said else f"https://{said}").rstrip("/")
        parts = urlsplit(url)
        plain = parts.scheme == "http" and LOOPBACK.fullmatch(parts.hostname or "")
        if not parts.hostname or "@" in parts.netloc or not (parts.scheme == "https" or plain):
            raise UsageError(
                f"{self.endpoints[0]} is no address of a hub",
                next_step="give https://HOST: a token is sent to it, so plain http is refused",
            )
        return url

    def secret(self, *, needed: bool) -> str:
        """Return the token of the environment, empty where there is none. Raises UsageError where one is needed."""
        found = os.environ.get(self.token, "").strip()
        if not found and needed:
            raise UsageError(
                f"{self.token} is not set: the hub must know who writes", next_step="export it; it is taken from nowhere else"
            )
        return found


SITES: Final = {
    site.name: site
    for site in (
        Site("huggingface", "hf", "main", ("HF_ENDPOINT",), "HF_TOKEN", "https://huggingface.co"),
        Site(
            "modelscope",
            "ms",
            "master",
            ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN"),
            "MODELSCOPE_API_TOKEN",
            "https://www.modelscope.cn",
        ),
    )
}
"""Every hub by the name that a model's file gives it."""


@dataclass(frozen=True)
class Place:
    """A repository on a hub, as a command line names it: `hf:ORG/NAME`, `ms:ORG/NAME`."""

    site: Site
    repository: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read a place. Raises UsageError for anything else."""
        short, _, repository = text.partition(":")
        site = next((site for site in SITES.values() if short in (site.short, site.name)), None)
        if site is None or not REPOSITORY.fullmatch(repository) or ".." in repository:
            raise UsageError(
                f"{text[:200]!r} is no repository on a hub", next_step="hf:ORGANISATION/NAME or ms:ORGANISATION/NAME"
            )
        return cls(site, repository)

    def __str__(self) -> str:
        return f"{self.site.short}:{self.repository}"


def hugging_face(*, write: bool = False) -> HfApi:
    """Return Hugging Face's own client at the endpoint and with the token of the environment, and with no other."""
    try:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise UsageError("Hugging Face's library is not here", next_step=INSTALL) from None
    site = SITES["huggingface"]
    disable_progress_bars()
    constants.HF_HUB_DISABLE_TELEMETRY = True
    return HfApi(endpoint=site.endpoint, token=site.secret(needed=write) or False, library_name="release")


def model_scope(*, write: bool = False) -> HubApi:
    """Return ModelScope's own client at the endpoint and with the token of the environment, and with no other."""
    site = SITES["modelscope"]
    endpoint, token = site.endpoint, site.secret(needed=write)
    try:
        from modelscope_hub import HubApi
    except ImportError:
        raise UsageError("ModelScope's library is not here", next_step=INSTALL) from None
    return HubApi(token=token, endpoint=endpoint)  # a token that is given, even an empty one, keeps it from its own login


@contextmanager
def answering(site: Site, where: str, kind: type[StageError]) -> Iterator[None]:
    """Turn what a hub's library raises into an error of ours of that `kind`: the status, what it means, and no secret in it."""
    try:
        yield
    except ReleaseError:
        raise
    except Exception as problem:  # each library has its own tree of errors, and passes on those of what it stands on
        raise _explained(problem, site, where, kind) from None


def _explained(problem: Exception, site: Site, where: str, kind: type[StageError]) -> StageError:
    status = _status(problem)
    known = f"does not accept the token of {site.token}" if os.environ.get(site.token) else "wants a login"
    meanings = {
        401: (known, f"set {site.token} to a token that may"),
        403: (
            f"does not allow it ({'with' if os.environ.get(site.token) else 'without'} a token)",
            "ask its owner, or accept its terms",
        ),
        404: ("does not have it", "check name and revision; a private one needs a token"),
        409: ("says that it is there already, or being changed", "look at it, and try again"),
        412: ("says that somebody else has changed it meanwhile", "look at it, and try again: what was uploaded stays"),
        413: ("says that it is too large", ""),
        429: ("wants us to ask less often", "wait, and try again: what is there already is not sent again"),
    }
    step = "try again: what is there already is not sent again"
    if isinstance(status, int):
        meaning, step = meanings.get(status, ("failed" if status >= 500 else "answers with an error", step))
        return kind(f"{site.name} {meaning} ({status})", where=where, next_step=step)
    text = _quiet(str(problem).strip().partition("\n")[0], site)
    name = type(problem).__name__
    if isinstance(problem, OSError) or "Connect" in name or "Timeout" in name or "Network" in name:
        return kind(f"{site.name} cannot be reached at {urlsplit(site.endpoint).netloc}: {name}", where=where, next_step=step)
    return kind(f"{site.name}: {name}: {text[:300]}", where=where, next_step=step)


def _status(problem: BaseException | None) -> int | None:
    """Return the HTTP status that an error, or one that it came of, carries."""
    for _ in range(8):
        found = getattr(problem, "status_code", None) or getattr(getattr(problem, "response", None), "status_code", None)
        if problem is None or isinstance(found, int):
            return found
        problem = problem.__cause__ or problem.__context__
    return None


def _quiet(text: str, site: Site) -> str:
    """Return a text without the token and without signed addresses."""
    token = os.environ.get(site.token, "").strip()
    text = text.replace(token, "***") if token else text
    return re.sub(r"https?://\S+", "an address", text)
