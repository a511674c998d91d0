"""The stages that try a release: served with the card's own command, checked, questioned, compared with its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from typing import TYPE_CHECKING, Any, Final

from release.errors import StageError
from release.matrix.load import Matrix
from release.pipeline import Work, digest, mark
from release.types import JSON, Accuracy, Container, Plan, Staging, Status, Verdict, dump, tuples

if TYPE_CHECKING:
    from release.containers import Engine
    from release.validators.serving import Server

UNUSED_MARGIN: Final = 0.5
"""Stands in while questions are asked: the margin is read by `compare` alone, so that another margin asks nothing again."""


def serve(work: Work) -> str:
    """Start the image by digest with the card's own command, and wait until it is healthy."""
    if work.reads["unknown"]:
        raise StageError(work.reads["unknown"])
    if not work.reads["health"]:
        raise StageError(
            "this cell has no server to validate: what it starts answers one question and ends",
            next_step="build it with --until image; a service that the vendor's table ticks is a feature of the cell",
        )
    server = server_of(work, work.task.key, work.reads)
    (work.out / "server.log").write_text(server.log())
    work.write("serve.json", {"ready-after": server.ready_after, **launch_facts(work)})
    return f"healthy after {server.ready_after:.1f} s"


def reads_serve(plan: Plan, matrix: Matrix | None = None) -> JSON:
    """How the engine is started and where it says that it serves (nowhere: no server), and how its container reaches the device."""
    from release.builders.engines import engine_named, health_of

    engine = engine_named(plan.engine)
    try:
        argv, reason = engine.command(plan), ""
    except StageError as problem:  # nobody has said how: everything before this stage can be built all the same
        argv, reason = [], f"{problem.message} {problem.next_step}".strip()
    return {
        "engine": plan.engine,
        "health": health_of(engine, plan),
        "argv": argv,
        "unknown": reason,
        "serve": dump(plan.serve),
        "container": dump(plan.container),
        "model": plan.served_model_name,
    }


def launch_facts(work: Work) -> JSON:
    """Return the command that the card prints: the weights in $PWD/weights, the plan's own port."""
    image_id = work.result("image", "image.json")["config"]
    port = work.reads["serve"]["port"]
    command = _command(work.reads, image_id, f"127.0.0.1:{port}:{port}", "$PWD/weights", ("--rm",))
    return {
        "command": command,
        "image": image_id,
        "port": port,
        "argv": work.reads["argv"],
        "env": work.reads["serve"]["env"],
        "memory": work.reads["serve"]["memory"],
        "health": work.reads["health"],
        "model": work.reads["model"],
    }


def conformance(work: Work) -> str:
    """Check that the server speaks the OpenAI protocol as clients expect it."""
    from release.validators.conformance import conformance as check
    from release.validators.endpoint import Endpoint

    reads = work.reads["serve"]
    server = server_of(work, work.task.needs["serve"], reads)
    verdicts = check(Endpoint(server.url, reads["model"]), max_model_len=work.reads["max-model-len"], progress=work.line.follow)
    work.write("conformance.json", [dump(verdict) for verdict in verdicts])
    (work.out / "server.log").write_text(server.log())
    passed = sum(verdict.status.value == "PASSED" for verdict in verdicts)
    return f"{passed} of {len(verdicts)} checks passed"


def reads_conformance(plan: Plan, matrix: Matrix) -> JSON:
    """How the server was started, and the context length that it was given in tokens."""
    return {
        "serve": reads_serve(plan, matrix),
        "max-model-len": _context(plan),
    }


def accuracy(work: Work) -> str:
    """Ask the server every question of the set and keep one record a sample."""
    from release.oci import link_or_copy
    from release.validators.accuracy import evaluate
    from release.validators.endpoint import Endpoint
    from release.validators.statistics import wilson_interval

    if work.reads["accuracy"] is None:
        work.write("accuracy.json", None)
        return "no question set"
    spec = Accuracy.model_validate({**work.reads["accuracy"], "margin": UNUSED_MARGIN})
    server = server_of(work, work.task.needs["serve"], work.reads["serve"])
    samples = work.partial() / "samples.jsonl"
    summary = evaluate(
        Endpoint(server.url, work.reads["serve"]["model"]),
        spec,
        work.matrix.file(spec.questions),
        samples,
        progress=work.line.follow,
    )
    for file in sorted(work.partial().iterdir()):
        link_or_copy(file, work.out / file.name)
    low, high = wilson_interval(summary.correct, summary.n, 0.95)
    work.write("accuracy.json", {**dump(summary), "interval": [low, high]})
    return f"{summary.correct} of {summary.n} right ({summary.correct / summary.n:.1%}), {summary.failed} failed, {summary.truncated} truncated"


