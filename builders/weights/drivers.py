"""Calibrated formats by the tools made for them: the exact command, run in the tool's own environment, its words kept, its result checked.

A tool is found by `RELEASE_<NAME>`, the Python interpreter of the environment that it is installed in (`RELEASE_MSMODELSLIM`,
`RELEASE_VAMC`, `RELEASE_LLMCOMPRESSOR`), else on the PATH. Nothing is made in its place where it is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from release.builders.weights.check import check, gather, refuse
from release.builders.weights.config import DTYPE_KEYS, NAME, document, edited, read_config
from release.builders.weights.recipe import Recipe
from release.errors import StageError
from release.oci import link_or_copy
from release.processes import find, run
from release.progress import Line
from release.templates.render import render
from release.types import JSON

VARIABLE: Final = re.compile(r"\$([A-Z][A-Z0-9_]*)")
ASK: Final = """
import importlib.metadata as m, sys
there = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in m.distributions() if d.metadata["Name"]}
print("\\n".join(there.get(name.lower().replace("_", "-"), "-") for name in sys.argv[1:]))
"""
"""What a tool's own interpreter is asked: the versions of distributions in it, a line each."""
PART: Final = re.compile(r"part\d+-of-\d+")
"""Folders of a checkpoint that was cut for tensor parallel devices."""
PICKED: Final = (".json", ".py", ".txt", ".jinja", ".model", ".tiktoken", ".md")
"""Suffixes of the small files that lie beside weights, and that tools forget."""
OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
"""A library that we run is given all that it needs, and fetches nothing."""
SCRIPT: Final = "oneshot.py"
SETTINGS: Final = "oneshot.json"


@dataclass(frozen=True)
class Tool:
    """A tool that makes weights: its Python distribution (empty: none), the program to look for, what to do to have it.

    `compiled` says that its result is no checkpoint but something for one runtime alone. `script` is a template of ours that runs the
    tool's library where it has no program.
    """

    name: str
    distribution: str
    program: str
    install: str
    compiled: bool = False
    script: str = ""

    @property
    def variable(self) -> str:
        """The environment variable that names its interpreter."""
        return "RELEASE_" + re.sub("[^A-Z0-9]", "", self.name.upper())


TOOLS: Final[Mapping[str, Tool]] = {
    tool.name: tool
    for tool in (
        Tool(
            "msmodelslim",
            "msmodelslim",
            "msmodelslim",
            "install msmodelslim as its README says (repository msit), beside torch, and torch-npu where its recipe runs on devices",
        ),
        Tool("vamc", "", "vamc", "install vamc of the vendor's software package, as its guide says", compiled=True),
        Tool(
            "llm-compressor",
            "llmcompressor",
            "",
            "python -m venv VENV && VENV/bin/pip install llmcompressor datasets",
            script="oneshot.py.j2",
        ),
    )
}
"""The tools by name."""


@dataclass(frozen=True)
class Presence:
    """Whether a tool can be run here: its environment (PATH and all) and version, or why not and what to do."""

    tool: Tool
    version: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    missing: str = ""
    next_step: str = ""


