"""Ports of the loopback: several that are free are several, and one that somebody has is refused."""

from __future__ import annotations

import socket

import pytest

from release.errors import ServingError
from release.ports import HERE, free_port, free_ports


def test_free_ports_differ_and_can_be_had() -> None:
    found = [*free_ports(3), free_port()]
    assert len(set(found[:3])) == 3
    for port in found:
        with socket.socket() as listener:
            listener.bind((HERE, port))
        assert free_port(port) == port


def test_a_port_that_somebody_has_is_refused() -> None:
    with socket.socket() as listener:
        listener.bind((HERE, 0))
        listener.listen()
        with pytest.raises(ServingError, match="is taken") as refused:
            free_port(listener.getsockname()[1])
    assert refused.value.next_step == "give another one with --port"
