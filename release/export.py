"""The build of many cells as a pipeline for those who must stay with their CI: a job a cell, after what it is compared with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from release.build import PRECISION, target_of
from release.errors import UsageError
from release.house import House
from release.matrix.parse import written
from release.shelves import shelf_at
from release.types import JSON, Plan, split_cell

USER, PASSWORD, HOST = "RELEASE_REGISTRY_USER", "RELEASE_REGISTRY_PASSWORD", "RELEASE_REGISTRY_HOST"
"""User and password are secrets, by the name under which the CI has them, for the registry HOST alone. No value of theirs stands in a file."""
SHELF: Final = "RELEASE_REMOTE_STORE"
FOLDER: Final = re.compile(r"file:///[A-Za-z0-9._/%+~-]+")
"""A shared folder: whether it is there is for the CI's machines to say."""
INSTALL: Final = "pip install '.[weights,report]'"
"""Conversions of weights need the one extra, pictures on cards the other."""
ACTIVATE: Final = ". .venv/bin/activate"
CRON: Final = "0 20 * * *"
"""A night: 20:00 UTC."""
ACTIONS: Final = {
    "checkout": "actions/checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8",
    "python": "actions/setup-python@e797f83bcb11b83ae66e0230d6156d7c80228e7c",
    "upload": "actions/upload-artifact@ea165f8d65b6e75b540449e92b4886f43607fa02",
}
"""By commit: v5.0.0, v6.0.0, v4.6.2."""
RUNNERS: Final = {"amd64": "ubuntu-latest", "arm64": "ubuntu-24.04-arm"}
"""GitHub's own runners with a container engine, by the architecture of a host processor."""
RUNS: Final = {
    "github": "$GITHUB_RUN_NUMBER.$GITHUB_RUN_ATTEMPT",
    "gitlab": "$CI_PIPELINE_IID.$CI_JOB_ID",
    "argo": "{{workflow.creationTimestamp.s}}",
}
"""What no other attempt of a job has, as each CI writes it: a published tag never moves."""
NODE: Final = "/var/lib/release"
"""Argo: a folder of the node, under one path on the node and in the pod, so that the node's engine finds what is mounted into its servers."""
SOCKET: Final = "/var/run/docker.sock"
HOURS: Final = 12
"""Hours after which a job is stopped."""


@dataclass(frozen=True)
class Wanted:
    """What a pipeline is to do beside building: push into the registry `to`, pass with `least`, run in the container `image`, share finished
    stages at `shelf`; `options` stand before every command."""

    to: str | None = None
    least: str = "built"
    image: str = ""
    shelf: str | None = None
    options: tuple[str, ...] = ()

    def line(self, *words: str) -> str:
        """Return a command line of ours."""
        return shlex.join(("release", *self.options, *words))

    @property
    def plain(self) -> dict[str, str]:
        """The environment of every job that is no secret: where stages are shared, and which registry the secrets are for."""
        named = self.to or (self.shelf or "").partition("oci://")[2]
        found = {SHELF: self.shelf or "", HOST: named.partition("/")[0]}
        return {name: value for name, value in found.items() if value}

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets that jobs need."""
        return (USER, PASSWORD) if HOST in self.plain else ()


@dataclass(frozen=True)
class Job:
    """One cell's job: what builds it, after which others, and of which chip and architecture (with a device of it, or a host processor)."""

    name: str
    cell: str
    chip: str
    architecture: str
    device: bool
    needs: tuple[str, ...]
    command: str


def pipeline(house: House, cells: Sequence[str], wanted: Wanted, run: str) -> list[Job]:
    """Return the jobs of a build of `cells` (and of all that they are compared with), each after what it needs; `run` is in every tag.

    Raises UsageError for a registry that is none, and for a cell that is compared with one of another machine without a shelf.
    """
    plans = house.plans(cells)
    jobs: list[Job] = []
    done: set[str] = set()
    while waiting := [cell for cell in plans if cell not in done]:
        for cell in waiting:
            reference = plans[cell].reference
            if reference is None or reference in done:
                if reference and wanted.shelf is None and house.hosts() is None:
                    _refuse_distant(cell, reference)
                jobs.append(_job(plans[cell], wanted, run))
                done.add(cell)
    return jobs


def _refuse_distant(cell: str, reference: str) -> None:
    if split_cell(cell)[0] != split_cell(reference)[0]:
        raise UsageError(
            f"{cell} is compared with {reference}, which another machine builds",
            next_step="say where finished stages are shared: --remote-store oci://HOST/NAMESPACE/NAME",
        )


def _job(plan: Plan, wanted: Wanted, run: str) -> Job:
    """Return a cell's job. What is compared with nothing cannot be validated, and is not asked to be."""
    least = wanted.least if plan.reference else "built"
    command = wanted.line("build", "--select", plan.cell, "--require", least)
    if wanted.to:
        target_of(plan.cell, wanted.to, None)
        command += f' --to {shlex.quote(wanted.to)} --tag "{PRECISION}-{run}"'
    needs = (job_of(plan.reference),) if plan.reference else ()
    return Job(job_of(plan.cell), plan.cell, plan.chip.id, plan.chip.architecture, plan.device is not None, needs, command)


def job_of(cell: str) -> str:
    """Return a cell's id as every CI takes it for a job's name: it begins with a letter whatever the chip's does."""
    return "cell-" + re.sub(r"[^a-z0-9]+", "-", cell)


