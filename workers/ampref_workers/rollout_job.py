"""The worker's half of a rollout job: the clip's bytes to the child, its scores to the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amp_core.errors import Conflict
from ampref_service.catalog import clips, recipes, rollouts
from ampref_service.catalog.records import Job, NewRollout, RecipeRow, Segment
from ampref_service.catalog.tables import REPEAT
from ampref_service.recipes import plan_effort
from ampref_workers.attempt import Attempt, child_limits, reading
from ampref_workers.protocol import SOURCE, NoReport, RobotReference, RolloutReport, RolloutRequest, export_name

__all__ = ["new_rollout", "run"]


def run(attempt: Attempt) -> NoReport | Job:
    """Score a clip under the job's recipe, unless it has been; the job where that has ended."""
    job = attempt.claim.job
    assert job.clip_id is not None
    assert job.recipe_digest is not None
    with attempt.catalog.session() as session:
        clip = clips.get(session, job.clip_id)
        recipe = recipes.get(session, job.recipe_digest).recipe
        rollout = rollouts.answer(session, job.clip_id, job.recipe_digest)
    is_repeat = bool(job.payload.get(REPEAT))
    if rollout is not None and not is_repeat:
        result = {"rollout_id": rollout.id, "tier": rollout.tier}
        return attempt.heartbeat.persist(lambda: attempt.queue.complete(attempt.claim, result))
    attempt.copy(clip.blob_digest, attempt.folder / SOURCE)
    settings = attempt.settings
    request = RolloutRequest(
        name=clip.name,
        source_digest=clip.source_digest,
        robot=RobotReference(clip.robot, clip.robot_digest, tuple(map(str, settings.robots))),
        reading=reading(settings, clip.source_format, clip.read_options),
        recipe=recipe,
        threads=attempt.threads,
    )
    # What was said when it was queued; a job of an older release has no limit of its own.
    limit_sec = job.limit_sec or settings.rollout_timeout(clip.duration_sec, plan_effort(recipe))
    limits = child_limits(settings, limit_sec, attempt.threads)
    report = attempt.run_child(request, RolloutReport, limits)
    if isinstance(report, NoReport):
        return report
    attempt.heartbeat.report(1.0, "storing the arrays")
    rows = []
    for number, score in enumerate(report.scores):
        path = attempt.folder / export_name(number)
        rows.append(new_rollout(score, attempt.store(path), path.stat().st_size))
    digests = {row.arrays_digest for row in rows}
    if rollout is not None and is_repeat and rollout.arrays_digest not in digests:
        raise Conflict(
            f"scored again the clip gives other arrays, {', '.join(sorted(digests))}",
            key=rollout.arrays_digest,
            expected="the bytes of the first time, which the same release and MuJoCo version give",
            remedy="Restore the file from a backup: ampref fsck --repair --from URL",
        )
    return attempt.heartbeat.persist(
        lambda: attempt.queue.complete_rollout(attempt.claim, *rows, answer=report.selected, triage=report.triage)
    )


def new_rollout(score: Mapping[str, Any], arrays_digest: str, arrays_size: int) -> NewRollout:
    """The catalog's row for a score, `Score.to_dict()`."""
    provenance = score["provenance"]
    recipe = provenance["recipe"]
    return NewRollout(
        **{key: score[key] for key in ("mode", "tier", "tier_reason", "duration_sec")},
        **{key: provenance[key] for key in ("gate_profile", "feature_code_hash", "mujoco_version")},
        metrics=score["quality_metrics"],
        frames=score["simulated_frames"],
        arrays_digest=arrays_digest,
        arrays_size=arrays_size,
        result=score,
        segments=[Segment(s["start"], s["end"], s["tier"], s["score"]) for s in score["segments"]],
        recipe=RecipeRow(provenance["recipe_digest"], recipe["mode"], recipe),
    )
