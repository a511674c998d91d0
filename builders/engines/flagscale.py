"""FlagScale: its two configuration files in both schemas, and the engine command that they come to, kept in the foreground.

`flagscale serve` starts its runner with nohup and returns at once, with status 0 whatever happens. What the runner does in the end
(flagscale/serve/run_inference_engine.py) is to flatten `engine_args` into a command line and start that as a child, whose exit status it
only logs. So the container runs that very command itself: its signals and its exit status reach the container engine. The files are
there for those who start with FlagScale's own runner; both come from one set of arguments.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from release.builders.engines import hosts, sglang, vllm
from release.errors import MatrixError
from release.templates.document import document
from release.types import Plan

TEMPLATE: Final = "Dockerfile.flagscale.j2"
HEALTH: Final = "/health"
SERVE_ID: Final = "vllm_model"
"""The literal that FlagScale's runner looks for, whatever the engine."""
DEFAULT_PORT: Final = 8000
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
INTEGER: Final = re.compile(r"0|[1-9][0-9]{0,17}")
KEYS: Final = ("schema", "engine", "name", "config", "serve", "experiment", "item", "deploy", "hosts")
"""What `engine-config` may say.

`schema` is `list` or `model-args`, `engine` the engine below (`vllm` or `sglang`); `name` is the experiment's, `config` and `serve` are the
names of the two files. `experiment`, `item` (the list schema's one item) and `deploy` (the old schema's block) are laid over what is made
here, spelled as FlagScale spells them. `hosts` is for more hosts than one.
"""
SGLANG: Final = {
    "model": "model_path",
    "seed": "random_seed",
    "max_model_len": "context_length",
    "max_num_seqs": "max_running_requests",
    "uvicorn_log_level": "log_level",
    "show_hidden_metrics_for_version": "enable_metrics",
}
"""vLLM's names and SGLang's: flagscale/serve/args_mapping/mapping.yaml."""


def command(plan: Plan) -> list[str]:
    """Return the command that FlagScale's runner would come to, by its own flattening rules."""
    args = engine_args(plan)
    if _engine(plan) == "sglang":
        mapped = {SGLANG.get(name, name): value for name, value in args.items()}
        line = ["python3", "-m", "sglang.launch_server", *flatten_dict_to_args(mapped)]
        return hosts.started(plan, line, hosts.NODE)
    return hosts.started(plan, ["vllm", "serve", str(args["model"]), *flatten_dict_to_args(args, ("model",))])


def files(plan: Plan) -> dict[str, str]:
    """Return experiment and serve file, and for several hosts hostfile, env.sh and the scripts that start ray.

    Raises MatrixError for what FlagScale could not carry: text that OmegaConf would resolve (`${…}`, `???`), values of environment
    variables that its runner's shell script would tear apart, and a port that the two files do not agree on.
    """
    _check(plan)
    serve = _schema(plan)(plan)
    made = experiment(plan)
    if (port := served_port(made["experiment"], serve, engine_args(plan))) != plan.serve.port:
        raise MatrixError(f"{plan.cell}: engine-config: deploy.port {port} goes before serve.port, which is {plan.serve.port}")
    name = _name(plan, "name", plan.model.id)
    config, called = _name(plan, "config", f"config_{name}"), _name(plan, "serve", name)
    found = {f"conf/{config}.yaml": document(made), f"conf/serve/{called}.yaml": document(serve)}
    if hosts.needed(plan) > 1:
        found["conf/hostfile.txt"] = hosts.hostfile(plan)
        found[hosts.ENVIRONMENT] = hosts.environment({**plan.container.env, **plan.serve.env})
    return {**found, **(hosts.ray_files(plan) if _engine(plan) == "vllm" else sglang.files(plan))}


def trials(plan: Plan) -> list[list[str]]:
    """Return nothing: FlagScale brings no runs of its own for a server."""
    return []


def experiment(plan: Plan) -> dict[str, Any]:
    """Return the first file as FlagScale (Hydra) reads it; `_self_` first, so that the serve file is laid over it."""
    name = _name(plan, "name", plan.model.id)
    runner: dict[str, Any] = {"ssh_port": 22}
    more: dict[str, Any] = {}
    if hosts.needed(plan) > 1:
        runner["hostfile"] = "/release/conf/hostfile.txt"
        # Ray's workers get no `envs`: what they must see, the operators' switch above all, reaches them here or not at all.
        more = {"cmds": {"before_start": f". /release/{hosts.ENVIRONMENT}"}}
    body = {
        "exp_name": name,
        "exp_dir": "outputs/${experiment.exp_name}",
        "task": {"type": "serve"},
        "runner": runner,
        "envs": {key: _number(value) for key, value in {**plan.container.env, **plan.serve.env}.items()},
        **more,
    }
    return {
        "defaults": ["_self_", {"serve": _name(plan, "serve", name)}],
        "experiment": _laid(body, _mapping(plan, "experiment")),
        "action": "run",
        "hydra": {"run": {"dir": "${experiment.exp_dir}/hydra"}},
    }


def engine_args(plan: Plan) -> dict[str, Any]:
    """Return the engine's arguments by FlagScale's names.

    FlagScale drops what is false, and vLLM would then go by its own default: so what is false is said as `no_…: true`. SGLang's switches
    are off by themselves.
    """
    below = _engine(plan)
    args: dict[str, Any] = {"model": "/model", "served-model-name": plan.served_model_name}
    if plan.parallel is not None:
        args["tensor-parallel-size"] = plan.parallel.tensor_parallel_size
        args["pipeline-parallel-size"] = plan.parallel.pipeline_parallel_size
    args |= vllm.arguments(plan) if below == "vllm" else plan.serve.args
    args |= {"host": "0.0.0.0", "port": plan.serve.port}
    said: dict[str, Any] = {}
    for name, value in args.items():
        if value is not False:
            said[name.replace("-", "_")] = value
        elif below == "vllm":
            said[f"no_{name.replace('-', '_')}"] = True
    return said


