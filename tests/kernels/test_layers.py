"""What stands in for an engine's layers: it computes what the layer would, and counts what it did."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAM = """
import sys
from types import SimpleNamespace
import torch
from release.kernels.calls import Calls
from release.kernels.layers import scaled
from release.kernels.registry import registry


class Theirs:
    layer_param_names = ["weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj"]

    def __init__(self, fixed=False, symmetric=True, channelwise=True):
        self.config = SimpleNamespace(is_static_input_scheme=fixed, input_symmetric=symmetric, is_channelwise=channelwise)

    def process_weights_after_loading(self, layer):
        layer.theirs = True

    def apply_weights(self, layer, x, bias=None):
        return torch.full((*x.shape[:-1], 5), 7.0)


def layer(scales, dtype=torch.float16):
    weight = torch.randint(-127, 128, (5, 64), generator=draw, dtype=torch.int8)
    return SimpleNamespace(weight=weight, weight_scale=scales, params_dtype=dtype, logical_widths=[2, 3], input_scale=1, azp_adj=1)


draw = torch.Generator().manual_seed(0)
calls = Calls(None)
ours, x = scaled(Theirs, ["ours", "ours"], calls, registry()), torch.randn(2, 3, 64, generator=draw).half()
for own, scales in ((ours(), torch.rand(5, 1, generator=draw)), (ours(channelwise=False), torch.rand(2, generator=draw))):
    at, bias = layer(scales), torch.randn(5, generator=draw).half()
    own.process_weights_after_loading(at)
    columns = scales.reshape(-1) if len(scales) == 5 else scales[[0, 0, 1, 1, 1]]
    step = x.double().abs().amax(-1, keepdim=True) / 127
    wanted = (x.double() / step).round() * step @ (at.weight.double() * columns.double()[:, None]).t() + bias.double()
    got = own.apply_weights(at, x, bias)
    assert got.shape == (2, 3, 5) and got.dtype == x.dtype
    assert (got.double() - wanted).abs().max() < 0.02 * wanted.abs().max(), (got, wanted)
    assert not hasattr(at, "theirs") and at.azp_adj is None
for own, dtype in ((ours(fixed=True), torch.float16), (ours(symmetric=False), torch.float16), (ours(), torch.float32)):
    at = layer(torch.ones(5, 1), dtype)
    own.process_weights_after_loading(at)
    assert at.theirs and (own.apply_weights(at, x) == 7).all(), "what ours cannot take stays theirs"
half = scaled(Theirs, ["ours", "native"], calls, registry())()
half.process_weights_after_loading(at := layer(torch.ones(5, 1)))
assert at.theirs and (half.apply_weights(at, x) == 7).all(), "one of two operators alone is none"
print(sorted((operator, library, count) for (operator, library, *_), count in calls.counts.items()))
"""


HEADS = """
import torch
from release.kernels.calls import Calls
from release.kernels.layers import norm
from release.kernels.registry import registry


class Theirs:
    variance_size_override, has_weight, variance_epsilon = None, True, 1e-6
    weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, 16))

    def forward(self, x, residual=None):
        x = x if residual is None else x + residual
        found = torch.nn.functional.rms_norm(x, (16,), self.weight.data, 1e-6)
        return found if residual is None else (found, x)


calls = Calls(None)
ours = norm(Theirs, ["ours", "ours"], calls, registry())()
qkv = torch.randn(3, 6 * 16, generator=torch.Generator().manual_seed(0))
heads = qkv.split([32, 32, 32], -1)[1].view(3, 2, 16)  # as Qwen3 hands its keys to k_norm: of heads 2 and 3 of 6
assert not heads.is_contiguous()
for x in (heads, heads.contiguous(), qkv[:, 32:48]):
    assert torch.allclose(ours.forward(x), Theirs().forward(x), atol=1e-5)
wide = heads.contiguous()
for x, residual in ((heads, wide), (wide, heads), (wide.clone(), wide.clone())):
    wanted = Theirs().forward(x, residual)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(ours.forward(x, residual), wanted))
print([(operator, library, count) for (operator, library, *_), count in calls.counts.items()])
"""


@pytest.mark.integration
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not here")
def test_a_norm_over_heads_that_lie_beside_others_is_ours_and_with_a_residual_stays_the_engines(tmp_path: Path) -> None:
    assert run(tmp_path, HEADS) == str(
        [("rms-norm", "ours", 2), ("rms-norm", "ours", 1), ("add-rms-norm", "native", 2), ("add-rms-norm", "ours", 1)]
    )


TURNED = """
import sys
import torch
from torch.profiler import profile
from release.kernels.calls import Calls
from release.kernels.layers import norm, rotary, silu
from release.kernels.registry import registry


