"""Scoring: from a motion as its file has it to a tier, with everything that proves it.

Mode `tracked` plans, and a plan may miss its goals; then another attempt is made with other noise, and the best one counts.
In mode `assisted` each further attempt has a stronger harness, until the robot stays up.
Mode `recorded` simulates the controls that came with the clip, and says whether they reproduce what was recorded.
Mode `auto` scores a clip in the cheapest mode that gives Tier 0: in `recorded` where it carries controls, in `rollout` and,
where triage finds it worth planning, in `tracked`; where that is Rejected, too, in `assisted`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from amp_core import features
from amp_core.attempts import Attempt, best_attempt
from amp_core.diagnosis import Diagnosis, diagnose
from amp_core.engine import mujoco
from amp_core.errors import MotionRefused
from amp_core.formats import Limits, Motion
from amp_core.kinematics import kinematic_contacts
from amp_core.lineage import Lineage, lineage_columns
from amp_core.motion import Conditioned, IngestReport, check_controls, check_motion, condition
from amp_core.npz import write_npz
from amp_core.progress import Progress, scale_progress
from amp_core.recipe import PLANNED_MODES, RECORDED, Recipe
from amp_core.reference import META, encode_meta
from amp_core.reproduction import Reproduction, measure_reproduction
from amp_core.robot import Robot
from amp_core.rollout import Rollout, generate
from amp_core.strict_json import json_data
from amp_core.tiers import DYNAMIC_PROFILES, Tier, best_tier, check_recipe, gate_profile, merit_order
from amp_core.tracking.scaling import Scaling
from amp_core.triage import Triage, triage
from amp_core.verdict import Verdict, judge

_TRACKED_SHARE = 0.6  # of the planning in mode `auto`: few clips need to be planned with a harness as well
_ROLLOUT_SHARE = 0.01  # of the progress in mode `auto`: simulating takes next to nothing beside planning


@dataclass(frozen=True, eq=False)
class Auto:
    """How mode `auto` scored a clip.

    Args:
      recipe: of mode `auto`.
      tried: the score in each mode that was tried, under its own recipe; none of them has an `auto`.
      shown: the index of the best, which is the clip's.
    """

    recipe: Recipe
    triage: Triage
    tried: tuple[Score, ...]
    shown: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data, with the verdicts of the scores but without their metrics."""
        return {
            "recipe": self.recipe.to_dict(),
            "recipe_digest": self.recipe.digest,
            "triage": json_data(self.triage),
            "tried": [
                {
                    "mode": score.rollout.recipe.mode,
                    "gate_profile": score.rollout.recipe.gate_profile,
                    "recipe_digest": score.rollout.recipe.digest,
                    "tier": score.tier,
                    "tier_reason": score.tier_reason,
                    "wall_sec": score.wall_sec,
                }
                for score in self.tried
            ],
            "shown": self.shown,
        }


