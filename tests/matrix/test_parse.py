"""YAML of strangers becomes a type or a MatrixError with file, line and key, and never anything else."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from folders import CELL, CHIP, MODEL
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from release.errors import MatrixError
from release.matrix import parse
from release.types import CellFile, Chip, Frozen, Model


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


def read(tmp_path: Path, text: str | bytes, kind: type[BaseModel] = Chip) -> Any:
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse.read(path, kind)


def complaint(tmp_path: Path, text: str | bytes, kind: type[BaseModel] = Chip) -> MatrixError:
    with pytest.raises(MatrixError) as caught:
        read(tmp_path, text, kind)
    assert str(caught.value).startswith(f"{tmp_path / 'x.yaml'}:")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return caught.value


def place_and_message(tmp_path: Path, text: str | bytes, kind: type[BaseModel] = Chip) -> str:
    return str(complaint(tmp_path, text, kind)).removeprefix(f"{tmp_path / 'x.yaml'}:")


def test_sound_files_are_read(tmp_path: Path) -> None:
    chip = read(tmp_path, CHIP)
    assert (chip.id, chip.precisions, chip.container.devices) == ("abacus", ("bf16", "w8a8"), ("/dev/abacus0",))
    assert read(tmp_path, MODEL, Model).architecture.class_ == "PebbleForCausalLM"
    cell = read(tmp_path, CELL, CellFile)
    assert cell.serve.args == {"max-model-len": 64, "dtype": "auto"}
    assert list(cell.cells) == ["w8a8", "bf16", "bf16~native"]


WRONG = {
    "an unknown key": (CHIP + "pyhton: {}\n", "14: pyhton: unknown key (did you mean 'python'?)"),
    "an unknown key inside": (
        CHIP.replace("shm-size", "shm-sise"),
        "13: container.shm-sise: unknown key (did you mean 'shm-size'?)",
    ),
    "a key in Python's spelling": (
        CHIP.replace("shm-size", "shm_size"),
        "13: container.shm_size: unknown key (did you mean 'shm-size'?)",
    ),
    "a key like nothing we know": (CHIP + "qqq: 1\n", "14: qqq: unknown key"),
    "a key that looks like one of pydantic's places": (CHIP + '"[key]": 1\n', "14: [key]: unknown key"),
    "a misspelt key that is missed": (CHIP.replace("vendor:", "vendr:"), "3: vendr: unknown key (did you mean 'vendor'?)"),
    "a merge key": (CHIP + "<<: {}\n", "14: <<: unknown key"),
    "a missing key": (CHIP.replace("vendor: Invented\n", ""), "1: vendor: is missing"),
    "a missing key inside": (CHIP.replace('  glibc: "2.36"\n', ""), "8: python.glibc: is missing"),
    "a duplicate key": (CHIP + "id: other\n", "14: id: the key is there twice"),
    "a duplicate key inside": (CHIP + "  shm-size: 4g\n", "14: container.shm-size: the key is there twice"),
    "a version without quotes": (CHIP.replace('"3.11"', "3.11"), "9: python.version: 3.11 is not text"),
    "a boolean for text": (CHIP.replace("name: Abacus 9", "name: true"), "2: name: True is not text"),
    "nothing for text": (CHIP.replace("name: Abacus 9", "name:"), "2: name: input should be a valid string"),
    "a word for a list": (CHIP.replace("[/dev/abacus0]", "/dev/abacus0"), "12: container.devices: is not a list"),
    "a list for a mapping": (CHIP + "  env: [1]\n", "14: container.env: is not a mapping of keys to values"),
    "a mapping for a list": (CHIP.replace("[bf16, w8a8]", "{bf16: 1}"), "5: precisions: is not a list"),
    "a list as the file": ("- a\n- b\n", "1: (top): is not a mapping of keys to values"),
    "a word as the file": ("hello\n", "1: (top): is not a mapping of keys to values"),
    "an unknown precision": (CHIP.replace("w8a8", "w9a9"), "5: precisions.1: input should be 'bf16', 'fp16',"),
    "no precision": (CHIP.replace("[bf16, w8a8]", "[]"), "5: precisions: tuple should have at least 1 item"),
    "an unknown architecture": (CHIP.replace("arm64", "mips"), "4: architecture: input should be 'amd64' or 'arm64'"),
    "an id with capitals": (CHIP.replace("id: abacus", "id: Abacus"), "1: id: 'Abacus' is not a lower-case id"),
    "an id that is a path": (CHIP.replace("id: abacus", "id: ../abacus"), "1: id: '../abacus' is not a lower-case id"),
    "an image without a digest": (
        CHIP.replace("abacus@sha256:" + "a" * 64, "abacus:latest"),
        "7: base.image: 'registry.example.org/abacus:latest' is not an image reference with a digest",
    ),
    "an image with half a digest": (CHIP.replace("a" * 64, "a" * 63), "7: base.image: 'registry.example.org/abacus@sha256:aaa"),
    "an image that is an option": (CHIP.replace("registry.example.org", "--privileged"), "7: base.image: '--privileged/"),
    "an image with a line break": (
        CHIP.replace("image: registry.example.org/abacus@sha256:" + "a" * 64, f'image: "a@sha256:{"a" * 64}\\n"'),
        "7: base.image: 'a@sha256:",
    ),
    "a base of nothing": (
        CHIP.replace("base:\n  image: registry.example.org/abacus@sha256:" + "a" * 64, "base: {}"),
        "6: base: give exactly one of",
    ),
    "a base of two kinds": (
        CHIP.replace("base:\n", "base:\n  bootstrap: {suite: bookworm, include: [python3], epoch: 1}\n"),
        "6: base: give exactly one of",
    ),
    "a secret in the environment": (
        CHIP + "  env: {HF_TOKEN: hunter2}\n",
        "14: container.env: HF_TOKEN looks like a secret: secrets come from the environment",
    ),
    "a password in the environment": (
        CHIP + "  env: {DB_PASSWORD: hunter2}\n",
        "14: container.env: DB_PASSWORD looks like a secret",
    ),
    "a name that no environment can have": (CHIP + '  env: {"A=B": c}\n', "14: container.env: 'A=B' is not the name"),
    "an anchor": (CHIP.replace("name: Abacus 9", "name: &n Abacus 9"), "2: anchors and aliases are not allowed"),
    "an alias": ("a: *b\n", "1: anchors and aliases are not allowed"),
    "a tag": (
        "a: !!python/object/apply:os.system [id]\n",
        "1: the tag tag:yaml.org,2002:python/object/apply:os.system is not allowed",
    ),
    "a tag of our own": ("!mine {a: 1}\n", "1: the tag !mine is not allowed"),
    "a key that is a list": ("? [a]\n: b\n", "1: a key must be a word"),
    "two documents": (CHIP + "---\n" + CHIP, "14: but found another document"),
    "an open bracket": ("a: [1\n", "2: did not find expected ',' or ']'"),
    "a tab": ("a:\n\tb: 1\n", "2: found character that cannot start any token"),
    "a control character": ("a: b\nc: \x01\n", "2: control characters are not allowed"),
    "an empty file": ("", " is empty"),
    "a file of comments": ("# nothing\n", " is empty"),
    "deep nesting": ("a: " + "[" * 60 + "]" * 60, "1: is nested deeper than 50 levels"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_with_line_and_dotted_key(what: str, tmp_path: Path) -> None:
    text, wanted = WRONG[what]
    assert place_and_message(tmp_path, text).startswith(wanted)


def test_the_number_that_should_be_text_is_to_be_put_in_quotes(tmp_path: Path) -> None:
    assert complaint(tmp_path, CHIP.replace('"3.11"', "3.11")).next_step == "put it in quotes"


@pytest.mark.parametrize(("quoted", "key"), [('port: "9000"', "serve.port"), ('port: "true"', "serve.port")])
def test_the_text_that_should_be_a_number_is_to_be_written_without_quotes(quoted: str, key: str, tmp_path: Path) -> None:
    problem = complaint(tmp_path, CELL.replace("port: 9000", quoted), CellFile)
    assert f"6: {key}: input should be a valid integer" in str(problem)
    assert problem.next_step == "write it without quotes"


def test_a_word_that_should_be_a_number_gets_no_hint_about_quotes(tmp_path: Path) -> None:
    assert complaint(tmp_path, CELL.replace("port: 9000", "port: high"), CellFile).next_step == ""


@pytest.mark.parametrize("port", ["0", "65536", "-1", "1.5", "9e9", "99999999999999999999999999"])
def test_a_port_that_cannot_be_is_refused(port: str, tmp_path: Path) -> None:
    assert place_and_message(tmp_path, CELL.replace("port: 9000", f"port: {port}"), CellFile).startswith("6: serve.port: ")


@pytest.mark.parametrize("margin", ["0", "1", "-0.1", "1e999", ".nan", ".inf", "two"])
def test_a_margin_that_means_nothing_is_refused(margin: str, tmp_path: Path) -> None:
    text = CELL.replace("margin: 0.02", f"margin: {margin}")
    assert place_and_message(tmp_path, text, CellFile).startswith("13: accuracy.margin: ")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "a/..", ".", "a//../..", "~/x", "a b", ""])
def test_a_path_out_of_the_matrix_is_refused(path: str, tmp_path: Path) -> None:
    text = CELL.replace("wheels: wheels/abacus.txt", f'wheels: "{path}"')
    assert place_and_message(tmp_path, text, CellFile).startswith(f"4: wheels: {path!r} is not a relative path")


def test_a_complaint_does_not_quote_a_megabyte(tmp_path: Path) -> None:
    assert len(str(complaint(tmp_path, CHIP.replace("id: abacus", f"id: {'X' * 100_000}")))) < 500


def test_an_alias_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    layers = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    layers += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 40)]
    assert "1: anchors and aliases are not allowed" in place_and_message(tmp_path, "\n".join(layers))


def test_a_file_above_the_limit_is_refused_unread(tmp_path: Path) -> None:
    assert "is larger than 1048576 bytes" in str(complaint(tmp_path, "#" * (parse.SIZE_LIMIT + 1)))


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: 'utf-8' codec" in str(complaint(tmp_path, b"name: \xff\xfe"))


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbf" + CHIP.encode()).id == "abacus"


@pytest.mark.parametrize("make", ["nothing", "folder", "dangling"])
def test_a_file_that_is_not_one_is_refused(make: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    if make == "folder":
        path.mkdir()
    elif make == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(MatrixError, match="cannot be read"):
        parse.read(path, Chip)


SCALARS = {
    "no": "no",
    "yes": "yes",
    "on": "on",
    "NO": "NO",
    "True": "True",
    "true": True,
    "false": False,
    "null": None,
    "~": None,
    "0": 0,
    "-0": 0,
    "17": 17,
    "-17": -17,
    "0755": "0755",
    "0x1F": "0x1F",
    "0o17": "0o17",
    "1_000": "1_000",
    "+1": "+1",
    "1.10": 1.1,
    "1.": "1.",
    ".5": ".5",
    "1e3": 1000.0,
    "1e999": "1e999",
    "-1e999": "-1e999",
    ".inf": ".inf",
    ".nan": ".nan",
    "12:30:45": "12:30:45",
    "190:20:30": "190:20:30",
    "2026-11-20": "2026-11-20",
    "2026-11-20 10:00:00": "2026-11-20 10:00:00",
    "1.2.3": "1.2.3",
    "9" * 19: int("9" * 19),
    "9" * 4000: "9" * 4000,
    "3e8b": "3e8b",
    "=": "=",
    '"1"': "1",
    "'true'": "true",
    '""': "",
    "|\n  7\n": "7\n",
}


@pytest.mark.parametrize("text", SCALARS)
def test_scalars_are_typed_as_in_json_and_everything_else_is_text(text: str, tmp_path: Path) -> None:
    value = read(tmp_path, f"a: {text}", Anything).a
    assert value == SCALARS[text]
    assert type(value) is type(SCALARS[text])


@pytest.mark.parametrize("key", ["no", "1", "1.10", "12:30:45", "null", "true"])
def test_keys_are_text_whatever_they_look_like(key: str, tmp_path: Path) -> None:
    assert read(tmp_path, f"{key}: 1", Anything).model_extra == {key: 1}


def test_a_place_is_named_with_file_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(CELL)
    assert parse.locate(path, "cells", "bf16~native", "serve", "port") == f"{path}:24: cells.bf16~native.serve.port"
    assert parse.locate(path, "cells", "w8a8", "reference") == f"{path}:17: cells.w8a8.reference"


def test_keys_that_a_type_knows_are_spelled_as_in_yaml() -> None:
    assert "class" in parse.fields_at(Model, ("architecture",))
    assert "kv-heads" in parse.fields_at(Model, ("architecture",))
    assert "ready-within" in parse.fields_at(CellFile, ("cells", "bf16", "serve"))
    assert "patches" in parse.fields_at(CellFile, ("sources", 0))
    assert parse.fields_at(CellFile, ("serve", "args", "x")) == []


WORDS = st.sampled_from(
    [
        *"abc:-[]{},&*!|>'\"%@`#?~ \n\t",
        "id: ",
        "name",
        "chip",
        "  ",
        "- ",
        "&a",
        "*a",
        "!!int ",
        "<<",
        "\x00",
        "\u2028",
        "\ud7ff",
        "1e9",
    ]
)
KINDS = st.sampled_from([Chip, Model, CellFile])
OFTEN = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@OFTEN
@given(text=st.one_of(st.text(), st.lists(WORDS).map("".join)), kind=KINDS)
@example(text='"[key]": 1', kind=Chip)
@example(text="? ? a", kind=Chip)
def test_no_text_does_anything_but_be_read_or_refused(tmp_path: Path, text: str, kind: type[Frozen]) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        parse.read(path, kind)
    except MatrixError as problem:
        assert "\n" not in str(problem)


@OFTEN
@given(data=st.binary(max_size=300))
def test_no_bytes_do_anything_but_be_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    with contextlib.suppress(MatrixError):
        parse.read(path, Anything)


@OFTEN
@given(data=st.data())
def test_no_line_of_a_sound_file_can_be_spoilt_into_a_crash(tmp_path: Path, data: st.DataObject) -> None:
    kind, sound = data.draw(st.sampled_from([(Chip, CHIP), (Model, MODEL), (CellFile, CELL)]))
    lines = sound.splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    at = data.draw(st.integers(0, len(lines[number])))
    lines[number] = lines[number][:at] + data.draw(st.one_of(WORDS, st.text(max_size=5)))
    path = tmp_path / "x.yaml"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    with contextlib.suppress(MatrixError):
        parse.read(path, kind)


def test_a_document_of_others_is_read_as_strictly() -> None:
    assert parse.plain(b"commit: 0cd3bbc6\nbackends_version: {vllm: 0.8.3}\nmodels:\n- qwen3\ncontact: ''\n", "diff.yaml") == {
        "commit": "0cd3bbc6",
        "backends_version": {"vllm": "0.8.3"},
        "models": ("qwen3",),
        "contact": "",
    }
    for data, complaint in {
        b"a: &x 1\nb: *x\n": "diff.yaml:1: anchors and aliases",
        b"a: !!python/name:os.system ''\n": "diff.yaml:1: the tag",
        b"a: 1\na: 2\n": "diff.yaml:2: a: the key is there twice",
        b"\xff": "diff.yaml: cannot be read",
        b"": "diff.yaml: is empty",
        b"[" * 60: "diff.yaml:1: ",
        b" " * (parse.SIZE_LIMIT + 1): "diff.yaml: is larger than",
    }.items():
        with pytest.raises(MatrixError) as caught:
            parse.plain(data, "diff.yaml")
        assert str(caught.value).startswith(complaint)
