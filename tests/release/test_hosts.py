"""Three hosts over real ssh, one engine behind them: servers run there, devices are leased, and what breaks costs no cell."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import far
import pytest
import requests
from night import JOURNAL, Silent
from sshd import Sshd
from yard import ADDRESSES, Yard, yard

from release import leases
from release.build import Runner
from release.cluster import Cluster
from release.containers import Engine
from release.errors import EngineError, ReleaseError, StageError
from release.fleet import Fleet
from release.guard import Guard
from release.matrix.load import Matrix
from release.pipeline import Graph, Stage, Task, Work, digest
from release.progress import Progress
from release.schedule import Limits, carry_out
from release.session import Session
from release.store import Store
from release.types import Seat
from release.validators import serving
from release.validators.serving import Server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

__all__ = ["yard"]
IMAGE = "release-test-busybox:1"


@pytest.fixture
def fleet(yard: Yard) -> Iterator[Fleet]:
    yard.sshds = {"anvil": yard.sshds["anvil"]}
    yard.sshds["anvil"].start()
    guard = Guard()
    made = Fleet(yard.hosts(), {"cpu": Matrix().chip("cpu")}, lambda: guard, lasts=2.0)
    yield made
    made.close()
    guard.close()


def provide_busybox(engine: Engine, folder: Path) -> str:
    """Make an image of one static program that can serve a page."""
    if not engine.has(IMAGE):
        with tarfile.open(folder / "busybox.tar", "w") as archive:
            archive.add("/bin/busybox", "bin/busybox")
            page = tarfile.TarInfo("www/health")
            page.size = 2
            archive.addfile(page, io.BytesIO(b"ok"))
        engine.import_rootfs(folder / "busybox.tar", IMAGE)
    return IMAGE


def serve(place_flags: tuple[str, ...], weights: str, image: str) -> list[str]:
    return [
        *place_flags,
        "--init",
        "--volume",
        f"{weights}:/model:ro",
        image,
        "/bin/busybox",
        "httpd",
        "-fvv",
        "-p",
        "8000",
        "-h",
    ]


def test_a_server_on_a_host_is_reached_through_its_ssh_with_weights_that_were_copied_there(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "health").write_text("weights\n")
    seat = Seat(host="anvil", chip="cpu", devices=1)
    with ExitStack() as stack:
        place = stack.enter_context(fleet.sit(seat, "cpu/tiny@bf16"))
        image = provide_busybox(place.engine, tmp_path)
        volume = fleet.weights("anvil", tmp_path / "weights", tmp_path, digest(str(tmp_path)))
        assert fleet.weights("anvil", tmp_path / "weights", tmp_path, digest(str(tmp_path))) == volume, "copied once"
        server = serving.start(
            place.engine,
            fleet._guard(),
            stack,
            lambda publish, extra: ["docker", "run", *extra, "--publish", publish, *serve(place.flags, volume, image), "/model"],
            health="/health",
            within=30,
            port=8000,
        )
        assert requests.get(server.url + "/health", timeout=5).text == "weights\n"
        (lease,) = [lease for lease in leases.leases(place.engine) if lease.device == f"cpu/anvil-{os.getpid()}"]
        assert lease.owner == leases.myself() and lease.note == "cpu/tiny@bf16" and lease.left > 0
        assert server.last_words() == "", "it runs"
        place.engine.client.kill(server.container)
        assert "response:200" in server.last_words(5.0)
    assert not fleet.engine("anvil").labelled(f"release.held-by={place.grant.token}")
    assert not fleet.engine("anvil").labelled(f"release.token={place.grant.token}")
    for facts in fleet.engine("anvil").labelled(f"release.weights={volume}"):
        fleet.engine("anvil").remove(facts["Id"])
    fleet.engine("anvil").client.remove_volume(volume)


def test_a_host_whose_key_is_not_known_is_refused(yard: Yard) -> None:
    yard.sshds["anvil"].start(known=False)
    yard.sshds = {"anvil": yard.sshds["anvil"]}
    with (
        contextlib.closing(Guard()) as guard,
        contextlib.closing(Fleet(yard.hosts(), {}, lambda: guard)) as fleet,
        pytest.raises(EngineError, match="Host key verification failed"),
    ):
        fleet.engine("anvil")


def test_of_two_builds_one_has_the_device_and_the_other_waits(
    engine: Engine, yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, said, order = [f"one-{os.getpid()}"], list[str](), list[str]()
    monkeypatch.setattr(leases, "POLL", 0.1)

    def second() -> None:
        with leases.leased(engine, "here", "cpu", ids, 1, note="second", say=said.append):
            order.append("second")

    with leases.leased(engine, "here", "cpu", ids, 1, note="first"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(1.0)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"] and "held by" in said[0]


def test_a_lease_is_put_off_while_its_holder_lives_and_taken_when_it_has_expired(engine: Engine, yard: Yard) -> None:
    device, chip = f"two-{os.getpid()}", "cpu"
    image = leases.provide_canary(engine)
    left = leases._take(engine, image, f"{chip}/{device}", "dead-token", "a build that died", 1.0)
    server = engine.claim(f"left-{os.getpid()}", image, {"release.held-by": "dead-token"})
    assert left and leases._take(engine, image, f"{chip}/{device}", "other", "too early", 1.0) == ""
    time.sleep(1.2)
    with leases.leased(engine, "here", chip, [device], 1, note="heir", lasts=1.0) as grant:
        assert engine.running(server) == (False, -1), "what the dead build had started is gone"
        time.sleep(2.5)
        assert not grant.lost.is_set()
        assert leases._take(engine, image, f"{chip}/{device}", "other", "still held", 1.0) == ""
    assert [lease for lease in leases.leases(engine) if lease.device.endswith(device)] == []


def test_who_loses_a_lease_hears_of_it(engine: Engine, yard: Yard) -> None:
    with leases.leased(engine, "here", "cpu", [f"three-{os.getpid()}"], 1, note="loser", lasts=1.0) as grant:
        for facts in engine.labelled(f"release.token={grant.token}"):
            engine.remove(facts["Id"])
        assert grant.lost.wait(3)


def test_our_own_dead_leases_are_known_by_their_free_lock_and_living_ones_are_left(engine: Engine, yard: Yard) -> None:
    image = leases.provide_canary(engine)
    leases._take(engine, image, f"cpu/dead-{os.getpid()}", f"dead-{os.getpid()}", "killed", 60.0)
    with leases.leased(engine, "here", "cpu", [f"live-{os.getpid()}"], 1, note="alive"):
        found = [lease for lease in leases.dead(engine, "here") if lease.device.endswith(str(os.getpid()))]
        assert [lease.note for lease in found] == ["killed"]
        leases.clear(engine, found[0].token)
    assert [lease for lease in leases.leases(engine) if lease.device.endswith(str(os.getpid()))] == []


HOLD = """
import sys, time
from release.fleet import Fleet
from release.guard import Guard
from release.matrix.load import Matrix
from release.types import Hosts, Seat
guard = Guard()
fleet = Fleet(Hosts.model_validate_json(open(sys.argv[1]).read()), {"cpu": Matrix().chip("cpu")}, lambda: guard)
with fleet.sit(Seat(host="anvil", chip="cpu", devices=1), "held"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_build_that_is_killed_frees_its_devices_at_once(engine: Engine, yard: Yard, tmp_path: Path) -> None:
    yard.sshds = {"anvil": yard.sshds["anvil"]}
    yard.sshds["anvil"].start()
    (tmp_path / "hosts.json").write_text(yard.hosts().model_dump_json(by_alias=True))

    def mine() -> list[leases.Lease]:
        return [lease for lease in leases.leases(engine) if lease.device == f"cpu/anvil-{os.getpid()}"]

    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "hosts.json")], stdout=subprocess.PIPE) as build:
        assert build.stdout is not None and build.stdout.readline() == b"held\n"
        (lease,) = mine()
        build.kill()
    deadline = time.monotonic() + lease.left - 10
    while mine() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert mine() == [], "long before it would have expired"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.timeout(1800)
