"""FlagGems itself, imported on a device or, for our check of its operators, in the interpreter.

FlagGems (5.0.2) asks for a device while it is imported, and its wrappers for launching take compiled kernels only. Where there is none, a
stand-in answers the questions (facts in `flaggems.json`; a newer capability would choose paths that only devices have), and the wrappers
are passed through. This proves what its kernels mean and nothing about a device.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
import sys
import textwrap
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from .interpreter import interpreted

FACTS: Final = Path(__file__).with_name("flaggems.json")


def library() -> Any:
    """Return FlagGems, imported. Raises ImportError where it cannot be."""
    if interpreted():
        _stand_in()
    import flag_gems

    if interpreted():
        _settle(flag_gems)
    return flag_gems


def _stand_in() -> None:
    """Let FlagGems be imported without a device: answer for torch's and Triton's, and pass its wrappers through.

    Its wrappers lie in modules of its own, which are loaded first, under a package that is empty but for its path.
    """
    import triton
    from triton.runtime.interpreter import InterpretedFunction

    _device(json.loads(FACTS.read_text(encoding="utf-8"))["stand-in"])
    found = importlib.util.find_spec("flag_gems")
    if found is None:
        raise ImportError("No module named 'flag_gems'")
    empty = ModuleType("flag_gems")
    empty.__path__ = list(found.submodule_search_locations or [])
    sys.modules["flag_gems"] = empty
    try:
        from flag_gems import utils
    finally:
        del sys.modules["flag_gems"]

    def tuned(configs: Any, key: Any = (), **others: Any) -> Any:
        return triton.autotune(configs[:1], key=list(key))

    modules: tuple[Any, ...] = (utils, sys.modules["flag_gems.utils.libentry"])
    for module in modules:
        module.libentry, module.libtuner = (lambda *given, **named: lambda function: function), tuned
    pointwise: Any = sys.modules["flag_gems.utils.pointwise_dynamic"]
    pointwise.JITFunction = kind = InterpretedFunction
    kind.src = property(_source)
    kind.cache_key = property(lambda kernel: hashlib.sha256(_source(kernel).encode()).hexdigest())
    kind.__globals__ = property(lambda kernel: kernel.fn.__globals__)


def _settle(gems: Any) -> None:
    """Name the device on which tensors really are where FlagGems looks at it, and let its scaled products, written for one capability, in."""
    import torch

    latent: Any = sys.modules["flag_gems.fused.flash_mla"]
    scaled: Any = sys.modules["flag_gems.fused.cutlass_scaled_mm"]
    gems.device = latent.device = torch.get_default_device().type
    scaled.SM_VERSION_NUM = json.loads(FACTS.read_text(encoding="utf-8"))["scaled products"]


def _source(kernel: Any) -> str:
    """Return a kernel's source without its decorators."""
    text = textwrap.dedent(inspect.getsource(kernel.fn))
    return text[text.index("def ") :]


def _device(facts: dict[str, Any]) -> None:
    """Answer what FlagGems asks of torch's device and of Triton's driver."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    major, minor = facts["capability"]
    properties = SimpleNamespace(major=major, minor=minor, multi_processor_count=facts["multiprocessors"], name="stand-in")
    device: Any = torch.get_device_module(facts["backend"])
    device.is_available, device.device_count, device.current_device = (lambda: True), (lambda: 1), (lambda: 0)
    device.get_device_properties = lambda device=0: properties
    device.get_device_capability = lambda device=0: (major, minor)
    device.get_device_name = lambda device=0: "stand-in"
    device.device = lambda *which: nullcontext()
    known = {"multiprocessor_count": facts["multiprocessors"], "max_shared_mem": facts["shared_memory"]}
    driver.set_active(
        SimpleNamespace(
            utils=SimpleNamespace(get_device_properties=lambda device: known),
            get_current_device=lambda: 0,
            get_current_target=lambda: GPUTarget(facts["backend"], 10 * major + minor, 32),
            get_device_interface=lambda: device,
            get_active_torch_device=torch.get_default_device,
            get_benchmarker=lambda: lambda call, quantiles=(): [0.0] * len(quantiles),  # all as fast: the first is taken
        )
    )
    os.environ["GEMS_VENDOR"] = facts["vendor"]
