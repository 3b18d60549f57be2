"""Scoring: the whole line from a motion that was read to a tier, with everything that proves it.

Mode `tracked` plans, and a plan may miss what it aims at; it is tried again with other noise, and the best attempt is kept.
Mode `auto` scores a clip in the cheapest mode that gives Tier 0: it tries `rollout`, asks triage, and then `tracked`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from amp_core import features
from amp_core.diagnosis import Diagnosis, diagnose
from amp_core.engine import mujoco
from amp_core.errors import MotionRefused
from amp_core.formats import Limits, Motion, read_motion
from amp_core.kinematics import kinematic_contacts
from amp_core.motion import Conditioned, check_motion, condition
from amp_core.npz import write_npz
from amp_core.progress import Progress, scale_progress
from amp_core.quality import FrameSeries, contact_warnings, measure
from amp_core.recipe import Recipe
from amp_core.rollout import Rollout, generate
from amp_core.segments import Segment, find_segments
from amp_core.tiers import Classification, Gate, Op, Tier, check_recipe, classify, gate_profile, merit_order
from amp_core.triage import Triage, triage

if TYPE_CHECKING:
    from amp_core.robot import Robot


TRACKED_GOALS: Mapping[str, tuple[Op, float]] = {
    "unloaded_frame_rate": ("<=", 0.05),
    "joint_rmse_rad": ("<=", 0.13),
    "root_drift_m": ("<=", 0.15),
    "slip_rate": ("<=", 0.10),
    "contact_agreement": (">=", 0.7),
}
"""What a tracked clip should reach, stricter than the gates: missing one is a reason to try again and changes no tier."""

_FIRST_ATTEMPT = 0.7  # of the bar, and of what is left the same for each further one: whether there will be one is not known
_PLAIN_SHARE = 0.01  # of the bar in mode `auto`: a plain rollout takes next to nothing beside planning


@dataclass(frozen=True)
class Attempt:
    """One plan of a tracked clip.

    Args:
      attempt: which; each plans with other noise.
      tier, tier_reason: its verdict.
      worst: the largest of its figures as a share of their goals; at most 1 where every goal is met.
      missed: the goals that it missed.
      figures: by metric, of those that have a goal.
    """

    attempt: int
    tier: Tier
    tier_reason: str
    worst: float
    missed: tuple[str, ...]
    figures: dict[str, float | int | None]

    @property
    def good(self) -> bool:
        """Whether there is nothing to try again for."""
        return self.tier == Tier.TIER_0 and not self.missed

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "attempt": self.attempt,
            "tier": self.tier,
            "tier_reason": self.tier_reason,
            "worst": self.worst,
            "missed": list(self.missed),
            "figures": dict(self.figures),
        }


@dataclass(frozen=True, eq=False)
class Auto:
    """What mode `auto` did with a clip.

    Args:
      recipe: that asked for it, of mode `auto`.
      triage: what the clip lacks.
      tried: a score for each mode that was tried, under its own recipe; none of them has an `auto`.
      shown: which of them is the clip's.
    """

    recipe: Recipe
    triage: Triage
    tried: tuple[Score, ...]
    shown: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the verdicts of what was tried, not all of its figures."""
        return {
            "recipe": self.recipe.to_dict(),
            "recipe_digest": self.recipe.digest,
            "triage": self.triage.to_dict(),
            "tried": [
                {
                    "mode": one.rollout.recipe.mode,
                    "recipe_digest": one.rollout.recipe.digest,
                    "tier": one.tier,
                    "tier_reason": one.tier_reason,
                    "wall_sec": one.wall_sec,
                }
                for one in self.tried
            ],
            "shown": self.shown,
        }


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
      attempts: of a tracked clip, every plan that was tried; `provenance["attempt"]` names the one that was kept.
      auto: how mode `auto` came to this; None for a score that was asked for by its own recipe.
      diagnosis: why it is not Tier 0, in physical words; None where it is.
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
    attempts: tuple[Attempt, ...] = ()
    auto: Auto | None = None
    diagnosis: Diagnosis | None = None

    @property
    def tier(self) -> Tier:
        return self.classification.tier

    @property
    def merit_order(self) -> tuple[int, ...]:
        """A sort key for the scores of one clip, the best first: `tiers.merit_order`."""
        recipe = self.rollout.recipe
        frames = sum(segment.stop - segment.start for segment in self.segments)
        return merit_order(self.tier, recipe.mode, frames, scaled=not recipe.physics.is_identity)

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
            "attempts": [attempt.to_dict() for attempt in self.attempts],
            "auto": None if self.auto is None else self.auto.to_dict(),
            "diagnosis": None if self.diagnosis is None else self.diagnosis.to_dict(),
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

    Returns:
      One score a motion, in order. In mode `auto` it is that of the best mode that was tried, and `auto` holds all of them.

    Raises:
      MotionRefused: a motion that does not fit the robot, or that is to be tracked with its root in another frame.
      RecipeRefused: a gate profile that does not exist, or the generator of another release.
    """
    check_recipe(recipe)  # Refused before the work, not after it.
    began = time.perf_counter()
    conditioned = [condition(motion, robot, limits) for motion in motions]
    run = _auto if recipe.mode == "auto" else _plainly
    # Measuring is quick beside simulating; the last hundredth of the bar is for it.
    scores = run(conditioned, robot, recipe, nthread, scale_progress(progress, 0.0, 0.99), time.perf_counter() - began)
    if progress is not None:
        progress(1.0, "scored")
    return scores


def _auto(
    clips: Sequence[Conditioned],
    robot: Robot,
    recipe: Recipe,
    nthread: int,
    progress: Progress | None,
    conditioning: float,
) -> list[Score]:
    """The cheapest mode that gives Tier 0, or the best where none does. The arguments are `_plainly`'s."""
    plain = _plainly(clips, robot, recipe.stage("rollout"), nthread, scale_progress(progress, 0.0, _PLAIN_SHARE), conditioning)
    found = [
        triage(
            clip.report,
            kinematic_contacts(robot, clip.qpos(robot)).mean(axis=0).tolist(),
            one.quality_metrics,
            one.tier,
            robot.control_dt,
            gate_profile(recipe.gate_profile),
        )
        for clip, one in zip(clips, plain, strict=True)
    ]
    chosen = [i for i in range(len(clips)) if found[i].worth_planning]
    tried = [[one] for one in plain]
    if chosen:
        planning = scale_progress(progress, _PLAIN_SHARE, 1.0)
        tracked = _plainly([clips[i] for i in chosen], robot, recipe.stage("tracked"), nthread, planning, 0.0)
        for i, one in zip(chosen, tracked, strict=True):
            tried[i].append(one)
    scores = []
    for lacks, those in zip(found, tried, strict=True):
        if len(those) > 1:
            those = [replace(one, diagnosis=one.diagnosis and one.diagnosis.without("use_tracked")) for one in those]
        shown = min(range(len(those)), key=lambda i: (those[i].merit_order, -i))
        auto = Auto(recipe, lacks, tuple(those), shown)
        scores.append(replace(those[shown], auto=auto, wall_sec=sum(one.wall_sec for one in those)))
    return scores


