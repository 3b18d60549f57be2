"""Rollouts: what a clip became under a recipe."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from amp_core.recipe import PhysicsScale
from ampref_service.api.blob import IMMUTABLE, StoredFile, file_responses, serve
from ampref_service.api.deps import Service, needs
from ampref_service.api.params import Id, Metrics, Tier, Time, View
from ampref_service.api.strict import StrictRoute
from ampref_service.catalog import clips as clip_queries
from ampref_service.catalog import rollouts as queries
from ampref_service.catalog.records import Clip, RecipeRow, Rollout, RolloutSummary
from ampref_service.errors import responses

router = APIRouter(prefix="/rollouts", route_class=StrictRoute, tags=["rollouts"], dependencies=[needs("clips:read")])


class RolloutSummaryView(View):
    """A rollout in a list."""

    id: str
    recipe_digest: str
    mode: str
    tier: Tier = Field(description="0, 1, or -1 for Rejected.")
    tier_reason: str
    frames: int
    quality_metrics: Metrics
    created_at: Time

    @classmethod
    def of(cls, rollout: Rollout | RolloutSummary) -> RolloutSummaryView:
        """The view of a record."""
        return cls.model_validate(_facts(cls, rollout))


class ClipRolloutView(RolloutSummaryView):
    """A rollout among those of its clip."""

    bucket: str = Field(description="The physics of its recipe: `canonical`, or factors such as `friction=0.7,mass=1.1`.")

    @classmethod
    def in_physics(cls, rollout: Rollout, recipe: RecipeRow) -> ClipRolloutView:
        """The view of a record with its recipe."""
        return cls.model_validate(_facts(cls, rollout) | {"bucket": _bucket(recipe)})


class RolloutView(ClipRolloutView):
    """A rollout with its gates, segments and provenance."""

    clip_id: str
    clip_name: str
    robot: str
    source_digest: str
    duration_sec: float
    gate_profile: str
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
    feature_code_hash: str
    mujoco_version: str
    arrays_digest: str = Field(description="SHA-256 of the npz at `/v1/rollouts/{id}/arrays`.")
    arrays_size: int = Field(description="bytes")
    arrays_url: str


def _bucket(recipe: RecipeRow) -> str:
    return PhysicsScale(**(recipe.recipe.get("physics") or {})).name


def _facts(view: type[View], rollout: Rollout | RolloutSummary) -> dict[str, Any]:
    facts = {name: getattr(rollout, name) for name in view.model_fields if hasattr(rollout, name)}
    return facts | {"quality_metrics": rollout.metrics}


def _view(rollout: Rollout, clip: Clip, recipe: RecipeRow) -> RolloutView:
    document = {key: rollout.result.get(key) for key in ("gates", "segments", "ingest", "provenance")}
    document |= {key: rollout.result.get(key) or [] for key in ("contact_warnings", "attempts")}
    absent = {key: rollout.result.get(key) for key in ("failure", "diagnosis")}
    return RolloutView.model_validate(
        _facts(RolloutView, rollout)
        | {key: value for key, value in document.items() if value is not None}
        | absent
        | {
            "clip_name": clip.name,
            "robot": clip.robot,
            "source_digest": clip.source_digest,
            "recipe": dict(recipe.recipe),
            "bucket": _bucket(recipe),
            "arrays_url": f"/v1/rollouts/{rollout.id}/arrays",
        }
    )


@router.get("/{rollout_id}", responses=responses(404))
def get_rollout(rollout_id: Id, opened: Service) -> RolloutView:
    """One rollout: tier and why, every gate, quality metrics, segments, what conditioning changed, where it comes from."""
    with opened.catalog.session() as session:
        rollout = queries.get(session, rollout_id)
        clip = clip_queries.get(session, rollout.clip_id)
        return _view(rollout, clip, clip_queries.get_recipe(session, rollout.recipe_digest))


def _arrays(rollout_id: Id, request: Request, opened: Service) -> Response:
    """The export: features, contacts, states, controls and forces of every frame, as an npz that needs no pickle."""
    with opened.catalog.session() as session:
        rollout = queries.get(session, rollout_id)
    file = StoredFile(rollout.arrays_digest, rollout.arrays_size, f"{rollout.id}.npz", "application/octet-stream", IMMUTABLE)
    return serve(request, opened.blobs, file)


for method in ("GET", "HEAD"):
    router.add_api_route(
        "/{rollout_id}/arrays",
        _arrays,
        methods=[method],
        name="get_rollout_arrays" if method == "GET" else "head_rollout_arrays",
        response_class=Response,
        responses=file_responses("application/octet-stream", 404),
    )
