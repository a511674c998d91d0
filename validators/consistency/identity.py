"""Layer 0: are tokenizer, chat template, configuration and context the reference's? Seconds, and no token is generated but one a prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from release.types import JSON, Verdict
from release.validators.consistency.asking import Asking, Clock, read_prompt
from release.validators.consistency.case import Case, Measure, Side, verdict
from release.validators.consistency.evidence import header_of, read_log
from release.validators.endpoint import RefusedError

FILE: Final = "identity.jsonl"
LAYER: Final = "identity"
WANTED: Final = "the reference's tokenizer, chat template, configuration and context"
DOCUMENTS: Final[dict[str, frozenset[str]]] = {
    "tokenizer.json": frozenset(),
    "tokenizer_config.json": frozenset(
        {"chat_template", "transformers_version", "name_or_path", "tokenizer_file", "processor_class"}
    ),
    "config.json": frozenset(
        {
            "dtype",
            "torch_dtype",
            "quantization_config",
            "compression_config",
            "transformers_version",
            "_name_or_path",
            "use_cache",
        }
    ),
    "generation_config.json": frozenset({"transformers_version", "_from_model_config"}),
}
"""JSON files that decide what a model says, and their keys that do not: a conversion to another precision changes those."""
RAW: Final = ("tokenizer.model", "vocab.json", "merges.txt", "tekken.json")
LARGEST: Final = 64 * 1024 * 1024
"""Bytes of a file of a model's folder beyond which it is no configuration."""
NAMED: Final = 5
"""Prompts that a reason names."""


