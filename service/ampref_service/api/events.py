"""Events: what happened, in pages or as a stream of server-sent events that can be resumed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, cast

from fastapi import Depends, Header, Query, Request, Response
from pydantic import Field
from sse_starlette import EventSourceResponse, ServerSentEvent

from ampref_service.api.deps import ServicesDep, needs
from ampref_service.api.params import DatasetName, RobotName, Time, View
from ampref_service.api.problems import responses
from ampref_service.api.strict import make_router
from ampref_service.catalog.records import Event, EventFilter, EventGap, EventKind, EventPage
from ampref_service.errors import ParameterRefused
from ampref_service.event_feed import EventFeed, find_start, read_events
from ampref_service.keys import Caller

router = make_router("events")

_SEND_TIMEOUT_SEC = 60.0
"""A reader that takes nothing for so long has left; it resumes where it was."""
_MAX_POSITION = 2**53 - 1

AfterParam = Annotated[int | None, Query(ge=0, le=_MAX_POSITION, description="Begin behind this position.")]
LastParam = Annotated[int | None, Query(ge=0, le=1000, description="Instead of `after`: begin with so many of the newest.")]


class EventView(View):
    """Something that happened; `docs/events.md` lists the kinds and their data."""

    id: str = Field(description="Names the event for ever: recognize a repetition by it.")
    position: int = Field(description="Its place in the stream, without holes.")
    kind: EventKind
    at: Time
    dataset: str | None
    robot: str | None
    data: dict[str, Any]


class GapView(View):
    """Events that the cursor has missed, because they are kept no longer or it is of another catalog."""

    after: int
    oldest: int = Field(description="The position of the oldest event that is kept, or of the next.")


class EventPageView(View):
    """Events in the order in which they happened."""

    items: list[EventView]
    next_after: int = Field(description="Give it back as `after` for what comes then.")
    gap: GapView | None


_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page; with `Accept: text/event-stream` a stream that goes on, whose ids are positions.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    **responses(),
}


async def get_feed(request: Request) -> EventFeed:
    """The application's one poller."""
    return cast(EventFeed, request.app.state.event_feed)


@router.get("", response_model=EventPageView, responses=_EVENTS)
def get_events(
    services: ServicesDep,
    request: Request,
    caller: Annotated[Caller, needs("jobs:read")],
    feed: Annotated[EventFeed, Depends(get_feed)],
    kind: Annotated[list[EventKind] | None, Query(description="Only these kinds.")] = None,
    dataset: Annotated[DatasetName | None, Query()] = None,
    robot: Annotated[RobotName | None, Query()] = None,
    after: AfterParam = None,
    last: LastParam = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    last_event_id: Annotated[str | None, Header(description="Resume a stream after this event.")] = None,
) -> EventPage | Response:
    """What happened: a page, or with `Accept: text/event-stream` a stream of server-sent events."""
    criteria = EventFilter(tuple(kind or ()), dataset, robot, caller.bounds)
    if after is not None and last is not None:
        raise ParameterRefused("it is given beside after", key="query.last", expected="one of the two")
    if "text/event-stream" not in request.headers.get("accept", ""):
        start = after if last is None else find_start(services.catalog, criteria, last)
        return read_events(services.catalog, criteria, after=start, limit=limit)
    feed.check_room()
    event_id = re.fullmatch(r"[0-9]{1,15}", last_event_id or "")
    events = _format_events(feed.follow(criteria, int(event_id[0]) if event_id else after, last=last or 0))
    ping = services.settings.sse_ping_sec
    return EventSourceResponse(events, ping=ping, sep="\n", send_timeout=_SEND_TIMEOUT_SEC)


async def _format_events(items: AsyncGenerator[Event | EventGap | int, None]) -> AsyncIterator[ServerSentEvent]:
    async with contextlib.aclosing(items):
        async for item in items:
            match item:
                case Event():
                    data = EventView.model_validate(item).model_dump_json()
                    yield ServerSentEvent(data, event=item.kind, id=str(item.position), retry=2000, sep="\n")
                case EventGap():
                    data = GapView.model_validate(item).model_dump_json()
                    yield ServerSentEvent(data, event="gap", id=str(item.oldest - 1), sep="\n")
                case int():
                    # Without data it is no event: the reader remembers the id to resume from.
                    yield ServerSentEvent(id=str(item), sep="\n")
