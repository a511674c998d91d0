"""SGLang: `python3 -m sglang.launch_server` with the matrix's arguments spelled as its own command line spells them."""

from __future__ import annotations

from typing import Final

from release.builders.engines import hosts
from release.types import Plan

TEMPLATE: Final = "Dockerfile.sglang.j2"
HEALTH: Final = "/health"
SERVED: Final = "served-model-name"


def command(plan: Plan) -> list[str]:
    """Return `python3 -m sglang.launch_server …`; true becomes `--name`, false nothing: its switches are off by themselves.

    Spellings: sglang/srt/server_args.py (`--model-path`, `--tp-size`, `--pp-size`).
    """
    line = [
        "python3",
        "-m",
        "sglang.launch_server",
        "--model-path",
        "/model",
        "--host",
        "0.0.0.0",
        "--port",
        str(plan.serve.port),
    ]
    if plan.parallel is not None:
        line += ["--tp-size", str(plan.parallel.tensor_parallel_size), "--pp-size", str(plan.parallel.pipeline_parallel_size)]
    for name, value in {SERVED: plan.served_model_name, **plan.serve.args}.items():
        if not isinstance(value, bool):
            line += [f"--{name}", str(value)]
        elif value:
            line.append(f"--{name}")
    return hosts.started(plan, line, hosts.NODE)


def files(plan: Plan) -> dict[str, str]:
    """Return the script that every one of several hosts starts, each with its own NODE_RANK; nothing for a single host."""
    count = hosts.needed(plan)
    if count == 1:
        return {}
    rank = '--node-rank "${NODE_RANK:?is 0 on the first host}"'
    address = '--dist-init-addr "${HEAD_ADDRESS:?is the address of the first host}:${DIST_PORT:-29500}"'
    text = f'#!/bin/sh\n# Runs on each of {count} hosts.\nset -eu\nexec "$@" --nnodes {count} {rank} {address}\n'
    return {"node.sh": text}


def trials(plan: Plan) -> list[list[str]]:
    """Return nothing: SGLang's own benchmark is run from outside."""
    return []
