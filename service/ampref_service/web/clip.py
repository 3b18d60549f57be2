"""The page of one clip: its replay, why it has its tier, where it comes from, and what may be done next."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import Form, Query, Request
from pydantic import BeforeValidator, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from amp_core.errors import AmprefError, InputRefused, NotFound
from amp_core.recipe import GATE_PROFILE, MODES, SCALE_RANGE, PhysicsScale
from amp_core.tiers import GATE_PROFILES
from ampref_service.api import clips as clips_api
from ampref_service.api.clip_schemas import AugmentBody, RolloutBody
from ampref_service.api.deps import AnnouncerDep, CallerDep, ServicesDep, needs
from ampref_service.api.params import Id
from ampref_service.catalog import clips, recipes
from ampref_service.catalog.records import Rollout
from ampref_service.keys import Caller
from ampref_service.services import Services
from ampref_service.web.clip_view import describe_changes, describe_replay, list_gates
from ampref_service.web.site import lead_to, make_page_router, own_path, refuse_fields, render_page

router = make_page_router()

Writer = Annotated[Caller, needs("clips:write")]
Factor = Annotated[float, Form(ge=SCALE_RANGE[0], le=SCALE_RANGE[1], allow_inf_nan=False)]
FrameNumber = Annotated[Annotated[int, Field(ge=0, le=10**9)] | None, BeforeValidator(lambda text: text or None), Query()]
"""`?f=`, of which nothing is left where somebody took the number away."""


REMEDIES: Mapping[str, Mapping[str, str]] = {
    "use_tracked": {"mode": "tracked"},
    "other_seed": {"mode": "tracked", "seed": "1"},
    "dynamic_profile": {"mode": "auto", "gate_profile": "amp-0.12-dynamic"},
}
"""The suggestions of a diagnosis that are a rollout under another recipe, as fields of the form that asks for it."""


@router.get("/clips/{clip_id}", dependencies=[needs("clips:read")])
def show_clip(
    request: Request,
    clip_id: Id,
    services: ServicesDep,
    caller: CallerDep,
    rollout: Annotated[Id | None, BeforeValidator(lambda text: text or None), Query()] = None,
    f: FrameNumber = None,
) -> Response:
    """A clip with one of its rollouts, its best unless the address names another, at a frame."""
    return _show_clip(request, services, caller, clip_id, rollout, f)


def _show_clip(
    request: Request,
    services: Services,
    caller: Caller,
    clip_id: str,
    rollout: str | None = None,
    f: int | None = None,
    *,
    error: AmprefError | None = None,
    augmentation: str = "",
) -> Response:
    """The page of a clip; after a refused form with `error` above, and the `augmentation` that it asked for in it again."""
    with services.catalog.session() as session:
        clip, rollouts, jobs = clips.get_with_rollouts(session, clip_id)
        rows = recipes.get_many(session, {item.recipe_digest for item in rollouts})
        parent = clips.find_names(session, [clip.parent_id]) if clip.parent_id else {}
    buckets = {digest: recipes.physics_of(row.recipe).name for digest, row in rows.items()}
    current = next((item for item in rollouts if item.id == rollout), None) if rollout else next(iter(rollouts), None)
    if rollout and current is None:
        raise NotFound(
            f"the clip {clip.name!r} has no rollout {rollout!r}", key="rollout", remedy="Open the clip's page without ?rollout="
        )
    values: dict[str, Any] = {
        "title": clip.name,
        "error": error,
        "augmentation": augmentation,
        "section": "clips",
        "clip": clip,
        "parent": parent.get(clip.parent_id or ""),
        "rollouts": rollouts,
        "buckets": buckets,
        "current": current,
        "replay": None,
        "live_jobs": [job for job in jobs if not job.finished],
        "last_job": jobs[0] if jobs else None,
        "modes": MODES,
        "profiles": tuple(GATE_PROFILES),
        "usual_profile": GATE_PROFILE,
        "may_write": "clips:write" in caller.scopes,
        "remedies": REMEDIES,
    }
    if current is not None:
        result = current.result
        bucket = buckets[current.recipe_digest]
        values |= {
            "result": result,
            "bucket": bucket,
            "recipe": rows[current.recipe_digest].recipe,
            "gates": list_gates(result["gates"]),
            "changes": list(describe_changes(result["ingest"])),
            "replay": {
                "scene_url": scene_url(request, clip.robot, current),
                "rollouts": [replay_of(request, services, clip.robot, current, f"{current.mode} · {bucket}")],
                "start_frame": f,
            },
        }
    return render_page(request, "clip.html", values, status=200 if error is None else error.status)


def scene_url(request: Request, robot: str, rollout: Rollout) -> str:
    """Where the browser gets the robot from: in the model that made the rollout, so that no other one is drawn in its place."""
    return own_path(request, f"/v1/robots/{robot}/scene?digest={rollout.result['provenance']['robot_digest']}")


def replay_of(request: Request, services: Services, robot: str, rollout: Rollout, label: str) -> dict[str, Any]:
    """What the browser needs to replay a rollout of the catalog."""
    installed = services.robots.get(robot)
    if installed is not None and installed.digest != rollout.result["provenance"]["robot_digest"]:
        installed = None
    return describe_replay(
        rollout.result,
        rollout_id=rollout.id,
        label=label,
        frames_url=own_path(request, f"/v1/rollouts/{rollout.id}/frames"),
        weight_n=None if installed is None else installed.mg_for(recipes.physics_of(rollout.result["provenance"]["recipe"])),
    )


@router.post("/clips/{clip_id}/rollouts")
def score_again(
    request: Request,
    clip_id: Id,
    services: ServicesDep,
    announcer: AnnouncerDep,
    caller: Writer,
    mode: Annotated[Literal[*MODES], Form()],  # type: ignore[valid-type]
    seed: Annotated[int, Form(ge=0, le=2**53 - 1)] = 0,
    gate_profile: Annotated[Literal[*GATE_PROFILES], Form()] = GATE_PROFILE,  # type: ignore[valid-type]
    friction: Factor = 1.0,
    mass: Factor = 1.0,
    damping: Factor = 1.0,
) -> Response:
    """Queue a rollout of a clip under a mode's usual recipe, in some physics, and go back to its page."""
    physics = PhysicsScale(friction=friction, mass=mass, damping=damping)
    recipe: dict[str, Any] = {} if gate_profile == GATE_PROFILE else {"gate_profile": gate_profile}
    if not physics.is_identity:
        recipe["physics"] = asdict(physics)
    body = RolloutBody(mode=mode, seed=seed, recipe=recipe or None)
    try:
        submission = clips_api.post_rollout(clip_id, body, services, announcer, caller)
    except AmprefError as error:
        return _show_clip(request, services, caller, clip_id, error=error)
    place = f"?rollout={submission.rollout.id}" if submission.rollout is not None else ""
    return lead_to(request, f"/clips/{clip_id}{place}")