def listed(plan: Plan) -> list[dict[str, Any]]:
    """Return the serve file in the list schema."""
    item = {"serve_id": SERVE_ID, "engine": _engine(plan), "engine_args": engine_args(plan)}
    return [_laid(item, _mapping(plan, "item"))]


def model_args(plan: Plan) -> dict[str, Any]:
    """Return the serve file in the older schema: hyphens, and switches by name under `action-args`."""
    args = {name.replace("_", "-"): value for name, value in engine_args(plan).items()}
    valued = {("model-tag" if name == "model" else name): value for name, value in args.items() if value is not True}
    switches = [name for name, value in args.items() if value is True]
    deploy = _laid({"command_line_mode": True, "use_native_serve": False}, _mapping(plan, "deploy"))
    return {"model_args": {SERVE_ID: {**valued, "action-args": switches}}, "deploy": deploy}


SCHEMAS: Final[dict[str, Callable[[Plan], Any]]] = {"list": listed, "model-args": model_args}


def flatten_dict_to_args(values: Mapping[str, Any], ignored: Sequence[str] = ()) -> list[str]:
    """Return a mapping as FlagScale writes it on a command line (flagscale/runner/runner_utils.py, the function of this name).

    `_` becomes `-`; true becomes the flag alone, FALSE NOTHING; a list the flag with all items; a mapping its own entries, its key lost.
    """
    line: list[str] = []
    for key, value in values.items():
        flag = f"--{key.replace('_', '-')}"
        if key in ignored:
            continue
        if isinstance(value, Mapping):
            line += flatten_dict_to_args(value, ignored)
        elif isinstance(value, bool):
            line += [flag] if value else []
        elif isinstance(value, Sequence) and not isinstance(value, str):
            line += [flag, *map(str, value)]
        else:
            line += [flag, str(value)]
    return line


def served_port(body: Mapping[str, Any], serve: Any, args: Mapping[str, Any]) -> int:
    """Return the port that FlagScale serves on: `deploy.port`, wherever its version has that block, else the engine's, else 8000."""
    blocks = [
        body.get("deploy"),
        (body.get("runner") or {}).get("deploy"),
        serve.get("deploy") if isinstance(serve, Mapping) else None,
    ]
    ports = [block["port"] for block in blocks if isinstance(block, Mapping) and "port" in block]
    return int(ports[0] if ports else args.get("port", DEFAULT_PORT))


def _schema(plan: Plan) -> Callable[[Plan], Any]:
    name = str(plan.engine_config.get("schema", "list"))
    if name not in SCHEMAS:
        raise MatrixError(f"{plan.cell}: engine-config.schema: {name!r} is none of {', '.join(SCHEMAS)}")
    return SCHEMAS[name]


def _engine(plan: Plan) -> str:
    name = str(plan.engine_config.get("engine", "vllm"))
    if name not in ("vllm", "sglang"):
        raise MatrixError(f"{plan.cell}: engine-config.engine: {name!r} is neither vllm nor sglang")
    return name


def _name(plan: Plan, key: str, default: str) -> str:
    name = plan.engine_config.get(key, default)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise MatrixError(f"{plan.cell}: engine-config.{key}: {name!r} cannot be the name of a file")
    return name


def _mapping(plan: Plan, key: str) -> Mapping[str, Any]:
    value = plan.engine_config.get(key, {})
    if not isinstance(value, Mapping):
        raise MatrixError(f"{plan.cell}: engine-config.{key}: is not a mapping of keys to values")
    return value


def _laid(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `under` with `over` laid on it, mapping by mapping; what is left empty goes."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _laid(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return {key: value for key, value in merged.items() if value != {}}


def _number(value: str) -> int | str:
    return int(value) if INTEGER.fullmatch(value) else value


def _check(plan: Plan) -> None:
    """Refuse what FlagScale could not carry, and what `engine-config` has no word for."""
    for key in plan.engine_config:
        if key not in KEYS:
            raise MatrixError(f"{plan.cell}: engine-config: unknown key {key!r}", next_step=f"there are: {', '.join(KEYS)}")
    if "envs" in _mapping(plan, "experiment"):
        raise MatrixError(f"{plan.cell}: engine-config.experiment.envs: the environment is serve.env")
    for key in _mapping(plan, "item"):
        if key in ("serve_id", "engine", "engine_args", "engine_args_specific"):
            raise MatrixError(f"{plan.cell}: engine-config.item.{key}: would not reach the command; arguments are serve.args")
    env = {**plan.container.env, **plan.serve.env}
    for name, value in env.items():
        if shlex.quote(f"{name}={value}") != f"{name}={value}":
            raise MatrixError(
                f"{plan.cell}: serve.env.{name}: FlagScale's runner cannot carry {value!r} through its shell script"
            )
    for text in _texts([plan.engine_config, plan.serve.args, env]):
        if "${" in text or text == "???":
            raise MatrixError(f"{plan.cell}: {text!r} would not stay as it is: FlagScale's reader resolves it (OmegaConf)")


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for key, item in value.items() for text in (str(key), *_texts(item))]
    if isinstance(value, str):
        return [value]
    return [text for item in value for text in _texts(item)] if isinstance(value, Sequence) else []
