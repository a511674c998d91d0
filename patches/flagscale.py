"""FlagScale's ways of keeping a vendor's patches: found, in whichever of its generations, and read into one delivery.

    A             hardware/<device>/<base8>/<base8>.patch                 one mailbox for the whole tree; base8 begins its base
    transitional  hardware/<Device>/<backend>/<id7>.patch and .yaml       one diff a backend
    B             hardware/<Device>/<backend>/diff.patch and diff.yaml    one diff a backend
    C             hardware/<Device>/<backend>/<path>.patch and diff.yaml  one diff a source file

Every `.patch` may be a `.patch.encrypted` instead. In the last three, the YAML file names the base commit and, for a backend that
is a submodule `third_party/<backend>`, its commit; `hardware/patch_history.yaml` names the commits at which patches were kept.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from release.errors import PatchError, ReleaseError, RequestError
from release.patches.delivery import MAILBOX, Delivery, Found, Root, announced
from release.patches.git import FILE, PROGRAM, Entry
from release.patches.mirror import COMMIT, Mirror
from release.patches.read import ENCRYPTED

HARDWARE: Final = "hardware"
HISTORY: Final = "hardware/patch_history.yaml"
OWN: Final = "FlagScale"
"""The backend that is FlagScale's own tree; every other one is a submodule."""
BACKENDS: Final = {
    "megatron": "Megatron-LM", "megatron-lm": "Megatron-LM", "energon": "Megatron-Energon", "megatron-energon": "Megatron-Energon",
    "fs": OWN, "flagscale": OWN, "vllm": "vllm", "sglang": "sglang", "llama.cpp": "llama.cpp", "llama_cpp": "llama.cpp",
    "omniinfer": "omniinfer", "verl": "verl",
}  # fmt: skip
"""Spellings of a backend, as FlagScale's own tool takes them, in small letters."""
DEVICE: Final = re.compile(r"[A-Za-z0-9]+_\w+", re.ASCII)
HEX: Final = re.compile(r"[0-9a-f]{7,40}")
SHORTEST: Final = 8
"""Digits of the base commit that name a patch of generation A."""
YAML_LIMIT: Final = 1 << 20
FILES_LIMIT: Final = 10_000
DELIVERY_LIMIT: Final = 256 << 20
"""Patches that a backend may have, and their bytes together."""

ReadYaml = Callable[[bytes], Any]
"""Returns the content of a YAML file as mappings, sequences and scalars."""


@dataclass(frozen=True)
class Wanted:
    """Which patches are wanted, in the words of FlagScale's own tool.

    `commit_id` is the base commit, 8 digits or more, in generation A, and in the later ones the commit of FlagScale at which the
    patches are kept (otherwise the history names it). `backends` and `task` (`train`, `inference`) count in the later ones only.
    """

    device_type: str
    commit_id: str = ""
    backends: tuple[str, ...] = ()
    task: str = ""


@dataclass(frozen=True)
class _Kept:
    """What one backend has in the repository: its patches as files of the tree, and what its YAML file says."""

    backend: str
    generation: str
    files: Mapping[str, Entry]
    base: str
    commits: Mapping[str, str]


def delivery(
    mirror: Mirror,
    wanted: Wanted,
    *,
    revision: str = "HEAD",
    submodules: Mapping[str, Mirror] | None = None,
    read_yaml: ReadYaml,
) -> Delivery:
    """Find the patches that are wanted in FlagScale at `revision`, and bring all that is needed to apply them into the mirrors.

    `submodules` announces path → mirror of the submodules whose content is wanted; a backend that is patched must be among them.
    Raises PatchError when device, base or backend are not there, with what is there instead.
    """
    if not DEVICE.fullmatch(wanted.device_type):
        raise RequestError(f"{wanted.device_type!r} is not a device type such as Vendor_Model", where=mirror.name)
    head = mirror.commit(revision)
    files = _files(mirror, head, wanted.device_type)
    if mailbox := _mailbox(wanted, files):
        if not HEX.fullmatch(wanted.commit_id):
            raise RequestError(f"{wanted.commit_id!r} is not the beginning of a commit", where=mirror.name)
        base = mirror.commit(wanted.commit_id)
        mirror.bring(base)
        own = Root("", mirror, base, _found(mirror, mailbox))
        return Delivery(mirror.name, MAILBOX, head, (own, *announced(own, submodules or {}, {})))
    source, kept = _later(mirror, head, wanted, read_yaml, files)
    base = _newest(mirror, [each.base for each in kept])
    mirror.bring(base)
    own = Root("", mirror, base, tuple(found for each in kept if each.backend == OWN for found in _found(mirror, each.files)))
    others = {
        f"third_party/{each.backend}": (each.commits.get(each.backend, ""), _found(mirror, each.files))
        for each in kept
        if each.backend != OWN
    }
    generation = "/".join(sorted({each.generation for each in kept}))
    return Delivery(mirror.name, generation, source, (own, *announced(own, submodules or {}, others)))


