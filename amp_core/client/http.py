"""The HTTP client of a service: which failures are retried, and which exception a problem stands for."""

from __future__ import annotations

import email.utils
import ipaddress
import logging
import os
import random
import re
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx2

from amp_core.client.answers import AnswerFault, check_answer
from amp_core.client.transport import Deadline, DirectTransport
from amp_core.errors import (
    AmprefError,
    Conflict,
    Forbidden,
    InputRefused,
    IntegrityError,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from amp_core.files import expand_home
from amp_core.strict_json import read_json
from amp_core.version import __version__

__all__ = [
    "DEFAULT_URL",
    "JSON_LIMIT",
    "Connection",
    "Retry",
    "RetryableError",
    "hide_password",
    "iter_body",
    "origin_of",
    "resolve_token",
    "resolve_url",
]

log = logging.getLogger("amp_core.client.retry")

DEFAULT_URL = "http://127.0.0.1:8000"
_RETRY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 120.0
_PROBLEM_BYTES = 1 << 20
_MAX_REDIRECTS = 5
_HEADERS_ELSEWHERE = frozenset({"user-agent", "accept", "accept-encoding", "range"})

JSON_LIMIT = 64 << 20
"""Bytes of an answer in JSON, where nothing says that it is longer."""

T = TypeVar("T")


@dataclass(frozen=True)
class Retry:
    """How patient the client is.

    Args:
      attempts: tries before giving up; a download counts anew whenever it has moved forward, and one that the service asked to
        come back later does not count.
      timeout: seconds for all tries of one request with their waits, its answer included. A file or an upload gets them anew
        with each MiB.
      wait_initial, wait_max: seconds before the second try and at most; they double in between, with jitter.
      connect, read: seconds to wait for a connection and for the next bytes.
    """

    attempts: int = 6
    timeout: float = 90.0
    wait_initial: float = 0.2
    wait_max: float = 10.0
    connect: float = 10.0
    read: float = 60.0

    def impatient(self) -> Retry:
        """One quick try, for when the cache can answer instead."""
        timeout, connect, read = min(self.timeout, 10.0), min(self.connect, 2.0), min(self.read, 5.0)
        return replace(self, attempts=1, timeout=timeout, connect=connect, read=read)


class RetryableError(Exception):
    """A failed try that another try may mend.

    Args:
      error: what to raise when no try succeeds.
      wait: seconds that the server asked to wait; None where it did not ask.
    """

    def __init__(self, error: AmprefError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


def resolve_url(url: str | None) -> str:
    """`url`, else `$AMPREF_URL`, else this machine's port 8000; without a slash at the end."""
    text = (url or os.environ.get("AMPREF_URL") or DEFAULT_URL).strip().rstrip("/")
    try:
        address = httpx2.URL(text)
    except httpx2.InvalidURL:
        address = httpx2.URL("")
    if address.scheme not in ("http", "https") or not address.host or len(text.split()) != 1:
        raise InputRefused(
            f"{hide_password(text)[:200]!r} is not the address of a service",
            key="url",
            expected="http://host:port or https://host",
            remedy="Pass url=…, or set AMPREF_URL.",
        )
    return text


def hide_password(url: str) -> str:
    """`url` as it may be printed and stored: without a user and a password."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def resolve_token(token: str | None, url: str) -> str | None:
    """The key for the service at `url`: `token`, else `$AMPREF_TOKEN`, else that of the token file; None where none is set.

    The file is `$XDG_CONFIG_HOME/ampref/token` (default `~/.config`): a key, or lines of a service's address and its key.

    Raises:
      InputRefused: the key cannot be sent, or others can read the file.
    """
    text = token or os.environ.get("AMPREF_TOKEN") or _read_token_file(url)
    text = None if text is None else text.strip()
    if text and not re.fullmatch(r"[\x21-\x7e]{1,8192}", text):
        raise InputRefused(
            "the key cannot be sent: it holds spaces or characters that are not ASCII",
            key="token",
            expected="amp_ and 38 letters and digits",
            remedy="Copy it once more into AMPREF_TOKEN.",
        )
    return text or None


def _read_token_file(url: str) -> str | None:
    path = expand_home(Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config")) / "ampref" / "token"
    try:
        with open(path, encoding="utf-8") as file:
            if os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077:
                raise InputRefused(
                    "other users of this machine can read the key in it", file=str(path), remedy=f"chmod 600 {path}"
                )
            lines = [line.split() for line in file if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        raise InputRefused(f"the file of the key cannot be read ({error})", file=str(path)) from error
    if len(lines) == 1 and len(lines[0]) == 1:
        return lines[0][0]
    for line in lines:
        if len(line) != 2:
            raise InputRefused(
                "it cannot be read", file=str(path), expected="one key, or lines of a service's address and its key"
            )
    try:
        return next((key for address, key in lines if origin_of(httpx2.URL(address)) == origin_of(httpx2.URL(url))), None)
    except httpx2.InvalidURL as error:
        raise InputRefused("an address in it cannot be read", file=str(path), expected="http://host:port") from error


class Connection:
    """An HTTP client for one service. It stays there: a redirect to another host, scheme or port is refused.

    Args:
      url: of the service.
      token: its key; see `resolve_token`.
      retry: its patience.
      transport: replaces the network (tests).

    Attributes:
      address: its URL, with the user and password that it may hold.
      url: the same as messages have it.
      stop: is set when the calls are to end; see `abort`.
    """

    def __init__(
        self,
        url: str | None,
        *,
        token: str | None = None,
        retry: Retry | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.address = resolve_url(url)
        self.url = hide_password(self.address)
        self._key = resolve_token(token, self.address)
        self.retry = retry or Retry()
        self._origin = origin_of(httpx2.URL(self.url))
        self._transport = transport
        self._clients: dict[bool, httpx2.Client] = {}
        self._direct = DirectTransport(_make_context)
        self.stop = threading.Event()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def abort(self) -> None:
        """End the calls that other threads have made with a `CancelledError`, and refuse new ones.

        Those through a proxy of the environment end when their next bytes come, or by their deadline.
        """
        self.stop.set()
        self._direct.abort()

    def json(
        self,
        method: str,
        path: str,
        *,
        retry: Retry | None = None,
        kind: Any = Any,
        repeatable: bool = True,
        limit: int = JSON_LIMIT,
        **options: Any,
    ) -> tuple[int, Any]:
        """Status and decoded body of a call, retried.

        Args:
          kind: what the body must be, a class of `answers`.
          repeatable: whether the call may take effect twice; if not, it is retried only when the server cannot have seen it.
          limit: bytes of the body, decompressed; a longer one is refused.
          options: of the HTTP library's request.
        """

        def call(retry: Retry) -> tuple[int, Any]:
            # What is sent or may come by the megabyte gets time by the megabyte.
            is_transfer = "files" in options or limit > JSON_LIMIT
            with self.stream(method, path, retry=retry, repeatable=repeatable, is_transfer=is_transfer, **options) as response:
                try:
                    body = _read_body(response, limit)
                    answer = read_json(body) if body else None
                    check_answer(kind, answer)
                    return response.status_code, answer
                except AnswerFault as error:
                    raise self.refuse_answer(path, f"answered something that is not ampref's: {error}") from error
                except _BodyTooLong as error:
                    raise self.refuse_answer(path, f"answered more than {limit:,} bytes of JSON") from error
                except (ValueError, zlib.error) as error:
                    raise self.refuse_answer(path, "answered something that is not JSON") from error

        return self.retry_call(call, retry or self.retry)

    def retry_call(self, call: Callable[[Retry], T], retry: Retry) -> T:
        """`call(retry)`, repeated with waits while it raises `RetryableError` and patience lasts; each repetition is logged.

        A service that is full says when to come back: that is no failed try, and goes on until the time is over. The `retry`
        that is passed has the time that is left.

        Raises:
          CancelledError: another thread has called `abort`.
        """
        end, attempt = time.monotonic() + retry.timeout, 1
        while not self.stop.is_set():
            try:
                return call(replace(retry, timeout=end - time.monotonic()))
            except RetryableError as failure:
                if self.stop.is_set():
                    break
                wait = failure.wait
                if wait is None:
                    # Jitter keeps the nodes of a cluster, which fail together, from coming back together.
                    jitter = random.uniform(0.0, retry.wait_initial)
                    wait = min(retry.wait_initial * 2.0 ** min(attempt - 1, 30) + jitter, retry.wait_max)
                is_asked = failure.wait is not None and retry.attempts > 1
                if (attempt >= retry.attempts and not is_asked) or time.monotonic() + wait >= end:
                    raise failure.error from failure.__cause__
                log.warning("%s; trying again in %.1f s", failure.error.what, wait)
            self.stop.wait(wait)
            attempt += not is_asked
        raise CancelledError

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        retry: Retry,
        repeatable: bool = True,
        is_transfer: bool = False,
        origin: str | None = None,
        **options: Any,
    ) -> Iterator[httpx2.Response]:
        """One try of a call inside `retry_call`; the response is successful, and its body is read in the `with` block.

        Args:
          retry: the whole call, its body included, is over after `retry.timeout`.
          is_transfer: whether much may be sent or received; each MiB then gives it the connection's patience anew.
          origin: another `scheme://host[:port]` that a GET may be redirected to; it is sent no credentials.
        Raises:
          RetryableError: this try failed, and another may succeed.
          AmprefError: what the service's problem stands for, or `Unavailable`.
        """
        path = path.lstrip("/")
        deadline = Deadline(retry.timeout, self.retry.timeout if is_transfer else 0.0)
        options |= {"timeout": httpx2.Timeout(retry.read, connect=retry.connect), "extensions": {"deadline": deadline}}
        has_response = False
        try:
            with closing(self._send(method, path, origin, options)) as response:
                response.stream = _CountedStream(response.stream, deadline)
                if not response.is_success:
                    raise _response_error(response, f"{self.url}/{path}", repeatable)
                has_response = True
                yield response
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise RetryableError(self._unreachable(error)) from error
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError) as error:
            failure = self._unreachable(error)
            if deadline.is_over:
                amount = f"{deadline.amount:,} bytes" if has_response else "no whole answer"
                failure = Unavailable(
                    f"{self.url}/{path} was given up: {amount} in {deadline.elapsed:.1f} s",
                    expected=f"1 MiB in each {self.retry.timeout:g} s" if is_transfer else f"all in {retry.timeout:.3g} s",
                    remedy="Try again; if it repeats, look into the service's log and at the network between.",
                )
            elif has_response:
                failure = Unavailable(
                    f"the transfer of {self.url}/{path} broke off ({str(error) or type(error).__name__})",
                    remedy="Try again; if it repeats, look into the service's log.",
                )
            raise (RetryableError(failure) if repeatable else failure) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self.refuse_answer(path, f"could not be asked ({error})") from error

    def refuse_answer(self, path: str, what: str) -> Unavailable:
        """The error for an answer that no ampref service gives."""
        return Unavailable(
            f"{self.url}/{path.lstrip('/')} {what}",
            expected="an ampref service",
            remedy="Check the address: something else may be listening there.",
        )

    def _send(self, method: str, path: str, origin: str | None, options: Mapping[str, Any]) -> httpx2.Response:
        """The response of the service or of what it may redirect to; its body is unread."""
        client = self._get_client(httpx2.URL(self.url))
        request = client.build_request(method, path, **options)
        if origin_of(request.url) != self._origin:
            raise self._refuse_redirect(path, "names", request.url)
        if self._key is not None:
            request.headers["authorization"] = f"Bearer {self._key}"
        for _ in range(_MAX_REDIRECTS):
            response = client.send(request, stream=True)
            if response.next_request is None:
                return response
            response.close()
            target = response.next_request.url
            if request.method not in ("GET", "HEAD"):
                raise self._refuse_redirect(path, f"redirects what a {request.method} sends to", target)
            if origin_of(target) in (self._origin, _upgrade(self._origin)):
                request = response.next_request
            elif origin_of(target) == origin:
                # If-Range holds the service's entity tag, which another server does not know.
                headers = {key: value for key, value in request.headers.items() if key in _HEADERS_ELSEWHERE}
                request = httpx2.Request("GET", target.copy_with(userinfo=b""), headers=headers, extensions=request.extensions)
            else:
                raise self._refuse_redirect(path, "redirects to", target)
            client = self._get_client(target)
        raise self.refuse_answer(path, f"redirects more than {_MAX_REDIRECTS} times")

    def _get_client(self, url: httpx2.URL) -> httpx2.Client:
        """The client for this address: a direct one, or one that uses the environment's proxy."""
        # A proxy is for remote machines; it would look for a local service on itself.
        has_proxy = (
            self._transport is None
            and not _is_loopback(url.host)
            and not {url.scheme, "all"}.isdisjoint(getproxies())
            and not proxy_bypass(url.host)
        )
        if has_proxy not in self._clients:
            transport = self._transport or (None if has_proxy else self._direct)
            try:
                self._clients[has_proxy] = httpx2.Client(
                    # A user and a password would be sent in the place of the key.
                    base_url=(self.address if self._key is None else self.url) + "/",
                    transport=transport,
                    trust_env=has_proxy,
                    headers={
                        "user-agent": f"ampref/{__version__}",
                        "accept": "application/json, application/problem+json",
                        "accept-encoding": "gzip",
                    },
                )
            except (ValueError, ImportError) as error:
                raise Unavailable(
                    f"the proxy that the environment names cannot be used ({error})",
                    expected="an http or https proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY",
                    remedy="Correct that variable, or list the service's host in NO_PROXY.",
                ) from error
        return self._clients[has_proxy]

    def _unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"the service at {self.url} cannot be reached ({str(error) or type(error).__name__})",
            expected="an ampref service that answers",
            remedy="Start it with 'ampref up', or give its address by AMPREF_URL.",
        )

    def _refuse_redirect(self, path: str, verb: str, target: httpx2.URL) -> Unavailable:
        return Unavailable(
            f"{self.url}/{path} {verb} {origin_of(target)}{target.path}",
            expected=f"an answer of {self._origin} itself",
            remedy="If the service is there, give that address by AMPREF_URL; otherwise do not trust it.",
        )


def _make_context() -> ssl.SSLContext:
    try:
        return httpx2.create_ssl_context()
    except OSError as error:
        names = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
        raise Unavailable(
            f"the certificates of trusted servers cannot be read ({error.strerror or error})",
            file=", ".join(f"{name}={os.environ[name]}" for name in names) or None,
            expected="certificates in PEM",
            remedy="Correct or unset that variable.",
        ) from error


class _CountedStream(httpx2.SyncByteStream):
    """A body whose bytes count for the deadline of its call, whatever the transport."""

    def __init__(self, stream: Any, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._deadline.count(len(chunk))
            yield chunk
            if self._deadline.is_over:
                raise httpx2.ReadTimeout("timed out")

    def close(self) -> None:
        self._stream.close()


def iter_body(response: httpx2.Response) -> Iterator[bytes]:
    """The body as it comes. A function in the place of the network (tests) may have read it already."""
    return iter((response.content,)) if response.is_stream_consumed else response.iter_raw()


class _BodyTooLong(Exception):
    """An answer has more bytes than it may have."""


def _read_body(response: httpx2.Response, limit: int) -> bytes:
    """The body, decompressed.

    Raises:
      _BodyTooLong: it has more than `limit` bytes, as it says or as they come.
      ValueError: it is compressed by other means than gzip.
      zlib.error: it is not compressed as it says.
    """
    length, encoding = response.headers.get("content-length", ""), response.headers.get("content-encoding", "identity")
    if encoding not in ("identity", "gzip"):
        raise ValueError(encoding)
    if length.isdecimal() and float(length) > limit:  # Python reads no integer of more than 4,300 digits.
        raise _BodyTooLong
    # The HTTP library would unpack a chunk of 64 KiB to 64 MiB at once.
    decompressor = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
    body = bytearray()
    for chunk in iter_body(response):
        body += decompressor.decompress(chunk, limit - len(body) + 1) if decompressor else chunk
        if len(body) > limit:
            raise _BodyTooLong
    return bytes(body)


def origin_of(url: httpx2.URL) -> str:
    """`scheme://host`, with the port unless it is the scheme's own."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    port = "" if url.port is None else f":{url.port}"
    return f"{url.scheme}://{host}{port}"


def _upgrade(origin: str) -> str:
    """The https origin that an http one may redirect to: the same host, each by its own port."""
    url = httpx2.URL(origin)
    return origin_of(url.copy_with(scheme="https")) if (url.scheme, url.port) == ("http", None) else origin


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _response_error(response: httpx2.Response, address: str, repeatable: bool) -> AmprefError | RetryableError:
    """The error of an unsuccessful response, as a `RetryableError` where another try may mend it."""
    error = _read_problem(response, address)
    wait = _parse_retry_after(response.headers.get("retry-after"))
    if response.status_code not in _RETRY_STATUSES or isinstance(error, IntegrityError):  # Damaged bytes stay damaged.
        return error
    asks_to_wait = response.status_code in (429, 503) and wait is not None
    if not (repeatable or asks_to_wait) or (wait is not None and wait > _LONGEST_WAIT):
        return error
    return RetryableError(error, wait)


def _parse_retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or an HTTP date."""
    if value is None:
        return None
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _read_problem(response: httpx2.Response, address: str) -> AmprefError:
    """The exception that an error response stands for."""
    facts: dict[str, Any] = {}
    with suppress(ValueError, zlib.error, _BodyTooLong, httpx2.HTTPError):
        document = read_json(_read_body(response, _PROBLEM_BYTES))
        facts = document if isinstance(document, dict) else {}
    return problem_error(facts, response.status_code, f"{address} answered {response.status_code} {response.reason_phrase}")


def problem_error(facts: Mapping[str, Any], status: int, default: str) -> AmprefError:
    """The exception that a problem stands for: by the slug of its type, else by its status.

    Args:
      default: what it says where the problem says nothing.
    """
    fallbacks = {401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 413: TooLarge}
    fallback = fallbacks.get(status, Unavailable if status >= 500 else InputRefused)
    slug = str(facts.get("type", "")).replace(":", "/").rsplit("/", 1)[-1]
    kind = next((kind for kind in _iterate_errors(AmprefError) if kind.slug == slug), fallback)

    def text(key: str) -> str | None:
        return facts[key] if isinstance(facts.get(key), str) else None

    frame = facts.get("frame")
    return kind(
        text("what") or text("detail") or text("title") or default.strip(),
        file=text("file"),
        key=text("key"),
        frame=frame if isinstance(frame, int) else None,
        expected=text("expected"),
        remedy=text("remedy"),
    )


def _iterate_errors(parent: type[AmprefError]) -> Iterator[type[AmprefError]]:
    """The subclasses, each before its own: a subclass without a slug of its own does not hide its parent."""
    for kind in parent.__subclasses__():
        yield kind
        yield from _iterate_errors(kind)
