"""Addresses inside a network are refused, however they are written and wherever a name leads."""

import socket

import pytest

from engine.core.errors import DatasetError
from engine.data.fetch import Limits, addresses
from engine.data.fetch.addresses import is_public
from tests.support.origin_server import ARCHIVE, FILES, answer, contents

PRIVATE = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "198.18.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fd00::1",
    "ff02::1",
    "fec0::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::1",
    "2002:a00:1::",
    "2001::1",
    "100::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "172.32.0.1"]
)
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_private_hosts_are_refused(server, get, host):
    with pytest.raises(DatasetError, match="ALLOW_PRIVATE_URLS=1"):
        get(server.url.replace("127.0.0.1", host), limits=Limits())
    assert server.requests == []


@pytest.fixture
def dns(monkeypatch):
    """Names and the addresses they have, one list for each look-up."""
    table = {}
    real = socket.getaddrinfo

    def resolve(host, port, *args, **kwargs):
        if host in table:
            found = table[host].pop(0)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return table


def test_a_name_that_leads_inside(server, get, dns):
    dns["public.example"] = [["8.8.8.8", "127.0.0.1"]]
    with pytest.raises(DatasetError, match=r"127\.0\.0\.1"):
        get(server.url.replace("127.0.0.1", "public.example"), limits=Limits())


def test_the_checked_address_is_the_one_connected_to(server, get, dns, monkeypatch):
    """The second look-up would say something else: there is none."""
    port = int(server.url.split(":")[2].split("/")[0])
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    dns["rebound.example"] = [["127.0.0.1"]]
    server.script = [answer(body=ARCHIVE)]
    assert contents(get(f"http://rebound.example:{port}/x", limits=Limits())) == FILES
    assert server.requests[0][1]["Host"] == f"rebound.example:{port}"


def test_a_redirect_that_leads_inside(server, get, dns, monkeypatch):
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    server.script = [answer(302, Location="http://169.254.169.254/latest/meta-data")]
    with pytest.raises(DatasetError, match=r"169\.254\.169\.254"):
        get(limits=Limits())
