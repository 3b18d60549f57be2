"""Running the API under uvicorn, with the deadlines that uvicorn does not set itself.

    headers   have to arrive within `request_timeout_sec` of the connection's beginning, or of their own first byte after an
              answer, or the connection is closed (`ampref_service.connection.Connection`)
    bodies    have the same time again (`ampref_service.api.middleware.limit_bodies`)
    idle      connections are closed after `keep_alive_sec`
    stopping  open requests have `shutdown_grace_sec`; event streams end at once

What it cannot bound is a client that reads its answer slowly; a proxy in front does (docs/http.md).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import socket

import uvicorn
from fastapi import FastAPI

from amp_core.errors import Unavailable
from ampref_service.connection import MAX_HEADER_BYTES, Connection, mark_requests
from ampref_service.settings import Settings

_BACKLOG = 512


def listen(settings: Settings) -> socket.socket:
    """A listening socket on `host:port`; port 0 takes a free one, which `getsockname()` returns.

    Who connects before the server runs waits for it.

    Raises:
      Unavailable: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the socket names its protocol. With it on, the second write of an answer
    # (its body) waits for the client's delayed acknowledgement of the first: 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(_BACKLOG)
    except (OSError, UnicodeError) as error:
        listener.close()
        is_no_name = isinstance(error, socket.gaierror | UnicodeError)
        if is_no_name or (isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL):
            fault = "the host's name cannot be resolved" if is_no_name else "this machine has no such address"
            raise Unavailable(
                f"cannot listen on {settings.host}: {fault}",
                expected="an address of this machine, such as 127.0.0.1, or a name that it is found by",
                remedy="Choose another with --host or AMPREF_HOST",
            ) from error
        raise Unavailable(
            f"cannot listen on {settings.host}:{settings.port}: {getattr(error, 'strerror', None) or error}",
            remedy="Stop what uses it, or choose another with --port or AMPREF_PORT (0 takes a free one)",
        ) from error
    listener.set_inheritable(True)
    return listener


def make_server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """A uvicorn server for `app`; start it with `server.run(sockets=[listen(settings)])`."""
    config = uvicorn.Config(
        mark_requests(app),
        host=settings.host,
        port=settings.port,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,  # structlog has configured logging; see ampref_service.logs
        access_log=False,  # our own line has the request id and the latency
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_sec,
        timeout_graceful_shutdown=settings.shutdown_grace_sec,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        backlog=_BACKLOG,
    )
    config.load()
    config.http_protocol_class = functools.partial(  # type: ignore[assignment]
        Connection, config.http_protocol_class, settings.request_timeout_sec
    )
    return uvicorn.Server(config)


def run(app: FastAPI, settings: Settings, listener: socket.socket | None = None) -> None:
    """Serve until SIGINT or SIGTERM, and return when the last request has ended."""
    # What start-up made stays for good. Without this every full collection looks through all of it, 40 to 70 ms in which no
    # request is answered.
    gc.collect()
    gc.freeze()
    with contextlib.closing(listener or listen(settings)) as bound:
        make_server(app, settings).run(sockets=[bound])
