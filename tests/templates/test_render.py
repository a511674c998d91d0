"""No value breaks out of the place it is written to, and every number of a card is the record's."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st
from records import digest, record

from release.builders.image import dockerfile
from release.errors import TemplateError
from release.publish.card import render_card
from release.templates import render as rendering
from release.templates.render import docker_exec, docker_quoted, docker_word, markdown_cell, prose, render, shell_line, sources

Golden = Callable[[str, str], None]
HOSTILE = (
    *(
        '1.0"\nRUN echo',
        "$HOME",
        "${HOME:-x}",
        "`id`",
        "$(id)",
        "a\\",
        "a\\\\",
        '\\"',
        'a" b="c',
        "a\\\nb",
        "\r",
        "#x",
        "<<EOF",
        "'",
    ),
    *("", " ", "  a  ", "é", "\u00a0", "\u2028", "\x00", "\ud800", '"', "\\", "$", "\\$", "%s", "{{ 1 }}", "{% raw %}", "-- --"),
)


def instructions(text: str) -> list[str]:
    """Return the instructions of a Dockerfile as the classic parser finds them: comments out, lines that end in a backslash joined."""
    joined, found = "", []
    for line in text.split("\n"):
        if line.lstrip().startswith("#"):
            continue
        if match := re.fullmatch(r"(.*)\\[ \t]*", line):
            joined += match[1]
            continue
        if (joined + line).strip():
            found.append((joined + line).strip())
        joined = ""
    return found


def pairs(text: str) -> dict[str, str]:
    """Return the pairs of `name="value" …` as the classic builder reads them (buildkit: parseWords, then the shell lexer).

    Between double quotes a backslash escapes a quote, a dollar and itself; a bare dollar would be expanded, and is an error here.
    """
    found, at = {}, 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        name = re.compile(r"[^\s=\"'$\\]+").match(text, at)
        assert name, f"no name at {text[at:]!r}"
        assert text[name.end() : name.end() + 2] == '="', f"no value at {text[at:]!r}"
        at, value = name.end() + 2, ""
        while text[at] != '"':
            assert text[at] != "$", "this would be expanded"
            if text[at] == "\\" and text[at + 1] in '"$\\':
                at += 1
            value += text[at]
            at += 1
        found[name[0]] = value
        at += 1
    return found


def label(value: str) -> str:
    return f"FROM a\nLABEL x={docker_quoted(value)} \\\n    last={docker_quoted('1')}\nUSER 1"


@given(st.text() | st.sampled_from(HOSTILE) | st.text(alphabet="\"\\$`'\n =#{}a"))
@example('1.0"\nRUN echo')
@example("a\\")
def test_any_text_is_refused_or_comes_back_as_it_was(value: str) -> None:
    try:
        text = label(value)
    except TemplateError:
        assert re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", value)
        return
    assert text.encode()
    found = instructions(text)
    assert [line.split()[0] for line in found] == ["FROM", "LABEL", "USER"]
    assert pairs(found[1].removeprefix("LABEL")) == {"x": value, "last": "1"}


@pytest.mark.parametrize("value", ["$HOME", "${HOME}", "$(id)", "`id`", "a\\", "a\\\\", 'a" b="c', "\\$HOME", "'", "#x", " ", ""])
def test_nothing_is_expanded_and_nothing_ends_early(value: str) -> None:
    assert pairs(instructions(label(value))[1].removeprefix("LABEL"))["x"] == value


@pytest.mark.parametrize(
    "value", ['1.0"\nRUN echo', "a\nb", "a\rb", "\x00", "\x1b[31m", "\x85", "\u2028", "\u2029", "\x7f", "\udcff"]
)
def test_what_cannot_stand_on_one_line_is_refused(value: str) -> None:
    with pytest.raises(TemplateError, match="has a control character"):
        docker_quoted(value)
    with pytest.raises(TemplateError, match="has a control character"):
        docker_exec(["a", value])


@pytest.mark.parametrize(
    "value", ["", " ", "a b", "a\n", "$x", "a;b", "-x", "--flag", "a'b", 'a"b', "a\\b", "#a", "a#b", "../x", "é"]
)
def test_what_is_not_one_plain_word_is_refused_unquoted(value: str) -> None:
    with pytest.raises(TemplateError, match="cannot stand unquoted"):
        docker_word(value)


@pytest.mark.parametrize(
    "value", ["a", "a@sha256:" + "0" * 64, "registry.example.org:5000/a/b:1", "pip-26.0-py3-none-any.whl", "org.x.y"]
)
def test_a_plain_word_stays_as_it_is(value: str) -> None:
    assert docker_word(value) == value


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])), min_size=1))
def test_an_argv_in_exec_form_is_json(argv: list[str]) -> None:
    text = docker_exec(argv)
    assert json.loads(text) == argv
    assert "\n" not in text


WORDS = st.lists(st.text(alphabet=st.characters(exclude_characters="\x00\n\\", exclude_categories=["Cs"])), min_size=1)


@given(
    WORDS
    | st.lists(st.sampled_from(["--rm", "--env", "A=b c", "-d", "$PWD/x", "$HOME", "it's", "", "--x", "$PWD/$(id)"]), min_size=1)
)
def test_a_shell_line_says_the_same_argv(argv: list[str]) -> None:
    text = shell_line(argv)
    assert shlex.split(text.replace(" \\\n  ", " ")) == argv


def test_a_shell_line_breaks_before_it_grows_long_and_keeps_a_flag_with_its_value() -> None:
    argv = [
        "docker",
        "run",
        "--rm",
        *(word for n in range(20) for word in ("--env", f"NAME{n}=value{n}")),
        "image",
        "serve",
        "-x",
    ]
    lines = shell_line(argv).split("\n")
    assert len(lines) > 3
    assert all(len(line) <= 104 for line in lines)
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert not any(line.removesuffix(" \\").endswith("--env") for line in lines)


def test_only_the_folder_is_left_to_the_shell() -> None:
    assert shell_line(["a", "$PWD/weights:/model:ro"]) == 'a "$PWD/weights:/model:ro"'
    assert shell_line(["a", "$PWD/$(id)"]) == "a '$PWD/$(id)'"
    assert shell_line(["a", "$PWD"]) == "a '$PWD'"
    assert shell_line(["a", "$HOME/x"]) == "a '$HOME/x'"


def test_declared_variables_are_filled_in_wherever_they_stand_and_nothing_else_is() -> None:
    line = shell_line(
        ["a", "$DST-x", "$SRC/y", "$LOW$TOOL", "$TOOL", "x$TOOL!", "$TOOLS", "$(id)$TOOL"], variables=("TOOL", "SRC", "DST")
    )
    assert line == """a "${DST}-x" "$SRC/y" '$LOW'"${TOOL}" "$TOOL" x"${TOOL}"'!' '$TOOLS' '$(id)'"${TOOL}\""""


