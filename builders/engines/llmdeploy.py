"""llmdeploy, which serves what vamc compiled: the build file of the compiler, and the configuration that `llmdeploy api` starts from.

From the seed (the vendor's guide for QwQ): the flow, `vamc compile FILE`, the names of the build files. From the pages that it links
(VastModelZOO 43aff36: llm/qwq/build_in/build, docs/llmdeploy, llm/README.md and the page on its software): the keys of both files,
`llmdeploy api FILE`.

The words of one accelerator are the cell's: `weights.build` is the build file but for what follows from the plan, `engine-config.server` is the
configuration but for that, with `{unknown: reason}` where nobody has said it, and `engine-config.command` starts the server in another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from release.errors import MatrixError, StageError
from release.templates.document import document
from release.types import Plan

TEMPLATE: Final = "Dockerfile.llmdeploy.j2"
HEALTH: Final = "/openapi.json"
"""No paper names a health path. The server is a FastAPI application, the vendor's page on its software says, and these answer here once up."""

CONFIG: Final = "llmdeploy.yaml"
ROOT: Final = "/release"
DTYPES: Final = {"fp16": "fp16", "w8a16": "int8"}
"""Precisions and what a build file calls them: its int8 keeps weights in 8 bits and computes in 16."""
SECTIONS: Final = ("model", "api", "benchmark", "eval")
SERVING: Final = ("model", "api")
"""Sections without which there is no server; the others are its trials'."""
ARGUMENTS: Final = {"served-model-name": "model_name", "max-num-seqs": "batch_size", "max-answer-tokens": "max_answer_tokens"}
ORDER: Final[dict[str, tuple[str, ...]]] = {
    "": ("name", "frontend", "backend", "workspace"),
    "frontend": ("checkpoint", "type", "shape", "model_kwargs", "quantize"),
    "backend": ("type", "dtype", "merge_params", "compile"),
}
"""The order in which the vendor's own files say it."""


def command(plan: Plan) -> list[str]:
    """Return `llmdeploy api FILE`, or what `engine-config.command` says.

    Raises StageError where neither is possible, because the configuration needs something that nobody has said: the matrix is right so,
    and all but the serving can be planned and rendered.
    """
    if (said := plan.engine_config.get("command")) is not None:
        if isinstance(said, str) or not isinstance(said, Sequence) or not said or not all(isinstance(word, str) for word in said):
            raise MatrixError(f"{plan.cell}: engine-config.command: is not a list of words")
        return list(said)
    server = server_config(plan)
    if gaps := [gap for name in SERVING for gap in unknowns(server.get(name, {}), name)]:
        where, reason = gaps[0]
        more = f", nor {', '.join(place for place, _ in gaps[1:])}" if gaps[1:] else ""
        raise StageError(
            f"{plan.cell}: the server cannot be started: nobody has said engine-config.server.{where} ({reason}){more}",
            next_step="write them into the cell as your installation has them, or say engine-config.command",
        )
    return ["llmdeploy", "api", f"{ROOT}/{CONFIG}"]


def files(plan: Plan) -> dict[str, str]:
    """Return the build file of the compiler, and the server's configuration as far as its sections are known.

    In the build file `$SRC` stands for the folder of the checkpoint and `$DST` for the folder of the result, as in the weights' commands.
    """
    if any(getattr(source, "install", ()) for source in plan.sources):
        raise MatrixError(f"{plan.cell}: llmdeploy installs no source: its packages are the base image's")
    made = {build_name(plan): document(build_file(plan))}
    if known := _known(plan):
        made[CONFIG] = document(known)
    return made


def trials(plan: Plan) -> list[list[str]]:
    """Return `llmdeploy benchmark FILE` for a trial whose data set the section `benchmark` names, else `llmdeploy eval FILE`.

    A trial is left out where its section has something that nobody has said: it could not be run.
    """
    known, found = _known(plan), []
    for trial in plan.trials:
        if trial.cases:
            raise MatrixError(f"{plan.cell}: llmdeploy's lengths stand in engine-config.server.benchmark, not in a trial's cases")
        named = str(known.get("benchmark", {}).get("test_txt", "")).rpartition("/")[2]
        verb = "benchmark" if named and trial.dataset == named else "eval"
        if verb in known:
            found.append(["llmdeploy", verb, f"{ROOT}/{CONFIG}"])
    return found


def build_name(plan: Plan) -> str:
    """Return the build file's name: `hf_qwq-32b_fp16.yaml`, `hf_qwq-32b_int8.yaml`."""
    return f"hf_{plan.model.id}_{_dtype(plan)}.yaml"


