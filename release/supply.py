"""The stages that bring what a release is made of: sources, patches, wheels, base, checkpoint, weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from release.errors import MatrixError, PatchError, StageError
from release.matrix.load import Matrix
from release.oci import sha256_file
from release.pipeline import Work
from release.sources import deliver, opener, restore
from release.types import JSON, RELATIVE, Base, GitSource, Plan, Python, Wheel, dump, tuples

if TYPE_CHECKING:
    from release.builders.wheels import Pin
    from release.patches.read import PatchSet


def fetch(work: Work) -> str:
    """Bring the sources whose code the release changes, each by its digest."""
    from release.builders.wheels import Pin

    found = _download(work, [Pin(source.name, source.version, source.sha256) for source in _sources(work)])
    work.write("sources.json", found)
    brought = []
    for source in _repositories(work):
        work.line.note(f"{source.name}: bringing {source.repository}")
        patches = _patch_set(work, source.patches)
        roots = deliver(work.store, source, patches, offline=work.session.offline).roots
        brought.append((source.name, {root.path or ".": root.commit for root in roots}))
    work.write("git.json", [{"name": name, "commits": commits} for name, commits in brought])
    said = [f"{wheel['name']} {wheel['version']}" for wheel in found]
    said += [f"{name} {commits['.'][:12]}" for name, commits in brought]
    return f"{', '.join(said)}, {_megabytes(found)}" if said else "nothing to fetch"


def reads_fetch(plan: Plan, matrix: Matrix) -> JSON:
    """Sources and the interpreter that they must fit."""
    return {
        "repositories": [dump(source) for source in git_sources(plan)],
        "patches": _patch_digests(plan, matrix, git_sources(plan)),
        "sources": [dump(source) | {"patches": None} for source in wheel_sources(plan)],
        "python": plan.python and dump(plan.python),
        "architecture": plan.chip.architecture,
    }


def unpatch(work: Work) -> str:
    """Apply the vendors' patch sets to the sources and keep each patched source as a wheel."""
    from release.builders.sources import patch_wheel
    from release.oci import link_or_copy
    from release.patches.read import patch_set

    upstream = {wheel["sha256"]: wheel for wheel in work.result("fetch", "sources.json")}
    (work.out / "wheels").mkdir()
    found = []
    for source in _sources(work):
        wheel = upstream[source.sha256]
        file = work.inputs["fetch"] / "wheels" / wheel["file"]
        if source.patches is None:
            link_or_copy(file, work.out / "wheels" / file.name)
            found.append({**wheel, "patches": []})
            continue
        work.line.note(f"{source.wheel}: reading patches")
        patches = patch_set(matrix_patches(work.matrix, source.patches), decrypt=opener(work.session.patch_key))
        _same_patches(work, source, [patch.sha256 for patch in patches.patches])
        work.line.note(f"{source.wheel}: applying {len(patches.patches)} patches")
        made = patch_wheel(file, patches, work.out / "wheels", work.scratch)
        found.append(
            {
                **wheel,
                "upstream-sha256": wheel["sha256"],
                "sha256": made.sha256,
                "bytes": made.file.stat().st_size,
                "base-tree": made.base_tree,
                "tree": made.tree,
                "changed": list(made.changed),
                "patches": [{"file": patch.file, "sha256": patch.sha256} for patch in patches.patches],
            }
        )
    work.write("sources.json", found)
    restored = []
    for git in _repositories(work):
        work.line.note(f"{git.name}: restoring its tree")
        delivery = deliver(work.store, git, _patch_set(work, git.patches), offline=True)
        restored.append(restore(delivery, git, work.out / "sources" / git.name, work.scratch, work.session.patch_key))
    work.write("git.json", restored)
    trees = [*(wheel for wheel in found if wheel["patches"]), *restored]
    return (
        ", ".join(f"{one['name']}: {len(one['patches'])} patches, tree {one['tree'][:12]}" for one in trees) or "nothing to patch"
    )


def reads_unpatch(plan: Plan, matrix: Matrix) -> JSON:
    """The sources and the digest of every patch."""
    return {
        "sources": [dump(source) for source in wheel_sources(plan)],
        "repositories": [dump(source) for source in git_sources(plan)],
        "patches": _patch_digests(plan, matrix, plan.sources),
    }