@pytest.mark.integration
def test_a_real_shell_reads_the_same_argv() -> None:
    argv = [
        *(word for word in HOSTILE if "\x00" not in word and "\ud800" not in word),
        "--env",
        "a\nb",
        "x" * 90,
        "--rm",
        "y\\\nz",
    ]
    line = shell_line(["printf", "%s\\0", *argv])
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == argv


@given(st.text() | st.text(alphabet="|\\<>&\n`ab "))
def test_a_cell_of_a_table_stays_one_cell(value: str) -> None:
    text = markdown_cell(value)
    assert not re.search(r"[|<\\\x00-\x1f\x7f-\x9f\u2028\u2029]", text)
    assert len(text.splitlines()) <= 1


def test_a_cell_shows_what_it_was_given() -> None:
    assert markdown_cell("a|b") == "a&#124;b"
    assert markdown_cell("<script>x</script>") == "&lt;script>x&lt;/script>"
    assert markdown_cell("a\nb\tc") == "a b c"
    assert markdown_cell("a &lt; b") == "a &amp;lt; b"
    assert markdown_cell("\\|") == "&#92;&#124;"
    assert markdown_cell(7) == "7"


def test_prose_holds_no_html_and_stays_in_its_paragraph() -> None:
    assert prose("inside <think> tags\n\n# no & heading") == "inside &lt;think> tags  # no &amp; heading"


def test_a_name_that_is_not_given_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"template Dockerfile\.vllm\.j2: 'base' is undefined"):
        render("Dockerfile.vllm.j2", {})