def export(kind: str, house: House, cells: Sequence[str], wanted: Wanted) -> str:
    """Return a pipeline for the CI `kind` as YAML.

    Raises UsageError for a registry or a remote store that is none, for argo without an image, and as `pipeline` does.
    """
    if kind == "argo" and not wanted.image:
        raise UsageError("argo runs containers: which one?", next_step="give --image, an image in which `release` is installed")
    if wanted.shelf is not None and not FOLDER.fullmatch(wanted.shelf):
        shelf_at(wanted.shelf)
    jobs = pipeline(house, cells, wanted, RUNS[kind])
    if len({job.name for job in jobs}) < len(jobs):
        raise UsageError("two jobs would have one name", next_step="leave one of the cells out")
    return written(KINDS[kind](jobs, wanted))


def github(jobs: Sequence[Job], wanted: Wanted) -> JSON:
    """Return a GitHub workflow. A chip's runner is a self-hosted one with the chip as its label."""
    return {
        "name": "release",
        "on": {"workflow_dispatch": {}, "schedule": [{"cron": CRON}]},
        "permissions": {"contents": "read"},
        "concurrency": {"group": "release", "cancel-in-progress": False},
        **({"env": wanted.plain} if wanted.plain else {}),
        "jobs": {job.name: _github_job(job, wanted) for job in jobs},
    }


def _github_job(job: Job, wanted: Wanted) -> JSON:
    secrets = {name: f"${{{{ secrets.{name} }}}}" for name in wanted.secrets}
    return {
        "name": job.cell,
        # whatever became of the others: what is lacking is built here, or this job says what is wrong with it
        **({"needs": list(job.needs), "if": "${{ !cancelled() }}"} if job.needs else {}),
        "runs-on": ["self-hosted", job.chip] if job.device else RUNNERS[job.architecture],
        "timeout-minutes": 60 * HOURS,
        "steps": [
            {"uses": ACTIONS["checkout"]},
            {"uses": ACTIONS["python"], "with": {"python-version": "3.11"}},
            {"run": INSTALL},
            {"run": job.command, **({"env": secrets} if secrets else {})},
            {"if": "failure()", "run": wanted.line("triage")},
            # image and weights are in the registry, if anywhere
            {"if": "always()", "uses": ACTIONS["upload"], "with": {"name": job.name, "path": "dist\n!dist/**/oci/**"}},
        ],
    }


def gitlab(jobs: Sequence[Job], wanted: Wanted) -> JSON:
    """Return a GitLab pipeline. A chip's runner has the chip as its tag; secrets are masked CI/CD variables that jobs see by themselves."""
    installed = [] if wanted.image else ["python3 -m venv .venv", ACTIVATE, INSTALL]
    triage = "; ".join([*([] if wanted.image else [ACTIVATE]), wanted.line("triage")])
    document: JSON = {
        "stages": ["cells"],
        "default": {**({"image": wanted.image} if wanted.image else {}), "interruptible": False},
        **({"variables": wanted.plain} if wanted.plain else {}),
    }
    for job in jobs:
        document[job.name] = {
            "stage": "cells",
            "needs": list(job.needs),
            **({"when": "always"} if job.needs else {}),
            "tags": [job.chip],
            "timeout": f"{HOURS} hours",
            "script": [*installed, job.command],
            "after_script": [f'if [ "$CI_JOB_STATUS" = failed ]; then {triage}; fi'],
            "artifacts": {"when": "always", "paths": ["dist"], "exclude": ["dist/**/oci/**/*"]},
        }
    return document


def argo(jobs: Sequence[Job], wanted: Wanted) -> JSON:
    """Return an Argo workflow. Its pods use a node's own engine, network and folder; a chip's nodes have the label `release/chip`."""
    secrets = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": "release-registry", "key": name}}} for name in wanted.secrets
    ]
    plain = {"RELEASE_STORE": f"{NODE}/store", **wanted.plain}
    cell = {
        "name": "cell",
        "nodeSelector": {"release/chip": "{{inputs.parameters.chip}}"},
        "inputs": {"parameters": [{"name": "command"}, {"name": "chip"}]},
        "container": {
            "image": wanted.image,
            "command": ["sh", "-c"],
            "args": ["{{inputs.parameters.command}}"],
            "workingDir": NODE,
            "env": [*({"name": name, "value": value} for name, value in plain.items()), *secrets],
            "volumeMounts": [{"name": "node", "mountPath": NODE}, {"name": "engine", "mountPath": SOCKET}],
        },
    }
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "release-"},
        "spec": {
            "entrypoint": "night",
            "activeDeadlineSeconds": 2 * 3600 * HOURS,
            "hostNetwork": True,  # servers are published on the node's 127.0.0.1
            "dnsPolicy": "ClusterFirstWithHostNet",
            "volumes": [
                {"name": "node", "hostPath": {"path": NODE, "type": "DirectoryOrCreate"}},
                {"name": "engine", "hostPath": {"path": SOCKET, "type": "Socket"}},
            ],
            "templates": [
                # all are targets: else only those count that nothing comes after
                {"name": "night", "dag": {"target": " ".join(job.name for job in jobs), "tasks": [_task(job) for job in jobs]}},
                cell,
            ],
        },
    }


def _task(job: Job) -> JSON:
    ended = " && ".join(f"({need}.Succeeded || {need}.Failed || {need}.Errored)" for need in job.needs)
    return {
        "name": job.name,
        "template": "cell",
        **({"depends": ended} if ended else {}),
        "arguments": {"parameters": [{"name": "command", "value": job.command}, {"name": "chip", "value": job.chip}]},
    }


KINDS: Final[Mapping[str, Callable[[Sequence[Job], Wanted], JSON]]] = {"github": github, "gitlab": gitlab, "argo": argo}
"""The CIs that there is a pipeline for."""
