"""Hosts whose engines are scripted: what a fleet asks of them, and two names for one engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import unquote

import pytest
from distribution import Answer, Scripted, Seen, distribution, scripted

from release import fleet as fleets
from release.canary import _rootfs, lay_out_canary
from release.containers import Engine, engine_at
from release.doctor import bridge
from release.errors import HostError
from release.fleet import Fleet
from release.guard import Guard
from release.leases import _locked_here, dead
from release.matrix.load import Matrix
from release.oci import Layout, sha256
from release.preflight import _registry, check
from release.types import Hosts, Seat, Staging

pytestmark = pytest.mark.integration
LEASE = {
    "Id": "c0",
    "Created": 1.8e9,
    "Names": ["/release-lease-cpu-0"],
    "Labels": {"release.lease": "cpu/0", "release.owner": "us@here", "release.token": "t", "release.note": "n"},
}


class Docker:
    """The script of an engine that has an ID, leases, and images as they are pulled."""

    def __init__(self, identity: str, kind: str = "Engine") -> None:
        self.identity, self.kind = identity, kind
        self.image, self.held, self.moved = "", False, 0
        """The id of what is to be pulled, whether it is there, and how often it had to be brought."""

    def __call__(self, seen: Seen) -> Answer:
        path, found = re.sub(r"^/v[0-9.]+", "", seen.path), Answer(404, b'{"message": "there is no such thing"}')
        if path == "/version":
            found = said({"Version": "29.1", "ApiVersion": "1.44", "Components": [{"Name": self.kind}]})
        elif path == "/info":
            found = said({"ID": self.identity, "Architecture": "x86_64", "SystemTime": "2026-11-28T14:00:00Z"})
        elif path == "/networks/bridge" and self.kind == "Engine":
            found = said({"Options": {"com.docker.network.bridge.name": "docker7"}})
        elif path.startswith("/containers/json"):
            found = said([LEASE])
        elif path.startswith("/images/create"):
            self.moved, self.held = self.moved + (not self.held), True
            found = said({"status": "Pull complete"})
        elif self.held and seen.method == "DELETE" and path.startswith(f"/images/{self.image}?"):
            self.held, found = False, said([])
        elif self.held and seen.method == "GET" and path.startswith("/images/"):
            found = said({"Id": self.image})
        return found


def said(document: object) -> Answer:
    return Answer(body=json.dumps(document).encode(), headers={"Content-Type": "application/json"})


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ExitStack() as made:
        yield made


def engine_of(server: Scripted) -> Engine:
    return engine_at(f"tcp://{server.host}", server.host, (), None)


def fleet_of(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, **engines: Docker) -> Fleet:
    """Return a fleet of hosts with such engines."""
    servers = {f"unix:///{name}": stack.enter_context(scripted(script)) for name, script in engines.items()}
    monkeypatch.setattr(fleets, "engine_at", lambda address, shown, reach, forward: engine_of(servers[address]))
    hosts = {name: {"docker": f"unix:///{name}", "chips": {"cpu": {"devices": 1}}} for name in engines}
    guard = stack.enter_context(closing(Guard()))
    return stack.enter_context(
        closing(Fleet(Hosts.model_validate({"hosts": hosts}), {"cpu": Matrix().chip("cpu")}, lambda: guard))
    )


def test_two_names_for_one_engine_are_refused_whoever_asks_and_both_are_named(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_of(stack, monkeypatch, anvil=Docker("ID:1"), bellows=Docker("ID:1"), crane=Docker("ID:2"))
    assert [fleet.engine(name).identity for name in ("anvil", "crane", "anvil")] == ["ID:1", "ID:2", "ID:1"]
    seat = Seat(host="bellows", chip="cpu", devices=1)
    with pytest.raises(HostError, match="anvil and bellows are one engine, whose ID is ID:1"), fleet.sit(seat, "cell"):
        pytest.fail("a device was leased by its host's second name")
    assert "anvil and bellows are one engine" in fleet.fault(seat)
    found = check(fleet)["bellows"]
    assert [(one.what, one.state) for one in found] == [("engine", "missing")] and "anvil and bellows" in found[0].found


def test_an_engine_without_an_id_that_lasts_is_told_from_no_other(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = fleet_of(stack, monkeypatch, anvil=Docker("ID:1", "Podman Engine"), bellows=Docker(""), crane=Docker(""))
    assert [fleet.engine(name).identity for name in fleet.hosts.hosts] == ["", "", ""]


def test_a_lease_that_lives_is_not_called_dead_by_its_hosts_other_name(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("release.leases.myself", lambda: "us@here")
    engine = engine_of(stack.enter_context(scripted(Docker("AB:CD/1"))))
    with ExitStack() as held:
        assert _locked_here(held, engine.identity, "cpu/0")
        assert dead(engine, "anvil") == dead(engine, "bellows") == []
    assert [lease.device for lease in dead(engine, "bellows")] == ["cpu/0"]


def test_a_bridge_whose_address_its_containers_decide_is_told_of_with_the_way_out(stack: ExitStack) -> None:
    engine = engine_of(stack.enter_context(scripted(Docker("ID:1"))))
    files = {"/sys/class/net/docker7/addr_assign_type": "1\n", "/sys/class/net/docker7/address": "ea:30:e6:9e:23:6a\n"}
    (told,) = bridge(engine, files.__getitem__)
    assert told.state == "note" and told.next_step.endswith("sudo ip link set docker7 address ea:30:e6:9e:23:6a")
    assert bridge(engine, (files | {"/sys/class/net/docker7/addr_assign_type": "3\n"}).__getitem__) == []

    def elsewhere(path: str) -> str:
        raise HostError(f"cat: {path}: No such file or directory")

    assert bridge(engine, elsewhere) == [], "an engine in a machine of its own"
    assert bridge(engine_of(stack.enter_context(scripted(Docker("", "Podman Engine")))), elsewhere) == []


def test_each_check_of_a_registry_has_the_host_pull_anew(stack: ExitStack, tmp_path: Path) -> None:
    place = f"{stack.enter_context(distribution(tmp_path)).host}/staging"
    script = Docker("ID:1")
    server = stack.enter_context(scripted(script))
    manifest, script.image = lay_out_canary(Layout.create(tmp_path / "canary"), "x86_64")
    for _ in range(2):
        finding = _registry(Staging(there=place, here=place), "anvil", engine_of(server), "x86_64")
        assert (finding.state, "by digest" in finding.found) == ("ok", True), finding
    order = [seen for seen in server.seen if "/images/" in seen.path and seen.method in ("DELETE", "POST")]
    assert [seen.method for seen in order] == ["DELETE", "POST", "DELETE", "POST"]
    assert all(script.image in seen.path for seen in order[::2]) and all(manifest.digest in unquote(s.path) for s in order[1::2])
    assert script.moved == 2


def test_the_canary_that_is_pulled_shares_no_layer_with_the_one_that_is_imported(tmp_path: Path) -> None:
    layout = Layout.create(tmp_path)
    _, image = lay_out_canary(layout, "x86_64")
    (layer,) = json.loads(layout.blob(image).read_bytes())["rootfs"]["diff_ids"]
    assert layer != sha256(_rootfs("x86_64"))
