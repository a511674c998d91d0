"""A secret that lies wherever secrets lie is found nowhere in what a release leaves behind."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from distribution import PASSWORD, USER, Answer, Distribution, Seen, distribution, scripted
from hubs import TOKEN, HuggingFaceHub, running
from laid import whole
from records import record

from release.oci import sha256
from release.publish.card import render_card

pytestmark = pytest.mark.integration

CANARY = TOKEN
SECRETS = (CANARY, PASSWORD)
CELL = ("--chip", "cpu", "--model", "tiny-qwq")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Distribution, Path]]:
    """A real registry that wants a login, and its folder."""
    folder = tmp_path_factory.mktemp("canary-registry")
    with distribution(folder, login=True) as running_registry:
        yield running_registry, folder


def spellings(secret: str) -> set[bytes]:
    """Return a secret as itself and as what logs and headers make of it: base64 at each of three offsets, hex, reversed."""
    raw = secret.encode()
    found = {raw, raw.hex().encode(), raw[::-1]}
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + raw).decode()
        found.add(text[4 if shift else 0 : len(text) - 4].encode())  # what does not depend on its neighbours
    return found


def unpacked(data: bytes) -> Iterator[bytes]:
    """Yield data, what is in it if it is compressed, and what it carries in base64 (envelopes do), one level down."""
    yield data
    if data[:2] == b"\x1f\x8b":
        yield gzip.GzipFile(fileobj=io.BytesIO(data)).read()
    elif data[:1] == b"\x78":
        try:
            yield zlib.decompress(data)
        except zlib.error:
            return
    try:
        payload = json.loads(data)["dsseEnvelope"]["payload"]
    except (ValueError, KeyError, TypeError):
        return
    yield base64.b64decode(payload)


def found_in(where: Path) -> list[str]:
    """Return the files under a folder in which a secret stands, however it is spelt."""
    signs = set().union(*map(spellings, SECRETS))
    return [
        str(path.relative_to(where))
        for path in sorted(where.rglob("*"))
        if path.is_file() and any(sign in content for content in unpacked(path.read_bytes()) for sign in signs)
    ]


def released(folder: Path) -> Path:
    """Write a small release as a pull leaves it."""
    made = record()
    weights = {"model.safetensors": b"weights" * 500}
    made["weights"]["files"] = {name: {"sha256": sha256(data), "bytes": len(data)} for name, data in weights.items()}
    made["evidence"], made["pictures"] = [], []
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "model.safetensors").write_bytes(weights["model.safetensors"])
    (folder / "release.json").write_text(json.dumps(made))
    (folder / "README.md").write_text(render_card(made), encoding="utf-8")
    return folder


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, str]:
    """Put the canary wherever secrets lie: three variables, docker's login and ~/.netrc; return the environment."""
    home = tmp_path / "home"
    (home / ".docker").mkdir(parents=True)
    login = base64.b64encode(f"me:{CANARY}".encode()).decode()
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": {"127.0.0.1": {"auth": login}}}))
    (home / ".netrc").write_text(f"machine 127.0.0.1 login me password {CANARY}\n")
    (home / ".netrc").chmod(0o600)
    named = dict.fromkeys(("HF_TOKEN", "MODELSCOPE_API_TOKEN", "MY_OWN_SECRET", "RELEASE_KEY_PASSPHRASE"), CANARY)
    (tmp_path / "tmp").mkdir()
    named["TMPDIR"] = str(tmp_path / "tmp")
    return {**os.environ, "HOME": str(home), "DOCKER_CONFIG": str(home / ".docker"), "HF_HUB_DISABLE_XET": "1", **named}


def test_a_secret_is_found_nowhere_in_what_was_signed_attested_published_and_logged(
    here: tuple[Distribution, Path], tmp_path: Path, secrets: dict[str, str]
) -> None:
    registry, folder = here
    logs = tmp_path / "logs"
    logs.mkdir()

    def login(password: str) -> None:
        known = {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}
        Path(secrets["DOCKER_CONFIG"], "config.json").write_text(json.dumps({"auths": {registry.host: known}}))

    def run(*words: str, status: int = 0) -> str:
        argv = [sys.executable, "-m", "release", "--traceback", *words]
        done = subprocess.run(argv, cwd=tmp_path, env=secrets, capture_output=True, timeout=120, check=False)
        (logs / f"{len(list(logs.iterdir()))}-{words[0]}").write_bytes(done.stdout + done.stderr)
        assert done.returncode == status, done.stderr.decode()
        return done.stderr.decode()

    it = released(tmp_path / "it")
    name = registry.fresh().name
    where = f"{registry.host}/{name}/cpu/tiny-qwq:bf16"
    whole(tmp_path / "dist" / "cpu" / "tiny-qwq", record(cell="cpu/tiny-qwq@bf16"))
    run("keys", "new", "key")
    login(CANARY)
    assert "does not accept the login" in run("publish", *CELL, "--to", f"{registry.host}/{name}", "--key", "key", status=3)
    login(PASSWORD)
    run("publish", *CELL, "--to", f"{registry.host}/{name}", "--key", "key")
    run("verify", where, "--key", "key.pub")
    run("bundle", "export", where, "bundle")
    run("pull", where, "--key", "key.pub", "--into", "pulled/registry", "--no-image")
    run("pull", "bundle", "--key", "key.pub", "--into", "pulled/bundle", "--no-image")
    with running(HuggingFaceHub()) as hub:
        secrets["HF_ENDPOINT"] = hub.server.url
        run("hub", "push", "it", "--to", "hf:team/", "--weights", "--public")
        hub.meddle = _echo
        (it / "README.md").write_text("# another card\n")
        run("hub", "push", "it", "--to", "hf:team/", "--public", status=3)
        sent = tmp_path / "sent"
        for number, seen in enumerate(hub.server.seen):
            (sent / str(number)).mkdir(parents=True)
            (sent / str(number) / "body").write_bytes(seen.path.encode() + b"\n" + seen.body)
        assert any(CANARY in value for seen in hub.server.seen for value in seen.headers.values()), "the token was not even used"
        (repository,) = hub.repositories.values()
        for name, data in repository.commits[1].items():
            (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "hub" / name).write_bytes(data)
    assert len(list((folder / "data").rglob("data"))) > 10, "the registry keeps its blobs elsewhere"
    here_too = [tmp_path / place for place in ("dist", "bundle", "pulled", "store", "hub")]
    for place in (folder, *here_too, it, logs, sent):
        assert any(place.rglob("*")) and found_in(place) == []
    assert found_in(tmp_path / "tmp") == []
    assert CANARY.encode() not in (tmp_path / "key").read_bytes() + (tmp_path / "key.pub").read_bytes()


