"""Every kernel rounds as float32 arithmetic does: each bit, for every input there is or for very many, through files and strips of any cut."""

from __future__ import annotations

import builtins
import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shards import BF16, E4M3, checkpoint, codes, dequantised, quiet, read_all, scales

from release.builders.weights import disk, jobs, plan_conversion, proof, recipes
from release.builders.weights.catalogue import read_catalogue
from release.builders.weights.kernels import KERNELS, Strip, numpy_fp32_to_bf16, storage
from release.builders.weights.plan import Conversion, Output, Shard, Step, check, copied
from release.builders.weights.proof import REFERENCES, verify
from release.builders.weights.run import run
from release.errors import StageError, VerificationError

SOMETIMES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
VIEWS = {"BF16": BF16, "F16": np.dtype(np.float16), "F32": np.dtype(np.float32), "I8": np.dtype(np.int8)}


def apply(name: str, source: Any, columns: int = 0, sides: int = 1, **parameters: Any) -> tuple[Any, list[Any], dict[str, int]]:
    """Run a kernel over a whole array; return what it wrote, its sides, and its counts that are not zero."""
    kernel = KERNELS[name]
    flat = np.ascontiguousarray(source).reshape(-1)
    rows = flat.size // columns if columns else flat.size
    out = np.empty(flat.size, storage(kernel.writes[0]))
    beside = [np.zeros(rows * sides, storage(dtype)) for dtype in kernel.writes[1:]]
    counts = np.zeros(len(kernel.counts), np.int64)
    aside = tuple(array.reshape(-1).view(np.uint32) for array in parameters.pop("aside", ()))
    shape = (rows, columns) if columns else flat.shape
    kernel.makes()(Strip(flat.view(storage(kernel.reads[0])), out, 0, shape, aside, tuple(beside), counts, parameters))
    found = {what: int(count) for what, count in zip(kernel.counts, counts, strict=True) if count}
    return (
        out.view(VIEWS[kernel.writes[0]]),
        [array.view(VIEWS[d]) for array, d in zip(beside, kernel.writes[1:], strict=True)],
        found,
    )


def same(found: Any, wanted: Any) -> bool:
    return found.tobytes() == np.ascontiguousarray(wanted).tobytes()


# FP8


FROM_FP8 = pytest.mark.parametrize(("kernel", "kept"), [("fp8-block-to-bf16", BF16), ("fp8-block-to-fp32", np.dtype(np.float32))])


@FROM_FP8
@pytest.mark.parametrize(
    "scale", [1.0, 3e-5, 0.0, -0.7, 2.0**-126, 2.0**-149, 1e-40, 255.9, 256.0, 1e30, 2.0**118, 1.1754942e-38]
)
def test_every_code_times_any_scale_is_exact(scale: float, kernel: str, kept: Any) -> None:
    every = (
        np.array([code for code in range(256) if code & 0x7F != 0x7F] * 128, np.uint8).view(E4M3)[: 128 * 254].reshape(128, 254)
    )
    factor = np.full((1, 2), scale, np.float32)
    out, _, counts = apply(kernel, every, 254, aside=(factor,), high=128, wide=128)
    assert same(out, dequantised(every, factor, kept=kept))
    assert counts == {}


@FROM_FP8
@SOMETIMES
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3, 16, 128]))
def test_any_matrix_and_any_block_is_exact(kernel: str, kept: Any, seed: int, rows: int, columns: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    weight, scale = codes(rng, (rows, columns)), scales(rng, (rows, columns), block)
    out, _, _ = apply(kernel, weight, columns, aside=(scale,), high=block, wide=block)
    assert same(out, dequantised(weight, scale, block, kept))


@FROM_FP8
@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_each_nan_code_is_counted(code: int, kernel: str, kept: Any) -> None:
    weight = np.zeros((200, 200), np.uint8)
    weight[199, 77] = code
    out, _, counts = apply(kernel, weight.view(E4M3), 200, aside=(np.ones((2, 2), np.float32),), high=128, wide=128)
    assert (counts, out.dtype) == ({"nan": 1}, kept)


@FROM_FP8
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 1e38])
def test_a_scale_that_makes_no_sense_is_counted(scale: float, kernel: str, kept: Any) -> None:
    weight = np.zeros((8, 8), np.uint8).view(E4M3)
    out, _, counts = apply(kernel, weight, 8, aside=(np.full((1, 1), scale, np.float32),), high=128, wide=128)
    assert "scale" in counts
    assert out.dtype == kept


