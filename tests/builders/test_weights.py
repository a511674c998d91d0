"""Weights are the pinned ones, are rounded exactly, and a hostile file is refused before anything is made of it."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from release.builders import weights
from release.builders.weights import check_files, convert, convert_shard, read_header, to_bf16
from release.errors import FetchError, StageError
from release.oci import sha256
from release.progress import Line, Plain

OFTEN = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def quiet() -> Line:
    return Plain(io.StringIO()).line("cell", "weights")


def packed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


def header_of(data: bytes) -> tuple[dict[str, dict[str, Any]], dict[str, str], int]:
    return read_header(io.BytesIO(data), len(data))


# Rounding


def nearest_even(value: int) -> int:
    """Return the bfloat16 bits nearest to float32 bits `value`, ties to the even one: exact, on integers, by looking at both sides."""
    below, above = value >> 16 << 16, (value >> 16) + 1 << 16
    if value - below != above - value:
        return (below if value - below < above - value else above) >> 16
    return (below >> 16) if below >> 16 & 1 == 0 else above >> 16


def rounded(values: list[int]) -> list[int]:
    data = np.array(values, dtype="<u4").tobytes()
    return [int(value) for value in np.frombuffer(to_bf16(data, "t"), dtype="<u2")]


NUMBERS = st.integers(0, (1 << 32) - 1).filter(lambda value: value & 0x7FFFFFFF <= 0x7F800000)


@given(st.lists(NUMBERS, min_size=1))
def test_every_number_becomes_the_nearest_ties_to_even(values: list[int]) -> None:
    assert rounded(values) == [nearest_even(value) for value in values]


@given(st.lists(NUMBERS.filter(lambda value: value & 0x7F800000 < 0x7F000000), min_size=1))
def test_no_bfloat16_lies_nearer_than_the_one_that_was_chosen(values: list[int]) -> None:
    """The same said with float64, in which the differences of float32 and bfloat16 numbers are exact."""
    wide = np.array(values, dtype="<u4").view("<f4").astype(np.float64)
    chosen = np.array(rounded(values), dtype="<u4")

    def value(bits: Any) -> Any:
        return (bits.astype("<u4") << 16).view("<f4").astype(np.float64)

    distance = np.abs(value(chosen) - wide)
    magnitude = chosen & 0x7FFF
    for step in (-1, 1):
        other = (chosen & 0x8000) | np.clip(magnitude.astype(np.int64) + step, 0, 0x7F7F).astype("<u4")
        assert (distance <= np.abs(value(other) - wide)).all()


SPECIAL = {
    "zero": (0x00000000, 0x0000),
    "minus zero": (0x80000000, 0x8000),
    "one": (0x3F800000, 0x3F80),
    "smallest subnormal": (0x00000001, 0x0000),
    "largest subnormal": (0x007FFFFF, 0x0080),
    "subnormal at a tie": (0x00008000, 0x0000),
    "subnormal above a tie": (0x00008001, 0x0001),
    "tie to even below": (0x3F808000, 0x3F80),
    "tie to even above": (0x3F818000, 0x3F82),
    "infinity": (0x7F800000, 0x7F80),
    "minus infinity": (0xFF800000, 0xFF80),
    "largest that stays finite": (0x7F7F7FFF, 0x7F7F),
    "largest float32": (0x7F7FFFFF, 0x7F80),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_the_edges_of_the_number_line_are_rounded_rightly(name: str) -> None:
    before, after = SPECIAL[name]
    assert rounded([before]) == [after]


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFF800001])
def test_a_nan_is_an_error_that_names_the_tensor(bits: int) -> None:
    with pytest.raises(StageError, match=r"tensor model\.norm holds a NaN"):
        to_bf16(np.array([0, bits, 0], dtype="<u4").tobytes(), "model.norm")


# The format


def test_a_sound_header_is_read() -> None:
    data = packed(
        {**tensor(), "b": {"dtype": "BF16", "shape": [2, 0], "data_offsets": [4, 4]}, "__metadata__": {"format": "pt"}}, b"1234"
    )
    tensors, metadata, start = header_of(data)
    assert (set(tensors), metadata, data[start:]) == ({"a", "b"}, {"format": "pt"}, b"1234")


HOSTILE = {
    "nothing": b"",
    "half a length": b"123",
    "a length of nothing": bytes(8),
    "a length of one": packed(b"{}", length=1),
    "a huge length": packed(b"{}", length=1 << 63),
    "a length beyond the file": packed(b"{}", length=3),
    "a length beyond the limit": packed(b"{}", length=weights.HEADER_LIMIT + 1),
    "no json": packed(b"{nope}"),
    "no utf-8": packed(b'{"\xff": 1}'),
    "deep json": packed(b"[" * 100_000 + b"]" * 100_000),
    "a list": packed([]),
    "a number": packed(b"12"),
    "a tensor that is a number": packed({"a": 1}),
    "a tensor that is nothing": packed({"a": None}),
    "a tensor without offsets": packed({"a": {"dtype": "F32", "shape": [1]}}, b"1234"),
    "an unknown dtype": packed(tensor(dtype="F31"), b"1234"),
    "a dtype that is a list": packed(tensor(dtype=["F32"]), b"1234"),
    "a shape that is a word": packed(tensor(shape="x"), b"1234"),
    "a negative dimension": packed(tensor(shape=[-1], data_offsets=[0, -4])),
    "two negative dimensions": packed(tensor(shape=[-1, -1]), b"1234"),
    "a dimension that is no integer": packed(tensor(shape=[0.25, 4]), b"1234"),
    "a dimension that is a boolean": packed(tensor(shape=[True]), b"1234"),
    "an endless dimension": packed(b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', b"1234"),
    "offsets that are no integers": packed(tensor(data_offsets=[0.0, 4.0]), b"1234"),
    "offsets that are words": packed(tensor(data_offsets=["0", "4"]), b"1234"),
    "three offsets": packed(tensor(data_offsets=[0, 4, 8]), b"1234"),
    "offsets in reverse": packed(tensor(data_offsets=[4, 0]), b"1234"),
    "a negative offset": packed(tensor(data_offsets=[-4, 0]), b"1234"),
    "more bytes than the shape has": packed(tensor(data_offsets=[0, 8]), b"12345678"),
    "a gap at the start": packed(tensor(data_offsets=[4, 8]), b"12345678"),
    "a gap at the end": packed(tensor(), b"12345678"),
    "a gap inside": packed({**tensor(), "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}, b"1" * 12),
    "an overlap": packed({**tensor(), "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}, b"123456"),
    "twice the same bytes": packed({**tensor(), "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "a file that ends early": packed(tensor(), b"123"),
    "metadata that is a list": packed({**tensor(), "__metadata__": [1]}, b"1234"),
    "metadata that is nothing": packed({**tensor(), "__metadata__": None}, b"1234"),
    "metadata that is not text": packed({**tensor(), "__metadata__": {"a": 1}}, b"1234"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused(what: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="not a sound safetensors file"):
        header_of(HOSTILE[what])
    (tmp_path / "x.safetensors").write_bytes(HOSTILE[what])
    with pytest.raises(StageError, match="not a sound safetensors file"):
        convert_shard(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "BF16", quiet())


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
)


@OFTEN
@given(
    document=JSONS
    | st.builds(lambda value, key: tensor(**{key: value}), JSONS, st.sampled_from(["dtype", "shape", "data_offsets"]))
)
def test_no_header_does_anything_but_be_read_or_refused(document: object) -> None:
    with contextlib.suppress(StageError):
        header_of(packed(document, b"1234"))


def test_what_is_written_is_what_the_reference_library_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    source = {
        "b.weight": rng.standard_normal((33, 17)).astype(np.float32),
        "a.norm": rng.standard_normal(5).astype(np.float32) * 1e-40,
        "c.half": rng.standard_normal(4).astype(np.float16),
        "d.ids": np.arange(6, dtype=np.int64).reshape(2, 3),
        "e.empty": np.zeros((0, 3), dtype=np.float32),
        "f.scalar": np.array(1.5, dtype=np.float32),
    }
    save_file(source, tmp_path / "x.safetensors", metadata={"made": "here"})
    assert convert_shard(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "BF16", quiet()) == (4, 2)
    tensors, metadata, start = header_of((tmp_path / "y.safetensors").read_bytes())
    data = (tmp_path / "y.safetensors").read_bytes()[start:]
    assert metadata == {"format": "pt", "made": "here"}
    assert start % 8 == 0
    with safe_open(tmp_path / "y.safetensors", framework="np") as reader:
        assert set(reader.keys()) == set(source)
        assert reader.metadata() == metadata
        for name, array in source.items():
            view = reader.get_slice(name)
            assert tuple(view.get_shape()) == array.shape
            assert view.get_dtype() == ("BF16" if array.dtype == np.float32 else {"c.half": "F16", "d.ids": "I64"}[name])
    for name, array in source.items():
        begin, end = tensors[name]["data_offsets"]
        wanted = array.tobytes()
        if array.dtype == np.float32:
            wanted = np.array([nearest_even(int(b)) for b in array.reshape(-1).view("<u4")], dtype="<u2").tobytes()
        assert data[begin:end] == wanted


def test_a_tensor_larger_than_a_strip_is_converted_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "STRIP", 8)
    array = np.linspace(-3, 3, 8 * 5 + 3, dtype=np.float32)
    save_file({"a": array}, tmp_path / "x.safetensors")
    convert_shard(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "BF16", quiet())
    _, _, start = header_of((tmp_path / "y.safetensors").read_bytes())
    found = np.frombuffer((tmp_path / "y.safetensors").read_bytes()[start:], dtype="<u2")
    assert found.tolist() == [nearest_even(int(bits)) for bits in array.view("<u4")]


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    save_file({"a": np.ones((2, 2), dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"torch_dtype": "float32", "hidden": 8}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_checkpoint_becomes_bf16_with_its_config(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    facts = convert(checkpoint(tmp_path / "in"), out, upstream="fp32", precision="bf16", line=quiet())
    assert (facts["upstream"], facts["precision"], facts["converted"], facts["kept"]) == ("fp32", "bf16", 1, 0)
    assert json.loads((out / "config.json").read_bytes()) == {"torch_dtype": "bfloat16", "hidden": 8}
    assert facts["files"] == {
        name: {"sha256": sha256((out / name).read_bytes()), "bytes": (out / name).stat().st_size}
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in out.iterdir())


def test_a_checkpoint_that_is_in_the_precision_already_keeps_its_tensors(tmp_path: Path) -> None:
    source, out = checkpoint(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    facts = convert(source, out, upstream="fp32", precision="fp32", line=quiet())
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert facts["converted"] == 0


@pytest.mark.parametrize(("upstream", "precision"), [("bf16", "fp32"), ("fp32", "w8a8"), ("fp8", "bf16"), ("fp32", "nonsense")])
def test_a_conversion_that_nobody_knows_is_refused(upstream: str, precision: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=f"no conversion from {upstream} to {precision} is known"):
        convert(tmp_path, tmp_path, upstream=upstream, precision=precision, line=quiet())


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_checkpoint_whose_precision_needs_no_conversion_is_taken_as_it_is(precision: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    facts = convert(checkpoint(tmp_path / "in"), out, upstream=precision, precision=precision, line=quiet())
    assert facts["precision"] == precision


# The pins


def test_pinned_files_are_copied(tmp_path: Path) -> None:
    source, out = checkpoint(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    files = {name: sha256((source / name).read_bytes()) for name in ("config.json", "model.safetensors")}
    size = check_files(source, files, out, quiet())
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert size == sum((source / name).stat().st_size for name in files)


def test_a_tampered_checkpoint_is_named_with_both_digests(tmp_path: Path) -> None:
    source, out = checkpoint(tmp_path / "in"), tmp_path / "out"
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
