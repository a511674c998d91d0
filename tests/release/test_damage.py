"""Checkpoints that are broken in one way each, served by the image that was built: the cheapest layer that can notice does, and says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from command import Answer

from release.containers import Engine
from release.guard import Guard
from release.matrix.check import plan_of
from release.matrix.load import OURS, Matrix
from release.types.consistency import Consistency
from release.validators import serving
from release.validators.consistency import Trace, compare_with, read_trace
from release.validators.endpoint import Endpoint

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from damage import DAMAGES, damaged

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

CHECKPOINT: Final = OURS / "checkpoints" / "tiny-qwq"
CAUGHT: Final = {
    "one layer's weights × 1.05": "scoring",
    "chat template without one newline": "identity",
    "context cut to 512": "identity",
    "tokenizer with two digits exchanged": "identity",
}
"""The damage, and the cheapest layer that can see it from outside: the server's files are not looked at."""


@pytest.fixture(scope="module")
def trace(built: Answer, store: Path) -> Trace:
    """The reference's trace, as the build recorded it."""
    (found,) = (path.parent for path in store.glob("entries/*/*/trace.json"))
    return read_trace(found)


def compared(built: Answer, engine: Engine, trace: Trace, folder: Path, context: int, out: Path) -> Consistency:
    """Serve a folder with the card's own command and compare it with the trace."""
    record = built.document["record"]
    spec = plan_of(Matrix(), record["cell"]).consistency
    assert spec is not None
    line = [word.replace("$PWD/weights", str(folder)) for word in record["serve"]["command"]]
    line[line.index("--max-model-len") + 1] = str(context)
    publish = line.index("--publish") + 1
    port = int(record["serve"]["port"])

    def command(address: str, extra: Sequence[str]) -> list[str]:
        line[publish] = address
        return [engine.cli, "run", *extra, *(word for word in line[2:] if word != "--rm")]

    guard = Guard()
    with ExitStack() as stack:
        stack.callback(guard.close)
        server = serving.start(engine, guard, stack, command, health="/health", within=300, port=port)
        limits = Matrix().limits("bf16")
        return compare_with(trace, Endpoint(server.url, "tiny-qwq"), spec, limits, OURS / spec.prompts, out)


@pytest.mark.parametrize("name", CAUGHT)
def test_a_damaged_checkpoint_is_caught_by_the_cheapest_layer_that_can(
    name: str, built: Answer, engine: Engine, trace: Trace, tmp_path: Path
) -> None:
    damage = next(each for each in DAMAGES if each.name == name)
    folder = damaged(damage, CHECKPOINT, tmp_path / "model")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    found = compared(built, engine, trace, folder, damage.context, tmp_path / "evidence")
    assert (found.finding, found.caught_by) == ("DIFFERENT", CAUGHT[name]), found.model_dump_json(indent=1)
    after = [verdict.status.value for verdict in found.verdicts[list(CAUGHT.values()).index(found.caught_by or "") + 1 :]]
    assert json.loads(found.model_dump_json(by_alias=True))["caught-by"] == CAUGHT[name]
    assert after[-1] == "SKIPPED"