def presence(recipe: Recipe) -> Presence:
    """Return whether the recipe's tool is here in the wanted version, with all that its commands name. Starts the tool's interpreter."""
    tool = TOOLS.get(recipe.tool)
    if tool is None:
        tool = Tool(recipe.tool, "", recipe.commands[0][0] if recipe.commands else recipe.tool, f"install {recipe.tool}")
    python = os.environ.get(tool.variable, "")
    step = f"{tool.install}; then set {tool.variable} to that environment's python"
    if python and not (Path(python).is_file() and os.access(python, os.X_OK)):
        return Presence(tool, missing=f"{tool.variable} is {python}, which is no interpreter", next_step=step)
    path = f"{Path(python).parent}:{os.environ.get('PATH', '')}" if python else os.environ.get("PATH", "")
    python = python or _program("python3", path)
    versions = _versions([name for name in (tool.distribution, *recipe.packages) if name], python)
    version = versions.get(tool.distribution)
    if tool.distribution and version is None:
        return Presence(tool, missing=f"{tool.name} is not installed here", next_step=step)
    for program in dict.fromkeys(word for word in (tool.program, *(command[0] for command in recipe.commands)) if word):
        if not _program(program, path):
            return Presence(
                tool, version, missing=f"{recipe.tool} needs the program {program}, which is not here", next_step=step
            )
    asked = {**recipe.packages, **({tool.distribution: recipe.version} if recipe.version and tool.distribution else {})}
    if other := [f"{name}=={said}" for name, said in asked.items() if versions.get(name) != said]:
        name = other[0].partition("==")[0]
        missing = f"{name} is {versions.get(name, 'not installed')} here, and the recipe says {asked[name]}"
        return Presence(tool, version, missing=missing, next_step=f"{python} -m pip install {' '.join(other)}")
    if wanted := sorted(name for name in _outside(recipe) if not os.environ.get(name)):
        return Presence(
            tool,
            version,
            missing=f"its commands name ${wanted[0]}, which is not set",
            next_step=f"set {', '.join(wanted)} to where they are",
        )
    return Presence(tool, version, {"PATH": path}, python)


def _program(name: str, path: str) -> str:
    return name if "/" in name else shutil.which(name, path=path) or find(name) or ""


def _versions(names: Sequence[str], python: str) -> dict[str, str]:
    """Return the versions of the distributions that an environment has, by the names asked for."""
    if not names or not python:
        return {}
    try:
        said = run([python, "-I", "-c", ASK, *names], timeout=120)[-len(names) :]
    except StageError:
        return {}
    return {name: version for name, version in zip(names, said, strict=False) if version != "-"}


def _variables(recipe: Recipe) -> set[str]:
    return {name for command in recipe.commands for word in command for name in VARIABLE.findall(word)}


def _outside(recipe: Recipe) -> set[str]:
    """Return the variables that the environment has to have: those of the commands, and where ATB's own modules are, if one is run."""
    theirs = any(word.startswith("examples.") for command in recipe.commands for word in command)
    return _variables(recipe) - {"SRC", "DST"} | ({"LLM_PATH"} if theirs else set())


def filled(word: str, values: Mapping[str, str]) -> str:
    """Return a word of a command with those $VARIABLES replaced that have a value; nothing else in it means anything, no shell sees it."""
    return VARIABLE.sub(lambda match: values.get(match[1], match[0]), word)


@dataclass(frozen=True)
class Job:
    """What will be run: commands with everything filled in, their environment and folder, and what stands for our own folders in records."""

    commands: tuple[tuple[str, ...], ...]
    env: Mapping[str, str]
    cwd: Path
    made: Path
    hidden: Mapping[str, str]
    settings: Path | None = None


def drive(recipe: Recipe, source: Path, out: Path, *, scratch: Path, log: Path, line: Line, files: Mapping[str, Path]) -> JSON:
    """Make the weights of `recipe` from the checkpoint in `source` into the empty folder `out`, with its tool, and return what was done.

    `scratch` is an empty folder for the steps between, `log` gets the commands and all that they say, `files` are the matrix's files that the
    recipe's `calibration` names. What comes out is completed (config.json edited, what lies beside the weights), then checked: StageError
    with the findings. StageError naming the tool and the next step where it is not here, or not in the version that the recipe says.
    """
    here = presence(recipe)
    if here.missing:
        raise StageError(f"{recipe.precision} weights need {recipe.tool}: {here.missing}", next_step=here.next_step)
    _sources_agree(source)
    job = prepare(recipe, here, source, scratch, files)
    raw = scratch / "log"
    raw.touch()
    try:
        for number, command in enumerate(job.commands, 1):
            line.note(f"{recipe.tool}, step {number} of {len(job.commands)}: {Path(command[0]).name}")
            run(command, env=job.env, cwd=job.cwd, log=raw, on_line=lambda text: line.note(text.strip()[:200]))
    finally:
        words = raw.read_text(encoding="utf-8", errors="replace").splitlines()
        log.write_text("".join(f"{told(text, job.hidden)}\n" for text in words), encoding="utf-8")
    if not job.made.is_dir() or not any(job.made.iterdir()):
        raise StageError(f"{recipe.tool} ended well and wrote nothing", next_step=f"its words are in {log}")
    _take(job.made, out)
    return {
        "tool": recipe.tool,
        "tool-version": here.version,
        "commands": [[told(word, job.hidden) for word in command] for command in job.commands],
        **({"settings": json.loads(told(job.settings.read_text(encoding="utf-8"), job.hidden))} if job.settings else {}),
        **_counts(source, out, here.tool),
        "warnings": complete(recipe, here.tool, source, out),
    }


