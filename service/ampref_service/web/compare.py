"""The Compare page: rollouts side by side, on one clock, with their metrics and what differs in their recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from fastapi import Query, Request
from starlette.responses import Response

from amp_core.errors import InputRefused
from amp_core.metrics import METRICS, Metric
from ampref_service.api.deps import CallerDep, ServicesDep, needs
from ampref_service.api.params import Id
from ampref_service.catalog import clips, recipes, rollouts
from ampref_service.catalog.records import Rollout
from ampref_service.web.clip import FrameNumber, replay_of, scene_url
from ampref_service.web.site import make_page_router, render_page

router = make_page_router(dependencies=[needs("clips:read")])

MOST = 9
"""Rollouts that are shown at a time."""


@router.get("/compare")
def compare_rollouts(
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    rollout: Annotated[list[Id] | None, Query(max_length=50)] = None,
    clip: Annotated[list[Id] | None, Query(max_length=50)] = None,
    f: FrameNumber = None,
) -> Response:
    """The named rollouts, all rollouts of a clip, or the best one of each of several clips: at most nine, of one robot."""
    with services.catalog.session() as session:
        if rollout:
            rows = [rollouts.get(session, rollout_id) for rollout_id in dict.fromkeys(rollout)]
        elif clip and len(clip) > 1:
            rows = [best for clip_id in dict.fromkeys(clip) for best in rollouts.for_clip(session, clip_id)[:1]]
        elif clip:
            rows = rollouts.for_clip(session, clip[0])
        else:
            raise InputRefused(
                "there is nothing to compare",
                key="rollout",
                expected="the ids of rollouts, /compare?rollout=…&rollout=…, or of clips, /compare?clip=…",
                remedy="Choose rollouts on the page of a clip, or clips on the page of clips",
            )
        owners = {item.clip_id: clips.get(session, item.clip_id) for item in rows}
        recipe_of = recipes.get_many(session, {item.recipe_digest for item in rows})
    robots = {owner.robot for owner in owners.values()}
    for robot in robots:
        caller.check_robot(robot)
    if len(robots) > 1:
        raise InputRefused(
            f"the rollouts are of different robots: {', '.join(sorted(robots))}",
            key="rollout",
            expected="rollouts of one robot",
        )
    left_out, rows = rows[MOST:], rows[:MOST]
    labels = []
    for item in rows:
        bucket = recipes.physics_of(recipe_of[item.recipe_digest].recipe).name
        name = f"{owners[item.clip_id].name} · " if len(owners) > 1 else ""
        labels.append(f"{name}{item.mode} · {bucket}")
    values: dict[str, Any] = {
        "title": "Compare " + ", ".join(sorted({owner.name for owner in owners.values()}))[:120],
        "section": "clips",
        "rows": rows,
        "labels": labels,
        "owners": owners,
        "left_out": len(left_out),
        "undrawn": [],
        "metrics": list_shown_metrics([item.metrics for item in rows]),
        "differences": list(list_differences([dict(recipe_of[item.recipe_digest].recipe) for item in rows])),
        "replay": None,
    }
    if rows:
        robot = next(iter(robots))
        same_model = [pair for pair in zip(rows, labels, strict=True) if _model_of(pair[0]) == _model_of(rows[0])]
        values["replay"] = {
            "scene_url": scene_url(request, robot, rows[0]),
            "rollouts": [replay_of(request, services, robot, item, label) for item, label in same_model],
            "start_frame": f,
        }
        values["undrawn"] = [label for item, label in zip(rows, labels, strict=True) if _model_of(item) != _model_of(rows[0])]
    return render_page(request, "compare.html", values)


def _model_of(rollout: Rollout) -> str:
    """The digest of the robot's model that a rollout was made with."""
    return str(rollout.result["provenance"]["robot_digest"])


def list_shown_metrics(documents: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """The metrics that at least one of these has a value for."""
    return [metric for metric in METRICS if any(document.get(metric.name) is not None for document in documents)]


def list_differences(documents: Sequence[Any], place: str = "") -> Iterator[tuple[str, list[Any]]]:
    """The keys of nested dictionaries whose values differ, each with its values; None where one has no such key."""
    for key in dict.fromkeys(key for document in documents for key in document):
        values = [document.get(key) for document in documents]
        if all(value == values[0] for value in values):
            continue
        if any(isinstance(value, dict) for value in values):
            yield from list_differences([value or {} for value in values], f"{place}{key}.")
        else:
            yield f"{place}{key}", values
