"""References, credentials and addresses: pure, no socket."""

from __future__ import annotations

import base64
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.errors import PublishError, UsageError
from release.publish.credentials import Credentials, challenges, stored_credentials
from release.publish.reference import Reference, is_loopback
from release.publish.transport import Transport, origin

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("registry.example.org/team/model:1.0", ("registry.example.org", "team/model", "1.0", "")),
        (f"localhost/a@{DIGEST}", ("localhost", "a", "", DIGEST)),
        (f"127.0.0.1:5000/a/b__c/d-e:T_1@{DIGEST}", ("127.0.0.1:5000", "a/b__c/d-e", "T_1", DIGEST)),
        ("[::1]:5000/a:b", ("[::1]:5000", "a", "b", "")),
        ("box:5000/a", ("box:5000", "a", "", "")),
    ],
)
def test_a_reference_is_read_and_written_back(text: str, parts: tuple[str, ...]) -> None:
    found = Reference.parse(text)
    assert (found.host, found.name, found.tag, found.digest) == parts
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model",
        "team/model:1.0",
        "/model",
        "registry.example.org",
        "registry.example.org/",
        "registry.example.org/Model",
        "registry.example.org/a//b",
        "registry.example.org/a/../b",
        "registry.example.org/a:",
        "registry.example.org/a:b:c",
        "registry.example.org/a:-b",
        "registry.example.org/a@sha256:abc",
        f"registry.example.org/a@{DIGEST.upper()}",
        f"registry.example.org/a@md5:{'a' * 32}",
        f"registry.example.org/a@{DIGEST}:tag",
        "registry.example.org/a\n",
        "registry.example.org/a?x=1",
        "registry.example.org:0/a",
        "registry.example.org:99999/a",
        "https://registry.example.org/a",
        "user:hunter2@registry.example.org/a",
        "registry..org/a",
        "-x.org/a",
        "[::1/a",
        "[zz]:5000/a",
        "registry.example.org/" + "a" * 300,
        "registry.example.org/a:" + "b" * 129,
        "registry.example.org/ａ",
        "a" * 100_000,
        "x.y/" + "a-" * 400,
    ],
)
def test_anything_else_is_no_reference(text: str) -> None:
    started = time.perf_counter()
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert time.perf_counter() - started < 30  # no pattern that goes round for ever


@given(st.text())
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        assert str(Reference.parse(text)) == text


PART = st.from_regex(r"[a-z0-9]+([._]|__|-{1,3})?[a-z0-9]+", fullmatch=True)


@given(
    host=st.from_regex(r"[a-z0-9]{1,9}\.[a-z]{2,9}(:[1-9][0-9]{0,3})?", fullmatch=True),
    name=st.lists(PART, min_size=1, max_size=4).map("/".join).filter(lambda name: len(name) < 256),
    tag=st.from_regex(r"([A-Za-z0-9_][A-Za-z0-9._-]{0,127})?", fullmatch=True),
    digest=st.sampled_from(["", DIGEST]),
)
def test_a_reference_survives_writing_and_reading(host: str, name: str, tag: str, digest: str) -> None:
    reference = Reference(host, name, tag, digest)
    assert Reference.parse(str(reference)) == reference


def test_parts_that_together_spell_another_reference_are_refused() -> None:
    with pytest.raises(UsageError):
        Reference("registry.example.org", "a:b")
    with pytest.raises(UsageError):
        Reference("registry.example.org/a", "b")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_loopback_hosts_are_spoken_to_in_plain_http(host: str) -> None:
    assert is_loopback(host)
    shown = f"[{host}]" if ":" in host else host
    assert Transport(f"{shown}:5000", "a").base == f"http://{shown}:5000/v2/a/"


@pytest.mark.parametrize(
    "host", ["registry.example.org", "10.0.0.1", "localhost.example.org", "127.0.0.1.example.org", "0.0.0.0"]
)
def test_every_other_host_is_spoken_to_in_https(host: str) -> None:
    assert not is_loopback(host)
    assert Transport(host, "a").base == f"https://{host}/v2/a/"


@pytest.mark.parametrize(
    "url",
    ["ftp://h/", "//h/", "http:///x", "https://u:p@h/", "https://h\\@g/", "https://h:x/", "https://h/\r\nX: y", "https://[::1/"],
)
def test_an_address_with_a_user_or_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"address|port|IPv6"):
        origin(url)


def test_an_https_registry_cannot_send_us_to_plain_http() -> None:
    http = Transport("registry.example.org", "a")
    assert http.address("https://elsewhere.example.org/x") == "https://elsewhere.example.org/x"
    for url in ("http://registry.example.org/x", "http://127.0.0.1/x", "file:///etc/passwd", "//user@h/"):
        with pytest.raises(PublishError) as caught:
            http.address(url)
        assert "/x" not in str(caught.value)


def test_a_loopback_registry_cannot_send_us_to_plain_http_elsewhere() -> None:
    with pytest.raises(PublishError):
        Transport("127.0.0.1:5000", "a").address("http://192.0.2.1/x")