def prepare(recipe: Recipe, here: Presence, source: Path, scratch: Path, files: Mapping[str, Path]) -> Job:
    """Write what the tool is given into `scratch`, and return what to run.

    `$SRC` is a folder that shows the source, `$DST` one that is not there yet (`$DST-w8a8s` lies beside it); every other variable of a command
    is the environment's. A module `examples.…` is ATB's own and is run where `$LLM_PATH` says, as its guide does.
    """
    given, made, work = _given(recipe, source, scratch / "source"), scratch / "made", scratch / "work"
    work.mkdir()
    values = {**{name: os.environ.get(name, "") for name in _variables(recipe)}, "SRC": str(given), "DST": str(made)}
    for name, text in recipe.files.items():
        if not name.endswith(".json"):
            (work / name).write_text(filled(text, values), encoding="utf-8")
    commands = tuple(tuple(filled(word, values) for word in command) for command in recipe.commands)
    hidden = {**values, "SCRATCH": str(scratch), "PYTHON": here.python}
    settings = None
    if here.tool.script:
        commands = (_script(recipe, here, work, given, made, files),)
        settings = work / SETTINGS
        hidden |= {f"TEXTS{number}": str(path) for number, path in enumerate(files.values())}
    root = os.environ.get("LLM_PATH", "") if "LLM_PATH" in _outside(recipe) else ""
    env = {**here.env, **(OFFLINE if here.tool.script else {}), **recipe.env}
    env |= {"PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")} if root else {}
    return Job(commands, env, Path(root) if root else work, made, hidden, settings)


def _counts(source: Path, out: Path, tool: Tool) -> JSON:
    """Return how many tensors of the source came out in another dtype, or not under their name, and how many as they were."""
    if tool.compiled:
        return {"converted": len(gather(source)[0].tensors), "kept": 0}
    before, after = gather(source)[0].tensors, gather(out)[0].tensors
    kept = sum(name in after and after[name].dtype == tensor.dtype for name, tensor in before.items())
    return {"converted": len(before) - kept, "kept": kept}


def told(word: str, values: Mapping[str, str]) -> str:
    """Return a word with our folders as placeholders again: a record names no folder of this machine."""
    for name in sorted(values, key=lambda name: -len(values[name])):
        word = word.replace(values[name], f"${name}") if values[name] else word
    return word


def _sources_agree(source: Path) -> None:
    """Raise StageError where config.json is another model's: a tool would take hours to say so, or would not say it."""
    wrong = [
        finding
        for finding in check(source, numbers=False)
        if finding.rule in ("config", "header", "index") and finding.severity == "error"
    ]
    if wrong:
        raise StageError(f"the checkpoint does not fit its config.json: {wrong[0]}", next_step="\n".join(map(str, wrong[:10])))


