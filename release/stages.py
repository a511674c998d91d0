"""The stages of a build in the order in which a reader sees them, and what each declares that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from release.matrix.load import Matrix
from release.oci import sha256_file
from release.pipeline import Stage, Work, digest
from release.types import JSON, Accuracy, Base, Container, Plan, Python, Source, Status, Verdict

if TYPE_CHECKING:
    from release.validators.serving import Server


def _dump(value: Any) -> Any:
    return value.model_dump(mode="json", by_alias=True)


def fetch(work: Work) -> str:
    """Bring the sources whose code the release changes, each by its digest."""
    from release.builders.wheels import Pin, download

    python = Python.model_validate(work.reads["python"])
    pins = [Pin(source.name, source.version, source.sha256) for source in _sources(work)]
    found = download(
        pins, python, work.reads["architecture"], store=work.store, partial=work.partial(), out=work.out / "wheels", line=work.line
    )
    work.write("sources.json", found)
    names = ", ".join(f"{wheel['name']} {wheel['version']}" for wheel in found)
    return f"{names}, {_megabytes(found)}"


def reads_fetch(plan: Plan, matrix: Matrix) -> JSON:
    """Sources and the interpreter that they must fit."""
    return {
        "sources": [_dump(source) | {"patches": None} for source in plan.sources],
        "python": _dump(plan.python),
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
        patches = patch_set(matrix_patches(work.matrix, source.patches))
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
    patched = [wheel for wheel in found if wheel["patches"]]
    return ", ".join(f"{wheel['name']}: {len(wheel['patches'])} patches, tree {wheel['tree'][:12]}" for wheel in patched) or "nothing to patch"


def reads_unpatch(plan: Plan, matrix: Matrix) -> JSON:
    """The sources and the digest of every patch."""
    from release.patches.read import patch_set

    patches = {
        source.patches: [patch.sha256 for patch in patch_set(matrix_patches(matrix, source.patches)).patches]
        for source in plan.sources
        if source.patches is not None
    }
    return {"sources": [_dump(source) for source in plan.sources], "patches": patches}


def wheels(work: Work) -> str:
    """Bring every wheel that the image installs, each by its digest."""
    from release.builders.wheels import download, read_pins

    python = Python.model_validate(work.reads["python"])
    pins = read_pins(work.matrix.file(work.reads["pins"]))
    found = download(
        pins, python, work.reads["architecture"], store=work.store, partial=work.partial(), out=work.out / "wheels", line=work.line
    )
    work.write("wheels.json", found)
    return f"{len(found)} wheels, {_megabytes(found)}"


def reads_wheels(plan: Plan, matrix: Matrix) -> JSON:
    """The pins and the interpreter that they must fit."""
    return {
        "pins": plan.wheels, "sha256": plan.wheels_sha256, "python": _dump(plan.python), "architecture": plan.chip.architecture,
    }  # fmt: skip


def base(work: Work) -> str:
    """Make or pull the lowest layers of the image."""
    from release.builders.base import make_base, pull_base

    spec = Base.model_validate(_tuples(work.reads["base"]))
    if spec.image is not None:
        work.write("base.json", pull_base(spec.image, work.session.engine, work.line))
        return spec.image
    assert spec.bootstrap is not None
    facts = make_base(spec.bootstrap, work.reads["architecture"], out=work.out, scratch=work.scratch, line=work.line)
    work.write("base.json", facts)
    return f"{len(facts['packages'])} Debian packages, {facts['bytes'] / 1e6:.0f} MB"


def reads_base(plan: Plan, matrix: Matrix) -> JSON:
    """The base and the architecture."""
    return {"base": _dump(plan.base), "architecture": plan.chip.architecture}


def checkpoint(work: Work) -> str:
    """Bring the upstream checkpoint, every file by its digest."""
    from release.builders.weights import check_files

    spec = work.reads["checkpoint"]
    (work.out / "model").mkdir()
    size = check_files(work.matrix.file(spec["path"]), spec["files"], work.out / "model", work.line)
    return f"{len(spec['files'])} files, {size / 1e6:.1f} MB"


def reads_checkpoint(plan: Plan, matrix: Matrix) -> JSON:
    """The digests of the files, and of the files that are there: a change of either is a reason to look again."""
    folder = matrix.file(plan.model.checkpoint.path)
    there = {name: sha256_file(folder / name) if (folder / name).is_file() else None for name in plan.model.checkpoint.files}
    return {"checkpoint": _dump(plan.model.checkpoint), "there": there}


def weights(work: Work) -> str:
    """Bring the checkpoint into the cell's precision."""
    from release.builders.weights import convert

    (work.out / "model").mkdir()
    facts = convert(
        work.inputs["checkpoint"] / "model", work.out / "model", upstream=work.reads["upstream"], precision=work.reads["precision"],
        line=work.line,
    )  # fmt: skip
    work.write("weights.json", facts)
    size = sum(file["bytes"] for file in facts["files"].values())
    if facts["upstream"] == facts["precision"]:
        return f"{facts['precision']} as upstream, {size / 1e6:.1f} MB"
    return f"{facts['upstream']} → {facts['precision']}, {facts['converted']} tensors, {size / 1e6:.1f} MB"


