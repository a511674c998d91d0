"""A layer comes out in one form, whatever tool wrote it, and hostile archives do not get in."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
from archives import EPOCH, SAMPLE, Entry, contents, entry, folder, hard, make, members, names, rewrite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from release.builders import inventory, tar
from release.builders.compression import DEFAULT, NONE, Compression, fast_gzip, slow_gzip
from release.builders.layer import debris, rewrite_tar
from release.errors import StageError
from release.oci import sha256

CAPABILITY: Final = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\xff\xfe\x00\x00\x00\x00\x00\x00\x00\x00"


def test_digests_of_the_format_are_pinned() -> None:
    """A change of the written form changes the digest of every image: it must be meant."""
    assert sha256(rewrite(make(*SAMPLE))) == "sha256:f1ab0d86e3816e3463bdcd388392bf6f7857306ed2f2daba383cf0959bc1cc8b"


def test_order_times_owners_and_format_do_not_show() -> None:
    wanted = rewrite(make(*SAMPLE))
    for seed in range(6):
        shuffled = list(SAMPLE)
        random.Random(seed).shuffle(shuffled)
        for info, _ in shuffled:
            info.mtime, info.uname, info.gname = seed * 1000 + 0.5, f"user{seed}", f"group{seed}"
        for style in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            assert rewrite(make(*shuffled, format=style)) == wanted


def test_what_a_file_is_stays() -> None:
    found = members(rewrite(make(*SAMPLE)))
    assert list(found) == ["opt", "opt/a", "opt/b", "opt/link", "opt/z", "opt/z/empty"]
    assert {info.mtime for info in found.values()} == {EPOCH}
    assert {(info.uname, info.gname) for info in found.values()} == {("", "")}
    assert (found["opt/a"].mode, found["opt/a"].uid, found["opt/a"].gid) == (0o4755, 10001, 10002)
    assert found["opt/link"].linkname == "../etc/x"
    assert contents(rewrite(make(*SAMPLE))) == {"opt/a": b"a", "opt/b": b"b" * 700, "opt/z/empty": b""}


def test_an_archive_ends_with_two_zero_blocks_and_no_more() -> None:
    layer = rewrite(make(entry("a", b"x")))
    assert len(layer) == 4 * 512
    assert rewrite(make()) == bytes(1024)


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_undecodable_names_stay(style: int) -> None:
    long, odd = "/".join(["d" * 90] * 5), b"na\xffme\xc3\xa4".decode("utf-8", "surrogateescape")
    layer = make(entry(long, b"1"), entry("s", None, tarfile.SYMTYPE, long + "/target"), entry("x" * 100, b"2"), format=style)
    found = members(rewrite(layer))
    assert found["s"].linkname == long + "/target"
    assert contents(rewrite(layer)) == {long: b"1", "x" * 100: b"2"}
    assert names(rewrite(make(entry(odd, b"3")))) == [odd]


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("slash", [97, 98, 99, 100, 101])
def test_a_slash_where_a_short_name_would_end_makes_no_directory(slash: int, style: int) -> None:
    name = f"{'d' * slash}/file"
    layer = rewrite(make(entry(name, b"content"), entry("z", b"after"), format=style))
    assert contents(layer) == {name: b"content", "z": b"after"}
    assert rewrite(layer) == layer


def test_a_slash_at_the_end_of_a_v7_file_makes_a_directory() -> None:
    found = members(rewrite(make(entry("d/", kind=tarfile.AREGTYPE), entry("f", b"x", kind=tarfile.AREGTYPE))))
    assert (found["d"].type, found["f"].type, found["f"].size) == (tarfile.DIRTYPE, tarfile.REGTYPE, 1)


def test_the_ustar_prefix_is_read() -> None:
    name = "p" * 120 + "/" + "n" * 90
    assert names(rewrite(make(entry(name, b"x"), format=tarfile.USTAR_FORMAT))) == [name]


def test_devices_and_large_ids_stay() -> None:
    device = entry("null", None, tarfile.CHRTYPE, devmajor=1, devminor=3)
    layer = make(device, entry("pipe", None, tarfile.FIFOTYPE, uid=1 << 31, gid=3000000))
    found = members(rewrite(layer))
    assert (found["null"].type, found["null"].devmajor, found["null"].devminor) == (tarfile.CHRTYPE, 1, 3)
    assert (found["pipe"].type, found["pipe"].uid, found["pipe"].gid) == (tarfile.FIFOTYPE, 1 << 31, 3000000)


def test_of_pax_headers_only_extended_attributes_stay() -> None:
    text = CAPABILITY.decode("utf-8", "surrogateescape")
    pax = {"SCHILY.xattr.security.capability": text, "SCHILY.xattr.user.a": "1", "comment": "x", "LIBARCHIVE.creationtime": "1"}
    name = "d" * 150
    rich, plain = entry(name, b"x", pax_headers=pax, uid=1 << 31), entry("plain", pax_headers={"comment": "x"})
    layer = rewrite(make(rich, plain, format=tarfile.PAX_FORMAT))
    found = members(layer)
    assert {key for key in found[name].pax_headers if key.startswith("SCHILY")} == set(list(pax)[:2])
    assert found[name].pax_headers["SCHILY.xattr.security.capability"].encode("utf-8", "surrogateescape") == CAPABILITY
    assert found[name].uid == 1 << 31
    assert not found["plain"].pax_headers
    assert rewrite(layer) == layer


@pytest.mark.parametrize("order", [0, 1, 2])
def test_of_hard_links_the_first_name_carries_the_content(order: int) -> None:
    first, *others = [["a", "m", "z"], ["z", "a", "m"], ["m", "z", "a"]][order]
    layer = rewrite(make(entry(first, b"data", mode=0o700), *(hard(other, first) for other in others)))
    found = members(layer)
    assert [(n, i.type, i.linkname) for n, i in found.items()] == [("a", b"0", ""), ("m", b"1", "a"), ("z", b"1", "a")]
    assert contents(layer) == dict.fromkeys("amz", b"data")
    assert {info.mode for info in found.values()} == {0o700}


def test_a_hard_link_outlives_its_dropped_target() -> None:
    layer = rewrite(make(folder("tmp"), entry("tmp/x", b"data"), hard("opt", "tmp/x"), hard("usr", "opt")), debris)
    assert contents(layer) == {"opt": b"data", "usr": b"data"}


def test_a_hard_link_may_stand_before_its_target_or_point_into_a_lower_layer() -> None:
    assert contents(rewrite(make(hard("a", "b"), entry("b", b"x")))) == {"a": b"x", "b": b"x"}
    found = members(rewrite(make(hard("a", "./below"), hard("c", "a"))))
    assert [(n, i.linkname) for n, i in found.items()] == [("a", "below"), ("c", "a")]


def test_the_last_of_equal_names_wins_and_a_link_to_the_first_keeps_its_content() -> None:
    layer = rewrite(make(entry("a", b"old"), hard("l", "a"), entry("./a", b"new"), folder("d"), folder("d", mode=0o700)))
    assert contents(layer) == {"a": b"new", "l": b"old"}
    assert members(layer)["d"].mode == 0o700
    assert contents(rewrite(make(entry("a", b"x"), hard("a", "a")))) == {"a": b"x"}


def test_leading_dots_and_slashes_are_gone() -> None:
    layer = rewrite(make(folder("./"), folder("./etc"), entry("/etc//x", b"1"), hard("./y", "/etc/x")))
    assert names(layer) == [".", "etc", "etc/x", "y"]
    assert members(layer)["y"].linkname == "etc/x"


def test_whiteouts_stay_and_come_before_their_siblings() -> None:
    folders = ("tmp", "a", "a/__pycache__", "b", "b/__pycache__")
    dropped = ("tmp/x", "a/__pycache__/m.pyc")
    whiteouts = (".wh.root", "a/.wh..wh..opq", "a/.wh.gone", "a/__pycache__/.wh.n.pyc", "tmp/.wh.y")
    layer = make(*map(folder, folders), *map(entry, ("a/!first", *dropped, *reversed(whiteouts))))
    root, opaque, gone, bytecode, temporary = whiteouts
    wanted = [root, "a", opaque, gone, "a/!first", "a/__pycache__", bytecode, "b", "tmp", temporary]
    assert names(rewrite(layer, debris)) == wanted


DROPPED: Final = (
    ".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/machine-id", "var/lib/dbus/machine-id",
    "etc/apt/sources.list", "etc/apt/sources.list.d/x.list", "etc/apt/apt.conf.d/90proxy", "etc/apt/apt.conf",
    "etc/apt/auth.conf", "etc/pip.conf", "root/.cache/pip/x", "root/.cache", "root/.config/pip/pip.conf",
    "run/lock/x", "tmp/a/b", "var/tmp/x",
    "var/cache/ldconfig/aux-cache", "var/log/apt/term.log", "var/lib/apt/lists/x", "a/__pycache__", "__pycache__/m.pyc",
)  # fmt: skip
STAYING: Final = (
    "dev", "etc/apt/sources.list.d", "etc/apt/apt.conf.d/70debconf", "tmp", "run", "var/log", "var/lib/dpkg/status", "opt/tmp/x",
    "opt/etc/hosts", "etc/hosts.allow", "root/.cachet", "vendor/sourceless.pyc", "opt/__pycache__.py",
)  # fmt: skip


@pytest.mark.parametrize("name", DROPPED)
def test_what_a_build_leaves_behind_is_dropped(name: str) -> None:
    assert debris(name, {name})


@pytest.mark.parametrize("name", STAYING)
def test_what_belongs_to_the_image_is_not_debris(name: str) -> None:
    assert not debris(name, {name})


def test_bytecode_beside_its_source_is_dropped_and_a_module_without_source_is_not() -> None:
    layer = make(entry("m.py"), entry("m.pyc"), entry("vendor.pyc"))
    assert names(rewrite(layer, debris)) == ["m.py", "vendor.pyc"]


def corrupted(layer: bytes, at: int, value: bytes) -> bytes:
    """Return `layer` with a header field of its first member changed and the checksum made right again."""
    block = bytearray(layer[:512])
    block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + layer[512:]


PLAIN: Final = make(entry("a", b"x" * 600))
HOSTILE: Final[Mapping[str, tuple[bytes, str]]] = {
    "an empty file": (b"", "end marker"),
    "no tar": (b"\x7fELF" + bytes(4096), "checksum"),
    "a huge size": (corrupted(PLAIN, 124, b"\x80" + (1 << 62).to_bytes(11, "big")), "claims 4611686018427387904 bytes"),
    "a negative size": (corrupted(PLAIN, 124, b"\xff" * 12), "not a number"),
    "a size in words": (corrupted(PLAIN, 124, b"0000+000012\0"), "not a number"),
    "a sparse file": (corrupted(PLAIN, 156, b"S"), "sparse"),
    "an unknown type": (corrupted(PLAIN, 156, b"Z"), "unknown type"),
    "a giant long name": (corrupted(corrupted(PLAIN, 156, b"L"), 124, b"00100000000\0"), "extension headers claim 16777216"),
    "a PAX header of nonsense": (make(entry("a", b"12 path=abcd", kind=b"x"), entry("b")), "malformed"),
    "a PAX header of length zero": (make(entry("a", b"0 path=a\n", kind=b"x"), entry("b")), "malformed"),
    "a PAX size in words": (make(entry("a", b"12 size=-10\n", kind=b"x"), entry("b")), "not a size"),
    "a PAX sparse file": (make(entry("a", b"22 GNU.sparse.major=1\n", kind=b"x"), entry("b")), "sparse"),
    "a PAX name with a zero byte": (make(entry("a", b"12 path=a\0b\n", kind=b"x"), entry("b")), "zero byte"),
    "an extension without member": (make(entry("a", b"11 path=ab\n", kind=b"x")), "no member"),
    "an owner of 50 digits": (make(entry("a", b"15 uid=12345678\n", kind=b"x"), entry("b")), "malformed"),
    "a large owner": (make(entry("a", b"18 uid=9999999999\n", kind=b"x"), entry("b")), "32 bits"),
    "a long path": (make(entry("d/" * 3000 + "x")), "bytes"),
    "a way out": (make(entry("a/../../x")), "leads out"),
    "a link out": (make(hard("a", "../x")), "leads out"),
    "a circle of links": (make(hard("a", "b"), hard("b", "a")), "lead to one another"),
    "a link to a directory": (make(folder("d"), hard("a", "d")), "hard link to the directory"),
    "a late link to a directory": (make(hard("a", "d"), folder("d")), "hard link to the directory"),
    "a link to a directory that becomes one": (make(folder("d"), hard("a", "d"), folder("a")), "hard link to the directory"),
    "a file with children": (make(entry("a"), entry("a/b")), "no directory"),
    "a link with children": (make(entry("a", None, tarfile.SYMTYPE, "/etc"), entry("a/b/c")), "no directory"),
    "a directory that is also a file": (make(folder("a"), entry("a")), "both as a directory"),
    "a root that is a file": (make(entry("./.")), "both as a directory"),
    "a lone zero block": (PLAIN[:1536] + bytes(512) + PLAIN, "lone block"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_layer_is_refused(what: str) -> None:
    layer, reason = HOSTILE[what]
    with pytest.raises(StageError, match=reason):
        rewrite(layer)


def test_a_layer_that_is_cut_off_anywhere_is_refused() -> None:
    layer = rewrite(make(*SAMPLE))
    for length in range(0, len(layer) - 1024, 100):
        with pytest.raises(StageError, match="cut off"):
            rewrite(layer[:length])


def test_a_damaged_header_is_not_taken_for_the_end() -> None:
    layer = bytearray(make(*SAMPLE))
    layer[512] ^= 1
    with pytest.raises(StageError, match="checksum"):
        rewrite(bytes(layer))


def test_members_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MEMBER_LIMIT", 5)
    with pytest.raises(StageError, match="more than 5 members"):
        rewrite(make(*SAMPLE))


def test_names_are_weighed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "INDEX_LIMIT", 1000)
    with pytest.raises(StageError, match="1000 bytes of names"):
        rewrite(make(*(entry(f"{number}/" + "x" * 90) for number in range(12))))


def test_an_index_that_finds_no_room_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "SCHEMA", "PRAGMA max_page_count = 9;" + inventory.SCHEMA)
    with pytest.raises(StageError, match="cannot be kept: database or disk is full"):
        rewrite(make(*(entry(f"{number}/" + "x" * 90) for number in range(400))))


def test_extension_headers_are_counted_together() -> None:
    record = b"1000012 c=" + b"x" * 1_000_001 + b"\n"
    with pytest.raises(StageError, match="extension headers claim"):
        rewrite(make(entry("a", record, kind=b"x"), entry("a", record, kind=b"x"), entry("b")))


def test_memory_does_not_grow_with_the_content(tmp_path: Path) -> None:
    size, sparse = 256 << 20, tmp_path / "layer.tar"
    with sparse.open("wb") as stream:
        stream.write(tar.header(tar.Member("big", tar.FILE, 0o644, 0, 0, size, 0, "", 0, 0), 0))
        stream.truncate(512 + size + 1024)

    class Sink:
        size = 0

        def write(self, data: bytes) -> None:
            self.size += len(data)

    sink = Sink()
    tracemalloc.start()
    rewrite_tar(sparse, sink, epoch=EPOCH)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sink.size == 512 + size + 1024
    assert peak < 16 << 20


PART: Final = st.sampled_from(["a", "b", "tmp", "__pycache__", ".wh.a", "m.py", "m.pyc", "ä", "x" * 49, "x" * 99])
PATH: Final = st.lists(PART, min_size=1, max_size=3).map("/".join)
MEMBER: Final = st.one_of(
    st.tuples(PATH, st.binary(max_size=600)).map(lambda drawn: entry(*drawn)),
    PATH.map(folder),
    st.tuples(PATH, PATH).map(lambda drawn: hard(*drawn)),
    st.tuples(PATH, PATH).map(lambda drawn: entry(drawn[0], None, tarfile.SYMTYPE, drawn[1])),
    PATH.map(lambda path: entry(path, b"c", pax_headers={"SCHILY.xattr.user.k": "v"})),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MEMBER, max_size=8))
def test_rewriting_is_idempotent_and_loses_nothing(drawn: list[Entry]) -> None:
    layer = make(*drawn, format=tarfile.PAX_FORMAT)
    try:
        once = rewrite(layer, debris)
    except StageError:
        return
    assert rewrite(once, debris) == once
    whole = rewrite(layer)
    found, files = members(whole), contents(whole)
    assert set(found) == {info.name for info, _ in drawn}
    links = {info.name for info, _ in drawn if info.type == tarfile.LNKTYPE}
    for name, data in {info.name: data for info, data in drawn}.items():
        if name not in links and found[name].isreg():
            assert files[name] == data


@given(st.binary(max_size=2048))
@settings(max_examples=100)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for layer in (data + bytes(-len(data) % 512) + bytes(1024), PLAIN[:1536] + data):
        try:
            rewrite(layer)
        except StageError:
            continue


def test_the_number_of_threads_and_the_size_of_writes_do_not_show() -> None:
    data = random.Random(1).randbytes(1 << 20) + b"release " * 400_000

    def compressed(way: Compression, step: int) -> bytes:
        target = io.BytesIO()
        stream = way.open(target)
        blocks = tar.Blocks(stream)
        for start in range(0, len(data), step):
            blocks.write(data[start : start + step])
        blocks.flush()
        stream.close()
        return target.getvalue()

    wanted = compressed(DEFAULT, 1 << 20)
    assert gzip.decompress(wanted) == data
    assert {compressed(fast_gzip(1, threads), step) for threads in (1, 2, 3) for step in (999, 1 << 16, 3 << 20)} == {wanted}
    assert gzip.decompress(compressed(slow_gzip(6), 999)) == data
    assert compressed(NONE, 999) == data
