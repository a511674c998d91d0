"""MindIE: the daemon of MindIE-Service with a rendered config.json, and ATB's own run_pa and run_fa where a cell has no service.

From the seed (the vendor's guide for Qwen): run_pa and run_fa, their environment, the edits of config.json, lora_adapter.json, run.sh.
From MindIE's public documents (MindIE-LLM, docs/zh/user_guide): config.json, the daemon and its variables, `examples.run_pa`'s flags, health.

The cell's `features` decide: `mindie-service` starts the daemon, else torchrun starts `examples.run_pa`. Of the serving arguments `chat`,
`embedding` and `trust-remote-code` are those of run_pa.sh. `engine-config` may say
- `attention: flash`: run_fa instead of run_pa;
- `model-type`: the vendor's word for the family, a folder of examples/models (`qwen`; default: the family's letters);
- `visible-devices`: the name of the variable that lists the devices;
- `environment`, `service`, `models`, `daemon`: paths in the base image (scripts to source, MindIE-Service, ATB models, its program);
- `config`: what is laid over the rendered config.json.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from release.builders.engines.mindie_service import service_config
from release.errors import MatrixError
from release.templates.render import render, shell_line
from release.types import ENV_NAME, Plan, Trial

TEMPLATE: Final = "Dockerfile.mindie.j2"
HEALTH: Final = "/v2/health/ready"
"""MindIE-LLM, RESTful API reference, "Health Check" (the Triton one, in every release so far, to be retired some day): 200 and no body.

