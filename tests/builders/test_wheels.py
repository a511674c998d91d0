"""Wheels are pinned by digest, kept once, and never asked for twice."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from release.builders import wheels
from release.builders.wheels import Pin, download, normalised, read_pins, tags
from release.errors import FetchError, StageError
from release.matrix.load import Matrix
from release.oci import sha256
from release.progress import Line, Plain
from release.store import Store
from release.types import Python

HASH = "--hash=sha256:" + "a" * 64
PYTHON = Python(version="3.11", glibc="2.36")


def pins(tmp_path: Path, text: str | bytes) -> tuple[Pin, ...]:
    path = tmp_path / "pins.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return read_pins(path)


def quiet() -> Line:
    return Plain(io.StringIO()).line("cell", "wheels")


def test_pins_are_read_with_comments_and_blank_lines(tmp_path: Path) -> None:
    found = pins(tmp_path, f"# why\n\nclick==8.3.0 {HASH}\n  torch==2.11.0+cpu   {HASH}  # the small one\n")
    assert [(pin.name, pin.version) for pin in found] == [("click", "8.3.0"), ("torch", "2.11.0+cpu")]
    assert found[0].requirement == f"click==8.3.0 {HASH}"


def test_the_pins_of_our_own_matrix_are_sound() -> None:
    for path in (Matrix().folders[-1] / "wheels").glob("*.txt"):
        found = read_pins(path)
        assert "pip" in {pin.name for pin in found}


HOSTILE = [
    "click",
    "click==8.3.0",
    f"click>=8 {HASH}",
    f"click==8.3.0 {HASH} {HASH}",
    f"click==8.3.0 --hash=md5:{'a' * 32}",
    f"click==8.3.0 --hash=sha256:{'a' * 63}",
    f"click==8.3.0 --hash=sha256:{'A' * 64}",
    f"click==8.3.0; python_version>'3' {HASH}",
    f"click[extra]==8.3.0 {HASH}",
    f"click==8.3.0 \\\n    {HASH}",
    f"click === 8.3.0 {HASH}",
    f"click @ https://example.org/click.whl {HASH}",
    "-r other.txt",
    "--index-url https://example.org/simple",
    "--extra-index-url=https://example.org/simple",
    "-e .",
    "./click.whl",
    "https://example.org/click.whl",
    f"click==8.3.0 {HASH} --pre",
    f"--pre click==8.3.0 {HASH}",
    f"cli ck==8.3.0 {HASH}",
    f"click==8.3.0\x00 {HASH}",
    f"clicк==8.3.0 {HASH}",
]


@pytest.mark.parametrize("line", HOSTILE)
def test_a_line_that_is_no_pin_is_refused_with_its_number(line: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"pins\.txt:2: .* is not a pin") as caught:
        pins(tmp_path, f"a==1 {HASH}\n{line}\n")
    assert "name==version --hash=sha256:" in caught.value.next_step


@pytest.mark.parametrize("again", ["flask_x==1", "Flask-X==2", "flask.x==1"])
def test_a_wheel_that_is_pinned_twice_is_refused_however_it_is_spelt(again: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"pins\.txt:2: flask-x is pinned twice"):
        pins(tmp_path, f"flask-x==1 {HASH}\n{again} {HASH}\n")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_pins_of_nothing_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="pins nothing"):
        pins(tmp_path, text)


def test_pins_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FetchError):
        pins(tmp_path, b"\xff\xfe")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(alphabet=st.characters(exclude_categories=["Cs"]))
    | st.lists(st.sampled_from([*HOSTILE, f"a==1 {HASH}", "\n", "#", "\x85"])).map("".join)
)
def test_no_line_gets_to_pip_that_is_not_one_pin(tmp_path: Path, text: str) -> None:
    try:
        found = pins(tmp_path, text)
    except FetchError:
        return
    for pin in found:
        assert len(pin.requirement.split()) == 2
        assert "\n" not in pin.requirement
        assert not pin.requirement.startswith("-")


@pytest.mark.parametrize(("name", "wanted"), [("A.b_C", "a-b-c"), ("a--b", "a-b"), ("a-_.b", "a-b"), ("x", "x")])
def test_names_are_compared_as_pep_503_says(name: str, wanted: str) -> None:
    assert normalised(name) == wanted


def test_tags_begin_with_the_newest_platform_and_fit_the_interpreter() -> None:
    found = tags(PYTHON, "amd64")
    platforms = [option.removeprefix("--platform=") for option in found if option.startswith("--platform=")]
    assert platforms[:2] == ["manylinux_2_36_x86_64", "manylinux_2_35_x86_64"]
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64", "manylinux_2_5_x86_64"} <= set(platforms)
    assert "manylinux_2_37_x86_64" not in platforms
    assert "--only-binary=:all:" in found
    assert "--python-version=3.11" in found
    assert len(set(platforms)) == len(platforms)


def test_tags_of_another_machine_name_no_platform_of_this_one() -> None:
    assert not [option for option in tags(PYTHON, "arm64") if "x86_64" in option]
    assert "--platform=manylinux_2_36_aarch64" in tags(PYTHON, "arm64")


class Index:
    """Stands where pip would: brings the wheels that it has, and counts."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked = files, 0

    def run(self, argv: Sequence[str], *, on_line: Callable[[str], None], **options: Any) -> list[str]:
        self.asked += 1
        assert argv[1:5] == ["-P", "-m", "pip", "download"], "pip must not be looked for in the working folder"
        assert "--require-hashes" in argv
        for name, data in self.files.items():
            (Path(argv[argv.index("--dest") + 1]) / name).write_bytes(data)
            on_line(f"Collecting {name}")
            on_line(f"Progress {len(data)} of {len(data)}")
        return []


