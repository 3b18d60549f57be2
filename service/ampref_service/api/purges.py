"""Purges: deleting clips and rollouts that have been of no use for long."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from amp_core.errors import InputRefused
from ampref_service.api.deps import ServicesDep, needs
from ampref_service.api.params import Body, RobotName
from ampref_service.api.problems import BODY_STATUSES, responses
from ampref_service.api.strict import make_router
from ampref_service.catalog import purging
from ampref_service.catalog.records import PurgeFilter
from ampref_service.keys import Caller

router = make_router("purges")

Purger = Annotated[Caller, needs("clips:purge")]


class PurgeBody(Body):
    """What is to be deleted: clips whose best rollout is Rejected, or that nothing scored; or rollouts, and no clip."""

    tier: Literal["rejected", "unscored"] = "rejected"
    older_than_days: Annotated[float, Field(ge=0, le=36_500, allow_inf_nan=False, description="Clip and rollouts; in days.")]
    robot: RobotName | None = None
    unreferenced_rollouts: Annotated[
        bool, Field(description="Delete no clip, but the Rejected rollouts that are the best of nothing.")
    ] = False
    dry_run: Annotated[bool, Field(description="Only count what would go.")] = True
    limit: Annotated[int, Field(ge=1, le=1000, description="Clips, or rollouts, that this request deletes at most.")] = 500


class PurgeView(BaseModel):
    """What was deleted, or of a dry run what would be."""

    dry_run: bool
    clips: int
    rollouts: int
    bytes: int = Field(description="Of their files; what other clips or versions share with them stays.")
    with_windows: int = Field(description="Clips of these with windows that pass; `select.segments` of a lock takes those.")
    names: list[str] = Field(description="Of a dry run: up to 20 clips, the oldest first.")
    remaining: int = Field(description="Clips, or rollouts, that would still go; another request deletes them.")


@router.post("", responses=responses(403, *BODY_STATUSES))
def post_purge(body: PurgeBody, services: ServicesDep, caller: Purger) -> PurgeView:
    """Delete what has been of no use for long, in small transactions; nothing that a version holds or that has a live job."""
    if body.robot is not None:
        caller.check_robot(body.robot)
    if body.unreferenced_rollouts and body.tier != "rejected":
        raise InputRefused("a rollout that is not scored does not exist", key="body.tier", expected="rejected")
    criteria = PurgeFilter(body.tier, body.older_than_days, body.robot, body.unreferenced_rollouts, caller.bounds)
    report = None if body.dry_run else purging.purge(services.catalog, criteria, limit=body.limit, actor=caller.name)
    with services.catalog.session() as session:
        rest = purging.count_candidates(session, criteria)
    result = report or rest
    return PurgeView(
        dry_run=body.dry_run,
        clips=result.clips,
        rollouts=result.rollouts,
        bytes=result.num_bytes,
        with_windows=result.with_windows,
        names=list(result.names),
        remaining=rest.rollouts if body.unreferenced_rollouts else rest.clips,
    )
