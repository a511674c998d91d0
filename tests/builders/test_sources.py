"""A patched wheel is the upstream wheel, byte for byte, except where the patches change it, and says so itself."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import random
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from release.builders import sources
from release.builders.sources import PatchedWheel, patch_wheel
from release.errors import FetchError, PatchError, ReleaseError
from release.patches.read import PatchSet, patch_set

INFO = "tiny-1.0.dist-info"
FILES = {
    "tiny/__init__.py": b'"""A package."""\n',
    "tiny/version.py": b"one = 1\ntwo = 2\nthree = 3\n",
    "tiny/data.bin": bytes(random.Random(0).randbytes(50_000)) + b"\0" * 50_000,
    "tiny/old.py": b"gone = True\n",
    "tiny/ümlaut, quoted.txt": b"x\n",
    "tiny/tool.sh": b"#!/bin/sh\necho tiny\n",
    f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
    f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
CHANGE = (
    b"diff --git a/tiny/version.py b/tiny/version.py\n--- a/tiny/version.py\n+++ b/tiny/version.py\n"
    b"@@ -1,3 +1,3 @@\n one = 1\n-two = 2\n+two = 22\n three = 3\n"
)
REST = (
    b"diff --git a/tiny/old.py b/tiny/old.py\ndeleted file mode 100644\n--- a/tiny/old.py\n+++ /dev/null\n"
    b"@@ -1 +0,0 @@\n-gone = True\n"
    b"diff --git a/tiny/new.sh b/tiny/new.sh\nnew file mode 100755\n--- /dev/null\n+++ b/tiny/new.sh\n"
    b"@@ -0,0 +1 @@\n+#!/bin/sh\n"
    b"diff --git a/tiny/tool.sh b/tiny/tool.sh\nold mode 100755\nnew mode 100644\n"
)


def spelled(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def record(files: dict[str, bytes]) -> bytes:
    text = io.StringIO(newline="")
    rows = [(path, spelled(content), len(content)) for path, content in files.items()]
    csv.writer(text, lineterminator="\n").writerows([*rows, (f"{INFO}/RECORD", "", "")])
    return text.getvalue().encode()


def member(path: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path, (2024, 5, 6, 7, 8, 10))
    info.compress_type, info.external_attr, info.create_system = zipfile.ZIP_DEFLATED, mode << 16, 3
    return info


def write_wheel(place: Path, files: dict[str, bytes] | None = None, rows: bytes | None = None) -> Path:
    files = FILES if files is None else files
    with zipfile.ZipFile(place / "tiny-1.0-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(member(path, 0o100755 if path.endswith(".sh") else 0o100644), content)
        archive.writestr(member(f"{INFO}/RECORD"), record(files) if rows is None else rows)
    return place / "tiny-1.0-py3-none-any.whl"


def series(place: Path, *patches: bytes) -> PatchSet:
    (where := place / "tiny" / "1.0").mkdir(parents=True)
    lines = []
    for number, content in enumerate(patches, 1):
        (where / f"{number}.patch").write_bytes(content)
        lines.append(f"{number}.patch sha256:{hashlib.sha256(content).hexdigest()}\n")
    (where / "series").write_text("".join(lines))
    return patch_set(where)


def run(place: Path, wheel: Path, *patches: bytes) -> PatchedWheel:
    (place / "scratch").mkdir(exist_ok=True)
    patched = patch_wheel(wheel, series(place, *patches), place / "out", place / "scratch")
    assert not list((place / "scratch").iterdir())
    assert [path.name for path in (place / "out").iterdir()] == [wheel.name]
    return patched


def raw(wheel: Path, path: str) -> bytes:
    """Return a member as it lies in the archive, compressed."""
    content = wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        info = archive.getinfo(path)
    name, extra = struct.unpack("<2H", content[info.header_offset + 26 : info.header_offset + 30])
    start = info.header_offset + 30 + int(name) + int(extra)
    return content[start : start + info.compress_size]


@pytest.mark.integration
def test_what_no_patch_changes_is_copied_as_it_was_compressed(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    patched = run(tmp_path, wheel, CHANGE, REST)
    assert patched.file == tmp_path / "out" / wheel.name
    assert patched.changed == ("tiny/new.sh", "tiny/old.py", "tiny/tool.sh", "tiny/version.py")
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(patched.file) as after:
        for path in set(FILES) - set(patched.changed):
            assert raw(wheel, path) == raw(patched.file, path)
            old, new = before.getinfo(path), after.getinfo(path)
            assert [old.date_time, old.external_attr, old.CRC, old.compress_type] == [
                new.date_time, new.external_attr, new.CRC, new.compress_type,
            ]  # fmt: skip


@pytest.mark.integration
def test_what_patches_change_is_stored_undated_and_in_its_place(tmp_path: Path) -> None:
    patched = run(tmp_path, write_wheel(tmp_path), CHANGE, REST)
    with zipfile.ZipFile(patched.file) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            *(path for path in FILES if path != "tiny/old.py"), f"{INFO}/release-patches.json", "tiny/new.sh", f"{INFO}/RECORD",
        ]  # fmt: skip
        modes = {"tiny/version.py": 0o644, "tiny/new.sh": 0o755, "tiny/tool.sh": 0o644}
        for path in (*modes, f"{INFO}/release-patches.json", f"{INFO}/RECORD"):
            info = archive.getinfo(path)
            assert (info.compress_type, info.date_time) == (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))
            assert info.external_attr >> 16 == stat.S_IFREG | modes.get(path, 0o644)
        assert archive.read("tiny/version.py") == b"one = 1\ntwo = 22\nthree = 3\n"


@pytest.mark.integration
def test_the_new_record_names_every_file_in_the_old_order(tmp_path: Path) -> None:
    patched = run(tmp_path, write_wheel(tmp_path), CHANGE, REST)
    with zipfile.ZipFile(patched.file) as archive:
        rows = list(csv.reader(io.StringIO(archive.read(f"{INFO}/RECORD").decode())))
        assert [row[0] for row in rows] == archive.namelist()
        assert rows[-1] == [f"{INFO}/RECORD", "", ""]
        for path, digest, size in rows[:-1]:
            assert (digest, int(size)) == (spelled(archive.read(path)), archive.getinfo(path).file_size)


@pytest.mark.integration
def test_a_patched_wheel_says_what_it_was_made_from(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    patched = run(tmp_path, wheel, CHANGE)
    with zipfile.ZipFile(patched.file) as archive:
        text = archive.read(f"{INFO}/release-patches.json")
    document = json.loads(text)
    assert text == json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    assert document == {
        "wheel": {"file": wheel.name, "sha256": "sha256:" + hashlib.sha256(wheel.read_bytes()).hexdigest()},
        "patches": [{"file": "1.patch", "sha256": "sha256:" + hashlib.sha256(CHANGE).hexdigest()}],
        "base-tree": patched.base_tree,
        "tree": patched.tree,
        "changed": ["tiny/version.py"],
    }
    assert [patch.file for patch in patched.patches] == ["1.patch"]


@pytest.mark.integration
def test_the_same_wheel_and_patches_give_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for number in range(2):
        (place := tmp_path / f"{number}{'x' * number}").mkdir()
        old = os.umask(0o077 if number else 0o022)
        try:
            patched = run(place, write_wheel(place), CHANGE, REST)
        finally:
            os.umask(old)
        digests.add(hashlib.sha256(patched.file.read_bytes()).hexdigest())
        assert patched.sha256 == "sha256:" + hashlib.sha256(patched.file.read_bytes()).hexdigest()
    assert len(digests) == 1


@pytest.mark.integration
def test_the_bytes_of_a_stored_wheel_are_known(tmp_path: Path) -> None:
    """A constant, so that another host, Python or zlib that packs otherwise is noticed."""
    files = {path: FILES[path] for path in ("tiny/__init__.py", "tiny/version.py", f"{INFO}/METADATA", f"{INFO}/WHEEL")}
    with zipfile.ZipFile(tmp_path / "tiny-1.0-py3-none-any.whl", "w") as archive:
        for path, content in {**files, f"{INFO}/RECORD": record(files)}.items():
            (info := member(path)).compress_type = zipfile.ZIP_STORED
            archive.writestr(info, content)
    patched = run(tmp_path, tmp_path / "tiny-1.0-py3-none-any.whl", CHANGE)
    assert patched.base_tree == "f1ad4e67b7dff48a690a343ebcc7b88a97f5c71e"
    assert patched.tree == "e509589438e379314f2a4292eebb052f4c35776a"
    assert patched.sha256 == "sha256:d312af8ae50b9e6b4670d9feee6b78c0adb846473b3fa84d372713f3ebf1e458"


@pytest.mark.integration
def test_members_with_data_descriptors_folders_and_extra_fields_are_packed_plainly(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self, path: Path) -> None:
            self.file = path.open("wb")

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            return self.file.write(data)

        def flush(self) -> None:
            if not self.file.closed:
                self.file.flush()

    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(Pipe(wheel), "w") as archive:
        archive.writestr(member("tiny/", 0o40755), b"")
        for path, content in {**FILES, f"{INFO}/RECORD": record(FILES)}.items():
            info = member(path)
            info.extra = struct.pack("<2HL", 0x5455, 4, 7)
            with archive.open(info, "w", force_zip64=True) as sink:
                sink.write(content)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.getinfo("tiny/data.bin").flag_bits & 8
    patched = run(tmp_path, wheel, CHANGE)
    with zipfile.ZipFile(patched.file) as archive:
        assert archive.testzip() is None
        assert all(not info.extra and not info.flag_bits & 8 for info in archive.infolist())
        assert "tiny/" not in archive.namelist()
        assert archive.read("tiny/data.bin") == FILES["tiny/data.bin"]
    assert raw(wheel, "tiny/data.bin") == raw(patched.file, "tiny/data.bin")


@pytest.mark.integration
def test_a_signature_of_the_old_record_is_left_out(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, {**FILES, f"{INFO}/RECORD.jws": b"{}"}, record(FILES))
    with zipfile.ZipFile(run(tmp_path, wheel, CHANGE).file) as archive:
        assert f"{INFO}/RECORD.jws" not in archive.namelist()
        assert b"RECORD.jws" not in archive.read(f"{INFO}/RECORD")


@pytest.mark.integration
def test_pip_installs_a_patched_wheel_and_the_installed_copy_says_so(tmp_path: Path) -> None:
    patched = run(tmp_path, write_wheel(tmp_path), CHANGE, REST)
    target = tmp_path / "site"
    (tmp_path / "pins").write_text(f"{patched.file} --hash={patched.sha256}\n")
    options = [
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--require-hashes",
        "--target",
        str(target),
        "-r",
        str(tmp_path / "pins"),
    ]
    subprocess.run([sys.executable, "-m", "pip", "install", *options], check=True, capture_output=True, cwd=tmp_path)
    program = (
        "import sys; from importlib.metadata import distribution, version; import tiny.version\n"
        "print(version('tiny'), tiny.version.two, distribution('tiny').read_text('release-patches.json')[:13])"
    )
    own = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == '1.0 22 {"base-tree":\n'
    assert (target / "tiny" / "new.sh").stat().st_mode & 0o111
    assert not (target / "tiny" / "tool.sh").stat().st_mode & 0o111
    assert not (target / "tiny" / "old.py").exists()


@pytest.mark.integration
def test_patches_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=r"tiny/1.0/1.patch: patch does not apply: tiny/version.py, hunk 1 of 1"):
        run(tmp_path, write_wheel(tmp_path), CHANGE.replace(b"two = 2\n", b"two = 3\n"))
    assert not list((tmp_path / "scratch").iterdir())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["RECORD", "RECORD.jws", "release-patches.json"])
def test_patches_to_what_is_made_anew_are_refused(tmp_path: Path, name: str) -> None:
    patch = f"diff --git a/{INFO}/{name} b/{INFO}/{name}\nold mode 100644\nnew mode 100755\n".encode()
    with pytest.raises(PatchError, match=f"1.patch: it changes {INFO}/{name}"):
        run(tmp_path, write_wheel(tmp_path), patch)


def test_the_upstream_wheel_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    wheel = write_wheel(tmp_path / "out")
    with pytest.raises(PatchError, match="would replace the upstream wheel"):
        run(tmp_path, wheel, CHANGE)


def test_a_missing_wheel_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="there is no wheel"):
        run(tmp_path, tmp_path / "tiny-1.0-py3-none-any.whl", CHANGE)


def without(name: str) -> dict[str, bytes]:
    return {path: content for path, content in FILES.items() if path != name}


@pytest.mark.parametrize(
    ("files", "rows", "complaint"),
    [
        ({**FILES, "tiny/version.py": b"two = 3\n"}, record(FILES), "tiny/version.py has sha256 .* RECORD says"),
        (FILES, record(without("tiny/old.py")), "RECORD has no sha256 for tiny/old.py"),
        (FILES, record(FILES).replace(b"sha256=", b"md5="), "RECORD has no sha256 for tiny/__init__.py"),
        (without("tiny/old.py"), record(FILES), "RECORD lists tiny/old.py, which is not in the wheel"),
        (FILES, record(FILES) + record(FILES), "line 10 of RECORD is not a new path"),
        (FILES, b"\xff", "RECORD cannot be read"),
        (FILES, b'"a', "RECORD cannot be read"),
        (FILES, b"a,b\n", "line 1 of RECORD"),
        (FILES, b"", "RECORD has no sha256"),
        ({**FILES, "other-1.0.dist-info/RECORD": b""}, None, "needs one .dist-info folder"),
        ({**FILES, f"{INFO}/release-patches.json": b"{}"}, None, "already patched"),
    ],
)
def test_a_wheel_that_is_not_what_its_record_says_is_refused(
    tmp_path: Path, files: dict[str, bytes], rows: bytes | None, complaint: str
) -> None:
    with pytest.raises(FetchError, match=complaint):
        run(tmp_path, write_wheel(tmp_path, files, rows), CHANGE)
    assert not list((tmp_path / "scratch").iterdir())


def hostile(path: str, mode: int = 0o100644, system: int = 3, content: bytes = b"x") -> Callable[[zipfile.ZipFile], None]:
    def write(archive: zipfile.ZipFile) -> None:
        info = member("placeholder", mode)
        info.filename, info.create_system = path, system
        archive.writestr(info, content)

    return write


def twice(archive: zipfile.ZipFile) -> None:
    with pytest.warns(UserWarning):
        archive.writestr(member("tiny/version.py"), b"two = 3\n")


def squeezed(archive: zipfile.ZipFile) -> None:
    (info := member("tiny/more")).compress_type = zipfile.ZIP_LZMA
    archive.writestr(info, b"x")


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (hostile("../evil"), "leaves the tree"),
        (hostile("tiny/../../evil"), "leaves the tree"),
        (hostile("/tmp/evil"), "is absolute"),
        (hostile("tiny\\evil"), "backslash"),
        (hostile("tiny/.git/hooks/x"), "reaches into a .git"),
        (hostile("tiny/e\nvil"), "control character"),
        (hostile("tiny//evil"), "normal form"),
        (hostile("link", stat.S_IFLNK | 0o777, content=b"/etc"), "symbolic link"),
        (hostile("pipe", stat.S_IFIFO | 0o644), "not a plain file"),
        (hostile("folder/", 0o40755), "folder with content"),
        (hostile("tiny/version.py/evil"), "lies below a file"),
        (hostile("tiny/version.py/", 0o40755, content=b""), "two members of one name"),
        (twice, "two members of one name"),
        (squeezed, "compressed by method 14"),
    ],
)
def test_a_hostile_archive_is_refused_and_nothing_is_written(
    tmp_path: Path, write: Callable[[zipfile.ZipFile], None], complaint: str
) -> None:
    (place := tmp_path / "a" / "b").mkdir(parents=True)
    wheel = write_wheel(place)
    with zipfile.ZipFile(wheel, "a") as archive:
        write(archive)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FetchError, match=complaint):
        run(place, wheel, CHANGE)
    assert {path.name for path in set(tmp_path.rglob("*")) - set(before)} == {"scratch", "tiny", "1.0", "series", "1.patch"}


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    content = wheel.read_bytes()
    at = content.rindex(b"PK\1\2")
    wheel.write_bytes(content[: at + 8] + b"\1" + content[at + 9 :])
    with pytest.raises(FetchError, match="is encrypted"):
        run(tmp_path, wheel, CHANGE)


def test_a_bomb_is_refused_before_it_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "UNPACKED_LIMIT", 1 << 20)
    with pytest.raises(FetchError, match="unpacks to more than 1048576 bytes"):
        run(tmp_path, write_wheel(tmp_path, {**FILES, "tiny/bomb": b"\0" * (1 << 21)}), CHANGE)


def test_a_bomb_that_lies_about_its_size_is_stopped_at_the_size_it_claims(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, {"tiny/bomb": b"\0" * (1 << 24), **FILES})
    content = wheel.read_bytes()
    at = content.index(b"PK\1\2")
    wheel.write_bytes(content[: at + 24] + struct.pack("<L", 100) + content[at + 28 :])
    with pytest.raises(FetchError, match="Bad CRC-32"):
        run(tmp_path, wheel, CHANGE)
    assert not list((tmp_path / "scratch").iterdir())


def test_a_member_with_another_size_than_its_header_says_is_refused(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    content = wheel.read_bytes()
    at = content.index(b"PK\1\2")
    wheel.write_bytes(content[: at + 24] + struct.pack("<L", 9999) + content[at + 28 :])
    with pytest.raises(FetchError, match="has 17 bytes, the archive says 9999"):
        run(tmp_path, wheel, CHANGE)


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MEMBERS_LIMIT", 5)
    with pytest.raises(FetchError, match="or 5 files"):
        run(tmp_path, write_wheel(tmp_path), CHANGE)


def test_an_enormous_record_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "RECORD_LIMIT", 5)
    with pytest.raises(FetchError, match="RECORD has more than 5 bytes"):
        run(tmp_path, write_wheel(tmp_path), CHANGE)


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    """One compressed stream under many names: a small archive that unpacks to a large one."""
    wheel = write_wheel(tmp_path, {"tiny/0": FILES["tiny/data.bin"]})
    content = wheel.read_bytes()
    start = content.index(b"PK\1\2")
    entry = content[start : start + 46]
    directory = b"".join(entry + f"tiny/{number}".encode() for number in range(5))
    wheel.write_bytes(content[:start] + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 5, 5, len(directory), start, 0))
    with pytest.raises(FetchError, match="its members overlap"):
        run(tmp_path, wheel, CHANGE)


@pytest.mark.parametrize("content", [b"", b"PK\5\6" + b"\0" * 18, b"no zip at all", b"\0" * 1000])
def test_what_is_no_wheel_is_refused(tmp_path: Path, content: bytes) -> None:
    (wheel := tmp_path / "tiny-1.0-py3-none-any.whl").write_bytes(content)
    with pytest.raises(FetchError):
        run(tmp_path, wheel, CHANGE)


@pytest.mark.integration
def test_a_damaged_wheel_is_refused_or_gives_a_sound_one_and_never_another_error(tmp_path: Path) -> None:
    good = write_wheel(tmp_path).read_bytes()
    chance = random.Random(1)
    patches = series(tmp_path, CHANGE)
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    for _ in range(300):
        content = bytearray(good)
        start = good.index(b"PK\1\2") if chance.random() < 0.8 else 0
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(start, len(content))] = chance.randrange(256)
        wheel.write_bytes(bytes(content[: chance.randrange(len(content))] if chance.random() < 0.1 else content))
        try:
            patched = patch_wheel(wheel, patches, tmp_path / "out", tmp_path)
        except ReleaseError:
            continue
        with zipfile.ZipFile(patched.file) as archive:
            assert archive.testzip() is None
            for path, digest, _ in list(csv.reader(io.StringIO(archive.read(f"{INFO}/RECORD").decode())))[:-1]:
                assert digest == spelled(archive.read(path))