It is answered on the management port, which is the server's own here.
"""

SERVICE: Final = "mindie-service"
WITHIN: Final = ("bash", "/release/within.sh")
MASTER_PORT: Final = "20030"
"""The seed's own example of torchrun; MASTER_PORT of the cell's environment replaces it."""
TORCH_DTYPES: Final = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
RUN_ARGUMENTS: Final = {
    "max-model-len": "max_position_embeddings",
    "max-seq-len": "max_position_embeddings",
    "max-num-seqs": "max_batch_size",
    "max-input-length": "max_input_length",
    "max-output-length": "max_output_length",
    "max-prefill-tokens": "max_prefill_tokens",
    "max-prefill-batch-size": "max_prefill_batch_size",
    "block-size": "block_size",
}
"""Serving arguments and what examples/run_pa.py calls them (MindIE-LLM, examples/atb_models/examples/README.md)."""
HEAD: Final = (
    "#!/bin/bash\n# The guide's chat test and the trials of this cell, one after another, in place of the server. They write below the\n"
    "# models' folder: start the container without --read-only.\n"
)
ANALOGY: Final = "# The guide shows pa_fp16 alone: pa_bf16 is said here by analogy, for a cell that computes in bf16.\n"
TICKS: Final = ("chat", "embedding", "trust-remote-code")
PATH: Final = re.compile(r"/[A-Za-z0-9._/+-]+")
LETTERS: Final = re.compile(r"[a-z]+(?:-[a-z]+)*")
ADAPTER: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,254}[A-Za-z0-9])?")


def command(plan: Plan) -> list[str]:
    """Return the argv of the daemon, or of torchrun with `examples.run_pa`, which answers one question and ends.

    Raises MatrixError for what the engine cannot do: pipeline parallel, a second host without the service, arguments that it has not.
    """
    if SERVICE in plan.features:
        service_config(plan)
        return [*WITHIN, "service"]
    run = "examples.run_fa" if _flash(plan) else "examples.run_pa"
    port = {**plan.container.env, **plan.serve.env}.get("MASTER_PORT", MASTER_PORT)
    line = ["torchrun", "--nproc_per_node", str(_world_size(plan)), "--master_port", port, "-m", run, "--model_path", "/model"]
    if _ticked(plan, "embedding"):
        line.append("--is_embedding_model")
    elif _ticked(plan, "chat") and not _flash(plan):  # the guide: run_fa has no chat mode
        line.append("--is_chat_model")
    if _ticked(plan, "trust-remote-code"):
        line.append("--trust_remote_code")
    for name, value in plan.serve.args.items():
        if name in TICKS or name == "served-model-name":
            continue
        if name not in RUN_ARGUMENTS:
            raise MatrixError(
                f"{plan.cell}: examples.run_pa has no argument for {name!r}", next_step=f"it has: {', '.join(RUN_ARGUMENTS)}"
            )
        line += [f"--{RUN_ARGUMENTS[name]}", str(value)]
    return [*WITHIN, "models", *line]


def health(plan: Plan) -> str:
    """Return HEALTH where the cell has the service; nothing where run_pa or run_fa answers one question and ends."""
    return HEALTH if SERVICE in plan.features else ""


def files(plan: Plan) -> dict[str, str]:
    """Return what the container starts from and what the weights stage writes into the checkpoint's folder.

    `within.sh` sets the environment, `conf/config.json` is the service's, `config-edits.json` a merge patch (RFC 7396) for the checkpoint's
    config.json, `lora_adapter.json` lies beside the weights, `trials.sh` is the guide's chat test and the trials of the cell.
    """
    if any(getattr(source, "install", ()) for source in plan.sources):
        raise MatrixError(f"{plan.cell}: mindie installs no source: its packages are the base image's")
    made = {"within.sh": _within(plan), "config-edits.json": _json(config_edits(plan))}
    if SERVICE in plan.features:
        made["conf/config.json"] = _json(service_config(plan))
    if plan.adapters:
        made["lora_adapter.json"] = _json(_adapters(plan))
    lines = [chat(plan), *trials(plan)]
    made["trials.sh"] = (
        HEAD + (ANALOGY if plan.trials and plan.dtype == "bf16" else "") + "".join(f"{shell_line(line)}\n" for line in lines)
    )
    return made


def trials(plan: Plan) -> list[list[str]]:
    """Return `run.sh` of tests/modeltest, one argv a trial: `pa_fp16 full_BoolQ 1 qwen /model 8`, `pa_fp16 performance [[2048,2048]] …`."""
    return [_trial(plan, trial) for trial in plan.trials]


def chat(plan: Plan) -> list[str]:
    """Return the guide's chat test: run_pa.sh with `-c true` for models that are asked in turns, `-e true` for embeddings, or run_fa.sh."""
    script = f"examples/models/{model_type(plan)}/run_{'fa' if _flash(plan) else 'pa'}.sh"
    line = [*WITHIN, "models", "bash", script, "-m", "/model"]
    if _flash(plan):
        return line
    line += ["--trust_remote_code", "true"] if _ticked(plan, "trust-remote-code") else []
    if _ticked(plan, "embedding"):
        return [*line, "-e", "true"]
    return [*line, "-c", "true"] if _ticked(plan, "chat") else line


def config_edits(plan: Plan) -> dict[str, Any]:
    """Return what changes in the checkpoint's config.json: `torch_dtype`, and what the cell's weights say (`quantize`, `rope_scaling` …)."""
    said = plan.weights.config if plan.weights else {}
    if said.get("torch_dtype", TORCH_DTYPES[plan.dtype]) != TORCH_DTYPES[plan.dtype]:
        raise MatrixError(
            f"{plan.cell}: weights.config.torch_dtype is {said['torch_dtype']}, and the cell computes in {plan.dtype}"
        )
    return {"torch_dtype": TORCH_DTYPES[plan.dtype], **said}


def model_type(plan: Plan) -> str:
    """Return the vendor's word for the model's family: `qwen` for qwen2, qwen2.5 and qwen3, unless the cell says another."""
    found = LETTERS.match(str(plan.engine_config.get("model-type", plan.model.family)))
    if not found or ("model-type" in plan.engine_config and found[0] != plan.engine_config["model-type"]):
        raise MatrixError(
            f"{plan.cell}: engine-config.model-type is no folder of examples/models", next_step="write one such as qwen"
        )
    return found[0]