def reads_weights(plan: Plan, matrix: Matrix) -> JSON:
    """The two precisions."""
    return {"upstream": plan.model.precision, "precision": plan.precision}


def render(work: Work) -> str:
    """Write the Dockerfile and the lock that the image is built from."""
    from release.builders.engines import engine_named
    from release.builders.image import dockerfile, pylock, requirements

    base_facts, patched = work.result("base", "base.json"), work.result("unpatch", "sources.json")
    found = sorted([*work.result("wheels", "wheels.json"), *patched], key=lambda wheel: str(wheel["name"]))
    labels = {
        "org.opencontainers.image.title": f"{work.reads['engine']} for {work.reads['chip']}",
        "org.opencontainers.image.vendor": "release",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.base.name": base_facts["image"],
        "org.opencontainers.image.base.digest": base_facts["diff-ids"][-1],
        "org.opencontainers.image.version": next((w["version"] for w in patched), "unknown"),
        **{f"org.release.source.{wheel['name']}.tree": wheel["tree"] for wheel in patched if wheel["patches"]},
    }
    (work.out / "pylock.toml").write_text(pylock(found, work.reads["python"]["version"]))
    (work.out / "requirements.txt").write_text(requirements(found))
    template = engine_named(work.reads["engine"]).TEMPLATE
    (work.out / "Dockerfile").write_text(dockerfile(template, base=base_facts["image"], wheels=found, labels=labels))
    work.write("labels.json", labels)
    return f"Dockerfile, pylock.toml with {len(found)} wheels"


def reads_render(plan: Plan, matrix: Matrix) -> JSON:
    """The engine, its template, and what the labels say."""
    from release.builders.engines import engine_named
    from release.templates.render import sources

    template = engine_named(plan.engine).TEMPLATE
    return {
        "engine": plan.engine, "chip": plan.chip.id, "python": _dump(plan.python),
        "templates": {name: digest(text) for name, text in sources(template).items()},
    }  # fmt: skip


def image(work: Work) -> str:
    """Build the image with no network and normalise it into an OCI layout."""
    from release.builders.base import provide_base
    from release.builders.image import build_image

    engine = work.session.engine
    base_facts = work.result("base", "base.json")
    provide_base(base_facts, work.inputs["base"], engine)
    facts = build_image(
        engine,
        rendered=work.inputs["render"],
        wheels=[work.inputs["wheels"] / "wheels", work.inputs["unpatch"] / "wheels"],
        labels=work.result("render", "labels.json"),
        base_diff_ids=base_facts["diff-ids"],
        epoch=work.reads["epoch"],
        key=work.task.key,
        use_cache=work.session.use_build_cache,
        out=work.out,
        scratch=work.scratch,
        line=work.line,
    )
    work.write("image.json", facts)
    unpacked, packed = (sum(layer[name] for layer in facts["layers"]) for name in ("unpacked", "bytes"))
    return f"{facts['manifest']['digest'][:19]}, {unpacked / 1e9:.2f} GB, {packed / 1e9:.2f} GB compressed"


def reads_image(plan: Plan, matrix: Matrix) -> JSON:
    """The time stamp that everything in the image gets, in seconds."""
    return {"epoch": plan.base.bootstrap.epoch if plan.base.bootstrap else 0}


def serve(work: Work) -> str:
    """Start the image by digest with the card's own command, and wait until it is healthy."""
    server = _server(work, work.task.key, work.reads)
    (work.out / "server.log").write_text(server.log())
    work.write("serve.json", {"ready-after": server.ready_after, **launch_facts(work)})
    return f"healthy after {server.ready_after:.1f} s"


