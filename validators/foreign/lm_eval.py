"""What lm-eval wrote: `samples_TASK_DATE.jsonl` (with --log_samples) and `results_DATE.json` beside it. Read from 0.4.13's files.

It says neither how an answer ended nor how long it is, and grades only the first of several repeats: that one is taken.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from release.errors import StageError
from release.types import JSON
from release.validators.foreign.evaluation import document, finished, lines, pick, record, right
from release.validators.graders import choice_loglikelihood
from release.validators.samples import Sample, Samples

NAME: Final = re.compile(r"samples_(?P<task>.+)_(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9.-]+)\.jsonl")


def read_lm_eval(path: Path, metric: str | None = None) -> Samples:
    """Read the samples at `path`. `metric` is `exact_match`, or `exact_match,strict-match` where a task has several filters.

    Raises StageError if a file is missing or malformed, if there are several metrics and none is chosen, or if a score is no 0 or 1.
    """
    match = NAME.fullmatch(path.name)
    if not match:
        raise StageError("is not named samples_TASK_DATE.jsonl", where=str(path), next_step="run lm-eval with --log_samples")
    results = document(path.with_name(f"results_{match['date']}.json"))
    wanted, _, filtered = (metric or "").partition(",")
    records, names, filters = [], set(), set()
    for where, line in lines(path):
        filters.add(str(pick(line, "filter", where=where)))
        if filtered and line["filter"] != filtered:
            continue
        metrics = pick(line, "metrics", where=where)
        names |= set(metrics) if not wanted else {wanted}
        if len(names) != 1 or (len(filters) > 1 and not filtered):
            raise StageError(
                f"there are the metrics {', '.join(sorted(names))} and the filters {', '.join(sorted(filters))}",
                where=where,
                next_step="name one, as METRIC,FILTER",
            )
        records.append(_sample(line, next(iter(names)), where))
    return finished(
        records, _told(results, match["task"], f"{min(names, default='')},{filtered or min(filters, default='')}"), str(path)
    )


def _sample(line: JSON, metric: str, where: str) -> Sample:
    fields: JSON = {
        "question_id": str(pick(line, "doc_id", where=where)),
        "expected": str(pick(line, "target", where=where)),
        "correct": right(pick(line, metric, where=where), metric, where),
    }
    answer = pick(line, "filtered_resps", 0, where=where)
    if not isinstance(answer, list):
        prompt = pick(line, "arguments", "gen_args_0", "arg_0", where=where)
        return record(where, **fields, prompt=prompt, answer=str(answer), text=pick(line, "resps", 0, 0, where=where))
    try:
        text = json.dumps([float(pick(choice, 0, where=where)) for choice in line["filtered_resps"]], allow_nan=False)
    except (ValueError, TypeError) as problem:
        raise StageError(f"the log-likelihoods are no numbers: {problem!s:.100}", where=where) from problem
    prompt = pick(line, "arguments", where=where)
    return record(where, **fields, prompt=prompt, answer=choice_loglikelihood(text), text=text)


def _told(results: JSON, task: str, metric: str) -> JSON:
    config, own = results.get("config"), (results.get("configs") or {}).get(task)
    if not isinstance(config, dict) or not isinstance(own, dict):
        raise StageError(f"the results say nothing of the task {task}", where=f"results of {task}")
    generation = {**(own.get("generation_kwargs") or {}), **(config.get("gen_kwargs") or {})}
    given = config.get("model_args")
    arguments = given if isinstance(given, dict) else {}
    return {
        "grader": f"lm-eval {metric}",
        "prompt": f"lm-eval {task}, {results.get('task_hashes', {}).get(task)}, chat template {results.get('chat_template_sha')}",
        "shots": own.get("num_fewshot"),
        "temperature": generation.get("temperature"),
        "seed": arguments.get("seed", config.get("random_seed")),
        "max-tokens": generation.get("max_gen_toks"),
        "max-model-len": None,
        "harness": f"lm-eval {results.get('lm_eval_version')}",
        "model": str(results.get("model_name")),
    }
