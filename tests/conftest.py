"""What holds for all tests: unit tests reach no machine but this one."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

import pytest

# Before torch is imported: on models as small as the tests' a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.register_assert_rewrite("tests.support.harness", "tests.support.containers")

UNIT = Path(__file__).parent / "unit"


def _is_local(address):
    """Unix sockets, 127.0.0.0/8, ::1 and `localhost`."""
    if not isinstance(address, tuple):
        return True
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return address[0] == "localhost"


@pytest.fixture(autouse=True)
def _only_this_machine(request, monkeypatch):
    """Fail a unit test that connects to another machine, instead of depending on one."""
    if UNIT not in request.path.parents:
        return

    def guarded(name):
        real = getattr(socket.socket, name)

        def guard(self, *args):
            address = args[-1]
            if not _is_local(address):
                pytest.fail(f"this test uses the network: socket.{name}({address!r})")
            return real(self, *args)

        return guard

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, guarded(name))
