"""A card says what its release is, in two languages from one record, and nothing that a stranger writes gets out of its place."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from records import pebble, record, unbuilt

from release.builders.engines import engine_named, health_of
from release.coverage import COUNTED
from release.errors import ReleaseError, TemplateError, UsageError
from release.kernels.coverage import DEFINITIONS, INTERPRETED, LOST, RECORDED, RULES, SERVED
from release.launch import run_command
from release.matrix.check import plan_of
from release.matrix.load import Matrix
from release.publish.card import literal, render_card
from release.publish.lint import lint
from release.publish.record import IMAGE_WORD, planned
from release.templates.render import CONTROL
from release.types import JSON

Golden = Callable[[str, str], None]
LANGUAGES = ("en", "zh")
CELLS = [cell for cell, _ in Matrix().cells()]


def of_cell(cell: str) -> JSON:
    """Return the record of a cell of our matrix that is not built."""
    plan = plan_of(Matrix(), cell)
    engine = engine_named(plan.engine)
    try:
        argv = engine.command(plan)
    except ReleaseError:  # what the engine needs is unknown: the card says so
        argv = []
    command = run_command(
        plan.container,
        image=IMAGE_WORD,
        argv=argv,
        env=plan.serve.env,
        memory=plan.serve.memory,
        publish=f"127.0.0.1:{plan.serve.port}:{plan.serve.port}" if health_of(engine, plan) else "",
        weights="$PWD/weights",
        extra=("--rm",),
    )
    return planned(
        plan,
        command=command if argv else [],
        argv=argv,
        health=health_of(engine, plan),
        files=engine.files(plan),
        concerns=(),
        memory=None,
        layout=None,
    )


def code(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", card, re.DOTALL)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_card_of_what_is_only_planned_is_the_golden_one(language: str, golden: Golden) -> None:
    golden({"en": "planned.md", "zh": "planned_zh.md"}[language], render_card(unbuilt(), language))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_card_of_a_cell_that_a_vendors_card_describes_is_the_golden_one(language: str, golden: Golden) -> None:
    golden(
        {"en": "planned-qwq-32b.md", "zh": "planned-qwq-32b_zh.md"}[language],
        render_card(of_cell("cambricon/qwq-32b@bf16"), language),
    )


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_has_cards_that_the_lint_finds_nothing_in(cell: str) -> None:
    made = of_cell(cell)
    for language in LANGUAGES:
        assert lint(render_card(made, language), made) == ()
        assert lint(render_card(made, language)) == ()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("made", [unbuilt(), record(), record(state="built"), record(state="blocked")])
def test_the_lint_finds_nothing_in_our_cards(made: JSON, language: str) -> None:
    assert lint(render_card(made, language), made) == ()


def test_another_language_is_refused() -> None:
    with pytest.raises(UsageError, match=r"there is no card in 'fr'"):
        render_card(record(), "fr")


@pytest.mark.parametrize(
    ("language", "words"),
    [("en", "**State: planned.** Nothing has been built"), ("zh", "**状态：planned（计划中）。** 尚未构建")],
)
def test_the_state_comes_first(language: str, words: str) -> None:
    body = render_card(unbuilt(), language).split("---\n", 2)[2]
    title, state = [line for line in body.splitlines() if line][:2]
    assert title.startswith("# Pebble 7B")
    assert state.startswith(words)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_planned_card_promises_no_command_that_cannot_work(language: str) -> None:
    card = render_card(unbuilt(), language)
    assert "release pull" not in card
    assert [line for line in card.splitlines() if line.startswith("release build")] == [
        "release build --chip abacus --model pebble-7b --precision w8a8~native --until render"
    ]
    (start,) = [line for line in code(card, "bash") if line.startswith("docker run")]
    assert shlex.split(start.replace("\\\n", " ")) == unbuilt()["serve"]["command"]
    assert '"$IMAGE"' in start
    heading = card[: card.index(start)].rpartition("\n## ")[2].splitlines()[0]
    assert heading == {"en": "Start it, as it will be", "zh": "如何启动（构建之后）"}[language]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("made", [unbuilt(), record()])
def test_every_client_asks_where_the_server_listens_for_what_it_serves(made: JSON, language: str) -> None:
    card, port, name = render_card(made, language), made["serve"]["port"], made["serve"]["model"]
    (call,) = [shlex.split(line.replace("\\\n", " ")) for line in code(card, "bash") if line.startswith("curl")]
    assert call[1] == f"http://127.0.0.1:{port}/v1/chat/completions"
    assert json.loads(call[-1]) == {"model": name, "messages": [{"role": "user", "content": made["model"]["example"]}]}
    (program,) = code(card, "python")
    assert f'OpenAI(base_url="http://127.0.0.1:{port}/v1"' in program
    assert f'model="{name}"' in program
    compile(program, "card", "exec")
    assert f"| Base URL | `http://127.0.0.1:{port}/v1` |" in card
    assert re.search(rf"\| (Model|模型（Model）) \| `{name}` \|", card)
    assert f"`{made['plan']['context']}`" in card


def test_a_model_that_embeds_is_asked_for_embeddings() -> None:
    card = render_card(unbuilt(pebble(of={"kind": "embed"})))
    assert "http://127.0.0.1:8000/v1/embeddings" in card
    assert "client.embeddings.create" in card
    assert "chat" not in card
    assert 'pipeline_tag: "feature-extraction"' in card


def test_an_engine_that_does_not_answer_has_no_call() -> None:
    made = unbuilt()
    made["serve"]["health"] = ""
    card = render_card(made)
    assert "curl" not in card
    assert "no service for this cell" in card


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({"image": "registry.example.org/x@sha256:" + "a" * 64}, "registry.example.org/x@sha256:aaa"),
        ({"bootstrap": {"suite": "bookworm", "include": ("python3",), "epoch": 1}}, "The base is a bookworm root file system"),
        ({"unknown": "nobody has named one"}, "The base is unknown: nobody has named one"),
        (
            {"access": {"kind": "request", "name": "x:v1", "contact": "a@example.org", "note": "who you are"}},
            "| Note, and what to write | who you are |",
        ),
        (
            {"access": {"kind": "site", "name": "x:v1", "contact": "https://example.org"}},
            "| How | from the vendor's site: https://example.org |",
        ),
        ({"access": {"kind": "registry", "name": "x:v1", "contact": "https://example.org"}}, "it cannot be pinned yet"),
        (
            {"access": {"kind": "request", "name": {"unknown": "it has no name"}, "contact": "a@b.org"}},
            "| Image | unknown: it has no name |",
        ),
    ],
)
def test_the_card_says_how_to_get_the_image(base: JSON, words: str) -> None:
    card = render_card(unbuilt(pebble(base=base)))
    assert words in card
    assert ("docker pull" in card) == ("image" in base)
    render_card(unbuilt(pebble(base=base)), "zh")


def converted(*commands: tuple[str, ...], **facts: Any) -> JSON:
    weights = {"tool": "pebblequant", "commands": commands, **facts}
    return unbuilt(pebble(weights=weights))


def block(card: str, start: str) -> str:
    (found,) = [text for text in code(card, "bash") if start in text]
    return found


@pytest.mark.integration
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_commands_of_a_conversion_do_what_they_say_when_they_are_pasted(language: str) -> None:
    words = ("$LLM_PATH/convert.sh", "$DST-w8a8s", "$LLM_PATH/it's $5", "-tool", "$TOOL", "$5 & $(id) `id`", "$SRC/a$DST")
    card = render_card(converted(("bash", *words)), language)
    text = block(card, "convert.sh")
    assert '"$LLM_PATH/convert.sh"' in text
    assert '"${DST}-w8a8s"' in text
    assert [line.split("=")[0] for line in text.splitlines()[:4]] == ["SRC", "DST", "LLM_PATH", "TOOL"]
    assert text.splitlines()[2].startswith("LLM_PATH=…  # ")
    values = {"LLM_PATH": "/llm path", "TOOL": "/tool", "SRC": "/up", "DST": "/down"}
    line = text.partition('cd "$LLM_PATH"\n')[2].replace("bash ", "printf '%s\\n' ", 1)
    said = subprocess.run(["bash", "-c", line], env={**os.environ, **values}, capture_output=True, text=True, check=True).stdout
    found = ["/llm path/convert.sh", "/down-w8a8s", "/llm path/it's $5", "-tool", "/tool", "$5 & $(id) `id`", "/up/a/down"]
    assert said.splitlines() == found


@pytest.mark.parametrize("language", LANGUAGES)
def test_edits_between_the_steps_stand_between_the_commands(language: str) -> None:
    note = "Made once. The colour is set to red before the first step. Between the steps, colour in config.json becomes red."
    facts = {"note": note, "config": {"colour": "red", "size": 3}}
    card = render_card(converted(("mill", "$SRC", "$DST-raw"), ("press", "$DST-raw", "$DST"), **facts), language)
    first, second = block(card, "mill "), block(card, "press ")
    assert first.splitlines()[-1] == 'mill "$SRC" "${DST}-raw"'
    assert second.splitlines()[-1] == 'press "${DST}-raw" "$DST"'
    assert '{"colour": "red"}' in first
    assert '"$SRC/config.json"' in first
    assert '"${DST}-raw/config.json"' in second
    order = ["Made once.", "before the first step.", "mill ", "Between the steps", "press "]
    assert sorted(order, key=card.index) == order
    assert all(card.count(sentence) == 1 for sentence in note.split(". "))


@pytest.mark.integration
def test_the_line_that_edits_config_json_edits_it(tmp_path: Path) -> None:
    card = render_card(converted(("true", "$SRC"), note="Its colour is red before the first step.", config={"colour": "red"}))
    (tmp_path / "upstream").mkdir()
    (tmp_path / "upstream" / "config.json").write_text('{"colour": "blue", "size": 3}')
    both = "\n".join(text for text in code(card, "bash") if "SRC" in text)
    subprocess.run(["bash", "-euc", both], cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "upstream" / "config.json").read_text()) == {"colour": "red", "size": 3}


def test_the_card_names_the_packages_and_the_texts_that_a_conversion_wants() -> None:
    facts = {"packages": {"scipy": "1.11.4"}, "calibration": ("allenai/c4 en/0.json",), "version": {"unknown": "it asks for 3+"}}
    card = render_card(converted(("mill", "$SRC", "$DST"), **facts))
    assert "| scipy | 1.11.4 |" in card
    assert "- `allenai/c4 en/0.json`" in card
    assert "with pebblequant (version unknown: it asks for 3+).\n" in card


def test_the_card_says_what_fills_in_a_file_that_names_folders() -> None:
    card = render_card(of_cell("vastai/qwq-32b@w8a16"))
    assert "`$SRC` and `$DST` in `hf_qwq-32b_int8.yaml` stand for the folders" in card
    assert "Ready-made" not in card
    assert "$DST` in" not in render_card(unbuilt())


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("cell", ["ascend-800i-a2/gte-qwen2-7b@fp16", "ascend-800i-a2/qwen2.5-0.5b@bf16"])
def test_a_cell_whose_vendor_has_no_service_for_it_promises_none(cell: str, language: str) -> None:
    card = render_card(of_cell(cell), language)
    for word in ("curl", "openai", "AnythingLLM", "http://127.0.0.1", "--publish"):
        assert word not in card.lower()
    assert {"en": "the vendor's table has no service for this cell", "zh": "没有为该单元列出服务"}[language] in card
    assert "examples.run_pa" in card


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_port_is_promised_where_nobody_says_how_the_server_is_started(language: str) -> None:
    card = render_card(of_cell("vastai/qwq-32b@fp16"), language)
    for word in ("curl", "openai", "AnythingLLM", "127.0.0.1", "8000"):
        assert word not in card.lower()


def test_a_trial_that_the_papers_do_not_show_is_said_to_be_by_analogy() -> None:
    assert "pa_bf16 is said here by analogy" in render_card(of_cell("ascend-800i-a2/qwen3-14b@bf16"))
    assert "by analogy" not in render_card(of_cell("ascend-800i-a2/qwen3-14b@fp16"))


@pytest.mark.parametrize(
    ("cell", "front"),
    [
        ("ascend-800i-a2/qwen2-72b@bf16", {"license": "other", "license_name": "tongyi-qianwen"}),
        ("ascend-800i-a2/qwen2.5-72b@bf16", {"license": "other", "license_name": "qwen"}),
        ("ascend-800i-a2/qwen3-14b@bf16", {"license": "apache-2.0"}),
    ],
)
def test_a_licence_is_filed_as_the_hub_files_it(cell: str, front: dict[str, str]) -> None:
    made = of_cell(cell)
    data = ModelCard(render_card(made), ignore_metadata_errors=False).data.to_dict()
    assert {name: value for name, value in data.items() if name in ("license", "license_name")} == front
    repository = made["model"]["checkpoint"]["hub"]["repository"]
    link = f"https://huggingface.co/{repository}/blob/main/LICENSE" if "license_name" in front else None
    assert data.get("license_link") == link


def test_weights_are_fetched_at_their_revision_or_not_at_all() -> None:
    known = render_card(unbuilt(pebble(weights=None)))
    assert f"hf download invented/pebble --revision {'c' * 40} --local-dir weights" in known
    hub = {"repository": "invented/pebble", "revision": {"unknown": "the papers name none"}, "sites": ("modelscope",)}
    card = render_card(unbuilt(pebble(of={"checkpoint": {"hub": hub}})))
    assert "| Revision | unknown: the papers name none |" in card
    assert "download invented" not in card
    hub["revision"] = "c" * 40
    assert "modelscope download --model invented/pebble --revision" in render_card(
        unbuilt(pebble(of={"checkpoint": {"hub": hub}}))
    )


@pytest.mark.parametrize(
    ("network", "argv", "words"),
    [
        ("bridge", ["--host", "0.0.0.0"], "It listens on this machine alone."),
        ("host", ["--host", "0.0.0.0"], "It listens on every address of its host"),
        ("host", ["serve"], "the configuration says on which addresses it listens"),
    ],
)
def test_the_card_says_who_can_reach_the_server(network: str, argv: list[str], words: str) -> None:
    made = unbuilt(pebble(container={"network": network}))
    made["serve"]["argv"] = argv
    assert words in render_card(made)


def test_what_others_report_is_named_by_role_and_printed_as_they_printed_it() -> None:
    card = render_card(unbuilt())
    assert "### Reported by others, not measured here" in card
    assert "| benchmark (percent) | reported reference: Pebble-7B-Origin | reported candidate: Pebble-7B-A9 |" in card
    assert "| Counting | 79.00 | 80.02 |" in card
    assert "| Sorting | 0.608 | 0.800 |" in card
    assert "Source: the maker's card." in card
    assert "Accuracy is **measured**" not in card


def test_what_is_unknown_stands_there_with_its_reason() -> None:
    card = render_card(unbuilt())
    assert "| `sources.pebblegems.commit` | the card names a tag alone |" in card
    assert "| `host.software.AbacusRT` | no paper says it |" in card


def test_the_commands_of_a_conversion_find_their_folders() -> None:
    card = render_card(unbuilt())
    assert 'pebblequant --from "$SRC" --to "$DST"' in card
    assert "SRC=$PWD/upstream" in card


@pytest.mark.parametrize("language", LANGUAGES)
def test_hubs_can_read_the_front_matter_of_what_is_planned(language: str) -> None:
    data = ModelCard(render_card(unbuilt(), language), ignore_metadata_errors=False).data.to_dict()
    assert data["base_model"] == "invented/pebble"
    assert data["license"] == "mit"
    assert data["tags"] == ["chip:abacus", "precision:w8a8", "state:planned"]


def test_both_languages_say_the_same_figures() -> None:
    for made in (unbuilt(), record()):
        figures = [sorted(re.findall(r"\d+(?:\.\d+)?", render_card(made, language))) for language in LANGUAGES]
        missing = set(figures[0]) ^ set(figures[1])
        assert missing <= {"1", "1.0", "95"}


def test_a_record_from_before_records_kept_a_plan_still_has_a_card() -> None:
    made = record()
    del made["plan"]
    assert "**State: validated.**" in render_card(made)


def test_a_built_release_without_questions_says_so() -> None:
    made = record(state="built", verdicts=record()["verdicts"][:2])
    made["accuracy"] = {"rule": None, "candidate": None, "reference": None}
    made["pins"]["questions"] = None
    assert "Nothing has been measured here: the cell has no question set." in render_card(made)


# What strangers write

KEPT = ("state", "schema", "kind", "network", "unit")
"""What the template decides by: a record with other words there has no card."""


def poisoned(value: Any, evil: str) -> Any:
    """Return a record with the text everywhere, in the names of files and packages too."""
    if isinstance(value, dict):
        return {
            (evil if name in ("conf/serve.yaml", "serve.json", "counting", "torch", "AbacusRT") else name): (
                item if name in KEPT else poisoned(item, evil)
            )
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [poisoned(item, evil) for item in value]
    return evil if isinstance(value, str) else value


def named(made: JSON, evil: str) -> JSON:
    """Return the record with the names put back that the card looks its parts up by."""
    bad = poisoned(copy.deepcopy(made), evil)
    for good, verdict in zip(made["verdicts"], bad["verdicts"], strict=True):
        verdict["name"] = "accuracy" if good["name"] == "accuracy" else evil
    return bad


def shape(card: str) -> list[str]:
    """Return the blocks of a Markdown text after its front matter, as a parser of CommonMark with tables finds them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("\n---\n", 1)[1])
    return [token.type for token in tokens]