@pytest.mark.parametrize("name", ["none.j2", "../pyproject.toml", "cards/../../pyproject.toml", "/etc/passwd", ""])
def test_a_template_that_is_none_of_ours_is_refused(name: str) -> None:
    with pytest.raises(TemplateError, match="template "):
        render(name, {})


def test_a_value_is_text_and_no_template() -> None:
    labels = {"a": "{{ 1 + 1 }}", "b": "{% for x in y %}"}
    text = dockerfile("Dockerfile.vllm.j2", base="base", wheels=[{"name": "pip", "file": "pip.whl"}], labels=labels)
    assert '"{{ 1 + 1 }}"' in text


def test_the_text_of_templates_is_there_for_keys() -> None:
    found = sources("Dockerfile.vllm.j2", "cards/card.md.j2")
    assert found["Dockerfile.vllm.j2"] == (rendering.FOLDER / "Dockerfile.vllm.j2").read_text()


LABELS = {
    "org.opencontainers.image.title": "vllm for abacus",
    "org.opencontainers.image.version": '1.0" \\ $HOME `id`',
    "org.release.source.vllm-abacus.tree": "b" * 40,
}
PIP = {"name": "pip", "file": "pip-26.0-py3-none-any.whl"}


def test_the_dockerfile_is_the_golden_one(golden: Golden) -> None:
    golden("Dockerfile.vllm", dockerfile("Dockerfile.vllm.j2", base="release-base:abc", wheels=[PIP], labels=LABELS))


def test_the_dockerfile_has_the_labels_that_were_asked_for_and_no_other_instruction() -> None:
    found = instructions(dockerfile("Dockerfile.vllm.j2", base="release-base:abc", wheels=[PIP], labels=LABELS))
    assert [line.split()[0] for line in found] == ["FROM", "COPY", "RUN", "ENV", "LABEL", "USER"]
    assert pairs(found[4].removeprefix("LABEL")) == LABELS
    assert found[5].split()[1].split(":")[0] not in ("0", "root")
    assert "--no-index" in found[2]
    assert "--require-hashes" in found[2]


@pytest.mark.parametrize("base", ["a b", "a\nRUN id", "$x", ""])
def test_a_base_that_is_not_one_word_is_refused(base: str) -> None:
    with pytest.raises(TemplateError):
        dockerfile("Dockerfile.vllm.j2", base=base, wheels=[PIP], labels=LABELS)


@pytest.mark.parametrize("name", ['a"b', "a b", "a\nb", "a=b c", ""])
def test_a_label_whose_name_is_not_one_word_is_refused(name: str) -> None:
    with pytest.raises(TemplateError):
        dockerfile("Dockerfile.vllm.j2", base="a", wheels=[PIP], labels={name: "1"})


# The card


def tables(card: str) -> list[list[list[str]]]:
    """Return the tables of a Markdown text as rows of cells, the heads and rulers left out."""
    found: list[list[list[str]]] = []
    inside = False
    for line in card.splitlines():
        if line.startswith("|"):
            if not inside:
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip().strip("|").split("|")])
        inside = line.startswith("|")
    return [table[2:] for table in found]


def test_the_card_is_the_golden_one(golden: Golden) -> None:
    golden("card.md", render_card(record()))
    golden("card_zh.md", render_card(record(), "zh"))


def test_the_front_matter_is_what_model_hubs_read() -> None:
    data = ModelCard(render_card(record()), ignore_metadata_errors=False).data.to_dict()
    assert data["license"] == "mit"
    assert data["language"] == ["en", "no"]
    assert data["library_name"] == "vllm"
    assert data["pipeline_tag"] == "text-generation"
    assert data["tags"] == ["chip:abacus", "precision:bf16", "state:validated"]


