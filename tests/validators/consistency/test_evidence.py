"""Evidence survives a crash, belongs to one question, and is read only when it is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from release.errors import FetchError, MatrixError, StageError
from release.validators.consistency.evidence import Log, header_of, read_log
from release.validators.consistency.prompts import read_prompts

ASKED = {"layer": "x", "tokens": 3}
GOOD = '{"id":"a","kind":"chat","messages":[{"role":"user","content":"hi"}]}'


def written(path: Path, *keys: str, finish: bool = True) -> Path:
    with Log(path, ASKED) as log:
        for key in keys:
            log.append(key, {"value": key})
        if finish:
            log.finish()
    return path


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path / "a" / "x.jsonl", "one", "two")
    assert [one["value"] for one in read_log(path)] == ["one", "two"] and header_of(path) == ASKED


def test_a_torn_last_line_is_cut_off_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", "one", finish=False)
    path.write_bytes(path.read_bytes() + b'{"key":"two","val')
    with pytest.raises(StageError, match="damaged"):
        list(read_log(path))
    with Log(path, ASKED) as log:
        assert log.done == {"one"} and not log.finished
        log.append("two", {"value": "two"})
        log.finish()
    assert len(list(read_log(path))) == 2


def test_a_finished_file_says_so_and_an_unfinished_one_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", "one", finish=False)
    with pytest.raises(StageError, match="not finished"):
        list(read_log(path))
    with Log(written(path), ASKED) as log:
        assert log.finished and log.done == {"one"}


def test_another_question_starts_anew(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", "one")
    with Log(path, {**ASKED, "tokens": 4}) as log:
        assert log.done == set() and not log.finished
    assert header_of(path)["tokens"] == 4


def test_two_checks_do_not_write_one_file(tmp_path: Path) -> None:
    with Log(tmp_path / "x.jsonl", ASKED), pytest.raises(StageError, match="another check"), Log(tmp_path / "x.jsonl", ASKED):
        pass


@pytest.mark.parametrize("line", ['{"key": NaN}', "[]", "", '{"value": 1}', '{"key": 7}'])
def test_a_damaged_line_is_refused(tmp_path: Path, line: str) -> None:
    path = written(tmp_path / "x.jsonl", "one", finish=False)
    path.write_text(path.read_text() + line + '\n{"key":"two"}\n')
    with pytest.raises(StageError, match=r"line 3 is damaged|no key"), Log(path, ASKED):
        pass


def test_a_record_too_many_or_too_few_is_no_finished_file(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", "one", "two")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1], lines[3]]))
    with pytest.raises(StageError, match="not finished"):
        list(read_log(path))
    with pytest.raises(StageError, match="cannot be read"):
        header_of(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(StageError, match="says nowhere"):
        header_of(tmp_path / "empty.jsonl")


def digest(path: Path) -> str:
    import hashlib

    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "lines",
    [
        GOOD + "\n" + GOOD,
        GOOD.replace('"id":"a"', '"id":"a b"'),
        GOOD.replace('"chat"', '"Chat"'),
        GOOD.replace("}]}", '}],"text":"x"}'),
        '{"id":"a","kind":"text"}',
        '{"id":"a","kind":"text","text":""}',
        GOOD.replace("user", "wizard"),
        GOOD.replace('"kind"', '"sort"'),
        "",
        "{",
    ],
)
def test_a_malformed_prompt_names_its_line(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(lines + "\n")
    with pytest.raises(MatrixError, match=r"prompts.jsonl:[12]"):
        read_prompts(path, digest(path))


def test_prompts_are_pinned_by_digest(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(GOOD + '\n{"id":"b","kind":"text","text":"go on"}\n')
    assert [one.kind for one in read_prompts(path, digest(path))] == ["chat", "text"]
    with pytest.raises(FetchError, match="the matrix says"):
        read_prompts(path, "sha256:" + "0" * 64)
    with pytest.raises(FetchError, match="cannot be read"):
        read_prompts(tmp_path / "none", digest(path))
