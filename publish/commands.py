"""What the commands of a card do when they are pasted: what they fetch, what they start, where they ask, and whether it all meets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from release.publish.markdown import Command, rows_of
from release.publish.page import Defect, Page

COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
VARIABLE: Final = re.compile(r"\$\{?[A-Za-z_]")
PINNED: Final = re.compile(r"(?:.*@)?sha256:[0-9a-f]{64}")
ENGINES: Final = ("docker", "podman", "nerdctl")
SWITCHES: Final = (
    *("--rm", "--init", "--detach", "--interactive", "--tty", "--privileged", "--read-only", "--publish-all", "--quiet"),
    *("--no-healthcheck", "--oom-kill-disable", "--sig-proxy", "--disable-content-trust"),
)
"""Flags of `docker run` that take no value (docker run reference); every other one takes the word after it."""
SHORT_SWITCHES: Final = frozenset("ditPq")
NUMBER: Final = re.compile(r"-[0-9]+")
REPOSITORY_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")
INDEX_FLAGS: Final = (
    "-i",
    "--index-url",
    "--extra-index-url",
    "--find-links",
    "-f",
    "--trusted-host",
    "--index",
    "--default-index",
)
CLIENT: Final = re.compile(r"https?://[^/\s\"'|:]{1,100}:([0-9]{2,5})(?=/v1)")
PORT: Final = re.compile(r"[\s{,]*+(?:-\s*+)?[\"']?port[\"']?\s*:\s*[\"']?([0-9]{2,5})\b")
SERVED: Final = re.compile(r"\s*[\"']?(?:served[_-]model[_-]name|modelName|model_name)[\"']?\s*:\s*[\"']?([^\s\"'#,]{1,200})")
WEIGHTS: Final = re.compile(r"\s*[\"']?(?:model|model-tag)[\"']?\s*:\s*[\"']?(/[^\s\"'#,]{1,300})")
CALLED: Final = re.compile(r"[\"']model[\"']\s*:\s*[\"']([^\"']{1,200})[\"']")
CALLED_IN_PYTHON: Final = re.compile(r"\bmodel\s*=\s*[\"']([^\"']{1,200})[\"']")
STARTED: Final = ("serve", "--model", "--model-path")
"""What stands before the model in the command of a server."""
NO_SERVERS: Final = ("flagscale", "modelscope", "hf", "huggingface-cli", "curl", "git", "cd", "vim", "cat")
"""Commands that serve nothing, or (flagscale) a configuration."""
DATA: Final = ("-d", "--data", "--data-raw", "--json")
MOST_FOLDERS: Final = 20
MAKERS: Final = (
    "tar",
    "unzip",
    "wget",
    "modelscope",
    "hf",
    "huggingface-cli",
    "release",
    "python",
    "python3",
    "bash",
    "sh",
    "cp",
    "mv",
)
"""Commands that may make folders whose names they do not show."""


@dataclass(frozen=True)
class Container:
    """What a `docker run` line says: its image, what is published and mounted, which flags swallowed the next one, the command inside."""

    image: str
    published: tuple[tuple[str, str], ...]
    mounts: tuple[tuple[str, str], ...]
    swallowed: tuple[tuple[str, str], ...]


def container_of(words: tuple[str, ...]) -> Container:
    """Return the words after `docker run` as docker reads them: a flag that takes a value takes the next word, whatever it is."""
    published, mounts, swallowed = [], [], []
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "--":
        flag, _, value = words[at].partition("=")
        at += 1
        if flag in SWITCHES or (not flag.startswith("--") and set(flag[1:]) <= SHORT_SWITCHES):
            continue
        if "=" not in words[at - 1]:
            if not flag.startswith("--") and len(flag) > 2 and flag[1] not in SHORT_SWITCHES:
                flag, value = flag[:2], flag[2:]
            elif at < len(words):
                value = words[at]
                at += 1
                if value.startswith("-") and not NUMBER.fullmatch(value):
                    swallowed.append((flag, value))
        if flag in ("-p", "--publish"):
            host, _, inside = value.rpartition(":")
            published.append((host.rpartition(":")[2] or inside, inside.partition("/")[0]))
        if flag in ("-v", "--volume"):
            host, _, inside = value.partition(":")
            mounts.append((host.rstrip("/"), inside.partition(":")[0].rstrip("/")))
    image = words[at] if at < len(words) else ""
    return Container(image, tuple(published), tuple(mounts), tuple(swallowed))


def containers(page: Page) -> Iterator[tuple[Command, Container]]:
    """Yield every `docker run` of a page, read."""
    for command in page.commands:
        if command.words[0] in ENGINES and command.words[1:2] == ("run",):
            yield command, container_of(command.words[2:])


def clones(page: Page) -> Iterator[Defect]:
    """Find clones that no commit follows, and checkouts of what is no full commit."""
    cloned: Command | None = None
    for command in page.commands:
        if not command.runs("git"):
            continue
        words = command.words
        if cloned and (words[1:2] == ("clone",) or command.block != cloned.block):
            yield _unpinned(cloned)
            cloned = None
        if words[1:2] == ("clone",):
            branch = next((word for flag, word in pairwise(words) if flag in ("-b", "--branch")), None)
            if branch:
                yield Defect(command.line, "mutable-checkout", f"{branch[:80]} is a branch or a tag: it may move")
            elif not any(flag == "--revision" or COMMIT.fullmatch(flag.removeprefix("--revision=")) for flag in words):
                cloned = command
        elif words[1:2] in (("checkout",), ("switch",), ("reset",)):
            names = [word for word in words[2:] if not word.startswith("-")]
            if names and "--" not in words and not COMMIT.fullmatch(names[0]) and not VARIABLE.match(names[0]):
                yield Defect(command.line, "mutable-checkout", f"{names[0][:80]} is no full commit")
            cloned = None
    if cloned:
        yield _unpinned(cloned)


def _unpinned(command: Command) -> Defect:
    return Defect(command.line, "unpinned-clone", f"{' '.join(command.words)[:120]}: no commit is checked out")


def images(page: Page) -> Iterator[Defect]:
    """Find images that are not named by digest, and flags of `docker run` that take the next flag for their value."""
    for command in page.commands:
        words = command.words
        if words[0] in ENGINES and words[1:2] == ("pull",):
            yield from _image(command, next((word for word in words[2:] if not word.startswith("-")), ""))
        if words[0] == "flagscale" and "--image" in words[:-1]:
            yield from _image(command, words[words.index("--image") + 1])
    for command, container in containers(page):
        yield from _image(command, container.image)
        for flag, value in container.swallowed:
            yield Defect(command.line, "swallowed-flag", f"{flag} takes {value[:60]} for its value, and that flag is lost")


def _image(command: Command, name: str) -> Iterator[Defect]:
    if not name or name.startswith("<") or VARIABLE.match(name) or PINNED.fullmatch(name):
        return
    host, slash, rest = name.partition("/")
    wrong = ["no digest"] if ":" in (rest or host) else ["neither tag nor digest"]
    if not slash or not re.search(r"[.:]|^localhost$", host):
        wrong.append("no registry")
    yield Defect(command.line, "unpinned-image", f"{name[:120]} names {' and '.join(wrong)}")


def checkpoints(page: Page) -> Iterator[Defect]:
    """Find checkpoints by owner and name where the tool clones an address."""
    for command in page.commands:
        for flag, value in pairwise(command.words):
            if flag == "--ckpt" and REPOSITORY_NAME.fullmatch(value):
                yield Defect(command.line, "checkpoint-address", f"{value[:120]} is no address: the tool hands it to git clone")


def folders(page: Page) -> Iterator[Defect]:
    """Find `cd` into a folder that one is in already, or that nothing made, by following the commands as they would be pasted."""
    here: list[str] = []
    made: set[str] = set()
    known = True
    for command in page.commands:
        words = command.words
        if words[0] == "git" and words[1:2] == ("clone",):
            plain = [word for word in words[2:] if not word.startswith("-")]
            made.add((plain[-1] if plain else "").rstrip("/").rpartition("/")[2].removesuffix(".git"))
        elif words[0] == "mkdir":
            made.update(word.partition("/")[0] for word in words[1:] if not word.startswith("-"))
        elif words[0] in ENGINES and words[1:2] in (("run",), ("exec",)):
            here, known = [], False
        elif words[0] in MAKERS:
            known = False
        elif words[0] == "cd" and len(words) > 1:
            target = words[1].rstrip("/")
            if target.startswith(("/", "~", "<", "$")) or not target:
                here, known = [], False
                continue
            parts = [part for part in target.split("/") if part not in ("", ".")]
            if parts and parts[0] != "..":
                if parts[0] in here and parts[0] not in made:
                    yield Defect(command.line, "wrong-folder", f"cd {target[:100]}: one is below {parts[0][:60]} already")
                    here = []
                elif not here and known and parts[0] not in made:
                    yield Defect(command.line, "wrong-folder", f"cd {target[:100]}: nothing before it makes {parts[0][:60]}")
            for part in parts:
                here = here[:-1] if part == ".." else [*here, part][-40:]
            made.discard(parts[0] if parts else "")


def ports(page: Page) -> Iterator[Defect]:
    """Find clients that ask at another port than the server listens on, or than the container publishes."""
    inside = {match[1] for _, line, _ in page.prose("code") if (match := PORT.match(line))}
    inside |= {value for command in page.commands for value in values_of(command, "--port") if value.isdigit()}
    if said := page.fact("serve", "port"):
        inside.add(str(said))
    published = [pair for _, container in containers(page) for pair in container.published]
    outside = inside | {host for host, port in published if port in inside}
    listening = _some(inside)
    for command, container in containers(page):
        for _, port in container.published:
            if inside and port.isdigit() and port not in inside:
                yield Defect(command.line, "port-differs", f"port {port} is published, the server listens on {listening}")
    for number, line, _ in page.prose("prose", "table", "code"):
        for match in CLIENT.finditer(line):
            if outside and match[1] not in outside:
                yield Defect(number, "port-differs", f"clients ask at {match[1]}, the server listens on {listening}")
    if said and len(inside) > 1:
        yield Defect(1, "port-differs", f"the record says port {said}, the card {_some(inside - {str(said)})}")


def served_names(page: Page) -> Iterator[Defect]:
    """Find calls of a model by another name than the one it is served by."""
    served = {match[1] for _, line, _ in page.prose("code") if (match := SERVED.match(line))}
    served |= {value for command in page.commands for value in values_of(command, "--served-model-name")}
    if not served:
        served = {path for _, path in _served_paths(page)} | set(_served_by_default(page))
    if said := page.fact("serve", "model"):
        served.add(str(said))
    if not served:
        for number, name in _called(page, over_http=True):
            yield Defect(
                number, "name-unset", f"clients ask for {name[:80]}, a name that no server and no configuration here sets"
            )
        return
    known = _some(served)
    for number, name in _called(page):
        if name not in served:
            yield Defect(number, "name-differs", f"clients ask for {name[:80]}, served is {known}")
    if said and len(served) > 1:
        yield Defect(1, "name-differs", f"the record says {said}, the card {_some(served - {str(said)})}")


def _served_by_default(page: Page) -> Iterator[str]:
    """Yield the models by whose own names servers serve them, where they are told no other."""
    for command in page.commands:
        if command.words[0] not in NO_SERVERS:
            yield from (value for flag in STARTED for value in values_of(command, flag))


def _called(page: Page, *, over_http: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the names that clients ask for; `over_http`: but for programs that show no client of a server."""
    for command in page.commands:
        if command.words[0] == "curl":
            for value in (value for flag in DATA for value in values_of(command, flag)):
                yield from ((command.line, match[1]) for match in CALLED.finditer(value))
    for block in page.blocks:
        client = block.kind == "code" and any("openai" in line for line in block.lines[:40])
        if client or (block.kind == "code" and block.language == "python" and not over_http):
            yield from ((number, match[1]) for number, line in block.numbered() for match in CALLED_IN_PYTHON.finditer(line))
        rows = list(rows_of(block)) if block.kind == "table" else []
        if any(row[0] == "Base URL" for _, row in rows):
            yield from (
                (number, row[1])
                for number, row in rows
                if len(row) > 1
                and re.search(r"model|模型", row[0], re.IGNORECASE)
                and not re.search(r"context|window|长度", row[0])
            )


