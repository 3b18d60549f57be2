"""The Jobs page: the queue, what runs and for how long yet, and what needs somebody to look; retry and cancel."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import BackgroundTasks, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from amp_core.recipe import GATE_PROFILE
from ampref_service.api.deps import CallerDep, ServicesDep, needs
from ampref_service.api.params import Cursor, Id
from ampref_service.catalog import clips, job_rows, recipes, worker_rows
from ampref_service.catalog.tables import JOB_STATES
from ampref_service.keys import Caller
from ampref_service.web.site import change_params, is_fragment, lead_to, make_page_router, own_address, render_page

router = make_page_router()

Writer = Annotated[Caller, needs("jobs:write")]

_LIMIT = 50


@router.get("/jobs", dependencies=[needs("jobs:read")])
def show_jobs(
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    state: Literal[*JOB_STATES, ""] = "",  # type: ignore[valid-type]
    cursor: Annotated[Cursor | None, Query()] = None,
) -> Response:
    """Jobs of a state, newest first, and the workers."""
    with services.catalog.session() as session:
        page = job_rows.list_jobs(session, state=state or None, limit=_LIMIT, cursor=cursor, bounds=caller.bounds)
        page = replace(page, items=tuple(worker_rows.explain_waiting(session, page.items)))
        names = clips.find_names(session, [job.clip_id for job in page.items if job.clip_id is not None])
        rows = recipes.get_many(session, {job.recipe_digest for job in page.items if job.recipe_digest})
        counts = job_rows.counts(session, caller.bounds)
        workers = worker_rows.list_workers(session, caller.bounds)
    params = [(name, value) for name, value in request.query_params.multi_items() if value]
    values = {
        "title": "Jobs",
        "section": "jobs",
        "page": page,
        "names": names,
        "asked": {digest: _describe_recipe(row.recipe) for digest, row in rows.items()},
        "now": time.time(),
        "counts": counts,
        "state": state,
        "cursor": cursor,
        "workers": workers,
        "may_write": "jobs:write" in caller.scopes,
        "link": lambda **changes: change_params(params, changes),
    }
    return render_page(request, "jobs_results.html" if is_fragment(request) else "jobs.html", values)


def _describe_recipe(recipe: Mapping[str, Any]) -> str:
    """What tells the rollouts of a clip apart: `tracked, seed 3, friction=0.7, amp-0.12-dynamic`."""
    parts = [str(recipe["mode"])]
    if recipe["seed"]:
        parts.append(f"seed {recipe['seed']}")
    if not (scale := recipes.physics_of(recipe)).is_identity:
        parts.append(scale.name)
    if recipe["gate_profile"] != GATE_PROFILE:
        parts.append(str(recipe["gate_profile"]))
    return ", ".join(parts)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(
    request: Request, job_id: Id, services: ServicesDep, caller: Writer, back: Annotated[str, Form(max_length=4000)] = ""
) -> Response:
    """Cancel a job, and go back to the page."""
    services.queue.cancel(job_id, actor=caller.name)
    return RedirectResponse(own_address(request, back, "/jobs"), 303)


@router.post("/jobs/{job_id}/retry")
def retry_job(
    request: Request,
    job_id: Id,
    services: ServicesDep,
    caller: Writer,
    background: BackgroundTasks,
) -> Response:
    """Queue a job again that came to no result, and show the one that does it in its place; the old one stays as it is."""
    job = services.queue.retry(job_id, owner=caller.owner, key=caller.key, actor=caller.name)
    background.add_task(services.ring, job.id)
    return lead_to(request, f"/jobs#{job.id}")