def test_chaos(yard: Yard, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One host dies in a stage, one stalls, one fills its disk, and a machine of a Ray cluster dies; every cell ends
    right, nothing is there by half, no lease is left."""
    chance = random.Random(20)
    disks = dict(zip(chance.sample(sorted(ADDRESSES), 3), ("dies", "stalls", "fills"), strict=True))
    filling = next(name for name, fate in disks.items() if fate == "fills")
    with small_disk(tmp_path / filling):
        try:
            with ExitStack() as stack:
                _chaos(yard, engine, disks, _cluster(yard, stack))
        finally:
            with capsys.disabled():
                print("\n" + "\n".join(yard.log))


def _cluster(yard: Yard, stack: ExitStack) -> Runner:
    """Return what makes a run over a cluster, of which a machine dies when a stage is on it."""
    told = yard.root / "results" / "lasting"
    machines = stack.enter_context(far.machines(**{JOURNAL: str(yard.root / "journal")}))
    machines.add("doomed")

    def kill() -> None:
        far.until(told.is_file)
        machines.kill("doomed")
        yard.say("a machine of the cluster dies")

    threading.Thread(target=kill, daemon=True).start()
    return stack.enter_context(Cluster.join(machines.address)).run


def _chaos(yard: Yard, engine: Engine, fates: dict[str, str], runner: Runner) -> None:
    for sshd in yard.sshds.values():
        sshd.start()
    (yard.root / "spare").mkdir()
    yard.sshds["spare"] = Sshd(yard.root, "127.0.0.5")
    yard.sshds["spare"].start()
    store, tasks, tried, struck = Store(yard.root / "results"), dict[str, Task](), Counter[str](), set[str]()
    lock = threading.Lock()

    def strike(host: str) -> None:
        """Do to a host what is meant for it, when its first stage runs."""
        fate = fates.get(host)
        with lock:
            if fate is None or host in struck:
                return
            struck.add(host)
        yard.say(f"{host} {fate}")
        if fate == "fills":
            (yard.root / host / "junk").write_bytes(bytes((4 << 20) - 4096))
        else:
            yard.sshds[host].send(signal.SIGKILL if fate == "dies" else signal.SIGSTOP)

    def work(given: Work) -> str:
        session, key = given.session, given.task.server
        seat = session.seat_of(key)
        assert seat is not None and session.fleet is not None
        fleet = session.fleet

        def start(stack: ExitStack) -> Server:
            place = stack.enter_context(fleet.sit(seat, given.task.cell))
            return Server(seat.host, "", (), 0.0, place.engine)

        session.server(key, start)
        with lock:
            tried[given.task.key] += 1
        name = given.task.stage.name
        yard.say(f"{given.task.cell} {name} on {seat.host}")
        if name == "bad":
            raise StageError("the cell itself is wrong")
        (given.out / "half").write_text("begun")
        strike(seat.host)
        folder = yard.root / seat.host
        disk = f"dd if=/dev/zero of={folder}/sample-{given.task.key[:8]} bs=65536 count=8 2>&1 && " if folder.is_dir() else ""
        (given.out / "answer").write_text("\n".join(fleet.run(seat.host, ["sh", "-c", f"{disk}sleep 0.2 && echo done"])[-1:]))
        return "done"

    for number in range(5):
        server, cell = digest(f"serve {number}"), f"cpu/cell-{number}@bf16"
        names = ("serve", "accuracy") if number else ("serve", "bad")
        told = {"seconds": 0.0, "doomed": ["doomed"], "number": number}
        first = digest(told)
        tasks[first] = Task(Stage("prepare", 1, (), lambda plan, matrix: {}, far.lasting), cell, told, {}, first)
        needs = {"prepare": first}
        for name in names:
            key = digest(f"{name} {number}")
            stage = Stage(name, 1, tuple(needs), lambda plan, matrix: {}, work)
            tasks[key] = Task(stage, cell, {}, dict(needs), key, {"device:cpu": 1}, server)
            needs = {name: key}
    hosts = yard.hosts()
    session = Session(hosts=(hosts, {"cpu": Matrix().chip("cpu")}))
    assert session.fleet is not None
    session.fleet._lasts = 4.0
    run = runner(Graph(tasks, {}), Matrix(), store, session, cast(Progress, Silent()))
    ledger = carry_out(run.graph, list(tasks), run, Limits(4, {}, hosts.lent), keep_going=True)
    for line in ledger.moved:
        yard.say(f"moved: {line}")
    for host, fate in fates.items():
        yard.sshds[host].send(signal.SIGCONT)
        if fate == "dies":
            yard.sshds[host].end()
            yard.sshds[host].start()
    session.close()
    _judge(yard, engine, store, tasks, ledger, session.fleet, tried)


def _judge(yard: Yard, engine: Engine, store: Store, tasks: dict[str, Task], ledger, fleet: Fleet, tried: Counter[str]) -> None:  # type: ignore[no-untyped-def]
    bad = digest("bad 0")
    assert {key: str(failure.message) for key, failure in ledger.failed.items() if isinstance(failure, ReleaseError)} == {
        bad: "the cell itself is wrong"
    }, [repr(failure) for failure in ledger.failed.values()]
    assert tried[bad] == 1, "a cell at fault is not tried elsewhere"
    assert set(fleet.faulty) == set(ADDRESSES), fleet.faulty
    assert len(ledger.moved) >= 3
    assert any("prepare: its machine was lost" in text for text in ledger.moved)
    for key, task in tasks.items():
        assert store.has(key) == (key != bad)
        if key != bad and task.server:
            assert (store.get(key) / "answer").read_text() == "done", "what is there is whole"
            assert store.facts(key)["host"] in yard.sshds
    with store.in_use():  # as the next build: what a machine had half done when it was killed goes now
        assert not list((store.path / "tmp").iterdir())
    deadline = time.monotonic() + 60
    mine = [lease for lease in leases.leases(engine) if lease.device.endswith(f"-{os.getpid()}")]
    assert all(lease.token in fleet.left for lease in mine)
    while mine and time.monotonic() < deadline:
        time.sleep(0.5)
        mine = [lease for lease in leases.leases(engine) if lease.device.endswith(f"-{os.getpid()}")]
    yard.say(f"hosts at fault: {'; '.join(f'{name}: {reason}' for name, reason in sorted(fleet.faulty.items()))}")
    yard.say(f"{len(ledger.ran)} stages ran, {len(ledger.failed)} failed, {len(ledger.moved)} moved, {len(mine)} leases left")
    assert mine == []
