"""How a registry is reached: its address, its credentials, and HTTP that gives neither to anybody else."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urljoin, urlsplit

import requests
import urllib3
from requests.auth import AuthBase

from release import __version__
from release.errors import PublishError, ReleaseError, VerificationError
from release.publish.body import BLOCK, Adapter, Body, PlainAdapter
from release.publish.credentials import Credentials, challenges
from release.publish.reference import is_loopback

NETLOC: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")

REDIRECTS: Final = (301, 302, 303, 307, 308)
PASSING: Final = (429, 500, 502, 503, 504)
"""Answers that may be another one a moment later. 500 is one: docker-registry 2.8 gives it for a tag that is being written."""
TOKEN_LIMIT: Final = 1 << 20
PATIENCE: Final = 30.0
"""Seconds that a registry's Retry-After may make us wait at a time."""


class Origin(NamedTuple):
    """Who answers at an address: what a credential is bound to."""

    scheme: str
    host: str
    port: int


def origin(url: str) -> Origin:
    """Return the origin of an http or https URL. Raises ValueError for any other, and for one that carries a user."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not NETLOC.fullmatch(parts.netloc) or re.search(r"[\s\\\x00-\x1f\x7f]", url):
        raise ValueError("not an address to go to")
    default = 443 if parts.scheme == "https" else 80
    return Origin(parts.scheme, parts.hostname or "", default if parts.port is None else parts.port)


class Broken(Exception):
    """The connection went away in the middle of an answer."""


class Passing(PublishError):
    """A connection that broke, or an answer that may be another one a moment later: worth trying again, after `wanted` seconds."""

    wanted: str = ""


class Authorization(AuthBase):
    """Sets the header that we chose, or none; that it is given at all keeps requests from reading ~/.netrc."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Return the request with the header."""
        if self.value:
            request.headers["Authorization"] = self.value
        return request


class Session(requests.Session):
    """A session that leaves redirects to us: requests would read the whole body of one, however long, to prepare the next."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Say that there is none."""


