"""What podman needs to be told on hosts where its defaults would start no container."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final

from release import processes
from release.errors import EngineError
from release.store import default_path, write_whole

WANTED: Final = 1 << 20
"""The hard limit of files and processes that podman's defaults ask for."""


def settings() -> dict[str, str]:
    """Return the environment that podman needs here: a containers.conf of ours where the defaults would start no container.

    That is so under low hard limits, and where crun meets hybrid cgroups that only runc can use. The file stays, because `release serve`
    becomes podman and needs it then. Elsewhere the user's own settings stand alone.
    """
    low = any(0 <= resource.getrlimit(limit)[1] < WANTED for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    hybrid = Path("/sys/fs/cgroup/unified").is_dir() and processes.find("runc")
    if not low and not hybrid:
        return {}
    text = (f"[containers]\ndefault_ulimits = [{_ulimits()}]\n" if low else "") + (
        '[engine]\nruntime = "runc"\n' if hybrid else ""
    )
    path = default_path() / "containers.conf"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as problem:
        raise EngineError(
            f"podman's settings cannot be written to {path}: {problem.strerror}", next_step="set RELEASE_STORE"
        ) from problem
    return {"CONTAINERS_CONF": str(path)}


def _ulimits() -> str:
    """Return limits that the kernel grants us: podman as root asks for more than its hard limit and then starts no container.

    For processes that holds even of the hard limit itself (seen with podman 4.3: 96365 of 96365 is refused, 32768 is not).
    """
    pairs = []
    for name, number, most in (("nofile", resource.RLIMIT_NOFILE, WANTED), ("nproc", resource.RLIMIT_NPROC, 1 << 15)):
        hard = resource.getrlimit(number)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(hard, most)
        pairs.append(f'"{name}={bound}:{bound}"')
    return ", ".join(pairs)
