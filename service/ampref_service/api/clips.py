"""Clips: upload, the curriculum query, one clip with its rollouts, deletion, another rollout, variants."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, TypeVar

import structlog
from anyio import to_thread
from fastapi import Depends, Form, Query, Request, Response
from starlette.requests import ClientDisconnect

from amp_core.augment import parse_all
from amp_core.errors import Busy
from ampref_service.api.clip_schemas import (
    AugmentBody,
    Augmented,
    ClipDetail,
    ClipFilter,
    ClipFilterParams,
    ClipForm,
    ClipPage,
    ClipQueryParams,
    FacetsView,
    HistogramParams,
    HistogramView,
    RolloutBody,
    Submitted,
)
from ampref_service.api.deps import Announcer, AnnouncerDep, CallerDep, ServicesDep, job_terms, needs
from ampref_service.api.files import StoredFile, add_file_route, serve_file
from ampref_service.api.links import A_DAY, LinkBody, LinkMakerDep, LinkView
from ampref_service.api.pages import link_next, page_responses
from ampref_service.api.params import Id
from ampref_service.api.problems import BODY_STATUSES, responses
from ampref_service.api.strict import make_router, parse_body
from ampref_service.api.wording import suggest_names
from ampref_service.catalog import clips, recipes
from ampref_service.catalog.curriculum import ClipQuery, list_clips
from ampref_service.catalog.distribution import count_facets, measure_histogram
from ampref_service.catalog.records import Facets, Histogram, ListedClip, Page, Submission
from ampref_service.errors import ParameterRefused
from ampref_service.keys import Caller
from ampref_service.recipes import recipe_row, resolve_recipe
from ampref_service.services import Services
from ampref_service.uploads import Upload, split_tags, start_lineage_check, start_reading, store_clip
from ampref_service.variants import find_parent, order_variants, store_variants

log = structlog.get_logger("ampref_service.clips")

T = TypeVar("T")

router = make_router("clips")

READ = [needs("clips:read")]
Writer = Annotated[Caller, needs("clips:write")]

_SUBMIT_RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {"model": Submitted, "description": "Accepted: it is stored, and its job is queued."},
    200: {"model": Submitted, "description": "Known already, with this recipe: nothing was added."},
    **responses(404, 409, *BODY_STATUSES),
}
_AUGMENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {"model": Augmented, "description": "Accepted: the variants are stored, and jobs are queued for what is new."},
    200: {"model": Augmented, "description": "All known already, with this recipe: nothing was added."},
    **responses(404, 409, *BODY_STATUSES),
}


async def _refuse_repeated_fields(request: Request) -> None:
    """Raise `ParameterRefused` for a form in which a field stands twice, of which the last would be taken silently."""
    for name, count in Counter(name for name, _ in (await request.form()).multi_items()).items():
        if count > 1 and name != "tags":
            raise ParameterRefused("it is given more than once", key=f"body.{name[:64]}", expected="one value")


async def _wait_for_reader(request: Request, reading: Future[T]) -> T:
    """What a reader gives, unless the client leaves before one has begun, or none begins for as long as a request may take.

    Raises:
      Busy: no reader was free in time.
      ClientDisconnect: nobody waits for the answer any more.
    """

    async def wait_for_end() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer: asyncio.Future[T] = asyncio.wrap_future(reading)
    end: asyncio.Future[Any] = asyncio.ensure_future(wait_for_end())
    try:
        timeout = request.app.state.services.settings.request_timeout_sec
        await asyncio.wait([answer, end], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not (answer.done() or end.done() or reading.running()):
            raise Busy(
                f"no reader was free within {timeout:g} s",
                remedy="Send it again in some seconds, as the client does by itself (Retry-After says when)",
            )
        if end.done() and reading.cancel():
            raise ClientDisconnect
        return await answer
    finally:
        end.cancel()
        answer.cancel()


def _announce(submissions: Sequence[Submission], announcer: Announcer) -> None:
    """Wake workers for new jobs, and set the status of the answer: 200 where all was known before, else 202."""
    for submission in submissions:
        if submission.new_job and submission.job is not None:
            announcer.ring(submission.job)
    announcer.response.status_code = 200 if all(submission.is_known for submission in submissions) else 202


def _answer_submission(submission: Submission, announcer: Announcer) -> Submission:
    _announce([submission], announcer)
    announcer.response.headers["location"] = f"/v1/clips/{submission.clip.id}"
    return submission


@router.post(
    "", status_code=202, response_model=Submitted, responses=_SUBMIT_RESPONSES, dependencies=[Depends(_refuse_repeated_fields)]
)
async def post_clip(
    form: Annotated[ClipForm, Form(media_type="multipart/form-data")],
    request: Request,
    services: ServicesDep,
    announcer: AnnouncerDep,
    caller: Writer,
) -> Submission:
    """Upload a motion and have it scored. It is read and checked in full before anything is stored."""
    caller.check_robot(form.robot)
    recipe = None if form.recipe is None else parse_body(form.recipe.encode(), subject="the recipe")
    resolved_recipe = resolve_recipe(form.mode, form.seed, recipe, max_plans=services.settings.max_plans)
    upload = Upload(
        file=form.file.file,
        size=form.file.size or 0,
        filename=form.file.filename or "",
        tags=split_tags(form.tags),
        **form.model_dump(include={"name", "format", "fps", "quat_order"}),
    )
    robot, terms = services.robot(form.robot), job_terms(services, caller, form.priority)
    facts = await _wait_for_reader(request, start_reading(services, robot, upload, resolved_recipe.mode))
    threads, is_variant = services.spool.threads, False
    if facts["lineage"] is not None:
        with ExitStack() as stack:
            check = await to_thread.run_sync(start_lineage_check, services, robot, facts, stack, limiter=threads)
            is_variant = check is not None and await _wait_for_reader(request, check)
    store = partial(
        store_clip, services, robot, upload, facts, resolved_recipe, terms, is_variant=is_variant, actor=caller.name
    )
    return _answer_submission(await to_thread.run_sync(store, limiter=threads), announcer)


@router.get("", response_model=ClipPage, responses=page_responses(), dependencies=READ)
def get_clips(
    query: Annotated[ClipQueryParams, Query()],
    services: ServicesDep,
    request: Request,
    response: Response,
    caller: CallerDep,
) -> Page[ListedClip]:
    """The curriculum query: clips by tier, robot, mode, tags, duration and any metric, sorted by any metric, in pages."""
    clip_query = _bound_query(query, services, caller)
    with services.catalog.session() as session:
        return link_next(request, response, list_clips(session, clip_query))


def _bound_query(query: ClipFilter, services: Services, caller: Caller) -> ClipQuery:
    """The query for the catalog, of the caller's robots alone.

    Raises:
      Forbidden: it asks for another robot.
      ParameterRefused: there is no such robot.
    """
    if query.robot is not None:
        caller.check_robot(query.robot)
        if query.robot not in services.robots:
            with services.catalog.session() as session:
                names = sorted(clips.robots(session) | services.robots.keys())
            if query.robot not in names:
                raise ParameterRefused(
                    f"there is no such robot{suggest_names(query.robot, names)}",
                    key="query.robot",
                    expected=f"one of {', '.join(names)}",
                    remedy="See /v1/robots",
                )
    return replace(query.to_query(), robots=caller.bounds.robots)


@router.get("/histogram", response_model=HistogramView, responses=responses(422), dependencies=READ)
def get_histogram(query: Annotated[HistogramParams, Query()], services: ServicesDep, caller: CallerDep) -> Histogram:
    """The distribution of a metric among the clips that the other filters leave; numbers may be some seconds old."""
    return read_histogram(services, _bound_query(query, services, caller), query.metric, query.bins)


def read_histogram(services: Services, query: ClipQuery, metric: str, bins: int) -> Histogram:
    """The distribution of a metric among the clips of a query, some seconds old at most; raises as `measure_histogram`."""

    def measure() -> Histogram:
        with services.catalog.session() as session:
            return measure_histogram(session, query, metric, bins)

    return services.answers.get(("histogram", metric, bins, query.fingerprint()), measure)


@router.get("/facets", response_model=FacetsView, responses=responses(422), dependencies=READ)
def get_facets(query: Annotated[ClipFilterParams, Query()], services: ServicesDep, caller: CallerDep) -> Facets:
    """How many clips a query has, and by tier, robot, mode, gate profile and tag; numbers may be some seconds old."""
    return read_facets(services, _bound_query(query, services, caller))


def read_facets(services: Services, query: ClipQuery) -> Facets:
    """How many clips a query has, in all and with each value of a filter, some seconds old at most."""

    def count() -> Facets:
        with services.catalog.session() as session:
            return count_facets(session, query)

    return services.answers.get(("facets", query.fingerprint()), count)


@router.get("/{clip_id}", response_model=ClipDetail, responses=responses(404), dependencies=READ)
def get_clip(clip_id: Id, services: ServicesDep) -> dict[str, Any]:
    """One clip with its rollouts and jobs."""
    with services.catalog.session() as session:
        clip, rollouts, jobs = clips.get_with_rollouts(session, clip_id)
        rows = recipes.get_many(session, {rollout.recipe_digest for rollout in rollouts})
    buckets = {digest: recipes.physics_of(row.recipe).name for digest, row in rows.items()}
    return {
        **vars(clip),
        "parent": clip.parent,
        "lineage": clip.lineage,
        "rollouts": [
            vars(rollout) | {"bucket": buckets[rollout.recipe_digest], "thumbnail_url": rollout.thumbnail_url}
            for rollout in rollouts
        ],
        "jobs": jobs,
    }


def get_file(clip_id: Id, request: Request, services: ServicesDep) -> Response:
    """The bytes that were uploaded, with their SHA-256 as ETag."""
    with services.catalog.session() as session:
        clip = clips.get(session, clip_id)
    file = StoredFile(clip.blob_digest, clip.size, f"{clip.id}.{clip.source_format}")
    return serve_file(request, services.blobs, file)


add_file_route(router, "/{clip_id}/file", get_file, "clip_file", dependencies=READ)


@router.post("/{clip_id}/file/link", responses=responses(404, *BODY_STATUSES), dependencies=READ)
def link_clip_file(clip_id: Id, services: ServicesDep, links: LinkMakerDep, body: LinkBody = A_DAY) -> LinkView:
    """A link to the bytes that were uploaded, which needs no key and expires."""
    with services.catalog.session() as session:
        clip = clips.get(session, clip_id)
    return links.make(f"/v1/clips/{clip.id}/file", body)


@router.delete("/{clip_id}", status_code=204, responses=responses(404, 409))
def delete_clip(clip_id: Id, services: ServicesDep, caller: Writer) -> None:
    """Delete a clip with its rollouts and cancel its jobs; refused while a locked version holds it."""
    with services.catalog.begin() as session:
        deletion = clips.delete_clip(session, clip_id, actor=caller.name)
    log.info("clip_deleted", clip=deletion.id, cancelled_jobs=len(deletion.cancelled_jobs), blobs=len(deletion.blobs))


@router.post("/{clip_id}/rollouts", status_code=202, response_model=Submitted, responses=_SUBMIT_RESPONSES)
def post_rollout(clip_id: Id, body: RolloutBody, services: ServicesDep, announcer: AnnouncerDep, caller: Writer) -> Submission:
    """Score a clip again with another recipe."""
    recipe = recipe_row(resolve_recipe(body.mode, body.seed, body.recipe, max_plans=services.settings.max_plans))
    terms = job_terms(services, caller, body.priority)
    with services.catalog.begin() as session:
        submission = clips.request_rollout(session, clip_id, recipe, terms=terms, actor=caller.name)
    return _answer_submission(submission, announcer)


@router.post("/{clip_id}/augment", status_code=202, response_model=Augmented, responses=_AUGMENT_RESPONSES)
async def post_augment(
    clip_id: Id, body: AugmentBody, request: Request, services: ServicesDep, announcer: AnnouncerDep, caller: Writer
) -> dict[str, Any]:
    """Make variants of a clip for coverage, each a clip of its own, and have them scored: all of them, or none."""
    recipe = resolve_recipe(body.mode, body.seed, body.recipe, max_plans=services.settings.max_plans)
    terms = job_terms(services, caller, body.priority)
    augmentations, tags = parse_all(body.augmentations), split_tags(body.tags)
    parent, robot = await to_thread.run_sync(find_parent, services, clip_id)
    threads = services.spool.threads
    with request.app.state.admission.admit(parent.size * (1 + len(augmentations))), ExitStack() as stack:
        order = await to_thread.run_sync(order_variants, services, parent, robot, augmentations, stack, limiter=threads)
        results = await _wait_for_reader(request, order.reading)
        store = partial(store_variants, services, order, results, recipe, terms, tags=tags, actor=caller.name)
        parent, variants = await to_thread.run_sync(store, limiter=threads)
    _announce(variants, announcer)
    return {"parent": parent, "variants": variants}
