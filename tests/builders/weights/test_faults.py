"""The faults of the official FP8 → BF16 script, one by one: its algorithm, written down here, fails each test that ours passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards import BF16, E4M3, deepseek, dequantised, quiet, read, read_all, write

from release.builders.weights import convert
from release.errors import StageError

INDEX = "model.safetensors.index.json"
Converter = Callable[[Path, Path], None]


class Stopped(Exception):
    """The process ends here."""


def ours(source: Path, target: Path) -> None:
    convert(source, target, upstream="fp8", precision="bf16", line=quiet())


class Official:
    """The script's algorithm: shard by shard, whole files in memory, the last two kept; what it loads is noted in `loads`."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.loads: list[str] = []
        self.stop_after = stop_after

    def __call__(self, source: Path, target: Path) -> None:
        target.mkdir(exist_ok=True)
        weight_map = json.loads((source / INDEX).read_bytes())["weight_map"]
        loaded: dict[str, dict[str, Any]] = {}
        dequantised_names = []

        def tensor(name: str) -> Any:
            file = weight_map[name]
            if file not in loaded:
                loaded[file] = self.load(source / file)
            return loaded[file][name]

        for number, file in enumerate(sorted(source.glob("*.safetensors"))):
            if number == self.stop_after:
                raise Stopped
            current = self.load(file)
            loaded[file.name] = current
            made = {}
            for name, weight in current.items():
                if name.endswith("_scale_inv"):
                    continue
                if weight.dtype.itemsize == 1:
                    try:
                        scale = tensor(f"{name}_scale_inv")
                    except KeyError:
                        made[name] = weight  # a warning is printed
                        continue
                    dequantised_names.append(name)
                    made[name] = dequantised(weight, scale)
                else:
                    made[name] = weight
            write(target / file.name, made)
            if len(loaded) > 2:
                del loaded[next(iter(loaded))]
        kept = {
            name: file
            for name, file in weight_map.items()
            if name.removesuffix("_scale_inv") not in dequantised_names or name in made
        }
        for name in dequantised_names:
            kept.pop(f"{name}_scale_inv", None)
            kept[name] = weight_map[name]
        (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": kept}))

    def load(self, path: Path) -> dict[str, Any]:
        self.loads.append(path.name)
        return read(path)


def metadata_of(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, str] = header.get("__metadata__", {})
    return found


def fails(official: Converter, source: Path, target: Path, holds: Callable[[Path], None]) -> None:
    """Assert that what holds of our result does not hold of the official one."""
    official(source, target)
    with pytest.raises((AssertionError, KeyError, FileNotFoundError)):
        holds(target)


def test_both_multiply_and_find_scales_in_other_shards(tmp_path: Path) -> None:
    """What the script does well; else the tests below would show nothing."""
    source, arrays = deepseek(tmp_path / "in")
    Official()(source, tmp_path / "official")
    ours(source, tmp_path / "ours")
    found, theirs = read_all(tmp_path / "ours"), read_all(tmp_path / "official")
    for name, weight in arrays.items():
        if weight.dtype == E4M3:
            assert found[name].tobytes() == theirs[name].tobytes() == dequantised(weight, arrays[f"{name}_scale_inv"]).tobytes()
        elif not name.endswith("_scale_inv"):
            assert found[name].tobytes() == weight.tobytes()
            assert found[name].dtype == weight.dtype
    assert not any(name.endswith("_scale_inv") for name in found)


def test_one_every_file_says_that_its_format_is_pt(tmp_path: Path) -> None:
    source, _ = deepseek(tmp_path / "in")
    ours(source, tmp_path / "ours")

    def holds(target: Path) -> None:
        for path in target.glob("*.safetensors"):
            assert metadata_of(path) == {"format": "pt"}

    holds(tmp_path / "ours")
    fails(Official(), source, tmp_path / "official", holds)


def test_two_the_index_has_the_total_size(tmp_path: Path) -> None:
    source, _ = deepseek(tmp_path / "in")
    ours(source, tmp_path / "ours")

    def holds(target: Path) -> None:
        index = json.loads((target / INDEX).read_bytes())
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in read_all(target).values())
        assert set(index["weight_map"]) == set(read_all(target))

    holds(tmp_path / "ours")
    fails(Official(), source, tmp_path / "official", holds)


@pytest.mark.parametrize("what", ["config", "others"])
def test_three_the_other_files_come_along_and_the_config_says_what_is_true(what: str, tmp_path: Path) -> None:
    source, _ = deepseek(tmp_path / "in")
    ours(source, tmp_path / "ours")

    def holds(target: Path) -> None:
        if what == "config":
            config = json.loads((target / "config.json").read_bytes())
            assert "quantization_config" not in config
            assert (config["torch_dtype"], config["num_nextn_predict_layers"]) == ("bfloat16", 1)
        else:
            for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE", "chat_template.jinja", "modeling_deepseek.py"):
                assert (target / name).read_bytes() == (source / name).read_bytes()

    holds(tmp_path / "ours")
    fails(Official(), source, tmp_path / "official", holds)


