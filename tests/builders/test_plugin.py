"""The kernels as a wheel: the same bytes each time, whole by its own record, and found as vLLM finds plugins."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from release.builders.plugin import write_wheel


def test_the_wheel_is_the_same_each_time_and_does_not_know_when_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = write_wheel(tmp_path / "a")
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    assert write_wheel(tmp_path / "b") == first


def test_its_record_names_every_file_with_its_digest(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / str(write_wheel(tmp_path)["file"])) as wheel:
        record = next(name for name in wheel.namelist() if name.endswith("/RECORD"))
        rows = {row[0]: row[1:] for row in csv.reader(wheel.read(record).decode().splitlines())}
        assert set(rows) == set(wheel.namelist())
        for name in set(rows) - {record}:
            data = wheel.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert rows[name] == [f"sha256={digest}", str(len(data))]
        assert {"release_kernels/registry.json", "release_kernels/operators/rms_norm.py"} <= set(rows)


@pytest.mark.integration
def test_pip_installs_it_and_its_entry_point_loads_without_torch_triton_or_anything_of_ours(tmp_path: Path) -> None:
    wheel = tmp_path / str(write_wheel(tmp_path)["file"])
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True, timeout=120)
    program = (
        "import sys\nfrom importlib.metadata import entry_points\n"
        "(plugin,) = [one for one in entry_points(group='vllm.general_plugins') if one.name == 'release_kernels']\n"
        "plugin.load()()\n"  # nothing is asked for: it touches nothing, vLLM least of all
        "assert not {'torch', 'triton', 'vllm', 'release'} & set(sys.modules)\nprint(plugin.value)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RELEASE_OPERATORS")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**clean, "PYTHONPATH": str(site)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "release_kernels.plugin:install"
