"""HTTP is read strictly and the same however it is cut; nothing that comes takes more memory than it may."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.errors import ServingError
from release.validators.wire import LARGEST_HEAD, Address, Reader, UnreachableError, address_of, request_bytes

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\nRetry-After: 7\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + LENGTH
CLOSED = b"HTTP/1.0 200 OK\r\n\r\nhello"


def read(*parts: bytes, end: bool = False, largest: int = 1000) -> tuple[Reader, bytes]:
    reader = Reader(largest)
    body = b"".join(piece for part in parts for piece in reader.feed(part))
    if end:
        reader.end()
    return reader, body


@pytest.mark.parametrize("data", [LENGTH, CHUNKED, INTERIM, CLOSED])
@given(cuts=st.lists(st.integers(0, 120)))
def test_an_answer_is_the_same_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader, body = read(*(data[a:b] for a, b in pairwise(ends)), end=data == CLOSED)
    assert body == b"hello" and reader.complete and reader.head is not None and reader.head.status == 200
    assert reader.reusable == (data != CLOSED)


def test_the_head_says_what_clients_need() -> None:
    head = read(LENGTH)[0].head
    assert head is not None and (head.content_type, head.retry_after) == ("application/json", 7.0)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader_in_another_way(data: bytes) -> None:
    for start in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        try:
            read(start + data, end=True)
        except ServingError as problem:
            assert len(str(problem)) < 1200 and str(problem).isprintable()


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1", LENGTH[:-1], CHUNKED[:-1], INTERIM[:30]])
def test_an_answer_that_is_cut_off_is_a_lost_connection(data: bytes) -> None:
    with pytest.raises(UnreachableError, match="connection lost: the server closed it"):
        read(data, end=True)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"HTTP/2 200\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 999 x\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\n folded\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "content length '-1'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", "two content lengths"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", "1001 bytes, more than 1000"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "transfer encoding"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n", "compressed, unasked"),
        (b"HTTP/1.1 101 Switch\r\n\r\n", "HTTP 101 instead"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 9, "HTTP 100 instead"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"3e9\r\n" + b"x" * 1001, "more than 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 2000, "size is too long"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001, "more than 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * LARGEST_HEAD, "headers have more than"),
    ],
)
def test_what_is_no_answer_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(ServingError, match=complaint):
        read(data)


def test_bytes_after_an_answer_make_its_connection_unfit() -> None:
    assert not read(LENGTH + b"HTTP/1.1 200 OK\r\n")[0].reusable
    assert not read(LENGTH.replace(b"Retry-After: 7", b"Connection: close"))[0].reusable


@pytest.mark.parametrize(
    ("url", "address", "authority"),
    [
        ("http://localhost", Address(False, "localhost", 80, ""), "localhost"),
        ("https://example.org/api/", Address(True, "example.org", 443, "/api"), "example.org"),
        ("http://127.0.0.1:8000/", Address(False, "127.0.0.1", 8000, ""), "127.0.0.1:8000"),
        ("http://[::1]:8000", Address(False, "::1", 8000, ""), "[::1]:8000"),
    ],
)
def test_an_address_is_understood(url: str, address: Address, authority: str) -> None:
    assert address_of(url) == address and address.authority == authority
    request = request_bytes(address, "POST", "/v1/x", {"A": "b"}, b"{}")
    assert request.startswith(f"POST {address.prefix}/v1/x HTTP/1.1\r\nHost: {authority}\r\n".encode())
    assert request.endswith(b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
