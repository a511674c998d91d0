"""The stages that measure: how fast a server answers, whether that is fast enough, and whether its operators are those that are claimed."""

from __future__ import annotations

import json
import os
import re

from release.errors import StageError
from release.kernels.plugin import LINE
from release.matrix.load import Matrix
from release.oci import sha256_file
from release.pipeline import Work
from release.store import write_whole
from release.trial import reads_serve, server_of
from release.types import JSON, Plan, Status, Verdict, Wheel, dump, tuples
from release.types.performance import Load, Machine, Performance, Point, Run

JUDGED = ("of_reference", "of_last", "last", "last_sha256")
"""What of a load only the gate reads: another bound measures nothing again."""
QUOTED = 200
"""Characters of a log's line that are quoted, from what proves on where it is longer."""


def performance(work: Work) -> str:
    """Put every load of the cell on the server, each as often as it says; a killed run goes on with the next repeat."""
    if work.reads["load"] is None:
        work.write("performance.json", None)
        return "not measured: the cell asks for no load"
    from release.validators.performance.vllm_bench import TOOL

    load = Load.model_validate(tuples(work.reads["load"]))
    points = []
    for tokens in load.grid:
        for concurrency in load.concurrency:
            runs = tuple(_run(work, load, tokens, concurrency, repeat) for repeat in range(load.repeats))
            requests = load.requests_at(concurrency)
            points.append(
                Point(input_tokens=tokens[0], output_tokens=tokens[1], concurrency=concurrency, requests=requests, runs=runs)
            )
    found = Performance(
        tool=TOOL,
        version=", ".join(work.reads["versions"]) or "unknown",
        machine=machine(
            work.session.look(work.task.needs["serve"], "/proc/cpuinfo"), work.reads["device"], work.reads["devices"]
        ),
        prefix_cache="as the engine has it by default; every prompt is random, so that none is found again",
        slo=load.slo,
        points=tuple(points),
    )
    work.write("performance.json", dump(found))
    best = max(points, key=lambda point: point.throughput)
    failed = sum(run.failed for point in points for run in point.runs)
    return f"{best.throughput:.0f} output tokens a second at {best.name}, median of {load.repeats}; {failed} requests failed"


def _run(work: Work, load: Load, tokens: tuple[int, int], concurrency: int, repeat: int) -> Run:
    """Return one repeat: as an earlier, killed run left it, else measured now."""
    from release.validators.performance.vllm_bench import argv, read_run

    key, kept = work.task.needs["serve"], work.partial() / f"{tokens[0]}-{tokens[1]}-{concurrency}-{repeat}.json"
    seat = work.session.seat_of(key)
    host = {"host": seat.host} if seat else {}
    if not kept.is_file() or json.loads(kept.read_bytes()).get("host") != host.get("host"):  # no two machines in one measurement
        serve = work.reads["serve"]
        server = server_of(work, key, serve)
        work.line.note(f"{tokens[0]}+{tokens[1]} × {concurrency}, repeat {repeat + 1} of {load.repeats}")
        before = float(work.session.look(key, "/proc/loadavg").split()[0])
        line = argv(load, tokens, concurrency, repeat, model=serve["model"], port=serve["serve"]["port"])
        status, out, err = server.engine.execute(server.container, line)
        if status:
            raise StageError(f"the benchmark ended with status {status}: {(err or out)[-600:].strip()}")
        try:
            document = json.loads(out)
        except ValueError as problem:
            raise StageError(f"the benchmark printed no result: {out[-300:]!r}") from problem
        write_whole(kept, json.dumps({"load-before": before, **host, "result": document}))
    known = json.loads(kept.read_bytes())
    write_whole(work.out / kept.name, json.dumps(known, indent=1))
    return read_run(known["result"], known["load-before"])


def machine(processors: str, device: str | None, devices: int | None) -> Machine:
    """Return the fingerprint of the machine that a server is on, from its /proc/cpuinfo."""
    lines = processors.splitlines()
    cores = sum(line.startswith("processor") for line in lines)
    names = (line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "cpu model")))
    return Machine(processor=next(names, os.uname().machine), cores=cores or 1, device=device, devices=devices)


