"""What serves: one module an engine, one line in a table. An engine is the only thing that is code per kind."""

from __future__ import annotations

from types import ModuleType
from typing import Final, Protocol, cast

from release.builders.engines import flagscale, llmdeploy, mindie, sglang, vllm
from release.errors import MatrixError
from release.types import Plan


class ServingEngine(Protocol):
    """What a module of this folder offers.

    `TEMPLATE` is its Dockerfile template and `HEALTH` the path that answers 200 when it serves; an engine that does not serve every plan
    has a function `health(plan)` beside it, which gives the path, or nothing where no server is started (`health_of`).
    One with torch's profiler has `PROFILER`, the words that are added to its command for it. In the container
    the weights lie at /model, and the files that `files(plan)` gives lie under /release.
    """

    TEMPLATE: str
    HEALTH: str

    def command(self, plan: Plan) -> list[str]:
        """Return the argv that starts the engine inside the container; it stays in the foreground."""
        ...

    def files(self, plan: Plan) -> dict[str, str]:
        """Return the engine's configuration files: text by path below /release."""
        ...

    def trials(self, plan: Plan) -> list[list[str]]:
        """Return the argv of the accuracy and performance runs that the engine brings with it, one a trial of the plan."""
        ...


ENGINES: Final[dict[str, ModuleType]] = {
    "vllm": vllm,
    "flagscale": flagscale,
    "sglang": sglang,
    "mindie": mindie,
    "llmdeploy": llmdeploy,
}


def health_of(engine: ServingEngine, plan: Plan) -> str:
    """Return the path that answers 200 when the plan is served; an empty one where what starts is no server."""
    own = getattr(engine, "health", None)
    return str(own(plan)) if own else engine.HEALTH


def engine_named(name: str) -> ServingEngine:
    """Return the engine module of that name. Raises MatrixError naming those there are."""
    if name not in ENGINES:
        raise MatrixError(f"there is no engine {name!r}", next_step=f"there are: {', '.join(ENGINES)}")
    return cast(ServingEngine, ENGINES[name])