def test_the_table_of_the_proof_is_the_format() -> None:
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(proof.E4M3, every.view(E4M3).astype(np.float32), equal_nan=True)


# Between float types


HALVES = np.arange(1 << 16, dtype=np.uint16)


def test_every_bfloat16_becomes_the_nearest_float16_and_is_counted() -> None:
    source = HALVES.view(BF16)
    wide = source.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = wide.astype(np.float16)
    out, _, counts = apply("bf16-to-fp16", source)
    number = ~np.isnan(wide)
    assert same(out[number], wanted[number])
    finite = np.isfinite(wide)
    assert counts == {
        "nan": int((~number).sum()),
        "infinite": int(np.isinf(wide).sum()),
        "overflow": int((np.isinf(wanted) & finite).sum()),
        "subnormal": int(((np.abs(wanted) < 2.0**-14) & (wanted != 0)).sum()),
        "flushed": int(((wanted == 0) & (wide != 0)).sum()),
    }


def test_every_bfloat16_is_a_float32() -> None:
    source = HALVES.view(BF16)
    out, _, counts = apply("bf16-to-fp32", source)
    assert same(out, HALVES.astype(np.uint32) << np.uint32(16))
    assert counts == {"nan": int(np.isnan(source.astype(np.float32)).sum()), "infinite": 2}


def test_every_float16_becomes_the_nearest_bfloat16() -> None:
    source = HALVES.view(np.float16)
    out, _, counts = apply("fp16-to-bf16", source)
    number = ~np.isnan(source)
    assert same(out[number], source[number].astype(np.float32).astype(BF16))
    assert counts == {"nan": int((~number).sum()), "infinite": 2}


WORDS = st.integers(0, 2**32 - 1) | st.builds(
    lambda top, low: (top << 16 | low) & 0xFFFFFFFF,
    st.integers(0, 0xFFFF),
    st.sampled_from([0, 0x7FFF, 0x8000, 0x8001, 0x1000, 0xFFF, 0xFFFF]),
)


@given(st.lists(WORDS, min_size=1))
@pytest.mark.parametrize("to", ["bf16", "fp16"])
def test_any_float32_becomes_the_nearest(to: str, words: list[int]) -> None:
    source = np.array(words, np.uint32).view(np.float32)
    out, _, counts = apply(f"fp32-to-{to}", source)
    number = ~np.isnan(source)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = source.astype(BF16 if to == "bf16" else np.float16)
    assert same(out[number], wanted[number])
    assert counts.get("nan", 0) == (~number).sum()
    assert counts.get("overflow", 0) == (np.isinf(wanted.astype(np.float32)) & np.isfinite(source)).sum()
    assert counts.get("infinite", 0) == np.isinf(source).sum()


@given(st.lists(WORDS, min_size=1))
def test_numpy_alone_gives_the_same_bits_and_counts(words: list[int]) -> None:
    source = np.array(words, np.uint32)
    found = []
    for loop in (numpy_fp32_to_bf16, KERNELS["fp32-to-bf16"].makes()):
        strip = Strip(source, np.empty(source.size, np.uint16), 0, source.shape, (), (), np.zeros(3, np.int64), {})
        loop(strip)
        found.append((strip.out[~np.isnan(source.view(np.float32))].tobytes(), strip.counts.tolist()))
    assert found[0] == found[1]


# int8


