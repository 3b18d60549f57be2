"""One look an interval, for all the readers that follow something, while there are any."""

from __future__ import annotations

import abc
import asyncio

import structlog

from amp_core.errors import Unavailable

log = structlog.get_logger("ampref_service.poller")


class Poller(abc.ABC):
    """Looks again and again while it has followers, and wakes them. Of one event loop.

    Args:
      every_sec: how often it looks.
      max_followers: how many readers there may be.
    """

    streams: str
    """What errors call the followers."""
    remedy: str
    """What a reader does for whom there is no room."""
    failure_event: str
    """What the log calls a look that failed."""

    def __init__(self, *, every_sec: float, max_followers: int) -> None:
        self._every_sec = every_sec
        self._max_followers = max_followers
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @abc.abstractmethod
    def _count_followers(self) -> int:
        """How many readers there are."""

    @abc.abstractmethod
    async def _look(self) -> None:
        """Read what is new, and `_announce` it."""

    def check_room(self) -> None:
        """Raise `Unavailable` where one more reader would be too many."""
        if (count := self._count_followers()) >= self._max_followers:
            raise Unavailable(
                f"{count} {self.streams} are open already",
                expected=f"at most {self._max_followers} (AMPREF_MAX_STREAMS)",
                remedy=self.remedy,
            )

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _start(self) -> None:
        """Look from now on; a follower has come."""
        if self._task is None:
            self._task = asyncio.create_task(self._poll())

    def _announce(self) -> None:
        """Wake whoever waits: it looks once, and then waits for the next news."""
        self._news.set()
        self._news = asyncio.Event()

    async def _poll(self) -> None:
        try:
            while self._count_followers():
                try:
                    await self._look()
                except Exception as error:  # Readers wait for it: it goes on.
                    log.warning(self.failure_event, error=str(error))
                await asyncio.sleep(self._every_sec)
        finally:
            self._task = None
