"""A safetensors header and an index are read whole or refused whole, in bounded memory; nothing they say is taken on trust."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from shards import BF16, checkpoint, write

from release.builders.weights import catalogue, header
from release.builders.weights.catalogue import read_catalogue
from release.builders.weights.header import Header, pack_header, read_file, read_header
from release.errors import StageError

OFTEN = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
INDEX = "model.safetensors.index.json"


def packed(document: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


def header_of(data: bytes) -> Header:
    return read_header(io.BytesIO(data), len(data), "x.safetensors")


def test_a_sound_header_is_read() -> None:
    data = packed(
        {**tensor(), "b": {"dtype": "BF16", "shape": [2, 0], "data_offsets": [4, 4]}, "__metadata__": {"format": "pt"}}, b"1234"
    )
    found = header_of(data)
    assert [(t.name, t.dtype, t.shape, t.size) for t in found.tensors] == [("a", "F32", (1,), 4), ("b", "BF16", (2, 0), 0)]
    assert (found.metadata, data[found.start :], found.size) == ({"format": "pt"}, b"1234", len(data))


HOSTILE = {
    "nothing": b"",
    "half a length": b"123",
    "a length of nothing": bytes(8),
    "a length of one": packed(b"{}", length=1),
    "a name twice": packed(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"
    ),
    "a key twice": packed(b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
    "utf-16": packed('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.encode("utf-16"), b"1234"),
    "a byte order mark": packed(b'\xef\xbb\xbf{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
    "space before the object": packed(b' {"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
    "half a letter": packed(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
    "no name": packed({"": tensor()["a"]}, b"1234"),
    "a nul in a name": packed({"a\0": tensor()["a"]}, b"1234"),
    "no number": packed(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"1234"),
    "a number of many digits": packed(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', b"1234"),
    "a product beyond all files": packed(tensor(shape=[1 << 61] * 9), b"1234"),
    "many dimensions": packed(tensor(shape=[1] * 17), b"1234"),
    "an element of half a byte": packed(tensor(dtype="F4", shape=[8]), b"1234"),
    "a huge length": packed(b"{}", length=1 << 63),
    "a length beyond the file": packed(b"{}", length=3),
    "a length beyond the limit": packed(b"{}", length=header.HEADER_LIMIT + 1),
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
    "twice the same bytes and a gap as large": packed(
        {**tensor(), "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345678"
    ),
    "a file that ends early": packed(tensor(), b"123"),
    "metadata that is a list": packed({**tensor(), "__metadata__": [1]}, b"1234"),
    "metadata that is nothing": packed({**tensor(), "__metadata__": None}, b"1234"),
    "metadata that is not text": packed({**tensor(), "__metadata__": {"a": 1}}, b"1234"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused(what: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="not a sound safetensors file"):
        header_of(HOSTILE[what])
    (tmp_path / "model.safetensors").write_bytes(HOSTILE[what])
    with pytest.raises(StageError, match="not a sound safetensors file"):
        read_catalogue(tmp_path)


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


def peak(data: bytes) -> int:
    """Return the bytes that refusing this takes at most."""
    tracemalloc.start()
    try:
        with pytest.raises(StageError, match="not a sound safetensors file"):
            header_of(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [header.HEADER_LIMIT + 1, 1 << 33, (1 << 64) - 1])
def test_a_header_beyond_the_limit_is_refused_before_it_is_read(length: int) -> None:
    asked: list[int | None] = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(size)
            return super().read(size)

    with pytest.raises(StageError, match=f"the header claims {length} bytes"):
        read_header(Watched(packed(b"{}", length=length)), 1 << 34, "x")
    assert asked == [8]


GREEDY = {
    "a million tensors": lambda: (
        b"{" + b",".join(b'"t%d":{"dtype":"F32","shape":[],"data_offsets":[0,4]}' % n for n in range(10**6)) + b"}"
    ),
    "lists": lambda: b'{"a":[' + b"[]," * (10 << 20) + b"[]]}",
    "objects": lambda: b'{"a":[' + b"{}," * (10 << 20) + b"{}]}",
    "numbers": lambda: b'{"a":[' + b"1.5," * (7 << 20) + b"1]}",
    "as much as is parsed": lambda: b"{" + b",".join(b'"%06x":0' % n for n in range(13 * 10**5)) + b"}",
}


@pytest.mark.parametrize("what", GREEDY)
def test_a_greedy_header_is_refused_in_bounded_memory(what: str) -> None:
    assert peak(packed(GREEDY[what]())) < 350 << 20


def test_tensors_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    many = {f"t{n}": {"dtype": "I8", "shape": [], "data_offsets": [n, n + 1]} for n in range(5)}
    assert len(header_of(packed(many, b"12345")).tensors) == 5
    monkeypatch.setattr(header, "MOST_TENSORS", 4)
    with pytest.raises(StageError, match="it has 5 tensors, more than 4"):
        header_of(packed(many, b"12345"))


def test_a_million_tensors_are_refused_before_anything_is_parsed() -> None:
    data = b"{" + b",".join(b'"%d":{"dtype":"I8","shape":[],"data_offsets":[0,1]}' % n for n in range(550_000)) + b"}"
    assert len(data) < header.HEADER_LIMIT
    assert peak(packed(data)) < len(data) + (1 << 20)


@OFTEN
@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda name: "\0" not in name and name.isprintable() and name != "__metadata__"),
        st.lists(st.integers(0, 9), max_size=4),
    )
)
def test_what_is_packed_is_what_is_read(shapes: dict[str, list[int]]) -> None:
    text = pack_header(((name, "BF16", tuple(shape)) for name, shape in shapes.items()), {"format": "pt"})
    size = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    found = read_header(io.BytesIO(text), len(text) + size, "x")
    assert {t.name: t.shape for t in found.tensors} == {name: tuple(shape) for name, shape in shapes.items()}
    assert found.start % 8 == 0


def test_the_reference_library_reads_a_packed_header(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32)
    (tmp_path / "x.safetensors").write_bytes(pack_header([("ä.weight", "F32", (2, 3))], {"format": "pt"}) + array.tobytes())
    with safe_open(tmp_path / "x.safetensors", framework="np") as reader:
        assert reader.metadata() == {"format": "pt"}
        assert (reader.get_tensor("ä.weight") == array.reshape(2, 3)).all()


# A checkpoint


def two(folder: Path) -> Path:
    shards = {
        "model-1.safetensors": {"a": np.ones(2, np.float32)},
        "model-2.safetensors": {"b": np.ones(3, BF16), "c": np.ones(1, BF16)},
    }
    return checkpoint(folder, shards)


def rewrite(folder: Path, change: Any) -> None:
    index = json.loads((folder / INDEX).read_bytes())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_a_checkpoint_is_catalogued(tmp_path: Path) -> None:
    found = read_catalogue(two(tmp_path / "in"))
    assert {t.name: (t.file, t.dtype, t.shape, t.size) for t in found.tensors.values()} == {
        "a": ("model-1.safetensors", "F32", (2,), 8),
        "b": ("model-2.safetensors", "BF16", (3,), 6),
        "c": ("model-2.safetensors", "BF16", (1,), 2),
    }
    assert found.index == INDEX
    assert found.others == (
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "modeling_deepseek.py",
        "tokenizer.json",
        "tokenizer_config.json",
    )
    assert found.size == 16


WRONG = {
    "names a tensor that no shard has": (
        lambda m: m.update(d="model-1.safetensors"),
        "names d in model-1.safetensors, which has no such",
    ),
    "leaves a tensor out": (lambda m: m.pop("c"), "does not name c, which is in model-2"),
    "leaves a shard out": (lambda m: (m.pop("b"), m.pop("c")), "model-2.safetensors is in no index"),
    "names a shard that is not there": (lambda m: m.update(b="gone.safetensors"), "names gone.safetensors, which is not there"),
    "puts a tensor elsewhere": (lambda m: m.update(b="model-1.safetensors"), "names b in model-1.safetensors, which has no such"),
    "climbs out": (lambda m: m.update(b="../model-2.safetensors"), "no plain name"),
    "is absolute": (lambda m: m.update(b="/etc/model-2.safetensors"), "no plain name"),
    "goes down": (lambda m: m.update(b="deep/model-2.safetensors"), "no plain name"),
    "hides": (lambda m: m.update(b=".model-2.safetensors"), "no plain name"),
    "names something else": (lambda m: m.update(b="config.json"), "no plain name"),
    "has a number": (lambda m: m.update(b=3), "no plain name"),
    "has a nul": (lambda m: m.update(b="model\0.safetensors"), "no plain name"),
    "is empty": (lambda m: m.clear(), "no object, or empty"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_index_that_does_not_fit_its_shards_is_refused(what: str, tmp_path: Path) -> None:
    change, said = WRONG[what]
    folder = two(tmp_path / "in")
    rewrite(folder, change)
    with pytest.raises(StageError, match=said):
        read_catalogue(folder)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"weight_map": []}', b"\xff", b'{"weight_map": {"a": "x", "a": "x"}}', b"[" * 99999]
)
def test_an_index_that_is_none_is_refused(text: bytes, tmp_path: Path) -> None:
    folder = two(tmp_path / "in")
    (folder / INDEX).write_bytes(text)
    with pytest.raises(StageError, match="not a sound index"):
        read_catalogue(folder)


def test_an_index_beyond_the_limit_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = two(tmp_path / "in")
    monkeypatch.setattr(catalogue, "INDEX_LIMIT", 10)
    with pytest.raises(StageError, match="more than 10"):
        read_catalogue(folder)


@given(
    st.binary(max_size=200) | st.builds(lambda m: json.dumps({"weight_map": m}).encode(), st.dictionaries(st.text(), st.text()))
)
@OFTEN
def test_no_index_does_anything_but_be_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.mktemp("index") / INDEX
    path.write_bytes(text)
    with contextlib.suppress(StageError):
        for shard in catalogue.read_index(path):
            assert "/" not in shard
            assert not shard.startswith(".")


def test_several_files_without_an_index_are_refused(tmp_path: Path) -> None:
    folder = two(tmp_path / "in")
    (folder / INDEX).unlink()
    with pytest.raises(StageError, match="2 safetensors files and 0 indexes"):
        read_catalogue(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = two(tmp_path / "in")
    write(folder / "model-1.safetensors", {"a": np.ones(2, np.float32), "b": np.ones(3, BF16)})
    with pytest.raises(StageError, match=r"does not name b, which is in model-1|is in model-1\.safetensors and in"):
        read_catalogue(folder)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "x.pt", "X.PTH", "deep/er/optimizer.pkl", "model.ckpt", "harmless.txt", "tokenizer.model"]
)
def test_a_pickle_is_refused_by_name_or_by_its_first_bytes(name: str, tmp_path: Path) -> None:
    folder = two(tmp_path / "in")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04\x95" if name.endswith((".txt", ".model")) else b"anything")
    with pytest.raises(StageError, match="is a pickle"):
        read_catalogue(folder)


def test_hidden_files_are_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    folder = two(tmp_path / "in")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.bin").write_bytes(b"x")
    (folder / ".model.safetensors.writing").write_bytes(b"x")
    assert len(read_catalogue(folder).shards) == 2


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="there is no checkpoint folder"):
        read_catalogue(tmp_path / "gone")
    with pytest.raises(StageError, match="cannot be read"):
        read_file(tmp_path / "gone.safetensors")
