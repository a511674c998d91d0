"""More hosts than one: how many a plan needs, and the scripts with which ray, or the engine itself, spans them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from release.errors import MatrixError
from release.types import Plan

HEAD: Final = "/release/head.sh"
NODE: Final = "/release/node.sh"
ENVIRONMENT: Final = "env.sh"
KIND: Final = re.compile(r"[A-Za-z0-9_-]+")
OF_ITS_OWN: Final = re.compile("[gc]pu")
"""What ray has an argument for, `--num-gpus` and `--num-cpus`; anything else is a resource by name."""
NETWORK: Final = "192.0.2"
"""Addresses that stand in examples only (RFC 5737)."""


def needed(plan: Plan) -> int:
    """Return over how many hosts one replica lies: by its devices, where they are known, else what `engine-config.hosts.count` says."""
    said = _said(plan)
    slots = slots_of(plan)
    if plan.parallel is not None and slots:
        return -(-plan.parallel.world_size // slots)
    return int(said.get("count", 1))


def slots_of(plan: Plan) -> int:
    """Return how many devices a host has: what `engine-config.hosts.slots` says, else what is usual for the device, else 0."""
    usual = plan.device.per_host if plan.device is not None else 0
    return int(_said(plan).get("slots", usual if isinstance(usual, int) else 0))


def kind_of(plan: Plan) -> str:
    """Return what ray calls a device of this plan: `gpu`, `cpu` or a resource of its own."""
    kind = str(_said(plan).get("type", "gpu"))
    if not KIND.fullmatch(kind):
        raise MatrixError(f"{plan.cell}: engine-config.hosts.type: {kind!r} is not one word")
    return kind


def started(plan: Plan, argv: Sequence[str], script: str = HEAD) -> list[str]:
    """Return the argv that starts an engine: itself on one host, behind the script that joins the hosts on several."""
    return list(argv) if needed(plan) == 1 else ["sh", script, *argv]


def ray_files(plan: Plan) -> dict[str, str]:
    """Return what several hosts need to become one ray cluster, by path below /release; nothing for a single host.

    The first host runs head.sh with the engine's argv, every other one `sh /release/worker.sh` with HEAD_ADDRESS in its environment. The
    engine itself waits for the devices that are still missing.
    """
    if needed(plan) == 1:
        return {}
    resources = shlex.join(ray_resources(kind_of(plan), slots_of(plan)))
    head = 'ray start --head ${HEAD_ADDRESS:+"--node-ip-address=$HEAD_ADDRESS"} --port="${RAY_PORT:-6379}"'
    worker = 'exec ray start --block --address="${HEAD_ADDRESS:?is the address of the first host}:${RAY_PORT:-6379}"'
    return {
        ENVIRONMENT: environment({**plan.container.env, **plan.serve.env}),
        "head.sh": _script(f"the first of {needed(plan)} hosts", f"{head} {resources}".rstrip(), 'exec "$@"'),
        "worker.sh": _script("every other host", f"{worker} {resources}".rstrip()),
    }


def ray_resources(kind: str, slots: int) -> list[str]:
    """Return the arguments of `ray start` that say what a host brings: `--num-gpus`, `--num-cpus`, or a resource by its name.

    Source: FlagScale's runner (flagscale/runner/runner_serve.py, `ray start --address=…` for the hosts of its hostfile).
    """
    if not slots:
        return []
    if OF_ITS_OWN.fullmatch(kind):
        return [f"--num-{kind}s={slots}"]
    return [f"--resources={json.dumps({kind: slots})}"]


def environment(env: Mapping[str, str]) -> str:
    """Return a file that a shell reads with `.`, one `export` a variable, every value quoted."""
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in env.items()]
    return "# What every rank must see, on this host and on the others.\n" + "".join(lines)


def hostfile(plan: Plan) -> str:
    """Return an example hostfile, `ip slots=N type=…`, the first host first; its addresses are for documentation only."""
    lines = [
        f"{NETWORK}.{number} slots={slots_of(plan) or 1} type={kind_of(plan)}\n"
        for number in range(1, min(needed(plan), 254) + 1)
    ]
    return (
        f"# An example: the addresses are for documentation (RFC 5737). Put yours here, the first host first.\n{''.join(lines)}"
    )


def _script(who: str, *lines: str) -> str:
    return "\n".join(("#!/bin/sh", f"# Runs on {who}.", "set -eu", f". /release/{ENVIRONMENT}", *lines)) + "\n"


def _said(plan: Plan) -> Mapping[str, Any]:
    said = plan.engine_config.get("hosts", {})
    known = ("count", "slots", "type")
    if not isinstance(said, Mapping) or set(said) - set(known):
        raise MatrixError(f"{plan.cell}: engine-config.hosts: is not a mapping of {', '.join(known)}")
    for name in ("count", "slots"):
        if type(said.get(name, 1)) is not int or said.get(name, 1) < 1:
            raise MatrixError(f"{plan.cell}: engine-config.hosts.{name}: {said[name]!r} is not a number of at least 1")
    return said
