"""Hosts of a test: three addresses with an sshd each and one engine behind them, and what happened to them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from night import JOURNAL
from sshd import Sshd, client

from release import transport
from release.fleet import Fleet
from release.types import Hosts

ADDRESSES = {"anvil": "127.0.0.2", "bellows": "127.0.0.3", "crane": "127.0.0.4"}


@dataclass
class Yard:
    """The hosts of a test, and what happened to them."""

    root: Path
    sshds: dict[str, Sshd]
    log: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        self.log.append(f"{time.monotonic() - self.began:6.2f} s  {text}")

    def hosts(self, **said: Mapping[str, object]) -> Hosts:
        """Each lends one device of its own; they share one engine, so the devices have names of their own. `said` is more, by host."""
        described = {
            name: {
                "docker": f"ssh://root@{sshd.address}:{sshd.port}",
                "chips": {"cpu": {"devices": (f"{name}-{os.getpid()}",)}},
                **({"store": str(self.root / name)} if (self.root / name).is_dir() else {}),
                **said.get(name, {}),
            }
            for name, sshd in self.sshds.items()
        }
        return Hosts.model_validate({"hosts": described})


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    if os.getuid() != 0:
        pytest.skip("an sshd of one's own that starts sessions of root, and a mount, need root")
    monkeypatch.setenv("PATH", f"{client(tmp_path)}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(JOURNAL, str(tmp_path / "journal"))
    monkeypatch.setattr(transport, "ALIVE", 1)
    monkeypatch.setattr(Fleet, "_meet", lambda fleet, name, engine: None)  # which knows that they are one engine
    made = Yard(tmp_path, {name: Sshd(tmp_path, address) for name, address in ADDRESSES.items()})
    try:
        yield made
    finally:
        for sshd in made.sshds.values():
            sshd.end()