class Message(NamedTuple):
    """One request: what is sent, how many seconds an answer may take, and the Authorization that goes along."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | Body | None
    timeout: float
    grant: str


class Transport:
    """HTTP to one repository of one registry.

    An Authorization goes to the registry's own origin and nowhere else: not along a redirect, not to an upload Location
    elsewhere. Plain http is for a loopback registry only, and an https registry cannot send us to http. GET and HEAD are
    tried again after a broken connection or a passing answer; nothing else is. Errors name host and repository, no address.
    """

    def __init__(
        self,
        host: str,
        name: str,
        credentials: Credentials | None = None,
        *,
        timeout: float = 60.0,
        attempts: int = 4,
        pause: float = 0.3,
    ) -> None:
        self.where = f"{host}/{name}"
        self.attempts = attempts
        self._name, self._host, self._credentials, self._timeout, self._pause = name, host, credentials, timeout, pause
        self._plain = is_loopback(urlsplit(f"//{host}").hostname or "")
        self.base = f"{'http' if self._plain else 'https'}://{host}/v2/{name}/"
        self._origin = origin(self.base)
        self._grants: dict[str, str] = {}
        self._turn = threading.Lock()
        self._session = Session()
        self._session.trust_env = not self._plain  # proxies and certificate bundles are the user's; loopback needs neither
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.headers.update({"User-Agent": f"release/{__version__}", "Accept-Encoding": "identity"})
        self._session.mount("https://", Adapter())
        self._session.mount("http://", PlainAdapter() if self._plain else Adapter())

    def request(
        self,
        method: str,
        url: str,
        *,
        expect: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: bytes | Body | None = None,
        timeout: float | None = None,
        neighbour: str = "",
    ) -> requests.Response:
        """Send one request and return the answer; the body of a GET is unread, to be read and closed by the caller.

        `url` is relative to the repository (`blobs/sha256:…`) or an address that the registry gave; `neighbour` is another repository that the
        login must be good for. Raises PublishError for an answer that is not in `expect` (Passing where it may be another one a moment later),
        VerificationError where it says that a digest is wrong.
        """
        url = self.address(url)
        actions = ("pull" if method in ("GET", "HEAD") else "pull,push") + (f" repository:{neighbour}:pull" if neighbour else "")
        ours = origin(url) == self._origin
        grant = self._grants.get(actions, "") if ours else ""
        message = Message(method, url, headers or {}, body, timeout or self._timeout, grant)
        response = self._send(message)
        if response.status_code == 401 and ours:
            with response:
                self._authorize(response, actions, message.grant)
            if isinstance(body, Body):
                body.rewind()
            message = message._replace(grant=self._grants[actions])
            response = self._send(message)
        if method in ("GET", "HEAD"):
            response = self._follow(message, response)
        if response.status_code not in expect:
            with response:
                raise self.refusal(response)
        if method != "GET":
            drain(response)
        return response

    def fetch(self, url: str, *, expect: Collection[int], limit: int, accept: str) -> tuple[requests.Response, bytes]:
        """GET a document of at most `limit` bytes. Raises VerificationError for a longer one."""
        for attempt in range(self.attempts):
            with self.request("GET", url, expect=expect, headers={"Accept": accept}) as response:
                try:
                    data = b"".join(pieces(response, limit + 1))
                except Broken:
                    self.rest(attempt)
                    continue
            if len(data) > limit:
                raise VerificationError(f"the registry answers with more than {limit} bytes", where=self.where)
            return response, data
        raise PublishError("the connection keeps breaking", where=self.where)

    def address(self, url: str, base: str = "") -> str:
        """Return `url` in full. Raises PublishError for an address that a registry must not send us to."""
        try:
            if not url:
                raise ValueError("no address")
            full = urljoin(base or self.base, url) if base or "://" in url or url.startswith("/") else self.base + url
            target = origin(full)
        except ValueError:
            raise PublishError("the registry names an address that cannot be used", where=self.where) from None
        if target.scheme == "http" and not (self._plain and is_loopback(target.host)):
            raise PublishError("the registry names an address over plain http", where=self.where, next_step="do not trust it")
        return full

    def rest(self, attempt: int, wanted: str = "") -> None:
        """Sleep before the next attempt: twice as long each time, or as long as Retry-After says, within bounds."""
        pause = self._pause * 2**attempt * random.uniform(1, 1.5)
        time.sleep(min(max(pause, float(wanted) if wanted.isdecimal() and len(wanted) < 9 else 0.0), PATIENCE))

    def _send(self, message: Message) -> requests.Response:
        attempts = self.attempts if message.method in ("GET", "HEAD") else 1
        body: Any = message.body  # a Body's blocks need not be bytes, which no stub of requests foresees
        for attempt in range(attempts):
            wanted = ""
            try:
                response = self._session.request(
                    message.method,
                    message.url,
                    headers=message.headers,
                    data=body,
                    stream=True,
                    allow_redirects=False,
                    auth=Authorization(message.grant),
                    timeout=(10.0, message.timeout),
                )
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as problem:
                passing = isinstance(problem, (requests.ConnectionError, requests.Timeout)) and not isinstance(
                    problem, requests.exceptions.SSLError
                )
                if attempt + 1 == attempts or not passing:
                    raise self.unreachable(problem, passing=passing) from None
            else:
                if response.status_code not in PASSING or attempt + 1 == attempts:
                    return response
                wanted = response.headers.get("Retry-After", "")
                response.close()
            self.rest(attempt, wanted)
        raise AssertionError("the last attempt returns or raises")

    def _follow(self, message: Message, response: requests.Response) -> requests.Response:
        for _ in range(5):
            if response.status_code not in REDIRECTS:
                return response
            response.close()
            url = self.address(response.headers.get("Location", ""), base=message.url)
            message = message._replace(url=url, grant=message.grant if origin(url) == self._origin else "")
            response = self._send(message)
        response.close()
        raise PublishError("the registry redirects in circles", where=self.where)

    def _authorize(self, response: requests.Response, actions: str, sent: str) -> None:
        """Get a grant in place of the one that was `sent`, unless another thread has got one meanwhile."""
        asked = challenges(response.headers.get("WWW-Authenticate", ""))
        with self._turn:
            if self._grants.get(actions, "") not in ("", sent):
                return
            if "bearer" in asked:
                self._grants[actions] = "Bearer " + self._token(asked["bearer"], actions)
            elif "basic" in asked and self._credentials and not sent:
                self._grants[actions] = self._credentials.header()
            else:
                raise self.refusal(response)

    def _token(self, challenge: Mapping[str, str], actions: str) -> str:
        """Ask the token server that the registry names (distribution "Token Authentication") and return the token.

        The scope is ours, not the challenge's. The token server is the registry's own origin, or https named over https.
        """
        realm = self.address(challenge.get("realm", ""), base=self.base)
        if origin(realm) != self._origin and (self._plain or origin(realm).scheme != "https"):
            raise PublishError("the registry names a token server on another host, not over https", where=self.where)
        query: dict[str, str | list[str]] = {"scope": f"repository:{self._name}:{actions}".split(" ")}
        if challenge.get("service"):
            query["service"] = challenge["service"]
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query, doseq=True)}"
        grant = self._credentials.header() if self._credentials else ""
        with self._send(Message("GET", url, {}, None, self._timeout, grant)) as response:
            if response.status_code != 200:
                raise self.refusal(response)
            try:
                answer = json.loads(b"".join(pieces(response, TOKEN_LIMIT)))
                token = answer.get("token") or answer.get("access_token")
            except (Broken, ValueError, AttributeError, RecursionError):
                token = None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]{1,65536}", token):
            raise PublishError("the registry's token server answers without a token", where=self.where)
        return token

    def refusal(self, response: requests.Response) -> ReleaseError:
        """Return the error for an answer that was not hoped for: its status and the registry's error code, no more."""
        status, code = response.status_code, ""
        with suppress(ValueError, KeyError, IndexError, TypeError, RecursionError):
            code = str(json.loads(drain(response))["errors"][0]["code"])
        said = f"{status} {code}" if re.fullmatch(r"[A-Z][A-Z_]{2,40}", code) else str(status)
        if code in ("DIGEST_INVALID", "SIZE_INVALID"):
            return VerificationError(f"the registry finds other content than the digest says ({said})", where=self.where)
        if status in (401, 403):
            known = "does not accept the login" if self._credentials else "wants a login"
            return PublishError(f"the registry {known} ({said})", where=self.where, next_step=f"docker login {self._host}")
        if status == 404:
            return PublishError(f"the registry does not have it ({said})", where=self.where, next_step="check name and tag")
        kind = Passing if status in PASSING else PublishError
        problem = kind(f"the registry answers {said}", where=self.where, next_step="try again; see the registry's log")
        if isinstance(problem, Passing):
            problem.wanted = response.headers.get("Retry-After", "")
        return problem

    def unreachable(self, problem: Exception, *, passing: bool = False) -> PublishError:
        """Return the error for a connection that failed, in one line and without the address that requests would print."""
        text, kind = repr(problem), Passing if passing else PublishError
        for sign, meaning, step in (
            ("Connection refused", "connection refused", "start the registry, or check host and port"),
            ("Name or service not known", "no such host", "check the host's name"),
            ("NameResolutionError", "no such host", "check the host's name"),
            ("CERTIFICATE_VERIFY_FAILED", "its certificate is not trusted", "set REQUESTS_CA_BUNDLE to your certificates"),
            ("SSL", "no TLS could be agreed", "plain http is for loopback registries only"),
            ("imed out", "no answer in time", "try again, or check the network"),
            ("imeout", "no answer in time", "try again, or check the network"),
        ):
            if sign in text:
                return kind(f"the registry cannot be reached: {meaning}", where=self.where, next_step=step)
        return kind("the registry cannot be reached: the connection broke", where=self.where, next_step="try again")


def pieces(response: requests.Response, limit: int) -> Iterator[bytes]:
    """Yield the body as it came over the wire, `limit` bytes at most. Raises Broken where it stops too early."""
    left = limit
    while left:
        try:
            block = response.raw.read(min(BLOCK, left), decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as problem:
            raise Broken from problem
        if not block:
            return
        left -= len(block)
        yield block


def drain(response: requests.Response) -> bytes:
    """Return the first 64 KiB of a body that matters little, so that its connection can be used again."""
    data = bytearray()
    with suppress(Broken):
        for piece in pieces(response, 1 << 16):
            data += piece
    return bytes(data)
