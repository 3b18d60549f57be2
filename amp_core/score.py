"""Scoring: the whole line from a motion that was read to a tier, with everything that proves it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import mujoco

from amp_core import features
from amp_core.formats import Limits, Motion, read_motion
from amp_core.motion import condition
from amp_core.npz import write_npz
from amp_core.quality import FrameSeries, contact_warnings, measure
from amp_core.recipe import Recipe
from amp_core.rollout import Progress, Rollout, generate
from amp_core.segments import Segment, find_segments
from amp_core.tiers import Classification, Gate, classify, gate_profile

if TYPE_CHECKING:
    from amp_core.robot import Robot


@dataclass(frozen=True, eq=False)
class Score:
    """A clip's verdict and its evidence.

    Args:
      rollout: the simulated clip.
      quality_metrics: by name, as `quality.METRICS` lists them; None where a metric has no value.
      classification: the tier and its gates.
      segments: the windows that pass Tier 0 on their own, in the order of time.
      ingest: what conditioning changed.
      provenance: robot, recipe, code and engine that made it.
      contact_warnings: suspicious contact patterns, which change no tier.
      wall_sec: s, from motion to verdict; in a batch, the batch's time in proportion to the clip's frames.
    """

    name: str
    source_digest: str
    rollout: Rollout
    quality_metrics: dict[str, float | int | None]
    classification: Classification
    segments: tuple[Segment, ...]
    ingest: dict[str, Any]
    provenance: dict[str, Any]
    contact_warnings: tuple[dict[str, Any], ...]
    wall_sec: float

    @property
    def tier(self) -> int:
        """0, 1, or -1 for Rejected."""
        return self.classification.tier

    @property
    def tier_reason(self) -> str:
        return self.classification.tier_reason

    @property
    def gates(self) -> tuple[Gate, ...]:
        return self.classification.gates

    @cached_property
    def frames(self) -> int:
        """Frames of the conditioned clip. The export has as many rows, unless the simulation failed."""
        return self.rollout.clip_frames

    @property
    def duration_sec(self) -> float:
        """s: frames · dt."""
        return self.frames * self.rollout.dt

    def to_dict(self) -> dict[str, Any]:
        """The `--json` object: JSON-ready, with null where there is no value."""
        failure = self.rollout.failure
        return {
            "name": self.name,
            "source_digest": self.source_digest,
            "frames": self.frames,
            "simulated_frames": len(self.rollout.qpos),
            "fps": 1.0 / self.rollout.dt,
            "duration_sec": self.duration_sec,
            "mode": self.rollout.recipe.mode,
            "tier": self.tier,
            "tier_reason": self.tier_reason,
            "gates": [gate.to_dict() for gate in self.gates],
            "quality_metrics": dict(self.quality_metrics),
            "segments": [segment.to_dict() for segment in self.segments],
            "failure": failure.to_dict() if failure is not None else None,
            "contact_warnings": [dict(warning) for warning in self.contact_warnings],
            "ingest": self.ingest,
            "provenance": self.provenance,
            "wall_sec": self.wall_sec,
        }

    def export(self, target: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the export npz: the same bytes every time, readable with `allow_pickle=False`."""
        write_npz(target, self.rollout.arrays())


def score(
    motions: Sequence[Motion],
    robot: Robot,
    recipe: Recipe,
    *,
    nthread: int = 1,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> list[Score]:
    """Condition, simulate, measure and judge motions.

    Args:
      motions: as `formats.read_motion` gives them.
      nthread: threads for the physics; no result depends on it.
      progress: called with the share that is done, in [0, 1], and a few words.
      limits: of duration, rate and plausibility; the usual ones by default.

    Raises:
      MotionRefused: a motion that does not fit the robot.
      RecipeRefused: a gate profile that does not exist.
    """
    gate_profile(recipe.gate_profile)  # A profile that is not there is refused before the work, not after it.
    began = time.perf_counter()
    conditioned = [condition(motion, robot, limits) for motion in motions]
    # Measuring is quick beside simulating; the last hundredth of the bar is for it.
    simulating = None if progress is None else (lambda share, text: progress(0.99 * share, text))
    rollouts = generate(robot, conditioned, recipe, nthread=nthread, progress=simulating)
    judgements = [judge(rollout, robot) for rollout in rollouts]
    wall = time.perf_counter() - began
    frames = sum(rollout.clip_frames for rollout in rollouts)
    provenance = _provenance(robot, recipe)
    if progress is not None:
        progress(1.0, "scored")
    return [
        Score(
            name=clip.name,
            source_digest=clip.source_digest,
            rollout=rollout,
            quality_metrics=judgement.quality_metrics,
            classification=judgement.classification,
            segments=judgement.segments,
            ingest=clip.report.to_dict(),
            provenance=provenance,
            contact_warnings=judgement.contact_warnings,
            wall_sec=wall * rollout.clip_frames / frames,
        )
        for clip, rollout, judgement in zip(conditioned, rollouts, judgements, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a rollout is worth: the part of a score that follows from the rollout alone."""

    quality_metrics: dict[str, float | int | None]
    classification: Classification
    segments: tuple[Segment, ...]
    contact_warnings: tuple[dict[str, Any], ...]


def judge(rollout: Rollout, robot: Robot) -> Judgement:
    """Measure a rollout, ask its recipe's gates, find its segments.

    Raises:
      RecipeRefused: a gate profile that does not exist.
    """
    recipe = rollout.recipe
    profile = gate_profile(recipe.gate_profile)
    series = FrameSeries.of(rollout, robot)
    metrics = measure(series)
    return Judgement(
        quality_metrics=metrics,
        classification=classify(metrics, profile, recipe.mode, height_range=robot.height_range),
        segments=tuple(find_segments(series, profile, recipe.mode, rollout.dt)),
        contact_warnings=tuple(contact_warnings(rollout.foot_contacts, robot)),
    )


def score_file(
    source: Path | bytes,
    robot: Robot,
    recipe: Recipe,
    *,
    name: str | None = None,
    format: str | None = None,
    fps: float | None = None,
    quat_order: str | None = None,
    nthread: int = 1,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Score:
    """Read one motion file and score it. The arguments in between are `formats.read_motion`'s.

    Raises:
      MotionRefused: the file, or the motion in it, cannot be used.
    """
    if name is None:
        name = source.stem if isinstance(source, Path) else "motion"
    bounds = limits if limits is not None else Limits()
    motion = read_motion(source, name=name, format=format, fps=fps, quat_order=quat_order, limits=bounds)
    return score([motion], robot, recipe, nthread=nthread, progress=progress, limits=bounds)[0]


def _provenance(robot: Robot, recipe: Recipe) -> dict[str, Any]:
    """Everything that made the result, JSON-ready; nothing in it depends on the day or the machine."""
    settings = recipe.to_dict()
    return {
        "robot": robot.name,
        "robot_digest": robot.digest,
        "robot_mass_kg": robot.mass * recipe.physics.mass,
        "joint_names": list(robot.joint_names),
        "contact_channels": list(robot.channels),
        "feature_layout": robot.layout.to_dict(),
        "recipe": settings,
        "recipe_digest": recipe.digest,
        "gate_profile": recipe.gate_profile,
        "harness_params": settings["harness"],
        "generator_version": recipe.generator_version,
        "feature_code_hash": features.feature_code_hash(),
        "mujoco_version": mujoco.__version__,
    }