def _plainly(
    clips: Sequence[Conditioned],
    robot: Robot,
    recipe: Recipe,
    nthread: int,
    progress: Progress | None,
    conditioning: float,
) -> list[Score]:
    """Score clips in the one mode that the recipe names.

    Args:
      conditioning: s that conditioning them took.
    """
    began = time.perf_counter()
    if recipe.mode == "tracked":
        _refuse_other_frames(clips)
    kept, attempts = _best_of_attempts(clips, robot, recipe, nthread, progress)
    wall = conditioning + time.perf_counter() - began
    frames = sum(rollout.clip_frames for rollout, _ in kept)
    provenance = _provenance(robot, recipe)
    scores = []
    for clip, (rollout, judgement), tried in zip(clips, kept, attempts, strict=True):
        scores.append(
            Score(
                name=clip.name,
                source_digest=clip.source_digest,
                rollout=rollout,
                quality_metrics=judgement.quality_metrics,
                classification=_with_root_frame(judgement.classification, clip),
                segments=judgement.segments,
                ingest=clip.report.to_dict(),
                provenance=provenance | {"attempt": best_attempt(tried) if tried else 0},
                contact_warnings=judgement.contact_warnings,
                wall_sec=wall * rollout.clip_frames / frames,
                attempts=tuple(tried),
                diagnosis=diagnose(rollout, clip, robot, judgement.classification),
            )
        )
    return scores


