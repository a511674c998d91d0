"""The plugin that vLLM loads in each of its processes (`vllm.general_plugins`): it puts the chosen operators into vLLM's layers.

vLLM lets a class stand in for a layer of its own (`CustomOp.register_oot` in vllm/model_executor/custom_op.py, 0.20 to 0.32). The class
that stands in here counts each call and hands it on: to a kernel of ours, to FlagGems, or to the layer that it replaces. For int8
linear layers it lets a kernel be registered (`register_linear_kernel`, 0.32). FlagGems also serves ATen's operators, by its own switch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from .calls import RECORD, Calls
from .interpreter import interpreted, mend
from .registry import NATIVE, SWITCH, TOGETHER, Choice, choices, reached, registry

LINE: Final = "release operators"
"""How the line of the log begins that a cell may name as its proof."""
INTERPRETED: Final = "in Triton's interpreter"
"""How ours run where no device is and TRITON_INTERPRET=1 is set: they give what a device would, and say nothing of its speed."""


def install() -> None:
    """Put the operators that the environment asks for into vLLM's layers, and say in one line what was installed, and where not why.

    Raises ValueError for a switch or an operator that does not exist: a server that was told nonsense does not start.
    """
    folder = os.environ.get(RECORD)
    if SWITCH not in os.environ and not folder:
        return
    lacks = missing()
    chosen = choices(os.environ, lacks)
    calls = Calls(Path(folder) if folder else None)
    libraries = {choice.operator: choice.library for choice in chosen}
    if interpreted() and "ours" in libraries.values():
        mend()
        chosen = tuple(replace(one, reason=INTERPRETED) if one.library == "ours" else one for one in chosen)
    layers = {**_replace(libraries, calls), **_put_before(libraries, calls)}
    if os.environ.get(SWITCH, "").strip().lower() == "flaggems":
        lacking = next((why for name, why in lacks.items()), "")
        _with_the_first_layer(lambda: _say(over_aten(os.environ, calls.folder, lacking)))
    _say(told(reached(chosen, layers), list(dict.fromkeys(layers.values())), bool(folder)))


def _say(line: str) -> None:
    from vllm.logger import init_logger

    init_logger("vllm.release_kernels").info("%s", line)


def _with_the_first_layer(act: Callable[[], None]) -> None:
    """Do something once, as the first layer that has a stand-in is made: in the process that has the model, and when its device is set.

    Before, FlagGems would take hold of a device in processes that have none, and vLLM starts its others by forking.
    """
    from vllm.model_executor.custom_op import op_registry_oot

    once = cache(act)
    for layer in (one for one in op_registry_oot.values() if one.__module__ == f"{__package__}.layers"):
        make = layer.__init__

        def made(self: Any, *words: Any, make: Any = make, **more: Any) -> None:
            once()
            make(self, *words, **more)

        layer.__init__ = made


def over_aten(environment: Mapping[str, str], folder: Path | None, lacking: str = "") -> str:
    """Let FlagGems serve ATen's operators, unless something is `lacking`, and return the line of the log that says so, or why it does not.

    Raises ValueError for a function that it does not have.
    """
    from .aten import enable

    try:
        taken = 0 if lacking else enable(environment, folder)
    except ValueError:
        raise
    except Exception as problem:  # whatever FlagGems raises on a chip that it does not know
        taken, lacking = 0, f"flag_gems.enable: {type(problem).__name__}: {problem!s:.200}"
    if taken:
        return f"{LINE}: flaggems: {taken} of ATen's operators{', which it records' if folder else ''}"
    return f"{LINE}: native ({lacking or 'not included'}): ATen's operators"


def missing() -> dict[str, str]:
    """Return the modules that cannot be used here, each with the reason: not installed, or nothing that Triton could drive."""
    found = {name: f"{name} is not installed" for name in ("triton", "flag_gems") if find_spec(name) is None}
    if "triton" not in found:
        from triton.backends import backends

        if not any(backend.driver.is_active() for backend in backends.values()) and not interpreted():
            found["triton"] = "triton has no active driver here"
        elif interpreted() and "flag_gems" not in found:
            found["flag_gems"] = "flag_gems needs a device, and Triton is interpreted here"
    return found


def told(chosen: tuple[Choice, ...], replaced: list[str], recorded: bool) -> str:
    """Return the line of the log: operators by library, the engine's own last, reasons, and the layers whose calls are counted."""
    by_library: dict[str, list[str]] = {}
    for choice in sorted(chosen, key=lambda choice: choice.library == NATIVE):
        why = f" ({choice.reason})" if choice.reason else ""
        by_library.setdefault(choice.library + why, []).append(choice.operator)
    parts = [f"{library}: {', '.join(names)}" for library, names in by_library.items()]
    return f"{LINE}: {'; '.join(parts)}; in {', '.join(replaced) or 'no layer'}{'; calls are recorded' if recorded else ''}"


def _replace(libraries: dict[str, str], calls: Calls) -> dict[str, str]:
    """Register a class in place of each layer; return its name by operator. What another plugin has replaced stays as that has it."""
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    from .layers import experts, norm, rotary, silu

    done: dict[str, str] = {}
    for layer, names, make in (
        (RMSNorm, ("rms-norm", "add-rms-norm"), norm),
        (SiluAndMul, ("silu-mul",), silu),
        (RotaryEmbedding, ("rotary",), rotary),
        *((layer, ("expert-matmul",), experts) for layer in _moe_layers()),
    ):
        if layer.__name__ not in op_registry_oot:
            name = layer.name  # the layer's own, by which vLLM's configuration switches it: registering gives it another
            stand_in = make(layer, [libraries.get(operator, NATIVE) for operator in names], calls, registry())
            layer.register_oot(stand_in)
            stand_in.name = name
            done |= dict.fromkeys(names, layer.__name__)
    return done


def _moe_layers() -> list[Any]:
    """Return the layer of fused experts, if this vLLM has it where 0.32 does."""
    try:
        from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
    except ImportError:
        return []
    return [UnquantizedFusedMoEMethod]


def _put_before(libraries: dict[str, str], calls: Calls) -> dict[str, str]:
    """Put a kernel before those that vLLM chooses from for int8 linear layers; return its name by operator: the first that can is taken.

    `register_linear_kernel` (vllm/model_executor/kernels/linear, 0.32) puts a new one last, behind kernels that take every layer.
    """
    try:
        from vllm.model_executor.kernels import linear
        from vllm.platforms import current_platform

        possible = linear._POSSIBLE_INT8_KERNELS[current_platform._enum]
    except (ImportError, AttributeError, KeyError):
        return {}
    from .layers import scaled

    base = next((kernel for kernel in possible if kernel.is_supported()[0]), None)
    if base is None:
        return {}
    kernel = scaled(base, [libraries.get(name, NATIVE) for name in TOGETHER], calls, registry())
    linear.register_linear_kernel(kernel, current_platform._enum, "int8")
    possible.insert(0, possible.pop())
    return dict.fromkeys(TOGETHER, base.__name__)