def wheels(work: Work) -> str:
    """Bring every wheel that the image installs, each by its digest."""
    from release.builders.wheels import read_pins

    pins = read_pins(work.matrix.file(work.reads["pins"])) if work.reads["pins"] else []
    found = _download(work, pins)
    if work.reads.get("plugin"):
        from release.builders.plugin import write_wheel

        found = sorted([*found, write_wheel(work.out / "wheels")], key=lambda wheel: str(wheel["name"]))
    work.write("wheels.json", found)
    if not found:
        return "none: the base image brings them"
    return f"{len(found)} wheels, {_megabytes(found)}"


def reads_wheels(plan: Plan, matrix: Matrix) -> JSON:
    """The pins and the interpreter that they must fit, and which state of our plugin comes with them, if it does."""
    from release.builders.plugin import digest_of

    return {
        **({"plugin": digest_of()} if plan.operators and plan.operators.plugin else {}),
        "pins": plan.wheels,
        "sha256": plan.wheels_sha256,
        "python": plan.python and dump(plan.python),
        "architecture": plan.chip.architecture,
    }


def base(work: Work) -> str:
    """Make or pull the lowest layers of the image."""
    from release.builders.base import imported_base, make_base, pull_base

    if "unknown" in work.reads["base"]:
        raise StageError(
            f"the base image is unknown: {work.reads['base']['unknown']}", next_step="pin one: base: {image: NAME@sha256:…}"
        )
    spec = Base.model_validate(tuples(work.reads["base"]))
    if spec.access is not None:
        name = spec.access.name if isinstance(spec.access.name, str) else "of the vendor"
        raise StageError(
            f"the base image {name} is not pinned: it has to be got from {spec.access.contact}",
            next_step="then `release base import FILE` says which digest to write into the cell's base.image",
        )
    if spec.image is not None and work.store.has(imported := spec.image.partition("@sha256:")[2]):
        work.write("base.json", imported_base(spec.image, work.store.facts(imported)["base"], work.store.get(imported), work.out))
        return f"{spec.image}, imported"
    if spec.image is not None:
        work.write("base.json", pull_base(spec.image, work.session.engine, work.line))
        return spec.image
    assert spec.bootstrap is not None
    facts = make_base(spec.bootstrap, work.reads["architecture"], out=work.out, scratch=work.scratch, line=work.line)
    work.write("base.json", facts)
    return f"{len(facts['packages'])} Debian packages, {facts['bytes'] / 1e6:.0f} MB"


def reads_base(plan: Plan, matrix: Matrix) -> JSON:
    """The base and the architecture."""
    return {"base": dump(plan.base), "architecture": plan.chip.architecture}


def checkpoint(work: Work) -> str:
    """Bring the upstream checkpoint, every file by its digest."""
    from release.builders.weights import check_files

    spec = work.reads["checkpoint"]
    (work.out / "model").mkdir()
    if spec["path"] is None:
        size = _from_hub(work, spec["hub"], spec["files"])
    else:
        size = check_files(work.matrix.file(spec["path"]), spec["files"], work.out / "model", work.line)
    return f"{len(spec['files'])} files, {size / 1e6:.1f} MB"


def _from_hub(work: Work, hub: JSON, files: dict[str, str]) -> int:
    """Bring the files of a hub's repository, as they are pinned."""
    from release.builders.hubs import bring

    if not files or not isinstance(hub["revision"], str):
        raise StageError(
            f"the checkpoint {hub['repository']} is not here, and is not pinned file by file",
            next_step="`release weights pin MODEL` prints the checkpoint.files for the model's file; or put it into a folder of your "
            "matrix, and write checkpoint.path and checkpoint.files",
        )
    if work.session.offline and (missing := [name for name, digest in files.items() if not work.store.blob(digest).is_file()]):
        raise StageError(
            f"{missing[0]} is not in the store, and the network is not to be used", next_step="build once with the network"
        )
    return bring(
        str(hub["repository"]),
        hub["revision"],
        hub["sites"],
        files,
        store=work.store,
        partial=work.partial(),
        out=work.out / "model",
        line=work.line,
    )


def reads_checkpoint(plan: Plan, matrix: Matrix) -> JSON:
    """The digests of the files, and of the files that are there: a change of either is a reason to look again."""
    if plan.model.checkpoint.path is None:
        return {"checkpoint": dump(plan.model.checkpoint), "there": {}}
    path = plan.model.checkpoint.path
    folder = next((each / path for each in matrix.folders if (each / path).is_dir()), matrix.folders[0] / path)
    there = {name: sha256_file(folder / name) if (folder / name).is_file() else None for name in plan.model.checkpoint.files}
    return {"checkpoint": dump(plan.model.checkpoint), "there": there}


