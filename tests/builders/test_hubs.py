"""A checkpoint comes from a hub file by file, each by its digest, by the hubs' own libraries; and nothing else comes of it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from distribution import Answer, Seen, scripted
from hubs import TOKEN, Hub, HuggingFaceHub, ModelScopeHub, Repository, running
from huggingface_hub import constants

from release.builders.hubs import bring, pin
from release.cli import cli
from release.errors import FetchError, StageError
from release.hubs import SITES
from release.oci import sha256
from release.progress import Line, Plain
from release.store import Store

pytestmark = pytest.mark.integration

WHERE = "team/upstream"
FILES = {
    "model-1.safetensors": bytes(range(256)) * 4000,
    "model-2.safetensors": b"second" * 1000,
    "config.json": b'{"architectures": []}',
    "deep/tokenizer.json": b"{}",
}
DIGESTS = {name: sha256(data) for name, data in FILES.items()}


@pytest.fixture
def face(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Hugging Face, with the checkpoint in it."""
    with running(HuggingFaceHub()) as hub:
        hub.repositories[WHERE] = Repository(private=False, commits=[{}, dict(FILES)])
        monkeypatch.setenv("HF_ENDPOINT", hub.server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


@pytest.fixture
def scope(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """ModelScope, with the checkpoint in it."""
    with running(ModelScopeHub()) as hub:
        hub.repositories[WHERE] = Repository(private=False, commits=[{}, dict(FILES)])
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.server.url)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
        yield hub


class House:
    """A store, and where its files are brought to."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "store")
        self.out = folder / "out"
        self.partial = folder / "partial"

    def bring(self, files: dict[str, str], *sites: str, revision: str = "main", pickles: bool = False) -> int:
        line = Line(Plain(io.StringIO()), "model", "checkpoint")
        where = sites or ("huggingface",)
        return bring(
            WHERE, revision, where, files, store=self.store, partial=self.partial, out=self.out, line=line, pickles=pickles
        )

    def brought(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.out)): path.read_bytes() for path in self.out.rglob("*") if path.is_file()}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def gets(hub: Hub, name: str) -> list[Seen]:
    return [seen for seen in hub.server.seen if seen.method == "GET" and name in seen.path]


@pytest.mark.parametrize("site", ["huggingface", "modelscope"])
def test_every_file_is_brought_by_its_digest_and_only_once(site: str, face: Hub, scope: Hub, house: House) -> None:
    hub = face if site == "huggingface" else scope
    assert house.bring(DIGESTS, site, revision=hub.repositories[WHERE].oid()) == sum(map(len, FILES.values()))
    assert house.brought() == FILES
    hub.server.seen.clear()
    house.out = house.out.with_name("again")
    house.bring(DIGESTS, site)
    assert hub.server.seen == [] and house.brought() == FILES


@pytest.mark.parametrize("site", ["huggingface", "modelscope"])
def test_other_content_is_refused_and_not_kept(site: str, face: Hub, scope: Hub, house: House) -> None:
    hub = face if site == "huggingface" else scope
    hub.repositories[WHERE].commits[-1]["model-2.safetensors"] = b"evil!!" * 1000
    with pytest.raises(FetchError, match=r"model-2.safetensors has sha256:.*, the model's YAML says"):
        house.bring(DIGESTS, site)
    assert not house.out.exists()
    assert (
        not house.store.blob(sha256(b"evil!!" * 1000)).exists() and not house.store.blob(DIGESTS["model-2.safetensors"]).exists()
    )
    hub.repositories[WHERE].commits[-1]["model-2.safetensors"] = FILES["model-2.safetensors"]
    hub.server.seen.clear()
    house.bring(DIGESTS, site)
    assert house.brought() == FILES and not gets(hub, "model-1")


def test_a_download_that_broke_off_goes_on_where_it_was(face: Hub, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # what its library writes, and so keeps, at a time
    cut = []

    def cutting(seen: Seen) -> Answer | None:
        if seen.method == "GET" and "resolve" in seen.path and "model-1" in seen.path and not cut:
            cut.append(seen)
            data = FILES["model-1.safetensors"]
            return Answer(200, data[:300_000], {"ETag": f'"{DIGESTS["model-1.safetensors"][7:]}"'}, length=len(data))
        return None

    face.meddle = cutting
    house.bring({"model-1.safetensors": DIGESTS["model-1.safetensors"]})
    ranges = [seen.headers.get("Range") or seen.headers.get("range") for seen in gets(face, "model-1")]
    assert house.brought()["model-1.safetensors"] == FILES["model-1.safetensors"]
    assert any(said and re.match("bytes=[1-9]", said) for said in ranges), ranges


def test_the_other_hub_is_asked_where_the_first_fails_and_the_digests_decide(face: Hub, scope: Hub, house: House) -> None:
    face.meddle = lambda seen: Answer(403)
    house.bring(DIGESTS, "huggingface", "modelscope", revision="a" * 40)
    assert house.brought() == FILES
    scope.meddle = lambda seen: Answer(404)
    with pytest.raises(FetchError, match=r"huggingface does not allow it \(with a token\) \(403\)"):
        House(house.out / "other").bring(DIGESTS, "huggingface", "modelscope")


def test_a_redirect_to_where_large_files_lie_carries_no_token(face: Hub, house: House) -> None:
    with scripted(lambda seen: Answer(200, FILES[seen.path.strip("/")]), "127.0.0.2") as store:
        face.elsewhere = store.url
        house.bring(DIGESTS)
        assert store.seen and not any(TOKEN in value for seen in store.seen for value in seen.headers.values())
    assert any(TOKEN in value for seen in face.server.seen for value in seen.headers.values())


def test_a_pickle_is_refused_by_name_and_by_content(face: Hub, house: House) -> None:
    named = {"pytorch_model.bin": sha256(b"x")}
    with pytest.raises(StageError, match="is a pickle"):
        house.bring(named)
    hidden = b"\x80\x04data"
    face.repositories[WHERE].commits[-1] |= {"notes.txt": hidden, "pytorch_model.bin": b"x"}
    with pytest.raises(StageError, match="is a pickle"):
        house.bring({"notes.txt": sha256(hidden)})
    house.bring(named, pickles=True)


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../b", ".git/config", "a/.ssh/key", "a b", "a//b", ""])
def test_a_name_that_is_no_plain_path_is_refused_before_anything_is_asked(name: str, face: Hub, house: House) -> None:
    with pytest.raises(FetchError, match="names a file"):
        house.bring({name: sha256(b"")})
    assert face.server.seen == [] and not house.out.exists()


@pytest.mark.parametrize("site", ["huggingface", "modelscope"])
def test_a_pin_is_every_file_s_digest_and_leaves_out_what_can_run(site: str, face: Hub, scope: Hub, tmp_path: Path) -> None:
    hub = face if site == "huggingface" else scope
    hub.repositories[WHERE].commits[-1] |= {"pytorch_model.bin": b"x", ".gitattributes": b"y"}
    oid = hub.repositories[WHERE].oid()
    commit, digests, left = pin(SITES[site], WHERE, "main" if site == "huggingface" else oid, tmp_path)
    assert (commit, digests, left) == (oid, DIGESTS, [".gitattributes", "pytorch_model.bin"])
    assert not gets(hub, "safetensors")


def test_names_that_lead_elsewhere_are_never_pinned(face: Hub, tmp_path: Path) -> None:
    names = ["../../evil", "/etc/evil", "a\nb: c", "a/../../evil"]
    face.repositories[WHERE].commits[-1] |= dict.fromkeys(names, b"x")
    _, digests, left = pin(SITES["huggingface"], WHERE, "main", tmp_path)
    assert digests == DIGESTS and left == sorted(names)


def test_the_commands_pin_a_model_and_fetch_what_is_pinned(face: Hub, tmp_path: Path) -> None:
    run = CliRunner().invoke
    found = run(cli, ["weights", "pin", f"hf:{WHERE}"], catch_exceptions=False)
    pinned = yaml.safe_load(found.output)["checkpoint"]
    assert pinned == {
        "hub": {"repository": WHERE, "revision": face.repositories[WHERE].oid(), "sites": ["huggingface"]},
        "files": DIGESTS,
    }
    ours = yaml.safe_load((Path(__file__).parents[2] / "matrix" / "models" / "qwen2.5-0.5b.yaml").read_text())
    (tmp_path / "matrix" / "models").mkdir(parents=True)
    (tmp_path / "matrix" / "models" / "qwen2.5-0.5b.yaml").write_text(yaml.safe_dump({**ours, "checkpoint": pinned}))
    words = ["--matrix", str(tmp_path / "matrix"), "weights", "fetch", "qwen2.5-0.5b", str(tmp_path / "it")]
    said = run(cli, words, catch_exceptions=False).output
    assert "4 files, 1.0 MB, each the pinned one" in said
    assert {str(path.relative_to(tmp_path / "it")) for path in (tmp_path / "it").rglob("*") if path.is_file()} == set(FILES)
    refused = run(cli, words)
    assert "is not empty" in str(refused.exception)