def reads_serve(plan: Plan, matrix: Matrix) -> JSON:
    """How the engine is started, and how its container reaches the device."""
    from release.builders.engines import engine_named

    engine = engine_named(plan.engine)
    return {
        "argv": engine.command(plan.serve), "health": engine.HEALTH, "serve": _dump(plan.serve), "container": _dump(plan.chip.container),
        "model": plan.served_model_name,
    }  # fmt: skip


def launch_facts(work: Work) -> JSON:
    """Return the command that the card prints: the weights in $PWD/weights, the plan's own port."""
    image_id = work.result("image", "image.json")["config"]
    port = work.reads["serve"]["port"]
    command = _command(work.reads, image_id, f"127.0.0.1:{port}:{port}", "$PWD/weights", ("--rm",))
    return {"command": command, "image": image_id, "port": port, "health": work.reads["health"], "model": work.reads["model"]}


def conformance(work: Work) -> str:
    """Check that the server speaks the OpenAI protocol as clients expect it."""
    from release.validators.conformance import conformance as check
    from release.validators.endpoint import Endpoint

    reads = work.reads["serve"]
    server = _server(work, work.task.needs["serve"], reads)
    verdicts = check(Endpoint(server.url, reads["model"]), max_model_len=work.reads["max-model-len"], progress=work.line.follow)
    work.write("conformance.json", [_dump(verdict) for verdict in verdicts])
    (work.out / "server.log").write_text(server.log())
    passed = sum(verdict.status.value == "PASSED" for verdict in verdicts)
    return f"{passed} of {len(verdicts)} checks passed"


def reads_conformance(plan: Plan, matrix: Matrix) -> JSON:
    """How the server was started, and the context length that it was given in tokens."""
    return {"serve": reads_serve(plan, matrix), "max-model-len": int(plan.serve.args.get("max-model-len", plan.model.architecture.context))}


def accuracy(work: Work) -> str:
    """Ask the server every question of the set and keep one record a sample."""
    from release.oci import link_or_copy
    from release.validators.accuracy import evaluate
    from release.validators.endpoint import Endpoint
    from release.validators.statistics import wilson_interval

    spec = Accuracy.model_validate(work.reads["accuracy"])
    server = _server(work, work.task.needs["serve"], work.reads["serve"])
    samples = work.partial() / "samples.jsonl"
    summary = evaluate(
        Endpoint(server.url, work.reads["serve"]["model"]), spec, work.matrix.file(spec.questions), samples, progress=work.line.follow
    )
    for file in sorted(work.partial().iterdir()):
        link_or_copy(file, work.out / file.name)
    low, high = wilson_interval(summary.correct, max(1, summary.correct + summary.wrong), 0.95)
    work.write("accuracy.json", {**_dump(summary), "interval": [low, high]})
    return f"{summary.correct} of {summary.n} right ({summary.correct / summary.n:.1%}), {summary.failed} failed, {summary.truncated} truncated"


def reads_accuracy(plan: Plan, matrix: Matrix) -> JSON:
    """How the server was started, and the questions with their rule."""
    spec = _dump(plan.accuracy)
    del spec["margin"]
    return {"serve": reads_serve(plan, matrix), "accuracy": {**spec, "margin": 0.5}}


def compare(work: Work) -> str:
    """Compare the cell's answers with its reference's, question by question."""
    from release.validators.comparison import compare as verdict_of
    from release.validators.samples import read_samples

    if "reference:accuracy" not in work.inputs:
        verdict = Verdict(
            name="accuracy", status=Status.SKIPPED, measured="no comparison", wanted="a reference to compare with",
            reason="The cell names no reference: it is one itself.",
        )  # fmt: skip
    else:
        spec = Accuracy.model_validate(work.reads["accuracy"])
        candidate, reference = (read_samples(work.inputs[side] / "samples.jsonl") for side in ("accuracy", "reference:accuracy"))
        verdict = verdict_of(candidate, reference, spec, names=(work.reads["cell"], work.reads["reference"]))
    work.write("compare.json", _dump(verdict))
    return f"{verdict.figures.get('finding', verdict.status.value)}: {verdict.measured}"


