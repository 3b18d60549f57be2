"""Clips: upload, the curriculum query, one clip with its rollouts, deletion, another rollout."""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, BackgroundTasks, Depends, Form, Query, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from amp_core.augment import parse_all
from amp_core.errors import RecipeRefused
from amp_core.quality import METRICS
from amp_core.recipe import DEFAULT_MODE, GENERATED_MODES, Recipe
from amp_core.tiers import check_recipe
from ampref_service import uploads
from ampref_service.api.blob import IMMUTABLE, StoredFile, file_responses, serve
from ampref_service.api.deps import Caller, Service, needs
from ampref_service.api.faults import suggestion
from ampref_service.api.jobs import JobView
from ampref_service.api.pages import LINK_HEADER, PageView, link_next
from ampref_service.api.params import Body, Cursor, Id, Mode, Name, RobotName, Seed, Tag, TierParam, Time, View
from ampref_service.api.rollouts import ClipRolloutView, RolloutSummaryView
from ampref_service.api.strict import StrictRoute, fields_once, loads
from ampref_service.catalog import clips as queries
from ampref_service.catalog.curriculum import MAX_LIMIT, SORTS, ClipQuery, list_clips
from ampref_service.catalog.records import Clip, ListedClip, Submission
from ampref_service.errors import ParameterRefused, responses

log = structlog.get_logger("service.clips")

router = APIRouter(prefix="/clips", route_class=StrictRoute, tags=["clips"])


class ClipView(View):
    """A clip as it was uploaded."""

    id: str
    name: str
    robot: str
    robot_digest: str
    source_digest: str = Field(description="SHA-256 of the uploaded bytes.")
    source_format: str
    read_options: dict[str, Any] = Field(description="`fps` and `quat_order`, where they were given at the upload.")
    size: int = Field(description="bytes")
    frames_in: int
    fps_in: float
    duration_sec: float
    tags: list[str]
    created_at: Time
    parent: str | None = Field(description="Of a variant: the id of the clip that it was made from, while that is here.")
    parent_digest: str | None = Field(description="Of a variant: SHA-256 of the bytes that it was made from.")
    augmentation: str | None = Field(description="Of a variant: what was done, such as `mirror+warp=0.9`.")
    lineage: str = Field(description="What a clip shares with all its variants: SHA-256 of the original's bytes.")


class ListedClipView(ClipView):
    """A clip in the curriculum, with the rollout that speaks for it."""

    rollout: RolloutSummaryView | None = Field(
        description="Its best rollout, or its best in the mode asked for; null until scored."
    )

    @classmethod
    def of(cls, listed: ListedClip) -> ListedClipView:
        """The view of a record."""
        rollout = RolloutSummaryView.of(listed.rollout) if listed.rollout else None
        return cls.model_validate(_facts(listed) | {"rollout": rollout})


class ClipDetail(ClipView):
    """A clip with all its rollouts, the best first, and its jobs, newest first."""

    rollouts: list[ClipRolloutView]
    jobs: list[JobView]


class ClipPage(PageView[ListedClipView]):
    """A page of the curriculum."""


class Submitted(BaseModel):
    """What became of an upload, or of a wish for a rollout."""

    clip: ClipView
    job: JobView | None = Field(description="The job that scores it, or scored it.")
    rollout: RolloutSummaryView | None = Field(description="The result, when it is known already.")


class SeamView(View):
    """Where a loop closes: frame `end` of the parent is followed by frame `start`."""

    start: int
    end: int
    cycle_sec: float = Field(description="s, of one repetition.")
    residual: float = Field(description="The largest difference of the two frames, as a share of what is allowed; 0 to 1.")
    worst: str = Field(description="Which difference that is.")
    blend_sec: float


class VariantView(Submitted):
    """A variant and what became of it."""

    augmentation: str
    seam: SeamView | None = Field(description="Of a loop.")


class Augmented(BaseModel):
    """A clip and the variants that were asked for."""

    parent: ClipView
    variants: list[VariantView]


