"""What the text of a card claims: placeholders, scores, shares, names and versions that cannot be true, or that nobody can check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from release.publish.markdown import rows_of
from release.publish.page import Defect, Page

PLACEHOLDER: Final = re.compile(
    r"待定|待补充|\b(?:TODO|FIXME|TBD|XXX)\b|<[A-Z][A-Z0-9_]{1,40}>|<[a-z]{1,20}_[a-z_]{1,40}>|\byour_[a-z]{1,20}\b|lorem ipsum",
)
UNFILLED: Final = re.compile(
    r"\$?\{[^{}\s\"':,]{0,30}[\u4e00-\u9fff][^{}\s\"':,]{0,40}\}|<[^<>\s]{0,30}[\u4e00-\u9fff][^<>\n]{0,40}>|<(?:\.{3}|…)>"
)
"""What Chinese papers leave to be replaced, `${权重路径}`, and what nobody thought of a name for, `<...>`."""
ARGUMENT: Final = re.compile(r"<[A-Za-z][A-Za-z0-9_./-]{0,60}>")
"""What a manual writes for an argument; a shell reads it as two redirections."""
HOST: Final = re.compile(
    r"https?://(?:<[^<>\s]{1,40}>|(?:ip|host|hostname|x{2,3}|(?:your|server|host)[-_][a-z_-]{1,20})(?=[:/])|[^/\s:\"'`]{1,80}:(?:port|x{3,5})\b)",
    re.IGNORECASE,
)
HEADLINE: Final = re.compile(r"\s{0,3}={2,}\s*|.{0,200}<h[1-6][\s>].*", re.IGNORECASE)
"""A heading in its other spellings: underlined, or HTML."""
SECRET: Final = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16})\b|-BEGIN [A-Z ]{0,30}PRIVATE KEY-"
)
CLAIM: Final = re.compile(r"\b(?:FlagGems|Triton)\b")
CLAIMS: Final = re.compile(
    r"\b(?:us(?:e|es|ed|ing)|enabl(?:e|ed|es|ing)|integrat(?:ed|ion|es)|kernels?|provided)\b|采用|使用|启用|集成|算子"
)
SWITCH: Final = re.compile(
    r"\bUSE_FLAGGEMS['\"]?\s{0,4}[=:]\s{0,4}['\"]?(?:1|true|yes)\b|\bRELEASE_OPERATORS['\"]?\s{0,4}[=:]\s{0,4}['\"]?(?:ours|flaggems)\b|\bVLLM_FL_[A-Z_]{1,40}['\"]?\s{0,4}[=:]|\bflag_gems\.enable\(",
    re.IGNORECASE,
)
SHARE: Final = re.compile(r"[0-9]\s?[%％]")
CODE: Final = re.compile(r"`[^`]{0,200}`")
OPERATORS: Final = re.compile(r"\b(?:triton|kernels?|operators?|ops)\b|算子|内核", re.IGNORECASE)
DEFINITION: Final = re.compile(
    r"\bkinds? of operator|operator kinds?|\bby kind|(?:kernel|GPU|device) time|launch(?:es| count)|\bcalls\b|distinct kernel"
    r"|算子种类|耗时|调用次数|按.{1,20}计",
    re.IGNORECASE,
)
SCORES: Final = re.compile(r"metric|benchmark|评测|指标|数据集", re.IGNORECASE)
NO_SCORE: Final = re.compile(r"0(?:\.0+)?\s?%?|[-–—]+|N/?A|TBD|Evaluating|", re.IGNORECASE)
SIZE: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?[bm]", re.IGNORECASE)
OLD_SCHEMA: Final = re.compile(r"\s*(?:model_args|vllm_model|model-tag|command_line_mode|action-args)\s*:")
NEW_SCHEMA: Final = re.compile(r"\s*+(?:-\s*+)?(?:serve_id|engine_args)\s*:")
DEFAULTS: Final = re.compile(r"\s*-\s+serve\s*:\s*([A-Za-z0-9_.-]{1,80})\s*$")
SERVE_FILE: Final = re.compile(r"\b(?:serve/)?(serve_[A-Za-z0-9_.-]{1,80}|(?<=serve/)[A-Za-z0-9_.-]{1,80})\.yaml\b")
MODEL_NAME: Final = re.compile(r"\bexamples/([A-Za-z0-9_.]{2,60})|\bconfig_([A-Za-z0-9_.]{2,60})\.yaml")
NAME_LIKE: Final = re.compile(r"(?<![A-Za-z0-9.])[A-Za-z][A-Za-z0-9.]*+(?:[-_/][A-Za-z0-9.]++)*+")
IMAGE_VERSION: Final = re.compile(
    r"(?:^|[-_/:])(gems|tree|cx|scale|plugin|vllm|sglang|torch)(?:-openai)?[_:]?v?([0-9]+(?:\.[0-9]+)+)"
)
TEXT_VERSION: Final = re.compile(
    r"\b(FlagGems|FlagTree|FlagCX|FlagScale|vLLM|SGLang|PyTorch|torch)\b[\s|:*`]{1,30}(?:Version:?\s{0,4})?v?([0-9]+(?:\.[0-9]+)+)",
    re.IGNORECASE,
)
MOST_VERSIONS: Final = 20
PROMPTS: Final = ("bash", "sh", "shell", "console", "zsh")
STATE: Final = re.compile(r"\*\*(?:State: |状态：)([a-z]{1,20})")
PRODUCTS: Final = {"flaggems": "gems", "flagtree": "tree", "flagcx": "cx", "flagscale": "scale", "pytorch": "torch"}
"""What the parts of an image's name are called in a text."""


