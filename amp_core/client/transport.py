"""The client's way to a service: the standard library's HTTP client under the HTTP library's interface, with deadlines.

The HTTP library's own transport has a time limit for each read alone, which a server that trickles bytes never exceeds, and
reads 64 KiB at a time, copying each of them several times in Python. Reading larger pieces from `http.client` takes a third of
its processor time (docs/benchmarks.md, `pull`).
"""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import httpx2

__all__ = ["STEP_FORWARD", "Deadline", "DirectTransport"]

STEP_FORWARD = 1 << 20
"""Bytes after which a transfer counts as having moved forward."""

_READ_BYTES = 1 << 18
_IDLE_SEC = 4.0  # Seconds after which an idle connection is not used again; servers close theirs after five and more.
_MAX_IDLE = 8

_Key = tuple[str, str, int | None]


class Deadline:
    """When a call is over, whatever its bytes do.

    Args:
      seconds: from now.
      step_seconds: for each further `STEP_FORWARD` bytes, from the last ones on; 0 for a call that gets no more time.
    Attributes:
      amount: bytes that were transferred.
    """

    def __init__(self, seconds: float, step_seconds: float = 0.0) -> None:
        self.amount = 0
        self._start = time.monotonic()
        self._end = self._start + seconds
        self._step_seconds = step_seconds
        self._next_step = STEP_FORWARD

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def count(self, amount: int) -> None:
        """Note bytes that were transferred."""
        self.amount += amount
        if self._step_seconds and self.amount >= self._next_step:
            self._next_step = self.amount + STEP_FORWARD
            self._end = max(self._end, time.monotonic() + self._step_seconds)

    def limit(self, seconds: float | None) -> float:
        """The time limit of one read or write that may take `seconds` by itself.

        Raises:
          TimeoutError: the call is over.
        """
        left = self._end - time.monotonic()
        if left <= 0.0:
            raise TimeoutError("timed out")
        return left if seconds is None else min(left, seconds)


class DirectTransport(httpx2.BaseTransport):
    """Direct connections, each used again while it is idle; no proxy. The request's extension `deadline` bounds the whole call.

    Args:
      make_context: gives the TLS context; called at the first https request.
    """

    def __init__(self, make_context: Callable[[], ssl.SSLContext]) -> None:
        self._make_context = make_context
        self._context: ssl.SSLContext | None = None
        self._idle: deque[tuple[_Key, float, http.client.HTTPConnection]] = deque()
        self._sockets: weakref.WeakSet[_Socket] = weakref.WeakSet()
        self._lock = threading.Lock()  # For the sockets and whether they may be used.
        self._is_aborted = False

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """The response, its body unread.

        Raises:
          httpx2.ConnectTimeout, httpx2.ConnectError, httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError: as the
            HTTP library's own transport.
        """
        timeouts, deadline = request.extensions["timeout"], request.extensions["deadline"]
        key = (request.url.scheme, request.url.host, request.url.port)
        connection = self._take(key) or self._connect(key, timeouts["connect"], deadline)
        try:
            sock = cast(_Socket, connection.sock)
            sock.deadline, sock.seconds = deadline, timeouts["read"]
            is_sent = False
            with _translated(httpx2.ReadTimeout, httpx2.ReadError):
                connection.putrequest(
                    request.method, request.url.raw_path.decode("ascii"), skip_host=True, skip_accept_encoding=True
                )
                for name, value in request.headers.raw:
                    connection.putheader(name, value)
                connection.endheaders()
                # A server that refuses a body answers and closes before it has read it all.
                with suppress(ConnectionError):
                    for chunk in cast(httpx2.SyncByteStream, request.stream):
                        connection.send(chunk)
                        deadline.count(len(chunk))
                    is_sent = True
                response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        keep = partial(self._keep, key, connection) if is_sent and not response.will_close else None
        # `http.client` reads every byte as a character of Latin-1; the HTTP library takes bytes as they are.
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.getheaders()]
        return httpx2.Response(response.status, headers=headers, stream=_Body(connection, response, keep))

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[2].close()

    def abort(self) -> None:
        """Break every connection off, so that no other thread waits for bytes any more; there are no new ones."""
        with self._lock:
            self._is_aborted = True
            sockets = list(self._sockets)
        for sock in sockets:
            sock.abort()

    def _connect(self, key: _Key, seconds: float, deadline: Deadline) -> http.client.HTTPConnection:
        scheme, host, port = key
        if ":" in host:
            host = host.replace("%25", "%", 1)  # The zone of an IPv6 address, as URLs have it (RFC 6874).
        if scheme == "https" and self._context is None:
            self._context = self._make_context()
        connection: http.client.HTTPConnection
        with _translated(httpx2.ConnectTimeout, httpx2.ConnectError):
            # Without a port it would take the last group of an IPv6 address for one.
            if scheme == "https":
                connection = http.client.HTTPSConnection(host, 443 if port is None else port, context=self._context)
            else:
                connection = http.client.HTTPConnection(host, 80 if port is None else port)
            connection.timeout = deadline.limit(seconds)
            connection.connect()
        sock = _Socket(connection.sock)
        connection.sock = cast(Any, sock)
        with self._lock:
            self._sockets.add(sock)
            is_aborted = self._is_aborted
        if is_aborted:
            connection.close()
            raise httpx2.ConnectError("the calls were ended")
        return connection

    def _take(self, key: _Key) -> http.client.HTTPConnection | None:
        """An idle connection that the server has not closed."""
        for _ in range(len(self._idle)):
            try:
                entry = self._idle.popleft()
            except IndexError:  # Another thread took it.
                break
            if entry[0] != key:
                self._idle.append(entry)
            elif time.monotonic() - entry[1] < _IDLE_SEC and cast(_Socket, entry[2].sock).is_quiet():
                return entry[2]
            else:
                entry[2].close()
        return None

    def _keep(self, key: _Key, connection: http.client.HTTPConnection) -> None:
        """Keep a connection whose last answer was read to its end."""
        if len(self._idle) < _MAX_IDLE:
            self._idle.append((key, time.monotonic(), connection))
        else:
            connection.close()


