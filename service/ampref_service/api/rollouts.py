"""Rollouts: what a clip became under a recipe."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response
from pydantic import AliasChoices, Field

from amp_core.errors import NotFound
from amp_core.frames import WindowType
from ampref_service.api.deps import ServicesDep, needs
from ampref_service.api.files import StoredFile, add_file_route, npz_responses, serve_file
from ampref_service.api.frames import FrameQuery, serve_frames
from ampref_service.api.links import A_DAY, LinkBody, LinkMakerDep, LinkView
from ampref_service.api.params import GeneratedMode, Id, Metrics, Tier, Time, View, text_field
from ampref_service.api.problems import BODY_STATUSES, responses
from ampref_service.api.strict import make_router
from ampref_service.catalog import clips, recipes, rollouts, thumbnails

router = make_router("rollouts", dependencies=[needs("clips:read")])

MAX_ROW = 2**31 - 1
ArrayNames = Annotated[
    str,
    text_field(
        r"^[A-Za-z0-9_]{1,64}(,[A-Za-z0-9_]{1,64})*$",
        "names of arrays separated by commas, for example qpos,sum_fn_per_frame",
        max_length=2000,
    ),
]


class RolloutSummaryView(View):
    """A rollout in a list."""

    id: str
    recipe_digest: str
    mode: GeneratedMode
    tier: Tier = Field(description="0, 1, or -1 for Rejected.")
    tier_reason: str
    frames: int
    gate_profile: str
    feature_code_hash: str
    arrays_digest: str = Field(description="SHA-256 of its export, which `POST /v1/arrays` takes.")
    arrays_size: int = Field(description="bytes")
    quality_metrics: Metrics = Field(validation_alias=AliasChoices("quality_metrics", "metrics"))
    thumbnail_url: str | None = Field(None, description="A WebP of six poses; null until a worker has made it.")
    created_at: Time


class ClipRolloutView(RolloutSummaryView):
    """A rollout among those of its clip."""

    bucket: str = Field(description="The physics of its recipe: `canonical`, or factors such as `friction=0.7,mass=1.1`.")


class RolloutView(ClipRolloutView):
    """A rollout with its gates, segments and provenance."""

    clip_id: str
    clip_name: str
    robot: str
    source_digest: str
    duration_sec: float
    gates: list[dict[str, Any]] = Field(description="`{name, value, threshold, passed, …}` of every gate.")
    segments: list[dict[str, Any]] = Field(description="`{start, end, tier, score, quality_metrics}`, frames half-open.")
    failure: dict[str, Any] | None = Field(
        description="`{frame, reason, warnings}` of a simulation that had to stop, MuJoCo's warnings by name; else null."
    )
    diagnosis: dict[str, Any] | None = Field(
        description="`{findings, suggestions}`: why it is not Tier 0, in physical words; null where it is, and for results of "
        "earlier releases. docs/diagnosis.md lists the codes."
    )
    contact_warnings: list[dict[str, Any]] = Field(
        description="Suspicious contact patterns, which change no tier: a channel that is nearly always on or off."
    )
    attempts: list[dict[str, Any]] = Field(
        description="Of mode `tracked`: every plan that was tried, with its tier and figures; `provenance.attempt` was kept."
    )
    ingest: dict[str, Any] = Field(description="What conditioning changed in the clip.")
    provenance: dict[str, Any]
    recipe: dict[str, Any]
    mujoco_version: str
    arrays_url: str


@router.get("/{rollout_id}", response_model=RolloutView, responses=responses(404))
def get_rollout(rollout_id: Id, services: ServicesDep) -> dict[str, Any]:
    """One rollout: tier and why, every gate, quality metrics, segments, what conditioning changed, where it comes from."""
    with services.catalog.session() as session:
        rollout = rollouts.get(session, rollout_id)
        recipe = recipes.get(session, rollout.recipe_digest)
        clip = clips.get(session, rollout.clip_id)
    result = rollout.result  # That of an earlier release lacks some of the lists and explanations.
    return {
        **vars(rollout),
        "bucket": recipes.physics_of(recipe.recipe).name,
        "clip_name": clip.name,
        "robot": clip.robot,
        "source_digest": clip.source_digest,
        "recipe": recipe.recipe,
        "arrays_url": f"/v1/rollouts/{rollout.id}/arrays",
        "thumbnail_url": rollout.thumbnail_url,
        **{key: result[key] for key in ("gates", "ingest", "provenance", "segments")},
        **{key: result.get(key) or [] for key in ("contact_warnings", "attempts")},
        **{key: result.get(key) for key in ("failure", "diagnosis")},
    }


def get_arrays(rollout_id: Id, request: Request, services: ServicesDep) -> Response:
    """The export: features, contacts, states, controls and forces of every frame, as an npz that needs no pickle."""
    with services.catalog.session() as session:
        rollout = rollouts.get(session, rollout_id)
    file = StoredFile(rollout.arrays_digest, rollout.arrays_size, f"{rollout.id}.npz")
    return serve_file(request, services.blobs, file)


add_file_route(router, "/{rollout_id}/arrays", get_arrays, "rollout_arrays")


def get_thumbnail(rollout_id: Id, request: Request, services: ServicesDep) -> Response:
    """Six poses of the rollout side by side, as a WebP; 404 until a worker has made it."""
    with services.catalog.session() as session:
        thumbnail = thumbnails.find(session, rollout_id)
    if thumbnail is None:
        raise NotFound(
            f"the rollout {rollout_id!r} has no thumbnail",
            remedy="Workers with the extra [render] and a GL make them by and by; docs/pages.md#thumbnails",
        )
    file = StoredFile(thumbnail.digest, thumbnail.size, f"{rollout_id}.webp", media_type=WEBP)
    return serve_file(request, services.blobs, file)


WEBP = "image/webp"
add_file_route(router, "/{rollout_id}/thumbnail", get_thumbnail, "rollout_thumbnail", media_types=[WEBP])


@router.get("/{rollout_id}/frames", response_class=Response, responses=npz_responses("The rows"))
def get_frames(
    rollout_id: Id,
    request: Request,
    services: ServicesDep,
    arrays: Annotated[ArrayNames | None, Query(description="Separated by commas; default: all with a row a frame.")] = None,
    start: Annotated[int, Query(ge=0, le=MAX_ROW, description="The first row.")] = 0,
    stop: Annotated[int | None, Query(ge=0, le=MAX_ROW, description="The row after the last; default: all.")] = None,
    dtype: Annotated[WindowType, Query(description="`float32`: floats of any size in single precision.")] = "stored",
) -> Response:
    """Some rows of the export, as an npz: what a replay or a chart needs of a long rollout. At most 64 MiB."""
    with services.catalog.session() as session:
        rollout = rollouts.get(session, rollout_id)
    file = StoredFile(rollout.arrays_digest, rollout.arrays_size, f"{rollout.id}.npz")
    names = None if arrays is None else tuple(dict.fromkeys(arrays.split(",")))
    return serve_frames(request, services.blobs, file, FrameQuery(names, start, stop, dtype))


@router.post("/{rollout_id}/arrays/link", responses=responses(404, *BODY_STATUSES))
def link_arrays(rollout_id: Id, services: ServicesDep, links: LinkMakerDep, body: LinkBody = A_DAY) -> LinkView:
    """A link to the export, which needs no key and expires."""
    with services.catalog.session() as session:
        rollout = rollouts.get(session, rollout_id)
    return links.make(f"/v1/rollouts/{rollout.id}/arrays", body)
