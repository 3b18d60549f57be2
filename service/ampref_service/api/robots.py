"""The robots that the operator installed. A robot file can read any file on the machine, so none is taken over HTTP."""

from __future__ import annotations

import math

from fastapi import APIRouter
from pydantic import BaseModel, Field

from amp_core.robot import Robot
from ampref_service.api.deps import Service, needs
from ampref_service.api.strict import StrictRoute
from ampref_service.errors import responses

router = APIRouter(prefix="/robots", route_class=StrictRoute, tags=["robots"])


class FeatureBlockView(BaseModel):
    """One run of feature dimensions, half-open."""

    name: str
    start: int
    stop: int
    unit: str
    frame: str
    source: str


class RobotSummary(BaseModel):
    """A robot in a list."""

    name: str
    digest: str = Field(description="`sha256:…` over its specification and model files.")
    joints: list[str] = Field(description="In the order of `dof_pos`.")
    feature_dim: int


class RobotView(RobotSummary):
    """A robot as far as a clip or a training job needs it."""

    joint_range: list[tuple[float | None, float | None]] = Field(description="rad, by joint; null where it has no limit.")
    contact_channels: list[str]
    control_dt: float = Field(description="s between two controls, and between two frames of a rollout.")
    sim_dt: float = Field(description="s, the physics step.")
    height_range: tuple[float, float] = Field(description="m, the root's plausible height.")
    mass: float = Field(description="kg")
    feature_names: list[str] = Field(description="One name a feature dimension.")
    feature_blocks: list[FeatureBlockView]


class RobotList(BaseModel):
    """Every installed robot."""

    items: list[RobotSummary]


def _summary(robot: Robot) -> dict[str, object]:
    return {"name": robot.name, "digest": robot.digest, "joints": list(robot.joint_names), "feature_dim": robot.layout.dim}


def _limit(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _view(robot: Robot) -> RobotView:
    layout = robot.layout
    return RobotView.model_validate(
        _summary(robot)
        | {
            "joint_range": [(_limit(low), _limit(high)) for low, high in robot.joint_range],
            "contact_channels": list(robot.channels),
            "control_dt": robot.control_dt,
            "sim_dt": robot.sim_dt,
            "height_range": robot.height_range,
            "mass": robot.mass,
            "feature_names": list(layout.names),
            "feature_blocks": [block._asdict() for block in layout.blocks],
        }
    )


@router.get("", responses=responses(), dependencies=[needs("clips:read")])
def list_robots(opened: Service) -> RobotList:
    """The installed robots."""
    return RobotList(items=[RobotSummary.model_validate(_summary(opened.robots[name])) for name in sorted(opened.robots)])


@router.get("/{robot}", responses=responses(404), dependencies=[needs("clips:read")])
def get_robot(robot: str, opened: Service) -> RobotView:
    """One robot: joints and their ranges, contact channels, feature layout, digest."""
    return _view(opened.robot(robot))