def reads_accuracy(plan: Plan, matrix: Matrix) -> JSON:
    """How the server was started, and the questions with their rule."""
    return {
        "serve": reads_serve(plan, matrix),
        "accuracy": plan.accuracy and plan.accuracy.model_dump(mode="json", by_alias=True, exclude={"margin"}),
        **period(plan.accuracy.max_age if plan.accuracy else None),
    }


def period(days: int | None) -> JSON:
    """Return what makes results older than so many days be made anew: the number of the span of days that today lies in."""
    return {"period": date.today().toordinal() // days} if days else {}


def compare(work: Work) -> str:
    """Compare the cell's answers with its reference's, question by question."""
    from release.validators.comparison import compare as verdict_of
    from release.validators.samples import read_samples

    if "reference:accuracy" not in work.inputs or work.reads["accuracy"] is None:
        verdict = Verdict(
            name="accuracy",
            status=Status.SKIPPED,
            measured="no comparison",
            wanted="a reference to compare with, and questions to ask",
            reason="The cell names no reference: it is one itself."
            if work.reads["accuracy"]
            else "The cell has no question set.",
        )
    else:
        spec = Accuracy.model_validate(work.reads["accuracy"])
        candidate, reference = (read_samples(work.inputs[side] / "samples.jsonl") for side in ("accuracy", "reference:accuracy"))
        verdict = verdict_of(candidate, reference, spec, names=(work.reads["cell"], work.reads["reference"]))
    work.write("compare.json", dump(verdict))
    return f"{verdict.figures.get('finding', verdict.status.value)}: {verdict.measured}"


def reads_compare(plan: Plan, matrix: Matrix) -> JSON:
    """The rule of the verdict, and the names of both sides."""
    return {"accuracy": plan.accuracy and dump(plan.accuracy), "cell": plan.cell, "reference": plan.reference}


def server_of(work: Work, key: str, reads: JSON) -> Server:
    """Return the running server of a serve stage, started if this run has not done so."""
    from release.builders.image import provide_image
    from release.validators import serving

    facts = work.result("image", "image.json")
    folder = work.inputs["weights"] / "model"

    def start(stack: ExitStack) -> Server:
        seat, fleet = work.session.seat_of(key), work.session.fleet
        if seat is not None and fleet is not None:
            place = stack.enter_context(fleet.sit(seat, work.task.cell, work.line.note))
            engine, flags, host, staging = place.engine, place.flags, seat.host, fleet.hosts.staging(seat.host)
            work.line.note(f"bringing the weights to {host}")
            mounted = fleet.weights(host, folder, work.store.path, digest([work.task.needs["weights"], mark(folder)]))
        else:
            engine, flags, host, staging, mounted = work.session.engine, (), "", None, str(folder)
        work.line.note("waiting for the image to be loaded")
        with work.session.once(f"{host} {facts['config']}"):
            if staging is not None and not engine.has(facts["config"]):
                _send(work, facts, staging, host, engine)
            image_id = provide_image(facts, work.inputs["image"], engine, work.line)
        return serving.start(
            engine,
            work.session.guard,
            stack,
            lambda publish, extra: _command(reads, image_id, publish, mounted, (*extra, *flags)),
            health=reads["health"],
            within=reads["serve"]["ready-within"],
            port=reads["serve"]["port"],
            on_host=reads["container"]["network"] == "host",
            say=work.line.note,
        )

    return work.session.server(key, start)


def _send(work: Work, facts: Mapping[str, Any], staging: Staging, host: str, engine: Engine) -> None:
    """Have the engine of a host hold the image, by way of its registry; of many that need it there, one puts it in."""
    from release.builders.image import TAG
    from release.oci import Layout
    from release.staging import collect, stage

    layout = Layout.open(work.inputs["image"] / "layout")
    manifest = layout.find(TAG)
    with work.session.once(f"{staging.here} {manifest.digest}"):
        stage(staging, layout, manifest, work.line)
    collect(staging, host, engine, manifest, facts["config"], work.line)


def _command(reads: JSON, image_id: str, publish: str, folder: str, extra: Sequence[str]) -> list[str]:
    from release.launch import run_command

    return run_command(
        Container.model_validate(tuples(reads["container"])),
        image=image_id,
        argv=reads["argv"],
        env=reads["serve"]["env"],
        memory=reads["serve"]["memory"],
        publish=publish,
        weights=folder,
        extra=extra,
    )


def _context(plan: Plan) -> int:
    """Return the context in tokens that the server is given: what the engine is told, else the model's own."""
    told = plan.serve.args.get("max-model-len", plan.model.architecture.context)
    return told if isinstance(told, int) else plan.model.architecture.context