def reads_performance(plan: Plan, matrix: Matrix) -> JSON:
    """How the server was started, the load without what is only judged, which packages the image has it from, and the devices."""
    load = plan.performance
    return {
        "serve": reads_serve(plan, matrix),
        "load": load and load.model_dump(mode="json", by_alias=True, exclude=set(JUDGED)),
        "versions": [f"{source.name} {source.version}" for source in plan.sources if isinstance(source, Wheel)],
        "device": plan.device and plan.device.name,
        "devices": plan.parallel.world_size * plan.parallel.replicas if plan.parallel and plan.device else None,
    }


def judge(work: Work) -> str:
    """Hold the measured throughput against the reference's and the last release's, and the server's log against what the cell claims."""
    from release.validators.performance import gate

    found: list[Verdict] = []
    mine = _measured(work.result("performance", "performance.json"))
    reads = work.reads
    if mine is not None and reads["of-reference"] is not None:
        other = (
            _measured(work.result("reference:performance", "performance.json"))
            if "reference:performance" in work.inputs
            else None
        )
        whose = reads["reference"] or "a reference, of which there is none"
        found.append(gate(mine, other, reads["of-reference"], name="reference", whose=whose))
    if mine is not None and reads["of-last"] is not None:
        path = work.matrix.file(reads["last"])
        if (found_digest := sha256_file(path)) != reads["last-sha256"]:
            raise StageError(
                f"{path} is {found_digest}", next_step="look at what changed in it, then write its digest into the cell"
            )
        last = json.loads(path.read_bytes())
        found.append(gate(mine, _measured(last.get("performance")), reads["of-last"], name="last", whose="the last release"))
    if reads["operators"] is not None:
        found.append(_proven(reads["operators"], (work.inputs["conformance"] / "server.log").read_text(errors="replace")))
    work.write("judged.json", [dump(verdict) for verdict in found])
    return "; ".join(f"{verdict.name} {verdict.status}" for verdict in found) or "nothing to judge"


def _measured(document: JSON | None) -> Performance | None:
    return None if document is None else Performance.model_validate(tuples(document))


def _proven(claim: JSON, log: str) -> Verdict:
    """Return whether the server's log proves the operators that the cell claims: a switch that is set proves nothing.

    A line of our plugin names what serves each operator, and proves no library in which it has none.
    """
    fitting = (line.strip() for line in log.splitlines() if re.search(claim["proof"], line))
    line = next((line for line in fitting if LINE not in line or re.search(rf"[:;] {claim['library']}( \(|:)", line)), None)
    if line and len(line) > QUOTED and (fits := re.search(claim["proof"], line)):
        line = f"{line[fits.start() :][: QUOTED - 1]}…"
    return Verdict(
        name="operators/proof",
        status=Status.PASSED if line else Status.FAILED,
        measured=line or f"no such line among {len(log.splitlines())}",
        wanted=f"a line of the server's log that fits {claim['proof']!r}",
        reason=f"{claim['library']} is {'switched on, as the log says' if line else 'claimed, and nothing in the log shows it'}.",
        figures={"finding": "PROVEN" if line else "UNPROVEN", "library": claim["library"], "env": claim["env"]},
    )


def reads_judge(plan: Plan, matrix: Matrix) -> JSON:
    """The bounds, the last release's record by digest, who the reference is, and what is claimed of the operators."""
    load = plan.performance
    return {
        "of-reference": load and load.of_reference,
        "of-last": load and load.of_last,
        "last": load and load.last,
        "last-sha256": load and load.last_sha256,
        "reference": plan.reference,
        "operators": plan.operators and dump(plan.operators),
    }


def ungated(plan: Plan) -> tuple[str, ...]:
    """Return the needs that a plan spares whose throughput is not held against its reference's."""
    return () if plan.performance and plan.performance.of_reference else ("reference:performance",)