def quantised(weight: Any, groups: int = 1, kept: Any = np.float32) -> tuple[Any, Any]:
    """Return the codes and scales of the formula: float32, true division, ties to even, clamped."""
    wide = weight.astype(np.float32).reshape(weight.shape[0], groups, -1)
    scale = np.maximum(np.abs(wide).max(2, keepdims=True) / np.float32(127), np.float32(2.0**-23)).astype(kept)
    return np.clip(np.rint(wide / scale.astype(np.float32)), -127, 127).astype(np.int8), scale


@pytest.mark.parametrize("source", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("own", "kept"), [("", np.float32), ("-scale-bf16", BF16), ("-scale-fp16", np.float16)])
@pytest.mark.parametrize("groups", [1, 4])
def test_every_code_and_scale_is_that_of_the_formula(source: str, own: str, kept: Any, groups: int) -> None:
    rng = np.random.default_rng(11)
    spread = np.exp2(rng.uniform(-12, 3, (96, 1)))
    weight = (rng.standard_normal((96, 1024)) * spread).astype({"bf16": BF16, "fp16": np.float16, "fp32": np.float32}[source])
    weight[5] = 0
    weight[6, 9] = 1e-7
    out, sides, counts = apply(f"{source}-to-int8{own}", weight, 1024, sides=groups)
    wanted, scale = quantised(weight, groups, kept)
    assert same(out, wanted)
    assert same(sides[0], scale)
    assert counts == {}


def test_the_reciprocal_would_give_other_codes() -> None:
    rng = np.random.default_rng(1)
    weight = (rng.standard_normal((512, 7168)) * 0.02).astype(BF16)
    out, sides, _ = apply("bf16-to-int8", weight, 7168)
    by_reciprocal = np.rint(weight.astype(np.float32) * (np.float32(1) / sides[0][:, None])).astype(np.int8)
    assert (by_reciprocal.reshape(-1) != out).any()
    wide = sides[0][:, None].astype(np.float64)
    assert (
        np.abs(weight.astype(np.float64) - out.reshape(weight.shape) * wide) <= wide / 2 * (1 + 2.0**-17)
    ).all()  # a quotient below 128 is off by up to 2^-18


