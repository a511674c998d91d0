"""FlagGems' own operators under our check: the same inputs, references and tolerances, on a device or in the interpreter.

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
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from .interpreter import interpreted
from .operator import NotOffered

FACTS: Final = Path(__file__).with_name("flaggems.json")


def launchers(*, spare: bool = True) -> dict[str, Callable[..., Any]]:
    """Return FlagGems' operators by our names, each with our arguments; inputs that it would write over are copied before, to be spared.

    Raises ImportError where FlagGems cannot be imported.
    """
    if interpreted():
        _stand_in()
    import flag_gems as gems
    import torch

    def add_rms_norm(x: Any, residual: Any, weight: Any, epsilon: float) -> Any:
        return gems.fused_add_rms_norm(x.clone() if spare else x, residual, list(weight.shape), weight, epsilon)

    def rotary(positions: Any, query: Any, key: Any, table: Any, interleaved: bool) -> Any:
        if table.shape[1] != query.shape[2]:
            raise NotOffered("FlagGems turns whole heads only")
        cos, sin = table.chunk(2, -1)
        return gems.apply_rotary_pos_emb(query, key, cos, sin, positions, interleaved, inplace=True)

    def softmax_topk(logits: Any, best: int, renormalise: bool) -> Any:
        weights = logits.new_empty((len(logits), best), dtype=torch.float32)
        experts, sources = (torch.empty_like(weights, dtype=torch.int32) for _ in range(2))
        if len(logits):
            gems.topk_softmax(weights, experts, sources, logits, renormalise)
        return weights, experts

    def cache_write(key: Any, value: Any, key_cache: Any, value_cache: Any, slots: Any, key_scale: Any, value_scale: Any) -> Any:
        if key_scale is not None:
            raise NotOffered("FlagGems writes keys as they are only")
        if spare and bool((slots >= key_cache.shape[0] * key_cache.shape[1]).any()):
            raise NotOffered("FlagGems knows padding by −1 alone")
        gems.reshape_and_cache_flash(key, value, key_cache, value_cache, slots, "auto", None, None)
        return key_cache, value_cache

    return {
        "rms-norm": lambda x, weight, epsilon: gems.rms_norm(x, list(weight.shape), weight, epsilon),
        "add-rms-norm": add_rms_norm,
        "silu-mul": lambda x: gems.silu_and_mul(*x.chunk(2, -1)),
        "rotary": rotary,
        "softmax": lambda x: gems.softmax(x, -1),
        "log-softmax": lambda x: gems.log_softmax(x, -1),
        "matmul": gems.mm,
        "softmax-topk": softmax_topk,
        "cache-write": cache_write,
    }


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
