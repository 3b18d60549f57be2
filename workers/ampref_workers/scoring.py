"""The child's half of a rollout job: score the uploaded bytes."""

from __future__ import annotations

from pathlib import Path

from amp_core.errors import IntegrityError
from amp_core.formats import read_motion
from amp_core.progress import Progress
from amp_core.recipe import Recipe
from amp_core.scoring import score
from amp_core.strict_json import json_data
from ampref_workers.protocol import SOURCE, ProbeReport, ProbeRequest, RolloutReport, RolloutRequest, export_name
from ampref_workers.robots import load_robot

__all__ = ["handle", "probe"]


def probe(job_dir: Path, request: ProbeRequest, report: Progress) -> ProbeReport:
    """Nothing: this module was imported."""
    return ProbeReport()


def handle(job_dir: Path, request: RolloutRequest, report: Progress) -> RolloutReport:
    """Score `SOURCE` and leave the arrays of every score in the job folder.

    Raises:
      RobotRefused: the robot is not installed here, or has changed.
      IntegrityError: the stored bytes are not those that were uploaded.
      MotionRefused: the clip cannot be scored.
    """
    report(0.0, "loading the robot")
    robot = load_robot(request.robot)
    recipe = Recipe.from_dict(dict(request.recipe))
    motion = read_motion(job_dir / SOURCE, name=request.name, **vars(request.reading))
    if motion.source_digest != request.source_digest:
        raise IntegrityError(
            "the stored bytes are not the ones that were uploaded",
            file=request.name,
            expected=request.source_digest,
            remedy="Upload the clip again.",
        )

    def report_scoring(fraction: float, text: str) -> None:
        report(0.01 + 0.98 * fraction, text)

    [result] = score([motion], robot, recipe, nthread=request.threads, progress=report_scoring, limits=request.reading.limits)
    report(0.99, "writing the arrays")
    auto = result.auto
    scores = (result,) if auto is None else auto.tried
    for number, rollout in enumerate(scores):
        rollout.export(job_dir / export_name(number))
    return RolloutReport(
        scores=tuple(rollout.to_dict() for rollout in scores),
        selected=0 if auto is None else auto.shown,
        triage=None if auto is None else json_data(auto.triage),
    )
