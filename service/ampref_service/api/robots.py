"""The robots that the operator installed. A robot file can read any file on the machine, so none is taken over HTTP."""

from __future__ import annotations

import math
from typing import Any, Self

from pydantic import BaseModel, Field

from amp_core.robot import Robot
from ampref_service.api.deps import ServicesDep, needs
from ampref_service.api.params import View
from ampref_service.api.problems import responses
from ampref_service.api.strict import make_router

router = make_router("robots", dependencies=[needs("clips:read")])


class FeatureBlockView(View):
    """One run of feature dimensions, half-open."""

    name: str
    start: int
    stop: int
    unit: str
    frame: str
    source: str


class RobotSummary(View):
    """A robot in a list."""

    name: str
    digest: str = Field(description="`sha256:…` over its specification and model files.")
    joints: list[str] = Field(description="In the order of `dof_pos`.")
    feature_dim: int

    @classmethod
    def from_record(cls, record: Robot, **fields: Any) -> Self:
        return super().from_record(record, joints=record.joint_names, feature_dim=record.layout.dim, **fields)


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


@router.get("", responses=responses())
def list_robots(services: ServicesDep) -> RobotList:
    """The installed robots."""
    return RobotList(items=[RobotSummary.from_record(services.robots[name]) for name in sorted(services.robots)])


@router.get("/{robot}", responses=responses(404))
def get_robot(robot: str, services: ServicesDep) -> RobotView:
    """One robot: joints and their ranges, contact channels, feature layout, digest."""
    record = services.robot(robot)
    return RobotView.from_record(
        record,
        joint_range=[tuple(bound if math.isfinite(bound) else None for bound in pair) for pair in record.joint_range],
        contact_channels=record.channels,
        feature_names=record.layout.names,
        feature_blocks=record.layout.blocks,
    )
