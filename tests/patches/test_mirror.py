"""One mirror a repository: filled as needed, safe with two at once, offline where it can be, and wise to tags that move."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import vendors
from vendors import SHAPES, Checkout, checkout

from release.errors import PatchError
from release.patches import delivery
from release.patches.git import Repository
from release.patches.mirror import Mirror, normal, spoken
from release.patches.unpatch import unpatch
from release.processes import wait_until
from release.store import Store

SAME = {
    "https://git.example.org/a/b": (
        "https://git.example.org/a/b.git", "https://GIT.example.org:443/a/b/", "https://git.example.org/a//b.git/",
    ),
    "ssh://git.example.org/a/b": ("git@git.example.org:a/b.git", "ssh://git@git.example.org:22/a/b", "git.example.org:/a/b"),
    "ssh://git.example.org:2222/a/b": ("ssh://git@git.example.org:2222/a/b.git",),
    "https://git.example.org:8443/A/b": ("https://git.example.org:8443/A/b.git",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "address"), [(wanted, address) for wanted, addresses in SAME.items() for address in addresses]
)
def test_every_spelling_of_an_address_is_one_mirror(wanted: str, address: str) -> None:
    assert normal(address) == normal(wanted) == wanted
    assert spoken(address) == address


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("ext::sh -c touch", "is not the address"),
        ("ext::touch%20x", "ext is not a way"),
        ("fd::17", "fd is not a way"),
        ("https::http://x/y", "https is not a way"),
        ("git://git.example.org/x", "git is not a way"),
        ("http://git.example.org/x", "http is not a way"),
        ("ftp://git.example.org/x", "ftp is not a way"),
        ("--upload-pack=touch x", "is not the address"),
        ("-oProxyCommand=x", "is not the address"),
        ("https://me:hunter2@git.example.org/x", "an address holds no password"),
        ("https:///x", "names no server"),
        ("https://git.example.org:port/x", "Port could not be cast"),
        ("nowhere/to/be/found", "a path that is no folder is not a way"),
        ("https://x/\ny", "is not the address"),
        ('https://x/"y', "is not the address"),
        ("", "is not the address|a path that is no folder"),
    ],
)
def test_an_address_that_could_run_something_or_tell_a_secret_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PatchError, match=complaint) as caught:
        normal(address)
    assert "hunter2" not in str(caught.value) + caught.value.next_step


@pytest.fixture
def made(tmp_path: Path) -> Checkout:
    return checkout(tmp_path / "source")


def mirror(tmp_path: Path, made: Checkout, *, offline: bool = False) -> Mirror:
    return Mirror(Store(tmp_path / "store"), str(made.folder), offline=offline)


@pytest.mark.integration
@pytest.mark.parametrize("partial", [True, False], ids=["a server that leaves files out", "a server that cannot"])
def test_a_commit_is_brought_with_all_its_files_and_exported(tmp_path: Path, made: Checkout, partial: bool) -> None:
    made.git("config", "uploadpack.allowFilter", str(partial).lower())
    first = made.id("HEAD")
    made.write("large", os.urandom(100_000))
    second = made.commit()
    here = mirror(tmp_path, made)
    assert here.commit(first[:8]) == first
    missing = here._missing(first, ())
    assert bool(missing) == partial
    here.bring(first, ["old"])
    assert len(here._missing(first, ())) == (len(missing) - 2 if partial else 0)
    here.bring(first)
    assert here._missing(first, ()) == []
    assert bool(here._missing(second, ())) == partial
    (scratch := tmp_path / "scratch").mkdir()
    result = unpatch(delivery.series(here, second, None), into=tmp_path / "out", scratch=scratch)
    assert result.tree == made.id("HEAD^{tree}") == here.tree(second)
    assert (tmp_path / "out" / "large").stat().st_size == 100_000
    assert made.git("status", "--porcelain") == b""


@pytest.mark.integration
def test_revisions_mean_what_they_say(tmp_path: Path, made: Checkout) -> None:
    first = made.id("HEAD")
    made.git("tag", "light")
    made.git("tag", "-m", "heavy", "heavy/v1.0")
    made.git("branch", "topic/x")
    second = made.commit("second")
    here = mirror(tmp_path, made)
    assert {name: here.commit(name) for name in ("light", "heavy/v1.0", "topic/x", "main", "HEAD", first, second[:7])} == {
        "light": first, "heavy/v1.0": first, "topic/x": first, "main": second, "HEAD": second, first: first, second[:7]: second,
    }  # fmt: skip
    made.git("checkout", "-q", "--orphan", "lonely")
    kept = made.commit("reached from no branch")
    made.git("checkout", "-q", "main")
    made.git("branch", "-D", "lonely")
    assert here.commit(kept) == kept


@pytest.mark.integration
def test_a_name_in_digits_does_not_stand_in_for_the_commit_that_begins_with_them(tmp_path: Path, made: Checkout) -> None:
    first = made.id("HEAD")
    second = made.commit("second")
    for name in (first[:8], first):
        made.git("update-ref", f"refs/tags/{name}", second)
        made.git("update-ref", f"refs/heads/{name}", second)
    here = mirror(tmp_path, made)
    here.refresh()
    assert (here.commit(first[:8]), here.commit(first)) == (first, first)


@pytest.mark.integration
def test_branches_that_come_and_go_do_not_stop_a_refresh_or_lose_a_commit(tmp_path: Path, made: Checkout) -> None:
    made.git("branch", "topic")
    first = made.id("topic")
    here = mirror(tmp_path, made)
    here.refresh()
    made.git("commit", "-q", "--amend", "-m", "rewritten")
    made.git("branch", "-D", "topic")
    made.git("branch", "topic/deeper")
    here.refresh()
    names = here.repository.run("for-each-ref", "--format=%(refname)").split()
    assert names == ["refs/heads/main", "refs/heads/topic/deeper"]
    assert here.commit(first) == first


@pytest.mark.integration
@pytest.mark.parametrize(
    ("revision", "complaint"),
    [
        ("nothing", "there is no tag, branch or commit nothing"),
        ("1234567", "there is no tag, branch or commit 1234567"),
        ("1" * 40, "there is no commit 1111"),
        ("--output=x", "is not a commit, tag or branch"),
        ("main..topic", "is not a commit, tag or branch"),
        ("main^{tree}", "is not a commit, tag or branch"),
        ("HEAD:plain.py", "is not a commit, tag or branch"),
        ("refs/*", "is not a commit, tag or branch"),
        ("", "is not a commit, tag or branch"),
    ],
)
def test_a_revision_that_is_not_there_is_an_error(tmp_path: Path, made: Checkout, revision: str, complaint: str) -> None:
    with pytest.raises(PatchError, match=complaint) as caught:
        mirror(tmp_path, made).commit(revision)
    assert caught.value.exit_code == 3


@pytest.mark.integration
def test_a_file_or_a_tag_is_no_commit(tmp_path: Path, made: Checkout) -> None:
    made.git("tag", "-m", "heavy", "heavy")
    here = mirror(tmp_path, made)
    here.commit("heavy")
    for id in (made.id("HEAD:plain.py"), made.id("HEAD^{tree}"), made.id("heavy")):
        with pytest.raises(PatchError, match=f"there is no commit {id}"):
            here.commit(id)


@pytest.mark.integration
def test_a_tag_that_moves_is_an_error_with_both_commits_and_a_branch_may_move(tmp_path: Path, made: Checkout) -> None:
    first = made.id("HEAD")
    made.git("tag", "-m", "v1", "v1")
    here = mirror(tmp_path, made)
    assert (here.commit("v1"), here.commit("main"), here.commit("v1", pinned=first)) == (first,) * 3
    second = made.commit("second")
    made.git("tag", "-f", "-m", "v1 again", "v1")
    for pinned in ("", first):
        with pytest.raises(PatchError, match=f"tag v1 was {first}, it is {second} now"):
            mirror(tmp_path, made).commit("v1", pinned=pinned)
    with pytest.raises(PatchError, match=f"tag v1 was {first}, it is {second} now"):
        Mirror(Store(tmp_path / "another"), str(made.folder)).commit("v1", pinned=first)
    assert (here.commit("main"), here.commit("main", pinned=first)) == (second, first)
    assert here.commit(first) == first


@pytest.mark.integration
def test_offline_it_works_from_the_mirror_and_says_what_it_lacks(tmp_path: Path, made: Checkout) -> None:
    first = made.id("HEAD")
    made.git("tag", "v1")
    online = mirror(tmp_path, made)
    online.commit("v1")
    online.bring(first)
    second = made.commit("second")
    offline = mirror(tmp_path, made, offline=True)
    offline.bring(first)
    assert (offline.commit("v1"), offline.commit(first[:7]), offline.commit(first)) == (first,) * 3
    for act in (lambda: offline.commit(second), lambda: offline.commit("main"), lambda: offline.bring(second)):
        with pytest.raises(PatchError) as caught:
            act()
        assert "network" in caught.value.next_step
    made.folder.rename(gone := tmp_path / "gone")
    made.folder.mkdir()
    assert mirror(tmp_path, made).commit("v1") == first
    with pytest.raises(PatchError, match="cannot be fetched: "):
        mirror(tmp_path, made).commit("v2")
    assert gone.is_dir()


@pytest.mark.integration
def test_two_builds_at_once_fill_one_mirror(tmp_path: Path, made: Checkout) -> None:
    made.git("config", "uploadpack.allowFilter", "true")
    tree = vendors.vendors_tree(made, SHAPES["several commits"])
    commit = made.id("vendor")
    program = (
        "import sys; from pathlib import Path; from release.patches import delivery; from release.patches.mirror import Mirror\n"
        "from release.patches.unpatch import unpatch; from release.store import Store; here, commit, out = sys.argv[1:]\n"
        "mirror = Mirror(Store(Path(here) / 'store'), here + '/source'); assert mirror.commit('vendor') == commit\n"
        "print(unpatch(delivery.series(mirror, commit, None), into=Path(here) / out, scratch=Path(here)).tree)\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), commit, f"out{number}"], stdout=subprocess.PIPE, text=True
        )
        for number in range(4)
    ]
    assert [process.communicate()[0].strip() for process in running] == [tree] * 4
    assert sorted(path.name for path in (tmp_path / "store" / "mirrors").iterdir()) == [mirror(tmp_path, made).folder.name]


@pytest.mark.integration
def test_what_a_killed_fetch_left_is_cleared_away(tmp_path: Path, made: Checkout) -> None:
    here = mirror(tmp_path, made)
    here.commit("main")
    (stale := here.objects / "pack" / "tmp_pack_1").write_bytes(b"half")
    (lock := here.directory / "refs" / "heads" / "main.lock").parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    made.commit("second")
    assert here.commit("main") == made.id("HEAD")
    assert not stale.exists() and not lock.exists()


@pytest.mark.integration
def test_the_users_own_way_to_a_server_is_taken(tmp_path: Path, made: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home := tmp_path / "home"))
    home.mkdir()
    (ssh := home / "ssh").write_text(f'#!/bin/sh\necho "$*" >> {home}/asked\nfor command; do :; done\neval "exec $command"\n')
    ssh.chmod(0o755)
    (home / "more").write_text(
        f'[core]\n sshCommand = {ssh}\n[url "ssh://git@internal.example{tmp_path}/"]\n insteadOf = https://git.example.org/\n'
    )
    (home / ".gitconfig").write_text(f"[include]\n path = {home}/more\n[core]\n fsmonitor = {ssh}\n")
    here = Mirror(Store(tmp_path / "store"), "https://git.example.org/source")
    assert here.commit("main") == made.id("HEAD")
    assert "git@internal.example" in (home / "asked").read_text()
    here.bring(made.id("HEAD"))
    assert here.name == "https://git.example.org/source"


@pytest.mark.integration
def test_an_interrupted_fetch_ends_with_us_and_the_mirror_is_as_good_as_before(
    tmp_path: Path, made: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ssh := tmp_path / "ssh").write_text(f"#!/bin/sh\necho $$ $PPID > {tmp_path}/pids\ncat >&2\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(ssh))
    program = (
        "import sys; from pathlib import Path; from release.patches.mirror import Mirror; from release.store import Store\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"try: Mirror(Store(Path(sys.argv[1]) / 'store'), 'ssh://git.example.org{made.folder}').commit('main')\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as running:
        assert wait_until(lambda: (tmp_path / "pids").is_file() and (tmp_path / "pids").read_text().endswith("\n"), timeout=60)
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=60)[0].strip() == "interrupted"
    pids = (tmp_path / "pids").read_text().split()
    assert wait_until(lambda: not any(Path("/proc", pid).exists() for pid in pids), timeout=20)
    ssh.write_text('#!/bin/sh\nfor command; do :; done\neval "exec $command"\n')
    assert Mirror(Store(tmp_path / "store"), f"ssh://git.example.org{made.folder}").commit("main") == made.id("HEAD")


@pytest.mark.integration
def test_of_the_users_configuration_only_the_way_to_servers_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".gitconfig").write_text(
        "[http]\n proxy = http://proxy.example:3128\n sslVerify\n[credential]\n helper =\n helper = store\n[core]\n pager = evil\n"
        '[http "https://git.example.org"]\n extraHeader = X: y\n[credential "https://git.example.org"]\n username = me\n'
        '[alias]\n fetch = !evil\n[fetch]\n prune = true\n[protocol]\n allow = always\n[remote "origin"]\n uploadpack = evil\n'
    )
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "http.userAgent")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "me/1.0")
    (folder := tmp_path / "private").mkdir()
    repository = Repository.create(folder, "here")
    lines = repository.reach("config", "--list", "--show-scope").splitlines()
    assert [line.split("\t")[1] for line in lines if line.startswith("command")] == [
        "http.proxy=http://proxy.example:3128", "http.sslverify=true", "credential.helper=", "credential.helper=store",
        "http.https://git.example.org.extraheader=X: y", "credential.https://git.example.org.username=me", "http.useragent=me/1.0",
    ]  # fmt: skip
    assert not any(line.startswith(("global", "system")) for line in lines)
    assert not any("evil" in line for line in repository.run("config", "--list").splitlines())


@pytest.mark.integration
@pytest.mark.parametrize(
    "way", ["ext::sh -c 'touch {}'", "git://127.0.0.1:1/x", "http://127.0.0.1:1/x", "https://rewritten.example/"]
)
def test_git_itself_refuses_every_other_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "ext:git:http")
    (tmp_path / ".gitconfig").write_text(
        f"[protocol]\n allow = always\n[url \"ext::sh -c 'touch {tmp_path}/canary' \"]\n insteadOf = https://rewritten.example/\n"
    )
    (folder := tmp_path / "private").mkdir()
    with pytest.raises(PatchError, match=r"transport '[a-z]+' not allowed"):
        Repository.create(folder, "here").reach("ls-remote", way.format(tmp_path / "canary"))
    assert not (tmp_path / "canary").exists()
