"""Talking to the service: one HTTP client, one rule for what is retried, one way from a problem to an exception."""

from __future__ import annotations

import email.utils
import ipaddress
import logging
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx2

from amp_core.errors import AmprefError, Conflict, InputRefused, IntegrityError, NotFound, TooLarge, Unavailable
from amp_core.strict_json import read_json

__all__ = ["DEFAULT_URL", "Connection", "Retry", "RetryableError", "resolve_url"]

log = logging.getLogger("amp_core.client.retry")

DEFAULT_URL = "http://127.0.0.1:8000"
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
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
    """A failed try that another one may mend. Holds the error to raise if none does, and how long the server asked to wait."""

    def __init__(self, error: AmprefError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


def resolve_url(url: str | None) -> str:
    """`url`, else `$AMPREF_URL`, else this machine's port 8000; without a slash at the end."""
    text = (url or os.environ.get("AMPREF_URL") or DEFAULT_URL).strip().rstrip("/")
    try:
        parsed = httpx2.URL(text)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or len(text.split()) != 1:
        raise InputRefused(
            f"{text[:200]!r} is not the address of a service",
            key="url",
            expected="http://host:port or https://host",
            remedy="Pass url=…, or set AMPREF_URL.",
        )
    return text


def _is_loopback(url: str) -> bool:
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class _TLS(ssl.SSLContext):
    """The HTTP library's own verifying context, built at the first handshake.

    To read the machine's certificates takes some 40 ms, also where nobody speaks TLS. This object stands in for that context
    everywhere, so that a redirect or a proxy that turns to https is verified as ever. It has no certificates itself: whatever
    passed it by could connect to nobody.
    """

    _lock: threading.Lock
    _real: ssl.SSLContext | None

    def __new__(cls) -> _TLS:
        made = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        made._lock, made._real = threading.Lock(), None
        return made

    def real(self) -> ssl.SSLContext:
        with self._lock:
            if self._real is None:
                self._real = httpx2.create_ssl_context()
            return self._real

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        self.real().set_alpn_protocols(alpn_protocols)

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        return self.real().wrap_socket(*args, **options)

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        return self.real().wrap_bio(*args, **options)


class Connection:
    """An HTTP client for one service.

    Args:
      url: of the service.
      retry: its patience.
      transport: replaces the network; the seam for tests (`httpx2.MockTransport`).
    """

    def __init__(self, url: str | None, *, retry: Retry | None = None, transport: httpx2.BaseTransport | None = None) -> None:
        self.url = resolve_url(url)
        self.retry = retry or Retry()
        self._client = httpx2.Client(
            base_url=self.url + "/",
            transport=transport,
            verify=_TLS(),
            # A proxy of the environment is for other machines; it would look for this one's service on itself.
            trust_env=not _is_loopback(self.url),
            follow_redirects=True,
            headers={"user-agent": "ampref", "accept": "application/json, application/problem+json"},
        )

    def close(self) -> None:
        self._client.close()

    def json(
        self, method: str, path: str, *, retry: Retry | None = None, repeatable: bool = True, **options: Any
    ) -> tuple[int, Any]:
        """Status and decoded body of a call, retried; a call that must not happen twice (`repeatable=False`) is tried again
        only when the server cannot have seen it."""

        def call(patience: Retry) -> tuple[int, Any]:
            with self._sent(method, path, patience, repeatable, **options) as response:
                body = response.read()
                if not body:
                    return response.status_code, None
                try:
                    return response.status_code, read_json(body)
                except ValueError as error:
                    raise self._strange(path, "answered something that is not JSON") from error

        return self.retried(call, retry or self.retry)

    @contextmanager
    def stream(
        self, method: str, path: str, *, retry: Retry | None = None, repeatable: bool = True, **options: Any
    ) -> Iterator[httpx2.Response]:
        """One try of a call whose body is read as it comes; meant to be inside `retried`."""
        with self._sent(method, path, retry or self.retry, repeatable, **options) as response:
            yield response

    def retried(self, call: Callable[[Retry], T], retry: Retry) -> T:
        """`call(retry)` until it succeeds, fails for good, or patience ends. Every further try is told by a log record."""
        started, attempt = time.monotonic(), 1
        while True:
            try:
                return call(retry)
            except RetryableError as failed:
                wait = failed.wait
                if wait is None:
                    # Jitter keeps the nodes of a cluster, which fail together, from coming back together.
                    jitter = random.uniform(0.0, retry.wait_initial)
                    wait = min(retry.wait_initial * 2.0 ** min(attempt - 1, 30) + jitter, retry.wait_max)
                if attempt >= retry.attempts or time.monotonic() - started >= retry.timeout:
                    raise failed.error from failed.__cause__
                log.warning("%s; trying again in %.1f s", failed.error.what, wait)
            time.sleep(wait)
            attempt += 1

    @contextmanager
    def _sent(self, method: str, path: str, retry: Retry, repeatable: bool, **options: Any) -> Iterator[httpx2.Response]:
        timeout = httpx2.Timeout(retry.read, connect=retry.connect)
        began = False
        try:
            with self._client.stream(method, path.lstrip("/"), timeout=timeout, **options) as response:
                if not response.is_success:
                    self._refuse(response, path, repeatable)
                began = True
                yield response
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise RetryableError(self._unreachable(error)) from error
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError) as error:
            failure = self._broken_off(path, error) if began else self._unreachable(error)
            if repeatable:
                raise RetryableError(failure) from error
            raise failure from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._strange(path, f"could not be asked ({error})") from error

    def _refuse(self, response: httpx2.Response, path: str, repeatable: bool) -> None:
        error = _problem(response, f"{self.url}/{path.lstrip('/')}")
        if response.status_code not in _RETRIED or isinstance(error, IntegrityError):  # Damaged bytes do not heal by asking.
            raise error
        wait = _retry_after(response.headers.get("retry-after"))
        told_to_wait = response.status_code in (429, 503) and wait is not None
        if not repeatable and not told_to_wait:
            raise error
        if wait is not None and wait > _LONGEST_WAIT:
            raise error
        raise RetryableError(error, wait)

    def _unreachable(self, error: Exception) -> Unavailable:
        reason = str(error) or type(error).__name__
        return Unavailable(
            f"the service at {self.url} cannot be reached ({reason})",
            expected="an ampref service that answers",
            remedy="Start it with 'ampref up', or give its address by AMPREF_URL.",
        )

    def _broken_off(self, path: str, error: Exception) -> Unavailable:
        return Unavailable(
            f"the transfer of {self.url}/{path.lstrip('/')} broke off ({str(error) or type(error).__name__})",
            remedy="Try again; if it repeats, look into the service's log.",
        )

    def _strange(self, path: str, what: str) -> Unavailable:
        return Unavailable(
            f"{self.url}/{path.lstrip('/')} {what}",
            expected="an ampref service",
            remedy="Check the address: something else may be listening there.",
        )


