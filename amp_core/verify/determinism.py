"""Test 1C: does the generator give the same bytes again, and do its controls alone give the recorded velocities?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from amp_core.errors import IntegrityError
from amp_core.motion import condition
from amp_core.quality import FrameSeries, measure
from amp_core.recipe import PLANNED_MODES
from amp_core.reference import META, decode_meta
from amp_core.rollout.simulation import start_velocity
from amp_core.tracking import Plan
from amp_core.verify.context import REPLAYED_FRAMES, Context, describe_sample
from amp_core.verify.report import FAIL, SKIP, WARN, Findings, Peak, Row, TestReport
from amp_core.verify.states import VELOCITIES, Drive, compute_features, simulate

if TYPE_CHECKING:
    from amp_core.formats import Motion
    from amp_core.motion import Conditioned
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip

Array = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]

PLANNED_SEC = 12.0
"""s of tracked clips that are planned again, in all; plans with more samples count for more."""

PLANNED_PREFIX_SEC = 1.0
"""s of each of them, rounded to the planner's branches."""


def generator_determinism(context: Context) -> TestReport:
    """1C: generating a clip again gives the same bytes, and replaying its controls without overwrites the same velocities."""
    findings = Findings("1C")
    clips = context.subject.nonempty_clips
    if not clips:
        return findings.skip("no clip has a frame")
    sentences = [check_replay(findings, context, clips)]
    sources = [clip for clip in clips if clip.motion is not None]
    pairs = context.sample(sources, REPLAYED_FRAMES)
    motions = [(clip, clip.motion()) for clip, frames in pairs if clip.motion is not None and frames == clip.frames]
    results: dict[Clip, Arrays] = {}
    if motions:
        sentence, results = check_generation(findings, context, motions)
        sentences.insert(0, sentence)
    sentences.append(check_metrics(findings, context.subject.robot, clips, results))
    missing = len(clips) - len(sources)
    if missing:
        if motions:
            note = f"the source of {missing} of {len(clips)} clips is not at hand: generated again were the others"
        else:
            note = "no clip's source is at hand: nothing was generated again"
        findings.add(Row("generated.source", len(motions), SKIP, note=note))
        if all(row.status != FAIL for row in findings.rows):
            findings.add_reason(note)
    return findings.report("; ".join(sentences))


def check_replay(findings: Findings, context: Context, clips: Sequence[Clip]) -> str:
    """The recorded controls without any overwrite of the pose, through the same physics."""
    robot = context.subject.robot
    pairs = context.sample(clips, REPLAYED_FRAMES)
    peaks: dict[str, Peak] = {}
    for number, (clip, frames) in enumerate(pairs):
        context.progress(0.5 + 0.5 * number / len(pairs), f"replaying {clip.name}")
        model, drive = robot.scaled_model(clip.recipe.physics), replace(Drive.of(clip, frames), forced=None)
        replay = simulate(robot, model, drive, with_loads=False)
        no_contacts = np.zeros_like(clip.arrays["foot_contacts"][:frames])
        features, recorded_features = (
            compute_features(robot, qpos[:frames], qvel[:frames], no_contacts).astype(np.float64)
            for qpos, qvel in ((replay.qpos, replay.qvel), (clip.arrays["qpos"], clip.arrays["qvel"]))
        )
        for name in VELOCITIES:
            block, place = robot.layout.block(name), f"clip {clip.name}"
            mae = float(np.abs(features[:, block.slice] - recorded_features[:, block.slice]).mean())
            if clip.recipe.mode == "teacher_forced":
                note = "teacher_forced: the pose was overwritten, and without that the robot moves otherwise"
                findings.check(f"replay.mae.{name}", mae, "<", 0.1, warn=True, unit=block.unit, where=place, note=note)
            else:
                peaks.setdefault(name, Peak()).record(mae, place)
    for name, peak in peaks.items():
        unit, note = robot.layout.block(name).unit, "without overwrites; the specification asks < 0.1"
        reason = f"{peak.place}: replaying its controls gives other velocities (MAE {peak.value:.3g} {unit} in {name})"
        findings.check(f"replay.mae.{name}", peak.value, "==", 0.0, unit=unit, where=peak.place, note=note, reason=reason)
    return f"the controls of {describe_sample(pairs, clips)} replayed without overwrites, against the recorded velocities"