@router.post("/clips/{clip_id}/variants")
async def make_variants(
    request: Request,
    clip_id: Id,
    services: ServicesDep,
    announcer: AnnouncerDep,
    caller: Writer,
    augmentation: Annotated[str, Form(max_length=120)] = "",
    frames: Annotated[str, Form(max_length=40)] = "",
    mode: Annotated[Literal[*MODES], Form()] = "auto",  # type: ignore[valid-type]
) -> Response:
    """Make a variant or a part of a clip, queue its rollout, and go to its page.

    Args:
      frames: `10:110`, of a part; instead of an augmentation.
    """
    augmentation = f"cut={frames.strip().removeprefix('cut=')}" if frames.strip() else augmentation.strip()
    try:
        if not augmentation:
            raise InputRefused("no augmentation is named", key="augmentation", expected="mirror, warp=0.9 or the like")
        body = AugmentBody(augmentations=[augmentation], mode=mode)
        result = await clips_api.post_augment(clip_id, body, request, services, announcer, caller)
    except (AmprefError, ValidationError) as fault:
        error = fault if isinstance(fault, AmprefError) else refuse_fields(fault)
        show = functools.partial(_show_clip, error=error, augmentation=augmentation)
        return await run_in_threadpool(show, request, services, caller, clip_id)
    variant = result["variants"][0].clip
    return lead_to(request, f"/clips/{variant.id}")


@router.get("/clips/{clip_id}/rollouts", dependencies=[needs("clips:read")])
@router.get("/clips/{clip_id}/variants", dependencies=[needs("clips:read")])
@router.get("/clips/{clip_id}/delete", dependencies=[needs("clips:read")])
def lead_back(request: Request, clip_id: Id) -> Response:
    """The address of a form that was refused, opened again: there is the page of the clip."""
    return lead_to(request, f"/clips/{clip_id}")


@router.post("/clips/{clip_id}/delete")
def delete_clip(request: Request, clip_id: Id, services: ServicesDep, caller: Writer) -> Response:
    """Delete a clip, and go to the clips."""
    try:
        clips_api.delete_clip(clip_id, services, caller)
    except AmprefError as error:
        return _show_clip(request, services, caller, clip_id, error=error)
    return lead_to(request, "/clips")