@dataclass(frozen=True, eq=False)
class Score(Verdict):
    """A clip's verdict and its evidence.

    Args:
      ingest: what conditioning changed.
      provenance: robot, recipe, code and engine that made it.
      wall_sec: s, from motion to verdict; in a batch, the batch's time in proportion to the clip's frames.
      attempts: of a tracked clip, every plan that was made; `provenance["attempt"]` is the number of the best.
      auto: how mode `auto` scored the clip; None for another mode.
      diagnosis: why it is not Tier 0, in physical words; None where it is.
      source_file: the clip's name with the ending of its format.
      lineage: of a variant.
      reproduction: of a recording: how far its simulation is from what was recorded; `ingest["recording"]` has it too.
    """

    name: str
    source_digest: str
    rollout: Rollout
    ingest: dict[str, Any]
    provenance: dict[str, Any]
    wall_sec: float
    attempts: tuple[Attempt, ...] = ()
    auto: Auto | None = None
    diagnosis: Diagnosis | None = None
    source_file: str = ""
    lineage: Lineage | None = None
    reproduction: Reproduction | None = None

    @property
    def merit_order(self) -> tuple[int, ...]:
        """A sort key for the scores of one clip, the best first: `tiers.merit_order`."""
        recipe = self.rollout.recipe
        frames = sum(segment.stop - segment.start for segment in self.segments)
        is_scaled = not recipe.physics.is_identity
        return merit_order(self.tier, recipe.mode, frames, profile=recipe.gate_profile, scaled=is_scaled)

    @property
    def frames(self) -> int:
        """Frames of the conditioned clip. The export has as many rows, unless the simulation failed."""
        return self.rollout.clip_frames

    @property
    def duration_sec(self) -> float:
        """s: frames · dt."""
        return self.frames * self.rollout.dt

    def to_dict(self) -> dict[str, Any]:
        """The `--json` object: JSON-ready, with null where there is no value."""
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
            "failure": json_data(self.rollout.failure),
            "contact_warnings": list(self.contact_warnings),
            "attempts": json_data(self.attempts),
            "auto": None if self.auto is None else self.auto.to_dict(),
            "diagnosis": json_data(self.diagnosis),
            "ingest": self.ingest,
            "provenance": self.provenance,
            "wall_sec": self.wall_sec,
        }

    def export(self, target: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the export npz: the same bytes every time, readable with `allow_pickle=False`.

        The last member is `meta` (`reference.read_reference` reads it).
        """
        arrays = self.rollout.arrays()
        write_npz(target, arrays | {META: self._encode_meta(arrays)})

    def _encode_meta(self, arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.uint8]:
        recipe, provenance = self.rollout.recipe, self.provenance
        identity = {"name": self.name, "source_digest": self.source_digest} | lineage_columns(self.lineage)
        return encode_meta(
            arrays,
            dt=self.rollout.dt,
            tier=self.tier,
            tier_reason=self.tier_reason,
            quality_metrics=self.quality_metrics,
            generation_mode=recipe.mode,
            harness_params=provenance["harness_params"],
            source_file=self.source_file or self.name,
            robot=provenance["robot"],
            joint_names=tuple(provenance["joint_names"]),
            generator_version=recipe.generator_version,
            provenance=provenance | identity,
        )


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
      limits: of duration, rate and plausibility; the default ones where None.

    Returns:
      One score a motion, in order. In mode `auto` it is that of the best mode, and its `auto` holds all of them.

    Raises:
      MotionRefused: a motion that does not fit the robot, or that is to be tracked with its root in another frame.
      RecipeRefused: an unknown gate profile, or the generator of another release.
    """
    check_recipe(recipe)  # Refused before the work, not after it.
    start = time.perf_counter()
    clips = [condition(motion, robot, limits, recipe.gate_profile, recipe.mode) for motion in motions]
    # Measuring is quick beside simulating and has the last hundredth of the progress.
    simulating = scale_progress(progress, 0.0, 0.99)
    if recipe.mode == "auto":
        recordings = {
            i: condition(motion, robot, limits, recipe.gate_profile, RECORDED)
            for i, (motion, clip) in enumerate(zip(motions, clips, strict=True))
            if motion.has_controls and clip.report.finding("recording_unusable") is None
        }
        seconds = time.perf_counter() - start
        scores = _score_auto(motions, clips, recordings, robot, recipe, nthread, simulating, seconds, limits)
    else:
        scores = _score_mode(motions, clips, robot, recipe, nthread, simulating, time.perf_counter() - start)
    if progress is not None:
        progress(1.0, "scored")
    return scores


def _score_auto(
    motions: Sequence[Motion],
    clips: Sequence[Conditioned],
    recordings: Mapping[int, Conditioned],
    robot: Robot,
    recipe: Recipe,
    nthread: int,
    progress: Progress | None,
    conditioning_sec: float,
    limits: Limits | None,
) -> list[Score]:
    """The cheapest mode that gives Tier 0, or the best where none does. The arguments are those of `_score_mode`.

    A clip that cannot be Tier 0 by the recipe's profile, because of what it is, is judged by the one that goes with it and
    compares with the clip.

    Args:
      recordings: of the clips that carry controls, by their number: conditioned for mode `recorded`.
      limits: as `score` has them.
    """
    half = 0.5 * _ROLLOUT_SHARE if recordings else 0.0
    planning = scale_progress(progress, _ROLLOUT_SHARE, 1.0)
    mode_scores: list[list[Score]] = [[] for _ in clips]
    triages: dict[int, Triage] = {}

    def score_in(
        mode: str,
        numbers: Sequence[int],
        part: Progress | None,
        seconds: float = 0.0,
        first: int = 0,
        profile: str | None = None,
    ) -> None:
        mode_clips = [recordings[i] if mode == RECORDED else clips[i] for i in numbers]
        stage = recipe.stage(mode)
        if profile is not None:
            stage = replace(stage, gate_profile=profile)
            mode_clips = [condition(motions[i], robot, limits, profile, mode) for i in numbers]
        results = _score_mode([motions[i] for i in numbers], mode_clips, robot, stage, nthread, part, seconds, first=first)
        for i, result in zip(numbers, results, strict=True):
            mode_scores[i].append(result)

    def best_of(i: int) -> Tier:
        return Tier.best(result.tier for result in mode_scores[i])

    if recordings:
        # A recording costs one simulation, and where it is Tier 0 it is the clip's motion by the controls that made it.
        score_in(RECORDED, list(recordings), scale_progress(progress, 0.0, half), conditioning_sec)
        triages = {i: Triage((), False, "the recording is Tier 0") for i in recordings if mode_scores[i][0].tier == Tier.TIER_0}
    remaining = [i for i in range(len(clips)) if i not in triages]
    if remaining:
        simulating = scale_progress(progress, half, _ROLLOUT_SHARE)
        score_in("rollout", remaining, simulating, 0.0 if recordings else conditioning_sec)
    for i in remaining:
        clip, rollout = clips[i], mode_scores[i][-1]
        triages[i] = triage(
            clip.report,
            kinematic_contacts(robot, clip.qpos(robot)).mean(axis=0).tolist(),
            rollout.quality_metrics,
            rollout.tier,
            robot,
            gate_profile(recipe.gate_profile),
            rollout.gates,
        )
    begin, relative = 0.0, [i for i in remaining if triages[i].relative]
    planned: list[int] = []
    if relative:
        profile, begin = DYNAMIC_PROFILES[recipe.gate_profile], _TRACKED_SHARE / 2
        if recorded := [i for i in relative if i in recordings]:
            score_in(RECORDED, recorded, None, profile=profile)
        if falling := [i for i in relative if best_of(i) != Tier.TIER_0]:
            score_in("rollout", falling, scale_progress(planning, 0.0, _ROLLOUT_SHARE * begin, f"{profile}: "), profile=profile)
        planned = [i for i in falling if best_of(i) != Tier.TIER_0]
        if planned:
            part = scale_progress(planning, _ROLLOUT_SHARE * begin, begin, f"{profile}: ")
            score_in("tracked", planned, part, profile=profile)
    remaining = [i for i in remaining if triages[i].worth_planning and best_of(i) != Tier.TIER_0]
    worth_planning = frozenset([*remaining, *planned])
    for mode in PLANNED_MODES:
        # The same controls were planned by the other profile already.
        numbers = [i for i in remaining if mode != "tracked" or i not in planned]
        end = _TRACKED_SHARE if mode == "tracked" else 1.0
        part, begin = scale_progress(planning, begin, end, "" if mode == "tracked" else f"{mode}: "), end
        if numbers:
            # The first attempt of mode `assisted` has no harness; mode `tracked` has made such ones, with more simulations.
            score_in(mode, numbers, part, first=0 if mode == "tracked" else 1)
        # What is Tier 1 on its own feet needs no harness.
        remaining = [i for i in remaining if best_of(i) == Tier.REJECTED]
    scores = []
    for i, modes in enumerate(mode_scores):
        if i in worth_planning:
            # The suggestion to plan has been followed.
            modes = [replace(mode, diagnosis=mode.diagnosis and mode.diagnosis.without("use_tracked")) for mode in modes]
        best = min(range(len(modes)), key=lambda k: (modes[k].merit_order, -k))
        auto = Auto(recipe, triages[i], tuple(modes), best)
        scores.append(replace(modes[best], auto=auto, wall_sec=sum(mode.wall_sec for mode in modes)))
    return scores


def _score_mode(
    motions: Sequence[Motion],
    clips: Sequence[Conditioned],
    robot: Robot,
    recipe: Recipe,
    nthread: int,
    progress: Progress | None,
    conditioning_sec: float,
    *,
    first: int = 0,
) -> list[Score]:
    """Score clips in the one mode that the recipe names; conditioning them took `conditioning_sec`.

    Args:
      motions: as their files have them.
      first: the number of the first attempt, unless the recipe has fewer.
    """
    start = time.perf_counter()
    if recipe.mode in PLANNED_MODES:
        _refuse_foreign_frames(clips)
    results, attempts = _generate_best(clips, robot, recipe, nthread, progress, first)
    wall_sec = conditioning_sec + time.perf_counter() - start
    frames = sum(rollout.clip_frames for rollout, _ in results)
    provenance = _provenance(robot, recipe)
    scores = []
    for motion, clip, (rollout, verdict), plans in zip(motions, clips, results, attempts, strict=True):
        classification, root_frame = verdict.classification, clip.report.root_frame
        recording = clip.recording
        reproduction = None if recording is None else measure_reproduction(motion, recording, rollout, robot)
        if root_frame.suspect and classification.tier == Tier.REJECTED:
            classification = classification.with_cause(root_frame.detail)
        scores.append(
            Score(
                **(vars(verdict) | {"classification": classification}),
                name=clip.name,
                source_digest=clip.source_digest,
                rollout=rollout,
                ingest=_describe_ingest(clip.report, reproduction),
                provenance=provenance | {"attempt": best_attempt(plans) if plans else 0},
                wall_sec=wall_sec * rollout.clip_frames / frames,
                attempts=tuple(plans),
                diagnosis=diagnose(rollout, clip, robot, classification, reproduction),
                source_file=f"{clip.name}.{clip.source_format}" if clip.source_format else clip.name,
                lineage=clip.lineage,
                reproduction=reproduction,
            )
        )
    return scores


def _describe_ingest(report: IngestReport, reproduction: Reproduction | None) -> dict[str, Any]:
    """The `ingest` object, with `recording` for a clip whose controls were simulated."""
    ingest = report.to_dict()
    if reproduction is not None:
        notes = [f"Recording: {reproduction.explain()}.", *ingest["notes"]]
        ingest |= {"notes": notes, "recording": reproduction.to_dict()}
    return ingest


def _generate_best(
    clips: Sequence[Conditioned], robot: Robot, recipe: Recipe, nthread: int, progress: Progress | None, first: int
) -> tuple[list[tuple[Rollout, Verdict]], list[list[Attempt]]]:
    """The best rollout of each clip with its verdict, and every attempt; no attempts where the mode does not plan.

    An assisted clip has enough harness with the first attempt that is Tier 1, and so has a clip enough attempts that itself
    cannot be Tier 0.

    Each clip's attempts are its own: which others are in the batch changes nothing.
    """
    if recipe.planner is None:
        rollouts = generate(robot, clips, recipe, nthread=nthread, progress=progress)
        return [(rollout, judge(rollout, robot)) for rollout in rollouts], [[] for _ in clips]
    profile, scaling = gate_profile(recipe.gate_profile), Scaling.of(robot)
    best: dict[int, tuple[Rollout, Verdict]] = {}
    attempts: list[list[Attempt]] = [[] for _ in clips]
    remaining, final = list(range(len(clips))), set[int]()
    begin = 0.0
    first = min(first, recipe.planner.attempts - 1)
    for number in range(first, recipe.planner.attempts):
        # How many there will be is not known: as if there were one more, so that none is less far than it says.
        effort, further = (scaling.effort(recipe.planner.branches, attempt) for attempt in (number, number + 1))
        is_last = number == recipe.planner.attempts - 1
        end = 1.0 if is_last else begin + (1.0 - begin) * effort / (effort + further)
        part = scale_progress(progress, begin, end, f"attempt {number + 1}: " if number > first else "")
        rollouts = generate(robot, [clips[i] for i in remaining], recipe, nthread=nthread, progress=part, attempt=number)
        for i, rollout in zip(remaining, rollouts, strict=True):
            verdict = judge(rollout, robot)
            attempt = Attempt.of(number, verdict, profile)
            attempts[i].append(attempt)
            if best_attempt(attempts[i]) == number:
                best[i] = (rollout, verdict)
            # Goals are for Tier 0: of another clip, and with a harness, the first plan of the best possible tier is enough.
            highest = best_tier(verdict.gates)
            is_enough = attempt.tier == Tier.TIER_0 and (attempt.meets_goals or not scaling.is_for_goals(number + 1))
            if is_enough or highest == attempt.tier != Tier.TIER_0:
                final.add(i)
        remaining = [i for i in remaining if i not in final]
        if not remaining:
            break
        begin = end
    return [best[i] for i in range(len(clips))], attempts


def check_scorable(motion: Motion, robot: Robot, recipe: Recipe, limits: Limits | None = None) -> None:
    """Refuse, without simulating, a motion that `score` would refuse under this recipe and with it the batch that it is in.

    Raises:
      MotionRefused: it does not fit the robot, it is to be tracked with its root in another frame, or its controls are to be
        simulated and cannot be.
    """
    if recipe.mode in PLANNED_MODES:
        _refuse_foreign_frames([condition(motion, robot, limits, recipe.gate_profile)])
    else:
        check_motion(motion, robot, limits)
        check_controls(motion, robot, recipe.mode)


def _refuse_foreign_frames(clips: Sequence[Conditioned]) -> None:
    """A planner would make an upright motion of a root in another frame and so hide that the clip is wrong."""
    for clip in clips:
        if clip.report.root_frame.suspect:
            raise MotionRefused(
                clip.report.root_frame.detail,
                file=clip.name,
                key="root_rot",
                expected="the robot's own root frame, z up and x forward",
                remedy="Retarget it with the robot's root frame; mode rollout simulates it as it is",
            )


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
        "harness_params": recipe.harness_params(robot.mg_for(recipe.physics)),
        "generator_version": recipe.generator_version,
        "feature_code_hash": features.feature_code_hash(),
        "mujoco_version": mujoco.__version__,
    }