class ClipForm(BaseModel):
    """A motion file and what to do with it."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile = Field(description="The motion: `.pkl` (GMR), `.npz`, `.json` or `.csv`.")
    name: Name | None = Field(None, description="The clip's name; default: the file name without its ending.")
    robot: RobotName = Field("wildrobot", description="The robot it was retargeted to.")
    mode: Mode | None = Field(
        None, description="`auto` (default), `rollout`, `tracked` or `teacher_forced`, where `recipe` does not say it."
    )
    seed: Seed | None = Field(None, description="Of the recipe, where that does not say it; default 0.")
    tags: list[Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=4000)]] = Field(
        default_factory=list, max_length=50, description="Repeat the field, or separate by commas."
    )
    fps: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Frames a second, for formats that do not say it (CSV)."
    )
    quat_order: Literal["xyzw", "wxyz"] | None = Field(
        None, description="Of the quaternions, for formats that do not say it (CSV)."
    )
    format: Literal["pkl", "npz", "json", "csv"] | None = Field(
        None, description="Default: by the file name's ending, then by content."
    )
    recipe: Annotated[str, StringConstraints(max_length=20_000)] | None = Field(
        None, description="A recipe as JSON, or the part that differs from the mode's usual one; see `/v1/schema/modes`."
    )


class RolloutBody(Body):
    """Which recipe to score a clip with: a mode's usual one, a whole one, or the part that differs."""

    recipe: dict[str, Any] | None = None
    mode: Mode | None = None
    seed: Seed | None = None


class AugmentBody(RolloutBody):
    """Which variants of a clip to make, and how to score them."""

    augmentations: list[Annotated[str, StringConstraints(pattern=r"^[a-z0-9=.:+-]{1,120}$")]] = Field(
        min_length=1,
        max_length=20,
        description="`mirror`, `warp=0.9`, `heading=90`, `loop=3`, or several joined by `+`; each makes one clip.",
    )
    tags: list[Tag] = Field(default_factory=list, max_length=50, description="Besides those of the parent.")


def _facts(clip: Clip | ListedClip) -> dict[str, Any]:
    return {name: getattr(clip, name) for name in ClipView.model_fields}


def _recipe(mode: str | None, seed: int | None, recipe: Any | None) -> Recipe:
    """The recipe asked for: `mode` and `seed` are those of a recipe that does not say them itself."""
    if recipe is None:
        return Recipe.for_mode(mode or DEFAULT_MODE, seed=seed or 0)
    found = _merged(mode, seed, recipe)
    # Before it is stored; the worker would refuse it too.
    check_recipe(found)
    return found


def _merged(mode: str | None, seed: int | None, recipe: Any) -> Recipe:
    if not isinstance(recipe, dict):
        return Recipe.from_dict(recipe)
    for name, value in (("mode", mode), ("seed", seed)):
        if value is not None and recipe.get(name, value) != value:
            raise RecipeRefused(
                f"{name} is given twice: in the recipe and beside it, and they differ",
                key=name,
                expected="one of the two, or both the same",
                remedy=f"Leave out the field {name}",
            )
    beside = {"mode": mode or DEFAULT_MODE} | ({} if seed is None else {"seed": seed})
    return Recipe.from_dict(beside | recipe)


def _tags(given: list[str]) -> tuple[str, ...]:
    return queries.check_tags(tag.strip() for field in given for tag in field.split(",") if tag.strip())


def _submitted(request: Request, response: Response, later: BackgroundTasks, service: Service, made: Submission) -> Submitted:
    _ring(later, service, made)
    response.status_code = 200 if _known(made) else 202
    response.headers["location"] = f"/v1/clips/{made.clip.id}"
    return _made(made)


def _ring(later: BackgroundTasks, service: Service, made: Submission) -> None:
    if made.new_job and made.job is not None:
        # After the answer: a slow broker makes nobody wait, and the row is what counts.
        later.add_task(uploads.ring, service.notify, made.job.id)


def _known(made: Submission) -> bool:
    return made.rollout is not None or not made.new_job


def _made(made: Submission) -> Submitted:
    return Submitted(
        clip=ClipView.model_validate(_facts(made.clip)),
        job=JobView.of(made.job) if made.job else None,
        rollout=RolloutSummaryView.of(made.rollout) if made.rollout else None,
    )


_SUBMIT_RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {"model": Submitted, "description": "Accepted: it is stored, and its job is queued."},
    200: {"model": Submitted, "description": "Known already, with this recipe: nothing was added."},
}


