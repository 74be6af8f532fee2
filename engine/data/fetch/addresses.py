"""Keep untrusted URLs from reaching private addresses. The address that is checked is the one connected to."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NameResolutionError, NewConnectionError, TimeoutError
from urllib3.poolmanager import ProxyManager
from urllib3.util.ssl_ import create_urllib3_context

from engine.core.errors import DatasetError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_ADDRESSES: Final = 3
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")
_REFUSED: Final = (
    # The local-use NAT64 prefix, and site-local addresses of old: nothing public is behind them.
    ipaddress.IPv6Network("64:ff9b:1::/48"),
    ipaddress.IPv6Network("fec0::/10"),
    # Relays for 6to4; no service of the Internet is there.
    ipaddress.IPv4Network("192.88.99.0/24"),
    # Special in registries newer than Python 3.11's.
    ipaddress.IPv4Network("192.0.0.0/24"),
    ipaddress.IPv6Network("3fff::/20"),
    ipaddress.IPv6Network("5f00::/16"),
)


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public Internet.

    Not loopback, link-local, private, shared (CGNAT), multicast, reserved or unspecified, nor an IPv6 address that
    stands for such an IPv4 address (mapped, NAT64, 6to4).
    """
    ip = ipaddress.ip_address(address)
    embedded = _embedded(ip)
    if embedded is not None:
        return is_public(str(embedded))
    special = ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local
    return ip.is_global and not special and not any(ip in network for network in _REFUSED)


def _embedded(ip: Address) -> ipaddress.IPv4Address | None:
    if isinstance(ip, ipaddress.IPv4Address):
        return None
    if ip in _NAT64 or ip in _COMPATIBLE:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour


def public_addresses(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Resolve a host to its addresses, in the resolver's order.

    Raises DatasetError when one of them is not public (unless allowed), socket.gaierror when there is none.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise DatasetError(f"the host name {host[:80]!a} is not valid") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not allow_private and not is_public(address):
            raise DatasetError(
                f"its host {host[:80]!a} is at the private or local address {address}, which a task may not reach; "
                "if you trust the task, set ALLOW_PRIVATE_URLS=1"
            )
    return addresses[:_MAX_ADDRESSES]


class CheckedAdapter(HTTPAdapter):
    """Connects to public addresses only. `opened` is given each socket as soon as there is one.

    Through a proxy, the proxy resolves names and connects: nothing but the proxy is in reach of this class.
    """

    def __init__(self, *, allow_private: bool, opened: Callable[[socket.socket], None]) -> None:
        self._allow_private = allow_private
        self._opened = opened
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _pools(self._open_checked)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Set the certificates that a pool of connections trusts, which are read once for all pools: 20 ms of CPU time
        each."""
        super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]
        if conn.ca_certs or conn.ca_cert_dir:
            conn.conn_kw["ssl_context"] = _trusting(conn.ca_certs, conn.ca_cert_dir)
            conn.ca_certs = conn.ca_cert_dir = None

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        if type(manager) is ProxyManager:
            manager.pool_classes_by_scheme = _pools(self._open)
        return manager

    def _open(self, connection: HTTPConnection, connect: Callable[[], socket.socket]) -> socket.socket:
        opened = connect()
        self._opened(opened)
        return opened

    def _open_checked(self, connection: HTTPConnection, connect: Callable[[], socket.socket]) -> socket.socket:
        """Resolve, check, then connect to what was checked: a second look-up could give another answer.

        The name stays in the `Host` header, in TLS and in the check of the certificate.
        """
        host, timeout = connection._dns_host, connection.timeout
        try:
            addresses = public_addresses(host, connection.port, allow_private=self._allow_private)
        except socket.gaierror as error:
            raise NameResolutionError(host, connection, error) from error
        if isinstance(timeout, int | float):
            connection.timeout = timeout / len(addresses)
        try:
            return self._open(connection, lambda: _first(connection, addresses, connect))
        finally:
            connection._dns_host, connection.timeout = host, timeout


@lru_cache(maxsize=4)
def _trusting(ca_certs: str | None, ca_cert_dir: str | None) -> ssl.SSLContext:
    """Return a context that verifies certificates and host names. Raises OSError if the bundle cannot be read."""
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
    context.load_verify_locations(ca_certs, ca_cert_dir)
    return context


def _first(connection: HTTPConnection, addresses: list[str], connect: Callable[[], socket.socket]) -> socket.socket:
    for address in addresses[:-1]:
        connection._dns_host = address
        try:
            return connect()
        except (NewConnectionError, TimeoutError):
            continue
    connection._dns_host = addresses[-1]
    return connect()


_Open = Callable[[HTTPConnection, Callable[[], socket.socket]], socket.socket]


def _pools(open_socket: _Open) -> dict[str, type[HTTPConnectionPool]]:
    """Connection pools whose every new socket comes from `open_socket`."""

    class PlainConnection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return open_socket(self, super()._new_conn)

    class SecureConnection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return open_socket(self, super()._new_conn)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = SecureConnection

    return {"http": PlainPool, "https": SecurePool}
