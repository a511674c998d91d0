"""The lint finds the defects that published cards have, each from a few lines like theirs, and finds none in what is right."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from records import record, unbuilt

from release.publish.card import render_card
from release.publish.commands import container_of
from release.publish.lint import LONGEST_LINE, LONGEST_TEXT, MEANINGS, Defect, lint
from release.publish.markdown import blocks_of, commands_of

COMMIT = "ae85925798358d95050773dfa66680efdb0c2b28"
PINNED = "registry.example.org/pebbles/serve@sha256:" + "a" * 64


def shell(*lines: str) -> str:
    return "\n".join(("# Pebble-7B", "", "```bash", *lines, "```", ""))


def yaml(*lines: str) -> str:
    return "\n".join(("# Pebble-7B", "", "```yaml", *lines, "```", ""))


def rules(text: str, made: dict[str, Any] | None = None) -> list[str]:
    return [defect.rule for defect in lint(text, made)]


CURL = 'curl http://host:9010/v1/chat/completions -d \'{"model": "pebble-7b"}\''
SERVE = "vllm serve /model --port 9010 --served-model-name pebble-7b"

WRONG_AND_RIGHT = [
    # 1: a clone that nothing pins
    (
        "unpinned-clone",
        shell("git clone https://example.org/scale.git", "cd scale", "pip install ."),
        shell(f"git clone https://example.org/scale.git\ncd scale\ngit checkout {COMMIT}"),
    ),
    (
        "unpinned-clone",
        shell("git clone https://a.org/a.git", "git clone https://a.org/b.git", f"git checkout {COMMIT}"),
        shell(f"git clone --revision={COMMIT} https://a.org/a.git"),
    ),
    # 2: what may move
    (
        "mutable-checkout",
        shell("git clone -b deepseek_release_cambricon https://example.org/gems.git"),
        shell(f"git clone https://a.org/a.git\ngit reset --hard {COMMIT}"),
    ),
    (
        "mutable-checkout",
        shell("git clone https://a.org/gems.git", "cd gems", "git checkout deepseek_release_cambricon"),
        shell("git checkout -- file.txt"),
    ),
    ("mutable-checkout", shell("git checkout 57637057"), shell(f"git checkout {COMMIT}")),
    # 3: images
    ("unpinned-image", shell("docker run -it zhiyuan_vllm:v0.2 /bin/bash"), shell(f"docker run -it {PINNED} /bin/bash")),
    ("unpinned-image", shell("docker pull registry.example.org/pebbles/serve"), shell(f"docker pull {PINNED}")),
    ("unpinned-image", shell("docker pull registry.example.org/pebbles/serve:v1"), shell("docker run --rm sha256:" + "b" * 64)),
    (
        "unpinned-image",
        shell("flagscale pull --image serve:v1 --ckpt https://example.org/x"),
        shell('docker run --rm "$IMAGE" serve'),
    ),
    # 4: a flag that takes the next one
    (
        "swallowed-flag",
        shell(f"docker run -e --net=host --pid=host {PINNED}"),
        shell(f"docker run -e A=b --net=host --ulimit memlock=-1 {PINNED}"),
    ),
    (
        "swallowed-flag",
        shell(f"docker run --rm --volume --privileged {PINNED}"),
        shell(f"docker run --rm --memory-swap -1 {PINNED}"),
    ),
    # 5: a checkpoint by its name
    (
        "checkpoint-address",
        shell("flagscale pull --ckpt deepseek-ai/DeepSeek-R1 --ckpt-path /nfs"),
        shell("flagscale pull --ckpt https://example.org/DeepSeek-R1"),
    ),
    # 6: a claim without the switch
    (
        "switch-missing",
        "Most kernels are provided by FlagGems.\n",
        "Most kernels are provided by FlagGems.\n" + yaml("envs:", "  USE_FLAGGEMS: 1"),
    ),
    (
        "switch-missing",
        "We use Triton kernels.\n" + yaml("envs:", "  USE_FLAGGEMS: 0"),
        "We use Triton kernels.\n" + shell(f"docker run --env USE_FLAGGEMS=true {PINNED}"),
    ),
    ("switch-missing", "本模型使用 FlagGems 算子库。\n", "# 资料自相矛盾之处\n\n| 据称使用 FlagGems | 从未打开 |\n"),
    # 7: folders
    (
        "wrong-folder",
        shell(
            f"git clone https://a.org/FlagScale.git\ncd FlagScale\ngit checkout {COMMIT}\ncd build/FlagScale/vllm",
            "cd ../",
            "cd FlagScale/build/FlagScale/examples",
        ),
        shell(f"git clone https://a.org/a.git\ncd a\ngit checkout {COMMIT}", "cd b"),
    ),
    ("wrong-folder", shell("cd FlagScale"), shell("mkdir -p FlagScale/x", "cd FlagScale/x", "cd ../..")),
    # 8: the name under `defaults`
    (
        "config-name",
        yaml("defaults:", "  - serve: serve_pebble_7b") + "The file is `serve/pebble_7b.yaml`.\n",
        yaml("defaults:", "  - serve: pebble_7b") + "The file is `serve/pebble_7b.yaml`.\n",
    ),
    # 9: names of another model
    ("mixed-models", shell("flagscale serve qwq_32b"), shell("flagscale serve pebble_7b")),
    (
        "mixed-models",
        shell("vim examples/qwq_32b/conf/config_qwq_32b.yaml"),
        shell("vim examples/pebble_7b/conf/config_pebble_7b.yaml"),
    ),
    # 10: two schemas
    (
        "mixed-schemas",
        yaml("model_args:", "  vllm_model:", "    model-tag: /m") + yaml("- serve_id: vllm_model"),
        yaml("- serve_id: vllm_model", "  engine_args:"),
    ),
    # 11: ports, names, folders of weights
    ("port-differs", shell(SERVE, CURL.replace("9010", "8000")), shell(SERVE, CURL)),
    (
        "port-differs",
        yaml("- serve_id: vllm_model", "  engine_args:", "    port: 8001") + "Base URL: http://host:8000/v1\n",
        yaml("runner:", "  ssh_port: 22", "port: 8000") + "Base URL: http://host:8000/v1\n",
    ),
    (
        "port-differs",
        shell(f"docker run -p 9000:9000 {PINNED} {SERVE}"),
        shell(f"docker run -p 127.0.0.1:80:9010/tcp {PINNED} {SERVE}", CURL.replace("9010", "80")),
    ),
    ("name-differs", shell(SERVE, CURL.replace("pebble-7b", "pebble-7b-flagos")), shell(SERVE, CURL)),
    (
        "name-differs",
        shell(SERVE) + shell("import openai", 'model = "Pebble-7B"'),
        shell(SERVE) + shell("import openai", 'model = "pebble-7b"'),
    ),
    (
        "name-differs",
        shell(SERVE) + "\n| s | v |\n|---|---|\n| Base URL | http://host:9010/v1 |\n| Model | `x` |\n",
        shell(SERVE)
        + "\n| s | v |\n|---|---|\n| Base URL | http://host:9010/v1 |\n| Model | `pebble-7b` |\n| Model context window | 64 |\n",
    ),
    (
        "path-differs",
        shell("modelscope download --model a/b --local_dir /share/b", "vllm serve /models/b"),
        shell("modelscope download --model a/b --local_dir /share/b", "vllm serve /share/b"),
    ),
    (
        "path-differs",
        shell("hf download a/b --local-dir /share/b", f"docker run -v /home:/home {PINNED} vllm serve /share/b"),
        shell("hf download a/b --local-dir /share/b", f"docker run -v /share:/m {PINNED} vllm serve /m/b"),
    ),
    # 12: scores that are none, baselines of others, text to be replaced
    (
        "empty-score",
        "| Metrics | A-7B-H100 | A-7B-X |\n|---|---|---|\n| GPQA_Diamond | 0 | 0 |\n",
        "| Metrics | A-7B-H100 | A-7B-X |\n|---|---|---|\n| GPQA | 60.1 | 59.0 |\n",
    ),
    (
        "empty-score",
        "| 评测指标 | A-7B-H100 | A-7B-X |\n|---|---|---|\n| Aime24 | - | 34.0 |\n",
        "| | failed |\n|---|---|\n| candidate | 0 |\n",
    ),
    (
        "other-baseline",
        "| Metrics | Qwen3.8-2.7B-Origin | Qwen3.8-27B-X |\n|---|---|---|\n| A | 1.5 | 2.5 |\n",
        "| Metrics | ours: Qwen3.8-27B-Origin | theirs: Qwen3.8-27B-X |\n|---|---|---|\n| A | 1.5 | 2.5 |\n",
    ),
    ("placeholder", "新模型介绍,待定....\n", "模型介绍。\n"),
    ("placeholder", shell("docker pull <IMAGE>"), "It thinks inside &lt;think> tags.<br>\n"),
    ("placeholder", 'openai.base_url = "http://<server_ip>:9010/v1/"\n', "<details><summary>x</summary>\n\n</details>\n"),
    # 13: a share of what?
    (
        "undefined-share",
        "We use Triton-implemented operation kernels, approximately 70%, to run it.\n",
        "70 % of the kinds of operators ran as Triton kernels (70 of 100).\n" + yaml("USE_FLAGGEMS: 1"),
    ),
    ("undefined-share", "约 70% 的算子由 Triton 实现。\n", "正确率 70 %。\n"),
    ("undefined-share", "70 % of `wall` kernels are Triton.\n", "`cpu/tiny@bf16~triton` had 95.8 % right.\n"),
    # 14: versions
    (
        "version-differs",
        shell("docker pull registry.example.org/pebble-gems5.0.2-tree0.6.0-vllm0.20.2:202608050000") + "| FlagTree | 0.6.1 |\n",
        shell("docker pull registry.example.org/pebble-gems5.0.2-tree0.6.1:202608050000")
        + "| FlagTree | Version: 0.6.1 |\n| FlagGems | 5.0 |\n",
    ),
    (
        "version-differs",
        shell("docker pull registry.example.org/vllm/vllm-openai:v0.8.3") + "It runs vLLM 0.9.0.\n",
        shell("docker pull registry.example.org/vllm/vllm-openai:v0.8.3") + "It runs vLLM 0.8.3.\n",
    ),
    ("placeholder", "把权重放到{浮点权重路径}下。\n", '请求为 {"content": "什么是深度学习？"}。\n'),
    ("placeholder", shell("bash convert.sh -src ${浮点权重路径}"), shell('bash convert.sh -src "${SRC}"')),
    ("placeholder", "Set <...> to your folder.\n", "It thinks inside <think> tags, and then ...\n"),
    ("placeholder", shell("serve --model <path/to/model>"), shell("git commit --author 'A B <a@example.org>'")),
    ("placeholder", shell("curl http://ip:9010/v1/models"), shell("curl http://127.0.0.1:9010/v1/models")),
    ("placeholder", "Base URL: http://<ip>:9010/v1\n", "Base URL: <http://127.0.0.1:9010/v1>\n"),
    ("placeholder", "Base URL: http://your-server:9010/v1\n", "Base URL: http://ipv6.example.org:9010/v1\n"),
    ("placeholder", "Base URL: http://10.0.0.7:PORT/v1\n", "Base URL: http://10.0.0.7:9010/v1/reports\n"),
    # 15: what is no card, or swallows its own end
    ("not-a-card", "just words\n", "Pebble-7B\n=========\n"),
    ("not-a-card", "", '<h1 align="center">Pebble-7B</h1>\n'),
    ("not-a-card", "\0\x01\ufffd # x\n", "# Pebble-7B\n"),
    ("not-a-card", "```bash\n# a comment\n```\n", "text\n\n## Pebble-7B\n"),
    ("unclosed-fence", "# a\n\n```bash\nls\n", "# a\n\n```bash\nls\n```"),
    ("unclosed-fence", "# a\n\n````bash\nls\n```\n", "# a\n\n~~~\n```\n~~~\n"),
    # 16: what is taken as it comes
    ("unpinned-package", shell("pip install modelscope"), shell("pip install modelscope==1.2.3")),
    ("unpinned-package", shell("python3 -m pip install -U 'torch>=2.1'"), shell("pip install --no-deps ./ -r requirements.txt")),
    ("unpinned-package", shell("uv pip install vllm[audio]"), shell("uv pip install 'vllm[audio]==0.9.1' a.whl -e .")),
    (
        "unpinned-package",
        shell("pip install git+https://example.org/a.git"),
        shell(f"pip install git+https://example.org/a.git@{COMMIT}"),
    ),
    ("unpinned-package", shell("pip install torch==2.*"), shell('pip install "$WHEEL" --index-url https://index.example.org')),
    (
        "mutable-link",
        "Weights: https://example.org/a/b/tree/main\n",
        f"Weights: https://example.org/a/b/tree/{COMMIT}; see https://example.org/a/blob/main/README.md\n",
    ),
    ("mutable-link", "| [msit](https://example.org/a/msit/tree/master/x) |\n", "| https://example.org/a/tree/mainly |\n"),
    (
        "mutable-link",
        shell("wget https://example.org/a/raw/main/x.sh"),
        shell(f"wget https://example.org/a/raw/{COMMIT}/x.sh"),
    ),
    (
        "unexpanded-variable",
        shell("bash '$LLM_PATH/convert.sh' -dst '$DST-w8a8s'"),
        shell('bash "$LLM_PATH/convert.sh" -dst "${DST}-w8a8s"'),
    ),
    (
        "unexpanded-variable",
        shell("docker run -v '${PWD}/weights:/model' " + PINNED),
        shell(f"docker run {PINNED} bash -c 'cd $HOME && ls'", "awk '{print $NF}' a", "echo it's $HOME, isn't it"),
    ),
    (
        "name-unset",
        shell("flagscale serve pebble_7b", CURL),
        shell("vllm serve example/pebble-7b", CURL.replace("pebble-7b", "example/pebble-7b")),
    ),
    (
        "name-unset",
        shell("modelscope download --model example/pebble-7b", CURL.replace("pebble-7b", "example/pebble-7b")),
        '# a\n```json\n{\n  "modelName": "pebble-7b"\n}\n```\n' + shell(CURL),
    ),
    (
        "name-unset",
        '# a\n```python\nimport openai\nclient.chat(model="pebble-7b")\n```\n',
        '# a\n```python\nfrom vllm import LLM\nLLM(model="example/pebble-7b")\n```\n',
    ),
    # and what is nobody's business
    ("package-index", shell("pip install cryptography -i https://index.example.org/simple/"), shell("pip install cryptography")),
    ("package-index", shell("python3 -m pip install --index-url=https://index.example.org x"), shell("pip install -e .")),
    ("secret", "The token is hf_" + "a" * 34 + "\n", "The token comes from the environment.\n"),
]


@pytest.mark.parametrize(("rule", "wrong", "right"), WRONG_AND_RIGHT)
def test_a_known_defect_is_found_and_what_is_right_is_not(rule: str, wrong: str, right: str) -> None:
    assert rule in rules(wrong)
    assert rule not in rules(right)


def test_every_rule_has_a_case() -> None:
    elsewhere = {"too-long", "state-differs"}
    assert {rule for rule, _, _ in WRONG_AND_RIGHT} | elsewhere == MEANINGS.keys()


def test_weights_that_no_volume_brings_into_the_container_are_said_to_be_on_two_sides_of_it() -> None:
    text = shell("hf download a/b --local-dir /share/b", f"docker run -v /home:/home {PINNED} vllm serve /share/b")
    (message,) = [defect.message for defect in lint(text) if defect.rule == "path-differs"]
    assert message == "no volume brings /share/b into the container: weights are put there and read there, on two sides of it"


def test_a_file_that_is_no_text_is_not_looked_into() -> None:
    assert rules("\x7fELF\0git clone https://a.org/a\n# x\n") == ["not-a-card"]


def test_a_block_that_never_ends_is_named_by_the_line_where_it_begins() -> None:
    assert lint("# a\n\n```yaml\nx: 1\n") == (
        Defect(3, "unclosed-fence", "this block of code never ends: everything below it is read as code"),
    )


def test_a_defect_names_its_line() -> None:
    text = shell(
        "# a comment with an apostrophe: it's here",
        "git clone \\",
        "  https://example.org/a.git",
        "",
        "docker run -e --net=host \\",
        "  x:1",
    )
    found = {(defect.line, defect.rule) for defect in lint(text)}
    assert found == {(5, "unpinned-clone"), (8, "swallowed-flag"), (8, "unpinned-image")}


def test_a_card_that_is_a_defect_from_end_to_end_is_listed_in_order() -> None:
    text = shell(
        "docker pull <IMAGE>", "git clone https://example.org/a.git", "docker run -e --net=host a:1", "flagscale pull --ckpt a/b"
    )
    found = lint(text)
    assert list(found) == sorted(found)
    assert [defect.rule for defect in found] == [
        "placeholder",
        "unpinned-clone",
        "swallowed-flag",
        "unpinned-image",
        "checkpoint-address",
    ]


# With the record


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("127.0.0.1:9000/v1", "127.0.0.1:9001/v1", "port-differs"),
        ("--served-model-name pebble-7b", "--served-model-name pebble", "name-differs"),
        ('model="pebble-7b"', 'model="pebble"', "name-differs"),
        ("validated", "built", "state-differs"),
        ("sha256:" + "f" * 64 + " vllm", "pebble:latest vllm", "unpinned-image"),
        ("docker run --rm", "docker run --env --rm", "swallowed-flag"),
    ],
)
def test_a_card_that_somebody_changed_no_longer_agrees_with_its_record(old: str, new: str, rule: str, language: str) -> None:
    card = render_card(record(), language)
    assert old in card
    assert lint(card, record()) == ()
    assert rule in rules(card.replace(old, new), record())


def test_a_card_that_does_not_say_its_state_is_told_so() -> None:
    assert "state-differs" in rules("# Pebble-7B\n", record())


def test_the_switch_may_stand_in_the_record() -> None:
    made = unbuilt()
    claim = "**State: planned.** It is served with FlagGems kernels enabled.\n"
    assert "switch-missing" in rules(claim, made)
    made["serve"]["env"] = {"USE_FLAGGEMS": "1"}
    assert "switch-missing" not in rules(claim, made)


# How docker reads a line


@pytest.mark.parametrize(
    ("line", "image"),
    [
        ("--rm -it a", "a"),
        ("-itd --name x a b", "a"),
        ("-e A=b -v /x:/y a", "a"),
        ("--privileged=true --shm-size=32G a", "a"),
        ("-p80:80 a", "a"),
        ("--gpus all --ulimit memlock=-1 a -e b", "a"),
        ("-e --net=host a", "a"),
        ("--rm", ""),
    ],
)
def test_the_image_is_the_first_word_that_no_flag_takes(line: str, image: str) -> None:
    assert container_of(tuple(line.split())).image == image


def test_what_is_published_and_mounted_is_read() -> None:
    found = container_of(("-p", "127.0.0.1:80:9000", "--publish=81:9001/tcp", "-v", "/a:/b:ro", "--volume", "$PWD/w:/model", "x"))
    assert found.published == (("80", "9000"), ("81", "9001"))
    assert found.mounts == (("/a", "/b"), ("$PWD/w", "/model"))


# Text of any kind


@settings(max_examples=150)
@given(
    st.text()
    | st.text(alphabet="`~|#-\\'\"\n $<>=:/ab01%（")
    | st.lists(st.sampled_from([text for _, text, _ in WRONG_AND_RIGHT])).map("".join)
)
@example("```")
@example("---\n")
@example("````\n```\n````")
def test_any_text_gets_an_answer_in_order_and_within_its_lines(text: str) -> None:
    found = lint(text)
    assert list(found) == sorted(set(found))
    assert all(1 <= defect.line <= text.count("\n") + 1 and defect.rule in MEANINGS for defect in found)


HUGE = {
    "a fence that nobody closes": "```bash\n" + "git clone https://a.org/a\n" * 40_000,
    "fences in fences": "```\n~~~\n" * 60_000,
    "a deep table": "|" + " a |" * 200_000 + "\n",
    "many rows": "| Metrics | A-7B-x | B-8B-y |\n" + "| a | 0 | - |\n" * 60_000,
    "quotes that never end": "```bash\n" + "x '\"" * 200_000 + "\n```",
    "backslashes": "```bash\n" + '"\\"' * 300_000,
    "spaces": "```yaml\n" + (" " * 19_000 + "x\n") * 50,
    "one long word": "```bash\n" + "a" * 1_000_000,
    "names": "a-" * 9_000 + "\n" + ("a" * 19_000 + "\n") * 50,
    "ports": "```bash\n" + "".join(f"vllm serve --port {n}\n" for n in range(30_000)) + "curl http://a:1/v1\n" * 20_000,
    "names of models": "```bash\n"
    + "".join(f"x --served-model-name m{n}\n" for n in range(20_000))
    + 'curl -d \'{"model": "x"}\'\n' * 20_000,
    "downloads": "```bash\n"
    + "hf download a/b --local-dir /x\n" * 20_000
    + "docker run -v /a:/b x\n" * 10_000
    + "vllm serve /y\n" * 10_000,
    "different downloads": "```bash\n"
    + "".join(f"hf download a/b --local-dir /x{n}\n" for n in range(30_000))
    + "vllm serve /y\n" * 20_000,
    "front matter that never ends": "---\n" * 300_000,
    "versions": "```bash\ndocker pull " + "-".join(f"vllm0.{n}" for n in range(2_000)) + "\n```\n" + "vLLM 9.9 " * 1_000,
    "secrets": "sk-" + "-" * 19_000 + "\n" + "sk-" * 6_000,
    "addresses": "http://" * 2_800 + "\n" + "https://a:" * 1_900,
    "openai": "```python\n" + ("openai " * 2_000 + "\n") * 40 + "x\n" * 200_000,
    "folders": "```bash\n" + "cd a/b/c\n" * 60_000,
    "packages": "```bash\n" + "pip install " + "a " * 9_000 + "\n" + "pip install a\n" * 30_000,
    "requirements": "```bash\npip install " + "a" * 19_000 + "\npip install a[" + "b" * 19_000,
    "links": "https://" * 2_400 + "\n" + ("https://a.org/" + "tree/" * 3_000 + "\n") * 20,
    "literals": "```bash\n" + "x '$A' '$B'\n" * 40_000,
    "one command of literals": "```bash\nx " + "'$a' " * 3_900,
    "braces": "{" * 19_000 + "\n" + "{a" * 9_000 + "\n" + "<a" * 9_000 + "中" * 19_000 + "\n" + "{" + "中" * 19_000,
    "hosts": "http://your-" * 1_500 + "\n" + "https://" + "a" * 19_000,
    "html headings": ("<h" * 9_000 + "\n") * 20,
    "percent": ("triton 70 % " * 1_600 + "\n") * 80,
}


@pytest.mark.parametrize("what", HUGE)
def test_the_work_grows_with_the_text_and_no_faster(what: str) -> None:
    """Count steps of the interpreter, not seconds: a text of twice the length may take twice as many, and a little."""
    text = HUGE[what][: LONGEST_TEXT // 16]
    assert steps(f"{text}\n{text}") <= 2.6 * steps(text) + 20_000


def steps(text: str) -> int:
    """Return how many function calls and returns a lint takes, the built-in ones too."""
    count = 0

    def tick(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(tick)
    try:
        lint(text)
    finally:
        sys.setprofile(None)
    return count


def test_a_text_that_is_too_long_is_not_read() -> None:
    assert rules("a\n" * LONGEST_TEXT) == ["too-long"]


def test_a_line_that_is_too_long_is_cut_and_said_so() -> None:
    assert lint("# a\n" + "b" * (LONGEST_LINE + 1)) == (
        Defect(2, "too-long", f"{LONGEST_LINE + 1} characters in one line: checked up to {LONGEST_LINE}"),
    )


# How Markdown is read


def test_a_fence_is_closed_by_one_that_is_as_long() -> None:
    blocks = blocks_of("````yaml\n```\na: 1\n````\nprose\n")
    assert [(block.kind, block.line, block.lines) for block in blocks] == [
        ("code", 2, ("```", "a: 1")),
        ("prose", 5, ("prose", "")),
    ]


def test_front_matter_that_never_ends_hides_nothing() -> None:
    assert "placeholder" in rules("---\nlicense: mit\n\nTODO\n")
    assert "placeholder" not in rules("---\nlicense: TODO\n---\n")


def test_commands_are_words_as_a_shell_sees_them() -> None:
    text = "```bash\n$ sudo docker run \\-v /a:/b \\\n  'x y' # a comment\nA=1 B='2 3' git clone x; cd x && ls\nit's\nif [ x ]; then\n```\n"
    found = [command.words for command in commands_of(blocks_of(text))]
    assert found[:4] == [("docker", "run", "-v", "/a:/b", "x y"), ("git", "clone", "x"), ("cd", "x"), ("ls",)]
