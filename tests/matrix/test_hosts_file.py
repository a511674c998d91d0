"""hosts.yaml: strict, with file, line and key, and nothing in it that could become another word of a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from release.errors import MatrixError
from release.house import House
from release.types import Hosts, Staging

GOOD = """\
hosts:
  rack-a:
    docker: ssh://builder@rack-a.lab:2222
    chips: {cpu: {devices: 2, visible: MY_DEVICES}}
    labels: {site: lab}
    store: /srv/release
  here:
    docker: unix:///run/docker.sock
    chips: {cpu: {devices: [left, right]}}
"""


def hosts_of(tmp_path: Path, text: str) -> Hosts:
    (tmp_path / "hosts.yaml").write_text(text)
    known = House.open((), tmp_path / "store", "auto", tmp_path / "hosts.yaml").hosts()
    assert known is not None
    return known[0]


def test_hosts_lend_devices_by_number_or_by_name(tmp_path: Path) -> None:
    hosts = hosts_of(tmp_path, GOOD)
    lent = hosts.lent["device:cpu"]
    assert lent["rack-a"].ids == ("0", "1") and lent["here"].ids == ("left", "right")
    assert hosts.hosts["rack-a"].destination == ("-p", "2222", "-l", "builder", "rack-a.lab")
    assert hosts.hosts["here"].near and not hosts.hosts["rack-a"].near


def test_images_reach_other_machines_through_the_registry_for_all_or_one_of_their_own(tmp_path: Path) -> None:
    own = "    registry: {there: rack-b.lab:5000/staging, here: 127.0.0.1:5000/staging}\n"
    hosts = hosts_of(
        tmp_path,
        f"registry: registry.lab/staging\n{GOOD}  rack-b:\n    docker: ssh://rack-b\n    chips: {{cpu: {{devices: 1}}}}\n{own}",
    )
    assert hosts.staging("rack-a") == Staging(there="registry.lab/staging", here="registry.lab/staging")
    assert hosts.staging("rack-b") == Staging(there="rack-b.lab:5000/staging", here="127.0.0.1:5000/staging")
    assert hosts.staging("here") is None, "what is on this machine needs no way to it"
    assert hosts_of(tmp_path, GOOD).staging("rack-a") is None


def test_the_example_of_the_readme_is_what_it_says(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    example = text[text.index("```yaml\nregistry:") :].removeprefix("```yaml\n").partition("```")[0]
    hosts = hosts_of(tmp_path, example.replace("my-chip", "cpu"))
    assert [hosts.staging(name) for name in hosts.hosts] == [
        Staging(there="registry.lab/staging", here="registry.lab/staging"),
        Staging(there="rack-b.lab:5000/staging", here="127.0.0.1:5000/staging"),
        None,
    ]


@pytest.mark.parametrize("user", ["builder:hunter2", "builder:hun/ter2", "builder:hun@ter2", ":hunter2"])
def test_a_password_in_an_address_is_refused_and_not_repeated(tmp_path: Path, user: str) -> None:
    with pytest.raises(MatrixError, match=r"'ssh://…@rack-a.lab:2222' is not an engine's address") as refused:
        hosts_of(tmp_path, GOOD.replace("builder@", f"{user}@"))
    assert "ter2" not in f"{refused.value} {refused.value.next_step}"


def test_without_a_file_there_are_no_hosts(tmp_path: Path) -> None:
    assert House.open((), tmp_path, "auto").hosts() is None


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("ssh://builder@rack-a.lab:2222", "ssh://-oProxyCommand=touch", "docker"),
        ("ssh://builder@rack-a.lab:2222", "ssh://-l@rack-a", "docker"),
        ("ssh://builder@rack-a.lab:2222", "ssh://user:secret@rack-a", "without a password"),
        ("ssh://builder@rack-a.lab:2222", "tcp://rack-a:2375", "docker"),
        ("ssh://builder@rack-a.lab:2222", "ssh://rack-a/some/path", "docker"),
        ("/srv/release", "/srv/release:/etc", "store"),
        ("/srv/release", "../release", "store"),
        ("devices: 2", "devices: 0", "devices"),
        ("[left, right]", "[left, left]", "differ"),
        ("[left, right]", "[]", "ids that differ"),
        ("[left, right]", "['a;b']", "devices"),
        ("MY_DEVICES", "MY-DEVICES", "environment variable"),
        ("labels:", "lables:", "lables"),
        (
            "unix:///run/docker.sock",
            "ssh://builder@rack-a.lab:2222",
            "hosts.here.docker: ssh://builder@rack-a.lab:2222 is the engine of rack-a",
        ),
        ("chips: {cpu: {devices: 2, visible: MY_DEVICES}}", "chips: {cpuu: {devices: 2}}", "did you mean 'cpu'"),
        ("rack-a:\n", "Rack A:\n", "Rack A"),
        ("labels:", "registry: rack/staging\n    labels:", "rack-a.registry: 'rack/staging' is not a reference"),
        ("labels:", "registry: registry.lab/staging:1.0\n    labels:", "one image, not a repository"),
        (
            "labels:",
            "registry: me:secret@registry.lab/staging\n    labels:",
            "registry: '…@registry.lab/staging' is not a reference",
        ),
        ("labels:", "registry: {there: registry.lab/staging}\n    labels:", "here: is missing"),
        ("labels:", "registry: {there: registry.lab/a, here: 'http://registry.lab/a'}\n    labels:", "registry.here: 'http:"),
        ("labels:", "registry: {there: registry.lab/a, her: registry.lab/a}\n    labels:", "did you mean 'here'"),
        ("labels:", "registry: 5000\n    labels:", "registry"),
        ("hosts:\n", "registry: registry.lab\nhosts:\n", "registry: 'registry.lab' is not a reference"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, old: str, new: str, wanted: str) -> None:
    assert old in GOOD
    with pytest.raises(MatrixError, match=wanted) as caught:
        hosts_of(tmp_path, GOOD.replace(old, new, 1))
    assert "hosts.yaml:" in str(caught.value)