class _Socket:
    """A socket as `http.client` uses it, each of whose reads and writes ends at the deadline of the call."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.deadline = Deadline(0.0)
        self.seconds = 0.0

    def set_timeout(self) -> None:
        """Bound the next read or write.

        Raises:
          TimeoutError: the call is over.
        """
        self._sock.settimeout(self.deadline.limit(self.seconds))

    def sendall(self, data: bytes) -> None:
        self.set_timeout()
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self, self._sock.makefile("rb", buffering=0)))

    def is_quiet(self) -> bool:
        """Whether nothing has arrived, not even the end of the connection."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        """End the reads and writes that other threads are waiting for."""
        # That of a TLS socket would forget the encryption, which a read in another thread still needs.
        with suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()


class _Reader(io.RawIOBase):
    """The bytes of one answer. The socket stays open as long as one of its readers or its connection does."""

    def __init__(self, sock: _Socket, raw: io.RawIOBase) -> None:
        self._socket = sock
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.set_timeout()
        return self._raw.readinto(buffer)

    def close(self) -> None:
        super().close()
        self._raw.close()


class _Body(httpx2.SyncByteStream):
    """A response's body, read in pieces of up to 256 KiB.

    Args:
      keep: called when the body was read to its end; without it, and before the end, the connection is closed.
    """

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        keep: Callable[[], None] | None,
    ) -> None:
        self._connection = connection
        self._response = response
        self._keep = keep
        self._is_complete = False

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with _translated(httpx2.ReadTimeout, httpx2.ReadError):
                data = self._response.read1(_READ_BYTES)
            if not data:
                break
            yield data
        if self._response.length:
            raise httpx2.RemoteProtocolError(f"the connection ended {self._response.length:,} bytes early")
        self._is_complete = True

    def close(self) -> None:
        keep, self._keep = self._keep, None
        self._response.close()
        if keep is not None and self._is_complete:
            keep()
        else:
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
    except (OSError, UnicodeError, OverflowError) as error:  # A host's name that cannot be one; a port above 65,535.
        raise failure(str(error)) from error