def write_config(folder: Path, document: object) -> dict[str, str]:
    (folder / "config.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return {"DOCKER_CONFIG": str(folder)}


def test_credentials_come_from_docker_config_for_that_host_only(tmp_path: Path) -> None:
    auth = base64.b64encode(b"me:hunter2:x").decode()
    entries = {"registry.example.org": {"auth": auth}, "https://other.example.org/v1/": {"username": "you", "password": "pw"}}
    environ = write_config(tmp_path, {"auths": entries})
    assert stored_credentials("registry.example.org", environ) == Credentials("me", "hunter2:x")
    assert stored_credentials("other.example.org", environ) == Credentials("you", "pw")
    for host in ("registry.example.org:5000", "example.org", "evil.registry.example.org"):
        assert stored_credentials(host, environ) is None


def test_credentials_from_the_environment_are_for_the_host_that_they_name() -> None:
    environ = {
        "RELEASE_REGISTRY_HOST": "r.example.org",
        "RELEASE_REGISTRY_USER": "me",
        "RELEASE_REGISTRY_PASSWORD": "pw",
        "HOME": "/nowhere",
    }
    assert stored_credentials("r.example.org", environ) == Credentials("me", "pw")
    assert stored_credentials("s.example.org", environ) is None


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "[]",
        '{"auths": [1]}',
        '{"auths": {"r.example.org": {"auth": "aHVudGVyMg==%%hunter2"}}}',
        '{"auths": {"r.example.org": 3}}',
        "[" * 100_000,
    ],
)
def test_a_broken_docker_config_is_a_clear_error_without_its_content(tmp_path: Path, document: str) -> None:
    environ = write_config(tmp_path, document)
    with pytest.raises(PublishError) as caught:
        stored_credentials("r.example.org", environ)
    assert "config.json" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_empty_entry_is_no_credentials(tmp_path: Path) -> None:
    assert stored_credentials("r.example.org", write_config(tmp_path, {"auths": {"r.example.org": {}}})) is None


HELPER = """#!/bin/sh
read -r host
echo "$1 $host" >> "$0.log"
case $host in
r.example.org) echo '{"ServerURL": "r.example.org", "Username": "me", "Secret": "hunter2"}';;
token.example.org) echo '{"ServerURL": "token.example.org", "Username": "<token>", "Secret": "hunter2"}';;
odd.example.org) echo 'hunter2';;
gone.example.org) echo 'credentials not found in native keychain'; exit 1;;
*) echo "hunter2 is locked"; exit 2;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "docker-credential-vault"
    program.parent.mkdir()
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


@pytest.mark.integration
@pytest.mark.parametrize("key", ["credHelpers", "credsStore"])
def test_a_program_that_keeps_credentials_is_asked_for_this_host_alone(key: str, helper: Path, tmp_path: Path) -> None:
    kept = {"credHelpers": {"r.example.org": "vault"}} if key == "credHelpers" else {"credsStore": "vault"}
    environ = write_config(tmp_path, kept)
    assert stored_credentials("r.example.org", environ) == Credentials("me", "hunter2")
    assert helper.with_name(f"{helper.name}.log").read_text() == "get r.example.org\n"
    if key == "credHelpers":
        assert stored_credentials("other.example.org", environ) is None
    else:
        assert stored_credentials("gone.example.org", environ) is None


@pytest.mark.integration
@pytest.mark.parametrize(
    ("host", "match"), [("token.example.org", "identity token"), ("odd.example.org", "nonsense"), ("locked.example.org", "fails")]
)
def test_a_program_that_cannot_say_a_password_is_a_clear_error_without_its_words(
    host: str, match: str, helper: Path, tmp_path: Path
) -> None:
    with pytest.raises(PublishError, match=match) as caught:
        stored_credentials(host, write_config(tmp_path, {"credsStore": "vault"}))
    assert "hunter2" not in f"{caught.value} {caught.value.next_step} {caught.value.__cause__}"


@pytest.mark.parametrize("name", ["missing", "../../bin/sh", "a b", ""])
def test_a_program_that_is_not_there_or_no_name_is_not_started(name: str, tmp_path: Path) -> None:
    environ = write_config(tmp_path, {"credsStore": name})
    if name:
        with pytest.raises(PublishError, match="is not there"):
            stored_credentials("r.example.org", environ)
    else:
        assert stored_credentials("r.example.org", environ) is None


def test_a_password_does_not_show_when_printed() -> None:
    assert "hunter2" not in repr(Credentials("me", "hunter2")) + str(Credentials("me", "hunter2"))


def test_challenges_are_read_also_when_there_are_several() -> None:
    header = 'Basic realm="x", Bearer realm="https://auth.example.org/token",service="r",scope="a:b:pull,push"'
    assert challenges(header) == {
        "basic": {"realm": "x"},
        "bearer": {"realm": "https://auth.example.org/token", "service": "r", "scope": "a:b:pull,push"},
    }
    assert challenges("Basic") == {"basic": {}}
    assert challenges("") == {}


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=300))
def test_any_challenge_is_read_or_ignored(header: str) -> None:
    for scheme, parameters in challenges(header).items():
        assert scheme == scheme.lower()
        assert all(isinstance(value, str) for value in parameters.values())


@pytest.mark.parametrize("piece", ["a", "a ", 'a="', "a=", 'a="\\', "\\"])
def test_a_long_challenge_is_read_in_time(piece: str) -> None:
    started = time.perf_counter()
    challenges(piece * 60_000)
    assert time.perf_counter() - started < 30