def cards(page: Page) -> Iterator[Defect]:
    """Find a file that is no card: it has no heading."""
    if not any(block.heading for block in page.blocks) and not any(HEADLINE.match(line) for _, line, _ in page.prose("prose")):
        yield Defect(1, "not-a-card", "no heading: this is no card")


def fences(page: Page) -> Iterator[Defect]:
    """Find a block of code that swallows the rest of the card."""
    for block in page.blocks:
        if not block.closed:
            yield Defect(
                max(1, block.line - 1), "unclosed-fence", "this block of code never ends: everything below it is read as code"
            )


def placeholders(page: Page) -> Iterator[Defect]:
    """Find what its author meant to replace, and what nobody should publish."""
    for number, line, block in page.prose("prose", "table", "code"):
        shell = block.kind == "code" and block.language in PROMPTS
        match = (
            PLACEHOLDER.search(line) or UNFILLED.search(line) or HOST.search(line) or (ARGUMENT.search(line) if shell else None)
        )
        if match:
            yield Defect(number, "placeholder", f"{match[0]} was never filled in")
        if SECRET.search(line):
            yield Defect(number, "secret", "a key or token stands here: withdraw it")


def switches(page: Page) -> Iterator[Defect]:
    """Find the first sentence that claims operators of a library, where no environment here sets the library's switch."""
    env = "\n".join(f"{name}={value}" for name, value in (page.fact("serve", "env") or {}).items())
    if SWITCH.search(page.code) or SWITCH.search(env):
        return
    for number, line, _ in page.prose("prose"):
        if CLAIM.search(line) and CLAIMS.search(line):
            yield Defect(
                number, "switch-missing", "FlagGems or Triton operators are claimed, and no environment here sets USE_FLAGGEMS"
            )
            return


def shares(page: Page) -> Iterator[Defect]:
    """Find a percentage of operators or kernels whose paragraph does not say a percentage of what."""
    for number, line, block in page.prose("prose", "table"):
        if SHARE.search(line) and OPERATORS.search(CODE.sub("", line)):  # a cell or a column may have triton in its name
            near = block.lines[max(0, number - block.line - 3) : number - block.line + 4]
            if not any(DEFINITION.search(other) for other in near):
                yield Defect(number, "undefined-share", "a percentage of operators: of their kinds, their calls, or their time?")


def scores(page: Page) -> Iterator[Defect]:
    """Find scores that are none, and a baseline that is another model than the candidate, in tables of benchmarks."""
    for block in page.blocks:
        if block.kind != "table":
            continue
        head: list[str] | None = None
        for number, row in rows_of(block):
            if head is None:
                if not SCORES.search(row[0]):
                    break
                head = row
                names = [_model_of(cell) for cell in row[1:] if "-" in cell]
                if len(names) > 1 and len(set(names[:2])) > 1:
                    yield Defect(number, "other-baseline", f"{names[0]} is compared with {names[1]}")
            elif any(NO_SCORE.fullmatch(cell) for cell in row[1 : len(head)]):
                yield Defect(number, "empty-score", f"{row[0][:60]} has no score")


