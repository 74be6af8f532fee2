"""Certificates: those that are trusted, from the environment's bundle, and refusals of all others."""

import shutil
import ssl
import subprocess

import pytest
import requests

from engine.core.errors import TaskError
from engine.core.limits import Limits
from engine.data.fetch import addresses
from engine.data.fetch.http_hops import Hops, Watchdog
from tests.support.shard_server import HASTY, ShardServer

OPEN = Limits(allow_private_urls=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of `localhost` that signs itself, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-keyout", "key.pem", "-out", "cert.pem", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *files], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    running = ShardServer(tls=context)
    running.files = {"a": b"content"}
    yield running
    running.close()


def got(url):
    with Watchdog(HASTY) as watchdog, Hops(OPEN, HASTY, watchdog) as hops, hops.get(url, {}) as response:
        return response.raw.read()


def test_a_trusted_server_and_its_bundle_read_once(server, certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    read = []
    load = ssl.SSLContext.load_verify_locations
    monkeypatch.setattr(
        ssl.SSLContext, "load_verify_locations", lambda *args, **more: read.append(1) or load(*args, **more)
    )
    url = server.url("a").replace("127.0.0.1", "localhost")
    assert [got(url) for _ in range(3)] == [b"content"] * 3
    assert len(read) == 1


def test_another_name_than_the_certificate_s(server, certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    with pytest.raises(requests.exceptions.SSLError, match=r"(?i)certificate"):
        got(server.url("a"))


def test_a_server_that_nobody_vouches_for(server):
    with pytest.raises(requests.exceptions.SSLError, match=r"(?i)certificate"):
        got(server.url("a").replace("127.0.0.1", "localhost"))


def test_a_bundle_that_is_none(server, tmp_path, monkeypatch):
    (tmp_path / "bundle").write_text("nothing")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "bundle"))
    addresses._trusting.cache_clear()
    with pytest.raises(TaskError, match="REQUESTS_CA_BUNDLE"):
        got(server.url("a"))