EVIL = (
    "</details><script>alert(1)</script> | x |\n| a | b |\n# Validated",
    *(
        "# State: validated",
        "```\n</details>",
        "~~~",
        "- x",
        "1. x",
        "12) x",
        "> x",
        "| a | b |",
        "---",
        "===",
        "<!-- ",
        "    x",
        "`",
        "``` ```",
    ),
    *(
        "\\",
        "a\\|b",
        "[x]: http://example.org",
        "&lt;script>",
        "\u2028",
        "\ud800x",
        "\x00x",
        "---\nlicense: apache-2.0",
        "'",
        '"',
        "$(id)",
    ),
    *(
        "\ufeffx",
        "\uffffx",
        "a: b",
        "{{ 1 }}",
        "{% raw %}",
        "x\r\n\r\n# y",
        "@[",
        "*",
        "_",
        "+ x",
        "| |\n|-|",
        "<details>",
        "\tx",
        "]]>",
    ),
)


def visible(text: str) -> bool:
    return bool(CONTROL.sub(" ", text).strip())


@settings(max_examples=60)
@given(
    st.sampled_from(EVIL).filter(visible) | st.text().filter(visible) | st.text(alphabet="|\\<>&`~#-\n =*[]:1.").filter(visible)
)
@example("# Validated")
@example("``````\n```")
def test_no_text_of_a_stranger_changes_what_the_card_is_made_of(evil: str) -> None:
    for made in (unbuilt(), record()):
        for language in LANGUAGES:
            card = render_card(named(made, evil), language)
            card.encode()
            assert shape(card) == shape(render_card(named(made, "plain"), language))
            front = yaml.safe_load(card.split("\n---\n", 1)[0].removeprefix("---\n"))
            assert set(front) >= {"license", "language", "tags"}
            assert all(isinstance(value, str | list) for value in front.values())
            outside = re.sub(r"(?ms)^(`{3,})[a-z]*\n.*?\n\1$", "", card.split("\n---\n", 1)[1])
            assert set(re.findall(r"<[a-zA-Z/!?]+", outside)) <= {"<details", "<summary", "</summary", "</details"}


