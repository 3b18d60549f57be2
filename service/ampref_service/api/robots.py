"""The robots that the operator installed. A robot file can read any file on the machine, so none is taken over HTTP."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import Query, Request, Response
from pydantic import AliasChoices, AliasPath, BaseModel, BeforeValidator, Field

from amp_core.errors import NotFound
from amp_core.robot import Robot
from ampref_service.api.deps import CallerDep, ServicesDep, needs
from ampref_service.api.files import BINARY, IMMUTABLE, REVALIDATE, lists_etag, npz_responses
from ampref_service.api.params import Digest, View
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
    joints: list[str] = Field(validation_alias=AliasChoices("joints", "joint_names"), description="In the order of `dof_pos`.")
    feature_dim: int = Field(validation_alias=AliasPath("layout", "dim"))


class RobotView(RobotSummary):
    """A robot as far as a clip or a training job needs it."""

    joint_range: Annotated[
        list[tuple[float | None, float | None]],
        BeforeValidator(lambda ranges: np.where(np.isfinite(ranges), ranges, None).tolist()),
    ] = Field(description="rad, by joint; null where it has no limit.")
    contact_channels: list[str] = Field(validation_alias=AliasChoices("contact_channels", "channels"))
    control_dt: float = Field(description="s between two controls, and between two frames of a rollout.")
    sim_dt: float = Field(description="s, the physics step.")
    height_range: tuple[float, float] = Field(description="m, the root's plausible height.")
    mass: float = Field(description="kg")
    feature_names: list[str] = Field(validation_alias=AliasPath("layout", "names"), description="One name a feature dimension.")
    feature_blocks: list[FeatureBlockView] = Field(validation_alias=AliasPath("layout", "blocks"))


class RobotList(BaseModel):
    """Every installed robot."""

    items: list[RobotSummary]


@router.get("", response_model=RobotList, responses=responses())
def list_robots(services: ServicesDep, caller: CallerDep) -> dict[str, list[Robot]]:
    """The installed robots."""
    return {"items": [services.robots[name] for name in sorted(services.robots) if caller.bounds.includes_robot(name)]}


@router.get("/{robot}", response_model=RobotView, responses=responses(404))
def get_robot(robot: str, services: ServicesDep) -> Robot:
    """One robot: joints and their ranges, contact channels, feature layout, digest."""
    return services.robot(robot)


@router.get("/{robot}/scene", response_class=Response, responses=npz_responses("The scene"))
def get_scene(
    robot: str,
    request: Request,
    services: ServicesDep,
    digest: Annotated[Digest | None, Query(description="The robot's digest: another one is not here.")] = None,
) -> Response:
    """A robot's geometry and kinematic tree as an npz, to draw it in a browser; docs/pages.md lists the arrays."""
    installed_robot = services.robot(robot)
    if digest not in (None, installed_robot.digest):
        raise NotFound(
            f"the robot {robot!r} with this digest is not installed here",
            key="query.digest",
            expected=installed_robot.digest,
            remedy="A rollout of another model of the robot cannot be drawn here; the operator installs one model of a name",
        )
    scene = services.scenes.get(installed_robot)
    codings = (coding.split(";") for coding in request.headers.get("accept-encoding", "").lower().split(","))
    is_compressed = any(name.strip() == "gzip" and "".join(rest).replace(" ", "") not in _NEVER for name, *rest in codings)
    # Other bytes need another strong ETag.
    etag = f'"{scene.digest.removeprefix("sha256:")}{"-gzip" if is_compressed else ""}"'
    headers = {"etag": etag, "vary": "accept-encoding", "cache-control": REVALIDATE if digest is None else IMMUTABLE}
    if lists_etag(request.headers.get("if-none-match", ""), etag, weak=True):
        return Response(status_code=304, headers=headers)
    if is_compressed:
        headers["content-encoding"] = "gzip"
    return Response(scene.compressed if is_compressed else scene.plain, 200, headers, BINARY)


_NEVER = frozenset(["q=0", "q=0.0", "q=0.00", "q=0.000"])
