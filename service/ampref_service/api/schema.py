"""What the numbers mean: metrics with their units, gate profiles with their thresholds, modes with their usual recipes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, BeforeValidator, Field

from amp_core.errors import NotFound
from amp_core.metrics import METRICS, Metric
from amp_core.recipe import MODES, Recipe
from amp_core.strict_json import json_data
from amp_core.tiers import GATE_PROFILES
from ampref_service.api.deps import needs
from ampref_service.api.params import View
from ampref_service.api.problems import responses
from ampref_service.api.strict import make_router

router = make_router("schema", dependencies=[needs("clips:read")])


class MetricView(View):
    """A quality metric: a key of `quality_metrics`, a sort key, and behind `min_` or `max_` a filter of `GET /v1/clips`."""

    name: str
    unit: str
    type: Annotated[Literal["float", "int"], BeforeValidator(lambda value: value.__name__)]
    meaning: str


class MetricList(BaseModel):
    """Every quality metric."""

    items: list[MetricView]


class GateProfileView(BaseModel):
    """The gates that decide tiers, under the name that results keep."""

    name: str
    gates: list[dict[str, Any]] = Field(
        description="`name` (a metric), `op`, `threshold`, `tier` (`validity`, 0 or 1), `ideal`, `modes` (null: all)."
    )


class ModeView(BaseModel):
    """A mode and the recipe that it uses when none is given."""

    name: str
    recipe: dict[str, Any]
    recipe_digest: str


class ModeList(BaseModel):
    """Every mode that can be asked for."""

    items: list[ModeView]


@router.get("/metrics", response_model=MetricList, responses=responses())
def list_metrics() -> dict[str, tuple[Metric, ...]]:
    """Every quality metric with its unit and meaning."""
    return {"items": METRICS}


@router.get("/modes", responses=responses())
def list_modes() -> ModeList:
    """Every mode with its usual recipe: a starting point for a recipe of one's own."""
    recipes = [Recipe.for_mode(mode) for mode in MODES]
    return ModeList(
        items=[ModeView(name=recipe.mode, recipe=recipe.to_dict(), recipe_digest=recipe.digest) for recipe in recipes]
    )


@router.get("/gates/{profile}", response_model=GateProfileView, responses=responses(404))
def get_gate_profile(profile: Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$")]) -> dict[str, Any]:
    """One gate profile: which metric is compared with which threshold for which tier."""
    if profile not in GATE_PROFILES:
        raise NotFound(f"there is no gate profile {profile!r}", expected=f"one of {', '.join(sorted(GATE_PROFILES))}")
    return {**json_data(GATE_PROFILES[profile])}
