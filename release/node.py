"""The Ray cluster of this machine alone: a program that may start slowly, that nobody else can reach, and that ends with us.

Run as a program, this module is `ray`, with patience: `python -m release.node start --head …`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

from release import processes
from release.errors import HostError
from release.guard import Guard
from release.ports import free_ports
from release.store import write_whole

START: Final = 900.0
"""Seconds that a node may take to start; who waits learns it at once when it has died instead."""
TRIES: Final = 3
"""How often a cluster is started anew where it dies instead."""
NODE_ID: Final = "RAY_OVERRIDE_NODE_ID_FOR_TESTING"
"""The environment variable by which a node gets its id from us."""
PORTS: Final = (
    "port",
    "metrics-export-port",
    "runtime-env-agent-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
)
"""Ports of a cluster of this machine that are said beforehand, so that it need not wait for them."""
OBJECTS: Final = 75 << 20
"""Bytes of shared memory for Ray's objects, the least it takes: what we send is small, and results go through the store."""
QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_gcs_server_port_wait_time_s": "2",
}
"""What Ray reads from our environment: to tell nobody of us, to leave devices to the stages, and to ask twice, 40 s each, for a cluster."""
SETTINGS: Final = QUIET | {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else its address is one that others reach, and who reaches it may run code here
    "RAY_worker_niceness": "0",  # else a stage gets a thirtieth of a processor that others want as well
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_gcs_rpc_server_connect_timeout_s": "300",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_agent_register_timeout_ms": "900000",
    "RAY_worker_register_timeout_seconds": "900",
    "RAY_raylet_client_num_connect_attempts": "300",
    "RAY_health_check_timeout_ms": "120000",  # of a node that hears us and has no time; one that is gone refuses at once
    "RAY_health_check_period_ms": "1000",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
}
"""What a cluster of this machine reads from the environment: to be alone, as busy as the stages here would be, and slow without harm."""


@contextlib.contextmanager
def alone(slots: int) -> Iterator[str]:
    """Start a cluster of this machine alone, with so many workers, and give its address; nothing of it is left, if we are killed either.

    Wants SETTINGS in the environment. Raises HostError with what it said last where it does not start in `TRIES` attempts.
    """
    with contextlib.closing(Guard()) as guard, ExitStack() as stack:
        for left in reversed(range(TRIES)):
            try:
                address = stack.enter_context(_started(guard, slots))
                break
            except HostError:  # a port that was free may have been taken since
                if not left:
                    raise
        yield address


@contextlib.contextmanager
def _started(guard: Guard, slots: int) -> Iterator[str]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)))
        stack.enter_context(guard.watch("folder", str(folder)))
        line = [sys.executable, "-P", "-m", "release.node", "start", "--head", "--block", "--no-monitor", f"--num-cpus={slots}"]
        line += ["--node-ip-address=127.0.0.1", f"--object-store-memory={OBJECTS}", "--include-dashboard=false"]
        line += ["--include-log-monitor=false"]
        line += [f"--{name}={port}" for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)]
        node, ready = token_hex(28), folder / "ray_current_cluster"  # Ray writes it when all stands
        head = processes.background([*line, f"--temp-dir={folder}"], env={NODE_ID: node}, log=folder / "log")
        stack.callback(processes.stop, head, 0.0)
        stack.enter_context(guard.watch("process", str(head.pid), "SIGKILL"))  # its own way to end takes half a minute
        import ray  # noqa: F401 (it takes as long as the start, and both can be done at once)

        def is_over() -> bool:
            hurry(folder, node)
            return ready.is_file() or head.poll() is not None

        processes.wait_until(is_over, timeout=START)
        if not ready.is_file():
            said = [line for line in (folder / "log").read_text(errors="replace").splitlines() if line.strip()]
            raise HostError(f"no Ray cluster could be started here: {said[-1] if said else 'it said nothing'}")
        yield ready.read_text().strip()


def hurry(folder: Path, node: str) -> None:
    """Tell a node that starts in a folder what it waits for: that its agent has no port. We ask nothing of the agent.

    A node waits for the agent's word for 15 s and no longer, and then dies: on a busy machine the agent needs more than that to start.
    """
    for session in folder.glob("session_2*"):
        told = session / f"dashboard_agent_listen_port_{node}"
        with contextlib.suppress(OSError):
            if not told.exists():
                write_whole(told, "-1")


def be_patient() -> None:
    """Have nodes that this process starts wait for `START` seconds until the cluster knows them; Ray gives up after 30, asking without rest."""
    from ray._private import services

    asks: Callable[[str, str], Any] = services.get_node

    def get_node(cluster: str, node: str) -> Any:
        end = time.monotonic() + START
        while True:
            try:
                return asks(cluster, node)
            except RuntimeError:  # not there yet
                if time.monotonic() > end:
                    raise
            if _has_died():
                raise ChildProcessError("its raylet died")
            time.sleep(0.1)

    services.get_node = get_node


def _has_died() -> bool:
    """Say whether a raylet that this process started is over, and nobody has asked for its status."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if f" (raylet) Z {os.getpid()} " in path.read_text():
                return True
    return False


def main() -> None:
    """Be `ray`, with patience."""
    from ray.scripts.scripts import main as ray

    be_patient()
    ray()


if __name__ == "__main__":
    main()
