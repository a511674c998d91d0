"""A server that is told to end must end, and leave nobody waiting."""

from __future__ import annotations

import threading

import pytest
from hostile import CHUNKED, EVENT, EVENTS, chunk, sender, server
from stub import MODEL, Stub

from release.types import Status
from release.validators.conformance import drain
from release.validators.endpoint import Endpoint

pytestmark = pytest.mark.integration


def test_a_server_that_ends_passes_and_what_became_of_the_stream_is_said() -> None:
    with Stub() as stub:
        verdict = drain(Endpoint(stub.url, MODEL), stub.die, stub.stopped.is_set, within=5)
    assert verdict.status is Status.PASSED and verdict.figures["finished"] is True
    assert "the stream under way finished" in verdict.measured
    with Stub("stream-dies") as stub:
        verdict = drain(Endpoint(stub.url, MODEL), stub.die, stub.stopped.is_set, within=5)
    assert verdict.status is Status.PASSED and "cut off" in verdict.measured and verdict.figures["finished"] is False


def test_a_server_that_does_not_end_fails_in_bounded_time() -> None:
    with Stub() as stub:
        verdict = drain(Endpoint(stub.url, MODEL), lambda: None, lambda: False, within=0.3)
    assert verdict.status is Status.FAILED and verdict.measured.startswith("ended not after 0.3 s")


def test_a_stream_that_hangs_does_not_hold_up_the_verdict() -> None:
    gone = threading.Event()
    with server(sender(EVENTS + CHUNKED + chunk(EVENT), then=10)) as url:
        verdict = drain(Endpoint(url, MODEL), gone.set, gone.is_set, within=0.5)
    assert verdict.figures["finished"] is False and verdict.figures["seconds"] < 0.5