@pytest.mark.parametrize(("bad", "what"), [(np.nan, "nan"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_a_row_with_no_number_is_counted(bad: float, what: str) -> None:
    weight = np.ones((4, 16), BF16)
    weight[2, 3] = bad
    assert apply("bf16-to-int8", weight, 16)[2] == {what: 1}


# Through files, whatever the cut


def quantise(source: Path, kernel: str = "bf16-to-int8", side: tuple[str, int] = ("F32", 1)) -> Conversion:
    """Plan every matrix of a checkpoint as int8 with scales and zero offsets; all else is kept."""
    steps = []
    for tensor in read_catalogue(source).tensors.values():
        if len(tensor.shape) != 2:
            steps.append(copied(tensor))
            continue
        scale = Output(f"{tensor.name}_scale", side[0], (tensor.shape[0], side[1]))
        steps.append(Step(kernel, tensor, (Output(tensor.name, "I8", tensor.shape), scale)))
        steps.append(Step("constant", None, (Output(f"{tensor.name}_offset", "F32", (tensor.shape[0], 1)),)))
    return check(Conversion(source, "int8", (Shard("model.safetensors", tuple(steps)),)))


@pytest.mark.parametrize(("chunk", "entry"), [(4096, 8192), (8192, 4096), (1 << 16, 1 << 14), (8 << 20, 16 << 20)])
def test_rows_that_are_cut_anywhere_give_the_same_file(
    chunk: int, entry: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "CHUNK", chunk)
    monkeypatch.setattr(jobs, "INPUT", entry)
    rng = np.random.default_rng(2)
    shapes = {"a": (37, 1000), "b": (700, 24), "c": (3, 8), "d": (1, 40_000), "e": (0, 8), "norm": (7,), "odd": (3, 5, 1)}
    arrays = {name: rng.standard_normal(shape).astype(BF16) for name, shape in shapes.items()}
    source = checkpoint(tmp_path / "in", {"model.safetensors": arrays})
    conversion = quantise(source)
    run(conversion, tmp_path / "out", quiet())
    found = read_all(tmp_path / "out")
    for name in ("a", "b", "c", "d"):
        wanted, scale = quantised(arrays[name])
        assert same(found[name], wanted)
        assert same(found[f"{name}_scale"], scale)
        assert not found[f"{name}_offset"].any()
    for name in ("norm", "odd"):
        assert same(found[name], arrays[name])
    assert verify(conversion, tmp_path / "out", quiet())["tensors"] == len(found)


@pytest.mark.parametrize("chunk", [4096, 1 << 16, 8 << 20])
def test_tensors_that_their_file_does_not_align_are_read_rightly(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "CHUNK", chunk)
    rng = np.random.default_rng(3)
    arrays: dict[str, Any] = {}
    for number in range(50):
        arrays[f"{number}.bytes"] = rng.integers(0, 255, number % 7 + 1, dtype=np.uint8)
        arrays[f"{number}.weight"] = rng.standard_normal(number * 37 + 1).astype(np.float32)
    arrays["large"] = rng.standard_normal(100_001).astype(np.float32)
    conversion = plan_conversion(checkpoint(tmp_path / "in", {"model.safetensors": arrays}), "bf16")
    run(conversion, tmp_path / "out", quiet())
    found = read_all(tmp_path / "out")
    for name, array in arrays.items():
        assert same(found[name], array if array.dtype == np.uint8 else array.astype(BF16))
    for tensor in read_catalogue(tmp_path / "out").tensors.values():
        assert tensor.offset % {"U8": 1, "BF16": 2}[tensor.dtype] == 0
    verify(conversion, tmp_path / "out", quiet())


@pytest.mark.parametrize("disk_takes", ["direct", "no direct reads", "no direct writes", "nothing"])
def test_large_files_are_the_same_past_the_page_cache_and_through_it(
    disk_takes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual_open, usual_read = os.open, os.preadv

    def opening(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & disk.DIRECT and flags & os.O_WRONLY and disk_takes in ("no direct writes", "nothing"):
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        return usual_open(path, flags, *rest, **options)

    def reading(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags or (disk_takes in ("no direct reads", "nothing") and fcntl.fcntl(descriptor, fcntl.F_GETFL) & disk.DIRECT):
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        return usual_read(descriptor, buffers, offset, flags)

    rng = np.random.default_rng(4)
    arrays = {f"{number}.weight": rng.standard_normal((1237, 1003), dtype=np.float32) for number in range(15)}
    arrays["scalar"] = np.array(3.25, np.float32)
    conversion = plan_conversion(checkpoint(tmp_path / "in", {"model.safetensors": arrays}), "bf16")
    assert conversion.size > disk.SMALL
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opening)
        patch.setattr(os, "preadv", reading)
        run(conversion, tmp_path / "out", quiet())
    found = read_all(tmp_path / "out")
    assert all(same(found[name], array.astype(BF16)) for name, array in arrays.items())


# The proof, and what is missing


ROWS = {"I8": 48, "I32": 6, "F8_E4M3": 48}


@pytest.mark.parametrize("kernel", sorted(name for name in KERNELS if KERNELS[name].by == "row"))
@pytest.mark.parametrize("groups", [1, 2])
def test_every_kernel_of_rows_is_proven_through_a_file(
    kernel: str, groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if groups > 1 and kernel.endswith("-fp8"):
        groups = 1
    monkeypatch.setattr(jobs, "CHUNK", 4096)
    rng = np.random.default_rng(6)
    arrays = {
        "w": (rng.standard_normal((500, 48)) * np.exp2(rng.uniform(-9, 4, (500, 1)))).astype(np.float32),
        "ties": np.linspace(-1, 1, 48 * 16, dtype=np.float32).reshape(16, 48),
    }
    kept = {"BF16": BF16, "F16": np.float16, "F32": np.float32}[KERNELS[kernel].reads[0]]
    source = checkpoint(tmp_path / "in", {"model.safetensors": {name: array.astype(kept) for name, array in arrays.items()}})
    first, side = KERNELS[kernel].writes
    steps = tuple(
        Step(kernel, t, (Output(t.name, first, (t.shape[0], ROWS[first])), Output(f"{t.name}_s", side, (t.shape[0], groups))))
        for t in read_catalogue(source).tensors.values()
    )
    conversion = check(Conversion(source, kernel, (Shard("model.safetensors", steps),)))
    run(conversion, tmp_path / "out", quiet())
    assert verify(conversion, tmp_path / "out", quiet())["tensors"] == 4


@pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"copy", "constant"}))
def test_every_kernel_can_be_proven(kernel: str) -> None:
    assert kernel in REFERENCES


def test_a_single_wrong_bit_is_found_and_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    source = checkpoint(tmp_path / "in", {"model.safetensors": {"w": rng.standard_normal((300, 1000)).astype(BF16)}})
    conversion = quantise(source)
    run(conversion, tmp_path / "out", quiet())
    path = tmp_path / "out" / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = read_catalogue(tmp_path / "out").tensors["w"].offset
    data[start + 299_998] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError, match="tensor w: element 299998 is 0x"):
        verify(conversion, tmp_path / "out", quiet())


def test_a_missing_numba_is_named_and_fp32_to_bf16_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".", 1)[0] == "numba":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return usual(name, *rest, **options)

    for module in [name for name in sys.modules if name.startswith("release.builders.weights.")]:
        if module.endswith((".loops", ".narrow")):
            monkeypatch.delitem(sys.modules, module)
    import release.builders.weights as package

    monkeypatch.delattr(package, "loops", raising=False)
    monkeypatch.delattr(package, "narrow", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    source = checkpoint(tmp_path / "in", {"model.safetensors": {"w": np.ones((3, 3), np.float32)}}, {"torch_dtype": "float32"})
    run(plan_conversion(source, "bf16"), tmp_path / "out", quiet())
    assert read_all(tmp_path / "out")["w"].dtype == BF16
    with pytest.raises(StageError, match="needs numba") as caught:
        run(plan_conversion(source, "fp16"), tmp_path / "half", quiet())
    assert caught.value.next_step == "pip install 'release[weights]'"
    assert not (tmp_path / "half").exists()


@pytest.mark.parametrize("what", ["kernel", "dtype", "shape", "rows", "name", "row", "odd", "constant"])
def test_a_plan_that_cannot_be_run_is_refused(what: str, tmp_path: Path) -> None:
    arrays = {"w": np.ones((3, 5), BF16), "v": np.ones((4, 8), BF16)}
    found = read_catalogue(checkpoint(tmp_path / "in", {"model.safetensors": arrays})).tensors
    w, v = found["w"], found["v"]
    codes_, scale = Output("v", "I8", (4, 8)), Output("s", "F32", (4, 1))
    steps = {
        "kernel": (Step("nonsense", w, (Output("w", "I8", (3, 5)),)),),
        "dtype": (Step("fp32-to-bf16", w, (Output("w", "BF16", (3, 5)),)),),
        "shape": (Step("bf16-to-fp16", w, (Output("w", "F16", (3, 4)),)),),
        "rows": (Step("bf16-to-int8", v, (codes_, Output("s", "F32", (3, 1)))),),
        "name": (copied(w), copied(v, "w")),
        "row": (Step("bf16-to-int8", v, (codes_,)),),
        "odd": (Step("bf16-to-int8", w, (Output("w", "I8", (3, 5)), Output("s", "F32", (3, 1)))),),
        "constant": (Step("constant", None, (scale,), data=b"123"),),
    }[what]
    with pytest.raises(StageError):
        check(Conversion(tmp_path, "x", (Shard("model.safetensors", steps),)))


def test_the_types_of_the_format_are_those_of_numpy() -> None:
    assert {ml_dtypes.finfo(E4M3).max, proof.E4M3[0x7E]} == {448.0}
    assert recipes.BLOCK == 128
