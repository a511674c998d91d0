"""Pictures and the report are made of the record alone, say no more than it does, and nothing in it can act on a reader's machine."""

from __future__ import annotations

import json
import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from records import record, unbuilt

from release.errors import UsageError
from release.publish.pictures import COLOURS, DARK, draw, facts_of, night, pictures_of
from release.publish.report import SHOWN, render_report, wrong_answers
from release.report import read_record, report
from release.types import JSON

KL = {"mean": 1.8e-4, "p50": 0.0, "p90": 1.7e-4, "p99": 3.2e-3, "p99.9": 0.02, "max": 0.13, "limit": 0.002, "floor": 0.0}
LATENCY = {"mean": 41.0, "p50": 40.0, "p90": 60.0, "p99": 80.0}
HOSTILE = "</td></table><script>alert(1)</script><img src=x onerror=alert(2)>\"'\u202egnp\x00"


def measured(**changes: Any) -> JSON:
    """Return a record with figures for every picture."""
    made = record()
    accuracy = next(verdict for verdict in made["verdicts"] if verdict["name"] == "accuracy")
    accuracy["figures"] = {"finding": "CONSISTENT", "delta": -0.003, "margin": 0.02, "interval": [-0.0075, -0.0003]}
    accuracy["figures"] |= {"interval-95": [-0.0088, 0.0008], "benchmark": ""}
    made["consistency"]["verdicts"] = [{"name": "scoring", "figures": {"kl": KL}}]
    made["reported"] = unbuilt()["reported"]
    run = {
        **{"seconds": 2.5, "completed": 100, "failed": 0, "requests-per-second": 40.0, "output-tokens-per-second": 2560.0},
        **{"goodput": 39.0, "ttft": LATENCY, "tpot": LATENCY, "itl": LATENCY, "e2el": LATENCY},
    }
    points = [{"input-tokens": 128, "output-tokens": 64, "concurrency": n, "requests": 100, "runs": [run] * 3} for n in (1, 8)]
    made["performance"] = {
        **{"tool": "vllm bench serve", "version": "vllm 1", "prefix-cache": "off", "slo": {"ttft": 2000.0, "tpot": None}},
        "machine": {"processor": "EPYC", "cores": 2, "device": None, "devices": None},
        "points": points,
    }
    return {**made, **changes}


def test_a_record_gives_the_pictures_that_it_has_figures_for() -> None:
    assert set(pictures_of(measured())) == {"forest", "divergence", "throughput"}
    assert set(pictures_of(record(reported=[]))) == set()
    assert set(pictures_of(unbuilt())) == {"forest"}


def test_the_forest_tells_what_was_measured_from_what_is_reported() -> None:
    rows = pictures_of(measured())["forest"]["data"]["values"]
    mine = rows[0]
    assert (mine["finding"], mine["delta"], mine["margin"]) == ("CONSISTENT", pytest.approx(-0.3), pytest.approx(-2.0))
    assert (mine["low90"], mine["high95"]) == (pytest.approx(-0.75), pytest.approx(0.08))
    others = rows[1:]
    assert {row["finding"] for row in others} == {"reported"} and all(row["low90"] is None for row in others)
    assert [row["delta"] for row in others] == [pytest.approx(1.02), pytest.approx(19.2)]


def test_every_finding_has_a_colour_of_its_own() -> None:
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_a_divergence_of_nothing_can_be_drawn_on_a_logarithm() -> None:
    rows = pictures_of(measured())["divergence"]["layer"][0]["data"]["values"]
    assert all(row["kl"] > 0 for row in rows)


def test_a_tail_is_drawn_only_where_runs_have_requests_enough() -> None:
    few = measured()
    assert "p90" in pictures_of(few)["throughput"]["description"]
    for point in few["performance"]["points"]:
        point["runs"] = [{**run, "completed": 1000} for run in point["runs"]]
    assert "p99" in pictures_of(few)["throughput"]["description"]


@pytest.mark.parametrize("name", ["forest", "divergence", "throughput"])
def test_pictures_are_the_same_bytes_each_time_and_hold_no_script_and_no_address(name: str) -> None:
    pytest.importorskip("vl_convert")
    specs = {name: pictures_of(measured())[name]}
    first, again = draw(specs)[name], draw(specs)[name]
    assert first == again
    root = ET.fromstring(first)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert "script" not in tags and "image" not in tags and "a" not in tags
    assert draw(specs, "png")[name].startswith(b"\x89PNG")