def weights(work: Work) -> str:
    """Bring the checkpoint into the cell's precision: by a conversion of ours, or by the tool that the cell names."""
    from release.builders.weights.make import LOG, make
    from release.builders.weights.recipe import Recipe

    (work.out / "model").mkdir()
    facts = make(
        Recipe.model_validate(tuples(work.reads["recipe"])),
        work.inputs["checkpoint"] / "model",
        work.out / "model",
        line=work.line,
        partial=work.partial(),
        scratch=work.scratch,
        log=work.out / LOG,
        files={name: work.matrix.file(name) for name in work.reads["texts"]},
    )
    work.write("weights.json", facts)
    size = sum(file["bytes"] for file in facts["files"].values())
    if facts["upstream"] == facts["precision"]:
        return f"{facts['precision']} as upstream, {size / 1e6:.1f} MB"
    by = f" by {facts['tool']} {facts['tool-version'] or ''}".rstrip() if "tool" in facts else ""
    return f"{facts['upstream']} → {facts['precision']}{by}, {facts['converted']} tensors, {size / 1e6:.1f} MB"


def reads_weights(plan: Plan, matrix: Matrix) -> JSON:
    """How the weights are made, and the texts of this matrix that a tool calibrates with."""
    from release.builders.weights.recipe import recipe_for

    recipe = recipe_for(plan)
    texts = {}
    for name in recipe.calibration:
        with contextlib.suppress(MatrixError):  # a data set that has a name and is not here, as vendors' papers list them
            texts[name] = sha256_file(matrix.file(name)) if RELATIVE.fullmatch(name) else None
    return {"recipe": dump(recipe), "texts": {name: digest for name, digest in texts.items() if digest}}


def wheel_sources(plan: Plan) -> list[Wheel]:
    """Return the plan's sources that are wheels."""
    return [source for source in plan.sources if isinstance(source, Wheel)]


def git_sources(plan: Plan) -> list[GitSource]:
    """Return the plan's sources that are repositories."""
    return [source for source in plan.sources if isinstance(source, GitSource)]


def _download(work: Work, pins: Sequence[Pin]) -> list[JSON]:
    """Put pinned wheels that fit the stage's interpreter into the output's wheels/ and return what they are."""
    from release.builders.wheels import download

    (work.out / "wheels").mkdir(exist_ok=True)
    if not pins:
        return []
    if work.session.offline and (missing := [pin.requirement for pin in pins if not work.store.blob_name(pin.digest).is_file()]):
        raise StageError(
            f"{missing[0].partition(' ')[0]} is not in the store, and the network is not to be used",
            next_step="build once with the network",
        )
    python, architecture = Python.model_validate(work.reads["python"]), work.reads["architecture"]
    return download(pins, python, architecture, store=work.store, partial=work.partial(), out=work.out / "wheels", line=work.line)


def _patch_set(work: Work, relative: str | None) -> PatchSet | None:
    from release.patches.read import patch_set

    return patch_set(matrix_patches(work.matrix, relative), decrypt=opener(work.session.patch_key)) if relative else None


def _patch_digests(plan: Plan, matrix: Matrix, sources: Iterable[Wheel | GitSource]) -> dict[str, list[str]]:
    """Return the digest of every patch of every patch set, as it lies there."""
    from release.patches.read import digests

    return {source.patches: digests(matrix_patches(matrix, source.patches)) for source in sources if source.patches}


def _repositories(work: Work) -> list[GitSource]:
    return [GitSource.model_validate(tuples(source)) for source in work.reads["repositories"]]


def _sources(work: Work) -> list[Wheel]:
    return [Wheel.model_validate(source) for source in work.reads["sources"]]


def _same_patches(work: Work, source: Wheel, found: list[str]) -> None:
    locked = work.reads["patches"][source.patches]
    if found != locked:
        raise PatchError(f"patch set {source.patches} is {found}, the lock says {locked}")


def matrix_patches(matrix: Matrix, relative: str) -> Path:
    """Return the folder of a patch set: in a matrix folder's own patches/, else in ours."""
    from release import patches

    for folder in matrix.folders:
        if (folder / "patches" / relative).is_dir():
            return folder / "patches" / relative
    return Path(patches.__path__[0]) / relative


def _megabytes(found: list[dict[str, Any]]) -> str:
    return f"{sum(wheel['bytes'] for wheel in found) / 1e6:.0f} MB"
