"""vLLM: `vllm serve /model` with the matrix's arguments spelled as its own command line spells them."""

from __future__ import annotations

from typing import Final

from release.types import Serve

TEMPLATE: Final = "Dockerfile.vllm.j2"
HEALTH: Final = "/health"


def command(serve: Serve) -> list[str]:
    """Return `vllm serve …`; true becomes `--name`, false `--no-name` (argparse.BooleanOptionalAction in vllm/engine/arg_utils.py)."""
    line = ["vllm", "serve", "/model", "--host", "0.0.0.0", "--port", str(serve.port)]
    for name, value in serve.args.items():
        if isinstance(value, bool):
            line.append(f"--{name}" if value else f"--no-{name}")
        else:
            line += [f"--{name}", str(value)]
    return line