def check_metrics(findings: Findings, robot: Robot, clips: Sequence[Clip], results: Mapping[Clip, Arrays]) -> str:
    """The recorded quality metrics, and those in an export's `meta`, against what the arrays give; equal to the last bit.

    Args:
      results: the arrays of the clips that were generated again; of the others the recorded ones are measured.
    """
    differing, old, count = "", 0, 0
    for clip in clips:
        records = [] if clip.metrics is None else [("recorded", clip.metrics)]
        if META in clip.arrays:
            records.append(("exported", decode_meta(clip.arrays[META], clip.name)["quality_metrics"]))
        if not records:
            continue
        try:
            values = measure(FrameSeries.from_export(results.get(clip, clip.arrays), clip.recipe, robot))
        except IntegrityError:
            old += 1
            continue
        count += 1
        for kind, metrics in records:
            names = [name for name, value in values.items() if metrics.get(name) != value]
            if names:
                differing = differing or f"clip {clip.name}"
                texts = ", ".join(f"{name} {metrics.get(name)} for {values[name]}" for name in names[:3])
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                findings.add_reason(
                    f"clip {clip.name}: the {kind} quality metrics are not what its arrays give ({texts}{more}): they were "
                    "changed after they were measured, or measured by other code; score the clip again"
                )
    wrong = sum("quality metrics are not" in reason for reason in findings.reasons)
    note = f"of {count} clips whose quality metrics were measured again, to the last bit"
    findings.check("metrics.differing", wrong, "==", 0, where=differing, note=note)
    if old:
        note = "exports of an older release, which lack arrays that the metrics are measured from"
        findings.add(Row("metrics.old", old, SKIP, note=note))
    return f"the quality metrics of {count} clips measured again"


def check_generation(
    findings: Findings, context: Context, motions: Sequence[tuple[Clip, Motion]]
) -> tuple[str, dict[Clip, Arrays]]:
    """The clips generated again from their motions, every exported array against the recorded one; and the new arrays."""
    clips = [clip for clip, _ in motions]
    conditioned_motions = [condition(motion, context.subject.robot) for _, motion in motions]
    results = _generate(context, clips, conditioned_motions, range(len(clips)))

    def to_bytes(array: npt.NDArray[Any] | None) -> tuple[Any, ...] | None:
        return None if array is None else (array.dtype, array.shape, np.ascontiguousarray(array).tobytes())

    differing: dict[int, list[str]] = {}
    for i, arrays in results.items():
        keys = [
            key
            for key, recorded_array in clips[i].arrays.items()
            # `check_metrics` compares what is in `meta`.
            if key != META and to_bytes(arrays.get(key)) != to_bytes(recorded_array)
        ]
        if keys:
            differing[i] = keys
    place = f"clip {clips[next(iter(differing))].name}" if differing else ""
    note = "clips with an exported array that differs in any byte"
    findings.check("generated.differing", len(differing), "==", 0, where=place, note=note)
    incomplete = [clip.name for i, clip in enumerate(clips) if i not in results]
    if incomplete:
        names = ", ".join(incomplete[:5])
        note = f"tracked clips whose simulation failed midway, so that their whole plan is not recorded: {names}"
        findings.add(Row("generated.left_out", len(incomplete), WARN, note=note))
    if differing:
        repetition = _generate(context, clips, conditioned_motions, differing)
        for i, keys in list(differing.items())[:3]:
            is_deterministic = all(np.array_equal(results[i][key], repetition[i][key]) for key in results[i])
            cause = (
                "this machine makes the same bytes twice, so they were recorded by other code, from another motion or recipe, "
                "or on a processor that rounds otherwise: generate the clip again with the code that is installed"
                if is_deterministic
                else "two generations on this machine differ, too: the generator is not deterministic (a seed that is not "
                "fixed, or state that is kept from one clip to the next)"
            )
            findings.add_reason(f"clip {clips[i].name}: {', '.join(keys)} differ from the recorded bytes; {cause}")
    plan_text = check_plans(findings, context, clips, conditioned_motions)
    sentence = (
        f"{len(results)} of {len(context.subject.clips)} clips generated again from their motions, every exported array byte "
        f"for byte{plan_text}"
    )
    return sentence, {clips[i]: arrays for i, arrays in results.items()}