@router.post(
    "",
    status_code=202,
    responses={**_SUBMIT_RESPONSES, **responses(400, 404, 408, 409, 413, 415, 422)},
    dependencies=[Depends(fields_once("tags"))],
)
def post_clip(
    form: Annotated[ClipForm, Form(media_type="multipart/form-data")],
    opened: Service,
    request: Request,
    response: Response,
    later: BackgroundTasks,
    who: Annotated[Caller, needs("clips:write")],
) -> Submitted:
    """Upload a motion and have it scored. It is read and checked in full before anything is stored."""
    recipe = _recipe(form.mode, form.seed, None if form.recipe is None else loads(form.recipe.encode(), what="the recipe"))
    upload = uploads.Upload(
        file=form.file.file,
        size=form.file.size or 0,
        filename=form.file.filename or "",
        name=form.name,
        format=form.format,
        fps=form.fps,
        quat_order=form.quat_order,
        tags=_tags(form.tags),
    )
    robot = opened.robot(form.robot)
    made = uploads.accept_clip(opened.catalog, opened.blobs, opened.settings, robot, upload, recipe, actor=who.name)
    return _submitted(request, response, later, opened, made)


def _query_model() -> Any:
    bound = Annotated[float | None, Field(allow_inf_nan=False)]
    fields: dict[str, Any] = {
        "tier": (
            TierParam | None,
            Field(None, description="0, 1, or -1 for Rejected: of the rollout that speaks for the clip."),
        ),
        "robot": (RobotName | None, Field(None, description="The robot of the clip; one that is installed or has clips.")),
        "mode": (
            Literal[GENERATED_MODES] | None,
            Field(None, description="Let the best rollout in this mode speak for the clip."),
        ),
        "tag": (list[Tag], Field(default_factory=list, max_length=20, description="Repeatable: the clip bears all of them.")),
        "name": (RobotName | None, Field(None, description="Part of the name, in any case.")),
        "parent": (Id | None, Field(None, description="The id of a clip: its variants.")),
        "min_duration_sec": (
            Annotated[float | None, Field(ge=0, allow_inf_nan=False)],
            Field(None, description="s, as uploaded."),
        ),
        "sort": (
            Literal[tuple(f"{sign}{key}" for key in SORTS for sign in ("", "-"))],
            Field("-created_at", description="Ascending, or with `-` before it descending; clips without a value come last."),
        ),
        "limit": (Annotated[int, Field(ge=1, le=MAX_LIMIT)], 50),
        "cursor": (Cursor | None, Field(None, description="`next_cursor` of the page before.")),
    }
    for metric in METRICS:
        for side, word in (("min", "at least"), ("max", "at most")):
            text = f"{word} this `{metric.name}` [{metric.unit}]"
            fields[f"{side}_{metric.name}"] = (bound, Field(None, description=text))
    return create_model("ClipQueryParams", **fields)


ClipQueryParams = _query_model()


@router.get("", responses={200: {"headers": LINK_HEADER}, **responses(422)}, dependencies=[needs("clips:read")])
def get_clips(
    query: Annotated[ClipQueryParams, Query()],  # type: ignore[valid-type]
    opened: Service,
    request: Request,
    response: Response,
) -> ClipPage:
    """The curriculum query: clips by tier, robot, mode, tags, duration and any metric, sorted by any metric, in pages."""
    with opened.catalog.session() as session:
        asked = _clip_query(query)
        if asked.robot is not None and asked.robot not in opened.robots:
            _check_robot(queries.robots(session) | opened.robots.keys(), asked.robot)
        page = list_clips(session, asked)
    link_next(request, response, page.next_cursor)
    return ClipPage(items=[ListedClipView.of(item) for item in page.items], next_cursor=page.next_cursor)


def _check_robot(known: Set[str], robot: str) -> None:
    if robot not in known:
        raise ParameterRefused(
            f"there is no such robot{suggestion(robot, sorted(known))}",
            key="query.robot",
            expected=f"one of {', '.join(sorted(known))}",
            remedy="See /v1/robots",
        )


def _clip_query(query: Any) -> ClipQuery:
    bounds = {m.name: (getattr(query, f"min_{m.name}"), getattr(query, f"max_{m.name}")) for m in METRICS}
    for name, (low, high) in bounds.items():
        if low is not None and high is not None and low > high:
            raise ParameterRefused(f"min_{name} is above max_{name}", key=f"query.min_{name}", expected="the lower bound first")
    return ClipQuery(
        tier=query.tier,
        robot=query.robot,
        mode=query.mode,
        tags=tuple(query.tag),
        min_duration_sec=query.min_duration_sec,
        name=query.name,
        parent=query.parent,
        metrics={name: pair for name, pair in bounds.items() if pair != (None, None)},
        sort=query.sort.removeprefix("-"),
        descending=query.sort.startswith("-"),
        limit=query.limit,
        cursor=query.cursor,
    )


