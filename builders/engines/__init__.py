"""What serves: one module an engine, one line in a table. An engine is the only thing that is code per kind."""

from __future__ import annotations

from types import ModuleType
from typing import Final, Protocol, cast

from release.builders.engines import vllm
from release.errors import MatrixError
from release.types import Serve


class ServingEngine(Protocol):
    """What a module of this folder offers.

    `TEMPLATE` is its Dockerfile template and `HEALTH` the path that answers 200 when it serves; `command(serve)` is the argv inside
    the container, with the weights at /model.
    """

    TEMPLATE: str
    HEALTH: str

    def command(self, serve: Serve) -> list[str]:
        """Return the argv that starts the engine inside the container."""
        ...


ENGINES: Final[dict[str, ModuleType]] = {
    "vllm": vllm,
}


def engine_named(name: str) -> ServingEngine:
    """Return the engine module of that name. Raises MatrixError naming those there are."""
    if name not in ENGINES:
        raise MatrixError(f"there is no engine {name!r}", next_step=f"there are: {', '.join(ENGINES)}")
    return cast(ServingEngine, ENGINES[name])
