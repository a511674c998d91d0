"""The hosts that a user has: where each one's engine is, and which chips it lends. Read from `hosts.yaml`."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import Field, model_validator

from release.types.words import ENV_NAME, Frozen, Slug, matching

URL: Final = re.compile(r"unix:///[^\s?#]+|ssh://([A-Za-z0-9_][\w.-]*@)?([A-Za-z0-9][\w.-]*|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?")
DEVICE: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")

Address = Annotated[
    str, matching(URL, "an engine's address such as unix:///run/docker.sock or ssh://user@host:22, without a password")
]
DeviceId = Annotated[str, matching(DEVICE, "a device's id such as 0")]
Folder = Annotated[str, matching(re.compile(r"/[^\s:]+"), "a folder of the host, from its root and without a colon")]


class Lent(Frozen):
    """The devices of one chip that a host lends: how many (they are called 0, 1, …), or their ids.

    `visible` is the environment variable that tells a container which of them are its own. Without it a server takes all of them.
    """

    devices: Annotated[int, Field(ge=1, le=1024)] | tuple[DeviceId, ...]
    visible: Annotated[str, matching(ENV_NAME, "the name of an environment variable")] | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """What the devices are called."""
        return tuple(map(str, range(self.devices))) if isinstance(self.devices, int) else self.devices

    @model_validator(mode="after")
    def _distinct(self) -> Lent:
        if not self.ids or len(set(self.ids)) < len(self.ids):
            raise ValueError("'devices' is a number, or ids that differ")
        return self


class Staging(Frozen):
    """A repository through which images reach hosts: `there` is its name as hosts know it, `here` as this machine does."""

    there: str
    here: str


class LentHost(Frozen):
    """One host: `docker` is its engine's address, `chips` what it lends, `labels` what a person wants to know.

    `store` is where the host itself sees the store of the builds (a shared folder): weights are then mounted from there; without it they
    are copied into a volume of its engine. `registry` is the repository through which images reach it, in place of the one for all.
    """

    docker: Address
    chips: dict[Slug, Lent] = Field(min_length=1)
    labels: dict[str, str] = {}
    store: Folder | None = None
    registry: Staging | str | None = None

    @property
    def near(self) -> bool:
        """Whether the engine is this machine's own."""
        return self.docker.startswith("unix:")

    @property
    def destination(self) -> tuple[str, ...]:
        """The words that tell ssh where to: `-p 22 -l user host`."""
        user, _, place = self.docker.removeprefix("ssh://").rpartition("@")
        name, port = re.fullmatch(r"(.*?)(?::([0-9]+))?", place).groups()  # type: ignore[union-attr]
        return (*(("-p", port) if port else ()), *(("-l", user) if user else ()), name.strip("[]"))


class Hosts(Frozen):
    """All hosts, by name. `registry` is the repository through which images reach those on other machines; without one they are streamed."""

    hosts: dict[Slug, LentHost] = Field(min_length=1)
    registry: Staging | str | None = None

    @property
    def lent(self) -> dict[str, dict[str, Lent]]:
        """What there is to be used: by resource (`device:CHIP`) and host, the devices."""
        found: dict[str, dict[str, Lent]] = {}
        for name, host in self.hosts.items():
            for chip, lent in host.chips.items():
                found.setdefault(f"device:{chip}", {})[name] = lent
        return found

    def staging(self, name: str) -> Staging | None:
        """Return the repository through which images reach a host: its own, else the one for all other machines, if there is one."""
        host = self.hosts[name]
        found = host.registry if host.registry is not None or host.near else self.registry
        return Staging(there=found, here=found) if isinstance(found, str) else found


class Seat(Frozen):
    """Where a server is to be: on which host, on how many devices of which chip."""

    host: str
    chip: str
    devices: int
