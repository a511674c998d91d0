"""MindIE-Service's conf/config.json, from a plan.

Keys, defaults and ranges are MindIE-LLM's own (docs/zh/user_guide/user_manual/service_parameter_configuration.md); the seed names the
service and shows no such file. Where we leave the documented default we say why.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final

from release.errors import MatrixError
from release.types import Plan

HOUSE: Final = {
    "max-model-len": "maxSeqLen",
    "max-num-seqs": "maxBatchSize",
    "max-num-batched-tokens": "maxPrefillTokens",
    "block-size": "cacheBlockSize",
    "served-model-name": "modelName",
}
"""Serving arguments of other engines, and what this file calls them. Its own keys may be given as well: `max-iter-times`, `maxIterTimes`."""
CHAT_TEST: Final = ("chat", "embedding")
"""Arguments of run_pa.sh, which are no business of the service."""
SERVER: Final[dict[str, Any]] = {
    "maxLinkNum": 300,  # the documents' advice; their default is 1000
    "fullTextEnabled": False,
    "inferMode": "standard",
    "openAiSupport": "vllm",
    "tokenTimeout": 600,
    "e2eTimeout": 600,
}
DEPLOY: Final[dict[str, Any]] = {"maxSeqLen": 2560, "maxInputTokenLen": 2048, "truncation": False}
MODEL: Final[dict[str, Any]] = {
    "modelInstanceType": "Standard",
    "modelName": "",
    "modelWeightPath": "/model",
    "worldSize": 1,
    "cpuMemSize": 5,
    "npuMemSize": -1,
    "backendType": "atb",
    "trustRemoteCode": False,
}
SCHEDULE: Final[dict[str, Any]] = {
    "templateType": "Standard",
    "templateName": "Standard_LLM",
    "cacheBlockSize": 128,
    "maxPrefillBatchSize": 50,
    "maxPrefillTokens": 8192,
    "prefillTimeMsPerReq": 150,
    "prefillPolicyType": 0,
    "decodeTimeMsPerReq": 50,
    "decodePolicyType": 0,
    "maxBatchSize": 200,
    "maxIterTimes": 512,
    "maxPreemptCount": 0,
    "supportSelectBatch": False,
    "maxQueueDelayMicroseconds": 5000,
}
SET_HERE: Final = frozenset({"modelWeightPath", "worldSize"})
"""Keys that follow from the plan and are no serving arguments."""
NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,254}[A-Za-z0-9])?")
LEAST_PORT: Final = 1024


def service_config(plan: Plan) -> dict[str, Any]:
    """Return config.json. Raises MatrixError for an argument or a value that the service does not take.

    One port serves clients and health (documented as "one address, one port"): the management plane is reached by nothing else in
    the container. HTTPS is off, because the certificates are the operator's; `engine-config.config` turns it on.
    """
    said = _arguments(plan)
    made = {
        "Version": "1.0.0",
        "ServerConfig": _server(plan, said),
        "BackendConfig": _backend(plan, said),
    }
    over = plan.engine_config.get("config", {})
    if not isinstance(over, Mapping):
        raise MatrixError(f"{plan.cell}: engine-config.config: is not a mapping of keys to values")
    return laid_over(made, over)


def laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid over it, key by key and level by level; lists are replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        there = merged.get(key)
        merged[key] = laid_over(there, value) if isinstance(there, Mapping) and isinstance(value, Mapping) else value
    return merged


def _arguments(plan: Plan) -> dict[str, Any]:
    known = {*SERVER, *DEPLOY, *MODEL, *SCHEDULE} - SET_HERE
    said = {}
    for name, value in plan.serve.args.items():
        if name in CHAT_TEST:
            continue
        key = HOUSE.get(name) or re.sub("-([a-z])", lambda match: match[1].upper(), name)
        if key in said:
            raise MatrixError(f"{plan.cell}: serve.args.{name}: {key} is said twice")
        if key not in known:
            near = difflib.get_close_matches(name, [*HOUSE, *known], n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise MatrixError(f"{plan.cell}: MindIE-Service has no setting {name!r}{hint}")
        default = {**SERVER, **DEPLOY, **MODEL, **SCHEDULE}[key]
        if type(value) is not type(default):
            raise MatrixError(f"{plan.cell}: serve.args.{name}: {value!r} is not a {type(default).__name__}")
        said[key] = value
    return said


def _server(plan: Plan, said: Mapping[str, Any]) -> dict[str, Any]:
    if plan.serve.port < LEAST_PORT:
        raise MatrixError(f"{plan.cell}: serve.port: MindIE-Service takes ports from {LEAST_PORT}, not {plan.serve.port}")
    # On a network of its own the container must listen on every address to be reached, and publishing a port decides who reaches it.
    # On the host's network the documents' own default is the safe one.
    address = "127.0.0.1" if plan.container.network == "host" else "0.0.0.0"
    return {
        "ipAddress": address,
        "managementIpAddress": address,
        "port": plan.serve.port,
        "managementPort": plan.serve.port,
        "metricsPort": plan.serve.port,
        "allowAllZeroIpListening": address == "0.0.0.0",
        "httpsEnabled": False,
        **{key: said.get(key, default) for key, default in SERVER.items()},
    }


def _backend(plan: Plan, said: Mapping[str, Any]) -> dict[str, Any]:
    tensor, replicas = (plan.parallel.tensor_parallel_size, plan.parallel.replicas) if plan.parallel else (1, 1)
    if plan.parallel is not None and plan.parallel.pipeline_parallel_size > 1:
        raise MatrixError(f"{plan.cell}: mindie splits by tensor parallel alone", next_step="set pipeline-parallel-size to 1")
    most = plan.device.per_host if plan.device else None
    here = min(tensor, most) if isinstance(most, int) else tensor
    ids = [list(range(number * here, (number + 1) * here)) for number in range(replicas)]
    several = here < tensor
    if several and replicas > 1:
        raise MatrixError(
            f"{plan.cell}: a replica of {tensor} devices is more than one host has: start each by itself", next_step="replicas: 1"
        )
    # Between hosts the documents want a rank table on each of them (then ids and world size are read from it), and TLS with certificates.
    hosts = {"multiNodesInferPort": 1120, "interNodeTLSEnabled": False} if several else {}
    return {
        "backendName": "mindieservice_llm_engine",
        "modelInstanceNumber": replicas,
        "npuDeviceIds": ids,
        "tokenizerProcessNumber": 8,
        "multiNodesInferEnabled": several,
        **hosts,
        "ModelDeployConfig": _deployment(plan, said, tensor),
        "ScheduleConfig": _schedule(plan, said),
    }


def _deployment(plan: Plan, said: Mapping[str, Any], tensor: int) -> dict[str, Any]:
    name = plan.served_model_name
    if not NAME.fullmatch(name):
        raise MatrixError(
            f"{plan.cell}: served-model-name: {name!r} is no name for MindIE-Service",
            next_step="use letters, digits, '.', '-' and '_', at most 256, with a letter or digit at both ends",
        )
    context = _context(plan, said)
    given = {key: said.get(key, default) for key, default in MODEL.items()}
    made: dict[str, Any] = {
        "maxSeqLen": context,
        "maxInputTokenLen": said.get("maxInputTokenLen", max(1, context - 1)),
        "truncation": said.get("truncation", False),
        "ModelConfig": [{**given, "modelName": name, "worldSize": tensor}],
    }
    if plan.adapters:  # newer releases read this in place of lora_adapter.json (multi_loRA.md)
        made["LoraModules"] = [{"name": key, "path": path, "baseModelName": name} for key, path in plan.adapters.items()]
    return made


def _schedule(plan: Plan, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return ScheduleConfig. `maxIterTimes` caps every answer: at its default of 512 a model that thinks would never finish."""
    context = _context(plan, said)
    made = {**SCHEDULE, "maxIterTimes": context, **{key: said[key] for key in SCHEDULE if key in said}}
    made["maxPrefillBatchSize"] = min(made["maxPrefillBatchSize"], made["maxBatchSize"])
    asked = said.get("maxInputTokenLen", context - 1)
    if "maxPrefillTokens" not in said:
        made["maxPrefillTokens"] = max(made["maxPrefillTokens"], asked)
    elif made["maxPrefillTokens"] < asked:
        raise MatrixError(
            f"{plan.cell}: maxPrefillTokens {made['maxPrefillTokens']} is less than a prompt may be long ({asked} tokens)",
            next_step="raise max-num-batched-tokens or give maxInputTokenLen",
        )
    if not 1 <= made["maxIterTimes"] <= context:
        raise MatrixError(f"{plan.cell}: maxIterTimes {made['maxIterTimes']} is not between 1 and maxSeqLen {context}")
    return made


def _context(plan: Plan, said: Mapping[str, Any]) -> int:
    return int(said.get("maxSeqLen", plan.model.architecture.context))