def _given(recipe: Recipe, source: Path, folder: Path) -> Path:
    """Return a folder that shows `source` with config.json in the dtype that the result will have: scales depend on it."""
    folder.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in PICKED:
            shutil.copyfile(path, folder / path.name)  # tools write into these, and the source is not theirs
        else:
            (folder / path.name).symlink_to(path.resolve())
    said: dict[str, Any] = {key: recipe.config[key] for key in DTYPE_KEYS if key in recipe.config}
    if said:
        config = edited(read_config(source), said)
        (folder / NAME).write_text(document(config), encoding="utf-8")
    return folder


def _script(recipe: Recipe, here: Presence, work: Path, source: Path, made: Path, files: Mapping[str, Path]) -> tuple[str, ...]:
    """Write the script that runs a tool's library, and what it is told, into `work`; return the command."""
    texts = [files[name] for name in recipe.calibration if name in files]
    if not texts:
        raise StageError(
            f"{recipe.tool} calibrates, and the recipe names no texts that are here",
            next_step="write weights.calibration: a JSON lines file in your matrix, one text or conversation a line",
        )
    said: dict[str, Any] = {
        "source": str(source),
        "out": str(made),
        "texts": [str(path) for path in texts],
        "scheme": recipe.type or recipe.precision,
        "group": recipe.group,
        "dtype": recipe.dtype,
        "ignore": sorted({"lm_head", *(_as_expression(pattern) for pattern in recipe.exclude if pattern != "lm_head")}),
        **{key: recipe.build[key] for key in ("samples", "length", "seed", "smooth") if key in recipe.build},
    }
    (work / SCRIPT).write_text(render(here.tool.script, {}), encoding="utf-8")
    (work / SETTINGS).write_text(document(said), encoding="utf-8")
    return here.python, "-I", str(work / SCRIPT), str(work / SETTINGS)


def _as_expression(pattern: str) -> str:
    """Return a pattern as compressed-tensors spells it: a regular expression over a module's name, or its last words."""
    return r"re:(?:.*\.)?" + re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".") + "$"


def _take(made: Path, out: Path) -> None:
    for path in sorted(made.rglob("*")):
        target = out / path.relative_to(made)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, target)
            target.chmod(0o644)


def complete(recipe: Recipe, tool: Tool, source: Path, out: Path) -> list[str]:
    """Add what a tool leaves out, apply the recipe's edits, and check; return the warnings. Raises StageError for what is wrong."""
    for path in sorted(source.iterdir()):
        beside = path.suffix in PICKED and not path.name.endswith(".safetensors.index.json")
        wanted = not (out / path.name).exists() or (tool.script and path.name != NAME)
        if path.is_file() and beside and wanted and not tool.compiled:
            (out / path.name).unlink(missing_ok=True)  # what a library writes of a tokenizer is not what was tried upstream
            shutil.copyfile(path, out / path.name)
    if (out / NAME).is_file():
        config = edited(read_config(out), recipe.config)
        (out / NAME).unlink()  # it may be a hard link to what the tool wrote
        (out / NAME).write_text(document(config), encoding="utf-8")
    for name, text in recipe.files.items():
        if name.endswith(".json"):
            (out / name).write_text(text, encoding="utf-8")
    if tool.compiled:
        return []
    parts = [path for path in sorted(out.iterdir()) if path.is_dir() and PART.fullmatch(path.name)]
    if recipe.split and parts and len(parts) != recipe.split:
        raise StageError(f"{tool.name} cut the weights for {len(parts)} devices, and the recipe says {recipe.split}")
    found = [(folder, refuse(folder, f"what {tool.name} made", whole=not parts)) for folder in parts or [out]]
    return [f"{folder.name}: {finding}" if parts else str(finding) for folder, findings in found for finding in findings]


def skipped(recipe: Recipe) -> str | None:
    """Return why the recipe's tool cannot be run here and what to do, in one line, or None where it can."""
    here = presence(recipe)
    return f"SKIPPED: {here.missing}; {here.next_step}" if here.missing else None