def build_file(plan: Plan) -> dict[str, Any]:
    """Return the compiler's build file: what `weights.build` says, with paths, tensor parallel size, dtype and quantisation from the plan.

    Raises MatrixError where the two disagree, or where the lengths to compile for are not said.
    """
    build = plan.weights.build if plan.weights else {}
    lengths = [length for shape in _at(build, "frontend", "shape", "input_ids") or () for length in shape]
    if not lengths:
        raise MatrixError(
            f"{plan.cell}: weights.build.frontend.shape.input_ids: is missing",
            next_step="say the lengths to compile for, prompt and whole, as in [[1024], [2048]]",
        )
    tensor = _tensor(plan)
    set_here: dict[str, Any] = {
        "name": f"{plan.model.name}-{_dtype(plan)}-tp{tensor}-{'-'.join(map(str, lengths))}",
        "frontend": {"checkpoint": "$SRC", "type": "huggingface", "model_kwargs": {"tp": tensor}},
        "backend": {"dtype": _dtype(plan)},
        "workspace": {"path": "$DST"},
    }
    if plan.weights and plan.weights.type:
        set_here["frontend"]["quantize"] = {"type": plan.weights.type}
    elif plan.precision != "fp16":
        raise MatrixError(
            f"{plan.cell}: weights.type: is missing", next_step="say how the weights are quantised, such as w8a16_gptq"
        )
    told = plan.serve.args.get("max-model-len")
    if told is not None and told != max(lengths):
        raise MatrixError(f"{plan.cell}: max-model-len is {told}, and the weights are compiled for {max(lengths)} tokens")
    return _ordered(_joined(build, set_here, plan.cell, "weights.build"))


def server_config(plan: Plan) -> dict[str, Any]:
    """Return the configuration that llmdeploy starts from: `engine-config.server` with what follows from the plan."""
    tensor = _tensor(plan)
    said = plan.engine_config.get("server", {})
    if not isinstance(said, Mapping) or not all(isinstance(section, Mapping) for section in said.values()):
        raise MatrixError(f"{plan.cell}: engine-config.server: is not a mapping of sections")
    if strange := [name for name in said if name not in SECTIONS]:
        raise MatrixError(
            f"{plan.cell}: engine-config.server: llmdeploy has no section {strange[0]!r}",
            next_step=f"it has {', '.join(SECTIONS)}",
        )
    args: dict[str, Any] = {"model_name": plan.served_model_name}
    for name, value in plan.serve.args.items():
        if name in ARGUMENTS:
            args[ARGUMENTS[name]] = value
        elif name != "max-model-len":  # compiled into the weights
            raise MatrixError(
                f"{plan.cell}: llmdeploy has no serving argument {name!r}",
                next_step=f"it has: {', '.join((*ARGUMENTS, 'max-model-len'))}",
            )
    set_here = {
        "model": {**args, "model_infer_type": "tp", "tp_device_ids_list": list(range(tensor))},
        "api": {"server_host": "0.0.0.0", "server_port": plan.serve.port},
    }
    joined = _joined(said, set_here, plan.cell, "engine-config.server")
    return {name: joined[name] for name in SECTIONS if name in joined}


def unknowns(tree: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield place and reason of every `{unknown: reason}` in a tree."""
    if isinstance(tree, Mapping):
        if set(tree) == {"unknown"}:
            yield place, str(tree["unknown"])
            return
        for key, value in tree.items():
            yield from unknowns(value, f"{place}.{key}")
    elif isinstance(tree, Sequence) and not isinstance(tree, str):
        for number, value in enumerate(tree):
            yield from unknowns(value, f"{place}.{number}")


def _known(plan: Plan) -> dict[str, Any]:
    """Return the sections of the configuration in which nothing is unknown; none at all where there is no server."""
    server = server_config(plan)
    known = {name: section for name, section in server.items() if not list(unknowns(section, name))}
    return known if all(name in known for name in SERVING) else {}


def _joined(said: Mapping[str, Any], set_here: Mapping[str, Any], cell: str, place: str) -> dict[str, Any]:
    """Return both trees as one. Raises MatrixError where they say different things of one key."""
    joined = dict(said)
    for key, value in set_here.items():
        there = joined.get(key)
        if there is None:
            joined[key] = value
        elif isinstance(value, Mapping) and isinstance(there, Mapping):
            joined[key] = _joined(there, value, cell, f"{place}.{key}")
        elif there != value:
            raise MatrixError(
                f"{cell}: {place}.{key}: is {there!r}, and the plan says {value!r}", next_step="leave it out of the cell"
            )
    return joined


def _ordered(tree: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name in (*ORDER[""], *(key for key in tree if key not in ORDER[""])):
        part = tree[name]
        if isinstance(part, Mapping) and name in ORDER:
            part = {key: part[key] for key in (*ORDER[name], *(key for key in part if key not in ORDER[name])) if key in part}
        found[name] = part
    return found


def _at(tree: Mapping[str, Any], *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key, {}) if isinstance(tree, Mapping) else {}
    return tree


def _dtype(plan: Plan) -> str:
    if plan.precision not in DTYPES:
        raise MatrixError(f"{plan.cell}: vamc builds {' and '.join(DTYPES)}, not {plan.precision}")
    return DTYPES[plan.precision]


def _tensor(plan: Plan) -> int:
    if plan.parallel is not None and plan.parallel.pipeline_parallel_size > 1:
        raise MatrixError(f"{plan.cell}: llmdeploy splits by tensor parallel alone", next_step="set pipeline-parallel-size to 1")
    if plan.parallel is not None and plan.parallel.replicas > 1:
        raise MatrixError(
            f"{plan.cell}: llmdeploy serves one replica", next_step="set replicas to 1, and start more than one container"
        )
    return plan.parallel.tensor_parallel_size if plan.parallel else 1
