"""The HTTP client of a service: which failures are retried, and which exception a problem stands for."""

from __future__ import annotations

import email.utils
import ipaddress
import logging
import os
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx2

from amp_core.client.transport import DownloadTransport
from amp_core.errors import AmprefError, Conflict, InputRefused, IntegrityError, NotFound, TooLarge, Unavailable
from amp_core.strict_json import read_json

__all__ = ["DEFAULT_URL", "Connection", "Retry", "RetryableError", "resolve_url"]

log = logging.getLogger("amp_core.client.retry")

DEFAULT_URL = "http://127.0.0.1:8000"
_RETRY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 120.0
_PROBLEM_BYTES = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Retry:
    """How patient the client is.

    Args:
      attempts: tries before giving up; a download counts anew whenever it has moved forward.
      timeout: seconds for all tries of one request.
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
        return replace(self, attempts=1, connect=min(self.connect, 2.0), read=min(self.read, 5.0))


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
            f"{text[:200]!r} is not the address of a service",
            key="url",
            expected="http://host:port or https://host",
            remedy="Pass url=…, or set AMPREF_URL.",
        )
    return text


class Connection:
    """An HTTP client for one service.

    Args:
      url: of the service.
      retry: its patience.
      transport: replaces the network (tests).
    """

    def __init__(self, url: str | None, *, retry: Retry | None = None, transport: httpx2.BaseTransport | None = None) -> None:
        self.url = resolve_url(url)
        self.retry = retry or Retry()
        # A proxy of the environment is for remote machines; it would look for a local service on itself.
        may_use_proxy = not _is_loopback(self.url)

        def make_client(transport: httpx2.BaseTransport | None) -> httpx2.Client:
            return httpx2.Client(
                base_url=self.url + "/",
                transport=transport,
                verify=_LazyTLS(),
                trust_env=may_use_proxy,
                follow_redirects=True,
                headers={"user-agent": "ampref", "accept": "application/json, application/problem+json"},
            )

        self._client = make_client(transport)
        address = httpx2.URL(self.url)
        has_proxy = may_use_proxy and address.scheme in getproxies() and not proxy_bypass(address.host)
        is_direct = transport is None and not has_proxy
        self._downloads = make_client(DownloadTransport(httpx2.create_ssl_context)) if is_direct else self._client

    def close(self) -> None:
        self._client.close()
        self._downloads.close()

    def json(
        self, method: str, path: str, *, retry: Retry | None = None, repeatable: bool = True, **options: Any
    ) -> tuple[int, Any]:
        """Status and decoded body of a call, retried.

        Args:
          repeatable: whether the call may take effect twice; if not, it is retried only when the server cannot have seen it.
          options: of the HTTP library's request.
        """

        def call(retry: Retry) -> tuple[int, Any]:
            with self.stream(method, path, retry=retry, repeatable=repeatable, **options) as response:
                body = response.read()
                try:
                    return response.status_code, read_json(body) if body else None
                except ValueError as error:
                    raise self._not_ampref(path, "answered something that is not JSON") from error

        return self.retry_call(call, retry or self.retry)

    def retry_call(self, call: Callable[[Retry], T], retry: Retry) -> T:
        """`call(retry)`, repeated with waits while it raises `RetryableError` and patience lasts; each repetition is logged."""
        start, attempt = time.monotonic(), 1
        while True:
            try:
                return call(retry)
            except RetryableError as failure:
                wait = failure.wait
                if wait is None:
                    # Jitter keeps the nodes of a cluster, which fail together, from coming back together.
                    jitter = random.uniform(0.0, retry.wait_initial)
                    wait = min(retry.wait_initial * 2.0 ** min(attempt - 1, 30) + jitter, retry.wait_max)
                if attempt >= retry.attempts or time.monotonic() - start >= retry.timeout:
                    raise failure.error from failure.__cause__
                log.warning("%s; trying again in %.1f s", failure.error.what, wait)
            time.sleep(wait)
            attempt += 1

    @contextmanager
    def stream(
        self, method: str, path: str, *, retry: Retry, repeatable: bool = True, is_download: bool = False, **options: Any
    ) -> Iterator[httpx2.Response]:
        """One try of a call inside `retry_call`; the response is successful, and its body is read in the `with` block.

        Args:
          is_download: whether the body may be large; it is then read by `DownloadTransport` where no proxy is between.
        Raises:
          RetryableError: this try failed, and another may succeed.
          AmprefError: what the service's problem stands for, or `Unavailable`.
        """
        path = path.lstrip("/")
        timeout = httpx2.Timeout(retry.read, connect=retry.connect)
        client, has_response = self._downloads if is_download else self._client, False
        try:
            with client.stream(method, path, timeout=timeout, **options) as response:
                if not response.is_success:
                    raise _response_error(response, f"{self.url}/{path}", repeatable)
                has_response = True
                yield response
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise RetryableError(self._unreachable(error)) from error
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError) as error:
            failure = self._unreachable(error)
            if has_response:
                failure = Unavailable(
                    f"the transfer of {self.url}/{path} broke off ({str(error) or type(error).__name__})",
                    remedy="Try again; if it repeats, look into the service's log.",
                )
            raise (RetryableError(failure) if repeatable else failure) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._not_ampref(path, f"could not be asked ({error})") from error

    def _unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"the service at {self.url} cannot be reached ({str(error) or type(error).__name__})",
            expected="an ampref service that answers",
            remedy="Start it with 'ampref up', or give its address by AMPREF_URL.",
        )

    def _not_ampref(self, path: str, what: str) -> Unavailable:
        return Unavailable(
            f"{self.url}/{path.lstrip('/')} {what}",
            expected="an ampref service",
            remedy="Check the address: something else may be listening there.",
        )


class _LazyTLS(ssl.SSLContext):
    """The HTTP library's verifying context, made at the first handshake.

    Reading the machine's certificates takes some 40 ms, which plain HTTP need not wait for. A redirect or a proxy that turns to
    https is verified all the same. This object has no certificates itself: a call that is not forwarded cannot connect.
    """

    def __new__(cls) -> _LazyTLS:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    @cached_property
    def _verifying(self) -> ssl.SSLContext:
        return httpx2.create_ssl_context()

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        self._verifying.set_alpn_protocols(alpn_protocols)

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        return self._verifying.wrap_socket(*args, **options)

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        return self._verifying.wrap_bio(*args, **options)


def _is_loopback(url: str) -> bool:
    host = httpx2.URL(url).host
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
    try:
        return max(0.0, float(int(value)))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _read_problem(response: httpx2.Response, address: str) -> AmprefError:
    """The exception that an error response stands for: by the slug of its problem type, else by its status."""
    body, facts = b"", dict[str, Any]()
    try:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _PROBLEM_BYTES:
                break
        document = read_json(body)
        facts = document if isinstance(document, dict) else {}
    except (ValueError, httpx2.HTTPError):
        pass
    status = response.status_code
    fallbacks = {404: NotFound, 409: Conflict, 413: TooLarge}
    fallback = fallbacks.get(status, Unavailable if status >= 500 else InputRefused)
    slug = str(facts.get("type", "")).replace(":", "/").rsplit("/", 1)[-1]
    kind = next((kind for kind in _iterate_errors(AmprefError) if kind.slug == slug), fallback)

    def text(key: str) -> str | None:
        return facts[key] if isinstance(facts.get(key), str) else None

    frame = facts.get("frame")
    return kind(
        text("what") or text("detail") or text("title") or f"{address} answered {status} {response.reason_phrase}".strip(),
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
