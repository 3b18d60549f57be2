"""What a browser must not be made to do: requests for another host, and changes from another site's page.

A page of another site can send a browser's user to this service. By its own name, which it lets mean this machine's address
(DNS rebinding), it would also read the answers; so a request must name a host that this service has. A change must not come
from a page of another origin. Both are refused before anything of the body is read. Programs send no `Origin` and the address
that they were given, and notice nothing.

What a proxy says of a request (`X-Forwarded-*`) is believed from `AMPREF_TRUSTED_PROXIES` alone.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from amp_core.errors import AmprefError
from ampref_service.api.problems import problem
from ampref_service.errors import HostRefused, OriginRefused
from ampref_service.settings import Settings

BY_PROXY = "ampref.by_proxy"
"""The key of a request's scope that is true where a trusted proxy sent it."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z_-][0-9A-Za-z._-]{0,252})(?::([0-9]{1,5}))?", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def guard_requests(app: ASGIApp, settings: Settings) -> ASGIApp:
    """`app`, which gets requests for its own hosts and, where they change something, from its own origin alone."""
    guard = _Guard(settings)

    async def guarded_app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            guard.believe_proxy(scope)
            try:
                guard.check(scope)
            except AmprefError as error:
                await problem(scope, error)(scope, receive, send)
                return
        await app(scope, receive, send)

    return guarded_app


class _Guard:
    def __init__(self, settings: Settings) -> None:
        self._proxies = [ipaddress.ip_network(proxy) for proxy in settings.trusted_proxies]
        machine = socket.gethostname().lower()
        names = {machine, f"{machine}.local", settings.host.lower()}
        allowed_hosts = [host.lower() for host in settings.allowed_hosts]

        @lru_cache(1024)
        def is_own(host: str) -> bool:
            name = _split_host(host)[0]
            if "." not in name or name in names or name.endswith(".localhost") or _is_address(name):
                return bool(name)
            return any(
                pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:])) for pattern in allowed_hosts
            )

        self._is_own = is_own

    def believe_proxy(self, scope: Scope) -> None:
        """Take over what a trusted proxy says of a request: its host, its scheme and its sender."""
        scope[BY_PROXY] = self._trusts((scope.get("client") or ("",))[0])
        if not scope[BY_PROXY]:
            return
        headers = Headers(scope=scope)
        host = headers.get("x-forwarded-host", "").rpartition(",")[2].strip()
        if host:
            fields = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope["headers"] = [(b"host", host.encode("latin-1", "replace")), *fields]
        scheme = headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower()
        if scheme in _DEFAULT_PORTS:
            scope["scheme"] = scheme
        # The nearest sender that is no proxy of ours: what stands before it may be made up.
        senders = [sender.strip() for sender in ",".join(headers.getlist("x-forwarded-for")).split(",")]
        sender = next((sender for sender in reversed(senders) if not self._trusts(sender)), "")
        if _is_address(sender):
            scope["client"] = (sender, 0)

    def _trusts(self, sender: str) -> bool:
        if not self._proxies or not _is_address(sender):
            return False
        address = ipaddress.ip_address(sender)
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in proxy for proxy in self._proxies)

    def check(self, scope: Scope) -> None:
        """Refuse a request for another host, and a change that another site's page asks for.

        Raises:
          HostRefused, OriginRefused: it is one of the two.
        """
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        # A request of HTTP/1.0 may have none; no browser sends such a one.
        host = hosts[0].lower() if hosts else ""
        if len(hosts) > 1 or (hosts and not self._is_own(host)):
            raise HostRefused(
                f"the request is for the host {host[:100]!r}, which is not this service's",
                key="host",
                expected="its address or one of AMPREF_ALLOWED_HOSTS",
                remedy=f"If it is reached by that name, the operator allows it: AMPREF_ALLOWED_HOSTS={_split_host(host)[0]}",
            )
        if scope["method"] in SAFE_METHODS:
            return
        origins = headers.getlist("origin")
        is_cross_site = headers.get("sec-fetch-site", "").lower() == "cross-site"
        if is_cross_site or any(not _is_same(origin, host) for origin in origins):
            raise OriginRefused(
                f"a page of another site ({', '.join(origins)[:100] or 'which it does not name'}) asks for this change",
                key="origin",
                expected=f"a program, or a page of {host}",
                remedy="Ask from a program, or from a page of this service",
            )


def _split_host(host: str) -> tuple[str, str]:
    """Name and port of a Host header; empty where it cannot be read."""
    match = _HOST.fullmatch(host)
    return (match[1].rstrip("."), match[2] or "") if match else ("", "")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _is_same(origin: str, host: str) -> bool:
    """Whether a page's origin is a host that it asks; whether TLS ended at a proxy before is not known here."""
    scheme, separator, authority = origin.lower().partition("://")
    default_port = _DEFAULT_PORTS.get(scheme)
    if not separator or default_port is None or not host:
        return False
    (name, port), (own_name, own_port) = _split_host(authority), _split_host(host)
    return bool(name) and name == own_name and (port or default_port) == (own_port or default_port)


def list_security_headers(names: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """The headers for browsers that an answer with headers of these names lacks."""
    present = set(names)
    return [(name, value) for name, value in _SECURITY_HEADERS if name not in present]


_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
