"""A connection to one server, kept between requests: every exchange ends by its deadline, whatever the other side does."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Generator
from functools import cache
from typing import Final

from release.errors import ServingError
from release.validators.wire import Address, Head, PatienceError, Reader, UnreachableError

PIECE: Final = 256 * 1024
"""Bytes that are read at once."""


@cache
def tls() -> ssl.SSLContext:
    """Return how servers are verified: by the certificates that the user's system trusts."""
    return ssl.create_default_context()


class Connection:
    """One connection, opened when it is needed and opened anew when the last exchange left it unfit. For one thread at a time."""

    def __init__(self, address: Address, connect_timeout: float) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self._socket: socket.socket | None = None

    def exchange(self, request: bytes, patience: float, largest: int) -> Generator[Head | bytes, None, None]:
        """Send a request and yield the answer's head, then its body as it comes, within `patience` seconds in all.

        Ending the iteration early hangs up. Raises UnreachableError, PatienceError, or ServingError for what is no HTTP.
        """
        deadline = time.monotonic() + patience
        reader, told = Reader(largest), False
        try:
            link = self._open(deadline, patience)
            self._send(link, request, deadline)
            while not reader.complete:
                link.settimeout(_left(deadline))
                data = link.recv(PIECE)
                pieces: list[bytes] = []
                if data:
                    pieces = reader.feed(data)
                else:
                    reader.end()
                if reader.head is not None and not told:
                    told = True
                    yield reader.head
                yield from pieces
        except TimeoutError as problem:
            raise PatienceError(f"no complete answer within {patience:g} s") from problem
        except OSError as problem:
            raise UnreachableError(f"connection lost: {_reason(problem)}") from problem
        finally:
            if not reader.reusable:
                self.close()

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self, deadline: float, patience: float) -> socket.socket:
        if self._socket is not None and _stale(self._socket):
            self.close()
        if self._socket is None:
            wait = min(self._connect_timeout, _left(deadline))
            try:
                link = socket.create_connection((self._address.host, self._address.port), wait)
            except TimeoutError as problem:
                raise UnreachableError(f"no connection within {wait:g} s") from problem
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = link
            if self._address.secure:
                link.settimeout(min(self._connect_timeout, _left(deadline)))
                self._socket = tls().wrap_socket(link, server_hostname=self._address.host)
        return self._socket

    @staticmethod
    def _send(link: socket.socket, request: bytes, deadline: float) -> None:
        link.settimeout(_left(deadline))
        try:
            link.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            return  # a server may refuse a long request before it has read it: its answer says why


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _stale(link: socket.socket) -> bool:
    """Return whether an idle connection was closed by the server, or has bytes that nobody asked for."""
    try:
        return bool(select.select([link], [], [], 0)[0])
    except (OSError, ValueError):
        return True


def _reason(problem: OSError) -> str:
    """Return what the system says, in a few words: 'Connection refused'."""
    return problem.strerror or str(problem) or type(problem).__name__


def whole(answer: Generator[Head | bytes, None, None]) -> tuple[Head, bytes]:
    """Read an exchange to its end and return the head and the body."""
    head = next(answer)
    if not isinstance(head, Head):
        raise ServingError("an answer begins with its head")
    return head, b"".join(piece for piece in answer if isinstance(piece, bytes))