def _retry_after(value: str | None) -> float | None:
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


def _classes(root: type[AmprefError]) -> dict[str, type[AmprefError]]:
    found = {root.slug: root}
    for child in root.__subclasses__():
        # A subclass that names no slug of its own must not hide its parent.
        found = _classes(child) | found
    return found


_BY_STATUS: Mapping[int, type[AmprefError]] = {404: NotFound, 409: Conflict, 413: TooLarge}


def _problem(response: httpx2.Response, url: str) -> AmprefError:
    """The exception that an error response stands for: by the slug of its problem type, else by its status."""
    facts: dict[str, Any] = {}
    try:
        body = b""
        for part in response.iter_bytes():
            body += part
            if len(body) > _PROBLEM_BYTES:
                break
        parsed = read_json(body)
        facts = parsed if isinstance(parsed, dict) else {}
    except (ValueError, httpx2.HTTPError):
        pass
    status = response.status_code
    fallback = _BY_STATUS.get(status, Unavailable if status >= 500 else InputRefused)
    slug = str(facts.get("type", "")).replace(":", "/").rsplit("/", 1)[-1]
    kind = _classes(AmprefError).get(slug, fallback) if slug != AmprefError.slug else fallback

    def text(key: str) -> str | None:
        return facts[key] if isinstance(facts.get(key), str) else None

    frame = facts.get("frame")
    what = text("what") or text("detail") or text("title") or f"{url} answered {status} {response.reason_phrase}".strip()
    return kind(
        what,
        file=text("file"),
        key=text("key"),
        frame=frame if isinstance(frame, int) else None,
        expected=text("expected"),
        remedy=text("remedy"),
    )