def _generate(
    context: Context, clips: Sequence[Clip], motions: Sequence[Conditioned], indices: Iterable[int]
) -> dict[int, dict[str, npt.NDArray[Any]]]:
    """The exported arrays by index; tracked clips without a whole recorded plan are left out."""
    # Tracked clips follow the recorded plan; `check_plans` runs the planner. Clips of one attempt are generated together.
    plans: dict[int, dict[int, Plan | None]] = {}
    for i in indices:
        clip = clips[i]
        if clip.recipe.mode not in PLANNED_MODES:
            plans.setdefault(clip.attempt, {})[i] = None
        elif clip.frames == len(motions[i].dof_pos):
            plans.setdefault(clip.attempt, {})[i] = Plan(np.asarray(clip.arrays["ctrl"]), None, 0.0)
    arrays: dict[int, dict[str, npt.NDArray[Any]]] = {}
    for attempt, batch in sorted(plans.items()):
        rollouts = context.generate(
            context.subject.robot, [motions[i] for i in batch], [clips[i].recipe for i in batch],
            nthread=context.nthread, attempt=attempt, plans=list(batch.values()),
        )  # fmt: skip
        arrays.update({i: rollout.arrays() for i, rollout in zip(batch, rollouts, strict=True)})
    return arrays


def check_plans(findings: Findings, context: Context, clips: Sequence[Clip], motions: Sequence[Conditioned]) -> str:
    """The beginnings of some tracked clips planned again; their controls bit for bit."""
    control_dt = context.subject.robot.control_dt
    tracked_clips: list[int] = []
    lengths: dict[int, int] = {}
    costs: dict[int, float] = {}
    for i, clip in enumerate(clips):
        planner = clip.recipe.planner
        if clip.recipe.mode in PLANNED_MODES and planner is not None:
            branch = max(1, round(planner.branch_sec / control_dt))
            frames = max(1, round(PLANNED_PREFIX_SEC / control_dt / branch)) * branch
            lengths[i] = min(frames, clip.frames)
            costs[i] = lengths[i] * control_dt * planner.samples_of(clip.attempt) / planner.samples
            tracked_clips.append(i)
    if not tracked_clips:
        return ""
    # Evenly over the clips, as many as the budget has time for, and one at least.
    count = len(tracked_clips)
    selection = tracked_clips
    while count > 1 and sum(costs[i] for i in selection) > PLANNED_SEC:
        count -= 1
        selection = [tracked_clips[int(n * len(tracked_clips) / count)] for n in range(count)]
    differing: list[str] = []
    for number, i in enumerate(selection):
        clip = clips[i]
        context.progress(0.5 * number / len(selection), f"planning {clip.name} again")
        recorded_ctrl = clip.arrays["ctrl"][: lengths[i]]
        planned_ctrl = _plan_beginning(context, clip, motions[i], lengths[i])
        if np.array_equal(planned_ctrl, recorded_ctrl):
            continue
        differing.append(clip.name)
        if len(differing) > 1:
            continue  # The first one gets a reason; planning costs seconds.
        frame = int(np.argmax((planned_ctrl != recorded_ctrl).any(axis=1)))
        cause = (
            "this machine plans the same twice, so the recording comes of another seed, attempt or recipe than it names, of "
            "other code, or of a processor whose linear algebra rounds otherwise: score the clip again here"
            if np.array_equal(planned_ctrl, _plan_beginning(context, clip, motions[i], lengths[i]))
            else "two plans on this machine differ, too: the planner is not deterministic (a seed that is not fixed)"
        )
        findings.add_reason(f"clip {clip.name}: its controls are planned otherwise from frame {frame} on; {cause}")
    place = f"clip {differing[0]}" if differing else ""
    note = f"of {len(selection)} tracked clips whose beginning was planned again"
    findings.check("planned.differing", len(differing), "==", 0, where=place, note=note)
    seconds = sum(lengths[i] for i in selection) * control_dt
    return (
        f"; the beginnings of {len(selection)} of {len(tracked_clips)} tracked clips ({seconds:.1f} s) planned again and their "
        "controls compared bit for bit, what follows simulated with the recorded controls"
    )


def _plan_beginning(context: Context, clip: Clip, motion: Conditioned, frames: int) -> Array:
    """(frames, nu) the first controls of a clip, planned again."""
    start = start_velocity(motion, clip.recipe)
    # As in the generator: linear algebra on several threads adds in another order.
    with threadpool_limits(1, user_api="blas"):
        plan = context.plan(
            context.subject.robot, motion, clip.recipe, start, attempt=clip.attempt, nthread=context.nthread, frames=frames
        )
    return np.asarray(plan.ctrl[:frames])
