"""The command that starts a release, in one form for all: what the card prints is what the validators run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from release.types import Container


def run_command(
    container: Container,
    *,
    image: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    memory: str | None,
    publish: str,
    weights: str,
    extra: Sequence[str] = (),
) -> list[str]:
    """Return the `docker run` line that starts a release: what the card prints and what the validators run.

    `publish` is host:port:port (left out on the host's own network, and where it is empty), `weights` the host folder that becomes
    /model, read-only. The container has a read-only root, no capabilities and no way to gain privileges, unless the chip's container
    contract says privileged.
    """
    line = ["docker", "run", *extra, "--read-only", "--tmpfs", "/tmp:exec" if container.exec_tmp else "/tmp"]
    line += ["--init"] if container.init else []
    line += ["--privileged"] if container.privileged else ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    for option in container.security_opt:
        line += ["--security-opt", option]
    for space, where in (("network", container.network), ("ipc", container.ipc), ("pid", container.pid), ("uts", container.uts)):
        line += [f"--{space}", "host"] if where == "host" else []
    line += ["--gpus", container.gpus] if container.gpus else []
    line += ["--shm-size", container.shm_size] if container.ipc != "host" else []
    line += ["--memory", memory] if memory else []
    for device in container.devices:
        line += ["--device", device]
    for name, value in container.ulimits.items():
        line += ["--ulimit", f"{name}={value}"]
    for mount in container.mounts:
        line += ["--volume", mount]
    line += ["--publish", publish] if publish and container.network != "host" else []
    line += ["--volume", f"{weights}:/model:ro"]
    for name, value in sorted({**container.env, **env}.items()):
        line += ["--env", f"{name}={value}"]
    return [*line, image, *argv]
