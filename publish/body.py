"""A file on its way up: read in blocks, or handed to the socket without passing through us."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, NamedTuple

import requests
import urllib3
import urllib3.connection
from requests.adapters import HTTPAdapter

from release.errors import VerificationError

BLOCK: Final = 1 << 20


class Block(NamedTuple):
    """The next bytes of a file, to go from the system's cache into a socket without passing through us."""

    stream: IO[bytes]
    size: int

    def send(self, to: socket.socket) -> None:
        """Send them. Raises VerificationError where the file is shorter than was announced."""
        if to.sendfile(self.stream, self.stream.tell(), self.size) < self.size:
            raise VerificationError("a blob became shorter while it was uploaded")


class Body:
    """A file, from where it stands, on its way up: its length is known, it is read in blocks, it can start again, and it tells how far it is.

    Where `direct`, it is not read: its blocks are for a connection that sends them itself.
    """

    direct = False

    def __init__(self, stream: IO[bytes], size: int, on_bytes: Callable[[int], None]) -> None:
        self._stream, self._size, self._on_bytes, self._sent = stream, size, on_bytes, 0
        self._start = stream.tell()

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes | Block]:  # requests streams only what can be iterated; http.client then calls read()
        return iter(lambda: self.read(BLOCK), b"")

    def read(self, size: int) -> bytes | Block:
        """Return the next block. Raises VerificationError where the file is shorter than was announced."""
        size = min(size, self._size - self._sent)
        block = Block(self._stream, size) if self.direct and size else self._stream.read(size)
        if not block and self._sent < self._size:
            raise VerificationError("a blob became shorter while it was uploaded")
        size = block.size if isinstance(block, Block) else len(block)
        self._sent += size
        self._on_bytes(size)
        return block

    def rewind(self) -> None:
        """Start again, taking back what was told."""
        self._on_bytes(-self._sent)
        self._stream.seek(self._start)
        self._sent = 0


class Adapter(HTTPAdapter):
    """Sends files in blocks of one MiB: with http.client's 16 KiB the system calls cost more than the copying."""

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        """Make the pool as requests does, with larger blocks."""
        super().init_poolmanager(connections, maxsize, block, blocksize=BLOCK, **options)


class Connection(urllib3.connection.HTTPConnection):
    """A connection over plain http, on which a file can go up without being read."""

    def send(self, data: Any) -> None:
        """Send bytes, or a block of a file."""
        if isinstance(data, Block) and self.sock:
            data.send(self.sock)
        else:
            super().send(data)


class PlainPool(urllib3.HTTPConnectionPool):
    """Connections over plain http."""

    ConnectionCls = Connection


class PlainAdapter(Adapter):
    """Sends files over plain http, which only a loopback registry is reached by, at half the cost."""

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        """Make the pool with connections of ours."""
        super().init_poolmanager(connections, maxsize, block, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool}

    def send(self, request: requests.PreparedRequest, *words: Any, **options: Any) -> requests.Response:
        """Send a request, its file directly."""
        if isinstance(request.body, Body):
            request.body.direct = True
        return super().send(request, *words, **options)
