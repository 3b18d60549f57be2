"""Events for readers: pages, and one poller a process for everybody who follows the stream."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from ampref_service.catalog import Catalog, events
from ampref_service.catalog.records import Event, EventFilter, EventGap, EventPage
from ampref_service.poller import Poller

T = TypeVar("T")

LONGEST_STREAM_SEC = 600.0
"""After this a stream ends and is resumed by its reader, which shows its key again."""

_PAGE = 500
_RECENT = 2000
_THREADS = 2
"""How many readers behind the recent events read the catalog at a time: a thousand that come back leave threads for others."""


def read_events(catalog: Catalog, criteria: EventFilter, *, after: int | None = None, limit: int = 100) -> EventPage:
    """A page of events; what was committed before the call is in it or in a later one.

    Args:
      after: the position to begin behind; None for the oldest event that is kept.
    """
    place_events(catalog)
    with catalog.session() as session:
        return events.list_page(session, criteria, after=after, limit=limit)


def find_start(catalog: Catalog, criteria: EventFilter, last: int) -> int:
    """The position behind which there are the newest `last` events; 0 of them is the end."""
    place_events(catalog)
    with catalog.session() as session:
        return events.find_start(session, criteria, last)


def place_events(catalog: Catalog) -> None:
    """Give every committed event its position; without one to place nothing is written."""
    with catalog.session() as session:
        is_due = events.is_placing_due(session)
    while is_due:
        with catalog.begin() as session:
            is_due = events.place(session) > 0


def purge_events(catalog: Catalog, *, days: float) -> int:
    """Delete the events that are older than `days`, from the oldest on; returns how many. Without any nothing is written."""
    place_events(catalog)
    count = 0
    with catalog.session() as session:
        is_due = events.is_purge_due(session, days)
    while is_due:
        with catalog.begin() as session:
            part = events.purge(session, days)
        count += part
        is_due = part > 0
    return count


class EventFeed(Poller):
    """Follows the stream for many readers with one query an interval."""

    streams = "streams"
    remedy = "Try again in a moment, on another API process, or ask for pages (Accept: application/json)"
    failure_event = "events_not_read"

    def __init__(self, catalog: Catalog, *, every_sec: float, max_followers: int) -> None:
        super().__init__(every_sec=every_sec, max_followers=max_followers)
        self._catalog = catalog
        self._followers = 0
        self._threads: anyio.CapacityLimiter | None = None
        self._recent: deque[Event] = deque()
        # Every event after `_floor` up to `_head` is in `_recent`; None while nobody looks.
        self._floor = 0
        self._head: int | None = None

    async def follow(
        self, criteria: EventFilter, after: int | None, *, last: int = 0
    ) -> AsyncGenerator[Event | EventGap | int, None]:
        """Events from a position on as they come, for 10 minutes or until the catalog is away.

        An integer is a position that the reader has reached without an event of its own.

        Args:
          after: None for the newest `last` and what comes from now on.
        """
        deadline = asyncio.get_running_loop().time() + LONGEST_STREAM_SEC
        with self._join():
            position = after
            if position is None:
                position = await self._in_thread(find_start, criteria, last)
                yield position
            while asyncio.get_running_loop().time() < deadline:
                news = self._news
                if self._head is None:  # The first look is on its way.
                    page = EventPage((), position, None)
                elif self._floor <= position <= self._head:
                    recent = itertools.islice(self._recent, position - self._floor, None)
                    page = EventPage(tuple(filter(criteria.matches, recent)), self._head, None)
                else:
                    page = await self._in_thread(read_events, criteria, after=position, limit=_PAGE)
                if page.gap is not None:
                    yield page.gap
                for event in page.items:
                    yield event
                if page.next_after == position:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(deadline):
                            await news.wait()
                elif not page.items or page.items[-1].position != page.next_after:
                    yield page.next_after
                position = page.next_after

    async def _in_thread(self, read: Callable[..., T], *arguments: Any, **options: Any) -> T:
        self._threads = self._threads or anyio.CapacityLimiter(_THREADS)
        call = functools.partial(read, self._catalog, *arguments, **options)
        return await anyio.to_thread.run_sync(call, limiter=self._threads)

    @contextlib.contextmanager
    def _join(self) -> Iterator[None]:
        self._followers += 1
        self._start()
        try:
            yield
        finally:
            self._followers -= 1

    def _count_followers(self) -> int:
        return self._followers

    async def _poll(self) -> None:
        try:
            await super()._poll()
        finally:
            self._head = None
            self._recent.clear()

    async def _look(self) -> None:
        if self._head is None:
            self._floor = self._head = await self._in_thread(find_start, EventFilter(), 0)
        else:
            page = await self._in_thread(read_events, EventFilter(), after=self._head, limit=_PAGE)
            if page.gap is not None:  # Another catalog stands in the place of this one.
                self._recent.clear()
                self._floor = page.gap.oldest - 1
            elif page.next_after == self._head:
                return
            self._recent.extend(page.items)
            self._head = page.next_after
            while len(self._recent) > _RECENT:
                self._floor = self._recent.popleft().position
        self._announce()
