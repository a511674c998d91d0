"""HTTP/1.1 as bytes: requests are written, answers are parsed as they come, strictly and within bounds. No socket is opened here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from release.errors import ServingError

QUOTED: Final = 200
"""Characters of a foreign answer that an error quotes."""
LARGEST_HEAD: Final = 64 * 1024
"""Bytes of a status line with its headers, or of a trailer, beyond which a server is broken."""
LARGEST_SIZE_LINE: Final = 1024
INTERIM: Final = 8
"""Answers 1xx that may come before the final one."""
STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n]*)?")
FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)")
HOST: Final = re.compile(r"[A-Za-z0-9._:-]+")
PREFIX: Final = re.compile(r"[A-Za-z0-9._~/%-]*")


class UnreachableError(ServingError):
    """The connection could not be made or was lost before the answer was complete: asking again may help."""


class PatienceError(ServingError):
    """The server keeps the connection and does not answer in time."""


def quote(data: bytes) -> str:
    """Return the beginning of foreign bytes in printable form."""
    return ascii(data[:QUOTED].decode("utf-8", "replace"))


@dataclass(frozen=True)
class Address:
    """Where a server listens; `prefix` stands in front of every path."""

    secure: bool
    host: str
    port: int
    prefix: str

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def address_of(url: str) -> Address:
    """Parse a server's root, http://HOST[:PORT][/PREFIX]. Raises ServingError for anything else, and for a password in it."""
    if not url.startswith(("http://", "https://")):
        raise ServingError(f"{url!r} is no address of a server: it must begin with http:// or https://")
    if not url.isprintable():
        raise ServingError(f"{url!r:.200} is no address of a server")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as problem:
        raise ServingError(f"{url!r:.200} is no address of a server: {problem}") from problem
    if "@" in parts.netloc:
        raise ServingError("a server's address must hold no user and no password", next_step="give the key in the environment")
    if not HOST.fullmatch(host) or not PREFIX.fullmatch(parts.path) or parts.query or parts.fragment:
        raise ServingError(f"{url!r:.200} is no address of a server: want http://HOST[:PORT][/PREFIX]")
    secure = parts.scheme == "https"
    return Address(secure, host, port or (443 if secure else 80), parts.path.rstrip("/"))