class Norm(torch.nn.Module):
    variance_size_override, has_weight, variance_epsilon = None, True, 1e-6

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, 32))

    def forward(self, x, residual=None):
        x = x if residual is None else x + residual
        found = torch.nn.functional.rms_norm(x, (32,), self.weight, 1e-6)
        return found if residual is None else (found, x)


class Silu(torch.nn.Module):
    def forward(self, x):
        gate, up = x.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up


class Rotary(torch.nn.Module):
    head_size, is_neox_style = 16, True

    def _match_cos_sin_cache_dtype(self, query):
        return table

    def forward(self, positions, query, key=None):
        cos, sin = (part[:, None, :] for part in table[positions].chunk(2, -1))
        turned = []
        for x in (query, key):
            a, b = x.view(len(positions), -1, 16).chunk(2, -1)
            turned.append(torch.cat((a * cos - b * sin, b * cos + a * sin), -1).view(x.shape))
        return tuple(turned)


class Model(torch.nn.Module):
    def __init__(self, norm, silu, rotary):
        super().__init__()
        self.norm, self.silu, self.rotary = norm(), silu(), rotary()

    def forward(self, positions, x, residual):
        x, residual = self.norm(x, residual)
        query, key = self.rotary(positions, *self.norm(x).tile(1, 3).split([64, 32], -1))
        return self.silu(torch.cat((query, key, x), -1)), residual


draw = torch.Generator().manual_seed(0)
angles = torch.rand(9, 8, generator=draw)
table = torch.cat((angles.cos(), angles.sin()), -1)
calls = Calls(None)
with torch.no_grad():
    ours = Model(
        *(make(layer, ["ours"] * number, calls, registry()) for make, layer, number in ((norm, Norm, 2), (silu, Silu, 1), (rotary, Rotary, 1)))
    )
    theirs = Model(Norm, Silu, Rotary)
    called = torch.compile(ours, backend="aot_eager", fullgraph=True, dynamic=True) if sys.argv[1] == "compiled" else ours
    for tokens in (5, 3):
        given = torch.arange(tokens), torch.randn(tokens, 32, generator=draw), torch.randn(tokens, 32, generator=draw)
        wanted = theirs(*(one.clone() for one in given))
        if called is not ours:
            called(*(one.clone() for one in given))  # is traced, and not yet profiled
        with profile() as seen:
            found = called(*(one.clone() for one in given))
        assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(found, wanted, strict=True))
        names = [event.name.removeprefix("release_kernels::") for event in seen.events() if event.name.startswith("release_kernels::")]
        assert sorted(names) == ["add_rms_norm", "rms_norm", "rotary", "silu_mul"], names
print(sorted((operator, library, count) for (operator, library, *_), count in calls.counts.items()))
"""


@pytest.mark.integration
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not here")
def test_layers_are_computed_by_ours_and_a_profile_names_each_call(tmp_path: Path) -> None:
    each = [(name, "ours", 1) for name in ("add-rms-norm", "rms-norm", "rotary", "silu-mul")]
    assert run(tmp_path, TURNED, "eager") == str([one for one in each for _ in range(2)])  # of two shapes


@pytest.mark.integration
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not here")
def test_ours_stand_in_one_graph_of_a_compiled_model_whose_calls_the_profile_alone_tells(tmp_path: Path) -> None:
    assert run(tmp_path, TURNED, "compiled") == "[]"


def run(folder: Path, program: str, *words: str) -> str:
    """Run a program in Triton's interpreter and return what it says."""
    file = folder / "program.py"
    file.write_text(program)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(file), *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.integration
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not here")
def test_an_int8_linear_layer_is_computed_by_ours_or_stays_the_engines_and_is_counted_as_what_it_was(tmp_path: Path) -> None:
    assert run(tmp_path, PROGRAM) == str(
        sorted(
            (operator, library, calls)
            for operator in ("int8-per-token", "w8a8-matmul")
            for library, calls in (("ours", 2), ("native", 4))
        )
    )


LAID = """
import torch
from release.kernels.contest import copied
from release.kernels.operators import rotary

heads = torch.arange(60.0).view(3, 5, 4)[:, :2]
own = copied({"x": heads, "wide": torch.ones(1).expand(3), "epsilon": 1e-6})
assert own["x"].stride() == heads.stride() and torch.equal(own["x"], heads) and own["x"].data_ptr() != heads.data_ptr()
assert torch.equal(own["wide"], torch.ones(3)) and own["epsilon"] == 1e-6
for keys in (2, 6):
    try:
        rotary.launch(torch.arange(4), torch.ones(4, 2, 8), torch.ones(keys, 1, 8), torch.ones(9, 8), False)
    except ValueError as problem:
        print(problem)
"""


@pytest.mark.integration
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not here")
def test_a_key_of_another_length_is_refused_and_copies_lie_as_what_they_are_copies_of(tmp_path: Path) -> None:
    assert run(tmp_path, LAID).count("do not fit") == 2
