"""A person sees what runs: plain lines where there is no terminal, and numbers with their unit."""

from __future__ import annotations

import io
import threading

import pytest

from release import progress
from release.progress import Line, Plain, progress_for


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def line(stream: io.StringIO, **options: bool) -> tuple[Plain, Line]:
    plain = Plain(stream, **options)
    return plain, plain.line("cpu/tiny-qwq@bf16", "weights")


def test_a_stage_that_ends_is_one_line_with_cell_stage_state_and_summary(stream: io.StringIO) -> None:
    plain, one = line(stream)
    one.start()
    one.done("8 tensors, 1.7 MB")
    plain.close()
    (text,) = stream.getvalue().splitlines()
    assert text.split()[:3] == ["cpu/tiny-qwq@bf16", "weights", "done"]
    assert text.endswith("s  8 tensors, 1.7 MB")


def test_a_stage_that_fails_says_why(stream: io.StringIO) -> None:
    plain, one = line(stream)
    one.start()
    one.failed("the disk is full")
    plain.close()
    assert "failed" in stream.getvalue()
    assert stream.getvalue().endswith("the disk is full\n")


@pytest.mark.parametrize(("show", "lines"), [(False, 0), (True, 1)])
def test_a_cached_stage_is_quiet_unless_asked_for(show: bool, lines: int, stream: io.StringIO) -> None:
    _, one = line(stream, show_cached=show)
    one.cached("as before")
    assert len(stream.getvalue().splitlines()) == lines


def test_a_stage_that_runs_long_speaks_up(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT", 0.0)
    spoken = threading.Event()
    write = stream.write
    monkeypatch.setattr(stream, "write", lambda text: (write(text), spoken.set())[0])
    plain, one = line(stream)
    one.start()
    one.note("resolving " + "x" * 500)
    assert spoken.wait(20)
    plain.close()
    first = stream.getvalue().splitlines()[0]
    assert "running" in first
    assert "resolving xxx" in first
    assert first.endswith("…")
    assert len(first) < 160


def test_nothing_is_drawn_for_every_byte(stream: io.StringIO) -> None:
    plain, one = line(stream)
    one.start()
    one.expect(10**9, "bytes")
    for _ in range(1000):
        one.advance(10**6)
    plain.close()
    assert stream.getvalue() == ""


def test_progress_is_told_with_its_unit(stream: io.StringIO) -> None:
    _, one = line(stream)
    one.note("looking")
    assert one.measure() == "looking"
    one.expect(489_100_000, "bytes")
    one.advance(312_000_000)
    assert one.measure() == "looking  312.0 of 489.1 MB"
    one.expect(None, "bytes")
    one.reach(1_500_000)
    assert one.measure() == "looking  1.5 MB"
    one.follow(640, 1000, "")
    assert one.measure() == "640 of 1000 samples"
    one.expect(None, "wheels")
    assert one.measure() == "0 wheels"


def test_lines_may_be_used_from_many_threads(stream: io.StringIO) -> None:
    plain = Plain(stream)
    lines = [plain.line("cell", f"stage{n}") for n in range(20)]

    def work(one: Line) -> None:
        one.start()
        one.note("x")
        one.done("done")

    threads = [threading.Thread(target=work, args=(one,)) for one in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    plain.close()
    assert sorted(text.split()[1] for text in stream.getvalue().splitlines()) == sorted(f"stage{n}" for n in range(20))


def test_a_stream_that_is_no_terminal_gets_plain_lines(stream: io.StringIO) -> None:
    assert isinstance(progress_for(stream), Plain)


def test_a_terminal_gets_live_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    live = progress_for(Terminal())
    try:
        one = live.line("cpu/tiny-qwq@bf16", "weights")
        one.start()
        one.expect(10, "samples")
        one.advance(3)
        one.note("[red]not markup")
        one.done("[/]")
    finally:
        live.close()
    assert isinstance(live, progress.Live)