def request_bytes(address: Address, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """Return a request. Compression is never asked for: what is measured is what is sent."""
    fields = {"Host": address.authority, "Accept-Encoding": "identity", **headers}
    if body is not None:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {address.prefix}{path} HTTP/1.1\r\n{head}\r\n".encode("ascii") + (body or b"")


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer; names are in lower case, of a name that stands twice both values with a comma."""

    status: int
    headers: Mapping[str, str]
    persistent: bool

    @property
    def content_type(self) -> str:
        """The Content-Type header, empty if there is none."""
        return self.headers.get("content-type", "")

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to wait, None if it does not say so in seconds."""
        value = self.headers.get("retry-after", "")
        return float(value) if re.fullmatch(r"[0-9]{1,9}", value) else None


class Reader:
    """The answer to one request, fed with bytes as they come.

    `head` is there as soon as it is known, `complete` once the whole answer is, and `reusable` says then whether the connection may
    carry another request. Source of the framing: RFC 9112 §6 and §7; what a request-smuggling server would send is refused.
    """

    def __init__(self, largest: int) -> None:
        self.head: Head | None = None
        self.complete = False
        self._largest = largest
        self._buffer = bytearray()
        self._step = self._read_head
        self._left = 0
        self._size = 0
        self._interim = 0

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request: the answer is complete, nothing follows it, nobody said close."""
        return self.complete and not self._buffer and self.head is not None and self.head.persistent

    def feed(self, data: bytes) -> list[bytes]:
        """Take what came and return the pieces of the body in it. Raises ServingError where it is no HTTP, or too much."""
        self._buffer += data
        pieces = []
        while not self.complete:
            piece = self._step()
            if piece is None:
                break
            if piece:
                self._size += len(piece)
                if self._size > self._largest:
                    raise ServingError(f"the answer has more than {self._largest} bytes")
                pieces.append(piece)
        return pieces

    def end(self) -> None:
        """Hear that the server closed the connection. Raises UnreachableError if the answer is not complete then."""
        if self._step == self._read_rest and self.head is not None:
            self.complete = True
        if not self.complete:
            heard = "in the middle of its answer" if self.head or self._buffer else "without an answer"
            raise UnreachableError(f"connection lost: the server closed it {heard}")

    def _read_head(self) -> bytes | None:
        end = self._buffer.find(b"\r\n\r\n")
        if not b"HTTP/1.".startswith(self._buffer[:7]) and not self._buffer.startswith(b"HTTP/1."):
            raise ServingError(f"the server speaks no HTTP: {quote(bytes(self._buffer))}")
        if (end if end >= 0 else len(self._buffer)) > LARGEST_HEAD:
            raise ServingError(f"the answer's headers have more than {LARGEST_HEAD} bytes")
        if end < 0:
            return None
        lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        head = _head(lines)
        if head.status < 200:
            self._interim += 1
            if head.status == 101 or self._interim > INTERIM:
                raise ServingError(f"HTTP {head.status} instead of an answer")
            return b""
        self.head = head
        return self._choose_body(head)

    def _choose_body(self, head: Head) -> bytes:
        coding, length = head.headers.get("transfer-encoding"), head.headers.get("content-length")
        if head.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
            raise ServingError(f"the answer is compressed, unasked: {head.headers['content-encoding']!r:.60}")
        if head.status in (204, 304):
            self.complete = True
        elif coding is not None:
            if coding.lower() != "chunked":
                raise ServingError(f"the answer has the transfer encoding {coding!r:.60}")
            self._step = self._read_size
        elif length is not None:
            if not re.fullmatch(r"[0-9]{1,18}", length):
                raise ServingError(f"the answer has the content length {length!r:.60}")
            self._left = int(length)
            if self._left > self._largest:
                raise ServingError(f"the answer has {self._left} bytes, more than {self._largest}")
            self._step = self._read_length
            self.complete = self._left == 0
        else:
            self._step = self._read_rest
        return b""

    def _take(self, most: int) -> bytes | None:
        if not self._buffer:
            return None
        piece = bytes(self._buffer[:most])
        del self._buffer[: len(piece)]
        return piece

    def _read_rest(self) -> bytes | None:
        return self._take(len(self._buffer))

    def _read_length(self) -> bytes | None:
        piece = self._take(self._left)
        self._left -= len(piece or b"")
        self.complete = self._left == 0
        return piece

    def _read_size(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end > LARGEST_SIZE_LINE or (end < 0 and len(self._buffer) > LARGEST_SIZE_LINE):
            raise ServingError("the answer is chunked, and a chunk's size is too long")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        size = re.fullmatch(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?", line)
        if not size:
            raise ServingError(f"the answer is chunked, and a chunk has no size: {quote(line)}")
        self._left = int(size[1], 16)
        self._step = self._read_chunk if self._left else self._read_trailer
        return b""

    def _read_chunk(self) -> bytes | None:
        piece = self._take(self._left)
        self._left -= len(piece or b"")
        if not self._left:
            self._step = self._read_chunk_end
        return piece

    def _read_chunk_end(self) -> bytes | None:
        if len(self._buffer) < 2:
            return None
        if self._buffer[:2] != b"\r\n":
            raise ServingError("the answer is chunked, and a chunk is longer than it says")
        del self._buffer[:2]
        self._step = self._read_size
        return b""

    def _read_trailer(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if (end if end >= 0 else len(self._buffer)) > LARGEST_HEAD:
            raise ServingError("the answer's trailer is too long")
        if end < 0:
            return None
        self.complete = end == 0
        del self._buffer[: end + 2]
        return b""


def _head(lines: list[bytes]) -> Head:
    status = STATUS.fullmatch(lines[0])
    if not status:
        raise ServingError(f"the server speaks no HTTP: {quote(lines[0])}")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        field = FIELD.fullmatch(line)
        if not field:
            raise ServingError(f"the answer has a malformed header: {quote(line)}")
        name, value = field[1].decode("ascii").lower(), field[2].decode("latin-1").strip()
        if name in headers and name == "content-length":
            raise ServingError("the answer has two content lengths")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    said = {word.strip() for word in headers.get("connection", "").lower().split(",")}
    persistent = "close" not in said and (status[1] == b"1" or "keep-alive" in said)
    return Head(int(status[2]), headers, persistent)