def _model_of(name: str) -> str:
    """Return the model in a column's name such as `role: QwQ-32B-Origin`: the words up to its size, else the first."""
    words = re.split(r"[-\s]", re.split(r"[:：]", name)[-1].strip().lower())
    end = next((number for number, word in enumerate(words, 1) if SIZE.fullmatch(word)), 1)
    return "-".join(words[:end])


def schemas(page: Page) -> Iterator[Defect]:
    """Find serving files in two schemas: a release reads one of them."""
    old = next((number for number, line, _ in page.prose("code") if OLD_SCHEMA.match(line)), None)
    new = next((number for number, line, _ in page.prose("code") if NEW_SCHEMA.match(line)), None)
    if old and new:
        yield Defect(max(old, new), "mixed-schemas", f"line {min(old, new)} is in the other schema of serving files")


def names(page: Page) -> Iterator[Defect]:
    """Find configuration that names another file than the card has, and names of a model that the card never speaks of."""
    files = {match[1] for match in SERVE_FILE.finditer(page.code)}
    files |= {name.rpartition("/")[2].removesuffix(".yaml") for name in page.fact("plan", "files") or ()}
    files |= {match[1] for _, line, _ in page.prose("prose") for match in SERVE_FILE.finditer(line)}
    known = ", ".join(sorted(files))[:100]
    spoken = {
        part
        for _, line, _ in page.prose("prose", "table")
        for match in NAME_LIKE.finditer(line)
        if any(sign in "-_/0123456789" for sign in match[0])
        for part in re.split(r"[-_/.]", match[0].lower())
    }
    for number, line, _ in page.prose("code"):
        if files and (match := DEFAULTS.match(line)) and match[1] not in files:
            yield Defect(number, "config-name", f"defaults name {match[1]}, the file is {known}")
        for match in MODEL_NAME.finditer(line):
            yield from _other_model(number, match[1] or match[2], spoken)
    for command in page.commands:
        if command.runs("flagscale", "serve") and len(command.words) > 2:
            yield from _other_model(command.line, command.words[2], spoken)


def _other_model(line: int, name: str, spoken: set[str]) -> Iterator[Defect]:
    strange = [part for part in re.split(r"[-_.]", name.lower()) if part and part not in spoken]
    if strange and spoken and not name.startswith(("<", "$")):
        yield Defect(line, "mixed-models", f"{name[:60]}: the card speaks of no {', '.join(strange)[:60]}")


def versions(page: Page) -> Iterator[Defect]:
    """Find versions in the text that differ from those in the names of the images."""
    images: dict[str, set[str]] = {}
    for command in page.commands:
        if command.words[0] in ("docker", "podman", "nerdctl", "flagscale"):
            for word in command.words[1:]:
                for match in IMAGE_VERSION.finditer(word.lower()):
                    if len(images.setdefault(match[1], set())) < MOST_VERSIONS:
                        images[match[1]].add(match[2])
    if not images:
        return
    for number, line, _ in page.prose("prose", "table"):
        for match in TEXT_VERSION.finditer(line):
            name = PRODUCTS.get(match[1].lower(), match[1].lower())
            tagged = images.get(name, set())
            if tagged and not any(_same_version(match[2], other) for other in tagged):
                yield Defect(
                    number, "version-differs", f"{match[1]} {match[2]}, the image's name says {', '.join(sorted(tagged))[:60]}"
                )


def _same_version(one: str, other: str) -> bool:
    shared = min(len(one.split(".")), len(other.split(".")))
    return one.split(".")[:shared] == other.split(".")[:shared]


def states(page: Page) -> Iterator[Defect]:
    """Find a card that calls its release something else than the record does, or says nothing of it."""
    if said := page.fact("state"):
        for number, line, _ in page.prose("prose"):
            if match := STATE.search(line):
                if match[1] != said:
                    yield Defect(number, "state-differs", f"the card says {match[1]}, the record {said}")
                return
        yield Defect(1, "state-differs", f"the card does not say that the release is {said}")