@given(st.text())
def test_a_literal_is_the_same_text_in_json_and_in_python(text: str) -> None:
    assert json.loads(literal(text)) == text
    assert eval(literal(text), {}) == text
    literal(text).encode()
    assert len(literal(text).splitlines()) == 1


def test_a_state_that_nobody_knows_has_no_card() -> None:
    with pytest.raises(TemplateError):
        render_card(record(state="perfect"))


WAIVED = {
    **{
        "validator": "consistency/scoring",
        "benchmark": None,
        "bound": None,
        "reason": "a kernel is being fixed",
        "owner": "someone",
    },
    **{"issue": "#42", "expires": "2026-12-31", "outcome": "applied"},
}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_waiver_stands_on_the_card_with_what_the_verdict_would_have_been(language: str) -> None:
    made = record(waivers=[WAIVED], state="built")
    verdict = next(each for each in made["verdicts"] if each["name"] == "consistency/scoring")
    verdict |= {
        "status": "SKIPPED",
        "reason": "would have been DIFFERENT (FAILED) without this waiver: a kernel is being fixed",
        "figures": {"finding": "DIFFERENT", "waiver": WAIVED},
    }
    text = render_card(made, language)
    assert "would have been DIFFERENT (FAILED) without this waiver" in text
    assert "| consistency/scoring | **applied** | – | a kernel is being fixed | someone, #42 | 2026-12-31 |" in text
    assert "consistency/scoring" not in render_card(record(), language)