def test_a_dark_picture_is_the_same_drawing_and_leaves_no_colour_of_the_day() -> None:
    pytest.importorskip("vl_convert")
    for svg in draw(pictures_of(measured())).values():
        day, dark = ET.fromstring(svg), ET.fromstring(night(svg))
        assert [element.tag for element in dark.iter()] == [element.tag for element in day.iter()]
        assert "".join(dark.itertext()) == "".join(day.itertext())
        colours = {element.get(name) for element in dark.iter() for name in ("fill", "stroke")} - {None, "none", "transparent"}
        assert colours <= {colour.decode() for colour in DARK.values()}


def test_a_hostile_name_is_text_in_a_picture() -> None:
    pytest.importorskip("vl_convert")
    made = measured()
    made["reported"][0]["scores"][0]["benchmark"] = "</svg><script>alert(1)</script>"
    svg = draw({"forest": pictures_of(made)["forest"]})["forest"]
    assert b"<script" not in svg
    ET.fromstring(svg)


def page(made: JSON, language: str = "en", wrong: list[JSON] | None = None) -> str:
    specs = pictures_of(made)
    return render_report(made, {name: (b"<svg/>", said) for name, said in facts_of(specs).items()}, wrong or [], language)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_report_says_every_verdict_with_its_figures_and_asks_nobody(language: str) -> None:
    made = measured()
    text = page(made, language)
    for verdict in made["verdicts"]:
        assert verdict["name"].replace("'", "&#39;") in text
    for file in made["evidence"]:
        assert file["sha256"] in text
    assert made["image"]["manifest"]["digest"] in text
    assert "<script" not in text and "default-src 'none'" in text
    addresses = re.findall(r"(?:src|href|action)=[\"']?([^\"' >]+)", text)
    assert addresses and all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert f'<html lang="{language}">' in text


def test_a_planned_release_has_a_report_that_promises_nothing() -> None:
    text = page(unbuilt())
    assert "Nothing has been built yet" in text and "release pull" not in text


def test_what_failed_stands_before_what_passed() -> None:
    made = measured()
    made["verdicts"][2]["status"] = "FAILED"
    text = page(made)
    assert text.index(made["verdicts"][2]["name"]) < text.index(made["verdicts"][3]["name"])


def hostile(value: Any) -> Any:
    """Replace every text that a stranger may have written."""
    if isinstance(value, dict):
        kept = ("state", "status", "name", "unit", "finding")
        return {key: item if key in kept else hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text() -> None:
    text = page(hostile(measured()), wrong=[dict.fromkeys(("question_id", "expected", "answer", "text"), HOSTILE)])
    assert "<script" not in text and "<img src=x" not in text and "\u202e" not in text and "\x00" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_wrong_answers_come_from_the_evidence_shortened_and_damage_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "evidence" / "accuracy"
    folder.mkdir(parents=True)
    told = {"expected": "1", "answer": "2", "text": "x" * 9000}
    lines = [json.dumps({"question_id": f"q{number}", "correct": number % 2 == 0, **told}) for number in range(60)]
    (folder / "samples.jsonl").write_text("\n".join([*lines, "{broken", "[1]", "[" * 100_000]) + "\n")
    found = wrong_answers(tmp_path)
    assert len(found) == 30 and all(len(sample["text"]) <= 601 for sample in found)
    text = page(measured(), wrong=found)
    assert text.count("<pre>x") == SHOWN and f"{30 - SHOWN} more in the evidence" in text
    assert wrong_answers(tmp_path / "nowhere") == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "other/1"}', '{"schema": "release-record/1"}'])
def test_what_is_no_release_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "release.json").write_text(text)
    with pytest.raises(UsageError):
        report(tmp_path, None, "en")


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no release\.json"):
        read_record(tmp_path)


@pytest.mark.integration
@pytest.mark.parametrize("width", [375, 1440])
def test_the_report_is_shown_by_a_browser_without_a_complaint(tmp_path: Path, width: int) -> None:
    (tmp_path / "release.json").write_text(json.dumps(measured()))
    written = report(tmp_path, None, "en")
    assert {path.name for path in written.pictures} >= {"forest.svg", "forest.png", "throughput.svg", "divergence.png"}
    shot = tmp_path / "shot.png"
    line = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900"]
    line += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", written.page.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    assert shot.stat().st_size > 20_000