def facts_of(folder: Path) -> JSON:
    """Return what the files of a model's folder say, by file and key: values of configurations, digests of everything long.

    JSON is compared by content and not by bytes. A file that is missing, larger than 64 MiB, or no JSON is left out or told by digest.
    """
    facts: JSON = {}
    template = _bytes(folder / "chat_template.jinja")
    for name, volatile in DOCUMENTS.items():
        data = _bytes(folder / name)
        if data is None:
            continue
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            facts[name] = {"content": _sha256(data)}
            continue
        if name == "tokenizer_config.json" and template is None and isinstance(value.get("chat_template"), str):
            template = value["chat_template"].encode()
        facts[name] = {key: _short(inner) for key, inner in value.items() if key not in volatile}
    if template is not None:
        facts["chat template"] = {"content": _sha256(template)}
    facts |= {name: {"content": _sha256(data)} for name in RAW if (data := _bytes(folder / name)) is not None}
    return facts


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.stat().st_size <= LARGEST else None
    except OSError:
        return None


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _short(value: Any) -> Any:
    """Return a value that is shorter than a digest as it is, and the digest of any other."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return value if len(text) <= 100 else _sha256(text.encode())


def record(side: Side, clock: Clock) -> Path:
    """Ask a server for its context, and how many tokens it makes of each prompt (which ones, where it shows them)."""

    def everything() -> Iterator[Asking]:
        for prompt in side.prompts:
            path, body = prompt.request(side.endpoint, max_tokens=1, temperature=0, seed=0)
            yield Asking(f"{prompt.kind}:{prompt.id}", path, body, _rendered, _refusal)

    asked = {
        "layer": LAYER,
        "prompts": side.spec.sha256,
        "context": _context(side),
        "files": None if side.model_folder is None else facts_of(side.model_folder),
    }
    return side.ask(FILE, asked, everything, clock)


def _context(side: Side) -> int | None:
    try:
        return side.endpoint.max_model_len()
    except RefusedError:
        return None  # a server need not list its models


def _rendered(answer: JSON) -> JSON:
    shown = read_prompt(answer)
    ids = shown["ids"]
    return {"tokens": shown["tokens"], "sha256": None if ids is None else _sha256(json.dumps(ids).encode()), "refused": None}


def _refusal(problem: RefusedError) -> JSON:
    return {"tokens": None, "sha256": None, "refused": problem.message[:200]}


def judge(case: Case, clock: Clock) -> Verdict:
    """Compare what the servers, and the folders of both models where they were seen, show of themselves."""
    theirs = header_of(case.reference / FILE)
    wanted = case.candidate.spec.context or theirs["context"]
    files = None
    if case.candidate.model_folder is not None and theirs["files"] is not None:
        files = compare_files(theirs["files"], facts_of(case.candidate.model_folder))
        if files.finding == "DIFFERENT":  # known before a single question is asked
            return verdict(LAYER, [files], WANTED, {"asked": 0})
    ours = header_of(record(case.candidate, clock))
    measures = [_compare_context(ours["context"], wanted)] + ([files] if files else [])
    ref = {one["key"]: one for one in case.theirs(FILE)}
    cand = {one["key"]: one for one in read_log(case.candidate.folder / FILE)}
    rendered, figures = _compare_prompts(ref, cand)
    told = [one for one in (*measures, rendered) if one.finding != "UNVERIFIABLE"]
    silent = [one.reads for one in (*measures, rendered) if one.finding == "UNVERIFIABLE"]
    figures |= {"context": {"candidate": ours["context"], "wanted": wanted}, "asked": len(cand), "files-seen": files is not None}
    return verdict(LAYER, told, WANTED, figures, note="; ".join(silent))


def compare_files(theirs: JSON, ours: JSON) -> Measure:
    """Compare what two folders say (`facts_of`): what both have must be the same."""
    differing = []
    for name in sorted(theirs.keys() & ours.keys()):
        keys = sorted(key for key in theirs[name].keys() | ours[name].keys() if theirs[name].get(key) != ours[name].get(key))
        if keys:
            differing.append(name if keys == ["content"] else f"{name} ({', '.join(keys[:NAMED])})")
    if differing:
        return Measure("files", "DIFFERENT", f"the folders differ in {', '.join(differing)}")
    return Measure("files", "CONSISTENT", f"{len(theirs.keys() & ours.keys())} files say the same")


def _compare_context(ours: int | None, wanted: int | None) -> Measure:
    if ours is None or wanted is None:
        return Measure("context", "UNVERIFIABLE", "a server does not say how long a context it serves")
    if ours < wanted:
        return Measure("context", "DIFFERENT", f"the context is cut to {ours} tokens of {wanted}")
    return Measure("context", "CONSISTENT", f"a context of {ours} tokens")


def _compare_prompts(ref: dict[str, JSON], cand: dict[str, JSON]) -> tuple[Measure, JSON]:
    refused = [key for key in ref if cand[key]["refused"] and not ref[key]["refused"]]
    known = [key for key in ref if ref[key]["tokens"] is not None and cand[key]["tokens"] is not None]
    counts = [key for key in known if ref[key]["tokens"] != cand[key]["tokens"]]
    shown = [key for key in known if ref[key]["sha256"] and cand[key]["sha256"]]
    tokens = [key for key in shown if ref[key]["sha256"] != cand[key]["sha256"]]
    figures: JSON = {"prompts": len(known), "other-counts": len(counts), "ids-shown": len(shown), "other-ids": len(tokens)}
    figures |= {"refused": len(refused), "worst": _names(refused or counts or tokens)}
    if refused:
        told = f"{len(refused)} prompts are refused that the reference answers ({_names(refused)}): {cand[refused[0]]['refused']}"
        return Measure("prompts", "DIFFERENT", told), figures
    if counts or tokens:
        other = sorted({*counts, *tokens})
        plain = {key for key in known if key.startswith("text:")}
        part = (
            "the tokenizer differs" if plain & set(other) else f"the {'' if plain else 'tokenizer or the '}chat template differs"
        )
        by = {cand[key]["tokens"] - ref[key]["tokens"] for key in counts}
        shift = f", each by {by.pop():+d} tokens" if len(by) == 1 and len(counts) == len(other) else ""
        what = "another number of tokens" if counts else "other tokens"
        return Measure(
            "prompts", "DIFFERENT", f"{len(other)} of {len(known)} prompts have {what}{shift}: {part} ({_names(other)})"
        ), figures
    if not known:
        return Measure("prompts", "UNVERIFIABLE", "no prompt's tokens could be counted"), figures
    how = "the same tokens" if len(shown) == len(known) else "as many tokens"
    return Measure("prompts", "CONSISTENT", f"{len(known)} prompts have {how}"), figures


def _names(keys: list[str]) -> str:
    return ", ".join(key.partition(":")[2] for key in keys[:NAMED]) + (" …" if len(keys) > NAMED else "")