FILES = {"click-8.3.0-py3-none-any.whl": b"click", "Rich_Text-1.0-py3-none-any.whl": b"rich"}
PINS = (Pin("Rich.Text", "1.0", sha256(b"rich")), Pin("click", "8.3.0", sha256(b"click")))


def bring(tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch, out: str = "out") -> list[dict[str, Any]]:
    monkeypatch.setattr(wheels.processes, "run", index.run)
    (tmp_path / "partial").mkdir(exist_ok=True)
    store = Store(tmp_path / "store")
    return download(PINS, PYTHON, "amd64", store=store, partial=tmp_path / "partial", out=tmp_path / out, line=quiet())


def test_wheels_are_brought_once_and_linked_ever_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(FILES)
    first = bring(tmp_path, index, monkeypatch)
    assert first == [
        {"name": "click", "version": "8.3.0", "file": "click-8.3.0-py3-none-any.whl", "sha256": sha256(b"click"), "bytes": 5},
        {"name": "rich-text", "version": "1.0", "file": "Rich_Text-1.0-py3-none-any.whl", "sha256": sha256(b"rich"), "bytes": 4},
    ]
    assert bring(tmp_path, index, monkeypatch, "again") == first
    assert index.asked == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == FILES


def test_a_wheel_that_pip_did_not_bring_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FetchError, match=r"Rich\.Text==1\.0: pip brought no wheel with sha256:"):
        bring(tmp_path, Index({"click-8.3.0-py3-none-any.whl": b"click"}), monkeypatch)


def test_a_wheel_with_another_content_is_not_taken_for_the_pinned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FetchError, match="pip brought no wheel with"):
        bring(tmp_path, Index({**FILES, "click-8.3.0-py3-none-any.whl": b"evil"}), monkeypatch)


def test_a_build_that_was_killed_between_a_wheel_and_its_name_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(FILES)
    bring(tmp_path, index, monkeypatch)
    (name,) = [
        path for path in (tmp_path / "store" / "blobs").iterdir() if path.suffix == ".name" and "click" in path.read_text()
    ]
    name.unlink()
    assert len(bring(tmp_path, index, monkeypatch, "again")) == 2
    assert index.asked == 2


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (
            ["ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "    click==8.3.0 from file:x"],
            "click==8.3.0 from your package index is not",
        ),
        (
            ["ERROR: No matching distribution found for torch==2.11.0+cpu"],
            "your package index has no wheel for torch==2.11.0+cpu",
        ),
        (["something else"], "pip ended with status 1"),
    ],
)
def test_what_pip_says_becomes_one_clear_error(
    lines: list[str], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Index):
        def run(self, argv: Sequence[str], *, on_line: Callable[[str], None], **options: Any) -> list[str]:
            for line in lines:
                on_line(line)
            raise StageError("pip ended with status 1", next_step="its last lines: …")

    with pytest.raises(FetchError, match=wanted.replace("+", r"\+")) as caught:
        bring(tmp_path, Broken({}), monkeypatch)
    assert caught.value.next_step
    assert list((tmp_path / "partial").iterdir()) == []
