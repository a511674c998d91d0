"""Whatever a server does, it ends in a clear verdict or a counted failure, in bounded time, and never in a pass."""

from __future__ import annotations

import resource
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hostile import BROKEN, CHUNKED, EVENTS, FOREVER, JSON_TYPE, OK, answer, chat, chunk, endless, sender, server
from stub import MODEL
from test_accuracy import additions, lines_of, run, write_questions

from release.errors import ServingError
from release.types import Status
from release.validators import accuracy as module
from release.validators.conformance import validate
from release.validators.endpoint import Endpoint, PatienceError

pytestmark = pytest.mark.integration

LOOKED_AT = ["chat", "stream-framing", "logprobs", "scoring", "tools-auto", "json-schema", "reasoning", "hang-up"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.01)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_server_gets_clear_verdicts_in_bounded_time(name: str) -> None:
    began = time.monotonic()
    with server(BROKEN[name]) as url:
        verdicts = validate(url, MODEL, select=["models", *LOOKED_AT], timeout=0.3, within=8)
    assert time.monotonic() - began < FOREVER / 2
    models, *others = verdicts
    assert models.status is Status.PASSED and len(others) == len(LOOKED_AT)
    assert Status.PASSED not in {verdict.status for verdict in others}, others
    assert others[0].status is Status.FAILED
    assert all(verdict.measured and verdict.reason and len(verdict.reason) < 1000 for verdict in others)
    assert all((verdict.measured + verdict.reason).isprintable() for verdict in others)


@pytest.mark.parametrize("name", BROKEN)
def test_questions_to_a_broken_server_are_counted_as_failed_and_never_as_wrong(tmp_path: Path, name: str) -> None:
    path, accuracy = write_questions(tmp_path, additions(6))
    began = time.monotonic()
    with server(BROKEN[name]) as url:
        summary = run(url, accuracy, path, tmp_path, read_timeout=0.3)
    assert time.monotonic() - began < FOREVER / 2
    assert (summary.failed, summary.correct, summary.wrong, summary.truncated) == (6, 0, 0, 0)
    assert all(0 < len(line["error"]) < 1000 and line["answer"] is None for line in lines_of(tmp_path))


@pytest.mark.parametrize("name", ["hangs before its head", "resets", "never-ending headers", "no HTTP", "closes at once", "500"])
def test_a_server_that_breaks_everything_has_verdicts_too(name: str) -> None:
    began = time.monotonic()
    with server(BROKEN[name], get=False) as url:
        verdicts = validate(url, MODEL, timeout=0.3, within=5)
    assert time.monotonic() - began < FOREVER / 2
    assert {verdict.status for verdict in verdicts} <= {Status.FAILED, Status.SKIPPED}
    assert verdicts[1].status is Status.FAILED


def test_the_reasons_name_what_is_wrong() -> None:
    said = {}
    for name in ("drips its head", "huge content length", "redirect", "page of a proxy", "NaN", "no HTTP", "unasked compression"):
        with server(BROKEN[name]) as url:
            said[name] = validate(url, MODEL, select=["chat"], timeout=0.3)[0].reason
    assert "no complete answer within 0.3 s" in said["drips its head"]
    assert "99999999999 bytes, more than" in said["huge content length"]
    assert "HTTP 307" in said["redirect"] and "<html>" in said["page of a proxy"]
    assert "sent no JSON" in said["NaN"] and "no HTTP: 'SSH-2.0" in said["no HTTP"] and "'gzip'" in said["unasked compression"]


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n" + JSON_TYPE, OK + JSON_TYPE + b"Connection: close\r\n"])
def test_an_answer_that_ends_with_its_connection_is_an_answer(tmp_path: Path, head: bytes) -> None:
    path, accuracy = write_questions(tmp_path, additions(1))
    with server(sender(head + b"\r\n", chat("7"))) as url:
        assert Endpoint(url, MODEL, read_timeout=30).chat("What is 0+7?")["choices"][0]["message"]["content"] == "7"
        assert run(url, accuracy, path, tmp_path).correct == 1


def test_an_answer_after_100_continue_and_with_a_trailer_is_an_answer(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, additions(1))
    parts = b"HTTP/1.1 100 Continue\r\n\r\n" + OK + JSON_TYPE + CHUNKED + chunk(chat("7")) + b"0\r\nX-Sum: 1\r\n\r\n"
    with server(sender(parts)) as url:
        assert run(url, accuracy, path, tmp_path).correct == 1


def test_a_busy_server_is_asked_again_when_it_says_so(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, additions(1))
    turns = [answer(b"{}", b"HTTP/1.1 429 Later\r\nRetry-After: 0\r\n")] * 3 + [answer(chat("7"))]

    def serve(connection: Any) -> None:
        connection.sendall(turns.pop(0))

    with server(serve) as url:
        assert run(url, accuracy, path, tmp_path).correct == 1
    assert turns == []


def test_a_never_ending_stream_takes_bounded_time_and_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        server(endless(EVENTS + CHUNKED, chunk(b": x\n" * 16_000))) as url,
        pytest.raises(ServingError, match="more than 4194304 bytes"),
    ):
        list(Endpoint(url, MODEL, read_timeout=20, largest=4 * 1024 * 1024).stream("What is 1+2?"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_hanging_up_closes_the_connection_of_a_stream() -> None:
    left: list[bytes] = []

    def serve(connection: Any) -> None:
        event = b'data: {"choices": []}\n\n'
        connection.sendall(EVENTS + CHUNKED + chunk(event))
        connection.settimeout(5)
        left.append(connection.recv(1))

    with server(serve) as url:
        events = Endpoint(url, MODEL, read_timeout=5).stream("What is 1+2?")
        assert next(events) == {"choices": []}
        events.close()
        deadline = time.monotonic() + 5
        while not left and time.monotonic() < deadline:
            time.sleep(0.01)
    assert left == [b""]


def test_a_request_that_the_server_does_not_read_runs_out_of_patience() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(PatienceError):
            Endpoint(url, MODEL, read_timeout=0.3).chat("x" * 20_000_000)
