"""All that an engine renders for a cell, as text by name: what the golden files hold."""

from __future__ import annotations

from release.builders.engines import engine_named
from release.builders.image import dockerfile
from release.matrix.check import plan_of
from release.matrix.load import Matrix
from release.templates.render import shell_line
from release.types import Access, Base, GitSource, Plan, Unknown

PIP = {"name": "pip", "file": "pip-26.0-py3-none-any.whl"}


def plan_named(cell: str) -> Plan:
    return plan_of(Matrix(), cell)


def rendered(plan: Plan) -> dict[str, str]:
    """Return Dockerfile, command and configuration files of a plan by name."""
    engine = engine_named(plan.engine)
    files = engine.files(plan)
    base, note = named_base(plan)
    text = dockerfile(
        engine.TEMPLATE,
        base=base,
        note=note,
        wheels=[PIP] if plan.wheels else [],
        labels={"org.opencontainers.image.title": f"{plan.engine} for {plan.chip.id}"},
        files=sorted(files),
        sources=[{"name": s.name, "install": s.install} for s in plan.sources if isinstance(s, GitSource)],
        packages={name: version for name, version in plan.packages.items() if isinstance(version, str)},
    )
    return {"Dockerfile": text, "command": shell_line(engine.command(plan)) + "\n", **files}


def named_base(plan: Plan) -> tuple[str, str]:
    """Return name and note of the base image as the render stage gives them, but for the name of a registry."""
    if isinstance(plan.base, Base) and isinstance(plan.base.access, Access):
        name = plan.base.access.name
        if plan.base.access.kind == "registry":
            name = "registry.example.org/image"  # a registry's own name stands in its cell alone
        return name if isinstance(name, str) else "unknown", f"not pinned yet: got from {plan.base.access.contact}"
    if isinstance(plan.base, Unknown):
        return "unknown", f"not pinned yet: {plan.base.unknown}"
    return "release-base:abc", ""
