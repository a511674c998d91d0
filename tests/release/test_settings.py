"""release.toml: found upwards, relative to itself, and refused with a near miss where a key is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from release.errors import UsageError
from release.settings import Settings, settings


def test_the_nearest_file_above_counts_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "release.toml").write_text('matrix = ["ours", "../shared"]\nstore = "store"\nengine = "podman"\n')
    (tmp_path / "a" / "b").mkdir(parents=True)
    said = settings(tmp_path / "a" / "b")
    assert said == Settings((tmp_path / "ours", tmp_path / "../shared"), tmp_path / "store", "podman")


def test_one_folder_needs_no_list(tmp_path: Path) -> None:
    (tmp_path / "release.toml").write_text('matrix = "ours"\n')
    assert settings(tmp_path) == Settings((tmp_path / "ours",))


def test_without_a_file_nothing_is_said(tmp_path: Path) -> None:
    assert settings(tmp_path) == Settings()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("matrixx = 1", "matrixx: unknown key .did you mean 'matrix'"),
        ("matrix = 3", "matrix: is neither a folder nor a list of folders"),
        ("matrix = [1]", "matrix: is neither a folder nor a list of folders"),
        ('engine = "lxc"', "engine is auto, docker or podman"),
        ("store = 1", "store is a folder"),
        ("= 1", "release.toml: "),
    ],
)
def test_what_is_wrong_is_refused_with_the_file(text: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "release.toml").write_text(text)
    with pytest.raises(UsageError, match=wanted) as caught:
        settings(tmp_path)
    assert "release.toml" in str(caught.value)
