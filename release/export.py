"""The build of many cells as a pipeline for those who must stay with their CI: a job that prepares a chip's images, then a job a cell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from release.build import target_of
from release.errors import UsageError
from release.house import House
from release.matrix.parse import written
from release.types import JSON, split_cell

USER, PASSWORD = "RELEASE_REGISTRY_USER", "RELEASE_REGISTRY_PASSWORD"
"""Secrets of the registry to push to, by the name under which the CI has them. No value ever stands in a file."""
STORE: Final = ".release-store"
INSTALL: Final = "pip install ."
CRON: Final = "0 20 * * *"
"""A night: 20:00 UTC."""
ACTIONS: Final = {
    "checkout": "actions/checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8",
    "python": "actions/setup-python@e797f83bcb11b83ae66e0230d6156d7c80228e7c",
    "cache": "actions/cache@0057852bfaa89a56745cba8c7296529d2fc39830",
    "upload": "actions/upload-artifact@ea165f8d65b6e75b540449e92b4886f43607fa02",
}
"""By commit: v5.0.0, v6.0.0, v4.3.0, v4.6.2."""
HOURS: Final = 12
"""Hours after which a job is stopped."""


@dataclass(frozen=True)
class Job:
    """One job: what it builds, after which others, on a runner with which chip (none for a host processor's), and whether it is a cell."""

    name: str
    chip: str
    device: bool
    needs: tuple[str, ...]
    commands: tuple[str, ...]
    cell: str = ""


def pipeline(house: House, cells: Sequence[str], to: str | None, least: str) -> list[Job]:
    """Return the jobs of a build of `cells` (and of all that they are compared with), each after those that it needs."""
    plans = house.plans(cells)
    jobs: list[Job] = []
    for chip in dict.fromkeys(split_cell(cell)[0] for cell in plans):
        own = [cell for cell in plans if split_cell(cell)[0] == chip]
        words = [word for cell in own for word in ("--select", cell)]
        jobs.append(Job(f"prepare-{_slug(chip)}", chip, False, (), (_line("build", *words, "--until", "image"),)))
    login = f'printenv {PASSWORD} | docker login --username "${USER}" --password-stdin {shlex.quote(_host(to))}' if to else ""
    done: set[str] = set()
    while waiting := [cell for cell in plans if cell not in done]:
        for cell in waiting:
            reference, chip = plans[cell].reference, split_cell(cell)[0]
            if reference is not None and reference not in done:
                continue
            push = ("--to", to) if to else ()
            if to:
                target_of(cell, to, None)
            needs = (f"prepare-{_slug(chip)}", *((job_of(reference),) if reference else ()))
            build = _line("build", "--select", cell, "--require", least, *push)
            jobs.append(Job(job_of(cell), chip, plans[cell].device is not None, needs, tuple(filter(None, (login, build))), cell))
            done.add(cell)
    return jobs


def job_of(cell: str) -> str:
    """Return a cell's id as every CI takes it for a job's name."""
    return _slug(cell)


def export(kind: str, house: House, cells: Sequence[str], *, to: str | None = None, least: str = "built", image: str = "") -> str:
    """Return a pipeline for the CI `kind` as YAML. Raises UsageError for a registry that is none, and for argo without an image."""
    if kind == "argo" and not image:
        raise UsageError("argo runs containers: which one?", next_step="give --image, an image in which `release` is installed")
    jobs = pipeline(house, cells, to, least)
    if len({job.name for job in jobs}) < len(jobs):
        raise UsageError("two jobs would have one name", next_step="leave one of the cells out")
    return written(KINDS[kind](jobs, bool(to), image))


def github(jobs: Sequence[Job], pushes: bool, image: str) -> JSON:
    """Return a GitHub workflow. A chip's runner is a self-hosted one with the chip as its label."""
    return {
        "name": "release",
        "on": {"workflow_dispatch": {}, "schedule": [{"cron": CRON}]},
        "permissions": {"contents": "read"},
        "concurrency": {"group": "release", "cancel-in-progress": False},
        "env": {"RELEASE_STORE": "${{ github.workspace }}/" + STORE},
        "jobs": {job.name: _github_job(job, pushes) for job in jobs},
    }


def _github_job(job: Job, pushes: bool) -> JSON:
    run = "${{ github.run_id }}"
    steps: list[JSON] = [
        {"uses": ACTIONS["checkout"]},
        {"uses": ACTIONS["python"], "with": {"python-version": "3.11"}},
        {
            "uses": ACTIONS["cache"],
            "with": {
                "path": STORE,
                "key": f"release-{job.name}-{run}",
                "restore-keys": "\n".join([*(f"release-{need}-{run}" for need in reversed(job.needs)), f"release-{job.name}-"]),
            },
        },
        {"run": INSTALL},
        *({"run": command} for command in job.commands),
        {"if": "failure()", "run": _line("triage")},
    ]
    if job.cell:
        steps.append({"if": "always()", "uses": ACTIONS["upload"], "with": {"name": job.name, "path": "dist"}})
    secrets = {name: f"${{{{ secrets.{name} }}}}" for name in (USER, PASSWORD)} if pushes and job.cell else {}
    return {
        **({"name": job.cell} if job.cell else {}),
        **({"needs": list(job.needs)} if job.needs else {}),
        "runs-on": ["self-hosted", job.chip] if job.device else "ubuntu-latest",
        "timeout-minutes": 60 * HOURS,
        **({"env": secrets} if secrets else {}),
        "steps": steps,
    }


def gitlab(jobs: Sequence[Job], pushes: bool, image: str) -> JSON:
    """Return a GitLab pipeline. A chip's runner has the chip as its tag; secrets are masked CI/CD variables that jobs see by themselves."""
    document: JSON = {
        "stages": ["prepare", "cells"],
        "default": {"image": image or "python:3.11", "interruptible": False},
        "variables": {"RELEASE_STORE": "$CI_PROJECT_DIR/" + STORE},
    }
    for job in jobs:
        document[job.name] = {
            "stage": "cells" if job.cell else "prepare",
            "needs": list(job.needs),
            **({"tags": [job.chip]} if job.device else {}),
            "timeout": f"{HOURS} hours",
            "cache": {
                "key": f"release-{job.name}-$CI_PIPELINE_ID",
                "fallback_keys": [f"release-{need}-$CI_PIPELINE_ID" for need in reversed(job.needs)],
                "paths": [STORE],
                "when": "always",
            },
            "script": [*([] if image else [INSTALL]), *job.commands],
            "after_script": [f'if [ "$CI_JOB_STATUS" = failed ]; then {_line("triage")}; fi'],
            **({"artifacts": {"when": "always", "paths": ["dist"]}} if job.cell else {}),
        }
    return document


def argo(jobs: Sequence[Job], pushes: bool, image: str) -> JSON:
    """Return an Argo workflow over one volume for the store. A chip's node has the label `release/chip`; devices are the cluster's."""
    secret = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": "release-registry", "key": name}}} for name in (USER, PASSWORD)
    ]
    container = {
        "image": image,
        "command": ["sh", "-c"],
        "args": ["{{inputs.parameters.script}}"],
        "workingDir": "/work",
        "env": [{"name": "RELEASE_STORE", "value": "/store"}, *(secret if pushes else [])],
        "volumeMounts": [{"name": "store", "mountPath": "/store"}, {"name": "work", "mountPath": "/work"}],
    }
    common = {"inputs": {"parameters": [{"name": "script"}, {"name": "chip"}]}, "container": container}
    tasks = [
        {
            "name": job.name,
            "template": "on-chip" if job.device else "anywhere",
            **({"dependencies": list(job.needs)} if job.needs else {}),
            "arguments": {
                "parameters": [
                    {"name": "script", "value": "set -e; " + "; ".join(job.commands)},
                    {"name": "chip", "value": job.chip},
                ]
            },
        }
        for job in jobs
    ]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "release-"},
        "spec": {
            "entrypoint": "night",
            "activeDeadlineSeconds": 2 * 3600 * HOURS,
            "volumes": [
                {"name": "store", "persistentVolumeClaim": {"claimName": "release-store"}},
                {"name": "work", "emptyDir": {}},
            ],
            "templates": [
                {"name": "night", "dag": {"failFast": False, "tasks": tasks}},
                {"name": "anywhere", **common},
                {"name": "on-chip", "nodeSelector": {"release/chip": "{{inputs.parameters.chip}}"}, **common},
            ],
        },
    }


KINDS: Final[Mapping[str, Callable[[Sequence[Job], bool, str], JSON]]] = {"github": github, "gitlab": gitlab, "argo": argo}
"""The CIs that there is a pipeline for."""


def _line(*words: str) -> str:
    return shlex.join(("release", *words))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text)


def _host(to: str) -> str:
    return to.partition("/")[0]
