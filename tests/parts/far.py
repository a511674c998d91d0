"""Runs over a Ray cluster, and stages that misbehave there. In a module of their own: its processes import them by name."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

from night import Silent, labour, night

from release.cluster import OBJECTS, Cluster, Spread
from release.errors import StageError
from release.matrix.load import Matrix
from release.pipeline import Graph, Work
from release.schedule import Ledger, Limits, carry_out
from release.session import Session
from release.store import Store

NODE: Final = "RELEASE_TEST_NODE"
"""The environment variable that tells a process on which machine of the test's cluster it is."""

SMALL: Final = {"object_store_memory": OBJECTS}
QUICK: Final = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""How soon the cluster notices that a machine is gone."""


def weary(work: Work) -> str:
    """Labour, but fail in one stage."""
    if work.task.stage.name == "weights1":
        raise StageError("the scale is wrong", next_step="weigh it again")
    return labour(work)


def lasting(work: Work) -> str:
    """Labour; where it is the first time for one stage, say on which machine, and do not end."""
    summary = labour(work)
    told = work.store.path / "lasting"
    if work.task.stage.name == "weights1" and not told.exists():
        told.write_text(os.environ.get(NODE, ""))
        time.sleep(120)
    return summary


def spread(cluster: Cluster, store: Store, graph: Graph, wanted: list[str]) -> Ledger:
    return carry_out(graph, wanted, run_over(cluster, store, graph), Limits(cluster.slots), keep_going=True)


def run_over(cluster: Cluster, store: Store, graph: Graph) -> Spread:
    return cluster.run(graph, Matrix(), store, Session(), cast(Any, Silent()))


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def lose_a_machine(folder: Path, told: Path) -> None:
    """Build over three machines, of which the one that works on a stage is killed; write what became of it into a file."""
    import ray
    from ray.cluster_utils import Cluster as Machines

    store, found = Store(folder), list[Ledger]()
    machines = Machines(initialize_head=True, head_node_args={**SMALL, "num_cpus": 0, "_system_config": QUICK})
    try:
        for name in ("1", "2"):
            machines.add_node(**SMALL, num_cpus=1, env_vars={NODE: name})
        with Cluster.join(machines.address) as cluster:
            assert cluster.slots == 2
            graph, wanted = night(2, work=lasting)
            run = threading.Thread(target=lambda: found.append(spread(cluster, store, graph, wanted)))
            run.start()
            until((folder / "lasting").is_file)
            name = (folder / "lasting").read_text()
            machines.remove_node(
                next(node for node in machines.worker_nodes if node._ray_params.env_vars[NODE] == name), allow_graceful=False
            )
            run.join(60)
        (ledger,) = found
        told.write_text(json.dumps({"failed": list(map(str, ledger.failed.values())), "ran": ledger.ran, "moved": ledger.moved}))
    finally:
        ray.shutdown()
        machines.shutdown()
