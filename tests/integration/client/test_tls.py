"""HTTPS is verified, and its settings are made when they are first needed."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from clientkit import QUICK, make_certificate
from datasetkit import Site, redirect, send_json

from amp_core.client.http import Connection
from amp_core.errors import Unavailable


@pytest.fixture
def tls_site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of an https server on this machine that knows one dataset, and its certificate, which nobody trusts yet."""
    certificate, context = make_certificate(tmp_path, "DNS:localhost,IP:127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            send_json(self, {"name": "walk", "latest": None, "aliases": {}})

    class Server(ThreadingHTTPServer):
        def get_request(self) -> tuple[Any, Any]:
            connection, address = self.socket.accept()
            return context.wrap_socket(connection, server_side=True), address

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}", certificate
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_https_is_verified(tls_site: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The TLS settings are made when they are first needed; they must be the verifying ones all the same."""
    address, certificate = tls_site
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with (
        closing(Connection(address, retry=QUICK.impatient())) as connection,
        pytest.raises(Unavailable, match=r"(?i)certificate"),
    ):
        connection.json("GET", "v1/datasets/walk")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with closing(Connection(address, retry=QUICK.impatient())) as connection:
        assert connection.json("GET", "v1/datasets/walk")[1]["name"] == "walk"


def test_a_download_that_is_sent_to_https_is_verified(
    site: Site, small: Any, get: Any, tls_site: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = tls_site
    site.add(small)
    site.download_origin = address
    site.before = lambda handler: "/files/" in handler.path and redirect(handler, f"{address}{handler.path}")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(Unavailable, match=r"(?i)certificate"):
        get()


def test_tls_settings_are_made_once_and_only_for_tls(
    site: Site, small: Any, get: Any, tls_site: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, certificate = tls_site
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("HTTPS_PROXY", "")
    made, create = [], httpx2.create_ssl_context

    def counted(*args: Any, **options: Any) -> ssl.SSLContext:
        made.append(create(*args, **options))
        return made[-1]

    monkeypatch.setattr(httpx2, "create_ssl_context", counted)
    site.add(small)
    assert get().downloaded_bytes > 0
    assert not made
    connection = Connection(address, retry=QUICK.impatient())
    try:
        for _ in range(3):
            connection.json("GET", "v1/datasets/walk")  # The server closes after each: three handshakes.
    finally:
        connection.close()
    (context,) = made
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