@router.get("/{clip_id}", responses=responses(404), dependencies=[needs("clips:read")])
def get_clip(clip_id: Id, opened: Service) -> ClipDetail:
    """One clip with its rollouts and jobs."""
    with opened.catalog.session() as session:
        clip, rollouts, jobs = queries.get_with_rollouts(session, clip_id)
        recipes = queries.get_recipes(session, {one.recipe_digest for one in rollouts})
    views = [ClipRolloutView.in_physics(one, recipes[one.recipe_digest]) for one in rollouts]
    parts = {"rollouts": views, "jobs": [JobView.of(job) for job in jobs]}
    return ClipDetail.model_validate(_facts(clip) | parts)


def _file(clip_id: Id, request: Request, opened: Service) -> Response:
    """The bytes that were uploaded, with their SHA-256 as ETag."""
    with opened.catalog.session() as session:
        clip = queries.get(session, clip_id)
    name = f"{clip.id}.{clip.source_format}"
    return serve(request, opened.blobs, StoredFile(clip.blob_digest, clip.size, name, "application/octet-stream", IMMUTABLE))


for method in ("GET", "HEAD"):
    router.add_api_route(
        "/{clip_id}/file",
        _file,
        methods=[method],
        name="get_clip_file" if method == "GET" else "head_clip_file",
        response_class=Response,
        responses=file_responses("application/octet-stream", 404),
        dependencies=[needs("clips:read")],
    )


@router.delete("/{clip_id}", status_code=204, responses=responses(404, 409))
def delete_clip(clip_id: Id, opened: Service, who: Annotated[Caller, needs("clips:write")]) -> None:
    """Delete a clip with its rollouts and cancel its jobs; refused while a locked version holds it."""
    with opened.catalog.begin() as session:
        gone = queries.delete_clip(session, clip_id, actor=who.name)
    log.info("clip_deleted", clip=gone.id, cancelled_jobs=len(gone.cancelled_jobs), blobs=len(gone.blobs))


@router.post(
    "/{clip_id}/rollouts", status_code=202, responses={**_SUBMIT_RESPONSES, **responses(400, 404, 408, 409, 413, 415, 422)}
)
def post_rollout(
    clip_id: Id,
    body: RolloutBody,
    opened: Service,
    request: Request,
    response: Response,
    later: BackgroundTasks,
    who: Annotated[Caller, needs("clips:write")],
) -> Submitted:
    """Score a clip again with another recipe."""
    recipe = uploads.recipe_row(_recipe(body.mode, body.seed, body.recipe))
    attempts = opened.settings.max_attempts
    with opened.catalog.begin() as session:
        made = queries.request_rollout(session, clip_id, recipe, max_attempts=attempts, actor=who.name)
    return _submitted(request, response, later, opened, made)


@router.post(
    "/{clip_id}/augment",
    status_code=202,
    responses={
        202: {"model": Augmented, "description": "Accepted: the variants are stored, and jobs are queued for what is new."},
        200: {"model": Augmented, "description": "All known already, with this recipe: nothing was added."},
        **responses(400, 404, 408, 409, 413, 415, 422),
    },
)
def post_augment(
    clip_id: Id,
    body: AugmentBody,
    opened: Service,
    response: Response,
    later: BackgroundTasks,
    who: Annotated[Caller, needs("clips:write")],
) -> Augmented:
    """Make variants of a clip for coverage, each a clip of its own, and have them scored: all of them, or none."""
    recipe = _recipe(body.mode, body.seed, body.recipe)
    wanted = parse_all(body.augmentations)
    made = uploads.augment_clip(
        opened.catalog,
        opened.blobs,
        opened.settings,
        opened.robot,
        clip_id,
        wanted,
        recipe,
        tags=_tags(body.tags),
        actor=who.name,
    )
    with opened.catalog.session() as session:
        parent = queries.get(session, clip_id)
    for variant in made:
        _ring(later, opened, variant.made)
    response.status_code = 200 if all(_known(variant.made) for variant in made) else 202
    return Augmented(
        parent=ClipView.model_validate(_facts(parent)),
        variants=[
            VariantView(
                augmentation=variant.augmentation.text,
                seam=None if variant.seam is None else SeamView.model_validate(variant.seam),
                **dict(_made(variant.made)),
            )
            for variant in made
        ],
    )
