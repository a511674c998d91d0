"""Images on their way to hosts: pushed once to a registry that both sides reach, pulled there by digest, and held to what was built."""

from __future__ import annotations

import re
from typing import Final

from release.containers import Engine
from release.errors import EngineError, HostError, ReleaseError, StagingError
from release.oci import Descriptor, Layout
from release.progress import Line
from release.publish.credentials import stored_credentials
from release.publish.distribution import MANIFESTS
from release.publish.reference import Reference
from release.publish.registry import push, walk
from release.types import Staging

TAG: Final = "staged-{}"
"""The tag of a staged image, made of its digest so that it is no release's; a registry throws away what no tag names."""

OF_HOST: Final = (
    (r"no space left", "free some space on the host, or move its engine's data to another disk"),
    (r"x509:", "give the host's engine the registry's certificate: /etc/docker/certs.d/HOST:PORT/ca.crt"),
    (
        r"HTTP response to HTTPS client",
        "let the registry speak TLS, or let the host's engine do without: insecure-registries (docker), insecure (podman, registries.conf)",
    ),
    (r"no such host|server misbehaving", "name the registry in hosts.yaml as the host knows it"),
    (
        r"connection refused|no route to host|network is unreachable|i/o timeout|deadline exceeded"
        r"|Client\.Timeout|handshake timeout|Read timed out",
        "start the registry, or open the way from the host to it",
    ),
)
"""What engines say where one host does not get at a registry, and the next step: another host may."""
OF_REGISTRY: Final = (
    (r"unauthorized|denied|authentication required|no basic auth", "docker login {host}, here: the login is handed on"),
    (r"verification failed|does not match", "do not trust this registry: it answers with other content than it was asked for"),
    (r"not found|unknown", "is {there} the same repository as {here}? if so, delete the tag {tag} there, and try again"),
)
"""What engines say where the registry is at fault, and the next step: other hosts meet the same."""
OTHER_ID: Final = "its engine must name images by the digests of their configs: turn containerd's image store off, where it is on"


def stage(staging: Staging, layout: Layout, manifest: Descriptor, line: Line) -> None:
    """Put an image of a layout into the registry; where it is there already, that costs one question. Raises StagingError."""
    here = Reference.parse(f"{staging.here}:{_tag(manifest)}")
    line.note(f"pushing the image to {staging.here}")
    try:
        line.expect(sum(blob.size for blob in walk(layout, manifest) if blob.media_type not in MANIFESTS), "bytes")
        push(layout, manifest, here, lambda blob, size: line.advance(size if blob.media_type not in MANIFESTS else 0), move=True)
    except ReleaseError as problem:
        raise StagingError(
            f"the image cannot be pushed to {staging.here}: {problem.message}", next_step=problem.next_step
        ) from problem
    finally:
        line.expect(None, "")


def collect(staging: Staging, host: str, engine: Engine, manifest: Descriptor, image: str, line: Line) -> None:
    """Have the engine of a host pull a staged image by digest, with the login that is kept here for its registry and for no other.

    Raises HostError where the host does not get at it, or where what its engine then holds is not `image` (its id), and StagingError where
    the registry is at fault.
    """
    there = Reference.parse(f"{staging.there}@{manifest.digest}")
    try:
        login = stored_credentials(there.host)
        words = {"username": login.user, "password": login.password, "serveraddress": there.host} if login else {}
        held = engine.pull(str(there), lambda status: line.note(f"{host} pulls the image: {status}"), words)
    except ReleaseError as problem:
        raise refusal(staging, host, manifest, problem) from problem
    if held != image:
        raise HostError(f"{host} pulled {there} and holds {held}, not {image}", next_step=OTHER_ID)


def _tag(manifest: Descriptor) -> str:
    return TAG.format(manifest.digest.removeprefix("sha256:"))


def refusal(staging: Staging, host: str, manifest: Descriptor, problem: ReleaseError) -> HostError | StagingError:
    """Return the error for a pull that failed, with whoever is at fault by the engine's words."""
    told = problem.message.removeprefix(f"pulling {staging.there}@{manifest.digest}: ")
    for pattern, step in OF_HOST:
        if re.search(pattern, problem.message):
            return HostError(f"{host} cannot pull the image from {staging.there}: {told}", next_step=step)
    said = f"the image cannot be pulled from {staging.there}: {told}"  # of no host: one cause, whoever met it
    words = {"host": Reference.parse(staging.there).host, "there": staging.there, "here": staging.here, "tag": _tag(manifest)}
    for pattern, step in OF_REGISTRY:
        if isinstance(problem, EngineError) and re.search(pattern, problem.message):
            return StagingError(said, next_step=step.format(**words))
    return StagingError(said, next_step=problem.next_step or "release hosts check")
