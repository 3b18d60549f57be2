"""Jobs: state, progress by polling or by server-sent events, cancelling, retrying what was quarantined."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import anyio
import anyio.to_thread
from fastapi import APIRouter, BackgroundTasks, Header, Query, Request, Response
from pydantic import Field
from sse_starlette import EventSourceResponse, ServerSentEvent

from amp_core.errors import NotFound
from ampref_service import uploads
from ampref_service.api.deps import Caller, Service, Services, needs
from ampref_service.api.pages import LINK_HEADER, PageView, link_next
from ampref_service.api.params import Cursor, Id, Time, View
from ampref_service.api.strict import StrictRoute
from ampref_service.catalog import job_rows
from ampref_service.catalog.records import Job
from ampref_service.errors import responses

router = APIRouter(prefix="/jobs", route_class=StrictRoute, tags=["jobs"])

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
    cancel_requested: bool
    error: dict[str, Any] | None = Field(description="Why the last attempt failed, with the members of a problem.")
    result: dict[str, Any] | None = Field(description="What a finished job made, for example its `rollout_id` and `tier`.")
    worker: str | None
    created_at: Time
    started_at: Time | None
    updated_at: Time
    finished_at: Time | None
    revision: int = Field(description="Grows with every change; the id of its server-sent event.")

    @classmethod
    def of(cls, job: Job) -> JobView:
        """The view of a row."""
        facts = {name: getattr(job, name) for name in cls.model_fields if hasattr(job, name)}
        return cls.model_validate(facts | {"dataset": job.payload.get("dataset"), "version": job.payload.get("version")})


class JobPage(PageView[JobView]):
    """Jobs, newest first."""


@router.get("", responses={200: {"headers": LINK_HEADER}, **responses(422)}, dependencies=[needs("jobs:read")])
def list_jobs(
    opened: Service,
    request: Request,
    response: Response,
    state: Annotated[State | None, Query()] = None,
    kind: Annotated[Literal["rollout", "lock"] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[Cursor | None, Query()] = None,
) -> JobPage:
    """Jobs, newest first; `state=quarantined` lists those that need somebody to look."""
    with opened.catalog.session() as session:
        page = job_rows.list_jobs(session, state=state, kind=kind, limit=limit, cursor=cursor)
    link_next(request, response, page.next_cursor)
    return JobPage(items=[JobView.of(job) for job in page.items], next_cursor=page.next_cursor)


@router.get("/{job_id}", responses=responses(404), dependencies=[needs("jobs:read")])
def get_job(job_id: Id, opened: Service) -> JobView:
    """A job's state and progress."""
    return JobView.of(_read(opened, job_id))


def _read(opened: Services, job_id: str) -> Job:
    with opened.catalog.session() as session:
        return job_rows.get(session, job_id)


_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`progress` events while it is queued or runs, then one `done`; the data of each is the job.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "Last-Event-ID names the job's `done`: there is nothing more, do not reconnect."},
}


@router.get(
    "/{job_id}/events", response_class=Response, responses={**_EVENTS, **responses(404)}, dependencies=[needs("jobs:read")]
)
def get_job_events(
    job_id: Id,
    opened: Service,
    last_event_id: Annotated[str | None, Header(description="Resume after this event.")] = None,
) -> Response:
    """Follow a job by server-sent events, to its end."""
    job = _read(opened, job_id)
    if job.finished and _names_the_end(last_event_id, job.revision):
        return Response(status_code=204)
    settings = opened.settings
    return EventSourceResponse(_events(opened, job_id, last_event_id), ping=settings.sse_ping_sec, sep="\n")


def _names_the_end(last_event_id: str | None, revision: int) -> bool:
    # Ids only grow, so one beyond the last is of a client that has seen everything, too.
    seen = (last_event_id or "").strip()
    return seen.isascii() and seen.isdigit() and len(seen) <= 18 and int(seen) >= revision


async def _events(opened: Services, job_id: str, seen: str | None) -> AsyncIterator[ServerSentEvent]:
    while True:
        try:
            job = await anyio.to_thread.run_sync(_read, opened, job_id)
        except NotFound:
            return
        if str(job.revision) != seen:
            seen = str(job.revision)
            data = JobView.of(job).model_dump_json()
            yield ServerSentEvent(data, event="done" if job.finished else "progress", id=seen, retry=2000)
        if job.finished:
            return
        await anyio.sleep(opened.settings.sse_interval_sec)


@router.delete("/{job_id}", responses=responses(404, 409))
def cancel_job(job_id: Id, opened: Service, who: Annotated[Caller, needs("jobs:write")]) -> JobView:
    """Cancel a job: at once while it is queued, at its worker's next heartbeat while it runs."""
    return JobView.of(opened.queue.cancel(job_id, actor=who.name))


@router.post("/{job_id}/retry", status_code=202, responses=responses(404, 409))
def retry_job(
    job_id: Id, opened: Service, response: Response, later: BackgroundTasks, who: Annotated[Caller, needs("jobs:write")]
) -> JobView:
    """Score again what failed, was quarantined or cancelled: a job with fresh attempts, whose address is in Location."""
    again = opened.queue.retry(job_id, actor=who.name)
    later.add_task(uploads.ring, opened.notify, again.id)
    response.headers["location"] = f"/v1/jobs/{again.id}"
    return JobView.of(again)
