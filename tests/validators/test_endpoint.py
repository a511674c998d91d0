"""The client believes nothing: framing is parsed strictly however it is cut, and every way of failing has its own error."""

from __future__ import annotations

import json
import socket
import threading
from itertools import pairwise

import pytest
from hostile import sender, server
from hypothesis import given
from hypothesis import strategies as st
from stub import MODEL, Stub

from release.errors import ServingError
from release.validators.endpoint import Answer, Endpoint, PatienceError, RefusedError, UnreachableError, json_object, parse_events

EVENTS = [{"choices": [{"delta": {"content": "加 é 😀\n"}}]}, {}, {"usage": {"total_tokens": 3}}]
STREAM = b"".join(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in EVENTS) + b"data: [DONE]\n\n"


@given(st.lists(st.integers(0, len(STREAM))), st.booleans())
def test_events_are_the_same_however_the_stream_is_cut(cuts: list[int], windows: bool) -> None:
    data = STREAM.replace(b"\n", b"\r\n") if windows else STREAM
    ends = [0, *sorted(cuts), len(data)]
    assert list(parse_events(data[a:b] for a, b in pairwise(ends))) == EVENTS


def test_comments_between_events_are_allowed() -> None:
    assert list(parse_events([b": ping\n\n: ping\n", STREAM])) == EVENTS


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (b"", "ends without"),
        (b"data: {}\n\n", "ends without"),
        (b"data: {}\n\ndata: [DONE]\n", "ends without"),
        (b"data: {}\n\ndata: [DONE]", "middle of a line"),
        (b"data: {}\n\ndata: [DO", "middle of a line"),
        (b"data: {}\ndata: [DONE]\n\n", "no empty line"),
        (b"data:{}\n\ndata: [DONE]\n\n", "no 'data: '"),
        (b"event: x\ndata: {}\n\n", "no 'data: '"),
        (b"{}\n\n", "no 'data: '"),
        (b"<html>502</html>\n", "no 'data: '"),
        (b"data: {'a': 1}\n\n", "no JSON"),
        (b'data: {"a": NaN}\n\n', "no JSON"),
        (b"data: \xff\xfe\n\n", "no JSON"),
        (b"data: [1]\n\n", "no object"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "no JSON"),
        (b'data: {"n": ' + b"9" * 5000 + b"}\n\n", "no JSON"),
        (b"data: [DONE]\n\ndata: {}\n\n", r"after \[DONE\]"),
        (b"data: [DONE]\n\n: still here\n", r"after \[DONE\]"),
    ],
)
def test_a_broken_stream_is_refused(stream: bytes, complaint: str) -> None:
    for chunks in ([stream], [stream[i : i + 1] for i in range(min(len(stream), 2000))] + [stream[2000:]]):
        with pytest.raises(ServingError, match=complaint):
            list(parse_events(chunks))


def test_events_are_yielded_before_the_stream_breaks() -> None:
    events = parse_events([STREAM[:-14], b"oops\n"])
    assert [next(events) for _ in EVENTS] == EVENTS
    with pytest.raises(ServingError):
        next(events)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parsers_in_another_way(data: bytes) -> None:
    for parse in (lambda: list(parse_events([data])), lambda: json_object(data), lambda: Answer(200, "", data).json()):
        try:
            parse()
        except ServingError as problem:
            assert len(str(problem)) < 1200 and str(problem).isprintable()


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(ServingError, match="must begin with http"):
        Endpoint("127.0.0.1:8000", MODEL)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ((b"",), UnreachableError),
        ((b"not HTTP at all\r\n\r\n",), ServingError),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",), UnreachableError),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",), UnreachableError),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",), ServingError),
        ((b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",), ServingError),
        ((b"HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\nwrong",), RefusedError),
        ((b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",), RefusedError),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",), ServingError),
    ],
)
def test_a_broken_answer_is_a_serving_error(parts: tuple[bytes, ...], error: type[ServingError]) -> None:
    with server(sender(*parts)) as url, pytest.raises(error) as caught:
        Endpoint(url, MODEL, read_timeout=30).chat("What is 1+2?")
    assert type(caught.value) is error


@pytest.mark.integration
@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ((HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"14\r\ndata: {}\n\ndata: [DON\r\n"), UnreachableError),
        ((HEAD + b"Connection: close\r\n\r\n", b"data: {}\n\n"), ServingError),
        ((HEAD.replace(b"text/event-stream", b"application/json") + b"Content-Length: 2\r\n\r\n{}",), ServingError),
        ((HEAD.replace(b"200", b"503") + b"Content-Length: 2\r\n\r\n{}",), RefusedError),
    ],
)
def test_a_stream_that_breaks_is_a_serving_error(parts: tuple[bytes, ...], error: type[ServingError]) -> None:
    with server(sender(*parts)) as url, pytest.raises(error) as caught:
        list(Endpoint(url, MODEL, read_timeout=30).stream("What is 1+2?"))
    assert type(caught.value) is error


@pytest.mark.integration
def test_a_stream_without_chunked_encoding_is_read_to_its_end() -> None:
    with server(sender(HEAD + b"Connection: close\r\n\r\n", STREAM)) as url:
        assert list(Endpoint(url, MODEL, read_timeout=30).stream("What is 1+2?")) == EVENTS


@pytest.mark.integration
def test_a_server_that_says_nothing_runs_out_of_patience() -> None:
    with server(sender(b"", pause=1)) as url, pytest.raises(PatienceError, match=r"within 0\.1 s"):
        Endpoint(url, MODEL, read_timeout=0.1).chat("What is 1+2?")


@pytest.mark.integration
def test_a_server_that_drips_runs_out_of_patience_too() -> None:
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    with server(sender(head, *([b"1\r\n:\r\n"] * 200), pause=0.02)) as url, pytest.raises(PatienceError):
        list(Endpoint(url, MODEL, read_timeout=0.2).stream("What is 1+2?"))


@pytest.mark.integration
def test_a_port_where_nobody_listens_is_unreachable_and_not_alive() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(UnreachableError, match="Connection refused"):
        Endpoint(url, MODEL).models()
    assert not Endpoint(url, MODEL).alive()


@pytest.mark.integration
def test_a_proxy_of_the_environment_never_sees_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    with Stub() as stub:
        assert Endpoint(stub.url, MODEL).models()[0]["id"] == MODEL


@pytest.mark.integration
def test_an_answer_of_the_stub_arrives_whole_and_streamed() -> None:
    with Stub() as stub:
        endpoint = Endpoint(stub.url + "/", MODEL)
        whole = endpoint.chat("What is 37+45?")["choices"][0]["message"]["content"]
        deltas = [event["choices"][0]["delta"].get("content", "") for event in endpoint.stream("What is 37+45?")]
    assert whole == "".join(deltas) == "<think>\n37 加 45\n</think>\n\n82"


@pytest.mark.integration
def test_each_thread_has_a_connection_of_its_own() -> None:
    with Stub() as stub:
        endpoint = Endpoint(stub.url, MODEL)
        seen: list[object] = []
        threads = [threading.Thread(target=lambda: seen.append((endpoint.models(), endpoint._connection())[1])) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({id(connection) for connection in seen}) == 3


@pytest.mark.integration
def test_health_is_asked_for_where_there_is_no_health_by_the_models() -> None:
    with Stub("sick") as stub:
        assert not Endpoint(stub.url, MODEL).alive()
    with Stub() as stub:
        assert Endpoint(stub.url, MODEL).alive()
