"""Who a request is from: a key, a browser's session, a signed link or a user whom a trusted proxy names.

A key that was looked up counts for `REMEMBER_SEC`, so that its revocation takes that long at most to reach another process. An
open service looks as often whether there is a key by now. Look-ups have threads of their own: they wait for no upload.

Sessions and links name the key that made them, and end with it. Both are signed with the catalog's secret.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import math
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import structlog
from starlette.requests import Request

from amp_core.errors import AmprefError, Forbidden, Unauthorized, Unavailable
from ampref_service.api.guard import BY_PROXY, SAFE_METHODS
from ampref_service.catalog import Catalog, keys
from ampref_service.catalog.records import Key
from ampref_service.keys import HOW_TO_GET_A_KEY, ROLES, Caller, digest_token, format_minute, parse_groups
from ampref_service.settings import Settings

log = structlog.get_logger("ampref_service.auth")

T = TypeVar("T")

read_clock = time.monotonic
REMEMBER_SEC = 2.0
_STALE_SEC = 300.0  # For so long a key that was looked up is remembered where the catalog is away.
"""How long a look-up counts."""
SESSION_COOKIE = "ampref_session"
SESSION_SEC = 12 * 3600
CSRF_HEADER = "x-csrf-token"
LINK_PARAMETERS = ("key", "expires", "signature")
_RECORD_USE_SEC = 60.0
_MAX_ENTRIES = 4096


@dataclass(frozen=True)
class _Entry:
    caller: Caller
    end: float
    last_end: float
    """By the monotonic clock: until when it counts, and until when while the catalog is away."""


@dataclass(frozen=True)
class Session:
    """A browser's session: what its cookie holds, and the token that a change made from a page of it carries."""

    cookie: str
    csrf_token: str


