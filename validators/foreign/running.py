"""evalscope run against a server of ours, in the environment that it is installed in: its command, its words kept, its samples taken over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from release.errors import StageError
from release.processes import run
from release.types import JSON, Evaluation
from release.validators.foreign.evalscope import read_evalscope
from release.validators.foreign.evaluation import keep
from release.validators.samples import Summary

VARIABLE: Final = "RELEASE_EVALSCOPE"
DATA: Final = "RELEASE_DATA"
"""The folder below which a user's data sets lie; nothing is downloaded."""
INSTALL: Final = f"python -m venv VENV && VENV/bin/pip install evalscope, then {VARIABLE}=VENV/bin/python"
OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}
ASK: Final = "import importlib.metadata as m; print(m.version('evalscope'))"
WITHIN: Final = 7 * 24 * 3600
"""Seconds that a run may take: a week."""


def missing(evaluation: Evaluation) -> str:
    """Return what keeps evalscope from being run here, and what to do about it; empty where nothing does."""
    python, data = os.environ.get(VARIABLE), os.environ.get(DATA)
    if not python:
        return f"{VARIABLE} names no interpreter: {INSTALL}"
    if not Path(python).is_file():
        return f"{VARIABLE} is {python}, which is no file: {INSTALL}"
    if not data or not (Path(data) / evaluation.path).exists():
        return f"{evaluation.path} does not lie below {DATA}={data or ''}: put the data set there"
    return ""


def argv(python: str, evaluation: Evaluation, *, url: str, model: str, data: Path, out: Path) -> list[str]:
    """Return the command line. Its results are below `out`; what an earlier run of the same evaluation left there is used."""
    sampling: JSON = {"max_tokens": evaluation.max_tokens, "temperature": evaluation.temperature, "seed": evaluation.seed}
    given = {evaluation.dataset: {"local_path": str(data / evaluation.path), **evaluation.options}}
    line = [python, "-m", "evalscope.cli.cli", "eval", "--model", model, "--api-url", f"{url}/v1", "--api-key", "EMPTY"]
    line += ["--eval-type", "openai_api", "--datasets", evaluation.dataset, "--dataset-args", json.dumps(given)]
    line += ["--generation-config", json.dumps(sampling), "--eval-batch-size", str(evaluation.concurrency)]
    line += ["--repeats", str(evaluation.repeats), "--seed", str(evaluation.seed), "--work-dir", str(out), "--no-timestamp"]
    return [*line, "--use-cache", str(out)] if (out / "predictions").is_dir() else line


def evaluate(evaluation: Evaluation, *, url: str, model: str, out: Path, work: Path, log: Path) -> Summary:
    """Run an evaluation, resuming in `work`, and write its samples with their fingerprint to `out`; return their summary.

    Raises StageError if the tool is not here, is another version than `evaluation.version` says, fails, or leaves what cannot be read.
    """
    if problem := missing(evaluation):
        raise StageError(problem)
    python = os.environ[VARIABLE]
    found = run([python, "-I", "-c", ASK], timeout=120)[-1].strip()
    if evaluation.version is not None and found != evaluation.version:
        raise StageError(f"evalscope is {found}, the cell says {evaluation.version}", next_step=INSTALL)
    data = Path(os.environ[DATA]).absolute()
    line = argv(python, evaluation, url=url, model=model, data=data, out=work)
    run(line, env=OFFLINE, cwd=data, log=log, timeout=WITHIN)
    return keep(read_evalscope(work, evaluation.dataset, evaluation.metric), out)
