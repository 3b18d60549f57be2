"""Jobs: state, progress by polling or by server-sent events, cancelling, retrying what was quarantined."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from fastapi import Depends, Header, Query, Request, Response
from pydantic import Field
from sse_starlette import EventSourceResponse, ServerSentEvent

from ampref_service.api.deps import AnnouncerDep, CallerDep, ServicesDep, needs
from ampref_service.api.pages import PageView, link_next, page_responses
from ampref_service.api.params import Cursor, Id, Time, View
from ampref_service.api.problems import responses
from ampref_service.api.strict import make_router
from ampref_service.catalog import job_rows, worker_rows
from ampref_service.catalog.records import Job, Page
from ampref_service.job_feed import JobFeed
from ampref_service.keys import Caller

router = make_router("jobs")

READ = [needs("jobs:read")]
Writer = Annotated[Caller, needs("jobs:write")]
State = Literal["queued", "running", "succeeded", "failed", "quarantined", "cancelled"]


class JobView(View):
    """A job: one rollout to score, or one version to lock."""

    id: str
    kind: Literal["rollout", "lock"]
    state: State
    clip_id: str | None
    recipe_digest: str | None
    dataset: str | None = Field(description="Of a lock job.")
    version: str | None = Field(description="Of a lock job.")
    progress: float = Field(description="0 to 1.")
    eta_sec: float | None = Field(
        description="Seconds that are left, by the rate of `progress` since `started_at`, as of `updated_at`; null while it is "
        "not running or too little is done to tell."
    )
    message: str | None
    attempts: int
    max_attempts: int
    losses: int = Field(description="Workers that were lost while they ran it; no attempt.")
    limit_sec: float | None = Field(description="Seconds that one attempt may take; null for a job of an older release.")
    worked_sec: float = Field(description="Seconds of worker time that its attempts took.")
    priority: int = Field(description="Among its owner's jobs: higher is earlier.")
    robot: str = Field(description="What its worker must have installed, by name and digest; empty: any worker will do.")
    robot_digest: str
    cancel_requested: bool
    error: dict[str, Any] | None = Field(description="Why the last attempt failed, with the members of a problem.")
    result: dict[str, Any] | None = Field(description="What a finished job made, for example its `rollout_id` and `tier`.")
    worker: str | None
    created_at: Time
    started_at: Time | None
    updated_at: Time
    finished_at: Time | None
    revision: int = Field(description="Grows with every change; the id of its server-sent event.")


class JobPage(PageView[JobView]):
    """Jobs, newest first."""


@router.get("", response_model=JobPage, responses=page_responses(), dependencies=READ)
def list_jobs(
    services: ServicesDep,
    request: Request,
    response: Response,
    caller: CallerDep,
    state: Annotated[State | None, Query()] = None,
    kind: Annotated[Literal["rollout", "lock"] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[Cursor | None, Query()] = None,
) -> Page[Job]:
    """Jobs, newest first; `state=quarantined` lists those that need somebody to look."""
    with services.catalog.session() as session:
        page = job_rows.list_jobs(session, state=state, kind=kind, limit=limit, cursor=cursor, bounds=caller.bounds)
        page = replace(page, items=tuple(worker_rows.explain_waiting(session, page.items)))
    return link_next(request, response, page)


@router.get("/{job_id}", response_model=JobView, responses=responses(404), dependencies=READ)
def get_job(job_id: Id, services: ServicesDep) -> Job:
    """A job's state and progress; of a queued one that no live worker can take, the message says why."""
    with services.catalog.session() as session:
        return worker_rows.explain_waiting(session, [job_rows.get(session, job_id)])[0]


async def get_feed(request: Request) -> JobFeed:
    """The application's one poller of jobs."""
    return cast(JobFeed, request.app.state.job_feed)


_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`progress` events while it is queued or runs, then one `done`; the data of each is the job.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "Last-Event-ID names the job's `done`: there is nothing more, do not reconnect."},
    **responses(404),
}


@router.get("/{job_id}/events", response_class=Response, responses=_EVENTS, dependencies=READ)
def get_job_events(
    job_id: Id,
    services: ServicesDep,
    feed: Annotated[JobFeed, Depends(get_feed)],
    last_event_id: Annotated[str | None, Header(description="Resume after this event.")] = None,
) -> Response:
    """Follow a job by server-sent events, to its end."""
    feed.check_room()
    job = get_job(job_id, services)
    event_id = re.fullmatch(r"\s*([0-9]{1,18})\s*", last_event_id or "")
    if job.finished and event_id and int(event_id[1]) >= job.revision:
        return Response(status_code=204)
    events = _format_events(feed.follow(job), last_event_id)
    return EventSourceResponse(events, ping=services.settings.sse_ping_sec, sep="\n")


async def _format_events(revisions: AsyncGenerator[Job, None], last_event_id: str | None) -> AsyncIterator[ServerSentEvent]:
    async with contextlib.aclosing(revisions):
        async for job in revisions:
            if str(job.revision) != last_event_id:
                data = JobView.model_validate(job).model_dump_json()
                event = "done" if job.finished else "progress"
                yield ServerSentEvent(data, event=event, id=str(job.revision), retry=2000)


@router.delete("/{job_id}", response_model=JobView, responses=responses(404, 409))
def cancel_job(job_id: Id, services: ServicesDep, caller: Writer) -> Job:
    """Cancel a job: at once while it is queued, at its worker's next heartbeat while it runs."""
    return services.queue.cancel(job_id, actor=caller.name)


@router.post("/{job_id}/retry", status_code=202, response_model=JobView, responses=responses(404, 409))
def retry_job(job_id: Id, services: ServicesDep, announcer: AnnouncerDep, caller: Writer) -> Job:
    """Score again what failed, was quarantined or cancelled: a job with fresh attempts, whose address is in Location."""
    job = services.queue.retry(job_id, owner=caller.owner, key=caller.key, actor=caller.name)
    announcer.announce(job)
    return job
