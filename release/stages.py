"""The stages of a build in the order in which a reader sees them; each declares what it reads, and gets nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import Final

from release.benchmarks import benchmarks, reads_benchmarks, reads_settle, settle_sets, unsettled
from release.consistency import consistency, reads_consistency, reads_trace, trace, unexamined
from release.coverage import profile, reads_profile, unmeasured, unprofiled
from release.matrix.load import Matrix
from release.matrix.memory import memory_of
from release.matrix.rules import concerns
from release.measure import judge, performance, reads_judge, reads_performance, ungated
from release.oci import sha256
from release.pipeline import Stage, Work, digest
from release.supply import (
    base,
    checkpoint,
    fetch,
    git_sources,
    reads_base,
    reads_checkpoint,
    reads_fetch,
    reads_unpatch,
    reads_weights,
    reads_wheels,
    unpatch,
    weights,
    wheels,
)
from release.trial import accuracy, compare, conformance, reads_accuracy, reads_compare, reads_conformance, reads_serve, serve
from release.types import JSON, Base, Parallel, Plan, dump

NETWORK, DISK, HOST_SERVERS = "network", "disk", "host-servers"
"""Resources of the machine that builds; `device:CHIP` are those of a chip's hosts."""


def render(work: Work) -> str:
    """Write the Dockerfile, the lock that the image is built from, and the engine's configuration files."""
    from release.builders.image import dockerfile, pylock, requirements

    base, reads = _base(work), work.reads
    patched = work.result("unpatch", "sources.json")
    found = sorted([*work.result("wheels", "wheels.json"), *patched], key=lambda wheel: str(wheel["name"]))
    labels = {
        "org.opencontainers.image.title": f"{reads['engine']} for {reads['chip']}",
        "org.opencontainers.image.vendor": "release",
        "org.opencontainers.image.base.name": base["image"],
        **({"org.opencontainers.image.base.digest": base["digest"]} if base["digest"] else {}),
        **{f"org.release.source.{wheel['name']}.version": wheel["version"] for wheel in patched},
        **{f"org.release.source.{wheel['name']}.tree": wheel["tree"] for wheel in patched if wheel["patches"]},
    }
    if reads["python"]:
        (work.out / "pylock.toml").write_text(pylock(found, reads["python"]["version"]))
    (work.out / "requirements.txt").write_text(requirements(found))
    text = dockerfile(
        reads["template"],
        base=base["image"],
        note=base["note"],
        wheels=found,
        labels=labels,
        files=sorted(reads["files"]),
        sources=reads["sources"],
        packages=reads["packages"],
    )
    (work.out / "Dockerfile").write_text(text)
    (work.out / "files").mkdir()
    for name, text in reads["files"].items():
        (work.out / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (work.out / "files" / name).write_text(text, encoding="utf-8")
    work.write("labels.json", labels)
    more = f", {len(reads['files'])} files of {reads['engine']}" if reads["files"] else ""
    return f"Dockerfile, pylock.toml with {len(found)} wheels{more}"


def _base(work: Work) -> JSON:
    """Return name and digest of the image to build on: what the base stage made, or what the plan says of one that is got elsewhere."""
    if "base" in work.inputs:
        facts = work.result("base", "base.json")
        return {"image": facts["image"], "digest": facts["diff-ids"][-1], "note": ""}
    spec = work.reads["base"]
    if image := spec.get("image"):
        return {"image": image, "digest": image.partition("@")[2], "note": ""}
    access = spec.get("access") or {"name": spec, "contact": ""}
    known = isinstance(access["name"], str)
    note = f"got from {access['contact']}" if access["contact"] else access["name"]["unknown"]
    return {"image": access["name"] if known else "unknown", "digest": "", "note": f"not pinned yet: {note}"}


def reads_render(plan: Plan, matrix: Matrix) -> JSON:
    """The engine, its template and configuration files, and what the labels say."""
    from release.builders.engines import engine_named
    from release.templates.render import sources

    engine = engine_named(plan.engine)
    return {
        "engine": plan.engine,
        "chip": plan.chip.id,
        "python": plan.python and dump(plan.python),
        "base": {} if made_here(plan) else dump(plan.base),
        "template": engine.TEMPLATE,
        "templates": {name: digest(text) for name, text in sources(engine.TEMPLATE).items()},
        "files": engine.files(plan),
        "sources": [{"name": source.name, "install": source.install, "env": source.env} for source in git_sources(plan)],
        "packages": {name: version for name, version in plan.packages.items() if isinstance(version, str)},
    }


def made_here(plan: Plan) -> bool:
    """Say whether the base is made by the base stage; one that is pinned or has to be got is known by name already."""
    return isinstance(plan.base, Base) and plan.base.bootstrap is not None


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
        sources=work.inputs["unpatch"] / "sources",
        labels=work.result("render", "labels.json"),
        base=base_facts,
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
    return {"epoch": plan.base.bootstrap.epoch if isinstance(plan.base, Base) and plan.base.bootstrap else 0}


def card(work: Work) -> str:
    """Write the record, with the verdicts as the waivers leave them, and the card in both languages from the record.

    Pictures are drawn where the extra for it is installed. It is no input: a release is not another one where it is missing, and a validated
    cell would be stale on the next machine.
    """
    from release.publish.card import render_card
    from release.publish.pictures import draw, facts_of, pictures_of, renderer
    from release.publish.record import CARDS, assemble, verdicts_of

    verdicts, waivers = verdicts_of(work), list[JSON]()
    if work.reads["waivers"]:
        from release.validators.waivers import settle

        verdicts, waivers = settle(verdicts, work.reads["waivers"], date.fromisoformat(work.reads["day"]))
    record = assemble(work, verdicts, waivers)
    pictures = pictures_of(record) if renderer() else {}
    for name, svg in draw(pictures).items() if pictures else ():
        path = work.out / "pictures" / f"{name}.svg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(svg)
        record["pictures"].append({"path": f"pictures/{name}.svg", "sha256": sha256(svg), "bytes": len(svg)})
    work.write("release.json", record)
    for language, name in CARDS.items():
        (work.out / name).write_text(render_card(record, language, facts_of(pictures)), encoding="utf-8")
    return f"{record['state']}"


def reads_card(plan: Plan, matrix: Matrix) -> JSON:
    """The whole plan with what the rules say of it and what a device holds, the card's templates, and with waivers the day."""
    from release.publish.card import PARTS, TEMPLATES
    from release.templates.render import sources

    templates = sources(*TEMPLATES.values(), PARTS)
    return {
        "plan": dump(plan),
        "concerns": [dump(concern) for concern in concerns(plan)],
        "memory": memory_of(plan, plan.parallel).facts if plan.parallel and plan.device else None,
        "templates": {name: digest(text) for name, text in templates.items()},
        "waivers": [dump(waiver) for waiver in plan.waivers],
        **({"day": date.today().isoformat()} if plan.waivers else {}),
    }


def publish(work: Work) -> str:
    """Put image, weights, record and card into one OCI layout, under one index."""
    from release.publish.artifact import assemble

    entry = assemble(work.inputs, work.reads["tag"], work.out / "oci")
    work.write("publish.json", {"index": entry.to_json(), "tag": work.reads["tag"]})
    return f"{work.reads['tag']} is {entry.digest[:19]}"


def reads_publish(plan: Plan, matrix: Matrix) -> JSON:
    """The tag."""
    return {"tag": plan.slug, "cell": plan.cell}


def served_by(plan: Plan) -> JSON:
    """Say what a server of this plan holds while it is up: devices of its chip, or a place on a host that is its own device."""
    if plan.device is None:
        return {HOST_SERVERS: 1, f"device:{plan.chip.id}": 1}
    layout = plan.parallel or Parallel()
    return {f"device:{plan.chip.id}": layout.world_size * layout.replicas}


def one(resource: str) -> Callable[[Plan], Mapping[str, int]]:
    """Return what holds one unit of a resource, whatever the plan."""
    return lambda plan: {resource: 1}


STAGES: Final = (
    Stage("fetch", 2, (), reads_fetch, fetch, uses=one(NETWORK), local=True),
    Stage("unpatch", 2, ("fetch",), reads_unpatch, unpatch),
    Stage("wheels", 1, (), reads_wheels, wheels, uses=one(NETWORK)),
    Stage("base", 1, (), reads_base, base, uses=one(DISK), here=True),
    Stage("checkpoint", 1, (), reads_checkpoint, checkpoint, uses=one(NETWORK)),
    Stage("weights", 1, ("checkpoint",), reads_weights, weights, uses=one(DISK)),
    Stage("render", 2, ("base", "wheels", "unpatch"), reads_render, render, lambda plan: () if made_here(plan) else ("base",)),
    Stage("image", 3, ("base", "wheels", "unpatch", "render"), reads_image, image, uses=one(DISK), here=True),
    Stage("serve", 1, ("image", "weights"), reads_serve, serve, uses=served_by, on="serve"),
    Stage("conformance", 2, ("image", "weights", "serve"), reads_conformance, conformance, on="serve"),
    Stage("trace", 1, ("image", "weights", "serve", "conformance"), reads_trace, trace, on="serve"),
    Stage(
        "consistency",
        1,
        ("image", "weights", "serve", "conformance", "reference:trace"),
        reads_consistency,
        consistency,
        spared=unexamined,
        on="serve",
    ),
    Stage("accuracy", 1, ("image", "weights", "serve", "conformance"), reads_accuracy, accuracy, on="serve"),
    Stage("compare", 1, ("accuracy", "reference:accuracy"), reads_compare, compare),
    Stage("benchmarks", 1, ("image", "weights", "serve", "conformance"), reads_benchmarks, benchmarks, on="serve"),
    Stage(
        "settle",
        1,
        ("accuracy", "reference:accuracy", "benchmarks", "reference:benchmarks"),
        reads_settle,
        settle_sets,
        unsettled,
    ),
    Stage("performance", 1, ("image", "weights", "serve", "conformance"), reads_performance, performance, on="serve"),
    Stage("profile", 2, ("image", "weights", "performance"), reads_profile, profile, unmeasured, uses=served_by, on="profile"),
    Stage("judge", 1, ("conformance", "performance", "reference:performance"), reads_judge, judge, ungated),
    Stage(
        "card",
        2,
        (
            "unpatch",
            "wheels",
            "base",
            "checkpoint",
            "weights",
            "render",
            "image",
            "serve",
            "conformance",
            "consistency",
            "accuracy",
            "compare",
            "settle",
            "performance",
            "profile",
            "judge",
            "reference:trace",
            "reference:accuracy",
            "reference:serve",
        ),
        reads_card,
        card,
        lambda plan: (*unexamined(plan), *unprofiled(plan)),
    ),
    Stage("publish", 2, ("image", "weights", "card"), reads_publish, publish),
)
