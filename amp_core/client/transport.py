"""The transport of file downloads: the standard library's HTTP client under the HTTP library's interface.

The HTTP library's own transport reads 64 KiB at a time and copies each of them several times in Python. Reading larger
pieces from `http.client` takes a third of its processor time (docs/benchmarks.md, `pull`).
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2

__all__ = ["DownloadTransport"]

_READ_BYTES = 1 << 18


class DownloadTransport(httpx2.BaseTransport):
    """One direct connection a request; no proxy, no pool.

    Args:
      make_context: gives the TLS context; called at the first https request.
    """

    def __init__(self, make_context: Callable[[], ssl.SSLContext]) -> None:
        self._make_context = make_context

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """The response, its body unread.

        Raises:
          httpx2.ConnectTimeout, httpx2.ConnectError, httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError: as the
            HTTP library's own transport.
        """
        url, timeouts = request.url, request.extensions["timeout"]
        host, port = url.host, url.port
        if url.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(host, port, context=self._make_context())
        else:
            connection = http.client.HTTPConnection(host, port)
        try:
            connection.timeout = timeouts["connect"]
            with _translated(httpx2.ConnectTimeout, httpx2.ConnectError):
                connection.connect()
            connection.sock.settimeout(timeouts["read"])
            with _translated(httpx2.ReadTimeout, httpx2.ReadError):
                target = url.raw_path.decode("ascii")
                connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
                for name, value in request.headers.raw:
                    connection.putheader(name, value)
                connection.endheaders(request.read() or None)
                response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        return httpx2.Response(response.status, headers=response.getheaders(), stream=_Body(connection, response))


class _Body(httpx2.SyncByteStream):
    """A response's body, read in pieces of up to 256 KiB."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with _translated(httpx2.ReadTimeout, httpx2.ReadError):
                data = self._response.read1(_READ_BYTES)
            if not data:
                break
            yield data
        if self._response.length:
            raise httpx2.RemoteProtocolError(f"the connection ended {self._response.length:,} bytes early")

    def close(self) -> None:
        self._response.close()
        self._connection.close()


@contextmanager
def _translated(timeout: type[httpx2.TransportError], failure: type[httpx2.TransportError]) -> Iterator[None]:
    """Errors of the standard library as those of the HTTP library."""
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error)) from error
    except http.client.HTTPException as error:
        raise httpx2.RemoteProtocolError(str(error) or type(error).__name__) from error
    except OSError as error:
        raise failure(str(error)) from error
