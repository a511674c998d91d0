"""Runs over a Ray cluster, and stages that misbehave there. In a module of their own: its processes import them by name."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

from night import Silent, labour, note

from release.cluster import Cluster, Spread
from release.errors import StageError
from release.matrix.load import Matrix
from release.node import NODE_ID, OBJECTS, SETTINGS, be_patient, hurry
from release.pipeline import Graph, Work
from release.ports import free_ports
from release.schedule import Ledger, Limits, carry_out
from release.session import Session
from release.store import Store

NODE: Final = "RELEASE_TEST_NODE"
"""The environment variable that tells a process on which machine of the test's cluster it is."""


def weary(work: Work) -> str:
    """Labour, but fail in one stage."""
    if work.task.stage.name == "weights1":
        raise StageError("the scale is wrong", next_step="weigh it again")
    return labour(work)


def lasting(work: Work) -> str:
    """Labour; but what comes first to a machine that is to die says that it has begun, and does not end."""
    summary = labour(work)
    told = work.store.path / "lasting"
    if os.environ.get(NODE, "") in work.task.reads["doomed"] and not told.exists():
        told.write_text(work.task.stage.name)
        time.sleep(1800)
    return summary


def telling(work: Work) -> str:
    """Labour, and note on which machine."""
    note(f"{work.task.stage.name}@{os.environ.get(NODE, '')}")
    return labour(work)


def spread(cluster: Cluster, store: Store, graph: Graph, wanted: list[str]) -> Ledger:
    return carry_out(graph, wanted, run_over(cluster, store, graph), Limits(cluster.slots), keep_going=True)


def run_over(cluster: Cluster, store: Store, graph: Graph) -> Spread:
    return cluster.run(graph, Matrix(), store, Session(), cast(Any, Silent()))


def until(holds: Callable[[], bool], seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def _small() -> dict[str, Any]:
    """Return what every machine is started with; its ports are said beforehand, since Ray does not wait long for those it looks for."""
    names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
    here = {"num_cpus": 1, "object_store_memory": OBJECTS, "include_log_monitor": False, "node_ip_address": "127.0.0.1"}
    return {**here, **dict(zip(names, free_ports(len(names)), strict=True))}


class Machines:
    """A Ray cluster of our own on this machine: a head with one place for a stage, and machines that come and die. All on 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        os.environ.update(SETTINGS | {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled"})
        from ray.cluster_utils import Cluster as Nodes

        be_patient()
        self._folder, self._named = folder / "ray", dict[str, Any]()
        with self._started() as node:
            self._nodes = Nodes(
                initialize_head=True, head_node_args={**_small(), "no_monitor": True, "env_vars": {NODE_ID: node}}
            )
        self.address = str(self._nodes.address)

    def add(self, name: str) -> None:
        """Start a machine that has one chip `abacus`; its processes know its name."""
        with self._started() as node:
            env = {NODE: name, NODE_ID: node}
            self._named[name] = self._nodes.add_node(**_small(), resources={"chip:abacus": 1}, env_vars=env)

    @contextlib.contextmanager
    def _started(self) -> Iterator[str]:
        """Give the id of a machine that is started in the block."""
        node, end = secrets.token_hex(28), threading.Event()

        def hurry_it() -> None:
            while not end.wait(0.1):
                hurry(self._folder, node)

        thread = threading.Thread(target=hurry_it)
        thread.start()
        try:
            yield node
        finally:
            end.set()
            thread.join()

    def kill(self, name: str) -> None:
        """Have all processes of a machine die at once."""
        self._nodes.remove_node(self._named.pop(name), allow_graceful=False)

    def close(self) -> None:
        """End all machines."""
        for name in list(self._named):
            self.kill(name)
        self._nodes.shutdown()


def python_path(folder: Path) -> str:
    """Return the PYTHONPATH of Ray's processes: with the stages of the tests, and without a parser that Ray loads and asks nothing.

    Where rfc3987-syntax is installed, as for the tests of bills of materials, jsonschema compiles its grammar in every process: 1.6 s of 2.1.
    """
    lean = folder / "lean"
    lean.mkdir()
    (lean / "rfc3987_syntax.py").write_text("raise ImportError('not for Ray')\n")
    return f"{Path(__file__).parent}:{lean}"


@contextlib.contextmanager
def machines(**env: str) -> Iterator[Machines]:
    """Give a cluster whose processes have `env` in their environment; nothing of it is left, in ours either."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # sockets lie in it, whose paths must be short
        os.environ.update(env | {"PYTHONPATH": python_path(Path(folder))})
        try:
            with contextlib.closing(Machines(Path(folder))) as made:
                yield made
        finally:
            os.environ.clear()
            os.environ.update(before)