def _best_of_attempts(
    clips: Sequence[Conditioned], robot: Robot, recipe: Recipe, nthread: int, progress: Progress | None
) -> tuple[list[tuple[Rollout, Judgement]], list[list[Attempt]]]:
    """Of each clip the best rollout with its judgement, and every attempt; none where the mode does not plan.

    Each clip's attempts are its own: which others are in the batch changes nothing.
    """
    if recipe.planner is None:
        rollouts = generate(robot, clips, recipe, nthread=nthread, progress=progress)
        return [(rollout, judge(rollout, robot)) for rollout in rollouts], [[] for _ in clips]
    kept: dict[int, tuple[Rollout, Judgement]] = {}
    attempts: list[list[Attempt]] = [[] for _ in clips]
    again = list(range(len(clips)))
    begin = 0.0
    for number in range(recipe.planner.attempts):
        last = number == recipe.planner.attempts - 1
        end = 1.0 if last else begin + (1.0 - begin) * _FIRST_ATTEMPT
        part = scale_progress(progress, begin, end, f"attempt {number + 1}: " if number else "")
        rollouts = generate(robot, [clips[i] for i in again], recipe, nthread=nthread, progress=part, attempt=number)
        for i, rollout in zip(again, rollouts, strict=True):
            judgement = judge(rollout, robot)
            attempts[i].append(_attempt(number, judgement))
            if best_attempt(attempts[i]) == number:
                kept[i] = (rollout, judgement)
        again = [i for i in again if not attempts[i][-1].good]
        if not again:
            break
        begin = end
    return [kept[i] for i in range(len(clips))], attempts


def _attempt(number: int, judgement: Judgement) -> Attempt:
    """An attempt's verdict; a metric that has no value has no goal."""
    metrics = judgement.quality_metrics
    figures = {name: metrics[name] for name in TRACKED_GOALS if name in metrics}
    shares = {name: _share_of_goal(name, value) for name, value in figures.items() if value is not None}
    return Attempt(
        attempt=number,
        tier=judgement.classification.tier,
        tier_reason=judgement.classification.tier_reason,
        # What was not simulated to its end has no figures to be proud of.
        worst=max(shares.values(), default=0.0) if metrics["finite_frame_rate"] == 1.0 else 1e9,
        missed=tuple(name for name, share in shares.items() if share > 1.0),
        figures=figures,
    )


def _share_of_goal(name: str, value: float) -> float:
    """1 at the goal, less where it is bettered. Bounded, since JSON has no infinity and no share beyond it means anything."""
    op, goal = TRACKED_GOALS[name]
    share = value / goal if op == "<=" else goal / max(value, 1e-9)
    return min(share, 1e9) if math.isfinite(share) else 1e9


def best_attempt(attempts: Sequence[Attempt]) -> int:
    """The number of the attempt with the best tier; of equals the one that comes closest to its goals, then the first."""
    return min(attempts, key=lambda plan: (Tier(plan.tier).rank, plan.worst, plan.attempt)).attempt


def check_scorable(motion: Motion, robot: Robot, recipe: Recipe) -> None:
    """Refuse, without simulating, a motion that `score` would refuse under this recipe and with it the batch that it is in.

    Raises:
      MotionRefused: it does not fit the robot, or it is to be tracked with its root in another frame.
    """
    if recipe.mode == "tracked":
        _refuse_other_frames([condition(motion, robot)])
    else:
        check_motion(motion, robot)


def _refuse_other_frames(clips: Sequence[Conditioned]) -> None:
    """A planner would make something upright of a root in another frame, and nobody would hear that the clip was wrong."""
    for clip in clips:
        if clip.report.root_frame.suspect:
            raise MotionRefused(
                clip.report.root_frame.detail,
                file=clip.name,
                key="root_rot",
                expected="the robot's own root frame, z up and x forward",
                remedy="Retarget it with the robot's root frame; mode rollout simulates it as it is",
            )


def _with_root_frame(classification: Classification, clip: Conditioned) -> Classification:
    """With the likely cause before what follows from it, where the clip's root is in another frame and it was Rejected."""
    if classification.tier != Tier.REJECTED or not clip.report.root_frame.suspect:
        return classification
    said = classification.tier_reason.removeprefix("Rejected: ")
    return replace(classification, tier_reason=f"Rejected: {clip.report.root_frame.detail}; {said}")


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
    classification = classify(metrics, profile, recipe.mode, height_range=robot.height_range)
    if rollout.failure is not None:
        # The gates say that frames are missing; why they are is what somebody can act on.
        said = classification.tier_reason.removeprefix("Rejected: ")
        classification = replace(classification, tier_reason=f"Rejected: {rollout.failure.reason}; {said}")
    return Judgement(
        quality_metrics=metrics,
        classification=classification,
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