def _measured(completed: int) -> dict[str, Any]:
    latency = {"mean": 41.0, "p50": 40.0, "p90": 60.0, "p99": 80.0}
    run = {
        **{
            "seconds": 2.5,
            "completed": completed,
            "failed": 0,
            "input-tokens": 1,
            "output-tokens": 1,
            "requests-per-second": 40.0,
        },
        **{"output-tokens-per-second": 2560.0, "goodput": None, "ttft": latency, "tpot": latency, "itl": None, "e2el": latency},
    }
    runs = [run, {**run, "output-tokens-per-second": 2400.0}, {**run, "output-tokens-per-second": 2600.0}]
    return {
        **{"tool": "vllm bench serve", "version": "vllm 1", "prefix-cache": "off", "slo": None},
        "machine": {"processor": "EPYC", "cores": 2, "device": None, "devices": None},
        "points": [{"input-tokens": 128, "output-tokens": 64, "concurrency": 8, "requests": completed, "runs": runs}],
    }


@pytest.mark.parametrize(("completed", "tail"), [(100, "40.0 / 60.0"), (1000, "40.0 / 60.0 / 80.0")])
def test_what_was_measured_stands_on_the_card_and_a_tail_only_with_requests_enough(completed: int, tail: str) -> None:
    text = render_card(record(performance=_measured(completed)))
    assert f"| 128 + 64 | 8 | 2560 [2400, 2600] | 40.00 | {tail} | {tail} |  | {tail} | – | 0 of {3 * completed} |" in text
    assert "### How fast" in text
    assert "### How fast" not in render_card(record())
    assert "性能" in render_card(record(performance=_measured(completed)), "zh")


