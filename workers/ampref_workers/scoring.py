"""A rollout job's two halves: what is asked of the child, and what the child does.

`request` and `store` run in the worker, `handle` in the child. Only the child imports the physics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amp_core.errors import IntegrityError, RobotRefused

if TYPE_CHECKING:
    from amp_core.robot import Robot
    from ampref_service.catalog.records import Clip, NewRollout
    from ampref_service.settings import Settings
    from ampref_workers.child import Report

__all__ = ["SOURCE", "export_name", "find_robot", "handle", "new_rollout", "plans_for", "request"]

SOURCE = "source.bin"
"""The uploaded bytes, in the job folder."""


def export_name(number: int) -> str:
    """The file with the arrays of a job's score of that number, in the job folder."""
    return f"export-{number}.npz"


def plans_for(recipe: Mapping[str, Any]) -> float:
    """How many plans of the usual size a job under a recipe may make: `Planner.effort`, 0 for a recipe that plans nothing."""
    from amp_core.recipe import Planner

    return Planner.from_dict(recipe["planner"]).effort if recipe.get("planner") else 0.0


def request(clip: Clip, recipe: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """What the child needs to know of a rollout job; the bytes lie beside it as `source.bin`."""
    options = clip.read_options
    return {
        "kind": "rollout",
        "name": clip.name,
        "source_digest": clip.source_digest,
        "robot": clip.robot,
        "robot_digest": clip.robot_digest,
        "robots": [str(path) for path in settings.robots],
        "recipe": dict(recipe),
        "threads": settings.job_threads,
        "format": clip.source_format,
        "fps": options.get("fps"),
        "quat_order": options.get("quat_order"),
        "limits": {
            "max_bytes": settings.max_upload_bytes,
            "max_duration_sec": settings.max_duration_sec,
            "max_fps": settings.max_fps,
        },
    }


def handle(job_dir: Path, request: dict[str, Any], report: Report) -> dict[str, Any]:
    """In the child: score `source.bin` and leave the arrays of every score in the job folder.

    Returns:
      `scores`, the result document of each mode that was tried (one, but in mode `auto`), in order; `shown`, which of them is
      the clip's; and `triage`, what the clip lacks, or None where nobody asked.
    """
    from amp_core.formats import Limits, read_motion
    from amp_core.recipe import Recipe
    from amp_core.score import score

    report(0.0, "loading the robot")
    robot = find_robot(request["robot"], request["robots"], request["robot_digest"])
    recipe = Recipe.from_dict(request["recipe"])
    limits = Limits(**request["limits"])
    motion = read_motion(
        job_dir / SOURCE,
        name=request["name"],
        format=request["format"],
        fps=request["fps"],
        quat_order=request["quat_order"],
        limits=limits,
    )
    if motion.source_digest != request["source_digest"]:
        raise IntegrityError(
            "the stored bytes are not the ones that were uploaded",
            file=request["name"],
            expected=request["source_digest"],
            remedy="Upload the clip again.",
        )
    telling = lambda share, text: report(0.01 + 0.98 * share, text)  # noqa: E731
    scored = score([motion], robot, recipe, nthread=request["threads"], progress=telling, limits=limits)[0]
    report(0.99, "writing the arrays")
    made, shown = ((scored,), 0) if scored.auto is None else (scored.auto.tried, scored.auto.shown)
    for number, one in enumerate(made):
        one.export(job_dir / export_name(number))
    triage = None if scored.auto is None else scored.auto.triage.to_dict()
    return {"scores": [one.to_dict() for one in made], "shown": shown, "triage": triage}


def find_robot(name: str, paths: Sequence[str], digest: str) -> Robot:
    """The installed robot of that name: one of the operator's files, or a bundled one.

    Raises `RobotRefused` when there is none, or when its model is not the one that `digest` names.
    """
    from amp_core import robot as robots

    robot = robots.find_robot(name, paths)
    if robot is None:
        raise RobotRefused(
            f"no robot {name!r} is installed on this worker",
            expected=f"one of {', '.join(robots.bundled_robots())}, or one of the files in AMPREF_ROBOTS",
            remedy="Give the worker the same AMPREF_ROBOTS as the API, then submit the clip again.",
        )
    if robot.digest != digest:
        raise RobotRefused(
            f"robot {name!r} has changed since the clip was uploaded (it is {robot.digest} now)",
            expected=digest,
            remedy="Submit the clip again for the robot as it is now, or install the robot as it was.",
        )
    return robot


def new_rollout(score: Mapping[str, Any], arrays_digest: str, arrays_size: int) -> NewRollout:
    """The catalog's row for one of the scores that the child found out (`Score.to_dict()`)."""
    from ampref_service.catalog.records import NewRollout, RecipeRow, Segment

    provenance = score["provenance"]
    recipe = provenance["recipe"]
    return NewRollout(
        mode=score["mode"],
        tier=score["tier"],
        tier_reason=score["tier_reason"],
        gate_profile=provenance["gate_profile"],
        metrics=score["quality_metrics"],
        frames=score["simulated_frames"],
        duration_sec=score["duration_sec"],
        arrays_digest=arrays_digest,
        arrays_size=arrays_size,
        feature_code_hash=provenance["feature_code_hash"],
        mujoco_version=provenance["mujoco_version"],
        result=score,
        segments=[Segment(s["start"], s["end"], s["tier"], s["score"]) for s in score["segments"]],
        recipe=RecipeRow(provenance["recipe_digest"], recipe["mode"], recipe),
    )