def _files(mirror: Mirror, commit: str, device: str) -> dict[str, Entry]:
    """Return the files that are kept for a device, by path below its folder, with the content of all in the mirror."""
    folder = f"{HARDWARE}/{device}"
    files = mirror.entries(commit, folder)
    if not files:
        there = sorted({path.split("/")[1] for path in mirror.entries(commit, HARDWARE) if path.count("/") > 1})
        raise RequestError(
            f"there are no patches for {device} at commit {commit}{_near(device, there)}",
            where=mirror.name,
            next_step=f"there are patches for {', '.join(there)}" if there else "name a commit at which patches are kept",
        )
    mirror.bring(commit, [folder])
    return {path[len(folder) + 1 :]: entry for path, entry in files.items()}


def _mailbox(wanted: Wanted, files: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the one patch of generation A that is wanted, or nothing where it is not there."""
    short = wanted.commit_id[:SHORTEST]
    for ending in (".patch", ENCRYPTED):
        if len(short) == SHORTEST and (entry := files.get(path := f"{short}/{short}{ending}")):
            return {f"{HARDWARE}/{wanted.device_type}/{path}": entry}
    return {}


def _later(mirror: Mirror, head: str, wanted: Wanted, read_yaml: ReadYaml, files: Mapping[str, Entry]) -> tuple[str, list[_Kept]]:
    """Return what the generations with a YAML file keep for each backend that is wanted, and the commit at which they keep it."""
    there = sorted({path.split("/")[0] for path in files if "/" in path})
    if (bases := _bases(files, there)) and bases == there:
        raise RequestError(
            f"no patch is kept for the base commit {wanted.commit_id!r}"
            if wanted.commit_id
            else "which base is not said: patches are kept for one or more commits",
            where=f"{mirror.name}: {HARDWARE}/{wanted.device_type}",
            next_step=f"name with --commit-id (in a cell: commit-id) one of {', '.join(bases)}, with {SHORTEST} digits or more",
        )
    chosen = sorted({_backend(name, mirror.name) for name in wanted.backends}) or (there if len(there) == 1 else [])
    source = mirror.commit(wanted.commit_id) if wanted.commit_id and not _names(files, wanted.commit_id) else ""
    if not source:
        source = _latest(mirror, head, wanted, chosen, read_yaml) or head
    if source != head:
        files = _files(mirror, source, wanted.device_type)
        there = sorted({path.split("/")[0] for path in files if "/" in path})
    if not chosen or (missing := sorted(set(chosen) - set(there))):
        raise RequestError(
            f"no patches for {', '.join(missing)} are kept" if chosen else "there are patches for several backends",
            where=f"{mirror.name}: {HARDWARE}/{wanted.device_type}",
            next_step=f"name one or more of {', '.join(there)}" if there else "name a commit at which patches are kept",
        )
    return source, [_kept(mirror, wanted, backend, files, read_yaml) for backend in chosen]


def _bases(files: Mapping[str, Entry], there: Sequence[str]) -> list[str]:
    """Return the base commits for which generation A keeps patches."""
    return [folder for folder in there if {f"{folder}/{folder}.patch", f"{folder}/{folder}{ENCRYPTED}"} & set(files)]


def _names(files: Mapping[str, Entry], id: str) -> bool:
    """Say whether a patch of the transitional generation has this id as its name."""
    return any(path.count("/") == 1 and path.split("/")[1].split(".")[0] == id[:7] for path in files)


def _kept(mirror: Mirror, wanted: Wanted, backend: str, files: Mapping[str, Entry], read_yaml: ReadYaml) -> _Kept:
    """Read what is kept for a backend, and tell its generation by how the files are called."""
    mine = {path.partition("/")[2]: entry for path, entry in files.items() if path.startswith(f"{backend}/")}
    where = f"{mirror.name}: {HARDWARE}/{wanted.device_type}/{backend}"
    patches = {name: entry for name, entry in mine.items() if name.endswith((".patch", ENCRYPTED))}
    if "diff.yaml" in mine:
        generation, told = "C", "diff.yaml"
        if set(patches) & {"diff.patch", "diff" + ENCRYPTED}:
            generation = "B"
            if len(patches) > 1:
                raise PatchError(f"beside diff.patch there are other patches: {', '.join(sorted(patches))}", where=where)
    else:
        ids = sorted(name[:-5] for name in mine if name.endswith(".yaml") and HEX.fullmatch(name[:-5]))
        id = next((id for id in ids if wanted.commit_id.startswith(id)), ids[0] if len(ids) == 1 else "")
        if not id:
            raise RequestError(
                "there is no diff.yaml, and no other one that is wanted", where=where, next_step=f"there are: {ids}"
            )
        generation, told = "transitional", f"{id}.yaml"
        patches = {name: entry for name, entry in patches.items() if name in (f"{id}.patch", id + ENCRYPTED)}
    if not patches or len(patches) > FILES_LIMIT:
        raise PatchError(f"there are {len(patches)} patches; 1 to {FILES_LIMIT} are taken", where=where)
    facts = _told(mirror, mine[told], f"{where}/{told}", read_yaml)
    base, commits = _facts(facts, f"{where}/{told}", told[:-5] if generation == "transitional" else "")
    folder = f"{HARDWARE}/{wanted.device_type}/{backend}"
    return _Kept(backend, generation, {f"{folder}/{name}": entry for name, entry in patches.items()}, base, commits)


def _facts(facts: Any, where: str, id: str) -> tuple[str, Mapping[str, str]]:
    """Return the base commit and the backends' commits that a diff.yaml names; the other keys decide nothing."""
    if not isinstance(facts, Mapping):
        raise PatchError("it is not a mapping of keys to values", where=where)
    base, commits = facts.get("commit", id), facts.get("backends_commit") or {}
    if not isinstance(base, str) or not HEX.fullmatch(base):
        raise PatchError(f"commit is {base!r}, not a commit", where=where)
    if not isinstance(commits, Mapping) or not all(isinstance(id, str) and COMMIT.fullmatch(id) for id in commits.values()):
        raise PatchError("backends_commit is not a mapping of backends to full commits", where=where)
    return base, commits


def _latest(mirror: Mirror, head: str, wanted: Wanted, backends: Collection[str], read_yaml: ReadYaml) -> str:
    """Return the commit that the history names last for a device, task and set of backends; empty where it names none."""
    entry = mirror.entries(head, HARDWARE).get(HISTORY)
    if not entry or not backends:
        return ""
    mirror.bring(head, [HISTORY])
    history = _told(mirror, entry, f"{mirror.name}: {HISTORY}", read_yaml)
    tasks = history.get(wanted.device_type) if isinstance(history, Mapping) else None
    if not isinstance(tasks, Mapping):
        return ""
    key = "+".join(sorted(backends))
    found = {
        task: commits[key]
        for task, commits in tasks.items()
        if isinstance(commits, Mapping) and wanted.task in ("", task) and commits.get(key)
    }
    if len(found) > 1:
        raise RequestError(
            f"{key} has patches for several tasks",
            where=f"{mirror.name}: {HISTORY}",
            next_step=f"name one of: {', '.join(found)}",
        )
    for commits in found.values():
        if not isinstance(commits, Sequence) or not isinstance(commits[-1], str) or not COMMIT.fullmatch(commits[-1]):
            raise PatchError(f"what it names for {key} is not a list of full commits", where=f"{mirror.name}: {HISTORY}")
        return mirror.commit(commits[-1])
    return ""


def _newest(mirror: Mirror, bases: Sequence[str]) -> str:
    """Return the base that descends from the others, as FlagScale's tool takes the first of them in topological order."""
    commits = [mirror.commit(base) for base in dict.fromkeys(bases)]
    return mirror.newest(commits)


def _found(mirror: Mirror, files: Mapping[str, Entry]) -> tuple[Found, ...]:
    contents = _contents(mirror, files, DELIVERY_LIMIT)
    return tuple(Found(path, contents[path]) for path in sorted(contents))


def _contents(mirror: Mirror, files: Mapping[str, Entry], limit: int) -> dict[str, bytes]:
    for path, entry in files.items():
        if entry.mode not in (FILE, PROGRAM):
            raise PatchError("it is not a plain file", where=f"{mirror.name}: {path}")
    found = mirror.blobs([entry.id for entry in files.values()], limit)
    return {path: found[entry.id] for path, entry in files.items()}


def _told(mirror: Mirror, entry: Entry, where: str, read_yaml: ReadYaml) -> Any:
    """Return the content of a YAML file of the repository."""
    content = _contents(mirror, {"": entry}, YAML_LIMIT)[""]
    try:
        return read_yaml(content)
    except ReleaseError as problem:
        raise PatchError(problem.message, where=where, next_step=problem.next_step) from problem


def _backend(name: str, where: str) -> str:
    if found := BACKENDS.get(name.lower()):
        return found
    raise RequestError(f"there is no backend {name!r}{_near(name, sorted(set(BACKENDS.values())))}", where=where)


def _near(name: str, known: Sequence[str]) -> str:
    lower = {posixpath.basename(each).lower(): each for each in known}
    matches = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f" (did you mean {lower[matches[0]]!r}?)" if matches else ""