def _trial(plan: Plan, trial: Trial) -> list[str]:
    if (trial.dataset is None) == (not trial.cases):
        raise MatrixError(f"{plan.cell}: a trial has either a dataset or cases")
    if plan.dtype not in ("bf16", "fp16"):
        raise MatrixError(f"{plan.cell}: run.sh knows fp16 and bf16, the cell computes in {plan.dtype}")
    what = [trial.dataset] if trial.dataset else ["performance", json.dumps(trial.cases, separators=(",", ":"))]
    line = ["bash", "run.sh", f"{'fa' if _flash(plan) else 'pa'}_{plan.dtype}", *what]
    line += [str(trial.batch), model_type(plan), "/model", str(_world_size(plan))]
    env = ["env", *(f"{name}={value}" for name, value in trial.env.items())] if trial.env else []
    return [*WITHIN, "tests", *env, *line]


def _within(plan: Plan) -> str:
    env = {**plan.container.env, **plan.serve.env}
    name = plan.engine_config.get("visible-devices")
    if name is not None and not (isinstance(name, str) and ENV_NAME.fullmatch(name)):
        raise MatrixError(f"{plan.cell}: engine-config.visible-devices: {name!r} is not the name of an environment variable")
    if name is not None and name not in env and not _several_hosts(plan):
        env[name] = ",".join(str(number) for number in range(_world_size(plan) * _replicas(plan)))
    scripts = plan.engine_config.get("environment", ())
    values = {
        "scripts": [_path(plan, "environment", path) for path in scripts],
        "env": env,
        "several_hosts": _several_hosts(plan),
        **{key: _path(plan, key, plan.engine_config.get(key)) for key in ("service", "models", "daemon")},
    }
    return render("mindie.sh.j2", values)


def _path(plan: Plan, key: str, value: object) -> str | None:
    if value is not None and not (isinstance(value, str) and PATH.fullmatch(value)):
        raise MatrixError(f"{plan.cell}: engine-config.{key}: {value!r} is not an absolute path of plain signs")
    return value


def _adapters(plan: Plan) -> dict[str, str]:
    """Return the adapters by id. Raises MatrixError for an id that the server could not tell from the base model or from a path."""
    for name in plan.adapters:
        if name == "base" or not ADAPTER.fullmatch(name):
            raise MatrixError(
                f"{plan.cell}: adapters: {name!r} cannot be an adapter's id",
                next_step="use letters, digits, '-' and '_'; 'base' is the base model",
            )
    return dict(plan.adapters)


def _world_size(plan: Plan) -> int:
    if plan.parallel is not None and plan.parallel.pipeline_parallel_size > 1:
        raise MatrixError(f"{plan.cell}: mindie splits by tensor parallel alone", next_step="set pipeline-parallel-size to 1")
    size = plan.parallel.tensor_parallel_size if plan.parallel else 1
    if _several_hosts(plan) and SERVICE not in plan.features:
        raise MatrixError(f"{plan.cell}: {size} devices are more than one host has, and examples.run_pa starts on one alone")
    return size


def _several_hosts(plan: Plan) -> bool:
    most = plan.device.per_host if plan.device else None
    return isinstance(most, int) and plan.parallel is not None and plan.parallel.tensor_parallel_size > most


def _replicas(plan: Plan) -> int:
    return plan.parallel.replicas if plan.parallel else 1


def _flash(plan: Plan) -> bool:
    said = plan.engine_config.get("attention", "paged")
    if said not in ("paged", "flash"):
        raise MatrixError(f"{plan.cell}: engine-config.attention is 'paged' or 'flash', not {said!r}")
    return bool(said == "flash")


def _ticked(plan: Plan, name: str) -> bool:
    said = plan.serve.args.get(name, False)
    if not isinstance(said, bool):
        raise MatrixError(f"{plan.cell}: serve.args.{name} is true or false, not {said!r}")
    return said


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=True) + "\n"
