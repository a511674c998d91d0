"""The plan of the house, kept: who may import whom, who may print, what no file may say. Read from the source, nothing is imported."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]

ROOMS: Final = ("matrix", "templates", "patches", "kernels", "builders", "validators", "publish")
FLOORS: Final = (
    ("types",),
    ("errors",),
    ("oci", "processes", "progress", "settings", "launch", "ports"),
    ("hardware", "hubs"),
    ("store", "guard", "failures"),
    ("podman", "transport"),
    ("containers", "journal"),
    ("canary", "node"),
    ("leases",),
    ("fleet",),
    ("session",),
    ("matrix", "templates", "patches", "kernels"),
    ("builders", "validators", "publish"),
    ("pipeline",),
    ("schedule", "listing", "shelves", "staging"),
    ("grid", "remote"),
    ("sources",),
    ("supply", "trial", "pins"),
    ("consistency", "measure", "benchmarks", "operators", "coverage"),
    ("stages",),
    ("house", "new", "bench"),
    ("signing",),
    ("publishing", "compare"),
    ("cluster",),
    ("build", "doctor", "cards", "collect", "convert", "report", "bump", "status", "pinned"),
    ("preflight", "pull", "batch", "shipping", "site"),
    ("triage", "bisect", "export"),
    ("show",),
    ("cli",),
    ("__main__",),
)
"""The stairs, from the ground up: rooms, and modules of the hallway. One may use what lies on a lower floor."""
VISITS: Final = {"builders": {"templates", "patches", "kernels"}, "publish": {"templates"}}
"""Which rooms a room may enter; the hallway enters all that lie below it."""
FORWARD: Final = {("release.session", "release.validators.serving"), ("release.publish.record", "release.pipeline")}
"""Who may name a type of a higher floor in annotations, under `if TYPE_CHECKING`: what it is handed, it did not fetch."""
SHUT_AWAY: Final = {
    "jinja2": "templates/render.py",
    "yaml": "matrix/parse.py",
    "subprocess": "release/processes.py",
    "docker": "release/containers.py",
    "git": "patches/git.py",
}
"""Libraries that one module hides from all others."""
HEAVY: Final = (
    "pydantic",
    "yaml",
    "docker",
    "numpy",
    "rich",
    "jinja2",
    "git",
    "requests",
    "huggingface_hub",
    "modelscope_hub",
    "isal",
    "tomli_w",
    "cryptography",
    "numba",
    "torch",
    "flag_gems",
    "triton",
    "vl_convert",
    "cyclonedx",
    "markdown_it",
    "ray",
)
LONGEST_FILE: Final = 400
LONGEST_FUNCTION: Final = 60
RECIPES: Final = "matrix/checkpoints"
"""Programs that made a checkpoint stand beside it as data: they are read by people and no module of the package."""

CHIPS: Final = (
    *(
        "cambricon",
        "mlu",
        "mlu370",
        "mlu590",
        "ascend",
        "davinci",
        "910b",
        "310p",
        "vastai",
        "vacc",
        "va16",
        "nvidia",
        "h100",
        "h200",
    ),
    *("h800", "a100", "a800", "h20", "l40s", "hygon", "dcu", "k100", "metax", "maca", "c500", "iluvatar", "corex", "bi150"),
    *(
        "kunlunxin",
        "kunlun",
        "xpu",
        "p800",
        "moore",
        "mthreads",
        "musa",
        "enflame",
        "tsingmicro",
        "biren",
        "mi300x",
        "gaudi",
        "tpu",
    ),
)
"""Chips and vendors that a Python file might be tempted to know."""


@dataclass(frozen=True)
class Import:
    """One import: who imports what, where, and whether only annotations see it."""

    importer: str
    imported: str
    line: int
    typing_only: bool
    top_level: bool

    def __str__(self) -> str:
        return f"{file_of(self.importer)}:{self.line}: {self.importer} imports {self.imported}"


def python_files() -> list[Path]:
    """Return every Python file of the package's folders, relative to the root, recipes included."""
    folders = ("release", *ROOMS)
    return sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_files() -> list[Path]:
    return [path for path in python_files() if not str(path).startswith(RECIPES)]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """Return the module that a file becomes: `matrix/load.py` is release.matrix.load."""
    parts = path.with_suffix("").parts
    parts = parts if parts[0] == "release" else ("release", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for path in module_files()}


def file_of(module: str) -> Path:
    return modules()[module]


def imports_of(path: Path) -> list[Import]:
    """Return every import of a file; `from release import oci` counts as an import of release.oci."""
    tree = tree_of(path)
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        for name in _imported(node, name_of(path), package=path.name == "__init__.py"):
            found.append(Import(name_of(path), name, getattr(node, "lineno", 0), id(node) in guarded, id(node) not in inside))
    return found


