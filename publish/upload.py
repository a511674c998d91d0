"""A blob's way up: taken over from a neighbour, sent whole, or in pieces that go on where the connection broke (distribution-spec 1.1)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

import requests

from release.errors import PublishError, VerificationError
from release.oci import Descriptor
from release.publish.body import Body
from release.publish.transport import Passing, Transport

PIECE: Final = 256 << 20
"""Bytes that go up at once. A blob no larger goes in one request, and whole again where that fails."""
COMMIT_TIMEOUT: Final = 600.0
"""Seconds that a registry may take to answer a finished upload: some hash or copy the whole blob first."""


class Upload:
    """One blob on its way up. `on_bytes` hears of every byte sent, and, negative, of those that have to be sent again."""

    def __init__(self, http: Transport, descriptor: Descriptor, path: Path, on_bytes: Callable[[int], None]) -> None:
        self.http, self.descriptor, self.path = http, descriptor, path
        self._on_bytes, self._location, self._told = on_bytes, "", 0

    def send(self, neighbour: str = "") -> requests.Response | None:
        """Send the blob and return the registry's last answer, or None where it took the blob over from `neighbour`, another repository of it.

        A broken connection or a passing answer is taken up, as often as the transport says. Raises PublishError where it keeps breaking or the
        registry has lost or skipped bytes, VerificationError where the file is not as long as its descriptor says.
        """
        with self.path.open("rb") as stream:
            if (size := os.fstat(stream.fileno()).st_size) != self.descriptor.size:
                raise VerificationError(
                    f"blob {self.descriptor.digest} has {size} bytes, its descriptor says {self.descriptor.size}"
                )
            for attempt in range(self.http.attempts):
                try:
                    if not self._location and self._begin(neighbour):
                        return None
                    return self._whole(stream) if size <= PIECE else self._pieces(stream)
                except Passing as problem:
                    if attempt + 1 == self.http.attempts:
                        raise
                    self.http.rest(attempt, problem.wanted)
                    self._resume()
        raise AssertionError("the last attempt returns or raises")

    def _begin(self, neighbour: str) -> bool:
        """Ask for a place to send to; say whether there is nothing to send, because the registry mounted the blob."""
        source = f"&from={quote(neighbour, safe='/')}" if neighbour else ""
        url = f"blobs/uploads/?mount={self.descriptor.digest}{source}" if neighbour else "blobs/uploads/"
        begun = self.http.request("POST", url, expect=(201, 202), headers={"Content-Length": "0"}, neighbour=neighbour)
        if begun.status_code == 201 and neighbour:
            self._tell(self.descriptor.size)
            return True
        self._go_on_at(begun, self.http.base + "blobs/uploads/")
        return False

    def _whole(self, stream: IO[bytes]) -> requests.Response:
        stream.seek(0)
        self._tell(0)
        return self._close(Body(stream, self.descriptor.size, self._tell_more) if self.descriptor.size else b"")

    def _pieces(self, stream: IO[bytes]) -> requests.Response:
        """Send what is missing, piece by piece; after each the registry must have just what was sent."""
        while self._told < self.descriptor.size:
            start = self._told
            length = min(PIECE, self.descriptor.size - start)
            stream.seek(start)
            response = self.http.request(
                "PATCH",
                self._location,
                expect=(202,),
                headers={"Content-Type": "application/octet-stream", "Content-Range": f"{start}-{start + length - 1}"},
                body=Body(stream, length, self._tell_more),
                timeout=COMMIT_TIMEOUT,
            )
            if (there := received(response)) != start + length:
                raise PublishError(
                    f"of blob {self.descriptor.digest} {start + length} bytes were sent, and the registry says it has {there}",
                    where=self.http.where,
                )
            self._go_on_at(response, self._location)
        return self._close(b"")

    def _close(self, body: Body | bytes) -> requests.Response:
        return self.http.request(
            "PUT",
            f"{self._location}{'&' if '?' in self._location else '?'}digest={self.descriptor.digest}",
            expect=(201,),
            headers={"Content-Type": "application/octet-stream"},
            body=body,
            timeout=COMMIT_TIMEOUT,
        )

    def _resume(self) -> None:
        """Find out how much the registry has; where it does not know the upload any more, or has more than was sent, start again."""
        there = None
        if self._location and self.descriptor.size > PIECE:
            with self.http.request("GET", self._location, expect=(200, 202, 204, 404)) as response:
                if response.status_code != 404:
                    there = received(response)
                    self._go_on_at(response, self._location)
        if there is None or there > self._told:
            self._location, there = "", 0
        self._tell(there)

    def _go_on_at(self, response: requests.Response, base: str) -> None:
        location = response.headers.get("Location", "")
        if location or not self._location:
            self._location = self.http.address(location, base=base)

    def _tell(self, done: int) -> None:
        if done != self._told:
            self._on_bytes(done - self._told)
        self._told = done

    def _tell_more(self, size: int) -> None:
        self._told += size
        self._on_bytes(size)


def received(response: requests.Response) -> int | None:
    """Return how many bytes of an upload the registry says it has, from `Range: 0-LAST`; None where it does not say so."""
    text = response.headers.get("Range", "")
    found = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,15})", text)
    return int(found[1]) + 1 if found else None
