"""A release goes to a hub in one commit, private until it may be seen, nothing twice; by the hubs' own libraries against stand-ins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from distribution import Answer, Seen, scripted
from hubs import TOKEN, Hub, HuggingFaceHub, ModelScopeHub, Repository, running, said
from huggingface_hub import ModelCard, constants
from huggingface_hub._eval_results import parse_eval_result_entries
from records import record

from release.errors import PublishError, ReleaseError, UsageError, VerificationError
from release.hubs import Place
from release.oci import sha256
from release.publish.card import render_card
from release.publish.hub import RESULTS, name_for, pack, push, results_of
from release.publish.huggingface import HuggingFace
from release.publish.modelscope import ModelScope
from release.types import JSON

integration = pytest.mark.integration
WEIGHTS = {"model-1.safetensors": b"first shard" * 1000, "model-2.safetensors": b"second shard" * 1000, "config.json": b"{}"}
BOARDS = {"gpqa-diamond": ("Idavidrein/gpqa", "gpqa_diamond")}
WHERE = "team/pebble"


def released(folder: Path, **changes: Any) -> Path:
    """Write a release as `release pull` leaves it."""
    made = record(**changes)
    files = {"evidence/accuracy/samples.jsonl": b'{"id": 1}\n'}
    made["evidence"] = [{"path": name, "sha256": sha256(data), "bytes": len(data)} for name, data in files.items()]
    made["weights"]["files"] = {name: {"sha256": sha256(data), "bytes": len(data)} for name, data in WEIGHTS.items()}
    made["pictures"] = []
    files |= {f"weights/{name}": data for name, data in WEIGHTS.items()}
    files |= {"release.json": json.dumps(made).encode(), "README.md": render_card({**made, "settlement": None}).encode()}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def built_only() -> JSON:
    verdicts = [{**verdict} for verdict in record()["verdicts"]]
    verdicts[-1] |= {"status": "SKIPPED", "reason": "no reference"}
    return {"verdicts": verdicts, "state": "built"}


# What is sent


def test_a_card_goes_without_weights_unless_they_are_asked_for(tmp_path: Path) -> None:
    folder = released(tmp_path)
    alone, whole = pack(folder, {}, weights=False), pack(folder, {}, weights=True)
    assert set(alone.files) == {"release.json", "README.md", "evidence/accuracy/samples.jsonl"}
    assert set(whole.files) - set(alone.files) == set(WEIGHTS)
    assert alone.state.value == "validated" and alone.tag != whole.tag


@pytest.mark.parametrize("name", ["README.md", "weights/config.json", "evidence/accuracy/samples.jsonl"])
def test_a_file_that_is_gone_or_lies_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    folder = released(tmp_path / "it")
    (folder / name).rename(tmp_path / "outside")
    with pytest.raises(VerificationError, match="missing, or lies elsewhere"):
        pack(folder, {}, weights=True)
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(VerificationError, match="missing, or lies elsewhere"):
        pack(folder, {}, weights=True)


def test_a_file_that_is_not_what_the_record_says_is_refused(tmp_path: Path) -> None:
    folder = released(tmp_path)
    (folder / "weights" / "config.json").write_bytes(b"[]")
    with pytest.raises(VerificationError, match="the record says"):
        pack(folder, {}, weights=True)
    pack(folder, {}, weights=False)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", ".git/config", "a\nb"])
def test_a_record_that_names_other_paths_is_refused(name: str, tmp_path: Path) -> None:
    folder = released(tmp_path / "it")
    made = json.loads((folder / "release.json").read_bytes())
    made["evidence"] = [{"path": name, "sha256": sha256(b""), "bytes": 0}]
    (folder / "release.json").write_text(json.dumps(made))
    with pytest.raises(VerificationError):
        pack(folder, {}, weights=False)


def test_a_record_that_calls_itself_more_than_it_is_is_refused(tmp_path: Path) -> None:
    folder = released(tmp_path, **{**built_only(), "state": "validated"})
    with pytest.raises(VerificationError, match="its verdicts come to"):
        pack(folder, {}, weights=False)


def test_measured_scores_alone_are_results_in_the_hub_s_own_format() -> None:
    judged = {
        **{
            "benchmark": "gpqa-diamond",
            "finding": "CONSISTENT",
            "measured": True,
            "n": 198,
            "delta": -0.01,
            "interval": [-0.02, 0.0],
        },
        **{
            "interval-95": [-0.025, 0.005],
            "shares": {"candidate": 0.63, "reference": 0.64},
            "repeats": {"candidate": 8, "reference": 8},
        },
    }
    others = [{**judged, "measured": False}, {**judged, "benchmark": "pebbles"}, {**judged, "shares": None}]
    made = record(settlement={"benchmarks": [judged, *others]}, created="2026-11-28T00:00:00Z")
    found = results_of(made, BOARDS)
    entries = parse_eval_result_entries(yaml.safe_load(json.dumps(found)))
    assert [(entry.dataset_id, entry.task_id, entry.value) for entry in entries] == [("Idavidrein/gpqa", "gpqa_diamond", 0.63)]
    assert "n = 198" in str(entries[0].notes) and "-0.0250 to +0.0050" in str(entries[0].notes)
    assert results_of(record(), BOARDS) == []


def test_the_card_s_front_matter_is_read_by_the_hub_s_library() -> None:
    data = ModelCard(render_card(record())).data.to_dict()
    assert data["library_name"] == record()["engine"]
    assert {f"chip:{record()['chip']['id']}", "state:validated"} <= set(data["tags"])


def test_a_repository_is_named_after_model_precision_and_chip() -> None:
    made = record(variant="native", precision="w8a8")
    assert name_for(made) == f"{made['model']['name'].replace(' ', '-')}-W8A8-{made['chip']['id']}-native"


@pytest.mark.parametrize(
    "text", ["", "hf:", "hf:name", "hub:a/b", "hf:../x", "hf:a/b/c", "hf:a/..", "hf:-a/b", "hf:a b/c", "ms:a/b\n"]
)
def test_what_is_no_repository_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Place.parse(text)


@pytest.mark.parametrize("address", ["http://hub.example", "ftp://hub.example", "https://user:pw@hub.example", "https://"])
def test_a_token_goes_to_no_address_that_anybody_could_read_along(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(UsageError, match="HF_ENDPOINT"):
        Place.parse("hf:a/b").site.endpoint  # noqa: B018


def test_without_a_token_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="HF_TOKEN is not set"):
        HuggingFace(Place.parse("hf:a/b"))
    with pytest.raises(UsageError, match="MODELSCOPE_API_TOKEN is not set"):
        ModelScope(Place.parse("ms:a/b"))


# The hubs


@pytest.fixture
def face(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Hugging Face."""
    with running(HuggingFaceHub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


@pytest.fixture
def scope(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """ModelScope."""
    with running(ModelScopeHub()) as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.server.url)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
        yield hub


def send(
    folder: Path, to: str = f"hf:{WHERE}", *, weights: bool = True, public: bool = False, dry_run: bool = False
) -> list[str]:
    place = Place.parse(to)
    hub = HuggingFace(place) if place.site.short == "hf" else ModelScope(place)
    return push(hub, place, pack(folder, BOARDS, weights=weights), public=public, dry_run=dry_run)


def asked(hub: Hub, *methods: str) -> list[str]:
    return [seen.path.partition("?")[0] for seen in hub.server.seen if seen.method in methods]


@integration
@pytest.mark.parametrize("short", ["hf", "ms"])
def test_a_release_is_one_commit_and_one_tag_in_a_private_repository(short: str, face: Hub, scope: Hub, tmp_path: Path) -> None:
    hub, folder = (face if short == "hf" else scope), released(tmp_path)
    send(folder, f"{short}:{WHERE}")
    it = hub.repositories[WHERE]
    assert it.private and len(it.commits) == 2
    parcel = pack(folder, BOARDS, weights=True)
    assert {name: sha256(data) for name, data in it.commits[-1].items()} == dict(parcel.digests)
    assert it.tags == {parcel.tag: it.oid()}
    assert sorted(hub.uploads) == sorted(sha256(data)[7:] for name, data in WEIGHTS.items() if name.endswith(".safetensors"))


@integration
@pytest.mark.parametrize("short", ["hf", "ms"])
def test_what_is_there_already_is_not_sent_again(short: str, face: Hub, scope: Hub, tmp_path: Path) -> None:
    hub, folder = (face if short == "hf" else scope), released(tmp_path)
    send(folder, f"{short}:{WHERE}")
    hub.uploads.clear()
    told = send(folder, f"{short}:{WHERE}")
    assert hub.uploads == [] and len(hub.repositories[WHERE].commits) == 2 and told[-1].endswith("as it was")


@integration
def test_a_push_that_broke_off_goes_on_where_it_was(face: Hub, tmp_path: Path) -> None:
    folder = released(tmp_path)
    face.meddle = lambda seen: Answer(403) if "/commit/" in seen.path else None
    with pytest.raises(PublishError, match="does not allow it"):
        send(folder)
    assert len(face.uploads) == 2 and face.repositories[WHERE].commits == [{}] and face.repositories[WHERE].tags == {}
    face.meddle = lambda seen: None
    send(folder)
    assert len(face.uploads) == 2 and len(face.repositories[WHERE].commits) == 2 and face.repositories[WHERE].tags


@integration
def test_a_validated_release_is_made_public_last_of_all(face: Hub, tmp_path: Path) -> None:
    told = send(released(tmp_path), public=True)
    assert not face.repositories[WHERE].private and told[-1].endswith("is public")
    writes = [path for path in asked(face, "POST", "PUT") if "validate" not in path]
    assert writes[0] == "/api/repos/create" and writes[-1].endswith("/settings") and "/tag/" in writes[-2]


@integration
def test_what_is_not_validated_is_never_public(face: Hub, tmp_path: Path) -> None:
    folder = released(tmp_path, **built_only())
    with pytest.raises(PublishError, match="not validated"):
        send(folder, public=True)
    assert face.server.seen == []
    face.repositories[WHERE] = Repository(private=False)
    with pytest.raises(PublishError, match="is public"):
        send(folder)
    assert asked(face, "POST", "PUT") == []
    del face.repositories[WHERE]
    send(folder)
    assert face.repositories[WHERE].private


@integration
def test_a_hub_that_makes_public_what_was_to_be_private_gets_nothing(face: Hub, tmp_path: Path) -> None:
    def careless(seen: Seen) -> Answer | None:
        if seen.path == "/api/repos/create":
            face.repositories[WHERE] = Repository(private=False)
            return said({"url": f"{face.server.url}/{WHERE}", "name": WHERE})
        return None

    face.meddle = careless
    with pytest.raises(PublishError, match="was to be private"):
        send(released(tmp_path))
    assert face.uploads == [] and face.repositories[WHERE].commits == [{}]


@integration
def test_a_dry_run_writes_nothing(face: Hub, tmp_path: Path) -> None:
    told = send(released(tmp_path), dry_run=True)
    assert asked(face, "POST", "PUT") == [] and "would be made, private" in told[-1] and "model-1.safetensors" in told


@integration
def test_other_weights_and_moved_tags_are_left_alone(face: Hub, tmp_path: Path) -> None:
    folder = released(tmp_path)
    face.repositories[WHERE] = Repository(commits=[{"other.safetensors": b"x"}])
    with pytest.raises(PublishError, match="holds other weights"):
        send(folder)
    it = face.repositories[WHERE] = Repository(commits=[{}, {"a": b""}])
    it.tags[pack(folder, {}, weights=True).tag] = it.oid(0)
    with pytest.raises(PublishError, match="not the head"):
        send(folder)
    assert asked(face, "POST", "PUT") == []


@integration
def test_somebody_else_s_commit_meanwhile_is_a_conflict(face: Hub, tmp_path: Path) -> None:
    def overtake(seen: Seen) -> None:
        if seen.path.endswith("/objects/batch"):
            face.repositories[WHERE].commits.append({"theirs": b""})

    face.meddle = overtake
    with pytest.raises(PublishError, match="somebody else has changed it") as caught:
        send(released(tmp_path))
    assert "model-1.safetensors" not in face.repositories[WHERE].commits[-1] and caught.value.next_step
    assert face.repositories[WHERE].tags == {}


@integration
@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "does not accept the token of HF_TOKEN"), (403, "does not allow it"), (500, "failed"), (418, "answers with an error")],
)
def test_a_refusal_is_told_by_its_meaning_and_without_the_token(status: int, said: str, face: Hub, tmp_path: Path) -> None:
    face.meddle = lambda seen: Answer(status, TOKEN.encode(), {"X-Error-Message": TOKEN})
    with pytest.raises(PublishError, match=said) as caught:
        send(released(tmp_path))
    assert str(status) in str(caught.value) and TOKEN not in repr(caught.value) + str(caught.value) + caught.value.next_step
    assert caught.value.__suppress_context__