def _imported(node: ast.AST, module: str, *, package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        source = node.module or ""
        if node.level:
            base = module.split(".")[: len(module.split(".")) - node.level + (1 if package else 0)]
            source = ".".join([*base, source] if source else base)
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            yield inner if inner in modules() else source


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(found for path in module_files() for found in imports_of(path))


def place_of(module: str) -> str:
    """Return the room of a module, or its own name where it stands in the hallway; `` for `release` itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def floor_of(place: str) -> int:
    return -1 if place == "" else next(number for number, floor in enumerate(FLOORS) if place in floor)


def ours() -> list[Import]:
    return [found for found in all_imports() if found.imported.split(".")[0] == "release"]


def test_every_module_has_its_place_on_the_stairs() -> None:
    known = {"", *(place for floor in FLOORS for place in floor)}
    assert {place_of(name) for name in modules()} == known


def test_every_import_of_ours_names_a_module_that_exists() -> None:
    assert [str(found) for found in ours() if found.imported not in modules()] == []


def test_the_stairs_go_one_way() -> None:
    wrong = [
        str(found)
        for found in ours()
        if not found.typing_only
        and place_of(found.importer) != place_of(found.imported)
        and floor_of(place_of(found.imported)) >= floor_of(place_of(found.importer))
    ]
    assert wrong == []


def test_rooms_visit_no_room_but_those_that_the_plan_names() -> None:
    wrong = [
        str(found)
        for found in ours()
        if not found.typing_only
        and (here := place_of(found.importer)) in ROOMS
        and (there := place_of(found.imported)) in ROOMS
        and here != there
        and there not in VISITS.get(here, set())
    ]
    assert wrong == []


def test_only_annotations_look_up_the_stairs_and_only_where_it_is_written_down() -> None:
    upward = {
        (found.importer, found.imported)
        for found in ours()
        if found.typing_only
        and place_of(found.importer) != place_of(found.imported)
        and floor_of(place_of(found.imported)) >= floor_of(place_of(found.importer))
    }
    assert upward == FORWARD


def test_modules_of_one_place_do_not_import_one_another_in_a_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for found in ours():
        if not found.typing_only and found.imported != found.importer:
            graph[found.importer].add(found.imported)
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' → '.join((*path[path.index(module) :], module))}"
        if module not in done:
            for following in graph[module]:
                walk(following, (*path, module))
            done.add(module)

    for name in graph:
        walk(name, ())


def test_kernels_import_nothing_of_ours() -> None:
    assert [
        str(found) for found in ours() if place_of(found.importer) == "kernels" and place_of(found.imported) != "kernels"
    ] == []


def test_kernels_need_torch_triton_and_the_standard_library_and_meet_others_only_where_they_are_called() -> None:
    """What kernels serve (FlagGems, vLLM) or mend (Triton's interpreter, which has numpy) is imported within functions."""
    own = [found for found in all_imports() if place_of(found.importer) == "kernels" and not found.typing_only]
    free = {"release", "torch", "triton", *sys.stdlib_module_names}
    others = [found for found in own if found.imported.split(".")[0] not in free]
    assert {found.imported.split(".")[0] for found in others} <= {"numpy", "flag_gems", "vllm"}
    assert [str(found) for found in others if found.top_level] == []


def test_what_the_tool_uses_of_the_kernels_loads_no_torch() -> None:
    """Whoever imports from the room, and wherever: only programs of its own reach torch and triton."""
    starts = [found.imported for found in ours() if place_of(found.importer) != "kernels" == place_of(found.imported)]
    reached, heavy = loaded_by(starts, ("torch", "triton"))
    assert "release.kernels.figures" in reached
    assert heavy == []


def loaded_by(starts: Collection[str], heavy: Collection[str]) -> tuple[set[str], list[str]]:
    """Return which modules of ours are loaded with `starts`, their packages among them, and which of those imports are `heavy`."""
    reached: set[str] = set()
    met: list[str] = []
    following = list(starts)
    while following:
        module = following.pop()
        if module in reached:
            continue
        reached.add(module)
        for found in all_imports():
            if found.importer == module and found.top_level and not found.typing_only:
                parts = found.imported.split(".")
                if found.imported in modules():
                    following += [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
                elif parts[0] in heavy:
                    met.append(str(found))
    return reached, met


@pytest.mark.parametrize("library", SHUT_AWAY)
def test_exactly_one_module_imports(library: str) -> None:
    users = {str(file_of(found.importer)) for found in all_imports() if found.imported.split(".")[0] == library}
    assert users == {SHUT_AWAY[library]}


def test_nothing_is_imported_by_a_name_that_only_a_running_program_knows() -> None:
    late = ("__import__", "eval", "exec", "importlib.import_module", "import_module", "runpy.run_path", "runpy.run_module")
    assert [f"{path}:{line}: {name}" for path in module_files() for line, name in calls_in(path) if name in late] == []


def calls_in(path: Path) -> list[tuple[int, str]]:
    return [(node.lineno, ast.unparse(node.func)) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]


def test_only_the_front_door_prints_and_ends_the_process() -> None:
    ending = {
        *("print", "pprint", "input", "exit", "quit", "SystemExit", "sys.exit", "os._exit", "os.abort"),
        *("click.echo", "click.secho", "sys.stdout.write", "sys.stdout.buffer.write", "sys.stderr.write"),
    }
    wrong = [
        f"{path}:{line}: {name}"
        for path in module_files()
        if path.parts[:2] != ("release", "cli")
        for line, name in calls_in(path)
        if name in ending
    ]
    assert wrong == []


def test_nothing_frozen_is_changed_behind_its_back() -> None:
    assert [f"{path}:{line}" for path in module_files() for line, name in calls_in(path) if name == "object.__setattr__"] == []


def test_no_python_file_knows_a_chip_or_its_vendor() -> None:
    word = re.compile(rf"(?<![a-z0-9])({'|'.join(CHIPS)})(?![a-z0-9])", re.IGNORECASE)
    wrong = [
        f"{path}:{number}: {match[0]}"
        for path in python_files()
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
        if (match := word.search(line))
    ]
    assert wrong == []


def test_no_python_file_has_a_chip_of_the_matrix_as_a_word_of_its_own() -> None:
    chips = {path.stem for path in (ROOT / "matrix" / "chips").glob("*.yaml")}
    assert chips
    wrong = [
        f"{path}:{node.lineno}: {node.value!r}"
        for path in python_files()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in chips
    ]
    assert wrong == []


def test_files_are_short() -> None:
    lengths = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_functions_are_short() -> None:
    wrong = [
        f"{path}:{node.lineno}: {node.name} has {length} lines"
        for path in python_files()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert wrong == []


def test_modules_have_plain_names_and_say_what_they_are_for() -> None:
    vague = {"utils", "util", "helpers", "helper", "manager", "common", "misc", "core"}
    assert [str(path) for path in module_files() if path.stem in vague] == []
    assert [str(path) for path in python_files() if path.name != "__init__.py" and not ast.get_docstring(tree_of(path))] == []


def written_files() -> Iterator[Path]:
    """Yield every text file that people write here: all but what .gitignore names and what is data by nature."""
    ignored = {line.strip("/\n") for line in (ROOT / ".gitignore").read_text().splitlines()} | {".git"}
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if any(part in ignored or part.endswith(".egg-info") for part in parts) or parts[0] == "shared":
            continue
        if path.is_file() and not path.is_symlink() and path.suffix not in (".safetensors", ".pyc", ".png", ".jsonl"):
            yield path


def test_no_file_names_a_registry_an_index_or_a_folder_of_ours() -> None:
    """The pattern is put together from pieces, so that this file does not match itself."""
    pieces = (
        *(
            ("ghcr", r"\.io"),
            ("quay", r"\.io"),
            ("gcr", r"\.io"),
            ("docker", r"\.io/"),
            ("hub", r"\.docker"),
            ("harbor", r"\.[a-z]"),
        ),
        *(
            ("aliyun", "cs"),
            ("myhuawei", "cloud"),
            ("tencent", "yun"),
            ("azure", r"cr\.io"),
            ("pypi", r"\.org"),
            ("pypi", "/simple"),
        ),
        *(
            ("pythonhosted", r"\.org"),
            ("mirrors?", r"\.[a-z]+\.[a-z]"),
            ("/wo", "rk/"),
            ("/ro", "ot/"),
            ("/Use", "rs/"),
            ("/mn", "t/"),
        ),
        *(("/opt/", "(wheels|pypi)"), ("/ho", "me/(?!user)[a-z]")),
        *((r"\b10\.", r"(?!0\.0\.)\d+\.\d+\.\d+\b"), (r"192\.168", r"\.\d+\.\d+"), (r"172\.(1[6-9]|2\d|3[01])", r"\.\d+\.\d+")),
    )
    pattern = re.compile(rf"(?<![A-Za-z0-9._])({'|'.join(map(''.join, pieces))})", re.IGNORECASE)
    wrong = []
    for path in written_files():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            if (match := pattern.search(line)) and not names_an_image_to_be_got(path, lines, number):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert wrong == []


def names_an_image_to_be_got(path: Path, lines: list[str], number: int) -> bool:
    """Say whether a line of a cell is the `name` of an image that a paper offers in a registry: a fact of that cell, and nowhere else."""
    if path.suffix != ".yaml" or not path.is_relative_to(ROOT / "matrix" / "cells") or number < 3:
        return False
    access, kind, name = lines[number - 3 : number]
    inside = re.fullmatch(r"( +)name: [a-z0-9._/-]+", name)
    return inside is not None and access == f"{inside[1][:-2]}access:" and kind == f"{inside[1]}kind: registry"


def test_the_front_door_reaches_nothing_heavy_by_its_own_imports() -> None:
    assert loaded_by(["release.cli"], HEAVY)[1] == []


@pytest.mark.integration
def test_the_front_door_answers_help_without_anything_heavy() -> None:
    program = (
        "import sys\nfrom release.cli import cli\ncli.main(['--help'], standalone_mode=False)\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"
