"""Connections of an event loop: many requests in flight from one thread, each within its time and its bytes."""

from __future__ import annotations

import asyncio
from typing import Final

from release.errors import ServingError
from release.types import JSON
from release.validators.connection import tls
from release.validators.endpoint import Answer, Endpoint, PatienceError, UnreachableError
from release.validators.wire import Reader

LARGEST: Final = 16 * 1024 * 1024
"""Bytes of one answer: of many requests in flight, each may take as much memory."""


class Lane(asyncio.Protocol):
    """One connection to the server of `endpoint`, with one request in flight at a time; opened anew when it was lost."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None
        self._reader = Reader(LARGEST)
        self._pieces: list[bytes] = []
        self._answer: asyncio.Future[Answer] | None = None
        self._answered, self._begun = 0, False

    @property
    def model(self) -> str:
        """The model that is asked."""
        return self._endpoint.model

    async def post(self, path: str, body: JSON) -> Answer:
        """Return the answer to POST `path`, whatever its status. Raises UnreachableError, PatienceError or ServingError."""
        request = self._endpoint.request("POST", path, body)
        loop = asyncio.get_running_loop()
        patience = self._endpoint.read_timeout
        if self._transport is None or self._transport.is_closing():
            await self._connect(loop)
        assert self._transport is not None
        self._reader, self._pieces, self._begun = Reader(min(LARGEST, self._endpoint.largest)), [], False
        answer: asyncio.Future[Answer] = loop.create_future()
        self._answer = answer
        timer = loop.call_later(patience, self._fail, PatienceError(f"{path}: no complete answer within {patience:g} s"))
        self._transport.write(request)
        try:
            return await answer
        except ServingError as problem:
            raise (problem if str(problem).startswith(path) else problem.located(path)) from None
        finally:
            timer.cancel()
            self._answer = None
            if not answer.done() or not self._reader.reusable:
                self.close()

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        where, wait = self._endpoint.address, self._endpoint.connect_timeout
        try:
            async with asyncio.timeout(wait):
                await loop.create_connection(lambda: self, where.host, where.port, ssl=tls() if where.secure else None)
        except TimeoutError as problem:
            raise UnreachableError(f"no connection within {wait:g} s") from problem
        except OSError as problem:
            raise UnreachableError(f"connection lost: {problem.strerror or problem}") from problem

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hear that the connection stands."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._answered = transport, 0

    def data_received(self, data: bytes) -> None:
        """Hear the next bytes."""
        if self._answer is None:
            return self.close()  # nobody asked
        self._begun = True
        try:
            self._pieces += self._reader.feed(data)
            self._settle()
        except ServingError as problem:
            self._fail(problem)
        return None

    def eof_received(self) -> None:
        """Hear that the server has said all it will say."""
        if self._answered and not self._begun:  # it hung up on a kept connection while the next request was on its way to it
            return self._fail(UnreachableError("connection lost: closed by the server before it read the request"))
        try:
            self._reader.end()
            self._settle()
        except ServingError as problem:
            self._fail(problem)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Hear that the connection is gone."""
        self._transport = None
        reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc or "") or "by the server"
        self._fail(UnreachableError(f"connection lost: {reason}"))

    def _settle(self) -> None:
        head = self._reader.head
        if self._reader.complete and head is not None and self._answer is not None and not self._answer.done():
            self._answered += 1
            self._answer.set_result(Answer(head.status, head.content_type, b"".join(self._pieces), head.retry_after))

    def _fail(self, problem: ServingError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(problem)
