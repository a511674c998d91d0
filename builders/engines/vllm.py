"""vLLM: `vllm serve /model` with the matrix's arguments spelled as its own command line spells them."""

from __future__ import annotations

from typing import Final

from release.builders.engines import hosts
from release.types import Plan

TEMPLATE: Final = "Dockerfile.vllm.j2"
HEALTH: Final = "/health"
PROFILER: Final = (
    *("--profiler-config.profiler", "torch", "--profiler-config.torch_profiler_dir", "{folder}"),
    *("--profiler-config.torch_profiler_with_stack", "false"),
)
"""What is added to the command so that POST /start_profile and /stop_profile leave traces in a folder (vllm/config/profiler.py)."""
BACKEND: Final = "distributed-executor-backend"


def command(plan: Plan) -> list[str]:
    """Return `vllm serve …`; true becomes `--name`, false `--no-name` (argparse.BooleanOptionalAction in vllm/engine/arg_utils.py)."""
    line = ["vllm", "serve", "/model", "--host", "0.0.0.0", "--port", str(plan.serve.port)]
    if plan.parallel is not None:
        line += ["--tensor-parallel-size", str(plan.parallel.tensor_parallel_size)]
        line += ["--pipeline-parallel-size", str(plan.parallel.pipeline_parallel_size)]
    for name, value in arguments(plan).items():
        if isinstance(value, bool):
            line.append(f"--{name}" if value else f"--no-{name}")
        else:
            line += [f"--{name}", str(value)]
    return hosts.started(plan, line)


def arguments(plan: Plan) -> dict[str, str | int | float | bool]:
    """Return the plan's arguments, the served name among them, and on several hosts ray as what spans them."""
    extra = {BACKEND: "ray"} if hosts.needed(plan) > 1 else {}
    named = {} if "served-model-name" in plan.serve.args else {"served-model-name": plan.served_model_name}
    return {**named, **extra, **plan.serve.args}


def files(plan: Plan) -> dict[str, str]:
    """Return what joins several hosts; on one host everything that vLLM is told stands on its command line."""
    return hosts.ray_files(plan)


def trials(plan: Plan) -> list[list[str]]:
    """Return nothing: vLLM's own benchmark is run from outside."""
    return []