HELPER = """#!/bin/sh
# A keeper of logins, as docker's: it looks at every command line there is, and then says the login.
read host
for each in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < "$each" 2>/dev/null; echo; done > "$0.seen"
cat "$0.login"
"""


def test_no_command_line_shows_a_secret_while_it_is_in_use(tmp_path: Path, secrets: dict[str, str]) -> None:
    """Each time that a login or a token arrives somewhere, and while a child of ours fetches one, all command lines of this machine are read."""
    secret = f"in-use-{uuid4().hex}"
    signs = set().union(*map(spellings, (secret, TOKEN)))
    lines: list[bytes] = []

    def look(seen: Seen) -> Answer | None:
        if secret in unbasic(seen) or TOKEN in unbasic(seen):
            lines.append(command_lines())
            return Answer(404)
        return Answer(401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    def run(*words: str, status: int = 0) -> None:
        argv = [sys.executable, "-m", "release", *words]
        done = subprocess.run(argv, cwd=tmp_path, env=secrets, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == status, done.stderr

    helper = tmp_path / "bin" / "docker-credential-vault"
    helper.parent.mkdir()
    helper.write_text(HELPER)
    helper.chmod(0o755)
    helper.with_name(f"{helper.name}.login").write_text(json.dumps({"Username": "me", "Secret": secret}))
    Path(secrets["DOCKER_CONFIG"], "config.json").write_text(json.dumps({"credsStore": "vault"}))
    secrets.update(RELEASE_KEY_PASSPHRASE=secret, PATH=f"{helper.parent}:{secrets['PATH']}")
    run("keys", "new", "key")
    with scripted(look) as server:
        run("sign", f"{server.host}/team/model:1", "--key", "key", status=3)
    it = released(tmp_path / "it")
    with running(HuggingFaceHub()) as hub:
        secrets["HF_ENDPOINT"] = hub.server.url
        hub.meddle = lambda seen: lines.append(command_lines()) if TOKEN in unbasic(seen) else None
        run("hub", "push", str(it), "--to", "hf:team/", "--weights", "--public")
    lines.append(helper.with_name(f"{helper.name}.seen").read_bytes())
    assert len(lines) > 4 and all(b"-m\0release\0" in each for each in lines[:-1]) and b" -m release sign" in lines[-1]
    assert [sign for sign in signs if any(sign in each for each in lines)] == []


def test_the_look_at_command_lines_would_find_it() -> None:
    secret = f"in-use-{uuid4().hex}"
    with subprocess.Popen(["sh", "-c", "echo up; read line", secret], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == b"up\n", "right after exec the kernel may not show it yet"
        found = command_lines()
        child.stdin.close()
    assert secret.encode() in found


def command_lines() -> bytes:
    """Return the command lines of all processes, as `ps` shows them to everybody."""
    found = b""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += path.read_bytes() + b"\n"
    return found


def unbasic(seen: Seen) -> str:
    """Return the login or token that came along with a request."""
    kind, _, word = seen.headers.get("authorization", "").partition(" ")
    return base64.b64decode(word).decode() if kind == "Basic" else word


def _echo(seen: Seen) -> Answer | None:
    """Refuse to write, with the token that came along in the answer."""
    said = seen.headers.get("authorization", "")
    return None if seen.method == "GET" else Answer(403, said.encode(), {"X-Error-Message": said})


def test_the_search_would_find_it(tmp_path: Path) -> None:
    """A positive of each kind: plain, compressed, in an envelope, in base64 at each offset."""
    basic = base64.b64encode(f"me:{CANARY}".encode())
    payload = base64.b64encode(json.dumps({"env": CANARY}).encode()).decode()
    planted = {
        "plain": f"token={CANARY}\n".encode(),
        "layer": gzip.compress(b"\0" * 1000 + CANARY.encode()),
        "zlib": zlib.compress(CANARY.encode()),
        "bundle": json.dumps({"dsseEnvelope": {"payload": payload}}).encode(),
        "header": b"Authorization: Basic " + basic,
        **{f"shift-{shift}": base64.b64encode(b"x" * shift + CANARY.encode() + b"tail") for shift in range(3)},
    }
    for name, data in planted.items():
        (tmp_path / "deep" / name).mkdir(parents=True)
        (tmp_path / "deep" / name / "data").write_bytes(data)
    (tmp_path / "clean").write_bytes(b"nothing here")
    assert found_in(tmp_path) == sorted(f"deep/{name}/data" for name in planted)
