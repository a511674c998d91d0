"""Whether a server that is told to end does so in time, and what becomes of the answer that it is giving."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from release.errors import ServingError
from release.types import JSON, Status, Verdict
from release.validators.conformance.check import ASK
from release.validators.endpoint import Endpoint

NAME: Final = "conformance/drain"
POLL: Final = 0.1


def drain(endpoint: Endpoint, terminate: Callable[[], None], ended: Callable[[], bool], *, within: float = 60.0) -> Verdict:
    """Tell the server to end (`terminate`: SIGTERM) in the middle of a stream; return the verdict "it ends, and hangs nobody up for long".

    `ended` says whether its process is gone. PASSED if it is within so many seconds and the stream came to an end as well, finished
    or cut: which of the two is reported, for engines differ on purpose.
    """
    began = threading.Event()
    outcome: list[str] = []

    def listen() -> None:
        try:
            for _ in endpoint.patient(within).stream(ASK, temperature=0, max_tokens=512):
                began.set()
            outcome.append("finished")
        except ServingError as problem:
            outcome.append(f"cut off: {problem}")
        began.set()

    listener = threading.Thread(target=listen, name="drain", daemon=True)
    listener.start()
    began.wait(within)
    started = time.monotonic()
    terminate()
    while not (gone := ended()) and time.monotonic() - started < within:
        time.sleep(POLL)
    seconds = time.monotonic() - started
    listener.join(max(POLL, within - seconds))
    stream = outcome[0] if outcome else "still waiting"
    figures: JSON = {"seconds": round(seconds, 2), "finished": stream == "finished"}
    after = f"after {seconds:.1f} s" if gone else f"not after {within:g} s"
    reasons = {
        (True, True): "as a container engine expects it of what it stops",
        (True, False): "the client of the stream was left waiting",
    }
    return Verdict(
        name=NAME,
        status=Status.PASSED if gone and outcome else Status.FAILED,
        measured=endpoint.redact(f"ended {after}, the stream under way {stream}"),
        wanted=f"the server gone within {within:g} s, and no client left waiting",
        reason=reasons.get((gone, bool(outcome)), "a server that does not end is killed, with all that it was doing"),
        figures=figures,
    )