def test_four_a_weight_without_its_scale_is_an_error(tmp_path: Path) -> None:
    source, _ = deepseek(tmp_path / "in")
    file = source / "model-00001-of-000003.safetensors"
    name = "model.layers.0.mlp.up_proj.weight"
    arrays = read(file)
    del arrays[f"{name}_scale_inv"]
    write(file, arrays)
    index = json.loads((source / INDEX).read_bytes())
    del index["weight_map"][f"{name}_scale_inv"]
    (source / INDEX).write_text(json.dumps(index))
    with pytest.raises(StageError, match=rf"{name} has no {name}_scale_inv"):
        ours(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    Official()(source, tmp_path / "official")
    assert {array.dtype for array in read_all(tmp_path / "official").values()} >= {E4M3, BF16}, (
        "a checkpoint of mixed types, and no error"
    )


def test_five_only_fp8_is_fp8(tmp_path: Path) -> None:
    """A uint8 tensor that has a neighbour of that name (a packed format's, say) is not a number to be multiplied."""
    source, arrays = deepseek(tmp_path / "in")
    file = source / "model-00001-of-000003.safetensors"
    stranger = np.arange(128 * 128, dtype=np.uint8).reshape(128, 128)
    name = "model.layers.0.packed"
    write(file, {**read(file), name: stranger, f"{name}_scale_inv": np.ones((1, 1), np.float32)})
    index = json.loads((source / INDEX).read_bytes())
    index["weight_map"] |= {name: file.name, f"{name}_scale_inv": file.name}
    (source / INDEX).write_text(json.dumps(index))
    with pytest.raises(StageError, match=rf"{name}_scale_inv belongs to no FP8 tensor"):
        ours(source, tmp_path / "ours")
    Official()(source, tmp_path / "official")
    assert read_all(tmp_path / "official")[name].dtype == BF16, "bytes taken for numbers"
    source, arrays = deepseek(tmp_path / "sound")
    ours(source, tmp_path / "ours")
    for kept in ("model.layers.0.codes", "model.layers.0.bytes", "model.layers.0.mask"):
        assert read_all(tmp_path / "ours")[kept].dtype == arrays[kept].dtype


def test_six_no_file_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that lies elsewhere costs its own bytes, not the file's."""
    from release.builders.weights.disk import Source

    source, _ = deepseek(tmp_path / "in")
    official = Official()
    official(source, tmp_path / "official")
    assert len(official.loads) > len(set(official.loads))
    taken: dict[str, int] = {}
    fill = Source._fill

    def counting(self: Source, descriptor: int, offset: int, view: memoryview, needed: int) -> None:
        taken[self.path.name] = taken.get(self.path.name, 0) + needed
        fill(self, descriptor, offset, view, needed)

    monkeypatch.setattr(Source, "_fill", counting)
    ours(source, tmp_path / "ours")
    assert set(taken) == {path.name for path in source.glob("*.safetensors")}
    for name, size in taken.items():
        assert size <= (source / name).stat().st_size


def test_seven_what_is_interrupted_does_not_look_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes on where it stopped. The whole of it, with a real kill, is in test_resume."""
    from release.builders.weights import run as running

    source, _ = deepseek(tmp_path / "in")
    with pytest.raises(Stopped):
        Official(stop_after=2)(source, tmp_path / "official")
    assert len(list((tmp_path / "official").glob("*.safetensors"))) == 2, (
        "whole files in the final place, and nothing that says more"
    )
    write_shard = running.write_shard
    made: list[str] = []

    def stopping(pool: Any, shard: Any, *rest: Any) -> Any:
        if len(made) == 2:
            raise Stopped
        made.append(shard.file)
        return write_shard(pool, shard, *rest)

    monkeypatch.setattr(running, "write_shard", stopping)
    with pytest.raises(Stopped):
        ours(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    monkeypatch.setattr(
        running, "write_shard", lambda pool, shard, *rest: made.append(shard.file) or write_shard(pool, shard, *rest)
    )
    ours(source, tmp_path / "ours")
    assert sorted(made) == sorted(path.name for path in source.glob("*.safetensors"))


def test_a_nan_is_an_error_and_not_a_weight(tmp_path: Path) -> None:
    source, _ = deepseek(tmp_path / "in")
    file = source / "model-00001-of-000003.safetensors"
    arrays = {name: array.copy() for name, array in read(file).items()}
    arrays["model.layers.0.mlp.up_proj.weight"].view(np.uint8)[299, 512] = 0xFF
    write(file, arrays)
    with pytest.raises(StageError, match=r"tensor model\.layers\.0\.mlp\.up_proj\.weight holds a NaN"):
        ours(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    Official()(source, tmp_path / "official")
    assert np.isnan(read_all(tmp_path / "official")["model.layers.0.mlp.up_proj.weight"].astype(np.float32)).any()
