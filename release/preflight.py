"""Whether hosts are fit to serve: engine, clock, disk, devices and driver of each, looked at from here over the way that a build takes."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from release.canary import lay_out_canary, send
from release.containers import Engine
from release.doctor import Finding, bridge
from release.errors import HostError, ReleaseError, UsageError
from release.fleet import Fleet
from release.guard import Guard
from release.hardware import older, read
from release.house import House
from release.leases import Lease, clear, clock_of, dead, leases
from release.oci import Layout
from release.progress import Plain
from release.staging import collect, stage
from release.types import Chip, Lent, Staging, Unknown

SKEW: Final = 5.0
"""Seconds by which a host's clock may differ from ours before it is told."""
ROOM: Final = 10e9
"""Bytes that images and weights of one server easily take."""


def fleet_of(house: House, stack: ExitStack) -> Fleet:
    """Return the hosts of a house, until the stack closes. Raises UsageError where it has none."""
    known = house.hosts()
    if known is None:
        raise UsageError("no hosts are known", next_step="name them in ./hosts.yaml, or say where that is with --hosts")
    guard = stack.enter_context(closing(Guard()))
    return stack.enter_context(closing(Fleet(*known, lambda: guard)))


def check(fleet: Fleet) -> dict[str, list[Finding]]:
    """Return the findings about every host, all looked at side by side."""
    with ThreadPoolExecutor(max(1, len(fleet.hosts.hosts))) as pool:
        return dict(zip(fleet.hosts.hosts, pool.map(lambda name: list(_host(fleet, name)), fleet.hosts.hosts), strict=True))


def require(findings: dict[str, list[Finding]]) -> None:
    """Raise HostError unless every host is fit."""
    unfit = [name for name, found in findings.items() if any(finding.state == "missing" for finding in found)]
    if unfit:
        raise HostError(
            f"{len(unfit)} of {len(findings)} hosts are not fit: {', '.join(unfit)}", next_step="see what is missing above"
        )


def _host(fleet: Fleet, name: str) -> Iterator[Finding]:
    host = fleet.hosts.hosts[name]
    try:
        engine = fleet.engine(name)
        began = time.time()
        facts = engine.facts()
        skew = clock_of(facts) - (began + time.time()) / 2
    except ReleaseError as problem:
        yield Finding("engine", "missing", problem.message, problem.next_step)
        return
    yield Finding(
        "engine", "ok", f"{engine.kind} {engine.version} on {facts.get('Name')}, {facts.get('Architecture')}, at {host.docker}"
    )
    yield from bridge(engine, lambda path: "\n".join(fleet.run(name, ["cat", path])))
    yield Finding("clock", "ok" if abs(skew) <= SKEW else "note", f"{skew:+.1f} s from ours")
    folders = [host.store] if host.store else []
    for folder in (*folders, str(facts.get("DockerRootDir", ""))):
        yield _disk(fleet, name, folder)
    if staging := fleet.hosts.staging(name):
        yield _registry(staging, name, engine, str(facts.get("Architecture", "")))
    for chip, lent in host.chips.items():
        yield from _chip(fleet, name, fleet.chips[chip], lent)
        try:
            send(engine, fleet.chips[chip].container, lambda argv: fleet.run(name, argv), folders)
            yield Finding(f"canary of {chip}", "ok", "started, ended well, and wrote")
        except ReleaseError as problem:
            yield Finding(f"canary of {chip}", "missing", problem.message)


def _registry(staging: Staging, name: str, engine: Engine, machine: str) -> Finding:
    """Send a canary's image the way that images go, a few hundred bytes. What the host has of an earlier check would not move: it goes first."""
    with tempfile.TemporaryDirectory(prefix="release-canary-") as folder:
        layout, line = Layout.create(Path(folder)), Plain(io.StringIO()).line(name, "registry")
        manifest, image = lay_out_canary(layout, machine)
        try:
            stage(staging, layout, manifest, line)
            engine.forget(image)
            collect(staging, name, engine, manifest, image, line)
        except ReleaseError as problem:
            return Finding("registry", "missing", problem.message, problem.next_step)
    return Finding("registry", "ok", f"an image that {staging.here} has from here was pulled by digest from {staging.there}")


def _disk(fleet: Fleet, name: str, folder: str) -> Finding:
    try:
        free = int(fleet.run(name, ["df", "-Pk", folder])[-1].split()[3]) * 1024
    except (ReleaseError, ValueError, IndexError):
        return Finding("disk", "note", f"how much is free at {folder} cannot be seen by this user")
    return Finding("disk", "ok" if free >= ROOM else "note", f"{free / 1e9:.1f} GB free at {folder}")


def _chip(fleet: Fleet, name: str, chip: Chip, lent: Lent) -> Iterator[Finding]:
    what, tool = f"chip {chip.id}", chip.host.tool
    if tool is None:
        yield Finding(
            what,
            "ok" if not chip.devices else "note",
            f"lends {len(lent.ids)}; nothing has to be asked" if not chip.devices else "nobody has said which tool shows it",
        )
        return
    try:
        found = read(tool, "\n".join(fleet.run(name, tool.command)))
    except ReleaseError as problem:
        yield Finding(what, "missing", f"{tool.command[0]}: {problem.message}", f"install the driver and tools of {chip.vendor}")
        return
    if tool.device is not None:
        enough = len(found.devices) >= len(lent.ids)
        yield Finding(what, "ok" if enough else "missing", f"{len(found.devices)} devices are shown, {len(lent.ids)} are lent")
    least = chip.host.driver
    if found.driver and not isinstance(least, Unknown):
        yield Finding("driver", "missing" if older(found.driver, least) else "ok", f"{found.driver}; wanted: {least} or newer")
    else:
        yield Finding(
            "driver",
            "note",
            f"{found.driver or 'version not shown'}; wanted: {'unknown' if isinstance(least, Unknown) else least}",
        )


def held(fleet: Fleet, *, release: bool, tell: Callable[[str, str], None]) -> dict[str, list[Lease]]:
    """Return the leases on every host that answers; `tell` hears of those that do not. With `release`, our own dead ones are freed first."""
    found: dict[str, list[Lease]] = {}
    for name in fleet.hosts.hosts:
        try:
            engine = fleet.engine(name)
            for lease in dead(engine, name) if release else ():
                clear(engine, lease.token)
                tell(name, f"freed {lease.device}, of {lease.owner}: its build is gone")
            found[name] = leases(engine)
        except ReleaseError as problem:
            tell(name, problem.message)
    return found