COVERED: dict[str, Any] = {
    "counted": "kernels of a device",
    "rules": RULES,
    "shares": [
        {"by": "kinds", "share": 0.25, "triton": 5, "total": 20, "definition": DEFINITIONS[True]["kinds"]},
        {"by": "launches", "share": 0.702, "triton": 702, "total": 1000, "definition": DEFINITIONS[True]["launches"]},
        {"by": "time", "share": None, "triton": 0.0, "total": 0.0, "definition": DEFINITIONS[True]["time"]},
    ],
    "recorded": {
        "shares": [{"by": "kinds", "share": 1.0, "triton": 1, "total": 1, "definition": RECORDED["kinds"]}],
        "calls": [{"operator": "rms-norm", "library": "ours | theirs", "calls": 12}],
    },
    "asked": {"questions": 16, "in-flight": 8, "max-tokens": 64, "answered-tokens": 321},
}


@pytest.mark.parametrize(("language", "title"), [("en", "Which share runs in Triton"), ("zh", "Triton 的占比")])
def test_a_share_of_triton_stands_on_the_card_with_its_definition_or_not_at_all(language: str, title: str) -> None:
    bare = render_card(record(), language)
    assert title not in bare and "Triton" not in bare
    card = render_card(record(coverage=COVERED), language)
    assert title in card
    lines = card.splitlines()
    rows = lines[next(number for number, line in enumerate(lines) if line.startswith("| Triton |")) + 2 :]
    assert [re.sub(r"\s+", " ", row.split("|")[1]).strip() for row in rows[:2]] == ["25.0 %", "70.2 %"]
    assert "%" not in rows[2], "nothing observed is no share of nothing"
    for each in re.findall(r"^\| *[\d.]+ % \|.*$", card, re.MULTILINE):
        assert len(each.split("|")[4].strip()) > 10, f"a share without a definition: {each}"
    assert "| rms-norm | ours &#124; theirs | 12 |" in card, "what a record says gets out of no cell"
    assert lint(card) == lint(bare), "a share with a definition is no new defect"


