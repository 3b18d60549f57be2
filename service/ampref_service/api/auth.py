"""Who a request is from: the key in its Authorization header, looked up and remembered for a moment.

A key that was looked up counts for `REMEMBER_SEC`, so that its revocation takes that long at most to reach another process. An
open service looks as often whether there is a key by now. Look-ups have threads of their own: they wait for no upload.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import structlog
from starlette.requests import Request

from amp_core.errors import AmprefError, Unauthorized
from ampref_service.catalog import Catalog, keys
from ampref_service.catalog.records import Key
from ampref_service.keys import HOW_TO_GET_A_KEY, Caller, digest_token
from ampref_service.settings import Settings

log = structlog.get_logger("ampref_service.auth")

T = TypeVar("T")

read_clock = time.monotonic
REMEMBER_SEC = 2.0
"""How long a look-up counts."""
_RECORD_USE_SEC = 60.0
_MAX_ENTRIES = 4096


@dataclass(frozen=True)
class _Entry:
    caller: Caller
    end: float
    """By the monotonic clock."""


class Authenticator:
    """Identifies callers by the keys of a catalog.

    Args:
      settings: say when keys are asked for.
    """

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._settings = settings
        self._pool = ThreadPoolExecutor(2, "ampref-keys")
        self._entries: dict[str, _Entry] = {}
        self._last_uses: dict[str, float] = {}
        self._has_keys = False
        self._open_end = 0.0

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown(cancel_futures=True)

    def forget(self) -> None:
        """Look every key up again: one was made or revoked in this process."""
        self._entries.clear()
        self._open_end = 0.0

    async def identify(self, request: Request) -> Caller:
        """Who a request is from.

        Raises:
          Unauthorized: nobody is named, or by a key that is not valid.
          Unavailable: the catalog does not answer.
        """
        if await self._is_open():
            return Caller()
        headers = request.headers.getlist("authorization")
        if len(headers) != 1:
            fault = "the header Authorization is there more than once" if headers else "this service asks for a key"
            raise Unauthorized(fault, key="authorization", expected="a valid key", remedy=HOW_TO_GET_A_KEY)
        return await self._identify_key(digest_token(_read_credentials(headers[0])))

    async def _identify_key(self, digest: str) -> Caller:
        entry = self._entries.get(digest)
        if entry is not None and read_clock() < entry.end:
            return entry.caller
        key = await self._look_up(lambda: self._find_key(digest))
        caller = Caller.of_key(_check_valid(key))
        self._remember(digest, caller)
        return caller

    def _remember(self, digest: str, caller: Caller) -> None:
        assert caller.key is not None
        at, left = read_clock(), caller.key.expires_in_sec
        if len(self._entries) >= _MAX_ENTRIES:
            self._entries.clear()
        self._entries[digest] = _Entry(caller, at + min(REMEMBER_SEC, REMEMBER_SEC if left is None else left))
        if at - self._last_uses.get(caller.key.id, -_RECORD_USE_SEC) >= _RECORD_USE_SEC:
            self._last_uses[caller.key.id] = at
            self._pool.submit(self._record_use, caller.key.id)

    def _find_key(self, digest: str) -> Key | None:
        with self._catalog.session() as session:
            return keys.find_by_digest(session, digest)

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
            self._has_keys = await self._look_up(self._look_for_keys)
            self._open_end = read_clock() + REMEMBER_SEC
        return not self._has_keys

    def _look_for_keys(self) -> bool:
        with self._catalog.session() as session:
            return keys.has_keys(session)

    async def _look_up(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def check_place(self, caller: Caller, path: Mapping[str, str]) -> None:
        """Raise `Forbidden` for an address, by its variable parts, whose dataset or robot is out of the caller's bounds."""
        if caller.bounds.is_open or not path:
            return
        if "name" in path:
            caller.check_dataset(path["name"])  # Also one that is not there yet.
        dataset, robot = await self._look_up(lambda: self._find_place(path))
        if dataset is not None:
            caller.check_dataset(dataset)
        if robot is not None:
            caller.check_robot(robot)

    def _find_place(self, path: Mapping[str, str]) -> tuple[str | None, str | None]:
        with self._catalog.session() as session:
            return keys.find_place(session, path)


def _read_credentials(header: str) -> str:
    """The key in an Authorization header: `Bearer KEY`, or `Basic` with any user and the key as password."""
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            pass
    raise Unauthorized(
        "the header Authorization cannot be read",
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
    date = datetime.fromtimestamp(at or 0.0, UTC).strftime("%Y-%m-%d %H:%M UTC")
    raise Unauthorized(f"the key {key.name!r} {verb} on {date}", key="authorization", remedy=HOW_TO_GET_A_KEY)