@integration
def test_a_hub_that_wants_less_is_asked_again_and_then_told(face: Hub, tmp_path: Path) -> None:
    asked = []

    def busy(seen: Seen) -> Answer | None:
        if "/preupload/" not in seen.path:
            return None
        asked.append(seen)
        return Answer(429, headers={"Retry-After": "0"}) if len(asked) < 3 else None

    face.meddle = busy
    send(released(tmp_path))
    assert len(asked) == 3
    face.meddle = lambda seen: Answer(429, headers={"Retry-After": "0"})
    with pytest.raises(PublishError, match="less often"):
        send(released(tmp_path))


@integration
def test_a_hub_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(PublishError, match="cannot be reached") as caught:
        send(released(tmp_path))
    assert TOKEN not in str(caught.value)


@integration
def test_a_redirect_to_another_host_carries_no_token(face: Hub, scope: Hub, tmp_path: Path) -> None:
    folder = released(tmp_path)
    with scripted(Answer(404), "127.0.0.2") as other:
        for hub, to in ((face, f"hf:{WHERE}"), (scope, f"ms:{WHERE}")):
            hub.meddle = lambda seen: Answer(307, headers={"Location": other.url + seen.path})
            with pytest.raises(ReleaseError):
                send(folder, to)
            other_headers = [value for seen in other.seen for value in seen.headers.values()]
            assert other.seen and not any(TOKEN in value for value in other_headers)
            other.seen.clear()


@integration
def test_a_token_goes_to_no_other_host_for_an_upload(scope: Hub, tmp_path: Path) -> None:
    with scripted(Answer(200), "127.0.0.2") as other:
        scope.elsewhere = other.url
        with pytest.raises(PublishError, match="our token would go along"):
            send(released(tmp_path), f"ms:{WHERE}")
        assert other.seen == []


@integration
def test_model_scope_shows_nothing_by_its_library_and_says_so(scope: Hub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot make a repository public"):
        send(released(tmp_path), f"ms:{WHERE}", public=True)
    assert scope.server.seen == []


@integration
def test_results_go_along_where_there_are_any(face: Hub, tmp_path: Path) -> None:
    judged = {
        **{"benchmark": "gpqa-diamond", "finding": "CONSISTENT", "measured": True, "n": 198, "delta": 0.0, "interval": [0, 0]},
        **{"interval-95": None, "shares": {"candidate": 0.6, "reference": 0.6}, "repeats": {"candidate": 1, "reference": 1}},
    }
    send(released(tmp_path, settlement={"benchmarks": [judged]}), weights=False)
    assert yaml.safe_load(face.repositories[WHERE].commits[-1][RESULTS])[0]["value"] == 0.6
