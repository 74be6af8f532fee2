"""Send a GET along its redirects, check each hop, and end connections that stall."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urljoin, urlsplit

import requests
import requests.utils
import urllib3.exceptions

from engine import __version__
from engine.core.errors import DatasetError, TaskError
from engine.core.limits import Limits
from engine.core.redact import shown_url
from engine.data.fetch.addresses import CheckedAdapter, public_addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Time-outs of a download, in seconds. Four stalled attempts fit into the two minutes that are promised."""

    connect_seconds: float = 10.0
    stall_seconds: float = 20.0
    """Each window of this length must bring `min_bytes_per_second`; the first one also the connection."""
    min_bytes_per_second: int = 16 << 10
    min_attempts: int = 4
    max_attempts: int = 6
    give_up_seconds: float = 120.0
    """Attempts without progress."""
    first_delay: float = 1.0
    max_redirects: int = 10
    report_seconds: float = 2.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class TransientError(Exception):
    """A failure that another attempt may not have."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Watchdog:
    """Shuts the connections down when a window passes without enough bytes: a server that drips headers, chunk sizes
    or TLS records keeps every single read within its timeout."""

    def __init__(self, policy: Policy) -> None:
        self._seconds = policy.stall_seconds
        self._least = policy.min_bytes_per_second * policy.stall_seconds
        self._bytes = 0
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.reason = ""
        """The reason why the connection was ended; empty otherwise."""

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        for opened in self._sockets:
            opened.close()

    def guard(self, opened: socket.socket) -> None:
        """Watch a connection. Its socket is duplicated, since TLS takes over the original."""
        with self._lock:
            self._sockets.append(opened.dup())
        if self.reason:
            self._shut()

    def feed(self, num_bytes: int) -> None:
        self._bytes += num_bytes

    def _watch(self) -> None:
        while not self._done.wait(self._seconds):
            if self._bytes < self._least:
                self.reason = f"the server stalled ({self._bytes:,} bytes in {self._seconds:g} s)"
                self._shut()
                return
            self._bytes = 0

    def _shut(self) -> None:
        with self._lock:
            for opened in self._sockets:
                with suppress(OSError):
                    opened.shutdown(socket.SHUT_RDWR)


class Hops:
    """One request and its redirects. Credentials in a URL are for that hop alone; `.netrc` is not consulted."""

    def __init__(self, limits: Limits, policy: Policy, watchdog: Watchdog) -> None:
        self._limits = limits
        self._policy = policy
        self._session = requests.Session()
        # Proxies and certificates from the environment are set below; a stranger's URL gets no one's stored passwords.
        self._session.trust_env = False
        self._session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        adapter = CheckedAdapter(allow_private=limits.allow_private_urls, opened=watchdog.guard)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def __enter__(self) -> Hops:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def get(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        """Return the first response that is no redirect, its body unread. Raises DatasetError, RequestException."""
        for _ in range(self._policy.max_redirects + 1):
            response = self._get_one(url, headers)
            target = self._session.get_redirect_target(response)
            if target is None:
                return response
            response.close()
            # A connection kept open may be closed just when the next hop uses it.
            self._session.close()
            url = urljoin(url, target)
        raise DatasetError(f"{shown_url(url)} redirects more than {self._policy.max_redirects} times")

    def _get_one(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        try:
            if urlsplit(url).scheme not in ("http", "https"):
                raise DatasetError(f"{shown_url(url)} is not an http or https URL")
            if "\\" in urlsplit(url).netloc:  # here and in a proxy another host might be read from it
                raise DatasetError(f"{shown_url(url)} is not a valid URL")
            proxies = requests.utils.get_environ_proxies(url, no_proxy=None)
            if requests.utils.select_proxy(url, proxies):
                self._check_behind_proxy(url)
            return self._session.get(
                url,
                headers={
                    "User-Agent": f"sd-lora-task/{__version__}",
                    "Accept-Encoding": "identity",
                    "Connection": "close",
                    **headers,
                },
                timeout=(self._policy.connect_seconds, self._policy.stall_seconds),
                proxies=proxies,
                allow_redirects=False,
                stream=True,
            )
        except requests.exceptions.InvalidHeader:
            # The answer's; although requests makes it a ValueError too, the URL is not to blame.
            raise
        except (requests.exceptions.InvalidProxyURL, requests.exceptions.InvalidSchema) as error:
            raise TaskError(f"the proxy of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used: {error}") from error
        except (requests.exceptions.InvalidURL, urllib3.exceptions.LocationValueError, ValueError) as error:
            raise DatasetError(f"{shown_url(url)} is not a valid URL") from error
        except OSError as error:
            if isinstance(error, requests.RequestException):
                raise
            raise TaskError(
                f"the certificates of REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE cannot be used: {error}"
            ) from error

    def _check_behind_proxy(self, url: str) -> None:
        """Check literal addresses and the DNS of this machine. No proof: the proxy itself resolves and connects."""
        # A network behind a proxy often resolves no outside names.
        with suppress(socket.gaierror):
            public_addresses(urlsplit(url).hostname or "", 0, allow_private=self._limits.allow_private_urls)


def innermost(error: BaseException) -> str:
    """Return the innermost cause of a network error, which names no URL and so no secret."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(reason).split("\n", 1)[0][:200]