def test_a_chinese_card_says_in_chinese_what_every_share_counts() -> None:
    definitions = [*DEFINITIONS[True].values(), *DEFINITIONS[False].values(), *RECORDED.values(), SERVED]
    shares: list[dict[str, Any]] = [
        {"by": "kinds, by record", "share": 0.5, "triton": 1, "total": 2, "definition": each} for each in definitions
    ]
    for number, reason in enumerate((INTERPRETED, LOST)):
        shares[number] |= {"share": None, "reason": reason}
    for counted in COUNTED:
        card = render_card(record(coverage={**COVERED, "counted": counted, "shares": shares}), "zh")
        assert not [word for word in (counted, RULES, *definitions, INTERPRETED, LOST) if word in card]
        assert card.count("| 算子种类（按记录） |") == len(definitions)


@pytest.mark.parametrize(("language", "word"), [("en", "not told"), ("zh", "不予给出")])
def test_a_share_that_says_nothing_is_withheld_with_the_reason_and_without_its_figures(language: str, word: str) -> None:
    time = {
        "by": "time",
        "share": None,
        "triton": 5193600.0,
        "total": 5425400.0,
        "definition": "all",
        "reason": "because | of it",
    }
    card = render_card(record(coverage={**COVERED, "shares": [time], "unrecorded": ["aten::mm", "aten::bmm"]}), language)
    assert f"| {word} |" in card and "because &#124; of it" in card and "5193" not in card and "5425" not in card
    assert "aten::mm, aten::bmm" in card


def test_a_card_without_recorded_calls_speaks_of_no_plugin() -> None:
    card = render_card(record(coverage={**COVERED, "recorded": None}))
    assert "Which share runs in Triton" in card and "release-kernels" not in card