class Authenticator:
    """Identifies callers by the keys of a catalog.

    Args:
      settings: say when keys are asked for, and which proxies are believed.

    Raises:
      InputRefused: the groups of a proxy's users have no role that there is.
    """

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._settings = settings
        self._roles = parse_groups(settings.proxy_groups)
        self._pool = ThreadPoolExecutor(2, "ampref-keys")
        self._entries: dict[str, _Entry] = {}
        self._last_uses: dict[str, float] = {}
        self._has_keys = False
        self._open_end = 0.0
        self._secret: bytes | None = None

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown(cancel_futures=True)

    def forget(self) -> None:
        """Look every key up again: one was made or revoked in this process."""
        self._entries.clear()
        self._open_end = 0.0

    async def identify(self, request: Request, *, accepts_link: bool = False, csrf_token: str | None = None) -> Caller:
        """Who a request is from.

        Args:
          accepts_link: whether a signed link in the query may stand for a key.
          csrf_token: what a page's form has for a change by a browser's session; None: the header of a script has it.

        Raises:
          Unauthorized: nobody is named, or by a key that is not valid.
          Forbidden: a link is not as it was signed or no longer valid, or a page's change lacks its token.
          Unavailable: the catalog does not answer.
        """
        if await self._is_open():
            return Caller()
        if headers := request.headers.getlist("authorization"):
            if len(headers) > 1:
                raise Unauthorized("it is there more than once", key="authorization", expected="one")
            return await self._identify_digest(digest_token(_read_credentials(headers[0])))
        if accepts_link and "signature" in request.query_params:
            return await self._identify_link(request)
        if SESSION_COOKIE in request.cookies:
            return await self._identify_session(request, csrf_token)
        if user := self._read_user(request):
            return Caller.of_user(user, self._list_scopes(request))
        raise Unauthorized("this service asks for a key", key="authorization", expected="a valid key", remedy=HOW_TO_GET_A_KEY)

    async def identify_token(self, text: str) -> Caller:
        """Who has a key; raises `Unauthorized`."""
        return await self._identify_digest(digest_token(text.strip()))

    async def _identify_digest(self, digest: str) -> Caller:
        return await self._identify_by(keys.find_by_digest, digest)

    async def _identify_by(self, find: Callable[..., Key | None], name: str) -> Caller:
        entry = self._entries.get(name)
        if entry is not None and read_clock() < entry.end:
            return entry.caller
        try:
            return await self._look_up(lambda: self._remember(name, find))
        except Unavailable:
            # What needs no catalog, above all the metrics, tells whoever was known a while ago that it is away.
            if entry is None or read_clock() >= entry.last_end:
                raise
            return entry.caller

    def _remember(self, name: str, find: Callable[..., Key | None]) -> Caller:
        at = read_clock()
        with self._catalog.session() as session:
            key = _check_valid(find(session, name))
        if len(self._entries) >= _MAX_ENTRIES:
            self._entries.clear()
        caller, left = Caller.of_key(key), key.expires_in_sec
        bound = math.inf if left is None else left
        self._entries[name] = _Entry(caller, at + min(REMEMBER_SEC, bound), at + min(_STALE_SEC, bound))
        if at - self._last_uses.get(key.id, -_RECORD_USE_SEC) >= _RECORD_USE_SEC:
            self._last_uses[key.id] = at
            self._pool.submit(self._record_use, key.id)
        return caller

    def _record_use(self, key_id: str) -> None:
        try:
            with self._catalog.begin() as session:
                keys.record_use(session, key_id)
        except AmprefError as error:
            log.warning("key_use_not_recorded", key=key_id, reason=error.what)

    async def _is_open(self) -> bool:
        if self._settings.auth == "none":
            return True
        if self._has_keys or not self._settings.is_open_without_keys:
            return False
        if read_clock() >= self._open_end:
            try:
                self._has_keys = await self._look_up(self._look_for_keys)
                self._open_end = read_clock() + REMEMBER_SEC
            except Unavailable:
                if self._open_end == 0.0:
                    raise
        return not self._has_keys

    def _look_for_keys(self) -> bool:
        with self._catalog.session() as session:
            return keys.has_keys(session)

    async def _look_up(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    # Bounds

    async def check_place(self, caller: Caller, path: Mapping[str, str]) -> None:
        """Raise `Forbidden` for an address, by its variable parts, whose dataset or robot is out of the caller's bounds."""
        if caller.bounds.is_open:
            return
        if "robot" in path:
            caller.check_robot(path["robot"])
        if "name" in path:
            caller.check_dataset(path["name"])  # Also one that is not there yet.
        if path.keys().isdisjoint(keys.PLACES):
            return
        dataset, robot = await self._look_up(lambda: self._find_place(path))
        if dataset is not None:
            caller.check_dataset(dataset)
        if robot is not None:
            caller.check_robot(robot)

    def _find_place(self, path: Mapping[str, str]) -> tuple[str | None, str | None]:
        with self._catalog.session() as session:
            return keys.find_place(session, path)

    # Users of a proxy

    def _read_user(self, request: Request) -> str:
        name = self._settings.proxy_user_header
        if not name or not request.scope.get(BY_PROXY):
            return ""
        user = request.headers.get(name, "").strip()
        return user if user.isprintable() and len(user) <= 120 else ""

    def _list_scopes(self, request: Request) -> set[str]:
        groups = request.headers.get(self._settings.proxy_groups_header, "").split(",")
        roles = {self._roles[group] for group in ("*", *map(str.strip, groups)) if group in self._roles}
        return {scope for role in roles for scope in ROLES[role]}

    # What is signed

    def _sign(self, *parts: str) -> str:
        if self._secret is None:
            with self._catalog.session() as session:
                secret = keys.find_secret(session)
            if secret is None:
                with self._catalog.begin() as session:
                    secret = keys.make_secret(session)
            self._secret = secret
        digest = hmac.digest(self._secret, "\0".join(parts).encode(), "sha256")
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    async def _is_signed(self, signature: str, *parts: str) -> bool:
        expected = self._sign(*parts) if self._secret is not None else await self._look_up(lambda: self._sign(*parts))
        return hmac.compare_digest(signature.encode(), expected.encode())

    def sign_link(self, path: str, caller: Caller, expires: int) -> dict[str, str]:
        """The query with which `path` can be read until `expires` (epoch seconds), as long as the caller's key is valid.

        Raises:
          Forbidden: the caller has no key that it could end with.
        """
        caller.check_key("a link")
        values = (caller.owner, str(expires))
        return dict(zip(LINK_PARAMETERS, (*values, self._sign("link", path, *values)), strict=True))

    async def _identify_link(self, request: Request) -> Caller:
        key_id, expires, signature = (request.query_params.get(name, "") for name in LINK_PARAMETERS)
        if not await self._is_signed(signature, "link", request.scope["path"], key_id, expires):
            raise Forbidden(
                "the link is not as it was signed",
                key="query.signature",
                remedy="Use the link as a whole, or ask for a new one",
            )
        if time.time() >= int(expires):
            raise Forbidden(
                f"the link expired on {format_minute(int(expires))}", key="query.expires", remedy="Ask for a new one"
            )
        try:
            return await self._identify_by(keys.find_by_id, key_id)
        except Unauthorized as error:
            raise Forbidden(
                f"the link is no longer valid: {error.what}",
                expected="a link whose key is valid",
                remedy="Ask whoever gave you the link for a new one",
            ) from error

    async def open_session(self, text: str) -> Session:
        """A browser's session for the holder of a key; raises `Unauthorized`."""
        key = (await self.identify_token(text)).key
        assert key is not None
        content = f"{key.id}.{int(time.time()) + SESSION_SEC}.{secrets.token_urlsafe(16)}"
        cookie = f"{content}.{await self._look_up(lambda: self._sign('session', content))}"
        return Session(cookie, self._sign("csrf", cookie))

    async def find_session(self, request: Request) -> Session | None:
        """The session of a request's cookie, where it is signed and not over."""
        cookie = request.cookies.get(SESSION_COOKIE, "")
        content, _, signature = cookie.rpartition(".")
        if not content or not await self._is_signed(signature, "session", content):
            return None
        return Session(cookie, self._sign("csrf", cookie)) if time.time() < int(content.split(".")[1]) else None

    async def _identify_session(self, request: Request, csrf_token: str | None) -> Caller:
        session = await self.find_session(request)
        if session is None:
            raise Unauthorized("the session of this browser is over", key="cookie", remedy="Sign in again at /login")
        if request.method not in SAFE_METHODS:
            check_csrf(session, request.headers.get(CSRF_HEADER, "") if csrf_token is None else csrf_token)
        return await self._identify_by(keys.find_by_id, session.cookie.split(".")[0])


def check_csrf(session: Session, token: str) -> None:
    """Raise `Forbidden` where a change does not carry the token of its session."""
    if not hmac.compare_digest(token.encode(), session.csrf_token.encode()):
        raise Forbidden(
            "a change by a browser's session needs the token of its page",
            key=CSRF_HEADER,
            remedy="Load the page again; a program sends its key instead of a cookie: Authorization: Bearer amp_…",
        )


def _read_credentials(header: str) -> str:
    """The key in an Authorization header: `Bearer KEY`, or `Basic` with any user and the key as password."""
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except ValueError:
            pass
    raise Unauthorized(
        "it cannot be read",
        key="authorization",
        expected="Bearer and a key, or Basic with the key as password",
        remedy=HOW_TO_GET_A_KEY,
    )


def _check_valid(key: Key | None) -> Key:
    if key is None:
        raise Unauthorized(
            "there is no such key", key="authorization", expected="a key of this service", remedy=HOW_TO_GET_A_KEY
        )
    if key.is_valid:
        return key
    at, verb = (key.expires_at, "expired") if key.revoked_at is None else (key.revoked_at, "was revoked")
    raise Unauthorized(
        f"the key {key.name!r} {verb} on {format_minute(at or 0.0)}", key="authorization", remedy=HOW_TO_GET_A_KEY
    )