def reads_compare(plan: Plan, matrix: Matrix) -> JSON:
    """The rule of the verdict, and the names of both sides."""
    return {"accuracy": _dump(plan.accuracy), "cell": plan.cell, "reference": plan.reference}


def card(work: Work) -> str:
    """Write the record, and the card from the record."""
    from release.publish.card import render_card
    from release.publish.record import assemble

    record = assemble(work)
    work.write("release.json", record)
    (work.out / "README.md").write_text(render_card(record), encoding="utf-8")
    return f"{record['state']}"


def reads_card(plan: Plan, matrix: Matrix) -> JSON:
    """The whole plan, and the card's templates."""
    from release.templates.render import sources

    return {"plan": _dump(plan), "templates": {name: digest(text) for name, text in sources("cards/card.md.j2").items()}}


def publish(work: Work) -> str:
    """Put image, weights, record and card into one OCI layout, under one index."""
    from release.publish.artifact import assemble

    entry = assemble(work.inputs, work.reads["tag"], work.out / "oci")
    work.write("publish.json", {"index": entry.to_json(), "tag": work.reads["tag"]})
    return f"{work.reads['tag']} is {entry.digest[:19]}"


def reads_publish(plan: Plan, matrix: Matrix) -> JSON:
    """The tag."""
    return {"tag": plan.slug, "cell": plan.cell}


STAGES: Final = (
    Stage("fetch", 1, (), reads_fetch, fetch),
    Stage("unpatch", 1, ("fetch",), reads_unpatch, unpatch),
    Stage("wheels", 1, (), reads_wheels, wheels),
    Stage("base", 1, (), reads_base, base),
    Stage("checkpoint", 1, (), reads_checkpoint, checkpoint),
    Stage("weights", 1, ("checkpoint",), reads_weights, weights),
    Stage("render", 1, ("base", "wheels", "unpatch"), reads_render, render),
    Stage("image", 1, ("base", "wheels", "unpatch", "render"), reads_image, image),
    Stage("serve", 1, ("image", "weights"), reads_serve, serve),
    Stage("conformance", 1, ("image", "weights", "serve"), reads_conformance, conformance),
    Stage("accuracy", 1, ("image", "weights", "serve", "conformance"), reads_accuracy, accuracy),
    Stage("compare", 1, ("accuracy", "reference:accuracy"), reads_compare, compare),
    Stage(
        "card", 1,
        ("unpatch", "wheels", "base", "checkpoint", "weights", "render", "image", "serve", "conformance", "accuracy", "compare",
         "reference:accuracy", "reference:serve"),
        reads_card, card,
    ),
    Stage("publish", 1, ("image", "weights", "card"), reads_publish, publish),
)  # fmt: skip


def _server(work: Work, key: str, reads: JSON) -> Server:
    """Return the running server of a serve stage, started if this run has not done so."""
    from release.builders.image import provide_image
    from release.validators import serving

    facts = work.result("image", "image.json")
    folder = work.inputs["weights"] / "model"

    def start(stack: ExitStack) -> Server:
        engine = work.session.engine
        work.line.note("waiting for the image to be loaded")
        with work.session.once(str(facts["config"])):
            image_id = provide_image(facts, work.inputs["image"], engine, work.line)
        return serving.start(
            engine, work.session.guard, stack,
            lambda publish, extra: _command(reads, image_id, publish, str(folder), extra),
            health=reads["health"], within=reads["serve"]["ready-within"], port=reads["serve"]["port"], say=work.line.note,
        )  # fmt: skip

    return work.session.server(key, start)


def _command(reads: JSON, image_id: str, publish: str, folder: str, extra: Sequence[str]) -> list[str]:
    from release.containers import run_command

    return run_command(
        Container.model_validate(_tuples(reads["container"])), image=image_id, argv=reads["argv"], env=reads["serve"]["env"],
        memory=reads["serve"]["memory"], publish=publish, weights=folder, extra=extra,
    )  # fmt: skip


def _sources(work: Work) -> list[Source]:
    return [Source.model_validate(source) for source in work.reads["sources"]]


def _same_patches(work: Work, source: Source, found: list[str]) -> None:
    from release.errors import PatchError

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


def _tuples(document: Any) -> Any:
    """Return JSON with its lists as tuples, as strict frozen types want them."""
    if isinstance(document, dict):
        return {key: _tuples(value) for key, value in document.items()}
    return tuple(_tuples(item) for item in document) if isinstance(document, list) else document
