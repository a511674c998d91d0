"""Whatever bytes a stranger writes, a reader returns or raises an error of ours; nothing else happens, and nothing is written."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import Reader, readers

from release.errors import ReleaseError
from release.oci import IMAGE_INDEX
from release.publish.keys import new_key

NAMES = ("manifest", "index", "index.json", "oci-layout", "bundle", "simple signing", "policy", "record, sent", "record, pulled")
SLOWEST = 30.0
"""Seconds that one document may take on a machine that is busy."""
ODD = st.sampled_from(
    [
        "",
        "..",
        "../x",
        "/etc/passwd",
        "a\0b",
        "sha256:" + "A" * 64,
        "9" * 5000,
        "\ud800",
        "2026-13-45",
        "linux",
        [],
        {},
        None,
        True,
        -1,
    ]
)
VALUES = ODD | st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**20, 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reader]]:
    yield readers(tmp_path_factory.mktemp("keys"))


def run(reader: Reader, data: bytes) -> None:
    """Read once; only a ReleaseError may come out of it, soon, and nothing but what the reader was given may lie there."""
    folder = Path(tempfile.mkdtemp(prefix="release-fuzz-"))
    began = time.monotonic()
    try:
        reader.read(data, folder)
    except ReleaseError as problem:
        assert str(problem)
        out = folder / "out"
        assert not out.exists() or not list(out.iterdir())
    finally:
        assert {path.name for path in folder.iterdir()} <= {"in", "out"}
        shutil.rmtree(folder)
    assert time.monotonic() - began < SLOWEST


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield every place in a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, sound: bytes) -> bytes:
    """A sound JSON document in which up to three values are others, gone, or stand twice."""
    document = json.loads(sound)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(document))))
        if not path:
            document = draw(VALUES) if draw(st.integers(0, 9)) == 0 else document
            continue
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        if draw(st.booleans()):
            parent[path[-1]] = draw(VALUES)
        elif draw(st.booleans()):
            del parent[path[-1]]
        elif isinstance(parent, list):
            parent.append(parent[path[-1]])
    return json.dumps(document).encode()


@st.composite
def spliced(draw: st.DrawFn, sound: bytes) -> bytes:
    """A sound document of which some bytes are others, left out, or doubled."""
    start = draw(st.integers(0, len(sound)))
    end = draw(st.integers(start, min(len(sound), start + 40)))
    return sound[:start] + draw(st.binary(max_size=12) | st.just(sound[start:end] * 2)) + sound[end:]


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_document_is_read_or_refused_for_what_it_speaks_of(name: str, known: dict[str, Reader]) -> None:
    assert set(known) == set(NAMES)
    run(known[name], known[name].sound)
    for data in (b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 50_000, b'{"a":' * 20_000, b"9" * 6000, b"&a [*a]"):
        run(known[name], data)


@pytest.mark.parametrize("name", NAMES)
def test_no_bytes_make_a_reader_fail_in_another_way(name: str, known: dict[str, Reader]) -> None:
    reader = known[name]
    documents = st.binary(max_size=300) | spliced(reader.sound)
    if reader.is_json:
        documents = documents | mutated(reader.sound) | mutated(reader.sound)

    @settings(max_examples=60, database=None, suppress_health_check=list(HealthCheck))
    @given(documents)
    def check(data: bytes) -> None:
        run(reader, data)

    check()


@pytest.mark.integration
@pytest.mark.parametrize("entries", [5, None, "x", {"a": 1}, [5], [None], [{}], [[]], [{"digest": 5}], [{"platform": {"os": 5}}]])
def test_a_registry_that_answers_with_another_shape_is_refused(entries: object, known: dict[str, Reader], tmp_path: Path) -> None:
    """By what signs and what verifies, which read the index before any signature is looked at."""
    from distribution import Shelf, scripted

    from release.signing import sign_release, verify_release

    assert known
    shelf = Shelf()
    shelf.add({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries}, tag="bf16")
    new_key(tmp_path / "key")
    with scripted(shelf) as server:
        for act in (
            lambda: verify_release(f"{server.host}/team/model:bf16", [tmp_path / "key.pub"], None),
            lambda: sign_release(f"{server.host}/team/model:bf16", tmp_path / "key"),
        ):
            with pytest.raises(ReleaseError):
                act()
