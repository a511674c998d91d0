"""What an image is built from is written down by digest, and what it leaves behind stays out."""

from __future__ import annotations

import io
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.pylock import Pylock
from packaging.requirements import Requirement

from release.builders.image import build_image, installer, left_out, pylock, requirements
from release.errors import EngineError
from release.progress import Plain

WHEELS = [
    {"name": "click", "version": "8.3.0", "file": "click-8.3.0-py3-none-any.whl", "sha256": "sha256:" + "a" * 64, "bytes": 9},
    {"name": "pip", "version": "26.0", "file": "pip-26.0-py3-none-any.whl", "sha256": "sha256:" + "b" * 64, "bytes": 8},
    {
        "name": "torch",
        "version": "2.11.0+cpu",
        "file": "torch-2.11.0+cpu-cp311-cp311-linux_x86_64.whl",
        "sha256": "sha256:" + "c" * 64,
        "bytes": 7,
    },
]


def test_the_lock_is_what_pep_751_says() -> None:
    document = tomllib.loads(pylock(WHEELS, "3.11"))
    lock = Pylock.from_dict(document)
    lock.validate()
    assert str(lock.requires_python) == "==3.11.*"
    assert [(str(package.name), str(package.version)) for package in lock.packages] == [
        ("click", "8.3.0"),
        ("pip", "26.0"),
        ("torch", "2.11.0+cpu"),
    ]
    for package, wheel in zip(document["packages"], WHEELS, strict=True):
        assert package["wheels"] == [
            {"path": f"wheels/{wheel['file']}", "size": wheel["bytes"], "hashes": {"sha256": str(wheel["sha256"])[7:]}}
        ]


def test_the_lock_names_no_index() -> None:
    assert "://" not in pylock(WHEELS, "3.11")


def test_text_of_a_stranger_stays_inside_its_string_in_the_lock() -> None:
    evil = '1"\n[[packages]]\nname = "evil'
    document = tomllib.loads(pylock([{**WHEELS[0], "version": evil}], "3.11"))
    assert [package["version"] for package in document["packages"]] == [evil]


def test_requirements_have_a_digest_each_and_leave_out_what_installs_them() -> None:
    lines = requirements(WHEELS).splitlines()
    assert [Requirement(line.split(" --hash")[0]).name for line in lines] == ["click", "torch"]
    assert all(line.split(" --hash=")[1].startswith("sha256:") for line in lines)


def test_the_wheel_of_pip_installs_the_others() -> None:
    assert installer(WHEELS) == "pip-26.0-py3-none-any.whl"


def test_pins_without_pip_are_refused() -> None:
    with pytest.raises(EngineError, match="do not contain pip") as caught:
        installer(WHEELS[:1])
    assert "pip==" in caught.value.next_step


@pytest.mark.parametrize("name", ["wheels", "wheels/click.whl", "wheels/deep/x"])
def test_the_wheels_do_not_reach_the_release(name: str) -> None:
    assert left_out(name, [])


@pytest.mark.parametrize("name", ["opt/release/wheels", "wheels-of-fire", "opt/release/bin/vllm", "etc/passwd"])
def test_what_only_looks_like_the_wheels_stays(name: str) -> None:
    assert not left_out(name, [])


class Watching:
    """An engine that looks at what it is sent, and builds nothing."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def build(self, context: Path, **options: Any) -> str:
        self.sent = sorted(str(path.relative_to(context)) for path in context.rglob("*") if not path.is_dir())
        raise EngineError("seen enough")

    def remove_images(self, label: str) -> None:
        """Have none."""


def test_no_history_and_no_login_is_sent_to_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered, wheels, sources = tmp_path / "rendered", tmp_path / "wheels", tmp_path / "sources"
    good = {
        rendered: ["Dockerfile", "requirements.txt", "files/serve.yaml"],
        wheels: ["a.whl"],
        sources: ["engine/deep/a.py", "engine/.envrc"],
    }
    for root, names in good.items():
        secret = [".git/config", ".env", ".netrc", ".docker/config.json"]
        below = [f"{place}/{name}" for place in ("files", "engine", "engine/deep") for name in secret]
        for name in (*names, *secret, *below):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("canary")
    monkeypatch.chdir(rendered)
    monkeypatch.setenv("HOME", str(rendered))
    engine = Watching()
    facts: dict[str, Any] = {
        "labels": {},
        "base": {"kind": "bootstrap", "diff-ids": []},
        "epoch": 0,
        "key": "k",
        "use_cache": True,
    }
    with pytest.raises(EngineError, match="seen enough"):
        build_image(
            engine,  # type: ignore[arg-type]
            rendered=rendered,
            wheels=[wheels],
            sources=sources,
            out=tmp_path / "out",
            scratch=tmp_path / "scratch",
            line=Plain(io.StringIO()).line("a/b@bf16", "image"),
            **facts,
        )
    assert engine.sent == [
        "Dockerfile",
        "files/serve.yaml",
        "sources/engine/.envrc",
        "sources/engine/deep/a.py",
        "wheels/a.whl",
        "wheels/requirements.txt",
    ]
