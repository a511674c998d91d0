"""Plans of which some facts are taken as they are written: names of variables, and keys that are an engine's own."""

from __future__ import annotations

from typing import Any

from release.types import Plan, dump, tuples


def literally(plan: Plan, **facts: Any) -> Plan:
    """Return a plan with these facts in place of its own; no key inside them is respelled. `args` and `env` are those of `serve`."""
    serve = {key: facts.pop(key) for key in ("args", "env") if key in facts}
    whole = {**dump(plan), **{key.replace("_", "-"): value for key, value in facts.items()}}
    whole["serve"] = {**whole["serve"], **serve}
    return Plan.model_validate(tuples(whole))
