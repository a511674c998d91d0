"""Quantised checkpoints: every code is that of the float32 formula, every layout what its reader wants; a vendor's bug is not ours."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from release.builders.weights.catalogue import read_catalogue
from release.builders.weights.check import check
from release.builders.weights.formats import LAYOUTS, Choice, excluded, quantised, selected
from release.builders.weights.header import Tensor, read_file
from release.builders.weights.kernels import KERNELS, Strip, storage
from release.builders.weights.proof import verify
from release.builders.weights.recipes import Options
from release.builders.weights.run import run
from release.errors import StageError, VerificationError
from release.progress import Line, Plain

pytest.importorskip("numba", reason="quantising needs numba: pip install 'release[weights]'")

OFTEN = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
EPSILON = np.float32(2.0**-23)
HALF = 127 * 2.0**-23
"""What float32 may add to half a step where it rounds x / s: half a unit in the last place of 127, as a share of one half."""
Floats = NDArray[np.float32]


def quiet() -> Line:
    return Plain(io.StringIO()).line("cell", "weights")


def to_bf16(array: Floats) -> NDArray[np.uint16]:
    bits = array.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> Floats:
    return (bits.astype(np.uint32) << 16).view(np.float32)


# The kernels, on rows


def kernel(
    name: str, source: NDArray[Any], outputs: list[tuple[str, int]], parameters: Mapping[str, Any] | None = None
) -> list[Any]:
    """Run a kernel over a whole matrix and return its outputs' bits, flat."""
    found = KERNELS[name]
    made = [np.zeros(size, storage(dtype)) for dtype, size in outputs]
    counts = np.zeros(len(found.counts), np.int64)
    flat = source.reshape(-1).view(storage({2: "BF16", 4: "F32"}[source.itemsize]))
    found.makes()(Strip(flat, made[0], 0, source.shape, (), tuple(made[1:]), counts, parameters or {}))
    return [*made, counts]