def weights(page: Page) -> Iterator[Defect]:
    """Find servers that read weights from another place than they were put, as far as the mounts of the containers say."""
    put: dict[str, None] = {}
    for command in page.commands:
        if command.words[0] in ("modelscope", "hf", "huggingface-cli", "flagscale"):
            for flag in ("--local_dir", "--local-dir", "--ckpt-path"):
                for value in values_of(command, flag):
                    put[value.rstrip("/") if value.startswith(("/", "$", "<")) else f"$PWD/{value.rstrip('/')}"] = None
    put = dict.fromkeys(list(put)[:MOST_FOLDERS])
    if not put or any(f"SRC={place}" in page.code for place in put):
        return  # nothing to compare; or they are converted before they are served
    mounts = [mount for _, container in containers(page) for mount in container.mounts]
    there = {inside + place[len(host) :] for place in put for host, inside in mounts if (place + "/").startswith(host + "/")}
    known = _some(put) + (", which no volume brings into the container" if mounts and not there else "")
    there |= set() if mounts else set(put)
    for number, path in _served_paths(page):
        if path.rstrip("/") not in there:
            same = path.rstrip("/") in put
            yield Defect(
                number,
                "path-differs",
                f"no volume brings {path[:80]} into the container: weights are put there and read there, on two sides of it"
                if same
                else f"weights are read from {path[:80]}, they are put into {known}",
            )


def _served_paths(page: Page) -> Iterator[tuple[int, str]]:
    yield from ((number, match[1]) for number, line, _ in page.prose("code") if (match := WEIGHTS.match(line)))
    for command in page.commands:
        for flag, value in pairwise(command.words):
            if flag in STARTED and value.startswith("/"):
                yield command.line, value


def indexes(page: Page) -> Iterator[Defect]:
    """Find package indexes that a command names: whose they are, and whether they are there, is the reader's own configuration."""
    for command in page.commands:
        if "pip" in command.words[:4] or command.words[0] in ("pip3", "uv"):
            flag = next((word.partition("=")[0] for word in command.words if word.partition("=")[0] in INDEX_FLAGS), None)
            if flag:
                yield Defect(command.line, "package-index", f"{flag}: the user's own pip configuration decides")


def values_of(command: Command, flag: str) -> Iterator[str]:
    """Yield the values of a flag, however it is joined to them."""
    for at, word in enumerate(command.words):
        if word == flag and at + 1 < len(command.words):
            yield command.words[at + 1]
        elif word.startswith(flag + "="):
            yield word[len(flag) + 1 :]


def _some(values: Iterable[str]) -> str:
    return ", ".join(sorted(values))[:120]