def test_every_number_of_the_cards_tables_is_the_records() -> None:
    made = record()
    facts, results, layers, checks, _, _, _, built, checkpoint, weights, wheels, evidence, _ = tables(render_card(made))
    assert ["Image", f"`{made['image']['manifest']['digest']}`"] in facts
    assert ["Image id", f"`{made['image']['config']}`"] in facts
    assert results == [
        [
            f"{side} `{name}`",
            str(arm["n"]),
            str(arm["correct"]),
            f"{100 * arm['correct'] / arm['n']:.2f} %",
            f"{100 * arm['interval'][0]:.2f} to {100 * arm['interval'][1]:.2f} %",
            str(arm["failed"]),
            str(arm["truncated"]),
        ]
        for side, name in (("candidate", made["cell"]), ("reference", made["reference"]["cell"]))
        for arm in [made["accuracy"][side]]
    ]
    consistency = [verdict for verdict in made["verdicts"] if verdict["name"].startswith("consistency/")]
    assert [row[2:] for row in layers] == [[v["measured"], v["wanted"], str(v["figures"]["seconds"])] for v in consistency]
    assert len(checks) == 2
    assert ["Dockerfile", f"`{made['pins']['dockerfile']}`"] in built
    assert ["Patch", f"`0001-version.patch` `{digest('5')}`"] in built
    assert checkpoint == [[name, f"`{sha}`"] for name, sha in made["pins"]["checkpoint"].items()]
    assert weights == [[name, str(file["bytes"]), f"`{file['sha256']}`"] for name, file in made["weights"]["files"].items()]
    assert [row[0] for row in wheels] == ["click", "plain", "vllm-abacus"]
    assert {row[2].strip("`") for row in wheels} == {digest("7"), digest("6"), digest("3")}
    assert evidence == [[f"`{file['path']}`", str(file["bytes"]), f"`{file['sha256']}`"] for file in made["evidence"]]


def test_the_card_prints_the_very_command_that_was_run() -> None:
    made = record()
    card = render_card(made)
    (line,) = [block for block in re.findall(r"```bash\n(.*?)```", card, re.DOTALL) if block.startswith("docker")]
    assert shlex.split(line.replace("\\\n", " ")) == made["serve"]["command"]


def test_the_question_of_the_card_is_json_in_one_shell_word() -> None:
    (line,) = re.findall(r"```bash\n(curl .*?)```", render_card(record()), re.DOTALL)
    words = shlex.split(line.replace("\\\n", " "))
    assert words[1] == "http://127.0.0.1:9000/v1/chat/completions"
    question = json.loads(words[-1])
    assert question["model"] == "pebble-7b"
    assert question["messages"] == [{"role": "user", "content": record()["model"]["example"]}]


def test_no_html_and_no_row_of_a_stranger_gets_into_the_card() -> None:
    evil = "</details><script>alert(1)</script> | x |\n| a | b |\n# Validated"
    made = record()
    made["chip"].update(name=evil, vendor=evil)
    made["model"].update(name=evil, description=evil, license=evil)
    made["verdicts"] = [{**verdict, "measured": evil, "wanted": evil, "reason": evil} for verdict in made["verdicts"]]
    made["image"].update(compressor=evil)
    made["pins"]["checkpoint"] = {evil: digest("1"), "config.json": digest("2")}
    for wheel in (*made["pins"]["wheels"], *made["pins"]["sources"]):
        wheel.update(name=evil, version=evil)
    card = render_card(made).split("---\n", 2)[2]
    assert "<script>" not in card
    assert "\n# Validated" not in card
    assert [len(table) for table in tables(card)] == [len(table) for table in tables(render_card(record()))]
    assert card.count("</details>") == render_card(record()).count("</details>")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("validated", "Every check passed"),
        ("built", "**not validated**"),
        ("blocked", "do not use it"),
        ("planned", "Nothing has been built"),
    ],
)
def test_a_card_says_what_the_release_is(state: str, words: str) -> None:
    card = render_card(record(state=state))
    assert f"**State: {state}.** " in card
    assert words in card
    assert f"state:{state}" in card.split("---\n")[1]


def test_a_cell_without_a_reference_has_a_card_too() -> None:
    made = record(reference=None)
    made["accuracy"]["reference"] = None
    skipped = {
        "name": "accuracy",
        "status": "SKIPPED",
        "measured": "no comparison",
        "wanted": "a reference",
        "reason": "None.",
        "figures": {},
    }
    made["verdicts"][-1] = skipped
    card = render_card(made)
    assert "**SKIPPED** (SKIPPED): no comparison" in card
    assert len(tables(card)[1]) == 1


@pytest.mark.parametrize("gone", ["image", "weights", "serve", "pins", "accuracy"])
def test_a_record_that_lacks_something_has_no_card(gone: str) -> None:
    made: dict[str, Any] = record()
    made[gone] = {}
    with pytest.raises((TemplateError, KeyError)):
        render_card(made)
