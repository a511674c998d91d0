"""A checkpoint comes into the cell's precision with its config, its index and its files; what cannot be held is refused; pins hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors import safe_open
from shards import BF16, CONFIG, E4M3, checkpoint, deepseek, dequantised, quiet, read, read_all, scales, write

from release.builders.weights import Options, check_files, convert, plan_conversion
from release.builders.weights.catalogue import read_catalogue
from release.builders.weights.plan import grouped
from release.builders.weights.proof import verify
from release.builders.weights.run import edited, run
from release.errors import FetchError, StageError, VerificationError
from release.oci import sha256

INDEX = "model.safetensors.index.json"


def small(folder: Path) -> Path:
    folder.mkdir()
    write(folder / "model.safetensors", {"a": np.ones((2, 2), np.float32)})
    (folder / "config.json").write_text('{"torch_dtype": "float32", "hidden": 8}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


# The stage


def test_a_checkpoint_becomes_bf16_with_its_config(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    facts = convert(small(tmp_path / "in"), out, upstream="fp32", precision="bf16", line=quiet())
    assert (facts["upstream"], facts["precision"], facts["converted"], facts["kept"]) == ("fp32", "bf16", 1, 0)
    assert json.loads((out / "config.json").read_bytes()) == {"torch_dtype": "bfloat16", "hidden": 8}
    assert facts["files"] == {
        name: {"sha256": sha256((out / name).read_bytes()), "bytes": (out / name).stat().st_size}
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in out.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_a_partial_folder_the_result_is_the_same(precision: str, tmp_path: Path) -> None:
    source = small(tmp_path / "in")
    (tmp_path / "partial").mkdir()
    with_it = convert(source, tmp_path / "a", upstream="fp32", precision=precision, line=quiet(), partial=tmp_path / "partial")
    assert with_it == convert(source, tmp_path / "b", upstream="fp32", precision=precision, line=quiet())
    for path in (tmp_path / "b").iterdir():
        assert (tmp_path / "a" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp8"])
def test_a_checkpoint_that_is_in_the_precision_already_keeps_its_bytes(precision: str, tmp_path: Path) -> None:
    source, out = small(tmp_path / "in"), tmp_path / "out"
    facts = convert(source, out, upstream=precision, precision=precision, line=quiet())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {path.name: path.read_bytes() for path in source.iterdir()}
    assert (facts["precision"], facts["converted"]) == (precision, 0)
    assert verify(plan_conversion(source, precision, upstream=precision), out, quiet())["bytes"] > 0


@pytest.mark.parametrize(("upstream", "precision"), [("bf16", "fp32"), ("fp8", "fp16"), ("fp32", "nonsense")])
def test_a_conversion_that_nobody_knows_is_refused(upstream: str, precision: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=f"no conversion from {upstream} to {precision} is known"):
        convert(tmp_path, tmp_path, upstream=upstream, precision=precision, line=quiet())


def test_what_is_written_is_what_the_reference_library_reads(tmp_path: Path) -> None:
    source, arrays = deepseek(tmp_path / "in")
    convert(source, tmp_path / "out", upstream="fp8", precision="bf16", line=quiet())
    seen = set()
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        with safe_open(path, framework="np") as reader:
            assert reader.metadata() == {"format": "pt"}
            for name in reader.keys():  # noqa: SIM118 - it is no dict
                view = reader.get_slice(name)
                seen.add(name)
                assert tuple(view.get_shape()) == arrays[name].shape
                assert view.get_dtype() == ("BF16" if arrays[name].dtype in (E4M3, BF16) else view.get_dtype())
    index = json.loads((tmp_path / "out" / INDEX).read_bytes())
    assert set(index["weight_map"]) == seen == {name for name in arrays if not name.endswith("_scale_inv")}


# What is planned


def test_a_plan_says_what_will_be_converted_kept_and_dropped(tmp_path: Path) -> None:
    source, arrays = deepseek(tmp_path / "in")
    conversion = plan_conversion(source, "bf16")
    summary = conversion.summary()
    fp8 = [array for array in arrays.values() if array.dtype == E4M3]
    assert summary["converted"] == {"F8_E4M3 → BF16": {"tensors": 4, "bytes": 2 * sum(array.size for array in fp8)}}
    assert {what: entry["tensors"] for what, entry in summary["kept"].items()} == {
        "BF16": 3,
        "F32": 1,
        "I8": 1,
        "U8": 1,
        "BOOL": 1,
    }
    assert summary["dropped"]["F32"]["tensors"] == 4
    assert summary["config"] == {"torch_dtype": "bfloat16", "quantization_config": None}
    assert not (tmp_path / "out").exists()
    done = run(conversion, tmp_path / "out", quiet())
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")) == summary["bytes"] == done.written
    assert (done.facts["converted"], done.facts["kept"], done.facts["dropped"]) == (4, 7, 4)


def test_fp8_becomes_float32_and_bfloat16_with_it_and_all_else_stays(tmp_path: Path) -> None:
    source, arrays = deepseek(tmp_path / "in")
    conversion = plan_conversion(source, "fp32")
    run(conversion, tmp_path / "out", quiet())
    found = read_all(tmp_path / "out")
    assert set(found) == {name for name in arrays if not name.endswith("_scale_inv")}
    for name, array in found.items():
        wanted = arrays[name]
        if wanted.dtype == E4M3:
            wanted = dequantised(wanted, arrays[f"{name}_scale_inv"], kept=np.dtype(np.float32))
        elif wanted.dtype == BF16:
            wanted = wanted.astype(np.float32)
        assert (array.dtype, array.tobytes()) == (wanted.dtype, wanted.tobytes()), name
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert (config["torch_dtype"], "quantization_config" in config) == ("float32", False)
    verify(conversion, tmp_path / "out", quiet())


def test_the_precision_is_found_in_the_tensors(tmp_path: Path) -> None:
    source, _ = deepseek(tmp_path / "in")
    assert plan_conversion(source, "bf16").recipe == "bf16"
    assert plan_conversion(source, "fp8").shards == ()
    half = checkpoint(tmp_path / "half", {"model.safetensors": {"a": np.ones(99, np.float16), "b": np.ones(2, np.float32)}})
    assert plan_conversion(half, "fp16").shards == ()
    ids = checkpoint(tmp_path / "ids", {"model.safetensors": {"a": np.ones(9, np.int64)}})
    with pytest.raises(StageError, match="has no float tensors: I64"):
        plan_conversion(ids, "bf16")


def test_the_layers_for_multi_token_prediction_stay_or_go(tmp_path: Path) -> None:
    source, arrays = deepseek(tmp_path / "in")
    without = plan_conversion(source, "bf16", options=Options(mtp=False))
    run(without, tmp_path / "out", quiet())
    assert set(read_all(tmp_path / "out")) == {n for n in arrays if ".layers.2." not in n and not n.endswith("_scale_inv")}
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert config == {key: value for key, value in CONFIG.items() if key != "quantization_config"} | {
        "num_nextn_predict_layers": 0
    }
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == [
        "model-00001-of-000002.safetensors",
        "model-00002-of-000002.safetensors",
    ]
    verify(without, tmp_path / "out", quiet())
    read_catalogue(tmp_path / "out")


def test_shards_are_renumbered_only_if_one_is_gone() -> None:
    step: Any = object()
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert [s.file for s in grouped(names, {name: [step] for name in names})] == names
    assert [s.file for s in grouped(names, {name: [step] for name in names[1:]})] == [
        f"model-0000{n}-of-00002.safetensors" for n in (1, 2)
    ]
    assert [s.file for s in grouped(["a.safetensors"], {"a.safetensors": [step]})] == ["a.safetensors"]


SPOILT = {
    "a scale of another shape": (
        np.ones((2, 2), np.float32),
        r"is F32 \[2, 2\]; blocks of 128 × 128 of \[200, 100\] need F32 \[2, 1\]",
    ),
    "a scale of another type": (np.ones((2, 1), BF16), r"is BF16 \[2, 1\]"),
    "a scale that is no number": (np.array([[1], [np.nan]], np.float32), "has a scale that is no finite number"),
    "a scale that is infinite": (np.array([[1], [np.inf]], np.float32), "has a scale that is no finite number"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_scale_that_cannot_be_is_refused(what: str, tmp_path: Path) -> None:
    scale, said = SPOILT[what]
    arrays = {"x.weight": np.zeros((200, 100), np.uint8).view(E4M3), "x.weight_scale_inv": scale}
    source = checkpoint(tmp_path / "in", {"model.safetensors": arrays})
    with pytest.raises(StageError, match=said):
        convert(source, tmp_path / "out", upstream="fp8", precision="bf16", line=quiet())
    assert not (tmp_path / "out").exists()


def test_blocks_are_those_of_the_config(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weight = rng.integers(0, 127, (70, 90), dtype=np.uint8).view(E4M3)
    scale = scales(rng, weight.shape, 32)
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}
    source = checkpoint(tmp_path / "in", {"model.safetensors": {"x.weight": weight, "x.weight_scale_inv": scale}}, config)
    convert(source, tmp_path / "out", upstream="fp8", precision="bf16", line=quiet())
    assert read_all(tmp_path / "out")["x.weight"].tobytes() == dequantised(weight, scale, 32).tobytes()
    for block in ([0, 32], [32], "32", [32, True]):
        (source / "config.json").write_text(json.dumps({"quantization_config": {"weight_block_size": block}}))
        with pytest.raises(StageError, match="weight_block_size"):
            plan_conversion(source, "bf16")


@pytest.mark.parametrize("config", [b"", b"[1]", b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 99999])
def test_a_config_that_is_none_is_refused(config: bytes, tmp_path: Path) -> None:
    source, _ = deepseek(tmp_path / "in")
    (source / "config.json").write_bytes(config)
    with pytest.raises(StageError, match=re.escape("config.json is not sound")):
        plan_conversion(source, "bf16")


def test_edits_keep_the_order_of_keys() -> None:
    config = {"a": 1, "gone": 2, "b": None, "c": 3}
    assert list(edited(config, {"c": 4, "gone": None, "new": 5, "never": None}).items()) == [
        ("a", 1),
        ("b", None),
        ("c", 4),
        ("new", 5),
    ]


# What does not fit


def wide(folder: Path) -> Path:
    arrays = {
        "fine": np.ones(8, BF16),
        "large": np.array([1, 65504, 70000, -1e30], np.float32).astype(BF16),
        "tiny": np.array([1e-6, 1e-9], BF16),
    }
    return checkpoint(folder, {"model.safetensors": arrays})


def test_numbers_too_large_for_fp16_are_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="tensor large holds numbers that are too large") as caught:
        convert(wide(tmp_path / "in"), tmp_path / "out", upstream="bf16", precision="fp16", line=quiet())
    assert "allow" in caught.value.next_step
    assert not (tmp_path / "out").exists()


def test_what_was_allowed_and_what_became_subnormal_is_reported(tmp_path: Path) -> None:
    source = wide(tmp_path / "in")
    facts = convert(
        source, tmp_path / "out", upstream="bf16", precision="fp16", line=quiet(), options=Options(allow=frozenset({"overflow"}))
    )
    assert facts["counts"] == {"overflow": 3, "subnormal": 1, "flushed": 1}
    assert facts["tensors"] == {"large": {"overflow": 3}, "tiny": {"subnormal": 1, "flushed": 1}}
    assert read(tmp_path / "out" / "model.safetensors")["large"].tolist()[2:] == [np.inf, -np.inf]


# A proof


@pytest.mark.parametrize("what", ["a bit", "a tensor less", "a dtype", "a carried file", "a missing file", "the config"])
def test_a_result_that_was_tampered_with_is_found(what: str, tmp_path: Path) -> None:
    source, _ = deepseek(tmp_path / "in")
    conversion = plan_conversion(source, "bf16")
    out = tmp_path / "out"
    run(conversion, out, quiet())
    assert verify(conversion, out, quiet())["tensors"] == 11
    first = sorted(out.glob("*.safetensors"))[0]
    if what == "a bit":
        data = bytearray(first.read_bytes())
        data[-1] ^= 1
        first.write_bytes(data)
    elif what == "a tensor less":
        index = json.loads((out / INDEX).read_bytes())
        arrays = read(first)
        del index["weight_map"][next(iter(arrays))]
        (out / INDEX).write_text(json.dumps(index))
        write(first, dict(list(arrays.items())[1:]))
    elif what == "a dtype":
        write(first, {name: array.view(np.float16) if array.dtype == BF16 else array for name, array in read(first).items()})
    elif what == "a carried file":
        (out / "tokenizer.json").write_text("tokenizer.json of the sourcE")
    elif what == "a missing file":
        (out / "LICENSE").unlink()
    else:
        (out / "config.json").write_text("{}")
    with pytest.raises(VerificationError):
        verify(conversion, out, quiet())


# The pins


def test_pinned_files_are_copied(tmp_path: Path) -> None:
    source, out = small(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    files = {name: sha256((source / name).read_bytes()) for name in ("config.json", "model.safetensors")}
    size = check_files(source, files, out, quiet())
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert size == sum((source / name).stat().st_size for name in files)


def test_a_tampered_checkpoint_is_named_with_both_digests(tmp_path: Path) -> None:
    source, out = small(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    files = {"model.safetensors": sha256((source / "model.safetensors").read_bytes())}
    data = bytearray((source / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (source / "model.safetensors").write_bytes(data)
    with pytest.raises(FetchError) as caught:
        check_files(source, files, out, quiet())
    for word in ("model.safetensors", files["model.safetensors"], sha256(bytes(data))):
        assert word in str(caught.value)
    assert caught.value.next_step
    assert list(out.iterdir()) == []


def test_a_missing_checkpoint_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"checkpoint file .*gone\.json is missing"):
        check_files(tmp_path, {"gone.json": "sha256:" + "0" * 64}, cast(Path, tmp_path / "out"), quiet())