def int8_formula(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """msmodelslim 26.1.0, int_quantization.py: s = max|x| / 127, floor eps; q = clamp(round(x / s), -128, 127), ties to even."""
    scale = np.maximum(np.abs(x).max(axis=1, keepdims=True) / np.float32(127), EPSILON)
    return np.clip(np.rint(x / scale), -128, 127).astype(np.int8), scale


def int4_formula(x: Floats, group: int) -> tuple[NDArray[np.int8], Floats]:
    parts = x.reshape(x.shape[0], -1, group)
    scale = np.maximum(np.abs(parts).max(axis=2, keepdims=True) / np.float32(7), EPSILON)
    return np.clip(np.rint(parts / scale), -8, 7).astype(np.int8).reshape(x.shape), scale[:, :, 0]


def e4m3_values() -> Floats:
    """The 127 magnitudes of e4m3fn by code (OCP 8-bit floating point, 1.0): 3 bits of mantissa, bias 7, no infinity."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    return np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0)).astype(np.float32)


def nearest_e4m3(x: Floats) -> NDArray[np.uint8]:
    """The nearest e4m3 code by looking at all of them, ties to the even one, saturating."""
    values = e4m3_values().astype(np.float64)
    distance = np.abs(np.abs(x.astype(np.float64))[..., None] - values)
    odd = (np.arange(127) & 1) * 1e-300
    smallest = distance.min(axis=-1, keepdims=True)
    best = np.where(distance == smallest, odd, 1.0).argmin(axis=-1)
    return (best | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)


def numbers(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """Rows of very different sizes, with zeros, ties and equal magnitudes among them."""
    x = rng.standard_normal((rows, columns)) * 10.0 ** rng.uniform(-30, 30, (rows, 1))
    x[rng.random(x.shape) < 0.1] = 0
    if columns > 2:
        x[0] = np.rint(x[0] / np.abs(x[0]).max() * 127) / 2 if np.abs(x[0]).max() else 0
    return x.astype(np.float32)


SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 12).map(lambda n: 8 * n), st.integers(0, 2**32 - 1))


@OFTEN
@given(SHAPES, st.sampled_from(["fp32", "bf16"]))
def test_every_int8_code_and_scale_is_that_of_the_float32_formula(shape: tuple[int, int, int], kind: str) -> None:
    x = numbers(np.random.default_rng(shape[2]), shape[0], shape[1])
    source: NDArray[Any] = x
    if kind == "bf16":
        source = to_bf16(x)
        x = from_bf16(source)
    codes, scales, counts = kernel(f"{kind}-to-int8", source, [("I8", x.size), ("F32", shape[0])])
    wanted, scale = int8_formula(x)
    assert (codes.view(np.int8) == wanted.reshape(-1)).all()
    assert (scales.view(np.float32) == scale.reshape(-1)).all()
    assert not counts.any()
    error = np.abs(x.astype(np.float64) - codes.view(np.int8).reshape(x.shape) * scale.astype(np.float64))
    assert (error <= scale.astype(np.float64) / 2 * (1 + HALF)).all()


@OFTEN
@given(SHAPES, st.sampled_from([8, 16, 32]))
def test_every_int4_code_and_scale_is_that_of_the_float32_formula(shape: tuple[int, int, int], group: int) -> None:
    x = numbers(np.random.default_rng(shape[2]), shape[0], shape[1] * group // 8)
    packed, scales, _ = kernel("fp32-to-int4", x, [("I32", x.size // 8), ("F32", x.size // group)])
    wanted, scale = int4_formula(x, group)
    codes = (packed[:, None] >> (4 * np.arange(8, dtype=np.uint32)) & 15).astype(np.int8).reshape(x.shape) - 8
    assert (codes == wanted).all()
    assert (scales.view(np.float32) == scale.reshape(-1)).all()
    spread = np.repeat(scale, group, axis=1).astype(np.float64)
    assert (np.abs(x - codes * spread) <= spread / 2 * (1 + 2.0**-20)).all()


@OFTEN
@given(SHAPES)
def test_int4_divides_by_the_scale_that_is_kept(shape: tuple[int, int, int]) -> None:
    x = from_bf16(to_bf16(np.random.default_rng(shape[2]).standard_normal((shape[0], shape[1])).astype(np.float32)))
    packed, scales, _ = kernel("bf16-to-int4-scale-bf16", to_bf16(x), [("I32", x.size // 8), ("BF16", x.size // 8)])
    kept = from_bf16(scales)
    assert (scales == to_bf16(int4_formula(x, 8)[1].reshape(-1))).all()
    codes = (packed[:, None] >> (4 * np.arange(8, dtype=np.uint32)) & 15).astype(np.int8).reshape(-1, 8) - 8
    assert (codes == np.clip(np.rint(x.reshape(-1, 8) / kept[:, None]), -7, 7)).all()


@OFTEN
@given(SHAPES)
def test_every_fp8_code_is_the_nearest_of_all_ties_to_even(shape: tuple[int, int, int]) -> None:
    x = numbers(np.random.default_rng(shape[2]), shape[0], shape[1])
    codes, scales, _ = kernel("fp32-to-fp8", x, [("F8_E4M3", x.size), ("F32", shape[0])])
    scale = np.maximum(np.abs(x).max(axis=1, keepdims=True) / np.float32(448), EPSILON)
    assert (scales.view(np.float32) == scale.reshape(-1)).all()
    assert (codes.reshape(x.shape) == nearest_e4m3(x / scale)).all()


def test_every_number_between_two_fp8_codes_goes_to_the_nearer_one() -> None:
    values = e4m3_values()
    between = (values[:-1].astype(np.float64) + values[1:]) / 2
    x = np.concatenate([values, between, between * (1 + 2.0**-22), between * (1 - 2.0**-22), [448.0]]).astype(np.float32)
    x = np.concatenate([x, -x])[None, :]
    codes, scales, _ = kernel("fp32-to-fp8", x, [("F8_E4M3", x.size), ("F32", 1)])
    assert scales.view(np.float32)[0] == 1
    assert (codes == nearest_e4m3(x[0])).all()
    assert not (codes & 0x7F == 0x7F).any()


@pytest.mark.parametrize("name", ["fp32-to-int8", "fp32-to-int4", "fp32-to-fp8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_nan_or_an_infinity_is_counted_and_fatal(name: str, bad: float) -> None:
    x = np.ones((3, 16), np.float32)
    x[1, 5] = bad
    first = {"fp32-to-int8": ("I8", 48), "fp32-to-int4": ("I32", 6), "fp32-to-fp8": ("F8_E4M3", 48)}[name]
    counts = kernel(name, x, [first, ("F32", 3)])[-1]
    assert dict(zip(KERNELS[name].counts, counts.tolist(), strict=True)) == {
        "nan": int(np.isnan(bad)),
        "infinite": int(np.isinf(bad)),
    }
    assert KERNELS[name].fatal == {"nan", "infinite"}


# A vendor's rounding, which wraps


def narrow_arithmetic(bits: NDArray[np.uint16]) -> NDArray[np.int8]:
    """The vendor's formula, in bfloat16 and without a clamp: scale = max|w| / 127, round(w / scale), to int8, which wraps."""
    x = from_bf16(bits)
    scale = from_bf16(to_bf16(np.abs(x).max(axis=1, keepdims=True) / np.float32(127)))
    return np.rint(from_bf16(to_bf16(x / scale))).astype(np.int32).astype(np.int8)


def test_the_largest_weight_keeps_its_sign_which_a_vendors_formula_loses() -> None:
    rng = np.random.default_rng(3)
    bits = to_bf16((rng.standard_normal((256, 1024)) * 2 ** rng.uniform(0, 1, (256, 1))).astype(np.float32))
    x = from_bf16(bits)
    flipped = (np.sign(narrow_arithmetic(bits)) == -np.sign(x)) & (np.abs(x) == np.abs(x).max(axis=1, keepdims=True))
    assert flipped.any(axis=1).sum() > 10, "the faulty formula was to wrap at +128"
    codes, scales, _ = kernel("bf16-to-int8", bits, [("I8", x.size), ("F32", 256)])
    ours = codes.view(np.int8).reshape(x.shape)
    assert not (np.sign(ours) == -np.sign(x)).any()
    theirs = narrow_arithmetic(bits)
    assert (theirs != ours).mean() > 0.02
    scale = scales.view(np.float32)[:, None]
    assert np.sqrt(((x - theirs * scale) ** 2).mean()) > 2 * np.sqrt(((x - ours * scale) ** 2).mean())


# Whole checkpoints


def checkpoint(
    folder: Path, *, layers: int = 2, hidden: int = 64, dtype: Any = np.float32, more: Mapping[str, Any] | None = None
) -> Path:
    """A checkpoint in the architecture of Qwen2 with tied embeddings, in one shard a layer and one for the rest."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True)

    def matrix(rows: int, columns: int) -> NDArray[Any]:
        return (rng.standard_normal((rows, columns)) * 0.1).astype(dtype)

    shards: dict[str, dict[str, NDArray[Any]]] = {
        "model-00001-of-00003.safetensors": {"model.embed_tokens.weight": matrix(96, hidden)}
    }
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        shards[f"model-{layer + 2:05d}-of-00003.safetensors"] = {
            f"{stem}.input_layernorm.weight": np.ones(hidden, dtype),
            **{
                f"{stem}.self_attn.{name}.weight": matrix(rows, hidden)
                for name, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32))
            },
            **{
                f"{stem}.self_attn.{name}.bias": np.ones(rows, dtype)
                for name, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32))
            },
            f"{stem}.self_attn.o_proj.weight": matrix(hidden, 64),
            **{f"{stem}.mlp.{name}.weight": matrix(128, hidden) for name in ("gate_proj", "up_proj")},
            f"{stem}.mlp.down_proj.weight": matrix(hidden, 128),
        }
    shards["model-00001-of-00003.safetensors"]["model.norm.weight"] = np.ones(hidden, dtype)
    shards["model-00001-of-00003.safetensors"].update(more or {})
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        **{"hidden_size": hidden, "intermediate_size": 128, "num_hidden_layers": layers, "vocab_size": 96},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True, "torch_dtype": np.dtype(dtype).name},
        "something_of_theirs": {"kept": [1, 2.5, None]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "LICENSE").write_text("Apache")
    return folder


def made(tmp_path: Path, choice: Choice, source: Path | None = None) -> Path:
    source = source or checkpoint(tmp_path / "in")
    run(quantised(read_catalogue(source), choice), tmp_path / "out", quiet())
    return tmp_path / "out"


def tensors(folder: Path) -> dict[str, Tensor]:
    return {tensor.name: tensor for file in sorted(folder.glob("*.safetensors")) for tensor in read_file(file).tensors}


def array(folder: Path, name: str) -> Any:
    found = tensors(folder)[name]
    with safe_open(folder / found.file, framework="np") as reader:
        return reader.get_tensor(name)


@pytest.mark.parametrize(("layout", "precision"), LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_written_is_proven_element_by_element(layout: str, precision: str, dtype: Any, tmp_path: Path) -> None:
    conversion = quantised(read_catalogue(checkpoint(tmp_path / "in", dtype=dtype)), Choice(layout, precision, group=16))
    run(conversion, tmp_path / "out", quiet())
    assert verify(conversion, tmp_path / "out", quiet())["tensors"] == len(tensors(tmp_path / "out"))
    path = next(iter(sorted((tmp_path / "out").glob("*-00002-of-*.safetensors"))))
    data = bytearray(path.read_bytes())
    data[read_file(path).start + 1] ^= 4
    path.write_bytes(data)
    with pytest.raises(VerificationError, match="the source makes it"):
        verify(conversion, tmp_path / "out", quiet())


@pytest.mark.parametrize(("layout", "precision"), LAYOUTS)
def test_what_is_written_passes_the_check_and_keeps_what_it_does_not_change(layout: str, precision: str, tmp_path: Path) -> None:
    out = made(tmp_path, Choice(layout, precision, group=32))
    assert check(out) == []
    config = json.loads((out / "config.json").read_bytes())
    assert config["torch_dtype"] == "bfloat16"
    assert config["something_of_theirs"] == {"kept": [1, 2.5, None]}
    assert (out / "LICENSE").read_text() == "Apache"
    assert tensors(out)["model.embed_tokens.weight"].dtype == "BF16"
    assert tensors(out)["model.layers.0.self_attn.q_proj.bias"].dtype == "BF16"


def test_int8_for_vllm_has_the_shapes_and_the_declaration_that_it_wants(tmp_path: Path) -> None:
    out = made(tmp_path, Choice("compressed-tensors", "w8a8"))
    found = tensors(out)
    stem = "model.layers.1.self_attn.k_proj"
    assert (found[f"{stem}.weight"].dtype, found[f"{stem}.weight"].shape) == ("I8", (32, 64))
    assert (found[f"{stem}.weight_scale"].dtype, found[f"{stem}.weight_scale"].shape) == ("F32", (32, 1))
    assert json.loads((out / "config.json").read_bytes())["quantization_config"] == {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
                "input_activations": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
            }
        },
        "ignore": ["lm_head"],
    }
    x = array(tmp_path / "in", f"{stem}.weight")
    codes, scale = int8_formula(x)
    assert (array(out, f"{stem}.weight") == codes).all()
    assert (array(out, f"{stem}.weight_scale") == scale).all()


def test_msmodelslim_has_the_same_bytes_an_offset_of_zero_and_one_entry_a_tensor(tmp_path: Path) -> None:
    out = made(tmp_path, Choice("msmodelslim", "w8a8", exclude=("*.down_proj",)))
    run(
        quantised(read_catalogue(tmp_path / "in"), Choice("compressed-tensors", "w8a8", exclude=("*.down_proj",))),
        tmp_path / "other",
        quiet(),
    )
    found = tensors(out)
    for name, tensor in tensors(tmp_path / "other").items():
        if tensor.dtype in ("I8", "F32"):
            assert (array(out, name) == array(tmp_path / "other", name)).all()
    description = json.loads((out / "quant_model_description.json").read_bytes())
    head = {name: description.pop(name) for name in ("model_quant_type", "version", "group_size", "metadata", "optional")}
    assert head == {"model_quant_type": "W8A8_DYNAMIC", "version": "1.0.0", "group_size": 0, "metadata": {}, "optional": {}}
    assert description.keys() == found.keys()
    stem = "model.layers.0.self_attn.q_proj"
    assert {word: description[f"{stem}.{word}"] for word in ("weight", "weight_scale", "weight_offset", "bias")} == {
        **dict.fromkeys(("weight", "weight_scale", "weight_offset"), "W8A8_DYNAMIC"),
        "bias": "FLOAT",
    }
    assert description["model.layers.0.mlp.down_proj.weight"] == "FLOAT"
    assert not array(out, f"{stem}.weight_offset").any()
    assert found[f"{stem}.weight_offset"].shape == (64, 1)
    names = [f"quant_model_weights-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sorted(path.name for path in out.glob("*.safetensors")) == names
    index = json.loads((out / "quant_model_weights.safetensors.index.json").read_bytes())
    assert set(index["weight_map"].values()) == set(names)
    assert "quantization_config" not in json.loads((out / "config.json").read_bytes())


def test_rows_have_one_scale_each_and_leave_the_bias_alone(tmp_path: Path) -> None:
    out = made(tmp_path, Choice("rows", "w8a16", dtype="fp16"))
    found = tensors(out)
    assert found["model.layers.0.mlp.up_proj.weight_scale"].shape == (128,)
    assert found["model.layers.0.self_attn.q_proj.bias"].dtype == "F16"
    assert json.loads((out / "config.json").read_bytes())["torch_dtype"] == "float16"


def test_int4_is_packed_as_eight_codes_a_word_with_the_true_shape_beside_it(tmp_path: Path) -> None:
    out = made(tmp_path, Choice("compressed-tensors", "w4a16", group=32))
    stem = "model.layers.0.mlp.down_proj"
    assert array(out, f"{stem}.weight_shape").tolist() == [64, 128]
    packed = array(out, f"{stem}.weight_packed").view(np.uint32)
    assert packed.shape == (64, 16)
    assert tensors(out)[f"{stem}.weight_scale"].shape == (64, 4)
    said = json.loads((out / "config.json").read_bytes())["quantization_config"]
    assert said["config_groups"]["group_0"]["weights"]["group_size"] == 32
    assert "input_activations" not in said["config_groups"]["group_0"]


# What is refused, and what stays float


def test_what_is_excluded_stays_float_and_is_declared_so(tmp_path: Path) -> None:
    out = made(tmp_path, Choice("compressed-tensors", "w8a8", exclude=("*.down_proj", "model.layers.0.mlp.*")))
    found = tensors(out)
    assert [name for name in found if name.endswith("down_proj.weight") and found[name].dtype == "I8"] == []
    assert found["model.layers.0.mlp.gate_proj.weight"].dtype == "BF16"
    assert found["model.layers.1.mlp.gate_proj.weight"].dtype == "I8"
    ignored = json.loads((out / "config.json").read_bytes())["quantization_config"]["ignore"]
    assert ignored == [
        "lm_head",
        *(f"model.layers.0.mlp.{name}" for name in ("down_proj", "gate_proj", "up_proj")),
        "model.layers.1.mlp.down_proj",
    ]


def test_head_embeddings_and_routers_stay_float_by_themselves(tmp_path: Path) -> None:
    more = {"lm_head.weight": np.ones((96, 64), np.float32), "model.layers.1.mlp.gate.weight": np.ones((4, 64), np.float32)}
    names = selected(read_catalogue(checkpoint(tmp_path / "in", more=more)), ())
    assert len(names) == 14
    assert not names & more.keys()


@pytest.mark.parametrize(
    ("pattern", "module", "fits"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "language_model.lm_head", True),
        ("*.down_proj", "model.layers.0.mlp.down_proj", True),
        ("down_proj", "model.layers.0.mlp.down_proj", True),
        ("gate", "model.layers.0.mlp.gate", True),
        ("gate", "model.layers.0.mlp.gate_proj", False),
        ("model.layers.1.*", "model.layers.11.mlp.up_proj", False),
    ],
)
def test_a_pattern_fits_a_whole_name_or_its_last_words(pattern: str, module: str, fits: bool) -> None:
    assert excluded(module, (pattern,)) is fits


REFUSED = {
    "half a fused group": (Choice("compressed-tensors", "w8a8", exclude=("*.gate_proj",)), "servers fuse them"),
    "a pattern for nothing": (Choice("compressed-tensors", "w8a8", exclude=("*.dwon_proj",)), "no matrix has such a name"),
    "everything": (Choice("compressed-tensors", "w8a8", exclude=("*",)), "excludes every matrix"),
    "a group that does not fit": (Choice("compressed-tensors", "w4a16", group=128), "groups of 128 do not fill"),
    "a group of 4": (Choice("compressed-tensors", "w4a16", group=4), "groups of 4 do not fill"),
    "a layout that nobody has": (Choice("compressed-tensors", "w8a16"), "no format of ours"),
    "an unknown layout": (Choice("onnx", "w8a8"), "no format of ours"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_is_refused_before_anything_is_written(what: str, tmp_path: Path) -> None:
    choice, reason = REFUSED[what]
    with pytest.raises(StageError, match=reason) as caught:
        made(tmp_path, choice)
    assert caught.value.next_step
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_not_quantised_twice(tmp_path: Path) -> None:
    out = made(tmp_path, Choice("compressed-tensors", "w8a8"))
    with pytest.raises(StageError, match="quantised already"):
        quantised(read_catalogue(out), Choice("compressed-tensors", "w8a8"))


def test_matrices_of_two_dtypes_are_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "in", more={"model.layers.0.mlp.extra.weight": np.ones((8, 64), np.float16)})
    with pytest.raises(StageError, match="F16 and F32"):
        quantised(read_catalogue(source), Choice("compressed-tensors", "w8a8"))


def test_what_has_a_dtype_of_its_own_keeps_it(tmp_path: Path) -> None:
    source = checkpoint(
        tmp_path / "in", dtype=np.float16, more={"model.layers.1.mlp.gate.e_score_correction_bias": np.ones(4, np.float32)}
    )
    out = made(tmp_path, Choice("compressed-tensors", "w8a8", dtype="bf16"), source)
    assert tensors(out)["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == "F32"
    assert tensors(out)["model.norm.weight"].dtype == "BF16"


def test_the_layers_for_multi_token_prediction_are_left_out_if_that_is_said(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "in")
    config = json.loads((source / "config.json").read_bytes())
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1, "num_nextn_predict_layers": 1}))
    out = made(tmp_path, Choice("compressed-tensors", "w8a8", options=Options(mtp=False)), source)
    assert [name for name in tensors(out) if name.startswith("model.layers.1.")] == []
    said = json.loads((out / "config.json").read_bytes())
    assert (said["num_nextn_predict_layers"], said["num_hidden_layers"]) == (0, 1)
    assert said["quantization_config"]["ignore"] == ["lm_head"]
    assert check(out) == []


def test_a_norm_that_float16_cannot_hold_is_refused_unless_that_is_allowed(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "in", more={"model.extra_norm.weight": np.full(64, 1e6, np.float32)})
    choice = Choice("rows", "w8a16", dtype="fp16")
    with pytest.raises(StageError, match=r"model\.extra_norm\.weight"):
        made(tmp_path, choice, source)
    made(tmp_path, replace(choice, options=Options(allow=frozenset({"overflow"}))), source)
    assert np.isinf(array(tmp_path / "out", "model.extra_norm.weight")).all()


def test_a_nan_stops_the_conversion_and_names_the_tensor(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "in", more={"model.layers.1.mlp.odd.weight": np.full((8, 64), np.nan, np.float32)})
    with pytest.raises(StageError, match=r"model\.layers\.1\.mlp\.odd\.weight"):
        made(tmp_path, Choice("compressed-tensors", "w8a8"), source)
    assert not (tmp_path / "out").exists()
