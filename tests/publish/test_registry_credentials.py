"""Credentials stay with the registry that they are for, and out of every error."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import requests
from distribution import (
    BLOB,
    CONTENT,
    INDEX,
    LOGIN,
    Answer,
    Seen,
    at,
    home,
    layout,
    scripted,
)

from release.errors import PublishError, ReleaseError
from release.oci import (
    IMAGE_INDEX,
    Descriptor,
    Layout,
)
from release.publish.credentials import Credentials
from release.publish.transport import Message, Transport

__all__ = ["home", "layout"]

pytestmark = pytest.mark.integration


def basic(answer: Callable[[Seen], Answer]) -> Callable[[Seen], Answer]:
    def script(seen: Seen) -> Answer:
        return answer(seen) if "Authorization" in seen.headers else Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    return script


def test_a_redirect_to_another_host_carries_no_authorization(layout: Layout) -> None:
    with scripted(lambda seen: Answer(body=CONTENT), "127.0.0.2") as other:
        there = Answer(307, headers={"Location": f"{other.url}/blob?signature=s3cret"})
        with scripted(basic(lambda seen: there)) as server:
            at(server, LOGIN).get_blob(BLOB, layout)
            assert "Authorization" in server.seen[-1].headers
    assert ["Authorization" in seen.headers for seen in other.seen] == [False]
    assert layout.blob(BLOB.digest).read_bytes() == CONTENT


def test_a_redirect_to_another_port_carries_no_authorization_and_one_to_the_same_does(layout: Layout) -> None:
    with scripted(Answer(body=CONTENT)) as other:
        targets = ["/moved", f"{other.url}/blob"]
        with scripted(basic(lambda seen: Answer(302, headers={"Location": targets[seen.path == "/moved"]}))) as server:
            at(server, LOGIN).get_blob(BLOB, layout)
            assert ["Authorization" in seen.headers for seen in server.seen] == [False, True, True]
    assert ["Authorization" in seen.headers for seen in other.seen] == [False]


def test_an_upload_location_on_another_host_gets_no_authorization(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(CONTENT)
    with scripted(lambda seen: Answer(201, headers={"Docker-Content-Digest": BLOB.digest}), "127.0.0.2") as other:

        def script(seen: Seen) -> Answer:
            return Answer(404) if seen.method == "HEAD" else Answer(202, headers={"Location": f"{other.url}/up?_state=a%2Bb"})

        with scripted(basic(script)) as server:
            assert at(server, LOGIN).put_blob(BLOB, tmp_path / "blob")
            assert "Authorization" in server.seen[-1].headers
    (upload,) = other.seen
    assert "Authorization" not in upload.headers
    assert upload.body == CONTENT
    assert upload.path == f"/up?_state=a%2Bb&digest={BLOB.digest}"


def test_an_upload_that_is_asked_for_a_login_on_another_host_gets_none(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(CONTENT)
    with (
        scripted(lambda seen: Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'}), "127.0.0.2") as other,
        scripted(lambda seen: Answer(202 if seen.method == "POST" else 404, headers={"Location": f"{other.url}/up"})) as server,
        pytest.raises(PublishError),
    ):
        at(server, LOGIN).put_blob(BLOB, tmp_path / "blob")
    assert len(other.seen) == 1
    assert "Authorization" not in other.seen[0].headers


@pytest.mark.parametrize(
    "location", ["http://192.0.2.1/x", "ftp://127.0.0.1/x", "http://me:pw@127.0.0.1/x", "http://[::1/x", "", "//\\x"]
)
def test_addresses_that_a_registry_must_not_name_are_refused(layout: Layout, tmp_path: Path, location: str) -> None:
    (tmp_path / "blob").write_bytes(CONTENT)

    def script(seen: Seen) -> Answer:
        status = {"HEAD": 404, "POST": 202}.get(seen.method, 307)
        return Answer(status, headers={"Location": location} if location else {})

    with scripted(script) as server:
        with pytest.raises(PublishError, match="address"):
            at(server).get_blob(BLOB, layout)
        with pytest.raises(PublishError, match="address"):
            at(server).put_blob(BLOB, tmp_path / "blob")


def test_a_redirect_in_circles_ends() -> None:
    with (
        scripted(lambda seen: Answer(302, headers={"Location": seen.path})) as server,
        pytest.raises(PublishError, match="circles"),
    ):
        at(server).has_blob(BLOB)
    assert len(server.seen) == 6


def test_a_put_is_not_redirected() -> None:
    with (
        scripted(Answer(307, headers={"Location": "/elsewhere"})) as server,
        pytest.raises(PublishError, match="307"),
    ):
        at(server).put_manifest("1.0", IMAGE_INDEX, INDEX)
    assert len(server.seen) == 1


def bearer(realm: str) -> Callable[[Seen], Answer]:
    def script(seen: Seen) -> Answer:
        if seen.path.startswith("/token"):
            return Answer(body=b'{"token": "T0KEN"}')
        if seen.headers.get("Authorization") == "Bearer T0KEN":
            return Answer(body=INDEX, headers={"Content-Type": IMAGE_INDEX})
        header = f'Bearer realm="{realm}",service="us",scope="repository:somebody/else:pull,push,delete"'
        return Answer(401, headers={"WWW-Authenticate": header})

    return script


@pytest.mark.parametrize("credentials", [None, LOGIN])
def test_a_token_is_asked_for_with_our_own_scope_and_used_again(credentials: Credentials | None) -> None:
    with scripted(bearer("/token?x=y")) as server:
        target = at(server, credentials)
        target.get_manifest("1.0")
        target.get_manifest("1.0")
    first, token, second, third = server.seen
    assert token.path == "/token?x=y&scope=repository%3Ateam%2Fmodel%3Apull&service=us"
    assert token.headers.get("Authorization") == (LOGIN.header() if credentials else None)
    assert [seen.headers.get("Authorization") for seen in (first, second, third)] == [None, "Bearer T0KEN", "Bearer T0KEN"]


def test_a_token_server_on_another_host_gets_nothing() -> None:
    with (
        scripted(lambda seen: Answer(body=b'{"token": "T0KEN"}'), "127.0.0.2") as other,
        scripted(bearer(other.url + "/token")) as server,
        pytest.raises(PublishError, match="another host"),
    ):
        at(server, LOGIN).get_manifest("1.0")
    assert other.seen == []


def test_over_https_the_named_token_server_is_asked_also_on_another_host_but_not_over_http(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    went: list[Message] = []

    def send(self: Transport, message: Message) -> requests.Response:
        went.append(message)
        raise PublishError("enough")

    monkeypatch.setattr(Transport, "_send", send)
    http = Transport("registry.example.org", "team/model", LOGIN)
    for realm in ("http://registry.example.org/token", "http://127.0.0.1/token", "http://auth.example.org/token"):
        with pytest.raises(PublishError, match="plain http"):
            http._token({"realm": realm}, "pull")
    assert went == []
    with pytest.raises(PublishError, match="enough"):
        http._token({"realm": "https://auth.example.org/token"}, "pull")
    with pytest.raises(PublishError, match="cannot be reached"):
        monkeypatch.undo()
        http._token({"realm": "https://.x/token?s3cret"}, "pull")
    assert went[0].url.startswith("https://auth.example.org/token?")
    assert went[0].grant == LOGIN.header()


def test_a_netrc_is_not_read_for_an_https_registry_either(home: Path) -> None:
    (home / ".netrc").write_text("machine registry.example.org login me password netrc-secret\n")
    sent: list[requests.PreparedRequest] = []

    class Recorder(requests.adapters.BaseAdapter):
        def send(self, request: requests.PreparedRequest, *_: object, **__: object) -> requests.Response:
            sent.append(request)
            raise requests.exceptions.SSLError("enough")

        def close(self) -> None:
            pass

    http = Transport("registry.example.org", "team/model")
    http._session.mount("https://", Recorder())
    with pytest.raises(PublishError, match="TLS"):
        http.request("GET", "manifests/1.0", expect=(200,))
    assert [request.headers.get("Authorization") for request in sent] == [None]


def test_the_body_of_a_redirect_is_not_read(layout: Layout) -> None:
    """requests would read it all, and unpack it, before it is asked whether to follow."""
    moved = Answer(307, b"x" * 50_000_000, {"Location": "/there"}, None)
    with scripted(lambda seen: Answer(body=CONTENT) if seen.path == "/there" else moved) as server:
        tracemalloc.start()
        at(server).get_blob(BLOB, layout)
        server.script = lambda seen: Answer(307, moved.body, {"Location": "http://[::1/x"}, None)
        with pytest.raises(PublishError, match="address"):
            at(server).has_blob(BLOB)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"token": 3}', b'{"token": "a\\r\\nX: y"}', b'{"token": ""}', b"[" * 100_000]
)
def test_a_token_server_that_answers_nonsense_is_a_clear_error(answer: bytes) -> None:
    def script(seen: Seen) -> Answer:
        return Answer(body=answer) if seen.path.startswith("/token") else bearer("/token")(seen)

    with scripted(script) as server, pytest.raises(PublishError, match="without a token"):
        at(server, LOGIN).get_manifest("1.0")


def test_an_expired_token_is_fetched_again_and_the_upload_starts_again(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(CONTENT)
    tokens = iter(["one", "two", "three"])

    def script(seen: Seen) -> Answer:
        if seen.path.startswith("/token"):
            return Answer(body=json.dumps({"access_token": next(tokens)}).encode())
        wanted = {"HEAD": "one", "POST": "two", "PUT": "three"}[seen.method]
        if seen.headers.get("Authorization") != f"Bearer {wanted}":
            return Answer(401, headers={"WWW-Authenticate": 'Bearer realm="/token"'})
        headers = {"Location": "/v2/team/model/blobs/uploads/1", "Docker-Content-Digest": BLOB.digest}
        return Answer({"HEAD": 404, "POST": 202}.get(seen.method, 201), headers=headers)

    told: list[int] = []
    with scripted(script) as server:
        at(server).put_blob(BLOB, tmp_path / "blob", told.append)
    assert [seen.body for seen in server.asked("PUT")] == [CONTENT, CONTENT]
    assert sum(told) == len(CONTENT)


def test_without_a_login_the_error_says_how_to_get_one() -> None:
    for header in ('Basic realm="x"', "Negotiate", ""):
        answer = Answer(401, headers={"WWW-Authenticate": header})
        with scripted(answer) as server, pytest.raises(PublishError, match="wants a login") as caught:
            at(server).get_manifest("1.0")
        assert caught.value.next_step == f"docker login {server.host}"
        assert all("Authorization" not in seen.headers for seen in server.seen)


def test_cookies_are_not_kept() -> None:
    with scripted(Answer(headers={"Set-Cookie": "a=b; Path=/"})) as server:
        target = at(server)
        target.has_blob(Descriptor("", BLOB.digest, 0))
        target.has_blob(Descriptor("", BLOB.digest, 0))
    assert all("Cookie" not in seen.headers for seen in server.seen)


def test_no_error_repeats_what_the_registry_says_or_where_it_sends_us(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(CONTENT)
    canary = "s3cret"
    errors = json.dumps({"errors": [{"code": f"\x1b[31m{canary}", "message": canary, "detail": canary}]}).encode()
    headers = {"Location": f"/x?token={canary}", "WWW-Authenticate": f'Bearer realm="/token?{canary}",service="{canary}"'}
    seen_errors: list[ReleaseError] = []
    for status in (301, 307, 400, 401, 403, 404, 416, 418, 500, 503):
        with scripted(Answer(status, errors, {**headers, "Docker-Content-Digest": canary})) as server:
            target = at(server, Credentials(canary, canary))
            attempts: list[Callable[[], object]] = [
                partial(target.get_manifest, "1.0"),
                partial(target.get_blob, BLOB, layout),
                partial(target.put_manifest, "1.0", IMAGE_INDEX, INDEX),
                partial(target.put_blob, BLOB, tmp_path / "blob"),
            ]
            for attempt in attempts:
                with pytest.raises(ReleaseError) as caught:
                    attempt()
                seen_errors.append(caught.value)
    for error in seen_errors:
        assert canary not in str(error) + error.next_step + error.where
        assert "\n" not in str(error)
        assert "http" not in str(error).removeprefix(error.where).replace("plain http", "")
